"""The trained models in the box, and the script that makes them."""

import importlib.util
import json
import math
import random
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console

import samplers
from samplers import cli, problems
from samplers.errors import UnknownNameError
from samplers.models import Tokenizer, zoo

pytestmark = pytest.mark.usefixtures("one_thread")
ROOT = Path(__file__).parents[2]
NAMES = ["digits-gauss", "digits-mdm", "text-mdm", "text-refusion"]


@pytest.fixture(scope="module")
def making():
    """bench/train.py as a module."""
    spec = importlib.util.spec_from_file_location("making_models", ROOT / "bench" / "train.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["making_models"] = module  # dataclasses look there
    spec.loader.exec_module(module)
    yield module
    del sys.modules["making_models"]


# ---------------------------------------------------------------------------------------------- words


WORDS = "the cat sat on the mat. the cat ate the rat! a def f(x): return x\nthe end of the text. " * 5


def test_tokens_say_what_the_text_says():
    tokenizer = Tokenizer.train(WORDS, 130)
    assert tokenizer.vocab_size == 130
    assert (tokenizer.eos_id, tokenizer.mask_id) == (129, 130)
    ids = tokenizer.encode(WORDS)
    assert tokenizer.decode(ids) == WORDS
    assert len(ids) < 0.5 * len(WORDS)
    assert tokenizer.encode(" the").tolist() == [tokenizer.texts.index(" the")]
    rng = random.Random(0)
    for _ in range(50):  # any printable text, seen or not
        text = "".join(rng.choice("\n abcxyzTHE.,!()01~") for _ in range(rng.randint(0, 40)))
        assert tokenizer.decode(tokenizer.encode(text)) == text
    assert tokenizer.decode(tokenizer.encode("naïve “quotes”…")) == 'nave "quotes".'
    shown = torch.tensor([tokenizer.encode("a")[0], 130, 129, -1])
    assert tokenizer.decode(shown, mask="·", eos="¶") == "a·¶"
    assert tokenizer.decode(shown) == "a"


def test_merges_by_hand(tmp_path):
    """'ab' three times, then 'ab' + 'c' twice; equal counts by lower ids."""
    tokenizer = Tokenizer.train("abc abc\nab", 99)
    first, second = tokenizer.merges
    assert [tokenizer.texts[i] for i in first] == ["a", "b"]
    assert [tokenizer.texts[i] for i in second] == ["ab", "c"]
    tokenizer.save(tmp_path / "vocab.json")
    again = Tokenizer.load(tmp_path / "vocab.json")
    assert again.texts == tokenizer.texts
    assert torch.equal(again.encode("abcab"), tokenizer.encode("abcab"))
    with pytest.raises(samplers.OptionError, match="needs more"):
        Tokenizer.train("ab", 200)


def test_ngrams(making):
    """Every context's probabilities sum to 1; a bigram by hand; order 1 is the share of each id."""
    rng = random.Random(1)
    ids = [rng.choice([0, 0, 1, 2]) for _ in range(300)]
    for n in (1, 2, 3):
        model = making.Ngram(ids, n, 4)
        for before in ([], [0], [1, 2], [3, 3], [0, 2, 1]):
            total = sum(math.exp(-model.nll([*before, c])[-1]) for c in range(4))
            assert total == pytest.approx(1, abs=1e-9)
    # 0 1 0 1 0 2: bigrams 01 x2, 10 x2, 02 x1. Kneser-Ney's unigrams count left neighbours: 0:1, 1:1, 2:1 of 3.
    model = making.Ngram([0, 1, 0, 1, 0, 2], 2, 3)
    discount = 1 / (1 + 2 * 2)  # one bigram seen once, two seen twice
    expected = (2 - discount) / 3 + discount * 2 / 3 * 1 / 3
    assert model.nll([0, 1])[1] == pytest.approx(-math.log(expected), rel=1e-9)


# ---------------------------------------------------------------------------------------------- objectives


class Exact(torch.nn.Module):
    """A network that knows a joint law over L tokens exactly: its log-conditionals are its hidden rows."""

    def __init__(self, law):
        super().__init__()
        self.law, self.mask_id = law, law.shape[0]  # (V,) * L
        self.head = SimpleNamespace(logits=lambda hidden: hidden)

    def forward(self, ids, rows):
        out = []
        for b, i in rows.nonzero().tolist():
            p = self.law
            for axis, token in reversed(list(enumerate(ids[b].tolist()))):
                if axis == i:
                    continue
                p = p.sum(axis) if token == self.mask_id else p.select(axis, token)
            out.append((p / p.sum()).log())
        return torch.stack(out)


def test_the_bound_is_exact_for_exact_conditionals(making):
    """With exact conditionals any order of unmasking has -log p(x) as its cost, so both estimates have it as their mean."""
    g = torch.Generator().manual_seed(0)
    law = torch.rand(3, 3, 3, generator=g) ** 3
    law = law / law.sum()
    net, x = Exact(law), torch.tensor([[0, 1, 2]])
    truth = -float(law[0, 1, 2].log())
    found = making.masked_bound(net, x.expand(40, 3).contiguous(), 3, draws=30)
    assert abs(float(found.mean()) - truth) < 4 * float(found.std()) / math.sqrt(40)
    assert float(found.std()) < 0.3 * truth
    losses = torch.tensor([3 * float(making.lambda_dce(net, x.expand(8, 3), 3, g)) for _ in range(150)])
    assert abs(float(losses.mean()) - truth) < 4 * float(losses.std()) / math.sqrt(150)


def test_slots_are_fed_as_refusion_prescribes(making):
    g = torch.Generator().manual_seed(3)
    x = torch.arange(6 * 160).view(6, 160)  # every token its own number: row b, position p is 160 b + p
    mask = 10**6
    sizes, shuffled = set(), False
    for _ in range(6):
        s = making.Slots.of(x, mask, g)
        for b in range(6):
            ids, place, target = s.ids[b], s.positions[b], s.target[b]
            assert sorted(place.tolist()) == list(range(160))
            masked = ids == mask
            assert torch.equal(ids[~masked], x[b, place[~masked]]), "a clean token is its position's"
            assert torch.equal(target[masked], x[b, place[masked]]), "a mask is asked for its own token"
            if masked.any():
                first, last = masked.nonzero().flatten()[[0, -1]].tolist()
                assert masked[first : last + 1].all(), "masks are together, behind the clean ones"
                assert (place[first + 1 : last + 1] > place[first:last]).all(), "and in order"
                assert (target[last + 1 :] == -100).all()
            clean = ~masked & (target >= 0)
            assert torch.equal(target[clean], ids[1:][clean[:-1]]), "a clean token is asked for what is fed next"
            assert torch.equal(target[clean], x[b, place[clean] + 1]), "which is next in the text too"
            # The prompt, then runs of one size: a slot's last token is asked for nothing.
            ends = (target[: int(masked.nonzero()[0]) if masked.any() else 160] == -100).nonzero().flatten()
            gaps = set(torch.diff(ends).tolist())
            if len(ends) > 2 and not masked.any():
                continue  # the rest of the row has no target either
            if len(gaps) == 1:
                sizes |= gaps
                shuffled |= bool((torch.diff(place[ends]) < 0).any())
            weights = s.weight[b]
            assert float(weights[clean].sum()) in (pytest.approx(1 / 6), 0.0)
    assert sizes == {4, 8, 16}
    assert shuffled


# ---------------------------------------------------------------------------------------------- training


@pytest.fixture
def tiny(making, monkeypatch):
    monkeypatch.setattr(making.DigitsGauss, "batch", 8)
    monkeypatch.setattr(making.DigitsGauss, "network", lambda self, seed: making.MLP(64, 16, 1, seed=seed))

    def run(path, steps=8, minutes=0.0, **kw):
        args = SimpleNamespace(
            seed=1, steps=steps, minutes=minutes, checkpoint=str(path), fresh=False, float32=True, ema=0.9, every=3
        )
        return making.train(making.DigitsGauss(), SimpleNamespace(**{**vars(args), **kw}), Console(quiet=True))

    return run


def test_a_run_that_was_stopped_ends_as_one_that_was_not(tiny, tmp_path):
    whole, _ = tiny(tmp_path / "a.pt")
    stops = 0
    while (done := tiny(tmp_path / "b.pt", minutes=1e-9)) is None:
        stops += 1
    assert stops == 7
    for a, b in zip(whole.parameters(), done[0].parameters()):
        assert torch.equal(a, b)
    with pytest.raises(SystemExit, match="another run"):
        tiny(tmp_path / "b.pt", seed=2)
    with pytest.raises(SystemExit, match="too far"):
        tiny(tmp_path / "b.pt", steps=20)
    other, _ = tiny(tmp_path / "c.pt", seed=2)
    assert not torch.equal(next(other.parameters()), next(whole.parameters()))


def test_rates(making):
    """Nothing before the last quarter depends on how many steps there will be; the end is at 0."""
    assert [making.rate_at(s, 4000) for s in range(2900)] == [making.rate_at(s, 8000) for s in range(2900)]
    assert max(making.rate_at(s, 4000) for s in range(4000)) == 1 and making.rate_at(5999, 20_000) == 0.5
    assert making.rate_at(3999, 4000) < 1e-3


# ---------------------------------------------------------------------------------------------- what is in the box


def test_they_are_there():
    assert zoo.list_models() == NAMES
    with pytest.raises(UnknownNameError, match="unknown model 'text-mmd': did you mean 'text-mdm'"):
        zoo.load("text-mmd")
    for name in NAMES:
        assert (zoo.FOLDER / name / "model.safetensors").stat().st_size <= 16e6
        facts = zoo.facts(name)
        assert facts["command"].startswith(
            f"python bench/train.py {name} --seed {facts['seed']} --steps {facts['steps']}"
        )
        assert facts["seconds"] <= 90 * 60
        assert zoo.load(name).name == name


@pytest.mark.parametrize("name", ["text-mdm", "text-refusion"])
def test_they_beat_the_trigram(name):
    """That over their own tokens, which is the better one, and so that of characters, too; as reported."""
    facts = zoo.facts(name)
    held = facts["held_out"]
    ngrams = facts["ngrams_nll_per_character"]
    assert held["nll_per_character"] < ngrams["token 3-gram"] < ngrams["character 3-gram"]
    assert held["nll_per_character"] + 3 * held["standard_error"] < ngrams["character 5-gram"]


@pytest.fixture(scope="module")
def held_out(making):
    """Windows of the held-out text, if this Python is the one whose text it is."""
    train, held = making.text()
    digest = making.digest(train, held)
    if digest != zoo.facts("text-mdm")["text_sha256"]:
        pytest.skip("this Python carries another text")
    tokenizer = Tokenizer.load(zoo.FOLDER / "text-mdm" / "vocab.json")
    ids = torch.cat([torch.cat([tokenizer.encode(doc), torch.tensor([tokenizer.eos_id])]) for doc in held])
    windows = ids[: len(ids) // making.WINDOW * making.WINDOW].view(-1, making.WINDOW)[::12]
    characters = torch.tensor([len(tokenizer.decode(w, eos="|")) for w in windows]).double()
    return windows, characters


def test_the_reported_bound_is_what_it_scores(making, held_out):
    windows, characters = held_out
    model = zoo.load("text-mdm").model
    found = making.per_character(making.masked_bound(model, windows, 1024, draws=4, seed=5), characters)
    told = zoo.facts("text-mdm")["held_out"]
    assert abs(found["nll_per_character"] - told["nll_per_character"]) < 3 * found["standard_error"]


def test_the_reported_likelihood_is_what_it_scores(making, held_out):
    """text-refusion, slots decoded beside a cache, is what no cache gives: every slot's first token by a mask behind all
    that is finished, in a forward of its own."""
    windows, characters = held_out
    windows, characters = windows[:8], characters[:8]
    denoiser = zoo.load("text-refusion")
    model, size = denoiser.model, 8
    nll = making.slot_nll(model, windows, denoiser.mask_id, size)

    log_p = denoiser.head.logits(model(windows)).double().log_softmax(-1)
    costs = torch.nn.functional.pad(-log_p[:, :-1].gather(-1, windows[:, 1:, None])[..., 0], (1, 0))
    for at in range(0, making.WINDOW, size):
        asked = torch.cat([windows[:, :at], torch.full((len(windows), 1), denoiser.mask_id)], 1)
        first = denoiser.head.logits(model(asked)[:, -1]).double().log_softmax(-1)
        costs[:, at] = -first.gather(-1, windows[:, at, None])[:, 0]
    torch.testing.assert_close(nll, costs.sum(1), rtol=1e-5, atol=1e-3)
    found = making.per_character(nll, characters)
    told = zoo.facts("text-refusion")["held_out"]
    assert abs(found["nll_per_character"] - told["nll_per_character"]) < 4 * found["standard_error"]


def test_text_appears(capsys):
    denoiser = zoo.load("text-mdm")
    prompt = denoiser.encode("Return a new ")
    out = samplers.sample(denoiser, "low_confidence", prompt=prompt, gen_length=24, steps=12, batch=2, seed=1)
    text = denoiser.decode(out.x[0])
    assert text.startswith("Return a new ")
    assert sum(c.isalpha() or c.isspace() for c in text) > 0.6 * len(text)
    code = cli.main(
        ["sample", "--denoiser", "text-mdm", "--sampler", "entropy_bound", "--prompt", "Return the", "--gen-length", "16",
         "--batch", "1", "--frames", "--fps", "0"]
    )  # fmt: skip
    shown = capsys.readouterr().out
    assert code == 0
    assert "Return the" in shown and "·" in shown


def test_causal_text_is_causal():
    """What comes later in the cache's order changes nothing; positions do."""
    denoiser = zoo.load("text-refusion")
    assert (denoiser.attention, denoiser.caches, denoiser.predicts_next) == ("causal", ("prefix", "block"), True)
    ids = denoiser.encode("If the argument is omitted or None, the")[None]
    out = denoiser.hidden(ids)
    changed = ids.clone()
    changed[0, -1] = 5
    torch.testing.assert_close(denoiser.hidden(changed)[:-1], out[:-1])


def test_digits_look_like_digits():
    """Closer to the exact law than pixels drawn on their own, by far."""
    problem = problems.create("digits")
    rows = 300
    out = samplers.sample(zoo.load("digits-mdm"), "random_order", batch=rows, steps=32, seed=0, temperature=1.0)
    score = problem.score(out.x, "masked")["mmd"].value
    share = torch.nn.functional.one_hot(problem.images, 17).double().mean(0)
    alone = torch.multinomial(share, rows, replacement=True, generator=torch.Generator().manual_seed(0)).T.contiguous()
    assert score < 0.3 * problem.score(alone, "masked")["mmd"].value

    reals = samplers.sample(zoo.load("digits-gauss"), "dpmpp_2m", batch=rows, steps=16, seed=0).x
    mean, noise = problem.to_reals(problem.images).mean(0), torch.randn(rows, 8, 8, dtype=torch.float64)
    blurred = (mean + noise * problem.to_reals(problem.images).std(0)).float()
    assert problem.score(reals, "gaussian")["mmd"].value < 0.3 * problem.score(blurred, "gaussian")["mmd"].value
    for name, x in (("digits-mdm", out.x), ("digits-gauss", reals)):
        assert len(zoo.load(name).render(x[0]).splitlines()) == 8


def test_facts_are_json():
    for name in NAMES:
        about = zoo.facts(name)
        assert json.loads(json.dumps(about)) == about
        assert about["held_out"]["standard_error"] > 0
