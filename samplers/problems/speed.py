"""Speed problems: shapes of real models with random weights, to measure what a step costs. Nothing is scored.

    llm-small   LLaDA's vocabulary and proportions at a size that two cores can run: 6 layers of width 1024
    llm-8b      LLaDA-8B's exact shape (32 layers, width 4096, 32 heads, MLP 12,288), for a GPU of 24 GB or more

Random weights never reach a threshold, so adaptive samplers commit one position per step on them: compare samplers of fixed
count, caches, and row counts.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from ..models import Config, Transformer, TransformerDenoiser
from .base import Problem, Score

__all__ = ["Llm8b", "LlmSmall"]

VOCAB, MASK = 126_464, 126_336  # LLaDA's


class Speed(Problem):
    """A transformer of `config`, bfloat16, with a prompt of 64 tokens before 128 to fill in blocks of 32.

    Args:
        device: where it runs.
        attention: full; causal and block_causal (blocks of 32) for other caches.
    """

    families = ("masked",)
    primary = {"masked": ""}
    settings = {"gen_length": 128, "block_length": 32}
    shape: dict[str, Any]

    def __init__(self, device: str = "cpu", attention: str = "full"):
        block = 32 if attention == "block_causal" else None
        self.config = Config(vocab_size=VOCAB, attention=attention, block_length=block, **self.shape)
        self.device = device
        self.settings = type(self).settings | {"prompt": torch.arange(64, device="cpu") * 1009 % MASK}

    @functools.cached_property
    def _made(self) -> TransformerDenoiser:
        model = Transformer(self.config, dtype=torch.bfloat16, device=self.device)
        return TransformerDenoiser(model, mask_id=MASK, name=self.name)

    def _masked(self) -> TransformerDenoiser:
        return self._made

    def _score(self, x: Tensor, family: str) -> Score:
        """An empty score: there is no truth."""
        return Score({}, problem=self.name, family=family, primary="")

    def render(self, x_row: Tensor) -> str:
        return " ".join("·" if v == MASK else str(v) for v in x_row.tolist())


class LlmSmall(Speed):
    """The small one."""

    name = "llm-small"
    summary = "random weights, LLaDA's vocabulary, 6 layers of width 1024: what a step costs on a CPU"
    shape = {"width": 1024, "layers": 6, "heads": 16, "mlp_width": 3072, "rope_theta": 500_000.0}


class Llm8b(Speed):
    """LLaDA-8B's shape (its config.json: d_model 4096, n_layers 32, n_heads 32, mlp_hidden_size 12288)."""

    name = "llm-8b"
    summary = "random weights in LLaDA-8B's exact shape: what a step costs on a GPU"
    shape = {"width": 4096, "layers": 32, "heads": 32, "mlp_width": 12_288, "rope_theta": 500_000.0}
