"""`samplers show-model`: what a model's folder is taken for, and where each of these facts comes from."""

from __future__ import annotations

import argparse
import math
from typing import Any

from rich.table import Table
from rich.text import Text

from ..errors import OptionError
from .arguments import AS_JSON, Commands, command
from .output import make_console, print_json


def _facts(spec: str) -> dict[str, tuple[Any, str]]:
    """Each fact and where it comes from. Configurations, tokenizers and headers are read, no weights."""
    from ..models.denoiser import CACHES, describe, read_spec
    from ..models.families import architecture_of
    from ..models.load import headers
    from ..models.zoo import list_models

    if spec in list_models():
        raise OptionError(
            f'{spec!r} is a model in the box, not a folder: python -c "import samplers; '
            f"print(samplers.models.zoo.facts('{spec}'))\" shows how it was trained and what it scores"
        )
    name, told = read_spec(spec.removeprefix("hf:"))
    dtype, device = told.pop("dtype", None), told.pop("device", None)
    found = describe(name, **told)
    family, source, config = found.family, found.family.source, found.config
    tensors = headers(found.folder)
    text = found.tokenizer
    shape = config.get("transformer") or config.get("text_config") or config
    ids = next((shape[key] for key in ("embedding_size", "vocab_size", "tokens") if shape.get(key)), None)
    caches = {"ours": CACHES[family.attention], "transformers": "as far as the class has a cache"}.get(family.loader)
    stored = sorted({kind for kind, _ in tensors.values()})
    lines: dict[str, tuple[Any, str]] = {
        "family": (family.name, source["name"]),
        "revision": (found.revision, "hub" if found.revision else "a folder that is not the hub's"),
        "architecture": (architecture_of(config), "config.json"),
        "loader": (family.loader, "argument" if "loader" in told else "family"),
        "parameters": (sum(math.prod(shape) for _, shape in tensors.values()), "headers of the safetensors"),
        "dtype": (str(dtype or ", ".join(stored)).removeprefix("torch."), "argument" if dtype else "headers"),
        "device": (str(device or "cpu"), "argument" if device else "default"),
        "vocabulary": (ids, "config.json" if ids else ""),
        "mask token": (family.mask_id, source["mask_id"] if family.mask_id is not None else "named nowhere"),
        "attention": (family.attention, source["attention"]),
        "block length": (family.block_length, source["block_length"] if family.block_length else ""),
        "shift": (family.shift, source["shift"]),
        "predicts next": (family.predicts_next, source["predicts_next"]),
        "ends of text": (list(family.stop_ids), source["stop_ids"] if family.stop_ids else "named nowhere"),
        "tokenizer": (None if text is None else type(text).__name__, "folder" if text is not None else "there is none"),
        "tokens with text": (None if text is None else text.vocab_size, "tokenizer" if text is not None else ""),
        "caches": (caches if caches is None or isinstance(caches, str) else list(caches), "attention"),
        "sampler": (family.sampler, source["sampler"]),
        "settings": (dict(family.settings), source["settings"] if family.settings else ""),
    }
    return lines


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key}={v!r}" for key, v in value.items()) or "none"
    if isinstance(value, (list, tuple)):
        return ", ".join(map(str, value)) or "none"
    if isinstance(value, bool) or value is None:
        return {True: "yes", False: "no", None: "none"}[value]
    return f"{value:,}" if isinstance(value, int) and value >= 10**6 else str(value)


def _show_model(args: argparse.Namespace) -> int:
    facts = _facts(args.name)
    if args.json:
        named = {key.replace(" ", "_"): {"value": value, "source": where} for key, (value, where) in facts.items()}
        return print_json({"name": args.name, **named})
    console = make_console()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in ("fact", "value", "from"):
        table.add_column(header)
    for key, (value, where) in facts.items():
        table.add_row(Text(key, style="dim"), Text(_shown(value)), Text(where, style="dim"))
    console.print(table)
    return 0


def add(commands: Commands) -> None:
    p = command(commands, "show-model", _show_model, "what a model's folder is taken for, and why; no weights are read")
    p.add_argument(
        "name",
        metavar="NAME",
        help="folder, or repository on the Hugging Face hub; arguments correct it, as in NAME?attention=full&shift=1&mask_id=5",
    )
    p.add_argument("--json", **AS_JSON)
