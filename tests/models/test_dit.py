"""Checkpoints of MDLM, BD3-LM, RADD, SEDD and SMDM: tiny random ones under the published names, beside a plain rewrite.

The rewrite below is of the papers' equations, over the tensors of the file, in float64: it shares no code with the models.
"""

import cmath
import json
import math
import pickle

import pytest
import torch

import samplers
from samplers.errors import ModelError, OptionError
from samplers.models import dit, smdm
from samplers.models.load import read_safetensors, write_safetensors

pytestmark = pytest.mark.usefixtures("one_thread")

IDS, WIDTH, LAYERS, HEADS, TOLD = 24, 32, 2, 4, 12  # IDS: the mask is the last of them
MASK = IDS - 1
HUGGING_FACE = {"vocab_size": IDS, "hidden_dim": WIDTH, "cond_dim": TOLD, "n_blocks": LAYERS, "n_heads": HEADS}
HYDRA = {"hidden_size": WIDTH, "cond_dim": TOLD, "length": 40, "n_blocks": LAYERS, "n_heads": HEADS, "dropout": 0.1}
MDLM = {"architectures": ["MDLM"], "model_type": "mdlm", "model_length": 40, "time_conditioning": False, **HUGGING_FACE}
BD3LM = {
    "architectures": ["BD3LM"], "model_type": "bd3lm", "model_length": 40, "block_size": 4, "cross_attn": True,
    "attn_backend": "sdpa", "time_conditioning": False, "var_min": True, **HUGGING_FACE,
}  # fmt: skip
RADD = {"tokens": IDS - 1, "noise": {"type": "loglinear"}, "model": {"name": "small_radd", "type": "ddit_wot", **HYDRA}}
SEDD = {
    "tokens": IDS - 1, "noise": {"type": "loglinear"}, "graph": {"type": "absorb"},
    "model": {"name": "small", "type": "ddit", "scale_by_sigma": True, **HYDRA},
}  # fmt: skip
MODELS = {
    "mdlm": MDLM,
    "mdlm, told the time": MDLM | {"time_conditioning": True},
    "bd3lm": BD3LM,
    "bd3lm, told the time": BD3LM | {"time_conditioning": True},
    "bd3lm, on whole rows": BD3LM | {"cross_attn": False},
    "radd": RADD,
    "sedd": SEDD,
}
TIMED = ("mdlm, told the time", "bd3lm, told the time", "sedd")


def save(folder, config, change=lambda state: None):
    """A random checkpoint: config.json, and model.safetensors under the published names. Gates and scales are not small."""
    told = config.get("model", {}).get("type") != "ddit_wot"
    shapes = {"vocab_embed.embedding": (IDS, WIDTH), "rotary_emb.inv_freq": (WIDTH // HEADS // 2,)}

    def linear(name, out, into, bias=True):
        shapes[f"{name}.weight"] = (out, into)
        if bias:
            shapes[f"{name}.bias"] = (out,)

    for i in range(LAYERS):
        at = f"blocks.{i}"
        linear(f"{at}.attn_qkv", 3 * WIDTH, WIDTH, False)
        linear(f"{at}.attn_out", WIDTH, WIDTH, False)
        linear(f"{at}.mlp.0", 4 * WIDTH, WIDTH)
        linear(f"{at}.mlp.2", WIDTH, 4 * WIDTH)
        if told:
            linear(f"{at}.adaLN_modulation", 6 * WIDTH, TOLD)
    for norm in [f"blocks.{i}.norm{n}" for i in range(LAYERS) for n in (1, 2)] + ["output_layer.norm_final"]:
        shapes[f"{norm}.weight"] = (WIDTH,)
        if not told:
            shapes[f"{norm}.bias"] = (WIDTH,)
    linear("output_layer.linear", IDS, WIDTH)
    if told:
        linear("output_layer.adaLN_modulation", 2 * WIDTH, TOLD)
        linear("sigma_map.mlp.0", TOLD, 256)
        linear("sigma_map.mlp.2", TOLD, TOLD)
    prefix = "" if "model" in config else "backbone."
    generator = torch.Generator().manual_seed(5)
    state = {}
    for name, shape in shapes.items():
        x = torch.randn(shape, generator=generator)
        if "norm" in name and name.endswith("weight"):
            x = 1 + 0.3 * x
        elif "embed" not in name:
            x = x * (shape[-1] ** -0.5 if len(shape) == 2 else 0.3)
        state[prefix + name] = x
    if "block_size" in config:
        state["sampling_eps_min"] = state["sampling_eps_max"] = torch.tensor(0.5)
    change(state)
    folder.mkdir(exist_ok=True)
    write_safetensors(state, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return state


def loaded(folder, **more):
    return dit.load(folder, json.loads((folder / "config.json").read_text()), **more)


def sigmas(config, t):
    """What the published code tells the model of the time t."""
    if config.get("time_conditioning", "graph" in config):
        if "block_size" in config:
            return [min(-math.log(1 - p) if p < 1 else math.inf, -math.log(1e-3)) for p in t.tolist()]
        return [-math.log(1 - (1 - 1e-3) * p) for p in t.tolist()]
    return [0.0] * len(t)


def reference(state, config, ids, t, head=True):
    """The model's raw output, (B, L, IDS) float64, one row at a time; without the head (B, L, WIDTH)."""
    state = {name.removeprefix("backbone."): x.double() for name, x in state.items()}
    size = config.get("block_size") if config.get("cross_attn") else None

    def apply(name, x):
        y = x @ state[f"{name}.weight"].T
        return y + state[f"{name}.bias"] if f"{name}.bias" in state else y

    def norm(name, x, shift=0.0, scale=0.0):
        x = (x - x.mean(-1, keepdim=True)) / (x.var(-1, keepdim=True, unbiased=False) + 1e-5).sqrt()
        return (x * state[f"{name}.weight"] + state.get(f"{name}.bias", 0)) * (1 + scale) + shift

    def silu(x):
        return x * torch.sigmoid(x)

    def turned(x):  # (L, d): numbers i and i + d / 2 are one complex number
        half = x.shape[1] // 2
        z = torch.complex(x[:, :half], x[:, half:])
        turn = [[cmath.exp(1j * p * 10_000 ** (-2 * i / x.shape[1])) for i in range(half)] for p in range(len(x))]
        z = z * torch.tensor(turn, dtype=torch.complex128)
        return torch.cat([z.real, z.imag], 1)

    out = []
    for row, sigma in zip(ids, sigmas(config, t)):
        condition = None
        if "sigma_map.mlp.0.weight" in state:
            wave = [sigma * 10_000 ** (-i / 128) for i in range(128)]
            wave = torch.tensor([*map(math.cos, wave), *map(math.sin, wave)], dtype=torch.float64)
            condition = silu(apply("sigma_map.mlp.2", silu(apply("sigma_map.mlp.0", wave))))
        x = state["vocab_embed.embedding"][row]  # (L, D)
        for i in range(LAYERS):
            at, zero = f"blocks.{i}", torch.zeros((), dtype=torch.float64)
            told = (zero, zero, 1, zero, zero, 1)
            if condition is not None:
                told = apply(f"{at}.adaLN_modulation", condition).view(6, WIDTH)
            qkv = apply(f"{at}.attn_qkv", norm(f"{at}.norm1", x, told[0], told[1]))
            seen = []
            for h in range(HEADS):
                q, k, v = (qkv[:, n * WIDTH :][:, h * WIDTH // HEADS : (h + 1) * WIDTH // HEADS] for n in range(3))
                score = turned(q) @ turned(k).T / math.sqrt(WIDTH // HEADS)
                if size is not None:
                    block = torch.arange(len(row)) // size
                    score = score.masked_fill(block[:, None] < block, -math.inf)
                seen.append(score.softmax(-1) @ v)
            x = x + told[2] * apply(f"{at}.attn_out", torch.cat(seen, 1))
            y = apply(f"{at}.mlp.0", norm(f"{at}.norm2", x, told[3], told[4]))
            y = 0.5 * y * (1 + torch.tanh(math.sqrt(2 / math.pi) * (y + 0.044715 * y**3)))
            x = x + told[5] * apply(f"{at}.mlp.2", y)
        last = (0.0, 0.0)
        if condition is not None:
            last = apply("output_layer.adaLN_modulation", condition).view(2, WIDTH)
        x = norm("output_layer.norm_final", x, *last)
        out.append(apply("output_layer.linear", x) if head else x)
    return torch.stack(out)


X = torch.randint(MASK, (3, 18), generator=torch.Generator().manual_seed(1))
X[torch.rand(X.shape, generator=torch.Generator().manual_seed(2)) < 0.6] = MASK
T = torch.tensor([1.0, 0.6, 0.05], dtype=torch.float64)


@pytest.mark.parametrize("kind", MODELS)
def test_logits_are_the_published_ones(kind, tmp_path):
    state, config = save(tmp_path, MODELS[kind]), MODELS[kind]
    expected = reference(state, config, X, T)[..., :MASK]
    denoiser = loaded(tmp_path)
    assert denoiser.time_conditioned == (kind in TIMED)
    assert (denoiser.vocab_size, denoiser.mask_id, denoiser.max_length) == (IDS - 1, MASK, 40)
    assert denoiser.attention == ("block_causal" if config.get("cross_attn") else "full")
    assert denoiser.head.weight.data_ptr() == denoiser.model.unembed.weight.data_ptr(), "a slice and no copy"
    t = T if denoiser.time_conditioned else None
    logits = denoiser.predict(X, t)
    assert expected.std() > 0.5 and logits.dtype == torch.float32
    torch.testing.assert_close(logits.double(), expected, rtol=0, atol=1e-5)
    rows = X == MASK
    rows[1] = False
    torch.testing.assert_close(denoiser.predict(X, t, rows=rows).double(), expected[rows], rtol=0, atol=1e-5)
    if kind in TIMED:
        assert (denoiser.predict(X, T.flip(0)) - logits).abs().max() > 0.1, "it is told the noise level"
        with pytest.raises(OptionError, match="time-conditioned: t"):
            denoiser.predict(X)


def test_dtypes(tmp_path):
    state = save(tmp_path, MDLM)
    expected = reference(state, MDLM, X, T)[..., :MASK]
    exact = loaded(tmp_path, dtype=torch.float64)  # rotary angles stay in float32
    torch.testing.assert_close(exact.predict(X), expected, rtol=0, atol=2e-6)
    half = loaded(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.model.parameters()} == {torch.bfloat16}
    assert (half.predict(X).double() - expected).abs().mean() < 0.05


def test_radd_answers_with_log_probabilities(tmp_path):
    """Published: the output with all columns but the mask's made log-probabilities."""
    state = save(tmp_path, RADD)
    published = reference(state, RADD, X, T)
    published[..., :-1] = published[..., :-1].log_softmax(-1)
    ours = loaded(tmp_path).predict(X).double().log_softmax(-1)
    torch.testing.assert_close(ours, published[..., :MASK], rtol=0, atol=1e-5)


def score(state, ids, t):
    """SEDD's published output, exponentiated: (B, L, IDS), scaled by sigma, 1 at the token that stands there."""
    growth = torch.tensor([math.expm1(sigma) for sigma in sigmas(SEDD, t)], dtype=torch.float64)
    out = (reference(state, SEDD, ids, t) - growth.log()[:, None, None] - math.log(IDS - 1)).exp()
    return out.scatter(2, ids[..., None], 1.0)


def test_sedd_answers_with_scores(tmp_path):
    state = save(tmp_path, SEDD)
    where = X == MASK
    published = score(state, X, T)[where][:, :MASK]
    ours = loaded(tmp_path).predict(X, T)[where].double().softmax(-1)
    torch.testing.assert_close(ours, published / published.sum(-1, keepdim=True), rtol=1e-4, atol=1e-6)


def test_sedd_with_the_exact_score_is_the_exact_posterior(tmp_path):
    """One token of law p: the score of v at the mask is p_t(v) / p_t(mask), and the chance of a mask 1 - exp(-sigma)."""
    p = torch.rand(IDS - 1, generator=torch.Generator().manual_seed(3)).double()
    p /= p.sum()

    def change(state):
        state["output_layer.linear.weight"].zero_()
        state["output_layer.linear.bias"] = torch.cat([(p * (IDS - 1)).log(), torch.zeros(1)])

    state = save(tmp_path, SEDD, change)
    masks = torch.full((len(T), 1), MASK)
    for row, sigma in zip(score(state, masks, T), sigmas(SEDD, T)):
        clean, masked = math.exp(-sigma) * p, 1 - math.exp(-sigma)
        torch.testing.assert_close(row[0, :MASK], clean / masked)  # it is the exact score
    torch.testing.assert_close(
        loaded(tmp_path, dtype=torch.float64).predict(masks, T).softmax(-1)[:, 0], p.expand(3, -1)
    )


# ---------------------------------------------------------------------------------------------- in the driver


@pytest.mark.parametrize("sampler", ["radd", "ancestral", "first_hitting"])
@pytest.mark.parametrize("kind", ["mdlm", "radd", "sedd"])
def test_tokens_are_those_of_the_rewrite(kind, sampler, tmp_path):
    """Hidden rows and a head, and logits: drawn, each gives the rewrite's tokens; at temperature 0 both give the same."""
    config = MODELS[kind]
    state = save(tmp_path, config)
    denoiser = loaded(tmp_path)
    about = {"vocab_size": IDS - 1, "mask_id": MASK, "time_conditioned": denoiser.time_conditioned}

    def wrapped(call, head=None):
        return samplers.TokenDenoiser.wrap(call, head=head, **about)

    def rewrite(ids, t=None, head=True):
        out = reference(state, config, ids, torch.zeros(len(ids)) if t is None else t, head)
        return out[..., :MASK] if head else out.float()

    run = {"prompt": [3, 1, 4], "gen_length": 6, "batch": 2, "seed": 7}
    run |= {} if sampler == "first_hitting" else {"steps": 8}
    rewritten = {True: wrapped(rewrite), False: wrapped(lambda *given: rewrite(*given, head=False), denoiser.head)}
    greedy = []
    for ours, theirs in ((denoiser, rewritten[False]), (wrapped(denoiser.predict), rewritten[True])):
        for temperature in (1.0, 0.0):
            out = samplers.sample(ours, sampler, temperature=temperature, **run)
            expected = samplers.sample(theirs, sampler, temperature=temperature, **run)
            assert torch.equal(out.x, expected.x) and out.nfe == expected.nfe
            assert (out.x != MASK).all()
        greedy.append(out.x)
    assert torch.equal(*greedy)


def test_blocks_and_their_cache(tmp_path):
    """BD3-LM: keys and values of decided blocks are kept, and change nothing. The rewrite agrees."""
    state = save(tmp_path, BD3LM)
    denoiser = loaded(tmp_path)
    assert (denoiser.attention_block, denoiser.caches) == (4, ("block",))
    run = {"prompt": [3, 1, 4, 1], "gen_length": 16, "block_length": 4, "batch": 2, "seed": 3}
    for sampler in ("low_confidence", "first_hitting", "ancestral"):
        plain = samplers.sample(denoiser, sampler, **run)
        cached = samplers.sample(denoiser, sampler, cache="block", **run)
        assert torch.equal(plain.x, cached.x)
        assert cached.cache_bytes > 0 and cached.token_evals < plain.token_evals / 2
    wrapped = samplers.TokenDenoiser.wrap(
        lambda ids: reference(state, BD3LM, ids, torch.zeros(len(ids)), head=False).float(),
        vocab_size=IDS - 1, mask_id=MASK, attention="block_causal", attention_block=4, head=denoiser.head,
    )  # fmt: skip
    assert torch.equal(samplers.sample(wrapped, sampler, **run).x, cached.x)


def test_prompts_as_embeddings(tmp_path):
    """The embeddings of tokens are the tokens, as with every TransformerDenoiser."""
    save(tmp_path, RADD)
    denoiser = loaded(tmp_path)
    made, (ids,) = denoiser.with_embeddings([denoiser.model.embed(torch.tensor([3, 1, 4]))])
    run = {"gen_length": 6, "steps": 3, "temperature": 0.0}
    by_ids = samplers.sample(denoiser, "low_confidence", prompt=[3, 1, 4], **run)
    assert torch.equal(by_ids.generated[0], samplers.sample(made, "low_confidence", prompt=ids, **run).generated[0])


def test_caches_of_full_attention(tmp_path):
    """A block that is as long as the canvas makes dual exact; a model that is told the noise level has no cache."""
    save(tmp_path, RADD)
    denoiser = loaded(tmp_path)
    assert denoiser.caches == ("prefix", "dual", "delayed")
    run = {"gen_length": 12, "block_length": 12, "seed": 1, "batch": 2}
    plain = samplers.sample(denoiser, "low_confidence", **run)
    assert torch.equal(plain.x, samplers.sample(denoiser, "low_confidence", cache="dual", **run).x)
    assert (samplers.sample(denoiser, "low_confidence", cache="prefix", **run | {"block_length": 4}).x != MASK).all()
    for config in (SEDD, MODELS["bd3lm, told the time"]):
        save(tmp_path, config)
        with pytest.raises(OptionError, match="supports none"):
            samplers.sample(loaded(tmp_path), "low_confidence", cache="block", **run)


@pytest.mark.parametrize("kind", ["mdlm", "bd3lm", "sedd"])
def test_filling_is_not_seen(kind, tmp_path):
    save(tmp_path, MODELS[kind])
    denoiser = loaded(tmp_path)
    assert denoiser.takes_lengths
    lengths = torch.tensor([18, 11, 5])
    there = torch.arange(18) < lengths[:, None]
    t = T if kind in TIMED else None
    for filling in (MASK, 2):
        hidden = denoiser.hidden(torch.where(there, X, filling), t, rows=there, lengths=lengths)
        alone = [denoiser.hidden(X[i : i + 1, :n], None if t is None else t[i : i + 1]) for i, n in enumerate(lengths)]
        torch.testing.assert_close(hidden, torch.cat(alone), rtol=0, atol=2e-5)


def test_a_mask_inside_the_vocabulary(tmp_path):
    """A tokenizer with a mask token: then the head keeps all its rows, and the run forbids that one."""
    state = save(tmp_path, MDLM | {"mask_token_id": 4})
    denoiser = loaded(tmp_path)
    assert (denoiser.vocab_size, denoiser.mask_id) == (IDS, 4)
    expected = reference(state, MDLM, X, T)
    torch.testing.assert_close(denoiser.predict(X).double(), expected, rtol=0, atol=1e-5)
    assert (samplers.sample(denoiser, "ancestral", gen_length=16, batch=4, steps=8).x != 4).all()
    assert loaded(tmp_path, mask_id=MASK).vocab_size == IDS - 1


# ---------------------------------------------------------------------------------------------- what can be wrong


def gone(state):
    del state["backbone.blocks.1.mlp.0.bias"]


def extra(state):
    state["backbone.blocks.2.attn_out.weight"] = torch.zeros(2)


def narrow(state):
    state["backbone.sigma_map.mlp.0.weight"] = torch.zeros(TOLD, 255)


@pytest.mark.parametrize(
    ("config", "change", "message"),
    [
        (MDLM, gone, r"tensor 'backbone\.blocks\.1\.mlp\.0\.bias' is missing"),
        (MDLM, extra, r"tensor 'backbone\.blocks\.2\.attn_out\.weight' is not part of mdlm"),
        (MDLM, narrow, r"sigma_map\.mlp\.0\.weight' has shape \(12, 255\), expected \(12, 256\)"),
        (MDLM | {"architectures": ["MDLMX"], "model_type": "x"}, None, r"none of MDLM, BD3-LM, RADD and SEDD .*MDLMX"),
        ({k: v for k, v in MDLM.items() if k != "hidden_dim"}, None, r"config\.json of a mdlm model .*'hidden_dim'"),
        (MDLM | {"n_heads": 5}, None, "5 heads for a width of 32"),
        (BD3LM | {"causal": True}, None, "causal=True; this decoder does False"),
        (BD3LM | {"adaln": False}, None, "adaln=False; this decoder does True"),
        (SEDD | {"graph": {"type": "uniform"}}, None, r"graph\.type='uniform'; .*'absorb'"),
        (SEDD | {"noise": {"type": "geometric"}}, None, r"noise\.type='geometric'"),
    ],
)  # fmt: skip
def test_folders_that_are_wrong(config, change, message, tmp_path):
    save(tmp_path, config, change or (lambda state: None))
    with pytest.raises(ModelError, match=message):
        loaded(tmp_path)


def test_a_mask_that_is_no_id(tmp_path):
    save(tmp_path, MDLM)
    with pytest.raises(OptionError, match=f"one of the {IDS} ids"):
        loaded(tmp_path, mask_id=IDS)


def test_sedd_was_published_as_a_pickle(tmp_path):
    save(tmp_path, SEDD)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps({}))
    with pytest.raises(ModelError, match=r"pickles only \(pytorch_model\.bin\)"):
        loaded(tmp_path)


# ---------------------------------------------------------------------------------------------- SMDM


def save_smdm(path, width, heads, groups, mlp, layers=2, ids=30):
    head = width // heads
    shapes = {"lm_head": (ids, width), "transformer.wte": (ids + 1, width), "transformer.ln_f": (width,)}
    for i in range(layers):
        at = f"transformer.h.{i}"
        shapes |= {
            f"{at}.attn.attn": ((heads + 2 * groups) * head, width), f"{at}.attn.proj": (width, width),
            f"{at}.mlp.swiglu.w1": (mlp, width), f"{at}.mlp.swiglu.w2": (mlp, width), f"{at}.mlp.swiglu.w3": (width, mlp),
            f"{at}.norm_1": (width,), f"{at}.norm_2": (width,),
        }  # fmt: skip
    generator = torch.Generator().manual_seed(8)
    state = {f"{n}.weight": torch.randn(s, generator=generator) * s[-1] ** -0.25 for n, s in shapes.items()}
    write_safetensors(state, path)
    return state


def reference_smdm(state, ids, heads, groups):
    """Logits (L, V) of one row, in float64, head by head."""
    state = {name.removesuffix(".weight"): x.double() for name, x in state.items()}
    x, length = state["transformer.wte"][ids], len(ids)
    width = x.shape[1]
    head = width // heads
    angle = torch.arange(length).double()[:, None] * 10_000 ** (-torch.arange(0, head, 2).double() / head)
    turn = torch.polar(torch.ones_like(angle), angle)

    def norm(name, x):
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * state[name]

    def turned(x):
        z = torch.complex(*x.chunk(2, 1)) * turn
        return torch.cat([z.real, z.imag], 1)

    for i in range(2):
        at = f"transformer.h.{i}"
        qkv = norm(f"{at}.norm_1", x) @ state[f"{at}.attn.attn"].T
        pieces, per_group = list(qkv.split(head, 1)), heads // groups + 2
        seen = []
        for h in range(heads):
            group = pieces[h // (heads // groups) * per_group :][:per_group]
            q, k, v = group[h % (heads // groups)], group[-2], group[-1]
            seen.append((turned(q) @ turned(k).T / math.sqrt(head)).softmax(-1) @ v)
        x = x + torch.cat(seen, 1) @ state[f"{at}.attn.proj"].T
        y = norm(f"{at}.norm_2", x)
        a, b = y @ state[f"{at}.mlp.swiglu.w1"].T, y @ state[f"{at}.mlp.swiglu.w2"].T
        x = x + (a * torch.sigmoid(a) * b) @ state[f"{at}.mlp.swiglu.w3"].T
    return norm("transformer.ln_f", x) @ state["lm_head"].T


@pytest.mark.parametrize(("width", "heads", "groups", "mlp"), [(128, 2, 2, 512), (32, 4, 2, 40)])
def test_smdm(width, heads, groups, mlp, tmp_path):
    path = tmp_path / "mdm-170M-100e18.safetensors"
    state = save_smdm(path, width, heads, groups, mlp)
    denoiser = smdm.load(path, heads=None if mlp == 4 * width else heads)
    assert (denoiser.mask_id, denoiser.vocab_size, denoiser.attention) == (30, 30, "full")
    ids = torch.randint(31, (2, 14), generator=torch.Generator().manual_seed(4))
    assert mlp != 4 * width or torch.equal(samplers.models.pretrained(path).predict(ids), denoiser.predict(ids))
    expected = torch.stack([reference_smdm(state, row, heads, groups) for row in ids])
    assert expected.std() > 0.5
    torch.testing.assert_close(denoiser.predict(ids).double(), expected, rtol=0, atol=1e-4)


def test_smdm_files_that_are_wrong(tmp_path):
    path = tmp_path / "model.safetensors"
    save_smdm(path, 32, 4, 4, 40)
    with pytest.raises(ModelError, match=r"an mlp of 40 for a width of 32; .* heads=8 for the model of 75M"):
        smdm.load(path)
    with pytest.raises(ModelError, match=r"h\.0\.attn\.attn\.weight' has shape"):
        smdm.load(path, heads=5)
    with pytest.raises(ModelError, match="never loaded"):
        smdm.load(tmp_path / "model.pth")
    state = read_safetensors(path)
    write_safetensors({k: v for k, v in state.items() if "wte" not in k}, path)
    with pytest.raises(ModelError, match=r"no checkpoint of SMDM: tensor 'transformer\.wte\.weight' is missing"):
        smdm.load(path, heads=4)


@pytest.mark.parametrize(
    ("kind", "sampler"), [("mdlm", "ancestral"), ("bd3lm", "first_hitting"), ("radd", "radd"), ("sedd", "tau_leaping")]
)
def test_by_pretrained(kind, sampler, tmp_path):
    """The folder says what it is; what cannot be told of such a model is refused."""
    save(tmp_path, MODELS[kind])
    made, alone = samplers.models.pretrained(tmp_path), loaded(tmp_path)
    ids, t = torch.randint(IDS, (2, 12), generator=torch.Generator().manual_seed(0)), torch.tensor([0.3, 0.8])
    assert torch.equal(made.predict(ids, t), alone.predict(ids, t))
    assert (made.mask_id, made.attention, made.attention_block) == (
        alone.mask_id,
        alone.attention,
        alone.attention_block,
    )
    family = samplers.models.recognise(MODELS[kind])
    assert (family.mask_id, family.attention, family.sampler) == (alone.mask_id, alone.attention, sampler)
    with pytest.raises(ModelError, match="attention cannot be told of"):
        samplers.models.pretrained(tmp_path, attention="causal")
