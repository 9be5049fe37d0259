"""Text in, text out: tokenizers of transformers, prompts as text, stop strings, generate()."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from samplers.errors import ModelError, OptionError

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
