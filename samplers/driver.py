"""The driver: sample() and stream(), and everything that is the same for all samplers.

Guidance, temperature, blocks, stop rules, seeds, counting, timing and progress are here and nowhere else, so every sampler
has all of them without a line of its own.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

from . import ops, registry
from .canvas import PAD, Canvas, NoiseCanvas, TokenState, parse_stop, whole
from .denoiser import Counter, Denoiser, GaussianDenoiser, TokenDenoiser
from .errors import DenoiserError, FamilyError, OptionError, SamplersError
from .random import DRAW_TOKEN, Rng
from .sampler import Sampler, State

__all__ = ["Belief", "Believe", "NoiseBelieve", "Sample", "Seconds", "Stream", "sample", "stream"]


@dataclass(frozen=True)
class Seconds:
    """Wall-clock seconds of a run: inside the denoiser, and in everything else (sampler and driver)."""

    denoiser: float
    sampler: float

    @property
    def total(self) -> float:
        return self.denoiser + self.sampler


@dataclass(frozen=True, eq=False)
class Sample:
    """What a run produced, and what it cost.

    Attributes:
        x: (B, L) int64 tokens, PAD (-1) beyond a row's end; or (B, *shape) reals.
        nfe: forwards: calls of the model, whatever the batch. A guided step is one forward.
        row_evals: rows over all forwards; a guided step has two for each row.
        token_evals: positions over all forwards.
        head_rows: positions at which logits were asked for.
        nfe_rows: (B,) int64, forwards that each row took part in; what the row would cost alone.
        steps: steps of the driver, those that cost no forward included.
        seconds: split into denoiser and sampler.
        lengths: each row's own length, prompt included; None for reals.
        sampler, options, distribution, version: what made it.
        settings: the driver's arguments.
        trace: the states after each step, on request.
    """

    x: Tensor
    nfe: int
    row_evals: int
    token_evals: int
    head_rows: int
    nfe_rows: Tensor
    steps: int
    seconds: Seconds
    lengths: Tensor | None
    sampler: str
    options: dict[str, Any]
    distribution: str
    version: str
    settings: dict[str, Any] = field(default_factory=dict)
    trace: tuple[State, ...] | None = None

    def __repr__(self) -> str:
        return (
            f"<Sample {tuple(self.x.shape)} by {self.sampler}: nfe {self.nfe}, "
            f"{float(self.nfe_rows.double().mean()):.4g} a row, {self.seconds.total:.3g} s>"
        )


@dataclass(frozen=True)
class Belief:
    """What the model thinks of the positions that were asked for; elsewhere the values that never win.

    Attributes:
        token: (B, L) int64, the token drawn (or best, at temperature 0); the mask id where not asked.
        confidence: (B, L) float32, the probability of `token`; -inf where not asked.
        margin: (B, L) float32, the best probability less the second best; -inf where not asked.
        entropy: (B, L) float32, nats; +inf where not asked.
        lse: (B, L) float32, log sum exp of the logits; -inf where not asked.
    Those not named in `want` are None.
    """

    token: Tensor
    confidence: Tensor | None = None
    margin: Tensor | None = None
    entropy: Tensor | None = None
    lse: Tensor | None = None

    def __getattribute__(self, name: str) -> Any:
        value = object.__getattribute__(self, name)
        if value is None and name in _ELSEWHERE:
            raise SamplersError(f"belief.{name} was not asked for: believe(state, want={name!r})")
        return value


_ELSEWHERE = {"confidence": -torch.inf, "margin": -torch.inf, "entropy": torch.inf, "lse": -torch.inf}
_STATUS = {
    1: "a NaN or +inf among its logits",
    2: "only -inf logits: no token is possible",
    3: "a row of logits that is not there",
}


class _Asked:
    """What both kinds of `believe` keep: the counter, each row's forwards, and what was found wrong with an answer.

    On a CPU an answer is looked at when it comes. On a device a look would wait for it in every step: the first thing
    found wrong stays there, in one small tensor, until the driver reads something back anyway.
    """

    def __init__(self, denoiser: Denoiser, batch: int, sampler: str):
        self.counter = Counter(denoiser)
        self.sampler = sampler
        self.nfe_rows = torch.zeros(batch, dtype=torch.int64, device=denoiser.device)  # (B,)
        self.looks_at_once = denoiser.device.type == "cpu"
        self._finding = torch.zeros(4, dtype=torch.int64, device=denoiser.device)  # status, row, position, forward

    def _found(self, status: Tensor, row: Tensor, position: Tensor) -> None:
        """Take note of the statuses of an answer, 0 where it is fine; with each its row and position. All (N,)."""
        if self.looks_at_once and not bool(status.any()):
            return
        first = status.ne(0).to(torch.uint8).argmax().view(1)  # the first of equals
        what = [x.index_select(0, first).to(torch.int64) for x in (status, row, position)]
        finding = torch.cat([*what, torch.full_like(what[0], self.counter.nfe)])  # (4,)
        self._finding = torch.where(self._finding[0] == 0, finding, self._finding)
        if self.looks_at_once:
            self.check()

    def check(self) -> None:
        """DenoiserError if an answer of the model was bad; called before a result is handed out."""
        self._judge(*self._finding.tolist())

    def _judge(self, status: int, row: int, position: int, forward: int) -> None:
        if status:
            raise DenoiserError(
                f"denoiser {self.counter.denoiser.name!r} gave row {row}{self._what(status, position)} "
                f"(forward {forward}, sampler {self.sampler!r})"
            )

    def _what(self, status: int, position: int) -> str:
        raise NotImplementedError


class Believe(_Asked):
    """What a token sampler asks the model through: `believe(state, rows, want=...)` -> Belief.

    Runs the model on the rows of the batch that need it and its head on the positions that do, applies guidance and
    temperature, draws with the run's own randomness, and counts. One fused op makes token, confidence, margin and entropy.
    """

    def __init__(
        self,
        denoiser: TokenDenoiser,
        batch: int,
        *,
        temperature: float,
        cfg_scale: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        sampler: str = "",
    ):
        super().__init__(denoiser, batch, sampler)
        self.denoiser, self.temperature, self.cfg_scale = denoiser, temperature, cfg_scale
        self.truncation = {"top_k": top_k, "top_p": top_p} if top_k or top_p < 1 else {}
        if denoiser.head is not None and len(denoiser.head.weight) != denoiser.vocab_size:
            raise DenoiserError(
                f"denoiser {denoiser.name!r} has vocab_size {denoiser.vocab_size} and a head of "
                f"{len(denoiser.head.weight)} ids; they must agree"
            )
        self._forbid = torch.tensor([denoiser.mask_id], device=denoiser.device)

    def __call__(
        self,
        state: TokenState,
        rows: Tensor | None = None,
        *,
        want: str | tuple[str, ...] = (),
        t: Tensor | None = None,
        confidence_temperature: float = 1.0,
    ) -> Belief:
        """Ask for `rows`, (B, L) bool (default: state.open). Rows of the batch without a position cost nothing.

        Args:
            want: any of confidence, margin, entropy, lse; no other is computed.
            t: (B,) the noise level for a time-conditioned model; default: the share still masked.
            confidence_temperature: of the softmax behind confidence, margin, entropy and lse. The draw has its own.
        """
        canvas, denoiser = state.canvas, self.denoiser
        rows = state.open if rows is None else rows & canvas.fill
        want = (want,) if isinstance(want, str) else tuple(want)
        made: dict[str, Tensor] = {"token": torch.full_like(state.x, canvas.mask_id)}
        made |= {name: torch.full(rows.shape, _ELSEWHERE[name], device=rows.device) for name in want}
        if not denoiser.time_conditioned:
            t = None
        elif t is None:
            t = state.noise_level
        # Which rows run, by length: the driver's one look at the device in a step; nothing below waits again.
        needed = rows.sum(1)  # (B,)
        active = needed > 0
        counts = torch.zeros(len(canvas.group_lengths), 2, dtype=torch.int64, device=rows.device)
        assert canvas.group is not None
        counts.index_add_(0, canvas.group, torch.stack([active.to(torch.int64), needed], 1))
        look = torch.cat([self._finding, counts.flatten()]).tolist()
        self._judge(*look[:4])  # of the forwards before this one, where they were not looked at at once
        for g, (n_rows, n_needed) in enumerate(zip(look[4::2], look[5::2])):
            if n_rows:
                who = torch.nonzero_static(active & (canvas.group == g), size=n_rows).squeeze(1)  # (A,)
                self._forward(
                    state, rows, who, n_needed, canvas.group_lengths[g], t, want, made, confidence_temperature
                )
        return Belief(**made)

    def _forward(self, state, rows, who, needed, length, t, want, made, confidence_temperature) -> None:
        """One forward of the rows `who`, all of one length, and what the op makes of it, written into `made`."""
        canvas = state.canvas
        x, asked = state.x[who, :length], rows[who, :length]  # (A, length)
        time_of = t[who] if t is not None else None
        guided = self.cfg_scale != 0 and canvas.has_prompt
        if guided:
            # Unsupervised guidance (Nie et al. 2024, SMDM): the unconditional rows are the same with the prompt masked.
            blind = torch.where(canvas.prompt_mask[who, :length], canvas.mask_id, x)
            x, asked_of = torch.cat([x, blind]), torch.cat([asked, asked])
            time_of = torch.cat([time_of, time_of]) if time_of is not None else None
        else:
            asked_of = asked
        flat = torch.nonzero_static(asked, size=needed)  # (N, 2): known size, so no wait
        row, position = who[flat[:, 0]], flat[:, 1]
        # What top-k and top-p cut is known when all logits are, so they need the logits stored.
        unstored = self.denoiser.head is not None and not self.truncation
        made_of = self._with_head if unstored else self._with_logits
        out = made_of(
            x,
            time_of,
            asked_of,
            needed,
            guided,
            uniform=state.rng.at(row, position, state.step, DRAW_TOKEN) if self.temperature > 0 else None,
            temperature=self.temperature,
            confidence_temperature=confidence_temperature,
            forbid=self._forbid,
            want=want,
            **self.truncation,
        )
        self.nfe_rows[who] += 1
        self._found(out.status, row, position)
        # A row that is not fine has token -1, which no model may see; until it is looked at, it stays undecided.
        token = out.token if self.looks_at_once else torch.where(out.status == 0, out.token, canvas.mask_id)
        made["token"][row, position] = token
        for name in want:
            made[name][row, position] = getattr(out, name)

    def _with_logits(self, x, t, asked, needed, guided, **kw) -> ops.MaskedSoftmax:
        """A forward and what the fused op makes of its logits. Guided: the second half of x is the unconditional one."""
        logits, index = self.counter.tokens(x, t, asked, (1 + guided) * needed)
        if guided:
            index = torch.arange(2 * needed, device=logits.device) if index is None else index
            kw |= {"guidance": logits, "guidance_index": index[needed:], "cfg_scale": self.cfg_scale}
            index = index[:needed]
        return ops.masked_softmax(logits, index, **kw)

    def _with_head(self, x, t, asked, needed, guided, **kw) -> ops.MaskedSoftmax:
        """The same of hidden rows and the head: logits are never stored."""
        head = self.denoiser.head
        assert head is not None
        hidden = self.counter.hidden(x, t, asked, (1 + guided) * needed)
        if guided:
            kw |= {"guidance": hidden[needed:], "cfg_scale": self.cfg_scale}
            hidden = hidden[:needed]
        return self.counter.head(
            lambda: ops.headless_softmax(hidden, head.weight, bias=head.bias, softcap=head.softcap, **kw)
        )

    def _what(self, status: int, position: int) -> str:
        return f", position {position} {_STATUS[status]}"


class NoiseBelieve(_Asked):
    """What a Gaussian sampler asks the model through: `believe(x, t)` -> the denoised x_0, (B, *shape)."""

    def __init__(self, denoiser: GaussianDenoiser, batch: int, *, sampler: str = ""):
        super().__init__(denoiser, batch, sampler)
        self.denoiser = denoiser

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """The denoised x_0 of every row at the schedule's time t."""
        out = self.counter.gaussian(x, torch.full((len(x),), t, dtype=torch.float64, device=x.device))
        self.nfe_rows += 1
        rows = torch.arange(len(x), device=x.device)
        self._found(~torch.isfinite(out).flatten(1).all(1), rows, rows)
        return out

    def _what(self, status: int, position: int) -> str:
        return " a value that is not finite"


@dataclass(eq=False)
class Stream(Iterator[State]):
    """A run that is looked at between its steps; made by stream().

    Iterating gives the state before the first step and after each one. At any time there are `state`, `steps` (taken)
    and `nfe` (forwards so far); `result()` makes a Sample of what there is.
    """

    sampler: Sampler
    believe: Believe | NoiseBelieve
    state: State
    limit: int
    settings: dict[str, Any]
    steps: int = 0
    wall: float = 0.0
    bar: _Bar | None = None
    begun: bool = False

    @property
    def nfe(self) -> int:
        """Forwards so far."""
        return self.believe.counter.nfe

    def __next__(self) -> State:
        if not self.begun:
            self.begun = True
            return self.state
        if self.state.finished:
            self.close()
            self.believe.check()
            raise StopIteration
        self.advance()
        if self.bar:
            self.bar.moved(self)
        return self.state

    def close(self) -> None:
        """Take the progress bar down; for a loop that is left early. Nothing else is open."""
        if self.bar:
            self.bar.stop()

    def advance(self) -> None:
        """Take one step."""
        start = time.perf_counter()
        with torch.no_grad():
            self.state = self.sampler.step(self.believe, self.state)
        self.steps += 1
        self.wall += time.perf_counter() - start
        if self.steps > self.limit:
            self.believe.check()
            raise SamplersError(
                f"sampler {self.sampler.name!r} is not done after {self.steps} steps: a step must commit at least one "
                "position in the last of its block's steps, or move on"
            )

    def result(self, trace: list[State] | None = None) -> Sample:
        """What the run has made so far, and what it has cost. A row that is not done still holds mask ids."""
        self.believe.check()
        counter, item = self.believe.counter, registry.entry_of(type(self.sampler))
        inside = counter.seconds
        x, lengths = self.state.x, None
        if isinstance(self.state, TokenState):
            lengths = self.state.end
            position = torch.arange(x.shape[1], device=x.device)
            x = torch.where(position < lengths[:, None], x, PAD)
        return Sample(
            x=x,
            nfe=counter.nfe,
            row_evals=counter.row_evals,
            token_evals=counter.token_evals,
            head_rows=counter.head_rows,
            nfe_rows=self.believe.nfe_rows,
            steps=self.steps,
            seconds=Seconds(inside, max(self.wall - inside, 0.0)),
            lengths=lengths,
            sampler=self.sampler.name,
            options=self.sampler.values(),
            distribution=item[0],
            version=item[1],
            settings=self.settings,
            trace=tuple(trace) if trace is not None else None,
        )


def _number(name: str, value: Any, low: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not low <= value < float("inf"):
        raise OptionError(f"{name} must be a number of {low:g} or more, not {value!r}")
    return float(value)


def _open(denoiser: Any, sampler: Any, options: dict[str, Any], args: dict[str, Any]) -> Stream:
    if isinstance(sampler, str):
        sampler = registry.load(sampler).make(**options)
    elif not isinstance(sampler, Sampler):
        raise OptionError(f"sampler must be a name or a Sampler made by samplers.create(), not {sampler!r}")
    elif options:
        raise OptionError(
            f"options {', '.join(map(repr, options))} were given beside a sampler that is made already; "
            "give them to samplers.create(), or name the sampler"
        )
    if not isinstance(denoiser, Denoiser):
        raise OptionError(
            f"denoiser is {type(denoiser).__name__}, not a Denoiser: wrap a plain callable with "
            "samplers.TokenDenoiser.wrap(fn, vocab_size=..., mask_id=...) or samplers.GaussianDenoiser.wrap(fn, shape=...)"
        )
    if denoiser.family != sampler.family:
        others = registry.names("*", denoiser.family)
        hint = f"; samplers of that family: {', '.join(others)}" if others else ""
        raise FamilyError(
            f"sampler {sampler.name!r} is of the {sampler.family} family and denoiser {denoiser.name!r} of the "
            f"{denoiser.family} family{hint}"
        )
    # numpy's integers, and whatever else is one, become Python's here; everything below may ask for int.
    args |= {k: int(v) for k, v in args.items() if isinstance(v, Integral) and not isinstance(v, (bool, int))}
    if args["steps"] is not None:
        whole("steps", args["steps"])
    settings = {k: v for k, v in args.items() if k not in ("prompt",)}
    if isinstance(denoiser, GaussianDenoiser):
        return _open_gaussian(denoiser, sampler, args, settings)
    if isinstance(denoiser, TokenDenoiser):
        return _open_tokens(denoiser, sampler, args, settings)
    raise FamilyError(f"denoiser {denoiser.name!r} of the {denoiser.family} family: no driver for that family yet")


def _open_tokens(denoiser: TokenDenoiser, sampler: Sampler, args: dict[str, Any], settings: dict[str, Any]) -> Stream:
    temperature = args["temperature"]
    temperature = sampler.default_temperature if temperature is None else _number("temperature", temperature, 0.0)
    cfg_scale = _number("cfg_scale", args["cfg_scale"], 0.0)
    top_k, top_p = args["top_k"], _number("top_p", args["top_p"], 0.0)
    if top_k != 0:
        whole("top_k", top_k)
    if not 0 < top_p <= 1:
        raise OptionError(f"top_p must be a number above 0, up to 1 (all), not {args['top_p']!r}")
    if args["cache"] is not None and args["cache"] not in denoiser.caches:
        have = ", ".join(denoiser.caches) or "none"
        raise OptionError(f"cache={args['cache']!r}: denoiser {denoiser.name!r} supports {have}; use cache=None")
    prompt = args["prompt"]
    if isinstance(prompt, Canvas):
        if args["gen_length"] is not None:
            raise OptionError("gen_length was given beside a Canvas, which says itself what to fill")
        if args["batch"] not in (1, len(prompt.x)):
            raise OptionError(f"batch={args['batch']} was given beside a Canvas of {len(prompt.x)} rows")
        canvas = prompt
    else:
        canvas = Canvas.of(denoiser, prompt, args["gen_length"], args["batch"])
    batch = len(canvas.x)
    canvas = canvas.prepared(
        block_length=args["block_length"],
        steps=args["steps"],
        stop=parse_stop(args["stop"]),
        rng=Rng.of(args["seed"], batch, args["first_row"], denoiser.device),
    )
    knobs = {"temperature": temperature, "cfg_scale": cfg_scale, "top_k": top_k, "top_p": top_p}
    believe = Believe(denoiser, batch, **knobs, sampler=sampler.name)
    state = sampler.init(canvas)
    assert canvas.block_steps is not None
    # Every block may take its steps, and then one more a position: more than any sampler that moves can need.
    limit = int(canvas.block_steps.sum(1).max()) + canvas.x.shape[1] + 16
    settings |= {"batch": batch, **knobs}
    return Stream(sampler, believe, state, limit, settings)


def _open_gaussian(
    denoiser: GaussianDenoiser, sampler: Sampler, args: dict[str, Any], settings: dict[str, Any]
) -> Stream:
    alone = {"prompt", "gen_length", "block_length", "cache", "temperature", "stop"}
    for name in sorted(alone):
        if args[name] is not None:
            raise OptionError(f"{name} is for token samplers; {sampler.name!r} is of the gaussian family")
    if args["cfg_scale"]:
        raise OptionError(
            f"cfg_scale masks a prompt, and {sampler.name!r} is of the gaussian family, which has none; "
            "guide the callable that you wrap instead"
        )
    if args["top_k"] != 0 or args["top_p"] != 1:
        raise OptionError(f"top_k and top_p are for token samplers; {sampler.name!r} is of the gaussian family")
    batch, steps = whole("batch", args["batch"]), args["steps"]
    canvas = NoiseCanvas(
        denoiser,
        20 if steps is None else steps,
        Rng.of(args["seed"], batch, args["first_row"], denoiser.device),
    )
    believe = NoiseBelieve(denoiser, batch, sampler=sampler.name)
    settings = {k: v for k, v in settings.items() if k not in alone | {"cfg_scale", "top_k", "top_p"}} | {
        "steps": canvas.steps
    }
    return Stream(sampler, believe, sampler.init(canvas), canvas.steps + 16, settings)


def stream(
    denoiser: Denoiser,
    sampler: str | Sampler,
    *,
    prompt: Any = None,
    gen_length: int | None = None,
    batch: int = 1,
    seed: Any = 0,
    first_row: int = 0,
    steps: int | None = None,
    block_length: int | None = None,
    cache: str | None = None,
    cfg_scale: float = 0.0,
    temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: Any = None,
    trace: bool = False,
    progress: bool = False,
    **options: Any,
) -> Stream:
    """As `sample`, yielding the state before the first step and after each one: live views, early exit.

    Arguments are checked when it is called, not at the first step. Stop iterating whenever you like: nothing is left
    open. `trace` is taken for the sake of one signature: the states that it would keep are those that are yielded.
    `stream(...).result()` is the Sample.
    """
    args = locals()
    for name in ("denoiser", "sampler", "options", "trace", "progress"):
        args.pop(name)
    run = _open(denoiser, sampler, options, args)
    run.bar = _Bar(run) if progress else None
    return run


def sample(
    denoiser: Denoiser,
    sampler: str | Sampler,
    *,
    prompt: Any = None,
    gen_length: int | None = None,
    batch: int = 1,
    seed: Any = 0,
    first_row: int = 0,
    steps: int | None = None,
    block_length: int | None = None,
    cache: str | None = None,
    cfg_scale: float = 0.0,
    temperature: float | None = None,
    top_k: int = 0,
    top_p: float = 1.0,
    stop: Any = None,
    trace: bool = False,
    progress: bool = False,
    **options: Any,
) -> Sample:
    """Run a sampler against a denoiser.

    Args:
        denoiser: a Denoiser; see TokenDenoiser.wrap and GaussianDenoiser.wrap.
        sampler: a name, with `options`; or a Sampler made by create().
        prompt: token ids: (P,), (B, P), or a list of B rows of any lengths; or a Canvas, for infilling.
        gen_length: positions to fill behind each prompt; None: what is left of a denoiser of fixed length.
        batch: rows, where the prompt does not say.
        seed: an integer, whose rows are numbered from `first_row`; or one integer a row.
            Row i of a batch is what `sample(..., batch=1, first_row=i)` gives.
        steps: forwards to spend: exact for samplers of fixed count, a cap for adaptive ones (None: one a position).
            For continuous samplers the number of function evaluations (None: 20).
        block_length: positions a block, filled from left to right; None: one block.
        cache: a KV cache scheme that the denoiser supports.
        cfg_scale: w of (1 + w) l(x | prompt) - w l(x | prompt masked), on logits; 0 is off.
        temperature: of the token draw; 0 takes the best token; None: the sampler's own default.
        top_k: draw from the k likeliest tokens only; 0: from all.
        top_p: and of these from the fewest that hold this share of the probability at `temperature`; 1: from all.
            What is cut off has no probability: confidence and entropy are those of what is left.
        stop: a token id, a phrase, or a list of phrases. A row ends behind the first that it holds.
        trace: keep every state, in Sample.trace.
        progress: show a progress bar.

    Returns:
        Sample. Raises OptionError, UnknownNameError, FamilyError or DenoiserError, each saying what and where.
    """
    args = locals()
    run = stream(**args.pop("options"), **args)
    kept: list[State] | None = [] if trace else None
    try:
        for state in run:
            if kept is not None:
                kept.append(state)
    finally:
        run.close()
    return run.result(kept)


class _Bar:
    """A rich progress bar over committed positions or evaluations."""

    def __init__(self, run: Stream):
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        start = run.state
        self.total = start.canvas.filled if isinstance(start, TokenState) else run.settings["steps"]
        self.progress = Progress(
            TextColumn("[bold]{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("positions" if isinstance(start, TokenState) else "evaluations"),
            TimeRemainingColumn(),
        )
        self.task = self.progress.add_task(run.sampler.name, total=self.total)
        self.progress.start()

    def moved(self, run: Stream) -> None:
        state = run.state
        done = self.total - int(state.masked.sum()) if isinstance(state, TokenState) else run.nfe
        self.progress.update(self.task, completed=done)

    def stop(self) -> None:
        self.progress.stop()
