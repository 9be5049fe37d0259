"""Family: a kind of noise, and all that the library must know of it. Other packages bring families of their own.

A sampler and a denoiser say by name of which family they are. The family begins their runs (`start`), which includes reading
the arguments of sample(); it gives exact problems a denoiser (`of_problem`) and the kit a small model (`tiny`). Everything
else, such as counting, randomness, progress, traces, benchmarks and the checks of the kit, is the same for all families.

A package brings a family by an entry point in the group `samplers.families`, whose name is the family's:

    [project.entry-points."samplers.families"]
    bayesian_flow = "samplers_bfn:BayesianFlow"

or by the hook register_families.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .errors import FamilyError, PluginError
from .guard import guarded

if TYPE_CHECKING:
    from .arguments import Given
    from .denoiser import Denoiser
    from .problems import Problem
    from .sampler import Sampler, State

__all__ = ["BUILT_IN", "Family", "Run", "family_names", "family_of"]

BUILT_IN = {
    "masked": "samplers.token_family:MASKED",
    "uniform": "samplers.token_family:UNIFORM",
    "gaussian": "samplers.gaussian.family:GAUSSIAN",
}


@dataclass
class Run:
    """What a family makes of a call of sample(): the parts that the driver then runs.

    Attributes:
        sampler: the sampler that runs; it may differ from the one that was given, such as by an option that the arguments set.
        predictor: what counts forward passes and checks answers: a FamilyPredictor.
        state: the state before the first step.
        limit: the most steps that a run can take; one that takes more is stopped with an error.
        settings: what Sample.settings records: numbers, texts and lists, so that json can write it. "steps" must be among them.
        predict: what `step` is given, if it is not the predictor.
        constrain: the hook of the caller, or None.
    """

    sampler: Sampler[Any]
    predictor: Any
    state: State
    limit: int
    settings: dict[str, Any]
    predict: Any = None
    constrain: Callable[[Any], Any] | None = None


class Family:
    """Base of families. A subclass sets the attributes and writes `start` and `tiny`; `of_problem` if problems suit it.

    Attributes:
        name: lower_snake; what samplers and denoisers of it have as `family`.
        summary: one line.
        default_sampler: the name of the sampler that runs if a command names none.
        tokens: True if its runs fill positions with tokens, as those of masked and uniform noise do: a run then knows prompts,
            blocks and temperatures.
        checks: modules with checks of the kit for samplers of this family, such as ("samplers_bfn.checks",).
    """

    name: str
    summary: str = ""
    default_sampler: str
    tokens: bool = False
    checks: tuple[str, ...] = ()

    def start(self, denoiser: Denoiser, sampler: Sampler[Any], given: Given) -> Run:
        """The run of a sampler of this family, before its first step.

        Args:
            given: what sample() was called with: given("steps") is one argument. What is not read must have its default value,
                which `given.refuse_the_rest(sampler)` sees to.

        Raises:
            OptionError: an argument is wrong. FamilyError: the denoiser is none of this family.
        """
        raise NotImplementedError(f"family {self.name!r} does not say how a run starts")

    def supports(self, problem: Problem) -> bool:
        """Whether `of_problem` has a denoiser for this problem."""
        return self.name in problem.families

    def of_problem(self, problem: Problem, **options: Any) -> Denoiser:
        """The exact denoiser of this family for a problem that has none of its own.

        Args:
            options: those of problem.denoiser(family, ...).

        Raises:
            FamilyError: the family has none for this problem.
        """
        raise FamilyError(f"family {self.name!r} has no denoiser for problem {problem.name!r}")

    def scored_as(self, problem: Problem) -> str:
        """The problem's own family whose exact samples are of the form that `of_problem` gives: tokens or reals."""
        return self.name if self.name in problem.families else problem.families[0]

    def tiny(self, cls: type[Sampler[Any]], exact: bool = False) -> Denoiser:
        """A small denoiser that a sampler of this family can run on with its default options, for the kit.

        It must be deterministic, and its answer for a row must not depend, in any bit, on the rows beside it.

        Args:
            exact: the exact denoiser of a distribution that can be enumerated or integrated, not any network.
        """
        raise NotImplementedError(f"family {self.name!r} has no small model for the kit")

    def __repr__(self) -> str:
        return f"<family {getattr(self, 'name', '?')}: {self.summary}>"


def family_of(name: str) -> Family:
    """The family called `name`.

    Raises:
        UnknownNameError: nobody registered it.
        PluginError: the package that registered it is broken.
    """
    from . import registry

    return registry.find("families", name)


def has_denoiser(name: str, problem: Problem) -> bool:
    """Whether the family called `name` has a denoiser for a problem.

    Raises:
        UnknownNameError, PluginError: as of `family_of`, or it does not say.
    """
    family = family_of(name)
    if name in BUILT_IN:
        return family.supports(problem)
    try:
        return bool(guarded(family.supports, problem))
    except PluginError as error:
        raise PluginError(f"family {name!r} is broken: supports(problem {problem.name!r}) raises {error}") from error


def family_names() -> tuple[str, ...]:
    """The names of all families, those of the zoo first. Nothing is imported."""
    from . import registry

    return (*BUILT_IN, *(name for name in registry.names_of("families", imports=False) if name not in BUILT_IN))
