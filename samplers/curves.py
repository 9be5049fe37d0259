"""Entropy-rate curves, and plans of how many positions to commit per step that follow from them.

h(k) is the entropy in nats of a position given k others, both chosen at random: h(0), ..., h(L - 1), which never
increases. Let positions be committed in a random order, in groups of sizes m_1, m_2, ..., each group independently
given what is before it. With b(j) the number of positions before the group that holds the j-th position of the order,
the chain rule gives the expected divergence of one order,

    KL  =  sum over j of  h(b(j)) - h(j)  =  (sum over groups of size times h at its start)  -  H,   H = sum over j of
    h(j),

the gap between the curve and its sum by rectangles (arXiv 2510.25544, 2511.04647). It is the mean over orders of KL(p
|| q_order), q_order the distribution of the samples of that order, and a bound of KL(p || mean of q_order), that of
all samples together. Sizes that make it least are found by dynamic programming: `optimal_plan`.

Without a curve: with d(i) = h(i) - h(i + 1), and R(i) the number of positions of i's group that come after i (i of a
group's last is 0),

    KL = sum d(i) R(i),      TC = sum d(i) (L - 1 - i),      DTC = sum d(i) (i + 1),

the total correlation L h(0) - H and the dual one H - L h(L - 1). So R(i) <= c (L - 1 - i) for all i makes KL <= c TC,
and R(i) <= c (i + 1) makes KL <= c DTC. Sizes 1 + floor(c (L - 1 - b)) and 1 + floor(c (b + 1)), b positions being
known, do that: R is largest at a group's first position. They are geometric, so K steps allow c of the order log(L) /
K. arXiv 2602.20126 reaches these rates by sizes that are drawn at random; `bounded_plan` is deterministic, since the
bounds need no more.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from .checks import integer, shown
from .errors import DenoiserError, OptionError
from .random import uniform

if TYPE_CHECKING:
    from .denoiser import TokenDenoiser

__all__ = ["BOUNDS", "EntropyCurve", "bounded_plan", "entropy_curve", "exact_curve", "optimal_plan"]

BOUNDS = ("tc", "dtc", "tc+dtc")
SUBSETS = 2**27  # the most strings over all subsets of positions that exact_curve goes through
_DRAW_ORDER = 8


@dataclass(frozen=True, eq=False)
class EntropyCurve:
    """h(k), the entropy of a position given k others at random, in nats.

    Attributes:
        values: (n, L) float64, independent estimates of the curve, whose mean it is; of an exact curve (1, L).
    """

    values: Tensor  # (n, L)

    @property
    def nats(self) -> Tensor:
        """(L,) float64: h(0), ..., h(L - 1)."""
        return self.values.mean(0)

    @property
    def stderr(self) -> Tensor:
        """(L,) float64, the standard error of each; 0 of an exact curve."""
        n = len(self.values)
        return self.values.std(0) / math.sqrt(n) if n > 1 else torch.zeros_like(self.values[0])

    @property
    def total(self) -> float:
        """H, the joint entropy."""
        return float(self.nats.sum())

    @property
    def tc(self) -> float:
        """The total correlation, the KL of drawing everything at once."""
        return self.kl([self.values.shape[1]])[0]

    @property
    def dtc(self) -> float:
        """The dual total correlation."""
        return float((self.nats - self.nats[-1]).sum())

    def kl(self, sizes: Sequence[int]) -> tuple[float, float]:
        """The predicted KL in nats of groups of these sizes, and its standard error.

        Raises:
            OptionError: a size below 1, or a sum other than L.
        """
        length = self.values.shape[1]
        whole = all(isinstance(size, (int, np.integer)) and size > 0 for size in sizes)
        if not whole or sum(sizes) != length:
            raise OptionError(
                f"kl: group sizes of at least 1 with the sum {length} are needed, not {shown(list(sizes))}"
            )
        start = torch.tensor([0, *np.cumsum(sizes)[:-1]], dtype=torch.int64, device="cpu")
        weight = torch.full((length,), -1.0, dtype=torch.float64, device="cpu")
        weight[start] += torch.tensor(sizes, dtype=torch.float64, device="cpu")
        each = (self.values * weight).sum(1)  # (n,)
        return float(each.mean()), float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else 0.0


# ---------------------------------------------------------------------------------------------- curves


def entropy_curve(
    denoiser: TokenDenoiser, data: Any, *, samples: int = 64, seed: int = 0, batch: int = 32, loss: bool = False
) -> EntropyCurve:
    """The curve of a masked model by Monte Carlo, with standard errors.

    Each sample is a row of data and a random order of its positions. For each k the first k of the order are given,
    and h(k) is the mean over all others of the entropy of what the model predicts there. The model sees `samples`
    times L rows.

    Args:
        data: a Problem, whose exact samples are drawn; or (n, L) int64 tokens, of which the first `samples` rows are
            taken.
        samples: how many; at least 2.
        seed: of the orders, and of a problem's samples.
        batch: rows per forward pass.
        loss: take -log p of the token that stands there instead of the entropy. They agree on average if the model is
            exact. If it is not, the entropy is what the model says of itself, and the loss is what KL from the data
            to the model's samples is made of (plus the KL of the model one position at a time, which no plan
            changes).

    Raises:
        OptionError: a model without a mask, data that are no rows of tokens or too few.
        DenoiserError: the model's answer holds a NaN.
    """
    if not hasattr(denoiser, "mask_id"):
        raise OptionError(
            f"entropy_curve takes a model of masked tokens, a TokenDenoiser, not {type(denoiser).__name__}"
        )
    samples, batch, seed = integer("samples", samples, 2), integer("batch", batch), integer("seed", seed, 0)
    if denoiser.mask_id is None:
        raise OptionError(f"entropy_curve: denoiser {denoiser.name!r} has no mask, and the curve is of masked models")
    rows = data.sample_truth(samples, seed, "masked") if hasattr(data, "sample_truth") else data
    if not isinstance(rows, Tensor) or rows.dim() != 2 or rows.dtype != torch.int64 or len(rows) < samples:
        got = f"{rows.dtype} of shape {tuple(rows.shape)}" if isinstance(rows, Tensor) else type(rows).__name__
        raise OptionError(
            f"entropy_curve: a Problem or tokens (n, L) int64, n >= samples = {samples}, are needed, not {got}"
        )
    if denoiser.self_conditioned:
        raise OptionError(
            f"entropy_curve: what denoiser {denoiser.name!r} answers depends on its last logits (self_conditioned), not only on "
            "what it sees, so it has no such curve"
        )
    rows, length = rows[:samples].cpu(), rows.shape[1]
    wrong = (rows < 0) | (rows >= denoiser.vocab_size) | (rows == denoiser.mask_id)
    for i, k in wrong.nonzero()[:1].tolist():
        raise OptionError(
            f"entropy_curve: data hold {int(rows[i, k])} at row {i}, position {k}; whole rows of tokens are needed, 0 to "
            f"{denoiser.vocab_size - 1} without the mask {denoiser.mask_id}"
        )
    number, position = torch.arange(samples, device="cpu")[:, None], torch.arange(length, device="cpu")[None]
    rank = uniform(seed, number, position, 0, _DRAW_ORDER).argsort(1).argsort(1)  # (samples, L)
    values = torch.empty(samples * length, dtype=torch.float64, device="cpu")
    for part in torch.arange(samples * length, device="cpu").split(batch):
        which, known = part // length, part % length
        hidden = rank[which] >= known[:, None]  # (b, L)
        values[part] = _mean_surprise(denoiser, rows[which], hidden, loss)
    return EntropyCurve(values.view(samples, length))


@torch.no_grad()
def _mean_surprise(denoiser: TokenDenoiser, x: Tensor, hidden: Tensor, loss: bool) -> Tensor:
    """(b,) float64: the mean over a row's hidden positions of the entropy there, or of -log p of its own token."""
    device, mask_id = denoiser.device, denoiser.mask_id
    assert mask_id is not None
    t = None
    if denoiser.time_conditioned:
        t = hidden.double().mean(1).to(device) if not denoiser.time_per_position else hidden.double().to(device)
    logits = denoiser.predict(x.masked_fill(hidden, mask_id).to(device), t, rows=hidden.to(device)).double().cpu()
    if bool(logits.isnan().any()):
        raise DenoiserError(f"entropy_curve: denoiser {denoiser.name!r} gave a NaN among its logits")
    if mask_id < logits.shape[1]:
        logits[:, mask_id] = -math.inf
    log_p = logits.log_softmax(1)  # (N, V)
    if loss:
        each = -log_p.gather(1, x[hidden][:, None]).squeeze(1)
    else:
        each = -torch.where(log_p > -math.inf, log_p.exp() * log_p, 0.0).sum(1)
    row = hidden.nonzero()[:, 0]
    total = torch.zeros(len(x), dtype=torch.float64, device="cpu").index_add_(0, row, each)
    return total / hidden.sum(1)


def exact_curve(support: Tensor, p: Tensor | None = None) -> EntropyCurve:
    """The exact curve of a distribution over few strings: entropies of all 2^L subsets of positions.

    h(k) = (mean entropy of k + 1 positions) - (mean entropy of k positions), over all sets of that size.

    Args:
        support: (n, L) int64, different strings of tokens from 0.
        p: (n,) their probabilities; None: all equal.

    Raises:
        OptionError: n 2^L is above 2^27, or a string does not fit into 53 bits; no strings, one that is there twice or holds
            what is no token, or probabilities that are none.
    """
    support = support.cpu()
    if support.dim() != 2 or not support.numel() or support.dtype != torch.int64 or int(support.min()) < 0:
        raise OptionError(f"exact_curve: strings (n, L) int64 of tokens from 0 are needed, not {shown(support)}")
    if len(support.unique(dim=0)) < len(support):
        raise OptionError("exact_curve: a string is there twice; add up its probabilities")
    if p is not None and (
        p.shape != support.shape[:1] or not bool((p >= 0).all()) or not 0 < float(p.sum()) < math.inf
    ):
        raise OptionError(
            f"exact_curve: a probability, 0 or more, for each of the {len(support)} strings is needed, not {shown(p)}"
        )
    n, length = support.shape
    vocab = int(support.max()) + 1
    if n << length > SUBSETS or length * math.log2(max(vocab, 2)) > 53:
        raise OptionError(
            f"exact_curve: {n} strings of {length} positions have too many subsets ({n} times 2^{length}; at most 2^27 are gone "
            "through); use entropy_curve, which draws some of them"
        )
    equal = p is None or bool((p == p[0]).all())
    given = torch.ones(n, dtype=torch.float64, device="cpu") if p is None else p.double().cpu()
    weight = given / given.sum()
    digit = (support * vocab ** torch.arange(length, device="cpu")).double()  # (n, L)
    subset = torch.arange(1 << length, device="cpu")
    inside = (subset[:, None] >> torch.arange(length, device="cpu")) & 1  # (2^L, L)
    entropy = np.empty(len(subset))
    for part in subset.split(max(1, 2**20 // n)):
        key = (inside[part].double() @ digit.t()).numpy()  # (m, n), whole numbers: strings that look the same share one
        if equal:  # then the probabilities need not follow the strings
            key.sort(1)
            upto = np.broadcast_to(np.arange(1, n + 1) / n, key.shape)
        else:
            order = key.argsort(1, kind="stable")
            key = np.take_along_axis(key, order, 1)
            upto = weight.numpy()[order].cumsum(1)
        ends = np.ones_like(key, dtype=bool)
        ends[:, :-1] = key[:, 1:] != key[:, :-1]  # the last string of each group
        row, column = ends.nonzero()
        mass = upto[row, column]
        mass[1:] -= np.where(row[1:] == row[:-1], mass[:-1], 0.0)
        surprise = -mass * np.log(np.maximum(mass, 1e-300))
        entropy[part.numpy()] = np.bincount(row, surprise, minlength=len(part))
    size = inside.sum(1)
    zeros = torch.zeros(length + 1, dtype=torch.float64, device="cpu")
    mean = zeros.index_add(0, size, torch.from_numpy(entropy)) / zeros.index_add(
        0, size, torch.ones_like(zeros[:1]).expand(len(size))
    )
    return EntropyCurve(mean.diff().clamp_min(0.0)[None])  # rounding alone can be negative


# ---------------------------------------------------------------------------------------------- plans


def optimal_plan(curve: EntropyCurve | Sequence[float] | Tensor, steps: int) -> list[int]:
    """The group sizes with the least KL in `steps` steps, by dynamic programming; of equals, later groups begin
    earlier.

    Args:
        curve: h(0), ..., h(n - 1), or an EntropyCurve.
        steps: how many groups; more than n are n.

    Returns:
        min(steps, n) sizes of at least 1, whose sum is n. Time n^2 times steps.

    Raises:
        OptionError: a curve that is no list of finite numbers.
    """
    try:
        h = np.asarray(curve.nats if isinstance(curve, EntropyCurve) else curve, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise OptionError(f"optimal_plan: a curve is a list of numbers, not {shown(curve)}") from error
    if h.ndim != 1 or not len(h) or not np.isfinite(h).all():
        raise OptionError(f"optimal_plan: a curve is one or more finite numbers h(0), h(1), ..., not {shown(curve)}")
    n = len(h)
    steps = min(integer("steps", steps), n)
    if steps == n:
        return [1] * n
    at = np.arange(n + 1)
    cost = (at[None, :] - at[:, None]) * np.append(h, 0.0)[:, None]  # (from, to): the rectangle
    cost[at[:, None] >= at[None, :]] = np.inf
    best = np.full(n + 1, np.inf)
    best[0] = 0.0
    came = np.zeros((steps, n + 1), dtype=np.int64)
    for k in range(steps):
        total = best[:, None] + cost
        came[k] = total.argmin(0)
        best = total.min(0)
    sizes, end = [], n
    for k in reversed(range(steps)):
        sizes.append(int(end - came[k, end]))
        end = int(came[k, end])
    return sizes[::-1]


def bounded_plan(n: int, steps: int, bound: str) -> tuple[list[int], float]:
    """Sizes for any distribution over n positions in at most `steps` steps, and c: KL is at most c times its `bound`.

    Sizes are 1 + floor(c r) after b positions, with r = n - 1 - b for "tc" (large groups first), b + 1 for "dtc"
    (small groups first) and the lesser for "tc+dtc", whose KL is at most c times the lesser of TC and DTC. c is the
    least that `steps` allow.

    Args:
        bound: one of BOUNDS.
    """
    n, steps = integer("n", n), integer("steps", steps)
    if bound not in BOUNDS:
        raise OptionError(f"bound must be one of {', '.join(map(repr, BOUNDS))}, not {shown(bound)}")

    def sizes(c: float) -> list[int]:
        out: list[int] = []
        b = 0
        while b < n:
            room = {"tc": n - 1 - b, "dtc": b + 1, "tc+dtc": min(n - 1 - b, b + 1)}[bound]
            out.append(min(n - b, 1 + math.floor(c * room + 1e-12)))
            b += out[-1]
        return out

    low, high = 0.0, float(n)
    if n <= steps:
        return [1] * n, 0.0
    for _ in range(60):  # a larger c never needs more steps: what k groups reach grows with c and with where they start
        middle = (low + high) / 2
        low, high = (low, middle) if len(sizes(middle)) <= steps else (middle, high)
    return sizes(high), high
