# Two commands do everything: `make run` and `make test`. `make help` lists the rest.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(shell date +%Y%m%d-%H%M%S)
OUT ?= runs/$(STAMP)
PYTHONS ?= python3.11 python3.12 python3.13

.DEFAULT_GOAL := help
.PHONY: help install run test matrix lint types check bench docs clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

install: $(VENV)/installed  ## virtual environment with tested versions

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=/path/to/python3.11")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	@touch $@

run: install  ## Mosaic on the embedded digits, and FedAvg of the same seed and rounds beside it
	$(BIN)/tessera run mosaic-digits --out $(OUT)/mosaic-digits
	$(BIN)/tessera run fedavg-digits --out $(OUT)/fedavg-digits
	$(BIN)/tessera report $(OUT)/mosaic-digits $(OUT)/fedavg-digits --out $(OUT)/report.html

test: install  ## all tests; those on real data need TESSERA_DATA
	$(BIN)/python -m pytest --numprocesses auto --dist loadgroup

matrix:  ## a run under each of PYTHONS with the tested versions; one that is not here is said and passed over
	@for python in $(PYTHONS); do \
		$$python -c "" 2>/dev/null || { echo "$$python: not here, passed over"; continue; }; \
		place=.matrix/$$(basename $$python); rm -rf $$place; \
		$$python -m venv $$place && \
		$$place/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt torch && \
		$$place/bin/pip install --quiet --disable-pip-version-check --constraint constraints.txt . && \
		(cd $$place && bin/tessera run fedavg-digits --set runner.kind=inline --set rounds=2 --set mlflow.enabled=false \
			--out smoke >smoke.txt 2>&1) && echo "$$python: a run went through" || { echo "$$python: failed"; exit 1; }; \
		rm -rf $$place; \
	done

lint: install  ## ruff: rules and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install  ## mypy over the four packages
	$(BIN)/mypy

check: lint types test  ## what CI runs

bench: install  ## the suite of benchmarks beside its last run; needs TESSERA_DATA
	$(BIN)/python -m benchmarks.suite

docs: install  ## what README.md and docs/ show of the program, written anew
	$(BIN)/python -m docs.make

clean:  ## remove the virtual environment and caches, not the runs
	rm -rf $(VENV) .matrix .pytest_cache .mypy_cache .ruff_cache .hypothesis
