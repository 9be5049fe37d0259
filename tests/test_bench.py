"""The bench: what a cell holds, resuming, statistics, plots and the report."""

import itertools
import json
import math
import re
from dataclasses import dataclass

import pytest
import torch

from samplers import problems, registry
from samplers.bench import DEMO, Request, Store, front, plan, points, run, write_report
from samplers.bench import plot as plots
from samplers.bench.collect import Combined, Point, combine, number
from samplers.bench.store import pack, unpack
from samplers.errors import FamilyError, OptionError, SamplersError, UnknownNameError
from samplers.masked.random_order import RandomOrder
from samplers.problems.base import Estimate, wilson
from samplers.problems.pictures import png
from samplers.problems.sudoku import conflicts

SMALL = Request(("sudoku4",), ("radd", "random_order"), nfe=(2, 4), seeds=2, rows=64, batch=40)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A sweep with a fixed-count, an adaptive and a continuous sampler."""
    folder = tmp_path_factory.mktemp("sweep")
    requests = [
        SMALL,
        Request(("sudoku4",), ("threshold",), seeds=2, rows=64, family="masked"),
        Request(("mixture",), ("dpmpp_2m",), nfe=(4, 8), seeds=1, rows=100),
    ]
    run(requests, folder, command="samplers bench <&> again")
    return folder


def lines(folder):
    return (folder / "cells.jsonl").read_bytes().splitlines(keepends=True)


def test_a_cell_says_what_it_is_and_what_it_cost(finished):
    cell = json.loads(lines(finished)[0])
    assert {"key", "status", "problem", "family", "sampler", "distribution", "version", "library"} < set(cell)
    assert {"options", "settings", "seed", "rows", "batch", "knob", "value", "machine", "time"} < set(cell)
    assert cell["status"] == "ok"
    assert set(cell["nfe"]) == {"forwards", "row_evals", "token_evals", "cache_bytes", "per_row"}
    assert set(cell["seconds"]) == {"denoiser", "sampler"}
    assert {"cpu", "threads", "torch", "device", "native", "isa"} <= set(cell["machine"])
    estimate = cell["score"]["estimates"][cell["score"]["primary"]]
    assert estimate["low"] <= estimate["value"] <= estimate["high"]
    assert unpack(cell["x"]).shape == (8, 16)


def test_counts_are_right_over_batches(finished):
    # random_order spends its steps exactly: 64 rows in batches of 40 are two batches of two forwards.
    cell = next(c for c in map(json.loads, lines(finished)) if c["sampler"] == "random_order" and c["value"] == 2)
    assert cell["nfe"] == {"forwards": 4, "row_evals": 128, "token_evals": 128 * 16, "cache_bytes": 0, "per_row": 2.0}


def test_batches_do_not_change_the_samples(tmp_path):
    for batch in (64, 7):
        run([Request(("sudoku4",), ("radd",), nfe=(4,), seeds=1, rows=64, batch=batch)], tmp_path / str(batch))
    a, b = (json.loads(lines(tmp_path / n)[0]) for n in ("64", "7"))
    assert a["x"] == b["x"]
    assert a["score"] == b["score"]
    assert a["key"] != b["key"]


def test_two_sweeps_cannot_write_to_one_folder(tmp_path):
    first = Store(tmp_path)
    with pytest.raises(OptionError, match="another sweep is writing to"):
        run([SMALL], tmp_path)
    first.close()
    assert run([SMALL], tmp_path).planned == 8


def test_an_adaptive_sampler_walks_its_own_option(finished):
    cells = [c for c in map(json.loads, lines(finished)) if c["sampler"] == "threshold" and c["seed"] == 0]
    option, values = registry.load("threshold").facts.sweep
    assert [c["value"] for c in cells] == list(values)
    assert {c["knob"] for c in cells} == {option}
    assert all(c["settings"]["steps"] is None for c in cells)
    spent = {c["value"]: c["nfe"]["per_row"] for c in cells}
    assert spent[2.0] == 16 > spent[0.1]


def test_an_option_that_is_given_is_not_walked():
    cells = plan([Request(("sudoku4",), ("threshold", "radd"), nfe=(4,), seeds=1, options=("threshold=0.5",))])
    assert [(c.sampler, c.knob) for c in cells] == [("radd", "steps"), ("threshold", "steps")]
    assert cells[1].options["threshold"] == 0.5


def test_seeds_go_outermost_and_no_cell_comes_twice():
    cells = plan([SMALL, SMALL])
    assert len(cells) == len({c.key for c in cells}) == 8
    assert [c.seed for c in cells] == [0] * 4 + [1] * 4


def test_the_demo_can_be_planned():
    assert {(c.problem, c.family) for c in plan(DEMO)} >= {
        ("sudoku4", "masked"),
        ("digits", "masked"),
        ("digits", "gaussian"),
    }


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"samplers": ("rad",)}, UnknownNameError, "did you mean 'radd'"),
        ({"samplers": ("masked/zzz*",)}, UnknownNameError, "no sampler matches"),
        ({"samplers": ("ddim",), "family": "masked"}, UnknownNameError, "nothing to run"),
        ({"problems": ("sudoku5",)}, UnknownNameError, "sudoku4"),
        ({"problems": ("mixture",), "family": "masked"}, FamilyError, "gaussian"),
        ({"options": ("scedule=linear",)}, OptionError, "did you mean 'schedule'"),
        ({"options": ("schedule",)}, OptionError, "name=value"),
        ({"options": ("ddim.eta=1",)}, OptionError, "not in this sweep"),
        ({"options": ("schedule=spiral",)}, OptionError, "spiral"),
    ],
)
def test_a_request_that_cannot_be_is_refused_before_any_work(tmp_path, change, error, words):
    with pytest.raises(error, match=re.escape(words)):
        run([Request(**{"problems": ("sudoku4",), "samplers": ("radd",)} | change)], tmp_path / "out")
    assert not (tmp_path / "out").exists()


# resuming


def test_what_is_there_is_not_run_again(tmp_path):
    run([SMALL], tmp_path)
    before = lines(tmp_path)
    again = run([SMALL], tmp_path)
    assert again.reused == again.planned == len(before)
    assert lines(tmp_path) == before
    more = run([Request(**{**vars(SMALL), "nfe": (2, 4, 8)})], tmp_path)
    assert more.planned - more.reused == 4
    assert lines(tmp_path)[: len(before)] == before


@pytest.mark.parametrize("cut", [1, 5, 200])
def test_a_line_cut_off_costs_its_cell_only(tmp_path, cut):
    run([SMALL], tmp_path)
    before = lines(tmp_path)
    (tmp_path / "cells.jsonl").write_bytes(b"".join(before)[:-cut])
    heard = []
    again = run([SMALL], tmp_path, started=lambda cells, store: heard.extend(store.notes))
    assert again.planned - again.reused == 1
    assert "cut off" in heard[0]
    after = lines(tmp_path)
    assert after[:-1] == before[:-1]
    old, new = json.loads(before[-1]), json.loads(after[-1])
    assert old["key"] == new["key"]
    assert old["score"] == new["score"]
    assert old["x"] == new["x"]


def test_reading_changes_nothing(tmp_path):
    run([SMALL], tmp_path)
    cut = (tmp_path / "cells.jsonl").read_bytes()[:-9]
    (tmp_path / "cells.jsonl").write_bytes(cut)
    write_report(tmp_path)
    assert (tmp_path / "cells.jsonl").read_bytes() == cut


def test_a_corrupt_line_is_named(tmp_path):
    run([SMALL], tmp_path)
    before = lines(tmp_path)
    (tmp_path / "cells.jsonl").write_bytes(b"".join([before[0], before[1][:50] + b"\n", *before[2:]]))
    with pytest.raises(SamplersError, match=r"cells\.jsonl, line 2 "):
        run([SMALL], tmp_path)


def test_fresh_puts_the_old_cells_aside(tmp_path):
    run([SMALL], tmp_path)
    before = lines(tmp_path)
    assert run([SMALL], tmp_path, fresh=True).reused == 0
    assert (tmp_path / "cells.jsonl.bak").read_bytes() == b"".join(before)


def test_a_folder_that_cannot_be_is_said_before_any_work(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OptionError, match="cannot be written"):
        run([SMALL], tmp_path / "file" / "out", running=lambda cell: pytest.fail("work was done"))


# what goes wrong


@dataclass(frozen=True)
class Raising(RandomOrder):
    name = "raising"

    def step(self, predict, state):
        raise ZeroDivisionError("no step\nfor you")


@dataclass(frozen=True)
class Picky(RandomOrder):
    name = "picky"

    def init(self, canvas):
        if int(canvas.block_steps.sum(1).max()) % 4:
            raise OptionError("steps must be a multiple of 4")
        return super().init(canvas)


@pytest.fixture
def more_samplers(monkeypatch):
    zoo = registry._get()
    for cls in (Raising, Picky):
        monkeypatch.setitem(zoo.own, cls.name, registry.Entry(cls.name, "test", "1", cls, "masked"))


def test_a_sampler_that_raises_does_not_stop_the_others(tmp_path, more_samplers):
    request = Request(("sudoku4",), ("raising", "picky", "radd"), nfe=(2, 4), seeds=1, rows=16)
    outcome = run([request], tmp_path)
    assert {(r["sampler"], r["value"]) for r in outcome.failed} == {("raising", 2), ("raising", 4)}
    assert outcome.failed[0]["error"] == "ZeroDivisionError: no step for you"
    assert [(r["sampler"], r["value"]) for r in outcome.declined] == [("picky", 2)]
    again = run([request], tmp_path)
    assert again.planned - again.reused == 2  # failed cells are tried again, declined ones are not
    page, _ = write_report(tmp_path)
    assert "no step for you" in page.read_text()
    assert "multiple of 4" in page.read_text()


# statistics


def estimate(e):
    return {k: getattr(e, k) for k in ("value", "low", "high", "n", "better", "truth")}


def test_shares_are_pooled():
    both = combine([estimate(wilson(3, 100)), estimate(wilson(0, 50))])
    pooled = wilson(3, 150)
    assert (both.value, both.low, both.high, both.n) == pytest.approx((pooled.value, pooled.low, pooled.high, 150))


def test_means_of_seeds_have_the_error_of_a_mean():
    both = combine([estimate(Estimate(v, v - 0.4, v + 0.4, 10, truth=t)) for v, t in ((1.0, 0.5), (2.0, 0.7))])
    assert (both.value, both.truth) == pytest.approx((1.5, 0.6))
    assert both.high - both.value == pytest.approx(0.4 / math.sqrt(2))


def test_combined_intervals_cover():
    """Of 400 means of 3 seeds of 20 normals, 95 % of the intervals hold the truth, give or take."""
    from samplers.problems.base import mean_estimate

    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(400, 3, 20, generator=generator, dtype=torch.float64)
    held = [abs(c.value) <= c.high - c.value for c in (combine([estimate(mean_estimate(s)) for s in d]) for d in draws)]
    assert 0.93 <= sum(held) / len(held) <= 0.985


def test_a_seed_without_a_value_leaves_none():
    lost = {"value": None, "low": 0.0, "high": None, "n": 0, "better": "lower", "truth": None}
    assert math.isnan(combine([lost, estimate(wilson(1, 2))]).value)


def test_the_front_needs_more_than_luck(finished):
    group = [p for p in points(Store(finished, write=False).records.values()) if p.problem == "sudoku4"]
    best = front(group, lambda p: p.nfe)
    assert best[0].nfe == min(p.nfe for p in group)
    for worse, better in itertools.pairwise(best):
        assert better.nfe >= worse.nfe
        assert better.quality.value < worse.quality.low
    assert all(len(p.records) == 2 for p in group)


# the report


def test_the_report_needs_nothing_from_elsewhere(finished):
    page, notes = write_report(finished)
    text = page.read_text()
    assert not notes
    assert not re.search(r"""(src|href)\s*=\s*["']?\s*(https?:)?//""", text)
    assert not re.search(r"@import|<script|<link|url\((?!#)", text)
    assert text.count("<h2>") >= 3
    assert "samplers bench &lt;&amp;&gt; again" in text
    assert text.count("<style") == 1  # a plot's own would rule the page
    ids = re.findall(r'\bid="([^"]+)"', text)
    assert len(ids) == len(set(ids))
    for name in ("radd", "random_order", "threshold", "dpmpp_2m"):
        assert name in text
    assert (finished / "pareto_nfe.png").stat().st_size > 10_000
    assert (finished / "pareto_seconds.png").stat().st_size > 10_000
    table = (finished / "table.md").read_text()
    assert "## sudoku4, masked" in table
    assert "| • | " in table


def test_without_matplotlib_there_still_is_a_report(finished, monkeypatch):
    monkeypatch.setattr(plots, "available", lambda: False)
    page, notes = write_report(finished)
    assert "matplotlib" in notes[0]
    assert "<table" in page.read_text()
    assert '<div class="plots">' not in page.read_text()


def test_a_crowd_is_grey():
    """Of many samplers those that keep near the front are named, each on the paper; the others are counted."""

    def made_by(name, off):
        for steps in (2, 4, 8):
            q = Combined(off / steps, 0.9 * off / steps, 1.1 * off / steps, 100, "lower", 0.05)
            yield Point("p", "masked", name, "steps", steps, "tv", {"tv": q}, steps, 0.1, 0.0, 8, 0, ())

    made = [p for i in range(plots.NAMED + 5) for p in made_by(f"s{i:02d}", 1 + i)]
    (axes,) = plots.figure([("p", made)], "nfe", plots.styles(made)).axes
    names = [t for t in axes.texts if t.get_text().startswith("s")]
    assert [t.get_text() for t in names] == [f"s{i:02d}" for i in range(plots.NAMED)]
    places = sorted(t.xyann[1] for t in names)
    assert places[0] >= 0 and all(b - a > 0.02 for a, b in zip(places, places[1:]))
    assert "grey: 5 others" in [t.get_text() for t in axes.texts]


def test_nothing_to_report_is_said(tmp_path):
    with pytest.raises(SamplersError, match="cannot be read"):
        write_report(tmp_path / "nowhere")
    (tmp_path / "cells.jsonl").write_bytes(b"")
    with pytest.raises(SamplersError, match="nothing to report"):
        write_report(tmp_path)


def test_conflicts_are_the_cells_that_break_a_rule():
    grid = problems.create("sudoku4").sample_truth(1, 0)[0].tolist()
    assert conflicts(grid) == set()
    wrong = [*grid[:4], *grid[4:]]
    wrong[0] = wrong[1]
    assert {0, 1} <= conflicts(wrong)


def test_small_parts():
    assert [number(v) for v in (0.0, 0.216273, 15.74, 1234.5, 2e-6, math.nan, -0.991)] == [
        "0", "0.216", "15.7", "1,234", "2.0e-06", "–", "-0.991",
    ]  # fmt: skip
    for x in (torch.arange(320).reshape(20, 16) % 17, torch.randn(1000, 2), torch.randn(9, 8, 8)):
        back = unpack(pack(x))
        assert len(back) == (512 if x.shape[1:] == (2,) else 8)
        torch.testing.assert_close(back, x[: len(back)], atol=2e-3, rtol=1e-3)
    from matplotlib import image

    pixels = torch.randint(0, 255, (5, 7, 3), dtype=torch.uint8).numpy()
    import io

    assert (image.imread(io.BytesIO(png(pixels))) * 255).round().astype("uint8").tolist() == pixels.tolist()
