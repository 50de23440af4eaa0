# Each target sets up what it needs in .venv, once; the second run starts at once.
#   make serve            the embedded model and the playground on http://localhost:8000
#   make test             every test, one process a core; ARGS="tests/web -k gate" for some of them
#   make coverage         the same as CI runs them: with what they cover, which may not fall (a third slower)
#   make check            ruff and mypy
#   make bench            what a CPU alone can measure, peers in the same run; ARGS="decode_step --size mega" for one
#   make soak             load, overload, slow clients and kills with full figures, four minutes
#   make wheels           a wheel for each system, cross-compiled and looked into, in dist/
#   make train-nano PRESET=nano2   the recipe that made the embedded model
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt
COMPILED := src/dalle_server/engine/runners/cpu/compiled
PROJECT := pyproject.toml constraints.txt hatch_build.py $(COMPILED)/builds.py $(wildcard $(COMPILED)/c/*.[ch])
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n logical --dist worksteal
PORT   ?= 8000
ARGS   ?=
PRESET ?= cpu

.DEFAULT_GOAL := help
.PHONY: help serve test coverage check bench soak wheels train-nano clean

help:
	@sed -n '2,9s/^#   //p' Makefile

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.serve: $(PROJECT) | $(BIN)/python
	$(PIP) -e .
	@touch $@

$(VENV)/.dev: $(PROJECT) | $(BIN)/python
	$(PIP) -e '.[dev]'
	@touch $@ $(VENV)/.serve

$(VENV)/.bench: $(PROJECT) | $(BIN)/python
	$(PIP) -e '.[dev,bench]'
	@touch $@ $(VENV)/.serve

$(VENV)/.train: $(PROJECT) | $(BIN)/python
	$(PIP) -e '.[train]'
	@touch $@ $(VENV)/.serve

serve: $(VENV)/.serve
	$(BIN)/dalle-server serve --model_version nano --port $(PORT) $(ARGS)

test: $(VENV)/.dev
	$(BIN)/python -m tests.setup_system
	$(PYTEST) $(ARGS)

coverage:
	$(MAKE) test ARGS=--cov

check: $(VENV)/.dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(VENV)/.bench
	$(BIN)/python -m benchmarks $(ARGS)

soak: $(VENV)/.dev
	$(BIN)/python -m tests.web.serving.soak $(ARGS)

wheels: $(VENV)/.dev
	$(BIN)/python -m tests.packaging.wheels dist $(ARGS)

train-nano: $(VENV)/.train
	$(BIN)/python -m training --preset $(PRESET) $(ARGS)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
