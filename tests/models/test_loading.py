"""Weights from disk: the same logits as transformers' own models, and every way in which a folder can be wrong."""

import dataclasses
import json
import pickle
import sys
from types import SimpleNamespace

import pytest
import torch

import samplers
from samplers.errors import ModelError, SamplersError
from samplers.models import Config, Llama3Rope, Transformer, load, pretrained, save
from samplers.models.load import read_safetensors, write_safetensors

pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = {
    "vocab_size": 90,
    "hidden_size": 32,
    "intermediate_size": 56,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
STRETCH = {
    "rope_type": "llama3",
    "rope_theta": 20_000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
THEIRS = {
    "llama": ("Llama", {}),
    "llama, tied, every head its own": ("Llama", {"tie_word_embeddings": True, "num_key_value_heads": 4}),
    "llama 3's positions": ("Llama", {"rope_parameters": STRETCH, "rms_norm_eps": 1e-5}),
    "qwen2": ("Qwen2", {"rope_theta": 1e6}),
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True, "num_key_value_heads": 1}),
    "qwen3": ("Qwen3", {"head_dim": 16}),
}


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


def theirs(transformers, kind, dtype=torch.float32):
    family, more = THEIRS[kind]
    config = getattr(transformers, f"{family}Config")(**{**SHAPE, **more})
    state = torch.get_rng_state()
    torch.manual_seed(7)
    model = getattr(transformers, f"{family}ForCausalLM")(config).eval()
    with torch.no_grad():
        for p in model.parameters():  # larger than at birth, so that every part shows; norms and biases not 1 and 0
            p.copy_(p * 8 if p.dim() > 1 else p + 0.3 * torch.randn(p.shape))
    torch.set_rng_state(state)
    return model.to(dtype)


IDS = torch.randint(90, (3, 40), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("kind", THEIRS)
def test_logits_are_theirs(transformers, kind, tmp_path):
    model = theirs(transformers, kind)
    model.save_pretrained(tmp_path)
    ours, config = load(tmp_path)
    assert config["architectures"] == [type(model).__name__]
    assert ours.config.attention == "causal"
    with torch.no_grad():
        expected = model(IDS).logits
        assert expected.std() > 0.5, "logits that say something"
        torch.testing.assert_close(ours.head.logits(ours(IDS)), expected, rtol=0, atol=1e-4)
        # Full attention: the mask that transformers takes as it is, nothing hidden in it.
        full, _ = load(tmp_path, attention="full")
        expected = model(IDS, attention_mask=torch.zeros(3, 1, 40, 40)).logits
        torch.testing.assert_close(full.head.logits(full(IDS)), expected, rtol=0, atol=1e-4)
        assert (expected - model(IDS).logits).abs().max() > 0.1, "the mask was heeded"
        # Positions that are not 0, 1, 2, …, and a cache.
        places = torch.stack([torch.arange(40) + 20, torch.arange(40), torch.arange(40) + 3])
        expected = model(IDS, position_ids=places).logits
        cache = ours.cache(3, 40)
        for at in (0, 25):
            piece = slice(at, 25 if at == 0 else 40)
            hidden = ours(IDS[:, piece], places[:, piece], cache=cache, store="append")
            torch.testing.assert_close(ours.head.logits(hidden), expected[:, piece], rtol=0, atol=1e-4)


def test_shards(transformers, tmp_path):
    model = theirs(transformers, "qwen3")
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 3
    ours, _ = load(tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(ours.head.logits(ours(IDS)), model(IDS).logits, rtol=0, atol=1e-4)


def test_dtypes(transformers, tmp_path):
    model = theirs(transformers, "llama", torch.bfloat16)
    model.save_pretrained(tmp_path)
    assert load(tmp_path)[0].embed.weight.dtype == torch.bfloat16
    ours, _ = load(tmp_path, dtype=torch.float32)
    assert torch.equal(ours.embed.weight, model.model.embed_tokens.weight.float())


def test_configuration_of_transformers_4(transformers, tmp_path):
    """rope_theta and rope_scaling at the top, as before version 5, with 'type' for 'rope_type'."""
    theirs(transformers, "llama 3's positions").save_pretrained(tmp_path)
    new, _ = load(tmp_path)
    edit(tmp_path, rope_parameters=None, rope_theta=20_000.0)
    edit(tmp_path, rope_scaling={"type": "llama3", **{k: v for k, v in STRETCH.items() if not k.startswith("rope")}})
    old, _ = load(tmp_path)
    assert new.config == old.config
    assert new.config.rope_scaling == Llama3Rope(8.0, 1.0, 4.0, 16)


# ---------------------------------------------------------------------------------------------- LLaDA


LLADA = {
    "architectures": ["LLaDAModelLM"],
    "d_model": 32,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 2,
    "mlp_hidden_size": 48,
    "vocab_size": 90,
    "embedding_size": 96,
    "max_sequence_length": 64,
    "rope": True,
    "rope_theta": 500_000.0,
    "rms_norm_eps": 1e-5,
    "layer_norm_type": "rms",
    "activation_type": "silu",
    "block_type": "llama",
    "weight_tying": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "mask_token_id": 95,
}


def llada(folder, **changes):
    """A random LLaDA of the published names, and what its tensors are called here."""
    config = {**LLADA, **changes}
    generator = torch.Generator().manual_seed(1)
    d, m, kv = 32, 48, 8 * config["n_kv_heads"]
    shapes = {"wte": (96, d), "ln_f": (d,), "ff_out": (96, d)}
    for i in range(2):
        layer = {"q_proj": (d, d), "k_proj": (kv, d), "v_proj": (kv, d), "attn_out": (d, d)}
        layer |= {"ff_proj": (m, d), "up_proj": (m, d), "ff_out": (d, m), "attn_norm": (d,), "ff_norm": (d,)}
        shapes |= {f"blocks.{i}.{name}": shape for name, shape in layer.items()}
    tensors = {
        f"model.transformer.{name}.weight": torch.randn(shape, generator=generator) * (0.2 if len(shape) > 1 else 1)
        for name, shape in shapes.items()
    }
    write_safetensors(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config))
    return tensors


def test_llada_is_llama_with_other_names_and_full_attention(transformers, tmp_path):
    """LLaDA's block is Llama's: the same tensors in transformers' Llama, unmasked, give the same logits."""
    tensors = llada(tmp_path)
    ours, config = load(tmp_path)
    assert ours.config.attention == "full"
    assert config["mask_token_id"] == 95
    names = {"wte": "model.embed_tokens", "ln_f": "model.norm", "ff_out": "lm_head"}
    inside = {
        "attn_out": "self_attn.o_proj",
        "ff_proj": "mlp.gate_proj",
        "up_proj": "mlp.up_proj",
        "ff_out": "mlp.down_proj",
    }
    inside |= {"attn_norm": "input_layernorm", "ff_norm": "post_attention_layernorm"}
    inside |= {f"{x}_proj": f"self_attn.{x}_proj" for x in "qkv"}
    state = {}
    for name, x in tensors.items():
        parts = name.split(".")[2:-1]
        state[(f"model.layers.{parts[1]}.{inside[parts[2]]}" if len(parts) == 3 else names[parts[0]]) + ".weight"] = x
    like = transformers.LlamaConfig(
        vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        rope_theta=500_000.0, rms_norm_eps=1e-5, max_position_embeddings=64,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(like).eval()
    model.load_state_dict(state)
    with torch.no_grad():
        expected = model(IDS, attention_mask=torch.zeros(3, 1, 40, 40)).logits
        torch.testing.assert_close(ours.head.logits(ours(IDS)), expected, rtol=0, atol=1e-4)


def test_a_denoiser_of_a_folder(tmp_path, cli):
    """LLaDA's: its mask, its attention; and the command line samples from it."""
    llada(tmp_path)
    denoiser = pretrained(tmp_path)
    assert (denoiser.mask_id, denoiser.attention, denoiser.predicts_next) == (95, "full", False)
    assert denoiser.vocab_size == 96 and denoiser.caches == ("prefix", "dual", "delayed")
    run = ["--sampler", "low_confidence", "--gen-length", "6", "--batch", "2", "--seed", "3", "--json"]
    code, out, err = cli("sample", "--denoiser", f"hf:{tmp_path}", "--prompt", "5,6,7", *run)
    assert code == 0, err
    x = samplers.sample(denoiser, "low_confidence", prompt=[5, 6, 7], gen_length=6, batch=2, seed=3).x
    assert json.loads(out)["x"] == x.tolist()


def test_a_denoiser_of_the_hub(monkeypatch, tmp_path, cli):
    """huggingface_hub is asked for JSON, safetensors and tokenizers; where it is missing, or says no, that is what one reads."""
    save(Transformer(Config(30, 16, 2, 2), seed=0), tmp_path, mask_id=29)
    asked = []

    def snapshot_download(name, allow_patterns):
        asked.append((name, allow_patterns))
        if name == "someone/nothing":
            raise RuntimeError("404: no such\nrepository")
        return str(tmp_path)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(snapshot_download=snapshot_download))
    made = pretrained("someone/model")
    assert (made.name, made.mask_id, made.predicts_next) == ("someone/model", 29, True)
    assert asked == [("someone/model", ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"])]
    with pytest.raises(ModelError, match=r"'someone/nothing' is no folder, and .* no such repository"):
        pretrained("someone/nothing")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    code, _, err = cli("sample", "--denoiser", "hf:someone/model", "--sampler", "radd", "--gen-length", "4")
    assert code == 2 and "pip install huggingface_hub" in err
    save(Transformer(Config(30, 16, 2, 2), seed=0), tmp_path)
    with pytest.raises(ModelError, match="names a mask token, and none is known"):
        pretrained(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"alibi": True}, "alibi=True; this decoder does False"),
        ({"block_type": "sequential"}, "block_type='sequential'; this decoder does 'llama'"),
        ({"layer_norm_type": "default"}, "layer_norm_type='default'"),
        ({"activation_type": "swiglu"}, "activation_type='swiglu'"),
        ({"scale_logits": True}, "scale_logits=True"),
    ],
)
def test_llada_of_another_shape(change, message, tmp_path):
    llada(tmp_path, **change)
    with pytest.raises(ModelError, match=message):
        load(tmp_path)


# ---------------------------------------------------------------------------------------------- our own


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_saved_and_loaded(dtype, tmp_path):
    config = Config(
        30, 16, 2, 4, kv_heads=2, attention="block_causal", block_length=4, embeddings=31, qk_norm=True, qkv_bias=True,
        rope_scaling=Llama3Rope(8.0, 1.0, 4.0, 16), max_length=64,
    )  # fmt: skip
    for shape in (config, dataclasses.replace(config, tied=True)):
        model = Transformer(shape, seed=2, dtype=dtype)
        save(model, tmp_path / "new", mask_id=30)
        again, raw = load(tmp_path / "new")
        assert again.config == shape
        assert raw["mask_id"] == 30
        assert {n: p.dtype for n, p in again.named_parameters()} == dict.fromkeys(dict(model.named_parameters()), dtype)
        assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))


def test_files_of_the_safetensors_package(tmp_path):
    """Its files are read here, and ours there."""
    package = pytest.importorskip("safetensors.torch")
    g = torch.Generator().manual_seed(0)
    tensors = {
        "a": torch.randn(3, 5, generator=g),
        "empty": torch.zeros(0, 4),
        "scalar": torch.tensor(2.5, dtype=torch.float64),
        "half": torch.randn(7, generator=g).half(),
        "brain": torch.randn(2, 3, generator=g).bfloat16(),
    }
    package.save_file(tensors, tmp_path / "theirs.safetensors", metadata={"format": "pt"})
    write_safetensors(tensors, tmp_path / "ours.safetensors")
    for read in (read_safetensors(tmp_path / "theirs.safetensors"), package.load_file(tmp_path / "ours.safetensors")):
        assert read.keys() == tensors.keys()
        for name, x in tensors.items():
            assert read[name].dtype == x.dtype
            assert torch.equal(read[name], x)


# ---------------------------------------------------------------------------------------------- what can be wrong


@pytest.fixture
def folder(tmp_path):
    save(Transformer(Config(30, 16, 2, 2, mlp_width=24), seed=0), tmp_path)
    return tmp_path


def edit(folder, **changes):
    path = folder / "config.json"
    config = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


def tensors_of(folder, change):
    path = folder / "model.safetensors"
    tensors = read_safetensors(path)
    change(tensors)
    write_safetensors(tensors, path)


def wrong(folder, message):
    with pytest.raises(ModelError, match=message) as info:
        load(folder)
    assert isinstance(info.value, SamplersError)  # one line on the command line


def test_a_tensor_that_is_missing(folder):
    tensors_of(folder, lambda t: t.pop("blocks.1.k.weight"))
    wrong(folder, r"tensor 'blocks\.1\.k\.weight' is missing$")
    tensors_of(folder, lambda t: t.pop("norm.weight"))
    wrong(folder, r"tensor 'blocks\.1\.k\.weight' is missing \(and 1 more\)")


def test_a_tensor_too_many(folder):
    tensors_of(folder, lambda t: t.update({"blocks.2.k.weight": torch.zeros(16, 16)}))
    wrong(folder, r"tensor 'blocks\.2\.k\.weight' is not part of SamplersTransformer")


def test_a_tensor_of_another_shape(folder):
    tensors_of(folder, lambda t: t.update({"blocks.0.up.weight": torch.zeros(16, 24)}))
    wrong(folder, r"tensor 'blocks\.0\.up\.weight' has shape \(16, 24\), expected \(24, 16\)")


def test_a_tied_head_once_more(transformers, tmp_path):
    theirs(transformers, "llama, tied, every head its own").save_pretrained(tmp_path)
    tensors_of(tmp_path, lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))
    load(tmp_path)
    tensors_of(tmp_path, lambda t: t["lm_head.weight"].add_(1))
    wrong(tmp_path, "'lm_head.weight' differs from the embedding")


@pytest.mark.parametrize("keep", [0, 5, 60, 0.3, -1], ids=str)
def test_a_truncated_file(folder, keep):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[: int(keep * len(data)) if isinstance(keep, float) else keep])
    wrong(folder, "truncated")


def test_a_file_that_is_something_else(folder):
    (folder / "model.safetensors").write_bytes((16).to_bytes(8, "little") + b"not json at all!" + bytes(64))
    wrong(folder, "is no safetensors file: its header cannot be read")
    (folder / "model.safetensors").write_bytes((17).to_bytes(8, "little") + b'{"a": {"b": [1]}}' + bytes(64))
    wrong(folder, "is no safetensors file: its header cannot be read")


def test_a_tensor_that_lies(folder):
    """A header whose numbers do not fit each other is found out before any memory is taken for it."""
    header = {"embed.weight": {"dtype": "F32", "shape": [30, 16], "data_offsets": [0, 64]}}
    text = json.dumps(header).encode()
    (folder / "model.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + bytes(64))
    wrong(folder, r"tensor 'embed\.weight' is F32 of shape \(30, 16\), but takes 64 bytes")


def test_a_dtype_that_is_not_read(folder):
    path = folder / "model.safetensors"
    data = path.read_bytes()
    path.write_bytes(data.replace(b'"dtype":"F32"', b'"dtype":"I32"'))
    wrong(folder, r"tensor 'embed\.weight' is I32; F64, F32, F16, BF16 can be read")


def test_shards_that_are_wrong(folder):
    index = folder / "model.safetensors.index.json"
    names = list(read_safetensors(folder / "model.safetensors"))
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00002-of-00002.safetensors")}))
    wrong(folder, r"index\.json names the shard 'model-00002-of-00002\.safetensors', which is not there")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "../elsewhere.safetensors")}))
    wrong(folder, "a shard is a file in the same folder")
    index.write_text(json.dumps({"metadata": {}}))
    wrong(folder, "has no 'weight_map'")
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-00001-of-00001.safetensors")}))
    load(folder)
    tensors = read_safetensors(folder / "model-00001-of-00001.safetensors")
    tensors.pop("blocks.1.o.weight")
    write_safetensors(tensors, folder / "model-00001-of-00001.safetensors")
    wrong(folder, r"has no tensor 'blocks\.1\.o\.weight', which model\.safetensors\.index\.json says it has")


class Bomb:
    def __reduce__(self):
        return exec, ("raise AssertionError('a pickle was opened')",)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "weights.pth"])
def test_no_pickle_is_opened(folder, name):
    (folder / "model.safetensors").unlink()
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    wrong(folder, rf"pickles only \({name}\); a pickle may run code and is never loaded")


def test_folders_that_are_none(folder, tmp_path):
    wrong(tmp_path / "nowhere", r"config\.json cannot be read: No such file")
    (folder / "model.safetensors").unlink()
    wrong(folder, r"has neither model\.safetensors nor model\.safetensors\.index\.json")
    (folder / "config.json").write_text("{")
    wrong(folder, "is no JSON")
    (folder / "config.json").write_text("[]")
    wrong(folder, "a JSON object is needed, not list")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"architectures": ["LlamaForCausalLN"]}, "unsupported architecture 'LlamaForCausalLN': did you mean 'LlamaForCausalLM'"),
        ({"architectures": ["MambaForCausalLM"]}, "Known: LlamaForCausalLM"),
        ({"architectures": None}, "unsupported architecture None"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "rotary positions of the kind 'yarn'; 'default' and 'llama3' can be done"),
        ({"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2}}, "of the kind 'linear'"),
        ({"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'; this decoder does 'silu'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "layers of sliding_attention"),
        ({"quantization_config": {"bits": 4}}, "quantization_config"),
        ({"hidden_size": None}, "config.json has no 'hidden_size', which LlamaForCausalLM needs"),
    ],
)  # fmt: skip
def test_what_is_not_done_here(change, message, tmp_path):
    config = {"architectures": ["LlamaForCausalLM"], **SHAPE, "rope_parameters": {"rope_type": "default"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    edit(tmp_path, **change)
    wrong(tmp_path, message)
