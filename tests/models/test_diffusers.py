"""Our samplers in the pipelines of diffusers, and its models under our driver. The models are random, tiny, and made here."""

import copy
import inspect
import json
import math
import sys
from dataclasses import dataclass

import pytest
import torch

import samplers
from samplers.authoring import GaussianSampler, GridState
from samplers.random import Rng
from samplers.schedule import VPTable

diffusers = pytest.importorskip("diffusers")
from samplers.models.diffusers import Scheduler, from_diffusers, schedule_of  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")

F64 = torch.float64
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}


def drives(name):
    """Whether a sampler can drive a pipeline: not if it chooses its times, or needs the unconditional answer or moments."""
    made = samplers.create(name)
    return made.expected_nfe(0, 20) is not None and "cfg_pp" not in name and made.facts.moments == 1


NAMES = [n for n in samplers.list_samplers(family="gaussian") if drives(n)]
TWO = samplers.create("dpm_solver", order=2)  # two evaluations per step, one left over if the number is odd


@dataclass(frozen=True)
class Heun(GaussianSampler[GridState]):
    """Heun's method in sigma / alpha, registered nowhere."""

    name, order = "heun_of_a_test", 2

    def solver_steps(self, canvas):
        return super().solver_steps(canvas) // 2

    def update(self, predict, state, s, t):
        def slope(x, at):
            return (x - at.alpha * predict(x, at)) / at.sigma

        h, first = t.sigma / t.alpha - s.sigma / s.alpha, slope(state.x, s)
        euler = t.alpha * (state.x / s.alpha + h * first)
        return self.advance(state, t.alpha * (state.x / s.alpha + h * (first + slope(euler, t)) / 2))


def as_published(name, options):
    """The options under which a solver of ours does what diffusers' does: no lower order where a step is much longer."""
    known = [o.name for o in samplers.create(name).options()]
    return options | ({"growth": math.inf} if "growth" in known else {})


def net(x, t):
    """A model: smooth, not linear, and different at every time and place."""
    t = torch.as_tensor(t, dtype=x.dtype).reshape(-1, *(1,) * (x.dim() - 1))
    return torch.sin(1.3 * x + t / 300) * 0.8 + 0.1 * x


def push(scheduler, x, model=net, generator=None, change=None):
    """The loop of every pipeline."""
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(model(scheduler.scale_model_input(x, t), t), t, x, generator=generator).prev_sample
        x = x if change is None else change(i, x)
    return x


def noise(rows=2, shape=(3, 4), seed=0, dtype=F64):
    return Rng.of(seed, rows).normal(shape, 0, dtype)


# ---------------------------------------------------------------------------------------------- replay is the sampler


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("name", NAMES)
def test_a_pushed_run_is_the_samplers_own(name, steps):
    """One answer at a time through `step`, or all at once in samplers.sample: the same numbers."""
    scheduler = Scheduler(name, seed=5, **SD)
    scheduler.set_timesteps(steps)
    assert len(scheduler.timesteps) == steps and len(scheduler.sigmas) == steps + 1
    # The time that the model gets is float32 in a pipeline, so it must be here.
    wrapped = samplers.GaussianDenoiser.wrap(
        lambda x, t: net(x, t.float()), shape=(3, 4), schedule="scaled_linear", dtype=F64
    )
    mine = samplers.sample(wrapped, name, batch=2, steps=steps, seed=5, start_noise=noise(), start_moments=(0.0, 1.0))
    got = push(scheduler, noise())
    assert mine.nfe == steps
    torch.testing.assert_close(got, mine.x, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("prediction", ["epsilon", "sample", "v_prediction", "flow_prediction"])
def test_every_kind_of_prediction(prediction):
    kind = {"sample": "x0", "v_prediction": "v", "flow_prediction": "flow"}.get(prediction, prediction)
    scheduler = Scheduler("dpmpp_2m", prediction_type=prediction)
    scheduler.set_timesteps(6)
    wrapped = samplers.GaussianDenoiser.wrap(
        lambda x, t: net(x, t.float()), shape=(3, 4), schedule="ddpm_linear", dtype=F64, prediction=kind
    )
    mine = samplers.sample(wrapped, "dpmpp_2m", batch=2, steps=6, start_noise=noise(), start_moments=(0.0, 1.0)).x
    torch.testing.assert_close(push(scheduler, noise()), mine, rtol=1e-11, atol=1e-11)


def test_the_last_prediction_is_the_result_and_learned_variance_is_dropped():
    scheduler = Scheduler("ddim", num_train_timesteps=100)
    scheduler.set_timesteps(3)
    x, wide = noise(), None
    for t in scheduler.timesteps:
        z = net(x, t)
        wide = scheduler.step(torch.cat([z, 7 * z], 1), t, x)
        x = wide.prev_sample
    assert torch.equal(wide.prev_sample, wide.pred_original_sample)
    scheduler.set_timesteps(3)
    assert torch.equal(push(scheduler, noise()), x)


# ---------------------------------------------------------------------------------------------- diffusers' own numbers

DETER = (torch.arange(4 * 3 * 8 * 8).reshape(3, 8, 8, 4) / 768).permute(3, 0, 1, 2)


def dummy(x, t):
    t = torch.as_tensor(t).round()  # diffusers rounds the times of Karras' grid and keeps their sigmas
    return x * t / (t + 1)


def mean(x):
    return float(x.abs().mean())


# What diffusers' tests of its schedulers expect (version 0.42.0): mean |x| after ten steps, to 1e-3. Their numbers of UniPC,
# DEIS and the singlestep solver are with a last step of lower order, and those of Euler, Heun, LMS and KDPM2 come from a loop
# that hands the scaled sample to `step`: our solvers do neither. They are compared without both, below.
@pytest.mark.parametrize(
    ("name", "options", "config", "steps", "value"),
    [
        # The last of their ten Karras points is met twice with "sigma_min", and the step between them is none.
        ("dpmpp_2m", {}, {"timestep_spacing": "linspace"}, 10, 0.3301),
        ("dpmpp_2m", {}, {"timestep_spacing": "linspace", "prediction_type": "v_prediction"}, 10, 0.2251),
        ("dpmpp_2m", {}, {"use_karras_sigmas": True, "prediction_type": "v_prediction"}, 9, 0.2096),
        ("dpmpp_2m", {}, {"use_lu_lambdas": True, "prediction_type": "v_prediction"}, 9, 0.1554),
        (
            "dpmpp_2m",
            {},
            {
                "timestep_spacing": "linspace",
                "thresholding": True,
                "dynamic_thresholding_ratio": 0.87,
                "sample_max_value": 0.5,
            },
            10,
            1.1364,
        ),
    ],
)
def test_the_loops_of_diffusers_own_tests(name, options, config, steps, value):
    if name not in NAMES:
        pytest.skip(f"the zoo has no {name}")
    scheduler = Scheduler(name, as_published(name, options), final_sigmas_type="sigma_min", **config)
    scheduler.set_timesteps(steps)
    assert mean(push(scheduler, DETER, dummy)) == pytest.approx(value, abs=1e-3)


def test_ddim_of_diffusers_own_tests():
    scheduler = Scheduler.from_config(
        diffusers.DDIMScheduler().config, sampler="ddim", timestep_spacing="leading", steps_offset=0
    )
    scheduler.set_timesteps(10)
    assert scheduler.timesteps.tolist() == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    x = push(scheduler, DETER, dummy)
    assert float(x.abs().sum()) == pytest.approx(172.0067, abs=1e-2) and mean(x) == pytest.approx(0.223967, abs=1e-3)


def test_a_run_from_a_noised_start_of_diffusers_own_tests():
    """t_start = 5 of ten steps, without set_begin_index: the place is found by the time."""
    options = as_published("dpmpp_2m", {})
    scheduler = Scheduler("dpmpp_2m", options, timestep_spacing="linspace", final_sigmas_type="sigma_min")
    scheduler.set_timesteps(10)
    begin = scheduler.timesteps[5:]
    # Their noise is the same numbers turned around.
    flipped = (torch.arange(768).flip(-1).reshape(3, 8, 8, 4) / 768).permute(3, 0, 1, 2)
    x = scheduler.add_noise(DETER, flipped, begin[:1])
    for t in begin:
        x = scheduler.step(dummy(x, t), t, x).prev_sample
    assert float(x.abs().sum()) == pytest.approx(318.4111, abs=1e-2)


NOT_TO_ZERO = {"final_sigmas_type": "sigma_min"}
PEERS = [
    ("ddim", {}, lambda: diffusers.DDIMScheduler(clip_sample=False)),
    ("ddim", {}, lambda: diffusers.DDIMScheduler(clip_sample=True, beta_schedule="squaredcos_cap_v2")),
    ("dpmpp_2m", {}, lambda: diffusers.DPMSolverMultistepScheduler(lower_order_final=False)),
    ("dpmpp_2m", {}, lambda: diffusers.DPMSolverMultistepScheduler(timestep_spacing="trailing")),
    ("dpmpp_2m", {}, lambda: diffusers.DPMSolverMultistepScheduler(lower_order_final=False, **NOT_TO_ZERO)),
    ("unipc", {"order": 2}, lambda: diffusers.UniPCMultistepScheduler()),
    ("unipc", {"order": 2}, lambda: diffusers.UniPCMultistepScheduler(lower_order_final=False, **NOT_TO_ZERO)),
    ("deis", {"order": 2}, lambda: diffusers.DEISMultistepScheduler(lower_order_final=False)),
    ("ddim", {}, lambda: diffusers.EulerDiscreteScheduler()),
    ("heun", {}, lambda: diffusers.HeunDiscreteScheduler()),
    ("ddim", {}, lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)),
]


@pytest.mark.parametrize("steps", [1, 4, 20])
@pytest.mark.parametrize("which", range(len(PEERS)))
def test_beside_the_schedulers_of_diffusers(which, steps):
    """The same solver at the same times on the same noise, in float32: to 1e-4, which is what float32 tables leave."""
    name, options, make = PEERS[which]
    if name not in NAMES:
        pytest.skip(f"the zoo has no {name}")
    theirs, x = make(), noise(shape=(3, 8), dtype=torch.float32)
    theirs.set_timesteps(steps)
    end = NOT_TO_ZERO if name == "deis" else {}  # DEIS there never goes to zero
    ours = Scheduler.from_config(theirs.config, sampler=name, sampler_options=as_published(name, options), **end)
    ours.set_timesteps(timesteps=list(dict.fromkeys(theirs.timesteps.tolist())))  # Heun has each twice
    torch.testing.assert_close(ours.timesteps.double(), theirs.timesteps.double(), rtol=1e-6, atol=1e-4)
    if hasattr(theirs, "sigmas"):
        torch.testing.assert_close(ours.sigmas[:-1], theirs.sigmas[: len(ours.timesteps)], rtol=1e-4, atol=0)
    # DDIM there clips x_0 alone, unless it is told that the noise should follow from it, as in every other solver.
    more = {"use_clipped_model_output": True} if isinstance(theirs, diffusers.DDIMScheduler) else {}
    # Some keep x / alpha, which scale_model_input turns into x.
    scaled = isinstance(theirs, (diffusers.EulerDiscreteScheduler, diffusers.HeunDiscreteScheduler))
    want = x * (theirs.sigmas[0] ** 2 + 1) ** 0.5 if scaled else x
    for t in theirs.timesteps:
        given = theirs.scale_model_input(want, t) if scaled else want
        want = theirs.step(net(given, t), t, want, **more).prev_sample
    # Heun's rule divides the errors of those tables by sigma: ours in float32 is within 2e-5 of ours in float64.
    torch.testing.assert_close(push(ours, x), want, rtol=1e-4, atol=3e-4 if name == "heun" else 1e-4)


# ---------------------------------------------------------------------------------------------- configurations


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (lambda: diffusers.DDPMScheduler(beta_schedule="squaredcos_cap_v2"), "table"),
        (lambda: diffusers.PNDMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"), "table"),
        (lambda: diffusers.EulerDiscreteScheduler(trained_betas=[0.01, 0.02, 0.05, 0.1]), "table"),
        (lambda: diffusers.DPMSolverMultistepScheduler(), "table"),
        (
            lambda: diffusers.UniPCMultistepScheduler(
                prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3
            ),
            "flow",
        ),
        (lambda: diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0), "flow"),
        (lambda: diffusers.EDMEulerScheduler(sigma_max=50.0), "edm"),
    ],
)
def test_configurations_are_understood_and_kept(make, kind, tmp_path):
    theirs = make()
    ours = Scheduler.from_config(theirs.config, sampler="ddim", sampler_options={"eta": 0.25}, seed=3)
    assert ours.config.schedule == kind and ours.sampler.eta == 0.25
    if kind == "table":
        torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=2e-4, atol=1e-9)
        assert len(ours) == theirs.config.num_train_timesteps
    ours.save_config(tmp_path)
    for again in (Scheduler.from_pretrained(tmp_path), Scheduler.from_config(ours.config), copy.deepcopy(ours)):
        assert {k: v for k, v in again.config.items() if k[0] != "_"} == {
            k: v for k, v in ours.config.items() if k[0] != "_"
        }
    # And back: the other scheduler finds its own keys again.
    back = type(theirs).from_config(ours.config)
    for key, value in theirs.config.items():
        if key[0] != "_" and key in inspect.signature(type(theirs)).parameters and value is not None:
            assert back.config[key] == value, key


def test_a_default_of_another_scheduler_is_not_a_choice_of_spacing_and_its_betas_are_kept():
    chosen = Scheduler.from_config(diffusers.DDIMScheduler(timestep_spacing="trailing").config)
    assert chosen.config.timestep_spacing == "trailing"
    left = Scheduler.from_config(
        diffusers.DPMSolverSDEScheduler().config
        if diffusers.utils.is_torchsde_available()
        else diffusers.LCMScheduler().config
    )
    assert left.config.timestep_spacing is None and left.config.beta_start == 0.00085
    over = Scheduler.from_config(diffusers.DDIMScheduler().config, timestep_spacing="trailing")
    over.set_timesteps(4)
    assert over.timesteps.tolist() == [999, 749, 499, 249]
    grid = Scheduler.from_config(chosen.config, sampler_options={"grid": "karras"})
    grid.set_timesteps(10)
    rounded = [999, 937, 864, 775, 663, 511, 301, 102, 18, 0]  # diffusers, use_karras_sigmas
    assert (grid.timesteps.round() - torch.tensor(rounded)).abs().max() <= 1


def test_a_sampler_object_is_a_name_and_its_options():
    scheduler = Scheduler.from_config(diffusers.DDIMScheduler().config, sampler=samplers.create("ddim", eta=0.5))
    assert (scheduler.config.sampler, scheduler.config.sampler_options) == ("ddim", {"eta": 0.5})
    assert json.loads(scheduler.to_json_string())["sampler"] == "ddim"


def test_zero_terminal_snr_begins_without_data():
    scheduler = Scheduler(
        "dpmpp_2m", rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing"
    )
    scheduler.set_timesteps(5)
    assert scheduler.timesteps[0] == 999 and torch.isinf(scheduler.sigmas[0])
    assert torch.isfinite(push(scheduler, noise())).all()
    broken = Scheduler("dpmpp_2m", rescale_betas_zero_snr=True, timestep_spacing="trailing")
    broken.set_timesteps(5)
    with pytest.raises(samplers.OptionError, match="alpha is 0"):
        push(broken, noise())


def test_edm_models_get_what_edm_prescribes():
    theirs = diffusers.EDMEulerScheduler()
    ours = Scheduler.from_config(theirs.config, sampler="ddim", sampler_options={"grid": "karras"})
    theirs.set_timesteps(6), ours.set_timesteps(6)
    torch.testing.assert_close(ours.timesteps, theirs.timesteps, rtol=1e-4, atol=1e-4)
    x = noise(dtype=torch.float32) * ours.init_noise_sigma
    want = x
    for t in theirs.timesteps:
        want = theirs.step(net(theirs.scale_model_input(want, t), t), t, want).prev_sample
    torch.testing.assert_close(push(ours, x), want, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------- what pipelines do to a run


@pytest.mark.parametrize("sampler", ["dpmpp_2m", TWO, samplers.create("ddim", eta=1.0)])
def test_interleaved_copied_and_repeated_runs_are_what_they_are_alone(sampler):
    def made(seed):
        scheduler = Scheduler(sampler, seed=seed)
        scheduler.set_timesteps(6)
        return scheduler

    alone = [push(made(s), noise(seed=s)) for s in (1, 2)]
    both, xs, copied = [made(1), made(2)], [noise(seed=1), noise(seed=2)], None
    for i in range(6):
        for k, scheduler in enumerate(both):
            t = scheduler.timesteps[i]
            xs[k] = scheduler.step(net(xs[k], t), t, xs[k], return_dict=False)[0]
        if i == 2:
            copied, x = copy.deepcopy(both[0]), xs[0].clone()
    assert torch.equal(xs[0], alone[0]) and torch.equal(xs[1], alone[1])
    for t in copied.timesteps[3:]:
        x = copied.step(net(x, t), t, x).prev_sample
    assert torch.equal(x, alone[0])
    both[0].set_timesteps(6)
    assert torch.equal(push(both[0], noise(seed=1)), alone[0])


def test_steps_out_of_order_are_refused():
    scheduler, x = Scheduler("dpmpp_2m"), noise()
    with pytest.raises(samplers.OptionError, match="set_timesteps"):
        scheduler.step(x, 999, x)
    scheduler.set_timesteps(2)
    with pytest.raises(samplers.OptionError, match="none of this run's"):
        scheduler.step(x, 123, x)
    with pytest.raises(samplers.OptionError, match="model_output has shape"):
        scheduler.step(x[:, :2], scheduler.timesteps[0], x)
    scheduler.set_timesteps(2)
    push(scheduler, x)
    with pytest.raises(samplers.OptionError, match="all 2 timesteps of this run are done"):
        scheduler.step(x, scheduler.timesteps[0], x)
    scheduler.set_timesteps(2)
    scheduler.step(x, scheduler.timesteps[0], x)
    with pytest.raises(samplers.OptionError, match="the run began with"):
        scheduler.step(x[:1], scheduler.timesteps[1], x[:1])
    scheduler.set_timesteps(2)
    scheduler.set_begin_index(2)
    with pytest.raises(samplers.OptionError, match="begin_index is 2"):
        scheduler.step(x, scheduler.timesteps[0], x)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: Scheduler("dpmpp_2n"), "dpmpp_2m"),
        (lambda: Scheduler("radd"), "continuous sampler"),
        (lambda: Scheduler("ddim", {"eeta": 1}), "eta"),
        (lambda: Scheduler(prediction_type="v"), "v_prediction"),
        (lambda: Scheduler(beta_schedule="sigmoid"), "trained_betas"),
        (lambda: Scheduler(schedule="vp"), "'table', 'flow', 'edm'"),
        (lambda: Scheduler(timestep_spacing="even").set_timesteps(3), "linspace, trailing, leading"),
        (lambda: Scheduler(final_sigmas_type="least").set_timesteps(3), "sigma_min"),
        (lambda: Scheduler().set_timesteps(), "num_inference_steps"),
        (lambda: Scheduler().set_timesteps(0), "integer of 1 or more"),
        (lambda: Scheduler().set_timesteps(3, timesteps=[900, 10]), "disagree"),
        (lambda: Scheduler().set_timesteps(timesteps=[9.0], sigmas=[1.0]), "give one"),
        (lambda: Scheduler().set_timesteps(timesteps=[1200, 10]), "outside"),
        (lambda: Scheduler(schedule="flow", use_dynamic_shifting=True).set_timesteps(3), "mu"),
        (lambda: Scheduler(schedule="flow").alphas_cumprod, "alphas_cumprod"),
        (lambda: Scheduler.from_config(diffusers.ScoreSdeVeScheduler().config), "no betas"),
        (
            lambda: Scheduler.from_config(diffusers.EulerDiscreteScheduler(timestep_type="continuous").config),
            "timestep_type",
        ),
        (lambda: from_diffusers(None, 3), "configuration is needed"),
    ],
)
def test_errors_say_what_would_be_right(call, words):
    with pytest.raises((samplers.SamplersError, AttributeError), match=words):
        call()


def test_samplers_that_cannot_drive_a_pipeline_say_why():
    @dataclass(frozen=True)
    class Paired(GaussianSampler[GridState]):
        name = "paired"

        def update(self, predict, state, s, t):
            return self.advance(state, predict.pair(state.x, s)[1])

    @dataclass(frozen=True)
    class ByRow(GaussianSampler[GridState]):
        name = "by_row"

        def update(self, predict, state, s, t):
            return self.advance(state, predict(state.x, torch.full((len(state.x),), s.t)))

    @dataclass(frozen=True)
    class Wandering(GaussianSampler[GridState]):
        name = "wandering"

        def update(self, predict, state, s, t):
            x0 = predict(state.x, s)
            return self.advance(state, predict(x0, s.t - float(x0.abs().max())))

    @dataclass(frozen=True)
    class Free(GaussianSampler[GridState]):
        name = "free"

        def expected_nfe(self, length, steps):
            return None

    with pytest.raises(samplers.OptionError, match="without the condition"):
        Scheduler(Paired()).set_timesteps(3)
    with pytest.raises(samplers.OptionError, match="for each row"):
        Scheduler(ByRow()).set_timesteps(3)
    with pytest.raises(samplers.OptionError, match="chooses its times"):
        Scheduler(Free())
    wandering = Scheduler(Wandering())
    wandering.set_timesteps(3)
    with pytest.raises(samplers.SamplersError, match="depend on its answers"):
        push(wandering, noise())


def test_without_diffusers_the_error_says_what_to_install(monkeypatch):
    for name in [m for m in sys.modules if m.split(".")[0] == "diffusers"] + ["samplers.models.diffusers"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr(samplers.models, "diffusers", raising=False)
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ImportError, match=r"sampler-zoo\[diffusers\]"):
        samplers.models.diffusers  # noqa: B018


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_samples_lose_nothing_between_steps(dtype):
    """The state stays float32: with a model that reads the rounded sample, the run is that of a float32 loop which rounds for it."""
    scheduler = Scheduler("dpmpp_2m")
    scheduler.set_timesteps(8)
    x = noise(dtype=torch.float32).to(dtype)
    got = push(scheduler, x, lambda x, t: net(x.float(), t).to(dtype))
    wrapped = samplers.GaussianDenoiser.wrap(
        lambda x, t: net(x.to(dtype).float(), t).to(dtype).float(), shape=(3, 4), schedule="ddpm_linear"
    )
    mine = samplers.sample(wrapped, "dpmpp_2m", batch=2, steps=8, start_noise=x.float(), start_moments=(0.0, 1.0)).x
    # The x_0 of noise predictions is taken from the sample as it is in float32, here as there.
    torch.testing.assert_close(got, mine.to(dtype), rtol=0, atol=2 * torch.finfo(dtype).eps * float(mine.abs().max()))


def test_what_a_pipeline_changes_between_steps_is_taken():
    """In place or not: the known half follows the pipeline, and the result has it exactly."""
    start, e = noise(seed=8), noise(seed=9)
    outs = []
    for in_place in (True, False):
        scheduler = Scheduler("dpmpp_2m")
        scheduler.set_timesteps(6)

        def keep(i, x, scheduler=scheduler, in_place=in_place):
            t = scheduler.timesteps[i + 1 : i + 2]
            known = scheduler.add_noise(start, e, t) if len(t) else start
            x = x if in_place else x.clone()
            x[:, :1] = known[:, :1]
            return x

        outs.append(push(scheduler, noise(), change=keep))
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0][:, :1], start[:, :1])
    scheduler = Scheduler("dpmpp_2m")
    scheduler.set_timesteps(6)
    # net works on each number alone, so the other half is what it is without any change.
    assert torch.equal(push(scheduler, noise())[:, 1:], outs[0][:, 1:])


@pytest.mark.parametrize("begin", range(7))
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m", TWO])
def test_a_run_may_begin_anywhere(sampler, begin):
    """With the exact model of one point, every solver of the ODE ends there from every start, in the middle of a step too."""
    target = noise(seed=4)
    table = VPTable.named("ddpm_linear")

    def exact(x, t):
        a, s = (f(torch.as_tensor(float(t), dtype=F64)) for f in (table.alpha, table.sigma))
        return (x - a * target) / s

    scheduler = Scheduler(sampler)
    scheduler.set_timesteps(7)
    scheduler.set_begin_index(begin)
    x = scheduler.add_noise(target, noise(seed=6), scheduler.timesteps[begin : begin + 1])
    for t in scheduler.timesteps[begin:]:
        x = scheduler.step(exact(x, t), t, x).prev_sample
    assert scheduler.step_index == 7 and scheduler.begin_index == begin
    torch.testing.assert_close(x, target, rtol=1e-5, atol=1e-5)


def test_a_multistep_run_from_the_middle_is_a_run_over_the_times_that_are_left():
    scheduler = Scheduler("dpmpp_2m", timestep_spacing="trailing")
    scheduler.set_timesteps(8)
    left = scheduler.timesteps[3:]
    x = scheduler.add_noise(noise(seed=4), noise(seed=6), left[:1])
    mine = Scheduler("dpmpp_2m")
    mine.set_timesteps(timesteps=left.tolist())
    want = push(mine, x)
    for t in left:  # found by its time
        x = scheduler.step(net(x, t), t, x).prev_sample
    torch.testing.assert_close(x, want, rtol=1e-9, atol=1e-9)


def test_noise_comes_from_the_seed_or_from_a_generator():
    sampler = samplers.create("ddim", eta=1.0)

    def run(seed=None, generator=None, rows=2, first_row=0, x=None):
        scheduler = Scheduler(sampler, seed=seed, first_row=first_row)
        scheduler.set_timesteps(5)
        return push(scheduler, noise() if x is None else x, generator=generator)

    assert torch.equal(run(3), run(3)) and not torch.equal(run(3), run(4))
    assert torch.equal(run(3)[1:], run(3, first_row=1, x=noise()[1:]))
    generator = [torch.Generator().manual_seed(s) for s in (7, 7, 8)]
    a, b, c = (run(generator=g) for g in generator)
    assert torch.equal(a, b) and not torch.equal(a, c)
    assert not torch.equal(run(generator=generator[0]), a)  # it has moved
    torch.manual_seed(1)
    a = run()
    torch.manual_seed(1)
    assert torch.equal(run(), a) and not torch.equal(run(), a)
    before = torch.get_rng_state()
    push_one = Scheduler("dpmpp_2m")
    push_one.set_timesteps(3)
    push(push_one, noise())
    assert torch.equal(torch.get_rng_state(), before)  # a sampler that draws none moves none


def test_lists_say_where_the_solvers_steps_begin():
    two = Scheduler(Heun())
    two.set_timesteps(timesteps=[900, 500, 200])
    assert two.timesteps.tolist() == [900, 500, 500, 200, 200]
    assert [two.index_for_timestep(t) for t in (900, 500, 200)] == [0, 2, 4]  # where a step begins
    table = Scheduler("dpmpp_2m", beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    sigmas = diffusers.schedulers.AysSchedules["StableDiffusionSigmas"]
    table.set_timesteps(sigmas=sigmas)
    torch.testing.assert_close(table.sigmas, torch.tensor(sigmas), rtol=1e-3, atol=0)
    assert torch.isfinite(push(table, noise())).all()
    flow = Scheduler("dpmpp_2m", schedule="flow", prediction_type="flow_prediction", use_dynamic_shifting=True)
    flow.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.8)
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    theirs.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25], mu=0.8)
    torch.testing.assert_close(flow.sigmas, theirs.sigmas, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(flow.timesteps, theirs.timesteps, rtol=1e-6, atol=1e-3)
    end = Scheduler("dpmpp_2m", schedule="flow", shift_terminal=0.1)
    end.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    theirs = diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=0.1)
    theirs.set_timesteps(sigmas=[1.0, 0.75, 0.5, 0.25])
    torch.testing.assert_close(end.sigmas, theirs.sigmas, rtol=1e-6, atol=1e-7)


# ---------------------------------------------------------------------------------------------- pipelines


def seeded(make):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


def unet2d(**more):
    options = {
        "sample_size": 8,
        "in_channels": 3,
        "out_channels": 3,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
        "layers_per_block": 1,
    }
    blocks = {"down_block_types": ("DownBlock2D", "AttnDownBlock2D"), "up_block_types": ("AttnUpBlock2D", "UpBlock2D")}
    return seeded(lambda: diffusers.UNet2DModel(**(options | blocks | more)))


def unet_text(**more):
    options = {
        "sample_size": 8,
        "in_channels": 4,
        "out_channels": 4,
        "block_out_channels": (8, 16),
        "norm_num_groups": 4,
    }
    options |= {"layers_per_block": 1, "cross_attention_dim": 16, "attention_head_dim": 4}
    blocks = {
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    }
    return seeded(lambda: diffusers.UNet2DConditionModel(**(options | blocks | more)))


def vae(channels=4):
    return seeded(
        lambda: diffusers.AutoencoderKL(
            block_out_channels=(8,), in_channels=3, out_channels=3, latent_channels=channels, norm_num_groups=4,
            down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
        )
    )  # fmt: skip


PROMPT = {
    "prompt_embeds": noise(1, (5, 16), 2, torch.float32),
    "negative_prompt_embeds": noise(1, (5, 16), 3, torch.float32),
}


def stable(cls, **more):
    parts = {"vae": vae(), "text_encoder": None, "tokenizer": None, "unet": unet_text(**more), "safety_checker": None}
    parts |= {"feature_extractor": None, "requires_safety_checker": False}
    pipe = cls(scheduler=diffusers.DDIMScheduler(**SD, clip_sample=False, steps_offset=1), **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


SOLVERS = ["ddim", "dpmpp_2m", TWO]


@pytest.mark.parametrize("sampler", SOLVERS)
def test_ddpm_pipeline_is_samplers_sample(sampler):
    pipe = diffusers.DDPMPipeline(unet2d(), diffusers.DDPMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = Scheduler.from_config(pipe.scheduler.config, sampler=sampler)
    x = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    images = pipe(2, torch.Generator().manual_seed(1), num_inference_steps=5, output_type="np").images
    denoiser = from_diffusers(pipe.unet, pipe.scheduler)
    mine = samplers.sample(denoiser, sampler, batch=2, steps=5, start_noise=x, start_moments=(0.0, 1.0)).x
    want = (mine / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(torch.from_numpy(images), want, rtol=0, atol=1e-5)


def test_clipping_is_kept_from_the_pipelines_scheduler():
    pipe = diffusers.DDPMPipeline(unet2d(), diffusers.DDPMScheduler())
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = Scheduler.from_config(pipe.scheduler.config)
    x = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    got = pipe(1, torch.Generator().manual_seed(1), num_inference_steps=5, output_type="np").images
    mine = [
        samplers.sample(
            from_diffusers(pipe.unet, pipe.scheduler),
            "dpmpp_2m",
            steps=5,
            start_noise=x,
            start_moments=(0.0, 1.0),
            **more,
        ).x
        for more in ({"x0_bound": 1.0}, {})
    ]
    want, other = ((m / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1) for m in mine)
    torch.testing.assert_close(torch.from_numpy(got), want, rtol=0, atol=1e-5)
    assert float((want - other).abs().max()) > 0.01


@pytest.mark.parametrize("sampler", SOLVERS)
def test_dit_pipeline(sampler):
    transformer = seeded(
        lambda: diffusers.DiTTransformer2DModel(
            num_attention_heads=2, attention_head_dim=8, in_channels=4, out_channels=8, num_layers=1, sample_size=8,
            patch_size=2, num_embeds_ada_norm=1000, activation_fn="gelu-approximate", norm_type="ada_norm_zero",
        )
    )  # fmt: skip
    with torch.random.fork_rng(), torch.no_grad():  # its last layer is 0 at birth, so it would predict nothing
        torch.manual_seed(1)
        for p in transformer.parameters():
            p.normal_(0, 0.2)
    pipe = diffusers.DiTPipeline(transformer, vae(), diffusers.DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = Scheduler.from_config(pipe.scheduler.config, sampler=sampler)
    image = pipe(
        [3], guidance_scale=2.0, generator=torch.Generator().manual_seed(1), num_inference_steps=5, output_type="np"
    ).images
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    denoiser = from_diffusers(
        transformer, pipe.scheduler, condition=torch.tensor([3]), unconditional=torch.tensor([1000])
    )
    mine = samplers.sample(denoiser, sampler, steps=5, start_noise=x, start_moments=(0.0, 1.0), cfg_scale=1.0).x
    with torch.no_grad():
        want = (pipe.vae.decode(mine / pipe.vae.config.scaling_factor).sample / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1)
    torch.testing.assert_close(torch.from_numpy(image), want, rtol=0, atol=1e-5)


@pytest.mark.parametrize("sampler", SOLVERS)
def test_stable_diffusion_is_samplers_sample_with_guidance(sampler):
    pipe = stable(diffusers.StableDiffusionPipeline)
    pipe.scheduler = Scheduler.from_config(pipe.scheduler.config, sampler=sampler)
    x = noise(1, (4, 8, 8), 1, torch.float32)
    got = pipe(**PROMPT, latents=x, num_inference_steps=6, guidance_scale=4.0, output_type="latent").images
    denoiser = from_diffusers(
        pipe.unet, pipe.scheduler, condition=PROMPT["prompt_embeds"], unconditional=PROMPT["negative_prompt_embeds"]
    )
    mine = samplers.sample(denoiser, sampler, steps=6, start_noise=x, start_moments=(0.0, 1.0), cfg_scale=3.0)
    assert mine.nfe == 6
    torch.testing.assert_close(got, mine.x, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("name", "which"), [("ddim", 0), ("dpmpp_2m", 1)])
def test_stable_diffusion_is_that_of_diffusers_scheduler(name, which):
    pipe = stable(diffusers.StableDiffusionPipeline)
    config, x = pipe.scheduler.config, noise(1, (4, 8, 8), 1, torch.float32)
    theirs = [
        lambda: diffusers.DDIMScheduler.from_config(config, timestep_spacing="trailing", set_alpha_to_one=True),
        lambda: diffusers.DPMSolverMultistepScheduler.from_config(
            config, timestep_spacing="trailing", lower_order_final=False
        ),
    ][which]()
    images = []
    for scheduler in (
        theirs,
        Scheduler.from_config(theirs.config, sampler=name, sampler_options=as_published(name, {})),
    ):
        pipe.scheduler = scheduler
        images.append(pipe(**PROMPT, latents=x, num_inference_steps=10, guidance_scale=4.0, output_type="np").images)
    assert abs(images[0] - images[1]).max() < 1e-4


def test_stable_diffusion_reads_a_text(tmp_path):
    transformers = pytest.importorskip("transformers")
    words = ["<|startoftext|>", "<|endoftext|>", *"abcdefghij", *(c + "</w>" for c in "abcdefghij")]
    (tmp_path / "vocab.json").write_text(json.dumps({w: i for i, w in enumerate(words)}), encoding="utf-8")
    (tmp_path / "merges.txt").write_text("#version: 0.2\n", encoding="utf-8")
    tokenizer = transformers.CLIPTokenizer(
        str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"), model_max_length=8
    )
    config = transformers.CLIPTextConfig(
        hidden_size=16, intermediate_size=16, num_attention_heads=2, num_hidden_layers=1, vocab_size=len(words),
        max_position_embeddings=8, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    pipe = stable(diffusers.StableDiffusionPipeline)
    pipe.register_modules(tokenizer=tokenizer, text_encoder=seeded(lambda: transformers.CLIPTextModel(config)))
    pipe.scheduler = Scheduler.from_config(pipe.scheduler.config, sampler=TWO)
    x = noise(1, (4, 8, 8), 1, torch.float32)
    outs = [
        pipe(p, latents=x, num_inference_steps=3, output_type="np").images for p in ("a bad cab", "a bad cab", "hi")
    ]
    assert (outs[0] == outs[1]).all() and (outs[0] != outs[2]).any()
    pipe.save_pretrained(tmp_path / "pipe")
    scheduler = Scheduler.from_pretrained(tmp_path / "pipe", subfolder="scheduler")
    again = diffusers.StableDiffusionPipeline.from_pretrained(
        tmp_path / "pipe", scheduler=scheduler, safety_checker=None
    )
    again.set_progress_bar_config(disable=True)
    assert (again("a bad cab", latents=x, num_inference_steps=3, output_type="np").images == outs[0]).all()


@pytest.mark.parametrize("strength", [0.3, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("sampler", SOLVERS)
def test_image_to_image(sampler, strength):
    """The model is asked at the last share of the times; DDIM's images are those of diffusers."""
    pipe = stable(diffusers.StableDiffusionImg2ImgPipeline)
    theirs = diffusers.DDIMScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True
    )
    image, seen, outs = noise(1, (4, 8, 8), 5, torch.float32), [], []  # four channels are latents already
    pipe.unet.register_forward_pre_hook(lambda m, args: seen.append(float(args[1])))
    for scheduler in (theirs, Scheduler.from_config(theirs.config, sampler=sampler)):
        pipe.scheduler = scheduler
        told = {"image": image, "strength": strength, "num_inference_steps": 8, "output_type": "latent"}
        seen.clear()
        outs.append(pipe(**PROMPT, **told, generator=torch.Generator().manual_seed(1)).images)
    assert seen == pipe.scheduler.timesteps[8 - int(8 * strength) :].tolist()
    assert torch.isfinite(outs[1]).all()
    if sampler == "ddim":
        torch.testing.assert_close(outs[1], outs[0], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sampler", SOLVERS)
def test_inpainting_keeps_what_is_known(sampler):
    pipe = stable(diffusers.StableDiffusionInpaintPipeline)
    theirs = diffusers.DDIMScheduler.from_config(
        pipe.scheduler.config, timestep_spacing="trailing", set_alpha_to_one=True
    )
    image = noise(1, (3, 8, 8), 5, torch.float32).clamp(-1, 1)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., 4:] = 1
    told = {"image": image, "mask_image": mask, "strength": 1.0, "num_inference_steps": 5, "height": 8, "width": 8}
    outs = []
    for scheduler in (theirs, Scheduler.from_config(theirs.config, sampler=sampler)):
        pipe.scheduler = scheduler
        outs.append(pipe(**PROMPT, **told, generator=torch.Generator().manual_seed(1), output_type="latent").images)
    assert torch.equal(outs[1][..., :4], outs[0][..., :4]) and torch.isfinite(outs[1]).all()
    if sampler == "ddim":
        torch.testing.assert_close(outs[1], outs[0], rtol=1e-4, atol=1e-4)
    else:
        assert not torch.allclose(outs[1][..., 4:], outs[0][..., 4:], atol=1e-4)


def sd3():
    transformer = seeded(
        lambda: diffusers.SD3Transformer2DModel(
            sample_size=8, patch_size=2, in_channels=4, num_layers=1, attention_head_dim=8, num_attention_heads=2,
            joint_attention_dim=16, caption_projection_dim=16, pooled_projection_dim=16, out_channels=4, pos_embed_max_size=8,
        )
    )  # fmt: skip
    parts = dict.fromkeys(
        ("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2", "text_encoder_3", "tokenizer_3")
    )
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
    pipe = diffusers.StableDiffusion3Pipeline(transformer=transformer, vae=vae(), scheduler=scheduler, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.parametrize("sampler", SOLVERS)
def test_stable_diffusion_3(sampler):
    pipe = sd3()
    if isinstance(sampler, str):
        pipe.scheduler = Scheduler.from_config(pipe.scheduler.config, sampler=sampler)
    else:  # it cannot begin where there is no data
        pipe.scheduler = Scheduler.from_config(
            pipe.scheduler.config, sampler=samplers.create("dpm_solver", order=2, t_start=0.99)
        )
    more = {
        "pooled_prompt_embeds": noise(1, (16,), 4, torch.float32),
        "negative_pooled_prompt_embeds": noise(1, (16,), 5, torch.float32),
    }
    x = noise(1, (4, 8, 8), 1, torch.float32)
    got = pipe(
        **PROMPT, **more, latents=x, num_inference_steps=5, guidance_scale=3.0, height=8, width=8, output_type="latent"
    ).images
    both = [
        {"encoder_hidden_states": PROMPT[f"{n}prompt_embeds"], "pooled_projections": more[f"{n}pooled_prompt_embeds"]}
        for n in ("", "negative_")
    ]
    denoiser = from_diffusers(pipe.transformer, pipe.scheduler, condition=both[0], unconditional=both[1])
    mine = samplers.sample(
        denoiser,
        pipe.scheduler.sampler,
        steps=5,
        start_noise=x / (1 if isinstance(sampler, str) else 0.99),
        cfg_scale=2.0,
    ).x
    torch.testing.assert_close(got, mine, rtol=1e-5, atol=1e-5)


def flux():
    transformer = seeded(
        lambda: diffusers.FluxTransformer2DModel(
            patch_size=1, in_channels=16, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
            joint_attention_dim=16, pooled_projection_dim=16, axes_dims_rope=(4, 4, 8), guidance_embeds=True,
        )
    )  # fmt: skip
    parts = dict.fromkeys(("text_encoder", "tokenizer", "text_encoder_2", "tokenizer_2"))
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True, shift=3.0, base_shift=0.4)
    pipe = diffusers.FluxPipeline(transformer=transformer, vae=vae(), scheduler=scheduler, **parts)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def test_flux_shifts_by_the_image_and_is_samplers_sample():
    pipe, x = flux(), noise(1, (16, 16), 1, torch.float32)
    told = {
        "prompt_embeds": noise(1, (5, 16), 2, torch.float32),
        "pooled_prompt_embeds": noise(1, (16,), 4, torch.float32),
        "latents": x,
        "height": 8,
        "width": 8,
        "guidance_scale": 3.0,
        "num_inference_steps": 4,
        "output_type": "latent",
    }
    euler = pipe(**told).images
    sigmas = pipe.scheduler.sigmas[:-1].double()
    for name in ("ddim", "dpmpp_2m"):
        pipe.scheduler = Scheduler.from_config(pipe.scheduler.config, sampler=name)
        got = pipe(**told).images
        torch.testing.assert_close(pipe.scheduler.sigmas[:-1].double(), sigmas, rtol=1e-6, atol=1e-6)
        if name == "ddim":  # which is Euler's method of rectified flow
            torch.testing.assert_close(got, euler, rtol=1e-4, atol=1e-4)
        ids = torch.zeros(4, 4, 3)
        ids[..., 1], ids[..., 2] = torch.arange(4)[:, None], torch.arange(4)[None]
        denoiser = from_diffusers(
            pipe.transformer,
            pipe.scheduler,
            condition={
                "encoder_hidden_states": told["prompt_embeds"],
                "pooled_projections": told["pooled_prompt_embeds"],
                "guidance": torch.tensor([3.0]),
            },
            arguments={"img_ids": ids.reshape(16, 3), "txt_ids": torch.zeros(5, 3)},
            shape=(16, 16),
            mu=0.5,
        )
        times = [*pipe.scheduler.sigmas[:-1].double().tolist(), 0.0]
        mine = samplers.sample(denoiser, name, sigmas=times, start_noise=x).x
        torch.testing.assert_close(got, mine, rtol=1e-4, atol=1e-5)


# ---------------------------------------------------------------------------------------------- models under our driver


def test_a_model_keeps_its_dtype_and_time_loses_nothing():
    model = unet2d().to(torch.bfloat16)
    seen = []
    model.register_forward_pre_hook(
        lambda m, args, kwargs: seen.append((args[0].dtype, kwargs["timestep"])), with_kwargs=True
    )
    model.train()
    denoiser = from_diffusers(model, diffusers.DDIMScheduler())
    out = samplers.sample(
        denoiser, "ddim", steps=3, times=[997.0, 500.0, 3.0], start_moments=(0.0, 1.0), x0_bound=1.0
    ).x
    assert not model.training and out.dtype == torch.float32 and float(out.abs().max()) <= 1
    assert [dtype for dtype, _ in seen] == [torch.bfloat16] * 3
    assert [t.tolist() for _, t in seen] == [[997.0], [500.0], [3.0]] and denoiser.shape == (3, 8, 8)


def test_what_a_model_cannot_do_without_is_asked_for():
    scheduler = diffusers.DDIMScheduler(**SD)
    with pytest.raises(samplers.OptionError, match="UNet2DConditionModel needs encoder_hidden_states: give condition="):
        from_diffusers(unet_text(), scheduler)
    with pytest.raises(samplers.OptionError, match=r"model is StableDiffusionPipeline; .* pipe\.unet"):
        from_diffusers(stable(diffusers.StableDiffusionPipeline), scheduler)


def test_conditions_by_name_reach_dictionaries():
    model = unet_text(
        addition_embed_type="text_time", addition_time_embed_dim=4, projection_class_embeddings_input_dim=40
    )
    condition = {
        "encoder_hidden_states": PROMPT["prompt_embeds"],
        "added_cond_kwargs.text_embeds": noise(1, (16,), 4, torch.float32),
        "added_cond_kwargs.time_ids": torch.arange(6.0)[None],
    }
    denoiser = from_diffusers(model, diffusers.EulerDiscreteScheduler(**SD), condition=condition)
    x = noise(2, (4, 8, 8), 1, torch.float32)
    with torch.no_grad():
        z = model(
            x, 500.0, condition["encoder_hidden_states"].expand(2, -1, -1), return_dict=False,
            added_cond_kwargs={k.split(".")[1]: v.expand(2, -1) for k, v in condition.items() if "." in k},
        )[0]  # fmt: skip
    table = VPTable.named("scaled_linear")
    want = (x - table.sigma(500.0).float() * z) / table.alpha(500.0).float()
    torch.testing.assert_close(denoiser.predict(x, torch.tensor([500.0, 500.0])), want, rtol=1e-5, atol=1e-5)


def test_edm_under_our_driver_is_edm_in_a_pipeline():
    class Net(torch.nn.Module):
        dtype, device = torch.float32, torch.device("cpu")

        def forward(self, sample, timestep, return_dict=True):
            return (net(sample, timestep),)

    config = diffusers.EDMEulerScheduler(prediction_type="v_prediction").config
    scheduler = Scheduler.from_config(config, sampler="dpmpp_2m")
    scheduler.set_timesteps(6)
    x = noise(dtype=torch.float32)
    got = push(scheduler, x * scheduler.init_noise_sigma)
    denoiser = from_diffusers(Net(), config, shape=(3, 4))
    mine = samplers.sample(denoiser, "dpmpp_2m", batch=2, steps=6, start_noise=x).x
    torch.testing.assert_close(got, mine, rtol=1e-4, atol=1e-4)


def test_schedules_of_configurations():
    assert schedule_of(diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0).config).shift == 3.0
    assert schedule_of(diffusers.EDMEulerScheduler().config).t_max == 80.0
    betas = schedule_of(diffusers.DDIMScheduler(trained_betas=[0.1, 0.2, 0.3]).config)
    torch.testing.assert_close(betas.alphas_cumprod, torch.tensor([0.9, 0.72, 0.504], dtype=F64))
    assert math.isinf(float(schedule_of(diffusers.DDIMScheduler(rescale_betas_zero_snr=True).config).lam(999.0)))
