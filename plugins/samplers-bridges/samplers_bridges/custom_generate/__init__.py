"""The folder that transformers copies; `generate.py` needs the sampler zoo and nothing else of this package."""
