"""Prompts and other tokens on the command line."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..errors import OptionError

if TYPE_CHECKING:
    from ..denoiser import Denoiser


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


def check_room(denoiser: Denoiser, prompt: list[int] | None, gen_length: int | None) -> None:
    """OptionError if the text is longer than the model can take."""
    most = getattr(denoiser, "max_length", None)
    given, asked = len(prompt or ()), gen_length or 0
    if most is not None and given + asked > most:
        raise OptionError(
            f"--prompt has {given} tokens and --gen-length is {asked}: {given + asked} positions are too many; "
            f"{denoiser.name!r} takes at most {most}"
        )
