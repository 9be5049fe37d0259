"""combine: the bits of torch's own arithmetic, in one pass."""

import pytest
import torch
from emulator import emulated

from samplers.ops import _native, combine

FACTORS = (0.7, -1.3, 1e-9, 3.25, -0.1)


def tensors(shape, dtype=torch.float32, count=5):
    g = torch.Generator().manual_seed(0)
    return [torch.randn(shape, dtype=dtype, generator=g) for _ in range(count)]


def plain(terms):
    out = terms[0][1] * terms[0][0]
    for c, t in terms[1:]:
        out = out + t * c
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(1,), (0,), (3, 5), (2, 4, 33, 7), (8, 4, 64, 64)], ids=str)
@pytest.mark.parametrize("isa", ["portable", "avx2", "avx512"])
def test_the_bits_of_torch(isa, shape, dtype):
    if _native.C is not None:
        try:
            _native.C._choose_isa(isa)
        except ValueError:
            pytest.skip(f"no {isa} here")
    try:
        for count in range(1, 6):
            terms = list(zip(FACTORS, tensors(shape, dtype, count)))
            out = combine(*terms)
            assert out.dtype == dtype and torch.equal(out, plain(terms))
    finally:
        if _native.C is not None:
            _native.C._choose_isa("")


def test_rows_alone_are_rows_of_a_batch():
    terms = list(zip(FACTORS, tensors((5, 37))))
    whole = combine(*terms)
    for i in range(5):
        assert torch.equal(whole[i], combine(*[(c, t[i]) for c, t in terms]))


def test_what_is_not_contiguous_and_what_is_not_finite():
    a, b = tensors((6, 4), count=2)
    assert torch.equal(combine((2.0, a.T), (-1.0, b.T)), 2 * a.T - b.T)
    a[0, 0] = float("inf")
    assert torch.equal(combine((0.0, a), (1.0, b)).isnan(), (0 * a).isnan())


def test_gradients_go_through():
    a, b = tensors((3,), torch.float64, 2)
    a.requires_grad_()
    combine((2.0, a), (3.0, b)).sum().backward()
    assert torch.equal(a.grad, torch.full((3,), 2.0, dtype=torch.float64))


def test_opcheck():
    a, b = tensors((3, 2), count=2)
    torch.library.opcheck(torch.ops.sampler_zoo.combine.default, (a, 2.0, b, 3.0, None, 0.0, None, 0.0, None, 0.0))


@pytest.mark.parametrize(
    ("terms", "error", "says"),
    [
        ((), ValueError, "0 terms were given, expected 1 to 5"),
        (((1.0, torch.ones(2)),) * 6, ValueError, "6 terms"),
        (((1.0, torch.ones(2)), (1.0, torch.ones(3))), ValueError, r"tensor 1 has shape \(3,\), expected \(2,\)"),
        (((1.0, torch.ones(2)), (1.0, torch.ones(2).double())), TypeError, "tensor 1 is torch.float64"),
        (((1.0, torch.ones(2).half()),), TypeError, "tensor 0 is torch.float16, expected float32 or float64"),
        (((1.0, [1.0]),), TypeError, "term 0 holds list"),
    ],
)
def test_bad_input(terms, error, says):
    with pytest.raises(error, match=says):
        combine(*terms)


@pytest.mark.parametrize("turns", [0, 1])
def test_the_cuda_body(turns):
    module = emulated("combine")
    module.turns(turns)
    for dtype in (torch.float32, torch.float64):
        for count in range(1, 6):
            terms = list(zip(FACTORS, tensors((700,), dtype, count)))
            out = torch.zeros(700, dtype=dtype)
            pointers = [t.data_ptr() for _, t in terms]
            assert module.run(pointers, [c for c, _ in terms], 700, out.data_ptr(), dtype == torch.float64) == 0
            assert torch.equal(out, combine(*terms))
