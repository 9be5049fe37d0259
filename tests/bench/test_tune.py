"""The search for two options, and sweeps on a model of one's own."""

import json
import math
import re
from dataclasses import dataclass
from pathlib import Path

import pytest

import samplers
from samplers import FamilyError, OptionError, SamplersError, UnknownNameError, problems, registry
from samplers.bench import Request, Store, plot, run, tune
from samplers.bench.estimates import loss
from samplers.bench.user_model import subject
from samplers.masked.beta_energy import BetaEnergy
from samplers.masked.random_order import RandomOrder
from samplers.sampler import option

pytestmark = pytest.mark.usefixtures("one_thread")

MODEL = """
import torch, samplers

calls = []


def net():
    calls.append(1)
    table = torch.randn(9, 9, generator=torch.Generator().manual_seed(0))
    return samplers.TokenDenoiser.wrap(lambda ids: table[ids.roll(1, 1)], vocab_size=9, mask_id=8, name="net")


def short(sample):  # one number a row: how many small tokens
    return (sample.x < 4).double().mean(1)


def whole(sample):
    return float(sample.x.double().mean())


def crooked(sample):
    return torch.zeros(3)


def words(sample):
    return "good"


prompts = [[i % 8, 1] + [2] * (i % 3) for i in range(10)]
bad_prompts = ["one"]
noise = samplers.problems.create("mixture").denoiser("gaussian")
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A module of somebody's, in the present folder."""
    (tmp_path / "somebodys_model.py").write_text(MODEL)
    monkeypatch.chdir(tmp_path)
    return "somebodys_model:net"


def lines(folder):
    return [json.loads(line) for line in (folder / "cells.jsonl").read_text().splitlines()]


# ---------------------------------------------------------------------------------------------- a sampler whose best is known


@dataclass(frozen=True)
class Bowl(RandomOrder):
    """A sampler with two numbers, which the fixture `bowl` scores by their distance from (0.31, 7)."""

    name = "bowl"
    across: float = option(0.5, "a real", gt=0, le=1)
    down: int = option(4, "a whole number", ge=1, le=9)
    word: str = option("x", "no number")


@pytest.fixture
def bowl(monkeypatch):
    """A problem's score replaced by the bowl's own, with noise that pairs of one seed share."""
    monkeypatch.setitem(registry._get().own["samplers"], "bowl", registry.Entry("bowl", "test", "1", Bowl, "masked"))
    from samplers.bench import sweep

    real = sweep.run_cell
    seen = []

    def scored(cell, problem, denoiser):
        record = real(cell, problem, denoiser)
        seen.append(cell)
        noise = math.sin(cell.seed * 12.9898) * 5
        value = (cell.options["across"] - 0.31) ** 2 * 40 + (cell.options["down"] - 7) ** 2 * 0.05 + noise
        estimate = {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 4, "better": "lower", "truth": None}
        record["score"] = {"primary": "depth", "estimates": {"depth": estimate}, "extras": {}}
        return record

    monkeypatch.setattr(sweep, "run_cell", scored)
    return seen


def bowl_search(**changes):
    request = Request(("sudoku4",), ("bowl",), nfe=(2,), seeds=3, rows=4, batch=4)
    x, y = tune.axis("across=0.1:0.9:5"), tune.axis("down=1,3,5,7,9")
    return tune.Search(
        **{"request": request, "sampler": "bowl", "x": x, "y": y, "references": {"default": (0.5, 4)}} | changes
    )


def test_the_least_is_found_and_refined(tmp_path, bowl):
    (found,) = tune.search(bowl_search(refine=0), tmp_path / "coarse")
    assert found.pair == (0.3, 7)
    (found,) = tune.search(bowl_search(refine=3), tmp_path / "fine")
    assert found.pair[0] == pytest.approx(0.31, abs=0.026)  # distances 0.1, 0.05, 0.025
    assert found.pair[1] == 7
    assert len(found.tried) > 26
    assert all(0 < a <= 1 and b == int(b) for a, b in found.tried), "only pairs that the sampler takes"


def test_pairs_meet_the_same_seeds_and_are_judged_on_fresh_ones(tmp_path, bowl):
    (found,) = tune.search(bowl_search(refine=1), tmp_path)
    by_seed = {}
    for cell in bowl:
        by_seed.setdefault(cell.seed, set()).add((cell.options["across"], cell.options["down"]))
    assert by_seed[0] == by_seed[1] == by_seed[2] == set(found.tried)
    assert by_seed[3] == by_seed[4] == by_seed[5] == {found.pair, (0.5, 4)}
    assert [r["seed"] for r in found.point.records] == [3, 4, 5]
    # Noise that both of a pair share drops out of the difference: nothing is left of it.
    d = found.differences["default"]
    depth = [(a - 0.31) ** 2 * 40 + (b - 7) ** 2 * 0.05 for a, b in (found.pair, (0.5, 4))]
    assert d.value == pytest.approx(depth[0] - depth[1])
    assert d.high - d.low < 1e-9
    assert found.point.quality.high - found.point.quality.low > 0.1  # but it is in the numbers themselves


def test_it_goes_on_where_it_stopped(tmp_path, bowl):
    what = bowl_search(refine=1)

    class Stop(Exception):
        pass

    def stop(record):
        if len(bowl) == 20:
            raise Stop

    with pytest.raises(Stop):
        tune.search(what, tmp_path, finished=stop)
    assert len(lines(tmp_path)) == 20
    first = tune.search(what, tmp_path)
    done = len(bowl)
    assert done == len(lines(tmp_path)) == len({r["key"] for r in lines(tmp_path)})
    again = tune.search(what, tmp_path)
    assert len(bowl) == done, "nothing is run twice"
    assert [f.pair for f in again] == [f.pair for f in first]
    assert again[0].differences == first[0].differences
    other = Store(tmp_path)
    with pytest.raises(OptionError, match="another sweep"):
        tune.search(what, tmp_path)
    other.close()


def test_more_may_be_better(tmp_path, bowl, monkeypatch):
    real = tune.loss
    monkeypatch.setattr(tune, "loss", lambda value, truth, better: real(value, truth, "higher"))
    (found,) = tune.search(bowl_search(refine=0), tmp_path)
    assert found.pair == (0.9, 1)


def test_what_exact_samples_score_is_the_aim():
    assert loss(0.3, 0.5, "lower") == pytest.approx(0.2)
    assert loss(0.7, 0.5, "lower") == pytest.approx(0.2)
    assert loss(0.7, None, "lower") == 0.7
    assert loss(0.7, None, "higher") == -0.7
    assert math.isnan(loss(None, None, "lower"))


def test_a_failure_is_said(tmp_path, monkeypatch):
    def broken(self, predict, state):
        raise RuntimeError("out of ideas")

    monkeypatch.setattr(BetaEnergy, "step", broken)
    what = tune.Search(Request(**REQUEST), "beta_energy", tune.axis("a=0.2,1"), tune.axis("b=1"))
    with pytest.raises(SamplersError, match=r"beta_energy steps=2 seed 0: RuntimeError: out of ideas"):
        tune.search(what, tmp_path)


# ---------------------------------------------------------------------------------------------- arguments


def test_grids():
    assert tune.grid("0.1:1.0:10") == (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
    assert tune.grid("3,1,2,1") == (1.0, 2.0, 3.0)
    assert tune.grid("0.5:9:1") == (0.5,)
    axis = tune.axis("a=0.1,0.3,0.9")
    assert (axis.option, axis.values) == ("a", (0.1, 0.3, 0.9))
    assert axis.near(0.3, 1) == [0.2, 0.3, 0.4]  # the nearer gap, halved
    assert axis.near(0.9, 2) == [0.75, 0.9, 1.05]
    assert tune.axis("a=2").near(2.0, 1) == [2.0]
    for text in ("0.1:1", "a", "", "1:2:0", "nan", "1:2:3:4", "inf,1"):
        with pytest.raises(OptionError, match="grid"):
            tune.grid(text)
    for text in ("0.1:1:3", "=1"):
        with pytest.raises(OptionError, match="write option="):
            tune.axis(text)


REQUEST = {"problems": ("sudoku4",), "samplers": ("beta_energy",), "nfe": (2,), "seeds": 2, "rows": 8}


@pytest.mark.parametrize(
    ("request_", "changes", "error", "words"),
    [
        ({}, {"x": tune.axis("b=0.1:1:3")}, OptionError, "different ones"),
        ({}, {"x": tune.axis("rank=1:2:2")}, OptionError, "no numeric option 'rank'; it has a, b"),
        ({}, {"x": tune.axis("c=1:2:2")}, OptionError, "no numeric option 'c'"),
        ({}, {"x": tune.axis("a=0:1:3")}, OptionError, "must be > 0"),
        ({}, {"refine": -1}, OptionError, "--refine"),
        ({}, {"sampler": "beta_enrgy"}, UnknownNameError, "did you mean 'beta_energy'"),
        ({"seeds": 1}, {}, OptionError, "--seeds of 2 or more"),
        ({"options": ("a=0.3",)}, {}, OptionError, "searched over"),
        ({"options": ("rnk=random",)}, {}, OptionError, "did you mean 'rank'"),
        ({"metric": "tvv"}, {}, OptionError, "did you mean 'tv'"),
        ({"problems": ("mixture",)}, {}, FamilyError, "masked"),
        ({"problems": ("sudoku5",)}, {}, UnknownNameError, "sudoku4"),
        ({"block_length": 4}, {}, OptionError, "too few for blocks of 4"),
    ],
)
def test_what_cannot_be_searched_is_said_before_any_work(tmp_path, request_, changes, error, words):
    folder = tmp_path / "out"

    def search():
        what = {"sampler": "beta_energy", "x": tune.axis("a=0.2:1:3"), "y": tune.axis("b=0.2:1:3")} | changes
        tune.search(tune.Search(Request(**REQUEST | request_), **what), folder)

    with pytest.raises(error, match=re.escape(words)):
        search()
    assert not folder.exists()


# ---------------------------------------------------------------------------------------------- the command


def test_tune_beta_energy(cli, tmp_path):
    base = (
        "tune",
        "beta_energy",
        "--problem",
        "sudoku4",
        "--steps",
        "2,4",
        "--grid",
        "0.3:0.9:3",
        "--metric",
        "invalid",
    )
    base = (*base, "--rows", 200, "--seeds", 2, "--refine", 1, "-o", "rank=random", "--out", tmp_path)
    code, out, err = cli(*base)
    assert code == 0, err
    assert "grid: 22 settings, 44 runs" in out  # 9 pairs and the two references, at two step counts
    assert re.search(r"linear +0.5, 0.5 ", out)
    assert re.search(r"sin\^2 +1, 1 ", out)
    assert "4 steps, 4 forward passes expected" in out
    assert max(map(len, out[out.index("steps") : out.index("pairs searched")].splitlines()[:-1])) < 100
    assert (tmp_path / "heatmap.png").stat().st_size > 10_000
    table = (tmp_path / "table.md").read_text()
    python, command = re.search(r"# 4 steps\n +(.*)\n +(.*)\n", table).groups()
    # The line of Python makes the setting that was found, and the command does the same.
    denoiser = problems.create("sudoku4").denoiser("masked")
    sample = eval(python, {"samplers": samplers, "denoiser": denoiser})
    assert sample.settings["steps"] == 4
    assert sample.options["rank"] == "random"
    assert sample.settings["temperature"] == 1.0
    direct = json.loads(cli(*command.split()[1:], "--batch", 1, "--json")[1])
    assert direct["options"] == sample.options
    assert direct["x"] == sample.x.tolist()
    code, again, _ = cli(*base)
    assert code == 0
    assert "44 there already" in again
    assert again[again.index("steps") :] == out[out.index("steps") :]
    # What is said to be best is the least of what was measured.
    records = [r for r in lines(tmp_path) if r["settings"]["steps"] == 4 and r["seed"] < 2]
    shares = {}
    for r in records:
        pair = r["options"]["a"], r["options"]["b"]
        shares[pair] = shares.get(pair, 0) + r["score"]["estimates"]["invalid"]["value"] / 2
    assert shares[sample.options["a"], sample.options["b"]] == min(shares.values())
    assert cli("bench", "--report", tmp_path)[0] == 0  # a search's folder is a sweep's


def test_the_lines_to_paste_run_for_a_continuous_sampler(cli, tmp_path):
    base = ("tune", "er_sde", "--problem", "mixture", "--x", "eta=0:1:2", "--y", "growth=1:2:2", "--refine", 0)
    code, _, err = cli(*base, "--metric", "energy", "--steps", 4, "--rows", 32, "--seeds", 2, "--out", tmp_path)
    assert code == 0, err
    table = (tmp_path / "table.md").read_text()
    python, command = re.search(r"# 4 steps\n +(.*)\n +(.*)\n", table).groups()
    sample = eval(python, {"samplers": samplers, "denoiser": problems.create("mixture").denoiser("gaussian")})
    assert sample.nfe == 4
    direct = json.loads(cli(*command.split()[1:], "--batch", 1, "--json")[1])
    assert direct["options"] == sample.options
    assert direct["x"] == sample.x.tolist()


def test_expected_forwards_are_those_of_the_schedule(tmp_path):
    request = Request(("sudoku4",), ("beta_energy",), nfe=(16,), seeds=2, rows=16, options=("rank=random",))
    what = tune.Search(request, "beta_energy", tune.axis("a=1,2"), tune.axis("b=0.2"), {}, refine=0)
    (found,) = tune.search(what, tmp_path)
    a, b = found.pair
    counts = samplers.mask_schedule(f"beta({a},{b})").counts(16, 16)
    assert found.expected_nfe == len(counts) < 16
    assert found.point.nfe == len(counts)


def test_tune_any_sampler_by_its_options(cli, tmp_path):
    base = ("tune", "threshold", "--problem", "sudoku4", "--rows", 64, "--seeds", 2, "--out", tmp_path)
    code, _, err = cli(*base)
    assert code == 2
    assert "--x option=low:high:count" in err
    assert "no numeric option" in cli(*base, "--x", "threshold=0.5,0.9", "--y", "temperature=1,2")[2]


def test_tune_errors_are_one_line(cli, tmp_path):
    base = ("tune", "beta_energy", "--out", tmp_path / "o")
    for argv, words in (
        ((*base, "--problem", "sudoku4", "--grid", "1:2"), "write low:high:count"),
        ((*base, "--problem", "sudoku4", "--gen-length", 8), "go with --denoiser"),
        ((*base, "--denoiser", "nonsense"), "module:attribute"),
        ((*base, "--problem", "sudoku4", "--higher"), "go with --denoiser"),
    ):
        code, _, err = cli(*argv)
        assert code == 2, argv
        assert err.startswith("samplers: error: ") and err.count("\n") == 1, (argv, err)
        assert words in err
    assert cli("tune", "beta_energy")[0] == 2


def test_ctrl_c_says_how_to_go_on(cli, tmp_path, monkeypatch):
    def interrupted(*args, **kw):
        raise KeyboardInterrupt

    monkeypatch.setattr("samplers.bench.sweep.run_cell", interrupted)
    base = (
        "tune",
        "beta_energy",
        "--problem",
        "sudoku4",
        "--steps",
        2,
        "--grid",
        "0.5,1",
        "--rows",
        8,
        "--out",
        tmp_path,
    )
    code, _, err = cli(*base)
    assert code == 130
    assert f"--out {tmp_path}" in err


def test_without_matplotlib_the_table_is_there(cli, tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "available", lambda: False)
    base = ("tune", "beta_energy", "--problem", "sudoku4", "--steps", 2, "--grid", "0.5,1", "--rows", 8, "--seeds", 2)
    code, out, _ = cli(*base, "--refine", 0, "--out", tmp_path)
    assert code == 0
    assert "matplotlib is not installed" in out
    assert (tmp_path / "table.md").exists()
    assert not (tmp_path / "heatmap.png").exists()


# ---------------------------------------------------------------------------------------------- a model of one's own


def test_bench_without_a_metric_measures_speed(cli, model, tmp_path):
    base = ("bench", "--denoiser", model, "--samplers", "radd", "threshold", "--gen-length", 12, "--nfe", "2,4")
    code, out, err = cli(*base, "--seeds", 1, "--rows", 20, "--batch", 8, "--out", "o")
    assert code == 0, err
    assert "NFE per row" in out
    records = lines(tmp_path / "o")
    assert {r["sampler"] for r in records} == {"radd", "threshold"}
    assert all(
        r["score"] == {"problem": model, "family": "masked", "primary": "", "estimates": {}, "extras": {}}
        for r in records
    )
    assert all(r["settings"]["temperature"] is None for r in records)  # the sampler's own
    one = next(r for r in records if r["sampler"] == "radd" and r["value"] == 2)
    assert one["nfe"]["forwards"] <= 3 * 2
    assert one["nfe"]["token_evals"] == one["nfe"]["row_evals"] * 12
    page = (tmp_path / "o" / "report.html").read_text()
    assert "nothing was scored" in page
    assert "exact samples" not in page
    assert not (tmp_path / "o" / "pareto_nfe.png").exists()
    import somebodys_model

    assert len(somebodys_model.calls) == 1, "a model is loaded once"


def test_bench_with_a_metric_of_ones_own(cli, model, tmp_path):
    base = ("bench", "--denoiser", model, "--samplers", "radd", "random_order", "--gen-length", 12, "--nfe", "2,4")
    base = (*base, "--seeds", 2, "--rows", 30, "--temperature", 1, "--out", "o", "--metric", "somebodys_model:short")
    code, out, err = cli(*base)
    assert code == 0, err
    assert "short" in out
    record = lines(tmp_path / "o")[0]
    assert record["settings"]["temperature"] == 1.0
    estimate = record["score"]["estimates"]["short"]
    denoiser = subject(model).denoiser()
    x = samplers.sample(denoiser, "radd", gen_length=12, batch=30, steps=2, temperature=1.0).x
    share = (x < 4).double().mean(1)
    assert record["sampler"] == "radd"
    assert estimate["value"] == pytest.approx(float(share.mean()))
    assert estimate["high"] - estimate["low"] == pytest.approx(2 * 2.045 * float(share.std()) / math.sqrt(30), rel=1e-3)
    assert (tmp_path / "o" / "pareto_nfe.png").exists()
    before = len(lines(tmp_path / "o"))
    assert "8 were there already" in cli(*base)[1]
    assert cli(*base, "--higher")[0] == 0  # another question, another cell
    assert len(lines(tmp_path / "o")) == 2 * before


def test_prompts_are_rows(cli, model, tmp_path):
    base = ("bench", "--denoiser", model, "--samplers", "random_order", "--gen-length", 4, "--nfe", "2", "--seeds", 1)
    code, _, err = cli(
        *base, "--prompts", "somebodys_model:prompts", "--batch", 4, "--metric", "somebodys_model:whole", "--out", "o"
    )
    assert code == 0, err
    (record,) = lines(tmp_path / "o")
    assert (record["rows"], record["batch"]) == (10, 4)
    prompts = [[i % 8, 1] + [2] * (i % 3) for i in range(10)]
    x = samplers.sample(subject(model).denoiser(), "random_order", prompt=prompts, gen_length=4, steps=2).x
    assert record["score"]["estimates"]["whole"]["value"] == pytest.approx(float(x.double().mean()))
    assert record["score"]["estimates"]["whole"]["low"] is None
    assert "a list of lists" in cli(*base, "--prompts", "somebodys_model:bad_prompts")[2]


@pytest.mark.parametrize(("metric", "words"), [("crooked", "shape (3,) for 6 rows"), ("words", "str, not numbers")])
def test_a_metric_that_answers_nonsense_fails_its_cell(model, tmp_path, metric, words):
    request = Request((model,), ("radd",), nfe=(2,), seeds=1, rows=6, gen_length=4, metric=f"somebodys_model:{metric}")
    outcome = run([request], tmp_path / "o")
    assert words in outcome.failed[0]["error"]


def test_own_model_errors(cli, model):
    base = ("bench", "--samplers", "radd", "--gen-length", 4)
    for argv, words in (
        (("--denoiser", "somebodys_model:prompts"), "not a Denoiser"),
        (("--denoiser", "no_such_module:x"), "ModuleNotFoundError"),
        (("--denoiser", model, "--metric", "somebodys_model:nothing"), "AttributeError"),
        (("--denoiser", model, "--metric", "somebodys_model:prompts"), "not a function"),
        (("--denoiser", "somebodys_model:noise"), "nothing to run"),
        (("--denoiser", model, "--problem", "sudoku4"), "one of"),
        (("--problem", "sudoku4"), "go with --denoiser"),
    ):
        code, _, err = cli(*base, *argv)
        assert code == 2, argv
        assert words in err, (argv, err)
    assert "needs --metric" in cli("tune", "beta_energy", "--denoiser", model, "--gen-length", 8)[2]
    assert "--steps is needed" in cli("tune", "beta_energy", "--denoiser", model)[2]


def test_tune_a_model_of_ones_own(cli, model, tmp_path):
    base = ("tune", "beta_energy", "--denoiser", model, "--gen-length", 12, "--steps", 3, "--grid", "0.2,0.5,1")
    base = (*base, "--rows", 16, "--seeds", 2, "--refine", 0, "--temperature", 1, "--out", "o")
    found = {}
    for flag in ((), ("--higher",)):
        code, out, err = cli(*base, "--metric", "somebodys_model:short", *flag)
        assert code == 0, err
        assert f"--denoiser {model} --sampler beta_energy --steps 3" in out
        found[flag] = re.search(r"^ +3 +found +(\S+), (\S+)", out, re.M).groups()
    records = [r for r in lines(tmp_path / "o") if r["seed"] < 2]
    means = {}
    for r in records:
        key = r["higher"], f"{r['options']['a']:g}", f"{r['options']['b']:g}"
        means[key] = means.get(key, 0) + r["score"]["estimates"]["short"]["value"]
    low = {k[1:]: v for k, v in means.items() if not k[0]}
    assert low[found[()]] == min(low.values())
    assert low[found[("--higher",)]] == max(low.values())


def test_the_metric_of_a_problem_is_chosen_when_it_is_shown(tmp_path, cli):
    base = (
        "bench",
        "--problem",
        "sudoku4",
        "--samplers",
        "radd",
        "--nfe",
        4,
        "--seeds",
        1,
        "--rows",
        32,
        "--out",
        tmp_path,
    )
    assert ": tv " in cli(*base)[1]
    code, out, _ = cli(*base, "--metric", "invalid")
    assert code == 0
    assert "1 were there already" in out  # nothing is run again for it
    header = next(line for line in (tmp_path / "table.md").read_text().splitlines() if line.startswith("|"))
    assert header.split("|")[5].strip() == "invalid"


def test_a_model_in_the_box_is_measured_by_its_name(cli, tmp_path):
    base = ("--denoiser", "digits-mdm", "--rows", 4, "--seeds", 2, "--out", tmp_path)
    code, _, err = cli("bench", *base, "--samplers", "radd", "--nfe", 2)
    assert code == 0, err
    assert {r["problem"] for r in lines(tmp_path)} == {"digits-mdm"}
    assert "did you mean 'digits-mdm'" in cli("bench", "--denoiser", "digits-mdn")[2]


def test_bench_and_tune_take_a_text_model_in_the_box(cli, tmp_path):
    """Nothing needs to be said of it: 64 positions are filled, and a search judges by the model's own likelihood."""
    model = samplers.models.zoo.load("text-mdm")
    base = ("--denoiser", "text-mdm", "--rows", 3, "--batch", 2, "--out", tmp_path / "o")
    code, _, err = cli("bench", *base, "--samplers", "random_order", "--nfe", 2, "--seeds", 1, "--metric", "nll")
    assert code == 0, err
    (record,) = lines(tmp_path / "o")
    assert record["settings"]["gen_length"] == 64
    x = samplers.sample(model, "random_order", gen_length=64, batch=3, steps=2)
    bound = samplers.nll(model, x.rows(), mc=16)
    mean = float((bound.nll / bound.tokens).mean())
    assert record["score"]["estimates"]["nll"]["value"] == pytest.approx(mean, rel=1e-4)
    base = (*base[:-1], tmp_path / "t", "--seeds", 2, "--gen-length", 8, "--steps", 2, "--grid", "0.5,1", "--refine", 0)
    code, out, err = cli("tune", "beta_energy", *base)
    assert code == 0, err
    assert "--denoiser text-mdm --sampler beta_energy --steps 2" in out
    assert all("nll" in r["score"]["estimates"] for r in lines(tmp_path / "t"))
    code, _, err = cli(
        "bench", "--denoiser", f"hf:{Path(samplers.models.zoo.__file__).parent / 'text-mdm'}", "--samplers", "radd"
    )
    assert code == 2
    assert "--gen-length is needed" in err


def test_a_full_disk_while_a_search_is_written(cli, tmp_path, full_disk):
    base = ("tune", "beta_energy", "--problem", "sudoku4", "--steps", 2, "--grid", "0.5,1", "--rows", 8, "--seeds", 2)
    base = (*base, "--refine", 0, "--out", tmp_path)
    assert cli(*base)[0] == 0
    kept = {name: (tmp_path / name).read_bytes() for name in ("cells.jsonl", "sweep.json", "table.md", "heatmap.png")}
    for name in ("sweep.json", "table.md", "heatmap.png"):
        with full_disk(name):
            code, _, err = cli(*base)
        assert code == 2, name
        assert f"{tmp_path} cannot be written: No space left on device" in err
        assert f"{len(lines(tmp_path))} finished cells are safe" in err
        assert err.count("\n") == 1
        assert {n: (tmp_path / n).read_bytes() for n in kept} == kept
