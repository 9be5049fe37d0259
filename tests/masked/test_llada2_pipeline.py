"""The code that models of block-causal attention come with, beside ours: diffusers' LLaDA2Pipeline, SDAR's loop, BD3-LM's.

All at temperature 0, at every length of the prompt up to two blocks: tokens and forward passes.
"""

import itertools
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import samplers
from samplers import TokenDenoiser
from samplers.random import DRAW_POSITION, Rng

pytestmark = pytest.mark.usefixtures("one_thread")
V = MASK = 24


class TinyBlockLM(nn.Module):
    """Two layers of attention in which a position sees its own block and those before it. It has no logit for the mask.

    Sharp enough that tokens are sure, and unsteady: most tokens that stand are given another best token, so that editing goes
    on and on.
    """

    device = torch.device("cpu")  # the pipeline asks

    def __init__(self, block, seed=0, width=32):
        super().__init__()
        random = torch.Generator().manual_seed(seed)
        names = ["embed", "place", *(f"{n}{i}" for i in range(2) for n in "qkv"), "head"]
        sizes = [(V + 1, width), (64, width), *[(width, width)] * 6, (width, V)]
        for name, size in zip(names, sizes):
            self.register_buffer(
                name, torch.randn(size, generator=random) * (1.4 if name == "head" else 1) * size[1] ** -0.5
            )
        self.block, self.calls, self.calls_with_masks = block, 0, 0

    def forward(self, ids, attention_mask, position_ids):
        self.calls += 1
        self.calls_with_masks += bool((ids[:, -self.block :] == MASK).any())
        h = self.embed[ids] * 5 + self.place[position_ids] * 3
        block = position_ids // self.block
        sees = (block[:, :, None] >= block[:, None, :]) & attention_mask[:, None, :].bool()  # (B, L, L)
        for i in range(2):
            q, k, v = (h @ getattr(self, f"{n}{i}") for n in "qkv")
            h = h + (q @ k.mT * 0.5).masked_fill(~sees, -torch.inf).softmax(2) @ v * 2
        return SimpleNamespace(logits=h @ self.head)

    def answer(self, ids, end=None):
        """Logits (B, L, V); what lies at `end` and after it is not seen."""
        position = torch.arange(ids.shape[1]).expand_as(ids)
        there = (position < (ids.shape[1] if end is None else end)).long()
        return self(ids, there, position).logits

    def denoiser(self, end=None):
        return TokenDenoiser.wrap(
            lambda ids: self.answer(ids, end),
            vocab_size=V, mask_id=MASK, attention="block_causal", attention_block=self.block,
        )  # fmt: skip


def prompt_of(length, seed=0):
    return torch.randint(0, V, (1, length), generator=torch.Generator().manual_seed(seed + length))


# ---------------------------------------------------------------------------------------------- LLaDA2Pipeline

SETTINGS = [  # steps of a block, threshold, edit_threshold
    (32, 0.7, 0.5), (3, 0.7, 0.5), (8, 0.5, 0.9), (2, 0.95, 0.3), (32, 0.95, None), (3, 0.5, None), (1, 0.9, 0.6),
]  # fmt: skip


@pytest.fixture(scope="module")
def pipeline():
    diffusers = pytest.importorskip("diffusers")
    pipe = diffusers.LLaDA2Pipeline(TinyBlockLM(4), diffusers.BlockRefinementScheduler(), None)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def reference(pipe, model, prompt, gen_length, steps, threshold, edit, most=16, eos=None):
    """The pipeline's tokens (B, gen_length), its forward passes, and those in which the block had a mask."""
    pipe.model = model
    model.calls = model.calls_with_masks = 0
    out = pipe(
        input_ids=prompt, gen_length=gen_length, block_length=model.block, num_inference_steps=steps, threshold=threshold,
        editing_threshold=edit, max_post_steps=most, sampling_method="greedy", mask_token_id=MASK, eos_token_id=eos,
        eos_early_stop=eos is not None, output_type="seq",
    )  # fmt: skip
    return out.sequences, model.calls, model.calls_with_masks


def ours(denoiser, prompt, gen_length, steps, threshold, edit, most=16, eos=None, **more):
    return samplers.sample(
        denoiser, "llada2", prompt=prompt, gen_length=gen_length, window="block", threshold=threshold,
        edit_threshold=edit, steps_per_block=steps, max_post_steps=most + 1, temperature=0.0, stop=eos,
        stop_rule="llada2", **more,
    )  # fmt: skip


@pytest.mark.parametrize("block", [3, 4, 8])
def test_llada2_is_the_pipeline_at_every_prompt_length(pipeline, block):
    """20 of 20, and more: each length of the prompt with each setting, in blocks that the canvas ends with."""
    model, edited, lengths = TinyBlockLM(block, seed=block), 0, range(2 * block + 1)
    for p, (steps, threshold, edit) in itertools.product(lengths, SETTINGS):
        if block == 8 and p not in (0, 1, 5, 7, 8, 12, 16):
            continue
        n = -p % block + 2 * block
        prompt, setting = prompt_of(p), (n, steps, threshold, edit, 5)
        tokens, calls, with_masks = reference(pipeline, model, prompt, *setting)
        out = ours(model.denoiser(), prompt, *setting)
        assert out.x[:, p:].tolist() == tokens.tolist(), setting
        # Without editing the pipeline looks once more at a full block, and nothing can come of it.
        assert out.nfe == (with_masks if edit is None else calls), setting
        edited += calls - with_masks if edit else 0
    assert edited > 20, "hardly a step that only edits: nothing is shown"


def test_a_last_block_that_is_not_whole(pipeline):
    """What the pipeline does beyond the end of the canvas: it fills that in as well, unseen, out of the same counts."""
    model, differs = TinyBlockLM(4, seed=7), 0
    for (p, n), (steps, threshold, edit) in itertools.product(((0, 9), (1, 9), (3, 8)), SETTINGS):
        rest = -(p + n) % 4
        tokens, calls, with_masks = reference(pipeline, model, prompt_of(p), n, steps, threshold, edit)
        steps = min(steps, n)  # the pipeline's own rule
        out = ours(model.denoiser(end=p + n), prompt_of(p), n + rest, steps, threshold, edit)
        assert out.x[:, p : p + n].tolist() == tokens.tolist()
        assert out.nfe == (with_masks if edit is None else calls)
        shorter = ours(model.denoiser(), prompt_of(p), n, steps, threshold, edit)
        first = (p + n) // 4 * 4  # up to the last block there is no difference at all
        assert shorter.x[:, :first].tolist() == out.x[:, :first].tolist()
        differs += (shorter.x.tolist(), shorter.nfe) != (out.x[:, : p + n].tolist(), out.nfe)
    assert differs, "whether the end is filled in would make no difference here"


def test_the_end_of_a_text_is_the_pipelines(pipeline):
    """eos_early_stop, with and without editing; and the other rules do differ."""
    model, ended, others = TinyBlockLM(4, seed=2), 0, {"decided": 0, "block": 0}
    for p, eos, (steps, threshold, edit) in itertools.product(
        (1, 3, 6), (3, 5, 20), (SETTINGS[0], SETTINGS[2], SETTINGS[5])
    ):
        prompt = prompt_of(p)
        prompt = torch.where(prompt == eos, eos + 1, prompt)
        setting = (16 - p, steps, threshold, edit, 4, eos)
        tokens, calls, with_masks = reference(pipeline, model, prompt, *setting)
        row = tokens[0].tolist()
        row = row[: row.index(eos) + 1] if eos in row else row  # as the pipeline makes text of it
        out = ours(model.denoiser(), prompt, *setting)
        assert out.rows()[0][p:].tolist() == row
        assert out.nfe == (with_masks if edit is None else calls)
        ended += MASK in tokens[0].tolist()
        for rule in others:
            other = samplers.sample(
                model.denoiser(), "llada2", prompt=prompt, gen_length=16 - p, threshold=threshold, edit_threshold=edit,
                steps_per_block=steps, max_post_steps=5, stop=eos, stop_rule=rule,
            )  # fmt: skip
            others[rule] += other.rows()[0][p:].tolist() != row
    assert ended > 5, "hardly a row ended early"
    assert all(others.values()), others


def test_equal_prompts_and_rows_that_wait(pipeline):
    """A batch: rows of the pipeline wait for each other in every block; ours take the passes that each takes alone."""
    model = TinyBlockLM(4, seed=3)
    prompts = torch.cat([prompt_of(5, seed) for seed in range(4)])
    for prompt, (steps, threshold, edit) in ((prompts[:1].repeat(3, 1), (32, 0.5, 0.3)), (prompts, (3, 0.6, None))):
        tokens, calls, with_masks = reference(pipeline, model, prompt, 11, steps, threshold, edit)
        out = ours(model.denoiser(), prompt, 11, steps, threshold, edit)
        assert out.x[:, 5:].tolist() == tokens.tolist()
        alone = [ours(model.denoiser(), row[None], 11, steps, threshold, edit).nfe for row in prompt]
        most = with_masks if edit is None else calls
        assert out.nfe_rows.tolist() == alone and (max(alone) == most if edit else max(alone) <= most)


# ---------------------------------------------------------------------------------------------- SDAR


def sdar(model, prompt, gen_length, steps, threshold, stop=()):
    """One row of SDAR's loop, without its cache: threshold None is low_confidence_static, a number low_confidence_dynamic.

    Returns the tokens, the denoising passes, and the passes that only fill its cache.
    """
    block, p = model.block, prompt.shape[1]
    blocks = -(-(p + gen_length) // block)
    x, passes, clean = [*prompt[0].tolist(), *[MASK] * (blocks * block - p)], 0, int(p >= block)
    for number in range(p // block, blocks):
        here = range(number * block, (number + 1) * block)
        for step in range(steps + 1):
            masked = [i for i in here if x[i] == MASK]
            if not masked:
                clean += 1
                break
            probability = model.answer(torch.tensor([x[: here[-1] + 1]]))[0].softmax(1)
            passes += 1
            sure = {i: float(probability[i].max()) for i in masked}
            least = block // steps + (step < block % steps)
            chosen = sorted(masked, key=lambda i, sure=sure: -sure[i])[:least]
            if threshold is not None and sum(c > threshold for c in sure.values()) >= least:
                chosen = [i for i in masked if sure[i] > threshold]
            for i in chosen:
                x[i] = int(probability[i].argmax())
        if set(stop) & set(x[p : here[-1] + 1]):
            break
    return x[p:], passes, clean


@pytest.mark.parametrize("block", [4, 6])
@pytest.mark.parametrize("threshold", [None, 0.85, 0.6])
def test_sdars_two_rules(block, threshold):
    """`low_confidence` is the static one and `threshold` the dynamic one, at every prompt length and whole numbers of blocks."""
    model, early = TinyBlockLM(block, seed=block), 0
    denoiser = model.denoiser()
    for p, steps in itertools.product(range(2 * block + 1), (block, 3, 1)):
        n = -p % block + 2 * block
        sampler = "low_confidence" if threshold is None else "threshold"
        option = {} if threshold is None else {"threshold": threshold}
        run = {"prompt": prompt_of(p), "gen_length": n, "steps_per_block": steps, "window": "block", **option}
        x, passes, _ = sdar(model, prompt_of(p), n, steps, threshold)
        out = samplers.sample(denoiser, sampler, **run)
        assert out.x[0, p:].tolist() == x and out.nfe == passes
        early += passes < 2 * min(steps, block)
        # A stop token is looked for when a block is done.
        stop = [x[1], x[2]]
        x, passes, _ = sdar(model, prompt_of(p), n, steps, threshold, stop)
        out = samplers.sample(denoiser, sampler, **run, stop=stop, stop_rule="block")
        made = out.rows()[0][p:].tolist()
        assert made == x[: len(made)] and made[-1] in stop and out.nfe == passes
    assert early or threshold is None


# ---------------------------------------------------------------------------------------------- BD3-LM


def bd3lm(model, prompt, gen_length, uniform):
    """One row of BD3-LM's first-hitting loop: of each block in turn, one masked position at random and its best token."""
    block, p = model.block, prompt.shape[1]
    x = [*prompt[0].tolist(), *[MASK] * gen_length]
    for corner in range(p // block * block, len(x), block):
        masked = [i for i in range(corner, corner + block) if x[i] == MASK]
        while masked:
            i = min(masked, key=lambda i: uniform[i])  # as likely to be any of them
            x[i] = int(model.answer(torch.tensor([x[: corner + block]]))[0, i].argmax())
            masked.remove(i)
    return x


def test_bd3lms_first_hitting():
    model = TinyBlockLM(4, seed=6)
    for p in range(9):
        n = -p % 4 + 8
        uniform = Rng.of(p, 1).positions(p + n, torch.zeros(1, dtype=torch.int64), DRAW_POSITION)[0].tolist()
        run = {"prompt": prompt_of(p), "gen_length": n, "seed": p, "temperature": 0.0}
        for window in (None, "block"):
            out = samplers.sample(model.denoiser(), "first_hitting", window=window, **run)
            assert out.x[0].tolist() == bd3lm(model, prompt_of(p), n, uniform) and out.nfe == n
