"""Lists: shuffled, with one item replaced, removed or inserted at random, and copied, reversed or sorted.

They are the waiting lines of ParallelBench (Kang et al. 2025, arXiv 2510.04767) with the answers spelt out: all of them, equally
likely. Items are letters, and there is no instruction to read, so the denoiser is exact.
"""

from __future__ import annotations

import itertools
import string
from collections.abc import Sequence

import torch
from torch import Tensor

from ..checks import integer
from .support import Support

__all__ = ["Copy", "InsertRandom", "RemoveRandom", "ReplaceRandom", "Reverse", "Shuffle", "Sort"]

NEW = "*"  # the item that is put in


def _rows(rows: Sequence[Sequence[int]]) -> Tensor:
    return torch.tensor(rows, dtype=torch.int64, device="cpu")


class Shuffle(Support):
    """All orders of n items, n! rows. L = V = n.

    Nothing is surer than anything else at the start, so a rule that compares confidences with each other has nothing to go by,
    and one that asks for a certain confidence waits until few items are left.

    Args:
        n: items, 2 to 8.
    """

    name = "shuffle"
    summary = "all orders of n items, equally likely: no two positions may agree"
    kind = "waiting line"

    def __init__(self, n: int = 6):
        n = integer(f"problem {self.name!r}: n", n, 2, 8)
        super().__init__(_rows(list(itertools.permutations(range(n)))), n, string.ascii_lowercase[:n])


class ReplaceRandom(Support):
    """A list of n items of which one, each as likely, is replaced by a new one: n rows. L = n, V = n + 1, the new item is n.

    Every position keeps its item with probability 1 - 1/n, so a threshold on confidence is passed everywhere at once, and
    about 1/e of the rows are right.

    Args:
        n: items, 2 to 25.
    """

    name = "replace_random"
    summary = "a list in which one item, any, is a new one: confident everywhere, and wrong together"
    kind = "waiting line"

    def __init__(self, n: int = 10):
        n = integer(f"problem {self.name!r}: n", n, 2, 25)
        rows = [[n if i == j else i for i in range(n)] for j in range(n)]
        super().__init__(_rows(rows), n + 1, string.ascii_lowercase[:n] + NEW)


class RemoveRandom(Support):
    """A list of n items without one of them, each as likely: n rows. L = n - 1, V = n.

    Args:
        n: items, 3 to 26.
    """

    name = "remove_random"
    summary = "a list without one of its items, any: all after the gap move together"
    kind = "waiting line"

    def __init__(self, n: int = 6):
        n = integer(f"problem {self.name!r}: n", n, 3, 26)
        rows = [[i for i in range(n) if i != j] for j in range(n)]
        super().__init__(_rows(rows), n, string.ascii_lowercase[:n])


class InsertRandom(Support):
    """A list of n items with a new one put in at any place: n + 1 rows. L = V = n + 1, the new item is n.

    Args:
        n: items, 2 to 25.
    """

    name = "insert_random"
    summary = "a list with a new item at any place: all after it move together"
    kind = "waiting line"

    def __init__(self, n: int = 6):
        n = integer(f"problem {self.name!r}: n", n, 2, 25)
        rows = [[*range(j), n, *range(j, n)] for j in range(n + 1)]
        super().__init__(_rows(rows), n + 1, string.ascii_lowercase[:n] + NEW)


class _Answer(Support):
    """A list of n different items out of `items`, and after it what a rule makes of it. L = 2 n, V = items.

    The first list is the prompt (`settings`), so what is left to fill is known for certain: one forward pass must be enough
    for every rule that adapts, and any error is a rule's own. Rows are judged by the list that they begin with.

    Args:
        n: items in the list, 2 to 6.
        items: how many there are to choose from, n to 8.
    """

    kind = "waiting line"

    def __init__(self, n: int = 5, items: int = 7):
        n = integer(f"problem {self.name!r}: n", n, 2, 6)
        items = integer(f"problem {self.name!r}: items", items, n, 8)
        lists = list(itertools.permutations(range(items), n))
        # A list that is neither in order nor its own answer: every second item from the last on, then the others.
        prompt = torch.tensor(
            [*range(items - 1, -1, -2), *range(items - 2, -1, -2)][:n], dtype=torch.int64, device="cpu"
        )
        rows = [[*one, *self._answer(one)] for one in lists]
        super().__init__(_rows(rows), items, string.ascii_lowercase[:items], prompt)

    def _answer(self, given: tuple[int, ...]) -> Sequence[int]:
        raise NotImplementedError


class Copy(_Answer):
    """A list and the same list: see Support for the scores."""

    name = "copy"
    summary = "a given list once more: a point mass, which must cost one forward pass"

    def _answer(self, given: tuple[int, ...]) -> Sequence[int]:
        return given


class Reverse(_Answer):
    """A list and its items from the last to the first: see Support for the scores."""

    name = "reverse"
    summary = "a given list from its end: a point mass, which must cost one forward pass"

    def _answer(self, given: tuple[int, ...]) -> Sequence[int]:
        return given[::-1]


class Sort(_Answer):
    """A list and its items in order: see Support for the scores."""

    name = "sort"
    summary = "a given list in order: a point mass, which must cost one forward pass"

    def _answer(self, given: tuple[int, ...]) -> Sequence[int]:
        return sorted(given)
