"""Text in, text out: tokenizers of transformers, prompts as text, stop strings, generate()."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import samplers
from samplers.denoiser import TextTokenizer
from samplers.errors import ModelError, OptionError
from samplers.models import zoo

WORDS = ["the cat sat on the mat. Q: what did the cat do?\n\nA: it sat äöü"] * 3
TEMPLATE = (
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools') }}{% endif %}"
    "<|{{ m.role }}|>{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


def tokenizer_folder(folder: Path, kind: str = "bytes", chat: bool = True) -> Path:
    """A folder with a real BPE trained on a few lines: of bytes, or of words with a mark for the blank, as Llama 2 has it."""
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    from tokenizers import decoders, models, pre_tokenizers, processors, trainers

    special = ["<s>", "</s>", "<mask>", "<pad>", "<|system|>", "<|user|>", "<|assistant|>"]
    made = tokenizers.Tokenizer(models.BPE(unk_token="<pad>" if kind == "words" else None))
    if kind == "bytes":
        made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
        alphabet = pre_tokenizers.ByteLevel.alphabet()
    else:
        made.pre_tokenizer, made.decoder, alphabet = pre_tokenizers.Metaspace(), decoders.Metaspace(), []
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator(WORDS, trainer)
    ends = [(name, made.token_to_id(name)) for name in ("<s>", "</s>")]
    made.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=ends)
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=made, bos_token="<s>", eos_token="</s>", mask_token="<mask>", pad_token="<pad>"
    )
    if chat:
        fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)
    return folder


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

SAYS = "the cat did sit.\n\nA: ä cat sat on the mäöt. Q: what did the cat do?"


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> TextTokenizer:
    from samplers.models.hf_tokenizer import tokenizer_of

    made = tokenizer_of(tokenizer_folder(tmp_path_factory.mktemp("tokenizer")))
    assert made is not None
    return made


def reciter(text: TextTokenizer, says: str = SAYS, seed: int = 0) -> samplers.TokenDenoiser:
    """A model that says one text, whatever it is given, and is surer of some positions than of others.

    The text stands at positions from 0 on; after it come tokens that end a text.
    """
    ids = torch.nn.functional.pad(text.encode(says, begin=False), (0, 200), value=1)
    sure = 5 + torch.rand(len(ids), generator=torch.Generator().manual_seed(seed))
    logits = torch.nn.functional.one_hot(ids, text.vocab_size) * sure[:, None]  # (n, V)

    def fn(x: torch.Tensor) -> torch.Tensor:
        return logits[: x.shape[1]].expand(len(x), -1, -1).contiguous()

    made = samplers.TokenDenoiser.wrap(fn, vocab_size=text.vocab_size, mask_id=text.mask_id, name="reciter")
    made.tokenizer, made.stop_ids = text, text.eos_ids
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
    with pytest.raises(OptionError, match=r"'plain' has no tokenizer.*stop='Q:'"):
        plain = samplers.TokenDenoiser.wrap(lambda ids: None, vocab_size=9, mask_id=9, name="plain")  # type: ignore[arg-type,return-value]
        samplers.sample(plain, "low_confidence", gen_length=8, stop=["Q:"])


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
