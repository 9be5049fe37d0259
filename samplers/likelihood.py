"""How likely a masked model finds given tokens: a bound on -log p(x), by Monte Carlo over what is masked.

With n positions to score, S a set of them that is masked, everything else seen, and C(S) = -sum over i in S of
log p(x_i | x outside S), the chain rule over a random order of the positions is

    bound  =  E over orders of  sum_j -log p(x_s(j) | x_s(1), ..., x_s(j-1))
           =  n E_k [ C(S) / k ],  k uniform in 1..n, S uniform among the sets of k              any_order
           =  integral over lambda in (0, 1) of  E C(S) / lambda,  each position masked with probability lambda    lambda_dce
           =  integral over u in (0, 1) of  a'(u)/(1 - a(u)) E C(S),  masked with probability 1 - a(u)     t_dce

The second line is the first since position j of an order is any of the n + 1 - j that are still masked; the third since the
integral of lambda^(k-1) (1 - lambda)^(n-k) is 1 / (k binomial(n, k)), the weight that the second gives each S; the fourth is
the third with lambda = 1 - a(u), and with the linear schedule (weight 1/t in t = 1 - u) the very same.

It is -log p(x) exactly if the model's conditionals are those of one joint distribution, as on the exact problems; any other
model makes it an upper bound of the -log-likelihood of any-order decoding. For a time-conditioned model the three differ in the
t that it is shown, as they do in the diffusion model's own bound.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import ops
from .canvas import PAD
from .checks import (
    bool_rows,
    check_room,
    check_tokens,
    flag,
    guidance,
    integer,
    integers,
    pads,
    row_numbers,
    shown,
    token_rows,
)
from .denoiser import Counter, Denoiser, Previous, TokenDenoiser
from .errors import DenoiserError, FamilyError, OptionError, did_you_mean
from .ops.masked_softmax import guide
from .random import Rng, uniform
from .schedule import MaskSchedule, mask_schedule

__all__ = ["METHODS", "Likelihood", "nll"]

METHODS = ("any_order", "lambda_dce", "t_dce")
PART = 4096  # hidden rows that are multiplied with their tokens' weights in float64 at once
DRAW_ORDER, DRAW_LEVEL = (
    8,
    9,
)  # a random order of the positions; the level of noise and, at position 1, the count under it


@dataclass(frozen=True, eq=False)
class Likelihood:
    """The bound on -log p of some rows, and how well it is known.

    Attributes:
        nll: (B,) float64, nats; inf if a token of the row is impossible.
        stderr: (B,) float64, the Monte Carlo standard error of each, from the spread of independent replicates of the
            whole design; inf if nll is.
        tokens: (B,) int64, positions scored.
        nfe: forward passes. row_evals: rows over all forward passes, mc for each row.
        method, mc: as given.
    """

    nll: Tensor  # (B,) float64
    stderr: Tensor  # (B,) float64
    tokens: Tensor  # (B,) int64
    nfe: int
    row_evals: int
    method: str
    mc: int

    @property
    def mean(self) -> float:
        """Nats per row."""
        return float(self.nll.mean())

    @property
    def mc_stderr(self) -> float:
        """Of `mean`, for these rows: Monte Carlo's part alone."""
        return float(self.stderr.square().sum().sqrt()) / len(self.nll)

    @property
    def mean_stderr(self) -> float:
        """Of `mean`, as the mean over the distribution that the rows are drawn from: their spread, Monte Carlo's part within."""
        spread = self.nll.std() if len(self.nll) > 1 else torch.tensor(math.inf, dtype=torch.float64, device="cpu")
        return math.inf if not math.isfinite(spread) else float(spread) / math.sqrt(len(self.nll))

    @property
    def per_token(self) -> float:
        """Nats per scored token, over all rows together; its exponential is the perplexity."""
        return float(self.nll.sum() / self.tokens.sum())

    def __repr__(self) -> str:
        return (
            f"<Likelihood of {len(self.nll)} rows by {self.method}: {self.mean:.5g} +- {self.mean_stderr:.2g} nats per row "
            f"({self.mc_stderr:.2g} of it Monte Carlo), {self.per_token:.4g} per token, nfe {self.nfe}>"
        )


def nll(
    denoiser: TokenDenoiser,
    x: Any,
    *,
    prompt: Any = None,
    fill: Any = None,
    method: str = "any_order",
    mc: int = 128,
    schedule: str | MaskSchedule = "linear",
    stratified: bool = True,
    antithetic: bool = True,
    replicates: int = 8,
    cfg_scale: float = 0.0,
    seed: Any = 0,
    first_row: Any = 0,
    batch: int = 32,
    ragged: str | None = None,
    progress: bool = False,
) -> Likelihood:
    """-log p of tokens under a masked model, a bound that is tight where its conditionals agree (see the module).

    Methods, all unbiased for the same number: `any_order` masks exactly k tokens (Uria et al. 2014, arXiv 1310.1757; LLaDA's
    likelihood, arXiv 2502.09992, appendix), `lambda_dce` each token with probability lambda (RADD, arXiv 2406.03736),
    `t_dce` with 1 - a(u) of a schedule (MDLM, arXiv 2406.07524; RADD). In RADD's form k is uniform in 0..n, and the mean of
    its weight given k is (n + 1)/k: any_order is that with lambda summed out and the empty masks left out, and never has more
    variance. RADD's own is infinite, logarithmically, at lambda = 0, where a mask seldom holds anything and then counts
    1/lambda. So here the two others also draw a mask given that it is not empty, their weights times
    1 - (1 - lambda)^n: the same mean, a finite variance, no forward pass in vain. (A schedule whose a'(u)^2 is not integrable,
    such as 1-(1-u)^0.5 or beta(a,b) with a or b up to 1/4, still has an infinite one.)

    Variance reduction: `stratified` spreads the k or u of a replicate evenly, with one random offset. `antithetic` takes
    each random order of the positions from both its ends, k positions from one and n + 1 - k (levels u and 1 - u) from the
    other: the masks of a pair are complements but for a position or two.

    Args:
        x: (B, L) int64 tokens, PAD (-1) beyond a row's end; or a list of B rows of any lengths.
        prompt: how many of the first positions are given and not scored: an int, or (B,) ints.
        fill: (L,) or (B, L) bool instead, or a list of B rows of bools: the positions to score, wherever they are; the others
            are always seen.
        method: any_order, lambda_dce or t_dce.
        mc: masks per row, each a row of a forward pass.
        schedule: the mask schedule of t_dce.
        replicates: independent copies of the design that mc is shared out to; their spread is the standard error, so that
            it takes strata and pairs into account. More make it surer and the strata coarser. Without `stratified` every
            pair (or mask) is its own.
        cfg_scale: w of guided probabilities, those of the logits (1 + w) l(x | given) - w l(x | given masked), as sample() draws
            from them; every mask then takes two rows of a forward pass. Guided conditionals are those of no joint
            distribution, so the number is the mean over orders of how surprised guided decoding is, and no bound of a likelihood.
        seed, first_row: as in sample(); row i is what row i alone is, whatever the batch.
        batch: masks per forward pass.
        ragged: as in sample(): "pad" masks rows of different lengths in one forward pass, the shorter ones filled up, and the
            numbers are those of each row alone up to float products; "groups" does not mix lengths. None: "pad" if the
            denoiser can.
        progress: show a progress bar.

    Returns:
        Likelihood, float64. log p is made of logits less the best one's and of the best one's probability (never of the
        token's own, which underflows): it is good to 2e-7 nats at any size of the logits.

    Raises:
        FamilyError: the denoiser is not of the masked family. OptionError: an unknown method, tokens that are no tokens
        (row and position named), nothing to score in a row, an mc that the design does not divide.
        DenoiserError: NaN or nothing but -inf among its logits.
    """
    _check_denoiser(denoiser)
    if method not in METHODS:
        raise OptionError(f"unknown method {method!r}{did_you_mean(str(method), METHODS)} Known: {', '.join(METHODS)}")
    batch, first_row = integer("batch", batch), row_numbers(first_row)
    progress = flag("progress", progress)
    x, lengths, fill = _rows(denoiser, x, prompt, fill)
    scale, _ = guidance(cfg_scale, (0.0, 1.0))
    if scale and bool((fill == (x != PAD)).all()):
        raise OptionError(
            f"nll: cfg_scale={scale:g} guides by what is given, and no position is: give prompt= or fill="
        )
    n = fill.sum(1)  # (B,)
    design = _design(
        integer("mc", mc),
        flag("stratified", stratified),
        flag("antithetic", antithetic),
        integer("replicates", replicates),
    )
    rng = Rng.of(seed, len(x), first_row)
    count, weight, level = _masks(method, mask_schedule(schedule), n, design, rng)  # (B, mc) each

    counter = Counter(denoiser)
    values = torch.empty(len(x), design.mc, dtype=torch.float64, device="cpu")
    order = lengths.argsort(stable=True)  # neighbours are of similar lengths
    groups = (order,) if pads(ragged, denoiser) else order.split(lengths.unique(return_counts=True)[1].tolist())
    jobs = [(who, first) for who in groups for first in range(0, len(who) * design.mc, batch)]
    with torch.no_grad(), _bar(progress, method, len(jobs)) as done:
        for who, first in jobs:
            which = torch.arange(first, min(first + batch, len(who) * design.mc), device="cpu")
            row, draw = who[which // design.mc], which % design.mc  # (A,)
            length = int(lengths[row].max())
            hidden = _hidden(rng, row, draw, count[row, draw], fill[row, :length], design)  # (A, length) bool
            given = ~fill[row, :length] if scale else None
            loss = _loss(
                counter, x[row, :length], hidden, level[row, draw], row, lengths[row], scale, given
            )  # (A,) float64
            values[row, draw] = weight[row, draw] * loss
            done()

    means = _total(values.unflatten(1, (design.replicates, -1))) * design.replicates / design.mc  # (B, replicates)
    estimate = _total(means) / design.replicates
    variance = _total((means - estimate[:, None]).square()) / (design.replicates - 1)
    stderr = torch.where(estimate.isfinite(), (variance / design.replicates).sqrt(), math.inf)
    return Likelihood(estimate, stderr, n, counter.nfe, counter.row_evals, method, design.mc)


# ---------------------------------------------------------------------------------------------- what is drawn


@dataclass(frozen=True)
class _Design:
    """The masks of a row: replicate by replicate, in each the strata in order and then, of pairs, their mirrors."""

    mc: int
    replicates: int
    pairs: bool

    @property
    def strata(self) -> int:
        return self.mc // self.replicates // (1 + self.pairs)

    @property
    def mirrored(self) -> Tensor:
        """(mc,) bool."""
        return (torch.arange(self.mc, device="cpu") // self.strata) % 2 == int(self.pairs)

    @property
    def pair(self) -> Tensor:
        """(mc,) int64: a number that the two of a pair share, the counter of their randomness."""
        of = torch.arange(self.replicates * self.strata, device="cpu").view(self.replicates, 1, self.strata)
        return of.expand(-1, 1 + self.pairs, -1).flatten()


def _design(mc: int, stratified: bool, antithetic: bool, replicates: int) -> _Design:
    copies = replicates if stratified else mc // (1 + antithetic)
    unit = copies * (1 + antithetic) if stratified else 1 + antithetic
    if copies < 2 or mc % unit:
        of = f"{replicates} replicates" if stratified else "independent masks"
        raise OptionError(
            f"mc={mc} masks per row cannot be shared out to {of}{' in antithetic pairs' if antithetic else ''}: "
            + (
                f"a multiple of {unit} is needed"
                if copies >= 2
                else "2 copies at least are needed for a standard error"
            )
        )
    return _Design(mc, copies, antithetic)


def _masks(method: str, schedule: MaskSchedule, n: Tensor, design: _Design, rng: Rng) -> tuple[Tensor, Tensor, Tensor]:
    """How many of its n positions each mask hides, its weight, and its level t. n: (B,) int64 -> (B, mc) each."""
    seed, row = rng.seed[:, None], rng.row[:, None]  # (B, 1)
    mirrored, size = design.mirrored, n[:, None].to(torch.float64)
    offset = uniform(seed, row, 0, torch.arange(design.replicates, device="cpu"), DRAW_LEVEL)  # (B, replicates)
    v = (torch.arange(design.strata, device="cpu") + offset[..., None]) / design.strata  # (B, replicates, strata)
    v = v.flatten(1)[:, design.pair].clamp(2.0**-53, 1 - 2.0**-53)  # (B, mc)
    if design.pairs:
        v = v / 2  # the mirrors fill the other half
    u = torch.where(mirrored, 1 - v, v)  # (B, mc)
    if method == "any_order":
        low = 1 + torch.floor(size * v)
        count = torch.where(mirrored, size + 1 - low, low).clamp(min=torch.ones_like(size), max=size)
        return count.to(torch.int64), size / count, count / size
    from scipy.stats import binom

    lam = (u if method == "lambda_dce" else 1 - schedule(u)).clamp(2.0**-53, 1.0)
    some = -torch.expm1(size * torch.log1p(-lam))  # the chance that a mask hides anything
    w = uniform(seed, row, 1, design.pair, DRAW_LEVEL)  # (B, mc)
    share = torch.where(mirrored, 1 - w, w) * some  # how far up the binomial's tail, its 0 left out
    count = torch.from_numpy(binom.isf(share.numpy(), size.numpy(), lam.numpy())).clamp(
        min=torch.ones_like(size), max=size
    )
    slope = 1.0 if method == "lambda_dce" else schedule.slope(u)
    return count.to(torch.int64), slope * some / lam, lam


def _hidden(rng: Rng, row: Tensor, draw: Tensor, count: Tensor, fill: Tensor, design: _Design) -> Tensor:
    """(A, L) bool: `count` of the positions in `fill`, the first of a random order, or the last for a mirror."""
    position = torch.arange(fill.shape[1], device="cpu")
    key = uniform(rng.seed[row, None], rng.row[row, None], position, design.pair[draw, None], DRAW_ORDER)  # (A, L)
    order = torch.where(fill, key, 2.0).argsort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(1, order, position.expand_as(order))  # (A, L)
    first, total = count[:, None], fill.sum(1, keepdim=True)
    return fill & torch.where(design.mirrored[draw, None], rank >= total - first, rank < first)


# ---------------------------------------------------------------------------------------------- what the model says


def _loss(
    counter: Counter,
    x: Tensor,
    hidden: Tensor,
    level: Tensor,
    row: Tensor,
    lengths: Tensor,
    scale: float,
    blind: Tensor | None,
) -> Tensor:
    """C(S): minus the sum of log p of the tokens at `hidden` (A, L), which are masked. (A,) float64, on the CPU.

    lengths: (A,) int64, of each row; L is the longest. blind: (A, L) bool, positions that are masked in the second half of a
    guided forward pass; None: it is not guided, `scale` is 0.
    """
    denoiser: TokenDenoiser = counter.denoiser  # type: ignore[assignment]
    device = denoiser.device
    needed = int(hidden.sum())
    given = x[hidden].to(device)  # (N,)
    noisy = torch.where(hidden | (x == PAD), denoiser.mask_id, x)  # type: ignore[arg-type]
    rows, t = hidden, level.to(device) if denoiser.time_conditioned else None
    if blind is not None:
        noisy, rows = torch.cat([noisy, noisy.masked_fill(blind, denoiser.mask_id or 0)]), torch.cat([rows, rows])
        lengths, t = torch.cat([lengths, lengths]), None if t is None else torch.cat([t, t])
    noisy, rows = noisy.to(device), rows.to(device)
    if t is not None and denoiser.time_per_position:
        noise = rows if blind is None else rows | torch.cat([torch.zeros_like(blind), blind]).to(device)
        t = torch.where(noise, torch.where(rows, t[:, None], 1.0), 0.0)  # (A, L)
    more: dict[str, Any] = {}
    if denoiser.self_conditioned:  # every mask is a first look: there is no answer from before
        zeros = torch.zeros(int(rows.sum()), denoiser.vocab_size, dtype=torch.float32, device=device)
        more["previous"] = Previous(rows, zeros)
    if bool((lengths < x.shape[1]).any()):
        more["lengths"] = lengths.to(device)
    forbid, asked = torch.tensor([denoiser.mask_id], device=device), len(rows) // len(hidden) * needed
    guided: dict[str, Any] = {} if blind is None else {"cfg_scale": scale}
    if denoiser.head is None:
        logits, index = counter.tokens(noisy, t, rows, asked, **more)
        at = torch.arange(asked, device=device) if index is None else index
        if blind is not None:
            guided |= {"guidance": logits, "guidance_index": at[needed:]}
        best = ops.masked_softmax(logits, at[:needed], forbid=forbid, **guided)

        def of_half(token: Tensor, half: int) -> Tensor:
            return logits[at[half * needed :][:needed], token].float()
    else:
        head, states = denoiser.head, counter.hidden(noisy, t, rows, asked, **more)  # (N, D) or (2 N, D)
        if blind is not None:
            guided["guidance"] = states[needed:]
        how = {"bias": head.bias, "softcap": head.softcap, "forbid": forbid, **guided}
        best = counter.head(lambda: ops.headless_softmax(states[:needed], head.weight, **how))

        def of_half(token: Tensor, half: int) -> Tensor:
            # Rounded as the head rounds: best.confidence is of logits in its dtype.
            pairs = zip(states[half * needed :][:needed].split(PART), token.split(PART))
            out = torch.cat([(a.double() * head.weight[b].double()).sum(1) for a, b in pairs])
            out = (out if head.bias is None else out + head.bias[token]).to(states.dtype)
            return (out if head.softcap is None else (out / head.softcap).tanh() * head.softcap).float()

    def of(token: Tensor) -> Tensor:
        plain = of_half(token, 0)
        return (plain if blind is None else guide(plain, of_half(token, 1), scale)).double()

    if bool(best.status.any()):
        i = int(best.status.ne(0).nonzero()[0])
        where = hidden.nonzero()[i].tolist()
        what = "a NaN or +inf among its logits" if int(best.status[i]) == 1 else "only -inf logits"
        raise DenoiserError(
            f"denoiser {denoiser.name!r} gave row {int(row[where[0]])}, position {where[1]} {what} "
            f"(forward pass {counter.nfe} of nll)"
        )
    assert best.confidence is not None
    log_p = of(given) - of(best.token) + best.confidence.double().log()  # (N,) float64
    loss = torch.zeros(hidden.shape, dtype=torch.float64, device="cpu")
    loss[hidden] = -log_p.cpu()
    return _total(loss)


def _total(x: Tensor) -> Tensor:
    """The sum over the last dimension, one after the other: sum()'s order, and last bit, depends on the batch."""
    return x.cumsum(-1)[..., -1]


# ---------------------------------------------------------------------------------------------- what is given


def _check_denoiser(denoiser: Any) -> None:
    if not isinstance(denoiser, Denoiser):
        raise OptionError(
            f"denoiser is {type(denoiser).__name__}, not a Denoiser: wrap a plain callable with "
            "samplers.TokenDenoiser.wrap(fn, vocab_size=..., mask_id=...)"
        )
    if not isinstance(denoiser, TokenDenoiser) or denoiser.family != "masked":
        raise FamilyError(
            f"nll scores tokens by masking them, and denoiser {denoiser.name!r} is of the {denoiser.family} family; "
            "a denoiser of the masked family is needed"
        )


def _rows(denoiser: TokenDenoiser, x: Any, prompt: Any, fill: Any) -> tuple[Tensor, Tensor, Tensor]:
    """x (B, L) int64, each row's length (B,), and what to score (B, L) bool, all on the CPU."""
    rows = token_rows("nll: x", x)
    x = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=PAD)  # (B, L)
    if not x.numel():
        raise OptionError(f"nll: x has shape {tuple(x.shape)}: there are no tokens in it")
    real = x != PAD
    lengths = real.sum(1)  # (B,)
    position = torch.arange(x.shape[1], device="cpu")
    if bool((real != (position < lengths[:, None])).any()):
        row, where = ((position < lengths[:, None]) & ~real).nonzero()[0].tolist()
        raise OptionError(f"nll: row {row} has padding ({PAD}) at position {where}, before its end")
    if denoiser.length is not None and (bad := (lengths != denoiser.length).nonzero().flatten().tolist()):
        raise OptionError(
            f"nll: row {bad[0]} has {int(lengths[bad[0]])} tokens; denoiser {denoiser.name!r} takes {denoiser.length}"
        )
    check_room("nll", lengths.tolist(), denoiser)
    check_tokens("nll: x", x, denoiser, real, "; whole texts are scored, without masks")
    if fill is not None:
        if prompt is not None:
            raise OptionError("nll: give prompt or fill, not both")
        where_to = bool_rows("nll: fill", fill)
        if len(where_to) == 1 and len(where_to[0]) == x.shape[1]:
            where_to = where_to * len(x)
        if [len(f) for f in where_to] not in ([len(r) for r in rows], [x.shape[1]] * len(x)):
            raise OptionError(
                f"nll: fill has rows of {shown([len(f) for f in where_to])} positions, and x of {shown([len(r) for r in rows])}; "
                f"the same, or bools of shape {tuple(x.shape[1:])}, are needed"
            )
        fill = torch.nn.utils.rnn.pad_sequence(where_to, batch_first=True, padding_value=False)
    else:
        needed = f"a length, or one per row ({len(x)} of them), 0 or more, is needed"
        given = integers("nll: prompt", 0 if prompt is None else prompt, needed)
        if given.shape not in ((), (len(x),)) or bool((given < 0).any()):
            raise OptionError(f"nll: prompt is {shown(prompt)}; {needed}")
        fill = position >= given.expand(len(x))[:, None]
    fill = fill & real
    for row in (~fill.any(1)).nonzero().flatten().tolist():
        raise OptionError(f"nll: row {row} has no position to score")
    for row, place in (fill & (x >= denoiser.vocab_size)).nonzero().tolist():
        raise OptionError(
            f"nll: row {row}, position {place} is {int(x[row, place])}, the id of an embedding, which cannot be scored: let "
            "prompt= or fill= leave it out"
        )
    return x, lengths, fill


@contextmanager
def _bar(show: bool, name: str, total: int) -> Iterator[Any]:
    """A callable to call after each forward pass."""
    if not show:
        yield lambda: None
        return
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("[bold]{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("forward passes"))
    with Progress(*columns, TimeRemainingColumn()) as bar:
        task = bar.add_task(name, total=total)
        yield lambda: bar.advance(task)
