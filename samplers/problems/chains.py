"""Chains: domino (words that begin as the one before ends) and hmm (a hidden Markov model)."""

from __future__ import annotations

import torch
from torch import Tensor

from ..checks import integer
from ..errors import OptionError, did_you_mean
from ..random import uniform
from .automaton import Automaton, Language
from .support import MASK

__all__ = ["ANIMALS", "Domino", "Hmm"]

# 89 words with 801 ordered pairs that fit, and 8 words after which none fits.
ANIMALS = tuple(
    """
    alligator ant armadillo auk avocet beetle bobcat cod crane deer dolphin dormouse eagle earwig echidna egret eider
    elephant elk elver ermine ewe gander gazelle grebe grouse guppy halibut harrier horse hoverfly kingfisher kudu lapwing
    lemming limpet linnet lobster locust louse lynx mule nandu nightingale numbat nuthatch nyala ocelot ostrich pig rabbit
    raccoon rat rattler raven reindeer roach roe rooster ruff sable salmon squirrel stoat sturgeon swallow swift tang tapir
    tarantula tarpon teal termite tern terrapin thrush tiger titmouse toad toucan trogon trout tuna turbot turkey turtle
    walrus wolf wombat
    """.split()  # noqa: SIM905
)
SEED = 2602_19619  # what hmm's numbers are drawn from


class Domino(Language):
    """Chains of words in which each begins with the letter that the one before it ends with, all equally likely. V = 89.

    The words are animals. Of the 89 * 89 pairs 801 fit, and after 8 words no other fits, so a chain that is filled from the
    left without looking ahead may get stuck; the exact posterior never does.

    Args:
        length: L, words, 2 to 64.
    """

    name = "domino"
    summary = "chains of 89 words, each beginning with the last letter of the one before"
    kind = "chain"

    def __init__(self, length: int = 8):
        length = integer(f"problem {self.name!r}: length", length, 2, 64)
        letters = sorted({letter for word in ANIMALS for letter in (word[0], word[-1])})
        arcs = [(letters.index(word[0]), v, letters.index(word[-1])) for v, word in enumerate(ANIMALS)]
        ones = [1.0] * len(letters)
        super().__init__(Automaton.of(arcs, ones, ones, len(ANIMALS)), length, "")

    def encode(self, text: str) -> Tensor:
        """Words to tokens, one each: (n,) int64; '·' is the mask.

        Raises:
            OptionError: a word that is none of the 89.
        """
        known = {word: v for v, word in enumerate((*ANIMALS, MASK))}
        if wrong := [word for word in text.split() if word not in known]:
            raise OptionError(
                f"problem {self.name!r}: {wrong[0]!r} is none of its 89 words{did_you_mean(wrong[0], ANIMALS)}"
            )
        return torch.tensor([known[word] for word in text.split()], dtype=torch.int64, device="cpu")

    def render(self, x_row: Tensor) -> str:
        """The words, '·' at masks."""
        return " ".join(ANIMALS[v] if 0 <= v < len(ANIMALS) else MASK for v in x_row.detach().cpu().tolist())


class Hmm(Language):
    """A hidden Markov model with random, fixed parameters: the oracle of arXiv 2602.19619, whose posteriors
    stand in for a network.

    The hidden state moves with T, from its stationary distribution on, and each state emits a token with E. Rows of T and E are
    normalised powers of exponential draws, made by counter and so the same on every machine. Every row is possible: what parallel
    decoding costs shows in `mmd`, and in `nll`, which alone would call text that is too likely good.

    Args:
        length: L, 2 to 256.
        states: hidden states, 2 to 16.
        symbols: V, 2 to 26.
        peak: the power; the larger, the surer T and E are.
    """

    name = "hmm"
    summary = "a hidden Markov model with exact posteriors: errors of parallel decoding without a rule to break"
    kind = "chain"

    def __init__(self, length: int = 24, states: int = 4, symbols: int = 6, peak: float = 4.0):
        who = f"problem {self.name!r}"
        length = integer(f"{who}: length", length, 2, 256)
        states, symbols = integer(f"{who}: states", states, 2, 16), integer(f"{who}: symbols", symbols, 2, 26)
        if isinstance(peak, bool) or not isinstance(peak, (int, float)) or not 0 <= peak <= 20:
            raise OptionError(f"{who}: peak must be a number from 0 to 20, not {peak!r}")
        self.moves, self.emits = _rows(states, states, 0, peak), _rows(states, symbols, 1, peak)
        power = self.moves
        for _ in range(64):  # T^(2^64), whose rows are all the stationary distribution
            power = power @ power
            power = power / power.sum(1, keepdim=True)
        weight = self.emits[:, :, None] * self.moves[:, None]  # (S, V, S): state, token, next state
        source, token, target = (i.flatten() for i in torch.meshgrid(
            *(torch.arange(m, device="cpu") for m in weight.shape), indexing="ij"))  # fmt: skip
        ones = torch.ones(states, dtype=torch.float64, device="cpu")
        automaton = Automaton(source, token, target, weight.flatten(), power[0], ones, symbols)
        super().__init__(automaton, length, "abcdefghijklmnopqrstuvwxyz"[:symbols], single=False)


def _rows(rows: int, columns: int, draw: int, peak: float) -> Tensor:
    """(rows, columns) float64, positive, each row a distribution."""
    row, column = torch.arange(rows, device="cpu")[:, None], torch.arange(columns, device="cpu")[None]
    weight = (-torch.log1p(-uniform(SEED, row, column, 0, draw))).clamp_min(1e-3) ** peak
    return weight / weight.sum(1, keepdim=True)
