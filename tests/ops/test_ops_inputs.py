"""What the ops accept beside the plain case: float64, strided logits, and a process with other torch defaults."""

import math
import os
import random
import subprocess
import sys
from pathlib import Path

import fuzz_ops
import pytest
import torch
from native import C, isas
from test_ops import ALL, assert_same, ids, randn, uniforms

from samplers import ops
from samplers.ops import headless_softmax, masked_softmax

HERE = Path(__file__).parent


def forms(x):
    """The same rows (R, V) at several strides."""
    yield x
    yield x.t().contiguous().t()  # (V, R) in memory, as a convolution answers
    yield x.repeat_interleave(2, 1)[:, ::2]
    yield torch.stack([x, x])[1].flip(0).flip(0)
    yield x.unsqueeze(0).repeat(1, 1, 1).transpose(1, 2).contiguous().transpose(1, 2).flatten(0, 1)


@pytest.mark.parametrize(
    "index", [None, torch.tensor([5]), torch.tensor([3, 0, 3]), torch.arange(7).repeat(3)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_any_strides_and_float64(dtype, index):
    x, g = randn(7, 1100, 1, dtype=dtype), randn(7, 1100, 2, dtype=dtype)
    n = 7 if index is None else len(index)
    kw = {"uniform": uniforms(n), "temperature": 0.7, "want": ALL, "given": ids(n, 1100), "forbid": torch.tensor([4])}
    seen = torch.float32 if dtype == torch.float64 else dtype
    for guided in ({}, {"guidance": g, "cfg_scale": 1.5}, {"guidance": g, "cfg_scale": 0.0}):
        other = {"guidance": g.to(seen)} if guided else {}
        expected = masked_softmax(x.to(seen), index, **{**kw, **guided, **other})
        for y, z in zip(forms(x), forms(g)):
            assert_same(
                masked_softmax(y, index, **kw, **{**guided, **({"guidance": z} if guided else {})}), expected, 0
            )
            assert_same(masked_softmax(y, index, **kw, **guided), expected, 0)  # one of the two at other strides
            if guided:
                assert_same(masked_softmax(x, index, **kw, **{**guided, "guidance": z}), expected, 0)
                rows = torch.arange(7).flip(0) if index is None else 6 - index
                turned = {**guided, "guidance": z.flip(0), "guidance_index": rows}
                assert_same(masked_softmax(y, index, **kw, **turned), expected, 0)


def test_float64_beside_float32():
    x, g = randn(4, 50), randn(4, 50, 1)
    expected = masked_softmax(x, guidance=g, cfg_scale=0.5)
    assert_same(masked_softmax(x.double(), guidance=g, cfg_scale=0.5), expected, 0)
    assert_same(masked_softmax(x, guidance=g.double(), cfg_scale=0.5), expected, 0)
    with pytest.raises(TypeError, match=r"guidance is torch\.float64, logits are torch\.bfloat16"):
        masked_softmax(x.bfloat16(), guidance=g.double(), cfg_scale=0.5)


def test_wrong_rows_of_strided_logits():
    """What is copied first is checked first, in the words of the plain case."""
    x = randn(4, 50).t().contiguous().t()
    for index in ([0, 4], [-1]):
        with pytest.raises(IndexError, match=rf"index\[{len(index) - 1}\] is {index[-1]}, expected 0 to 3"):
            masked_softmax(x, torch.tensor(index))
    with pytest.raises(IndexError, match=r"guidance_index\[0\] is 9, expected 0 to 3"):
        masked_softmax(randn(4, 50), torch.tensor([1]), guidance=x, guidance_index=torch.tensor([9]), cfg_scale=1.0)
    assert masked_softmax(x[:0], torch.empty(0, dtype=torch.int64)).token.shape == (0,)
    bad = x.clone()
    bad[1, 3] = math.nan
    assert masked_softmax(bad.double()).status.tolist() == [0, 1, 0, 0]


def test_only_the_rows_of_the_index_are_copied():
    x = torch.zeros(3000, 1024).t().contiguous().t()
    asked = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            asked.extend(v.numel() for v in (out,) if isinstance(v, torch.Tensor))
            return out

    with Watch():
        masked_softmax(x, torch.tensor([7, 2999]))
    assert max(n for n in asked if n != x.numel()) == 2 * 1024  # detach() and t() are views, of x.numel()
    assert asked.count(x.numel()) <= 1


def test_headless_rows():
    hidden, weight, g = randn(5, 16), randn(1300, 16, 1, scale=1.0), randn(5, 16, 2)
    kw = {"uniform": uniforms(5), "temperature": 0.7, "want": ALL, "given": ids(5, 1300)}
    expected = headless_softmax(hidden, weight, guidance=g, cfg_scale=0.5, **kw)
    for h, w, b in zip(forms(hidden), forms(weight), forms(g)):
        assert_same(headless_softmax(h, w, guidance=b, cfg_scale=0.5, **kw), expected, 0)
    # float64: the model's own product in float64, its logits then cast, as masked_softmax casts them.
    exact = headless_softmax(hidden.double(), weight.double(), guidance=g.double(), cfg_scale=0.5, softcap=9.0, **kw)
    logits, other = (9.0 * torch.tanh((r.double() @ weight.double().t()) / 9.0) for r in (hidden, g))
    stored = masked_softmax(logits, guidance=other, cfg_scale=0.5, want=ALL, given=kw["given"])
    best = headless_softmax(
        hidden.double(), weight.double(), guidance=g.double(), cfg_scale=0.5, softcap=9.0, want=ALL, given=kw["given"]
    )
    assert torch.equal(best.token, stored.token)
    for name in ALL:
        torch.testing.assert_close(getattr(best, name), getattr(stored, name), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(exact.lse, best.lse, rtol=0, atol=0)


def test_numbers_of_numpy():
    import numpy as np

    x = randn(3, 40)
    kw = {"temperature": np.float32(0.5), "top_k": np.int64(3), "top_p": np.float64(0.9), "uniform": uniforms(3)}
    plain = {"temperature": 0.5, "top_k": 3, "top_p": 0.9, "uniform": uniforms(3)}
    assert_same(masked_softmax(x, **kw), masked_softmax(x, **plain), 0)


# ---- other defaults --------------------------------------------------------------------------------------------------


def answers(calls):
    """What the ops say to the calls, and how they change their arguments: flat lists of tensors."""
    for name, kw in calls:
        kw = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in kw.items()}
        try:
            out = getattr(ops, name)(**kw)
        except fuzz_ops.REFUSALS as error:
            yield [str(error)]
            continue
        out = out if isinstance(out, tuple) else (out,)
        yield [v for v in (*out, *kw.values()) if isinstance(v, torch.Tensor)]


DEFAULTS = {
    "float64": lambda: torch.set_default_dtype(torch.float64),
    "bfloat16": lambda: torch.set_default_dtype(torch.bfloat16),
    "meta": lambda: torch.set_default_device("meta"),
}


@pytest.mark.parametrize("default", DEFAULTS)
def test_torchs_defaults_change_nothing(default):
    """Every tensor that an op makes has its dtype and device said."""
    numbers = range(12)
    calls = [(name, make(random.Random(f"{name} {n}"))) for name, make in fuzz_ops.OPS.items() for n in numbers]
    # Strided and float64 logits take a way of their own.
    calls.append(("masked_softmax", {"logits": randn(5, 60).t().contiguous().t(), "index": torch.tensor([1, 4])}))
    calls.append(("masked_softmax", {"logits": randn(5, 60).double(), "index": torch.tensor([1, 4])}))
    calls.append(("headless_softmax", {"hidden": randn(5, 8).double(), "weight": randn(60, 8).double()}))
    expected = list(answers(calls))
    try:
        DEFAULTS[default]()
        got = list(answers(calls))
    finally:
        torch.set_default_dtype(torch.float32)
        torch.set_default_device(None)
    for (name, _), x, y in zip(calls, got, expected):
        assert len(x) == len(y), (name, x, y)
        for a, b in zip(x, y):
            if isinstance(b, str):
                assert a == b, name
                continue
            assert (a.dtype, a.device, a.shape) == (b.dtype, b.device, b.shape), name
            assert torch.equal(a.nan_to_num(7.5) if a.is_floating_point() else a,
                               b.nan_to_num(7.5) if b.is_floating_point() else b), name  # fmt: skip


@pytest.mark.skipif(C is None, reason="the tests above have run on the twins")
@pytest.mark.parametrize("default", DEFAULTS)
def test_torchs_defaults_change_nothing_for_the_twins(default):
    env = {
        **os.environ,
        "SAMPLERS_NATIVE": "0",
        "PYTHONPATH": os.pathsep.join([str(HERE.parents[1]), str(HERE.parent), str(HERE)]),
    }
    code = f"from test_ops_inputs import *; assert C is None; test_torchs_defaults_change_nothing({default!r})"
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr


def test_every_instruction_set_under_another_default():
    x = randn(3, 2000)
    expected = masked_softmax(x, want=ALL, given=ids(3, 2000), top_p=0.9, temperature=1.0, uniform=uniforms(3))
    kw = {"want": ALL, "given": ids(3, 2000), "top_p": 0.9, "temperature": 1.0, "uniform": uniforms(3)}
    try:
        torch.set_default_dtype(torch.bfloat16)
        for _ in isas():
            assert_same(masked_softmax(x, **kw), expected, 0)
    finally:
        torch.set_default_dtype(torch.float32)
