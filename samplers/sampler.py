"""Sampler and State: what an author of a sampler writes, and what a sampler knows while it runs.

A sampler is a frozen dataclass. Its fields are its options; its class attributes are facts about it; `init` makes the
first state and `step` the next one. All the state there is lives in the State, so two interleaved runs never meet.

    @dataclass(frozen=True)
    class Greedy(Sampler[TokenState]):
        '''Smith et al. 2026, algorithm 1: ...'''
        name, family, cite = "greedy", "masked", "arXiv 2601.00000"
        summary = "commit the single most confident position per step"

        def step(self, predict: Predict, state: TokenState) -> TokenState:
            prediction = predict(state, want="confidence")
            return state.commit_best(prediction.confidence, prediction.token, k=1)
"""

from __future__ import annotations

import dataclasses
import functools
import math
import numbers
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from . import registry
from .errors import OptionError, SamplersError, did_you_mean

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Conformance", "Facts", "Option", "Sampler", "State", "first_state", "option"]

S = TypeVar("S", bound="State")
_OPTIONS: dict[type, tuple[Option, ...]] = {}  # by class


def option(
    default: Any,
    help: str = "",
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: tuple[Any, ...] | None = None,
    check: Callable[[Any], Any] | None = None,
    kind: str | None = None,
) -> Any:
    """A field of a sampler: its default, its bounds, and a line of help.

    Args:
        check: called with the value; raises OptionError (or ValueError) saying what would be right.
        kind: what the value names, if it is the name of a thing that plug-ins can register (samplers.kinds.KINDS), such as
            "grids": beside the choices, their names are accepted as well, and results say where it came from.
    """
    bounds = {"help": help, "ge": ge, "gt": gt, "le": le, "lt": lt, "choices": choices, "check": check, "kind": kind}
    return dataclasses.field(default=default, metadata={k: v for k, v in bounds.items() if v is not None})


@dataclass(frozen=True)
class Option:
    """An option of a sampler, as `samplers show` prints it."""

    name: str
    type: Any
    default: Any
    help: str
    metadata: Mapping[str, Any]

    @property
    def type_name(self) -> str:
        return self.type.__name__ if isinstance(self.type, type) else str(self.type)

    @property
    def bounds(self) -> str:
        """Such as '>= 0, < 1' or 'one of a, b'; empty where anything of the type will do."""
        signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
        parts = [f"{sign} {self.metadata[key]:g}" for key, sign in signs.items() if key in self.metadata]
        if "choices" in self.metadata:
            parts.append("one of " + ", ".join(repr(c) for c in self.choices))
        return ", ".join(parts)

    @property
    def choices(self) -> tuple[Any, ...]:
        """The values that there are to choose from; () if it has bounds or a rule in their place."""
        given, kind = self.metadata.get("choices", ()), self.metadata.get("kind")
        if not given or kind is None:
            return given
        return (*given, *(name for name in registry.names_of(kind) if name not in given))

    def parse(self, text: str) -> Any:
        """The value that `text`, from a command line, stands for."""
        kinds = _kinds(self.type)
        if type(None) in kinds and text.lower() in ("none", ""):
            return None
        if bool in kinds and text.lower() in ("true", "yes", "1", "false", "no", "0"):
            return text.lower() in ("true", "yes", "1")
        for kind in (int, float):
            if kind in kinds:
                try:
                    return kind(text)
                except ValueError:
                    continue
        return text

    def _is_registered(self, value: Any) -> bool:
        """Whether a plug-in has a thing of this name, for options that name one."""
        kind = self.metadata.get("kind")
        return kind is not None and registry.has(kind, value)

    def validated(self, value: Any, owner: str) -> Any:
        """`value` as a Python number, a whole one made a float if the option is a float; OptionError if it does not fit."""
        kinds = _kinds(self.type)
        if isinstance(value, numbers.Real) and not isinstance(
            value, bool
        ):  # numpy's numbers are Integral or Real as well
            if int in kinds and isinstance(value, numbers.Integral):
                value = int(value)
            elif float in kinds:
                value = float(value)
        wrong_bool = isinstance(value, bool) and bool not in kinds
        if kinds and (wrong_bool or not isinstance(value, kinds)):
            raise OptionError(f"option {self.name!r} of {owner} must be {self.type_name}, not {_shown(value)}")
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise OptionError(f"option {self.name!r} of {owner} is {_shown(value)}; it must fit into 64 bits")
        if isinstance(value, float) and math.isnan(value):
            raise OptionError(f"option {self.name!r} of {owner} is NaN")
        if value is not None:
            tests = {"ge": lambda b: value >= b, "gt": lambda b: value > b, "le": lambda b: value <= b}
            tests |= {"lt": lambda b: value < b, "choices": lambda b: value in b or self._is_registered(value)}
            if any(key in self.metadata and not test(self.metadata[key]) for key, test in tests.items()):
                hint = did_you_mean(str(value), map(str, self.choices))
                raise OptionError(f"option {self.name!r} of {owner} is {_shown(value)}; it must be {self.bounds}{hint}")
            if check := self.metadata.get("check"):
                try:
                    check(value)
                except ValueError as error:
                    raise OptionError(f"option {self.name!r} of {owner} is {_shown(value)}: {error}") from error
        return value


def _shown(value: Any) -> str:
    from .checks import shown  # it imports torch, for which `samplers list` does not wait

    return shown(value)


@functools.cache
def _kinds(hint: Any) -> tuple[type, ...]:
    """The plain types in a field's annotation; () where there is something that isinstance cannot test."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds = tuple(typing.get_origin(p) or p for p in parts)
    return kinds if all(isinstance(k, type) for k in kinds) else ()


BIASES = ("exact", "asymptotic", "biased")
NEEDS = ("masks", "attends")


@dataclass(frozen=True)
class Facts:
    """What is known of a sampler before it runs. The driver and the benchmark read it; the tests hold the sampler to it.

    Attributes:
        bias: the distribution of the samples against the model's, when one position is committed per step.
            "exact": equal to it, since the choice of position does not depend on the drawn token. "asymptotic": equal
            to it in the limit of many steps. "biased": different, by design. None: it is not known, or has no meaning.
            Of a continuous sampler only "biased" says something: that many steps do not lead to the model's distribution.
        static_plan: True if the rows and the number of positions that each step asks about do not depend on the
            model's answers. The driver then works them out in a dry run beside the run, without a device sync.
        revises: True if a visible token may be masked again or changed (always so under uniform noise), and the model
            is asked about visible positions.
        whole_blocks: True if a step needs all positions of a block, as if each appears at a time of its own, so that
            a step may commit any of them: such a sampler has no meaning under a window that moves (samplers.windows). Nor has
            one that `revises`, which need not say so.
        sequential: True if decided tokens are appended to a sequence, and the model is asked through that sequence
            (samplers.feeds.sequence). The model must then be causal, have a cache, and predict the next token.
        stores_logits: True if the sampler asks for the logits themselves (predict.logits). A model that exposes its head
            then stores them as well.
        copies: True if the sampler runs several copies of each row (predict.copies), all of which count in row_evals.
        stochastic: True if a continuous sampler draws noise in its steps.
        posterior: True if a sampler of uniform noise lets the distribution of the tokens after a step be guided, by
            predict.steered.
        curve: True if a masked sampler plans by the denoiser's entropy_curve, which it then finds in canvas.curve.
        moments: how many moments of x_0 a continuous sampler asks for (predict.moments): 1 is the mean, which every model gives.
        grows: the most positions to fill that a row may come to have, if a step may put in more (TokenState.grown); 0: none. The
            driver refuses what a canvas of changing length does not go with.
        time_per_position: True if the sampler tells the model a noise level for each position that it must take note of; the
            driver then refuses a model that takes one time per row.
        sweep: (option, values), for a sampler whose NFE is set by an option and not by `steps`. A benchmark uses them.
        needs: what a token denoiser must be able to do beside the usual, by the names that TokenDenoiser has for it: "masks" of
            a sampler that calls predict.seen, "attends" of one that calls predict.attention.
    """

    bias: str | None = None
    static_plan: bool = False
    revises: bool = False
    whole_blocks: bool = False
    sequential: bool = False
    stores_logits: bool = False
    copies: bool = False
    stochastic: bool = False
    posterior: bool = False
    curve: bool = False
    moments: int = 1
    grows: int = 0
    time_per_position: bool = False
    sweep: tuple[str, tuple[Any, ...]] | None = None
    needs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if unknown := set(self.needs) - set(NEEDS) if isinstance(self.needs, tuple) else {str(self.needs)}:
            raise OptionError(
                f"Facts(needs={self.needs!r}): {', '.join(sorted(unknown))} is nothing that can be needed; a tuple of "
                f"{', '.join(map(repr, NEEDS))} is"
            )
        if self.needs and (self.static_plan or self.sequential):
            raise OptionError(
                "Facts: needs goes neither with static_plan, whose dry run has no model, nor with sequential"
            )
        if self.bias is not None and self.bias not in BIASES:
            raise OptionError(f"Facts(bias={self.bias!r}): {', '.join(map(repr, BIASES))} or None is needed")


@dataclass(frozen=True)
class Conformance:
    """Settings under which the conformance kit (samplers.testing) tests a sampler. Most samplers need none.

    Attributes:
        small: options under which the sampler accepts canvases as small and odd as the kit's.
        one_at_a_time: arguments of sample() under which a step commits one position, beside steps = positions. For a
            sampler whose bias is "asymptotic": enough steps for the kit's problem.
        exact: options under which tokens are drawn from the model's own distribution, for a sampler that otherwise adds
            to its logits; for a continuous sampler that is told of the data, those that fit data of a single point.
        order: options under which the declared order is what one measures: the end of the grid is exact, and no step is
            of lower order. For continuous samplers.
        uneven: False for a solver whose declared order needs steps of slowly changing length, such as one with the
            coefficients of equal steps.
        limit: options under which the samples of many steps have the model's distribution, for a continuous sampler that
            spends a few steps on a part of its run however many there are.
        redraws: draw numbers that a step uses more than once at one position on purpose, such as a token that is drawn
            again from another distribution with the same random number. Only one of those draws may be kept. Any other
            second use within a step is an error.
    """

    small: Mapping[str, Any] = field(default_factory=dict)
    one_at_a_time: Mapping[str, Any] = field(default_factory=dict)
    exact: Mapping[str, Any] = field(default_factory=dict)
    order: Mapping[str, Any] = field(default_factory=dict)
    uneven: bool = True
    limit: Mapping[str, Any] = field(default_factory=dict)
    redraws: tuple[int, ...] = ()


# Class attributes that say something of a sampler. Every other public one must be an option, a method, or a constant
# in capitals: a misspelt fact would otherwise be ignored in silence.
CLASS_FACTS = ("name", "family", "cite", "summary", "default_temperature", "facts", "conformance", "order")


@dataclass(frozen=True)
class Sampler(Generic[S]):
    """Base of all samplers. Subclass it as a frozen dataclass, `class Mine(Sampler[MyState])`.

    Class attributes:
        name: lower_snake, the name that the field uses.
        family: masked, uniform or gaussian; or the name of a family of another package.
        cite: the paper.
        summary: one line.
        default_temperature: what sample() uses if no temperature is given (token families).
        facts: see Facts.
        conformance: see Conformance.
        order: the convergence order of a continuous solver, as a class attribute or as an option (dpm_solver).
    """

    name: ClassVar[str]
    family: ClassVar[str]
    cite: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    default_temperature: ClassVar[float] = 1.0
    facts: ClassVar[Facts] = Facts()
    conformance: ClassVar[Conformance] = Conformance()

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        for key, kind in (("facts", Facts), ("conformance", Conformance)):
            if not isinstance(getattr(cls, key), kind):
                raise TypeError(f"{cls.__qualname__}.{key} must be samplers.authoring.{kind.__name__}(...)")
        options = {f.name for base in cls.__mro__ for f in getattr(base, "__dataclass_fields__", {}).values()}
        options |= set(vars(cls).get("__annotations__", {})) | set(CLASS_FACTS)
        for key, value in vars(cls).items():
            plain = not (callable(value) or hasattr(value, "__get__") or isinstance(value, dataclasses.Field))
            if plain and key not in options and not key.startswith("_") and not key.isupper():
                raise TypeError(
                    f"{cls.__qualname__}.{key} is neither an option (annotate it) nor a known class attribute"
                    f"{did_you_mean(key, (*CLASS_FACTS, *Facts.__dataclass_fields__, *Conformance.__dataclass_fields__))} "
                    f"Known: {', '.join(CLASS_FACTS)}; what is known of a sampler goes into facts = Facts(...), settings of the "
                    "kit into conformance = Conformance(...), and your own constants are written in capitals"
                )

    def __post_init__(self) -> None:
        for opt in self.options():
            object.__setattr__(self, opt.name, opt.validated(getattr(self, opt.name), f"sampler {self.name!r}"))

    @property
    def effective_facts(self) -> Facts:
        """The facts under the options of this sampler. Override it if an option changes one of them."""
        return self.facts

    @property
    def extra_steps(self) -> int:
        """The most steps that a block may take on top of its share of `steps`. Override it if yours takes any."""
        return 0

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        """The options, in order."""
        if cls not in _OPTIONS:  # kept: reading type hints takes as long as several steps of a small run
            hints = typing.get_type_hints(cls)
            _OPTIONS[cls] = tuple(
                Option(f.name, hints.get(f.name, object), f.default, f.metadata.get("help", ""), f.metadata)
                for f in dataclasses.fields(cls)
            )
        return _OPTIONS[cls]

    @classmethod
    def make(cls, **options: Any) -> Sampler[S]:
        """The sampler with these options.

        Raises:
            OptionError: an unknown option, with the nearest names of options and of arguments of sample(); or a value
                out of bounds.
        """
        from .arguments import wrong_argument

        known = [o.name for o in cls.options()]
        for key in options:
            if key not in known:
                raise wrong_argument(f"sampler {cls.name!r}", key, known)
        return cls(**options)

    def values(self) -> dict[str, Any]:
        """The options and their values, as results record them."""
        return {o.name: getattr(self, o.name) for o in self.options()}

    def init(self, canvas: Any) -> S:
        """The state before the first step. Override it to carry more: `return MyState.begin(canvas, mine=...)`.

        By default it is a TokenState; a DraftState if the sampler revises, and under uniform noise.

        Args:
            canvas: what the run starts from, and what never changes in it: a Layout, or a NoiseCanvas for the gaussian
                family. (Any, since the families differ; annotate yours.)
        """
        return canvas.state_class(self.effective_facts.revises).begin(canvas)

    def step(self, predict: Any, state: S) -> S | tuple[S, Mapping[str, Tensor]]:
        """The state one step on. It asks the model through `predict`, and never reads the device in order to decide.

        It may also return a dictionary of (B, ...) tensors, the same names in every step: `return state, {"name": value}`.
        `sample(info=True)` stacks them over the steps, as Sample.info["name"], (steps, B, ...).

        Args:
            predict: a Predict; a SequencePredictor if facts.sequential; a GaussianPredict for the gaussian family.
        """
        raise NotImplementedError(f"sampler {self.name!r} does not say how to step")

    def expected_nfe(self, length: int, steps: int) -> float | None:
        """Mean NFE of a row of `length` masked positions in one block, exactly; None if it depends on the model."""
        return None


class State:
    """What a run is, between two steps. Immutable; subclasses are frozen dataclasses with at least `x` and `finished`."""

    x: Tensor

    @property
    def finished(self) -> bool:
        """True when nothing is left to do."""
        raise NotImplementedError

    def outcome(self) -> dict[str, Any]:
        """What a run that ends here returns: `x`, and of tokens `lengths` and `fill` as well (see Sample)."""
        return {"x": self.x, "lengths": None, "fill": None}


def first_state(sampler: Sampler[S], canvas: Any) -> S:
    """The state that a sampler begins with.

    Raises:
        SamplersError: its init does not return a state.
    """
    try:
        state = sampler.init(canvas)
    except StopIteration as error:
        raise SamplersError(
            f"sampler {sampler.name!r} raised StopIteration in init(), which must return a state"
        ) from error
    if not isinstance(state, State):
        raise SamplersError(
            f"init of sampler {sampler.name!r} returned {type(state).__name__}; it must return a state: "
            "return MyState.begin(canvas, ...)"
        )
    return state
