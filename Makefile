# Two commands do everything: `make run` and `make test`. `make help` lists the rest.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(shell date +%Y%m%d-%H%M%S)
OUT ?= runs/$(STAMP)

.DEFAULT_GOAL := help
.PHONY: help install run test lint types check bench docs clean

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
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
