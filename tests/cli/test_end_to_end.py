"""From a folder as the Hugging Face hub has them, with a tokenizer, to text: by every command, and what they refuse."""

import importlib.util
import io
import json
import re
import shutil
import socket
import sys

import pytest
import torch
from texts import tokenizer_folder

import samplers
from samplers.cli.sample import chosen
from samplers.models import pretrained, recognise
from samplers.models.denoiser import _recipe

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("one_thread")

SHAPE = {
    "vocab_size": 304,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}
SHAPE |= {"max_position_embeddings": 96}
QWEN = {**SHAPE, "num_key_value_heads": 2, "head_dim": 8}
SDAR = {"architectures": ["SDARForCausalLM"], "model_type": "sdar", "block_size": 4, "mask_token_id": 2}
LAST_BYTE, END = 262, 291  # the tokenizer's ids: 7 special ones, 256 bytes, and then pieces of words; 304 are embedded
PROMPTS = ("the cat", "what did the cat do?", "a mat")


def edit(folder, file="config.json", **changes):
    content = {**json.loads((folder / file).read_text()), **changes}
    (folder / file).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def saved(folder, kind, config, **changes):
    """A folder of a random model that is sure of pieces of words, so that what it writes at temperature 0 can be read."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = getattr(transformers, kind)(config)
        with torch.no_grad():
            if hasattr(model, "lm_head"):
                model.lm_head.weight.mul_(100)
                model.lm_head.weight[: LAST_BYTE + 1] = 0
            else:
                model.cls.predictions.decoder.weight.mul_(20)
                model.cls.predictions.bias[: LAST_BYTE + 1] = -100
    model.save_pretrained(folder)
    edit(folder, **changes)
    return tokenizer_folder(folder)


@pytest.fixture(scope="module", autouse=True)
def without_bars():
    """As in a process of its own, where the command line switches them off before transformers is imported."""
    logging = transformers.utils.logging
    logging.disable_progress_bar()
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Each kind's folder and how the command line calls it: a Qwen3 that is told what it is, an SDAR, a BERT."""
    root = tmp_path_factory.mktemp("hub")
    saved(root / "qwen", "Qwen3ForCausalLM", transformers.Qwen3Config(**QWEN))
    saved(root / "sdar", "Qwen3ForCausalLM", transformers.Qwen3Config(**QWEN), **SDAR)
    saved(root / "bert", "BertForMaskedLM", transformers.BertConfig(**SHAPE))
    return {"qwen": f"{root}/qwen?attention=full", "sdar": f"{root}/sdar", "bert": f"{root}/bert"}


@pytest.fixture
def model(folders):
    def load(kind, **more):
        name, _, query = folders[kind].partition("?")
        return pretrained(name, attention="full" if query else None, **more)

    return load


@pytest.fixture
def run(cli, monkeypatch):
    """Run a command with lines on standard input."""

    def call(*argv, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        return cli(*argv)

    return call


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# What runs if the command names no sampler, written out: at temperature 0, since a seed of the tests is not that of a command.
OWN = {
    "qwen": ("low_confidence", {}),
    "sdar": ("threshold", {"threshold": 0.85, "stop_rule": "block", "cache": "block", "block_length": 4}),
    "bert": ("low_confidence", {}),
}


@pytest.mark.parametrize("kind", list(OWN))
def test_text_of_a_folder(folders, model, run, tmp_path, kind):
    spec, (sampler, told), made = folders[kind], OWN[kind], model(kind)
    code, out, err = run("show-model", spec, "--json")
    facts = {key: about["value"] for key, about in json.loads(out).items() if key != "name"}
    assert code == 0, err
    assert (facts["mask_token"], facts["tokens_with_text"], facts["sampler"]) == (2, END, sampler)
    assert made.recipe == (sampler, facts["settings"]) and made.vocab_size == END and made.revision is None

    def alone(prompt):
        out = samplers.sample(made, sampler, prompt=prompt, gen_length=12, temperature=0, **told)
        text = made.decode(out.generated[0])
        assert text.isprintable() and len(text) >= 12, "a text that says something"
        return out, text

    # generate: a file of prompts, stopped in the middle of a line and resumed.
    messages = [{"role": "user", "content": PROMPTS[2]}]
    asked = [{"prompt": PROMPTS[0], "id": "a"}, {"prompt": PROMPTS[1], "id": "b"}, {"messages": messages}]
    (tmp_path / "p.jsonl").write_text("\n".join(map(json.dumps, asked)))
    out_file = tmp_path / "o.jsonl"
    base = ("--gen-length", 12, "--temperature", 0)
    write = ("generate", f"hf:{spec}", "--prompts", tmp_path / "p.jsonl", "--out", out_file, *base)
    code, out, err = run(*write)
    assert code == 0 and "3 written" in out and f"sampler: {sampler}" in err
    expected = [alone(prompt)[1] for prompt in (*PROMPTS[:2], messages)]
    assert [r["text"] for r in records(out_file)] == expected
    assert {(r["sampler"], r["model"], r["revision"]) for r in records(out_file)} == {(sampler, f"hf:{spec}", None)}
    whole = out_file.read_bytes()
    out_file.write_bytes(whole[: whole.index(b"\n") + 30])
    code, out, _ = run(*write, "--batch", 1)
    assert code == 0 and "2 written, 1 were there already" in out
    assert [r["text"] for r in records(out_file)] == expected

    # sample: the same tokens, and the text on the screen.
    one = ("sample", "--denoiser", f"hf:{spec}", "--prompt", PROMPTS[0], *base)
    code, out, err = run(*one, "--json")
    assert code == 0 and not err
    said = json.loads(out)
    assert said["x"] == alone(PROMPTS[0])[0].x.tolist()
    assert said["sampler"] == sampler and all((said["options"] | said["settings"])[k] == v for k, v in told.items())
    code, out, err = run(*one)
    assert code == 0 and PROMPTS[0] + expected[0] in out and f"sampler: {sampler}" in err

    # chat: two turns of one conversation by the chat template.
    code, out, err = run("chat", f"hf:{spec}", *base, stdin=f"{PROMPTS[2]}\nand?\n")
    assert code == 0, err
    first = expected[2].strip()
    turns = [*messages, {"role": "assistant", "content": first}, {"role": "user", "content": "and?"}]
    assert out == f"{first}\n{alone(turns)[1].strip()}\n"
    assert err.count("tokens per pass") == 2


def test_the_command_comes_before_the_recipe(folders, run):
    def ran(*argv):
        code, out, err = run("generate", f"hf:{folders['sdar']}", "--prompt", "the", "--gen-length", 6, "--json", *argv)
        assert code == 0, err
        record = json.loads(out)
        names = ("sampler", "cache", "stop_rule", "temperature", "block_length", "threshold", "steps")
        known = {**record["settings"], **record["options"], "sampler": record["sampler"]}
        return tuple(known.get(name) for name in names)

    assert ran() == ("threshold", "block", "block", 1.0, 4, 0.85, None)
    told = ("-o", "threshold=0.5", "--temperature", 0, "--stop-rule", "decided", "--steps", 6)
    assert ran(*told) == ("threshold", "block", "decided", 0.0, 4, 0.5, 6)
    # A sampler that is named, be it the family's own, runs as it does in Python: in the model's blocks, and else as it is.
    assert ran("--sampler", "threshold") == ("threshold", None, "decided", 0.0, 4, 0.9, None)
    code, _, err = run("sample", "--denoiser", f"hf:{folders['sdar']}", "--gen-length", 4, "--sampler", "threshold")
    assert code == 0 and not err


def test_steps_replace_the_steps_of_a_block():
    made = samplers.TokenDenoiser.wrap(lambda x: torch.zeros(*x.shape, 5), vocab_size=5, mask_id=4)
    made.recipe = ("llada2", {"threshold": 0.7, "steps_per_block": 32, "stop_rule": "llada2"})
    assert chosen(made, None, {"steps": None}, [])[:2] == made.recipe
    kept = {"threshold": 0.7, "stop_rule": "llada2", "steps": 8}
    assert chosen(made, None, {"steps": 8}, [])[:2] == ("llada2", kept)
    kept = {"threshold": 0.7, "stop_rule": "block", "steps_per_block": 4}
    assert chosen(made, None, {"stop_rule": "block"}, ["steps_per_block=4"])[:2] == ("llada2", kept)
    assert chosen(made, "llada2", {"steps": None}, ["threshold=2"]) == ("llada2", {"threshold": 2.0}, None)


def test_the_recipe_is_what_the_model_can_run(folders, model, tmp_path):
    """A cache only if the model has it as it was loaded; another attention than the family's is another recipe."""
    folder = folders["sdar"]
    assert pretrained(folder, attention="full").recipe == ("threshold", {})
    assert pretrained(folder, attention="causal").recipe == ("refusion", {})
    assert pretrained(folder, block_length=8).recipe[1]["block_length"] == 8
    without_cache = samplers.TokenDenoiser.wrap(lambda x: torch.zeros(*x.shape, 5), vocab_size=5, mask_id=4)
    sampler, settings = _recipe(recognise(SDAR), without_cache)
    assert (sampler, settings) == ("threshold", {k: v for k, v in recognise(SDAR).settings.items() if k != "cache"})
    made = pretrained(folders["qwen"].partition("?")[0], attention="causal", mask_id=2)
    assert made.recipe == ("refusion", {}) and made.predicts_next
    samplers.models.save(made.model, tmp_path, mask_token_id=2)
    assert pretrained(tmp_path).recipe == ("refusion", {})
    for told in ({"attention": "full"}, {"shift": True}):
        assert pretrained(tmp_path, **told).recipe == ("low_confidence", {})


def test_records_name_the_commit_of_the_hub(folders, run, tmp_path, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")
    commit = "0123456789abcdef" * 2 + "01234567"
    kept = tmp_path / "models--someone--model" / "snapshots" / commit
    shutil.copytree(folders["sdar"], kept)
    monkeypatch.setattr(hub, "snapshot_download", lambda name, **_: str(kept))
    code, out, err = run("generate", "hf:someone/model", "--prompt", "the", "--gen-length", 4, "--json")
    assert code == 0, err
    assert json.loads(out)["revision"] == commit
    assert json.loads(run("show-model", "someone/model", "--json")[1])["revision"]["value"] == commit


def test_eval_and_bench_of_a_folder(folders, run, tmp_path):
    pytest.importorskip("lm_eval")
    what = ("--tasks", "zoo_finish", "--samplers", "low_confidence", "--nfe", 4, "--gen-length", 8, "--limit", 2)
    code, out, err = run("eval", "--model", f"hf:{folders['qwen']}", *what, "--out", tmp_path / "eval")
    assert code == 0, err
    (cell,) = records(tmp_path / "eval" / "cells.jsonl")
    assert (cell["status"], cell["rows"], cell["nfe"]["per_row"]) == ("ok", 2, 4.0)
    assert "1 cell run" in out and "zoo_finish" in out and str(tmp_path / "eval" / "report.html") in out
    what = ("--samplers", "low_confidence", "radd", "--nfe", "2,4", "--gen-length", 8, "--rows", 4, "--metric", "nll")
    bench = ("bench", "--denoiser", f"hf:{folders['sdar']}", *what, "--seeds", 1, "--out", tmp_path / "bench")
    code, out, err = run(*bench)
    assert code == 0, err
    cells = records(tmp_path / "bench" / "cells.jsonl")
    assert {c["sampler"] for c in cells} == {"low_confidence", "radd"} and {c["status"] for c in cells} == {"ok"}
    assert all(c["score"]["estimates"]["nll"]["value"] > 0 for c in cells)
    assert "4 cells run" in out and "nll" in out
    assert "0 cells run" in run(*bench)[1]


# ---------------------------------------------------------------------------------------------- what is refused


@pytest.fixture(scope="module")
def wrong(folders, tmp_path_factory):
    """Folders with which something is wrong, by name."""
    root, qwen = tmp_path_factory.mktemp("wrong"), folders["qwen"].partition("?")[0]
    for name in ("mask", "template", "pickles", "code", "weights", "config"):
        shutil.copytree(qwen, root / name)
    shutil.copytree(folders["bert"], root / "bert")
    for name in ("mask", "bert"):
        edit(root / name, "tokenizer_config.json", mask_token=None)
    (root / "template" / "chat_template.jinja").unlink()
    (root / "pickles" / "model.safetensors").rename(root / "pickles" / "pytorch_model.bin")
    edit(root / "code", architectures=["Mine"], auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"})
    (root / "weights" / "model.safetensors").unlink()
    (root / "config" / "config.json").unlink()
    small = {"vocab_size": 100}
    saved(root / "small", "Qwen3ForCausalLM", transformers.Qwen3Config(**QWEN | small))
    saved(root / "small bert", "BertForMaskedLM", transformers.BertConfig(**SHAPE | small))
    return root


LONG = " ".join(["the cat"] * 80)
FULL = "?attention=full"
REFUSED = {
    "no mask token": ("mask", (), r"names a mask token.*name it: mask_id=, or hf:NAME\?mask_id="),
    "no mask token, told": (f"mask{FULL}", (), r"hf:NAME\?mask_id="),
    "no mask token, BERT": ("bert", (), r"names a mask token; say which id it is: mask_id=, or hf:NAME\?mask_id="),
    "a tokenizer too large": (f"small{FULL}", (), r"has 291 ids, and the model embeds 100.*hf:NAME\?tokenizer=FOLDER"),
    "a tokenizer too large, BERT": ("small bert", (), r"291 ids, but BertForMaskedLM embeds 100; give the tokenizer"),
    "a prompt too long": (f"template{FULL}", ("--prompt", LONG), r"takes at most 96 .*: shorten the prompt"),
    "an answer too long": (f"template{FULL}", ("--gen-length", 95), r"takes at most 96 .*: shorten the prompt"),
    "no length": (f"template{FULL}", ("--gen-length", None), "--gen-length is needed, the number of positions"),
    "no chat template": (f"template{FULL}", ("--chat",), "no chat template.*put chat_template.jinja into its folder"),
    "pickles": (f"pickles{FULL}", (), "never loaded: save them as safetensors"),
    "code of its own": (f"code{FULL}", (), r"Read it first \(modeling_mine.py\).*hf:NAME\?trust_remote_code=1"),
    "no weights": (f"weights{FULL}", (), "the weights are elsewhere; name the folder that has them"),
    "no config.json": ("config", (), "has no config.json.*name the folder of a model"),
    "no such folder": ("none", (), "is no folder, and no repository.*write the path of a folder that is there"),
    "no name": (None, (), "a folder, or a repository on the Hugging Face hub as owner/name, is needed after hf:"),
    "an unknown key": ("mask?atention=full", (), "did you mean 'attention'"),
    "a wrong value": ("mask?shift=maybe", (), "shift is 1 or 0, not 'maybe'"),
    "no blocks": ("mask?attention=block_causal&block_length=0", (), "block_length is an integer of 1 or more, not '0'"),
    "a wrong attention": ("mask?attention=both", (), "It is one of full, causal, block_causal"),
    "no such tokenizer": ("mask?tokenizer=/none", (), "tokenizer='/none' is no folder.*write the path of a folder"),
    "not told how": ("template", (), r"how it denoises must be told.*hf:NAME\?attention=full"),
    "no such option": (f"template{FULL}", ("-o", "nonsense=1"), "nor an option of sampler 'low_confidence'"),
}


def refused(told, says):
    code, out, err = told
    assert code == 2 and not out, (code, out, err)
    assert err.count("\n") == 1 and err.startswith("samplers: error: "), err
    assert re.search(says, err), err


@pytest.mark.parametrize("case", list(REFUSED))
def test_what_is_refused_says_what_to_do(wrong, run, case):
    name, more, says = REFUSED[case]
    given = {"--prompt": "the", "--gen-length": 8} | dict(zip(more[::2], more[1::2]))
    argv = [word for key, value in given.items() if value is not None for word in (key, value)]
    argv += [word for word in more if word == "--chat"]
    model = "hf:" if name is None else f"hf:{wrong}/{name}"
    refused(run("generate", model, *argv), says)
    if case == "no chat template":
        refused(run("chat", model, "--gen-length", 8), "samplers chat --raw")
    elif case == "a prompt too long":
        refused(run("sample", "--denoiser", model, *argv), "take.* at most 96: shorten one of them")


def test_no_network_no_ray_no_lm_eval(folders, run, monkeypatch):
    hub = pytest.importorskip("huggingface_hub")

    def unreachable(*_, **__):
        raise ConnectionError("the hub\ncannot be reached")

    write = ("--prompt", "the", "--gen-length", 4)
    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    says = "is no folder, and .*Check the name and the network; or fetch the files on a machine.*: the hub cannot be reached"
    refused(run("generate", "hf:someone/model", *write), says)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        nobody = f"127.0.0.1:{free.getsockname()[1]}"  # bound, and nobody listens
        if importlib.util.find_spec("ray") is not None:
            says = "nothing answers there.*start it there with `ray start --head.*--ray local"
            refused(run("generate", f"hf:{folders['qwen']}", *write, "--ray", nobody), says)
    monkeypatch.setitem(sys.modules, "ray", None)
    monkeypatch.setattr("samplers.bench.user_model.load_denoiser", lambda _: pytest.fail("a model was loaded first"))
    refused(run("generate", f"hf:{folders['qwen']}", *write, "--ray", "local"), r'pip install "sampler-zoo\[ray\]"')
    for name in [n for n in sys.modules if n.split(".")[0] == "lm_eval" or n.startswith("samplers.evaluation")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    what = ("--tasks", "zoo_finish", "--samplers", "radd")
    refused(run("eval", "--model", f"hf:{folders['qwen']}", *what), r'pip install "sampler-zoo\[eval\]"')
