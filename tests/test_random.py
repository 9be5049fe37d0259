"""Philox: known answers, the native twin, and that draws depend on nothing but their counter."""

import numpy as np
import pytest
import torch
from scipy import stats

from samplers import OptionError, ops
from samplers.random import DRAW_TOKEN, Rng, philox, uniform

# Random123's known-answer file, philox4x32-10.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "words"), KNOWN)
def test_known_answers(counter, key, words):
    assert tuple(int(w) for w in philox(counter, key)) == words


@pytest.mark.skipif(not ops.status()["native"], reason="the native extension is not built")
def test_native_twin():
    from samplers import _C

    for seed in (0, 1, -1, 2**40 + 5, -(2**63), 2**63 - 1):
        for row, position, step, draw in [(0, 0, 0, 0), (63, 1000, 17, 1), (2**33 + 1, 2**20, 5, 3)]:
            ours = float(uniform(torch.tensor(seed), torch.tensor(row), position, step, draw))
            assert ours == _C.uniform(seed % 2**64, row, position, step, draw)


def test_uniform_is_uniform_and_independent():
    u = uniform(5, torch.arange(200)[:, None], torch.arange(200)[None], 3, DRAW_TOKEN)
    assert u.dtype == torch.float64
    assert 0 <= float(u.min()) < float(u.max()) < 1
    flat = u.flatten().numpy()
    assert stats.kstest(flat, "uniform").pvalue > 1e-4
    for other in (
        uniform(6, torch.arange(200)[:, None], torch.arange(200)[None], 3, DRAW_TOKEN),
        uniform(5, torch.arange(200)[:, None], torch.arange(200)[None], 4, DRAW_TOKEN),
        uniform(5, torch.arange(200)[:, None], torch.arange(200)[None], 3, 1),
        uniform(5 + 2**32, torch.arange(200)[:, None], torch.arange(200)[None], 3, DRAW_TOKEN),
        u.T.contiguous(),
    ):
        assert abs(np.corrcoef(flat, other.flatten().numpy())[0, 1]) < 0.03


def test_normal_is_normal_and_row_is_itself():
    rng = Rng.of(3, 50)
    z = rng.normal((40, 5), 0, torch.float64)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 1e-4
    assert (Rng.of(3, 1, first_row=17).normal((40, 5), 0, torch.float64)[0] == z[17]).all()
    assert (rng.normal((40, 5), 1, torch.float64) != z).all()


def test_the_default_device_does_not_matter():
    """An integer has no device, so the numbers are where the tensors among the arguments are, or where `of` is told."""
    place = torch.arange(4)
    seed = 2**40 + 5
    calls = [
        lambda: uniform(seed, place, 3, 1, DRAW_TOKEN),
        lambda: uniform(seed, 2**33, place, 1, DRAW_TOKEN),
        lambda: uniform(torch.full((), seed, device="cpu"), place, 3, 1, DRAW_TOKEN),
        lambda: Rng.of(seed, 4, first_row=2).positions(3, place, DRAW_TOKEN),
        lambda: Rng.of([seed, 1, 2, 3], 4, first_row=2).positions(3, place, DRAW_TOKEN),
    ]
    expected = [call() for call in calls]
    with torch.device("meta"):
        got = [call() for call in calls]
    assert all(x.device.type == "cpu" and torch.equal(x, y) for x, y in zip(got, expected))
    assert Rng.of(seed, 4, device="meta").row.device.type == "meta"


def test_seeds_a_row():
    many = Rng.of([4, 4, 9], 3)
    assert many.seed.tolist() == [4, 4, 9]
    assert many.row.tolist() == [0, 0, 0]
    with pytest.raises(OptionError, match="2 seeds were given for 3 rows"):
        Rng.of([1, 2], 3)
    with pytest.raises(OptionError, match="64 bits"):
        Rng.of(2**64, 1)
    with pytest.raises(OptionError, match="integer"):
        Rng.of(0.5, 1)
