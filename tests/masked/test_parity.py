"""Token for token with the published rules, at temperature 0, batch 1.

Each published rule is written here again, from its paper or from what its code does, as a plain float64 loop that shares
nothing with the library: its own plan, its own softmax, its own bookkeeping. What is compared is the canvas after every
step that commits something, on a small random network in which everything depends on everything and nothing ties.
"""

import math

import numpy as np
import pytest
import torch

import samplers
from samplers import TokenDenoiser
from samplers.random import DRAW_RANK, uniform

pytestmark = pytest.mark.usefixtures("one_thread")

V, MASK, PROMPT = 13, 12, [3, 1, 4]


class Net:
    """One layer of attention and a head, random weights; `sharp` scales its logits."""

    def __init__(self, seed, sharp=1.0):
        g = torch.Generator().manual_seed(seed)
        self.embed, self.where = torch.randn(V, 24, generator=g), torch.randn(200, 24, generator=g)
        self.q, self.k, self.v = (torch.randn(24, 24, generator=g) / 5 for _ in range(3))
        self.head = torch.randn(24, V, generator=g) / 5 * sharp
        self.asked = 0

    def __call__(self, ids):
        h = self.embed[ids] + self.where[: ids.shape[1]]
        mixed = torch.softmax(h @ self.q @ (h @ self.k).transpose(1, 2) / 5, -1) @ (h @ self.v)
        self.asked += 1
        return (h + 2 * mixed) @ self.head

    def wrapped(self):
        return TokenDenoiser.wrap(self, vocab_size=V, mask_id=MASK)

    def logits(self, x):
        """(L, V) float64 of a canvas given as a list; the mask id is no candidate."""
        out = self(torch.tensor([x]))[0].double().numpy()
        out[:, MASK] = -np.inf
        return out


def softmax(logits):
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def guess(net, x):
    """(token, probability) of every position, and all of softmax."""
    p = softmax(net.logits(x))
    return p.argmax(1), p.max(1), p


def fresh(length):
    return PROMPT + [MASK] * length


def blocks_of(length, block):
    start = len(PROMPT)
    return [range(start + i, min(start + i + block, start + length)) for i in range(0, length, block)]


def masks(x, span=None):
    return [i for i in (range(len(x)) if span is None else span) if x[i] == MASK]


def put(x, positions, token):
    return [int(token[i]) if i in positions else x[i] for i in range(len(x))]


def best(positions, score, k):
    """The k positions of the highest score, the lower position of equals."""
    return sorted(positions, key=lambda i: (-score[i], i))[:k]


def run(net, name, length, **kw):
    """The canvases after each step that committed something, and the forwards."""
    out = samplers.sample(net.wrapped(), name, prompt=PROMPT, gen_length=length, temperature=0.0, trace=True, **kw)
    rows = [s.x[0].tolist() for s in out.trace]
    return [b for a, b in zip(rows, rows[1:]) if a != b], out.nfe


def agree(ours, published):
    assert ours[0] == published, "another trajectory"
    assert ours[1] == len(published), "a step that commits something is one forward, another none"


# ---------------------------------------------------------------------------------------------- LLaDA


def llada(net, length, steps, block, rank=None, deal=None):
    """ML-GSAI/LLaDA generate(): equal steps a block (or those of `deal`), base + 1 tokens in the first `rem` steps."""
    x, states, count = fresh(length), [], 0
    assert deal or (length % block == 0 and steps % (length // block) == 0)
    deal = deal or [steps // (length // block)] * (length // block)
    for span, each in zip(blocks_of(length, block), deal, strict=True):
        base, rem = divmod(len(span), each)
        for i in range(each):
            token, p, _ = guess(net, x)
            score = p if rank is None else rank(count)
            k = base + (i < rem)
            x = put(x, best(masks(x, span), score, k), token)
            states += [x] if k else []
            count += k > 0
    assert MASK not in x
    return states


PLANS = [(16, 16, 16), (16, 8, 4), (24, 12, 8), (12, 5, 12), (20, 6, 10), (21, 12, 7), (8, 24, 4)]


@pytest.mark.parametrize(("length", "steps", "block"), PLANS)
def test_llada(length, steps, block):
    for seed in range(3):
        net = Net(seed)
        agree(run(net, "low_confidence", length, steps=steps, block_length=block), llada(net, length, steps, block))


@pytest.mark.parametrize(
    ("length", "steps", "block", "deal"), [(20, 11, 8, [4, 5, 2]), (10, 7, 4, [3, 2, 2]), (13, 13, 5, [5, 5, 3])]
)
def test_llada_where_its_code_refuses(length, steps, block, deal):
    """Blocks and steps that do not divide: its rule in each block, of the steps that the driver deals to it."""
    assert sum(deal) == steps
    net = Net(5)
    agree(
        run(net, "low_confidence", length, steps=steps, block_length=block), llada(net, length, steps, block, deal=deal)
    )


@pytest.mark.parametrize(("length", "steps", "block"), PLANS)
def test_llada_random(length, steps, block):
    """remasking='random', its random numbers replaced by ours."""
    net = Net(1)

    def rank(count):  # steps that commit nothing come last in a block, and are not taken here
        return -uniform(0, 0, torch.arange(len(PROMPT) + length), count, DRAW_RANK).numpy()

    published = llada(net, length, steps, block, rank)
    agree(run(net, "random_remask", length, steps=steps, block_length=block), published)


# ---------------------------------------------------------------------------------------------- Dream, SMDM


def on_a_grid(net, length, steps, eps, rank):
    """Dream's and SMDM's loop: floor(m (1 - s/t)) of m masks on linspace(1, eps, steps + 1), all in the last step."""
    x, states, grid = fresh(length), [], np.linspace(1, eps, steps + 1)
    for i in range(steps):
        token, _, p = guess(net, x)
        left = masks(x)
        k = len(left) if i == steps - 1 else int(len(left) * (1 - grid[i + 1] / grid[i]))
        x = put(x, best(left, rank(p), k), token)
        states += [x] if k else []
    return states


RANKS = {
    "low_confidence": lambda p: p.max(1),
    "topk_margin": lambda p: np.sort(p)[:, -1] - np.sort(p)[:, -2],
    "neg_entropy": lambda p: (p * np.log(p + 1e-10)).sum(1),
}
GRIDS = [(16, 16), (16, 8), (20, 7), (12, 5), (10, 24), (30, 30), (9, 1)]


@pytest.mark.parametrize(("length", "steps"), GRIDS)
@pytest.mark.parametrize("name", RANKS)
def test_dream(name, length, steps):
    for seed in range(3):
        net = Net(seed)
        published = on_a_grid(net, length, steps, 1e-3, RANKS[name])
        agree(run(net, name, length, steps=steps, plan="floor(1e-3)", tempered=True), published)


@pytest.mark.parametrize(("length", "steps"), GRIDS)
def test_smdm_greedy(length, steps):
    for seed in range(3):
        net = Net(seed)
        published = on_a_grid(net, length, steps, 1e-5, RANKS["low_confidence"])
        agree(run(net, "smdm_greedy", length, steps=steps), published)


def test_floor_plan_of_dream_as_reported():
    """Steps = length: the first commits nothing and the last two (Dream: L = 128 ends 1, 1, 2)."""
    states, nfe = run(Net(0), "neg_entropy", 128, steps=128, plan="floor(1e-3)")
    left = [128, *(x.count(MASK) for x in states)]
    assert [a - b for a, b in zip(left, left[1:])] == [1] * 126 + [2]
    assert nfe == 127


@pytest.mark.parametrize("temperature", [0.4, 3.0])
def test_dream_ranks_by_the_tempered_distribution(temperature):
    """At T > 0 Dream ranks what it draws from: softmax(l / T). Margins ignore the draw, so their order can be known."""
    net, length, orders = Net(2), 16, []
    for tempered in (True, False):
        states = samplers.stream(
            net.wrapped(),
            "topk_margin",
            prompt=PROMPT,
            gen_length=length,
            steps=4,
            temperature=temperature,
            tempered=tempered,
        )
        first = list(states)[1].x[0]
        p = softmax(net.logits(fresh(length)) / (temperature if tempered else 1.0))
        orders.append(sorted(best(masks(fresh(length)), RANKS["topk_margin"](p), 4)))
        assert (first != torch.tensor(fresh(length))).nonzero().flatten().tolist() == orders[-1]
    assert orders[0] != orders[1], "a test that could not tell one from the other"


def test_smdm_origin_is_ancestral_but_for_eps():
    """Where a position appears under p = 1 - s/t on linspace(1, 1e-5, S + 1), and under `ancestral` with linear."""
    for steps in (1, 4, 64, 512):
        grid = np.linspace(1, 1e-5, steps + 1)
        p = 1 - grid[1:] / grid[:-1]
        p[-1] = 1.0
        origin = p * np.cumprod(np.concatenate([[1.0], 1 - p[:-1]]))
        ours = samplers.mask_schedule("linear").mass(steps).numpy()
        assert abs(origin.sum() - 1) < 1e-12
        assert np.abs(origin - ours).sum() / 2 <= 1e-5


# ---------------------------------------------------------------------------------------------- Fast-dLLM


def fast_dllm(net, length, block, count):
    """Per block until it has no mask: the `count(sorted confidences)` most confident."""
    x, states = fresh(length), []
    for span in blocks_of(length, block):
        while left := masks(x, span):
            token, p, _ = guess(net, x)
            order = best(left, p, len(left))
            x = put(x, order[: count([p[i] for i in order])], token)
            states.append(x)
    return states


SPANS = [(16, 16), (16, 4), (20, 8), (11, 3)]


@pytest.mark.parametrize(("length", "block"), SPANS)
@pytest.mark.parametrize("threshold", [0.15, 0.3, 0.6, 0.9])
def test_fast_dllm_threshold(threshold, length, block):
    def count(c):
        return max(1, sum(p >= threshold for p in c))

    for seed in range(3):
        net = Net(seed, sharp=1.5)
        published = fast_dllm(net, length, block, count)
        agree(run(net, "threshold", length, block_length=block, threshold=threshold), published)


@pytest.mark.parametrize(("length", "block"), SPANS)
@pytest.mark.parametrize("reference", [False, True])
@pytest.mark.parametrize("factor", [0.3, 0.7, 1.0, 1.8])
def test_fast_dllm_factor(factor, reference, length, block):
    def count(c):
        n = 1
        while n < len(c) and c[n] >= 1 - factor / (n + 2):
            n += 1
        # The code counts up to the failing index, and one more where that index is the last.
        return len(c) if reference and n == len(c) - 1 else n

    for seed in range(3):
        net = Net(seed, sharp=1.5)
        published = fast_dllm(net, length, block, count)
        agree(run(net, "factor", length, block_length=block, factor=factor, reference=reference), published)


# ---------------------------------------------------------------------------------------------- KLASS


def klass(net, length, steps, block, history, kl_below, sure, strategy, carried):
    """KLASS on LLaDA: a ring of KLs a position; ready positions, or LLaDA's plan. `carried`: across blocks, as published."""
    x, states = fresh(length), []
    each = steps // (length // block)
    said, ring, ready_steps = None, np.zeros((len(x), history)), 0
    for span in blocks_of(length, block):
        base, rem = divmod(block, each)
        if not carried:
            said, ring = None, np.full((len(x), history), np.inf)
        for i in range(each):
            left = masks(x, span)
            if not left:
                break
            token, p, full = guess(net, x)
            moved = (
                full * (np.log(full + 1e-12) - np.log((np.zeros_like(full) if said is None else said) + 1e-12))
            ).sum(1)
            said, ring = full, np.concatenate([ring[:, 1:], moved[:, None]], 1)
            ready = [j for j in left if (ring[j] < kl_below).all() and p[j] > sure]
            if i >= history - 1 and ready:
                ready_steps += 1
                if strategy == "max_conf":
                    ready = best(ready, p, 1)
                elif strategy == "min_kl":
                    ready = best(ready, -moved, 1)
                x = put(x, ready, token)
            else:
                x = put(x, best(left, p, base + (i < rem)), token)
            states.append(x)
    assert MASK not in x
    return states, ready_steps


@pytest.mark.parametrize(("length", "block"), [(16, 16), (16, 4), (24, 8)])
@pytest.mark.parametrize(
    ("history", "kl_below", "sure"), [(1, 0.02, 0.3), (2, 0.05, 0.2), (2, 0.2, 0.5), (3, 0.1, 0.1)]
)
@pytest.mark.parametrize("strategy", ["all", "max_conf", "min_kl"])
@pytest.mark.parametrize("carried", [False, True])
def test_klass(length, block, history, kl_below, sure, strategy, carried):
    ready = 0
    for seed in range(2):
        net = Net(seed, sharp=1.5)
        published, fired = klass(net, length, length, block, history, kl_below, sure, strategy, carried)
        ready += fired
        options = {"history_length": history, "kl_threshold": kl_below, "conf_threshold": sure, "strategy": strategy}
        agree(run(net, "klass", length, block_length=block, across_blocks=carried, **options), published)
    assert ready > 0, "nothing was ever ready: the test could not tell KLASS from LLaDA"


# ---------------------------------------------------------------------------------------------- EB


@pytest.mark.parametrize(("length", "block"), SPANS)
@pytest.mark.parametrize("bound", [0.0, 0.3, 2.0, 8.0])
@pytest.mark.parametrize("proxy", ["entropy", "confidence", "margin"])
def test_entropy_bound(proxy, bound, length, block):
    def count_and_order(left, p):
        entropy = -(p * np.log(np.where(p > 0, p, 1.0))).sum(1)
        order = best(
            left,
            RANKS[{"entropy": "neg_entropy", "confidence": "low_confidence", "margin": "topk_margin"}[proxy]](p),
            len(left),
        )
        h = [entropy[i] for i in order]
        return order, sum(sum(h[:j]) - max(h[:j]) <= bound + 1e-9 for j in range(1, len(h) + 1))

    for seed in range(2):
        net, x, published = Net(seed, sharp=1.5), fresh(length), []
        for span in blocks_of(length, block):
            while left := masks(x, span):
                token, _, p = guess(net, x)
                order, k = count_and_order(left, p)
                x = put(x, order[:k], token)
                published.append(x)
        agree(run(net, "entropy_bound", length, block_length=block, bound=bound, proxy=proxy), published)


# ---------------------------------------------------------------------------------------------- dInfer


@pytest.mark.parametrize(("length", "block"), SPANS)
@pytest.mark.parametrize(("high", "low"), [(0.9, 0.4), (0.5, 0.2), (0.35, 0.3), (2.0, 0.15), (0.9, 0.05)])
def test_dinfer_hierarchy(high, low, length, block):
    for seed in range(3):
        net, x, published = Net(seed, sharp=1.5), fresh(length), []
        for span in blocks_of(length, block):
            while left := masks(x, span):
                token, p, _ = guess(net, x)
                chosen = {i for i in left if p[i] > high} | set(best(left, p, 1))
                run_of = []
                for i in [*left, None]:
                    if run_of and (i is None or i != run_of[-1] + 1):
                        chosen |= {j for j in best(run_of, p, 1) if p[j] > low}
                        run_of = []
                    run_of.append(i)
                x = put(x, chosen, token)
                published.append(x)
        agree(run(net, "hierarchy", length, block_length=block, threshold=high, low_threshold=low), published)


@pytest.mark.parametrize(("length", "block"), SPANS)
@pytest.mark.parametrize(
    ("threshold", "alpha", "decay", "gamma"),
    [(0.9, 0.7, 0.8, 0.2), (0.5, 2.0, 0.9, 0.5), (0.4, 0.7, 1.0, 1.0), (0.3, 1.0, 0.0, 0.0)],
)
def test_dinfer_credit(threshold, alpha, decay, gamma, length, block):
    """With the whole matrix of credits, (L, V)."""
    several, differs = 0, False
    for seed in range(3):
        net, x, published = Net(seed, sharp=1.5), fresh(length), []
        for span in blocks_of(length, block):
            credit = np.zeros((len(x), V))
            while left := masks(x, span):
                logits = net.logits(x)
                p = softmax(logits)
                credit *= decay
                for i in left:
                    credit[i, p[i].argmax()] += p[i].max() ** gamma
                fused = softmax(logits + alpha * np.log1p(credit))
                token, c = fused.argmax(1), fused.max(1)
                several += int(((credit > 0).sum(1) > 1).sum())
                x = put(x, {i for i in left if c[i] >= threshold} | set(best(left, c, 1)), token)
                published.append(x)
        options = {"threshold": threshold, "alpha": alpha, "decay": decay, "gamma": gamma}
        agree(run(net, "credit", length, block_length=block, **options), published)
        differs |= published != run(net, "threshold", length, block_length=block, threshold=threshold)[0]
    if decay and block > 3:
        assert differs, "a test that could not tell credit from threshold"
    if threshold == 0.9:
        assert several > 0, "no position ever had credit for two tokens"


# ---------------------------------------------------------------------------------------------- MaskGIT


@pytest.mark.parametrize(("length", "steps"), [(16, 4), (16, 12), (20, 7), (10, 10), (24, 1)])
@pytest.mark.parametrize("schedule", ["1-cos", "arcsin", "linear"])
@pytest.mark.parametrize("late", [False, True])
def test_maskgit(late, schedule, length, steps):
    """Its Gumbel noise replaced by ours. late: Guidance-MaskGIT's counts; else Chang's."""
    visible = {
        "1-cos": lambda r: 1 - math.cos(math.pi * r / 2),
        "arcsin": lambda r: 1 - math.acos(r) / (math.pi / 2),
        "linear": lambda r: r,
    }[schedule]
    net, x, published = Net(3), fresh(length), []
    for k in range(steps):
        if late:
            r = k / (steps - 1) if steps > 1 else 1.0
            total = max(int(visible(r) * length + 1e-9), k + 1)
            ratio = k / max(steps - 1, 1)
        else:
            r = ratio = (k + 1) / steps
            total = length - int(length * (1 - visible(r)) + 1e-9)
        left = masks(x)
        count = total - (length - len(left))
        count = count if late else max(count, 1)
        token, p, _ = guess(net, x)
        u = uniform(0, 0, torch.arange(len(x)), k, DRAW_RANK).numpy()
        score = np.log(p) + 4.5 * (1 - ratio) * -np.log(-np.log(u))
        x = put(x, best(left, score, max(count, 0)), token)
        published += [x] if count > 0 and left else []
    agree(run(net, "maskgit", length, steps=steps, schedule=schedule, late=late), published)
