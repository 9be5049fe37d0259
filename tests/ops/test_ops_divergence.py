"""kl_divergence: against torch's softmax in float64, and in any batch."""

import math

import pytest
import torch

from samplers.ops import kl_divergence
from samplers.ops.divergence import row_sum


def rows(width, dtype=torch.float32):
    g = torch.Generator().manual_seed(1)
    then, now = ((torch.randn(n, width, generator=g) * 3).to(dtype) for n in (7, 9))
    then[:, 1], now[:, 1] = -math.inf, -math.inf
    if width > 2:
        now[4, 1] = 0.0  # possible now, and was not
        now[:3, 0] = -math.inf  # no longer possible
    return now, then, torch.logsumexp(then.double(), 1), torch.tensor([6, 0, -1, 2, 2, 5, -1, 1, 3])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)
@pytest.mark.parametrize("width", [2, 50, 5003])
def test_against_float64(width, dtype):
    now, then, lse, index = rows(width, dtype)
    before = now.clone()
    kl, now_lse = kl_divergence(now, then, lse, index)
    assert torch.equal(now, before)
    assert kl.dtype == now_lse.dtype == torch.float64
    log_p, log_q = torch.log_softmax(now.double(), 1), torch.log_softmax(then.double(), 1)[index]
    expected = (log_p.exp() * (log_p - log_q)).nan_to_num(0.0, math.inf).sum(1)
    expected[index < 0] = math.inf
    assert (width == 2) == bool(expected[4].isfinite())
    torch.testing.assert_close(kl, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(now_lse, torch.logsumexp(now.double(), 1), rtol=1e-12, atol=1e-12)


def test_by_hand():
    p, q = torch.tensor([[0.5, 0.25, 0.25]]), torch.tensor([[0.25, 0.5, 0.25], [0.5, 0.25, 0.25]])
    kl, lse = kl_divergence((8 * p).log(), q.log(), torch.zeros(2, dtype=torch.float64), torch.tensor([0]))
    assert kl.item() == pytest.approx(0.25 * math.log(2), abs=1e-7)  # .5 ln 2 + .25 ln .5
    assert lse.item() == pytest.approx(math.log(8), abs=1e-7)
    assert kl_divergence(q.log(), q.log(), lse.new_zeros(2), torch.tensor([0, 1]))[0].abs().max() < 1e-7


@pytest.mark.parametrize("width", [2, 50, 5003])
def test_rows_do_not_depend_on_each_other(width, monkeypatch):
    """However many are worked on together, and with however many threads."""
    now, then, lse, index = rows(width)
    kl, now_lse = kl_divergence(now, then, lse, index)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(4)
        for chunk in (1, 3 * width, 1 << 30):
            monkeypatch.setattr("samplers.ops.divergence.CHUNK_CPU", chunk)
            assert torch.equal(kl_divergence(now, then, lse, index)[0], kl)
        for i in (0, 4, 8):
            one = kl_divergence(now[i : i + 1], then, lse, index[i : i + 1])
            assert torch.equal(one[0], kl[i : i + 1]) and torch.equal(one[1], now_lse[i : i + 1])
    finally:
        torch.set_num_threads(before)


def test_row_sums_do_not_depend_on_the_batch():
    for width in (1, 2, 7, 129, 5003):
        x = torch.randn(9, width, generator=torch.Generator().manual_seed(0))
        total = row_sum(x)
        torch.testing.assert_close(total.double(), x.double().sum(1), rtol=1e-5, atol=1e-4)
        for i in (0, 4, 8):
            assert torch.equal(row_sum(x[i : i + 1]), total[i : i + 1])


NOW, THEN, LSE, INDEX = torch.zeros(2, 5), torch.zeros(3, 5), torch.zeros(3, dtype=torch.float64), torch.tensor([0, 2])
BAD = {
    "logits": (TypeError, "logits is torch.int64", (NOW.long(), THEN, LSE, INDEX)),
    "no tensor": (TypeError, "logits is 3, expected Tensor", (3, THEN, LSE, INDEX)),
    "columns": (ValueError, r"other has shape \(3, 4\), expected \(M, 5\)", (NOW, THEN[:, :4], LSE, INDEX)),
    "nothing": (ValueError, r"other has shape \(0, 5\)", (NOW, THEN[:0], LSE[:0], INDEX)),
    "no vocabulary": (ValueError, "logits have no columns", (NOW[:, :0], THEN[:, :0], LSE, INDEX)),
    "lse": (TypeError, "other_lse is torch.float32", (NOW, THEN, LSE.float(), INDEX)),
    "lse size": (ValueError, r"other_lse has shape \(2,\)", (NOW, THEN, LSE[:2], INDEX)),
    "index size": (ValueError, r"index has shape \(1,\)", (NOW, THEN, LSE, INDEX[:1])),
    "index above": (IndexError, r"index\[1\] is 3, expected 0 to 2", (NOW, THEN, LSE, INDEX + 1)),
    "device": (ValueError, "other is on meta", (NOW, THEN.to("meta"), LSE, INDEX)),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name):
    error, message, args = BAD[name]
    with pytest.raises(error, match=message):
        kl_divergence(*args)


def test_nothing_to_compare():
    kl, lse = kl_divergence(NOW[:0], THEN, LSE, INDEX[:0])
    assert kl.shape == lse.shape == (0,) and kl.dtype == torch.float64
