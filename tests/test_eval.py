"""Evaluation: SamplersLM held to samplers themselves and to exact likelihoods, and `samplers eval` from end to end."""

import itertools
import json
import math
import sys
from pathlib import Path

import pytest
import torch

import samplers
from samplers.errors import OptionError, UnknownNameError
from samplers.models import zoo

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.api.instance import Instance  # noqa: E402
from lm_eval.api.registry import get_model  # noqa: E402

from samplers.evaluation import EvalRequest, SamplersLM, plan, run  # noqa: E402
from samplers.evaluation.lm import REPEAT, _windows  # noqa: E402
from samplers.evaluation.tasks import load_tasks  # noqa: E402

CONTEXTS = ["The file is", "If the object is not", "Return", "The module is a part of the standard", "A list of"]


class Letters:
    """One token per letter: a to e are 0 to 4, the mask is 5."""

    vocab_size, mask_id, eos_ids = 5, 5, ()

    def encode(self, text, *, begin=True):
        return torch.tensor(["abcde".index(c) for c in text if c in "abcde"], dtype=torch.int64)

    def decode(self, ids, *, mask="", eos=""):
        return "".join("abcde"[int(i)] if 0 <= i < 5 else mask for i in ids)


def joint(n=4):
    """Probabilities of all texts of n of five letters, and a denoiser whose answers are their exact conditionals."""
    generator = torch.Generator().manual_seed(3)
    p = torch.rand((5,) * n, generator=generator, dtype=torch.float64) ** 3
    p /= p.sum()

    def fn(x):
        out = torch.empty(*x.shape, 5, dtype=torch.float64)
        for i, row in enumerate(x.tolist()):
            given = p[tuple(slice(None) if v == 5 else slice(v, v + 1) for v in row)]
            for j, v in enumerate(row):
                one = given.sum([k for k in range(n) if k != j])
                out[i, j] = one.expand(5) if v != 5 else one
        return out.log().float()

    denoiser = samplers.TokenDenoiser.wrap(fn, vocab_size=5, mask_id=5, max_length=n, name="joint")
    denoiser.tokenizer = Letters()
    return p, denoiser


def asked(kind, arguments, repeats=1):
    return [
        Instance(kind, {}, args, 0, metadata=("t", i, repeats))
        for i, args in enumerate(arguments)
        for _ in range(repeats)
    ]


@pytest.fixture(scope="module")
def text():
    return zoo.load("text-mdm")


def test_answers_are_those_of_sample_whatever_the_batch(text):
    """Row i is document i: as if each were alone, in any batch; the answer ends before the first stop string."""
    kwargs = {"until": ["\n", "."], "max_gen_toks": 12, "do_sample": True, "temperature": 0.9, "top_p": 0.95}
    requests = asked("generate_until", [(c, kwargs) for c in CONTEXTS])
    alone = []
    for i, context in enumerate(CONTEXTS):
        made = samplers.sample(
            text, "low_confidence", prompt=[text.encode(context).tolist()], gen_length=12, steps=6, temperature=0.9,
            top_p=0.95, seed=4, first_row=i, stop=["\n", ".", text.eos_id],
        )  # fmt: skip
        words = text.decode(made.generated[0])
        alone.append(words[: min(at for at in (words.find("\n"), words.find("."), len(words)) if at >= 0)])
    assert len(set(alone)) == 5
    assert not any(stop in words for words in alone for stop in "\n.")
    for batch in (1, 3):
        lm = SamplersLM(text, "low_confidence", steps=6, seed=4, batch_size=batch)
        assert lm.generate_until(requests, disable_tqdm=True) == alone
        assert lm.cost.rows == 5
        assert lm.cost.passes == lm.cost.row_evals <= 5 * 6  # no guidance: a row costs one evaluation per pass
        assert lm.cost.tokens <= 5 * 12
    greedy = asked("generate_until", [(c, {"until": "\n", "max_gen_toks": 12, "do_sample": False}) for c in CONTEXTS])
    cold = SamplersLM(text, "low_confidence", steps=6, seed=1).generate_until(greedy, disable_tqdm=True)
    assert (
        cold == SamplersLM(text, "low_confidence", steps=6, seed=2).generate_until(greedy, disable_tqdm=True) != alone
    )
    # The class goes before the task; the repeats of a document are rows of their own.
    warm = SamplersLM(text, "low_confidence", steps=6, seed=4, temperature=0.9, top_p=0.95, gen_length=12)
    again = warm.generate_until(asked("generate_until", [(CONTEXTS[0], {"until": ["\n", "."]})], 3), disable_tqdm=True)
    assert again[0] == alone[0]
    assert len(set(again)) == 3
    with pytest.warns(UserWarning, match="asks for repetition_penalty=2"):
        warm.generate_until(asked("generate_until", [("Return", {"repetition_penalty": 2})]), disable_tqdm=True)


def test_prompts_that_are_too_long_lose_their_beginning(text):
    long = " ".join(["The file is"] * 80)
    lm = SamplersLM(text, "low_confidence", steps=2)
    kwargs = {"until": [], "max_gen_toks": 8, "do_sample": False}
    with pytest.warns(UserWarning, match="lose their beginning: 'text-mdm' takes 160"):
        made = lm.generate_until(asked("generate_until", [(long, kwargs)]), disable_tqdm=True)
    assert lm.cost.cut == 1
    kept = samplers.sample(
        text, "low_confidence", prompt=[text.encode(long)[-152:].tolist()], gen_length=8, steps=2, temperature=0.0
    )
    assert made == [text.decode(kept.generated[0])]
    with pytest.raises(OptionError, match=r"160 positions are asked for.*takes 160 in all"):
        lm.generate_until(asked("generate_until", [("Return", {"max_gen_toks": 160})]), disable_tqdm=True)


def test_likelihoods_of_a_masked_model_are_those_of_its_joint_distribution():
    """On exact conditionals the bound is log p itself, up to a Monte Carlo error that is known."""
    p, denoiser = joint()
    lm = SamplersLM(denoiser, mc=256, seed=7, check_greedy=True)
    texts = [("ab", "cd"), ("", "abcd"), ("abc", "e"), ("a ", "bde")]
    true = [p[0, 1, 2, 3] / p[0, 1].sum(), p[0, 1, 2, 3], p[0, 1, 2, 4] / p[0, 1, 2].sum(), p[0, 1, 3, 4] / p[0].sum()]
    found = lm.loglikelihood(asked("loglikelihood", texts), disable_tqdm=True)
    kept = lm.likelihoods
    for (value, _), right, stderr in zip(found, true, kept.stderr):
        assert abs(value - math.log(right)) < 4 * stderr + 1e-5
    assert kept.stderr[2] < 1e-6  # one token: nothing is left to chance
    assert 0 < kept.stderr[1] < 0.5
    assert kept.tokens == 2 + 4 + 1 + 3
    assert lm.get_model_info()["likelihood"]["requests"] == 4
    rolling = lm.loglikelihood_rolling(asked("loglikelihood_rolling", [("abcd",)]), disable_tqdm=True)
    assert abs(rolling[0] - math.log(true[1])) < 4 * kept.stderr[1]
    # Batches and order change nothing.
    other = SamplersLM(denoiser, mc=256, seed=7, nll_batch=3)
    assert [v for v, _ in other.loglikelihood(asked("loglikelihood", texts), disable_tqdm=True)] == [
        v for v, _ in found
    ]
    # is_greedy: after "ab" the surest position first, by the conditionals themselves.
    x = [0, 1, 5, 5]
    for _ in range(2):
        given = p[0, 1]
        options = [(float(given.sum(1).max() / given.sum()), 2), (float(given.sum(0).max() / given.sum()), 3)]
        if x[2] != 5 or x[3] != 5:
            j = 2 if x[2] == 5 else 3
            x[j] = int((given[:, x[3]] if j == 2 else given[x[2]]).argmax())
        else:
            j = max(options)[1]
            x[j] = int((given.sum(1) if j == 2 else given.sum(0)).argmax())
    best = "".join("abcde"[i] for i in x[2:])
    for a, b in itertools.product("abcde", repeat=2):
        ((_, same),) = lm.loglikelihood(asked("loglikelihood", [("ab", a + b)]), disable_tqdm=True)
        assert same == (a + b == best)
        if a == "c":
            break
    assert SamplersLM(denoiser, mc=16).loglikelihood(asked("loglikelihood", [("ab", best)]), True)[0][1] is False


def test_likelihoods_of_a_model_that_predicts_the_next_token_are_exact():
    """One pass gives the chain rule: held to a plain loop, and is_greedy to the autoregressive sampler."""
    denoiser = zoo.load("text-refusion")
    lm = SamplersLM(denoiser)
    pairs = [("Return True if the object is", " not None"), ("The file", " is closed."), ("", "Return")]
    found = lm.loglikelihood(asked("loglikelihood", pairs), disable_tqdm=True)
    assert lm.likelihoods.nfe == 2  # all three texts at once, and the first token of the one without a context
    assert lm.likelihoods.stderr == [0.0] * 3
    for (context, rest), (value, greedy) in zip(pairs, found):
        ids, n = denoiser.encode(context + rest), len(denoiser.encode(context))
        total, same = 0.0, True
        for j in range(n, len(ids)):
            seen = ids[:j] if j else torch.tensor([denoiser.mask_id])
            logits = denoiser.predict(seen[None])[0, -1].double()
            if denoiser.mask_id < len(logits):
                logits[denoiser.mask_id] = -math.inf
            total += float(logits.log_softmax(0)[ids[j]])
            same &= int(logits.argmax()) == int(ids[j])
        assert abs(value - total) < 1e-4
        assert greedy == same
    made = samplers.sample(
        denoiser, "autoregressive", prompt=[denoiser.encode("Return True if").tolist()], gen_length=5, temperature=0.0
    )
    words = denoiser.decode(made.generated[0])
    ((_, greedy), (_, other)) = lm.loglikelihood(
        asked("loglikelihood", [("Return True if", words), ("Return True if", words[:-1] + "q")]), disable_tqdm=True
    )
    assert greedy
    assert not other
    # A blank at the context's end belongs to the first word after it, as the tokens have it.
    assert lm._pair("The file ", "is") == lm._pair("The file", " is")
    assert lm._pair("The file", " is") == (denoiser.encode("The file is").tolist(), len(denoiser.encode("The file")))
    with pytest.raises(OptionError, match="needs a model that predicts the next token"):
        SamplersLM("text-mdm", likelihood="next")


def test_windows_score_each_token_once():
    for n, most in itertools.product(range(12), (2, 3, 5, 20)):
        parts = list(_windows(n, most))
        assert [i for _, first, end in parts for i in range(first, end)] == list(range(n))
        assert all(end - begin <= most and begin <= first < end for begin, first, end in parts)
        assert all(first > begin for begin, first, _ in parts[1:])  # something stands before each but the first
        if n > most:
            assert parts[-1][2] - parts[-1][0] == most  # the last sees as much as the model takes


def test_chat_templates(tmp_path):
    from test_text import tokenizer_folder

    from samplers.models.hf_tokenizer import tokenizer_of

    _, denoiser = joint()
    with pytest.raises(OptionError, match="chat template"):
        SamplersLM(zoo.load("text-mdm")).apply_chat_template([{"role": "user", "content": "x"}])
    denoiser.tokenizer = tokenizer_of(tokenizer_folder(tmp_path / "tok"))
    lm = SamplersLM(denoiser)
    turns = [{"role": "user", "content": "what did the cat do?"}]
    words = lm.apply_chat_template(turns)
    assert words == "<|user|>what did the cat do?\n<|assistant|>"
    assert lm._encode(words) == denoiser.tokenizer.chat(turns).tolist()  # nothing is put before what a template writes
    assert lm._encode("the cat")[0] == 0  # and what begins a text before any other
    assert "add_generation_prompt" in lm.chat_template(True)
    assert lm.chat_template(False) == ""
    assert lm.tokenizer_name == str(tmp_path / "tok")


def test_bad_input(text, monkeypatch):
    SamplersLM(text, device="cuda:0")  # what lm-eval asks for where there is none
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    plain = samplers.TokenDenoiser.wrap(lambda x: torch.zeros(*x.shape, 4), vocab_size=4, mask_id=4, name="plain")
    for wrong, says in (
        (lambda: SamplersLM(plain), "'plain' has no tokenizer"),
        (lambda: SamplersLM("digits-gauss"), "a TokenDenoiser with a tokenizer is needed"),
        (lambda: SamplersLM(text, "low_confidence", stpes=4), "no option 'stpes': did you mean 'steps'"),
        (lambda: SamplersLM(text, device="cuda"), "the model is on cpu"),
        (lambda: SamplersLM(text, likelihood="exact"), "auto, bound or next"),
        (lambda: SamplersLM(text).generate_until(asked("generate_until", [("a", {})]), True), "say by which sampler"),
        (lambda: plan(EvalRequest("text-mdm", ("zoo_finish",))), "say by which samplers"),
        (
            lambda: plan(EvalRequest("text-mdm", ("zoo_finish",), ("euler",))),
            "nothing to run: no sampler of euler is of",
        ),
        (lambda: load_tasks(["zoo_finish"], ["/no/such"]), "no such folder"),
        (lambda: load_tasks(["no/such.yaml"]), "no such file"),
    ):
        with pytest.raises(OptionError, match=says):
            wrong()
    uniform = samplers.TokenDenoiser.wrap(lambda x: torch.zeros(*x.shape, 5), vocab_size=5, name="uniform")
    uniform.tokenizer = Letters()
    with pytest.raises(OptionError, match="a model of uniform noise has none here"):
        SamplersLM(uniform).loglikelihood(asked("loglikelihood", [("a", "b")]), disable_tqdm=True)
    assert get_model("samplers") is SamplersLM
    made = SamplersLM.create_from_arg_string(
        "denoiser=text-mdm,sampler=entropy_bound,bound=0.2,steps=8", {"batch_size": 4, "device": None}
    )
    assert (made.sampler.bound, made.settings, made.batch_size, made.rank, made.world_size) == (
        0.2,
        {"steps": 8},
        4,
        0,
        1,
    )


# ---------------------------------------------------------------------------------------------- the command

EVAL = ["eval", "--model", "text-mdm", "--tasks", "zoo_finish,zoo_choose", "--samplers", "low_confidence"]
EVAL += ["--nfe", "2,4", "--limit", "4", "--mc", "16", "--quiet"]


def records(folder):
    return [json.loads(line) for line in (Path(folder) / "cells.jsonl").read_text().splitlines()]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_eval_from_end_to_end(tmp_path, cli, text):
    """One command, one table; what is there is not run again; shards merge to the same."""
    code, out, err = cli(*[a for a in EVAL if a != "--quiet"], "--out", tmp_path / "a")
    assert code == 0, err
    assert "tokens per pass" in out
    assert "exact_match, first-word" in out
    cells = records(tmp_path / "a")
    assert [(c["sampler"], c["knob"], c["value"]) for c in cells] == [
        ("low_confidence", "steps", 2), ("low_confidence", "steps", 4), ("nll", "mc", 16)
    ]  # fmt: skip
    for cell in cells:
        answers = [
            json.loads(a) for a in (tmp_path / "a" / "answers" / f"{cell['key']}.jsonl").read_text().splitlines()
        ]
        estimate = cell["score"]["estimates"][cell["score"]["primary"]]
        metric = answers[0]["metrics"][0]
        assert estimate["value"] == pytest.approx(sum(a[metric] for a in answers) / 4)  # the answers themselves
        assert estimate["low"] <= estimate["value"] <= estimate["high"]
        assert {"stderr", "n"} <= set(estimate) and estimate["n"] == cell["rows"] == 4
        assert {"library", "machine", "code", "version", "time"} <= set(cell)
    # What is recorded is what sample() gives, with costs that are counted alike.
    phrases = [a["doc"]["context"] for a in answers]
    rows = [text.encode(c).tolist() for c in phrases]
    order = sorted(range(4), key=lambda i: len(rows[i]))
    made = samplers.sample(
        text, "low_confidence", prompt=[rows[i] for i in order], gen_length=16, steps=4, temperature=0.0,
        stop=["\n", ".", *text.tokenizer.eos_ids],
    )  # fmt: skip
    second = cells[1]
    assert second["nfe"]["per_row"] == float(made.nfe_rows.double().mean())
    assert second["nfe"]["token_evals"] == made.token_evals
    assert second["tokens"]["generated"] == sum(map(len, made.generated))
    assert second["tokens"]["per_pass"] == second["tokens"]["generated"] / int(made.nfe_rows.sum())
    said = [
        json.loads(a)["resps"][0][0]
        for a in (tmp_path / "a/answers" / f"{second['key']}.jsonl").read_text().splitlines()
    ]
    assert [said[i] for i in order] == made.texts
    assert cells[2]["likelihood"]["requests"] == 16
    assert cells[2]["likelihood"]["stderr"] > 0
    # A stopped run goes on: a cell that is gone runs again, and only that one.
    lines = (tmp_path / "a" / "cells.jsonl").read_text().splitlines(keepends=True)
    (tmp_path / "a" / "cells.jsonl").write_text("".join(lines[:2]))
    code, out, _ = cli(*EVAL, "--out", tmp_path / "a")
    assert code == 0
    assert "1 cell run" in out
    assert "2 were there already" in out
    for shard in ("0/2", "1/2"):
        assert cli(*EVAL, "--out", tmp_path / "b", "--shard", shard)[0] == 0
    assert cli("merge", tmp_path / "b", "--out", tmp_path / "b")[0] == 0
    drop = ("seconds", "time", "machine")
    keep = [[{k: v for k, v in c.items() if k not in drop} for c in records(tmp_path / d)] for d in "ab"]
    assert keep[0] == keep[1]
    assert {p.name for p in (tmp_path / "b" / "answers").iterdir()} == {f"{c['key']}.jsonl" for c in cells}


def test_tasks_of_your_own(tmp_path, cli, monkeypatch):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data.jsonl").write_text('{"q": "Return the", "a": "value"}\n{"q": "The file", "a": "is"}\n')
    config = f"""
task: mine
dataset_path: json
dataset_kwargs: {{data_files: {{test: {tmp_path / "mine" / "data.jsonl"}}}}}
output_type: generate_until
test_split: test
doc_to_text: "{{{{q}}}}"
doc_to_target: "{{{{a}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 4, do_sample: false}}
metric_list: [{{metric: exact_match}}]
"""
    (tmp_path / "mine" / "mine.yaml").write_text(config)
    for given in ([str(tmp_path / "mine")], [str(tmp_path / "mine" / "mine.yaml")]):
        assert [u.name for u in load_tasks(given)] == ["mine"]
    (unit,) = load_tasks(["mine"], [tmp_path / "mine"])
    before = unit.fingerprint(None)
    assert unit.documents(None) == 2 and unit.generates
    assert unit.fingerprint(1) != before
    request = EvalRequest("text-mdm", (str(tmp_path / "mine"),), samplers=("radd",), nfe=(2,), seeds=2)
    outcome = run(request, tmp_path / "out")
    assert (outcome.planned, len(outcome.failed)) == (2, 0)
    (tmp_path / "mine" / "mine.yaml").write_text(config.replace("max_gen_toks: 4", "max_gen_toks: 5"))
    assert run(request, tmp_path / "out").reused == 0  # another task, though its name is the same
    home = sys.modules["lm_eval.tasks"]
    every = home.TaskManager  # to read all of lm-eval's own takes some seconds
    monkeypatch.setattr(home, "TaskManager", lambda **kw: every(**kw | {"include_defaults": False}))
    with pytest.raises(UnknownNameError, match="there is no task 'zoo_finnish': did you mean 'zoo_finish'"):
        load_tasks(["zoo_finnish"])
    code, _, err = cli("eval", "--model", "text-mdm", "--tasks", "zoo_choose", "--out", "/dev/null/x")
    assert code == 2
    assert "cannot be written" in err


def test_a_group_has_a_score_of_its_own_and_a_sampler_without_steps_runs_once(tmp_path, cli):
    box = Path(samplers.__file__).parent / "evaluation" / "data"
    for name in ("documents.py", "phrases.jsonl"):
        (tmp_path / name).write_bytes((box / name).read_bytes())
    for part in "ab":
        text = (box / "zoo_choose.yaml").read_text().replace("task: zoo_choose", f"task: part_{part}")
        (tmp_path / f"{part}.yaml").write_text(text)
    (tmp_path / "group.yaml").write_text(
        "group: both\ntask: [part_a, part_b]\naggregate_metric_list: [{metric: acc, weight_by_size: true}]\n"
    )
    command = ("eval", "--model", "text-refusion", "--tasks", "both", "zoo_finish", "--include-path", tmp_path)
    code, _, err = cli(*command, "--samplers", "autoregressive", "--limit", 5, "--out", tmp_path / "out")
    assert code == 0, err
    scored, written = records(tmp_path / "out")
    assert (scored["sampler"], scored["rows"], scored["likelihood"]["method"]) == ("nll", 10, "next")
    acc = scored["score"]["estimates"]["acc"]
    answers = [json.loads(a) for a in (tmp_path / "out/answers" / f"{scored['key']}.jsonl").read_text().splitlines()]
    assert {a["task"] for a in answers} == {"part_a", "part_b"}
    assert acc["value"] == pytest.approx(sum(a["acc"] for a in answers) / 10)
    assert 0 <= acc["low"] <= acc["value"] <= acc["high"] <= 1
    assert (written["knob"], written["value"], written["settings"]["steps"]) == ("steps", None, None)
    assert written["tokens"]["per_pass"] == 1.0  # one token per pass is what autoregression is


def test_without_lm_eval_it_says_what_to_install(monkeypatch, cli):
    for name in [n for n in sys.modules if n.split(".")[0] == "lm_eval" or n.startswith("samplers.evaluation")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, _, err = cli("eval", "--model", "text-mdm", "--tasks", "zoo_choose")
    assert code == 2
    assert 'pip install "sampler-zoo[eval]"' in err


def test_repeats_are_rows_far_apart():
    assert REPEAT == 2**32  # in the other half of the row's 64 bits: documents and repeats never meet
