"""KV caches under windows that slide: against a plain simulation of each scheme, and against no cache where that is exact."""

import pytest
import torch
from test_caching import MASK, Glass, V

import samplers
from samplers import OptionError
from samplers.models import Config, Transformer, TransformerDenoiser

pytestmark = pytest.mark.usefixtures("one_thread")


def simulate(model, scheme, prompt, gen_length, size, *, cap=None, refresh=None, before=24, tau=0.99):
    """`threshold` at temperature 0 under a window of `size` masks and a caching scheme: plain Python, one row."""
    x, length = prompt + [MASK] * gen_length, len(prompt) + gen_length
    kept, forwards, written, refresh = {}, 0, 0, refresh or size
    left, begin, last, age = None, 0, 0, 0

    def feed(positions, others):
        return model.feed({q: x[q] for q in sorted(positions)}, others)

    while MASK in x:
        every = [p for p in range(length) if x[p] == MASK]
        start, window = every[0], [p for p in every[:size] if cap is None or p < every[0] + cap]
        full = left is None or left - len(every) >= refresh
        if full:
            left, begin, age = len(every), start, 0
        full |= scheme == "delayed" and (age < 2 or age % 8 == 0)
        shifted = {max(p - 1, 0) for p in window} if model.shift else set()
        if full or scheme is None:
            kept = keys = feed(range(length), {})
            written += length * (scheme is not None)
        elif scheme == "prefix":
            fed = shifted | set(range(begin, length))
            front = {q: key for q, key in kept.items() if q < begin and q not in fed}
            keys = front | feed(fed, front)
        else:
            fed = {
                "dsb": range(max(0, start - max(before, start - last)), window[-1] + 1),
                "dual": range(begin, window[-1] + 1),
                "delayed": [q for q in range(length) if x[q] == MASK or kept[q][0] != x[q]],
            }[scheme]
            fed = shifted | set(fed)
            others = {q: key for q, key in kept.items() if q not in fed}
            kept = keys = others | feed(fed, others)
            written += len(fed)
        forwards, last, age = forwards + 1, start, age + 1
        p = {
            i: torch.softmax(model.logits_at(max(i - 1, 0) if model.shift else i, keys)[:V].double(), 0) for i in window
        }
        top = max(window, key=lambda i: (float(p[i].max()), -i))
        for i in [i for i in window if float(p[i].max()) >= tau] or [top]:
            x[i] = int(p[i].argmax())
    return x, forwards, written


@pytest.mark.parametrize(
    ("scheme", "how"),
    [
        (None, {}),
        ("prefix", {}),
        ("dual", {}),
        ("delayed", {}),
        ("dsb", {}),
        ("dsb(0,3)", {"before": 0, "refresh": 3}),
        ("dsb(2,7)", {"before": 2, "refresh": 7}),
    ],
)
@pytest.mark.parametrize(("size", "cap", "shift"), [(4, None, False), (5, 7, False), (4, None, True)])
@pytest.mark.parametrize("ragged", ["groups", "pad"])
def test_a_scheme_is_what_it_says(scheme, how, size, cap, shift, ragged):
    prompts = [[1, 2, 3], [4], [5, 6, 7]]
    window = f"sliding({size})" if cap is None else f"sliding({size},{cap})"
    out = samplers.sample(
        Glass(shift=shift), "threshold", prompt=prompts, gen_length=15, window=window, cache=scheme, ragged=ragged,
        threshold=0.99,
    )  # fmt: skip
    name, total = scheme and scheme.partition("(")[0], 0
    for i, prompt in enumerate(prompts):
        x, forwards, written = simulate(Glass(shift=shift), name, prompt, 15, size, cap=cap, **how)
        assert (out.x[i, : len(x)].tolist(), int(out.nfe_rows[i])) == (x, forwards)
        total += written
    assert out.cache_bytes == total


def test_the_schemes_differ():
    made = {}
    for scheme in (None, "prefix", "dual", "delayed", "dsb(0,4)", "dsb(3,8)"):
        out = samplers.sample(
            Glass(), "threshold", prompt=[[1, 2, 3]], gen_length=24, window="sliding(6)", threshold=0.99, cache=scheme
        )
        made[scheme] = tuple(out.x[0].tolist())
    assert len(set(made.values())) == 6


@pytest.mark.parametrize(("attention", "block"), [("causal", None), ("block_causal", 4)])
@pytest.mark.parametrize("window", ["sliding(5)", "sliding(5,7)", "pipeline(4)", "pipeline(8,0.25,1)"])
def test_with_a_model_that_looks_back_a_cache_changes_nothing(attention, block, window):
    config = Config(vocab_size=12, width=32, layers=2, heads=2, attention=attention, block_length=block)
    model = TransformerDenoiser(Transformer(config, seed=3), mask_id=11)
    run = {"prompt": [[1, 2, 3], [4, 5, 6, 7, 8, 9, 1], []], "gen_length": 17, "window": window, "threshold": 0.3}
    plain, cached = (samplers.sample(model, "threshold", cache=cache, **run) for cache in (None, "block"))
    assert plain.x.tolist() == cached.x.tolist()
    assert cached.token_evals < plain.token_evals and cached.nfe >= plain.nfe
    if attention == "causal" and window.startswith("sliding"):
        assert samplers.sample(model, "threshold", cache="prefix", **run).x.tolist() == plain.x.tolist()


@pytest.mark.parametrize(
    ("says", "attention", "wrong"),
    [
        ("follows a window that slides: give window=", "full", {"cache": "dsb"}),
        (r"cache='dsb\(24,0\)' follows a window", "full", {"cache": "dsb", "block_length": 4}),
        ("goes with cache='block' or none: 'dual' keeps", "full", {"window": "pipeline(4)", "cache": "dual"}),
        (
            r"window='wedlm\(4\)' is for causal models .* 'transformer' has full attention",
            "full",
            {"window": "wedlm(4)"},
        ),
        (
            "keeps the decided beginning .* leave cache='prefix' out",
            "causal",
            {"window": "wedlm(4)", "cache": "prefix"},
        ),
        ("before must be a whole number", "full", {"window": "sliding(4)", "cache": "dsb(-1,4)"}),
    ],
)
def test_what_does_not_go_together(says, attention, wrong):
    config = Config(vocab_size=12, width=32, layers=1, heads=2, attention=attention)
    model = TransformerDenoiser(Transformer(config, seed=0), mask_id=11)
    with pytest.raises(OptionError, match=says):
        samplers.sample(model, "threshold", gen_length=8, **wrong)
