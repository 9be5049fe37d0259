"""DiffusionGemma: tokens and passes of transformers' generate and of diffusers' pipeline, with the same random numbers."""

import pytest
import torch

import samplers
from samplers import OptionError
from samplers.aliases import of_scheduler
from samplers.errors import ModelError
from samplers.models import diffusion_gemma
from samplers.random import DRAW_NOISE_TOKEN, DRAW_ROUTE, DRAW_START, DRAW_TOKEN, Rng

pytestmark = pytest.mark.usefixtures("one_thread")
transformers = pytest.importorskip("transformers")
if not hasattr(transformers, "DiffusionGemmaForBlockDiffusion"):
    pytest.skip("this transformers has no DiffusionGemma", allow_module_level=True)

V, N = 64, 8  # ids, and positions of a block
PROMPTS = [[5, 17, 9, 33, 21], [40, 8, 50, 11, 30], [12, 13, 55, 7, 3], [59, 58, 4, 4, 28]]


@pytest.fixture(scope="module")
def model():
    """A window of 8 over 2 layers: what was read long ago is seen by the second layer alone."""
    torch.manual_seed(0)
    text = transformers.DiffusionGemmaTextConfig(
        vocab_size=V, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, head_dim=8, global_head_dim=16, num_global_key_value_heads=2, sliding_window=8,
        num_experts=4, top_k_experts=2, moe_intermediate_size=16, layer_types=["sliding_attention", "full_attention"],
        max_position_embeddings=128, pad_token_id=0, eos_token_id=1, bos_token_id=2,
    )  # fmt: skip
    vision = {
        "model_type": "gemma4_vision", "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 8, "patch_size": 4,
    }  # fmt: skip
    config = transformers.DiffusionGemmaConfig(
        text_config=text, vision_config=vision, canvas_length=N, image_token_id=60, boi_token_id=61, eoi_token_id=62
    )
    model = transformers.DiffusionGemmaForBlockDiffusion(config).eval()
    gen = torch.Generator().manual_seed(3)
    for name, p in model.named_parameters():  # as it begins it says the same of everything
        if p.dim() > 1 and "vision" not in name:
            wide = 2.2 if "embed_tokens" in name else 0.4 if "self_conditioning" in name else 0.35
            p.data = torch.randn(p.shape, generator=gen) * wide
    model.set_experts_implementation("eager")  # the others have no float64
    return model.double()  # rounding apart, what rows share a forward pass makes no difference


class Draws:
    """Our random numbers in place of torch's: rows that have finished their block do not move on.

    Attributes:
        taken: (B,) int64, the steps that each row has taken.
        start: where the present block begins.
    """

    def __init__(self, rows, prompt, length, seed=0):
        self.rng, self.length = Rng.of(seed, rows), prompt + length
        self.taken, self.start = torch.zeros(rows, dtype=torch.int64), prompt - N
        self.inside = False

    def uniform(self, draw):
        return self.rng.positions(self.length, self.taken * (draw != DRAW_START), draw)[:, self.start : self.start + N]

    def multinomial(self, probs, num_samples=1, generator=None):
        """By inverse distribution function, in float64."""
        draw = DRAW_ROUTE if probs.shape[1] == 3 else DRAW_TOKEN
        total = probs.double().cumsum(1)
        return (total > self.uniform(draw).reshape(-1, 1) * total[:, -1:]).int().argmax(1, keepdim=True)

    def randint(self, *args, **how):
        """The noise of a new block, or of a step."""
        if not self.inside:
            self.start += N
        return (self.uniform(DRAW_NOISE_TOKEN if self.inside else DRAW_START) * V).long()

    def patch(self, monkeypatch):
        monkeypatch.setattr(torch, "multinomial", self.multinomial)
        monkeypatch.setattr(torch, "randint", self.randint)


def generated(model, prompts, canvases, **config):
    """What transformers generates: tokens (B, canvases * N), and the decoder passes of each row."""
    draws, pad = Draws(len(prompts), len(prompts[0]), canvases * N), 63
    plain = model._denoising_step

    def step(*, finished_denoising, **more):
        before, draws.inside = finished_denoising.clone(), True
        out = plain(finished_denoising=finished_denoising, **more)
        draws.taken += (~before).long()
        draws.inside = False
        return out

    with pytest.MonkeyPatch.context() as patch:
        draws.patch(patch)
        patch.setattr(model, "_denoising_step", step, raising=False)
        out = model.generate(
            torch.tensor(prompts),
            max_new_tokens=canvases * N,
            pad_token_id=pad,
            eos_token_id=config.pop("eos", None),
            **config,
        )
    new = out.sequences[:, len(prompts[0]) :]
    return new, ((new != pad).sum(1) / out.tokens_per_forward).round().long()


def ours(denoiser, prompts, canvases, steps, **options):
    return samplers.sample(
        denoiser, options.pop("sampler", "entropy_bound_uniform"), prompt=prompts, gen_length=canvases * N,
        steps=None if steps is None else steps * canvases, **{"stop": [], **options},
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------- transformers


def test_logits_are_the_models(model):
    """A context that is read in parts, rows that are picked and put together again, a row without logits from before."""
    denoiser = diffusion_gemma.from_model(model)
    gen = torch.Generator().manual_seed(1)
    ids = torch.randint(3, V, (3, 21), generator=gen)
    block = torch.randint(3, V, (3, N), generator=gen)
    previous = torch.randn(3, N, V, generator=gen, dtype=torch.float64) * 3
    with torch.no_grad():
        first = model(input_ids=ids, decoder_input_ids=block).logits
        later = model(input_ids=ids, decoder_input_ids=block, self_conditioning_logits=previous).logits
    context = denoiser.read(ids[:, 13:], denoiser.read(ids[:, 9:13], denoiser.read(ids[:, :9], None)))
    order = torch.tensor([2, 0, 1])
    parts = [denoiser.rows_of(context, order[:2]), denoiser.rows_of(context, order[2:])]
    context = denoiser.joined(parts)
    assert float((denoiser.denoise(block[order], context) - first[order]).abs().max()) < 1e-4
    told = torch.tensor([True, False, True])
    mixed = denoiser.denoise(block[order], context, previous=previous[order] * told[:, None, None], told=told)
    expected = torch.where(told[:, None, None], later[order], first[order])
    assert float((mixed - expected).abs().max()) < 1e-4
    assert float((first - later).abs().max()) > 0.1
    assert (context.lengths, context.cache.get_seq_length()) == ((21,) * 3, 21)


@pytest.fixture
def eager(model):
    """Attention whose softmax is in float32, whatever the model's dtype."""
    model.set_attn_implementation("eager")
    yield
    model.set_attn_implementation("sdpa")


@pytest.mark.parametrize(("attention", "near"), [(None, 1e-9), ("eager", 1e-4)])
def test_rows_that_have_read_unlike_much_share_a_pass(model, attention, near, request):
    """Of 3, 21, 6 and 7 tokens, at a window of 8: each row's logits are its own; and it reads on after they part."""
    if attention:
        request.getfixturevalue(attention)
    denoiser, gen = diffusion_gemma.from_model(model), torch.Generator().manual_seed(1)
    ids = [torch.randint(3, V, (1, n), generator=gen) for n in (3, 21, 6, 7)]
    block = torch.randint(3, V, (4, N), generator=gen)
    with torch.no_grad():
        alone = torch.cat([model(input_ids=i, decoder_input_ids=b[None]).logits for i, b in zip(ids, block)])
    mixed = denoiser.joined([denoiser.read(i, None) for i in ids])
    assert float((denoiser.denoise(block, mixed) - alone).abs().max()) < near
    some = denoiser.joined([denoiser.rows_of(mixed, torch.tensor([2, 0])), denoiser.rows_of(mixed, torch.tensor([3]))])
    assert some.cache.layers[1].keys.shape[2] == 7 and some.lengths == (6, 3, 7)
    assert float((denoiser.denoise(block[[2, 0, 3]], some) - alone[[2, 0, 3]]).abs().max()) < near
    on = denoiser.read(block[:1], denoiser.rows_of(some, torch.tensor([1])))  # the row of 3 reads 8 more
    with torch.no_grad():
        expected = model(input_ids=torch.cat([ids[0], block[:1]], 1), decoder_input_ids=block[1:2]).logits
    assert float((denoiser.denoise(block[1:2], on) - expected).abs().max()) < near


def test_ragged_rows_are_what_they_are_alone(model):
    """Prompts of four lengths, rows that stop early: passes are those of the slowest row, not of all rows together."""
    denoiser = diffusion_gemma.from_model(model)
    prompts = [PROMPTS[0][:2], PROMPTS[1], PROMPTS[2] * 3, PROMPTS[3][:3]]
    run = {"gen_length": 20, "steps": 36, "bound": 8.0, "stop_entropy": 2.2, "pace": False, "stop": [7, 9]}
    out = samplers.sample(denoiser, "entropy_bound_uniform", prompt=prompts, **run)
    decoded = (out.nfe_rows - out.encoder_rows).tolist()
    assert len(set(decoded)) > 1 and len(set(out.lengths.tolist())) > 1
    for i, prompt in enumerate(prompts):
        alone = samplers.sample(denoiser, "entropy_bound_uniform", prompt=[prompt], first_row=i, **run)
        assert alone.rows()[0].tolist() == out.rows()[i].tolist()
        assert int(out.nfe_rows[i]) == alone.nfe and int(out.encoder_rows[i]) == alone.encoder_passes
    # Blocks of 4 at the end are passes of their own.
    assert max(decoded) <= out.nfe - out.encoder_passes < sum(decoded) * 0.6


@pytest.mark.parametrize(
    ("rows", "canvases", "steps", "bound", "stability", "confidence", "eos"),
    [
        (1, 3, 6, 0.1, 1, 0.005, None),  # never sure: all steps of all canvases
        (1, 3, 12, 8.0, 1, 2.0, None),
        (4, 3, 12, 8.0, 1, 2.2, None),
        (4, 3, 9, 3.0, 2, 2.5, [1, 44, 20]),
        (3, 2, 10, 1.0, 0, 2.4, [7]),
    ],
)
def test_tokens_and_passes_are_those_of_generate(model, rows, canvases, steps, bound, stability, confidence, eos):
    prompts = PROMPTS[:rows]
    tokens, passes = generated(
        model, prompts, canvases, max_denoising_steps=steps, stability_threshold=stability, eos=eos,
        confidence_threshold=confidence,
        sampler_config=transformers.models.diffusion_gemma.generation_diffusion_gemma.EntropyBoundSamplerConfig(bound),
    )  # fmt: skip
    denoiser = diffusion_gemma.from_model(model)
    out = ours(
        denoiser, prompts, canvases, steps, sampler="diffusion_gemma", bound=bound, stability=stability,
        stop_entropy=confidence, stop=eos,
    )  # fmt: skip
    assert rows == 1 or len(set(passes.tolist())) > 1, "no row went its own way"
    assert (out.nfe_rows - out.encoder_rows).tolist() == passes.tolist()
    assert rows == 1 or out.nfe - out.encoder_passes == max(passes), "rows of one batch share all passes"
    for mine, theirs in zip(out.generated, tokens):
        assert mine.tolist() == theirs[: len(mine)].tolist()
        assert (theirs[len(mine) :] == 63).all(), "they go on after our end"


# ---------------------------------------------------------------------------------------------- diffusers


@pytest.fixture(scope="module")
def piped(model):
    """What diffusers' pipeline makes with one of its schedulers: tokens (B, canvases * N), decoder passes, our name for it."""
    diffusers = pytest.importorskip("diffusers")
    if not hasattr(diffusers, "DiffusionGemmaPipeline"):
        pytest.skip("this diffusers has no DiffusionGemmaPipeline")

    class Processor:
        def apply_chat_template(self, messages, **how):
            return {"input_ids": torch.tensor([[int(i) for i in m[0]["content"].split()] for m in messages])}

    def run(scheduler, prompts, canvases, steps, **how):
        draws, scheduler = (
            Draws(len(prompts), len(prompts[0]), canvases * N),
            getattr(diffusers, scheduler[0])(**scheduler[1]),
        )
        plain, calls = scheduler.step, 0

        def step(**more):
            nonlocal calls
            draws.inside = True
            out = plain(**more)
            draws.taken, draws.inside, calls = draws.taken + 1, False, calls + 1
            return out

        with pytest.MonkeyPatch.context() as patch:
            draws.patch(patch)
            patch.setattr(type(scheduler), "step", Step(step, plain))
            pipe = diffusers.DiffusionGemmaPipeline(model=model, scheduler=scheduler, processor=Processor())
            pipe.set_progress_bar_config(disable=True)
            out = pipe(
                prompt=[" ".join(map(str, p)) for p in prompts], gen_length=canvases * N, num_inference_steps=steps,
                output_type="seq", **how,
            )  # fmt: skip
        name, options = of_scheduler(scheduler.config, type(scheduler).__name__)
        return out.sequences, calls, {"sampler": name, **options}

    return run


class Step:
    """A method whose signature can still be read; the pipeline gives it what the signature has."""

    def __init__(self, call, plain):
        self.call, self.__wrapped__ = call, plain

    def __call__(self, **how):
        return self.call(**how)


@pytest.mark.parametrize("prompt", range(3))
def test_entropy_bound_is_the_pipelines(model, piped, prompt):
    """A row that stops before the last step; and rows that do not, which end with noise."""
    denoiser = diffusion_gemma.from_model(model)
    for prompts, canvases, confidence in (
        (PROMPTS[prompt : prompt + 1], 3, 2.2),
        (PROMPTS[prompt : prompt + 2], 2, None),
    ):
        setting = ("EntropyBoundScheduler", {"entropy_bound": 8.0, "t_min": 0.2, "t_max": 0.9})
        tokens, calls, same = piped(setting, prompts, canvases, 9, confidence_threshold=confidence)
        out = ours(denoiser, prompts, canvases, 9, **same, stop_entropy=confidence, temperature=0.9)
        assert torch.stack(out.generated).tolist() == tokens.tolist()
        assert out.nfe - out.encoder_passes == calls
        assert (confidence is None) == (calls == canvases * 9)


@pytest.mark.parametrize(
    ("canvases", "steps", "threshold", "edit", "temperature"),
    [(3, 5, 2.0, None, 0.0), (3, 8, 2.0, 0.3, 0.7), (1, 6, 0.35, None, 0.9), (2, 7, 2.0, None, 1.0)],
)
def test_block_refinement_is_the_pipelines(model, piped, canvases, steps, threshold, edit, temperature):
    """Committed tokens' logits are told as well as the others'. Above 1 the plan alone commits, to the last step."""
    setting = ("BlockRefinementScheduler", {"threshold": threshold, "editing_threshold": edit})
    tokens, calls, same = piped(setting, PROMPTS, canvases, steps, temperature=temperature, confidence_threshold=None)
    out = ours(diffusion_gemma.from_model(model), PROMPTS, canvases, steps, **same, temperature=temperature)
    assert torch.stack(out.generated).tolist() == tokens.tolist()
    passes = (out.nfe_rows - out.encoder_rows).tolist()
    assert calls == canvases * steps and (set(passes) == {calls} if threshold > 1 else max(passes) <= calls)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_ddim_is_the_pipelines(model, piped, temperature):
    how = {"temperature": temperature, "confidence_threshold": None}
    tokens, calls, same = piped(("DiscreteDDIMScheduler", {}), PROMPTS, 2, 7, **how)
    out = ours(diffusion_gemma.from_model(model), PROMPTS, 2, 7, **same, temperature=temperature)
    assert torch.stack(out.generated).tolist() == tokens.tolist()
    assert out.nfe - out.encoder_passes == calls == 14


# ---------------------------------------------------------------------------------------------- loading


def test_a_folder_in_one_line(model, tmp_path):
    """What is read of config and generation config; the ids that a tokenizer does not have are never drawn."""
    model.generation_config.max_denoising_steps, model.generation_config.eos_token_id = 5, [1, 44]
    model.save_pretrained(tmp_path)
    denoiser = samplers.models.pretrained(tmp_path, dtype=torch.float64)
    with pytest.raises(ModelError, match=r"denoises block by block; samplers\.models\.diffusion_gemma\.from_model"):
        samplers.models.from_transformers(model)
    with pytest.raises(ModelError, match="attention cannot be told of a DiffusionGemma"):
        samplers.models.pretrained(tmp_path, attention="full")
    denoiser.model.set_experts_implementation("eager")
    assert (denoiser.canvas_length, denoiser.block_steps, denoiser.stop_ids) == (N, 5, (1, 44))
    assert (denoiser.vocab_size, denoiser.max_length, denoiser.mask_id) == (V, 128, None)
    run = {"prompt": PROMPTS[:2], "gen_length": 12, "bound": 8.0}
    live = diffusion_gemma.from_model(model)
    out = samplers.sample(denoiser, "entropy_bound_uniform", **run)
    assert out.x.tolist() == samplers.sample(live, "entropy_bound_uniform", **run).x.tolist()
    assert out.settings["steps"] == 10 and out.settings["block_length"] == N

    class Few:
        vocab_size, eos_ids, mask_id = 40, (3, 50), None

    few = diffusion_gemma.from_model(model, Few())
    assert few.vocab_size == 40 and few.stop_ids == (1, 3)
    short = samplers.sample(few, "entropy_bound_uniform", prompt=[5, 6], gen_length=16, temperature=1.0, steps=10)
    assert int(short.x.max()) < 40
    with torch.no_grad():  # of the ids that are left the model's logits, and no others told
        context = live.read(torch.tensor([[5, 6]]), None)
        block, previous = torch.arange(N)[None], torch.zeros(1, N, 40, dtype=torch.float64)
        told = few.denoise(block, context, previous=previous)
        wide = torch.nn.functional.pad(previous, (0, V - 40), value=-1e9)
        assert float((told - live.denoise(block, context, previous=wide)[..., :40]).abs().max()) < 1e-5


def test_what_is_no_diffusion_gemma_is_said(model, tmp_path):
    with pytest.raises(ModelError, match="Linear is no DiffusionGemmaForBlockDiffusion"):
        diffusion_gemma.from_model(torch.nn.Linear(2, 2))
    with pytest.raises(ModelError, match="transformers cannot load"):
        diffusion_gemma.load(tmp_path)
    with pytest.raises(OptionError, match="needs a prompt"):
        samplers.sample(diffusion_gemma.from_model(model), "d3pm_ancestral", gen_length=N, steps=2)
    model.train()
    assert not diffusion_gemma.from_model(model).model.training


def test_bfloat16_is_near(model):
    """The model in bfloat16, as it is published: logits in float32, and a run that ends."""
    half = transformers.DiffusionGemmaForBlockDiffusion(model.config)
    half.load_state_dict(model.state_dict())
    half = diffusion_gemma.from_model(half.to(torch.bfloat16))
    out = samplers.sample(half, "entropy_bound_uniform", prompt=PROMPTS, gen_length=2 * N, steps=6, batch=4)
    assert out.nfe - out.encoder_passes == 6 and half.dtype == torch.bfloat16
