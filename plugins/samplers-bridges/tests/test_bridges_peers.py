"""Other people's rules as samplers: the tokens and forward passes that they have in their own engine."""

import pytest
import torch
from bridge_engines import MASK, NET, SIZE, Request, SglangLoop, config_of, vllm_step
from bridge_rules import Bar, BarAlgorithm, BarOfSglang, Edit, EditAlgorithm, Refine, RefinePolicy, ThresholdPolicy
from samplers_bridges.sglang import sampler_from_algorithm
from samplers_bridges.vllm import RemaskStepResult, sampler_from_policy

import samplers
from samplers import OptionError, SamplersError, registry

ROWS = [[1, 2, 3, 4], [5, 6, 7, 8], [9, 1, 9, 1]]
RUN = {"gen_length": 8, "block_length": SIZE, "window": "block", "align": True}


def in_its_engine(rule, row):
    """(tokens, forward passes) of a request of two blocks."""
    request = Request("r", row, 2)
    if rule in (ThresholdPolicy, RefinePolicy):
        index = 0
        while request.blocks:
            config = {"mask_token_id": MASK, "bar": 0.4, "denoise_steps": 3, "denoise_step_index": index}
            before = request.blocks
            vllm_step(request, rule(), config)
            index = index + 1 if request.blocks == before else 0
    else:
        loop = SglangLoop(rule(config_of({"bar": 0.4, "edits": 3}, fdfo=True)))
        if rule is BarAlgorithm:  # the older of the two interfaces: dense logits are the argument itself
            step = loop.algorithm.step
            loop.algorithm.step = lambda batch, out, states: step(batch, out.full_logits, states)
        while request.blocks:
            loop.round([request])
    return request.tokens, request.forwards


@pytest.mark.parametrize(
    ("sampler", "rule"),
    [(Bar, ThresholdPolicy), (Refine, RefinePolicy), (BarOfSglang, BarAlgorithm), (Edit, EditAlgorithm)],
)
def test_a_rule_is_as_a_sampler_what_it_is_in_its_engine(sampler, rule):
    made = samplers.sample(NET, sampler(), prompt=ROWS, steps=6, **RUN)
    for i, row in enumerate(ROWS):
        tokens, forwards = in_its_engine(rule, row)
        assert made.x[i].tolist() == tokens
        assert int(made.nfe_rows[i]) == forwards
    alone = samplers.sample(NET, sampler(), prompt=ROWS[1], steps=6, **RUN)
    assert torch.equal(alone.x[0], made.x[1])


def test_the_same_rule_here_and_there():
    """The zoo's own threshold takes the same positions; SGLang's loop sees each full block once more."""
    ours = samplers.sample(NET, "threshold", threshold=0.4, prompt=ROWS, temperature=0, **RUN)
    theirs = samplers.sample(NET, Bar(), prompt=ROWS, **RUN)
    of_sglang = samplers.sample(NET, BarOfSglang(), prompt=ROWS, **RUN)
    assert torch.equal(ours.x, theirs.x) and torch.equal(ours.x, of_sglang.x)
    assert torch.equal(ours.nfe_rows, theirs.nfe_rows) and torch.equal(ours.nfe_rows + 2, of_sglang.nfe_rows)


@pytest.mark.parametrize("sampler", [Refine, Edit])
def test_states_never_change(sampler):
    """A run whose every step is taken twice, as a pool takes them, is the run whose steps are taken once."""
    run = {"prompt": ROWS[0], "steps": 6, **RUN}
    pool = samplers.Pool(NET)
    pooled = pool.add(sampler(), **run)
    assert list(pool) == [pooled]
    assert torch.equal(pooled.result().x, samplers.sample(NET, sampler(), **run).x)


def test_blocks_shorter_than_the_engines_and_longer_ones():
    run = {"prompt": [1, 2, 3], "gen_length": 5, "block_length": 3}
    short, ours = samplers.sample(NET, Bar(), **run), samplers.sample(NET, "threshold", threshold=0.4, **run)
    assert torch.equal(short.x, ours.x)
    samplers.sample(NET, BarOfSglang(), gen_length=2)  # a block that begins before position 0
    with pytest.raises(OptionError, match="at most 4 positions, not 5: give block_length=4 or less"):
        samplers.sample(NET, Bar(), gen_length=5)


def test_what_cannot_be_a_sampler():
    class Half:
        def apply(self, *, input_draft, logits=None, remasking_config=None):
            return RemaskStepResult((1, 2), (3,) * 4)

    half = sampler_from_policy(Half, name="half", summary="half a block", draft_size=4)
    with pytest.raises(SamplersError, match="committed 2 of 4 positions"):
        samplers.sample(NET, half(), gen_length=4)
    with pytest.raises(OptionError, match="default of option 'bar' is None"):
        sampler_from_policy(ThresholdPolicy, name="bad", summary="", options={"bar": None})
    with pytest.raises(OptionError, match=r"temperature=0\.5 would change nothing"):
        samplers.sample(NET, Bar(), gen_length=4, temperature=0.5)
    with pytest.raises(OptionError, match="takes a class or a function, not int"):
        sampler_from_algorithm(3, name="bad", summary="")


def test_the_bench_measures_a_rule_of_theirs(tmp_path, monkeypatch, capsys):
    """Registered by an entry point, with options: measured by the commands that measure the zoo's own."""
    info = tmp_path / "peer_rules-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: peer-rules\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[samplers]\npeer_bar = bridge_rules:Bar\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    registry.reload()
    try:
        from samplers.cli import main

        command = (
            "bench --problem sudoku4 --samplers peer_bar --nfe 4 --seeds 1 --rows 32 --block-length 4 --temperature 0"
        )
        assert main([*command.split(), "-o", "bar=0.6", "--out", str(tmp_path / "out")]) == 0
        record = (tmp_path / "out" / "cells.jsonl").read_text()
        assert '"bar": 0.6' in record and "peer-rules" in record
    finally:
        registry.reload()
