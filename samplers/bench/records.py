"""A record is what a line of cells.jsonl holds: the cell, its cost, its score, and the first samples."""

from __future__ import annotations

import base64
import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Record", "damage", "json_ready", "pack", "unpack"]

Record = dict[str, Any]

NUMBER = (int, float)
SHAPE: dict[str, Any] = {
    **dict.fromkeys(("key", "status", "problem", "family", "sampler", "distribution", "version", "knob"), str),
    **dict.fromkeys(("library", "time"), str),
    **dict.fromkeys(("options", "settings"), dict),
    **dict.fromkeys(("seed", "rows", "batch"), int),
    "value": object,
    "machine": {
        **dict.fromkeys(("cpu", "system", "python", "torch", "device"), str),
        "threads": int,
        "native": bool,
        "isa": object,
    },
}
RESULT: dict[str, Any] = {
    "nfe": {"per_row": NUMBER, "token_evals": NUMBER},
    "seconds": {"denoiser": NUMBER, "sampler": NUMBER},
    "score": {"primary": str, "estimates": dict},
}
ESTIMATE = {"n": int, "better": str, **dict.fromkeys(("value", "low", "high", "truth"), (*NUMBER, type(None)))}


def damage(record: Any) -> str | None:
    """What a record lacks to be read by the report, or None. It may have more than that."""
    wrong = _misfit(record, SHAPE, "it")
    if wrong is None and record["status"] == "ok":
        wrong = _misfit(record, RESULT, "it")
        for name, estimate in record["score"]["estimates"].items() if wrong is None else ():
            wrong = wrong or _misfit(estimate, ESTIMATE, name)
    elif wrong is None:
        wrong = _misfit(record, {"error": str}, "it")
    return wrong


def _misfit(value: Any, shape: dict[str, Any], who: str) -> str | None:
    if not isinstance(value, dict):
        return f"{who} is {type(value).__name__}, not an object"
    for key, kind in shape.items():
        if key not in value:
            return f"{who} has no {key!r}"
        if isinstance(kind, dict):
            if wrong := _misfit(value[key], kind, repr(key)):
                return wrong
        elif not isinstance(value[key], kind):
            return f"its {key!r} is {type(value[key]).__name__}"
    return None


def json_ready(value: Any) -> Any:
    """JSON has no infinities; an option may have one (a threshold that nothing passes)."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {k: json_ready(v) for k, v in value.items()}
    return [json_ready(v) for v in value] if isinstance(value, (list, tuple)) else value


def pack(x: Tensor, size: int = 2048) -> dict[str, Any]:
    """The first rows of x for pictures: 8; of points of the plane as many as `size` bytes hold."""
    kind = np.float16 if x.is_floating_point() else np.uint8 if int(x.max()) < 256 and int(x.min()) >= 0 else np.int32
    rows = 8 if x[0].numel() > 4 else size // (x[0].numel() * np.dtype(kind).itemsize)
    values = x[:rows].cpu().numpy().astype(kind)
    text = base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
    return {"dtype": np.dtype(kind).name, "shape": list(values.shape), "data": text}


def unpack(packed: dict[str, Any]) -> Tensor:
    """What `pack` packed: int64 tokens, or float32 reals."""
    values = np.frombuffer(base64.b64decode(packed["data"]), dtype=packed["dtype"]).reshape(packed["shape"])
    return torch.from_numpy(values.astype(np.float32 if packed["dtype"].startswith("float") else np.int64))
