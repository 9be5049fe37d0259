"""The kit tests samplers; here the kit is tested: planted mistakes are found, right samplers pass, messages say what to do."""

import dataclasses
import json
import os
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import planted
import pytest
import torch

import samplers
from samplers import testing
from samplers.random import DRAW_RANK
from samplers.testing import kit
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
def test_planted_mistakes_are_found_and_the_message_says_where_and_what_to_change(messages, mistake):
    assert mistake.name in messages, f"{mistake.check} passes {mistake.name}: {mistake.what}"
    message = messages[mistake.name]
    assert mistake.phrase in message
    lines = dict(line.split(":", 1) for line in message.splitlines()[1:] if line[:1] != " ")
    headings = ["promised", "seen", "on the input", "where", "usual causes", "rerun"]
    needs_no_run = mistake.check in ("loads", "facts", "signature", "options")
    assert list(lines) == [h for h in headings if h != "on the input" or not needs_no_run]
    assert mistake.cure in lines["usual causes"]
    assert re.search(r"planted(\.py:\d+|:\w+)", lines["where"]), "it names the line, or what cannot be loaded"
    assert lines["rerun"].strip().startswith(f"samplers check {mistake.name} --only ")
    assert mistake.check in lines["rerun"]


def test_the_table_of_mistakes_is_long_enough():
    assert len(planted.MISTAKES) >= 40 and len({m.name for m in planted.MISTAKES}) == len(planted.MISTAKES)
    assert {m.family for m in planted.MISTAKES} >= {"masked", "uniform", "gaussian"}
    checks = {case.name for name in ("radd", "d3pm_ancestral", "euler") for case in kit.cases(name)}
    assert {m.check for m in planted.MISTAKES} <= checks
    guide = Path(ROOT, "docs/writing_a_sampler.md").read_text(encoding="utf-8")
    assert f"tested with {len(planted.MISTAKES)} samplers that have one mistake each" in guide
    # What is left is about the driver, which no planted sampler can break.
    assert checks - {m.check for m in planted.MISTAKES} == {"stop_rule"}


def test_samplers_without_a_mistake_pass_the_whole_kit_under_pytest():
    """Otherwise a planted sampler might be caught for what it has in common with the others."""
    arguments = ["samplers/testing", "-q", "-p", "no:cacheprovider", "--samplers", *planted.RIGHT]
    said = python("-c", f"import sys, pytest, planted\nwith planted.installed(): sys.exit(pytest.main({arguments}))")
    assert "failed" not in said and "[100%]" in said


# ---------------------------------------------------------------------------------------------- running it


def test_the_same_check_under_pytest_and_by_the_command():
    """One mistake, three ways to run the kit, one message."""
    run = """
        import contextlib, io, json, sys, pytest, planted
        from samplers import cli
        from samplers.testing import BrokenPromises, run_checks
        only, name = "greedy_takes_the_best", "ignores_temperature"
        with planted.installed():
            try:
                run_checks(name, only=only)
            except BrokenPromises as error:
                first = str(error)
            with contextlib.redirect_stdout(io.StringIO()) as out:
                code = cli.main(["check", name, "--only", only, "--json"])
            told = json.loads(out.getvalue())
            kit = ["samplers/testing", "-p", "no:cacheprovider", "-o", "addopts=", "--samplers", name, "-k", only]
            with contextlib.redirect_stdout(io.StringIO()) as out:
                pytest_code = pytest.main(kit)
        print(json.dumps([first, code, told, int(pytest_code), out.getvalue()]))
    """
    first, code, told, pytest_code, said = json.loads(python("-c", textwrap.dedent(run)))
    assert (code, pytest_code) == (1, 1) and [r["status"] for r in told] == ["broken"]
    for key in ("promised", "seen", "causes", "rerun", "where"):
        assert told[0][key] in first and told[0][key] in said.replace("\n" + " " * 14, " ").replace("E   ", "")
    assert told[0]["calls"][0].startswith("samplers.sample(TinySure(9.0, mask=True), 'ignores_temperature'")
    assert f"test_promise[ignores_temperature-{told[0]['check']}]" in said


def test_a_call_in_a_message_can_be_run():
    """What stands under 'on the input' is the call."""
    from samplers.testing import tiny

    promise = Promise("threshold", "facts")
    arguments = {"prompt": [[1], [2, 3]], "gen_length": 4, "seed": 3, "temperature": 1.0}
    made = promise.sample(TinyNet(visible_too=False), samplers.create("threshold", threshold=0.5), **arguments)
    assert promise.calls == [
        "samplers.sample(TinyNet(visible_too=False), samplers.create('threshold', threshold=0.5), prompt=[[1], [2, 3]], "
        "gen_length=4, seed=3, temperature=1.0)"
    ]
    again = eval(promise.calls[0], {"samplers": samplers, "TinyNet": tiny.TinyNet})
    assert torch.equal(again.x, made.x)


def test_only_takes_names_settings_and_patterns():
    ids = [case.id for case in kit.chosen("radd", "row_of_a_mixed*")]
    assert ids == [f"row_of_a_mixed_batch_is_the_row_alone[{s}]" for s in ("steps=4", "block_length=4,steps=8")]
    assert [c.id for c in kit.chosen("radd", ["facts", ids[1]])] == ["facts", ids[1]]
    with pytest.raises(samplers.UnknownNameError, match="has no check 'fatcs': did you mean 'facts'"):
        kit.chosen("radd", "fatcs")
    every = [case.id for name in ("radd", "euler") for case in kit.cases(name)]
    assert "distribution_on_a_tiny_problem[one_at_a_time]" in every and "values_are_finite" in every
    assert all(re.fullmatch(r"[a-z0-9_]+(\[[-+.,=\w]+\])?", one) for one in every), "short and stable, fit for a shell"


OWN_CHECK = """
    from samplers.testing import check

    Washed.checks = ("zoo_washed",)

    @check()
    def its_own(name, promise):
        'A check that the family brings.'
        x = promise.sample(Washed().tiny(None), name, batch=2).x
        promise(x.shape == (2, 3), "Rows have three tokens.", f"{tuple(x.shape)}", "another length")
"""


def test_a_family_of_another_package_is_checked(tmp_path, monkeypatch):
    """Every check for every family, and what the family brings of its own, on a family that the kit knows nothing of."""
    import test_family
    from test_plugins import lay

    monkeypatch.syspath_prepend(str(tmp_path))
    code = test_family.WASHED + OWN_CHECK
    lay(tmp_path, "zoo-washed", "zoo_washed", code, {"wash": "zoo_washed:Wash"})
    info = tmp_path / "zoo_washed-1.0.dist-info" / "entry_points.txt"
    info.write_text(info.read_text() + "[samplers.families]\nwashed = zoo_washed:Washed\n")
    samplers.registry.reload()
    try:
        results = list(kit.run("wash"))
    finally:
        samplers.registry.reload()
        sys.modules.pop("zoo_washed", None)
    assert [str(r.broken) for r in results if r.broken] == []
    kept = {r.case.name for r in results if r.status == "kept"}
    assert kept == {
        *(
            "loads",
            "facts",
            "signature",
            "options",
            "seed_decides",
            "row_of_a_batch_is_the_row_alone",
            "interleaved_runs_agree",
        ),
        *("states_are_immutable", "values_are_finite", "counted_nfe_is_the_declared", "draw_numbers", "its_own"),
        *("prints_nothing", "every_choice_runs"),
    }


def test_the_report_shows_promises_and_relatives(tmp_path, monkeypatch):
    from samplers.testing import report
    from samplers.testing.report import relatives, write_report

    monkeypatch.setattr(report, "REALS", ("mixture", (5, 10), 60, 2))

    assert relatives("euler_ancestral") == ["euler", "ddim", "dpmpp_2m_sde"]
    assert relatives("low_confidence")[0] == "random_order" and relatives("random_order")[0] != "random_order"
    page = write_report(tmp_path, "ddim", list(kit.run("ddim", ["facts", "declared_order"])))
    text = page.read_text()
    assert page == tmp_path / "ddim" / "check.html"
    assert "ddim keeps its promises" in text and "The class says what it is." in text
    assert "euler" in text and "60 samples of each of 2 seeds" in text
    assert (
        "<svg" in text and "prefers-color-scheme: dark" in text and "http" not in text.replace("http://www.w3.org", "")
    )


# ---------------------------------------------------------------------------------------------- seams


def test_the_kit_patches_nothing_of_the_library():
    """A renaming inside of the library must not break the tests of other packages."""
    for file in Path(testing.__file__).parent.rglob("*.py"):
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


def test_a_message_says_what_was_promised_seen_and_where():
    promise = Promise("mine", "seed_decides", "What it is about.", "mine.py:7, class Mine")
    promise(torch.tensor(True), "", "", "")
    for seed in (1, 2, 3):
        promise.sample(TinyNet(), "radd", gen_length=2, seed=seed)
    with pytest.raises(BrokenPromise) as error:
        promise(torch.tensor(False), "Rows agree.", lambda: "row 1 differs", "a mean over the batch")
    assert str(error.value).splitlines() == [
        "sampler 'mine' does not keep a promise: seed_decides",
        "promised:     Rows agree.",
        "seen:         row 1 differs",
        "on the input: samplers.sample(TinyNet(), 'mine', gen_length=2, seed=1)",
        "              samplers.sample(TinyNet(), 'mine', gen_length=2, seed=3)",
        "where:        mine.py:7, class Mine",
        "usual causes: a mean over the batch",
        "rerun:        samplers check mine --only seed_decides",
    ]
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)
    promise.begin()
    explained = promise.explained(samplers.SamplersError("sampler 'x' is not done after 9 steps"))
    assert explained.promised == "What it is about." and "the mask id was committed" in explained.causes
    assert explained.calls == ()
    assert "mend that line" in promise.explained(TypeError("no")).causes
