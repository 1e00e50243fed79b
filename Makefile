# Each target works alone on a fresh clone: it makes the environment first. PYTHON=python3.12 chooses another interpreter.
VENV := .venv
PYTHON ?= python3
READY := $(VENV)/.ready
BIN := $(VENV)/bin

.PHONY: demo test check bench chaos clean

demo: $(READY)  ## make a corpus, train a small early-exit model, classify 50,000 rows
	$(BIN)/python jobs/demo.py

test: $(READY)  ## all tests, three at a time: much of each is waiting for Ray
	$(BIN)/python -m pytest --numprocesses 3 --dist worksteal

bench: $(READY)  ## the engine against what you would run instead
	$(BIN)/python jobs/benchmark.py

ROUNDS ?= 100
SEED ?= 0
chaos: $(READY)  ## kill everything at random and see that nothing is lost: make chaos ROUNDS=100 SEED=0
	$(BIN)/python -m tests.chaos.rounds --rounds $(ROUNDS) --seed $(SEED)

check: $(READY)  ## format, lint, types, the image's recipe
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/hadolint infra/Dockerfile

$(READY): pyproject.toml constraints.txt
	@echo "making the environment in $(VENV): a minute or two"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
