# Needs python3 >= 3.11, make and git; everything else goes into .venv. Another Python: make setup PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-all check bench bench-faults docs

help: ## this list
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1 : \2/p' Makefile

setup: $(STAMP) ## create .venv with bridle and its tools, at the versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "bridle needs Python 3.11 or newer, and '$(PYTHON)' is not; try: make $(MAKECMDGOALS) PYTHON=python3.12"; exit 1; }
	@test -x $(BIN)/pip || $(PYTHON) -m venv --clear $(VENV)
	$(BIN)/python -m pip install -q -c constraints.txt -e ".[dev]"
	@# What it depends on includes torchaudio, of which its tasks call two functions; tests bring those.
	$(BIN)/python -m pip install -q -c constraints.txt --no-deps xares loguru
	@touch $@

demo: setup ## pretrain, embed and evaluate on small sets of sounds, pictures and films; DATA=folder takes your labelled recordings
	$(BIN)/bridle demo $(if $(DATA),--data "$(DATA)",--minutes 2.5)
	$(if $(DATA),,$(BIN)/bridle demo --medium image)
	$(if $(DATA),,$(BIN)/bridle demo --medium video)

# A process of tests for each core, at most 8, each with one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto --maxprocesses 8 --dist worksteal

test: setup ## the fast tests
	$(PYTEST) -m "not slow"

test-all: setup ## all tests, the slow ones too
	$(PYTEST)

check: setup ## formatting, lint, types, layers
	$(BIN)/ruff format --check src tests benchmarks
	$(BIN)/ruff check src tests benchmarks
	$(BIN)/mypy
	$(BIN)/python -m pytest -q tests/test_imports.py

bench: SHELL := bash
bench: setup ## every benchmark of speed and error; tables also go to build/
	@mkdir -p build
	@set -eo pipefail; for file in benchmarks/*.py; do \
	  echo "== $$file"; $(BIN)/python "$$file" 2>&1 | tee "build/$$(basename "$$file" .py).txt"; done

bench-faults: setup ## kill -9 whole runs at 1000 random moments, and check what must hold after each
	OMP_NUM_THREADS=1 $(BIN)/python tests/faults/kills.py --kills 1000

docs: setup ## links and names of code in the documents
	$(BIN)/python -m pytest -q tests/test_docs.py
