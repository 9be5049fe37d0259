"""What other libraries call our samplers: every name makes a sampler, and configurations of diffusers are read."""

import pytest
import torch

import samplers
from samplers import OptionError, UnknownNameError
from samplers.aliases import ALIASES, alias, of_scheduler

OWN = samplers.list_samplers(family="gaussian")


@pytest.mark.parametrize("name", ALIASES)
def test_every_name_makes_the_sampler_with_its_options(name):
    ours, options = ALIASES[name]
    made = samplers.create(name)
    assert made.name == ours
    assert options.items() <= made.values().items()


@pytest.mark.parametrize(
    ("name", "ours", "options"),
    [
        ("DPM++ 2M Karras", "dpmpp_2m", {"grid": "karras"}),
        ("dpm++ 2m sde sgm uniform", "dpmpp_2m_sde", {"grid": "sgm_uniform"}),
        ("DPM++ 2M Uniform", "dpmpp_2m", {"grid": "time_uniform"}),
        ("Euler a Exponential", "euler_ancestral", {"grid": "exponential"}),
        ("sample_euler", "euler", {}),
        ("sample_dpm_fast", "dpm_solver", {"method": "singlestep", "order": 3}),
        ("sample_dpm_adaptive", "dpm_adaptive", {"prediction": "noise"}),
        ("exp_heun_2_x0", "seeds_2", {"eta": 0.0, "r": 1.0}),
    ],
)
def test_endings_and_ways_to_write(name, ours, options):
    made = samplers.create(name)
    assert made.name == ours
    assert options.items() <= made.values().items()


def test_own_names_are_nobody_elses():
    known = dict.fromkeys(OWN)
    for name in OWN:
        meant = alias(name, known)
        assert meant is None or meant[0] == name, (name, meant)
    with pytest.raises(UnknownNameError, match="did you mean 'euler"):
        samplers.create("eulr")


@pytest.mark.parametrize(
    ("config", "ours", "options"),
    [
        ({"_class_name": "DPMSolverMultistepScheduler"}, "dpmpp_2m", {"solver_type": "midpoint"}),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_type": "heun"}, "dpmpp_2m", {"solver_type": "taylor"}),
        ({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 3}, "dpmpp_3m", {"published": True}),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
            "dpmpp_2m_sde",
            {"solver_type": "heun"},
        ),
        (
            {"_class_name": "DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver", "solver_order": 3},
            "dpm_solver",
            {"order": 3, "prediction": "noise", "method": "multistep"},
        ),
        ({"_class_name": "UniPCMultistepScheduler", "solver_type": "bh1"}, "unipc", {"variant": "bh1", "order": 2}),
        ({"_class_name": "EDMEulerScheduler", "rho": 5.0}, "euler", {"grid": "karras", "rho": 5.0}),
        (
            {"_class_name": "EulerDiscreteScheduler", "use_karras_sigmas": True, "timestep_spacing": "leading"},
            "euler",
            {"grid": "karras"},
        ),
        (
            {"_class_name": "DDIMScheduler", "timestep_spacing": "trailing", "final_sigmas_type": "sigma_min"},
            "ddim",
            {"grid": "trailing", "end": "t_end"},
        ),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "stochastic_sampling": True}, "flow_euler", {"stochastic": True}),
    ],
)  # fmt: skip
def test_configurations_are_read(config, ours, options):
    name, found = of_scheduler(config)
    assert name == ours
    assert options.items() <= found.items()
    denoiser = samplers.GaussianDenoiser.wrap(lambda x, t: 0.1 * x, shape=(3,), schedule="scaled_linear")
    out = samplers.sample(denoiser, samplers.create(name, **found), steps=5)
    assert bool(torch.isfinite(out.x).all())


def test_configurations_that_are_not_known():
    with pytest.raises(UnknownNameError, match="did you mean 'DDIMScheduler'"):
        of_scheduler({"_class_name": "DDIMSchedulr"})
    with pytest.raises(OptionError, match="solver_order is 4"):
        of_scheduler({"_class_name": "DPMSolverMultistepScheduler", "solver_order": 4})
