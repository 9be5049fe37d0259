"""The command line, called as a function; and once as a process, for what only a process shows."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import samplers
from samplers import PAD, driver, registry, watch
from samplers.watch import braille

DENOISER = """
import torch, samplers
def make():
    return samplers.TokenDenoiser.wrap(lambda ids: torch.zeros(*ids.shape, 6), vocab_size=6, mask_id=5, length=8)
denoiser = make()
nothing = 3
"""


def flat(text):
    return " ".join(text.split())


def test_help_and_version(cli):
    code, out, _ = cli()
    assert code == 0
    assert "bench" in out
    assert "plugins" in out
    code, out, _ = cli("--version")
    assert code == 0
    assert out == f"samplers {samplers.__version__}\n"


def test_list(cli):
    code, out, _ = cli("list")
    assert code == 0
    assert "entropy_bound" in out
    assert "the longest prefix of certain positions" in out
    code, out, _ = cli("list", "--check")
    assert code == 0
    assert "by bound" in out
    assert "biased" in out
    code, out, _ = cli("list", "masked/r*", "--json")
    rows = json.loads(out)["samplers"]
    assert code == 0
    assert {r["name"] for r in rows} >= {"radd", "random_order"}
    assert {r["family"] for r in rows} == {"masked"}
    code, out, _ = cli("list", "--family", "gaussian", "--json")
    assert {r["family"] for r in json.loads(out)["samplers"]} == {"gaussian"}
    code, _, err = cli("list", "zzz*")
    assert code == 2
    assert "no sampler matches" in err


def test_list_shows_what_is_broken(cli, site):
    site("sampler-crooked", "unused", "", {"crooked": "no_such_module:Crooked"}, version="0.3")
    assert "ModuleNotFoundError" not in cli("list")[1]
    code, out, _ = cli("list", "--check")
    assert code == 0
    assert "radd" in out
    assert "crooked (sampler-crooked 0.3)" in out
    assert "ModuleNotFoundError" in out
    code, _, err = cli("show", "crooked")
    assert code == 2
    assert "broken" in err


def test_show(cli):
    code, out, _ = cli("show", "threshold")
    assert code == 0
    assert "2505.22618" in out
    assert "> 0" in out
    assert "threshold.py:" in out
    assert "biased" in out
    about = json.loads(cli("show", "radd", "--json")[1])
    assert about["expected_nfe"]["64"] < 64
    assert about["options"][0]["name"] == "schedule"
    assert about["bias"] == "exact"
    for item in registry.entries():
        assert cli("show", item.qualified)[0] == 0


def test_every_error_is_one_line_and_exit_code_2(cli):
    for argv, words in (
        (("show", "entropy_bond"), "did you mean 'entropy_bound'"),
        (("sample", "--problem", "sudoku9", "--sampler", "radd"), "did you mean 'sudoku4'?"),
        (("sample", "--problem", "sudoku4", "--sampler", "rad"), "did you mean 'radd'"),
        (("sample", "--problem", "sudoku4", "--sampler", "ddim", "--family", "masked"), "family"),
        (("sample", "--problem", "sudoku4", "--sampler", "threshold", "-o", "threshold=-1"), "must be > 0"),
        (("sample", "--problem", "sudoku4", "--sampler", "threshold", "-o", "treshold=1"), "did you mean 'threshold'?"),
        (("sample", "--problem", "sudoku4", "--sampler", "threshold", "-o", "threshold"), "name=value"),
        (("sample", "--problem", "sudoku4", "--sampler", "radd", "--prompt", "one two"), "has the tokens 1 2 3 4"),
        (("sample", "--problem", "sudoku4", "--sampler", "radd", "--save", "/dev/null/x.pt"), "cannot be written"),
        (("sample", "--denoiser", "no_such_module:x", "--sampler", "radd"), "ModuleNotFoundError"),
        (("sample", "--denoiser", "nonsense", "--sampler", "radd"), "module:attribute"),
        (("bench",), "--problem"),
        (("bench", "--problem", "sudoku4", "--out", "/dev/null/x"), "cannot be written"),
        (("bench", "--report", "/no/such/folder"), "cannot be read"),
    ):
        code, out, err = cli(*argv)
        assert code == 2, argv
        assert out == "", argv
        assert err.startswith("samplers: error: "), (argv, err)
        assert err.count("\n") == 1, (argv, err)
        assert words in err


NUMBERS = {  # flag of `samplers sample` -> (what it refuses, what it says)
    "--steps": (("0", "-1", "a", "", "1.5", str(10**21), "nan", "9" * 5000), "a whole number from 1 to 1,000,000,000"),
    "--batch": (("0", "x"), "a whole number from 1"),
    "--gen-length": (("0", str(10**10)), "a whole number from 1"),
    "--block-length": (("0", "x"), "a whole number from 1"),
    "--show": (("0",), "a whole number from 1"),
    "--top-k": (("-1", "x"), "a whole number from 0"),
    "--seed": (("1.5", "x", str(2**64)), "a whole number of 64 bits"),
    "--temperature": (("-1", "nan", "inf", "1e308", "1e-40", "x"), "0, or a number from 1e-30 to 1e+30"),
    "--top-p": (("0", "1.1", "nan", "x"), "a number above 0 and up to 1"),
    "--fps": (("nan", "-1", "inf", "x"), "a finite number of 0 or more"),
    "--cfg-scale": (("nan", "-1", "inf"), "a finite number of 0 or more"),
    "--cfg-interval": (("", "0", "0,2", "1,0", "nan,1", "a,b", "0,0.5,1"), "two numbers LOW,HIGH"),
    "--prompt": (("", " "), "a text that is not empty"),
    "--stop": (("", " "), "a text that is not empty"),
    "--forbid": (("",), "a text that is not empty"),
    "--demote": (("",), "a text that is not empty"),
}


def test_every_wrong_number_is_refused_by_its_flag(cli):
    """One kind of sentence for all of them: what was given, and what would be right; no name of a function of ours."""
    base = ("sample", "--problem", "sudoku4", "--sampler", "radd")
    for flag, (values, says) in NUMBERS.items():
        for value in values:
            code, out, err = cli(*base, f"{flag}={value}")
            assert (code, out) == (2, ""), (flag, value)
            assert f"argument {flag}: {value!r} is not {says}" in err, (flag, value, err)
    for argv, says in (
        (("bench", "--problem", "sudoku4", "--nfe", "a"), "argument --nfe: 'a' is not a list of whole numbers"),
        (("bench", "--problem", "sudoku4", "--nfe", ""), "argument --nfe: '' is not a list of whole numbers"),
        (("bench", "--problem", "sudoku4", "--nfe", "4,0"), "argument --nfe: '4,0' is not a list"),
        (("bench", "--problem", ","), "argument --problem: ',' is not a name"),
        (("bench", "--problem", "sudoku4", "--temperature", "hot"), "argument --temperature: 'hot' is not 0, or"),
        (("tune", "beta_energy", "--problem", "sudoku4", "--steps", "x"), "argument --steps: 'x' is not a list"),
        (("tune", "beta_energy", "--problem", "sudoku4", "--refine", "-1"), "argument --refine: '-1' is not a whole"),
    ):
        code, _, err = cli(*argv)
        assert code == 2
        assert says in err
        assert "invalid _" not in err


def test_help_begins_with_a_noun_and_has_no_riddles():
    """Of every argument of every command."""
    import argparse

    from samplers.cli import _parser

    (commands,) = [a for a in _parser()._actions if isinstance(a, argparse._SubParsersAction)]
    known = "list show show-model cite sample generate chat bench tune eval merge new check plugins env"
    assert list(commands.choices) == known.split()
    for name, parser in commands.choices.items():
        for action in parser._actions:
            assert action.help, (name, action.dest)
            first = action.help.split()[0]
            assert first not in ("of", "a", "an", "the", "and", "only", "in", "at", "with", "how", "what"), (
                name,
                action.help,
            )
            words = set(action.help.replace(",", " ").replace(";", " ").split())
            assert not {"law", "laws", "forwards", "behind", "looks"} & words, (name, action.help)


def test_an_ordinary_sample_needs_no_argument(cli):
    code, out, _ = cli("sample")
    assert code == 0
    assert "entropy_bound: " in out
    assert "keyset to the keyset" not in out
    assert len(re.split(r"\n *\n", out.strip())) == 5, "an empty line after each of the four texts"
    told = json.loads(cli("sample", "--json")[1])
    assert (told["sampler"], told["settings"]["temperature"]) == ("entropy_bound", 0.7)
    assert len(told["x"]) == 4
    assert len(told["x"][0]) == 64
    assert json.loads(cli("sample", "--problem", "mixture", "--json")[1])["sampler"] == "dpmpp_2m"
    assert json.loads(cli("sample", "--problem", "sudoku4", "--json")[1])["sampler"] == "entropy_bound"
    uniform = json.loads(cli("sample", "--problem", "sudoku4", "--family", "uniform", "--json")[1])
    assert uniform["sampler"] == "d3pm_ancestral"
    sequence = json.loads(cli("sample", "--denoiser", "text-refusion", "--gen-length", 8, "--json")[1])
    assert sequence["sampler"] == "autoregressive"


def test_at_temperature_0_one_row_is_enough(cli):
    base = ("sample", "--problem", "sudoku4", "--sampler", "threshold", "--json")
    assert len(json.loads(cli(*base)[1])["x"]) == 4
    assert len(json.loads(cli(*base, "--temperature", 0)[1])["x"]) == 1
    assert len(json.loads(cli(*base, "--temperature", 0, "--batch", 3)[1])["x"]) == 3


@pytest.mark.parametrize("said", ["--sampler euler", "--sampler d3pm_ancestral", "--family gaussian"])
def test_without_a_problem_other_noise_than_masked_has_the_digits(cli, said):
    out = json.loads(cli("sample", *said.split(), "--steps", 2, "--json")[1])
    assert out["problem"] == "digits" and out["nfe"] == 2


def test_a_sampler_that_is_cold_by_habit_makes_one_row(cli, tmp_path, monkeypatch):
    (tmp_path / "cold_denoiser_of_tests.py").write_text(DENOISER)
    monkeypatch.chdir(tmp_path)
    for sampler, rows in (("threshold", 1), ("radd", 4)):
        told = cli("sample", "--denoiser", "cold_denoiser_of_tests:denoiser", "--sampler", sampler, "--json")[1]
        assert len(json.loads(told)["x"]) == rows


def test_text_that_is_too_long_is_a_sentence(cli):
    base = ("sample", "--denoiser", "text-mdm", "--sampler", "radd")
    says = "positions are too many; 'text-mdm' takes at most 160"
    for argv in (
        ("--gen-length", 161),
        ("--prompt", "return " * 200),
        ("--prompt", "return " * 60, "--gen-length", 120),
    ):
        code, out, err = cli(*base, *argv)
        assert (code, out) == (2, "")
        assert says in err
        assert err.count("\n") == 1


def test_stop_may_be_given_several_times(cli):
    base = ("sample", "--problem", "sudoku4", "--sampler", "random_order", "--batch", 8, "--block-length", 1, "--json")
    whole = json.loads(cli(*base)[1])["x"]
    for stops in (("2",), ("2", "0"), ("2 0",), ("1 2", "3", "0,1")):
        phrases = [[int(v) for v in s.replace(",", " ").split()] for s in stops]
        told = json.loads(cli(*base, *(a for s in stops for a in ("--stop", s)))[1])["x"]
        for row, given in zip(whole, told):
            ends = [i + len(p) for p in phrases for i in range(len(row)) if row[i : i + len(p)] == p]
            end = min(ends, default=len(row))
            assert given[:end] == row[:end]
            assert set(given[end:]) <= {PAD}
    assert any(set(row) & {PAD} for row in told)


def test_tokens_are_tokens_of_the_model(cli):
    base = ("sample", "--problem", "sudoku4", "--sampler", "radd")
    for flag in ("--prompt", "--stop", "--forbid", "--demote"):
        for value in ("4", "-1", str(10**30)):
            code, _, err = cli(*base, f"{flag}={value}")
            assert code == 2
            assert f"{flag} {value!r}: {value} is no token of" in err
            assert "they are 0 to 4 but the mask id 4" in err
    assert cli("sample", "--denoiser", "text-mdm", "--stop", "1024")[2].endswith("they are 0 to 1023\n")


def test_argparse_errors_are_exit_code_2(cli):
    assert cli("sample", "--sampler")[0] == 2
    assert cli("sample", "--problem", "sudoku4", "--denoiser", "text-mdm")[0] == 2
    assert cli("sample", "--problem", "sudoku4", "--sampler", "radd", "--steps", "0")[0] == 2


def test_show_prints_the_whole_docstring(cli):
    import inspect

    for item in registry.entries():
        out = cli("show", item.qualified)[1]
        doc = inspect.cleandoc(item.load().__doc__)
        assert flat(doc) in flat(out), item.name


def test_sample_is_determined_by_its_seed(cli):
    base = ("sample", "--problem", "sudoku4", "--sampler", "radd", "--steps", 6, "--batch", 3, "--json")
    a, b, c = (json.loads(cli(*base, "--seed", s)[1]) for s in (1, 1, 2))
    assert a["x"] == b["x"] != c["x"]
    direct = samplers.sample(
        samplers.problems.create("sudoku4").denoiser(), "radd", steps=6, batch=3, seed=1, temperature=1.0
    )
    assert a["x"] == direct.x.tolist()
    assert a["nfe"] == direct.nfe
    assert a["settings"]["temperature"] == 1.0
    assert a["score"] is None


def test_sample_scores_large_batches_and_renders(cli):
    code, out, _ = cli("sample", "--problem", "sudoku4", "--sampler", "random_order", "--batch", 120)
    assert code == 0
    assert "────┼────" in out
    assert "16 forward passes, 16 per row" in out
    assert "invalid" in out
    assert "and 116 more rows" in out
    scored = json.loads(cli("sample", "--problem", "sudoku4", "--sampler", "radd", "--batch", 100, "--json")[1])
    assert scored["score"]["primary"] == "tv"


def test_sample_options_prompt_and_stop(cli):
    base = ("sample", "--problem", "sudoku4", "--sampler", "threshold", "--json")
    one = json.loads(cli(*base, "-o", "threshold=2")[1])
    assert one["options"]["threshold"] == 2.0
    assert one["nfe"] == 16
    given = json.loads(cli(*base, "--prompt", "2 0,1 3", "--cfg-scale", "0.5", "--block-length", 4)[1])
    assert all(row[:4] == [2, 0, 1, 3] for row in given["x"])
    text = ("sample", "--problem", "text", "--sampler", "random_order", "--steps", 8, "--batch", 2)
    code, out, _ = cli(*text, "--prompt", "once upon", "--stop", "e")
    assert code == 0
    assert out.count("once upon") == 2


def test_sample_gaussian_and_plane(cli):
    code, out, _ = cli("sample", "--problem", "digits", "--sampler", "dpmpp_2m", "--steps", 5, "--batch", 2)
    assert code == 0
    assert "5 forward passes" in out
    code, out, _ = cli("sample", "--problem", "mixture", "--sampler", "ddim", "--steps", 5, "--batch", 100)
    assert code == 0
    assert any(0x2800 < ord(c) < 0x2900 for c in out)
    assert "energy" in out


def test_sample_from_a_denoiser_of_ones_own(cli, tmp_path, monkeypatch):
    (tmp_path / "my_denoiser_of_tests.py").write_text(DENOISER)
    monkeypatch.chdir(tmp_path)
    path = list(sys.path)
    for attribute in ("denoiser", "make"):
        code, out, _ = cli(
            "sample", "--denoiser", f"my_denoiser_of_tests:{attribute}", "--sampler", "radd", "--save", "x.pt"
        )
        assert code == 0
        assert "saved to x.pt" in out
        saved = torch.load("x.pt")
        assert saved["x"].shape == (4, 8)
        assert saved["sampler"] == "radd"
    assert "not a Denoiser" in cli("sample", "--denoiser", "my_denoiser_of_tests:nothing", "--sampler", "radd")[2]
    assert sys.path == path


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("sample", "--model", "x"), "it calls the model --denoiser"),
        (("eval", "--model", "x", "--tasks", "t", "--denoiser", "x"), "it calls the model --model"),
        (("generate", "x", "--prompt", "a", "--model"), "the model stands without an option, samplers generate MODEL"),
        (("generate", "x", "--prompt", "a", "--max-new-tokens", "4"), "it calls this --gen-length"),
        (("generate", "x", "--prompt", "a", "--threshold", "0.5"), "An option of the sampler is written -o NAME=VALUE"),
        (("sample", "--promt", "a"), "did you mean '--prompt'?"),
        (("eval", "--model", "x", "--tasks", "t", "--nfe", "4", "8"), "written with commas, such as 4,8"),
        (("sample", "hf:x"), "A model is given as --denoiser NAME"),
        (("--nonsense",), "samplers does not take '--nonsense'"),
        (("generate", "my-folder", "--prompt", "a"), "A folder, or a model of the hub, is written hf:NAME"),
    ],
)
def test_what_a_command_does_not_take(cli, argv, says):
    code, out, err = cli(*argv)
    assert code == 2 and not out
    assert err.count("\n") == 1 and says in err


def test_watch_without_a_terminal(cli):
    base = ("sample", "--problem", "sudoku4", "--sampler", "random_order", "--steps", 4, "--batch", 2)
    code, out, _ = cli(*base, "--watch")
    assert code == 0
    assert out.count("random_order on sudoku4") == 1
    assert "32/32 tokens" in out
    assert "nfe 4" in out
    code, out, _ = cli(*base, "--watch", "--frames")
    assert out.count("random_order on sudoku4") == 5
    assert "0/32 tokens" in out
    code, out, _ = cli(
        "sample", "--problem", "mixture", "--sampler", "ddim", "--steps", 3, "--batch", 50, "--watch", "--frames"
    )
    assert out.count("ddim on mixture") == 4
    assert "3/3 evaluations" in flat(out)


def test_watch_shows_how_much_is_noise(cli, monkeypatch):
    """Under uniform noise nothing is masked: what is more noise than not is dim, and the bar counts noise."""
    base = ("sample", "--problem", "sudoku4", "--family", "uniform", "--steps", 4, "--batch", 2, "--frames")
    code, out, _ = cli(*base, "--sampler", "d3pm_ancestral")
    assert code == 0
    assert [f"noise {n}%" in out for n in (100, 75, 50, 25, 0)] == [True] * 5
    seen = []
    before = watch._highlighted

    def highlighted(text, now, then):
        seen.append((text, now, then))
        return before(text, now, then)

    monkeypatch.setattr(watch, "_highlighted", highlighted)
    assert cli(*base, "--sampler", "block_refinement", "-o", "threshold=2")[0] == 0
    assert len(seen) == 10  # two rows, five frames
    for k, (text, now, _) in enumerate(seen):
        assert "·" not in text and now.count("·") == 16 - 4 * (k // 2)
        assert all(a == b or b == "·" for a, b in zip(text, now))
    spans = watch._highlighted("12", "·2", "1·").spans
    assert [(s.start, s.style) for s in spans] == [(0, "dim"), (0, watch.GONE), (1, watch.FRESH)]


def test_bench_of_uniform_noise(cli, tmp_path):
    run = ("bench", "--problem", "sudoku4", "--family", "uniform", "--nfe", "2,8", "--rows", 40, "--seeds", 1)
    code, out, _ = cli(*run, "--samplers", "d3pm*", "--block-length", 4, "--threads", 1, "--out", str(tmp_path / "u"))
    assert code == 0
    assert "uniform/d3pm_ancestral steps=8" in out and "steps=2" not in out, "2 steps are fewer than 4 blocks"


def test_braille_puts_points_where_they_are():
    drawn = braille(torch.tensor([[-0.99, 0.99], [0.99, -0.99]]), width=2, height=1, reach=1.0)
    assert drawn == chr(0x2801) + chr(0x2880)


def test_bench(cli, tmp_path):
    base = (
        "bench",
        "--problem",
        "sudoku4",
        "--samplers",
        "radd,random_order",
        "--nfe",
        "2,4",
        "--rows",
        64,
        "--out",
        tmp_path,
    )
    code, out, _ = cli(*base, "--seeds", 1)
    assert code == 0
    assert "[1/4] sudoku4 masked/radd steps=2 seed 0" in out
    assert out.rstrip().splitlines()[-1] == f"report: {tmp_path}/report.html"
    code, out, _ = cli(*base, "--seeds", 2)
    assert code == 0
    assert "4 of 8 cells are in" in out
    assert "4 cells run" in out
    code, out, _ = cli(*base, "--seeds", 2, "--quiet")
    assert code == 0
    assert len(out.splitlines()) <= 4
    code, out, _ = cli("bench", "--report", tmp_path)
    assert code == 0
    assert "report: " in out
    assert "--seeds 2" in json.loads((tmp_path / "sweep.json").read_text())["command"]


def test_bench_with_a_failure_is_exit_code_1(cli, tmp_path, monkeypatch):
    from samplers.masked.radd import Radd

    def broken(self, predict, state):
        raise RuntimeError("out of ideas")

    monkeypatch.setattr(Radd, "step", broken)
    base = ("bench", "--problem", "sudoku4", "--nfe", "2", "--seeds", 1, "--rows", 32, "--out", tmp_path)
    code, out, _ = cli(*base, "--samplers", "radd", "random_order")
    assert code == 1
    assert "1 failed" in out
    assert "out of ideas" in out
    assert "report.html" in out
    code, _, err = cli(*base, "--samplers", "radd")
    assert code == 1
    assert "no cell ended well" in err


def test_ctrl_c_says_how_to_go_on(cli, tmp_path, monkeypatch):
    calls = []

    def interrupted(*args, **kw):
        calls.append(1)
        if len(calls) > 3:
            raise KeyboardInterrupt
        return driver.sample(*args, **kw)

    monkeypatch.setattr("samplers.bench.sweep.sample", interrupted)
    base = (
        "bench",
        "--problem",
        "sudoku4",
        "--samplers",
        "radd",
        "--nfe",
        "2,4,8",
        "--seeds",
        "1",
        "--rows",
        "32",
        "--out",
        tmp_path,
    )
    code, _, err = cli(*base)
    assert code == 130
    assert "2 of 3 cells" in err
    assert f"--out {tmp_path}" in err
    monkeypatch.undo()
    code, out, _ = cli(*base)
    assert code == 0
    assert "2 were there already" in out


def test_plugins_and_env(cli, monkeypatch):
    assert cli("plugins")[0] == 0
    assert isinstance(json.loads(cli("plugins", "--json")[1]), list)
    report = registry.Report("crooked", "sampler-crooked", "0.3", "broken", [], "ImportError: no")
    monkeypatch.setattr(registry, "plugins", lambda check=True: [report])
    code, out, _ = cli("plugins")
    assert code == 0
    assert "broken" in out
    assert "ImportError: no" in out
    assert cli("plugins", "--strict")[0] == 1
    assert cli("plugins", "--strict", "--json")[0] == 1
    about = json.loads(cli("env", "--json")[1])
    assert about["torch"] == torch.__version__
    assert about["plugins"]["broken"] == 1
    assert "native" in about["ops"]
    assert "torch" in cli("env")[1]


def process(*argv, stdout=subprocess.PIPE, **env):
    """The command as a process: (exit code, stdout, stderr)."""
    root = str(Path(samplers.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-m", "samplers", *map(str, argv)],
        env=os.environ | {"PYTHONPATH": root} | env,
        stdout=stdout,
        stderr=subprocess.PIPE,
        timeout=120,
    )
    return done.returncode, (done.stdout or b"").decode(), done.stderr.decode()


def test_as_a_process():
    code, _, err = process("show", "rad")
    assert code == 2
    assert "Traceback" not in err
    assert "did you mean 'radd'" in err


needs_full = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="the device of a full disk is Linux's")
SUDOKU = ("sample", "--problem", "sudoku4", "--steps", "2")


@needs_full
@pytest.mark.parametrize("argv", [("list",), ("list", "radd", "--json"), ("--version",), SUDOKU], ids=" ".join)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_stdout_is_one_line(argv, unbuffered):
    with open("/dev/full", "w") as full:
        code, _, err = process(*argv, stdout=full, PYTHONUNBUFFERED=unbuffered)
    assert (code, flat(err)) == (1, "samplers: error: standard output cannot be written: No space left on device")


@needs_full
def test_a_full_disk_behind_save_is_one_line(cli):
    code, _, err = cli(*SUDOKU, "--save", "/dev/full")
    assert (code, flat(err)) == (
        2,
        "samplers: error: --save /dev/full cannot be written: No space left on device",
    )


def test_an_os_error_that_escapes_a_command_is_one_line(cli, monkeypatch):
    def run(*_):
        raise FileNotFoundError(2, "No such file or directory", "weights.bin")

    monkeypatch.setattr("samplers.cli.sample._model", run)
    code, _, err = cli(*SUDOKU)
    assert (code, flat(err)) == (1, "samplers: error: weights.bin: No such file or directory")

    def silent(*_):
        raise TimeoutError("the hub does not answer")

    monkeypatch.setattr("samplers.cli.sample._model", silent)
    code, _, err = cli(*SUDOKU)
    assert (code, flat(err)) == (1, "samplers: error: TimeoutError: the hub does not answer")


def test_a_reader_that_has_gone_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as nobody:
        assert process("list", stdout=nobody)[2] == ""
        assert process("show", "radd", "--json", stdout=nobody)[::2] == (0, "")


def test_a_stdout_of_ascii_gets_replacements():
    code, out, err = process(*SUDOKU, "--watch", PYTHONIOENCODING="ascii")
    assert (code, err) == (0, "")
    assert "2/2" in out or "tokens" in out
    assert "?" in out
    assert out.isascii()
    code, out, _ = process("show", "radd", "--json", PYTHONIOENCODING="ascii")
    assert code == 0
    assert json.loads(out) == json.loads(process("show", "radd", "--json")[1]), "JSON loses no character"
