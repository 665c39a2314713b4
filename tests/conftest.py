"""Fixtures of the package's tests: real data, PyTorch's networks, models that cost little."""

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# importlib.metadata takes what lies here for an installed plugin.
sys.path.insert(0, str(Path(__file__).parent / "fixtures" / "tiny"))


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photographs and weights. Without one, the test is skipped."""
    folder = Path(os.environ.get("FCN_JAX_SHARED") or Path(__file__).parents[2] / "shared")
    if not folder.is_dir():
        pytest.skip(f"{folder}: no such folder of real data")
    return folder


@pytest.fixture(scope="session")
def torchvision() -> Any:
    for name in ("torch", "torchvision"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"needs {name}")
    from fcn_jax.pytorch.reference import import_torchvision

    return import_torchvision()


@pytest.fixture(scope="session")
def randomize() -> Callable[..., Any]:
    """A function that randomizes the batch norms of a torch network and sets it to eval mode."""
    return _randomize


def _randomize(network: Any, seed: int = 0) -> Any:
    """Give batch norms statistics, scales and shifts with which a wrong port is wrong."""
    import torch

    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor, low, high in (
                (module.weight, 0.5, 1.0),
                (module.bias, -0.3, 0.3),
                (module.running_mean, -0.3, 0.3),
                (module.running_var, 0.5, 2.0),
            ):
                tensor.data.uniform_(low, high, generator=generator)
            module.num_batches_tracked.fill_(7)
    return network.eval()


@pytest.fixture(scope="session")
def make_resnet18(torchvision) -> Callable[[], Any]:
    """torchvision's ResNet-18 with random parameters and statistics."""

    def make() -> Any:
        import torch

        torch.manual_seed(0)
        return _randomize(torchvision.models.resnet18(weights=None))

    return make


@pytest.fixture(scope="session")
def d2l_network(make_resnet18) -> Callable[[int], Any]:
    """The network of d2l: num_classes -> a torch Sequential in eval mode."""

    def make(num_classes: int) -> Any:
        import torch

        network = torch.nn.Sequential(*list(make_resnet18().children())[:-2])
        network.add_module("final_conv", torch.nn.Conv2d(512, num_classes, kernel_size=1))
        network.add_module(
            "transpose_conv",
            torch.nn.ConvTranspose2d(num_classes, num_classes, 64, padding=16, stride=32),
        )
        return network.eval()

    return make


@pytest.fixture(scope="session")
def abstract_model() -> Callable[..., Any]:
    """ResNet-18 + fcn32s with shapes instead of arrays: num_classes -> a new model."""
    known: dict[Any, Any] = {}

    def make(num_classes: int, *, dtype: str = "float32") -> Any:
        from flax import nnx

        from fcn_jax.models.build import build_model

        key = num_classes, dtype
        if key not in known:
            known[key] = nnx.split(
                nnx.eval_shape(
                    lambda: build_model(
                        "resnet18", "fcn32s", num_classes, dtype=dtype, rngs=nnx.Rngs(0)
                    )
                )
            )
        return nnx.merge(*known[key], copy=True)

    return make


@pytest.fixture(scope="session")
def make_model(abstract_model) -> Callable[..., Any]:
    """ResNet-18 + fcn32s with values from NumPy: drawing the real initial values is slow."""

    def make(num_classes: int = 21, *, dtype: str = "float32", seed: int = 0) -> Any:
        import jax.numpy as jnp
        from flax import nnx

        model = abstract_model(num_classes, dtype=dtype)
        rng = np.random.default_rng(seed)
        state = nnx.state(model)
        for path, leaf in nnx.to_flat_state(state):
            shape = leaf.get_value().shape
            if path[-1] == "num_batches_tracked":
                value = np.zeros(shape, np.int32)
            elif path[-1] == "kernel":
                value = rng.standard_normal(shape, np.float32) * np.sqrt(
                    2 / np.prod(shape[:-1])
                ).astype(np.float32)
            else:
                value = np.full(shape, path[-1] in ("scale", "var"), np.float32)
            leaf.set_value(jnp.asarray(value))
        nnx.update(model, state)
        return model

    return make


@pytest.fixture(scope="module")
def tiny_plugin() -> Iterator[None]:
    """Register the backbone `tiny` of tests/fixtures: two convolutions, a batch norm, dropout."""
    from importlib import metadata

    from fcn_jax.plugins import registry

    folder = str(Path(__file__).parent / "fixtures" / "tiny")
    entries, _ = registry.read_metadata(
        [*metadata.distributions(), *metadata.distributions(path=[folder])]
    )
    plugins = registry.Registry(entries)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setattr(registry, "default", lambda: plugins)
        yield


@pytest.fixture
def site(tmp_path, monkeypatch) -> Iterator[Any]:
    """An `installing.Site` in the test's folder. Its modules are forgotten after the test."""
    from tests.helpers.installing import Site

    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield Site(tmp_path)
    for name in set(sys.modules) - before:
        if (
            getattr(sys.modules[name], "__file__", None)
            and Path(sys.modules[name].__file__).parent == tmp_path
        ):
            del sys.modules[name]
