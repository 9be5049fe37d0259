"""Families of models: recognised by their config.json, corrected by people, and the same logits as the classes they are of."""

import json
import math
import re
import sys

import pytest
import torch
import torch.nn.functional as F

import samplers
from samplers.errors import ModelError, OptionError
from samplers.models import Config, Experts, Transformer, TransformerDenoiser, load, pretrained, recognise, save
from samplers.models.denoiser import describe, read_spec, shifted_lines
from samplers.models.load import headers, read_safetensors, write_safetensors
from samplers.models.transformer import Mixture

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = {
    "vocab_size": 60,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
MOE = {"head_dim": 8, "moe_intermediate_size": 24, "num_experts": 8, "num_experts_per_tok": 2}
GLM = {
    "head_dim": 16,
    "moe_intermediate_size": 24,
    "n_routed_experts": 8,
    "num_experts_per_tok": 3,
    "use_qk_norm": True,
}
GLM |= {"n_group": 4, "topk_group": 2, "routed_scaling_factor": 2.5, "first_k_dense_replace": 1, "n_shared_experts": 2}
IDS = torch.randint(60, (3, 22), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def theirs(transformers, family, **more):
    """A random model of transformers whose every part shows in its logits."""
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **more})
    with torch.random.fork_rng():
        torch.manual_seed(7)
        model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
        with torch.no_grad():
            for name, p in [*model.named_parameters(), *model.named_buffers()]:
                if "inv_freq" not in name:
                    p.copy_(p * 8 if p.dim() > 1 else p + 0.3 * torch.randn(p.shape))
    return model


def edit(folder, **changes):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def saved(transformers, folder, family, changes, **more):
    """The model in a folder, under another configuration."""
    model = theirs(transformers, family, **more)
    model.save_pretrained(folder)
    edit(folder, **changes)
    return model


def mask_of(n, block):
    """(1, 1, n, n) as transformers adds it to scores: nothing hidden in blocks and before them. block None: nothing hidden."""
    at = torch.arange(n) // (block or n)
    return torch.zeros(1, 1, n, n).masked_fill(at[:, None] < at, -torch.inf)


# architecture, class of transformers of the same shape, its options, more of config.json, block, shift
CASES = {
    "Llama with biases": ("LlamaForCausalLM", "Llama", {"attention_bias": True, "mlp_bias": True}, {}, None, False),
    "Qwen3 with biases": ("Qwen3ForCausalLM", "Qwen3", {"attention_bias": True, "head_dim": 8}, {}, None, False),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", "Qwen3Moe", {**MOE, "norm_topk_prob": True}, {}, None, False),
    "Qwen3-MoE, some dense": ("Qwen3MoeForCausalLM", "Qwen3Moe", {**MOE, "mlp_only_layers": [1]}, {}, None, False),
    "Dream": ("DreamModel", "Qwen2", {}, {"mask_token_id": 59}, None, True),
    "SDAR": ("SDARForCausalLM", "Qwen3", {"head_dim": 8}, {"mask_token_id": 59, "block_size": 8}, 8, False),
    "SDAR-MoE": ("SDARMoeForCausalLM", "Qwen3Moe", MOE, {"mask_token_id": 59}, 4, False),
    "Fast-dLLM v2": (
        "Fast_dLLM_QwenForCausalLM", "Qwen2", {"tie_word_embeddings": True}, {"mask_token_id": 59, "bd_size": 6}, 6, True,
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_logits_are_theirs(transformers, case, tmp_path):
    architecture, family, options, changes, block, shift = CASES[case]
    changes = {"architectures": [architecture], "model_type": None, **changes}
    model = saved(transformers, tmp_path, family, changes, **options)
    told = {"mask_id": 59, "attention": "full"} if "mask_token_id" not in changes else {}
    denoiser = pretrained(tmp_path, **told)
    assert (denoiser.mask_id, denoiser.shift, denoiser.attention_block) == (59, shift, block or 1)
    with torch.no_grad():
        expected = model(IDS, attention_mask=mask_of(IDS.shape[1], block)).logits
        if shift:
            expected = torch.cat([expected[:, :1], expected[:, :-1]], 1)
        assert expected.std() > 0.5, "logits that say something"
        made = denoiser.predict(IDS)
        torch.testing.assert_close(made, expected, rtol=0, atol=1e-4)
        rows = torch.rand(IDS.shape, generator=torch.Generator().manual_seed(1)) < 0.4
        rows[0, :2] = True  # line 0 answers for both if answers are shifted
        torch.testing.assert_close(denoiser.predict(IDS, rows=rows), expected[rows], rtol=0, atol=1e-4)


def to_llada2(tensors, heads=("q", "k", "v")):
    """GLM-4-MoE's tensors under LLaDA2's names: the two do the same sums."""
    names = {"model.embed_tokens": "model.word_embeddings", ".self_attn.o_proj": ".attention.dense"}
    names |= {".self_attn.q_norm": ".attention.query_layernorm", ".self_attn.k_norm": ".attention.key_layernorm"}
    names |= {"mlp.gate.e_score_correction_bias": "mlp.gate.expert_bias"}
    made = {}
    for name, x in tensors.items():
        if ".self_attn.q_proj" in name:
            parts = [tensors[name.replace("q_proj", f"{part}_proj")] for part in heads]
            made[name.replace("self_attn.q_proj", "attention.query_key_value")] = torch.cat(parts)
        elif ".self_attn.k_proj" not in name and ".self_attn.v_proj" not in name:
            for old, new in names.items():
                name = name.replace(old, new)
            made[name] = x
    return made


def llada2(transformers, folder, **more):
    """A folder of LLaDA2, and the model of transformers with the same weights: group-limited sigmoid routing with a bias,
    shared experts, a dense layer, half of each head turned."""
    model = saved(transformers, folder, "Glm4Moe", {}, **{**GLM, **more})
    write_safetensors(to_llada2(read_safetensors(folder / "model.safetensors")), folder / "model.safetensors")
    config = {**SHAPE, **GLM, "rope_theta": 10_000.0, "partial_rotary_factor": 0.5, "rms_norm_eps": 1e-5}
    config |= {"architectures": ["LLaDA2MoeModelLM"], "num_experts": 8, "num_shared_experts": 2, "use_bias": False}
    (folder / "config.json").write_text(json.dumps(config))
    return model


def test_llada2_is_glm_4_moe_in_blocks(transformers, tmp_path):
    model = llada2(transformers, tmp_path)
    edit(tmp_path, mask_token_id=59, block_length=5)
    denoiser = pretrained(tmp_path)
    c = denoiser.model.config
    assert (c.rotary_width, c.head_width, c.experts.bias, c.experts.dense_layers) == (8, 16, True, (0,))
    assert (denoiser.attention, denoiser.attention_block, denoiser.shift) == ("block_causal", 5, False)
    with torch.no_grad():
        expected = model(IDS, attention_mask=mask_of(22, 5)).logits
        torch.testing.assert_close(denoiser.predict(IDS), expected, rtol=0, atol=1e-4)
        other = pretrained(tmp_path, attention="full").predict(IDS)
        torch.testing.assert_close(other, model(IDS, attention_mask=mask_of(22, None)).logits, rtol=0, atol=1e-4)
        assert (other - expected).abs().max() > 0.1
    # The bias decides who is chosen: it stays as it was stored, whatever the weights are loaded as.
    small = pretrained(tmp_path, dtype=torch.bfloat16).model.blocks[1].experts
    assert small.choice_bias.dtype == torch.float32 and small.gate.dtype == torch.bfloat16
    save(pretrained(tmp_path).model, tmp_path / "ours", mask_id=59)
    assert torch.equal(pretrained(tmp_path / "ours").predict(IDS), denoiser.predict(IDS))


# ---------------------------------------------------------------------------------------------- LLaDA-MoE, rewritten

LLADA_MOE = {
    "architectures": ["LLaDAMoEModelLM"],
    "vocab_size": 60,
    "hidden_size": 32,
    "dense_intermediate_size": 40,
    "expert_intermediate_size": 24,
    "shared_expert_intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "rope_theta": 50_000.0,
    "partial_rotary_factor": 0.5,
    "qk_layernorm": True,
    "num_experts": 6,
    "num_experts_per_tok": 2,
    "moe_layer_freq": [0, 1],
    "mask_token_id": 59,
    "norm_topk_prob": None,
}


def llada_moe(folder):
    """Random tensors under the published names."""
    d, kv, head = 32, 16, 8
    shapes = {"model.embed_tokens": (60, d), "model.norm": (d,), "lm_head": (60, d)}
    for i in range(2):
        at = f"model.layers.{i}"
        shapes |= {f"{at}.input_layernorm": (d,), f"{at}.post_attention_layernorm": (d,)}
        shapes |= {f"{at}.self_attn.{k}_proj": (n, d) for k, n in (("q", d), ("k", kv), ("v", kv), ("o", d))}
        shapes |= {f"{at}.self_attn.{k}_norm": (head,) for k in "qk"}
        places = {f"{at}.mlp": 40} if i == 0 else {f"{at}.mlp.experts.{e}": 24 for e in range(6)}
        if i:
            shapes[f"{at}.mlp.gate"] = (6, d)
            places[f"{at}.shared_expert"] = 16
        for place, m in places.items():
            shapes |= {f"{place}.gate_proj": (m, d), f"{place}.up_proj": (m, d), f"{place}.down_proj": (d, m)}
    g = torch.Generator().manual_seed(3)
    made = {f"{k}.weight": torch.randn(s, generator=g) * (0.3 if len(s) > 1 else 1) for k, s in shapes.items()}
    write_safetensors(made, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(LLADA_MOE))
    return {name: x.double() for name, x in made.items()}


def llada_moe_logits(w, ids):
    """The published sums in float64, one row and one token at a time where experts are concerned. ids (n,) -> (n, V)."""

    def norm(x, name):
        return x / (x.square().mean(-1, keepdim=True) + 1e-5).sqrt() * w[f"{name}.weight"]

    def mlp(x, at):
        gate, up = (x @ w[f"{at}.{name}_proj.weight"].T for name in ("gate", "up"))
        return (gate * gate.sigmoid() * up) @ w[f"{at}.down_proj.weight"].T

    def turned(x):  # (H, n, 8), of which the first 4 turn, elements i and i + 2 together
        angle = torch.arange(len(ids)).double()[:, None] * 50_000.0 ** -torch.tensor([0.0, 0.5], dtype=torch.float64)
        z = torch.complex(x[..., :2], x[..., 2:4]) * torch.polar(torch.ones_like(angle), angle)
        return torch.cat([z.real, z.imag, x[..., 4:]], -1)

    x = w["model.embed_tokens.weight"][ids]
    for i in range(2):
        at = f"model.layers.{i}"
        y = norm(x, f"{at}.input_layernorm")
        q, k, v = ((y @ w[f"{at}.self_attn.{c}_proj.weight"].T).view(len(ids), -1, 8).transpose(0, 1) for c in "qkv")
        q, k = turned(norm(q, f"{at}.self_attn.q_norm")), turned(norm(k, f"{at}.self_attn.k_norm"))
        k, v = k.repeat_interleave(2, 0), v.repeat_interleave(2, 0)
        seen = (q @ k.transpose(1, 2) / math.sqrt(8)).softmax(-1) @ v
        x = x + seen.transpose(0, 1).flatten(1) @ w[f"{at}.self_attn.o_proj.weight"].T
        y = norm(x, f"{at}.post_attention_layernorm")
        if i == 0:
            x = x + mlp(y, f"{at}.mlp")
            continue
        for n in range(len(ids)):
            share = (w[f"{at}.mlp.gate.weight"] @ y[n]).softmax(0)
            chosen = sorted(range(6), key=lambda e: -float(share[e]))[:2]
            mixed = sum(share[e] * mlp(y[n], f"{at}.mlp.experts.{e}") for e in chosen)  # not divided by their sum
            x[n] = x[n] + mixed + mlp(y[n], f"{at}.shared_expert")
    return norm(x, "model.norm") @ w["lm_head.weight"].T


def test_llada_moe(tmp_path):
    weights = llada_moe(tmp_path)
    denoiser = pretrained(tmp_path)
    assert (denoiser.attention, denoiser.mask_id, denoiser.caches) == ("full", 59, ("prefix", "dual", "delayed"))
    expected = torch.stack([llada_moe_logits(weights, ids) for ids in IDS])
    assert expected.std() > 0.5
    torch.testing.assert_close(denoiser.predict(IDS).double(), expected, rtol=0, atol=1e-4)
    model, _ = load(tmp_path, dtype=torch.float64)
    torch.testing.assert_close(model.head.logits(model(IDS)), expected, rtol=0, atol=1e-6)  # its angles are float32
    for change, says in (
        ({"moe_router_enable_expert_bias": True}, "moe_router_enable_expert_bias=True"),
        ({"clip_qkv": 8.0}, "clip_qkv=8.0"),
        ({"partial_rotary_factor": -1}, "partial_rotary_factor=-1"),
    ):
        (tmp_path / "config.json").write_text(json.dumps({**LLADA_MOE, **change}))
        with pytest.raises(ModelError, match=says):
            load(tmp_path)


# ---------------------------------------------------------------------------------------------- experts


def test_experts_work_on_their_own_tokens():
    """Against every expert on every token, in float64; each expert is given the tokens that chose it and no other."""
    for experts in (
        Experts(5, 2, 12, normed=True),
        Experts(8, 3, 12, score="sigmoid", normed=True, scale=2.5, groups=4, groups_kept=2, bias=True, shared_width=8),
    ):
        g = torch.Generator().manual_seed(0)
        mixture = Mixture(experts, 16).double()
        for p in mixture.parameters():
            p.data = torch.randn(p.shape, generator=g, dtype=torch.float64)
        x = torch.randn(4, 7, 16, generator=g, dtype=torch.float64)
        weight, index = mixture.route(x.flatten(0, 1))
        share = torch.zeros(28, experts.number, dtype=torch.float64).scatter(1, index, weight).view(4, 7, -1)
        gate, up = (torch.einsum("bnd,emd->bnem", x, w) for w in (mixture.gate, mixture.up))
        all_of_them = torch.einsum("bnem,edm->bned", F.silu(gate) * up, mixture.down)
        expected = (share[..., None] * all_of_them).sum(2)
        if experts.shared_width:
            expected = expected + mixture.shared_down(F.silu(mixture.shared_gate(x)) * mixture.shared_up(x))
            kept = (index // 2).sort(1).values.unique_consecutive(dim=1)  # groups of two: at most two of them
            assert all(len(set(row)) <= 2 for row in kept.tolist())
        torch.testing.assert_close(mixture(x), expected, rtol=0, atol=1e-10)
        assert mixture(x[:0]).shape == (0, 7, 16)
        mixture(x.requires_grad_()).sum().backward()
        assert x.grad.abs().sum() > 0 and mixture.router.weight.grad.abs().sum() > 0


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"per_token": 9}, "per_token is 9"),
        ({"groups": 3}, "cut into 3 groups"),
        ({"groups": 8}, "of two or more"),
        ({"groups": 2, "groups_kept": 3}, "3 of 2 groups"),
        ({"score": "tanh"}, "softmax or sigmoid, not 'tanh'"),
        ({"width": 0}, "width must be a positive integer"),
    ],
)
def test_experts_that_cannot_be(wrong, says):
    with pytest.raises(OptionError, match=says):
        Experts(**{"number": 8, "per_token": 2, "width": 4, **wrong})


def mixed(attention, block=None, **more):
    """A random transformer with everything at once: experts, half of each head turned, biases, a soft cap."""
    experts = Experts(6, 2, 24, 16, score="sigmoid", normed=True, groups=3, groups_kept=2, bias=True, dense_layers=(0,))
    config = Config(
        30, 32, 2, 4, kv_heads=2, attention=attention, block_length=block, embeddings=31, experts=experts, rotary_width=4,
        o_bias=True, mlp_bias=True, softcap=5.0,
    )  # fmt: skip
    return TransformerDenoiser(Transformer(config, seed=3), mask_id=30, **more)


EXACT = [
    ("causal", None, "prefix", True),
    ("causal", None, "block", True),
    ("causal", None, "block", False),
    ("block_causal", 4, "block", True),
    ("block_causal", 4, "block", False),
]


@pytest.mark.parametrize(("attention", "block", "scheme", "shift"), EXACT)
def test_exact_caches_change_no_token(attention, block, scheme, shift):
    """Ragged rows, guidance, blocks of the run that are not the model's, rows that get ahead of each other."""
    denoiser = mixed(attention, block, shift=shift)
    prompts = [[1, 2, 3, 4, 5], [6, 7], [8, 9, 10, 11, 12]]
    for name, setting in (
        ("threshold", {"block_length": 5, "temperature": 0.0, "threshold": 0.08}),
        ("radd", {"temperature": 0.7, "cfg_scale": 0.5, "block_length": 6}),
        ("low_confidence", {"block_length": 1, "temperature": 1.0}),
    ):
        run = {"prompt": prompts, "gen_length": 9, "seed": 4, **setting}
        plain = samplers.sample(denoiser, name, **run)
        cached = samplers.sample(denoiser, name, cache=scheme, **run)
        assert (plain.x == cached.x).all()
        if scheme == "block" or setting.get("block_length") != 1:  # prefix begins each block with a whole pass
            assert cached.token_evals < plain.token_evals


def test_a_line_that_is_kept_answers_for_the_block_after_it():
    """Blocks of one position, shifted: the pass that keeps a position answers for the next, and no other pass is made."""
    denoiser = mixed("causal", shift=True)
    run = {"prompt": [1, 2, 3], "gen_length": 10, "block_length": 1, "temperature": 1.0}
    out = samplers.sample(denoiser, "low_confidence", cache="block", **run)
    assert out.nfe == 10 and out.token_evals == (3 + 1) + 9 * 2  # each with a column of filling, which is what is asked
    assert (out.x == samplers.sample(denoiser, "low_confidence", **run).x).all()
    assert samplers.sample(mixed("causal"), "low_confidence", cache="block", **run).nfe == 20


@pytest.mark.parametrize("scheme", ["prefix", "dual", "delayed(3)"])
def test_inexact_caches_with_shift(scheme):
    """Refreshed in every step they are no caches at all; else a row of a batch is the row alone."""
    denoiser = mixed("full", shift=True)
    run = {"gen_length": 12, "seed": 1, "temperature": 1.0}
    whole = {**run, "prompt": [1, 2], "batch": 2}
    plain = samplers.sample(denoiser, "low_confidence", **whole)
    each = samplers.sample(denoiser, "low_confidence", cache="delayed(1)", **whole)
    assert (plain.x == each.x).all()
    prompts = [[1, 2, 3], [6, 7], [8, 9, 10]]
    together = samplers.sample(denoiser, "threshold", prompt=prompts, block_length=4, cache=scheme, **run)
    for i, prompt in enumerate(prompts):
        alone = samplers.sample(
            denoiser, "threshold", prompt=[prompt], block_length=4, cache=scheme, first_row=i, **run
        )
        assert together.x[i, : len(prompt) + 12].tolist() == alone.x[0].tolist()


def test_who_answers_if_answers_are_shifted():
    rows = torch.tensor([[True, True, False, True], [False, False, True, False]])
    lines, answers = shifted_lines(rows)
    assert lines.tolist() == [[True, False, True, False], [False, True, False, False]]
    assert answers.tolist() == [0, 0, 1, 2]
    with pytest.raises(OptionError, match="shift and predicts_next do not go together"):
        mixed("causal", shift=True, predicts_next=True)
    denoiser = mixed("full", shift=True)
    x = torch.randint(30, (2, 9), generator=torch.Generator().manual_seed(0))
    plain = mixed("full").predict(x)
    assert plain.abs().max() < 5  # the soft cap
    assert torch.equal(denoiser.predict(x), torch.cat([plain[:, :1], plain[:, :-1]], 1))


# ---------------------------------------------------------------------------------------------- recognised, and corrected


@pytest.mark.parametrize(
    ("config", "facts"),
    [
        (
            {"architectures": ["LLaDAModelLM"], "mask_token_id": 126336, "eos_token_id": 126081},
            ("LLaDA", 126336, "full", None, False, (126081, 126348), "low_confidence", "ours"),
        ),
        (
            {"model_type": "llada", "mask_token_id": 5},
            ("LLaDA", 5, "full", None, False, (126081, 126348), None, "ours"),
        ),
        ({"architectures": ["LLaDAMoEModelLM"]}, ("LLaDA-MoE", 156895, "full", None, False, (156892,), None, "ours")),
        (
            {"architectures": ["LLaDA2MoeModelLM"], "auto_map": {"AutoModel": "x.Y"}},
            ("LLaDA2", 156895, "block_causal", 32, False, (156892,), "llada2", "ours"),
        ),
        (
            {"architectures": ["DreamModel"], "eos_token_id": 151643},
            ("Dream", 151666, "full", None, True, (151643,), "neg_entropy", "ours"),
        ),
        (
            {"architectures": ["SDARForCausalLM"], "eos_token_id": [151645, 151643], "block_size": 16},
            ("SDAR", 151669, "block_causal", 16, False, (151645, 151643), "threshold", "ours"),
        ),
        ({"model_type": "sdar_moe"}, ("SDAR-MoE", 151669, "block_causal", 4, False, (), "threshold", "ours")),
        (
            {"architectures": ["Fast_dLLM_QwenForCausalLM"]},
            ("Fast-dLLM v2", 151665, "block_causal", 32, True, (), "threshold", "ours"),
        ),
        (
            {"architectures": ["BD3LM"], "block_size": 8, "vocab_size": 50258},
            ("BD3-LM", 50257, "block_causal", 8, False, (), "first_hitting", "dit"),
        ),
        ({"model_type": "mdlm", "vocab_size": 50258}, ("MDLM", 50257, "full", None, False, (), "ancestral", "dit")),
        ({"model": {"type": "ddit_wot"}, "tokens": 50257}, ("RADD", 50257, "full", None, False, (), "radd", "dit")),
        ({"architectures": ["SMDM"]}, ("SMDM", None, "full", None, False, (), "smdm_greedy", "smdm")),
        ({"architectures": ["BertForMaskedLM"]}, ("masked LM", None, "full", None, False, (), None, "transformers")),
        (
            {"architectures": ["DiffusionGemmaForBlockDiffusion"], "canvas_length": 256},
            ("DiffusionGemma", None, "full", 256, False, (), "entropy_bound_uniform", "diffusion_gemma"),
        ),
        (
            {"architectures": ["Qwen3ForCausalLM"], "eos_token_id": 3},
            ("Qwen3", None, "causal", None, False, (3,), None, "ours"),
        ),
    ],
    ids=lambda x: x[0] if isinstance(x, tuple) else None,
)
def test_recognised(config, facts):
    family = recognise(config)
    sampler = facts[6] or family.sampler
    made = (family.name, family.mask_id, family.attention, family.block_length, family.shift, family.stop_ids)
    assert (*made, family.sampler, family.loader) == (*facts[:6], sampler, facts[7])
    known = samplers.registry.load(family.sampler)
    options = {option.name for option in known.options()}
    assert family.settings.keys() <= options | {"temperature", "top_p", "cache", "block_length", "stop_rule"}
    assert family.source["mask_id"] == ("config.json" if "mask_token_id" in config else family.source["name"]) or (
        "family default" in family.source["mask_id"]
    )
    assert family.plain == (family.name == "Qwen3")


@pytest.fixture
def qwen(transformers, tmp_path):
    saved(transformers, tmp_path, "Qwen2", {"eos_token_id": 3})
    return tmp_path


def test_a_causal_model_with_a_mask_is_a_question(qwen, cli):
    with pytest.raises(ModelError, match=r"names a mask token.*mask_id=, or hf:NAME\?mask_id="):
        pretrained(qwen)
    edit(qwen, mask_token_id=59)
    with pytest.raises(
        ModelError, match=r"a mask token \(59, named by the config\.json\).*attention='full'.*Dream.*ReFusion"
    ):
        pretrained(qwen)
    run = ["--sampler", "low_confidence", "--gen-length", "6", "--prompt", "5 6", "--seed", "3", "--json"]
    code, _, err = cli("sample", "--denoiser", f"hf:{qwen}", *run)
    assert code == 2 and "hf:NAME?attention=full" in err
    for told, facts in (
        ({"attention": "full"}, ("full", False, False, 1)),
        ({"attention": "full", "shift": True}, ("full", True, False, 1)),
        ({"attention": "causal"}, ("causal", False, True, 1)),
        ({"attention": "causal", "shift": True}, ("causal", True, False, 1)),
        ({"attention": "causal", "shift": False}, ("causal", False, False, 1)),
        ({"attention": "block_causal", "block_length": 4}, ("block_causal", False, False, 4)),
    ):
        made = pretrained(qwen, **told)
        assert (made.attention, made.shift, made.predicts_next, made.attention_block) == facts
        assert made.stop_ids == (3,) and made.mask_id == 59
    code, out, err = cli("sample", "--denoiser", f"hf:{qwen}?attention=full&shift=1", *run)
    assert code == 0, err
    expected = samplers.sample(
        pretrained(qwen, attention="full", shift=True), "low_confidence", prompt=[5, 6], gen_length=6, batch=1, seed=3
    )
    assert json.loads(out)["x"] == expected.x.tolist()


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"attention": "ful"}, "did you mean 'full'"),
        ({"attention": "block_causal"}, "needs block_length="),
        ({"attention": "full", "block_length": 4}, "block_length=4 goes with attention='block_causal' only"),
        ({"attention": "full", "mask_id": 60}, "mask_id must be one of the 60 ids"),
        ({"attention": "full", "mask_id": -1}, "mask_id"),
        ({"attention": "full", "device_map": "auto"}, "device_map goes to transformers' from_pretrained"),
        ({"attention": "full", "tokenizer": "nowhere/at all"}, "nowhere/at all"),
        ({"loader": "mine"}, "loader='mine'"),
        ({"attention": "full", "dtype": "bf16"}, "dtype is float32, bfloat16, float16 or float64, not 'bf16'"),
        ({"attention": "full", "dtype": torch.int8}, "dtype is float32"),
        ({"attention": "full", "device": "gpu"}, "device='gpu': torch knows no such device"),
        ({"attention": "full", "shift": "no"}, "shift must be True or False, not 'no'"),
        ({"attention": "full", "trust_remote_code": "no"}, "trust_remote_code must be True or False, not 'no'"),
    ],
)
def test_corrections_that_are_wrong(qwen, told, says):
    edit(qwen, mask_token_id=59)
    with pytest.raises((ModelError, OptionError), match=says):
        pretrained(qwen, **told)


def test_a_dtype_by_its_name(qwen):
    assert pretrained(qwen, attention="full", mask_id=59, dtype="bfloat16").head.weight.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("key", "value"), [("mask_token_id", "x59"), ("eos_token_id", [[3]]), ("eos_token_id", 2.5), ("block_size", "4")]
)
def test_numbers_of_a_configuration_that_are_none(key, value):
    said = re.escape(str(value).strip("[]"))
    with pytest.raises(ModelError, match=f"config.json: .* is .*{said}.*; an integer is needed"):
        recognise({"architectures": ["SDARForCausalLM"], key: value})


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("shfit=1", "no argument 'shfit': did you mean 'shift'"),
        ("shift=2", "shift is 1 or 0, not '2'"),
        ("mask_id=x", "mask_id is an integer"),
        ("dtype=int8", "dtype is float32"),
        ("device=gpu", "device"),
        ("attention", "attention has no value"),
        ("shift=1&shift=0", "shift is there twice"),
    ],
)
def test_queries_that_are_wrong(query, says):
    with pytest.raises(OptionError, match=says):
        read_spec(f"some/model?{query}")


def test_a_query():
    text = "some/model?attention=full&shift=0&mask_id=5&block_length=32&dtype=bfloat16&device=cpu&trust_remote_code=1"
    name, told = read_spec(text)
    assert name == "some/model" and told == {
        "attention": "full", "shift": False, "mask_id": 5, "block_length": 32, "dtype": torch.bfloat16,
        "device": torch.device("cpu"), "trust_remote_code": True,
    }  # fmt: skip
    assert read_spec("some/model") == ("some/model", {})


class Words:
    """A tokenizer of a few ids."""

    vocab_size, mask_id, eos_ids = 50, 49, (4, 5)

    def encode(self, text, *, begin=True):
        return torch.tensor([int(word) for word in text.split()])

    def decode(self, ids, *, mask="", eos=""):
        return " ".join(map(str, ids.tolist()))

    chat = encode


def test_a_tokenizer_bounds_the_vocabulary(qwen):
    edit(qwen, eos_token_id=None)
    (qwen / "generation_config.json").unlink(missing_ok=True)
    made = pretrained(qwen, tokenizer=Words(), attention="full")
    assert (made.mask_id, made.vocab_size, made.stop_ids) == (49, 50, (4, 5))
    assert made.head.weight.shape == (50, 32)
    assert made.head.weight.data_ptr() == made.model.head.weight.data_ptr(), "a view"
    free = pretrained(qwen, tokenizer=False, mask_id=49, attention="full")
    assert torch.equal(made.predict(IDS), free.predict(IDS)[..., :50])
    out = samplers.sample(made, "low_confidence", prompt=made.encode("1 2"), gen_length=16, batch=16, temperature=3.0)
    assert int(out.x.max()) < 49
    (qwen / "generation_config.json").write_text(json.dumps({"eos_token_id": [7, 8]}))
    made = pretrained(qwen, tokenizer=Words(), mask_id=59, attention="full")
    assert (made.mask_id, made.stop_ids) == (59, (7, 8))
    large = Words()
    large.vocab_size = 61
    with pytest.raises(ModelError, match="the tokenizer has 61 ids, and the model embeds 60"):
        pretrained(qwen, tokenizer=large, attention="full")


def test_the_tokenizer_of_the_folder(transformers, qwen):
    tokenizers = pytest.importorskip("tokenizers")
    words = {word: i for i, word in enumerate(["<unk>", "<mask>", "</s>", *(f"w{i}" for i in range(40))])}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    transformers.PreTrainedTokenizerFast(
        tokenizer_object=inner, unk_token="<unk>", mask_token="<mask>", eos_token="</s>"
    ).save_pretrained(qwen)
    edit(qwen, model_type=None)  # transformers opens every tokenizer of a "qwen2" folder as Qwen2's own
    with pytest.raises(ModelError, match=r"\(1, named by the tokenizer\): how it denoises must be told"):
        pretrained(qwen)
    made = pretrained(qwen, attention="full")
    assert (made.mask_id, made.vocab_size, made.stop_ids) == (1, 43, (3,))  # config.json's end comes first
    assert made.decode(made.encode("w1 w2")) == "w1 w2"
    (qwen / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="its tokenizer cannot be opened"):
        pretrained(qwen, attention="full")
    assert pretrained(qwen, attention="full", mask_id=1, tokenizer=False).tokenizer is None


def test_our_own_folders_stay_what_they_were(tmp_path):
    model = Transformer(Config(30, 16, 2, 2), seed=0)
    save(model, tmp_path / "causal", mask_id=29)
    assert pretrained(tmp_path / "causal").predicts_next
    save(model, tmp_path / "shifted", mask_id=29, shift=True, eos_token_id=[3])
    made = pretrained(tmp_path / "shifted")
    assert (made.shift, made.predicts_next, made.stop_ids) == (True, False, (3,))


# ---------------------------------------------------------------------------------------------- loaded by others


def test_what_transformers_loads(transformers, qwen):
    told = {"mask_id": 59, "attention": "full", "shift": True}
    ours, live = pretrained(qwen, **told), pretrained(qwen, loader="transformers", attn_implementation="eager", **told)
    assert type(live.model).__name__ == "Qwen2ForCausalLM" and live.model.config._attn_implementation == "eager"
    facts = ("mask_id", "attention", "shift", "predicts_next", "stop_ids", "vocab_size", "max_length")
    assert [getattr(live, fact) for fact in facts] == [getattr(ours, fact) for fact in facts]
    torch.testing.assert_close(live.predict(IDS), ours.predict(IDS), rtol=0, atol=1e-4)
    told = {"mask_id": 59, "attention": "causal"}
    assert pretrained(qwen, loader="transformers", **told).predicts_next and pretrained(qwen, **told).predicts_next
    with pytest.raises(ModelError, match="transformers cannot load it"):
        pretrained(qwen, loader="transformers", attn_implementation="none such", **told)
    (qwen / "model.safetensors").rename(qwen / "pytorch_model.bin")
    with pytest.raises(ModelError, match="a pickle may run code and is never loaded"):
        pretrained(qwen, loader="transformers", **told)
    config = transformers.BertConfig(
        vocab_size=60, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertForMaskedLM(config).save_pretrained(qwen / "bert")
    live = pretrained(qwen / "bert", mask_id=7, dtype=torch.bfloat16)
    assert type(live.model).__name__ == "BertForMaskedLM" and live.model.dtype == torch.bfloat16
    assert (live.mask_id, live.attention, live.shift) == (7, "full", False)
    with pytest.raises(ModelError, match="mask"):
        pretrained(qwen / "bert")


CODE = """
import transformers

print("THE CODE OF THE FOLDER RAN")


class Mine(transformers.Qwen2ForCausalLM):
    pass
"""


def test_code_of_its_own_runs_only_if_it_is_trusted(qwen, capfd):
    (qwen / "modeling_mine.py").write_text(CODE)
    edit(qwen, architectures=["Mine"], auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    with pytest.raises(
        ModelError, match=r"whose code comes with its weights.*modeling_mine\.py.*trust_remote_code=True"
    ):
        pretrained(qwen, mask_id=59, attention="full")
    assert "RAN" not in capfd.readouterr().out
    live = pretrained(qwen, mask_id=59, attention="full", trust_remote_code=True)
    assert type(live.model).__name__ == "Mine" and live.attention == "full"
    assert "THE CODE OF THE FOLDER RAN" in capfd.readouterr().out
    edit(qwen, auto_map=None, model_type="mamba")
    with pytest.raises(ModelError, match=r"unsupported architecture 'Mine'.*loader='transformers'"):
        pretrained(qwen, mask_id=59, attention="full")


# ---------------------------------------------------------------------------------------------- show-model


def test_show_model(transformers, tmp_path, cli, monkeypatch):
    llada2(transformers, tmp_path)
    edit(tmp_path, mask_token_id=59)
    reader = sys.modules["samplers.models.load"]._File
    monkeypatch.setattr(reader, "read", lambda *_: pytest.fail("a weight was read"))
    code, out, err = cli("show-model", f"{tmp_path}?block_length=8", "--json")
    assert code == 0, err
    facts = {key: tuple(about.values()) for key, about in json.loads(out).items() if key != "name"}
    assert facts["family"][0] == "LLaDA2" and facts["loader"][0] == "ours"
    assert facts["mask_token"] == (59, "config.json") and facts["block_length"] == (8, "argument")
    assert facts["parameters"][0] == sum(math.prod(shape) for _, shape in headers(tmp_path).values())
    assert facts["caches"][0] == ["block"] and facts["sampler"][0] == "llada2"
    assert facts["settings"][0]["block_length"] == 8 and "LLaDA2" in facts["settings"][1]
    code, out, _ = cli("show-model", f"hf:{tmp_path}")
    assert code == 0 and "block_causal" in out and "156,892" not in out and "156892" in out
    assert describe(tmp_path).tokenizer is None
    code, _, err = cli("show-model", str(tmp_path / "nothing"))
    assert code == 2 and "is no folder" in err
