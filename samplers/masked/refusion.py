"""ReFusion: slots are chosen and drafted as in masked diffusion, then verified and refined as in autoregression."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .. import ops
from ..canvas import Layout
from ..errors import OptionError
from ..predictor import SequencePredictor
from ..random import DRAW_TOKEN
from ..sampler import Conformance, Facts, Sampler, option
from ..slots import SlotState


@dataclass(frozen=True)
class Refusion(Sampler[SlotState]):
    """Li et al. 2025 (ReFusion), arXiv 2512.13586, its loop of plan and infill: slots in any order, left to right inside.

    A step drafts the masks of the present serial block, which are fed after the row's sequence. It chooses the slots whose
    first token is more probable than slot_threshold, or else the best slot. One causal forward pass over the chosen slots
    verifies every token except the first of each slot, by its probability after the tokens before it. The accepted tokens
    that form one run from the start are committed, in whole slots, or up to a stop token.

    If not even the first chosen slot is accepted, all chosen slots are refined at the same time, without seeing each other:
    what was refused is drafted again and verified, and in each round at least one more token per slot stands.
    `temperature` is used for the first draft; later drafts take the best token.

    Differs from the reference code: it runs in batches; comparisons are in float32 (there: in the model's dtype); a stop token
    in a refined slot keeps the slots before it (there they can be lost); accepted columns are not computed again in every
    round; lengths that do not divide are an error (there they are cut off or padded). If block_length is given, its blocks
    are the serial ones, and the last slot of a block, or a slot before a given token, may be short. Single stop tokens act
    within slots; longer stop phrases act when a step is done.
    """

    name = "refusion"
    family = "masked"
    cite = "Li et al. 2025, ReFusion: A Diffusion Large Language Model with Parallel Autoregressive Decoding, arXiv 2512.13586"
    summary = "slots drafted in parallel, then verified and refined autoregressively through a KV cache"
    default_temperature = 0.0
    facts = Facts(bias="biased", sequential=True, sweep=("token_threshold", (1.0, 0.9, 0.7, 0.5, 0.3, 0.1, 0.0)))
    conformance = Conformance(small={"slot_size": 2, "serial_num_blocks": 1}, redraws=(DRAW_TOKEN,))

    slot_size: int = option(8, "positions per slot", ge=1)
    serial_num_blocks: int = option(2, "number of blocks, filled one after another, if no block_length is given", ge=1)
    slot_threshold: float = option(0.9, "choose slots whose first token is more probable; 1: only the best slot", ge=0)
    token_threshold: float = option(0.9, "accept drafted tokens that are more probable; 1: accept none", ge=0)
    merge: str = option(
        "fast",
        "keys of slots that were refined separately: keep them as they are, or compute them exactly in one more forward pass",
        choices=("fast", "exact"),
    )

    def init(self, canvas: Layout) -> SlotState:
        canvas = canvas if canvas.block_length is not None else self._cut(canvas)
        return SlotState.begin(canvas, slot_size=self.slot_size)

    def step(self, predict: SequencePredictor, state: SlotState) -> SlotState:
        draft = predict(state, want="confidence")
        valid = state.by_slot(state.open) & (state.cells >= 0)  # (B, S, s)
        score = state.by_slot(draft.confidence).flatten(1)
        chosen = ops.select_slots(score, valid.flatten(1), slot=self.slot_size, threshold=self.slot_threshold).chosen

        proposed = valid & chosen[..., None]
        to_verify = proposed.clone()
        to_verify[..., 0] = False  # no token before it, in its own slot, that could predict it
        chunk = predict.chunk(state.on_canvas(proposed), state.on_canvas(to_verify))
        assert chunk is not None, "a row that is not done has a slot"
        verified = predict.ask(state, chunk, draft.token, 0, want="given", given=draft.token)
        found, stands = self._accept(state, draft.token, verified.given, chosen, valid, 1)

        refused = chosen & (found.count == 0)[:, None]
        token, refined = self._refine(predict, state, draft.token, found.accepted, refused, valid)
        return state.commit(stands | refined, token)

    def _refine(
        self,
        predict: SequencePredictor,
        state: SlotState,
        token: Tensor,
        accepted: Tensor,
        chosen: Tensor,
        valid: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Decode the chosen slots to their ends, independently of each other.

        Args:
            token: (B, L) int64, the draft.
            accepted: (B, S) int64, how many tokens of each slot stand already.
            chosen: (B, S) bool.
            valid: (B, S, s) bool, the open cells.

        Returns:
            The tokens (B, L) int64, and where they stand, (B, L) bool.
        """
        mask_id = state.canvas.mask_id
        assert mask_id is not None
        chosen, stop = self._up_to_stop(state, token, accepted, chosen, valid)
        number = torch.where(chosen, chosen.flatten().cumsum(0).view_as(chosen) - 1, -1)[..., None]  # (B, S, 1)
        branches = predict.branches(state, state.on_canvas(torch.where(valid, number, -1), -1))
        if branches is None:
            return token, torch.zeros_like(state.open)
        place, size = torch.arange(self.slot_size, device=token.device), valid.sum(2)
        for turn in range(self.slot_size + 1):
            left = chosen & ~stop.any(2) & (accepted < size)  # (B, S)
            after = place - accepted[..., None]  # (B, S, s): 0 at the first refused token, which will stand next
            to_redraft, to_verify = (valid & left[..., None] & (after >= n) for n in (0, 1))
            fed = (
                to_redraft if turn else valid & chosen[..., None]
            )  # at first the whole slot: it was fed after other slots
            chunk = predict.chunk(*map(state.on_canvas, (fed, to_redraft, to_verify)), on=branches)
            if chunk is None:
                break
            masked = state.on_canvas(to_redraft)
            given = torch.where(masked, mask_id, token)
            token = torch.where(masked, predict.ask(state, chunk, given, 0, temperature=0.0, keep=False).token, token)
            verified = predict.ask(state, chunk, token, 1, want="given", given=token)
            found, _ = self._accept(state, token, verified.given, left, valid, accepted + 1)
            accepted = torch.where(left, found.accepted, accepted)
            chosen, stop = self._up_to_stop(state, token, accepted, chosen, valid)

        stands = valid & chosen[..., None] & (place < accepted[..., None]) & (stop.cumsum(2) <= stop)
        refined = state.on_canvas(stands)
        predict.merge(state, branches, token, refined, again=(chosen.sum(1) > 1) & (self.merge == "exact"))
        return token, refined

    def _accept(
        self,
        state: SlotState,
        token: Tensor,
        probability: Tensor,
        chosen: Tensor,
        valid: Tensor,
        head: int | Tensor,
    ) -> tuple[ops.Accepted, Tensor]:
        """How much of each chosen slot stands; and (B, L) bool, the run from the first slot on that is committed."""
        mask_id = state.canvas.mask_id
        assert mask_id is not None
        end = max(state.canvas.vocab_size, mask_id + 1)  # stands for any stop token
        token = torch.where(torch.isin(token, _stop_tokens(state)), end, token)
        written = torch.full_like(state.cells, -1).flatten(1)
        found = ops.accept_slots_(
            written,
            state.by_slot(token).flatten(1),
            state.by_slot(probability).flatten(1),
            chosen,
            valid.flatten(1),
            slot=self.slot_size,
            threshold=self.token_threshold,
            head=head,
            eos=end,
        )
        return found, state.on_canvas(written.view_as(state.cells) >= 0)

    def _up_to_stop(
        self, state: SlotState, token: Tensor, accepted: Tensor, chosen: Tensor, valid: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The chosen slots up to the first with an accepted stop token, (B, S); and the stop tokens in them, (B, S, s)."""
        place = torch.arange(self.slot_size, device=token.device)
        stop = state.by_slot(torch.isin(token, _stop_tokens(state))) & valid & (place < accepted[..., None])
        has_stop = stop.any(2) & chosen
        chosen = chosen & (has_stop.cumsum(1) <= has_stop)
        return chosen, stop & chosen[..., None]

    def _cut(self, canvas: Layout) -> Layout:
        """The canvas in serial_num_blocks blocks per row."""
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
        return canvas.layout(block_length=length, stop=canvas.stop, stop_text=canvas.stop_text, rng=canvas.rng)


def _stop_tokens(state: SlotState) -> Tensor:
    """(n,) int64: the tokens that are stop phrases by themselves."""
    return torch.cat([state.x.new_empty(0), *(p for p in state.canvas.stop if len(p) == 1)])
