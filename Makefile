# Every target sets up .venv by itself: the machine needs make, bash and Python 3.11 or newer.
#
#   make quickstart   from nothing but this clone: train a tiny language model, raise its reward by PPO, show it
#   make test         the tests (the fast suite; `make test-slow` has the others)
#   make check        style, types, layers, file sizes, exports, links, documentation
#   make bench        speed and memory of our PPO beside TRL's RLOO
#   make docs         the documentation, into site/ (`make docs-serve` shows it on 127.0.0.1)
#
# torch is installed first and alone, so that nothing pulls another build of it. TORCH_OPTIONS goes to that one
# command; with it you can name PyTorch's own CPU index where the default would fetch a CUDA build.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.PHONY: quickstart test test-slow check bench docs docs-serve format install

PYTHON ?= $(firstword $(shell command -v python3.11 python3.12 python3.13 python3))
TORCH_OPTIONS ?=
WORKERS ?= 2
BIN := .venv/bin
INSTALLED := .venv/.installed

export TOKENIZERS_PARALLELISM := false
export NO_MKDOCS_2_WARNING := 1
# One thread per process is far faster than a crowd of them for the small models that tests and quickstart use.
SMALL := OMP_NUM_THREADS=1 HF_HUB_OFFLINE=1

install: $(INSTALLED)

$(INSTALLED): pyproject.toml rewards/pyproject.toml constraints.txt
	@[ -n "$(PYTHON)" ] && $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "alignkit needs Python 3.11 or newer; found: '$(PYTHON)'. Name one: make PYTHON=/path/to/python3.11"; exit 1; }
	[ -x $(BIN)/python ] || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(TORCH_OPTIONS) "$$(grep '^torch==' constraints.txt)"
	@echo "installing packages into .venv: some minutes, without further words"
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,docs,quantization]' -e ./rewards
	@touch $@

quickstart: $(INSTALLED)
	$(SMALL) $(BIN)/alignkit train recipes/quickstart/lm.yaml
	$(SMALL) $(BIN)/alignkit train recipes/quickstart/classifier.yaml
	$(SMALL) $(BIN)/alignkit train recipes/quickstart.yaml

test: $(INSTALLED)
	$(SMALL) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --durations 10 -m "not slow"

test-slow: $(INSTALLED)
	$(SMALL) $(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal --durations 10 -m slow

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(SMALL) $(BIN)/python -m pytest -q tests/test_layers.py tests/test_files.py tests/test_exports.py tests/test_links.py
	$(BIN)/mkdocs build --quiet --strict

bench: $(INSTALLED)
	$(BIN)/python benchmarks/run.py

docs: $(INSTALLED)
	$(BIN)/mkdocs build --strict
	@echo "The documentation is in site/index.html"

docs-serve: $(INSTALLED)
	$(BIN)/mkdocs serve --dev-addr 127.0.0.1:8000

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
