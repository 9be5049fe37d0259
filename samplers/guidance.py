"""Guidance of tokens: what sample(guide=) takes, and how the answers of a run are moved.

    Unconditional   log p is proportional to gamma log p_c + (1 - gamma) log p_u, with p_u of the same model without the
                    prompt (what cfg_scale = gamma - 1 does), with another prompt, or of another model
    Adaptive        the same, p_u being the model's own answer with the tokens that it is least sure of masked again
    Classifier      log p(x_i = v) + gamma log p(y | x with v at position i): exact, or to first order by a gradient

Under masked noise all three act on the distribution of the clean token at a masked position. Under uniform noise the
token that is drawn next is not the clean one: with a sampler that has Facts(posterior=True), Unconditional and
Classifier act on p(x_s | x_t), the distribution of the token after the step, as the papers have it (Schiff et al.
2024, arXiv 2412.10193: D-CFG and D-CBG; Nisonoff et al. 2024, arXiv 2406.01572: predictor guidance,
Classifier(rates=True)). With any other sampler Unconditional acts on the clean token, as cfg_scale does, and
Classifier is refused.

What somebody configures is a frozen dataclass here; what a run makes of it, with counts of its own, is a Guiding.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from . import ops
from .canvas import Layout, rows_of_each
from .checks import STRONGEST, check_tokens, flag, integer, number, shown, token_rows
from .denoiser import BlockDenoiser, Counter, TokenDenoiser
from .errors import OptionError
from .feeds.plain import PlainFeed
from .ops.masked_softmax import guide
from .prediction import Logits
from .sampler import Sampler
from .state import TokenState
from .text import prompt_rows

if TYPE_CHECKING:
    from .feeds import Query

__all__ = ["Adaptive", "Classifier", "Guide", "Guiding", "Unconditional"]

Ask = Callable[
    [TokenState, "Query"], Tensor
]  # a forward pass of the run's own model: (n, V) logits of what the query asks
Onward = Callable[
    [Logits], Logits
]  # from the clean token's logits to the log-probabilities of the token after the step

BAD, NOTHING = 5, 6  # statuses of an answer; see predictor.py


class Guiding:
    """What guides one run. Base of the ways to do it.

    Attributes:
        scale: what the feed is told; not 0 if queries are to be guided.
        second: if its forward passes are doubled, what the second half is given: the state -> x (B, L)
            int64, and the positions (B, L) bool that hold no information there. None: it runs no doubled passes, or
            the same without the prompt.
        fused: whether the predictor's own guidance of doubled passes does it all, so that logits need not be stored.
        posterior: whether it acts on the token after the step, through Predict.steered, and not on the clean token.
        always: whether it guides without a prompt as well.
    """

    scale: float = 1.0
    second: Callable[[TokenState], tuple[Tensor, Tensor]] | None = None
    fused: bool = False
    posterior: bool = False
    always: bool = True
    had: list[Tensor] | None = None  # what was said in the present step, if steps are begun again
    read: int = 0  # how much of that this attempt at the step has read

    def once(self, ask: Callable[[], Tensor]) -> Tensor:
        """What `ask` returns; in a step that is begun again what it returned before. (A step asks the same in the same order.)"""
        if self.had is None:
            return ask()
        if self.read == len(self.had):
            self.had.append(ask())
        self.read += 1
        return self.had[self.read - 1]

    @property
    def calls(self) -> int:
        """Calls of what guides, beside the run's own model."""
        return 0

    @property
    def rows(self) -> int:
        """Rows over all these calls."""
        return 0

    def logits(self, state: TokenState, query: Query, ask: Ask) -> tuple[Tensor, Tensor | None]:
        """(count, V) float32, the guided logits of the clean tokens of a query; the statuses (count,), or None."""
        raise NotImplementedError

    def steered(
        self, state: TokenState, query: Query, ask: Ask, onward: Onward, before: Tensor, after: Tensor
    ) -> tuple[Logits, Tensor | None]:
        """The guided log-probabilities of the tokens after the step, and statuses as of `logits`.

        Args:
            ask: as of `logits`; forbidden tokens are at -inf.
            before, after: (B, 1) float64, the noise levels before and after the step.
        """
        raise NotImplementedError


class _Pair(Guiding):
    """Two answers, of which one is moved away from: logits u + gamma (c - u)."""

    def __init__(self, gamma: float, posterior: bool):
        self.scale, self.posterior = gamma - 1, posterior

    def pair(self, state: TokenState, query: Query, ask: Ask) -> tuple[Tensor, Tensor]:
        """(count, V) each: the conditional logits and the others."""
        raise NotImplementedError

    def logits(self, state: TokenState, query: Query, ask: Ask) -> tuple[Tensor, Tensor | None]:
        c, u = self.pair(state, query, ask)
        return guide(c.float(), u.float(), self.scale), None

    def steered(
        self, state: TokenState, query: Query, ask: Ask, onward: Onward, before: Tensor, after: Tensor
    ) -> tuple[Logits, Tensor | None]:
        c, u = (onward(Logits(query.row, query.position, v.float())) for v in self.pair(state, query, ask))
        return dataclasses.replace(c, value=guide(c.value, u.value, self.scale)), None


class _SecondCanvas(_Pair):
    """The same model in the same forward pass, whose second half has another prompt, or none."""

    always = False

    def __init__(self, gamma: float, posterior: bool, prompt: Tensor | None, known: Tensor | None):
        super().__init__(gamma, posterior)
        self.fused = not posterior
        self._prompt, self._known = prompt, known  # (B, L) int64 and bool: the other prompt, and where it has a token
        if prompt is not None:
            self.second = self._other

    def _other(self, state: TokenState) -> tuple[Tensor, Tensor]:
        assert self._prompt is not None and self._known is not None
        copies = len(state.x) // len(self._prompt)
        prompt, known = (p.repeat_interleave(copies, 0) for p in (self._prompt, self._known))
        return torch.where(known, prompt, state.x), state.canvas.prompt_mask & ~known

    def pair(self, state: TokenState, query: Query, ask: Ask) -> tuple[Tensor, Tensor]:
        both = ask(state, query)
        return both[: query.count], both[query.count :]


class _SecondModel(_Pair):
    """Another model, given the same canvas in a forward pass of its own."""

    def __init__(self, gamma: float, posterior: bool, feed: PlainFeed):
        super().__init__(gamma, posterior)
        self.counter = feed.counter
        self._feeds = {len(feed.nfe_rows): feed}  # by the rows of the batch: a run may have copies of its rows
        self._rows = len(feed.nfe_rows)

    @property
    def calls(self) -> int:
        return self.counter.nfe

    @property
    def rows(self) -> int:
        return self.counter.row_evals

    def pair(self, state: TokenState, query: Query, ask: Ask) -> tuple[Tensor, Tensor]:
        query = dataclasses.replace(query, guided=False)
        if query.batch not in self._feeds:
            self._feeds[query.batch] = self._feeds[self._rows].copies(query.batch // self._rows)
        feed = self._feeds[query.batch]
        head = feed.denoiser.head

        def other() -> Tensor:
            packed = feed.feed(state, query).packed()
            return packed if head is None else self.counter.head(lambda: head.logits(packed))

        return ask(state, query), self.once(other)


class _Remasked(_Pair):
    """The same model, given the canvas with the tokens masked that it is least sure of; see Adaptive."""

    def __init__(self, gamma: float, share: float):
        super().__init__(gamma, posterior=False)
        self.share = share

    def pair(self, state: TokenState, query: Query, ask: Ask) -> tuple[Tensor, Tensor]:
        canvas, mask = state.canvas, torch.ones_like(query.mask)
        everywhere = dataclasses.replace(query, mask=mask, count=mask.numel(), wide=mask.numel(), guided=False)
        said = ask(state, everywhere)  # (A length, V)
        x = query.of_canvas(state.x)
        filled = query.of_canvas(canvas.fill) & (x != canvas.mask_id)  # (A, length)
        own = said.float()
        if canvas.mask_id is not None and canvas.mask_id < own.shape[1]:
            own = own.clone()
            own[:, canvas.mask_id] = -math.inf
        token = torch.where(filled, x, 0).flatten()[:, None]
        sure = own.log_softmax(1).gather(1, token).view_as(x)
        k = torch.floor(self.share * filled.sum(1).double() + 1e-9).to(torch.int64)  # (A,)
        again = torch.zeros_like(state.open)
        chosen = ops.select(sure, filled, k=k, lowest=True).chosen
        if query.rows is None:
            again[:, : query.length] = chosen
        else:
            again[query.rows, : query.length] = chosen
        without = dataclasses.replace(state, x=state.x.masked_fill(again, canvas.mask_id or 0))
        return said[query.flat], ask(without, dataclasses.replace(query, guided=False))


class _Judge(Guiding):
    """What a Classifier does in a run."""

    def __init__(self, guide: Classifier, denoiser: TokenDenoiser, posterior: bool):
        self.guide, self.posterior = guide, posterior
        self._calls = self._rows = 0
        self.vocab, self.mask_id = denoiser.vocab_size, denoiser.mask_id
        ids = [v for v in range(self.vocab) if v != self.mask_id]
        self.ids = torch.tensor(ids, dtype=torch.int64, device=denoiser.device)

    @property
    def calls(self) -> int:
        return self._calls

    @property
    def rows(self) -> int:
        return self._rows

    def logits(self, state: TokenState, query: Query, ask: Ask) -> tuple[Tensor, Tensor | None]:
        # Before the model is asked, so that a wrong function costs no forward pass.
        evidence = self.once(lambda: self.evidence(state, query, state.noise_level))
        value = ask(state, dataclasses.replace(query, guided=False)).float()
        if self.mask_id is not None and self.mask_id < self.vocab:  # whatever the model says of it: it is no token
            value = value.clone()
            value[:, self.mask_id] = -math.inf
        return _added(value, self.guide.gamma, evidence)

    def steered(
        self, state: TokenState, query: Query, ask: Ask, onward: Onward, before: Tensor, after: Tensor
    ) -> tuple[Logits, Tensor | None]:
        level = before if self.guide.rates else after  # rates are those of the present time
        evidence = self.once(lambda: self.evidence(state, query, level.expand(len(state.x), 1)[:, 0]))
        plain = dataclasses.replace(query, guided=False)
        new = onward(Logits(query.row, query.position, ask(state, plain).float()))
        if not self.guide.rates:
            value, status = _added(new.value, self.guide.gamma, evidence)
            return dataclasses.replace(new, value=value), status
        own = state.x[query.row, query.position][:, None]  # (n, 1)
        change = torch.where(new.value == -math.inf, 0.0, evidence - evidence.gather(1, own))
        jump = torch.exp(new.value.double() + self.guide.gamma * change).scatter(1, own, 0.0)
        value = jump.scatter(1, own, (1 - jump.sum(1, keepdim=True)).clamp_min(0.0)).log().float()
        return dataclasses.replace(new, value=value), _statuses(change, (value > -math.inf).any(1), new.value)

    def evidence(self, state: TokenState, query: Query, level: Tensor) -> Tensor:
        """(count, V) float64: log p(y | x with each token at the asked position), up to a number per position.

        Args:
            level: (B,) float64, the noise level that the function is told.
        """
        x, t = query.of_rows(state.x), query.of_rows(level)
        row = torch.div(query.flat, query.length, rounding_mode="floor")  # (count,), among those of the query
        by_length = rows_of_each(state.canvas.lengths[i] for i in query.members)
        if len(by_length) == 1:
            (length,) = by_length
            return self._of_rows(x[:, :length], t, row, query.position)
        out = torch.zeros(query.count, self.vocab, dtype=torch.float64, device=x.device)
        for length, members in by_length.items():  # rows that end at the same position
            which = torch.tensor(members, dtype=torch.int64, device=x.device)
            number = torch.full_like(x[:, 0], -1).index_copy(0, which, torch.arange(len(which), device=x.device))
            here = (number[row] >= 0).nonzero().squeeze(1)
            part = self._of_rows(x[which, :length], t[which], number[row[here]], query.position[here])
            out[here] = part
        return out

    def _of_rows(self, x: Tensor, t: Tensor, row: Tensor, position: Tensor) -> Tensor:
        """(n, V) float64, of n positions. x: (A, L), t: (A,); row, position: (n,)."""
        if self.guide.exact is not True:
            return self._by_gradient(x, t, row, position)
        n, size = len(row), len(self.ids)
        out = torch.zeros(n, self.vocab, dtype=torch.float64, device=x.device)
        step = max(1, self.guide.chunk // size)
        for first in range(0, n, step):
            r, p = row[first : first + step], position[first : first + step]
            tried = x[r][:, None].repeat(1, size, 1)  # (m, size, L)
            tried.scatter_(2, p[:, None, None].expand(-1, size, 1), self.ids[None, :, None].expand(len(r), -1, 1))
            rows, times = tried.flatten(0, 1), t[r].repeat_interleave(size)
            parts = zip(rows.split(self.guide.chunk), times.split(self.guide.chunk))
            said = torch.cat([self._asked(*part).detach().double() for part in parts])  # (m size,)
            out[first : first + step, self.ids] = said.view(-1, size)
        return out

    def _by_gradient(self, x: Tensor, t: Tensor, row: Tensor, position: Tensor) -> Tensor:
        """The first-order change of log p(y | x) if the token at a position is replaced."""
        width = max(self.vocab, 0 if self.mask_id is None else self.mask_id + 1)
        with torch.enable_grad():
            soft = torch.nn.functional.one_hot(x, width).float().requires_grad_()  # (A, L, W)
            said = self._asked(soft, t)
            if not said.requires_grad:
                raise OptionError(
                    f"guide: {self.guide.called} cannot be differentiated by its first argument, which exact='gradient' needs: "
                    "it takes (N, L, W) floats, one-hot tokens, and must compute log p(y | x) from them in torch"
                )
            (slope,) = torch.autograd.grad(said.sum(), soft)
        here = slope[row, position].double()  # (n, W)
        change = here - here.gather(1, x[row, position][:, None])
        return change.clamp(max=self.guide.limit)[:, : self.vocab]

    def _asked(self, x: Tensor, t: Tensor) -> Tensor:
        """(N,) floats: what the function says, checked for its shape."""
        self._calls += 1
        self._rows += len(x)
        said = self.guide.fn(x, t)
        if not isinstance(said, Tensor) or said.shape != (len(x),) or not said.is_floating_point():
            got = f"{said.dtype} of shape {tuple(said.shape)}" if isinstance(said, Tensor) else type(said).__name__
            raise OptionError(
                f"guide: {self.guide.called} returned {got} for x of shape {tuple(x.shape)}; log p(y | x) of every row, "
                f"floats of shape {(len(x),)}, is needed"
            )
        if said.device != x.device:
            raise OptionError(
                f"guide: {self.guide.called} returned a tensor on {said.device}; it must be on {x.device}"
            )
        return said


def _added(value: Tensor, gamma: float, evidence: Tensor) -> tuple[Tensor, Tensor]:
    """value + gamma evidence, (n, V) float32, and the statuses (n,). What is impossible in `value` stays impossible."""
    evidence = torch.where(value == -math.inf, 0.0, evidence)  # what is said of impossible tokens is not read
    out = value.double() + gamma * evidence
    best = out.amax(1, keepdim=True)  # the last bits are kept in float32, however large the evidence is
    return (out - torch.where(best.isfinite(), best, 0.0)).float(), _statuses(
        evidence, best.squeeze(1) > -math.inf, value
    )


def _statuses(evidence: Tensor, possible: Tensor, value: Tensor) -> Tensor:
    """(n,) int64: BAD if the evidence (n, V) has a NaN or +inf, NOTHING if it leaves no token `possible` (n,) bool,
    else 0.

    Args:
        value: (n, V), the log-probabilities without guidance; if they leave no token, that is not the guide's fault.
    """
    bad = (evidence.isnan() | (evidence == math.inf)).any(1)
    nothing = ~possible & (value > -math.inf).any(1)
    return torch.where(bad, BAD, torch.where(nothing, NOTHING, 0))


# ---------------------------------------------------------------------------------------------- what is configured


class Guide:
    """Base of what sample(guide=) takes. It never changes and may serve many runs."""

    def __repr__(self) -> str:
        return str(self)

    def __str__(self) -> str:
        return type(self).__name__

    def begin(
        self, denoiser: TokenDenoiser, layout: Layout, posterior: bool, feed: Callable[..., PlainFeed]
    ) -> Guiding:
        """What guides a run.

        Args:
            layout: of the run.
            posterior: whether the sampler lets its distribution of the token after the step be guided.
            feed: (counter, scale) -> a plain feed with the run's settings.

        Raises:
            OptionError: it does not go with the denoiser or the canvas.
        """
        raise NotImplementedError

    def check(self, denoiser: TokenDenoiser, sampler: Sampler[Any], arguments: dict[str, Any]) -> None:
        """OptionError if the guide does not go with the other arguments of the run, such as cfg_scale and cache."""
        who = f"guide={self}"
        if arguments["cfg_scale"]:
            raise OptionError(
                f"{who} and cfg_scale={arguments['cfg_scale']:g} both guide: give one; gamma is 1 + cfg_scale"
            )
        if arguments["cache"] is not None:
            raise OptionError(
                f"{who} does not go with cache={arguments['cache']!r}: what guides must see the whole canvas; use cache=None"
            )
        if sampler.effective_facts.sequential or isinstance(denoiser, BlockDenoiser):
            raise OptionError(
                f"{who} does not go with sampler {sampler.name!r} and denoiser {denoiser.name!r}: the model must be given "
                "whole canvases, and here it is given tokens as a sequence or block by block"
            )
        if not sampler.effective_facts.posterior:
            return
        plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0}
        for name, value in plain.items():
            if arguments[name] != value:
                raise OptionError(
                    f"guide={self}: {name}={arguments[name]} changes the draw of the clean token, and what is drawn here is "
                    f"the token after a step; use {name}={value:g}, and gamma for the strength"
                )


@dataclass(frozen=True, eq=False, repr=False)
class Unconditional(Guide):
    """Classifier-free guidance in the form gamma: log p proportional to gamma log p_c + (1 - gamma) log p_u (D-CFG).

    gamma = 1 is no guidance, above 1 leads away from p_u, and 0 is p_u itself. In terms of cfg_scale, gamma = 1 +
    cfg_scale; with neither `denoiser` nor `prompt`, p_u is the same model without the prompt, and the tokens are
    those of cfg_scale bit for bit.

    Args:
        denoiser: another model of the same vocabulary that says p_u; or a callable ids (B, L) -> logits (B, L, V). It
            is given the same canvas. Its calls are counted in Sample.guide_calls, and not in nfe.
        prompt: a negative prompt instead, whose answers are led away from: ids or text as prompt= takes them, one row
            or one per row of the batch. It ends where the row's own prompt ends and may be shorter; what is before it
            is masked (under uniform noise: noise). The two are one forward pass of two rows.
        gamma: 0 or more.

    Differs from D-CFG's code in one point: under uniform noise with a sampler without Facts(posterior=True) it acts
    on the clean token.

    Raises:
        OptionError: both are given, a gamma that is no number from 0 on. When the run begins: a model of another
            vocabulary or mask; a negative prompt longer than the row's prompt, or of another number of rows.
    """

    denoiser: Any = None
    prompt: Any = None
    gamma: float = 2.0

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", number("gamma", self.gamma, 0.0, STRONGEST))
        if self.denoiser is not None and self.prompt is not None:
            raise OptionError(
                "Unconditional takes denoiser= or prompt=, not both: a prompt is one of the run's own model"
            )
        if self.denoiser is not None and not callable(self.denoiser) and not isinstance(self.denoiser, TokenDenoiser):
            raise OptionError(
                f"Unconditional: denoiser must be a TokenDenoiser or a callable, not {shown(self.denoiser)}"
            )

    def __str__(self) -> str:
        what = ""
        if self.denoiser is not None:
            what = f"denoiser={_name(self.denoiser)}, "
        elif self.prompt is not None:
            what = "prompt, "
        return f"Unconditional({what}gamma={self.gamma:g})"

    def begin(
        self, denoiser: TokenDenoiser, layout: Layout, posterior: bool, feed: Callable[..., PlainFeed]
    ) -> Guiding:
        if self.denoiser is not None:
            return _SecondModel(self.gamma, posterior, feed(Counter(self._model(denoiser)), 0.0))
        if not layout.has_prompt and self.gamma != 1:
            raise OptionError(
                f"guide={self} guides by a prompt, and none was given: give prompt=, or another denoiser to the guide"
            )
        if self.prompt is None:
            return _SecondCanvas(self.gamma, posterior, None, None)
        return _SecondCanvas(self.gamma, posterior, *self._negative(denoiser, layout))

    def _model(self, denoiser: TokenDenoiser) -> TokenDenoiser:
        """The other model, as a denoiser; OptionError if it is not of the same tokens."""
        other = self.denoiser
        if not isinstance(other, TokenDenoiser):
            facts: dict[str, Any] = {
                "vocab_size": denoiser.vocab_size,
                "mask_id": denoiser.mask_id,
                "device": denoiser.device,
            }
            other = TokenDenoiser.wrap(other, **facts, name=_name(other))
        for fact in ("vocab_size", "mask_id", "length", "device"):
            mine, its = getattr(denoiser, fact), getattr(other, fact)
            if mine != its and not (fact == "length" and its is None):
                raise OptionError(
                    f"guide={self}: the other denoiser has {fact} {its}, and {denoiser.name!r} has {mine}; they must agree"
                )
        if other.self_conditioned or other.predicts_next or isinstance(other, BlockDenoiser):
            raise OptionError(
                f"guide={self}: the other denoiser must take whole canvases and remember nothing between steps"
            )
        return other

    def _negative(self, denoiser: TokenDenoiser, layout: Layout) -> tuple[Tensor, Tensor]:
        """(B, L) int64 and bool: the negative prompts where they stand, and where that is."""
        rows: Sequence[Tensor] = token_rows("Unconditional(prompt=)", prompt_rows(self.prompt, denoiser))
        batch, length = layout.x.shape
        if len(rows) not in (1, batch):
            raise OptionError(
                f"guide={self}: the negative prompt has {len(rows)} rows, and the run {batch}; give one, or as many"
            )
        before = [row.index(True) for row in layout.fill.tolist()]
        x, known = (
            torch.zeros(batch, length, dtype=torch.int64, device="cpu"),
            torch.zeros(batch, length, dtype=torch.bool, device="cpu"),
        )
        for i, end in enumerate(before):
            row = rows[i % len(rows)]
            if len(row) > end:
                raise OptionError(
                    f"guide={self}: the negative prompt of row {i} has {len(row)} tokens and its prompt {end}; it may have "
                    "at most as many, since both are followed by the same positions"
                )
            x[i, end - len(row) : end] = row
            known[i, end - len(row) : end] = True
        check_tokens(
            "Unconditional(prompt=)", x, denoiser, known, "; leave tokens out at its beginning to have them masked"
        )
        return x.to(layout.x.device), known.to(layout.x.device)


@dataclass(frozen=True, eq=False, repr=False)
class Adaptive(Guide):
    """Li et al. 2025 (A-CFG), arXiv 2505.20199: away from the answer with the least certain tokens masked again.

    Each step asks twice: once for the present canvas, which also tells how sure the model is of every token that the
    run has filled in (the probability of the token that stands there); then for the same canvas with the `share` of
    those tokens that are least probable masked, equals by the lower position. The prompt stays as it is. So a step is
    two forward passes of one row each, one after the other (nfe counts both), and no prompt is needed. Nothing is
    remembered from step to step: the confidences are those of the present canvas.

    An exact model is certain of every visible token, so on exact problems the positions decide.

    Args:
        gamma: 0 or more, as of Unconditional; the paper's w is gamma - 1.
        share: how many of the filled tokens, from 0 to 1, rounded down.
    """

    gamma: float = 2.0
    share: float = 0.7

    def __post_init__(self) -> None:
        object.__setattr__(self, "gamma", number("gamma", self.gamma, 0.0, STRONGEST))
        object.__setattr__(self, "share", number("share", self.share, 0.0, 1.0))

    def __str__(self) -> str:
        return f"Adaptive(gamma={self.gamma:g}, share={self.share:g})"

    def begin(
        self, denoiser: TokenDenoiser, layout: Layout, posterior: bool, feed: Callable[..., PlainFeed]
    ) -> Guiding:
        if denoiser.mask_id is None:
            raise OptionError(f"guide={self} masks tokens again, and denoiser {denoiser.name!r} has no mask")
        if denoiser.self_conditioned:
            raise OptionError(
                f"guide={self} asks twice in a step, and denoiser {denoiser.name!r} is self_conditioned: it would be told the "
                "second answer in the next step"
            )
        return _Remasked(self.gamma, self.share)


@dataclass(frozen=True, eq=False, repr=False)
class Classifier(Guide):
    """Guidance by a classifier p(y | x): log p(x_i = v) + gamma log p(y | x with v at position i) (D-CBG).

    If `fn` is the classifier of noisy tokens, p(y | x_t) under the same noise, then gamma = 1 and one position at a
    time draws from p(x | y) exactly: for masked noise with any sampler of bias "exact"; under uniform noise for
    canvases of one position, and in the limit of many steps for others. Positions that are drawn in one step are
    independent given what was known before, as always.

    Exact guidance calls fn for every token at every asked position, `chunk` rows at a time; with exact="gradient" it
    is called once per forward pass, and log p(y | x with v at i) - log p(y | x) is its derivative in the direction
    from the present token to v. The calls are counted in Sample.guide_calls and guide_rows, and not in nfe. The
    function is called before the model, so that a wrong one is found before the first forward pass.

    Args:
        fn: (x, t) -> log p(y | x) of each row, (N,) floats in nats; -inf rules a token out. x: (N, L) int64, the
            whole rows with masks (or noise) where nothing is decided, prompt included, without padding. With
            exact="gradient": (N, L, W) float32, one-hot, differentiable; W is the size of the vocabulary, the mask
            included. t: (N,) float64, the noise level: of masked noise the share of the positions to fill that is
            masked before the token is put in; of uniform noise the level after the step, with rates=True before it.
            Rows of one call have one length; they must not depend on each other.
        gamma: the strength, 0 or more; predictor guidance's temperature is T = 1 / gamma.
        exact: True, or "gradient" for first order (TAG in Nisonoff et al.).
        rates: predictor guidance, for uniform noise only: the chance to jump to v is multiplied by (p(y | x with v) /
            p(y | x))^gamma, and the rest is the chance to stay. False: the distribution after the step is multiplied
            by p(y | .)^gamma and normalised. They agree to first order in the step, and in the limit of many steps.
        chunk: most rows of a call, if exact.
        limit: most that the first-order change may be, in nats, before gamma; the smaller ones are as they are.

    Differs from the papers' code: without rates fn is told the level after the step and not that before it, which
    makes a single position exact in any number of steps; no temperature and no top-k go with uniform noise.

    Raises:
        OptionError: one of the arguments is wrong. During the run: fn returned another shape or dtype, NaN or +inf
            (row and position named), ruled out every token, or cannot be differentiated.
    """

    fn: Callable[..., Tensor]
    gamma: float = 1.0
    exact: bool | str = True
    rates: bool = False
    chunk: int = 4096
    limit: float = 80.0

    def __post_init__(self) -> None:
        if not callable(self.fn):
            raise OptionError(f"Classifier takes a callable fn(x, t) -> log p(y | x), not {shown(self.fn)}")
        if self.exact is not True and self.exact != "gradient":
            raise OptionError(f"Classifier: exact must be True or 'gradient', not {shown(self.exact)}")
        object.__setattr__(self, "gamma", number("gamma", self.gamma, 0.0, STRONGEST))
        object.__setattr__(self, "rates", flag("rates", self.rates))
        object.__setattr__(self, "chunk", integer("chunk", self.chunk))
        object.__setattr__(self, "limit", number("limit", self.limit, 0.0))

    def __str__(self) -> str:
        how = "" if self.exact is True else ", exact='gradient'"
        return f"Classifier({_name(self.fn)}, gamma={self.gamma:g}{how}{', rates=True' if self.rates else ''})"

    @property
    def called(self) -> str:
        """How errors call the function."""
        return f"the classifier {_name(self.fn)}"

    def check(self, denoiser: TokenDenoiser, sampler: Sampler[Any], arguments: dict[str, Any]) -> None:
        super().check(denoiser, sampler, arguments)
        if denoiser.mask_id is not None:
            if self.rates:
                raise OptionError(
                    f"guide={self}: rates=True is for uniform noise, where a token may jump; denoiser {denoiser.name!r} has "
                    "masks, and a masked position takes a token once: leave rates out"
                )
            return
        if not sampler.effective_facts.posterior:
            raise OptionError(
                f"guide={self} acts on the distribution of the token after a step, which sampler {sampler.name!r} does not have "
                "with these options; use d3pm_ancestral without a corrector"
            )

    def begin(
        self, denoiser: TokenDenoiser, layout: Layout, posterior: bool, feed: Callable[..., PlainFeed]
    ) -> Guiding:
        return _Judge(self, denoiser, posterior)


def _name(value: Any) -> str:
    """A callable or a denoiser, without the address in memory that repr() would show."""
    return str(getattr(value, "name", None) or getattr(value, "__name__", None) or type(value).__name__)
