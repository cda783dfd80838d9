# Everything here sets up what it needs in .venv, once; a second run reuses it.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

# The interpreter that makes .venv (3.11 or newer).
PYTHON ?= $(shell command -v python3.11 || command -v python3.12 || command -v python3.13 || echo python3)
# What pip installs as torch, alone and first: a CPU or CUDA build of your choice.
TORCH ?= torch==2.13.0
# Test processes, and threads of each.
WORKERS ?= 2
# Further arguments of pytest, e.g. PYTEST="-k ewald".
PYTEST ?=

venv := .venv
bin := $(venv)/bin
# twice quiet: errors only, not the notices of mirrors
pip := $(bin)/python -m pip install --quiet --quiet
# One stamp per thing installed, in a folder named after the torch asked for, so that another TORCH= installs anew.
stamps := $(venv)/.stamps/$(shell printf '%s' '$(TORCH)' | cksum | cut -d ' ' -f 1)
fingerprint := { $(bin)/python -m pip list --format=freeze 2>/dev/null | grep -iE '^(torch|nvidia-[a-z0-9-]+)==' | sort; }

.PHONY: help
help:  ## list the targets
	@echo "farfield: make TARGET [TORCH=$(TORCH)] [PYTHON=...] [WORKERS=$(WORKERS)]"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

# ---- the two commands of the README ------------------------------------------------------------------------------------

.PHONY: demo
demo: $(stamps)/core  ## train a short-range and a long-range model on shipped data and compare them (demo-report/)
	$(bin)/farfield demo

.PHONY: test
test: $(stamps)/test  ## run the tests
	OMP_NUM_THREADS=1 $(bin)/python -m pytest -n $(WORKERS) $(PYTEST)

# ---- the rest ----------------------------------------------------------------------------------------------------------

.PHONY: coverage
coverage: $(stamps)/test  ## run the tests and measure branch coverage
	OMP_NUM_THREADS=1 $(bin)/python -m pytest -n $(WORKERS) --cov --cov-report=term --cov-report=html $(PYTEST)

.PHONY: docs
docs: $(stamps)/docs  ## build the documentation, warnings are errors (docs/_build/html/index.html)
	rm -rf docs/_build docs/gallery docs/api/generated
	$(bin)/python -m sphinx -b html -W --keep-going -q docs docs/_build/html

.PHONY: lint
lint: $(stamps)/lint  ## check style, types and layering
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	$(bin)/lint-imports

.PHONY: format
format: $(stamps)/lint  ## mend style where ruff can
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

.PHONY: hosts
hosts: $(stamps)/nox  ## check the adapters for other packages' potentials, each in an environment of its own
	$(bin)/python -m nox -s hosts

.PHONY: bench
bench: $(stamps)/core  ## time the sum and a training step, scan a strain, beside the published equations written plainly
	for script in electrostatics training_step strain_scan; do $(bin)/python benchmarks/$$script.py; done

.PHONY: peers
peers: $(stamps)/peers  ## install the codes that some tests compare with (torch-pme, nvalchemi-toolkit-ops, OpenMM)

.PHONY: dev
dev: $(stamps)/test $(stamps)/docs $(stamps)/lint  ## install all that a developer needs, with the commit hooks
	$(pip) -c $(stamps)/constraints.txt -e '.[dev]'
	$(bin)/pre-commit install

.PHONY: constraints
constraints: $(stamps)/core  ## write constraints.txt from what .venv holds now
	{ head -n 1 constraints.txt; $(bin)/python -m pip freeze --exclude-editable --exclude farfield \
	  | sed -E 's/^(torch==[0-9.]+)\+.*/\1/'; } > constraints.new
	mv constraints.new constraints.txt

.PHONY: clean
clean:  ## remove what was built; keep .venv
	rm -rf build dist docs/_build docs/gallery docs/api/generated htmlcov .coverage .coverage.* demo-report
	find . -name __pycache__ -not -path './$(venv)/*' -prune -exec rm -rf {} +

# ---- setting up .venv --------------------------------------------------------------------------------------------------

# torch goes in alone and first: asked for by another package it would come as the newest CUDA build.
$(stamps)/torch:
	@[ -x $(bin)/python ] || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "farfield needs Python 3.11 or newer; make it known as PYTHON=/path/to/python3" >&2; exit 1; }; \
	  echo "making $(venv)"; $(PYTHON) -m venv $(venv); }
	@rm -rf $(venv)/.stamps && mkdir -p $(stamps)
	@echo "installing $(TORCH)"
	@$(pip) "$(TORCH)"
	@$(fingerprint) > $(stamps)/fingerprint
	@touch $@

# constraints.txt pins torch too; another TORCH= overrides that one line.
$(stamps)/constraints.txt: constraints.txt $(stamps)/torch
	@{ grep -v '^torch==' constraints.txt; sed -E 's/^(torch==[0-9.]+)\+.*/\1/' $(stamps)/fingerprint; } > $@

# A bare comma would end the argument of $(call).
comma := ,

# After each install: torch must be the one chosen above, and nothing may have brought in CUDA libraries.
define install
	@echo "installing farfield$(1) (a minute or two the first time)"
	@$(pip) -c $(stamps)/constraints.txt -e '.$(1)'
	@$(fingerprint) | diff $(stamps)/fingerprint - \
	  || { echo "the step above replaced torch or brought in nvidia-* packages: remove $(venv) and run again" >&2; exit 1; }
	@touch $@
endef

$(stamps)/core: pyproject.toml $(stamps)/constraints.txt
	$(call install,)

$(stamps)/test: pyproject.toml $(stamps)/constraints.txt
	$(call install,[test])
	@touch $(stamps)/core

$(stamps)/docs: pyproject.toml $(stamps)/constraints.txt
	$(call install,[docs])
	@touch $(stamps)/core

$(stamps)/lint: pyproject.toml $(stamps)/constraints.txt
	$(call install,[lint])
	@touch $(stamps)/core

$(stamps)/nox: pyproject.toml $(stamps)/constraints.txt
	$(call install,[nox])
	@touch $(stamps)/core

$(stamps)/peers: pyproject.toml $(stamps)/constraints.txt
	$(call install,[test$(comma)peers])
	@touch $(stamps)/core
