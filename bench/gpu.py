"""The ops on a GPU, timed with CUDA events: medians, and bytes a second as a share of the device's copy bandwidth.

    python bench/gpu.py [--json FILE]

Shares: for masked_softmax, the bytes of its logits a second over that bandwidth; of headless_softmax, the time of cuBLAS's
product over its own; of the cache's ops, the time of a copy of the same bytes; of commit_, the row loop's time.

The exit status is 1 where a bar is missed: masked_softmax at [1024, 126464] bfloat16 reads its logits at 0.85 of the copy
bandwidth or better (a copy's bytes are counted twice, read and written).
"""

import argparse
import json
import statistics
import sys

import torch

import samplers.ops as ops

BAR = 0.85


def median_ms(run, repeats=50, warm=10):
    """Median time of a call, the device's own."""
    for _ in range(warm):
        run()
    torch.cuda.synchronize()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        run()
        end.record()
        times.append((begin, end))
    torch.cuda.synchronize()
    return statistics.median(b.elapsed_time(e) for b, e in times)


def copy_bandwidth():
    """Bytes a second, read and written, of a 2 GiB device copy."""
    source = torch.empty(1 << 30, dtype=torch.int16, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.nbytes / (median_ms(lambda: target.copy_(source)) * 1e-3)


def softmax_cases():
    for rows, vocab in ((1024, 126464), (256, 126464), (32, 126464), (1, 126464), (1024, 50257)):
        for dtype in (torch.bfloat16, torch.float32):
            for scale in (1.0, 8.0):  # flat logits, where every chunk counts, and peaked ones
                yield rows, vocab, dtype, scale


def bench_softmax(floor):
    for rows, vocab, dtype, scale in softmax_cases():
        # More copies than the cache holds, taken in turn: a model's logits are not in it either.
        n = max(1, min(8, (256 << 20) // (rows * vocab * dtype.itemsize) + 1))
        copies = [torch.randn(rows, vocab, device="cuda").mul(scale).to(dtype) for _ in range(n)]
        uniform = torch.rand(rows, dtype=torch.float64, device="cuda")
        turn = iter(range(10**9))
        calls = {
            "greedy": {},
            "T=0.7": {"temperature": 0.7, "uniform": uniform},
            "T=1": {"temperature": 1.0, "uniform": uniform},
            "all": {"temperature": 0.7, "uniform": uniform, "want": ("confidence", "margin", "entropy", "lse")},
            "top_p=0.9": {"temperature": 1.0, "uniform": uniform, "top_p": 0.9},
        }
        for name, kw in calls.items():

            def call(copies=copies, turn=turn, n=n, kw=kw):
                return ops.masked_softmax(copies[next(turn) % n], **kw)

            ms = median_ms(call)
            share = rows * vocab * dtype.itemsize / (ms * 1e-3) / floor
            yield f"masked_softmax [{rows}, {vocab}] {str(dtype)[6:]} scale {scale:g} {name}", ms, share
        ms = median_ms(lambda x=copies[0]: torch.softmax(x.float(), -1).max(-1), repeats=10, warm=3)
        yield f"torch softmax+max [{rows}, {vocab}] {str(dtype)[6:]} scale {scale:g}", ms, None


def bench_headless(_):
    if not hasattr(ops, "headless_softmax"):
        return
    for rows in (256, 1024):
        hidden = torch.randn(rows, 4096, dtype=torch.bfloat16, device="cuda")
        weight = torch.randn(126464, 4096, dtype=torch.bfloat16, device="cuda") * 0.02
        product = median_ms(lambda a=hidden, b=weight: a @ b.T)
        yield f"cuBLAS product [{rows}, 4096] x [126464, 4096]", product, None
        ms = median_ms(lambda a=hidden, b=weight: ops.headless_softmax(a, b))
        yield f"headless_softmax [{rows}, 4096] x [126464, 4096]", ms, product / ms


def bench_kv(_):
    """Against a copy of the same bytes."""
    if not hasattr(ops, "kv_replace_"):
        return
    for batch, length, block in ((1, 4096, 32), (8, 4096, 32), (8, 4096, 1024)):
        layers, heads, dim = 8, 8, 128
        key = torch.zeros(layers, batch, heads, length, dim, dtype=torch.bfloat16, device="cuda")
        value = torch.zeros_like(key)
        new = torch.randn(layers, batch, heads, block, dim, device="cuda").bfloat16()
        target, where = torch.empty_like(new), f"[{layers}, {batch}, {heads}, {length}, {dim}] {block} rows"
        copy = 2 * median_ms(lambda a=target, b=new: a.copy_(b))  # key and value
        yield f"two copies {where}", copy, None
        start = torch.full((batch,), 64, device="cuda")
        index = torch.stack([torch.randperm(length, device="cuda")[:block] for _ in range(batch)])
        calls = {
            "kv_replace_": lambda k=key, v=value, n=new, s=start: ops.kv_replace_(k, v, n, n, s),
            "kv_scatter_": lambda k=key, v=value, n=new, i=index: ops.kv_scatter_(k, v, n, n, i),
            "kv_gather": lambda k=key, v=value, i=index: ops.kv_gather(k, v, i),
            "index_copy_": lambda k=key, v=value, n=new, i=index: [x.index_copy_(3, i[0], n) for x in (k, v)],
        }
        for name, call in calls.items():
            ms = median_ms(call)
            yield f"{name} {where}", ms, copy / ms


def bench_remask(_):
    """Against the row loop of LLaDA's generate, which waits for the device at every row."""
    if not hasattr(ops, "commit_"):
        return
    for rows, length, most in ((8, 256, 16), (32, 1024, 64), (32, 4096, 256)):
        x = torch.zeros(rows, length, dtype=torch.int64, device="cuda")
        token, score = torch.ones_like(x), torch.rand(rows, length, device="cuda")
        k = torch.randint(1, most + 1, (rows,), device="cuda")

        def loop(x=x, token=token, score=score, k=k):
            chosen = torch.zeros_like(x, dtype=torch.bool)
            for row in range(len(k)):
                chosen[row, torch.topk(score[row], k=int(k[row])).indices] = True
            x[chosen] = token[chosen]

        slow = median_ms(loop, repeats=10, warm=2)
        yield f"LLaDA's loop [{rows}, {length}]", slow, None
        ms = median_ms(lambda x=x, token=token, score=score, k=k: ops.commit_(x, token, score, k=k))
        yield f"commit_ [{rows}, {length}]", ms, slow / ms


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="also write the results here")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("bench/gpu.py needs a GPU")
    torch.manual_seed(0)
    floor = copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: a copy moves {floor / 1e12:.2f} TB/s, read and written")
    results, missed = [], []
    for suite in (bench_softmax, bench_headless, bench_kv, bench_remask):
        for name, ms, share in suite(floor):
            results.append({"name": name, "median_ms": ms, "share": share})
            print(f"{name:70} {ms:9.4f} ms  {'' if share is None else f'{share:.2f}'}", flush=True)
            if name.startswith("masked_softmax [1024, 126464] bfloat16") and name.endswith("greedy") and share < BAR:
                missed.append(name)
    if options.json:
        facts = {"device": torch.cuda.get_device_name(), "torch": torch.__version__, "copy_bytes_per_s": floor}
        with open(options.json, "w") as file:
            json.dump({**facts, "status": ops.status(), "results": results}, file, indent=1)
    for name in missed:
        print(f"below {BAR} of the copy bandwidth: {name}")
    sys.exit(bool(missed))


if __name__ == "__main__":
    main()
