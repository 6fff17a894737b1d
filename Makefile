# Two commands for newcomers: `make post` prints three posts, `make test` runs everything.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BACKEND := $(if $(filter Linux,$(shell uname -s)),$(if $(wildcard /proc/driver/nvidia/version),cuda13,cpu))

.PHONY: post test check bench chaos sanitize clean

post: $(VENV)/installed
	@$(BIN)/genserve post 3

PYTEST := $(BIN)/python -m pytest --dist loadfile --no-loadscope-reorder

# A worker more than there are cores at least: what starts processes on Ray waits a lot (tests/conftest.py).
test: $(VENV)/installed-dev
	$(PYTEST) --numprocesses 3

check: $(VENV)/installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST) --numprocesses 2 -m "not ray and not model"

bench: $(VENV)/installed-dev
	$(BIN)/genserve bench

chaos: $(VENV)/installed-dev
	$(BIN)/python -m benchmarks.chaos

# The CPU kernels without Python. Needs cmake; memcheck needs valgrind, and arm64 g++-aarch64-linux-gnu and qemu-user.
UNDER_address := -DGENSERVE_SANITIZE=address,undefined
UNDER_thread := -DGENSERVE_SANITIZE=thread
UNDER_memcheck := -DGENSERVE_UNDER='valgrind;--quiet;--error-exitcode=1;--leak-check=full;--errors-for-leak-kinds=definite'
UNDER_arm64 := -DGENSERVE_UNDER='qemu-aarch64;-L;/usr/aarch64-linux-gnu' -DCMAKE_SYSTEM_NAME=Linux \
	-DCMAKE_SYSTEM_PROCESSOR=aarch64 -DCMAKE_CXX_COMPILER=aarch64-linux-gnu-g++

sanitize: sanitize-address sanitize-thread sanitize-memcheck sanitize-arm64

sanitize-%:
	cmake -S engine/kernels/cpu/native -B build/$* -DGENSERVE_DRIVER=ON -DCMAKE_BUILD_TYPE=Debug \
		-DCMAKE_CXX_FLAGS_DEBUG='-O1 -g' $(UNDER_$*)
	cmake --build build/$*
	ctest --test-dir build/$* --output-on-failure

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
