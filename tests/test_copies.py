"""Copies of rows: what samplers over candidates and particles are made of."""

import dataclasses
from dataclasses import dataclass

import pytest
import torch

import samplers
from samplers import OptionError, TokenDenoiser, registry
from samplers.authoring import DraftState, Facts, Logits, Sampler, SequenceState, TokenState, first_state, option
from samplers.models import zoo
from samplers.random import Rng
from samplers.testing.tiny import as_asked

pytestmark = pytest.mark.usefixtures("one_thread")

PROBLEM = samplers.problems.create("sudoku4")
BASES = [name for f in ("masked", "uniform") for name in samplers.list_samplers(family=f)]
BASES = [n for n in BASES if not (registry.load(n).facts.sequential or registry.load(n).facts.copies)]
BASES = [n for n in BASES if "attends" not in registry.load(n).facts.needs]  # an exact problem has no attention


@dataclass(frozen=True, eq=False)
class HeldState(TokenState):
    """wide: the state of all copies."""

    SHARED = ("wide",)

    wide: TokenState | None = None


@dataclass(frozen=True, eq=False)
class HeldDraft(DraftState):
    """The same of tokens that may change."""

    SHARED = ("wide",)

    wide: TokenState | None = None


@dataclass(frozen=True)
class AsCopies(Sampler[HeldState]):
    """Runs another sampler on K copies of each row, and is copy 0; between two steps the copies change places as told."""

    name, family, summary = "as_copies", "masked", "for tests"
    facts = Facts(revises=True)
    default_temperature = 1.0

    base: object = option(None)
    number: int = option(3)
    apart: bool = option(True)
    swap: object = option(None)  # called with the number of the step: (K,) copies, or None

    def init(self, canvas):
        return self.held(canvas, first_state(self.base, canvas.copies(self.number, self.apart)))

    def held(self, canvas, wide):
        first = wide.take(torch.arange(len(canvas.x)) * self.number, canvas)
        kind, base = (HeldDraft, DraftState) if isinstance(wide, DraftState) else (HeldState, TokenState)
        return kind(**{f.name: getattr(first, f.name) for f in dataclasses.fields(base)}, wide=wide)

    def step(self, predict, state):
        copies = predict.copies(self.number, self.apart)
        wide = copies.step(self.base, state.wide)
        if self.swap is not None and (places := self.swap(int(state.step.max()))) is not None:
            group = torch.arange(len(state.x)).repeat_interleave(self.number) * self.number
            wide = copies.rearranged(wide, group + torch.tensor(places).repeat(len(state.x)))
        return self.held(state.canvas, wide)


class Uniform(AsCopies):
    family = "uniform"


@pytest.mark.parametrize("name", BASES)
def test_copy_zero_of_any_sampler_is_the_run_itself(name):
    # Its state follows into copies, whatever fields it has: through take() in both directions.
    base = registry.create(name)
    cls = AsCopies if base.family == "masked" else Uniform
    denoiser = as_asked(type(base), PROBLEM.denoiser(base.family))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cls, "extra_steps", base.extra_steps)
        more = {"steps": 6, "batch": 2, "seed": 3, "temperature": 0.8}
        alone = samplers.sample(denoiser, base, **more)
        copied = samplers.sample(denoiser, cls(base=base, swap=lambda k: [0, 0, 1] if k == 1 else None), **more)
        single = samplers.sample(denoiser, cls(base=base, number=1), **more)
    assert torch.equal(alone.x, copied.x) and torch.equal(alone.x, single.x)
    # A row takes part once, however many of its copies do; and as long as one of them goes on.
    assert torch.equal(alone.nfe_rows, single.nfe_rows) and (copied.nfe_rows >= alone.nfe_rows).all()
    assert (copied.nfe_rows <= copied.nfe).all()


def test_copies_draw_for_themselves_if_they_are_apart():
    denoiser = PROBLEM.denoiser("masked")
    states = {}
    for apart in (False, True):
        run = samplers.stream(denoiser, AsCopies(base=registry.create("random_order"), apart=apart), batch=2)
        *_, states[apart] = run
    same = states[False].wide.x.view(2, 3, -1)
    assert torch.equal(same[:, :1].expand_as(same), same)
    different = states[True].wide.x.view(2, 3, -1)
    assert torch.equal(different[:, 0], same[:, 0])
    assert len({tuple(row) for row in different.flatten(0, 1).tolist()}) == 6
    rng = Rng.of(5, 4).copies(3, apart=True)
    assert len(set(rng.row.tolist())) == 12 and rng.row[::3].tolist() == [0, 1, 2, 3]


@dataclass(frozen=True)
class Tries(Sampler[TokenState]):
    """Fills the best open position in copy 0 and the k-th best in copy k, and goes on with the copy that it is told."""

    name, family, summary = "tries", "masked", "for tests"
    default_temperature = 1.0

    number: int = option(2)
    winner: int = option(0)

    def step(self, predict, state):
        copies = predict.copies(self.number)
        prediction = predict(state, want="confidence") if state.ready is None else state.ready
        wide = copies.spread(state)
        score = prediction.confidence.repeat_interleave(self.number, 0)
        rank = score.argsort(dim=1, descending=True, stable=True).argsort(dim=1, stable=True)
        copy = (torch.arange(len(wide.x)) % self.number).minimum(wide.count - 1)
        wide = wide.commit(rank == copy[:, None], prediction.token.repeat_interleave(self.number, 0))
        answer = copies(wide, want="confidence")
        return copies.pick(wide, torch.full((len(state.x),), self.winner), answer)


@pytest.mark.parametrize("cache", [None, "prefix", "dual", "delayed(3)"])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_winner_answers_for_the_next_step(cache, temperature):
    # Copy 0 does what low_confidence does, so the run is low_confidence's, with one forward pass more at the beginning and
    # one less at the end; and so it is with every cache, which follows the winner.
    denoiser = zoo.load("text-mdm")
    more = {"batch": 2, "gen_length": 12, "block_length": 6, "cache": cache, "temperature": temperature, "seed": 2}
    base = samplers.sample(denoiser, "low_confidence", **more)
    for number in (1, 3):
        tried = samplers.sample(denoiser, Tries(number=number), **more)
        assert torch.equal(base.x, tried.x)
        assert tried.nfe == base.nfe and torch.equal(tried.nfe_rows, base.nfe_rows)


def test_a_cache_follows_a_winner_that_is_not_the_first():
    denoiser = zoo.load("text-mdm")
    more = {"batch": 2, "gen_length": 16, "block_length": 16, "temperature": 0.0}
    for winner in (0, 1, 2):
        plain = samplers.sample(denoiser, Tries(number=3, winner=winner), **more)
        # one block: everything is given in every step, so the cache must not change a token
        cached = samplers.sample(denoiser, Tries(number=3, winner=winner), cache="dual", **more)
        assert torch.equal(plain.x, cached.x)


def test_rows_alone_pool_and_constraints():
    denoiser = PROBLEM.denoiser("masked")
    whole = samplers.sample(denoiser, Tries(number=3, winner=1), batch=3, temperature=1.0)
    for i in range(3):
        one = samplers.sample(denoiser, Tries(number=3, winner=1), first_row=i, temperature=1.0)
        assert torch.equal(whole.x[i], one.x[0])
    pool = samplers.Pool(denoiser)
    pool.add(Tries(number=3, winner=1), first_row=1, temperature=1.0)
    (run,) = list(pool)
    assert torch.equal(run.result().x[0], whole.x[1]) and run.result().nfe == whole.nfe
    # A constraint may bar what was drawn for the next step, so nothing is kept from one step to the next.
    barred = torch.zeros(16, 5, dtype=torch.bool)
    barred[:2, 0] = True  # no first digit in the first two cells, from the second step on

    def later(state):
        return samplers.Constraint(forbid=barred) if int(state.step) else None

    out = samplers.sample(denoiser, Tries(number=2), constrain=later, trace=True)
    assert not (out.x[0, :2] == 0)[out.trace[1].open[0, :2]].any()
    assert out.nfe == 2 * 16 - 1, "nothing is kept, and the last step has nothing to look ahead to"
    info = samplers.sample(denoiser, Tries(number=2), info=True).info
    assert torch.isfinite(info["logprob"][info["committed"]]).all()


def test_logits_of_several_forward_passes_are_taken_by_row():
    row, position = torch.tensor([1, 1, 0, 2, 0]), torch.tensor([3, 4, 7, 0, 8])  # row 1 had a pass of its own, first
    taken = Logits(row, position, position[:, None].float()).take(torch.tensor([2, 1, 1, 0]), 3)
    assert taken.row.tolist() == [0, 1, 1, 2, 2, 3, 3]
    assert taken.position.tolist() == [0, 3, 4, 3, 4, 7, 8] == taken.value[:, 0].tolist()


def test_what_cannot_be_copied_is_refused():
    with pytest.raises(OptionError, match="copies of rows, and a sequential sampler"):
        samplers.sample(zoo.load("text-refusion"), Sequential(), gen_length=16)

    def told(ids, previous):
        return torch.zeros(*ids.shape, 5) + previous

    conditioned = TokenDenoiser.wrap(told, vocab_size=5, mask_id=4, self_conditioned=True)
    with pytest.raises(OptionError, match="self_conditioned"):
        samplers.sample(conditioned, Tries(), gen_length=3)
    kept = AsCopies(base=registry.create("random_order"), swap=lambda k: [1, 1, 0])
    assert samplers.sample(conditioned, kept, gen_length=3).nfe == 3


@dataclass(frozen=True)
class Sequential(Sampler[SequenceState]):
    name, family, summary = "sequential", "masked", "for tests"
    facts = Facts(sequential=True)

    def init(self, canvas):
        return SequenceState.begin(canvas)

    def step(self, predict, state):
        return predict.copies(2).spread(state)
