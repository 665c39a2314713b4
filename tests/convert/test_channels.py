"""Weights for RGB in models of other channels."""

import numpy as np
import pytest
from flax import nnx

from fcn_jax import checkpoint
from fcn_jax.api import ModelSpec
from fcn_jax.convert.export import to_torch
from fcn_jax.convert.init import init_from
from fcn_jax.convert.load import load_torch
from fcn_jax.errors import WeightsError
from fcn_jax.models.build import build
from fcn_jax.models.channels import adapted_kernel
from fcn_jax.models.names import leaves

pytestmark = pytest.mark.usefixtures("tiny_plugin")

KERNEL = "backbone.conv1.conv.kernel"


def tiny(channels: int = 3, seed: int = 0):
    spec = ModelSpec("tiny", "fcn32s", 2, backbone_options={"width": 4}, in_channels=channels)
    return build(spec, rngs=nnx.Rngs(seed))


def values(model) -> dict[str, np.ndarray]:
    return {path: np.asarray(leaf[...]) for path, leaf in leaves(model).items()}


@pytest.mark.parametrize(("count", "how"), [(1, "summed over RGB"), (5, "repeated, times 3/5")])
def test_adapts_weights_of_rgb_and_says_so(count: int, how: str) -> None:
    source, model = tiny(seed=1), tiny(count)
    report = load_torch(model, to_torch(source))
    expected = values(source)
    expected[KERNEL] = adapted_kernel(expected[KERNEL], count)
    found = values(model)
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        np.testing.assert_array_equal(found[path], value, err_msg=path)
    assert report.adapted == {"backbone.conv1.weight": count}
    said = f"backbone.conv1.weight adapted from 3 to {count} input channels (its kernels are {how})"
    assert said in str(report)


def test_adapts_a_checkpoint_of_rgb(tmp_path) -> None:
    source, model = tiny(seed=1), tiny(4)
    checkpoint.save_model(
        tmp_path / "rgb", checkpoint.make_spec(source.spec), checkpoint.arrays(source)
    )
    report = init_from(model, tmp_path / "rgb")
    assert report.adapted == {KERNEL: 4}
    np.testing.assert_array_equal(values(model)[KERNEL], adapted_kernel(values(source)[KERNEL], 4))


def test_weights_of_as_many_channels_load_as_they_are() -> None:
    source, model = tiny(4, seed=1), tiny(4)
    report = load_torch(model, to_torch(source))
    assert not report.adapted
    np.testing.assert_array_equal(values(model)[KERNEL], values(source)[KERNEL])


@pytest.mark.parametrize(("there", "wanted"), [(4, 3), (4, 5), (1, 3)])
def test_refuses_other_channels_than_rgb(there: int, wanted: int) -> None:
    model = tiny(wanted)
    before = values(model)
    with pytest.raises(WeightsError, match=rf"shape \(4, {there}, 5, 5\), the model needs"):
        load_torch(model, to_torch(tiny(there, seed=1)))
    np.testing.assert_array_equal(values(model)[KERNEL], before[KERNEL])


def test_a_spec_of_other_channels_survives_a_checkpoint(tmp_path) -> None:
    spec = ModelSpec(
        "tiny", "fcn32s", 2, backbone_options={"width": 4},
        in_channels=2, mean=(1.0, 2.0), std=(3.0, 4.5),
    )  # fmt: skip
    model = build(spec, rngs=nnx.Rngs(0))
    recorded = checkpoint.make_spec(spec, value_range={"stored": "float32"})
    checkpoint.save_model(tmp_path / "m", recorded, checkpoint.arrays(model))
    loaded, found = checkpoint.load_model(tmp_path / "m")
    assert found.model.mean == (1.0, 2.0)
    assert loaded.spec.std == (3.0, 4.5)
    np.testing.assert_array_equal(values(loaded)[KERNEL], values(model)[KERNEL])
