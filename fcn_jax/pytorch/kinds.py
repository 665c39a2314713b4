"""Recognizes files by their contents: formats of weights, and other files, for messages."""

from __future__ import annotations

import codecs
import json
import re
import tarfile
import zipfile
from pathlib import Path

from fcn_jax.errors import WeightsError, listing

SAFETENSORS = "safetensors"
ARCHIVE = "PyTorch archive"
LEGACY = "PyTorch file of the older format"
PICKLE = "pickle"

WEIGHT_SUFFIXES = (".pth", ".pt", ".safetensors", ".ckpt", ".bin", ".pkl", ".tar")
"""Suffixes of files that may hold weights. Only messages use them."""

_PART = re.compile(r"-(\d{5})-of-(\d{5})\b")
"""In the names of files that hold parts of the weights, as transformers writes them."""

_DISTRIBUTED = (
    "torch.distributed.checkpoint; make one file of it with "
    "torch.distributed.checkpoint.format_utils.dcp_to_torch_save(FOLDER, 'weights.pth')"
)

_LEGACY_START = bytes.fromhex("8a0a6cfc9c46f920")  # PyTorch's magic number, after the version

_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip, or tar xzf"),
    b"BZh": ("bzip2", "bunzip2, or tar xjf"),
    b"\xfd7zXZ\x00": ("xz", "unxz, or tar xJf"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
    b"7z\xbc\xaf\x27\x1c": ("7-Zip", "7z x"),
    b"Rar!\x1a\x07": ("RAR", "unrar x"),
}

_OTHERS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, as Keras writes; only PyTorch's weights are read",
    b"\x93NUMPY": "one numpy array (.npy); weights are several arrays by name",
    b"GGUF": "a GGUF file of a language model; only PyTorch's weights are read",
    b"%PDF": "a PDF document",
    b"\x89PNG": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"\x7fELF": "a program",
}


def kind_of(path: Path) -> str:
    """The format of a weights file: `SAFETENSORS`, `ARCHIVE`, `LEGACY` or `PICKLE`.

    Raises:
        WeightsError: it is another file; the message names its kind and says what to do.
    """
    if what := _part_of_weights(path):
        raise WeightsError(f"{path}: {what}")
    try:
        with path.open("rb") as file:
            start = file.read(4096)
            size = file.seek(0, 2)
            file.seek(max(0, size - 8))
            end = file.read(8)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not start:
        raise WeightsError(f"{path}: an empty file; is it complete?")
    if start[:4] in (b"PK\x03\x04", b"PK\x05\x06"):
        return _kind_of_zip(path)
    if start[8:9] == b"{" and int.from_bytes(start[:8], "little") < 100_000_000:
        return SAFETENSORS
    if start[:1] == b"\x80" and len(start) > 1 and start[1] in range(2, 6):
        return LEGACY if start[2:10] == _LEGACY_START or _LEGACY_START in start[2:32] else PICKLE
    raise WeightsError(f"{path}: {_other(path, start, end)}")


def _part_of_weights(path: Path) -> str | None:
    """The message for a file whose name says that it holds a part of the weights; or None."""
    part = _PART.search(path.name)
    if part is not None and int(part[2]) > 1:
        return (
            f"part {int(part[1])} of {int(part[2])} of the weights; several files are not read "
            "together: merge the parts into one file of a state_dict"
        )
    if path.suffix == ".distcp" or (path.name == ".metadata" and any(path.parent.glob("*.distcp"))):
        return f"a part of a checkpoint of {_DISTRIBUTED}"
    return None


def _kind_of_zip(path: Path) -> str:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except Exception as error:  # damaged archives make zipfile raise almost any exception
        raise WeightsError(
            f"{path}: not a readable PyTorch file (a zip archive without an end); is it complete?"
        ) from error
    ends = {name.rpartition("/")[2] for name in names}
    if "constants.pkl" in ends or ("model.json" in ends and "attributes.pkl" in ends):
        what = (
            "refused, because it is a TorchScript program, which holds code; save its tensors with "
            "torch.save(torch.jit.load(FILE, map_location='cpu').state_dict(), 'weights.pth')"
        )
    elif any(name.endswith(".data/extern_modules") for name in names):
        what = (
            "refused, because it is a torch.package, which holds code; save its state_dict instead"
        )
    elif any(name.endswith("data.pkl") and name.count("/") <= 1 for name in names):
        return ARCHIVE
    elif "model.weights.h5" in ends:
        what = "a Keras model; only PyTorch's weights are read"
    elif names and all(name.endswith(".npy") for name in names):
        what = (
            "numpy arrays (.npz); save them with "
            "safetensors.numpy.save_file(dict(numpy.load(FILE)), 'weights.safetensors')"
        )
    elif "saved_model.pb" in ends:
        what = "a zip archive with a TensorFlow SavedModel; only PyTorch's weights are read"
    elif any(re.search(r"serialized_exec_info\.json$|exported_program|\.pt2$", n) for n in names):
        what = "a program of torch.export; save the state_dict of the network instead"
    else:
        weights = [name for name in names if name.lower().endswith(WEIGHT_SUFFIXES)]
        inside = f"with {listing(names, 4) or 'nothing in it'}"
        if weights:
            inside = f"it holds {listing(weights, 4)}; unpack it"
        what = f"a zip archive that PyTorch did not write: {inside}"
    raise WeightsError(f"{path}: {what}")


def _other(path: Path, start: bytes, end: bytes) -> str:
    """The message for a file that cannot be read as weights."""
    for magic, (name, command) in _COMPRESSED.items():
        if start.startswith(magic):
            return f"a file compressed by {name}; unpack it first ({command})"
    for magic, what in _OTHERS.items():
        if start.startswith(magic):
            return what
    if tar := _of_tar(path, start):
        return tar
    text = start.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if start.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the weights themselves; fetch them with git lfs pull"
    if text.startswith((b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")):
        return "an HTML page, not weights: the download failed; open it in a browser to see why"
    if text[:1] in (b"{", b"["):
        return _of_json(path)
    if (
        end == b"\x57\xfb\x80\x8b\x24\x75\x47\xdb"
        or ".data-0" in path.name
        or text.startswith(b"model_checkpoint_path")
    ):
        return "a part of a TensorFlow checkpoint; only PyTorch's weights are read"
    if start[4:8] == b"TFL3":
        return "a TensorFlow Lite model; only PyTorch's weights are read"
    if path.suffix.lower() == ".onnx" or (
        start[:1] == b"\x08" and (b"pytorch" in start[:64] or b"onnx" in start[:256].lower())
    ):
        return "an ONNX model; only PyTorch's weights are read"
    if start[:3] == b"\x08\x01\x12" or path.suffix.lower() == ".pb":
        return "a TensorFlow graph; only PyTorch's weights are read"
    if len(start) < 16:
        return "not a readable weights file: a few bytes; is it complete?"
    is_map_of_text = 0x81 <= start[0] <= 0x8F and (0xA1 <= start[1] <= 0xBF or start[1] == 0xD9)
    if is_map_of_text or start[0] in (0xDE, 0xDF):
        return (
            "a msgpack file, as Flax writes; PyTorch's weights and checkpoints of fcn-jax are read"
        )
    if _is_text(start):
        line = start[:40].decode("utf-8", "replace").split("\n")[0].strip()
        return f"a text file, not weights; it begins with {line!r}"
    return "not a readable weights file: neither PyTorch's nor .safetensors; is it complete?"


def _of_tar(path: Path, start: bytes) -> str | None:
    """The message for a tar archive; None for other files."""
    is_tar = start[257:262] == b"ustar"
    try:
        with tarfile.open(path, "r:") as archive:
            is_tar = True
            names = archive.getnames()
    except Exception:  # other files and damaged archives lead to almost any exception
        return "a damaged tar archive; is it complete?" if is_tar else None
    if {"storages", "tensors"} & set(names):
        return (
            "the oldest PyTorch format (a tar archive) cannot be read safely; use a newer file of "
            "the same weights (torchvision: resnet18-f37072fd.pth holds the tensors of "
            "resnet18-5c106cde.pth)"
        )
    weights = [name for name in names if name.lower().endswith(WEIGHT_SUFFIXES)] or names
    return f"a tar archive of {listing(weights, 4) or 'nothing'}; unpack it first (tar xf)"


def _of_json(path: Path) -> str:
    try:
        table = json.loads(path.read_text("utf-8-sig")) if path.stat().st_size < 100_000_000 else {}
    except (ValueError, OSError):
        return "a text file, not weights"
    parts = table.get("weight_map") if isinstance(table, dict) else None
    if isinstance(parts, dict):
        files = sorted({str(part) for part in parts.values()})
        return (
            f"the index of weights in {len(files)} files ({listing(files, 3)}), which are not read "
            "together; save them as one file of a state_dict"
        )
    return "a JSON text, such as a model's settings, not weights"


def _is_text(start: bytes) -> bool:
    try:
        # An incremental decoder accepts a character that is cut off at the end.
        text = codecs.getincrementaldecoder("utf-8")().decode(start)
    except UnicodeDecodeError:
        return False
    return all(character.isprintable() or character in "\t\r\n\f" for character in text)


def of_directory(path: Path) -> str:
    """The message for a folder that was given instead of a file."""
    try:
        names = sorted(child.name for child in path.iterdir())
    except OSError:
        names = []
    if "saved_model.pb" in names:
        return "a folder with a TensorFlow SavedModel; only PyTorch's weights are read"
    if any(name.endswith(".distcp") for name in names):
        return f"a folder with a checkpoint of {_DISTRIBUTED}"
    if "data.pkl" in names and "version" in names:
        return (
            "an unpacked PyTorch archive; pack the folder again with zip -0 -r weights.pth FOLDER"
        )
    weights = [name for name in names if name.lower().endswith(WEIGHT_SUFFIXES)]
    parts = [name for name in weights if (part := _PART.search(name)) and int(part[2]) > 1]
    if parts and len(parts) == len(weights):
        return (
            f"a directory with weights in {len(parts)} files ({listing(parts, 3)}), which are not "
            "read together; merge the parts into one file of a state_dict"
        )
    weights = [name for name in weights if name not in parts]
    inside = (
        f"it holds {listing(weights, 4)}: name one of them" if weights else "weights are a file"
    )
    return f"a directory; {inside}"
