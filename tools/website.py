"""Builds the site: `make docs`, or

    python tools/website.py [--out build/site]       # needs the extra `docs`: Sphinx, myst-parser, furo
    python tools/website.py --pages build/pages      # only write the pages that Sphinx would read

Pages are the files of the repository, at other places (PLACES, CONTENTS), with their links changed accordingly; a page for each
installed sampler and each family; and the interactive part of docs/choose.md. Nothing is fetched, at build time or by a reader.
"""

from __future__ import annotations

import argparse
import json
import posixpath
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tools")]

import measured  # noqa: E402
import reference  # noqa: E402

from samplers import registry  # noqa: E402
from samplers.errors import PluginError  # noqa: E402
from samplers.family import family_names  # noqa: E402

# The table of contents, by part. A page that does not exist yet has its place; '*' stands for every plug-in of this repository.
CONTENTS: dict[str, tuple[str, ...]] = {
    "Start": ("README.md", "docs/choose.md", "docs/README.md", "examples/README.md"),
    "Samplers": (
        "docs/samplers.md",
        "docs/zoo.md",
        "docs/rules.md",
        "docs/candidates_and_particles.md",
        "docs/self_speculation.md",
        "docs/speculative_copies.md",
        "docs/attention.md",
        "docs/remasking.md",
        "docs/solvers.md",
        "docs/guidance_and_plans.md",
        "docs/likelihood_and_schedules.md",
        "docs/problems.md",
    ),
    "Models and text": ("docs/models.md", "docs/text.md", "docs/constraints.md", "docs/evaluation.md"),
    "Caches, blocks, batches": (
        "docs/caches_and_slots.md",
        "docs/blocks_and_batches.md",
        "docs/windows.md",
        "docs/long_canvases.md",
    ),
    "Continuous solvers": (
        "docs/continuous.md",
        "docs/continuous_deterministic.md",
        "docs/continuous_noise.md",
        "docs/continuous_few_steps.md",
        "docs/continuous_grids.md",
        "docs/moments.md",
        "docs/which_solver.md",
        "docs/diffusers.md",
    ),
    "Plug-ins": (
        "docs/writing_a_sampler.md",
        "docs/new.md",
        "docs/check.md",
        "docs/hooks.md",
        "docs/own_family.md",
        "docs/engines.md",
        "plugins/*/README.md",
    ),
    "Reference": (
        "docs/cli.md",
        "docs/kernels.md",
        "docs/benchmarks.md",
        "docs/design.md",
        "CONTRIBUTING.md",
        "CHANGELOG.md",
    ),
}  # fmt: skip

# What a page is called in the table of contents, if not by its heading.
TITLES = {"docs/README.md": "What to read, and words <{}>", "docs/zoo.md": "All token samplers, measured <{}>"}


def contents() -> dict[str, list[str]]:
    """The pages of each part that exist, as paths in the repository.

    Raises:
        SystemExit: a page of docs/ has no place in CONTENTS.
    """
    found = {}
    for part, pages in CONTENTS.items():
        found[part] = [str(p.relative_to(ROOT)) for page in pages for p in sorted(ROOT.glob(page))]
    there = {page for pages in found.values() for page in pages}
    lost = sorted({f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md")} - there)
    if lost:
        raise SystemExit(f"{', '.join(lost)}: not in the table of contents; add it to CONTENTS in tools/website.py")
    return found


def place(page: str) -> str:
    """Where a page of the repository stands in the site, without its ending."""
    special = {"README.md": "index", "docs/README.md": "reading", "examples/README.md": "examples"}
    if page in special:
        return special[page]
    folder, name = posixpath.split(page)
    if folder.startswith("plugins/"):
        return folder
    return posixpath.splitext(name)[0].lower()


def slug(name: str) -> str:
    """The name of a sampler's page; that of 'dist:name' has no colon."""
    return name.replace(":", "--")


# ---------------------------------------------------------------------------------------------- links


def prose_of(text: str) -> Iterator[tuple[bool, str]]:
    """(whether it is a block of code, text), in order."""
    for part in re.split(r"(^ *```.*?^ *```[^\n]*$)", text, flags=re.M | re.S):
        yield part.lstrip().startswith("```"), part


def relinked(text: str, page: str, places: dict[str, str], samplers: dict[str, str], files: set[str]) -> str:
    """A page with its links changed to where the pages stand in the site.

    Args:
        samplers: the page in the site of each sampler, to which links into docs/samplers.md lead.
        files: gets the other files of the repository that are linked to; they stand under files/.
    """
    here = posixpath.dirname(places[page])

    def changed(match: re.Match[str]) -> str:
        words, address = match.groups()
        target, _, anchor = address.partition("#")
        if re.match(r"\w+:", address) or not target:
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(page), target))
        if path == "docs/samplers.md" and anchor in samplers:
            goal, anchor = samplers[anchor] + ".md", ""
        elif goal := places.get(path) or places.get(f"{path}/README.md", ""):
            goal += ".md"
            # A page that is called by its file is called by its heading here, which Sphinx puts into an empty link.
            words = "" if re.fullmatch(r"[\w./]+\.md", words) and not anchor else words
        elif (ROOT / path).is_file():
            files.add(path)
            goal = f"files/{path}"
        else:
            raise SystemExit(f"{page}: the link to {address} leads to no page and no file")
        return f"[{words}]({posixpath.relpath(goal, here or '.')}{'#' + anchor if anchor else ''})"

    return "".join(
        part if code else re.sub(r"\[([^\[\]]*)\]\(([^)\s]+)\)", changed, part) for code, part in prose_of(text)
    )


# ---------------------------------------------------------------------------------------------- pages


def registered() -> dict[str, list[str]]:
    """The samplers that work, by family: ours first, then those of plug-ins; what is broken is named on stderr."""
    found: dict[str, list[str]] = {}
    for name in registry.names():
        try:
            found.setdefault(registry.load(name).family, []).append(name)
        except PluginError as error:
            print(f"left out: {error}", file=sys.stderr)
    return {family: found[family] for family in family_names() if family in found}


def family_page(family: str, names: list[str]) -> str:
    lines = [
        f"# {family.replace('_', ' ').capitalize()} samplers",
        "",
        reference.about_family(family),
        "",
    ]
    lines += ["| sampler | what it does |", "|---|---|"]
    for name in names:
        item, said = registry.entry(name), reference.sentence(registry.load(name).summary)
        own = item.distribution == registry.DISTRIBUTION
        origin = "" if own else f" From the package {reference.package_link(item.distribution)}."
        lines.append(f"| [`{name}`](../samplers/{slug(name)}.md) | {reference.cell(reference.prose(said) + origin)} |")
    return "\n".join([*lines, "", *tree([f"../samplers/{slug(n)}" for n in names])])


def index_page(families: dict[str, list[str]]) -> str:
    """docs/samplers.md with links in place of its sections, which are pages here."""
    lines = [re.sub(r"^# .*", "# Samplers", reference.SAMPLERS_INTRO, count=1)]
    for family, names in families.items():
        links = [f"[`{n}`](samplers/{slug(n)}.md)" for n in names]
        lines += [f"## [{family.replace('_', ' ').capitalize()}](families/{family}.md)", ""]
        lines += [reference.about_family(family), "", ", ".join(links), ""]
    return "\n".join([*lines, *tree([f"families/{family}" for family in families])])


def tree(pages: list[str], caption: str = "") -> list[str]:
    """A part of the table of contents, which stands in the margin and not in the page."""
    return ["```{toctree}", ":hidden:", *([f":caption: {caption}"] if caption else []), "", *pages, "```", ""]


def chooser() -> str:
    """The interactive part of "Choose a sampler": its form, its data, and the script, which is a file of its own."""
    data = measured.data()
    for group in data["groups"]:
        group["points"] = [p | {"page": slug(_shown(p["sampler"], p["distribution"]))} for p in group["points"]]
    text = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("</", "<\\/")
    form = (ROOT / "docs/chooser.html").read_text(encoding="utf-8")
    lines = ["```{raw} html", form, f'<script type="application/json" id="measured">{text}</script>']
    return "\n".join([*lines, '<script src="_static/choose.js"></script>', "```"])


def _shown(sampler: str, distribution: str) -> str:
    """The name under which a measured sampler has its page; '' if it is not installed here."""
    for name in (sampler, f"{distribution}:{sampler}"):
        try:
            if registry.entry(name).distribution == distribution:
                return name
        except registry.UnknownNameError:
            continue
    return ""


def write_pages(folder: Path) -> None:
    """Write all that Sphinx reads."""
    parts, families = contents(), registered()
    places = {page: place(page) for pages in parts.values() for page in pages}
    samplers = {n: f"samplers/{slug(n)}" for names in families.values() for n in names}
    files: set[str] = set()

    def put(where: str, text: str) -> None:
        path = folder / f"{where}.md"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    for page, where in places.items():
        text = index_page(families) if page == "docs/samplers.md" else (ROOT / page).read_text(encoding="utf-8")
        if page != "docs/samplers.md":
            text = relinked(text, page, places, samplers, files)
        else:
            text = relinked_index(text, places, files)
        if page == "docs/choose.md":
            text = "---\nhide-toc: true\n---\n\n" + text.replace("<!-- chooser -->", chooser())
        if page == "README.md":
            trees = [
                tree([TITLES.get(p, "{}").format(places[p]) for p in pages if p != page], part)
                for part, pages in parts.items()
            ]
            text += "\n" + "\n".join(line for lines in trees for line in lines)
        put(where, text)
    for family, names in families.items():
        put(f"families/{family}", family_page(family, names))
        for name in names:
            put(samplers[name], reference.sampler_page(name))
    for file in files:
        (folder / "files" / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / file, folder / "files" / file)


def relinked_index(text: str, places: dict[str, str], files: set[str]) -> str:
    """The index, whose introduction links as docs/samplers.md does, and whose lists link within the site already."""
    head, mark, lists = text.partition("\n## ")
    return relinked(head, "docs/samplers.md", places, {}, files) + mark + lists


# ---------------------------------------------------------------------------------------------- building


def build(out: Path) -> int:
    """Build the site; the exit code of Sphinx, for which a warning is an error."""
    try:
        from sphinx.cmd.build import main as sphinx
    except ImportError:
        print(
            "the site needs Sphinx, myst-parser and furo: pip install 'sampler-zoo[docs]', or make docs",
            file=sys.stderr,
        )
        return 1
    with tempfile.TemporaryDirectory() as pages:
        write_pages(Path(pages))
        arguments = [
            "-q",
            "-W",
            "--keep-going",
            "-E",
            "-c",
            str(ROOT / "docs"),
            "-d",
            f"{pages}/.doctrees",
            pages,
            str(out),
        ]
        return sphinx(arguments)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Build the documentation as a static site.")
    parser.add_argument("--out", type=Path, default=ROOT / "build/site", help="folder of the site (build/site)")
    parser.add_argument("--pages", type=Path, help="only write the pages that Sphinx would read, into this folder")
    args = parser.parse_args(argv)
    if args.pages:
        write_pages(args.pages)
        return 0
    failed = build(args.out)
    if not failed:
        print(f"{args.out / 'index.html'}")
    return failed


if __name__ == "__main__":
    sys.exit(main())
