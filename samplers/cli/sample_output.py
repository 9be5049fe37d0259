"""What `samplers sample` prints, and what it writes to a file."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..errors import OptionError, SamplersError

if TYPE_CHECKING:
    from torch import Tensor

    from ..driver import Sample
    from ..problems import Problem


def print_rows(
    console: Console, sample: Sample, render: Callable[[Tensor], str] | None, mask_id: int | None, show: int
) -> None:
    """The first `show` rows side by side, as many as the console is wide enough for."""
    from .. import watch

    texts = watch.render_rows(sample.x, render, mask_id, show)
    grid = Table.grid(padding=(0, 4, 0, 0))
    widest = max((len(line) for t in texts for line in t.splitlines()), default=1)
    across = max(1, min(len(texts), console.width // (widest + 4)))
    for i in range(0, len(texts), across):
        grid.add_row(*map(Text, texts[i : i + across]))
        grid.add_row("")  # texts of several lines are told apart by an empty one
    console.print(grid)


def print_costs(console: Console, sample: Sample) -> None:
    """One line: forward passes, evaluations, seconds."""
    s = sample.seconds
    console.print(
        f"{sample.sampler}: {sample.nfe} forward passes, {float(sample.nfe_rows.double().mean()):.4g} per row, "
        f"{sample.row_evals:,} rows and {sample.token_evals:,} positions evaluated; "
        f"{s.total:.3g} s ({s.denoiser:.3g} denoiser, {s.sampler:.3g} sampler)",
        highlight=False,
    )


def as_json(sample: Sample, problem: Problem | None, family: str, score: Any) -> dict[str, Any]:
    facts = (
        "sampler",
        "options",
        "distribution",
        "version",
        "nfe",
        "row_evals",
        "token_evals",
        "head_rows",
        "steps",
        "settings",
    )
    return {
        "problem": problem.name if problem is not None else None,
        "family": family,
        **{k: getattr(sample, k) for k in facts},
        "nfe_rows": sample.nfe_rows.tolist(),
        "seconds": {"denoiser": sample.seconds.denoiser, "sampler": sample.seconds.sampler},
        "x": sample.x.tolist(),
        "score": score.to_dict() if score is not None else None,
    }


def writable(path: str | None) -> Path | None:
    """The path, once it is known that a file can be put there: before the work is done, not after."""
    if path is None:
        return None
    try:
        with open(path, "ab"):
            pass
    except OSError as error:
        raise OptionError(f"--save {path} cannot be written: {error.strerror or error}") from error
    return Path(path)


def save(path: Path, sample: Sample) -> None:
    """Write a sample to a file that torch.load reads.

    Raises:
        SamplersError: it cannot be written; with the reason.
    """
    import torch

    kept = (
        "x",
        "nfe",
        "row_evals",
        "token_evals",
        "nfe_rows",
        "lengths",
        "sampler",
        "options",
        "distribution",
        "version",
        "settings",
    )
    content = (
        io.BytesIO()
    )  # written to the file, torch.save hides the reason if it fails: a RuntimeError of its archive
    torch.save(
        {k: getattr(sample, k) for k in kept} | {"seconds": [sample.seconds.denoiser, sample.seconds.sampler]}, content
    )
    try:
        path.write_bytes(content.getbuffer())
    except OSError as error:
        raise SamplersError(f"--save {path} cannot be written: {error.strerror or error}") from error
