"""Languages: draws from the conditioned product of marginals, the most probable string, and texts that always match."""

import itertools
import json
import math
import random
import re

import numpy as np
import pytest
import torch

import samplers
from samplers import Canvas, OptionError, SamplersError, TokenDenoiser, registry
from samplers.constraints import Automaton, ContextFree, JsonSchema, Regex, from_bitmask, text_so_far
from samplers.constraints.language import BoundLanguage, Place
from samplers.constraints.regex import _smallest
from samplers.constraints.trellis import Table, Trellis, kind_weights
from samplers.ops import masked_softmax
from samplers.testing.fit import BOUND, fits
from samplers.testing.tiny import TinyNet, as_asked, for_any_model, of_tokens

pytestmark = pytest.mark.usefixtures("one_thread")
V, N = 4, 5
# Three states over four tokens: tokens 0 and 3 are of one kind; state 2 can only be left by token 1.
MOVES = torch.tensor([[1, 0, 2, 1], [2, 1, -1, 2], [-1, 0, -1, -1]])
ENDS = [0, 2]
STRINGS = list(itertools.product(range(V), repeat=N))


def accepted(string, moves=MOVES, ends=ENDS):
    state = 0
    for token in string:
        state = int(moves[state, token])
        if state < 0:
            return False
    return state in ends


WORDS = [s for s in STRINGS if accepted(s)]


class Spelled:
    """A tokenizer of eleven tokens; the last ends a text."""

    texts = ("a", "b", "ab", "ba", "c", "aa", "1", "12", "-", '"')
    vocab_size, mask_id, eos_ids = 11, 11, (10,)

    def decode(self, ids, *, mask="", eos=""):
        return "".join(self.texts[i] if 0 <= i < 10 else "" for i in ids.tolist())

    def encode(self, text, *, begin=True):
        raise NotImplementedError

    chat = encode


TOKENIZER = Spelled()


def scripted(logits, mask=True):
    """The same logits (L, V) whatever x is; the mask is V."""
    v = logits.shape[1]
    return TokenDenoiser.wrap(lambda ids: logits.expand(len(ids), -1, -1), vocab_size=v, mask_id=v if mask else None)


def logits_of(seed, scale=1.5):
    return torch.randn(N, V, generator=torch.Generator().manual_seed(seed)) * scale


def counted(x, strings):
    powers = V ** torch.arange(x.shape[1] - 1, -1, -1)
    counts = torch.bincount((x * powers).sum(1), minlength=V ** x.shape[1])
    return counts[(torch.tensor(strings) * powers).sum(1)]


def product(logits, strings, temperature=1.0):
    """The weight of each string if positions are independent, float64."""
    p = torch.softmax(logits.double() / temperature, 1)
    return torch.stack([p[range(len(s)), list(s)].prod() for s in strings])


# ---------------------------------------------------------------------------------------------- the sums


@pytest.mark.parametrize("seed", range(3))
def test_sums_marginals_and_the_best_string_are_those_of_enumeration(seed):
    g = torch.Generator().manual_seed(seed)
    moves = torch.randint(-1, 4, (4, 3), generator=g)
    kind = torch.tensor([0, 1, 2, 1, 0, -1])
    table = Table.of(kind, moves, torch.tensor([True, False, True, False]), 0, "cpu")
    logits = torch.randn(N, 6, generator=g, dtype=torch.float64)
    by_kind, most = kind_weights(table, logits, 0.7)
    p = torch.softmax(logits / 0.7, 1)
    columns = [[-1] * 4 if k < 0 else moves[:, k].tolist() for k in kind.tolist()]
    words = [
        s for s in itertools.product(range(6), repeat=N) if accepted(s, torch.tensor(columns).T, (0, 2))
    ]  # none holds token 5
    weight = torch.stack([p[range(N), list(s)].prod() for s in words])
    length = torch.tensor([N])
    trellis = Trellis(table, by_kind[None], length, length, True)
    factor = trellis.marginals(N)[0]  # (N, C)
    made = by_kind.new_zeros(N, 6)
    scaled = logits / 0.7 - (logits / 0.7)[:, table.live].amax(1, keepdim=True)
    for v in table.live.tolist():
        made[:, v] = scaled[:, v] + factor[:, table.kind[v]]
    dead = [v for v in range(6) if v not in table.live.tolist()]
    made[:, dead] = -torch.inf
    truth = torch.zeros(N, 6, dtype=torch.float64)
    for s, w in zip(words, weight / weight.sum()):
        truth[range(N), list(s)] += w
    assert (torch.softmax(made, 1) - truth).abs().max() < 1e-12
    heavy = Trellis(table, most[None], length, length, False)
    own = torch.stack([scaled[range(N), list(s)].sum() for s in words])
    assert float(heavy.total) == pytest.approx(float(own.max()), abs=1e-12)
    total = float(trellis.total) - float(torch.logsumexp(own, 0))
    assert abs(total) < 1e-12


def test_only_what_is_not_known_is_summed_over_and_the_answers_are_the_same():
    """Rows that know 0 to 9 tokens at their beginning, some later ones, and ask about the four places after the first ones."""
    language, rows, n = Regex(r'("[ab]{0,6}"-){1,3}c*', TOKENIZER), 10, 12
    table = Table.of(*language.automaton(TinyNet(11)), "cpu")
    bound = BoundLanguage(language, table, torch.zeros(11, dtype=torch.bool))
    rng = torch.Generator().manual_seed(4)
    length = torch.tensor([n] * 6 + [n - 1] * 4)
    here = torch.arange(n).expand(rows, n)
    text = here < length[:, None]
    place = Place(text, here, here, length, n, torch.zeros_like(length))
    uniform = torch.rand(rows, n, generator=rng, dtype=torch.float64)
    everything = torch.full_like(length, n)
    weight = torch.randn(rows, n, table.kinds, generator=rng, dtype=torch.float64)
    kinds, _ = Trellis(table, weight, length, everything, True).drawn(uniform, n)
    x, begin = table.lowest[kinds], torch.arange(rows)[:, None]
    known = ((here < begin) | ((here > begin + 5) & (torch.rand(rows, n, generator=rng) < 0.4))) & text
    last = torch.minimum(begin[:, 0] + 3, length - 1)
    weight = torch.where(known[:, :, None], 0.0, torch.where((here <= last[:, None])[:, :, None], weight, 0.0))
    weight = weight + bound._held_weight(place, x, known)
    span = bound._span(place, x, known, last, torch.ones(rows, dtype=torch.bool))
    alone = bound._span(*(_row(v, 7) for v in (place, x, known, last)), torch.ones(1, dtype=torch.bool))
    assert (alone.first, alone.stop) == (7, int(torch.where(known[7] | (here[7] <= last[7]), here[7], 0).max()) + 1)
    asked = (here >= begin) & (here <= last[:, None])
    for soft in (True, False):
        whole, part = (Trellis(table, weight, length, last, soft, s) for s in (None, span))
        one = Trellis(table, weight[7:8], length[7:8], last[7:8], soft, alone)
        assert torch.allclose(whole.total, part.total, rtol=0, atol=1e-12)
        for how in zip(*(_made(t, u, table) for t, u in ((whole, uniform), (part, uniform), (one, uniform[7:8])))):
            # What another token in the place of a known one costs does not matter here.
            made, other, single = (h.double().clamp_min(-1e6) for h in how)
            assert torch.allclose(made[asked], other[asked], rtol=0, atol=1e-11)
            assert torch.equal(other[7][asked[7]], single[0][asked[7]])  # bit for bit


def test_moves_between_the_same_states_are_summed_once():
    table = Table.of(*Automaton([[1, 1, 0], [0, 1, 0]], [1]).automaton(TinyNet(3)), "cpu")
    assert (table.kinds, len(table.source), table.sets, len(table.member)) == (3, 4, 4, 6)
    made = sorted(
        (int(s), int(t), k)
        for s, t, b in zip(table.source, table.target, table.by)
        for k in table.member[table.within == b].tolist()
    )
    moves = [(s, int(table.move[s, k]), k) for s in range(2) for k in range(3)]
    assert made == sorted(moves)


def _row(value, i):
    if isinstance(value, Place):
        return Place(
            *(getattr(value, f)[i : i + 1] for f in ("text", "number", "position", "length")),
            value.most,
            value.start[i : i + 1],
        )
    return value[i : i + 1]


def _made(trellis, uniform, table):
    places = uniform.shape[1]
    if not trellis.soft:
        return [trellis.best(table.lowest.expand(len(uniform), places, -1), places)]
    return [*trellis.drawn(uniform, places), trellis.marginals(places)]


def test_a_best_string_is_the_most_probable_and_ties_go_to_the_lowest_id():
    for seed in range(8):
        logits = logits_of(seed)
        out = samplers.sample(
            scripted(logits), "low_confidence", constrain=Automaton(MOVES, ENDS), gen_length=N, steps=1, temperature=0.0
        )
        weights = product(logits, WORDS)
        assert tuple(out.x[0].tolist()) == WORDS[int(weights.argmax())]
    flat = samplers.sample(
        scripted(torch.zeros(N, V)),
        "random_order",
        constrain=Automaton(MOVES, ENDS),
        gen_length=N,
        steps=1,
        temperature=0.0,
    )
    assert tuple(flat.x[0].tolist()) == min(WORDS)


# ---------------------------------------------------------------------------------------------- the draw

DRAWS = 8000


@pytest.mark.parametrize(
    ("temperature", "how", "name"),
    [
        (1.0, {}, "ancestral"),
        (0.5, {}, "low_confidence"),
        (1.0, {"top_k": 3}, "random_order"),
        (1.3, {"forbid": 3}, "threshold"),
    ],
)
def test_one_forward_pass_draws_the_product_of_marginals_conditioned_on_the_language(temperature, how, name):
    logits = logits_of(1)
    run = {"gen_length": N, "steps": 1, "temperature": temperature, "batch": DRAWS, "seed": 10} | how
    out = samplers.sample(scripted(logits), name, constrain=Automaton(MOVES, ENDS), **run)
    model = logits.double() / temperature
    if "top_k" in how:
        model = model.masked_fill(model < model.topk(3, 1).values[:, -1:], -math.inf)
    if "forbid" in how:
        model[:, 3] = -math.inf
    assert fits(counted(out.x, WORDS), product(model, WORDS)) > BOUND
    assert len(WORDS) > 60


def test_a_block_is_drawn_given_that_a_completion_exists():
    """The second block has not been asked about: it only has to leave something. Then it is drawn given the first."""
    logits = logits_of(2)
    run = {"gen_length": N, "block_length": 3, "steps": 2, "temperature": 1.0, "batch": DRAWS, "seed": 4}
    out = samplers.sample(scripted(logits), "low_confidence", constrain=Automaton(MOVES, ENDS), **run)
    p = torch.softmax(logits.double(), 1)
    first = {s[:3] for s in WORDS}
    head = {s: float(p[range(3), list(s)].prod()) for s in first}
    tail = {s: float(p[range(3, 5), list(s[3:])].prod()) for s in WORDS}
    rest = {h: sum(w for s, w in tail.items() if s[:3] == h) for h in first}
    truth = [head[s[:3]] / sum(head.values()) * tail[s] / rest[s[:3]] for s in WORDS]
    assert fits(counted(out.x, WORDS), truth) > BOUND


def test_infilled_text_counts_what_is_given():
    logits = logits_of(3)
    x = torch.tensor([3, 0, 1, 0, 0])
    fill = torch.tensor([True, True, False, True, True])
    denoiser = scripted(logits)
    canvas = Canvas.infill(denoiser, x, fill, batch=DRAWS)
    language = Automaton(MOVES, ENDS, given=True)
    out = samplers.sample(denoiser, "random_order", constrain=language, prompt=canvas, steps=1, temperature=1.0, seed=1)
    words = [s for s in WORDS if s[2] == 1]
    assert fits(counted(out.x, words), product(logits, words)) > BOUND
    # Otherwise the text is what is filled in.
    language = Automaton(MOVES, ENDS)
    out = samplers.sample(denoiser, "random_order", constrain=language, prompt=canvas, steps=1, temperature=1.0, seed=1)
    assert all(accepted(row) for row in out.x[:, fill][:50].tolist())


def test_what_samplers_see_is_the_conditional_marginal():
    logits, temperature = logits_of(4), 0.6
    run = next(
        iter(
            [
                samplers.stream(
                    scripted(logits), "threshold", constrain=Automaton(MOVES, ENDS), gen_length=N, temperature=1.0
                )
            ]
        )
    )
    state = run.state
    want = ("confidence", "margin", "entropy", "given")
    said = torch.tensor([[1, 1, 0, 0, 0]])
    got = run.predict(state, want=want, confidence_temperature=temperature, given=said)
    weight = product(logits, WORDS, temperature)
    q = torch.zeros(N, V, dtype=torch.float64)
    for s, w in zip(WORDS, weight / weight.sum()):
        q[range(N), list(s)] += w
    best = q.sort(1, descending=True).values
    assert torch.allclose(got.confidence[0].double(), q.gather(1, got.token[0, :, None]).squeeze(1), atol=1e-6)
    assert torch.allclose(got.margin[0].double(), best[:, 0] - best[:, 1], atol=1e-6)
    assert torch.allclose(got.entropy[0].double(), -torch.special.xlogy(q, q).sum(1), atol=1e-5)
    assert torch.allclose(got.given[0].double(), q.gather(1, said[0, :, None]).squeeze(1), atol=1e-6)
    # One position alone is told the same, and costs the same forward pass.
    one = torch.zeros_like(state.open)
    one[0, 2] = True
    alone = run.predict(state, one, want="confidence")
    both = run.predict(state, want="confidence")
    assert alone.confidence[0, 2] == both.confidence[0, 2] and alone.token[0, 2] == both.token[0, 2]
    assert alone.confidence[0, [0, 1, 3, 4]].tolist() == [-math.inf] * 4
    packed = run.predict.logits(state, one)
    read = run.predict.read(state, packed, want="confidence")
    assert read.confidence[0, 2] == both.confidence[0, 2] and read.token[0, 2] == both.token[0, 2]


def test_a_language_of_everything_changes_nothing():
    everything = Automaton(torch.zeros(1, 11, dtype=torch.int64), [0])
    for name in ("threshold", "entropy_bound", "random_order", "remdm", "d3pm_ancestral", "entropy_bound_uniform"):
        for temperature in (0.0, 0.8):
            run = {"gen_length": 10, "batch": 2, "temperature": temperature, "seed": 2}
            denoiser = of_tokens(registry.load(name))
            free = samplers.sample(denoiser, name, **run)
            held = samplers.sample(denoiser, name, constrain=everything, **run)
            assert (free.x == held.x).float().mean() > 0.95, (
                name
            )  # the draws of float32 and float64 differ in rare cases
            assert free.nfe == held.nfe


def test_a_token_that_the_model_rules_out_is_taken_if_nothing_else_is_left():
    logits = torch.full((2, V), -math.inf)
    logits[0, 0], logits[1, 0] = 0.0, 0.0
    moves = torch.tensor([[1, -1, -1, -1], [-1, 2, 2, -1], [-1, -1, -1, -1]])
    for temperature in (0.0, 1.0):
        out = samplers.sample(
            scripted(logits),
            "threshold",
            constrain=Automaton(moves, [2]),
            gen_length=2,
            temperature=temperature,
            steps=1,
        )
        assert out.x[0].tolist() in ([0, 1], [0, 2])


# ---------------------------------------------------------------------------------------------- every sampler

PATTERN = r'(ab|ba)*-(1|12|c){2,4}("a{0,3}")?'
SEQUENTIAL = ["autoregressive"]
REFUSE = {"speculative_copies"}  # which verifies one position after another
SAMPLERS = [*(n for n in for_any_model() if n not in REFUSE), *for_any_model("uniform"), *SEQUENTIAL]


@pytest.mark.parametrize("name", sorted(REFUSE))
def test_a_sampler_that_draws_one_after_the_other_refuses_a_language(name):
    with pytest.raises(OptionError, match="together"):
        samplers.sample(TinyNet(), name, constrain=Regex("a+", TOKENIZER), gen_length=4)


def completable(language, tokens):
    """Whether a text may have these tokens, None at places that are free: by sets of states, from the front."""
    kind, move, ends, start = language.automaton(TinyNet(11))
    states = {start}
    for token in tokens:
        kinds = set(kind[kind >= 0].tolist()) if token is None else {int(kind[token])} - {-1}
        states = {int(move[q, k]) for q in states for k in kinds} - {-1}
    return any(bool(ends[q]) for q in states)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_text_matches_and_every_state_can_be_completed(name):
    cls, language = registry.load(name), Regex(PATTERN, TOKENIZER)
    sequential = cls.facts.sequential
    inner = TinyNet(visible_too=cls.facts.revises) if cls.family == "masked" else of_tokens(cls)
    denoiser = as_asked(cls, inner) if sequential else inner
    few = {} if sequential else {"steps": 4}
    for temperature, more in ((1.0, {"block_length": 4}), (1.0, few), (0.0, few | {"block_length": 6})):
        run = {"prompt": [[1, 2], []], "gen_length": 10, "seed": 1, "temperature": temperature, "stop": []} | more
        states = samplers.stream(denoiser, name, constrain=language, **run)
        for state in states:
            known = state.canvas.fill & (state.levels == 0)
            for i, length in enumerate(state.canvas.lengths):
                text = [int(v) if k else None for v, k in zip(state.x[i], known[i])][length - 10 : length]
                assert completable(language, text), (name, more, text)
        out = states.result()
        for i, row in enumerate(out.x.tolist()):
            ids = row[len(run["prompt"][i]) :][:10]
            cut = ids.index(10) if 10 in ids else len(ids)
            assert set(ids[cut:]) <= {10}
            assert re.fullmatch(PATTERN, TOKENIZER.decode(torch.tensor(ids[:cut]))), (name, ids)


class RaggedNet(TinyNet):
    """With ties, tokens that are impossible, and logits of half precision."""

    def __init__(self, deal):
        super().__init__(11, deal.randrange(99), visible_too=True)
        self.table = (self.table * 2).round() / 2
        self.never = torch.tensor([i > 1 and deal.random() < 0.3 for i in range(12)])
        self.half = deal.choice((torch.float32, torch.bfloat16, torch.float16))

    def predict(self, x, t=None, **how):
        return super().predict(x, t, **how).masked_fill(self.never, -math.inf).to(self.half)


@pytest.mark.parametrize("seed", range(48))
def test_random_runs_match_and_their_rows_are_what_they_are_alone(seed):
    """Infilled rows of any length, blocks, windows, truncation, temperatures per row, and rows that end early."""
    deal = random.Random(seed)
    name, net = deal.choice([*for_any_model(), "threshold", "p2", "soar"]), RaggedNet(deal)
    lengths = [deal.randint(4, 10) for _ in range(deal.randint(1, 4))]
    tokens = [torch.tensor([deal.randrange(10) for _ in range(n)]) for n in lengths]
    fill = [[deal.random() < 0.7 or i in (1, 2) for i in range(n)] for n in lengths]
    pattern = deal.choice(["a{0,9}", "[^c]*", "(a|b|1){3,}|.?", "(a(b|c)?){0,4}(-1)*", 'c*("a{0,5}")?'])
    language = Regex(pattern, TOKENIZER, end=deal.choice((True, False)))
    run = {"constrain": language, "seed": seed, "stop": []} | deal.choice(
        ({}, {"top_k": 2}, {"top_p": 0.6}, {"cfg_scale": 0.7})
    )
    run |= deal.choice(({}, {"steps": 9}, {"block_length": 2}, {"block_length": 3}, {"steps": 1}))
    heat = [deal.choice((0.0, 1.0)) for _ in lengths]

    def made(rows, **more):
        canvas = Canvas.infill(net, [tokens[i] for i in rows], [fill[i] for i in rows])
        return samplers.sample(net, name, prompt=canvas, temperature=[heat[i] for i in rows], **run, **more)

    try:
        whole = made(range(len(lengths)))
    except OptionError as error:  # before the run, of lengths and steps that cannot be
        pytest.skip(str(error)[:60])
    for i, n in enumerate(lengths):
        alone = made([i], first_row=i)
        assert torch.equal(alone.x[0, :n], whole.x[i, :n]) and int(alone.nfe_rows[0]) == int(whole.nfe_rows[i])
        text = [int(v) for v, f in zip(whole.x[i], fill[i]) if f]
        cut = text.index(10) if language.end and 10 in text else len(text)
        assert set(text[cut:]) <= {10} and re.fullmatch(pattern, TOKENIZER.decode(torch.tensor(text[:cut]).long()))


@pytest.mark.parametrize("name", ["llada2", "block_refinement"])
def test_old_and_new_tokens_that_do_not_go_together_are_mended(name, monkeypatch):
    """Editing changes some visible tokens and keeps others, which were not drawn together."""
    cls = registry.load(name)
    options = {"edit_threshold": 0.15, "threshold": 0.15}
    low = (torch.arange(11) < 5).long()
    even = Automaton(
        torch.stack([low, 1 - low]), [0]
    )  # an even number of tokens below 5: they can only change in pairs
    from samplers.constraints.language import BoundLanguage

    mended, ask = [], BoundLanguage.mended

    def watched(self, before, after, sampler):
        out = ask(self, before, after, sampler)
        mended.append(out is not after)
        return out

    monkeypatch.setattr(BoundLanguage, "mended", watched)
    run = {"gen_length": 8, "temperature": 1.0, "batch": 16, "seed": 1, "steps": 4}
    denoiser = TinyNet(visible_too=True) if cls.family == "masked" else of_tokens(cls)
    out = samplers.sample(denoiser, name, constrain=even, **run, **options)
    assert all(sum(v < 5 for v in row) % 2 == 0 for row in out.x.tolist())
    assert any(mended)


def test_rows_are_what_they_are_alone():
    language = Regex(PATTERN, TOKENIZER)
    prompts = [[1, 2, 3, 4], [5], []]
    temperatures = [0.0, 1.0, 0.5]
    for name in ("threshold", "p2", "theta_trapezoidal", "entropy_bound_uniform"):
        alike = name == "entropy_bound_uniform"  # it works with the temperature itself
        denoiser, run = of_tokens(registry.load(name)), {"gen_length": 9, "seed": 7, "constrain": language, "steps": 6}
        heat = 1.0 if alike else temperatures
        together = samplers.sample(denoiser, name, prompt=prompts, temperature=heat, **run)
        for i, prompt in enumerate(prompts):
            heat = 1.0 if alike else temperatures[i]
            alone = samplers.sample(denoiser, name, prompt=[prompt], first_row=i, temperature=heat, **run)
            n = len(prompt) + 9
            assert (alone.x[0, :n] == together.x[i, :n]).all() and alone.nfe == together.nfe_rows[i], name


def test_runs_of_a_pool_and_runs_that_ask_have_it():
    language, denoiser = Regex(PATTERN, TOKENIZER), TinyNet(visible_too=True)
    run = {"gen_length": 12, "seed": 3, "temperature": 1.0, "constrain": language}
    alone = samplers.sample(denoiser, "threshold", **run).x
    pool = samplers.Pool(denoiser)
    runs = [pool.add(name, **run) for name in ("threshold", "p2")]
    list(pool)
    assert (runs[0].result().x == alone).all() and (
        runs[1].result().x == samplers.sample(denoiser, "p2", **run).x
    ).all()
    asking = samplers.AskingRun("threshold", vocab_size=12, mask_id=11, **run)
    while asking.question is not None:
        asking.answer(denoiser.predict(asking.question).view(1, 12, 12))
    assert (asking.result().x == alone).all()


def test_copies_of_a_row_have_it():
    run = samplers.stream(
        TinyNet(), "threshold", constrain=Regex(PATTERN, TOKENIZER), gen_length=10, batch=2, temperature=1.0
    )
    alone = run.predict(run.state, want="confidence")
    copies = run.predict.copies(3, apart=True)
    wide = copies.spread(run.state)
    answer = copies(wide, want="confidence")
    assert (answer.token[::3] == alone.token).all() and (answer.confidence[::3] == alone.confidence).all()
    assert len({tuple(row) for row in answer.token.tolist()}) > 2
    for row in answer.token.tolist():
        cut = row.index(10) if 10 in row else 10
        assert re.fullmatch(PATTERN, TOKENIZER.decode(torch.tensor(row[:cut])))


# ---------------------------------------------------------------------------------------------- regular expressions


@pytest.mark.parametrize(
    "pattern",
    [
        "a*b",
        "(a|b){2,3}?c",
        "[^ab]+",
        "a?b?c?1?",
        r"\d{2}|\w\W",
        "(ab)*(ba)+",
        "",
        "[a-c1]*-.",
        "^ab$",
        "((a|ab)(c|bc))*",
        r"\D\S*",
    ],
)
def test_a_regular_expression_means_what_python_says(pattern):
    kind, move, ends, start = Regex(pattern, TOKENIZER, end=False).automaton(TinyNet(11))
    for n in range(4):
        for ids in itertools.product(range(10), repeat=n):
            state = start
            for token in ids:
                k = int(kind[token])
                state = -1 if k < 0 or state < 0 else int(move[state, k])
            got = state >= 0 and bool(ends[state])
            text = TOKENIZER.decode(torch.tensor(ids, dtype=torch.int64))
            assert got == (re.fullmatch(pattern, text) is not None), (pattern, text)


@pytest.mark.parametrize("seed", range(6))
def test_states_that_no_text_tells_apart_are_one(seed):
    """The states of a random automaton, some of which lead nowhere, against the texts of up to 7 characters from each."""
    rng = np.random.default_rng(seed)
    move = rng.integers(-1, 7, (7, 2))
    if seed % 2:  # without a way back, so that there are longest texts
        move = np.where(move <= np.arange(7)[:, None], -1, move)
    ends = rng.random(7) < 0.4

    def texts(state, n):
        if state < 0:
            return frozenset()
        longer = {(k, *t) for k in range(2) if n for t in texts(int(move[state, k]), n - 1)}
        return frozenset(longer | ({()} if ends[state] else set()))

    made, accepting = _smallest(move, ends)
    languages = {texts(q, 7) for q in range(7)}
    # A state without a text is not the same as no state at all: they are removed later.
    assert len(made) == len(languages) or frozenset() in languages

    def same(q, text):
        for k in text:
            q = int(made[q, k]) if q >= 0 else -1
        return q >= 0 and bool(accepting[q])

    for n in range(7):
        for text in itertools.product(range(2), repeat=n):
            assert same(0, text) == (text in texts(0, 7))


WORDS_OF_PIECES = ["yes", "no", "y", "e", "s", "n", "o", "a", "b", ",", "1", "2", "+", '"', "é"]


def fast_tokenizer(kind):
    """A fast tokenizer of transformers, with its own way to write blanks."""
    tokenizers, transformers = pytest.importorskip("tokenizers"), pytest.importorskip("transformers")
    from samplers.models.hf_tokenizer import HuggingFaceTokenizer

    models, decoders = tokenizers.models, tokenizers.decoders
    special = ["<s>", "</s>", "<mask>", "<unk>"]
    if kind == "bytes":  # each byte is a character: "é" is two tokens, and a blank is one
        words = [*special, *sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet()), "yes", "Ġno"]
        inner = tokenizers.Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, []))
        inner.pre_tokenizer, inner.decoder = (
            tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False),
            decoders.ByteLevel(),
        )
    elif kind == "metaspace":
        words = [*special, "▁", *WORDS_OF_PIECES, *("▁" + w for w in WORDS_OF_PIECES)]
        inner = tokenizers.Tokenizer(models.Unigram([(w, -1.0) for w in words], unk_id=3))
        inner.pre_tokenizer, inner.decoder = tokenizers.pre_tokenizers.Metaspace(), decoders.Metaspace()
    elif kind == "byte fallback":
        words = [
            *special,
            *(f"<0x{i:02X}>" for i in range(256)),
            "▁",
            *WORDS_OF_PIECES,
            *("▁" + w for w in WORDS_OF_PIECES),
        ]
        inner = tokenizers.Tokenizer(models.BPE({w: i for i, w in enumerate(words)}, [], byte_fallback=True))
        steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        inner.decoder = decoders.Sequence(steps)
    else:
        words = [*special, *WORDS_OF_PIECES, *("##" + w for w in WORDS_OF_PIECES)]
        inner = tokenizers.Tokenizer(models.WordPiece({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
        inner.pre_tokenizer, inner.decoder = tokenizers.pre_tokenizers.Whitespace(), decoders.WordPiece()
    names = {"bos_token": "<s>", "eos_token": "</s>", "mask_token": "<mask>", "unk_token": "<unk>"}
    inner.add_special_tokens(special)
    return HuggingFaceTokenizer(transformers.PreTrainedTokenizerFast(tokenizer_object=inner, **names))


@pytest.mark.parametrize("kind", ["bytes", "metaspace", "byte fallback", "pieces of words"])
def test_the_text_of_a_real_tokenizer_matches_whether_it_begins_or_goes_on(kind):
    tokenizer = fast_tokenizer(kind)
    logits = torch.randn(14, tokenizer.vocab_size, generator=torch.Generator().manual_seed(1)) * 2
    denoiser = TokenDenoiser.wrap(
        lambda x: logits[: x.shape[1]].expand(len(x), -1, -1),
        vocab_size=tokenizer.vocab_size,
        mask_id=tokenizer.mask_id,
    )
    denoiser.tokenizer = tokenizer
    begun = [tokenizer._own("bos_token_id")]
    word = tokenizer.encode("yes", begin=False).tolist()
    patterns = [r"(yes|no)( (yes|no))*", " ?[a-e]+", "(1|é)[^<]*", r"\s*", "[^,]{3}"]
    if kind != "pieces of words":  # which say no blank at the beginning of a text
        patterns += [" yes.*| ", "a +"]
    for pattern, temperature in itertools.product(patterns, (0.0, 1.0)):
        # A row that begins a text, one that goes on, and one that begins after a special token.
        how = {"prompt": [[], word, begun], "gen_length": 7, "temperature": temperature, "seed": 3}
        out = samplers.sample(denoiser, "threshold", constrain=Regex(pattern, tokenizer), **how)
        for text in out.texts:
            assert re.fullmatch(pattern, text), (pattern, text)
    if kind == "pieces of words":
        with pytest.raises(
            OptionError, match=r"has no string for row 0.*no text matches, or none that its tokens can spell"
        ):
            samplers.sample(denoiser, "threshold", constrain=Regex(" yes", tokenizer), prompt=[[], word], gen_length=7)


def nested(text, depth):
    """Whether brackets "a" and "b" are balanced and nested at most so deep."""
    level = 0
    for c in text:
        level += 1 if c == "a" else -1
        if not 0 <= level <= depth:
            return False
    return level == 0


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_a_grammar_is_followed_to_its_depth(depth):
    language = ContextFree({"text": "(a<text>b)*"}, TOKENIZER, depth=depth + 1, end=False)
    kind, move, ends, start = language.automaton(TinyNet(11))
    for n in range(6):
        for ids in itertools.product((0, 1, 2, 3, 5), repeat=n):
            state = start
            for token in ids:
                k = int(kind[token])
                state = -1 if k < 0 or state < 0 else int(move[state, k])
            got = state >= 0 and bool(ends[state])
            assert got == nested(TOKENIZER.decode(torch.tensor(ids, dtype=torch.int64)), depth)


def test_an_end_of_text_is_followed_by_nothing_else():
    denoiser = TinyNet()
    out = samplers.sample(
        denoiser, "threshold", constrain=Regex("a{2,3}", TOKENIZER), gen_length=6, batch=20, seed=1, stop=[]
    )
    for row in out.x.tolist():
        assert row[row.index(10) :] == [10] * (6 - row.index(10))
    filled = samplers.sample(
        denoiser, "threshold", constrain=Regex("a*", TOKENIZER, end=False), gen_length=6, batch=20, seed=1
    )
    assert set(filled.x.flatten().tolist()) <= {0, 5}


SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "age": {"type": "integer"},
        "tags": {"type": "array", "items": {"enum": ["a", 1, None]}, "minItems": 1, "maxItems": 2},
        "size": {"anyOf": [{"type": "number"}, {"type": "null"}]},
        "ok": {"type": "boolean"},
    },
}


def test_json_texts_of_a_schema_are_all_that_it_says():
    denoiser = samplers.models.zoo.load("text-mdm")
    language = JsonSchema(SCHEMA, denoiser.tokenizer)
    out = samplers.sample(
        denoiser, "entropy_bound", constrain=language, gen_length=56, batch=2, temperature=1.0, steps=8, seed=5
    )
    for text in out.texts:
        made = json.loads(text)
        assert list(made) == list(SCHEMA["properties"]) and json.loads(json.dumps(made)) == made
        assert len(made["name"]) <= 8 and type(made["age"]) is int and 1 <= len(made["tags"]) <= 2
        assert set(made["tags"]) <= {"a", 1, None} and type(made["ok"]) is bool
    for value in ({"name": 'x\ty"', "age": -3, "tags": [None], "size": 1.5e3, "ok": True},):
        assert re.fullmatch(language.pattern, json.dumps(value))
    for wrong in ('{"name": "x", "age": 03, "tags": [1], "size": null, "ok": true}', '{"name": "123456789", "age": 3}'):
        assert not re.fullmatch(language.pattern, wrong)


# ---------------------------------------------------------------------------------------------- errors


class Untouched(TinyNet):
    def predict(self, *args, **kw):
        raise AssertionError("an error that can be known before the first forward pass came after it")


@pytest.mark.parametrize(
    ("make", "run", "message"),
    [
        (
            lambda: Regex("(ab|ba){6}", TOKENIZER),
            {},
            r"text has 4 tokens \(gen_length\): the shortest string has 6, so give gen_length=6",
        ),
        (lambda: Regex("a{3}", TOKENIZER, end=False), {}, "the longest string has 3, and this language does not go on"),
        (lambda: Regex("(c1c)*", TOKENIZER, end=False), {}, "no string has just as many; the shortest has 0"),
        (lambda: Regex("abz+", TOKENIZER), {}, "no token has the character 'z', without which no text matches"),
        (
            lambda: Regex("1+", TOKENIZER),
            {"forbid": [6, 10]},
            r"Regex\('1\+'\) cannot be met: .* without the tokens that forbid=",
        ),
        (lambda: Regex("a", None), {}, "Regex needs the model's tokenizer"),
        (lambda: Regex("(a", TOKENIZER), {}, r"'\(a' is no regular expression: missing \)"),
        (lambda: Regex(r"(a)\1", TOKENIZER), {}, "groupref is not supported"),
        (lambda: Regex("a(?=b)", TOKENIZER), {}, "assert is not supported"),
        (lambda: Regex("(?i)a", TOKENIZER), {}, "has flags"),
        (lambda: Regex(r"a\bb", TOKENIZER), {}, "word boundary"),
        (lambda: Regex("(a{100}){900}", TOKENIZER), {}, "needs more than"),
        (lambda: Automaton(torch.tensor([[5]]), [0]), {}, r"next_state\[0, 0\] is 5"),
        (lambda: Automaton(torch.zeros(1, 3), [0]), {}, "torch.float32; .Q, V. int64 is needed"),
        (lambda: Automaton([[0, 0]], [1]), {}, "accepting is"),
        (lambda: Automaton(torch.zeros(1, 40, dtype=torch.int64), [0]), {}, "has 40 tokens, and denoiser"),
        (lambda: ContextFree({"s": "a<t>"}, TOKENIZER), {}, "rule 's' has <t>, and there is no such rule"),
        (
            lambda: ContextFree({"s": "a<s>"}, TOKENIZER),
            {},
            "ContextFree of s to depth 4 cannot be met: no text matches",
        ),
        (lambda: ContextFree({"s": "<s><s><s>|a"}, TOKENIZER, depth=40), {}, "written out to depth 40 are too long"),
        (lambda: JsonSchema({"type": "object"}, TOKENIZER), {}, "without properties"),
        (lambda: JsonSchema({"type": "strin"}, TOKENIZER), {}, "type of the schema is 'strin'"),
        (lambda: JsonSchema({"$ref": "#/a"}, TOKENIZER), {}, r"the schema has '\$ref' and no type"),
        (lambda: Regex("a", Untouched()), {}, "denoiser.tokenizer"),
        (lambda: r"\d+", {}, r"a language, such as samplers.constraints.Regex"),
        (lambda: [Regex("a", TOKENIZER)], {}, "a language holds for every row"),
        (lambda: {"type": "integer"}, {}, "a language holds for every row"),
        (
            lambda: JsonSchema({"type": "integer", "minimum": 3}, TOKENIZER),
            {},
            "'minimum' of the schema is not supported",
        ),
    ],
)
def test_errors_come_before_the_first_forward_pass(make, run, message):
    with pytest.raises(OptionError, match=message):
        samplers.sample(Untouched(), "threshold", constrain=make(), **{"gen_length": 4} | run)


def test_given_tokens_that_make_it_impossible_are_an_error():
    denoiser = Untouched()
    canvas = Canvas.infill(denoiser, torch.tensor([[0, 4, 0]]), torch.tensor([[True, False, True]]))
    with pytest.raises(OptionError, match="row 0: its given tokens are in none of the strings of 3 tokens"):
        samplers.sample(denoiser, "threshold", prompt=canvas, constrain=Regex("[ab1]*", TOKENIZER, given=True))


def test_samplers_and_families_that_cannot_have_it_say_so():
    for name in ("refusion", "strided", "s2d2"):
        inner = as_asked(registry.load(name), TinyNet())
        with pytest.raises(OptionError, match=f"constrain=.*does not go with sampler '{name}'"):
            samplers.sample(inner, name, constrain=Regex("a*", TOKENIZER), gen_length=16)
    from samplers.testing.tiny import TinyMixture

    with pytest.raises(OptionError, match="is for runs over tokens"):
        samplers.sample(TinyMixture(), "ddim", constrain=Regex("a*", TOKENIZER))


def test_tokens_that_no_string_has_are_never_handed_out():
    run = samplers.stream(TinyNet(), "threshold", constrain=Regex("a*", TOKENIZER, end=False), gen_length=4)
    x = run.state.x.clone()
    x[0, 1] = 4
    run.state = run.state._advance(x)
    with pytest.raises(
        SamplersError, match=r"sampler 'threshold' made tokens in row 0 that are part of no string of Regex"
    ):
        run.result()


def test_masked_softmax_and_the_language_truncate_alike():
    from samplers.constraints.language import _truncated

    logits = torch.randn(40, 30, generator=torch.Generator().manual_seed(0)) * 2
    logits[:, 3] = logits[:, 7]
    never = torch.zeros(30, dtype=torch.bool)
    u = torch.rand(40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    for top_k, top_p in ((5, 1.0), (0, 0.7), (9, 0.5)):
        left = _truncated(logits, never, 0.8, top_k, top_p)
        own = masked_softmax(logits, uniform=u, temperature=0.8, top_k=top_k, top_p=top_p)
        same = masked_softmax(left, uniform=u, temperature=0.8)
        assert (own.token == same.token).all()


# ---------------------------------------------------------------------------------------------- bitmasks


def packed(allowed, vocab):
    """(B, ceil(V / 32)) int32 of the sets of tokens that may come next."""
    words = torch.zeros(len(allowed), (vocab + 31) // 32, dtype=torch.int64)
    for i, tokens in enumerate(allowed):
        for v in tokens:
            words[i, v // 32] |= 1 << (v % 32)
    return torch.where(words >= 1 << 31, words - (1 << 32), words).to(torch.int32)


def test_a_bitmask_bars_tokens_at_the_first_undecided_position():
    logits = torch.randn(6, 40, generator=torch.Generator().manual_seed(0))
    run = {"gen_length": 6, "batch": 3, "seed": 1, "temperature": 1.0}

    def rising(state):  # a token is the one before it, plus 1 or 31, modulo 40
        lasts = [text[-1] if text else 0 for text in text_so_far(state)]
        return packed([{(last + 1) % 40, (last + 31) % 40} for last in lasts], 40)

    out = samplers.sample(scripted(logits), "low_confidence", constrain=from_bitmask(rising), block_length=1, **run)
    for row in out.x.tolist():
        assert all((b - a) % 40 in (1, 31) for a, b in zip([0, *row], row))
    with pytest.raises(OptionError, match=r"row 0 may commit 6 positions in this step.*use block_length=1"):
        samplers.sample(scripted(logits), "low_confidence", constrain=from_bitmask(rising), **run)
    free = samplers.sample(
        scripted(logits), "low_confidence", constrain=from_bitmask(rising, frontier_only=True), steps=3, **run
    )
    assert free.nfe == 3
    for wrong in (torch.zeros(3, 1, dtype=torch.int32), torch.zeros(3, 2, dtype=torch.int64), None):
        with pytest.raises(OptionError, match=r"\(B, ceil\(V / 32\)\) = \(3, 2\) int32 is needed"):
            samplers.sample(scripted(logits), "low_confidence", constrain=from_bitmask(lambda s, w=wrong: w), **run)


def engine(package, grammar, tokenizer, eos):
    """What from_bitmask takes, of a grammar engine: each row's text is read anew, so that no state is kept."""
    words = [text.encode() for text in tokenizer.texts]
    if package == "xgrammar":
        xgr = pytest.importorskip("xgrammar")
        info = xgr.TokenizerInfo([*words, b""], vocab_size=eos + 1, stop_token_ids=[eos])
        matcher = xgr.GrammarMatcher(xgr.GrammarCompiler(info).compile_grammar(grammar))

        def fill(text, words, i):
            matcher.reset()
            assert all(matcher.accept_token(v) for v in text)
            if not matcher.is_terminated():
                matcher.fill_next_token_bitmask(words, i)
    else:
        llg = pytest.importorskip("llguidance")
        llgt = pytest.importorskip("llguidance.torch")

        class Words:
            tokens, eos_token_id, bos_token_id, special_token_ids = [*words, b"<eos>"], eos, None, [eos]

            def __call__(self, text):
                return tokenizer.encode(text.decode(errors="replace")).tolist()

        whole = llg.LLTokenizer(llg.TokenizerWrapper(Words()), n_vocab=eos + 1)
        matcher = llg.LLMatcher(whole, llg.LLMatcher.grammar_from_lark(grammar))

        def fill(text, words, i):
            matcher.reset()
            assert matcher.consume_tokens(text)
            if not matcher.is_stopped():
                llgt.fill_next_token_bitmask(matcher, words, i)

    def mask_of(state):
        out = torch.full((len(state.x), (eos + 32) // 32), -1, dtype=torch.int32)
        for i, text in enumerate(text_so_far(state)):
            fill([v for v in text if v != eos], out, i)
        return out

    return mask_of


@pytest.mark.parametrize(
    ("package", "grammar"),
    [
        ("xgrammar", 'root ::= "(" root ")" root | ""'),
        ("llguidance", 'start: ("(" start ")")*'),
    ],
)
def test_grammar_engines_fill_the_bitmask(package, grammar):
    denoiser = samplers.models.zoo.load("text-mdm")
    tokenizer = denoiser.tokenizer
    mask_of = engine(package, grammar, tokenizer, tokenizer.eos_id)
    run = {"gen_length": 12, "batch": 2, "temperature": 1.0, "seed": 2, "block_length": 1}
    out = samplers.sample(denoiser, "low_confidence", constrain=from_bitmask(mask_of), **run)
    for text in out.texts:
        depth = 0
        for c in text:
            assert c in "()"
            depth += 1 if c == "(" else -1
            assert depth >= 0
