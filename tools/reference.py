"""Writes docs/samplers.md and docs/cli.md from what the samplers and the command line say of themselves.

python tools/reference.py            # write the pages
python tools/reference.py --check    # exit code 1 if a page is not up to date
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from samplers import registry  # noqa: E402
from samplers.cli import _parser  # noqa: E402

NOTE = "<!-- Written by tools/reference.py. Change what the code says of itself, then run `make format`. -->"
LENGTH, STEPS = 64, (8, 16, 32, 64)  # where expected forward passes are shown

FAMILIES = {
    "masked": "Masked noise: an undecided position holds the mask token.",
    "uniform": "Uniform noise: an undecided position holds a random token. There is no mask token.",
    "gaussian": "Gaussian noise: x is an array of real numbers.",
}
SAMPLERS_INTRO = f"""\
# Every sampler and its options

{NOTE}

This page is made from the samplers themselves; `samplers show NAME` prints the same, with the docstring. Which sampler to
choose is the subject of [zoo.md](zoo.md).

Options are given to `samplers.sample(denoiser, "name", option=value)`, or on the command line with `-o option=value`. The
arguments that every sampler takes (`steps`, `block_length`, `temperature` and so on) are described in
[the README](../README.md) and in `help(samplers.sample)`.

*NFE* is the number of forward passes per row. "{LENGTH} positions" below means one block of {LENGTH} masked positions. *Bias*
says how the samples are distributed when one position is committed per step:

| bias | meaning |
|---|---|
| exact | Samples follow the model's distribution, because positions are chosen independently of the drawn tokens. |
| asymptotic | Samples follow the model's distribution in the limit of many steps. |
| biased | Samples prefer likely tokens, by design: the choice of positions depends on the drawn tokens. |
"""
CLI_INTRO = f"""\
# The command line

{NOTE}

`samplers COMMAND --help` prints the same. Everything here can also be run as `python -m samplers COMMAND`.
"""


def builtin() -> list[str]:
    """The names of the samplers that the library itself brings, by family."""
    order = list(FAMILIES)
    names = [n for n in registry.names() if registry.entry(n).distribution == registry.DISTRIBUTION]
    return sorted(names, key=lambda n: (order.index(registry.load(n).family), n))


def cell(text: object) -> str:
    return str(text).replace("|", "\\|").replace("\n", " ")


def sentence(text: str) -> str:
    text = text.strip()
    return text[:1].upper() + text[1:] + ("" if text.endswith((".", "!", "?", "...")) else ".")


def options_of(cls: Any) -> Iterator[str]:
    """The rows of a table of options."""
    yield "| option | default | values | meaning |"
    yield "|---|---|---|---|"
    for o in cls.options():
        kinds = cell(o.type_name) + (f", {cell(o.bounds)}" if o.bounds else "")
        yield f"| `{o.name}` | `{cell(o.default)}` | {kinds} | {cell(sentence(o.help))} |"


def cost_of(cls: Any) -> str:
    """What is known of a sampler's NFE, as a sentence."""
    if cls.family == "gaussian":
        return "`steps`"
    if cls.facts.sweep:
        option, values = cls.facts.sweep
        extra = f", with {n} more per block," if (n := cls().extra_steps) else ""
        cap = "" if cls.facts.sequential else f"; `steps`{extra} is an upper bound"
        return (
            f"depends on the model; set it with `{option}`{cap}. `samplers bench` tries {', '.join(map(str, values))}"
        )
    expected = {s: cls().expected_nfe(LENGTH, s) for s in STEPS}
    if None in expected.values():
        return "depends on the model; `steps` is an upper bound"
    if len(set(expected.values())) == 1:
        return f"{expected[STEPS[0]]:.4g} for {LENGTH} positions"
    return f"for {LENGTH} positions: " + ", ".join(f"{n:.4g} at {s} steps" for s, n in expected.items())


def facts_of(cls: Any) -> Iterator[str]:
    """The list of a sampler's facts."""
    yield f"- Paper: {cls.cite}"
    yield f"- NFE: {cost_of(cls)}"
    if cls.family != "gaussian":
        yield f"- Bias: {cls.facts.bias or 'not stated'}"
        yield f"- Temperature, unless you give one: {cls.default_temperature:g}"
    else:
        order = getattr(cls(), "order", None)
        yield f"- Order of convergence: {order if order is not None else 'not stated'}"
    if cls.facts.revises and cls.family == "masked":
        yield "- It may mask or change tokens again that it has committed."
    if cls.facts.sequential:
        yield "- It needs a causal model with a KV cache that also predicts the next token (`predicts_next`)."
    if cls.facts.stores_logits:
        yield "- It combines distributions, so the logits of the positions that it asks about are stored."


def samplers_page() -> str:
    names = builtin()
    lines = [SAMPLERS_INTRO]
    for family, about in FAMILIES.items():
        lines += [f"## {family}", "", about, "", "| sampler | what it does |", "|---|---|"]
        members = [n for n in names if registry.load(n).family == family]
        lines += [f"| [`{n}`](#{n}) | {cell(sentence(registry.load(n).summary))} |" for n in members]
        lines.append("")
        for name in members:
            cls = registry.load(name)
            lines += [f"### {name}", "", sentence(cls.summary), "", *facts_of(cls), ""]
            lines += [*options_of(cls), ""] if cls.options() else ["It has no options.", ""]
    return "\n".join(lines).rstrip() + "\n"


def usage(action: argparse.Action) -> str:
    """`--steps N`, as a person types it."""
    if not action.option_strings:
        return f"`{action.metavar or action.dest}`"
    takes = action.nargs != 0
    value = f" {action.metavar or action.dest.upper()}" if takes else ""
    return ", ".join(f"`{o}{value}`" for o in action.option_strings)


def cli_page() -> str:
    parser = _parser()
    commands = next(a for a in parser._actions if isinstance(a, argparse._SubParsersAction))
    helps = {a.dest: a.help for a in commands._choices_actions}
    lines = [CLI_INTRO, "| command | what it does |", "|---|---|"]
    lines += [f"| [`{name}`](#samplers-{name}) | {cell(sentence(helps[name] or ''))} |" for name in commands.choices]
    lines.append("")
    for name, sub in commands.choices.items():
        lines += [f"## samplers {name}", "", sentence(helps[name] or ""), ""]
        actions = [a for a in sub._actions if not isinstance(a, argparse._HelpAction)]
        if actions:
            lines += ["| argument | meaning |", "|---|---|"]
            lines += [f"| {cell(usage(a))} | {cell(sentence(a.help or ''))} |" for a in actions]
        else:
            lines.append("It takes no arguments.")
        lines.append("")
    return "\n".join(lines).rstrip() + "\n"


PAGES = {"docs/samplers.md": samplers_page, "docs/cli.md": cli_page}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Write docs/samplers.md and docs/cli.md.")
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 if a page is not up to date")
    args = parser.parse_args(argv)
    stale = []
    for path, page in PAGES.items():
        file, text = ROOT / path, page()
        if not file.exists() or file.read_text(encoding="utf-8") != text:
            stale.append(path)
            if not args.check:
                file.write_text(text, encoding="utf-8")
    if stale and args.check:
        print(f"{', '.join(stale)}: not up to date; run `python tools/reference.py`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
