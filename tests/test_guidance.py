"""Guidance of tokens: against cfg_scale, against enumeration, against finite differences; and what is refused."""

import itertools
import math

import pytest
import torch

import samplers
from samplers import OptionError, TokenDenoiser
from samplers.guidance import Adaptive, Classifier, Unconditional
from samplers.testing.fit import BOUND, fits
from samplers.testing.tiny import TinyJoint, TinyNet, TinyUniformJoint, TinyUniformNet

pytestmark = pytest.mark.usefixtures("one_thread")

PROMPTS = [[1, 2, 3], [4], [5, 6]]
RUN = {"prompt": PROMPTS, "gen_length": 6, "seed": 3, "temperature": 1.0}


def drawn_from(x, problem, law):
    return fits(torch.bincount(problem.index(x), minlength=len(law)), law) > BOUND


def judge(problem, property_of):
    """log p(y | x) of a table's masked strings, and p(x | y): both by counting."""
    y = property_of(problem.strings).double()

    def fn(x, t):
        fit = ((x[:, None] == problem.strings) | (x[:, None] == problem.mask_id)).all(2) * problem.law
        return ((fit @ y) / fit.sum(1)).log()

    return fn, problem.law * y / (problem.law * y).sum()


# ---------------------------------------------------------------------------------------------- the form gamma


@pytest.mark.parametrize("interval", [(0.0, 1.0), (0.2, 0.8)])
@pytest.mark.parametrize("name", ["low_confidence", "radd", "entropy_bound", "theta_rk2", "entropy_bound_uniform"])
def test_gamma_is_one_more_than_cfg_scale(name, interval):
    uniform = samplers.create(name).family == "uniform"
    net = TinyUniformNet() if uniform else TinyNet(visible_too=True)
    run = RUN | {"cfg_interval": interval}
    a = samplers.sample(net, name, cfg_scale=1.5, **run)
    for guide in (Unconditional(gamma=2.5), Unconditional(prompt=[], gamma=2.5)):
        b = samplers.sample(net, name, guide=guide, **run)
        assert torch.equal(a.x, b.x) and (a.nfe, a.row_evals) == (b.nfe, b.row_evals) and b.guide_calls == 0


def test_gamma_1_is_no_guidance_and_gamma_0_the_other_model():
    net, other = TinyNet(visible_too=True), TinyNet(seed=4, visible_too=True)
    for gamma, alone in ((1.0, net), (0.0, other)):
        a = samplers.sample(net, "threshold", guide=Unconditional(denoiser=other, gamma=gamma), **RUN)
        assert torch.equal(a.x, samplers.sample(alone, "threshold", **RUN).x)
        assert a.guide_calls == (0 if gamma == 1 else a.nfe) and a.guide_rows == (0 if gamma == 1 else a.row_evals)


GUIDES = {
    "prompt": Unconditional(prompt=[[7], [8], [3, 4]], gamma=2.0),
    "model": Unconditional(denoiser=lambda ids: torch.nn.functional.one_hot((ids * 3 + 1) % 12, 12) * 1.5, gamma=1.7),
    "adaptive": Adaptive(gamma=2.0, share=0.5),
    "classifier": Classifier(lambda x, t: -0.4 * (x * (x < 11)).double().sum(1) / (1 + t)),
    "gradient": Classifier(lambda x, t: (x[:, :, 3].sum(1) - 0.2 * x[:, 1:, 3].mul(x[:, :-1, 2]).sum(1)), exact="gradient"),
}  # fmt: skip


@pytest.mark.parametrize("what", GUIDES)
def test_rows_are_what_they_are_alone_and_in_a_pool(what):
    net, guide = TinyNet(visible_too=True), GUIDES[what]
    run = RUN | {"block_length": 4, "temperature": 0.7}
    together = samplers.sample(net, "threshold", threshold=0.4, guide=guide, **run)
    plain = samplers.sample(net, "threshold", threshold=0.4, **run)
    assert not torch.equal(together.x, plain.x), "it guides"
    pool = samplers.Pool(net)
    for i in range(3):
        mine = run | of_row(what, i) | {"first_row": i}
        alone = samplers.sample(net, "threshold", threshold=0.4, **mine)
        assert together.rows()[i].tolist() == alone.rows()[0].tolist()
        assert int(together.nfe_rows[i]) == alone.nfe
        pool.add("threshold", threshold=0.4, **mine)
    assert [r.result().x[0].tolist() for r in sorted(pool, key=lambda r: r.number)] == [
        r.tolist() for r in together.rows()
    ]


@pytest.mark.parametrize("what", GUIDES)
def test_copies_of_rows_are_guided(what):
    """One particle is the row itself; of several, each is guided."""
    net, run = TinyNet(visible_too=True), RUN | {"guide": GUIDES[what]}
    plain = samplers.sample(net, "random_order", **run)
    one = samplers.sample(net, "smc", base="random_order", particles=1, **run)
    assert torch.equal(plain.x, one.x) and plain.guide_calls == one.guide_calls
    reward = {"reward": lambda x: (x == 5).double().sum(1), "scale": 2.0}
    three = samplers.sample(net, "smc", base="random_order", particles=3, **reward, **run)
    alone = samplers.sample(
        net, "smc", base="random_order", particles=3, first_row=1, **reward, **(run | of_row(what, 1))
    )
    assert three.rows()[1].tolist() == alone.rows()[0].tolist()


def of_row(what, i):
    guide = Unconditional(prompt=[[7], [8], [3, 4]][i], gamma=2.0) if what == "prompt" else GUIDES[what]
    return {"prompt": [PROMPTS[i]], "guide": guide}


def test_the_interval_holds_for_classifiers():
    """Outside of it nothing is asked and nothing is moved."""
    joint = TinyJoint()
    fn, _ = judge(joint, lambda s: s.sum(1) % 2 == 0)
    full, half = (
        samplers.sample(joint, "random_order", batch=64, guide=Classifier(fn), cfg_interval=interval)
        for interval in ((0.0, 1.0), (0.0, 0.5))
    )
    assert full.guide_rows == 64 * 3 * 3, "three tokens at the one position of each of three steps"
    assert half.guide_rows == 64 * 3, "the last of the three positions alone"


# ---------------------------------------------------------------------------------------------- exact, masked noise

PROPERTIES = {
    "even sum": lambda s: s.sum(1) % 2 == 0,
    "more ones than zeros": lambda s: (s == 1).sum(1) > (s == 0).sum(1),
}


@pytest.mark.parametrize(
    ("what", "sampler", "options"),
    [
        ("even sum", "random_order", {}),
        ("more ones than zeros", "first_hitting", {}),
        ("more ones than zeros", "entropy_bound", {"bound": 0.0}),
    ],
)
def test_a_classifier_makes_samples_of_p_given_y(what, sampler, options):
    """Whatever order one position at a time is committed in, an order that depends on what was drawn as well."""
    joint = TinyJoint()
    fn, target = judge(joint, PROPERTIES[what])
    x = samplers.sample(joint, sampler, guide=Classifier(fn), batch=15_000, seed=1, temperature=1.0, **options).x
    assert drawn_from(x, joint, target)
    assert not drawn_from(samplers.sample(joint, "random_order", batch=15_000, seed=1).x, joint, target)


def test_sudoku_grids_with_a_property():
    """y: the two diagonals' corners hold equal digits, a property of 288 grids that no single cell decides."""
    problem = samplers.problems.create("sudoku4")
    y = (problem.grids[:, 0] == problem.grids[:, 15]) & (problem.grids[:, 3] != problem.grids[:, 12])
    onehot = torch.nn.functional.one_hot(problem.grids, 5).flatten(1).float()

    def fn(x, t):
        seen = torch.nn.functional.one_hot(x, 5).flatten(1).float()
        fit = (seen @ onehot.t() == (x < 4).sum(1, keepdim=True)).double()
        return ((fit * y).sum(1) / fit.sum(1)).log()

    out = samplers.sample(problem.denoiser(), "random_order", guide=Classifier(fn), batch=1500, seed=2)
    counts = torch.bincount(problem.index(out.x).clamp_min(0), minlength=288)
    assert (problem.index(out.x) >= 0).all() and 20 < int(y.sum()) < 200
    assert fits(counts, y.double() / y.sum()) > BOUND
    assert out.nfe == 16 and out.guide_rows == 1500 * 16 * 4


def test_gamma_is_the_power_of_the_classifier():
    """One position: p(v) p(y | v)^gamma, normalised."""
    joint = TinyJoint(length=1, vocab=5)
    score = torch.tensor([-0.3, -2.0, -0.1, -1.0, -4.0], dtype=torch.float64)
    law = joint.law * (2.5 * score).exp()
    x = samplers.sample(joint, "radd", guide=Classifier(lambda x, t: score[x[:, 0]], gamma=2.5), batch=20_000, seed=1).x
    assert drawn_from(x, joint, law / law.sum())


# ---------------------------------------------------------------------------------------------- first order

W = torch.randn(7, 12, generator=torch.Generator().manual_seed(3))


def curved(soft, t):
    """Not linear in the one-hot tokens, and different at every position."""
    return torch.nn.functional.logsigmoid(
        (soft * W[: soft.shape[1]]).sum((1, 2)) + 0.3 * (soft[:, 1:, 2] * soft[:, :-1, 5]).sum(1)
    )


def test_the_gradient_against_finite_differences():
    run = samplers.stream(
        TinyNet(), "random_order", gen_length=5, prompt=[2, 5], guide=Classifier(curved, exact="gradient")
    )
    state, guiding = run.state, run.predictor.guiding
    (query,) = run.predictor.queries(state, None, None)
    got = guiding.evidence(state, query, state.noise_level)  # (5, 12)
    soft = torch.nn.functional.one_hot(state.x, 12).double()
    h = 1e-5
    for n, i in enumerate(query.position.tolist()):
        for v in range(12):
            way = torch.zeros_like(soft)
            way[0, i, v] += 1.0
            way[0, i, state.x[0, i]] -= 1.0
            slope = (curved(soft + h * way, None) - curved(soft - h * way, None)) / (2 * h)
            assert abs(float(slope) - float(got[n, v])) < 1e-5
    assert guiding.calls == 1


def test_first_order_is_exact_if_the_function_is_linear():
    def linear(soft, t):
        return (soft * W[: soft.shape[1]]).sum((1, 2))

    def of_ids(x, t):
        return W[torch.arange(x.shape[1]), x].sum(1)

    a, b = (
        samplers.sample(TinyNet(), "random_order", gen_length=7, batch=8, guide=guide)
        for guide in (Classifier(linear, exact="gradient"), Classifier(of_ids))
    )
    assert torch.equal(a.x, b.x) and a.guide_calls == 7 and a.guide_rows == 56 and b.guide_rows == 11 * 7 * 8


# ---------------------------------------------------------------------------------------------- uniform noise


class Chain:
    """d3pm_ancestral with guidance as a Markov chain over all strings, in float64: Bayes and nothing else."""

    def __init__(self, problem, y=None):
        self.V, self.strings = problem.tokens, problem.strings.tolist()
        self.L, self.law, self.y = len(self.strings[0]), problem.law.tolist(), y

    def like(self, x, alpha):
        """law(s) q(x | s) of every string s."""
        same = alpha + (1 - alpha) / self.V
        return [
            w * math.prod(same if a == b else (1 - alpha) / self.V for a, b in zip(x, s))
            for s, w in zip(self.strings, self.law)
        ]

    def judge(self, x, alpha):
        """p(y | x) at the noise level 1 - alpha."""
        like = self.like(x, alpha)
        return sum(w for w, y in zip(like, self.y) if y) / sum(like)

    def after(self, x, now, then):
        """(L, V): p(x_s,i = v | x_t)."""
        like, keep = self.like(x, now), now / then
        out = []
        for i in range(self.L):
            to = [0.0] * self.V
            for s, w in zip(self.strings, like):
                mass = [
                    (then * (j == s[i]) + (1 - then) / self.V) * (keep * (j == x[i]) + (1 - keep) / self.V)
                    for j in range(self.V)
                ]
                to = [t + w / sum(like) * m / sum(mass) for t, m in zip(to, mass)]
            out.append(to)
        return out

    def run(self, alphas, guided):
        """The distribution after these steps; guided(x, position, p (V,), now, then) -> (V,), normalised here."""
        law = dict.fromkeys(map(tuple, self.strings), 1 / len(self.strings))
        for now, then in itertools.pairwise(alphas):
            new = dict.fromkeys(law, 0.0)
            for x, w in law.items():
                each = [guided(x, i, p, now, then) for i, p in enumerate(self.after(x, now, then))]
                each = [[v / sum(p) for v in p] for p in each]
                for s in new:
                    new[s] += w * math.prod(p[v] for p, v in zip(each, s))
            law = new
        return torch.tensor(list(law.values()), dtype=torch.float64)

    def by_classifier(self, x, i, p, now, then):
        return [p[v] * self.judge((*x[:i], v, *x[i + 1 :]), then) for v in range(self.V)]

    def by_rates(self, x, i, p, now, then):
        own = self.judge(x, now)
        out = [p[v] * self.judge((*x[:i], v, *x[i + 1 :]), now) / own for v in range(self.V)]
        out[x[i]] = max(0.0, 1 - sum(out) + out[x[i]])
        return out


def noisy_judge(problem, y):
    def fn(x, t):
        fit = problem.noisy(x, t[:, None].expand_as(x))
        return ((fit @ y.double()) / fit.sum(1)).log()

    return fn


@pytest.mark.parametrize("steps", [1, 3])
def test_one_position_of_uniform_noise_is_exact_in_any_number_of_steps(steps):
    problem = TinyUniformJoint(length=1, vocab=6)
    y = problem.strings[:, 0] % 3 != 1
    guide = Classifier(noisy_judge(problem, y))
    x = samplers.sample(problem, "d3pm_ancestral", steps=steps, batch=20_000, seed=4, guide=guide).x
    assert drawn_from(x, problem, problem.law * y / (problem.law * y).sum())


@pytest.mark.parametrize("rates", [False, True], ids=["posterior", "rates"])
def test_uniform_noise_against_its_chain(rates):
    problem = TinyUniformJoint(length=2, vocab=3)
    y = problem.strings.sum(1) % 2 == 0
    guide, chain = Classifier(noisy_judge(problem, y), rates=rates), Chain(problem, y.tolist())
    guided = chain.by_rates if rates else chain.by_classifier
    target = problem.law * y / (problem.law * y).sum()

    def alphas(steps):
        grid = [k / steps for k in range(steps + 1)]
        return [*(min(a, 1 - 2.0**-20) for a in grid[:-1]), 1.0]

    laws = {steps: chain.run(alphas(steps), guided) for steps in (2, 16, 32)}
    x = samplers.sample(problem, "d3pm_ancestral", steps=2, batch=20_000, seed=4, guide=guide).x
    assert drawn_from(x, problem, laws[2])
    off = {steps: 0.5 * float((law - target).abs().sum()) for steps, law in laws.items()}
    assert off[32] < 0.6 * off[16] < 0.6 * off[2], "of order one in the step"


def test_two_models_of_uniform_noise():
    """D-CFG: p_c^gamma p_u^(1 - gamma) of the tokens after the step, and not of the clean ones."""
    problem, other = TinyUniformJoint(length=2, vocab=3), TinyUniformJoint(length=2, vocab=3, seed=5)
    a, b, gamma = Chain(problem), Chain(other), 1.8

    class Both(Chain):
        def after(self, x, now, then):
            return [
                [u**gamma * v ** (1 - gamma) for u, v in zip(p, q)]
                for p, q in zip(a.after(x, now, then), b.after(x, now, then))
            ]

    law = Both(problem).run([0.0, 0.5, 1.0], lambda x, i, p, now, then: p)
    guide = Unconditional(denoiser=other, gamma=gamma)
    x = samplers.sample(problem, "d3pm_ancestral", steps=2, batch=20_000, seed=4, guide=guide).x
    assert drawn_from(x, problem, law)


@pytest.mark.parametrize("what", GUIDES)
def test_a_head_is_guided_as_its_logits_are(what):
    g = torch.Generator().manual_seed(0)
    table, weight = torch.randn(12, 8, generator=g), torch.randn(12, 8, generator=g)

    def hidden(ids):
        return table[ids] + 0.5 * table[ids.roll(1, 1)]

    facts = {"vocab_size": 12, "mask_id": 11}
    headed = TokenDenoiser.wrap(hidden, head=samplers.Head(weight), **facts)
    plain = TokenDenoiser.wrap(lambda ids: torch.nn.functional.linear(hidden(ids), weight), **facts)
    run = RUN | {"temperature": 0.0}  # a head's draws are made tile by tile, by other random numbers
    a, b = (samplers.sample(d, "low_confidence", guide=GUIDES[what], **run) for d in (headed, plain))
    assert torch.equal(a.x, b.x) and a.nfe == b.nfe


# ---------------------------------------------------------------------------------------------- bad input

JOINT, NET, UNIFORM = TinyJoint(), TinyNet(visible_too=True), TinyUniformNet(time_conditioned=False)


def zeros(x, t):
    return torch.zeros(len(x), dtype=torch.float64)


@pytest.mark.parametrize(
    ("denoiser", "sampler", "run", "says"),
    [
        (NET, "radd", {"guide": zeros}, r"guide=.*samplers.guidance.Unconditional"),
        (NET, "radd", {"guide": Unconditional(), "cfg_scale": 1.0, "prompt": [1]}, "both guide.*gamma is 1 . cfg_scale"),
        (NET, "radd", {"guide": Unconditional()}, "guides by a prompt, and none was given"),
        (NET, "radd", {"guide": Unconditional(prompt=[1, 2]), "prompt": [3]}, "negative prompt of row 0 has 2 tokens and its prompt 1"),
        (NET, "radd", {"guide": Unconditional(prompt=[[1], [2]]), "prompt": [3]}, "has 2 rows, and the run 1"),
        (NET, "radd", {"guide": Unconditional(prompt=[11]), "prompt": [3]}, "Unconditional.prompt=.*11"),
        (NET, "radd", {"guide": Unconditional(denoiser=TinyNet(vocab=5))}, "vocab_size 6, and 'tiny net' has 12"),
        (UNIFORM, "d3pm_ancestral", {"guide": Adaptive()}, "has no mask"),
        (UNIFORM, "block_refinement", {"guide": Classifier(zeros)}, "sampler 'block_refinement' does not have"),
        (UNIFORM, "d3pm_ancestral", {"guide": Classifier(zeros), "corrector_steps": 1}, "without a corrector"),
        (UNIFORM, "d3pm_ancestral", {"guide": Classifier(zeros), "temperature": 0.5}, "use temperature=1"),
        (UNIFORM, "d3pm_ancestral", {"guide": Unconditional(denoiser=UNIFORM), "top_k": 3}, "use top_k=0"),
        (NET, "radd", {"guide": Classifier(zeros, rates=True)}, "rates=True is for uniform noise"),
        (NET, "radd", {"guide": Classifier(lambda x, t: torch.zeros(len(x), 2))}, r"returned torch.float32 of shape .*, 2\).*is needed"),
        (NET, "radd", {"guide": Classifier(lambda x, t: zeros(x, t).long())}, "returned torch.int64"),
        (NET, "radd", {"guide": Classifier(lambda x, t: 0.0)}, "returned float"),
        (NET, "radd", {"guide": Classifier(lambda x, t: zeros(x, t) + math.nan)}, "row 0, position .* is NaN or"),
        (NET, "radd", {"guide": Classifier(lambda x, t: zeros(x, t) - math.inf)}, "leaves no token that the model finds possible"),
        (NET, "radd", {"guide": Classifier(zeros, exact="gradient")}, "cannot be differentiated"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_bad_input_is_explained(denoiser, sampler, run, says):
    with pytest.raises(OptionError, match=says):
        samplers.sample(denoiser, sampler, gen_length=4, **run)


@pytest.mark.parametrize(
    "how", [{"gamma": -1}, {"gamma": math.nan}, {"exact": "taylor"}, {"chunk": 0}, {"rates": 1}], ids=str
)
def test_options_of_a_classifier(how):
    with pytest.raises(OptionError, match=next(iter(how))):
        Classifier(zeros, **how)


def test_a_wrong_classifier_costs_no_forward_pass():
    asked = []

    def model(ids):
        asked.append(ids)
        return torch.zeros(*ids.shape, 5)

    denoiser = TokenDenoiser.wrap(model, vocab_size=5, mask_id=4)
    with pytest.raises(OptionError, match="returned NoneType"):
        samplers.sample(denoiser, "radd", gen_length=3, guide=Classifier(lambda x, t: None))
    assert not asked


def test_a_cache_and_a_sequence_are_refused():
    from samplers.models import Config, Transformer, TransformerDenoiser

    config = Config(vocab_size=12, width=16, layers=1, heads=2, attention="causal", max_length=16)
    model = TransformerDenoiser(Transformer(config, seed=0), mask_id=11, predicts_next=True)
    with pytest.raises(OptionError, match="does not go with cache='prefix'"):
        samplers.sample(model, "radd", gen_length=3, cache="prefix", guide=Classifier(zeros))
    with pytest.raises(OptionError, match="as a sequence"):
        samplers.sample(model, "autoregressive", gen_length=3, guide=Classifier(zeros))


@pytest.mark.parametrize("name", ["threshold", "freedave"])
@pytest.mark.parametrize("what", ["classifier", "model"])
def test_a_pool_asks_what_guides_as_often_as_a_run_alone(name, what):
    """Its steps are begun again when the model has answered; what guides is not asked again."""
    asked = []

    def fn(x, t):
        asked.append(len(x))
        return (x == 1).sum(1).double() - 12

    guide = Classifier(fn) if what == "classifier" else Unconditional(denoiser=TinyNet(seed=5))
    net = TinyNet()
    alone = samplers.sample(net, name, guide=guide, **RUN)
    once = list(asked)
    pool = samplers.Pool(net)
    run = pool.add(name, guide=guide, **RUN)
    for _ in pool:
        pass
    pooled = run.result()
    assert torch.equal(alone.x, pooled.x) and asked == once * 2
    assert (alone.guide_calls, alone.guide_rows) == (pooled.guide_calls, pooled.guide_rows) and alone.guide_calls > 3
