# Two commands matter: `make demo` and `make test`. Each sets up what it needs on its first run.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: help demo test lint bench venv clean

help:  ## list these commands
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 8

demo: $(STAMP)  ## align the pocket model in both stages, measure it, write a page of pictures and answers
	$(BIN)/minigpt4 demo

test: lint  ## lint, types, tests
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(BIN)/python -m pytest

lint: $(STAMP)  ## lint and types only
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(STAMP)  ## print the tables of speed and memory
	@set -e; for script in bench/*.py; do echo "== $$script"; $(BIN)/python "$$script"; done

venv: $(STAMP)  ## only set up the virtual environment

clean:  ## delete the virtual environment, caches and runs
	rm -rf $(VENV) runs build .pytest_cache .mypy_cache .ruff_cache

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "minigpt4 needs Python 3.10 or newer as '$(PYTHON)'; name another one: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' || \
	  { echo "'$(PYTHON)' has no venv module; install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)
