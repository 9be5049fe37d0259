"""WINO and DAWN, token for token with their rules written again as plain float64 loops: batch 1, temperature 0."""

import numpy as np
import pytest
import torch
from test_parity import MASK, PROMPT, Net, V, agree, blocks_of, fresh, guess, masks, softmax

import samplers
from samplers import TokenDenoiser

pytestmark = pytest.mark.usefixtures("one_thread")


class Sighted(Net):
    """The network of test_parity, told where each token stands and what each line sees; and its attention."""

    def __call__(self, ids, visible=None, positions=None):
        self.asked += 1
        return self.run(ids, visible, positions)[0]

    def run(self, ids, visible=None, positions=None):
        n = ids.shape[1]
        h = self.embed[ids] + self.where[torch.arange(n) if positions is None else positions]
        score = h @ self.q @ (h @ self.k).transpose(1, 2) / 5
        weight = torch.softmax(score if visible is None else score.masked_fill(~visible, -torch.inf), -1)
        return (h + 2 * weight @ (h @ self.v)) @ self.head, weight

    def wrapped(self):
        return Attends.of(self)


class Attends(TokenDenoiser):
    """The network as a denoiser with masks and an attention."""

    vocab_size, mask_id, masks, attends = V, MASK, True, True

    @classmethod
    def of(cls, net):
        made = cls()
        made.net = net
        return made

    def predict(self, x, t=None, *, rows=None, cache=None, visible=None, positions=None):
        out = self.net(x, visible, positions)
        return out if rows is None else out[rows]

    def attended(self, x, t=None, *, rows, lengths=None):
        self.net.asked += 1
        out, weight = self.net.run(x)
        return out[rows], weight


def run(net, name, length, **kw):
    out = samplers.sample(net.wrapped(), name, prompt=PROMPT, gen_length=length, temperature=0.0, trace=True, **kw)
    rows = [s.x[0].tolist() for s in out.trace]
    return rows[1:], out.nfe  # every step of these two fills something


# ---------------------------------------------------------------------------------------------- WINO


def wino(net, length, block, tau1, tau2):
    """Algorithm 1 of the paper: one sequence of the canvas and a block of masks, one mask of who sees whom, per block."""
    x, states, revoked = fresh(length), [], 0
    for span in blocks_of(length, block):
        n, s = len(x), len(span)
        positions = torch.tensor([[*range(n), *span]])
        visible = torch.ones(1, n + s, n + s, dtype=torch.bool)
        visible[0, :n, n:] = False
        for k, i in enumerate(span):
            visible[0, n + k, i] = False
        accepted = 30
        while masks(x, span):
            logits = net(torch.tensor([x + [MASK] * s]), visible, positions)[0].double().numpy()
            logits[:, MASK] = -np.inf
            p = softmax(logits)
            left, held = masks(x, span), [i for i in span if x[i] != MASK]
            ranked = sorted(left, key=lambda i: (-p[i].max(), i))
            good = [i for i in ranked if p[i].max() > tau1]
            fill = good[: min(max(int(0.7 * len(left)), 5), 20)] if good else ranked[:1]
            back = {i: p[n + k, x[i]] for k, i in enumerate(span) if i in held}
            doubt = sorted((i for i in held if back[i] < tau2), key=lambda i: (back[i], i))
            if len(fill) <= 1:
                doubt = []
            elif len(doubt) >= accepted:
                doubt = doubt[: accepted - 1]
            x = [MASK if i in doubt else int(p[i].argmax()) if i in fill else x[i] for i in range(n)]
            accepted, revoked = len(fill), revoked + len(doubt)
            states.append(x)
    return states, revoked


@pytest.mark.parametrize(
    ("length", "block", "tau1", "tau2"), [(24, 24, 0.2, 0.3), (20, 7, 0.15, 0.9), (32, 16, 0.6, 0.9)]
)
def test_wino(length, block, tau1, tau2):
    back = 0
    for seed in range(4):
        net = Sighted(seed, sharp=2.0)
        published, revoked = wino(net, length, block, tau1, tau2)
        agree(run(net, "wino", length, block_length=block, tau1=tau1, tau2=tau2), published)
        assert sum(a.count(MASK) <= b.count(MASK) for a, b in zip(published, published[1:])) <= revoked
        back += revoked
    assert back >= 8 or tau1 == 0.6, "a test in which nothing is revoked tells nothing of revoking"


def test_wino_one_at_a_time_revokes_nothing():
    net = Sighted(3, sharp=2.0)
    assert run(net, "wino", 12, tau1=2.0, tau2=1.0) == run(net, "low_confidence", 12)


# ---------------------------------------------------------------------------------------------- DAWN


def dawn(net, length, block, sink, edge, high, induced, low):
    """The three parts of the paper's section 4, by sets of positions."""
    x, states, parts = fresh(length), [], np.zeros(3, int)
    sure = dict.fromkeys(range(len(PROMPT)), 1.0)
    for span in blocks_of(length, block):
        while masks(x, span):
            token, c, _ = guess(net, x)
            a = net.run(torch.tensor([x]))[1][0].double().numpy()
            n = len(x)
            on = {i: {j for j in range(n) if j != i and a[i, j] >= edge and a[:, j].mean() <= sink} for i in range(n)}
            left = masks(x, span)
            one = {i for i in left if c[i] >= high}
            two = {i for i in left if c[i] >= induced and any(sure.get(j, 0) >= high for j in on[i])} - one
            rest = [i for i in left if c[i] >= low and i not in one | two and not on[i] & (one | two)]
            three = set()
            for i in sorted(rest, key=lambda i: (-c[i], i)):
                if not any(j in on[i] or i in on[j] for j in three):
                    three.add(i)
            fill = one | two | three or {min(left, key=lambda i: (-c[i], i))}
            x = [int(token[i]) if i in fill else x[i] for i in range(n)]
            sure |= {i: c[i] for i in fill}
            parts += [len(one), len(two), len(three)]
            states.append(x)
    return states, parts


@pytest.mark.parametrize(("block", "sink", "edge"), [(24, 0.06, 0.07), (8, 0.05, 0.05), (24, 0.2, 0.12)])
def test_dawn(block, sink, edge):
    total = np.zeros(3, int)
    bars = {"high": 0.5, "induced": 0.3, "low": 0.25}
    for seed in range(5):
        net = Sighted(seed, sharp=2.0)
        published, parts = dawn(net, 24, block, sink, edge, **bars)
        agree(run(net, "dawn", 24, block_length=block, sink=sink, edge=edge, **bars), published)
        total += parts
    assert total.min() > 0, f"each of the three parts must fill something for the test to tell: {total}"


def test_dawn_is_threshold_where_nothing_depends_on_anything():
    """With an edge that no attention reaches only `low` counts."""
    net = Sighted(2, sharp=2.0)
    alone = run(net, "dawn", 16, edge=1.0, low=0.3, steps=16)
    assert alone == run(net, "threshold", 16, threshold=0.3, steps=16) and len(alone[0]) < 16
