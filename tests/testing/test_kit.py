"""The kit tests samplers; here the kit is tested: planted mistakes are found, right samplers pass, messages say what to do."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import planted
import pytest
import torch

import samplers
from samplers import testing
from samplers.random import DRAW_RANK
from samplers.testing.fit import BOUND
from samplers.testing.promises import BrokenPromise, Promise
from samplers.testing.tiny import TinyMixture, TinyNet
from samplers.testing.watching import RecordedRng

HERE = Path(__file__).parent


ROOT = str(HERE.parents[1])


def python(*argv):
    """A Python of its own, which imports this tree and the tests' modules."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join((ROOT, str(HERE)))}
    done = subprocess.run([sys.executable, *argv], capture_output=True, text=True, cwd=ROOT, env=env, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


# ---------------------------------------------------------------------------------------------- planted mistakes


@pytest.fixture(scope="module")
def messages():
    """What the kit says of every planted mistake, in one process."""
    return json.loads(python(str(HERE / "planted.py"), "--json"))


@pytest.mark.parametrize("mistake", planted.MISTAKES, ids=lambda m: m.name)
def test_planted_mistakes_are_found(messages, mistake):
    assert mistake.name in messages, f"{mistake.check} passes {mistake.name}: {mistake.what}"
    message = messages[mistake.name]
    assert mistake.phrase in message
    if mistake.check != "loading":
        lines = [line.partition(":")[0].strip() for line in message.splitlines()[1:]]
        assert lines == ["promised", "seen", "usual causes", "rerun"]
        assert message.splitlines()[-1].endswith(f"--sampler {mistake.name} -k {mistake.check}")


def test_the_table_of_mistakes_is_long_enough():
    assert len(planted.MISTAKES) >= 40 and len({m.name for m in planted.MISTAKES}) == len(planted.MISTAKES)
    assert {m.family for m in planted.MISTAKES} >= {"masked", "uniform", "gaussian"}
    from samplers.testing import test_conformance as kit

    checks = {name for name in vars(kit) if name.startswith("test_")}
    assert {m.check for m in planted.MISTAKES} <= checks | {"loading"}
    # What is left is about the driver, which no planted sampler can break.
    assert checks - {m.check for m in planted.MISTAKES} == {"test_counts_are_what_the_model_saw", "test_stop_rule"}


def test_samplers_without_a_mistake_pass_the_whole_kit():
    """Otherwise a planted sampler might be caught for what it has in common with the others."""
    chosen = [argument for name in planted.RIGHT for argument in ("--sampler", name)]
    kit = ["samplers/testing", "-q", "-p", "no:cacheprovider", *chosen]
    said = python("-c", f"import sys, pytest, planted\nwith planted.installed(): sys.exit(pytest.main({kit}))")
    assert "failed" not in said and "[100%]" in said


# ---------------------------------------------------------------------------------------------- seams


def test_the_kit_patches_nothing_of_the_library():
    """A renaming inside of the library must not break the tests of other packages."""
    for file in Path(testing.__file__).parent.glob("*.py"):
        code = file.read_text()
        assert not re.search(r"\bsetattr\(|monkeypatch|mock\b", code), file.name
        for private in re.findall(r"\b(?:predictor|driver|registry|feed|run|dry|stream)\._\w+", code):
            raise AssertionError(f"{file.name} uses {private}")


def test_importing_the_plugin_does_not_import_torch():
    code = "import sys, samplers.testing.plugin; print('torch' in sys.modules)"
    assert python("-c", code).strip() == "False"


def test_a_watched_sampler_is_the_same_sampler():
    seen = []

    def step(run, predict, state):
        watch = testing.Watched(predict)
        after = run(watch, state)
        seen.append(watch.calls)
        assert watch.temperature == 0.5
        return after

    sampler = samplers.create("klass", conf_threshold=0.5)
    copy = testing.watched(sampler, step=step)
    run = {"gen_length": 6, "temperature": 0.5}
    assert copy.values() == sampler.values() and isinstance(copy, type(sampler))
    assert (samplers.sample(TinyNet(), copy, **run).x == samplers.sample(TinyNet(), sampler, **run).x).all()
    assert len(seen) > 1 and all(calls == ["logits", "read"] for calls in seen)


def test_recorded_randomness_is_the_same_randomness():
    recorded = []

    def canvas(start):
        recorded.append(RecordedRng.like(start.rng))
        return dataclasses.replace(start, rng=recorded[-1])

    def step(run, predict, state):
        recorded[-1].uses.clear()
        return run(predict, state)

    sampler = samplers.create("random_remask")
    run = {"prompt": [[1], [2, 3]], "gen_length": 3, "steps": 1, "temperature": 1.0}
    net = TinyNet(visible_too=True)
    out = samplers.sample(net, testing.watched(sampler, canvas=canvas, step=step), **run)
    assert (out.x == samplers.sample(net, sampler, **run).x).all()
    uses = recorded[-1].uses
    assert {(i, len(PROMPT) + j, 0) for i, PROMPT in enumerate(run["prompt"]) for j in range(3)} <= frozenset().union(
        *(u.cells for u in uses if u.draw == 0)
    )
    rank = [u for u in uses if u.draw == DRAW_RANK]
    assert all(u.cells == {(i, j, 0) for i in range(2) for j in range(5)} for u in rank)
    assert all(u.by_library and "masked" in Path(u.place).parts for u in uses)

    ddim = samplers.create("ddim", eta=1.0, noise="fresh")
    out = samplers.sample(TinyMixture(), testing.watched(ddim, canvas=canvas), batch=2, steps=4)
    assert torch.equal(out.x, samplers.sample(TinyMixture(), ddim, batch=2, steps=4).x)
    steps = [{step for _, _, step in u.cells} for u in recorded[-1].uses]
    assert steps == [{k} for k in range(4)], "x_T and three steps"


def test_device_syncs_are_recorded():
    x = torch.arange(6.0)
    expected = {
        "item": (lambda: x[0].item(), ["_local_scalar_dense"]),
        "if": (lambda: bool((x > 2).any()), ["_local_scalar_dense"]),
        "tolist": (lambda: x.tolist(), ["tolist"]),
        "numpy": (lambda: x.numpy(), ["numpy"]),
        "mask": (lambda: x[x > 2], ["index by a mask"]),
        "nonzero": (lambda: (x > 2).nonzero(), ["nonzero"]),
        "none": (lambda: torch.where(x > 2, x, 0.0).sum(), []),
        "sized": (lambda: torch.nonzero_static(x > 2, size=3), []),
    }
    for name, (look, syncs) in expected.items():
        recorder = testing.SyncRecorder()
        look()
        with recorder:
            look()
            recorder.ignore(look)()
        look()
        assert recorder.syncs == syncs, name
        with recorder:
            look()
        assert recorder.syncs == 2 * syncs, f"{name}: it goes on"


# ---------------------------------------------------------------------------------------------- the chi-square test


def test_fits_gives_the_p_value():
    from scipy.stats import chisquare

    seen, weights = [48, 35, 15, 102], [1.0, 0.7, 0.3, 2.0]
    expected = [200 * w / 4 for w in weights]
    assert testing.fits(seen, weights) == pytest.approx(chisquare(seen, expected).pvalue, rel=1e-9)
    # Cells that expect fewer than 8 are one cell: here 3 + 4 + 5.
    seen, pooled = torch.tensor([90, 2, 5, 3]), chisquare([90, 10], [88, 12]).pvalue
    assert testing.fits(seen, torch.tensor([88.0, 3, 4, 5])) == pytest.approx(pooled, rel=1e-9)
    assert testing.fits([50, 49, 1], [0.5, 0.5, 0.0]) == 0.0, "a draw of what cannot be drawn"
    assert testing.fits([50, 50, 0], [0.5, 0.5, 0.0]) == pytest.approx(1.0)
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        testing.fits([1, 2], [1, 2, 3])


def test_p_values_of_right_draws_are_uniform():
    """Of 2000 right samples 1 in 10 lies below 0.1 and none far below; wrong ones do."""
    weights = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
    generator = torch.Generator().manual_seed(0)
    draws = torch.multinomial(weights, 2000 * 500, replacement=True, generator=generator).view(2000, 500)
    p = torch.tensor([testing.fits(torch.bincount(row, minlength=6), weights) for row in draws])
    assert abs(float((p < 0.1).double().mean()) - 0.1) < 4 * (0.09 / 2000) ** 0.5
    assert int((p < BOUND).sum()) <= 8
    assert testing.fits(torch.bincount(draws.flatten(), minlength=6), weights.flip(0)) < 1e-12


# ---------------------------------------------------------------------------------------------- messages


def test_a_promise_has_four_lines():
    promise = Promise("mine", "test_facts", "What it is about.")
    promise(torch.tensor(True), "", "", "")
    with pytest.raises(BrokenPromise) as error:
        promise(torch.tensor(False), "Rows agree.", lambda: "row 1 differs", "a mean over the batch")
    assert str(error.value).splitlines()[1:] == [
        "promised:     Rows agree.",
        "seen:         row 1 differs",
        "usual causes: a mean over the batch",
        "rerun:        pytest --pyargs samplers.testing --sampler mine -k test_facts",
    ]
    explained = str(promise.explained(samplers.SamplersError("sampler 'x' is not done after 9 steps")))
    assert "promised:     What it is about." in explained and "the mask id was committed" in explained
    assert "the traceback above" in str(promise.explained(TypeError("no")))
