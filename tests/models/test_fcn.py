import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax import checkpoint, nn
from fcn_jax.api import FeatureSpec, ModelSpec, Preprocess
from fcn_jax.config import OptimConfig
from fcn_jax.convert.load import import_by_table
from fcn_jax.models.build import build
from fcn_jax.models.fcn import FCN32S
from fcn_jax.models.names import leaves
from fcn_jax.testing import check_head
from fcn_jax.train import groups, optim
from fcn_jax.train import step as train_step


def specs(stride=8, channels=6):
    return (
        FeatureSpec("shallow", 3, stride // 2, lambda n: -(-n // (stride // 2))),
        FeatureSpec("deep", channels, stride, lambda n: -(-n // stride)),
    )


def make(features, num_classes):
    options = FCN32S.options()
    selected = tuple(f for f in features if f.name in FCN32S.select(options, features))
    return selected, FCN32S.build(options, selected, num_classes=num_classes, rngs=nnx.Rngs(0))


def test_kernel_follows_the_stride_of_the_deepest_feature():
    selected, head = make(specs(stride=8, channels=6), 3)
    assert [f.name for f in selected] == ["deep"]
    assert head.final_conv.kernel[...].shape == (1, 1, 6, 3)
    assert head.transpose_conv.kernel[...].shape == (16, 16, 3, 3)
    assert (head.transpose_conv.stride, head.transpose_conv.padding) == (8, 4)


@pytest.mark.parametrize("out_hw", [(16, 24), (9, 17)])
@pytest.mark.needs_torch
def test_logits_match_the_torch_reference_cropped_at_bottom_and_right(out_hw):
    import torch

    features, head = make(specs(), 3)
    reference = FCN32S.torch.reference(FCN32S.options(), features=features, num_classes=3)
    assert list(reference.state_dict()) == [
        "final_conv.weight",
        "final_conv.bias",
        "transpose_conv.weight",
        "transpose_conv.bias",
    ]
    table = FCN32S.torch.tables_of(FCN32S.options())["torchvision"]
    for path, leaf in nnx.to_flat_state(nnx.state(head, nnx.Param)):
        name, rule = table.to_torch(".".join(path))
        value = rng_like(leaf.get_value().shape)
        leaf[...] = jnp.asarray(value)
        reference.state_dict()[name].copy_(
            torch.tensor(np.ascontiguousarray(rule.op.to_torch(value)))
        )
    x = np.random.default_rng(1).standard_normal((2, 2, 3, 6), np.float32)
    ours = head({"deep": jnp.asarray(x)}, out_hw=out_hw)
    theirs = reference(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy().transpose(0, 2, 3, 1)
    assert ours.shape == (2, *out_hw, 3)
    np.testing.assert_allclose(ours, theirs[:, : out_hw[0], : out_hw[1]], atol=1e-5)


def rng_like(shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def test_initial_values_match_d2l():
    _, head = make(specs(), 3)
    kernel = np.asarray(head.transpose_conv.kernel[...])
    off_diagonal = kernel[:, :, ~np.eye(3, dtype=bool)]
    assert not off_diagonal.any()
    assert kernel.max() == pytest.approx((15 / 16) ** 2)
    assert head.final_conv.kernel[...].std() == pytest.approx(1 / np.sqrt(3 * 6), rel=0.3)


def test_logits_stay_in_the_compute_dtype():
    features = specs()
    head = FCN32S.build(
        FCN32S.options(), features[1:], num_classes=2, dtype=jnp.bfloat16, rngs=nnx.Rngs(0)
    )
    assert (
        jax.eval_shape(lambda: head({"deep": jnp.ones((1, 2, 2, 6))}, out_hw=(16, 16))).dtype
        == jnp.bfloat16
    )


def test_fixed_upsampling_is_bilinear_and_has_no_bias():
    (feature,) = specs()[1:]
    head = FCN32S.build(
        FCN32S.options(upsampling="fixed"), [feature], num_classes=3, rngs=nnx.Rngs(0)
    )
    assert isinstance(head.transpose_conv.kernel, nn.Buffer)
    assert head.transpose_conv.bias is None
    np.testing.assert_array_equal(
        head.transpose_conv.kernel[...], nn.bilinear(None, (16, 16, 3, 3))
    )
    assert list(leaves(head)) == ["final_conv.bias", "final_conv.kernel", "transpose_conv.kernel"]


def test_depthwise_upsampling_starts_as_the_dense_one():
    (feature,) = specs()[1:]
    dense, depthwise = (
        FCN32S.build(FCN32S.options(upsampling=kind), [feature], num_classes=3, rngs=nnx.Rngs(0))
        for kind in ("learned", "depthwise")
    )
    assert depthwise.transpose_conv.kernel[...].shape == (16, 16, 3, 1)
    depthwise.transpose_conv.bias[...] = dense.transpose_conv.bias[...]
    x = {"deep": jnp.asarray(rng_like((1, 3, 2, 6)))}
    np.testing.assert_allclose(depthwise(x, out_hw=(24, 16)), dense(x, out_hw=(24, 16)), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("upsampling", ["depthwise", "fixed"])
def test_meets_the_contract_with_other_upsampling(upsampling):
    check_head("fcn32s", {"upsampling": upsampling})


@pytest.mark.needs_torch
def test_torch_reference_begins_at_the_image_if_the_backbone_pads():
    import torch

    padded = FeatureSpec("deep", 2, 8, lambda n: n // 8 + 2, offset=3)
    options = FCN32S.options(upsampling="fixed")
    head = FCN32S.build(options, [padded], num_classes=1, rngs=nnx.Rngs(0))
    reference = FCN32S.torch.reference(options, features=[padded], num_classes=1)
    import_by_table(head, reference.state_dict(), FCN32S.torch.tables_of(options)["torchvision"])
    x = np.random.default_rng(0).standard_normal((1, 4, 5, 2), np.float32)
    theirs = reference(torch.tensor(x.transpose(0, 3, 1, 2))).detach().numpy()[0, 0, :16, :24]
    np.testing.assert_allclose(
        head({"deep": jnp.asarray(x)}, out_hw=(16, 24))[0, ..., 0], theirs, atol=1e-6
    )


def test_saves_and_loads_fixed_kernels_but_does_not_train_them(tiny_plugin, tmp_path):
    spec = ModelSpec("tiny", "fcn32s", 2, head_options={"upsampling": "fixed"})
    model = build(spec, rngs=nnx.Rngs(0))
    kernel = model.head.transpose_conv.kernel
    kernel[...] = kernel[...] * 1.25  # not quite bilinear, as a file's may be
    before = checkpoint.arrays(model)
    config = OptimConfig(lr=0.1, momentum=0.9, weight_decay=0.1)
    state, step = train_step.make(
        model,
        optim.make(config, 10, groups.assign(config, nnx.state(model, nnx.Param))),
        Preprocess(),
    )
    assert not any("transpose_conv" in name for name in groups.parameter_names(state.params))
    batch = {
        "image": np.arange(2 * 32 * 32 * 3, dtype=np.uint8).reshape(2, 32, 32, 3),
        "mask": np.ones((2, 32, 32), np.uint8),
    }
    state, _ = jax.jit(step)(state, batch)
    nnx.update(model, state.params, state.batch_stats)
    after = checkpoint.arrays(model)
    assert np.array_equal(after["head.transpose_conv.kernel"], before["head.transpose_conv.kernel"])
    assert not np.array_equal(after["head.final_conv.kernel"], before["head.final_conv.kernel"])
    checkpoint.save_model(tmp_path / "saved", checkpoint.make_spec(spec), after)
    loaded = checkpoint.arrays(checkpoint.load_model(tmp_path / "saved")[0])
    assert {name: np.asarray(value).tobytes() for name, value in loaded.items()} == {
        name: np.asarray(value).tobytes() for name, value in after.items()
    }
