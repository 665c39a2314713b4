# A virtual environment of the project's own; PYTHON picks the interpreter, VENV the place.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
NEWEST_PYTHON ?= python3.12
NEWEST_VENV ?= .venv-newest
RUN ?= runs/shapes
PYTEST = $(BIN)/python -m pytest -q -rs -n 2 --dist loadfile

.PHONY: help install dev train test test-all test-newest bench lint types clean

help:
	@echo "make train      train on the embedded shapes, evaluate, write pictures (a few minutes on 2 cores)"
	@echo "make test       the tests (under 10 minutes on 2 cores); make test-all adds the slow ones"
	@echo "make test-newest  those that need no torch, with NEWEST_PYTHON and the newest releases"
	@echo "make bench      speed beside PyTorch and plain Flax (some minutes)"
	@echo "make lint       ruff; make types: mypy"
	@echo "make clean      remove the virtual environment"

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt setuptools
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e .
	touch $@

$(VENV)/installed-dev: $(VENV)/installed plugins/fcn-jax-deeplab/pyproject.toml plugins/fcn-jax-mobilenet/pyproject.toml plugins/fcn-jax-vgg/pyproject.toml
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-deps torchvision timm
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation -e '.[dev]'
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation --no-deps -e plugins/fcn-jax-deeplab
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation --no-deps -e plugins/fcn-jax-mobilenet
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt --no-build-isolation --no-deps -e plugins/fcn-jax-vgg
	touch $@

install: $(VENV)/installed

dev: $(VENV)/installed-dev

train: install
	$(BIN)/fcn-jax train shapes --run $(RUN) --resume
	$(BIN)/fcn-jax eval $(RUN)
	@echo "image, truth and prediction side by side: $(RUN)/samples"

test: dev
	$(PYTEST) -m "not slow"

test-all: dev
	$(PYTEST)

# The newest releases, in an environment of their own and without torch: what compares with it is skipped, except against arrays that
# it wrote (FCN_JAX_REFERENCE).
$(NEWEST_VENV)/installed: pyproject.toml plugins/fcn-jax-deeplab/pyproject.toml plugins/fcn-jax-mobilenet/pyproject.toml plugins/fcn-jax-vgg/pyproject.toml
	$(NEWEST_PYTHON) -m venv $(NEWEST_VENV)
	$(NEWEST_VENV)/bin/pip install -q --disable-pip-version-check setuptools
	$(NEWEST_VENV)/bin/pip install -q --disable-pip-version-check --no-build-isolation -e '.[test]' -e plugins/fcn-jax-deeplab -e plugins/fcn-jax-mobilenet -e plugins/fcn-jax-vgg
	touch $@

test-newest: $(NEWEST_VENV)/installed
	$(NEWEST_VENV)/bin/python -m pip list --disable-pip-version-check | grep -E '^(jax|flax|optax|orbax-checkpoint|grain) '
	$(NEWEST_VENV)/bin/python -m pytest -q -rs -n 2 --dist loadfile -m "not slow"

bench: dev
	$(BIN)/python -m benchmarks

lint: dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: dev
	$(BIN)/mypy

clean:
	rm -rf $(VENV) $(NEWEST_VENV)
