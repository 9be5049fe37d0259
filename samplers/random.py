"""Counter-based randomness: Philox 4x32-10, the torch twin of csrc/philox.h.

A draw is a pure function of (seed, row, position, step, draw): no generator is read or moved, so a row's draws depend
neither on the batch it is in nor on the device. (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011.)

    key     = (low 32 bits of seed, low 32 bits of row)
    counter = (position, step, draw, high 32 bits of seed xor high 32 bits of row)
    uniform = ((r0 >> 5) * 2^26 + (r1 >> 6)) * 2^-53          in [0, 1), 53 bits
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .checks import seeds_of, signed
from .errors import OptionError

if TYPE_CHECKING:
    from .state import TokenState

__all__ = [
    "DRAW_ACCEPT",
    "DRAW_BLIND",
    "DRAW_CANDIDATE",
    "DRAW_FIRST_FREE",
    "DRAW_GUESS",
    "DRAW_GUMBEL",
    "DRAW_HEAD",
    "DRAW_HIDE",
    "DRAW_NOISE",
    "DRAW_NOISE_TOKEN",
    "DRAW_PARTICLE",
    "DRAW_PICK",
    "DRAW_PLAN",
    "DRAW_POSITION",
    "DRAW_PROBE",
    "DRAW_RANK",
    "DRAW_REMASK",
    "DRAW_RESAMPLE",
    "DRAW_RESIDUAL",
    "DRAW_ROUTE",
    "DRAW_SELECT",
    "DRAW_SHADOW",
    "DRAW_START",
    "DRAW_SWAP",
    "DRAW_TOKEN",
    "Rng",
    "gumbel",
    "philox",
    "uniform",
]

# What a draw is for: the numbers that the library uses. A step may need several uniform numbers at one position, and two
# with one number are the same number. Samplers of other packages count their own from DRAW_FIRST_FREE.
DRAW_TOKEN = 0  # which token
DRAW_POSITION = 1  # whether, or in which order, a position is committed: drawn once for the whole run
DRAW_NOISE = 2  # Gaussian noise: Rng.normal
DRAW_START = 4  # the noise that a canvas of uniform noise starts with
DRAW_BLIND = 5  # the prompt that guidance does not see, under uniform noise
DRAW_RANK = 8  # the chance in an order of positions that is drawn anew in every step; gumbel()
DRAW_REMASK = 9  # whether a position appears or is masked again, if that is drawn anew in every step
DRAW_ROUTE = 10  # uniform noise: clean, stay or noise
DRAW_NOISE_TOKEN = 11  # uniform noise: which token the noise puts there
DRAW_PICK = 12  # uniform noise: which positions a corrector takes
DRAW_HEAD = 13  # real-valued tokens: the seed of the head's run at a position
DRAW_SHADOW = 20  # which token, at a line that is given beside the canvas: predict.seen
DRAW_SELECT = 25  # whether a learned selector takes a position
DRAW_SWAP = 30  # uniform noise: the tokens that a correction would put in place of those that stand
DRAW_PLAN = 31  # uniform noise: which positions a planner chooses
DRAW_HIDE = 32  # uniform noise: which tokens the denoiser of a planner does not see
DRAW_CANDIDATE = 40  # which positions a candidate has, one number for each position and candidate
DRAW_RESAMPLE = 45  # which particles go on, (B, K) numbers in place of (B, L)
DRAW_PARTICLE = 46  # which particle a row ends with
DRAW_ACCEPT = 50  # whether a drafted token is accepted by a verification
DRAW_RESIDUAL = 51  # the token in place of the first that is refused
DRAW_GUMBEL = 52  # Gumbel noise of each token of a position, the number of the token in place of the step: Rng.tokens
DRAW_GUESS = 53  # a token that the next step tries
DRAW_PROBE = 1 << 30  # from here on: the signs of random probes, by their number
DRAW_FIRST_FREE = 1000

COPY_SHIFT = 46  # copy k of row r draws as row r xor k 2^46: row numbers below that, and up to 2^17 copies, never meet

_M0, _M1 = 0xD2511F53, 0xCD9E8D57
_W0, _W1 = 0x9E3779B9, 0xBB67AE85
_LOW = 0xFFFFFFFF


def philox(counter: Sequence[Tensor | int], key: Sequence[Tensor | int]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Philox 4x32-10 of four counter words and two key words; all int64 in [0, 2^32), broadcast together.

    int64 products wrap modulo 2^64, which leaves the bits of the unsigned product; a shift and a mask then read its halves.
    """
    device = next((w.device for w in (*counter, *key) if isinstance(w, Tensor)), torch.device("cpu"))
    words = [torch.as_tensor(w, dtype=torch.int64, device=device) & _LOW for w in (*counter, *key)]
    c0, c1, c2, c3, k0, k1 = torch.broadcast_tensors(*words)
    for i in range(10):
        if i:
            k0, k1 = (k0 + _W0) & _LOW, (k1 + _W1) & _LOW
        p0, p1 = c0 * _M0, c2 * _M1
        c0, c1, c2, c3 = ((p1 >> 32) & _LOW) ^ c1 ^ k0, p1 & _LOW, ((p0 >> 32) & _LOW) ^ c3 ^ k1, p0 & _LOW
    return c0, c1, c2, c3


def uniform(
    seed: Tensor | int, row: Tensor | int, position: Tensor | int, step: Tensor | int, draw: Tensor | int
) -> Tensor:
    """One float64 in [0, 1) for each broadcast (seed, row, position, step, draw)."""
    if isinstance(seed, Tensor) and isinstance(row, Tensor) and seed.dim() == 0:
        seed = seed.to(row.device)
    high = ((seed >> 32) ^ (row >> 32)) & _LOW
    r0, r1, _, _ = philox((position, step, draw, high), (seed, row))
    return ((r0 >> 5) * (1 << 26) + (r1 >> 6)).to(torch.float64) * 2.0**-53


def _row_uniforms(*arguments: Tensor | int | None) -> Tensor:
    """samplers.ops.row_uniforms without its checks. (The op is made of `uniform`, so it cannot be imported earlier.)"""
    from .ops.uniform import OP

    return OP(*arguments)


def _row_normals(*arguments: Tensor | int | torch.dtype) -> Tensor:
    """samplers.ops.row_normals without its checks."""
    from .ops.normals import OP

    return OP(*arguments)


@dataclass(frozen=True)
class Rng:
    """The randomness of a batch: who each row is.

    Attributes:
        seed: (B,) int64
        row: (B,) int64, the row's number under its seed
    """

    seed: Tensor  # (B,) int64
    row: Tensor  # (B,) int64

    @classmethod
    def of(cls, seed: Any, batch: int, first_row: int | list[int] = 0, device: torch.device | str = "cpu") -> Rng:
        """Rows first_row, first_row + 1, ... of one seed; or, of one seed per row, row `first_row` of each.

        Args:
            first_row: a number, or `batch` of them, the number of each row.
            seed: an integer of 64 bits, with a sign or without, or `batch` of them, in any type that checks.seeds_of reads.

        Raises:
            OptionError: something else, or another number of seeds than `batch`.
        """
        seeds = seeds_of(seed)
        here: dict[str, Any] = {"dtype": torch.int64, "device": device}
        if isinstance(first_row, list):
            if len(first_row) != batch:
                raise OptionError(
                    f"first_row: {len(first_row)} numbers were given for {batch} rows; give one integer, or one per row"
                )
            seeds, rows = [seeds] * batch if isinstance(seeds, int) else seeds, torch.tensor(first_row, **here)
        elif isinstance(seeds, int):
            seeds, rows = [seeds] * batch, torch.arange(first_row, first_row + batch, **here)
        else:
            rows = torch.full((len(seeds),), first_row, **here)
        if len(seeds) != batch:
            raise OptionError(
                f"seed: {len(seeds)} seeds were given for {batch} rows; give one integer, or one integer per row"
            )
        return cls(torch.tensor([signed(s) for s in seeds], **here), rows)

    def to(self, device: torch.device | str) -> Rng:
        """The same rows, on `device`."""
        return Rng(self.seed.to(device), self.row.to(device))

    def copies(self, number: int, apart: bool, first: int = 0) -> Rng:
        """Each row `number` times, one after the other.

        Args:
            apart: copies draw for themselves, each under a row number of its own, but for copy 0, which draws what the row does.
            first: the number of the first copy.
        """
        seed, row = self.seed.repeat_interleave(number), self.row.repeat_interleave(number)
        copy = torch.arange(first, first + number, device=row.device).repeat(len(self.row))
        return Rng(seed, row ^ (copy << COPY_SHIFT) if apart else row)

    def positions(self, length: int, step: Tensor, draw: int) -> Tensor:
        """One uniform for every position of every row at its own step. step: (B,) int64 -> (B, length) float64."""
        return _row_uniforms(self.seed, self.row, step, None, None, length, draw)

    def at(self, rows: Tensor, position: Tensor, step: Tensor, draw: int) -> Tensor:
        """Uniforms of N chosen (row of the batch, position) pairs, each at its row's step. All (N,) -> (N,) float64."""
        return _row_uniforms(self.seed, self.row, step, rows, position, 0, draw)

    def tokens(self, rows: Tensor, position: Tensor, vocab: int, draw: int) -> Tensor:
        """(N, vocab) float64: a uniform for every token at N chosen pairs, all (N,); the same in every step of a run."""
        every = torch.arange(vocab, device=rows.device)
        return uniform(self.seed[rows][:, None], self.row[rows][:, None], position[:, None], every, draw)

    def normal(self, shape: Sequence[int], step: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normals, (B, *shape): samplers.ops.row_normals, in float32 and then rounded if `dtype` is smaller."""
        steps = torch.full_like(self.row, step)
        z = _row_normals(
            self.seed, self.row, steps, math.prod(shape), DRAW_NOISE, torch.promote_types(dtype, torch.float32)
        )
        return z.to(dtype).reshape(len(self.row), *shape)

    def signs(self, shape: Sequence[int], step: int, number: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """(B, *shape) of +1 and -1, each with probability 1/2; `number` tells those of one step apart."""
        u = self.positions(math.prod(shape), torch.full_like(self.row, step), DRAW_PROBE + number)
        return torch.where(u < 0.5, -1.0, 1.0).to(dtype).reshape(len(self.row), *shape)


def gumbel(state: TokenState, draw: int = DRAW_RANK) -> Tensor:
    """(B, L) float64: standard Gumbel noise of this step, finite; `draw` says which of the step's uniform numbers it uses.

    The k highest of score + gumbel are k draws without replacement from softmax(score) (Kool et al. 2019, arXiv 1903.06059).
    """
    u = state.rng.positions(state.x.shape[1], state.step, draw)
    return -torch.log(-torch.log(u.clamp_min(2.0**-54)))  # u = 0 comes once in 2^53 draws
