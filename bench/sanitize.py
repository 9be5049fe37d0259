"""A small round through every CUDA kernel, for compute-sanitizer: every format, aligned and not, few rows and many.

    compute-sanitizer --tool memcheck python bench/sanitize.py
    python bench/sanitize.py --names       # which kernels of csrc/cuda it starts; exit status 1 if one is missing
    python bench/sanitize.py --rehearse    # on the CPU, to try the script itself

Numbers are made on the CPU, so that the sanitizer has torch's own kernels to follow as little as possible.
"""

import re
import sys
from pathlib import Path

import torch

from samplers import ops

REHEARSAL = "--rehearse" in sys.argv
GPU = "cpu" if REHEARSAL else "cuda"
WANT = ("confidence", "margin", "entropy", "lse", "given")
# Beyond these counts a row is not shared by several blocks. The sanitizer is slow, so vocabularies are small.
ROWS_AND_VOCABULARIES = ((3, 20003), (2, 131), (300, 1030))


def randn(*shape):
    return torch.randn(*shape).mul(4)


def masked_softmax(dtype):
    for rows, vocab in ROWS_AND_VOCABULARIES:
        logits, guidance = (randn(rows, vocab).to(dtype).to(GPU) for _ in range(2))
        common = {
            "uniform": torch.rand(rows, dtype=torch.float64).to(GPU),
            "given": torch.randint(vocab, (rows,)).to(GPU),
            "forbid": torch.tensor([vocab - 1, 3]).to(GPU),
            "want": WANT,
        }
        for temperature in (0.0, 0.7, 1.0):
            ops.masked_softmax(logits, temperature=temperature, **common)
        ops.masked_softmax(logits, temperature=0.7, guidance=guidance, cfg_scale=1.0, **common)
        ops.masked_softmax(logits, temperature=1.0, guidance=guidance, cfg_scale=1.0, **common)
        ops.masked_softmax(logits, temperature=0.7, top_k=20, top_p=0.9, **common)
        ops.masked_softmax(logits, temperature=0.7, uniform=common["uniform"])
        ops.masked_softmax(logits, temperature=1.0, uniform=common["uniform"])
        ops.masked_softmax(logits, want=())
    if not REHEARSAL:  # out of range: told by the status, never read
        index = torch.tensor([1, -1, 99]).to(GPU)
        assert ops.masked_softmax(randn(2, 1500).to(dtype).to(GPU), index).status.tolist() == [0, 3, 3]


def headless(dtype):
    zoo = torch.ops.sampler_zoo
    for rows, vocab in ROWS_AND_VOCABULARIES:
        logits, guidance = (randn(rows, vocab).to(dtype).to(GPU) for _ in range(2))
        real = torch.empty(rows, 7, dtype=torch.float64).to(GPU)
        whole = torch.empty(rows, 3, dtype=torch.int64).to(GPU)
        uniform = torch.rand(rows, dtype=torch.float64).to(GPU)
        given = torch.randint(vocab, (rows,)).to(GPU)
        forbid = torch.tensor([vocab - 1, 3]).to(GPU)
        for temperature, cfg, want in (
            *((T, cfg, want) for T in (0.0, 0.7, 1.0) for cfg in (0.0, 1.0) for want in (31, 1)),
            (0.7, 0.0, 0),
            (0.0, 0.0, 0),
        ):
            u, other = uniform if temperature > 0 else None, guidance if cfg else None
            for begin in range(0, vocab, 2048):
                tile = slice(begin, min(begin + 2048, vocab))
                zoo.headless_fold_(
                    logits[:, tile], begin, real, whole, u, temperature, 1.0, forbid,
                    other if other is None else other[:, tile], cfg, given if want & 16 else None, want,
                )  # fmt: skip
            zoo.headless_finish(real, whole, temperature, 1.0, want)


def caches(dtype, widths):
    """Words of 16 to 1 bytes, by dtype and widths."""
    layers, batch, heads, length, n = 2, 3, 2, 300, 41
    key, value = (torch.ones(layers, batch, heads, length, w).to(dtype).to(GPU) for w in widths)
    new = [torch.ones(layers, batch, heads, n, w).to(dtype).to(GPU) for w in widths]
    lengths, count, start = (torch.tensor(x).to(GPU) for x in ([0, 7, length - n], [n, 0, 5], [3, 0, 9]))
    index = torch.randint(-2, length, (batch, n)).to(GPU)
    rows = torch.randint(batch, (batch, n)).to(GPU)
    ops.kv_append_(key, value, *new, lengths, count)
    ops.kv_replace_(key, value, *new, start)
    ops.kv_replace_(key, value, *new, length - n, count)
    ops.kv_scatter_(key, value, *new, index)
    ops.kv_gather(key, value, index)
    ops.kv_gather(key, value, index, rows=rows)
    lengths.fill_(length - 1)
    ops.kv_compact_(key, value, (torch.rand(batch, length) < 0.6).to(GPU), lengths)
    source = torch.tensor([2, 2, 0]).to(GPU)
    ops.kv_select_rows_(key, value, source, lengths)
    ops.kv_select_rows_(key, value, source)


def selections(dtype):
    for rows, length in ((3, 70), (2, 9001)):  # the keys of long rows are not kept in shared memory
        score = torch.randint(8, (rows, length)).to(dtype).div(8).to(GPU)
        candidate = (torch.rand(rows, length) < 0.8).to(GPU)
        x, token = torch.zeros(rows, length, dtype=torch.int64).to(GPU), torch.randint(9, (rows, length)).to(GPU)
        k = torch.randint(length, (rows,)).to(GPU)
        ops.commit_(x, token, score, candidate, k=k)
        ops.remask_(x, score, candidate, 7, threshold=0.5)
        ops.select(score, candidate, factor=1.0, least=1)
        ops.select(score, candidate, budget=5.0, lowest=True)
        slots = ops.select_slots(score, candidate, slot=4, threshold=0.5, start=3)
        ops.accept_slots_(x, token, score, slots.chosen, candidate, slot=4, threshold=0.3, start=3, eos=5)


def uniforms():
    who = [torch.arange(5).to(GPU) for _ in range(3)]
    ops.row_uniforms(*who, length=77)
    where = torch.tensor([0, 4, 2] if REHEARSAL else [0, 5, -1]).to(GPU)
    ops.row_uniforms(*who, which=where, position=where)


def normals():
    who = [torch.arange(5).to(GPU) for _ in range(3)]
    for dtype in (torch.float32, torch.float64):
        ops.row_normals(*who, length=77, dtype=dtype)


def combinations():
    for dtype in (torch.float32, torch.float64):
        t = torch.randn(3, 701).to(dtype).to(GPU)
        for count in range(1, 6):
            ops.combine(*(t, 0.5) * count)


def every_kernel():
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        masked_softmax(dtype)
        headless(dtype)
    for dtype, widths in (
        (torch.bfloat16, (64, 8)),
        (torch.float32, (3, 5)),
        (torch.float16, (3, 1)),
        (torch.int8, (7, 16)),
    ):
        caches(dtype, widths)
    for dtype in (torch.float32, torch.float64):
        selections(dtype)
    uniforms()
    normals()
    combinations()
    if not REHEARSAL:
        torch.cuda.synchronize()


def kernels_in_sources():
    folder = Path(__file__).parent.parent / "csrc" / "cuda"
    text = "\n".join(path.read_text() for path in sorted(folder.glob("*.cuh")))
    return sorted(set(re.findall(r"__global__ void __launch_bounds__\(.*\) (\w+)\(", text)))


def missing_kernels():
    """Names of kernels in csrc/cuda that this script does not start, as torch's profiler sees it."""
    activity = torch.profiler.ProfilerActivity
    with torch.profiler.profile(activities=[activity.CPU, *([] if REHEARSAL else [activity.CUDA])]) as profile:
        every_kernel()
    started = {event.key for event in profile.key_averages() if "samplers::" in event.key}
    names = kernels_in_sources()
    print(f"{len(names)} kernels in csrc/cuda: {', '.join(names)}; {len(started)} kinds of them started")
    return [name for name in names if not any(re.search(rf"\b{name}\b", key) for key in started)]


def main():
    if not (REHEARSAL or torch.cuda.is_available()):
        sys.exit("bench/sanitize.py needs a GPU")
    torch.manual_seed(0)
    if "--names" in sys.argv:
        missing = missing_kernels()
        if missing and not REHEARSAL:
            sys.exit(f"never started: {', '.join(missing)}")
    else:
        every_kernel()
    print("done")


if __name__ == "__main__":
    main()
