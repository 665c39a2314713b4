"""GroupNorm against torch's: values, gradients, odd sizes, bfloat16; in a ResNet."""

import copy

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import nn
from fcn_jax.models.names import leaves
from fcn_jax.pytorch.rules import Table, conv_norm, group_norm

torch = pytest.importorskip("torch")


def layers(num_groups, channels, **settings):
    """Ours and torch's in float64, with the same random parameters."""
    layer, rng = nn.GroupNorm(num_groups, channels, **settings), np.random.default_rng(1)
    reference = torch.nn.GroupNorm(num_groups, channels, eps=layer.eps, dtype=torch.float64)
    for leaf, theirs in ((layer.scale, reference.weight), (layer.bias, reference.bias)):
        value = rng.standard_normal(channels).astype(np.float32)
        leaf.set_value(jnp.asarray(value))
        theirs.data = torch.tensor(value, dtype=torch.float64)
    return layer, reference


def both(layer, reference, x):
    """Output and gradients by input, scale and bias of a weighted sum: ours, and torch's."""
    weights = np.random.default_rng(2).uniform(0.5, 1.5, x.shape).astype(np.float32)
    graphdef, state = nnx.split(layer)
    x, weights = jnp.asarray(x, layer.dtype), jnp.asarray(weights, layer.dtype)

    @jax.jit
    def compute(state, x, weights):
        y, vjp = jax.vjp(lambda state, x: nnx.merge(graphdef, state)(x), state, x)
        return y, *vjp(weights)

    y, grads, grad_x = compute(state, x, weights)
    tx = torch.tensor(np.moveaxis(np.asarray(x, np.float64), -1, 1), requires_grad=True)
    ty = reference(tx)
    ty.backward(torch.tensor(np.moveaxis(np.asarray(weights, np.float64), -1, 1)))
    ours = {"y": y, "x": grad_x, "scale": grads["scale"][...], "bias": grads["bias"][...]}
    theirs = {
        "y": np.moveaxis(ty.detach().numpy(), 1, -1),
        "x": np.moveaxis(tx.grad.numpy(), 1, -1),
        "scale": reference.weight.grad.numpy(),
        "bias": reference.bias.grad.numpy(),
    }
    return ours, theirs


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize(
    ("size", "groups", "width"),
    [((1, 1, 1), 3, 2), ((2, 7, 5), 4, 1), ((3, 1, 9), 1, 3), ((2, 13, 3), 2, 16)],
)
def test_any_size_matches_torch(size, groups, width, offset):
    x = np.random.default_rng(0).standard_normal((*size, groups * width)).astype(np.float32)
    # Without it, groups of few values have hardly any variance, whose root amplifies rounding.
    ours, theirs = both(*layers(groups, groups * width, eps=0.1), x + offset)
    # The mean is rounded in float32, relative to its size; the gradient of the scale sums that.
    limit = 5e-5 + 1e-4 * offset
    for name, expected in theirs.items():
        assert ours[name].shape == expected.shape
        np.testing.assert_allclose(ours[name], expected, rtol=2e-4, atol=limit, err_msg=name)


def test_other_numbers_of_axes_match_torch():
    for shape in ((4, 12), (2, 5, 12), (2, 3, 2, 3, 12)):
        x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        ours, theirs = both(*layers(3, 12), x)
        for name, expected in theirs.items():
            np.testing.assert_allclose(ours[name], expected, rtol=1e-4, atol=1e-5, err_msg=name)


def test_bfloat16_differs_from_torch_by_one_rounding_of_results_and_none_of_gradients():
    x = np.random.default_rng(0).standard_normal((2, 33, 31, 12)).astype(np.float32)
    layer, reference = layers(4, 12, dtype=jnp.bfloat16)
    ours, theirs = both(layer, reference, x)
    assert ours["y"].dtype == ours["x"].dtype == jnp.bfloat16
    for name in ("y", "x"):
        expected = theirs[name]
        limit = 2**-8 * np.maximum(np.abs(expected), 0.01)
        assert (np.abs(np.asarray(ours[name], np.float64) - expected) <= limit).all(), name
    for name in ("scale", "bias"):
        assert ours[name].dtype == jnp.float32
        np.testing.assert_allclose(ours[name], theirs[name], rtol=1e-4, err_msg=name)


def test_each_image_is_normalized_alone():
    layer, _ = layers(2, 4)
    x = jax.random.normal(jax.random.key(0), (3, 5, 5, 4))
    alone = np.concatenate([layer(x[i : i + 1]) for i in range(3)])
    np.testing.assert_allclose(layer(x), alone, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("groups", [0, 5])
def test_rejects_groups_that_do_not_divide_the_channels(groups):
    with pytest.raises(ValueError, match=f"12 channels cannot be divided into {groups} groups"):
        nn.GroupNorm(groups, 12)


def test_rule_maps_weight_and_bias_both_ways():
    table = Table(group_norm("norm{i}", "norms.{i}"))
    assert table.to_jax("norm2.weight")[0] == "norms.2.scale"
    assert table.to_torch("norms.2.bias")[0] == "norm2.bias"
    assert table.to_jax("norm2.running_mean") is None


def test_conv_norm_act_with_group_norm_matches_torch():
    block = nn.ConvNormAct(3, 8, 3, norm="group_norm", norm_groups=4, rngs=nnx.Rngs(0))
    assert isinstance(block.bn, nn.GroupNorm)
    reference = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1, bias=False), torch.nn.GroupNorm(4, 8), torch.nn.ReLU()
    )
    torch.manual_seed(0)
    table = Table(conv_norm("0", "1", "", norm="group_norm"))
    state = reference.state_dict()
    for path, leaf in leaves(block).items():
        name, rule = table.to_torch(f".{path}")
        torch.nn.init.normal_(state[name])
        leaf.set_value(jnp.asarray(rule.op.to_jax(state.pop(name).numpy())))
    assert not state
    x = np.random.default_rng(0).standard_normal((2, 9, 7, 3)).astype(np.float32)
    with torch.no_grad():
        expected = reference(torch.tensor(x).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).numpy()
    for mode in (block.train, block.eval):
        mode()
        np.testing.assert_allclose(block(jnp.asarray(x)), expected, rtol=1e-4, atol=1e-5)


@pytest.fixture(scope="module")
def resnets(torchvision):
    """Ours and torchvision's ResNet-18 with group normalization and the same random weights."""
    import fcn_jax
    from fcn_jax.convert.load import load_torch

    torch.manual_seed(0)
    reference = torchvision.models.resnet18(
        weights=None, norm_layer=lambda channels: torch.nn.GroupNorm(32, channels)
    )
    for module in reference.modules():
        if isinstance(module, torch.nn.GroupNorm):
            torch.nn.init.uniform_(module.weight, 0.5, 1)
            torch.nn.init.normal_(module.bias, std=0.3)
    model = fcn_jax.build_model(
        "resnet18", num_classes=2, backbone_options={"norm": "group_norm"}, rngs=nnx.Rngs(0)
    )
    report = load_torch(model, copy.deepcopy(reference.state_dict()))
    assert report.scope == "backbone"
    assert set(report.dropped) == {"fc.weight", "fc.bias"}
    return model, reference


@pytest.mark.slow
def test_resnet_with_group_norm_matches_torchvision(resnets):
    model, reference = resnets
    x = np.random.default_rng(0).standard_normal((1, 45, 33, 3)).astype(np.float32)
    features = jax.jit(lambda x: model.backbone(x))(jnp.asarray(x))
    reference.fc, reference.avgpool = torch.nn.Identity(), torch.nn.Identity()
    with torch.no_grad():
        expected = reference(torch.tensor(x).permute(0, 3, 1, 2)).numpy().reshape(1, 512, 2, 2)
    np.testing.assert_allclose(
        np.moveaxis(np.asarray(features["layer4"]), -1, 1), expected, rtol=1e-3, atol=1e-4
    )
    assert not [name for name in leaves(model) if name.endswith((".mean", ".var"))]


def test_weights_of_batch_normalization_load_without_their_statistics(torchvision, resnets):
    from fcn_jax.convert.export import to_torch
    from fcn_jax.convert.load import load_torch

    model = nnx.clone(resnets[0])
    source = torchvision.models.resnet18(weights=None).state_dict()
    report = load_torch(model, source)
    statistics = {name for name in source if ".running_" in name or "num_batches" in name}
    assert len(statistics) == 60
    assert set(report.dropped) == statistics | {"fc.weight", "fc.bias"}
    assert "statistics of batch normalization, which group normalization does not have" in str(
        report
    )
    exported = to_torch(model)
    for name, value in source.items():
        if name not in report.dropped:
            np.testing.assert_array_equal(exported[f"backbone.{name}"], value, err_msg=name)
