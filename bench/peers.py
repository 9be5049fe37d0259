"""The solvers of diffusers and of k-diffusion beside ours: on the same exact model, the same normals.

A Case is a mixture under one noise schedule. `peers(schedule)` lists what other libraries have for it, each solver at each of
its settings; `run` gives its samples at a number of evaluations. Where a library is not installed it has no peers.

Their model is the exact one, asked at the scheduler's own sigma and not at an index that was rounded. A run that begins at
the noisiest point of the schedule begins at our x_T; any other begins as its library says.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import itertools
import math
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from samplers import problems
from samplers.noise_schedules import EDM, Flow, NoiseSchedule, noise_schedule
from samplers.random import Rng

EXACT = 1e-6  # sigma / alpha at which the ODE's solution is taken


class Case:
    """The exact model of one schedule: normals, the denoised x_0 by alpha and sigma, and the truth.

    Args:
        problem: a `mixture`; peers cannot run on others. rows: samples. seed: of the normals of x_T.
    """

    def __init__(self, problem: problems.Problem, schedule: str | NoiseSchedule, rows: int, seed: int = 0):
        self.problem, self.schedule, self.rows = problem, noise_schedule(schedule), rows
        self.denoiser = problem.denoiser("gaussian", schedule=self.schedule, dtype=torch.float64)
        self.z = Rng.of(seed, rows).normal(self.denoiser.shape, 0, torch.float64)
        top = torch.tensor([self.schedule.t_max], dtype=torch.float64)
        self.alpha, self.sigma = float(self.schedule.alpha(top)), float(self.schedule.sigma(top))
        self.ratio = self.sigma / self.alpha if self.alpha else math.inf  # sigma / alpha at the start

    @property
    def x(self) -> Tensor:
        """x_T, (rows, dim) float64."""
        return self.sigma * self.z

    @functools.cached_property
    def truth(self) -> Tensor:
        """(rows, dim): where the probability-flow ODE takes x_T, followed to sigma / alpha = EXACT."""
        if self.alpha:
            return self.problem.truth(self.x / self.alpha, EXACT, t_start=self.ratio, schedule=EDM())
        # sigma / alpha = EXACT lies below t_min, where the formulas of the schedule hold as well.
        return self.problem.truth(self.x, EXACT / (1 + EXACT), schedule=Flow()) * (1 + EXACT)

    def x0(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[x_0 | alpha x_0 + sigma e = x], (rows, dim) float64."""
        a, s = (torch.full((len(x), 1), v, dtype=torch.float64) for v in (alpha, sigma))
        return self.denoiser.posterior_mean(x.double(), a, s)

    def rms(self, x: Tensor) -> float:
        """The distance to the ODE's solution."""
        return float((x.double() - self.truth).pow(2).mean().sqrt())


@dataclass(frozen=True)
class Peer:
    """A solver of another library at one setting.

    Attributes:
        library: "diffusers" or "k_diffusion". made: its class or function.
        solver: what we call it.
        setting: spacing and options, in short.
        stochastic: whether it draws noise.
    """

    library: str
    made: Any
    solver: str
    setting: str
    options: dict[str, Any] = field(default_factory=dict)
    stochastic: bool = False

    @property
    def name(self) -> str:
        return self.made.__name__.removesuffix("Scheduler").removeprefix("sample_")

    def run(self, case: Case, nfe: int) -> Tensor | None:
        """Samples (rows, dim) by at most `nfe` evaluations, the most that it can use; None if it fails."""
        run = _run_diffusers if self.library == "diffusers" else _run_k_diffusion
        try:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(1)
                x = run(self, case, nfe)
        except (AssertionError, IndexError, RuntimeError, UnboundLocalError, ValueError, ZeroDivisionError):
            return None
        return x if x is not None and bool(torch.isfinite(x).all()) else None


def peers(schedule: NoiseSchedule) -> list[Peer]:
    """All solvers of both libraries that can follow the schedule, at all their settings."""
    return [*_diffusers(schedule), *_k_diffusion(schedule)]


def versions() -> dict[str, str | None]:
    """Of the peers that are installed."""
    names = {"diffusers": "diffusers", "k_diffusion": "k-diffusion"}
    return {n: importlib.metadata.version(d) if importlib.util.find_spec(n) else None for n, d in names.items()}


# ------------------------------------------------------------------------------------------- diffusers

SPACINGS = {s: {"timestep_spacing": s} for s in ("linspace", "trailing", "leading")}
SIGMAS = {s: {f"use_{s}_sigmas": True} for s in ("karras", "exponential", "beta")}
LU = {"lu": {"use_lu_lambdas": True}}
FINAL: dict[str, dict[str, Any]] = {"": {}, "to sigma_min": {"final_sigmas_type": "sigma_min"}}
TYPES: dict[str, dict[str, Any]] = {"": {}, "heun": {"solver_type": "heun"}}
BH1: dict[str, dict[str, Any]] = {"": {}, "bh1": {"solver_type": "bh1"}}
ORDERS: dict[str, dict[str, Any]] = {f"order {p}": {"solver_order": p} for p in (2, 3)}
SDE, NOISE = {"algorithm_type": "sde-dpmsolver++"}, {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}
THIRD = {"solver_order": 3}
PLMS: dict[str, dict[str, Any]] = {"": {}, "no warm-up": {"skip_prk_steps": True}}
VARIANCES: dict[str, dict[str, Any]] = {"": {}, "large": {"variance_type": "fixed_large"}}
CLIP = {"clip_sample": False}

# (what we call it, class without "Scheduler", options, sets of settings of which every combination is tried, draws noise)
VP: tuple[tuple[str, str, dict[str, Any], tuple[dict[str, Any], ...], bool], ...] = (
    ("ddim", "DDIM", CLIP, (SPACINGS,), False),
    ("euler", "EulerDiscrete", {}, (SPACINGS | SIGMAS, FINAL), False),
    ("heun", "HeunDiscrete", {}, (SPACINGS | SIGMAS,), False),
    ("dpm_2", "KDPM2Discrete", {}, (SPACINGS | SIGMAS,), False),
    ("lms", "LMSDiscrete", {}, (SPACINGS | SIGMAS,), False),
    ("pndm", "PNDM", {}, (SPACINGS, PLMS), False),
    ("dpmpp_2m", "DPMSolverMultistep", {}, (SPACINGS | SIGMAS | LU, TYPES, FINAL), False),
    ("dpmpp_3m", "DPMSolverMultistep", THIRD, (SPACINGS | SIGMAS | LU, FINAL), False),
    ("dpm_solver", "DPMSolverMultistep", NOISE, (SPACINGS | SIGMAS | LU, ORDERS), False),
    ("dpmpp_2s", "DPMSolverSinglestep", {}, ({"linspace": {}} | SIGMAS | LU, TYPES, FINAL), False),
    ("dpmpp_3s", "DPMSolverSinglestep", THIRD, ({"linspace": {}} | SIGMAS | LU, FINAL), False),
    ("unipc", "UniPCMultistep", {}, (SPACINGS | SIGMAS, ORDERS, BH1, FINAL), False),
    ("deis", "DEISMultistep", {}, (SPACINGS | SIGMAS, ORDERS), False),
    ("ddpm", "DDPM", CLIP, (SPACINGS, VARIANCES), True),
    ("euler_ancestral", "EulerAncestralDiscrete", {}, (SPACINGS,), True),
    ("dpm_2_ancestral", "KDPM2AncestralDiscrete", {}, (SPACINGS | SIGMAS,), True),
    ("dpmpp_2m_sde", "DPMSolverMultistep", SDE, (SPACINGS | SIGMAS | LU, TYPES, FINAL), True),
    ("dpmpp_3m_sde", "DPMSolverMultistep", SDE | THIRD, (SPACINGS | SIGMAS | LU, FINAL), True),
    ("dpmpp_sde", "DPMSolverSDE", {}, (SPACINGS | SIGMAS,), True),
    ("sa_solver", "SASolver", {}, (SPACINGS | SIGMAS,), True),
    ("lcm", "LCM", {}, ({"": {}},), True),
    ("tcd", "TCD", {}, ({"": {}},), True),
)
SCHEDULES_OF_EDM = {s: {"sigma_schedule": s} for s in ("karras", "exponential")}
VE = (
    ("euler", "EDMEuler", {}, (SCHEDULES_OF_EDM, FINAL), False),
    ("dpmpp_2m", "EDMDPMSolverMultistep", {}, (SCHEDULES_OF_EDM, TYPES, FINAL), False),
    ("dpmpp_3m", "EDMDPMSolverMultistep", THIRD, (SCHEDULES_OF_EDM, FINAL), False),
    ("dpmpp_2m_sde", "EDMDPMSolverMultistep", SDE, (SCHEDULES_OF_EDM, TYPES, FINAL), True),
    ("dpmpp_3m_sde", "EDMDPMSolverMultistep", SDE | THIRD, (SCHEDULES_OF_EDM, FINAL), True),
)
PLAIN = {"linspace": {}}
BY_FLOW = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
FLOW = (
    ("euler", "FlowMatchEulerDiscrete", {}, (PLAIN | SIGMAS,), False),
    ("heun", "FlowMatchHeunDiscrete", {}, (PLAIN,), False),
    ("dpmpp_2m", "DPMSolverMultistep", BY_FLOW, (PLAIN, TYPES, FINAL), False),
    ("dpmpp_3m", "DPMSolverMultistep", BY_FLOW | THIRD, (PLAIN, FINAL), False),
    ("dpmpp_2s", "DPMSolverSinglestep", BY_FLOW, (PLAIN, TYPES, FINAL), False),
    ("dpmpp_3s", "DPMSolverSinglestep", BY_FLOW | THIRD, (PLAIN, FINAL), False),
    ("unipc", "UniPCMultistep", BY_FLOW, (PLAIN, ORDERS, BH1, FINAL), False),
    ("deis", "DEISMultistep", BY_FLOW, (PLAIN, ORDERS), False),
    ("flow_euler", "FlowMatchEulerDiscrete", {"stochastic_sampling": True}, (PLAIN | SIGMAS,), True),
    ("dpmpp_2m_sde", "DPMSolverMultistep", BY_FLOW | SDE, (PLAIN, TYPES, FINAL), True),
    ("dpmpp_3m_sde", "DPMSolverMultistep", BY_FLOW | SDE | THIRD, (PLAIN, FINAL), True),
    ("sa_solver", "SASolver", BY_FLOW, (PLAIN,), True),
)


def betas(schedule: NoiseSchedule) -> Any:
    """(N,) the betas of a variance preserving schedule: of its table, or of one of 1000 entries.

    A continuous schedule is made a table as DPM-Solver reads one: entry i is at time (i + 1) / N.
    """
    if schedule.entries:
        abar = schedule.alphas_cumprod  # type: ignore[attr-defined]
    else:
        abar = schedule.alpha(torch.arange(1, 1001, dtype=torch.float64) / 1000 * schedule.t_max) ** 2
    return (1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])).numpy()


def _diffusers(schedule: NoiseSchedule) -> Iterator[Peer]:
    try:
        import diffusers
    except ImportError:
        return
    diffusers.utils.logging.set_verbosity_error()  # it warns of every setting that it changes
    rows, given = VP, {}
    if isinstance(schedule, EDM):
        rows = VE
    elif isinstance(schedule, Flow):
        rows = FLOW
    else:
        given = {"trained_betas": betas(schedule)}
    for solver, name, options, sets, stochastic in rows:
        cls = getattr(diffusers, f"{name}Scheduler")
        known = inspect.signature(cls.__init__).parameters
        for chosen in itertools.product(*(s.items() for s in sets)):
            setting = ", ".join(word for word, _ in chosen if word)
            merged = dict(itertools.chain(given.items(), options.items(), *(on.items() for _, on in chosen)))
            if merged.keys() <= known.keys():  # another version of diffusers may lack a switch
                yield Peer("diffusers", cls, solver, setting, merged, stochastic)


def _run_diffusers(peer: Peer, case: Case, nfe: int) -> Tensor | None:
    scheduler = peer.made(**peer.options)
    most = (nfe + 1) // 2 if scheduler.order == 2 else nfe
    for n in range(most, nfe // 3, -1):  # some spend a few evaluations in advance
        scheduler.set_timesteps(n)
        if len(scheduler.timesteps) <= nfe:
            break
    else:
        return None
    extra: dict[str, Any] = {}
    if "generator" in inspect.signature(scheduler.step).parameters:
        extra["generator"] = torch.Generator().manual_seed(1)
    flow, edm = isinstance(case.schedule, Flow), isinstance(case.schedule, EDM)
    x = case.z * float(getattr(scheduler, "init_noise_sigma", 1.0))
    for i, t in enumerate(scheduler.timesteps):
        if hasattr(scheduler, "scale_model_input"):
            scheduler.scale_model_input(x, t)  # it counts the steps
        alpha, sigma = _scales(scheduler, i, t, flow)
        if i == 0:
            # With one or two steps some spacings begin with hardly any noise, or never leave x_T: that is no sample.
            if sigma < alpha or float(getattr(scheduler, "sigmas", [0.0])[-1]) > 0.5:
                return None
            if sigma > 0.999 * min(case.ratio, 1e9) * alpha:
                x = sigma * case.z
        x0 = case.x0(x, alpha, sigma)
        if edm:  # the scheduler scales what the network says: F of Karras et al. 2022
            d = scheduler.config.sigma_data
            out = (x0 - d * d / (sigma**2 + d * d) * x) * math.sqrt(sigma**2 + d * d) / (sigma * d)
        else:
            noise = (x - alpha * x0) / sigma
            out = noise - x0 if flow else noise
        x = scheduler.step(out, t, x, **extra).prev_sample
    return x


def _scales(scheduler: Any, i: int, t: Any, flow: bool) -> tuple[float, float]:
    """alpha and sigma of the x with which the scheduler asks in its call number i."""
    name = type(scheduler).__name__
    if not hasattr(scheduler, "sigmas"):  # DDIM, DDPM, PNDM, LCM, TCD
        abar = float(scheduler.alphas_cumprod[int(t)])
        return math.sqrt(abar), math.sqrt(1 - abar)
    between = not getattr(scheduler, "state_in_first_order", True)
    if between and hasattr(scheduler, "sigmas_interpol"):  # the second call of a step of KDPM2
        r = float(scheduler.sigmas_interpol[scheduler.step_index - ("Ancestral" in name)])
    elif between and hasattr(scheduler, "mid_point_sigma"):
        r = float(scheduler.mid_point_sigma)
    else:
        r = float(scheduler.sigmas[i])
    if flow:
        return 1 - r, r
    # What starts from noise of another scale than 1 has x / alpha in place of x.
    return (1.0, r) if float(scheduler.init_noise_sigma) != 1 else (1 / math.sqrt(1 + r * r), r / math.sqrt(1 + r * r))


# ------------------------------------------------------------------------------------------- k-diffusion

OF_K = (
    ("euler", "euler", False),
    ("heun", "heun", False),
    ("dpm_2", "dpm_2", False),
    ("lms", "lms", False),
    ("dpmpp_2m", "dpmpp_2m", False),
    ("dpm_solver", "dpm_fast", False),
    ("dpm_adaptive", "dpm_adaptive", False),
    ("euler_ancestral", "euler_ancestral", True),
    ("dpm_2_ancestral", "dpm_2_ancestral", True),
    ("dpmpp_2s_ancestral", "dpmpp_2s_ancestral", True),
    ("dpmpp_sde", "dpmpp_sde", True),
    ("dpmpp_2m_sde", "dpmpp_2m_sde", True),
    ("dpmpp_3m_sde", "dpmpp_3m_sde", True),
)


@functools.cache
def k_sampling() -> Any:
    """The module k_diffusion.sampling; None if it is not installed.

    It is loaded without the rest of its package, which needs torchvision, wandb and CLIP. Of that it uses one function.
    """
    spec = importlib.util.find_spec("k_diffusion")
    if spec is None or spec.submodule_search_locations is None:
        return None
    package, utils = types.ModuleType("k_diffusion"), types.ModuleType("k_diffusion.utils")
    package.__path__ = list(spec.submodule_search_locations)
    utils.append_dims = lambda x, n: x[(...,) + (None,) * (n - x.ndim)]  # type: ignore[attr-defined]
    package.utils = utils  # type: ignore[attr-defined]
    names = {"k_diffusion": package, "k_diffusion.utils": utils}
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)
    try:
        return importlib.import_module("k_diffusion.sampling")
    except ImportError:
        return None
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module


def _k_diffusion(schedule: NoiseSchedule) -> Iterator[Peer]:
    k = k_sampling()
    if k is None or isinstance(schedule, Flow):  # it has no x_T without a part of the data
        return
    for solver, name, stochastic in OF_K:
        grids = ("",) if name in ("dpm_fast", "dpm_adaptive") else ("karras", "exponential")
        for grid in grids:
            yield Peer("k_diffusion", getattr(k, f"sample_{name}"), solver, grid, {}, stochastic)


def _run_k_diffusion(peer: Peer, case: Case, nfe: int) -> Tensor | None:
    k, calls = k_sampling(), 0
    ends = case.schedule.lam(torch.tensor([case.schedule.t_min], dtype=torch.float64))
    least, most = math.exp(-float(ends)), case.ratio

    def model(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        nonlocal calls
        calls += 1
        return case.x0(x, 1.0, float(sigma[0]))

    if peer.name == "dpm_fast":
        return peer.made(model, case.z * most, least, most, nfe, disable=True)
    if peer.name == "dpm_adaptive":
        x = peer.made(model, case.z * most, least, most, disable=True)
        return x if calls <= nfe else None
    for n in (nfe, (nfe + 1) // 2):
        calls = 0
        sigmas = getattr(k, f"get_sigmas_{peer.setting}")(n, least, most).double()
        x = peer.made(model, case.z * most, sigmas, disable=True)
        if calls <= nfe:
            return x
    return None
