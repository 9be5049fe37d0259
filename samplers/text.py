"""Text of a run: prompts that are text, rows that end at a string, and what a row says.

A denoiser with a tokenizer (TokenDenoiser.tokenizer) reads and writes text. Samplers see token ids and nothing else.
"""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .errors import OptionError

if TYPE_CHECKING:
    from .denoiser import TextTokenizer, TokenDenoiser

__all__ = ["StopText", "begins", "continued", "cut", "prompt_rows", "segments"]


def prompt_rows(prompt: Any, denoiser: TokenDenoiser) -> Any:
    """A prompt with its text made token ids; a prompt of token ids as it is.

    Args:
        prompt: a text; a conversation, which is a list of {"role": ..., "content": ...} and is written by the chat template;
            or a list of rows, each of them a text, a conversation or token ids.

    Raises:
        OptionError: it is text and the denoiser has no tokenizer, or no chat template for a conversation.
    """
    if isinstance(prompt, str) or _is_chat(prompt):
        return _ids(prompt, denoiser)
    if isinstance(prompt, (list, tuple)) and any(isinstance(row, str) or _is_chat(row) for row in prompt):
        return [_ids(row, denoiser) if isinstance(row, str) or _is_chat(row) else row for row in prompt]
    return prompt


def _is_chat(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(m, Mapping) for m in value)


def _ids(row: str | Sequence[Mapping[str, str]], denoiser: TokenDenoiser) -> Tensor:
    if denoiser.tokenizer is None:
        raise OptionError(
            f"prompt is {type(row).__name__}, not token ids, and denoiser {denoiser.name!r} has no tokenizer: encode the text "
            "with the model's tokenizer, or set denoiser.tokenizer"
        )
    return denoiser.encode(row) if isinstance(row, str) else denoiser.tokenizer.chat(row)


def continued(tokenizer: TextTokenizer, before: Tensor | None, ids: Tensor) -> str:
    """The text of ids (n,) that stand after others: with the blank that their first word may begin with.

    Args:
        before: (m,) int64 ids that stand before them, all on the CPU; None: something that is not known yet.
    """
    first = before is not None and begins(tokenizer, before)
    return tokenizer.decode(ids if first else torch.nn.functional.pad(ids, (1, 0), value=-1))


def begins(tokenizer: TextTokenizer, before: Tensor) -> bool:
    """Whether a text begins after these ids (m,), on the CPU: there are none, or special tokens alone."""
    return not tokenizer.decode(before[-8:])


def cut(text: str, strings: Sequence[str]) -> str:
    """The text before the first place where one of the strings stands; all of it if none does."""
    return text[: min((at for s in strings if (at := text.find(s)) >= 0), default=len(text))]


def segments(where: Tensor) -> list[tuple[int, int]]:
    """The stretches (first, end) of positions that are True, in order. where: (L,) bool on the CPU."""
    edge = torch.diff(torch.nn.functional.pad(where.to(torch.int8), (1, 1)))
    return list(zip((edge == 1).nonzero().flatten().tolist(), (edge == -1).nonzero().flatten().tolist()))


@dataclass(frozen=True, eq=False)
class StopText:
    """Strings at which rows end, whichever tokens they are written with.

    Attributes:
        strings: a row ends after the token that completes one of them, in the text of tokens that stand together and are
            decided, in the part to fill. A string may begin within one token and end within another.
        tokenizer: whose text it is.
    """

    strings: tuple[str, ...]
    tokenizer: TextTokenizer

    def ends(self, x: Tensor, fill: Tensor, decided: Tensor, new: Tensor, end: Tensor) -> Tensor:
        """(B,) int64: where rows end; `end` if no string stands before it.

        Only stretches with a position in `new` are read, since in the others nothing has changed. All are copied to the CPU, so
        on a device it costs a device sync per step.

        Args:
            x: (B, L) int64, tokens. fill: (B, L) bool, the positions to fill.
            decided: (B, L) bool, those of them whose token is final. new: (B, L) bool, those that were not a step ago.
            end: (B,) int64, where rows end as far as it was known.
        """
        tokens, *marks = torch.stack((x, fill.to(x.dtype), decided.to(x.dtype), new.to(x.dtype))).cpu()
        filled, final, fresh = (mark.bool() for mark in marks)
        ends = end.tolist()
        for row in fresh.any(1).nonzero().flatten().tolist():
            whole, last = final[row].tolist(), 0
            for position in fresh[row].nonzero().flatten().tolist():
                if not last <= position < ends[row]:
                    continue  # in the stretch that was read last, or after the end
                first, last = position, position + 1
                while first > 0 and whole[first - 1]:
                    first -= 1
                while last < ends[row] and whole[last]:
                    last += 1
                known = first == 0 or not bool(filled[row, first - 1])  # what stands before it is given
                count = self._complete(tokens[row, :first] if known else None, tokens[row, first:last])
                ends[row] = ends[row] if count is None else first + count
        return torch.tensor(ends, dtype=end.dtype, device=end.device)

    def _complete(self, before: Tensor | None, ids: Tensor) -> int | None:
        """The fewest of the tokens whose text holds one of the strings; None if not even all of them do."""

        def holds(count: int) -> bool:
            text = continued(self.tokenizer, before, ids[:count])
            return any(string in text for string in self.strings)

        if not holds(len(ids)):
            return None
        return bisect.bisect_left(range(len(ids)), True, lo=1, key=holds)
