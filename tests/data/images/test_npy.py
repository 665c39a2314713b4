"""NumPy files as images and masks."""

import contextlib
import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fcn_jax.data.decode import read_mask
from fcn_jax.data.images import npy
from fcn_jax.errors import DamagedError, DataError


def saved(array: Any, **settings: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, **settings)
    return file.getvalue()


SHAPES = arrays.array_shapes(min_dims=2, max_dims=3, min_side=1, max_side=5)
DTYPES = st.sampled_from(["u1", "<u2", ">u2", "<i2", "<f4", ">f4", "<f8", "f2"])


@given(st.data(), DTYPES, st.booleans())
def test_decodes_what_numpy_saves(data: st.DataObject, dtype: str, fortran: bool) -> None:
    array = data.draw(arrays.arrays(dtype, SHAPES))
    array = np.asfortranarray(array) if fortran else array
    found = npy.decode(saved(array), "a.npy")
    np.testing.assert_array_equal(found, array)
    assert found.dtype == array.dtype.newbyteorder("=")
    assert found.flags["C_CONTIGUOUS"]
    header = npy.parse(saved(array), "a.npy")
    assert (header.shape, header.is_wide) == (array.shape, dtype != "u1")


@given(st.integers(0, 400), st.sampled_from([1, 2, 3]))
def test_refuses_any_truncated_file(length: int, version: int) -> None:
    file = io.BytesIO()
    np.lib.format.write_array(file, np.zeros((6, 7, 5), np.uint8), version=(version, 0))
    data = file.getvalue()
    assert npy.decode(data, "a.npy").shape == (6, 7, 5)
    with pytest.raises(DamagedError, match=r"a\.npy: the \.npy file is damaged"):
        npy.decode(data[: min(length, len(data) - 1)], "a.npy")


@given(st.lists(st.tuples(st.integers(0, 139), st.integers(0, 255)), min_size=1, max_size=4))
def test_damaged_bytes_give_an_error_or_an_image(changes: list[tuple[int, int]]) -> None:
    data = bytearray(saved(np.zeros((3, 4), np.uint8)))
    assert len(data) == 140
    for at, value in changes:
        data[at] = value
    with contextlib.suppress(DataError):
        assert npy.decode(bytes(data), "a.npy").ndim in (2, 3)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (np.zeros((2, 2), np.int64), "an array of int64; save it as uint8, uint16 or float32"),
        (np.zeros((2, 2), bool), "an array of bool"),
        (np.array([[None]]), "an array of object"),
        (np.zeros((2, 2), "u1,u1"), "an array of void16"),
        (np.zeros(4, np.uint8), r"shape \(4,\); an image has the shape \(height, width\)"),
        (np.zeros((1, 2, 2, 3), np.uint8), r"an array of shape \(1, 2, 2, 3\)"),
        (np.zeros((0, 4), np.uint8), r"an array of shape \(0, 4\)"),
    ],
)
def test_refuses_other_arrays_by_name(array: np.ndarray, expected: str) -> None:
    with pytest.raises(DataError, match=f"^a.npy: .*{expected}"):
        npy.decode(saved(array, allow_pickle=True), "a.npy")


@pytest.mark.parametrize(
    "header",
    [
        b"{'descr': 'u1', 'fortran_order': False, 'shape': (9223372036854775807, 4)}",
        b"{'descr': 'u1', 'fortran_order': False, 'shape': (4, 4, 4611686018427387904)}",
        b"{'descr': 'u1', 'shape': (4, 4)}",
        b"[" * 9000,
        b"__import__('os').abort()",
        b"{'descr': 'u9', 'fortran_order': False, 'shape': (4, 4)}",
        b"{'descr': '0u1', 'fortran_order': False, 'shape': (4, 4)}",
    ],
)
def test_refuses_impossible_headers(header: bytes) -> None:
    data = npy.SIGNATURE + bytes([1, 0]) + len(header).to_bytes(2, "little") + header
    with pytest.raises(DataError, match=r"a\.npy"):
        npy.decode(data + b"0" * 16, "a.npy")


def test_reads_masks_as_stored_values() -> None:
    labels = np.array([[0, 1, 255], [2, 2, 0]])
    for dtype in ("u1", "i1", "<u2", ">i2"):
        mask = labels.astype(dtype) if dtype != "i1" else labels.clip(max=2).astype(dtype)
        expected = labels if dtype != "i1" else labels.clip(max=2)
        assert read_mask(saved(mask), 3).tolist() == expected.tolist()
    assert read_mask(saved(labels[..., None].astype("u1")), 3).tolist() == labels.tolist()
    with pytest.raises(DataError, match="a mask as an array of float32 and shape"):
        read_mask(saved(labels.astype("f4")), 3)
    several = np.stack([labels == 1, labels == 2], -1).astype("u1")
    with pytest.raises(DataError, match=r"set model\.task=multilabel if each class has a channel"):
        read_mask(saved(several), 3)
    with pytest.raises(DataError, match=r"of shape \(height, width\)$"):
        read_mask(saved(several + 7), 3)
    assert read_mask(saved(labels), 3).tolist() == labels.tolist()
    for wrong in (-labels, labels * 300):
        with pytest.raises(DataError, match=r"the mask holds values from .*; labels are at least"):
            read_mask(saved(wrong), 3)
