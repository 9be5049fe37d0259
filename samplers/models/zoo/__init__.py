"""Small trained models in the box, by name.

    denoiser = samplers.models.zoo.load("text-mdm")
    out = samplers.sample(denoiser, "entropy_bound", gen_length=128)
    print(denoiser.decode(out.x[0]))

    text-mdm       masked tokens, full attention, time-free; words of Python's own documentation
    text-refusion  causal, trained with shuffled clean slots: one head says a mask's token and the next token
    digits-mdm     scikit-learn's 8 x 8 digits, 17 grey levels, masked
    digits-gauss   the same as reals, Gaussian noise (vp_linear)

Each is a folder of its name: model.safetensors, config.json, for text vocab.json, and training.json: the command that made
it, its seed and seconds, what it scores on held-out data, and what n-grams or the exact distribution score beside it. Weights are
stored in bfloat16 and loaded as float32.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...denoiser import Denoiser, TokenDenoiser
from ...errors import ModelError, UnknownNameError, did_you_mean
from ...gaussian.denoiser import GaussianDenoiser
from ...problems.digits import GREYS, Digits
from ...schedule import noise_schedule
from ..denoiser import TransformerDenoiser
from ..load import load as load_transformer
from ..load import read_safetensors
from ..mlp import MLP
from ..tokenizer import Tokenizer

__all__ = ["DigitsDenoiser", "TextDenoiser", "facts", "list_models", "load"]

FOLDER = Path(__file__).parent


def list_models() -> list[str]:
    """The names that `load` knows, sorted."""
    return sorted(path.parent.name for path in FOLDER.glob("*/config.json"))


def facts(name: str) -> dict[str, Any]:
    """What the model's training.json says: command, seed, seconds, held-out NLL, machine.

    Raises:
        UnknownNameError: no such model.
    """
    return json.loads((_folder(name) / "training.json").read_text())


def load(name: str, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Denoiser:
    """The denoiser called `name`. It has `render` (a row as text, for --watch), and for text `encode` and `decode`.

    Args:
        device: where it runs. dtype: of a text model's parameters; the digits' are float32.

    Raises:
        UnknownNameError: no such model. ModelError: a file of it is missing or broken.
    """
    folder = _folder(name)
    about = json.loads((folder / "config.json").read_text())
    kind = about.get("zoo")
    if kind == "text":
        model, _ = load_transformer(folder, dtype=dtype, device=device)
        return TextDenoiser(model, Tokenizer.load(folder / "vocab.json"), name=name)
    if kind not in ("digits", "gauss"):
        raise ModelError(f"{folder}: config.json has zoo={kind!r}, expected 'text', 'digits' or 'gauss'")
    network = _mlp(folder, about["mlp"], device)
    return DigitsDenoiser(network, name=name) if kind == "digits" else _gauss(name, about, network, device)


def _folder(name: str) -> Path:
    known = list_models()
    if name not in known:
        raise UnknownNameError(f"unknown model {name!r}{did_you_mean(str(name), known)} Known: {', '.join(known)}")
    return FOLDER / name


class TextDenoiser(TransformerDenoiser):
    """A transformer over a Tokenizer's ids.

    Attributes:
        tokenizer: its Tokenizer.
        eos_id: the token that ends a text, and with it a row, unless sample(stop=) says otherwise.
    """

    def __init__(self, model: Any, tokenizer: Tokenizer, *, name: str):
        # Of the text models it is the causal one that was trained as ReFusion prescribes (bench/train.py).
        causal = model.config.attention == "causal"
        super().__init__(model, mask_id=tokenizer.mask_id, name=name, predicts_next=causal)
        self.tokenizer, self.eos_id, self.stop_ids = tokenizer, tokenizer.eos_id, tokenizer.eos_ids


class DigitsDenoiser(TokenDenoiser):
    """An MLP over the 64 pixels of a picture: to each its grey level and whether it is masked, from each 17 logits."""

    vocab_size, mask_id, length = GREYS, GREYS, 64

    def __init__(self, network: MLP, *, name: str = "digits-mdm"):
        self.network, self.name, self.device = network, name, network.last.weight.device

    def predict(self, x: Tensor, t: Tensor | None = None, *, rows: Tensor | None = None, cache: Any = None) -> Tensor:
        masked = x == GREYS
        seen = torch.where(masked, 0.0, x / 8 - 1)  # (B, 64)
        logits = self.network(torch.cat([seen, masked.to(seen.dtype)], 1)).view(*x.shape, GREYS)
        return logits if rows is None else logits[rows]

    render = staticmethod(Digits.render)


def _mlp(folder: Path, shape: dict[str, int], device: torch.device | str) -> MLP:
    network = MLP(**shape)
    state = {key: x.float() for key, x in read_safetensors(folder / "model.safetensors").items()}
    try:
        network.load_state_dict(state)
    except RuntimeError as error:
        raise ModelError(f"{folder}: {' '.join(str(error).split())}") from error
    return network.to(device).requires_grad_(False)


def _gauss(name: str, about: dict[str, Any], network: MLP, device: torch.device | str) -> GaussianDenoiser:
    schedule = noise_schedule(about["schedule"])

    def predict(x: Tensor, t: Tensor) -> Tensor:
        lam = schedule.lam(t.double().cpu()).to(x)
        return network(x.flatten(1), lam).view_as(x)

    made = GaussianDenoiser.wrap(
        predict, shape=(8, 8), schedule=schedule, prediction=about["prediction"], device=device, name=name
    )
    made.render = Digits.render  # type: ignore[attr-defined]
    return made
