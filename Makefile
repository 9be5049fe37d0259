# Everything from a fresh clone: `make bench` (the demo and its report), `make test`, `make lint`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin
PLUGINS := $(sort $(wildcard plugins/samplers-*))
NATIVE := $(wildcard csrc/*.h csrc/*.cpp csrc/*/*) setup.py
CXX_FILES := $(wildcard csrc/*.h csrc/*.cpp csrc/*/* tests/emulator/*.h tests/emulator/*.cpp)

# Two builds at once would write the same files.
.NOTPARALLEL:
.PHONY: help setup native test lint format docs bench bench-kernels draws fuzz sanitize clean

help:
	@echo "make bench          the demo sweep: runs/demo/report.html"
	@echo "make test           the whole test suite"
	@echo "make lint           ruff, mypy, clang-format, words that we no longer use, generated pages"
	@echo "make format         before each commit: mend what tools can mend, write the generated pages"
	@echo "make docs           the documentation as a site: build/site/index.html"
	@echo "make bench-kernels  every kernel beside its peers: a table, and JSON under bench/results/ (ten minutes)"
	@echo "make draws          ten million draws against the true distribution (minutes)"
	@echo "make fuzz           100,000 random calls of the ops, right and wrong (minutes)"
	@echo "make sanitize       the op tests on a build that checks addresses and undefined behaviour (minutes)"
	@echo "make clean          remove .venv, build/ and the built extension"

# torch goes first and by its pinned number: an unpinned one may bring gigabytes of CUDA along, and the extension is
# compiled against the one that is there (--no-build-isolation).
$(VENV)/.ready: pyproject.toml constraints.txt $(wildcard plugins/*/pyproject.toml)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "make needs Python 3.11 or newer, since numpy, scipy and other pinned versions do: make PYTHON=python3.11."; \
	       echo "The library itself runs on 3.10: install it by hand, as the README says."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch numpy setuptools wheel ninja pybind11
	SAMPLERS_NATIVE=0 $(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[bench,test,lint]'
	$(BIN)/python -m pip install --quiet --no-build-isolation --no-deps $(addprefix --editable ,$(PLUGINS))
	@touch $@

# Built again when its sources change. Without a compiler the library runs on its torch twins, and setup.py says so.
# The demo needs no CUDA kernels, whose compilation takes minutes, so it has a stamp of its own. A full build serves it as
# well and renews both stamps.
$(VENV)/.native-cpu: $(VENV)/.ready $(NATIVE)
	@echo "building the native extension for the CPU (about a minute; the log is $(VENV)/build.log)"
	@SAMPLERS_CUDA=0 $(BIN)/python setup.py --quiet build_ext --inplace > $(VENV)/build.log
	@touch $@

$(VENV)/.native: $(VENV)/.ready $(NATIVE)
	@echo "building the native extension (a minute, or five with CUDA kernels, if nvcc is found; the log is $(VENV)/build.log)"
	@$(BIN)/python setup.py --quiet build_ext --inplace > $(VENV)/build.log
	@touch $@ $(VENV)/.native-cpu

setup: $(VENV)/.native

native: $(VENV)/.native

# A process for each core; a file's tests stay in one, which keeps what they share.
test: setup
	$(BIN)/python -m pytest -n auto --dist loadfile

# These need no built extension: none of them runs an op.
lint: $(VENV)/.ready
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(CXX_FILES)
	$(BIN)/python tools/words.py
	$(BIN)/python tools/reference.py --check

format: $(VENV)/.ready
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_FILES)
	$(BIN)/python tools/reference.py

# Sphinx and its theme are not needed by anything else, so they are installed when the site is first built.
$(VENV)/.docs: $(VENV)/.ready
	SAMPLERS_NATIVE=0 $(BIN)/python -m pip install --quiet --constraint constraints.txt --no-build-isolation --editable '.[docs]'
	@touch $@

docs: $(VENV)/.docs
	$(BIN)/python tools/website.py

bench: $(VENV)/.native-cpu
	$(BIN)/samplers bench --demo

bench-kernels: setup
	$(BIN)/python bench/kernels.py

draws: setup
	$(BIN)/python bench/draws.py

fuzz: setup
	$(BIN)/python tests/ops/fuzz_ops.py

# A second build of the extension, with the package beside it; the interpreter has no checks, so they are loaded first.
SANITIZED := build/sanitized
CHECKS := $(foreach lib,asan ubsan stdc++,$(shell $${CXX:-c++} -print-file-name=lib$(lib).so))
OP_TESTS := $(wildcard $(addprefix tests/ops/test_,ops.py ops_generated.py cached_kv.py remask.py headless.py))

sanitize: setup
	@mkdir -p build
	@SAMPLERS_NATIVE=1 SAMPLERS_CUDA=0 SAMPLERS_SANITIZE=1 $(BIN)/python setup.py --quiet build \
	  --build-lib $(SANITIZED) --build-temp $(SANITIZED)-objects > $(SANITIZED).log 2>&1 || { cat $(SANITIZED).log; exit 1; }
	PYTHONPATH=$(SANITIZED) LD_PRELOAD="$(CHECKS)" UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 \
	  ASAN_OPTIONS=detect_leaks=0 \
	  $(BIN)/python -P -m pytest --capture=sys -p no:cacheprovider $(OP_TESTS)

clean:
	rm -rf $(VENV) build samplers/_C*.so *.egg-info
