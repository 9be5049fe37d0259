"""Lists, Latin squares, chains, parity, mirror and brackets: published numbers, and everything again by plain enumeration."""

import itertools
import json
import math
from collections import Counter
from fractions import Fraction

import pytest
import torch

import samplers
from samplers import problems
from samplers.cli import main
from samplers.errors import OptionError
from samplers.problems.automaton import Automaton, AutomatonTokens, Language
from samplers.problems.chains import ANIMALS
from samplers.testing.fit import BOUND, fits

pytestmark = pytest.mark.usefixtures("one_thread")

SMALL = {
    "copy": {"n": 3, "items": 4},
    "domino": {"length": 3},
    "dyck": {"length": 6, "types": 2},
    "hmm": {"length": 4, "states": 3, "symbols": 3},
    "insert_random": {"n": 3},
    "latin3": {},
    "latin4": {},
    "mirror": {"length": 4, "symbols": 3},
    "parity": {"length": 4},
    "remove_random": {"n": 4},
    "replace_random": {"n": 3},
    "reverse": {"n": 3, "items": 4},
    "shuffle": {"n": 4},
    "sort": {"n": 3, "items": 4},
}
NAMES = sorted(SMALL)
_made: dict = {}


def made(name, **options):
    key = (name, tuple(options.items()))
    if key not in _made:
        _made[key] = problems.create(name, **options)
    return _made[key]


def rng(seed=0):
    return torch.Generator().manual_seed(seed)


# ---------------------------------------------------------------------------------------------- the table

TABLE = [
    *[("shuffle", {"n": n}, v, tc) for n, v, tc in
      [(3, .2222, 1.504), (4, .0938, 2.367), (5, .0384, 3.260), (6, .0154, 4.171), (8, .0024, 6.031)]],
    *[("replace_random", {"n": n}, v, tc) for n, v, tc in
      [(3, .444, .811), (4, .422, .863), (6, .402, .912), (10, .387, .948), (15, .381, .966)]],
    *[("remove_random", {"n": n}, v, tc) for n, v, tc in
      [(3, .889, .174), (4, .750, .432), (6, .494, 1.076), (10, .186, 2.609)]],
    *[("insert_random", {"n": n}, v, tc) for n, v, tc in
      [(3, .188, 1.818), (4, .123, 2.347), (6, .056, 3.383), (10, .013, 5.418)]],
    *[(name, {}, 1, 0) for name in ("copy", "reverse", "sort")],
    *[("parity", {"length": n}, .5, math.log(2)) for n in (2, 8, 40)],
    *[("mirror", {"length": n, "symbols": k}, k ** (-n / 2), n / 2 * math.log(k)) for n, k in ((4, 3), (8, 4), (16, 2))],
    ("latin3", {}, 12 / 3**9, 9 * math.log(3) - math.log(12)),
    ("latin4", {}, 576 / 4**16, 16 * math.log(4) - math.log(576)),
    ("sudoku4", {}, 288 / 4**16, 16 * math.log(4) - math.log(288)),
]  # fmt: skip


@pytest.mark.parametrize(("name", "options", "valid", "tc"), TABLE)
def test_what_all_positions_at_once_cost(name, options, valid, tc):
    problem = problems.create(name, **options)
    assert problem.one_shot() == pytest.approx(valid, abs=6e-4)
    assert problem.one_shot() == pytest.approx(valid, rel=0.05)
    assert problem.total_correlation() == pytest.approx(tc, abs=6e-4)


def test_latin4_to_two_digits():
    assert f"{made('latin4').one_shot():.1e}" == "1.3e-07"


@pytest.mark.parametrize(
    ("name", "n", "group", "valid"),
    [
        ("shuffle", 8, 4, 0.0385),
        ("shuffle", 8, 2, 0.273),
        ("shuffle", 6, 3, 0.123),
        ("shuffle", 6, 2, 0.3125),
        ("replace_random", 3, 2, 0.889),
        ("replace_random", 4, 2, 0.656),
        ("replace_random", 6, 2, 0.734),
        ("replace_random", 10, 2, 0.812),
        ("replace_random", 15, 2, 0.927),
    ],
)
def test_what_groups_cost(name, n, group, valid):
    plan = [group] * (n // group) + [n % group] * (n % group > 0)
    assert problems.create(name, n=n).one_shot(plan) == pytest.approx(valid, abs=6e-4)


def test_mirror_is_about_the_order():
    problem = made("mirror")
    assert problem.one_shot([4, 4]) == pytest.approx(1)
    assert problem.plan_kl([4, 4]) == pytest.approx(0, abs=1e-12)
    pairs = [[i, 7 - i] for i in range(4)]
    assert problem.one_shot(pairs) == pytest.approx(4**-4)
    halves = [[0, 2, 4, 6], [1, 3, 5, 7]]  # no two of a group are mirror images
    assert problem.one_shot(halves) == pytest.approx(1)


def test_sizes():
    assert [len(made(name).points) for name in ("latin3", "latin4", "sudoku4", "shuffle")] == [12, 576, 288, 720]
    assert [made("dyck").count, made("dyck", types=2).count, made("parity").count] == [1430, 366_080, 128]
    fit = {(a, b) for a, b in itertools.product(ANIMALS, repeat=2) if a[-1] == b[0]}
    assert (len(ANIMALS), len(set(ANIMALS)), len(fit)) == (89, 89, 801)
    assert len([a for a in ANIMALS if not any(a == first for first, _ in fit)]) == 8
    assert made("domino", length=2).count == 801


# ---------------------------------------------------------------------------------------------- by enumeration


def distribution(problem):
    """{row: probability} of all rows, from the definition of each problem: a predicate, or the paths of the hidden chain."""
    length, tokens = problem.length, problem.tokens
    name = problem.name
    if name == "hmm":
        moves, emits = problem.moves.tolist(), problem.emits.tolist()
        balance = torch.cat([problem.moves.t() - torch.eye(len(moves)), torch.ones(1, len(moves))])
        first = torch.linalg.lstsq(balance, torch.eye(len(moves) + 1)[-1:].t().double()).solution[:, 0].tolist()
        out = Counter()
        for path in itertools.product(range(len(first)), repeat=length):
            p = first[path[0]] * math.prod(moves[a][b] for a, b in itertools.pairwise(path))
            for row in itertools.product(range(tokens), repeat=length):
                out[row] += p * math.prod(emits[s][v] for s, v in zip(path, row))
        return dict(out)

    def matched(row):
        stack = []
        for v in row:
            if v % 2 == 0:
                stack.append(v)
            elif not stack or stack.pop() != v - 1:
                return False
        return not stack

    n = length // 2
    rules = {
        "copy": lambda r: len(set(r[:n])) == n and r[n:] == r[:n],
        "reverse": lambda r: len(set(r[:n])) == n and r[n:] == r[:n][::-1],
        "sort": lambda r: len(set(r[:n])) == n and list(r[n:]) == sorted(r[:n]),
        "shuffle": lambda r: len(set(r)) == length,
        "replace_random": lambda r: sum(v == length for v in r) == 1 and all(v in (i, length) for i, v in enumerate(r)),
        "remove_random": lambda r: all(a < b for a, b in itertools.pairwise(r)),
        "insert_random": lambda r: [v for v in r if v < length - 1] == list(range(length - 1)),
        "latin3": lambda r: all(len(set(r[i::3])) == len(set(r[3 * i : 3 * i + 3])) == 3 for i in range(3)),
        "domino": lambda r: all(ANIMALS[a][-1] == ANIMALS[b][0] for a, b in itertools.pairwise(r)),
        "parity": lambda r: sum(r) % 2 == 0,
        "mirror": lambda r: r == r[::-1],
        "dyck": matched,
    }
    good = [row for row in itertools.product(range(tokens), repeat=length) if rules[name](row)]
    return {row: 1 / len(good) for row in good}


ENUMERATED = [name for name in NAMES if name not in ("latin4", "domino")]  # 89^3 and 4^16 rows are too many for Python


@pytest.fixture(scope="module")
def known():
    return {name: distribution(made(name, **SMALL[name])) for name in ENUMERATED}


def condition(known, row, mask):
    """The rows that agree with `row` in most visible positions, of the distribution."""
    missed = {s: sum(v not in (mask, c) for v, c in zip(row, s)) for s in known}
    least = min(missed.values())
    return {s: p for s, p in known.items() if missed[s] == least}


def marginal(rows, i, v):
    return sum(p for s, p in rows.items() if s[i] == v) / sum(rows.values())


@pytest.mark.parametrize("name", ENUMERATED)
def test_posteriors(name, known):
    """Of both families, of rows that are possible and of rows that contradict every row, and with a level for each position."""
    problem, p = made(name, **SMALL[name]), known[name]
    tokens, length = problem.tokens, problem.length
    g = rng(3)
    x = torch.tensor(list(p))[torch.randint(len(p), (24,), generator=g)]
    x[12:] = torch.randint(tokens, (12, length), generator=g)
    hidden = torch.rand(x.shape, generator=g) < 0.5
    got = problem.denoiser("masked").posterior(x.masked_fill(hidden, tokens))
    for row, out in zip(x.masked_fill(hidden, tokens).tolist(), got):
        rows = condition(p, row, tokens)
        for i, v in itertools.product(range(length), range(tokens)):
            assert float(out[i, v]) == pytest.approx(marginal(rows, i, v), rel=1e-9, abs=1e-14)
    levels = torch.rand(x.shape, generator=g, dtype=torch.float64)
    levels = torch.where(levels < 0.3, 0.0, torch.where(levels > 0.9, 1.0, levels))
    got = problem.denoiser("uniform").posterior(x, levels)
    for row, level, out in zip(x.tolist(), levels.tolist(), got):
        wrong = {s: sum(v != c and u == 0 for v, c, u in zip(row, s, level)) for s in p}
        least = min(wrong.values())
        weighted = {
            s: q * math.prod(1 if u == 0 else (1 - u) * (v == c) + u / tokens for v, c, u in zip(row, s, level))
            for s, q in p.items()
            if wrong[s] == least
        }
        for i, v in itertools.product(range(length), range(tokens)):
            assert float(out[i, v]) == pytest.approx(marginal(weighted, i, v), rel=1e-9, abs=1e-14)


@pytest.mark.parametrize("name", ["dyck", "hmm", "parity"])
def test_posteriors_of_evidence(name, known):
    problem, p = made(name, **SMALL[name]), known[name]
    rows = torch.tensor(list(p))
    evidence = 20 * torch.randn(4, problem.length, problem.tokens, generator=rng(5), dtype=torch.float64)
    evidence[0, 1, 1] = evidence[2, 0, 0] = -math.inf
    evidence[1] += 1e4  # a constant for each position says nothing
    for one, out in zip(evidence, problem.token_posterior(evidence)):
        log_w = torch.tensor(list(p.values()), dtype=torch.float64).log() + sum(
            one[i, rows[:, i]] for i in range(problem.length)
        )
        w = (log_w - log_w.max()).exp()
        expected = (w[:, None, None] * torch.nn.functional.one_hot(rows, problem.tokens)).sum(0) / w.sum()
        torch.testing.assert_close(out, expected, rtol=1e-8, atol=1e-13)


@pytest.mark.parametrize("name", ENUMERATED)
def test_numbers(name, known):
    """log p, entropy, total correlation, and the kernel mean of chains."""
    problem, p = made(name, **SMALL[name]), known[name]
    given = problem.settings.get("prompt", torch.zeros(0)).tolist()
    inside = {s: q for s, q in p.items() if list(s[: len(given)]) == given}
    total = sum(inside.values())
    inside = {s: q / total for s, q in inside.items()}
    every = torch.tensor(list(itertools.product(range(problem.tokens), repeat=problem.length)))[:4096]
    expected = [inside.get(tuple(row), 0.0) for row in every.tolist()]
    torch.testing.assert_close(problem.log_prob(every).exp(), torch.tensor(expected, dtype=torch.float64))
    entropy = -sum(q * math.log(q) for q in inside.values())
    alone = 0.0
    for i in range(problem.length):
        each = [marginal(inside, i, v) for v in range(problem.tokens)]
        alone -= sum(q * math.log(q) for q in each if q > 0)
        if not given:
            assert problem.marginals()[i].tolist() == pytest.approx(each, abs=1e-12)
    error = 5 * getattr(problem, "entropy_error", 0.0) + 1e-9
    assert abs(problem.entropy() - entropy) < error
    assert abs(problem.total_correlation() - (alone - entropy)) < error
    if isinstance(problem, Language):
        alike = max(1 / 3, 1 - 5 / problem.length)
        mean = sum(q * r * alike ** sum(a != b for a, b in zip(s, t)) for s, q in p.items() for t, r in p.items())
        assert problem._exact_kernel == pytest.approx(mean)


def by_hand(p, length, groups):
    """{row: probability} that a plan makes each row of p, in fractions: each group from the product of its posteriors."""
    count = {s: Fraction(1) for s in p}
    made_of = dict.fromkeys(p, Fraction(1))
    done = []
    for group in groups:
        for s in p:
            rows = [t for t in count if all(t[i] == s[i] for i in done)]
            for i in group:
                made_of[s] *= Fraction(sum(t[i] == s[i] for t in rows), len(rows))
        done += group
    return made_of


@pytest.mark.parametrize("name", [n for n in ENUMERATED if n not in ("hmm", "copy", "sort", "reverse")])
def test_plans(name, known):
    problem, p = made(name, **SMALL[name]), known[name]
    length = problem.length
    plans = [None, [1] * length, [2, length - 2], [length - 1, 1]]
    for plan in plans:
        sizes = plan or [length]
        edges = list(itertools.accumulate(sizes, initial=0))
        made_of = by_hand(p, length, [list(range(a, b)) for a, b in itertools.pairwise(edges)])
        assert problem.one_shot(plan) == pytest.approx(float(sum(made_of.values())))
        kl = sum(math.log(1 / len(p) / q) for q in made_of.values()) / len(p)
        assert problem.plan_kl(plan) == pytest.approx(kl, abs=1e-9)
        if hasattr(problem, "plan_prob"):
            q = {tuple(s): float(v) for s, v in zip(problem.truth.tolist(), problem.plan_prob(plan))}
            assert q == pytest.approx({s: float(v) for s, v in made_of.items()})
    if hasattr(problem, "plan_prob"):
        groups = [[length - 1, 0], list(range(1, length - 1))]
        assert problem.one_shot(groups) == pytest.approx(float(sum(by_hand(p, length, groups).values())))


def test_domino_in_pairs():
    """Of two words: all words at once, in numbers that a page of Python counts."""
    first, last = Counter(w[0] for w in ANIMALS), Counter(w[-1] for w in ANIMALS)
    n = sum(first[w[-1]] for w in ANIMALS)
    chance = sum(Fraction(first[a[-1]], n) * Fraction(last[b[0]], n) for a in ANIMALS for b in ANIMALS if a[-1] == b[0])
    problem = made("domino", length=2)
    assert problem.one_shot() == pytest.approx(float(chance))
    assert problem.one_shot([1, 1]) == pytest.approx(1)


# ---------------------------------------------------------------------------------------------- rows, samples, scores


@pytest.mark.parametrize("family", ["masked", "uniform"])
@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_what_it_is_alone(name, family):
    problem = made(name)
    denoiser = problem.denoiser(family)
    g = rng(1)
    x, t = problem.sample_truth(40, 2), None
    x[30:] = torch.randint(problem.tokens, (10, problem.length), generator=g)  # contradictions too
    hit = torch.rand(x.shape, generator=g) < torch.rand(40, 1, generator=g)
    if family == "masked":
        x = x.masked_fill(hit, problem.tokens)
    else:
        t = torch.rand(x.shape, generator=g, dtype=torch.float64)
        t[:, 0] = 0
        x = torch.where(hit, torch.randint(problem.tokens, x.shape, generator=g), x)
    full = denoiser.predict(x, t)
    order = torch.randperm(40, generator=g)
    assert torch.equal(denoiser.predict(x[order], None if t is None else t[order]), full[order])
    for i in (0, 17, 39):
        assert torch.equal(denoiser.predict(x[i : i + 1], None if t is None else t[i : i + 1])[0], full[i])
    rows = torch.rand(x.shape, generator=g) < 0.2
    rows[3] = False
    assert torch.equal(denoiser.predict(x, t, rows=rows), full[rows])
    assert denoiser.predict(x[:0], None if t is None else t[:0]).shape == (0, problem.length, denoiser.vocab_size)
    torch.testing.assert_close(full.double().exp().sum(-1), torch.ones(x.shape).double(), rtol=0, atol=3e-6)


def test_blocks_of_rows_change_nothing():
    denoiser = made("domino").denoiser()
    masks = made("domino").sample_truth(50, 1)
    masks[:, ::2] = 89
    whole = denoiser.predict(masks)
    denoiser.block = 7
    assert torch.equal(denoiser.predict(masks), whole)


def test_equal_counts_are_equal_bit_for_bit():
    for name in ("parity", "shuffle", "mirror"):
        problem = made(name)
        p = problem.denoiser().predict(torch.full((1, problem.length), problem.tokens))[0, :, : problem.tokens]
        assert (p == p[0, 0]).all()


def test_long_rows_do_not_underflow():
    problem = problems.create("parity", length=256)
    assert problem.one_shot() == pytest.approx(0.5)
    x = torch.randint(2, (3, 256), generator=rng())
    assert problem.denoiser("uniform").posterior(x, torch.full((3,), 1e-9)).isfinite().all()
    assert problem.denoiser("masked").posterior(torch.full((1, 256), 2)).eq(0.5).all()
    hmm = problems.create("hmm", length=256)
    assert hmm.log_prob(hmm.sample_truth(4)).isfinite().all()


@pytest.mark.parametrize("name", ["dyck", "hmm", "parity", "domino", "mirror", "shuffle"])
def test_exact_samples(name, known):
    options = {"length": 2} if name == "domino" else SMALL[name]
    problem = made(name, **options)
    p = distribution(problem) if name == "domino" else known[name]
    x = problem.sample_truth(10_000, 3)
    assert torch.equal(x[:9], problem.sample_truth(9, 3))
    seen = Counter(map(tuple, x.tolist()))
    assert set(seen) <= set(p)
    assert fits(torch.tensor([seen[s] for s in p]), torch.tensor(list(p.values()))) > BOUND


@pytest.mark.parametrize("name", NAMES)
def test_scores(name):
    """Intervals cover the truth as they say, and rows whose positions were drawn apart are told from exact ones."""
    problem = made(name)
    n, hits = 150, Counter()
    for seed in range(20):
        score = problem.score(problem.sample_truth(n, seed))
        hits.update(m for m, e in score.items() if e.low - 1e-12 <= e.truth <= e.high + 1e-12)
    assert score.primary in score
    assert all(hits[m] >= 16 for m in score), hits
    assert problem.kind in ("waiting line", "puzzle", "chain", "global")
    if problem.total_correlation() > 0:
        n = 600 if name == "hmm" else n
        x = problem.sample_truth(n, 3)
        apart = torch.stack([x[torch.randperm(n, generator=rng(i)), i] for i in range(problem.length)], 1)
        bad, score = problem.score(apart), problem.score(x)
        worse = "nll" if name == "hmm" else "invalid"
        assert bad[worse].low > score[worse].high
        if name != "parity":  # no kernel of few positions sees it
            primary = bad[bad.primary]
            assert primary.value > score[score.primary].value


def test_the_floor_of_the_kernel_distance_is_what_exact_samples_score():
    problem = made("dyck", length=8)
    values = [problem.score(problem.sample_truth(60, seed))["mmd"] for seed in range(60)]
    mean = sum(e.value for e in values) / 60
    error = (sum((e.value - mean) ** 2 for e in values) / 59 / 60) ** 0.5
    assert abs(mean - values[0].truth) < 4 * error


# ---------------------------------------------------------------------------------------------- samplers on them


@pytest.mark.parametrize(
    ("name", "options", "steps", "block", "plan"),
    [
        ("shuffle", {"n": 4}, 1, None, None),
        ("replace_random", {}, 1, None, None),
        ("insert_random", {"n": 3}, 1, None, None),
        ("parity", {}, 1, None, None),
        ("parity", {}, 2, 4, [4, 4]),
        ("mirror", {"symbols": 2}, 1, None, None),
        ("mirror", {}, 2, 4, [4, 4]),
        ("dyck", {}, 1, None, None),
        ("dyck", {}, 4, 4, [4, 4, 4, 4]),
        ("dyck", {"length": 10, "types": 2}, 2, 5, [5, 5]),
        ("domino", {"length": 2}, 1, None, None),
        ("domino", {"length": 4}, 4, 1, [1] * 4),
    ],
)
def test_one_shot_is_what_a_run_of_a_blind_order_makes(name, options, steps, block, plan):
    problem = made(name, **options)
    run = {"batch": 2500, "steps": steps, "temperature": 1.0, "seed": 5}
    out = samplers.sample(problem.denoiser(), "random_order", **run, **({"block_length": block} if block else {}))
    invalid = problem.score(out)["invalid"]
    expected = 1 - problem.one_shot(plan)
    # 3.9 standard errors: once in 10,000, for Wilson's interval of twice the width.
    wide = 2 * max(invalid.high - invalid.value, invalid.value - invalid.low)
    assert abs(invalid.value - expected) <= wide
    assert wide < 0.05


@pytest.mark.parametrize("name", ["latin3", "dyck", "hmm", "insert_random"])
def test_one_position_per_step_is_exact(name, known):
    problem = made(name, **SMALL[name])
    x = samplers.sample(problem.denoiser(), "random_order", batch=8000, steps=problem.length, temperature=1.0, seed=2).x
    seen = Counter(map(tuple, x.tolist()))
    assert set(seen) <= set(known[name])
    p = known[name]
    assert fits(torch.tensor([seen[s] for s in p]), torch.tensor(list(p.values()))) > BOUND


@pytest.mark.parametrize("name", ["copy", "reverse", "sort"])
@pytest.mark.parametrize("sampler", ["threshold", "entropy_bound", "klass", "low_confidence"])
def test_answers_cost_one_pass(name, sampler):
    problem = made(name)
    steps = {"steps": 1} if sampler == "low_confidence" else {}
    out = samplers.sample(problem.denoiser(), sampler, batch=3, **problem.settings, **steps)
    score = problem.score(out)
    assert score["invalid"].value == 0
    assert torch.equal(out.x, problem.truth.expand(3, -1))
    assert out.nfe == 1 or sampler == "klass"  # klass compares with the step before
    given = samplers.sample(problem.denoiser(), sampler, prompt=[[1, 0, 2, 6, 4]] * 2, **steps)
    expected = {"copy": [1, 0, 2, 6, 4], "reverse": [4, 6, 2, 0, 1], "sort": [0, 1, 2, 4, 6]}[name]
    assert given.x[0, 5:].tolist() == expected
    assert problem.score(given)["invalid"].value == 0
    wrong = given.x.clone()
    wrong[0, 7] = wrong[0, 6]
    assert problem.score(wrong)["invalid"].value == 0.5


# ---------------------------------------------------------------------------------------------- text, and bad input


def test_render():
    assert made("copy").render(torch.tensor([6, 4, 2, 0, 5, 7, 4, 2, 7, 5])) == "g e c a f | · e c · f"
    assert made("latin3").render(torch.tensor([0, 1, 2, 3, 2, 0, 2, 0, 1])) == "1 2 3\n· 3 1\n3 1 2"
    assert made("replace_random", n=3).render(torch.tensor([0, 3, 4])) == "a * ·"
    assert made("dyck", types=2).render(torch.tensor([0, 2, 3, 4] * 4)) == "([]·" * 4
    domino = made("domino")
    row = domino.encode("ant tiger rat · tern nyala ant toad")
    assert domino.render(row) == "ant tiger rat · tern nyala ant toad"
    assert made("dyck").encode("(()·").tolist() == [0, 0, 1, 2]
    for name in NAMES:
        problem = made(name)
        assert "·" in problem.render(torch.full((problem.length,), problem.tokens))


def test_the_command_line_gives_the_prompt(capsys):
    assert main(["sample", "--problem", "sort", "--steps", "2", "--batch", "2"]) == 0
    assert "g e c a f | a c e f g" in capsys.readouterr().out
    assert main(["sample", "--problem", "reverse", "--steps", "2", "--batch", "2", "--prompt", "abcde"]) == 0
    assert "a b c d e | e d c b a" in capsys.readouterr().out
    assert main(["list", "--kind", "problems", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)["problems"]
    assert all(row["summary"] for row in listed) and set(NAMES) < {row["name"] for row in listed}


@pytest.mark.parametrize(
    ("name", "options", "says"),
    [
        ("shuffle", {"n": 9}, "'shuffle': n must be an integer of at most 8, not 9"),
        ("shuffle", {"n": 2.5}, "n must be an integer of 2 or more"),
        ("shuffle", {"m": 3}, "no option 'm'"),
        ("copy", {"n": 5, "items": 4}, "items must be an integer of 5 or more"),
        ("mirror", {"length": 7}, "length must be even"),
        ("mirror", {"length": 20, "symbols": 4}, "at most 65536"),
        ("dyck", {"length": 5}, "even, not 5"),
        ("dyck", {"types": 3}, "types"),
        ("dyck", {"length": 32, "types": 2}, "at most 20"),
        ("hmm", {"peak": -1}, "peak must be a number from 0 to 20"),
        ("domino", {"length": 1}, "length"),
        ("parity", {"length": 1000}, "at most 256"),
    ],
)
def test_bad_options(name, options, says):
    with pytest.raises(OptionError, match=says):
        problems.create(name, **options)


def test_bad_plans_and_texts():
    for plan in ([3, 3], [4, 5], [[0, 0], 2], [4, [0, 1, 2, 3]], [0, 8]):
        with pytest.raises(OptionError, match="a plan is groups that hold each position to fill"):
            made("mirror").one_shot(plan)
    with pytest.raises(OptionError, match="positions from left to right"):
        made("parity").one_shot([[0, 2, 4, 6], [1, 3, 5, 7]])
    with pytest.raises(OptionError, match="does not tell the state"):
        made("hmm").one_shot([12, 12])
    with pytest.raises(OptionError, match="'turtel' is none of its 89 words: did you mean 'turtle'"):
        made("domino").encode("ant turtel")
    with pytest.raises(OptionError, match="'dyck' has the tokens"):
        made("dyck").encode("[]")


def test_an_automaton_of_your_own():
    """Rows without two ones in a row: as many as Fibonacci says."""
    automaton = Automaton.of([(0, 0, 0), (0, 1, 1), (1, 0, 0)], [1.0, 0.0], [1.0, 1.0], 2)
    problem = Language(automaton, 10, "01")
    assert problem.count == 144
    p = AutomatonTokens(automaton, 10, "masked").posterior(torch.full((1, 10), 2))[0]
    assert float(p[0, 1]) == pytest.approx(55 / 144)


@pytest.mark.parametrize("name", ["shuffle", "parity"])
@pytest.mark.parametrize("plan", [[-1, 7], [3.0, 3.0], ["a"], 6, [[0, 1], 3], [2, 2]])
def test_a_plan_that_is_none_is_named(name, plan):
    with pytest.raises(OptionError, match=f"problem '{name}': (a plan is groups|groups are numbers)"):
        problems.create(name, **{"shuffle": {"n": 6}, "parity": {"length": 6}}[name]).one_shot(plan)


@pytest.mark.parametrize("name", ["shuffle", "dyck", "hmm"])
def test_what_is_no_row_has_no_probability(name):
    problem = problems.create(name)
    length = problem.length
    rows = torch.zeros(3, length, dtype=torch.int64)
    rows[0, 1], rows[1, 0], rows[2, 2] = -1, problem.tokens, 10**6
    assert (problem.log_prob(rows) == -torch.inf).all(), "masks and what is no token are in no row"
    for wrong in (rows[:, 1:], rows.float(), rows[0]):
        with pytest.raises(OptionError, match=rf"problem '{name}': log_prob takes x of shape \(n, {length}\) int64"):
            problem.log_prob(wrong)
