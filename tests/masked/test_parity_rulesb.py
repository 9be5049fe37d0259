"""Rules that mask again or grow, beside their published loops in float64, batch 1; and what they keep, against enumeration.

The loops share nothing with the library but the random numbers of the canvas. See test_parity.py.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from laws import Chain, sampled_like
from test_parity import MASK, PROMPT, Net, best, blocks_of, fresh, guess, masks, put

import samplers
from samplers import OptionError, SamplersError, TokenDenoiser
from samplers.random import DRAW_REMASK, uniform
from samplers.testing.tiny import TinyJoint, TinyNet

pytestmark = pytest.mark.usefixtures("one_thread")


def run(net, name, length, **kw):
    """The canvases after each step, and the forward passes."""
    out = samplers.sample(net.wrapped(), name, prompt=PROMPT, gen_length=length, temperature=0.0, trace=True, **kw)
    return [s.x[0].tolist() for s in out.trace][1:], out.nfe


def numbers(length, step):
    """The uniform numbers of a row's step that say what is masked again."""
    return uniform(0, 0, torch.arange(len(PROMPT) + length), step, DRAW_REMASK).numpy()


# ---------------------------------------------------------------------------------------------- CORE


def core(net, length, steps, block, every, candidates, revise, protect):
    """core_generate.py's loop: `steps` fills in each block, and a second forward pass where it verifies; 0.3 is its constant."""
    x, states, looks, replaced = fresh(length), [], 0, 0
    for span in blocks_of(length, block):
        base, rem = divmod(len(span), steps)
        for i in range(steps):
            fill = base + (i < rem)
            p = softmax_of(net, x)
            token, sure = p.argmax(1), p.max(1)
            mine = best(masks(x, span), sure, fill)
            new = put(x, mine, token)
            verify = i % every == 0 and int(0.25 * steps) <= i < int(0.75 * steps) and fill > 0
            judged = [j for j in span if x[j] != MASK and j < span[-1] + 1 - protect] if verify else []
            if judged:
                top = np.sort(p, 1)
                hidden = best(judged, top[:, -2] - top[:, -1], candidates)
                q = softmax_of(net, [MASK if j in hidden else v for j, v in enumerate(x)])
                looks += 1
                other = [j for j in hidden if q[j].argmax() != x[j] and q[j].max() >= 0.3]
                wrong = best(other, [-math.log(q[j][x[j]] + 1e-10) for j in range(len(x))], min(revise, fill))
                replaced += len(wrong)
                new = put(new, wrong, q.argmax(1))
            x = new
            states.append(x)
    return states, looks, replaced


def softmax_of(net, x):
    return guess(net, x)[2]


@pytest.mark.parametrize(
    ("length", "steps", "block", "every", "candidates", "revise", "protect"),
    [(16, 16, 16, 2, 4, 1, 0), (16, 8, 16, 1, 32, 2, 3), (24, 12, 12, 3, 8, 1, 2), (20, 10, 20, 1, 16, 2, 4)],
)
def test_core(length, steps, block, every, candidates, revise, protect):
    replaced = 0
    for seed in range(10):
        published, looks, more = core(Net(seed, sharp=2.5), length, steps, block, every, candidates, revise, protect)
        replaced += more
        # Ours counts the passes that look back among `steps`: as many as the published loop may take.
        need = sum(i > 0 and i % every == 0 and steps // 4 <= i < 3 * steps // 4 for i in range(steps)) + steps
        options = {"every": every, "candidates": candidates, "revise": revise, "protect": protect}
        total = need * (length // block)
        states, nfe = run(Net(seed, sharp=2.5), "core", length, steps=total, block_length=block, **options)
        assert states == published
        assert nfe == len(published) + looks <= total
    assert replaced > 1, "a test that would pass without looking back"


# ---------------------------------------------------------------------------------------------- token to mask


def token_to_mask(net, length, steps, block, doubt, limit, post, most_times=2, share=0.25, threshold=0.7):
    """modeling_remask.py's editing step in LLaDA2.1's loop; the plan's least count, and 1 after the block's own steps."""
    x, states, again = fresh(length), [], 0
    for span in blocks_of(length, block):
        base, rem = divmod(len(span), steps)
        times, said = dict.fromkeys(span, 0), {}
        for i in range(steps + post):
            token, sure, p = guess(net, x)
            left, stands = masks(x, span), [j for j in span if x[j] != MASK]
            last = i == steps + post - 1
            count = max(base + (i < rem) if i < steps else 0, 1)
            fill = best(left, sure, max(count, sum(sure[j] >= threshold for j in left)))
            fill = left if last else fill
            held = {j: p[j][x[j]] for j in stands}
            if doubt == "unlikely":
                bad, worst = [j for j in stands if held[j] < limit], {j: -held[j] for j in stands}
            elif doubt == "other":
                bad, worst = [j for j in stands if token[j] != x[j] and sure[j] > limit], {j: sure[j] for j in stands}
            else:  # ours: only if the model was asked about this very token before
                worst = {j: abs(held[j] - said[j]) for j in stands if j in said}
                bad = [j for j in worst if worst[j] > limit]
            bad = [] if last else [j for j in bad if times[j] < most_times]
            bad = best(bad, worst, max(1, int(len(stands) * share)))
            x = [MASK if j in bad else v for j, v in enumerate(put(x, fill, token))]
            states.append(x)
            said = {j: held[j] for j in stands if j not in bad}
            for j in bad:
                times[j] += 1
            again += len(bad)
            if not left and not bad:
                break
    return states, again


@pytest.mark.parametrize(("doubt", "limit"), [("unlikely", 0.3), ("other", 0.5), ("moved", 0.05)])
@pytest.mark.parametrize(("length", "steps", "block"), [(16, 16, 16), (18, 3, 6)])
def test_token_to_mask(doubt, limit, length, steps, block):
    again = 0
    for seed in range(3):
        published, more = token_to_mask(Net(seed, sharp=2.5), length, steps, block, doubt, limit, post=9)
        options = {"doubt": doubt, "edit_threshold": limit, "max_post_steps": 9, "most_times": 2}
        total = steps * (length // block)
        states, nfe = run(Net(seed, sharp=2.5), "token_to_mask", length, steps=total, block_length=block, **options)
        assert (states, nfe) == (published, len(published))
        again += more
    assert again > 2


# ---------------------------------------------------------------------------------------------- StarShape, DFM Euler


def starshape(net, length, steps, t_on=0.55, t_off=0.05, plateau=False):
    """UNI-D2's loop with a linear schedule; the positions of equal chance are those of our numbers."""
    x, states, asked = fresh(length), [], 0
    rest = 1 - (t_on - t_off)

    def alpha(t):
        if not plateau:
            return 1 - t
        return (1 - t) / rest if t > t_on else (1 - t_on) / rest if t >= t_off else (1 - t_on + t_off - t) / rest

    for i in range(steps):
        t, s, u = 1 - i / steps, 1 - (i + 1) / steps, numbers(length, i)
        token, span = guess(net, x)[0], range(len(PROMPT), len(x))
        last = i == steps - 1
        if t_off - 1e-12 <= t <= t_on + 1e-12 and not last:
            x0 = put(x, masks(x), token)
            hidden = best(span, -u * 0 + u, int(length * (1 - alpha(s)) + 1e-9))
            new = [MASK if j in hidden else v for j, v in enumerate(x0)]
        else:
            chance = (alpha(s) - alpha(t)) / (1 - alpha(t)) if alpha(t) < 1 else 1
            new = put(x, [j for j in masks(x) if u[j] < chance or last], token)
        asked += any(a == MASK and b != MASK for a, b in zip(x, new))
        x = new
        states.append(x)
    return states, asked


@pytest.mark.parametrize(
    ("length", "steps", "plateau"), [(16, 16, False), (20, 10, False), (16, 20, True), (12, 3, False)]
)
def test_starshape(length, steps, plateau):
    for seed in range(2):
        published = starshape(Net(seed), length, steps, plateau=plateau)
        assert run(Net(seed), "starshape", length, steps=steps, plateau=plateau) == published


def star_law(chain, steps, t_on=0.55, t_off=0.05):
    """The law on a TinyJoint with a linear schedule, by enumeration of masks and tokens."""

    def step(x, k):
        t, s, n, out = 1 - k / steps, 1 - (k + 1) / steps, chain.length, {}
        p = chain.p(x)
        if not (t_off - 1e-12 <= t <= t_on + 1e-12) or k == steps - 1:
            return chain.leap(x, 1.0 if k == steps - 1 else 1 / (steps - k), p)
        sets = list(itertools.combinations(range(n), int(n * (1 - (1 - s)) + 1e-9)))
        for whole, weight in chain.leap(x, 1.0, p).items():
            for hidden in sets:
                y = tuple(chain.mask if i in hidden else v for i, v in enumerate(whole))
                out[y] = out.get(y, 0.0) + weight / len(sets)
        return out

    return chain.run(step, steps)


def test_starshape_is_its_law_and_exact_in_the_limit_only_if_one_mask_is_left():
    problem = TinyJoint(3, 2, skew=1.5)
    chain = Chain(problem)
    laws = {steps: star_law(chain, steps) for steps in (4, 7, 60)}
    for steps in (4, 7):
        assert sampled_like(problem, "starshape", laws[steps], steps=steps)
    assert not sampled_like(problem, "starshape", laws[4], steps=4, t_on=0.3, t_off=0.25)
    assert chain.tv(laws[60]) < 0.05 * chain.tv(laws[7])
    # While two of four positions are masked a step often reveals both together, however short it is.
    longer = Chain(TinyJoint(4, 2, skew=1.5))
    many = [longer.tv(star_law(longer, steps, 0.7, 0.55)) for steps in (20, 60)]
    assert many[1] > 0.6 * many[0] > 0.005


def test_starshape_masks_a_uniform_set_of_a_fixed_size():
    steps, length = 20, 10
    out = samplers.sample(
        TinyNet(vocab=3, reach=1, visible_too=True), "starshape", gen_length=length, steps=steps, batch=1500, trace=True
    )
    for k in range(10, 19):  # t = 1 - k / steps is 0.5 to 0.1: the state after step k
        masked = (out.trace[k + 1].x == 3).double()
        assert bool((masked.sum(1) == math.floor(length * (1 - (k + 1) / steps) + 1e-9)).all())
        share = masked.mean(0)
        assert float((share - share.mean()).abs().max()) < 4.5 * 0.5 / math.sqrt(1500)


def one_at_a_time_keeps(chain):
    """From the data's law with one mask: draw it, then mask one of all, as a star step does."""
    law = {}
    for string, weight in zip(chain.strings, chain.law):
        for i in range(chain.length):
            x = (*string[:i], chain.mask, *string[i + 1 :])
            for whole, w in chain.leap(x, 1.0, chain.p(x)).items():
                law[whole] = law.get(whole, 0.0) + weight * w / chain.length
    return np.array([law[s] for s in chain.strings])


def test_a_star_step_that_reveals_one_position_keeps_the_law():
    chain = Chain(TinyJoint(3, 3))
    assert np.abs(one_at_a_time_keeps(chain) - chain.law).max() < 1e-14


def flow_law(chain, steps, eta):
    """Euler's method of the masked path with a linear kappa, from the equations, by enumeration."""

    def step(x, k):
        kappa, h = k / steps, 1 / steps
        p, last = chain.p(x), k == steps - 1
        appears = 1 - math.exp(-h * (1 + eta) / (1 - kappa)) if not last else 1.0
        hides = 1 - math.exp(-h * eta / kappa) if k and not last else 0.0
        return chain.moves(
            {chain.mask: hides, v: 1 - hides}
            if v != chain.mask
            else {chain.mask: 1 - appears, **{w: appears * p[i][w] for w in range(chain.mask)}}
            for i, v in enumerate(x)
        )

    return chain.run(step, steps)


def test_dfm_euler_is_its_equations():
    problem = TinyJoint(3, 2, skew=1.5)
    chain = Chain(problem)
    for steps, eta in ((3, 0.0), (4, 0.8), (6, 2.0)):
        assert sampled_like(problem, "dfm_euler", flow_law(chain, steps, eta), steps=steps, eta=eta)
    assert not sampled_like(problem, "dfm_euler", flow_law(chain, 4, 2.0), steps=4, eta=0.0)
    # Without the divergence-free term it is the plain Euler step: tau_leaping's law, and the model's with many steps.
    assert sampled_like(problem, "tau_leaping", flow_law(chain, 3, 0.0), steps=3)
    tv = {(n, eta): chain.tv(flow_law(chain, n, eta)) for n in (10, 40) for eta in (0.0, 1.0)}
    assert tv[40, 0.0] < 0.4 * tv[10, 0.0] and tv[40, 1.0] < 0.4 * tv[10, 1.0]


@pytest.mark.parametrize(("eta", "schedule"), [(0.0, "linear"), (1.5, "linear"), (1.0, "sin^2")])
def test_dfm_euler_follows_its_path(eta, schedule):
    """The visible share is the recursion's at every step, and the path's kappa as steps grow; each seen token has its marginal."""
    steps, rows, length = 24, 150, 40
    sampler = samplers.create("dfm_euler", eta=eta, schedule=schedule)
    target = torch.tensor([0.5, 0.3, 0.2])
    flat = TokenDenoiser.wrap(
        lambda ids: torch.cat([target, torch.zeros(1)]).log().expand(*ids.shape, 4), vocab_size=4, mask_id=3
    )
    out = samplers.sample(flat, sampler, gen_length=length, steps=steps, batch=rows, temperature=1.0, trace=True)
    shares = sampler.shares(steps)
    for k, state in enumerate(out.trace):
        seen = float((state.x != 3).double().mean())
        assert abs(seen - float(shares[k])) < 4.5 * 0.5 / math.sqrt(rows * length)
    visible = out.trace[steps // 2].x
    counts = torch.bincount(visible[visible != 3], minlength=3).double()
    assert float(((counts - counts.sum() * target) ** 2 / (counts.sum() * target)).sum()) < 18.4  # p = 1e-4, 2 degrees
    kappa = samplers.mask_schedule(schedule)
    error = {n: max(abs(float(sampler.shares(n)[k] - kappa(k / n))) for k in range(n)) for n in (40, 160)}
    assert error[160] < 0.4 * error[40] < 0.05


# ---------------------------------------------------------------------------------------------- DAEDAL


class Ending(Net):
    """A network that expects token 7, the end of the text, from some position on."""

    def __call__(self, ids):
        return super().__call__(ids) + 4.0 * (torch.arange(ids.shape[1])[:, None] > 16) * (torch.arange(13) == 7)


def daedal(net, length, eos, block, maximum, by, enough, complete, lost, trailing, threshold):
    """The paper's two phases. As ours: the pass that finds the row long enough commits, a decided eos counts as sure."""
    x, states, passes, sized, at = fresh(length), [], 0, False, 0
    while MASK in x:
        token, p, probs = guess(net, x)
        passes += 1
        n = len(x) - len(PROMPT)
        ends = [
            1.0 if x[i] == eos else probs[i][eos]
            for i in range(len(PROMPT), len(x))
            if eos in (x[i], token[i] * (x[i] == MASK))
        ]
        sure = sum(ends[-trailing:]) / trailing
        room = maximum - n
        if not sized and sure < enough and room > 0:
            x = x + [MASK] * min(by, room)
            states.append(x)
            continue
        sized = True
        while not masks(x, blocks_of(n, block)[at]):
            at += 1
        left = masks(x, blocks_of(n, block)[at])
        order = best(left, p, len(left))
        chosen = order[: max(1, sum(p[i] >= threshold for i in left))]
        place = None
        if sure < complete and room > 0 and p[order[-1]] < lost:
            place = min(left, key=lambda i: (p[i], i))
        x = put(x, [i for i in chosen if i != place], token)
        if place is not None:
            x = x[: place + 1] + [MASK] * min(by - 1, room) + x[place + 1 :]
        states.append(x)
    return states, passes


GROWTHS = [
    (8, 8, 40, 4, 0.2, 0.9, 0.3, 2, 0.5),
    (8, 6, 30, 3, 0.1, 0.9, 0.4, 3, 0.6),
    (6, 100, 30, 5, 0.1, 0.9, 0.5, 4, 0.9),
    (10, 4, 10, 4, 0.9, 0.9, 0.5, 4, 0.6),
]


@pytest.mark.parametrize(
    ("length", "block", "most", "by", "enough", "complete", "lost", "trailing", "threshold"), GROWTHS
)
def test_daedal(length, block, most, by, enough, complete, lost, trailing, threshold):
    inserted = 0
    for seed in range(3):
        rule = {"eos": 7, "maximum": most, "by": by, "enough": enough, "complete": complete, "lost": lost}
        rule |= {"trailing": trailing, "threshold": threshold}
        published, passes = daedal(Ending(seed, sharp=1.5), length, block=block, **rule)
        states, nfe = run(
            Ending(seed, sharp=1.5), "daedal", length, block_length=None if block == 100 else block, **rule
        )
        assert (states, nfe) == (published, passes)
        widths = [len(x) for x in published]
        inserted += sum(
            a != b and set(x[len(PROMPT) :]) != {MASK} for a, b, x in zip(widths, widths[1:], published[1:])
        )
        assert max(widths) <= len(PROMPT) + most
    assert inserted or most == length


GROWING = {
    "eos": 0,
    "maximum": 40,
    "by": 4,
    "enough": 0.01,
    "complete": 0.2,
    "lost": 0.3,
    "trailing": 4,
    "threshold": 0.5,
}


@pytest.mark.parametrize(
    "setting", [{}, {"block_length": 6}, {"stop": 0}, {"block_length": 5, "stop": 0, "align": True}]
)
def test_a_row_that_grows_is_the_row_alone(setting):
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], []]
    arguments = {"gen_length": 10, "seed": 3, "temperature": 1.0, **GROWING, **setting}
    together = samplers.sample(TinyNet(), "daedal", prompt=prompts, **arguments)
    for i, prompt in enumerate(prompts):
        alone = samplers.sample(TinyNet(), "daedal", prompt=[prompt], first_row=i, **arguments)
        n = int(alone.lengths[0])
        assert int(together.lengths[i]) == n and int(together.nfe_rows[i]) == alone.nfe
        assert together.x[i, :n].tolist() == alone.x[0, :n].tolist() and together.x[i, : len(prompt)].tolist() == prompt
        assert (together.x[i, n:] == samplers.PAD).all()
    assert len(set(together.lengths.tolist())) > 1 and int(together.lengths.max()) > 16
    pool = samplers.Pool(TinyNet())
    pooled = pool.add("daedal", prompt=prompts, **arguments)
    for _ in pool:
        pass
    assert torch.equal(pooled.result().x, together.x)


def test_a_canvas_grows_in_its_blocks_with_its_steps():
    run = samplers.stream(
        TinyNet(), "daedal", prompt=[[1, 2], [3]], gen_length=7, block_length=4, steps=6, eos=0, maximum=20
    )
    state = next(run)
    state = state.commit(state.open & (torch.arange(9) == 3), torch.full_like(state.x, 5))
    grown = state.grown(torch.tensor([4, 0]), torch.tensor([3, 0]), sized=True)
    assert grown.x.tolist() == [[1, 2, 11, 5, *[11] * 8], [3, 11, 11, 5, *[11] * 8]]
    assert grown.canvas.lengths == (12, 8) and grown.end.tolist() == [12, 8] and grown.canvas.filled == 17
    assert grown.canvas.block_size.tolist() == [[4, 4, 2], [4, 3, 0]]
    assert int(grown.canvas.block_steps[0].sum()) == 6 + 3 + 1 and int(grown.canvas.block_steps[1].sum()) == 6
    assert grown.count.tolist() == [3, 3] and grown.step.tolist() == state.step.tolist()
    with pytest.raises(SamplersError, match="0 or more is needed"):
        state.grown(torch.tensor([4, 0]), torch.tensor([-1, 0]), sized=True)


def test_what_growth_does_not_go_with_is_refused_before_the_first_pass():
    model = TinyNet()
    for setting, words in (
        ({"window": "block", "block_length": 4}, "window='block'"),
        ({"info": True}, "info=True follows each position"),
    ):
        with pytest.raises(OptionError, match=words):
            samplers.sample(model, "daedal", gen_length=8, eos=0, **setting)
    with pytest.raises(OptionError, match="exactly 5 positions"):
        samplers.sample(TinyJoint(5, 2), "daedal", eos=0)
    with pytest.raises(OptionError, match=r"events\(\) follows"):
        samplers.stream(model, "daedal", gen_length=8, eos=0).events()
    short = TokenDenoiser.wrap(model.predict, vocab_size=12, mask_id=11, max_length=100)
    with pytest.raises(OptionError, match=r"the longest canvas .* row 0 has 2049 positions"):
        samplers.sample(short, "daedal", prompt=[1], gen_length=8, eos=0)
    assert not model.asked
