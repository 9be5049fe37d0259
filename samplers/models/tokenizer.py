"""Byte-pair encoding over printable ASCII: the words of the zoo's text models."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from ..errors import OptionError

__all__ = ["Tokenizer"]

CHARACTERS = "\n" + "".join(map(chr, range(32, 127)))  # ids 0 to 95
_PIECE = re.compile(r" ?[A-Za-z]+| ?[0-9]| ?[^A-Za-z0-9\s]+|\s")
_OTHER = str.maketrans("‘’“”–—…\t\r", "''\"\"--. \n")


class Tokenizer:
    """Text to ids and back. Ids are the 96 characters, then one a merge, then the end of a text (`eos_id`).

    Merges (Sennrich et al. 1508.07909) join two neighbouring tokens within a word and its leading blank. `mask_id` is
    one beyond the last token, so that no logits are needed for it.

    Args:
        merges: pairs of ids, in the order in which they were learned; pair i makes token 96 + i.
    """

    def __init__(self, merges: Iterable[tuple[int, int]]):
        self.merges = [(int(a), int(b)) for a, b in merges]
        self.texts = list(CHARACTERS)
        for a, b in self.merges:
            self.texts.append(self.texts[a] + self.texts[b])
        self.eos_id = len(self.texts)
        self.eos_ids = (self.eos_id,)
        self.mask_id = self.vocab_size = self.eos_id + 1
        self._rank = {pair: i for i, pair in enumerate(self.merges)}
        self._known: dict[str, list[int]] = {}

    @staticmethod
    def clean(text: str) -> str:
        """Only what the tokens can say: typographic quotes and dashes made plain, other characters left out."""
        return re.sub(r"[^\n -~]", "", text.translate(_OTHER))

    @classmethod
    def train(cls, text: str, vocab_size: int) -> Tokenizer:
        """The merges of the commonest pairs, the pair of lower ids where two are equally common."""
        pieces = Counter(_PIECE.findall(cls.clean(text)))
        words = [([CHARACTERS.index(c) for c in piece], n) for piece, n in pieces.items()]
        pairs: Counter[tuple[int, int]] = Counter()
        where = defaultdict(set)  # pair to the words that had it at some time
        merges: list[tuple[int, int]] = []

        def count(word: int, sign: int) -> None:
            ids, n = words[word]
            for pair in zip(ids, ids[1:]):
                pairs[pair] += sign * n
                where[pair].add(word)

        for word in range(len(words)):
            count(word, 1)
        while len(CHARACTERS) + len(merges) + 1 < vocab_size:
            best = min(pairs, key=lambda pair: (-pairs[pair], pair), default=None)
            if best is None or pairs[best] == 0:
                raise OptionError(f"the text has {len(merges)} merges; vocab_size={vocab_size} needs more")
            made = len(CHARACTERS) + len(merges)
            merges.append(best)
            for word in where.pop(best):
                count(word, -1)
                words[word] = _joined(words[word][0], best, made), words[word][1]
                count(word, 1)
        return cls(merges)

    def encode(self, text: str, *, begin: bool = True) -> Tensor:
        """(n,) int64; characters that no token has are left out. An end of text is not added, and nothing begins a text."""
        ids: list[int] = []
        for piece in _PIECE.findall(self.clean(text)):
            if piece not in self._known:
                self._known[piece] = self._encode(piece)
            ids += self._known[piece]
        return torch.tensor(ids, dtype=torch.int64, device="cpu")

    def _encode(self, piece: str) -> list[int]:
        ids = [CHARACTERS.index(c) for c in piece]
        while True:
            rank = min((self._rank.get(pair, len(self.merges)) for pair in zip(ids, ids[1:])), default=len(self.merges))
            if rank == len(self.merges):
                return ids
            ids = _joined(ids, self.merges[rank], len(CHARACTERS) + rank)

    def decode(self, ids: Tensor | Iterable[int], *, mask: str = "", eos: str = "") -> str:
        """The text of (n,) ids; a mask and the end of a text as told, padding (negative) and ids beyond the tokens not at all."""
        numbers = ids.tolist() if isinstance(ids, Tensor) else list(ids)
        special = {self.eos_id: eos, self.mask_id: mask}
        known = range(len(self.texts))  # beyond them stand, for instance, the embeddings of a prompt
        return "".join(special[i] if i in special else self.texts[i] if i in known else "" for i in numbers)

    def chat(self, messages: str | Sequence[Mapping[str, str]]) -> Tensor:
        raise OptionError(
            "this tokenizer has no chat template: the models in the box continue texts and were never taught to answer; "
            "give the text itself as the prompt (samplers chat --raw)"
        )

    def save(self, path: str | Path) -> None:
        Path(path).write_text(json.dumps({"merges": self.merges}) + "\n")

    @classmethod
    def load(cls, path: str | Path) -> Tokenizer:
        return cls(json.loads(Path(path).read_text())["merges"])


def _joined(ids: list[int], pair: tuple[int, int], made: int) -> list[int]:
    """`ids` with every occurrence of the pair, from the left, replaced by `made`."""
    if pair[0] not in ids:
        return ids
    out, i = [], 0
    while i < len(ids):
        if i + 1 < len(ids) and (ids[i], ids[i + 1]) == pair:
            out.append(made)
            i += 2
        else:
            out.append(ids[i])
            i += 1
    return out
