"""Weight files: reading, writing, and the errors for files that cannot be read."""

import argparse
import contextlib
import functools
import io
import os
import pickle
import subprocess
import sys
import tarfile
import zipfile

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from fcn_jax.errors import WeightsError, WriteError
from fcn_jax.pytorch import files

torch = pytest.importorskip("torch")

TENSORS = {
    "conv.weight": np.random.default_rng(0).standard_normal((4, 3, 2, 2), np.float32),
    "bn.num_batches_tracked": np.asarray(2**40, np.int64),
    "half": np.asarray([1.5, -0.0, 6e-8], np.float16),
    "empty": np.zeros((0, 3), np.float32),
    "wide": np.asarray([1e300]),
}


def assert_same(ours, theirs):
    assert list(ours) == list(theirs)
    for name, value in theirs.items():
        assert (ours[name].dtype, ours[name].shape) == (value.dtype, value.shape), name
        assert ours[name].tobytes() == value.tobytes(), name


def serialized(tensors, kind):
    """A state dict in PyTorch's format, its older format, or .safetensors."""
    if kind == "safetensors":
        from safetensors.torch import save

        return save(tensors)
    buffer = io.BytesIO()
    torch.save(tensors, buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


@functools.cache
def example(kind):
    """A file of the tensors in `TENSORS`. Made once: PyTorch's older format contains addresses."""
    return serialized({name: torch.from_numpy(value) for name, value in TENSORS.items()}, kind)


@functools.cache
def example_of_layouts(kind):
    return serialized(LAYOUTS, kind)


@pytest.mark.parametrize("suffix", files.SUFFIXES)
def test_read_returns_written_tensors_bit_for_bit(tmp_path, suffix):
    path = tmp_path / "new" / f"weights{suffix}"
    tensors = {
        **TENSORS,
        "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
    }  # not contiguous
    files.write(path, tensors)
    ours = files.read(path)
    assert_same(dict(sorted(ours.items())), dict(sorted(tensors.items())))
    assert [p.name for p in path.parent.iterdir()] == [path.name], "no temporary file is left"
    assert path.stat().st_mode & 0o444 == 0o444
    if suffix != ".safetensors":
        loaded = torch.load(path, weights_only=True)
        assert loaded["bn.num_batches_tracked"] == torch.tensor(2**40)
        assert list(loaded) == list(tensors)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_failed_write_keeps_the_old_file(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    files.write(path, {"a": np.zeros(2, np.float32)})
    with pytest.raises(Exception):  # noqa: B017, PT011  (safetensors and torch each raise their own)
        files.write(path, {"a": np.asarray([object()])})
    assert_same(files.read(path), {"a": np.zeros(2, np.float32)})
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


def test_reads_bfloat16_from_both_formats(tmp_path):
    from safetensors.torch import save_file

    tensors = {"a": torch.tensor([1.5, -3.0], dtype=torch.bfloat16)}
    torch.save(tensors, tmp_path / "a.pth")
    save_file(tensors, tmp_path / "a.safetensors")
    for name in ("a.pth", "a.safetensors"):
        assert_same(files.read(tmp_path / name), {"a": np.asarray([1.5, -3.0], ml_dtypes.bfloat16)})


def test_reads_the_format_before_pytorch_1_6(tmp_path):
    path = tmp_path / "old.pth"
    torch.save({"a": torch.arange(3.0)}, path, _use_new_zipfile_serialization=False)
    assert_same(files.read(path), {"a": np.arange(3, dtype=np.float32)})


@pytest.mark.parametrize("wrapper", ["state_dict", "model", "model_state_dict"])
def test_finds_a_state_dict_under_a_key(tmp_path, wrapper):
    path = tmp_path / "run.pth"
    torch.save({"epoch": 3, wrapper: {"a": torch.ones(2)}, "optimizer": {"lr": 0.1}}, path)
    assert_same(files.read(path), {"a": np.ones(2, np.float32)})


def test_reads_checkpoints_of_torchvisions_reference_training(tmp_path):
    path = tmp_path / "run.pth"
    network = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    torch.save(
        {
            "model": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "args": argparse.Namespace(lr=0.1, device="cuda"),
        },
        path,
    )
    assert_same(
        files.read(path), {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    )


ARRAYS = st.dictionaries(
    st.text(
        st.characters(codec="utf-8", categories=("L", "N")) | st.just("."), min_size=1, max_size=12
    ).filter(lambda name: name != "__metadata__"),
    st.sampled_from([np.float32, np.float64, np.float16, np.int64, np.int32, np.uint8]).flatmap(
        lambda dtype: npst.arrays(
            dtype, npst.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=3)
        )
    ),
    min_size=1,
    max_size=5,
)


@pytest.mark.parametrize("kind", ["zip", "pickle", "safetensors"])
@settings(max_examples=30)
@given(tensors=ARRAYS)
def test_reads_random_state_dicts_bit_for_bit(tmp_path_factory, kind, tensors):
    path = (
        tmp_path_factory.getbasetemp() / f"any.{'safetensors' if kind == 'safetensors' else 'pth'}"
    )
    written = {name: torch.from_numpy(value) for name, value in tensors.items()}
    path.write_bytes(serialized(written, kind))
    assert_same(dict(sorted(files.read(path).items())), dict(sorted(tensors.items())))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_reading_does_not_import_torch(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    files.write(path, TENSORS)
    code = (
        "import sys; from fcn_jax.pytorch import files; "
        f"assert len(files.read({str(path)!r})) == {len(TENSORS)}; "
        "assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_torch_reads_pth_and_rejects_writing_it(tmp_path, monkeypatch):
    path = tmp_path / "weights.pth"
    files.write(path, TENSORS)
    monkeypatch.setitem(sys.modules, "torch", None)
    assert_same(files.read(path), TENSORS)
    with pytest.raises(
        WeightsError,
        match=r"written by PyTorch; pip install 'fcn-jax\[torch\]', or use .safetensors",
    ):
        files.write(path, TENSORS)


@pytest.mark.parametrize(
    "name",
    ["weights", "WEIGHTS.PTH", "a.ckpt", "a.bin", "a.pkl", "a.pth.tar", "a.safetensors", "a.pth"],
)
@pytest.mark.parametrize("kind", ["zip", "pickle", "safetensors"])
def test_recognizes_files_by_contents_not_name(tmp_path, name, kind):
    (tmp_path / name).write_bytes(example(kind))
    assert_same(dict(sorted(files.read(tmp_path / name).items())), dict(sorted(TENSORS.items())))


class RunsCode:
    def __reduce__(self):
        return os.system, ("echo it ran > ran",)


def write_tar(path):
    with tarfile.open(path, "w") as archive:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = 8
            archive.addfile(info, io.BytesIO(b"12345678"))


def write_packed(path, mode):
    with tarfile.open(path, mode) as archive:
        info = tarfile.TarInfo("a/weights.pth")
        info.size = 3
        archive.addfile(info, io.BytesIO(b"abc"))


def write_zip(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/weights.pth", b"abc")


def write_hub_folder(path):
    path.mkdir()
    (path / "config.json").write_text("{}")
    (path / "model.safetensors").write_bytes(b"")


def write_parts(path):
    path.mkdir()
    for i in (1, 2):
        files.write(path / f"model-0000{i}-of-00002.safetensors", {"a": np.ones(1, np.float32)})


def write_distributed(path):
    from torch.distributed import checkpoint

    checkpoint.save({"a": torch.ones(1)}, checkpoint_id=path, no_dist=True)


def write_distributed_part(path):
    write_distributed(path.parent)


def write_quantized(path):
    torch.save({"a": torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8)}, path)


# PyTorch deprecates formats that it can still write and that users still have.
@pytest.mark.filterwarnings("ignore:.*deprecated:DeprecationWarning:torch")
@pytest.mark.filterwarnings("ignore:.*quantize.*deprecated:UserWarning")
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("missing.pth", lambda path: None, "no such weights file"),
        ("folder.pth", lambda path: path.mkdir(), "a directory; weights are a file"),
        ("hub", write_hub_folder, r"a directory; it holds model\.safetensors: name one of them"),
        (
            "weights.npz",
            lambda path: np.savez(path, a=np.ones(2)),
            r"numpy arrays \(\.npz\); save them with safetensors",
        ),
        ("one.npy", lambda path: np.save(path, np.ones(2)), "one numpy array"),
        ("x.pth", lambda path: path.write_bytes(b"x"), "not a readable weights file.*complete"),
        ("tar.pth", write_tar, "oldest PyTorch format.*resnet18-f37072fd.pth"),
        (
            "packed.tar",
            lambda path: write_packed(path, "w"),
            r"a tar archive of a/weights\.pth; unpack it first",
        ),
        (
            "packed.pth",
            lambda path: write_packed(path, "w:gz"),
            "compressed by gzip; unpack it first",
        ),
        (
            "zipped.zip",
            write_zip,
            r"a zip archive that PyTorch did not write: it holds a/weights\.pth; unpack it",
        ),
        ("empty.pth", lambda path: path.write_bytes(b""), "an empty file"),
        ("empty.safetensors", lambda path: path.write_bytes(b""), "an empty file"),
        (
            "page.pth",
            lambda path: path.write_text("\n<!DOCTYPE html><html>404"),
            "an HTML page, not weights: the download failed",
        ),
        (
            "lfs.pth",
            lambda path: path.write_text(
                "version https://git-lfs.github.com/spec/v1\noid sha256:ab\n"
            ),
            "git lfs pull",
        ),
        (
            "a.safetensors",
            lambda path: path.write_text('{"weight_map": {"a": "1.bin", "b": "2.bin"}}'),
            r"in 2 files \(1\.bin, 2\.bin\)",
        ),
        ("b.bin", lambda path: path.write_text('{"hidden_size": 3, "layers": 12}'), "a JSON text"),
        (
            "notes.pt",
            lambda path: path.write_text("my weights are on the other disk\n"),
            "a text file.*'my weights are on the other disk'",
        ),
        (
            "keras.pth",
            lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(64)),
            "HDF5.*Keras",
        ),
        (
            "net.onnx",
            lambda path: path.write_bytes(b"\x08\x07\x12\x07pytorch" + bytes(64)),
            "an ONNX model",
        ),
        (
            "flax.bin",
            lambda path: path.write_bytes(b"\x81\xa6params\x81\xa1a\xc0" + bytes(64)),
            "msgpack.*Flax",
        ),
        (
            "script.pt",
            lambda path: torch.jit.save(torch.jit.script(torch.nn.Conv2d(1, 1, 1)), path),
            r"TorchScript.*torch\.jit\.load",
        ),
        (
            "meta.pth",
            lambda path: torch.save({"a": torch.ones(2, device="meta")}, path),
            "'a' is a float32 tensor on the device meta",
        ),
        (
            "parts",
            write_parts,
            r"weights in 2 files \(model-00001-of-00002\.safetensors, .*; merge the parts into one",
        ),
        (
            "model-00002-of-00003.safetensors",
            lambda path: files.write(path, {"a": np.ones(1, np.float32)}),
            "part 2 of 3 of the weights; .* merge the parts into one file",
        ),
        (
            "distributed",
            write_distributed,
            r"torch\.distributed\.checkpoint; .*format_utils\.dcp_to_torch_save\(FOLDER, ",
        ),
        (
            "__0_0.distcp",
            write_distributed_part,
            r"a part of a checkpoint of torch\.distributed\.checkpoint; .*dcp_to_torch_save",
        ),
        (
            ".metadata",
            write_distributed_part,
            r"a part of a checkpoint of torch\.distributed\.checkpoint; .*dcp_to_torch_save",
        ),
        (
            "tensor.pth",
            lambda path: torch.save(torch.ones(2, 3), path),
            r"holds one tensor, of shape \(2, 3\), without a name; save a state dict",
        ),
        (
            "bytes.pth",
            lambda path: torch.save({b"a": torch.ones(1)}, path),
            r"the names of its tensors are of type bytes \(b'a'\)",
        ),
        (
            "tuple.pth",
            lambda path: torch.save({"m": {("a", 1): torch.ones(1)}}, path),
            r"of type tuple \(\('a', 1\)\), not text",
        ),
        (
            "negated.pth",
            lambda path: torch.save({"a": torch._neg_view(torch.ones(1))}, path),
            r"'a' is a view whose values are still to be negated; save it after \.resolve_neg\(\)",
        ),
        ("int8.pth", write_quantized, r"'a' is a quantized torch\.qint8 tensor"),
        ("nothing.pth", lambda path: torch.save({}, path), "holds no state dict"),
        (
            "list.pth",
            lambda path: torch.save([torch.ones(1)], path),
            "holds no state dict, only a list",
        ),
        (
            "wrapped.pth",
            lambda path: torch.save({"state_dict": {}, "epoch": 3}, path),
            "holds no state dict, only state_dict, epoch, w",
        ),
        (
            "eight.pth",
            lambda path: torch.save({"a": torch.ones(1).to(torch.float8_e5m2)}, path),
            "a' is a strided torch.float8_e5m2",
        ),
        (
            "sparse.pth",
            lambda path: torch.save({"a": torch.eye(2).to_sparse()}, path),
            "a' is a sparse_coo torch.float32 tensor",
        ),
        (
            "code.pth",
            lambda path: torch.save({"a": RunsCode()}, path),
            "refused.*could run code.*state_dict",
        ),
        (
            "module.pth",
            lambda path: torch.save(torch.nn.Linear(1, 1), path),
            "refused.*could run code.*state_dict",
        ),
        (
            "pickle.pth",
            lambda path: path.write_bytes(pickle.dumps({"a": RunsCode()}, protocol=2)),
            "refused.*could run code",
        ),
    ],
)
def test_rejects_other_files_with_name_and_reason(tmp_path, monkeypatch, name, make, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / name
    make(path)
    with pytest.raises(WeightsError, match=message) as caught:
        files.read(path)
    assert name in str(caught.value)
    assert not (tmp_path / "ran").exists()


def test_rejects_safetensors_of_8_bit_floats(tmp_path):
    path = tmp_path / "eight.safetensors"
    path.write_bytes(serialized({"a": torch.ones(1).to(torch.float8_e8m0fnu)}, "safetensors"))
    with pytest.raises(WeightsError, match=r"eight\.safetensors"):
        files.read(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_reads_tensors_on_lookup_and_does_not_keep_them(tmp_path, suffix):
    path = tmp_path / f"weights{suffix}"
    files.write(path, {"a": np.arange(4, dtype=np.float32), "b": np.ones(3, np.float32)})
    tensors = files.open_tensors(path)
    assert (tensors.shape("a"), tensors.shape("b")) == ((4,), (3,))
    first, second = tensors["a"], tensors["a"]
    np.testing.assert_array_equal(first, second)
    assert not np.shares_memory(first, second)
    files.write(path, {"a": np.zeros(4, np.float32), "b": np.zeros(3, np.float32)})
    np.testing.assert_array_equal(
        tensors["b"], [1, 1, 1], err_msg="a file that replaces it must change nothing"
    )


def test_lists_keys_without_tensors(tmp_path):
    torch.save({"a": torch.ones(1), "note": "hello"}, tmp_path / "a.pth")
    (found,) = files.open_state_dicts(tmp_path / "a.pth")
    assert (list(found.tensors), found.other_keys) == (["a"], ("note",))


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("zipped", [True, False])
def test_accepts_builtin_types_and_ranges_in_settings(tmp_path, protocol, zipped):
    settings = {
        "steps": range(3),
        "types": [int, str, float, bool, dict, object, type, complex, bytes],
        "how": [max, zip, len],
        "big": 2**70,
    }
    torch.save(
        {"model": {"a": torch.ones(2)}, **settings},
        tmp_path / "a.pth",
        pickle_protocol=protocol,
        _use_new_zipfile_serialization=zipped,
    )
    (found,) = files.open_state_dicts(tmp_path / "a.pth")
    assert (found.key, found.other_keys) == ("model", tuple(settings))
    np.testing.assert_array_equal(found.tensors["a"], [1, 1])


@pytest.mark.parametrize(
    "name", ["eval", "raw_input", "execfile", "file", "apply", "reload", "__import__"]
)
def test_rejects_python_2_names_that_run_code(tmp_path, name):
    (tmp_path / "a.pth").write_bytes(b"\x80\x02c__builtin__\n" + name.encode() + b"\n.")
    with pytest.raises(WeightsError, match=rf"refused, .*it names builtins\.{name}"):
        files.read(tmp_path / "a.pth")


def big_endian(path):
    """Write the same archive with big-endian values."""
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(path.with_name("big.pth"), "w") as other:
        for member in archive.infolist():
            contents = archive.read(member)
            if member.filename.endswith("byteorder"):
                contents = b"big"
            elif "/data/" in member.filename:
                contents = np.frombuffer(contents, "<f4").astype(">f4").tobytes()
            other.writestr(member.filename, contents)
    return path.with_name("big.pth")


def test_reads_big_endian_archives(tmp_path):
    torch.save({"a": torch.arange(6.0).reshape(2, 3).T}, tmp_path / "a.pth")
    np.testing.assert_array_equal(
        files.read(big_endian(tmp_path / "a.pth"))["a"], np.arange(6.0).reshape(2, 3).T
    )


LAYOUTS = {
    "a": torch.arange(24.0).reshape(2, 3, 4),
    "turned": torch.arange(24.0).reshape(2, 3, 4).permute(2, 0, 1),
    "spread": torch.ones(3).expand(2, 3),
    "part": torch.arange(24.0)[5:17:3],
    "empty part": torch.arange(24.0)[5:5],
    "nothing": torch.zeros(0, 3, 2),
    "number": torch.tensor(7),
    "parameter": torch.nn.Parameter(torch.arange(3.0)),
    "bfloat16": torch.tensor([[1.5, -3.0], [0.25, 2.0]], dtype=torch.bfloat16).T,
    "bool": torch.tensor([True, False]),
}


def compressed(path):
    with (
        zipfile.ZipFile(path) as archive,
        zipfile.ZipFile(path.with_name("compressed.pth"), "w", zipfile.ZIP_DEFLATED) as other,
    ):
        for member in archive.infolist():
            other.writestr(member.filename, archive.read(member))
    return path.with_name("compressed.pth")


@pytest.mark.parametrize("pack", [lambda path: path, compressed])
def test_reads_every_memory_layout(tmp_path, pack):
    shared = torch.arange(100.0)
    tensors = {**LAYOUTS, "first half": shared[:50], "second half": shared[50:]}
    torch.save(tensors, tmp_path / "a.pth")
    expected = {name: files.to_numpy(tensor, name) for name, tensor in tensors.items()}
    assert_same(files.read(pack(tmp_path / "a.pth")), expected)


def test_rejects_negated_views(tmp_path):
    torch.save(
        {"a": torch.ones(2), "b": torch.view_as_complex(torch.ones(2, 2)).conj().imag},
        tmp_path / "a.pth",
    )
    with pytest.raises(
        WeightsError,
        match=r"'b' is a view whose values are still to be negated; save it after \.resolve_neg",
    ):
        files.read(tmp_path / "a.pth")


@pytest.mark.parametrize("kind", ["zip", "pickle"])
@settings(max_examples=60)
@given(data=st.data())
def test_reads_or_rejects_files_with_changed_bytes(tmp_path_factory, kind, data):
    contents = bytearray(example_of_layouts(kind))
    for _ in range(data.draw(st.integers(1, 3))):
        contents[data.draw(st.integers(0, len(contents) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "changed.pth"
    path.write_bytes(contents)
    with contextlib.suppress(WeightsError):
        files.read(path)


def test_rejects_tensors_outside_their_storage(tmp_path):
    path = tmp_path / "a.pth"
    torch.save({"a": torch.arange(3.0), "secret": torch.ones(50)}, path)
    contents = path.read_bytes()
    assert contents.count(b"K\x03\x85") == 1, "the shape, pickled"
    path.write_bytes(contents.replace(b"K\x03\x85", b"K\x30\x85"))
    with pytest.raises(WeightsError, match=r"a\.pth: not a readable PyTorch file"):
        files.read(path)


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda contents: contents[:-1], "it ends too early"),
        (lambda contents: contents[:2] + b"\xfe" + contents[2:], "unknown instruction b'.xfe'"),
    ],
)
def test_error_says_what_is_wrong_with_a_pickle(tmp_path, damage, reason):
    path = tmp_path / "a.pth"
    path.write_bytes(damage(pickle.dumps({"a": np.ones(3)}, protocol=2)))
    with pytest.raises(WeightsError, match=f"not a readable PyTorch file .*{reason}"):
        files.read(path)


def test_names_a_file_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match=r"a\.safetensors: cannot be written"):
        files.write(tmp_path / "file" / "a.safetensors", TENSORS)


def test_rejects_writing_other_suffixes(tmp_path):
    with pytest.raises(WeightsError, match=r"this one ends in '\.ckpt'"):
        files.write(tmp_path / "a.ckpt", TENSORS)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["zip", "pickle", "safetensors"])
@settings(max_examples=40)
@given(data=st.data())
def test_rejects_truncated_files(tmp_path_factory, kind, data):
    contents = example(kind)
    length = data.draw(st.integers(0, len(contents) - 1))
    path = (
        tmp_path_factory.getbasetemp() / f"cut.{'safetensors' if kind == 'safetensors' else 'pth'}"
    )
    path.write_bytes(contents[:length])
    # A name that is cut off in a pickle may be refused as a function that runs code.
    with pytest.raises(
        WeightsError, match="is it complete|refused" if kind == "pickle" else "is it complete"
    ):
        files.read(path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
@settings(max_examples=60)
@given(contents=st.binary(max_size=200))
def test_rejects_random_bytes(tmp_path_factory, suffix, contents):
    path = tmp_path_factory.getbasetemp() / f"random.{suffix}"
    path.write_bytes(contents)
    with pytest.raises(WeightsError):
        files.read(path)


def test_sha256_returns_the_hash_of_the_contents(tmp_path):
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    assert files.sha256(path) == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
