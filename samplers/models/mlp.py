"""A small network for continuous data of a fixed size: residual layers that are told the noise level."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["MLP"]


class MLP(nn.Module):
    """x of `size` numbers, and its half log-SNR, to `out` numbers: x' = x + B silu(A n(x) + C f), f a noise embedding.

    Args:
        size, out: numbers that come and go; out None: as many. width: of the residual stream. layers: residual layers.
        features: of the noise level, cosines and sines of lam / 2^k; 0: it is not told.
        seed: seed of its random weights; no global generator is read or moved.
    """

    def __init__(
        self, size: int, width: int, layers: int, features: int = 16, out: int | None = None, *, seed: int = 0
    ):
        super().__init__()
        out = size if out is None else out
        self.config = {"size": size, "width": width, "layers": layers, "features": features, "out": out}
        with torch.device("meta"):
            self.first = nn.Linear(size, width)
            self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(layers))
            self.inner = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(layers))
            self.noise = nn.ModuleList(nn.Linear(features, 2 * width, False) for _ in range(layers if features else 0))
            self.outer = nn.ModuleList(nn.Linear(2 * width, width, False) for _ in range(layers))
            self.norm = nn.RMSNorm(width)
            self.last = nn.Linear(width, out)
            self.float()  # whatever torch's default dtype is
        self.to_empty(device="cpu")
        generator = torch.Generator("cpu").manual_seed(seed)
        with torch.no_grad():
            for name, p in self.named_parameters():
                if p.dim() == 1:
                    p.fill_(0.0 if name.endswith("bias") else 1.0)
                else:
                    scale = p.shape[1] ** -0.5 * (0.1 if name.startswith(("outer", "last")) else 1.0)
                    made = torch.empty(p.shape, dtype=torch.float32, device="cpu").normal_(
                        0.0, scale, generator=generator
                    )
                    p.copy_(made)

    def forward(self, x: Tensor, lam: Tensor | None = None) -> Tensor:
        """x (B, size) float32, lam (B,) float32 if there are features -> (B, out)."""
        told: list[Tensor | float] = [0.0] * len(self.inner)
        if lam is not None:
            half = self.config["features"] // 2
            angle = lam[:, None] * 2.0 ** -torch.arange(half, dtype=torch.float32, device=x.device)  # (B, features / 2)
            f = torch.cat([angle.cos(), angle.sin()], 1)
            told = [noise(f) for noise in self.noise]
        x = self.first(x)
        for norm, inner, outer, noise in zip(self.norms, self.inner, self.outer, told):
            x = x + outer(nn.functional.silu(inner(norm(x)) + noise))
        return self.last(self.norm(x))
