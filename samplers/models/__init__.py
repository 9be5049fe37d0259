"""Models: a transformer that runs on the cached-KV ops, its weights from disk, and a zoo of small trained ones.

Transformer, Config, Llama3Rope   the decoder and its shape                                  (transformer.py)
Cache                             keys and values of all layers, moved in place, counted     (cache.py)
TransformerDenoiser, pretrained   the decoder as the driver sees it; of a folder or a hub's name (denoiser.py)
load, save                        safetensors: Llama, Qwen, LLaDA, Dream, SDAR and others, ours (load.py)
recognise, Family                 what a config.json says of a model, with its family's defaults (families.py)
dit.load, smdm.load               of MDLM, BD3-LM, RADD and SEDD (dit.py), and of SMDM (smdm.py)
Tokenizer                         byte-pair encoding of the zoo's text models                (tokenizer.py)
zoo                               trained models by name: zoo.load("text-mdm"), zoo.list_models()
                                  digits-gauss, digits-mdm, text-mdm, text-refusion
from_transformers                 any live model of transformers, with caches; needs transformers (hugging_face.py)
diffusion_gemma                   transformers' DiffusionGemma, which denoises block by block (diffusion_gemma.py)
diffusers                         samplers as its schedulers, its models as denoisers; needs diffusers (diffusers.py)
"""

import importlib
from typing import Any

from .cache import Cache
from .denoiser import TransformerDenoiser, pretrained
from .families import Family, recognise
from .load import load, save
from .tokenizer import Tokenizer
from .transformer import Config, Experts, Llama3Rope, Transformer

__all__ = [
    "Cache",
    "Config",
    "Experts",
    "Family",
    "Llama3Rope",
    "Tokenizer",
    "Transformer",
    "TransformerDenoiser",
    "load",
    "pretrained",
    "recognise",
    "save",
    "zoo",
]

from . import zoo


def __getattr__(name: str) -> Any:  # imported when used: some are extras, and slow to import
    if name == "from_transformers":
        return importlib.import_module(f"{__name__}.hugging_face").from_transformers
    if name in ("diffusers", "diffusion_gemma", "dit", "smdm"):
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
