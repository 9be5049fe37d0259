"""KV caches as driver options: against a plain simulation of each scheme, and against no cache where that is exact."""

import pytest
import torch

import samplers
from samplers import OptionError, TokenDenoiser
from samplers.feeds.cached import cache_scheme
from samplers.models.denoiser import TransformerDenoiser
from samplers.models.transformer import Config, Transformer
from samplers.testing.tiny import TinyNet

pytestmark = pytest.mark.usefixtures("one_thread")
V, MASK = 9, 9


# ---------------------------------------------------------------------------------------------- a model made of glass


class Glass(TokenDenoiser):
    """A position's "key and value" is its token and the number of masks that it saw when it was fed: two layers of a model.

    Logits are a table's sum over the (distance, key) that a position sees. What a scheme feeds and keeps is thereby
    seen in its logits, and can be simulated with a dictionary {position: (token, masks seen)}.
    """

    vocab_size, mask_id, name, takes_lengths = V + 1, MASK, "glass", True

    def __init__(self, attention="full", block=1, seed=0, shift=False):
        self.attention, self.attention_block, self.shift = attention, block, shift
        self.caches = ("prefix", "dual", "delayed") if attention == "full" else ("prefix", "block")
        generator = torch.Generator().manual_seed(seed)
        self.table = torch.randint(-999, 1000, (61, 97, V + 1), generator=generator).double()  # sums are exact

    def sees(self, p, q):
        return self.attention == "full" or q // self.attention_block <= p // self.attention_block

    def feed(self, fed, kept):
        """fed {position: token}, kept {position: (token, masks)} -> {position: (token, masks)} of the fed positions."""
        masked = [q for q, token in fed.items() if token == MASK] + [
            q for q, (token, _) in kept.items() if token == MASK
        ]
        return {p: (token, sum(self.sees(p, q) for q in masked)) for p, token in fed.items()}

    def logits_at(self, p, keys):
        """(V + 1,) of what stands at p, where the positions of `keys` are fed or kept."""
        seen = ((q, token, masks) for q, (token, masks) in keys.items() if self.sees(p, q))
        return sum(self.table[q - p + 30, (10 * masks + token) % 97] for q, token, masks in seen).float() / 400

    def new_cache(self, batch, length):
        return Store(batch)

    def predict(self, x, t=None, *, rows=None, cache=None, lengths=None):
        out = []
        lengths = lengths if cache is None else cache.count
        for a in range(len(x)):
            kept, n = {}, x.shape[1] if lengths is None else int(lengths[a])
            if cache is None or cache.write == "fill":
                fed = dict(enumerate(x[a, :n].tolist()))
            else:
                fed = dict(list(zip(cache.positions[a].tolist(), x[a].tolist()))[:n])
                kept = {q: key for q, key in cache.store.rows[a].items() if cache.keep is None or cache.keep[a, q]}
                if cache.write == "scatter":
                    kept = {q: key for q, key in kept.items() if q not in fed}
            new = self.feed(fed, kept)
            lines = list(fed)
            asked = range(len(lines)) if rows is None else rows[a].nonzero().flatten().tolist()
            if self.shift:  # the line before each, which must be of the position before it
                places = range(x.shape[1]) if cache is None else cache.positions[a].tolist()
                assert all(places[i] == (lines[i - 1] + 1 if i else 0) for i in asked)
                asked = [max(i - 1, 0) for i in asked]
            out += [self.logits_at(lines[i], kept | new) for i in asked]
            if cache is not None and cache.write is not None:
                cache.store.take(a, cache, new)
        if cache is not None and cache.write == "append":
            cache.store.lengths += cache.count
        if rows is None:
            return torch.stack(out).view(*x.shape, -1)
        return torch.stack(out) if out else torch.zeros(0, V + 1)


class Store:
    def __init__(self, batch):
        self.rows = [{} for _ in range(batch)]
        self.lengths, self.bytes_written = torch.zeros(batch, dtype=torch.int64), 0

    def take(self, a, feed, new):
        if feed.write == "fill" and feed.rows is not None:
            a = [i for first, end in feed.rows for i in range(first, end)][a]
        self.rows[a] |= new
        self.bytes_written += len(new)

    def keep_rows(self, source):
        self.rows = [self.rows[i] for i in source.tolist()]
        self.lengths = self.lengths[source]


def simulate(model, scheme, prompt, gen_length, block_length, refresh=8, align=False):
    """low_confidence at temperature 0, one position a step, under a caching scheme: plain Python, one row.

    Blocks are counted from the end of the prompt, or with `align` from position 0.
    """
    length = len(prompt) + gen_length
    x = prompt + [MASK] * gen_length
    kept, forwards, written = {}, 0, 0

    def tokens(positions):
        return {q: x[q] for q in positions}

    origin = len(prompt) // block_length * block_length if align else len(prompt)
    for corner in range(origin, length, block_length):
        begin = max(corner, len(prompt))
        block = range(begin, min(corner + block_length, length))
        if scheme == "block" and (final := begin // model.attention_block * model.attention_block) > len(kept):
            new = model.feed(tokens(range(len(kept), final)), kept)
            kept, forwards, written = kept | new, forwards + 1, written + len(new)
        last = None
        for step in range(len(block)):
            full = step == 0 or (scheme == "delayed" and (step == 1 or step % refresh == 0))
            before = {p - 1 for p in block if x[p] == MASK and p and model.shift}  # whose lines answer
            if scheme is None or (full and scheme != "block"):
                keys = model.feed(tokens(range(length)), {})
                kept, written = (keys, written + length) if scheme else ({}, 0)
            elif scheme == "prefix":
                fed = before | set(range(begin, length))
                front = {q: key for q, key in kept.items() if q < begin and q not in fed}
                keys = front | model.feed(tokens(sorted(fed)), front)
            elif scheme == "block":
                end = -(-(block[-1] + 1) // model.attention_block) * model.attention_block
                keys = kept | model.feed(tokens(range(len(kept), min(end, length))), kept)
            else:
                fed = set(block) if scheme == "dual" else {q for q in range(length) if x[q] == MASK or q == last}
                fed = sorted(fed | before)
                others = {q: key for q, key in kept.items() if q not in fed}
                kept = keys = others | model.feed(tokens(fed), others)
                written += len(fed)
            # Where a kept line answers for all that is masked, nothing is given to the model.
            forwards += not (scheme == "block" and before == {len(kept) - 1})
            best = None
            for p in block:
                if x[p] == MASK:
                    line = max(p - 1, 0) if model.shift else p
                    probability = torch.softmax(model.logits_at(line, keys)[:V].double(), 0)
                    if best is None or float(probability.max()) > best[0]:
                        best = (float(probability.max()), p, int(probability.argmax()))
            x[best[1]], last = best[2], best[1]
    return x, forwards, written


CASES = [
    *(("full", 1, scheme) for scheme in (None, "prefix", "dual", "delayed", "delayed(3)")),
    *(("causal", 1, scheme) for scheme in (None, "prefix", "block")),
    *(("block_causal", size, scheme) for size in (2, 4) for scheme in (None, "block")),
]


@pytest.mark.parametrize(("attention", "size", "scheme"), CASES, ids=str)
@pytest.mark.parametrize(
    ("block_length", "shift", "align"),
    [*((n, False, align) for n in (4, 5, 11) for align in (None, "the other")), (5, True, None)],
)
@pytest.mark.parametrize("ragged", ["groups", "pad"])
def test_a_scheme_is_what_it_says(attention, size, scheme, block_length, shift, align, ragged):
    """Ragged rows in one batch, against the plain simulation of each: tokens, forwards, and what was written."""
    prompts = [[1, 2, 3], [4], [5, 6, 7]]
    model = Glass(attention, size, shift=shift)
    from_0 = (attention == "block_causal") == (align is None)
    out = samplers.sample(
        model, "low_confidence", prompt=prompts, gen_length=11, block_length=block_length, cache=scheme,
        align=align and from_0, ragged=ragged,
    )  # fmt: skip
    name, _, refresh = (scheme or "").partition("(")
    written = 0
    for i, prompt in enumerate(prompts):
        x, forwards, wrote = simulate(
            Glass(attention, size, shift=shift),
            name or None,
            prompt,
            11,
            block_length,
            int(refresh[:-1]) if refresh else 8,
            from_0,
        )
        assert out.x[i, : len(x)].tolist() == x
        assert int(out.nfe_rows[i]) == forwards
        written += wrote
    assert out.cache_bytes == written
    if ragged == "pad" and scheme != "block":  # there a row may have nothing to keep when its block begins
        # Aligned rows begin their blocks in different steps, and a whole row is not given together with parts of others.
        assert int(out.nfe_rows.max()) <= out.nfe < int(out.nfe_rows.sum())
        assert from_0 or out.nfe == int(out.nfe_rows.max())


def test_inexact_schemes_do_differ():
    """Else the test above could not tell one from another."""
    made = {}
    for scheme in (None, "prefix", "dual", "delayed"):
        kw = {"prompt": [[1, 2, 3]], "gen_length": 20, "block_length": 5, "cache": scheme}
        made[scheme] = tuple(samplers.sample(Glass(), "low_confidence", **kw).x[0].tolist())
    assert len(set(made.values())) == 4


# ---------------------------------------------------------------------------------------------- a real transformer


def transformer(attention, block_length=None, **kw):
    config = Config(
        vocab_size=30, width=48, layers=2, heads=4, kv_heads=2, attention=attention, embeddings=31,
        block_length=block_length, **kw,
    )  # fmt: skip
    return TransformerDenoiser(Transformer(config, seed=3), mask_id=30)


# None is empty: where all that is seen is masks their values are equal, so all logits are, and the last bits decide.
PROMPTS = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10, 11, 12], [13]]
EXACT = [
    ("causal", None, "prefix"),
    ("causal", None, "block"),
    ("block_causal", 4, "block"),
    ("block_causal", 3, "block"),
]


@pytest.mark.parametrize(("attention", "size", "scheme"), EXACT)
@pytest.mark.parametrize("name", ["low_confidence", "threshold", "radd", "entropy_bound"])
def test_exact_schemes_change_no_token(attention, size, scheme, name):
    denoiser = transformer(attention, size)
    for setting in (
        {"block_length": 4, "temperature": 1.0},
        {"block_length": 5, "steps": 9, "temperature": 0.0},
        {"temperature": 0.7, "cfg_scale": 0.5, "block_length": 6},
    ):
        run = {"prompt": PROMPTS, "gen_length": 14, "seed": 4, **setting}
        plain = samplers.sample(denoiser, name, **run)
        cached = samplers.sample(denoiser, name, cache=scheme, **run)
        assert (plain.x == cached.x).all()
        assert cached.token_evals < plain.token_evals
        assert (cached.nfe_rows >= plain.nfe_rows).all() and cached.cache_bytes > 0 == plain.cache_bytes


@pytest.mark.parametrize("size", [3, 4])
@pytest.mark.parametrize(
    ("name", "option"),
    [("threshold", {"threshold": 0.3, "steps_per_block": 2}), ("llada2", {"threshold": 0.3, "edit_threshold": 0.2})],
)
def test_the_models_own_blocks_are_exact_and_cheaper(size, name, option):
    """Every prompt length up to two blocks in one ragged batch; against no cache, and against blocks after the prompt."""
    denoiser = transformer("block_causal", size)
    prompts = [torch.arange(p) * 7 % 30 for p in range(1, 2 * size + 1)]
    run = {"prompt": prompts, "gen_length": 11, **option}
    plain = samplers.sample(denoiser, name, **run)
    cached = samplers.sample(denoiser, name, cache="block", **run)
    assert (plain.x == cached.x).all() and plain.settings["align"]
    window = samplers.sample(denoiser, name, window="block", **run)
    assert (plain.x == window.x).all() and cached.token_evals < window.token_evals < plain.token_evals
    # One position per step, so that both take the same steps: a block of ours then lies in one block of the model's.
    each = {"prompt": prompts, "gen_length": 11, "cache": "block"}
    aligned, other = (
        samplers.sample(denoiser, "low_confidence", block_length=size, align=a, **each) for a in (True, False)
    )
    assert aligned.token_evals < other.token_evals


def test_full_attention_fed_in_full_is_exact():
    denoiser = transformer("full")
    run = {"gen_length": 14, "batch": 3, "temperature": 1.0, "seed": 2}
    plain = samplers.sample(denoiser, "low_confidence", prompt=[1, 2], **run)
    each = samplers.sample(denoiser, "low_confidence", prompt=[1, 2], cache="delayed(1)", **run)
    assert (plain.x == each.x).all()
    free = samplers.sample(denoiser, "low_confidence", **run)
    assert (samplers.sample(denoiser, "low_confidence", cache="dual", **run).x == free.x).all()


@pytest.mark.parametrize("scheme", ["prefix", "dual", "delayed(4)"])
def test_row_of_a_batch_is_the_row_alone(scheme):
    denoiser = transformer("full")
    for name in ("threshold", "radd"):  # rows get ahead of each other, and pause
        run = {"gen_length": 12, "block_length": 4, "seed": 1, "temperature": 1.0, "cache": scheme}
        together = samplers.sample(denoiser, name, prompt=PROMPTS, **run)
        for i, prompt in enumerate(PROMPTS):
            alone = samplers.sample(denoiser, name, prompt=[prompt], first_row=i, **run)
            assert together.x[i, : len(prompt) + 12].tolist() == alone.x[0].tolist()
            assert int(together.nfe_rows[i]) == int(alone.nfe_rows[0])


def test_rows_that_are_done_leave_the_cache():
    """Finished rows are fed no more: the last forwards have fewer rows, and each row is still itself."""
    denoiser = transformer("causal")
    run = {"prompt": PROMPTS, "gen_length": 16, "block_length": 4, "temperature": 1.0, "stop": list(range(0, 30, 4))}
    run["stop"] = [[i] for i in run["stop"]]
    free = samplers.sample(denoiser, "threshold", **run)
    out = samplers.sample(denoiser, "threshold", cache="block", **run)
    assert (free.x == out.x).all() and (free.lengths == out.lengths).all()
    assert len(set(out.lengths.tolist())) > 1
    same = {**run, "prompt": [[1, 2]] * 8}
    plain = samplers.sample(denoiser, "threshold", **same)
    fed = []
    hidden = denoiser.hidden
    denoiser.hidden = lambda x, *args, **kw: fed.append(len(x)) or hidden(x, *args, **kw)
    assert (samplers.sample(denoiser, "threshold", cache="block", **same).x == plain.x).all()
    assert fed[0] == 8 and len(set(fed)) > 2 and fed == sorted(fed, reverse=True), "rows leave at different times"


def test_infilling_with_caches():
    """Blocks whose positions lie apart, given tokens between them."""
    denoiser = transformer("causal")
    x = torch.arange(20) % 30
    fill = torch.arange(20).remainder(3) != 0
    canvas = samplers.Canvas.infill(denoiser, x, fill, batch=2)
    run = {"prompt": canvas, "block_length": 3, "temperature": 1.0}
    plain = samplers.sample(denoiser, "low_confidence", **run)
    for scheme in ("prefix", "block"):
        assert (samplers.sample(denoiser, "low_confidence", cache=scheme, **run).x == plain.x).all()


def test_bytes_are_rows_times_kappa():
    """Dual: all rows when a block begins, the block's in the other steps, and nothing else."""
    denoiser = transformer("full")
    kappa = denoiser.new_cache(1, 1).row_bytes
    assert kappa == 2 * 2 * 2 * 12 * 4  # key and value, layers, heads, width, bytes
    out = samplers.sample(
        denoiser, "low_confidence", prompt=[1, 2, 3], gen_length=12, block_length=4, batch=2, cache="dual"
    )
    assert out.cache_bytes == 2 * 3 * (15 + 3 * 4) * kappa
    out = samplers.sample(
        denoiser, "low_confidence", prompt=[1, 2, 3], gen_length=12, block_length=4, batch=2, cache="prefix"
    )
    assert out.cache_bytes == 2 * 3 * 15 * kappa


@pytest.mark.parametrize(
    ("cache", "says"),
    [
        ("prefx", "prefix, dual, delayed"),
        ("delayed(0)", "k >= 1"),
        ("dual(3)", "k >= 1"),
        (3, "prefix, dual"),
        ("block", "block needs causal or block_causal attention"),
    ],
)
def test_bad_schemes(cache, says):
    with pytest.raises(OptionError, match=says):
        samplers.sample(transformer("full"), "radd", gen_length=4, cache=cache)


@pytest.mark.parametrize("fact", ["self_conditioned", "time_per_position"])
def test_a_model_that_is_given_more_than_tokens(fact):
    denoiser = transformer("full")
    setattr(denoiser, fact, True)
    with pytest.raises(OptionError, match=f"is {fact}: it is given .* cache=None"):
        samplers.sample(denoiser, "radd", gen_length=4, cache="dual")


def test_schemes_by_attention():
    assert str(cache_scheme("delayed", transformer("full"))) == "delayed(8)"
    assert cache_scheme(None, transformer("full")) is None
    with pytest.raises(OptionError, match="supports prefix, block"):
        cache_scheme("dual", transformer("causal"))
    with pytest.raises(OptionError, match="supports none"):
        samplers.sample(TinyNet(), "radd", gen_length=4, cache="dual")
