"""Writes docs/samplers.md, docs/cli.md and docs/choose.md from what samplers, command line and measurements say.

python tools/reference.py            # write the pages
python tools/reference.py --check    # exit code 1 if a page is not up to date

tools/website.py takes the pages of single samplers from here (`sampler_page`); these are not kept in the repository.
"""

from __future__ import annotations

import argparse
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import measured  # noqa: E402

from samplers import problems, registry  # noqa: E402
from samplers.aliases import ALIASES  # noqa: E402
from samplers.cli import _parser  # noqa: E402
from samplers.cli.cite import citation  # noqa: E402
from samplers.family import family_of  # noqa: E402

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
choose is the subject of [choose.md](choose.md).

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
CHOOSE_INTRO = f"""\
# Choose a sampler

{NOTE}

Every number here is measured on a problem whose exact model is known, so an error is the sampler's own. Samplers run with
their options as they come; an adaptive one is run at several values of the option that sets its cost, and the best that the
budget pays for counts.

<!-- chooser -->

## The best at each budget

Lower is better in every table. Small print: the 95 % interval. "As good" are those whose intervals
overlap that of the best: nothing that was measured tells them apart. Two more pages go deeper:
[all token samplers](zoo.md) and [all continuous solvers](which_solver.md). `autoregressive`, `refusion` and
`strided` need a causal model ([caches_and_slots.md](caches_and_slots.md) has figures of the first two), and `dawn` one whose
attention can be read.
"""
CHOOSE_OUTRO = """\
## Measure again

Token samplers at temperature 1, then real numbers, other temperatures and plug-ins; then the pages:

```sh
python bench/zoo.py
python bench/choose.py
python tools/reference.py
```

Your own sampler beside ours, once it is installed:

```sh
samplers bench --problem sudoku4 --samplers entropy_bound,first_hitting --nfe 4,8,16 --temperature 1
```
"""


def builtin() -> list[str]:
    """The names of the samplers that the library itself brings, by family."""
    order = list(FAMILIES)
    names = [n for n in registry.names() if registry.entry(n).distribution == registry.DISTRIBUTION]
    return sorted(names, key=lambda n: (order.index(registry.load(n).family), n))


def about_family(name: str) -> str:
    """A sentence on a family; of a plug-in's what it says of itself."""
    return FAMILIES.get(name) or sentence(prose(family_of(name).summary))


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
    if not family_of(cls.family).tokens:
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
    if family_of(cls.family).tokens:
        yield f"- Bias: {cls.facts.bias or 'not stated'}"
        yield f"- Temperature, unless you give one: {cls.default_temperature:g}"
    elif (order := getattr(cls(), "order", None)) is not None:
        yield f"- Order of convergence: {order}"
    if (order := cls.facts.moments) > 1:
        yield f"- It needs a model that gives {order} moments of x_0: exact problems do; else heads, or `with_moments()`."
    if cls.facts.revises and cls.family == "masked":
        yield "- It may mask or change tokens again that it has committed."
    if cls.facts.sequential:
        yield "- It needs a causal model with a KV cache that also predicts the next token (`predicts_next`)."
    if cls.facts.copies:
        yield "- It runs several copies of each row in a forward pass: `row_evals` counts them, `nfe` does not."
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


def choose_page() -> str:
    """The page with a table for each group of measurements; tools/website.py puts the interactive part at its mark."""
    lines = [CHOOSE_INTRO]
    for group in measured.groups():
        at = "" if group["temperature"] is None else f", temperature {group['temperature']:g}"
        seeds = "" if group["seeds"] == 1 else f" at each of {group['seeds']} seeds"
        lines += [
            f"### {group['data']}{at}",
            "",
            f"{sentence(group['title'])} {group['rows']:,} samples per run{seeds}.",
            "",
        ]
        if group["temperature"] not in (None, 1.0):
            lines += ["At this temperature samples are meant to be likely, not to follow the model's distribution.", ""]
        lines += [*measured.best_table(group), ""]
    return "\n".join([*lines, CHOOSE_OUTRO]).rstrip() + "\n"


# ---------------------------------------------------------------------------------------------- pages of single samplers

SPECIAL = re.compile(r"([\\*_<>\[\]#$~|{}^])")
FORMULA = re.compile(r"^[\w'(){},*+/^ -]{1,24} = ")


def prose(text: str) -> str:
    """Plain text as Markdown: what would be marks of its own is escaped, and what stands in backquotes stays."""
    parts = re.split(r"(`[^`\n]*`)", text)  # every second part is one in backquotes
    plain = [part if i % 2 else SPECIAL.sub(r"\\\1", part) for i, part in enumerate(parts)]
    return re.sub(r"^(\s*)([-+]|\d+[.)]) ", r"\1\\\2 ", "".join(plain))


def is_formula(line: str) -> bool:
    """Whether a line of a docstring is an equation or a row of a small table, which must keep its spaces and its end."""
    words = [w for w in re.findall(r"[A-Za-z_]{4,}", line) if "_" not in w]
    return bool(line.startswith("    ") or re.match(r"\w+ {2,}\S", line) or (FORMULA.match(line) and len(words) < 3))


def docstring(text: str) -> Iterator[str]:
    """A sampler's docstring as Markdown: its first sentence, which names the source, then paragraphs and equations."""
    for paragraph in re.split(r"\n\s*\n", inspect.cleandoc(text)):
        lines = paragraph.splitlines()
        kinds = [is_formula(line) for line in lines]
        # The second line of a row of a table is indented below its first; the second line of an equation is not.
        at = 0
        while at < len(lines):
            end = at
            while end < len(lines) and kinds[end] == kinds[at]:
                end += 1
            if kinds[at]:
                block = inspect.cleandoc("\n".join(["", *lines[at:end]]))
                yield from ("```text", block, "```", "")
            else:
                # A page that is named becomes a link.
                text = prose(" ".join(lines[at:end]))
                yield from (re.sub(r"docs/([\w\\]+\.md)", lambda m: f"[](../{m[1]})".replace("\\", ""), text), "")
            at = end


def other_names(name: str) -> dict[str, list[str]]:
    """What other libraries call a sampler of ours: {library: ["name (with option=value)"]}."""
    found: dict[str, list[str]] = {}
    for theirs, (ours, options) in ALIASES.items():
        if ours != name:
            continue
        library = "k-diffusion, ComfyUI"
        if theirs.endswith("Scheduler"):
            library = "diffusers"
        elif theirs == "diffusion_gemma":
            library = "transformers"
        elif theirs != theirs.lower():
            library = "A1111's web UI"
        under = ", ".join(f"{k}={v!r}" for k, v in options.items())
        found.setdefault(library, []).append(f"`{theirs}`" + (f" (here with `{under}`)" if under else ""))
    return found


def how_to_run(name: str, cls: Any) -> tuple[str, str]:
    """(line for a shell, lines of Python) that run a sampler."""
    if cls.facts.sequential:
        python = (
            f'model = samplers.models.zoo.load("text-refusion")\nout = samplers.sample(model, "{name}", gen_length=64)'
        )
        return f"samplers sample --denoiser text-refusion --sampler {name} --gen-length 64", python
    family = family_of(cls.family)
    suited = [p for p in ("digits", "sudoku4", "mixture") if family.supports(problems.create(p))] or ["sudoku4"]
    problem = "sudoku4" if family.tokens else suited[0]
    rest = "steps=16, temperature=1.0" if family.tokens else "steps=16"
    python = f'denoiser = samplers.problems.create("{problem}").denoiser("{cls.family}")\n'
    python += f'out = samplers.sample(denoiser, "{name}", batch=4, {rest})'
    return f"samplers sample --problem {problem} --family {cls.family} --sampler {name} --steps 16", python


def source_of(cls: Any) -> tuple[str, str]:
    """(path, text) of the file of a sampler, the path from the root of its package's folder."""
    try:
        path = Path(inspect.getsourcefile(cls) or "")
        text = path.read_text(encoding="utf-8")
    except (OSError, TypeError):
        return "", ""
    package = cls.__module__.split(".")
    folders = package if path.name == "__init__.py" else package[:-1]
    return "/".join([*folders, path.name]), text


def sampler_page(name: str) -> str:
    """The page of one registered sampler, of ours or of a plug-in.

    Raises:
        PluginError: its package is broken.
    """
    item = registry.entry(name)
    cls = item.load()
    shell, python = how_to_run(name, cls)
    lines = [f"# {name}", "", sentence(prose(cls.summary)), ""]
    lines += [f"- Family: {cls.family}. {about_family(cls.family)}"]
    if item.distribution != registry.DISTRIBUTION:
        lines.append(
            f"- From: the package {package_link(item.distribution)} {item.version}, which is installed separately"
        )
    paper, *facts = facts_of(cls)
    lines += [prose(paper).replace("\\-", "-", 1) if cls.cite else "- Paper: it names none", *facts, ""]
    lines += ["## Run it", "", "```sh", shell, "```", "", "```python", "import samplers", "", python, "```", ""]
    lines += ["## Options", ""]
    lines += [*options_of(cls), ""] if cls.options() else ["It has no options.", ""]
    if cls.__doc__:
        lines += ["## What it does", "", *docstring(cls.__doc__)]
    if there := measured.of_sampler(cls.name, item.distribution):
        lines += [
            "## Measured",
            "",
            "Blue: this sampler, with 95 % intervals. Grey: the others of its family. Point at a line for its name.",
        ]
        lines += ["[Choose a sampler](../choose.md) ranks them.", "", "```{raw} html", '<div class="plots">']
        for group in there:
            lines.append(f'<a href="../choose.html#{link_to(group, cls.name)}">')
            lines.append(measured.plot(group, cls.name, item.distribution, cls.family) + "</a>")
        lines += ["</div>", "```", ""]
    if names := other_names(name):
        lines += ["## Names in other libraries", "", "`samplers.create` takes these names as well.", ""]
        lines += [f"- {library}: {', '.join(theirs)}" for library, theirs in names.items()] + [""]
    if cls.cite:
        key = re.sub(r"[^A-Za-z0-9]+", "_", item.name).strip("_")
        lines += ["## Citation", "", f"`samplers cite {name}` prints this, and an entry for the library.", ""]
        lines += ["```bibtex", citation(cls.cite, key), "```", ""]
    path, text = source_of(cls)
    if text:
        fence = "`" * (1 + max([3, *map(len, re.findall(r"`{3,}", text))]))
        lines += [
            "## Source",
            "",
            f"`{path}`",
            "",
            "```{raw} html",
            "<details><summary>Show the whole file</summary>",
            "```",
            "",
        ]
        lines += [f"{fence}python", text.rstrip(), fence, "", "```{raw} html", "</details>", "```", ""]
    return "\n".join(lines).rstrip() + "\n"


def package_link(distribution: str) -> str:
    """The name of a package, with a link to its page if it is one of this repository; for pages in a folder of the site."""
    known = (ROOT / "plugins" / distribution / "README.md").is_file()
    return f"[`{distribution}`](../plugins/{distribution}.md)" if known else f"`{distribution}`"


def link_to(group: dict[str, Any], sampler: str) -> str:
    """What stands after '#' in a link to the page "Choose a sampler"."""
    return f"data={group['data'].replace(' ', '-')}&sampler={sampler}"


PAGES = {"docs/samplers.md": samplers_page, "docs/cli.md": cli_page, "docs/choose.md": choose_page}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=f"Write {', '.join(PAGES)}.")
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
