"""SGLang: any masked sampler as a dLLM algorithm, and a dLLM algorithm as a sampler.

Written by python/sglang/srt/dllm/algorithm/base.py of SGLang as it was in November 2026, in which the base class owns the loop
and a subclass writes `init_step_state` and `step`. SGLang was not run: the tests drive these classes by a loop of the same shape.

    python -m samplers_bridges sglang            # writes the file that SGLang finds the algorithm by
    python -m sglang.launch_server --model-path MODEL --dllm-algorithm Samplers --dllm-algorithm-config sampler.yaml
"""

from __future__ import annotations

import copy
import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor

from samplers import FamilyError, OptionError, PluginError
from samplers.authoring import DraftState, Facts, Layout, Predict, Sampler

from .blocks import Block, Rule, open_windows, row_of
from .peers import greedy, peer_class

__all__ = ["FILE", "algorithm", "sampler_from_algorithm"]

FILE = '''\
"""The samplers of the sampler zoo as a dLLM algorithm: --dllm-algorithm Samplers."""

from samplers_bridges.sglang import algorithm
from sglang.srt.dllm.algorithm.base import DllmAlgorithm

Algorithm = algorithm(DllmAlgorithm)
'''


@dataclass
class Progress:
    """What SGLang carries for a request from one step of a block to the next."""

    block: Block | None = None


def algorithm(base: type) -> type:
    """The algorithm, as a subclass of SGLang's DllmAlgorithm; SGLang calls it by the class's name, Samplers.

    Its configuration (--dllm-algorithm-config, a YAML file) has `sampler`, a name; and, if wanted, `options` of that sampler,
    `steps` per block, `seed`, `temperature`, `top_k`, `top_p`, `forbid`, `demote`, and `per_request: true`, with which
    temperature, top_k and top_p are what each request asks for (ForwardBatch.sampling_info). `block_size` is SGLang's own key.

    A request's draws depend on the seed and on its id (`rids`), and on nothing else of the batch; a ForwardBatch without ids has
    its rows' numbers in their place.

    Forward passes: as the sampler needs them, and one more per block, which stores the keys and values of its final tokens, as
    SGLang demands of every algorithm before it says that a block is done.
    """

    class Samplers(base):
        def __init__(self, config: Any):
            super().__init__(config)
            settings = dict(config.algorithm_config or {})
            settings.pop("block_size", None)
            self.per_request = bool(settings.pop("per_request", False))
            if getattr(config, "is_uniform", False) or config.mask_id < 0:
                raise FamilyError(
                    "samplers_bridges.sglang is for models with a mask token; this one is of uniform noise"
                )
            self.rule = Rule.of("the configuration of --dllm-algorithm Samplers", settings)

        def max_steps(self, block_size: int) -> int:
            return sys.maxsize  # a run ends by itself, or says that its sampler does not

        def init_step_state(self, forward_batch: Any) -> list[Any]:
            return [Progress() for _ in range(forward_batch.batch_size)]

        def step(self, forward_batch: Any, logits_output: Any, states: list[Any]) -> list[bool]:
            batch = forward_batch.batch_size
            ids = forward_batch.input_ids.view(batch, self.block_size)
            logits = getattr(logits_output, "full_logits", logits_output)
            if not isinstance(logits, Tensor):
                raise PluginError("SGLang gave the algorithm no dense logits (full_logits), from which samplers draw")
            logits = logits.view(batch, self.block_size, -1)
            return [self._step(i, forward_batch, ids[i], logits[i], states[i]) for i in range(batch)]

        def _step(self, i: int, forward_batch: Any, ids: Tensor, logits: Tensor, progress: Progress) -> bool:
            """A step of request i; whether its block was done before this forward pass, which has then stored it."""
            if progress.block is None:
                if not bool((ids == self.mask_id).any()):
                    return True  # a part of the prompt
                progress.block = self._begin(i, forward_batch, ids, logits.shape[-1])
            if progress.block.done:
                return True
            if torch.equal(progress.block.ids, ids.to(torch.int64)):  # else its first question is another input
                progress.block.answer(logits)
            ids.copy_(progress.block.ids)  # in place: CUDA graphs read this tensor
            return False

        def _begin(self, i: int, forward_batch: Any, ids: Tensor, vocab_size: int) -> Block:
            positions, requests = (getattr(forward_batch, name, None) for name in ("positions", "rids"))
            start = 0 if positions is None else int(positions.view(-1, self.block_size)[i, 0])
            row = row_of(requests[i] if requests else str(i))
            settings = self._settings_of(i, forward_batch, vocab_size) if self.per_request else None
            where = {"row": row, "vocab_size": vocab_size, "mask_id": self.mask_id}
            return self.rule.begin(ids.to(torch.int64), start, **where, settings=settings)

        def _settings_of(self, i: int, forward_batch: Any, vocab_size: int) -> dict[str, Any]:
            info = getattr(forward_batch, "sampling_info", None)
            if info is None:
                raise PluginError("per_request is set, and this ForwardBatch has no sampling_info")
            top_k = int(info.top_ks[i])
            own = {"temperature": float(info.temperatures[i]), "top_p": float(info.top_ps[i])}
            own["top_k"] = 0 if top_k >= vocab_size else max(top_k, 0)  # SGLang writes 2^30 for "all"
            return {**self.rule.settings, **own}

    return Samplers


# ---------------------------------------------------------------------------------------------- the other direction


@dataclass(frozen=True, eq=False)
class AlgorithmState(DraftState):
    """A run of one of SGLang's algorithms.

    Attributes:
        kept: for each row the number of its block and what the algorithm keeps for it; never changed, but copied.
    """

    kept: tuple[tuple[int, Any], ...]


@dataclass(frozen=True)
class AlgorithmSampler(Sampler[AlgorithmState]):
    """Base of samplers that `sampler_from_algorithm` makes: each step is one `step` of the algorithm over the rows' blocks."""

    family = "masked"
    facts = Facts(revises=True, stores_logits=True)
    default_temperature = 0.0
    ALGORITHM: ClassVar[Any]  # what makes an algorithm of a configuration
    SIZE: ClassVar[int]

    def init(self, canvas: Layout) -> AlgorithmState:
        return AlgorithmState.begin(canvas, kept=((-1, None),) * len(canvas.x))

    def step(self, predict: Predict, state: AlgorithmState) -> AlgorithmState:
        size, mask_id = self.SIZE, state.canvas.mask_id
        greedy(predict, self.name)
        position, draft = open_windows(state, size, f"sampler {self.name!r}")
        logits = predict.logits(state)
        column = logits.position - position[logits.row, 0]
        dense = logits.value.new_zeros(len(draft), size, logits.value.shape[1])
        dense[logits.row, column] = logits.value
        config = {name: value for name, value in self.values().items() if value is not None}
        made: Any = self.ALGORITHM(
            SimpleNamespace(
                algorithm=self.name,
                algorithm_config=config,
                block_size=size,
                mask_id=mask_id,
                max_running_requests=len(draft),
                first_done_first_out_mode=False,
                is_uniform=False,
            )
        )
        here = (~state.done).nonzero().squeeze(1).tolist()
        asked = SimpleNamespace(
            batch_size=len(here),
            input_ids=draft[here].flatten(),
            positions=position[here].flatten(),
            rids=[str(i) for i in here],
        )
        number, kept = state.block.tolist(), list(state.kept)
        fresh: list[Any] = []
        if any(kept[i][0] != number[i] for i in here):
            fresh = made.init_step_state(asked)
        own = [fresh[k] if kept[i][0] != number[i] else copy.deepcopy(kept[i][1]) for k, i in enumerate(here)]
        given: Any = dense[here].flatten(0, 1)
        if "logits_output" in inspect.signature(made.step).parameters:
            given = SimpleNamespace(full_logits=given)
        over = torch.tensor(made.step(asked, given, own), device=draft.device)
        for k, i in enumerate(here):
            kept[i] = (number[i], own[k])
        inside = position[here] >= 0
        rows = torch.tensor(here, device=draft.device)[:, None].expand_as(inside)[inside]
        x, decide = state.x.clone(), torch.zeros_like(state.open)
        x[rows, position[here][inside]] = asked.input_ids.view(len(here), size)[inside]
        decide[here] = over[:, None]
        return state.revise(x, decide, kept=tuple(kept))


def sampler_from_algorithm(
    algorithm: Callable[[Any], Any],
    *,
    name: str,
    summary: str,
    cite: str = "SGLang, python/sglang/srt/dllm/algorithm",
    options: Mapping[str, Any] | None = None,
    block_size: int = 32,
) -> type[AlgorithmSampler]:
    """A sampler class of a dLLM algorithm of SGLang, to be registered by an entry point, measured and compared.

    Each forward pass that SGLang would run is one here: the one in which an algorithm only sees that its block is full counts as
    well. The sampler copies what the algorithm keeps for a request (`states`) before each step, so a state never changes.

    Such a rule draws nothing. So a temperature other than 0 is refused, and the conformance kit, which draws, does not apply.

    Args:
        algorithm: a subclass of DllmAlgorithm with the method step(forward_batch, logits, states), or whatever makes one of a
            configuration with the attributes of DllmConfig.
        name, summary, cite: as every sampler has them.
        options: what the algorithm reads from its configuration, with defaults, or with samplers.option(default,
            help, ge=...): they become options of the sampler.
        block_size: positions per block; block_length of a run may be less, and the block is then filled up on the left with
            what stands there, which the algorithm takes for decided.

    Raises:
        OptionError: an option's default is no number, text or bool.
    """
    if not callable(algorithm):
        raise OptionError(f"sampler_from_algorithm takes a class or a function, not {type(algorithm).__name__}")
    own = {"ALGORITHM": staticmethod(algorithm), "SIZE": block_size}
    return peer_class(AlgorithmSampler, name, summary, cite, options, own)
