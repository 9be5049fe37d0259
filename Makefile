# Everything from a fresh clone: `make bench` (the demo and its report), `make test`, `make lint`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
NATIVE := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*) setup.py
CXX_FILES := $(wildcard csrc/*.h csrc/*.cpp csrc/*/* tests/emulator/*.h tests/emulator/*.cpp)

.PHONY: help setup native test lint format bench bench-kernels clean

help:
	@echo "make bench          the demo sweep: runs/demo/report.html"
	@echo "make test           the whole test suite"
	@echo "make lint           ruff, mypy, clang-format"
	@echo "make format         let them mend what they can"
	@echo "make bench-kernels  pytest-benchmark of the native ops"
	@echo "make clean          remove .venv, build/ and the built extension"

# torch goes first and by its pinned number: an unpinned one may bring gigabytes of CUDA along, and the extension is
# compiled against the one that is there (--no-build-isolation).
$(VENV)/.ready: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "the pinned versions need Python 3.11 or newer; say which with make PYTHON=python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch numpy setuptools wheel ninja pybind11
	SAMPLERS_NATIVE=0 $(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[bench,test,lint]'
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps --editable plugins/samplers-hello
	@touch $@

# Built again when its sources change. Without a compiler the library runs on its torch twins, and setup.py says so.
$(VENV)/.native: $(VENV)/.ready $(NATIVE)
	@echo "building the native extension (about a minute; the log is $(VENV)/build.log)"
	@$(BIN)/python setup.py --quiet build_ext --inplace > $(VENV)/build.log
	@touch $@

setup: $(VENV)/.native

native: $(VENV)/.native

test: setup
	$(BIN)/python -m pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)

format: setup
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)

bench: setup
	$(BIN)/samplers bench --demo

bench-kernels: setup
	$(BIN)/python -m pytest bench --benchmark-enable --benchmark-only

clean:
	rm -rf $(VENV) build samplers/_C*.so *.egg-info
