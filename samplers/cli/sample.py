"""`samplers sample`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.text import Text

from .. import registry
from ..errors import OptionError
from ..family import family_of, has_denoiser
from . import arguments as a
from .arguments import AS_JSON, FAMILY, OPTION, Commands, command
from .output import make_console, print_json
from .sample_output import as_json, print_costs, print_rows, save, writable
from .tokens import TEXT, check_length, check_room, method_of, stop_rule, text_default, token_ids

if TYPE_CHECKING:
    from ..denoiser import Denoiser
    from ..problems import Problem

ENOUGH = 100  # rows for which a score says something
ROWS = 4
# What runs if the command does not say.
MODEL = "text-mdm"
PROBLEM = "digits"


def read_options(sampler: str, texts: Sequence[str]) -> dict[str, Any]:
    """-o name=value, read as the option's type. An unknown name is left for the sampler to refuse."""
    known = {o.name: o for o in registry.load(sampler).options()}
    made = {}
    for text in texts:
        name, sign, value = text.partition("=")
        if not sign or not name.strip():
            raise OptionError(f"-o {text!r}: write name=value")
        name, value = name.strip(), value.strip()
        made[name] = known[name].parse(value) if name in known else value
    return made


def _model(args: argparse.Namespace) -> tuple[Problem | None, Denoiser]:
    """The problem, if one was asked for, and the denoiser."""
    from .. import problems
    from ..bench.user_model import load_denoiser

    name, family = args.problem, args.family
    if family is None and args.sampler is not None:
        family = registry.load(args.sampler).family
    if name is None and args.denoiser is None and family not in (None, "masked"):
        name = PROBLEM  # no model in the box is of every family, and this problem is
    if name is None:
        return None, load_denoiser(MODEL if args.denoiser is None else args.denoiser)
    problem = problems.create(name)
    if args.family is None and family is not None and not has_denoiser(family, problem):
        family = None
    return problem, problem.denoiser(family)


def chosen(
    denoiser: Denoiser, sampler: str | None, told: dict[str, Any], options: Sequence[str]
) -> tuple[str, dict[str, Any], str | None]:
    """The sampler that runs, and what it runs with.

    If the command names no sampler and the model has a recipe (TokenDenoiser.recipe), that is what runs, with what the command
    says in its place. A sampler that is named runs with its own defaults and nothing of the recipe.

    Args:
        told: arguments of sample(); None: the command does not say.
        options: -o, as they were written.

    Returns:
        The sampler's name; arguments of sample() beside options of the sampler; and what to tell the user of it: None if it is
        no recipe.
    """
    recipe = getattr(denoiser, "recipe", None) if sampler is None else None
    name, settings = (sampler, {}) if recipe is None else recipe
    if name is None:
        name = (
            "autoregressive"
            if getattr(denoiser, "predicts_next", False)
            else family_of(denoiser.family).default_sampler
        )
    own = {key: value for key, value in told.items() if value is not None} | read_options(name, options)
    # `steps` and `steps_per_block` say the same thing in two ways.
    kept = {k: v for k, v in settings.items() if k not in own and not (k == "steps_per_block" and "steps" in own)}
    words = ", ".join([name, *(f"{key}={value}" for key, value in kept.items())])
    note = f"sampler: {words} (see samplers show-model; --sampler NAME runs another)"
    return name, kept | own, None if recipe is None else note


def announce(note: str | None) -> None:
    """Print the note of `chosen` on stderr, when no argument can be wrong any more: an error is one line."""
    if note is not None:
        Console(stderr=True).print(Text(note, style="dim"), soft_wrap=True)


def _sample(args: argparse.Namespace) -> int:
    from .. import watch as watching
    from ..driver import stream

    if args.sampler is not None:  # a wrong option is found before a model is loaded, which may take its time
        read_options(args.sampler, args.option)
    problem, denoiser = _model(args)
    names = ("steps", "block_length", "align", "window", "cache", "top_k", "top_p", "stop_rule")
    told = {name: getattr(args, name) for name in names}
    told |= {name: text_default(denoiser, name, getattr(args, name)) for name in ("gen_length", "temperature")}
    sampler_name, arguments, note = chosen(denoiser, args.sampler, told, args.option)
    cls = registry.load(sampler_name)
    tokens = family_of(cls.family).tokens
    if problem is not None and tokens:
        # On an exact problem the distribution is what one looks at, so draws are at temperature 1.
        arguments.setdefault("temperature", 1.0)
    batch = args.batch
    if batch is None:
        cold = tokens and arguments.get("temperature", cls.default_temperature) == 0
        batch = 1 if cold else ROWS  # at temperature 0 rows are alike
    speaker = problem or denoiser
    prompt = asked = token_ids(args.prompt, "--prompt", speaker, denoiser)
    if prompt is None and problem is not None and problem.length is not None:
        prompt = problem.settings.get("prompt")  # a problem may be to answer something
    stop = [stop_rule(text, speaker, denoiser) for text in args.stop]
    check_length(denoiser, told["gen_length"])
    check_room(denoiser, asked, told["gen_length"])
    file = writable(args.save)
    console = make_console()
    run = stream(
        denoiser,
        sampler_name,
        prompt=prompt,
        batch=batch,
        seed=args.seed,
        cfg_scale=args.cfg_scale,
        cfg_interval=args.cfg_interval,
        stop=stop or None,
        forbid=token_ids(args.forbid, "--forbid", speaker, denoiser),
        demote=token_ids(args.demote, "--demote", speaker, denoiser),
        **arguments,
    )
    announce(None if args.json else note)
    render = method_of(speaker, "render")
    watched = (args.watch or args.frames) and not args.json
    if watched:
        title = f"{escape(sampler_name)}[/] on {escape(denoiser.name if problem is None else problem.name)}[bold]"
        sample = watching.watch(
            run, console, title=title, render=render, rows=args.show, fps=args.fps, frames=args.frames
        )
    else:
        for _ in run:
            pass
        sample = run.result()
    score = None
    if problem is not None and len(sample.x) >= ENOUGH and asked is None and not stop:
        score = problem.score(sample, denoiser.family)
    if file:
        save(file, sample)
    if args.json:
        return print_json(as_json(sample, problem, denoiser.family, score))
    plane = sample.x.is_floating_point() and sample.x.shape[1:] == (2,)  # points are drawn all together
    if not watched:
        print_rows(console, sample, None if plane else render, getattr(denoiser, "mask_id", None), args.show)
    more = len(sample.x) - args.show
    if more > 0 and not plane:
        console.print(f"[dim]and {more} more row{'s' * (more > 1)}[/]", highlight=False)
    print_costs(console, sample)
    if score is not None:
        console.print(Text(str(score)))
    if file:
        console.print(Text(f"saved to {file}"), soft_wrap=True)
    return 0


def add(commands: Commands) -> None:
    p = command(commands, "sample", _sample, "run a sampler, and show or watch what it makes")
    what = p.add_mutually_exclusive_group()
    what.add_argument("--problem", metavar="P", help="exact problem: samplers list --kind problems names them")
    what.add_argument(
        "--denoiser",
        metavar="NAME|hf:NAME|MODULE:ATTRIBUTE",
        help="model in the box (digits-gauss, digits-mdm, text-mdm, text-refusion); folder of safetensors or repository "
        "on the Hugging Face hub, corrected by arguments if need be: hf:NAME?attention=full&shift=1 (also mask_id, "
        "block_length, dtype, device, loader, tokenizer, revision, trust_remote_code; see samplers show-model); "
        "Denoiser of your own, or function that returns one "
        f"(default, if there is no --problem: {MODEL}; for samplers of other noise than masked --problem {PROBLEM})",
    )
    p.add_argument(
        "--sampler",
        metavar="NAME",
        help=a.SAMPLER_HELP.format("entropy_bound, d3pm_ancestral, dpmpp_2m, by the kind of noise"),
    )
    p.add_argument("--family", **FAMILY)
    p.add_argument(
        "--steps",
        type=a.whole,
        metavar="N",
        help="forward passes to spend (default: one per position; 20 for gaussian)",
    )
    p.add_argument(
        "--batch",
        type=a.whole,
        metavar="B",
        help=f"rows (default: {ROWS}, or 1 at temperature 0, where rows are alike); a problem scores {ENOUGH} or more",
    )
    p.add_argument("--seed", type=a.seed, default=0, metavar="S", help="seed of all random numbers (default 0)")
    p.add_argument(
        "--temperature",
        type=a.temperature,
        metavar="T",
        help="sampling temperature of tokens (default: 1 on a problem, so that the model's own distribution is drawn; "
        f"{TEXT['temperature']} on the text models in the box; otherwise the sampler's own)",
    )
    p.add_argument("--block-length", type=a.whole, metavar="N", help="positions per block, from left to right")
    p.add_argument(
        "--align",
        action=argparse.BooleanOptionalAction,
        help="blocks counted from position 0, or with --no-align from the end of the prompt (default: as the model's are)",
    )
    p.add_argument(
        "--window",
        metavar="NAME",
        help="block: the model is given the canvas up to the end of the present block. In place of blocks: 'sliding(W)', the "
        "first W masks are open; 'pipeline(W)', blocks of W that open at half; 'wedlm(W)', for causal models. Or that of a "
        "plug-in (default: none)",
    )
    p.add_argument(
        "--cache",
        metavar="SCHEME",
        help="KV cache, if the denoiser has one: prefix, dual, delayed, delayed(k), block; dsb "
        "under --window 'sliding(W)'",
    )
    p.add_argument(
        "--gen-length",
        type=a.whole,
        metavar="N",
        help=f"positions to fill after the prompt (default on the text models in the box: {TEXT['gen_length']})",
    )
    p.add_argument(
        "--cfg-scale", type=a.not_negative, default=0.0, metavar="W", help="guidance strength; needs a prompt"
    )
    p.add_argument(
        "--cfg-interval",
        type=a.interval,
        default=(0.0, 1.0),
        metavar="LOW,HIGH",
        help="noise levels (LOW, HIGH] at which guidance is applied and paid for (default 0,1)",
    )
    p.add_argument(
        "--top-k", type=a.whole_or_0, metavar="K", help="number of likeliest tokens to draw from (default 0: all)"
    )
    p.add_argument(
        "--top-p",
        type=a.share,
        metavar="P",
        help="probability that the tokens to draw from must hold together (default 1: all)",
    )
    p.add_argument(
        "--prompt", type=a.text, metavar="IDS", help="token ids such as '3 1 4'; or text, if the model is one of text"
    )
    p.add_argument(
        "--stop",
        type=a.text,
        action="append",
        default=[],
        metavar="IDS",
        help="token, or phrase of several tokens, after which a row ends; or a string, if the model is one of text; repeat it "
        "for several",
    )
    p.add_argument("--stop-rule", **a.STOP_RULE)
    p.add_argument("--forbid", type=a.text, metavar="IDS", help="tokens that are never drawn")
    p.add_argument(
        "--demote", type=a.text, metavar="IDS", help="tokens that are committed last, such as the end of a text"
    )
    p.add_argument("-o", "--option", help="option of the sampler; repeat it for several", **OPTION)
    p.add_argument("--watch", action="store_true", help="show each step, live")
    p.add_argument(
        "--fps",
        type=a.not_negative,
        default=8.0,
        metavar="X",
        help="most frames per second (default 8; 0: no waiting)",
    )
    p.add_argument("--frames", action="store_true", help="show each step, one frame below the other")
    p.add_argument("--show", type=a.whole, default=ROWS, metavar="K", help=f"rows to show (default {ROWS})")
    p.add_argument("--save", metavar="FILE.pt", help="file for tokens and counts, to be read by torch.load")
    p.add_argument("--json", **AS_JSON)
