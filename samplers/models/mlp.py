"""A small network for continuous data of a fixed size: residual layers that are told the noise level."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["MLP"]


class MLP(nn.Module):
    """x of `size` numbers and its half log-SNR to `size` numbers: x' = x + B silu(A n(x) + C f), f a noise embedding.

    Args:
        size: numbers a sample. width: of the residual stream. layers: residual layers. features: of the noise level,
            cosines and sines of lam / 2^k.
        seed: of its random weights; no global generator is read or moved.
    """

    def __init__(self, size: int, width: int, layers: int, features: int = 16, *, seed: int = 0):
        super().__init__()
        self.config = {"size": size, "width": width, "layers": layers, "features": features}
        with torch.device("meta"):
            self.first = nn.Linear(size, width)
            self.norms = nn.ModuleList(nn.RMSNorm(width) for _ in range(layers))
            self.inner = nn.ModuleList(nn.Linear(width, 2 * width) for _ in range(layers))
            self.noise = nn.ModuleList(nn.Linear(features, 2 * width, False) for _ in range(layers))
            self.outer = nn.ModuleList(nn.Linear(2 * width, width, False) for _ in range(layers))
            self.norm = nn.RMSNorm(width)
            self.last = nn.Linear(width, size)
        self.to_empty(device="cpu")
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, p in self.named_parameters():
                if p.dim() == 1:
                    p.fill_(0.0 if name.endswith("bias") else 1.0)
                else:
                    scale = p.shape[1] ** -0.5 * (0.1 if name.startswith(("outer", "last")) else 1.0)
                    p.copy_(torch.empty(p.shape).normal_(0.0, scale, generator=generator))

    def forward(self, x: Tensor, lam: Tensor) -> Tensor:
        """x (B, size) float32, lam (B,) float32 -> (B, size)."""
        half = self.config["features"] // 2
        angle = lam[:, None] * 2.0 ** -torch.arange(half, device=x.device)  # (B, features / 2)
        f = torch.cat([angle.cos(), angle.sin()], 1)
        x = self.first(x)
        for norm, inner, noise, outer in zip(self.norms, self.inner, self.noise, self.outer):
            x = x + outer(nn.functional.silu(inner(norm(x)) + noise(f)))
        return self.last(self.norm(x))
