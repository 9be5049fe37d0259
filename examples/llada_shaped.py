"""Decoding as LLaDA does it, on the small text model that comes with the library.

For LLaDA itself replace one line: model = samplers.models.pretrained("owner/name"), with a tokenizer of your own.
"""

import samplers

model = samplers.models.zoo.load("text-mdm")
prompts = [model.encode("Return the "), model.encode("The value of the "), model.encode("Raise a ")]


def show(label: str, out: samplers.Sample) -> None:
    print(f"\n{label}: {out.nfe} forward passes, {out.token_evals:,} positions, {out.seconds.total:.2f} s")
    for row, end in zip(out.x, out.lengths.tolist()):
        print("  " + model.decode(row[:end]).replace("\n", " ")[:100])


def main() -> None:
    shared = {
        "prompt": prompts,  # three, of different lengths; no padding and no attention mask
        "gen_length": 32,
        "block_length": 16,
        "temperature": 0.7,
        "stop": model.eos_id,
        "seed": 1,
    }
    show("LLaDA's rule, one position per step", samplers.sample(model, "low_confidence", **shared))
    show("the same in half as many steps", samplers.sample(model, "low_confidence", steps=16, **shared))
    show("with the dual cache", samplers.sample(model, "low_confidence", steps=16, cache="dual", **shared))
    show("as many positions as are sure", samplers.sample(model, "threshold", threshold=0.3, **shared))


if __name__ == "__main__":
    main()
