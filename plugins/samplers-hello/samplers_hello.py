"""A sampler in a package of its own: masked diffusion read from left to right, a few positions per step.

docs/new.md writes it step by step. tests/test_left_to_right.py has the plain loop that it was made from.
"""

from __future__ import annotations

from dataclasses import dataclass

from samplers.authoring import Facts, Predict, Sampler, TokenState, min_count, option

samplers_interface = 1  # the interface of the sampler zoo that this was written for


@dataclass(frozen=True)
class LeftToRight(Sampler[TokenState]):
    """Autoregressive order on a masked model (Bengio and Bengio 2000, chain rule), `width` positions per step.

    The choice of position ignores the drawn tokens: with width 1 the model's distribution is drawn exactly.
    """

    name = "left_to_right"
    family = "masked"
    cite = "Bengio and Bengio 2000, Modeling High-Dimensional Discrete Data with Multi-Layer Neural Networks"
    summary = "the leftmost masked positions first"
    facts = Facts(bias="exact")

    width: int = option(1, "positions per step", ge=1)

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        width = min_count(state).clamp_min(self.width)  # (B,) `steps` is a cap: more if the steps run out
        chosen = state.open & (state.open.cumsum(1) <= width[:, None])  # (B, L)
        return state.commit(chosen, predict(state, chosen).token)
