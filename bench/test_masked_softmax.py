"""masked_softmax beside its floor and what else there is, at the sizes of LLaDA, Dream and DiffusionGemma.

    python bench/kernels.py --only masked_softmax

The floor is the fastest reading of the logits that this machine allows: each row's maximum, nothing else. The peers:
- eager: the step as LLaDA's generate.py does it (argmax and softmax; at T > 0 an exponential race in float64);
- compiled: the same under torch.compile;
- best torch: the best formulation of the same step in torch that we know, compiled;
- BlockRefinementScheduler, EntropyBoundScheduler: diffusers' steps, whole as they are called;
- twin: our specification in torch.

Logits are normal of spread 3. "Peaked" logits are normal of spread 2, one id of each row raised to 30: as a model gives
them that is nearly sure, and where most of the vocabulary cannot matter.
"""

import functools
import itertools
import os

import pytest
import torch
from side_by_side import race

from samplers import ops
from samplers.ops import _native, masked_softmax, reference

LLADA, DREAM, GEMMA = 126_464, 152_064, 262_144
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
PEERS = os.environ.get("SAMPLERS_BENCH_PEERS", "1") == "1"
EVERYTHING = ("confidence", "margin", "entropy", "lse")
PART = 256  # divides all three vocabularies
at_temperatures = pytest.mark.parametrize("temperature", [0.0, 0.7], ids=["T=0", "T=0.7"])
pytestmark = pytest.mark.skipif(not ops.status()["native"], reason=f"the floor is a native pass; {_native.REASON}")


@functools.lru_cache(maxsize=2)
def logits(dtype, rows, vocab, seed=0):
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(rows, vocab, generator=g) * 3).to(DTYPES[dtype])  # (N, V)


def uniform(rows):
    return torch.rand(rows, dtype=torch.float64, generator=torch.Generator().manual_seed(1))  # (N,) float64


# ---- the peers -------------------------------------------------------------------------------------------------------


def eager_step(logits, temperature):
    """LLaDA's generate.py: Gumbel-max as an exponential race in float64, confidence by a full softmax, gathered."""
    scores = logits
    if temperature > 0:
        noise = torch.rand_like(logits, dtype=torch.float64)
        scores = logits.double().exp() / (-noise.log()) ** temperature
    token = scores.argmax(-1)  # (N,) int64
    probability = torch.softmax(logits, -1)  # (N, V)
    return token, probability.gather(-1, token[:, None])[:, 0]


def best_torch_step(logits, temperature, uniform):
    """One pass for the maximum, one for the sums; a draw by inverse CDF, first over parts of a row, then inside one."""
    x = logits.float()
    top = x.amax(-1, keepdim=True)  # (N, 1)
    total = (x - top).exp().sum(-1)  # (N,)
    if temperature == 0:
        return x.argmax(-1), 1 / total
    parts = x.view(len(x), -1, PART)  # (N, V / PART, PART)
    through = ((parts - top[:, None]) / temperature).exp().sum(-1).double().cumsum(-1)
    target = uniform[:, None] * through[:, -1:]
    part = torch.searchsorted(through, target, right=True).clamp(max=through.shape[1] - 1)  # (N, 1)
    before = torch.where(part > 0, through.gather(1, (part - 1).clamp(min=0)), 0.0)
    hit = parts.gather(1, part[:, :, None].expand(-1, -1, PART))[:, 0]  # (N, PART)
    inside = ((hit - top) / temperature).exp().double().cumsum(-1)
    token = part[:, 0] * PART + (inside <= target - before).sum(-1).clamp(max=PART - 1)
    return token, (x.gather(1, token[:, None])[:, 0] - top[:, 0]).exp() / total


def sorting_step(logits, temperature, top_k, top_p):
    """Dream's generation_utils.py: top-p by a sort of the row, then top-k, then multinomial."""
    logits = logits / temperature
    ranked, order = torch.sort(logits, descending=True)
    out = torch.softmax(ranked, -1).cumsum(-1) > top_p
    out[..., 1:] = out[..., :-1].clone()
    out[..., 0] = False
    low = torch.finfo(logits.dtype).min
    logits = logits.masked_fill(torch.zeros_like(out).scatter(-1, order, out), low)
    logits = logits.masked_fill(logits < torch.topk(logits, top_k)[0][..., -1, None], low)
    probability = torch.softmax(logits, -1)
    token = torch.multinomial(probability, 1)
    return token[:, 0], probability.gather(-1, token)[:, 0]


def compiled(step, *args):
    return functools.partial(torch.compile(step, dynamic=False), *args)


def block_refinement(logits, temperature, **cut):
    """None without diffusers."""
    try:
        from diffusers import BlockRefinementScheduler
    except ImportError:
        return {}
    scheduler = BlockRefinementScheduler(block_length=32)
    scheduler.set_timesteps(32)
    blocks = logits.view(-1, min(32, len(logits)), logits.shape[1])  # (B, L, V)
    x = torch.full(blocks.shape[:2], 126_336)
    step = functools.partial(scheduler.step, blocks, 0, x, mask_token_id=126_336, temperature=temperature, **cut)
    return {"BlockRefinementScheduler": step}


def entropy_bound(logits):
    """Its temperature is its own: 0.8 at the first step."""
    try:
        from diffusers import EntropyBoundScheduler
    except ImportError:
        return {}
    scheduler = EntropyBoundScheduler()
    scheduler.set_timesteps(32)
    blocks = logits.view(-1, min(32, len(logits)), logits.shape[1])
    x = torch.zeros(blocks.shape[:2], dtype=torch.int64)
    return {"EntropyBoundScheduler": functools.partial(scheduler.step, blocks, 0, x)}


def twin(x, temperature, u):
    u = u if temperature > 0 else None
    args = (x, None, u, temperature, 1.0, None, None, None, 0.0, 0, 1.0, False, None, 1)
    return functools.partial(reference.masked_softmax, *args)


# ---- the groups ------------------------------------------------------------------------------------------------------


def ours(x, temperature, **kw):
    call = functools.partial(masked_softmax, x, uniform=uniform(len(x)), temperature=temperature, **kw)
    return {
        "floor": functools.partial(masked_softmax, x, want=()),
        "ours": functools.partial(call, want=("confidence",)),
        "ours, everything": functools.partial(call, want=EVERYTHING),
    }


def go(benchmark, what, x, calls, peers):
    torch._dynamo.reset()  # it gives up on a function that it has compiled for too many groups
    if PEERS:
        calls = {**calls, **peers()}
    size = x.numel() * x.element_size()
    name = next(k for k, v in DTYPES.items() if v == x.dtype)
    group = f"{what}, [{len(x)}, {x.shape[1]}] {name}"
    race(benchmark, group, calls, rows=len(x), vocab=x.shape[1], bytes=size, dtype=name, **ops.status())


@at_temperatures
@pytest.mark.parametrize("dtype", DTYPES)
def test_llada(benchmark, dtype, temperature):
    x = logits(dtype, 256, LLADA)

    def peers():
        u = uniform(len(x))
        return {
            "eager": functools.partial(eager_step, x, temperature),
            "compiled": compiled(eager_step, x, temperature),
            "best torch, compiled": compiled(best_torch_step, x, temperature, u),
            "twin": twin(x, temperature, u),
            **block_refinement(x, temperature),
            **(entropy_bound(x) if temperature > 0 else {}),
        }

    go(benchmark, f"LLaDA T={temperature}", x, ours(x, temperature), peers)


@at_temperatures
@pytest.mark.parametrize(("model", "vocab"), [("Dream", DREAM), ("DiffusionGemma", GEMMA)])
def test_other_vocabularies(benchmark, model, vocab, temperature):
    x = logits("bf16", 256, vocab)

    def peers():
        own = entropy_bound(x) if model == "DiffusionGemma" and temperature > 0 else {}
        best = compiled(best_torch_step, x, temperature, uniform(len(x)))
        return {"eager": functools.partial(eager_step, x, temperature), "best torch, compiled": best, **own}

    go(benchmark, f"{model} T={temperature}", x, ours(x, temperature), peers)


@at_temperatures
@pytest.mark.parametrize("rows", [1, 32])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("where", ["memory", "cache"])
def test_few_rows(benchmark, where, dtype, rows, temperature):
    """From memory: so many tensors in turns that none is still in a cache when its turn comes."""
    once = logits(dtype, rows, LLADA)
    copies = 1 if where == "cache" else max(2, (1 << 28) // (once.numel() * once.element_size()))
    tensors = [once.clone() for _ in range(copies)]
    turn, kw = itertools.cycle(tensors), {"uniform": uniform(rows), "temperature": temperature}
    calls = {
        "floor": lambda: masked_softmax(next(turn), want=()),
        "ours": lambda: masked_softmax(next(turn), **kw),
        "ours, everything": lambda: masked_softmax(next(turn), want=EVERYTHING, **kw),
    }
    peers = {"eager": lambda: eager_step(next(turn), temperature)}
    go(benchmark, f"few rows, from {where} T={temperature}", once, calls, lambda: peers)


@at_temperatures
@pytest.mark.parametrize("dtype", DTYPES)
def test_peaked(benchmark, dtype, temperature):
    g = torch.Generator().manual_seed(0)
    x = torch.randn(256, LLADA, generator=g) * 2
    x[torch.arange(256), torch.randint(LLADA, (256,), generator=g)] = 30.0
    x = x.to(DTYPES[dtype])

    def peers():
        best = compiled(best_torch_step, x, temperature, uniform(len(x)))
        return {"eager": functools.partial(eager_step, x, temperature), "best torch, compiled": best}

    go(benchmark, f"peaked T={temperature}", x, ours(x, temperature), peers)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("top_k", "top_p"), [(50, 1.0), (0, 0.9), (50, 0.9)])
def test_truncation(benchmark, dtype, top_k, top_p):
    x, T = logits(dtype, 32, LLADA), 0.7
    cut = {"top_k": top_k, "top_p": top_p}

    def peers():
        sorting = functools.partial(sorting_step, x, T, top_k or x.shape[1], top_p)
        return {"by sorting": sorting, **block_refinement(x, T, top_k=top_k or None, top_p=top_p)}

    calls = ours(x, T, **cut)
    calls.pop("ours, everything")
    go(benchmark, f"top_k={top_k} top_p={top_p} T={T}", x, calls, peers)


@at_temperatures
@pytest.mark.parametrize("dtype", DTYPES)
def test_guidance(benchmark, dtype, temperature):
    """Two rows of logits a row: the floor reads both."""
    x, other, w = logits(dtype, 128, LLADA), logits(dtype, 128, LLADA, 1), 1.5

    def both():
        masked_softmax(x, want=())
        masked_softmax(other, want=())

    calls = {**ours(x, temperature, guidance=other, cfg_scale=w), "floor": both}
    peers = {"eager": lambda: eager_step(other + (w + 1) * (x - other), temperature)}
    go(benchmark, f"guidance w={w} T={temperature}", x, calls, lambda: peers)
