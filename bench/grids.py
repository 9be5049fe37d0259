"""Which grid is best at which number of evaluations: rms distance to the ODE's solution, by schedule and solver.

    python bench/grids.py [--rows 512] [--no-save]                      a minute of one core
    python bench/grids.py --problem eight | small | digits              other data; shown and not saved
    python bench/grids.py --show                                        the tables of what is saved; nothing is run

Runs that close, on the exact denoiser of `mixture`: from each x_T the solver's x_0 against the probability-flow ODE solved to
1e-10 and followed to sigma / alpha = 1e-6. Solvers of diffusers run beside ours on the same model and normals, at each of their
spacings, where diffusers is installed. Their model is asked at the scheduler's own sigma, not at a rounded index.
Saved as bench/results/MACHINE/grids.json; docs/continuous_grids.md is the conclusion in words, and the grid "auto" follows it.
"""

import argparse
import json
import math

import torch
from kernels import RESULTS, facts, slug

import samplers
from samplers import problems
from samplers.canvas import NoiseCanvas
from samplers.gaussian.grid import GridState
from samplers.gaussian.grids import GRIDS, spaced
from samplers.noise_schedules import EDM, Flow, NoiseSchedule, noise_schedule
from samplers.random import Rng

SCHEDULES = ("vp_linear", "vp_cosine", "edm", "flow", "scaled_linear")
SOLVERS = ("dpmpp_2m", "ddim")
STEPS = (1, 2, 3, 5, 8, 10, 20, 50)
# "small" is the mixture "two" at a quarter of its size. "digits" are real pictures; their ODE is solved by 300 evaluations.
PROBLEMS = {
    "two": lambda: problems.create("mixture"),
    "eight": lambda: problems.create("mixture", preset="eight"),
    "small": lambda: problems.create(
        "mixture", weights=[0.4, 0.6], means=[[-0.25, -0.25], [0.2, 0.2]], stds=[0.075, 0.125]
    ),
    "digits": lambda: problems.create("digits"),
}
EXACT = 1e-6  # sigma / alpha at which the ODE's solution is taken


class Case:
    """The exact model of one schedule: normals, the denoised x_0 by sigma / alpha, and the distance to the truth."""

    def __init__(self, problem: problems.Problem, schedule: NoiseSchedule, rows: int):
        self.problem, self.schedule = problem, schedule
        self.denoiser = problem.denoiser("gaussian", schedule=schedule, dtype=torch.float64)
        self.rng = Rng.of(0, rows)
        self.z = self.rng.normal(self.denoiser.shape, 0, torch.float64)
        alpha, sigma = (float(f(schedule.t_max)) for f in (schedule.alpha, schedule.sigma))
        x = sigma * self.z
        if not hasattr(problem, "truth"):
            self.truth = self.run("dpmpp_2m", "logsnr", 300)
            return
        if alpha:
            self.truth = problem.truth(x / alpha, EXACT, t_start=sigma / alpha, schedule=EDM())
        else:
            # sigma / alpha = EXACT lies below t_min, where the formulas of the schedule hold as well.
            self.truth = problem.truth(x, EXACT / (1 + EXACT), schedule=Flow()) * (1 + EXACT)

    def rms(self, x: torch.Tensor) -> float:
        return float((x.double() - self.truth).pow(2).mean().sqrt())

    def ours(self, solver: str, grid: str, n: int) -> float:
        return self.rms(self.run(solver, grid, n))

    def run(self, solver: str, grid: str, n: int) -> torch.Tensor:
        sampler = samplers.create(solver, end="zero")
        canvas = NoiseCanvas(self.denoiser, n, self.rng)
        points = spaced(grid, self.schedule, self.schedule.t_max, self.schedule.t_min, n - 1, closing=True)
        state = GridState.begin(canvas, points=points, x=self.schedule.sigma(self.schedule.t_max) * self.z)

        def predict(x, at):
            return self.denoiser.predict(x, torch.full((len(x),), getattr(at, "t", at), dtype=torch.float64))

        while not state.last:
            state = sampler.step(predict, state)
        return state.x


# ------------------------------------------------------------------------------------------- diffusers


def peers(schedule: NoiseSchedule) -> dict[str, dict[str, object]]:
    """Solver -> spacing -> a scheduler of diffusers; {} without diffusers."""
    try:
        import diffusers
    except ImportError:
        return {}
    switches = {s: {f"use_{s}_sigmas": True} for s in ("karras", "exponential", "beta")}
    multistep = diffusers.DPMSolverMultistepScheduler
    if isinstance(schedule, EDM):
        return {
            "dpmpp_2m": {
                s: diffusers.EDMDPMSolverMultistepScheduler(sigma_schedule=s) for s in ("karras", "exponential")
            },
            "ddim": {s: diffusers.EDMEulerScheduler(sigma_schedule=s) for s in ("karras", "exponential")},
        }
    if isinstance(schedule, Flow):
        flow = {"prediction_type": "flow_prediction", "use_flow_sigmas": True}
        return {
            "dpmpp_2m": {"flow": multistep(**flow)},
            "ddim": {
                "linspace": diffusers.FlowMatchEulerDiscreteScheduler(),
                **{s: diffusers.FlowMatchEulerDiscreteScheduler(**on) for s, on in switches.items()},
            },
        }
    if schedule.entries:
        abar = schedule.alphas_cumprod
    else:  # the table of a continuous schedule, as DPM-Solver reads one: entry i at (i + 1) / N
        t = torch.arange(1, 1001, dtype=torch.float64) / 1000 * schedule.t_max
        abar = schedule.alpha(t) ** 2
    betas = (1 - abar / torch.cat([torch.ones(1, dtype=torch.float64), abar[:-1]])).numpy()
    spacings = {s: {"timestep_spacing": s} for s in ("linspace", "trailing", "leading")}
    two_m = spacings | switches | {"lu": {"use_lu_lambdas": True}}
    return {
        "dpmpp_2m": {s: multistep(trained_betas=betas, **on) for s, on in two_m.items()},
        "ddim": {
            **{f"DDIM {s}": diffusers.DDIMScheduler(trained_betas=betas, clip_sample=False, **on) for s, on in spacings.items()},
            **{s: diffusers.EulerDiscreteScheduler(trained_betas=betas, **on) for s, on in (spacings | switches).items()},
        },
    }  # fmt: skip


def theirs(case: Case, scheduler, n: int) -> float:
    """The rms of one run of a scheduler; NaN if it fails at this number of steps."""
    name, flow = type(scheduler).__name__, isinstance(case.schedule, Flow)
    try:
        scheduler.set_timesteps(n)
        # DDIM starts from unit noise; what begins at sigma / alpha = r has the same normals times its scale.
        x = case.z.clone() * float(scheduler.init_noise_sigma if hasattr(scheduler, "init_noise_sigma") else 1.0)
        for i, t in enumerate(scheduler.timesteps):
            if name == "DDIMScheduler":
                abar = float(scheduler.alphas_cumprod[int(t)])
                alpha, sigma = math.sqrt(abar), math.sqrt(1 - abar)
            else:
                r = float(scheduler.sigmas[i])
                euler = "Euler" in name or "EDM" in name
                if flow:
                    alpha, sigma = 1 - r, r
                else:
                    alpha, sigma = (1.0, r) if euler else (1 / math.sqrt(1 + r * r), r / math.sqrt(1 + r * r))
            a, s = (torch.full((len(x), 1), v, dtype=torch.float64) for v in (alpha, sigma))
            x0 = case.denoiser.posterior_mean(x.double(), a, s)
            noise = (x - alpha * x0) / sigma
            if isinstance(
                case.schedule, EDM
            ):  # the scheduler scales what the network says: F of Karras et al., sigma_data .5
                d = scheduler.config.sigma_data
                out = (x0 - d * d / (s * s + d * d) * x) / (s * d / (s * s + d * d).sqrt())
                scheduler.scale_model_input(x, t)
            else:
                out = noise - x0 if flow else noise
                if "Euler" in name and not flow:
                    scheduler.scale_model_input(x, t)
            x = scheduler.step(out, t, x).prev_sample
    except (IndexError, ValueError, ZeroDivisionError, AssertionError):
        return math.nan
    return case.rms(x)


# ------------------------------------------------------------------------------------------------ main


def rounded(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.4g}")


def measure(name: str, rows: int) -> dict:
    problem = PROBLEMS[name]()
    out: dict = {"rows": rows, "problem": name, "ours": {}, "peers": {}}
    for name in SCHEDULES:
        case = Case(problem, noise_schedule(name), rows)
        schedulers = peers(case.schedule) if hasattr(problem, "truth") else {}
        for solver in SOLVERS:
            out["ours"].setdefault(name, {})[solver] = {
                grid: [rounded(case.ours(solver, grid, n)) for n in STEPS] for grid in GRIDS
            }
            out["peers"].setdefault(name, {})[solver] = {
                spacing: [rounded(theirs(case, s, n)) for n in STEPS]
                for spacing, s in schedulers.get(solver, {}).items()
            }
    return out


def show(found: dict) -> None:
    print(f"{found['problem']}, {found['rows']} rows; rms to the ODE's solution at n evaluations")
    for name, solvers in found["ours"].items():
        for solver, grids in solvers.items():
            print(f"\n{name}, {solver}" + "".join(f"{n:>10}" for n in STEPS))
            for kind, rows in (("", grids), ("diffusers ", found["peers"].get(name, {}).get(solver, {}))):
                for grid, values in rows.items():
                    print(f"{kind + grid:<28}" + "".join(f"{math.nan if v is None else v:>10.2e}" for v in values))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=512)
    parser.add_argument("--problem", default="two", choices=PROBLEMS)
    parser.add_argument("--show", action="store_true")
    parser.add_argument("--no-save", action="store_true")
    args = parser.parse_args()
    path = RESULTS / slug() / "grids.json"
    if args.show:
        show(json.loads(path.read_text()))
        return
    found = measure(args.problem, args.rows)
    show(found)
    if not args.no_save and args.problem == "two":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"machine": facts()} | found) + "\n")


if __name__ == "__main__":
    main()
