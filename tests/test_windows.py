"""Windows that move: which positions are open, the steps that a row takes, and rows of a batch. See also test_parity_win.py."""

import functools
import itertools
import random
from dataclasses import dataclass

import pytest
import torch

import samplers
from samplers import Canvas, OptionError, TokenDenoiser, registry
from samplers.authoring import DRAW_FIRST_FREE, Facts, Sampler, TokenState, fill_up_to, min_count, option
from samplers.models import Config, Transformer, TransformerDenoiser
from samplers.random import Rng
from samplers.testing.tiny import TinyNet, TinyUniformNet
from samplers.windows import Sliding, read_window

pytestmark = pytest.mark.usefixtures("one_thread")
MOVING = [n for n in registry.names("*", "masked") if not registry.load(n).facts.sequential]
MOVING = [n for n in MOVING if not (registry.load(n).facts.revises or registry.load(n).facts.whole_blocks)]


class Reckless(Sampler):
    """Any open positions, by chance, and as many as the plan demands."""

    name, family = "reckless", "masked"

    def step(self, predict, state):
        length = state.x.shape[1]
        u, v = (state.rng.positions(length, state.step, DRAW_FIRST_FREE + i) for i in range(2))
        chosen = fill_up_to(state, state.open & (u < 0.2), v, min_count(state))
        return state.commit(chosen, predict(state, chosen).token)


def opened(window, fill, undecided):
    """The positions of a row that are open, in plain Python; and of a pipeline, those that are forced."""
    left = [p for p, u in enumerate(undecided) if u]
    name, numbers = window
    if name == "sliding":
        masks, cap = numbers if len(numbers) > 1 else (*numbers, 10**9)
        return {p for p in left[:masks] if p < left[0] + cap}
    size, add = numbers[:2]
    places = [p for p, f in enumerate(fill) if f]
    found = set()
    for i in range(0, len(places), size):
        span = places[i : i + size]
        found |= {p for p in span if undecided[p]}
        if sum(not undecided[p] for p in span) < add * len(span):
            break
    return found


def text(window):
    return f"{window[0]}({','.join(map(str, window[1]))})"


def fewest(window, fill, undecided):
    """Steps if all that is open is committed in each."""
    steps, undecided = 0, list(undecided)
    while any(undecided):
        for p in opened(window, fill, undecided):
            undecided[p] = False
        steps += 1
    return steps


def test_any_run_keeps_to_its_window_and_its_steps():
    """Random rows of infilling, of several lengths, windows of all kinds: what is open, the cap on steps, rows alone."""
    deal, tight = random.Random(0), 0
    net = TinyNet()
    for trial in range(36):
        lengths = [deal.randint(8, 20) for _ in range(3)]
        fill = [[deal.random() < 0.7 for _ in range(n)] for n in lengths]
        least = max(1, min(map(sum, fill)))
        size = deal.randint(1, min(least, 6))
        window = deal.choice(
            [
                ("sliding", (size,)),
                ("sliding", (size, size + deal.randint(0, 4))),
                ("pipeline", (size, deal.choice((0.3, 0.5, 1.0)))),
            ]
        )
        if window[0] == "sliding" and window[1][-1] > least:
            window = ("sliding", (size,))
        rows = [torch.zeros(n, dtype=torch.int64) for n in lengths]
        needed = max(fewest(window, f, f) for f in fill)
        steps = deal.choice([None, needed, needed + 1, needed + deal.randint(0, 6)])
        how = {"window": text(window), "steps": steps, "seed": trial}
        run = samplers.stream(net, Reckless(), prompt=Canvas.infill(net, rows, fill), **how)
        states = list(run)
        for state in states:
            for i, length in enumerate(lengths):
                undecided = state.undecided[i, :length].tolist()
                want = opened(window, fill[i], undecided) if any(undecided) else set()
                assert {p for p, o in enumerate(state.open[i].tolist()) if o} == want
                assert int(state.count[i]) == len(want) and int(state.remaining[i]) == sum(undecided)
                assert bool(state.done[i]) == (not want)
                assert int(state.canvas.window.passes(state.canvas, state.undecided)[i]) == fewest(
                    window, fill[i], undecided
                )
                if steps is not None:
                    tight += steps - int(state.step[i]) == fewest(window, fill[i], undecided) > 0
        assert run.steps <= (steps or max(map(sum, fill))) and states[-1].finished
        alone = samplers.sample(net, Reckless(), prompt=Canvas.infill(net, rows[1], fill[1]), first_row=1, **how)
        assert alone.x[0].tolist() == states[-1].x[1, : lengths[1]].tolist()
        if needed > 1:
            with pytest.raises(OptionError, match=f"steps={needed - 1} is fewer than the"):
                samplers.sample(net, Reckless(), prompt=Canvas.infill(net, rows, fill), **{**how, "steps": needed - 1})
    assert tight > 50, "the steps were never the fewest that there are"


def test_no_way_to_commit_needs_fewer_steps_than_passes():
    """Every set of undecided positions of 7, every choice that a step can make."""
    window = Sliding(2, 3)

    @functools.cache
    def least(undecided):
        if not any(undecided):
            return 0
        can = sorted(opened(("sliding", (2, 3)), undecided, undecided))
        choices = [c for k in range(1, len(can) + 1) for c in itertools.combinations(can, k)]
        return 1 + min(least(tuple(u and p not in c for p, u in enumerate(undecided))) for c in choices)

    rows = list(itertools.product([False, True], repeat=7))
    assert window.passes(None, torch.tensor(rows)).tolist() == [least(row) for row in rows]


@pytest.mark.parametrize("name", MOVING)
def test_every_rule_ends_in_time(name):
    """Ragged prompts; fixed counts take all their steps, adaptive ones at most as many; no mask is left."""
    net = TinyNet()
    prompts = [[1, 2, 3], [4], []]
    for window, steps in (("sliding(4)", 5), ("sliding(3,4)", 9), ("pipeline(4)", 5), ("pipeline(5,0.5,1)", 6)):
        run = {"prompt": prompts, "gen_length": 18, "window": window, "steps": steps, "temperature": 1.0, "seed": 5}
        out = samplers.sample(net, name, **run)
        assert out.steps <= steps and not (out.x == net.mask_id).any()
        alone = samplers.sample(net, name, **{**run, "prompt": prompts[1:2], "first_row": 1})
        assert alone.x[0].tolist() == out.x[1, :19].tolist() and int(out.nfe_rows[1]) == alone.nfe


@pytest.mark.parametrize("plan", ["even", "1-cos", "floor(0.001)", "linear", "tc", "dtc", "tc+dtc"])
def test_plans_under_a_window_are_those_of_a_row(plan):
    """If the window always holds enough, the counts are those without one; where it does not, they are made up for."""
    net = TinyNet()
    run = {"gen_length": 24, "steps": 8, "plan": plan, "temperature": 0.0, "trace": True}

    def counts(**more):
        left = [int(s.masked.sum()) for s in samplers.sample(net, "low_confidence", **run, **more).trace]
        return [a - b for a, b in zip(left, left[1:])]

    plain = counts()
    assert sum(plain) == 24 and counts(window=f"sliding({max(plain)})") == plain
    assert counts(window="sliding(24)") == plain
    few = counts(window="sliding(3)")  # 8 steps of 3 are just enough
    assert few == [3] * 8


@pytest.mark.parametrize("name", MOVING)
def test_a_window_as_long_as_the_row_is_one_block(name):
    net = TinyNet()
    run = {"prompt": [[1, 2, 3], [4]], "gen_length": 12, "steps": 7, "temperature": 1.0}
    plain = samplers.sample(net, name, **run)
    for window in ("sliding(12)", "sliding(12,12)"):
        out = samplers.sample(net, name, window=window, **run)
        assert out.x.tolist() == plain.x.tolist() and out.nfe_rows.tolist() == plain.nfe_rows.tolist()


def test_a_pipeline_that_waits_for_whole_blocks_is_blocks():
    net = TinyNet()
    run = {"prompt": [[1, 2, 3], [4]], "gen_length": 13, "threshold": 0.3}
    for name in ("threshold", "hierarchy"):
        blocks = samplers.sample(net, name, block_length=4, window="block", **run)
        piped = samplers.sample(net, name, window="pipeline(4,1)", **run)
        assert piped.x.tolist() == blocks.x.tolist() and piped.nfe_rows.tolist() == blocks.nfe_rows.tolist()
        assert piped.token_evals == blocks.token_evals
        aligned = {"align": True, **run}
        blocks = samplers.sample(net, name, block_length=4, window="block", **aligned)
        assert samplers.sample(net, name, window="pipeline(4,1)", **aligned).x.tolist() == blocks.x.tolist()


def test_what_a_pipeline_forces():
    """Fully active blocks commit one each in every step; of a block that is not, only what passes the rule's own bar."""
    net = TinyNet()
    for full, name in itertools.product((0.25, 1.0), ("threshold", "entropy_bound", "hierarchy")):
        bar = {"bound": 0.0} if name == "entropy_bound" else {"threshold": 0.99}
        bar |= {"low_threshold": 0.99} if name == "hierarchy" else {}
        run = samplers.stream(net, name, gen_length=16, window=f"pipeline(4,0.25,{full})", **bar)
        before, several = None, 0
        for state in run:
            if before is not None:
                took = (before.masked & ~state.masked)[0].view(4, 4).sum(1).tolist()
                left = before.masked[0].view(4, 4).sum(1).tolist()
                forced = [k for k in range(4) if left[k] and (k == 0 or 4 - left[k - 1] >= full * 4)]
                forced = [k for k in forced if all(4 - n >= 1 for n in left[:k])]
                assert all(took[k] >= 1 for k in forced)
                # The first position of entropy_bound's order always passes, wherever it is.
                others = sum(took[k] for k in range(4) if k not in forced)
                assert others <= (name == "entropy_bound"), "nothing passes this bar"
                several += len(forced) > 1
            before = state
        assert (several > 0) == (full < 1)


def test_stops_and_pools():
    """The window shrinks at the end of a text; a row of a batch, and a run of a pool, is what it is alone."""
    net = TinyNet()
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8], []]
    for window in ("sliding(5)", "sliding(4,6)", "pipeline(4)"):
        for rule in ("decided", "block", "llada2"):
            run = {"gen_length": 16, "window": window, "threshold": 0.2, "stop": [[2], [5, 1], [7]], "stop_rule": rule}
            out = samplers.sample(net, "threshold", prompt=prompts, trace=True, **run)
            pool = samplers.Pool(net)
            for i, prompt in enumerate(prompts):
                pool.add("threshold", prompt=[prompt], first_row=i, **run)
            pooled = {one.number: one.result() for one in pool}
            for i, prompt in enumerate(prompts):
                alone = samplers.sample(net, "threshold", prompt=[prompt], first_row=i, **run)
                end = int(alone.lengths[0])
                assert end == int(out.lengths[i]) and alone.x[0, :end].tolist() == out.x[i, :end].tolist()
                assert pooled[i].x.tolist() == alone.x.tolist()
            for state in out.trace:
                after = torch.arange(state.x.shape[1]) >= state.end[:, None]
                assert not (state.open & after).any()
            if rule == "decided":
                assert (out.lengths < torch.tensor([len(p) + 16 for p in prompts])).any(), "no row has stopped"


def test_a_given_token_counts_for_the_cap_and_not_for_the_masks():
    net = TinyNet()
    fill = [True, False, False, True, True, True]
    layout = Canvas.infill(net, [0] * 6, fill).layout(window=read_window("sliding(2,4)"), rng=Rng.of(0, 1))
    undecided = torch.tensor([fill, [False, False, False, True, True, True]])
    assert layout.window.open(layout, undecided).tolist() == [
        [True, False, False, True, False, False],
        [False, False, False, True, True, False],
    ]


def test_what_the_model_is_given():
    """A sliding window changes nothing there; a pipeline is given up to its last open block."""
    net = TinyNet()
    run = {"prompt": [1, 2], "gen_length": 16, "temperature": 0.0}
    slides = samplers.sample(net, "low_confidence", window="sliding(4)", **run)
    assert slides.token_evals == 18 * slides.row_evals
    piped = samplers.sample(net, "low_confidence", window="pipeline(4)", trace=True, **run)
    widths = [
        2 + 4 * (int(s.open[0].nonzero().max()) // 4 + (int(s.open[0].nonzero().max()) % 4 > 1))
        for s in piped.trace[:-1]
    ]
    assert piped.token_evals == sum(widths) < 18 * piped.row_evals


def test_guidance_and_settings():
    net = TinyNet()
    run = {"prompt": [[1, 2], [3]], "gen_length": 8, "cfg_scale": 1.0, "window": "sliding(3)"}
    out = samplers.sample(net, "threshold", **run)
    assert out.row_evals == 2 * int(out.nfe_rows.sum())
    assert out.settings["window"] == "sliding(3)" and out.settings["block_length"] is None
    assert samplers.sample(net, "threshold", **{**run, "window": "sliding(3.0)"}).settings == out.settings
    whole = samplers.sample(net, "threshold", gen_length=8, window="pipeline(4)").settings
    assert whole["window"] == "pipeline(4,0.5,0.5)" and whole["block_length"] == 4
    again = {k: whole[k] for k in ("window", "gen_length", "seed")}
    assert samplers.sample(net, "threshold", **again).settings["window"] == whole["window"]


@pytest.mark.parametrize(
    ("says", "name", "wrong"),
    [
        (r"window='sliding\(9\)' is longer than the canvas, whose rows have 8", "threshold", {"window": "sliding(9)"}),
        (r"window='pipeline\(9,0.5,0.5\)' is longer than the canvas", "threshold", {"window": "pipeline(9)"}),
        ("block_length=4: such a window takes the place", "threshold", {"window": "sliding(4)", "block_length": 4}),
        ("has no blocks", "threshold", {"window": "sliding(4)", "align": True}),
        ("a cap of 3 positions never holds 4 masks", "threshold", {"window": "sliding(4,3)"}),
        (r"sliding\(masks, cap\) takes 1 to 2 numbers", "threshold", {"window": "sliding"}),
        (r"takes 1 to 2 numbers", "threshold", {"window": "sliding(1,2,3)"}),
        (r"takes 1 to 2 numbers", "threshold", {"window": "sliding(a)"}),
        (r"takes 1 to 2 numbers", "threshold", {"window": "sliding(inf)"}),
        ("the number of masks must be a whole number of 1 or more, not 2.5", "threshold", {"window": "sliding(2.5)"}),
        ("the share to open the next block must be above 0", "threshold", {"window": "pipeline(4,0)"}),
        ("the share to make it fully active .* not 2", "threshold", {"window": "pipeline(4,0.5,2)"}),
        (r"window 'block' takes no numbers", "threshold", {"window": "block(3)"}),
        ('"sliding\\(W\\)", "wedlm\\(W\\)", "pipeline\\(W\\)" or None', "threshold", {"window": "slide(3)"}),
        ("steps=1 is fewer than the 2 steps that window", "threshold", {"window": "sliding(4)", "steps": 1}),
        ("steps=1 is fewer than the 2 blocks of row 0", "threshold", {"window": "pipeline(4)", "steps": 1}),
        ("no blocks for steps_per_block=3", "threshold", {"window": "sliding(4)", "steps_per_block": 3}),
        ("'remdm', which may change tokens until their block is done", "remdm", {"window": "sliding(4)"}),
        ("'llada2', which may change tokens", "llada2", {"window": "pipeline(4)"}),
        ("'ancestral', which needs all positions of a block open", "ancestral", {"window": "sliding(4)"}),
        (
            "'first_hitting', which may change",
            "first_hitting",
            {"window": "sliding(4)", "method": "predictor_corrector"},
        ),
        (r"window='wedlm\(4\)' is for causal models", "threshold", {"window": "wedlm(4)"}),
    ],
)
def test_what_is_refused(says, name, wrong):
    net = TinyNet()
    with pytest.raises(OptionError, match=says):
        samplers.sample(net, name, gen_length=8, **wrong)
    assert not net.asked, "before the first forward pass"


def test_models_that_do_not_go_with_a_window():
    with pytest.raises(OptionError, match="'block_refinement', which has no masks, so that"):
        samplers.sample(TinyUniformNet(), "block_refinement", gen_length=8, window="sliding(4)")

    def fn(ids, **previous):
        return torch.zeros(*ids.shape, 9)

    fixed = TokenDenoiser.wrap(fn, vocab_size=9, mask_id=8, length=6)
    assert samplers.sample(fixed, "threshold", window="sliding(2)").nfe == 6
    with pytest.raises(OptionError, match="takes exactly 6 positions"):
        samplers.sample(fixed, "threshold", window="pipeline(2)")
    told = TokenDenoiser.wrap(fn, vocab_size=9, mask_id=8, self_conditioned=True)
    assert samplers.sample(told, "threshold", gen_length=6, window="sliding(2)").nfe == 6
    with pytest.raises(OptionError, match="is self_conditioned"):
        samplers.sample(told, "threshold", gen_length=6, window="pipeline(2)")


@dataclass(frozen=True)
class OneOrTwo(Sampler[TokenState]):
    """Commits the two best open positions if both are sure, else the best; with `candidates` both ways are tried as copies."""

    name, family, summary = "one_or_two", "masked", "for tests"
    facts = Facts(copies=True)
    default_temperature = 0.0

    candidates: bool = option(False)

    def step(self, predict, state):
        seen = predict(state, want="confidence") if state.ready is None else state.ready
        two = (samplers.ops.select(seen.confidence, state.open, threshold=0.3).count >= 2).long()
        if not self.candidates:
            return state.commit_best(seen.confidence, seen.token, k=1 + two)
        copies = predict.copies(2)
        wide = copies.spread(state)
        score, token = (value.repeat_interleave(2, 0) for value in (seen.confidence, seen.token))
        wide = wide.commit_best(score, token, k=torch.tensor([1, 2]).repeat(len(two)))
        return copies.pick(wide, two, copies(wide, want="confidence"))


def test_candidates_under_a_window():
    """What is tried as copies of rows has windows, and WeDLM's cache, of its own."""
    config = Config(vocab_size=12, width=32, layers=2, heads=2, attention="causal")
    model = Transformer(config, seed=2)
    model.head.weight.data *= 20
    causal = TransformerDenoiser(model, mask_id=11)
    for denoiser, window in (
        (TinyNet(), "sliding(4)"),
        (TinyNet(), "sliding(3,5)"),
        (TinyNet(), "pipeline(4)"),
        (causal, "wedlm(4)"),
        (causal, "wedlm(3,4)"),
    ):
        run = {"prompt": [[1, 2, 3], [4], []], "gen_length": 13, "window": window}
        plain, tried = (samplers.sample(denoiser, OneOrTwo(candidates=c), **run) for c in (False, True))
        assert plain.x.tolist() == tried.x.tolist()
        assert 6 < plain.steps < 13
        if not window.startswith(
            "pipeline"
        ):  # there copies whose blocks end at different positions share no forward pass
            more = (tried.nfe_rows - plain.nfe_rows).tolist()
            assert set(more) <= {0, 1}, "the copy that is not picked may be open longer"


@pytest.mark.parametrize("window", ["sliding(3)", "sliding(2,4)", "pipeline(3)", "pipeline(2,0.3,1)"])
def test_what_samplers_over_candidates_promise_holds_under_a_window(window):
    """freedave makes the states of its base rule in its steps, with a cap that a window has to make up for; lopa's anchor."""
    for seed, temperature in itertools.product(range(6), (0.0, 1.0)):
        net = TinyNet(vocab=5, seed=seed)
        run = {"prompt": [[1, 2, 3], [4], []], "gen_length": 11, "window": window, "temperature": temperature}
        for steps in (None, 6, 8):
            told, ours = (
                samplers.sample(net, name, steps=steps, trace=True, **run) for name in ("low_confidence", "freedave")
            )
            assert torch.equal(told.x, ours.x)
            for state in ours.trace:
                for i, step in enumerate(state.step.tolist()):
                    assert torch.equal(state.x[i], told.trace[step].x[i])
        told = samplers.sample(net, "threshold", threshold=0.4, **run)
        anchor = samplers.sample(net, "lopa", branches=0, threshold=0.4, **run)
        assert torch.equal(told.x, anchor.x) and told.nfe == anchor.nfe
        if temperature == 0:
            drafted = samplers.sample(net, "freedave", threshold=0.4, match="exact", **run)
            assert torch.equal(told.x, drafted.x) and drafted.steps <= told.steps


@pytest.mark.parametrize(
    "window", ["sliding(3)", "sliding(1234567)", "pipeline(3,0.66666666667,1.0)", "pipeline(12,0.1,0.95)"]
)
def test_the_name_of_a_window_is_read_back(window):
    assert read_window(str(read_window(window))) == read_window(window)


def test_branches_are_compared_by_all_that_is_open():
    """A branch that ends the first block of a pipeline has masks left, and is not taken to be sure of all of them."""

    def predict(x):
        logits = torch.zeros(*x.shape, 4)
        logits[:, 0, 0] = 2.0
        logits[:, 1, 0] = 1.9
        logits[:, 2:, 0] = torch.where(x[:, 1:2] == 3, 1.8, 0.0)  # less is known once the block is full
        return logits

    denoiser = TokenDenoiser.wrap(predict, vocab_size=4, mask_id=3)
    run = {"gen_length": 4, "window": "pipeline(2)", "trace": True, "threshold": 2.0, "branches": 1}
    first = samplers.sample(denoiser, "lopa", **run).trace[1].x[0].tolist()
    assert first == [0, 3, 3, 3], "the branch that fills position 1 as well leaves what is open unsure"
