"""diffusers, both ways: our continuous samplers as a scheduler of its pipelines, and its models as denoisers.

    pipe.scheduler = samplers.models.diffusers.Scheduler.from_config(pipe.scheduler.config, sampler="dpmpp_2m")
    denoiser = samplers.models.diffusers.from_diffusers(pipe.unet, pipe.scheduler, condition=..., unconditional=...)

A pipeline asks its model itself and hands each answer to the scheduler's `step`; our samplers ask the model from within a
step. The two meet by replay (samplers/models/replay.py).
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import integer, shown
from ..errors import OptionError, SamplersError
from ..gaussian.denoiser import At, GaussianDenoiser, _WrappedGaussian
from ..gaussian.grid import GaussianSampler, over_times
from ..noise_schedules import EDM, Flow, NoiseSchedule, Point, VPTable
from ..registry import create
from .replay import Plan, not_here, until_asked

try:
    from diffusers import ConfigMixin, SchedulerMixin
    from diffusers.configuration_utils import register_to_config
    from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers
    from diffusers.utils import BaseOutput
except ImportError as error:
    raise ImportError("samplers.models.diffusers needs diffusers: pip install 'sampler-zoo[diffusers]'") from error

__all__ = ["Scheduler", "StepOutput", "from_diffusers", "schedule_of"]

PREDICTIONS = {"epsilon": "epsilon", "sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}
TABLES = {"linear": "ddpm_linear", "scaled_linear": "scaled_linear", "squaredcos_cap_v2": "squared_cosine"}
# Keys that say what the model was trained with, or how its answers are read. They are kept from another scheduler even
# where it had them by default; its default spacing of times is not, since ours is measured.
OF_THE_MODEL = (
    *("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"),
    *("prediction_type", "shift", "flow_shift", "use_flow_sigmas", "use_dynamic_shifting", "time_shift_type"),
    *("shift_terminal", "sigma_min", "sigma_max", "sigma_data", "clip_sample", "clip_sample_range"),
    *("thresholding", "dynamic_thresholding_ratio", "sample_max_value"),
)
# Transformers whose pipelines give them sigma itself as the time; others of rectified flow get 1000 sigma.
TIME_IS_SIGMA = ("Flux", "Chroma", "QwenImage")


@dataclass
class StepOutput(BaseOutput):
    """What `Scheduler.step` returns.

    Attributes:
        prev_sample: (B, *shape), the next input of the model; after the last step the result.
        pred_original_sample: (B, *shape), the x_0 that the model's answer says.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor | None = None


# ---------------------------------------------------------------------------------------------- configurations


def schedule_of(config: Mapping[str, Any], shift: float | None = None) -> NoiseSchedule:
    """The noise schedule that a scheduler's configuration describes, in the times that the model takes.

    Args:
        config: a scheduler's, for a table of betas, rectified flow or EDM.
        shift: the shift of a rectified flow, in place of the configuration's.

    Raises:
        OptionError: a configuration that says no such schedule, or one that is not understood.
    """
    c = _understood(config)
    get = c.get
    n = int(get("num_train_timesteps", 1000))
    if c["schedule"] == "flow":
        return Flow(shift=float(shift or get("shift") or 1.0), time_scale=float(n))
    if c["schedule"] == "edm":
        low, high = get("sigma_min"), get("sigma_max")
        return EDM(float(low or 0.002), float(high or 80.0), time="c_noise")
    zero_snr, betas = bool(get("rescale_betas_zero_snr", False)), get("trained_betas")
    if betas is not None:
        return VPTable.of_betas(betas, zero_snr=zero_snr)
    kind = get("beta_schedule", "linear")
    if kind not in TABLES:
        raise OptionError(
            f"beta_schedule {kind!r} is unknown; known: {', '.join(TABLES)}. Give the betas themselves: trained_betas=[0.1, 0.2]"
        )
    ends = {} if kind == "squaredcos_cap_v2" else {"beta_0": get("beta_start", 1e-4), "beta_1": get("beta_end", 0.02)}
    return VPTable.named(TABLES[kind], n, zero_snr=zero_snr, **ends)


def _understood(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration in the words of Scheduler's own."""
    c, origin = dict(config), str(config.get("_class_name") or "this scheduler")
    if "schedule" not in c:  # written by diffusers, where a configuration may not say whose it is
        c["schedule"] = "table" if {"beta_schedule", "trained_betas"} & c.keys() else "flow" if "shift" in c else "edm"
        if c.get("use_flow_sigmas") or c.get("prediction_type") == "flow_prediction":
            c["schedule"], c["shift"] = "flow", c.get("flow_shift", 1.0)
        if c["schedule"] == "flow":
            c["prediction_type"] = "flow_prediction"
        # The multistep scheduler of Stable Audio has EDM's keys and another model; unlike EDM's it has one algorithm.
        elif c["schedule"] == "edm" and ("sigma_data" not in c or ("solver_order" in c and "algorithm_type" not in c)):
            raise OptionError(
                f"the configuration of {origin} has no betas, and is neither of rectified flow nor of EDM"
            )
    for key, wrong in (("invert_sigmas", (True,)), ("timestep_type", ("continuous",))):
        if c.get(key) in wrong:
            raise OptionError(f"the configuration of {origin} says {key}={c[key]!r}, which is not supported here")
    if "Inverse" in origin:
        raise OptionError(
            f"{origin} adds noise instead of removing it; use samplers.sample(..., t_end=..., end='t_end')"
        )
    defaults = c.pop("_use_default_values", ())
    c["_use_default_values"] = [key for key in defaults if key not in OF_THE_MODEL]
    return c


def _sampler_of(spec: Any, options: Mapping[str, Any] | None) -> GaussianSampler[Any]:
    sampler = create(spec, **(options or {})) if isinstance(spec, str) else spec
    if not isinstance(sampler, GaussianSampler):
        raise OptionError(
            f"sampler={shown(spec)}: a pipeline needs a continuous sampler that follows a grid of times: its name, or a "
            "Sampler; samplers.list_samplers(family='gaussian') lists them"
        )
    if sampler.expected_nfe(0, 20) is None:
        raise OptionError(
            f"sampler {sampler.name!r} chooses its times from the model's answers, and a pipeline wants to know them before: "
            "use samplers.sample(samplers.models.diffusers.from_diffusers(...), ...)"
        )
    return sampler


def _mean(z: Tensor, x: Tensor) -> Tensor:
    """The model's answer without the channels of a learned variance."""
    if z.dim() > 1 and z.dim() == x.dim() and z.shape[1] == 2 * x.shape[1] and z.shape[2:] == x.shape[2:]:
        return z[:, : x.shape[1]]
    return z


def _edm_input(x: Tensor, sigma: Any, data: float) -> Tensor:
    """What a model of EDM is given for x (Karras et al. 2022, arXiv 2206.00364, table 1: c_in)."""
    return x / (sigma**2 + data**2) ** 0.5


def _edm_output(z: Tensor, x: Tensor, sigma: Any, data: float, prediction: str) -> Tensor:
    """The x_0 of such a model's answer (c_skip and c_out; "v_prediction" has the other sign)."""
    total = sigma**2 + data**2
    out = sigma * data / total**0.5 * (-1 if prediction == "v_prediction" else 1)
    return data**2 / total * x + out * z


# ---------------------------------------------------------------------------------------------- the scheduler


class Scheduler(SchedulerMixin, ConfigMixin):
    """Any continuous sampler as a scheduler of diffusers.

    `Scheduler.from_config(pipe.scheduler.config, sampler=name)` keeps what the configuration says of the model: betas, kind of
    prediction, shift, clipping. It keeps the spacing of times if somebody chose one; else the sampler's own grid is used.

    `num_inference_steps` is the number of the model's evaluations, whatever the sampler: `timesteps` has one entry for each,
    and `order` is 1. Lists of `timesteps` or `sigmas` are those at which the solver's steps begin, so a solver with two
    evaluations per step makes a longer list of them.

    The state of a run is kept in float32 (float64 if the sample is), whatever the dtype of the samples. Where a pipeline
    changes the sample between two calls, as inpainting does, the changed numbers are taken; where it does not, the exact ones.
    A run that begins within a step of the solver (`set_begin_index`, for image to image) goes to the end of that step
    by steps of first order.

    Noise of samplers that draw it: `seed`, rows numbered from `first_row`, as in samplers.sample; without a seed, one is drawn
    per run from the generator that the pipeline passes, or from torch's default one.

    Args:
        sampler: a name, or a Sampler. A saved configuration has its name and options.
        sampler_options: options of the sampler called by name.
        seed: an integer, or one per row.
        first_row: the number of the batch's first row under its seed.
        schedule: "table" (variance preserving, of betas), "flow" (rectified flow) or "edm".
        num_train_timesteps, beta_start, beta_end, beta_schedule, trained_betas, rescale_betas_zero_snr: the table.
        prediction_type: "epsilon", "sample", "v_prediction" or "flow_prediction".
        shift, use_dynamic_shifting, time_shift_type, shift_terminal: of flow: the shift of the times; whether each run's
            `mu` says it; "exponential" (e^mu) or "linear" (mu); the last sigma of a run.
        sigma_min, sigma_max, sigma_data: of EDM.
        clip_sample, clip_sample_range: whether x_0 is clipped, and where. The noise then follows from the clipped x_0.
        thresholding, dynamic_thresholding_ratio, sample_max_value: dynamic thresholding of x_0 (Saharia et al. 2022,
            arXiv 2205.11487, section 2.3): the quantile, and the largest bound.
        timestep_spacing, steps_offset, use_karras_sigmas, use_exponential_sigmas, use_lu_lambdas, use_beta_sigmas: diffusers'
            words for grids of times: "linspace", "leading", "trailing", "karras", "logsnr", "beta" here. None: the sampler's.
        final_sigmas_type: "zero", the last x_0 is returned; "sigma_min", x at the least noise; None: as the sampler says.

    Raises:
        OptionError: a sampler that cannot drive a pipeline; a configuration that is not understood.
    """

    _compatibles = [e.name for e in KarrasDiffusionSchedulers]
    order = 1
    config: Any  # ConfigMixin's: a dictionary whose keys are attributes as well

    @register_to_config
    def __init__(
        self,
        sampler: str = "dpmpp_2m",
        sampler_options: dict[str, Any] | None = None,
        seed: int | list[int] | None = None,
        first_row: int = 0,
        schedule: str = "table",
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: Sequence[float] | None = None,
        rescale_betas_zero_snr: bool = False,
        prediction_type: str = "epsilon",
        shift: float = 1.0,
        use_dynamic_shifting: bool = False,
        time_shift_type: str = "exponential",
        shift_terminal: float | None = None,
        sigma_min: float | None = None,
        sigma_max: float | None = None,
        sigma_data: float = 0.5,
        clip_sample: bool = False,
        clip_sample_range: float = 1.0,
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        sample_max_value: float = 1.0,
        timestep_spacing: str | None = None,
        steps_offset: int = 1,
        use_karras_sigmas: bool = False,
        use_exponential_sigmas: bool = False,
        use_lu_lambdas: bool = False,
        use_beta_sigmas: bool = False,
        final_sigmas_type: str | None = None,
    ):
        self.sampler = made = _sampler_of(sampler, sampler_options)
        if not isinstance(sampler, str):
            if sampler_options:
                raise OptionError("sampler_options are for a sampler that is named: give them to the Sampler itself")
            default = {o.name: o.default for o in made.options()}
            chosen = {k: v for k, v in made.values().items() if v != default[k]}
            self.register_to_config(sampler=made.name, sampler_options=chosen)
        if prediction_type not in PREDICTIONS:
            raise OptionError(f"prediction_type {prediction_type!r} is unknown; known: {', '.join(PREDICTIONS)}")
        if schedule not in ("table", "flow", "edm"):
            raise OptionError(f"schedule {schedule!r} is unknown; known: 'table', 'flow', 'edm'")
        self._schedule = schedule_of(self.config)
        self.num_inference_steps: int | None = None
        self.timesteps = self.sigmas = torch.empty(0, dtype=torch.float32, device="cpu")
        self._plan: Plan | None = None
        self._restart()

    def _restart(self) -> None:
        self._state: Any = None
        self._answers: tuple[Tensor, ...] = ()
        self._x: Tensor | None = None  # what the model is asked about, in the dtype of the state
        self._step_index: int | None = None
        self._begin_index: int | None = None

    @classmethod
    def from_config(cls, config: Any = None, return_unused_kwargs: bool = False, **kwargs: Any) -> Any:
        """The scheduler of a configuration, with `kwargs` in place of what it says. Keys that mean nothing here are kept."""
        if isinstance(config, Mapping):
            config = _understood(config)
        return super().from_config(config, return_unused_kwargs=return_unused_kwargs, **kwargs)

    # -- before a run

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Plan a run, and forget the one before.

        Args:
            num_inference_steps: number of the model's evaluations.
            device: where `timesteps` are put.
            timesteps: times, as the model takes them, at which steps begin; the last one closes with x_0.
            sigmas: the same in sigma (sigma / alpha of a table), with or without a 0 at the end. Of rectified flow they are
                shifted, as in diffusers; and if a grid was chosen for the scheduler, only their number counts.
            mu: what use_dynamic_shifting needs, for rectified flow.

        Raises:
            OptionError: none of the three, or two that disagree; lists that the schedule or the sampler cannot take.
        """
        c = self.config
        if timesteps is not None and sigmas is not None:
            raise OptionError("set_timesteps: timesteps and sigmas both say where steps begin: give one")
        if timesteps is None and sigmas is None and num_inference_steps is None:
            raise OptionError("set_timesteps: give num_inference_steps, or a list of timesteps or sigmas")
        self._schedule = schedule_of(c, self._shift(mu))
        sampler, grid = self._gridded()
        times: Tensor | None = None
        if timesteps is not None:
            times = self._schedule.time_of_model(torch.as_tensor(timesteps, dtype=torch.float64, device="cpu"))
        elif sigmas is not None:
            times = self._times_of(sigmas)
            if c.schedule == "flow" and grid is not None:
                num_inference_steps, times = len(times), None
        if times is not None and num_inference_steps not in (None, len(times)):
            raise OptionError(
                f"set_timesteps: {num_inference_steps} steps and a list of {len(times)} disagree: give the list"
            )
        steps = integer("num_inference_steps", num_inference_steps if times is None else len(times))
        if times is None:
            if grid is not None:
                sampler = dataclasses.replace(sampler, grid=grid)
            if c.shift_terminal and sampler.t_end is None:
                sampler = dataclasses.replace(sampler, t_end=float(c.shift_terminal))
            plan = Plan(sampler, self._schedule, steps, None)
        else:
            closing = sampler.end == "zero"
            if not closing:
                times = torch.cat([times, times.new_tensor([self._schedule.t_min])])
            blank = Plan(sampler, self._schedule, 1, tuple(times.tolist()))
            sampler, canvas = over_times(
                sampler, blank.canvas(torch.zeros(1, 1, dtype=torch.float32, device="cpu")), closing
            )
            plan = dataclasses.replace(blank, sampler=sampler, steps=canvas.steps)
        self._plan = plan = plan.planned()
        t = torch.tensor([q.at.t for q in plan.queries], dtype=torch.float64, device="cpu")
        asked = self._schedule.model_time(t)
        whole = c.schedule == "table" and bool((asked == asked.round()).all())
        self.timesteps = asked.to(torch.int64 if whole else torch.float32).to(device or "cpu")
        ends = torch.zeros(1, dtype=torch.float64, device="cpu")
        if plan.last is not None and plan.sampler.end != "zero":
            ends = self._schedule.sigma_of_time(ends + plan.last.t)
        self.sigmas = torch.cat([self._schedule.sigma_of_time(t), ends]).to(torch.float32)
        self.num_inference_steps = len(plan.queries)
        self._restart()

    def _shift(self, mu: float | None) -> float | None:
        """The shift of this run's times; None: the configuration's."""
        c = self.config
        if c.schedule != "flow" or not c.use_dynamic_shifting:
            return None
        if mu is None:
            raise OptionError(
                "set_timesteps: with use_dynamic_shifting give mu, which depends on the size of the image"
            )
        if c.time_shift_type not in ("exponential", "linear"):
            raise OptionError(f"time_shift_type is {c.time_shift_type!r}; 'exponential' or 'linear' is needed")
        return math.exp(mu) if c.time_shift_type == "exponential" else float(mu)

    def _gridded(self) -> tuple[GaussianSampler[Any], str | None]:
        """The sampler, and the grid that somebody chose in diffusers' words or in ours; None: nobody did."""
        c = self.config
        sampler = self.sampler
        if c.final_sigmas_type is not None:
            if c.final_sigmas_type not in ("zero", "sigma_min"):
                raise OptionError(f"final_sigmas_type is {c.final_sigmas_type!r}; 'zero' or 'sigma_min' is needed")
            sampler = dataclasses.replace(sampler, end="zero" if c.final_sigmas_type == "zero" else "t_end")
        if "grid" in (c.sampler_options or {}):
            return sampler, sampler.grid
        for key, grid in (("karras", "karras"), ("exponential", "logsnr"), ("beta", "beta")):
            if c[f"use_{key}_sigmas"]:
                return sampler, grid
        if c.use_lu_lambdas:
            return sampler, "logsnr"
        spacing = c.timestep_spacing
        if spacing is None:
            return sampler, None
        grids = {
            "linspace": "linspace",
            "trailing": "trailing",
            "leading": "ddim_uniform" if c.steps_offset else "leading",
        }
        if spacing not in grids:
            raise OptionError(f"timestep_spacing is {spacing!r}; known: {', '.join(grids)}")
        return sampler, grids[spacing]

    def _times_of(self, sigmas: Sequence[float]) -> Tensor:
        values = torch.as_tensor(sigmas, dtype=torch.float64, device="cpu").flatten()
        if len(values) > 1 and float(values[-1]) == 0:
            values = values[:-1]
        if self.config.schedule != "flow":
            return self._schedule.time_of_sigma(values)
        values = self._schedule.shifted(values)
        if self.config.shift_terminal:
            values = 1 - (1 - values) * (1 - self.config.shift_terminal) / (1 - values[-1])
        return self._schedule.time_of_sigma(values)

    @property
    def init_noise_sigma(self) -> float:
        """What a pipeline multiplies standard normals by to begin with."""
        return self._schedule.t_max if self.config.schedule == "edm" else 1.0

    @property
    def alphas_cumprod(self) -> Tensor:
        """(N,) float32: alpha^2 of the table."""
        if not isinstance(self._schedule, VPTable):
            raise AttributeError("alphas_cumprod")  # diffusers writes the message
        return self._schedule.alphas_cumprod.to(torch.float32)

    # -- in a run

    @property
    def step_index(self) -> int | None:
        """Number of answers that were taken, counted from the run's first timestep; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """Where in `timesteps` the run begins, if the pipeline said so."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Say where in `timesteps` the run begins."""
        self._begin_index = begin_index

    def index_for_timestep(self, timestep: float | Tensor, schedule_timesteps: Tensor | None = None) -> int:
        """Where in `timesteps` a time is; of several equal ones the first that begins a step of the solver.

        Raises:
            OptionError: it is none of them.
        """
        known = self.timesteps if schedule_timesteps is None else schedule_timesteps
        found = (known == torch.as_tensor(timestep, device=known.device)).nonzero().flatten().tolist()
        if not found:
            raise OptionError(f"timestep {float(timestep):g} is none of this run's: {shown(known.tolist(), 200)}")
        queries = self._plan.queries if self._plan is not None else ()
        return next((i for i in found if i < len(queries) and queries[i].opens), found[0])

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """What the model is given for a sample: the sample itself, but for EDM."""
        if self.config.schedule != "edm":
            return sample
        if timestep is None:
            raise OptionError("scale_model_input of EDM needs the timestep, which says the noise level")
        sigma = torch.exp(4 * torch.as_tensor(timestep, dtype=torch.float32, device=sample.device))
        return _edm_input(sample, sigma, self.config.sigma_data).to(sample.dtype)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: Any = None,
        return_dict: bool = True,
    ) -> StepOutput | tuple[Tensor, Tensor]:
        """Take the model's answer for one timestep and return the next input.

        Args:
            model_output: (B, *shape), guided if the pipeline guides; (B, 2 C, ...) with a learned variance, which is not used.
            timestep: which of `timesteps` it is. It is read in the first call only, and only without set_begin_index.
            sample: (B, *shape), what the model was asked about, before scale_model_input.
            generator: a torch.Generator or a list of them (the first is used), from which the run's seed is drawn.

        Raises:
            OptionError: no set_timesteps before; a run that is finished; shapes that changed.
        """
        if self._plan is None:
            raise OptionError("Scheduler.step: call set_timesteps(num_inference_steps) first")
        if self._step_index is None:
            self._begin(timestep, sample, generator)
        k, queries = self._step_index or 0, self._plan.queries
        if k >= len(queries):
            raise OptionError(
                f"Scheduler.step: all {len(queries)} timesteps of this run are done; call set_timesteps(...) for another run"
            )
        x = self._x
        assert x is not None
        if sample.shape != x.shape:
            raise OptionError(
                f"Scheduler.step: sample has shape {tuple(sample.shape)}, and the run began with {tuple(x.shape)}"
            )
        # Elementwise, and without a device sync: what a pipeline changed is taken, the rest has lost no digit.
        x = torch.where(sample == x.to(sample.dtype), x, sample.to(x.dtype))
        x0 = self._denoised(model_output, x, queries[k].at)
        self._x = self._next(k, x, x0)
        self._step_index = k + 1
        before, x0 = self._x.to(sample.dtype, copy=True), x0.to(sample.dtype)
        return StepOutput(prev_sample=before, pred_original_sample=x0) if return_dict else (before, x0)

    def _begin(self, timestep: float | Tensor, sample: Tensor, generator: Any) -> None:
        plan = self._plan
        assert plan is not None
        k = self.index_for_timestep(timestep) if self._begin_index is None else self._begin_index
        if not 0 <= k < len(plan.queries):
            raise OptionError(f"begin_index is {k}; this run has the timesteps 0 to {len(plan.queries) - 1}")
        seed = self.config.seed
        if seed is None:
            seed = _drawn(generator) if plan.sampler.effective_facts.stochastic else 0
        x = sample.to(torch.promote_types(sample.dtype, torch.float32), copy=True)
        state = plan.sampler.init(plan.canvas(x, seed, self.config.first_row))
        self._state, self._answers, self._x = dataclasses.replace(state, x=x, i=plan.queries[k].step), (), x
        self._within = not plan.queries[k].opens
        self._step_index = k

    def _next(self, k: int, x: Tensor, x0: Tensor) -> Tensor:
        """What comes after evaluation k of x, whose answer is x0: the next question, or the result."""
        plan = self._plan
        assert plan is not None
        following = plan.queries[k + 1] if k + 1 < len(plan.queries) else None
        if self._within:  # the run began in the middle of a step, so the solver does not know that step's beginning
            s, t = plan.queries[k].at, following.at if following else plan.last
            assert t is not None
            x = t.sigma / s.sigma * x - t.alpha * math.expm1(s.lam - t.lam) * x0
            if following and following.opens:
                self._state = dataclasses.replace(self._state, i=following.step, x=x)
                self._within = False
            return x
        if not self._answers:
            self._state = dataclasses.replace(self._state, x=x)
        self._state, self._answers, asked = until_asked(plan.sampler, self._state, (*self._answers, x0))
        if (None if asked is None else asked.at) != (None if following is None else following.at):
            raise SamplersError(
                f"sampler {plan.sampler.name!r} asks the model at times that depend on its answers, so it cannot drive a pipeline"
            )
        return self._state.x if asked is None else asked.x

    def _denoised(self, z: Tensor, x: Tensor, at: Point) -> Tensor:
        """The x_0 of the model's answer, clipped as the configuration says, in the dtype of x."""
        c = self.config
        z = _mean(z, x)
        if z.shape != x.shape:
            raise OptionError(
                f"Scheduler.step: model_output has shape {tuple(z.shape)} for a sample of {tuple(x.shape)}; the same is needed"
            )
        if c.schedule == "edm":
            x0 = _edm_output(z.to(x.dtype), x, at.sigma, c.sigma_data, c.prediction_type)
        else:
            reader = _WrappedGaussian(not_here, PREDICTIONS[c.prediction_type])
            reader.name = "the pipeline's model"
            x0 = reader._x0(x, z, At.of(self._schedule, at))
        if c.thresholding:
            high = torch.stack([row.quantile(c.dynamic_thresholding_ratio) for row in x0.abs().flatten(1)])
            high = high.clamp(1, c.sample_max_value).view(-1, *(1,) * (x0.dim() - 1))
            return torch.minimum(torch.maximum(x0, -high), high) / high
        return x0.clamp(-c.clip_sample_range, c.clip_sample_range) if c.clip_sample else x0

    # -- beside a run

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """alpha x_0 + sigma e at times as the model takes them, (B,) or (1,)."""
        t = self._schedule.time_of_model(timesteps.detach().to("cpu", torch.float64).flatten())
        like = (-1,) + (1,) * (original_samples.dim() - 1)
        wide = torch.promote_types(original_samples.dtype, torch.float32)
        alpha, sigma = (
            f(t).to(original_samples.device, wide).view(like) for f in (self._schedule.alpha, self._schedule.sigma)
        )
        return (alpha * original_samples + sigma * noise).to(original_samples.dtype)

    def scale_noise(self, sample: Tensor, timestep: Tensor, noise: Tensor) -> Tensor:
        """add_noise as pipelines of rectified flow call it."""
        return self.add_noise(sample, noise, timestep)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)


def _drawn(generator: Any) -> int:
    """A seed from a generator, the first of several, or torch's default one."""
    if isinstance(generator, (list, tuple)):
        generator = generator[0]
    where: dict[str, Any] = (
        {"device": "cpu"} if generator is None else {"device": generator.device, "generator": generator}
    )
    return int(torch.randint(2**62, (), **where))


# ---------------------------------------------------------------------------------------------- the models


class _Model:
    """A model of diffusers as a function of x (B, *shape), t (B,) and a condition, keyword arguments of the model."""

    def __init__(self, model: Any, bare: str | None, arguments: Mapping[str, Any], edm: tuple[float, str] | None):
        self.model, self.bare, self.arguments, self.edm = model, bare, dict(arguments), edm
        self.__name__ = type(model).__name__

    @torch.no_grad()
    def __call__(self, x: Tensor, t: Tensor, condition: Any = None) -> Tensor:
        given = x
        if self.edm is not None:
            sigma = torch.exp(4 * t).view(-1, *(1,) * (x.dim() - 1))
            given = _edm_input(x, sigma, self.edm[0])
        told = dict(self.arguments)
        named = condition if isinstance(condition, Mapping) else {} if condition is None else {self.bare: condition}
        for key, value in named.items():
            group, _, inner = str(key).rpartition(".")
            if group:
                told[group] = {**told.get(group, {}), inner: value}
            else:
                told[inner] = value
        z = self.model(given.to(self.model.dtype), timestep=t, **told, return_dict=False)[0]
        z = _mean(z, x).to(x.dtype)
        return z if self.edm is None else _edm_output(z, x, sigma, *self.edm)


def from_diffusers(
    model: Any,
    scheduler: Any,
    *,
    condition: Any = None,
    unconditional: Any = None,
    arguments: Mapping[str, Any] | None = None,
    shape: Sequence[int] | None = None,
    mu: float | None = None,
    time_scale: float | None = None,
    name: str | None = None,
) -> GaussianDenoiser:
    """A model of diffusers as a denoiser, with what its scheduler's configuration says of it: noise, time, prediction.

    The model is put in evaluation mode and stays where it is, in its dtype. It gets x in that dtype, and t in float32 at
    least, since bfloat16 has no number between 996 and 1000. Channels of a learned variance are dropped. Clipping is not
    the model's affair: sample(..., x0_bound=1.0).

    Args:
        model: a UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel, SD3Transformer2DModel, FluxTransformer2DModel, or
            another that is called as model(x, timestep=(B,), ..., return_dict=False).
        scheduler: one of diffusers', ours, or its configuration.
        condition: keyword arguments of the model, tensors (B, ...) or (1, ...), by name; a name with a dot, such as
            "added_cond_kwargs.time_ids", stands for an entry of a dictionary. A tensor alone is `encoder_hidden_states`,
            or else `class_labels`.
        unconditional: the same for guidance, sample(cfg_scale=...), which is the pipelines' guidance_scale less 1.
        arguments: keyword arguments that are no tensors by row, such as {"img_ids": ids}.
        shape: sizes of one sample; None: what the model's configuration says. FLUX: (tokens, channels).
        mu: what a configuration with use_dynamic_shifting needs: e^mu is the shift of its grids.
        time_scale: a model of rectified flow is given sigma times this; None: 1 for FLUX, 1000 for others.
        name: how reports call it.

    Raises:
        OptionError: a configuration that is not understood, a shape that is not known, a condition that does not fit.
    """
    config = scheduler if isinstance(scheduler, Mapping) else getattr(scheduler, "config", None)
    if not isinstance(config, Mapping):
        raise OptionError(f"scheduler is {shown(scheduler)}; a scheduler of diffusers or its configuration is needed")
    if not callable(getattr(model, "forward", None)):
        raise OptionError(
            f"model is {type(model).__name__}; a torch module is needed, such as pipe.unet or pipe.transformer"
        )
    own = Scheduler.from_config(config)
    c, schedule = own.config, schedule_of(own.config, None if mu is None else own._shift(mu))
    if isinstance(schedule, Flow):
        if time_scale is None:
            time_scale = 1.0 if type(model).__name__.startswith(TIME_IS_SIGMA) else schedule.time_scale
        schedule = dataclasses.replace(schedule, time_scale=float(time_scale))
    takes = inspect.signature(model.forward).parameters
    bare = next((key for key in ("encoder_hidden_states", "class_labels") if key in takes), None)
    if isinstance(condition, Tensor) and bare is None:
        raise OptionError(
            f"{type(model).__name__} takes neither encoder_hidden_states nor class_labels: name the condition"
        )
    given = {str(key).partition(".")[0] for key in (condition if isinstance(condition, Mapping) else ())} | {
        *(arguments or ())
    }
    given |= {bare} if isinstance(condition, Tensor) else set()
    missing = [name for name, p in takes.items() if p.default is p.empty and p.kind is p.POSITIONAL_OR_KEYWORD]
    missing = [name for name in missing[1:] if name not in given and name != "timestep"]
    if missing:
        raise OptionError(f"{type(model).__name__} needs {', '.join(missing)}: give condition= or arguments=")
    edm = (float(c.sigma_data), str(c.prediction_type)) if c.schedule == "edm" else None
    return GaussianDenoiser.wrap(
        _Model(model.eval(), bare, arguments or {}, edm),
        shape=_shape_of(model) if shape is None else shape,
        schedule=schedule,
        prediction="x0" if edm else PREDICTIONS[c.prediction_type],
        condition=condition,
        unconditional=unconditional,
        dtype=torch.promote_types(model.dtype, torch.float32),
        device=model.device,
        name=name,
    )


def _shape_of(model: Any) -> tuple[int, ...]:
    size = model.config.get("sample_size")
    if size is None:
        raise OptionError(
            f"{type(model).__name__}: its configuration has no sample_size; say shape=, the sizes of one sample"
        )
    return (int(model.config["in_channels"]), *((size, size) if isinstance(size, int) else tuple(size)))
