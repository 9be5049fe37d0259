"""Sample: what a run produced and what it cost. (A module called `sample` would hide the function of that name.)"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .errors import OptionError, SamplersError
from .info import at_commit, step_map
from .sampler import State
from .text import continued, cut, segments

if TYPE_CHECKING:
    from .denoiser import TextTokenizer

__all__ = ["Sample", "Seconds"]


@dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds of a run: inside the denoiser, and in everything else (sampler and driver)."""

    denoiser: float
    sampler: float

    @property
    def total(self) -> float:
        return self.denoiser + self.sampler


@dataclass(frozen=True, eq=False)
class Sample:
    """What a run produced, and what it cost.

    Attributes:
        x: (B, L) int64 tokens, PAD (-1) beyond a row's end; or (B, *shape) reals.
        nfe: forward passes: calls of the model, whatever the batch. A guided step is one forward pass.
        row_evals: rows over all forward passes; a guided step has two for each row.
        token_evals: positions that the model was given over all forward passes, the filling after shorter rows included.
        head_rows: positions at which logits were asked for.
        cache_bytes: bytes of keys and values that were written to caches.
        nfe_rows: (B,) int64, forward passes that each row took part in; what the row would cost alone.
        encoder_passes: forward passes, counted in nfe, in which a BlockDenoiser read decided tokens.
        encoder_rows: (B,) int64, those of each row, counted in nfe_rows; None for any other denoiser. Tokens per decoder pass are
            generated / (nfe_rows - encoder_rows).
        guide_calls: calls of what guide= asks beside the model, a classifier or another denoiser; they are not in nfe.
        guide_rows: rows over all these calls.
        steps: steps of the driver, including those that cost no forward pass.
        seconds: split into denoiser and sampler.
        lengths: (B,) int64, each row's own length, prompt included; None for reals.
        sampler, options, distribution, version: what made it.
        settings: the driver's arguments, as numbers, strings and lists that json can write. "plugins" is there if something
            beside the sampler came from a plug-in, such as {"grid": "zoo-one:halves 1.0"}: what, from where, which version.
        trace: the state before the first step and the states after each step, on request.
        fill: (B, L) bool, the positions that the run had to fill; None for reals.
        tokenizer: of the denoiser, if it has one; what `texts` are made with.
        info: on request, name -> (steps, B, ...) tensor. Of token samplers:
            committed: (steps, B, L) bool, the positions whose token was written in the step.
            confidence: (steps, B, L) float32, the probability that the model gave that token when it was read, at
                temperature 1 unless the sampler asked otherwise; NaN at other positions, and at tokens that no prediction
                proposed (noise, constraints).
            logprob: its natural logarithm.
            And whatever the sampler's step returned. `step_map()` and `at_commit(name)` reduce it to (B, L).
    """

    x: Tensor
    nfe: int
    row_evals: int
    token_evals: int
    head_rows: int
    cache_bytes: int
    nfe_rows: Tensor
    steps: int
    seconds: Seconds
    lengths: Tensor | None
    sampler: str
    options: dict[str, Any]
    distribution: str
    version: str
    settings: dict[str, Any] = field(default_factory=dict)
    trace: tuple[State, ...] | None = None
    info: dict[str, Tensor] | None = None
    encoder_passes: int = 0
    guide_calls: int = 0
    guide_rows: int = 0
    encoder_rows: Tensor | None = None
    fill: Tensor | None = None
    tokenizer: TextTokenizer | None = None

    def rows(self) -> list[Tensor]:
        """Each row without padding: (length_i,) int64, prompt included; of reals (*shape)."""
        if self.lengths is None:
            return list(self.x)
        return [row[:length] for row, length in zip(self.x, self.lengths.tolist())]

    @property
    def generated(self) -> list[Tensor]:
        """Of each row what the run filled in, in the order of the positions: (n_i,) int64; of reals (*shape).

        Given tokens are left out, wherever they stand, and so is what lies after a stop phrase.
        """
        if self.fill is None:
            return self.rows()
        return [row[fill[: len(row)]] for row, fill in zip(self.rows(), self.fill)]

    def _filled_text(self, row: int) -> str:
        """The text of all that was filled in, a stop string included."""
        if self.tokenizer is None or self.fill is None:
            raise OptionError("this run has no text: its denoiser has no tokenizer (TokenDenoiser.tokenizer)")
        ids, fill = self.x[row].detach().cpu(), self.fill[row].cpu() & (self.x[row].cpu() >= 0)
        return "".join(continued(self.tokenizer, ids[:a], ids[a:b]) for a, b in segments(fill))

    def text(self, row: int) -> str:
        """What the run filled in of a row, as text; it ends before the first string in stop=. Its tokens keep the string.

        Raises:
            OptionError: the denoiser has no tokenizer.
        """
        strings = [part for part in self.settings.get("stop") or () if isinstance(part, str)]
        return cut(self._filled_text(row), strings)

    @property
    def texts(self) -> list[str]:
        """`text` of every row."""
        return [self.text(row) for row in range(len(self.x))]

    @property
    def finish_reasons(self) -> list[str]:
        """Of each row "stop" if what was filled in holds a stop rule, else "length": all positions were filled."""
        found = []
        for row, generated in enumerate(self.generated):
            ids, rules = generated.tolist(), self.settings.get("stop") or ()
            text = self._filled_text(row) if any(isinstance(rule, str) for rule in rules) else ""
            stopped = any(rule in text if isinstance(rule, str) else _holds(ids, rule) for rule in rules)
            found.append("stop" if stopped else "length")
        return found

    def _recorded(self) -> dict[str, Tensor]:
        if self.info is None or "committed" not in self.info:
            raise SamplersError("this run kept no record of its steps: use sample(..., info=True) with a token sampler")
        return self.info

    def step_map(self) -> Tensor:
        """(B, L) int64: the step in which each position was last written, from 0; -1 at given positions. Needs info=True."""
        return step_map(self._recorded()["committed"])

    def at_commit(self, name: str) -> Tensor:
        """(B, L) float32: info[name], such as "confidence" or "logprob", of the step in which each position was last written.

        NaN at given positions. Needs info=True.
        """
        return at_commit(self._recorded()["committed"], self._recorded()[name])

    def __repr__(self) -> str:
        rows = f"{len(self.x)} row{'s' if len(self.x) != 1 else ''}"
        if self.lengths is None:
            size = f"shape {tuple(self.x.shape[1:])}"
        else:
            low, high = int(self.lengths.min()), int(self.lengths.max())
            size = f"{low} tokens" if low == high else f"{low} to {high} tokens"
        return (
            f"<Sample: {rows} of {size} by {self.sampler!r}; {self.nfe} forward passes in {self.steps} steps, "
            f"{float(self.nfe_rows.double().mean()):.4g} forward passes per row; {self.seconds.total:.3g} s>"
        )


def _holds(ids: list[int], phrase: list[int]) -> bool:
    """Whether the phrase stands somewhere in the ids."""
    m = len(phrase)
    return any(ids[i : i + m] == phrase for i in range(len(ids) - m + 1))
