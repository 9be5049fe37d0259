"""Samplers over candidates: what freedave promises, token for token, and what each of them costs."""

import pytest
import torch

import samplers
from samplers import OptionError, TokenDenoiser
from samplers.authoring import Facts, Sampler, TokenState, even_count
from samplers.models import zoo
from samplers.prediction import sum_over
from samplers.testing.tiny import TinyJoint, TinyNet

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], []]


class LeftToRight(Sampler[TokenState]):
    """The base rule of order="left_to_right": the first open positions, as many as the even plan says."""

    name, family, summary, facts = "left_to_right", "masked", "for tests", Facts(bias=None)

    def step(self, predict, state):
        score = -torch.arange(state.x.shape[1], dtype=torch.float32).expand(state.x.shape)
        return state.commit_best(score, predict(state).token, k=even_count(state))


def same_path(denoiser, base, *, less=0, drafts=4, own=None, **run):
    """Asserts that freedave makes each of its states at the step, and with the tokens, at which the base rule makes it."""
    told = samplers.sample(denoiser, base, trace=True, **run)
    ours = samplers.sample(denoiser, "freedave", trace=True, drafts=drafts, **(own or {}), **run)
    assert torch.equal(told.x, ours.x)
    for state in ours.trace:
        for i, step in enumerate(state.step.tolist()):
            assert torch.equal(state.x[i], told.trace[step].x[i]), (i, step)
    assert bool((ours.nfe_rows <= told.nfe_rows).all())
    assert told.nfe_rows.sum() - ours.nfe_rows.sum() >= less, "no forward pass was spared"
    return told, ours


# ---------------------------------------------------------------------------------------------- the theorem


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("run", [{}, {"block_length": 5}, {"steps": 7}, {"steps": 9, "block_length": 5}])
@pytest.mark.parametrize("more", [{}, {"stop": [7]}, {"cfg_scale": 1.5}, {"forbid": [3, 4], "top_p": 0.8}])
def test_freedave_is_low_confidence_on_random_models(more, run, temperature):
    for seed in range(3):
        denoiser = TinyNet(seed=seed)
        same_path(
            denoiser, "low_confidence", prompt=PROMPTS, gen_length=14, seed=seed, temperature=temperature, **run, **more
        )


@pytest.mark.parametrize("drafts", [1, 2, 7])
def test_freedave_of_any_number_of_drafts(drafts):
    for seed in range(6):
        same_path(TinyNet(seed=seed, reach=1), "low_confidence", batch=3, gen_length=15, drafts=drafts, temperature=0.0)
        same_path(TinyJoint(5, 3, seed), "low_confidence", batch=8, drafts=drafts, temperature=0.0)


@pytest.mark.parametrize("run", [{}, {"steps": 6}, {"block_length": 4}])
def test_freedave_from_left_to_right(run):
    for temperature in (0.0, 1.0):
        own = {"order": "left_to_right"}
        same_path(
            TinyNet(seed=5), LeftToRight(), prompt=PROMPTS, gen_length=12, own=own, temperature=temperature, **run
        )


@pytest.mark.parametrize(("name", "less"), [("sudoku4", 20), ("digits", 5)])
def test_freedave_is_low_confidence_on_exact_problems(name, less):
    denoiser = samplers.problems.create(name).denoiser("masked")
    for temperature in (0.0, 1.0):
        same_path(denoiser, "low_confidence", batch=4, less=less, temperature=temperature)
    same_path(
        denoiser,
        "low_confidence",
        batch=4,
        temperature=0.0,
        block_length=denoiser.length // 4,
        steps=denoiser.length // 2,
    )


def test_freedave_is_low_confidence_on_models_in_the_box():
    digits, text = zoo.load("digits-mdm"), zoo.load("text-mdm")
    for temperature, less in ((0.0, 50), (1.0, 10)):
        same_path(digits, "low_confidence", batch=2, less=less, temperature=temperature)
        prompt = [text.encode("the "), text.encode("an")]
        same_path(text, "low_confidence", prompt=prompt, gen_length=16, less=1, drafts=3, temperature=temperature)


@pytest.mark.parametrize("cache", ["prefix", "dual"])
def test_freedave_with_a_cache_is_low_confidence_with_that_cache(cache):
    """What a block's forward passes keep of it is not used after the next one, so how many there are does not matter."""
    run = {"prompt": [[5, 6, 7], [9, 8, 7, 6, 5, 4, 3]], "gen_length": 16, "block_length": 8, "cache": cache}
    for temperature in (0.0, 1.0):
        same_path(zoo.load("text-mdm"), "low_confidence", less=1, drafts=3, temperature=temperature, **run)


def test_freedave_under_a_hook_makes_the_same_tokens():
    """What was predicted before the hook was asked is not used: two forward passes in a step."""

    def hook(state):
        barred = torch.zeros(12, dtype=torch.bool)
        barred[:4] = True
        return samplers.Constraint(forbid=barred)

    run = {"gen_length": 10, "batch": 2, "temperature": 0.0, "constrain": hook}
    told, ours = (samplers.sample(TinyNet(seed=2), name, **run) for name in ("low_confidence", "freedave"))
    assert torch.equal(told.x, ours.x)
    assert ours.nfe <= 2 * ours.steps


@pytest.mark.parametrize("threshold", [0.4, 0.6])
@pytest.mark.parametrize("block_length", [None, 5])
def test_freedave_plus_plus_of_whole_targets_is_threshold(block_length, threshold):
    spared = differs = 0
    for seed in range(8):
        run = {"prompt": PROMPTS, "gen_length": 14, "block_length": block_length, "temperature": 0.0, "trace": True}
        told = samplers.sample(TinyNet(seed=seed), "threshold", threshold=threshold, **run)
        ours, part = (
            samplers.sample(TinyNet(seed=seed), "freedave", threshold=threshold, match=match, drafts=6, **run)
            for match in ("exact", "subset")
        )
        assert torch.equal(told.x, ours.x)
        paths = [{tuple(s.x[i].tolist()) for s in told.trace} for i in range(len(PROMPTS))]
        assert all(tuple(s.x[i].tolist()) in paths[i] for s in ours.trace for i in range(len(PROMPTS)))
        assert bool((ours.nfe_rows <= told.nfe_rows).all())
        spared += int((told.nfe_rows - ours.nfe_rows).sum())
        differs += any(tuple(s.x[i].tolist()) not in paths[i] for s in part.trace for i in range(len(PROMPTS)))
    assert spared > 0, "no forward pass was spared"
    assert differs > 0, "parts of targets never left the path: the test could not tell them from whole ones"


# ---------------------------------------------------------------------------------------------- what is the same as another


def test_special_cases_are_other_samplers():
    for seed in range(3):
        run = {"prompt": PROMPTS, "gen_length": 12, "temperature": 0.0}
        denoiser = TinyNet(seed=seed)
        x = samplers.sample(denoiser, "threshold", threshold=0.3, **run).x
        assert torch.equal(samplers.sample(denoiser, "lopa", branches=0, threshold=0.3, **run).x, x)
        x = samplers.sample(denoiser, "low_confidence", steps=5, **run).x
        assert torch.equal(samplers.sample(denoiser, "info_gain", candidates=1, sure=2.0, steps=5, **run).x, x)
        assert torch.equal(
            samplers.sample(denoiser, "info_gain", position_temperature=0.0, sure=2.0, steps=5, **run).x, x
        )


# ---------------------------------------------------------------------------------------------- costs


OPTIONS = {
    "freedave": ({}, 4),
    "lopa": ({"branches": 3}, 4),
    "info_gain": ({"candidates": 5}, 5),
    "soar": ({}, 2),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_a_step_is_one_forward_pass(name):
    """After the first step, which has two, but for soar; the last one has none if it leaves nothing to ask about."""
    options, number = OPTIONS[name]
    denoiser = TinyNet(seed=1)
    run = samplers.stream(denoiser, name, gen_length=16, batch=3, temperature=0.0, **options)
    next(run)
    passes = []
    for _ in run:
        passes.append(run.nfe - sum(passes))
    assert passes[0] == (1 if name == "soar" else 2)
    assert set(passes[1:-1]) == {1}
    assert passes[-1] in ((1,) if name == "soar" else (0, 1))
    out = run.result()
    assert out.nfe == len(denoiser.asked)
    assert out.row_evals == sum(rows for rows, _ in denoiser.asked) <= 3 * number * out.nfe
    assert any(rows > 3 for rows, _ in denoiser.asked), "there was never more than one candidate"


def test_scores_do_not_depend_on_the_width_of_the_batch():
    g = torch.Generator().manual_seed(0)
    value, where = torch.rand(4, 50, generator=g), torch.rand(4, 50, generator=g) < 0.6
    wide = (
        torch.cat([value, torch.full((4, 77), torch.inf)], 1),
        torch.cat([where, torch.zeros(4, 77, dtype=torch.bool)], 1),
    )
    assert torch.equal(sum_over(value, where), sum_over(*wide))
    assert torch.allclose(sum_over(value, where), (value.double() * where).sum(1), rtol=0, atol=50 * 2.0**-41)


@pytest.mark.parametrize("how", [{"name": "freedave", "drafts": 10**9}, {"name": "lopa", "branches": 10**9}])
def test_more_copies_than_positions_are_not_made(how):
    few = {key: 5 if key != "name" else value for key, value in how.items()}
    many, some = (samplers.sample(TinyNet(), h.pop("name"), **h, gen_length=5) for h in (how.copy(), few))
    assert torch.equal(many.x, some.x) and many.row_evals == some.row_evals


def test_bad_options():
    denoiser = TokenDenoiser.wrap(lambda x: torch.zeros(*x.shape, 5), vocab_size=5, mask_id=4)
    for name, option in [
        ("freedave", {"drafts": 0}),
        ("freedave", {"order": "random"}),
        ("freedave", {"match": "part"}),
        ("lopa", {"lowest": 0.0}),
        ("lopa", {"alpha": 1.5}),
        ("info_gain", {"candidates": 0}),
        ("info_gain", {"horizon": "row"}),
        ("soar", {"rank": "entropy"}),
    ]:
        with pytest.raises(OptionError, match=next(iter(option))):
            samplers.sample(denoiser, name, gen_length=4, **option)
