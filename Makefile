# `make demo` searches real pictures; `make test` runs every check. Both need python3 and nothing else.
PYTHON ?= python3
# Tests start hundreds of processes, and each would compile our modules again.
export PYTHONDONTWRITEBYTECODE :=
BIN := .venv/bin
SOURCE ?=
# Each worker has a Postgres and an index of its own, and one thread to compute in: more would wait for each other.
# One more than there are cores, because tests wait; a second one more makes them slower.
# Tests that share a console or another server are a group and stay on one worker.
WORKERS := $(shell $(PYTHON) -c 'import os; print(min(4, (os.cpu_count() or 1) + 1))')
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n $(WORKERS) --dist loadgroup

.PHONY: demo test lint types tests test-all test-fast test-services test-system bench stress help

help:
	@echo "make demo                 fetch a captioned set of pictures, ingest it, search it"
	@echo "make demo SOURCE=folder   the same with your own pictures"
	@echo "make test                 linters, types, import rules and tests"
	@echo "make test-fast            tests that start no server, no model and no process (under two minutes)"
	@echo "make test-services        tests of Postgres, the index, models and processes"
	@echo "make test-system          tests with a browser, Prefect, Prometheus, and kills"
	@echo "make test-all             the same, with every kill point and far more faults (half an hour or more)"
	@echo "make bench                speed and memory, measured here: tables, and bench.json (three quarters of an hour)"
	@echo "make stress               eight processes on one index, whose owner is killed (minutes)"

demo: .venv/installed
	@$(BIN)/sightline demo $(SOURCE)

test: lint types tests

lint: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

types: .venv/installed
	$(BIN)/mypy

tests: .venv/installed
	$(PYTEST)

test-all: .venv/installed lint types
	$(PYTEST) -m ""

# The three lanes together are the tests of `make test`, but for doctests, which are in none.
test-fast: .venv/installed
	$(PYTEST) tests -m "not services and not system and not full"

test-services: .venv/installed
	$(PYTEST) tests -m "services and not system and not full"

test-system: .venv/installed
	$(PYTEST) tests -m "system and not full"

bench: .venv/installed
	$(BIN)/python -m tests.bench
	$(BIN)/python -m tests.bench.index
	$(BIN)/python -m tests.bench.reconcile
	$(BIN)/python -m tests.bench.backup
	$(BIN)/python -m tests.bench.console

stress: .venv/installed
	$(BIN)/python -m tests.bench.stress

# Installing takes minutes, so it happens once, and again only when what is to be installed has changed.
# pip would compile on one core, for a quarter of that time. Like pip it leaves out files of other Pythons.
.venv/installed: pyproject.toml infra/constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-compile -c infra/constraints.txt -e '.[dev]'
	$(BIN)/python -m compileall -qq -j 0 .venv/lib || true
	touch $@
