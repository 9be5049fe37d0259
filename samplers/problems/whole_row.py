"""Rules on the whole row: parity, mirror and dyck. No pair of positions shows the first, and only one pair shows the second."""

from __future__ import annotations

import itertools
import string

import torch

from ..checks import integer
from ..errors import OptionError
from .automaton import Automaton, Language
from .support import Support

__all__ = ["Dyck", "Mirror", "Parity"]


class Parity(Language):
    """L bits of which an even number is 1, all equally likely: 2^(L-1) rows.

    Any L - 1 of the bits are independent and fair, so a test that compares positions in pairs finds nothing, and a rule
    that takes two or more positions in its last step is wrong half of the time.

    Args:
        length: L, 2 to 256.
    """

    name = "parity"
    summary = "bits with an even number of ones: no pair of positions depends on each other, all together do"
    kind = "global"

    def __init__(self, length: int = 8):
        length = integer(f"problem {self.name!r}: length", length, 2, 256)
        arcs = [(s, v, s ^ v) for s in (0, 1) for v in (0, 1)]
        super().__init__(Automaton.of(arcs, [1.0, 0.0], [1.0, 0.0], 2), length, "01")


class Mirror(Support):
    """Rows that read the same from both ends, x_i = x_(L+1-i), of K symbols, all equally likely: K^(L/2) rows.

    One half at a time is exact in two steps, and the two middle positions together are fatal: the order is all that counts.

    Args:
        length: L, even, 2 to 32.
        symbols: K, 2 to 26, K^(L/2) at most 65,536.
    """

    name = "mirror"
    summary = "rows that read the same from both ends: halves are free, mirror images together are not"
    kind = "global"

    def __init__(self, length: int = 8, symbols: int = 4):
        who = f"problem {self.name!r}"
        length, symbols = integer(f"{who}: length", length, 2, 32), integer(f"{who}: symbols", symbols, 2, 26)
        if length % 2 or symbols ** (length // 2) > 1 << 16:
            raise OptionError(
                f"{who}: length must be even, and symbols^(length/2) at most 65536; {symbols}^({length}/2) is not so"
            )
        halves = list(itertools.product(range(symbols), repeat=length // 2))
        points = torch.tensor([half + half[::-1] for half in halves], dtype=torch.int64, device="cpu")
        super().__init__(points, symbols, string.ascii_lowercase[:symbols])


class Dyck(Language):
    """Brackets that match, all such rows equally likely: 1,430 of length 16 with one type, 366,080 with two.

    Args:
        length: L, even, 2 to 64; at most 20 with two types, whose states are stacks of open brackets.
        types: 1: "()"; 2: "()[]".
    """

    name = "dyck"
    summary = "matching brackets of one or two types: the far ends of a row depend on each other"
    kind = "global"

    def __init__(self, length: int = 16, types: int = 1):
        who = f"problem {self.name!r}"
        types = integer(f"{who}: types", types, 1, 2)
        length = integer(f"{who}: length", length, 2, 64 if types == 1 else 20)
        if length % 2:
            raise OptionError(f"{who}: length must be even, not {length}: every bracket has a partner")
        stacks = [s for h in range(length // 2 + 1) for s in itertools.product(range(types), repeat=h)]
        number = {stack: i for i, stack in enumerate(stacks)}
        arcs = []
        for stack, i in number.items():
            grown = ((*stack, v) for v in range(types))
            arcs += [(i, 2 * more[-1], number[more]) for more in grown if more in number]
            arcs += [(i, 2 * stack[-1] + 1, number[stack[:-1]])] if stack else []
        ends = [1.0] + [0.0] * (len(stacks) - 1)
        super().__init__(Automaton.of(arcs, ends, ends, 2 * types), length, "()[]"[: 2 * types])
