"""Fixtures: the registry with this project's plugins, and segmentation-models-pytorch."""

import functools
from importlib.util import find_spec
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax.convert.load import import_by_table


@pytest.fixture(autouse=True)
def plugins(plugin_project):
    return plugin_project(Path(__file__).parents[1] / "pyproject.toml")


@pytest.fixture(scope="session")
def smp():
    for name in ("torch", "torchvision", "timm", "segmentation_models_pytorch"):
        if find_spec(name) is None:
            pytest.skip(f"needs {name}")
    from fcn_jax_mit.bridge import import_smp

    return import_smp()


@pytest.fixture(scope="session")
def agree():
    """A function that compares features and the gradient of every parameter with a reference."""
    return _agree


def _agree(reference, port, table, image):
    """Randomize the reference, load it into the port, and run both in float32, in eval mode."""
    import torch

    torch.manual_seed(0)
    for parameter in reference.parameters():
        if parameter.ndim < 4:  # the initial values of many hide faults
            torch.nn.init.normal_(parameter, 0.3 * (parameter.ndim == 1), 0.2)
    reference.eval(), port.eval()
    import_by_table(port, reference.state_dict(), table)
    graphdef, state = nnx.split(port)

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradients(state, x):
        features = nnx.merge(graphdef, state)(x)
        return sum(jnp.sin(y).sum() for y in features.values()), features

    grads, features = gradients(state, image)
    theirs = reference(torch.tensor(np.moveaxis(image, -1, 1)))
    sum(y.sin().sum() for y in theirs.values()).backward()
    for name, found in features.items():
        expected = theirs[name].detach().permute(0, 2, 3, 1).numpy()
        assert found.shape == expected.shape, name
        assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max(), name
    for path, grad in nnx.to_flat_state(grads):
        name, rule = table.to_torch(".".join(map(str, path)))
        expected = rule.op.to_jax(reference.get_parameter(name).grad.numpy())
        size = np.abs(expected).max()
        assert size > 0, f"{name} is constant"
        assert np.abs(grad[...] - expected).max() < 2e-3 * size, name
