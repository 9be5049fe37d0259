"""The conformance kit: what every sampler must keep, as tests generated from the registry.

    pytest --pyargs samplers.testing --sampler my_sampler     # one sampler, by the name of its entry point
    pytest --pyargs samplers.testing                          # all that are installed

What it holds a sampler to: signature, options and facts; shapes and dtypes; prompt untouched and no mask left, with ragged
prompts, infilling, blocks, guidance and stop rules; row i of a batch is the row alone; one seed, one result; interleaved
runs agree; the global generator is not touched; counted NFE is the declared NFE; the exact law on a tiny problem, or the
declared order of convergence.
"""

from ..syncs import pretend_device

__all__ = ["pretend_device"]
