"""A constraint: a function that is called before every step and fixes or forbids tokens.

Here a text must end with a full stop, may hold no digits and no line breaks, and may not repeat a word at once.
"""

import torch

import samplers
from samplers.authoring import TokenState

model = samplers.models.zoo.load("text-mdm")
words = [model.decode(torch.tensor([i])) for i in range(model.vocab_size)]
full_stop = int(model.encode(".")[-1])
unwanted = torch.tensor([any(c.isdigit() or c in '\n"/' for c in word) for word in words])  # (V,)
unwanted[model.eos_id] = True


def one_sentence(state: TokenState) -> samplers.Constraint:
    """state.x is (B, L) with masks; return what to fix (-1: nothing) and what not to draw in this step."""
    length = state.x.shape[1]
    fix = torch.full_like(state.x, -1)  # (B, L)
    fix[:, -1] = full_stop
    forbid = unwanted.expand(len(state.x), length, -1).clone()  # (B, L, V)
    for shift in (1, -1):  # the token to the left, and the token to the right
        neighbour = state.x.roll(shift, 1)
        neighbour = torch.where(neighbour == model.mask_id, model.eos_id, neighbour)  # a mask: nothing new to forbid
        forbid.scatter_(2, neighbour[..., None], True)
    return samplers.Constraint(fix=fix, forbid=forbid)


def main() -> None:
    prompt = model.encode("Return the ")
    for label, constrain in (("free", None), ("constrained", one_sentence)):
        out = samplers.sample(
            model, "random_order", prompt=prompt, gen_length=20, batch=4, temperature=0.7, constrain=constrain
        )
        print(f"{label}:")
        for row in out.x:
            print("  " + model.decode(row).replace("\n", "\\n"))
    made = out.x[:, len(prompt) :]
    assert (made[:, -1] == full_stop).all()
    assert not unwanted[made[:, :-1]].any()


if __name__ == "__main__":
    main()
