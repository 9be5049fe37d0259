"""Languages that the text of a run must belong to, exactly and with nearly every sampler: sample(..., constrain=language).

    Regex(pattern, tokenizer)             texts that a regular expression matches
    JsonSchema(schema, tokenizer)         JSON texts that a (small) schema describes
    ContextFree(rules, tokenizer, depth)  texts of a context-free grammar, nested to a depth that is given
    Automaton(next_state, accepting)      token strings that an automaton accepts
    from_bitmask(mask_of)                 a grammar engine that says which tokens may come next, such as xgrammar or llguidance

A language of another kind is a subclass of Language.
"""

from __future__ import annotations

from typing import Any

from .automaton import Automaton
from .context_free import ContextFree
from .json_schema import JsonSchema
from .language import Language
from .regex import Regex

__all__ = ["Automaton", "ContextFree", "JsonSchema", "Language", "Regex", "from_bitmask", "text_so_far"]


def __getattr__(name: str) -> Any:  # what needs the driver, which needs Language
    if name not in ("from_bitmask", "text_so_far"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from . import bitmask

    return getattr(bitmask, name)
