"""Whole models against their PyTorch originals, on the small backbone of the fixtures."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from flax import nnx

from fcn_jax import nn, verify_model
from fcn_jax.api import Model
from fcn_jax.convert.export import to_torch
from fcn_jax.convert.load import load_torch
from fcn_jax.errors import ConfigError, PluginError, WeightsError, WriteError
from fcn_jax.models.segmenter import ModelSpec, build, by_name
from fcn_jax.nn import _batch_norm
from fcn_jax.nn._conv_norm_act import folding
from fcn_jax.plugins import registry
from fcn_jax.testing import check_model
from fcn_jax.verify import html

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("tiny_plugin")

SMALL = {"sizes": [(65, 97)], "num_classes": 3, "batch": 2}


def section(report, title):
    return next(section for section in report.sections if section.title == title)


@pytest.fixture(scope="module")
def whole_report(tiny_plugin):
    """Everything that can be compared."""
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


def test_a_normalisation_that_is_folded_in_use_is_watched_as_a_layer(tiny_plugin):
    with folding(True):
        report = verify_model("tiny", sizes=[(33, 49)], num_classes=3)
    assert report.equal, report
    watched = {comparison.name for comparison in section(report, "layers, accumulated").comparisons}
    assert {"backbone.conv1", "backbone.bn1"} <= watched


def test_a_right_port_is_equal_in_everything(whole_report):
    report, steps = whole_report
    assert report.equal, report
    assert report.verdict.startswith("EQUAL: tiny + fcn32s in float32")
    names = {
        "layers, isolated": [
            "backbone.conv1",
            "backbone.bn1",
            "backbone.conv2",
            "head.final_conv",
            "head.transpose_conv",
        ],
        "layers, accumulated": [
            "backbone.conv1",
            "backbone.bn1",
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
    assert len(section(report, "training, after step 1").comparisons) == 10 + 3
    assert [c.name for c in section(report, "training, each step").comparisons][-3:] == [
        "loss, step 3",
        "all parameters, step 3",
        "all running statistics, step 3",
    ]
    assert [a.size for a in report.agreement] == [(65, 97), (32, 40)]
    assert all(a.argmax > 0.999 and a.miou > 0.99 for a in report.agreement)
    assert len(report.coverage.loaded) == 13
    assert report.uncompared == ()
    done = [step[0] for step in steps]
    assert done == list(range(1, len(done) + 1))
    assert steps[-1][1] >= steps[-1][0]


def test_a_step_moves_every_tensor(whole_report):
    """Otherwise equal parameters after training would show nothing."""
    report, _ = whole_report
    first = {c.name: c for c in section(report, "training, each step").comparisons}
    assert first["all parameters, step 3"].error > 0
    assert first["all running statistics, step 1"].error > 0


def test_the_report_can_be_written_and_read(whole_report, tmp_path):
    report, _ = whole_report
    html.write(report, tmp_path / "r.json")
    table = json.loads((tmp_path / "r.json").read_text())
    assert table["verdict"] == "equal"
    assert {s["title"] for s in table["sections"]} == {s.title for s in report.sections}
    assert (
        table["environment"]["versions"]["torch"] == torch.__version__.split("+")[0]
        or "torch" in table["environment"]["versions"]
    )
    html.write(report, tmp_path / "sub" / "r.html")
    page = (tmp_path / "sub" / "r.html").read_text()
    assert page.count("<h1 class=equal>") == 1
    assert "http" not in page.replace("http://www.w3.org", "")  # self-contained
    assert page.count("data:image/svg+xml") == 2
    assert page.count("data:image/png") == 4
    with pytest.raises(ConfigError, match=r"ends in \.html or \.json"):
        html.write(report, tmp_path / "r.pdf")


def test_a_report_replaces_a_report_and_nothing_else(whole_report, tmp_path):
    report, _ = whole_report
    for name in ("r.json", "r.html"):
        (tmp_path / name).write_text("mine")
        with pytest.raises(
            WriteError, match=f"{name}: exists and is not a report of fcn-jax verify"
        ):
            html.write(report, tmp_path / name)
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
        html.write(report, tmp_path / name)
        html.check_path(tmp_path / name)
        html.write(report, tmp_path / name)
        assert "fcn-jax verify" in (tmp_path / name).read_text()[:200]


def test_text_starts_with_the_verdict(whole_report):
    text = str(whole_report[0])
    assert text.splitlines()[0].startswith("EQUAL: ")
    assert "argmax agrees" in text


def test_bfloat16_is_held_against_pytorchs_bfloat16():
    report = verify_model("tiny", dtype="bfloat16", grad=True, **SMALL)
    assert report.equal, report
    errors = [c.error for c in section(report, "layers, isolated").comparisons]
    assert min(errors) > 1e-4, "that was no bfloat16"


def test_weights_come_from_a_file_unchanged(tmp_path):
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
        "the record is of the user's file, not of the reference's state dict"
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


def test_the_callers_random_stream_is_left_alone():
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    verify_model("tiny", **SMALL)
    assert torch.equal(torch.rand(1), expected)


def test_the_files_own_values_reach_pytorchs_side(tmp_path, monkeypatch):
    """Not by way of JAX: an operation wrong both ways would bring them back unharmed."""
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
    assert report.blame.startswith("backbone.conv1: ")


def _with_op(old, new):
    def get(self, name):
        value = object.__getattribute__(self, name)
        return new if name == "op" and value is old else value

    return get


@pytest.mark.parametrize(
    ("fault", "blamed"),
    [
        # PyTorch's running variance is the unbiased one, Flax's is not.
        ("biased", "backbone.bn1.running_var"),
        # PyTorch's momentum of 0.1 is Flax's 0.9; Flax's default is 0.99.
        ("momentum", "backbone.bn1.running_mean"),
    ],
)
def test_wrong_running_statistics_are_found(monkeypatch, fault, blamed):
    if fault == "momentum":
        monkeypatch.setattr(
            nn.BatchNorm,
            "_moved",
            lambda self, old, new: 0.99 * old + 0.01 * jax.lax.stop_gradient(new),
        )
    else:
        original = _batch_norm.batch_norm_train

        def biased(x, *settings):
            y, mean, var = original(x, *settings)
            count = x.size // x.shape[-1]
            return y, mean, var * ((count - 1) / count)

        monkeypatch.setattr(_batch_norm, "batch_norm_train", biased)
    report = verify_model("tiny", sizes=[(33, 49)], num_classes=3, train_steps=1)
    assert not report.equal
    failed = [c for c in section(report, "training, after step 1").comparisons if not c.equal]
    assert failed[0].name == blamed
    assert max(c.excess for c in failed) > 10
    assert blamed in report.blame


@pytest.mark.parametrize(
    ("dtype", "change", "blamed"),
    [
        ("float32", {"momentum": 0.99}, "all parameters, step 2"),
        ("float32", {"weight_decay": 1e-3}, ""),
        ("bfloat16", {"lr": 0.02}, ""),
    ],
)
def test_a_wrong_optimiser_is_found(monkeypatch, dtype, change, blamed):
    from fcn_jax.verify import training

    make = training.optim.make
    monkeypatch.setattr(
        training.optim, "make", lambda recipe, *rest: make(recipe.model_copy(update=change), *rest)
    )
    report = verify_model("tiny", sizes=[(33, 49)], num_classes=3, train_steps=2, dtype=dtype)
    assert not report.equal
    assert blamed in report.blame
    assert {section.title.split(",")[0] for section in report.sections if not section.equal} == {
        "training"
    }


def test_a_network_with_nan_is_told_so_first(monkeypatch):
    original = nn.Conv.__call__
    monkeypatch.setattr(nn.Conv, "__call__", lambda self, x: original(self, x) * np.nan)
    report = verify_model("tiny", **SMALL)
    assert not report.equal
    assert report.blame == "backbone.conv1: has values that are not finite (NaN or Inf)"


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"model": "tinny"}, "'tinny' is neither a registered whole model nor a backbone"),
        ({"head": "fcn23s"}, "Did you mean 'fcn32s'"),
        ({"sizes": [(8, 97)]}, "size 8x97: want 32 or more"),
        ({"sizes": []}, "no size"),
        ({"batch": 0}, "batch is 0: want 1 or more"),
        ({"train_steps": -1}, "train_steps is -1: want 0 or more"),
        ({"train_lr": 0.0}, "train_lr is 0.0: want a number above 0"),
        ({"dtype": "float16"}, "dtype is 'float16'"),
        ({"output_stride": 16}, "has no output stride 16; it offers 8"),
        ({"backbone_options": {"depht": 3}}, "depht"),
        ({"head_options": {"upsampling": "nearest"}}, "nearest"),
        ({"num_classes": 0}, "num_classes is 0"),
        ({"num_classes": 256}, "num_classes is 256: want 255 or less"),
        ({"seed": -1}, "seed is -1: want 0 or more"),
        (
            {"model": "fcn32s_resnet18", "head": "fcn32s"},
            "'fcn32s_resnet18' is a whole model, with the head 'fcn32s'",
        ),
    ],
)
def test_bad_settings_are_refused_in_a_line(settings, complaint):
    with pytest.raises(ConfigError, match=complaint):
        verify_model(**({"model": "tiny"} | settings))


def test_a_part_without_original_is_refused(monkeypatch):
    import dataclasses

    from fcn_jax.plugins import registry

    plugins = registry.default()
    bare = dataclasses.replace(plugins.backbone("tiny"), torch=None)
    monkeypatch.setattr(plugins, "backbone", lambda name: bare)
    with pytest.raises(ConfigError, match="backbone 'tiny' declares no PyTorch reference"):
        verify_model("tiny", **SMALL)


@pytest.mark.slow
def test_the_references_backbone_is_named_as_the_spec_does(monkeypatch):
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
    with pytest.raises(PluginError, match="fcn-jax plugins check fcn-jax-tiny:tiny says more"):
        reference(torch.zeros(1, 3, 40, 50))


@pytest.mark.slow
def test_an_auxiliary_head_takes_part_in_logits_gradients_and_training():
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
        "aux_head.conv1",
        "aux_head.bn1",
    }


@pytest.mark.slow
def test_a_whole_model_is_held_against_torchvisions_own_class(monkeypatch):
    """Its descriptor builds it; the parts' references put together are not asked for."""
    from fcn_jax.verify import model

    monkeypatch.delattr(model, "build_reference")
    report = verify_model("fcn_resnet50", sizes=[(33, 47)], num_classes=3, batch=1)
    assert report.equal, report
    assert len(report.coverage.loaded) == 334


class Flat(torch.nn.Module):
    """A whole network whose names have no prefixes: `tiny` under FCN-32s with fixed upsampling, in the names of pytorch-fcn."""

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


def test_a_whole_models_original_may_have_names_of_its_own(tiny_plugin, monkeypatch):
    plugins = registry.default()
    tiny = plugins.backbone("tiny")

    def tables(options):
        return tiny.torch.tables(options) | {
            "pytorch-fcn": tiny.torch.tables(options)["torchvision"]
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
    assert report.equal, report
    assert report.coverage.names == "pytorch-fcn"
    assert len(section(report, "gradients").comparisons) == 1 + 8  # the fixed kernel has none
    model = build(by_name("flat"), rngs=nnx.Rngs(0))
    theirs = Flat(3).state_dict()
    load_torch(model, theirs)
    ours = to_torch(model, "pytorch-fcn")
    assert sorted(ours) == sorted(theirs)
    assert all(np.array_equal(ours[name], theirs[name].numpy()) for name in theirs)
