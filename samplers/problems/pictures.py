"""Figures for HTML pages: strips of small pictures, scatters of points, lines of text, and the PNG files inside them.

The colours are CSS variables of the page that a figure stands in: --ink, --soft, --faint, --panel, --accent, --bad.
"""

from __future__ import annotations

import base64
import html
import struct
import zlib
from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor

__all__ = ["png", "scatter", "strip", "text_block"]


def png(pixels: np.ndarray) -> bytes:
    """A PNG file of uint8 pixels.

    Args:
        pixels: (H, W), shades of grey, or (H, W, 3), red, green and blue.
    """
    height, width = pixels.shape[:2]
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    # Each line begins with the number of its filter; 0 is none.
    raw = np.concatenate([np.zeros((height, 1), np.uint8), rows], 1).tobytes()

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2 if pixels.ndim == 3 else 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")


def strip(pictures: Iterable[np.ndarray | str]) -> str:
    """Pictures side by side: arrays as `png` takes them, or texts that are HTML elements already."""

    def element(picture: np.ndarray | str) -> str:
        if isinstance(picture, str):
            return picture
        return f'<img alt="" src="data:image/png;base64,{base64.b64encode(png(picture)).decode()}">'

    return f'<div class="strip">{"".join(map(element, pictures))}</div>'


def text_block(lines: Sequence[str]) -> str:
    """Lines of text as they are."""
    return f'<pre class="sample">{html.escape(chr(10).join(lines))}</pre>'


def scatter(x: Tensor, truth: Tensor) -> str:
    """Points (n, 2) over exact samples (m, 2), which are grey; 512 of each at most. The exact samples set the scale."""
    low, high = truth.amin(0), truth.amax(0)
    middle, half = (low + high) / 2, float((high - low).max()) * 0.56

    def path(points: Tensor) -> str:
        at = ((points[:512] - middle) / half * 100).clamp(-99, 99).tolist()
        return "".join(f"M{a:.0f} {-b:.0f}h0" for a, b in at)

    strokes = [f'<path d="{path(truth)}" stroke="var(--soft)" opacity=".35"/>']
    if x is not truth:
        strokes.append(f'<path d="{path(x)}" stroke="var(--accent)" opacity=".75"/>')
    return (
        '<svg class="scatter" viewBox="-100 -100 200 200" role="img" aria-label="points of the plane" fill="none" '
        f'stroke-width="3.4" stroke-linecap="round">{"".join(strokes)}</svg>'
    )
