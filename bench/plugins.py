"""How long `import samplers` and `samplers list` take with 0, 1 and 50 plug-in packages, in fresh processes.

    python bench/plugins.py [--runs 9] [--no-save]

The packages are folders with the metadata that pip leaves, in a temporary folder on PYTHONPATH. Each has a sampler by entry
point and a module of hooks that registers a grid, and importing any of their modules would take a second. After each run the
process says which modules it has loaded: no plug-in's, and torch in neither case. Saved are medians and the range of all runs, of
the seconds on the clock and of those of the processor: on a machine that does other work as well the second says more.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
COUNTS = (0, 1, 50)
COMMANDS = {
    "import samplers": "import samplers",
    "samplers list": "from samplers.cli import main\nassert main(['list']) == 0",
    "samplers list --kind grids": "from samplers.cli import main\nassert main(['list', '--kind', 'grids']) == 0",
}
MODULE = '''import time

from samplers import Sampler, hookimpl

time.sleep(1)


class One(Sampler):
    """A sampler that is listed and never run."""

    name, family, cite, summary = "planted_{i}", "masked", "nobody", "one of many"


def grid_{i}(span):
    """A grid that is listed and never used."""
    return span.ramp()


@hookimpl
def register_grids(register):
    register(grid_{i})
'''
AFTER = """
import json, sys
print(json.dumps([name for name in sys.modules if name.startswith("planted_") or name in ("torch", "numpy")]), file=sys.stderr)
"""


def plant(folder, count):
    """Install `count` packages into a folder."""
    for i in range(count):
        (folder / f"planted_{i}.py").write_text(MODULE.format(i=i))
        info = folder / f"zoo_planted_{i}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: zoo-planted-{i}\nVersion: 1.0\n")
        groups = f"[samplers]\nplanted_{i} = planted_{i}:One\n\n[samplers.plugins]\nplanted_{i} = planted_{i}\n"
        (info / "entry_points.txt").write_text(groups)


def measure(folder, code, count):
    """Seconds of a fresh process, on the clock and of the processor; an error if it loaded or listed what it should not."""
    env = os.environ | {"PYTHONPATH": os.pathsep.join((str(folder), str(ROOT))), "OMP_NUM_THREADS": "1"}
    env.pop("SAMPLERS_PLUGINS", None)
    begun, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run([sys.executable, "-c", code + AFTER], env=env, cwd=folder, capture_output=True, text=True)
    seconds, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if done.returncode:
        raise SystemExit(done.stderr)
    loaded = json.loads(done.stderr.splitlines()[-1])
    assert not loaded, f"{code!r} loaded {loaded}"
    named = "planted_" if "grids" not in code else "grid_"
    listed = sum(line.startswith(named) for line in done.stdout.splitlines())
    assert listed == (count if "list" in code else 0), f"{listed} of {count} plug-ins are listed by {code!r}"
    return seconds, processor


def middle(values):
    kept = sorted(values)
    return {"median": round(statistics.median(kept), 4), "least": round(kept[0], 4), "most": round(kept[-1], 4)}


def main():
    from kernels import RESULTS, facts, slug

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9, help="processes per case")
    parser.add_argument("--no-save", action="store_true", help="print only")
    options = parser.parse_args()
    found = {}
    for count in COUNTS:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            plant(folder, count)
            runs = {what: [] for what in COMMANDS}
            for _ in range(options.runs + 1):  # the first one writes bytecode
                for what, code in COMMANDS.items():
                    runs[what].append(measure(folder, code, count))
        for what, seconds in runs.items():
            clock, processor = (middle(column) for column in zip(*seconds[1:]))
            found.setdefault(what, {})[count] = {"clock": clock, "processor": processor}
            print(
                f"{what:<28} {count:>3} plug-ins: median {clock['median']:.3f} s ({clock['least']:.3f} to {clock['most']:.3f}), "
                f"of the processor {processor['median']:.3f} s"
            )
    if not options.no_save:
        path = RESULTS / slug() / "plugins.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        about = {"machine": facts(), "runs": options.runs, "seconds": found}
        path.write_text(json.dumps(about, indent=1) + "\n")
        print("saved", path)


if __name__ == "__main__":
    main()
