# A virtual environment of the project's own; PYTHON picks the interpreter, VENV the place.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
NEWEST_PYTHON ?= python3.12
NEWEST_VENV ?= .venv-newest
TPU_VENV ?= .venv-tpu
RUN ?= runs/shapes
# Every distribution under plugins/ is installed beside the package.
PLUGINS = $(sort $(wildcard plugins/*/pyproject.toml))
EDITABLE_PLUGINS = $(patsubst %/pyproject.toml,-e %,$(PLUGINS))
PYTEST_OPTIONS = -q -rs -n 2 --dist worksteal --durations=40
PYTEST = $(BIN)/python -m pytest $(PYTEST_OPTIONS)

.PHONY: help install dev train test test-all test-slow test-newest fuzz bench bench-curves bench-models bench-gpu bench-gpu-quick bench-tpu-aot lint types clean

help:
	@echo "make train      train on the embedded shapes, evaluate, write pictures (a few minutes on 2 cores)"
	@echo "make test       the tests (some minutes on 2 cores; a second run is faster); make test-slow: the slow ones; make test-all: all, by the hour"
	@echo "make fuzz       3,000 mutated files, settings and arguments (some minutes); writes the table in docs/reliability.md"
	@echo "make test-newest  those that need no torch, with NEWEST_PYTHON and the newest releases"
	@echo "make bench      speed beside PyTorch and plain Flax (some minutes); make bench-curves: how cost grows with the work;"
	@echo "                make bench-models: whole models beside PyTorch (half an hour); make bench-gpu: on an NVIDIA GPU, bfloat16;"
	@echo "                make bench-gpu-quick: beside torch.compile alone, its training step untuned"
	@echo "make bench-tpu-aot  what the TPU compiler makes of training and inference, without a TPU (an hour)"
	@echo "make lint       ruff; make types: mypy"
	@echo "make clean      remove the virtual environments and what tests keep"

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt setuptools
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed $(PLUGINS)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-deps torchvision timm
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation --no-deps $(EDITABLE_PLUGINS)
	touch $@

install: $(VENV)/installed

dev: $(VENV)/installed-dev

train: install
	$(BIN)/fcn-jax train shapes --run $(RUN) --resume
	$(BIN)/fcn-jax eval $(RUN)
	@echo "image, truth and prediction side by side: $(RUN)/samples"

# Compiled without LLVM's optimization, which takes longer than what these tests compute; the slow ones and those against PyTorch's arrays
# run as users' programs do.
UNOPTIMIZED = XLA_FLAGS="--xla_backend_optimization_level=0 $$XLA_FLAGS"

test: dev
	$(UNOPTIMIZED) $(PYTEST) -m "not slow and not exhaustive"

test-all: dev
	$(PYTEST)

# Until FCN_JAX_SLOW_UNTIL, seconds since 1970, if that is set.
test-slow: dev
	$(PYTEST) -m "slow and not exhaustive"

# The newest releases, in an environment of their own and without torch: what compares with it is skipped, except against arrays that
# it wrote (FCN_JAX_REFERENCE).
$(NEWEST_VENV)/installed: pyproject.toml $(PLUGINS)
	$(NEWEST_PYTHON) -m venv $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/pip install -q --disable-pip-version-check setuptools
	$(NEWEST_VENV)/bin/pip install -q --disable-pip-version-check --no-build-isolation -e '.[test]' $(EDITABLE_PLUGINS)
	touch $@

test-newest: $(NEWEST_VENV)/installed
	$(NEWEST_VENV)/bin/python -m pip list --disable-pip-version-check | grep -E '^(jax|flax|optax|orbax-checkpoint|grain) '
	$(NEWEST_VENV)/bin/python -m pytest -q -rs -m "not slow and not exhaustive" tests/test_reference_arrays.py
	$(UNOPTIMIZED) $(NEWEST_VENV)/bin/python -m pytest $(PYTEST_OPTIONS) -m "not slow and not exhaustive" \
		--ignore tests/test_reference_arrays.py

fuzz: dev
	$(BIN)/python -m fuzz --cases 3000 --seed 0 --table docs/reliability.md

bench: dev
	$(BIN)/python -m benchmarks

bench-curves: dev
	$(BIN)/python -m benchmarks.curves

bench-models: dev
	$(BIN)/python -m benchmarks.models

# In the environment at hand, whose torch and jax know the GPU: GPU_PYTHON picks it.
GPU_PYTHON ?= python3
bench-gpu:
	$(GPU_PYTHON) -m benchmarks.forms
	$(GPU_PYTHON) -m benchmarks --device cuda --dtype bfloat16 --batch 32 --out benchmarks/results/speed_cuda_32x320x480.json
	$(GPU_PYTHON) -m benchmarks --device cuda --dtype bfloat16 --batch 8 --size 512 1024 --out benchmarks/results/speed_cuda_8x512x1024.json

# Beside torch.compile alone, and without its tuning of a training step, which is not done after four minutes.
bench-gpu-quick:
	$(GPU_PYTHON) -m benchmarks --device cuda --dtype bfloat16 --batch 32 --contender torch.compile \
		--task training --torch-mode reduce-overhead --out benchmarks/results/speed_cuda_training.json
	$(GPU_PYTHON) -m benchmarks --device cuda --dtype bfloat16 --batch 32 --contender torch.compile \
		--task logits --task mask --out benchmarks/results/speed_cuda_inference.json

# The TPU compiler in an environment of its own, without torch.
$(TPU_VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TPU_VENV)
	$(TPU_VENV)/bin/pip install -q --disable-pip-version-check -c constraints.txt setuptools
	$(TPU_VENV)/bin/pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[tpu]'
	touch $@

bench-tpu-aot: $(TPU_VENV)/installed
	$(TPU_VENV)/bin/python -m benchmarks.tpu_aot

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: dev
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(NEWEST_VENV) $(TPU_VENV) .pytest_cache
