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
        problems: names of exact problems; or of the user's models: module:attribute of a Denoiser, hf:NAME, or a model in
            the box.
        samplers: patterns such as 'masked/*', 'dpmpp*' or a full name.
        family: the only kind of noise to measure; None: every kind that the problem has a denoiser for and a pattern matches.
        nfe: budgets of forward passes, given to samplers as `steps`.
        seeds: how many seeds there are, counted from 0.
        rows: samples per cell. batch: how many of them are drawn at a time; it sets the memory, and seconds depend on it.
        temperature: sampling temperature of tokens. None: 1 on a problem, since its exact distribution is what samples are
            compared with; the sampler's own on a user's model.
        block_length: positions per block, for token samplers.
        gen_length: positions to fill, for token models that take any length.
        prompts: module:attribute of lists of token ids, one per row, for a user's model; there are at most as many rows.
        metric: what plots use. On a problem: one of its metrics, or a registered one, which is then measured as well; None: its
            primary one. On a user's model: module:function, which is given the Sample, or a registered one; None: nothing is
            scored.
        higher: whether more of a user's metric is better.
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


# What `make bench` runs: about two minutes on two cores, with one thread (`run(threads=1)`). Batches this small gain little
# from a second thread, and become ten times slower if another program wants its core: threads wait for each other.
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
    """What 'name=value' and 'sampler.name=value' say, for each sampler.

    Returns:
        {sampler: {option: value}}; a sampler that nothing is said of is left out.

    Raises:
        OptionError: a text of another form, or an option that none of the samplers has.
    """
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
