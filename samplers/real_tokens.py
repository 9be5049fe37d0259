"""Real-valued tokens on a masked canvas: a masked sampler says which positions come next, a continuous one draws them.

Masked image models over continuous tokens (MAR, Li et al. 2024, arXiv 2406.11838; eMIGM, You et al. 2025, arXiv 2503.07197)
have two parts. A network sees the positions that are known and says of each other one, as a vector z, what it knows; a small
diffusion model, the head, draws the d numbers of a position from p(x_i | z). Here both parts are pluggable:

    model = samplers.RealTokens(network, head, length=256, width=16, schedule="vp_cosine", prediction="epsilon")
    out = samplers.sample_reals(model, "random_order", steps=16, solver="dpmpp_2m", solver_steps=14, batch=8)

Any sampler of the masked family can give the order, and any of the gaussian family can draw. Positions that are drawn in one
step are drawn independently of each other, given what was known before: one position per step is exact, up to the solver.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from . import registry
from .canvas import Canvas
from .checks import bool_rows, device_of, flag, guidance, integer, optional_integer, reals, shown
from .denoiser import TokenDenoiser
from .driver import sample, stream
from .errors import FamilyError, OptionError
from .gaussian.denoiser import GaussianDenoiser
from .noise_schedules import NoiseSchedule
from .random import DRAW_HEAD, Rng, philox

__all__ = ["RealSample", "RealTokens", "sample_reals"]

KNOWN, MASK = 0, 1  # what stands on the canvas of the order


class RealTokens:
    """A masked model of vectors of reals: a network that sees what is known, and a head that draws the rest.

    Args:
        network: (values (B, L, d), known (B, L) bool) -> (B, L, D), what it says of each position. `values` are zeros at
            positions that are not known.
        head: (x (N, d), t (N,), z (N, D)) -> (N, d), the head's answer for N positions, each with the z of its own.
        length: L. width: d.
        schedule, prediction, time_scale: of the head, as GaussianDenoiser.wrap has them.
        unconditional: the network without the condition (such as a class), of the same arguments: for cfg_scale.
        dtype: in which the head is given x and t; a float64 head is run in float64.
        device: where values are.
        name: how reports call it.

    Raises:
        OptionError: one of the arguments is wrong.
    """

    def __init__(
        self,
        network: Callable[[Tensor, Tensor], Tensor],
        head: Callable[[Tensor, Tensor, Tensor], Tensor],
        *,
        length: int,
        width: int,
        schedule: str | NoiseSchedule = "vp_linear",
        prediction: str = "epsilon",
        unconditional: Callable[[Tensor, Tensor], Tensor] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        name: str = "real tokens",
    ):
        for what, fn in (("network", network), ("head", head), ("unconditional", unconditional)):
            if not callable(fn) and (fn is not None or what != "unconditional"):
                raise OptionError(f"RealTokens: {what} must be a callable, not {shown(fn)}")
        self.network, self.head_fn, self.unconditional = network, head, unconditional
        self.length, self.width = integer("length", length), integer("width", width)
        self.schedule, self.prediction, self.dtype = schedule, prediction, dtype
        self.device, self.name = device_of("device", device), name
        self.head(torch.zeros(1, 1, dtype=torch.float32, device=self.device))  # what is wrong is found now

    @property
    def state_dtype(self) -> torch.dtype:
        return torch.promote_types(self.dtype, torch.float32)

    def head(self, z: Tensor, without: Tensor | None = None) -> GaussianDenoiser:
        """The head at N positions as a denoiser of N rows. z, without: (N, D)."""
        return GaussianDenoiser.wrap(
            self.head_fn,
            shape=(self.width,),
            schedule=self.schedule,
            prediction=self.prediction,
            condition=z,
            unconditional=without,
            dtype=self.dtype,
            device=self.device,
            name=self.name,
        )

    def order(self) -> TokenDenoiser:
        """What gives the order: a model of one token, which it finds certain everywhere."""
        made = TokenDenoiser.wrap(
            lambda ids: torch.zeros(*ids.shape, 1, dtype=torch.float32, device=ids.device),
            vocab_size=1,
            mask_id=MASK,
            length=self.length,
            device=self.device,
            name=self.name,
        )
        return made

    def asked(self, network: Callable[[Tensor, Tensor], Tensor], values: Tensor, known: Tensor) -> Tensor:
        """The network's answer, (A, L, D), checked."""
        z = network(values, known)
        if not isinstance(z, Tensor) or z.dim() != 3 or z.shape[:2] != known.shape or not z.is_floating_point():
            got = f"{z.dtype} of shape {tuple(z.shape)}" if isinstance(z, Tensor) else type(z).__name__
            raise OptionError(
                f"{self.name}: network returned {got}; reals (B, L, D) = {(*known.shape, '...')} are needed"
            )
        return z


@dataclass(frozen=True, eq=False)
class RealSample:
    """What sample_reals made, and what it cost.

    Attributes:
        x: (B, L, d) reals.
        nfe: forward passes of the network; a guided one is one. network_rows: rows over all of them.
        head_nfe: evaluations of the head. head_rows: positions over all of them, twice as many where it is guided.
        steps: steps of the order.
        order, solver: the names of the two samplers.
    """

    x: Tensor
    nfe: int
    network_rows: int
    head_nfe: int
    head_rows: int
    steps: int
    order: str
    solver: str


@torch.no_grad()
def sample_reals(
    model: RealTokens,
    order: Any = "random_order",
    *,
    batch: int = 1,
    seed: Any = 0,
    first_row: int = 0,
    steps: int | None = None,
    solver: Any = "dpmpp_2m",
    solver_steps: int | None = None,
    solver_options: Mapping[str, Any] | None = None,
    start: Any = None,
    known: Any = None,
    block_length: int | None = None,
    cfg_scale: float = 0.0,
    cfg_interval: tuple[float, float] = (0.0, 1.0),
    progress: bool = False,
    **options: Any,
) -> RealSample:
    """Draw canvases of real-valued tokens.

    Args:
        order: a sampler of the masked family, by name or made, that says which positions are drawn in which step. All
            positions look alike to it, so it should be one that chooses at random: random_order, radd, ancestral, maskgit.
        batch, seed, first_row: as in sample(): row i is what it is alone.
        steps: steps of the order; None: one per position.
        solver: a sampler of the gaussian family, by name or made, that draws the numbers of a position.
        solver_steps: its function evaluations; None: its own default. solver_options: its options, if it is named.
        start: (B, L, d) or (L, d) reals, of which those at `known` positions are given.
        known: (B, L) or (L,) bool, the positions that are given; in each row one at least must not be.
        block_length: positions per block of the order.
        cfg_scale: w of the guided head's answer (1 + w) e - w e without the condition; needs RealTokens(unconditional=).
        cfg_interval: (low, high): guided in steps that begin with a share of masked positions above low and at most high.
            (eMIGM's code reads the share after the step.)
        progress: show a progress bar.
        options: options of `order`, if it is named.

    Returns:
        RealSample.

    Raises:
        OptionError: an argument is wrong. FamilyError: a sampler of another family.
    """
    if not isinstance(model, RealTokens):
        raise OptionError(f"sample_reals takes a RealTokens, not {type(model).__name__}")
    made = registry.create(solver, **(solver_options or {})) if isinstance(solver, str) else solver
    if getattr(made, "family", None) != "gaussian":
        raise FamilyError(f"solver={shown(solver)}: a sampler of the gaussian family is needed to draw reals")
    optional_integer("solver_steps", solver_steps)
    scale, (low, high) = guidance(cfg_scale, cfg_interval)
    if scale and model.unconditional is None:
        raise OptionError(f"cfg_scale={scale:g}: {model.name} has no network without the condition (unconditional=)")
    canvas, values = _begin(model, integer("batch", batch), start, known)
    going = stream(
        model.order(),
        order,
        prompt=canvas,
        seed=seed,
        first_row=first_row,
        steps=steps,
        block_length=block_length,
        progress=flag("progress", progress),
        **options,
    )
    rng = Rng.of(seed, len(canvas.x), first_row, model.device)
    nfe = network_rows = head_nfe = head_rows = 0
    before = next(going)
    for number, after in enumerate(going):
        fresh = (before.x == MASK) & (after.x == KNOWN)  # (B, L) bool
        gone = (before.x == KNOWN) & (after.x == MASK)
        rows = fresh.any(1).nonzero().squeeze(1)  # (A,)
        if len(rows):
            seen = before.x[rows] == KNOWN  # (A, L)
            given = values[rows].masked_fill(~seen[..., None], 0.0)
            row, position = fresh.nonzero().unbind(1)  # (N,)
            at = torch.searchsorted(rows, row), position
            share = (before.x[rows] == MASK).sum(1) / canvas.fill[rows].sum(1)
            guided = bool(scale) and bool(((share > low) & (share <= high)).any())
            z = model.asked(model.network, given, seen)[at]
            without = None
            if guided:
                assert model.unconditional is not None
                without = model.asked(model.unconditional, given, seen)[at]
                outside = ((share <= low) | (share > high))[at[0]]
                without = torch.where(outside[:, None], z, without)  # guided by itself: not at all
            nfe, network_rows = nfe + 1, network_rows + len(rows) * (1 + guided)
            drawn = sample(
                model.head(z, without),
                made,
                batch=len(row),
                seed=_seeds(rng, row, position, number),
                steps=solver_steps,
                cfg_scale=scale if guided else 0.0,
            )
            head_nfe, head_rows = head_nfe + drawn.nfe, head_rows + drawn.row_evals
            values = values.index_put((row, position), drawn.x)
        values = values.masked_fill(gone[..., None], 0.0)
        before = after
    name = going.sampler.name
    return RealSample(values, nfe, network_rows, head_nfe, head_rows, going.steps, name, made.name)


def _begin(model: RealTokens, batch: int, start: Any, known: Any) -> tuple[Canvas, Tensor]:
    """The canvas of the order, and the values that are given, (B, L, d), zeros at the others."""
    if (start is None) != (known is None):
        raise OptionError("sample_reals: start= and known= go together: the values, and the positions where they count")
    length, rows = model.length, batch
    fill = torch.ones(1, length, dtype=torch.bool, device="cpu")
    if known is not None:
        given = bool_rows("sample_reals: known", known)
        if any(len(row) != length for row in given) or (batch != 1 and len(given) not in (1, batch)):
            raise OptionError(
                f"sample_reals: known has {len(given)} rows of {[len(row) for row in given][:4]} positions; (L,) or (B, L) "
                f"= {(batch, length)} is needed"
            )
        fill, rows = ~torch.stack(given), max(batch, len(given))
    fill = fill.expand(rows, -1)
    values = torch.zeros(rows, length, model.width, dtype=model.state_dtype, device=model.device)
    if start is not None:
        shape, device = (length, model.width), torch.device(model.device)
        whole = reals("sample_reals: start", start, shape, rows, model.state_dtype, device)
        values = whole.masked_fill(fill.to(device)[..., None], 0.0)
    x = torch.where(fill, MASK, KNOWN)
    return Canvas.infill(model.order(), x, fill), values


def _seeds(rng: Rng, row: Tensor, position: Tensor, step: int) -> Tensor:
    """(N,) int64: a seed for each position that is drawn, from its row's own randomness."""
    seed, number = rng.seed[row], rng.row[row]
    high = ((seed >> 32) ^ (number >> 32)) & 0xFFFFFFFF
    first, second, _, _ = philox((position, step, DRAW_HEAD, high), (seed, number))
    return (first | (second << 32)).cpu()
