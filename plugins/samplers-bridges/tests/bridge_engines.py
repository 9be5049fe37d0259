"""Small engines for tests, written by the published interfaces: who owns the loop, what is given, in which shapes."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace

import torch

from samplers.testing.tiny import TinyNet

NET = TinyNet(visible_too=True)
VOCAB, MASK, SIZE = NET.vocab_size, NET.mask_id, 4


def logits_of(row: torch.Tensor) -> torch.Tensor:
    """(L, V): the model's answer for one row of tokens. It never finds the mask likely, as a trained model does not."""
    logits = NET.predict(row[None])
    logits[:, MASK] = -torch.inf
    return logits


class Request:
    """A request to an engine that decodes block by block, `size` positions each, counted from position 0."""

    def __init__(self, rid: str, prompt: list[int], blocks: int, *, mask_id: int = MASK, size: int = SIZE):
        self.rid, self.size, self.blocks, self.mask_id = rid, size, blocks, mask_id
        whole = len(prompt) // size * size
        self.tokens, self.tail = list(prompt[:whole]), list(prompt[whole:])
        self.draft = self._next()
        self.state = None
        self.forwards = 0

    def _next(self) -> list[int]:
        draft = self.tail + [self.mask_id] * (self.size - len(self.tail))
        self.tail = []
        return draft

    def commit(self, block: list[int]) -> None:
        self.tokens += block
        self.blocks -= 1
        self.draft = self._next()

    def logits(self, draft: torch.Tensor) -> torch.Tensor:
        """(size, V): one forward pass over the block, after what the engine keeps of the tokens before it."""
        self.forwards += 1
        return logits_of(torch.cat([torch.tensor(self.tokens, dtype=torch.int64), draft]))[-self.size :]


class DllmAlgorithm:
    """As SGLang's base class: the subclass writes step(); `run` is one round (first done, first out) or whole blocks."""

    def __init__(self, config):
        self.block_size, self.mask_id = config.block_size, config.mask_id
        self.fdfo = config.first_done_first_out_mode

    def max_steps(self, block_size):
        return block_size + 1

    def init_step_state(self, forward_batch):
        return [None] * forward_batch.batch_size


def config_of(algorithm_config, *, fdfo=False, size=SIZE, mask_id=MASK):
    return SimpleNamespace(
        algorithm="Samplers",
        algorithm_config=algorithm_config,
        block_size=size,
        mask_id=mask_id,
        max_running_requests=8,
        first_done_first_out_mode=fdfo,
        is_uniform=False,
    )


class SglangLoop:
    """Runs requests by an algorithm, several in a batch. calls: forward passes, of all requests that share them."""

    def __init__(self, algorithm):
        self.algorithm, self.calls = algorithm, 0

    def forward(self, batch, requests):
        """Dense logits of all blocks, (batch * size, V), as LogitsProcessorOutput has them."""
        self.calls += 1
        size = self.algorithm.block_size
        rows = batch.input_ids.view(len(requests), size).long()
        full = torch.cat([request.logits(row) for request, row in zip(requests, rows)])
        return SimpleNamespace(full_logits=full)

    def batch_of(self, requests):
        size = self.algorithm.block_size
        starts = [torch.arange(len(r.tokens), len(r.tokens) + size) for r in requests]
        drafts = torch.tensor([r.draft for r in requests], dtype=torch.int64)
        return SimpleNamespace(
            batch_size=len(requests),
            input_ids=drafts.flatten(),
            positions=torch.cat(starts),
            rids=[r.rid for r in requests],
            sampling_info=SimpleNamespace(
                temperatures=torch.tensor([[getattr(r, "temperature", 1.0)] for r in requests]),
                top_ps=torch.tensor([getattr(r, "top_p", 1.0) for r in requests]),
                top_ks=torch.tensor([getattr(r, "top_k", 2**30) for r in requests], dtype=torch.int32),
            ),
        )

    def round(self, requests):
        """First done, first out: one forward pass; what a request's block carries goes along with the request."""
        batch, algorithm = self.batch_of(requests), self.algorithm
        fresh = algorithm.init_step_state(batch)
        states = [fresh[i] if r.state is None else r.state for i, r in enumerate(requests)]
        done = algorithm.step(batch, self.forward(batch, requests), states)
        rows = batch.input_ids.view(len(requests), -1).tolist()
        for request, row, over, state in zip(requests, rows, done, states):
            request.state = None if over else state
            if over:
                request.commit(row)
            else:
                request.draft = row

    def whole_blocks(self, requests):
        """The other mode: forward passes until the blocks of all requests are done."""
        batch, algorithm = self.batch_of(requests), self.algorithm
        states = algorithm.init_step_state(batch)
        out = self.forward(batch, requests)
        for _ in range(algorithm.max_steps(algorithm.block_size)):
            if all(algorithm.step(batch, out, states)):
                break
            out = self.forward(batch, requests)
        for request, row in zip(requests, batch.input_ids.view(len(requests), -1).tolist()):
            request.commit(row)


def vllm_step(request, policy, config=None):
    """One engine step of a request, as DllmWorker.run_one_block and remask_after_block_forward make it."""
    logits = request.logits(torch.tensor(request.draft, dtype=torch.int64))
    result = policy.apply(input_draft=tuple(request.draft), logits=logits, remasking_config=config)
    assert len(result.next_input_block) == request.size
    assert 0 <= len(result.committed_token_ids) <= request.size
    if result.committed_token_ids:
        request.commit(list(result.committed_token_ids))
        assert Counter(result.next_input_block) == {request.mask_id: request.size}
    else:
        request.draft = list(result.next_input_block)
