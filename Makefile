# Every target that runs Python uses .venv, which it makes when it is missing or out of date.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
ZOO := build/zoo

# Also pins what pip installs into the isolated environments in which it builds packages.
export PIP_CONSTRAINT := constraints.txt
export PIP_BUILD_CONSTRAINT := constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export MPLBACKEND ?= Agg

FAST := "not slow and not gpu and not ray and not zoo"
CORE := tests/test_laws_*.py tests/test_kernel.py tests/test_mapping.py tests/test_heads.py tests/test_training.py \
	tests/test_trainer.py tests/test_odd_trainings.py tests/test_branching.py tests/test_delivery.py tests/test_given_networks.py tests/test_batches.py tests/test_binding.py tests/test_storage.py

OLDEST := build/oldest
# What is left out here is the oldest PyTorch itself, 2.6.0, whose builds for Linux bring gigabytes of CUDA packages.
OLDEST_TORCH ?= 2.13.0

.DEFAULT_GOAL := help
.PHONY: help venv test test-rounding test-ray test-zoo test-oldest test-all check lint types layers format wheel demo fashion bench \
	bench-venv bench-smoke bench-gpu compatibility docs-tables clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

venv: $(STAMP)  ## make .venv with the package (editable) and every tool for development
$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[dev]"
	touch $@

test: venv  ## the tests that every change must pass, on all cores
	$(BIN)/python -m pytest -q -n logical --dist worksteal -m $(FAST)

test-rounding: venv  ## all but examples once more, with products that round as on processors without AVX-512
	MKL_ENABLE_INSTRUCTIONS=AVX2 $(BIN)/python -m pytest -q -n logical --dist worksteal -m $(FAST) \
		--ignore tests/test_examples.py --ignore tests/test_documents.py

test-ray: venv  ## tests that start Ray on this machine; some minutes
	$(BIN)/python -m pytest -q -m "ray and not slow and not gpu"

$(ZOO)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(ZOO)
	$(ZOO)/bin/python -m pip install --quiet -c constraints.txt "torch==2.13.0" -e ".[zoo]"
	touch $@

test-zoo: $(ZOO)/.installed  ## networks of other packages, in an environment of their own
	$(ZOO)/bin/python -m pytest -q tests/zoo

$(OLDEST)/.installed: pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv $(OLDEST)
	PIP_CONSTRAINT= $(OLDEST)/bin/python -m pip install --quiet -c constraints-oldest.txt "torch==$(OLDEST_TORCH)" \
		-e ".[plots,sklearn]" beartype hypothesis pandas polars pytest pytest-xdist
	touch $@

test-oldest: $(OLDEST)/.installed  ## the core with the oldest versions that are allowed; PyTorch by OLDEST_TORCH=2.6.0
	$(OLDEST)/bin/python -m pytest -q -n logical --dist worksteal -m $(FAST) $(CORE)

test-all: venv  ## all tests; those whose device or extra is missing skip themselves
	$(BIN)/python -m pytest -q

check: lint types layers  ## every static check

lint: venv  ## ruff: rules and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: venv  ## mypy, strict
	$(BIN)/mypy

layers: venv  ## import-linter: imports point downwards only
	$(BIN)/lint-imports

format: venv  ## rewrite the files as `make lint` wants them
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: venv  ## build the wheel, install it in a bare environment and check it there
	rm -rf dist build/wheel
	$(BIN)/python -m build --wheel --outdir dist
	$(PYTHON) -m venv build/wheel
	build/wheel/bin/python -m pip install --quiet -c constraints.txt dist/*.whl
	build/wheel/bin/python -I .ci/check_wheel.py
	rm -rf build/wheel

demo: venv  ## train once and deliver a network, on scikit-learn's digits
	$(BIN)/python examples/digits.py

fashion: venv  ## the same on Fashion-MNIST
	$(BIN)/python examples/fashion_mnist.py

bench-venv: venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e ".[bench]"

bench: bench-venv  ## run every benchmark and write its JSON
	$(BIN)/python -m benchmarks.run

bench-smoke: bench-venv  ## the same, as small as it goes: only shows that the scripts run
	$(BIN)/python -m benchmarks.run --smoke

bench-gpu: venv  ## on a machine with a GPU, in under five minutes: is everything right there, and what does it cost?
	$(BIN)/python -m benchmarks.gpu

compatibility: $(ZOO)/.installed  ## measure what is generated of which network, by which mapping, and at which cost
	$(ZOO)/bin/python -m benchmarks.run compatibility

docs-tables: venv  ## generate the tables and figures in docs/ from the benchmarks' JSON
	$(BIN)/python -m benchmarks.tables
	$(BIN)/python -m benchmarks.figures

clean:  ## remove environments, builds and caches
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
