"""Weight files: written by Core ML Tools, read by us, and damaged in between."""

from __future__ import annotations

import struct

import numpy as np
import pytest
import torch
from coremltools.libmilstoragepython import _BlobStorageWriter as Writer

from splitter.errors import PackageError
from splitter.mil.blob import BlobFile, decoded
from splitter.mil.types import BY_NAME

FP16, FP32 = BY_NAME["fp16"], BY_NAME["fp32"]
VALUES = np.arange(24, dtype=np.float32)


@pytest.fixture
def written(tmp_path):
    """A file with two values, and their offsets."""
    path = tmp_path / "weight.bin"
    writer = Writer(str(path))
    offsets = [writer.write_float_data(VALUES), writer.write_int8_data(np.arange(-5, 5, dtype=np.int8))]
    del writer
    return path, offsets


def patch(path, at, form, *values):
    raw = bytearray(path.read_bytes())
    struct.pack_into(form, raw, at, *values)
    path.write_bytes(raw)


@pytest.mark.parametrize(
    ("name", "write", "values"),
    [
        ("fp32", "write_float_data", VALUES),
        ("int8", "write_int8_data", np.arange(-128, 128, dtype=np.int8)),
        ("uint8", "write_uint8_data", np.arange(256, dtype=np.uint8)),
        ("int16", "write_int16_data", np.int16([-32768, 0, 32767])),
        ("uint16", "write_uint16_data", np.uint16([0, 1, 65535])),
        ("int32", "write_int32_data", np.int32([-(1 << 31), 0, (1 << 31) - 1])),
        ("uint32", "write_uint32_data", np.uint32([0, 1, (1 << 32) - 1])),
        ("int4", "write_int4_data", np.int8([-8, 7, 0, -1, 3])),
        ("uint1", "write_uint1_data", np.uint8([1, 0, 1, 1, 0, 0, 0, 1, 1])),
        ("uint2", "write_uint2_data", np.uint8([3, 0, 1, 2, 3])),
        ("uint3", "write_uint3_data", np.uint8([7, 0, 1, 2, 5, 4, 3, 6, 7])),
        ("uint4", "write_uint4_data", np.uint8([15, 0, 9])),
        ("uint6", "write_uint6_data", np.uint8([63, 0, 1, 33, 62])),
    ],
)
def test_what_core_ml_tools_writes(tmp_path, name, write, values):
    path = tmp_path / "weight.bin"
    writer = Writer(str(path))
    writer.write_float_data(VALUES)
    offset = getattr(writer, write)(values)
    del writer
    dtype = BY_NAME[name]
    got = BlobFile(path).read(offset, dtype, (1, len(values)), "v")
    assert got.dtype == dtype.held
    assert got.tolist() == [values.tolist()]


def test_halves(tmp_path):
    halves = np.float16([1.5, -2, np.inf, 6e-8])
    path = tmp_path / "weight.bin"
    writer = Writer(str(path))
    offset = writer.write_fp16_data(halves.view(np.uint16))
    del writer
    assert torch.equal(BlobFile(path).read(offset, FP16, (4,), "v"), torch.from_numpy(halves))


def test_a_value_is_read_once(written):
    """However often a program names it, it takes its memory once; and the file's memory is not the tensors'."""
    path, (offset, _) = written
    file = BlobFile(path)
    first, second = file.read(offset, FP32, (24,), "v"), file.read(offset, FP32, (2, 12), "w")
    assert first.data_ptr() == second.data_ptr()
    path.write_bytes(b"")
    assert first.tolist() == VALUES.tolist()


def test_records_that_overlap(tmp_path):
    """A record every 64 bytes, each with the rest of the file: a small file that would fill the memory."""
    count, size = 64, 64 * 129
    raw = bytearray(size)
    struct.pack_into("<II", raw, 0, count, 2)
    for index in range(1, count):
        struct.pack_into("<IIQQQ", raw, 64 * index, 0xDEADBEEF, 3, size // 4, size // 2, 0)
    (tmp_path / "weight.bin").write_bytes(raw)
    file = BlobFile(tmp_path / "weight.bin")
    for index in range(1, 5):
        file.read(64 * index, BY_NAME["uint8"], (size // 4,), f"v{index}")
    with pytest.raises(PackageError, match=r"weight.bin does not hold the value 'v5' .*overlap"):
        file.read(64 * 5, BY_NAME["uint8"], (size // 4,), "v5")


@pytest.mark.parametrize("size", [0, 1, 7, 8, 63])
def test_short_file(written, size):
    path, (offset, _) = written
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(PackageError, match=r"weight.bin"):
        BlobFile(path).read(offset, FP32, (24,), "v")


@pytest.mark.parametrize("kept", [64, 65, 127, 128, 200, 223])
def test_truncated(written, kept):
    path, (offset, _) = written
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(PackageError, match=r"weight.bin does not hold the value 'v' .*save it again"):
        BlobFile(path).read(offset, FP32, (24,), "v")


def test_a_file_that_changes_after_it_was_opened_changes_nothing(written):
    path, (offset, _) = written
    file = BlobFile(path)
    path.write_bytes(path.read_bytes()[: offset + 70])
    assert file.read(offset, FP32, (24,), "v").tolist() == VALUES.tolist(), "what was opened is what is used"


def test_no_file(tmp_path):
    with pytest.raises(PackageError, match=r"none.bin cannot be read as a weight file"):
        BlobFile(tmp_path / "none.bin")


@pytest.mark.parametrize("version", [0, 1, 3])
def test_version(written, version):
    path, _ = written
    patch(path, 4, "<I", version)
    with pytest.raises(PackageError, match="version 2"):
        BlobFile(path)


@pytest.mark.parametrize("offset", [-64, 0, 1, 63, 65, 1 << 20, 1 << 63, (1 << 64) - 64])
def test_offset_of_no_record(written, offset):
    path, _ = written
    with pytest.raises(PackageError, match=f"'v' .*byte {offset}"):
        BlobFile(path).read(offset, FP32, (24,), "v")


@pytest.mark.parametrize(
    ("dtype", "shape", "what"),
    [
        ("fp16", (48,), "fp32 stored for fp16"),
        ("int32", (24,), "fp32 stored for int32"),
        ("bool", (96,), "fp32 stored for bool"),
        ("string", (24,), "fp32 stored for string"),
        ("fp32", (23,), "96 bytes"),
        ("fp32", (5, 5), "96 bytes"),
        ("fp32", (0,), "96 bytes"),
    ],
)
def test_another_type_or_size(written, dtype, shape, what):
    path, (offset, _) = written
    with pytest.raises(PackageError, match=f"'v' .*{what}"):
        BlobFile(path).read(offset, BY_NAME[dtype], shape, "v")


@pytest.mark.parametrize(
    ("at", "form", "value", "what"),
    [
        (0, "<I", 0xDEADBEEE, "no record"),
        (4, "<I", 0, "0 stored for fp32"),
        (4, "<I", 99, "99 stored for fp32"),
        (8, "<Q", 95, "95 bytes"),
        (8, "<Q", (1 << 64) - 1, "bytes from byte"),
        (16, "<Q", 1 << 40, "from byte"),
        (16, "<Q", (1 << 64) - 96, "from byte"),
        (24, "<Q", 8, "bytes from byte"),
    ],
)
def test_damaged_record(written, at, form, value, what):
    path, (offset, _) = written
    patch(path, offset + at, form, value)
    with pytest.raises(PackageError, match=f"'v' .*{what}"):
        BlobFile(path).read(offset, FP32, (24,), "v")


def test_sizes_are_checked_before_anything_is_allocated(written):
    """A record that claims a terabyte, for a type that declares as much."""
    path, (offset, _) = written
    patch(path, offset + 8, "<Q", 1 << 40)
    with pytest.raises(PackageError, match="'v'"):
        BlobFile(path).read(offset, FP32, (1 << 38,), "v")


def test_empty_values():
    for dtype in BY_NAME.values():
        if dtype.name != "string":
            assert decoded(b"", dtype, (2, 0)).shape == (2, 0)
