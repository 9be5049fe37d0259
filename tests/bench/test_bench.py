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
from samplers.bench.collect import Point
from samplers.bench.estimates import Combined, combine, number
from samplers.bench.records import pack, unpack
from samplers.bench.request import SHOWN
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


@pytest.mark.parametrize("cut", [2, 5, 200])
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


def test_every_fresh_start_keeps_what_was_there(tmp_path):
    contents = []
    for k in range(3):
        run([SMALL], tmp_path, fresh=k > 0)
        contents.append((tmp_path / "cells.jsonl").read_bytes())
    backups = [tmp_path / name for name in ("cells.jsonl.bak", "cells.jsonl.bak.2")]
    assert [b.read_bytes() for b in backups] == contents[:2]
    (tmp_path / "cells.jsonl").write_bytes(b"")
    run([SMALL], tmp_path, fresh=True)
    assert not (tmp_path / "cells.jsonl.bak.3").exists()  # there was nothing to keep


def test_a_whole_last_line_without_its_newline_counts(tmp_path):
    run([SMALL], tmp_path)
    before = lines(tmp_path)
    (tmp_path / "cells.jsonl").write_bytes(b"".join(before)[:-1])
    heard = []
    again = run([SMALL], tmp_path, started=lambda cells, store: heard.extend(store.notes))
    assert (again.reused, heard) == (8, [])
    assert run([Request(**{**vars(SMALL), "nfe": (2, 4, 8)})], tmp_path).planned == 12
    assert lines(tmp_path)[:8] == before  # and the next line did not run into it


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda r: r.pop("score"), "it has no 'score'"),
        (lambda r: r["score"].pop("estimates"), "'score' has no 'estimates'"),
        (lambda r: r["score"]["estimates"]["tv"].pop("low"), "tv has no 'low'"),
        (lambda r: r.update(nfe=None), "'nfe' is NoneType, not an object"),
        (lambda r: r["seconds"].update(sampler="fast"), "its 'sampler' is str"),
        (lambda r: r.pop("machine"), "it has no 'machine'"),
        (lambda r: r.update(status="failed"), "it has no 'error'"),
    ],
)
def test_a_damaged_cell_is_named_and_runs_again(tmp_path, damage, words):
    run([SMALL], tmp_path)
    before = lines(tmp_path)
    record = json.loads(before[2])
    damage(record)
    (tmp_path / "cells.jsonl").write_bytes(b"".join([*before[:2], json.dumps(record).encode() + b"\n", *before[3:]]))
    _, notes = write_report(tmp_path)
    (note,) = [n for n in notes if "damaged" in n]
    assert f"line 3 of {tmp_path / 'cells.jsonl'} is damaged: " in note
    assert words in note
    heard = []
    again = run([SMALL], tmp_path, started=lambda cells, store: heard.extend(store.notes))
    assert again.planned - again.reused == 1
    assert heard == [note]
    assert run([SMALL], tmp_path, started=lambda cells, store: heard.extend(store.notes)).reused == 8
    assert heard == [note]  # the sound line replaces the damaged one: nothing is left to say


# a full disk


def test_a_full_disk_in_the_middle_of_a_cell(cli, tmp_path):
    """The system itself refuses the write: a limit on the size of files acts as a disk of that size."""
    resource = pytest.importorskip("resource")
    base = ("bench", "--problem", "sudoku4", "--samplers", "radd", "--nfe", "2,4,8", "--seeds", 1, "--rows", 16)
    base = (*base, "--out", tmp_path)
    assert cli(*base[:-1], tmp_path / "probe")[0] == 0
    first = lines(tmp_path / "probe")[0]
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(first) + 700, old[1]))
    try:
        code, _, err = cli(*base)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
    assert code == 2
    assert f"samplers: error: {tmp_path} cannot be written: File too large" in err
    assert "1 finished cell is safe in cells.jsonl" in err
    assert err.count("\n") == 1
    (line,) = lines(tmp_path)  # nothing of the second cell is left
    assert json.loads(line)["score"] == json.loads(first)["score"]
    code, out, _ = cli(*base)
    assert code == 0
    assert "2 cells run" in out and "1 were there already" in out


@pytest.mark.parametrize("name", ["sweep.json", "table.md", "pareto_nfe.png", "report.html"])
def test_a_full_disk_costs_no_file_that_was_there(cli, tmp_path, full_disk, name):
    base = ("bench", "--problem", "sudoku4", "--samplers", "radd", "--nfe", 2, "--seeds", 1, "--rows", 16)
    base = (*base, "--out", tmp_path)
    assert cli(*base)[0] == 0
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    for argv in (base, ("bench", "--report", tmp_path)):
        if name == "sweep.json" and argv is not base:
            continue
        with full_disk(name):
            code, _, err = cli(*argv)
        assert code == 2
        assert f"{tmp_path} cannot be written: No space left on device" in err
        assert "1 finished cell is safe" in err
        assert err.count("\n") == 1
        assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


# what may be compared


def test_other_conditions_are_other_sections(tmp_path, cli):
    from samplers.bench.collect import sections
    from samplers.problems.sudoku import tv_floor

    conditions = ({}, {"temperature": 0.5}, {"rows": 200})
    for changes in conditions:
        run([Request(**{**vars(SMALL), "samplers": ("random_order",), "nfe": (4,), **changes})], tmp_path)
    found = sections(points(Store(tmp_path, write=False).records.values()))
    titles = [s.title for s in found]
    assert titles == [
        "sudoku4, masked, 64 rows per run, temperature 1",
        "sudoku4, masked, 64 rows per run, temperature 0.5",
        "sudoku4, masked, 200 rows per run, temperature 1",
    ]
    for section in found:
        assert len(section.points) == 1
        assert {r["rows"] for r in section.points[0].records} == {section.conditions["rows"]}
        # The reference is that of so many rows.
        assert section.points[0].quality.truth == pytest.approx(tv_floor(section.conditions["rows"], 288)[0])
    code, out, _ = cli("bench", "--report", tmp_path)
    page, table = (tmp_path / "report.html").read_text(), (tmp_path / "table.md").read_text()
    assert [line for line in table.splitlines() if line.startswith("## ")] == [f"## {t}" for t in titles]
    heads = re.findall(r"<h2>sudoku4<small>(.*?)</small>", page)
    assert ["temperature 0.5" in h for h in heads] == [False, True, False]
    assert ["200 rows per run" in h for h in heads] == [False, False, True]
    panels = plots.figure(
        [(s.title, s.points) for s in found], "nfe", plots.styles([p for s in found for p in s.points])
    )
    assert [axes.get_title("left") for axes in panels.axes] == titles
    again = ("bench", "--problem", "sudoku4", "--samplers", "random_order", "--nfe", 4, "--seeds", 2, "--rows", 64)
    code, out, _ = cli(*again, "--batch", 40, "--out", tmp_path)
    assert code == 0
    assert all(title in out for title in titles)


def test_options_that_differ_are_in_the_name(tmp_path):
    for a in ("0.3", "1"):
        options = (f"beta_energy.a={a}", "beta_energy.b=1")
        run([Request(("sudoku4",), ("beta_energy", "radd"), nfe=(2, 4), seeds=1, rows=32, options=options)], tmp_path)
    made = points(Store(tmp_path, write=False).records.values())
    assert sorted((p.sampler, p.value) for p in made) == [
        ("beta_energy (a=0.3)", 2), ("beta_energy (a=0.3)", 4), ("beta_energy (a=1)", 2), ("beta_energy (a=1)", 4),
        ("radd", 2), ("radd", 4),
    ]  # fmt: skip


def test_seeds_that_differ_are_a_range(tmp_path):
    run([Request(**{**vars(SMALL), "seeds": 3, "nfe": (2,)}), SMALL], tmp_path)
    page, _ = write_report(tmp_path)
    assert "2 to 3 seeds" in page.read_text()


def test_the_report_names_every_command_and_machine(tmp_path):
    for command in ("samplers bench one", "samplers bench two", "samplers bench one"):
        run([SMALL], tmp_path, command=command)
    page, notes = write_report(tmp_path)
    assert '<pre class="cmd">samplers bench one\nsamplers bench two</pre>' in page.read_text()
    assert notes == []
    before = lines(tmp_path)
    record = json.loads(before[0])
    record["machine"]["threads"] = 77
    (tmp_path / "cells.jsonl").write_bytes(b"".join([json.dumps(record).encode() + b"\n", *before[1:]]))
    page, notes = write_report(tmp_path)
    assert notes == ["cells of different machines or threads are here: their seconds cannot be compared"]
    assert "77 threads" in page.read_text() and notes[0] in page.read_text()


def test_two_versions_of_the_library_are_kept_apart(tmp_path, monkeypatch):
    from samplers.bench.collect import sections

    run([SMALL], tmp_path)
    monkeypatch.setattr(registry, "version", lambda: "99.1")
    heard = []
    again = run([SMALL], tmp_path, started=lambda cells, store: heard.extend(store.notes))
    assert again.reused == 0
    assert len(heard) == 1 and "is 99.1 now; 8 cells that it measured run again" in heard[0]
    made = points(Store(tmp_path, write=False).records.values())
    assert len(made) == 8
    assert all(len({r["library"] for r in p.records}) == 1 for p in made)
    assert [s.title.rpartition(", ")[2] for s in sections(made)][1] == "sampler-zoo 99.1"
    page, _ = write_report(tmp_path)
    assert "sampler-zoo 99.1" in page.read_text()


# code that changes

SOURCE = """
from dataclasses import dataclass
from samplers.masked.random_order import RandomOrder
import edited_helper

@dataclass(frozen=True)
class Edited(RandomOrder):
    name = "edited"

    def step(self, predict, state):
        return edited_helper.same(super().step(predict, state))
"""
HELPER = "def same(x):\n    return x\n"


@pytest.fixture
def edited(tmp_path, monkeypatch):
    """A sampler in a file of its own with a helper in another one, and a function that edits and loads them again."""
    import importlib
    import sys

    folder = tmp_path / "code"
    folder.mkdir()
    monkeypatch.syspath_prepend(folder)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)

    def load(source=SOURCE, helper=HELPER):
        (folder / "edited_sampler.py").write_text(source)
        (folder / "edited_helper.py").write_text(helper)
        for name in ("edited_sampler", "edited_helper"):
            sys.modules.pop(name, None)
        importlib.invalidate_caches()
        cls = importlib.import_module("edited_sampler").Edited
        monkeypatch.setitem(
            registry._get().own["samplers"], "edited", registry.Entry("edited", "test", "1", cls, "masked")
        )

    load()
    yield load
    for name in ("edited_sampler", "edited_helper"):
        sys.modules.pop(name, None)


def test_code_that_has_changed_is_run_again(tmp_path, edited):
    request = Request(("sudoku4",), ("edited", "radd"), nfe=(2, 4), seeds=2, rows=16)
    out = tmp_path / "out"
    heard = []

    def again():
        heard.clear()
        done = run([request], out, started=lambda cells, store: heard.extend(store.notes))
        return done.planned - done.reused

    def used():
        made = [p for p in points(Store(out, write=False).records.values()) if p.sampler == "edited"]
        assert [(p.value, len(p.records)) for p in made] == [(2, 2), (4, 2)]
        return {r["code"] for p in made for r in p.records}

    assert again() == 8 and heard == []
    first = used()
    assert again() == 0
    edited(SOURCE + "\n\n# another rule\n")
    assert again() == 4
    assert heard == ["edited: code changed since; 4 cells that it measured run again"]
    second = used()
    assert len(second) == 1 and second != first
    assert "edited: 4 cells of earlier code left out" in write_report(out)[1]
    edited(SOURCE, HELPER + "\n\n# another helper\n")  # what it uses of its own folder is its code
    assert again() == 4
    assert used() not in (first, second)
    edited()
    assert again() == 0  # changed back: what was measured then counts again
    assert used() == first
    assert again() == 0


def test_a_metric_that_has_changed_is_run_again(tmp_path, monkeypatch, cli):
    import sys

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    text = "def mean(sample):\n    return sample.x.double().mean(1)\n"
    base = ("bench", "--denoiser", "digits-mdm", "--samplers", "radd", "--nfe", 2, "--seeds", 1, "--rows", 4)
    base = (*base, "--metric", "edited_metric:mean", "--out", "o")
    for content, said in (
        (text, "1 cell run"),
        (text, "0 cells run"),
        (text.replace("mean(1)", "sum(1)"), "1 cell run"),
    ):
        (tmp_path / "edited_metric.py").write_text(content)
        sys.modules.pop("edited_metric", None)
        code, out, err = cli(*base)
        assert code == 0, err
        assert said in out
    sys.modules.pop("edited_metric", None)
    assert "radd: code changed since" in out


# samplers that cannot be loaded


@pytest.fixture
def broken(tmp_path, monkeypatch):
    """A package with two samplers that cannot be imported: one whose source tells its family, and one without a file."""
    folder = tmp_path / "site"
    info = folder / "bad_package-1.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bad-package\nVersion: 1\n")
    (info / "entry_points.txt").write_text(
        "[samplers]\nshattered = shattered_module:Shattered\ngone = no_such_module:Gone\n"
    )
    source = 'import no_such_module\n\n\nclass Shattered:\n    name, family = "shattered", "masked"\n'
    (folder / "shattered_module.py").write_text(source)
    monkeypatch.syspath_prepend(folder)
    registry.reload()
    yield
    monkeypatch.undo()
    registry.reload()


def test_a_broken_sampler_is_said_and_the_others_run(cli, tmp_path, broken):
    base = ("bench", "--problem", "sudoku4", "--nfe", 2, "--seeds", 1, "--rows", 8, "--out", tmp_path / "out")
    reason = "bad-package 1, which is broken: ModuleNotFoundError: No module named 'no_such_module'"
    code, out, err = cli(*base, "--samplers", "shattered,radd")
    assert code == 1
    assert reason in err
    assert err.startswith("samplers: error: ") and err.count("\n") == 1
    assert "1 cell run" in out and "left out: sampler 'shattered'" in out
    assert [json.loads(line)["sampler"] for line in lines(tmp_path / "out")] == ["radd"]
    for alone in ("shattered", "masked/shattered", "gone", "masked/gone"):
        code, _, err = cli(*base, "--samplers", alone)
        assert code == 2, alone
        assert reason in err and "family" not in err, alone
    code, _, err = cli("tune", "shattered", "--problem", "sudoku4", "--x", "a=0:1:2", "--y", "b=0:1:2")
    assert code == 2 and reason in err
    code, out, err = cli(*base, "--samplers", "[rs]a*", "sh*")  # nobody asked for it by its name
    assert (code, err) == (0, "")
    assert "left out: sampler 'shattered'" in out


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
        monkeypatch.setitem(zoo.own["samplers"], cls.name, registry.Entry(cls.name, "test", "1", cls, "masked"))


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


def test_no_two_samplers_of_a_panel_look_alike():
    looks = [plots.look(i) for i in range(63)]
    assert len(set(looks)) == 63
    for a, b in itertools.combinations(looks[:28], 2):
        if a.colour == b.colour:
            assert a.line != b.line and a.marker != b.marker

    def made_by(name, level):
        q = Combined(level, level, level, 100, "lower", None)
        return [Point("p", "masked", name, "steps", s, "tv", {"tv": q}, s, 0.1, 0.0, 8, 0, ()) for s in (2, 4)]

    made = [p for k, name in enumerate(SHOWN) for p in made_by(name, 1 + k)]
    (axes,) = plots.figure([("p", made)], "nfe", plots.styles(made)).axes
    drawn = {(line.get_color(), line.get_marker()): line for line in axes.lines if len(line.get_xdata()) == 2}
    style = plots.styles(made)
    assert len({(drawn[s.colour, s.marker].get_linestyle(), s) for s in style.values()}) == len(SHOWN) == 11
    # Samplers that are grey in every plot take no colour from those that are named.
    crowd = [p for k in range(40) for p in made_by(f"a{k:02d}", 100 + k)] + made
    style = plots.styles(crowd)
    named = [t.get_text() for t in plots.figure([("p", crowd)], "nfe", style).axes[0].texts if t.get_text() in style]
    assert len(named) == plots.NAMED
    assert max(sum(style[a].colour == style[b].colour for b in named) for a in named) <= 2


# What colour-blind people see of linear RGB: Machado, Oliveira and Fernandes 2009, tables for severity 1.
SIGHT = {
    "normal": [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]


@pytest.mark.parametrize("palette", [plots.COLOURS, plots.DARK], ids=["light", "dark"])
@pytest.mark.parametrize("sight", SIGHT)
def test_the_colours_can_be_told_apart(palette, sight):
    """CIE 1976 distances of at least 15; 2.3 is what an eye just notices."""
    import numpy as np

    rgb = np.array([[int(c[k : k + 2], 16) / 255 for k in (1, 3, 5)] for c in palette])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.clip(linear @ np.array(SIGHT[sight]).T, 0, 1) @ np.array(XYZ).T / [0.95047, 1, 1.08883]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    lab = np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) >= 15


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


def test_bold_is_nearest_to_what_as_many_exact_samples_score():
    # The divergence of valid samples has a truth for each count of them: one valid sample of 720 rows has log 720, as an exact one.
    from samplers.bench.tables import best_in, columns, table_md

    def point(name, value, truth):
        tv = Combined(value / 10, 0, 1, 200, "lower", 0.1)
        kl = Combined(value, value - 1, value + 1, 200, "lower", truth)
        return Point("p", "masked", name, "steps", 4, "tv", {"tv": tv, "kl": kl}, 4, 0.1, 0.0, 8, 0, ({},))

    group = [point("spoiled", 6.58, 6.58), point("good", 1.02, 1.03)]
    column = next(c for c in columns(group) if c[0] == "kl")
    assert best_in(column, group) == {id(group[1])}
    assert "tv 0.100, kl 1.03." in table_md(group)


def test_a_table_says_how_many_rows_a_pass_of_copies_has(tmp_path):
    run([Request(("parity",), ("lopa", "random_order"), nfe=(4,), seeds=1, rows=16)], tmp_path)
    found = points(Store(tmp_path, write=False).records.values())
    from samplers.bench.tables import columns

    rows = next(c for c in columns(found) if c[0] == "rows evaluated")[2]
    assert all(rows(p) == p.nfe for p in found if p.sampler == "random_order")
    assert any(rows(p) > 2 * p.nfe for p in found if p.sampler == "lopa")
    assert "rows evaluated" not in [c[0] for c in columns([p for p in found if p.sampler == "random_order"])]


def test_a_name_that_brings_options_is_refused(tmp_path, cli):
    code, _, err = cli("bench", "--problem", "parity", "--samplers", "sched", "--rows", "8", "--out", tmp_path / "a")
    assert code == 2
    assert "'sched' is 'prophet' with options" in err
    assert "--samplers prophet -o prophet.schedule=linear -o prophet.low=0.0" in " ".join(err.split())
    assert "another name of prophet with schedule='linear', low=0.0" in cli("show", "sched")[1]
