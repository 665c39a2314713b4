"""U-Net, FPN and PSPNet against segmentation_models_pytorch (SMP)."""

import jax.numpy as jnp
import numpy as np
import pytest
from fcn_jax_smp_heads.fpn import FPN
from fcn_jax_smp_heads.pspnet import PSPNET
from fcn_jax_smp_heads.unet import UNET
from flax import nnx

import fcn_jax
from fcn_jax.api import FeatureSpec, ModelSpec, ceil_size
from fcn_jax.convert.export import to_torch
from fcn_jax.convert.load import init_missing, load_torch
from fcn_jax.errors import ConfigError
from fcn_jax.models.build import build_model
from fcn_jax.models.spec import resolve
from fcn_jax.plugins.options import validate
from fcn_jax.testing import check_head
from fcn_jax.verify import compare
from fcn_jax.verify.randomize import randomize

HEADS = {"unet": UNET, "fpn": FPN, "pspnet": PSPNET}
SMALL = {
    "unet": {"decoder_channels": [12, 8, 8, 6, 4]},
    "fpn": {"pyramid_channels": 8, "segmentation_channels": 32},
    "pspnet": {"out_channels": 12},
}
CLASSES = 3


def specs(*strides):
    return tuple(
        FeatureSpec(f"f{stride}", 4 + 2 * i, stride, ceil_size(stride))
        for i, stride in enumerate(strides)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_meets_the_contract(smp, name):
    check_head(name, SMALL[name])


CASES = {
    "unet": ("unet", {}, (2, 4, 8, 16, 32)),
    "unet without a feature of stride 2": ("unet", {}, (4, 8, 16, 32)),
    "unet without normalization": (
        "unet",
        {"decoder_channels": [6, 5, 4], "use_norm": False, "center": True},
        (2, 4, 8),
    ),
    "fpn": ("fpn", {}, (4, 8, 16, 32)),
    "fpn, concatenated": ("fpn", {"merge_policy": "cat"}, (4, 8, 16, 32)),
    "pspnet": ("pspnet", {}, (8,)),
    "pspnet without normalization": ("pspnet", {"use_norm": False}, (16,)),
}


LONG = set(CASES) - {"pspnet without normalization"}
EACH = [pytest.param(case, marks=pytest.mark.slow if case in LONG else ()) for case in CASES]


def compared(case, dtype="float32"):
    """The report on a head alone, on drawn features of odd sizes."""
    name, table, strides = CASES[case]
    head, hw = HEADS[name], (37, 71)
    options = validate(head, {**SMALL[name], **table})
    features = specs(*strides)
    rng = np.random.default_rng(0)
    inputs = [rng.standard_normal((3, *map(f.size, hw), f.channels), np.float32) for f in features]

    def call(reference, maps):
        return {"logits": reference(*maps, out_hw=hw)}

    def call_ours(module, maps):
        named = {f.name: x for f, x in zip(features, maps, strict=True)}
        return {"logits": module(named, out_hw=hw)}

    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    reference = head.torch.reference(options=options, features=features, num_classes=CLASSES)
    tensors = [torch.tensor(x.transpose(0, 3, 1, 2).copy()) for x in inputs]
    randomize(reference, 0, run=lambda network: call(network, tensors))
    return compare(
        reference,
        head.build(options, features, num_classes=CLASSES, rngs=nnx.Rngs(0), dtype=dtype),
        inputs,
        rules=head.torch.tables_of(options)["smp"],
        layout="NHWC",
        call_torch=call,
        call_jax=call_ours,
        dtype=dtype,
    )


@pytest.mark.parametrize("case", EACH)
def test_layers_training_and_gradients_match_smp_at_odd_sizes(smp, case):
    report = compared(case)
    assert report.equal, str(report)
    assert not report.skipped


@pytest.mark.slow
@pytest.mark.parametrize("case", HEADS)
def test_bfloat16_matches_smp(smp, case):
    report = compared(case, "bfloat16")
    assert report.equal, str(report)


# ------------------------------------------------------------------------- whole models of SMP


def smp_model(smp, name, encoder="resnet18", **settings):
    """SMP's model with random values, and the options of our head."""
    import torch

    torch.manual_seed(0)
    if name == "unet":
        network = smp.Unet(encoder, decoder_channels=(12, 8, 8, 6, 4), **settings)
    elif name == "fpn":
        network = smp.FPN(
            encoder, decoder_pyramid_channels=8, decoder_segmentation_channels=32, **settings
        )
    else:
        network = smp.PSPNet(encoder, psp_out_channels=12, **settings)
    options = SMALL[name] if name != "pspnet" else {**SMALL[name], "stride": 8}
    return network, options


def loaded(smp, name, **settings):
    """SMP's model on a ResNet-18 with random values, ours with its weights, and the report."""
    network, options = smp_model(smp, name, encoder_weights=None, classes=CLASSES, **settings)
    randomize(network, 0)

    def build():
        return build_model("resnet18", name, CLASSES, head_options=options, rngs=nnx.Rngs(0))

    model = nnx.eval_shape(build)
    report = load_torch(model, network.state_dict())
    init_missing(model, build)  # the random keys of dropout
    model.eval()
    return network.eval(), model, report


@pytest.mark.parametrize("name", HEADS)
def test_files_of_smp_load_and_convert_back_bit_for_bit(smp, name):
    network, model, report = loaded(smp, name, aux_params={"classes": 5})
    assert (report.key_format, report.scope) == ("smp", "model")
    assert set(report.dropped) == {"classification_head.3.weight", "classification_head.3.bias"}
    theirs = {
        key: value.numpy()
        for key, value in network.state_dict().items()
        if key not in report.dropped
    }
    back = to_torch(model, "smp")
    assert back.keys() == theirs.keys()
    for key, value in back.items():
        assert value.dtype == theirs[key].dtype
        assert value.tobytes() == theirs[key].tobytes(), key
    assert set(to_torch(model)) == {
        key.replace("encoder.", "backbone.", 1)
        if key.startswith("encoder.")
        else f"classifier.{key}"
        for key in theirs
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_logits_match_the_model_of_smp(smp, name):
    """At multiples of 32, SMP's own forward pass: its decoders resize by factors."""
    import torch

    network, model, _ = loaded(smp, name)
    x = np.random.default_rng(0).standard_normal((1, 64, 96, 3), np.float32)
    with torch.no_grad():
        logits = network(torch.tensor(x.transpose(0, 3, 1, 2).copy()))
    expected = logits.numpy().transpose(0, 2, 3, 1)
    found = np.asarray(nnx.jit(lambda model, x: model(x))(model, x))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()


def test_files_of_smp_on_a_timm_encoder_have_our_names(smp):
    pytest.importorskip("fcn_jax_efficientnet")
    import torch

    with torch.device("meta"):
        network, options = smp_model(
            smp, "unet", "tu-efficientnet_b0", encoder_weights=None, classes=CLASSES
        )
    model = nnx.eval_shape(
        lambda: build_model(
            "efficientnet_b0", "unet", CLASSES, head_options=options, rngs=nnx.Rngs(0)
        )
    )
    rng = np.random.default_rng(0)
    tensors = {
        key: rng.integers(0, 9, tuple(value.shape))
        if key.endswith("tracked")
        else np.abs(rng.standard_normal(tuple(value.shape), np.float32))
        for key, value in network.state_dict().items()
    }
    report = load_torch(model, tensors)
    assert (report.key_format, report.scope, report.dropped) == ("smp", "model", {})
    back = to_torch(model, "smp")
    assert back.keys() == tensors.keys()
    assert all(value.tobytes() == tensors[key].tobytes() for key, value in back.items())


@pytest.mark.slow
def test_command_line_converts_a_file_of_smp_and_exports_it_again(smp, tmp_path, monkeypatch):
    import torch

    from fcn_jax.cli import main

    monkeypatch.chdir(tmp_path)

    network, _ = smp_model(smp, "pspnet", encoder_weights=None, classes=CLASSES)
    torch.save(network.state_dict(), tmp_path / "smp.pth")
    convert = ["convert", "smp.pth", "--model=resnet18", "--head=pspnet", "-o", "converted"]
    convert += [f"--num-classes={CLASSES}", "--head-option=out_channels=12"]
    assert main([*convert, "--head-option=stride=8"]) == 0
    assert main(["export", "converted", "-o", "again.pth", "--key-format=smp"]) == 0
    again = torch.load("again.pth", weights_only=True)
    assert again.keys() == network.state_dict().keys()
    for key, value in network.state_dict().items():
        torch.testing.assert_close(again[key], value, rtol=0, atol=0)


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small"])
@pytest.mark.parametrize("name", HEADS)
def test_model_and_its_gradients_match_smp(smp, name, backbone):
    if backbone != "resnet18":
        pytest.importorskip("fcn_jax_mobilenet")
    report = fcn_jax.verify_model(
        ModelSpec(backbone, name, CLASSES, head_options=SMALL[name]),
        sizes=[(65, 97)],
        batch=2,
        grad=True,
    )
    assert report.equal, str(report)


# ------------------------------------------------------------------------------ features, errors


@pytest.mark.parametrize(
    ("name", "options", "strides", "taken"),
    [
        ("unet", {}, (2, 4, 8, 16, 32), (2, 4, 8, 16, 32)),
        ("unet", {}, (4, 8, 16, 32), (4, 8, 16, 32)),
        ("unet", {"decoder_channels": [8, 8, 8]}, (1, 2, 4, 8, 16), (2, 4, 8)),
        ("fpn", {}, (2, 4, 8, 16, 32), (4, 8, 16, 32)),
        ("pspnet", {}, (4, 8, 16), (16,)),
        ("pspnet", {"stride": 8}, (4, 8, 16), (8,)),
    ],
)
def test_takes_features_by_stride(name, options, strides, taken):
    chosen = validate(HEADS[name], options)
    assert HEADS[name].select(chosen, specs(*strides)) == tuple(f"f{s}" for s in taken)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        (
            "unet",
            {},
            r"head 'unet' with 5 decoder_channels needs features of strides 4, 8, 16, 32; the "
            r"backbone offers stem \(2\), layer1 \(4\), layer2 \(8\), layer3 \(16\), layer4 \(16\) "
            r"and lacks stride 32\. Backbones such as resnet18 and mobilenet_v3_small have strides "
            r"2 to 32 at output stride 32",
        ),
        ("fpn", {}, r"head 'fpn' needs features of strides 4, 8, 16, 32.*lacks stride 32"),
        ("pspnet", {"stride": 32}, r"head 'pspnet' needs features of strides 32; "),
    ],
)
def test_error_names_the_missing_feature_in_one_line(name, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        _ = resolve(ModelSpec("resnet18", name, CLASSES, head_options=options, output_stride=16))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("unet", {"decoder_channels": [8, 8]}, r"'decoder_channels' is \[8, 8\].*at least 3 items"),
        ("unet", {"decoder_channels": [8, 8, 0]}, r"'decoder_channels\.2' is 0"),
        (
            "fpn",
            {"segmentation_channels": 48},
            "segmentation_channels is 48; it must be a multiple",
        ),
        ("fpn", {"merge_policy": "sum"}, "'merge_policy' is 'sum'; input should be 'add' or 'cat'"),
        ("fpn", {"dropout": 1.0}, r"'dropout' is 1\.0"),
        ("pspnet", {"stride": 0}, "'stride' is 0"),
    ],
)
def test_rejects_options_out_of_range(name, options, message):
    with pytest.raises(ConfigError, match=message):
        validate(HEADS[name], options)


@pytest.mark.parametrize("name", ["fpn", "pspnet"])
def test_dropout_sets_whole_channels_to_zero_in_training(name):
    head, features = HEADS[name], specs(4, 8, 16, 32)
    options = validate(head, {**SMALL[name], "dropout": 0.5})
    features = tuple(f for f in features if f.name in head.select(options, features))
    module = head.build(options, features, num_classes=CLASSES, rngs=nnx.Rngs(0))
    module.train()
    x = module.dropout(jnp.ones((4, 5, 6, 32)))
    kept = np.asarray(x.mean((1, 2)))
    assert set(np.unique(x)) == {0, 2}
    assert set(np.unique(kept)) == {0, 2}
