"""Weights as training frameworks and users save them: under keys, prefixes and next to other things, and always with the right values."""

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

from fcn_jax.convert.engine import leaves, load_torch, to_torch
from fcn_jax.convert.initial import load_initial
from fcn_jax.errors import WeightsError
from fcn_jax.models.segmenter import build_model
from fcn_jax.pytorch import files

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.usefixtures("tiny_plugin")

CLASSES = 3


def tensors_of(seed, classes=CLASSES, head="fcn"):
    """A state dict of the backbone `tiny` with a head, with values of its own."""
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
TRUNK = {
    name.removeprefix("backbone."): value
    for name, value in WHOLE.items()
    if name.startswith("backbone.")
}


def prefixed(prefix, tensors):
    return {prefix + name: value for name, value in tensors.items()}


@pytest.fixture(scope="module")
def make(tiny_plugin):
    """Models with shapes instead of values: (head, classes) -> one, a new one each time."""
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


def assert_trunk(model, expected=WHOLE):
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
    """As Lightning's hyper_parameters and mmengine's ConfigDict: a dict of a class that need not be installed."""

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


BESIDE = {
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
def test_settings_and_scores_beside_the_weights_do_no_harm(make, tmp_path, protocol, archive):
    path = tmp_path / "last.ckpt"
    torch.save(
        {"state_dict": prefixed("model.", WHOLE), **BESIDE},
        path,
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=archive,
    )
    model = make()
    record = load_torch(model, path)
    assert_holds(model, WHOLE)
    assert (record.key, record.stripped, record.scope, record.dropped) == (
        "state_dict",
        "model.",
        "model",
        {},
    )
    assert set(record.beside) == set(BESIDE)
    assert "under 'state_dict', without 'model.'" in str(record)
    assert "not weights: epoch" in str(record)


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
def test_wrappings_are_seen_through(make, tmp_path, name):
    contents, key, prefix, dropped = WRAPPED[name]
    torch.save(contents(), tmp_path / "weights")
    model = make()
    record = load_torch(model, tmp_path / "weights")
    assert_holds(model, WHOLE)
    assert (record.key, record.stripped, record.scope, set(record.dropped)) == (
        key,
        prefix,
        "model",
        dropped,
    )
    if isinstance(contents(), dict):  # in memory as well
        model = make()
        load_torch(model, contents())
        assert_holds(model, WHOLE)


def test_parts_in_dicts_of_their_own_are_put_together(make, tmp_path):
    parts = {
        part: {n.removeprefix(f"{part}."): v for n, v in WHOLE.items() if n.startswith(part)}
        for part in ("backbone", "classifier")
    }
    torch.save({"epoch": 3, "state": parts}, tmp_path / "a.pth")
    model = make()
    record = load_torch(model, tmp_path / "a.pth")
    assert_holds(model, WHOLE)
    assert record.beside == ["epoch"]


def test_wrappers_of_parts_are_taken_off_within_names(make, tmp_path):
    part = {
        name.replace("backbone.", "backbone._orig_mod."): value for name, value in WHOLE.items()
    }
    torch.save(prefixed("module.", part), tmp_path / "a.pth")
    model = make()
    record = load_torch(model, tmp_path / "a.pth")
    assert_holds(model, WHOLE)
    assert record.stripped == "module."
    assert record.in_file("backbone.conv1.weight") == "module.backbone._orig_mod.conv1.weight"
    assert record.in_file("classifier.4.bias") == "module.classifier.4.bias"
    assert "without _orig_mod within names" in str(record)


@pytest.mark.parametrize("key", ["model_ema", "state_dict_ema", "nested.ema"])
def test_of_equal_networks_the_plain_one_is_read_and_the_other_named_and_chosen_by_key(
    make, tmp_path, key
):
    average = {"nested": {"ema": AVERAGE}} if "." in key else {key: AVERAGE}
    torch.save({**average, "model": WHOLE}, tmp_path / "a.pth")
    model = make()
    record = load_torch(model, tmp_path / "a.pth")
    assert_holds(model, WHOLE)
    assert record.also_fits == [key]
    assert f"--key {key}" in str(record)
    assert "read 'model'" in str(record)
    model = make()
    assert load_torch(model, tmp_path / "a.pth", key=key).key == key
    assert_holds(model, AVERAGE)
    with pytest.raises(
        WeightsError, match=rf"no weights of this model under the key 'emma'; there are: .*{key}"
    ):
        load_torch(model, tmp_path / "a.pth", key="emma")


def test_a_prefix_is_a_key_too(make):
    tensors = {**prefixed("net_b.", AVERAGE), **prefixed("net_a.", WHOLE)}
    model = make()
    record = load_torch(model, tensors)
    assert_holds(model, AVERAGE)
    assert record.also_fits == ["net_a"]
    load_torch(model, tensors, key="net_a")
    assert_holds(model, WHOLE)


TRUNKS = {
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


@pytest.mark.parametrize("name", TRUNKS)
@pytest.mark.parametrize("head", ["fcn32s", "fcn"])
def test_a_backbone_inside_a_whole_network_starts_another_head(make, tmp_path, name, head):
    others, prefix = TRUNKS[name]
    torch.save({"state_dict": {**prefixed(prefix, TRUNK), **others}}, tmp_path / "a.pth")
    if others:
        with pytest.raises(
            WeightsError, match=r"surplus \d: .*--reinit head.*--drop GLOB"
        ) as caught:
            load_torch(make(head), tmp_path / "a.pth")
        assert all(other in str(caught.value) for other in others)
    model = make(head)
    record = load_torch(model, tmp_path / "a.pth", reinit=["head"])
    assert_trunk(model)
    assert (record.scope, record.stripped, set(record.dropped)) == ("backbone", prefix, set(others))
    assert all("another head" in reason for reason in record.dropped.values())
    assert all(other in str(record) for other in others)
    model = make(head)
    record = load_torch(model, tmp_path / "a.pth", drop=list(others))
    assert_trunk(model)
    assert all("on purpose (--drop" in reason for reason in record.dropped.values())


HEAD = {
    name.removeprefix("classifier."): value
    for name, value in WHOLE.items()
    if name.startswith("classifier.")
}
OTHER_HEAD = {f"blocks.{name}": torch.ones(3, 8, 1, 1) for name in ("0.weight", "1.weight")}
APART = {
    "encoder and decoder": (
        lambda: {"epoch": 1, "encoder": TRUNK, "decoder": OTHER_HEAD},
        "decoder",
    ),
    "of a network under a key": (
        lambda: {"epoch": 1, "model": {"backbone": TRUNK, "head": OTHER_HEAD}},
        "model.head",
    ),
    "with keys between": (
        lambda: {"net_backbone": {"state_dict": TRUNK}, "net_top": {"state_dict": OTHER_HEAD}},
        "net_top",
    ),
    "an average of a network": (
        lambda: {"ema": {"encoder": TRUNK, "decoder": OTHER_HEAD}},
        "ema.decoder",
    ),
    "among the backbone's tensors": (lambda: {**TRUNK, "head": OTHER_HEAD}, "head"),
}


@pytest.mark.parametrize("name", APART)
def test_a_head_in_a_dict_of_its_own_is_not_lost_in_silence(make, tmp_path, name):
    make_contents, key = APART[name]
    torch.save(make_contents(), tmp_path / "a.pth")
    with pytest.raises(
        WeightsError,
        match=rf"surplus 2: {key}\..*it also holds weights under '{key}' \(2 tensors\).*--reinit head",
    ):
        load_torch(make(), tmp_path / "a.pth")
    for options, reason in (
        ({"reinit": ["head"]}, "another head"),
        ({"drop": [key]}, "on purpose"),
    ):
        model = make()
        record = load_torch(model, tmp_path / "a.pth", **options)
        assert_trunk(model)
        assert len(record.dropped) == 2
        assert all(
            name.startswith(f"{key}.") and reason in why for name, why in record.dropped.items()
        )


def test_a_head_under_the_key_that_the_refusal_advises_is_loaded(make, tmp_path):
    torch.save({"trunk": TRUNK, "top": HEAD}, tmp_path / "a.pth")
    with pytest.raises(
        WeightsError,
        match=r"under 'top' \(8 tensors\).*save both .*under the keys 'backbone' and 'classifier'",
    ):
        load_torch(make(), tmp_path / "a.pth")
    torch.save({"epoch": 1, "model": {"backbone": TRUNK, "classifier": HEAD}}, tmp_path / "a.pth")
    model = make()
    assert load_torch(model, tmp_path / "a.pth").scope == "model"
    assert_holds(model, WHOLE)


def test_copies_averages_losses_and_optimizers_beside_a_backbone_are_no_head(make, tmp_path):
    contents = {
        "model": TRUNK,
        "pretrained": {name: value + 1 for name, value in TRUNK.items()},
        "same": TRUNK,
        "teacher": {"backbone": TRUNK, "head": OTHER_HEAD},
        "ema": OTHER_HEAD,
        "criterion": {"centers.weight": torch.ones(3, 8)},
        "opt": {"state": {0: {"exp_avg": torch.ones(3, 8, 1, 1)}}},
        "class_weights": {"weight": torch.ones(3)},
        "epoch": 3,
    }
    torch.save(contents, tmp_path / "a.pth")
    model = make()
    record = load_torch(model, tmp_path / "a.pth")
    assert_trunk(model)
    assert (record.key, record.scope, record.dropped) == ("model", "backbone", {})
    assert record.beside == ["opt", "class_weights", "epoch"]
    assert record.others == ["pretrained", "same", "teacher", "ema", "criterion"]
    assert (
        "other weights, left: pretrained, same, teacher, ema, criterion; not weights: opt"
        in str(record)
    )


def test_a_deeper_network_is_no_other_head(make):
    with pytest.raises(WeightsError, match=r"surplus 1: conv2\.extra\.weight"):
        load_torch(make("fcn32s"), {**TRUNK, "conv2.extra.weight": torch.ones(1)}, reinit=["head"])


def test_the_same_head_with_other_classes_is_drawn_anew_and_nothing_is_left(make):
    model = make("fcn", 5)
    record = load_torch(model, WHOLE, reinit=["head"])
    assert_trunk(model)
    assert (record.scope, record.dropped) == ("model", {})
    assert sorted(record.reinit) == sorted(
        path for path in leaves(model) if path.startswith("head.")
    )


def test_surplus_is_dropped_by_globs_with_or_without_the_prefix(make):
    tensors = prefixed(
        "module.",
        {**WHOLE, "extra.a": torch.ones(1), "extra.b": torch.ones(1), "other": torch.ones(2)},
    )
    model = make()
    with pytest.raises(
        WeightsError,
        match=r"surplus 3: extra\.a, extra\.b, other; all of the model is there: .*--drop GLOB",
    ):
        load_torch(model, tensors)
    record = load_torch(model, tensors, drop=["extra", "module.oth*"])
    assert_holds(model, WHOLE)
    assert record.dropped == {
        "extra.a": "left out on purpose (--drop extra)",
        "extra.b": "left out on purpose (--drop extra)",
        "other": "left out on purpose (--drop module.oth*)",
    }
    with pytest.raises(WeightsError, match=r"--drop matches nothing: nowhere"):
        load_torch(make(), WHOLE, drop=["nowhere"])


def test_what_the_model_needs_cannot_be_dropped_but_is_missing(make):
    with pytest.raises(
        WeightsError,
        match=r"missing 1: backbone\.conv1\.bias \(dropped by --drop \*\.conv1\.bias\)",
    ):
        load_torch(make(), WHOLE, drop=["*.conv1.bias"])
    model = make()
    record = load_torch(model, WHOLE, drop=["*.num_batches_tracked"])
    assert sorted(record.absent) == [
        "backbone.bn1.num_batches_tracked",
        "head.bn1.num_batches_tracked",
    ]


def test_an_auxiliary_head_that_is_not_asked_for_is_left(make):
    model = make()
    record = load_torch(
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
    assert len(record.dropped) == 8
    assert all("auxiliary head" in reason for reason in record.dropped.values())


def test_a_checkpoint_with_another_head_starts_a_new_one(make, tmp_path):
    from fcn_jax import checkpoint

    source = build_model("tiny", "fcn", CLASSES, rngs=nnx.Rngs(0))
    load_torch(source, WHOLE)
    checkpoint.save_model(
        tmp_path / "c", checkpoint.describe(source.spec), checkpoint.arrays(source)
    )
    model = make("fcn32s")
    record = load_initial(model, tmp_path / "c", reinit=["head"])
    assert_trunk(model)
    assert set(record.dropped) == {
        path
        for path in leaves(source)
        if path.startswith("head.") and path.split(".")[1] != "final_conv"
    }


# ---------------------------------------------------------------------------------------------------------------- nothing of it runs


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
def test_no_code_of_a_file_runs(make, tmp_path, name, archive, place):
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
            match=r"a\.pth: refused.*could run code: it names (posix|builtins|subprocess|io)\.\w+;.*state_dict",
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


def test_a_whole_pickled_network_is_refused_with_advice(tmp_path):
    for contents in (torch.nn.Conv2d(1, 1, 1), {"epoch": 1, "model": torch.nn.Conv2d(1, 1, 1)}):
        torch.save(contents, tmp_path / "a.pth")
        with pytest.raises(
            WeightsError,
            match=r"whole pickled network \(torch\.nn\.modules\.conv\.Conv2d\).*model\.state_dict\(\)",
        ):
            files.read(tmp_path / "a.pth")


def test_a_network_pickled_beside_its_weights_is_left(make, tmp_path):
    torch.save({"state_dict": WHOLE, "ema": torch.nn.Conv2d(1, 1, 1)}, tmp_path / "a.pth")
    model = make()
    assert load_torch(model, tmp_path / "a.pth").beside == ["ema"]
    assert_holds(model, WHOLE)


def test_plain_pickles_of_tensors_and_arrays_are_read(tmp_path):
    for contents in (WHOLE, {name: value.numpy() for name, value in WHOLE.items()}):
        (tmp_path / "a.pkl").write_bytes(pickle.dumps({"model": contents}))
        found = files.read(tmp_path / "a.pkl")
        assert all(
            found[name].tobytes() == value.numpy().tobytes() for name, value in WHOLE.items()
        )
