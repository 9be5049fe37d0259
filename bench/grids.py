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
import functools
import json
import math

import torch
from kernels import RESULTS, facts, slug
from peers import Case, Peer, peers

import samplers
from samplers import problems
from samplers.canvas import NoiseCanvas
from samplers.gaussian.grid import GridState
from samplers.gaussian.grids import GRIDS, spaced
from samplers.noise_schedules import NoiseSchedule, noise_schedule
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


class Pictures(Case):
    """A case of a problem without a solved ODE."""

    @functools.cached_property
    def truth(self) -> torch.Tensor:
        return ours(self, "dpmpp_2m", "logsnr", 300)


def ours(case: Case, solver: str, grid: str, n: int) -> torch.Tensor:
    """The result of one run on one grid. The points are made here, so that no check of sample() keeps a grid out."""
    sampler = samplers.create(solver, end="zero")
    canvas = NoiseCanvas(case.denoiser, n, Rng.of(0, case.rows))
    points = spaced(grid, case.schedule, case.schedule.t_max, case.schedule.t_min, n - 1, closing=True)
    state = GridState.begin(canvas, points=points, x=case.x)

    def predict(x, at):
        return case.denoiser.predict(x, torch.full((len(x),), getattr(at, "t", at), dtype=torch.float64))

    while not state.last:
        state = sampler.step(predict, state)
    return state.x


def theirs(schedule: NoiseSchedule, solver: str) -> dict[str, Peer]:
    """Spacing -> a scheduler of diffusers that has nothing else changed."""
    found: dict[str, Peer] = {}
    for peer in peers(schedule):
        if peer.library == "diffusers" and "," not in peer.setting and peer.setting != "to sigma_min":
            if peer.solver == solver:
                found[f"DDIM {peer.setting}" if peer.name == "DDIM" else peer.setting] = peer
            elif (solver, peer.solver) == ("ddim", "euler"):
                found[peer.setting] = peer
    return found


# ------------------------------------------------------------------------------------------------ main


def rounded(value: float) -> float | None:
    return None if math.isnan(value) else float(f"{value:.4g}")


def measure(name: str, rows: int) -> dict:
    problem = PROBLEMS[name]()
    out: dict = {"rows": rows, "problem": name, "ours": {}, "peers": {}}
    for name in SCHEDULES:
        solved = hasattr(problem, "truth")
        case = (Case if solved else Pictures)(problem, noise_schedule(name), rows)
        for solver in SOLVERS:
            out["ours"].setdefault(name, {})[solver] = {
                grid: [rounded(case.rms(ours(case, solver, grid, n))) for n in STEPS] for grid in GRIDS
            }
            out["peers"].setdefault(name, {})[solver] = {
                spacing: [None if (x := peer.run(case, n)) is None else rounded(case.rms(x)) for n in STEPS]
                for spacing, peer in (theirs(case.schedule, solver) if solved else {}).items()
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
