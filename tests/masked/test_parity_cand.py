"""Samplers over candidates, token for token with plain loops: one row, temperature 0, float64 softmax, lists.

As in test_parity.py the canvas after every step is compared, and the number of forward passes; a forward pass over several
candidates counts once.
"""

import math

import numpy as np
import pytest
import torch
from test_parity import MASK, SPANS, Net, agree, best, blocks_of, fresh, guess, masks, put, run

from samplers.random import DRAW_CANDIDATE, uniform

pytestmark = pytest.mark.usefixtures("one_thread")


def look(net, canvases):
    """What one forward pass over candidates says of each: (token, probability, softmax)."""
    return [guess(net, x) for x in canvases]


def new(x, before):
    """The (position, token) pairs of x that `before` has not."""
    return {(i, x[i]) for i in range(len(x)) if x[i] != before[i]}


def compare(ours, states, passes):
    assert ours[0] == states, "another trajectory"
    assert ours[1] == passes, "another number of forward passes"


# ---------------------------------------------------------------------------------------------- FreeDave


def freedave(net, length, block, number, order, threshold, match):
    def ranked(x, p, span):
        left = masks(x, span)
        return left if order == "left_to_right" else best(left, p, len(left))

    def base(x, p, span):
        """The positions of one step of the base rule."""
        order_now = ranked(x, p, span)
        if threshold is None:
            return order_now[:1]
        if order == "confidence":
            return order_now[: max(1, sum(p[i] >= threshold for i in order_now))]
        lead = 0
        while lead < len(order_now) and p[order_now[lead]] >= threshold:
            lead += 1
        return order_now[: max(1, lead)]

    x, states, passes = fresh(length), [], 1
    token, p, _ = guess(net, x)
    for span in blocks_of(length, block):
        while masks(x, span):
            order_now, k = ranked(x, p, span), len(base(x, p, span))
            drafts = [put(x, order_now[: k + j], token) for j in range(number) if j == 0 or k + j <= len(order_now)]
            said = look(net, drafts)
            passes += any(MASK in d for d in drafts)
            b = 0
            while True:
                target = put(drafts[b], base(drafts[b], said[b][1], span), said[b][0])
                found = [
                    j
                    for j in range(b + 1, len(drafts))
                    if new(drafts[j], drafts[b]) <= new(target, drafts[b])
                    and (match == "subset" or drafts[j] == target)
                ]
                if not found:
                    break
                b = max(found)
            x, (token, p, _) = drafts[b], said[b]
            states.append(x)
    return states, passes


@pytest.mark.parametrize(("length", "block"), SPANS)
@pytest.mark.parametrize("number", [1, 3, 8])
@pytest.mark.parametrize("order", ["confidence", "left_to_right"])
def test_freedave(order, number, length, block):
    for seed in range(2):
        net = Net(seed, sharp=2.0)
        published = freedave(net, length, block, number, order, None, "subset")
        compare(run(net, "freedave", length, block_length=block, drafts=number, order=order), *published)


@pytest.mark.parametrize(("length", "block"), SPANS)
@pytest.mark.parametrize("threshold", [0.3, 0.6, 2.0])
@pytest.mark.parametrize("order", ["confidence", "left_to_right"])
@pytest.mark.parametrize("match", ["subset", "exact"])
def test_freedave_plus_plus(match, order, threshold, length, block):
    for seed in range(2):
        net = Net(seed, sharp=2.0)
        published = freedave(net, length, block, 4, order, threshold, match)
        options = {"drafts": 4, "order": order, "threshold": threshold, "match": match}
        compare(run(net, "freedave", length, block_length=block, **options), *published)


# ---------------------------------------------------------------------------------------------- LoPA


@pytest.mark.parametrize(("length", "block"), SPANS)
@pytest.mark.parametrize(("branches", "threshold"), [(0, 0.5), (3, 0.6), (3, 2.0), (6, 0.8)])
@pytest.mark.parametrize(("alpha", "lowest"), [(0.0, 1.0), (0.5, 0.5)])
def test_lopa(alpha, lowest, branches, threshold, length, block):
    kinds = set()
    for seed in range(5):
        net, x, states, passes = Net(seed, sharp=2.0), fresh(length), [], 1
        token, p, _ = guess(net, x)
        for span in blocks_of(length, block):
            while left := masks(x, span):
                order = best(left, p, len(left))
                k = max(1, sum(p[i] >= threshold for i in left))
                candidates = [put(x, order[:k], token)]
                made = [1.0]
                for i in order[k : k + branches]:
                    candidates.append(put(x, [*order[:k], i], token))
                    made.append(p[i])
                said, score = look(net, candidates), []
                passes += any(MASK in c for c in candidates)
                for c, (_, q, _), creation in zip(candidates, said, made):
                    rest = sorted(q[i] for i in masks(c, span))
                    rest = rest[: max(1, int(len(rest) * lowest))]
                    score.append(alpha * creation + (1 - alpha) * (float(np.mean(rest)) if rest else 1.0))
                b = max(range(len(score)), key=lambda j: (score[j], -j))
                kinds.add(b)
                x, (token, p, _) = candidates[b], said[b]
                states.append(x)
        options = {"branches": branches, "threshold": threshold, "alpha": alpha, "lowest": lowest}
        compare(run(net, "lopa", length, block_length=block, **options), states, passes)
    assert branches == 0 or len(kinds) > 1, "one branch was always the best: the test could not tell them apart"


# ---------------------------------------------------------------------------------------------- InfoGain, LookUM


def entropies(p):
    return -(p * np.log(np.where(p > 0, p, 1.0))).sum(1)


@pytest.mark.parametrize(("length", "steps", "block"), [(16, 16, 16), (16, 8, 4), (20, 7, 20)])
@pytest.mark.parametrize("cost", [True, False])
@pytest.mark.parametrize("horizon", ["canvas", "block"])
@pytest.mark.parametrize(("number", "sure"), [(4, 2.0), (8, 0.4), (1, 0.8)])
def test_info_gain(number, sure, horizon, cost, length, steps, block):
    """The positions' Gumbel noise replaced by ours."""
    kinds, whole = set(), 0
    for seed in range(2):
        net, x, states, passes, count = Net(seed, sharp=2.0), fresh(length), [], 1, 0
        token, p, full = guess(net, x)
        for span in blocks_of(length, block):
            each = steps * block // length
            for step in range(each):
                left = masks(x, span)
                if not left:
                    break
                k = block // each + (step < block % each)
                if k >= len(left) or all(p[i] >= sure for i in left):
                    whole += k < len(left)
                    actions = [sorted(left)]
                else:
                    actions = [sorted(best(left, p, k))]
                    for c in range(1, number):
                        u = uniform(0, 0, torch.arange(len(x)) * number + c, count, DRAW_CANDIDATE).numpy()
                        action = sorted(best(left, p / 0.2 - np.log(-np.log(u)), k))
                        actions += [action] if action not in actions else []
                candidates = [put(x, a, token) for a in actions]
                said, score = look(net, candidates), []
                passes += any(MASK in c for c in candidates)
                for a, c, (_, _, q) in zip(actions, candidates, said):
                    rest = masks(c, None if horizon == "canvas" else span)
                    score.append(-float(entropies(q)[rest].mean()) if rest else 0.0)
                    score[-1] -= float(entropies(full)[a].sum()) if cost else 0.0
                b = max(range(len(score)), key=lambda j: (score[j], -j))
                kinds.add(b)
                x, (token, p, full) = candidates[b], said[b]
                states.append(x)
                count += 1
        options = {"candidates": number, "sure": sure, "cost": cost, "horizon": horizon}
        compare(run(net, "info_gain", length, steps=steps, block_length=block, **options), states, passes)
    if number == 4 and not cost:
        assert len(kinds) > 1, "one candidate was always the best: the test could not tell them apart"
    assert sure > 0.5 or whole, "no block was ever sure"


# ---------------------------------------------------------------------------------------------- SOAR


@pytest.mark.parametrize(("length", "block"), [(16, 16), (16, 4), (20, 8)])
@pytest.mark.parametrize(("threshold", "most"), [(0.95, 5), (0.6, 2), (2.0, 5)])
@pytest.mark.parametrize("rank", ["logprob", "probability"])
def test_soar(rank, threshold, most, length, block):
    wide, swaps = 0, 0
    for seed in range(3):
        net, passes, seen = Net(seed, sharp=2.5), 0, []
        beam = [(fresh(length), 0.0)]
        for span in blocks_of(length, block):
            while masks(beam[0][0], span):
                made, several = [], False
                passes += 1
                for x, score in beam:
                    token, p, _ = guess(net, x)
                    left = masks(x, span)
                    sure = [i for i in left if p[i] >= threshold]
                    steps = [best(sure, p, most)] if sure else [[i] for i in best(left, p, 2)]
                    several |= bool(sure)
                    for step in steps:
                        value = sum(math.log(p[i]) if rank == "logprob" else p[i] for i in step)
                        made.append((put(x, step, token), score + value))
                made.sort(key=lambda c: -c[1])
                different = [c for j, c in enumerate(made) if c[0] not in [d[0] for d in made[:j]]]
                swaps += different[0][0] != made[0][0]
                # The reference goes on with both at the end of a block; here the better one is kept.
                beam = different[: 1 if several or not masks(different[0][0], span) else 2]
                wide += len(beam) == 2
                seen.append([a if all(b[0][i] == a for b in beam) else MASK for i, a in enumerate(beam[0][0])])
        states, nfe = run(net, "soar", length, block_length=block, threshold=threshold, most=most, rank=rank)
        changes = [b for a, b in zip([fresh(length), *seen], seen) if a != b]  # steps on whose result both agree
        compare((states, nfe), changes, passes)
        assert states[-1] == beam[0][0]
    assert wide > 0, "there was never a second canvas"


def test_soar_of_one_canvas_is_low_confidence():
    """With every token sure and one of them per step, no second canvas is ever made."""
    net = Net(3)
    ours = run(net, "soar", 16, threshold=1e-6, most=1)
    agree(ours, run(net, "low_confidence", 16)[0])
