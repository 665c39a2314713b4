"""Import and export of state dicts with the tables of ResNet-18 and the fcn32s head."""

import collections
import dataclasses
import fnmatch
import functools
import re
import weakref

import ml_dtypes
import numpy as np
import pytest
from flax import nnx
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from fcn_jax.convert.export import export_weights, to_torch
from fcn_jax.convert.load import load_torch
from fcn_jax.errors import ConfigError, WeightsError
from fcn_jax.models.build import build_model
from fcn_jax.models.names import leaves
from fcn_jax.plugins import registry
from fcn_jax.plugins.api import ModelSpec
from fcn_jax.pytorch import files
from fcn_jax.pytorch.rules import Table, drop
from fcn_jax.pytorch.state_dicts import Entry, StateDict, Tensors

CLASSES = 3
HEAD = {
    "final_conv.weight": (CLASSES, 512, 1, 1),
    "final_conv.bias": (CLASSES,),
    "transpose_conv.weight": (CLASSES, CLASSES, 64, 64),
    "transpose_conv.bias": (CLASSES,),
}


@pytest.fixture(scope="session")
def shapes(make_resnet18, d2l_network):
    """Shapes of a model's state dict by key format; the names come from PyTorch."""
    backbone = {
        f"backbone.{n}": tuple(t.shape)
        for n, t in make_resnet18().state_dict().items()
        if not n.startswith("fc.")
    }
    return {
        "torchvision": {**backbone, **{f"classifier.{n}": s for n, s in HEAD.items()}},
        "d2l": {n: tuple(t.shape) for n, t in d2l_network(CLASSES).state_dict().items()},
    }


def random_state_dict(shapes, seed=0):
    """Any finite float32 may occur: other exponents, subnormal numbers, negative zero."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            tensors[name] = np.asarray(rng.integers(0, 2**31), np.int64)
            continue
        bits = rng.integers(
            0, 2**31 if name.endswith("running_var") else 2**32, shape, np.uint32
        )  # a variance has no sign
        value = bits.view(np.float32)
        value[~np.isfinite(value)] = 0.0 if name.endswith("running_var") else -0.0
        tensors[name] = value
    return tensors


def assert_same_bits(ours, theirs):
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (value.dtype, value.shape), name
        assert ours[name].tobytes() == np.ascontiguousarray(value).tobytes(), name


def snapshot(model):
    return {path: np.asarray(leaf[...]).tobytes() for path, leaf in leaves(model).items()}


@pytest.mark.parametrize("key_format", ["torchvision", "d2l"])
@settings(
    max_examples=3, phases=[Phase.explicit, Phase.generate]
)  # a smaller seed is not a simpler case
@given(seed=st.integers(0, 2**32 - 1))
def test_import_and_export_return_the_state_dict_bit_for_bit(shapes, make_model, key_format, seed):
    tensors = random_state_dict(shapes[key_format], seed)
    model = make_model(CLASSES)
    report = load_torch(model, tensors)
    assert (report.key_format, report.scope) == (key_format, "model")
    assert sorted(report.loaded.values()) == sorted(tensors)
    assert_same_bits(to_torch(model, key_format), tensors)


@pytest.mark.parametrize("kind", ["zip", "pickle", "safetensors"])
@pytest.mark.parametrize("key_format", ["torchvision", "d2l"])
@settings(max_examples=2, phases=[Phase.explicit, Phase.generate])
@given(seed=st.integers(0, 2**32 - 1))
def test_files_survive_import_and_export_bit_for_bit(
    shapes, make_model, tmp_path_factory, key_format, kind, seed
):
    import torch
    from safetensors.torch import save_file

    tensors = random_state_dict(shapes[key_format], seed)
    folder = tmp_path_factory.mktemp("through")
    suffix = "safetensors" if kind == "safetensors" else "pth"
    theirs = {name: torch.from_numpy(value) for name, value in tensors.items()}
    if kind == "safetensors":
        save_file(theirs, folder / "in.safetensors")
    else:
        torch.save(theirs, folder / "in.pth", _use_new_zipfile_serialization=kind == "zip")
    model = make_model(CLASSES)
    load_torch(model, folder / f"in.{suffix}")
    files.write(folder / f"out.{suffix}", to_torch(model, key_format))
    assert_same_bits(files.read(folder / f"out.{suffix}"), tensors)


def test_loads_and_exports_the_d2l_network(d2l_network, make_model):
    import torch

    network = d2l_network(CLASSES)
    state = network.state_dict()
    assert {
        "0.weight",
        "5.0.downsample.0.weight",
        "final_conv.weight",
        "transpose_conv.bias",
    } <= set(state)
    model = make_model(CLASSES)
    report = load_torch(model, state)
    assert (report.key_format, report.scope, len(report.loaded)) == ("d2l", "model", 124)
    back = to_torch(model, "d2l")
    assert_same_bits(back, {name: tensor.numpy() for name, tensor in state.items()})
    network.load_state_dict(
        {name: torch.from_numpy(value.copy()) for name, value in back.items()}, strict=True
    )
    # The same values under torchvision's names.
    assert_same_bits(
        {"w": to_torch(model)["backbone.layer2.0.downsample.0.weight"]},
        {"w": state["5.0.downsample.0.weight"].numpy()},
    )


def test_loads_torchvisions_backbone_and_keeps_the_head(make_resnet18, make_model):
    state = make_resnet18().state_dict()
    model = make_model(CLASSES)
    before = snapshot(model)
    report = load_torch(model, state)
    assert (report.key_format, report.scope) == ("torchvision", "backbone")
    assert set(report.dropped) == {"fc.weight", "fc.bias"}
    assert all("ImageNet" in reason for reason in report.dropped.values())
    assert len(report.loaded) == 120
    after = snapshot(model)
    assert {path for path in before if before[path] == after[path]} == {
        path for path in before if path.startswith("head.")
    }
    np.testing.assert_array_equal(
        leaves(model)["backbone.layer3.1.conv2.conv.kernel"][...],
        state["layer3.1.conv2.weight"].numpy().transpose(2, 3, 1, 0),
    )
    assert int(leaves(model)["backbone.conv1.bn.num_batches_tracked"][...]) == 7


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_reads_one_tensor_at_a_time(shapes, make_model, tmp_path, monkeypatch, suffix, prefix):
    tensors = random_state_dict(shapes["torchvision"])
    tensors["backbone.conv1.weight"] = np.ones(
        shapes["torchvision"]["backbone.conv1.weight"], np.float16
    )
    files.write(tmp_path / f"a{suffix}", {prefix + name: value for name, value in tensors.items()})
    opened, given = files.open_state_dicts, []

    def watched(path):
        (found,) = opened(path)
        stored = found.tensors

        def get(name):
            held = [other for other, tensor in given if tensor() is not None]
            assert not held, f"{held} still in memory when {name} is read"
            value = np.array(stored[name])  # of its own, so that whatever is a view of it keeps it
            given.append((name, weakref.ref(value)))
            return value

        tensors = Tensors(
            {name: Entry(functools.partial(get, name), stored.shape(name)) for name in stored}
        )
        return [StateDict("", tensors)]

    monkeypatch.setattr(files, "open_state_dicts", watched)
    report = load_torch(make_model(CLASSES), tmp_path / f"a{suffix}")
    assert len(report.loaded) == len(tensors)
    assert collections.Counter(name for name, _ in given) == dict.fromkeys(
        (prefix + name for name in tensors), 2
    )


def test_reports_a_file_that_changes_while_it_is_read(shapes, make_model, monkeypatch):
    tensors = random_state_dict(shapes["d2l"])
    reads = collections.Counter()

    def get(name):
        reads[name] += 1
        return (
            tensors[name] if reads[name] == 1 else np.full_like(tensors[name], np.nan, np.float32)
        )

    changing = Tensors(
        {name: Entry(functools.partial(get, name), value.shape) for name, value in tensors.items()}
    )
    monkeypatch.setattr(files, "state_dicts_of", lambda *_: [StateDict("", changing)])
    with pytest.raises(
        WeightsError,
        match=r"changed while it was read, and is loaded in part \(.*: has values .* not finite",
    ):
        load_torch(make_model(CLASSES), tensors)


@pytest.mark.parametrize("prefix", ["module.", "model.", "module.model._orig_mod."])
@pytest.mark.parametrize("key_format", ["torchvision", "d2l"])
def test_strips_a_prefix_of_all_names(shapes, make_model, prefix, key_format):
    tensors = random_state_dict(shapes[key_format])
    model = make_model(CLASSES)
    report = load_torch(model, {prefix + name: value for name, value in tensors.items()})
    assert report.stripped == prefix
    assert_same_bits(to_torch(model, key_format), tensors)


@pytest.mark.parametrize(
    "prefix", ["backbone.", "module.backbone.", "model.backbone.", "backbone.module."]
)
@pytest.mark.parametrize("key_format", ["torchvision", "d2l"])
def test_strips_prefixes_of_a_backbone(shapes, make_model, prefix, key_format):
    whole = random_state_dict(shapes[key_format])
    backbone = {n.removeprefix("backbone."): v for n, v in whole.items() if "conv." not in n}
    assert len(backbone) == 120
    model = make_model(CLASSES)
    report = load_torch(model, {prefix + name: value for name, value in backbone.items()})
    assert (report.stripped, report.scope, len(report.loaded)) == (prefix, "backbone", 120)
    assert f"without '{prefix}'" in str(report)
    back = to_torch(model, key_format)
    assert_same_bits(
        {name: back[name] for name in whole if "conv." not in name},
        {n: whole[n] for n in whole if "conv." not in n},
    )


def test_reports_missing_and_surplus_names_under_prefixes(shapes, make_model):
    whole = random_state_dict(shapes["torchvision"])
    tensors = {f"module.{n}": v for n, v in whole.items() if n != "backbone.bn1.weight"}
    message = refused(make_model(CLASSES), tensors)
    assert "missing 1: backbone.bn1.weight" in message
    assert "without 'module.'" in message
    # A prefix of only some of the names is not stripped.
    mixed = {(f"module.{n}" if n.startswith("backbone.layer4") else n): v for n, v in whole.items()}
    message = refused(make_model(CLASSES), mixed)
    assert "missing 25" in message
    assert "surplus 30: " in message
    assert (
        "module.backbone.layer4.0.conv1.weight (is it backbone.layer4.0.conv1.weight?)" in message
    )
    # A backbone with another network's head.
    message = refused(
        make_model(CLASSES),
        {**{n: v for n, v in whole.items() if "conv." not in n}, "projector.weight": np.ones(1)},
    )
    assert "surplus 1: projector.weight" in message
    assert "the backbone is complete: to start another head from it, give --reinit head" in message


def test_order_of_names_does_not_matter(shapes, make_model):
    tensors = random_state_dict(shapes["d2l"])
    shuffled = {name: tensors[name] for name in np.random.default_rng(0).permutation(list(tensors))}
    model = make_model(CLASSES)
    load_torch(model, shuffled)
    assert_same_bits(to_torch(model, "d2l"), tensors)


def test_rejects_layers_in_another_order(shapes, make_model):
    tensors = random_state_dict(shapes["d2l"])
    swapped = {{"5": "6", "6": "5"}.get(n[0], n[0]) + n[1:]: v for n, v in tensors.items()}
    message = refused(make_model(CLASSES), swapped)
    assert "misshapen 50" in message
    assert "5.0.conv1.weight: shape (256, 128, 3, 3), the model needs (128, 64, 3, 3)" in message
    # A Sequential without the max pool counts one less.
    shifted = {(f"{int(n[0]) - 1}{n[1:]}" if n[0] in "4567" else n): v for n, v in tensors.items()}
    message = refused(make_model(CLASSES), shifted)
    assert "missing 25: 7.0.bn1.bias" in message
    assert "surplus 30: 3.0.conv1.weight" in message


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
def test_loads_a_training_checkpoint_without_its_optimizer(
    d2l_network, make_model, tmp_path, wrapper
):
    import torch

    network = torch.nn.DataParallel(d2l_network(CLASSES))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    optimizer.zero_grad()
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    torch.save(
        {wrapper: network.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3},
        tmp_path / "run.pth",
    )
    model = make_model(CLASSES)
    report = load_torch(model, tmp_path / "run.pth")
    assert (report.stripped, len(report.loaded)) == ("module.", 124)
    assert_same_bits(
        to_torch(model, "d2l"), {n: t.numpy() for n, t in network.module.state_dict().items()}
    )


def test_loads_a_file_without_batch_counts(shapes, make_model):
    tensors = {
        n: v
        for n, v in random_state_dict(shapes["d2l"]).items()
        if not n.endswith("num_batches_tracked")
    }
    model = make_model(CLASSES)
    report = load_torch(model, tensors)
    assert len(report.absent) == 20
    back = to_torch(model, "d2l")
    assert all(
        int(value) == 0 and value.dtype == np.int64 and value.shape == ()
        for name, value in back.items()
        if name not in tensors
    )


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.float64])
def test_casts_other_floats_and_reports_it(shapes, make_model, dtype):
    rng = np.random.default_rng(0)
    tensors = {
        n: v
        if v.dtype == np.int64
        else np.abs(rng.standard_normal(v.shape)).astype(dtype)  # a variance has no sign
        for n, v in random_state_dict(shapes["d2l"]).items()
    }
    tensors["1.bias"] = tensors["1.bias"].astype(np.float32)
    model = make_model(CLASSES)
    report = load_torch(model, tensors)
    assert_same_bits(
        to_torch(model, "d2l"),
        {n: v if v.dtype == np.int64 else v.astype(np.float32) for n, v in tensors.items()},
    )
    name = np.dtype(dtype).name
    assert report.cast == {n: name for n, v in tensors.items() if v.dtype == dtype}
    assert f"103 {'rounded' if dtype is np.float64 else 'widened'} from {name}" in str(report)


def test_reports_no_cast_of_float32(shapes, make_model):
    report = load_torch(make_model(CLASSES), random_state_dict(shapes["d2l"]))
    assert report.cast == {}
    assert "from float" not in str(report)


@pytest.mark.parametrize(
    ("name", "value", "complaint"),
    [
        ("1.running_var", np.full(64, 1e300), "has values that are not finite in float32"),
        (
            "1.running_var",
            np.ones(64, np.int8),
            "is int8; the model needs floats of 16, 32 or 64 bits",
        ),
        ("1.running_var", np.ones(64, bool), "is bool; the model needs floats"),
        ("1.running_var", np.ones(64, np.complex64), "is complex64; the model needs floats"),
        ("1.num_batches_tracked", np.asarray(2.5), "is float64 and not a count"),
        ("1.num_batches_tracked", np.asarray(np.nan), "is float64 and not a count"),
        ("1.num_batches_tracked", np.asarray(2**31), "does not fit 32 bits"),
    ],
)
def test_rejects_values_that_would_change(shapes, make_model, name, value, complaint):
    assert complaint in refused(
        make_model(CLASSES), {**random_state_dict(shapes["d2l"]), name: value}
    )


def test_accepts_counts_stored_as_floats(shapes, make_model):
    model = make_model(CLASSES)
    load_torch(
        model, {**random_state_dict(shapes["d2l"]), "1.num_batches_tracked": np.asarray(1000.0)}
    )
    assert int(to_torch(model)["backbone.bn1.num_batches_tracked"]) == 1000


def test_accepts_bfloat16_tensors_and_parameters(shapes, make_model):
    import torch

    tensors = {n: torch.from_numpy(v) for n, v in random_state_dict(shapes["d2l"]).items()}
    tensors["0.weight"] = torch.full((64, 3, 7, 7), 2.5, dtype=torch.bfloat16)
    tensors["final_conv.bias"] = torch.nn.Parameter(torch.arange(3.0))
    model = make_model(CLASSES)
    load_torch(model, tensors)
    assert (np.asarray(leaves(model)["backbone.conv1.conv.kernel"][...]) == 2.5).all()
    np.testing.assert_array_equal(leaves(model)["head.final_conv.bias"][...], [0, 1, 2])


def partial(shapes, *globs):
    tensors = random_state_dict(shapes)
    return {
        name: value
        for name, value in tensors.items()
        if not any(fnmatch.fnmatchcase(name, glob) for glob in globs)
    }


def refused(model, tensors, reinit=()):
    """Return the message of a load that must fail and not change the model."""
    before = snapshot(model)
    with pytest.raises(WeightsError) as caught:
        load_torch(model, tensors, reinit)
    assert snapshot(model) == before
    return str(caught.value)


def test_reports_all_problems_at_once_and_changes_nothing(shapes, make_model):
    tensors = partial(shapes["d2l"], "0.weight", "final_conv.bias")
    tensors["final_conv.wieght"] = np.zeros(3, np.float32)
    tensors["7.2.conv1.weight"] = np.zeros(3, np.float32)
    tensors["1.running_mean"] = np.zeros(63, np.float32)
    tensors["transpose_conv.weight"] = np.zeros((CLASSES, 64, 64), np.float32)
    tensors["5.0.bn1.weight"] = np.where(np.arange(128) == 5, np.nan, 1).astype(np.float32)
    message = refused(make_model(CLASSES), tensors, reinit=["layer9.*"])
    for part in (
        "missing 2: 0.weight, final_conv.bias",
        "surplus 2: final_conv.wieght, 7.2.conv1.weight",
        "misshapen 2: 1.running_mean: shape (63,), the model needs (64,); got shape (3, 64, 64)",
        "unusable 1: 5.0.bn1.weight: has values that are not finite",
        "--reinit matches nothing: layer9.*",
    ):
        assert all(word in message for word in part.split("; ")), (part, message)


def test_partial_file_needs_reinit_globs(shapes, make_model):
    backbone = {
        n.removeprefix("backbone."): s
        for n, s in shapes["torchvision"].items()
        if n.startswith("backbone.")
    }
    gaps = ("layer4.?.conv?.*", "layer4.?.bn?.*")
    tensors = partial(backbone, *gaps)
    model = make_model(CLASSES)
    message = refused(model, tensors)
    assert (
        "missing 20" in message
    )  # 4 convolutions, 4 batch normalizations of 4 tensors; the counts are optional
    assert "--reinit" in message
    assert "missing 16" in refused(model, tensors, reinit=["layer4.?.conv?"])

    before = snapshot(model)
    report = load_torch(model, tensors, reinit=["layer4.?.conv?", "layer4.?.bn?"])
    assert len(report.reinit) == 4 + 4 * 5
    assert all("layer4" in path and "downsample" not in path for path in report.reinit)
    after = snapshot(model)
    kept = set(report.reinit) | {path for path in before if path.startswith("head.")}
    assert {path for path in before if before[path] == after[path]} == kept
    assert len(report.loaded) == 120 - 24


def test_real_partial_file_needs_reinit_globs(shared, make_model):
    pytest.importorskip("torch")
    path = shared / "weights/resnet18_imagenet_partial.pth"
    model = make_model(21)
    message = refused(model, path)
    assert str(path) in message
    assert "layer4.0.conv1.weight" in message
    report = load_torch(model, path, reinit=["layer4.?.conv?", "layer4.?.bn?"])
    assert report.sha256
    assert report.scope == "backbone"
    assert set(report.dropped) == {"fc.weight", "fc.bias"}
    import torch

    state = torch.load(path, weights_only=True)
    assert len(report.loaded) == len(state) - 2
    back = to_torch(model)
    for name, tensor in state.items():
        if name not in report.dropped:
            np.testing.assert_array_equal(back[f"backbone.{name}"], tensor.numpy(), err_msg=name)


def test_other_number_of_classes_needs_reinit(shapes, make_model):
    tensors = random_state_dict(shapes["d2l"])
    model = make_model(5)
    message = refused(model, tensors)
    assert "misshapen 4" in message
    assert "final_conv.weight: shape (3, 512, 1, 1), the model needs (5, 512, 1, 1)" in message
    report = load_torch(model, tensors, reinit=["head"])
    assert sorted(report.reinit) == [
        path for path in sorted(leaves(model)) if path.startswith("head.")
    ]


def test_rejects_globs_that_match_nothing(shapes, make_model):
    assert "--reinit matches nothing: layer5" in refused(
        make_model(CLASSES), random_state_dict(shapes["d2l"]), ["layer5"]
    )


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_rejects_values_that_are_not_finite(shapes, make_model, value, dtype):
    tensors = random_state_dict(shapes["d2l"])
    tensors["1.running_var"] = np.full(64, value, dtype)
    assert "1.running_var: has values that are not finite" in refused(make_model(CLASSES), tensors)


@pytest.mark.parametrize("build", ["resnet50", "vgg11_bn", "mobilenet_v3_small"])
def test_rejects_weights_of_another_network(torchvision, make_model, build):
    import torch

    with torch.device("meta"):
        network = getattr(torchvision.models, build)(weights=None)
    tensors = {
        name: np.broadcast_to(np.zeros((), np.float32), t.shape)
        for name, t in network.state_dict().items()
    }
    message = refused(make_model(CLASSES), tensors)
    if build == "resnet50":
        assert "layer1.0.conv3.weight" in message
        assert (
            "it looks like a torchvision ResNet-50 (bottleneck blocks 3, 4, 6, 3; 1000 classes)"
            in message
        )
        assert len(message) < 4000
    else:
        assert "another model" in message
        assert "bn1.bias" in message, "says which names it expects"


def test_suggests_the_number_of_classes_of_the_file(shapes, make_model):
    message = refused(make_model(CLASSES + 1), random_state_dict(shapes["torchvision"]))
    assert message.endswith(
        "; the file has 3 classes, the model 4: give --num-classes 3 (num_classes=3), or, to start "
        "another head, --reinit head"
    )


def test_other_shapes_do_not_suggest_a_number_of_classes(shapes, make_model):
    tensors = random_state_dict(shapes["torchvision"])
    tensors["classifier.final_conv.weight"] = tensors["classifier.final_conv.weight"][:, :100]
    assert "; another number of classes, or other options? " in refused(
        make_model(CLASSES), tensors
    )
    tensors = random_state_dict(shapes["torchvision"])
    tensors["backbone.bn1.weight"] = np.ones(32, np.float32)
    assert "; another number of classes, or other options? " in refused(
        make_model(CLASSES + 1), tensors
    )


@pytest.mark.parametrize("whole", [False, True])
def test_suggests_the_larger_backbone_of_the_file(torchvision, shapes, make_model, whole):
    import torch

    with torch.device("meta"):
        network = torchvision.models.resnet34(weights=None)
    tensors = {
        name: np.broadcast_to(np.zeros((), np.float32), t.shape)
        for name, t in network.state_dict().items()
    }
    if whole:
        tensors = {
            f"backbone.{name}": value
            for name, value in tensors.items()
            if not name.startswith("fc.")
        }
        tensors |= {
            name: np.zeros(s, np.float32)
            for name, s in shapes["torchvision"].items()
            if name.startswith("classifier.")
        }
    message = refused(make_model(CLASSES), tensors, reinit=["head"])
    assert "it looks like a torchvision ResNet-34" in message or whole
    assert (
        "another architecture: choose the backbone of the file, resnet34 (setting model.backbone"
        in message
    )
    assert "--drop" not in message
    assert "--reinit" not in message


def test_drops_surplus_within_the_backbone_on_request(shapes, make_model):
    tensors = {
        n.removeprefix("backbone."): v
        for n, v in random_state_dict(shapes["torchvision"]).items()
        if n.startswith("backbone.")
    }
    tensors["layer1.0.observer.scale"] = np.ones(1, np.float32)
    message = refused(make_model(CLASSES), tensors)
    assert "surplus within the backbone: another architecture? " in message
    report = load_torch(make_model(CLASSES), tensors, drop=["*.observer"])
    assert list(report.dropped) == ["layer1.0.observer.scale"]


def test_rejects_a_negative_variance(shapes, make_model):
    tensors = random_state_dict(shapes["d2l"])
    tensors["5.0.bn1.running_var"][3] = -1e-3
    assert (
        "unusable 1: 5.0.bn1.running_var: has negative values, which a variance cannot have"
        in refused(make_model(CLASSES), tensors)
    )


REPARAMETRIZED = {
    "prune": (
        lambda torch, conv: torch.nn.utils.prune.random_unstructured(conv, "weight", 0.5),
        r"prune\.remove\(MODULE, 'weight'\)",
    ),
    "parametrize": (
        lambda torch, conv: torch.nn.utils.parametrizations.weight_norm(conv),
        r"remove_parametrizations\(MODULE, 'weight'\)",
    ),
    "weight_norm": (
        lambda torch, conv: torch.nn.utils.weight_norm(conv),
        r"remove_weight_norm\(MODULE\)",
    ),
}


@pytest.mark.filterwarnings("ignore::FutureWarning")
@pytest.mark.parametrize("name", REPARAMETRIZED)
def test_explains_how_to_save_reparametrized_weights(make_resnet18, make_model, name):
    import torch
    import torch.nn.utils.parametrizations
    import torch.nn.utils.prune

    change, message = REPARAMETRIZED[name]
    network = make_resnet18()
    change(torch, network.layer1[0].conv1)
    found = refused(make_model(CLASSES), network.state_dict())
    assert re.search(
        rf"missing 1: layer1\.0\.conv1\.weight.*; its weights are .*{message} for each .* save$",
        found,
    )


def test_lists_keys_without_weights(shapes, make_model):
    model = make_model(CLASSES)
    report = load_torch(model, {**random_state_dict(shapes["d2l"]), "epoch": 3, "net": {}})
    assert report.not_weights == ["epoch", "net"]
    with pytest.raises(
        WeightsError, match="holds no state dict, only epoch, net, without tensors by name"
    ):
        load_torch(model, {"epoch": 3, "net": {"lr": 1}})


def test_copies_the_arrays(shapes, make_model):
    tensors = random_state_dict(shapes["d2l"])
    model = make_model(CLASSES)
    load_torch(model, tensors)
    before = snapshot(model)
    for value in tensors.values():
        value[...] = 0
    assert snapshot(model) == before


def test_rejects_an_empty_state_dict(make_model):
    assert "state dict" in refused(make_model(CLASSES), {})


def test_export_lists_the_key_formats(make_model):
    with pytest.raises(
        ConfigError, match=r"key format 'keras' \(--key-format\) is not offered.*torchvision.*d2l"
    ):
        to_torch(make_model(CLASSES), "keras")


def test_rejects_a_backbone_without_a_table(tiny_plugin, make_model, monkeypatch):
    plugins = registry.default()
    bare = dataclasses.replace(plugins.backbone("tiny"), torch=None)
    monkeypatch.setattr(plugins, "backbone", lambda name: bare)
    model = make_model(CLASSES)
    model.spec = ModelSpec("tiny", "fcn32s", CLASSES)
    with pytest.raises(WeightsError, match="'tiny' declares no table"):
        load_torch(model, {"conv1.weight": np.zeros(1)})


def test_standalone_tables_of_a_backbone(tiny_plugin, monkeypatch):
    """As for torchvision's MobileNets, whose segmentation models keep only `features`."""
    plugins = registry.default()
    tiny = plugins.backbone("tiny")

    def alone(options):
        return {
            "torchvision": tiny.torch.tables_of(options)["torchvision"].under("features.", "")
            + Table(drop("top.*", "not here"))
        }

    renamed = dataclasses.replace(
        tiny, torch=dataclasses.replace(tiny.torch, standalone_tables=alone)
    )
    monkeypatch.setattr(plugins, "backbone", lambda name: renamed)
    model = build_model("tiny", "fcn32s", CLASSES, rngs=nnx.Rngs(0))
    whole = to_torch(model)
    assert "backbone.conv1.weight" in whole
    other = build_model("tiny", "fcn32s", CLASSES, rngs=nnx.Rngs(1))
    assert load_torch(other, whole).scope == "model"
    assert_same_bits(to_torch(other), whole)

    own = export_weights(model.backbone, ModelSpec("tiny", None), "torchvision")
    assert "features.conv1.weight" in own
    other = build_model("tiny", "fcn32s", CLASSES, rngs=nnx.Rngs(1))
    report = load_torch(other, {**own, "top.weight": np.zeros(1, np.float32)})
    assert (report.scope, list(report.dropped)) == ("backbone", ["top.weight"])
    assert_same_bits(export_weights(other.backbone, ModelSpec("tiny", None), "torchvision"), own)


def test_auxiliary_head_is_loaded_exported_and_required(shapes):
    model = nnx.eval_shape(
        lambda: build_model("resnet18", "fcn32s", CLASSES, aux_head="fcn", rngs=nnx.Rngs(0))
    )
    norm = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (64,)) | {
        "num_batches_tracked": ()
    }
    aux = {"0.weight": (64, 256, 3, 3), "4.weight": (CLASSES, 64, 1, 1), "4.bias": (CLASSES,)} | {
        f"1.{n}": s for n, s in norm.items()
    }
    tensors = random_state_dict(
        {
            **shapes["torchvision"],
            **{f"aux_classifier.{name}": shape for name, shape in aux.items()},
        }
    )
    report = load_torch(model, tensors)
    assert not report.dropped
    assert_same_bits(to_torch(model), tensors)

    without = {
        name: value for name, value in tensors.items() if not name.startswith("aux_classifier.")
    }
    with pytest.raises(WeightsError, match=r"missing 7: aux_classifier\.1\.bias"):
        load_torch(model, without)
    assert len(load_torch(model, without, reinit=["aux_classifier"]).reinit) == 8
