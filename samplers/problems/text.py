"""text: an n-gram Markov chain over characters, fitted to a text file; posteriors by forward-backward."""

from __future__ import annotations

import functools
import math
import re
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import OptionError
from .base import (
    Z95,
    Estimate,
    ExactTokens,
    Problem,
    Score,
    check_tokens,
    entropy_of_tokens,
    mean_estimate,
    per_position,
    truth_uniforms,
)

__all__ = ["ALPHABET", "ChainTokens", "Text", "fit_chain", "normalise"]

ALPHABET = " abcdefghijklmnopqrstuvwxyz.,'()"
MASK = "·"


def normalise(text: str, alphabet: str = ALPHABET) -> str:
    """Lower case, curly apostrophes straight, every run of other characters or blanks one blank."""
    text = text.lower().replace("’", "'")
    return re.sub(f"[^{re.escape(alphabet.replace(' ', ''))}]+", " ", text).strip()


@functools.lru_cache(maxsize=1)
def _default_corpus() -> str:
    try:
        from pydoc_data.topics import topics
    except ImportError:
        raise OptionError("problem 'text': this Python has no pydoc_data to read; give a text file as path=") from None
    return "\n".join(topics[key] for key in sorted(topics))


def fit_chain(codes: np.ndarray, vocab: int, order: int, smoothing: float) -> list[Tensor]:
    """The chain's tables [p(c), p(c|b), ..., p(c|...)] of 1 to `order` characters; the k-th is (V,) * k float64.

    Each is additively smoothed with `smoothing` V pseudo-counts shared out as the next shorter context does, the
    shortest
    uniformly: an unseen context is as its shorter one, and every string has a positive probability.
    """
    tables: list[Tensor] = []
    lower = np.full(vocab, 1 / vocab)
    for k in range(1, order + 1):
        number = np.zeros(len(codes) - k + 1, dtype=np.int64)
        for i in range(k):
            number = number * vocab + codes[i : len(codes) - k + 1 + i]
        counts = np.bincount(number, minlength=vocab**k).reshape((vocab,) * k).astype(np.float64)
        extra = smoothing * vocab
        table = (counts + extra * lower) / (counts.sum(-1, keepdims=True) + extra)  # lower broadcasts over the oldest
        tables.append(torch.from_numpy(table / table.sum(-1, keepdims=True)))
        lower = table
    return tables


class ChainTokens(ExactTokens):
    """Posteriors of a Markov chain of `order` n (a state is the last n - 1 tokens), by forward-backward.

    With e_k(c) = p(x_k | c), which is 1 at a mask, [c = x_k] at a visible token and (1 - t) [c = x_k] + t/V under uniform
    noise of level t there, p(x_0,k = c | x) is proportional to the sum over states that end in c of forward x backward.
    Both are float64 and rescaled by their largest entry, so nothing underflows. The work is L V^n per row.

    BLAS adds in an order that depends on shapes, so rows are always computed in blocks of one size, filled up if need
    be: a row's answer is then the same in every batch.

    Args:
        tables: the conditionals of 1, 2, ..., n tokens, the k-th of shape (V,) * k, positive, as `fit_chain` makes
            them.
        length: L, at least n - 1.
        family: masked or uniform.
    """

    def __init__(
        self,
        tables: list[Tensor],
        length: int,
        family: str,
        *,
        device: torch.device | str = "cpu",
        name: str = "chain",
    ):
        self.tokens, self.order, self.length = len(tables[0]), len(tables), length
        self._noised(family)
        self.device, self.name = torch.device(device), name
        v, n = self.tokens, self.order
        self.middle = v ** (n - 2)  # M: the tokens of a state but its oldest, as one number
        step = tables[-1].to(self.device).reshape(v, self.middle, v)  # (A, M, D): oldest, middle, next
        self.forward_step = step.permute(1, 2, 0).contiguous()  # (M, D, A)
        self.backward_step = step.transpose(0, 1).contiguous()  # (M, A, D)
        start = tables[0]
        for table in tables[1:-1]:
            start = start[..., None] * table
        self.start = start.to(self.device)  # (V,) * (n - 1), the distribution of the first state
        self.block = 32 if n < 4 else 8  # rows; (L, V^(n-1), block) float64 are kept

    def posterior(self, x: Tensor, t: Tensor | None = None, positions: Tensor | None = None) -> Tensor:
        wanted = list(range(self.length)) if positions is None else positions.tolist()
        if t is None:
            # A mask is one more token, whose row is all ones.
            likelihood = torch.cat(
                [
                    torch.eye(self.tokens, dtype=torch.float64, device=x.device),
                    torch.ones(1, self.tokens, dtype=torch.float64, device=x.device),
                ]
            )
            emission = likelihood[x]  # (B, L, V)
        else:
            level = per_position(t, x)[..., None]
            emission = (1 - level) * F.one_hot(x, self.tokens) + level / self.tokens  # (B, L, V) float64
        return self._posterior_of(emission, wanted)

    def _posterior_given(self, evidence: Tensor) -> Tensor:
        return self._posterior_of(evidence.exp(), list(range(self.length)))

    def _posterior_of(self, emission: Tensor, wanted: list[int]) -> Tensor:
        """From e_k(c), (B, L, V) float64, to the posterior at the positions that are wanted, (B, P, V)."""
        parts = []
        for part in emission.split(self.block):
            filled = F.pad(part, (0, 0, 0, 0, 0, self.block - len(part)), value=1.0)  # (R, L, V)
            parts.append(self._block_posterior(filled, wanted)[: len(part)])
        if not parts:
            return torch.empty(0, len(wanted), self.tokens, dtype=torch.float64, device=emission.device)
        return torch.cat(parts)  # (B, P, V)

    def _block_posterior(self, emission: Tensor, wanted: list[int]) -> Tensor:
        """(R, L, V) -> (R, P, V). A message is (M, A, R): middle of the state, oldest token of the state, row."""
        first = self.order - 2  # the position at which the first state ends
        emission = emission.permute(1, 2, 0).contiguous()  # (L, V, R)
        forward = [self._first_message(emission)]
        for k in range(first + 1, self.length):
            moved = torch.bmm(self.forward_step, forward[-1]) * emission[k]  # (M, D, R)
            forward.append(self._rescaled(self._shifted(moved), k))

        out = torch.empty(len(wanted), self.tokens, self.block, dtype=torch.float64, device=emission.device)
        place = {k: i for i, k in enumerate(wanted)}
        backward = torch.ones_like(forward[0])  # (M, A, R)
        for k in range(self.length - 1, first - 1, -1):
            if k < self.length - 1:
                moved = self._unshifted(backward) * emission[k + 1]  # (M, D, R)
                backward = self._rescaled(torch.bmm(self.backward_step, moved), k)  # (M, A, R)
            # The last state of the loop, the first of the chain, also tells of the positions before its end.
            here = [i for i in (range(first + 1) if k == first else (k,)) if i in place]
            if here:
                both = forward[k - first] * backward
                for i in here:
                    p = self._marginal(both, self.order - 2 - (k - i))  # (V, R)
                    out[place[i]] = p / p.sum(0)
        return out.permute(2, 0, 1).contiguous()  # (R, P, V)

    def _first_message(self, emission: Tensor) -> Tensor:
        """start(c_1 ... c_{n-1}) prod_k e_k(c_k), as a message (M, A, R)."""
        v, n = self.tokens, self.order
        message = self.start[..., None].expand(*self.start.shape, self.block)  # (V, ..., V, R)
        for axis in range(n - 1):
            shape = [1] * (n - 1) + [self.block]
            shape[axis] = v
            message = message * emission[axis].reshape(shape)
        return message.reshape(v, self.middle, self.block).transpose(0, 1).contiguous()

    def _shifted(self, moved: Tensor) -> Tensor:
        """(M, D, R) by the old state's middle and the next token -> the next state's message (M, A, R), a view."""
        if self.order == 2:
            return moved
        v = self.tokens
        # middle = (b, rest); the next state is (b, rest, d), its middle (rest, d).
        split = moved.unflatten(0, (v, self.middle // v))  # (b, rest, d, R)
        return split.permute(1, 2, 0, 3).flatten(0, 1)

    def _unshifted(self, message: Tensor) -> Tensor:
        """Undoes `_shifted`: the next state's message (M, A, R) -> (M, D, R) by this state's middle."""
        if self.order == 2:
            return message
        v = self.tokens
        split = message.unflatten(0, (self.middle // v, v))  # (rest, d, b, R)
        return split.permute(2, 0, 1, 3).flatten(0, 1)

    def _rescaled(self, message: Tensor, k: int) -> Tensor:
        # Four steps cannot underflow float64; the maximum is exact, so this costs no reproducibility.
        return message / message.amax((0, 1), keepdim=True) if k % 4 == 0 else message

    def _marginal(self, both: Tensor, axis: int) -> Tensor:
        """(M, A, R) -> (V, R): the distribution of token `axis` of the state (0 the oldest), not normalised."""
        if axis == 0:
            return both.sum(0)
        v = self.tokens
        return both.reshape(v ** (axis - 1), v, -1, v, self.block).sum((0, 2, 3))


class Text(Problem):
    """Strings of a character n-gram chain. V = 32 characters (a blank, a to z and .,'()), the mask is 32.

    Args:
        path: the text file to fit, read as UTF-8; by default the texts of Python's own `help()` topics, which differ a
            little between Python versions.
        order: 2, 3 or 4: a character depends on the order - 1 before it.
        length: L, the length of a string.
        smoothing: pseudo-counts per character (see `fit_chain`).
        alphabet: the characters, a blank among them; all others become blanks.

    Scores: `bigram_tv` (total variation between the frequencies of pairs of neighbours and the chain's exact ones; its
    floor is from exact samples of the same n), `nll` (nats per character; truth is the chain's entropy, exact; lower than
    the truth is too likely a text), `entropy` of the characters' frequencies. Plots use `bigram_tv`.
    """

    name = "text"
    families = ("masked", "uniform")
    summary = "a character n-gram chain fitted to a text, with exact posteriors and likelihoods"
    primary = {"masked": "bigram_tv", "uniform": "bigram_tv"}
    kind = "chain"

    def __init__(
        self,
        path: str | Path | None = None,
        order: int = 3,
        length: int = 64,
        smoothing: float = 0.05,
        alphabet: str = ALPHABET,
    ):
        if order not in (2, 3, 4):
            raise OptionError(f"problem 'text': order must be 2, 3 or 4, not {order!r}")
        if not isinstance(length, int) or length < order:
            raise OptionError(f"problem 'text': length must be an integer of at least order = {order}, not {length!r}")
        if not 0 < smoothing < math.inf:
            raise OptionError(f"problem 'text': smoothing must be positive, not {smoothing!r}")
        if " " not in alphabet or len(set(alphabet)) < len(alphabet) or MASK in alphabet or len(alphabet) < 2:
            raise OptionError(
                "problem 'text': alphabet must hold a blank and another character, none twice, and no '·'"
            )
        try:
            corpus = _default_corpus() if path is None else Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError as e:
            raise OptionError(f"problem 'text': cannot read path {str(path)!r}: {e.strerror}") from None
        self.order, self.length, self.alphabet = order, length, alphabet
        self._code = {c: i for i, c in enumerate(alphabet)}
        codes = self.encode(normalise(corpus, alphabet)).numpy()
        if len(codes) < order:
            raise OptionError(
                f"problem 'text': {path} holds {len(codes)} usable characters; {order} are needed at least"
            )
        self.tables = fit_chain(codes, len(alphabet), order, smoothing)
        self._floors: dict[int, float] = {}

    @property
    def tokens(self) -> int:
        """V, the number of characters."""
        return len(self.alphabet)

    def _masked(self, device: torch.device | str = "cpu") -> ChainTokens:
        return ChainTokens(self.tables, self._length, "masked", device=device, name="text/masked")

    def _uniform(self, device: torch.device | str = "cpu") -> ChainTokens:
        return ChainTokens(self.tables, self._length, "uniform", device=device, name="text/uniform")

    @property
    def _length(self) -> int:
        assert self.length is not None
        return self.length

    def encode(self, text: str) -> Tensor:
        """Characters to tokens, one each: (len(text),) int64. Unknown ones are blanks, '·' is the mask."""
        codes = {**self._code, MASK: len(self.alphabet)}
        blank = self._code[" "]
        return torch.tensor([codes.get(c, blank) for c in text.lower()], dtype=torch.int64, device="cpu")

    def decode(self, x_row: Tensor) -> str:
        """Tokens (L,) to a string; '·' at masks."""
        return "".join(self.alphabet[v] if 0 <= v < len(self.alphabet) else MASK for v in x_row.tolist())

    render = decode

    # the distribution

    def log_prob(self, x: Tensor) -> Tensor:
        """log p(x) of whole strings, exact: (n, L) int64 -> (n,) float64, nats."""
        total = torch.zeros(len(x), dtype=torch.float64, device="cpu")
        for k in range(x.shape[1]):
            context = min(k, self.order - 1)
            total += self.tables[context][tuple(x[:, k - context : k + 1].t())].log()
        return total

    @functools.cached_property
    def _exact(self) -> tuple[float, Tensor, Tensor]:
        """Exact, over all positions: entropy per character, mean distribution of a character (V,) and of neighbours (V, V)."""
        v, length = self.tokens, self._length
        entropy = 0.0
        single = torch.zeros(v, dtype=torch.float64, device="cpu")
        pairs = torch.zeros(v, v, dtype=torch.float64, device="cpu")
        # The distribution of the last characters, at most order - 1 of them.
        state = torch.ones((), dtype=torch.float64, device="cpu")
        for k in range(length):
            table = self.tables[min(k, self.order - 1)]
            entropy -= float((state * (table * table.log()).sum(-1)).sum())
            joint = state[..., None] * table  # (V,) * min(k + 1, order)
            single += joint.reshape(-1, v).sum(0)
            if k:
                pairs += joint.reshape(-1, v, v).sum(0)
            state = joint.sum(0) if joint.dim() == self.order else joint
        return entropy / length, single / length, pairs / (length - 1)

    def _sample_truth(self, n: int, seed: int, family: str) -> Tensor:
        u = truth_uniforms(n, seed, self._length)  # (n, L)
        x = torch.empty(n, self._length, dtype=torch.int64, device="cpu")
        cdfs = [table.cumsum(-1) for table in self.tables]
        for k in range(self._length):
            context = min(k, self.order - 1)
            cdf = cdfs[context][tuple(x[:, k - context : k].t())] if context else cdfs[0].expand(n, -1)  # (n, V)
            draw = torch.searchsorted(cdf.contiguous(), u[:, k : k + 1].contiguous(), right=True).squeeze(1)
            x[:, k] = draw.clamp_max(self.tokens - 1)
        return x

    # scores

    def _score(self, x: Tensor, family: str) -> Score:
        check_tokens(x, self._length, self.tokens, None, "text score")
        entropy, single, _ = self._exact
        estimates = {
            "bigram_tv": self._bigram_tv(x, with_floor=True),
            "nll": mean_estimate(-self.log_prob(x) / self._length, truth=entropy),
            "entropy": entropy_of_tokens(x, self.tokens, float(-(single * single.log()).sum())),
        }
        return Score(estimates, problem=self.name, family=family, primary=self.primary[family])

    def _bigram_tv(self, x: Tensor, with_floor: bool) -> Estimate:
        """Total variation of neighbours' frequencies; delta-method interval over rows, too wide near the floor."""
        exact = self._exact[2].flatten()  # (V V,)
        pair = x[:, :-1] * self.tokens + x[:, 1:]  # (n, L - 1)
        freq = torch.bincount(pair.flatten(), minlength=len(exact)).to(torch.float64) / pair.numel()  # (V V,)
        value = float((freq.to(torch.float64) - exact).abs().sum()) / 2
        sign = torch.sign(freq.to(torch.float64) - exact)
        per_row = sign[pair].mean(1) / 2  # (n,)
        half = Z95 * float(per_row.std()) / math.sqrt(len(x)) if len(x) > 1 else math.inf
        floor = self._floor(len(x)) if with_floor else None
        return Estimate(value, max(0.0, value - half), min(1.0, value + half), len(x), "lower", floor)

    def _floor(self, n: int) -> float:
        """What n exact samples score, by simulation: pairs in a row depend on each other, so there is no formula."""
        if n not in self._floors:
            times = max(2, min(8, 16000 // n))
            # Seeds of their own: a user's exact samples of a small seed are not compared with themselves.
            rounds = [self._sample_truth(n, (1 << 40) + i, "masked") for i in range(times)]
            self._floors[n] = sum(self._bigram_tv(x, with_floor=False).value for x in rounds) / times
        return self._floors[n]
