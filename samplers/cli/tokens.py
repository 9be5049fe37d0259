"""Prompts and other tokens on the command line."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from ..errors import OptionError

if TYPE_CHECKING:
    from ..denoiser import Denoiser

# What runs on the small text models in the box if the command does not say. They repeat themselves at a low temperature: at 0
# text-mdm writes "the name of the name of the name". Of some thirty settings that were tried these read best.
TEXT = {"temperature": 0.7, "gen_length": 64}


def text_default(denoiser: Denoiser, name: str, given: Any) -> Any:
    """What was given, or on a text model in the box what TEXT says."""
    from ..models import zoo

    return TEXT[name] if given is None and isinstance(denoiser, zoo.TextDenoiser) else given


def unescaped(text: str) -> str:
    """A text of the command line with \\n, \\t and \\\\ made the end of a line, a tabulator and a backslash."""
    return re.sub(r"\\([nt\\])", lambda m: {"n": "\n", "t": "\t", "\\": "\\"}[m[1]], text)


def stop_rule(text: str, speaker: Any, denoiser: Denoiser) -> str | list[int] | None:
    """A stop rule: token ids of '3 1 4'; other text is a string to stop at, or token ids if there is only an encoder."""
    words = text.replace(",", " ").split()
    numbers = bool(words) and all(word.lstrip("-").isdigit() for word in words)
    if numbers or speaker is not denoiser or getattr(denoiser, "tokenizer", None) is None:
        return token_ids(text, "--stop", speaker, denoiser)
    return unescaped(text)


def method_of(speaker: Any, name: str) -> Any:
    """A problem's or denoiser's method "encode" or "render"; None if it knows no text."""
    from ..denoiser import TokenDenoiser

    method = getattr(speaker, name, None)
    silent = isinstance(speaker, TokenDenoiser) and speaker.tokenizer is None
    return None if silent and getattr(method, "__func__", None) is getattr(TokenDenoiser, name) else method


def token_ids(text: str | None, flag: str, speaker: Any, denoiser: Denoiser) -> list[int] | None:
    """Token ids of '3 1 4' or '3,1,4'; otherwise of text, if the problem or denoiser can encode it."""
    if text is None:
        return None
    try:
        ids = [int(w) for w in text.replace(",", " ").split()]
    except ValueError:
        encode = method_of(speaker, "encode")
        if encode is None:
            raise OptionError(f"{flag} {text!r}: token ids such as '3 1 4' are needed") from None
        ids = encode(text).tolist()
    if not ids:
        raise OptionError(f"{flag} {text!r}: no token of {denoiser.name!r} is in it")
    size: Any = getattr(denoiser, "vocab_size", None)
    mask_id = getattr(denoiser, "mask_id", None)
    wrong = [i for i in ids if size is not None and (i == mask_id or not 0 <= i < size)]
    if wrong:
        but = f" but the mask id {mask_id}" if mask_id is not None and size is not None and mask_id < size else ""
        raise OptionError(
            f"{flag} {text!r}: {wrong[0]} is no token of {denoiser.name!r}; they are 0 to {size - 1}{but}"
        )
    return ids


def check_length(denoiser: Denoiser, gen_length: int | None) -> None:
    """OptionError if nobody says how many positions there are to fill."""
    from ..denoiser import TokenDenoiser

    if isinstance(denoiser, TokenDenoiser) and denoiser.length is None and gen_length is None:
        raise OptionError(
            f"--gen-length is needed, the number of positions to fill after the prompt: {denoiser.name!r} takes any"
        )


def check_room(denoiser: Denoiser, prompt: list[int] | None, gen_length: int | None) -> None:
    """OptionError if the text is longer than the model can take."""
    most = getattr(denoiser, "max_length", None)
    given, asked = len(prompt or ()), gen_length or 0
    if most is not None and given + asked > most:
        raise OptionError(
            f"--prompt has {given} tokens and --gen-length is {asked}: {given + asked} positions are too many; "
            f"{denoiser.name!r} takes at most {most}: shorten one of them"
        )
