"""The command `samplers`: look around, sample, watch, and measure.

Every error that this library raises on purpose is one line on stderr and exit code 2; tables go to stdout, and with
`--json` nothing else does.
"""

from __future__ import annotations

import argparse
import inspect
import json
import math
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from . import registry
from .errors import OptionError, PluginError, SamplersError
from .registry import FAMILIES

if TYPE_CHECKING:
    from .driver import Sample
    from .problems import Problem

__all__ = ["main"]

LENGTH, STEPS = 64, (8, 16, 32, 64)  # at which `show` says what a sampler is expected to cost
ENOUGH = 100  # rows for which a score says something


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code: 0, 1 (something ran and failed), 2 (an error of yours), 130 (Ctrl-C)."""
    parser = _parser()
    args = parser.parse_args(argv)
    if args.command is None:
        parser.print_help()
        return 0
    args.argv = list(sys.argv[1:] if argv is None else argv)
    python_style = warnings.formatwarning
    # On a terminal the message is what counts, not the line of ours that said it.
    warnings.formatwarning = lambda message, *_, **__: f"{message}\n"
    try:
        return args.run(args)
    except SamplersError as error:
        _complain(str(error))
        return 2
    except KeyboardInterrupt:
        Console(stderr=True).print("[yellow]interrupted[/]")
        return 130
    except BrokenPipeError:  # `samplers list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    finally:
        warnings.formatwarning = python_style


def _complain(message: str) -> None:
    text = Text("samplers: error:", style="bold red").append(f" {message}", style="red not bold")
    Console(stderr=True).print(text, soft_wrap=True)


def _console() -> Console:
    console = Console()
    # A pipe has no width: tables must not be folded to 80 columns there.
    return console if console.is_terminal else Console(width=max(console.width, 160))


def _json(value: Any) -> int:
    def plain(v: Any) -> Any:
        if isinstance(v, float) and not math.isfinite(v):
            return None
        if isinstance(v, dict):
            return {k: plain(w) for k, w in v.items()}
        if isinstance(v, (list, tuple)):
            return [plain(w) for w in v]
        return v

    print(json.dumps(plain(value), indent=2, ensure_ascii=False, default=str, allow_nan=False))
    return 0


# ---------------------------------------------------------------------------------------------- looking around


def _cost(cls: Any, steps: int) -> float | None:
    return cls().expected_nfe(LENGTH, steps)


def _facts(cls: Any) -> dict[str, Any]:
    """What a class says of itself, for list and show."""
    order = getattr(cls, "order", None)
    if not isinstance(order, int):  # an option of that name says it per instance
        order = next((o.default for o in cls.options() if o.name == "order"), None)
    law = cls.facts.bias if cls.family in ("masked", "uniform") else None
    return {"order": order, "law": law, "sweep": cls.facts.sweep[0] if cls.facts.sweep else None}


def _count(facts: dict[str, Any], cls: Any) -> str:
    """The fact that one wants to see in a list: what a sampler's NFE is, or a solver's order."""
    if facts["order"] is not None:
        return f"order {facts['order']}"
    if facts["sweep"]:
        return f"by {facts['sweep']}"
    try:
        nfe = _cost(cls, 16)
    except SamplersError:
        return ""
    return "" if nfe is None else f"{nfe:.4g} at 16 steps"


def _list(args: argparse.Namespace) -> int:
    patterns = args.pattern or ["*"]
    rows, broken = [], []
    for name in registry.names(patterns, args.family):
        item = registry.entry(name)
        try:
            cls: Any = item.load()
            facts = _facts(cls)
            row = {"name": name, "family": cls.family, "nfe": _count(facts, cls), **facts}
            rows.append(row | {"summary": cls.summary, "distribution": item.distribution, "version": item.version})
        except PluginError:
            broken.append(
                {"name": name, "distribution": item.distribution, "version": item.version, "error": item.error}
            )
    reports = [r for r in registry.plugins(check=False) if r.status == "broken" and not r.samplers]
    broken += [
        {"name": r.entry_point, "distribution": r.distribution, "version": r.version, "error": r.error} for r in reports
    ]
    if not rows and args.pattern:
        for pattern in args.pattern:
            if not any(c in pattern for c in "*?[/"):
                registry.entry(pattern)  # raises, with the nearest names
        raise SamplersError(
            f"no sampler matches {' '.join(patterns)}" + (f" in family {args.family}" if args.family else "")
        )
    if args.json:
        return _json({"samplers": rows, "broken": broken})
    console = _console()
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in ("name", "family", "NFE / order", "law", "summary", "from"):
        table.add_column(header, no_wrap=header in ("name", "family"))
    for row in sorted(rows, key=lambda r: (FAMILIES.index(r["family"]), r["name"])):
        origin = "" if row["distribution"] == registry.DISTRIBUTION else f"{row['distribution']} {row['version']}"
        style = {"exact": "green", "biased": "yellow"}.get(row["law"] or "", "")
        table.add_row(
            Text(row["name"], style="bold"),
            row["family"],
            row["nfe"],
            Text(row["law"] or "", style=style),
            Text(row["summary"]),
            Text(origin or "built in", style="dim" if not origin else ""),
        )
    console.print(table)
    for bad in broken:
        console.print(
            f"[red]broken[/]  {bad['name']} ({bad['distribution']} {bad['version']}): {bad['error']}",
            highlight=False,
        )
    console.print(
        "\n[dim]samplers show NAME says more; 'exact' draws the model's own law one position at a time, or in many steps[/]"
    )
    return 0


def _where(cls: Any) -> str:
    try:
        return f"{inspect.getsourcefile(cls)}:{inspect.getsourcelines(cls)[1]}"
    except (OSError, TypeError):
        return "?"


def _show(args: argparse.Namespace) -> int:
    item = registry.entry(args.name)
    cls: Any = item.load()
    facts = _facts(cls)
    doc = inspect.cleandoc(cls.__doc__ or "")
    try:
        costs = {str(s): _cost(cls, s) for s in STEPS}
    except SamplersError:
        costs = {str(s): None for s in STEPS}
    options = [
        {"name": o.name, "type": o.type_name, "default": o.default, "bounds": o.bounds, "help": o.help}
        for o in cls.options()
    ]
    about = {
        "name": args.name,
        "family": cls.family,
        "summary": cls.summary,
        "cite": cls.cite,
        "doc": doc,
        "options": options,
        **facts,
        "sweep": {"option": cls.facts.sweep[0], "values": list(cls.facts.sweep[1])} if cls.facts.sweep else None,
        "default_temperature": cls.default_temperature if cls.family in ("masked", "uniform") else None,
        "expected_nfe": costs,
        "source": _where(cls),
        "distribution": item.distribution,
        "version": item.version,
    }
    if args.json:
        return _json(about)
    console = _console()
    console.print(Text.assemble((args.name, "bold"), "  ", (cls.family, "cyan"), "  ", cls.summary))
    console.print(Text(cls.cite, style="italic"))
    console.print()
    console.print(Text("\n\n".join(doc.split("\n\n")[:2])))
    console.print()
    if options:
        table = Table(
            box=None,
            padding=(0, 2, 0, 0),
            header_style="dim",
            title="Options",
            title_justify="left",
            title_style="bold",
        )
        for header in ("name", "type", "default", "bounds", "what"):
            table.add_column(header)
        for o in options:
            table.add_row(*(Text(str(o[k])) for k in ("name", "type", "default", "bounds", "help")))
        console.print(table)
    else:
        console.print("[bold]Options[/]\nnone")
    grid = Table.grid(padding=(0, 2, 0, 0))
    if about["default_temperature"] is not None:
        grid.add_row("[dim]temperature[/]", f"{about['default_temperature']:g} unless you say otherwise")
    if facts["law"]:
        laws = {
            "exact": "exact: one position at a time gives the model's own distribution",
            "asymptotic": "asymptotic: the model's own distribution in the limit of many steps",
            "biased": "biased by design: the choice of position looks at the token",
        }
        grid.add_row("[dim]law[/]", laws[facts["law"]])
    if facts["order"] is not None:
        grid.add_row("[dim]order[/]", str(facts["order"]))
    known = {s: v for s, v in costs.items() if v is not None}
    if known:
        at = ", ".join(f"{v:.4g} at {s} steps" for s, v in known.items())
        grid.add_row("[dim]expected NFE[/]", at + ("" if cls.family == "gaussian" else f" (L = {LENGTH})"))
    elif facts["sweep"]:
        cap = "" if cls.facts.sequential else "; `steps` is a cap"
        grid.add_row("[dim]NFE[/]", f"depends on the model, set by {facts['sweep']}{cap}")
    if cls.facts.sequential:
        grid.add_row(
            "[dim]model[/]", "must look back only, have a KV cache and predict the next token, too (predicts_next)"
        )
    grid.add_row("[dim]source[/]", Text(about["source"]))
    grid.add_row("[dim]from[/]", f"{item.distribution} {item.version}")
    console.print("\n[bold]Facts[/]")
    console.print(grid)
    on = f"--problem {'digits' if cls.family == 'gaussian' else 'sudoku4'} --family {cls.family}"
    more = "--steps 16"
    if cls.facts.sequential:
        on, more = "--denoiser my_model:denoiser", "--gen-length 64"
    console.print(
        f"\n[bold]Try[/]\nsamplers sample {on} --sampler {args.name} {more} --watch",
        highlight=False,
        soft_wrap=True,
    )
    return 0


def _plugins(args: argparse.Namespace) -> int:
    reports = registry.plugins()
    bad = any(r.status in ("broken", "duplicate") for r in reports)
    code = 1 if args.strict and bad else 0
    if args.json:
        _json(
            [
                {k: getattr(r, k) for k in ("entry_point", "distribution", "version", "status", "samplers", "error")}
                for r in reports
            ]
        )
        return code
    console = _console()
    if not reports:
        console.print(
            "no plug-ins are installed; a package becomes one with an entry point in the group 'samplers'",
            highlight=False,
        )
        return code
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for header in ("entry point", "distribution", "version", "status", "samplers", "error"):
        table.add_column(header)
    styles = {"ok": "green", "broken": "bold red", "blocked": "dim", "duplicate": "yellow"}
    for r in reports:
        table.add_row(
            r.entry_point,
            r.distribution,
            r.version,
            Text(r.status, style=styles.get(r.status, "")),
            ", ".join(r.samplers),
            Text(r.error or "", style="red"),
        )
    console.print(table)
    return code


def _env(args: argparse.Namespace) -> int:
    from . import ops
    from .bench.machine import machine, packages

    reports = registry.plugins()
    about = {
        "sampler-zoo": registry.version(),
        **machine(),
        "ops": ops.status(),
        "packages": packages(),
        "samplers": len(registry.entries()),
        "plugins": {s: sum(r.status == s for r in reports) for s in ("ok", "broken", "blocked", "duplicate")},
    }
    if args.json:
        return _json(about)
    status = about["ops"]
    grid = Table.grid(padding=(0, 3, 0, 0))
    plugs = ", ".join(f"{n} {s}" for s, n in about["plugins"].items() if n) or "none"
    lines = {
        "sampler-zoo": f"{about['sampler-zoo']}, {about['samplers']} samplers, plug-ins: {plugs}",
        "python": f"{about['python']} on {about['system']}",
        "torch": about["torch"],
        "ops": f"native kernels, {status['isa']}" if status["native"] else f"torch twins: {status['reason']}",
        "processor": f"{about['cpu']}, torch uses {about['threads']} threads",
        "gpu": about["gpu"] or "none that torch can use",
        "packages": ", ".join(f"{k} {v}" for k, v in about["packages"].items() if v) or "none",
        "not installed": ", ".join(k for k, v in about["packages"].items() if not v) or "nothing",
    }
    if status["native"]:
        lines["built with"] = ", ".join(
            f"{k} {v}" for k, v in status.items() if k in ("compiler", "cxx", "torch_built_with", "cuda")
        )
    for key, value in lines.items():
        grid.add_row(f"[dim]{key}[/]", Text(str(value)))
    _console().print(grid)
    return 0


# ---------------------------------------------------------------------------------------------- sampling


def _options(cls: Any, texts: Sequence[str]) -> dict[str, Any]:
    """-o name=value, read as the option's type. An unknown name is left for the sampler to refuse."""
    known = {o.name: o for o in cls.options()}
    made = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise OptionError(f"-o {text!r}: write name=value")
        name, value = name.strip(), value.strip()
        made[name] = known[name].parse(value) if name in known else value
    return made


def _tokens(text: str | None, what: str, speaker: Any) -> list[int] | None:
    """Token ids of '3 1 4' or '3,1,4'; else of text, where the problem or denoiser can encode it."""
    if text is None:
        return None
    try:
        return [int(w) for w in text.replace(",", " ").split()]
    except ValueError:
        encode = getattr(speaker, "encode", None)
        if encode is None:
            raise OptionError(f"--{what} {text!r}: token ids such as '3 1 4' are needed") from None
        return encode(text).tolist()


def _sample(args: argparse.Namespace) -> int:
    from . import problems
    from .bench.own import load_denoiser

    cls = registry.load(args.sampler)
    options = _options(cls, args.option)
    problem = problems.create(args.problem) if args.problem else None
    if problem is not None:
        family = args.family or (cls.family if cls.family in problem.families else problem.families[0])
        denoiser = problem.denoiser(family)
    else:
        denoiser = load_denoiser(args.denoiser)
        family = denoiser.family
    # On an exact problem the law is what one looks at, so draws are at temperature 1 whatever the sampler's habit.
    temperature = args.temperature
    if temperature is None and problem is not None and cls.family in ("masked", "uniform"):
        temperature = 1.0
    speaker = problem or denoiser
    prompt, stop = _tokens(args.prompt, "prompt", speaker), _tokens(args.stop, "stop", speaker)
    save = _writable(args.save)

    from . import watch as watching
    from .driver import stream

    console = _console()
    run = stream(
        denoiser,
        args.sampler,
        prompt=prompt,
        gen_length=args.gen_length,
        batch=args.batch,
        seed=args.seed,
        steps=args.steps,
        block_length=args.block_length,
        cache=args.cache,
        cfg_scale=args.cfg_scale,
        cfg_interval=args.cfg_interval,
        top_k=args.top_k,
        top_p=args.top_p,
        temperature=temperature,
        stop=[stop] if stop else None,
        forbid=_tokens(args.forbid, "forbid", speaker),
        demote=_tokens(args.demote, "demote", speaker),
        **options,
    )
    render = getattr(speaker, "render", None)
    if (args.watch or args.frames) and not args.json:
        where = f" on {problem.name}" if problem is not None else f" on {denoiser.name}"
        title = f"{args.sampler}[/]{where}[bold]"
        sample = watching.watch(
            run, console, title=title, render=render, rows=args.show, fps=args.fps, frames=args.frames
        )
    else:
        for _ in run:
            pass
        sample = run.result()
    score = None
    if problem is not None and len(sample.x) >= ENOUGH and prompt is None and stop is None:
        score = problem.score(sample, family)
    if save:
        _save(save, sample)
    if args.json:
        return _json(_as_json(sample, problem, family, score))
    if not (args.watch or args.frames):
        mask_id = getattr(denoiser, "mask_id", None)
        texts = watching.render_rows(
            sample.x, None if sample.x.shape[1:] == (2,) and family == "gaussian" else render, mask_id, args.show
        )
        grid = Table.grid(padding=(0, 4, 1, 0))
        widest = max((len(line) for t in texts for line in t.splitlines()), default=1)
        across = max(1, min(len(texts), console.width // (widest + 4)))
        for i in range(0, len(texts), across):
            grid.add_row(*map(Text, texts[i : i + across]))
        console.print(grid)
    more = len(sample.x) - args.show
    if more > 0 and not (family == "gaussian" and sample.x.shape[1:] == (2,)):
        console.print(f"[dim]and {more} more row{'s' * (more > 1)}[/]", highlight=False)
    s = sample.seconds
    console.print(
        f"{sample.sampler}: {sample.nfe} forwards, {float(sample.nfe_rows.double().mean()):.4g} a row, "
        f"{sample.row_evals:,} rows and {sample.token_evals:,} positions evaluated; "
        f"{s.total:.3g} s ({s.denoiser:.3g} denoiser, {s.sampler:.3g} sampler)",
        highlight=False,
    )
    if score is not None:
        console.print(Text(str(score)))
    if save:
        console.print(f"saved to {save}", highlight=False)
    return 0


def _as_json(sample: Sample, problem: Problem | None, family: str, score: Any) -> dict[str, Any]:
    facts = (
        "sampler",
        "options",
        "distribution",
        "version",
        "nfe",
        "row_evals",
        "token_evals",
        "head_rows",
        "steps",
        "settings",
    )
    return {
        "problem": problem.name if problem is not None else None,
        "family": family,
        **{k: getattr(sample, k) for k in facts},
        "nfe_rows": sample.nfe_rows.tolist(),
        "seconds": {"denoiser": sample.seconds.denoiser, "sampler": sample.seconds.sampler},
        "x": sample.x.tolist(),
        "score": score.to_dict() if score is not None else None,
    }


def _writable(path: str | None) -> Path | None:
    """The path, once it is known that a file can be put there: before the work is done, not after."""
    if path is None:
        return None
    try:
        with open(path, "ab"):
            pass
    except OSError as error:
        raise OptionError(f"--save {path} cannot be written: {error.strerror or error}") from error
    return Path(path)


def _save(path: Path, sample: Sample) -> None:
    import torch

    kept = (
        "x",
        "nfe",
        "row_evals",
        "token_evals",
        "nfe_rows",
        "lengths",
        "sampler",
        "options",
        "distribution",
        "version",
        "settings",
    )
    torch.save(
        {k: getattr(sample, k) for k in kept} | {"seconds": [sample.seconds.denoiser, sample.seconds.sampler]}, path
    )


# ---------------------------------------------------------------------------------------------- the bench


def _bench(args: argparse.Namespace) -> int:
    from .bench.live import Display
    from .bench.sweep import DEMO, NFE, Request, run

    console = _console()
    if args.report:
        return _finish(console, args.report, [])
    where = args.problem or _own(args)
    if bool(where) == args.demo or (args.problem and args.denoiser):
        raise OptionError("bench needs one of --problem NAME, --denoiser MODULE:ATTRIBUTE, --demo and --report DIR")
    if args.demo:
        requests, name = list(DEMO), "demo"
    else:
        requests = [
            Request(
                problems=tuple(where),
                samplers=tuple(args.samplers or ["*"]),
                family=args.family,
                nfe=tuple(args.nfe or NFE),
                caches=tuple(None if c == "none" else c for c in args.cache or ["none"]),
                **_asked(args),
            )
        ]
        name = f"{'-'.join(where)}-{datetime.now():%Y%m%d-%H%M%S}".replace(":", ".")
    folder = Path(args.out or Path("runs") / name)
    command = _again(args, folder)
    display = Display(console, quiet=args.quiet, metric=args.metric)
    try:
        with display:
            outcome = run(
                requests,
                folder,
                fresh=args.fresh,
                command=command,
                threads=args.threads or (1 if args.demo else None),
                started=display.started,
                running=display.running,
                finished=display.finished,
            )
    except KeyboardInterrupt:
        return _interrupted(f"{display.count} of {display.total} cells are in {folder}", command)
    lost = _without_any(folder, outcome.declined)
    ran = outcome.planned - outcome.reused
    console.print(
        f"{ran} cells run in {outcome.seconds:.0f} s, {outcome.reused} were there already"
        + (f", [red]{len(outcome.failed)} failed[/]" if outcome.failed else "")
        + (f", {len(outcome.declined)} declined by their sampler" if outcome.declined else ""),
        highlight=False,
    )
    if len(outcome.failed) + len(outcome.declined) == outcome.planned:
        _complain(f"no cell ended well; the first said: {(outcome.failed + outcome.declined)[0]['error']}")
        return 1
    _finish(console, folder, [] if args.quiet else ["tables"])
    return 1 if outcome.failed or lost else 0


def _own(args: argparse.Namespace) -> list[str]:
    """--denoiser as a place to measure on."""
    if args.denoiser and ":" not in args.denoiser:
        raise OptionError(f"--denoiser {args.denoiser!r}: write module:attribute, such as my_model:denoiser")
    return [args.denoiser] if args.denoiser else []


def _asked(args: argparse.Namespace) -> dict[str, Any]:
    """The fields of a Request that bench and tune have flags for; those not given keep their defaults."""
    names = ("seeds", "rows", "batch", "temperature", "block_length", "gen_length", "prompts", "metric", "higher")
    return {k: getattr(args, k) for k in names if getattr(args, k) is not None} | {"options": tuple(args.option)}


def _again(args: argparse.Namespace, folder: Path) -> str:
    """The command that goes on with a run, or makes its report again."""
    again = "samplers " + shlex.join(a for a in args.argv if a != "--fresh")
    return again if args.out or getattr(args, "demo", False) else f"{again} --out {shlex.quote(str(folder))}"


def _interrupted(kept: str, command: str) -> int:
    """Says what is kept of a stopped run and how to go on; the exit code."""
    Console(stderr=True).print(
        f"[yellow]interrupted[/]: {kept}; to go on:\n  {command}", highlight=False, soft_wrap=True
    )
    return 130


def _without_any(folder: Path, declined: list[dict[str, Any]]) -> set[str]:
    """Samplers that declined all they were asked for: that is a failure, a step count that does not suit is not."""
    from .bench.sweep import Store

    ran = {(r["problem"], r["sampler"]) for r in Store(folder, write=False).records.values() if r["status"] == "ok"}
    return {r["sampler"] for r in declined if (r["problem"], r["sampler"]) not in ran}


def _finish(console: Console, folder: str | Path, show: Sequence[str]) -> int:
    from .bench.collect import groups, points
    from .bench.live import table
    from .bench.report import best_rows, plotted, write_report
    from .bench.sweep import REQUEST, Store

    page, notes = write_report(folder)
    if show:
        about = json.loads((Path(folder) / REQUEST).read_text(encoding="utf-8"))
        made = points(Store(folder, write=False).records.values(), plotted(about))
        for (problem, family), group in groups(made).items():
            console.print()
            console.print(table(group, best_rows(group), title=f"{problem}, {family}", narrow=console.width < 120))
        console.print("[dim]• on the Pareto front by NFE; all settings are in table.md[/]\n", highlight=False)
    for note in notes:
        console.print(f"[yellow]note:[/] {note}", highlight=False)
    console.print(f"report: [bold]{page}[/]", highlight=False, soft_wrap=True)
    return 0


# ---------------------------------------------------------------------------------------------- the search


def _tune(args: argparse.Namespace) -> int:
    from .bench import tune
    from .bench.live import SearchDisplay, found_table
    from .bench.own import subject
    from .bench.sweep import Request

    (where,) = _own(args) or [args.problem]
    names = tune.DEFAULTS.get(args.sampler)
    if not names and not (args.x and args.y):
        raise OptionError(
            f"which two options of {args.sampler!r}? Say --x option=low:high:count and --y option=low:high:count"
        )
    both = args.grid or "0.1:1.0:10"
    x, y = (tune.axis(given or f"{names[i]}={both}") for i, given in enumerate((args.x, args.y)))  # type: ignore[index]
    references = dict(names[2]) if names and (x.option, y.option) == names[:2] else _defaults(args.sampler, x, y)
    steps = args.steps
    if not steps:
        length = args.gen_length or subject(where, args.metric, args.higher).length
        if length is None:
            raise OptionError(
                "--steps is needed: this model takes a canvas of any length, and --gen-length was not given"
            )
        steps = sorted({max(1, length // k) for k in (8, 4, 2)})
    request = Request(problems=(where,), samplers=(args.sampler,), nfe=tuple(steps), **{"seeds": 4, **_asked(args)})
    what = tune.Search(request, args.sampler, x, y, references, args.refine)
    folder = Path(args.out or Path("runs") / f"tune-{args.sampler}-{where}".replace(":", "."))
    command, console = _again(args, folder), _console()
    display = SearchDisplay(console, quiet=args.quiet)
    try:
        with display:
            found = tune.search(
                what,
                folder,
                fresh=args.fresh,
                command=command,
                threads=args.threads,
                opened=display.opened,
                stage=display.stage,
                running=display.running,
                finished=display.finished,
            )
    except KeyboardInterrupt:
        return _interrupted(f"{display.count} runs are in {folder}", command)
    paths, notes = tune.write(what, found, folder)
    console.print()
    console.print(found_table(found, x.option, y.option))
    console.print(
        f"[dim]{max(len(f.tried) for f in found)} pairs searched; the numbers are of fresh seeds, the same for every pair; "
        "below 0: the found pair is better[/]\n",
        highlight=False,
    )
    for one in found:
        expected = "" if one.expected_nfe is None else f", {one.expected_nfe:.4g} forwards expected"
        console.print(f"[bold]{one.steps} steps[/]{expected}", highlight=False)
        for line in tune.paste(what, one):
            console.print(Text(f"  {line}"), soft_wrap=True)
    for note in notes:
        console.print(f"[yellow]note:[/] {note}", highlight=False)
    for path in paths:
        console.print(f"written: [bold]{path}[/]", highlight=False, soft_wrap=True)
    return 0


def _defaults(sampler: str, x: Any, y: Any) -> dict[str, tuple[float, float]]:
    """The pair that one has without asking, as the reference; none where it is not two numbers."""
    default = {o.name: o.default for o in registry.load(sampler).options()}
    pair = tuple(default.get(a.option) for a in (x, y))
    return {"default": pair} if all(isinstance(v, (int, float)) for v in pair) else {}  # type: ignore[dict-item]


# ---------------------------------------------------------------------------------------------- arguments


def _names(text: str) -> list[str]:
    return [w.strip() for w in text.split(",") if w.strip()]


def _whole(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is not 1 or more")
    return value


def _interval(text: str) -> tuple[float, ...]:
    return tuple(float(w) for w in _names(text))  # sample() says what is wrong with the numbers


def _budgets(text: str) -> list[int]:
    return sorted({_whole(w) for w in _names(text)})


class _Flat(argparse.Action):
    """Collects comma-separated lists over repeated options and several words."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        old = getattr(namespace, self.dest) or []
        new = [
            w for v in (values if isinstance(values, list) else [values]) for w in (v if isinstance(v, list) else [v])
        ]
        setattr(namespace, self.dest, [*old, *new])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="samplers",
        description="Samplers for diffusion models: picked by name, run against any model, measured against a truth.",
        epilog="examples: samplers sample --problem sudoku4 --sampler entropy_bound --watch | samplers bench --demo",
    )

    class Version(argparse.Action):  # read when asked for: metadata takes its time
        def __call__(self, *_: Any) -> None:
            print(f"samplers {registry.version()}")
            parser.exit()

    parser.add_argument("--version", action=Version, nargs=0, help="print the version")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")

    def command(name: str, run: Callable[[argparse.Namespace], int], help: str) -> argparse.ArgumentParser:
        made = commands.add_parser(name, help=help, description=help[:1].upper() + help[1:] + ".")
        made.set_defaults(run=run)
        return made

    families: dict[str, Any] = {
        "choices": FAMILIES,
        "metavar": "FAMILY",
        "help": f"kind of noise: {', '.join(FAMILIES)}",
    }
    option: dict[str, Any] = {"action": "append", "default": [], "metavar": "NAME=VALUE"}
    as_json: dict[str, Any] = {"action": "store_true", "help": "print JSON and nothing else"}

    p = command("list", _list, "the samplers there are")
    p.add_argument("pattern", nargs="*", help="such as 'dpmpp*' or 'masked/*'")
    p.add_argument("--family", **families)
    p.add_argument("--json", **as_json)

    p = command("show", _show, "all about one sampler")
    p.add_argument("name")
    p.add_argument("--json", **as_json)

    p = command("sample", _sample, "run a sampler, and watch it")
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--problem", help="an exact problem: digits, mixture, sudoku4, text")
    what.add_argument(
        "--denoiser",
        metavar="NAME|hf:NAME|MODULE:ATTRIBUTE",
        help="a model in the box (digits-gauss, digits-mdm, text-mdm, text-refusion); a folder of safetensors or a "
        "repository on the Hugging Face hub; a Denoiser of your own, or a function that returns one",
    )
    p.add_argument("--sampler", required=True, metavar="NAME")
    p.add_argument("--family", **families)
    p.add_argument(
        "--steps", type=_whole, metavar="N", help="forwards to spend (default: one a position; 20 for gaussian)"
    )
    p.add_argument(
        "--batch",
        type=_whole,
        default=4,
        metavar="B",
        help=f"rows (default 4); from {ENOUGH} on, a problem scores them",
    )
    p.add_argument("--seed", type=int, default=0, metavar="S")
    p.add_argument(
        "--temperature",
        type=float,
        metavar="T",
        help="of token draws; default: 1 on a problem, whose law is what is looked at; the sampler's own on a denoiser",
    )
    p.add_argument("--block-length", type=_whole, metavar="N", help="positions a block, left to right")
    p.add_argument(
        "--cache", metavar="SCHEME", help="of a denoiser that has one: prefix, dual, delayed, delayed(k), block"
    )
    p.add_argument("--gen-length", type=_whole, metavar="N", help="positions to fill behind the prompt")
    p.add_argument("--cfg-scale", type=float, default=0.0, metavar="W", help="guidance; needs a prompt")
    p.add_argument(
        "--cfg-interval",
        type=_interval,
        default=(0.0, 1.0),
        metavar="LOW,HIGH",
        help="guide at noise levels in (LOW, HIGH] only, and pay for it there only (default 0,1)",
    )
    p.add_argument("--top-k", type=_whole, default=0, metavar="K", help="draw from the K likeliest tokens only")
    p.add_argument("--top-p", type=float, default=1.0, metavar="P", help="and from the fewest that hold this share")
    p.add_argument("--prompt", metavar="IDS", help="token ids, '3 1 4'; or text, where there are letters")
    p.add_argument("--stop", metavar="IDS", help="a phrase behind which a row ends")
    p.add_argument("--forbid", metavar="IDS", help="tokens that are never drawn")
    p.add_argument("--demote", metavar="IDS", help="tokens that are committed last, such as the end of a sequence")
    p.add_argument("-o", "--option", help="an option of the sampler", **option)
    p.add_argument("--watch", action="store_true", help="a frame a step, live")
    p.add_argument(
        "--fps", type=float, default=8.0, metavar="X", help="frames a second at most (default 8; 0: no waiting)"
    )
    p.add_argument("--frames", action="store_true", help="frames one below another instead")
    p.add_argument("--show", type=_whole, default=4, metavar="K", help="rows to show (default 4)")
    p.add_argument("--save", metavar="FILE.pt", help="write tokens and counts for torch.load")
    p.add_argument("--json", **as_json)

    def measured(p: argparse.ArgumentParser, seeds: int) -> None:
        """What bench and tune share: how a setting is run, and where results go."""
        p.add_argument(
            "--metric",
            metavar="M",
            help="what to plot and to judge by: a metric of the problem; of --denoiser MODULE:FUNCTION, which is given the "
            "Sample and returns a number, or one a row",
        )
        p.add_argument("--higher", action="store_true", help="more of your own metric is better")
        p.add_argument("--prompts", metavar="MODULE:ATTRIBUTE", help="of --denoiser: lists of token ids, one a row")
        p.add_argument("--gen-length", type=_whole, metavar="N", help="of --denoiser: positions to fill")
        p.add_argument("--seeds", type=_whole, metavar="N", help=f"how many (default {seeds})")
        p.add_argument("--rows", type=_whole, metavar="N", help="samples a run (default 512)")
        p.add_argument("--batch", type=_whole, metavar="B", help="of these at a time (default 512)")
        p.add_argument(
            "--temperature",
            type=float,
            metavar="T",
            help="of token draws; default: 1 on a problem, the law itself; the sampler's own on a denoiser",
        )
        p.add_argument("--block-length", type=_whole, metavar="N")
        p.add_argument("--threads", type=_whole, metavar="N", help="of torch (default: its own choice; 1 for --demo)")
        p.add_argument(
            "--out", metavar="DIR", help="where results go, and where an earlier run goes on (default runs/...)"
        )
        p.add_argument("--fresh", action="store_true", help="start again; earlier runs are put aside")
        p.add_argument("--quiet", action="store_true", help="only failures, and where the results are")

    own_model: dict[str, Any] = {
        "metavar": "NAME|hf:NAME|MODULE:ATTRIBUTE",
        "help": "a model in the box, of a folder or the hub, or of your own; see `samplers sample --help`",
    }

    p = command("bench", _bench, "measure samplers against the truth; resumable")
    p.add_argument(
        "--problem",
        type=_names,
        action=_Flat,
        metavar="P[,P2]",
        help="exact problems; or llm-small, llm-8b: random weights of a real shape, for speed alone",
    )
    p.add_argument(
        "--cache",
        type=_names,
        metavar="C,C,...",
        help="KV caches to compare, of a model that has them: none, prefix, dual, delayed, block",
    )
    p.add_argument("--denoiser", **own_model)
    p.add_argument(
        "--samplers",
        type=_names,
        action=_Flat,
        nargs="+",
        metavar="PATTERN",
        help="'masked/*', 'dpmpp*', names (default: all that fit)",
    )
    p.add_argument("--family", **families)
    p.add_argument("--nfe", type=_budgets, metavar="N,N,...", help="budgets of forwards (default 2,4,8,16)")
    p.add_argument(
        "-o",
        "--option",
        help="an option of all samplers that have it, or sampler.name=value",
        **option,
    )
    measured(p, 3)
    p.add_argument(
        "--demo", action="store_true", help="sudoku, digits and a mixture in about two minutes, into runs/demo"
    )
    p.add_argument("--report", metavar="DIR", help="write the report of DIR again, without running anything")

    p = command("tune", _tune, "search for two options of a sampler, such as beta_energy's schedule; resumable")
    p.add_argument("sampler", metavar="NAME", help="beta_energy, or any sampler with two numeric options")
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--problem", help="an exact problem: digits, sudoku4, text")
    what.add_argument("--denoiser", **own_model)
    p.add_argument(
        "--x", metavar="OPTION=LOW:HIGH:COUNT", help="the first option; values may also be listed, a=0.1,0.5"
    )
    p.add_argument("--y", metavar="OPTION=LOW:HIGH:COUNT", help="the second one (default for beta_energy: a and b)")
    p.add_argument("--grid", metavar="LOW:HIGH:COUNT", help="of beta_energy's two options (default 0.1:1.0:10)")
    p.add_argument("--steps", type=_budgets, metavar="N,N,...", help="each is searched (default L/8, L/4, L/2)")
    p.add_argument("--refine", type=int, default=2, metavar="K", help="rounds about the best (default 2)")
    p.add_argument("-o", "--option", help="an option that stays as it is", **option)
    measured(p, 4)

    p = command("plugins", _plugins, "plug-ins, and what is wrong with them")
    p.add_argument("--json", **as_json)
    p.add_argument("--strict", action="store_true", help="exit 1 if any is broken or a duplicate")

    p = command("env", _env, "versions, machine, and which kernels run")
    p.add_argument("--json", **as_json)
    return parser


if __name__ == "__main__":
    sys.exit(main())
