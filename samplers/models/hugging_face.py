"""Live models of the transformers library as denoisers: the head taken off, attention as told, and KV caches.

    denoiser = samplers.models.from_transformers(model, tokenizer)                    # any ...ForMaskedLM
    denoiser = samplers.models.from_transformers(model, attention="full", mask_id=M)  # a ...ForCausalLM that fills masks

The model stays as it is: nothing in it is replaced or copied, it is only put in eval mode. What is said of it is measured
once, on a few tokens, when it is wrapped: that the head gives the model's own logits, that attention is what it is said to
be, that filling is not seen, and that a forward pass with cached keys and values gives what one without them gives.
"""

from __future__ import annotations

import copy
import functools
import importlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from ..checks import flag, integer, shown
from ..denoiser import CacheUse, Head, TextTokenizer, TokenDenoiser, TrainModeCheck, embedded, seeing
from ..errors import ModelError, OptionError, SamplersError
from .cache import Cache
from .denoiser import CACHES

try:
    from transformers import PreTrainedModel
    from transformers.cache_utils import Cache as PastKeyValues
    from transformers.modeling_outputs import BaseModelOutput
except ImportError as error:
    raise ImportError("samplers.models.from_transformers needs transformers: pip install transformers") from error

__all__ = ["HuggingFaceDenoiser", "from_transformers"]

KINDS = ("full", "causal", "block_causal")
CLOSE = {torch.float32: 1e-4}  # how far two ways to the same numbers may be apart, relative to the largest; else:
CLOSE_IN_HALF = 2e-2


def from_transformers(
    model: Any,
    tokenizer: Any = None,
    *,
    mask_id: int | None = None,
    shift: bool | None = None,
    attention: str | None = None,
    block_length: int | None = None,
    name: str | None = None,
) -> HuggingFaceDenoiser:
    """A denoiser of a transformers model that is in memory: `...ForMaskedLM`, `...ForCausalLM`, or any class that gives logits.

    What is not given is taken from the family that the model's config names, if it is one that the zoo knows
    (samplers.models.families), else from the config and the tokenizer. Device, dtype and length limit are the model's own.
    Ids that the tokenizer does not have are never drawn.

    Args:
        model: a transformers.PreTrainedModel, wherever its weights are. It is put in eval mode; weights, their
            requires_grad and the config are not touched.
        tokenizer: one of transformers, or anything with the methods of samplers.denoiser.TextTokenizer. None: ids only.
        mask_id: the mask token, an id that the model embeds. None: config.mask_token_id, or the tokenizer's.
        shift: True: the answer for position i is in line i - 1 of the model's output (Dream, Fast-dLLM v2). None: False,
            unless the family shifts.
        attention: full, causal or block_causal: what a position may depend on. If the model does not attend in that way of
            its own accord, it is given a mask that makes it. None: full for a model that sees both sides. A model that looks
            back only may have been trained in any of the three ways, so then this must be said.
        block_length: positions per block of block_causal attention, counted from position 0.
        name: how reports call it. None: the name that it was loaded by, else its class.

    Returns:
        The denoiser. Its `why` says what it cannot do, and why: a head that cannot be taken off, no caches.

    Raises:
        OptionError: model is no PreTrainedModel; an argument is wrong; attention is not said, and the model does not tell.
        ModelError: there is no mask token, or the model does not embed it; the tokenizer has more ids than the model; the
            model has no logits, or NaN, or cannot be made to attend as said.
    """
    if not isinstance(model, PreTrainedModel):
        raise OptionError(
            f"from_transformers takes a transformers.PreTrainedModel, not {type(model).__name__}; any other callable becomes a "
            "denoiser by samplers.TokenDenoiser.wrap(fn, vocab_size=..., mask_id=...)"
        )
    how = getattr(model.config, "_attn_implementation", None)
    if how == "flex_attention" and model.device.type == "cpu":  # torch then ends the process with "double free"
        raise ModelError(
            f"{type(model).__name__} was loaded with attn_implementation='flex_attention', which does not run on a CPU: load it "
            "with 'sdpa', or call model.set_attn_implementation('sdpa')"
        )
    if getattr(model.config, "is_encoder_decoder", False):
        raise ModelError(
            f"{type(model).__name__} is an encoder with a decoder; a model of one stack of layers is needed"
        )
    model.eval()
    family = _family(model)
    if getattr(family, "loader", None) == "diffusion_gemma":
        raise ModelError(
            f"{type(model).__name__} denoises block by block; samplers.models.diffusion_gemma.from_model(model, tokenizer) "
            "makes a denoiser of it"
        )
    # A plain family is one of models that predict the next token; how one of them came to fill masks, it does not know.
    known = None if getattr(family, "plain", False) else family

    def default(given: Any, fact: str) -> Any:
        return getattr(known, fact, None) if given is None else given

    text = _text(tokenizer)
    for source in (model.config.get_text_config(), text, family):
        for key in ("mask_token_id", "mask_id"):
            mask_id = getattr(source, key, None) if mask_id is None else mask_id
    if mask_id is None:
        raise ModelError(
            f"{type(model).__name__}: neither config.mask_token_id nor the tokenizer names a mask token; say which id it is: "
            "mask_id=, or hf:NAME?mask_id= on the command line"
        )
    usual = attention in (None, getattr(known, "attention", None))  # whether it is to attend as its family does
    return HuggingFaceDenoiser(
        model,
        tokenizer=text,
        mask_id=integer("mask_id", mask_id, 0),
        shift=flag("shift", default(shift, "shift") or False),
        attention=default(attention, "attention"),
        block_length=default(block_length, "block_length") if usual else block_length,
        predicts_next=default(None, "predicts_next") if usual and shift is None else None,
        stop_ids=_stop_ids(model, text, family),
        name=str(name or getattr(model.config, "_name_or_path", "") or type(model).__name__),
    )


class HuggingFaceDenoiser(TokenDenoiser):
    """A transformers model as the driver sees it; made by `from_transformers`, where the arguments are explained.

    Row i of a batch is what it is alone up to the order in which sums are added.

    Attributes:
        model: the model itself.
        shift: whether line i - 1 of the model's output answers for position i.
        takes_lengths: whether `lengths` may be given.
        masks: whether `visible` and `positions` may be given.
        attends: whether it has `attended`: models that are loaded with attn_implementation="eager" and know output_attentions.
        why: sentences on what it cannot do; empty if there is nothing.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: TextTokenizer | None,
        mask_id: int,
        shift: bool,
        attention: str | None,
        block_length: int | None,
        predicts_next: bool | None,
        stop_ids: tuple[int, ...],
        name: str,
    ):
        if attention not in (None, *KINDS):
            raise OptionError(f"attention must be full, causal or block_causal, not {shown(attention)}")
        if (attention == "block_causal") != (block_length is not None):
            raise OptionError("attention='block_causal' and block_length go together, one is missing")
        self.model, self.tokenizer, self.mask_id, self.shift, self.name = model, tokenizer, mask_id, shift, name
        self._config = model.config.get_text_config()
        self._dtype = model.dtype
        self._train_mode = TrainModeCheck(model)
        self._check_ids(mask_id, tokenizer)
        self._offset, self.max_length = _position_limit(model, self._config)
        self.why: tuple[str, ...] = ()
        self._native = True  # until it is settled, no mask is given
        logits = self._logits_of_the_class()
        self.vocab_size = logits.shape[-1] if tokenizer is None else min(logits.shape[-1], tokenizer.vocab_size)
        self._take_head_off(logits)
        self.attention_block = 1 if block_length is None else integer("block_length", block_length)
        self._settle_attention(attention)
        self.predicts_next = self.attention == "causal" and not shift if predicts_next is None else bool(predicts_next)
        self.stop_ids = tuple(i for i in stop_ids if i < self.vocab_size and i != mask_id)
        self.takes_lengths = self._measure_lengths()
        self._measure_cache()

    # ------------------------------------------------------------------------------------------ what it is asked

    @property
    def logits_bytes(self) -> int:
        return 0 if self.head is not None else 2 * self.vocab_size  # in bfloat16 or float16: a lower bound

    def predict(
        self,
        x: Tensor,
        t: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        cache: CacheUse | None = None,
        lengths: Tensor | None = None,
        **more: Any,
    ) -> Tensor:
        """As TokenDenoiser.predict. lengths: (A,) int64, only the first lengths[i] positions of row i are there; None: all."""
        if self.head is not None:
            return self._through_head(x, t, rows=rows, cache=cache, lengths=lengths, **more)
        out = self._packed(self._forward(x, cache, lengths, **more)[0], self._lines(x, rows))
        return out if rows is not None else out.view(*x.shape, -1)

    def hidden(
        self,
        x: Tensor,
        t: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        cache: CacheUse | None = None,
        lengths: Tensor | None = None,
        **more: Any,
    ) -> Tensor:
        """As TokenDenoiser.hidden. lengths as for `predict`."""
        return self._hidden(*self._forward(x, cache, lengths, **more), self._lines(x, rows))

    def attended(
        self, x: Tensor, t: Tensor | None = None, *, rows: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        out, answer = self._forward(x, None, lengths, attention=True)
        total = torch.zeros(*x.shape, x.shape[1], dtype=torch.float32, device=x.device)
        for layer in answer.attentions:
            total += layer.float().mean(1).to(total.device)
        lines = self._lines(x, rows)
        made = self._hidden(out, answer, lines) if self.head is not None else self._packed(out, lines)
        return made, total / len(answer.attentions)

    def _hidden(self, out: Tensor, answer: Any, lines: Tensor | None) -> Tensor:
        """(N, D): what the head is applied to, of the lines that are needed of a forward pass."""
        assert self.head is not None
        packed = self._packed(out, lines)
        if not len(packed):
            return packed.new_zeros(0, self.head.weight.shape[1])
        return self._transformed(packed, answer)

    def logits(
        self, x: Tensor, t: Tensor | None, rows: Tensor, needed: int, **more: Any
    ) -> tuple[Tensor, Tensor | None]:
        if self.head is not None:
            return super().logits(x, t, rows, needed, **more)
        told: list[Any] = [more.get(name) for name in ("cache", "lengths", "visible", "positions")]
        out, _ = self._forward(x, *told)
        index = torch.nonzero_static(rows.flatten(), size=needed).squeeze(1)
        every = self._lines(x, None)
        return out.flatten(0, 1), index if every is None else every[index]

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of `length` tokens."""
        if not self.caches:
            return super().new_cache(batch, length)  # an error
        layers, heads, width = self._cache_shape
        return Cache(layers, batch, heads, length, width, dtype=self._cache_dtype, device=self.device)

    # ------------------------------------------------------------------------------------------ one forward pass

    def _lines(self, x: Tensor, rows: Tensor | None) -> Tensor | None:
        """(N,) int64: the lines of the output, flattened, that answer for `rows`; None: all of them, in order."""
        if not self.shift:
            return None if rows is None else rows.flatten().nonzero().squeeze(1)
        line = torch.arange(x.numel(), device=x.device)
        line = line - (line % x.shape[1] > 0).to(torch.int64)  # nothing is before the first: it answers for itself
        return line if rows is None else line[rows.flatten()]

    def _packed(self, out: Tensor, lines: Tensor | None) -> Tensor:
        flat = out.flatten(0, 1)
        return flat if lines is None else flat[lines.to(flat.device)]

    def _forward(
        self,
        x: Tensor,
        cache: CacheUse | None,
        lengths: Tensor | None,
        visible: Tensor | None = None,
        positions: Tensor | None = None,
        attention: bool = False,
    ) -> tuple[Tensor, Any]:
        """The model's rows before its head (B, n, D), or logits (B, n, V) if that stays on; and all that it returned.

        Args:
            visible, positions: as of a denoiser with `masks`, or None.
            attention: whether what it returns has its attentions.
        """
        self._train_mode.raise_if_on(self.name)
        view = None if cache is None else _View(cache.store, self._columns(cache))
        more: dict[str, Any] = {"output_attentions": True} if attention else {}
        if visible is not None and positions is not None:
            more |= {"position_ids": (positions + self._offset).to(self._entry)}
            more |= {"attention_mask": self._read_as_mask(seeing(visible)[:, None]).to(self._entry)}
        answer = self._ask(x, cache, view, lengths, more)
        if cache is not None and view is not None:
            view.write(cache)
        if self.head is not None:
            return answer[0], answer
        return answer.logits[..., : self.vocab_size].to(self.device, self._logits_dtype), answer

    def _ask(
        self,
        x: Tensor,
        cache: CacheUse | None,
        view: _View | None,
        lengths: Tensor | None,
        more: dict[str, Any] | None = None,
    ) -> Any:
        """more: what the model is told beside the usual, or in its place."""
        told: dict[str, Any] = dict(self._told)
        if cache is not None:
            told |= {"past_key_values": view, "position_ids": (cache.positions + self._offset).to(self._entry)}
            told |= {"use_cache": True} if "use_cache" in told else {}
        if more is None or "attention_mask" not in more:
            told |= self._mask(x, cache, lengths, 0 if view is None else view.columns)
        told |= more or {}
        with torch.no_grad():
            if self.extra is None:
                return self._net(input_ids=x.to(self._entry), **told)
            assert self.embedding is not None
            rows = embedded(self.model.get_input_embeddings(), x.to(self._entry), self.embedding[0], self.extra)
            return self._net(inputs_embeds=rows, **told)

    def _columns(self, cache: CacheUse) -> int:
        """Rows of the cache that a forward pass is given: those that are filled in some batch row, or all on a device."""
        if cache.write == "fill":
            return 0
        lengths = cache.store.lengths
        return int(lengths.max()) if lengths.device.type == "cpu" and len(lengths) else cache.store.length

    def _mask(self, x: Tensor, cache: CacheUse | None, lengths: Tensor | None, columns: int) -> dict[str, Any]:
        """What the model is told of who sees whom: nothing, a padding mask (B, n), or a mask (B, 1, n, columns + n)."""
        batch, n = x.shape
        count = lengths if cache is None else cache.count
        if cache is None and self._native:
            if count is None or self.attention == "causal":  # filling comes after, where nobody looks
                return {}
            return {"attention_mask": (torch.arange(n, device=x.device) < count[:, None]).long().to(self._entry)}
        here = torch.arange(n, device=x.device)
        there = None if count is None else here < count[:, None]  # (B, n) bool
        if self.attention == "full":
            new = torch.ones(batch, 1, 1, n, dtype=torch.bool, device=x.device)
        elif self.attention == "causal":
            new = (here[:, None] >= here)[None, None]
        else:
            block = (here[None] if cache is None else cache.positions) // self.attention_block
            new = (block[:, :, None] >= block[:, None])[:, None]
        if there is not None:
            new = new & there[:, None, None]
        if cache is not None and columns:
            seen = torch.arange(columns, device=x.device) < cache.store.lengths[:, None]  # (B, columns) bool
            seen = seen if cache.keep is None else seen & cache.keep[:, :columns]
            if cache.write == "scatter":  # the old rows of what is given now are not seen
                place = cache.positions if there is None else torch.where(there, cache.positions, cache.store.length)
                stale = torch.zeros(batch, cache.store.length + 1, dtype=torch.bool, device=x.device)
                seen = seen & ~stale.scatter_(1, place, True)[:, :columns]
            old = seen[:, None, None].expand(-1, 1, new.shape[2], -1)
            new = torch.cat([old, new.expand(batch, -1, -1, -1)], 3)
        # Filling that sees nothing would be NaN; what it is does not matter, so it sees everything.
        new = new | ~new.any(3, keepdim=True) if there is not None else new
        return {"attention_mask": self._read_as_mask(new).expand(batch, 1, n, -1).to(self._entry)}

    def _read_as_mask(self, mask: Tensor) -> Tensor:
        """A mask of bools, (B, 1, n, m), in the form that the model's attention reads."""
        if getattr(self._config, "_attn_implementation", None) == "sdpa":  # which alone reads a mask of bools as one
            return mask
        least = torch.finfo(self._dtype).min
        return torch.zeros(mask.shape, dtype=self._dtype, device=mask.device).masked_fill_(~mask, least)

    # ------------------------------------------------------------------------------------------ the head

    def _check_ids(self, mask_id: int, tokenizer: TextTokenizer | None) -> None:
        """ModelError if the mask token or an id of the tokenizer has no embedding."""
        try:
            embedding = self.model.get_input_embeddings().weight
            ids, self._entry = len(embedding), embedding.device
            if "inputs_embeds" in inspect.signature(self.model.forward).parameters:
                self.embedding = tuple(embedding.shape)
        except (NotImplementedError, AttributeError):  # remote code need not say
            if not isinstance(getattr(self._config, "vocab_size", None), int):
                raise ModelError(
                    f"{type(self.model).__name__} has no vocabulary (config.vocab_size): a model of text is needed, such as "
                    "one of transformers.AutoModelForMaskedLM or AutoModelForCausalLM"
                ) from None
            ids, self._entry = self._config.vocab_size, self.model.device
        if self._entry.type == "meta":  # kept elsewhere until it is used
            self._entry = torch.device("cpu")
        if mask_id >= ids:
            raise ModelError(
                f"mask_id is {mask_id}, but {type(self.model).__name__} embeds ids 0 to {ids - 1}; give the mask token's id, or "
                f"make room for it: model.resize_token_embeddings({mask_id + 1})"
            )
        if tokenizer is not None and tokenizer.vocab_size > ids:
            raise ModelError(
                f"the tokenizer has {tokenizer.vocab_size} ids, but {type(self.model).__name__} embeds {ids}; give the tokenizer "
                f"that belongs to the model, or make room: model.resize_token_embeddings({tokenizer.vocab_size})"
            )

    def _logits_of_the_class(self) -> Tensor:
        """(1, 2, V): what the class itself makes of two tokens; what it is told in every call is settled before."""
        known = inspect.signature(self.model.forward).parameters
        self._told = {"use_cache": False} if "use_cache" in known else {}
        self._net, self._tail = self.model, None
        ids = self._probe(2)[:1].to(self._entry)
        try:
            with torch.no_grad():
                logits = getattr(self.model(input_ids=ids, **self._told), "logits", None)
        except Exception as error:  # other people's code may raise anything
            raise ModelError(f"{type(self.model).__name__} fails on the ids {ids.tolist()}: {_said(error)}") from error
        if not isinstance(logits, Tensor) or logits.dim() != 3 or logits.shape[:2] != ids.shape:
            raise ModelError(
                f"{type(self.model).__name__} gives no logits (B, L, V) for ids (B, L); load it with its language head, as "
                "transformers.AutoModelForMaskedLM or AutoModelForCausalLM"
            )
        if bool(logits.isnan().any()):
            raise ModelError(
                f"{type(self.model).__name__} gives NaN for the ids {ids.tolist()}: its weights are not what they should be, or "
                f"{self._dtype} is too narrow for them"
            )
        return logits

    def _take_head_off(self, logits: Tensor) -> None:
        """Sets head, the body that comes before it and what lies between; without one, full logits, and `why`."""
        self.device, self._logits_dtype = logits.device, logits.dtype
        if self._logits_dtype == torch.float64:
            self._logits_dtype = torch.float32
        found = self._head_of_the_class()
        reason = found if isinstance(found, str) else ""
        if isinstance(found, Head):
            self.head, self.device = found, found.weight.device
            ids = self._probe(2)[:1].to(self.device)
            try:
                apart = _apart(self.predict(ids), logits[..., : self.vocab_size].to(self.device))
                if not apart < CLOSE.get(found.weight.dtype, CLOSE_IN_HALF):
                    reason = f"what lies before it gives other logits than the model: {apart:.1e} of the largest"
            except Exception as error:  # other people's code may raise anything
                reason = f"the part of it that lies before the head cannot be called by itself: {_said(error)}"
        if reason:
            self.head, self.device, self._net, self._tail = None, logits.device, self.model, None
            self.why += (f"full logits are stored in every forward pass: {reason}",)

    def _head_of_the_class(self) -> Head | str:
        """The last layer, cut to the ids that are known, with _net and _tail set; or why there is none."""
        model, body = self.model, getattr(self.model, "base_model", self.model)
        try:
            last = model.get_output_embeddings()
        except (NotImplementedError, AttributeError):
            last = None
        if last is None:
            return "the class does not say which layer is its last (get_output_embeddings)"
        if type(last) is not nn.Linear or last.weight.device.type == "meta":
            return f"its last layer is {type(last).__name__}, or its weight is kept elsewhere until it is used"
        weight, bias = last.weight.detach(), last.bias
        if type(weight) is not Tensor:
            return (
                f"the weight of its last layer is {type(weight).__name__}, which lies on several devices or is packed"
            )
        if weight.dtype not in (torch.float32, torch.bfloat16, torch.float16):
            return f"its last layer is in {weight.dtype}"
        names = {id(module): name for name, module in model.named_modules()}
        at, end = names.get(id(body), ""), names.get(id(last), "")
        if not at or not end or end.startswith(at + "."):
            return "its last layer is a part of its base_model"
        softcap = getattr(self._config, "final_logit_softcapping", None)
        tail = _with(_with(model, at, _Given()), end, nn.Identity())
        owner = tail.get_submodule(end.rpartition(".")[0])
        beside = owner._parameters.get("bias")
        if bias is None and beside is not None and tuple(beside.shape) == (len(weight),):  # ESM adds it by itself
            bias, nothing = beside, nn.Parameter(beside.detach().new_zeros(()), requires_grad=False)
            owner._parameters = owner._parameters | {"bias": nothing}
        if softcap is not None:
            tail.config = copy.deepcopy(model.config)
            tail.config.get_text_config().final_logit_softcapping = None
        self._net, self._tail = body, tail
        known = inspect.signature(body.forward).parameters
        self._told = {name: value for name, value in self._told.items() if name in known}
        v = self.vocab_size
        return Head(weight[:v], None if bias is None else bias.detach()[:v], softcap)

    def _transformed(self, packed: Tensor, answer: Any) -> Tensor:
        """(N, D): what the class makes of the body's rows before its last layer, as that layer needs it."""
        assert self.head is not None and self._tail is not None
        with torch.no_grad():
            if isinstance(answer, tuple):
                answer = BaseModelOutput(last_hidden_state=packed[None])
            else:
                answer["last_hidden_state"] = packed[None]
            out = self._tail(input_ids=answer).logits[0]
        return out.to(self.head.weight.device, self.head.weight.dtype)

    # ------------------------------------------------------------------------------------------ what is measured

    def _probe(self, n: int) -> Tensor:
        """(3, n) int64 of plain tokens: rows 1 and 2 differ from row 0 at the last place, and at the one before."""
        special = {self.mask_id, *(getattr(self._config, f"{kind}_token_id", None) for kind in ("pad", "bos", "eos"))}
        every = range(min(int(self._config.vocab_size), 64))
        plain = [i for i in every if i not in special]
        ids = torch.tensor(plain if len(plain) > 1 else list(every), dtype=torch.int64, device="cpu")
        place = torch.arange(n, device="cpu").repeat(3, 1)
        place[1, -1] += 1
        place[2, -2] += 1
        return ids[place % len(ids)]

    def _probe_length(self) -> int:
        n = self.attention_block + 1 if self.attention == "block_causal" else 4
        return n if self.max_length is None else min(n, self.max_length)

    def _attends(self) -> bool:
        """Whether a change of the last token, and of the one before, moves the lines that `attention` says, and no others."""
        rows = self._probe(self._probe_length()).to(self.device)
        # One by one: then nothing else is different, and a line that does not see the change is the same to the bit. But
        # experts multiply as many tokens together as choose them, and 8-bit products may be scaled by all tokens.
        line, *others = (self._forward(x[None], None, None)[0][0].float() for x in rows)
        mixed = any("experts" in fact for fact in self._config.to_dict()) or getattr(self.model, "is_quantized", False)
        noise = line.square().mean().sqrt() * max(1e-5, 2 * torch.finfo(self._dtype).eps) if mixed else 0.0
        moved = [(other - line).square().mean(1).sqrt() > noise for other in others]
        last, before = moved[0], moved[1]  # (n,) bool each
        if self.attention == "full":
            return bool(last[0])
        if self.attention == "causal":
            return not bool(last[:-1].any()) and not bool(before[:-2].any())
        return not bool(last[:-1].any()) and bool(before[0])

    def _settle_attention(self, attention: str | None) -> None:
        """Sets attention, and _native: whether the model attends so without a mask. What it then does is measured."""
        if attention is None:
            self.attention = "full"
            if self._attends():
                return
            raise OptionError(
                f"{type(self.model).__name__} does not see both sides of its own accord, and how it was trained to fill masks "
                "its config does not say: give attention='full' (masks are filled by what stands on both sides, as LLaDA and "
                "Dream do; Dream also needs shift=True), attention='block_causal' with block_length= (SDAR, LLaDA2), or "
                "attention='causal' (ReFusion)"
            )
        self.attention = attention
        if attention == "block_causal" and self.max_length is not None and self.attention_block >= self.max_length:
            raise OptionError(
                f"block_length is {self.attention_block}, not below the {self.max_length} positions of the model"
            )
        try:
            if self._attends():
                return
            self._native, why = False, ""
            self._limit_to_window()
            if self._attends():
                return
        except SamplersError:
            raise
        except Exception as error:  # other people's code may raise anything
            why = f" It says: {_said(error)}"
        how = getattr(self._config, "_attn_implementation", "code of its own")
        raise ModelError(
            f"{type(self.model).__name__} does not attend as attention={attention!r} says, not even under a mask (B, 1, L, L) "
            f"that makes it.{why} It attends by {how!r}; a mask is taken by models that "
            "are loaded with attn_implementation='sdpa' or 'eager'"
        )

    def _limit_to_window(self) -> None:
        """The mask that is given takes the place of sliding windows as well: up to a window's length that makes no difference."""
        other, window = _windows(self._config)
        if other:
            raise ModelError(
                f"{type(self.model).__name__} has layers of the type {other}, which look back whatever mask is given; give "
                "attention='causal'"
            )
        if window is not None:
            self.max_length = window if self.max_length is None else min(window, self.max_length)

    def _measure_lengths(self) -> bool:
        """Whether filling after a row's end is not seen, if the model is told where that is."""
        if self._native and self.attention == "block_causal":
            return False  # the mask is the model's own, and a padding mask might take its place
        x = self._probe(self._probe_length())[:2].to(self.device)
        n = torch.full((2,), x.shape[1] - 1, dtype=torch.int64, device=self.device)
        try:
            padded, alone = self._forward(x, None, n)[0][:, :-1], self._forward(x[:, :-1], None, None)[0]
        except Exception as error:  # other people's code may raise anything
            self.why += (f"rows of different lengths do not share a forward pass: {_said(error)}",)
            return False
        if _apart(padded, alone) < CLOSE.get(self._dtype, CLOSE_IN_HALF):
            return True
        self.why += ("rows of different lengths do not share a forward pass: the model sees what is filling",)
        return False

    def _measure_cache(self) -> None:
        """Sets caches and the shape of one, if the model takes keys and values and gives the same answers with them."""
        reason = ""
        other, window = _windows(self._config)
        if other or (self._native and window is not None and (self.max_length is None or window < self.max_length)):
            reason = (
                f"it has layers of the type {other}" if other else f"some of its layers see only {window} positions"
            )
        else:
            try:
                reason = self._try_cache()
            except Exception as error:  # other people's code may raise anything
                reason = _said(error)
        if reason:
            self.caches = ()
            self.why += (f"it has no KV caches: {reason}",)

    def _try_cache(self) -> str:
        """Why the model has no caches, or nothing, and then `caches` is set."""
        x = self._probe(self._probe_length())[:1].to(self.device)
        n = x.shape[1]
        at = torch.arange(n, device=self.device)[None]
        expected = self._forward(x, None, None)[0]
        view = _View(None, 0)
        self._ask(x, CacheUse(None, at, write="fill"), view, None)
        shapes = {tuple(part.shape) for pair in view.new.values() for part in pair}
        layers = int(getattr(self._config, "num_hidden_layers", 0))
        if sorted(view.new) != list(range(layers)):
            return f"its attention hands {len(view.new)} of {layers} layers to past_key_values.update"
        if len(shapes) != 1:
            return f"its keys and values have several shapes, {sorted(shapes)}"
        (_, heads, _, width) = next(iter(shapes))
        self._cache_shape, self._cache_dtype = (layers, heads, width), view.new[0][0].dtype
        self.caches = CACHES[self.attention]
        store = self.new_cache(1, n)
        filled = self._forward(x, CacheUse(store, at, write="fill"), None)[0]
        keep = torch.arange(n, device=self.device)[None] < n - 1
        last = self._forward(x[:, -1:], CacheUse(store, at[:, -1:], keep=keep), None)[0]
        apart = max(_apart(filled, expected), _apart(last, expected[:, -1:]))
        if apart < CLOSE.get(self._dtype, CLOSE_IN_HALF):
            return ""
        return f"with cached keys and values its answers are others, by {apart:.1e} of the largest"

    @functools.cached_property
    def lacks(self) -> dict[str, str]:
        """Why it has no `masks` or no `attends`, by these names. Measured on a few tokens when it is first asked."""
        reasons = {"masks": self._masks_missing, "attends": self._attention_missing}
        found = {}
        for name, look in reasons.items():
            try:
                why = look()
            except Exception as error:  # other people's code may raise anything
                why = _said(error)
            if why:
                found[name] = why
        return found

    @property
    def masks(self) -> bool:  # type: ignore[override]
        return "masks" not in self.lacks

    @property
    def attends(self) -> bool:  # type: ignore[override]
        return "attends" not in self.lacks

    def _masks_missing(self) -> str:
        """Why `visible` and `positions` cannot be given; nothing, if they are taken for what they say."""
        if self.shift:
            return "its answers are shifted, so no line answers for its own position"
        other, window = _windows(self._config)
        if other or window is not None:
            return f"it has layers of the type {other}" if other else f"some of its layers see only {window} positions"
        close, n = CLOSE.get(self._dtype, CLOSE_IN_HALF), self._probe_length()
        x, positions = self._probe(n)[:1].to(self.device), torch.arange(n, device=self.device)[None]
        visible = positions[..., None] >= positions[:, None]  # (1, n, n): each sees itself and what is before it
        visible[:, 1:, 0] = False  # and nothing but the first itself sees the first
        said = self._forward(x, None, None, visible, positions)[0]
        changed = torch.cat([x[:, 1:2], x[:, 1:]], 1)
        if not _apart(self._forward(changed, None, None, visible, positions)[0][:, 1:], said[:, 1:]) < close:
            return "a token that a mask hides changes its answers"
        back = visible.flip(1, 2)
        turned = self._forward(x.flip(1), None, None, back, positions.flip(1))[0].flip(1)
        if not _apart(turned, said) < close:
            return "the order in which tokens are given changes its answers, whatever position_ids says"
        return ""

    def _attention_missing(self) -> str:
        """Why its attention cannot be read; nothing, if it can."""
        how, n = getattr(self._config, "_attn_implementation", None), self._probe_length()
        if how != "eager":
            return f"it attends by {how!r}, and weights are given with attn_implementation='eager' alone"
        answer = self._forward(self._probe(n)[:1].to(self.device), None, None, attention=True)[1]
        shapes = sorted({tuple(layer.shape[2:]) for layer in answer.attentions})
        return "" if shapes == [(n, n)] else f"its attentions are {shapes} for {n} tokens"


class _View(PastKeyValues):
    """What a model is given as past_key_values in one forward pass: rows of a Cache to be seen, and a place for new ones.

    Attributes:
        columns: how many rows of the store come before the new ones.
        new: each layer's new keys and values, (B, H, n, d).
    """

    def __init__(self, store: Cache | None, columns: int):
        self.layers: list[Any] = []  # the base class asks what kinds there are
        self.store, self.columns = store, columns
        self.new: dict[int, tuple[Tensor, Tensor]] = {}

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        self.new[layer_idx] = key_states, value_states
        if self.store is None or not self.columns:
            return key_states, value_states
        key, value = (part[layer_idx, :, :, : self.columns] for part in (self.store.key, self.store.value))
        return torch.cat([key.to(key_states), key_states], 2), torch.cat([value.to(value_states), value_states], 2)

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.columns

    def write(self, use: CacheUse) -> None:
        """Into the store go the new rows, of all layers in one op, as CacheUse.write says."""
        store = use.store
        if use.write is None:
            return
        key, value = (torch.stack([self.new[i][part].to(store.key) for i in range(len(self.new))]) for part in (0, 1))
        if use.write == "fill":
            there = {} if use.count is None else {"count": use.count}
            store.fill(key, value, ((0, store.batch),) if use.rows is None else use.rows, **there)
        elif use.write == "append":
            store.append(key, value, use.count if use.stored is None else use.stored)
        else:
            index = use.positions
            if use.count is not None:
                column = torch.arange(index.shape[1], device=index.device)
                index = torch.where(column < use.count[:, None], index, -1)
            store.scatter(key, value, index)


class _Given(nn.Module):
    """In the place of a model's body: returns what it is given instead of ids, the body's own answer."""

    def forward(self, input_ids: Any = None, *args: Any, **kwargs: Any) -> Any:
        return input_ids


def _with(module: Any, path: str, new: nn.Module) -> Any:
    """The module with another one at `path`, which is a.b.c: a copy of what lies on the way, which shares everything else."""
    out = copy.copy(module)
    out._modules = dict(module._modules)
    for name in ("forward", "_old_forward", "_hf_hook"):  # accelerate's, which would call the module that was copied
        out.__dict__.pop(name, None)
    first, _, rest = path.partition(".")
    out._modules[first] = _with(out._modules[first], rest, new) if rest else new
    return out


def _family(model: Any) -> Any:
    """What the zoo knows of the family that the model is of (samplers.models.families.Family); None if it knows none."""
    try:
        families = importlib.import_module(f"{__package__}.families")
    except ImportError:
        return None
    return families.recognise({**model.config.to_dict(), "architectures": [type(model).__name__]})


def _text(tokenizer: Any) -> TextTokenizer | None:
    """The tokenizer as the zoo asks for one."""
    if tokenizer is None or hasattr(tokenizer, "eos_ids"):
        return tokenizer
    from .hf_tokenizer import HuggingFaceTokenizer  # type: ignore[import-not-found,unused-ignore]

    made: TextTokenizer = HuggingFaceTokenizer(tokenizer)
    return made


def _stop_ids(model: Any, tokenizer: TextTokenizer | None, family: Any) -> tuple[int, ...]:
    """The ids that end a text: the tokenizer's, those that the model's configs name, and those of its family."""
    ids = list(() if tokenizer is None else tokenizer.eos_ids)
    for config in (getattr(model, "generation_config", None), model.config.get_text_config()):
        more = getattr(config, "eos_token_id", None)
        ids += [] if more is None else [more] if isinstance(more, int) else list(more)
    return tuple(dict.fromkeys([*ids, *getattr(family, "stop_ids", ())]))


def _position_limit(model: Any, config: Any) -> tuple[int, int | None]:
    """What is added to a position to have the model's own number of it, and how many positions a row may have (None: any)."""
    for name, module in model.named_modules():
        if name.endswith("position_embeddings") and isinstance(module, nn.Embedding) and module.padding_idx is not None:
            begin = module.padding_idx + 1  # RoBERTa counts from there
            return begin, module.num_embeddings - begin
    limit = getattr(config, "max_position_embeddings", None)
    return 0, limit if isinstance(limit, int) and limit > 0 else None


def _windows(config: Any) -> tuple[str, int | None]:
    """The type of a layer that is no attention, or nothing; and the least number of positions that some layer sees, or None."""
    types = getattr(config, "layer_types", None)
    local = ("sliding_attention", "chunked_attention")
    if types is not None:
        other = next((kind for kind in types if kind not in ("full_attention", *local)), "")
        if not any(kind in local for kind in types):
            return other, None
    elif not getattr(config, "use_sliding_window", True):
        return "", None
    else:
        other = ""
    sizes = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
    return other, min((size for size in sizes if isinstance(size, int)), default=None)


def _apart(x: Tensor, y: Tensor) -> float:
    """How far x and y are apart, as a part of the largest of y; NaN if there is one in them."""
    return float((x.float() - y.float()).abs().max() / y.float().abs().max().clamp_min(1e-30))


def _said(error: Exception) -> str:
    """What an error says, in one line, with its type."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
