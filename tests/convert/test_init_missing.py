"""Initial values of the tensors that a weights file lacks."""

import jax
import numpy as np
import pytest
from flax import nnx

import fcn_jax
from fcn_jax.convert import load
from fcn_jax.convert.export import to_torch
from fcn_jax.convert.load import init_missing, load_torch
from fcn_jax.models.build import build_model
from fcn_jax.models.names import WEIGHTS, leaves


def values(module):
    """All variables of a network, with the keys of its dropout."""
    return {path: plain(leaf.get_value()) for path, leaf in nnx.to_flat_state(nnx.state(module))}


def plain(value):
    return np.asarray(
        jax.random.key_data(value)
        if jax.dtypes.issubdtype(value.dtype, jax.dtypes.prng_key)
        else value
    )


def assert_same(ours, theirs):
    assert ours.keys() == theirs.keys()
    for path, value in theirs.items():
        np.testing.assert_array_equal(ours[path], value, err_msg=str(path))


def tiny(seed):
    return build_model("tiny", "fcn", 3, rngs=nnx.Rngs(seed))  # its head has dropout


def test_values_equal_those_of_the_complete_network(tiny_plugin):
    source, whole = tiny(1), tiny(2)
    model = nnx.eval_shape(lambda: tiny(2))
    reinit = load_torch(model, to_torch(source), reinit=["head.conv1.conv"]).reinit
    assert reinit == ["head.conv1.conv.kernel"]
    init_missing(model, lambda: tiny(2))
    expected = values(whole)
    loaded = {path: leaf for path, leaf in leaves(source).items() if path not in reinit}
    expected |= {
        tuple(int(n) if n.isdigit() else n for n in path.split(".")): np.asarray(leaf[...])
        for path, leaf in loaded.items()
    }
    assert_same(values(model), expected)


def test_other_variables_stay_shapes(tiny_plugin):
    model = nnx.eval_shape(lambda: tiny(0))
    init_missing(model, lambda: tiny(0), WEIGHTS)
    assert all(isinstance(leaf.get_value(), jax.Array) for leaf in leaves(model).values())
    assert isinstance(model.head.dropout.rngs.key.get_value(), jax.ShapeDtypeStruct)


def test_load_initializes_nothing_for_a_complete_file(make_model, monkeypatch):
    weights = to_torch(make_model(21))
    built = []
    build = load.build

    def watched(*args, **kwargs):
        model = build(*args, **kwargs)
        built.append(isinstance(model.head.final_conv.kernel.get_value(), jax.core.Tracer))
        return model

    monkeypatch.setattr(load, "build", watched)
    model = fcn_jax.load("fcn32s_resnet18", weights)
    assert built == [True]
    assert_same(to_torch(model), weights)


@pytest.mark.parametrize("given", [True, False])
def test_load_initializes_reinit_tensors_from_the_key(make_model, given):
    rngs = nnx.Rngs(5) if given else None
    model = fcn_jax.load(
        "fcn32s_resnet18", to_torch(make_model(21, seed=1)), reinit=["head.final_conv"], rngs=rngs
    )
    whole = build_model("resnet18", "fcn32s", 21, rngs=nnx.Rngs(5 if given else 0))
    np.testing.assert_array_equal(
        model.head.final_conv.kernel[...], whole.head.final_conv.kernel[...]
    )
    assert not np.array_equal(
        model.backbone.conv1.conv.kernel[...], whole.backbone.conv1.conv.kernel[...]
    )
    if given:
        np.testing.assert_array_equal(
            plain(rngs.params()), plain(nnx.Rngs(5).params()), err_msg="the key must not change"
        )
