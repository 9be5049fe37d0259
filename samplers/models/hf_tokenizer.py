"""HuggingFaceTokenizer: a tokenizer of the transformers library as samplers.denoiser.TextTokenizer. Needs transformers.

text = samplers.models.hf_tokenizer.tokenizer_of("folder/of/a/model")      # None if there is none in it
text = HuggingFaceTokenizer(transformers.AutoTokenizer.from_pretrained(name))
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import ModelError, OptionError

__all__ = ["HuggingFaceTokenizer", "tokenizer_of"]

# A folder has a tokenizer if it has one of these files: of tokenizers, transformers, sentencepiece, BPE's merges, WordPiece.
FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "merges.txt",
    "vocab.txt",
)
ANCHOR = "a"  # any text that is one word: what stands before a piece that does not begin a text


class HuggingFaceTokenizer:
    """A tokenizer of transformers, fast or slow, as the zoo asks for one.

    Args:
        tokenizer: a PreTrainedTokenizerBase, or a processor, whose `tokenizer` is taken.
        eos_ids: tokens that end a text beside the tokenizer's own eos token, as in generation_config.json's eos_token_id: an
            id or several; None: no others.
        mask_id: the mask token. None: the tokenizer's own, if it has one.

    Attributes:
        tokenizer: as it was given.
        vocab_size: its length, with the tokens that were added: ids from here on have no text.
        mask_id: the mask token, or None.
        eos_ids: the tokens that end a text, its own first.

    Raises:
        OptionError: it is no tokenizer.
    """

    def __init__(self, tokenizer: Any, *, eos_ids: int | Iterable[int] | None = None, mask_id: int | None = None):
        inner = getattr(tokenizer, "tokenizer", None)
        self.tokenizer: Any = tokenizer
        if hasattr(inner, "convert_ids_to_tokens"):
            self.tokenizer = inner
        if not hasattr(self.tokenizer, "convert_ids_to_tokens"):
            raise OptionError(
                f"tokenizer is {type(tokenizer).__name__}; a tokenizer of transformers is needed, such as "
                "transformers.AutoTokenizer.from_pretrained(name), or a processor that has one"
            )
        self.vocab_size: int = len(self.tokenizer)
        self.mask_id: int | None = self._own("mask_token_id") if mask_id is None else mask_id
        ends = [self._own("eos_token_id")]
        ends += [eos_ids] if isinstance(eos_ids, int) else list(eos_ids or ())
        self.eos_ids: tuple[int, ...] = tuple(dict.fromkeys(int(i) for i in ends if i is not None))

    def _own(self, name: str) -> int | None:
        value = getattr(self.tokenizer, name, None)  # a missing token is None, on some releases an AttributeError
        return None if value is None else int(value)

    def _ids(self, text: str, special: bool) -> list[int]:
        return list(self.tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])

    @functools.cached_property
    def _begin(self) -> list[int]:
        """The special tokens that begin a text: what stands before a word's own tokens, and nothing that stands after them."""
        plain, full = self._ids(ANCHOR, False), self._ids(ANCHOR, True)
        places = (i for i in range(len(full) - len(plain) + 1) if full[i : i + len(plain)] == plain)
        return full[: next(places, 0)]

    def encode(self, text: str, *, begin: bool = True) -> Tensor:
        """(n,) int64 on the CPU. A special token that is written out in the text, such as <|im_end|>, is that token.

        Args:
            begin: put the special tokens first with which the tokenizer begins a text. It may have some for the end as well
                (BERT's [SEP]); they are never put, since what comes after the text is still to be written.
        """
        ids = (self._begin if begin else []) + self._ids(text, False)
        return torch.tensor(ids, dtype=torch.int64, device="cpu")

    def decode(self, ids: Tensor | Iterable[int], *, mask: str = "", eos: str = "") -> str:
        """The text of (n,) ids: masks and the end of a text as told, padding (negative) and other special tokens not at all.

        Tokens that stand together are decoded together, since a character may take several. Those that come after a mask, an
        end or padding do not begin a text: a blank with which their first word begins is kept, where some tokenizers leave it
        out at the beginning of a text. So decode([-1, *ids]) is the text of ids that continue another text.
        """
        numbers = ids.tolist() if isinstance(ids, Tensor) else [int(i) for i in ids]
        shown = dict.fromkeys(self.eos_ids, eos) | {self.mask_id: mask}
        out: list[str] = []
        run: list[int] = []
        first = True
        for i in [*numbers, -1]:
            if i not in shown and 0 <= i < self.vocab_size:
                run.append(i)
                continue
            if run:
                out.append(self._text(run) if first else self._later_text(run))
                run = []
            first = False
            out.append(shown.get(i, ""))
        return "".join(out)

    def _text(self, ids: list[int]) -> str:
        # Cleaning up would take blanks away that the model has written.
        made = self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(made)

    def _later_text(self, ids: list[int]) -> str:
        """The text of tokens that do not begin a text: what they add to that of a word before them."""
        anchor, before = self._anchor
        both = self._text(anchor + ids)
        return both[len(before) :] if both.startswith(before) else self._text(ids)

    @functools.cached_property
    def _anchor(self) -> tuple[list[int], str]:
        ids = self._ids(ANCHOR, False)
        return ids, self._text(ids)

    def chat(self, messages: str | Sequence[Mapping[str, str]]) -> Tensor:
        """(n,) int64: a conversation by the tokenizer's chat template, up to where the answer begins.

        Args:
            messages: {"role": "system" | "user" | "assistant", "content": text} each; or the text of one user message.

        Raises:
            OptionError: there is no chat template, or the template refuses these messages.
        """
        turns = [{"role": "user", "content": messages}] if isinstance(messages, str) else [dict(m) for m in messages]
        if not turns:
            raise OptionError("a conversation has a message at least: [{'role': 'user', 'content': text}]")
        for turn in turns:
            if not isinstance(turn.get("role"), str) or "content" not in turn:
                raise OptionError(f"a message is {{'role': 'user', 'content': text}}, not {turn!r}")
        if not getattr(self.tokenizer, "chat_template", None):
            raise OptionError(
                "this tokenizer has no chat template. For a model that continues texts, give the text itself as the prompt "
                "(samplers chat --raw); for one that was taught to answer, set tokenizer.chat_template, or put "
                "chat_template.jinja into its folder"
            )
        try:
            text = self.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # errors of jinja and others, by what the template raises
            reason = " ".join(str(error).split()) or type(error).__name__
            raise OptionError(f"the chat template does not take these messages: {reason}") from error
        # The template writes the tokens that begin a text itself.
        return torch.tensor(self._ids(str(text), False), dtype=torch.int64, device="cpu")


def tokenizer_of(name: str | Path, *, trust_remote_code: bool = False) -> HuggingFaceTokenizer | None:
    """The tokenizer of a model's folder, or of a repository that the Hugging Face hub gives or has given.

    The tokens that end a text are the tokenizer's own and those of generation_config.json.

    Args:
        name: a folder, or owner/name.
        trust_remote_code: whether code that the folder brings may run: a tokenizer of the model's own.

    Returns:
        None if the folder has no file of a tokenizer.

    Raises:
        ModelError: it is there and cannot be opened, or transformers is not installed.
    """
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in FILES):
        return None
    try:
        from transformers import AutoTokenizer, GenerationConfig
        from transformers.utils import logging
    except ImportError:
        raise ModelError(f"{name}: its tokenizer needs transformers: pip install transformers") from None
    before = logging.get_verbosity()
    try:
        logging.set_verbosity_error()  # it warns of each config.json of a class that it does not have
        tokenizer = AutoTokenizer.from_pretrained(str(name), trust_remote_code=trust_remote_code)
    except (
        Exception
    ) as error:  # errors of many kinds: a broken file, a class that is not known, remote code without the flag
        reason = " ".join(str(error).split()) or type(error).__name__
        if "trust_remote_code" in reason and not trust_remote_code:
            raise ModelError(
                f"{name}: its tokenizer is code of its own, which runs only with trust_remote_code=True; read it first"
            ) from error
        raise ModelError(f"{name}: its tokenizer cannot be opened: {reason}") from error
    finally:
        logging.set_verbosity(before)
    ends: Any = None
    if folder.is_dir() and (folder / "generation_config.json").is_file():
        try:
            ends = GenerationConfig.from_pretrained(str(name)).eos_token_id
        except Exception as error:
            reason = " ".join(str(error).split()) or type(error).__name__
            raise ModelError(f"{folder / 'generation_config.json'} cannot be read: {reason}") from error
    return HuggingFaceTokenizer(tokenizer, eos_ids=ends)
