"""A tokenizer of transformers made on the spot, and a model that says one text: what several tests of text share."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import samplers
from samplers.denoiser import TextTokenizer

SAYS = "the cat did sit.\n\nA: ä cat sat on the mäöt. Q: what did the cat do?"
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
