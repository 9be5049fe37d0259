"""The continuous samplers beside diffusers and k-diffusion: error, order, speed; the numbers of docs/which_solver.md.

    python bench/continuous.py                     # everything, then the page: half an hour of one core
    python bench/continuous.py error noise         # parts: error, noise, slopes, speed, digits
    python bench/continuous.py show                # tables of what is saved; nothing is run
    python bench/continuous.py page                # docs/which_solver.md and docs/continuous.png from what is saved

    error    deterministic solvers: rms distance to the ODE's solution from the same x_T, on the exact model of a mixture
    noise    solvers that draw noise: energy distance to the exact distribution, by all numbers of the samples
    slopes   convergence orders, on an even and on an uneven grid; of solvers that draw noise the weak orders
    speed    processor time per step at 4 x 64 x 64 with a model that costs nothing, set-up and first noise included
    digits   scikit-learn's digits, exact and by the trained model digits-gauss

Our samplers run as they come, with each value of an option `order` beside that; those of others at each of their settings,
of which the best one counts at each number of evaluations. Results are kept as bench/results/MACHINE/continuous.json.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from kernels import RESULTS, facts, slug
from peers import Case, Peer, k_sampling, peers, versions
from torch import Tensor
from zoo import fill_in

import samplers
from samplers import problems, registry
from samplers.canvas import NoiseCanvas
from samplers.errors import SamplersError
from samplers.gaussian.arguments import GaussianConfig
from samplers.gaussian.predictor import GaussianPredictor

ROOT = Path(__file__).parent.parent
PAGE, PICTURE = ROOT / "docs/which_solver.md", ROOT / "docs/continuous.png"
SCHEDULES = ("ddpm_linear", "scaled_linear", "edm", "flow")
STEPS = (1, 2, 3, 5, 8, 10, 20, 50)
BAR = 1.05  # ours may be this many times theirs, at 3 evaluations or more
GRIDS = ("logsnr", "karras")  # slopes are measured on an even and on an uneven one
PARTS = ("error", "noise", "slopes", "speed", "digits")
Found = dict[str, Any]


def ours(stochastic: bool | None = None, patterns: Iterable[str] = ("*",)) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(label, name, options) of our samplers as they come, and with each other value of an option `order`."""
    for name in registry.names(tuple(patterns), "gaussian"):
        if registry.entry(name).distribution != registry.DISTRIBUTION:
            continue
        cls = registry.load(name)
        orders = next((o for o in cls.options() if o.name == "order"), None)
        others = (
            [p for p in orders.metadata.get("choices", (1, 2, 3)) if p not in (1, orders.default)] if orders else []
        )
        for p in (None, *others):
            options = {} if p is None else {"order": p}
            if stochastic in (None, samplers.create(name, **options).effective_facts.stochastic):
                yield (name if p is None else f"{name} order={p}"), name, options


def ours_at(case: Case, name: str, options: dict[str, Any], n: int) -> tuple[Tensor | None, int]:
    """The samples of one of our samplers, and the evaluations that it spent; None if it cannot."""
    try:
        out = samplers.sample(case.denoiser, name, batch=case.rows, steps=n, start_noise=case.z, **options)
    except (SamplersError, ZeroDivisionError) as wrong:
        print(f"{name} at {n} on {case.schedule!r}: {wrong}", file=sys.stderr)
        return None, n
    return (out.x if bool(torch.isfinite(out.x).all()) else None), out.nfe


# ------------------------------------------------------------------------------------------- error and noise


def error(rows: int, patterns: Iterable[str]) -> Found:
    """The rms distance to the ODE's solution, by schedule and solver, one number for each of STEPS."""
    return _sweep(rows, 2, patterns, stochastic=False, score=lambda case, x: case.rms(x))


def noise(rows: int, patterns: Iterable[str]) -> Found:
    """The energy distance of the solvers that draw noise, see `energy`; and of ours that draw none, as they come."""

    def score(_: Case, x: Tensor) -> float:
        return energy(x)  # the coordinates of the mixture are alike, and independent

    problem = problems.create("mixture", dim=16)
    found = _sweep(rows, 16, patterns, stochastic=True, score=score)
    found["without"] = {}
    for schedule in SCHEDULES:
        case = Case(problem, schedule, rows)
        plain = [(label, name) for label, name, options in ours(False, patterns) if not options]
        found["without"][schedule] = {label: _values(case, name, {}, score) for label, name in plain}
    exact = [energy(problem.sample_truth(rows, seed, "gaussian")) for seed in range(20)]
    return found | {"floor": statistics.median(exact)}


def _values(case: Case, name: str, options: dict[str, Any], score: Callable[[Case, Tensor], float]) -> Found:
    """The evaluations and the score of one of our samplers at each of STEPS."""
    runs = [ours_at(case, name, options, n) for n in STEPS]
    return {"nfe": [n for _, n in runs], "value": [None if x is None else score(case, x) for x, _ in runs]}


def _sweep(
    rows: int, dim: int, patterns: Iterable[str], *, stochastic: bool, score: Callable[[Case, Tensor], float]
) -> Found:
    problem = problems.create("mixture", dim=dim)
    found: Found = {"rows": rows, "dim": dim, "steps": STEPS, "ours": {}, "peers": {}}
    for schedule in SCHEDULES:
        case = Case(problem, schedule, rows)
        mine = found["ours"][schedule] = {}
        for label, name, options in ours(stochastic, patterns):
            mine[label] = _values(case, name, options, score)
            _say(schedule, label, mine[label]["value"])
        made: dict[str, list[tuple[Peer, list[float | None]]]] = {}
        for peer in peers(case.schedule):
            if peer.stochastic is stochastic:
                values = [None if (x := peer.run(case, n)) is None else score(case, x) for n in STEPS]
                made.setdefault(f"{peer.library} {peer.solver}", []).append((peer, values))
        found["peers"][schedule] = {name: _best(runs) for name, runs in made.items()}
        for name, entry in found["peers"][schedule].items():
            _say(schedule, name, entry["value"])
    return found


def _best(runs: list[tuple[Peer, list[float | None]]]) -> Found:
    """The best setting of one peer at each of STEPS."""
    found: Found = {"made": runs[0][0].name, "settings": len(runs), "value": [], "setting": []}
    for i in range(len(STEPS)):
        there = [(values[i], peer.setting) for peer, values in runs if values[i] is not None]
        value, setting = min(there, default=(None, ""))
        found["value"].append(value)
        found["setting"].append(setting)
    return found


def _say(schedule: str, name: str, values: list[float | None]) -> None:
    print(f"{schedule:<14}{name:<32}" + "".join(f"{_number(v):>10}" for v in values), flush=True)


def energy(x: Tensor) -> float:
    """The square root of the energy distance of all coordinates of x to a coordinate of the mixture "two".

    Its square, 2 E|x - Y| - E|x - x'| - E|Y - Y'|, is 2 int (F_x - F_Y)^2, F_x the steps of the samples. The terms with Y have
    closed forms; the pairs of x are summed by sorting. Exact samples are off by chance, and any others by that as well.
    """
    one = problems.create("mixture", dim=1)
    w, m, s = one.weights, one.means[:, 0], one.stds

    def mean_distance(v: Tensor, weights: Tensor, means: Tensor, stds: Tensor) -> Tensor:
        z = (v[:, None] - means) / stds
        density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
        return ((stds * z * (2 * torch.special.ndtr(z) - 1) + 2 * stds * density) * weights).sum(1)

    v = x.double().flatten().sort().values
    n = len(v)
    rank = torch.arange(n, dtype=torch.float64)
    pairs = float((2 * (2 * rank - n + 1) * v).sum()) / n**2
    both = (w[:, None] * w).flatten(), (m[:, None] - m).flatten(), (s[:, None] ** 2 + s**2).sqrt().flatten()
    exact = float(mean_distance(torch.zeros(1, dtype=torch.float64), *both))
    return math.sqrt(max(2 * float(mean_distance(v, w, m, s).mean()) - pairs - exact, 0.0))


# ------------------------------------------------------------------------------------------- slopes


def slopes(patterns: Iterable[str]) -> Found:
    """The measured convergence orders, {label: {grid: slope}}, and of solvers that draw noise {weak}, as they come."""
    problem = problems.create("mixture")
    denoiser = problem.denoiser(schedule="vp_linear")
    found: Found = {}
    for label, name, options in ours(None, patterns):
        usual = samplers.create(name, **options)
        entry: Found = {}
        settings = options | {"end": "t_end"}
        if usual.effective_facts.stochastic:
            entry["weak"] = weak_slope(samplers.create(name, **(settings | {"grid": "logsnr"})))
            # What makes it a solver of the ODE is among what its order is tested with.
            settings = {k: v for k, v in registry.load(name).conformance.order.items() if k != "order"} | settings
        for grid in GRIDS if getattr(usual, "order", None) is not None else ():
            try:
                sampler = samplers.create(name, **(settings | {"grid": grid}))
            except SamplersError:
                continue
            if not sampler.effective_facts.stochastic:
                entry[grid] = slope(problem, denoiser, sampler)
        found[label] = entry
        print(f"{label:<32}" + "".join(f"  {k} {_number(v)}" for k, v in entry.items()), flush=True)
    return found


def slope(problem: Any, denoiser: Any, sampler: Any, steps: tuple[int, ...] = (48, 72, 108, 162)) -> float:
    """How fast the distance to the ODE's solution falls: minus the slope of its logarithm in that of the evaluations."""
    truth, errors, spent = None, [], []
    for n in steps:
        n += -n % 12  # a multiple of what singlestep solvers of all orders need
        run = samplers.stream(denoiser, sampler, batch=32, steps=n)
        first = next(run).x
        truth = problem.truth(first, schedule=denoiser.schedule) if truth is None else truth
        for _ in run:
            pass
        errors.append(float((run.state.x - truth).pow(2).mean().sqrt()))
        spent.append(run.nfe)
    return regress(spent, errors)


def regress(spent: list[int], errors: list[float], floor: float = 1e-9) -> float:
    """Minus the least-squares slope of log error in log evaluations, over the errors that are above rounding."""
    kept = [(math.log(n), math.log(e)) for n, e in zip(spent, errors) if e > floor]
    if len(kept) < 2:
        return math.nan
    xs, ys = zip(*kept)
    line = statistics.linear_regression(xs, ys)
    return -line.slope


class Basis:
    """Normals of which each is 1 in a row of its own and 0 in all others, so that a linear run shows its coefficients."""

    def __init__(self, rows: int):
        self.row = self.seed = torch.zeros(rows, dtype=torch.int64)
        self.place: dict[int, int] = {}

    def normal(self, shape: Any, draw: int, dtype: torch.dtype) -> Tensor:
        row = self.place.setdefault(draw, len(self.place) + 2)  # row 0 has no noise at all, row 1 that of x_T
        z = torch.zeros(len(self.row), *shape, dtype=dtype)
        if row < len(z):
            z[row] = 1
        return z


def weak_error(sampler: Any, steps: int, mean: float = 0.7, std: float = 0.5) -> tuple[float, int]:
    """(error of mean and deviation at the end, evaluations) for the data N(mean, std^2), without any chance.

    The denoiser of a Gaussian is linear in x, so x at the end is c + A x_T + sum B_k z_k, and the run with one z_k = 1 at a
    time gives all coefficients; x_T is given its exact mean and deviation. Mean and deviation of x follow without samples.
    """
    problem = problems.create("mixture", weights=[1.0], means=[[mean]], stds=[std])
    denoiser = problem.denoiser(schedule="vp_linear")
    rows = 2
    for _ in range(2):  # the first run counts the normals
        rng = Basis(rows)
        canvas = NoiseCanvas(denoiser, steps, rng, first_noise=torch.zeros(rows, 1, dtype=torch.float64))  # type: ignore[arg-type]
        canvas.first_noise[1] = 1  # type: ignore[index]
        predictor = GaussianPredictor(canvas, GaussianConfig(), sampler=sampler.name)
        state = sampler.init(canvas)
        s, t = state.points[0], state.points[-1]
        with torch.no_grad():
            while not state.finished:
                made = sampler.step(predictor, state)
                state = made[0] if isinstance(made, tuple) else made
        rows = len(rng.place) + 2
    x = state.x.flatten()
    constant, effects = float(x[0]), x[1:] - x[0]
    start = (s.alpha * mean, math.hypot(s.alpha * std, s.sigma))  # x_T is s.sigma times its normal
    got_mean = constant + float(effects[0]) / s.sigma * start[0]
    got_std = math.sqrt((float(effects[0]) / s.sigma * start[1]) ** 2 + float(effects[1:].square().sum()))
    return math.hypot(got_mean - t.alpha * mean, got_std - math.hypot(t.alpha * std, t.sigma)), predictor.counter.nfe


def weak_slope(sampler: Any, steps: tuple[int, ...] = (48, 96, 192)) -> float | None:
    try:
        made = [weak_error(sampler, n) for n in steps]
    except SamplersError:
        return None
    return regress([n for _, n in made], [e for e, _ in made], 1e-12)


# ------------------------------------------------------------------------------------------- speed

SHAPE, LOOPS = (4, 64, 64), 20
# What we call it, its options, the scheduler of diffusers, the function of k-diffusion.
FRESH = {"noise": "fresh"}  # as diffusers draws them; ours come from a Brownian path, as k-diffusion's do
SAME: tuple[tuple[str, dict[str, Any], str | None, str | None], ...] = (
    ("ddim", {}, "DDIMScheduler", None),
    ("euler", {}, "EulerDiscreteScheduler", "euler"),
    ("heun", {}, "HeunDiscreteScheduler", "heun"),
    ("dpmpp_2m", {}, "DPMSolverMultistepScheduler", "dpmpp_2m"),
    ("unipc", {}, "UniPCMultistepScheduler", None),
    ("deis", {}, "DEISMultistepScheduler", None),
    ("euler_ancestral", FRESH, "EulerAncestralDiscreteScheduler", "euler_ancestral"),
    ("euler_ancestral", {}, "EulerAncestralDiscreteScheduler", "euler_ancestral"),
    ("dpmpp_2m_sde", {}, None, "dpmpp_2m_sde"),
)


def speed(rounds: int) -> Found:
    """Microseconds of processor time per evaluation, {batch: {solver: {who: median}}}; those of one solver take turns.

    Processor time, because a run that is interrupted by others would count their time as well.
    """
    found: Found = {"shape": SHAPE, "steps": LOOPS, "rounds": rounds, "batches": {}}
    for batch in (1, 8):
        table = found["batches"][str(batch)] = {}
        for solver, options, scheduler, function in SAME:
            calls = _calls(batch, solver, options, scheduler, function)
            label = " ".join([solver, *(f"{k}={v}" for k, v in options.items())])
            taken: dict[str, list[float]] = {who: [] for who in calls}
            for call in calls.values():
                call()
            for _ in range(rounds):
                for who, call in calls.items():
                    begun = time.process_time()
                    call()
                    taken[who].append(time.process_time() - begun)
            table[label] = {who: 1e6 * statistics.median(t) / LOOPS for who, t in taken.items()}
            said = "".join(f"  {w} {v:.0f}" for w, v in table[label].items())
            print(f"batch {batch}  {label:<32}{said}", flush=True)
    return found


def _calls(
    batch: int, solver: str, options: dict[str, Any], scheduler: str | None, function: str | None
) -> dict[str, Callable[[], Any]]:
    """Who -> a whole run of LOOPS evaluations: set-up, first noise, steps. The model returns one and the same tensor."""
    answer = torch.randn(batch, *SHAPE, generator=torch.Generator().manual_seed(0))
    denoiser = samplers.GaussianDenoiser.wrap(lambda x, t: answer, shape=SHAPE, schedule="scaled_linear")
    calls: dict[str, Callable[[], Any]] = {
        "ours": lambda: samplers.sample(denoiser, solver, batch=batch, steps=LOOPS, seed=1, **options)
    }
    if versions()["diffusers"]:
        import diffusers

        from samplers.models.diffusers import Scheduler

        diffusers.utils.logging.set_verbosity_error()
        betas = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
        plain = diffusers.DDIMScheduler(**betas).config
        mine = Scheduler.from_config(plain, sampler=solver, sampler_options=options)
        calls["ours as scheduler"] = functools.partial(_loop, mine, answer)
        if scheduler:
            calls["diffusers"] = functools.partial(_loop, getattr(diffusers, scheduler)(**betas), answer)
    if function and (k := k_sampling()):
        run = getattr(k, f"sample_{function}")
        n = (LOOPS + 1) // 2 if function == "heun" else LOOPS

        def with_k() -> Any:
            sigmas = k.get_sigmas_karras(n, 0.0292, 14.6146)
            return run(lambda x, sigma: answer, torch.randn(batch, *SHAPE) * sigmas[0], sigmas, disable=True)

        calls["k_diffusion"] = with_k
    return calls


def _loop(scheduler: Any, answer: Tensor) -> Tensor:
    """The loop of a pipeline of diffusers, without its model."""
    with torch.no_grad():
        scheduler.set_timesteps((LOOPS + 1) // 2 if "Heun" in type(scheduler).__name__ else LOOPS)
        x = torch.randn(answer.shape) * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            scheduler.scale_model_input(x, t)
            x = scheduler.step(answer, t, x, return_dict=False)[0]
    return x


# ------------------------------------------------------------------------------------------- digits

ON_DIGITS = (5, 10, 20, 50)


def digits(rows: int, patterns: Iterable[str]) -> Found:
    """Kernel distance (mmd) to the exact distribution of the digits: {model: {label: {nfe, value, low, high}}}."""
    from samplers.models import zoo

    problem = problems.create("digits")
    models = {"exact": problem.denoiser("gaussian"), "digits-gauss": zoo.load("digits-gauss")}
    exact = [problem.score(problem.sample_truth(rows, seed, "gaussian"), "gaussian")["mmd"].value for seed in range(5)]
    found: Found = {"rows": rows, "steps": ON_DIGITS, "floor": statistics.median(exact), "models": {}}
    for model, denoiser in models.items():
        table = found["models"][model] = {}
        for label, name, options in ours(None, patterns):
            if options:
                continue
            entry: Found = {"nfe": [], "value": [], "low": [], "high": []}
            for n in ON_DIGITS:
                try:
                    out = samplers.sample(denoiser, name, batch=rows, steps=n)
                    score = problem.score(out)["mmd"] if bool(torch.isfinite(out.x).all()) else None
                except SamplersError:
                    out = score = None
                entry["nfe"].append(out.nfe if out else n)
                for key in ("value", "low", "high"):
                    entry[key].append(getattr(score, key) if score else None)
            table[label] = entry
            print(f"{model:<14}{label:<28}" + "".join(f"{_number(v):>10}" for v in entry["value"]), flush=True)
    return found


# ------------------------------------------------------------------------------------------- what follows from it


def front(part: Found, schedule: str, i: int, who: str) -> tuple[float, str]:
    """(the best value at STEPS[i], whose it is): of "ours", "without" (ours that draw no noise), "diffusers" or "k_diffusion".

    "any" of ours if most of them do the same, as they do with one evaluation.
    """
    if who in ("ours", "without"):
        entries = part.get(who, {}).get(schedule, {})
        made = [(e["value"][i], label) for label, e in entries.items() if e["nfe"][i] <= part["steps"][i]]
    else:
        made = [(e["value"][i], e["made"]) for name, e in part["peers"][schedule].items() if name.split()[0] == who]
    there = [(v, name) for v, name in made if v is not None]
    value, name = min(there, default=(math.nan, ""))
    alike = sum(v <= value * 1.001 for v, _ in there)
    return value, "any" if 2 * alike > len(there) > 2 else name


def compare(part: Found) -> Iterator[tuple[str, str, str, list[float | None]]]:
    """(schedule, solver, library, ratio at each of STEPS of our default to their best setting) of solvers that both have."""
    for schedule, theirs in part["peers"].items():
        for name, entry in theirs.items():
            library, solver = name.split()
            mine = part["ours"][schedule].get(solver)
            if mine is not None:
                yield (
                    schedule,
                    solver,
                    library,
                    [a / b if a is not None and b else None for a, b in zip(mine["value"], entry["value"])],
                )


def fronts_lost(part: Found) -> list[str]:
    """Every place at 3 evaluations or more where the best of ours is worse than the best of diffusers, as sentences."""
    out = []
    for schedule in part["ours"]:
        for i, n in enumerate(part["steps"]):
            (a, mine), (b, theirs) = (front(part, schedule, i, who) for who in ("ours", "diffusers"))
            if n >= 3 and math.isnan(a) and not math.isnan(b):
                out.append(f"{schedule}, {n}: none of ours, and {theirs} has {b:.3g}")
            elif n >= 3 and a > b:
                out.append(f"{schedule}, {n}: {mine} {a:.3g}, {theirs} {b:.3g}")
    return out


def solvers_lost(part: Found) -> dict[str, list[tuple[float, str]]]:
    """Solver -> (ratio, where) of every place at 3 evaluations or more."""
    out: dict[str, list[tuple[float, str]]] = {}
    for schedule, solver, library, ratios in compare(part):
        for n, ratio in zip(part["steps"], ratios):
            if n >= 3 and ratio is not None:
                out.setdefault(solver, []).append((ratio, f"{schedule}, {n}, {library.replace('_', '-')}"))
    return out


def lost(part: Found) -> str:
    """Solvers that both have: in how many places ours, as it comes, is worse than BAR times theirs at its best."""
    rows = []
    for solver, places in sorted(solvers_lost(part).items()):
        many = sum(r > BAR for r, _ in places)
        middle = statistics.median(r for r, _ in places)
        worst, where = max(places)
        rows.append([f"`{solver}`", f"{many} of {len(places)}", f"{middle:.2f}", f"{worst:.2f}", where])
    return table(["sampler", "worse by more than 5 %", "median ratio", "largest", "where"], rows)


def _number(v: float | None) -> str:
    return "" if v is None or math.isnan(v) else f"{v:.3g}" if v >= 0.001 or v == 0 else f"{v:.1e}"


def table(head: list[str], rows: Iterable[list[str]]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


WHO = {"ours": "ours", "without": "ours without noise", "diffusers": "diffusers", "k_diffusion": "k-diffusion"}


def fronts(part: Found) -> str:
    """For each schedule: the best of ours, of diffusers and of k-diffusion at each number of evaluations."""
    rows = []
    for schedule in part["ours"]:
        values = {who: [front(part, schedule, i, who) for i in range(len(part["steps"]))] for who in WHO}
        for who, made in values.items():
            if any(not math.isnan(v) for v, _ in made):
                cells = [f"{_number(v)} <sub>{name}</sub>" if name else "" for v, name in made]
                rows.append([schedule if who == "ours" else "", WHO[who], *cells])
        if any(not math.isnan(v) for v, _ in values["diffusers"]):
            ratio = [a / b if b else math.nan for (a, _), (b, _) in zip(values["ours"], values["diffusers"])]
            rows.append(["", "ours / diffusers", *(_number(r) for r in ratio)])
    return table(["schedule", "best of", *(str(n) for n in part["steps"])], rows)


def in_short(part: Found, noisy: Found) -> str:
    """At each number of evaluations the sampler of ours that is best over all schedules: by the mean log ratio to the front."""

    def overall(part: Found, i: int) -> tuple[float, str]:
        least = {schedule: front(part, schedule, i, "ours")[0] for schedule in part["ours"]}
        made = []
        for name in next(iter(part["ours"].values())):
            values = [made[name]["value"][i] if name in made else None for made in part["ours"].values()]
            if all(values) and front(part, next(iter(least)), i, "ours")[1] != "any":
                logs = [math.log(v / least[schedule]) for v, schedule in zip(values, least) if v and least[schedule]]
                made.append((math.exp(statistics.mean(logs)), name))
        return min(made, default=(math.nan, "any"))

    rows = []
    for i, n in enumerate(part["steps"]):
        (a, name), (b, with_noise) = overall(part, i), overall(noisy, i)
        rows.append(
            [str(n), f"`{name}`" if name else "", _number(a), f"`{with_noise}`" if with_noise else "", _number(b)]
        )
    return table(
        ["evaluations", "best overall", "over the front", "best that draws noise", "over the front of those"], rows
    )


def solvers(part: Found, schedule: str, slopes: Found) -> str:
    """Every sampler of ours on one schedule, the best at 10 evaluations first."""
    at = part["steps"].index(10)
    made = part["ours"][schedule]
    order = sorted(made, key=lambda label: (made[label]["value"][at] is None, made[label]["value"][at] or 0, label))
    kind = "weak" if any("weak" in slopes.get(label, {}) for label in made) else "logsnr"
    return table(
        ["sampler", *(str(n) for n in part["steps"]), "weak order" if kind == "weak" else "order"],
        (
            [f"`{label}`", *(_number(v) for v in made[label]["value"]), _slope(slopes.get(label, {}), kind)]
            for label in order
        ),
    )


def _slope(entry: Found, kind: str) -> str:
    value = entry.get(kind)
    return "" if value is None or math.isnan(value) else f"{value:.2f}"


def ratios(part: Found) -> str:
    """Our default over their best setting, for solvers that both have: each schedule and library, each of STEPS."""
    rows = []
    for schedule, solver, library, values in sorted(compare(part), key=lambda c: (c[1], c[2], SCHEDULES.index(c[0]))):
        cells = [
            f"**{_number(r)}**" if r is not None and r > BAR and n >= 3 else _number(r)
            for n, r in zip(part["steps"], values)
        ]
        rows.append([f"`{solver}`", schedule, library.replace("_", "-"), *cells])
    return table(["sampler", "schedule", "beside", *(str(n) for n in part["steps"])], rows)


def times(part: Found) -> str:
    who = ("ours", "ours as scheduler", "diffusers", "k_diffusion")
    rows = []
    for batch, solved in part["batches"].items():
        for solver, made in solved.items():
            beside = made.get("diffusers") or made.get("k_diffusion")
            ratio = f"{made['ours'] / beside:.2f}" if "ours" in made and beside else ""
            rows.append([batch, f"`{solver}`", *(f"{made[w]:.0f}" if w in made else "" for w in who), ratio])
    return table(["batch", "sampler", *(w.replace("_", "-") for w in who), "ours / theirs"], rows)


def on_digits(part: Found) -> str:
    rows = []
    labels = sorted(next(iter(part["models"].values())))
    for label in labels:
        rows.append(
            [
                f"`{label}`",
                *(_number(v) for table in part["models"].values() for v in table.get(label, {}).get("value", [])),
            ]
        )
    return table(["sampler", *(f"{model}, {n}" for model in part["models"] for n in part["steps"])], rows)


def orders(part: Found) -> str:
    rows = ([f"`{label}`", *(_slope(e, g) for g in (*GRIDS, "weak"))] for label, e in part.items() if e)
    return table(["sampler", *GRIDS, "weak order"], rows)


# ------------------------------------------------------------------------------------------- the page


def page(found: Found) -> None:
    """Write the tables of docs/which_solver.md, and the picture."""
    e, w, s = found["error"], found["noise"], found["slopes"]
    about, timed = found["machine"], found["speed"]["rounds"]
    peer = " and ".join(f"{name.replace('_', '-')} {v}" for name, v in found["peers"].items() if v) or "no peer"
    lines = [*fronts_lost(e), *(f"with noise, {line}" for line in fronts_lost(w))]
    parts = {
        "measured": (
            f"Measured on {about['cpu']}, {about['cores']} cores, one thread, torch {about['torch']}, beside {peer}. "
            f"Errors are those of {e['rows']} runs, energy distances those of {w['rows'] * w['dim']:,} numbers, times the "
            f"medians of {timed} rounds."
        ),
        "short": in_short(e, w),
        "fronts": fronts(e),
        "noise fronts": fronts(w) + f"\n\nExact samples as many as these are {_number(w['floor'])} off.",
        "lost": "\n".join(f"- {line}" for line in lines) or "Nowhere.",
        "lost by solver": lost(e),
        "noise lost by solver": lost(w),
        "ratios": ratios(e),
        "noise ratios": ratios(w),
        "orders": orders(s),
        "speed": times(found["speed"]),
        "digits": on_digits(found["digits"]) + f"\n\nExact samples: {_number(found['digits']['floor'])}.",
    }
    for schedule in SCHEDULES:
        parts[f"solvers {schedule}"] = solvers(e, schedule, s)
    parts["noise solvers"] = solvers(w, SCHEDULES[0], s)
    fill_in(PAGE, parts)
    from continuous_picture import draw

    draw(found, PICTURE)


def show(found: Found) -> None:
    for name in ("error", "noise"):
        if part := found.get(name):
            print(f"\n{name}\n{fronts(part)}\n\n{ratios(part)}\n\n{lost(part)}\n\nworse:", *fronts_lost(part), sep="\n")
    if "slopes" in found:
        print(f"\n{orders(found['slopes'])}")
    if "speed" in found:
        print(f"\nmicroseconds per evaluation\n{times(found['speed'])}")
    if "digits" in found:
        print(f"\n{on_digits(found['digits'])}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "parts", nargs="*", choices=[*PARTS, "show", "page", []], help="nothing: all parts and the page"
    )
    parser.add_argument(
        "--only", action="append", metavar="PATTERN", help="these of our samplers only; may be repeated"
    )
    parser.add_argument("--rows", type=int, help="samples (256 for error, 2048 for noise, 512 for digits)")
    parser.add_argument("--rounds", type=int, default=25, help="rounds of speed (25)")
    parser.add_argument("--no-save", action="store_true", help="keep no results")
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", module="diffusers|torchsde")
    path = RESULTS / slug() / "continuous.json"
    found: Found = json.loads(path.read_text()) if path.exists() else {}
    only = args.only or ["*"]
    run: dict[str, Callable[[], Found]] = {
        "error": lambda: error(args.rows or 256, only),
        "noise": lambda: noise(args.rows or 2048, only),
        "slopes": lambda: slopes(only),
        "speed": lambda: speed(args.rounds),
        "digits": lambda: digits(args.rows or 512, only),
    }
    for part in args.parts or [*PARTS, "page"]:
        if part == "show":
            show(found)
        elif part == "page":
            page(found)
        else:
            begun = time.perf_counter()
            found[part] = run[part]()
            print(f"{part}: {time.perf_counter() - begun:.0f} s", file=sys.stderr)
            found |= {"machine": facts(), "peers": versions()}
            if not args.no_save:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(_plain(found)) + "\n")


def _plain(value: Any) -> Any:
    """The value with floats of four digits, which json can write."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


if __name__ == "__main__":
    main()
