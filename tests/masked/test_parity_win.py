"""Windows that move, token for token with the published loops (DSB, DCD, WeDLM, D2F), at temperature 0, batch 1.

Each loop is written here again as plain Python on lists. Where ours differs on purpose a comment says so.
"""

import pytest
import torch
from test_parity import MASK, PROMPT, Net, agree, best, fresh, guess, masks, put, run, softmax

import samplers
from samplers.models import Config, Transformer, TransformerDenoiser

pytestmark = pytest.mark.usefixtures("one_thread")


def dsb(net, length, size, tau, cap=None):
    """DSB: the window ends `size` + (filled so far) after the prompt, at most `cap` after its first mask."""
    x, states = fresh(length), []
    while MASK in x:
        first, filled = x.index(MASK), len(x) - len(PROMPT) - x.count(MASK)
        end = min(len(PROMPT) + size + filled, len(x))
        end = end if cap is None else min(end, first + cap)
        token, p, _ = guess(net, x)
        window = masks(x, range(first, end))
        x = put(x, [i for i in window if p[i] >= tau] or best(window, p, 1), token)
        states.append(x)
    return states


def dcd(net, length, size, tau):
    """DCD: the right end moves on until `size` masks are inside."""
    x, states, end = fresh(length), [], len(PROMPT)
    while MASK in x:
        while end < len(x) and len(masks(x, range(end))) < size:
            end += 1
        token, p, _ = guess(net, x)
        window = masks(x, range(end))
        x = put(x, [i for i in window if p[i] >= tau] or best(window, p, 1), token)
        states.append(x)
    return states


@pytest.mark.parametrize(
    ("length", "size", "cap"), [(24, 8, None), (24, 6, 9), (21, 5, 5), (16, 16, None), (9, 1, None)]
)
def test_dsb_and_dcd(length, size, cap):
    differ = 0
    for seed in range(3):
        net = Net(seed, sharp=3.0)
        window = f"sliding({size})" if cap is None else f"sliding({size},{cap})"
        ours = run(net, "threshold", length, window=window, threshold=0.6)
        agree(ours, dsb(net, length, size, 0.6, cap))
        if cap is None:
            assert ours[0] == dcd(net, length, size, 0.6), "DSB's window without a cap is DCD's"
        differ += ours[0] != run(net, "threshold", length, block_length=size, threshold=0.6)[0]
    assert differ or size == 1 or size == length, "else fixed blocks would have passed as well"


def d2f(net, length, size, tau, add, full):
    """D2F: masks are appended a block at a time; a fully active block without a token above tau takes its best one."""
    x, states, spans = list(PROMPT), [], []

    def share(span):
        return sum(x[i] != MASK for i in span) / len(span)

    while len(x) < len(PROMPT) + length or MASK in x:
        if len(x) < len(PROMPT) + length and (not spans or share(spans[-1]) >= add):
            spans.append(range(len(x), min(len(x) + size, len(PROMPT) + length)))
            x = x + [MASK] * len(spans[-1])
        token, p, _ = guess(net, x)
        chosen = []
        for k, span in enumerate(spans):
            sure = [i for i in masks(x, span) if p[i] >= tau]  # there: >
            active = k == 0 or share(spans[k - 1]) >= full
            chosen += sure or (best(masks(x, span), p, 1) if active else [])
        x = put(x, chosen, token)
        states.append(x + [MASK] * (len(PROMPT) + length - len(x)))
    return states


@pytest.mark.parametrize(
    ("length", "size", "add", "full"), [(24, 6, 0.5, 0.5), (24, 8, 0.25, 0.75), (22, 6, 0.7, 0.95), (15, 5, 0.1, 1.0)]
)
def test_d2f(length, size, add, full):
    several = 0
    for seed in range(3):
        net = Net(seed, sharp=3.0)
        ours = run(net, "threshold", length, window=f"pipeline({size},{add},{full})", threshold=0.6)
        agree(ours, d2f(net, length, size, 0.6, add, full))
        several += len(ours[0]) < len(
            run(net, "threshold", length, block_length=size, window="block", threshold=0.6)[0]
        )
    assert several, "else one block after another would have passed as well"


# ---------------------------------------------------------------------------------------------- WeDLM


def causal(seed):
    config = Config(vocab_size=12, width=32, layers=2, heads=2, attention="causal", embeddings=MASK + 1)
    model = Transformer(config, seed=seed)
    for weight in model.parameters():  # as it is made, it says nearly the same of every mask
        weight.data *= 3 if weight.dim() > 1 else 1
    model.head.weight.data *= 6
    return TransformerDenoiser(model, mask_id=MASK)


def wedlm(denoiser, prompt, length, size, tau, slope, cap=None):
    """WeDLM, all of it computed again in every pass: kept tokens, decided ones of the window, masks; true positions."""
    x, states = prompt + [MASK] * length, []
    while MASK in x:
        first = x.index(MASK)
        window = masks(x)[:size]
        window = window if cap is None else [i for i in window if i < first + cap]
        order = list(range(first)) + [i for i in range(first, window[-1]) if x[i] != MASK] + window
        hidden = denoiser.model(torch.tensor([[x[i] for i in order]]), torch.tensor([order]))[0]
        p = softmax(denoiser.head.logits(hidden).double().detach().numpy())[-len(window) :]
        entropy = -(p * torch.from_numpy(p).clamp_min(1e-300).log().numpy()).sum(1)
        score = [h + slope * (i - first) for h, i in zip(entropy, window)]
        chosen = [k for k in range(len(window)) if score[k] <= tau] or [min(range(len(window)), key=lambda k: score[k])]
        for k in chosen:
            x = put(x, [window[k]], {window[k]: int(p[k].argmax())})
        states.append(x)
    return states


@pytest.mark.parametrize(("size", "cap"), [(4, None), (6, 6), (5, 8), (18, None)])
def test_wedlm(size, cap):
    jumped = several = False
    for seed in range(3):
        denoiser = causal(seed)
        window = f"wedlm({size})" if cap is None else f"wedlm({size},{cap})"
        how = {"gen_length": 18, "window": window, "threshold": 1.2, "trace": True}
        prompts = [PROMPT, [7, 2, 5, 1, 8], []]
        out = samplers.sample(denoiser, "wedlm", prompt=prompts, **how)
        for i, prompt in enumerate(prompts):
            published = wedlm(denoiser, prompt, 18, size, 1.2, 0.02, cap)
            alone = samplers.sample(denoiser, "wedlm", prompt=[prompt], first_row=i, cache="block", **how)
            assert [s.x[0].tolist() for s in alone.trace][1:] == published
            assert alone.nfe == len(published) == int(out.nfe_rows[i])
            assert out.x[i, : len(prompt) + 18].tolist() == published[-1]
            jumped |= any(x[x.index(MASK) :].count(MASK) < len(x) - x.index(MASK) for x in published if MASK in x)
            several |= len(published) < 18
            # What is given in all passes: every position once when it leaves for the cache, and the window.
            assert alone.token_evals < sum(x.index(MASK) if MASK in x else len(x) for x in published) + size * alone.nfe
    assert several and jumped, "a token after the first mask was decided, and given before it"


def test_wedlm_with_guidance_and_a_sampler_that_looks_back():
    """Guided rows have a cache of their own; asking about decided positions does not mix up the lines."""

    class Curious(samplers.authoring.Sampler):
        name, family = "curious", "masked"

        def step(self, predict, state):
            last = torch.nn.functional.pad(state.open[:, 1:], (0, 1)) & (state.open.cumsum(1) > 0)
            seen = predict(state, state.open | last, want="confidence")
            return state.commit_best(torch.where(state.open, seen.confidence, -1), seen.token, k=1)

    denoiser = causal(1)
    run = {"prompt": [PROMPT], "gen_length": 10, "window": "wedlm(4)", "temperature": 0.0}
    plain = samplers.sample(denoiser, "low_confidence", **run)
    curious = samplers.sample(denoiser, Curious(), **run)
    assert plain.x.tolist() == curious.x.tolist()
    guided = samplers.sample(denoiser, "low_confidence", cfg_scale=1.0, **run)
    assert guided.x.tolist() != plain.x.tolist() and guided.row_evals == 2 * plain.row_evals
