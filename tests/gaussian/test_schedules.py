"""Noise schedules of models: tables, rectified flow with a shift, what a model calls a time, and names with numbers."""

import math

import numpy as np
import pytest
import torch

from samplers import OptionError, noise_schedule
from samplers.noise_schedules import EDM, Flow, Point, VPCosine, VPLinear, VPTable

TABLES = ["ddpm_linear", "scaled_linear", "squared_cosine"]
NAMES = [
    "vp_linear",
    "vp_cosine",
    "edm",
    "edm(0.01,700)",
    "flow",
    "flow(3)",
    *TABLES,
    *(f"{t}(zero_snr)" for t in TABLES),
]


def even(schedule, n=501):
    return torch.linspace(schedule.t_min, schedule.t_max, n, dtype=torch.float64)


# ------------------------------------------------------------------------------------------- tables


def test_tables_have_the_published_ends():
    """Numbers of diffusers 0.42.0, whose tables are float32."""
    for name, first, last in [
        ("ddpm_linear", 4.605, -5.059),
        ("scaled_linear", 3.535, -2.682),
        ("squared_cosine", 5.0472, -9.9179),
    ]:
        lam = noise_schedule(name).lam(torch.tensor([0.0, 999.0]))
        np.testing.assert_allclose(lam.numpy(), [first, last], atol=6e-4)
    sigmas = noise_schedule("scaled_linear").sigma_of_time(torch.tensor([0.0, 999.0]))
    np.testing.assert_allclose(sigmas.numpy(), [0.0292, 14.61], rtol=2e-3)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("ddpm_linear", {}),
        ("scaled_linear", {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
        ("squared_cosine", {"beta_schedule": "squaredcos_cap_v2"}),
    ],
)
@pytest.mark.parametrize("zero", [False, True])
def test_tables_are_those_of_diffusers(name, config, zero):
    diffusers = pytest.importorskip("diffusers")
    theirs = diffusers.DDIMScheduler(rescale_betas_zero_snr=zero, **config).alphas_cumprod.double()
    ours = VPTable.named(name, zero_snr=zero).alphas_cumprod
    torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-7)  # theirs is a float32 product of 1000 factors


def test_zero_snr_is_exactly_zero():
    """Frozen from diffusers 0.42.0 (DPMSolverMultistepScheduler, rescale_betas_zero_snr): entries 0, 500 and 998."""
    schedule = noise_schedule("scaled_linear(zero_snr)")
    abar = schedule.alphas_cumprod[[0, 500, 998]].tolist()
    np.testing.assert_allclose(abar, [0.9991499781608582, 0.24101854860782623, 1.9679629303936963e-07], rtol=2e-4)
    last = Point.at(schedule, t=999.0)
    assert (last.alpha, last.sigma, last.lam) == (0.0, 1.0, -math.inf)
    # Between the last two entries alpha is linear in the index.
    a998, a = schedule.alpha(torch.tensor([998.0, 998.25]))
    assert float(a) == pytest.approx(0.75 * float(a998), rel=1e-13)
    assert schedule.t_of(schedule.lam(torch.tensor([998.25]))).item() == pytest.approx(998.25, abs=1e-12)


def test_between_entries_log_alpha_is_linear():
    schedule = noise_schedule("ddpm_linear")
    abar = np.cumprod(1 - np.linspace(1e-4, 0.02, 1000))
    np.testing.assert_allclose(schedule.alphas_cumprod.numpy(), abar, rtol=1e-12)
    t = torch.tensor([0.0, 3.25, 500.5, 998.9, 999.0], dtype=torch.float64)
    expected = np.interp(t.numpy(), np.arange(1000), np.log(abar) / 2)
    np.testing.assert_allclose(schedule.log_alpha(t).numpy(), expected, rtol=1e-11)


def test_a_table_of_vp_linear_follows_it():
    """Entry i at time (i + 1) / N: the discrete betas of DDPM are the continuous ones to about 1 / N."""
    continuous, table = VPLinear(), noise_schedule("ddpm_linear")
    i = torch.tensor([9.0, 99.0, 499.0, 999.0], dtype=torch.float64)
    gap = (continuous.lam((i + 1) / 1000) - table.lam(i)).abs()
    assert float(gap.max()) < 0.04


@pytest.mark.parametrize("n", [2, 3, 50])
def test_named_tables_of_any_size(n):
    for name in TABLES:
        for zero in (False, True):
            schedule = VPTable.named(name, n, zero_snr=zero)
            assert schedule.t_max == n - 1 and len(schedule.alphas_cumprod) == n
            assert (float(schedule.alphas_cumprod[-1]) == 0) == zero


def test_own_betas_and_alphas():
    betas = [0.1, 0.2, 0.4]
    table = VPTable.of_betas(betas, name="mine")
    np.testing.assert_allclose(table.alphas_cumprod.numpy(), np.cumprod(1 - np.array(betas)), rtol=1e-14)
    again = VPTable(torch.tensor([0.9, 0.72, 0.432]))
    torch.testing.assert_close(again.lam(torch.tensor(1.5)), table.lam(torch.tensor(1.5)), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(
    ("alphas", "says"),
    [
        ([0.1, 0.5, 0.9], "Turn it around"),
        ([1.0, 0.5], "below 1"),
        ([0.9, 0.9, 0.1], "must fall"),
        ([0.9, -0.1], "to 0 or more"),
        ([0.9], "N >= 2"),
        ([[0.9, 0.1]], "N >= 2"),
        ([0.9, math.nan], "NaN"),
        ("abc", "list of numbers"),
    ],
)
def test_bad_tables(alphas, says):
    with pytest.raises(OptionError, match=says):
        VPTable(alphas)


def test_bad_betas_and_options():
    for betas in ([0.1, 0.0], [0.1, 1.5]):
        with pytest.raises(OptionError, match="betas must be above 0"):
            VPTable.of_betas(betas)
    with pytest.raises(OptionError, match="did you mean 'scaled_linear'"):
        VPTable.named("scaled_linea")
    with pytest.raises(OptionError, match="did you mean 'integer'"):
        VPTable.named("scaled_linear", time="integr")
    with pytest.raises(OptionError, match="c_noise"):
        EDM(time="index")


# ----------------------------------------------------------------------------------- round trips, names


@pytest.mark.parametrize("name", NAMES)
def test_inverses(name):
    schedule = noise_schedule(name)
    t = even(schedule)
    lam = schedule.lam(t)
    assert bool((torch.diff(lam) < 0).all())
    torch.testing.assert_close(schedule.t_of(lam), t, rtol=1e-9, atol=1e-12 * schedule.t_max)
    torch.testing.assert_close(
        schedule.time_of_sigma(schedule.sigma_of_time(t)), t, rtol=1e-9, atol=1e-9 * schedule.t_max
    )
    torch.testing.assert_close(schedule.unshifted(schedule.shifted(t)), t, rtol=1e-12, atol=0)
    torch.testing.assert_close(schedule.time_of_model(schedule.model_time(t)), t, rtol=1e-12, atol=1e-12)
    a, s = schedule.alpha(t), schedule.sigma(t)
    if schedule.entries or name.startswith("vp"):
        torch.testing.assert_close(a**2 + s**2, torch.ones_like(t))
    for point, at in zip(schedule.points(t[:3]), t.tolist()):
        assert point == Point.at(schedule, t=at)
    assert all(isinstance(v, float) for v in (point.t, point.alpha, point.sigma, point.lam))


def test_names_with_numbers():
    assert noise_schedule("flow(3)") == Flow(shift=3.0)
    assert noise_schedule("Flow( 1.15 )").shift == 1.15
    assert noise_schedule("edm(0.002,700)") == EDM(0.002, 700.0)
    assert noise_schedule("scaled_linear") is noise_schedule("scaled_linear")
    mine = Flow(time_scale=1000.0)
    assert noise_schedule(mine) is mine


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("vp_liner", "did you mean 'vp_linear'"),
        ("flow(0)", "shift must be a positive number"),
        ("flow(a)", "takes 1 number"),
        ("flow(1,2)", "takes 1 number"),
        ("edm(3)", "takes 2 numbers"),
        ("edm(80,0.002)", "t_min < t_max"),
        ("linear", "'ddpm_linear'"),
        ("cosine", "'squared_cosine'"),
        ("squaredcos_cap_v2", "here it is 'squared_cosine'"),
        (["flow"], "a name such as 'vp_linear'"),
        ({"name": "flow"}, "a name such as 'vp_linear'"),
        (3, "a name such as 'vp_linear'"),
        (None, "a name such as 'vp_linear'"),
    ],
)
def test_bad_specs(spec, says):
    with pytest.raises(OptionError, match=says):
        noise_schedule(spec)


# -------------------------------------------------------------------------------- rectified flow, shift


def test_flow_begins_at_pure_noise():
    first = Point.at(noise_schedule("flow"), t=1.0)
    assert (first.alpha, first.sigma, first.lam) == (0.0, 1.0, -math.inf)


def test_shift_multiplies_sigma_over_alpha():
    """Frozen from diffusers 0.42.0, FlowMatchEuler with mu = 1.15 and sigmas 1, .75, .5, .25; FLUX at 4096 tokens."""
    u = torch.tensor([1.0, 0.75, 0.5, 0.25], dtype=torch.float64)
    schedule = Flow.for_tokens(4096)
    assert schedule.shift == pytest.approx(math.exp(1.15), rel=1e-12)
    assert Flow.for_tokens(256).shift == pytest.approx(math.exp(0.5), rel=1e-12)
    np.testing.assert_allclose(schedule.shifted(u).numpy(), [1.0, 0.9045307636, 0.7595109344, 0.5128441453], rtol=2e-7)
    np.testing.assert_allclose(Flow(3.0).shifted(u[1:3]).numpy(), [0.9, 0.75], rtol=1e-13)
    t = schedule.shifted(u[1:])
    torch.testing.assert_close(t / (1 - t), schedule.shift * u[1:] / (1 - u[1:]))


def test_flow_range():
    with pytest.raises(OptionError, match="t_max <= 1"):
        Flow(t_max=1.5)
    with pytest.raises(OptionError, match="time_scale must be a positive number"):
        Flow(time_scale=0.0)


def test_k_diffusions_vp_schedule_is_vp_linear():
    t = torch.linspace(1, 1e-3, 20, dtype=torch.float64)
    theirs = torch.sqrt(torch.expm1(19.9 * t**2 / 2 + 0.1 * t))
    torch.testing.assert_close(VPLinear().sigma_of_time(t), theirs, rtol=1e-12, atol=0)


# ------------------------------------------------------------------------------- what a model calls a time


def test_model_times():
    t = torch.tensor([0.0, 12.4, 999.0], dtype=torch.float64)
    integer = VPTable.named("scaled_linear", time="integer").model_time(t)
    assert integer.dtype == torch.int64 and integer.tolist() == [0, 12, 999]
    assert VPTable.named("scaled_linear").model_time(t).tolist() == t.tolist()
    scaled = VPTable.named("ddpm_linear", 500, time="scaled")
    assert scaled.model_time(torch.tensor([0.0, 250.0])).tolist() == [0.0, 500.0]
    assert scaled.time_of_model([500]).tolist() == [250.0]
    half = torch.tensor([0.5], dtype=torch.float64)
    assert Flow().model_time(half).tolist() == [0.5]
    assert Flow(time_scale=1000.0).model_time(half).tolist() == [500.0]
    assert VPLinear(time_scale=999.0).model_time(half).tolist() == [499.5]
    assert EDM().model_time(half).tolist() == [0.5]
    assert EDM(time="c_noise").model_time(half).item() == pytest.approx(math.log(0.5) / 4, rel=1e-14)
    assert VPCosine().time_of_model(torch.tensor([0.25])).tolist() == [0.25]


def test_lists_of_other_libraries():
    """Align Your Steps publishes indices and sigmas for Stable Diffusion; they are the same times to about an index."""
    schedule = noise_schedule("scaled_linear")
    indices = [999, 850, 736, 645, 545, 455, 343, 233, 124, 24]
    sigmas = [14.615, 6.475, 3.861, 2.697, 1.886, 1.396, 0.963, 0.652, 0.399, 0.152]
    assert schedule.time_of_model(indices).tolist() == indices
    np.testing.assert_allclose(schedule.time_of_sigma(sigmas).numpy(), indices, atol=0.6)
    assert schedule.time_of_sigma([14.615]).item() == pytest.approx(999, abs=1e-9)  # rounded up by 3e-5
    assert noise_schedule("flow").time_of_sigma([1.0, 0.25]).tolist() == [1.0, 0.25]
    assert noise_schedule("vp_linear").time_of_sigma([0.0]).tolist() == [0.0]


@pytest.mark.parametrize(
    ("name", "sigma"),
    [
        ("scaled_linear", 20.0),
        ("scaled_linear", 0.01),
        ("flow", 1.2),
        ("flow", math.inf),
        ("edm", 100.0),
        ("edm", -1.0),
    ],
)
def test_sigmas_outside(name, sigma):
    with pytest.raises(OptionError, match=rf"sigma {sigma:g} is outside"):
        noise_schedule(name).time_of_sigma([1.0, sigma])


def test_timesteps_outside():
    with pytest.raises(OptionError, match=r"timestep 1000 is outside.*0 to 999"):
        noise_schedule("scaled_linear").time_of_model([1000])
    with pytest.raises(OptionError, match="list of numbers"):
        noise_schedule("scaled_linear").time_of_model("now")


def test_the_truth_from_pure_noise():
    """The ODE's solution from alpha = 0 is the limit of solutions from nearly no signal."""
    from samplers import problems

    problem = problems.create("mixture", schedule="flow")
    z = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    exact = problem.truth(z)
    gaps = [float((problem.truth(z, t_start=1 - e) - exact).abs().max()) for e in (1e-3, 1e-4)]
    assert gaps[1] < 1e-3 and gaps[1] < gaps[0] / 8  # of first order in alpha
