"""The arguments of sample(), read in one place: each is checked, converted, and named in the error if it is wrong.

A Family takes what sample() was called with, as a Given, and makes a run of it; those of tokens use `read_tokens`. The list of
arguments is the signature of sample() itself. An argument that a family does not read must have its default value: so
nothing here lists which argument is for which family.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from . import registry
from .canvas import Canvas
from .checks import (
    check_memory,
    check_room,
    flag,
    guidance,
    hook,
    integer,
    integers,
    number,
    optional_integer,
    pads,
    row_numbers,
    seeds_of,
    shown,
    token_rows,
)
from .constraints.language import Language
from .denoiser import BlockDenoiser, Denoiser, TokenDenoiser
from .errors import OptionError, did_you_mean
from .feeds.cached import Ordered, Scheme, cache_scheme
from .feeds.encoded import block_arguments
from .feeds.plain import block, check_needs
from .feeds.sequence import check_sequential
from .guidance import Guide
from .ops._check import COLDEST, HOTTEST
from .predictor import SamplingConfig
from .random import Rng
from .sampler import Sampler
from .text import StopText, prompt_rows
from .windows import Window, read_window

if TYPE_CHECKING:
    from .driver import Constraint
    from .state import TokenState

__all__ = [
    "Given",
    "TokenArguments",
    "driver_arguments",
    "parse_stop",
    "read_stop",
    "read_tokens",
    "wrong_argument",
]


# What other libraries call some of our arguments.
ALIASES = {
    "batch_size": "batch",
    "block_len": "block_length",
    "block_size": "block_length",
    "cfg": "cfg_scale",
    "denoise": "strength",
    "denoising_strength": "strength",
    "eos_token_id": "stop",
    "guidance_rescale": "cfg_rescale",
    "guidance_scale": "cfg_scale",
    "init_image": "start",
    "input_ids": "prompt",
    "max_length": "gen_length",
    "max_new_tokens": "gen_length",
    "n_steps": "steps",
    "num_inference_steps": "steps",
    "num_return_sequences": "batch",
    "num_steps": "steps",
    "prompt_ids": "prompt",
    "stop_token_ids": "stop",
    "stop_tokens": "stop",
}
# What other libraries have and we do without, and how.
INSTEAD = {
    "attention_mask": "give prompts of several lengths as a list of rows without padding, prompt=[[5, 6, 7], [8]]: a model "
    "never sees beyond a row's end. To fill positions in the middle use samplers.Canvas.infill(denoiser, x, fill)",
    "do_sample": "temperature=0 takes the best token, and a temperature above 0 draws",
    "scheduler": "a solver is the second argument, and its times are its option grid=: sample(denoiser, 'euler', grid='karras')",
    "generator": "give seed=, an integer: a draw is a function of (seed, row, position, step)",
    "pad_token_id": "give prompts of several lengths as a list of rows without padding, prompt=[[5, 6, 7], [8]]",
    "position_ids": "positions are counted from each row's first token; prompts need no padding",
}


@functools.cache
def _parameters() -> Mapping[str, inspect.Parameter]:
    from .driver import sample

    every = inspect.signature(sample).parameters
    return {name: p for name, p in every.items() if p.kind is p.KEYWORD_ONLY}


def driver_arguments() -> tuple[str, ...]:
    """The keyword arguments of sample() that are not options of the sampler, from its signature."""
    return tuple(_parameters())


def wrong_argument(owner: str, key: str, options: Iterable[str]) -> OptionError:
    """The error for an argument that neither sample() nor `owner`, such as "sampler 'radd'", has."""
    options, arguments = list(options), driver_arguments()
    if key in arguments:
        return OptionError(
            f"{key!r} is not an option of {owner} but an argument of samplers.sample(): sample(denoiser, ..., {key}=...)"
        )
    if key in INSTEAD:
        return OptionError(f"samplers.sample() takes no {key!r}: {INSTEAD[key]}")
    close = difflib.get_close_matches(key, [*options, *arguments, *ALIASES], n=1, cutoff=0.8)
    alias = key if key in ALIASES else close[0] if close and close[0] in ALIASES else None
    if alias is not None:
        return OptionError(f"unknown argument {key!r}: samplers.sample() calls it {ALIASES[alias]!r}")
    have = f"Its options: {', '.join(options)}" if options else "It has none"
    return OptionError(
        f"{key!r} is neither an argument of samplers.sample() nor an option of {owner}"
        f"{did_you_mean(key, [*options, *arguments])} {have}"
    )


# ---------------------------------------------------------------------------------------------- what is read


@dataclass(frozen=True, eq=False)
class TokenArguments:
    """The arguments of a run over tokens, checked and converted.

    Attributes:
        canvas: what is given and what is to be filled.
        rng: the randomness of its rows.
        steps: as given; None: one per position.
        block_length: as given, or the model's own; None: one block.
        align: whether blocks are counted from position 0.
        window: how far rows are given to the model at least, a function of the state; None: to their ends.
        moving: the window that moves in place of blocks, or None.
        stop: phrases, (m,) int64 each.
        stop_rule: when one of them ends a row.
        stop_text: strings at which rows end as well, or None.
        config: how answers are read.
        scheme: of the KV cache; None: no cache.
        pad: whether rows of different lengths share forward passes.
        constrain: the hook, or None.
        language: what the text of every row belongs to, or None.
        guide: what guides the tokens beside cfg_scale, or None.
        settings: what Sample.settings records: numbers, strings and lists, so that json can write it.
    """

    canvas: Canvas
    rng: Rng
    steps: int | None
    block_length: int | None
    align: bool
    window: Callable[[TokenState], Tensor] | None
    moving: Window | None
    stop: tuple[Tensor, ...]
    stop_rule: str
    stop_text: StopText | None
    config: SamplingConfig
    scheme: Scheme | None
    pad: bool
    constrain: Callable[[TokenState], Constraint | None] | None
    language: Language | None
    guide: Guide | None
    settings: dict[str, Any]


class Given:
    """What sample() was called with. It notes what has been read: the rest must have its default value."""

    def __init__(self, arguments: Mapping[str, Any]):
        self._arguments = dict(arguments)
        self._unread = list(driver_arguments())

    def __call__(self, name: str) -> Any:
        """The argument called `name`, as it was given."""
        if name in self._unread:
            self._unread.remove(name)
        return self._arguments[name]

    def replace(self, **values: Any) -> None:
        """Put other values in the place of arguments."""
        self._arguments |= values

    def rows(self, denoiser: Denoiser, row_bytes: int = 0) -> tuple[Rng, dict[str, Any]]:
        """The randomness of the rows, by batch=, seed= and first_row=, and these three as settings.

        Args:
            row_bytes: what a row needs of the device's memory at least.

        Raises:
            OptionError: one of the three is wrong, or so many rows cannot fit into memory.
        """
        batch, seed = integer("batch", self("batch")), seeds_of(self("seed"))
        first_row = row_numbers(self("first_row"))
        check_memory(f"batch={batch}", batch * row_bytes, denoiser.device)
        return Rng.of(seed, batch, first_row, denoiser.device), {"batch": batch, "seed": seed, "first_row": first_row}

    def steps(self, default: int) -> int:
        """steps=, a number of 1 or more; `default` if it was not given."""
        steps = optional_integer("steps", self("steps"))
        return default if steps is None else steps

    def constrain(self) -> Callable[[Any], Any] | None:
        """The hook constrain=, or None."""
        value = self("constrain")
        if isinstance(value, Language):
            raise OptionError(f"constrain={value!r} is for runs over tokens; a function of the state is needed here")
        return hook("constrain", value)

    def language(self) -> Language | None:
        """The language constrain=, which is then read; None if it is a hook or nothing."""
        value = self._arguments["constrain"]
        if isinstance(value, (str, list, tuple, Mapping)):
            raise OptionError(
                "constrain takes a language, such as samplers.constraints.Regex(r'\\d+', denoiser.tokenizer) or JsonSchema(...), "
                f"or a function of the state, not {shown(value)}; a language holds for every row"
            )
        return self("constrain") if isinstance(value, Language) else None

    def refuse_the_rest(self, sampler: Sampler[Any]) -> None:
        """OptionError for an argument that was given and not read: it is for another family."""
        for name in self._unread:
            if not _equal(self._arguments[name], _parameters()[name].default):
                raise OptionError(
                    f"{name} is not for samplers of the {sampler.family} family, of which {sampler.name!r} is: leave it out"
                )


def _equal(value: Any, default: Any) -> bool:
    try:
        return value is default or bool(value == default)
    except (RuntimeError, ValueError, TypeError):  # tensors and arrays of several elements have no truth value
        return False


def read_tokens(denoiser: TokenDenoiser, sampler: Sampler[Any], given: Given) -> TokenArguments:
    """The arguments of a run over tokens, checked and converted.

    Raises:
        OptionError: one of them is wrong.
    """
    if sampler.effective_facts.sequential:
        names = ("cache", "ragged", "cfg_scale", "steps", "constrain", "window")
        other_rule = given("stop_rule") != STOP_RULES[0]
        own = {name: given(name) for name in names} | {"stop_rule": other_rule}
        if isinstance(own["constrain"], Language):
            if sampler.effective_facts.bias != "exact" or sampler.effective_facts.stores_logits:
                raise OptionError(
                    f"constrain={own['constrain']!r} does not go with sampler {sampler.name!r}: it commits tokens that were not "
                    "drawn together, of several forward passes or by itself, and keeps them in its sequence for good; use a "
                    "sampler that decides each token by one forward pass, such as autoregressive, or one that is not sequential"
                )
            own["constrain"] = None
        check_sequential(denoiser, sampler, own)
    if sampler.effective_facts.needs:
        language = given("constrain") if isinstance(given("constrain"), Language) else None
        check_needs(denoiser, sampler, {"cache": given("cache"), "guide": given("guide"), "constrain": language})
    if sampler.effective_facts.time_per_position and not denoiser.time_per_position:
        raise OptionError(
            f"sampler {sampler.name!r} with these options needs a model that takes a noise level for each position "
            f"(time_per_position), and denoiser {denoiser.name!r} does not"
        )
    steps = optional_integer("steps", given("steps"))
    if steps is not None and getattr(sampler, "steps_per_block", None) is not None:
        raise OptionError(
            f"steps={steps} and steps_per_block={sampler.steps_per_block}: the second says how many steps a block takes, and "  # type: ignore[attr-defined]
            "so how many the run does; give one of the two"
        )
    scheme, pad = cache_scheme(given("cache"), denoiser), pads(given("ragged"), denoiser)
    language = given.language()
    constrain = given.constrain() if language is None else None
    window = _read_window(denoiser, scheme, given("window"))
    moving = window if isinstance(window, Window) else None
    if moving is not None:
        window = block if moving.cuts else None
        scheme = _under_window(denoiser, sampler, scheme, moving, given)
    elif scheme is not None and scheme.slides:
        raise OptionError(
            f"cache={str(scheme)!r} follows a window that slides: give window='sliding(32)', or take another scheme"
        )
    block_length, align = _read_blocks(denoiser, given, moving)
    (stop, stop_text), stop_rule = read_stop(given("stop"), denoiser), _read_stop_rule(denoiser, given("stop_rule"))
    canvas, gen_length = _read_canvas(denoiser, given)
    if grows := sampler.effective_facts.grows:
        _check_growth(denoiser, sampler, given, canvas, grows)
    config = _read_config(denoiser, sampler, given, len(canvas.x))
    guide = _read_guide(denoiser, sampler, given, config, scheme)
    if guide is not None:
        if given("ragged") == "pad":
            raise OptionError(
                f"ragged='pad' does not go with guide={guide}: what guides judges whole rows, so those of one forward pass have "
                "one length; leave ragged out"
            )
        pad = False
    if isinstance(denoiser, BlockDenoiser):
        steps, block_length = block_arguments(denoiser, canvas, config.cfg_scale, steps, block_length)
    if config.cfg_scale and given("prompt") is None:
        # A prompt that is given and empty is fine: a row of a batch is guided by nothing, and alone it is the same.
        raise OptionError(
            f"cfg_scale={config.cfg_scale:g} guides by a prompt, and none was given: give prompt=, or leave cfg_scale out"
        )
    batch, seed = len(canvas.x), seeds_of(given("seed"))
    first_row = row_numbers(given("first_row"))
    settings = {
        "gen_length": gen_length,
        "batch": batch,
        "seed": seed,
        "first_row": first_row,
        "steps": steps,
        "block_length": block_length,
        "align": align,
        "window": given("window") if moving is None else str(moving),
        "cache": None if scheme is None else str(scheme),
        "ragged": None if sampler.effective_facts.sequential else "pad" if pad else "groups",
        "stop": [*(phrase.tolist() for phrase in stop), *(() if stop_text is None else stop_text.strings)] or None,
        "stop_rule": stop_rule,
        **({} if guide is None else {"guide": str(guide)}),
    } | {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(config).items()}
    rng = Rng.of(seed, batch, first_row, denoiser.device)
    given.refuse_the_rest(sampler)
    return TokenArguments(
        canvas,
        rng,
        steps,
        block_length,
        align,
        window,
        moving,
        stop,
        stop_rule,
        stop_text,
        config,
        scheme,
        pad,
        constrain,
        language,
        guide,
        settings,
    )


def _check_growth(denoiser: TokenDenoiser, sampler: Sampler[Any], given: Given, canvas: Canvas, most: int) -> None:
    """OptionError if a run whose canvas may grow to `most` positions to fill per row has what it does not go with."""
    who = f"sampler {sampler.name!r} puts in positions during a run"
    kinds = {
        f"a canvas of exactly {denoiser.length} positions": denoiser.length is not None,
        "self-conditioning": denoiser.self_conditioned,
        "blocks of its own": isinstance(denoiser, BlockDenoiser),
    }
    for what, so in kinds.items():
        if so:
            raise OptionError(f"{who}, and denoiser {denoiser.name!r} has {what}")
    for name in ("cache", "window", "constrain"):
        if given(name) is not None and (name != "constrain" or isinstance(given(name), Language)):
            raise OptionError(f"{name}={given(name)!r}: {who}; leave {name} out")
    fill = canvas.fill.sum(1).tolist()
    longest = [length + max(most - n, 0) for length, n in zip(canvas.lengths, fill)]
    check_room("prompt and the longest canvas that the sampler may make", longest, denoiser)


def _read_blocks(denoiser: TokenDenoiser, given: Given, moving: Window | None = None) -> tuple[int | None, bool]:
    """Positions per block, None for one block; and whether blocks are counted from position 0."""
    if moving is not None:
        if given("block_length") is not None:
            raise OptionError(
                f"window={str(moving)!r} and block_length={shown(given('block_length'))}: such a window takes the place of "
                "blocks; give one of the two"
            )
        if moving.block_length is None:
            if given("align"):
                raise OptionError(f"align=True counts blocks from position 0, and window={str(moving)!r} has no blocks")
            return None, False
    own = denoiser.attention_block if denoiser.attention == "block_causal" else 1
    length, align = optional_integer("block_length", given("block_length")), given("align")
    length = own if length is None and own > 1 else length
    length = length if moving is None else moving.block_length
    align = own > 1 if align is None else flag("align", align)
    if align and length is None:
        raise OptionError(
            f"align=True counts blocks from position 0, and denoiser {denoiser.name!r} has no blocks of its own: "
            "give block_length=, or leave align out"
        )
    return length, align


def _read_window(denoiser: TokenDenoiser, scheme: Scheme | None, window: Any) -> Any:
    """A Window that moves; or how far rows are given to the model at least, a function of the state, None: to their ends."""
    if window is None:
        return None
    if not (isinstance(window, str) and registry.has("windows", window.partition("(")[0])):
        others = [name for name in registry.names_of("windows") if name not in registry.own_names("windows")]
        names = "".join(f', "{name}"' for name in others)
        raise OptionError(
            f'window must be "block", "sliding(W)", "wedlm(W)", "pipeline(W)"{names} or None (the whole canvas), not '
            f"{shown(window)}"
        )
    found = read_window(window)
    moves = isinstance(found, Window)
    if moves and not found.cuts:
        return found
    if scheme is not None and not moves:  # which schemes go with a window that moves is asked later
        raise OptionError(
            f"window={window!r} does not go with cache={str(scheme)!r}: a cache decides itself what the model is given"
            + (", and this one gives nothing after the block already" if scheme.name == "block" else "")
            + "; use one of the two"
        )
    if denoiser.length is not None:
        raise OptionError(
            f"window={window!r} gives the model a part of the canvas, and denoiser {denoiser.name!r} takes exactly "
            f"{denoiser.length} positions; use window=None"
        )
    if denoiser.self_conditioned:
        raise OptionError(
            f"window={window!r}: denoiser {denoiser.name!r} is self_conditioned, and its last logits are kept "
            "for whole rows; use window=None"
        )
    return found


def _under_window(
    denoiser: TokenDenoiser, sampler: Sampler[Any], scheme: Scheme | None, window: Window, given: Given
) -> Scheme | None:
    """The caching scheme of a run whose window moves.

    Raises:
        OptionError: the sampler, the denoiser or the scheme does not go with such a window.
    """
    who = f"window={str(window)!r}"
    facts = sampler.effective_facts
    if denoiser.mask_id is None or facts.revises or facts.whole_blocks:
        if denoiser.mask_id is None:
            why = "has no masks, so that every position stays open until its block is done"
        elif facts.revises:
            why = "may change tokens until their block is done"
        else:
            why = "needs all positions of a block open"
        raise OptionError(f"{who} does not go with sampler {sampler.name!r}, which {why}: use block_length=")
    if getattr(sampler, "steps_per_block", None) is not None:
        raise OptionError(f"{who} has no blocks for steps_per_block={sampler.steps_per_block}: give steps=")  # type: ignore[attr-defined]
    if isinstance(denoiser, BlockDenoiser):
        raise OptionError(f"{who}: denoiser {denoiser.name!r} is given whole blocks; use block_length=")
    if window.ordered:
        if denoiser.attention != "causal" or "block" not in denoiser.caches or denoiser.shift:
            lacks = (
                f"has {denoiser.attention} attention"
                if denoiser.attention != "causal"
                else "answers for a position in the line before it"
                if denoiser.shift
                else "has no cache that keeps a prefix"
            )
            raise OptionError(
                f"{who} is for causal models with a cache that predict at masks, and denoiser {denoiser.name!r} {lacks}; use "
                "window='sliding(32)'"
            )
        if scheme is not None and scheme.name != "block":
            raise OptionError(f"{who} keeps the decided beginning of a row itself: leave cache={str(scheme)!r} out")
        cache_scheme("block", denoiser)  # whatever else keeps a model from having a cache
        return Ordered()
    if window.cuts and scheme is not None and scheme.name != "block":
        raise OptionError(
            f"{who} goes with cache='block' or none: {str(scheme)!r} keeps what was computed before later blocks opened"
        )
    return scheme


STOP_RULES = ("decided", "block", "llada2")


def _read_stop_rule(denoiser: TokenDenoiser, rule: Any) -> str:
    """When a stop phrase ends a row."""
    if not isinstance(rule, str) or rule not in STOP_RULES:
        raise OptionError(f"stop_rule must be one of {', '.join(map(repr, STOP_RULES))}, not {shown(rule)}")
    if rule == "llada2" and denoiser.mask_id is None:
        raise OptionError(
            f"stop_rule='llada2' asks whether a mask stands before the stop, and denoiser {denoiser.name!r} has no mask; "
            "use 'decided' or 'block'"
        )
    return rule


def with_prompt_embeds(denoiser: TokenDenoiser, given: Given) -> TokenDenoiser:
    """A denoiser that knows the embeddings of `prompt_embeds`, whose ids are put before the prompts in `given`.

    Without embeddings nothing changes.

    Raises:
        OptionError: they are no (P, D), (B, P, D) or list of (P_i, D); a prompt of another number of rows, or a Canvas.
    """
    embeds, prompt = given("prompt_embeds"), given("prompt")
    if embeds is None:
        return denoiser
    if isinstance(prompt, Canvas):
        raise OptionError("prompt_embeds does not go with a Canvas: put the ids of with_embeddings() into it")
    if isinstance(embeds, Tensor):
        embeds = [embeds] if embeds.dim() == 2 else list(embeds)
    if not isinstance(embeds, (list, tuple)):
        raise OptionError(
            f"prompt_embeds: (P, D), (B, P, D) or a list of (P, D) tensors is needed, not {shown(embeds)}"
        )
    denoiser, ids = denoiser.with_embeddings(embeds)
    empty = torch.zeros(0, dtype=torch.int64, device="cpu")
    rows = [empty] if prompt is None else token_rows("prompt", prompt_rows(prompt, denoiser))
    if len(rows) != len(ids) and 1 not in (len(rows), len(ids)):
        raise OptionError(f"prompt_embeds has {len(ids)} rows and prompt {len(rows)}; give one, or as many of both")
    size = max(len(rows), len(ids))
    ids, rows = ids * (size // len(ids)), rows * (size // len(rows))
    given.replace(prompt=[torch.cat(pair) for pair in zip(ids, rows)], prompt_embeds=None)
    return denoiser


def _read_canvas(denoiser: TokenDenoiser, given: Given) -> tuple[Canvas, int | None]:
    """The canvas of a run, and gen_length."""
    prompt, batch = given("prompt"), integer("batch", given("batch"))
    gen_length = optional_integer("gen_length", given("gen_length"))
    if not isinstance(prompt, Canvas):
        return Canvas.of(denoiser, prompt, gen_length, batch), gen_length
    if gen_length is not None:
        raise OptionError("gen_length was given beside a Canvas, which says itself what to fill")
    if batch not in (1, len(prompt.x)):
        raise OptionError(f"batch={batch} was given beside a Canvas of {len(prompt.x)} rows")
    prompt.check_denoiser(denoiser)
    return prompt, None


def _temperature(sampler: Sampler[Any], value: Any) -> float:
    temperature = sampler.default_temperature if value is None else number("temperature", value, 0.0)
    if temperature != 0 and not COLDEST <= temperature <= HOTTEST:
        raise OptionError(f"temperature must be 0 or a number from {COLDEST:g} to {HOTTEST:g}, not {temperature!r}")
    return temperature


def _share(value: Any) -> float:
    share = number("top_p", value, 0.0)
    if not 0 < share <= 1:
        raise OptionError(f"top_p must be a number above 0, up to 1 (all), not {shown(value)}")
    return share


def _per_row(name: str, value: Any, batch: int, read: Callable[[Any], Any]) -> Any:
    """An argument that is one value, or a collection of one per row of the batch, each read by `read`."""
    if isinstance(value, (Tensor, np.ndarray)) and value.ndim == 1:
        value = value.tolist()
    if not isinstance(value, (list, tuple)):
        return read(value)
    if len(value) != batch:
        raise OptionError(f"{name}: {len(value)} values were given for {batch} rows; give one, or one per row")
    return tuple(read(v) for v in value)


def _read_config(denoiser: TokenDenoiser, sampler: Sampler[Any], given: Given, batch: int) -> SamplingConfig:
    """How answers are read."""
    temperature = _per_row("temperature", given("temperature"), batch, functools.partial(_temperature, sampler))
    top_k = _per_row("top_k", given("top_k"), batch, lambda value: integer("top_k", value, 0))
    top_p = _per_row("top_p", given("top_p"), batch, _share)
    forbid = _token_ids("forbid", given("forbid"), denoiser)
    if len({*forbid, denoiser.mask_id} & set(range(denoiser.vocab_size))) == denoiser.vocab_size:
        raise OptionError(
            f"forbid= holds every token of {denoiser.name!r}, 0 to {denoiser.vocab_size - 1}: no token is possible anywhere"
        )
    return SamplingConfig(
        temperature,
        *guidance(given("cfg_scale"), given("cfg_interval")),
        top_k,
        top_p,
        forbid,
        _token_ids("demote", given("demote"), denoiser),
    )


def _read_guide(
    denoiser: TokenDenoiser, sampler: Sampler[Any], given: Given, config: SamplingConfig, scheme: Scheme | None
) -> Guide | None:
    """What guide= is, checked against the other arguments; or None."""
    guide = given("guide")
    if guide is None:
        return None
    if not isinstance(guide, Guide):
        raise OptionError(
            f"guide={shown(guide)}: samplers.guidance.Unconditional(...), Adaptive(...) or Classifier(...) is needed"
        )
    guide.check(denoiser, sampler, asdict(config) | {"cache": None if scheme is None else str(scheme)})
    return guide


def _flat_ids(name: str, value: Any, needed: str) -> Tensor | None:
    """(n,) int64 of an integer or a flat collection of integers, of whatever type; None if it is something nested."""
    if isinstance(value, AbstractSet):
        value = sorted(value) if all(isinstance(v, (int, np.integer)) for v in value) else list(value)
    if isinstance(value, (list, tuple)) and any(np.ndim(v) if not isinstance(v, Tensor) else v.dim() for v in value):
        return None
    ids = integers(name, value, needed)
    return ids.reshape(1) if ids.dim() == 0 else ids if ids.dim() == 1 else None


def _token_ids(name: str, value: Any, denoiser: TokenDenoiser) -> tuple[int, ...]:
    """Token ids of an integer or a flat collection of integers; OptionError if one is not in the vocabulary."""
    if value is None:
        return ()
    needed = f"token ids of {denoiser.name!r}, 0 to {denoiser.vocab_size - 1}, are needed: one, or a flat collection"
    ids = _flat_ids(f"{name}={shown(value)}", value, needed)
    if ids is None:
        raise OptionError(f"{name}={shown(value)} is nested; {needed}")
    for i in ids.tolist():
        if not 0 <= i < denoiser.vocab_size:
            raise OptionError(f"{name}={shown(value)}: {needed}, and {i} is not one")
    return tuple(ids.tolist())


STOP_FORMS = (
    "stop=[7, 8] stops a row at any of these tokens; stop=[[13, 13], [7]] at any of these phrases; "
    "stop='Q:' or ['Q:', 7] at a string, if the denoiser has a tokenizer"
)


def read_stop(stop: Any, denoiser: TokenDenoiser) -> tuple[tuple[Tensor, ...], StopText | None]:
    """The stop rules of a run: phrases, (m,) int64 each, and strings.

    Args:
        stop: as `parse_stop` takes it; a string; or a collection of strings, beside tokens or phrases. None: the denoiser's
            own stop_ids, if it has any. An empty collection: no rule.

    Raises:
        OptionError: as of `parse_stop`; a string that is empty, or holds a special token beside text; a string for a denoiser
            without a tokenizer.
    """
    if stop is None:
        own = (i for i in denoiser.stop_ids if 0 <= i < denoiser.vocab_size and i != denoiser.mask_id)
        return tuple(integers("stop_ids", [i], STOP_FORMS) for i in own), None
    parts = [stop] if isinstance(stop, str) else list(stop) if isinstance(stop, (list, tuple, AbstractSet)) else None
    if parts == [] or (isinstance(stop, (Tensor, np.ndarray, range)) and tuple(np.shape(stop)) == (0,)):
        return (), None
    if parts is None or not any(isinstance(part, str) for part in parts):
        return parse_stop(stop, denoiser), None
    others = [part for part in parts if not isinstance(part, str)]
    phrases = list(parse_stop(others, denoiser)) if others else []
    strings = []
    if denoiser.tokenizer is None:
        raise OptionError(f"stop={shown(stop)}: denoiser {denoiser.name!r} has no tokenizer; {STOP_FORMS}")
    for part in dict.fromkeys(part for part in parts if isinstance(part, str)):
        if not part:
            raise OptionError(f"stop={shown(stop)}: a string must have a character; {STOP_FORMS}")
        ids = denoiser.tokenizer.encode(part, begin=False)
        if len(ids) and not denoiser.tokenizer.decode(ids):  # special tokens such as <|im_end|>, which are not text
            phrases += parse_stop([ids], denoiser)
            continue
        special = {*denoiser.tokenizer.eos_ids, denoiser.tokenizer.mask_id} & set(ids.tolist())
        if special:
            raise OptionError(
                f"stop={shown(stop)}: {part!r} holds the special token {special.pop()} among other characters, and decoded text "
                "does not show special tokens, so it would never match: give the token as a stop of its own"
            )
        strings.append(str(part))
    return tuple(phrases), StopText(tuple(strings), denoiser.tokenizer) if strings else None


def parse_stop(stop: Any, denoiser: TokenDenoiser) -> tuple[Tensor, ...]:
    """Stop rules of token ids as phrases, (m,) int64 each; a row ends after the first of them that it holds.

    Args:
        stop: an integer, or a flat collection of integers (list, tuple, set, range, array, tensor): any of these tokens.
            A list of lists (or of 1-d arrays or tensors; or a 2-d array or tensor): any of these phrases. None: no rule.

    Raises:
        OptionError: anything else, an empty collection or phrase, an id that is no token of the denoiser.
    """
    if stop is None:
        return ()
    name = f"stop={shown(stop)}"
    flat = _flat_ids(name, stop, STOP_FORMS)
    if flat is not None:
        phrases = [token.reshape(1) for token in flat]
    else:
        if isinstance(stop, (list, tuple)) and not all(
            np.ndim(p) if not isinstance(p, Tensor) else p.dim() for p in stop
        ):
            raise OptionError(f"{name} has tokens beside phrases; {STOP_FORMS}")
        phrases = [integers(f"{name}: phrase {i}", phrase, STOP_FORMS) for i, phrase in enumerate(stop)]
        if any(phrase.dim() != 1 for phrase in phrases):
            raise OptionError(f"{name} is nested too deeply; {STOP_FORMS}")
    if not phrases or not all(len(phrase) for phrase in phrases):
        raise OptionError(f"{name}: {'a stop phrase' if phrases else 'stop='} must have a token; {STOP_FORMS}")
    for i in (i for phrase in phrases for i in phrase.tolist()):
        if i == denoiser.mask_id:
            raise OptionError(
                f"{name}: {i} is the mask id of {denoiser.name!r}, which no finished text holds; {STOP_FORMS}"
            )
        if not 0 <= i < denoiser.vocab_size:
            raise OptionError(
                f"{name}: {i} is no token of {denoiser.name!r}, which are 0 to {denoiser.vocab_size - 1}; {STOP_FORMS}"
            )
    return tuple(phrases)
