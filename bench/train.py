"""The zoo's models, made: `python bench/train.py NAME` writes samplers/models/zoo/NAME/.

    python bench/train.py text-mdm          masked, full attention, time-free (RADD's lambda-DCE), after a causal start
    python bench/train.py text-refusion     causal, clean slots shuffled before masked ones (ReFusion)
    python bench/train.py digits-mdm        the digits' grey levels, masked
    python bench/train.py digits-gauss      the digits as reals, Gaussian noise

A run is its seed and its number of steps: step k draws its batch from a generator seeded by (seed, k), so a run that was
stopped (--minutes, Ctrl-C) and goes on from its checkpoint ends where an unbroken one does, to the bit on one machine with
as many threads. The seconds in training.json are by the clock, on a machine with other work. One thread unless --threads
says more; the text-mdm in the box had one for 8,000 steps and two from there. bfloat16 products (autocast) are twice as
fast as float32 on a CPU that has them.

The text is what Python itself carries: pydoc_data.topics and the docstrings of the standard library, as they are in the
Python that runs this (training.json says which, and the text's SHA-256). Whole documents are held out: those whose name
has a CRC-32 that twelve divides. Paragraphs of 40 characters and more that occur twice are kept once, in the held-out
part if they are there, so nothing held out was seen in training.
"""

import argparse
import ast
import dataclasses
import hashlib
import json
import math
import platform
import re
import sys
import sysconfig
import time
import warnings
import zlib
from collections import Counter
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from rich.console import Console

from samplers.bench.machine import machine
from samplers.models.load import save, write_safetensors
from samplers.models.mlp import MLP
from samplers.models.tokenizer import Tokenizer
from samplers.models.transformer import Config, Transformer
from samplers.models.zoo import DigitsDenoiser
from samplers.problems.digits import GREYS, Digits, KernelTokens, digit_images, grey_kernel
from samplers.schedule import noise_schedule

ZOO = Path(__file__).parents[1] / "samplers" / "models" / "zoo"
VOCAB = 1024
WINDOW = 160  # tokens of text a row
SLOTS = (4, 8, 16)

# ---------------------------------------------------------------------------------------------- text


def documents():
    """→ {name: text}, of this Python."""
    from pydoc_data.topics import topics

    found = {f"topic {name}": text for name, text in topics.items()}
    library = Path(sysconfig.get_path("stdlib"))
    skip = {"site-packages", "dist-packages", "test", "tests", "idle_test", "_bundled", "pydoc_data", "__pycache__"}
    with_docs = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    for path in sorted(library.rglob("*.py")):
        name = path.relative_to(library)
        if skip & set(name.parts):
            continue
        try:
            tree = ast.parse(path.read_text("utf8"))
        except (SyntaxError, ValueError):  # a file that is there to be broken
            continue
        docs = [ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, with_docs)]
        found[f"module {name.as_posix()}"] = "\n\n".join(doc for doc in docs if doc)
    return found


def text():
    """→ (texts to train on, texts held out): a paragraph a line, no paragraph of 40 characters or more twice."""
    found = {name: Tokenizer.clean(doc) for name, doc in documents().items()}
    held = {name for name in found if zlib.crc32(name.encode()) % 12 == 0}
    seen, parts = set(), ([], [])
    for name in sorted(found, key=lambda name: (name not in held, name)):
        paragraphs = []
        for paragraph in re.split(r"\n\s*\n", found[name]):
            line = " ".join(paragraph.split())
            if len(line) >= 40 and line in seen:
                continue
            seen.add(line)
            paragraphs.append(line)
        whole = "\n".join(filter(None, paragraphs))
        if len(whole) >= 200:
            parts[name in held].append(whole)
    return parts


def digest(train, held):
    return hashlib.sha256("\0".join([*train, "", *held]).encode()).hexdigest()


class Ngram:
    """Interpolated Kneser-Ney of order n (Chen and Goodman 1999, eq. 18, one discount an order) over ids below V."""

    def __init__(self, ids, n, vocab):
        self.n, self.vocab = n, vocab
        counts = [Counter(zip(*(ids[i:] for i in range(n))))]
        for _ in range(n - 1):
            counts.insert(0, Counter(gram[1:] for gram in counts[0]))
        self.orders = []
        for count in counts:
            total, kinds, often = Counter(), Counter(), Counter(count.values())
            for gram, c in count.items():
                total[gram[:-1]] += c
                kinds[gram[:-1]] += 1
            discount = often[1] / (often[1] + 2 * often[2]) if often[1] else 0.5
            self.orders.append((count, total, kinds, discount))

    def nll(self, ids):
        """Nats of every one of `ids`, given those before it: (n,) float64."""
        out = np.empty(len(ids))
        for i in range(len(ids)):
            p = 1 / self.vocab
            for k, (count, total, kinds, discount) in enumerate(self.orders):
                gram = tuple(ids[max(0, i - k) : i + 1])
                if len(gram) <= k or gram[:-1] not in total:
                    break
                before = gram[:-1]
                p = (max(count.get(gram, 0) - discount, 0) + discount * kinds[before] * p) / total[before]
            out[i] = -math.log(p)
        return out


class Text:
    """What the two text models share: the ids, the batches, the n-grams beside them."""

    def __init__(self, tokenizer=None):
        self.train, self.held = text()
        self.tokenizer = tokenizer or Tokenizer.train("\n".join(self.train), VOCAB)
        self.ids, self.held_ids = (self._encoded(part) for part in (self.train, self.held))
        self.characters = sum(len(doc) + 1 for doc in self.held)  # the end of a text is one

    def _encoded(self, docs):
        eos = torch.tensor([self.tokenizer.eos_id])
        return torch.cat([x for doc in docs for x in (self.tokenizer.encode(doc), eos)])  # (n,) int64

    def windows(self, g, batch, ids=None):
        """`batch` windows from anywhere: (batch, WINDOW) int64."""
        start = torch.randint(len(self.ids) - WINDOW + 1, (batch, 1), generator=g)
        return self.ids[start + torch.arange(WINDOW)]

    def held_windows(self):
        """(n, WINDOW) int64: all of the held-out ids but a rest."""
        n = len(self.held_ids) // WINDOW
        return self.held_ids[: n * WINDOW].view(n, WINDOW)

    def lengths(self, windows):
        """Characters of each window: (n,) float64."""
        sizes = torch.tensor([len(t) for t in self.tokenizer.texts] + [1], dtype=torch.float64)
        return sizes[windows].sum(1)

    def facts(self):
        ngrams = {}
        chars = ["\0".join(part) + "\0" for part in (self.train, self.held)]
        tokens = [part.tolist() for part in (self.ids, self.held_ids)]
        for n in (3, 5):
            for unit, (train, held), vocab in (("character", chars, 97), ("token", tokens, VOCAB)):
                ngrams[f"{unit} {n}-gram"] = round(float(Ngram(train, n, vocab).nll(held).sum()) / self.characters, 4)
        return {
            "text": f"pydoc_data.topics and docstrings of Python {platform.python_version()}",
            "text_sha256": digest(self.train, self.held),
            "documents": {"train": len(self.train), "held_out": len(self.held)},
            "characters": {"train": sum(map(len, self.train)), "held_out": sum(map(len, self.held))},
            "tokens": {"train": len(self.ids), "held_out": len(self.held_ids)},
            "ngrams_nll_per_character": ngrams,
        }


def per_character(nll, characters):
    """Nats of windows (n,) → their sum over the sum of characters, and its standard error (of a ratio)."""
    nll, characters = nll.double(), characters.double()
    ratio = float(nll.sum() / characters.sum())
    rest = nll - ratio * characters
    error = float(rest.std() * math.sqrt(len(nll)) / characters.sum())
    return {"nll_per_character": round(ratio, 4), "standard_error": round(error, 4)}


# ---------------------------------------------------------------------------------------------- models


def lambda_dce(net, x, mask_id, g):
    """RADD's denoising cross-entropy (Ou et al. 2406.03736, eq. 3.8): lambda ~ U(0, 1), each token masked with chance
    lambda, the sum of their -log p / lambda. One uniform is shared by the batch, one stratum per row. → nats per position."""
    batch = len(x)
    lam = (torch.rand((), generator=g) + torch.arange(batch)) / batch % 1.0
    lam = lam.clamp_min(1e-3)[:, None]  # (B, 1)
    masked = torch.rand(x.shape, generator=g) < lam  # (B, L) bool
    hidden = net(torch.where(masked, mask_id, x), rows=masked)  # (N, D)
    loss = F.cross_entropy(net.head.logits(hidden).float(), x[masked], reduction="none")
    return (loss / lam.expand_as(x)[masked]).sum() / x.numel()


@torch.no_grad()
def masked_bound(net, x, mask_id, draws=8, seed=1):
    """The same bound on -log p, for each row of x (n, L): (n,) nats. In its other form, k of L positions masked and L / k
    times their -log p, k uniform (stratified over `draws`), which has the same mean and less noise."""
    g = torch.Generator().manual_seed(seed)
    rows, length = x.shape
    total = torch.zeros(rows, dtype=torch.float64)
    for part, out in zip(x.split(32), total.split(32)):
        for i in range(draws):
            u = (i + torch.rand(len(part), generator=g)) / draws
            k = (u * length).long().clamp_max(length - 1) + 1  # (b,)
            rank = torch.rand(part.shape, generator=g).argsort(1).argsort(1)
            masked = rank < k[:, None]
            hidden = net(torch.where(masked, mask_id, part), rows=masked)
            loss = torch.zeros(part.shape, dtype=torch.float64)
            loss[masked] = F.cross_entropy(net.head.logits(hidden).float(), part[masked], reduction="none").double()
            out += loss.sum(1) * length / k / draws
    return total


def save_transformer(net, folder, **facts):
    """What is measured afterwards is what is saved: weights rounded to bfloat16."""
    save(net.bfloat16(), folder, **facts)
    net.float()


class TextMasked:
    name = "text-mdm"
    steps, batch, rate = 18_000, 8, 3e-3
    attention, causal_steps = "full", 4000

    def __init__(self):
        self.text = Text()
        self.mask_id = self.text.tokenizer.mask_id
        self.config = Config(
            VOCAB,
            width=256,
            layers=4,
            heads=4,
            mlp_width=704,
            attention=self.attention,
            embeddings=VOCAB + 1,
            qk_norm=True,
            rope_theta=1000.0,
            max_length=WINDOW,
        )

    def network(self, seed):
        return Transformer(self.config, seed=seed)

    def loss(self, net, g, step):
        """RADD's; but the first steps are text-refusion's own, causal: what words are is learned many times faster where
        the neighbours are seen (from causal to full attention: Gong et al. 2410.17891)."""
        causal = step < self.causal_steps
        net.config = dataclasses.replace(self.config, attention="causal" if causal else "full")
        if causal:
            return refusion_loss(net, self.text.windows(g, self.batch), self.mask_id, g)
        return lambda_dce(net, self.text.windows(g, self.batch), self.mask_id, g)

    def check(self, net, part=None):
        windows = self.text.held_windows()[:part]
        nll = masked_bound(net, windows, self.mask_id, draws=8 if part is None else 2)
        return per_character(nll, self.text.lengths(windows))

    def save(self, net, folder):
        save_transformer(net, folder, zoo="text", mask_id=self.mask_id, eos_id=self.text.tokenizer.eos_id)
        self.text.tokenizer.save(folder / "vocab.json")
        return {"held_out": self.check(net), **self.text.facts()}


@dataclasses.dataclass
class Slots:
    """Windows as ReFusion feeds them: a prompt, clean slots in random order, masked slots in theirs; rows in that order.

    Attributes:
        ids, positions: (B, WINDOW) int64; a row's rest, less than a slot, comes last, where causal attention hides it.
        target: (B, WINDOW) int64, -100 where there is none: at a mask its own token, at a clean one the next.
        weight: (B, WINDOW) float32, of the target's loss.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    target: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def of(cls, x, mask_id, g):
        batch, length = x.shape
        ids, positions = torch.empty_like(x), torch.empty_like(x)
        target, weight = torch.full_like(x, -100), torch.zeros(x.shape)
        noise = (torch.rand((), generator=g) + torch.arange(batch)) / batch % 1.0
        noise = noise[torch.randperm(batch, generator=g)]
        for b in range(batch):
            size = SLOTS[int(torch.randint(len(SLOTS), (), generator=g))]
            prompt = int(torch.randint(length // 2, (), generator=g))
            slots = (length - prompt) // size
            p_mask = (1 - 1e-3) * float(noise[b]) + 1e-3
            masked = torch.rand(slots, generator=g) < p_mask  # (slots,) bool
            clean = (~masked).nonzero().flatten()
            clean = clean[torch.randperm(len(clean), generator=g)]
            slot = torch.cat([clean, masked.nonzero().flatten()])  # (slots,) in the order in which they are fed
            place = (prompt + slot[:, None] * size + torch.arange(size)).flatten()
            end = prompt + slots * size
            order = torch.cat([torch.arange(prompt), place, torch.arange(end, length)])  # (L,)
            row = x[b, order]
            first = prompt + len(clean) * size  # where masks begin
            ids[b], positions[b] = row, order
            ids[b, first:end] = mask_id
            # Clean: the next token of the same slot (the prompt is one long slot), nothing at a slot's last.
            following = torch.cat([row[1:], row.new_full((1,), -100)])
            following[prompt + size - 1 : first : size] = -100
            if prompt:
                following[prompt - 1] = -100
            target[b, :first] = following[:first]
            target[b, first:end] = row[first:end]
            labels = max(1, int((target[b, :first] >= 0).sum()))
            weight[b, :first] = 1 / labels
            weight[b, first:end] = 1 / (p_mask * slots * size)
        return cls(ids, positions, target, weight / batch)


def refusion_loss(net, x, mask_id, g):
    """ReFusion's objective: the mean cross-entropy of the next token inside clean slots, and that of masked tokens over
    p_mask and the number of tokens to answer, a row each. x: (B, L) int64."""
    s = Slots.of(x, mask_id, g)
    rows = s.target >= 0
    hidden = net(s.ids, s.positions, rows=rows)  # (N, D)
    loss = F.cross_entropy(net.head.logits(hidden).float(), s.target[rows], reduction="none")
    return (loss * s.weight[rows]).sum()


class TextRefusion(TextMasked):
    name, attention, steps = "text-refusion", "causal", 8000

    def loss(self, net, g, step):
        return refusion_loss(net, self.text.windows(g, self.batch), self.mask_id, g)

    def check(self, net, part=None):
        windows = self.text.held_windows()[: part and part // 4]
        lengths = self.text.lengths(windows)
        sizes = SLOTS if part is None else (8,)
        found = {size: per_character(slot_nll(net, windows, self.mask_id, size), lengths) for size in sizes}
        return found[8] | {f"slots of {size}": f for size, f in found.items() if part is None}


@torch.no_grad()
def slot_nll(net, x, mask_id, size):
    """-log p of each row of x (n, L), exact, of slots decoded from left to right one token at a time: a slot's first
    token by a mask in its place after the finished slots, the others by the causal head. (n,) nats."""

    def cost(hidden, token):
        loss = F.cross_entropy(net.head.logits(hidden).float().flatten(0, 1), token.flatten(), reduction="none")
        return loss.double().view(token.shape).sum(1)

    parts = []
    for part in x.split(64):
        cache, nll = net.cache(*part.shape), torch.zeros(len(part), dtype=torch.float64)
        for at in range(0, x.shape[1], size):
            slot = part[:, at : at + size]
            mask = torch.full_like(slot[:, :1], mask_id)
            nll += cost(net(mask, cache=cache), slot[:, :1])
            nll += cost(net(slot, cache=cache, store="append")[:, :-1], slot[:, 1:])
        parts.append(nll)
    return torch.cat(parts)


def digits():
    """→ images to train on, images held out (every tenth): (n, 64) int64."""
    images = digit_images()
    held = torch.arange(len(images)) % 10 == 9
    return images[~held], images[held]


def save_mlp(net, folder, **facts):
    write_safetensors(dict(net.bfloat16().named_parameters()), folder / "model.safetensors")
    net.float()
    about = {"architectures": ["SamplersMLP"], "mlp": net.config, **facts}
    (folder / "config.json").write_text(json.dumps(about, indent=2) + "\n")


class Pixels:
    """An MLP of the digits as lambda_dce and masked_bound call a network: its hidden rows are its logits."""

    def __init__(self, net):
        self.denoiser, self.head = DigitsDenoiser(net), self

    def __call__(self, ids, rows):
        return self.denoiser.predict(ids, rows=rows)

    def logits(self, hidden):
        return hidden


class DigitsMasked:
    """Grey levels under the problem's own distribution: every pixel of an image moved by its kernel, anew in every step."""

    name, steps, batch, rate = "digits-mdm", 3500, 128, 2e-3
    autocast = False

    def __init__(self):
        self.images, self.held = digits()
        self.kernel = grey_kernel(0.5, 1e-3)

    def network(self, seed):
        return MLP(128, 256, 3, features=0, out=64 * GREYS, seed=seed)

    def drawn(self, images, g):
        """(n, 64) int64, the kernel's draw of each pixel."""
        return torch.multinomial(self.kernel[images.flatten()], 1, generator=g).view(images.shape)

    def loss(self, net, g, step):
        pick = torch.randint(len(self.images), (self.batch,), generator=g)
        return lambda_dce(Pixels(net), self.drawn(self.images[pick], g), GREYS, g)

    def check(self, net, part=None):
        x = self.drawn(self.held, torch.Generator().manual_seed(0))[:part]
        return a_pixel(masked_bound(Pixels(net), x, GREYS, draws=64 if part is None else 8))

    def save(self, net, folder):
        save_mlp(net, folder, zoo="digits", mask_id=GREYS)
        x = self.drawn(self.held, torch.Generator().manual_seed(0))
        share = F.one_hot(self.images, GREYS).double().mean(0) @ self.kernel  # (64, 17), each pixel's own
        alone = -share.log()[torch.arange(64), x].sum(1)
        law = -KernelTokens(self.images, self.kernel, "masked").log_prob(x)
        return {
            "held_out": self.check(net),
            "beside": {
                "pixels on their own": a_pixel(alone),
                "the exact distribution of the training images": a_pixel(law),
            },
            "images": {"train": len(self.images), "held_out": len(self.held)},
        }


def a_pixel(nll):
    """Nats of images (n,) → their mean over 64 and its standard error."""
    nll = nll.double() / 64
    error = float(nll.std()) / math.sqrt(len(nll))
    return {"nll_per_pixel": round(float(nll.mean()), 4), "standard_error": round(error, 4)}


class DigitsGauss:
    """The reals of the problem, x_0 = image + 0.08 noise, under vp_linear; the network says v = alpha e - sigma x_0, which
    is well scaled at both ends (Salimans and Ho 2202.00512)."""

    name, steps, batch, rate = "digits-gauss", 6000, 128, 2e-3
    autocast = False

    def __init__(self):
        self.images, self.held = (Digits.to_reals(part).flatten(1).float() for part in digits())
        self.schedule = noise_schedule("vp_linear")

    def network(self, seed):
        return MLP(64, 256, 3, seed=seed)

    def noisy(self, images, t, g):
        """→ x_0, the noise, x_t, alpha, sigma at t (n,) float64; all float32, (n, 64) and (n, 1)."""
        x0 = images + 0.08 * torch.randn(images.shape, generator=g)
        noise = torch.randn(images.shape, generator=g)
        alpha, sigma = (f(t).float()[:, None] for f in (self.schedule.alpha, self.schedule.sigma))
        return x0, noise, alpha * x0 + sigma * noise, alpha, sigma

    def loss(self, net, g, step):
        pick = torch.randint(len(self.images), (self.batch,), generator=g)
        t = (torch.rand((), generator=g) + torch.arange(self.batch)).double() / self.batch % 1.0
        t = t * (self.schedule.t_max - self.schedule.t_min) + self.schedule.t_min
        x0, noise, x, alpha, sigma = self.noisy(self.images[pick], t, g)
        return (net(x, self.schedule.lam(t).float()) - (alpha * noise - sigma * x0)).square().mean()

    @torch.no_grad()
    def check(self, net, part=None):
        """The variational bound in continuous time (Kingma et al. 2107.00630): the integral over the half log-SNR of
        |e - its estimate|^2, what the prior at t_max costs, and x_0 decoded from t_min."""
        g = torch.Generator().manual_seed(0)
        images = self.held[:part]
        s, draws = self.schedule, 64 if part is None else 8
        ends = s.lam(s.t_max), s.lam(s.t_min)
        total = torch.zeros(len(images), dtype=torch.float64)
        for i in range(draws):
            u = (i + torch.rand(len(images), generator=g, dtype=torch.float64)) / draws
            lam = ends[0] + u * (ends[1] - ends[0])
            _, noise, x, alpha, sigma = self.noisy(images, s.t_of(lam), g)
            guess = alpha * net(x, lam.float()) + sigma * x  # e of v: alpha v + sigma x, alpha^2 + sigma^2 = 1
            total += (guess - noise).square().sum(1).double() * float(ends[1] - ends[0]) / draws
        a, v = float(s.alpha(s.t_max)), float(s.sigma(s.t_max)) ** 2
        size = images.double().square().sum(1) + 64 * 0.08**2
        prior = 0.5 * (a**2 * size + 64 * (v - 1 - math.log(v)))
        ratio = float(s.sigma(s.t_min) / s.alpha(s.t_min))
        return a_pixel(total + prior + 32 * (math.log(2 * math.pi * ratio**2) + 1))

    def save(self, net, folder):
        save_mlp(net, folder, zoo="gauss", schedule="vp_linear", prediction="v")
        g = torch.Generator().manual_seed(0)
        x = self.held.double() + 0.08 * torch.randn(self.held.shape, generator=g)
        mean = self.images.double().mean(0)
        centred = self.images.double() - mean
        covariance = centred.T @ centred / len(self.images) + 0.08**2 * torch.eye(64)
        normal = torch.distributions.MultivariateNormal(mean, covariance)
        squares = torch.cdist(x, self.images.double()).square()
        law = torch.logsumexp(-squares / (2 * 0.08**2), 1) - math.log(len(self.images) * (2 * math.pi * 0.08**2) ** 32)
        beside = {"a normal distribution": -normal.log_prob(x), "the exact distribution of the training images": -law}
        return {
            "held_out": self.check(net),
            "beside": {name: a_pixel(nll) for name, nll in beside.items()},
            "images": {"train": len(self.images), "held_out": len(self.held)},
        }


RECIPES = {recipe.name: recipe for recipe in (TextMasked, TextRefusion, DigitsMasked, DigitsGauss)}

# ---------------------------------------------------------------------------------------------- training


def rate_at(step, steps, warmup=200, full=1500):
    """Linear warm-up, full up to a step, then as 1 / sqrt(step), and over the last quarter of the steps linearly down to 0:
    up to there it does not depend on how many steps there will be, so that can still be decided."""
    slow = (step + 1) / warmup if step < warmup else min(1.0, math.sqrt(full / (step + 1)))
    return slow * min(1.0, (steps - step) / (steps / 4))


def train(recipe, args, console):
    """→ (the averaged network, seconds), or None where --minutes ran out."""
    net = recipe.network(args.seed)
    mean = recipe.network(args.seed)  # EMA
    decayed = [p for p in net.parameters() if p.dim() > 1]
    others = [p for p in net.parameters() if p.dim() <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.98), fused=True)
    checkpoint = Path(args.checkpoint or f"runs/train/{recipe.name}.pt")
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    autocast = getattr(recipe, "autocast", True) and not args.float32
    run = {"name": recipe.name, "seed": args.seed, "autocast": autocast}
    step, seconds = 0, 0.0
    if checkpoint.exists() and not args.fresh:
        saved = torch.load(checkpoint, weights_only=True)
        if saved["run"] != run:
            raise SystemExit(f"{checkpoint} is of another run, {saved['run']}; --fresh starts again")
        net.load_state_dict(saved["net"]), mean.load_state_dict(saved["mean"])
        optimizer.load_state_dict(saved["optimizer"])
        step, seconds = saved["step"], saved["seconds"]
        if step > saved["steps"] * 3 / 4 and args.steps != saved["steps"]:
            raise SystemExit(
                f"{checkpoint} has come too far to end after another number of steps than {saved['steps']}"
            )
        console.print(f"going on at step {step}")

    def keep():
        state = {"net": net.state_dict(), "mean": mean.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({"run": run, "step": step, "steps": args.steps, "seconds": seconds, **state}, f"{checkpoint}.part")
        Path(f"{checkpoint}.part").replace(checkpoint)

    begun, before, losses = time.perf_counter(), seconds, []
    try:
        while step < args.steps:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * rate_at(step, args.steps)
            g = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = recipe.loss(net, g, step)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            decay = min(args.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                torch._foreach_lerp_(list(mean.parameters()), list(net.parameters()), 1 - decay)
            step += 1
            losses.append(loss.item())
            seconds = before + time.perf_counter() - begun
            if step % args.every == 0 or step == args.steps:
                left = (args.steps - step) * seconds / step
                found = recipe.check(mean, 32)
                console.print(
                    f"{recipe.name} step {step}/{args.steps}, loss {np.mean(losses):.4f}, held out {found}, "
                    f"{seconds:.0f} s, {left:.0f} s to go",
                    highlight=False,
                    soft_wrap=True,
                )
                losses.clear()
                keep()
            if args.minutes and seconds - before > 60 * args.minutes:
                break
    except KeyboardInterrupt:
        pass
    keep()
    if step < args.steps:
        console.print(f"stopped at step {step} of {args.steps}; the same command goes on")
        return None
    return mean, seconds


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", choices=RECIPES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, help="default: what the model in the box was made with")
    parser.add_argument("--minutes", type=float, help="stop after so long, with a checkpoint; the same command goes on")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--float32", action="store_true", help="no bfloat16 products")
    parser.add_argument("--ema", type=float, default=0.999, help="of the averaged weights, which are what is saved")
    parser.add_argument("--every", type=int, default=250, help="steps between checkpoints")
    parser.add_argument("--checkpoint", metavar="FILE", help="default runs/train/NAME.pt")
    parser.add_argument("--fresh", action="store_true", help="start again, whatever checkpoint there is")
    parser.add_argument("--out", metavar="DIR", help="default samplers/models/zoo/NAME")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", message="Mismatch dtype between input and weight")  # RMSNorm under autocast
    console = Console()
    recipe = RECIPES[args.name]()
    args.steps = args.steps or recipe.steps
    done = train(recipe, args, console)
    if done is None:
        return 1
    mean, seconds = done
    folder = Path(args.out or ZOO / args.name)
    folder.mkdir(parents=True, exist_ok=True)
    facts = recipe.save(mean, folder)
    about = {k: machine()[k] for k in ("cpu", "system", "python", "torch")}
    facts = {
        "command": f"python bench/train.py {args.name} --seed {args.seed} --steps {args.steps}"
        + (" --float32" if args.float32 else ""),
        "seed": args.seed,
        "steps": args.steps,
        "batch": recipe.batch,
        "parameters": sum(p.numel() for p in mean.parameters()),
        "seconds": round(seconds),
        "threads": args.threads,
        **facts,
        "machine": about,
    }
    (folder / "training.json").write_text(json.dumps(facts, indent=2) + "\n")
    console.print_json(data=facts)
    return 0


if __name__ == "__main__":
    sys.exit(main())
