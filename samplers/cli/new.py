"""`samplers new`: a package with a sampler in it, to begin with."""

from __future__ import annotations

import argparse
import importlib.util
import keyword
import re
import shlex
import tempfile
import unicodedata
from importlib import metadata
from pathlib import Path

from .. import registry
from ..errors import OptionError, did_you_mean
from ..family import family_names
from .arguments import Commands, command

TEMPLATES = Path(__file__).parents[1] / "templates"
WITH_TEMPLATE = ("masked", "uniform", "gaussian")
OPS = {"masked": "choose", "uniform": "choose", "gaussian": "blend"}
# File of the package -> the templates that it is made of, one after another. {module}: see _files.
FILES = {
    "pyproject.toml": ("pyproject.toml",),
    "README.md": ("README.md",),
    ".gitignore": ("gitignore",),
    ".github/workflows/tests.yml": ("tests.yml",),
    "{module}": ("{family}.py",),
    "tests/test_{name}.py": ("test_head.py", "test_{family}.py", "test_tail.py"),
}
FILES_OF_OP = {
    "setup.py": ("setup.py",),
    "samplers_{name}/op.py": ("op.py", "op_{op}.py"),
    "csrc/{name}.cpp": ("op_head.cpp", "op_{op}.cpp", "op_tail.cpp"),
    "tests/test_{name}_op.py": ("test_op_{op}.py",),
}
# Class names that would hide what a module of the package imports or Python itself knows.
TAKEN_CLASSES = ("Callable", "Sequence", "Tensor")


def _class_of(name: str) -> str:
    return "".join(part.capitalize() for part in name.split("_"))


def _check_family(family: str) -> None:
    """OptionError if there are no templates for a family."""
    if family in WITH_TEMPLATE:
        return
    possible = f"Possible: {', '.join(WITH_TEMPLATE)}"
    if family in family_names():
        raise OptionError(
            f"there is no package to begin with for {family!r}, the family of a plug-in: copy a sampler of that plug-in. "
            f"{possible}"
        )
    raise OptionError(f"unknown family {family!r}{did_you_mean(family, WITH_TEMPLATE)} {possible}")


def _check_name(name: str) -> None:
    """OptionError, with the reason and what would do, if no package can be made for a sampler of this name."""
    who = f"a sampler cannot be called {name!r}"
    if not re.fullmatch(r"[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        plain = unicodedata.normalize("NFKD", name).encode("ascii", "ignore").decode()  # é becomes e
        words = re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", plain)
        better = re.sub(r"^[0-9_]+", "", "_".join(word.lower() for word in words))
        hint = f": did you mean {better!r}?" if better else ""
        raise OptionError(f"{who}: names are lower_snake, letters a to z first, then digits as well{hint}")
    cls = _class_of(name)
    if keyword.iskeyword(name) or keyword.iskeyword(cls):
        word = name if keyword.iskeyword(name) else cls
        raise OptionError(f"{who}: {word!r} is a word of Python itself. Add another word, such as {name + '_order'!r}")
    for item in registry.entries():
        if item.name == name:
            raise OptionError(
                f"{who}: {item.origin} has one of that name ('samplers show {item.name}' prints it). Choose another name"
            )
    from .. import authoring  # here, since it imports torch

    if cls in authoring.__all__ or cls in TAKEN_CLASSES:
        raise OptionError(f"{who}: its class would be {cls}, the name of what samplers import. Add another word")
    try:
        found = importlib.util.find_spec(f"samplers_{name}")
    except (ImportError, ValueError):  # a broken finder, or a module without a spec
        found = None
    if found is not None:
        raise OptionError(
            f"{who}: its module would be samplers_{name}, which {found.origin or 'another package'} is already"
        )


def _torch() -> str:
    """The number of the torch that is installed, without the part that says for which device it was built."""
    return metadata.version("torch").partition("+")[0]


def _filled(parts: tuple[str, ...], name: str, marks: set[str]) -> str:
    """The text of templates, one after another, for a sampler of this name.

    A line that ends with #[word] stands in the text, without that mark, if the word is one of `marks`.
    """
    text = ""
    for part in parts:
        for line in (TEMPLATES / f"{part}.in").read_text(encoding="utf-8").splitlines():
            found = re.fullmatch(r"(.*?)\s*#\[(\w+)\]", line)
            if found is None or found[2] in marks:
                text += (line if found is None else found[1]) + "\n"
    words = {"my_sampler": name, "my-sampler": name.replace("_", "-"), "MySampler": _class_of(name)}
    for old, new in (words | {"TORCH_VERSION": _torch()}).items():
        text = text.replace(old, new)
    return text


def _files(name: str, family: str, with_op: bool) -> dict[str, str]:
    """The path of each file of the package, and its text."""
    module = f"samplers_{name}/__init__.py" if with_op else f"samplers_{name}.py"
    marks = {family, "op" if with_op else "plain"}
    words = {"name": name, "family": family, "op": OPS[family], "module": module}
    made = {}
    for path, parts in (FILES | (FILES_OF_OP if with_op else {})).items():
        made[path.format(**words)] = _filled(tuple(part.format(**words) for part in parts), name, marks)
    return made


def write_package(name: str, family: str, folder: Path, *, with_op: bool = False) -> tuple[Path, list[str]]:
    """Write the package of a new sampler, all of it or nothing.

    Args:
        name: of the sampler, lower_snake.
        family: masked, uniform or gaussian.
        folder: where the package's folder `samplers-NAME` is made.
        with_op: with a compiled op of its own.

    Returns:
        The package's folder, and the paths of its files in it.

    Raises:
        OptionError: the name cannot be used, the family has no template, or the folder is there and not empty.
        OSError: something cannot be written.
    """
    _check_family(family)
    _check_name(name)
    package = folder / f"samplers-{name.replace('_', '-')}"
    if package.is_symlink() or package.is_file() or (package.is_dir() and any(package.iterdir())):
        raise OptionError(f"{package} is there already, and nothing was written. Move it, or say --folder ELSEWHERE")
    files = _files(name, family, with_op)
    folder.mkdir(parents=True, exist_ok=True)
    # A folder beside it first, which is then renamed: whoever looks sees a whole package or none.
    with tempfile.TemporaryDirectory(dir=folder, prefix=".samplers-new-") as temporary:
        whole = Path(temporary, package.name)
        for path, text in files.items():
            (whole / path).parent.mkdir(parents=True, exist_ok=True)
            (whole / path).write_bytes(text.encode())
        if package.is_dir():
            package.rmdir()  # it is empty, or this fails
        whole.rename(package)
    return package, sorted(files)


def _new(args: argparse.Namespace) -> int:
    package, files = write_package(args.name, args.family, Path(args.folder), with_op=args.with_op)
    for path in files:
        print(package / path)
    install = "pip install --no-build-isolation --no-deps --editable ."
    print(f"\nNext:\n  cd {shlex.quote(str(package))}\n  {install}\n  pytest")
    return 0


def add(commands: Commands) -> None:
    p = command(commands, "new", _new, "write a package with a sampler that works, to change into yours")
    p.add_argument("name", metavar="NAME", help="name of the sampler, in lower_snake; the package is samplers-NAME")
    p.add_argument(
        "--family",
        required=True,
        metavar="FAMILY",
        help=f"kind of noise: {', '.join(WITH_TEMPLATE)}",
    )
    p.add_argument("--folder", default=".", metavar="DIR", help="where the package's folder is made (default: here)")
    p.add_argument("--with-op", action="store_true", help="add a compiled op of its own, in C++ and in torch")
