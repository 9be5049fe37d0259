"""`samplers generate`."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from ..errors import OptionError
from ..parallel import parse_shard, shard_path
from . import arguments as a
from .arguments import OPTION, Commands, command
from .measuring import interrupted, ray_map, shared_out
from .output import make_console
from .sample import announce, chosen, read_options
from .tokens import TEXT, check_length, stop_rule, text_default

if TYPE_CHECKING:
    from ..denoiser import TokenDenoiser
    from ..generate import Prompt

BATCH = 8


def writer_arguments(p: argparse.ArgumentParser) -> None:
    """Add the arguments of commands that write text: the model, the sampler and how it runs."""
    p.add_argument(
        "model",
        metavar="MODEL",
        help="model in the box (text-mdm, text-refusion), hf:NAME of a folder or the Hugging Face hub, or MODULE:ATTRIBUTE",
    )
    p.add_argument("--sampler", metavar="NAME", help=a.SAMPLER_HELP.format("entropy_bound"))
    p.add_argument("--steps", type=a.whole, metavar="N", help="forward passes to spend (default: one per position)")
    p.add_argument(
        "--gen-length",
        type=a.whole,
        metavar="N",
        help=f"positions to fill after the prompt (default on the text models in the box: {TEXT['gen_length']})",
    )
    p.add_argument("--block-length", type=a.whole, metavar="N", help="positions per block, from left to right")
    p.add_argument("--cache", metavar="SCHEME", help="KV cache: prefix, dual, delayed, delayed(k), block")
    p.add_argument(
        "--temperature",
        type=a.temperature,
        metavar="T",
        help=f"sampling temperature (default on the text models in the box: {TEXT['temperature']}; otherwise the sampler's own)",
    )
    p.add_argument("--top-k", type=a.whole_or_0, metavar="K", help="likeliest tokens to draw from (default 0: all)")
    p.add_argument("--top-p", type=a.share, metavar="P", help="probability that they hold (default 1: all)")
    p.add_argument(
        "--stop",
        type=a.kind(str, bool, "a text that is not empty"),
        action="append",
        default=[],
        metavar="STR",
        help="string at which the text ends, or token ids such as '3 1'; \\n is the end of a line; repeat it for several "
        "(default: the model's own end of a text)",
    )
    p.add_argument("--stop-rule", **a.STOP_RULE)
    p.add_argument("--seed", type=a.seed, default=0, metavar="S", help="seed of all random numbers (default 0)")
    p.add_argument("-o", "--option", help="option of the sampler; repeat it for several", **OPTION)


def writer(args: argparse.Namespace) -> tuple[TokenDenoiser, str, dict[str, Any], str | None]:
    """The model; the sampler's name, the arguments of sample() with its options, and a note for the user, as of `chosen`."""
    from ..bench.user_model import load_denoiser
    from ..denoiser import TokenDenoiser

    if args.sampler is not None:  # a wrong option is found before a model is loaded
        read_options(args.sampler, args.option)
    denoiser = load_denoiser(args.model)
    if not isinstance(denoiser, TokenDenoiser):
        raise OptionError(f"{args.model!r} is a model of the {denoiser.family} family; a model of text is needed")
    names = ("steps", "block_length", "cache", "top_k", "top_p", "stop_rule")
    told = {name: getattr(args, name) for name in names}
    told |= {name: text_default(denoiser, name, getattr(args, name)) for name in ("gen_length", "temperature")}
    told["stop"] = [stop_rule(text, denoiser, denoiser) for text in args.stop] or None
    check_length(denoiser, told["gen_length"])
    return denoiser, *chosen(denoiser, args.sampler, told, args.option)


def _generate(args: argparse.Namespace) -> int:
    from ..generate import Results, job_of, run_job, shard_of

    shard = (0, 1) if args.shard is None else parse_shard(args.shard)
    prompts, shared = _prompts(args), ray_map(args)  # without Ray, an error before a model is loaded
    denoiser, sampler, arguments, note = writer(args)
    if args.quiet or args.json:
        note = None
    if args.chat and denoiser.tokenizer is not None:
        denoiser.tokenizer.chat([{"role": "user", "content": "?"}])  # that there is no template is said before anything
    job = job_of(args.model, sampler, seed=args.seed, ids=args.ids, **arguments)
    mine = shard_of(prompts, shard)
    if args.out is None:
        console = make_console()
        with shared as spread:
            for record in _announced(run_job(job, prompts, batch=args.batch, shard=shard, map=spread), note):
                if args.json:
                    print(json.dumps(record, ensure_ascii=False), flush=True)
                else:
                    _show(console, record)
        return 0
    path = Path(args.out) if shard[1] == 1 else shard_path(args.out, shard)
    with shared as spread, Results(path, job, prompts, overwrite=args.overwrite) as results:
        for note in results.notes:
            Console(stderr=True).print(f"[yellow]note:[/] {note}", highlight=False, soft_wrap=True)
        before = len(results.done)
        work = run_job(job, prompts, batch=args.batch, shard=shard, skip=results.done, map=spread)
        try:
            for record in _with_bar(_announced(work, note), before, len(mine), args.quiet):
                results.add(record)
        except KeyboardInterrupt:
            again = "samplers " + shlex.join(word for word in args.argv if word != "--overwrite")
            return interrupted(f"{len(results.done)} of {len(mine)} records are in {path}", again)
        written, kept = len(results.done) - before, f", {before} were there already" if before else ""
    if not args.quiet:
        make_console().print(f"{written} written{kept}: {path}", highlight=False, markup=False, soft_wrap=True)
    return 0


def _announced(records: Iterator[dict[str, Any]], note: str | None) -> Iterator[dict[str, Any]]:
    """The records, with the note before the first: what is wrong with arguments is known by then."""
    for i, record in enumerate(records):
        if not i:
            announce(note)
        yield record


def _prompts(args: argparse.Namespace) -> list[Prompt]:
    from ..generate import read_prompts

    if args.system is not None and not args.chat:
        raise OptionError("--system goes with --chat")
    how = {"chat": args.chat, "system": args.system}
    if args.prompt:
        lines = [json.dumps({"prompt": text}) for text in args.prompt]
        return read_prompts(lines, "--prompt", **how)
    if args.prompts == "-":
        return read_prompts(sys.stdin, "standard input", **how)
    try:
        with open(args.prompts, encoding="utf-8") as file:
            return read_prompts(file, args.prompts, **how)
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise OptionError(f"--prompts {args.prompts} cannot be read: {reason}") from error


def _show(console: Console, record: dict[str, Any]) -> None:
    text = record["text"] if record["text"] is not None else " ".join(map(str, record["ids"]))
    given = record["prompt"] if isinstance(record["prompt"], str) else ""
    console.print(Text(given, style="dim").append(text, style="not dim"), soft_wrap=True)
    console.print(
        Text(
            f"{record['finish_reason']}: {record['tokens']} tokens in {record['nfe']} forward passes, "
            f"{record['tokens_per_pass']:.3g} tokens per pass\n",
            style="dim",
        ),
        soft_wrap=True,
    )


def _with_bar(records: Iterator[dict[str, Any]], before: int, total: int, quiet: bool) -> Iterator[dict[str, Any]]:
    """The records, with a progress bar on stderr if that is a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("prompts"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=quiet or not console.is_terminal, transient=True) as bar:
        task = bar.add_task("", total=total, completed=before)
        for record in records:
            yield record
            bar.advance(task)


def add(commands: Commands) -> None:
    p = command(commands, "generate", _generate, "write text for many prompts; a stopped run goes on where it was")
    writer_arguments(p)
    what = p.add_mutually_exclusive_group(required=True)
    what.add_argument("--prompt", type=a.text, action="append", metavar="TEXT", help="prompt; repeat it for several")
    what.add_argument(
        "--prompts",
        metavar="FILE|-",
        help='file of prompts, one per line, or - for standard input: texts, or JSON objects with "prompt", "messages" or '
        '"ids", and "id" if you like',
    )
    p.add_argument("--chat", action="store_true", help="each text is a user's message, written by the chat template")
    p.add_argument("--system", metavar="TEXT", help="system message; with --chat")
    p.add_argument(
        "--batch",
        type=a.whole,
        default=BATCH,
        metavar="N",
        help=f"prompts at a time (default {BATCH}); draws do not change",
    )
    shared_out(p)
    p.add_argument(
        "--out", metavar="FILE.jsonl", help="file of records, one JSON object per line; it goes on if it is there"
    )
    p.add_argument("--overwrite", action="store_true", help="begin the file anew")
    p.add_argument("--ids", action="store_true", help="put the token ids into the records as well")
    p.add_argument("--json", action="store_true", help="without --out: print records, one per line, and nothing else")
    p.add_argument("--quiet", action="store_true", help="print errors only")
