# Everything happens in .venv; nothing needs to be set up by hand. SCF_ROOT and SCF_HOME are honoured.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help quickstart test install lint bench docs image clean

help:  ## Show these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

quickstart: install  ## Real data to a verified weekly release, in minutes
	@$(BIN)/scf quickstart; code=$$?; \
	if [ $$code -eq 3 ]; then exit 0; else exit $$code; fi

test: install  ## Run the tests
	@$(BIN)/python -m pytest -q $(PYTEST_ARGS)

install: $(STAMP)  ## Make .venv with everything

$(STAMP): pyproject.toml constraints.txt
	@command -v $(PYTHON) >/dev/null 2>&1 || { echo "make: no $(PYTHON) found: install Python 3.11 or newer, or say make PYTHON=/path/to/python3" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "make: $(PYTHON) is $$($(PYTHON) -V 2>&1), but 3.11 or newer is needed: say make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "make: $(PYTHON) has no venv module: install it (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@echo "Installing into $(VENV) (a few minutes the first time) ..." >&2
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[train,demo,hdf5,netcdf,parquet,cloud,ray,tune,hub,s3,tensorboard,dev]'
	@touch $(STAMP)

lint: install  ## Format, lint, types, layers
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: install  ## Benchmarks; results go to benchmarks/results/
	@$(BIN)/python -m benchmarks

image:  ## Build the worker's image with buildah (BASE=... TORCH=none for a try)
	@scripts/image.sh $(or $(TAG),scf-worker)

docs: install  ## Check that the documents' links and examples hold
	@$(BIN)/python -m pytest -q tests/docs

clean:  ## Remove what was built (never data/)
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
