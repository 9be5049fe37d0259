"""bench/kernels.py and bench/side_by_side.py: what the table says is what was measured."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

sys.path.append(str(Path(__file__).parents[2] / "bench"))
import kernels
import side_by_side


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("AMD EPYC", "epyc"),
        ("AMD EPYC 7R13 Processor", "epyc-7r13"),
        ("Intel(R) Xeon(R) Platinum 8480+", "xeon-platinum-8480+"),
        ("Intel(R) Core(TM) i7-9750H CPU @ 2.60GHz", "core-i7-9750h"),
        ("AMD Ryzen 9 7950X 16-Core Processor", "ryzen-9-7950x"),
        ("", "cpu"),
    ],
)
def test_slug(name, expected, monkeypatch):
    monkeypatch.setattr(kernels.machine, "cpu_model", lambda: name)
    monkeypatch.setattr(kernels.os, "cpu_count", lambda: 4)
    monkeypatch.setattr(kernels.ops, "status", lambda: {"isa": "avx2"})
    assert kernels.slug() == f"{expected}-4core-avx2"


def row(name, median, **extra):
    return {"name": name, "group": "g", "stats": {"median": median, "iqr": 0.0}, "extra_info": extra}


def test_table():
    rows = [row("floor", 1e-3, floor=True, bytes=10**7), row("ours, all", 1.5e-3, bytes=10**7)]
    rows += [row("test_x[eager-T=0]", 0.3, bytes=10**7, disturbed=2)]
    result = {"machine": {"threads": 2}, "datetime": "2026-01-01T", "benchmarks": rows}
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(kernels.table("suite", result))
    lines = {
        line.split("│")[1].strip(): line.split("│")[2:] for line in console.export_text().splitlines() if "│" in line
    }
    cells = {name: [cell.strip() for cell in line] for name, line in lines.items()}
    assert cells["floor"][:6] == ["1", "0", "1", "10.0", "100 %", ""]
    assert cells["ours, all"][:6] == ["1.5", "0", "1.5", "6.67", "67 %", ""]
    assert cells["test_x[eager-T=0]"][:6] == ["300*", "0", "300", "0.0333", "0 %", "200"]


class Recorder(SimpleNamespace):
    def _make_stats(self, iterations):
        row = SimpleNamespace(name=self.name, info=self.extra_info, seconds=[], iterations=iterations)
        row.update = row.seconds.append
        self.rows.append(row)
        return row


def test_race_takes_turns_and_repeats_what_was_disturbed(monkeypatch):
    """Time is made up: "slow" takes two seconds, and the machine is disturbed during the first 3 timed rounds of "a"."""
    calls, noisy = [], [False, True, True, True]
    durations = {"a": 0.2, "slow": 2.0}

    def measure(call, iterations):
        call()
        name = calls[-1]
        return durations[name], not (name == "a" and noisy and noisy.pop(0))

    monkeypatch.setattr(side_by_side, "measure", measure)
    bench = Recorder(disabled=False, name="test", fullname="f::test", rows=[])
    side_by_side.race(bench, "g", {n: lambda n=n: calls.append(n) for n in durations}, rounds=4, slow=2, bytes=5)
    a, slow = bench.rows
    assert (a.name, len(a.seconds), a.info["disturbed"], a.info["floor"]) == ("a", 4, 0, True)
    assert (slow.name, len(slow.seconds), slow.info["floor"], slow.info["bytes"]) == ("slow", 2, False, 5)
    assert calls[4:8] == ["a", "slow", "a", "slow"]  # after one call and one timing of each
    assert calls.count("a") == 2 + 4 + 3
