"""Models against their PyTorch references, on the small backbone of the fixtures."""

import dataclasses

import numpy as np
import pytest
from flax import nnx

from fcn_jax import nn, verify_model
from fcn_jax.api import Model, ModelSpec
from fcn_jax.convert.export import to_torch
from fcn_jax.convert.load import load_torch
from fcn_jax.errors import ConfigError, PluginError, WeightsError
from fcn_jax.models.build import build
from fcn_jax.models.spec import registered_spec
from fcn_jax.nn._conv_norm_act import folding
from fcn_jax.plugins import registry
from fcn_jax.testing import check_model

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("tiny_plugin")

SMALL = {"sizes": [(65, 97)], "num_classes": 3, "batch": 2}


def section(report, title):
    return next(section for section in report.sections if section.title == title)


@pytest.fixture(scope="module")
def full_report(tiny_plugin):
    """A report with all comparisons."""
    steps = []
    report = verify_model(
        "tiny",
        sizes=[(65, 97), (32, 40)],
        num_classes=3,
        grad=True,
        train_steps=3,
        progress=lambda done, total, what: steps.append((done, total, what)),
    )
    return report, steps


def test_folded_normalization_is_compared_as_a_layer(tiny_plugin):
    with folding(True):
        report = verify_model("tiny", sizes=[(33, 49)], num_classes=3)
    assert report.equal, report
    watched = {comparison.name for comparison in section(report, "layers, accumulated").comparisons}
    assert {"backbone.conv1.conv", "backbone.conv1.bn"} <= watched


def test_right_port_is_equal_in_all_sections(full_report):
    report, steps = full_report
    assert report.equal, report
    assert report.verdict.startswith("EQUAL: tiny + fcn32s in float32")
    names = {
        "layers, isolated": [
            "backbone.conv1.conv",
            "backbone.conv1.bn",
            "backbone.conv2",
            "head.final_conv",
            "head.transpose_conv",
        ],
        "layers, accumulated": [
            "backbone.conv1.conv",
            "backbone.conv1.bn",
            "backbone.conv2",
            "head.final_conv",
            "head.transpose_conv",
        ],
        "logits at 65x97": ["out"],
        "logits at 32x40": ["out"],
        "gradients": [
            "loss",
            "backbone.conv1.weight",
            "backbone.conv1.bias",
            "backbone.bn1.weight",
            "backbone.bn1.bias",
        ],
    }
    for title, expected in names.items():
        found = [comparison.name for comparison in section(report, title).comparisons]
        assert found[: len(expected)] == expected
    assert len(section(report, "gradients").comparisons) == 1 + 10
    for step in (1, 2, 3):
        assert len(section(report, f"training with sgd, step {step}").comparisons) == 1 + 10 + 3
    assert [a.size for a in report.agreement] == [(65, 97), (32, 40)]
    assert all(a.argmax > 0.999 and a.miou > 0.99 for a in report.agreement)
    assert len(report.coverage.loaded) == 13
    assert report.skipped == {}
    done = [step[0] for step in steps]
    assert done == list(range(1, len(done) + 1))
    assert steps[-1][1] >= steps[-1][0]


def test_training_step_changes_every_tensor(full_report):
    """Otherwise equal parameters after training would prove nothing."""
    report, _ = full_report
    errors = {c.name: c.error for c in section(report, "training with sgd, step 1").comparisons}
    assert errors.pop("backbone.bn1.num_batches_tracked") == 0
    assert min(errors.values()) > 0


@pytest.mark.slow
def test_bfloat16_is_compared_with_bfloat16_of_pytorch():
    report = verify_model("tiny", dtype="bfloat16", grad=True, **SMALL)
    assert report.equal, str(report)
    errors = [c.error for c in section(report, "layers, isolated").comparisons]
    assert min(errors) > 1e-4, "bfloat16 has larger errors"


def test_loads_weights_from_a_file(tmp_path):
    from fcn_jax.verify.reference import build_reference

    torch.manual_seed(5)
    state = build_reference(ModelSpec("tiny", "fcn32s", 3)).state_dict()
    file = tmp_path / "whole.pth"
    wrapped = {
        f"module.{name}".replace("backbone.", "backbone._orig_mod."): value
        for name, value in state.items()
    }
    torch.save({"model": {**wrapped, "criterion.weight": torch.ones(3)}, "epoch": 3}, file)
    report = verify_model("tiny", weights=file, **SMALL)
    assert report.equal, report
    assert report.coverage.source == str(file), (
        "the report is of the user's file, not of the reference's state dict"
    )
    assert (report.coverage.key, list(report.coverage.dropped)) == ("model", ["criterion.weight"])
    assert report.weights["sha256"]
    assert report.weights["random"] == []
    torch.save(
        {
            name.removeprefix("backbone."): v
            for name, v in state.items()
            if "backbone.bn" not in name and "classifier" not in name
        },
        file,
    )
    with pytest.raises(WeightsError, match=r"missing 4: bn1\.bias"):
        verify_model("tiny", weights=file, **SMALL)
    partial = verify_model("tiny", weights=file, reinit=["bn1"], **SMALL)
    assert partial.equal, partial
    assert "backbone.conv1.bn.scale" in partial.weights["random"]


def test_does_not_change_the_random_state_of_the_caller():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    verify_model("tiny", **SMALL)
    assert torch.equal(torch.rand(1), expected)


def test_values_of_the_file_reach_pytorch_unchanged(tmp_path, monkeypatch):
    """A wrong rule that is its own inverse must not cancel out."""
    from fcn_jax.pytorch import rules
    from fcn_jax.verify.reference import build_reference

    file = tmp_path / "whole.pth"
    torch.save(build_reference(ModelSpec("tiny", "fcn32s", 3)).state_dict(), file)
    flipped = rules.Op(
        "flipped", lambda x: rules.CONV.to_jax(x)[::-1], lambda x: rules.CONV.to_torch(x[::-1])
    )
    monkeypatch.setattr(rules.Rule, "__getattribute__", _with_op(rules.CONV, flipped))
    report = verify_model("tiny", weights=file, **SMALL)
    assert not report.equal
    assert report.failure.startswith("backbone.conv1.conv: ")


def _with_op(old, new):
    def get(self, name):
        value = object.__getattribute__(self, name)
        return new if name == "op" and value is old else value

    return get


def test_nan_is_the_first_failure(monkeypatch):
    original = nn.Conv.__call__
    monkeypatch.setattr(nn.Conv, "__call__", lambda self, x: original(self, x) * np.nan)
    report = verify_model("tiny", **SMALL)
    assert not report.equal
    assert report.failure == "backbone.conv1.conv: has values that are not finite (NaN or Inf)"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"model": "tinny"}, "'tinny' is neither a registered model nor a backbone"),
        ({"head": "fcn23s"}, "Did you mean 'fcn32s'"),
        ({"sizes": [(8, 97)]}, "size 8x97: expected height and width of at least 32"),
        ({"sizes": []}, "sizes is empty"),
        ({"batch": 0}, "batch is 0: expected 1 or more"),
        ({"train_steps": -1}, "train_steps is -1: expected 0 or more"),
        ({"train_lr": 0.0}, "train_lr is 0.0: expected a number above 0"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"output_stride": 16}, "has no output stride 16; it offers 8"),
        ({"backbone_options": {"depht": 3}}, "depht"),
        ({"head_options": {"upsampling": "nearest"}}, "nearest"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_classes": 256}, "num_classes is 256: expected 255 or less"),
        ({"seed": -1}, "seed is -1: expected 0 or more"),
        (
            {"model": "fcn32s_resnet18", "head": "fcn32s"},
            "is a model with the head 'fcn32s'; head and aux_head are for backbones",
        ),
    ],
)
def test_rejects_invalid_settings(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        verify_model(**({"model": "tiny"} | settings))


def test_rejects_unknown_arguments():
    with pytest.raises(TypeError, match="verify_model has no argument size"):
        verify_model("tiny", size=(65, 97))


@pytest.mark.slow
def test_takes_a_spec():
    spec = ModelSpec("tiny", "fcn32s", 3, backbone_options={"width": 4})
    report = verify_model(spec, sizes=[(33, 49)])
    assert report.equal, report
    assert report.subject == "tiny + fcn32s"
    named = verify_model("tiny", sizes=[(33, 49)], num_classes=3, backbone_options={"width": 4})
    assert named.subject == "tiny + fcn32s, width=4"
    assert [c.error for c in named.sections[0].comparisons] == [
        c.error for c in report.sections[0].comparisons
    ]


def test_rejects_parts_without_reference(monkeypatch):
    import dataclasses

    from fcn_jax.plugins import registry

    plugins = registry.default()
    bare = dataclasses.replace(plugins.backbone("tiny"), torch=None)
    monkeypatch.setattr(plugins, "backbone", lambda name: bare)
    with pytest.raises(ConfigError, match="backbone 'tiny' has no PyTorch reference"):
        verify_model("tiny", **SMALL)


@pytest.mark.slow
def test_error_of_the_reference_uses_the_name_of_the_spec(monkeypatch):
    from fcn_jax.verify.reference import build_reference

    plugins = registry.default()
    tiny = plugins.backbone("fcn-jax-tiny:tiny")

    def features(options, output_stride):
        return tuple(
            dataclasses.replace(spec, size=lambda n: 1)
            for spec in tiny.features(options, output_stride)
        )

    monkeypatch.setattr(
        plugins, "backbone", lambda name: dataclasses.replace(tiny, features=features)
    )
    reference = build_reference(ModelSpec("fcn-jax-tiny:tiny", "fcn32s", 3))
    with pytest.raises(PluginError, match="see fcn-jax plugins check fcn-jax-tiny:tiny"):
        reference(torch.zeros(1, 3, 40, 50))


@pytest.mark.slow
def test_compares_the_auxiliary_head():
    report = verify_model(
        "resnet18",
        head="fcn",
        aux_head="fcn",
        sizes=[(48, 64)],
        num_classes=3,
        grad=True,
        train_steps=1,
    )
    assert report.equal, report
    assert [c.name for c in section(report, "logits at 48x64").comparisons] == ["out", "aux"]
    trained = {c.name: c for c in section(report, "gradients").comparisons}
    assert trained["aux_classifier.4.weight"].error < 1e-3
    assert {layer.name for layer in section(report, "layers, isolated").comparisons} >= {
        "aux_head.conv1.conv",
        "aux_head.conv1.bn",
    }


@pytest.mark.slow
def test_registered_model_is_compared_with_its_own_class(monkeypatch):
    """The descriptor builds the reference; the references of the parts are not used."""
    from fcn_jax.verify import model

    monkeypatch.delattr(model, "build_reference")
    report = verify_model("fcn_resnet50", sizes=[(33, 47)], num_classes=3, batch=1)
    assert report.equal, report
    assert len(report.coverage.loaded) == 334


class Flat(torch.nn.Module):
    """`tiny` + FCN-32s with fixed upsampling in pytorch-fcn's key format, without prefixes."""

    def __init__(self, num_classes):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, 8, 5, 4, 2)
        self.bn1 = torch.nn.BatchNorm2d(8)
        self.conv2 = torch.nn.Conv2d(8, 8, 3, 2, 1)
        self.score_fr = torch.nn.Conv2d(8, num_classes, 1)
        self.upscore = torch.nn.ConvTranspose2d(num_classes, num_classes, 16, 8, 4, bias=False)
        self.upscore.requires_grad_(False)

    def forward(self, x):
        y = torch.relu(self.conv2(torch.relu(self.bn1(self.conv1(x)))))
        return {"out": self.upscore(self.score_fr(y))[..., : x.shape[2], : x.shape[3]]}


@pytest.mark.slow
def test_reference_model_may_have_its_own_key_format(tiny_plugin, monkeypatch):
    plugins = registry.default()
    tiny = plugins.backbone("tiny")

    def tables(options):
        return tiny.torch.tables_of(options) | {
            "pytorch-fcn": tiny.torch.tables_of(options)["torchvision"]
        }

    renamed = dataclasses.replace(tiny, torch=dataclasses.replace(tiny.torch, tables=tables))
    flat = Model(
        name="flat",
        summary="for this test",
        spec=ModelSpec("tiny", "fcn32s", 3, head_options={"upsampling": "fixed"}),
        reference_model=lambda num_classes, aux: Flat(num_classes),
        key_format="pytorch-fcn",
    )
    names, find = plugins.names, plugins.find
    entry = registry.Entry("models", "flat", "fcn-jax-tiny", "1.0", "")
    monkeypatch.setattr(plugins, "backbone", lambda name: renamed)
    monkeypatch.setattr(plugins, "model", lambda name: flat)
    monkeypatch.setattr(
        plugins, "find", lambda kind, name: entry if kind == "models" else find(kind, name)
    )
    monkeypatch.setattr(
        plugins, "names", lambda kind: [*names(kind), *(["flat"] if kind == "models" else [])]
    )
    check_model(flat)
    report = verify_model("flat", sizes=[(65, 97)], grad=True, train_steps=2)
    assert report.equal, str(report)
    assert report.coverage.key_format == "pytorch-fcn"
    # The fixed kernel has no gradient.
    assert len(section(report, "gradients").comparisons) == 1 + 8
    model = build(registered_spec("flat"), rngs=nnx.Rngs(0))
    theirs = Flat(3).state_dict()
    load_torch(model, theirs)
    ours = to_torch(model, "pytorch-fcn")
    assert sorted(ours) == sorted(theirs)
    assert all(np.array_equal(ours[name], theirs[name].numpy()) for name in theirs)


def test_rejects_unknown_matmul_precision_among_other_problems():
    with pytest.raises(ConfigError, match=r"batch is 0: .*matmul_precision is 'tf32'; it must be"):
        verify_model("tiny", matmul_precision="tf32", **{**SMALL, "batch": 0})


def test_records_the_matmul_precision(tiny_plugin):
    report = verify_model("tiny", matmul_precision="default", **{**SMALL, "sizes": [(32, 40)]})
    assert report.environment["jax_matmul_precision"] == "default"
