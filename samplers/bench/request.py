"""What a sweep is asked to measure: the request, its validation, and the options in its text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .. import registry
from ..errors import OptionError, did_you_mean
from .user_model import is_user_model

__all__ = ["DEMO", "NFE", "SHOWN", "Request", "parse_options"]

NFE = (2, 4, 8, 16)  # the budgets if none are given


@dataclass(frozen=True)
class Request:
    """What to measure.

    Attributes:
        problems: names of exact problems; or the user's own model, as module:attribute of a Denoiser.
        samplers: patterns such as 'masked/*', 'dpmpp*' or a full name.
        family: only this kind of noise; None: all for which the problem has a denoiser and the patterns a sampler.
        nfe: budgets, given to samplers as `steps`.
        seeds: how many; they are 0, 1, ...
        rows: samples a cell. batch: of these at a time (memory, and what seconds are measured at).
        temperature: of token draws; None: 1 on a problem, which asks for the law itself, and that is what is measured;
            on one's own model the sampler's own.
        block_length: of token samplers.
        gen_length: positions to fill, of token models of any length.
        prompts: module:attribute of lists of token ids, one a row, for one's own model; rows are at most as many.
        metric: what plots use: of a problem one of its metrics, None: its primary one; of one's own model module:function of
            a Sample, None: nothing is scored.
        higher: whether more of one's own metric is better.
        options: 'name=value' for all samplers that have the option, 'sampler.name=value' for one.
        caches: KV caches to compare, None for none; a sampler with one is called 'sampler + cache'.
    """

    problems: tuple[str, ...]
    samplers: tuple[str, ...] = ("*",)
    family: str | None = None
    nfe: tuple[int, ...] = NFE
    seeds: int = 3
    rows: int = 512
    batch: int = 512
    temperature: float | None = None
    block_length: int | None = None
    options: tuple[str, ...] = ()
    gen_length: int | None = None
    prompts: str | None = None
    metric: str | None = None
    higher: bool = False
    caches: tuple[str | None, ...] = (None,)

    def __post_init__(self) -> None:
        for name in ("seeds", "rows", "batch"):
            if getattr(self, name) < 1:
                raise OptionError(f"--{name} must be 1 or more, not {getattr(self, name)}")
        if not self.nfe or min(self.nfe) < 1:
            raise OptionError("--nfe needs budgets of 1 or more, such as 2,4,8")
        if not all(map(is_user_model, self.problems)) and (self.prompts or self.gen_length or self.higher):
            raise OptionError("--prompts, --gen-length and --higher go with --denoiser; a problem says these itself")


# What `make bench` runs: about two minutes on two cores, on one thread (`run(threads=1)`). Batches this small gain
# little from a second one, and lose tenfold when another program wants that core: threads wait for each other.
SHOWN = (  # one of each kind; bench/zoo.py runs them all
    *("ancestral", "beta_energy", "entropy_bound", "first_hitting", "llada2", "low_confidence", "maskgit", "radd"),
    *("random_order", "remdm", "threshold"),
)
DEMO = (
    Request(("sudoku4",), SHOWN, nfe=(1, 2, 4, 8, 16), seeds=3, rows=1000, batch=1000),
    Request(("digits",), SHOWN, nfe=(4, 8, 16, 32, 64), seeds=1, rows=192, batch=192),
    Request(("digits",), ("gaussian/*",), nfe=(5, 10, 20, 40), seeds=3, rows=512, batch=512),
    Request(("mixture",), ("gaussian/*",), nfe=(5, 10, 20, 40), seeds=3, rows=2000, batch=2000),
)


def parse_options(texts: Sequence[str], samplers: Sequence[str]) -> dict[str, dict[str, Any]]:
    """{sampler: {option: value}} of 'name=value' and 'sampler.name=value'."""
    given: dict[str, dict[str, Any]] = {}
    known = {name: {o.name: o for o in registry.load(name).options()} for name in samplers}
    for text in texts:
        left, sign, value = text.partition("=")
        who, _, option = left.strip().rpartition(".")
        if not sign or not option:
            raise OptionError(f"-o {text!r}: write name=value, or sampler.name=value")
        if who and who not in known:
            raise OptionError(f"-o {text!r}: sampler {who!r} is not in this sweep{did_you_mean(who, known)}")
        has = [n for n in ([who] if who else samplers) if option in known[n]]
        if not has:
            every = sorted({o for options in known.values() for o in options})
            raise OptionError(
                f"-o {text!r}: none of the samplers has an option {option!r}{did_you_mean(option, every)}"
            )
        for name in has:
            given.setdefault(name, {})[option] = known[name][option].parse(value.strip())
    return given
