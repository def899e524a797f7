# SPDX-License-Identifier: GPL-3.0-or-later
# The commands that people and CI rely on; `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

ROOT := $(CURDIR)
VENV := .venv
BIN := $(ROOT)/$(VENV)/bin
PIP := $(BIN)/pip --disable-pip-version-check --quiet
export BLOCKFLEET_ROOT := $(ROOT)

.PHONY: help
help: ## Show this list
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

$(VENV)/.base:
	python3 -m venv $(VENV)
	touch $@

$(VENV)/.demo: $(VENV)/.base agent/pyproject.toml agent/constraints.txt
	$(PIP) install -c agent/constraints.txt -e 'agent[demo]'
	touch $@

$(VENV)/.dev: $(VENV)/.base agent/pyproject.toml agent/constraints.txt
	$(PIP) install -c agent/constraints.txt -e 'agent[dev]'
	touch $@ $(VENV)/.demo

.PHONY: dev
dev: $(VENV)/.dev ## Set up .venv for work on the project

.PHONY: demo
demo: $(VENV)/.demo ## Converge a host against a target and show every step (DEMO_TARGET=tgt for tgt)
	@tests/demo/run

.PHONY: peers
peers: ## Install the real peers that the tests meet (Debian packages; needs root)
	@tests/peers/install

.PHONY: test
test: $(VENV)/.dev peers ## Run all tests but the slow lab; writes build/junit*.xml; PYTEST="..." narrows it
	@mkdir -p build
ifdef PYTEST
	cd agent && $(BIN)/pytest --junit-xml=$(ROOT)/build/junit.xml $(PYTEST)
else
	cd agent && $(BIN)/pytest -m 'not lab and not alone' -n 2 --dist loadfile --junit-xml=$(ROOT)/build/junit.xml
	cd agent && $(BIN)/pytest -m alone --junit-xml=$(ROOT)/build/junit-alone.xml
endif

.PHONY: check
check: $(VENV)/.dev ## Format, lint, types, layers, docs, changelog
	@tests/check/run

.PHONY: e2e
e2e: $(VENV)/.dev ## What needs the lab: systemd containers, Molecule, LIO (BLOCKFLEET_LAB_SECONDS of load)
	@tests/e2e/run

.PHONY: bench
bench: $(VENV)/.dev peers ## Side by side against the peers; writes build/bench.json
	@cd agent && $(BIN)/python -m tests.bench $(BENCH)

.PHONY: fuzz
fuzz: $(VENV)/.dev ## Every parser of a peer's bytes under the fuzzer; DURATION=3600 seconds in all; FUZZ="--keep nbd" narrows it
	@cd agent && $(BIN)/python -m tests.fuzz --duration $(or $(DURATION),3600) $(FUZZ)

.PHONY: clean
clean: ## Remove what the other commands made
	rm -rf build $(VENV) .ansible agent/src/*.egg-info
