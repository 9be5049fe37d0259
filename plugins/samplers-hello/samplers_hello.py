"""A sampler in a package of its own: masked diffusion read from left to right, a few positions a step."""

from dataclasses import dataclass

from samplers import Sampler, option
from samplers.masked.parts import at_least


@dataclass(frozen=True)
class LeftToRight(Sampler):
    """Autoregressive order on a masked model (Bengio and Bengio 2000, chain rule), `width` positions a step.

    The choice of position ignores the drawn tokens: with width 1 the model's law is drawn exactly.
    """

    name = "left_to_right"
    family = "masked"
    cite = "Bengio and Bengio 2000, Modeling High-Dimensional Discrete Data with Multi-Layer Neural Networks"
    summary = "the leftmost masked positions first"
    exact_order = True

    width: int = option(1, "positions a step", ge=1)

    def step(self, believe, state):
        width = at_least(state).clamp_min(self.width)  # (B,) `steps` is a cap: more where the steps run out
        chosen = state.open & (state.open.cumsum(1) <= width[:, None])  # (B, L)
        return state.commit(chosen, believe(state, chosen).token)
