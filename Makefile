# Every habit is one word; `make` alone lists them.

.DEFAULT_GOAL := help
.PHONY: help setup gen lint clients test test-fast soak run check clean
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:

VENV ?= .venv
# The first of these that is 3.11 or 3.12.
PYTHON ?= $(shell for p in python3.11 python3.12 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info[:2] not in ((3, 11), (3, 12)))' 2>/dev/null && echo $$p && break; done)
BIN := $(VENV)/bin
# One process a core; more than four only compete for what they start.
PARALLEL := -n logical --maxprocesses 4 --dist loadgroup
INPUTS := pyproject.toml constraints.txt
PIP_INSTALL := $(BIN)/python -m pip install --disable-pip-version-check --quiet -c constraints.txt

help:  ## show this table
	@grep -E '^[a-z-]+:.*##' $(firstword $(MAKEFILE_LIST)) | sed -E 's/:.*## /\t/' | \
		while IFS=$$'\t' read -r name text; do printf '  make %-10s %s\n' "$$name" "$$text"; done

setup: $(VENV)/.installed-dev  ## venv with everything for work on this repository; others run it when it is stale

gen: setup  ## stubs and the descriptor set from protos/ into gen/
	$(BIN)/python protos/generate.py

lint: setup  ## ruff, mypy, import-linter, buf lint and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/buf lint
	$(BIN)/buf format --diff --exit-code

clients: setup  ## foreign clients in an environment of their own: tritonclient, and Node with generated stubs
	$(BIN)/python tests/clients/install.py

test: clients  ## every test: unit, integration, contract, end to end
	$(BIN)/python -m pytest $(PARALLEL)

test-fast: setup  ## unit and integration tests, for the inner loop
	$(BIN)/python -m pytest $(PARALLEL) -m 'unit or integration'

SOAK ?=

soak: setup  ## 100,000 wrong requests, a million bodies a message that are none; a million good ones under faults, each answer judged; SOAK='--count 50000 --faults reload'
	$(PIP_INSTALL) -e '.[fuzz]' || echo 'atheris cannot be installed here: the fuzz is not guided by coverage'
	$(BIN)/python -m tests.proof.bad_input_soak
	$(BIN)/python -m tests.proof.fuzz_soak
	$(BIN)/python -m tests.proof.soak $(SOAK)
	if ls /usr/lib/*/faketime/libfaketimeMT.so.1 >/dev/null 2>&1; then \
		$(BIN)/python -m tests.proof.soak --count 20000 --rate 200 --faults clock-jump --output benchmarks/results/clock_jumps.md; \
	else echo 'no clock is moved: libfaketime is not installed (package faketime)'; fi

run: $(VENV)/.installed-run  ## the whole suite on this machine with the demo's models, until Ctrl-C
	@exec $(BIN)/interlock up --demo

check: setup  ## what CI runs: drift of gen/, lint, buf breaking, test
	$(BIN)/python protos/generate.py --check
	$(MAKE) lint
	$(BIN)/buf breaking --against $(BASELINE)
	$(MAKE) test

clean:  ## remove the venv and every cache; the state folder stays
	rm -rf $(VENV) .venv-clients tests/clients/node/node_modules .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +

# The committed image of the last released contracts.
BASELINE := protos/baseline.binpb

$(VENV)/bin/python:
	@if [ -z "$(PYTHON)" ]; then echo 'want Python 3.11 or 3.12: install one, or say where it is with PYTHON=/path/to/python' >&2; exit 1; fi
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed-run: $(VENV)/bin/python $(INPUTS)
	@echo 'installing what the services and the demo need into $(VENV)'
	$(PIP_INSTALL) -e '.[local]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/bin/python $(INPUTS)
	@echo 'installing everything into $(VENV)'
	$(PIP_INSTALL) -e '.[local,dev]'
	@touch $@ $(VENV)/.installed-run
