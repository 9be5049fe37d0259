"""samplers sample."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from .. import registry
from ..errors import OptionError
from .arguments import AS_JSON, FAMILY, OPTION, Commands, command, interval, whole
from .output import make_console, print_json

if TYPE_CHECKING:
    from ..driver import Sample
    from ..problems import Problem

ENOUGH = 100  # rows for which a score says something


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
    from .. import problems
    from ..bench.own import load_denoiser

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

    from .. import watch as watching
    from ..driver import stream

    console = make_console()
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
        return print_json(_as_json(sample, problem, family, score))
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


def add(commands: Commands) -> None:
    p = command(commands, "sample", _sample, "run a sampler, and watch it")
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--problem", help="an exact problem: digits, mixture, sudoku4, text")
    what.add_argument(
        "--denoiser",
        metavar="NAME|hf:NAME|MODULE:ATTRIBUTE",
        help="a model in the box (digits-gauss, digits-mdm, text-mdm, text-refusion); a folder of safetensors or a "
        "repository on the Hugging Face hub; a Denoiser of your own, or a function that returns one",
    )
    p.add_argument("--sampler", required=True, metavar="NAME")
    p.add_argument("--family", **FAMILY)
    p.add_argument(
        "--steps", type=whole, metavar="N", help="forwards to spend (default: one a position; 20 for gaussian)"
    )
    p.add_argument(
        "--batch",
        type=whole,
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
    p.add_argument("--block-length", type=whole, metavar="N", help="positions a block, left to right")
    p.add_argument(
        "--cache", metavar="SCHEME", help="of a denoiser that has one: prefix, dual, delayed, delayed(k), block"
    )
    p.add_argument("--gen-length", type=whole, metavar="N", help="positions to fill behind the prompt")
    p.add_argument("--cfg-scale", type=float, default=0.0, metavar="W", help="guidance; needs a prompt")
    p.add_argument(
        "--cfg-interval",
        type=interval,
        default=(0.0, 1.0),
        metavar="LOW,HIGH",
        help="guide at noise levels in (LOW, HIGH] only, and pay for it there only (default 0,1)",
    )
    p.add_argument("--top-k", type=whole, default=0, metavar="K", help="draw from the K likeliest tokens only")
    p.add_argument("--top-p", type=float, default=1.0, metavar="P", help="and from the fewest that hold this share")
    p.add_argument("--prompt", metavar="IDS", help="token ids, '3 1 4'; or text, where there are letters")
    p.add_argument("--stop", metavar="IDS", help="a phrase behind which a row ends")
    p.add_argument("--forbid", metavar="IDS", help="tokens that are never drawn")
    p.add_argument("--demote", metavar="IDS", help="tokens that are committed last, such as the end of a sequence")
    p.add_argument("-o", "--option", help="an option of the sampler", **OPTION)
    p.add_argument("--watch", action="store_true", help="a frame a step, live")
    p.add_argument(
        "--fps", type=float, default=8.0, metavar="X", help="frames a second at most (default 8; 0: no waiting)"
    )
    p.add_argument("--frames", action="store_true", help="frames one below another instead")
    p.add_argument("--show", type=whole, default=4, metavar="K", help="rows to show (default 4)")
    p.add_argument("--save", metavar="FILE.pt", help="write tokens and counts for torch.load")
    p.add_argument("--json", **AS_JSON)
