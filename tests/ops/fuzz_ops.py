"""Random calls of every op, right ones and wrong ones.

    make fuzz        or  python tests/ops/fuzz_ops.py [--calls 100000] [--start 0] [--seed 0] [--op NAME]

Each call must return, and then what it returns must make sense, or raise TypeError, ValueError or IndexError. A call
depends on the seed and its number alone, so `--start NUMBER --calls 1` repeats it. The calls run in a process of their
own: one that crashes is named like one that fails. Ops that are not there are left out, so there is one list for all.
"""

import argparse
import math
import multiprocessing
import random
import signal
import sys
import traceback
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

sys.path.append(str(Path(__file__).parents[1]))  # for test_ops, if this is run as a program
from test_ops import assert_same, twin

from samplers import ops

REFUSALS = (TypeError, ValueError, IndexError)
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
WIDTHS = (1, 2, 3, 17, 127, 128, 129, 255, 1000, 1023, 1024, 1025, 2047, 3000)


def randn(rng, *shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(rng.getrandbits(40))).to(dtype)


def randint(rng, low, high, *shape):
    """int64 in [low, high]."""
    return torch.randint(low, high + 1, shape, generator=torch.Generator().manual_seed(rng.getrandbits(40)))


def rand(rng, *shape):
    return torch.rand(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(rng.getrandbits(40)))


def maybe(rng, chance, make):
    return make() if rng.random() < chance else None


# ---- right calls: a maker returns the arguments by name, and what must hold of the result ----------------------------


def logits(rng, rows, vocab, dtype):
    """Rows at any stride, from flat to peaked, with holes, ties and now and then what spoils a row."""
    start, skip = rng.randrange(4), rng.choice((1, 1, 2))
    x = randn(rng, rows * skip, vocab + start + rng.randrange(3)) * rng.choice((0.0, 0.1, 3.0, 30.0, 1e4))
    x = x.add_(rng.choice((0.0, 0.0, 1000.0, -3e4))).to(dtype)[::skip, start : start + vocab]
    if rows and rng.random() < 0.4:
        for _ in range(rng.randrange(1, 5)):
            x[rng.randrange(rows), rng.randrange(vocab)] = rng.choice((60.0, 60.0, -math.inf, math.inf, math.nan))
    if rows and rng.random() < 0.3:
        x[rng.randrange(rows), :: rng.choice((1, 2, 3))] = -math.inf
    if rng.random() < 0.2:
        x.round_()
    return x


def softmax_options(rng, n, vocab):
    temperature = rng.choice((0.0, 0.0, 0.7, 1.0, 1e-30, 1e30, 10 ** rng.uniform(-30, 30), 10 ** rng.uniform(-2, 2)))
    names = ("confidence", "margin", "entropy", "lse", "given")
    want = tuple(rng.sample(names, rng.randrange(6)))
    return {
        "uniform": rand(rng, n) if temperature or rng.random() < 0.1 else None,
        "temperature": temperature,
        "confidence_temperature": rng.choice((1.0, 1.0, temperature or 0.5, 1e-30, 1e30, 10 ** rng.uniform(-2, 2))),
        "forbid": maybe(rng, 0.3, lambda: randint(rng, 0, vocab + 2, rng.randrange(4))),
        "want": want,
        "given": randint(rng, 0, vocab - 1, n) if "given" in want else None,
    }


def make_masked_softmax(rng):
    rows, vocab, dtype = rng.randrange(7), rng.choice(WIDTHS), rng.choice(FLOATS)
    index = maybe(rng, 0.4, lambda: randint(rng, 0, rows - 1, rng.randrange(9)) if rows else randint(rng, 0, 0, 0))
    n = rows if index is None else len(index)
    kw = {"logits": logits(rng, rows, vocab, dtype), "index": index, **softmax_options(rng, n, vocab)}
    if rng.random() < 0.3:
        more = rng.randrange(3) if index is not None else 0
        kw["guidance"] = logits(rng, rows + more, vocab, dtype)
        kw["cfg_scale"] = rng.choice((0.0, 1.5, -0.5, 1e3, rng.uniform(-3, 3)))
        if rows and rng.random() < 0.5:
            kw["guidance_index"] = randint(rng, 0, rows + more - 1, n)
    if rng.random() < 0.4:
        kw["top_k"] = rng.choice((0, 1, 2, 50, vocab, vocab + 7))
        kw["top_p"] = rng.choice((1.0, 0.9, 0.5, 1e-9, 1 - 2**-53, rng.random() or 1.0))
        kw["truncated"] = rng.random() < 0.5
    return kw


def check_softmax(rng, kw, out, n, vocab):
    fine, forbid = out.status == 0, kw.get("forbid")
    assert out.token.shape == out.status.shape == (n,)
    assert torch.isin(out.status, torch.tensor([0, 1, 2])).all()
    assert ((out.token >= 0) & (out.token < vocab))[fine].all() and (out.token[~fine] == -1).all()
    if forbid is not None:
        assert not torch.isin(out.token[fine], forbid).any()
    for name in ("confidence", "margin", "entropy", "lse", "given"):
        value = getattr(out, name)
        assert (value is not None) == (name in kw["want"]), name
        if value is None:
            continue
        assert value.shape == (n,) and value.dtype == torch.float32
        assert torch.equal(value.isnan(), ~fine), name
        if name != "lse":
            assert (value[fine] >= 0).all(), name
            assert (value[fine] <= (1.0 if name != "entropy" else math.log(vocab) + 1e-3)).all(), name


def check_masked_softmax(rng, kw, out):
    x, index = kw["logits"], kw["index"]
    n, vocab = len(x) if index is None else len(index), x.shape[1]
    check_softmax(rng, kw, out, n, vocab)
    if kw.get("guidance") is None:
        rows = (x if index is None else x[index]).float()
        if kw["forbid"] is not None:
            rows[:, kw["forbid"][kw["forbid"] < vocab]] = -math.inf
        spoilt = (rows.isnan() | (rows == math.inf)).any(1)
        empty = (rows == -math.inf).all(1)
        assert torch.equal(out.status, torch.where(spoilt, 1, torch.where(empty, 2, 0)).int())
        fine = out.status == 0
        assert (rows[fine].gather(1, out.token[fine][:, None]) > -math.inf).all()
    if rng.random() < 0.1:
        assert_same(out, twin(**{**kw, "uniform": kw["uniform"] if kw["temperature"] else None}))


def make_headless_softmax(rng):
    n, width, vocab = rng.randrange(5), rng.choice((1, 8, 33)), rng.choice(WIDTHS)
    dtype = rng.choice((torch.float32, torch.bfloat16))
    kw = softmax_options(rng, n, vocab)
    kw["hidden"], kw["weight"] = randn(rng, n, width, dtype=dtype), randn(rng, vocab, width, dtype=dtype)
    kw["bias"] = maybe(rng, 0.3, lambda: randn(rng, vocab, dtype=dtype))
    kw["softcap"] = maybe(rng, 0.3, lambda: rng.uniform(1, 50))
    kw["tile"] = maybe(rng, 0.3, lambda: rng.choice((1024, 2048, 4096)))
    if rng.random() < 0.3:
        kw["guidance"], kw["cfg_scale"] = randn(rng, n, width, dtype=dtype), rng.uniform(-1, 3)
    return kw


def check_headless_softmax(rng, kw, out):
    check_softmax(rng, kw, out, len(kw["hidden"]), len(kw["weight"]))


def plane(rng, kind=None):
    return rng.randrange(5), rng.choice((0, 1, 2, 15, 64, 257, 1000))


def scores(rng, B, L):
    x = randn(rng, B, L, dtype=rng.choice((torch.float32, torch.float64)))
    if rng.random() < 0.3:
        x = x.round()
    if B and L and rng.random() < 0.3:
        x[rng.randrange(B), rng.randrange(L)] = rng.choice((math.nan, math.inf, -math.inf))
    return x


def number(rng, B, low, high):
    return rng.choice((rng.randint(low, high), randint(rng, low, high, B)))


def level(rng, B, low, high):
    return rng.choice((rng.uniform(low, high), rand(rng, B) * (high - low) + low))


def make_select(rng, B=None, L=None):
    B, L = (B, L) if B is not None else plane(rng)
    kw = {"score": scores(rng, B, L), "candidate": maybe(rng, 0.6, lambda: rand(rng, B, L) < 0.5)}
    rule = rng.choice(("k", "threshold", "factor", "budget"))
    kw[rule] = number(rng, B, -1, L + 2) if rule == "k" else level(rng, B, -2, 2)
    kw["least"] = number(rng, B, -1, 3)
    if rule != "k":
        kw["most"] = maybe(rng, 0.5, lambda: number(rng, B, -1, L + 2))
    if rule != "factor":
        kw["lowest"] = rng.random() < 0.5
    return kw


def check_select(rng, kw, out):
    assert out.chosen.shape == kw["score"].shape
    assert torch.equal(out.chosen.sum(1), out.count)
    if kw["candidate"] is not None:
        assert not (out.chosen & ~kw["candidate"]).any()


def make_commit_(rng):
    B, L = plane(rng)
    return {"x": randint(rng, 0, 99, B, L), "token": randint(rng, 100, 199, B, L), **make_select(rng, B, L)}


def check_commit_(rng, kw, out):
    check_select(rng, kw, out)
    assert torch.equal(kw["x"] >= 100, out.chosen)


def make_remask_(rng):
    B, L = plane(rng)
    kw = {"x": randint(rng, 0, 99, B, L), "score": scores(rng, B, L), "mask_id": 100, "least": number(rng, B, -1, 3)}
    kw["candidate"] = maybe(rng, 0.6, lambda: rand(rng, B, L) < 0.5)
    if rng.random() < 0.5:
        kw["k"] = number(rng, B, -1, L + 2)
    else:
        kw["threshold"] = level(rng, B, -2, 2)
    return kw


def check_remask_(rng, kw, out):
    check_select(rng, kw, out)
    assert torch.equal(kw["x"] == 100, out.chosen)


def make_select_slots(rng):
    B, L = plane(rng)
    kw = {"score": scores(rng, B, L), "candidate": maybe(rng, 0.6, lambda: rand(rng, B, L) < 0.5)}
    kw.update(slot=rng.choice((1, 4, 7, 2000)), threshold=level(rng, B, -2, 2), start=number(rng, B, 0, L))
    kw.update(least=rng.randint(0, 3), most=rng.randint(0, 99), strict=rng.random() < 0.5)
    return kw


def check_select_slots(rng, kw, out):
    assert torch.equal(out.chosen.sum(1), out.count)


def make_accept_slots_(rng):
    B, L = plane(rng)
    slot = rng.choice((1, 4, 7, 2000))
    slots = -(-L // slot)
    kw = {"x": randint(rng, 0, 99, B, L), "token": randint(rng, 100, 103, B, L), "probability": scores(rng, B, L)}
    kw.update(chosen=rand(rng, B, slots) < 0.6, candidate=maybe(rng, 0.6, lambda: rand(rng, B, L) < 0.5), slot=slot)
    kw.update(threshold=level(rng, B, 0, 1), start=number(rng, B, 0, L), extra=rng.randrange(3))
    kw["head"] = rng.choice((1, randint(rng, 0, 5, B, slots)))
    kw.update(eos=rng.choice((-1, 101)), strict=rng.random() < 0.5, partial=rng.random() < 0.5)
    return kw


def check_accept_slots_(rng, kw, out):
    assert torch.equal((kw["x"] >= 100).sum(1), out.count)


def caches(rng):
    """A cache of either form, its batch, capacity and a maker of new rows."""
    lead = rng.choice(((), (1,), (3,)))
    batch, heads, length, widths = (
        rng.randrange(4),
        rng.randrange(1, 4),
        rng.choice((0, 1, 5, 40)),
        rng.sample((1, 2, 8, 9), 2),
    )
    dtype = rng.choice((*FLOATS, torch.int8))

    def rows(b, n):
        return [(randn(rng, *lead, b, heads, n, w) * 9).to(dtype) for w in widths]

    key, value = rows(batch, length + rng.randrange(2))
    if rng.random() < 0.3:  # capacity cut from something longer
        key, value = (x[..., : max(length - 1, 0), :] for x in (key, value))
    return key, value, batch, key.shape[-2], rows


def make_kv_append_(rng):
    key, value, batch, length, rows = caches(rng)
    n = rng.randint(0, length)
    new = rows(batch, n)
    kw = {"key": key, "value": value, "new_key": new[0], "new_value": new[1]}
    kw["lengths"] = randint(rng, 0, length - n + rng.choice((0, 0, 1)), batch)
    kw["count"] = maybe(rng, 0.4, lambda: randint(rng, 0, n, batch))
    return kw


def make_kv_replace_(rng):
    kw = make_kv_append_(rng)
    lengths = kw.pop("lengths")
    return {**kw, "start": lengths if rng.random() < 0.5 else rng.randint(0, kw["key"].shape[-2])}


def make_kv_scatter_(rng):
    key, value, batch, length, rows = caches(rng)
    n = rng.randint(0, length + 2)
    new = rows(batch, n)
    shape = (n,) if rng.random() < 0.5 else (batch, n)
    index = randint(rng, -2, max(length - 1, -1), *shape)
    return {"key": key, "value": value, "new_key": new[0], "new_value": new[1], "index": index}


def make_kv_gather(rng):
    key, value, batch, length, _ = caches(rng)
    shape = rng.choice(((3,), (batch, 4), (0,)))
    kw = {"key": key, "value": value, "index": randint(rng, -1, max(length - 1, -1), *shape)}
    kw["rows"] = maybe(rng, 0.4, lambda: randint(rng, 0, batch - 1, *shape)) if batch else None
    return kw


def make_kv_compact_(rng):
    key, value, batch, length, _ = caches(rng)
    return {
        "key": key,
        "value": value,
        "keep": rand(rng, batch, length) < 0.5,
        "lengths": randint(rng, 0, length, batch),
    }


def make_kv_select_rows_(rng):
    key, value, batch, length, _ = caches(rng)
    kw = {"key": key, "value": value, "source": randint(rng, 0, max(batch - 1, 0), batch)}
    kw["lengths"] = maybe(rng, 0.5, lambda: randint(rng, 0, length, batch))
    return kw


def make_cached_attention(rng):
    batch, heads, group, width = rng.randrange(1, 4), rng.randrange(1, 3), rng.randrange(1, 3), rng.choice((1, 8, 16))
    length, n, dtype = rng.choice((1, 5, 40)), rng.randrange(1, 6), rng.choice(FLOATS)
    kw = {name: randn(rng, batch, heads, length, width, dtype=dtype) for name in ("key", "value")}
    kw.update({name: randn(rng, batch, heads, n, width, dtype=dtype) for name in ("new_key", "new_value")})
    kw["query"] = randn(rng, batch, heads * group, n, width, dtype=dtype)
    kw["lengths"] = randint(rng, 0, length, batch)
    return kw


def make_kl_divergence(rng):
    n, m, vocab, dtype = rng.randrange(5), rng.randrange(1, 4), rng.choice(WIDTHS), rng.choice((*FLOATS, torch.float64))
    kw = {"logits": logits(rng, n, vocab, dtype), "other": logits(rng, m, vocab, dtype)}
    kw["other_lse"] = kw["other"].double().logsumexp(1)
    return {**kw, "index": randint(rng, -1, m - 1, n)}


def check_kl_divergence(rng, kw, out):
    divergence, lse = out
    assert divergence.shape == lse.shape == kw["index"].shape and divergence.dtype == lse.dtype == torch.float64
    assert (divergence[kw["index"] < 0] == math.inf).all()


def make_row_uniforms(rng):
    batch, n = rng.randrange(4), rng.randrange(9)
    kw = {name: randint(rng, -(2**40), 2**40, batch) for name in ("seed", "row", "step")}
    if batch and rng.random() < 0.5:
        kw.update(which=randint(rng, 0, batch - 1, n), position=randint(rng, 0, 2**31, n))
    else:
        kw["length"] = rng.choice((1, 3, 64))
    return {**kw, "draw": rng.choice((0, 5, 2**32 - 1))}


def check_row_uniforms(rng, kw, out):
    assert out.dtype == torch.float64 and ((out >= 0) & (out < 1)).all()


def make_combine(rng):
    shape, dtype = (rng.randrange(4), rng.choice((1, 5, 300))), rng.choice((torch.float32, torch.float64))
    generator = torch.Generator().manual_seed(rng.randrange(2**31))
    names = "abcde"[: rng.randrange(1, 6)]
    tensors = {name: torch.randn(shape, dtype=dtype, generator=generator) for name in names}
    return {**tensors, **{f"c{name}": rng.uniform(-3, 3) for name in names}}


def check_combine(rng, kw, out):
    assert torch.equal(out, sum(kw[f"c{name}"] * kw[name] for name in "abcde" if name in kw))


def make_row_normals(rng):
    batch = rng.randrange(4)
    kw = {name: randint(rng, -(2**40), 2**40, batch) for name in ("seed", "row", "step")}
    if rng.random() < 0.3:
        kw["step"] = rng.randrange(99)
    length, draw = rng.choice((1, 3, 64, 257)), rng.choice((0, 5, 2**32 - 1))
    return {**kw, "length": length, "draw": draw, "dtype": rng.choice((torch.float32, torch.float64))}


def check_row_normals(rng, kw, out):
    assert out.shape == (len(kw["seed"]), kw["length"]) and out.dtype == kw["dtype"]
    assert ((out.abs() < 9.5) & (out != 0)).all()


def check_nothing(rng, kw, out):
    pass


def public_ops():
    names = [name for name in ops.__all__ if name[0].islower() and name not in ("status", "kv_row_bytes")]
    return [name for name in names if callable(getattr(ops, name))]


OPS = {name: globals()[f"make_{name}"] for name in public_ops()}


# ---- wrong calls -----------------------------------------------------------------------------------------------------


def wreck(rng, kw):
    """One argument made something else; often that is wrong, sometimes it only is unusual."""
    name = rng.choice(sorted(kw))
    x = kw[name]
    strange = [None, "x", 3, -1, 2.5, math.nan, 2**63, -(2**70), True, (), [1, 2], {}, object, torch.tensor(1.0), 1j]
    ordinary = isinstance(x, torch.Tensor) and x.device.type == "cpu" and x.layout == torch.strided
    if not ordinary or rng.random() < 0.15:
        return {**kw, name: rng.choice(strange)}
    n = rng.randrange(1, 9)
    ways = (
        lambda: x.to(rng.choice((torch.float64, torch.int32, torch.int64, torch.bool, torch.float32, torch.complex64))),
        lambda: x.to(rng.choice((torch.float16, torch.bfloat16, torch.uint8))),
        lambda: x.to("meta"),
        lambda: x[None],
        lambda: x[0],
        lambda: x[:-1],
        lambda: torch.cat([x, x]),
        lambda: x[..., :0],
        lambda: x[..., ::2],
        lambda: x.repeat_interleave(2, -1)[..., ::2],
        lambda: x.transpose(0, -1),
        lambda: x.flatten()[:1].expand(x.shape),
        lambda: x.flip(0),
        lambda: x.clone().fill_(-n) if x.dtype != torch.bool else ~x,
        lambda: x.clone().fill_(rng.choice((127, -128, 0, 1))),
        lambda: x.clone().fill_(rng.choice((2**62, -(2**63), 2**63 - 1))) if x.dtype == torch.int64 else x * math.nan,
        lambda: x.to_sparse(),
        lambda: x.numpy(),
        lambda: x.tolist(),
    )
    try:
        return {**kw, name: rng.choice(ways)()}
    except (IndexError, RuntimeError, TypeError):  # torch itself has no such tensor
        return kw


def on_meta(kw):
    return {k: v.to("meta") if isinstance(v, torch.Tensor) else v for k, v in kw.items()}


# ---- running ---------------------------------------------------------------------------------------------------------


def show(value):
    if not isinstance(value, torch.Tensor):
        return repr(value)
    words = f"{str(value.dtype)[6:]} {tuple(value.shape)} on {value.device}"
    if value.device.type != "cpu" or value.layout != torch.strided:
        return f"{words} {value.layout}"
    values = f" = {value.tolist()}" if value.numel() <= 12 else ""
    return f"{words}, strides {value.stride()}, offset {value.storage_offset()}{values}"


def one(seed, number, only=None):
    """Call `number`. → (op, None where it went as it must, else what went wrong and with what arguments)."""
    rng = random.Random(f"{seed}/{number}")
    name = only or rng.choice(sorted(OPS))
    kw = OPS[name](rng)
    kind = rng.choices(("right", "wrong", "meta"), (55, 40, 5))[0]
    if kind == "wrong":
        for _ in range(rng.choice((1, 1, 2))):
            kw = wreck(rng, kw)
    elif kind == "meta":
        kw = on_meta(kw)
    words = {k: show(v) for k, v in kw.items()}  # before the call: it may write in place
    torch.set_num_threads(rng.choice((1, 1, 1, 2, 3)))
    try:
        try:
            out = getattr(ops, name)(**kw)
        except REFUSALS:
            return name, None
        if kind == "right":
            globals().get(f"check_{name}", check_nothing)(rng, kw, out)
    except Exception:
        lines = [f"call {number} (seed {seed}): {name}, {kind}", *(f"    {k}: {v}" for k, v in words.items())]
        return name, "\n".join([*lines, traceback.format_exc()])
    return name, None


def run(at, seed, start, stop, only, failures):
    """The calls in turn, each number written to `at` first."""
    found = 0
    for number in range(start, stop):
        at.value = number
        wrong = one(seed, number, only)[1]
        if wrong:
            print(wrong, file=sys.stderr, flush=True)
            found += 1
            if found == failures:
                sys.exit(1)
    at.value = stop
    sys.exit(found > 0)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=100_000)
    parser.add_argument("--start", type=int, default=0, help="number of the first call")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--op", choices=OPS, help="this op only")
    parser.add_argument("--failures", type=int, default=1, help="stop after so many")
    o = parser.parse_args()
    spawn = multiprocessing.get_context("spawn")
    at = spawn.Value("q", o.start, lock=False)
    process = spawn.Process(target=run, args=(at, o.seed, o.start, o.start + o.calls, o.op, o.failures), daemon=True)
    process.start()
    columns = (TextColumn("calls"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=o.calls)
        while process.is_alive():
            process.join(0.2)
            progress.update(task, completed=at.value - o.start)
    if process.exitcode < 0:
        print(f"call {at.value} (seed {o.seed}) crashed: {signal.strsignal(-process.exitcode)}", file=sys.stderr)
    elif process.exitcode == 0:
        print(f"{o.calls:,} calls of {o.op or ', '.join(sorted(OPS))}: all as they must be")
    sys.exit(process.exitcode != 0)


if __name__ == "__main__":
    main()
