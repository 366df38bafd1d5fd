"""Element types, and constants of each as the program holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from splitter.errors import PackageError
from splitter.mil import program
from splitter.mil.coreml_tools import ct
from splitter.mil.types import BY_NAME, DTYPES, TensorType

from .harness import mb, package, types


def test_numbers_are_core_mls():
    """Against Core ML Tools' own table."""
    ours = {number: dtype.name for number, dtype in DTYPES.items()}
    for builtin, number in types.BUILTIN_TO_PROTO_TYPES.items():
        if ours.get(number) not in (None, "string"):
            name = types.builtin_to_string(builtin)
            assert {"fp8e4m3fn": "fp8e4m3fn"}.get(name, name) == ours[number]
    names = {value: name.lower() for name, value in ct.proto.MIL_pb2.DataType.items() if name != "UNUSED_TYPE"}
    assert {number: name.replace("float", "fp").replace("bfp", "bf") for number, name in names.items()} == ours


@pytest.mark.parametrize("dtype", [one for one in DTYPES.values() if one.is_integer], ids=str)
def test_bounds(dtype):
    least, most = dtype.bounds
    assert most - least == (1 << dtype.bits) - 1
    assert least == (0 if dtype.name.startswith("u") else -(1 << (dtype.bits - 1)))
    if dtype.bits >= 8:
        assert (least, most) == (np.iinfo(dtype.numpy).min, np.iinfo(dtype.numpy).max)
    if dtype.name != "uint64":
        assert torch.tensor([least, most], dtype=dtype.held).tolist() == [least, most]


def test_kinds():
    assert [name for name, dtype in BY_NAME.items() if dtype.is_float] == [
        "fp16",
        "fp32",
        "fp64",
        "bf16",
        "fp8e4m3fn",
        "fp8e5m2",
    ]
    assert not BY_NAME["bool"].is_integer
    assert not BY_NAME["string"].is_integer
    assert str(TensorType(BY_NAME["fp16"], (2, None))) == "fp16[2, ?]"


def immediate(dtype, shape=(), **fields):
    """A value, read by itself."""
    value = ct.proto.MIL_pb2.Value()
    tensor = value.type.tensorType
    tensor.dataType, tensor.rank = dtype, len(shape)
    for extent in shape:
        tensor.dimensions.add().constant.size = extent
    for field, values in fields.items():
        if field == "bytes":
            value.immediateValue.tensor.bytes.values = values
        else:
            getattr(value.immediateValue.tensor, field).SetInParent()
            getattr(value.immediateValue.tensor, field).values.extend(values)
    return value


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    path = package(lambda x: mb.relu(x=x), {"x": np.zeros(2, np.float32)}, tmp_path_factory.mktemp("values"))
    return lambda value: program._Reader(path, Path.read_bytes)._value(value, "v")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (immediate(23, (2,), ints=[1, -2]), torch.tensor([1, -2], dtype=torch.int32)),
        (immediate(22, (2,), ints=[1, -2]), torch.tensor([1, -2], dtype=torch.int16)),
        (immediate(32, (1,), ints=[65_535]), torch.tensor([65_535], dtype=torch.int32)),
        (immediate(24, longInts=[1 << 40]), torch.tensor(1 << 40)),
        (immediate(11, (1, 2), floats=[0.5, 2]), torch.tensor([[0.5, 2]])),
        (immediate(12, doubles=[0.1]), torch.tensor(0.1, dtype=torch.float64)),
        (immediate(10, (1,), bytes=b"\x00\x3c"), torch.tensor([1.0], dtype=torch.float16)),
        (immediate(1, (3,), bools=[True, False, True]), torch.tensor([True, False, True])),
        (immediate(1, (3,), bytes=b"\x00\x02\xff"), torch.tensor([False, True, True])),
        (immediate(25, (3,), bytes=b"\xf1\x08"), torch.tensor([1, -1, -8], dtype=torch.int8)),
        (immediate(11, (0, 4), floats=[]), torch.zeros(0, 4)),
        (immediate(31, (0,), bytes=b""), torch.zeros(0, dtype=torch.uint8)),
    ],
)  # fmt: skip
def test_values(read, value, expected):
    got = read(value)
    assert got.dtype == expected.dtype
    assert got.shape == expected.shape
    assert torch.equal(got, expected)
    assert got.numpy().tobytes() == expected.numpy().tobytes()  # bools too, which torch calls equal


def test_texts(read):
    assert read(immediate(2, strings=["a"])) == "a"
    assert read(immediate(2, (2,), strings=["a", "b"])) == ["a", "b"]
    with pytest.raises(PackageError, match="2 values for string"):
        read(immediate(2, strings=["a", "b"]))


@pytest.mark.parametrize(
    "value",
    [immediate(21, ints=[128]), immediate(31, ints=[-1]), immediate(32, (2,), ints=[0, 65_536]), immediate(25, ints=[8])],
)  # fmt: skip
def test_numbers_beyond_their_type(read, value):
    with pytest.raises(PackageError, match="'v' .* numbers from"):
        read(value)


def test_dictionaries_and_lists(read):
    value = ct.proto.MIL_pb2.Value()
    value.type.dictionaryType.keyType.tensorType.dataType = 2
    value.type.dictionaryType.valueType.tensorType.dataType = 24
    pair = value.immediateValue.dictionary.values.add()
    pair.key.CopyFrom(immediate(2, strings=["a"]))
    pair.value.CopyFrom(immediate(24, longInts=[3]))
    assert read(value) == {"a": torch.tensor(3)}
    pair.key.CopyFrom(immediate(23, (2,), ints=[1, 2]))
    with pytest.raises(PackageError, match="'v' .*Tensor for a dictionary's key"):
        read(value)

    value = ct.proto.MIL_pb2.Value()
    value.type.listType.type.tensorType.dataType = 24
    value.type.listType.length.constant.size = 2
    value.immediateValue.list.values.extend([immediate(24, longInts=[3]), immediate(23, ints=[4])])
    assert [int(one) for one in read(value)] == [3, 4]
    value.immediateValue.list.values.append(immediate(23, ints=[4]))
    with pytest.raises(PackageError, match="a list of 3 for one of 2"):
        read(value)
    value.immediateValue.list.values.pop()
    value.immediateValue.list.values[1].CopyFrom(immediate(2, strings=["x"]))
    with pytest.raises(PackageError, match="with a string"):
        read(value)
