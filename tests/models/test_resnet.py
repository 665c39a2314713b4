import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from fcn_jax.models.resnet import RESNET18, BasicBlock
from fcn_jax.models.segmenter import ModelSpec, build_backbone


def shapes_of(size, batch=1):
    spec = ModelSpec(backbone="resnet18", head=None)

    def features():
        trunk = build_backbone(spec, rngs=nnx.Rngs(0))[0]
        trunk.eval()
        return trunk(jnp.zeros((batch, *size, 3)))

    return {name: value.shape for name, value in nnx.eval_shape(features).items()}


def test_the_chapters_input_gives_10_by_15_of_512_channels():
    shapes = shapes_of((320, 480))
    assert list(shapes) == ["layer1", "layer2", "layer3", "layer4"]
    assert shapes["layer4"] == (1, 10, 15, 512)


@pytest.mark.parametrize("size", [(1, 1), (33, 31), (321, 487), (64, 95)])
def test_features_have_the_sizes_that_the_backbone_promises(size):
    shapes = shapes_of(size, batch=2)
    for feature in RESNET18.features(RESNET18.options(), 32):
        assert shapes[feature.name] == (2, feature.size(size[0]), feature.size(size[1]), feature.channels)


@pytest.mark.parametrize("size", [(33, 31), (64, 97)])
def test_every_feature_equals_torchvisions(make_resnet18, make_model, size):
    import torch

    from fcn_jax.convert.engine import load_torch

    reference = make_resnet18()
    model = make_model()
    load_torch(model, reference.state_dict())
    model.eval()
    x = np.random.default_rng(0).standard_normal((2, *size, 3), np.float32)
    graphdef, state = nnx.split(model.backbone)
    ours = jax.jit(lambda state, x: nnx.merge(graphdef, state)(x))(state, x)
    with torch.no_grad():
        y = torch.tensor(x.transpose(0, 3, 1, 2))
        for name in ("conv1", "bn1", "relu", "maxpool", "layer1", "layer2", "layer3", "layer4"):
            y = getattr(reference, name)(y)
            if name in ours:
                theirs = y.numpy().transpose(0, 2, 3, 1)
                assert ours[name].shape == theirs.shape
                assert np.abs(ours[name] - theirs).max() < 1e-5 * np.abs(theirs).max(), name


def test_fresh_parameters_depend_on_the_seed_alone():
    def kernels(seed):
        block = BasicBlock(2, 3, stride=2, dtype=jnp.float32, param_dtype=jnp.float32, rngs=nnx.Rngs(seed))
        return [np.asarray(conv.kernel[...]) for conv in (block.conv1, block.conv2, block.downsample.conv)]

    for one, same, other in zip(kernels(0), kernels(0), kernels(1), strict=True):
        np.testing.assert_array_equal(one, same)
        assert not np.array_equal(one, other)
