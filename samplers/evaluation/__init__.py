"""Evaluation on the tasks of lm-eval: a denoiser and a sampler as its model "samplers", and sweeps over samplers and NFE.

    samplers eval --model text-mdm --tasks zoo_finish --samplers entropy_bound,low_confidence --nfe 4,8,16 --out runs/words
    python -m samplers.evaluation run --model samplers --model_args denoiser=text-mdm,sampler=radd --tasks gsm8k

Needs lm-eval: pip install "sampler-zoo[eval]". Importing this package registers the model.
    lm.py       SamplersLM: generate_until, loglikelihood, loglikelihood_rolling
    tasks.py    tasks by name: those in the box, your own, lm-eval's
    sweep.py    cells of (task, sampler, NFE, seed), run and recorded as those of samplers.bench
    data/       three tasks of a dozen items each, that need no download: zoo_finish, zoo_choose, zoo_text
"""

from .lm import SamplersLM
from .sweep import EvalRequest, plan, run

__all__ = ["EvalRequest", "SamplersLM", "plan", "run"]
