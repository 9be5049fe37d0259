"""bench/continuous.py and bench/peers.py: the numbers are what their names say, and the page follows from them."""

import math
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import samplers
from samplers import problems, registry
from samplers.noise_schedules import noise_schedule

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import continuous
import peers

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore::DeprecationWarning")]


def cdf(v):
    """Of the mixture "two": .4 N(-1, .3^2) + .6 N(.8, .5^2)."""
    return 0.4 * torch.special.ndtr((v + 1) / 0.3) + 0.6 * torch.special.ndtr((v - 0.8) / 0.5)


def test_energy_is_twice_the_squared_area_between_the_distributions():
    x = torch.linspace(-2, 3, 400, dtype=torch.float64)[torch.randperm(400)]
    v = torch.linspace(-6, 6, 400_001, dtype=torch.float64)
    steps = torch.searchsorted(x.sort().values, v, right=True).double() / 400
    area = float(np.trapezoid(((steps - cdf(v)) ** 2).numpy(), v.numpy()))
    assert continuous.energy(x) ** 2 == pytest.approx(2 * area, rel=1e-4)


def test_energy_of_exact_samples_is_small():
    exact = problems.create("mixture", dim=1).sample_truth(20_000, 0, "gaussian")
    assert continuous.energy(exact) < 0.02 < continuous.energy(exact + 0.05)


def test_slope():
    assert continuous.regress([10, 20, 40], [1.0, 0.125, 0.125**2]) == pytest.approx(3)
    assert continuous.regress([10, 20, 40], [1.0, 0.25, 1e-15]) == pytest.approx(
        2
    )  # what is lost in rounding is left out
    assert math.isnan(continuous.regress([10, 20], [1e-15, 1e-15]))


def ancestral(points, eta, mean, std):
    """Mean and deviation at the end of DDIM's chain for data N(mean, std^2), one point after the other."""
    s = points[0]
    m, var = s.alpha * mean, (s.alpha * std) ** 2 + s.sigma**2
    for s, t in zip(points, points[1:]):
        noise = eta * t.sigma * math.sqrt(1 - math.exp(2 * (s.lam - t.lam)))
        keep = math.sqrt(t.sigma**2 - noise**2) / s.sigma
        gain = s.alpha * std**2 / (s.alpha**2 * std**2 + s.sigma**2)  # d x_0 / d x
        x0 = mean + gain * (m - s.alpha * mean)
        m = t.alpha * x0 + keep * (m - s.alpha * x0)
        var = (keep + (t.alpha - keep * s.alpha) * gain) ** 2 * var + noise**2
    return m, math.sqrt(var)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_weak_error_is_that_of_the_chain(eta):
    sampler = samplers.create("ddim", eta=eta, grid="logsnr", end="t_end")
    schedule = noise_schedule("vp_linear")
    points = schedule.points(
        schedule.t_of(
            torch.linspace(float(schedule.lam(1.0)), float(schedule.lam(schedule.t_min)), 13, dtype=torch.float64)
        )
    )
    m, std = ancestral(points, eta, 0.7, 0.5)
    t = points[-1]
    expected = math.hypot(m - t.alpha * 0.7, std - math.hypot(t.alpha * 0.5, t.sigma))
    got, nfe = continuous.weak_error(sampler, 12)
    assert nfe == 12
    # Between the points of vp_linear rounding is 1e-9 at the start, where alpha is 0.007.
    assert got == pytest.approx(expected, rel=1e-6)


def test_measured_slopes():
    problem = problems.create("mixture")
    sampler = samplers.create("ddim", grid="logsnr", end="t_end")
    slope = continuous.slope(problem, problem.denoiser(schedule="vp_linear"), sampler, (24, 48, 96))
    assert slope == pytest.approx(1, abs=0.06)
    assert continuous.weak_slope(
        samplers.create("ddim", eta=1.0, grid="logsnr", end="t_end"), (24, 48)
    ) == pytest.approx(1, abs=0.2)


def test_our_samplers_with_each_order():
    labels = {label: options for label, _, options in continuous.ours(None, ["ddim", "dpm_solver"])}
    default = next(o.default for o in registry.load("dpm_solver").options() if o.name == "order")
    assert labels["ddim"] == labels["dpm_solver"] == {}
    assert f"dpm_solver order={5 - default}" in labels  # the other of 2 and 3
    assert not any(o.get("order") in (1, default) for o in labels.values())


@pytest.fixture
def small(monkeypatch):
    """A sweep of seconds."""
    monkeypatch.setattr(continuous, "SCHEDULES", ("edm", "flow"))
    monkeypatch.setattr(continuous, "STEPS", (2, 5, 10))
    few = lambda schedule: [p for p in peers.peers(schedule) if p.solver in ("euler", "dpmpp_2m_sde")]  # noqa: E731
    monkeypatch.setattr(continuous, "peers", few)


def test_error_falls_and_is_the_distance_to_the_ode(small):
    part = continuous.error(16, ["ddim", "dpmpp_2m"])
    for theirs in part["peers"]["edm"].values():
        assert theirs["settings"] >= 2
        assert len(theirs["value"]) == len(theirs["setting"]) == 3
    for made in part["ours"].values():
        for entry in made.values():
            assert entry["nfe"] == [2, 5, 10]
            assert entry["value"] == sorted(entry["value"], reverse=True)
    case = peers.Case(problems.create("mixture"), "edm", 16)
    assert case.rms(case.truth) == 0
    x, nfe = continuous.ours_at(case, "ddim", {}, 5)
    assert nfe == 5
    assert part["ours"]["edm"]["ddim"]["value"][1] == pytest.approx(float((x - case.truth).pow(2).mean().sqrt()))
    assert len(continuous.fronts(part).splitlines()) >= 4


def test_the_truth_of_a_flow_is_that_of_the_same_noise_levels():
    problem = problems.create("mixture")
    flow, edm = (peers.Case(problem, s, 4) for s in ("flow", "edm"))
    assert math.isinf(flow.ratio)
    assert edm.ratio == pytest.approx(80)
    # x_T = 80 z on edm is nearly pure noise: both go to nearly the same point.
    torch.testing.assert_close(flow.truth, edm.truth, atol=0.03, rtol=0)


def made_up(ours, theirs):
    """A part of results with one schedule and one solver that both have."""
    names = {"made": "DDIM", "settings": 2, "setting": ["trailing"] * 3}
    return {
        "rows": 8,
        "dim": 2,
        "steps": [2, 3, 10],
        "floor": 0.01,
        "ours": {
            "edm": {"ddim": {"nfe": [2, 3, 10], "value": ours}, "dpmpp_2m": {"nfe": [2, 3, 12], "value": [0.1] * 3}}
        },
        "peers": {"edm": {"diffusers ddim": names | {"value": theirs}}},
    }


def test_every_place_where_ours_is_worse_is_named():
    part = made_up([0.6, 0.5, 0.3], [0.3, 0.4, 0.2])
    # dpmpp_2m spent 12 evaluations where 10 were allowed, so ddim is the front there.
    assert continuous.front(part, "edm", 1, "ours") == (0.1, "dpmpp_2m")
    assert continuous.front(part, "edm", 2, "ours") == (0.3, "ddim")
    assert continuous.fronts_lost(part) == ["edm, 10: ddim 0.3, DDIM 0.2"]
    assert continuous.solvers_lost(part) == {
        "ddim": [(pytest.approx(1.25), "edm, 3, diffusers"), (pytest.approx(1.5), "edm, 10, diffusers")]
    }
    assert "| `ddim` | 2 of 2 | 1.38 | 1.50 | edm, 10, diffusers |" in continuous.lost(part)
    good = made_up([0.6, 0.4, 0.2], [0.3, 0.4, 0.2])
    assert not continuous.fronts_lost(good)
    assert "| `ddim` | 0 of 2 | 1.00 | 1.00 |" in continuous.lost(good)
    assert continuous.fronts_lost(made_up([0.6, 0.4, None], [0.3, None, 0.2])) == [
        "edm, 10: none of ours, and DDIM has 0.2"
    ]


def test_a_front_that_most_share_is_no_ones():
    part = made_up([0.1, 0.5, 0.3], [0.3, 0.4, 0.2])
    part["ours"]["edm"]["euler"] = {"nfe": [2, 3, 10], "value": [0.1, 0.7, 0.1]}
    assert continuous.front(part, "edm", 0, "ours") == (0.1, "any")
    assert continuous.front(part, "edm", 1, "ours") == (0.1, "dpmpp_2m")
    assert continuous.front(part, "edm", 2, "ours") == (0.1, "euler")


def test_the_page_and_the_picture(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    page = tmp_path / "which_solver.md"
    shutil.copy(continuous.PAGE, page)
    monkeypatch.setattr(continuous, "PAGE", page)
    monkeypatch.setattr(continuous, "PICTURE", tmp_path / "continuous.png")
    part = made_up([0.6, 0.4, 0.2], [0.3, 0.4, 0.2])
    part["steps"] = [2, 3, 10]
    for side in ("ours", "peers"):
        part[side] = dict.fromkeys(continuous.SCHEDULES, part[side]["edm"])
    continuous.page(
        {
            "error": part,
            "noise": part,
            "slopes": {"ddim": {"logsnr": 0.99, "karras": None}, "dpm_adaptive": {}},
            "speed": {"rounds": 1, "batches": {"1": {"ddim": {"ours": 50.0, "diffusers": 100.0}}}},
            "digits": {"steps": [5], "floor": 0.1, "models": {"exact": {"ddim": {"nfe": [5], "value": [0.5]}}}},
            "machine": {"cpu": "a processor", "cores": 2, "torch": "2"},
            "peers": {"diffusers": "0.1", "k_diffusion": None},
        }
    )
    text = page.read_text()
    assert "a processor, 2 cores" in text
    assert "| 1 | `ddim` | 50 |  | 100 |  | 0.50 |" in text
    assert "| `ddim` | 0.99 |  |  |" in text
    assert (tmp_path / "continuous.png").stat().st_size > 10_000


def test_speed_runs(monkeypatch):
    monkeypatch.setattr(continuous, "SAME", (("ddim", {}, "DDIMScheduler", None),))
    monkeypatch.setattr(continuous, "LOOPS", 3)
    found = continuous.speed(1)
    assert all(made["ddim"]["ours"] > 0 for made in found["batches"].values())


# ------------------------------------------------------------------------------------------- beside the peers


@pytest.mark.parametrize(("schedule", "solver"), [("edm", "dpmpp_2m"), ("edm", "euler"), ("flow", "euler")])
def test_diffusers_follow_the_same_ode(schedule, solver):
    pytest.importorskip("diffusers")
    case = peers.Case(problems.create("mixture"), schedule, 8)
    found = [p for p in peers.peers(case.schedule) if p.solver == solver and p.library == "diffusers"]
    setting = {"edm": "karras", "flow": "linspace"}[schedule]
    (peer,) = [p for p in found if p.setting == setting]
    grid = {"edm": "karras", "flow": "time_uniform"}[schedule]
    ours, nfe = continuous.ours_at(case, {"euler": "ddim"}.get(solver, solver), {"grid": grid}, 12)
    theirs = peer.run(case, 12)
    assert nfe == 12
    # Their sigmas are float32.
    torch.testing.assert_close(theirs.double(), ours, atol=3e-5, rtol=0)


@pytest.mark.parametrize(("solver", "ours"), [("euler", "ddim"), ("dpmpp_2m", "dpmpp_2m")])
def test_k_diffusion_follows_the_same_ode(solver, ours):
    if peers.k_sampling() is None:
        pytest.skip("k-diffusion is not installed")
    case = peers.Case(problems.create("mixture"), "edm", 8)
    (peer,) = [
        p for p in peers.peers(case.schedule) if (p.library, p.solver, p.setting) == ("k_diffusion", solver, "karras")
    ]
    x, _ = continuous.ours_at(case, ours, {"grid": "karras"}, 12)
    torch.testing.assert_close(peer.run(case, 12), x, atol=3e-5, rtol=0)


def test_every_scheduler_of_diffusers_converges():
    """All classes on a long run: a wrong scale or noise level would leave an error of order 1."""
    pytest.importorskip("diffusers")
    for schedule in ("ddpm_linear", "flow"):
        case = peers.Case(problems.create("mixture"), schedule, 8)
        best = {}
        for p in peers.peers(case.schedule):
            if (
                not p.stochastic
                and p.library == "diffusers"
                and p.setting.partition(",")[0] in ("trailing", "linspace")
            ):
                x = p.run(case, 60)
                best[p.name] = min(best.get(p.name, math.inf), math.inf if x is None else case.rms(x))
        assert len(best) >= 6
        assert all(v < 0.05 for v in best.values()), best


def test_a_run_that_never_samples_is_none():
    pytest.importorskip("diffusers")
    case = peers.Case(problems.create("mixture"), "ddpm_linear", 4)
    for p in peers.peers(case.schedule):
        if p.name == "DDIM" and p.setting == "leading":
            assert p.run(case, 1) is None  # it would begin at index 0, without noise
            assert p.run(case, 5) is not None
