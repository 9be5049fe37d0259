"""The transformer and its cache: against a dense float64 model of the same formulas, and a dictionary of rows."""

import dataclasses
import math
import random

import pytest
import torch

import samplers
from samplers.denoiser import CacheUse
from samplers.models import Cache, Config, Llama3Rope, Transformer, TransformerDenoiser

pytestmark = pytest.mark.usefixtures("one_thread")
SMALL = Config(50, width=48, layers=3, heads=4, kv_heads=2, head_width=16, mlp_width=80)
TIGHT = {"rtol": 2e-5, "atol": 2e-5}


def make(attention="causal", seed=3, dtype=torch.float32, **kw):
    config = dataclasses.replace(
        SMALL, attention=attention, block_length=4 if attention == "block_causal" else None, **kw
    )
    return Transformer(config, seed=seed, dtype=dtype).requires_grad_(False)


def tokens(batch, n, seed=0, vocab=50):
    return torch.randint(vocab, (batch, n), generator=torch.Generator().manual_seed(seed))


def reference(model, ids, positions, sees):
    """Hidden rows in float64 from the published formulas, one token and one head at a time, rotations as complex
    numbers. sees(i, j): whether token i sees token j, by the order in which they were fed."""
    c = model.config
    w = {name: p.double() for name, p in model.named_parameters()}
    pairs = c.head_width // 2
    frequency = torch.tensor([c.rope_theta ** (-2 * i / c.head_width) for i in range(pairs)], dtype=torch.float64)

    def norm(x, name):
        return x / (x.pow(2).mean(-1, keepdim=True) + c.norm_eps).sqrt() * w[name]

    def turned(x, p):
        z = torch.complex(x[:pairs], x[pairs:]) * torch.polar(torch.ones(pairs).double(), p * frequency)
        return torch.cat([z.real, z.imag])

    out = []
    for row, place in zip(ids.tolist(), positions.tolist()):
        x = w["embed.weight"][row]
        for layer in range(c.layers):
            at = f"blocks.{layer}."
            y = norm(x, at + "norm_attention.weight")
            q, k, v = (
                (y @ w[f"{at}{f}.weight"].T + w.get(f"{at}{f}.bias", 0)).unflatten(1, (-1, c.head_width)) for f in "qkv"
            )
            if c.qk_norm:
                q, k = norm(q, at + "norm_q.weight"), norm(k, at + "norm_k.weight")
            mixed = torch.zeros_like(q)
            for h in range(c.heads):
                shared = h // (c.heads // c.kv_heads)
                qs = [turned(q[i, h], p) for i, p in enumerate(place)]
                ks = [turned(k[i, shared], p) for i, p in enumerate(place)]
                for i in range(len(row)):
                    seen = [j for j in range(len(row)) if sees(i, j)]
                    scores = torch.stack([qs[i] @ ks[j] for j in seen]) / math.sqrt(c.head_width)
                    mixed[i, h] = scores.softmax(0) @ v[seen, shared]
            x = x + mixed.flatten(1) @ w[at + "o.weight"].T
            y = norm(x, at + "norm_mlp.weight")
            gate = y @ w[at + "gate.weight"].T
            x = x + (gate * gate.sigmoid() * (y @ w[at + "up.weight"].T)) @ w[at + "down.weight"].T
        out.append(norm(x, "norm.weight"))
    return torch.stack(out)


SEES = {"full": lambda i, j: True, "causal": lambda i, j: j <= i, "block_causal": lambda i, j: j // 4 <= i // 4}


# ---------------------------------------------------------------------------------------------- without a cache


@pytest.mark.parametrize("attention", SEES)
@pytest.mark.parametrize("kind", [{}, {"qk_norm": True}, {"qkv_bias": True, "kv_heads": 1}, {"tied": True}], ids=str)
def test_formulas(attention, kind):
    model = make(attention, **kind)
    for name, p in model.named_parameters():  # norms and biases that are not 1 and 0
        if p.dim() == 1:
            p.add_(torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))) * 0.3)
    ids = tokens(2, 9)
    places = torch.stack([torch.randperm(40)[:9], torch.arange(9)])
    torch.testing.assert_close(model(ids, places).double(), reference(model, ids, places, SEES[attention]), **TIGHT)


def test_needed_rows_and_the_head():
    model, ids = make("full"), tokens(3, 8)
    rows = torch.rand(3, 8, generator=torch.Generator().manual_seed(1)) < 0.4
    torch.testing.assert_close(model(ids, rows=rows), model(ids)[rows], **TIGHT)
    assert model(ids, rows=torch.zeros_like(rows)).shape == (0, 48)
    assert model.head.logits(model(ids)).shape == (3, 8, 50)
    tied = make(tied=True, embeddings=53)
    assert tied.head.weight.shape == (50, 48)
    assert tied.head.weight.data_ptr() == tied.embed.weight.data_ptr()


@pytest.mark.parametrize("attention", SEES)
def test_filling_is_not_seen(attention):
    """Ragged rows in one batch, each as it is alone."""
    model, ids, count = make(attention), tokens(3, 8), torch.tensor([8, 5, 1])
    out = model(ids, count=count)
    for b, n in enumerate(count.tolist()):
        torch.testing.assert_close(out[b, :n], model(ids[b : b + 1, :n])[0], **TIGHT)
    assert out.isfinite().all()


def test_weights_are_their_seed():
    state = torch.get_rng_state()
    one, two, other = make(seed=1), make(seed=1), make(seed=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters()))
    assert not torch.equal(one.embed.weight, other.embed.weight)
    assert all(p.is_meta for p in Transformer(SMALL, seed=None).parameters())


def test_it_learns():
    """Gradients pass: a few steps of plain descent lower the loss of one batch."""
    model, ids = make().requires_grad_(True), tokens(4, 8)

    def loss():
        logits = model.head.logits(model(ids[:, :-1]))
        return torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())

    before = loss().item()
    for _ in range(5):
        model.zero_grad()
        loss().backward()
        with torch.no_grad():
            for p in model.parameters():
                p -= 0.3 * p.grad
    assert loss().item() < before - 0.3


# ---------------------------------------------------------------------------------------------- with one


@pytest.mark.parametrize("split", [[1] * 12, [12], [5, 1, 6], [2, 3, 7]], ids=str)
def test_causal_in_any_pieces(split):
    model, ids = make(), tokens(2, 12)
    cache, outs, at = model.cache(2, 12), [], 0
    for n in split:
        piece = ids[:, at : at + n]
        look = model(piece, cache=cache)  # not stored
        outs.append(model(piece, cache=cache, store="append"))
        torch.testing.assert_close(look, outs[-1])
        at += n
        assert cache.lengths.tolist() == [at, at]
        assert cache.bytes_written == at * 2 * cache.row_bytes
    assert cache.row_bytes == 2 * 3 * 2 * 16 * 4
    torch.testing.assert_close(torch.cat(outs, 1), model(ids), **TIGHT)


def test_order_of_decoding_is_not_order_of_positions():
    """Slots of 4 decoded in any order: causal is the order in the cache, position is what the rotation says."""
    model, ids = make(), tokens(2, 12)
    order = torch.tensor([[8, 9, 10, 11, 0, 1, 2, 3, 4, 5, 6, 7], [4, 5, 6, 7, 8, 9, 10, 11, 0, 1, 2, 3]])
    fed = ids.gather(1, order)
    cache = model.cache(2, 20)
    outs = [model(fed[:, at : at + 4], order[:, at : at + 4], cache=cache, store="append") for at in range(0, 12, 4)]
    expected = reference(model, fed, order, SEES["causal"])
    torch.testing.assert_close(torch.cat(outs, 1).double(), expected, **TIGHT)
    assert (expected[0] - reference(model, fed, torch.arange(12).expand(2, 12), SEES["causal"])[0]).abs().max() > 0.1


def test_causal_ragged():
    """Rows of different lengths in one cache; a row's next tokens follow its own."""
    model, ids, count = make(), tokens(3, 9), torch.tensor([7, 0, 3])
    cache = model.cache(3, 9)
    model(ids[:, :7], cache=cache, store="append", count=count)
    assert cache.lengths.tolist() == [7, 0, 3]
    assert cache.bytes_written == 10 * cache.row_bytes
    following = torch.stack([ids[b, n : n + 2] for b, n in enumerate(count.tolist())])
    out = model(following, cache=cache, store="append")
    for b, n in enumerate(count.tolist()):
        torch.testing.assert_close(out[b], model(ids[b : b + 1, : n + 2])[0, n:], **TIGHT)


def test_blocks_are_exact():
    """Block-causal: finished blocks in the cache, the present one fed again and again, then stored once."""
    model, ids = make("block_causal"), tokens(2, 16)
    cache = model.cache(2, 16)
    whole = model(ids)
    torch.testing.assert_close(
        whole.double(), reference(model, ids, torch.arange(16).expand(2, 16), SEES["block_causal"]), **TIGHT
    )
    for at in range(0, 16, 4):
        noisy = torch.where(torch.arange(4) % 2 == 0, ids[:, at : at + 4], 1)
        model(noisy, cache=cache)  # a step of denoising: seen by nobody later
        out = model(ids[:, at : at + 4], cache=cache, store="append")
        torch.testing.assert_close(out, whole[:, at : at + 4], **TIGHT)
    assert cache.bytes_written == 2 * 16 * cache.row_bytes


def test_an_integer_start_under_another_default_device():
    model, ids = make("full"), tokens(2, 6)
    caches = [model.cache(2, 12) for _ in range(2)]
    expected = model(ids, cache=caches[0], store="replace", start=0)
    with torch.device("meta"):
        out = model(ids, cache=caches[1], store="replace", start=0)
    assert torch.equal(out, expected) and torch.equal(caches[0].key, caches[1].key)


def test_full_replaced():
    """Everything replaced is a new start; a window replaced by what was there changes nothing; by something else it is
    that window seen against the old rest (checked by writing the rows by hand)."""
    model, old, ids = make("full"), tokens(2, 10, seed=1), tokens(2, 10, seed=2)
    cache = model.cache(2, 12)
    model(old, cache=cache, store="append")
    torch.testing.assert_close(model(ids, cache=cache, store="replace", start=0), model(ids), **TIGHT)
    torch.testing.assert_close(model(ids[:, 3:7], cache=cache, store="replace", start=3), model(ids)[:, 3:7], **TIGHT)
    assert cache.bytes_written == (10 + 10 + 4) * 2 * cache.row_bytes

    before = [x.clone() for x in (cache.key, cache.value)]
    start = torch.tensor([2, 6])
    window = tokens(2, 3, seed=9)
    out = model(window, cache=cache, store="replace", start=start)
    for b, s in enumerate(start.tolist()):
        inside = slice(s, s + 3)
        kept = [i for i in range(10) if i not in range(s, s + 3)]
        for x, y in zip((cache.key, cache.value), before):
            assert torch.equal(x[:, b, :, kept], y[:, b, :, kept])
            assert not torch.equal(x[:, b, :, inside], y[:, b, :, inside])
        # The same in a cache of the other rows alone, the window behind them.
        alone = model.cache(1, 10)
        alone.append(before[0][:, b : b + 1, :, kept], before[1][:, b : b + 1, :, kept])
        torch.testing.assert_close(
            out[b : b + 1], model(window[b : b + 1], torch.arange(s, s + 3)[None], cache=alone), **TIGHT
        )


def test_prefix_and_the_rest():
    """A prefix in the cache and the rest fed beside it: with an unchanged prefix, what no cache gives."""
    model, ids = make("full"), tokens(2, 10)
    cache = model.cache(2, 10)
    whole = model(ids, cache=cache, store="append")
    cache.crop(4)
    torch.testing.assert_close(model(ids[:, 4:], cache=cache), whole[:, 4:], **TIGHT)
    assert cache.bytes_written == 20 * cache.row_bytes
    kept = model.cache(2, 10)
    model(ids, cache=kept, store="append")
    first = (torch.arange(10) < 4).expand(2, 10)  # the same by keep, nothing cropped
    places = torch.arange(4, 10).expand(2, 6)
    torch.testing.assert_close(model(ids[:, 4:], places, cache=kept, keep=first), whole[:, 4:], **TIGHT)


def test_scattered_rows():
    """Ragged sets of positions fed in any order; filling (index -1) is not seen and not stored."""
    model, old, ids = make("full"), tokens(3, 10, seed=1), tokens(3, 10, seed=2)
    index = torch.tensor([[7, 2, 5, 0], [3, -1, 9, -1], [-1, -1, -1, -1]])
    cache = model.cache(3, 11)
    model(old, cache=cache, store="append")
    before = cache.bytes_written
    fed = ids.gather(1, index.clamp(min=0))
    out = model(fed, cache=cache, store="scatter", index=index)
    assert cache.bytes_written - before == 6 * cache.row_bytes
    assert out.isfinite().all()
    for b in range(2):
        there = [i for i in range(4) if index[b, i] >= 0]
        alone = model.cache(1, 11)
        model(old[b : b + 1], cache=alone, store="append")
        got = model(fed[b : b + 1, there], cache=alone, store="scatter", index=index[b, there])
        torch.testing.assert_close(out[b, there], got[0], **TIGHT)
        torch.testing.assert_close(cache.key[:, b], alone.key[:, 0], **TIGHT)
    assert torch.equal(cache.lengths, torch.tensor([10, 10, 10]))
    # All positions scattered, in any order: a new start again.
    everything = torch.stack([torch.randperm(10) for _ in range(3)])
    got = model(ids.gather(1, everything), cache=cache, store="scatter", index=everything)
    torch.testing.assert_close(got, model(ids).gather(1, everything[..., None].expand(-1, -1, 48)), **TIGHT)


def test_rows_do_not_see_each_other():
    model, ids = make("full"), tokens(3, 8)
    together = model(ids)
    changed = ids.clone()
    changed[0] = 0
    torch.testing.assert_close(model(changed)[1:], together[1:], rtol=0, atol=0)
    torch.testing.assert_close(model(ids[1:2])[0], together[1], **TIGHT)


def test_bfloat16():
    exact, model = make(), make(dtype=torch.bfloat16)
    ids, cache = tokens(2, 12), model.cache(2, 12)
    outs = [model(ids[:, at : at + 3], cache=cache, store="append") for at in range(0, 12, 3)]
    assert outs[0].dtype == cache.key.dtype == torch.bfloat16
    assert (torch.cat(outs, 1) - exact(ids)).abs().max() < 0.1


# ---------------------------------------------------------------------------------------------- the cache alone


class Rows:
    """What a cache should hold: {(batch row, place): the number that its row is filled with}."""

    def __init__(self, batch):
        self.lengths, self.held, self.written = [0] * batch, {}, 0

    def put(self, b, place, number):
        self.held[b, place] = number
        self.written += 1


def marked(numbers, layers=2, heads=3, width=4):
    """Numbers (B, n) to new rows (layers, B, H, n, d) whose every element says number, layer, head and column."""
    x = torch.tensor(numbers, dtype=torch.float32)[None, :, None, :, None]
    where = torch.arange(layers * heads * width).view(layers, 1, heads, 1, width)
    return x * 100 + where


KINDS = ("append", "replace", "scatter", "compact", "crop", "select", "taken", "gather")


def same(cache, rows):
    assert cache.lengths.tolist() == rows.lengths
    for b, length in enumerate(rows.lengths):
        expected = marked([[rows.held[b, i] for i in range(length)]])[:, 0] if length else None
        if length:
            assert torch.equal(cache.key[:, b, :, :length], expected)
            assert torch.equal(cache.value[:, b, :, :length], -expected)
    assert cache.bytes_written == rows.written * cache.row_bytes


@pytest.mark.parametrize("seed", range(12))
def test_random_walk_of_operations(seed):
    """Sixty operations in a row, ragged lengths, against a dictionary; bytes counted by both."""
    rng, number = random.Random(seed), iter(range(1, 10**6))
    batch, length = rng.randint(1, 4), rng.randint(1, 12)
    cache, rows = Cache(2, batch, 3, length, 4), Rows(batch)
    done = set()
    for _ in range(60):
        n = rng.randint(1, length)
        numbers = [[next(number) for _ in range(n)] for _ in range(batch)]
        new, kind = marked(numbers), rng.choice(KINDS)
        if kind == "append":
            count = [rng.randint(0, min(n, length - used)) for used in rows.lengths]
            for b in range(batch):
                for i in range(count[b]):
                    rows.put(b, rows.lengths[b] + i, numbers[b][i])
                rows.lengths[b] += count[b]
            cache.append(new, -new, torch.tensor(count))
        elif kind == "replace":
            if min(rows.lengths) < n:
                continue
            start = [rng.randint(0, used - n) for used in rows.lengths]
            for b in range(batch):
                for i in range(n):
                    rows.put(b, start[b] + i, numbers[b][i])
            if len(set(start)) == 1 and rng.random() < 0.5:
                cache.replace(new, -new, start[0])
            else:
                cache.replace(new, -new, torch.tensor(start))
        elif kind == "scatter":
            index = [
                [rng.choice(places) if (places := [*range(used), -1]) else -1 for _ in range(n)]
                for used in rows.lengths
            ]
            for b in range(batch):
                for i, place in enumerate(index[b]):
                    if place >= 0:
                        rows.put(b, place, numbers[b][i])
            cache.scatter(new, -new, torch.tensor(index))
        elif kind == "compact":
            keep = [[rng.random() < 0.7 for _ in range(length)] for _ in range(batch)]
            for b in range(batch):
                kept = [i for i in range(rows.lengths[b]) if keep[b][i]]
                values = [rows.held[b, i] for i in kept]
                for i, (place, value) in enumerate(zip(kept, values)):
                    rows.held[b, i] = value
                    rows.written += i != place
                rows.lengths[b] = len(kept)
            cache.compact(torch.tensor(keep))
        elif kind == "crop":
            most = [rng.randint(0, length) for _ in range(batch)]
            rows.lengths = [min(a, b) for a, b in zip(rows.lengths, most)]
            cache.crop(torch.tensor(most) if rng.random() < 0.5 or len(set(most)) > 1 else most[0])
        elif kind == "select":
            source = [rng.randrange(batch) for _ in range(batch)]
            old, lengths = dict(rows.held), list(rows.lengths)
            for b, s in enumerate(source):
                for i in range(lengths[s] if s != b else 0):
                    rows.put(b, i, old[s, i])
                rows.lengths[b] = lengths[s]
            cache.select(torch.tensor(source))
        elif kind == "taken":
            source = [rng.randrange(batch) for _ in range(rng.randint(1, 5))]
            room = rng.choice([None, rng.randint(1, length + 3)])
            other, made = cache.index_select(torch.tensor(source), room), Rows(len(source))
            for b, s in enumerate(source):
                made.lengths[b] = min(rows.lengths[s], other.length)
                for i in range(made.lengths[b]):
                    made.put(b, i, rows.held[s, i])
            assert other.length == (length if room is None else room)
            same(other, made)
        else:  # rows of several batch rows, joined in one
            wanted = [(b, i) for b in range(batch) for i in range(rows.lengths[b]) if rng.random() < 0.5]
            if not wanted:
                continue
            row, place = (torch.tensor(x) for x in zip(*wanted))
            key, value = cache.gather(place, row)
            expected = marked([[rows.held[w] for w in wanted]])
            assert torch.equal(key, expected)
            assert torch.equal(value, -expected)
        done.add(kind)
        same(cache, rows)
    assert len(done) >= 6


def test_slots_merged_into_one_row():
    """ReFusion's merge: slots refined in batch rows of their own, gathered behind the prefix of one row."""
    model, prefix, slots = make(), tokens(1, 5), tokens(3, 4, seed=4)
    cache = model.cache(1, 20)
    model(prefix, cache=cache, store="append")
    several = cache.index_select(torch.zeros(3, dtype=torch.int64), 9)
    places = torch.arange(5, 17).view(3, 4)
    model(slots, places, cache=several, store="append")
    keep = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)  # the rest is behind an end
    row, at = keep.nonzero().T
    key, value = several.gather(at + 5, row)
    cache.append(key, value)
    assert cache.lengths.tolist() == [11]
    assert torch.equal(cache.key[:, 0, :, 5:9], several.key[:, 0, :, 5:9])
    assert torch.equal(cache.key[:, 0, :, 9:11], several.key[:, 1, :, 5:7])


# ---------------------------------------------------------------------------------------------- as a denoiser


def test_denoiser_in_the_driver():
    model = make("full", embeddings=51)
    denoiser = TransformerDenoiser(model, mask_id=50, name="tiny")
    assert (denoiser.family, denoiser.vocab_size, denoiser.attention) == ("masked", 50, "full")
    out = samplers.sample(denoiser, "low_confidence", prompt=[[3, 4], [5, 6]], gen_length=8, steps=4, seed=1)
    assert out.x.shape == (2, 10)
    assert (out.x < 50).all()
    assert out.x[:, :2].tolist() == [[3, 4], [5, 6]]
    assert out.nfe == 4
    x = torch.full((2, 6), 50)
    rows = torch.ones(2, 6, dtype=torch.bool)
    torch.testing.assert_close(denoiser.predict(x), denoiser.predict(x, rows=rows).view(2, 6, 50), **TIGHT)


def test_denoiser_with_a_cache():
    """A block of the canvas fed against the rest: what the driver's cache schemes are made of."""
    denoiser = TransformerDenoiser(make("full", embeddings=51), mask_id=50)
    x = tokens(2, 12)
    x[:, 4:8] = 50
    cache = denoiser.new_cache(2, 12)
    needed = torch.zeros(2, 12, dtype=torch.bool)
    needed[:, 4:8] = True
    places = torch.arange(12).expand(2, -1)
    whole = denoiser.hidden(x, rows=needed, cache=CacheUse(cache, places, write="fill"))
    assert whole.shape == (8, 48)
    block = denoiser.hidden(x[:, 4:8], rows=needed[:, 4:8], cache=CacheUse(cache, places[:, 4:8], write="scatter"))
    torch.testing.assert_close(block, whole, **TIGHT)


# ---------------------------------------------------------------------------------------------- bad input


IDS = tokens(2, 4)
CAUSAL, FULL, BLOCKS = make(), make("full", max_length=30), make("block_causal")


def filled(model, n=4, length=6):
    cache = model.cache(2, length)
    model(tokens(2, n), cache=cache, store="append")
    return cache


BAD = [
    (IndexError, "rows 4 to 7 are to be written, the cache has room for 6", lambda: CAUSAL(IDS, cache=filled(CAUSAL), store="append")),
    (IndexError, "rows 3 to 6 .* room for 6", lambda: FULL(IDS, cache=filled(FULL), store="replace", start=3)),
    (IndexError, "index has 6, the cache has rows 0 to 5", lambda: FULL(IDS, cache=filled(FULL), store="scatter", index=torch.tensor([0, 1, 6, 2]))),
    (IndexError, "positions go from 0 to 30, expected 0 to 29", lambda: FULL(IDS, torch.tensor([[0, 1, 2, 30]] * 2))),
    (IndexError, "positions go from -1", lambda: FULL(IDS, torch.tensor([[-1, 1, 2, 3]] * 2))),
    (IndexError, "positions go from 0 to 30", lambda: FULL(tokens(1, 31))),
    (IndexError, "positions go from 28 to 31", lambda: FULL(IDS, cache=filled(FULL, 28, 40), store="append")),
    (IndexError, "ids go from 0 to 50, expected 0 to 49", lambda: FULL(torch.tensor([[0, 50]]))),
    (TypeError, "ids is torch.int32, expected a tensor of torch.int64", lambda: FULL(IDS.int())),
    (TypeError, "positions is torch.float32", lambda: FULL(IDS, IDS.float())),
    (ValueError, r"positions has shape \(4,\), expected \(2, 4\)", lambda: FULL(IDS, torch.arange(4))),
    (ValueError, "ids is on meta, the weights are on cpu", lambda: FULL(IDS.to("meta"))),
    (ValueError, "n at least 1", lambda: FULL(IDS[:, :0])),
    (ValueError, r"the cache is \(3, 3, 2, 6, 16\), expected \(3, 2, 2, 6, 16\)", lambda: FULL(IDS, cache=FULL.cache(3, 6))),
    (ValueError, "the cache is torch.bfloat16 on cpu, the weights are torch.float32", lambda: FULL(IDS, cache=Cache(3, 2, 2, 6, 16, dtype=torch.bfloat16))),
    (ValueError, r"keep has shape \(2, 4\), expected \(2, 6\)", lambda: FULL(IDS, cache=filled(FULL), keep=torch.ones(2, 4, dtype=torch.bool))),
    (ValueError, r"the cache holds \[3, 3\] rows, expected whole blocks of 4", lambda: BLOCKS(IDS, cache=filled(BLOCKS, 3, 9), store="append")),
    (samplers.OptionError, "store='replace' needs full attention, this model's is causal", lambda: CAUSAL(IDS, cache=filled(CAUSAL), store="replace", start=0)),
    (samplers.OptionError, "store must be None, 'append', 'replace' or 'scatter', not 'put'", lambda: FULL(IDS, cache=filled(FULL), store="put")),
    (samplers.OptionError, "store and keep need a cache", lambda: FULL(IDS, store="append")),
    (samplers.OptionError, "start goes with store='replace'", lambda: FULL(IDS, cache=filled(FULL), store="append", start=2)),
    (samplers.OptionError, "start goes with store='replace'", lambda: FULL(IDS, cache=filled(FULL), store="replace")),
    (samplers.OptionError, "a negative index says", lambda: FULL(IDS, cache=filled(FULL), store="scatter", index=torch.arange(4), count=torch.tensor([1, 2]))),
    (samplers.OptionError, "4 heads cannot share 3 kv_heads", lambda: Config(10, 16, 1, 4, kv_heads=3)),
    (samplers.OptionError, "rotary positions turn pairs", lambda: Config(10, 15, 1, 5)),
    (samplers.OptionError, "attention must be full, causal, block_causal, not 'both'", lambda: Config(10, 16, 1, 4, attention="both")),
    (samplers.OptionError, "go together", lambda: Config(10, 16, 1, 4, block_length=4)),
    (samplers.OptionError, "layers must be a positive integer, not 0", lambda: Config(10, 16, 0, 4)),
    (samplers.OptionError, "fewer than vocab_size", lambda: Config(10, 16, 1, 4, embeddings=9)),
    (samplers.OptionError, "one of the 50 ids", lambda: TransformerDenoiser(FULL, mask_id=50)),
]  # fmt: skip


@pytest.mark.parametrize("row", range(len(BAD)))
def test_bad_input(row):
    error, message, call = BAD[row]
    with pytest.raises(error, match=message):
        call()


def test_nothing_is_written_where_a_call_fails():
    cache = filled(CAUSAL)
    before = cache.key.clone(), cache.value.clone(), cache.lengths.clone(), cache.bytes_written
    with pytest.raises(IndexError):
        CAUSAL(IDS, cache=cache, store="append", count=torch.tensor([1, 3]))
    assert torch.equal(cache.key, before[0])
    assert torch.equal(cache.value, before[1])
    assert torch.equal(cache.lengths, before[2])
    assert cache.bytes_written == before[3]


def test_llama3_rope_by_wavelength():
    """Short wavelengths stay, long ones are slowed by the factor, and it is monotone in between."""
    from samplers.models.transformer import rope_frequencies

    plain = Config(10, 64, 1, 1, rope_theta=500_000.0)
    scaled = dataclasses.replace(plain, rope_scaling=Llama3Rope(8.0, 1.0, 4.0, 8192))
    f, g = rope_frequencies(plain).double(), rope_frequencies(scaled).double()
    wavelength = 2 * math.pi / f
    short, long = wavelength < 8192 / 4, wavelength > 8192 / 1
    assert short.any() and long.any() and not (short | long).all()
    torch.testing.assert_close(g[short], f[short])
    torch.testing.assert_close(g[long], f[long] / 8)
    between = ~short & ~long
    assert ((g < f) & (g > f / 8))[between].all()
