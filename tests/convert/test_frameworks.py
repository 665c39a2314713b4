"""Checkpoints of training frameworks: weights under keys and prefixes, next to other values."""

import argparse
import collections
import datetime
import enum
import os
import pathlib
import pickle

import numpy as np
import pytest
from flax import nnx

from fcn_jax.convert.export import to_torch
from fcn_jax.convert.init import init_from
from fcn_jax.convert.load import load_torch
from fcn_jax.errors import WeightsError
from fcn_jax.models.build import build_model
from fcn_jax.models.names import leaves
from fcn_jax.pytorch import files

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("tiny_plugin")

CLASSES = 3


def tensors_of(seed, classes=CLASSES, head="fcn"):
    """A state dict of the backbone `tiny` with a head, with values that depend on the seed."""
    shapes = {
        "backbone.conv1.weight": (8, 3, 5, 5),
        "backbone.conv1.bias": (8,),
        "backbone.bn1.weight": (8,),
        "backbone.bn1.bias": (8,),
        "backbone.bn1.running_mean": (8,),
        "backbone.bn1.running_var": (8,),
        "backbone.bn1.num_batches_tracked": (),
        "backbone.conv2.weight": (8, 8, 3, 3),
        "backbone.conv2.bias": (8,),
    }
    if head == "fcn":
        shapes |= {
            "classifier.0.weight": (2, 8, 3, 3),
            "classifier.4.weight": (classes, 2, 1, 1),
            "classifier.4.bias": (classes,),
        }
        shapes |= {
            f"classifier.1.{name}": (2,)
            for name in ("weight", "bias", "running_mean", "running_var")
        }
        shapes["classifier.1.num_batches_tracked"] = ()
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.tensor(seed)
        if name.endswith("tracked")
        else torch.rand(shape, generator=generator)
        for name, shape in shapes.items()
    }


WHOLE, AVERAGE = tensors_of(1), tensors_of(2)
BACKBONE = {
    name.removeprefix("backbone."): value
    for name, value in WHOLE.items()
    if name.startswith("backbone.")
}


def prefixed(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


@pytest.fixture(scope="module")
def make(tiny_plugin):
    """(head, classes) -> a new model with shapes instead of values."""
    known = {}

    def make(head="fcn", classes=CLASSES):
        if (head, classes) not in known:
            known[head, classes] = nnx.split(
                nnx.eval_shape(lambda: build_model("tiny", head, classes, rngs=nnx.Rngs(0)))
            )
        return nnx.merge(*known[head, classes], copy=True)

    return make


def assert_holds(model, expected):
    found = to_torch(model)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].tobytes() == value.numpy().tobytes(), name


def assert_backbone(model, expected=WHOLE):
    backbone = leaves(model)
    np.testing.assert_array_equal(
        backbone["backbone.conv1.conv.kernel"][...],
        expected["backbone.conv1.weight"].permute(2, 3, 1, 0),
    )
    np.testing.assert_array_equal(
        backbone["backbone.conv2.kernel"][...],
        expected["backbone.conv2.weight"].permute(2, 3, 1, 0),
    )
    np.testing.assert_array_equal(
        backbone["backbone.conv1.bn.mean"][...], expected["backbone.bn1.running_mean"]
    )


class AttributeDict(dict):
    """A dict of a class that may not be installed, as Lightning's hyper_parameters."""

    def __getattr__(self, name):
        return self[name]


class Mode(enum.Enum):
    BEST = "best"


class History:
    def __init__(self):
        self.values = np.arange(3.0)
        self.activation = torch.nn.functional.relu


def optimizer():
    network = torch.nn.Linear(2, 2)
    made = torch.optim.Adam(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    made.step()
    return made.state_dict()


OTHER_VALUES = {
    "epoch": 3,
    "best_miou": np.float64(0.5),
    "curve": np.arange(3),
    "hyper_parameters": AttributeDict(lr=0.1, folder=pathlib.Path("runs"), mode=Mode.BEST),
    "message_hub": History(),
    "counts": collections.defaultdict(list, {"a": [1]}),
    "device": torch.device("cuda:0"),
    "size": torch.Size([1, 2]),
    "dtype": torch.bfloat16,
    "args": argparse.Namespace(lr=0.1, device="cuda"),
    "optimizer": optimizer(),
    "seen": {1, 2},
    "names": np.array(["a", "b"], dtype=object),
    "when": datetime.datetime(2026, 1, 1),
    "rng": torch.get_rng_state(),
    "raw": b"\x00\x01",
    "complex": 1j,
}


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("archive", [True, False])
def test_ignores_settings_and_scores(make, tmp_path, protocol, archive):
    path = tmp_path / "last.ckpt"
    torch.save(
        {"state_dict": prefixed("model.", WHOLE), **OTHER_VALUES},
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=archive,
    )
    model = make()
    report = load_torch(model, path)
    assert_holds(model, WHOLE)
    assert (report.key, report.stripped, report.scope, report.dropped) == (
        "state_dict",
        "model.",
        "model",
        {},
    )
    assert set(report.not_weights) == set(OTHER_VALUES)
    assert "under 'state_dict', without 'model.'" in str(report)
    assert "not weights: epoch" in str(report)


def lightning():
    return {
        "epoch": 1,
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {
            **prefixed("net.", WHOLE),
            "criterion.weight": torch.ones(3),
            "val_iou.confmat": torch.ones(3, 3),
            "std": torch.ones(1, 3, 1, 1),
        },
        "hyper_parameters": AttributeDict(lr=1),
        "optimizer_states": [optimizer()],
        "callbacks": {},
    }


WRAPPED = {
    "AveragedModel": (
        lambda: {"n_averaged": torch.tensor(5), **prefixed("module.", WHOLE)},
        "",
        "module.",
        {"n_averaged"},
    ),
    "Lightning": (lightning, "state_dict", "net.", {"criterion.weight", "val_iou.confmat", "std"}),
    "timm": (
        lambda: {"arch": "tiny", "state_dict": WHOLE, "state_dict_ema": AVERAGE, "metric": 0.7},
        "state_dict",
        "",
        set(),
    ),
    "YOLOX": (
        lambda: {
            "start_epoch": 3,
            "model": WHOLE,
            "optimizer": optimizer(),
            "best_ap": np.float64(0.3),
        },
        "model",
        "",
        set(),
    ),
    "DataParallel of a compiled network": (
        lambda: prefixed("module._orig_mod.", WHOLE),
        "",
        "module._orig_mod.",
        set(),
    ),
    "compiled DataParallel": (
        lambda: {"model": prefixed("_orig_mod.module.", WHOLE)},
        "model",
        "_orig_mod.module.",
        set(),
    ),
    "BasicSR": (lambda: {"params": WHOLE, "params_ema": AVERAGE}, "params", "", set()),
    "an average that keeps the network": (
        lambda: {
            "ema_model": {
                **prefixed("ema_model.", AVERAGE),
                **prefixed("online_model.", WHOLE),
                "step": torch.tensor(3),
            }
        },
        "ema_model",
        "online_model.",
        {f"ema_model.{name}" for name in WHOLE} | {"step"},
    ),
    "EMA first": (lambda: {"model_ema": AVERAGE, "model": WHOLE}, "model", "", set()),
    "MMEngine": (
        lambda: {
            "meta": {"dataset_meta": {"classes": ("a",), "palette": [(1, 2, 3)]}},
            "state_dict": {**WHOLE, "data_preprocessor.mean": torch.ones(3, 1, 1)},
            "message_hub": History(),
        },
        "state_dict",
        "",
        {"data_preprocessor.mean"},
    ),
    "nested": (
        lambda: {"a": {"b": {"model_state_dict": prefixed("module.", WHOLE)}}},
        "a.b.model_state_dict",
        "module.",
        set(),
    ),
    "a tuple": (lambda: (WHOLE, 3), "0", "", set()),
    "an average in one state dict": (
        lambda: {
            **prefixed("ema_model.module.", AVERAGE),
            **prefixed("model.", WHOLE),
            "ema_model.n_averaged": torch.tensor(1),
        },
        "",
        "model.",
        {f"ema_model.module.{name}" for name in WHOLE} | {"ema_model.n_averaged"},
    ),
    "teacher and student": (
        lambda: {"state_dict": {**prefixed("teacher.", AVERAGE), **prefixed("student.", WHOLE)}},
        "state_dict",
        "student.",
        {f"teacher.{name}" for name in WHOLE},
    ),
    "LitEma": (
        lambda: {
            "state_dict": {
                **prefixed("model.", WHOLE),
                **{"model_ema." + name.replace(".", ""): value for name, value in AVERAGE.items()},
                "model_ema.decay": torch.tensor(0.99),
            }
        },
        "state_dict",
        "model.",
        {"model_ema." + name.replace(".", "") for name in WHOLE} | {"model_ema.decay"},
    ),
    "a discriminator of other sizes": (
        lambda: {
            "discriminator": {
                name: value.repeat(2) if value.ndim == 1 else value
                for name, value in AVERAGE.items()
            },
            "generator": WHOLE,
        },
        "generator",
        "",
        set(),
    ),
    "arrays": (
        lambda: {
            "model": {name: value.numpy() for name, value in WHOLE.items()},
            "__author__": "x",
        },
        "model",
        "",
        set(),
    ),
    "parameters": (
        lambda: {
            name: torch.nn.Parameter(v, v.is_floating_point()) if v.is_floating_point() else v
            for name, v in WHOLE.items()
        },
        "",
        "",
        set(),
    ),
}


@pytest.mark.parametrize("name", WRAPPED)
def test_loads_checkpoints_of_frameworks(make, tmp_path, name):
    contents, key, prefix, dropped = WRAPPED[name]
    torch.save(contents(), tmp_path / "weights")
    model = make()
    report = load_torch(model, tmp_path / "weights")
    assert_holds(model, WHOLE)
    assert (report.key, report.stripped, report.scope, set(report.dropped)) == (
        key,
        prefix,
        "model",
        dropped,
    )
    if isinstance(contents(), dict):  # in memory as well
        model = make()
        load_torch(model, contents())
        assert_holds(model, WHOLE)


def test_joins_parts_in_separate_dicts(make, tmp_path):
    parts = {
        part: {n.removeprefix(f"{part}."): v for n, v in WHOLE.items() if n.startswith(part)}
        for part in ("backbone", "classifier")
    }
    torch.save({"epoch": 3, "state": parts}, tmp_path / "a.pth")
    model = make()
    report = load_torch(model, tmp_path / "a.pth")
    assert_holds(model, WHOLE)
    assert report.not_weights == ["epoch"]


def test_strips_wrappers_within_names(make, tmp_path):
    part = {
        name.replace("backbone.", "backbone._orig_mod."): value for name, value in WHOLE.items()
    }
    torch.save(prefixed("module.", part), tmp_path / "a.pth")
    model = make()
    report = load_torch(model, tmp_path / "a.pth")
    assert_holds(model, WHOLE)
    assert report.stripped == "module."
    assert report.in_file("backbone.conv1.weight") == "module.backbone._orig_mod.conv1.weight"
    assert report.in_file("classifier.4.bias") == "module.classifier.4.bias"
    assert "without _orig_mod within names" in str(report)


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema", "nested.ema"])
def test_prefers_weights_over_averages_and_key_selects_them(make, tmp_path, key):
    average = {"nested": {"ema": AVERAGE}} if "." in key else {key: AVERAGE}
    torch.save({**average, "model": WHOLE}, tmp_path / "a.pth")
    model = make()
    report = load_torch(model, tmp_path / "a.pth")
    assert_holds(model, WHOLE)
    assert report.also_fits == [key]
    assert f"--key {key}" in str(report)
    assert "loaded 'model'" in str(report)
    model = make()
    assert load_torch(model, tmp_path / "a.pth", key=key).key == key
    assert_holds(model, AVERAGE)
    with pytest.raises(
        WeightsError, match=rf"no weights of this model under the key 'emma'; there are: .*{key}"
    ):
        load_torch(model, tmp_path / "a.pth", key="emma")


def test_key_selects_a_prefix(make):
    tensors = {**prefixed("net_b.", AVERAGE), **prefixed("net_a.", WHOLE)}
    model = make()
    report = load_torch(model, tensors)
    assert_holds(model, AVERAGE)
    assert report.also_fits == ["net_a"]
    load_torch(model, tensors, key="net_a")
    assert_holds(model, WHOLE)


BACKBONES = {
    "bare": ({}, ""),
    "SMP": (
        {
            "segmentation_head.0.weight": torch.ones(3, 4, 3, 3),
            "decoder.blocks.0.conv1.0.weight": torch.ones(4, 8, 3, 3),
        },
        "encoder.",
    ),
    "mmsegmentation": (
        {
            "decode_head.conv_seg.weight": torch.ones(3, 8, 1, 1),
            "auxiliary_head.conv_seg.bias": torch.ones(3),
        },
        "backbone.",
    ),
    "a projector": ({"projector.weight": torch.ones(3, 3)}, ""),
    "DeepLab": (
        {"module.classifier.0.convs.0.0.weight": torch.ones(4, 8, 1, 1)},
        "module.backbone.",
    ),
}


@pytest.mark.parametrize("name", BACKBONES)
@pytest.mark.parametrize("head", ["fcn32s", "fcn"])
def test_loads_the_backbone_of_another_network(make, tmp_path, name, head):
    others, prefix = BACKBONES[name]
    torch.save({"state_dict": {**prefixed(prefix, BACKBONE), **others}}, tmp_path / "a.pth")
    if others:
        with pytest.raises(
            WeightsError, match=r"surplus \d: .*--reinit head.*--drop GLOB"
        ) as caught:
            load_torch(make(head), tmp_path / "a.pth")
        assert all(other in str(caught.value) for other in others)
    model = make(head)
    report = load_torch(model, tmp_path / "a.pth", reinit=["head"])
    assert_backbone(model)
    assert (report.scope, report.stripped, set(report.dropped)) == ("backbone", prefix, set(others))
    assert all("another head" in reason for reason in report.dropped.values())
    assert all(other in str(report) for other in others)
    model = make(head)
    report = load_torch(model, tmp_path / "a.pth", drop=list(others))
    assert_backbone(model)
    assert all("on purpose (--drop" in reason for reason in report.dropped.values())


HEAD = {
    name.removeprefix("classifier."): value
    for name, value in WHOLE.items()
    if name.startswith("classifier.")
}
OTHER_HEAD = {f"blocks.{name}": torch.ones(3, 8, 1, 1) for name in ("0.weight", "1.weight")}
SEPARATE = {
    "encoder and decoder": (
        lambda: {"epoch": 1, "encoder": BACKBONE, "decoder": OTHER_HEAD},
        "decoder",
    ),
    "of a network under a key": (
        lambda: {"epoch": 1, "model": {"backbone": BACKBONE, "head": OTHER_HEAD}},
        "model.head",
    ),
    "with keys between": (
        lambda: {"net_backbone": {"state_dict": BACKBONE}, "net_top": {"state_dict": OTHER_HEAD}},
        "net_top",
    ),
    "an average of a network": (
        lambda: {"ema": {"encoder": BACKBONE, "decoder": OTHER_HEAD}},
        "ema.decoder",
    ),
    "among the backbone's tensors": (lambda: {**BACKBONE, "head": OTHER_HEAD}, "head"),
}


@pytest.mark.parametrize("name", SEPARATE)
def test_reports_a_head_in_a_separate_dict(make, tmp_path, name):
    make_contents, key = SEPARATE[name]
    torch.save(make_contents(), tmp_path / "a.pth")
    with pytest.raises(
        WeightsError,
        match=rf"surplus 2: {key}\..*also holds weights under '{key}' \(2 tensors\).*--reinit head",
    ):
        load_torch(make(), tmp_path / "a.pth")
    for options, reason in (
        ({"reinit": ["head"]}, "another head"),
        ({"drop": [key]}, "on purpose"),
    ):
        model = make()
        report = load_torch(model, tmp_path / "a.pth", **options)
        assert_backbone(model)
        assert len(report.dropped) == 2
        assert all(
            name.startswith(f"{key}.") and reason in why for name, why in report.dropped.items()
        )


def test_loads_a_head_saved_as_the_error_advises(make, tmp_path):
    torch.save({"backbone": BACKBONE, "top": HEAD}, tmp_path / "a.pth")
    with pytest.raises(
        WeightsError,
        match=r"under 'top' \(8 tensors\).*save both .*under the keys 'backbone' and 'classifier'",
    ):
        load_torch(make(), tmp_path / "a.pth")
    torch.save(
        {"epoch": 1, "model": {"backbone": BACKBONE, "classifier": HEAD}}, tmp_path / "a.pth"
    )
    model = make()
    assert load_torch(model, tmp_path / "a.pth").scope == "model"
    assert_holds(model, WHOLE)


def test_copies_averages_losses_and_optimizers_are_not_a_head(make, tmp_path):
    contents = {
        "model": BACKBONE,
        "pretrained": {name: value + 1 for name, value in BACKBONE.items()},
        "same": BACKBONE,
        "teacher": {"backbone": BACKBONE, "head": OTHER_HEAD},
        "ema": OTHER_HEAD,
        "criterion": {"centers.weight": torch.ones(3, 8)},
        "opt": {"state": {0: {"exp_avg": torch.ones(3, 8, 1, 1)}}},
        "class_weights": {"weight": torch.ones(3)},
        "epoch": 3,
    }
    torch.save(contents, tmp_path / "a.pth")
    model = make()
    report = load_torch(model, tmp_path / "a.pth")
    assert_backbone(model)
    assert (report.key, report.scope, report.dropped) == ("model", "backbone", {})
    assert report.not_weights == ["opt", "class_weights", "epoch"]
    assert report.other_weights == ["pretrained", "same", "teacher", "ema", "criterion"]
    assert (
        "other weights, not loaded: pretrained, same, teacher, ema, criterion; not weights: opt"
        in str(report)
    )


def test_rejects_surplus_within_the_backbone(make):
    with pytest.raises(WeightsError, match=r"surplus 1: conv2\.extra\.weight"):
        load_torch(
            make("fcn32s"), {**BACKBONE, "conv2.extra.weight": torch.ones(1)}, reinit=["head"]
        )


def test_reinitializes_a_head_with_other_classes(make):
    model = make("fcn", 5)
    report = load_torch(model, WHOLE, reinit=["head"])
    assert_backbone(model)
    assert (report.scope, report.dropped) == ("model", {})
    assert sorted(report.reinit) == sorted(
        path for path in leaves(model) if path.startswith("head.")
    )


def test_drop_globs_match_with_or_without_the_prefix(make):
    tensors = prefixed(
        "module.",
        {**WHOLE, "extra.a": torch.ones(1), "extra.b": torch.ones(1), "other": torch.ones(2)},
    )
    model = make()
    with pytest.raises(
        WeightsError,
        match=r"surplus 3: extra\.a, extra\.b, other; the model is complete: .*--drop GLOB",
    ):
        load_torch(model, tensors)
    report = load_torch(model, tensors, drop=["extra", "module.oth*"])
    assert_holds(model, WHOLE)
    assert report.dropped == {
        "extra.a": "dropped on purpose (--drop extra)",
        "extra.b": "dropped on purpose (--drop extra)",
        "other": "dropped on purpose (--drop module.oth*)",
    }
    with pytest.raises(WeightsError, match=r"--drop matches nothing: nowhere"):
        load_torch(make(), WHOLE, drop=["nowhere"])


def test_dropped_tensors_that_the_model_needs_are_missing(make):
    with pytest.raises(
        WeightsError,
        match=r"missing 1: backbone\.conv1\.bias \(dropped by --drop \*\.conv1\.bias\)",
    ):
        load_torch(make(), WHOLE, drop=["*.conv1.bias"])
    model = make()
    report = load_torch(model, WHOLE, drop=["*.num_batches_tracked"])
    assert sorted(report.absent) == [
        "backbone.conv1.bn.num_batches_tracked",
        "head.conv1.bn.num_batches_tracked",
    ]


def test_drops_an_unused_auxiliary_head(make):
    model = make()
    report = load_torch(
        model,
        {
            **WHOLE,
            **{
                n.replace("classifier.", "aux_classifier."): v
                for n, v in WHOLE.items()
                if "classifier" in n
            },
        },
    )
    assert_holds(model, WHOLE)
    assert len(report.dropped) == 8
    assert all("auxiliary head" in reason for reason in report.dropped.values())


def test_starts_a_new_head_from_a_checkpoint_with_another(make, tmp_path):
    from fcn_jax import checkpoint

    source = build_model("tiny", "fcn", CLASSES, rngs=nnx.Rngs(0))
    load_torch(source, WHOLE)
    checkpoint.save_model(
        tmp_path / "c", checkpoint.make_spec(source.spec), checkpoint.arrays(source)
    )
    model = make("fcn32s")
    report = init_from(model, tmp_path / "c", reinit=["head"])
    assert_backbone(model)
    assert set(report.dropped) == {
        path
        for path in leaves(source)
        if path.startswith("head.") and path.split(".")[1] != "final_conv"
    }


# ------------------------------------------------------------------------- code in files never runs


class Calls:
    """Pickles as a call of a function with arguments."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def leave_mark(path):
    pathlib.Path(path).write_text("it ran")


MALICIOUS = {
    "os.system": lambda mark: Calls(os.system, f"touch {mark}"),
    "eval": lambda mark: Calls(eval, f"open({str(mark)!r}, 'w')"),
    "exec": lambda mark: Calls(exec, f"open({str(mark)!r}, 'w')"),
    "open": lambda mark: Calls(open, str(mark), "w"),
    "a function of the file's author": lambda mark: Calls(leave_mark, str(mark)),
    "getattr": lambda mark: Calls(getattr, Calls(pathlib.Path, str(mark)), "touch"),
    "a method": lambda mark: Calls(pathlib.Path.touch, pathlib.Path(mark)),
    "numpy": lambda mark: Calls(np.save, str(mark), np.ones(1)),
    "subprocess": lambda mark: Calls(__import__("subprocess").run, ["touch", str(mark)]),
}
HARMLESS = {"a function of the file's author", "getattr", "a method", "numpy"}


@pytest.mark.parametrize("place", ["weights", "hyper_parameters", "metadata"])
@pytest.mark.parametrize("archive", [True, False])
@pytest.mark.parametrize("name", MALICIOUS)
def test_runs_no_code_of_a_file(make, tmp_path, name, archive, place):
    mark = tmp_path / "mark"
    evil = MALICIOUS[name](mark)
    if place == "metadata":
        weights = collections.OrderedDict(WHOLE)
        weights._metadata = evil
        contents = {"state_dict": weights}
    elif place == "weights":
        contents = {"state_dict": {**WHOLE, "evil": evil}}
    else:
        contents = {
            "state_dict": WHOLE,
            "hyper_parameters": {"deep": [evil, AttributeDict(a=evil)]},
        }
    torch.save(contents, tmp_path / "a.pth", _use_new_zipfile_serialization=archive)
    mark.unlink(missing_ok=True)
    if name in HARMLESS:
        model = make()
        load_torch(model, tmp_path / "a.pth")
        assert_holds(model, WHOLE)
    else:
        with pytest.raises(
            WeightsError,
            match=r"a\.pth: refused.*code: it names (posix|builtins|subprocess|io)\.\w+;.*state",
        ):
            load_torch(make(), tmp_path / "a.pth")
    assert not mark.exists()


def test_instructions_of_old_pickles_call_nothing(tmp_path):
    mark = tmp_path / "mark"
    for i, program in enumerate(
        (
            f"(S'touch {mark}'\nios\nsystem\n.",
            f"cos\nsystem\n(S'touch {mark}'\ntR.",
            f"(cos\nsystem\nS'touch {mark}'\no.",
            "c__builtin__\neval\n(S'1'\ntR.",
        )
    ):
        (tmp_path / f"{i}.pth").write_bytes(b"\x80\x02" + program.encode())
        with pytest.raises(WeightsError, match="refused"):
            files.read(tmp_path / f"{i}.pth")
    assert not mark.exists()


def test_rejects_a_pickled_network_with_advice(tmp_path):
    for contents in (torch.nn.Conv2d(1, 1, 1), {"epoch": 1, "model": torch.nn.Conv2d(1, 1, 1)}):
        torch.save(contents, tmp_path / "a.pth")
        with pytest.raises(
            WeightsError,
            match=r"pickled network \(torch\.nn\.modules\.conv\.Conv2d\).*model\.state_dict\(\)",
        ):
            files.read(tmp_path / "a.pth")


def test_ignores_a_pickled_network_next_to_weights(make, tmp_path):
    torch.save({"state_dict": WHOLE, "ema": torch.nn.Conv2d(1, 1, 1)}, tmp_path / "a.pth")
    model = make()
    assert load_torch(model, tmp_path / "a.pth").not_weights == ["ema"]
    assert_holds(model, WHOLE)


def test_reads_plain_pickles_of_tensors_and_arrays(tmp_path):
    for contents in (WHOLE, {name: value.numpy() for name, value in WHOLE.items()}):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": contents}))
        found = files.read(tmp_path / "a.pkl")
        assert all(
            found[name].tobytes() == value.numpy().tobytes() for name, value in WHOLE.items()
        )
