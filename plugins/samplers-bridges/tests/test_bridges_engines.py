"""Requests through toy engines get the tokens, and cost the forward passes, that samplers.sample says."""

import pytest
import torch
from bridge_engines import MASK, NET, SIZE, VOCAB, DllmAlgorithm, Request, SglangLoop, config_of, vllm_step
from samplers_bridges.blocks import row_of
from samplers_bridges.sglang import algorithm
from samplers_bridges.vllm import SamplerPolicy, sampler_from_policy

import samplers
from samplers import OptionError

STEPS, SEED = 3, 5
# One after the other: deterministic, drawn, in random order, remasking, editing, asking twice in a step, with a history.
RULES = {
    "low_confidence": {},
    "entropy_bound": {"temperature": 0.8, "options": {"bound": 0.7}},
    "threshold": {"options": {"threshold": 0.4}},
    "random_order": {"temperature": 1.0},
    "remdm": {"temperature": 1.0, "top_k": 5},
    "p2": {"temperature": 0.5},
    "llada2": {"options": {"threshold": 0.5, "edit_threshold": 0.3}},
    "theta_trapezoidal": {"temperature": 1.0},
    "klass": {},
}
PROMPTS = {"a": [1, 2], "b": [3, 4, 5, 6, 7], "c": [8, 9, 1, 2]}


def requests(mode, blocks=2):
    return [Request(f"{mode}-{rid}", prompt, blocks) for rid, prompt in PROMPTS.items()]


def reference(rid, prompt, blocks, sampler, settings):
    """(tokens, forward passes): the request alone, block by block, each by samplers.sample."""
    settings = dict(settings)
    options, x, nfe = settings.pop("options", {}), list(prompt), 0
    for _ in range(blocks):
        made = samplers.sample(
            NET,
            sampler,
            prompt=x,
            gen_length=SIZE - len(x) % SIZE,
            steps=STEPS,
            seed=SEED,
            first_row=row_of(rid),
            **settings,
            **options,
        )
        x, nfe = made.x[0].tolist(), nfe + made.nfe
    return x, nfe


@pytest.mark.parametrize("sampler", RULES)
@pytest.mark.parametrize("mode", ["first done", "whole blocks", "vllm"])
def test_requests_through_an_engine_are_what_they_are_alone(sampler, mode):
    """Three requests; unless blocks are whole the last one begins two rounds late, and each goes at its own pace."""
    together = requests(mode)
    config = {"sampler": sampler, "steps": STEPS, "seed": SEED, **RULES[sampler]}
    if mode == "vllm":
        policy = SamplerPolicy(mask_id=MASK, **config)
        own = {r.rid: policy.request(r.rid, position=len(r.tokens)) for r in together}
    else:
        loop = SglangLoop(
            algorithm(DllmAlgorithm)(config_of({**config, "block_size": SIZE}, fdfo=mode == "first done"))
        )
    rounds = 0
    while going := [r for r in together if r.blocks]:
        rounds += 1
        going = going if rounds > 2 or mode == "whole blocks" else going[:2]
        if mode == "vllm":
            for request in going:
                vllm_step(request, own[request.rid])
        else:
            (loop.round if mode == "first done" else loop.whole_blocks)(going)
    for request, prompt in zip(together, PROMPTS.values()):
        tokens, nfe = reference(request.rid, prompt, 2, sampler, RULES[sampler])
        assert request.tokens == tokens, request.rid
        if mode == "vllm":
            assert request.forwards == nfe
        elif mode == "first done":
            assert request.forwards == nfe + 2  # SGLang stores the keys and values of each block by one more


@pytest.mark.parametrize("sampler", ["low_confidence", "entropy_bound", "threshold", "klass"])
def test_rules_without_draws_are_one_call_of_sample(sampler):
    """Then nothing depends on the step's number, and the blocks are those of sample(block_length=, align=True)."""
    (request,) = requests("one")[1:2]
    options = RULES[sampler].get("options", {})
    loop = SglangLoop(algorithm(DllmAlgorithm)(config_of({"sampler": sampler, "options": options}, fdfo=True)))
    while request.blocks:
        loop.round([request])
    made = samplers.sample(
        NET,
        sampler,
        prompt=PROMPTS["b"],
        gen_length=7,
        block_length=SIZE,
        align=True,
        window="block",
        temperature=0,
        **options,
    )
    assert request.tokens == made.x[0].tolist()
    assert request.forwards == loop.calls == made.nfe + 2


def test_each_request_has_its_own_settings():
    """Per request: temperature, top_p and top_k of SGLang's sampling_info. 2^30 is its number for all tokens."""
    together = requests("settings", 1)
    own = [{"temperature": 1.0, "top_k": 1}, {"temperature": 0.6, "top_p": 0.7}, {"temperature": 1.3, "top_k": 2**30}]
    for request, settings in zip(together, own):
        vars(request).update(settings)
    config = {"sampler": "random_order", "steps": STEPS, "seed": SEED, "per_request": True}
    loop = SglangLoop(algorithm(DllmAlgorithm)(config_of(config, fdfo=True)))
    while going := [r for r in together if r.blocks]:
        loop.round(going)
    for request, prompt, settings in zip(together, PROMPTS.values(), own):
        settings = {k: v for k, v in settings.items() if v != 2**30}
        share = {"top_p": float(torch.tensor(settings["top_p"]))} if "top_p" in settings else {}
        heat = {"temperature": float(torch.tensor(settings["temperature"]))}
        assert request.tokens == reference(request.rid, prompt, 1, "random_order", {**settings, **share, **heat})[0]


def test_prompt_blocks_and_holes():
    """A block of the prompt is done at once; one that is partly filled (a request that was put aside) is filled up."""
    made = algorithm(DllmAlgorithm)(config_of({"sampler": "threshold"}, fdfo=True))
    loop = SglangLoop(made)
    prefill, holes = Request("p", [], 1), Request("h", [], 1)
    prefill.draft, holes.draft = [1, 2, 3, 4], [1, MASK, 3, MASK]
    loop.round([prefill, holes])
    assert prefill.tokens == [1, 2, 3, 4]
    while holes.blocks:
        loop.round([holes])
    canvas = samplers.Canvas.infill(NET, [1, MASK, 3, MASK], [False, True, False, True])
    assert holes.tokens == samplers.sample(NET, "threshold", prompt=canvas).x[0].tolist()


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"sampler": "entropy"}, "entropy"),
        ({"sampler": 3}, "the name of a masked sampler is needed"),
        ({"sampler": "threshold", "step": 4}, "has no setting 'step'; it has sampler, options, steps"),
        ({"sampler": "threshold", "options": {"bound": 1}}, "nor an option of sampler .threshold."),
        ({"sampler": "threshold", "temperature": -1}, "temperature must be"),
        ({"sampler": "block_refinement"}, "uniform family; a masked one is needed"),
        ({"sampler": "refusion"}, "refusion"),
    ],
)
def test_a_wrong_configuration_is_refused_when_the_engine_starts(config, says):
    with pytest.raises(samplers.SamplersError, match=says):
        algorithm(DllmAlgorithm)(config_of(config))


def test_what_an_engine_must_not_do():
    with pytest.raises(samplers.FamilyError, match="a mask token"):
        algorithm(DllmAlgorithm)(config_of({"sampler": "threshold"}, mask_id=-1))
    made = algorithm(DllmAlgorithm)(config_of({"sampler": "threshold"}))
    batch = SglangLoop(made).batch_of(requests("none"))
    with pytest.raises(samplers.PluginError, match="no dense logits"):
        made.step(batch, None, made.init_step_state(batch))
    policy = SamplerPolicy("low_confidence", mask_id=MASK)
    first, second = requests("mixed")[1:]
    vllm_step(first, policy)
    with pytest.raises(OptionError, match=r"not the block that request None waits for.*policy\.request\(id\)"):
        vllm_step(second, policy)
    with pytest.raises(OptionError, match=r"\(3, 12\); \(4, V\) is needed"):
        policy.apply(input_draft=first.draft, logits=torch.zeros(3, VOCAB))
    with pytest.raises(OptionError, match="needs logits"):
        policy.apply(input_draft=first.draft)
    policy.drop(None)
    while second.blocks:
        vllm_step(second, policy)
    assert len(second.tokens) == 12 and MASK not in second.tokens


def test_with_the_plug_ins_own_code():
    """Where vllm-dllm-plugin is installed: its checks of the result, its type, and its default policy as a sampler."""
    remasking = pytest.importorskip("vllm_dllm_plugin.remasking")
    policy = SamplerPolicy("entropy_bound", mask_id=MASK, temperature=0.8, seed=SEED)
    request, own = Request("own", [], 2, size=32), policy.request("own")
    assert isinstance(own, remasking.RemaskingPolicy)
    default = remasking.Llada2DefaultRemaskingPolicy()
    theirs = sampler_from_policy(type(default), name="llada2_of_vllm", summary="the plug-in's default")
    made, index = samplers.sample(NET, theirs(), gen_length=32, steps=8), 0
    other = Request("other", [], 1, size=32)
    while other.blocks:
        config = {"mask_token_id": MASK, "denoise_steps": 8, "denoise_step_index": index}
        vllm_step(other, default, config)
        index += 1
    assert other.tokens == made.x[0].tolist() and other.forwards == made.nfe
    while request.blocks:
        logits, draft = request.logits(torch.tensor(request.draft)), request.draft
        result = remasking.remask_after_block_forward(input_draft=draft, logits=logits, policy=own)
        if result.committed_token_ids:
            request.commit(list(result.committed_token_ids))
        else:
            request.draft = list(result.next_input_block)
    first = samplers.sample(NET, "entropy_bound", gen_length=32, temperature=0.8, seed=SEED, first_row=row_of("own"))
    assert request.tokens[:32] == first.x[0].tolist()
