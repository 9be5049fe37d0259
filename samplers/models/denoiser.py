"""TransformerDenoiser: a Transformer as the driver sees it, its head taken off, with all the caches it can have."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checks import check_room, integer, optional_integer
from ..denoiser import CacheUse, TokenDenoiser
from ..errors import ModelError, OptionError
from .cache import Cache
from .load import load
from .transformer import Transformer

__all__ = ["TransformerDenoiser", "pretrained"]

CACHES = {"full": ("prefix", "dual", "delayed"), "causal": ("prefix", "block"), "block_causal": ("block",)}


class TransformerDenoiser(TokenDenoiser):
    """A Transformer that denoises masked tokens, time-free: its prediction is of x alone.

    Args:
        model: its parameters say dtype and device. Rows of its head are the vocabulary.
        mask_id: the mask token, an id that the embedding has.
        name: how reports call it.
        length: the only canvas length it takes; None: any below the model's max_length.
        predicts_next: it was trained as ReFusion prescribes: at a token that is no mask it predicts the next one.

    Row i of a batch is what it is alone up to the order in which BLAS adds (see Transformer.forward): to be sure of the last bit,
    compare runs of the same batch.

    Raises:
        OptionError: mask_id is not an id of the embedding.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        mask_id: int,
        name: str = "transformer",
        length: int | None = None,
        predicts_next: bool = False,
    ):
        c = model.config
        mask_id = integer("mask_id", mask_id, 0)
        if mask_id >= c.embeddings:
            raise OptionError(f"mask_id must be one of the {c.embeddings} ids that the model embeds, not {mask_id!r}")
        self.model, self.name = model.eval().requires_grad_(False), name
        self.length, self.max_length = optional_integer("length", length), c.max_length
        self.predicts_next, self.takes_lengths = predicts_next, True
        self.mask_id, self.vocab_size = mask_id, c.vocab_size
        self.attention, self.caches = c.attention, CACHES[c.attention]
        self.attention_block = c.block_length or 1
        self.device = model.embed.weight.device
        self.head = model.head

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of `length` tokens."""
        return self.model.cache(batch, length)

    def predict(
        self,
        x: Tensor,
        t: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        cache: CacheUse | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        assert self.head is not None
        out = self.head.logits(self.hidden(x, t, rows=rows, cache=cache, lengths=lengths))
        return out if rows is not None else out.view(*x.shape, -1)

    def hidden(
        self,
        x: Tensor,
        t: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        cache: CacheUse | None = None,
        lengths: Tensor | None = None,
    ) -> Tensor:
        if cache is None:
            check_room("x", [x.shape[1]], self)
        told = {"count": lengths} if cache is None else _told(x, cache)
        with torch.no_grad():
            return self.model(x, rows=rows, **told).flatten(0, -2)


def pretrained(
    name: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str = "cpu"
) -> TransformerDenoiser:
    """The TransformerDenoiser of a model's folder, or of a repository on the Hugging Face hub: `--denoiser hf:NAME`.

    What is read, see samplers.models.load. The mask token is what config.json says (mask_token_id or mask_id); a causal model
    predicts the next token. One that needs to be told more is loaded in two lines: `load`, `TransformerDenoiser`.

    Args:
        name: a folder, or owner/name, whose JSON and safetensors files are then fetched by huggingface_hub.
        dtype, device: as for `load`.

    Raises:
        ModelError: as of `load`; no such folder, and no huggingface_hub or nothing to be had from it; no mask token.
    """
    folder = Path(name)
    if not folder.is_dir():
        folder = _fetched(str(name))
    model, about = load(folder, dtype=dtype, device=device)
    mask_id = next((about[key] for key in ("mask_token_id", "mask_id") if about.get(key) is not None), None)
    if mask_id is None:
        raise ModelError(
            f"{folder}: config.json names no mask token (mask_token_id). If the model has one: "
            "samplers.models.TransformerDenoiser(samplers.models.load(folder)[0], mask_id=...)"
        )
    causal = model.config.attention == "causal"
    return TransformerDenoiser(model, mask_id=mask_id, name=str(name), predicts_next=causal)


def _fetched(name: str) -> Path:
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModelError(
            f"{name!r} is no folder; to have it fetched from the Hugging Face hub: pip install huggingface_hub"
        ) from None
    try:
        return Path(snapshot_download(name, allow_patterns=["*.json", "*.safetensors"]))
    except Exception as error:  # of many kinds: no such repository, no network, a name that cannot be one
        raise ModelError(
            f"{name!r} is no folder, and the Hugging Face hub does not give it: {' '.join(str(error).split())}"
        ) from error


def _told(x: Tensor, feed: CacheUse) -> dict[str, Any]:
    """What Transformer.forward is told of a cache."""
    told = {"cache": feed.store, "store": feed.write}
    if feed.write == "fill":
        return told | {"runs": feed.rows, "count": feed.count}
    told |= {"positions": feed.positions, "keep": feed.keep}
    if feed.write != "scatter":
        return told | {"count": feed.count, "stored": feed.stored}
    index = feed.positions
    if feed.count is not None:
        index = torch.where(torch.arange(x.shape[1], device=x.device) < feed.count[:, None], index, -1)
    return told | {"index": index}
