"""A sampler of your own, beside a built-in one, on a problem whose truth is known. The guide: docs/writing_a_sampler.md."""

from dataclasses import dataclass

import samplers
from samplers.authoring import DRAW_FIRST_FREE, Facts, Predict, Sampler, TokenState, even_count, ops, option


@dataclass(frozen=True)
class LuckyEntropy(Sampler[TokenState]):
    """Low entropy first, with a little chance in the order so that rows do not all decide the same cells first.

    The order depends on entropies and on random numbers of its own, and on no drawn token: one position per step is exact.
    """

    name, family, cite = "lucky_entropy", "masked", "an example of the sampler zoo"
    summary = "positions of low entropy, with chance in their order"
    facts = Facts(bias="exact")

    chance: float = option(0.5, "nats of uniform noise on the entropies", ge=0)

    def step(self, predict: Predict, state: TokenState) -> TokenState:
        prediction = predict(state, want="entropy")
        noise = state.rng.positions(state.x.shape[1], state.step, DRAW_FIRST_FREE)  # (B, L)
        score = prediction.entropy + self.chance * noise
        chosen = ops.select(score, state.open, k=even_count(state), lowest=True).chosen
        return state.commit(chosen, prediction.token)


def main() -> None:
    problem = samplers.problems.create("sudoku4")
    denoiser = problem.denoiser("masked")
    for steps in (16, 8):
        for sampler in (LuckyEntropy(), samplers.create("neg_entropy"), samplers.create("random_order")):
            out = samplers.sample(denoiser, sampler, batch=500, steps=steps, temperature=1.0)
            invalid = problem.score(out)["invalid"]
            print(f"{steps:2} steps  {sampler.name:14} invalid grids {invalid.value:6.1%}")


if __name__ == "__main__":
    main()
