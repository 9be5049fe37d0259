"""The block emulator itself: what it runs, and what it refuses to run."""

import pytest
import torch
from emulator import emulated

THREADS = 96


@pytest.fixture
def basics():
    module = emulated("basics")
    yield module
    module.turns(0)


def call(body, n=0, grid=(1, 1), threads=THREADS, out=THREADS):
    data = torch.zeros(out, dtype=torch.int64)
    body(data.data_ptr(), n, *grid, threads)
    return data


@pytest.mark.parametrize("turns", [0, 1, 7])
def test_a_block_sums(basics, turns):
    basics.turns(turns)
    assert (call(basics.sum, n=1000, grid=(3, 1), out=3 * THREADS) == 500500).all()


def test_warps_exchange_values(basics):
    out = call(basics.warps, threads=64, out=64 * 7).view(2, 32, 7)
    lane = torch.arange(32)
    assert out[0].equal(out[1])
    up, down, one, half, ballot, some, every = out[0].unbind(1)
    assert up.equal(torch.where(lane >= 3, lane - 3, lane))
    assert down.equal(torch.where(lane % 16 + 5 < 16, lane + 5, lane))
    assert (one == 1).all()
    assert half.equal(lane ^ 8)
    assert (ballot == sum(1 << i for i in range(0, 32, 3))).all()
    assert (some == 1).all()
    assert (every == 0).all()


def test_atomics_and_a_grid_of_two_dimensions(basics):
    count, highest = call(basics.counts, grid=(2, 3), out=2).tolist()
    assert (count, highest) == (6 * THREADS, 2000 + THREADS - 1)


def test_another_order_shows_a_missing_barrier(basics):
    assert (call(basics.race, n=5) == 5).all()
    basics.turns(1)
    assert not (call(basics.race, n=5) == 5).all()


def test_threads_that_wait_for_ever_are_named(basics):
    with pytest.raises(RuntimeError, match=r"is stuck: threads 0-31 wait in __syncthreads at line \d+; threads 32-39 wait in "
                       r"__syncwarp at line \d+; threads 40-95 have returned"):  # fmt: skip
        call(basics.stuck)
    assert (call(basics.sum, n=10) == 55).all(), "the next launch starts afresh"


def test_a_shuffle_from_outside_its_mask_is_an_error(basics):
    with pytest.raises(RuntimeError, match=r"__shfl_sync at line .* reads a lane outside its mask"):
        call(basics.outside)
