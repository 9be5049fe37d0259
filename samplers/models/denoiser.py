"""TransformerDenoiser: a Transformer as the driver sees it, its head taken off, with all the caches it can have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..caching import Feed
from ..denoiser import TokenDenoiser
from ..errors import OptionError
from .cache import Cache
from .transformer import Transformer

__all__ = ["TransformerDenoiser"]

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
        if isinstance(mask_id, bool) or not isinstance(mask_id, int) or not 0 <= mask_id < c.embeddings:
            raise OptionError(f"mask_id must be one of the {c.embeddings} ids that the model embeds, not {mask_id!r}")
        self.model, self.name, self.length = model.eval().requires_grad_(False), name, length
        self.predicts_next = predicts_next
        self.mask_id, self.vocab_size = mask_id, c.vocab_size
        self.attention, self.caches = c.attention, CACHES[c.attention]
        self.attention_block = c.block_length or 1
        self.device = model.embed.weight.device
        self.head = model.head

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of `length` tokens."""
        return self.model.cache(batch, length)

    def hidden(
        self, x: Tensor, t: Tensor | None = None, *, rows: Tensor | None = None, cache: Feed | None = None
    ) -> Tensor:
        with torch.no_grad():
            return self.model(x, rows=rows, **_told(x, cache)).flatten(0, -2)


def _told(x: Tensor, feed: Feed | None) -> dict[str, Any]:
    """What Transformer.forward is told beside the tokens."""
    if feed is None:
        return {}
    told = {"cache": feed.store, "store": feed.write}
    if feed.write == "fill":
        return told | {"runs": feed.rows}
    told |= {"positions": feed.positions, "keep": feed.keep}
    if feed.write != "scatter":
        return told | {"count": feed.count, "stored": feed.stored}
    index = feed.positions
    if feed.count is not None:
        index = torch.where(torch.arange(x.shape[1], device=x.device) < feed.count[:, None], index, -1)
    return told | {"index": index}
