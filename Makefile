# Everything below sets itself up: Python 3.11 or newer and make are enough.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
RUN ?= runs/digits_impaired-$(shell date +%Y%m%d-%H%M%S)

.PHONY: help install outside train results test test-cluster lint clean

help:  ## Show the targets.
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/'

install: $(STAMP)  ## Create .venv with the exact tested versions.

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "esper-ray needs Python 3.11 or newer, this is %s: try make PYTHON=python3.11" % sys.version.split()[0])'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[data,dev,graph,lightning,redis]'
	@touch $@

outside: .venv-outside/.installed .venv-dacbench/.installed  ## Create the virtual environments of benchmarks.outside.

.venv-outside/.installed: pyproject.toml constraints.txt benchmarks/outside_requirements.txt
	$(PYTHON) -m venv .venv-outside
	.venv-outside/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[data]'
	.venv-outside/bin/pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/outside_requirements.txt
	@touch $@

.venv-dacbench/.installed: benchmarks/dacbench_requirements.txt
	$(PYTHON) -m venv .venv-dacbench
	.venv-dacbench/bin/pip install --quiet --disable-pip-version-check --no-deps -r benchmarks/dacbench_requirements.txt
	@touch $@

train: $(STAMP)  ## Train on digits_impaired (five to ten minutes on 2 cores), evaluate, draw one episode.
	$(BIN)/esper-ray train --preset quickstart --run-dir $(RUN)
	$(BIN)/esper-ray evaluate $(RUN) --episodes 64
	$(BIN)/esper-ray replay $(RUN)

results: $(STAMP)  ## Make what is missing of docs/results.md: hours; stop it with Ctrl-C, and it goes on.
	$(BIN)/esper-ray results

test: $(STAMP)  ## Run the whole test suite.
	$(BIN)/pytest -n 2

test-cluster: $(STAMP)  ## Rehearse a cluster on this machine: nodes, jobs, deaths, an autoscaler; and the policy service.
	$(BIN)/pytest -m cluster

lint: $(STAMP)  ## ruff, mypy --strict, import-linter.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:  ## Remove what make install made.
	rm -rf $(VENV) .venv-outside .venv-dacbench *.egg-info
