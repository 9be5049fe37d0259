"""Denoisers of real numbers: what a model predicts of x_0 given x_t = alpha x_0 + sigma e. Any callable becomes one in a line:

    samplers.GaussianDenoiser.wrap(fn, shape=(3, 32, 32), schedule="vp_linear", prediction="epsilon")   # fn(x, t)

The arithmetic around the model is done in the dtype of the run's state, which is float32 or float64; x and t reach the model
in the dtype of the denoiser.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..checks import device_of, integer, shown
from ..denoiser import Denoiser
from ..errors import DenoiserError, OptionError, did_you_mean
from ..noise_schedules import NoiseSchedule, Point, noise_schedule
from ..ops import combine
from ..random import Rng
from .moments import Moments, central, differentiated

__all__ = ["At", "GaussianDenoiser"]

PREDICTIONS = ("epsilon", "x0", "v", "flow", "score")
# What other libraries call them.
OTHERS = {"eps": "epsilon", "noise": "epsilon", "sample": "x0", "x_start": "x0", "denoised": "x0", "v_prediction": "v"}
OTHERS |= {"velocity": "flow", "flow_prediction": "flow"}


class At:
    """A time at which rows are evaluated, with its coefficients: floats for all rows, or (B,) float64 tensors, one per row.

    Attributes:
        t, alpha, sigma: x_t = alpha x_0 + sigma e at time t.
    """

    __slots__ = ("alpha", "sigma", "t")

    def __init__(self, t: float | Tensor, alpha: float | Tensor, sigma: float | Tensor):
        self.t, self.alpha, self.sigma = t, alpha, sigma

    @classmethod
    def of(cls, schedule: NoiseSchedule, at: At | Point | float | Tensor) -> At:
        """A point of the schedule; its time; or (B,) times, one for each row. (What is an At already stays as it is.)"""
        if isinstance(at, At):
            return at
        if isinstance(at, Tensor):
            t = at.to("cpu", torch.float64)
            return cls(t.to(at.device), schedule.alpha(t), schedule.sigma(t))
        point = at if isinstance(at, Point) else Point.at(schedule, t=at)
        return cls(point.t, point.alpha, point.sigma)

    def times(self, rows: int, device: torch.device) -> Tensor:
        """(rows,) float64 on `device`."""
        if isinstance(self.t, Tensor):
            return self.t.to(device)
        return torch.full((rows,), self.t, dtype=torch.float64, device=device)

    def scales(self, x: Tensor) -> tuple[Any, Any]:
        """alpha and sigma as factors of x: numbers, or tensors (B, 1, ...) of its dtype."""
        if not isinstance(self.alpha, Tensor):
            return self.alpha, self.sigma
        like = (-1,) + (1,) * (x.dim() - 1)
        assert isinstance(self.sigma, Tensor)
        return self.alpha.to(x).view(like), self.sigma.to(x).view(like)

    def columns(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma of each row of x, (B, 1) float64 on its device."""
        both = (torch.as_tensor(a, dtype=torch.float64, device=x.device) for a in (self.alpha, self.sigma))
        alpha, sigma = (a.expand(len(x))[:, None] for a in both)
        return alpha, sigma


class GaussianDenoiser(Denoiser):
    """Base of denoisers of x_t = alpha(t) x_0 + sigma(t) e. Subclasses set the attributes and write `predict`.

    A subclass that can be guided writes `unconditional` as well, of the same arguments. One that knows more of x_0 than its mean
    writes `moments`.

    Attributes:
        shape: the shape of one sample.
        schedule: its NoiseSchedule.
        dtype: dtype of x and t as the model gets them. A run's state is float64 if this is float64, else float32.
        rows_per_eval: rows of the network for each row of x, for a model that guides itself: 2 if it runs every row with
            and without the condition. It is counted, and changes nothing else.
    """

    family = "gaussian"
    time_conditioned = True
    shape: tuple[int, ...]
    schedule: NoiseSchedule
    dtype: torch.dtype = torch.float32
    rows_per_eval: int = 1

    @property
    def state_dtype(self) -> torch.dtype:
        """The dtype of a run's state: at least float32."""
        return torch.promote_types(self.dtype, torch.float32)

    @property
    def row_bytes(self) -> int:
        """Bytes that a run needs for a row at least: x, and what the model answers."""
        return 2 * math.prod(self.shape) * self.state_dtype.itemsize

    @property
    def can_guide(self) -> bool:
        """Whether there is an unconditional prediction, so that cfg_scale means something."""
        return type(self).unconditional is not GaussianDenoiser.unconditional

    def predict(self, x: Tensor, t: Tensor) -> Tensor:
        """The denoised E[x_0 | x_t]. x: (B, *shape), t: (B,) the time as the model takes it -> (B, *shape)."""
        raise NotImplementedError

    def unconditional(self, x: Tensor, t: Tensor) -> Tensor:
        """As `predict`, without the condition."""
        raise NotImplementedError

    @property
    def gives_moments(self) -> bool:
        """Whether `moments` answers beyond the mean."""
        return type(self).moments is not GaussianDenoiser.moments

    def moments(
        self,
        x: Tensor,
        at: At | Point | float | Tensor,
        order: int = 3,
        signs: Callable[[int], Tensor] | None = None,
    ) -> Moments:
        """Mean, variance and third central moment of each coordinate of x_0 given x_t.

        Args:
            x: (B, *shape), in the dtype of the run, as is the answer.
            at: a point of the schedule; its time; or (B,) float64, a time for each row.
            order: how many moments are needed, 1 to 3.
            signs: where random probes come from, for a denoiser that takes any: signs(k), (B, *shape) of +1 and -1, number k of
                this call. None: those of rows 0 to B - 1 of seed 0.

        Raises:
            OptionError: this denoiser knows the mean only; the message says how it gets moments.
        """
        raise OptionError(
            f"denoiser {self.name!r} gives the mean of x_0 only. Its moments come from heads of the model, "
            "GaussianDenoiser.wrap(..., moments=heads), or from derivatives of its answer, denoiser.with_moments(probes=...)"
        )

    def moment_evals(self, order: int = 3) -> int:
        """The number of forward passes that one use of `moments` counts as."""
        return 1

    def with_moments(self, probes: int | None = None) -> GaussianDenoiser:
        """This denoiser, with moments from derivatives of its own x_0; see samplers.gaussian.moments.

        An exact denoiser gives exact moments. A model's are those of the distribution that its answer stands for, as far as there
        is one: a variance below 0 counts as 0. Not at alpha = 0, where x says nothing of x_0.

        Costs are counted as forward passes of the same work: 1 for x_0 itself, 1 for a backward pass, and 2 for one back
        through another (measured: docs/moments.md). D coordinates, or `probes`, take one each: moments(order=2) counts 1 + D,
        and order=3 counts 1 + 3 D.

        Args:
            probes: None: exactly, coordinate by coordinate; for small shapes. A number: so many random probes for all coordinates
                at once, whose signs are the run's own random numbers.

        Raises:
            OptionError: probes is neither None nor a whole number above 0.
            DenoiserError: (when asked) the model's answer cannot be differentiated.
        """
        return _Differentiated(self, probes)

    def denoised(self, x: Tensor, at: At) -> Tensor:
        """x_0 in the dtype of x, which is the run's: the model gets a copy of x, and t, in its own dtype."""
        return self._call(self.predict, x, at).to(x.dtype, copy=True)

    def guided(self, x: Tensor, at: At, scale: float, rescale: float = 0.0) -> tuple[Tensor, Tensor]:
        """(x_0 guided, x_0 unconditional): (1 + scale) of the model's answer less `scale` of the unconditional one.

        Args:
            scale: w; other libraries' guidance scale is 1 + w.
            rescale: phi of Lin et al. 2023, arXiv 2305.08891, eq. 15 and 16: the guided answer is given the standard deviation
                of the conditional one over a sample, in this share.
        """
        plain, without = (self._call(f, x, at).to(x.dtype, copy=True) for f in (self.predict, self.unconditional))
        return guide(plain, without, scale, rescale), without

    def with_energy(self, energy: Callable[[Tensor, Tensor], Tensor]) -> GaussianDenoiser:
        """This denoiser guided exactly by an energy (Lu et al. 2023, arXiv 2304.12824, contrastive energy prediction).

        The samples follow p_0(x) proportional to q_0(x) exp(-E(x)) if energy(x, t) is E_t(x) = -log E[exp(-E(x_0)) | x_t = x],
        not E(x) itself: score_p = score_q - grad E_t, so x_0 becomes x_0 - sigma^2 / alpha grad E_t.

        Args:
            energy: energy(x (B, *shape), t (B,) float64 the schedule's time) -> (B,), differentiable in x.
        """
        return _EnergyGuided(self, energy)

    def _call(self, model: Callable[..., Tensor], x: Tensor, at: At, *more: Any) -> Tensor:
        """What the model says, checked. It gets a copy: a model may write into what it is given.

        What it says is its own tensor, which it may write into in its next call (CUDA graphs do), so who keeps it makes a copy.
        """
        out = self._asked(model, x, at, *more)
        self._check_answer(out, x)
        return out

    def _asked(self, model: Callable[..., Any], x: Tensor, at: At, *more: Any) -> Any:
        times = self.schedule.model_time(at.times(len(x), x.device))
        times = times.to(self.dtype) if times.is_floating_point() else times
        return model(x.to(self.dtype, copy=True), times, *more)

    def _check_answer(self, out: Any, x: Tensor) -> None:
        if not isinstance(out, Tensor):
            inner = (
                "its .sample" if hasattr(out, "sample") else "its first entry" if isinstance(out, (tuple, list)) else ""
            )
            hint = f": wrap a function that returns {inner}" if inner else ""
            raise DenoiserError(
                f"denoiser {self.name!r} returned {type(out).__name__}; a tensor of real floating numbers is needed{hint}"
            )
        if not out.is_floating_point():
            raise DenoiserError(f"denoiser {self.name!r} returned {out.dtype}; real floating numbers are needed")
        if out.shape != x.shape:
            raise DenoiserError(
                f"denoiser {self.name!r} returned shape {tuple(out.shape)} for x of shape {tuple(x.shape)}; the same "
                "shape is needed"
            )

    @staticmethod
    def wrap(
        fn: Callable[..., Tensor],
        *,
        shape: Sequence[int],
        schedule: str | NoiseSchedule = "vp_linear",
        prediction: str = "epsilon",
        condition: Any = None,
        unconditional: Any = None,
        rows_per_eval: int = 1,
        moments: Callable[..., Sequence[Tensor]] | None = None,
        moment_evals: int = 1,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        name: str | None = None,
    ) -> GaussianDenoiser:
        """A denoiser of a plain callable `fn(x (B, *shape), t (B,)) -> (B, *shape)`.

        With a = alpha(t), s = sigma(t) and z what fn returns, the denoised x_0 is
            epsilon  (x - s z) / a            fn predicts the noise e
            x0       z
            v        (a x - s z) / (a^2 + s^2)   v = a e - s x_0 (Salimans and Ho 2022)
            flow     (x - s z) / (a + s)         z = e - x_0, the velocity of rectified flow in the direction of noise
            score    (x + s^2 z) / a             z = grad log p_t(x)

        For guidance (`sample(cfg_scale=...)`) say what the model predicts without the condition, in one of two ways:
            unconditional=fn_u                 another callable of x and t
            condition=c, unconditional=u       fn(x, t, condition) is called with both conditions in one batch of 2 B rows

        Args:
            condition: a tensor (B, ...) or (1, ...), for all rows, or a dictionary of such tensors: the third argument of fn.
            unconditional: the callable, or the condition that stands for none, of the same form as `condition`.
            rows_per_eval: rows of the network for each row of x, if fn guides by itself: see the attribute.
            moments: for samplers that need more than the mean of x_0: a callable of the arguments of fn that returns
                (E z, E z^2, E z^3) given x_t, or the first two, each (B, *shape): z is what fn predicts the mean of. They are the
                heads of SN-DPM (Bao et al. 2022, arXiv 2206.07309) and GMS (Guo et al. 2023, arXiv 2311.00941), for z the noise.
            moment_evals: forward passes that a call of `moments` counts as: 3 if it runs three networks.
            dtype: the model's. t has it too, unless the schedule gives the model integers.

        Raises:
            OptionError: an unknown prediction, schedule or device, a shape that is none, a dtype that is not floating,
                conditions that do not fit together.
            DenoiserError: (when called) a wrong shape, or numbers that are not real.
        """
        if not callable(fn):
            raise OptionError(f"GaussianDenoiser.wrap takes a callable fn(x, t), not {type(fn).__name__}")
        if prediction not in PREDICTIONS:
            meant = OTHERS.get(str(prediction).lower())
            hint = f": here it is {meant!r}." if meant else did_you_mean(str(prediction), PREDICTIONS)
            raise OptionError(f"unknown prediction {shown(prediction)}{hint} Known: {', '.join(PREDICTIONS)}")
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise OptionError(f"dtype must be a floating torch.dtype such as torch.float32, not {shown(dtype)}")
        try:
            sizes = tuple(integer("a size in shape", n) for n in shape)
        except TypeError as error:
            raise OptionError(
                f"shape must be the sizes of one sample, such as (3, 32, 32), not {shown(shape)}"
            ) from error
        out = _WrappedGaussian(fn, prediction)
        out.shape, out.schedule, out.dtype = sizes, noise_schedule(schedule), dtype
        out.device = device_of("device", device)
        out.name = str(name or getattr(fn, "__name__", type(fn).__name__))
        out.rows_per_eval = integer("rows_per_eval", rows_per_eval)
        if moments is not None and not callable(moments):
            raise OptionError(
                f"moments= is a callable of x and t that returns (E z, E z^2, E z^3), not {shown(moments)}"
            )
        out.heads, out.head_evals = moments, integer("moment_evals", moment_evals)
        out.condition, out.without = _conditions(condition, unconditional, out.device)
        return out


class _WrappedGaussian(GaussianDenoiser):
    condition: dict[str, Tensor] | None = None
    without: Any = None  # the callable without a condition, or the other condition
    heads: Callable[..., Sequence[Tensor]] | None = None
    head_evals: int = 1

    def __init__(self, fn: Callable[..., Tensor], prediction: str):
        self.fn, self.prediction = fn, prediction

    @property
    def can_guide(self) -> bool:
        return self.without is not None

    def predict(self, x: Tensor, t: Tensor) -> Tensor:
        """The denoised x_0 at the schedule's times t, (B,), in the dtype of x."""
        return self.denoised(x, At.of(self.schedule, t))

    def denoised(self, x: Tensor, at: At) -> Tensor:
        return self._x0(x, self._call(self.fn, x, at, *self._given(self.condition, len(x))), at)

    def guided(self, x: Tensor, at: At, scale: float, rescale: float = 0.0) -> tuple[Tensor, Tensor]:
        if callable(self.without):
            plain = self._call(self.fn, x, at).to(x.dtype, copy=True)
            without = self._call(self.without, x, at)
        else:
            pairs = (self._given(c, len(x)) for c in (self.condition, self.without))
            both = [_joined(*pair) for pair in zip(*pairs)]
            t = at.t if not isinstance(at.t, Tensor) else torch.cat([at.t, at.t])
            plain, without = self._call(self.fn, torch.cat([x, x]), At(t, 0.0, 0.0), *both).chunk(2)
        plain, without = plain.to(x.dtype), without.to(x.dtype)
        return self._x0(x, guide(plain, without, scale, rescale), at), self._x0(x, without, at)

    @property
    def gives_moments(self) -> bool:
        return self.heads is not None

    def moment_evals(self, order: int = 3) -> int:
        return self.head_evals

    def moments(
        self,
        x: Tensor,
        at: At | Point | float | Tensor,
        order: int = 3,
        signs: Callable[[int], Tensor] | None = None,
    ) -> Moments:
        """As GaussianDenoiser.moments, from the heads: x_0 is linear in what they predict, x_0 = p x + q z."""
        if self.heads is None:
            return super().moments(x, at, order, signs)
        where = At.of(self.schedule, at)
        self._check_data(where)
        powers = self._asked(self.heads, x, where, *self._given(self.condition, len(x)))
        if not isinstance(powers, (tuple, list)) or len(powers) < order:
            got = f"{len(powers)} tensors" if isinstance(powers, (tuple, list)) else type(powers).__name__
            raise DenoiserError(
                f"the heads of denoiser {self.name!r}, moments=, returned {got}; {order} are needed for {order} moments: "
                f"({', '.join(('E z', 'E z^2', 'E z^3')[:order])})"
            )
        for power in powers:
            self._check_answer(power, x)
        z = central([power.to(x.dtype, copy=True) for power in powers[:order]])
        p, q = (0.0, 1.0) if self.prediction == "x0" else self._factors(*where.scales(x))
        variance = None if z.variance is None else q**2 * z.variance
        return Moments(p * x + q * z.mean, variance, None if z.third is None else q**3 * z.third)

    def _given(self, condition: Any, rows: int) -> tuple[Any, ...]:
        """The arguments of fn after x and t: none, or the condition for `rows` rows."""
        if condition is None:
            return ()
        sized = {k: c.expand(rows, *c.shape[1:]) if len(c) == 1 else c for k, c in condition.items()}
        for k, c in sized.items():
            if len(c) != rows:
                raise OptionError(
                    f"denoiser {self.name!r}: condition{f'[{k!r}]' if k else ''} is for {len(c)} rows and the batch has {rows}: "
                    f"give one row for all, or sample(..., batch={len(c)})"
                )
        return (sized.get("", sized),)

    def _x0(self, x: Tensor, z: Tensor, at: At) -> Tensor:
        """The denoised x_0 of the model's answer z, in the dtype of x."""
        if self.prediction == "x0":
            return z.to(x.dtype, copy=True)
        z = z.to(x.dtype)
        self._check_data(at)
        if isinstance(at.alpha, Tensor):
            of_x, of_z = self._factors(*at.scales(x))
            return of_x * x + of_z * z
        of_x, of_z = self._factors(at.alpha, at.sigma)
        return combine(x, of_x, z, of_z)

    def _check_data(self, at: At) -> None:
        """OptionError if the model's prediction says nothing of x_0, since alpha is 0."""
        no_data = at.alpha == 0
        if self.prediction in ("epsilon", "score") and (
            bool(no_data.any()) if isinstance(no_data, Tensor) else no_data
        ):
            t = float(at.t.max()) if isinstance(at.t, Tensor) else at.t
            raise OptionError(
                f"denoiser {self.name!r} predicts {self.prediction!r}, which says nothing of x_0 at t={t:g}, where alpha is "
                "0: start at a lower t_start, or use a model that predicts v, flow or x0"
            )

    def _factors(self, a: Any, s: Any) -> tuple[Any, Any]:
        """x_0 = (the first) x + (the second) z, for a model that does not predict x_0 itself."""
        if self.prediction == "v":
            return a / (a**2 + s**2), -s / (a**2 + s**2)
        if self.prediction == "flow":
            return 1 / (a + s), -s / (a + s)
        return (1 / a, -s / a) if self.prediction == "epsilon" else (1 / a, s**2 / a)


class _Around(GaussianDenoiser):
    """A denoiser that stands for another one, and adds something to it."""

    def __init__(self, inner: GaussianDenoiser, what: str):
        self.inner = inner
        self.shape, self.schedule, self.dtype = inner.shape, inner.schedule, inner.dtype
        self.device, self.rows_per_eval, self.name = inner.device, inner.rows_per_eval, f"{inner.name} with {what}"

    @property
    def can_guide(self) -> bool:
        return self.inner.can_guide

    def predict(self, x: Tensor, t: Tensor) -> Tensor:
        return self.inner.predict(x, t)

    def denoised(self, x: Tensor, at: At) -> Tensor:
        return self.inner.denoised(x, at)

    def guided(self, x: Tensor, at: At, scale: float, rescale: float = 0.0) -> tuple[Tensor, Tensor]:
        return self.inner.guided(x, at, scale, rescale)


class _Differentiated(_Around):
    """See GaussianDenoiser.with_moments."""

    def __init__(self, inner: GaussianDenoiser, probes: int | None):
        super().__init__(inner, "moments")
        self.probes = None if probes is None else integer("probes", probes)

    def moment_evals(self, order: int = 3) -> int:
        each = (0, 1, 3)[order - 1]  # a backward pass, and one of twice the work back through it
        return 1 + each * (math.prod(self.shape) if self.probes is None else self.probes)

    def moments(
        self,
        x: Tensor,
        at: At | Point | float | Tensor,
        order: int = 3,
        signs: Callable[[int], Tensor] | None = None,
    ) -> Moments:
        """As GaussianDenoiser.moments, by derivatives."""
        where = At.of(self.schedule, at)
        if order == 1:
            return Moments(self.inner.denoised(x, where))
        if bool(where.columns(x)[0].eq(0).any()):
            raise OptionError(
                f"denoiser {self.name!r}: where alpha is 0, x says nothing of x_0, and derivatives give no moments: start at "
                "a lower t_start"
            )
        if signs is None:
            rows = Rng.of(0, len(x), 0, x.device)
            signs = lambda k: rows.signs(self.shape, 0, k, x.dtype)  # noqa: E731
        a, s = where.scales(x)
        return differentiated(lambda y: self.inner.denoised(y, where), x, s * s / a, order, self.probes, signs)


class _EnergyGuided(_Around):
    """See GaussianDenoiser.with_energy."""

    def __init__(self, inner: GaussianDenoiser, energy: Callable[[Tensor, Tensor], Tensor]):
        if not callable(energy):
            raise OptionError(f"with_energy takes a callable energy(x, t) -> (B,), not {shown(energy)}")
        super().__init__(inner, "energy")
        self.energy = energy

    def predict(self, x: Tensor, t: Tensor) -> Tensor:
        return self.inner.predict(x, t) + self._shift(x, At.of(self.schedule, t))

    def denoised(self, x: Tensor, at: At) -> Tensor:
        return self.inner.denoised(x, at) + self._shift(x, at)

    def guided(self, x: Tensor, at: At, scale: float, rescale: float = 0.0) -> tuple[Tensor, Tensor]:
        shift = self._shift(x, at)
        plain, without = self.inner.guided(x, at, scale, rescale)
        return plain + shift, without + shift

    def _shift(self, x: Tensor, at: At) -> Tensor:
        """-sigma^2 / alpha grad E_t(x)."""
        with torch.enable_grad():
            inside = x.detach().requires_grad_()
            value = self.energy(inside, at.times(len(x), x.device))
            if not isinstance(value, Tensor) or value.shape != (len(x),) or not value.requires_grad:
                got = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
                raise OptionError(
                    f"energy(x, t) returned {got}; (B,) = {(len(x),)} that depends on x through torch operations is needed"
                )
            (slope,) = torch.autograd.grad(value.sum(), inside)
        a, s = at.scales(x)
        return -(s * s / a) * slope


def guide(plain: Tensor, without: Tensor, scale: float, rescale: float) -> Tensor:
    """Guided answers of a model: see GaussianDenoiser.guided."""
    out = plain + scale * (plain - without)
    if not rescale:
        return out
    like = _spreads(plain) / _spreads(out).clamp_min(1e-12)
    return out * (rescale * like + (1 - rescale))


def _spreads(z: Tensor) -> Tensor:
    """(B, 1, ...): the standard deviation of each row, one by one: torch's sum of a row can differ in a batch of one."""
    return torch.stack([row.std(correction=0) for row in z]).view(-1, *(1,) * (z.dim() - 1))


def _conditions(condition: Any, without: Any, device: torch.device) -> tuple[dict[str, Tensor] | None, Any]:
    """The condition and what stands for none, each as a dictionary of tensors ("" of a single one), or the callable."""
    if condition is None:
        if without is not None and not callable(without):
            raise OptionError(
                f"unconditional={shown(without)}: without condition= it is a callable of x and t; with it, the condition for none"
            )
        return None, without
    made = [_as_condition("condition", condition, device)]
    if without is not None:
        made.append(_as_condition("unconditional", without, device))
        shapes = [{k: tuple(c.shape[1:]) for k, c in m.items()} for m in made]
        if shapes[0] != shapes[1]:
            raise OptionError(
                f"condition has the shapes {shapes[0]} per row and unconditional {shapes[1]}; they must be equal"
            )
    return made[0], made[1] if without is not None else None


def _as_condition(name: str, value: Any, device: torch.device) -> dict[str, Tensor]:
    parts = dict(value) if isinstance(value, Mapping) else {"": value}
    for k, part in parts.items():
        if not isinstance(part, Tensor) or part.dim() == 0:
            raise OptionError(
                f"{name}{f'[{k!r}]' if k else ''} must be a tensor (B, ...) or (1, ...), not {shown(part)}"
            )
    return {k: part.to(device) for k, part in parts.items()}


def _joined(first: Any, second: Any) -> Any:
    """Two conditions in one batch."""
    if isinstance(first, Tensor):
        return torch.cat([first, second])
    return {k: torch.cat([first[k], second[k]]) for k in first}
