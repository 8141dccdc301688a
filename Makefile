# `make help` lists the targets. Each installs what it needs into .venv, once for every change of pyproject.toml.

PYTHON ?= python3
TORCH_INDEX ?=
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help tune test test-all check lint types imports smoke wheel format install install-test install-dev clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "  PYTHON=python3.12     the interpreter that makes the virtual environment (3.11 or newer)"
	@echo "  TORCH_INDEX=URL       take torch from this package index (one with CPU wheels, say)"
	@echo "  ARGS='study=quick'    overrides for make tune, options for make test"

tune: install  ## Tune the built-in models: install, run the main job, print where the policy lies
	$(BIN)/python -m autospec tune $(ARGS)

test: install-test  ## Install with the test extras and run the tests
	$(BIN)/python -m pytest -n auto $(ARGS)

test-all: install-test  ## Run the slow tests and those for a GPU as well
	$(BIN)/python -m pytest -n auto -m "" $(ARGS)

check: lint types imports smoke test  ## All that continuous integration asks for; ends with the tests

lint: install-dev  ## Check format and lint rules
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

types: install-dev  ## Check types
	$(BIN)/mypy

imports: install-dev  ## Check that imports go down only
	$(BIN)/lint-imports --no-logo

smoke: install wheel  ## Run the built wheel's tune from another directory
	set -eu; folder=$$(mktemp -d); trap 'rm -rf "$$folder"' EXIT; \
	$(BIN)/python -m pip install --quiet --no-deps --target "$$folder/wheel" dist/*.whl; \
	python="$$PWD/$(BIN)/python"; mkdir "$$folder/elsewhere"; cd "$$folder/elsewhere"; \
	export PYTHONPATH="$$folder/wheel"; \
	"$$python" -c "import sys, autospec; assert autospec.__file__.startswith(sys.argv[1]), autospec.__file__" "$$folder"; \
	"$$python" -m autospec tune experiment=smoke; \
	test -s "$$(ls -d outputs/tune/*/policy.json)"

wheel: install  ## Build the wheel into dist/
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .

format: install-dev  ## Format the code and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

install: $(VENV)/.installed  ## Install autospec alone
install-test: $(VENV)/.installed-test
install-dev: $(VENV)/.installed-dev

# A fuller installation serves the smaller ones too, so each recipe touches the stamps below its own.
$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(call pip-install,.)
	touch $@

$(VENV)/.installed-test: pyproject.toml | $(BIN)/python
	$(call pip-install,.[test])
	touch $(VENV)/.installed $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(call pip-install,.[dev])
	touch $(VENV)/.installed $(VENV)/.installed-test $@

$(BIN)/python:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || \
	  { echo "autospec needs Python 3.11 or newer, but $(PYTHON) is $$($(PYTHON) --version 2>&1)"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The requirement on torch is read from pyproject.toml, so that it is written once.
torch-requirement = import tomllib; p = tomllib.load(open('pyproject.toml', 'rb'))['project']; \
  print(next(d for d in p['dependencies'] if d.startswith('torch')))
define pip-install
	$(if $(TORCH_INDEX),$(BIN)/python -m pip install --index-url "$(TORCH_INDEX)" \
	  "$$($(BIN)/python -c "$(torch-requirement)")")
	$(BIN)/python -m pip install --editable "$(1)"
endef

clean:  ## Remove the virtual environment, builds and caches; outputs/ stays
	rm -rf $(VENV) dist build .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
	find autospec tests -name __pycache__ -type d -prune -exec rm -rf {} +
