"""DiffusionGemma: transformers' DiffusionGemmaForBlockDiffusion as a BlockDenoiser. Text only; needs transformers.

    denoiser = samplers.models.diffusion_gemma.load(folder)
    samplers.sample(denoiser, "entropy_bound_uniform", prompt=ids, gen_length=512, pace=False, final="best")

is what the model's own generate makes of the same random numbers. Its encoder reads the prompt, and each finished block, into
a cache of keys and values; its decoder is given a block of noise (config.canvas_length, 256), sees that cache and the whole
block, and its own last logits as embeddings.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..denoiser import BlockDenoiser, TextTokenizer
from ..errors import ModelError, OptionError

__all__ = ["DiffusionGemmaDenoiser", "from_model", "load"]

STEPS = 48  # for a block, where generation_config.json does not say it


class DiffusionGemmaDenoiser(BlockDenoiser):
    """A DiffusionGemmaForBlockDiffusion. Its logits are the model's own, soft cap included, in float32.

    Rows share forward passes of the decoder wherever their blocks begin, if its attention takes a mask (sdpa and eager): what
    was read of a shorter row is padded on the left, and the padding is not seen. Where all have read as much there is no mask,
    and the forward pass is that of the model's generate.

    Args:
        model: the model, in evaluation mode from now on; its parameters say dtype and device.
        tokenizer: text to ids and back. Its ids are those that can be drawn; None: all that the model has.
        name: how reports call it.
    """

    self_conditioned = True

    def __init__(self, model: Any, tokenizer: TextTokenizer | None = None, *, name: str = "diffusion_gemma"):
        config, told = model.config, getattr(model, "generation_config", None)
        text = config.get_text_config()
        self.model, self.tokenizer, self.name = model.eval(), tokenizer, name
        self.model_vocab = text.vocab_size
        self.vocab_size = text.vocab_size if tokenizer is None else min(text.vocab_size, tokenizer.vocab_size)
        self.canvas_length, self.max_length = config.canvas_length, text.max_position_embeddings
        self.block_steps = getattr(told, "max_denoising_steps", None) or STEPS
        ends = getattr(told, "eos_token_id", None)
        ends = text.eos_token_id if ends is None else ends
        self.stop_ids = tuple(() if ends is None else ends if isinstance(ends, (list, tuple)) else (ends,))
        if tokenizer is not None:
            self.stop_ids = tuple(dict.fromkeys((*self.stop_ids, *tokenizer.eos_ids)))
        self.stop_ids = tuple(i for i in self.stop_ids if i < self.vocab_size)
        embedding = model.get_input_embeddings().weight
        self.device, self.dtype = embedding.device, embedding.dtype
        self.mixes = text._attn_implementation in ("sdpa", "eager")

    def read(self, tokens: Tensor, context: WasRead | None) -> WasRead:
        from transformers import DynamicCache

        if context is None:
            context = WasRead(DynamicCache(config=self.model.config.get_text_config(decoder=True)), (0,) * len(tokens))
        with torch.no_grad():
            self.model.model.encoder(input_ids=tokens, past_key_values=context.cache)
        return WasRead(context.cache, tuple(n + tokens.shape[1] for n in context.lengths))

    def denoise(
        self,
        block: Tensor,
        context: WasRead | None,
        t: Tensor | None = None,
        *,
        previous: Tensor | None = None,
        told: Tensor | None = None,
    ) -> Tensor:
        if context is None:
            raise OptionError(
                f"denoiser {self.name!r} needs a prompt: its decoder reads what the encoder made of at least one token, such as "
                "the one that begins a text"
            )
        if previous is not None:
            previous = previous.to(self.dtype)  # as the model's generate does
            if (missing := self.model_vocab - self.vocab_size) > 0:  # ids that the tokenizer does not have
                previous = torch.nn.functional.pad(previous, (0, missing), value=-torch.inf)
        more: dict[str, Any] = {}
        if len(set(context.lengths)) > 1:
            more = self._apart(context, block.shape[1])
        with torch.no_grad():
            out = self.model(
                decoder_input_ids=block,
                past_key_values=context.cache,
                self_conditioning_logits=previous,
                self_conditioning_mask=told,
                **more,
            )
        return out.logits[..., : self.vocab_size]

    def _apart(self, context: WasRead, size: int) -> dict[str, Any]:
        """What the decoder is told of rows that have read different numbers of tokens: positions, a mask per kind of layer."""
        read = torch.tensor(context.lengths, dtype=torch.int64, device=self.device)[:, None]  # (A, 1)
        masks = {}
        for kind, layer in zip(self.model.config.get_text_config().layer_types, context.cache.layers):
            if kind not in masks:
                kept = layer.keys.shape[2]  # by the row that has read most, within the layer's window
                empty = torch.arange(kept, dtype=torch.int64, device=self.device) < kept - read  # (A, kept)
                mask = torch.zeros(len(read), 1, 1, kept + size, dtype=self.dtype, device=self.device)
                mask[:, 0, 0, :kept].masked_fill_(empty, torch.finfo(self.dtype).min)
                masks[kind] = mask.expand(-1, -1, size, -1)
        positions = read + torch.arange(size, dtype=torch.int64, device=self.device)
        return {"decoder_attention_mask": masks, "decoder_position_ids": positions}

    def rows_of(self, context: WasRead, rows: Tensor) -> WasRead:
        which = rows.tolist()
        lengths = tuple(context.lengths[i] for i in which)
        longest = max(lengths)
        # A slice on the left of what is padding for all rows that are left.
        return _changed([context], lengths, lambda all: all[0][rows][:, :, max(all[0].shape[2] - longest, 0) :])

    def joined(self, contexts: list[WasRead]) -> WasRead:
        lengths = tuple(n for context in contexts for n in context.lengths)

        def put(parts: list[Tensor]) -> Tensor:
            longest = max(part.shape[2] for part in parts)
            return torch.cat([torch.nn.functional.pad(p, (0, 0, longest - p.shape[2], 0)) for p in parts])

        return _changed(contexts, lengths, put)


@dataclass(frozen=True, eq=False)
class WasRead:
    """What the encoder has read of some rows.

    Attributes:
        cache: a transformers DynamicCache, rows that have read less padded on the left.
        lengths: how many tokens of each.
    """

    cache: Any
    lengths: tuple[int, ...]


def _changed(contexts: list[WasRead], lengths: tuple[int, ...], make: Callable[[list[Tensor]], Tensor]) -> WasRead:
    """What was read of other rows: `make` is given the keys, or the values, that each context has of a layer."""
    cache = copy.copy(contexts[0].cache)
    cache.layers = []
    for same in zip(*(context.cache.layers for context in contexts)):
        layer = copy.copy(same[0])
        layer.keys, layer.values = make([one.keys for one in same]), make([one.values for one in same])
        if hasattr(layer, "cumulative_length"):  # a sliding window's layer; read() needs it, when all have read as much
            layer.cumulative_length = max(lengths)
        cache.layers.append(layer)
    return WasRead(cache, lengths)


def from_model(model: Any, tokenizer: Any = None, *, name: str | None = None) -> DiffusionGemmaDenoiser:
    """A live DiffusionGemmaForBlockDiffusion as a denoiser. It is put into evaluation mode.

    Args:
        tokenizer: the model's transformers tokenizer, or a TextTokenizer. None: the denoiser knows ids only.
        name: how reports call it. None: config.name_or_path, or diffusion_gemma.

    Raises:
        ModelError: the model is of another class.
    """
    config = getattr(model, "config", None)
    if getattr(config, "model_type", None) != "diffusion_gemma" or not hasattr(model, "lm_head"):
        raise ModelError(
            f"{type(model).__name__} is no DiffusionGemmaForBlockDiffusion. samplers.models.from_transformers takes others, and "
            "samplers.BlockDenoiser.wrap takes any callable that denoises a block"
        )
    if tokenizer is not None and not hasattr(tokenizer, "eos_ids"):
        from .hf_tokenizer import HuggingFaceTokenizer

        tokenizer = HuggingFaceTokenizer(tokenizer)
    return DiffusionGemmaDenoiser(
        model, tokenizer, name=name or getattr(config, "name_or_path", "") or "diffusion_gemma"
    )


def load(
    folder: str | Path,
    *,
    tokenizer: Any = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    **more: Any,
) -> DiffusionGemmaDenoiser:
    """The denoiser of a folder, or of a repository on the Hugging Face hub.

    Args:
        tokenizer: as for from_model.
        dtype: of the parameters; None: as they are stored.
        device: where they go. It is not used if `more` holds device_map.
        more: what transformers' from_pretrained takes besides, such as device_map or revision.

    Raises:
        ModelError: transformers is not there, or lacks the class, or finds nothing that it can load.
    """
    try:
        from transformers import DiffusionGemmaForBlockDiffusion
    except ImportError as error:
        raise ModelError(
            f"{str(folder)!r} is a DiffusionGemma, which needs transformers 5.11 or later: pip install 'transformers>=5.11'"
        ) from error
    try:
        model: Any = DiffusionGemmaForBlockDiffusion.from_pretrained(
            str(folder), dtype="auto" if dtype is None else dtype, **more
        )
    except (OSError, ValueError, KeyError) as error:
        raise ModelError(f"transformers cannot load {str(folder)!r}: {' '.join(str(error).split())}") from error
    if "device_map" not in more:
        model = model.to(device)
    return from_model(model, tokenizer, name=str(folder))
