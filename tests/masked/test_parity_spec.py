"""s2d2, linear_spec, strided and apd: token for token with plain loops at temperature 0, and their distributions by chi-square."""

import itertools

import numpy as np
import pytest
import torch
from laws import sampled_like
from test_autoregressive import plain as one_by_one
from test_parity import MASK, PROMPT, V, agree, blocks_of, fresh, masks, softmax
from test_refusion import Glass

import samplers
from samplers import Canvas, OptionError, TokenDenoiser, problems
from samplers.models import Transformer, TransformerDenoiser
from samplers.models.transformer import Config
from samplers.testing.fit import BOUND, fits
from samplers.testing.tiny import TinyJoint, TinyNet, TinySequential

pytestmark = pytest.mark.usefixtures("one_thread")


class Deep:
    """Two layers of random weights, so that what a token knows depends on what it saw; sharp, so that drafts often stand."""

    def __init__(self, seed):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            network = Transformer(Config(V, 32, 2, 2, attention="full"))
            for parameter in network.parameters():
                if parameter.dim() == 2:
                    torch.nn.init.normal_(parameter, std=0.35)
        self.denoiser = TransformerDenoiser(network.eval(), mask_id=MASK)

    def marginals(self, x):
        """(L, V) float64: what the model says of a canvas."""
        return self._softmax(self.denoiser.predict(torch.tensor([x]))[0])

    def judge(self, x, i, begin):
        """(V,): what it says of position i at block size 1: a sequence that ends with a mask at i.

        Tokens of the block, which begins at `begin`, see what is to their left; those before it see all before it.
        """
        n = i + 1
        visible = torch.ones(n, n, dtype=torch.bool).tril()
        visible[:begin, :begin] = True
        sequence = torch.tensor([[*x[:i], MASK]])
        out = self.denoiser.predict(sequence, visible=visible[None], positions=torch.arange(n)[None])
        return self._softmax(out[0])[-1]

    @staticmethod
    def _softmax(logits):
        logits = logits.detach().double().numpy()
        logits[:, MASK] = -np.inf
        return softmax(logits)


def run(net, name, length, **kw):
    """The canvas after every step, and the forward passes."""
    out = samplers.sample(net.denoiser, name, prompt=PROMPT, gen_length=length, temperature=0.0, trace=True, **kw)
    return [s.x[0].tolist() for s in out.trace][1:], out.nfe


def greedy(net, length, block):
    x = fresh(length)
    for span in blocks_of(length, block):
        for i in span:
            x[i] = int(net.judge(x, i, span[0]).argmax())
    return x


# ---------------------------------------------------------------------------------------------- s2d2


def s2d2(net, length, block, tau=None, least_span=1):
    """Draft all masks of the block; of the first run of masks keep what the judge says too; then what is above tau."""
    x, states, passes, kinds = fresh(length), [], 0, [0, 0, 0]
    for span in blocks_of(length, block):
        while left := masks(x, span):
            p = net.marginals(x)
            token, sure = p.argmax(1), p.max(1)
            first = list(itertools.takewhile(lambda i: i in left, range(left[0], len(x))))
            fill, y = {}, list(x)
            if len(first) >= least_span:
                for i in first:
                    fill[i] = y[i] = int(net.judge(y, i, span[0]).argmax())
                    if fill[i] != token[i]:
                        break
                passes, kinds[0] = passes + 1, kinds[0] + len(fill) - 1
            if tau is not None:
                more = {i: int(token[i]) for i in left if i not in fill and sure[i] >= tau}
                fill, kinds[1] = fill | more, kinds[1] + len(more)
            if not fill:
                best = max(left, key=lambda i: (sure[i], -i))
                fill, kinds[2] = {best: int(token[best])}, kinds[2] + 1
            passes += not (least_span == 1 and len(left) == 1)  # the last one of a block needs no draft
            x = [fill.get(i, v) for i, v in enumerate(x)]
            states.append(x)
    return states, passes, kinds


@pytest.mark.parametrize(("block", "tau", "least_span"), [(16, None, 1), (5, None, 1), (16, 0.8, 1), (8, 0.8, 3)])
def test_s2d2(block, tau, least_span):
    total = np.zeros(3, int)
    for seed in range(4):
        net = Deep(seed)
        states, passes, kinds = s2d2(net, 16, block, tau, least_span)
        assert run(net, "s2d2", 16, block_length=block, tau=tau, least_span=least_span) == (states, passes)
        if tau is None:
            assert states[-1] == greedy(net, 16, block) and passes < 32
        total += kinds
    assert total[0] > 3 and (tau is None or total[1] > 0) and (least_span == 1 or total[2] > 0), total


# ---------------------------------------------------------------------------------------------- linear_spec


def linear(net, length, block, width):
    """Draft the next `width` masks, draw left to right, and stop after the first that is not the draft."""
    x, states, passes = fresh(length), [], 0
    for span in blocks_of(length, block):
        while left := masks(x, span):
            token, alone = net.marginals(x).argmax(1), len(left) == 1
            for i in left[: width + 1]:
                x = [*x[:i], int(net.judge(x, i, span[0]).argmax()), *x[i + 1 :]]
                if x[i] != token[i]:
                    break
            states, passes = [*states, x], passes + 2 - alone
    return states, passes


@pytest.mark.parametrize(("block", "width"), [(16, 32), (7, 3), (16, 1)])
def test_linear_spec(block, width):
    for seed in range(4):
        net = Deep(seed)
        states, passes = linear(net, 16, block, width)
        assert run(net, "linear_spec", 16, block_length=block, width=width) == (states, passes)
        assert states[-1] == greedy(net, 16, block)


def test_a_cap_on_passes_is_kept():
    for name, steps in itertools.product(("s2d2", "linear_spec", "apd"), (1, 2, 3, 7, 15)):
        out = samplers.sample(TinyNet(), name, gen_length=16, steps=steps, temperature=1.0, batch=8)
        assert out.nfe <= steps and not (out.x == TinyNet().mask_id).any()


# ---------------------------------------------------------------------------------------------- apd


def apd(net, length, lookahead, ratio, verifier):
    """The best tokens of a draft, up to the first that is not the best one of the mixture as well."""
    x, states = fresh(length), []
    while left := masks(x):
        p = net.marginals(x)
        y = list(x)
        for i in left[:lookahead]:
            y[i] = int(p[i].argmax())
        with np.errstate(divide="ignore"):
            r = np.log(softmax(verifier(torch.tensor([y]))[0].double().numpy()))
            own = np.log(p)
        for i in left[:lookahead]:
            mixed = ratio * own[i] + (1 - ratio) * r[i - 1]
            mixed[MASK] = -np.inf
            if i > left[0] and int(mixed.argmax()) != y[i]:
                break
            x = [*x[:i], y[i], *x[i + 1 :]]
        states.append(x)
    return states


@pytest.mark.parametrize(("lookahead", "ratio"), [(16, 0.5), (4, 0.8), (16, 0.2)])
def test_apd(lookahead, ratio):
    table = 2 * torch.randn(V, V, generator=torch.Generator().manual_seed(3))
    steps = 0
    for seed in range(4):
        net = Deep(seed)
        states = apd(net, 16, lookahead, ratio, lambda ids: table[ids])
        agree(run(net, "apd", 16, lookahead=lookahead, ratio=ratio, verifier=lambda ids: table[ids]), states)
        steps += len(states)
    assert 10 < steps < 60


def test_apd_with_the_chain_rule_is_one_token_per_step():
    """R = 0 on an exact model: whichever step commits a token, the noise is its position's, and so is the token."""
    joint = TinyJoint(5)

    def chain(ids):
        """The exact distribution of the token after each."""
        n = ids.shape[1]
        prefixes = torch.where(torch.ones(n, n, dtype=torch.bool).tril(), ids[:, None], joint.mask_id)  # (B, n, n)
        out = joint.predict(prefixes.flatten(0, 1)).view(len(ids), n, n, -1)
        return out[:, range(n), [*range(1, n), n - 1]]

    run = {"batch": 400, "temperature": 1.0, "seed": 4}
    slow = samplers.sample(joint, "apd", lookahead=1, **run)
    for verifier in (None, chain, TinyCausal(chain, joint)):
        fast = samplers.sample(joint, "apd", ratio=0.0, verifier=verifier, **run)
        assert torch.equal(fast.x, slow.x) and slow.nfe == 5
        if verifier is not None:
            assert float(fast.nfe_rows.float().mean()) < 3
    assert samplers.sample(joint, "apd", ratio=1.0, **run).nfe == 1


class TinyCausal(TokenDenoiser):
    """A function of tokens as a causal denoiser that predicts the next token."""

    attention, predicts_next, name = "causal", True, "tiny causal"

    def __init__(self, fn, like):
        self.fn, self.vocab_size, self.mask_id = fn, like.vocab_size, like.mask_id

    def predict(self, x, t=None, *, rows=None, cache=None):
        return self.fn(x)


def test_apd_says_what_is_wrong_with_a_verifier():
    net = TinyNet()
    with pytest.raises(
        OptionError, match=r"returned torch.float32 of shape \(1, 8, 3\); it must return logits of shape \(1, 8, 12\)"
    ):
        samplers.sample(net, "apd", gen_length=8, verifier=lambda ids: torch.zeros(*ids.shape, 3))
    with pytest.raises(OptionError, match="must be causal and predict the next token"):
        samplers.create("apd", verifier=net)
    with pytest.raises(OptionError, match=r"'tiny causal' of 4 tokens; the model has 12"):
        samplers.sample(net, "apd", gen_length=8, verifier=TinyCausal(None, TinyJoint()))
    with pytest.raises(OptionError, match=r"package\.module:name"):
        samplers.create("apd", verifier="nothing")
    blind = TokenDenoiser.wrap(lambda ids: torch.zeros(*ids.shape, 4), vocab_size=4, mask_id=3)
    for name in ("apd", "s2d2", "linear_spec"):
        with pytest.raises(OptionError, match=f"sampler '{name}' .*takes no such masks"):
            samplers.sample(blind, name, gen_length=4)


# ---------------------------------------------------------------------------------------------- strided


def strided(model, row, n):
    """Feed the last token, the guesses and N - 1 masks; keep guesses while they are the best tokens; guess again."""
    row, spent, kept, guesses = list(row), [], [], []
    pending = [(token, i) for i, token in enumerate(row) if token is not None]
    while None in row:
        begin = row.index(None)
        end = next((i for i in range(begin, len(row)) if row[i] is not None), len(row))
        by_mask = not pending or pending[-1][1] != begin - 1
        assert not (by_mask and guesses)
        tried = [(token, begin + j) for j, token in enumerate(guesses)]
        anchor = begin + len(guesses)
        fed = pending + tried + [(model.mask_id, i) for i in range(anchor + (not by_mask), min(anchor + n, end))]
        out = model.feed(kept, fed)
        best = [max(range(len(p)), key=lambda t: p[t]) for _, p in out]
        said = {i + (token != model.mask_id): b for (token, i), b in zip(fed, best)}  # of each position, the last line
        k = 0
        while k < len(guesses) and guesses[k] == said[begin + k]:
            k += 1
        after = {begin + j: g for j, g in enumerate(guesses)} | {
            i: said[i] for i in range(anchor, min(anchor + n, end))
        }
        last = min(begin + k, end - 1)
        for i in range(begin, last + 1):
            row[i] = said[i]
        kept = kept + [key for key, _ in out[: len(pending) + last - begin]]
        pending = [(row[last], last)]
        guesses = [after[i] for i in range(begin + k + 1, min(begin + k + n, end))]
        spent.append(fed)
    return row, spent


@pytest.mark.parametrize("given", [(), (0, 1, 2), (0, 4, 5, 9), (3, 11)], ids=str)
@pytest.mark.parametrize("n", [1, 2, 4])
def test_strided(given, n):
    saved = 0
    for seed in range(8):
        model = Glass(seed=seed)
        row = [i * 7 % 5 if i in given else None for i in range(14)]
        expected, spent = strided(model, row, n)
        assert expected == one_by_one(model, row)[0]
        x = torch.tensor([[0 if token is None else token for token in row]])
        canvas = Canvas.infill(model, x, torch.tensor([[token is None for token in row]]))
        out = samplers.sample(model, "strided", prompt=canvas, temperature=0.0, stride=n)
        assert out.x.tolist() == [expected]
        assert [rows[0] for _, rows in model.log] == spent and out.nfe == len(spent)
        saved += 14 - len(given) - out.nfe
    assert (saved == 0) == (n == 1)


def test_strided_reads_a_trained_model_as_autoregressive_does():
    denoiser = samplers.models.zoo.load("text-refusion")
    how = {"gen_length": 48, "batch": 3, "temperature": 0.0, "stop": ()}
    one, many = (samplers.sample(denoiser, name, prompt="It was ", **how) for name in ("autoregressive", "strided"))
    assert torch.equal(one.x, many.x) and many.nfe < one.nfe == 48


# ---------------------------------------------------------------------------------------------- distributions


def exact(name, denoiser):
    return TinySequential(denoiser) if name == "strided" else denoiser


RULES = {"s2d2": {}, "linear_spec": {}, "strided": {}, "apd": {"ratio": 0.0}}


@pytest.mark.parametrize("name", RULES)
def test_the_distribution_is_the_joint(name):
    joint = TinyJoint(4)
    for run in ({}, {"block_length": 3}):
        x = samplers.sample(exact(name, joint), name, batch=6000, seed=2, temperature=1.0, **RULES[name], **run)
        assert fits(torch.bincount(joint.index(x.x), minlength=81), joint.law) > BOUND
        assert float(x.nfe_rows.float().mean()) < 4.5


@pytest.mark.parametrize("name", ["s2d2", "linear_spec", "strided"])
def test_grids_of_sudoku_are_uniform(name):
    sudoku = problems.create("sudoku4").denoiser("masked")
    x = samplers.sample(exact(name, sudoku), name, batch=1728, seed=1, temperature=1.0).x
    number = (x[:, None] == sudoku.support).all(2)
    assert number.any(1).all(), "a grid that is none"
    assert fits(number.sum(0), torch.full((288,), 1 / 288)) > BOUND


def test_drafts_by_the_last_verification_are_exact_and_save_passes():
    """One pass per step after the first of a block; at temperature 0 the tokens of one position per step."""
    joint = TinyJoint(4)
    out, twice = (samplers.sample(joint, "s2d2", reuse=r, batch=6000, seed=2, temperature=1.0) for r in (True, False))
    assert fits(torch.bincount(joint.index(out.x), minlength=81), joint.law) > BOUND
    assert int(out.nfe_rows.max()) <= 5 and out.nfe_rows.float().mean() < twice.nfe_rows.float().mean()
    for seed, block in ((0, 16), (1, 5)):
        net = Deep(seed)
        states, nfe = run(net, "s2d2", 16, block_length=block, reuse=True)
        assert states[-1] == greedy(net, 16, block)
        assert nfe <= len(states) + len(blocks_of(16, block))


def test_without_the_exact_rule_it_is_another_distribution():
    """What the tests above would find."""
    assert not sampled_like(TinyJoint(4), samplers.create("s2d2", gamma=0.5), TinyJoint(4).law, rows=5000)
    assert samplers.create("s2d2", gamma=0.5).effective_facts.bias == "biased"


@pytest.mark.parametrize("name", ["s2d2", "linear_spec", "strided"])
@pytest.mark.parametrize(
    "how", [{"temperature": 0.6}, {"temperature": 1.5, "top_k": 2}, {"temperature": 1.0, "top_p": 0.7}]
)
def test_the_distribution_of_a_tempered_draw(name, how):
    """Of the chain rule whose every draw is made at this temperature, among what top_k and top_p leave; enumerated."""
    joint = TinyJoint(4)
    law = []
    for string in itertools.product(range(3), repeat=4):
        chance = 1.0
        for i, token in enumerate(string):
            p = joint.law[(joint.strings[:, :i] == torch.tensor(string[:i])).all(1)].view(3, -1).sum(1).numpy()
            chance *= truncated(p, **how)[token]
        law.append(chance)
    x = samplers.sample(exact(name, joint), name, batch=5000, seed=3, **how).x
    law, seen = torch.tensor(law), torch.bincount(joint.index(x), minlength=81)
    assert seen[law == 0].sum() == 0
    assert fits(seen[law > 0], law[law > 0]) > BOUND


def truncated(p, temperature, top_k=0, top_p=1.0):
    p = p ** (1 / temperature) / (p ** (1 / temperature)).sum()
    order = np.argsort(-p)
    kept = order[: top_k or len(p)]
    total, chosen = 0.0, []
    for v in kept:
        if total < top_p * p[kept].sum():
            chosen.append(v)
        total += p[v]
    return np.where(np.isin(range(len(p)), chosen), p, 0) / p[chosen].sum()


def test_tokens_to_the_right_count():
    """Infilling: what is given after the run is known to both passes, so the run has its conditional distribution."""
    joint = TinyJoint(4)
    canvas = Canvas.infill(
        joint, torch.tensor([[0, 0, 0, 1]]).expand(6000, 4), torch.tensor([[True, True, True, False]]).expand(6000, 4)
    )
    right = joint.strings[:, 3] == 1
    law = joint.law[right] / joint.law[right].sum()
    for name in RULES:
        x = samplers.sample(exact(name, joint), name, prompt=canvas, seed=1, temperature=1.0, **RULES[name]).x
        assert fits(torch.bincount(joint.index(x), minlength=81)[right], law) > BOUND, name


@pytest.mark.parametrize("name", ["s2d2", "linear_spec", "strided"])
def test_rows_of_several_temperatures(name):
    """Each row is what it is in a run of its own."""
    how = {"temperature": [0.0, 1.0, 0.7], "top_k": [0, 3, 2]}
    net = exact(name, TinyNet())
    together = samplers.sample(net, name, gen_length=10, batch=3, seed=5, **how)
    for i in range(3):
        own = {key: value[i] for key, value in how.items()}
        alone = samplers.sample(net, name, gen_length=10, seed=5, first_row=i, **own)
        assert torch.equal(alone.x[0], together.x[i]) and alone.nfe == int(together.nfe_rows[i])
