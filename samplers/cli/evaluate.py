"""`samplers eval`. (A module called `eval` would hide Python's own function.)"""

from __future__ import annotations

import argparse
import functools
import os
from datetime import datetime

from . import arguments as a
from .arguments import OPTION, Commands, Flat, command
from .bench import ended, report_run
from .measuring import INTERRUPTED, folder_name, kept, shared_out, swept
from .output import make_console


def _evaluate(args: argparse.Namespace) -> int:
    # Before lm-eval is imported: one bar per cell and per data set would tear the display apart.
    os.environ.setdefault("TQDM_DISABLE", "1")
    from ..bench.store import writing
    from ..evaluation import EvalRequest, run

    request = EvalRequest(
        model=args.model,
        tasks=tuple(args.tasks),
        samplers=tuple(args.samplers or ()),
        nfe=tuple(args.nfe),
        caches=tuple(None if c == "none" else c for c in args.cache),
        options=tuple(args.option),
        seeds=args.seeds,
        limit=args.limit,
        batch=args.batch,
        fewshot=args.fewshot,
        temperature=args.temperature,
        gen_length=args.gen_length,
        block_length=args.block_length,
        chat=args.chat or args.system is not None,
        system=args.system,
        mc=args.mc,
        check_greedy=args.check_greedy,
        metric=args.metric,
        include=tuple(args.include_path),
    )
    console = make_console()
    name = folder_name(f"eval-{args.model}-{datetime.now():%Y%m%d-%H%M%S}")
    folder, outcome = swept(args, console, name, functools.partial(run, request), args.threads)
    if outcome is None:
        return INTERRUPTED
    if not ended(console, outcome):
        return 1
    with writing(folder):
        report_run(console, folder, tables=not args.quiet, every=True)
    return 1 if outcome.failed or outcome.declined else 0


def add(commands: Commands) -> None:
    p = command(
        commands,
        "eval",
        _evaluate,
        "score a model and its samplers on tasks of lm-eval; a stopped run goes on where it was",
    )
    p.add_argument(
        "--model",
        required=True,
        metavar="NAME|hf:NAME|MODULE:ATTRIBUTE",
        help="model of text: in the box (text-mdm, text-refusion), of a folder or the hub, or of your own",
    )
    p.add_argument(
        "--tasks",
        type=a.names,
        action=Flat,
        nargs="+",
        required=True,
        metavar="TASK",
        help="tasks and groups by name (in the box: zoo_finish, zoo_choose, zoo_text), .yaml files, or folders of them",
    )
    p.add_argument(
        "--include-path", action="append", default=[], metavar="DIR", help="folder of more tasks; repeat it for several"
    )
    p.add_argument(
        "--samplers", type=a.names, action=Flat, nargs="+", metavar="PATTERN", help="samplers that write the answers"
    )
    p.add_argument(
        "--nfe",
        "--steps",
        dest="nfe",
        type=a.budgets,
        default=(8, 16, 32),
        metavar="N,N,...",
        help="forward passes per answer (default 8,16,32); a sampler whose passes an option sets, such as entropy_bound's bound, "
        "is run at several values of that option instead, unless -o gives it one",
    )
    p.add_argument(
        "--cache",
        type=a.names,
        default=["none"],
        metavar="C,C,...",
        help="KV caches to compare, if the model has them: none, prefix, dual, delayed, block",
    )
    p.add_argument("-o", "--option", help="option of all samplers that have it; or sampler.name=value", **OPTION)
    p.add_argument("--limit", type=a.whole, metavar="N", help="documents per task (default: all)")
    p.add_argument(
        "--fewshot", type=a.whole_or_0, metavar="N", help="examples in the prompt (default: as the task says)"
    )
    p.add_argument("--chat", action="store_true", help="write prompts by the model's chat template")
    p.add_argument("--system", metavar="TEXT", help="system message, of the chat template")
    p.add_argument("--seeds", type=a.whole, default=1, metavar="N", help="number of seeds (default 1)")
    p.add_argument("--batch", type=a.whole, default=8, metavar="B", help="documents at a time (default 8)")
    p.add_argument(
        "--temperature", type=a.temperature, metavar="T", help="sampling temperature (default: as the task says)"
    )
    p.add_argument(
        "--gen-length", type=a.whole, metavar="N", help="positions to fill after the prompt (default: as the task says)"
    )
    p.add_argument("--block-length", type=a.whole, metavar="N", help="positions per block, from left to right")
    p.add_argument(
        "--mc",
        type=a.whole,
        default=128,
        metavar="N",
        help="masks per text, where likelihoods are bounds: a multiple of 16 (default 128)",
    )
    p.add_argument(
        "--check-greedy",
        action="store_true",
        help="work out whether a text is what the model decodes at temperature 0; one forward pass is needed per token",
    )
    p.add_argument("--metric", metavar="M", help="metric to plot and to judge by (default: the task's first)")
    p.add_argument("--threads", type=a.whole, metavar="N", help="threads of torch (default: its own choice)")
    kept(p, "runs/eval-...")
    shared_out(p)
