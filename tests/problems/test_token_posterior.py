"""Problem.token_posterior: posteriors given a weight for every token at every position, against sums over whole rows."""

import itertools
import math

import pytest
import torch

from samplers import problems
from samplers.errors import FamilyError, OptionError
from samplers.problems.digits import KernelTokens, grey_kernel
from samplers.problems.sudoku import CountingTokens, sudoku_grids
from samplers.problems.text import ChainTokens, fit_chain

pytestmark = pytest.mark.usefixtures("one_thread")


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=rng(seed), dtype=torch.float64)


def by_enumeration(rows, log_p, evidence):
    """p(x_i = v | evidence) over all rows (S, L) with log p (S,); evidence (L, V)."""
    length, vocab = evidence.shape
    log_w = log_p + sum(evidence[i, rows[:, i]] for i in range(length))
    w = (log_w - log_w.max()).exp()
    one_hot = torch.nn.functional.one_hot(rows, vocab).double()
    return (w[:, None, None] * one_hot).sum(0) / w.sum()


def tiny_models():
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    support = torch.tensor([[0, 1, 2, 0], [0, 0, 2, 1], [2, 1, 0, 0], [1, 1, 1, 2]])
    yield "counting", CountingTokens(support, 3, "masked"), support, torch.zeros(4, dtype=torch.float64)
    kernel = torch.rand(3, 3, generator=rng(7), dtype=torch.float64) + torch.eye(3) * 3
    kernel = kernel / kernel.sum(1, keepdim=True)
    p = torch.stack([math.prod(kernel[support[:, i], x[i]] for i in range(4)).mean() for x in every])
    yield "kernel", KernelTokens(support, kernel, "masked"), every, p.log()
    for order in (2, 3, 4):
        tables = fit_chain(torch.randint(0, 3, (40,), generator=rng(order)).numpy(), 3, order, 0.3)
        each = [
            sum(tables[min(k, order - 1)][tuple(x[max(0, k - order + 1) : k + 1])].log() for k in range(4))
            for x in every
        ]
        yield f"chain {order}", ChainTokens(tables, 4, "masked"), every, torch.stack(each)


@pytest.mark.parametrize("case", range(5))
def test_by_enumeration(case):
    _, model, rows, log_p = list(tiny_models())[case]
    evidence = torch.cat([normal(3, 4, 3, seed=case), 30 * normal(3, 4, 3, seed=case + 9)])
    evidence[0, 1, 2] = evidence[3, 0, 0] = -math.inf
    evidence[1] += 1e4 * normal(4, 1)  # a constant for each position says nothing
    got = model.posterior_given(evidence)
    for one, p in zip(evidence, got):
        torch.testing.assert_close(p, by_enumeration(rows, log_p, one), rtol=1e-8, atol=1e-13)


def test_sudoku_by_enumeration():
    evidence = 2 * normal(3, 16, 4)
    got = problems.create("sudoku4").token_posterior(evidence)
    for one, p in zip(evidence, got):
        torch.testing.assert_close(
            p, by_enumeration(sudoku_grids(), torch.zeros(288).double(), one), rtol=1e-11, atol=0
        )


def test_digits_by_plain_sums():
    problem = problems.create("digits")
    evidence, kernel = 2 * normal(1, 64, 17), grey_kernel(0.5, 1e-3)
    says = torch.einsum("iv,gv->ig", evidence[0].exp(), kernel)  # (64, 17): what a centre's grey says of the evidence
    w = sum(says[i, problem.images[:, i]].log() for i in range(64)).softmax(0)  # (1797,)
    got = problem.token_posterior(evidence)[0]
    for i in range(64):
        grey = problem.images[:, i]
        p = (w / says[i, grey]) @ kernel[grey] * evidence[0, i].exp()
        torch.testing.assert_close(got[i], p, rtol=1e-9, atol=1e-14)


@pytest.mark.parametrize("name", ["sudoku4", "digits", "text"])
def test_masked_is_a_special_case_and_rows_are_alone(name):
    """Zeros at masks and -inf elsewhere make the masked posterior; a row has the same bits in every batch."""
    problem = problems.create(name)
    x = problem.sample_truth(4)
    evidence = torch.full((4, problem.length, problem.tokens), -math.inf, dtype=torch.float64).scatter(
        2, x[..., None], 0.0
    )
    hidden = torch.rand(x.shape, generator=rng(1)) < 0.6
    evidence[hidden] = 0.0
    expected = problem.denoiser("masked").posterior(x.masked_fill(hidden, problem.tokens))
    torch.testing.assert_close(problem.token_posterior(evidence), expected, rtol=0, atol=1e-14)

    soft = 3 * normal(33, problem.length, problem.tokens, seed=2)
    full = problem.token_posterior(soft)
    order = torch.randperm(33, generator=rng(3))
    assert torch.equal(problem.token_posterior(soft[order]), full[order])
    for i in (0, 31, 32):
        assert torch.equal(problem.token_posterior(soft[i : i + 1])[0], full[i])
    assert problem.token_posterior(soft[:0]).shape == (0, problem.length, problem.tokens)


def test_bad_evidence():
    problem = problems.create("sudoku4")
    fine = torch.zeros(2, 16, 4)
    with pytest.raises(OptionError, match=r"evidence of shape \(B, 16, 4\), not \(2, 4, 16\)"):
        problem.token_posterior(fine.transpose(1, 2))
    with pytest.raises(OptionError, match="floating dtype"):
        problem.token_posterior(fine.long())
    for value in (math.nan, math.inf):
        bad = fine.clone()
        bad[1, 3, 2] = value
        with pytest.raises(OptionError, match="row 1, position 3"):
            problem.token_posterior(bad)
    bad = fine.clone()
    bad[0, 5] = -math.inf
    with pytest.raises(OptionError, match="row 0, position 5"):
        problem.token_posterior(bad)
    mixture = problems.create("mixture")
    assert mixture.tokens is None
    with pytest.raises(FamilyError, match="no exact distribution of tokens"):
        mixture.token_posterior(fine)
