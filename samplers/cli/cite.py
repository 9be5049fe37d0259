"""`samplers cite`."""

from __future__ import annotations

import argparse
import re

from .. import registry
from ..errors import SamplersError
from .arguments import Commands, command


def _key(text: str) -> str:
    return re.sub(r"[^A-Za-z0-9]+", "_", text).strip("_")


def _escaped(text: str) -> str:
    return re.sub(r"([&%$#_{}])", r"\\\1", text)


def _bibtex(kind: str, key: str, fields: dict[str, str]) -> str:
    lines = [f"  {name} = {{{value}}}" for name, value in fields.items()]
    return f"@{kind}{{{key},\n" + ",\n".join(lines) + "\n}"


def citation(cite: str, key: str) -> str:
    """The BibTeX entry of 'Authors year, Title, arXiv id'; a text of another form becomes its note."""
    cite = " ".join(cite.split())
    if shape := re.fullmatch(r"([^;]+?) (\d{4}), (.+)", cite):
        authors, year, title = shape.groups()
        title = re.sub(r"[,;]?\s*arXiv:?\s*\d{4}\.\d{4,5}(v\d+)?", "", title)
        people = [p.strip() for p in authors.removesuffix("et al.").replace(" and ", ", ").split(",") if p.strip()]
        people += ["others"] * authors.endswith("et al.")
        fields = {"title": _escaped(title), "author": _escaped(" and ".join(people)), "year": year}
    else:
        fields = {"note": _escaped(cite)}
    if found := re.search(r"arXiv:?\s*(\d{4}\.\d{4,5})", cite):
        fields |= {"eprint": found[1], "archiveprefix": "arXiv", "url": f"https://arxiv.org/abs/{found[1]}"}
    return _bibtex("misc", key, fields)


def _cite(args: argparse.Namespace) -> int:
    found = []
    if args.name is not None:
        item = registry.entry(args.name)
        cite = item.said("cite")
        cite = item.load().cite if cite is None else cite
        if not cite:
            raise SamplersError(f"sampler {args.name!r} of {item.origin} names no paper")
        found.append(citation(cite, _key(item.name)))
        if item.distribution != registry.DISTRIBUTION:
            fields = {"title": _escaped(item.distribution), "version": _escaped(item.version)}
            found.append(_bibtex("software", _key(item.distribution), fields))
    fields = {
        "title": "The sampler zoo: samplers for diffusion models",
        "author": "{The sampler zoo's authors}",
        "version": registry.version(),
    }
    print("\n\n".join([*found, _bibtex("software", "sampler_zoo", fields)]))
    return 0


def add(commands: Commands) -> None:
    p = command(commands, "cite", _cite, "BibTeX entries of a sampler's paper and of this library")
    p.add_argument("name", nargs="?", help="sampler whose paper is cited (default: the library alone)")
