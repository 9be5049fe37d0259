"""Bridges between the sampler zoo and engines that run diffusion language models.

samplers_bridges.sglang     a dLLM algorithm of SGLang that runs any masked sampler, and SGLang's algorithms as samplers
samplers_bridges.vllm       a RemaskingPolicy of vLLM's dLLM plug-in likewise, and policies as samplers
samplers_bridges.FOLDER     a folder for model.generate(custom_generate=FOLDER, trust_remote_code=True) of transformers

None of the engines is imported by this package; `python -m samplers_bridges` writes the files that they look for.
"""

from __future__ import annotations

from pathlib import Path

__all__ = ["FOLDER", "samplers_interface"]

samplers_interface = 1
FOLDER = str(Path(__file__).parent)
