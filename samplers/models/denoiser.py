"""TransformerDenoiser: a Transformer as the driver sees it; Feed: what a forward does with a cache."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..denoiser import TokenDenoiser
from ..errors import OptionError
from .cache import Cache
from .transformer import Transformer

__all__ = ["Feed", "TransformerDenoiser"]

# Which schemes make sense for what a row sees. Exact where the keys and values of what is stored can no longer change.
CACHES = {"full": ("prefix", "dual", "delayed"), "causal": ("block",), "block_causal": ("block",)}


@dataclass(frozen=True, eq=False)
class Feed:
    """How the tokens of one forward stand to a cache: the arguments of `Transformer.forward`, which explains them.

    A denoiser's `hidden(x, rows=rows, cache=feed)` takes as x the tokens that are fed, (B, n) of the canvas's L.
    """

    cache: Cache
    positions: Tensor | None = None  # (B, n) int64
    store: str | None = None
    start: Tensor | int | None = None
    index: Tensor | None = None
    count: Tensor | None = None
    keep: Tensor | None = None


class TransformerDenoiser(TokenDenoiser):
    """A Transformer that denoises masked tokens, time-free: its prediction is of x alone.

    Args:
        model: its parameters say dtype and device. Rows of its head are the vocabulary.
        mask_id: the mask token, an id that the embedding has.
        name: how reports call it.
        length: the only canvas length it takes; None: any below the model's max_length.

    `hidden(x, rows=..., cache=Feed(...))` feeds some of a canvas's tokens beside a cache that `new_cache` made. Row i of
    a batch is what it is alone up to the order in which BLAS adds (see Transformer.forward): to be sure of the last bit,
    compare runs of the same batch.

    Raises:
        OptionError: mask_id is not an id of the embedding.
    """

    def __init__(self, model: Transformer, *, mask_id: int, name: str = "transformer", length: int | None = None):
        c = model.config
        if isinstance(mask_id, bool) or not isinstance(mask_id, int) or not 0 <= mask_id < c.embeddings:
            raise OptionError(f"mask_id must be one of the {c.embeddings} ids that the model embeds, not {mask_id!r}")
        self.model, self.name, self.length = model.eval().requires_grad_(False), name, length
        self.mask_id, self.vocab_size = mask_id, c.vocab_size
        self.attention, self.caches = c.attention, CACHES[c.attention]
        self.device = model.embed.weight.device
        self.head = model.head

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of `length` tokens."""
        return self.model.cache(batch, length)

    def hidden(
        self, x: Tensor, t: Tensor | None = None, *, rows: Tensor | None = None, cache: Feed | None = None
    ) -> Tensor:
        feed: dict[str, Any] = {} if cache is None else dict(vars(cache))
        with torch.no_grad():
            out = self.model(x, rows=rows, **feed)
        return out.flatten(0, -2)
