"""Every kernel beside its floor and its peers: runs bench/test_*.py, saves what they found, prints one table.

    make bench-kernels        or  python bench/kernels.py [--only masked_softmax] [--no-peers] [--no-save]
    python bench/kernels.py --show [--machine SLUG]       the table of what is saved, nothing is run

Results are kept as bench/results/MACHINE/SUITE.json, MACHINE being processor, cores and instruction set. "x floor" is a
row's median over that of its group's floor, the least work the task allows; "x ours" how many times as long as ours a peer
takes. Compare within a group: its rows were timed in turns (bench/side_by_side.py), groups were not.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

import samplers.bench.machine as machine
from samplers import ops

HERE = Path(__file__).parent
RESULTS = HERE / "results"


def slug():
    """Processor, cores and instruction set, as a folder's name: epyc-2core-avx512."""
    name = re.sub(r"\((r|tm|c)\)|@.*|\b(amd|intel|cpu|processor|\d+-core)\b", " ", machine.cpu_model().lower())
    words = re.findall(r"[a-z0-9+]+", name) or ["cpu"]
    return "-".join([*words, f"{os.cpu_count()}core", ops.status()["isa"] or "twins"])


def facts():
    return {**machine.machine(), "cores": os.cpu_count(), **{k: ops.status().get(k) for k in ("compiler", "cuda")}}


def suites():
    return sorted(path.stem.removeprefix("test_") for path in HERE.glob("test_*.py"))


def run(suite, peers):
    """→ what pytest-benchmark found, without the times of single rounds."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        command = [
            sys.executable,
            "-m",
            "pytest",
            str(HERE / f"test_{suite}.py"),
            "-p",
            "no:cacheprovider",
            "-q",
            "-rs",
        ]
        command += ["--benchmark-enable", "--benchmark-only", f"--benchmark-json={out}"]
        env = {**os.environ, "SAMPLERS_BENCH_PEERS": str(int(peers))}
        done = subprocess.run(command, env=env, capture_output=True, text=True)
        skipped = [line for line in done.stdout.splitlines() if line.startswith("SKIPPED")]
        if done.returncode != 0 or not out.exists():
            raise SystemExit(f"{suite} failed:\n{done.stdout[-4000:]}{done.stderr[-2000:]}")
        result = json.loads(out.read_text())
    for row in result["benchmarks"]:
        for key in ("data", "outliers", "iqr_outliers", "stddev_outliers", "ld15iqr", "hd15iqr", "ops", "total"):
            row["stats"].pop(key, None)
        row.pop("options", None)
    return {"machine": facts(), "datetime": result["datetime"], "skipped": skipped, "benchmarks": result["benchmarks"]}


def is_floor(row):
    return row["extra_info"].get("floor", False)


def is_ours(row):
    return row["extra_info"].get("ours", "ours" in re.split(r"[][,\s_-]", row["name"]))


def number(x):
    return "" if x is None else f"{x:,.0f}" if x >= 100 else f"{x:.3g}" if x < 10 else f"{x:.1f}"


def table(suite, result):
    of = result.get("machine") or result["machine_info"]
    words = [f"{k} {of[k]}" for k in ("threads", "torch", "isa") if k in of]
    view = Table(title=", ".join([suite, *words, result["datetime"][:10]]), title_justify="left", header_style="bold")
    view.add_column("", overflow="fold")
    for name in ("median ms", "IQR", "x floor", "GB/s", "of floor", "x ours"):
        view.add_column(name, justify="right")
    groups = {}
    for row in result["benchmarks"]:
        groups.setdefault(row["group"] or "", []).append(row)
    for name, rows in groups.items():
        view.add_section()
        view.add_row(f"[bold]{escape(name)}")
        floor = next((r["stats"]["median"] for r in rows if is_floor(r)), None)
        ours = next((r["stats"]["median"] for r in rows if is_ours(r)), None)
        for row in rows:
            median, size = row["stats"]["median"], row["extra_info"].get("bytes")
            mine = is_floor(row) or is_ours(row)
            cells = [
                number(1e3 * median) + ("*" if row["extra_info"].get("disturbed") else ""),
                number(1e3 * row["stats"]["iqr"]),
                number(floor and median / floor),
                number(size and size / median / 1e9),
                "" if not (floor and size) else f"{100 * floor / median:.0f} %",
                "" if mine or not ours else number(median / ours),
            ]
            view.add_row("  " + escape(row["name"]), *cells, style="green" if is_ours(row) else None)
    if any(row["extra_info"].get("disturbed") for row in result["benchmarks"]):
        view.caption = "* some of its rounds ran while others used the machine"
    return view


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", action="append", choices=suites(), help="this suite; may be repeated")
    parser.add_argument(
        "--no-peers", action="store_true", help="ours and the floors, without what they are compared to"
    )
    parser.add_argument("--no-save", action="store_true", help="print only")
    parser.add_argument("--show", action="store_true", help="run nothing, print what is saved")
    parser.add_argument("--machine", default=slug(), help="whose results to show or save; default: %(default)s")
    options = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 140)
    for suite in options.only or suites():
        path = RESULTS / options.machine / f"{suite}.json"
        if options.show:
            if not path.exists():
                console.print(f"{suite}: nothing is saved for {options.machine}")
                continue
            result = json.loads(path.read_text())
        else:
            with console.status(f"{suite}: running"):
                result = run(suite, peers=not options.no_peers)
            if not options.no_save:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(result, indent=1) + "\n")
        console.print(table(suite, result))
        for line in result.get("skipped", []):
            console.print(line, style="dim")


if __name__ == "__main__":
    main()
