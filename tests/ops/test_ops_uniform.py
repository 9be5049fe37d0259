"""row_uniforms: the numbers of samplers.random.uniform, in one pass; native kernel, twin and CUDA body are the same."""

import pytest
import torch
from emulator import emulated

import samplers
from samplers.ops import reference, row_uniforms
from samplers.random import Rng, uniform

SEED = torch.tensor([0, 5, -1, 2**63 - 1, -(2**63)])
ROW = torch.tensor([0, 2**33 + 7, 1, -5, 12])
STEP = torch.tensor([0, 3, 2**31, 2**32 + 1, -1])
WHICH, POSITION = torch.tensor([4, 0, 0, 2, 3, 1]), torch.tensor([0, 0, 1, 2**32 - 1, 70_000, 5])


def expected(which, position, draw):
    pairs = zip(which.tolist(), position.tolist())
    return torch.stack([uniform(SEED[b], ROW[b], torch.tensor(p), STEP[b], draw) for b, p in pairs])


@pytest.mark.parametrize("draw", [0, 8, 1000, 2**32 - 1])
def test_numbers_are_those_of_random_uniform(draw):
    out = row_uniforms(SEED, ROW, STEP, which=WHICH, position=POSITION, draw=draw)
    assert out.dtype == torch.float64 and torch.equal(out, expected(WHICH, POSITION, draw))
    assert torch.equal(out, reference.row_uniforms(SEED, ROW, STEP, WHICH, POSITION, 0, draw))
    every = row_uniforms(SEED, ROW, STEP, length=7, draw=draw)
    grid = torch.arange(5).repeat_interleave(7), torch.arange(7).repeat(5)
    assert every.shape == (5, 7) and torch.equal(every.flatten(), expected(*grid, draw))
    assert torch.equal(every, reference.row_uniforms(SEED, ROW, STEP, None, None, 7, draw))


def test_rng_draws_them():
    rng = Rng(SEED, ROW)
    assert torch.equal(rng.at(WHICH, POSITION, STEP, 3), expected(WHICH, POSITION, 3))
    assert torch.equal(rng.positions(6, STEP, 2), row_uniforms(SEED, ROW, STEP, length=6, draw=2))


def test_opcheck():
    for arguments in ((SEED, ROW, STEP, WHICH, POSITION, 0, 1), (SEED, ROW, STEP, None, None, 4, 1)):
        torch.library.opcheck(torch.ops.sampler_zoo.row_uniforms.default, arguments)


@pytest.mark.parametrize(
    ("change", "error", "says"),
    [
        ({"seed": SEED.int()}, TypeError, "seed is torch.int32, expected torch.int64"),
        ({"row": ROW[:2]}, ValueError, r"row has shape \(2,\), expected \(5,\)"),
        ({"which": WHICH + 1}, IndexError, r"which\[0\] is 5, expected 0 to 4 \(the rows of the batch\)"),
        ({"position": None}, ValueError, "which and position go together"),
        ({"which": None, "position": None}, ValueError, "length is 0, expected 1 or more"),
        ({"draw": -1}, ValueError, "draw is -1, expected 0 to"),
        ({"draw": 2**32}, ValueError, "draw is 4294967296, expected 0 to"),
        ({"step": "now"}, TypeError, "step"),
    ],
)
def test_bad_input(change, error, says):
    call = {"seed": SEED, "row": ROW, "step": STEP, "which": WHICH, "position": POSITION} | change
    with pytest.raises(error, match=says):
        row_uniforms(**call)


@pytest.mark.parametrize("turns", [0, 1, 2])
def test_the_cuda_body(turns):
    module = emulated("uniform")
    module.turns(turns)
    for which, position, n in ((WHICH, POSITION, 6), (None, None, 5 * 300)):
        out = torch.zeros(n, dtype=torch.float64)
        call = {"seed": SEED, "row": ROW, "step": STEP, "which": which, "position": position, "out": out}
        job = {k: None if v is None else v.data_ptr() for k, v in call.items()}
        assert module.run(job | {"rows": 5, "length": 300, "n": n, "draw": 8}) == 0
        native = row_uniforms(SEED, ROW, STEP, which=which, position=position, length=300, draw=8)
        assert torch.equal(out, native.flatten())
    module.turns(0)
    outside = torch.tensor([5, -1])
    out = torch.zeros(2, dtype=torch.float64)
    job = {"seed": SEED.data_ptr(), "row": ROW.data_ptr(), "step": STEP.data_ptr(), "which": outside.data_ptr()}
    module.run(job | {"position": outside.data_ptr(), "out": out.data_ptr(), "rows": 5, "length": 0, "n": 2, "draw": 8})
    assert out.isnan().all(), "a row outside the batch has no number"


def test_the_global_generator_is_not_moved():
    before = torch.get_rng_state()
    samplers.random.Rng.of(3, 2).normal((4,), 1)
    assert torch.equal(before, torch.get_rng_state())
