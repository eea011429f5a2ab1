# Every target sets up .venv by itself: the machine needs make, bash and Python 3.11 or newer.
#
#   make quickstart   from nothing but this clone: train a tiny language model, raise its reward by PPO, show it
#   make test         the tests (the fast suite; `make test-slow` has the others)
#   make check        style, types, layers, file sizes, exports, links, documentation
#   make test-lower   the fast suite with the lowest versions that pyproject.toml allows, in .compat/lower
#   make compat       TRL 1.12's PPOTrainer learns from our rewards, in .compat/trl112
#   make bench        speed and memory of our trainers beside TRL's (`make bench ROUNDS=1` for a first look)
#   make gpu          a step at the scale of a billion weights on a CUDA GPU; says so where there is none
#   make docs         the documentation, into site/ (`make docs-serve` shows it on 127.0.0.1)
#
# torch is installed first and alone, so that nothing pulls another build of it. TORCH_OPTIONS goes to those
# commands; with it you can name PyTorch's own CPU index where the default would fetch a CUDA build.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: quickstart test test-slow test-lower compat check bench gpu docs docs-serve format install

PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3))
TORCH_OPTIONS ?=
WORKERS ?= 2
ROUNDS ?= 3
OPTIONS ?= --publish
BIN := .venv/bin
INSTALLED := .venv/.installed

export TOKENIZERS_PARALLELISM := false
export NO_MKDOCS_2_WARNING := 1
# One thread per process is far faster than a crowd of them for the small models that tests and quickstart use.
SMALL := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

install: $(INSTALLED)

define need_python
	@[ -n "$(PYTHON)" ] && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "alignkit needs Python 3.11 or newer; found: '$(PYTHON)'. Name one: make PYTHON=/path/to/python3.11"; exit 1; }
endef

$(INSTALLED): pyproject.toml rewards/pyproject.toml constraints.txt
	$(need_python)
	[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH_OPTIONS) "$$(grep '^torch==' constraints.txt)"
	@echo "installing packages into .venv: some minutes, without further words"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,docs,quantization,rate]' -e ./rewards
	@touch $@

quickstart: $(INSTALLED)
	$(SMALL) $(BIN)/alignkit train recipes/quickstart/lm.yaml
	$(SMALL) $(BIN)/alignkit train recipes/quickstart/classifier.yaml
	$(SMALL) $(BIN)/alignkit train recipes/quickstart.yaml

test: $(INSTALLED)
	$(SMALL) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --durations 10 -m "not slow"

test-slow: $(INSTALLED)
	$(SMALL) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --durations 10 -m slow

.compat/lower/.installed: pyproject.toml rewards/pyproject.toml constraints-lower.txt
	$(need_python)
	[ -x .compat/lower/bin/python ] || $(PYTHON) -m venv .compat/lower
	.compat/lower/bin/python -m pip install --quiet $(TORCH_OPTIONS) "$$(grep '^torch==' constraints-lower.txt)"
	@echo "installing packages into .compat/lower: some minutes, without further words"
	.compat/lower/bin/python -m pip install --quiet -c constraints-lower.txt -e '.[dev,quantization,rate]' -e ./rewards
	@touch $@

test-lower: .compat/lower/.installed
	$(SMALL) .compat/lower/bin/python -m pytest -q -n $(WORKERS) --dist worksteal --durations 10 -m "not slow"

# alignkit asks for a newer TRL: it goes in without its dependencies.
.compat/trl112/.installed: constraints.txt
	$(need_python)
	[ -x .compat/trl112/bin/python ] || $(PYTHON) -m venv .compat/trl112
	.compat/trl112/bin/python -m pip install --quiet $(TORCH_OPTIONS) "$$(grep '^torch==' constraints.txt)"
	grep -v '^trl==' constraints.txt >.compat/trl112/constraints.txt
	.compat/trl112/bin/python -m pip install --quiet -c .compat/trl112/constraints.txt trl==1.12.0
	.compat/trl112/bin/python -m pip install --quiet --no-deps -e . -e ./rewards
	@touch $@

compat: .compat/trl112/.installed
	$(SMALL) TRL_EXPERIMENTAL_SILENCE=1 .compat/trl112/bin/python scripts/compat_trl112.py

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(SMALL) $(BIN)/python -m pytest -q tests/test_layers.py tests/test_files.py tests/test_exports.py tests/test_links.py
	$(BIN)/mkdocs build --quiet --strict

bench: $(INSTALLED)
	TORCH_OPTIONS="$(TORCH_OPTIONS)" $(BIN)/python benchmarks/run.py --rounds $(ROUNDS) $(OPTIONS)

# on a machine with a GPU, TORCH_OPTIONS names an index with PyTorch's build for it
gpu: $(INSTALLED)
	$(BIN)/python benchmarks/gpu.py

docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict
	@echo "The documentation is in site/index.html"

docs-serve: $(INSTALLED)
	$(BIN)/mkdocs serve --dev-addr 127.0.0.1:8000

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
