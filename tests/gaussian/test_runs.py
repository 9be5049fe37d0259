"""Continuous runs: what the driver, the predictor and the base of the solvers do for every solver."""

import argparse
import math

import pytest
import torch

import samplers
from samplers import GaussianDenoiser, OptionError, registry
from samplers.gaussian.denoiser import At, guide
from samplers.gaussian.moments import Moments
from samplers.noise_schedules import Flow, Point
from samplers.testing.tiny import for_any_model

pytestmark = pytest.mark.usefixtures("one_thread")

ALL = registry.names("*", "gaussian")
SCHEDULES = ("vp_linear", "vp_cosine", "edm", "flow")
MEAN, VARIANCE = 0.7, 0.25


class Gauss(GaussianDenoiser):
    """x_0 ~ N(MEAN, VARIANCE) in each coordinate: E[x_0 | x_t] in closed form. It keeps the calls."""

    def __init__(self, schedule="vp_linear", dim=3, dtype=torch.float64):
        self.shape, self.schedule, self.dtype = (dim,), samplers.noise_schedule(schedule), dtype
        self.name, self.calls = "gauss", []

    def predict(self, x, t):
        self.calls.append((x.clone(), t.clone()))
        a, s = (f(t.double())[:, None] for f in (self.schedule.alpha, self.schedule.sigma))
        gain = a * VARIANCE / (a**2 * VARIANCE + s**2)
        return (MEAN + gain * (x.double() - a * MEAN)).to(self.dtype)

    def moments(self, x, at, order=3, signs=None):
        at = At.of(self.schedule, at)
        (a, s), mean = at.columns(x), self.denoised(x, at)
        variance = (VARIANCE * s**2 / (a**2 * VARIANCE + s**2)).expand_as(mean)
        return Moments(mean, variance.to(mean.dtype), torch.zeros_like(mean))


def net(x, t):
    return 0.1 * x


def heads(x, t):
    """Powers of what `net` predicts, for samplers that need them: those of a Gaussian around it, of variance 0.01."""
    z = 0.1 * x
    return z, z**2 + 0.01, z**3 + 0.03 * z


# ---------------------------------------------------------------------------------------------- few steps


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", ALL)
def test_one_step_is_one_call_at_t_max_whose_answer_is_returned(name, schedule):
    denoiser = Gauss(schedule)
    out = samplers.sample(denoiser, name, steps=1, batch=4)
    ((x, t),) = denoiser.calls
    assert t.tolist() == [denoiser.schedule.t_max] * 4
    sigma = float(denoiser.schedule.sigma(denoiser.schedule.t_max))
    assert torch.equal(x, sigma * samplers.random.Rng.of(0, 4).normal((3,), 0, torch.float64))
    fresh = Gauss(schedule).predict(x, t)
    assert torch.equal(out.x, fresh)


@pytest.mark.parametrize("name", ALL)
def test_one_step_gives_the_mean_of_the_data_on_edm(name):
    problem = samplers.problems.create("mixture", schedule="edm")
    x = samplers.sample(problem.denoiser("gaussian"), name, steps=1, batch=20_000).x
    mean = torch.full((2,), 0.08, dtype=torch.float64)
    torch.testing.assert_close(x.mean(0), mean, atol=5e-4, rtol=0)  # 6 standard errors


@pytest.mark.parametrize("schedule", ["vp_linear", "edm", "scaled_linear"])
@pytest.mark.parametrize("name", ALL)
def test_a_few_steps_at_the_defaults_stay_within_the_data(name, schedule):
    """Methods that average noise gave a standard deviation of 5 to 27 in 3 and 5 evaluations, where the data's is 0.99."""
    denoiser = samplers.problems.create("mixture", schedule=schedule).denoiser("gaussian")
    for steps in (2, 3, 4, 5, 7, 10):
        x = samplers.sample(denoiser, name, steps=steps, batch=500).x
        assert float(x.std()) < 1.3, steps


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_two_steps_ask_at_t_max_and_in_between(schedule):
    denoiser = Gauss(schedule)
    samplers.sample(denoiser, "ddim", steps=2)
    first, second = (float(t[0]) for _, t in denoiser.calls)
    s = denoiser.schedule
    assert first == s.t_max
    assert float(s.lam(s.t_max)) < float(s.lam(second)) < 0.8 * float(s.lam(s.t_min))


# ---------------------------------------------------------------------------------------------- dtypes at the model's door


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("prediction", ["epsilon", "x0", "v", "flow", "score"])
def test_the_model_gets_its_own_dtype_and_the_state_is_float32_or_more(dtype, prediction):
    seen = []

    def model(x, t):
        seen.append((x.dtype, t.dtype))
        return 0.1 * x

    denoiser = GaussianDenoiser.wrap(model, shape=(3,), dtype=dtype, prediction=prediction, moments=heads)
    for name in ALL:
        states = [s.x for s in samplers.stream(denoiser, name, steps=4, batch=2)]
        assert {x.dtype for x in states} == {torch.promote_types(dtype, torch.float32)}, name
        assert all(bool(torch.isfinite(x).all()) for x in states), name
    assert set(seen) == {(dtype, dtype)}


def test_a_linear_network_of_x_and_t():
    layer = torch.nn.Linear(5, 4)
    with torch.no_grad():
        denoiser = GaussianDenoiser.wrap(lambda x, t: layer(torch.cat([x, t[:, None]], 1)), shape=(4,))
        assert samplers.sample(denoiser, "ddim", steps=4).x.dtype == torch.float32
    assert (
        samplers.sample(GaussianDenoiser.wrap(lambda x, t: x * t[:, None], shape=(4,)), "ddim").x.dtype == torch.float32
    )


def test_an_answer_of_another_dtype_is_brought_back():
    """A bf16 network under a float32 guidance tensor answers float32; its second call must get bf16 again."""
    seen = []

    def model(x, t):
        seen.append(x.dtype)
        return x.float() * torch.tensor([0.1])

    denoiser = GaussianDenoiser.wrap(model, shape=(3, 4, 4), dtype=torch.bfloat16)
    assert samplers.sample(denoiser, "dpmpp_2m", steps=4, batch=2).x.dtype == torch.float32
    assert set(seen) == {torch.bfloat16}


def test_coefficients_do_not_feel_a_coarse_time():
    """In bfloat16 t is rounded for the model, and alpha and sigma are not."""
    exact = GaussianDenoiser.wrap(lambda x, t: torch.zeros_like(x), shape=(3,), prediction="v")
    coarse = GaussianDenoiser.wrap(lambda x, t: torch.zeros_like(x), shape=(3,), prediction="v", dtype=torch.bfloat16)
    a, b = (samplers.sample(d, "ddim", steps=7).x for d in (exact, coarse))
    torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_model_that_writes_into_x_changes_nothing():
    def writes(x, t):
        out = 0.1 * x
        x.zero_()
        return out

    plain, written = (
        samplers.sample(GaussianDenoiser.wrap(f, shape=(3,)), "dpmpp_2m", steps=5).x for f in (net, writes)
    )
    assert torch.equal(plain, written)

    class Writes(Gauss):
        def predict(self, x, t):
            out = super().predict(x, t)
            x.zero_()
            return out

    assert torch.equal(samplers.sample(Gauss(), "ddim").x, samplers.sample(Writes(), "ddim").x)


@pytest.mark.parametrize("name", for_any_model("gaussian"))
def test_a_model_may_answer_in_the_same_tensor_every_time(name):
    """As a CUDA graph does: what an earlier call said is overwritten by the next one."""
    memory = torch.zeros(2, 3)

    def answers(factor, keep):
        def model(x, t):
            return memory.copy_(factor * x) if keep else factor * x

        return model

    outs = []
    for keep in (False, True):
        denoiser = GaussianDenoiser.wrap(
            answers(0.1, keep), shape=(3,), prediction="x0", unconditional=answers(0.2, keep)
        )
        outs += [samplers.sample(denoiser, name, steps=6, batch=2, cfg_scale=w).x for w in (0.0, 1.5)]
    assert torch.equal(outs[0], outs[2]) and torch.equal(outs[1], outs[3])


@pytest.mark.parametrize(
    ("answer", "says"), [((1, 2), "its first entry"), (argparse.Namespace(sample=1), r"its \.sample")]
)
def test_a_model_that_answers_in_a_wrapper_is_told_what_to_return(answer, says):
    with pytest.raises(samplers.DenoiserError, match=says):
        samplers.sample(GaussianDenoiser.wrap(lambda x, t: answer, shape=(3,)), "ddim")


def test_one_trajectory_under_every_prediction():
    """The same network, said in five ways."""
    schedule, outs = samplers.noise_schedule("vp_linear"), []
    exact = Gauss()
    for prediction in ("epsilon", "x0", "v", "flow", "score"):

        def model(x, t, prediction=prediction):
            x0 = exact.predict(x, t)
            a, s = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
            e = (x - a * x0) / s
            return {"epsilon": e, "x0": x0, "v": a * e - s * x0, "flow": e - x0, "score": -e / s}[prediction]

        denoiser = GaussianDenoiser.wrap(model, shape=(3,), prediction=prediction, dtype=torch.float64)
        outs.append([samplers.sample(denoiser, name, steps=9).x for name in ("ddim", "dpmpp_2m")])
    for other in outs[1:]:
        for a, b in zip(outs[0], other):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-10)


# ---------------------------------------------------------------------------------------------- where a run starts


def test_an_image_is_noised_exactly():
    denoiser, image = Gauss(), torch.tensor([1.0, -2.0, 3.0])
    first = next(samplers.stream(denoiser, "ddim", start=image, t_start=0.4, batch=2)).x
    z = samplers.random.Rng.of(0, 2).normal((3,), 0, torch.float64)
    schedule = denoiser.schedule
    assert torch.equal(first, float(schedule.alpha(0.4)) * image.double() + float(schedule.sigma(0.4)) * z)


def test_starting_below_t_max_keeps_the_mean_of_the_data():
    """From the data's own x_0 the marginals stay the data's; from noise alone they did not (mean .47 to .59)."""
    data = MEAN + math.sqrt(VARIANCE) * torch.randn(
        4000, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    x = samplers.sample(Gauss(), "ddim", start=data, t_start=0.5, steps=40, batch=4000).x
    assert abs(float(x.mean()) - MEAN) < 0.02
    assert abs(float(x.var()) - VARIANCE) < 0.02
    with pytest.raises(OptionError, match=r"t_start=0.5 is below t_max=1.*start=.*start_moments=.*start_noise="):
        samplers.sample(Gauss(), "ddim", t_start=0.5)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_start_moments_give_the_true_marginal(schedule):
    """Analytic-Init: for Gaussian data the mean and the variance of x_M are exact, at any M."""
    denoiser = Gauss(schedule)
    s = denoiser.schedule
    for t in (s.t_max, (s.t_max + s.t_min) / 3):
        z = torch.tensor([[0.0] * 3, [1.0] * 3])
        at = next(
            samplers.stream(
                denoiser, "ddim", batch=2, start_noise=z, t_start=t, start_moments=(torch.full((3,), MEAN), VARIANCE)
            )
        ).x
        torch.testing.assert_close(at[0], s.alpha(t) * torch.full((3,), MEAN, dtype=torch.float64), rtol=0, atol=1e-7)
        torch.testing.assert_close(
            (at[1] - at[0]) ** 2, (s.alpha(t) ** 2 * VARIANCE + s.sigma(t) ** 2).expand(3), rtol=1e-12, atol=0
        )
    assert torch.equal(
        next(samplers.stream(denoiser, "ddim", start_moments=(MEAN, VARIANCE))).x,
        next(
            samplers.stream(denoiser, "ddim", start_moments=(torch.full((3,), MEAN, dtype=torch.float64), VARIANCE))
        ).x,
    )


def test_strength_takes_the_end_of_a_longer_grid():
    image = torch.ones(3)
    whole, part = Gauss(), Gauss()
    samplers.sample(whole, "ddim", steps=20)
    samplers.sample(part, "ddim", steps=10, start=image, strength=0.5)
    assert [float(t[0]) for _, t in part.calls] == [float(t[0]) for _, t in whole.calls][10:]
    one = Gauss()
    samplers.sample(one, "ddim", steps=10, start=image, strength=1.0)
    assert float(one.calls[0][1][0]) == 1.0


def test_the_noise_can_be_given():
    z = torch.arange(3.0)
    first = next(samplers.stream(Gauss(), "ddim", start_noise=z, batch=2)).x
    sigma = float(samplers.noise_schedule("vp_linear").sigma(1.0))
    assert torch.equal(first, (sigma * z.double()).expand(2, 3))


def test_inversion_there_and_back():
    denoiser, image = Gauss(), torch.tensor([[0.3, 0.9, 1.1]], dtype=torch.float64)
    s = denoiser.schedule
    up = samplers.sample(denoiser, "dpmpp_2m", start=image, t_start=s.t_min, t_end=s.t_max, end="t_end", steps=200).x
    down = samplers.sample(denoiser, "dpmpp_2m", start_noise=up / s.sigma(s.t_max), end="t_end", steps=200).x
    torch.testing.assert_close(down, image, rtol=0, atol=1e-3)
    spread = math.sqrt(VARIANCE * s.alpha(s.t_min) ** 2 + s.sigma(s.t_min) ** 2)
    z = (image - s.alpha(s.t_min) * MEAN) / spread  # the ODE of a Gaussian moves every quantile with its distribution
    top = math.sqrt(VARIANCE * s.alpha(s.t_max) ** 2 + s.sigma(s.t_max) ** 2)
    torch.testing.assert_close(up, s.alpha(s.t_max) * MEAN + top * z, rtol=0, atol=1e-3)


# ---------------------------------------------------------------------------------------------- lists of times


def test_sigmas_and_times_are_followed():
    problem = Gauss("edm")
    samplers.sample(problem, "dpmpp_2m", sigmas=[80.0, 10.0, 1.0, 0.1, 0.0])
    assert [float(t[0]) for _, t in problem.calls] == pytest.approx([80.0, 10.0, 1.0, 0.1])
    left = Gauss("edm")
    out = samplers.sample(left, "ddim", sigmas=[80.0, 1.0, 0.1])
    assert [float(t[0]) for _, t in left.calls] == pytest.approx([80.0, 1.0])
    assert out.nfe == 2 and out.options["end"] == "t_end"
    by_time = Gauss("vp_linear")
    samplers.sample(by_time, "ddim", times=[1.0, 0.5, 0.2])
    assert [float(t[0]) for _, t in by_time.calls] == [1.0, 0.5, 0.2]
    ratio = Gauss("vp_linear")
    s = ratio.schedule
    samplers.sample(ratio, "ddim", sigmas=[float(torch.exp(-s.lam(t))) for t in (1.0, 0.5, 0.2)] + [0])
    torch.testing.assert_close(torch.stack([t[0] for _, t in ratio.calls]), torch.tensor([1.0, 0.5, 0.2]).double())


@pytest.mark.parametrize("name", ["ddim", "heun", "dpmpp_2m"])
def test_an_inversion_starts_where_x_has_noise(name):
    model = Gauss("flow")
    how = {"start": torch.ones(3), "t_end": 0.6, "end": "t_end", "steps": 4}
    with pytest.raises(OptionError, match=r"inversion cannot start at t=0, .* start at t_min=0\.001"):
        samplers.sample(model, name, t_start=0.0, **how)
    assert bool(samplers.sample(model, name, t_start=0.001, **how).x.isfinite().all())


def test_times_that_rise_are_an_inversion():
    image = torch.tensor([0.3, 0.9, 1.1])
    by_list = samplers.sample(Gauss(), "dpmpp_2m", start=image, times=[0.1, 0.4, 0.7, 1.0])
    assert by_list.options["end"] == "t_end" and by_list.nfe == 3
    grid = {"t_start": 0.1, "t_end": 1.0, "end": "t_end", "grid": "time_uniform", "steps": 3}
    torch.testing.assert_close(by_list.x, samplers.sample(Gauss(), "dpmpp_2m", start=image, **grid).x)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"sigmas": [1.0, 2.0, 0.5]}, "must fall all the way"),
        ({"sigmas": [0.0]}, "at least one"),
        ({"sigmas": ["a"]}, "a list of numbers"),
        ({"times": [1.0, 0.5], "sigmas": [2.0, 0.0]}, "times and sigmas: give one"),
        ({"times": [1.0, 0.5], "steps": 3}, "steps=3 and a list of 2 times"),
        ({"times": [1.0, 0.5], "grid": "karras"}, "grid='karras' and a list of times"),
        ({"times": [1.0, math.nan]}, "finite numbers"),
        ({"times": [1.0, 0.5, -0.1]}, "-0.1 is no time of .* from 1 to 0"),
        ({"times": [1.2, 0.5]}, "1.2 is no time of"),
        ({"times": [0.3, 0.1]}, "the first of the times, 0.3, is below t_max=1"),
        ({"times": [0.1, 0.5]}, "needs start=, the x at t_start"),
        ({"sigmas": [0.1, 2.0], "start": torch.ones(3), "eta": 1.0}, "draws noise"),
        ({"strength": 0.5}, "give start= as well"),
        ({"known": torch.ones(3, dtype=torch.bool)}, "give start= as well"),
        ({"start": torch.ones(2)}, r"start has shape \(2,\); finite real numbers of shape \(1, 3\)"),
        ({"start": torch.ones(4, 3)}, "give batch=4"),
        ({"start": [math.nan] * 3}, "not finite"),
        ({"start": torch.ones(3, dtype=torch.bool)}, "start is of torch.bool"),
        ({"start": torch.ones(3), "known": torch.ones(3)}, "known is of torch.float32; bools"),
        ({"start": torch.ones(3), "start_moments": (0.0, 1.0)}, "leave out start= or start_moments="),
        ({"start_moments": 3}, "mean of x_0, its variance"),
        ({"start_moments": (0.0, -1.0)}, "the variance"),
        ({"start": torch.ones(3), "strength": 0.0}, "strength=0 leaves"),
        ({"start": torch.ones(3), "strength": 0.5, "t_start": 0.5}, "both say where to start"),
        ({"x0_bound": 0.0}, "above 0"),
        ({"x0_quantile": 0.9}, "give the bound as well"),
        ({"cfg_rescale": 0.5}, "give cfg_scale= above 0"),
        ({"t_end": 1.0}, "must not be t_start"),
        ({"t_start": 0.2, "t_end": 0.7}, "end='t_end'"),
        ({"t_start": 0.2, "t_end": 0.7, "end": "t_end"}, "needs start="),
        ({"t_start": 0.2, "t_end": 0.7, "end": "t_end", "eta": 1.0, "start": torch.ones(3)}, "draws noise"),
        ({"constrain": 3}, "constrain takes a callable"),
    ],
)
def test_wrong_arguments_are_named(how, says):
    with pytest.raises(OptionError, match=says):
        samplers.sample(Gauss(), "ddim", **how)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"shape": 4}, "shape must be the sizes"),
        ({"fn": None}, "takes a callable"),
        ({"schedule": ["edm"]}, "a noise schedule is a name"),
        ({"dtype": "float32"}, "floating torch.dtype"),
        ({"dtype": torch.int64}, "floating torch.dtype"),
        ({"schedule": torch.tensor([0.9, 0.1])}, "VPTable"),
        ({"prediction": "v_prediction"}, "here it is 'v'"),
        ({"unconditional": 3}, "it is a callable of x and t"),
        ({"condition": 3}, "condition must be a tensor"),
        ({"condition": torch.ones(1, 2), "unconditional": torch.ones(1, 3)}, "they must be equal"),
        ({"rows_per_eval": 0}, "rows_per_eval must be"),
    ],
)
def test_a_wrong_denoiser_is_named(how, says):
    with pytest.raises(OptionError, match=says):
        GaussianDenoiser.wrap(**{"fn": net, "shape": (3,), **how})
    with pytest.raises(OptionError, match="seed is a Generator"):
        samplers.sample(Gauss(), "ddim", seed=torch.Generator())


def test_token_samplers_refuse_what_is_for_continuous_ones():
    from samplers.testing.tiny import TinyNet

    with pytest.raises(OptionError, match="start is not for samplers of the masked family"):
        samplers.sample(TinyNet(), "low_confidence", gen_length=3, start=torch.ones(3))


# ---------------------------------------------------------------------------------------------- what is known, hooks


@pytest.mark.parametrize("name", ALL)
def test_inpainting_is_exact_in_the_known_part(name):
    image = torch.tensor([[0.3, 0.9, 1.1], [5.0, -1.0, 0.0]], dtype=torch.float64)
    known = torch.tensor([True, False, True])
    out = samplers.sample(Gauss(), name, start=image, known=known, steps=6, batch=2)
    assert torch.equal(out.x[:, known], image[:, known])
    assert not torch.equal(out.x[:, ~known], image[:, ~known])


def test_every_sampler_as_it_comes_arrives():
    """Without steps=: 20 evaluations, and for one whose tolerance decides as many as it takes (20 gave a deviation of 0.02)."""
    for schedule in SCHEDULES:
        x = samplers.sample(Gauss(schedule), "dpm_adaptive", batch=500).x
        assert abs(float(x.std()) / math.sqrt(VARIANCE) - 1) < 0.1, schedule


def test_a_mask_may_be_one_for_all_channels():
    image, mask = torch.arange(24.0).view(2, 3, 4), torch.tensor([[[True, False, False, True]]]).expand(1, 3, 4)
    denoiser = GaussianDenoiser.wrap(net, shape=(2, 3, 4))
    every = samplers.sample(denoiser, "ddim", steps=3, start=image, known=mask.expand(2, 3, 4), batch=2).x
    for known in (mask, mask[None], mask.expand(2, 1, 3, 4), mask[:, :1]):
        assert torch.equal(samplers.sample(denoiser, "ddim", steps=3, start=image, known=known, batch=2).x, every)
    with pytest.raises(OptionError, match=r"known has shape \(3, 4\)"):
        samplers.sample(denoiser, "ddim", start=image, known=mask[0])


def test_inpainting_shows_the_model_the_known_part_at_its_noise_level():
    image, known = torch.tensor([2.0, 0.0, 0.0], dtype=torch.float64), torch.tensor([True, False, False])
    denoiser = Gauss()
    samplers.sample(denoiser, "dpmpp_2m", start=image, known=known, steps=5)
    z = samplers.random.Rng.of(0, 1).normal((3,), 0, torch.float64)
    for x, t in denoiser.calls:
        a, s = float(denoiser.schedule.alpha(t)), float(denoiser.schedule.sigma(t))
        torch.testing.assert_close(x[0, 0], a * image[0] + s * z[0, 0], rtol=0, atol=1e-12)
    out = samplers.sample(Gauss(), "ddim", start=image, known=known, steps=5, end="t_end", t_end=0.1)
    s = denoiser.schedule
    torch.testing.assert_close(out.x[0, 0], s.alpha(0.1) * image[0] + s.sigma(0.1) * z[0, 0], rtol=0, atol=1e-12)


def test_a_hook_between_steps():
    seen = []

    def hook(state):
        seen.append(state.i)
        return 2 * state.x if state.i == 2 else None

    states = list(samplers.stream(Gauss(), "ddim", steps=4, constrain=hook))
    assert seen == [0, 1, 2, 3]
    plain = list(samplers.stream(Gauss(), "ddim", steps=4))
    assert torch.equal(states[2].x, plain[2].x) and not torch.equal(states[3].x, plain[3].x)
    with pytest.raises(OptionError, match=r"constrain returned a value that is not finite \(before step 1\)"):
        samplers.sample(Gauss(), "ddim", constrain=lambda state: state.x * math.nan)
    with pytest.raises(OptionError, match=r"constrain returned float; x of shape \(1, 3\)"):
        samplers.sample(Gauss(), "ddim", constrain=lambda state: 1.0)


# ---------------------------------------------------------------------------------------------- guidance, thresholds, energy


def test_guidance_by_a_second_callable_and_by_a_pair_of_conditions_are_equal():
    def model(x, t, c):
        return 0.1 * x + c

    conditional, without = torch.tensor([[1.0]]), torch.tensor([[0.2]])
    by_call = GaussianDenoiser.wrap(
        lambda x, t: model(x, t, conditional), shape=(3,), unconditional=lambda x, t: model(x, t, without)
    )
    by_pair = GaussianDenoiser.wrap(model, shape=(3,), condition=conditional, unconditional=without)
    by_hand = GaussianDenoiser.wrap(
        lambda x, t: 3.5 * model(x, t, conditional) - 2.5 * model(x, t, without), shape=(3,), rows_per_eval=2
    )
    a, b, c = (
        samplers.sample(d, "dpmpp_2m", steps=6, batch=2, cfg_scale=w)
        for d, w in ((by_call, 2.5), (by_pair, 2.5), (by_hand, 0.0))
    )
    assert torch.equal(a.x, b.x)
    torch.testing.assert_close(a.x, c.x, rtol=1e-5, atol=1e-5)
    assert [(s.nfe, s.row_evals) for s in (a, b, c)] == [(6, 24)] * 3
    plain = samplers.sample(by_pair, "dpmpp_2m", steps=6, batch=2)
    assert (plain.nfe, plain.row_evals) == (6, 12)


def test_conditions_per_row_and_by_name():
    def model(x, t, c):
        return 0.1 * x + c["text"] + c["size"].mean(1, keepdim=True)

    text, size = torch.tensor([[1.0], [2.0]]), torch.ones(1, 4)
    pair = {"condition": {"text": text, "size": size}, "unconditional": {"text": 0 * text[:1], "size": size}}
    denoiser = GaussianDenoiser.wrap(model, shape=(3,), **pair)
    both = samplers.sample(denoiser, "ddim", steps=3, batch=2, cfg_scale=1.0).x
    pair["condition"]["text"] = text[1:]
    alone = samplers.sample(
        GaussianDenoiser.wrap(model, shape=(3,), **pair), "ddim", steps=3, first_row=1, cfg_scale=1.0
    ).x
    assert torch.equal(both[1:], alone)
    with pytest.raises(OptionError, match="is for 2 rows and the batch has 3"):
        samplers.sample(denoiser, "ddim", steps=3, batch=3)


def test_guidance_in_an_interval():
    calls = []

    def without(x, t):
        calls.append(float(t[0]))
        return 0 * x

    denoiser = GaussianDenoiser.wrap(net, shape=(3,), unconditional=without)
    out = samplers.sample(denoiser, "ddim", steps=10, cfg_scale=1.0, cfg_interval=(0.2, 0.9))
    s = denoiser.schedule
    assert calls and all(0.2 < float(s.sigma(t)) ** 2 <= 0.9 for t in calls)
    assert len(calls) < 10 and out.row_evals == 10 + len(calls)


def test_rescaled_guidance_has_the_conditional_spread():
    g = torch.Generator().manual_seed(3)
    z = torch.randn(2, 3, 8, 8, generator=g)
    denoiser = GaussianDenoiser.wrap(lambda x, t: z, shape=(3, 8, 8), unconditional=lambda x, t: -z, prediction="x0")
    x = samplers.sample(denoiser, "ddim", steps=1, batch=2, cfg_scale=2.0, cfg_rescale=1.0).x
    torch.testing.assert_close(x, z, rtol=1e-5, atol=1e-5)
    half = samplers.sample(denoiser, "ddim", steps=1, batch=2, cfg_scale=2.0, cfg_rescale=0.5).x
    torch.testing.assert_close(half, (0.5 + 0.5 * 5) * z, rtol=1e-5, atol=1e-5)


def test_rescaled_guidance_of_a_row_does_not_depend_on_its_batch():
    """torch's standard deviation of a row whose mean is large differs if the row is alone."""
    z, u = 0.01 * torch.randn(2, 8, 3, 4, 4, generator=torch.Generator().manual_seed(0)) + 1000
    rows = [guide(z[i : i + 1], u[i : i + 1], 2.0, 0.7) for i in range(8)]
    assert torch.equal(guide(z, u, 2.0, 0.7), torch.cat(rows))


def test_static_and_dynamic_thresholding():
    z = torch.linspace(-4, 4, 101)
    denoiser = GaussianDenoiser.wrap(lambda x, t: z.expand_as(x), shape=(101,), prediction="x0")
    static = samplers.sample(denoiser, "ddim", steps=1, x0_bound=1.5).x[0]
    assert torch.equal(static, z.clamp(-1.5, 1.5))
    dynamic = samplers.sample(denoiser, "ddim", steps=1, x0_bound=1.0, x0_quantile=0.905).x[0]
    s = torch.quantile(z.abs(), 0.905)
    torch.testing.assert_close(dynamic, z.clamp(-s, s) / s, rtol=1e-6, atol=1e-6)
    small = samplers.sample(denoiser, "ddim", steps=1, x0_bound=9.0, x0_quantile=0.9).x[0]
    assert torch.equal(small, z)  # a quantile below the bound leaves x_0 as it is
    assert float(samplers.sample(denoiser, "ddim", steps=5, x0_bound=0.5).x.abs().max()) <= 0.5


def test_a_linear_energy_tilts_a_gaussian_exactly():
    """E(x) = -c x on N(m, v): the tilted law is N(m + c v, v), and -log E[exp(c x_0) | x_t] has a closed form."""
    c, plain = 1.5, Gauss()
    s = plain.schedule

    def energy(x, t):
        a, sigma = s.alpha(t)[:, None], s.sigma(t)[:, None]
        total = a**2 * VARIANCE + sigma**2
        mean = MEAN + a * VARIANCE / total * (x - a * MEAN)
        return -(c * mean + c**2 / 2 * (VARIANCE * sigma**2 / total)).sum(1)

    tilted = plain.with_energy(energy)
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for t in (0.9, 0.3, 0.01):
        a, sigma = float(s.alpha(t)), float(s.sigma(t))
        gain = a * VARIANCE / (a**2 * VARIANCE + sigma**2)
        expected = (MEAN + c * VARIANCE) + gain * (x - a * (MEAN + c * VARIANCE))
        got = tilted.predict(x, torch.full((5,), t, dtype=torch.float64))
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-10)
    out = samplers.sample(tilted, "dpmpp_2m", steps=30, batch=2000).x
    assert abs(float(out.mean()) - (MEAN + c * VARIANCE)) < 0.02
    with pytest.raises(OptionError, match=r"energy\(x, t\) returned"):
        samplers.sample(plain.with_energy(lambda x, t: 1.0), "ddim")


def test_cfg_scale_needs_something_to_guide_by():
    with pytest.raises(OptionError, match="unconditional="):
        samplers.sample(Gauss(), "ddim", cfg_scale=1.0)


# ---------------------------------------------------------------------------------------------- alpha = 0 at the start


@pytest.mark.parametrize("steps", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("name", ALL)
def test_a_flow_that_starts_at_t_1(name, steps):
    denoiser = Gauss(Flow(t_max=1.0))
    assert Point.at(denoiser.schedule, t=1.0).alpha == 0
    x = samplers.sample(denoiser, name, steps=steps, batch=3).x
    assert bool(torch.isfinite(x).all())
    assert float(denoiser.calls[0][1][0]) == 1.0
    if steps == 12:
        assert float((x - MEAN).abs().max()) < 4 * math.sqrt(VARIANCE)


def test_a_model_of_the_noise_says_nothing_at_alpha_0():
    denoiser = GaussianDenoiser.wrap(net, shape=(3,), schedule=Flow(t_max=1.0), moments=heads)
    for name in ALL:
        with pytest.raises(OptionError, match="predicts 'epsilon', which says nothing of x_0 at t=1"):
            samplers.sample(denoiser, name, steps=5)


@pytest.mark.parametrize(
    "call",
    [
        lambda: samplers.create("x" * 20_000),
        lambda: samplers.create("ddim", grid="x" * 20_000),
        lambda: samplers.create("analytic_ddpm", norms=[["a"] * 3] * 5000),
        lambda: samplers.noise_schedule("x" * 20_000),
        lambda: samplers.schedule.VPTable("x" * 20_000),
        lambda: samplers.noise_schedule("edm").time_of_sigma(["a"] * 5000),
        lambda: samplers.sample(Gauss(), "ddim", sigmas=["a"] * 5000),
        lambda: samplers.sample(Gauss(), "ddim", start=torch.zeros(5000)),
        lambda: samplers.sample(Gauss(), "ddim", start_moments=["a"] * 5000),
    ],
)
def test_an_error_is_not_longer_than_a_screen(call):
    with pytest.raises(samplers.SamplersError) as error:
        call()
    assert len(str(error.value)) < 700
