"""Language: a set of token strings that the text of a run must belong to; and how tokens are drawn so that it does.

    constrain=samplers.constraints.Regex(r"(yes|no), \\d{4}", denoiser.tokenizer)

In each forward pass the model gives a distribution for each position that it is asked about, and the positions are taken for
independent. What is drawn here comes from that product of marginals, conditioned on the text being, or being completable to,
a string of the language (temperature 0: the most probable such string, as DINGO finds it, Suresh et al. 2025, arXiv
2505.23061). Since all tokens of a forward pass are drawn together, a sampler may commit any of them: the rest can always be
completed, and a run cannot come to a dead end.
"""

from __future__ import annotations

import dataclasses
import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .. import ops
from ..errors import OptionError, SamplersError
from ..feeds.sequence import SequenceState
from ..ops import MaskedSoftmax
from ..sampler import State
from ..state import DraftState, TokenState
from .trellis import CHUNK, HELD, RULED_OUT, Span, Table, Trellis, best_token, drawn_token, kind_weights

if TYPE_CHECKING:
    from ..canvas import Layout
    from ..denoiser import TokenDenoiser

__all__ = ["BoundLanguage", "Language", "Place"]


class Language:
    """Base of what constrain= takes beside functions: a set of token strings.

    A subclass says which strings by `automaton`, and may say more of a length that it does not have by `spelling`.

    Attributes:
        given: whether given tokens after a row's first position to fill belong to the text (infilling). False: the text is
            what is filled in, in order.
    """

    given: bool = False

    def automaton(self, denoiser: TokenDenoiser) -> tuple[Tensor, Tensor, Tensor, int]:
        """The automaton over the model's tokens, on the CPU.

        Returns:
            (V,) int64, the kind of each token, -1 for tokens that are in no string; (Q, C) int64, the state after a token of a
            kind in a state, -1 if no string goes on so; (Q,) bool, the states in which a text may end; the first state.
        """
        raise NotImplementedError

    def first_states(self, canvas: Layout) -> list[int] | None:
        """The first state of each row's text, if that depends on what stands before it; None: that of `automaton`."""
        return None

    def why_empty(self) -> str:
        """Why the vocabulary can spell no string of the language, as the end of a sentence."""
        return "its tokens make no string of the language"

    def bind(self, denoiser: TokenDenoiser, canvas: Layout, forbid: tuple[int, ...]) -> BoundLanguage:
        """The language of a run.

        Args:
            forbid: ids that are never drawn, the mask among them.

        Raises:
            OptionError: the language has no string that a row could hold: of its length, or with its given tokens.
        """
        kind, move, accepting, start = self.automaton(denoiser)
        kind = kind.clone()
        never = [i for i in forbid if i < len(kind)]
        kind[never] = -1
        barred = torch.zeros(len(kind), dtype=torch.bool, device="cpu")
        barred[never] = True
        table = Table.of(kind, move, accepting, start, denoiser.device, self.first_states(canvas) or ())
        if table is None:
            allowed = " without the tokens that forbid= bars" if set(forbid) - {denoiser.mask_id} else ""
            raise OptionError(f"constrain: {self!r} cannot be met: {self.why_empty()}{allowed}")
        bound = BoundLanguage(self, table, barred)
        bound.check_canvas(canvas)
        return bound


@dataclass(frozen=True, eq=False)
class Place:
    """Where the text of each row is on its canvas.

    Attributes:
        text: (B, L) bool. number: (B, L) int64, the place of each position in its row's text; it means nothing outside.
        position: (B, n) int64, the canvas position of each place; the places of a shorter row are followed by others.
        length: (B,) int64, tokens of each row's text. most: n. start: (B,) int64, the state before its first token.
    """

    text: Tensor
    number: Tensor
    position: Tensor
    length: Tensor
    most: int
    start: Tensor

    @classmethod
    def of(cls, canvas: Layout, language: Language, table: Table) -> Place:
        text, given = canvas.fill, language.given
        text = canvas.fill
        if given:
            within = torch.arange(text.shape[1], device=text.device) < canvas.length[:, None]
            text = (text.cumsum(1) > 0) & within
        length = text.sum(1)
        most = int(length.max())  # a device sync, once for a canvas
        position = (~text).to(torch.uint8).argsort(dim=1, stable=True)[:, :most]
        first, start = language.first_states(canvas), torch.full_like(length, table.start)
        if first is not None:
            start = table.number[torch.tensor(first, dtype=torch.int64, device=text.device)]
        return cls(text, text.cumsum(1) - 1, position, length, most, start)


class BoundLanguage:
    """A language in a run: what the predictor draws with, and the driver checks by. It keeps nothing of the run.

    Args:
        language: as the caller gave it.
        table: of the run's model, without the tokens that it never draws.
        never: (V,) bool, the tokens that it never draws.
    """

    def __init__(self, language: Language, table: Table, never: Tensor):
        self.language, self.table, self.never = language, table, never.to(table.kind.device)
        self._completions = table.completions(0)
        self._places: weakref.WeakKeyDictionary[Layout, Place] = weakref.WeakKeyDictionary()

    def place(self, canvas: Layout) -> Place:
        if canvas not in self._places:
            self._places[canvas] = Place.of(canvas, self.language, self.table)
        return self._places[canvas]

    # ------------------------------------------------------------------------------------------ before the run

    def check_canvas(self, canvas: Layout) -> None:
        """OptionError if a row of the canvas can hold no string of the language."""
        place = self.place(canvas)
        held = place.text & ~canvas.fill
        bad = (self._trellis_of(place, canvas.x, held).total <= -HELD / 2).nonzero().flatten().tolist()
        if not bad:
            return
        row, n = bad[0], int(place.length[bad[0]])
        who = f"constrain: {self.language!r} has no string for row {row}"
        fits, shortest, longest = self._lengths(n, int(place.start[row]))
        if shortest is None:
            raise OptionError(f"{who}: {self.language.why_empty()}")
        if fits:
            raise OptionError(f"{who}: its given tokens are in none of the strings of {n} tokens")
        if n < shortest:
            raise OptionError(
                f"{who}, whose text has {n} tokens (gen_length): the shortest string has {shortest}, so give "
                f"gen_length={shortest} or more"
            )
        if longest is not None and n > longest:
            raise OptionError(
                f"{who}, whose text has {n} tokens (gen_length): the longest string has {longest}, and this language does not go "
                "on after it (end=)"
            )
        raise OptionError(
            f"{who}, whose text has {n} tokens (gen_length): no string has just as many; the shortest has {shortest}"
            + ("" if longest is None else f", the longest {longest}")
        )

    def _lengths(self, n: int, start: int) -> tuple[bool, int | None, int | None]:
        """Whether some string has n tokens; the tokens of the shortest; those of the longest, None if there is no bound. No
        shortest: there is none from the state `start`.
        """
        table = self.table
        if start == table.states:
            return False, None, None
        now = torch.zeros(table.states, dtype=torch.bool, device=table.accepting.device)
        now[start] = True
        hits = []
        # A string of as many tokens as there are states passes through a state twice, so there are longer ones.
        for k in range(max(n, table.states) + 1):
            if bool((now & table.accepting).any()):
                hits.append(k)
            new = torch.zeros_like(now)
            new[table.target[now[table.source]]] = True
            now = new
        return n in hits, hits[0], None if bool(now.any()) else hits[-1]

    def _trellis_of(self, place: Place, x: Tensor, held: Tensor) -> Trellis:
        """Whether rows can be completed: the heaviest strings with the tokens of x (B, L) at `held`, at a price for others."""
        weight, nothing = self._held_weight(place, x, held), torch.full_like(place.length, -1)
        span = self._span(place, x, held, nothing, torch.ones_like(nothing, dtype=torch.bool))
        return Trellis(self.table, weight, place.length, nothing, False, span)

    def _span(self, place: Place, x: Tensor, known: Tensor, last: Tensor, rows: Tensor) -> Span:
        """The places that have to be summed over, of a text whose tokens x (B, L) are `known`, (B, L) bool.

        Args:
            last: (B,) int64, the last place that is asked about. rows: (B,) bool, the rows that matter.
        """
        known, kind = known.gather(1, place.position), self._kind_at(place, x)
        number = torch.arange(place.most, device=x.device)
        bears = (known | (number <= last[:, None])) & rows[:, None]
        run = torch.where(rows, known.to(torch.int64).cumprod(1).sum(1), 0)
        longest, stop = torch.stack([run.amax(), torch.where(bears, number + 1, 0).amax()]).tolist()  # a device sync
        state, lead = place.start, torch.zeros_like(run)
        for k in range(longest):
            after = self.table.move[state, kind[:, k]]
            goes = (run > k) & (lead == k) & (after < self.table.states)
            state, lead = torch.where(goes, after, state), lead + goes
        if len(self._completions) <= place.most:
            self._completions = self.table.completions(place.most)
        lead = torch.where(rows, lead, stop)
        return Span(lead, state, int(lead.amin()), stop, self._completions[(place.length - stop).clamp_min(0)])

    def _kind_at(self, place: Place, x: Tensor) -> Tensor:
        """(B, n) int64: the kind of the token in each place; C for a token of no string, and for what is no token."""
        token = x.gather(1, place.position)
        known = (token >= 0) & (token < len(self.table.kind))
        return torch.where(known, self.table.kind[token.clamp(0, len(self.table.kind) - 1)], self.table.kinds)

    def _held_weight(self, place: Place, x: Tensor, held: Tensor) -> Tensor:
        """(B, n, C) float64: 0, and -HELD for what is not the kind of the token that a place holds."""
        kinds = torch.arange(self.table.kinds, device=x.device)
        other = self._kind_at(place, x)[:, :, None] != kinds
        other &= held.gather(1, place.position)[:, :, None]
        return other.to(torch.float64) * -HELD

    # ------------------------------------------------------------------------------------------ in a forward pass

    def held(self, state: TokenState) -> Tensor:
        """(B, L) bool: positions of the text whose token counts as known: given, decided, or visible and taken for clean."""
        held = self.place(state.canvas).text & (state.levels == 0)
        if state.canvas.stops:
            held &= torch.arange(held.shape[1], device=held.device) < state.end[:, None]
        return held

    def widened(self, state: TokenState, rows: Tensor | None) -> Tensor | None:
        """(B, L) bool: the positions to ask about so that `rows` can be drawn together: the rest of the open noise as well.

        None, which is all that is open, stays None.
        """
        if rows is None:
            return None
        return rows | (state.open & ~self.held(state) & rows.any(1, keepdim=True))

    def read(
        self,
        state: TokenState,
        row: Tensor,
        position: Tensor,
        logits: Tensor,
        *,
        beside: Tensor,
        draw: int,
        temperature: float,
        confidence_temperature: float,
        want: tuple[str, ...],
        given: Tensor | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        truncated: bool = False,
        **other: Any,
    ) -> MaskedSoftmax:
        """Tokens of N positions, drawn together, and what else is wanted of the conditional distribution at each.

        Positions that hold noise are drawn first, given the tokens that are held; then the asked ones that hold a token, given
        these draws. `beside` marks positions that only bear on the others. Open positions that were not asked about count every
        token alike if an asked position comes after them, and otherwise only have to leave a completion.

        Let p be the model's distribution at a position at the confidence temperature. What is reported is of q(v), the
        probability that v stands there if all positions are drawn from their p, conditioned on the language: q(v) is
        proportional to p(v) g(v), where g(v) is the probability that the others make a string of the language with it.
        confidence is q of the drawn token, margin, entropy and given likewise; lse is that of the logits plus log g, shifted so
        that the largest of all log g is 0.

        Args:
            row, position: (N,) int64. logits: (N, V) floats, guided.
            beside: (N,) bool.
            draw: which of the step's uniform numbers.
            other arguments: as of ops.masked_softmax.
        """
        table, place = self.table, self.place(state.canvas)
        logits = logits.float()
        status = torch.where((logits == -torch.inf).all(1), 2, 0)
        status = torch.where(torch.isnan(logits).any(1) | (logits == torch.inf).any(1), 1, status)
        logits = torch.where((status > 0)[:, None], 0.0, logits)
        cut = _truncated(logits, self.never, temperature or confidence_temperature, top_k, top_p)
        number, held = place.number[row, position], self.held(state)
        known_now = held[row, position]
        uniform = None
        if temperature > 0:
            uniform = state.rng.positions(state.x.shape[1], state.step, draw).gather(1, place.position)  # (B, n)
        kinds, most = kind_weights(table, cut, temperature or 1.0)
        shown = cut if truncated else logits
        # What is reported is often made of the weights that tokens are drawn by.
        same = temperature == confidence_temperature and shown is cut
        reported = None if not want else kinds if same else kind_weights(table, shown, confidence_temperature)[0]
        best = None if uniform is not None else best_token(table, cut, 1.0, most)

        token, factor, x = torch.zeros_like(row), torch.zeros_like(kinds), state.x
        for asked in (~known_now, known_now & ~beside):
            if x is not state.x and not bool(asked.any()):
                break  # only samplers that revise ask about tokens that are held
            # The last place that a row asks about, -1 if there is none.
            last = torch.full_like(place.length, -1)
            last.scatter_reduce_(0, row, torch.where(asked, number, -1), "amax")
            known = held.index_put((row, position), ~asked)
            places = max(1, int(last.max()) + 1)
            at = number.clamp_max(places - 1)
            span = self._span(place, x, known, last, last >= 0)
            lattice = self._lattice(
                place, x, known, kinds if best is None else most, (row, number, asked), last, best is None, span
            )
            if best is None:
                assert uniform is not None
                kind, rest = lattice.drawn(uniform, places)
                drawn = drawn_token(table, cut, temperature, kind[row, at], rest[row, at])
            else:
                ids = table.lowest.expand(*x.shape[:1], place.most, -1)
                ids = ids.index_put((row, number), torch.where(asked[:, None], best, table.lowest))
                drawn = best.gather(1, lattice.best(ids, places)[row, at][:, None]).squeeze(1)
            token = torch.where(asked, drawn, token)
            if reported is not None:
                model = lattice
                if reported is not kinds:
                    model = self._lattice(place, x, known, reported, (row, number, asked), last, True, span)
                factor = torch.where(asked[:, None], model.marginals(places)[row, at], factor)
            x = x.index_put((row, position), torch.where(asked, token, x[row, position]))
        values: dict[str, Any] = dict.fromkeys(MaskedSoftmax._fields)
        values |= {"token": torch.where(status == 0, token, -1), "status": status.to(torch.int32)}
        if want:
            more = confidence_temperature * (factor - factor.amax(1, keepdim=True))  # (N, C)
            more = torch.nn.functional.pad(more, (0, 1), value=-torch.inf)  # tokens in no string
            values |= _reported(shown, more, table.kind, token, confidence_temperature, want, given)
        return MaskedSoftmax(**values)

    def _lattice(
        self,
        place: Place,
        x: Tensor,
        known: Tensor,
        kinds: Tensor,
        asked: tuple[Tensor, Tensor, Tensor],
        last: Tensor,
        soft: bool,
        span: Span,
    ) -> Trellis:
        """The strings that have the tokens of x (B, L) where they are `known`, (B, L) bool, weighed by what the model said.

        Args:
            kinds: (N, C) float64, the log weights of the kinds at N positions.
            asked: (N,) each: the rows of these positions, their places, and whether they are asked about.
            last: (B,) int64, the last place asked about.
        """
        weight = self._held_weight(place, x, known)
        if soft:  # a place of which nothing is known counts each of its tokens alike
            before = torch.arange(place.most, device=x.device) <= last[:, None]
            free = before & ~known.gather(1, place.position)
            weight = weight + free[:, :, None] * self.table.size.double().log()
        row, number, which = asked
        weight[row, number] = torch.where(which[:, None], kinds, weight[row, number])
        return Trellis(self.table, weight, place.length, last, soft, span)

    # ------------------------------------------------------------------------------------------ after a step

    def mended(self, before: State, after: State, sampler: str) -> State:
        """The state after a step, with the least of it taken back that keeps its known tokens from a string of the language.

        A sampler that revises may keep an old token at one position and take a new one at another, which were not drawn
        together. Then old tokens are kept in the place of new ones, as few as possible. The state before was completable, so
        this always succeeds. (If even that does not help, since tokens of several forward passes were mixed, positions that
        were just filled are masked again.) One device sync.
        """
        assert isinstance(before, TokenState) and isinstance(after, TokenState)
        place = self.place(after.canvas)
        held, was = self.held(after), self.held(before)
        if not bool((self._trellis_of(place, after.x, held).total < 0).any()):
            return after
        at = place.position
        new, old = self._kind_at(place, after.x), self._kind_at(place, before.x)
        kinds = torch.arange(self.table.kinds, device=at.device)
        is_new, is_old = new[:, :, None] == kinds, old[:, :, None] == kinds
        known, known_before = held.gather(1, at)[:, :, None], was.gather(1, at)[:, :, None]
        weight = torch.where(known & ~is_new, torch.where(known_before, HELD, 1e4), 0.0)
        weight = torch.where(known & ~is_new & known_before & is_old, 1.0, weight)
        span = self._span(place, after.x, torch.zeros_like(held), place.length - 1, torch.ones_like(place.length) > 0)
        lattice = Trellis(self.table, -weight, place.length, torch.full_like(place.length, -1), False, span)
        ids = self.table.lowest.expand(*weight.shape)
        kind = lattice.best(ids, place.most)  # (B, n)
        inside = torch.arange(place.most, device=at.device) < place.length[:, None]
        keep = (kind == new) | ~held.gather(1, at) | ~inside
        back = ~keep & was.gather(1, at) & (kind == old)
        drop = ~keep & ~back
        mask_id = after.canvas.mask_id
        other = self.table.lowest[kind] if mask_id is None else torch.full_like(kind, mask_id)
        put = torch.where(back, before.x.gather(1, at), torch.where(drop, other, after.x.gather(1, at)))
        put = torch.where(inside, put, after.x.gather(1, at))
        x = after.x.scatter(1, at, put)
        if mask_id is None or not bool(drop.any()):
            return dataclasses.replace(after, x=x, ready=None)
        if isinstance(after, SequenceState):
            raise SamplersError(f"sampler {sampler!r} wrote tokens together that are in no string of {self.language!r}")
        if isinstance(after, DraftState):
            return after._advance(x, steps=0, decided=after.decided & (x != mask_id))
        return after._advance(x, steps=0)

    def check_result(self, state: State, sampler: str) -> None:
        """SamplersError if the known tokens of a row are part of no string of the language."""
        assert isinstance(state, TokenState)
        place = self.place(state.canvas)
        bad = (self._trellis_of(place, state.x, self.held(state)).total < 0).nonzero().flatten().tolist()
        if bad:
            raise SamplersError(
                f"sampler {sampler!r} made tokens in row {bad[0]} that are part of no string of {self.language!r}"
            )


def _truncated(logits: Tensor, never: Tensor, temperature: float, top_k: int, top_p: float) -> Tensor:
    """Logits (N, V) float32 with what top_k and top_p remove at -inf, as ops.masked_softmax does it.

    Args:
        never: (V,) bool, tokens that are never drawn.
    """
    if not top_k and top_p >= 1:
        return logits
    ordered, index = logits.masked_fill(never, -torch.inf).sort(dim=1, descending=True, stable=True)
    keep = ordered > -torch.inf
    if top_k:
        keep[:, top_k:] = False
    if top_p < 1:
        weight = torch.exp((ordered - ordered[:, :1]).double() / temperature)
        units = torch.where(keep, torch.round(weight * 2.0**44), 0.0).to(torch.int64)
        keep &= units.cumsum(1) - units < torch.ceil(units.sum(1, keepdim=True) * top_p)
    return logits.masked_fill(~torch.zeros_like(keep).scatter(1, index, keep), -torch.inf)


def _reported(
    logits: Tensor,
    more: Tensor,
    kind: Tensor,
    token: Tensor,
    temperature: float,
    want: tuple[str, ...],
    given: Tensor | None,
) -> dict[str, Tensor | None]:
    """What is wanted of N distributions, and of the tokens (N,) that were drawn.

    Args:
        logits: (N, V) float32. more: (N, C + 1) float64, what is added to the logits of the tokens of each kind.
        kind: (V,) int64.
    """
    out: dict[str, list[Tensor]] = {name: [] for name in want}
    size = max(1, CHUNK // logits.shape[1])
    asked = tuple(name for name in want if name not in ("confidence", "given"))
    for at in torch.arange(len(logits), device=logits.device).split(size):
        # A token that the model rules out stands below every other one, since the language may leave nothing else.
        changed = (logits[at].clamp_min(-RULED_OUT) + more[at][:, kind]).float()
        drawn = ops.masked_softmax(changed, confidence_temperature=temperature, want=(*asked, "given"), given=token[at])
        for name in asked:
            out[name].append(getattr(drawn, name))
        if "confidence" in want:
            out["confidence"].append(drawn.given)  # type: ignore[arg-type]
        if "given" in want and given is not None:
            how: dict[str, Any] = {"confidence_temperature": temperature, "want": ("given",), "given": given[at]}
            out["given"].append(ops.masked_softmax(changed, **how).given)  # type: ignore[arg-type]
    return {name: torch.cat(parts) for name, parts in out.items()}
