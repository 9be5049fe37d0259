"""Models of Bayesian flows: what a network predicts of the data, given the input distribution.

Any callable becomes one in a line:

    DiscreteFlow.wrap(fn, shape=256, classes=27, beta_1=0.75**2)      # fn(theta (B, 256, 27), u (B,)) -> logits
    ContinuousFlow.wrap(fn, shape=(3, 32, 32), sigma_1=1e-3)          # fn(mu (B, 3, 32, 32), u (B,)) -> the noise

Networks that were published with the paper are called in another way, with published=True: see `wrap`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from samplers import Denoiser
from samplers.authoring import OptionError, Point
from samplers.errors import DenoiserError

from .schedules import ContinuousSchedule, DiscreteSchedule, FlowSchedule

__all__ = ["ContinuousFlow", "DiscreteFlow", "FlowDenoiser", "token_moments"]


class FlowDenoiser(Denoiser):
    """Base of both kinds.

    Attributes:
        kind: "continuous" or "discrete".
        shape: the shape of one x: that of the data, or (L, K) for the logits of L tokens of K classes.
        schedule: its FlowSchedule.
        dtype: what the network gets. A run's state is float64 if this is float64, else float32.
    """

    family = "bayesian_flow"
    time_conditioned = True
    kind: str
    shape: tuple[int, ...]
    schedule: FlowSchedule
    dtype: torch.dtype = torch.float32

    @property
    def state_dtype(self) -> torch.dtype:
        """The dtype of a run's state: at least float32."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def row_bytes(self) -> int:
        """Bytes that a run needs for a row at least: x, and what the network answers."""
        return 2 * math.prod(self.shape) * self.state_dtype.itemsize

    def predict(self, x: Tensor, u: Tensor) -> Tensor:
        """What the network predicts. Subclasses write it; each kind says what it is.

        Args:
            x: (B, *shape), of `state_dtype`.
            u: (B,) float64, the flow's time: 0 nothing is known, 1 the end.
        """
        raise NotImplementedError

    def answer(self, x: Tensor, at: Point) -> Tensor:
        """What `predict` says of every row at a point of the schedule, checked."""
        out = self.predict(x, torch.full((len(x),), 1 - at.t, dtype=torch.float64, device=x.device))
        _check_answer(self, out, x.shape)
        return out

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name!r}: {self.kind}, shape {self.shape}>"


class ContinuousFlow(FlowDenoiser):
    """A model of real numbers: x is the mean mu of the input distribution.

    A subclass's `predict` gives E[x_0 | mu], (B, *shape).
    """

    kind = "continuous"
    schedule: ContinuousSchedule

    @staticmethod
    def wrap(
        fn: Callable[..., Tensor],
        *,
        shape: Sequence[int] | int,
        sigma_1: float = 1e-3,
        prediction: str = "epsilon",
        bins: int | None = None,
        clip: float | None = 1.0,
        published: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        name: str | None = None,
    ) -> ContinuousFlow:
        """A model of a network of real numbers.

        With g = 1 - sigma_1^(2u) and z what fn returns, the data x_0 is
            epsilon  mu / g - sqrt((1 - g) / g) z        as the paper's networks do
            x0       z
            bins     the mean of discretised data: z holds the noise's mean and the log of its standard deviation in its last
                     dimension, which make a Gaussian of x_0; its mass in each of `bins` equal bins of [-1, 1], what is outside
                     counting to the last ones, weighs the bin's middle (section 5).

        Args:
            fn: fn(mu (B, *shape), u (B,)) -> (B, *shape), or (B, *shape, 2) for "bins".
            shape: the sizes of one sample.
            sigma_1: the square root of what published networks call min_variance: 1e-3 for 256 grey levels.
            clip: x_0 is clipped to this absolute value, 1 as published; None: it is not.
            published: call fn as the code of Graves et al. calls its networks: fn(mu, u) with a u for every number, (B, *shape),
                and an answer of any shape of as many numbers, such as (B, n, channels, 1).
            dtype: what mu and u are when fn gets them.

        Raises:
            OptionError: an unknown prediction, bins where there are none, a shape that is none.
            DenoiserError: (when called) an answer of another shape.
        """
        if prediction not in ("epsilon", "x0", "bins"):
            raise OptionError(f"unknown prediction {prediction!r}. Known: epsilon, x0, bins")
        whole = isinstance(bins, int) and not isinstance(bins, bool)
        if (prediction == "bins") != (bins is not None) or (bins is not None and (not whole or bins < 2)):
            raise OptionError(
                f"bins={bins!r} with prediction={prediction!r}: only prediction='bins' takes bins=, an integer of 2 or more"
            )
        if clip is not None and (isinstance(clip, bool) or not isinstance(clip, (int, float)) or not clip > 0):
            raise OptionError(f"clip must be a positive number or None, not {clip!r}")
        out = _WrappedContinuous()
        out.shape, out.schedule = _sizes(shape), ContinuousSchedule(sigma_1)
        out.prediction, out.bins, out.clip = prediction, bins, clip
        return _finish(out, fn, published, dtype, device, name)


class _WrappedContinuous(ContinuousFlow):
    fn: Callable[..., Tensor]
    published: bool
    prediction: str
    bins: int | None
    clip: float | None

    def predict(self, x: Tensor, u: Tensor) -> Tensor:
        parts = 2 if self.prediction == "bins" else 1
        shape = (*x.shape, 2) if parts == 2 else x.shape
        z = _called(self, x, u, self.shape, shape).to(x.dtype)
        # All rows are at one time, so the factors are numbers, made in float64.
        left = self.schedule.sigma_1 ** (2 * float(u[0])) if len(u) else 1.0
        by = math.sqrt(left / (1 - left)) if left < 1 else 0.0
        of_x = 1 / (1 - left) if left < 1 else 0.0
        if self.prediction == "x0":
            x0 = z
        elif self.bins is None:
            x0 = of_x * x - by * z
        else:
            x0 = _mean_of_bins(of_x * x - by * z[..., 0], by * z[..., 1].exp(), self.bins)
        return x0 if self.clip is None else x0.clamp(-self.clip, self.clip)


def _mean_of_bins(mean: Tensor, deviation: Tensor, bins: int) -> Tensor:
    """The mean of the bins' middles, weighed by the Gaussian's mass in each: the last middle, less a width for every inner edge
    times the mass below it."""
    width = 2 / bins
    out = torch.full_like(mean, 1 - width / 2)
    for k in range(1, bins):
        out = out - width * torch.special.ndtr((k * width - 1 - mean) / deviation)
    return out


class DiscreteFlow(FlowDenoiser):
    """A model of tokens. x holds the logits of the input distribution, (B, L, K); theta is their softmax over K.

    A subclass's `predict` gives logits of the clean tokens, (B, L, K), such as log-probabilities.
    """

    kind = "discrete"
    schedule: DiscreteSchedule

    @property
    def classes(self) -> int:
        """K."""
        return self.shape[1]

    def probabilities(self, x: Tensor, at: Point) -> Tensor:
        """What the network predicts of each token: (B, L, K) float64, sums of 1."""
        return self.answer(x, at).to(torch.float64).softmax(-1)

    @staticmethod
    def wrap(
        fn: Callable[..., Tensor],
        *,
        shape: Sequence[int] | int,
        classes: int,
        beta_1: float,
        published: bool = False,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        name: str | None = None,
    ) -> DiscreteFlow:
        """A model of a network of tokens.

        Args:
            fn: fn(theta (B, *shape, K), u (B,)) -> logits (B, *shape, K). theta is the input distribution, u the flow's time.
            shape: the sizes of the data: 256 for a text of 256 tokens, (28, 28, 1) for pictures. A run's tokens are (B, L), L the
                product of the sizes.
            classes: K.
            beta_1: the accuracy at the end; published networks give its root, max_sqrt_beta (text8: 0.75, MNIST: 3).
            published: call fn as the code of Graves et al. calls its networks: u is given for every token, (B, *shape), and
                logits of any shape of as many numbers are taken, such as (B, L, K). With K = 2 the network is given one number
                per token, 2 theta_0 - 1 in (B, *shape), and answers with one logit, that of token 1. (With more classes these
                networks do 2 theta - 1 themselves.)
            dtype: what theta and u are when fn gets them.

        Raises:
            OptionError: a shape, or a number of classes, that is none.
            DenoiserError: (when called) an answer of another shape.
        """
        out = _WrappedDiscrete()
        out.schedule = DiscreteSchedule(classes, beta_1)
        out.data_shape = _sizes(shape)
        out.shape = (math.prod(out.data_shape), classes)
        return _finish(out, fn, published, dtype, device, name)


class _WrappedDiscrete(DiscreteFlow):
    fn: Callable[..., Tensor]
    published: bool
    data_shape: tuple[int, ...]

    def predict(self, x: Tensor, u: Tensor) -> Tensor:
        theta = x.softmax(-1)
        if self.published and self.classes == 2:
            single = 2 * theta[..., 0].reshape(len(x), *self.data_shape) - 1
            logit = _called(self, single, u, self.data_shape, x.shape[:2])
            return torch.stack([torch.zeros_like(logit), logit], -1)
        theta = theta.reshape(len(x), *self.data_shape, self.classes)
        logits = _called(self, theta, u, self.data_shape, x.shape if self.published else theta.shape)
        return logits.reshape(x.shape)


def _called(flow: Any, x: Tensor, u: Tensor, each: tuple[int, ...], shape: Sequence[int]) -> Tensor:
    """What the network answers, of the given shape. It gets copies: a network may write into what it is given."""
    times = u.to(flow.dtype)
    if flow.published:
        times = times.reshape(-1, *(1,) * len(each)).expand(-1, *each).contiguous()
    out = flow.fn(x.to(flow.dtype, copy=True), times)
    if flow.published and isinstance(out, Tensor) and out.numel() == math.prod(shape):
        out = out.reshape(tuple(shape))
    _check_answer(flow, out, shape)
    return out


def _check_answer(flow: FlowDenoiser, out: Any, shape: Sequence[int]) -> None:
    if not isinstance(out, Tensor) or not out.is_floating_point():
        got = out.dtype if isinstance(out, Tensor) else type(out).__name__
        raise DenoiserError(f"denoiser {flow.name!r} returned {got}; a tensor of real floating numbers is needed")
    if tuple(out.shape) != tuple(shape):
        raise DenoiserError(f"denoiser {flow.name!r} returned shape {tuple(out.shape)}; {tuple(shape)} is needed")


def _sizes(shape: Sequence[int] | int) -> tuple[int, ...]:
    sizes = tuple(shape) if isinstance(shape, (tuple, list, torch.Size)) else (shape,)
    if not sizes or not all(isinstance(n, int) and not isinstance(n, bool) and n > 0 for n in sizes):
        raise OptionError(f"shape must be the sizes of one sample, such as 256 or (28, 28, 1), not {shape!r}")
    return sizes


def _finish(
    out: Any, fn: Any, published: bool, dtype: torch.dtype, device: torch.device | str, name: str | None
) -> Any:
    """Set what both kinds of wrapped networks have."""
    if not callable(fn):
        raise OptionError(f"{type(out).__bases__[0].__name__}.wrap takes a callable fn(x, u), not {type(fn).__name__}")
    try:
        device = torch.device(device)
    except RuntimeError as error:
        raise OptionError(
            f"device={device!r}: torch knows no such device; 'cpu', 'cuda' and 'cuda:0' are some that it knows"
        ) from error
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise OptionError(f"dtype must be a floating torch.dtype such as torch.float32, not {dtype!r}")
    out.fn, out.published, out.dtype, out.device = fn, bool(published), dtype, device
    out.name = str(name or getattr(fn, "__name__", type(fn).__name__))
    return out


def token_moments(x: Tensor, classes: int) -> tuple[Tensor, float]:
    """What `sample(start_moments=...)` needs for the "optimal" start of Xue et al. 2024 of a discrete flow, from data.

    Args:
        x: (n, L) int64, tokens of the training data. classes: K.

    Returns:
        The mean of the one-hot tokens, (L, K) float64, and the mean variance of its entries.
    """
    if (
        not isinstance(x, Tensor)
        or x.dim() != 2
        or x.dtype != torch.int64
        or not len(x)
        or int(x.min()) < 0
        or int(x.max()) >= classes
    ):
        raise OptionError(f"token_moments takes tokens (n, L) int64 from 0 to classes - 1 = {classes - 1}")
    mean = torch.stack([(x == k).to(torch.float64).mean(0) for k in range(classes)], 1)  # (L, K)
    return mean, float((mean * (1 - mean)).mean())
