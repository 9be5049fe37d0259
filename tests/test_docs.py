"""The pages keep their word: their code runs, their links lead somewhere, and nothing public is in no page.

Blocks of a page run in order, in one namespace; lines of a block of shell run in order, in one folder. Two marks, on the line
before a block, are for readers of the source: `<!-- given: a, b -->` says which names the test puts there (STAND_INS),
`<!-- not run: why -->` that a block cannot run here. A page that begins with `<!-- needs: module -->` is run where that
module is installed. Files that a block of shell names, and a reader would have, are those of FILES.
"""

from __future__ import annotations

import ast
import contextlib
import io
import itertools
import json
import os
import re
import runpy
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from texts import tokenizer_folder
from torch import Tensor, nn

import samplers
from samplers import registry
from samplers.cli import main
from samplers.family import BUILT_IN
from samplers.models import families

ROOT = Path(__file__).resolve().parent.parent
PAGES = [p for p in ("README.md", "CONTRIBUTING.md", "examples/README.md") if (ROOT / p).exists()]
PAGES += sorted(str(p.relative_to(ROOT)) for p in (ROOT / "docs").glob("*.md"))
# Blocks that are not run. There must be a reason for each, and few of them.
NOT_RUN = {
    "README.md": 1,  # installing
    "CONTRIBUTING.md": 1,
    "docs/evaluation.md": 3,  # lm-eval's own command, four processes, Ray
    "docs/likelihood_and_schedules.md": 2,  # a user's own modules
    "docs/models.md": 1,  # checkpoints from the hub
    "docs/new.md": 1,  # publishing a user's own package
}
SMALL = {"--steps": "4", "--gen-length": "16", "--rows": "64", "--seeds": "1", "--batch": "2", "--nfe": "4"}

pytestmark = pytest.mark.usefixtures("one_thread")


@dataclass(frozen=True)
class Block:
    """A block of code in a page: where it begins, its language, its text, and the marks before it."""

    page: str
    line: int
    language: str
    code: str
    given: tuple[str, ...]
    not_run: str | None

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str) -> list[Block]:
    text = (ROOT / page).read_text(encoding="utf-8")
    found = []
    for match in re.finditer(
        r"(?:^<!-- (given|not run): ([^\n]*?) -->\n)?^( *)```(\w*)\n(.*?)^ *```", text, re.M | re.S
    ):
        mark, value, indent, language, code = match.groups()
        given = tuple(value.split(", ")) if mark == "given" else ()
        line = text.count("\n", 0, match.start(5))
        code = re.sub(f"^{indent}", "", code, flags=re.M)
        found.append(Block(page, line, language, code, given, value if mark == "not run" else None))
    return found


BLOCKS = {page: blocks_of(page) for page in PAGES}


# ---------------------------------------------------------------------------------------------- stand-ins


class Network(nn.Module):
    """Ids (B, L) to logits (B, L, 101): a small random model that sees its neighbours and knows where they stand."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.token, self.place = nn.Embedding(101, 32), nn.Embedding(64, 32)
            self.mix, self.head = nn.Conv1d(32, 32, 5, padding=2), nn.Linear(32, 101)

    @torch.no_grad()
    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.token(ids) + self.place(torch.arange(ids.shape[1]))
        return 3 * self.head(torch.tanh(self.mix(hidden.transpose(1, 2)).transpose(1, 2)))


def noise_net(x: Tensor, t: Tensor) -> Tensor:
    """The noise in x of data that is a standard normal under vp_linear: e = sigma x."""
    from samplers.schedule import noise_schedule

    return noise_schedule("vp_linear").sigma(t).view(-1, *[1] * (x.dim() - 1)).to(x) * x


def pipe() -> Any:
    """A Stable Diffusion pipeline with tiny random models, for texts that are given as `prompt_embeds`."""
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel

    few: dict[str, Any] = {"norm_num_groups": 4}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        kinds = {"down_block_types": ("CrossAttnDownBlock2D",), "up_block_types": ("CrossAttnUpBlock2D",)}
        unet = UNet2DConditionModel(
            sample_size=8, block_out_channels=(8,), cross_attention_dim=16, attention_head_dim=4, **kinds, **few
        )
        vae = AutoencoderKL(block_out_channels=(8,), **few)
    parts = dict.fromkeys(("text_encoder", "tokenizer", "safety_checker", "feature_extractor"))
    return StableDiffusionPipeline(
        vae=vae,
        unet=unet,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        requires_safety_checker=False,
        **parts,
    )


def dream(folder: Path) -> Path:
    """A folder as Dream's is, with a tokenizer, a chat template, and tiny random weights."""
    transformers = pytest.importorskip("transformers")
    tokenizer_folder(folder)  # 292 ids; 0 begins a text, 1 ends it, 2 is the mask
    config = transformers.Qwen2Config(
        vocab_size=320, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64, max_position_embeddings=512, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        transformers.Qwen2ForCausalLM(config).save_pretrained(folder)
    stated = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    stated |= {"architectures": ["DreamModel"], "mask_token_id": 2}
    (folder / "config.json").write_text(json.dumps(stated), encoding="utf-8")
    return folder


FILES: dict[str, Callable[[Path], object]] = {
    "my-model": dream,
    "prompts.txt": lambda path: path.write_text("The module\nReturn the\nA list of\n", encoding="utf-8"),
    "prompts.jsonl": lambda path: path.write_text('{"prompt": "The module", "id": 7}\n{"ids": [5, 6]}\n'),
}
STAND_INS: dict[str, Callable[[], Any]] = {
    "folder": lambda: dream(Path(tempfile.mkdtemp())),
    "network": Network,
    "noise_net": lambda: noise_net,
    "denoiser": lambda: samplers.problems.create("sudoku4").denoiser("masked"),
    "image": lambda: torch.zeros(3, 8, 8),
    "left_half": lambda: (torch.arange(8) < 4).expand(3, 8, 8),
    "pipe": pipe,
    "prompt_embeds": lambda: torch.ones(1, 5, 16),
    "negative_prompt_embeds": lambda: torch.zeros(1, 5, 16),
}
# A block that is given one of these is left out where its modules are not installed.
NEEDED = {"pipe": ("diffusers",), "folder": ("transformers",)}


# ---------------------------------------------------------------------------------------------- code runs


def need(page: str) -> None:
    """Leave the test out if the page needs a module that is not installed."""
    for needed in re.findall(r"\A<!-- needs: (\w+) -->$", (ROOT / page).read_text(encoding="utf-8"), re.M):
        pytest.importorskip(needed)


@pytest.mark.parametrize("page", [p for p in PAGES if any(b.language == "python" for b in BLOCKS[p])])
def test_python_blocks_run(page: str) -> None:
    need(page)
    module = type(sys)("page")
    sys.modules["page"] = module  # dataclasses look up their module
    try:
        for block in BLOCKS[page]:
            lacks = [name for name in block.given if not all(map(find_spec, NEEDED.get(name, ())))]
            if block.language != "python" or block.not_run or lacks:
                continue
            module.__dict__.update({name: STAND_INS[name]() for name in block.given})
            tree = ast.parse(block.code, filename=str(block))
            ast.increment_lineno(tree, block.line)
            with contextlib.redirect_stdout(io.StringIO()):
                exec(compile(tree, str(ROOT / page), "exec"), module.__dict__)
    finally:
        del sys.modules["page"]


def commands(block: Block) -> Iterator[tuple[str, list[str]]]:
    """(where, words) of each line of a block of shell."""
    for number, line in enumerate(block.code.replace("\\\n", " ").splitlines()):
        words = shlex.split(line, comments=True)
        if words:
            yield f"{block.page}:{block.line + number + 1}", words


def smaller(words: list[str]) -> list[str]:
    """The words of a `samplers` command, with small numbers where it has large ones, and without a live view."""
    words = [w for w in words if w != "--watch"]
    for flag, most in SMALL.items():
        if flag in words:
            at = words.index(flag) + 1
            words[at] = str(min(int(words[at]), int(most))) if words[at].isdigit() else most
    if words[0] == "bench" and "--seeds" not in words:
        words += ["--seeds", "1"]
    if words[0] == "tune":
        words += ["--refine", "0", "--grid", "0.5:1:2", "--steps", "4", "--seeds", "2"]
    if words == ["sample"]:
        words += ["--gen-length", "16"]
    return words


SHELL = [block for block in itertools.chain(*BLOCKS.values()) if block.language == "sh" and not block.not_run]


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path, here and in processes that are started: where a block's `pip install` puts its package."""
    folder = tmp_path / "site"
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")]))
    yield folder
    for name, module in list(sys.modules.items()):
        if str(getattr(module, "__file__", "")).startswith(str(folder)):
            del sys.modules[name]
    registry.reload()


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_shell_blocks_run(block: Block, tmp_path: Path, site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    need(block.page)
    monkeypatch.chdir(tmp_path)
    for name, make in FILES.items():
        if name in block.code:
            make(tmp_path / name)
    for where, words in commands(block):
        if words[:2] == ["samplers", "eval"]:
            pytest.importorskip("lm_eval")
        monkeypatch.setattr("sys.stdin", io.StringIO("The module\n"))  # what `samplers chat` is told
        if words[0] == "cd":
            monkeypatch.chdir(words[1])
        else:
            run(where, words, site)


def run(where: str, words: list[str], site: Path) -> None:
    if words[0] == "samplers":
        with contextlib.redirect_stdout(io.StringIO()) as out:
            assert main(smaller(words[1:])) == 0, f"{where}: samplers {shlex.join(words[1:])}"
        assert out.getvalue()
    elif words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M)
        assert set(words[1:]) <= set(targets), f"{where}: the Makefile has {', '.join(targets)}"
    elif words[:2] == ["pip", "install"] and words[-2:] == ["--editable", "."]:
        pytest.importorskip("pip")
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--target", str(site)]
        done = subprocess.run([*command, *words[2:-2], "."], capture_output=True, text=True)
        assert done.returncode == 0, f"{where}: {done.stderr}"
        registry.reload()
    elif words[0] == "pytest":  # the tests that it names are there; they have tests of their own
        command = [sys.executable, "-m", "pytest", "-o", "addopts=", "-p", "no:cacheprovider", "--collect-only"]
        done = subprocess.run([*command, *words[1:]], capture_output=True, text=True)
        assert done.returncode == 0, f"{where}: {done.stdout}{done.stderr}"
    elif words[0] == "python" and words[1].endswith(".py"):
        assert (ROOT / words[1]).is_file(), where
        ast.parse((ROOT / words[1]).read_text(encoding="utf-8"))
        source = (ROOT / words[1]).read_text(encoding="utf-8")
        for flag in (w for w in words[2:] if w.startswith("--")):
            assert f'"{flag}"' in source, f"{where}: {words[1]} has no {flag}"
    else:
        raise AssertionError(f"{where}: this test does not know how to check {shlex.join(words)!r}")


def test_blocks_that_are_not_run_are_few_and_say_why() -> None:
    counted = {page: sum(b.not_run is not None for b in blocks) for page, blocks in BLOCKS.items()}
    assert {page: n for page, n in counted.items() if n} == {p: n for p, n in NOT_RUN.items() if p in PAGES}
    assert all(b.not_run for blocks in BLOCKS.values() for b in blocks if b.not_run is not None)


def test_every_block_says_its_language() -> None:
    """A block without a language is a drawing, one of text is what is printed: they hold nothing that one could type."""
    for block in itertools.chain(*BLOCKS.values()):
        assert block.language in ("python", "sh", "toml", "text", ""), f"{block}: {block.language!r}"
        if not block.language:
            typed = re.search(r"^\s*(samplers |pip |make |python |import |from )", block.code, re.M)
            assert not typed, f"{block}: say ```sh or ```python"


@pytest.mark.parametrize("path", sorted(str(p.relative_to(ROOT)) for p in (ROOT / "examples").glob("*.py")))
def test_examples_run(path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = (ROOT / path).read_text(encoding="utf-8")
    assert len(source.splitlines()) < 60, "an example is read at one go"
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("samplers"):
            assert node.module in ("samplers", "samplers.authoring"), (
                f"{path} imports {node.module}, which is not public"
            )
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [path])
    with contextlib.redirect_stdout(io.StringIO()) as out:
        runpy.run_path(str(ROOT / path), run_name="__main__")
    assert out.getvalue().strip()
    assert Path(path).name in (ROOT / "examples/README.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------------------------------------- nothing is left out


def test_generated_pages_are_up_to_date() -> None:
    run = subprocess.run(
        [sys.executable, "tools/reference.py", "--check"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"SAMPLERS_PLUGINS": "none", "PYTHONPATH": str(ROOT)},
    )
    assert run.returncode == 0, run.stderr


def built_in() -> list[str]:
    return [n for n in registry.names() if registry.entry(n).distribution == registry.DISTRIBUTION]


def test_every_sampler_and_its_options_are_in_the_pages() -> None:
    page = (ROOT / "docs/samplers.md").read_text(encoding="utf-8")
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    pages = ("zoo", "rules", "candidates_and_particles", "self_speculation", "attention", "windows")
    tables = [*(ROOT / f"docs/{page}.md" for page in pages), *sorted(ROOT.glob("docs/continuous_*.md"))]
    zoo = "".join(path.read_text(encoding="utf-8") for path in tables)
    for name in built_in():
        section = re.search(rf"^### {name}\n(.*?)(?=^##|\Z)", page, re.M | re.S)
        assert section, f"docs/samplers.md lacks {name}"
        assert f"`{name}`" in readme + zoo, f"neither the README nor a table of samplers names {name}"
        for option in registry.load(name).options():
            assert f"| `{option.name}` |" in section[1], f"docs/samplers.md: {name} lacks {option.name}"


def test_every_command_and_flag_is_in_the_pages() -> None:
    page = (ROOT / "docs/cli.md").read_text(encoding="utf-8")
    with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
        main(["--help"])
    names = re.findall(r"^    (\w+) ", out.getvalue(), re.M)
    assert len(names) >= 8
    for name in names:
        section = re.search(rf"^## samplers {name}\n(.*?)(?=^## |\Z)", page, re.M | re.S)
        assert section, f"docs/cli.md lacks {name}"
        with contextlib.redirect_stdout(io.StringIO()) as out, pytest.raises(SystemExit):
            main([name, "--help"])
        for flag in set(re.findall(r"^  (?:-\w [^-]*, |-\w, )?(--[a-z][\w-]*)", out.getvalue(), re.M)) - {"--help"}:
            assert f"`{flag}" in section[1], f"docs/cli.md: {name} lacks {flag}"


def test_every_family_of_models_is_in_its_table_with_its_sampler_and_settings() -> None:
    page = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    table = re.search(r"^\| family \| `pretrained.*\n(?:\|.*\n)+", page, re.M)
    assert table
    rows = [line.split("|")[1:-1] for line in table[0].splitlines()[2:]]
    for architecture in set(families.KNOWN) - {"SamplersTransformer"}:
        family = families.recognise({"architectures": [architecture]})
        (row,) = [row for row in rows if re.search(rf"(?<![\w-]){re.escape(family.name)}(?![\w-])", row[0])]
        settings = ", ".join(f"{key}={value!r}" for key, value in family.settings.items()).replace("'", '"')
        said = [f"`{text}`" for text in (family.sampler, settings) if text]
        assert row[2].strip() == ", ".join(said), f"docs/models.md: {family.name}"


def test_every_public_name_for_authors_is_in_the_guide() -> None:
    import samplers.authoring as authoring

    guide = (ROOT / "docs/writing_a_sampler.md").read_text(encoding="utf-8")
    missing = [name for name in authoring.__all__ if not re.search(rf"\b{name}\b", guide)]
    assert not missing, f"docs/writing_a_sampler.md does not mention {', '.join(missing)}"
    for block in BLOCKS["docs/writing_a_sampler.md"]:
        for module in re.findall(r"^from (samplers\S*) import", block.code, re.M):
            assert module == "samplers.authoring", f"{block}: imports from {module}"


def test_every_fact_is_explained_in_the_guide() -> None:
    from samplers.authoring import Conformance, Facts

    guide = (ROOT / "docs/writing_a_sampler.md").read_text(encoding="utf-8")
    for field in (*Facts.__dataclass_fields__, *Conformance.__dataclass_fields__):
        assert f"| `{field}` |" in guide, f"docs/writing_a_sampler.md does not explain {field}"


def anchors(page: Path) -> set[str]:
    heads = re.findall(
        r"^#+ (.*)$", re.sub(r"^```.*?^```", "", page.read_text(encoding="utf-8"), flags=re.M | re.S), re.M
    )
    return {re.sub(r"[^\w\- ]", "", h.lower().replace("`", "")).replace(" ", "-") for h in heads}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (ROOT / page).parent / path if path else ROOT / page
        assert file.exists(), f"{page}: {target}"
        if anchor:
            assert anchor in anchors(file), f"{page}: {target}; the page has {sorted(anchors(file))}"


@pytest.mark.parametrize("page", PAGES)
def test_tables_are_rectangular(page: str) -> None:
    text = re.sub(r"^```.*?^```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.M | re.S)
    for table in re.findall(r"(?:^ *\|.*\n)+", text, re.M):
        rows = [re.split(r"(?<!\\)\|", line.strip())[1:-1] for line in table.splitlines()]
        assert set("".join(rows[1])) <= set("-: "), f"{page}: a table needs a line of dashes after {rows[0]}"
        assert {len(row) for row in rows} == {len(rows[0])}, f"{page}: rows of different widths under {rows[0]}"


def test_every_page_is_in_the_reading_order() -> None:
    index = (ROOT / "docs/README.md").read_text(encoding="utf-8")
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"]({page.name})" in index, f"docs/README.md lacks {page.name}"


# ---------------------------------------------------------------------------------------------- the guide's samplers


def test_the_guides_samplers_keep_their_promises(tmp_path: Path) -> None:
    """The samplers of the guide, as a package of their own, pass the parts of the kit that are about what they declare."""
    parts = [
        block.code
        for block in BLOCKS["docs/writing_a_sampler.md"]
        if block.language == "python" and not block.not_run and "samplers.sample(" not in block.code.split("class ")[0]
    ]
    kept = []
    for code in parts:  # imports and classes, without what is run
        tree = ast.parse(code)
        tree.body = [n for n in tree.body if isinstance(n, (ast.ImportFrom, ast.Import, ast.ClassDef))]
        kept.append(ast.unparse(tree))
    (tmp_path / "guide_samplers.py").write_text(
        "from __future__ import annotations\n" + "\n".join(kept), encoding="utf-8"
    )
    names = {"sure": "Sure", "steady": "Steady", "doubt": "Doubt", "heun_snr": "HeunSnr", "heun_euler": "HeunEuler"}
    info = tmp_path / "guide_samplers-0.1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: guide-samplers\nVersion: 0.1\n", encoding="utf-8")
    lines = "\n".join(f"{name} = guide_samplers:{cls}" for name, cls in names.items())
    (info / "entry_points.txt").write_text(f"[samplers]\n{lines}\n", encoding="utf-8")
    checks = "facts or options or row_of_a_batch or declared or sure_model or finite"
    chosen = itertools.chain(*(("--sampler", name) for name in names))
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    command = [sys.executable, "-m", "pytest", "-vv", "-x", "-p", "no:cacheprovider", "samplers/testing"]
    run = subprocess.run(
        [*command, *chosen, "-k", checks],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-2000:]
    assert "test_promise[heun_snr-declared_order] PASSED" in run.stdout
    assert "test_promise[heun_euler-limits_are_finite-to_sigma_0] PASSED" in run.stdout
    assert "test_promise[doubt-counted_nfe_is_the_declared-steps=5] PASSED" in run.stdout


# ---------------------------------------------------------------------------------------------- habits


def test_workflow_and_forms_say_what_the_project_says() -> None:
    yaml = pytest.importorskip("yaml")

    def read(path: str) -> Any:
        return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))

    jobs = read(".github/workflows/ci.yml")["jobs"]
    matrix = jobs["test"]["strategy"]["matrix"]
    assert matrix["python"] == ["3.10", "3.11", "3.12", "3.13"]
    assert {(job["os"], job["kernels"]) for job in matrix["include"]} == {
        ("ubuntu-latest", "twins"),
        ("macos-latest", "twins"),
    }
    form = read(".github/ISSUE_TEMPLATE/sampler_proposal.yml")
    asked = {field["id"]: field["attributes"] for field in form["body"] if "id" in field}
    assert {"paper", "equation", "family", "nfe", "bias", "reference", "test"} <= asked.keys()
    assert asked["family"]["options"] == list(BUILT_IN)
    assert {b for b in asked["bias"]["options"] if " " not in b} == {"exact", "asymptotic", "biased"}
    assert read("CITATION.cff")["version"] == registry.version()
    (repo,) = read(".pre-commit-config.yaml")["repos"]
    assert repo["repo"] == "local"
    for hook in repo["hooks"]:
        words = hook["entry"].split()
        assert words[0] != "python" or (ROOT / words[1]).is_file(), hook["entry"]
