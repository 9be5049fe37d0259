"""Rules as other people write them: two RemaskingPolicies and two dLLM algorithms, by the published interfaces."""

from __future__ import annotations

import torch
from bridge_engines import DllmAlgorithm
from samplers_bridges.sglang import sampler_from_algorithm
from samplers_bridges.vllm import RemaskStepResult, sampler_from_policy

samplers_interface = 1


class ThresholdPolicy:
    """Takes the best token wherever its probability is above a bar, and at the best position anyway."""

    def apply(self, *, input_draft, logits=None, remasking_config=None):
        mask_id, bar = remasking_config["mask_token_id"], remasking_config["bar"]
        probability, token = logits.softmax(-1).max(-1)
        masked = torch.tensor([i == mask_id for i in input_draft])
        probability = torch.where(masked, probability, -1.0)
        take = (probability > bar) | (torch.arange(len(masked)) == probability.argmax())
        draft = torch.where(take & masked, token, torch.tensor(input_draft)).tolist()
        over = mask_id not in draft
        return RemaskStepResult(tuple(draft) if over else (), (mask_id,) * len(draft) if over else tuple(draft))


class RefinePolicy:
    """Fills the block at once, and in each step but the last masks again the tokens that the model finds least likely.

    Of n positions step k of S masks n - (k + 1) n // S again. It judges what stands there, so it changes what it has decided.
    """

    def apply(self, *, input_draft, logits=None, remasking_config=None):
        mask_id, steps = remasking_config["mask_token_id"], remasking_config["denoise_steps"]
        k, size = remasking_config["denoise_step_index"], len(input_draft)
        law = logits.double().softmax(-1)
        draft = torch.tensor(input_draft)
        draft = torch.where(draft == mask_id, law.argmax(-1), draft)
        again = size - (k + 1) * size // steps
        doubt = law.gather(1, draft[:, None]).squeeze(1).argsort(stable=True)[:again]
        draft[doubt] = mask_id
        draft = tuple(draft.tolist())
        return RemaskStepResult((), draft) if again else RemaskStepResult(draft, (mask_id,) * size)


class BarAlgorithm(DllmAlgorithm):
    """ThresholdPolicy's rule, over a batch."""

    def __init__(self, config):
        super().__init__(config)
        self.bar = config.algorithm_config.get("bar", 0.9)

    def step(self, forward_batch, full_logits, states):
        shape = forward_batch.batch_size, self.block_size
        ids = forward_batch.input_ids.view(shape)
        masked = ids == self.mask_id
        probability, token = full_logits.view(*shape, -1).softmax(-1).max(-1)
        probability = torch.where(masked, probability, -1.0)
        best = torch.zeros_like(masked).scatter(1, probability.argmax(1, keepdim=True), True)
        forward_batch.input_ids.copy_(torch.where(masked & ((probability > self.bar) | best), token, ids).flatten())
        return (~masked.any(1)).tolist()


class EditAlgorithm(BarAlgorithm):
    """Then changes single tokens while the model is surer of another one, `edits` times at most; keeps a count."""

    def __init__(self, config):
        super().__init__(config)
        self.edits = config.algorithm_config["edits"]

    def max_steps(self, block_size):
        return block_size + self.edits + 2

    def init_step_state(self, forward_batch):
        given = (forward_batch.input_ids.view(-1, self.block_size) != self.mask_id).tolist()
        return [{"left": self.edits, "given": row, "over": False} for row in given]

    def step(self, forward_batch, logits_output, states):
        full, done = logits_output.full_logits, []
        for i, state in enumerate(states):
            here = slice(i * self.block_size, (i + 1) * self.block_size)
            ids, law = forward_batch.input_ids[here], full[here].softmax(-1)
            probability, token = law.max(-1)
            masked = ids == self.mask_id
            done.append(state["over"])
            if state["over"]:
                continue
            if bool(masked.any()):
                probability = torch.where(masked, probability, -1.0)
                chosen = (probability > self.bar) | (torch.arange(len(ids)) == probability.argmax())
                chosen &= masked
            else:
                chosen = (token != ids) & ~torch.tensor(state["given"]) & (probability > 0.3)
                state["left"] -= 1
                state["over"] = state["left"] < 0 or not bool(chosen.any())
                chosen &= torch.tensor(not state["over"])
            ids[chosen] = token[chosen]
        return done


Bar = sampler_from_policy(
    ThresholdPolicy, name="peer_bar", summary="a bar on the probability", options={"bar": 0.4}, draft_size=4
)
Refine = sampler_from_policy(RefinePolicy, name="peer_refine", summary="all at once, then again", draft_size=4)
BarOfSglang = sampler_from_algorithm(
    BarAlgorithm, name="peer_bar_sglang", summary="a bar on the probability", options={"bar": 0.4}, block_size=4
)
Edit = sampler_from_algorithm(
    EditAlgorithm, name="peer_edit", summary="a bar, then edits", options={"bar": 0.4, "edits": 3}, block_size=4
)
