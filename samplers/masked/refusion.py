"""ReFusion: slots are chosen and drafted like masked diffusion, and verified and refined like autoregression."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..canvas import Layout
from ..errors import OptionError
from ..feeds.sequence import SequenceState
from ..predictor import SequencePredictor
from ..sampler import Conformance, Facts, Sampler, option


@dataclass(frozen=True, eq=False)
class SlotState(SequenceState):
    """A sequence, and the slots that its canvas is cut into: `slot_size` neighbours of one block, or fewer.

    Attributes:
        cell: (B, S, slot_size) int64, the position of each place of each slot; -1 where a slot is short.
        lost: (B, L) bool, what will never be decoded: the hole of the reference.
    """

    cell: Tensor
    lost: Tensor

    @property
    def masked(self) -> Tensor:
        return super().masked & ~self.lost

    def slots(self, plane: Tensor) -> Tensor:
        """(B, L) -> (B, S, slot_size); anything where a slot is short."""
        return plane.gather(1, self.cell.clamp(min=0).flatten(1)).view(self.cell.shape)

    def plane(self, slots: Tensor, elsewhere: int = 0) -> Tensor:
        """(B, S, slot_size) -> (B, L)."""
        length = self.x.shape[1]
        out = slots.new_full((len(slots), length + 1), elsewhere)
        return out.scatter_(1, torch.where(self.cell < 0, length, self.cell).flatten(1), slots.flatten(1))[:, :-1]

    def closed(self) -> SlotState:
        """Rows that are done close up over what was lost in them."""
        kept = (self.x != self.canvas.mask_id) & (
            torch.arange(self.x.shape[1], device=self.x.device) < self.end[:, None]
        )
        row = self.done & self.lost.any(1)
        order = (row[:, None] & ~kept).to(torch.uint8).argsort(dim=1, stable=True)
        return dataclasses.replace(self, x=self.x.gather(1, order), end=torch.where(row, kept.sum(1), self.end))


@dataclass(frozen=True)
class Refusion(Sampler[SlotState]):
    """Li et al. 2025 (ReFusion), arXiv 2512.13586, plan and infill: slots in any order, left to right inside them.

    In a step the masks of the present serial block are drafted, behind the row's sequence. Slots whose first token is more
    probable than slot_threshold are chosen, or else the best one. One causal pass over the chosen slots verifies each token
    but a slot's first by its probability after those before it; whole slots of what is accepted in one run are committed,
    or all up to a stop token. If not even the first slot is accepted, all that were chosen are refined at once, not seeing
    each other: what was refused is drafted again and verified, in each round at least one more token a slot stands.
    `temperature` is of the first draft; later ones take the best token.

    Differs from the reference: batches; float32 comparisons (there: the model's dtype); a stop token in a refined slot does
    not lose the slots before it (`reference` does); accepted columns are not computed in every round again; lengths that
    do not divide are an error (there they are cut off or padded). Where block_length is given, its blocks are the serial
    ones, and the last slot of a block, or before a given token, may be short. Of `stop`, single tokens act within slots,
    longer phrases once a step is done.
    """

    name = "refusion"
    family = "masked"
    cite = "Li et al. 2025, ReFusion: A Diffusion Large Language Model with Parallel Autoregressive Decoding, arXiv 2512.13586"
    summary = "slots drafted in parallel, verified and refined autoregressively, through a KV cache"
    default_temperature = 0.0
    facts = Facts(bias="biased", sequential=True, sweep=("token_threshold", (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.0)))
    conformance = Conformance(small={"slot_size": 2, "serial_num_blocks": 1})

    slot_size: int = option(8, "positions a slot", ge=1)
    serial_num_blocks: int = option(2, "blocks, one after another, where no block_length is given", ge=1)
    slot_threshold: float = option(0.9, "slots are chosen whose first token is more probable; 1: the best one", ge=0)
    token_threshold: float = option(0.9, "drafted tokens are accepted that are more probable; 1: none", ge=0)
    merge: str = option(
        "fast",
        "keys of slots that were refined apart: as they are, or exact by one more forward",
        choices=("fast", "exact"),
    )
    reference: bool = option(
        False, "lose the slots that the reference code loses where a refined slot has a stop token"
    )

    def init(self, canvas: Layout) -> SlotState:
        canvas = canvas if canvas.block_length is not None else self._cut(canvas)
        position = torch.arange(canvas.x.shape[1], device=canvas.x.device)
        begins = canvas.fill & (canvas.block != torch.nn.functional.pad(canvas.block[:, :-1], (1, 0), value=-1))
        place = (position - torch.where(begins, position, -1).cummax(1).values) % self.slot_size  # (B, L) in its slot
        slot = (canvas.fill & (place == 0)).cumsum(1) - 1
        count = int(slot.max()) + 1
        at = torch.where(canvas.fill, slot * self.slot_size + place, count * self.slot_size)
        cell = torch.full((len(at), count * self.slot_size + 1), -1, device=at.device)
        cell.scatter_(1, at, position.expand_as(at))
        lost = torch.zeros_like(canvas.fill)
        return SlotState.begin(canvas, cell=cell[:, :-1].unflatten(1, (count, -1)), lost=lost)

    def step(self, predict: SequencePredictor, state: SlotState) -> SlotState:
        drafted = predict(state, want="confidence")
        there = state.slots(state.open) & (state.cell >= 0)  # (B, S, s)
        assert drafted.confidence is not None
        score = state.slots(drafted.confidence).flatten(1)
        chosen = ops.select_slots(score, there.flatten(1), slot=self.slot_size, threshold=self.slot_threshold).chosen

        tried = there & chosen[..., None]
        unsure = tried.clone()
        unsure[..., 0] = False  # nothing stands before a slot's first token that could tell its probability
        chunk = predict.chunk(state.plane(tried), state.plane(unsure))
        assert chunk is not None, "a row that is not done has a slot"
        seen = predict.ask(state, chunk, drafted.token, 0, want="given", given=drafted.token)
        out, where = self._accept(state, drafted.token, seen.given, chosen, there, 1)

        refused = chosen & (out.count == 0)[:, None]
        token, refined, lost = self._refine(predict, state, drafted.token, out.accepted, refused, there)
        state = state.commit(where | refined, token, lost=state.lost | lost)
        return state.closed() if self.reference else state

    def _refine(self, predict, state, token, accepted, chosen, there) -> tuple[Tensor, Tensor, Tensor]:
        """The chosen slots to their ends, apart from each other: tokens, where they stand, what the reference loses."""
        chosen, stop = self._stopped(state, token, accepted, chosen, there)
        number = torch.where(chosen, chosen.flatten().cumsum(0).view_as(chosen) - 1, -1)[..., None]  # (B, S, 1)
        branches = predict.branches(state, state.plane(torch.where(there, number, -1), -1))
        if branches is None:
            return token, torch.zeros_like(state.open), torch.zeros_like(state.open)
        place, size = torch.arange(self.slot_size, device=token.device), there.sum(2)
        for turn in range(self.slot_size + 1):
            left = chosen & ~stop.any(2) & (accepted < size)  # (B, S)
            after = place - accepted[..., None]  # (B, S, s): 0 at the first refused token, which will stand next
            again, unsure = (there & left[..., None] & (after >= n) for n in (0, 1))
            fed = again if turn else there & chosen[..., None]  # at first all of a slot: its head has seen other slots
            chunk = predict.chunk(*map(state.plane, (fed, again, unsure)), on=branches)
            if chunk is None:
                break
            masked = state.plane(again)
            input = torch.where(masked, state.canvas.mask_id, token)
            token = torch.where(masked, predict.ask(state, chunk, input, 0, temperature=0.0, keep=False).token, token)
            seen = predict.ask(state, chunk, token, 1, want="given", given=token)
            out, _ = self._accept(state, token, seen.given, left, there, accepted + 1)
            accepted = torch.where(left, out.accepted, accepted)
            chosen, stop = self._stopped(state, token, accepted, chosen, there)

        where = state.plane(there & chosen[..., None] & (after < 0) & (stop.cumsum(2) <= stop))
        predict.merge(state, branches, token, where, again=(chosen.sum(1) > 1) & (self.merge == "exact"))
        # The reference code takes the stopped slot's number among those refined for its number among those still masked.
        slot = there[..., 0]
        lost = slot & (slot.cumsum(1) >= chosen.sum(1, keepdim=True)) & stop.flatten(1).any(1, keepdim=True)
        return token, where, state.plane(there & lost[..., None] & self.reference) & ~where

    def _accept(self, state, token, probability, chosen, there, head) -> tuple[ops.Accepted, Tensor]:
        """What stands of each chosen slot; and (B, L) what is committed, a run from the first one on."""
        end = max(state.canvas.vocab_size, state.canvas.mask_id + 1)  # stands for any stop token
        token = torch.where(torch.isin(token, self._stops(state)), end, token)
        written = torch.full_like(state.cell, -1).flatten(1)
        token, probability = (state.slots(x).flatten(1) for x in (token, probability))
        rule = {"slot": self.slot_size, "threshold": self.token_threshold, "head": head, "eos": end}
        out = ops.accept_slots_(written, token, probability, chosen, there.flatten(1), **rule)
        return out, state.plane(written.view_as(state.cell) >= 0)

    def _stopped(self, state, token, accepted, chosen, there) -> tuple[Tensor, Tensor]:
        """The chosen slots up to the first with an accepted stop token, (B, S), and such tokens in it, (B, S, s)."""
        place = torch.arange(self.slot_size, device=token.device)
        stop = state.slots(torch.isin(token, self._stops(state))) & there & (place < accepted[..., None])
        has = stop.any(2) & chosen
        chosen = chosen & (has.cumsum(1) <= has)
        return chosen, stop & chosen[..., None]

    @staticmethod
    def _stops(state) -> Tensor:
        """(n,) int64: tokens that are stop phrases of their own."""
        return torch.cat([state.x.new_empty(0), *(p for p in state.canvas.stop if len(p) == 1)])

    def _cut(self, canvas: Layout) -> Layout:
        """The canvas in serial_num_blocks blocks a row."""
        unit = self.slot_size * self.serial_num_blocks
        n_fill = canvas.fill.sum(1)
        for i, n in enumerate(n_fill.tolist()):
            if n % unit:
                near = f"{n // unit * unit} or {(n // unit + 1) * unit}" if n > unit else f"{unit}"
                raise OptionError(
                    f"row {i} has {n} positions to fill (gen_length), which do not make serial_num_blocks="
                    f"{self.serial_num_blocks} blocks of whole slots of slot_size={self.slot_size}: use a multiple of {unit}, "
                    f"such as {near}, or other options; or give block_length, and the last slot may be short"
                )
        length = n_fill // self.serial_num_blocks
        return canvas.layout(block_length=length, stop=canvas.stop, rng=canvas.rng)
