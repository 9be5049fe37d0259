"""The site: every sampler has its page, every page its place, the chooser's data and its ranking are sound, and Sphinx builds it."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import math
import random
import re
import shlex
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from samplers import hookspecs, registry
from samplers.cli import _parser, main

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = ROOT / "docs/_static/choose.js"


def tool(name: str) -> ModuleType:
    """A script of tools/ as a module."""
    spec = importlib.util.spec_from_file_location(name, ROOT / f"tools/{name}.py")
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


measured, website = tool("measured"), tool("website")


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Sphinx reads."""
    folder = tmp_path_factory.mktemp("pages")
    website.write_pages(folder)
    return folder


# ---------------------------------------------------------------------------------------------- pages


def test_every_sampler_has_a_page_with_all_that_it_says_of_itself(pages: Path) -> None:
    for names in website.registered().values():
        for name in names:
            item, cls = registry.entry(name), registry.load(name)
            page = (pages / f"samplers/{website.slug(name)}.md").read_text(encoding="utf-8")
            assert page.startswith(f"# {name}\n")
            for option in cls.options():
                assert f"| `{option.name}` |" in page, f"{name} lacks {option.name}"
            # Every word of the docstring is there, whatever the marks around it.
            said, shown = (set(re.findall(r"[A-Za-z]{3,}", text)) for text in (cls.__doc__, page))
            assert said <= shown, f"{name} lacks {sorted(said - shown)}"
            if cls.cite:
                assert "```bibtex\n@misc{" in page, f"{name} has no citation"
            assert "## Source\n" in page, f"{name} has no source"
            assert (item.distribution == registry.DISTRIBUTION) != (f"`{item.distribution}`" in page), name
            assert bool(measured.of_sampler(cls.name, item.distribution)) == ("<svg" in page), name


def test_the_pages_commands_are_ones_that_the_command_line_takes(pages: Path) -> None:
    for path in sorted((pages / "samplers").glob("*.md")):
        (line,) = re.findall(r"^samplers sample .*", path.read_text(encoding="utf-8"), re.M)
        args = _parser().parse_args(shlex.split(line)[1:])
        assert registry.load(args.sampler).family == (args.family or "masked"), line


def test_a_page_shows_equations_as_they_are_written_and_escapes_the_rest(pages: Path) -> None:
    page = (pages / "samplers/dpmpp_2m.md").read_text(encoding="utf-8")
    assert "```text\nx_t = (s_t / s_s) x_s - a_t (e^{-h} - 1) D," in page
    assert "DPMSolverMultistepScheduler" in page and "DPM++ 2M" in page
    page = (pages / "samplers/remdm.md").read_text(encoding="utf-8")
    block = page.split("cap      min(eta, sigma_max).")[1].split("```")[0]
    assert "\n         about one token per step." in block, "the second line of a row stays below the first"


def test_every_page_of_the_repository_is_in_the_table_of_contents(pages: Path) -> None:
    parts = website.contents()
    there = [page for listed in parts.values() for page in listed]
    assert len(there) == len(set(there))
    readmes = [f"plugins/{p.parent.name}/README.md" for p in (ROOT / "plugins").glob("*/README.md")]
    wanted = {f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")} | set(readmes) | {"README.md", "CHANGELOG.md"}
    assert wanted <= set(there)
    trees = re.findall(r"```\{toctree\}\n.*?```", (pages / "index.md").read_text(encoding="utf-8"), re.S)
    assert len(trees) == len(parts)
    for page in set(there) - {"README.md"}:
        where = website.place(page)
        assert re.search(rf"^(.* <)?{re.escape(where)}>?$", "\n".join(trees), re.M), page
        assert (pages / f"{where}.md").is_file()


def test_a_page_without_a_place_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(
        website.CONTENTS, "Reference", tuple(p for p in website.CONTENTS["Reference"] if "kernels" not in p)
    )
    with pytest.raises(SystemExit, match=r"docs/kernels\.md: not in the table of contents; add it to CONTENTS"):
        website.contents()


def test_links_follow_the_pages_to_their_places() -> None:
    places = {
        "README.md": "index",
        "docs/zoo.md": "zoo",
        "docs/samplers.md": "samplers",
        "plugins/samplers-hello/README.md": "plugins/a",
    }
    files: set[str] = set()

    def relinked(text: str, page: str) -> str:
        return website.relinked(text, page, places, {"radd": "samplers/radd"}, files)

    assert (
        relinked("[a](docs/zoo.md#b) [c](https://d.e) [f](#g)", "README.md") == "[a](zoo.md#b) [c](https://d.e) [f](#g)"
    )
    assert relinked("[a](samplers.md#radd), [b](../README.md)", "docs/zoo.md") == "[a](samplers/radd.md), [b](index.md)"
    assert relinked("[a](../../docs/zoo.md)", "plugins/samplers-hello/README.md") == "[a](../zoo.md)"
    assert relinked("[a](plugins/samplers-hello)", "README.md") == "[a](plugins/a.md)"
    assert relinked("[docs/zoo.md](docs/zoo.md), ![a](LICENSE)", "README.md") == "[](zoo.md), ![a](files/LICENSE)"
    assert relinked("[a](LICENSE)", "README.md") == "[a](files/LICENSE)" and "LICENSE" in files
    assert relinked("```\n[a](docs/zoo.md)\n```", "README.md") == "```\n[a](docs/zoo.md)\n```"
    with pytest.raises(SystemExit, match="docs/nowhere"):
        relinked("[a](docs/nowhere.md)", "README.md")


@pytest.mark.skipif(not (ROOT / "docs/hooks.md").exists(), reason="there is no hooks reference")
def test_every_hook_has_a_section() -> None:
    heads = re.findall(r"^#+ .*", (ROOT / "docs/hooks.md").read_text(encoding="utf-8"), re.M)
    hooks = [name for name, value in vars(hookspecs).items() if hasattr(value, "samplers_spec")]
    assert hooks
    assert not [name for name in hooks if not any(re.search(rf"\b{name}\b", head) for head in heads)]


# ---------------------------------------------------------------------------------------------- measurements


def test_what_was_measured_is_sound() -> None:
    groups = measured.groups()
    assert {g["data"] for g in groups} == set(measured.PROBLEMS)
    assert len({g["temperature"] for g in groups if g["problem"] == "sudoku4"}) >= 3
    own = {n for n in registry.names() if registry.entry(n).distribution == registry.DISTRIBUTION}
    seen = set()
    for group in groups:
        assert group["primary"] in group["metrics"] and group["points"] and group["budgets"]
        for p in group["points"]:
            if p["distribution"] == registry.DISTRIBUTION:
                assert p["sampler"] in own, f"{p['sampler']} is measured, and no longer a sampler"
                assert p["family"] == registry.load(p["sampler"]).family
                seen.add(p["sampler"])
            assert 0 < p["nfe"] < math.inf and (p["seconds"] is None or 0 < p["seconds"] < math.inf)
            for metric in group["metrics"]:
                value, low, high = p[metric]
                assert all(map(math.isfinite, p[metric])) and low <= value <= high, (group["id"], p)
    # These need a causal model, or a network's attention; exact problems are neither.
    assert own - seen == {"autoregressive", "refusion", "strided", "dawn"}, (
        "measure what is new: python bench/zoo.py --samplers NAME"
    )


def test_the_page_of_all_token_samplers_says_what_was_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    zoo = importlib.import_module("zoo")
    saved = json.loads(zoo.SAVED.read_text(encoding="utf-8"))
    said, page = zoo.PAGE.read_text(encoding="utf-8"), tmp_path / "zoo.md"
    empty = re.sub(r"(<!-- [\w ]+ -->\n).*?(\n<!-- end -->)", r"\1\2", said, flags=re.S)
    assert empty != said
    page.write_text(empty, encoding="utf-8")
    monkeypatch.setattr(zoo, "PAGE", page)
    monkeypatch.setattr(zoo, "picture", lambda views, path: None)
    zoo.write(saved)
    assert page.read_text(encoding="utf-8") == said, "python bench/zoo.py --write"


def test_a_rule_is_set_against_the_blind_order_at_the_same_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    zoo = importlib.import_module("zoo")
    # latin3 has 9 positions. [value, passes, row evaluations, share of invalid rows, distance, low, high]
    blind = [[n, float(n), float(n), 0.0, 1 - n / 10, 0.95 - n / 10, 1.05 - n / 10] for n in range(1, 10)]
    rule = [
        [0.9, 4.9, 4.9, 0.0, 0.3, 0.25, 0.35],
        [0.5, 2.2, 2.2, 0.0, 0.95, 0.9, 1.0],
        [0.1, 1.0, 1.0, 0.0, 0.99, 0.9, 1.1],
    ]
    copies = [[4, 2.0, 8.0, 0.0, 0.5, 0.45, 0.55]]
    part = {"rows": 400, "metric": "tv", "exact": 0.1, "runs": {
        "masked/random_order": {"knob": "steps", "runs": blind}, "masked/threshold": {"knob": "threshold", "runs": rule},
        "masked/info_gain": {"knob": "steps", "runs": copies}}}  # fmt: skip
    view = zoo.View({"runs": {"latin3": part}}, valid=False)

    def scaled(distance: float) -> float:  # exact samples have 0.1, all at once 0.9
        return (distance - 0.1) / 0.8

    # Within L/4, three passes: the better of the two settings that cost no more. It took 2.2 passes: the blind order two or three.
    made = view.at("puzzle", "threshold", 4)
    assert made.own.loss == pytest.approx(scaled(0.95)) and made.own.passes == pytest.approx(2.2 / 9)
    assert (made.less.loss, made.more.loss) == pytest.approx((scaled(0.8), scaled(0.7))) and made.beaten
    # Within L/2, five: one setting costs 4.9. It is ahead of the blind order at four passes and at five.
    made = view.at("puzzle", "threshold", 2)
    assert (made.own.loss, made.less.loss, made.more.loss) == pytest.approx((scaled(0.3), scaled(0.6), scaled(0.5)))
    assert made.own.half == pytest.approx(0.05 / 0.8) and made.ahead and not made.beaten
    # Two passes of four copies are ahead of the blind order by passes, and beaten by its eight at as many row evaluations.
    made, paid = view.at("puzzle", "info_gain", 4), view.at("puzzle", "info_gain", 4, rows=True)
    assert made.ahead and (made.own.loss, made.less.loss, made.more.loss) == pytest.approx(
        [scaled(v) for v in (0.5, 0.8, 0.8)]
    )
    assert paid.beaten and (paid.less.loss, paid.more.loss) == pytest.approx((scaled(0.2), scaled(0.2)))
    table = zoo.beaten_table(view)
    assert "`threshold`" in table and "`info_gain`" not in table and "L/4: 1.06 ± 0.06, blind 0.88 ± 0.06" in table
    assert "`info_gain`" in zoo.beaten_table(view, rows=True)
    assert zoo.View({"runs": {"latin3": part}}, valid=False).at("puzzle", "info_gain", 8) is not None


def random_points(rng: random.Random, count: int) -> list[dict[str, Any]]:
    """Points of a few samplers on a grid so coarse that there are ties of all kinds."""
    points = []
    for _ in range(count):
        value, low, high = rng.randrange(8) / 4, rng.randrange(4) / 8, rng.randrange(4) / 8
        points.append(
            {
                "sampler": rng.choice("abcdefgh"), "distribution": rng.choice("xy"), "nfe": rng.randrange(1, 9) * 1.0,
                "seconds": rng.choice([None, 0.5, 1.0]), "m": [value, value - low, value + high],
            }
        )  # fmt: skip
    return points


def test_the_ranking_is_what_it_is_said_to_be() -> None:
    rng = random.Random(0)
    for _ in range(200):
        points, budget, cost = (
            random_points(rng, rng.randrange(30)),
            rng.randrange(1, 9),
            rng.choice(["nfe", "seconds"]),
        )
        ranked = measured.ranking(points, "m", budget, cost)
        paid = [p for p in points if p[cost] is not None and p[cost] <= budget * 1.005]
        assert len(ranked) == len({(p["distribution"], p["sampler"]) for p in paid})
        for rank, p in ranked:
            assert p in paid
            same = [q for q in paid if (q["distribution"], q["sampler"]) == (p["distribution"], p["sampler"])]
            assert p["m"][0] == min(q["m"][0] for q in same)
            assert rank == 1 + sum(q["m"][2] < p["m"][1] for _, q in ranked)
        assert [r for r, _ in ranked] == sorted(r for r, _ in ranked)
        if ranked:  # whoever overlaps the first is first as well, and the first is not beaten for sure
            first = min((p for _, p in ranked), key=lambda p: p["m"][2])
            assert all((rank == 1) == (p["m"][1] <= first["m"][2]) for rank, p in ranked)
    common = {"distribution": "x", "nfe": 1.0, "seconds": None}
    two = [common | {"sampler": "a", "m": [0.2, 0.1, 0.3]}, common | {"sampler": "b", "m": [0.5, 0.4, 0.6]}]
    assert [(r, p["sampler"]) for r, p in measured.ranking(two, "m", 1)] == [(1, "a"), (2, "b")]
    assert measured.ranking(two, "m", 0.5) == [] and measured.ranking(two, "m", 1, "seconds") == []


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_the_browser_ranks_as_python_does_and_writes_lines_that_run() -> None:
    rng = random.Random(1)
    cases = [
        [random_points(rng, rng.randrange(30)), "m", rng.randrange(1, 9), rng.choice(["nfe", "seconds"])]
        for _ in range(100)
    ]
    groups = measured.data()["groups"]
    cases += [[g["points"], m, b, "nfe"] for g in groups for m in g["metrics"] for b in g["budgets"]]
    program = (
        f"const c = require({json.dumps(str(SCRIPT))}), input = JSON.parse(require('fs').readFileSync(0, 'utf8'));"
        "const ranked = input.cases.map((a) => c.ranking(...a).map((r) => [r.rank, r.point]));"
        "const lines = input.groups.map((g) => g.points.map((p) => [c.shellLine(g, p), c.pythonLines(g, p)]));"
        "console.log(JSON.stringify({ranked, lines}))"
    )
    given = json.dumps({"cases": cases, "groups": groups})
    run = subprocess.run(["node", "-e", program], input=given, capture_output=True, text=True, check=True)
    found = json.loads(run.stdout)
    for case, ranked in zip(cases, found["ranked"]):
        assert ranked == [list(r) for r in measured.ranking(*case)]
    parser, known = _parser(), set(registry.names())
    for group, lines in zip(groups, found["lines"]):
        one_of_each = {p["sampler"]: (p, line) for p, line in zip(group["points"], lines)}
        for p, (shell, python) in one_of_each.values():
            args = parser.parse_args(shlex.split(shell)[1:])
            assert (args.problem, args.sampler) == (group["problem"], p["sampler"])
            if p["sampler"] in known:
                options = {o.name: o for o in registry.load(p["sampler"]).options()}
                given_options = dict(text.split("=") for text in args.option or ())
                assert {k: options[k].parse(v) for k, v in given_options.items()} == (
                    {} if p["knob"] == "steps" else {p["knob"]: p["value"]}
                )
            compile(python, p["sampler"], "exec")
    for group, lines in zip(groups, found["lines"]):  # one line and one program of each problem are run
        if group["data"] in ("sudoku4", "mixture") and group["temperature"] in (None, 1.0):
            shell, python = lines[0]
            with contextlib.redirect_stdout(io.StringIO()) as out:
                assert main(shlex.split(shell)[1:]) == 0
            assert out.getvalue()
            namespace: dict[str, Any] = {}
            exec(python, namespace)
            assert namespace["out"].x.shape[0] == 16


def test_plots_show_the_points_of_their_sampler() -> None:
    for group in measured.groups():
        for p in group["points"][:40:13]:
            drawing = measured.plot(group, p["sampler"], p["distribution"], p["family"])
            own = [q for q in group["points"] if (q["sampler"], q["distribution"]) == (p["sampler"], p["distribution"])]
            assert drawing.count('<circle class="own"') == len(own)
            places = [float(v) for pair in re.findall(r'points="([^"]*)"', drawing) for v in re.split("[ ,]", pair)]
            assert all(0 <= v <= measured.WIDTH for v in places)


# ---------------------------------------------------------------------------------------------- the whole


class Reader(HTMLParser):
    """The addresses that a page asks for, and those that it links to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[str] = []
        self.linked: list[str] = []
        self.ids: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for key, value in attrs:
            if key == "id" and value:
                self.ids.add(value)
            elif tag == "a" and key == "href" and value:
                self.linked.append(value)
            elif key in ("src", "href") and value and tag in ("script", "link", "img", "iframe"):
                self.asked.append(value)


def test_sphinx_builds_the_site_and_nothing_in_it_is_fetched(tmp_path: Path) -> None:
    for needed in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(needed)
    run = subprocess.run(
        [sys.executable, "tools/website.py", "--out", tmp_path], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout + run.stderr
    read = {}
    for path in tmp_path.rglob("*.html"):
        if "_static" not in path.parts:
            read[path] = Reader()
            read[path].feed(path.read_text(encoding="utf-8"))
    assert tmp_path / "choose.html" in read and tmp_path / "samplers/radd.html" in read
    for path, reader in read.items():
        assert not [a for a in reader.asked if re.match(r"\w+:|//", a) and not a.startswith("data:")], path
        for link in reader.linked:
            target, _, anchor = link.partition("#")
            if re.match(r"\w+:", link):
                continue
            goal = (path.parent / target).resolve() if target else path
            assert goal.exists(), f"{path.name}: {link}"
            if anchor and goal in read and goal.name != "choose.html":
                assert anchor in read[goal].ids, f"{path.name}: {link}"
