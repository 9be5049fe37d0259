"""Guided greedy decoding, token for token with plain float64 loops; what is shared with test_parity is its small network."""

import math

import numpy as np
import pytest
import torch
from test_parity import MASK, PROMPT, Net, V, best, fresh, masks, put, softmax

import samplers
from samplers.guidance import Adaptive, Unconditional

pytestmark = pytest.mark.usefixtures("one_thread")

LENGTH = 9


def greedy(net, other):
    """One position per step, the most probable token of softmax(u + gamma (c - u)); other(x, logits of x, gamma) -> guided logits."""
    x, canvases = fresh(LENGTH), []
    while masks(x):
        p = softmax(other(x, net.logits(x)))
        x = put(x, best(masks(x), p.max(1), 1), p.argmax(1))
        canvases.append(x)
    return canvases


def moved(c, u, gamma):
    u = np.where(np.arange(V) == MASK, c, u)
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(c), c, u + gamma * (c - u))


def ours(net, guide):
    net.asked = 0
    return samplers.sample(
        net.wrapped(), "low_confidence", prompt=PROMPT, gen_length=LENGTH, temperature=0.0, guide=guide, trace=True
    )


@pytest.mark.parametrize("seed", range(4))
def test_adaptive(seed):
    """Li et al. 2025: the least probable of the filled tokens are masked, and the answer to that is led away from."""
    net, gamma, share = Net(seed), 1.6, 0.5

    def guided(x, c):
        p = softmax(c)
        filled = [i for i in range(len(PROMPT), len(x)) if x[i] != MASK]
        again = sorted(filled, key=lambda i: (p[i, x[i]], i))[: math.floor(share * len(filled))]
        return moved(c, net.logits(put(x, again, [MASK] * len(x))), gamma)

    canvases = greedy(net, guided)
    out = ours(net, Adaptive(gamma=gamma, share=share))
    assert [s.x[0].tolist() for s in out.trace[1:]] == canvases
    assert out.nfe == net.asked == 2 * LENGTH and out.row_evals == 2 * LENGTH


@pytest.mark.parametrize("negative", [[5, 6, 7], [8], []])
def test_a_negative_prompt(negative):
    net, gamma = Net(7), 2.2
    before = [MASK] * (len(PROMPT) - len(negative)) + negative
    canvases = greedy(net, lambda x, c: moved(c, net.logits(before + x[len(PROMPT) :]), gamma))
    out = ours(net, Unconditional(prompt=negative, gamma=gamma))
    assert [s.x[0].tolist() for s in out.trace[1:]] == canvases
    assert out.nfe == net.asked == LENGTH and out.row_evals == 2 * LENGTH and out.guide_calls == 0


def test_another_model():
    net, other, gamma = Net(1), Net(2), 1.7
    canvases = greedy(net, lambda x, c: moved(c, other.logits(x), gamma))
    other.asked = 0
    out = ours(net, Unconditional(denoiser=other, gamma=gamma))
    assert [s.x[0].tolist() for s in out.trace[1:]] == canvases
    assert out.nfe == net.asked == LENGTH == out.guide_calls == other.asked


def test_the_loops_tell_guides_apart():
    """The comparisons above mean something: each guide leads to other tokens than no guide."""
    net = Net(7)
    plain = ours(net, None).x
    for guide in (Adaptive(gamma=3.0), Unconditional(prompt=[8], gamma=2.2), Unconditional(denoiser=Net(2), gamma=1.7)):
        assert not torch.equal(ours(net, guide).x, plain)
