"""Decoding as LLaDA does it, on the small text model that comes with the library.

For LLaDA itself replace one line: model = samplers.models.pretrained("GSAI-ML/LLaDA-8B-Instruct").
"""

import samplers

model = samplers.models.zoo.load("text-mdm")
prompts = ["Return the ", "The value of the ", "Raise a "]


def show(label: str, out: samplers.Sample) -> None:
    print(f"\n{label}: {out.nfe} forward passes, {out.token_evals:,} positions, {out.seconds.total:.2f} s")
    for prompt, text in zip(prompts, out.texts):
        print("  " + (prompt + text).replace("\n", " ")[:100])


def main() -> None:
    shared = {
        "prompt": prompts,  # three, of different lengths; no padding and no attention mask
        "gen_length": 32,
        "block_length": 16,
        "temperature": 0.7,
        "seed": 1,
    }
    show("LLaDA's rule, one position per step", samplers.sample(model, "low_confidence", **shared))
    show("the same in half as many steps", samplers.sample(model, "low_confidence", steps=16, **shared))
    show("with the dual cache", samplers.sample(model, "low_confidence", steps=16, cache="dual", **shared))
    show("as many positions as are sure", samplers.sample(model, "threshold", threshold=0.3, **shared))


if __name__ == "__main__":
    main()
