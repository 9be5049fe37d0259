"""Sample.info: what each step committed, how sure the model was, and what a sampler's step returns besides the state."""

from dataclasses import dataclass

import pytest
import torch

import samplers
from samplers.authoring import Predict, Sampler, TokenState
from samplers.testing import pretend_device
from samplers.testing.tiny import TinyMixture, TinyNet, for_any_model

pytestmark = pytest.mark.usefixtures("one_thread")
RUN = {"prompt": [[1, 2, 3], [4], []], "gen_length": 8, "seed": 2, "temperature": 1.0}


@pytest.mark.parametrize("name", for_any_model())
def test_info_changes_no_token_and_maps_every_position(name):
    facts = samplers.create(name).effective_facts
    revises = facts.revises
    net = TinyNet(visible_too=revises)
    free, out = (samplers.sample(net, name, **RUN, info=info) for info in (False, True))
    assert torch.equal(free.x, out.x) and free.nfe == out.nfe and free.info is None
    steps, (batch, length) = out.steps, out.x.shape
    assert all(out.info[k].shape == (steps, batch, length) for k in ("committed", "confidence", "logprob"))
    assert all(v.shape[:2] == (steps, batch) for v in out.info.values()), "what a sampler adds has rows and steps too"
    step, confidence = out.step_map(), out.at_commit("confidence")
    for i, prompt in enumerate(RUN["prompt"]):
        filled = slice(len(prompt), len(prompt) + 8)
        assert (step[i, : len(prompt)] == -1).all() and (step[i, filled] >= 0).all()
        assert confidence[i, : len(prompt)].isnan().all()
        if not revises:
            known = (confidence[i, filled] > 0) & (confidence[i, filled] <= 1)
            # A token that is drawn in place of a refused draft has no probability that the model was asked for.
            assert (known | (confidence[i, filled].isnan() & facts.copies)).all()
    if not revises:
        assert int(out.info["committed"].sum()) == 3 * 8, "every position is written once"
    assert torch.equal(out.at_commit("logprob"), confidence.log()) or torch.allclose(
        out.at_commit("logprob"), confidence.log(), equal_nan=True
    )


def test_the_recorded_probability_is_the_models():
    """One position per step at random: each token's probability under the model that saw what came before it."""
    net = TinyNet()
    out = samplers.sample(net, "random_order", **RUN, info=True, trace=True)
    for before, after in zip(out.trace, out.trace[1:]):
        k = int(after.step.max()) - 1
        for i, j in (after.x != before.x).nonzero().tolist():
            length = len(RUN["prompt"][i]) + 8
            rows = torch.zeros(1, length, dtype=torch.bool)
            rows[0, j] = True
            logits = net.predict(before.x[i : i + 1, :length], rows=rows)[0].double()
            logits[net.mask_id] = -torch.inf
            expected = logits.softmax(0)[after.x[i, j]]
            assert float(out.info["confidence"][k, i, j]) == pytest.approx(float(expected), abs=1e-6)


def test_info_on_a_device_needs_no_other_path():
    for name in ("low_confidence", "threshold"):
        here = samplers.sample(TinyNet(), name, **RUN, info=True)
        with pretend_device():
            there = samplers.sample(TinyNet(), name, **RUN, info=True)
        assert torch.equal(here.step_map(), there.step_map())
        assert torch.equal(here.at_commit("confidence")[1, 1:9], there.at_commit("confidence")[1, 1:9])


def test_info_with_a_head_and_with_caches():
    model = samplers.models.zoo.load("text-mdm") if hasattr(samplers.models, "zoo") else None
    if model is None:
        pytest.skip("no model in the box")
    out = samplers.sample(model, "low_confidence", gen_length=16, block_length=8, cache="dual", info=True)
    assert (out.step_map()[0] >= 0).all() and (out.at_commit("confidence")[0] > 0).all()


@dataclass(frozen=True)
class Tells(Sampler[TokenState]):
    """A sampler that returns what it saw."""

    name, family = "tells", "masked"
    KEY = "margin"

    def step(self, predict: Predict, state: TokenState):
        seen = predict(state, want=("confidence", "margin"))
        key = self.KEY if int(state.step.max()) < 3 else getattr(self, "LATER", self.KEY)
        return state.commit_best(seen.confidence, seen.token, k=1), {key: seen.margin, "left": state.count}


def test_a_step_may_return_what_it_saw():
    out = samplers.sample(TinyNet(), Tells(), gen_length=5, batch=2, info=True)
    assert out.info["margin"].shape == (5, 2, 5) and out.info["left"].tolist() == [[k, k] for k in (5, 4, 3, 2, 1)]
    plain = samplers.sample(TinyNet(), Tells(), gen_length=5, batch=2)
    assert torch.equal(plain.x, out.x) and plain.info is None
    with pytest.raises(samplers.SamplersError, match="info=True"):
        plain.step_map()

    class Clashes(Tells):
        KEY = "committed"

    with pytest.raises(samplers.SamplersError, match="committed, which is a name that the driver uses"):
        samplers.sample(TinyNet(), Clashes(), gen_length=5, info=True)

    class Changes(Tells):
        LATER = "other"

    with pytest.raises(samplers.SamplersError, match="every step must return the same names"):
        samplers.sample(TinyNet(), Changes(), gen_length=5, info=True)


def test_info_of_reals_is_what_the_step_returns():
    out = samplers.sample(TinyMixture(), "ddim", steps=3, info=True)
    assert out.info == {}
    with pytest.raises(samplers.SamplersError, match="token sampler"):
        out.step_map()
