"""model.generate(custom_generate=FOLDER) of a small random model, by transformers' own loader."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import samplers

transformers = pytest.importorskip("transformers")

import samplers_bridges  # noqa: E402
from samplers_bridges.__main__ import main  # noqa: E402

MASK, EOS, PAD = 39, 38, 0
ASK = {"mask_id": MASK, "attention": "full"}
IDS = torch.tensor([[3, 4, 5, 6], [PAD, PAD, 7, 8]])
SEEN = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]])
PROMPTS = [[3, 4, 5, 6], [7, 8]]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = transformers.LlamaConfig(
            vocab_size=40, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, bos_token_id=None, eos_token_id=None, pad_token_id=PAD,
        )  # fmt: skip
        made = transformers.LlamaForCausalLM(config).eval()
        with torch.no_grad():
            made.lm_head.weight.mul_(20)  # so that it is sure of some tokens and not of others
    return made


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """transformers copies the folder's code to here, and not to the user's cache."""
    import transformers.dynamic_module_utils as loader

    monkeypatch.setattr(loader, "HF_MODULES_CACHE", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    for name in [n for n in sys.modules if n.startswith("transformers_modules")]:
        del sys.modules[name]


def write(model, folder=samplers_bridges.FOLDER, **how):
    how = {"input_ids": IDS, "attention_mask": SEEN, "max_new_tokens": 8, **ASK, **how}
    return model.generate(custom_generate=folder, trust_remote_code=True, **how)


def sampled(model, sampler, **how):
    denoiser = samplers.models.from_transformers(model, **ASK)
    return samplers.sample(denoiser, sampler, **{"prompt": PROMPTS, "gen_length": 8, **how})


@pytest.mark.parametrize(
    ("sampler", "how", "means"),
    [
        ("entropy_bound", {"steps": 8, "block_length": 4, "bound": 0.5}, {}),
        ("low_confidence", {"steps": 4, "do_sample": False}, {"temperature": 0.0}),
        ("threshold", {"do_sample": True, "top_k": 5, "top_p": 0.9}, {"temperature": 1.0}),
        ("random_order", {"do_sample": True, "temperature": 0.7, "suppress_tokens": [27]}, {"forbid": [27]}),
        ("remdm", {"steps": 6, "window": "block", "block_length": 4}, {}),
    ],
)
def test_generate_is_sample(model, sampler, how, means):
    """Prompts of different lengths, padded on the left; what generate() calls its settings are arguments of sample()."""
    out = write(model, sampler=sampler, seed=3, return_dict_in_generate=True, **how)
    same = {k: v for k, v in how.items() if k not in ("do_sample", "suppress_tokens")}
    wanted = sampled(model, sampler, seed=3, **same, **means)
    assert torch.equal(out.sequences[:, :4], IDS)
    assert torch.equal(out.sequences[0], wanted.x[0])
    assert torch.equal(out.sequences[1, 4:], wanted.x[1, 2:10])
    assert out.nfe == wanted.nfe


def test_rows_end_at_the_end_token(model):
    """After it comes padding, and the longest row sets the width."""
    first = write(model, sampler="random_order", seed=2)[:, 4:]
    eos = next(t for t in first[0].tolist() if t not in first[1].tolist())
    out = write(model, sampler="random_order", seed=2, eos_token_id=eos, pad_token_id=PAD)[:, 4:]
    wanted = sampled(model, "random_order", seed=2, stop=[eos])
    assert out.shape[1] == int((wanted.lengths - torch.tensor([4, 2])).max())
    for row, end, begin, made in zip(out, wanted.lengths.tolist(), (4, 2), wanted.x):
        assert row.tolist() == made[begin:end].tolist() + [PAD] * (len(row) - (end - begin))
    assert (out == PAD).any(), "no row ended early"


def test_settings_come_from_the_call_the_config_or_the_model(model):
    config = transformers.GenerationConfig(max_length=12, do_sample=True, temperature=0.5, num_return_sequences=2)
    how = {"sampler": "random_order", "seed": 1, "input_ids": IDS[:1], "attention_mask": None, "max_new_tokens": None}
    out = write(model, generation_config=config, **how)
    wanted = sampled(model, "random_order", prompt=[PROMPTS[0]] * 2, seed=1, temperature=0.5)
    assert torch.equal(out, wanted.x)
    torch.manual_seed(4)
    drawn = [write(model, sampler="random_order", do_sample=True) for _ in range(2)]
    torch.manual_seed(4)
    assert torch.equal(drawn[0], write(model, sampler="random_order", do_sample=True))
    assert not torch.equal(*drawn)


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"num_beams": 4}, "num_beams=4: samplers do not follow it"),
        ({"repetition_penalty": 1.2}, "repetition_penalty=1.2"),
        ({"logits_processor": [lambda ids, scores: scores]}, "logits_processor is for decoding from left to right"),
        ({"max_new_tokens": None}, "max_new_tokens is needed"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1]])}, "pad on the left"),
        ({"step": 3}, "'step' is neither an argument of samplers.sample"),
        ({"sampler": "heun"}, "gaussian family"),
    ],
)
def test_what_is_not_followed_is_refused(model, how, says):
    with pytest.raises(samplers.SamplersError, match=says):
        write(model, **{"sampler": "low_confidence", **how})


def test_the_code_of_the_readme_runs(model):
    text = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    names = {"model": model, "ids": IDS[:1], "block_logits": torch.randn(4, 40)}
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    for code in blocks:
        exec(compile(code, "README.md", "exec"), names)
    assert len(blocks) == 3 and names["out"].shape == (1, 12) and len(names["result"].next_input_block) == 4


def test_files_that_are_written_out(model, tmp_path, capsys):
    assert main(["transformers", str(tmp_path / "own")]) == 0
    assert torch.equal(write(model, str(tmp_path / "own"), seed=0), write(model, seed=0, sampler="low_confidence"))
    algorithm = tmp_path / "samplers_zoo.py"
    assert main(["sglang", str(algorithm)]) == 0
    # A stand-in for SGLang's modules, then the file, then what SGLang asks of it.
    base = """import sys, types
for name in ("", ".srt", ".srt.dllm", ".srt.dllm.algorithm", ".srt.dllm.algorithm.base"):
    module = sys.modules["sglang" + name] = types.ModuleType("sglang" + name)
module.DllmAlgorithm = type("DllmAlgorithm", (), {})
"""
    check = "assert Algorithm.__name__ == 'Samplers' and issubclass(Algorithm, module.DllmAlgorithm)"
    code = f"{base}{algorithm.read_text()}{check}"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert main(["sglang"]) == 2
    assert "SGLang is not installed here" in capsys.readouterr().err
