"""python -m samplers_bridges: writes the files by which engines find the samplers.

python -m samplers_bridges transformers FOLDER   # a folder for model.generate(custom_generate=FOLDER)
python -m samplers_bridges sglang [FILE]         # a dLLM algorithm file; FILE: samplers_zoo.py where SGLang is installed
"""

from __future__ import annotations

import argparse
import importlib.util
import shutil
import sys
from pathlib import Path

from . import FOLDER


def main(arguments: list[str] | None = None) -> int:
    """Write what is asked for; 0, or 2 and a sentence on stderr."""
    parser = argparse.ArgumentParser(
        "python -m samplers_bridges", description="Writes the files that engines look for."
    )
    which = parser.add_subparsers(dest="engine", required=True)
    folder = which.add_parser(
        "transformers", help="a folder for generate(custom_generate=FOLDER, trust_remote_code=True)"
    )
    folder.add_argument("folder", metavar="FOLDER", type=Path)
    file = which.add_parser("sglang", help="the file by which SGLang finds --dllm-algorithm Samplers")
    file.add_argument("file", metavar="FILE", type=Path, nargs="?", help="none: where SGLang is installed")
    said = parser.parse_args(arguments)
    try:
        written = _transformers(said.folder) if said.engine == "transformers" else _sglang(said.file)
    except OSError as error:
        print(f"samplers_bridges: {error}", file=sys.stderr)
        return 2
    print(f"wrote {written}")
    return 0


def _transformers(folder: Path) -> Path:
    target = folder / "custom_generate"
    target.mkdir(parents=True, exist_ok=True)
    for name in ("generate.py", "requirements.txt"):
        shutil.copy(Path(FOLDER) / "custom_generate" / name, target)
    return target


def _sglang(file: Path | None) -> Path:
    if file is None:
        found = importlib.util.find_spec("sglang")
        if found is None or not found.submodule_search_locations:
            raise OSError(
                "SGLang is not installed here; say where the file goes: python -m samplers_bridges sglang FILE"
            )
        file = Path(found.submodule_search_locations[0]) / "srt" / "dllm" / "algorithm" / "samplers_zoo.py"
    from .sglang import FILE

    file.write_text(FILE, encoding="utf-8")
    return file


if __name__ == "__main__":
    sys.exit(main())
