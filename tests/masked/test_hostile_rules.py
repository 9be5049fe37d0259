"""What hostile, sloppy and unlucky callers do to the rules of one screen: each case broke something once."""

import random

import pytest
import torch

import samplers
from samplers import Canvas, Head, OptionError, TokenDenoiser
from samplers.testing.tiny import TinyJoint, TinyNet, TinyUniformNet
from samplers.uniform.ddpd import DDPD

pytestmark = pytest.mark.usefixtures("one_thread")

SEED = 1 << 20


# ---------------------------------------------------------------------------------------------- plans


@pytest.mark.parametrize("plan", ["optimal", "tc", "dtc", "tc+dtc", "floor(0.001)", "1-cos"])
def test_pc_sampler_takes_every_plan_that_its_siblings_take(plan):
    """With lam = 0 and equal frequencies it ranks as low_confidence does, so it commits the same tokens at the same time."""
    denoiser = TinyJoint(length=5)
    how = {"plan": plan, "steps": 3, "batch": 6, "temperature": 1.0}
    states = samplers.stream(denoiser, "pc_sampler", lam=0.0, **how)
    plain = samplers.stream(denoiser, "low_confidence", **how)
    assert all(torch.equal(a.x, b.x) for a, b in zip(states, plain, strict=True))


@pytest.mark.parametrize("window", ["sliding(4)", "sliding(3,5)", "pipeline(4)"])
@pytest.mark.parametrize("plan", ["tc", "dtc", "tc+dtc"])
def test_a_planned_run_under_a_window_keeps_to_its_steps(plan, window):
    out = samplers.sample(TinyNet(), "random_order", plan=plan, gen_length=24, steps=11, window=window, batch=3)
    assert int(out.nfe_rows.max()) <= 11


def test_one_frequency_of_1_ranks_that_token_last():
    logits = torch.zeros(6, 5)
    logits[torch.arange(6), torch.tensor([0, 1, 0, 2, 0, 3])] = torch.tensor([9.0, 3.0, 9.0, 2.0, 9.0, 1.0])
    denoiser = TokenDenoiser.wrap(lambda x: logits.expand(len(x), 6, 5), vocab_size=5, mask_id=4)
    run = samplers.stream(denoiser, "pc_sampler", gen_length=6, lam=0.0, frequencies=[1.0, 0, 0, 0, 0])
    seen = [state.x[0].tolist() for state in run]
    assert [sum(token != 4 for token in x[1::2]) for x in seen] == [0, 1, 2, 3, 3, 3, 3]


# ---------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("name", "option"),
    [("saber", "least"), ("core", "every"), ("slow_fast", "explore"), ("local_leap", "radius"), ("daedal", "trailing")],
)
def test_a_whole_number_beyond_64_bits_is_named(name, option):
    with pytest.raises(OptionError, match=f"option '{option}' of sampler '{name}' is 1.*64 bits"):
        samplers.create(name, **{option: 10**19})


def test_a_radius_beyond_the_row_costs_no_more_than_the_row():
    far = samplers.sample(TinyNet(), "local_leap", gen_length=9, radius=2**62, threshold=0.4, relaxed_threshold=0.2)
    row = samplers.sample(TinyNet(), "local_leap", gen_length=9, radius=9, threshold=0.4, relaxed_threshold=0.2)
    assert torch.equal(far.x, row.x) and far.nfe == row.nfe


def test_a_vocabulary_of_one_token():
    denoiser = TokenDenoiser.wrap(lambda x: torch.zeros(*x.shape, 1), vocab_size=1, mask_id=1)
    out = samplers.sample(denoiser, "prophet", gen_length=4)
    assert out.x.tolist() == [[0] * 4] and out.nfe == 1, "one token that is possible is a certain one"


# ---------------------------------------------------------------------------------------------- daedal


def test_a_row_that_a_stop_ends_does_not_grow():
    def network(x):
        logits = torch.zeros(*x.shape, 25)
        logits[:, 0, 2] = 20.0
        return logits

    denoiser = TokenDenoiser.wrap(network, vocab_size=25, mask_id=24)
    out = samplers.sample(denoiser, "daedal", gen_length=4, eos=2, stop=2, enough=0.0, maximum=30)
    assert out.lengths.tolist() == [1] and out.x[0, 0] == 2


def test_one_mask_in_place_of_a_lost_position_is_no_growth():
    how = {"eos": 1, "by": 1, "lost": 1.0, "complete": 1.0}
    out = samplers.sample(TinyNet(), "daedal", gen_length=3, enough=0.0, **how)
    assert out.lengths.tolist() == [3] and (out.x != 11).all()
    assert samplers.sample(TinyNet(), "daedal", gen_length=3, enough=1.0, maximum=5, **how).lengths.tolist() == [5]


@pytest.mark.parametrize(
    ("eos", "says"), [(11, "11, which is the mask"), (99, "99, which is no token; they are 0 to 11")]
)
def test_an_end_of_text_that_is_no_token_is_named_before_the_first_pass(eos, says):
    net = TinyNet()
    with pytest.raises(OptionError, match=f"option 'eos' of sampler 'daedal' is {says}"):
        samplers.sample(net, "daedal", gen_length=3, eos=eos)
    assert not net.asked


# ---------------------------------------------------------------------------------------------- functions of the caller


def test_a_selector_may_write_into_what_it_is_given():
    def select(confidence, open):
        sure = confidence > 0.3
        open.zero_()
        confidence.zero_()
        return sure

    ours = samplers.sample(TinyNet(), "learned", gen_length=12, batch=3, select=select)
    plain = samplers.sample(TinyNet(), "learned", gen_length=12, batch=3, select=lambda c, _: c > 0.3)
    assert torch.equal(ours.x, plain.x) and ours.nfe == plain.nfe


@pytest.mark.parametrize(
    ("select", "says"),
    [(lambda c, _: c * torch.nan, "returned NaN"), (lambda c, _: c.to(torch.complex64), "returned torch.complex64")],
)
def test_a_selector_that_returns_no_probabilities(select, says):
    with pytest.raises(OptionError, match=f"option 'select' of sampler 'learned' {says}"):
        samplers.sample(TinyNet(), "learned", gen_length=4, select=select)


def test_a_planner_that_returns_nan():
    with pytest.raises(OptionError, match="option 'planner' of sampler 'ddpd' returned NaN"):
        samplers.sample(TinyUniformNet(), DDPD(planner=lambda x: x * torch.nan), gen_length=4)


# ---------------------------------------------------------------------------------------------- combinations

MASKED = {
    "saber": {"least": (1, 3)},
    "local_leap": {"threshold": (0.3, 0.9), "relaxed_threshold": (0.2, 0.5), "radius": (0, 2)},
    "pc_sampler": {"lam": (0.0, 5.0), "plan": ("even", "tc", "1-cos"), "least": (0, 1)},
    "certainty_prior": {"sigma": (0.01, 10.0), "plan": ("dtc", "floor(0.001)")},
    "slow_fast": {"threshold": (0.3, 2.0), "low": (0.1,), "explore": (1, 6)},
    "streaming": {"threshold": (0.5, 2.0), "alpha": (0.0, 1.0)},
    "prophet": {"high": (0.0, 3.0), "span": ("answer", "block"), "schedule": ("stages", "cosine", "exponential")},
    "dilated": {"base": (2, 3)},
    "learned": {"select": (lambda c, _: c, lambda c, _: c > 0.3), "draw": (True, False)},
    "fast_dllm_v2": {"threshold": (0.3, 2.0), "sub_block": (1, 2, 5)},
    "wedlm": {"threshold": (-1.0, 2.0), "distance": (0.0, 3.0)},
    "core": {"every": (1, 2), "candidates": (1, 32), "least": (0.0, 0.3), "protect": (0,)},
    "token_to_mask": {"doubt": ("unlikely", "other", "moved"), "share": (0.25, 1.0), "max_post_steps": (0, 3)},
    "starshape": {"t_on": (0.55, 0.9), "plateau": (True, False)},
    "dfm_euler": {"eta": (0.0, 20.0), "schedule": ("1-cos", "u^0.3")},
    "daedal": {"eos": (0, 1), "maximum": (9, 24), "by": (1, 3), "lost": (0.1, 1.0), "enough": (0.0, 0.5)},
}
UNIFORM = {
    "dfm_euler_uniform": {"eta": (0.0, 20.0)},
    "gidd": {"corrections": (0, 7), "heat": (0.1, 1.0)},
    "ddpd": {"leave_out": (True, False), "final": (0.0, 1.0)},
}


def network(r, uniform):
    """A network of sums that are exact in any order: multiples of 1/8, some of them tied, huge, forbidden or of half precision."""
    vocab = r.choice((3, 4, 9))
    mask = None if uniform else r.choice((vocab - 1, vocab + 3))
    ids = vocab if mask is None else max(vocab, mask + 1)
    generator = torch.Generator().manual_seed(r.randrange(SEED))
    kind, lengths = r.choice(("plain", "ties", "huge", "equal", "none", "half", "head")), r.random() < 0.3
    width = 6 if kind == "head" else vocab
    table = torch.randint(-24, 25, (5, ids, width), generator=generator).float() / 8
    table = {"ties": table.sign(), "huge": table * 4096, "equal": table * 0}.get(kind, table)
    if kind == "none":
        dead = torch.rand(ids, vocab, generator=generator) < 0.3
        dead[:, 0] = False
        table[2][dead] = -torch.inf

    def logits(x, mask=None, positions=None):
        x = x if mask is None else torch.where(mask, x, ids - 1)
        padded = torch.nn.functional.pad(x, (2, 2), value=ids - 1)
        out = sum(table[j][padded[:, j : j + x.shape[1]]] for j in range(5))
        return out.half() if kind == "half" else out

    head = Head(torch.randint(-4, 5, (vocab, 6), generator=generator).float() / 4) if kind == "head" else None
    made = TokenDenoiser.wrap(logits, vocab_size=vocab, mask_id=mask, head=head, takes_lengths=lengths)
    return made, [v for v in range(vocab) if v != mask]


def settings(r, denoiser, tokens):
    how = {}
    chance = {
        "steps": (0.3, (3, 5, 20)), "block_length": (0.4, (1, 3, 8)), "temperature": (0.7, (0.0, 0.7, 1.0)),
        "top_k": (0.2, (1, 2)), "top_p": (0.2, (0.5, 0.9)), "demote": (0.2, tokens), "ragged": (0.3, ("groups",)),
        "stop": (0.3, ([tokens[:1]], [tokens[:2]])), "stop_rule": (0.3, ("decided", "block")), "trace": (0.2, (True,)),
        "window": (0.2, ("block", "sliding(1)", "sliding(2,3)", "pipeline(1)")),
    }  # fmt: skip
    for key, (share, values) in chance.items():
        if r.random() < share:
            how[key] = r.choice(values)
    if "block" in how or how.get("window", "block") != "block":
        how.pop("block_length", None)
    if len(tokens) > 2 and r.random() < 0.2:
        how["forbid"] = tokens[1]
    if r.random() < 0.2:
        token, place = r.choice(tokens), r.randrange(6)

        def constrain(state):
            here = (torch.arange(state.x.shape[1]) == place) & (state.step == 1)[:, None]
            return samplers.Constraint(fix=torch.where(here, token, -1))

        how["constrain"] = constrain
    return how


@pytest.mark.parametrize("name", [*MASKED, *UNIFORM])
def test_a_row_of_a_random_batch_is_the_row_alone(name):
    """Tokens, lengths and forward passes, in combinations of everything; no mask is left, and nothing is drawn that must not be."""
    ran = 0
    for seed in range(10):
        r = random.Random(f"{name} {seed}")
        denoiser, tokens = network(r, name in UNIFORM)
        how = settings(r, denoiser, tokens)
        options = {k: r.choice(v) for k, v in (MASKED | UNIFORM)[name].items() if r.random() < 0.6 or k == "maximum"}
        x = [[r.choice(tokens) for _ in range(r.choice((1, 2, 5, 9)))] for _ in range(3)]
        fill = [[r.random() < 0.6 or i == len(row) - 1 for i in range(len(row))] for row in x]

        def run(rows):
            canvas = Canvas.infill(denoiser, [x[i] for i in rows], [fill[i] for i in rows])  # noqa: B023
            return samplers.sample(denoiser, name, prompt=canvas, first_row=rows, seed=seed, **how, **options)  # noqa: B023

        try:
            out = run([0, 1, 2])
            alone = [run([i]) for i in range(3)]
        except OptionError:  # what does not go together is said before the first pass
            continue
        ran += 1
        for i, one in enumerate(alone):
            n = int(one.lengths)
            assert n == out.lengths[i] and torch.equal(one.x[0, :n], out.x[i, :n]), (name, seed, i)
            assert one.nfe_rows[0] == out.nfe_rows[i], (name, seed, i)
        made = out.x[out.fill & (torch.arange(out.x.shape[1]) < out.lengths[:, None])]
        assert ((made >= 0) & (made != denoiser.mask_id)).all() and (made < denoiser.vocab_size).all(), (name, seed)
        if "forbid" in how and "constrain" not in how and name != "ddpd":
            assert (made != how["forbid"]).all(), (name, seed)
    assert ran >= 3
