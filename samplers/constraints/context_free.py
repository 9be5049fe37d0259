"""ContextFree: the texts of a context-free grammar, nested to a depth that is given."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..checks import integer
from ..errors import OptionError, did_you_mean
from .regex import Regex

if TYPE_CHECKING:
    from ..denoiser import TextTokenizer

__all__ = ["ContextFree"]

NOTHING = r"[^\s\S]"  # a character that is none
LONGEST = 1_000_000  # characters of the expression that the rules are written out to
_REFERENCE = re.compile(r"\\.|\(\?P?<|<([A-Za-z_]\w*)>", re.DOTALL)


class ContextFree(Regex):
    """The texts of a context-free grammar in which rules are inside each other at most `depth` times.

    Each rule is a regular expression in which <name> stands for a text of the rule of that name; a literal < is written \\<.

        ContextFree({"value": r"\\d+|<list>", "list": r"\\[(<value>(, <value>)*)?\\]"}, tokenizer, depth=3)

    Differs from constrained diffusion by rejection (Mündler et al. 2025, arXiv 2508.10111), where the depth has no bound, and a
    proposed token is tested against the grammar and drawn again if the text can no longer be completed. With a bounded depth
    the language is regular. So tokens need not be tested one by one: all of a forward pass are drawn together, from the product
    of marginals conditioned on the language, as in Regex. The automaton grows with the depth, as fast as rules refer to others.

    Args:
        rules: the name of each rule and its expression. The first is that of whole texts.
        tokenizer, end, given: as of Regex.
        depth: how many rules a character may be inside of at most, that of the whole text included.

    Raises:
        OptionError: a rule refers to one that is not there, the rules written out are too long, no text is nested so little;
            or as of Regex.
    """

    def __init__(
        self,
        rules: Mapping[str, str],
        tokenizer: TextTokenizer | None,
        *,
        depth: int = 4,
        end: bool = True,
        given: bool = False,
    ):
        if not isinstance(rules, Mapping) or not rules or not all(isinstance(rule, str) for rule in rules.values()):
            raise OptionError(
                "ContextFree: rules is a dictionary of names and expressions, such as {'s': r'(\\(<s>\\))*'}"
            )
        self.rules, self.depth = dict(rules), integer("depth", depth)
        for name, rule in self.rules.items():
            for reference in _REFERENCE.finditer(rule):
                other = reference[1]
                if other is not None and other not in rules:
                    raise OptionError(
                        f"ContextFree: rule {name!r} has <{other}>, and there is no such rule{did_you_mean(other, rules)} "
                        r"A literal < is written \<"
                    )
        written: dict[str, str] = dict.fromkeys(self.rules, NOTHING)
        for _ in range(self.depth):
            written = {name: self._written(rule, written) for name, rule in self.rules.items()}
            if max(map(len, written.values())) > LONGEST:
                raise OptionError(
                    f"ContextFree: the rules written out to depth {depth} are too long; use a smaller depth"
                )
        super().__init__(written[next(iter(self.rules))], tokenizer, end=end, given=given)

    @staticmethod
    def _written(rule: str, inner: Mapping[str, str]) -> str:
        """The rule with the texts of other rules in the place of their names."""
        return "(?:" + _REFERENCE.sub(lambda m: m[0] if m[1] is None else inner[m[1]], rule) + ")"

    def __repr__(self) -> str:
        return f"ContextFree of {', '.join(self.rules)} to depth {self.depth}"
