"""RADD: ancestral sampling that runs the model only in steps in which something appears."""

from __future__ import annotations

from dataclasses import dataclass

from ..prediction import Predict
from ..schedule import mask_schedule
from .ancestral import Ancestral
from .times import TimedState


@dataclass(frozen=True)
class Radd(Ancestral):
    """Ou et al. 2024 (RADD), arXiv 2406.03736, section 4: a prediction is reused while x does not change.

    The cache is kept per row and is lazy: which positions appear is known before the model is asked, so a row in which
    nothing appears is not evaluated. The expected cost is exactly sum_k [1 - (1 - r_k)^L], r_k = a_{k+1} - a_k
    (arXiv 2409.02908, appendix E). With the same seed the tokens are those of `ancestral`.

    Differs from the reference: it evaluates after a change (one more forward pass per row), keeps probabilities in float16,
    and its batch shares forward passes. The lazy form here is also exact for time-conditioned models: the forward passes that
    it leaves out are those whose result `ancestral` throws away.
    """

    name = "radd"
    cite = "Ou et al. 2024, Your Absorbing Discrete Diffusion Secretly Models the Conditional Distributions, arXiv 2406.03736"
    summary = "ancestral, with forward passes only in steps in which a token appears (lazy cache per row)"

    def step(self, predict: Predict, state: TimedState) -> TimedState:
        appears = state.open & (state.time < state.visible(1)[:, None])
        prediction = predict(state, appears, t=state.scheduled_level)
        return state.commit(appears, prediction.token)

    def expected_nfe(self, length: int, steps: int) -> float:
        """Sum_k [1 - (1 - r_k)^L]."""
        return mask_schedule(self.schedule).expected_nfe(length, steps)
