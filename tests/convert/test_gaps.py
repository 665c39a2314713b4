"""Initial values for what a weights file leaves open: those of the whole network, and no others drawn."""

import jax
import numpy as np
import pytest
from flax import nnx

import fcn_jax
from fcn_jax.convert import pretrained
from fcn_jax.convert.engine import leaves, load_torch, to_torch
from fcn_jax.convert.gaps import draw_gaps
from fcn_jax.models.names import WEIGHTS
from fcn_jax.models.segmenter import build_model


def values(module):
    """Every variable of a network, the keys of its dropout too."""
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


def test_what_is_drawn_is_what_the_whole_network_has(tiny_plugin):
    source, whole = tiny(1), tiny(2)
    model = nnx.eval_shape(lambda: tiny(2))
    reinit = load_torch(model, to_torch(source), reinit=["head.conv1"]).reinit
    assert reinit == ["head.conv1.conv.kernel"]
    draw_gaps(model, lambda: tiny(2))
    expected = values(whole)
    loaded = {path: leaf for path, leaf in leaves(source).items() if path not in reinit}
    expected |= {
        tuple(int(n) if n.isdigit() else n for n in path.split(".")): np.asarray(leaf[...])
        for path, leaf in loaded.items()
    }
    assert_same(values(model), expected)


def test_variables_that_are_not_asked_for_stay_shapes(tiny_plugin):
    model = nnx.eval_shape(lambda: tiny(0))
    draw_gaps(model, lambda: tiny(0), WEIGHTS)
    assert all(isinstance(leaf.get_value(), jax.Array) for leaf in leaves(model).values())
    assert isinstance(model.head.dropout.rngs.key.get_value(), jax.ShapeDtypeStruct)


def test_load_draws_nothing_where_the_file_is_whole(make_model, monkeypatch):
    weights = to_torch(make_model(21))
    built = []
    build = pretrained.build

    def watched(*args, **kwargs):
        model = build(*args, **kwargs)
        built.append(isinstance(model.head.final_conv.kernel.get_value(), jax.core.Tracer))
        return model

    monkeypatch.setattr(pretrained, "build", watched)
    model = fcn_jax.load("fcn32s_resnet18", weights)
    assert built == [True]
    assert_same(to_torch(model), weights)


@pytest.mark.parametrize("given", [True, False])
def test_load_draws_what_reinit_names_from_the_key(make_model, given):
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
            plain(rngs.params()), plain(nnx.Rngs(5).params()), err_msg="the key is left as it is"
        )
