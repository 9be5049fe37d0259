"""The exact law of a sampler on a joint so small that all of it can be written down: float64, and none of the samplers' code."""

import itertools
import math

import numpy as np
import torch

import samplers
from samplers.testing.fit import BOUND, fits
from samplers.testing.tiny import TinyJoint


def mild(length, vocab, spread, seed=1):
    """A TinyJoint whose cells differ by a factor of e^(2 spread) at most: no reveal changes a probability by more."""
    problem = TinyJoint(length, vocab)
    u = torch.rand(len(problem.law), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    weight = torch.exp(spread * (2 * u - 1))
    problem.law = weight / weight.sum()
    return problem


class LeaveOneOut(TinyJoint):
    """Says of a visible token what it would say if that one were masked: a model that has an opinion of what it sees."""

    def predict(self, x, t=None, *, rows=None, cache=None):
        out = torch.zeros(*x.shape, self.vocab_size)
        for i in range(x.shape[1]):
            hidden = x.clone()
            hidden[:, i] = self.mask_id
            out[:, i] = super().predict(hidden, t)[:, i]
        return out if rows is None else out[rows]


class Chain:
    """Laws over the states of a canvas, (V + 1)^L tuples; the mask is V."""

    def __init__(self, problem):
        self.length, self.mask = problem.length, problem.mask_id
        self.strings = [tuple(s) for s in problem.strings.tolist()]
        self.law = problem.law.numpy()
        self.leave_one_out = isinstance(problem, LeaveOneOut)
        self.inside = range(self.length)  # the positions of the present block; no others appear
        self._kept = {}

    def start(self):
        return (self.mask,) * self.length

    def p(self, x):
        """(L, V): what the model says of x."""
        if x not in self._kept:
            self._kept[x] = self._conditional(x)
            if self.leave_one_out:
                for i in range(self.length):
                    self._kept[x][i] = self._conditional((*x[:i], self.mask, *x[i + 1 :]))[i]
        return self._kept[x]

    def _conditional(self, x):
        out = np.zeros((self.length, self.mask))
        for string, weight in zip(self.strings, self.law):
            if all(a in (b, self.mask) for a, b in zip(x, string)):
                out[range(self.length), string] += weight
        return out / out.sum(1, keepdims=True)

    def moves(self, options):
        """Independent choices at the positions, each a dictionary token -> probability: the law of the row."""
        out = {}
        for choice in itertools.product(*(o.items() for o in options)):
            weight = math.prod(w for _, w in choice)
            if weight > 0:
                state = tuple(v for v, _ in choice)
                out[state] = out.get(state, 0.0) + weight
        return out

    def leap(self, x, chance, dist):
        """Masked positions appear, each with its `chance` (one or L), with tokens from its row of `dist`."""
        chance = np.broadcast_to(chance, self.length)
        return self.moves(
            {v: 1.0}
            if v != self.mask or i not in self.inside
            else {self.mask: 1 - chance[i], **{w: chance[i] * dist[i][w] for w in range(self.mask)}}
            for i, v in enumerate(x)
        )

    def run(self, step, steps, start=None):
        """The law after steps k = 0 ... steps - 1 of step(state, k) -> law of the next state; (S,) over the strings."""
        law = {self.start() if start is None else start: 1.0}
        for k in range(steps):
            after = {}
            for state, weight in law.items():
                for new, chance in step(state, k).items():
                    after[new] = after.get(new, 0.0) + weight * chance
            law = after
        final = {}
        for state, weight in law.items():
            x = state if isinstance(state[0], int) else state[0]  # a state may carry more behind its tokens
            final[x] = final.get(x, 0.0) + weight
        assert abs(sum(final.get(s, 0.0) for s in self.strings) - 1) < 1e-12, "the law has a mask left, or mass lost"
        return np.array([final.get(s, 0.0) for s in self.strings])

    def tv(self, law):
        return 0.5 * float(np.abs(law - self.law).sum())


def slopes(errors):
    """Orders between neighbours of errors whose steps double."""
    return [math.log2(a / b) for a, b in zip(errors, errors[1:])]


def sampled_like(problem, sampler, law, rows=20_000, **run):
    """Whether `rows` samples follow `law`, by the kit's chi-square test and bound."""
    x = samplers.sample(problem, sampler, batch=rows, seed=1, temperature=1.0, **run).x
    return fits(torch.bincount(problem.index(x), minlength=len(law)), law) > BOUND


def rows_are_what_they_are_alone(denoiser, name, **setting):
    """What the kit asks of a sampler's defaults: prompts untouched, no mask left, tokens and forwards of a row those of
    the row alone."""
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], []]
    run = {"gen_length": 12, "seed": 3, "temperature": 1.0, **setting}
    together = samplers.sample(denoiser, name, prompt=prompts, **run)
    for i, prompt in enumerate(prompts):
        row = together.x[i, : len(prompt) + 12].tolist()
        assert row[: len(prompt)] == prompt and denoiser.mask_id not in row
        alone = samplers.sample(denoiser, name, prompt=[prompt], first_row=i, **run)
        assert row == alone.x[0].tolist() and int(together.nfe_rows[i]) == alone.nfe
