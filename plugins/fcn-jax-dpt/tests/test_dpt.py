"""DPT against the plugin contract and segmentation_models_pytorch."""

import numpy as np
import pytest
from fcn_jax_dpt.dpt import DPT
from flax import nnx

from fcn_jax.api import FeatureSpec, ModelSpec, floor_size
from fcn_jax.convert.export import to_torch
from fcn_jax.convert.load import import_by_table, load_torch
from fcn_jax.errors import ConfigError
from fcn_jax.models.build import build_model
from fcn_jax.models.spec import resolve
from fcn_jax.plugins.options import validate
from fcn_jax.testing import check_head
from fcn_jax.verify import compare
from fcn_jax.verify.randomize import randomize
from fcn_jax.verify.reference import head_logits

SMALL = {"intermediate_channels": [3, 4, 5, 6], "fusion_channels": 4}
CLASSES = 3


def specs(*strides, class_token=False, channels=6):
    return tuple(
        FeatureSpec(f"block{i}", channels, stride, floor_size(stride), class_token=class_token)
        for i, stride in enumerate(strides)
    )


CASES = {
    "project": ({}, specs(4, 4, 4, 4, class_token=True)),
    "project without a class token": ({}, specs(4, 4, 4, 4)),
    "add, one unit": (
        {"readout": "add", "refine_deepest": False},
        specs(4, 4, 4, 4, class_token=True),
    ),
    "ignore, a pyramid": ({"readout": "ignore"}, specs(2, 4, 8, 16)),
}


def compared(case, dtype="float32"):
    """The report on the head alone, on drawn features of odd sizes."""
    table, features = CASES[case]
    options, hw = validate(DPT, {**SMALL, **table}), (21, 29)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((3, *map(f.size, hw), f.channels), np.float32) for f in features]

    def call(reference, maps):
        return {"logits": head_logits(reference, maps, hw)}

    def call_ours(module, maps):
        named = {f.name: x for f, x in zip(features, maps, strict=True)}
        return {"logits": module(named, out_hw=hw)}

    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    settings = {"features": features, "num_classes": CLASSES}
    reference = DPT.torch.reference(options=options, **settings)
    tensors = [torch.tensor(x.transpose(0, 3, 1, 2).copy()) for x in inputs]
    reference.segmentation_head.head[3].p = 0.0
    randomize(reference, 0, run=lambda network: call(network, tensors))
    module = DPT.build(options, **settings, rngs=nnx.Rngs(0), dtype=dtype)
    module.dropout.rate = 0.0
    return compare(
        reference,
        module,
        inputs,
        rules=DPT.torch.tables_of(options)["smp"],
        layout="NHWC",
        call_torch=call,
        call_jax=call_ours,
        dtype=dtype,
    )


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_layers_training_and_gradients_match_smp_at_odd_sizes(smp, case):
    report = compared(case)
    assert report.equal, str(report)
    assert not report.skipped


@pytest.mark.slow
def test_bfloat16_matches_smp(smp):
    report = compared("project", "bfloat16")
    assert report.equal, str(report)


@pytest.mark.slow
def test_meets_the_contract(smp):
    check_head("dpt", SMALL)


@pytest.mark.parametrize("readout", ["cat", "add", "ignore"])
def test_logits_match_the_model_of_smp(smp, readout):
    """At a multiple of 32, SMP's own forward pass: its decoder resizes by factors."""
    import torch

    torch.manual_seed(0)
    dpt = smp.decoders.dpt.decoder
    decoder = dpt.DPTDecoder((6,) * 4, (16,) * 4, True, readout, (3, 4, 5, 6), 4)
    head = dpt.DPTSegmentationHead(4, CLASSES)
    network = torch.nn.ModuleDict({"decoder": decoder, "segmentation_head": head}).eval()
    randomize(network, 0)
    maps = [torch.randn(2, 6, 4, 6) for _ in range(4)]
    tokens = [torch.randn(2, 1, 6) for _ in range(4)]
    with torch.no_grad():
        expected = head(decoder(maps, tokens)).numpy().transpose(0, 2, 3, 1)
    features = specs(16, 16, 16, 16, class_token=True, channels=12)
    options = validate(DPT, {**SMALL, "readout": "project" if readout == "cat" else readout})
    module = DPT.build(options, features, num_classes=CLASSES, rngs=nnx.Rngs(0))
    import_by_table(module, network.state_dict(), DPT.torch.tables_of(options)["smp"])
    module.eval()
    named = {
        f.name: np.concatenate(
            [x.numpy(), np.broadcast_to(t.numpy()[:, 0, :, None, None], x.shape)], 1
        ).transpose(0, 2, 3, 1)
        for f, x, t in zip(features, maps, tokens, strict=True)
    }
    found = np.asarray(nnx.jit(lambda head, x: head(x, out_hw=(64, 96)))(module, named))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def loaded(smp):
    """SMP's model on a small ViT with random values, ours with its weights, and the report."""
    import torch

    torch.manual_seed(0)
    network = smp.DPT(
        "tu-vit_tiny_patch16_224",
        encoder_weights=None,
        classes=CLASSES,
        decoder_intermediate_channels=SMALL["intermediate_channels"],
        decoder_fusion_channels=SMALL["fusion_channels"],
        dynamic_img_size=True,
    )
    randomize(network, 0)
    backbone = {"class_token": True, "normalize": False}
    model = build_model(
        "vit_tiny_patch16_224",
        "dpt",
        CLASSES,
        backbone_options=backbone,
        head_options=SMALL,
        rngs=nnx.Rngs(0),
    )
    report = load_torch(model, network.state_dict())
    model.eval()
    return network.eval(), model, report


def test_files_of_smp_load_and_convert_back_bit_for_bit(smp):
    pytest.importorskip("fcn_jax_vit")
    network, model, report = loaded(smp)
    assert (report.key_format, report.scope) == ("smp", "model")
    unused = {"encoder.model.norm.weight", "encoder.model.norm.bias"}
    assert {name for name in report.dropped if "head" not in name} == unused
    theirs = {key: value.numpy() for key, value in network.state_dict().items()}
    back = to_torch(model, "smp")
    assert back.keys() == theirs.keys() - report.dropped.keys()
    for key, value in back.items():
        assert value.tobytes() == theirs[key].tobytes(), key


@pytest.mark.slow
def test_logits_match_a_whole_model_of_smp(smp):
    import torch

    pytest.importorskip("fcn_jax_vit")
    network, model, _ = loaded(smp)
    x = np.random.default_rng(0).standard_normal((1, 64, 96, 3), np.float32)
    with torch.no_grad():
        logits = network(torch.tensor(x.transpose(0, 3, 1, 2).copy()))
    expected = logits.numpy().transpose(0, 2, 3, 1)
    found = np.asarray(nnx.jit(lambda model, x: model(x))(model, x))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_takes_the_four_deepest_features():
    options = validate(DPT, SMALL)
    assert DPT.select(options, specs(2, 4, 8, 16, 32)) == ("block1", "block2", "block3", "block4")
    assert DPT.select(options, specs(14, 14, 14, 14)) == ("block0", "block1", "block2", "block3")


@pytest.mark.parametrize(
    ("backbone", "options", "message"),
    [
        ("resnet18", {"output_stride": 8}, r"head 'dpt' takes the four deepest .* layer4 \(8\)"),
        ("resnet18", {"head_options": {"readout": "add"}}, r"class_token=true, or another readout"),
        ("resnet18", {"head_options": {"readout": "cat"}}, r"readout.*'project'"),
        ("resnet18", {"head_options": {"fusion_channels": 0}}, r"'fusion_channels' is 0"),
        ("resnet18", {"head_options": {"intermediate_channels": [8]}}, r"intermediate_channels"),
    ],
)
def test_rejects_wrong_features_and_options_in_one_line(backbone, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        _ = resolve(ModelSpec(backbone, "dpt", CLASSES, **options))
    assert "\n" not in str(caught.value)
