"""speculative_copies: token for token with a plain loop, exact in any order, and as many passes as theory says."""

import math

import numpy as np
import pytest
import torch
from laws import Chain, mild, rows_are_what_they_are_alone
from test_parity import MASK, PROMPT, Net, V, blocks_of, fresh, masks, softmax

import samplers
from samplers import DenoiserError, OptionError, TokenDenoiser
from samplers.models import zoo
from samplers.random import DRAW_ACCEPT, DRAW_GUESS, DRAW_POSITION, DRAW_RESIDUAL, DRAW_TOKEN, uniform
from samplers.testing.fit import BOUND, fits
from samplers.testing.tiny import TinyJoint, TinyNet

pytestmark = pytest.mark.usefixtures("one_thread")

NAME, SEED = "speculative_copies", 3
ORDERS = ("random", "entropy", "spread")


def draw(problem, **how):
    return samplers.sample(problem, NAME, **({"temperature": 1.0, "seed": 1} | how))


def counted(problem, out):
    return torch.bincount(problem.index(out.x), minlength=len(problem.law)).double()


# ---------------------------------------------------------------------------------------------- a plain loop


def inverse(p, u):
    """The id at which the cumulative sum of p passes u times its total."""
    c = np.cumsum(p)
    return int(np.searchsorted(c, u * c[-1], side="right"))


def reversed_bits(i, bits=12):
    return int(format(i, f"0{bits}b")[::-1], 2)


def plain(net, length, number, order, block, deal, temperature):
    """One row, one question after another: the canvas after each pass, and the positions that each pass filled."""

    def number_of(i, step, what):
        return float(uniform(SEED, 0, i, step, what))

    x, states, step = fresh(length), [], 0
    for span, passes in zip(blocks_of(length, block), deal, strict=True):
        q, taken = {}, 0
        while left := masks(x, span):
            key = {
                "random": lambda i: number_of(i, 0, DRAW_POSITION),
                "spread": reversed_bits,
                "entropy": lambda i, q=q: (
                    -float((softmax(q[i]) * np.log(softmax(q[i]) + 1e-300)).sum()) if i in q else 0.0
                ),
            }[order]
            chain = sorted(left, key=lambda i: (i not in q, key(i), i))
            dist = {i: softmax(q[i] / temperature) for i in q}
            draft = {i: inverse(dist[i], number_of(i, step, DRAW_GUESS)) for i in chain if i in dist}
            y = list(x)
            for j, i in enumerate(chain):
                logits = net.logits(y)
                p = softmax(logits / temperature)
                if i not in draft:
                    y[i] = inverse(p[i], number_of(i, step, DRAW_RESIDUAL))
                    break
                v = draft[i]
                if number_of(i, step, DRAW_ACCEPT) * dist[i][v] >= p[i][v]:
                    y[i] = inverse(np.maximum(p[i] - dist[i], 0), number_of(i, step, DRAW_RESIDUAL))
                    break
                y[i] = v
                if j + 1 == number:
                    break
            q = {i: logits[i] for i in masks(y, span)}
            taken += 1
            if taken == passes:
                y = [inverse(p[i], number_of(i, step, DRAW_TOKEN)) if i in q else y[i] for i in range(len(y))]
            x, step = y, step + 1
            states.append(x)
    return states


PLANS = [(12, 12, None, [12]), (12, 12, 4, [4]), (14, 7, None, [7, 7]), (13, 5, 7, [3, 2, 2])]


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("length", "block", "steps", "deal"), PLANS)
def test_it_is_the_plain_loop(order, length, block, steps, deal):
    for seed, number, temperature in ((0, 1, 1.0), (1, 3, 1.0), (2, 8, 0.6), (3, 40, 1.3)):
        net = Net(seed, sharp=2.0)
        how = {"prompt": PROMPT, "gen_length": length, "block_length": block, "steps": steps, "seed": SEED}
        out = draw(net.wrapped(), drafts=number, order=order, temperature=temperature, trace=True, **how)
        ours = [s.x[0].tolist() for s in out.trace][1:]
        assert ours == plain(net, length, number, order, block, deal, temperature), (seed, number)
        assert out.nfe == len(ours), "a step is one forward pass, however many copies it has"


# ---------------------------------------------------------------------------------------------- distributions


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("drafts", [1, 4])
def test_exact_on_a_table(order, drafts):
    problem = TinyJoint(4, 2)
    out = draw(problem, batch=6000, order=order, drafts=drafts)
    assert fits(counted(problem, out), problem.law) > BOUND
    assert int(out.nfe_rows.max()) <= 4 and (drafts == 1) == bool((out.nfe_rows == 4).all())


@pytest.mark.parametrize(
    "how", [{"block_length": 2}, {"window": "sliding(2)"}, {"block_length": 3, "order": "entropy"}]
)
def test_exact_in_blocks_and_windows(how):
    problem = TinyJoint(4, 2)
    assert fits(counted(problem, draw(problem, batch=6000, **how)), problem.law) > BOUND


def test_impossible_drafts_cost_nothing_but_a_pass():
    # Of a context that cannot be the table says nothing: only -inf. Such copies never stand, and are no error.
    problem = TinyJoint(4, 2)
    problem.law = torch.where(problem.strings.sum(1) % 2 == 0, problem.law, 0.0)
    problem.law /= problem.law.sum()
    out = draw(problem, batch=6000, drafts=3)
    assert fits(counted(problem, out), problem.law) > BOUND


@pytest.mark.parametrize(
    ("name", "order", "most"),
    [
        *(
            ("sudoku4", "random", 5.0),
            ("sudoku4", "entropy", 5.8),
            ("parity", "random", 2.0),
            ("mirror", "random", 4.0),
        ),
        *(("mirror", "spread", 4.0), ("shuffle", "random", 4.0), ("dyck", "random", 4.5)),
    ],
)
def test_exact_on_problems_in_fewer_passes(name, order, most):
    problem = samplers.problems.create(name)
    out = draw(problem.denoiser("masked"), batch=1000, order=order)
    score = problem.score(out)
    assert score.extras["chi2_p"] > BOUND and score["invalid"].value == 0
    assert float(out.nfe_rows.double().mean()) <= most


def test_exact_under_temperature_and_truncation():
    # In a fixed order what one position at a time gives can be enumerated: 0, 2, 1, the reversed bits of the positions.
    problem, temperature, top_k, top_p = TinyJoint(3, 4, skew=1.0), 0.8, 3, 0.85
    chain = Chain(problem)

    def kept(p):
        p = p ** (1 / temperature)
        rank = np.argsort(-p, kind="stable")[:top_k]
        share = np.cumsum(p[rank]) / p[rank].sum()
        stays = rank[: int(np.searchsorted(share, top_p)) + 1]
        out = np.zeros_like(p)
        out[stays] = p[stays] / p[stays].sum()
        return out

    law = []
    for string in chain.strings:
        state, weight = chain.start(), 1.0
        for i in (0, 2, 1):
            if weight:
                weight *= kept(chain.p(state)[i])[string[i]]
            state = (*state[:i], string[i], *state[i + 1 :])
        law.append(weight)
    out = draw(problem, batch=6000, order="spread", temperature=temperature, top_k=top_k, top_p=top_p)
    assert fits(counted(problem, out), law) > BOUND
    assert fits(counted(problem, out), problem.law) < 1e-9


def test_one_pass_is_the_product_of_the_marginals():
    problem = TinyJoint(3, 2)
    marginals = Chain(problem).p((2, 2, 2))
    law = [math.prod(marginals[i][v] for i, v in enumerate(s)) for s in problem.strings.tolist()]
    out = draw(problem, batch=6000, steps=1)
    assert out.nfe == 1 and fits(counted(problem, out), law) > BOUND
    for how in (
        {"steps": 2},
        {"steps": 5, "order": "entropy"},
        {"steps": 6, "window": "sliding(4)"},
        {"steps": 7, "block_length": 6},
    ):
        assert int(draw(TinyNet(), gen_length=20, batch=4, **how).nfe_rows.max()) <= how["steps"]


# ---------------------------------------------------------------------------------------------- how many passes


@pytest.mark.parametrize("drafts", [1, 3, 8, 64])
def test_independent_positions_take_all_drafts(drafts):
    # p is q, so no draft is rejected: one position in the first pass, and `drafts` in each one after it.
    table = torch.randn(20, V, generator=torch.Generator().manual_seed(0))
    out = draw(
        TokenDenoiser.wrap(lambda ids: table.expand(len(ids), -1, -1), vocab_size=V, mask_id=MASK, length=20),
        drafts=drafts,
    )
    assert out.nfe == 1 + math.ceil(19 / drafts)
    copies = [1] + [min(drafts, 19 - done) for done in range(0, 19, drafts)]
    assert out.row_evals == sum(copies)


def test_the_share_of_accepted_drafts_is_one_less_the_total_variation():
    # Three positions in the order 0, 2, 1: pass 2 is the last if its first draft, of position 2, stays.
    problem = mild(3, 4, 1.5)
    chain, start = Chain(problem), (4, 4, 4)
    q, first = chain.p(start)[2], chain.p(start)[0]
    expected = sum(first[v] * np.minimum(q, chain.p((v, 4, 4))[2]).sum() for v in range(4))
    rows = 8000
    out = draw(problem, batch=rows, order="spread")
    share = float((out.nfe_rows == 2).double().mean())
    assert abs(share - expected) < 4 * math.sqrt(expected * (1 - expected) / rows)
    assert 0.6 < expected < 0.95 and set(out.nfe_rows.tolist()) == {2, 3}


@pytest.mark.parametrize(
    "how", [{}, {"block_length": 5}, {"stop": [[2], [5, 1]]}, {"cfg_scale": 1.0}, {"forbid": [1, 7]}]
)
def test_greedy_tokens_are_those_of_random_order_one_at_a_time(how):
    run = {"prompt": [[1, 2], [3, 4, 5]], "gen_length": 17, "temperature": 0.0, "seed": 4} | how
    one, ours = (samplers.sample(TinyNet(), name, **run) for name in ("random_order", NAME))
    assert torch.equal(one.x, ours.x) and torch.equal(one.lengths, ours.lengths)
    assert (ours.nfe_rows <= one.nfe_rows).all()


# ---------------------------------------------------------------------------------------------- rows, caches, settings


@pytest.mark.parametrize(
    "how",
    [
        {"cache": "dual", "block_length": 4},
        {"cache": "delayed(3)", "steps": 4},
        {"order": "entropy"},
        {"window": "sliding(5)", "steps": 5, "drafts": 3},
        {"stop": [[2]], "block_length": 6, "order": "spread", "top_p": 0.8},
    ],
)
def test_rows_alone(how):
    # Entropies on a canvas of masks alone are equal but for rounding, which in float32 depends on the batch.
    dtype = torch.float64 if "order" in how else torch.float32
    rows_are_what_they_are_alone(zoo.load("text-mdm", dtype=dtype), NAME, **how)


def test_a_cache_that_holds_nothing_changes_nothing_and_runs_share_passes():
    model = zoo.load("text-mdm")
    run = {"gen_length": 10, "batch": 2, "seed": 2, "temperature": 1.0}
    plain_, dual = (samplers.sample(model, NAME, cache=cache, **run) for cache in (None, "dual"))
    assert torch.equal(plain_.x, dual.x) and torch.equal(plain_.nfe_rows, dual.nfe_rows)
    pool = samplers.Pool(model)
    runs = [pool.add(NAME, first_row=i, **(run | {"batch": 1})) for i in range(2)]
    list(pool)
    assert torch.equal(torch.cat([r.result().x for r in runs]), plain_.x)


def test_settings_of_each_row():
    settings = {"temperature": [0.0, 0.7, 1.3], "top_p": [1.0, 0.9, 0.5], "top_k": [0, 3, 0]}
    run = {"gen_length": 9, "seed": 3, "steps": 5}
    together = samplers.sample(TinyNet(), NAME, batch=3, **run, **settings)
    for i in range(3):
        own = {name: values[i] for name, values in settings.items()}
        assert torch.equal(together.x[i], samplers.sample(TinyNet(), NAME, first_row=i, **run, **own).x[0])


def test_constraints():
    problem, barred = TinyJoint(4, 3), torch.zeros(4, 4, dtype=torch.bool)
    barred[2, 1] = True

    def never(state):
        return samplers.Constraint(forbid=barred)

    out = draw(problem, batch=6000, constrain=never, order="spread")
    # Position 2 comes second, so its conditional is cut, and what follows it is the table's own.
    chain, law = Chain(problem), []
    for s in chain.strings:
        weight, state = 1.0, chain.start()
        for i in (0, 2, 1, 3):
            p = chain.p(state)[i].copy()
            if i == 2:
                p[1] = 0
            weight *= (p / p.sum())[s[i]]
            state = (*state[:i], s[i], *state[i + 1 :])
        law.append(weight)
    assert fits(counted(problem, out), law) > BOUND
    model = zoo.load("text-mdm")
    language = samplers.constraints.Regex("[a-z ]+", model.tokenizer)
    with pytest.raises(OptionError, match="verifies one position after another"):
        samplers.sample(model, NAME, gen_length=6, constrain=language)


def test_what_a_model_does_wrong_is_named():
    def broken(ids):
        out = torch.zeros(*ids.shape, V)
        out[:, 3] = torch.where((ids != MASK).sum(1)[:, None] > 2, torch.nan, out[:, 3])
        return out

    with pytest.raises(DenoiserError, match="position 3 a NaN"):
        draw(TokenDenoiser.wrap(broken, vocab_size=V, mask_id=MASK, length=6), order="spread", drafts=1)
    with pytest.raises(OptionError, match="'drafts' of sampler 'speculative_copies' is 0; it must be >= 1"):
        draw(TinyNet(), drafts=0)
