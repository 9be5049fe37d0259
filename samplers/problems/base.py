"""What every exact problem shares: Problem, Score, Estimate, checks of inputs, and exact sums.

About the sums: what a denoiser returns for a row must not depend on the batch that the row is in, bit for bit, or a
sampler's draws would change with the batch. BLAS adds in an order that depends on shapes, so its last bits change. If a sum
of products is needed here, one factor is a matrix of small integers (a one-hot, grey levels), and the other is rounded to
a grid so coarse that every partial sum is a float64 without error: then all orders of summation agree. (The splitting
of Ozaki, Ogita, Oishi and Rump, "Error-free transformations of matrix multiplication", 2012.)
"""

from __future__ import annotations

import functools
import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeGuard

import numpy as np
import torch
from torch import Tensor

from .. import registry
from ..denoiser import Denoiser, TokenDenoiser, as_canvases
from ..errors import FamilyError, OptionError, PluginError, did_you_mean, unknown_option
from ..family import BUILT_IN, family_names, family_of
from ..random import uniform
from .pictures import strip, text_block

__all__ = ["Estimate", "ExactTokens", "Problem", "Score"]

Z95 = 1.959963984540054  # the normal quantile of a two-sided 95 % interval

# Steps of `uniform` that sample_truth uses. A sampler's steps count from 0 and would meet these only after 2^31 of
# them, so exact samples of a seed share no draw with a sampler of the same seed.
TRUTH_STEP = 1 << 31

RULED_OUT = 1e6  # nats by which evidence speaks against a token that it rules out


# ---------------------------------------------------------------------------------------------- scores


@dataclass(frozen=True)
class Estimate:
    """One number of a score, with what is known of its error.

    Attributes:
        value: the estimate.
        low, high: its 95 % interval.
        n: the samples it is made from.
        better: "lower" or "higher".
        truth: what exact samples give; for a distance with a floor, the floor at this n. None if not known.
    """

    value: float
    low: float
    high: float
    n: int
    better: Literal["lower", "higher"] = "lower"
    truth: float | None = None

    def __str__(self) -> str:
        truth = "" if self.truth is None else f", exact samples {self.truth:.4g}"
        return f"{self.value:.4g} [{self.low:.4g}, {self.high:.4g}]{truth}"


class Score(Mapping[str, Estimate]):
    """Distances of a sample to the truth, by name.

    Attributes:
        problem, family: what was scored.
        primary: the metric that plots use.
        extras: plain numbers that have no interval of their own (a p-value).
    """

    def __init__(
        self,
        estimates: Mapping[str, Estimate],
        *,
        problem: str,
        family: str,
        primary: str,
        extras: Mapping[str, float] | None = None,
    ):
        self._estimates = dict(estimates)
        self.problem, self.family, self.primary = problem, family, primary
        self.extras = dict(extras or {})

    def __getitem__(self, key: str) -> Estimate:
        return self._estimates[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._estimates)

    def __len__(self) -> int:
        return len(self._estimates)

    def to_dict(self) -> dict[str, Any]:
        """Only dicts, strings and numbers, ready for JSON; a number that is not finite becomes None."""

        def plain(value: Any) -> Any:
            return None if isinstance(value, float) and not math.isfinite(value) else value

        return {
            "problem": self.problem,
            "family": self.family,
            "primary": self.primary,
            "estimates": {name: {k: plain(v) for k, v in asdict(e).items()} for name, e in self.items()},
            "extras": {name: plain(v) for name, v in self.extras.items()},
        }

    def __str__(self) -> str:
        n = next(iter(self._estimates.values())).n if self._estimates else 0
        width = max([len(k) for k in (*self._estimates, *self.extras)], default=0) + 1
        lines = [f"{self.problem} ({self.family}), {n} samples, 95 % intervals"]
        lines.append(f"  {'metric':<{width}} {'value':>10} {'low':>10} {'high':>10} {'exact':>10}  better")
        for name, e in self.items():
            exact = "" if e.truth is None else f"{e.truth:.4g}"
            mark = "*" if name == self.primary else ""
            lines.append(
                f"  {name + mark:<{width}} {e.value:>10.4g} {e.low:>10.4g} {e.high:>10.4g} {exact:>10}  {e.better}"
            )
        lines += [f"  {name:<{width}} {value:>10.4g}" for name, value in self.extras.items()]
        return "\n".join(lines)

    def __repr__(self) -> str:
        return f"<Score of {self.problem} ({self.family}): " + "; ".join(f"{k} {e}" for k, e in self.items()) + ">"


def wilson(count: int, n: int, *, truth: float | None = None) -> Estimate:
    """A share with Wilson's interval (E. B. Wilson 1927), which stays inside [0, 1] and has width at 0 and 1."""
    z2 = Z95**2
    p = count / n
    middle = (p + z2 / (2 * n)) / (1 + z2 / n)
    half = Z95 / (1 + z2 / n) * math.sqrt(p * (1 - p) / n + z2 / (4 * n**2))
    # At the ends the bound is exactly 0 or 1; rounding must not put it a hair inside.
    low = 0.0 if count == 0 else max(0.0, middle - half)
    high = 1.0 if count == n else min(1.0, middle + half)
    return Estimate(p, low, high, n, "lower", truth)


def mean_estimate(
    values: Tensor, *, truth: float | None = None, better: Literal["lower", "higher"] = "lower"
) -> Estimate:
    """The mean of independent values (n,) with Student's interval; of a single value the interval is all numbers."""
    from scipy.stats import t as student

    n = len(values)
    mean = float(values.mean())
    half = float(student.ppf(0.975, n - 1)) * float(values.std()) / math.sqrt(n) if n > 1 else math.inf
    return Estimate(mean, mean - half, mean + half, n, better, truth)


def kernel_estimate(pairs: Tensor, to_exact: Tensor, exact: float, diagonal: float, *, scale: float = 1.0) -> Estimate:
    """The squared kernel distance between a sample and a distribution whose kernel means are known exactly.

    V = mean_ij k(x_i, x_j) - 2 mean_i E_Y k(x_i, Y) + E_YY' k(Y, Y'), never negative for a kernel k that is
    (conditionally) positive definite. No exact samples are drawn, so none of its error is theirs. Exact samples x have
    E V = (E k(Y, Y) - E k(Y, Y')) / n, the floor given as `truth`. The interval is the jackknife's to first order.

    Args:
        pairs: (n, n) k(x_i, x_j).
        to_exact: (n,) E_Y k(x_i, Y).
        exact: E k(Y, Y').
        diagonal: E k(Y, Y).
        scale: divides everything.
    """
    n = len(to_exact)
    row_means = pairs.mean(1)  # (n,)
    value = float(row_means.mean() - 2 * to_exact.mean()) + exact
    # V is quadratic in the empirical distribution: the influence of one sample is twice its row mean less its distance
    # to the exact distribution.
    half = Z95 * 2 * float((row_means - to_exact).std()) / math.sqrt(n) if n > 1 else math.inf
    low, high = max(0.0, value - half), value + half
    return Estimate(value / scale, low / scale, high / scale, n, "lower", (diagonal - exact) / n / scale)


def entropy_of_tokens(x: Tensor, vocab: int, truth: float) -> Estimate:
    """Entropy in nats of the tokens' frequencies over all positions, with a delta-method interval over rows.

    Rows are independent, positions in a row are not: the interval treats a row as one observation.
    """
    counts = torch.zeros(len(x), vocab, dtype=torch.float64, device="cpu").scatter_add_(
        1, x, torch.ones_like(x, dtype=torch.float64)
    )
    freq = counts.mean(0) / x.shape[1]  # (V,)
    surprise = torch.where(freq > 0, -freq.clamp_min(1e-300).log(), 0.0)  # (V,)
    value = float((freq * surprise).sum())
    per_row = counts @ surprise / x.shape[1]  # (n,)
    half = mean_estimate(per_row).high - float(per_row.mean())
    return Estimate(value, value - half, value + half, len(x), "higher", truth)


# ---------------------------------------------------------------------------------------------- metrics


def collisions(problem: Any, x: Tensor, family: str) -> Estimate:
    """How often two samples are equal: a sampler that makes the same few things again and again has many collisions.

    Rows 2i and 2i + 1 make a pair, and no row is in two pairs, so pairs are independent and the interval is Wilson's. Exact
    samples collide with probability sum p(x)^2, which few problems know: `truth` is None.

    Args:
        x: (n, L) int64 or (n, *shape) reals, n >= 2; an odd row is left out.
    """
    pairs = len(x) // 2
    if not pairs:
        raise OptionError("metric 'collisions' compares samples in pairs: 2 or more are needed, not 1")
    even, odd = x[: 2 * pairs : 2].flatten(1), x[1 : 2 * pairs : 2].flatten(1)  # (pairs, D) each
    return wilson(int((even == odd).all(1).sum()), pairs)


def measured(problem: Any, x: Tensor, family: str, name: str) -> dict[str, Estimate]:
    """What the registered metric called `name` says: an estimate under that name, and others that it returns beside it.

    Args:
        x: (n, L) int64 or (n, *shape) reals, on the CPU.

    Raises:
        UnknownNameError: there is no such metric. PluginError: it raises something, or returns something else.
    """
    item = registry.entry(name, "metrics")
    metric = item.load()
    if item.own:
        said = metric(problem, x, family)
    else:
        try:
            said = registry.guarded(metric, problem, x.clone(), family)  # it may write into them
        except PluginError as error:
            raise PluginError(f"metric {name!r} of {item.origin} raises {error}") from error
    found = said if isinstance(said, dict) else {item.name: said}
    if item.name not in found:
        raise PluginError(
            f"metric {name!r} of {item.origin} returned no {item.name!r}; one of its estimates must have its name"
        )
    found = {name if key == item.name else key: estimate for key, estimate in found.items()}
    for key, estimate in found.items():
        if not isinstance(key, str) or not isinstance(estimate, Estimate):
            raise PluginError(
                f"metric {name!r} of {item.origin} returned {key!r}: {type(estimate).__name__}; a samplers.problems.Estimate "
                "is needed, or a dict of them by name"
            )
        for part in ("value", "low", "high", "n"):
            number = getattr(estimate, part)
            if isinstance(number, bool) or not isinstance(number, (int, float)):
                raise PluginError(
                    f"metric {name!r} of {item.origin} returned {key!r} with {part}={number!r}, which is no plain number: "
                    f"float() makes one"
                )
        if estimate.better not in ("lower", "higher"):
            raise PluginError(
                f"metric {name!r} of {item.origin} returned {key!r} with better={estimate.better!r}; 'lower' or 'higher' is "
                "needed"
            )
    return found


# ---------------------------------------------------------------------------------------------- problems


def check_options(make: Callable[..., Any], options: Mapping[str, Any], who: str) -> None:
    """OptionError for the first of `options` that `make` has no parameter for."""
    known = list(inspect.signature(make).parameters)
    for option in options:
        if option not in known:
            raise unknown_option(who, option, known)


class Problem:
    """A distribution that is known exactly, its denoisers, and the distance of samples to it.

    Attributes:
        name: as `create` knows it.
        families: the kinds of noise it has denoisers for; the first is the default.
        summary: one line.
        length: the canvas length L of token families, or None.
        primary: per family the metric that plots use; lower is better.
        settings: arguments of sample() that a benchmark gives beside its own, such as a prompt.
        kind: what joins its positions, for tables: "waiting line" (lists), "puzzle", "chain", "global" (a rule on the whole row),
            or "" if it is none of these.
        figure_columns: how many of its figures fit beside each other in a page.
        figure_rows: how many exact samples a figure of the truth needs.
        figure_note: what a reader must know to read the figures.
    """

    name: str
    families: tuple[str, ...]
    summary: str
    length: int | None = None
    primary: dict[str, str]
    settings: Mapping[str, Any] = {}
    kind: str = ""
    figure_columns: int = 2
    figure_rows: int = 8
    figure_note: str = ""

    @property
    def tokens(self) -> int | None:
        """How many clean tokens its token families have: 0 to tokens - 1; None if it has reals only."""
        return None

    def denoiser(self, family: str | None = None, **kw: Any) -> Denoiser:
        """The exact denoiser of `family` (default: the first of `families`); of another family, what that has for this problem.

        Raises:
            FamilyError: the problem has no such family.
            OptionError: an option that this denoiser does not have.
        """
        if self._is_foreign(family):
            return family_of(family).of_problem(self, **kw)
        family = self._family(family)
        make: Callable[..., Denoiser] = getattr(self, f"_{family}")
        check_options(make, kw, f"the {family} denoiser of problem {self.name!r}")
        if (item := registry.origin_of(self)) is None:
            return make(**kw)
        who = f"the {family} denoiser of problem {self.name!r} of {item.origin}"
        denoiser = registry.called(item, make, kw, f"{who} cannot be made:")
        if not isinstance(denoiser, Denoiser):
            raise PluginError(f"{who} is {type(denoiser).__name__}, not a Denoiser")
        return denoiser

    def score(self, sample: Any, family: str | None = None, metrics: Sequence[str] = ()) -> Score:
        """The distance of a sample to the truth.

        Args:
            sample: a tensor x, or any object that has one as `.x`; tokens (n, L) int64, reals (n, *shape).
            family: what x is a sample of; by default told by its dtype (integers: the first token family), as for a family
                of another package.
            metrics: names of registered metrics (the hook register_metrics) that are added to the problem's own.

        Raises:
            UnknownNameError: no such metric. PluginError: a metric of a plug-in that is broken, or returns no Estimate.
            FamilyError: no such family. OptionError: x has a wrong shape, is empty, or holds a token that is out of
            range.
        """
        x = sample if isinstance(sample, Tensor) else getattr(sample, "x", None)
        if not isinstance(x, Tensor):
            raise OptionError(f"score takes a tensor or an object with a tensor .x, not {type(sample).__name__}")
        of = family
        if family is None or self._is_foreign(family):
            # Reals of a problem that also has tokens can only be its gaussian samples.
            family = "gaussian" if x.is_floating_point() and "gaussian" in self.families else self.families[0]
        family = self._family(family)
        if x.dim() == 0 or len(x) == 0:
            raise OptionError(f"problem {self.name!r}: x of shape {tuple(x.shape)} has no samples to score")
        if isinstance(metrics, str) or not isinstance(metrics, Sequence):
            raise OptionError(f"metrics must be a list of names, such as ['collisions'], not {metrics!r}")
        x = x.detach().cpu()
        score = self._score(x, family)
        more: dict[str, Estimate] = {}
        for name in metrics:
            said = measured(self, x, of or family, name)
            if not registry.entry(name, "metrics").own and (clash := sorted(said.keys() & score.keys())):
                raise PluginError(
                    f"metric {name!r}: problem {self.name!r} has {clash[0]!r} of its own; register it under another name"
                )
            more |= said
        if more:  # what the problem itself says of a name of ours holds
            added = {**score, **{k: v for k, v in more.items() if k not in score}}
            score = Score(added, problem=score.problem, family=family, primary=score.primary, extras=score.extras)
        score.family = of or family
        return score

    def sample_truth(self, n: int, seed: int = 0, family: str | None = None) -> Tensor:
        """n exact samples, deterministic in `seed`: tokens (n, L) int64, or reals for the gaussian family."""
        if self._is_foreign(family):
            family = family_of(family).scored_as(self)
        family = self._family(family)
        if n < 1:
            raise OptionError(f"sample_truth: n must be 1 or more, not {n}")
        return self._sample_truth(n, seed, family)

    def token_posterior(self, evidence: Tensor) -> Tensor:
        """p(x_0,i = v | evidence), exact, for evidence that weighs every token at every position; the same in every batch.

        x_0 weighs p(x_0) exp(sum_i evidence[i, x_0,i]): evidence is the log-likelihood of what was seen of position i if the
        token there is v, up to a constant for each position. Zeros say nothing. -inf rules a token out (and counts as 1e6
        nats, so that evidence that rules out everything still leaves what it contradicts least).

        Args:
            evidence: (B, L, tokens) floats.

        Returns:
            (B, L, tokens) float64, sums of 1 over the last dimension.

        Raises:
            FamilyError: the problem has reals only.
            OptionError: a wrong shape or dtype, NaN or +inf, or a position at which every token is ruled out.
        """
        return self._exact_tokens.posterior_given(evidence)

    @functools.cached_property
    def _exact_tokens(self) -> ExactTokens:
        made = self.denoiser("masked") if "masked" in self.families else None
        if not isinstance(made, ExactTokens):
            raise FamilyError(
                f"problem {self.name!r} has no exact distribution of tokens: token_posterior is of sudoku4, digits, text and "
                "other problems of tokens"
            )
        return made

    def picture(self, x: Tensor, k: int = 8) -> list[np.ndarray]:
        """Small pictures of the first k rows (or one of all rows), uint8 (H, W) or (H, W, 3); [] if there is none."""
        return []

    def figure(self, x: Tensor, truth: Tensor, k: int | None = None) -> str:
        """The first rows of x as an HTML element: pictures if the problem has some, else tokens as text, else ''.

        Args:
            truth: exact samples, for a problem that shows x against them.
            k: how many rows; None: as many as a narrow column holds.
        """
        if pictures := self.picture(x, k or 5):
            return strip(pictures)
        return "" if x.is_floating_point() else text_block([self.render(row) for row in x[:2]])

    def render(self, x_row: Tensor) -> str:
        """One row for a terminal. Unless a problem has a form of its own, its numbers, one after the other."""
        return " ".join(f"{v:.3g}" if isinstance(v, float) else str(v) for v in x_row.flatten().tolist())

    def _score(self, x: Tensor, family: str) -> Score:
        raise NotImplementedError

    def _sample_truth(self, n: int, seed: int, family: str) -> Tensor:
        raise NotImplementedError

    def _is_foreign(self, family: str | None) -> TypeGuard[str]:
        """Whether it is a family of another package, which says itself what it has for this problem."""
        return family not in (None, *self.families, *BUILT_IN) and family in family_names()

    def _family(self, family: str | None) -> str:
        if family is None:
            return self.families[0]
        if family not in self.families:
            raise FamilyError(
                f"problem {self.name!r} has no {family!r} denoiser{did_you_mean(str(family), self.families)} "
                f"It has: {', '.join(self.families)}"
            )
        return family

    def __repr__(self) -> str:
        return f"<problem {self.name}: {self.summary}>"


# ---------------------------------------------------------------------------------------------- tokens


def check_tokens(x: Tensor, length: int, vocab: int, mask_id: int | None, who: str) -> None:
    """x must be (B, length) int64 with tokens in [0, vocab), or mask_id.

    Raises:
        OptionError: naming the shape, or the row and position of the first token that is out of range.
    """
    if not isinstance(x, Tensor) or x.dim() != 2 or x.shape[1] != length:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise OptionError(f"{who} takes x of shape (B, {length}), not {got}")
    if x.dtype != torch.int64:
        raise OptionError(f"{who} takes int64 tokens, not {x.dtype}")
    bad = (x < 0) | (x >= vocab)
    if mask_id is not None:
        bad &= x != mask_id
    if bool(bad.any()):
        row, position = (int(i) for i in bad.nonzero()[0])
        token = int(x[row, position])
        also = "" if mask_id is None else f" or the mask {mask_id}"
        masked = " (still masked)" if mask_id is None and token == vocab else ""
        raise OptionError(
            f"{who}: token {token}{masked} at row {row}, position {position} is out of range; "
            f"0 to {vocab - 1}{also} are known"
        )


def check_reals(x: Tensor, shape: Sequence[int], who: str) -> None:
    """x must be (B, *shape) of floats.

    Raises:
        OptionError: a wrong shape or dtype, or a number that is not finite, named by row.
    """
    if not isinstance(x, Tensor) or tuple(x.shape[1:]) != tuple(shape) or x.dim() != len(shape) + 1:
        got = tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__
        raise OptionError(f"{who} takes x of shape (B, {', '.join(map(str, shape))}), not {got}")
    if not x.is_floating_point():
        raise OptionError(f"{who} takes floating-point x, not {x.dtype}")
    finite = torch.isfinite(x).flatten(1).all(1)
    if not bool(finite.all()):
        raise OptionError(f"{who}: row {int((~finite).nonzero()[0])} holds a number that is not finite")


def per_position(t: Tensor, x: Tensor) -> Tensor:
    """Noise levels () or (B,), of whole rows, or (B, L) as (B, L) float64."""
    t = torch.as_tensor(t, dtype=torch.float64, device=x.device)
    return (t if t.dim() == 2 else t.reshape(-1, 1)).expand(x.shape)


class ExactTokens(TokenDenoiser):
    """Base of the exact token denoisers. Subclasses write `posterior`; this packs, takes logs, adds the mask's column.

    Attributes:
        tokens: how many clean tokens there are; vocab_size is one more when there is a mask, whose column is -inf.
    """

    length: int
    tokens: int

    def _noised(self, family: str) -> None:
        """Set what follows from the family, once `tokens` is there."""
        self.mask_id = self.tokens if family == "masked" else None
        self.vocab_size = self.tokens + (self.mask_id is not None)
        # Under uniform noise x does not show what is noise. Each position has its own level: a prompt has none.
        self.time_conditioned = self.time_per_position = family == "uniform"
        self.masks = family == "masked"

    def posterior(self, x: Tensor, t: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        """p(x_0,i = v | x_t) for all of `positions` (P,) int64 (None: all L): (B, P, tokens) float64, summing to 1.

        t: as of `predict`; None for masked noise.
        """
        raise NotImplementedError

    def posterior_given(self, evidence: Tensor) -> Tensor:
        """p(x_0,i = v | evidence): see Problem.token_posterior. (B, L, tokens) floats -> (B, L, tokens) float64."""
        who, shape = f"token_posterior of {self.name!r}", (self.length, self.tokens)
        if not isinstance(evidence, Tensor) or evidence.dim() != 3 or tuple(evidence.shape[1:]) != shape:
            got = tuple(evidence.shape) if isinstance(evidence, Tensor) else type(evidence).__name__
            raise OptionError(f"{who} takes evidence of shape (B, {shape[0]}, {shape[1]}), not {got}")
        if not evidence.is_floating_point():
            raise OptionError(f"{who} takes log-likelihoods in a floating dtype, not {evidence.dtype}")
        best = evidence.amax(2, keepdim=True)  # (B, L, 1); NaN if there is one
        bad = ~torch.isfinite(best).squeeze(2)
        if bool(bad.any()):
            row, position = (int(i) for i in bad.nonzero()[0])
            raise OptionError(
                f"{who}: evidence at row {row}, position {position} has a NaN or +inf, or rules out every token"
            )
        return self._posterior_given((evidence.to(torch.float64) - best.to(torch.float64)).clamp_min(-RULED_OUT))

    def _posterior_given(self, evidence: Tensor) -> Tensor:
        """The same of checked float64 evidence whose largest entry at every position is 0."""
        raise NotImplementedError

    def predict(
        self,
        x: Tensor,
        t: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        cache: Any = None,
        visible: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """Log-probabilities of the clean token, exact: (B, L, V) or, with `rows` (B, L) bool, packed (N, V). float32.

        Args:
            x: (B, L) int64. t: in [0, 1], the noise level, for uniform noise only: (B, L), 0 where a token is known to be
                clean; or (B,), one per row.
            visible, positions: masked noise: the sequence is x (B, n), and line i's answer is p(x_0 at positions[i] | the
                tokens that it sees); masks say nothing. Of a token that it sees at its own position it is sure.

        Raises:
            OptionError: a wrong shape, a token out of range (row and position named), t missing or out of [0, 1].
        """
        if visible is not None and positions is not None:
            return self._seen(x, rows, visible, positions)
        check_tokens(x, self.length, self.tokens, self.mask_id, f"denoiser {self.name!r}")
        if not self.time_conditioned:
            t = None
        elif t is None:
            raise OptionError(f"denoiser {self.name!r} needs t (B,) or (B, L), the noise level in (0, 1]")
        else:
            if isinstance(t, Tensor) and t.dim() and tuple(t.shape) not in ((len(x),), tuple(x.shape)):
                raise OptionError(
                    f"denoiser {self.name!r}: t of shape {tuple(t.shape)} for x of {tuple(x.shape)}; (B,) or (B, L) is needed"
                )
            t = per_position(t, x)
            if not bool(((t >= 0) & (t <= 1)).all()):
                raise OptionError(f"denoiser {self.name!r}: noise level t must be in [0, 1]")
        if rows is None:
            p = self.posterior(x, t).flatten(0, 1)  # (B L, tokens)
        elif rows.shape != x.shape:
            raise OptionError(f"denoiser {self.name!r}: rows of shape {tuple(rows.shape)} for x of {tuple(x.shape)}")
        else:
            # A row that is not needed at all costs nothing, and neither does a position that no row needs.
            live = rows.any(1).nonzero().squeeze(1)  # (b,)
            positions = rows.any(0).nonzero().squeeze(1)  # (P,)
            if len(live) == 0:
                return torch.empty(0, self.vocab_size, dtype=torch.float32, device=x.device)  # (0, V)
            p = self.posterior(x[live], None if t is None else t[live], positions)  # (b, P, tokens) float64
            p = p[rows[live][:, positions]]  # (N, tokens)
        logits = p.contiguous().log().to(torch.float32)
        if self.mask_id is not None:
            logits = torch.nn.functional.pad(logits, (0, 1), value=-math.inf)  # the mask can never be drawn
        return logits if rows is not None else logits.unflatten(0, tuple(x.shape))  # (N, V) or (B, L, V) float32

    def _seen(self, x: Tensor, rows: Tensor | None, visible: Tensor, positions: Tensor) -> Tensor:
        """`predict` of lines that see different tokens: each is a canvas, and equal canvases are worked out once."""
        assert self.mask_id is not None
        every = torch.ones_like(x, dtype=torch.bool) if rows is None else rows
        canvas, own = as_canvases(x, visible, positions, every, self.length, self.mask_id)  # (N, L) each
        different, which = canvas.unique(dim=0, return_inverse=True)
        asked = torch.zeros_like(different, dtype=torch.bool)
        asked.view(-1)[which * self.length + own.to(torch.uint8).argmax(1)] = True
        number = (asked.flatten().cumsum(0) - 1).view_as(asked)[which][own]  # (N,): which of the answers is each line's
        out = self.predict(different, rows=asked)[number]
        return out if rows is not None else out.unflatten(0, tuple(x.shape))


# ---------------------------------------------------------------------------------------------- exact sums


def on_grid(a: Tensor, bits: int) -> Tensor:
    """a rounded to multiples of 2^-bits."""
    return torch.round(a * 2.0**bits) * 2.0**-bits


def exact_matmul(a: Tensor, b: Tensor, *, slices: int = 1, largest: float = 1.0, unit: float = 1.0) -> Tensor:
    """a @ b for b of multiples of `unit` no larger than `largest`, with the same bits whatever the batch and the BLAS.

    Each row of a is cut into slices of so few bits that a slice's partial sums are all exact. One slice keeps
    53 - log2(K largest / unit) bits of the row's largest entry; the next keeps as many again. Differentiable in a.

    Args:
        a: (B, K) float64. b: (K, N) float64.
        largest, unit: powers of two.
    """
    bits = 53 - 1 - math.ceil(math.log2(a.shape[1] * largest / unit))
    out = None
    for _ in range(slices):
        _, exponent = torch.frexp(a.abs().amax(1, keepdim=True))  # (B, 1); exact, unlike a sum
        # What is left of a row may be subnormal, and a step of 2^(exponent - bits) then 0: such remains count as nothing.
        step = torch.ldexp(torch.ones_like(a[:, :1]), exponent.clamp_min(-900) - bits)  # (B, 1)
        part = torch.round(a / step) * step  # (B, K)
        if a.requires_grad:  # rounding has no slope: the first slice carries that of the whole product
            part = a + (part - a).detach()  # the same bits, since part - a is exact
        product = part @ b  # (B, N), without rounding
        out = product if out is None else out + product
        a = a - part
    assert out is not None
    return out


# ---------------------------------------------------------------------------------------------- exact draws


def truth_uniforms(n: int, seed: int, positions: int, draw: int = 0, step: int = 0) -> Tensor:
    """(n, positions) float64 in [0, 1) for exact samples; row i is the same whatever n."""
    row, position = torch.arange(n, device="cpu")[:, None], torch.arange(positions, device="cpu")[None]
    return uniform(seed, row, position, TRUTH_STEP + step, draw)


def truth_normals(n: int, seed: int, positions: int) -> Tensor:
    """(n, positions) float64 standard normals by Box-Muller, on the draws 2 and 3."""
    u, v = (truth_uniforms(n, seed, positions, draw) for draw in (2, 3))
    return torch.sqrt(-2 * torch.log(1 - u)) * torch.cos(2 * math.pi * v)


def gaussian_times(schedule: Any, t: Tensor | float, x: Tensor) -> tuple[Tensor, Tensor]:
    """alpha(t), sigma(t) as float64 (B, 1) on x's device. t: (B,) or a number."""
    t = t.cpu().double() if isinstance(t, Tensor) else torch.tensor(t, dtype=torch.float64, device="cpu")
    t = t.expand(len(x))
    alpha, sigma = schedule.alpha(t), schedule.sigma(t)
    return alpha[:, None].to(x.device), sigma[:, None].to(x.device)
