"""This checkout against another commit, in one run: what a step and an op cost, round by round in turns.

    python bench/against.py REV [--only driver|ops] [--pairs 3] [--rounds 9] [--no-save]

REV is checked out into a temporary folder and its extension is built there (without CUDA). Each side is a process of its own
that waits for the name of a case; a round times the case on one side and then on the other, so whatever else the machine
does hits both alike. Two processes that run the same code differ as well, by where their memory lies (a third was seen on
large bfloat16 rows), so all cases are timed in several pairs of fresh processes. The table shows medians in microseconds
and, as "now / then", the median over the pairs of the median ratio of a pair's rounds, with the smallest and largest pair.
Results are kept as bench/results/MACHINE/against.json; cases that are not run again stay there.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).resolve().parent
SAMPLERS = ("low_confidence", "threshold", "entropy_bound", "hierarchy", "klass", "credit", "ancestral", "radd")


def cases() -> dict[str, Callable[[], Callable[[], float]]]:
    """Name -> a function that sets a case up and returns what times it once, in seconds."""
    import torch

    import samplers

    ops = samplers.ops
    seeded = torch.Generator().manual_seed(0)

    def step(name: str, rows: int, length: int, vocab: int, temperature: float) -> Callable[[], float]:
        logits = torch.randn(rows, length, vocab, generator=seeded) * 2
        model = samplers.TokenDenoiser.wrap(lambda ids: logits[: len(ids)], vocab_size=vocab, mask_id=vocab - 1)
        run = {"gen_length": length, "batch": rows, "steps": 32 if vocab < 1000 else 8, "temperature": temperature}
        if name == "threshold":
            run["threshold"] = 2.0  # one position per step, so that both sides take the same steps

        def once() -> float:
            out = samplers.sample(model, name, **run)
            return out.seconds.sampler / out.steps

        return once

    def timed(call: Callable[[], object], times: int) -> Callable[[], float]:
        def once() -> float:
            start = time.perf_counter()
            for _ in range(times):
                call()
            return (time.perf_counter() - start) / times

        return once

    def softmax(rows: int, vocab: int, dtype: torch.dtype, temperature: float, **how: float) -> Callable[[], float]:
        logits = (torch.randn(rows, vocab, generator=seeded) * 2).to(dtype)
        u = torch.rand(rows, generator=seeded, dtype=torch.float64)
        forbid = torch.tensor([vocab - 1])
        call = {"uniform": u, "temperature": temperature, "forbid": forbid, "want": ("confidence",), **how}
        return timed(lambda: ops.masked_softmax(logits, **call), 1 if vocab * rows > 1e6 else 20)

    def headless(rows: int, width: int, vocab: int, temperature: float) -> Callable[[], float]:
        hidden, weight = torch.randn(rows, width, generator=seeded), torch.randn(vocab, width, generator=seeded) * 0.05
        u = torch.rand(rows, generator=seeded, dtype=torch.float64)
        return timed(lambda: ops.headless_softmax(hidden, weight, uniform=u, temperature=temperature), 1)

    def commit(rows: int, length: int) -> Callable[[], float]:
        score = torch.rand(rows, length, generator=seeded)
        x, token = torch.full((rows, length), 9), torch.zeros(rows, length, dtype=torch.int64)
        open_ = torch.ones(rows, length, dtype=torch.bool)
        k = torch.full((rows,), length // 4)
        return timed(lambda: ops.commit_(x, token, score, open_, k=k), 50)

    def append() -> Callable[[], float]:
        key = torch.zeros(8, 1, 8, 1024, 64, dtype=torch.bfloat16)
        value, lengths = torch.zeros_like(key), torch.zeros(1, dtype=torch.int64)
        new = torch.randn(8, 1, 8, 32, 64, generator=seeded).bfloat16()

        def call() -> None:
            lengths.zero_()
            ops.kv_append_(key, value, new, new, lengths, None)

        return timed(call, 50)

    table: dict[str, Callable[[], Callable[[], float]]] = {}
    for size, (rows, length, vocab) in {"small": (1, 64, 48), "LLaDA": (8, 32, 126_464)}.items():
        for name in SAMPLERS:
            for T in (0.0, 0.7):
                label = f"driver: {size} [{rows}, {length}, {vocab}] {name} T={T:g}"
                table[label] = lambda n=name, r=rows, L=length, v=vocab, t=T: step(n, r, L, v, t)  # type: ignore[misc]
    for dtype in ("float32", "bfloat16"):
        for T in (0.0, 0.7):
            label = f"ops: masked_softmax [256, 126464] {dtype} T={T:g}"
            table[label] = lambda d=dtype, t=T: softmax(256, 126_464, getattr(torch, d), t)  # type: ignore[misc]
    table["ops: masked_softmax [32, 126464] float32 T=0.7 top_p=0.9"] = lambda: softmax(
        32, 126_464, torch.float32, 0.7, top_p=0.9
    )
    table["ops: masked_softmax [64, 48] float32 T=0"] = lambda: softmax(64, 48, torch.float32, 0.0)
    table["ops: headless_softmax [64, 1024] x [32768, 1024] float32 T=0.7"] = lambda: headless(64, 1024, 32_768, 0.7)
    table["ops: commit_ [8, 256] k=64"] = lambda: commit(8, 256)
    table["ops: commit_ [32, 4096] k=1024"] = lambda: commit(32, 4096)
    table["ops: kv_append_ 32 rows, 8 layers of 8 x 64, bfloat16"] = append
    return table


def worker() -> None:
    """Times one case per line of standard input."""
    import torch

    torch.set_num_threads(1)
    known, current = cases(), None
    print(json.dumps(list(known)), flush=True)
    once: Callable[[], float] = time.perf_counter
    for line in sys.stdin:
        name = line.strip()
        if name != current:
            current, once = name, known[name]()
            once()  # warm
        print(once(), flush=True)


class Side:
    """A process that times the cases of one checkout."""

    def __init__(self, root: Path):
        env = os.environ | {"PYTHONPATH": str(root), "SAMPLERS_PLUGINS": "none"}
        command = [sys.executable, "-P", str(HERE / "against.py"), "--worker"]
        self.process = subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.cases: list[str] = json.loads(self._read())

    def _read(self) -> str:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"a worker ended with exit code {self.process.wait()}; its error is above")
        return line

    def time(self, case: str) -> float:
        assert self.process.stdin is not None
        self.process.stdin.write(case + "\n")
        self.process.stdin.flush()
        return float(self._read())


def compare(then: Side, now: Side, case: str, rounds: int) -> dict[str, float]:
    """Medians in seconds, and the median of the ratios of single rounds; sides take turns in going first."""
    a, b = [], []
    for i in range(rounds + 1):
        for side, times in ((then, a), (now, b))[:: 1 if i % 2 else -1]:
            times.append(side.time(case))
    a, b = a[1:], b[1:]  # the first round warms up
    ratio = statistics.median(y / x for x, y in zip(a, b))
    return {"then": statistics.median(a), "now": statistics.median(b), "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("rev", nargs="?", metavar="REV", help="the commit to compare with")
    parser.add_argument("--only", choices=("driver", "ops"), help="only these cases")
    parser.add_argument("--rounds", type=int, default=9, help="rounds per case and pair (9)")
    parser.add_argument("--pairs", type=int, default=3, help="pairs of fresh processes (3)")
    parser.add_argument("--no-save", action="store_true", help="do not write bench/results")
    parser.add_argument("--built", metavar="FOLDER", help="a checkout of REV whose extension is built already")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return worker()
    if not args.rev:
        parser.error("name the commit to compare with")
    root = HERE.parent
    with tempfile.TemporaryDirectory() as folder:
        other = Path(args.built or folder)
        if not args.built:
            subprocess.run(["git", "worktree", "add", "--quiet", "--detach", folder, args.rev], cwd=root, check=True)
            build = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
            env = os.environ | {"SAMPLERS_CUDA": "0", "SAMPLERS_NATIVE": "1"}
            print(f"building the extension of {args.rev} (about a minute)", flush=True)
            subprocess.run(build, cwd=folder, env=env, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            found: dict[str, list[dict[str, float]]] = {}
            for pair in range(args.pairs):
                sides = [Side(path) for path in ((other, root) if pair % 2 == 0 else (root, other))]
                then, now = sides if pair % 2 == 0 else sides[::-1]
                chosen = [c for c in now.cases if c in then.cases and (args.only is None or c.startswith(args.only))]
                for case in chosen:
                    found.setdefault(case, []).append(compare(then, now, case, args.rounds))
                    print(f"pair {pair + 1}: {case}: {found[case][-1]['ratio']:.2f}", file=sys.stderr, flush=True)
                for side in sides:
                    side.process.kill()
        finally:
            if not args.built:
                subprocess.run(["git", "worktree", "remove", "--force", folder], cwd=root, check=True)
    median = {c: {k: statistics.median(r[k] for r in runs) for k in runs[0]} for c, runs in found.items()}
    print(f"| microseconds, medians | {args.rev} | now | now / then | pairs |\n|---|---|---|---|---|")
    for case, runs in found.items():
        m, ratios = median[case], sorted(r["ratio"] for r in runs)
        m |= {"least": ratios[0], "most": ratios[-1]}
        print(
            f"| {case} | {1e6 * m['then']:.1f} | {1e6 * m['now']:.1f} | {m['ratio']:.2f} | {ratios[0]:.2f} to {ratios[-1]:.2f} |"
        )
    if not args.no_save:
        sys.path.insert(0, str(HERE))
        from kernels import RESULTS, facts, slug

        path = RESULTS / slug() / "against.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        before = json.loads(path.read_text()) if path.exists() else {}
        kept = before.get("seconds", {}) if before.get("against") == args.rev else {}
        record = {"machine": facts(), "against": args.rev, "seconds": kept | median}
        path.write_text(json.dumps(record, indent=1) + "\n")
        print(f"\n{path.relative_to(root)}")


if __name__ == "__main__":
    main()
