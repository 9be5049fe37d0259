"""Live transformers models as denoisers: against the classes themselves, a plain simulation, and our own transformer."""

import dataclasses
import functools

import pytest
import torch

import samplers
from samplers import OptionError, TokenDenoiser
from samplers.denoiser import CacheUse
from samplers.errors import ModelError
from samplers.models import load
from samplers.models.denoiser import TransformerDenoiser

transformers = pytest.importorskip("transformers")
from samplers.models import from_transformers  # noqa: E402

pytestmark = pytest.mark.usefixtures("one_thread")

V, MASK, LENGTH = 40, 39, 48
SIZE = {
    "vocab_size": V,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": LENGTH,
    "pad_token_id": 1,
    "bos_token_id": None,
    "eos_token_id": None,
}
SPECIAL = {"cls_token_id": None, "sep_token_id": None}
CLASSES = {  # what each adds to SIZE; the first five see both sides, the others look back
    "Bert": ("MaskedLM", {}),
    "Roberta": ("MaskedLM", {}),
    "ModernBert": ("MaskedLM", {**SPECIAL, "local_attention": 8}),
    "EuroBert": ("MaskedLM", {"mask_token_id": MASK, "num_key_value_heads": 2}),
    "Esm": ("MaskedLM", {"mask_token_id": MASK}),
    "Llama": ("CausalLM", {"num_key_value_heads": 2}),
    "Qwen2": ("CausalLM", {"num_key_value_heads": 2}),
    "Qwen3": ("CausalLM", {"num_key_value_heads": 2, "head_dim": 16, "tie_word_embeddings": True}),
    "Qwen3Moe": ("CausalLM", {"head_dim": 8, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}),
    "Gemma2": ("CausalLM", {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 32, "final_logit_softcapping": 3.0}),
}  # fmt: skip


@functools.cache
def live(kind, **more):
    """A model of the class, random but larger than at birth, so that every part shows; in train mode, as it was made."""
    ending, own = CLASSES[kind]
    config = getattr(transformers, f"{kind}Config")(**{**SIZE, **own, **more})
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = getattr(transformers, f"{kind}For{ending}")(config)
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(p * 6 if p.dim() > 1 else p + 0.3 * torch.randn(p.shape))
    return model.train()


def allowed(attention, n, block=4):
    """(n, n) bool, who sees whom, in plain Python."""
    rule = {
        "full": lambda i, j: True,
        "causal": lambda i, j: j <= i,
        "block_causal": lambda i, j: j // block <= i // block,
    }[attention]
    return torch.tensor([[rule(i, j) for j in range(n)] for i in range(n)])


def additive(seen, batch):
    return torch.zeros(batch, 1, *seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)


def wrapped(kind, attention=None, **how):
    block = {"block_length": 4} if attention == "block_causal" else {}
    return from_transformers(live(kind), mask_id=MASK, attention=attention, **block, **how)


IDS = torch.randint(2, MASK, (3, 20), generator=torch.Generator().manual_seed(0))
MASKS = [kind for kind in CLASSES if CLASSES[kind][0] == "MaskedLM"]
LOOKS_BACK = [kind for kind in CLASSES if CLASSES[kind][0] == "CausalLM"]
EVERY = [*((kind, "full") for kind in MASKS), *((k, a) for k in LOOKS_BACK for a in ("full", "causal", "block_causal"))]


def close(x, y, relative=1e-4):
    assert x.shape == y.shape
    assert (x - y).abs().max() < relative * y.abs().max()


# ---------------------------------------------------------------------------------------------- logits


@pytest.mark.parametrize(("kind", "attention"), EVERY)
def test_logits_are_the_class_s_own(kind, attention):
    model = live(kind)
    config, weights = model.config.to_dict(), {name: p.clone() for name, p in model.state_dict().items()}
    model.train()
    denoiser = wrapped(kind, None if kind in MASKS else attention)
    assert not model.training and denoiser.attention == attention and not [w for w in denoiser.why if "cache" not in w]
    how = {} if kind in MASKS or attention == "causal" else {"attention_mask": additive(allowed(attention, 20), 3)}
    with torch.no_grad():
        expected = model(IDS, **how).logits
    assert expected.std() > 0.3, "logits that say something"
    close(denoiser.predict(IDS), expected)
    rows = torch.rand(3, 20, generator=torch.Generator().manual_seed(1)) < 0.4
    close(denoiser.predict(IDS, rows=rows), expected[rows])
    close(denoiser.head.logits(denoiser.hidden(IDS, rows=rows)), expected[rows])
    nothing = torch.zeros(3, 20, dtype=torch.bool)
    assert denoiser.predict(IDS, rows=nothing).shape == (0, V)
    # The model is as it was.
    assert model.config.to_dict() == config and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(p, weights[name]) for name, p in model.state_dict().items())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_logits_in_half_precision():
    for kind, attention in (("Bert", "full"), ("Qwen3", "block_causal")):
        model = type(live(kind))(live(kind).config).to(torch.bfloat16)
        block = 4 if attention == "block_causal" else None
        denoiser = from_transformers(model, mask_id=MASK, attention=attention, block_length=block)
        assert denoiser.head.weight.dtype == torch.bfloat16 and denoiser.takes_lengths and denoiser.caches
        mask = {} if block is None else {"attention_mask": additive(allowed(attention, 20), 3).bfloat16()}
        with torch.no_grad():
            close(denoiser.predict(IDS).float(), model(IDS, **mask).logits.float(), 2e-2)


@pytest.mark.parametrize("kind", ["Bert", "Roberta", "ModernBert", "Qwen3"])
def test_what_lies_after_the_body_runs_on_needed_rows_only(kind):
    denoiser = wrapped(kind, None if kind in MASKS else "full")
    model, made = denoiser.model, []
    inner = {"Bert": "cls.predictions.transform", "Roberta": "lm_head.dense", "ModernBert": "head"}.get(kind)
    hooks = [model.get_output_embeddings().register_forward_hook(lambda *_: pytest.fail("logits were stored"))]
    if inner is not None:
        hooks.append(
            model.get_submodule(inner).register_forward_hook(lambda m, x, y: made.append(y.shape[:-1].numel()))
        )
    try:
        out = samplers.sample(denoiser, "low_confidence", prompt=[3, 4, 5], gen_length=12, batch=2, steps=6)
    finally:
        for hook in hooks:
            hook.remove()
    assert out.nfe == 6 and out.head_rows == 2 * (12 + 10 + 8 + 6 + 4 + 2) < out.token_evals == 6 * 2 * 15
    assert inner is None or sum(made) == out.head_rows


def test_shift():
    """Line i - 1 answers for position i, and the first line for the first position."""
    straight, shifted = (wrapped("Qwen2", "full", shift=shift) for shift in (False, True))
    expected = straight.predict(IDS)
    expected = torch.cat([expected[:, :1], expected[:, :-1]], 1)
    close(shifted.predict(IDS), expected)
    rows = torch.zeros(3, 20, dtype=torch.bool)
    rows[0, :2] = rows[1, 7] = rows[2, [0, 19]] = True
    close(shifted.predict(IDS, rows=rows), expected[rows])
    assert not wrapped("Qwen2", "causal", shift=True).predicts_next


@pytest.mark.parametrize(("kind", "attention"), EVERY)
def test_rows_of_different_lengths(kind, attention):
    """A row with filling after it is the row alone, whatever the filling is."""
    denoiser = wrapped(kind, None if kind in MASKS else attention)
    assert denoiser.takes_lengths
    lengths = torch.tensor([20, 7, 13])
    x, rows = IDS.clone(), torch.arange(20) < lengths[:, None]
    made = denoiser.predict(x, rows=rows, lengths=lengths)
    alone = torch.cat([denoiser.predict(x[i : i + 1, :n])[0] for i, n in enumerate(lengths.tolist())])
    close(made, alone, 1e-5)
    x[~rows] = MASK
    assert torch.equal(made, denoiser.predict(x, rows=rows, lengths=lengths)) or kind == "Qwen3Moe"
    if attention != "causal":
        assert (made - denoiser.predict(x, rows=rows)).abs().max() > 0.01, "filling that is seen shows"


# ---------------------------------------------------------------------------------------------- caches


def feed(model, offset, attention, block, fed, kept):
    """{position: token}, {position: a layer's key and value each} -> {position: (logits, keys and values)} of what is fed.

    In transformers' own DynamicCache, for one row: the cached rows by position, then those that are given.
    """
    old, new = sorted(kept), sorted(fed)
    past = transformers.DynamicCache()
    layers = model.config.num_hidden_layers
    for layer in range(layers if old else 0):
        past.update(*(torch.stack([kept[p][layer][part] for p in old], 1)[None] for part in (0, 1)), layer)
    sees = [[attention == "full" or q // block <= p // block for q in old + new] for p in new]
    at = torch.tensor([new])
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor([[fed[p] for p in new]]),
            attention_mask=additive(torch.tensor(sees), 1),
            position_ids=at + offset,
            past_key_values=past,
        ).logits[0]

    def rows(i):
        return [(past.layers[n].keys[0, :, i], past.layers[n].values[0, :, i]) for n in range(layers)]

    return {p: (logits[i], rows(len(old) + i)) for i, p in enumerate(new)}


def simulate(ask, scheme, block, prompt, gen_length, block_length, refresh):
    """low_confidence at temperature 0, one position per step, under a caching scheme: plain Python, one row."""
    length = len(prompt) + gen_length
    x, kept, forward_passes = [*prompt, *[MASK] * gen_length], {}, 0
    for begin in range(len(prompt), length, block_length):
        here = range(begin, min(begin + block_length, length))
        if scheme == "block" and (final := begin // block * block) > len(kept):
            made = ask({p: x[p] for p in range(len(kept), final)}, kept)
            kept, forward_passes = kept | {p: made[p][1] for p in made}, forward_passes + 1
        last = None
        for step in range(len(here)):
            full = step == 0 or (scheme == "delayed" and (step == 1 or step % refresh == 0))
            if scheme is None or (full and scheme != "block"):
                fed, seen = range(length), {}
            elif scheme == "prefix":
                fed, seen = range(begin, length), {p: kept[p] for p in range(begin)}
            elif scheme == "block":
                fed, seen = range(len(kept), min(-(-(here[-1] + 1) // block) * block, length)), kept
            else:
                fed = here if scheme == "dual" else [p for p in range(length) if x[p] == MASK or p == last]
                seen = {p: row for p, row in kept.items() if p not in fed}
            made = ask({p: x[p] for p in fed}, seen)
            forward_passes += 1
            if scheme in ("dual", "delayed") or (full and scheme == "prefix"):
                kept = kept | {p: made[p][1] for p in made}
            best = max((float(made[p][0][:MASK].double().softmax(0).max()), -p) for p in here if x[p] == MASK)
            last = -best[1]
            # as the driver's softmax has no column for the mask token
            x[last] = int(made[last][0][:MASK].argmax())
    return x, forward_passes


CASES = [
    *(("Llama", "full", scheme) for scheme in ("prefix", "dual", "delayed(3)")),
    *(("Roberta", "full", scheme) for scheme in ("prefix", "delayed(3)")),  # positions from 2
    ("Bert", "full", "dual"),
    ("EuroBert", "full", "dual"),
    ("Qwen3", "causal", "prefix"),
    ("Qwen2", "causal", "block"),
    ("Qwen3Moe", "block_causal", "block"),
]


@pytest.mark.parametrize(("kind", "attention", "scheme"), CASES)
def test_a_scheme_is_what_it_says(kind, attention, scheme):
    """Tokens and forward passes of ragged rows in a batch, against the plain simulation of each."""
    prompts, block = [[2, 3, 4, 5, 6], [7], [8, 9, 10, 11, 12]], {"block_causal": 4}.get(attention, 1)
    denoiser = wrapped(kind, None if kind in MASKS else attention)
    run = {"prompt": prompts, "gen_length": 13, "steps": 13, "align": False}
    for block_length in (4, 6):
        out = samplers.sample(denoiser, "low_confidence", block_length=block_length, cache=scheme, **run)
        name, _, refresh = scheme.partition("(")
        ask = functools.partial(feed, denoiser.model, 2 if kind == "Roberta" else 0, attention, block)
        for i, prompt in enumerate(prompts):
            x, forward_passes = simulate(
                ask, name, block, prompt, 13, block_length, int(refresh[:-1] or 8) if refresh else 8
            )
            assert out.x[i, : len(x)].tolist() == x
            assert int(out.nfe_rows[i]) == forward_passes


class Pair(TokenDenoiser):
    """Two denoisers that are asked the same; the first answers. `apart`: how far their logits were, at most."""

    def __init__(self, first, second):
        self.pair, self.apart, self.calls = (first, second), 0.0, 0
        self.__dict__ |= {name: getattr(first, name) for name in ("vocab_size", "mask_id", "attention", "caches")}
        self.attention_block, self.stores = first.attention_block, []

    def new_cache(self, batch, length):
        both = [denoiser.new_cache(batch, length) for denoiser in self.pair]
        both[0].other = both[1]
        keep = both[0].keep_rows
        both[0].keep_rows = lambda source: (keep(source), both[1].keep_rows(source))
        self.stores.append(both)
        return both[0]

    def predict(self, x, t=None, *, rows=None, cache=None):
        second = None if cache is None else dataclasses.replace(cache, store=cache.store.other)
        a, b = (d.predict(x, rows=rows, cache=c) for d, c in zip(self.pair, (cache, second)))
        if len(a):
            self.apart = max(self.apart, float((a - b).abs().max() / b.abs().max()))
        self.calls += 1
        return a


@pytest.mark.parametrize("kind", ["Llama", "Qwen3"])
def test_equal_to_our_own_transformer_with_the_same_weights(kind, tmp_path):
    live(kind).save_pretrained(tmp_path)
    prompts, run = [[2, 3, 4, 5, 6], [7, 8], [9, 10, 11, 12, 13]], {"gen_length": 12, "block_length": 4, "seed": 3}
    for attention, schemes in {
        "full": ("prefix", "dual", "delayed(3)"),
        "causal": ("prefix", "block"),
        "block_causal": ("block",),
    }.items():
        model, _ = load(tmp_path, attention=attention, block_length=4 if attention == "block_causal" else None)
        ours = TransformerDenoiser(model, mask_id=MASK)
        denoiser = wrapped(kind, attention)
        assert denoiser.caches == ours.caches == tuple(dict.fromkeys(s.partition("(")[0] for s in schemes))
        for scheme in (None, *schemes):
            pair = Pair(denoiser, ours)
            stop = [[i] for i in range(0, 38, 4)]  # rows end at different times, and leave the cache
            samplers.sample(pair, "threshold", prompt=prompts, cache=scheme, temperature=1.0, stop=stop, **run)
            assert pair.calls > 3 and pair.apart < 1e-4
            assert bool(pair.stores) == bool(scheme)
            written = [(a.bytes_written, b.bytes_written) for a, b in pair.stores]
            assert all(a == b for a, b in written) and (scheme is None or sum(a for a, _ in written) > 0)


@pytest.mark.parametrize(
    ("attention", "scheme"),
    [("causal", "prefix"), ("causal", "block"), ("block_causal", "block"), ("full", "delayed(1)")],
)
def test_exact_schemes_change_no_token(attention, scheme):
    denoiser = wrapped("Qwen3", attention)
    prompts = [[2, 3, 4, 5, 6], [7, 8], [9, 10, 11, 12, 13], [14]]
    for name, setting in (
        ("threshold", {"block_length": 4, "temperature": 1.0}),
        ("low_confidence", {"block_length": 5, "temperature": 0.7, "cfg_scale": 0.5}),
    ):
        run = {"prompt": prompts, "gen_length": 14, "seed": 4, "stop": [[5], [6]], **setting}
        plain, cached = (samplers.sample(denoiser, name, cache=c, **run) for c in (None, scheme))
        assert (plain.x == cached.x).all() and cached.cache_bytes > 0
        if scheme != "delayed(1)":
            assert cached.token_evals < plain.token_evals


def test_sequences(tmp_path):
    """Plain autoregression is transformers' own generate, and ReFusion the same as with our own transformer."""
    live("Qwen2").save_pretrained(tmp_path)
    denoiser = wrapped("Qwen2", "causal")
    assert denoiser.predicts_next
    out = samplers.sample(denoiser, "autoregressive", prompt=[3, 4, 5], gen_length=20, temperature=0.0)
    how = {"max_new_tokens": 20, "do_sample": False, "suppress_tokens": [MASK], "pad_token_id": 1}
    assert out.x.tolist() == denoiser.model.generate(torch.tensor([[3, 4, 5]]), **how).tolist()
    ours = TransformerDenoiser(load(tmp_path)[0], mask_id=MASK, predicts_next=True)
    run = {"prompt": [[3, 4, 5], [6]], "gen_length": 32, "seed": 5, "temperature": 0.5}
    a, b = (samplers.sample(d, "refusion", **run) for d in (denoiser, ours))
    assert (a.x == b.x).all() and a.nfe == b.nfe and a.cache_bytes == b.cache_bytes > 0


def test_a_model_without_a_cache_says_so():
    denoiser = wrapped("ModernBert")
    assert denoiser.caches == () and "no KV caches: some of its layers see only 4 positions" in denoiser.why[0]
    with pytest.raises(OptionError, match="supports none; use cache=None"):
        samplers.sample(denoiser, "low_confidence", gen_length=8, cache="dual")
    with pytest.raises(NotImplementedError, match="has no cache"):
        denoiser.new_cache(1, 8)


# ---------------------------------------------------------------------------------------------- what it says of itself


@dataclasses.dataclass
class Words:
    vocab_size: int
    mask_id: int | None = None
    eos_ids: tuple[int, ...] = ()


def test_facts_come_from_the_config_and_the_tokenizer():
    roberta = from_transformers(live("Roberta"), Words(35, mask_id=36, eos_ids=(2, 36, 50)))
    assert (roberta.max_length, roberta.mask_id, roberta.vocab_size, roberta.stop_ids) == (LENGTH - 2, 36, 35, (2,))
    samplers.sample(roberta, "random_order", gen_length=LENGTH - 2, steps=2)
    with pytest.raises(OptionError, match=f"{LENGTH - 2}"):
        samplers.sample(roberta, "random_order", gen_length=LENGTH - 1, steps=2)
    # Ids that have no text are never drawn, and the head is a part of the model's, not a copy.
    weight = roberta.model.get_output_embeddings().weight
    assert roberta.head.weight.shape == (35, 32) and roberta.head.weight.data_ptr() == weight.data_ptr()
    assert int(samplers.sample(roberta, "random_order", gen_length=40, batch=8, steps=2, temperature=9.0).x.max()) < 35
    model = live("EuroBert")
    assert from_transformers(model).mask_id == MASK, "as config.mask_token_id says"
    assert from_transformers(model).name == "EuroBertForMaskedLM"
    gemma = wrapped("Gemma2", "full")
    assert gemma.head.softcap == 3.0 and gemma.max_length == 32, "beyond a window its own masks would be others"
    assert wrapped("Gemma2", "causal").max_length == LENGTH


def test_facts_come_from_the_family():
    """As samplers.models.families knows them by the name of the class, unless an argument says otherwise."""
    pytest.importorskip("samplers.models.families")

    def made(name, **facts):
        model = type(name, (transformers.Qwen2ForCausalLM,), {})(live("Qwen2", mask_token_id=MASK).config)
        out = from_transformers(model, **facts)
        return out.attention, out.attention_block, out.shift, out.predicts_next

    assert made("DreamModel") == ("full", 1, True, False)
    assert made("DreamModel", shift=False) == ("full", 1, False, False)
    assert made("SDARForCausalLM") == ("block_causal", 4, False, False)
    assert made("SDARForCausalLM", block_length=8) == ("block_causal", 8, False, False)
    assert made("SDARForCausalLM", attention="causal") == ("causal", 1, False, True)
    with pytest.raises(OptionError, match="how it was trained to fill masks"):
        made("Qwen2ForCausalLM")


def test_text():
    """A tokenizer of transformers, made here: text in, text out."""
    pytest.importorskip("samplers.models.hf_tokenizer")
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["[UNK]", "[PAD]", "[MASK]", "</s>", *"abcdefghij"])}
    plain = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    plain.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "mask_token": "[MASK]", "eos_token": "</s>"}
    tokenizer = transformers.PreTrainedTokenizerFast(tokenizer_object=plain, **special)
    denoiser = from_transformers(live("Bert"), tokenizer)
    assert (denoiser.mask_id, denoiser.stop_ids, denoiser.vocab_size) == (2, (3,), 14)
    assert denoiser.encode("b d").tolist() == [5, 7] and denoiser.decode(torch.tensor([5, 7])) == "b d"


def test_a_head_that_cannot_be_taken_off():
    """Then logits are stored, and are still right, shifted and cut to the tokenizer."""

    class Odd(transformers.LlamaForCausalLM):
        def forward(self, *args, **kwargs):
            out = super().forward(*args, **kwargs)
            out.logits = out.logits + out.logits.roll(1, -1)
            return out

    odd = Odd(live("Llama").config)
    odd.load_state_dict(live("Llama").state_dict())
    double = live("Llama").__class__(live("Llama").config).double()
    for model, why in ((odd, "gives other logits than the model"), (double, "its last layer is in torch.float64")):
        shifted = from_transformers(model, Words(35), mask_id=MASK, attention="full", shift=True)
        assert shifted.head is None and why in shifted.why[0] and shifted.caches and shifted.takes_lengths
        with torch.no_grad():
            mask = additive(allowed("full", 20), 3).to(model.dtype)
            expected = model(IDS, attention_mask=mask).logits[..., :35].float()
        expected = torch.cat([expected[:, :1], expected[:, :-1]], 1)
        close(shifted.predict(IDS), expected)
        rows = IDS % 3 == 0
        logits, index = shifted.logits(IDS, None, rows, int(rows.sum()))
        close(logits[index], expected[rows])
        run = {"prompt": [[2, 3, 4]], "gen_length": 12, "batch": 2, "steps": 12, "block_length": 4, "seed": 1}
        plain, each = (samplers.sample(shifted, "low_confidence", cache=c, **run) for c in (None, "delayed(1)"))
        assert (plain.x == each.x).all() and int(plain.x.max()) < 35


# ---------------------------------------------------------------------------------------------- train mode


def test_train_mode_is_noticed():
    model = live("Bert")
    denoiser = from_transformers(model.train(), mask_id=MASK)
    run = {"gen_length": 4, "steps": 2}
    samplers.sample(denoiser, "radd", **run)
    model.train()
    with pytest.raises(OptionError, match=r"train mode, in which bert\.embeddings\.dropout .*call model\.eval\(\)"):
        samplers.sample(denoiser, "radd", **run)
    model.eval()
    still = wrapped("Llama", "full")
    still.model.train()  # nothing in it draws
    samplers.sample(still, "radd", **run)
    still.model.eval()


NET = torch.nn.Sequential(torch.nn.Embedding(9, 9), torch.nn.Dropout(0.1))


class Holder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.net, self.attention_dropout = torch.nn.Embedding(9, 9), 0.1

    def logits(self, ids):
        return self.net(ids)


def test_train_mode_of_wrapped_callables():
    def sampled(fn):
        return samplers.sample(TokenDenoiser.wrap(fn, vocab_size=9, mask_id=8), "radd", gen_length=4, steps=2)

    local, holder, norm = torch.nn.Sequential(*NET), Holder(), torch.nn.Embedding(9, 9)
    norm.more = torch.nn.BatchNorm1d(3)
    for fn, what in (
        (local, "1 .Dropout."),
        (holder.logits, "Holder"),
        (lambda ids: local(ids), "1 .Dropout."),
        (lambda ids: NET(ids), "1 .Dropout."),
        (functools.partial(holder.logits), "Holder"),
        (norm, "more .BatchNorm1d."),
    ):
        with pytest.raises(OptionError, match=f"train mode, in which {what} changes what it answers; call model.eval"):
            sampled(fn)
    sampled(torch.nn.Sequential(torch.nn.Embedding(9, 9), torch.nn.Dropout(0.0)))  # as it is made, and nothing draws
    sampled(lambda ids: torch.zeros(*ids.shape, 9) if ids.is_cuda else torch.ones(*ids.shape, 9))
    other = type("Teacher", (), {"NET": torch.nn.Embedding(9, 9)})
    sampled(lambda ids: other.NET(ids))  # the name of an attribute is no global
    denoiser = TokenDenoiser.wrap(local, vocab_size=9, mask_id=8)
    local.eval()
    samplers.sample(denoiser, "radd", gen_length=4, steps=2)


# ---------------------------------------------------------------------------------------------- errors


def deaf():
    """A model that takes a mask and does not look at it."""
    model = transformers.LlamaForCausalLM(live("Llama").config)
    own = model.model.forward
    model.model.forward = lambda *args, attention_mask=None, **kwargs: own(*args, **kwargs)
    return model


def broken():
    model = transformers.BertForMaskedLM(live("Bert").config)
    torch.nn.init.constant_(model.cls.predictions.decoder.weight, float("nan"))
    return model


@pytest.mark.parametrize(
    ("make", "error", "says"),
    [
        (lambda: from_transformers(torch.nn.Embedding(9, 9)), OptionError, "not Embedding; .*TokenDenoiser.wrap.fn, vocab"),
        (lambda: from_transformers(live("Bert")), ModelError, "names a mask token; say which id it is: .*mask_id=..."),
        (lambda: from_transformers(live("Bert"), mask_id=V), ModelError, "mask_id is 40, but .* embeds ids 0 to 39"),
        (lambda: from_transformers(live("Bert"), mask_id=-1), OptionError, "mask_id"),
        (lambda: from_transformers(live("Bert"), Words(41, 3)), ModelError, "tokenizer has 41 ids, but .* embeds 40; .*resize_"),
        (lambda: from_transformers(live("Bert").bert, mask_id=3), ModelError, r"BertModel gives no logits .*AutoModelForMaskedLM"),
        (lambda: from_transformers(broken(), mask_id=3), ModelError, "BertForMaskedLM gives NaN .* its weights are not"),
        (lambda: from_transformers(live("Llama"), mask_id=3), OptionError, "give attention='full' .* block_length= .*'causal'"),
        (lambda: wrapped("Bert", "diagonal"), OptionError, "attention must be full, causal or block_causal, not 'diagonal'"),
        (lambda: from_transformers(live("Llama"), mask_id=3, block_length=4), OptionError, "go together"),
        (
            lambda: from_transformers(live("Llama"), mask_id=3, attention="block_causal", block_length=LENGTH),
            OptionError,
            "block_length is 48, not below the 48 positions",
        ),
        (
            lambda: from_transformers(deaf(), mask_id=3, attention="full"),
            ModelError,
            "does not attend as attention='full' says, .* attn_implementation='sdpa' or 'eager'",
        ),
        (
            lambda: from_transformers(transformers.T5ForConditionalGeneration(
                transformers.T5Config(vocab_size=9, d_model=8, d_kv=4, d_ff=8, num_layers=1, num_heads=2)
            )),
            ModelError,
            "encoder with a decoder",
        ),
        (
            lambda: from_transformers(transformers.ViTModel(transformers.ViTConfig(
                hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
            )), mask_id=3),
            ModelError,
            "ViTModel has no vocabulary .*: a model of text is needed",
        ),
        (
            lambda: from_transformers(live("Llama", attn_implementation="flex_attention"), mask_id=3, attention="full"),
            ModelError,
            "attn_implementation='flex_attention', which does not run on a CPU",
        ),
    ],
)  # fmt: skip
def test_bad_models_and_arguments(make, error, says):
    with pytest.raises(error, match=says):
        make()


@pytest.mark.parametrize("every", [False, True])
def test_a_cache_s_rows_are_read_by_its_lengths(every):
    """What lies after them is not seen, nor is what `keep` leaves out; `count` says how many tokens are there.

    every: all rows of the cache are given to attention, as on a device, where their number is not looked at.
    """
    denoiser = wrapped("Llama", "full")
    if every:
        denoiser._columns = lambda cache: 0 if cache.write == "fill" else cache.store.length
    store, at = denoiser.new_cache(2, 12), torch.arange(12).expand(2, -1)
    denoiser.predict(IDS[:2, :8], cache=CacheUse(store, at[:, :8], write="fill"))
    store.key[:, :, :, 8:], store.value[:, :, :, 8:] = 9.0, 9.0
    x = IDS[:2, 8:12].clone()
    use = CacheUse(store, at[:, 8:], count=torch.tensor([4, 2]))
    made = denoiser.predict(x, cache=use)
    x[1, 2:] = MASK
    again = denoiser.predict(x, cache=use)
    close(again[0], made[0], 1e-5)
    close(again[1, :2], made[1, :2], 1e-5)
    alone = feed(denoiser.model, 0, "full", 1, dict(enumerate(IDS[1, :8].tolist())), {})
    kept = {p: row for p, (_, row) in alone.items() if p < 6}
    keep = (torch.arange(12) < 6).expand(2, -1)
    made = denoiser.predict(x, cache=dataclasses.replace(use, keep=keep))
    expected = feed(denoiser.model, 0, "full", 1, {8: int(x[1, 0]), 9: int(x[1, 1])}, kept)
    close(made[1, :2], torch.stack([expected[8][0], expected[9][0]]))
    before = store.key.clone()
    denoiser.predict(x, cache=dataclasses.replace(use, write="scatter"))
    changed = (store.key != before).any(-1).any(2).any(0)  # (B, length)
    assert changed.tolist() == [[False] * 8 + [True] * 4, [False] * 8 + [True] * 2 + [False] * 2]
