"""autoregressive: a plain loop, on a model in which every key depends on all that was fed before it, and the costs."""

import pytest
import torch
from test_refusion import Glass, small

import samplers
from samplers import Canvas, OptionError
from samplers.testing.tiny import TinyNet

pytestmark = pytest.mark.usefixtures("one_thread")


def plain(model, row, slot_size=None, stop=None):
    """The best tokens from left to right. row: a token or None a position. → the row, (tokens fed, kept) of each forward."""
    row, spent = list(row), []
    pending = [(token, i) for i, token in enumerate(row) if token is not None]
    holes = [i for i, token in enumerate(row) if token is None]
    last, kept = None, []  # the position of the sequence's last token, the keys that are kept
    for number, i in enumerate(holes):
        if pending:
            last = pending[-1][1]
        by_mask = last != i - 1 or last is None or (slot_size is not None and number % slot_size == 0)
        fed = pending + [(model.mask_id, i)] * by_mask
        out = model.feed(kept, fed)
        kept = kept + [key for key, _ in out[: len(pending)]]
        answer = out[-1][1]
        row[i] = max(range(len(answer)), key=lambda t: answer[t])
        spent.append((fed, len(kept)))
        pending = [(row[i], i)]
        if row[i] == stop:
            return row[: i + 1], spent
    return row, spent


@pytest.mark.parametrize("slot_size", [None, 1, 3])
@pytest.mark.parametrize("given", [(), (2,), (0, 1, 2), (0, 4, 5, 9), (3, 11)], ids=str)
def test_it_is_a_plain_loop(given, slot_size):
    for seed in range(6):
        model = Glass(seed=seed)
        row = [i * 7 % 5 if i in given else None for i in range(12)]
        expected, spent = plain(model, row, slot_size)
        x = torch.tensor([[0 if token is None else token for token in row]])
        canvas = Canvas.infill(model, x, torch.tensor([[token is None for token in row]]))
        options = {} if slot_size is None else {"slot_size": slot_size}
        out = samplers.sample(model, "autoregressive", prompt=canvas, temperature=0.0, **options)
        assert out.x.tolist() == [expected]
        assert [rows[0] for _, rows in model.log] == [fed for fed, _ in spent]
        assert out.nfe == 12 - len(given) == int(out.nfe_rows)
        assert out.token_evals == sum(len(fed) for fed, _ in spent)
        assert out.cache_bytes == 16 * spent[-1][1], "every row is written once, and nothing is moved"


@pytest.mark.parametrize("slot_size", [None, 4])
@pytest.mark.parametrize("stop", [None, 5])
def test_ragged_rows_that_stop_apart(slot_size, stop):
    prompts, options = [[], [1, 2], [3] * 6, [4]], {} if slot_size is None else {"slot_size": slot_size}
    for seed in range(8):
        model = Glass(seed=seed)
        out = samplers.sample(
            model, "autoregressive", prompt=prompts, gen_length=10, temperature=0.0, stop=stop, **options
        )
        for i, prompt in enumerate(prompts):
            expected, spent = plain(model, [*prompt, *[None] * 10], slot_size, stop)
            assert out.x[i, : int(out.lengths[i])].tolist() == expected
            assert int(out.nfe_rows[i]) == len(spent)
        assert out.nfe == max(out.nfe_rows)
        assert out.row_evals == int(out.nfe_rows.sum()), "rows that are done have left"


def test_blocks_and_draws_change_nothing_else():
    setting = {"prompt": [[1], [2, 3]], "gen_length": 12, "seed": 3, "temperature": 1.0}
    whole = samplers.sample(Glass(seed=1), "autoregressive", **setting)
    blocks = samplers.sample(Glass(seed=1), "autoregressive", block_length=5, **setting)
    assert (whole.x == blocks.x).all()
    second = samplers.sample(Glass(seed=1), "autoregressive", **setting | {"prompt": [[2, 3]], "first_row": 1})
    assert second.x[0].tolist() == whole.x[1].tolist()


def test_an_earlier_state_can_be_stepped_from_again():
    run = samplers.stream(Glass(seed=4), "autoregressive", prompt=[[1, 2], []], gen_length=9, slot_size=4)
    states = list(run)
    for k in reversed(range(len(states) - 1)):
        again = run.sampler.step(run.predict, states[k])
        assert (again.x == states[k + 1].x).all() and (again.order == states[k + 1].order).all()


def test_a_transformer_with_its_cache_is_one_without():
    """Left to right by a forward of the whole prefix a token."""
    denoiser = small(seed=2, scale=8.0)
    model, row = denoiser.model, [3, 1, 4]
    while len(row) < 23:
        row.append(int(denoiser.head.logits(model(torch.tensor([row])))[0, -1, : denoiser.vocab_size].argmax()))
    out = samplers.sample(denoiser, "autoregressive", prompt=[[3, 1, 4]], gen_length=20, temperature=0.0)
    assert out.x.tolist() == [row]
    assert out.token_evals == 3 + 19


def test_a_model_that_cannot():
    with pytest.raises(OptionError, match="its attention is full, not causal"):
        samplers.sample(TinyNet(), "autoregressive", gen_length=4)
    with pytest.raises(OptionError, match="slot_size"):
        samplers.create("autoregressive", slot_size=0)
