"""Sampler and State: what an author of a sampler writes, and what a sampler knows while it runs.

A sampler is a frozen dataclass. Its fields are its options; its class attributes are facts about it; `init` makes the
first state and `step` the next one. All the state there is lives in the State, so two interleaved runs never meet.

    @dataclass(frozen=True)
    class Greedy(Sampler):
        '''Smith et al. 2026, algorithm 1: ...'''
        name, family, cite = "greedy", "masked", "arXiv 2601.00000"
        summary = "commit the single most confident position a step"

        def step(self, believe, state):
            belief = believe(state, want="confidence")
            return state.commit_best(belief.confidence, belief.token, k=1)
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from .errors import OptionError, did_you_mean, unknown_option

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Option", "Sampler", "State", "option"]


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
) -> Any:
    """A field of a sampler: its default, its bounds, and a line of help.

    Args:
        check: called with the value; raises OptionError (or ValueError) saying what would be right.
    """
    bounds = {"help": help, "ge": ge, "gt": gt, "le": le, "lt": lt, "choices": choices, "check": check}
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
            parts.append("one of " + ", ".join(repr(c) for c in self.metadata["choices"]))
        return ", ".join(parts)

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

    def validated(self, value: Any, owner: str) -> Any:
        """`value`, an int made a float where the option is one; OptionError if it does not fit."""
        kinds = _kinds(self.type)
        if float in kinds and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        wrong_bool = isinstance(value, bool) and bool not in kinds
        if kinds and (wrong_bool or not isinstance(value, kinds)):
            raise OptionError(f"option {self.name!r} of {owner} must be {self.type_name}, not {value!r}")
        if isinstance(value, float) and math.isnan(value):
            raise OptionError(f"option {self.name!r} of {owner} is NaN")
        if value is not None:
            tests = {"ge": lambda b: value >= b, "gt": lambda b: value > b, "le": lambda b: value <= b}
            tests |= {"lt": lambda b: value < b, "choices": lambda b: value in b}
            if any(key in self.metadata and not test(self.metadata[key]) for key, test in tests.items()):
                hint = did_you_mean(str(value), map(str, self.metadata.get("choices", ())))
                raise OptionError(f"option {self.name!r} of {owner} is {value!r}; it must be {self.bounds}{hint}")
            if check := self.metadata.get("check"):
                try:
                    check(value)
                except ValueError as error:
                    raise OptionError(f"option {self.name!r} of {owner} is {value!r}: {error}") from error
        return value


def _kinds(hint: Any) -> tuple[type, ...]:
    """The plain types in a field's annotation; () where there is something that isinstance cannot test."""
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)
    kinds = tuple(typing.get_origin(p) or p for p in parts)
    return kinds if all(isinstance(k, type) for k in kinds) else ()


# Arguments of sample(): a user who gives one to create() meant the other place.
DRIVER_ARGUMENTS = (
    "prompt",
    "gen_length",
    "batch",
    "seed",
    "first_row",
    "steps",
    "block_length",
    "cache",
    "cfg_scale",
    "cfg_interval",
    "temperature",
    "top_k",
    "top_p",
    "forbid",
    "demote",
    "stop",
    "constrain",
    "trace",
    "progress",
)


@dataclass(frozen=True)
class Sampler:
    """Base of all samplers; subclass it as a frozen dataclass.

    Class attributes:
        name: lower_snake, the field's name for it.
        family: masked, uniform or gaussian.
        cite: the paper.
        summary: one line.
        default_temperature: what sample() uses where no temperature is given (token families).
        exact_order: True where the choice of position ignores the drawn token, so that one position at a time gives the
            model's law exactly; False where it does not (a biased law, by design); None where it does not apply. True of a
            sampler that moves all positions a little in each step (uniform noise) says: exact as steps go to infinity.
        counts_known: True where it does not depend on the model's answers which rows are asked about how many positions in
            which step. The driver then works them out beside the run, and never waits for the device.
        revises: True where a visible token may be masked again or changed (always, under uniform noise), and the model is
            asked about visible ones.
        sequential: True where what is decided is appended to a sequence, and the model is asked through it
            (samplers.decoding): it must look back only, have a cache and predict the next token, too.
        small_options: options under which it takes canvases as small and odd as the kit's.
        one_at_a_time: arguments of sample() under which a step commits one position, besides steps = positions; of a sampler
            that is exact in the limit, enough steps for the kit's problem.
        law_options: options under which a token is drawn from the model's own law; of samplers that else add to its logits.
        stores_logits: True where it asks for the logits themselves (believe.logits): a model with a head stores them, too.
        order: convergence order in the step, of continuous samplers (an attribute, or an option as in dpm_solver).
        order_options: options under which that order is what one measures: exact end, no lower-order steps.
        sweep: (option, values) for a sampler whose NFE is set by an option and not by `steps`; a benchmark walks them.
    """

    name: ClassVar[str]
    family: ClassVar[str]
    cite: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    default_temperature: ClassVar[float] = 1.0
    exact_order: ClassVar[bool | None] = None
    counts_known: ClassVar[bool] = False
    revises: ClassVar[bool] = False
    sequential: ClassVar[bool] = False
    small_options: ClassVar[Mapping[str, Any]] = {}
    one_at_a_time: ClassVar[Mapping[str, Any]] = {}
    law_options: ClassVar[Mapping[str, Any]] = {}
    stores_logits: ClassVar[bool] = False
    order_options: ClassVar[Mapping[str, Any]] = {}
    sweep: ClassVar[tuple[str, tuple[Any, ...]] | None] = None

    def __post_init__(self) -> None:
        for opt in self.options():
            object.__setattr__(self, opt.name, opt.validated(getattr(self, opt.name), f"sampler {self.name!r}"))

    @classmethod
    def options(cls) -> tuple[Option, ...]:
        """The options, in order."""
        hints = typing.get_type_hints(cls)
        return tuple(
            Option(f.name, hints.get(f.name, object), f.default, f.metadata.get("help", ""), f.metadata)
            for f in dataclasses.fields(cls)
        )

    @classmethod
    def make(cls, **options: Any) -> Sampler:
        """The sampler with these options; OptionError naming an unknown one and those that exist."""
        known = [o.name for o in cls.options()]
        for key in options:
            if key in known:
                continue
            if key in DRIVER_ARGUMENTS:
                raise OptionError(
                    f"{key!r} is not an option of sampler {cls.name!r} but an argument of samplers.sample(): "
                    f"sample(denoiser, {cls.name!r}, {key}=...)"
                )
            raise unknown_option(f"sampler {cls.name!r}", key, known)
        return cls(**options)

    def values(self) -> dict[str, Any]:
        """The options and their values, as results record them."""
        return {o.name: getattr(self, o.name) for o in self.options()}

    def init(self, canvas: Any) -> State:
        """The state before the first step. Override to carry more than the canvas's own start.

        canvas: a Canvas (token families) or a NoiseCanvas (gaussian), prepared by the driver.
        """
        return canvas.start()

    def step(self, believe: Any, state: Any) -> State:
        """The state one step on. Calls `believe` for what the model thinks; never reads the device to decide."""
        raise NotImplementedError(f"sampler {self.name!r} does not say how to step")

    def expected_nfe(self, length: int, steps: int) -> float | None:
        """Mean forwards for a row of `length` masked positions in one block, exact; None where it depends on the model."""
        return None


class State:
    """What a run is, between two steps. Immutable; subclasses are frozen dataclasses with at least `x` and `finished`."""

    x: Tensor

    @property
    def finished(self) -> bool:
        """True when nothing is left to do."""
        raise NotImplementedError
