"""tools/words.py counts what it says it counts, in the places that readers see, and nothing else."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SPEC = importlib.util.spec_from_file_location("words", ROOT / "tools/words.py")
assert SPEC is not None
assert SPEC.loader is not None
words = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(words)


def found(path: str, text: str) -> dict[str, int]:
    return dict(words.count(path, text)[0])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Commits two positions a step.", {"a for per": 1}),
        ("It takes one seed a row, and 80 bytes a row.", {"a for per": 2}),
        ("How many steps a row has taken.", {}),
        ("Which positions a forward pass is given; which rows a position belongs to; it draws a token at once.", {}),
        ("Ten draws a row, and as many positions a forward pass.", {"a for per": 2}),
        ("A position is a step's business.", {}),
        ("What comes behind the block.", {"behind": 1}),
        ("Behind the scenes it counts; it works behind the scenes.", {}),
        ("The law of the samples; lawful samples.", {"law": 1}),
        ("It spends ten forwards, and each forward counts.", {"forwards": 2}),
        ("A full forward pass, and 3 forward passes. It moves forward.", {}),
        ("The model believes it.", {"believe": 1}),
        ("It costs a look at the device.", {"a look": 1}),
        ("Its choice looks at the drawn token.", {}),
        ("The counts are foreseen.", {"foreseen": 1}),
        ("It is exact, too.", {"final too": 1}),
        ("It is too large, too slow, and too late.", {}),
        ("A model of one's own.", {"of one's own": 1}),
        ("A cache of its own.", {}),
        ("None where it does not apply.", {"where for if": 1}),
        ("The place where it stands.", {}),
        ("Its knob.", {"knob": 1}),
    ],
)
def test_habits(text: str, expected: dict[str, int]) -> None:
    assert found("docs/page.md", text) == expected
    assert found("samplers/module.py", f'"""{text}"""\n') == expected
    assert found("samplers/module.py", f"x = 1  # {text}\n") == expected
    assert found("samplers/module.py", f'raise ValueError(f"{{x}} {text}")\n') == expected
    assert found("csrc/kernel.h", f"int x;  // {text}\n") == expected
    assert found("tests/test_module.py", f'"""{text}"""\n') == {}, "tests are held to the names alone"


def test_a_sentence_over_two_lines_is_one_sentence() -> None:
    assert found("samplers/a.py", '"""It commits two positions\n    a step."""\n') == {"a for per": 1}
    assert found("samplers/a.py", "# It commits two positions\n# a step.\n") == {"a for per": 1}
    assert found("docs/a.md", "It commits two positions\na step.\n") == {"a for per": 1}


def test_help_that_begins_with_of() -> None:
    assert found("samplers/a.py", 'x = option(1, "of the draw, above 0")\n') == {"of ellipsis": 1}
    assert found("samplers/a.py", '"""Args:\n    x: of each row.\n    y: the length of it.\n"""\n') == {
        "of ellipsis": 1
    }


def test_old_names_are_found_in_code_and_in_backquotes_only() -> None:
    assert found("samplers/a.py", "def step(self, believe, state):\n    return believe(state)\n") == {"believe": 2}
    assert found("tests/test_a.py", "exact_order = True\n") == {"exact_order": 1}
    assert found("docs/a.md", "Say `exact_order`.\n\n```python\nat_least(state)\n```\n") == {
        "exact_order": 1,
        "at_least": 1,
    }
    assert found("docs/a.md", "At least one; what is owed; it is planned.\n") == {}
    assert found("samplers/a.py", 'x = y.at_least_one  # at_least_one\n"""Kept as it is."""\n') == {}


def test_code_is_not_prose() -> None:
    assert found("samplers/a.py", 'law = "law"\nforwards = behind(law)\n') == {}
    assert found("docs/a.md", "The `law` of `forwards`.\n\n```sh\nbench --only law\n```\n\n<!-- law -->\n") == {}


def test_the_command_passes_or_names_what_is_too_much(tmp_path: Path) -> None:
    """A copy of the tool in a repository of one page: within its budget, above it, and before and after."""

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x", *arguments], cwd=tmp_path, check=True)

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "tools/words.py", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    (tmp_path / "tools").mkdir()
    (tmp_path / "tools/words.py").write_text((ROOT / "tools/words.py").read_text(encoding="utf-8"), encoding="utf-8")
    budget = tmp_path / "tools/words.json"
    budget.write_text(json.dumps(dict.fromkeys(words.HABITS, 1)), encoding="utf-8")
    page = tmp_path / "page.md"
    page.write_text("One law and another law, behind it.\n", encoding="utf-8")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "x")
    failed = run()
    assert failed.returncode == 1
    assert failed.stderr == "law: 2 found and 1 allowed; python tools/words.py --show 'law'\n"
    page.write_text("One law, and what `believe` was.\n", encoding="utf-8")
    shown = run("--show", "old names")
    assert shown.returncode == 1
    assert "page.md: believe: … believe: now predict …" in shown.stdout
    page.write_text("One law.\n", encoding="utf-8")
    lowered = run("--lower", "--against", "HEAD")
    assert lowered.returncode == 0
    table = {line[:14].strip(): line[14:].split()[:3] for line in lowered.stdout.splitlines()}
    assert table["law"] == ["2", "1", "1"], "before, now, budget"
    assert table["behind"] == ["1", "0", "1"]
    assert table["together"][:2] == ["3", "1"]
    assert json.loads(budget.read_text(encoding="utf-8")) == {habit: int(habit == "law") for habit in words.HABITS}
    page.write_text("One law, and no more; a law.\n", encoding="utf-8")
    assert run().returncode == 1, "a budget that was lowered stays"
