"""Mix transformers against the plugin contract and segmentation-models-pytorch."""

import math

import jax.numpy as jnp
import numpy as np
import pytest
from fcn_jax_mit import backbones
from fcn_jax_mit.architecture import Architecture
from fcn_jax_mit.bridge import bridge
from fcn_jax_mit.network import MixTransformer
from flax import nnx

from fcn_jax import verify
from fcn_jax.api import Backbone, ModelSpec
from fcn_jax.convert.export import export_weights
from fcn_jax.convert.load import import_weights
from fcn_jax.errors import ConfigError, WeightsError
from fcn_jax.models.build import build_backbone
from fcn_jax.models.names import leaves
from fcn_jax.testing import check_backbone

BACKBONES = {value.name: value for value in vars(backbones).values() if isinstance(value, Backbone)}
TINY = Architecture("b0", (1, 1, 1, 2), (8, 16, 20, 32))
OPTIONS = backbones.MixTransformerOptions()


def abstract(name, **options):
    """A backbone with shapes instead of arrays."""
    spec = ModelSpec(name, None, backbone_options=options)
    return nnx.eval_shape(lambda: build_backbone(spec, rngs=nnx.Rngs(0)))


def test_there_are_six_sizes():
    assert list(BACKBONES) == [f"mit_b{i}" for i in range(6)]


def test_features_and_gradients_match_smp(smp, agree):
    link = bridge(TINY, {})
    image = np.random.default_rng(0).standard_normal((1, 37, 66, 3)).astype(np.float32)
    agree(link.reference(OPTIONS, 32), MixTransformer(TINY, rngs=nnx.Rngs(0)), link.tables, image)


@pytest.mark.slow
def test_layers_features_and_gradients_match_smp(smp):
    import torch

    torch.manual_seed(0)
    link = bridge(TINY, {})
    reference = link.reference(OPTIONS, 32)
    for name, parameter in reference.named_parameters():
        if name.endswith("bias"):  # their initial values hide faults
            torch.nn.init.normal_(parameter, 0.0, 0.3)
    port = MixTransformer(TINY, rngs=nnx.Rngs(0))
    image = np.random.default_rng(0).standard_normal((2, 37, 66, 3)).astype(np.float32)
    report = verify.compare(
        reference, port, image, rules=link.tables, layout="NHWC", sensitive=False
    )
    assert report.equal, str(report)


@pytest.mark.parametrize(
    "name",
    [pytest.param(f"mit_b{i}", marks=pytest.mark.slow if i > 1 else ()) for i in range(6)],
)
def test_names_shapes_and_number_of_parameters_match_smp(smp, name):
    table = BACKBONES[name].torch.tables
    ours, parameters = {}, 0
    for path, leaf in leaves(abstract(name)).items():
        key, rule = table.to_torch(path)
        ours[key] = rule.op.to_torch(np.empty(leaf.shape, np.float32)).shape
        parameters += leaf.size
    settings = smp.mix_transformer_encoders[name]
    theirs = settings["encoder"](**settings["params"]).state_dict()
    assert ours == {key: tuple(x.shape) for key, x in theirs.items()}
    assert f"{parameters / 1e6:.1f} M parameters" in BACKBONES[name].summary


def test_settings_match_the_encoder_of_smp(smp):
    settings = smp.mix_transformer_encoders["mit_b0"]
    theirs = settings["encoder"](**settings["params"])
    ours = abstract("mit_b0", drop_path_rate=0.1)
    for number in range(1, 5):
        assert getattr(ours, f"norm{number}").eps == getattr(theirs, f"norm{number}").eps
        stages = (getattr(side, f"block{number}") for side in (ours, theirs))
        for block, other in zip(*stages, strict=True):
            assert block.norm1.eps == block.norm2.eps == other.norm1.eps
            assert block.attn.heads == other.attn.num_heads
            assert (block.attn.sr.stride if block.attn.sr else 1) == other.attn.sr_ratio
            if block.attn.norm is not None:
                assert block.attn.norm.eps == other.attn.norm.eps
            for drop in (block.drop1, block.drop2):
                assert getattr(drop, "rate", 0) == pytest.approx(
                    getattr(other.drop_path, "drop_prob", 0)
                )


def test_features_have_the_promised_channels_and_sizes():
    specs = BACKBONES["mit_b0"].features(OPTIONS, 32)
    assert specs == BACKBONES["mit_b0"].features(OPTIONS, 32)
    assert [(spec.name, spec.channels, spec.stride, spec.size(65)) for spec in specs] == [
        ("stage1", 32, 4, 17),
        ("stage2", 64, 8, 9),
        ("stage3", 160, 16, 5),
        ("stage4", 256, 32, 3),
    ]


def test_initial_values_are_those_of_smp(smp):
    import torch

    torch.manual_seed(0)
    link = bridge(TINY, {})
    theirs = link.reference(OPTIONS, 32).state_dict()
    for path, leaf in leaves(MixTransformer(TINY, rngs=nnx.Rngs(0))).items():
        wanted, found = theirs[link.tables.to_torch(path)[0]].numpy(), np.asarray(leaf[...])
        if wanted.std() == 0:
            np.testing.assert_array_equal(found, wanted.reshape(found.shape), err_msg=path)
        elif found.size > 100:
            assert abs(found.mean()) < 6 * wanted.std() / math.sqrt(found.size), path
            assert found.std() == pytest.approx(wanted.std(), rel=6 / math.sqrt(found.size)), path


def test_files_fill_the_backbone_and_convert_back():
    module, spec = abstract("mit_b0"), ModelSpec("mit_b0", None)
    rng = np.random.default_rng(0)
    tensors = {"head.weight": np.zeros((3, 4), np.float32)}
    for path, leaf in leaves(module).items():
        key, rule = BACKBONES["mit_b0"].torch.tables.to_torch(path)
        tensors[key] = rule.op.to_torch(rng.standard_normal(leaf.shape, np.float32))
    record = import_weights(module, spec, tensors)
    assert (record.key_format, record.scope) == ("torchvision", "backbone")
    assert list(record.dropped) == ["head.weight"]
    back = export_weights(module, spec, "torchvision")
    assert {*back, "head.weight"} == {*tensors}
    for key, value in back.items():
        assert value.tobytes() == tensors[key].tobytes(), key


def test_weights_are_those_of_smp_and_need_acceptance(smp, monkeypatch):
    monkeypatch.delenv("FCN_JAX_ACCEPT_LICENSE", raising=False)
    for name, backbone in BACKBONES.items():
        settings = smp.mix_transformer_encoders[name]["pretrained_settings"]
        assert list(backbone.torch.weights) == [settings["imagenet"]["repo_id"]]
    with pytest.raises(WeightsError, match="--accept-license nvidia-source-code-license"):
        import_weights(abstract("mit_b0"), ModelSpec("mit_b0", None), "smp-hub/mit_b0.imagenet")


@pytest.mark.parametrize("size", [(28, 64), (40, 3)])
def test_rejects_images_without_a_key_for_the_attention(size):
    port = nnx.eval_shape(lambda: MixTransformer(TINY, rngs=nnx.Rngs(0)))
    with pytest.raises(ConfigError, match=rf"at least 29x29 pixels.*got {size[0]}x{size[1]}"):
        port(jnp.zeros((1, *size, 3)))
    smallest = nnx.eval_shape(lambda port, x: port(x), port, jnp.zeros((1, 29, 29, 3)))
    assert smallest["stage4"].shape == (1, 1, 1, 32)


@pytest.mark.slow
def test_meets_the_contract():
    check_backbone("mit_b0", {"drop_path_rate": 0.2})


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_models_match_smp(smp, dtype):
    report = verify.verify_model(
        "mit_b0", head="fcn", sizes=[(65, 98)], batch=2, grad=True, num_classes=5, dtype=dtype
    )
    assert report.equal, str(report)
