import numpy as np
import pytest

from splitter import boundary
from splitter.boundary import TensorSpec
from splitter.errors import BoundaryError

SPEC = TensorSpec(name="freq", shape=(2, 3), dtype="float32", producer="a", consumers=("b",))


def test_bytes_follow_from_shape_and_dtype():
    assert SPEC.bytes == 24
    assert SPEC.with_dtype("float16").bytes == 12
    assert TensorSpec.model_validate_json(SPEC.model_dump_json()) == SPEC
    with pytest.raises(ValueError, match="24 bytes, not 25"):
        TensorSpec(**{**SPEC.model_dump(), "bytes": 25})


def test_fitting_array_passes():
    boundary.check(SPEC, np.ones((2, 3), np.float32), at="here")


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((3, 2), np.float32), r"'freq' leaving a has shape \(2, 3\); got \(3, 2\)"),
        (np.ones((2, 3), np.float64), "dtype float32; got float64"),
        (np.array([[1, 2, np.nan], [4, np.inf, 6]], np.float32), r"2 of 6 values not finite, the first at \(0, 2\)"),
    ],
)
def test_broken_contracts_are_named(array, message):
    with pytest.raises(BoundaryError, match=message):
        boundary.check(SPEC, array, at="leaving a")


def test_sum_that_overflows_by_itself_is_no_infinity():
    large = np.full(16, 3e38, np.float32)
    assert boundary.is_finite(large)
    large[7] = -np.inf
    assert not boundary.is_finite(large)


def test_opposite_infinities_are_seen():
    assert not boundary.is_finite(np.array([np.inf, -np.inf], np.float32))
    assert not boundary.is_finite(np.array([1 + 1j * np.nan], np.complex64))
    assert boundary.is_finite(np.array([1, 2]))
