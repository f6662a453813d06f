# Two commands for a fresh clone: `make demo` and `make test`. Both build .venv first and skip that when it is up to date.
PYTHON ?= python3
BIN := .venv/bin
# A worker per core, at most four: each holds a copy of PyTorch. Files stay whole, since fixtures are made per file.
PARALLEL := -n auto --maxprocesses 4 --dist loadfile

.PHONY: setup demo test test-all faults lint docs clean

setup: .venv/.installed

.venv/.installed: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@echo "Installing frepa and what it needs into .venv (a few minutes the first time)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[test]"
	@touch $@

demo: setup
	$(BIN)/frepa demo --out demo --overwrite

test: setup
	$(BIN)/python -m pytest -m "not slow" $(PARALLEL)

test-all: setup
	$(BIN)/python -m pytest $(PARALLEL)

# Attacks: kills, full disks, lost sources, hostile files. Most of an hour on two cores; docs/reliability.md says what of.
faults: setup
	$(BIN)/python -m pytest tests/faults tests/images/store/test_restart.py tests/pretraining/test_resume.py
	$(BIN)/python -m tests.faults.mutate --count 2500 --seed 7
	$(BIN)/python -m tests.faults.mutate_options --count 700 --seed 2

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: setup
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[docs]"
	$(BIN)/mkdocs build --strict

clean:
	rm -rf .venv demo build dist site
