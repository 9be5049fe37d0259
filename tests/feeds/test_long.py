"""Long canvases: what a step makes is a few planes of the canvas and a forward pass over the block, nothing larger."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import samplers
from samplers import TokenDenoiser, nll
from samplers.feeds import cached
from samplers.models import transformer as transformers
from samplers.models.denoiser import TransformerDenoiser
from samplers.models.transformer import Config, Transformer

pytestmark = pytest.mark.usefixtures("one_thread")
L, BLOCK, V = 65_536, 32, 50
PLANE = 8  # bytes per position of a plane of int64, the largest that a step may make
CAUSAL, BLOCKS = ("causal", None), ("block_causal", BLOCK)


def denoiser(attention, block_length=None, **more):
    shape = {"vocab_size": V, "embeddings": V + 1, "width": 32, "layers": 2, "heads": 4, "kv_heads": 2} | more
    config = Config(attention=attention, block_length=block_length, **shape)
    return TransformerDenoiser(Transformer(config, seed=1), mask_id=V)


class Sizes(TorchDispatchMode):
    """Notes the bytes of every tensor that an operation makes in memory of its own, while it is on."""

    def __init__(self):
        super().__init__()
        self.made = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in given:
                self.made.append((x.untyped_storage().nbytes(), str(function), tuple(x.shape)))
        return out


def steps(model, sampler, number, **run):
    """The largest tensor of eight steps of a run, after the first `number`, and the run."""
    going = samplers.stream(model, sampler, seed=1, **run)
    for _ in range(number):
        next(going)
    with Sizes() as sizes:
        for _ in range(8):
            next(going)
    return max(sizes.made), going


@pytest.mark.parametrize("name", ["low_confidence", "threshold", "entropy_bound", "radd", "remdm", "llada2"])
@pytest.mark.parametrize("prompt", [0, L - 2 * BLOCK])
def test_a_step_makes_planes_and_no_more(name, prompt):
    """With a window, at the beginning and at the end of a canvas. The model itself makes nothing here."""
    rows, logits = [], torch.zeros(1, L, 3)

    def fn(ids):
        rows.append(ids.shape[1])
        return logits[:, : ids.shape[1]]

    model = TokenDenoiser.wrap(fn, vocab_size=3, mask_id=3, attention="block_causal", attention_block=BLOCK)
    run = {"prompt": torch.zeros(prompt, dtype=torch.int64), "gen_length": L - prompt, "temperature": 1.0}
    most, _ = steps(model, name, 2, window="block", **run)
    assert set(rows) == {prompt + BLOCK} and most[0] <= PLANE * L, most


@pytest.mark.parametrize("kind", [CAUSAL, BLOCKS], ids=["causal", "block_causal"])
def test_a_step_with_a_cache_makes_planes_and_no_more(kind, monkeypatch):
    model, asked = denoiser(*kind), []
    hidden = model.hidden

    def counted(x, t=None, *, rows=None, cache=None, lengths=None):
        if cache.write is None:
            asked.append((x.shape[1], int(rows.sum())))
            return hidden(x, t, rows=rows, cache=cache)
        # A prompt's keys may be anything here: it would take a minute to compute them.
        shape = (2, len(x), 2, x.shape[1], 8)
        cache.store.append(torch.randn(shape), torch.randn(shape), cache.count)
        return torch.zeros(0, 32)

    monkeypatch.setattr(model, "hidden", counted)
    for prompt in (0, L - 2 * BLOCK):
        run = {"prompt": torch.zeros(prompt, dtype=torch.int64), "gen_length": L - prompt, "block_length": BLOCK}
        for name in ("low_confidence", "remdm"):
            most, going = steps(model, name, 3, cache="block", **run)
            assert most[0] <= PLANE * L, most
            assert going.result().head_rows <= BLOCK * going.nfe
    assert {given for given, _ in asked} == {BLOCK} and max(n for _, n in asked) == BLOCK


# ---------------------------------------------------------------------------------------------- pieces and spans


@pytest.mark.parametrize(("attention", "size"), [("causal", None), ("block_causal", 6)])
@pytest.mark.parametrize("shift", [False, True])
def test_a_long_prompt_in_pieces(attention, size, shift, monkeypatch):
    """Of rows that end in different pieces, or with one; the tokens are those of no cache."""
    model = denoiser(attention, size)
    model.shift = shift
    prompts = [torch.arange(n) * 7 % V for n in (40, 24, 25, 1, 61)]
    run = {"prompt": prompts, "gen_length": 13, "block_length": 6, "temperature": 1.0}
    plain = samplers.sample(model, "threshold", **run)
    whole = samplers.sample(model, "threshold", cache="block", **run)
    monkeypatch.setattr(cached, "PIECE", 12)
    given = []
    hidden = model.hidden
    model.hidden = lambda x, *args, **kw: given.append(x.shape[1]) or hidden(x, *args, **kw)
    pieces = samplers.sample(model, "threshold", cache="block", **run)
    assert torch.equal(plain.x, whole.x) and torch.equal(plain.x, pieces.x)
    assert max(given) <= 12 + shift and pieces.cache_bytes == whole.cache_bytes
    first = [(n // (size or 1) * (size or 1)) for n in map(len, prompts)]  # what is kept before the first block
    assert (pieces.nfe_rows - whole.nfe_rows).tolist() == [max(0, -(-n // 12) - 1) for n in first]


@pytest.mark.parametrize("size", [5, 32])
def test_block_causal_attention_without_a_mask_of_all(size, monkeypatch):
    """In spans it is what it is under one mask, padding included; in float64, and nothing (n, n) is made."""
    model = denoiser("block_causal", size)
    model.model.double()
    x = torch.arange(3 * 300).view(3, 300) * 11 % (V + 1)
    lengths = torch.tensor([300, 40, 133])
    whole = [model.predict(x), model.predict(x, lengths=lengths)]
    monkeypatch.setattr(transformers, "SPAN", 64)
    with Sizes() as sizes:
        spans = [model.predict(x), model.predict(x, lengths=lengths)]
    for one, other in zip(whole, spans):
        assert float((one - other).abs().max()) < 1e-12
    assert all(300 not in shape or shape.count(300) < 2 for _, _, shape in sizes.made)


def test_a_fill_keeps_no_second_cache():
    """A full forward pass that fills a cache writes each layer when it is made."""
    model = denoiser("full", layers=24, kv_heads=4)
    n = 2048
    with Sizes() as sizes:
        going = samplers.stream(model, "low_confidence", gen_length=n, block_length=BLOCK, cache="dual")
        next(going)
        next(going)
    cache = 24 * n * 32 * 4  # bytes of all keys
    assert sorted(size for size, _, _ in sizes.made)[-2:] == [
        cache,
        cache,
    ]  # key and value, and then what a layer makes
    assert sorted(size for size, _, _ in sizes.made)[-3] < cache / 4


def test_likelihood_does_not_multiply_all_rows_at_once(monkeypatch):
    model = denoiser("full")
    rows = [[i * j % V for i in range(n)] for j, n in ((3, 40), (7, 25))]
    whole = nll(model, rows, prompt=2, mc=8, replicates=2, seed=1)
    monkeypatch.setattr(samplers.likelihood, "PART", 7)
    parts = nll(model, rows, prompt=2, mc=8, replicates=2, seed=1)
    assert torch.equal(whole.nll, parts.nll)
