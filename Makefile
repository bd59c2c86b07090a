# Every target makes what it needs first: an environment in .venv, from nothing but Python 3.11 or newer with pip.
#   make demo                     fit, score and sample a real table, and write one page with the results
#   make test                     all tests
#   make check                    what CI runs: format, lint, types, architecture, tests with coverage, docs
#   make bench DATA=folder        measure on your own folder of benchmark tables (see benchmarks/README.md)
#   make docs                     the command reference docs/cli.md, and HTML from docstrings in docs/reference
#   make PYTHON=python3.12 test   with another Python

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Two at a time, each file in one process: files start servers of their own, and share them among their tests.
WORKERS := -n 2 --dist loadfile
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test check bench docs clean

help:
	@sed -n 's/^#   //p' Makefile
	@echo "make clean                    remove the environment, caches and everything generated"

# One stamp per set of extras; a change of pyproject.toml or constraints.txt installs again.
$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "No $(PYTHON) here. Install Python 3.11 or newer, or say make PYTHON=..."; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "tabdiff needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Say make PYTHON=python3.12"; exit 1; }
	@echo "==> making an environment in $(VENV) with $$($(PYTHON) -V)"
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "Cannot make an environment; on Debian and Ubuntu install python3-venv."; exit 1; }

$(VENV)/.ready-%: pyproject.toml constraints.txt | $(BIN)/python
	@echo "==> installing tabdiff with extra '$*' at the versions in constraints.txt (a few minutes the first time)"
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-input -c constraints.txt -e '.[$*]'
	@# The demo and its test read a recording that aeon ships. Its own dependencies would hold numpy back, and are not needed for that.
	@$(BIN)/python -m pip install -q --disable-pip-version-check --no-input --no-deps -c constraints.txt aeon
	@touch $@

demo: $(VENV)/.ready-demo
	@echo "==> tabdiff demo"
	@$(BIN)/tabdiff demo

test: $(VENV)/.ready-dev
	@echo "==> all tests"
	@$(BIN)/python -m pytest $(WORKERS)

check: $(VENV)/.ready-dev
	@echo "==> formatting"
	@$(BIN)/ruff format --check .
	@echo "==> lint"
	@$(BIN)/ruff check .
	@echo "==> types"
	@$(BIN)/mypy
	@echo "==> architecture"
	@$(BIN)/lint-imports
	@echo "==> all tests, with coverage"
	@$(BIN)/python -m pytest $(WORKERS) --cov
	@echo "==> docs"
	@$(BIN)/python docs/build.py --check
	@echo "==> all good"

bench: $(VENV)/.ready-dev
	@test -n "$(DATA)" || { echo "Say where the tables are: make bench DATA=folder (see benchmarks/README.md)"; exit 1; }
	@echo "==> detection on the tables in $(DATA)"
	@$(BIN)/python benchmarks/detection.py "$(DATA)"
	@echo "==> speed"
	@$(BIN)/python benchmarks/speed.py

docs: $(VENV)/.ready-dev
	@echo "==> docs/cli.md and docs/reference"
	@$(BIN)/python docs/build.py

clean:
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis .coverage docs/reference demo build dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
