"""Regex: the texts that a regular expression matches, spelled with a model's tokens."""

from __future__ import annotations

import contextlib
import importlib
import re
import sys
import weakref
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from ..errors import OptionError
from ..text import begins
from .language import Language

if TYPE_CHECKING:
    from ..canvas import Layout
    from ..denoiser import TextTokenizer, TokenDenoiser

# Python's own parser of expressions, under its names before and since 3.11.
codes: Any = importlib.import_module("re._constants" if sys.version_info >= (3, 11) else "sre_constants")
parser: Any = importlib.import_module("re._parser" if sys.version_info >= (3, 11) else "sre_parse")

__all__ = ["Regex", "token_texts"]

MOST_STATES = 20_000
MOST_CODES = 1 << 16  # kinds of characters, each of which is written as one character of its own
_TEXTS: weakref.WeakKeyDictionary[Any, tuple[list[str], list[str]]] = weakref.WeakKeyDictionary()


class Regex(Language):
    """The texts that a regular expression matches as a whole, as `re.fullmatch` does.

    The syntax is that of Python's re, without what is not regular: look-around, backreferences, word boundaries, atomic and
    possessive groups; and without flags. An anchor may stand at the beginning and at the end, where it changes nothing.

    Any sequence of tokens that spells a matching text is in the language, whether or not the tokenizer would write the text
    so. Tokens are taken for what they add to a text that stands before them. If none does (there is no prompt, or it ends in
    special tokens), the first one is taken for what it says at the beginning of a text, which some tokenizers write without
    a blank: Sample.texts matches. Tokens without a text (special ones) and tokens
    that hold a part of a character only are never used; so a character that no token has whole cannot be written.

    Args:
        pattern: the expression.
        tokenizer: of the model, as denoiser.tokenizer.
        end: whether the text may end before the row does: then an end-of-text token follows, and nothing else until the row
            ends. False, or if the tokenizer has no such token: the text fills the row.
        given: as of Language.

    Raises:
        OptionError: the pattern is no regular expression of this kind, it is too large, or there is no tokenizer.
    """

    def __init__(self, pattern: str, tokenizer: TextTokenizer | None, *, end: bool = True, given: bool = False):
        if not isinstance(pattern, str):
            raise OptionError(f"Regex: pattern is {type(pattern).__name__}; a text is needed, such as r'\\d+ (yes|no)'")
        if tokenizer is None or not hasattr(tokenizer, "decode") or not hasattr(tokenizer, "eos_ids"):
            raise OptionError(
                "Regex needs the model's tokenizer, to know what each token says: denoiser.tokenizer, or "
                "samplers.models.hf_tokenizer.HuggingFaceTokenizer(AutoTokenizer.from_pretrained(name)); got "
                f"{type(tokenizer).__name__}"
            )
        self.pattern, self.tokenizer, self.end, self.given = pattern, tokenizer, end, given
        self._tree = _parse(pattern)
        self._made: tuple[Tensor, Tensor, Tensor, int] | None = None
        self._missing: list[str] = []

    def __repr__(self) -> str:
        shown = self.pattern if len(self.pattern) <= 60 else self.pattern[:57] + "..."
        return f"Regex({shown!r})"

    def why_empty(self) -> str:
        if self._missing:
            return f"no token has the character {', '.join(map(repr, self._missing))}, without which no text matches"
        return "no text matches, or none that its tokens can spell"

    def automaton(self, denoiser: TokenDenoiser) -> tuple[Tensor, Tensor, Tensor, int]:
        if self._made is None or len(self._made[0]) != denoiser.vocab_size:
            self._made = self._lifted(denoiser.vocab_size)
        return self._made

    def first_states(self, canvas: Layout) -> list[int] | None:
        if not _differ(self.tokenizer):
            return None
        x, fill = canvas.x.cpu(), canvas.fill.to(torch.uint8).argmax(1).tolist()
        return [int(not begins(self.tokenizer, row[:at])) for row, at in zip(x, fill)]

    def _lifted(self, vocab: int) -> tuple[Tensor, Tensor, Tensor, int]:
        """The automaton over tokens: a token leads where its characters lead, one after the other."""
        texts, first = ((side + [""] * vocab)[:vocab] for side in token_texts(self.tokenizer))
        alphabet = sorted(set().union(*texts, *first))
        dfa = _DFA.of(self._tree, alphabet)
        if not dfa.live:
            whole = sorted(set(alphabet) | _named(self._tree))
            wider = _DFA.of(self._tree, whole)
            self._missing = [c for c in wider.needed(whole) if c not in set(alphabet)] if wider.live else []
        table = str.maketrans({c: chr(int(code)) for c, code in zip(alphabet, dfa.code)})
        spelled = [i for i, text in enumerate(texts) if text]
        column, columns = dfa.follow([texts[i].translate(table) for i in spelled])
        accepting, start = dfa.accepting, 0
        if _differ(self.tokenizer):
            # State 0 is that before a token that begins a text, and 1 that of a text that goes on.
            at, begun = dfa.follow([first[i].translate(table) for i in spelled])
            nowhere = ((0, 0), (0, 1))  # one more column, the last, which is -1
            columns, begun = (np.pad(c, nowhere, constant_values=-1) for c in (columns, begun))
            pairs, which = np.unique(np.stack([np.array(column), begun[0, at]]), axis=1, return_inverse=True)
            column = np.where((pairs == -1).all(0), -1, np.arange(pairs.shape[1]))[which.reshape(-1)].tolist()
            columns = np.concatenate([pairs[1:], columns[:, pairs[0]]])
            columns = np.where(columns >= 0, columns + 1, -1)
            accepting, start = np.append(accepting[:1], accepting), 1
        kind = np.full(vocab, -1, dtype=np.int64)
        kind[spelled] = column
        ends = [i for i in self.tokenizer.eos_ids if i < vocab] if self.end else []
        states = len(accepting)
        if ends:  # one more state, after the end of the text, and one more kind
            columns = np.pad(columns, ((0, 1), (0, 1)), constant_values=-1)
            columns[:-1, -1] = np.where(accepting, states, -1)
            columns[-1, -1] = states
            accepting = np.append(accepting, True)
            kind[ends] = columns.shape[1] - 1
        return torch.from_numpy(kind), torch.from_numpy(columns), torch.from_numpy(accepting), start


def token_texts(tokenizer: TextTokenizer) -> tuple[list[str], list[str]]:
    """What each token adds to a text, "" for special tokens, the mask and tokens that hold a part of a character only; and
    what it says if it begins one.
    """
    try:
        if tokenizer in _TEXTS:
            return _TEXTS[tokenizer]
    except TypeError:  # one that cannot be a key is read again
        pass
    special = {*tokenizer.eos_ids, tokenizer.mask_id}
    texts, first = [], []
    for i in range(tokenizer.vocab_size):
        text = "" if i in special else tokenizer.decode(torch.tensor([-1, i], dtype=torch.int64, device="cpu"))
        texts.append("" if "\ufffd" in text else text)
        first.append(tokenizer.decode(torch.tensor([i], dtype=torch.int64, device="cpu")) if texts[-1] else "")
    with contextlib.suppress(TypeError):
        _TEXTS[tokenizer] = texts, first
    return texts, first


def _differ(tokenizer: TextTokenizer) -> bool:
    """Whether some token says something else if it begins a text."""
    texts, first = token_texts(tokenizer)
    return texts != first


# ---------------------------------------------------------------------------------------------- from text to automaton


def _parse(pattern: str) -> Any:
    """The pattern as Python's own parser reads it, so that both mean the same."""
    try:
        re.compile(pattern)
        tree = parser.parse(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise OptionError(f"Regex: {pattern!r} is no regular expression: {error}") from error
    if tree.state.flags & ~re.UNICODE:
        raise OptionError(f"Regex: {pattern!r} has flags such as (?i); write out what they mean, such as [Aa]")
    return tree


@dataclass
class _NFA:
    """An automaton with empty moves, while it is made.

    Attributes:
        empty: the states that can be reached without a character, of each state. moves: (set of characters, state), of each.
        sets: the sets of characters that are asked about, by what they are made of.
    """

    alphabet: list[str]
    empty: list[list[int]] = field(default_factory=list)
    moves: list[list[tuple[int, int]]] = field(default_factory=list)
    sets: list[np.ndarray] = field(default_factory=list)
    known: dict[Any, int] = field(default_factory=dict)

    def state(self) -> int:
        if len(self.empty) >= 4 * MOST_STATES:
            raise OptionError(f"Regex: the pattern needs more than {4 * MOST_STATES} states; use smaller repeats")
        self.empty.append([])
        self.moves.append([])
        return len(self.empty) - 1

    def sequence(self, items: Iterable[Any], at: int, top: bool = False) -> int:
        """The state after the items, from the state `at`."""
        items = list(items)
        for i, (op, what) in enumerate(items):
            if op is codes.AT:
                begins = what in (codes.AT_BEGINNING, codes.AT_BEGINNING_STRING) and i == 0
                ends = what in (codes.AT_END, codes.AT_END_STRING) and i == len(items) - 1
                if not (top and (begins or ends)):
                    raise OptionError(
                        "Regex: an anchor or word boundary inside a pattern is not supported; a text is always matched as a whole"
                    )
                continue
            at = self.item(op, what, at)
        return at

    def item(self, op: Any, what: Any, at: int) -> int:
        if op in (codes.LITERAL, codes.NOT_LITERAL, codes.ANY, codes.IN):
            after = self.state()
            self.moves[at].append((self.characters(op, what), after))
            return after
        if op is codes.SUBPATTERN:
            _, add, remove, inner = what
            if add or remove:
                raise OptionError("Regex: flags inside a group, such as (?i:...), are not supported")
            return self.sequence(inner, at)
        if op is codes.BRANCH:
            after = self.state()
            for branch in what[1]:
                first = self.state()
                self.empty[at].append(first)
                self.empty[self.sequence(branch, first)].append(after)
            return after
        if op in (codes.MAX_REPEAT, codes.MIN_REPEAT):
            least, most, inner = what
            for _ in range(least):
                at = self.sequence(inner, at)
            if most == codes.MAXREPEAT:
                loop = self.state()
                self.empty[at].append(loop)
                self.empty[self.sequence(inner, loop)].append(loop)
                after = self.state()
                self.empty[loop].append(after)
                return after
            after = self.state()
            for _ in range(least, most):
                self.empty[at].append(after)
                at = self.sequence(inner, at)
            self.empty[at].append(after)
            return after
        raise OptionError(
            f"Regex: {str(op).lower()} is not supported: look-around, backreferences, conditions, atomic groups and possessive "
            "repeats are not regular, or not needed"
        )

    def characters(self, op: Any, what: Any) -> int:
        """The number of the set of characters that an item matches."""
        key = (op, str(what))
        if key not in self.known:
            self.known[key] = len(self.sets)
            self.sets.append(np.array([_matches(op, what, c) for c in self.alphabet], dtype=bool))
        return self.known[key]


_CATEGORIES = {
    codes.CATEGORY_DIGIT: re.compile(r"\d"),
    codes.CATEGORY_NOT_DIGIT: re.compile(r"\D"),
    codes.CATEGORY_SPACE: re.compile(r"\s"),
    codes.CATEGORY_NOT_SPACE: re.compile(r"\S"),
    codes.CATEGORY_WORD: re.compile(r"\w"),
    codes.CATEGORY_NOT_WORD: re.compile(r"\W"),
}


def _matches(op: Any, what: Any, character: str) -> bool:
    if op is codes.ANY:
        return character != "\n"
    if op is codes.LITERAL:
        return ord(character) == what
    if op is codes.NOT_LITERAL:
        return ord(character) != what
    if op is codes.RANGE:
        return what[0] <= ord(character) <= what[1]
    if op is codes.CATEGORY:
        return _CATEGORIES[what].match(character) is not None
    negated = bool(what) and what[0][0] is codes.NEGATE
    return any(_matches(o, w, character) for o, w in what[negated:]) != negated


def _named(tree: Any) -> set[str]:
    """The characters that a pattern names, as itself or as the first of a range."""
    found: set[str] = set()

    def walk(value: Any) -> None:
        if isinstance(value, (list, tuple)) or hasattr(value, "data"):
            items = value.data if hasattr(value, "data") else value
            if len(items) == 2 and items[0] is codes.LITERAL:
                found.add(chr(items[1]))
            elif len(items) == 2 and items[0] is codes.RANGE:
                found.add(chr(items[1][0]))
            else:
                for item in items:
                    walk(item)

    walk(tree)
    return found


@dataclass
class _DFA:
    """A deterministic automaton over kinds of characters; state 0 is the first.

    Attributes:
        code: the number of the kind that each character of the alphabet has.
        move: (Q, kinds) int64, -1: no text goes on so. accepting: (Q,) bool.
    """

    code: np.ndarray
    move: np.ndarray
    accepting: np.ndarray

    @property
    def live(self) -> bool:
        """Whether any text is accepted."""
        return bool(self.accepting.any())  # all of its states can be reached

    @classmethod
    def of(cls, tree: Any, alphabet: list[str]) -> _DFA:
        nfa = _NFA(alphabet)
        first = nfa.state()
        final = nfa.sequence(tree, first, top=True)
        # Characters that are in the same sets are of one kind.
        signature = np.array(nfa.sets).reshape(len(nfa.sets), len(alphabet))
        kinds, code = np.unique(signature, axis=1, return_inverse=True)
        if kinds.shape[1] >= MOST_CODES:
            raise OptionError(f"Regex: the pattern tells more than {MOST_CODES} kinds of characters apart")

        def closed(states: Iterable[int]) -> frozenset[int]:
            found, todo = set(states), list(states)
            while todo:
                for other in nfa.empty[todo.pop()]:
                    if other not in found:
                        found.add(other)
                        todo.append(other)
            return frozenset(s for s in found if nfa.moves[s] or s == final)

        inside = [np.flatnonzero(row).tolist() for row in kinds]  # the kinds in each set
        begin = closed([first])
        number, todo = {begin: 0}, [begin]
        rows: list[np.ndarray] = []
        while todo:
            here = todo.pop(0)
            reached: dict[int, set[int]] = {}
            for state in here:
                for characters, after in nfa.moves[state]:
                    for kind in inside[characters]:
                        reached.setdefault(kind, set()).add(after)
            row = np.full(kinds.shape[1], -1, dtype=np.int64)
            known: dict[frozenset[int], int] = {}
            for kind, states in reached.items():
                same = frozenset(states)
                if same not in known:
                    target = closed(states)
                    if target not in number:
                        if len(number) >= MOST_STATES:
                            raise OptionError(
                                f"Regex: the pattern needs more than {MOST_STATES} states; use smaller repeats"
                            )
                        number[target] = len(number)
                        todo.append(target)
                    known[same] = number[target]
                row[kind] = known[same]
            rows.append(row)
        accepting = np.array([final in states for states in number], dtype=bool)
        return cls(code.reshape(-1), *_smallest(np.array(rows).reshape(len(rows), -1), accepting))

    def follow(self, spellings: list[str]) -> tuple[list[int], np.ndarray]:
        """Where spellings, strings of chr(kind), lead: the number of each one's column, -1 if it leads nowhere; (Q, n) int64
        the columns: the state after the spelling in each state, -1 if no text goes on so.

        Few columns differ, and what follows a column depends on it alone: so each is worked out once.
        """
        states = len(self.move)
        move = np.full((states + 1, self.move.shape[1]), states, dtype=np.int32)
        move[:states] = np.where(self.move < 0, states, self.move)
        columns = [
            np.arange(states, dtype=np.int32),
            np.full(states, states, dtype=np.int32),
        ]  # no character; nowhere
        number = {column.tobytes(): i for i, column in enumerate(columns)}
        after: dict[tuple[int, str], int] = {}

        def followed(at: int, symbol: str) -> int:
            column = move[columns[at], ord(symbol)]
            known = number.setdefault(column.tobytes(), len(columns))
            if known == len(columns):
                columns.append(column)
            return known

        out = []
        for text in spellings:
            at = 0
            for symbol in text:
                key = at, symbol
                if key not in after:
                    after[key] = followed(at, symbol)
                at = after[key]
                if at == 1:
                    break
            out.append(at)
        used = sorted({at for at in out if at != 1})
        place = {at: i for i, at in enumerate(used)}
        made = np.stack([columns[at] for at in used], 1) if used else np.zeros((states, 0), dtype=np.int32)
        return [place.get(at, -1) for at in out], np.where(made == states, -1, made).astype(np.int64)

    def needed(self, alphabet: list[str]) -> list[str]:
        """The characters without which no text is accepted, by trying it without each."""
        out = []
        for kind in range(self.move.shape[1]):
            own = [c for c, code in zip(alphabet, self.code) if code == kind]
            reached, todo = {0}, [0]
            while todo:
                row = self.move[todo.pop()]
                for k, target in enumerate(row.tolist()):
                    if k != kind and target >= 0 and target not in reached:
                        reached.add(target)
                        todo.append(target)
            if not any(self.accepting[s] for s in reached) and len(own) == 1:
                out += own
        return out


def _smallest(move: np.ndarray, accepting: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The automaton with states that no text tells apart made one; the first state stays the first (Moore's algorithm).

    States with texts of different least or most characters are told apart at once, so that a count such as {1,5000} does not
    take as many rounds as it counts.
    """
    _, group = np.unique(np.stack([accepting, *_distances(move, accepting)], 1), axis=0, return_inverse=True)
    group = group.reshape(-1)
    while True:
        target = np.where(move >= 0, group[move.clip(0)], -1)
        _, first, new = np.unique(
            np.concatenate([group[:, None], target], 1), axis=0, return_index=True, return_inverse=True
        )
        new = new.reshape(-1)
        if len(first) == len(np.unique(group)):
            break
        group = new
    order = np.argsort(first)  # by the first state of each group, so that the first state's group comes first
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    kept = first[order]
    return np.where(move[kept] >= 0, rank[new][move[kept].clip(0)], -1), accepting[kept]


def _distances(move: np.ndarray, accepting: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(Q,) int64 each: the characters of the shortest and the longest text from each state, -1 if there is none or no longest."""
    states = len(move)
    source, kind = np.nonzero(move >= 0)
    into: list[list[int]] = [[] for _ in range(states)]
    for edge in np.unique(source * states + move[source, kind]).tolist():
        into[edge % states].append(edge // states)
    shortest, longest = np.full((2, states), -1, dtype=np.int64)
    here = np.flatnonzero(accepting).tolist()
    shortest[here] = 0
    for state in here:  # states are appended to it
        for other in into[state]:
            if shortest[other] < 0:
                shortest[other] = shortest[state] + 1
                here.append(other)
    left = np.zeros(
        states, dtype=np.int64
    )  # moves of each state to others that lead to a text, and whose longest is not known
    for state in here:
        left[into[state]] += 1
    at_most = np.zeros(states, dtype=np.int64)
    ready = [state for state in here if not left[state]]
    for state in ready:
        longest[state] = at_most[state]
        for other in into[state]:
            at_most[other] = max(at_most[other], at_most[state] + 1)
            left[other] -= 1
            if not left[other]:
                ready.append(other)
    return shortest, longest
