"""The ops on a GPU: equal to the CPU, without a wait, inside graphs and compiled code. Skipped where there is none."""

import pytest
import torch

from samplers.ops import _native, masked_softmax

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
    pytest.mark.skipif(not (_native.C and _native.C.build_facts()["cuda"]), reason="built without CUDA kernels"),
]
WANT = ("confidence", "margin", "entropy", "lse", "given")
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


def randn(rows, vocab, seed=0, dtype=torch.float32):
    return torch.randn(rows, vocab, generator=torch.Generator().manual_seed(seed)).mul(4).to(dtype)


def arguments(rows, vocab, seed=0):
    g = torch.Generator().manual_seed(1000 + seed)
    return {
        "uniform": torch.rand(rows, dtype=torch.float64, generator=g),
        "given": torch.randint(vocab, (rows,), generator=g),
        "forbid": torch.tensor([vocab // 2, vocab + 3]),
        "want": WANT,
    }


def to_gpu(kw):
    return {k: v.cuda() if isinstance(v, torch.Tensor) else v for k, v in kw.items()}


def assert_same(cpu, gpu):
    assert torch.equal(cpu.status, gpu.status.cpu())
    assert torch.equal(cpu.token, gpu.token.cpu())
    for name in WANT:
        a, b = getattr(cpu, name), getattr(gpu, name)
        if a is not None:  # the two logarithms may differ in the last bit of a double, and so a float's once in a while
            torch.testing.assert_close(a, b.cpu(), rtol=1.2e-7, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "vocab"), [(1, 126464), (7, 50257), (64, 32000), (700, 5003), (3000, 131), (9, 1)])
def test_equals_the_cpu(dtype, rows, vocab):
    x, kw = randn(rows, vocab, dtype=dtype), arguments(rows, vocab)
    g = to_gpu(kw)
    for temperature in (0.0, 0.7, 1.0):
        assert_same(
            masked_softmax(x, temperature=temperature, **kw), masked_softmax(x.cuda(), temperature=temperature, **g)
        )
    guide = randn(rows, vocab, seed=1, dtype=dtype)
    a = masked_softmax(x, temperature=0.7, guidance=guide, cfg_scale=1.5, **kw)
    assert_same(a, masked_softmax(x.cuda(), temperature=0.7, guidance=guide.cuda(), cfg_scale=1.5, **g))
    a = masked_softmax(x, temperature=0.7, top_k=50, top_p=0.9, **kw)
    assert_same(a, masked_softmax(x.cuda(), temperature=0.7, top_k=50, top_p=0.9, **g))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rows_at_any_address(dtype):
    wide = randn(300, 2600, dtype=dtype)
    for begin in range(9):
        x, kw = wide[:, begin : begin + 2311], arguments(300, 2311, begin)
        y = wide.cuda()[:, begin : begin + 2311]
        assert_same(masked_softmax(x, temperature=1.0, **kw), masked_softmax(y, temperature=1.0, **to_gpu(kw)))


def test_spoilt_rows():
    x = randn(5, 3000)
    x[0, 5], x[1, 2999], x[2] = float("nan"), float("inf"), -float("inf")
    assert masked_softmax(x.cuda()).status.tolist() == [1, 1, 2, 0, 0]
    index = torch.tensor([3, 5, -1, 4], device="cuda")
    out = masked_softmax(x.cuda(), index)
    assert out.status.tolist() == [0, 3, 3, 0]
    assert out.token.tolist()[1:3] == [-1, -1]


def test_nothing_waits_for_the_device():
    for rows in (3, 600):
        x, kw = randn(rows, 5003).cuda(), to_gpu(arguments(rows, 5003))
        masked_softmax(x, temperature=0.7, **kw)  # whatever is set up once
        torch.cuda.set_sync_debug_mode("error")
        try:
            masked_softmax(x, temperature=0.7, **kw)
            masked_softmax(x, temperature=0.7, top_k=5, **kw)
            masked_softmax(x, guidance=x, cfg_scale=1.0)
        finally:
            torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("rows", [3, 600])
def test_inside_a_graph(rows):
    x, kw = randn(rows, 5003).cuda(), to_gpu(arguments(rows, 5003))
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        masked_softmax(x, temperature=0.7, **kw)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = masked_softmax(x, temperature=0.7, **kw)
    for seed in (1, 2):  # new logits and new uniforms in the same memory
        x.copy_(randn(rows, 5003, seed=seed))
        kw["uniform"].copy_(arguments(rows, 5003, seed)["uniform"])
        graph.replay()
        fresh = {**arguments(rows, 5003), "uniform": kw["uniform"].cpu()}
        assert_same(masked_softmax(x.cpu(), temperature=0.7, **fresh), out)


def test_another_stream():
    x, kw = randn(300, 50000), arguments(300, 50000)
    y, g = x.cuda(), to_gpu(kw)
    torch.cuda.synchronize()
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        y.mul_(0.5)
        out = masked_softmax(y, temperature=0.7, **g)
    side.synchronize()
    assert_same(masked_softmax(x * 0.5, temperature=0.7, **kw), out)


def test_compiled():
    x, kw = randn(40, 5003).cuda(), to_gpu(arguments(40, 5003))

    def step(x):
        out = masked_softmax(x * 2, temperature=0.7, **kw)
        return out.token + 1, out.confidence * 2

    token, confidence = torch.compile(step, fullgraph=True)(x)
    expected = step(x)
    assert torch.equal(token, expected[0])
    torch.testing.assert_close(confidence, expected[1])


def test_offsets_beyond_four_billion_entries():
    rows, vocab = 34100, 126464  # 4.31e9 entries
    if torch.cuda.mem_get_info()[0] < rows * vocab * 2 * 1.2:
        pytest.skip("the GPU has too little free memory")
    x = torch.zeros(rows, vocab, dtype=torch.bfloat16, device="cuda")
    best = torch.arange(rows, device="cuda") * 7919 % vocab
    x[torch.arange(rows, device="cuda"), best] = 9.0
    assert torch.equal(masked_softmax(x).token, best)
    few = torch.tensor([0, rows - 1, rows - 2], device="cuda")
    assert torch.equal(masked_softmax(x, few).token, best[few])
