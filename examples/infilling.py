"""Filling in the middle of a text: what is kept stays as it is, whatever the sampler."""

import torch

import samplers


def main() -> None:
    model = samplers.models.zoo.load("text-mdm")
    left, right = model.encode("If the argument is "), model.encode(", a TypeError is raised.")
    gap = 8
    x = torch.cat([left, torch.zeros(gap, dtype=torch.int64), right])  # what stands in the gap does not matter
    fill = torch.zeros(len(x), dtype=torch.bool)
    fill[len(left) : len(left) + gap] = True

    canvas = samplers.Canvas.infill(model, x, fill, batch=4)
    out = samplers.sample(model, "entropy_bound", prompt=canvas, temperature=0.8, seed=3)
    assert (out.x[:, ~fill] == x[~fill]).all()
    for row in out.x:
        print(model.decode(row))
    print(f"{out.nfe} forward passes for {gap} positions")


if __name__ == "__main__":
    main()
