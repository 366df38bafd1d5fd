"""Decoders of compressed matrices, against the bit stream read as one big integer."""

import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
from splitter_kernels import compression
from splitter_kernels.spec import SpecError

from ..conftest import ROOT

SHAPES = [(1, 1), (3, 5), (7, 16), (16, 64)]


def companions(kind, shape, seed=0):
    rng = np.random.default_rng(seed)
    if kind == "int8":
        return {
            "int8": rng.integers(-127, 128, shape, np.int8),
            "scales": rng.standard_normal(shape[0]).astype(np.float32),
        }
    bits = int(kind[3:])
    length = -(-shape[0] * shape[1] * bits // 8)
    table = rng.standard_normal(2**bits).astype(np.float32)
    return {"indices": rng.integers(0, 256, length, np.uint8), "table": table}


def by_hand(kind, shape, tensors):
    """One weight at a time, by the format's text."""
    decoded = np.empty(shape, np.float32)
    stream = int.from_bytes(tensors["indices"].tobytes(), "little") if "indices" in tensors else 0
    for row, column in np.ndindex(shape):
        if kind == "int8":
            decoded[row, column] = np.float32(tensors["int8"][row, column]) * tensors["scales"][row]
        else:
            bits = int(kind[3:])
            index = (stream >> (row * shape[1] + column) * bits) & (2**bits - 1)
            decoded[row, column] = tensors["table"][index]
    return decoded


@pytest.mark.parametrize("kind", compression.KINDS)
@pytest.mark.parametrize("shape", SHAPES)
def test_numpy_and_jax_decode_bit_for_bit(kind, shape):
    tensors = companions(kind, shape)
    expected = by_hand(kind, shape, tensors)
    decoded = compression.decode(kind, shape, tensors)
    jitted = jax.jit(partial(compression.decode, kind, shape, xp=jax.numpy))
    for one in (decoded, np.asarray(jitted(tensors))):
        assert one.dtype == np.float32
        assert one.tobytes() == expected.tobytes()


def test_indices_that_cross_bytes():
    """1, 2, 3, 4 in six bits each: 0b000001, 0b000010, … lie in three bytes, the least significant bits first."""
    table = np.arange(64, dtype=np.float32)
    packed = np.array([0b10_000001, 0b0011_0000, 0b000100_00], np.uint8)
    decoded = compression.decode("pal6", (2, 2), {"indices": packed, "table": table})
    np.testing.assert_array_equal(decoded, [[1, 2], [3, 4]])


@pytest.mark.parametrize("kind", compression.KINDS)
def test_companions_of_another_matrix_are_refused(kind):
    tensors = companions(kind, (3, 5))
    compression.decode(kind, (3, 5), tensors)
    for wrong in (
        lambda: compression.decode(kind, (5, 16), tensors),
        lambda: compression.decode(kind, (3, 5), {next(iter(tensors)): next(iter(tensors.values()))}),
        lambda: compression.decode(kind, (3, 5), {role: one.astype(np.float64) for role, one in tensors.items()}),
    ):
        with pytest.raises(SpecError, match=rf"a {kind} matrix of shape"):
            wrong()


def test_only_palettes_have_indices():
    assert [compression.bits(kind) for kind in ("pal8", "pal6", "pal4")] == [8, 6, 4]
    with pytest.raises(SpecError, match="only palettes"):
        compression.bits("int8")


def test_decoders_need_neither_torch_nor_splitter(tmp_path):
    (tmp_path / "splitter_kernels").symlink_to(ROOT / "kernels" / "splitter_kernels")
    script = "import sys; sys.modules['torch'] = sys.modules['splitter'] = None; import splitter_kernels.compression"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
