"""SamplersLM: a denoiser and a sampler as a model of lm-eval, called "samplers" there.

Row numbers are document numbers: what a document gets depends on the seed, its number in the task and the repeat, and on no
batch, order or rank. Every choice of a document is scored under the same random masks, so far as lengths allow, which makes
differences between choices surer than their values.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import registry
from ..bench.user_model import load_denoiser
from ..checks import integer
from ..denoiser import TokenDenoiser
from ..driver import sample
from ..errors import FamilyError, OptionError, unknown_option
from ..likelihood import nll
from ..sampler import Sampler

try:
    from lm_eval.api.model import LM
    from lm_eval.api.registry import register_model
except ImportError as error:
    raise OptionError(f'evaluation needs the package lm-eval: pip install "sampler-zoo[eval]" ({error})') from error

__all__ = ["Cost", "Likelihoods", "SamplersLM"]

# The arguments of sample() that may be given, to the class or by a task's generation_kwargs; the others it sets itself.
SETTINGS = (
    *(
        "steps",
        "block_length",
        "cache",
        "cfg_scale",
        "cfg_interval",
        "temperature",
        "top_k",
        "top_p",
        "forbid",
        "demote",
    ),
)
LENGTHS = ("max_gen_toks", "max_new_tokens", "max_tokens")  # names that tasks use for the positions to fill
MAX_GEN_TOKS = 256  # if neither the task nor the user says
REPEAT = 1 << 32  # a document's k-th repeat, or window, is row document + k * REPEAT


@dataclass
class Cost:
    """What the answers of generate_until have cost so far.

    Attributes:
        rows: answers. tokens: positions that they fill, up to a row's end; the token that ends a row is one of them.
        passes: forward passes that a row took part in, summed over rows: tokens / passes are the tokens per pass.
        nfe, row_evals, token_evals, cache_bytes, denoiser, sampler: as in Sample, summed over batches.
        cut: prompts that were longer than the model takes, and lost their beginning.
    """

    rows: int = 0
    tokens: int = 0
    passes: int = 0
    nfe: int = 0
    row_evals: int = 0
    token_evals: int = 0
    cache_bytes: int = 0
    denoiser: float = 0.0
    sampler: float = 0.0
    cut: int = 0


@dataclass
class Likelihoods:
    """What was scored so far.

    Attributes:
        method: "next": the chain rule, exact. "any_order": the bound of samplers.nll, by Monte Carlo; mc masks per text.
        nll, stderr: one per request, nats: minus the log-likelihood or its bound, and the Monte Carlo standard error.
        tokens: how many were scored. nfe, row_evals, token_evals: what it cost; seconds: in all.
    """

    method: str
    mc: int
    nll: list[float] = field(default_factory=list)
    stderr: list[float] = field(default_factory=list)
    tokens: int = 0
    nfe: int = 0
    row_evals: int = 0
    token_evals: int = 0
    seconds: float = 0.0
    cut: int = 0

    def summary(self) -> dict[str, Any]:
        """For records: the root mean square of the standard errors is that of one log-likelihood."""
        mean_square = sum(s * s for s in self.stderr) / max(1, len(self.stderr))
        return {
            "method": self.method,
            "mc": self.mc if self.method != "next" else None,
            "requests": len(self.nll),
            "tokens": self.tokens,
            "nll_per_token": sum(self.nll) / max(1, self.tokens),
            "stderr": mean_square**0.5,
        }


@register_model("samplers")
class SamplersLM(LM):
    """A model of lm-eval.

    Args:
        denoiser: a TokenDenoiser with a tokenizer; or its name: a model in the box, hf:NAME or module:attribute.
        sampler: a sampler's name or a Sampler, for tasks that generate. Its options are among `more`.
        batch_size: prompts per run of the sampler.
        max_gen_toks: positions to fill if the task does not say. gen_length: the same, whatever the task says.
        seed: what all random numbers are made of.
        likelihood: "next": the chain rule from left to right, exact, for models that predict the next token; "bound": the
            bound of samplers.nll, for masked models. "auto": the first that the model can.
        mc: masks per text of the bound. nll_batch: masks per forward pass.
        check_greedy: whether is_greedy is worked out for the bound: that the text is what the model decodes at temperature
            0, the surest position first, one position per forward pass. It costs as many passes as the text has tokens; without
            it is_greedy is False. Of "next" it costs nothing and is always worked out.
        device, max_batch_size: lm-eval gives these; the model's name says where it runs, which must agree on a machine with a
            GPU, and batches are not searched for.
        more: arguments of samplers.sample (SETTINGS), which go before what a task says; and options of the sampler.

    Raises:
        OptionError: the denoiser has no tokenizer, or is not of tokens; an argument is unknown or wrong.
    """

    def __init__(
        self,
        denoiser: Any,
        sampler: Any = None,
        *,
        batch_size: Any = 8,
        max_gen_toks: Any = MAX_GEN_TOKS,
        gen_length: Any = None,
        seed: int = 0,
        likelihood: str = "auto",
        mc: Any = 128,
        nll_batch: Any = 32,
        check_greedy: bool = False,
        device: Any = None,
        max_batch_size: Any = None,
        **more: Any,
    ):
        super().__init__()
        self.denoiser: TokenDenoiser = _token_denoiser(denoiser)
        self._device = self.denoiser.device  # `device` has no setter
        # lm-eval asks for cuda:0 if nothing is said, whether there is one or not.
        if device is not None and torch.cuda.is_available() and torch.device(device).type != self.denoiser.device.type:
            raise OptionError(
                f"device is {device!r}, and the model is on {self.denoiser.device}: say it where the model is loaded, as in "
                "hf:NAME?device=cuda, or give a denoiser that is there"
            )
        self.settings = {k: more.pop(k) for k in SETTINGS if more.get(k) is not None}
        self.sampler = self._made(sampler, more)
        self.batch_size = integer("batch_size", batch_size)
        self.gen_length = None if gen_length is None else integer("gen_length", gen_length)
        self.max_gen_toks, self.seed = integer("max_gen_toks", max_gen_toks), seed
        self.mc, self.nll_batch, self.check_greedy = (
            integer("mc", mc),
            integer("nll_batch", nll_batch),
            bool(check_greedy),
        )
        if likelihood not in ("auto", "bound", "next"):
            raise OptionError(f"likelihood is {likelihood!r}; auto, bound or next is needed")
        if likelihood == "next" and not self.denoiser.predicts_next:
            raise OptionError(
                f'likelihood="next" needs a model that predicts the next token; {self.denoiser.name!r} does not'
            )
        exact = likelihood == "next" or (likelihood == "auto" and self.denoiser.predicts_next)
        self.likelihoods = Likelihoods("next" if exact else "any_order", self.mc)
        self.cost = Cost()
        self.progress = True  # whether bars are shown, if lm-eval does not say
        self._rendered: set[str] = set()  # prompts that a chat template has written
        self._warned: set[str] = set()

    def _made(self, sampler: Any, options: dict[str, Any]) -> Sampler | None:
        if isinstance(sampler, str):
            known = {o.name: o for o in registry.load(sampler).options()}
            for name in options:
                if name not in known:
                    raise unknown_option(f"SamplersLM with sampler {sampler!r}", name, [*SETTINGS, *known])
            return registry.create(
                sampler, **{k: known[k].parse(v) if isinstance(v, str) else v for k, v in options.items()}
            )
        if options:
            raise unknown_option("SamplersLM", next(iter(options)), SETTINGS)
        if sampler is not None and not isinstance(sampler, Sampler):
            raise OptionError(f"sampler is {type(sampler).__name__}; a sampler's name, or a Sampler, is needed")
        return sampler

    # ------------------------------------------------------------------------------------------ what lm-eval asks of a model

    @property
    def rank(self) -> int:
        """The number of this process, under torch.distributed."""
        return torch.distributed.get_rank() if _distributed() else 0

    @property
    def world_size(self) -> int:
        return torch.distributed.get_world_size() if _distributed() else 1

    def all_gather(self, tensor: Tensor) -> Tensor:
        """(1,) or scalar of each process -> (world_size,)."""
        if not _distributed():
            return tensor
        every = [torch.empty_like(tensor.reshape(-1)) for _ in range(self.world_size)]
        torch.distributed.all_gather(every, tensor.reshape(-1))
        return torch.cat(every)

    def gather_object(self, obj: Any, dst: int = 0) -> Any:
        if not _distributed():
            return [obj]
        every: list[Any] | None = [None] * self.world_size if self.rank == dst else None
        torch.distributed.gather_object(obj, every, dst=dst)
        return every

    def barrier(self) -> None:
        if _distributed():
            torch.distributed.barrier()

    @property
    def _chat_tokenizer(self) -> Any:
        """The tokenizer of transformers within the denoiser's; None if it is of another kind."""
        inner = getattr(self.denoiser.tokenizer, "tokenizer", None)
        return inner if getattr(inner, "chat_template", None) else None

    @property
    def tokenizer_name(self) -> str:
        return str(getattr(self._chat_tokenizer, "name_or_path", "") or self.denoiser.name)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """The template's text; "" if none is asked for."""
        return str(self._chat_tokenizer.chat_template) if chat_template and self._chat_tokenizer else ""

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """A conversation as the text of a prompt.

        Raises:
            OptionError: there is no chat template.
        """
        if self._chat_tokenizer is None:
            self._tokenizer.chat(chat_history)  # its error says what to do
            raise OptionError(f"the tokenizer of {self.denoiser.name!r} has no chat template that can be shown as text")
        text = self._chat_tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )
        self._rendered.add(text)
        return text

    def get_model_info(self) -> dict[str, Any]:
        """What lm-eval writes beside its results: the sampler, what it cost, and how well likelihoods are known."""
        info: dict[str, Any] = {"denoiser": self.denoiser.name, "seed": self.seed, "settings": self.settings}
        if self.sampler is not None:
            distribution, version = registry.entry_of(type(self.sampler))
            info |= {"sampler": self.sampler.name, "options": self.sampler.values()}
            info |= {"distribution": distribution, "version": version}
        if self.cost.rows:
            info["cost"] = vars(self.cost) | {"tokens_per_pass": self.cost.tokens / max(1, self.cost.passes)}
        if self.likelihoods.nll:
            info["likelihood"] = self.likelihoods.summary()
        return info

    # ------------------------------------------------------------------------------------------ text

    @property
    def _tokenizer(self) -> Any:
        return self.denoiser.tokenizer

    def _encode(self, text: str) -> list[int]:
        # A chat template writes the tokens that begin a text itself.
        return self._tokenizer.encode(text, begin=text not in self._rendered).tolist()

    def _fitting(self, ids: list[int], more: int, counts: Any) -> list[int]:
        """The end of a prompt that leaves room for `more` positions."""
        most = self.denoiser.max_length
        if most is None or len(ids) + more <= most:
            return ids
        if more >= most:
            raise OptionError(
                f"{more} positions are asked for after the prompt, and denoiser {self.denoiser.name!r} takes {most} in all; "
                "give fewer (gen_length=, --gen-length)"
            )
        counts.cut += 1
        self._warn(
            "cut", f"prompts longer than {most - more} tokens lose their beginning: {self.denoiser.name!r} takes {most}"
        )
        return ids[len(ids) + more - most :]

    def _warn(self, what: str, text: str) -> None:
        if what not in self._warned:
            self._warned.add(what)
            warnings.warn(text, stacklevel=3)

    # ------------------------------------------------------------------------------------------ generation

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """One answer per request: what the sampler writes after the context, up to the first of the stop strings.

        A request's args are (context, gen_kwargs). Of gen_kwargs are read: until, max_gen_toks, do_sample, temperature,
        top_p, top_k, and arguments of samplers.sample such as steps; what the class was given goes first.
        """
        if self.sampler is None:
            raise OptionError(
                "this task generates text: say by which sampler, as in SamplersLM(denoiser, 'entropy_bound')"
            )
        answers = [""] * len(requests)
        groups: dict[str, tuple[dict[str, Any], list[str], list[tuple[int, list[int], int]]]] = {}
        for i, (request, row) in enumerate(zip(requests, _rows(requests))):
            context, asked = request.args
            settings, until = self._asked(asked)
            ids = self._fitting(self._encode(context), settings["gen_length"], self.cost)
            groups.setdefault(repr((settings, until)), (settings, until, []))[2].append((i, ids, row))
        with _bar("generate", len(requests), disable_tqdm or not self.progress or self.rank != 0) as bar:
            for settings, until, jobs in groups.values():
                jobs.sort(key=lambda job: len(job[1]))  # rows of one length share their forward passes
                for first in range(0, len(jobs), self.batch_size):
                    part = jobs[first : first + self.batch_size]
                    texts = self._generate([ids for _, ids, _ in part], [row for *_, row in part], settings, until)
                    for (i, *_), text in zip(part, texts):
                        answers[i] = text
                        self.cache_hook.add_partial("generate_until", requests[i].args, text)
                    bar(len(part))
        return answers

    def _asked(self, given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
        """What a task's generation_kwargs ask of sample(), and the stop strings."""
        asked = dict(given)
        until = asked.pop("until", None) or []
        until = [until] if isinstance(until, str) else list(until)
        lengths = [asked.pop(k) for k in LENGTHS if k in asked]
        settings: dict[str, Any] = {}
        cold = not asked.pop("do_sample", asked.get("temperature", 0) != 0)
        if "do_sample" in given or "temperature" in given:
            settings["temperature"] = 0.0 if cold else float(asked.get("temperature", 1.0))
        asked.pop("temperature", None)
        if asked.get("num_beams") == 1:
            del asked["num_beams"]
        for name, value in asked.items():
            if name in SETTINGS:
                settings[name] = value
            else:
                self._warn(name, f"the task asks for {name}={value!r}, which samplers do not have; it is left out")
        length = self.gen_length or int(lengths[0] if lengths else self.max_gen_toks)
        return settings | self.settings | {"gen_length": length}, [u for u in until if u]

    def _generate(
        self, prompts: list[list[int]], rows: list[int], settings: dict[str, Any], until: list[str]
    ) -> list[str]:
        ends = self.denoiser.stop_ids or self._tokenizer.eos_ids
        assert self.sampler is not None
        made = sample(
            self.denoiser,
            self.sampler,
            prompt=prompts,
            seed=self.seed,
            first_row=rows,
            stop=[*until, *ends],
            **settings,
        )
        cost = self.cost
        cost.rows += len(rows)
        cost.tokens += sum(map(len, made.generated))
        cost.passes += int(made.nfe_rows.sum())
        cost.nfe += made.nfe
        for name in ("row_evals", "token_evals", "cache_bytes"):
            setattr(cost, name, getattr(cost, name) + getattr(made, name))
        cost.denoiser += made.seconds.denoiser
        cost.sampler += made.seconds.sampler
        return made.texts

    # ------------------------------------------------------------------------------------------ likelihood

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """(log-likelihood of the continuation given the context, is_greedy) per request; args are (context, continuation).

        With "any_order" the first is minus the bound of samplers.nll, whose standard error `likelihoods` keeps.
        """
        pairs = [self._pair(*request.args) for request in requests]
        found = self._scored(pairs, _documents(requests), disable_tqdm)
        for request, result in zip(requests, found):
            self.cache_hook.add_partial("loglikelihood", request.args, result)
        return found

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text; args are (text,).

        A text longer than the model takes is scored in windows, each token once: a window sees the token before its first,
        and the last one as much as the model takes.
        """
        pairs: list[tuple[list[int], int]] = []
        rows, owner = [], []
        for i, (request, document) in enumerate(zip(requests, _documents(requests))):
            ids = self._encode(request.args[0])
            for k, (begin, first, end) in enumerate(_windows(len(ids), self.denoiser.max_length or len(ids))):
                pairs.append((ids[begin:end], first - begin))
                rows.append(document + k * REPEAT)
                owner.append(i)
        found = [0.0] * len(requests)
        for i, (value, _) in zip(owner, self._scored(pairs, rows, disable_tqdm, greedy=False)):
            found[i] += value
        for request, value in zip(requests, found):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, value)
        return found

    def _pair(self, context: str, continuation: str) -> tuple[list[int], int]:
        """The tokens of both, and how many of them are the context's. Blanks at its end go over to the continuation."""
        kept = context.rstrip() if context not in self._rendered else context
        before = self._encode(context) if kept == context else self._tokenizer.encode(kept).tolist()
        after = context[len(kept) :] + continuation
        whole = self._tokenizer.encode(kept + after, begin=context not in self._rendered).tolist()
        # As lm-eval's own models have it: what the whole has beyond the context's tokens.
        rest = whole[len(before) :] or self._tokenizer.encode(after, begin=False).tolist()
        if not rest:
            raise OptionError(
                f"the continuation {continuation!r} has no token in the vocabulary of {self.denoiser.name!r}"
            )
        before = self._fitting(before, len(rest), self.likelihoods)
        return before + rest, len(before)

    def _scored(
        self, pairs: list[tuple[list[int], int]], rows: list[int], disable_tqdm: bool, greedy: bool = True
    ) -> list[tuple[float, bool]]:
        """(log-likelihood, is_greedy) of the tokens after the first `n` of each row; pairs are (tokens, n)."""
        found: list[tuple[float, bool]] = [(0.0, False)] * len(pairs)
        errors = [0.0] * len(pairs)
        order = sorted(range(len(pairs)), key=lambda i: (len(pairs[i][0]), pairs[i][1]))
        begun, kept = time.perf_counter(), self.likelihoods
        with _bar("score", len(pairs), disable_tqdm or not self.progress or self.rank != 0) as bar:
            for first in range(0, len(order), self.nll_batch):
                part = order[first : first + self.nll_batch]
                texts, given = [pairs[i][0] for i in part], [pairs[i][1] for i in part]
                if kept.method == "next":
                    values, equal = self._next(texts, given)
                else:
                    bound = self._bound(texts, given, [rows[i] for i in part])
                    values = [-v for v in bound.nll.tolist()]
                    for i, s in zip(part, bound.stderr.tolist()):
                        errors[i] = s
                    equal = self._greedy(texts, given) if greedy and self.check_greedy else [False] * len(part)
                for i, value, same in zip(part, values, equal):
                    found[i] = value, same
                bar(len(part))
        kept.nll += [-value for value, _ in found]
        kept.stderr += errors
        kept.tokens += sum(len(ids) - n for ids, n in pairs)
        kept.seconds += time.perf_counter() - begun
        return found

    def _bound(self, texts: list[list[int]], given: list[int], rows: list[int]) -> Any:
        try:
            bound = nll(
                self.denoiser, texts, prompt=given, mc=self.mc, seed=self.seed, first_row=rows, batch=self.nll_batch
            )
        except FamilyError as error:
            raise OptionError(
                f"this task compares likelihoods, and a model of uniform noise has none here ({error}); take a task that "
                "generates"
            ) from error
        kept = self.likelihoods
        kept.nfe += bound.nfe
        kept.row_evals += bound.row_evals
        kept.token_evals += self.mc * sum(map(len, texts))
        return bound

    @torch.no_grad()
    def _next(self, texts: list[list[int]], given: list[int]) -> tuple[list[float], list[bool]]:
        """The chain rule from left to right: (log p per text, whether each token is the likeliest). One forward pass.

        A model that predicts the next token answers at each given token with the one after it, and at a mask with what stands
        there: the first token of a text without a context is asked for at a mask in the place of it, in a pass of its own.
        """
        denoiser, device = self.denoiser, self.denoiser.device
        values, equal = [0.0] * len(texts), [True] * len(texts)

        def ask(x: Tensor, rows: Tensor, target: Tensor, who: Tensor) -> None:
            logits = denoiser.predict(x.to(device), rows=rows.to(device)).double().cpu()  # (N, V)
            if denoiser.mask_id is not None and denoiser.mask_id < logits.shape[1]:
                logits[:, denoiser.mask_id] = -torch.inf
            log_p = logits.log_softmax(1).gather(1, target[:, None]).squeeze(1)  # (N,)
            best = logits.argmax(1) == target
            for i, v, same in zip(who.tolist(), log_p.tolist(), best.tolist()):
                values[i] += v
                equal[i] &= same
            kept = self.likelihoods
            kept.nfe += 1
            kept.row_evals += len(x)
            kept.token_evals += x.numel()

        x = torch.nn.utils.rnn.pad_sequence([torch.tensor(t, dtype=torch.int64, device="cpu") for t in texts], True, 0)
        length, begin = (
            torch.tensor([[len(t)] for t in texts], device="cpu"),
            torch.tensor(given, device="cpu")[:, None],
        )
        position = torch.arange(x.shape[1], device="cpu")
        # Position j answers for token j + 1. What stands to the right of it, such as filling, it does not see.
        rows = (position >= (begin - 1).clamp(min=0)) & (position < length - 1)  # (B, L)
        if bool(rows.any()):
            ask(x, rows, x.roll(-1, 1)[rows], rows.nonzero()[:, 0])
        alone = (begin.squeeze(1) == 0).nonzero().squeeze(1)
        if len(alone):
            assert denoiser.mask_id is not None
            mask = torch.full((1, 1), denoiser.mask_id, dtype=torch.int64, device="cpu").expand(len(alone), 1)
            ask(mask, torch.ones_like(mask, dtype=torch.bool), x[alone, 0], alone)
        return values, equal

    def _greedy(self, texts: list[list[int]], given: list[int]) -> list[bool]:
        """Whether each text is what the model decodes at temperature 0, one position per pass, the surest first."""
        equal = [False] * len(texts)
        for n in {len(t) - g for t, g in zip(texts, given)}:
            which = [i for i, (t, g) in enumerate(zip(texts, given)) if len(t) - g == n]
            made = sample(
                self.denoiser,
                "low_confidence",
                prompt=[texts[i][: given[i]] for i in which],
                gen_length=n,
                steps=n,
                temperature=0.0,
            )
            self.likelihoods.nfe += made.nfe
            for i, row in zip(which, made.rows()):
                equal[i] = row.tolist() == texts[i]
        return equal


def _token_denoiser(given: Any) -> TokenDenoiser:
    denoiser = load_denoiser(given) if isinstance(given, str) else given
    if not isinstance(denoiser, TokenDenoiser):
        raise OptionError(
            f"tasks are of text, and {getattr(denoiser, 'name', given)!r} is {type(denoiser).__name__}; a TokenDenoiser with a "
            "tokenizer is needed"
        )
    if denoiser.tokenizer is None:
        raise OptionError(
            f"denoiser {denoiser.name!r} has no tokenizer, and tasks are of text: give it one, as in denoiser.tokenizer = "
            "samplers.models.hf_tokenizer.tokenizer_of(folder)"
        )
    return denoiser


def _distributed() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def _documents(requests: Sequence[Any]) -> list[int]:
    """The number of each request's document in its task; of a request without one, such as in a test, its place."""
    return [i if request.doc_id is None else int(request.doc_id) for i, request in enumerate(requests)]


def _rows(requests: Sequence[Any]) -> list[int]:
    """The row number of each request: its document, and of a document that is asked several times, the repeat."""
    times: dict[tuple[Any, int], int] = {}
    rows = []
    for request, document in zip(requests, _documents(requests)):
        who = (request.task_name, document)
        times[who] = times.get(who, -1) + 1
        rows.append(document + times[who] * REPEAT)
    return rows


def _windows(n: int, most: int) -> Iterator[tuple[int, int, int]]:
    """(begin, first scored, end) of the windows of a text of n tokens, none longer than `most`."""
    first = 0
    while first < n:
        end = min(n, first + most - (first > 0))
        yield max(0, end - most) if end == n else max(0, first - 1), first, end
        first = end


class _bar:
    """lm-eval's kind of progress bar; called with the number of requests that are done."""

    def __init__(self, name: str, total: int, hidden: bool):
        from tqdm import tqdm

        self.bar = tqdm(total=total, desc=f"samplers: {name}", disable=hidden or total == 0)

    def __enter__(self) -> Any:
        return self.bar.update

    def __exit__(self, *_: object) -> None:
        self.bar.close()
