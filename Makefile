# Each target works alone on a fresh clone: it makes the environment first. PYTHON=python3.12 chooses another interpreter.
VENV := .venv
PYTHON ?= python3
READY := $(VENV)/.ready
BIN := $(VENV)/bin

.PHONY: help demo test-fast test check format bench chaos clean

help:  ## list these targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:[^#]*##/ /' | awk '{name = $$1; $$1 = ""; printf "  make %-10s%s\n", name, $$0}'

demo: $(READY)  ## make a corpus, train a small early-exit model, classify 50,000 rows: some minutes on 2 cores
	$(BIN)/python jobs/demo.py

test-fast: $(READY)  ## the tests that start neither Ray nor a server nor a job, while you work
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal -m 'not e2e'

test: $(READY)  ## all tests, three files at a time: those of a file share servers, and one Ray runs many jobs
	$(BIN)/python -m pytest --numprocesses 3 --dist loadfile --no-loadscope-reorder

check: $(READY)  ## format, lint, types, layers, dependencies, the image's recipe
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/deptry models pipeline jobs
	$(BIN)/deptry tests infra docs --ignore DEP002,DEP004
	$(BIN)/hadolint infra/Dockerfile

format: $(READY)  ## rewrite the code as check wants it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY)  ## the engine against what you would run instead
	$(BIN)/python jobs/benchmark.py

ROUNDS ?= 100
SEED ?= 0
chaos: $(READY)  ## kill everything at random and see that nothing is lost: make chaos ROUNDS=100 SEED=0
	$(BIN)/python -m tests.chaos.rounds --rounds $(ROUNDS) --seed $(SEED)

clean:  ## remove the environment and what tools have left
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

$(READY): pyproject.toml constraints.txt infra/wheel.py
	@echo "making the environment in $(VENV): a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@
