"""Counts words that this project no longer uses, so that they do not come back.

    python tools/words.py                    # a table; exit code 1 if a count is above its budget
    python tools/words.py --files            # the same by file
    python tools/words.py --show habit       # the places of one kind
    python tools/words.py --against REV      # before and after, REV as git names it
    python tools/words.py --lower            # lower the budgets to what is reached

Old names (of functions, classes and fields) have a budget of zero. Habits of speech have the budgets of tools/words.json,
which `--lower` lowers and nothing raises. What a reader meets is counted: pages, docstrings, comments, help and messages;
old names are counted in code as well. Code in fenced blocks of a page counts as code.
"""

from __future__ import annotations

import argparse
import ast
import io
import json
import re
import subprocess
import sys
import tarfile
import tokenize
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUDGETS = Path(__file__).with_suffix(".json")

# Files that must name the old words (this one, its test, the table of renamings), and pages made of what is counted already.
EXEMPT = {"tools/words.py", "tests/test_words.py", "CHANGELOG.md", "docs/samplers.md", "docs/cli.md"}
# Tests are held to the names alone: their prose is read by those who mend them.
NAMES_ALONE = ("tests/",)
SUFFIXES = {".py", ".md", ".h", ".cpp", ".cuh", ".cu", ".yml", ".toml", ".cff"}

# Old names. They are whole words in code, and words in backquotes in prose.
NAMES = {
    "believe": "predict",
    "Believe": "Predictor",
    "Belief": "Prediction",
    "belief": "prediction",
    "NoiseBelieve": "GaussianPredictor",
    "Foreseen": "DryRun",
    "counts_known": "Facts(static_plan=)",
    "_Asked": "ErrorTracker",
    "_judge": "raise_if_bad",
    "Knobs": "SamplingConfig",
    "at_least": "min_count",
    "owed": "quota",
    "topped_up": "fill_up_to",
    "Planned": "ScheduledSampler",
    "even_plan": "even_count",
    "exact_order": "Facts(bias=)",
    "small_options": "Conformance(small=)",
    "law_options": "Conformance(exact=)",
    "order_options": "Conformance(order=)",
    "OwnModel": "UserModel",
}

_NUMBER = r"(?:one|two|three|four|eight|ten|k|\d[\d,.]*)"
_COUNTED = (
    r"(?:positions?|tokens?|forwards?|evaluations?|steps?|seeds?|numbers?|integers?|uniforms?|bytes|samples|"
    r"counts|nats|passes|levels?|milliseconds|ms|values|lengths|probability|NFE|thread|fiber)"
)
_COUNTED_OR_VERB = r"(?:rows|draws|masks|costs?)"  # "draws a token" is a sentence, "draws a row" is a rate
_UNIT = (
    r"(?:row|step|position|token|forward|block|second|sample|call|slot|chunk|layer|element|character|pixel|line|thread|"
    r"million|dimension|cell)"
)
_UNIT_OF_RATE = r"(?:row|step|forward|second|call|block)"
_NO_RATE = r"(?!(?: pass)?(?:'s| (?:has|is|was|takes|asks|commits|belongs)\b))"  # how many steps a row has taken
# Habits of speech: what they are called -> (what is counted, what to write).
HABITS = {
    "a for per": (
        rf"\b(?:(?:{_NUMBER}|{_COUNTED}) an? {_UNIT}|{_COUNTED_OR_VERB} an? {_UNIT_OF_RATE})\b{_NO_RATE}",
        "per: positions per step",
    ),
    "behind": (r"\bbehind\b(?! the scenes)", "after"),
    "law": (r"\blaws?\b", "distribution"),
    "forwards": (
        r"\bforwards\b|\b(?:a|an|one|each|every|the|no|full|more|first|last|per) forward\b(?! pass)",
        "forward pass, NFE",
    ),
    "believe": (r"\b[Bb]elie(?:ve[sd]?|f|fs)\b", "predict, prediction"),
    "a look": (
        r"\b(?:a|the|no|one) looks?\b|\blooks? at the (?:device|counts|numbers)\b|\blooked at at once\b",
        "device sync",
    ),
    "foreseen": (r"\b[Ff]ore(?:see|sees|seen)\b", "dry run, known in advance"),
    "final too": (r", too(?=[.,;:)]| *$)", "also, before the verb"),
    "and no other": (r"\band no other\b", "only"),
    "of one's own": (r"\bone's own\b", "your, user-supplied"),
    "of ellipsis": (r"^\s*`?\w+`?: of (?!th(?:e|is|ese) )|\Aof [a-z]", "a noun first"),
    "where for if": (
        r"\b(?:None|True|False|empty|nothing|none|error|0|1|-1|inf) where (?:it|there|they|that|nothing|a|the)\b",
        "if, when",
    ),
    "knob": (r"\b[Kk]nobs?\b", "option, setting"),
}


def texts_of_python(source: str) -> Iterator[str]:
    """The comments and the strings with a space in them: docstrings, help, messages."""
    comment: list[str] = []
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            comment.append(token.string.lstrip("#:! "))
        elif token.type != tokenize.NL and comment:
            yield "\n".join(comment)
            comment = []
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value


def names_of_python(source: str) -> Iterator[str]:
    """The names in code."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.NAME:
            yield token.string


def texts_of_page(source: str) -> Iterator[str]:
    """The prose of a page: paragraphs, rows of tables, without blocks of code and without marks for scripts."""
    prose = re.sub(r"^```.*?^```|<!--.*?-->|^(?: {4}.*\n)+", "\n", source, flags=re.S | re.M)
    for paragraph in re.split(r"\n\s*\n|\n(?=[|\-#])", prose):
        yield re.sub(r"`[^`\n]*`", "`x`", paragraph)


def texts_of_c(source: str) -> Iterator[str]:
    """The comments of C++ and CUDA."""
    for block in re.findall(r"(?:^[ \t]*//[^\n]*\n?)+|//[^\n]*|/\*.*?\*/", source, flags=re.S | re.M):
        yield re.sub(r"^\s*//+ ?|/\*|\*/", "", block, flags=re.M)


def count(path: str, source: str) -> tuple[Counter[str], list[tuple[str, str]]]:
    """How often each old word is in a file, and each hit as (kind, the words around it)."""
    found: Counter[str] = Counter()
    hits: list[tuple[str, str]] = []
    suffix = Path(path).suffix
    if suffix == ".py":
        texts, names = list(texts_of_python(source)), list(names_of_python(source))
    elif suffix == ".md":
        texts = list(texts_of_page(source))
        names = re.findall(r"\w+", "\n".join(re.findall(r"^```.*?^```|`[^`\n]*`", source, flags=re.S | re.M)))
    elif suffix in (".yml", ".toml", ".cff"):
        texts, names = source.splitlines(), []
    else:
        texts, names = list(texts_of_c(source)), re.findall(r"\w+", source)
    for text in texts:
        names += re.findall(r"\w+", " ".join(re.findall(r"`([^`\n]*)`", text)))
        if path.startswith(NAMES_ALONE):
            continue
        for habit, (pattern, _) in HABITS.items():
            multiline = habit == "of ellipsis"  # the one that asks where a line begins
            plain = text if multiline else " ".join(text.split())
            for match in re.finditer(pattern, plain, flags=re.M):
                found[habit] += 1
                hits.append((habit, plain[max(0, match.start() - 30) : match.end() + 30].replace("\n", " ")))
    for name in names:
        if name in NAMES:
            found[name] += 1
            hits.append((name, f"{name}: now {NAMES[name]}"))
    return found, hits


def counted(path: str) -> bool:
    return Path(path).suffix in SUFFIXES and path not in EXEMPT and not path.startswith("samplers/problems/data/")


def files_of_tree() -> Iterator[tuple[str, str]]:
    """(path, text) of the files that git knows or would add, as they are on disk."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    for path in sorted(
        set(subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\n"))
    ):
        if counted(path) and (ROOT / path).is_file():
            yield path, (ROOT / path).read_text(encoding="utf-8")


def files_of_revision(revision: str) -> Iterator[tuple[str, str]]:
    """(path, text) of the files of a revision."""
    packed = subprocess.run(
        ["git", "archive", "--format=tar", revision], cwd=ROOT, check=True, capture_output=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        for member in archive:
            if member.isfile() and counted(member.name):
                yield member.name, archive.extractfile(member).read().decode()  # type: ignore[union-attr]


def totals(
    files: Iterable[tuple[str, str]],
) -> tuple[Counter[str], dict[str, Counter[str]], list[tuple[str, str, str]]]:
    """The counts over files, by file, and the hits as (path, kind, words)."""
    total: Counter[str] = Counter()
    by_file: dict[str, Counter[str]] = {}
    places = []
    for path, source in files:
        found, hits = count(path, source)
        if found:
            total += found
            by_file[path] = found
            places += [(path, kind, words) for kind, words in hits]
    return total, by_file, places


def rows(total: Counter[str]) -> dict[str, int]:
    """One number per line of the table: the old names together, and each habit."""
    return {"old names": sum(total[name] for name in NAMES)} | {habit: total[habit] for habit in HABITS}


def budgets() -> dict[str, int]:
    return {"old names": 0} | json.loads(BUDGETS.read_text(encoding="utf-8"))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Count words that this project no longer uses.")
    parser.add_argument("--files", action="store_true", help="also print the counts of each file")
    parser.add_argument("--show", metavar="KIND", help="print the places of one kind, such as 'law' or 'old names'")
    parser.add_argument(
        "--against", metavar="REV", help="print the counts of a revision beside those of the files on disk"
    )
    parser.add_argument("--lower", action="store_true", help="lower the budgets to what is reached")
    args = parser.parse_args(argv)

    total, by_file, places = totals(files_of_tree())
    now, most = rows(total), budgets()
    before = rows(totals(files_of_revision(args.against))[0]) if args.against else None
    print(f"{'':14} {args.against[:10] + ' ' if before else '':>11}{'now':>6} {'budget':>7}   write")
    for kind, n in now.items():
        instead = HABITS[kind][1] if kind in HABITS else "see NAMES in tools/words.py"
        then = f"{before[kind]:>10} " if before else f"{'':11}"
        print(f"{kind:14} {then}{n:>6} {most[kind]:>7}   {instead}")
    if before:
        print(f"{'together':14} {sum(before.values()):>10} {sum(now.values()):>6} {sum(most.values()):>7}")
    if args.files:
        for path, found in sorted(by_file.items(), key=lambda item: -sum(item[1].values())):
            print(f"{sum(found.values()):5} {path}: " + ", ".join(f"{kind} {n}" for kind, n in found.most_common()))
    if args.show:
        for path, kind, words in places:
            if kind == args.show or (args.show == "old names" and kind in NAMES):
                print(f"{path}: {kind}: … {words} …")
    if args.lower:
        lowered = {habit: min(most[habit], now[habit]) for habit in HABITS}
        BUDGETS.write_text(json.dumps(lowered, indent=1) + "\n", encoding="utf-8")
    above = [kind for kind in now if now[kind] > most[kind]]
    for kind in above:
        print(
            f"{kind}: {now[kind]} found and {most[kind]} allowed; python tools/words.py --show '{kind}'",
            file=sys.stderr,
        )
    return 1 if above else 0


if __name__ == "__main__":
    sys.exit(main())
