"""vLLM: any masked sampler as a RemaskingPolicy of vllm-project/dllm-plugin, and a RemaskingPolicy as a sampler.

Written by vllm_dllm_plugin/remasking/base.py of that plug-in at commit 0c53db5 (16 April 2026): one method,
apply(input_draft=, logits=, remasking_config=), called after the forward pass over one block of one request. The plug-in was not
run: the tests call the policies as its `remask_after_block_forward` does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from samplers import OptionError, SamplersError
from samplers.authoring import DraftState, Facts, Layout, Predict, Sampler

from .blocks import Block, Rule, open_windows, row_of
from .peers import greedy, peer_class

__all__ = ["RemaskStepResult", "SamplerPolicy", "sampler_from_policy"]

try:
    from vllm_dllm_plugin.remasking import RemaskStepResult
except ImportError:

    @dataclass(frozen=True)
    class RemaskStepResult:  # type: ignore[no-redef]
        """What a policy returns, as in the plug-in, for machines without it.

        Attributes:
            committed_token_ids: the block's tokens if it is done, else nothing.
            next_input_block: what the next forward pass is given, as long as the block.
        """

        committed_token_ids: tuple[int, ...]
        next_input_block: tuple[int, ...]


class SamplerPolicy:
    """A RemaskingPolicy that runs a masked sampler: SamplerPolicy("entropy_bound", mask_id=156895, steps=16).

    The plug-in calls a policy for one request at a time and does not say for which. What a sampler knows between two steps is
    kept here, by request: give each its own policy, `policy.request(id)`, or write "request_id" into remasking_config. Without an
    id the policy serves one request after the other; a draft that is not what it asked for is an error.

    A block is committed in the forward pass in which its last position is decided, as by the plug-in's own policy; until then
    committed_token_ids is empty, and next_input_block is what the sampler wants the model to be given.

    Args:
        sampler: the name of a masked sampler.
        mask_id: the model's mask token.
        settings: `options` of the sampler (a mapping), `steps` per block, `seed`, temperature, top_k, top_p, forbid, demote.
    """

    def __init__(self, sampler: str, *, mask_id: int, **settings: Any):
        self.mask_id = mask_id
        self.rule = Rule.of("SamplerPolicy", {"sampler": sampler, **settings})
        self._blocks: dict[str | None, Block] = {}
        self._position: dict[str | None, int] = {}

    def request(self, request_id: str, *, position: int = 0) -> RequestPolicy:
        """The policy of one request.

        Args:
            position: of the first token of its first block. The draws depend on it; with it they are those of sample().
        """
        self._position.setdefault(request_id, position)
        return RequestPolicy(self, request_id)

    def drop(self, request_id: str | None) -> None:
        """Forget a request: it has ended, or was given up."""
        self._blocks.pop(request_id, None)
        self._position.pop(request_id, None)

    def apply(
        self,
        *,
        input_draft: Sequence[int],
        logits: Any | None = None,
        remasking_config: Mapping[str, Any] | None = None,
    ) -> RemaskStepResult:
        """A step of a request's block.

        Args:
            input_draft: n token ids, the block that the model was given; the mask id at positions to fill.
            logits: (n, V), of its positions; a tensor or nested sequences.
            remasking_config: may hold "request_id", a text. Other keys are for other policies, and are not read.

        Raises:
            OptionError: logits are missing or of another shape; the draft is not the one that the request waits for.
        """
        request_id, draft = (remasking_config or {}).get("request_id"), tuple(input_draft)
        block = self._blocks.get(request_id)
        if block is None and self.mask_id not in draft:
            self._position[request_id] = self._position.get(request_id, 0) + len(draft)
            return self._committed(draft)
        if logits is None:
            raise OptionError("SamplerPolicy.apply needs logits; only the last pipeline stage has them")
        logits = logits if isinstance(logits, Tensor) else torch.tensor(logits, dtype=torch.float32, device="cpu")
        if logits.dim() != 2 or len(logits) != len(draft):
            raise OptionError(f"SamplerPolicy.apply: logits are {tuple(logits.shape)}; ({len(draft)}, V) is needed")
        if block is None:
            block = self._begin(request_id, draft, logits)
        elif tuple(block.ids.tolist()) != draft:
            raise OptionError(
                f"SamplerPolicy.apply: the draft is not the block that request {request_id!r} waits for. If several requests "
                'share this policy, use policy.request(id) for each, or remasking_config={"request_id": id}; a request that was '
                "given up is forgotten by policy.drop(id)"
            )
        if tuple(block.ids.tolist()) == draft:  # else its first question is another input
            block.answer(logits)
        ids = tuple(block.ids.tolist())
        if not block.done:
            self._blocks[request_id] = block
            return RemaskStepResult(committed_token_ids=(), next_input_block=ids)
        self._blocks.pop(request_id, None)
        self._position[request_id] = block.start + len(ids)
        return self._committed(ids)

    def _begin(self, request_id: str | None, draft: tuple[int, ...], logits: Tensor) -> Block:
        return self.rule.begin(
            torch.tensor(draft, dtype=torch.int64, device=logits.device),
            self._position.get(request_id, 0),
            row=0 if request_id is None else row_of(request_id),
            vocab_size=logits.shape[1],
            mask_id=self.mask_id,
        )

    def _committed(self, ids: tuple[int, ...]) -> RemaskStepResult:
        return RemaskStepResult(committed_token_ids=ids, next_input_block=(self.mask_id,) * len(ids))


@dataclass(frozen=True)
class RequestPolicy:
    """A RemaskingPolicy for one request; made by SamplerPolicy.request."""

    policy: SamplerPolicy
    request_id: str

    def apply(
        self,
        *,
        input_draft: Sequence[int],
        logits: Any | None = None,
        remasking_config: Mapping[str, Any] | None = None,
    ) -> RemaskStepResult:
        """As SamplerPolicy.apply."""
        config = {**(remasking_config or {}), "request_id": self.request_id}
        return self.policy.apply(input_draft=input_draft, logits=logits, remasking_config=config)


# ---------------------------------------------------------------------------------------------- the other direction


@dataclass(frozen=True)
class PolicySampler(Sampler[DraftState]):
    """Base of samplers that `sampler_from_policy` makes: each step asks the policy about each row's block."""

    family = "masked"
    facts = Facts(revises=True, stores_logits=True)
    default_temperature = 0.0
    POLICY: ClassVar[Any]  # what makes a policy
    SIZE: ClassVar[int]

    def init(self, canvas: Layout) -> DraftState:
        return DraftState.begin(canvas)

    def step(self, predict: Predict, state: DraftState) -> DraftState:
        size, policy = self.SIZE, self.POLICY()
        greedy(predict, self.name)
        position, draft = open_windows(state, size, f"sampler {self.name!r}")
        logits = predict.logits(state)
        dense = logits.value.new_zeros(len(draft), size, logits.value.shape[1])
        dense[logits.row, logits.position - position[logits.row, 0]] = logits.value
        config = {"mask_token_id": state.canvas.mask_id, "denoise_steps": 0, "denoise_step_index": 0}
        x, decide = state.x.clone(), torch.zeros_like(state.open)
        for i in (~state.done).nonzero().squeeze(1).tolist():  # the interface is of one request
            config |= {"denoise_steps": int(state.block_steps[i]), "denoise_step_index": int(state.block_step[i])}
            result: Any = policy.apply(
                input_draft=tuple(draft[i].tolist()), logits=dense[i], remasking_config={**config, **self.values()}
            )
            if len(result.committed_token_ids) not in (0, size):
                raise SamplersError(
                    f"the policy of sampler {self.name!r} committed {len(result.committed_token_ids)} of {size} positions; "
                    "a sampler commits a whole block, or none yet"
                )
            made = result.committed_token_ids or result.next_input_block
            inside = position[i] >= 0
            x[i, position[i][inside]] = torch.tensor(made, dtype=torch.int64, device=x.device)[inside]
            decide[i] = bool(result.committed_token_ids)
        return state.revise(x, decide)


def sampler_from_policy(
    policy: Callable[[], Any],
    *,
    name: str,
    summary: str,
    cite: str = "vllm-project/dllm-plugin, RemaskingPolicy",
    options: Mapping[str, Any] | None = None,
    draft_size: int = 32,
) -> type[PolicySampler]:
    """A sampler class of a RemaskingPolicy, to be registered by an entry point, measured and compared.

    The policy is told "mask_token_id", "denoise_steps" (those of the row's block) and "denoise_step_index" beside `options`. It
    must be a function of what it is given, as the plug-in's own are: it is made anew in every step.

    Such a rule draws nothing. So a temperature other than 0 is refused, and the conformance kit, which draws, does not apply.

    Args:
        policy: the class, or whatever makes one.
        name, summary, cite: as every sampler has them.
        options: keys of remasking_config with defaults, or with samplers.option(default,
            help, ge=...): they become options of the sampler.
        draft_size: positions per block (the plug-in's DRAFT_SIZE); block_length of a run may be less, and the draft is then
            filled up on the left with what stands there, which the policy takes for decided.

    Raises:
        OptionError: an option's default is no number, text or bool.
    """
    if not callable(policy):
        raise OptionError(f"sampler_from_policy takes a class or a function, not {type(policy).__name__}")
    own = {"POLICY": staticmethod(policy), "SIZE": draft_size}
    return peer_class(PolicySampler, name, summary, cite, options, own)
