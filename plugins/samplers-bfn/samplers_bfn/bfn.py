"""The sampler of the paper that introduced Bayesian flow networks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch.nn.functional as F

from samplers.authoring import Facts, Point

from .sampler import FlowSampler, FlowState, draw_tokens, sde_first_order

if TYPE_CHECKING:
    from .family import FlowPredictor


@dataclass(frozen=True)
class Bfn(FlowSampler):
    """Graves et al. 2023, arXiv 2308.07037, algorithms 3 (reals) and 9 (tokens): what the network says becomes a measurement,
    and the input distribution is updated by Bayes' rule.

    A step of accuracy a draws y ~ N(x_0, 1 / a), x_0 what the network predicts, and mu becomes (r mu + a y) / (r + a) with the
    precision r = 1 + beta; of tokens it draws each token k from the network's distribution, and the logits grow by
    y ~ N(a (K onehot(k) - 1), a K). For reals this is the step of SDE-BFN-Solver++1 (sde_first_order).

    The paper begins at time 0, where the input distribution is the prior; here a run begins at `eta`, where it differs from that
    by a measurement of accuracy beta(eta), 1e-10 beta_1 of tokens. The paper's n steps are n + 1 evaluations here. Its code
    spends n, by leaving out the last update and telling the network that it was made.
    """

    name, family = "bfn", "bayesian_flow"
    cite = "Graves et al. 2023, Bayesian Flow Networks, arXiv 2308.07037"
    summary = "the paper's own sampler of Bayesian flow networks, for reals and tokens"
    facts = Facts(stochastic=True)
    order: ClassVar[int] = 1

    def update(self, predict: FlowPredictor, state: FlowState, s: Point, t: Point) -> FlowState:
        if state.flow.kind == "continuous":
            x0 = predict(state.x, s)
        else:
            tokens = draw_tokens(state, predict.probabilities(state.x, s))
            x0 = predict.as_data(F.one_hot(tokens, state.x.shape[-1]))
        return self.advance(state, sde_first_order(state, x0, s, t))
