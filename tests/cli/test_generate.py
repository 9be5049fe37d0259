"""`samplers generate` and `samplers chat`, end to end."""

import io
import json
import resource
import signal

import pytest
from texts import reciter, tokenizer_folder

import samplers
from samplers.cli import main
from samplers.models import zoo

pytestmark = pytest.mark.usefixtures("one_thread")

BASE = ("generate", "text-mdm", "--gen-length", 6, "--seed", 2)
PROMPTS = ("The module", "Return the", "A list of", "If the", "When a")


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command with lines on standard input: (exit code, stdout, stderr)."""

    def call(*argv, stdin=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(stdin))
        code = main([str(word) for word in argv])
        told = capsys.readouterr()
        return code, told.out, " ".join(told.err.split())

    return call


def records(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_generate_goes_on_where_it_was(run, tmp_path):
    (tmp_path / "p.txt").write_text("\n".join(PROMPTS))
    base = (*BASE, "--prompts", tmp_path / "p.txt", "--out", tmp_path / "o.jsonl", "--stop", " of", "--stop", "\\n")
    assert run(*base, "--batch", 2)[0] == 0
    whole = (tmp_path / "o.jsonl").read_bytes()
    made = records(tmp_path / "o.jsonl")
    assert [r["prompt"] for r in made] == list(PROMPTS)
    same = samplers.sample(
        zoo.load("text-mdm"),
        "entropy_bound",
        prompt=list(PROMPTS),
        gen_length=6,
        seed=2,
        stop=[" of", "\n"],
        temperature=0.7,
    )
    assert [r["text"] for r in made] == same.texts
    for field in ("sampler", "options", "distribution", "version"):
        assert made[0][field] == getattr(same, field)
    assert made[0]["settings"]["stop"] == [" of", "\n"] and made[0]["dtype"] == "float32" and made[0]["device"] == "cpu"
    # Stopped in the middle of a line: that one is dropped, the others are kept, and the whole is as if nothing had been.
    lines = whole.splitlines(keepends=True)
    (tmp_path / "o.jsonl").write_bytes(b"".join(lines[:2]) + lines[2][:40])
    code, out, err = run(*base, "--batch", 3)
    assert code == 0 and "cut off" in err and "3 written, 2 were there already" in out
    assert (tmp_path / "o.jsonl").read_bytes() == whole
    assert "0 written, 5 were there already" in run(*base)[1]
    # Another setting, other prompts or another file are not mixed with it.
    for argv, says in (
        (("--temperature", 1), "other settings (an argument of sample()"),
        (("--seed", 5), "other settings (seed)"),
        (("--sampler", "radd"), "other settings (sampler, options)"),
    ):
        code, _, err = run(*base, *argv)
        assert code == 2 and says in err and "--overwrite" in err, err
    (tmp_path / "p.txt").write_text("\n".join(("Another", *PROMPTS[1:])))
    assert "line 1 is of another prompt than number 0" in run(*base)[2]
    assert (tmp_path / "o.jsonl").read_bytes() == whole
    assert run(*base, "--overwrite")[0] == 0
    assert records(tmp_path / "o.jsonl")[1:] == made[1:] and records(tmp_path / "o.jsonl")[0] != made[0]
    (tmp_path / "o.jsonl").write_text("no record\n")
    assert "line 1 is no record" in run(*base)[2]


def test_a_full_disk_costs_no_record(run, tmp_path, monkeypatch):
    """What could not be written is not in the file, and the error says which file; the same command then goes on."""
    base = (*BASE, *(word for text in PROMPTS for word in ("--prompt", text)), "--batch", 1)
    assert run(*base, "--out", tmp_path / "whole.jsonl")[0] == 0
    whole = (tmp_path / "whole.jsonl").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # as Python has it
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) // 2, limits[1]))
        code, _, err = run(*base, "--out", tmp_path / "o.jsonl")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, before)
    assert code == 2 and "o.jsonl cannot be written: File too large. 2 records are safe in it" in err, err
    assert (tmp_path / "o.jsonl").read_bytes() == b"".join(whole.splitlines(keepends=True)[:2])
    assert "3 written, 2 were there already" in run(*base, "--out", tmp_path / "o.jsonl")[1]
    assert (tmp_path / "o.jsonl").read_bytes() == whole


def test_shards_are_the_whole(run, tmp_path):
    lines = "\n".join(json.dumps({"prompt": text, "id": f"q{i}"}) for i, text in enumerate(PROMPTS))
    code, out, err = run(*BASE, "--prompts", "-", "--json", stdin=lines)
    assert code == 0, err
    whole = [json.loads(line) for line in out.splitlines()]
    assert [r["id"] for r in whole] == [f"q{i}" for i in range(5)]
    parts = []
    for i in range(2):
        shard = ("--shard", f"{i}/2", "--out", tmp_path / "o.jsonl", "--batch", 2)
        assert run(*BASE, "--prompts", "-", *shard, stdin=lines)[0] == 0
        parts += records(tmp_path / f"o.shard-{i}-of-2.jsonl")
    assert parts == whole


def test_generate_prints_text(run):
    code, out, _ = run(*BASE, "--prompt", PROMPTS[0], "--prompt", PROMPTS[1])
    assert code == 0
    texts = samplers.sample(
        zoo.load("text-mdm"), "entropy_bound", prompt=list(PROMPTS[:2]), gen_length=6, seed=2, temperature=0.7
    ).texts
    assert all(prompt + text in out for prompt, text in zip(PROMPTS, texts))
    assert out.count("tokens per pass") == 2


def test_what_generate_and_chat_refuse(run, tmp_path):
    ids = tmp_path / "ids.jsonl"
    ids.write_text('{"ids": [5]}\n' * 30 + '{"ids": [5, 1024], "id": "bad"}\n')
    for argv, says in (
        ((*BASE, "--prompts", ids, "--out", tmp_path / "ids"), "prompt 30 (bad): prompt: row 0, position 1 is "),
        ((*BASE, "--prompts", tmp_path / "none.txt"), "none.txt cannot be read: No such file"),
        ((*BASE, "--prompts", "-"), "standard input: there is no prompt"),
        ((*BASE, "--prompt", "a", "--chat"), "no chat template"),
        ((*BASE, "--prompt", "a", "--system", "b"), "--system goes with --chat"),
        ((*BASE, "--prompt", "a " * 200), "prompt 0: "),
        ((*BASE, "--prompt", "a", "--out", tmp_path / "no" / "o.jsonl"), "cannot be written: No such file"),
        ((*BASE, "--prompt", "a", "--out", "/dev/zero"), "--out /dev/zero cannot be written: it is no file"),
        (("generate", "digits-gauss", "--prompt", "a"), "a model of text is needed"),
        (("chat", "text-mdm"), "no chat template"),
        (("chat", "text-mdm", "--raw", "--system", "a"), "--system goes with a chat template"),
        (("chat", "digits-mdm"), "has no tokenizer"),
    ):
        code, _, err = run(*argv)
        assert code == 2 and says in err, (argv, err)
    assert (tmp_path / "ids").read_text() == ""  # all prompts are looked at before the first one runs


def test_chat_goes_on_with_a_text(run):
    base = ("chat", "text-mdm", "--raw", "--gen-length", 6, "--stop", ".")
    code, out, err = run(*base, stdin="The module\nReturn the\n\n/nonsense\n/reset\nReturn the\n/quit\nnever\n")
    assert code == 0
    assert err.count("tokens per pass") == 3 and "there is no command /nonsense" in err
    model = zoo.load("text-mdm")

    def answer(prompt, turn):
        out = samplers.sample(
            model, "entropy_bound", prompt=prompt, gen_length=6, temperature=0.7, stop=".", first_row=turn
        )
        return out.texts[0]

    first = answer("The module", 0)
    second = answer(f"The module{first}\nReturn the", 1)
    assert out == f"{first}\n{second}\n{answer('Return the', 2)}\n"


def test_chat_keeps_the_conversation_in_the_template(run, tmp_path, monkeypatch):
    pytest.importorskip("transformers")
    from samplers.models.hf_tokenizer import tokenizer_of

    text = tokenizer_of(tokenizer_folder(tmp_path))
    model, asked = reciter(text), []
    chat = text.chat
    monkeypatch.setattr(text, "chat", lambda messages: asked.append(list(messages)) or chat(messages))
    monkeypatch.setattr("samplers.bench.user_model.load_denoiser", lambda name: model)
    code, out, err = run(
        "chat", "my:model", "--gen-length", 90, "--system", "short", stdin="what?\n/reset\nthe cat?\nand?\n"
    )
    assert code == 0, err
    answers = [*out.splitlines()]
    assert len(answers) >= 3
    system, user = {"role": "system", "content": "short"}, {"role": "user", "content": "the cat?"}
    assert asked[2] == [system, user]  # after the trial before the first line, the first line, and /reset
    assert asked[3][:2] == [system, user] and asked[3][2]["role"] == "assistant"
    assert asked[3][3] == {"role": "user", "content": "and?"}


def test_chat_on_a_terminal_shows_the_text_being_unmasked(run, monkeypatch):
    from rich.console import Console

    from samplers.cli import chat

    screen = io.StringIO()
    monkeypatch.setattr(chat, "make_console", lambda: Console(file=screen, force_terminal=True, width=80))
    assert run("chat", "text-mdm", "--raw", "--gen-length", 6, stdin="The module\n")[0] == 0
    shown = screen.getvalue()
    model = zoo.load("text-mdm")
    last = samplers.sample(model, "entropy_bound", prompt="The module", gen_length=6, temperature=0.7).texts[0]
    assert "·" in shown and "tokens per pass" in shown
    assert "·" not in shown[shown.rindex(last) :]
