import numpy as np
import pytest
from pydantic import ValidationError

from splitter import boundary
from splitter.boundary import Fold, TensorSpec
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
        (np.ones((3, 2), np.float32), r"'freq' leaving a has another shape: expected \(2, 3\), found \(3, 2\)"),
        (np.ones((2, 3), np.float64), "another dtype: expected float32, found float64"),
        (
            np.array([[1, 2, np.nan], [4, np.inf, 6]], np.float32),
            r"is not finite; got NaN or infinity in 2 of 6 values, the first at \(0, 2\)",
        ),
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


def test_long_axis_is_folded_row_after_row():
    spec = TensorSpec(name="wave", shape=(1, 2, 7), dtype="float32", producer="a", consumers=("b",))
    folded = spec.with_fold(Fold(length=7, rows=3, columns=3))
    array = np.arange(14, dtype=np.float32).reshape(1, 2, 7)
    assert folded.packaged_shape == (1, 2, 3, 3)
    assert folded.packaged(array)[0].tolist() == [
        [[0, 1, 2], [3, 4, 5], [6, 0, 0]],
        [[7, 8, 9], [10, 11, 12], [13, 0, 0]],
    ]
    assert np.array_equal(folded.unpackaged(folded.packaged(array)), array)
    assert spec.packaged(array) is array
    assert spec.unpackaged(array) is array
    assert (folded.bytes, folded.with_dtype("float16").fold) == (56, folded.fold)
    assert TensorSpec.model_validate_json(folded.model_dump_json()) == folded


def test_fold_that_does_not_hold_the_axis_is_refused():
    with pytest.raises(ValueError, match="2 rows of 3 do not hold 7"):
        Fold(length=7, rows=2, columns=3)
    with pytest.raises(ValueError, match="freq has the shape .*3.*, and folded as if 4"):
        SPEC.with_fold(Fold(length=4, rows=2, columns=2))


@pytest.mark.parametrize(
    "change", [{"dtype": ""}, {"dtype": "object"}, {"dtype": "(9,)f4"}, {"shape": (2, -3)}, {"shape": ()}]
)
def test_a_spec_of_what_is_no_tensor_is_invalid(change):
    fold = Fold(length=4, rows=2, columns=2)
    with pytest.raises(ValidationError, match="dtype|shape"):
        TensorSpec(**{**SPEC.model_dump(exclude={"bytes"}), "fold": fold, **change})


def test_integers_are_packaged_in_their_type_and_back():
    spec = TensorSpec(name="ids", shape=(3,), dtype="int64", producer="input", consumers=("a",), packaged_dtype="int32")
    ids = np.array([1, -2, 2**31 - 1])
    packaged = spec.packaged(ids)
    assert (packaged.dtype, packaged.tolist(), spec.element) == (np.int32, ids.tolist(), "int32")
    assert spec.unpackaged(packaged).dtype == np.int64
    with pytest.raises(BoundaryError, match=r"'ids' holds integers that packages cannot take.*found 0 to 2147483648"):
        spec.packaged(np.array([0, 2**31, 5]))
    truths = spec.model_copy(update={"dtype": "bool"})
    assert truths.packaged(np.array([True, False, True])).dtype == np.int32
    assert truths.unpackaged(np.array([1, 0, 1], np.int32)).tolist() == [True, False, True]


def test_a_tensor_without_an_axis_has_one_in_packages():
    spec = TensorSpec(name="gain", shape=(), dtype="float32", producer="input", consumers=("a",))
    assert spec.packaged_shape == (1,)
    assert spec.packaged(np.float32(2).reshape(())).shape == (1,)
    assert spec.unpackaged(np.ones(1, np.float32)).shape == ()
