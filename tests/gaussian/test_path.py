"""Noise by Brownian path. Its law is tested exactly: a draw is a unit vector, so a normal is its vector of coefficients."""

import itertools
import math

import pytest
import torch

from samplers.errors import OptionError
from samplers.gaussian.path import FIRST_DRAW, NoisePath, noise_sampler

GRIDS = {
    "even": [-5 + 0.61 * i for i in range(18)],
    "uneven": [-4.6, -4.59, -3.2, -0.001, 0.0, 0.0004, 1.0, 1.3, 6.2],
    "thousand": [-5 + 0.011 * i for i in range(900)],
    "far": [-40.0, -3.0, 2.0, 35.0, 50.0],
    "no data at first": [-math.inf, -2.0, -1.0, 0.5],
    "two": [-1.0, 1.0],
}


class Basis:
    """Draws as unit vectors of a space with enough dimensions; the same number is always the same one."""

    def __init__(self, size):
        self.size, self.number = size, {}

    def __call__(self, draw):
        assert FIRST_DRAW <= draw < 2**32
        self.asked = getattr(self, "asked", 0) + 1
        out = torch.zeros(self.size, dtype=torch.float64)
        out[self.number.setdefault(draw, len(self.number))] = 1.0
        return out


def normals(grid, draw):
    path = NoisePath(draw, grid)
    return torch.stack([path.normal(s, t) for s, t in itertools.pairwise(grid)])


@pytest.mark.parametrize("grid", GRIDS.values(), ids=GRIDS)
def test_the_normals_of_a_run_are_independent_and_standard(grid):
    z = normals(grid, Basis(8000))
    torch.testing.assert_close(z @ z.T, torch.eye(len(z), dtype=torch.float64), rtol=0, atol=1e-11)


def test_parts_of_steps_are_independent_and_standard():
    grid, draw = GRIDS["even"], Basis(4000)
    path, parts = NoisePath(draw, grid), []
    for s, t in itertools.pairwise(grid):
        inner = [s, s + (t - s) / 3, s + (t - s) * 2 / 3, t]
        parts += [path.normal(a, b) for a, b in itertools.pairwise(inner)]
    z = torch.stack(parts)
    torch.testing.assert_close(z @ z.T, torch.eye(len(z), dtype=torch.float64), rtol=0, atol=1e-11)


def test_the_covariance_of_the_path_is_that_of_its_process():
    path, lams = NoisePath(Basis(3000)), [-6.5, -2.25, -0.5, 0.0, 0.3125, 1.0, 1.5, 7.0]  # all of them nodes
    values = torch.stack([path.normal(-math.inf, lam) for lam in lams])
    apart = (torch.tensor(lams)[:, None] - torch.tensor(lams)).abs().double()
    torch.testing.assert_close(values @ values.T, torch.exp(-apart), rtol=0, atol=1e-12)


def test_increments_of_parts_sum_to_the_increment_of_the_whole():
    path = NoisePath(Basis(3000))
    a, b, c = 0.25, 0.5, 1.75
    # W(e^{2b}) - W(e^{2a}) is the normal times its standard deviation.
    whole, first, second = (
        math.sqrt(math.exp(2 * t) - math.exp(2 * s)) * path.normal(s, t) for s, t in ((a, c), (a, b), (b, c))
    )
    torch.testing.assert_close(first + second, whole, rtol=0, atol=1e-12)
    torch.testing.assert_close(path.normal(c, a), -path.normal(a, c), rtol=0, atol=0)


def test_a_run_with_more_steps_refines_the_same_path():
    """The value at the end of the path as coarse and fine normals make it, over grids whose points differ."""
    draw, span = Basis(6000), (-4.7, 5.9)

    def run(n):
        grid = [span[0] + (span[1] - span[0]) * (k / n) ** 1.1 for k in range(n + 1)]
        return grid, normals(grid, draw)

    found = {}
    for n in (10, 20, 40, 80):
        (coarse, z), (fine, w) = run(n), run(8 * n)
        # The whole of W(e^{2 t}) / e^t at the end of the run, by both.
        sums = []
        for grid, values in ((coarse, z), (fine, w)):
            total = torch.zeros(6000, dtype=torch.float64)
            for (s, t), value in zip(itertools.pairwise(grid), values):
                total = math.exp(s - t) * total + math.sqrt(-math.expm1(2 * (s - t))) * value
            sums.append(total)
        found[n] = float((sums[0] - sums[1]).norm())  # the root mean square difference
    assert found[10] < 0.1 and found[80] < found[10] / 5, found


def test_a_step_costs_a_few_normals():
    for n in (10, 20, 50, 100, 1000):
        draw = Basis(12000)
        normals([-5 + 11 * k / n for k in range(n + 1)], draw)
        assert draw.asked == len(draw.number), "no draw is made twice in a run"
        assert draw.asked <= 4.5 * n + 30, (n, draw.asked)


def test_few_values_are_kept():
    grid = [-5 + 0.011 * i for i in range(900)]
    path, most = NoisePath(Basis(9000), grid), 0
    for s, t in itertools.pairwise(grid):
        path.normal(s, t)
        most = max(most, len(path._nodes) + len(path._points))
    assert most < 24


def test_any_order_of_calls_gives_the_same():
    draw, spans = Basis(4000), list(itertools.pairwise(GRIDS["uneven"]))
    path = NoisePath(draw, GRIDS["uneven"])
    ahead = {span: path.normal(*span) for span in spans}
    back = {span: path.normal(*span) for span in reversed(spans)}
    apart = {span: NoisePath(draw, GRIDS["uneven"]).normal(*span) for span in spans}
    assert all(torch.equal(ahead[k], back[k]) and torch.equal(ahead[k], apart[k]) for k in spans)


def test_a_step_of_no_length_has_a_finite_normal():
    path = NoisePath(Basis(200), [0.5, 0.5, 0.5 + 1e-15, 2.0])
    assert torch.isfinite(path.normal(0.5, 0.5)).all() and torch.isfinite(path.normal(0.5, 0.5 + 1e-15)).all()


# ---------------------------------------------------------------------------------------------- as k-diffusion's argument


def test_noise_sampler_is_the_same_for_every_batch_and_order():
    together = noise_sampler((3, 5), seed=4)
    alone = noise_sampler((1, 5), seed=4, first_row=2)
    levels = [80.0, 30.0, 9.0, 2.0, 0.5, 0.03125]  # numbers of float32 too
    pairs = list(itertools.pairwise(levels))
    ahead = [together(torch.tensor(a), torch.tensor(b)) for a, b in pairs]
    back = [alone(a, b) for a, b in reversed(pairs)][::-1]
    for z, w in zip(ahead, back):
        assert z.shape == (3, 5) and z.dtype == torch.float32
        assert torch.equal(z[2], w[0])
    with pytest.raises(OptionError, match="above 0"):
        together(1.0, 0.0)


def test_noise_sampler_has_the_law_of_standard_normals():
    sampler = noise_sampler((4, 2500), seed=1, dtype=torch.float64)
    a, b = sampler(14.6, 3.1).flatten(), sampler(3.1, 0.7).flatten()
    n = len(a)
    for z in (a, b):
        assert abs(float(z.mean())) < 4 / math.sqrt(n) and abs(float(z.var()) - 1) < 4 * math.sqrt(2 / n)
        exact = torch.special.ndtr(z.sort().values)
        gap = (exact - torch.arange(1, n + 1, dtype=torch.float64) / n).abs().max()
        assert float(gap) < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov at 0.1 %
    assert abs(float((a * b).mean())) < 4 / math.sqrt(n)


def test_noise_sampler_beside_torchsde():
    """The same interface and the same law as k-diffusion's: normals of two halves give the whole's, weighted by their time."""
    torchsde = pytest.importorskip("torchsde")
    x = torch.zeros(2, 3000, dtype=torch.float64)
    tree = torchsde.BrownianInterval(0.0, 4.0, size=x.shape, dtype=x.dtype, entropy=3)
    theirs = [(tree(0.5, 1.0) + tree(1.0, 3.0)) - tree(0.5, 3.0)]
    ours = noise_sampler(tuple(x.shape), seed=3, dtype=torch.float64)
    time = {s: 1 / s**2 for s in (4.0, 2.0, 0.5)}  # e^{2 lambda}; these levels are nodes only up to rounding
    spans = [(4.0, 2.0), (2.0, 0.5), (4.0, 0.5)]
    parts = [math.sqrt(time[b] - time[a]) * ours(a, b) for a, b in spans]
    theirs_gap, ours_gap = float(theirs[0].abs().max()), float((parts[0] + parts[1] - parts[2]).abs().max())
    assert theirs_gap < 1e-12
    assert ours_gap < 0.01 * math.sqrt(time[0.5])  # moved to multiples of 2^-14 in lambda
    assert abs(float(tree(0.5, 3.0).var()) / 2.5 - 1) < 0.1 and abs(float(ours(4.0, 0.5).var()) - 1) < 0.1
