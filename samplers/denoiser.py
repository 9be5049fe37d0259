"""Denoiser: what a model predicts of x_0 given x_t. The one interface between models and samplers.

A token denoiser answers with logits over clean tokens, a Gaussian one (gaussian/denoiser.py) with the denoised x_0. A denoiser
knows its model and never which sampler calls it. Any callable becomes one in a line:

    samplers.TokenDenoiser.wrap(fn, vocab_size=V, mask_id=M)          # fn(ids (B, L)) -> logits (B, L, V)
"""

from __future__ import annotations

import copy
import dis
import functools
import inspect
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from .checks import device_of, flag, integer, optional_integer, shown
from .errors import DenoiserError, OptionError

if TYPE_CHECKING:
    pass

__all__ = [
    "BlockDenoiser",
    "CacheUse",
    "Counter",
    "Denoiser",
    "Head",
    "Previous",
    "TextTokenizer",
    "TokenDenoiser",
    "TrainModeCheck",
]


class TextTokenizer(Protocol):
    """Text to ids and back: what TokenDenoiser.tokenizer is.

    Attributes:
        vocab_size: ids from here on have no text.
        mask_id: the mask token, or None.
        eos_ids: the tokens that end a text.
    """

    @property
    def vocab_size(self) -> int: ...

    @property
    def mask_id(self) -> int | None: ...

    @property
    def eos_ids(self) -> tuple[int, ...]: ...

    def encode(self, text: str, *, begin: bool = True) -> Tensor:
        """(n,) int64 on the CPU. begin: with the tokens that begin a text, if the tokenizer has any; none is put after it."""
        ...

    def decode(self, ids: Tensor, *, mask: str = "", eos: str = "") -> str:
        """The text of (n,) ids; masks, padding (negative) and the end of a text are shown as told."""
        ...

    def chat(self, messages: str | Sequence[Mapping[str, str]]) -> Tensor:
        """(n,) int64: a conversation by the model's chat template, up to where the answer begins.

        Args:
            messages: {"role": ..., "content": ...} each, or the text of one user message.

        Raises:
            OptionError: there is no chat template.
        """
        ...


@dataclass(frozen=True, eq=False)
class Head:
    """A model's last layer, from hidden rows to logits: softcap * tanh((hidden @ weight.T + bias) / softcap).

    Attributes:
        weight: (V, D) float32, bfloat16 or float16; a tied embedding's weight as it is.
        bias: (V,), or None.
        softcap: the bound of a soft-capped head, or None.
    """

    weight: Tensor  # (V, D)
    bias: Tensor | None = None  # (V,)
    softcap: float | None = None

    def __post_init__(self) -> None:
        if self.weight.dim() != 2:
            raise OptionError(f"a head's weight is (V, D); this one has shape {tuple(self.weight.shape)}")
        if self.bias is not None and tuple(self.bias.shape) != (len(self.weight),):
            raise OptionError(f"a head's bias is (V,) = {(len(self.weight),)}; this one has {tuple(self.bias.shape)}")
        if self.softcap is not None and not 0 < self.softcap < math.inf:
            raise OptionError(f"a head's softcap is a finite number above 0 or None, not {self.softcap!r}")

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., V)."""
        out = torch.nn.functional.linear(hidden, self.weight, self.bias)
        return out if self.softcap is None else (out / self.softcap).tanh() * self.softcap


@dataclass(frozen=True, eq=False)
class Previous:
    """What a self-conditioned denoiser predicted in the forward pass before, at the positions to fill.

    Of the present block all positions are from that pass, those that are decided already as well; of earlier blocks from
    their last one.

    Attributes:
        fill: (A, length) bool, the positions to fill of the rows that it is given.
        value: (F, V) float32, its last logits at those positions, in row-major order; zeros if there were none. If the
            sampler reads logits at a temperature (`predict.logits(state, temperature=...)`) they are divided by it.
    """

    fill: Tensor
    value: Tensor

    def dense(self) -> Tensor:
        """(A, length, V) float32: the logits at every position, zeros at given ones. Large: only if the model needs it."""
        out = self.value.new_zeros(*self.fill.shape, self.value.shape[1])
        return out.masked_scatter_(self.fill[..., None], self.value)

    def doubled(self) -> Previous:
        """The same rows twice, one after the other, as guidance gives them to the model."""
        return Previous(torch.cat([self.fill] * 2), torch.cat([self.value] * 2))


@dataclass(frozen=True, eq=False)
class CacheUse:
    """What a denoiser with a KV cache is told beside the tokens that it is given.

    Attributes:
        store: what its `new_cache` made.
        positions: (A, n) int64, where on the canvas the given tokens stand; row i of the batch is row i of the store, or
            row `rows[i]` if that is given.
        count: (A,) int64: only the first count[i] tokens of row i are there, the others are filling, which is neither seen
            nor written. None: all are. With "fill" only a denoiser that `takes_lengths` is given it.
        write: what becomes of their keys and values: None nothing; "fill" they are the first rows of the store, and
            nothing in it is seen; "scatter" each goes to the row of its position, whose old content is not seen;
            "append" they go after what is kept.
        stored: with "append": (A,) int64, only the first stored[i] go there, the others are given for their answers; None:
            as `count`. Needs causal attention.
        keep: (A, length) bool, rows of the store that are seen; None: all that are filled.
        rows: with "fill": runs (first, end) of the store's rows, which are the batch's rows in order; None: all.
    """

    store: Any
    positions: Tensor
    count: Tensor | None = None
    write: str | None = None
    stored: Tensor | None = None
    keep: Tensor | None = None
    rows: tuple[tuple[int, int], ...] | None = None


def embedded(table: Callable[[Tensor], Tensor], x: Tensor, first: int, extra: Tensor) -> Tensor:
    """(B, n, D): the model's embeddings of ids below `first`, and `extra` (M, D) of those from there on. x: (B, n) int64."""
    own = table(x.clamp(max=first - 1))
    more = torch.nn.functional.embedding((x - first).clamp(min=0), extra.to(own))
    return torch.where((x < first)[..., None], own, more)


class Denoiser:
    """What every denoiser says of itself.

    Attributes:
        family: the kind of noise it undoes: masked, uniform or gaussian.
        time_conditioned: False when the prediction depends on x alone.
        device: where its inputs must be.
        name: how reports call it.
    """

    family: str
    time_conditioned: bool = False
    device: torch.device = torch.device("cpu")
    name: str = "denoiser"


class TokenDenoiser(Denoiser):
    """Base of denoisers over tokens. Subclasses set the attributes and write `predict`, or `hidden` and set `head`.

    With a head the driver asks for hidden rows alone and makes tokens of them tile by tile (ops.headless_softmax): the
    logits are never stored.

    Attributes:
        vocab_size: V, the width of the logits.
        mask_id: the mask token (it may be V or more when the logits have no column for it), None for uniform noise.
        attention: full, causal or block_causal: what a position's prediction may depend on.
        length: the only canvas length it takes, or None for any.
        max_length: the most positions that a row may have, or None for any number.
        caches: the caching schemes (samplers.feeds.cached) that it can do; then `predict` or `hidden` takes a CacheUse as
            `cache`, x, t and rows being those of the given tokens, and `new_cache` makes what CacheUse.store is.
        predicts_next: True: a mask in its input is answered with the token that stands there, any other token with the one
            that stands at the position after it (one head, two meanings: ReFusion). Its cache must have `crop`,
            `index_select` and `append_from` as models.cache.Cache has them.
        shift: True: in the model's own output the answer for position i is in line i - 1, and that for position 0 in line 0.
            `predict` and `hidden` answer for the positions in `rows` all the same. With a cache the given positions
            include the one before each asked one, just before it, or the asked one is given first and is position 0; the
            asked one itself may be filling.
        attention_block: positions per block of block_causal attention, counted from the canvas's first; else 1.
        head: the last layer, of a denoiser that has `hidden`; None: it has logits only.
        self_conditioned: True: `predict` takes `previous`, what it answered for these rows the time before.
        takes_lengths: True: rows of different lengths may share a forward pass without a cache. `predict`, `hidden` and
            `logits` then take `lengths`, (A,) int64 or None: only the first lengths[i] positions of row i are there,
            counted from 0. Those after them are filling, which no other position may see; nothing is asked there.
        masks: True: `predict` or `hidden` and `logits` also take `visible`, (A, n, n) bool, and `positions`, (A, n) int64: n
            tokens in any order, of which token i stands at positions[i] and sees token j if visible[i, j]. What `attention`
            says is then of no account. Several tokens may stand at one position. Samplers ask so by `predict.seen`.
        attends: True: it has `attended`, which gives its attention as well. Samplers ask so by `predict.attention`.
        time_per_position: True: `t` comes as (B, L): 0 at given and decided positions, the sampler's level at open ones, 1
            in later blocks. Exact denoisers of uniform noise need it: a prompt is clean and the rest is not.
        entropy_curve: h(0), ..., h(L - 1) in nats, (L,) float64, as samplers.schedule.entropy_curve(...).nats measures it; what
            plan="optimal" plans by. None: it is not known.
        embedding: (how many ids it embeds, their width), of a model that can be given embeddings; None: it takes ids only.
        extra: (M, D), the embeddings that stand in prompts under the ids from embedding[0] on; see with_embeddings.
        tokenizer: text to ids and back, as samplers.models.Tokenizer has it; None: the model knows ids only.
        stop_ids: the tokens that end a text; where sample() ends rows if it is not told.
        recipe: (sampler, arguments): what the code that was published with the model runs, as a sampler of this zoo with
            arguments of sample() and options of that sampler. `sample(model, model.recipe[0], **model.recipe[1], ...)` runs
            it, and so do the commands sample, generate and chat without --sampler. None: nothing is known.
        revision: the commit on the Hugging Face hub that its files are of; None: they are not from there.
    """

    vocab_size: int
    mask_id: int | None = None
    attention: str = "full"
    length: int | None = None
    max_length: int | None = None
    caches: tuple[str, ...] = ()
    predicts_next: bool = False
    shift: bool = False
    attention_block: int = 1
    head: Head | None = None
    self_conditioned: bool = False
    takes_lengths: bool = False
    masks: bool = False
    attends: bool = False
    time_per_position: bool = False
    tokenizer: TextTokenizer | None = None
    stop_ids: tuple[int, ...] = ()
    recipe: tuple[str, dict[str, Any]] | None = None
    revision: str | None = None
    entropy_curve: Tensor | None = None
    embedding: tuple[int, int] | None = None
    extra: Tensor | None = None

    @property
    def family(self) -> str:  # type: ignore[override]
        return "uniform" if self.mask_id is None else "masked"

    @property
    def logits_bytes(self) -> int:
        """Bytes of logits per position that every forward pass is sure to store, whatever is asked; 0 if it is not known."""
        return 0

    def predict(self, x: Tensor, t: Tensor | None = None, *, rows: Tensor | None = None, cache: Any = None) -> Tensor:
        """Logits of the clean token at every position.

        Args:
            x: (B, L) int64, `mask_id` at undecided positions. Any subset of a batch's rows may come; rows must not see each
                other.
            t: (B,) float, the noise level in (0, 1], 1 = all noise; (B, L) if `time_per_position`. None if
                `time_conditioned` is False.
            rows: (B, L) bool, the positions that are needed; None for all.
            cache: a CacheUse, if the run has a cache.
            previous: a subclass that is `self_conditioned` also takes this: a Previous, its last logits at the positions to
                fill.
            lengths: a subclass that `takes_lengths` also takes this: (A,) int64, or None if all rows are as long as x.
            visible, positions: a subclass with `masks` also takes these, see there; then no cache and no lengths.

        Returns:
            (B, L, V), or (N, V) packed in row-major order of `rows`. float32, bfloat16 or float16.
        """
        if self.head is None:
            raise NotImplementedError(f"denoiser {self.name!r} has neither predict() nor a head")
        return self._through_head(x, t, rows=rows, cache=cache)

    def _through_head(self, x: Tensor, t: Tensor | None, *, rows: Tensor | None, **more: Any) -> Tensor:
        """What `predict` answers, of a denoiser with a head. more: further arguments of `hidden`."""
        assert self.head is not None
        out = self.head.logits(self.hidden(x, t, rows=rows, **more))
        return out if rows is not None else out.view(*x.shape, -1)

    def _text(self) -> TextTokenizer:
        if self.tokenizer is None:
            raise OptionError(f"denoiser {self.name!r} has no tokenizer, so it takes and gives token ids only")
        return self.tokenizer

    @property
    def extra_ids(self) -> range:
        """The ids of its further embeddings: they may stand in a prompt, and are never drawn."""
        if self.embedding is None or self.extra is None:
            return range(0)
        return range(self.embedding[0], self.embedding[0] + len(self.extra))

    def __repr__(self) -> str:
        noise = "uniform noise" if self.mask_id is None else f"mask {self.mask_id}"
        caches = f", caches {' '.join(self.caches)}" if self.caches else ""
        return f"<{type(self).__name__} {self.name!r}: {self.vocab_size} tokens, {noise}, {self.attention} attention{caches}>"

    def with_embeddings(self, rows: Sequence[Tensor]) -> tuple[TokenDenoiser, list[Tensor]]:
        """The same denoiser with further embeddings that may stand in a prompt, such as those of an image.

        Args:
            rows: (P_i, D) each, floats.

        Returns:
            A denoiser, and for each of `rows` the ids (P_i,) int64 under which they go into prompts, beside tokens in any order.
            The model itself is shared with this denoiser.

        Raises:
            OptionError: the model takes ids only, or a row is of another width.
        """
        if self.embedding is None:
            raise OptionError(
                f"denoiser {self.name!r} takes token ids only; embeddings can be given to models made by "
                "samplers.models.pretrained and from_transformers"
            )
        first, width = self.embedding
        for i, row in enumerate(rows):
            if not isinstance(row, Tensor) or row.dim() != 2 or row.shape[1] != width or not row.is_floating_point():
                got = f"{row.dtype} of shape {tuple(row.shape)}" if isinstance(row, Tensor) else type(row).__name__
                raise OptionError(
                    f"embeddings of {self.name!r}: row {i} is {got}; floats (P, D) are needed, D = {width}"
                )
        have = [] if self.extra is None else [self.extra]
        made, at, ids = copy.copy(self), first + sum(map(len, have)), []
        made.extra = torch.cat([*have, *(row.detach().to(self.device) for row in rows)])
        for row in rows:
            ids.append(torch.arange(at, at + len(row), dtype=torch.int64, device="cpu"))
            at += len(row)
        return made, ids

    def encode(self, text: str) -> Tensor:
        """Text to ids, (n,) int64; OptionError if there is no tokenizer."""
        return self._text().encode(text)

    def decode(self, ids: Tensor) -> str:
        """Ids (n,) to text; masks and the end of a text leave nothing. OptionError if there is no tokenizer."""
        return self._text().decode(ids)

    def render(self, x_row: Tensor) -> str:
        """A row as one looks at it: '·' at masks, '¶' where a text ends. OptionError if there is no tokenizer."""
        return self._text().decode(x_row.detach().cpu(), mask="·", eos="¶\n")

    def new_cache(self, batch: int, length: int) -> Any:
        """An empty cache for `batch` rows of `length` positions, with `lengths` (batch,) int64, the rows that are filled,
        `bytes_written`, and `keep_rows(source)`: row i becomes row source[i], (A,) ascending, and the others go. For samplers
        that make copies of rows also `take(source)`: row i becomes a copy of row source[i], of any number of rows in any order.
        """
        raise NotImplementedError(f"denoiser {self.name!r} has no cache")

    def hidden(self, x: Tensor, t: Tensor | None = None, *, rows: Tensor | None = None, cache: Any = None) -> Tensor:
        """What `head` is applied to, of the positions in `rows` (None: all), packed in row-major order: (N, D).

        Arguments as in `predict`; dtype and device of the head's weight. Only denoisers with a head have it.
        """
        raise NotImplementedError(f"denoiser {self.name!r} has a head but no hidden()")

    def attended(
        self, x: Tensor, t: Tensor | None = None, *, rows: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """What `hidden` gives (`predict`, without a head) at `rows`, and the attention that the answers came of.

        Args:
            x, t, rows, lengths: as in `predict`; lengths only if it `takes_lengths`.

        Returns:
            (N, D) or (N, V), and (A, L, L) float32: how much position i attends to position j, the mean over all layers and
            heads. A line that is there adds up to 1, and nothing is attended to that is not there.
        """
        raise NotImplementedError(f"denoiser {self.name!r} does not give its attention")

    def logits(
        self, x: Tensor, t: Tensor | None, rows: Tensor, needed: int, **more: Any
    ) -> tuple[Tensor, Tensor | None]:
        """As `predict`, for the driver: (logits (R, V), index (N,) of the needed rows or None when R = N, in order).

        A denoiser whose head computes every position anyway overrides this and spares a copy of (N, V).
        `needed` is N, known without a device sync; `more` holds cache, previous, lengths, visible and positions if there are any.
        """
        if self.head is not None:
            return self.head.logits(self.hidden(x, t, rows=rows, **more)), None
        return self.predict(x, t, rows=rows, **more), None

    @staticmethod
    def wrap(
        fn: Callable[..., Tensor],
        *,
        vocab_size: int,
        mask_id: int | None = None,
        time_conditioned: bool = False,
        attention: str = "full",
        attention_block: int | None = None,
        length: int | None = None,
        max_length: int | None = None,
        device: torch.device | str = "cpu",
        name: str | None = None,
        head: Head | None = None,
        self_conditioned: bool = False,
        takes_lengths: bool = False,
        masks: bool = False,
    ) -> TokenDenoiser:
        """A denoiser of a plain callable, `fn(ids (B, L) int64) -> logits (B, L, V)`.

        The rows of what it returns must not depend on each other: then row i of a batch is what that row is alone.

        A transformers model that is given a padding mask runs rows of different lengths together:
        `wrap(lambda ids, mask, positions: model(ids, attention_mask=mask, position_ids=positions).logits, ...,
        takes_lengths=True)`.

        Args:
            fn: the callable. Its logits may be float32, bfloat16, float16 or float64, at any strides; float64 is read as
                float32.
            vocab_size: V, the width of the logits.
            mask_id: the id of the mask token, which need not have a logit. None: the model is of uniform noise.
            time_conditioned: True: the callable is fn(ids, t), t (B,) float64 the noise level of each row.
            attention: full, causal or block_causal: what a position's prediction may depend on.
            attention_block: positions per block of block_causal attention, counted from position 0.
            length: the only canvas length that the model takes. None: any.
            max_length: the most positions that a row may have. None: any number.
            device: where its ids must be.
            name: how reports call it. None: the callable's own name.
            head: the model's last layer. The callable then returns what the head is applied to, (B, L, D), and logits are
                never stored.
            self_conditioned: True: the callable also takes `previous`, its last logits, (B, L, V) float32: zeros before the
                first forward pass and at given positions. It does not go with a head, since nothing keeps the logits then.
            takes_lengths: True: rows are filled up on the right to one length, and the callable also takes `mask`, (B, L)
                bool, False at the filling, and `positions`, (B, L) int64, counted from 0 in every row. No position may see
                what stands at the filling, and what the callable returns there is not read.
            masks: True: for samplers that say what each line sees (wino), the callable is also called with `visible`, (B, L, L)
                bool, and `positions`, (B, L) int64: line i stands at positions[i] and sees what stands in column j if
                visible[i, j]. Every line sees something. In other calls it is given neither. A transformers model takes them as
                `attention_mask=visible[:, None], position_ids=positions`, if it is loaded with attn_implementation="sdpa".

        Raises:
            OptionError: one of the arguments is wrong; (when called) the callable is a module in train mode, or is seen to read
                one, and dropout or batch norm would change its answers.
            DenoiserError: (when called) the callable returned something other than (B, L, V) floats, or (B, L, D), or it
                found its tables of positions or ids too small.
        """
        if self_conditioned and head is not None:
            raise OptionError("self_conditioned needs the last logits, and with a head they are never stored; use one")
        if not callable(fn):
            raise OptionError(f"TokenDenoiser.wrap takes a callable fn(ids) -> logits, not {type(fn).__name__}")
        if attention not in ("full", "causal", "block_causal"):
            raise OptionError(f"attention must be full, causal or block_causal, not {shown(attention)}")
        if (attention == "block_causal") != (attention_block is not None):
            raise OptionError("attention='block_causal' and attention_block go together, one is missing")
        if head is not None and not isinstance(head, Head):
            raise OptionError(f"head must be a samplers.Head or None, not {shown(head)}")
        out = _WrappedTokens(fn)
        out.vocab_size = integer("vocab_size", vocab_size)
        if mask_id is not None:
            out.mask_id = integer("mask_id (a token id, or None for uniform noise)", mask_id, 0)
        out.length, out.max_length = optional_integer("length", length), optional_integer("max_length", max_length)
        out.device = device_of("device", device)
        out.time_conditioned = flag("time_conditioned", time_conditioned)
        out.self_conditioned = flag("self_conditioned", self_conditioned)
        out.takes_lengths = flag("takes_lengths", takes_lengths)
        out.masks = flag("masks", masks)
        out.attention, out.head = attention, head
        if attention_block is not None:
            out.attention_block = integer("attention_block", attention_block)
        out.name = str(name or getattr(fn, "__name__", type(fn).__name__))
        return out


def seeing(visible: Tensor) -> Tensor:
    """`visible`, (A, n, n) bool, with lines that see nothing seeing themselves: a softmax over nothing would be a NaN."""
    blind = ~visible.any(2, keepdim=True)
    return visible | (blind & torch.eye(visible.shape[1], dtype=torch.bool, device=visible.device))


def as_canvases(
    x: Tensor, visible: Tensor, positions: Tensor, lines: Tensor, length: int, mask_id: int
) -> tuple[Tensor, Tensor]:
    """Each asked line as a canvas of its own, for denoisers whose answer depends on nothing but the tokens that a line sees.

    Args:
        x, visible, positions: as of a denoiser with `masks`, (A, n), (A, n, n) and (A, n).
        lines: (A, n) bool, the N lines that are asked about.
        length: L, positions per canvas.

    Returns:
        (N, L) int64: the tokens that the line sees, each at its position, and the mask id elsewhere. Masks say nothing; of two
        tokens at one position the higher id counts. (N, L) bool: the line's own position.
    """
    row, line = lines.nonzero().unbind(1)  # (N,) each
    told = visible[row, line] & (x != mask_id)[row]  # (N, n)
    token = torch.where(told, x[row], -1)
    canvas = torch.full((len(row), length), -1, dtype=torch.int64, device=x.device)
    canvas.scatter_reduce_(1, positions[row], token, "amax")
    own = torch.arange(length, device=x.device) == positions[row, line, None]
    return torch.where(canvas < 0, mask_id, canvas), own


class TrainModeCheck:
    """Says no if a model is asked in train mode and that changes its answers, by dropout or by batch norm.

    Args:
        fn: a module, a method of one, or a function that has modules in its closure or among the globals that it reads. What
            else a callable holds is not looked at.
    """

    def __init__(self, fn: Callable[..., Any]):
        self._modules = _modules_of(fn)
        self._changed: list[tuple[str, nn.Module]] | None = None  # looked for when it first matters

    def raise_if_on(self, name: str) -> None:
        """OptionError if one of the modules is in train mode and the answers depend on that. name: the denoiser's."""
        if not any(module.training for module in self._modules):
            return
        if self._changed is None:
            every = (found for module in self._modules for found in module.named_modules())
            self._changed = [(path, module) for path, module in every if _changes_in_training(module)]
        for path, module in self._changed:
            if module.training:
                what = f"{path} ({type(module).__name__})" if path else type(module).__name__
                raise OptionError(
                    f"denoiser {name!r}: the model is in train mode, in which {what} changes what it answers; call model.eval()"
                )


def _modules_of(fn: Any) -> list[nn.Module]:
    """The modules that a callable is, belongs to, or is seen to read."""
    while isinstance(fn, functools.partial):
        fn = fn.func
    owner = getattr(fn, "__self__", fn)
    if isinstance(owner, nn.Module):
        return [owner]
    if not inspect.isfunction(fn):
        return []
    found = []
    for cell in fn.__closure__ or ():
        try:
            found.append(cell.cell_contents)
        except ValueError:  # it has none yet
            continue
    # Not by co_names, which has attributes too: `teacher.model` reads no global `model`.
    names = {line.argval for line in dis.get_instructions(fn) if line.opname == "LOAD_GLOBAL"}
    found += [fn.__globals__[name] for name in names if name in fn.__globals__]
    return [x for x in found if isinstance(x, nn.Module)]


def _changes_in_training(module: nn.Module) -> bool:
    if isinstance(module, nn.modules.dropout._DropoutNd):
        return module.p > 0
    if isinstance(module, nn.modules.batchnorm._BatchNorm):
        return True
    # Dropout by a function, in attention for one: the module has its rate.
    return any("drop" in name and isinstance(rate, float) and rate > 0 for name, rate in vars(module).items())


# What torch says of an index beyond an embedding's table, and of rows that are longer than a model's table of positions.
TOO_FEW = re.compile(r"out of (range|bounds)|must match the (existing size|size of tensor)")


class _WrappedTokens(TokenDenoiser):
    def __init__(self, fn: Callable[..., Tensor]):
        self.fn = fn
        self._train_mode = TrainModeCheck(fn)

    @property
    def logits_bytes(self) -> int:
        return 2 * self.vocab_size if self.head is None else 0  # in bfloat16 or float16: a lower bound

    def _call(
        self,
        x: Tensor,
        t: Tensor | None,
        previous: Previous | None = None,
        lengths: Tensor | None = None,
        visible: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        self._train_mode.raise_if_on(self.name)
        more = {} if previous is None else {"previous": previous.dense()}
        if visible is not None and positions is not None:
            more |= {"visible": seeing(visible), "positions": positions}
            more |= {"mask": torch.ones_like(x, dtype=torch.bool)} if self.takes_lengths else {}
        elif self.takes_lengths:
            positions = torch.arange(x.shape[1], device=x.device).expand_as(x)
            end = torch.full_like(x[:, 0], x.shape[1]) if lengths is None else lengths
            more |= {"mask": positions < end[:, None], "positions": positions}
        try:
            out = self.fn(x, t, **more) if self.time_conditioned else self.fn(x, **more)
        except (IndexError, RuntimeError) as error:
            if not TOO_FEW.search(str(error)):
                raise
            raise DenoiserError(
                f"denoiser {self.name!r} raised {type(error).__name__} for {len(x)} rows of {x.shape[1]} positions with ids "
                f"from {int(x.min())} to {int(x.max())}: {error}. If the model has fewer positions, say how many to "
                "TokenDenoiser.wrap(fn, max_length=...), and a longer canvas is refused before the run; if it embeds fewer "
                "ids, vocab_size or mask_id is wrong"
            ) from error
        what, width = "logits (B, L, V)", self.vocab_size
        if self.head is not None:
            what, width = "hidden rows (B, L, D)", self.head.weight.shape[1]
        if not isinstance(out, Tensor):
            raise DenoiserError(
                f"denoiser {self.name!r} returned {type(out).__name__}; a tensor of {what} is needed "
                "(for a transformers model, wrap lambda ids: model(ids).logits)"
            )
        expected = (*x.shape, width)
        if tuple(out.shape) != expected:
            raise DenoiserError(
                f"denoiser {self.name!r} returned shape {tuple(out.shape)} for ids of shape {tuple(x.shape)}; "
                f"{what} = {expected} are needed"
            )
        if not out.is_floating_point():
            raise DenoiserError(f"denoiser {self.name!r} returned {out.dtype}; a floating dtype is needed")
        if out.layout != torch.strided or out.device.type != self.device.type:
            raise DenoiserError(
                f"denoiser {self.name!r} returned a {out.layout} tensor on {out.device}; a dense one on {self.device} is needed"
            )
        return out

    def hidden(
        self,
        x: Tensor,
        t: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        cache: Any = None,
        **more: Any,
    ) -> Tensor:
        out = self._call(x, t, **more)
        return out.flatten(0, 1) if rows is None else out[rows]

    def predict(
        self, x: Tensor, t: Tensor | None = None, *, rows: Tensor | None = None, cache: Any = None, **more: Any
    ) -> Tensor:
        if self.head is not None:
            return self._through_head(x, t, rows=rows, **more)
        out = self._call(x, t, **more)
        return out if rows is None else out[rows]

    def logits(
        self, x: Tensor, t: Tensor | None, rows: Tensor, needed: int, **more: Any
    ) -> tuple[Tensor, Tensor | None]:
        if self.head is not None:
            return super().logits(x, t, rows, needed, **more)
        # The callable made all (B, L, V) already: hand them over with the needed rows' numbers, not a copy.
        index = torch.nonzero_static(rows.flatten(), size=needed).squeeze(1)
        return self._call(x, t, **more).flatten(0, 1), index


class BlockDenoiser(TokenDenoiser):
    """Base of denoisers in two parts, such as DiffusionGemma: one reads what is decided, the other sees the open block alone.

    When a block begins, `read` is given the tokens before it that it has not read yet; from then on each step gives the block
    to `denoise`. So a step costs the block and not the canvas, and logits are stored for the block alone. Subclasses write both.

    A context is whatever `read` returns: of A rows, which have read the same number of tokens. When rows part or meet the driver
    calls `rows_of` and `joined`. They know tensors whose first size is A, and tuples, lists and mappings of them; a subclass
    whose context is something else writes them.

    Attributes (besides those of a TokenDenoiser):
        canvas_length: the most positions that a block may have, and sample()'s block_length if none is given. Blocks are cut
            after the prompt.
        block_steps: steps for a block, if sample() is told no steps; None: one per position.
        counts_reads: whether `read` is a forward pass and counted as one.
        mixes: whether `joined`, `rows_of` and `denoise` take rows that have read different numbers of tokens, so that rows
            share forward passes wherever their blocks begin (those that have read nothing among themselves). `read` is called
            for rows that have read as many.
    """

    canvas_length: int
    block_steps: int | None = None
    counts_reads: bool = True
    mixes: bool = False

    def read(self, tokens: Tensor, context: Any) -> Any:
        """The context of A rows after more tokens.

        Args:
            tokens: (A, m) int64, m > 0: decided tokens, which follow those that were read before.
            context: what was returned last for these rows; None: nothing is read yet. It is not used again.
        """
        raise NotImplementedError(f"denoiser {self.name!r} does not say how to read")

    def denoise(
        self,
        block: Tensor,
        context: Any,
        t: Tensor | None = None,
        *,
        previous: Tensor | None = None,
        told: Tensor | None = None,
    ) -> Tensor:
        """Logits of the clean token at every position of the block, (A, n, V) floats.

        Args:
            block: (A, n) int64, n <= canvas_length. Where tokens are not decided: noise, or the mask id.
            context: of these rows, which have read all that is before the block; None: there is nothing before it.
            t: (A,) float64, the noise level of the block, if `time_conditioned`; (A, n) if `time_per_position`.
            previous: if `self_conditioned`: (A, n, V) float32, the logits of the step before in this block, divided by the
                temperature at which the sampler read them. None: it is the first step of all rows.
            told: (A,) bool, the rows that have a step before in this block; of the others `previous` is 0. None: all.
        """
        raise NotImplementedError(f"denoiser {self.name!r} does not say how to denoise")

    def rows_of(self, context: Any, rows: Tensor) -> Any:
        """The context of some rows. rows: (n,) int64, numbers of the context's rows, in any order."""
        return _mapped(lambda part: part[rows], [context], self.name)

    def joined(self, contexts: list[Any]) -> Any:
        """One context of the rows of several, in their order. All have read the same number of tokens, unless it `mixes`."""
        return _mapped(lambda *parts: torch.cat(parts), contexts, self.name)

    def predict(self, x: Tensor, t: Tensor | None = None, *, rows: Tensor | None = None, cache: Any = None) -> Tensor:
        raise OptionError(
            f"denoiser {self.name!r} is given one block at a time, after what it has read: it runs in sample() and stream(), and "
            "has no logits of a whole canvas (nll() needs them)"
        )

    @staticmethod
    def wrap(  # type: ignore[override]
        denoise: Callable[..., Tensor],
        *,
        read: Callable[..., Any] | None = None,
        vocab_size: int,
        canvas_length: int,
        mask_id: int | None = None,
        block_steps: int | None = None,
        time_conditioned: bool = False,
        self_conditioned: bool = False,
        max_length: int | None = None,
        device: torch.device | str = "cpu",
        name: str | None = None,
    ) -> BlockDenoiser:
        """A denoiser of plain callables: `denoise(block (A, n), context) -> logits (A, n, V)`.

        Args:
            denoise: the callable. It is called with t (A,) float64 after the context if `time_conditioned`, and with
                previous= if `self_conditioned`.
            read: `read(tokens (A, m), context) -> context`, as BlockDenoiser.read, made of tensors whose first size is A.
                None: the context is the tokens before the block, (A, m) int64, m >= 0.
            vocab_size: V, the width of the logits.
            canvas_length: the most positions of a block.
            mask_id: the mask token, which need not have a logit. None: the model is of uniform noise.
            block_steps: steps for a block, if sample() is told no steps. None: one per position.
            time_conditioned: True: the callable is told the noise level of the block.
            self_conditioned: True: the callable takes `previous`, its logits of the step before, (A, n, V) float32: zeros in
                the first step of a block.
            max_length: the most positions that a row may have, prompt included. None: any number.
            device: where its ids must be.
            name: how reports call it. None: the callable's own name.

        Raises:
            OptionError: one of the arguments is wrong.
            DenoiserError: (when called) the callable returned something other than (A, n, V) floats.
        """
        for what, fn in (("denoise", denoise), ("read", read)):
            if not callable(fn) and (fn is not None or what == "denoise"):
                raise OptionError(f"BlockDenoiser.wrap: {what} must be a callable, not {type(fn).__name__}")
        out = _WrappedBlocks(denoise, read)
        out.vocab_size = integer("vocab_size", vocab_size)
        out.canvas_length = integer("canvas_length", canvas_length)
        if mask_id is not None:
            out.mask_id = integer("mask_id (a token id, or None for uniform noise)", mask_id, 0)
        out.block_steps, out.max_length = (
            optional_integer("block_steps", block_steps),
            optional_integer("max_length", max_length),
        )
        out.device = device_of("device", device)
        out.time_conditioned = flag("time_conditioned", time_conditioned)
        out.self_conditioned = flag("self_conditioned", self_conditioned)
        out.name = str(name or getattr(denoise, "__name__", type(denoise).__name__))
        return out


def _mapped(call: Callable[..., Tensor], contexts: list[Any], name: str) -> Any:
    """`call` of the tensors that stand at the same place in each context."""
    first = contexts[0]
    if first is None:
        return None
    if isinstance(first, Tensor):
        return call(*contexts)
    if isinstance(first, Mapping):
        return {key: _mapped(call, [c[key] for c in contexts], name) for key in first}
    if isinstance(first, (tuple, list)):
        return type(first)(_mapped(call, list(parts), name) for parts in zip(*contexts))
    raise DenoiserError(
        f"denoiser {name!r}: read() returned a context of {type(first).__name__}; tensors whose first size is that of the rows, "
        "and tuples, lists and mappings of them are known; for another kind write rows_of and joined in a BlockDenoiser"
    )


class _WrappedBlocks(BlockDenoiser):
    def __init__(self, fn: Callable[..., Tensor], reader: Callable[..., Any] | None):
        self.fn, self.reader, self.counts_reads = fn, reader, reader is not None

    def read(self, tokens: Tensor, context: Any) -> Any:
        if self.reader is not None:
            return self.reader(tokens, context)
        return tokens if context is None else torch.cat([context, tokens], 1)

    def denoise(
        self,
        block: Tensor,
        context: Any,
        t: Tensor | None = None,
        *,
        previous: Tensor | None = None,
        told: Tensor | None = None,
    ) -> Tensor:
        if context is None and self.reader is None:
            context = block[:, :0]
        more = {}
        if self.self_conditioned:
            size = (*block.shape, self.vocab_size)
            none = torch.zeros(size, dtype=torch.float32, device=block.device) if previous is None else previous
            more["previous"] = none
        return self.fn(block, context, t, **more) if self.time_conditioned else self.fn(block, context, **more)


class Counter:
    """Stands between the driver and a denoiser and counts honestly.

    Attributes:
        nfe: forward passes: calls of the model, whatever their batch.
        row_evals: rows over all forward passes (a guided one has two rows for each row of the batch).
        token_evals: positions that the model was given over all forward passes, the filling after shorter rows included.
        head_rows: positions for which logits were asked.
        encoder_passes: forward passes, of nfe, in which a BlockDenoiser read decided tokens.
        seconds: time inside the model, its head included; on CUDA from events, read when `seconds` is.
    """

    def __init__(self, denoiser: Denoiser):
        self.denoiser = denoiser
        self.nfe = self.row_evals = self.token_evals = self.head_rows = self.encoder_passes = 0
        self._seconds = 0.0
        self._events: list[tuple[Any, Any]] = []
        self._cuda = denoiser.device.type == "cuda"

    def _timed(self, call: Callable[[], Any]) -> Any:
        try:
            if self._cuda:
                start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
                start.record()
                out = call()
                end.record()
                self._events.append((start, end))
                return out
            start_s = time.perf_counter()
            out = call()
            self._seconds += time.perf_counter() - start_s
            return out
        except StopIteration as error:  # whoever iterates over the run would take it for the run's end
            raise DenoiserError(
                f"denoiser {self.denoiser.name!r} raised StopIteration in forward pass {self.nfe}; it must return an answer"
            ) from error

    @property
    def seconds(self) -> float:
        if self._events:
            torch.cuda.synchronize()
            self._seconds += sum(start.elapsed_time(end) for start, end in self._events) / 1000
            self._events.clear()
        return self._seconds

    def tokens(
        self, x: Tensor, t: Tensor | None, rows: Tensor, needed: int, **more: Any
    ) -> tuple[Tensor, Tensor | None]:
        """One forward pass of a token denoiser: (logits (R, V), index or None). `needed` is the count of True in rows."""
        denoiser: TokenDenoiser = self.denoiser  # type: ignore[assignment]
        self._forward(x, needed)
        logits, index = self._timed(lambda: denoiser.logits(x, t, rows, needed, **more))
        if index is None and tuple(logits.shape) != (needed, denoiser.vocab_size):
            raise DenoiserError(
                f"denoiser {denoiser.name!r} returned shape {tuple(logits.shape)} for {needed} needed positions; "
                f"packed logits (N, V) = {(needed, denoiser.vocab_size)} are needed"
            )
        return logits, index

    def hidden(self, x: Tensor, t: Tensor | None, rows: Tensor, needed: int, cache: Any = None, **more: Any) -> Tensor:
        """One forward pass of a token denoiser with a head: hidden rows (needed, D). Counted as `tokens` counts."""
        denoiser: TokenDenoiser = self.denoiser  # type: ignore[assignment]
        assert denoiser.head is not None
        self._forward(x, needed)
        out = self._timed(lambda: denoiser.hidden(x, t, rows=rows, cache=cache, **more))
        expected = (needed, denoiser.head.weight.shape[1])
        if tuple(out.shape) != expected:
            raise DenoiserError(
                f"denoiser {denoiser.name!r} returned hidden rows of shape {tuple(out.shape)} for {needed} needed "
                f"positions; packed rows (N, D) = {expected} are needed"
            )
        return out

    def attended(self, x: Tensor, t: Tensor | None, rows: Tensor, needed: int, **more: Any) -> tuple[Tensor, Tensor]:
        """One forward pass of a denoiser that attends: (N, D) or (N, V), and (A, L, L). Counted as `tokens` counts."""
        denoiser: TokenDenoiser = self.denoiser  # type: ignore[assignment]
        self._forward(x, needed)
        out, maps = self._timed(lambda: denoiser.attended(x, t, rows=rows, **more))
        expected, width = (len(x), x.shape[1], x.shape[1]), denoiser.vocab_size
        if denoiser.head is not None:
            width = denoiser.head.weight.shape[1]
        if tuple(maps.shape) != expected or tuple(out.shape) != (needed, width):
            raise DenoiserError(
                f"denoiser {denoiser.name!r} returned attention of shape {tuple(maps.shape)} beside answers of shape "
                f"{tuple(out.shape)}; (A, L, L) = {expected} and {(needed, width)} are needed"
            )
        return out, maps

    def read(self, tokens: Tensor, context: Any) -> Any:
        """The context of a BlockDenoiser after more tokens, (A, m). A forward pass, if it says so."""
        denoiser: BlockDenoiser = self.denoiser  # type: ignore[assignment]
        if denoiser.counts_reads:
            self._forward(tokens, 0)
            self.encoder_passes += 1
        return self._timed(lambda: denoiser.read(tokens, context))

    def block(self, block: Tensor, context: Any, t: Tensor | None, **more: Any) -> Tensor:
        """One forward pass of a BlockDenoiser: the logits (A, n, V) of a block (A, n)."""
        denoiser: BlockDenoiser = self.denoiser  # type: ignore[assignment]
        self._forward(block, block.numel())
        out = self._timed(lambda: denoiser.denoise(block, context, t, **more))
        expected = (*block.shape, denoiser.vocab_size)
        if not isinstance(out, Tensor) or tuple(out.shape) != expected or not out.is_floating_point():
            got = f"{out.dtype} of shape {tuple(out.shape)}" if isinstance(out, Tensor) else type(out).__name__
            raise DenoiserError(
                f"denoiser {denoiser.name!r} returned {got} for a block of shape {tuple(block.shape)}; floating logits "
                f"(A, n, V) = {expected} are needed"
            )
        return out

    def took_part(self, x: Tensor, needed: int) -> None:
        """Count a forward pass that somebody else ran, for these rows among others (see samplers.pool)."""
        self._forward(x, needed)

    def head(self, call: Callable[[], Any]) -> Any:
        """The head's product, fused with what is made of the logits: time of the denoiser, no forward pass."""
        return self._timed(call)

    def _forward(self, x: Tensor, needed: int) -> None:
        self.nfe += 1
        self.row_evals += len(x)
        self.token_evals += x.numel()
        self.head_rows += needed

    def reals(
        self, call: Callable[[], Any], rows: int, rows_of_network: int, positions: int, evaluations: int = 1
    ) -> Any:
        """One call, `call`, of a denoiser of real numbers, `positions` of them per row; it counts as so many evaluations."""
        self.nfe += evaluations
        self.row_evals += evaluations * rows_of_network
        self.token_evals += evaluations * rows_of_network * positions
        self.head_rows += evaluations * rows
        return self._timed(call)
