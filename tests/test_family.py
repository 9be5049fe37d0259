"""A family that another package brings: its runs, its problems, its errors, and all that the library does for any family."""

import json
import sys

import pytest
import torch
from dists import lay, python

import samplers
from samplers import FamilyError, OptionError, PluginError, UnknownNameError, problems, registry
from samplers.authoring import family_of
from samplers.family import family_names

# Tokens as the largest of K numbers each, which a run moves to what the model predicts: the smallest family that has a
# state of another form than its samples, a predictor and a problem of its own.
WASHED = """
    from dataclasses import dataclass
    import torch
    from samplers import Denoiser
    from samplers.authoring import (
        Facts, Family, FamilyError, FamilyPredictor, NoiseCanvas, NoiseState, Run, Sampler, first_state, option,
    )

    class SameOdds(Denoiser):
        family, name, time_conditioned = "washed", "predicts", True
        device, state_dtype = torch.device("cpu"), torch.float64

        def __init__(self, length, classes, odds):
            self.shape, self.odds = (length, classes), torch.tensor(odds, dtype=torch.float64).log()

        def predict(self, z):
            return (z + self.odds).softmax(-1)

    class Asked(FamilyPredictor):
        def __call__(self, z):
            model = self.counter.denoiser
            out = self.ask(lambda: model.predict(z), positions=model.shape[0])
            self.check_finite(out)
            return out

    class Washed(Family):
        name, summary, default_sampler = "washed", "numbers whose largest is the token", "wash"

        def start(self, denoiser, sampler, given):
            if not isinstance(denoiser, SameOdds):
                raise FamilyError(f"{denoiser.name!r} is no SameOdds")
            rng, settings = given.rows(denoiser, row_bytes=8)
            steps = given.steps(7)
            constrain = given.constrain()
            given.refuse_the_rest(sampler)
            canvas = NoiseCanvas(denoiser, steps, rng)
            predictor = Asked(denoiser, settings["batch"], sampler=sampler.name)
            state = first_state(sampler, canvas)
            return Run(sampler, predictor, state, steps + 1, settings | {"steps": steps}, constrain=constrain)

        def supports(self, problem):
            return problem.name == "sudoku4"

        def of_problem(self, problem, **options):
            if not self.supports(problem):
                return super().of_problem(problem, **options)
            return SameOdds(problem.length, 4, [1.0, 1.0, 1.0, 1.0])

        def tiny(self, cls, exact=False):
            return SameOdds(3, 2, [1.0, 3.0])

    @dataclass(frozen=True, eq=False)
    class WashState(NoiseState):
        def outcome(self):
            x = self.x.argmax(-1)
            full = torch.full((len(x),), x.shape[1])
            return {"x": x, "lengths": full, "fill": torch.ones_like(x, dtype=torch.bool)}

    @dataclass(frozen=True)
    class Wash(Sampler[WashState]):
        '''Nobody 2026, equation 1: what the model predicts is added to the numbers.'''
        name, family, cite, summary = "wash", "washed", "nobody", "adds what the model predicts"
        facts = Facts(stochastic=True)
        rate: float = option(1.0, "how much of it", gt=0)

        def init(self, canvas):
            return WashState.begin(canvas)

        def step(self, predict, state):
            from dataclasses import replace
            x = state.x + self.rate * (predict(state.x) + state.canvas.noise(state.i + 1))
            return replace(state, x=x, i=state.i + 1, last=state.i + 1 == state.canvas.steps)

        def expected_nfe(self, length, steps):
            return steps
"""


@pytest.fixture
def washed(tmp_path, monkeypatch):
    """The folder in which the package with the family is installed."""
    monkeypatch.syspath_prepend(str(tmp_path))
    lay(tmp_path, "zoo-washed", "zoo_washed", WASHED, {"wash": "zoo_washed:Wash"})
    info = tmp_path / "zoo_washed-1.0.dist-info" / "entry_points.txt"
    info.write_text(info.read_text() + "[samplers.families]\nwashed = zoo_washed:Washed\n")
    registry.reload()
    yield tmp_path
    registry.reload()
    sys.modules.pop("zoo_washed", None)


def test_a_family_of_another_package_runs(washed):
    assert family_names()[:3] == ("masked", "uniform", "gaussian") and "washed" in family_names()
    assert "zoo_washed" not in sys.modules, "the names of families are known without an import"
    denoiser = family_of("washed").tiny(object)
    out = samplers.sample(denoiser, "wash", batch=5, seed=3, info=True, trace=True)
    assert out.x.shape == (5, 3) and out.x.dtype == torch.int64 and out.lengths.tolist() == [3] * 5
    assert (out.nfe, out.row_evals, out.token_evals, out.steps) == (7, 35, 105, 7)
    assert (out.sampler, out.distribution, out.settings["steps"], len(out.trace)) == ("wash", "zoo-washed", 7, 8)
    assert torch.equal(out.nfe_rows, torch.full((5,), 7))
    alone = samplers.sample(denoiser, "wash", seed=3, first_row=2)
    assert torch.equal(alone.trace[-1].x if alone.trace else alone.x, out.x[2:3])
    assert samplers.list_samplers(family="washed") == ["wash"] and "wash" in samplers.list_samplers("washed/*")


def test_a_problem_has_a_denoiser_of_the_family_and_scores_its_samples(washed):
    problem = problems.create("sudoku4")
    out = samplers.sample(problem.denoiser("washed"), "wash", batch=200, steps=2)
    score = problem.score(out, "washed")
    assert score.family == "washed" and score.keys() == problem.score(out.x, "masked").keys()
    assert torch.equal(problem.sample_truth(4, family="washed"), problem.sample_truth(4, family="masked"))
    with pytest.raises(FamilyError, match="family 'washed' has no denoiser for problem 'mixture'"):
        problems.create("mixture").denoiser("washed")


def test_what_is_wrong_is_named(washed):
    denoiser = problems.create("sudoku4").denoiser("washed")
    with pytest.raises(OptionError, match="temperature is not for samplers of the washed family, of which 'wash' is"):
        samplers.sample(denoiser, "wash", temperature=0.5)
    with pytest.raises(FamilyError, match=r"'radd' is of the masked family.*samplers of that family: wash"):
        samplers.sample(denoiser, "radd")
    with pytest.raises(UnknownNameError, match="unknown family 'wished': did you mean 'washed'"):
        samplers.list_samplers(family="wished")
    denoiser.odds = torch.tensor([torch.nan] * 4, dtype=torch.float64)
    with pytest.raises(
        samplers.DenoiserError, match=r"'predicts' gave row 0 a value that is not finite \(forward pass 1"
    ):
        samplers.sample(denoiser, "wash", steps=2)


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("Washed = 3", "3 is not a samplers.authoring.Family"),
        ("raise SystemExit(4)", "SystemExit: 4"),
        (
            "from samplers.authoring import Family\nclass Washed(Family):\n    name = 'other'",
            "name is 'other', but it is registered as 'washed'",
        ),
    ],
)
def test_a_family_that_is_broken_is_named_and_hurts_nobody(washed, code, says):
    (washed / "zoo_washed.py").write_text(code)
    with pytest.raises(PluginError, match="washed") as caught:
        family_of("washed")
    assert says in str(caught.value)
    assert "radd" in samplers.list_samplers()
    denoiser = problems.create("sudoku4").denoiser("masked")
    assert samplers.sample(denoiser, "radd", steps=4).nfe <= 4


def test_the_commands_know_the_family(washed):
    code = """
        import contextlib, glob, io, json
        from samplers.cli import main

        def said(line):
            with contextlib.redirect_stdout(io.StringIO()) as out:
                assert main(line.split()) == 0, line
            return out.getvalue()

        shown = said("show wash")
        sampled = json.loads(said("sample --problem sudoku4 --family washed --steps 3 --batch 120 --json"))
        said("bench --problem sudoku4 --samplers wash,radd --nfe 2,3 --rows 64 --out runs")
        rows = [json.loads(line) for path in glob.glob("runs/**/*.jsonl", recursive=True) for line in open(path)]
        print(json.dumps([shown, sampled["sampler"], sampled["nfe"], sorted({(r["family"], r["sampler"]) for r in rows if "family" in r})]))
    """
    done = python(code, washed)
    assert done.returncode == 0, done.stderr
    shown, sampler, nfe, found = json.loads(done.stdout.splitlines()[-1])
    assert "washed" in shown and (sampler, nfe) == ("wash", 3)
    assert [list(f) for f in found if f[1] in ("radd", "wash")] == [["masked", "radd"], ["washed", "wash"]]
