"""The sampler gives what the plain loop gives, and passes the kit of the sampler zoo."""

from __future__ import annotations

import pytest
import torch
from samplers_hello import LeftToRight
from torch import Tensor

import samplers
from samplers.testing import run_checks

VOCAB, MASK, LENGTH = 24, 24, 16  # the mask's id is the one after the last token
TABLES = torch.randn(3, VOCAB + 1, VOCAB + 1, generator=torch.Generator().manual_seed(0))


def model(ids: Tensor) -> Tensor:
    """Ids (B, L) int64 to logits (B, L, V): a small random model that sees its neighbours."""
    return TABLES[0][ids.roll(1, 1)] + TABLES[1][ids] + TABLES[2][ids.roll(-1, 1)]


def loop(x: Tensor, width: int) -> Tensor:
    """The plain loop, greedy, for one row. x: (L,) int64, MASK where a token is missing; width: tokens per step."""
    x = x.clone()
    while (x == MASK).any():
        logits = model(x[None])[0]
        logits[:, MASK] = -torch.inf
        first = (x == MASK).nonzero()[:width, 0]
        x[first] = logits.argmax(-1)[first]
    return x


@pytest.mark.parametrize("width", [1, 5, 12])
def test_the_sampler_is_the_loop(width: int) -> None:
    denoiser = samplers.TokenDenoiser.wrap(model, vocab_size=VOCAB + 1, mask_id=MASK)
    x = torch.full((LENGTH,), MASK)
    x[:4] = torch.tensor([3, 1, 4, 1])
    out = samplers.sample(denoiser, LeftToRight(width=width), prompt=x[:4], gen_length=12, temperature=0.0)
    assert out.x[0].tolist() == loop(x, width).tolist()
    assert out.nfe == -(-12 // width)


def test_steps_are_a_cap() -> None:
    denoiser = samplers.TokenDenoiser.wrap(model, vocab_size=VOCAB + 1, mask_id=MASK)
    assert samplers.sample(denoiser, LeftToRight(), gen_length=12, steps=5).nfe <= 5


def test_a_wrong_option_is_an_error_that_names_it() -> None:
    with pytest.raises(samplers.OptionError, match="width"):
        samplers.create("left_to_right", width=0)


def test_the_kit() -> None:
    """Rows and batches, seeds, prompts, counts, the distribution: the kit checks each promise of the class."""
    run_checks("left_to_right")
