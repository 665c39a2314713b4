"""The gradient of the whole network, jitted as in training, against PyTorch in float64.

The reference error is PyTorch's own float32 error. If rounding changes the branch of a ReLU or of a
maximum, a correct gradient differs by a percent.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import load_torch
from fcn_jax.convert.export import export_leaves
from fcn_jax.convert.tables import tables
from fcn_jax.models.names import named
from fcn_jax.train.losses import cross_entropy

torch = pytest.importorskip("torch")

FACTOR = 3
CLASSES = 5


@pytest.mark.slow
def test_gradients_are_as_exact_as_those_of_torch(d2l_network, make_model) -> None:
    network = d2l_network(CLASSES).train()
    model = make_model(CLASSES)
    load_torch(model, network.state_dict())
    rng = np.random.default_rng(0)
    images = rng.standard_normal((4, 96, 128, 3)).astype(np.float32)
    labels = rng.integers(0, CLASSES, (4, 96, 128)).astype(np.uint8)
    labels[:, :5] = 255

    def by_torch(dtype: torch.dtype) -> dict[str, np.ndarray]:
        network.to(dtype).zero_grad()
        x = torch.from_numpy(images.transpose(0, 3, 1, 2).copy()).to(dtype)
        torch.nn.functional.cross_entropy(
            network(x), torch.from_numpy(labels).long(), ignore_index=255
        ).backward()
        return {
            name: parameter.grad.double().numpy().copy()
            for name, parameter in network.named_parameters()
        }

    single, truth = by_torch(torch.float32), by_torch(torch.float64)
    model.train()
    graphdef, params, batch_stats = nnx.split(model, nnx.Param, nnx.BatchStat)

    @jax.jit
    def gradient(params):
        return jax.grad(
            lambda params: cross_entropy(
                nnx.merge(graphdef, params, batch_stats, copy=True)(jnp.asarray(images)), labels
            )
        )(params)

    ours = export_leaves(named(gradient(params)), tables(model.spec)["model", "d2l"])

    def error(found: dict[str, np.ndarray], name: str) -> float:
        return float(np.linalg.norm(found[name] - truth[name]) / np.linalg.norm(truth[name]))

    assert ours.keys() == truth.keys()
    floor = 8 * np.finfo(np.float32).eps
    too_far = {name: (error(ours, name), error(single, name)) for name in truth}
    too_far = {
        name: pair for name, pair in too_far.items() if pair[0] > FACTOR * max(pair[1], floor)
    }
    assert not too_far
