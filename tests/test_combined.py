"""Random combinations of samplers, windows, guides, stops and hooks: a row of a batch is that row alone, and a Pool's run the run."""

import random

import pytest
import torch

import samplers
from samplers import Canvas, Constraint, TokenDenoiser
from samplers.guidance import Adaptive, Classifier, Unconditional

pytestmark = pytest.mark.usefixtures("one_thread")


class Net(TokenDenoiser):
    """Logits of two neighbours on each side, in any dtype; with ties if `unit` is not 0, and with tokens that are impossible."""

    def __init__(self, vocab, seed, unit, dtype, impossible, lengths):
        self.mask_id, self.vocab_size, self.takes_lengths, self.dtype = vocab, vocab + 1, lengths, dtype
        make = torch.Generator().manual_seed(seed)
        self.table = torch.randn(5, vocab + 1, vocab + 1, generator=make)
        if unit:
            self.table = (self.table / unit).round() * unit
        self.never = torch.rand(vocab + 1, vocab + 1, generator=make) < impossible
        self.never[:, :2] = False

    def predict(self, x, t=None, *, rows=None, cache=None, lengths=None):
        if lengths is not None:
            x = torch.where(torch.arange(x.shape[1]) < lengths[:, None], x, self.mask_id)
        near = torch.nn.functional.pad(x, (2, 2), value=self.mask_id)
        out = torch.zeros(*x.shape, self.vocab_size)
        for j in range(5):
            out += self.table[j][near[:, j : j + x.shape[1]]]
        out = out.masked_fill(self.never[near[:, 1:-3]], -torch.inf).to(self.dtype)
        return out if rows is None else out[rows]


def ones(x):
    return (x == 1).sum(1).double()


def judge(x, t):
    return ((ones(x) + 1) / (x.shape[1] + 2)).log()


def hook(state):
    """Decides position 1 in the third step, and forbids token 0 in every other one."""
    fix = torch.full_like(state.x, -1)
    fix[:, 1] = torch.where(state.step == 2, 1, -1)
    forbid = torch.zeros(len(state.x), 1, state.canvas.vocab_size, dtype=torch.bool)
    forbid[:, 0, 0] = state.step % 2 == 1
    return Constraint(fix=fix, forbid=forbid)


def dealt(deal, rows):
    """A sampler with options, and arguments of a run."""
    name, options = deal.choice(
        [
            ("freedave", {"drafts": deal.choice((1, 2, 5))}),
            ("freedave", {"threshold": 0.4, "match": deal.choice(("subset", "exact"))}),
            ("lopa", {"threshold": deal.choice((0.3, 2.0)), "alpha": deal.choice((0.0, 0.5))}),
            ("info_gain", {"candidates": deal.choice((1, 4)), "horizon": deal.choice(("canvas", "block"))}),
            ("soar", {"threshold": deal.choice((0.4, 2.0))}),
            ("wedlm", {}),
            *[
                (
                    "smc",
                    {"base": base, "reward": ones, "ess": deal.choice((0.0, 1.0)), "iterations": deal.choice((1, 3))},
                )
                for base in ("random_order", "entropy_bound", "remdm", "threshold")
            ],
        ]
    )
    run = {"steps": deal.choice((None, 9, 40)), "temperature": [deal.choice((0.0, 0.5, 1.0)) for _ in range(rows)]}
    where = deal.choice(({}, {"block_length": deal.choice((1, 3))}, {"window": "block", "block_length": 3}))
    if name not in ("smc", "soar") and deal.random() < 0.5:
        where = {"window": deal.choice(("sliding(2)", "sliding(2,3)", "pipeline(2)", "pipeline(1,0.3,1)"))}
    run |= where | deal.choice(({}, {}, {"stop": [0]}, {"stop": [[0, 1]], "stop_rule": "block"}))
    guides = ({"cfg_scale": 0.8}, {"guide": Unconditional()}, {"guide": Adaptive()}, {"guide": Classifier(judge)})
    run |= deal.choice(({}, {}, *guides)) | deal.choice(({}, {}, {"constrain": hook}, {"top_k": 2}, {"demote": 0}))
    return name, run | options


@pytest.mark.parametrize("seed", range(40))
def test_a_row_is_that_row_alone_and_in_a_pool(seed):
    deal = random.Random(seed)
    rows, vocab = deal.randint(1, 4), deal.choice((2, 4))
    dtype = deal.choice((torch.float32, torch.bfloat16, torch.float16))
    net = Net(vocab, seed, deal.choice((0, 0.5)), dtype, deal.choice((0, 0.3)), deal.random() < 0.5)
    name, run = dealt(deal, rows)
    lengths = [deal.randint(3, 10) for _ in range(rows)]
    tokens = [torch.tensor([deal.randrange(vocab) for _ in range(n)]) for n in lengths]
    fill = [[i in (1, 2) or (i > 0 and deal.random() < 0.7) for i in range(n)] for n in lengths]

    def of(which):
        canvas = Canvas.infill(net, [tokens[i] for i in which], [fill[i] for i in which])
        return run | {"prompt": canvas, "seed": seed, "temperature": [run["temperature"][i] for i in which]}

    everyone = list(range(rows))
    whole = samplers.sample(net, name, **of(everyone))
    for i in everyone:
        n = int(whole.lengths[i])
        alone = samplers.sample(net, name, first_row=i, **of([i]))
        assert int(alone.lengths[0]) == n and alone.x[0, :n].tolist() == whole.x[i, :n].tolist()
        assert int(alone.nfe_rows[0]) == int(whole.nfe_rows[i])
    pool = samplers.Pool(net)
    one = pool.add(name, **of(everyone))
    for _ in pool:
        pass
    pooled = one.result()
    assert torch.equal(pooled.x, whole.x) and torch.equal(pooled.nfe_rows, whole.nfe_rows)
    for cost in ("nfe", "row_evals", "guide_calls", "guide_rows"):
        assert getattr(pooled, cost) == getattr(whole, cost)
