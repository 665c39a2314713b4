"""Weight files: wrapped by training frameworks, damaged, or with code that must not run."""

from __future__ import annotations

import argparse
import collections
import functools
import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fuzz import damage, product
from fuzz.cases import Trial, UndetectableError, mutation
from fuzz.images import write

Rng = np.random.Generator
State = dict[str, np.ndarray]


@functools.cache
def _model() -> Any:
    return product.tiny_model(3)


@functools.cache
def _other() -> Any:
    return product.tiny_model(8)


def _state(model: Any | None = None) -> State:
    return dict(product.state_dict(model or _model()))


def _tensors(state: Mapping[str, np.ndarray]) -> dict[str, Any]:
    import torch

    return collections.OrderedDict(
        (name, torch.from_numpy(np.array(value))) for name, value in state.items()
    )


def _saved(value: Any, **options: Any) -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save(value, buffer, **options)
    return buffer.getvalue()


def _safetensors(state: State) -> bytes:
    from safetensors.numpy import save

    return save(
        {name: np.asarray(value, order="C") for name, value in state.items()},
        metadata={"format": "pt"},
    )


def _load(path: Path) -> State:
    """Load a file into a new model; returns the arrays of the model."""
    model = product.tiny_model(5)
    product.load_torch(model, path)
    return product.arrays(model)


def filled(model: Any | None = None) -> Callable[[State], str | None]:
    """Check that the result has the arrays of this model, bit for bit."""
    expected = product.arrays(model or _model())

    def right(result: State) -> str | None:
        if result.keys() != expected.keys():
            return f"other names: {sorted(result.keys() ^ expected.keys())[:5]}"
        wrong = [
            name for name, value in expected.items() if value.tobytes() != result[name].tobytes()
        ]
        return f"other values in {wrong}" if wrong else None

    return right


def _trial(place: Path, name: str, data: bytes, right: Any, *, refusable: bool = False) -> Trial:
    path = write(place, name, data)
    return Trial(call=lambda: _load(path), right=right, refusable=refusable, names=[name])


# ---------------------------------------------------------------------------------------- wrappings


def _renamed(state: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    return {prefix + name: value for name, value in state.items()}


@mutation("weights", 3)
def prefixes(rng: Rng, place: Path) -> Trial:
    """Names have prefixes of DataParallel, torch.compile, Lightning and others."""
    state = _state()
    first, second = (str(rng.choice(["module.", "_orig_mod.", "model."])) for _ in range(2))
    if rng.integers(3) == 0:
        state = {
            name.replace("backbone.", "backbone._orig_mod."): value for name, value in state.items()
        }
    else:
        state = _renamed(state, first if rng.integers(2) else first + second)
    if rng.integers(2):
        return _trial(place, "weights.pth", _saved(_tensors(state)), filled())
    return _trial(place, "weights.safetensors", _safetensors(state), filled())


@mutation("weights", 3)
def wrappings(rng: Rng, place: Path) -> Trial:
    """The weights are under a key, next to other data of training scripts."""
    tensors = _tensors(_state())
    key = str(
        rng.choice(["state_dict", "model", "model_state_dict", "model_state", "net", "network"])
    )
    extras: dict[str, Any] = {
        "epoch": 7,
        "optimizer": {"state": {}, "param_groups": [{"lr": 0.1, "params": [0, 1]}]},
        "args": argparse.Namespace(lr=0.1, data="x"),
        "best_miou": 0.5,
        "best_score": np.float64(0.25),
        "losses": [np.float32(1.0), 2.0],
        "config": {"model": "fcn", "size": (3, 4)},
        "classes": ["sky", "road"],
        "note": None,
        "meta": {"CLASSES": ("sky", "road"), "time": "now"},
        "scaler": {"scale": 65536.0},
        "history": np.arange(3),
    }
    kept = {name: extras[name] for name in rng.permutation(list(extras))[: rng.integers(0, 6)]}
    value = {**kept, key: tensors}
    refusable = key in ("net", "network") or "history" in kept
    return _trial(
        place,
        "checkpoint.pth",
        _saved(value, _use_new_zipfile_serialization=bool(rng.integers(4))),
        filled(),
        refusable=refusable,
    )


@mutation("weights", 2)
def wrappings_of_frameworks(rng: Rng, place: Path) -> Trial:
    """Complete files of Lightning, mmsegmentation, YOLOX, torchvision and others."""
    state = _state()
    tensors = _tensors(state)
    import torch

    files: dict[str, Any] = {
        "lightning": {
            "epoch": 3,
            "global_step": 99,
            "pytorch-lightning_version": "2.2.0",
            "state_dict": _renamed(tensors, "model."),
            "callbacks": {
                "ModelCheckpoint{'monitor': 'val'}": {
                    "best_model_score": torch.tensor(0.5),
                    "best_model_path": "x",
                }
            },
            "optimizer_states": [{"state": {}, "param_groups": []}],
            "hyper_parameters": {"lr": 1e-3},
        },
        "mmsegmentation": {
            "meta": {"CLASSES": ("a", "b"), "PALETTE": [[0, 0, 0]]},
            "state_dict": tensors,
            "optimizer": {},
        },
        "yolox": {
            "start_epoch": 3,
            "model": tensors,
            "optimizer": {},
            "best_ap": 0.0,
            "curr_ap": np.float64(0.1),
        },
        "averaged": {"n_averaged": torch.tensor(7), **_renamed(tensors, "module.")},
        "ema_alone": {"ema": tensors, "updates": 12},
        "torchvision": {
            "model": tensors,
            "epoch": 29,
            "arch": "fcn",
            "num_classes": 3,
            "args": argparse.Namespace(lr=0.1),
        },
        "parameters": {
            name: torch.nn.Parameter(value) if value.is_floating_point() else value
            for name, value in tensors.items()
        },
        "wrapped twice": {"state_dict": {"model": tensors}},
        "in a list": [tensors],
        "strided": {
            name: value.T.contiguous().T if value.ndim == 2 else value
            for name, value in tensors.items()
        },
    }
    name = str(rng.choice(list(files)))
    return _trial(
        place,
        "checkpoint.pth",
        _saved(files[name]),
        filled(),
        refusable=name in ("in a list", "wrapped twice", "ema_alone"),
    )


@mutation("weights", 2)
def two_sets_in_a_file(rng: Rng, place: Path) -> Trial:
    """A file has weights and their average: all values of one of them, or an error."""
    own, other = _tensors(_state()), _tensors(_state(_other()))
    names = [
        ("model", "model_ema"),
        ("state_dict", "state_dict_ema"),
        ("model", "ema"),
        ("student", "teacher"),
    ][int(rng.integers(4))]
    value = dict(zip(names, (own, other), strict=True))
    if rng.integers(2):
        value = dict(reversed(list(value.items())))

    def right(result: State) -> str | None:
        first, second = filled()(result), filled(_other())(result)
        return first if first and second else None

    return _trial(place, "checkpoint.pth", _saved(value), right, refusable=True)


@mutation("weights", 2)
def another_ending(rng: Rng, place: Path) -> Trial:
    """The contents of a file determine its format; its name does not."""
    contents = {
        "zip": _saved(_tensors(_state())),
        "old": _saved(_tensors(_state()), _use_new_zipfile_serialization=False),
    }
    contents["safetensors"] = _safetensors(_state())
    data = contents[str(rng.choice(list(contents)))]
    name = str(
        rng.choice(
            [
                "a.pth",
                "a.pt",
                "a.safetensors",
                "a.ckpt",
                "a.bin",
                "a.PTH",
                "a.tar",
                "a.pth.tar",
                "a",
                "a.model",
                "é x.pth",
            ]
        )
    )
    return _trial(place, name, data, filled())


@mutation("weights", 2)
def dtypes(rng: Rng, place: Path) -> Trial:
    """float64 has the same values. float16 and bfloat16 have rounded values."""
    import torch

    dtype = [torch.float64, torch.float16, torch.bfloat16][int(rng.integers(3))]
    tensors = _tensors(_state())
    changed = {
        name: value.to(dtype) if value.is_floating_point() else value
        for name, value in tensors.items()
    }
    exact = dtype == torch.float64
    expected = product.tiny_model(5)
    if not exact:
        rounded = {
            name: value.float() if value.is_floating_point() else value
            for name, value in changed.items()
        }
        product.load_torch(expected, write(place, "rounded.pth", _saved(rounded)))
    return _trial(
        place,
        "weights.pth",
        _saved(changed),
        filled(_model() if exact else expected),
        refusable=True,
    )


@mutation("weights", 3)
def of_another_model(rng: Rng, place: Path) -> Trial:
    """A tensor is missing, unexpected, renamed or of another shape, or all are renamed."""
    state = _state()
    name = str(rng.choice([key for key in state if "num_batches" not in key]))
    choice = int(rng.integers(5))
    if choice == 0:
        del state[name]
    elif choice == 1:
        state["backbone.conv9.weight"] = np.zeros((2, 2), np.float32)
    elif choice == 2:
        state[name] = np.zeros((*state[name].shape, 2), np.float32)
    elif choice == 3:
        state = {f"layer{k}.w": value for k, value in enumerate(state.values())}
    else:
        state[name.upper()] = state.pop(name)
    data = _safetensors(state) if rng.integers(2) else _saved(_tensors(state))
    return _trial(place, "weights.pth" if data[:2] == b"PK" else "weights.safetensors", data, None)


@mutation("weights", 1)
def no_arrays_in_it(rng: Rng, place: Path) -> Trial:
    """A valid file has no tensors."""
    values: list[Any] = [
        {},
        [],
        3,
        None,
        "text",
        {"model": None},
        {"state_dict": {}},
        {"epoch": 3},
        {1: 2},
        {"a": {"b": {"c": 1}}},
    ]
    return _trial(place, "weights.pth", _saved(values[int(rng.integers(len(values)))]), None)


# ------------------------------------------------------------------------------- damaged, malicious


@mutation("weights", 8)
def pth_damaged(rng: Rng, place: Path) -> Trial:
    """A damaged archive of PyTorch: an error, or the right values. Every tensor has a checksum."""
    return _trial(
        place, "weights.pth", damage.some(rng, _saved(_tensors(_state()))), filled(), refusable=True
    )


@mutation("weights", 3)
def pth_of_the_old_format_damaged(rng: Rng, place: Path) -> Trial:
    """A damaged file of the format before PyTorch 1.6, which has no checksums."""
    data = _saved(_tensors(_state()), _use_new_zipfile_serialization=False)
    return _trial(
        place, "weights.pth", damage.some(rng, data), _without_checksum(filled()), refusable=True
    )


@mutation("weights", 4)
def safetensors_damaged(rng: Rng, place: Path) -> Trial:
    """A damaged safetensors file, which has no checksums."""
    return _trial(
        place,
        "weights.safetensors",
        damage.some(rng, _safetensors(_state())),
        _without_checksum(filled()),
        refusable=True,
    )


@mutation("weights", 4)
def safetensors_header(rng: Rng, place: Path) -> Trial:
    """Lengths, shapes, dtypes and offsets in a safetensors header contradict each other."""
    data = _safetensors(_state())
    size = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + size]), data[8 + size :]
    name = str(rng.choice([key for key in header if key != "__metadata__"]))
    choice = int(rng.integers(8))
    if choice == 0:
        header[name]["shape"] = [*header[name]["shape"], 2]
    elif choice == 1:
        header[name]["data_offsets"][1] += int(rng.choice([1, 4, 10**9, 2**63 - 1]))
    elif choice == 2:
        header[name]["dtype"] = str(rng.choice(["F64", "I32", "F8_E4M3", "X", "BOOL"]))
    elif choice == 3:
        header[name] = {}
    elif choice == 4:
        header["extra"] = dict(header[name])
    elif choice == 5:
        header[name]["shape"] = [-1, 2**62]
    encoded = json.dumps(header).encode()
    length = len(encoded)
    if choice == 6:
        length = int(rng.choice([0, 1, length - 1, length + 1, 2**31, 2**63 - 1]))
    elif choice == 7:
        encoded = [b"[]", b"{", b"null", b'{"a":' * 5000, b"\xff" * 9][int(rng.integers(5))]
        length = len(encoded)
    return _trial(place, "weights.safetensors", struct.pack("<Q", length) + encoded + body, None)


def _without_checksum(right: Callable[[State], str | None]) -> Callable[[State], str | None]:
    def judge(result: State) -> str | None:
        fault = right(result)
        if fault and fault.startswith("other values"):
            raise UndetectableError(
                "no checksum: changed values in a weights file of valid structure"
            )
        return fault

    return judge


class _Evil:
    """An object that creates a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


class _Sneaky(_Evil):
    def __reduce__(self) -> tuple[Any, ...]:
        return eval, (f"open({str(self.marker)!r}, 'w')",)


@mutation("weights", 4)
def would_run_code(rng: Rng, place: Path) -> Trial:
    """A pickle asks to call functions, in every format, also next to tensors; none is called."""
    marker = place / "ran"
    evil = _Evil(marker) if rng.integers(2) else _Sneaky(marker)
    value: Any = [
        evil,
        {"model": _tensors(_state()), "args": evil},
        {**_tensors(_state()), "x": evil},
    ][int(rng.integers(3))]
    choice = int(rng.integers(4))
    if choice == 0:
        data = pickle.dumps(evil, protocol=int(rng.integers(0, 5)))
    elif choice == 1:
        data = _saved(value)
    elif choice == 2:
        data = _saved(value, _use_new_zipfile_serialization=False)
    else:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("archive/data.pkl", pickle.dumps(evil, protocol=2))
            archive.writestr("archive/version", "3\n")
        data = buffer.getvalue()

    def right(result: State) -> str | None:
        # A reader may load the weights and ignore the code. The marker file shows that code ran.
        return "code ran" if marker.exists() else filled()(result)

    return _trial(
        place, str(rng.choice(["weights.pth", "weights.bin"])), data, right, refusable=True
    )


def _tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo("tensors")
        archive.addfile(info, io.BytesIO())
    return buffer.getvalue()


def _numpy() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=np.zeros(3))
    return buffer.getvalue()


@mutation("weights", 3)
def no_weights_at_all(rng: Rng, place: Path) -> Trial:
    """A web page, a Git LFS pointer, an archive, NumPy arrays, other formats, or an empty file."""
    plain = [
        b"",
        b"\x80\x02}",
        b"<!DOCTYPE html><html><head><title>Sign in</title></head></html>",
        b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 46830571\n",
        b'{"message": "Not Found"}',
        b"PK\x05\x06" + bytes(18),
        b"\x89HDF\r\n\x1a\n" + bytes(100),
        b"\x08\x07\x12\x07pytorch\x1a\x06" + bytes(30),
        b"ustar" * 200,
        _tar(),
        _numpy(),
        pickle.dumps({"a": [1, 2]}),
        rng.bytes(300),
    ]
    name = str(rng.choice(["weights.pth", "weights.pt", "weights.safetensors", "weights.bin"]))
    return _trial(place, name, plain[int(rng.integers(len(plain)))], None)


@mutation("weights", 1)
def no_file(rng: Rng, place: Path) -> Trial:
    """The path is a missing file, a folder or a broken link."""
    path = place / "weights.pth"
    choice = int(rng.integers(3))
    if choice == 1:
        path.mkdir()
    elif choice == 2:
        path.symlink_to("gone.pth")
    return Trial(call=lambda: product.open_tensors(path), names=[path.name])
