"""Block denoisers: what is read and when, what a block is told, and that a row of a batch is what it is alone."""

import pytest
import torch

import samplers
from samplers import BlockDenoiser, Canvas, DenoiserError, OptionError, SamplersError

pytestmark = pytest.mark.usefixtures("one_thread")

V = 13
PROMPTS = [[0, 5], [1], [2, 7, 4], [3, 3], [4], []]


class Reader(BlockDenoiser):
    """Keeps its own account of each row, which its first token tells apart, and holds the driver to it.

    The context is what it has read, as a tuple with a mapping in it. What it says depends on all of that, on the block and on what it
    said before in this block.
    """

    name, vocab_size, canvas_length, self_conditioned = "reader", V, 4, True

    def __init__(self, mask_id=None, temperature=1.0, time_conditioned=False):
        self.mask_id, self.temperature, self.time_conditioned = mask_id, temperature, time_conditioned
        self.vocab_size = V - (mask_id is not None)
        self.table = torch.randn(V, self.vocab_size, generator=torch.Generator().manual_seed(1)) * 2
        self.said, self.calls, self.reads, self.widest, self.times = {}, 0, 0, 0, []

    def read(self, tokens, context):
        self.reads += 1
        seen = tokens if context is None else torch.cat([context[0]["tokens"], tokens], 1)
        return ({"tokens": seen}, [seen.sum(1)])

    def denoise(self, block, context, t=None, *, previous=None, told=None):
        self.calls += 1
        self.widest = max(self.widest, block.numel())
        self.times.append(t)
        seen = block[:, :0] if context is None else context[0]["tokens"]
        assert context is None or torch.equal(context[1][0], seen.sum(1)), "parts of a context that belong together"
        assert len(seen) == len(block)
        before = torch.zeros(*block.shape, self.vocab_size) if previous is None else previous
        out = self.table[block] + self.table[block.roll(1, 1)] + self.table[seen].sum(1)[:, None] + 0.3 * before
        for i, row in enumerate(seen.tolist()):
            key = (row[0] if row else None, len(row))
            assert (key in self.said) == (previous is not None and (told is None or bool(told[i])))
            if key in self.said:
                assert torch.equal(before[i], self.said[key]), f"{key} was not told its own last logits"
            else:
                assert not before[i].any()
            self.said[key] = out[i] / self.temperature
        return out


RUNS = [
    (None, "entropy_bound_uniform", {"anneal": 1.0, "temperature": 0.5, "stop_entropy": 0.9, "steps": 27, "bound": 1.0}),
    (None, "block_refinement", {"threshold": 0.4}),
    (None, "d3pm_ancestral", {"steps": 11, "corrector_steps": 1}),
    (12, "threshold", {"threshold": 0.3}),
    (12, "low_confidence", {"steps": 7, "temperature": 1.0}),
    (12, "llada2", {"threshold": 0.3, "edit_threshold": 0.2, "block_length": 3}),
]  # fmt: skip


@pytest.mark.parametrize(("mask_id", "sampler", "options"), RUNS, ids=[r[1] for r in RUNS])
def test_rows_are_what_they_are_alone(mask_id, sampler, options):
    """Prompts of four lengths, one of none, rows that end early: contexts part and meet; passes are counted as they are."""
    run = {"gen_length": 10, "seed": 3, "stop": 6, **options}
    heat = 0.5 if "anneal" in options else 1.0
    denoiser = Reader(mask_id, heat)
    out = samplers.sample(denoiser, sampler, prompt=PROMPTS, **run)
    assert denoiser.calls + denoiser.reads == out.nfe and denoiser.reads == out.encoder_passes
    assert denoiser.widest <= len(PROMPTS) * 4, "more than the open blocks was given"
    assert out.head_rows <= out.token_evals
    for i, prompt in enumerate(PROMPTS):
        alone = samplers.sample(Reader(mask_id, heat), sampler, prompt=[prompt], first_row=i, **run)
        assert alone.x[0].tolist() == out.x[i, : alone.x.shape[1]].tolist()
        assert int(out.nfe_rows[i]) == alone.nfe and int(out.encoder_rows[i]) == alone.encoder_passes
        blocks = -(-(int(out.lengths[i]) - len(prompt)) // run.get("block_length", 4))
        assert alone.encoder_passes == blocks - (not prompt), "once a block, and not for nothing"


def test_rows_share_passes_again():
    """Rows that were a block apart meet: each forward pass has all rows whose blocks begin at the same place."""
    sizes = []

    class Counting(Reader):
        def denoise(self, block, context, t=None, **more):
            sizes.append(len(block))
            return super().denoise(block, context, t, **more)

    run = {"gen_length": 8, "temperature": 0.7, "stop_entropy": None, "steps": 8, "anneal": 1.0}
    out = samplers.sample(Counting(temperature=0.7), "entropy_bound_uniform", prompt=[[0, 5], [1, 5], [2, 5]], **run)
    assert sizes == [3] * 8 and out.nfe == 8 + 2
    ragged = samplers.sample(Counting(temperature=0.7), "entropy_bound_uniform", prompt=[[0, 5], [1], [2, 5]], **run)
    assert sizes[8:] == [2, 1] * 8 and ragged.nfe == 16 + 4


def test_times_are_those_of_the_block():
    """Two blocks of 4 in steps of one quarter, whatever the rest of the canvas is."""
    denoiser = Reader(time_conditioned=True)
    samplers.sample(denoiser, "d3pm_ancestral", prompt=[1], gen_length=8, steps=8)
    assert [float(t) for t in denoiser.times] == [1, 0.75, 0.5, 0.25] * 2


def test_a_callable_in_one_line():
    """The context is the tokens before the block, or what the caller's own reader makes of them."""
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(2))
    plain = BlockDenoiser.wrap(
        lambda block, prefix: table[block] + table[prefix].sum(1, True), vocab_size=V, canvas_length=4
    )
    reading = BlockDenoiser.wrap(
        lambda block, context, t, previous: table[block] + context[:, None] + 0 * previous * t[:, None, None],
        read=lambda tokens, context: table[tokens].sum(1) + (0 if context is None else context),
        vocab_size=V, canvas_length=4, block_steps=3, time_conditioned=True, self_conditioned=True,
    )  # fmt: skip
    run = {"prompt": [[1, 2], [7, 3]], "gen_length": 8, "temperature": 1.0}
    one = samplers.sample(plain, "d3pm_ancestral", steps=6, **run)
    two = samplers.sample(reading, "d3pm_ancestral", **run)  # 3 steps a block, as it says
    assert one.x.tolist() == two.x.tolist()
    assert (one.nfe, one.encoder_passes, two.nfe, two.encoder_passes) == (6, 0, 8, 2)
    assert one.settings["block_length"] == 4 and two.settings["steps"] == 6
    assert plain.name == "<lambda>" and samplers.sample(plain, "d3pm_ancestral", gen_length=6).nfe == 6


@pytest.mark.parametrize(
    ("run", "words"),
    [
        ({"cfg_scale": 1.0}, "cfg_scale=1: denoiser 'reader' reads the prompt apart"),
        ({"block_length": 5}, "block_length=5: denoiser 'reader' takes blocks of 4 positions or fewer"),
        ({"cache": "prefix"}, "supports none"),
        ({"prompt": "hole"}, "row 0 has given tokens after positions to fill"),
        ({"prompt": "uneven"}, "steps is needed: the rows have 1 to 2 blocks"),
    ],
)
def test_what_it_cannot_do_is_said(run, words):
    denoiser = Reader()
    denoiser.block_steps = 3
    how = {"prompt": [1, 2], "gen_length": 8} | run
    if isinstance(how["prompt"], str):
        del how["gen_length"]
        x, fill = torch.zeros(2, 8, dtype=torch.int64), torch.ones(2, 8, dtype=torch.bool)
        fill[0, [0, 3] if how["prompt"] == "hole" else slice(0, 5)] = False
        how["prompt"] = Canvas.infill(denoiser, x, fill)
    with pytest.raises(OptionError, match=words):
        samplers.sample(denoiser, "d3pm_ancestral", **how)


def test_wrong_answers_are_said():
    masked = BlockDenoiser.wrap(lambda b, c: torch.zeros(*b.shape, V), vocab_size=V, canvas_length=4, mask_id=V)
    with pytest.raises(OptionError, match="given one block at a time"):
        samplers.nll(masked, [[1, 2, 3]])
    with pytest.raises(SamplersError, match="outside of the rows' present blocks"):
        samplers.sample(masked, "klass", gen_length=8, across_blocks=True)
    short = BlockDenoiser.wrap(lambda b, c: torch.zeros(*b.shape, V - 1), vocab_size=V, canvas_length=4)
    with pytest.raises(DenoiserError, match=r"float32 of shape \(1, 4, 12\).*\(1, 4, 13\) are needed"):
        samplers.sample(short, "d3pm_ancestral", gen_length=4)
    with pytest.raises(DenoiserError, match=r"denoiser '<lambda>': read\(\) returned a context of set"):
        short.rows_of([torch.zeros(2), {1, 2}], torch.tensor([0]))
    with pytest.raises(OptionError, match="denoise must be a callable"):
        BlockDenoiser.wrap(None, vocab_size=V, canvas_length=4)


def test_a_block_that_is_fixed_is_read_and_not_denoised():
    """Tokens decided ahead, a whole block of them: the next block's reader gets two blocks at once."""
    lengths = []

    class Noting(Reader):
        def read(self, tokens, context):
            lengths.append(tokens.shape[1])
            return super().read(tokens, context)

    fix = torch.full((2, 14), -1)
    fix[:, 6:10], fix[:, 11] = 3, 5
    run = {
        "prompt": [[0, 1], [1, 1]],
        "gen_length": 12,
        "steps": 12,
        "constrain": lambda s: samplers.Constraint(fix=fix),
    }
    out = samplers.sample(Noting(), "d3pm_ancestral", **run)
    assert lengths == [2, 8] and out.nfe == 2 + 8
    assert (out.x[:, 6:10] == 3).all() and (out.x[:, 11] == 5).all()


@pytest.mark.parametrize("plans", [False, True], ids=["counted", "dry run"])
def test_nothing_as_large_as_the_canvas_is_made(monkeypatch, plans):
    """Of 2 rows of 400 positions and 50 tokens no tensor has the logits; and a plan made ahead asks the same."""
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **kwargs or {})
            sizes.extend(
                o.numel() for o in (out if isinstance(out, (tuple, list)) else [out]) if isinstance(o, torch.Tensor)
            )
            return out

    monkeypatch.setattr("samplers.token_family.dry_runs_pay", lambda device: plans)
    table = torch.randn(50, 50, generator=torch.Generator().manual_seed(3))
    denoiser = BlockDenoiser.wrap(
        lambda block, context, previous: table[block] + 0.1 * previous + context[:, None, :1],
        read=lambda tokens, context: torch.sin(tokens.sum(1, keepdim=True).float() + (0 if context is None else context)),
        vocab_size=50, canvas_length=5, self_conditioned=True,
    )  # fmt: skip
    prompt = torch.arange(2 * 390).reshape(2, 390) % 50
    run = {"prompt": prompt, "gen_length": 10, "steps": 8}
    for sampler in ("d3pm_ancestral", "entropy_bound_uniform"):
        with Watch():
            out = samplers.sample(denoiser, sampler, trace=True, **run)
        assert max(sizes) <= 4 * 2 * 400 < 2 * 400 * 50, "masks and counters of the canvas, and no logits of it"
        assert all(state.previous is None for state in out.trace)
        assert out.nfe - out.encoder_passes == 8


def test_sequential_samplers_are_refused():
    with pytest.raises(OptionError, match="refusion"):
        samplers.sample(Reader(12), "refusion", prompt=[1], gen_length=4)
