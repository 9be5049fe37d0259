"""Text in, text out: tokenizers of transformers, prompts as text, stop strings, generate()."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from texts import SAYS, reciter, tokenizer_folder

import samplers
from samplers.denoiser import TextTokenizer
from samplers.errors import ModelError, OptionError
from samplers.generate import generate, read_prompts, weights_of
from samplers.models import zoo


def test_a_tokenizer_of_transformers(tmp_path: Path) -> None:
    from samplers.models.hf_tokenizer import HuggingFaceTokenizer, tokenizer_of

    folder = tokenizer_folder(tmp_path)
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [1, 3]}))
    text = tokenizer_of(folder)
    assert text is not None and text.mask_id == 2 and text.eos_ids == (1, 3) and text.vocab_size == len(text.tokenizer)
    words = "Q: what did the cat do? äöü €"
    ids = text.encode(words)
    assert ids.dtype == torch.int64 and ids[0] == 0 and 1 not in ids  # what begins a text, and not what ends it
    assert torch.equal(ids[1:], text.encode(words, begin=False))
    assert text.decode(ids) == text.decode(ids.tolist()) == words  # characters of several bytes, in several tokens
    assert text.decode([*ids[1:3], 2, -1, 1, *ids[3:], 3, 10**6], mask="·", eos="¶") == "Q:·¶" + words[2:] + "¶"
    assert text.decode([5, *ids[1:]]) == words  # other special tokens are not text
    # A chat: equal to what transformers makes of it, which puts what begins a text only if the template does.
    turns = [{"role": "system", "content": "short"}, {"role": "user", "content": "what did the cat do?"}]
    expected = text.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=False)
    assert text.chat(turns).tolist() == expected and expected[-1] == 6
    assert torch.equal(text.chat("it sat"), text.chat([{"role": "user", "content": "it sat"}]))
    with pytest.raises(OptionError, match="no tools"):
        text.chat([{"role": "tool", "content": "x"}])
    with pytest.raises(OptionError, match="a message is"):
        text.chat([{"content": "x"}])
    with pytest.raises(OptionError, match="tokenizer is dict"):
        HuggingFaceTokenizer({})


def test_a_blank_before_a_word_is_text_unless_the_text_begins_there(tmp_path: Path) -> None:
    from samplers.models.hf_tokenizer import tokenizer_of

    text = tokenizer_of(tokenizer_folder(tmp_path, "words", chat=False))
    assert text is not None
    ids = text.encode("the cat sat").tolist()
    assert text.decode(ids) == "the cat sat"
    assert text.decode([-1, *ids]) == " the cat sat"
    assert text.decode([*ids, text.mask_id, *ids], mask="·") == "the cat sat· the cat sat"
    with pytest.raises(OptionError, match=r"no chat template.*--raw"):
        text.chat("hello")


def test_folders_without_a_tokenizer_and_with_a_broken_one(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    from samplers.models.hf_tokenizer import tokenizer_of

    assert tokenizer_of(tmp_path) is None
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be opened"):
        tokenizer_of(tmp_path)


# ---------------------------------------------------------------------------------------------- prompts and stops


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    from samplers.models.hf_tokenizer import tokenizer_of

    made = tokenizer_of(tokenizer_folder(tmp_path_factory.mktemp("tokenizer")))
    assert made is not None
    return made


def completed(text: TextTokenizer, ids: list[int], strings: list[str]) -> int:
    """The fewest tokens whose text holds one of the strings, by trying each number; all tokens if none does."""
    return next((n for n in range(len(ids) + 1) if any(s in text.decode(ids[:n]) for s in strings)), len(ids))


@pytest.mark.parametrize("sampler", ["low_confidence", "random_order", "threshold", "p2", "remdm"])
def test_a_row_ends_after_the_token_that_completes_a_string(text: TextTokenizer, sampler: str) -> None:
    full = text.encode(SAYS, begin=False).tolist()
    length = len(full)
    # Strings that begin within a token and end within another, of several bytes, in the first token, and in none.
    for strings in (["n the m"], ["äö"], ["Q:", "\n\n"], ["t"], ["Q: what", "at d"], ["nowhere"]):
        end = completed(text, full, strings)
        for settings in ({}, {"block_length": 8}):
            more = {} if sampler == "threshold" else {"steps": length // 4}
            out = samplers.sample(
                reciter(text), sampler, gen_length=length, batch=2, temperature=0.0, stop=strings, **settings, **more
            )
            assert out.lengths is not None and out.lengths.tolist() == [end, end], strings
            assert out.x[0, :end].tolist() == full[:end] and (out.x[0, end:] == samplers.PAD).all()
            assert out.texts == [SAYS[: min([SAYS.find(s) for s in strings if s in SAYS], default=None)]] * 2
            assert out.finish_reasons == ["length" if strings == ["nowhere"] else "stop"] * 2
            assert out.settings["stop"] == strings


def test_uniform_noise_ends_at_a_string_when_its_tokens_are_final(text: TextTokenizer) -> None:
    full = text.encode(SAYS, begin=False).tolist()
    model = reciter(text)
    model.mask_id = None
    out = samplers.sample(model, "entropy_bound_uniform", gen_length=len(full), temperature=0.0, stop="Q:")
    assert out.rows()[0].tolist() == full[: completed(text, full, ["Q:"])]


def test_sequential_samplers_end_at_a_string() -> None:
    model = zoo.load("text-refusion")
    assert isinstance(model, samplers.TokenDenoiser) and model.tokenizer is not None
    kw = {"prompt": "The module", "gen_length": 16, "temperature": 0.0}
    for sampler in ("autoregressive", "refusion"):
        free = samplers.sample(model, sampler, stop=[], **kw)
        string = free.texts[0][6:14]
        out = samplers.sample(model, sampler, stop=string, **kw)
        ids = out.generated[0].tolist()
        assert completed(model.tokenizer, ids, [string]) == len(ids) < 16 and out.texts == [free.texts[0][:6]]
        assert out.nfe < free.nfe


def test_stop_strings_beside_phrases_and_special_tokens(text: TextTokenizer) -> None:
    model = reciter(text)
    full = text.encode(SAYS, begin=False).tolist()

    def run(stop: object) -> samplers.Sample:
        return samplers.sample(model, "low_confidence", gen_length=len(full) + 8, stop=stop)

    assert len(run(None).rows()[0]) == len(full) + 1  # the model's own stop_ids
    assert run(None).settings["stop"] == [[1]] and run(None).finish_reasons == ["stop"]
    for none in ([], (), set(), torch.zeros(0, dtype=torch.int64)):
        assert len(run(none).rows()[0]) == len(full) + 8 and run(none).settings["stop"] is None
    assert run("</s>").settings["stop"] == [[1]]  # the name of a special token, which is no text
    first = completed(text, full, ["cat"])
    assert len(run([[full[0], full[1]], "cat"]).rows()[0]) == min(first, 2)
    assert len(run(["Q:", full[first - 1]]).rows()[0]) == first
    assert run(["Q:", "Q:", 1]).settings["stop"] == [[1], "Q:"]
    # Where the stop is in the prompt it does not end a row, and nor does a string that only begins there.
    out = samplers.sample(reciter(text, "xxQ: Q"), "low_confidence", prompt="xx", gen_length=4, stop=["xxQ", "xx"])
    assert out.finish_reasons == ["length"]
    with pytest.raises(OptionError, match="a string must have a character"):
        run(["Q:", ""])
    name = text.tokenizer.convert_ids_to_tokens(text.eos_ids[0])  # type: ignore[attr-defined]
    with pytest.raises(OptionError, match=r"holds the special token .* it would never match"):
        run([f"x{name}"])
    model.tokenizer = None
    with pytest.raises(OptionError, match=r"'reciter' has no tokenizer.*stop='Q:'"):
        run(["Q:"])


def test_blanks_of_words_are_kept_where_a_text_goes_on(tmp_path: Path) -> None:
    from samplers.models.hf_tokenizer import tokenizer_of

    words = tokenizer_of(tokenizer_folder(tmp_path, "words", chat=False))
    assert words is not None
    begins, prompt = words.encode("the cat", begin=False), words.encode("sat on", begin=False)
    model = reciter(words, "sat on the mat. Q: the")
    whole = samplers.sample(model, "low_confidence", gen_length=len(prompt) + 12, stop=" Q")
    assert whole.texts == ["sat on the mat."]
    after = samplers.sample(model, "low_confidence", prompt=prompt, gen_length=12, stop=" Q")
    assert after.texts == [" the mat."]  # as it stands after "sat on"
    assert model.decode(begins) == "the cat"


def test_prompts_that_are_text(text: TextTokenizer) -> None:
    model = reciter(text)
    kw = {"gen_length": 6, "temperature": 1.0, "seed": 5}
    cat, mat = text.encode("the cat"), text.encode("on the mat, Q:")
    chat = [{"role": "user", "content": "what?"}]

    def same(prompt: object, rows: list[torch.Tensor]) -> None:
        by_text = samplers.sample(model, "radd", prompt=prompt, **kw)
        assert torch.equal(by_text.x, samplers.sample(model, "radd", prompt=rows, **kw).x)
        assert by_text.settings["gen_length"] == 6

    same("the cat", [cat])
    same(["the cat", "on the mat, Q:"], [cat, mat])
    same(chat, [text.chat(chat)])
    same([chat, "the cat", [4, 5]], [text.chat(chat), cat, torch.tensor([4, 5])])
    model.tokenizer = None
    for prompt in ("the cat", ["the cat"], chat):
        with pytest.raises(OptionError, match="'reciter' has no tokenizer: encode the text"):
            samplers.sample(model, "radd", prompt=prompt, **kw)
    with pytest.raises(OptionError, match="no text: its denoiser has no tokenizer"):
        _ = samplers.sample(model, "radd", prompt=[cat], **kw).texts
    with pytest.raises(OptionError, match="no chat template"):
        samplers.sample(zoo.load("text-mdm"), "radd", prompt=chat, **kw)


# ---------------------------------------------------------------------------------------------- many prompts

KW: dict[str, Any] = {"gen_length": 10, "temperature": 1.0, "seed": 3, "stop": ["e "]}


@pytest.fixture(scope="module")
def mdm() -> samplers.TokenDenoiser:
    model = zoo.load("text-mdm")
    assert isinstance(model, samplers.TokenDenoiser)
    return model


def test_records_do_not_depend_on_batches_and_shards(text: TextTokenizer) -> None:
    model = reciter(text)
    prompts: list[Any] = ["the cat", "sat", [4, 5, 6], [{"role": "user", "content": "mat?"}], "on", "the mat sat", "A:"]
    alone = list(generate(model, prompts, "radd", batch=1, ids=True, **KW))
    assert [r["index"] for r in alone] == [r["row"] for r in alone] == list(range(7))
    assert list(generate(model, prompts, "radd", batch=3, ids=True, **KW)) == alone
    shards = [list(generate(model, prompts, "radd", batch=2, shard=(i, 3), ids=True, **KW)) for i in range(3)]
    assert [record for shard in shards for record in shard] == alone
    assert [len(s) for s in shards] == [2, 2, 3]
    skipped = list(generate(model, prompts, "radd", batch=4, skip={0, 2, 3}, ids=True, **KW))
    assert skipped == [alone[i] for i in (1, 4, 5, 6)]
    for i, record in enumerate(alone):
        one = samplers.sample(model, "radd", prompt=prompts[i] if i != 2 else [prompts[2]], first_row=i, **KW)
        assert record["ids"] == one.generated[0].tolist() and record["text"] == one.texts[0]
        assert record["finish_reason"] == one.finish_reasons[0] and record["nfe"] == int(one.nfe_rows[0])
        assert record["tokens_per_pass"] == pytest.approx(record["tokens"] / record["nfe"], abs=1e-4)
    backwards = list(generate(model, prompts, "radd", batch=2, map=lambda f, b: [*map(f, b)][::-1], ids=True, **KW))
    assert backwards != alone and sorted(backwards, key=lambda r: r["index"]) == alone


def test_what_generate_refuses_is_said_before_anything_runs(text: TextTokenizer) -> None:
    model = reciter(text)
    model.max_length = 16
    for call, says in (
        (lambda: generate(model, ["sat", "the cat " * 9], "radd", gen_length=4), r"prompt 1: .*at most 16"),
        (lambda: generate(model, ["sat"], "radd", gen_length=4, nonsense=1), "nonsense"),
        (lambda: generate(model, ["sat"], "radd", gen_length=4, info=True), "takes no 'info'"),
        (lambda: generate(model, "sat", "radd", gen_length=4), "one text"),
        (lambda: generate(model, ["sat"], "radd", gen_length=4, shard=(2, 2)), "shard must be"),
        (lambda: generate("digits-gauss", ["sat"], "radd", gen_length=4), "a model of tokens"),
    ):
        with pytest.raises(samplers.SamplersError, match=says):
            call()


def test_prompts_are_read_from_lines() -> None:
    lines = ["the cat\n", "\n", " sat \r\n"]
    assert [(p.index, p.content, p.id) for p in read_prompts(lines, "x")] == [(0, "the cat", None), (1, " sat ", None)]
    said = {"role": "user", "content": "a"}
    objects = [{"prompt": "a", "id": "q1"}, {"messages": [said]}, {"ids": [1, 2]}, {"prompt": ""}]
    read = read_prompts(map(json.dumps, objects), "x", chat=True, system="s")
    system = {"role": "system", "content": "s"}
    empty = {"role": "user", "content": ""}
    assert [p.content for p in read] == [[system, said], [system, said], [1, 2], [system, empty]]
    assert [p.id for p in read] == ["q1", None, None, None]
    for bad, says in (
        ([], "x: there is no prompt"),
        (['{"prompt": "a"}', "b"], "x, line 2 is not JSON"),
        (['{"prompt": 3}'], "line 1: prompt is 3"),
        (['{"text": "a"}'], "none of prompt, messages and ids"),
        (['{"prompt": "a", "ids": [1]}'], "has prompt and ids"),
        (['{"ids": [1.5]}'], "ids is"),
    ):
        with pytest.raises(OptionError, match=re.escape(says)):
            read_prompts(bad, "x")


def test_weights_are_told_apart(mdm: samplers.TokenDenoiser, text: TextTokenizer) -> None:
    first = weights_of(mdm)
    assert first == weights_of(zoo.load("text-mdm")) and weights_of(reciter(text)) is None  # type: ignore[arg-type]
    with torch.no_grad():
        mdm.model.norm.weight[0] += 0.5  # type: ignore[attr-defined]
        assert weights_of(mdm) != first
        mdm.model.norm.weight[0] -= 0.5  # type: ignore[attr-defined]
