"""TransformerDenoiser: a Transformer as the driver sees it, its head taken off, with all the caches it can have.

pretrained(name) makes it of a folder, or of a repository on the Hugging Face hub; other loaders are asked where the model is
none that Transformer can be.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..checks import check_room, device_of, flag, integer, optional_integer, shown
from ..denoiser import CacheUse, TextTokenizer, TokenDenoiser
from ..errors import ModelError, OptionError, did_you_mean
from .cache import Cache
from .families import GENERATION, Family, architecture_of, corrected, no_mask, recognise
from .load import ARCHITECTURES, _files, _read_json, load
from .tokenizer import Tokenizer
from .transformer import Transformer

__all__ = ["Checkpoint", "TransformerDenoiser", "describe", "pretrained", "read_spec"]

CACHES = {"full": ("prefix", "dual", "delayed"), "causal": ("prefix", "block"), "block_causal": ("block",)}


class TransformerDenoiser(TokenDenoiser):
    """A Transformer that denoises masked tokens, time-free: its prediction is of x alone.

    Args:
        model: its parameters say dtype and device. Rows of its head are the vocabulary.
        mask_id: the mask token, an id that the embedding has.
        name: how reports call it.
        length: the only canvas length it takes; None: any below the model's max_length.
        predicts_next: it was trained as ReFusion prescribes: at a token that is no mask it predicts the next one.
        shift: its answer for position i is in line i - 1 of its output, and that for position 0 in line 0 (Dream, Fast-dLLM
            v2). `hidden` and `predict` answer for the positions that they are asked about all the same. With a cache the
            position before each asked one must be given just before it.
        tokenizer: text to ids and back; ids beyond it are no part of the vocabulary.
        stop_ids: the tokens that end a text.

    Row i of a batch is what it is alone up to the order in which BLAS adds (see Transformer.forward): to be sure of the last bit,
    compare runs of the same batch.

    Raises:
        OptionError: mask_id is not an id of the embedding; the tokenizer has more ids than the embedding; shift together
            with predicts_next, which is a rule of its own for who answers for whom.
    """

    def __init__(
        self,
        model: Transformer,
        *,
        mask_id: int,
        name: str = "transformer",
        length: int | None = None,
        predicts_next: bool = False,
        shift: bool = False,
        tokenizer: TextTokenizer | None = None,
        stop_ids: Iterable[int] = (),
    ):
        c = model.config
        mask_id = integer("mask_id", mask_id, 0)
        if mask_id >= c.embeddings:
            raise OptionError(f"mask_id must be one of the {c.embeddings} ids that the model embeds, not {mask_id!r}")
        if shift and predicts_next:
            raise OptionError("shift and predicts_next do not go together: each says in which line an answer is")
        self.model, self.name = model.eval().requires_grad_(False), name
        self.length, self.max_length = optional_integer("length", length), c.max_length
        self.predicts_next, self.shift = predicts_next, shift
        self.takes_lengths, self.masks, self.attends = True, not shift, True
        self.mask_id, self.vocab_size = mask_id, c.vocab_size
        self.attention, self.caches = c.attention, CACHES[c.attention]
        self.attention_block, self.embedding = c.block_length or 1, (c.embeddings, c.width)
        self.device = model.embed.weight.device
        self.head = model.head
        self.learn(tokenizer, stop_ids)

    def learn(self, tokenizer: TextTokenizer | None, stop_ids: Iterable[int] = ()) -> None:
        """Take a tokenizer, whose ids bound the vocabulary, and the tokens that end a text, those that the model has.

        Raises:
            OptionError: the tokenizer has more ids than the embedding.
        """
        self.tokenizer = tokenizer
        if tokenizer is not None:
            if tokenizer.vocab_size > (most := self.model.config.embeddings):
                raise OptionError(
                    f"the tokenizer has {tokenizer.vocab_size} ids, and the model embeds {most}: it is another model's. Give "
                    "this model's own (tokenizer=, or hf:NAME?tokenizer=FOLDER), or none: tokenizer=False, with ids for prompts"
                )
            self.vocab_size = min(self.vocab_size, tokenizer.vocab_size)
            assert self.head is not None
            self.head = replace(self.head, weight=self.head.weight[: self.vocab_size])  # a view
        self.stop_ids = tuple(i for i in stop_ids if i < self.vocab_size)

    def new_cache(self, batch: int, length: int) -> Cache:
        """An empty cache for `batch` rows of `length` tokens."""
        return self.model.cache(batch, length)

    def predict(
        self,
        x: Tensor,
        t: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        cache: CacheUse | None = None,
        **more: Tensor | None,
    ) -> Tensor:
        return self._through_head(x, t, rows=rows, cache=cache, **more)

    def hidden(
        self,
        x: Tensor,
        t: Tensor | None = None,
        *,
        rows: Tensor | None = None,
        cache: CacheUse | None = None,
        lengths: Tensor | None = None,
        visible: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        told = self._told(x, t, cache, lengths)
        if visible is not None:
            told |= {"visible": visible, "positions": positions}
        elif cache is None:
            check_room("x", [x.shape[1]], self)
        return self._hidden(x, rows, told)

    def attended(
        self, x: Tensor, t: Tensor | None = None, *, rows: Tensor, lengths: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        maps: list[Tensor] = []
        out = self._hidden(x, rows, self._told(x, t, None, lengths) | {"maps": maps})
        total = maps[0].clone()
        for each in maps[1:]:
            total += each
        return out, total / len(maps)

    def _hidden(self, x: Tensor, rows: Tensor | None, told: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            if not self.shift:
                return self.model(x, rows=rows, **told).flatten(0, -2)
            if rows is None:
                lines = self.model(x, **told)
                return torch.cat([lines[:, :1], lines[:, :-1]], 1).flatten(0, -2)
            lines, answers = shifted_lines(rows)
            return self.model(x, rows=lines, **told)[answers]

    def _told(self, x: Tensor, t: Tensor | None, cache: CacheUse | None, lengths: Tensor | None) -> dict[str, Any]:
        """What Transformer.forward is told beside tokens and rows."""
        told: dict[str, Any] = {"count": lengths} if cache is None else told_of(x, cache)
        return told if self.extra is None else told | {"extra": self.extra}


def shifted_lines(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Where the answers are if that for column i is in line i - 1, and that for column 0 in line 0.

    Args:
        rows: (A, n) bool, the columns that are asked about.

    Returns:
        (A, n) bool, the lines that are needed, M of them; (N,) int64, which of these M answers for each asked column, both
        in row-major order. Line 0 may answer for two columns.
    """
    lines = torch.nn.functional.pad(rows[:, 1:], (0, 1))
    lines[:, 0] |= rows[:, 0]
    number = (lines.flatten().cumsum(0) - 1).view_as(rows)
    return lines, torch.cat([number[:, :1], number[:, :-1]], 1)[rows]


@dataclass(frozen=True)
class Checkpoint:
    """What can be known of a model's folder without its weights; `pretrained` loads what this describes.

    Attributes:
        name: as it was asked for. folder: where its files are.
        config: the content of config.json.
        family: what is recognised, with what the caller said in its place.
        tokenizer: that of the folder, or as given; None if there is none.
        remote: whether the model is code of its own in the folder, which only transformers can run.
        revision: the commit on the Hugging Face hub that the files are of; None: the folder is not the hub's.
    """

    name: str
    folder: Path
    config: Mapping[str, Any]
    family: Family
    tokenizer: TextTokenizer | None
    remote: bool
    revision: str | None


def describe(
    name: str | Path,
    *,
    tokenizer: Any = None,
    mask_id: int | None = None,
    shift: bool | None = None,
    attention: str | None = None,
    block_length: int | None = None,
    loader: str | None = None,
    trust_remote_code: bool = False,
    revision: str | None = None,
) -> Checkpoint:
    """What `pretrained` would load, with the same arguments and errors; no weights are read.

    A plain model that names no mask token is described as it is; `pretrained` cannot use it.
    """
    if not str(name):
        raise ModelError(
            "the name of a model is empty; give a folder, or a repository on the Hugging Face hub as owner/name"
        )
    folder = Path(name)
    if not folder.exists():
        folder = _fetched(str(name), revision, code=trust_remote_code)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ModelError(
            f"{name} has no config.json, which says what a model is: name the folder of a model, or a repository that holds one"
        )
    # SMDM's checkpoints are single files without a configuration.
    config: dict[str, Any] = {"architectures": ["SMDM"]} if folder.is_file() else _read_json(folder / "config.json")
    generation = folder / "generation_config.json"
    facts, ends = dict(config), None
    if generation.is_file() and (ends := _read_json(generation).get("eos_token_id")) is not None:
        facts["eos_token_id"] = ends
    family = recognise(facts)
    if ends is not None:
        family = replace(family, source={**family.source, "stop_ids": GENERATION})
    remote = bool(config.get("auto_map")) and family.loader == "transformers"
    if loader is not None:
        if loader not in ("ours", "transformers"):
            raise ModelError(f"loader={loader!r}: ours (samplers.models.Transformer) or transformers is needed")
        remote = bool(config.get("auto_map")) and loader == "transformers"
        if loader == "ours" and architecture_of(config) not in ARCHITECTURES:
            raise ModelError(f"{name}: loader='ours' loads {', '.join(ARCHITECTURES)}, not {architecture_of(config)!r}")
        family = replace(family, loader=loader)
    elif family.name == "unknown" and not remote:
        stated = architecture_of(config)
        raise ModelError(
            f"{folder}: unsupported architecture {stated!r}{did_you_mean(str(stated), ARCHITECTURES)} "
            f"Known: {', '.join(ARCHITECTURES)}; classes ForMaskedLM. If transformers knows it: loader='transformers' "
            "(hf:NAME?loader=transformers)"
        )
    if remote and not trust_remote_code:
        raise ModelError(
            f"{name} is {architecture_of(config)!r}, whose code comes with its weights and would run here. Read it first "
            f"({', '.join(sorted({str(v).partition('.')[0] + '.py' for v in config['auto_map'].values()}))}); then "
            "trust_remote_code=True, or hf:NAME?trust_remote_code=1 on the command line"
        )
    text = _tokenizer(tokenizer, folder, family, trust_remote_code)
    family = corrected(
        family,
        mask_id=mask_id,
        shift=shift,
        attention=attention,
        block_length=block_length,
        tokenizer=text,
        who=str(name),
    )
    return Checkpoint(str(name), folder, config, family, text, remote, _commit(folder))


def _commit(folder: Path) -> str | None:
    """The commit that a folder of the hub's cache is of: it keeps each in .../snapshots/ with 40 hex digits."""
    place = folder.absolute()
    return place.name if place.parent.name == "snapshots" and re.fullmatch("[0-9a-f]{40}", place.name) else None


def pretrained(
    name: str | Path,
    *,
    tokenizer: Any = None,
    mask_id: int | None = None,
    shift: bool | None = None,
    attention: str | None = None,
    block_length: int | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str = "cpu",
    trust_remote_code: bool = False,
    loader: str | None = None,
    **more: Any,
) -> TokenDenoiser:
    """The denoiser of a model's folder, or of a repository on the Hugging Face hub: `--denoiser hf:NAME`.

    The family is recognised by config.json (samplers.models.families), and brings its mask token, its attention, its
    blocks, whether its answers are shifted, and where texts end; `samplers show-model NAME` shows all this. The arguments
    correct what was recognised. Models that samplers.models.Transformer can be are loaded by samplers.models.load; DiT models
    and DiffusionGemma by their own modules; any other by transformers (samplers.models.from_transformers).

    Args:
        name: a folder, or owner/name, which huggingface_hub then fetches; or one safetensors file of SMDM's.
        tokenizer: text to ids and back: a tokenizer of transformers, a TextTokenizer, or the name of a folder that has one.
            None: the folder's own, if it has one (and transformers is installed). False: none.
        mask_id: the mask token. None: as config.json says (mask_token_id or mask_id), else the tokenizer, else the family.
        shift: True: the answer for position i is in line i - 1 of the model's output. None: as the family has it.
        attention: full, causal or block_causal: what the model's positions see. None: as the family has it. "causal" without
            a word on shift is a model that predicts the next token as well (ReFusion).
        block_length: positions per block of block_causal attention.
        dtype, device: of the weights, or their names, such as "bfloat16" and "cuda:0"; dtype None: as they are stored.
        trust_remote_code: whether Python files of the folder may run: of a model that only its own code can be, or of a
            tokenizer.
        loader: "transformers": let transformers load it, even if it could be loaded here. "ours": refuse everything else.
        more: for transformers' from_pretrained, where that loads the model: device_map, tp_plan, attn_implementation and so
            on. revision is also for the hub.

    Raises:
        ModelError: as of `load`; no such folder, and no huggingface_hub or nothing to be had from it; a plain causal model
            that names a mask token (it must be told how it denoises), or that names none; code of its own that is not
            trusted; a tokenizer larger than the embedding; a mask token that is not embedded; an argument that does not go
            with the loader.

    The denoiser's `recipe` is what the family's own code runs, and its `revision` the commit on the hub.
    """
    revision = more.get("revision")
    dtype = None if dtype is None else _dtype("dtype", dtype)
    device = device_of("device", device)
    found = describe(
        name,
        tokenizer=tokenizer,
        mask_id=mask_id,
        shift=None if shift is None else flag("shift", shift),
        attention=attention,
        block_length=block_length,
        loader=loader,
        trust_remote_code=flag("trust_remote_code", trust_remote_code),
        revision=revision,
    )
    made = _loaded(found, mask_id, shift, attention, block_length, dtype, device, more)
    made.recipe, made.revision = _recipe(found.family, made), found.revision
    return made


def _recipe(family: Family, made: TokenDenoiser) -> tuple[str, dict[str, Any]] | None:
    """The family's own sampler and settings, of which the cache depends on how the model was loaded."""
    if family.sampler == "refusion" and not made.caches:  # its verification is by a cache
        return None
    settings = dict(family.settings)
    if settings.get("cache") not in (None, *made.caches):
        del settings["cache"]
    return family.sampler, settings


def _loaded(
    found: Checkpoint,
    mask_id: int | None,
    shift: bool | None,
    attention: str | None,
    block_length: int | None,
    dtype: torch.dtype | None,
    device: torch.device | str,
    more: dict[str, Any],
) -> TokenDenoiser:
    """What `describe` has found, with its weights. The arguments are those of `pretrained`."""
    name, family = found.name, found.family
    if family.loader == "transformers":
        return _by_transformers(found, shift, attention, dtype, device, more)
    if family.loader == "diffusion_gemma":  # by transformers as well
        _goes_not(
            name, family, {"attention": attention, "shift": shift, "mask_id": mask_id, "block_length": block_length}
        )
        _files(found.folder)  # an error if there are pickles only
        gemma = importlib.import_module(".diffusion_gemma", __package__)
        return gemma.load(found.folder, tokenizer=found.tokenizer, dtype=dtype, device=device, **more)
    if others := sorted(more.keys() - {"revision"}):
        raise ModelError(
            f"{name}: {', '.join(others)} {'goes' if len(others) == 1 else 'go'} to transformers' from_pretrained, and this "
            f"model ({family.name}) is loaded without it; with loader='transformers' it is not"
        )
    if family.loader != "ours":
        _goes_not(name, family, {"attention": attention, "shift": shift, "block_length": block_length})
        where = (found.folder,) if family.loader == "smdm" else (found.folder, dict(found.config))
        module = importlib.import_module(f".{family.loader}", __package__)
        made = module.load(*where, mask_id=mask_id, dtype=dtype, device=device)
        made.learn(found.tokenizer, family.stop_ids)
        return made
    if family.mask_id is None:
        raise no_mask(str(name), family)
    model, _ = load(
        found.folder, attention=family.attention, block_length=family.block_length, dtype=dtype, device=device
    )
    try:
        return TransformerDenoiser(
            model,
            mask_id=family.mask_id,
            name=str(name),
            predicts_next=family.predicts_next,
            shift=family.shift,
            tokenizer=found.tokenizer,
            stop_ids=family.stop_ids,
        )
    except OptionError as error:
        raise ModelError(f"{name}: {error}") from error


def _goes_not(name: str | Path, family: Family, given: Mapping[str, Any]) -> None:
    """ModelError if one of the arguments is given, since this family is what it is."""
    wrong = [key for key, value in given.items() if value is not None]
    if wrong:
        raise ModelError(
            f"{name}: {', '.join(wrong)} cannot be told of a {family.name} model, which is what its files say"
        )


def _by_transformers(
    found: Checkpoint,
    shift: bool | None,
    attention: str | None,
    dtype: torch.dtype | None,
    device: torch.device | str,
    more: dict[str, Any],
) -> TokenDenoiser:
    """The model as transformers loads it, by the class that config.json names, or by the folder's own code."""
    try:
        import transformers
    except ImportError:
        raise ModelError(f"{found.name} needs transformers: pip install transformers") from None
    _files(found.folder)  # an error if there are pickles only
    stated = str((found.config.get("architectures") or ["AutoModel"])[0])
    maker: Any = getattr(transformers, stated, None)
    if found.remote:
        table = found.config["auto_map"]
        kinds = ("AutoModelForMaskedLM", "AutoModelForCausalLM", "AutoModel")
        maker = getattr(transformers, next((kind for kind in kinds if kind in table), "AutoModel"))
        more = {"trust_remote_code": True, **more}
    elif maker is None:
        raise ModelError(f"{found.name}: transformers {transformers.__version__} has no class {stated!r}")
    if dtype is not None:
        more = {"dtype": dtype, **more}
    try:
        model = maker.from_pretrained(str(found.folder), use_safetensors=True, **more)
    except Exception as error:  # its kind depends on which file or argument is wrong
        raise ModelError(f"{found.name}: transformers cannot load it: {' '.join(str(error).split())}") from error
    if "device_map" not in more and "tp_plan" not in more:
        model = model.to(device)
    family = found.family
    live = importlib.import_module(".hugging_face", __package__)
    return live.from_transformers(
        model,
        found.tokenizer,
        mask_id=family.mask_id,
        shift=family.shift or shift,  # None is not False: see `corrected`
        attention=attention if family.plain else family.attention,
        block_length=family.block_length,
        name=found.name,
    )


def _tokenizer(given: Any, folder: Path, family: Family, trust_remote_code: bool) -> TextTokenizer | None:
    """The tokenizer that `pretrained` is given or finds, or None."""
    if given is False:
        return None
    if given is not None and not isinstance(given, (str, Path)):
        if all(hasattr(given, what) for what in ("encode", "decode", "chat", "eos_ids")):
            return given
        from .hf_tokenizer import HuggingFaceTokenizer

        return HuggingFaceTokenizer(given)
    if given is None and family.name == "SamplersTransformer" and (folder / "vocab.json").is_file():
        return Tokenizer.load(folder / "vocab.json")
    from .hf_tokenizer import tokenizer_of

    if given is None and (folder.is_file() or importlib.util.find_spec("transformers") is None):
        return None  # a model of ids is better than none
    if given is not None and not Path(given).exists():
        _no_folder(str(given), "tokenizer=")
    found = tokenizer_of(folder if given is None else given, trust_remote_code=trust_remote_code)
    if given is not None and found is None:
        raise ModelError(f"tokenizer={str(given)!r}: there is no tokenizer in this folder")
    return found


SPEC = {
    "attention": str,
    "shift": bool,
    "mask_id": int,
    "block_length": int,
    "dtype": str,
    "device": str,
    "trust_remote_code": bool,
    "loader": str,
    "tokenizer": str,
    "revision": str,
}


def read_spec(text: str) -> tuple[str, dict[str, Any]]:
    """`NAME?attention=full&shift=1` as a name and the arguments of `pretrained`.

    Keys: attention, shift, mask_id, block_length, dtype (such as bfloat16), device, trust_remote_code, loader, tokenizer,
    revision. shift and trust_remote_code are 1 or 0. What is the name of a folder as it stands has no arguments.

    Raises:
        OptionError: a key that is not known, or a value that is none for it.
    """
    name, _, query = text.partition("?")
    if not name:
        raise OptionError(
            f"hf:{text}: a folder, or a repository on the Hugging Face hub as owner/name, is needed after hf:"
        )
    if Path(text).is_dir():
        return text, {}
    made: dict[str, Any] = {}
    for pair in filter(None, query.split("&")):
        key, sign, value = pair.partition("=")
        if key not in SPEC:
            raise OptionError(
                f"hf:{text}: there is no argument {key!r}{did_you_mean(key, SPEC)} There are {', '.join(SPEC)}"
            )
        if not sign or not value:
            raise OptionError(f"hf:{text}: {key} has no value; write {key}=VALUE")
        if key in made:
            raise OptionError(f"hf:{text}: {key} is there twice")
        made[key] = _value(text, key, value)
    return name, made


def _value(text: str, key: str, value: str) -> Any:
    kind = SPEC[key]
    if kind is bool:
        told = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}.get(value.lower())
        if told is None:
            raise OptionError(f"hf:{text}: {key} is 1 or 0, not {value!r}")
        return told
    if kind is int:
        least = int(key == "block_length")
        if not re.fullmatch(r"\d+", value) or int(value) < least:
            raise OptionError(f"hf:{text}: {key} is an integer of {least} or more, not {value!r}")
        return int(value)
    if key == "dtype":
        return _dtype(f"hf:{text}: dtype", value)
    return device_of("device", value) if key == "device" else value


def _no_folder(name: str, what: str = "") -> None:
    """ModelError if a name that is no folder cannot be that of a repository either, which is NAME or OWNER/NAME."""
    if name.startswith("hf:") or "?" in name:
        raise ModelError(
            f"{what}{name!r} is no folder; hf:NAME?attention=full is written on the command line, and here "
            "pretrained(NAME, attention='full')"
        )
    if not re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", name):
        raise ModelError(
            f"{what}{name!r} is no folder, and no repository on the Hugging Face hub can be called so; write the path of a "
            "folder that is there, or owner/name"
        )


def _dtype(name: str, value: Any) -> torch.dtype:
    """The dtype of weights that is given, or called so."""
    dtype = getattr(torch, value, None) if isinstance(value, str) else value
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise OptionError(f"{name} is float32, bfloat16, float16 or float64, not {shown(value)}")
    return dtype


def _fetched(name: str, revision: str | None = None, code: bool = False) -> Path:
    _no_folder(name)
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModelError(
            f"{name!r} is no folder; to have it fetched from the Hugging Face hub: pip install huggingface_hub"
        ) from None
    # Never a pickle. Of a tokenizer also merges.txt, tokenizer.model and templates; code only if it may run.
    patterns = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja"] + ["*.py"] * code
    more: dict[str, Any] = {} if revision is None else {"revision": revision}
    try:
        return Path(snapshot_download(name, allow_patterns=patterns, **more))
    except Exception as error:  # of many kinds: no such repository, no network, a name that cannot be one
        raise ModelError(
            f"{name!r} is no folder, and the Hugging Face hub does not give it. Check the name and the network; or fetch the "
            f"files on a machine that has one, and name their folder. It says: {' '.join(str(error).split())}"
        ) from error


def told_of(x: Tensor, feed: CacheUse) -> dict[str, Any]:
    """What Transformer.forward is told of a cache."""
    told = {"cache": feed.store, "store": feed.write}
    if feed.write == "fill":
        return told | {"runs": feed.rows, "count": feed.count}
    told |= {"positions": feed.positions, "keep": feed.keep}
    if feed.write != "scatter":
        return told | {"count": feed.count, "stored": feed.stored}
    index = feed.positions
    if feed.count is not None:
        index = torch.where(torch.arange(x.shape[1], device=x.device) < feed.count[:, None], index, -1)
    return told | {"index": index}
