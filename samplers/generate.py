"""Many prompts, one record each, with all that it takes to make the text again: what `samplers generate` runs.

    from samplers.generate import generate, read_prompts

    for record in generate("text-mdm", ["The module", "Return the"], "entropy_bound", gen_length=32, temperature=0.7):
        print(record["text"])

Prompt number i is row i under the seed (sample(first_row=i)), whatever the batch and the shard it is in, so neither changes
what is drawn. Records can be kept in a file of one JSON object per line (Results), where a run that was stopped goes on.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from . import registry
from .arguments import driver_arguments
from .checks import check_room, check_tokens, integer, token_rows
from .denoiser import Denoiser, TokenDenoiser
from .driver import sample
from .errors import OptionError, SamplersError
from .parallel import MapLike, execute
from .text import prompt_rows

__all__ = ["Job", "Prompt", "Results", "generate", "read_prompts", "weights_of"]

OWN = ("batch", "seed", "first_row")  # settings that say which part of a run it is, and change nothing
NOT_HERE = (
    "prompt",
    "first_row",
    "trace",
    "info",
    "progress",
    "constrain",
)  # arguments of sample() that a Job does not take


KNOWN = "; a prompt is made of tokens that are known"


@dataclass(frozen=True)
class Prompt:
    """One thing to write.

    Attributes:
        index: its number among all prompts, from 0; the number of its row under the seed.
        content: a text, a conversation, or token ids.
        id: what the user calls it, or None.
    """

    index: int
    content: str | list[dict[str, str]] | list[int]
    id: Any = None


def read_prompts(lines: Iterable[str], name: str, *, chat: bool = False, system: str | None = None) -> list[Prompt]:
    """The prompts of a file's lines; lines that are empty do not count.

    Args:
        lines: JSON objects, one per line, each with "prompt" (a text), "messages" (a conversation) or "ids" (token ids), and
            with "id" if it is to be found again by it; if the first line is none, each line is a text.
        name: what the file is called, for errors.
        chat: a text is the user's message of a conversation.
        system: the system message of conversations that have none.

    Raises:
        OptionError: there is no prompt; a line is of another form; it names file and line.
    """
    numbered = [(i, line.rstrip("\r\n")) for i, line in enumerate(lines, 1) if line.strip()]
    if not numbered:
        raise OptionError(f"{name}: there is no prompt in it")
    structured = numbered[0][1].lstrip().startswith("{")
    read: list[Prompt] = []
    for number, line in numbered:
        content, own = _parsed(line, f"{name}, line {number}") if structured else (line, None)
        if isinstance(content, str) and chat:
            content = [{"role": "user", "content": content}]
        begins: Any = content[0] if isinstance(content, list) else None
        if system is not None and isinstance(begins, dict) and begins.get("role") != "system":
            content = [{"role": "system", "content": system}, *content]
        read.append(Prompt(len(read), content, own))
    return read


def _parsed(line: str, where: str) -> tuple[Any, Any]:
    """(content, id) of a line that is a JSON object."""
    forms = (
        'write {"prompt": "..."}, {"messages": [{"role": "user", "content": "..."}]} or {"ids": [1, 2]}, one per line'
    )
    try:
        value = json.loads(line)
    except ValueError as error:
        raise OptionError(f"{where} is not JSON ({error}); {forms}") from error
    kinds = [key for key in ("prompt", "messages", "ids") if isinstance(value, dict) and key in value]
    if len(kinds) != 1:
        raise OptionError(f"{where} has {' and '.join(kinds) or 'none of prompt, messages and ids'}; {forms}")
    content = value[kinds[0]]
    whole = isinstance(content, list) and bool(content)
    fits = {
        "prompt": isinstance(content, str),
        "messages": whole and all(isinstance(m, dict) for m in content),
        "ids": whole and all(isinstance(i, int) and not isinstance(i, bool) for i in content),
    }
    if not fits[kinds[0]]:
        raise OptionError(f"{where}: {kinds[0]} is {json.dumps(content)[:80]}; {forms}")
    return content, value.get("id")


@dataclass(frozen=True)
class Job:
    """What is done with each prompt. It can be pickled, and so sent to other processes, if the model is a name.

    Attributes:
        model: a denoiser; or its name, as `samplers sample --denoiser` takes it: each process loads it once.
        sampler, options: the sampler's name and its options.
        settings: arguments of sample(), such as gen_length, steps, block_length, cache, temperature and stop.
        seed: an integer.
        ids: whether records hold the token ids.
    """

    model: TokenDenoiser | str
    sampler: str
    options: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    ids: bool = False

    @functools.cached_property
    def denoiser(self) -> TokenDenoiser:
        from .bench.user_model import load_denoiser

        made: Denoiser = load_denoiser(self.model) if isinstance(self.model, str) else self.model
        if not isinstance(made, TokenDenoiser):
            raise OptionError(f"{made.name!r} is a model of the {made.family} family; a model of tokens is needed")
        return made

    def __getstate__(self) -> dict[str, Any]:
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}  # the loaded model stays where it is

    @functools.cached_property
    def made_by(self) -> dict[str, Any]:
        """What every record says of how it was made, the model's own facts apart; known before it is loaded."""
        made, item = registry.create(self.sampler, **self.options), registry.entry(self.sampler)
        return {
            "model": self.model if isinstance(self.model, str) else self.model.name,
            "sampler": self.sampler,
            "options": made.values(),
            "distribution": item.distribution,
            "version": item.version,
            "library": registry.version(),
            "seed": self.seed,
        }

    @functools.cached_property
    def key(self) -> str:
        """16 hex digits of all that decides what is written for a prompt. Batches and shards do not."""
        asked = self.made_by | {"settings": dict(self.settings), "ids": self.ids}
        return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode()).hexdigest()[:16]

    @functools.cached_property
    def _facts(self) -> dict[str, Any]:
        """What every record says of the model itself."""
        model = self.denoiser
        like = model.head.weight if model.head is not None else next(iter(_parameters(model).values()), None)
        return {
            "revision": model.revision,
            "weights": weights_of(model),
            "dtype": None if like is None else str(like.dtype).removeprefix("torch."),
            "device": str(model.device),
        }

    def rows(self, prompts: Sequence[Prompt]) -> list[Tensor]:
        """The token ids of prompts, (n_i,) int64 each.

        Raises:
            OptionError: one of them cannot be encoded, or is too long for the model; it names the prompt.
        """
        rows = []
        for prompt in prompts:
            try:
                (row,) = token_rows("prompt", prompt_rows(prompt.content, self.denoiser))
                check_tokens("prompt", row[None], self.denoiser, torch.ones_like(row[None], dtype=torch.bool), KNOWN)
                if (asked := self.settings.get("gen_length")) is not None:
                    check_room("prompt and gen_length", [len(row) + int(asked)], self.denoiser)
            except OptionError as error:
                called = "" if prompt.id is None else f" ({prompt.id})"
                raise OptionError(f"prompt {prompt.index}{called}: {error}") from error
            rows.append(row)
        return rows

    def run(self, prompts: Sequence[Prompt]) -> list[dict[str, Any]]:
        """The records of prompts whose numbers follow each other: one call of sample()."""
        first = prompts[0].index
        if [p.index for p in prompts] != list(range(first, first + len(prompts))):
            raise OptionError("the prompts of a batch must have numbers that follow each other")
        out = sample(
            self.denoiser,
            self.sampler,
            prompt=self.rows(prompts),
            seed=self.seed,
            first_row=first,
            **self.settings,
            **self.options,
        )
        texts = out.texts if self.denoiser.tokenizer is not None else [None] * len(prompts)
        settings = {name: value for name, value in out.settings.items() if name not in OWN}
        facts = self.made_by | self._facts
        records = []
        for i, (prompt, generated, reason, nfe) in enumerate(
            zip(prompts, out.generated, out.finish_reasons, out.nfe_rows.tolist())
        ):
            record = {"index": prompt.index, "id": prompt.id, "prompt": prompt.content, "text": texts[i]}
            if self.ids or texts[i] is None:
                record["ids"] = generated.tolist()
            counts = {"tokens": len(generated), "nfe": nfe, "tokens_per_pass": round(len(generated) / max(nfe, 1), 4)}
            record |= {"finish_reason": reason, "key": self.key, **facts, "row": prompt.index, **counts}
            records.append(record | {"settings": settings})
        return records


def _parameters(model: TokenDenoiser) -> dict[str, Tensor]:
    inner = getattr(model, "model", None)
    return inner.state_dict() if isinstance(inner, torch.nn.Module) else {}


def weights_of(model: TokenDenoiser) -> str | None:
    """12 hex digits that tell a model's weights from others: of each tensor its name, shape, dtype and first 16 numbers.

    None if the denoiser has no torch module as its `model`.
    """
    tensors = _parameters(model)
    digest = hashlib.sha256()
    for name, x in tensors.items():
        first = x.detach().flatten()[:16].to("cpu", torch.float64)
        digest.update(f"{name} {tuple(x.shape)} {x.dtype} {first.tolist()}".encode())
    return digest.hexdigest()[:12] if tensors else None


def generate(
    denoiser: TokenDenoiser | str,
    prompts: Iterable[Any],
    sampler: str,
    *,
    batch: int = 8,
    seed: int = 0,
    shard: tuple[int, int] = (0, 1),
    skip: Iterable[int] = (),
    ids: bool = False,
    map: MapLike | None = None,
    **arguments: Any,
) -> Iterator[dict[str, Any]]:
    """Write something for each prompt: one record per prompt, in their order.

    Args:
        denoiser: the model, or its name as `samplers sample --denoiser` takes it.
        prompts: texts, conversations (lists of {"role": ..., "content": ...}), lists of token ids, or Prompts.
        sampler: the name of a sampler.
        batch: prompts per call of sample().
        seed: an integer. The draws of a prompt depend on it and on the prompt's number alone.
        shard: (i, n): only part i of n parts of neighbouring prompts, counted from 0. All shards together are the whole.
        skip: numbers of prompts that are done already.
        ids: put the token ids into the records as well; without a tokenizer they are there in any case.
        map: a function like the built-in map, as samplers.parallel.execute takes it; such as one that shares batches out to other
            processes, for which the model must be a name. If it gives results in another order, so come the records. None: one
            batch after the other.
        arguments: arguments of sample(), and options of the sampler.

    Yields:
        Dictionaries that json can write: index, id, prompt, text (ending before a stop string), ids if asked for, finish_reason
        ("stop" or "length"), key (of all settings), model, sampler, options, distribution, version, library, seed, revision,
        weights (see weights_of), dtype, device, row, tokens, nfe (forward passes that the row took part in), tokens_per_pass,
        settings (arguments of sample() as they were read).

    Raises:
        OptionError: an argument is wrong, or a prompt cannot be encoded or is too long; before anything is run.
    """
    job = job_of(denoiser, sampler, seed=seed, ids=ids, **arguments)
    return run_job(job, numbered(prompts), batch=batch, shard=shard, skip=skip, map=map)


def numbered(prompts: Iterable[Any]) -> list[Prompt]:
    """Prompts with their numbers; those that are Prompts already as they are."""
    if isinstance(prompts, str):
        raise OptionError("prompts is one text, and generate() takes several: [text]")
    return [p if isinstance(p, Prompt) else Prompt(i, p) for i, p in enumerate(prompts)]


def job_of(model: TokenDenoiser | str, sampler: str, *, seed: int = 0, ids: bool = False, **arguments: Any) -> Job:
    """A Job of arguments of sample() and options of the sampler, told apart by their names."""
    if wrong := [name for name in arguments if name in NOT_HERE]:
        raise OptionError(f"generate() takes no {wrong[0]!r}; for one run at a time use samplers.sample()")
    own = driver_arguments()
    settings = {name: value for name, value in arguments.items() if name in own}
    options = {name: value for name, value in arguments.items() if name not in own}
    job = Job(model, sampler, options, settings, integer("seed", seed, -(2**63), 2**64 - 1), ids)
    job.made_by  # noqa: B018 - a wrong sampler or option is an error now, not when the first record is asked for
    return job


def run_job(
    job: Job,
    prompts: Sequence[Prompt],
    *,
    batch: int = 8,
    shard: tuple[int, int] = (0, 1),
    skip: Iterable[int] = (),
    map: MapLike | None = None,
) -> Iterator[dict[str, Any]]:
    """As `generate`, of a Job. Everything is checked when it is called, not when the first record is asked for."""
    batch, done = integer("batch", batch), set(skip)
    mine = [p for p in shard_of(prompts, shard) if p.index not in done]
    if map is None:
        job.rows(mine)
    parts = _batches(mine, batch)

    def records() -> Iterator[dict[str, Any]]:
        for _, made in execute(parts, job.run, map=map):
            yield from made

    return records()


def shard_of(prompts: Sequence[Prompt], shard: tuple[int, int]) -> Sequence[Prompt]:
    """Part i of n parts of neighbours, sizes as equal as can be."""
    i, n = shard
    if not 0 <= i < n:
        raise OptionError(f"shard must be (i, n) with i from 0 to n - 1, not {shard!r}")
    return prompts[len(prompts) * i // n : len(prompts) * (i + 1) // n]


def _batches(prompts: Sequence[Prompt], most: int) -> list[list[Prompt]]:
    """Parts of at most `most` prompts whose numbers follow each other."""
    parts: list[list[Prompt]] = []
    for prompt in prompts:
        if parts and len(parts[-1]) < most and parts[-1][-1].index + 1 == prompt.index:
            parts[-1].append(prompt)
        else:
            parts.append([prompt])
    return parts


# ---------------------------------------------------------------------------------------------- the file


class Results:
    """A file of records, one JSON object per line, each on the disk before the next is made. A context manager.

    Args:
        path: it is made if it is missing, and goes on if it is there.
        job: what writes it.
        prompts: what the records are of.
        overwrite: begin it anew.

    Attributes:
        done: the numbers of the prompts whose record is in it.
        notes: what the user should know of the file.

    Raises:
        OptionError: it cannot be read or written; another run is writing it; it holds records of other settings, other prompts,
            or other weights of the model.
    """

    def __init__(self, path: str | Path, job: Job, prompts: Sequence[Prompt], *, overwrite: bool = False):
        self.path, self.job = Path(path), job
        self.done: set[int] = set()
        self.notes: list[str] = []
        self.weights: Any = None
        try:
            if self.path.exists() and not self.path.is_file():
                raise OSError(errno.EINVAL, "it is no file")
            # Without a buffer: what a full disk has no room for would stay in it, to be written once more by close().
            self._file = open(self.path, "r+b" if self.path.exists() else "w+b", buffering=0)  # noqa: SIM115 - see close()
        except OSError as error:
            raise OptionError(f"--out {self.path} cannot be written: {error.strerror or error}") from error
        try:
            self._lock()
            if overwrite:
                self._file.truncate(0)
            self._read({p.index: p for p in prompts})
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Results:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._file.close()

    def _lock(self) -> None:
        """Two writers would mix their lines."""
        with contextlib.suppress(ImportError):  # a system without flock
            import fcntl

            try:
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise OptionError(f"another run is writing {self.path}: wait for it, or give another --out") from None

    def _read(self, prompts: Mapping[int, Prompt]) -> None:
        content = self._file.read()
        whole = content.rfind(b"\n") + 1
        for number, line in enumerate(content[:whole].splitlines(), 1):
            if line.strip():
                self._check(line, f"{self.path}, line {number}", prompts)
        if whole < len(content):
            self.notes.append(f"the last line of {self.path} was cut off; it is dropped, and its prompt runs again")
        self._file.truncate(whole)
        self._file.seek(whole)

    def _check(self, line: bytes, where: str, prompts: Mapping[int, Prompt]) -> None:
        again = "give another --out, or --overwrite to begin it anew"
        try:
            record = json.loads(line)
            index, key = record["index"], record["key"]
        except (ValueError, KeyError, TypeError) as error:
            raise OptionError(f"{where} is no record of samplers generate; {again}") from error
        if key != self.job.key:
            asked = json.loads(json.dumps(self.job.made_by, default=str))
            others = [name for name in asked if record.get(name) != asked[name]]
            what = ", ".join(others) or "an argument of sample() such as gen_length or temperature"
            raise OptionError(f"{where} was written with other settings ({what}); {again}")
        if index not in prompts or prompts[index].content != record.get("prompt"):
            raise OptionError(f"{where} is of another prompt than number {index} of these; {again}")
        self._same_weights(record, where, again)
        self.done.add(index)

    def _same_weights(self, record: Mapping[str, Any], where: str, again: str) -> None:
        weights = record.get("weights")
        if self.weights is not None and weights is not None and weights != self.weights:
            raise OptionError(
                f"{where} was written by other weights ({weights}) of the model than those before it ({self.weights}); {again}"
            )
        self.weights = self.weights or weights

    def add(self, record: Mapping[str, Any]) -> None:
        """Append a record. It is on the disk when this returns.

        Raises:
            SamplersError: it cannot be written, as on a full disk; nothing of it is left in the file then.
            OptionError: the model's weights are not those of the records that were there.
        """
        self._same_weights(record, f"the record of prompt {record['index']}", "give another --out, or --overwrite")
        before = self._file.tell()
        try:
            line = json.dumps(record, ensure_ascii=False).encode() + b"\n"
            while line:  # one call may write a part of it
                line = line[self._file.write(line) :]
            os.fsync(self._file.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):
                self._file.truncate(before)
            raise SamplersError(
                f"{self.path} cannot be written: {error.strerror or error}. {len(self.done):,} records are safe in it; make "
                "room, and the same command goes on"
            ) from error
        self.done.add(int(record["index"]))
