"""UPerNet and SegFormer's decoder against SMP, and the linear head against plain PyTorch."""

import numpy as np
import pytest
from fcn_jax_transformer_heads.linear import LINEAR
from fcn_jax_transformer_heads.segformer import SEGFORMER
from fcn_jax_transformer_heads.upernet import UPERNET
from flax import nnx

import fcn_jax
from fcn_jax.api import FeatureSpec, ModelSpec, ceil_size
from fcn_jax.convert.export import to_torch
from fcn_jax.convert.load import load_torch
from fcn_jax.errors import ConfigError
from fcn_jax.models.build import build_model
from fcn_jax.models.spec import resolve
from fcn_jax.plugins.options import validate
from fcn_jax.testing import check_head
from fcn_jax.verify import compare
from fcn_jax.verify.randomize import randomize
from fcn_jax.verify.reference import head_logits

HEADS = {"upernet": UPERNET, "segformer": SEGFORMER, "linear": LINEAR}
SMALL = {
    "upernet": {"decoder_channels": 8},
    "segformer": {"segmentation_channels": 8},
    "linear": {},
}
CLASSES = 3


def specs(*strides):
    return tuple(
        FeatureSpec(f"f{i}_{stride}", 4 + 2 * i, stride, ceil_size(stride))
        for i, stride in enumerate(strides)
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", HEADS)
def test_meets_the_contract(smp, name):
    check_head(name, SMALL[name])


CASES = {
    "upernet": ("upernet", {}, (4, 8, 16, 32)),
    "upernet without normalization": ("upernet", {"use_norm": False}, (4, 8, 16, 32)),
    "segformer": ("segformer", {}, (4, 8, 16, 32)),
    "segformer with a feature of stride 2": ("segformer", {}, (2, 4, 8, 16, 32)),
    "linear": ("linear", {}, (16,)),
    "linear with three features": ("linear", {"features": 3}, (8, 16, 16)),
}


LONG = ("upernet", "upernet without normalization")
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
        return {"logits": head_logits(reference, maps, hw)}

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
        rules=head.torch.tables_of(options)["torchvision"],
        layout="NHWC",
        call_torch=call,
        call_jax=call_ours,
        dtype=dtype,
    )


@pytest.mark.parametrize("case", EACH)
def test_layers_training_and_gradients_match_torch_at_odd_sizes(smp, case):
    report = compared(case)
    assert report.equal, str(report)
    assert not report.skipped


@pytest.mark.slow
@pytest.mark.parametrize("case", HEADS)
def test_bfloat16_matches_torch(smp, case):
    report = compared(case, "bfloat16")
    assert report.equal, str(report)


# ------------------------------------------------------------------------- whole models of SMP


def loaded(smp, name):
    """SMP's model on a ResNet-18 with random values, ours with its weights, and the report."""
    import torch

    torch.manual_seed(0)
    settings = {"encoder_weights": None, "classes": CLASSES}
    if name == "upernet":
        network = smp.UPerNet("resnet18", decoder_channels=8, **settings)
    else:
        network = smp.Segformer("resnet18", decoder_segmentation_channels=8, **settings)
    randomize(network, 0)
    model = nnx.eval_shape(
        lambda: build_model("resnet18", name, CLASSES, head_options=SMALL[name], rngs=nnx.Rngs(0))
    )
    report = load_torch(model, network.state_dict())
    model.eval()
    return network.eval(), model, report


@pytest.mark.parametrize("name", ["upernet", "segformer"])
def test_files_of_smp_load_and_convert_back_bit_for_bit(smp, name):
    network, model, report = loaded(smp, name)
    assert (report.key_format, report.scope, report.dropped) == ("smp", "model", {})
    theirs = {key: value.numpy() for key, value in network.state_dict().items()}
    back = to_torch(model, "smp")
    assert back.keys() == theirs.keys()
    for key, value in back.items():
        assert value.dtype == theirs[key].dtype
        assert value.tobytes() == theirs[key].tobytes(), key


@pytest.mark.slow
@pytest.mark.parametrize("name", ["upernet", "segformer"])
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


@pytest.mark.slow
@pytest.mark.parametrize("backbone", ["resnet18", "mobilenet_v3_small"])
@pytest.mark.parametrize("name", HEADS)
def test_model_and_its_gradients_match_torch(smp, name, backbone):
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
        ("upernet", {}, (2, 4, 8, 16, 32), (1, 2, 3, 4)),
        ("segformer", {}, (2, 4, 8, 16, 32), (0, 1, 2, 3, 4)),
        ("segformer", {}, (4, 8, 16, 32, 32), (0, 1, 2, 4)),
        ("linear", {}, (4, 8, 16, 16), (3,)),
        ("linear", {"features": 2}, (4, 8, 16, 16), (2, 3)),
    ],
)
def test_takes_features(name, options, strides, taken):
    chosen, features = validate(HEADS[name], options), specs(*strides)
    assert HEADS[name].select(chosen, features) == tuple(features[i].name for i in taken)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("upernet", {}, r"head 'upernet' needs features of strides 4, 8, 16, 32.*lacks stride 32"),
        ("segformer", {}, r"head 'segformer' needs features of strides 4.*lacks stride 32"),
        (
            "linear",
            {"features": 6},
            r"head 'linear' takes the 6 deepest features, but the backbone offers only stem \(2\), "
            r".*layer4 \(16\); set its option features to 5 or less",
        ),
    ],
)
def test_error_names_the_missing_features_in_one_line(name, options, message):
    with pytest.raises(ConfigError, match=message) as caught:
        _ = resolve(ModelSpec("resnet18", name, CLASSES, head_options=options, output_stride=16))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("upernet", {"decoder_channels": 0}, "'decoder_channels' is 0"),
        ("segformer", {"segmentation_channels": 0}, "'segmentation_channels' is 0"),
        ("linear", {"features": 0}, "'features' is 0"),
    ],
)
def test_rejects_options_out_of_range(name, options, message):
    with pytest.raises(ConfigError, match=message):
        validate(HEADS[name], options)
