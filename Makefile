# Two commands for newcomers: `make post` prints three posts, `make test` runs everything.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BACKEND := $(if $(filter Linux,$(shell uname -s)),$(if $(wildcard /proc/driver/nvidia/version),cuda13,cpu))

.PHONY: post test check bench chaos clean

post: $(VENV)/installed
	@$(BIN)/genserve post 3

test: $(VENV)/installed-dev
	$(BIN)/python -m pytest

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest -m "not ray and not model"

bench: $(VENV)/installed-dev
	$(BIN)/genserve bench

chaos: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.chaos

$(VENV)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "genserve needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V). Try: make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/installed: $(VENV)/python pyproject.toml $(wildcard setup.py)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$(BACKEND)]"
	@touch $@

$(VENV)/installed-dev: $(VENV)/python pyproject.toml $(wildcard setup.py)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable ".[$(BACKEND),dev]"
	@touch $@ $(VENV)/installed

clean:
	rm -rf $(VENV) build *.egg-info
