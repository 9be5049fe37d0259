"""Samplers that change their mind, remdm and p2: exact laws, trajectories by hand, marginals, costs."""

import math

import numpy as np
import pytest
import torch
from laws import Chain, LeaveOneOut, rows_are_what_they_are_alone, sampled_like

import samplers
from samplers import OptionError, TokenDenoiser
from samplers.random import uniform
from samplers.testing.tiny import TinyJoint, TinyNet

pytestmark = pytest.mark.usefixtures("one_thread")

DRAW_REMASK = 9  # a promise to users' old seeds, like the others in samplers.random


# ---------------------------------------------------------------------------------------------- remdm, its law


def alpha_loop(t, t_on, t_off, alpha_on):
    """The paper's loop in its own time, which falls from 1 to 0."""
    if t > t_on:
        return (1 - t) * alpha_on / (1 - t_on)
    return alpha_on if t > t_off else 1 - t * (1 - alpha_on) / t_off


def remasking(chain, strategy, eta, steps, alpha=lambda t: 1 - t):
    """Section 3 of the paper in its own words: times t > s, alpha falling in time, sigma_max = min(1, (1 - alpha_s) / alpha_t)."""

    def step(state, k):
        x, psi = state if strategy == "conf" else (state, None)
        t, s = 1 - k / steps, 1 - (k + 1) / steps
        at, as_ = alpha(t), alpha(s)
        top = min(1.0, (1 - as_) / at) if at > 0 else 1.0
        resting = strategy == "loop" and 0.05 < t <= 0.55 + 1e-12
        sigma = {"cap": min(eta, top), "rescale": eta * top, "loop": min(eta, top) if resting else 0.0, "conf": top}[
            strategy
        ]
        p, out = chain.p(x), {}
        seen = [i for i in range(chain.length) if x[i] != chain.mask]
        share = dict.fromkeys(seen, sigma)
        if strategy == "conf":
            total = sum(math.exp(-psi[i]) for i in seen)
            share = {i: sigma * math.exp(-psi[i]) / total for i in seen}
            sigma = 0.0  # of masked tokens: exp(-infinity) of them
        reveal = (as_ - (1 - sigma) * at) / (1 - at) if k + 1 < steps else 1.0
        options = [
            {v: 1 - share[i], chain.mask: share[i]}
            if i in share
            else {chain.mask: 1 - reveal, **{w: reveal * p[i][w] for w in range(chain.mask)}}
            for i, v in enumerate(x)
        ]
        for y, weight in chain.moves(options).items():
            if strategy == "conf":
                told = tuple(
                    0.0 if b == chain.mask else psi[i] if a != chain.mask else p[i][b]
                    for i, (a, b) in enumerate(zip(x, y))
                )
                out[(y, told)] = out.get((y, told), 0.0) + weight
            else:
                out[y] = out.get(y, 0.0) + weight
        return out

    start = (chain.start(), (0.0,) * chain.length) if strategy == "conf" else chain.start()
    return chain.run(step, steps, start)


@pytest.mark.parametrize("steps", [2, 3, 5])
@pytest.mark.parametrize(
    ("strategy", "eta"), [("cap", 0.4), ("cap", 1.0), ("rescale", 0.7), ("conf", 1.0), ("loop", 0.1)]
)
def test_remdm_is_its_formula(strategy, eta, steps):
    problem = TinyJoint(3, 2, skew=1.5)
    chain = Chain(problem)
    alpha = (lambda t: alpha_loop(t, 0.55, 0.05, 0.9)) if strategy == "loop" else (lambda t: 1 - t)
    law = remasking(chain, strategy, eta, steps, alpha)
    assert sampled_like(problem, "remdm", law, steps=steps, strategy=strategy, eta=eta)
    plain = remasking(chain, "cap", 0.0, steps)
    if strategy != "loop" and steps > 2 and chain.tv(law - plain + chain.law) > 0.03:
        assert not sampled_like(problem, "remdm", law, steps=steps, strategy="cap", eta=0.0)


def test_remdm_on_other_schedules():
    problem = TinyJoint(3, 2, skew=1.5)
    chain = Chain(problem)
    law = remasking(chain, "rescale", 0.8, 4, lambda t: math.sin(math.pi * (1 - t) / 2) ** 2)
    assert sampled_like(problem, "remdm", law, steps=4, strategy="rescale", eta=0.8, schedule="sin^2")


def test_remasking_converges_and_an_exact_model_does_not_need_it():
    """More steps, less error, whatever is masked again; but at the same steps each second draw is made in parallel, too.

    (When it pays, with exact models and others: docs/remasking.md.)
    """
    chain = Chain(TinyJoint(3, 2, skew=1.5))
    tv = {(eta, n): chain.tv(remasking(chain, "rescale", eta, n)) for eta in (0.0, 0.3, 1.0) for n in (6, 24)}
    for eta in (0.0, 0.3, 1.0):
        assert tv[eta, 24] < 0.5 * tv[eta, 6]
    for n in (6, 24):
        assert tv[0.0, n] < tv[0.3, n] < tv[1.0, n]


@pytest.mark.parametrize(
    ("options", "schedule"),
    [
        ({"strategy": "cap", "eta": 0.2}, "linear"),
        ({"strategy": "rescale", "eta": 0.9}, "1-cos"),
        ({"strategy": "loop", "eta": 0.08}, "linear"),
        ({"strategy": "loop", "eta": 0.08}, "sin^2"),
    ],
)
def test_remdm_keeps_the_marginals(options, schedule):
    """The visible fraction is the schedule's at every step, whatever was masked again."""
    steps, rows, length = 20, 300, 40
    out = samplers.sample(
        TinyNet(vocab=3, reach=1, visible_too=True),
        "remdm",
        schedule=schedule,
        gen_length=length,
        steps=steps,
        batch=rows,
        trace=True,
        **options,
    )
    a = samplers.mask_schedule(schedule)
    again = 0
    for k, (state, before) in enumerate(zip(out.trace[1:], out.trace), 1):
        t = 1 - k / steps
        if options["strategy"] == "loop":
            # The paper's alpha for the linear schedule; for another, that schedule at the progress where it is so far.
            expected = alpha_loop(t, 0.55, 0.05, 0.9)
            if schedule != "linear":
                rest = float(a.progress(torch.tensor(0.9, dtype=torch.float64)))
                expected = (
                    float(a(rest * (1 - t) / 0.45))
                    if t > 0.55
                    else 0.9
                    if t > 0.05 + 1e-12
                    else float(a(1 - t * (1 - rest) / 0.05))
                )
        else:
            expected = float(a(1 - t))
        visible = float((~state.masked).double().mean())
        assert abs(visible - expected) < 5 * math.sqrt(expected * (1 - expected) / rows / length) + 1e-9
        again += int((state.masked & ~before.masked).sum())
    assert again > 100, "and something was masked again"


def test_remdm_conf_by_hand():
    """sigma_i = softmax(-psi)_i sigma_max over visible tokens; masked ones appear as without it; psi is kept from the draw."""
    denoiser = TinyNet(vocab=5, visible_too=True)
    rows, length, steps, seed = 6, 10, 8, 2
    out = samplers.sample(
        denoiser,
        "remdm",
        strategy="conf",
        gen_length=length,
        steps=steps,
        batch=rows,
        seed=seed,
        trace=True,
        temperature=0.0,
    )
    psi, again = np.zeros((rows, length)), 0
    for k, (before, after) in enumerate(zip(out.trace, out.trace[1:])):
        top = min(1.0, (1 - (k + 1) / steps) / (k / steps)) if k else 1.0
        reveal = 1 / (steps - k)
        probability = torch.softmax(denoiser.predict(before.x).view(rows, length, -1)[..., :5].double(), -1).numpy()
        for r in range(rows):
            x = before.x[r].tolist()
            total = sum(math.exp(-psi[r, i]) for i in range(length) if x[i] != 5)
            for i in range(length):
                u = float(uniform(seed, r, i, k, DRAW_REMASK))
                if x[i] == 5:
                    appears = u < reveal or k + 1 == steps
                    assert int(after.x[r, i]) == (int(probability[r, i].argmax()) if appears else 5)
                    psi[r, i] = probability[r, i].max() if appears else psi[r, i]
                else:
                    masked = u < top * math.exp(-psi[r, i]) / total
                    assert int(after.x[r, i]) == (5 if masked else x[i])
                    again += masked
    assert again > 5


@pytest.mark.parametrize("steps", [1, 3, 20, 60])
@pytest.mark.parametrize(
    "options",
    [
        {"eta": 0.5},
        {"strategy": "rescale", "eta": 1.0},
        {"strategy": "loop"},
        {"strategy": "loop", "eta": 0.1, "schedule": "1-cos"},
    ],
    ids=str,
)
def test_remdm_costs_what_it_says(options, steps):
    sampler = samplers.create("remdm", **options)
    out = samplers.sample(TinyNet(vocab=3, reach=1), sampler, gen_length=12, batch=1200, steps=steps)
    counted = out.nfe_rows.double()
    assert (
        abs(float(counted.mean()) - sampler.expected_nfe(12, steps)) < 4 * float(counted.std()) / math.sqrt(1200) + 1e-9
    )
    assert out.nfe <= steps


def test_eta_left_out_masks_as_often_whatever_the_steps():
    """At 1,024 steps it is the authors'; at others the same number of times a token."""
    for strategy, eta in (("cap", 0.008), ("rescale", 0.015), ("loop", 0.02)):
        bare = samplers.create("remdm", strategy=strategy)
        for steps in (4, 64, 1024):
            given = samplers.create("remdm", strategy=strategy, eta=min(1.0, eta * 1024 / steps))
            assert bare.expected_nfe(16, steps) == pytest.approx(given.expected_nfe(16, steps), rel=1e-12)
        run = {"gen_length": 16, "steps": 20, "batch": 4}
        same = samplers.create("remdm", strategy=strategy, eta=min(1.0, eta * 1024 / 20))
        assert (samplers.sample(TinyNet(), bare, **run).x == samplers.sample(TinyNet(), same, **run).x).all()


def test_remdm_asks_only_at_masks():
    """TinyNet refuses any other question. And where its counts are known before the model answers, it says so."""
    for strategy in ("cap", "rescale", "conf", "loop"):
        samplers.sample(TinyNet(), "remdm", strategy=strategy, gen_length=20, steps=30, eta=0.1, batch=4)
        assert samplers.create("remdm", strategy=strategy).effective_facts.static_plan == (strategy != "conf")
    assert samplers.create("remdm").expected_nfe(8, 8) > samplers.create("radd").expected_nfe(8, 8)
    assert samplers.create("remdm", eta=0.0).expected_nfe(8, 8) == pytest.approx(
        samplers.create("radd").expected_nfe(8, 8)
    )


# ---------------------------------------------------------------------------------------------- p2, its law


def scheduled_count(chain, steps, eta=1.0, planner="self"):
    """The rule on exact probabilities at temperature 1: all draws of all positions, written out."""

    def step(x, k):
        n, p, out = chain.length, chain.p(x), {}
        hide = math.floor(n * (1 - (k + 1) / steps) + 1e-9)
        draws = chain.moves([{w: p[i][w] for w in range(chain.mask) if p[i][w] > 0} for i in range(n)])
        for drawn, weight in draws.items():
            score = []
            for i in range(n):
                seen = x[i] != chain.mask
                chance = p[i][x[i]] if seen and planner == "token" else p[i][drawn[i]]
                score.append((eta if seen else 1.0) * math.log(chance) if eta or not seen else math.inf)
            stands = sorted(range(n), key=lambda i: (-score[i], i))[: n - hide]
            y = tuple((drawn[i] if x[i] == chain.mask else x[i]) if i in stands else chain.mask for i in range(n))
            out[y] = out.get(y, 0.0) + weight
        return out

    return chain.run(step, steps)


@pytest.mark.parametrize("steps", [2, 3])
@pytest.mark.parametrize("options", [{}, {"planner": "token"}, {"eta": 2.0}, {"eta": 0.0}], ids=str)
@pytest.mark.parametrize("model", [TinyJoint, LeaveOneOut])
def test_p2_is_its_rule(model, options, steps):
    problem = model(3, 2, skew=1.5)
    chain = Chain(problem)
    law = scheduled_count(chain, steps, **options)
    assert sampled_like(problem, "p2", law, steps=steps, **options)
    assert not sampled_like(problem, "p2", chain.law, steps=steps, **options), "it is biased"


def test_a_model_that_repeats_visible_tokens_finds_no_fault():
    """Then eta, planner and remasking make no difference: p2 is the greedy rule with its counts from kappa."""
    problem = TinyJoint(4, 3)
    runs = [
        samplers.sample(problem, "p2", batch=200, steps=4, seed=3, **options).x
        for options in ({}, {"eta": 0.0}, {"eta": 5.0}, {"planner": "token"})
    ]
    assert all((x == runs[0]).all() for x in runs)
    greedy = samplers.sample(problem, "low_confidence", batch=200, steps=4, seed=3, temperature=1.0).x
    assert (greedy == runs[0]).all()


# ---------------------------------------------------------------------------------------------- p2, by hand

A, B, C, M = range(4)


def scripted(script):
    """A model that answers each row of tokens with the (token, probability) pairs written down for it."""

    def answer(ids):
        out = torch.zeros(*ids.shape, 4)
        for r, row in enumerate(ids.tolist()):
            for i, best in enumerate(script[tuple(row)]):
                rest = [v for v in (A, B, C) if v not in best]
                for v in (A, B, C):
                    out[r, i, v] = best.get(v, (1 - sum(best.values())) / max(len(rest), 1))
        return out.log()

    return TokenDenoiser.wrap(answer, vocab_size=4, mask_id=M)


FIRST = [{A: 0.9}, {B: 0.8}, {C: 0.7}, {A: 0.6}]  # what it says of nothing but masks: position 0 goes first


@pytest.mark.parametrize(
    ("options", "trajectory"),
    [
        # Seeing A at 0 the model says B there (0.5; A has 0.3): the draw's score is the lowest, and A goes.
        ({}, [(A, M, M, M), (M, B, C, M), (C, B, C, M), (C, B, C, A)]),
        ({"planner": "token"}, [(A, M, M, M), (M, B, C, M), (C, B, C, M), (C, B, C, A)]),
        # Never masked again: A stays, with what the model says of A _ _ _ and on.
        ({"eta": 0.0}, [(A, M, M, M), (A, B, M, M), (A, B, C, M), (A, B, C, A)]),
        # log 0.5 at 0.5 is better than log 0.7 at 1, of the draw; log 0.3 at 0.5 is not, of the token.
        ({"eta": 0.5}, [(A, M, M, M), (A, B, M, M), (A, B, C, M), (A, B, C, A)]),
        ({"eta": 0.5, "planner": "token"}, [(A, M, M, M), (M, B, C, M), (C, B, C, M), (C, B, C, A)]),
        # Two of the four stand after the first step (sin(pi/8) = 0.38), all after the third.
        ({"kappa": "sin"}, [(A, B, M, M), (A, B, C, M), (A, B, C, A)]),
    ],
    ids=str,
)
def test_p2_by_hand(options, trajectory):
    denoiser = scripted(
        {
            (M, M, M, M): FIRST,
            (A, M, M, M): [{B: 0.5, A: 0.3}, {B: 0.8}, {C: 0.7}, {A: 0.6}],
            (M, B, C, M): [{C: 0.95}, {B: 0.9}, {C: 0.85}, {A: 0.6}],
            (C, B, C, M): [{C: 0.99}] * 3 + [{A: 0.6}],
            (A, B, M, M): [{A: 0.9}, {B: 0.9}, {C: 0.8}, {A: 0.6}],
            (A, B, C, M): [{A: 0.9}, {B: 0.9}, {C: 0.8}, {A: 0.6}],
        }
    )
    out = samplers.sample(denoiser, "p2", gen_length=4, steps=4, temperature=0.0, trace=True, **options)
    assert [tuple(s.x[0].tolist()) for s in out.trace[1:]] == trajectory
    assert out.nfe == len(trajectory)


def reference_p2(model, prompt, length, steps, eta, alpha, planner):
    """One row at temperature 0, a step a forward, in numpy."""
    x = np.array(prompt + [model.mask_id] * length)
    made = np.arange(len(x)) >= len(prompt)
    for i in range(1, steps + 1):
        logits = model.predict(torch.tensor(x)[None]).numpy().astype(np.float64)[:, : model.mask_id]
        p = np.exp(logits - logits.max(1, keepdims=True))
        p /= p.sum(1, keepdims=True)
        x0 = p.argmax(1)
        seen = made & (x != model.mask_id)
        of = np.where(seen & (planner == "token"), np.where(x == model.mask_id, 0, x), x0)
        score = alpha * np.log(p[range(len(x)), of]) + (1 - alpha) * (p * np.log(p)).sum(1)
        score = np.where(made, np.where(seen, eta * score, score), np.inf)
        if eta == 0:
            score[seen] = np.inf
        hide = math.floor(length * (1 - i / steps) + 1e-9)
        low = sorted(np.flatnonzero(made), key=lambda j: (score[j], -j))[:hide]
        x = np.where(made & (x == model.mask_id), x0, x)
        x[low] = model.mask_id
    return x.tolist()


@pytest.mark.parametrize(
    "options",
    [{}, {"eta": 2.0}, {"eta": 0.0}, {"alpha": 0.3}, {"planner": "token", "eta": 0.7}, {"alpha": 0.0}],
    ids=str,
)
def test_p2_is_the_published_rule_at_temperature_0(options):
    changed = 0
    for length, steps in ((12, 12), (12, 5), (9, 4), (6, 20)):
        model = TinyNet(visible_too=True, seed=length)
        prompts = [[1, 2, 3], [4, 0, 9]]
        out = samplers.sample(
            model, "p2", prompt=prompts, gen_length=length, steps=steps, temperature=0.0, trace=True, **options
        )
        full = {"eta": 1.0, "alpha": 1.0, "planner": "self"} | options
        for row, prompt in zip(out.x.tolist(), prompts):
            assert row == reference_p2(model, prompt, length, steps, **full)
        changed += sum(int((b.masked & ~a.masked).sum()) for a, b in zip(out.trace, out.trace[1:]))
    assert (changed > 0) == (options.get("eta") != 0), "tokens were masked again, but not with eta = 0"


def test_p2_is_done_when_nothing_can_change():
    for length, steps, nfe in ((8, 8, 8), (8, 3, 3), (8, 16, 15), (4, 20, 16), (1, 5, 1)):
        out = samplers.sample(TinyNet(visible_too=True), "p2", gen_length=length, steps=steps)
        assert out.nfe == nfe == samplers.create("p2").expected_nfe(length, steps)


# ---------------------------------------------------------------------------------------------- both


OPTIONS = [
    ("remdm", {"strategy": "cap", "eta": 0.5}),
    ("remdm", {"strategy": "rescale", "eta": 1.0, "schedule": "sin^2"}),
    ("remdm", {"strategy": "conf"}),
    ("remdm", {"strategy": "loop", "eta": 0.1}),
    ("p2", {"planner": "token", "eta": 2.0}),
    ("p2", {"eta": 0.0, "alpha": 0.4, "kappa": "1-cos"}),
]


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
@pytest.mark.parametrize(
    "setting", [{"steps": 5}, {"block_length": 5, "steps": 9}, {"cfg_scale": 1.5, "steps": 40}], ids=str
)
def test_options_keep_what_the_kit_asks_of_defaults(name, options, setting):
    rows_are_what_they_are_alone(TinyNet(visible_too=name == "p2"), name, **options, **setting)


@pytest.mark.parametrize(("name", "options"), OPTIONS, ids=str)
def test_a_stop_phrase_counts_when_its_block_is_decided(name, options):
    denoiser = TinyNet(visible_too=name == "p2")
    run = {"gen_length": 24, "batch": 6, "seed": 2, "block_length": 6, **options}
    stop = int(samplers.sample(denoiser, name, **run).x[0, 3])
    out = samplers.sample(denoiser, name, stop=stop, **run)
    assert int(out.lengths[0]) <= 4
    for row, end in zip(out.x.tolist(), out.lengths.tolist()):
        assert stop not in row[: end - 1] and denoiser.mask_id not in row and set(row[end:]) <= {samplers.PAD}
        assert row[end - 1] == stop or end == 24


def test_times_are_the_schedules():
    """A time-conditioned model sees what the schedule says is masked, not what happens to be."""
    for name, options in (("remdm", {"strategy": "cap", "eta": 0.3}), ("p2", {})):
        denoiser = TinyJoint(length=4, time_conditioned=True)
        samplers.sample(denoiser, name, batch=200, steps=4, block_length=2, **options)
        assert [round(float(t[0]), 9) for t in denoiser.times] == [1.0, 0.75, 0.5, 0.25]


@pytest.mark.parametrize(
    "wrong", [{"strategy": "capp"}, {"eta": 1.5}, {"t_on": 1.0}, {"t_off": 0.6}, {"schedule": "cosine"}], ids=str
)
def test_remdm_refuses(wrong):
    with pytest.raises(OptionError, match=next(iter(wrong))):
        samplers.create("remdm", **wrong)
