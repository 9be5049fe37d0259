"""APD: a drafted run stands as far as a smaller autoregressive model, weighed against the draft's own, leaves it as it is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..canvas import Layout
from ..checks import function_of, is_function, name_of, shown
from ..denoiser import TokenDenoiser
from ..errors import OptionError
from ..prediction import Logits, Predict
from ..random import DRAW_GUMBEL
from ..sampler import Conformance, Facts, Sampler, option
from .plans import min_count
from .speculation import SpanState, first_run, stands_until, verification


def parse_verifier(verifier: Any) -> None:
    """OptionError if it cannot say what comes next."""
    if isinstance(verifier, TokenDenoiser) and not (verifier.predicts_next and verifier.attention == "causal"):
        raise OptionError(
            "a denoiser that verifies must be causal and predict the next token (predicts_next); or give a function of tokens "
            "(B, L) that returns the logits (B, L, V) of the token after each"
        )
    is_function(verifier)


@dataclass(frozen=True)
class APD(Sampler[SpanState]):
    """Israel et al. 2025 (adaptive parallel decoding), arXiv 2506.00413: a parallel draft, cut where another model disagrees.

    A step drafts the next `lookahead` masks: token x_i is the best one of log p_i / T + g_i, g Gumbel noise, a draw from p_i at
    temperature T. Then a small autoregressive model reads the draft and says r_i, the distribution of token i after those
    before it. The draft stands up to the first position after its first at which x_i is not also the best one of
    (R log p_i + (1 - R) log r_i) / T + g_i with the same g_i. The first token always stands: there p_i is given all before it.

    The noise of a position is kept for the whole run. So with R = 0 and a model whose first answer is that of the verifier, as
    of an exact model and its exact chain rule, every token is the best one of log r_i / T + g_i whichever step commits it: the
    tokens, and hence the distribution, are those of one token per step. With R = 1 everything stands. Between them the
    distribution is the paper's own, between that of the verifier and that of the parallel draft.

    Without a `verifier` the model judges itself, at block size 1 (samplers.masked.speculation), in a second forward pass; the
    model must then take masks. A verifier's passes are not in `nfe`, which counts the model's: it is called once in a step, and
    sees the run's tokens with 0 in place of masks, which stand to the right of all that it is asked about. A row is what it is
    alone only if the verifier treats rows apart.

    Differs from the reference code: the canvas is not recomputed with a limited window of keys and values (its W); the noise
    is drawn for the run in place of the step; `top_k` and `top_p` act on the model's own distribution; several
    temperatures in a batch are refused; `steps` below the number of positions is a cap on passes, for which drafted tokens are
    filled from left to right.
    """

    name = "apd"
    family = "masked"
    cite = "Israel et al. 2025, Accelerating Diffusion LLMs via Adaptive Parallel Decoding, arXiv 2506.00413"
    summary = "a drafted run, cut where a small autoregressive model would draw another token"
    default_temperature = 0.0
    facts = Facts(bias="exact", stores_logits=True, needs=("masks",), sweep=("ratio", (0.0, 0.3, 0.5, 0.7, 0.9, 1.0)))
    conformance = Conformance(one_at_a_time={"lookahead": 1})

    ratio: float = option(
        0.5, "R, the weight of the model against the verifier; 1: all that is drafted stands", ge=0, le=1
    )
    lookahead: int = option(16, "masks that are drafted in a step", ge=1)
    verifier: TokenDenoiser | Callable[[Tensor], Tensor] | str | None = option(  # noqa: RUF009 - a frozen field
        None,
        "function of tokens (B, L) that returns the logits (B, L, V) of the token after each, or its name, package.module:name; "
        "or a causal denoiser that predicts the next token; none: the model itself, at block size 1",
        check=parse_verifier,
    )

    @property
    def effective_facts(self) -> Facts:
        return self.facts if self._itself else dataclasses.replace(self.facts, needs=())

    @property
    def _itself(self) -> bool:
        """Whether the model is asked a second time, about its own draft."""
        return self.verifier is None and self.ratio < 1

    def values(self) -> dict[str, Any]:
        """The options; of a verifier its name, which results can record."""
        values, verifier = super().values(), self.verifier
        if isinstance(verifier, TokenDenoiser):
            values["verifier"] = verifier.name
        else:
            values["verifier"] = name_of(verifier)
        return values

    def init(self, canvas: Layout) -> SpanState:
        if isinstance(self.verifier, TokenDenoiser) and self.verifier.vocab_size != canvas.vocab_size:
            raise OptionError(
                f"option 'verifier' of sampler 'apd' is denoiser {self.verifier.name!r} of {self.verifier.vocab_size} tokens; "
                f"the model has {canvas.vocab_size}, and both must have the same"
            )
        return SpanState.of(canvas)

    def step(self, predict: Predict, state: SpanState) -> SpanState:
        least = (state.least if self._itself else min_count(state))[:, None]
        number, run = state.open.cumsum(1), first_run(state.open)
        drafted = state.open & (number <= least.clamp(min=self.lookahead))
        draft = predict.logits(state, drafted)
        own = draft.value if predict.temperature == 0 else predict.probabilities(draft).log()
        noise = torch.zeros_like(own, dtype=torch.float64)
        if predict.temperature > 0:
            uniform = state.rng.tokens(draft.row, draft.position, own.shape[1], DRAW_GUMBEL)
            noise = -torch.log(-torch.log(uniform.clamp_min(2.0**-54)))
        best = (own + noise).argmax(1)
        token = draft.on_canvas(best, state.x)

        run = run & drafted & (state.verifies | (not self._itself))[:, None]
        agreed = run if self.ratio == 1 else self._agreed(predict, state, draft, own, noise, token, run)
        stands, _ = stands_until((number > 1) & ~agreed, run)
        passes = state.with_passes(drafted, run & (number > 1)) if self._itself else state.passes
        return state.commit(stands | (state.open & (number <= least)), token, passes=passes)

    def _agreed(
        self, predict: Predict, state: SpanState, draft: Logits, own: Tensor, noise: Tensor, token: Tensor, run: Tensor
    ) -> Tensor:
        """(B, L) bool: drafted positions whose token is the best one of the mixture as well; see the class for the arguments."""
        if self.verifier is None:
            after = run & (run.cumsum(1) > 1)
            lines = verification(predict, state, token, run, after, state.size)
            other = predict.seen_logits(state, *lines.arguments())
        else:
            said = self._ask(torch.where(run, token, state.x), state)
            other = Logits(draft.row, draft.position, said[draft.row, (draft.position - 1).clamp(min=0)].float())
        number = draft.on_canvas(torch.arange(len(own), device=own.device), torch.zeros_like(state.x))
        at = number[other.row, other.position]  # the number of each judged position among those that are drafted
        mixed = (1 - self.ratio) * other.value / (predict.temperature or 1.0)
        if self.ratio > 0:  # 0 times minus infinity is no number
            mixed = mixed + self.ratio * own[at]
        mixed = mixed.masked_fill(own[at] == -torch.inf, -torch.inf)
        agreed = (mixed + noise[at]).argmax(1) == token[other.row, other.position]
        return other.on_canvas(agreed, torch.zeros_like(run))

    def _ask(self, x: Tensor, state: SpanState) -> Tensor:
        """(B, L, V): what the verifier says of the token after each of x, (B, L)."""
        verifier = self.verifier if isinstance(self.verifier, TokenDenoiser) else function_of(self.verifier)
        assert verifier is not None
        ask = verifier.predict if isinstance(verifier, TokenDenoiser) else verifier
        said = ask(torch.where((x == state.canvas.mask_id) | (x < 0), 0, x))
        shape = (*x.shape, state.canvas.vocab_size)
        if not isinstance(said, Tensor) or tuple(said.shape) != shape or not said.is_floating_point():
            what = f"{said.dtype} of shape {tuple(said.shape)}" if isinstance(said, Tensor) else shown(said)
            raise OptionError(
                f"option 'verifier' of sampler 'apd' returned {what}; it must return logits of shape {shape}, of the token after "
                "each position"
            )
        return said
