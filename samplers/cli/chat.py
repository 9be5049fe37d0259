"""`samplers chat`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from ..errors import OptionError
from .arguments import Commands, command
from .generate import writer, writer_arguments
from .output import complain, make_console
from .sample import announce

if TYPE_CHECKING:
    from torch import Tensor

    from ..denoiser import TextTokenizer, TokenDenoiser
    from ..result import Sample

COMMANDS = "/reset begins anew, /quit ends"
MASK = "·"


class _Talk:
    """A conversation, and how it is given to the model: by the chat template, or as one text that goes on (raw)."""

    def __init__(self, tokenizer: TextTokenizer, system: str | None, raw: bool, room: int | None):
        self.tokenizer, self.system, self.raw, self.room = tokenizer, system, raw, room
        self.reset()

    def reset(self) -> None:
        self.turns: list[dict[str, str]] = []
        self.text = ""
        if self.system is not None:
            self.turns.append({"role": "system", "content": self.system})

    def asked(self, line: str) -> Tensor:
        """(n,) int64: the prompt with which the model answers a line."""
        if not self.raw:
            return self.tokenizer.chat([*self.turns, {"role": "user", "content": line}])
        ids = self.tokenizer.encode(self._with(line))
        # What a model has no room for is the beginning of a long text.
        return ids if self.room is None else ids[-max(self.room, 1) :]

    def answered(self, line: str, answer: str) -> None:
        """Keep a line and its answer."""
        if self.raw:
            self.text = self._with(line) + answer
        else:
            self.turns += [{"role": "user", "content": line}, {"role": "assistant", "content": answer.strip()}]

    def _with(self, line: str) -> str:
        return f"{self.text}\n{line}" if self.text else line


def _lines(console: Console, terminal: bool) -> Iterator[str]:
    """What the user types, or the lines of standard input; Ctrl-D and Ctrl-C at an empty line end it."""
    if not terminal:
        for line in sys.stdin:
            yield line.rstrip("\r\n")
        return
    while True:
        try:
            yield console.input("[bold cyan]> [/]")
        except (EOFError, KeyboardInterrupt):
            console.print()
            return


def _answer(
    denoiser: TokenDenoiser, sampler: str, prompt: Tensor, console: Console, live: bool, **arguments: Any
) -> Sample:
    """Run the sampler; on a terminal show the text as it is unmasked."""
    from rich.live import Live

    from ..driver import stream

    run = stream(denoiser, sampler, prompt=[prompt], **arguments)
    if not live:
        for _ in run:
            pass
        return run.result()
    assert denoiser.tokenizer is not None
    with Live(console=console, auto_refresh=False, transient=True) as shown:
        state: Any
        for state in run:
            row = state.x[0, len(prompt) : int(state.end[0])].cpu()
            text = Text(denoiser.tokenizer.decode(row, mask=MASK))
            text.highlight_regex(f"{MASK}+", "dim")
            shown.update(text, refresh=True)
    return run.result()


def _chat(args: argparse.Namespace) -> int:
    denoiser, sampler, arguments, note = writer(args)
    if denoiser.tokenizer is None:
        raise OptionError(f"{args.model!r} has no tokenizer (TokenDenoiser.tokenizer); chat needs a model of text")
    if args.raw and args.system is not None:
        raise OptionError("--system goes with a chat template; with --raw write it into the first line")
    gen_length, most = arguments.get("gen_length"), denoiser.max_length
    room = most - gen_length if most is not None and gen_length is not None else None
    talk = _Talk(denoiser.tokenizer, args.system, args.raw, room)
    if not args.raw:
        talk.asked("?")  # that there is no template is said before the first line
    console, terminal = make_console(), sys.stdin.isatty()
    costs = console if console.is_terminal else Console(stderr=True)
    if terminal:
        console.print(f"[dim]{denoiser.name} by {sampler}; {COMMANDS}[/]", highlight=False)
    announce(note)
    turn = 0
    for line in _lines(console, terminal):
        word = line.strip()
        if word == "/quit":
            break
        if word == "/reset":
            talk.reset()
        elif word.startswith("/"):
            complain(f"there is no command {word.split()[0]}: {COMMANDS}")
        elif word:
            try:
                out = _answer(
                    denoiser,
                    sampler,
                    talk.asked(line),
                    console,
                    console.is_terminal,
                    seed=args.seed,
                    first_row=turn,
                    **arguments,
                )
            except OptionError as error:  # such as a conversation that has become too long
                complain(f"{error}; {COMMANDS}")
                continue
            except KeyboardInterrupt:
                if not terminal:
                    raise
                console.print("[yellow]interrupted[/]; the line is forgotten", highlight=False)
                continue
            turn += 1
            talk.answered(line, out.text(0))
            console.print(Text(out.text(0) if args.raw else out.text(0).strip()), soft_wrap=True)
            count, nfe = len(out.generated[0]), int(out.nfe_rows[0])
            costs.print(
                f"[dim]{count} tokens in {nfe} forward passes, {count / max(nfe, 1):.3g} tokens per pass, "
                f"{out.seconds.total:.2f} s[/]",
                highlight=False,
                soft_wrap=True,
            )
    return 0


def add(commands: Commands) -> None:
    p = command(commands, "chat", _chat, "talk with a model of text, and watch its answers being unmasked")
    writer_arguments(p)
    p.add_argument("--system", metavar="TEXT", help="system message, the first of the conversation")
    p.add_argument(
        "--raw",
        action="store_true",
        help="no chat template: the model goes on with the text, for models that continue texts",
    )
