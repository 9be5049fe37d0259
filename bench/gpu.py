"""The ops and the driver on a GPU, timed with CUDA events: medians, and how each compares with a floor or a peer.

    python bench/gpu.py [--json FILE] [--seconds 75] [--rehearse]

The share of a row is, for masked_softmax, the bytes of its logits per second over the device's copy bandwidth (a copy's bytes are
counted twice, read and written); for every other op the time of its floor or peer, which is named in the row before it or in the
suite's first line, over its own.

Results are written after each suite. A suite that raises is noted, and the next one runs; if the error has ended all work on the
device, in a new process. No suite begins after `--seconds`. With --rehearse everything runs on the CPU at small sizes, where the
numbers mean nothing.

The exit status is 1 where a suite failed or a bar is missed: masked_softmax at [1024, 126464] bfloat16 reads its logits at 0.85
of the copy bandwidth or better.
"""

import argparse
import json
import os
import statistics
import sys
import time
import traceback

import torch

import samplers
from samplers import ops

BAR = 0.85
REHEARSAL = "--rehearse" in sys.argv
GPU = "cpu" if REHEARSAL else "cuda"


def size(real, small):
    return small if REHEARSAL else real


def synchronize():
    if not REHEARSAL:
        torch.cuda.synchronize()


def times_ms(run, repeats):
    """Each call's time, the device's own."""
    if REHEARSAL:
        clock = [time.perf_counter()]
        for _ in range(repeats):
            run()
            clock.append(time.perf_counter())
        return [1e3 * (b - a) for a, b in zip(clock, clock[1:])]
    events = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return [a.elapsed_time(b) for a, b in zip(events, events[1:])]


def median_ms(run, seconds=0.15):
    """Median time of a call, of as many calls as fit, from 5 to 50."""
    times_ms(run, 3)
    begin = time.perf_counter()
    times_ms(run, 2)
    once = (time.perf_counter() - begin) / 2
    return statistics.median(times_ms(run, size(max(5, min(50, int(seconds / once))), 2)))


def copy_bandwidth():
    """Bytes per second, read and written, of a 2 GiB device copy."""
    source = torch.empty(size(1 << 30, 1 << 16), dtype=torch.int16, device=GPU)
    target = torch.empty_like(source)
    return 2 * source.nbytes / (median_ms(lambda: target.copy_(source)) * 1e-3)


def softmax_cases():
    vocab = size(126464, 1264)
    for rows in (1024, 256, 32, 1):
        yield rows, vocab, torch.bfloat16, 1.0  # flat logits, where every chunk counts
    yield 1024, vocab, torch.bfloat16, 8.0  # and peaked ones
    yield 1024, vocab, torch.float32, 1.0
    yield 1024, size(50257, 503), torch.bfloat16, 1.0


def bench_softmax(floor):
    for rows, vocab, dtype, scale in softmax_cases():
        # More copies than the device's cache holds, taken in turn: a model's logits are not in it either.
        n = max(1, min(8, (256 << 20) // (rows * vocab * dtype.itemsize) + 1))
        copies = [torch.randn(rows, vocab, device=GPU).mul(scale).to(dtype) for _ in range(n)]
        uniform = torch.rand(rows, dtype=torch.float64, device=GPU)
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
        ms = median_ms(lambda x=copies[0]: torch.softmax(x.float(), -1).max(-1))
        yield f"torch softmax+max [{rows}, {vocab}] {str(dtype)[6:]} scale {scale:g}", ms, None


def bench_uniforms(_):
    """Against torch's own generator, which draws other numbers."""
    for rows, length in ((8, 256), (size(1024, 16), 4096)):
        who = [torch.arange(rows, device=GPU) for _ in range(3)]
        out = torch.empty(rows, length, dtype=torch.float64, device=GPU)
        peer = median_ms(lambda out=out: out.uniform_())
        yield f"torch uniform_ [{rows}, {length}]", peer, None
        ms = median_ms(lambda who=who, length=length: ops.row_uniforms(*who, length=length))
        yield f"row_uniforms [{rows}, {length}]", ms, peer / ms


def bench_normals(_):
    """Against torch's own generator, which draws other numbers."""
    for rows, length in ((8, 16384), (size(256, 4), 16384)):
        who = [torch.arange(rows, device=GPU) for _ in range(3)]
        for dtype in (torch.float32, torch.float64):
            title = f"[{rows}, {length}] {str(dtype)[6:]}"
            peer = median_ms(lambda shape=(rows, length), dtype=dtype: torch.randn(shape, dtype=dtype, device=GPU))
            yield f"torch randn {title}", peer, None
            ms = median_ms(
                lambda who=who, length=length, dtype=dtype: ops.row_normals(*who, length=length, dtype=dtype)
            )
            yield f"row_normals {title}", ms, peer / ms


def bench_combine(_):
    """Against the same sum in torch's own operations."""
    for shape in ((8, 4, 64, 64), (size(64, 2), 4, 128, 128)):
        a, b, c = (torch.randn(shape, device=GPU) for _ in range(3))
        peer = median_ms(lambda a=a, b=b, c=c: 0.5 * a + 1.5 * b + 2.5 * c)
        yield f"torch a sum of 3 terms {list(shape)}", peer, None
        ms = median_ms(lambda a=a, b=b, c=c: ops.combine(a, 0.5, b, 1.5, c, 2.5))
        yield f"combine 3 terms {list(shape)}", ms, peer / ms


def bench_continuous(_):
    """A whole run of 20 steps over a model that costs nothing, against the normals and the sums in torch's own operations."""
    answer = torch.zeros(8, 4, 64, 64, device=GPU)
    model = samplers.GaussianDenoiser.wrap(lambda x, t: answer, shape=(4, 64, 64), device=GPU)

    def plain():
        x = torch.randn_like(answer)
        for _ in range(20):
            x0 = (x - 0.5 * answer) / 0.9
            x = 0.9 * x + 0.5 * x0 - 0.1 * x0

    peer = median_ms(plain)
    yield "20 steps of 2M in plain torch [8, 4, 64, 64]", peer, None
    for name in ("ddim", "dpmpp_2m", "unipc", "dpmpp_2m_sde"):
        ms = median_ms(lambda name=name: samplers.sample(model, name, steps=20, batch=8))
        yield f"20 steps of {name} [8, 4, 64, 64]", ms, peer / ms


def bench_remask(_):
    """Against the row loop of LLaDA's generate, which waits for the device at every row."""
    for rows, length, most in ((8, 256, 16), (32, 1024, 64), (32, 4096, 256)):
        x = torch.zeros(rows, length, dtype=torch.int64, device=GPU)
        token, score = torch.ones_like(x), torch.rand(rows, length, device=GPU)
        k = torch.randint(1, most + 1, (rows,), device=GPU)

        def loop(x=x, token=token, score=score, k=k):
            chosen = torch.zeros_like(x, dtype=torch.bool)
            for row in range(len(k)):
                chosen[row, torch.topk(score[row], k=int(k[row])).indices] = True
            x[chosen] = token[chosen]

        slow = median_ms(loop)
        yield f"LLaDA's loop [{rows}, {length}]", slow, None
        calls = {
            "commit_ k": lambda x=x, t=token, s=score, k=k: ops.commit_(x, t, s, k=k),
            "commit_ threshold": lambda x=x, t=token, s=score: ops.commit_(x, t, s, threshold=0.95, least=1),
            "commit_ factor": lambda x=x, t=token, s=score: ops.commit_(x, t, s, factor=1.0, least=1),
            "commit_ budget": lambda x=x, t=token, s=score: ops.commit_(x, t, s, budget=0.1, lowest=True),
            "select k": lambda s=score, k=k: ops.select(s, k=k),
            "remask_ k": lambda x=x, s=score, k=k: ops.remask_(x, s, None, 0, k=k),
        }
        for name, call in calls.items():
            ms = median_ms(call)
            yield f"{name} [{rows}, {length}]", ms, slow / ms


def bench_kv(_):
    """Against a copy of the same bytes."""
    for batch, length, block in ((1, 4096, 32), (8, 4096, 32), (8, 4096, 1024)):
        layers, heads, dim = size((8, 8, 128), (1, 2, 16))
        key = torch.zeros(layers, batch, heads, length, dim, dtype=torch.bfloat16, device=GPU)
        value = torch.zeros_like(key)
        new = torch.randn(layers, batch, heads, block, dim, device=GPU).bfloat16()
        target, where = torch.empty_like(new), f"[{layers}, {batch}, {heads}, {length}, {dim}] {block} rows"
        copy = 2 * median_ms(lambda a=target, b=new: a.copy_(b))  # key and value
        yield f"two copies {where}", copy, None
        start = torch.full((batch,), 64, device=GPU)
        index = torch.stack([torch.randperm(length, device=GPU)[:block] for _ in range(batch)])
        calls = {
            "kv_replace_": lambda k=key, v=value, n=new, s=start: ops.kv_replace_(k, v, n, n, s),
            "kv_scatter_": lambda k=key, v=value, n=new, i=index: ops.kv_scatter_(k, v, n, n, i),
            "kv_gather": lambda k=key, v=value, i=index: ops.kv_gather(k, v, i),
            "index_copy_": lambda k=key, v=value, n=new, i=index: [x.index_copy_(3, i[0], n) for x in (k, v)],
        }
        for name, call in calls.items():
            ms = median_ms(call)
            yield f"{name} {where}", ms, copy / ms


def bench_headless(_):
    """Against cuBLAS's product alone, which is the floor, and against the product with masked_softmax after it."""
    width, vocab = size((4096, 126464), (64, 1264))
    weight = torch.randn(vocab, width, dtype=torch.bfloat16, device=GPU) * 0.02
    for rows in (32, 256, 1024):
        hidden = torch.randn(rows, width, dtype=torch.bfloat16, device=GPU)
        uniform = torch.rand(rows, dtype=torch.float64, device=GPU)
        where = f"[{rows}, {width}] x [{vocab}, {width}]"
        product = median_ms(lambda a=hidden: a @ weight.T)
        yield f"cuBLAS product {where}", product, None
        for name, kw in (("greedy", {}), ("T=0.7", {"temperature": 0.7, "uniform": uniform})):
            ms = median_ms(lambda a=hidden, kw=kw: ops.masked_softmax(a @ weight.T, **kw))
            yield f"product, masked_softmax {where} {name}", ms, product / ms
            ms = median_ms(lambda a=hidden, kw=kw: ops.headless_softmax(a, weight, **kw))
            yield f"headless_softmax {where} {name}", ms, product / ms


def bench_attention(_):
    """Against torch's attention over cache and new rows that lie in one tensor already, all of them seen."""
    for batch, length, n in ((1, 1024, 32), (8, 1024, 32), (8, 4096, 32)):
        heads, dim = size((32, 128), (2, 16))
        length = size(length, length // 16)
        key, value = torch.randn(2, batch, heads, length + n, dim, device=GPU).bfloat16()
        query = torch.randn(batch, heads, n, dim, device=GPU).bfloat16()
        lengths = torch.full((batch,), length, device=GPU)
        where = f"[{batch}, {heads}, {length} + {n}, {dim}]"
        peer = median_ms(lambda q=query, k=key, v=value: torch.nn.functional.scaled_dot_product_attention(q, k, v))
        yield f"torch attention {where}", peer, None
        parts = [x[:, :, part] for part in (slice(length), slice(length, None)) for x in (key, value)]
        ms = median_ms(lambda q=query, p=parts, n=lengths: ops.cached_attention(q, *p, lengths=n))
        yield f"cached_attention {where}", ms, peer / ms


def bench_driver(_):
    """One sample() with a model that costs nothing: wall time per step; the share is 0.1 ms over it."""
    rows, length, vocab, steps = size((8, 256, 126464, 64), (2, 16, 1264, 4))
    logits = torch.randn(rows, length, vocab, device=GPU, dtype=torch.bfloat16)
    model = samplers.TokenDenoiser.wrap(lambda ids: logits[: len(ids)], vocab_size=vocab, mask_id=vocab - 1, device=GPU)
    for name in ("low_confidence", "threshold"):
        for temperature in (0.0, 0.7):
            setting = {"gen_length": length, "batch": rows, "steps": steps, "temperature": temperature}
            walls = []
            for _ in range(size(4, 2)):
                synchronize()
                begin = time.perf_counter()
                out = samplers.sample(model, name, **setting)
                synchronize()
                walls.append((time.perf_counter() - begin) / out.steps * 1e3)
            ms = statistics.median(walls[1:])
            tokens = rows * length / (ms * out.steps * 1e-3)
            title = f"driver {name} [{rows}, {length}, {vocab}] T={temperature:g}, {out.steps} steps"
            yield f"{title}, {tokens:.0f} tokens per second", ms, 0.1 / ms


def model_of(**shape):
    """A TransformerDenoiser in bfloat16 with random weights, made on the device."""
    config = samplers.models.Config(**shape)
    model = samplers.models.Transformer(config, seed=None, dtype=torch.bfloat16).to_empty(device=GPU)
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(1.0) if p.dim() == 1 else p.normal_(0.0, p.shape[-1] ** -0.5)
    return samplers.models.TransformerDenoiser(model, mask_id=config.vocab_size - 1)


def bench_models(_):
    """16 prompts of 16 lengths, 32 positions to fill in 8 steps, by a model of LLaDA-8B's shape: groups against pad.

    The share is the time of the row before it over its own.
    """
    wide = {"vocab_size": 126464, "width": 4096, "layers": 32, "heads": 32, "mlp_width": 12288}
    small = {"vocab_size": 1264, "width": 64, "layers": 2, "heads": 2, "mlp_width": 96}
    denoiser = model_of(**size(wide, small), attention="full")
    prompts = [list(range(1, n)) for n in range(34, 50)]
    run = {"gen_length": 32, "steps": 8, "temperature": 0.0}
    for cache in (None, "dual"):
        for rows in (16, 4, 1):
            before = None
            for ragged in ("groups", "pad"):

                def call(rows=rows, ragged=ragged, cache=cache):
                    how = {"ragged": ragged, "cache": cache, "block_length": 32}
                    return samplers.sample(denoiser, "low_confidence", prompt=prompts[:rows], **how, **run)

                nfe = call().nfe
                synchronize()
                walls = []
                for _ in range(size(3, 1)):
                    begin = time.perf_counter()
                    call()
                    synchronize()
                    walls.append((time.perf_counter() - begin) * 1e3)
                ms = statistics.median(walls)
                title = (
                    f"8B {ragged} [{rows} rows] cache {cache}, {nfe} passes, {32e3 * rows / ms:.0f} tokens per second"
                )
                yield title, ms, None if before is None else before / ms
                before = ms


SUITES = {
    "softmax": bench_softmax,
    "driver": bench_driver,
    "models": bench_models,
    "uniforms": bench_uniforms,
    "normals": bench_normals,
    "combine": bench_combine,
    "continuous": bench_continuous,
    "remask": bench_remask,
    "kv": bench_kv,
    "headless": bench_headless,
    "attention": bench_attention,
}


class Report:
    """What is known so far, on the screen and in a file."""

    def __init__(self, path, begin):
        self.path = path
        self.facts = {"results": [], "errors": {}, "left_out": [], "begin": begin}
        if path and begin is None and os.path.exists(path):  # a run before this one broke off; this one goes on
            with open(path) as file:
                self.facts = json.load(file)

    def write(self):
        if self.path:
            with open(self.path + ".part", "w") as file:
                json.dump(self.facts, file, indent=1)
            os.replace(self.path + ".part", self.path)

    def run(self, name):
        """→ whether the device still works."""
        try:
            for title, ms, share in SUITES[name](self.facts["copy_bytes_per_s"]):
                self.facts["results"].append({"suite": name, "name": title, "median_ms": ms, "share": share})
                print(f"{title:90} {ms:9.4f} ms  {'' if share is None else f'{share:.2f}'}", flush=True)
        except Exception as error:
            traceback.print_exc()
            self.facts["errors"][name] = f"{type(error).__name__}: {error}"[:2000]
        self.write()
        try:
            synchronize()
            torch.zeros(1, device=GPU).item()
        except RuntimeError:
            return False
        return True

    def missed(self):
        """The results below their bar."""
        wide = "masked_softmax [1024, 126464] bfloat16"
        of = [r for r in self.facts["results"] if r["name"].startswith(wide) and r["name"].endswith("greedy")]
        return [r["name"] for r in of if r["share"] < BAR]


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", help="also write the results here, after each suite")
    parser.add_argument("--seconds", type=float, default=75, help="begin no suite after this time")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU, at small sizes, to try the script itself")
    parser.add_argument("--from", dest="first", help="go on with this suite, and with the results in --json")
    options = parser.parse_args()
    if not (REHEARSAL or torch.cuda.is_available()):
        sys.exit("bench/gpu.py needs a GPU")
    torch.manual_seed(0)
    report = Report(options.json, None if options.first else time.time())
    if "copy_bytes_per_s" not in report.facts:
        device = "the CPU, in a rehearsal" if REHEARSAL else torch.cuda.get_device_name()
        report.facts |= {"device": device, "torch": torch.__version__, "status": ops.status()}
        report.facts["copy_bytes_per_s"] = copy_bandwidth()
        print(f"{device}: a copy moves {report.facts['copy_bytes_per_s'] / 1e12:.2f} TB/s, read and written")
    names = list(SUITES)
    names = names[names.index(options.first) :] if options.first else names
    for i, name in enumerate(names):
        if time.time() - report.facts["begin"] > options.seconds:
            report.facts["left_out"].append(name)
        elif not report.run(name) and i + 1 < len(names):
            print(
                f"the device takes no more work in this process: {names[i + 1]} and what follows in another", flush=True
            )
            if options.json:
                again = ["--json", options.json, "--seconds", str(options.seconds), "--from", names[i + 1]]
                again += ["--rehearse"] * REHEARSAL
                os.execv(sys.executable, [sys.executable, __file__, *again])
            break
    report.write()
    for name in report.missed():
        print(f"below {BAR} of the copy bandwidth: {name}")
    for name, error in report.facts["errors"].items():
        print(f"suite {name} failed: {error}")
    if report.facts["left_out"]:
        print(f"left out for want of time: {', '.join(report.facts['left_out'])}")
    sys.exit(bool(report.missed() or report.facts["errors"]))


if __name__ == "__main__":
    main()
