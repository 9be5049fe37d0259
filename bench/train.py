"""The zoo's models, made: `python bench/train.py NAME` writes samplers/models/zoo/NAME/.

    python bench/train.py text-mdm          masked, full attention, time-free (RADD's lambda-DCE)
    python bench/train.py text-refusion     causal, clean slots shuffled before masked ones (ReFusion)
    python bench/train.py digits-mdm        the digits' grey levels, masked
    python bench/train.py digits-gauss      the digits as reals, Gaussian noise

A run is its seed and its number of steps: step k draws its batch from a generator seeded by (seed, k), so a run that was
stopped (--minutes, Ctrl-C) and goes on from its checkpoint ends where an unbroken one does, to the bit on one machine.
One thread unless --threads says more. bfloat16 products (autocast) are twice as fast as float32 on a CPU that has them.

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

from samplers.models.tokenizer import Tokenizer
from samplers.models.transformer import Config, Transformer

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
            self.orders.append((count, total, kinds, often[1] / max(1, often[1] + 2 * often[2])))

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

    def __init__(self):
        self.train, self.held = text()
        self.tokenizer = Tokenizer.train("\n".join(self.train), VOCAB)
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
        digest = hashlib.sha256("\0".join([*self.train, "", *self.held]).encode()).hexdigest()
        ngrams = {}
        chars = ["\0".join(part) + "\0" for part in (self.train, self.held)]
        tokens = [part.tolist() for part in (self.ids, self.held_ids)]
        for n in (3, 5):
            for unit, (train, held), vocab in (("character", chars, 97), ("token", tokens, VOCAB)):
                ngrams[f"{unit} {n}-gram"] = round(float(Ngram(train, n, vocab).nll(held).sum()) / self.characters, 4)
        return {
            "text": f"pydoc_data.topics and docstrings of Python {platform.python_version()}",
            "text_sha256": digest,
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


def lambda_dce(net, x, mask_id, g, offset=0):
    """RADD's denoising cross-entropy (Ou et al. 2406.03736, eq. 3.8): lambda ~ U(0, 1), each token masked with chance
    lambda, the sum of their -log p / lambda. One uniform is shared by the batch, a stratum a row. → nats a position."""
    batch = len(x)
    lam = (torch.rand((), generator=g) + torch.arange(batch)) / batch % 1.0
    lam = lam.clamp_min(1e-3)[:, None]  # (B, 1)
    masked = torch.rand(x.shape, generator=g) < lam  # (B, L) bool
    hidden = net(torch.where(masked, mask_id, x) + offset, rows=masked)  # (N, D)
    loss = F.cross_entropy(net.head.logits(hidden).float(), x[masked], reduction="none")
    return (loss / lam.expand_as(x)[masked]).sum() / x.numel()


@torch.no_grad()
def masked_bound(net, x, mask_id, offset=0, draws=8, seed=1):
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
            hidden = net(torch.where(masked, mask_id, part) + offset, rows=masked)
            loss = torch.zeros(part.shape, dtype=torch.float64)
            loss[masked] = F.cross_entropy(net.head.logits(hidden).float(), part[masked], reduction="none").double()
            out += loss.sum(1) * length / k / draws
    return total


class TextMasked:
    name = "text-mdm"
    steps, batch, rate = 8000, 8, 3e-3
    attention, causal_steps = "full", 1500

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
    name, attention = "text-refusion", "causal"

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
    token by a mask in its place behind the finished slots, the others by the causal head. (n,) nats."""
    rows, length = x.shape
    total = torch.zeros(rows, dtype=torch.float64)
    for part, out in zip(x.split(32), total.split(32)):
        logits = net.head.logits(net(part)).float()  # (b, L, V)
        loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), part[:, 1:].flatten(), reduction="none")
        loss = F.pad(loss.view(len(part), -1), (1, 0)).double()  # (b, L)
        for at in range(0, length, size):
            asked = part[:, : at + 1].clone()
            asked[:, at] = mask_id
            logits = net.head.logits(net(asked)[:, -1]).float()
            loss[:, at] = F.cross_entropy(logits, part[:, at], reduction="none").double()
        out += loss.sum(1)
    return total


RECIPES = {recipe.name: recipe for recipe in (TextMasked, TextRefusion)}

# ---------------------------------------------------------------------------------------------- training


def rate_at(step, steps, warmup=200):
    """Linear warm-up, then a cosine down to a hundredth."""
    if step < warmup:
        return (step + 1) / warmup
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))


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
    run = {"name": recipe.name, "seed": args.seed, "steps": args.steps, "autocast": not args.float32}
    step, seconds = 0, 0.0
    if checkpoint.exists() and not args.fresh:
        saved = torch.load(checkpoint, weights_only=True)
        if saved["run"] != run:
            raise SystemExit(f"{checkpoint} is of another run, {saved['run']}; --fresh starts again")
        net.load_state_dict(saved["net"]), mean.load_state_dict(saved["mean"])
        optimizer.load_state_dict(saved["optimizer"])
        step, seconds = saved["step"], saved["seconds"]
        console.print(f"going on at step {step}")

    def keep():
        state = {"net": net.state_dict(), "mean": mean.state_dict(), "optimizer": optimizer.state_dict()}
        torch.save({"run": run, "step": step, "seconds": seconds, **state}, f"{checkpoint}.part")
        Path(f"{checkpoint}.part").replace(checkpoint)

    begun, before, losses = time.perf_counter(), seconds, []
    try:
        while step < args.steps:
            for group in optimizer.param_groups:
                group["lr"] = recipe.rate * rate_at(step, args.steps)
            g = torch.Generator().manual_seed(args.seed * 1_000_003 + step)
            with torch.autocast("cpu", torch.bfloat16, enabled=not args.float32):
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
    from samplers.bench.machine import machine
    from samplers.models.load import save

    # What is measured is what is saved: bfloat16 weights.
    save(mean.bfloat16(), folder)
    facts = recipe.save(mean.float(), folder)
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
