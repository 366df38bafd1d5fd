"""Files of tensors and their records, held against each other."""

import json
from itertools import pairwise

import numpy as np
import pytest
from safetensors.numpy import load_file
from splitter_weights import tensor_file

from splitter.errors import CheckpointError

TENSORS = {
    "a": np.arange(5, dtype=np.float32),
    "b.weight": np.arange(6, dtype=np.int64).reshape(2, 3),
    "c": np.array([True, False]),
    "d": np.array(1 + 2j, np.complex64),
    "e": np.zeros((0, 3), np.float16),
    "f": np.arange(32, dtype=np.float64),
}


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "t.safetensors"
    return path, tensor_file.export(TENSORS, path)


def test_what_is_written_is_read(file):
    path, record = file
    read = tensor_file.load(path, tensor_file.record_of(json.loads(record.model_dump_json())))
    assert list(read) == list(TENSORS)
    for name, array in TENSORS.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        assert np.array_equal(read[name], array)
    assert {name: load_file(path)[name].tolist() for name in ("a", "c")} == {"a": [0, 1, 2, 3, 4], "c": [True, False]}


def test_tensors_are_aligned_and_nothing_lies_between_them(file):
    path, record = file
    spans = [(tensor.offset, tensor.offset + tensor.bytes) for tensor in record.tensors.values()]
    assert all(start % 64 == 0 for start, _ in spans)
    assert all(0 <= start - end < 64 for (_, end), (start, _) in pairwise(spans))
    assert path.stat().st_size % 64 == 0
    assert record.padding == ("a.padding", "b.weight.padding", "c.padding", "d.padding")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: r["tensors"].pop("a"), "1 tensors that nothing reads, the first 'a'"),
        (lambda r: r["tensors"].update(z=r["tensors"]["a"]), "lacks 1 tensors, the first 'z'"),
        (lambda r: r["tensors"]["a"].update(shape=[1, 5]), "'a' of t.safetensors has another type, shape or place"),
        (lambda r: r["tensors"]["a"].update(shape=[6]), "'a' in 20 bytes, which is not its size"),
        (lambda r: r["tensors"]["a"].update(offset=0), "'a' of t.safetensors has another type, shape or place"),
        (lambda r: r["tensors"]["a"].update(sha256="0" * 64), "'a' of t.safetensors has another hash"),
    ],
)
def test_a_record_of_something_else_is_refused(file, change, message):
    path, record = file
    content = json.loads(record.model_dump_json())
    change(content)
    with pytest.raises(CheckpointError, match=message):
        tensor_file.load(path, tensor_file.record_of(content))


@pytest.mark.parametrize("change", [{"format": "splitter.tensors/2"}, {"tensors": {"a": {"dtype": "bfloat16"}}}])
def test_a_record_of_another_form_is_refused(change):
    with pytest.raises(CheckpointError, match="the manifest does not describe a file of tensors"):
        tensor_file.record_of({"tensors": {}} | change)


def test_hidden_bytes_are_refused(file):
    path, record = file
    content = bytearray(path.read_bytes())
    tensor = record.tensors["a"]
    content[tensor.offset + tensor.bytes] = 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="44 bytes of padding in 'a.padding' that are not a few zeros"):
        tensor_file.load(path, record)


def test_no_file_is_one_error(tmp_path, file):
    with pytest.raises(CheckpointError, match=r"none\.safetensors cannot be read"):
        tensor_file.load(tmp_path / "none.safetensors", file[1])
