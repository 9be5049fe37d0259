"""The family of Bayesian flows: how its runs begin, what a sampler asks the model through, and exact models for problems."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from samplers import Denoiser, FamilyError, OptionError
from samplers.authoring import Family, FamilyPredictor, Given, NoiseCanvas, Point, Run, Sampler, first_state
from samplers.problems import Problem, create

from .denoisers import ContinuousFlow, DiscreteFlow, FlowDenoiser
from .schedules import ContinuousSchedule, DiscreteSchedule

__all__ = ["BayesianFlow", "FlowPredictor"]

SIGNAL = (
    24.0  # K beta_1 of exact models: the least of two tokens' logits is 24 apart in the mean, 3.5 standard deviations
)


class FlowPredictor(FamilyPredictor):
    """What a sampler asks the model through.

    Args:
        denoiser: the flow.
        rows: how many the batch has.
        bound: x_0 of real numbers is clipped to this absolute value; None: it is not.
    """

    def __init__(self, denoiser: FlowDenoiser, rows: int, bound: float | None = None, *, sampler: str):
        super().__init__(denoiser, rows, sampler=sampler)
        self.flow, self.bound = denoiser, bound

    def __call__(self, x: Tensor, at: Point) -> Tensor:
        """x_0 as the schedule means it, in the dtype of x: E[x_0] of reals, K p - 1 of tokens. One forward pass."""
        if isinstance(self.flow, DiscreteFlow):
            return self.as_data(self.probabilities(x, at))
        out = self._asked(lambda: self.flow.answer(x, at)).to(x.dtype)
        return out if self.bound is None else out.clamp(-self.bound, self.bound)

    def probabilities(self, x: Tensor, at: Point) -> Tensor:
        """What the model predicts of each token, (B, L, K) float64. One forward pass.

        Raises:
            OptionError: the model has real numbers.
        """
        flow = self.flow
        if not isinstance(flow, DiscreteFlow):
            raise OptionError(f"sampler {self.sampler!r} draws tokens, and denoiser {flow.name!r} has real numbers")
        return self._asked(lambda: flow.probabilities(x, at))

    def as_data(self, p: Tensor) -> Tensor:
        """K p - 1 in the dtype of the run's state, of probabilities or one-hot tokens p (B, L, K)."""
        return (p.shape[-1] * p - 1).to(self.flow.state_dtype)

    def _asked(self, call: Any) -> Tensor:
        out = self.ask(call, positions=self.flow.shape[0])
        self.check_finite(out)
        return out


class BayesianFlow(Family):
    """Bayesian flow networks, Graves et al. 2023, arXiv 2308.07037, for real numbers and for tokens."""

    name = "bayesian_flow"
    summary = "Bayesian flow networks, for real numbers and for tokens"
    default_sampler = "bfn"
    checks = ("samplers_bfn.checks",)

    def start(self, denoiser: Denoiser, sampler: Sampler[Any], given: Given) -> Run:
        """Beside batch, seed, first_row, steps (20) and constrain, runs take start_moments=(mean, variance), the moments of the
        data, so that the first x has the right ones ("optimal" in Xue et al. 2024), and, for real numbers, x0_bound.

        Of tokens the moments are those of the one-hot: the mean (L, K), and a variance for all entries: see token_moments.
        """
        if not isinstance(denoiser, FlowDenoiser):
            raise FamilyError(
                f"denoiser {denoiser.name!r} says that it is of the bayesian_flow family, and is neither a ContinuousFlow nor a "
                "DiscreteFlow of samplers_bfn"
            )
        rng, settings = given.rows(denoiser, denoiser.row_bytes)
        steps, constrain = given.steps(20), given.constrain()
        moments, bound = _moments(denoiser, given("start_moments")), _bound(denoiser, given("x0_bound"))
        given.refuse_the_rest(sampler)
        canvas = NoiseCanvas(denoiser, steps, rng, moments=moments)  # type: ignore[arg-type]
        predictor = FlowPredictor(denoiser, settings["batch"], bound, sampler=sampler.name)
        settings |= {"steps": steps, "x0_bound": bound, "start_moments": None if moments is None else "given"}
        return Run(sampler, predictor, first_state(sampler, canvas), steps + 1, settings, constrain=constrain)

    def supports(self, problem: Problem) -> bool:
        return problem.tokens is not None or "gaussian" in problem.families

    def of_problem(self, problem: Problem, **options: Any) -> FlowDenoiser:
        """The exact model of a problem.

        Args (as options):
            kind: "discrete" or "continuous"; None: tokens, if the problem has any.
            beta_1: the accuracy of tokens at the end; None: 24 / K.
            sigma_1: the last standard deviation of real numbers, 1e-3.
            dtype: the dtype of the run's state, float32.
        """
        return _of_problem(problem, **options)

    def scored_as(self, problem: Problem) -> str:
        return problem.families[0]

    def tiny(self, cls: type[Sampler[Any]], exact: bool = False) -> FlowDenoiser:
        """The exact model of two tokens of three classes, or of a mixture of Gaussians in two dimensions. float64."""
        if getattr(cls, "KIND", "discrete") == "continuous":
            return _of_problem(create("mixture", dim=2), dtype=torch.float64)
        return TinyTokens()


class TinyTokens(DiscreteFlow):
    """The exact model of a joint distribution of two tokens of three classes that depend on each other.

    Attributes:
        joint: (3, 3) float64, the probability of each pair.
    """

    name = "tiny tokens"
    dtype = torch.float64

    def __init__(self) -> None:
        self.schedule, self.shape = DiscreteSchedule(3, SIGNAL / 3), (2, 3)
        weights = torch.tensor([[4, 1, 2], [1, 5, 1], [3, 1, 6]], dtype=torch.float64, device="cpu")
        self.joint = weights / weights.sum()

    def predict(self, x: Tensor, u: Tensor) -> Tensor:
        """Log-probabilities. Pairs are added one after another: a matrix product could round differently in another batch."""
        x = x - x.amax(-1, keepdim=True)
        rows = [torch.zeros_like(x[:, 0, 0]) for _ in range(6)]
        for a, b in itertools.product(range(3), repeat=2):
            weight = self.joint[a, b] * (x[:, 0, a] + x[:, 1, b]).exp()
            rows[a], rows[3 + b] = rows[a] + weight, rows[3 + b] + weight
        return torch.stack(rows, 1).view(-1, 2, 3).clamp_min(1e-300).log()


class ExactTokens(DiscreteFlow):
    """The exact model of a problem's tokens: the logits z are the log-likelihood of what was measured of each token."""

    def __init__(self, problem: Problem, beta_1: float | None, dtype: torch.dtype):
        assert problem.tokens is not None and problem.length is not None
        self.problem, self.dtype, self.name = problem, dtype, f"{problem.name}/bayesian_flow"
        self.shape = (problem.length, problem.tokens)
        self.schedule = DiscreteSchedule(problem.tokens, SIGNAL / problem.tokens if beta_1 is None else beta_1)

    def predict(self, x: Tensor, u: Tensor) -> Tensor:
        """Log-probabilities, (B, L, K) float64."""
        return self.problem.token_posterior(x.to(torch.float64)).clamp_min(1e-300).log()


class ExactReals(ContinuousFlow):
    """The exact model of a problem's real numbers: that of Gaussian noise, on the flow's schedule."""

    def __init__(self, problem: Problem, sigma_1: float, dtype: torch.dtype):
        self.schedule, self.name, self.dtype = ContinuousSchedule(sigma_1), f"{problem.name}/bayesian_flow", dtype
        self.model = problem.denoiser("gaussian", schedule=self.schedule, dtype=dtype)
        self.shape = self.model.shape  # type: ignore[attr-defined]

    def predict(self, x: Tensor, u: Tensor) -> Tensor:
        """E[x_0 | mu], (B, *shape)."""
        return self.model.predict(x, 1 - u)  # type: ignore[attr-defined]


def _of_problem(
    problem: Problem,
    kind: str | None = None,
    beta_1: float | None = None,
    sigma_1: float = 1e-3,
    dtype: torch.dtype = torch.float32,
) -> FlowDenoiser:
    kind = ("continuous" if problem.tokens is None else "discrete") if kind is None else kind
    if kind not in ("continuous", "discrete"):
        raise OptionError(f"kind must be 'continuous' or 'discrete', not {kind!r}")
    if kind == "discrete" and problem.tokens is not None:
        return ExactTokens(problem, beta_1, dtype)
    if kind == "continuous" and "gaussian" in problem.families:
        return ExactReals(problem, sigma_1, dtype)
    raise FamilyError(f"family 'bayesian_flow' has no {kind} denoiser for problem {problem.name!r}")


def _moments(flow: FlowDenoiser, value: Any) -> tuple[Tensor, float] | None:
    """start_moments= as the mean of x_0, (*shape), and its variance per coordinate."""
    if value is None:
        return None
    who = f"start_moments of {flow.name!r} is (mean of the data {flow.shape}, its variance per coordinate, a number of 0 or more)"
    if not isinstance(value, (tuple, list)) or len(value) != 2:
        raise OptionError(f"{who}, not {type(value).__name__}")
    try:
        mean = torch.as_tensor(value[0], dtype=flow.state_dtype, device=flow.device)
        variance = float(value[1])
    except (TypeError, ValueError, RuntimeError) as error:
        raise OptionError(f"{who}: {error}") from error
    if (
        tuple(mean.shape) not in ((), flow.shape)
        or not bool(torch.isfinite(mean).all())
        or not 0 <= variance < float("inf")
    ):
        raise OptionError(f"{who}, not a mean {tuple(mean.shape)} and the variance {variance:g}")
    if isinstance(flow, DiscreteFlow):
        mean, variance = flow.classes * mean - 1, flow.classes**2 * variance
    return mean.expand(flow.shape), variance


def _bound(flow: FlowDenoiser, value: Any) -> float | None:
    if value is None:
        return None
    if flow.kind == "discrete":
        raise OptionError(f"x0_bound is for real numbers, and {flow.name!r} has tokens: leave it out")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise OptionError(f"x0_bound must be a positive number, the largest |x_0| that is let through, not {value!r}")
    return float(value)
