"""Ten rules of one screen, token for token with their published loops, at temperature 0, batch 1; and what each of them claims.

The loops are written here again from the papers, in float64, as in test_parity.py, and share nothing with the library.
"""

import json
import math

import numpy as np
import pytest
import torch
from test_parity import MASK, SPANS, Net, V, agree, best, blocks_of, fresh, guess, masks, put, run

import samplers
from samplers import OptionError, TokenDenoiser
from samplers.masked.certainty_prior import density
from samplers.random import DRAW_SELECT, uniform
from samplers.testing.tiny import TinyNet

pytestmark = pytest.mark.usefixtures("one_thread")

SEEDS = range(2)


def blockwise(net, length, block, choose):
    """Per block until it has no mask: the positions that `choose(x, span, left, token, p)` names."""
    x, states = fresh(length), []
    for span in blocks_of(length, block):
        while left := masks(x, span):
            token, p, _ = guess(net, x)
            x = put(x, choose(x, span, left, token, p), token)
            states.append(x)
    return states


def planned(net, length, steps, block, score):
    """LLaDA's equal steps a block, ranked by `score(x, span, token, p)`."""
    x, states = fresh(length), []
    each = steps // (length // block)
    for span in blocks_of(length, block):
        base, rem = divmod(len(span), each)
        for i in range(each):
            token, p, _ = guess(net, x)
            x = put(x, best(masks(x, span), score(x, span, token, p), base + (i < rem)), token)
            states.append(x)
    return states


# ---------------------------------------------------------------------------------------------- thresholds


@pytest.mark.parametrize(("length", "block"), SPANS)
@pytest.mark.parametrize(("high", "low", "radius"), [(0.5, 0.3, 4), (0.6, 0.2, 1), (0.4, 0.4, 3), (0.3, 0.5, 2)])
def test_local_leap(high, low, radius, length, block):
    def choose(x, span, left, token, p):
        anchors = [i for i in left if p[i] >= high]
        near = {i for i in left if any(abs(i - a) <= radius for a in anchors)}
        return {i for i in left if p[i] >= (low if i in near else high)} | set(best(left, p, 1))

    differs = False
    for seed in SEEDS:
        net = Net(seed, sharp=2.0)
        published = blockwise(net, length, block, choose)
        options = {"threshold": high, "relaxed_threshold": low, "radius": radius}
        agree(run(net, "local_leap", length, block_length=block, **options), published)
        differs |= published != run(net, "threshold", length, block_length=block, threshold=high)[0]
    assert differs == (high != low) or block < 8, "a relaxed threshold must tell it from `threshold`, and nothing else"


@pytest.mark.parametrize(("length", "block"), SPANS)
@pytest.mark.parametrize(("high", "alpha"), [(0.9, 0.3), (0.6, 0.5), (0.4, 1.0), (0.4, 0.0)])
def test_streaming(high, alpha, length, block):
    def choose(x, span, left, token, p):
        bar = high * (1 - alpha * (1 - len(left) / len(span)))
        return {i for i in left if p[i] >= bar} | set(best(left, p, 1))

    for seed in SEEDS:
        net = Net(seed, sharp=2.0)
        ours = run(net, "streaming", length, block_length=block, threshold=high, alpha=alpha)
        agree(ours, blockwise(net, length, block, choose))
        if alpha == 0:
            assert ours == run(net, "threshold", length, block_length=block, threshold=high)


@pytest.mark.parametrize(("length", "block", "sub"), [(24, 24, 8), (24, 12, 4), (20, 16, 8), (11, 11, 3)])
@pytest.mark.parametrize("bar", [0.2, 0.4, 0.9])
def test_fast_dllm_v2(bar, length, block, sub):
    """Its three nested loops: blocks, sub-blocks, steps."""
    for seed in SEEDS:
        net, x, published = Net(seed, sharp=1.5), fresh(length), []
        for span in blocks_of(length, block):
            for begin in range(span.start, span.stop, sub):
                part = range(begin, min(begin + sub, span.stop))
                while left := masks(x, part):
                    token, p, _ = guess(net, x)
                    x = put(x, {i for i in left if p[i] > bar} | set(best(left, p, 1)), token)
                    published.append(x)
        ours = run(net, "fast_dllm_v2", length, block_length=block, threshold=bar, sub_block=sub)
        agree(ours, published)
        if block % sub == 0:
            assert ours == run(net, "threshold", length, block_length=sub, threshold=bar)


def test_a_cap_on_steps_takes_the_next_positions_after_the_sub_block():
    for name in ("fast_dllm_v2", "slow_fast"):
        states = list(samplers.stream(TinyNet(), name, gen_length=20, block_length=20, steps=3, threshold=2.0))
        filled = [(s.x != 11)[0] for s in states]
        assert [int(f.sum()) for f in filled] == [0, 7, 14, 20], "as evenly as `threshold` does"
    states = list(samplers.stream(TinyNet(), "fast_dllm_v2", gen_length=20, steps=2, threshold=2.0, sub_block=4))
    assert (states[1].x != 11)[0].nonzero().flatten().tolist() == list(range(10))


@pytest.mark.parametrize(("length", "block"), SPANS)
@pytest.mark.parametrize("gamma", [0.15, 1.0, 4.0])
def test_entropy_sum_of_sglang_is_entropy_bound(gamma, length, block):
    """EBSampling: the lowest entropy, then each while the entropies before it add up to gamma at most."""
    for seed in SEEDS:
        net, x, published = Net(seed, sharp=2.5), fresh(length), []
        for span in blocks_of(length, block):
            while left := masks(x, span):
                token, _, p = guess(net, x)
                h = -(p * np.log(np.where(p > 0, p, 1.0))).sum(1)
                order, before, chosen = best(left, -h, len(left)), 0.0, []
                for i in order:
                    if chosen and before > gamma:
                        break
                    chosen.append(i)
                    before += h[i]
                x = put(x, chosen, token)
                published.append(x)
        agree(run(net, "entropy_bound", length, block_length=block, bound=gamma), published)
        if gamma == 0.15:
            agree(run(net, "EBSampling", length, block_length=block), published)


# ---------------------------------------------------------------------------------------------- SlowFast


def slow_fast(net, length, block, high, low, explore, window, limit):
    """Two loops that take turns; variance of the population. Returns the states and the number of fast steps."""
    x, states, quick = fresh(length), [], 0
    for span in blocks_of(length, block):
        while masks(x, span):
            reached = []
            while left := masks(x, span):  # slow
                token, p, _ = guess(net, x)
                reached.append(max([i + 1 for i in left if p[i] >= low], default=left[0] + 1))
                x = put(x, {i for i in left if p[i] >= high} or set(best(left, p, 1)), token)
                states.append(x)
                stable = len(reached) >= window and np.var(reached[-window:]) < limit
                if stable or len(reached) == explore:
                    break
            while left := [i for i in masks(x, span) if i < reached[-1]]:  # fast
                token, p, _ = guess(net, x)
                x = put(x, {i for i in left if p[i] >= high} or set(best(left, p, 1)), token)
                states.append(x)
                quick += 1
    return states, quick


@pytest.mark.parametrize(("length", "block"), [*SPANS, (32, 32)])
@pytest.mark.parametrize(
    ("high", "low", "explore", "window", "limit"),
    [
        (0.9, 0.3, 6, 2, 1.0),
        (0.5, 0.2, 8, 2, 4.0),
        (0.6, 0.25, 3, 3, 2.0),
        (0.4, 0.6, 1, 2, 1.0),
        (0.4, 0.9, 2, 2, 0.5),
    ],
)
def test_slow_fast(high, low, explore, window, limit, length, block):
    quick = 0
    for seed in SEEDS:
        net = Net(seed, sharp=1.5)
        published, fast = slow_fast(net, length, block, high, low, explore, window, limit)
        quick += fast
        options = {"threshold": high, "low": low, "explore": explore, "history": window, "variance": limit}
        agree(run(net, "slow_fast", length, block_length=block, **options), published)
    assert quick > 0 or block < 8 or low > high, "a test that never saw the fast phase"


# ---------------------------------------------------------------------------------------------- Saber


@pytest.mark.parametrize(("length", "block"), [*SPANS, (32, 32)])
@pytest.mark.parametrize("n", [1, 2, 5])
def test_saber(n, length, block):
    backtracks = 0
    for seed in SEEDS:
        net, x, published = Net(seed, sharp=1.5), fresh(length), []
        filled, before = {}, {}  # confidence at the last fill; in the forward before (a position never asked about: 0)
        for span in blocks_of(length, block):
            while left := masks(x, span):
                token, p, _ = guess(net, x)
                bar = np.mean(list(filled.values())) if filled else 1.0
                sure = [i for i in left if p[i] > bar]
                chosen = sure if len(sure) >= n else best(left, p, n)
                filled |= {i: p[i] for i in chosen}
                x = put(x, chosen, token)
                k = len(chosen)
                if masks(x, span):
                    change = {i: before.get(i, 0.0) - p[i] for i in span if x[i] != MASK}  # the largest goes first
                    again = best(list(change), change, min(k - 1, max(n // 2, -(-k // 8))))
                    x = [MASK if i in again else v for i, v in enumerate(x)]
                    backtracks += len(again)
                before |= {i: p[i] for i in span}
                published.append(x)
        agree(run(net, "saber", length, block_length=block, least=n), published)
    assert backtracks > 0 or n == 1 or block <= n, "nothing was ever masked again"


def test_saber_keeps_a_cap_on_steps():
    for steps in (1, 2, 3, 5, 9):
        for least in (1, 2, 6):
            out = samplers.sample(TinyNet(visible_too=True), "saber", gen_length=20, steps=steps, least=least)
            assert out.nfe <= steps and not (out.x == 11).any()


# ---------------------------------------------------------------------------------------------- scores


FREQUENCY = (np.arange(1, V + 1) ** 2.0).tolist()
PC = [(16, 16, 16, 0.25), (16, 8, 4, 0.0), (24, 12, 8, 0.5), (16, 4, 8, 0.05)]


@pytest.mark.parametrize(("length", "steps", "block", "lam"), PC)
@pytest.mark.parametrize(("given", "alpha"), [(None, 10.0), (FREQUENCY, 10.0), (FREQUENCY, 0.5)])
def test_pc_sampler(given, alpha, length, steps, block, lam):
    f = np.full(V, 1 / V) if given is None else np.array(given) / sum(given)

    def score(x, span, token, p):
        value = np.minimum(-p * np.log(f[token] + 1e-9), alpha)
        return value * np.exp(-lam * (np.arange(len(x)) - span.start))  # of short blocks, so nothing is rounded to 0

    for seed in SEEDS:
        net = Net(seed)
        ours = run(net, "pc_sampler", length, steps=steps, block_length=block, lam=lam, alpha=alpha, frequencies=given)
        agree(ours, planned(net, length, steps, block, score))


def scripted(probability):
    """A model that says the same whatever it sees: probability (L, V - 1)."""
    logits = torch.log(torch.cat([probability, torch.zeros_like(probability[:, :1])], 1))
    return TokenDenoiser.wrap(lambda ids: logits[: ids.shape[1]].expand(len(ids), -1, -1), vocab_size=V, mask_id=MASK)


def test_pc_sampler_far_from_the_start_is_what_it_is_near_it():
    """exp(-0.25 x 500) is 0 in float32: ranked by the product itself, all positions would be equal there."""
    g = torch.Generator().manual_seed(1)
    p = torch.softmax(3 * torch.randn(12, V - 1, generator=g), 1)
    assert torch.exp(torch.tensor(-0.25 * 500)) == 0

    def order(prompt, p):
        states = list(samplers.stream(scripted(p), "pc_sampler", prompt=prompt, gen_length=12))
        return [int((a.x != b.x).nonzero()[0, 1]) - len(prompt) for a, b in zip(states, states[1:])]

    near = order([], p)
    assert near != list(range(12)) and near == order([1] * 500, torch.cat([p[:1].expand(500, -1), p]))


def test_frequencies_may_be_numbers_a_tensor_or_a_file(tmp_path):
    file = tmp_path / "counts.json"
    file.write_text(json.dumps(FREQUENCY))
    net = Net(0)
    runs = [run(net, "pc_sampler", 12, frequencies=given) for given in (FREQUENCY, torch.tensor(FREQUENCY), str(file))]
    assert runs[0] == runs[1] == runs[2] != run(net, "pc_sampler", 12)
    out = samplers.sample(net.wrapped(), "pc_sampler", gen_length=4, frequencies=FREQUENCY)
    assert out.options["frequencies"] == "13 numbers"


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ([1.0] * 5, r"shape \(5,\).*13 tokens"),
        ([-1.0] + [1.0] * 12, "0 or more"),
        ([math.nan] + [1.0] * 12, "finite"),
        ([0.0] * 13, "not all 0"),
        ("no/such/file.json", "JSON file with a list"),
        ({"a": 1}, "frequencies"),
    ],
)
def test_frequencies_that_are_none(given, says):
    net = Net(0)
    with pytest.raises(OptionError, match=says):
        samplers.sample(net.wrapped(), "pc_sampler", gen_length=4, frequencies=given)
    assert net.asked == 0, "before the first forward pass"


@pytest.mark.parametrize(("length", "steps", "block"), [(16, 16, 16), (16, 8, 4), (24, 12, 8)])
@pytest.mark.parametrize("sigma", [0.5, 3.0, 10.0])
def test_certainty_prior(sigma, length, steps, block):
    """d2Cache: a Gaussian mean of what is known, on a line that is known to its left, and as its last position is to its right."""

    def score(x, span, token, p):
        far = 200
        known = [1.0] * far + [float(v != MASK) for v in x] + [float(x[-1] != MASK)] * far
        weight = np.exp(-(np.arange(-far, far + 1) ** 2) / (2 * sigma**2))
        near = np.array([np.dot(known[i : i + 2 * far + 1], weight) for i in range(len(x))])
        return p * near / weight.sum()

    for seed in SEEDS:
        net = Net(seed)
        ours = run(net, "certainty_prior", length, steps=steps, block_length=block, sigma=sigma)
        agree(ours, planned(net, length, steps, block, score))


def test_density_has_the_same_bits_in_every_batch():
    prompts = [[1, 2, 3], [4], [], [5] * 9]
    canvas = {"gen_length": 21, "seed": 3, "steps": 7, "block_length": 7}
    together = list(samplers.stream(TinyNet(), "random_order", prompt=prompts, **canvas))
    alone = [
        list(samplers.stream(TinyNet(), "random_order", prompt=[p], first_row=i, **canvas))
        for i, p in enumerate(prompts)
    ]
    for k in (0, 3, 6):
        whole = density(together[k], 4.0)
        for i, states in enumerate(alone):
            part = density(states[k], 4.0)
            assert torch.equal(whole[i : i + 1, : part.shape[1]], part)
            assert ((part >= 0) & (part <= 1)).all()


# ---------------------------------------------------------------------------------------------- Prophet, SchED


BARS = {
    "stages": lambda p, high, low: high if p < 1 / 3 else (high + low) / 2 if p < 2 / 3 else low,
    "linear": lambda p, high, low: high + (low - high) * p,
    "cosine": lambda p, high, low: low + (high - low) * (1 + math.cos(math.pi * p)) / 2,
    "exponential": lambda p, high, low: low + (high - low) * math.exp(-2 * p),
}


@pytest.mark.parametrize(("length", "steps", "block"), [(16, 16, 16), (16, 8, 4), (24, 12, 8)])
@pytest.mark.parametrize("schedule", BARS)
@pytest.mark.parametrize("span", ["answer", "block"])
def test_prophet(span, schedule, length, steps, block):
    """LLaDA's loop that leaves by the mean gap; here of the masks that are left."""
    early = 0
    for seed in range(4):
        high, low = 2.5, 0.5
        net, x, published, done = Net(seed, sharp=1.5), fresh(length), [], 0
        each = steps // (length // block)
        for part in blocks_of(length, block):
            base, rem = divmod(len(part), each)
            for i in range(each):
                inside = masks(x, part if span == "block" else None)
                if not masks(x, part):
                    break
                logits = np.sort(net.logits(x), 1)
                token, p, _ = guess(net, x)
                gap = np.mean([min(logits[j, -1] - logits[j, -2], 32) for j in inside])
                if gap >= BARS[schedule](done / steps, high, low):
                    early += 1
                    x = put(x, inside, token)
                else:
                    x = put(x, best(masks(x, part), p, base + (i < rem)), token)
                done += 1
                published.append(x)
        options = {"schedule": schedule, "high": high, "low": low, "span": span}
        agree(run(net, "prophet", length, steps=steps, block_length=block, **options), published)
    assert early > 0, "it never left early"


def test_a_model_that_is_certain_takes_prophet_one_forward_pass():
    certain = torch.eye(V - 1)[torch.arange(40) % (V - 1)]
    out = samplers.sample(scripted(certain), "prophet", gen_length=40, block_length=8)
    assert out.nfe == 1 and out.x[0].tolist() == [i % (V - 1) for i in range(40)]
    one = torch.cat([certain[:1], torch.full((39, V - 1), 1 / (V - 1))])  # one position is certain, 39 are even
    assert samplers.sample(scripted(one), "prophet", gen_length=40).nfe == 40, "one infinite gap decides nothing"


def test_sched_is_prophet_with_another_bar():
    net = Net(2, sharp=1.5)
    assert run(net, "sched", 16) == run(net, "prophet", 16, schedule="linear", low=0.0) != run(net, "prophet", 16)


# ---------------------------------------------------------------------------------------------- DUS


def rounds_of(size, base):
    """The code's levels: strides B // base, then // base again, each without what came before; then what is left."""
    seen, levels, stride = set(), [], size // base
    while stride >= 1:
        levels.append([i for i in range(size) if i % stride == 0 and i not in seen])
        seen |= set(levels[-1])
        stride //= base
    rest = [i for i in range(size) if i not in seen]
    return [level for level in [*levels, rest] if level]


@pytest.mark.parametrize("base", [2, 3, 4])
@pytest.mark.parametrize("size", [*range(1, 14), 16, 27, 32, 64])
def test_dilated(size, base):
    net, x, published = Net(1), fresh(2 * size), []
    for span in blocks_of(2 * size, size):
        for level in rounds_of(size, base):
            token, _, _ = guess(net, x)
            x = put(x, [span.start + i for i in level], token)
            published.append(x)
    agree(run(net, "dilated", 2 * size, block_length=size, base=base), published)
    sampler = samplers.create("dilated", base=base)
    assert 2 * sampler.expected_nfe(size, 10**6) == len(published)
    if base == 2 and math.log2(size) % 1 == 0:
        assert len(rounds_of(size, 2)) == max(1, math.log2(size)), "a power of two: its logarithm"


def test_dilated_with_fewer_steps_makes_the_last_rounds():
    states = list(samplers.stream(TinyNet(), "dilated", gen_length=16, steps=2))
    first = (states[1].x != 11)[0].nonzero().flatten().tolist()
    assert first == list(range(0, 16, 2)) and len(states) == 3
    assert samplers.sample(TinyNet(), "dilated", gen_length=16, steps=1).nfe == 1


# ---------------------------------------------------------------------------------------------- learned


def confident(confidence, open):
    return confidence


@pytest.mark.parametrize(("length", "block"), SPANS)
@pytest.mark.parametrize("bar", [0.2, 0.5])
def test_learned(bar, length, block):
    """Learn2PD's loop with the filter p^2: what it takes, and the best."""
    for seed in SEEDS:
        net = Net(seed, sharp=1.5)
        published = blockwise(
            net,
            length,
            block,
            lambda x, span, left, token, p: {i for i in left if p[i] ** 2 > bar} | set(best(left, p, 1)),
        )
        ours = run(net, "learned", length, block_length=block, select=lambda c, o: c**2, threshold=bar)
        agree(ours, published)
        assert ours == run(net, "learned", length, block_length=block, select=lambda c, o: o & (c**2 > bar))


@pytest.mark.parametrize("steps", [16, 5])
def test_learned_without_a_function_is_the_plan(steps):
    net = Net(0)
    assert run(net, "learned", 16, steps=steps) == run(net, "low_confidence", 16, steps=steps)


def test_a_policy_takes_each_position_with_its_own_probability():
    out = next(
        iter(list(samplers.stream(TinyNet(), "learned", gen_length=4000, select=lambda c, o: 0.3 * o, draw=True))[1:2])
    )
    taken = (out.x != 11)[0]
    u = uniform(0, 0, torch.arange(4000), 0, DRAW_SELECT)
    assert (taken != (u < 0.3)).sum() <= 1, "the best position, which is always taken"
    assert abs(int(taken.sum()) - 1200) < 4 * math.sqrt(4000 * 0.3 * 0.7)


def test_what_learned_refuses_and_records():
    with pytest.raises(OptionError, match=r"returned shape \(1, 3\).*\(1, 6\)"):
        samplers.sample(TinyNet(), "learned", gen_length=6, select=lambda c, o: o[:, :3])
    with pytest.raises(OptionError, match="returned None"):
        samplers.sample(TinyNet(), "learned", gen_length=6, select=lambda c, o: None)
    for wrong in ("nosuchmodule:f", "math:nothing", "math", "math:pi"):
        with pytest.raises(OptionError, match=r"function|package\.module:name"):
            samplers.create("learned", select=wrong)
    with pytest.raises(OptionError, match="must be"):
        samplers.create("learned", select=3)
    by_name = samplers.sample(TinyNet(), "learned", gen_length=9, select=f"{__name__}:confident")
    itself = samplers.sample(TinyNet(), "learned", gen_length=9, select=confident)
    assert torch.equal(by_name.x, itself.x) and by_name.nfe == itself.nfe < 9
    assert itself.options["select"] == f"{__name__}:confident"
    layer = torch.nn.Linear(1, 1)
    module = samplers.sample(TinyNet(), "learned", gen_length=9, select=lambda c, o: layer(c[:, :, None])[:, :, 0])
    assert not (module.x == 11).any()
