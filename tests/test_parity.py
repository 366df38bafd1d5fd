import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from splitter.parity import compare


def test_hand_computed_case():
    parity = compare(np.array([3.0, 4.0]), np.array([3.0, 3.0]))
    assert parity.snr_db == pytest.approx(10 * math.log10(25))
    assert parity.max_abs == 1.0
    assert parity.cosine == pytest.approx(21 / (5 * math.sqrt(18)))
    assert parity.reaches(13.9)
    assert not parity.reaches(14)


@pytest.mark.parametrize("shape", [(100_003,), (3, 7, 11_003), (2, 65_536)])
def test_every_value_of_a_large_tensor_counts_once(shape):
    r = np.random.default_rng(0).standard_normal(shape)
    x = r + np.random.default_rng(1).standard_normal(shape)
    parity = compare(r, x)
    assert parity.snr_db == pytest.approx(10 * math.log10((r**2).sum() / ((r - x) ** 2).sum()), abs=1e-9)
    assert parity.max_abs == np.abs(r - x).max()
    assert parity.cosine == pytest.approx((r * x).sum() / math.sqrt((r**2).sum() * (x**2).sum()), abs=1e-12)


def test_equal_tensors_are_infinitely_near():
    parity = compare(np.ones(3, np.float32), np.ones(3, np.float32))
    assert (parity.snr_db, parity.max_abs, parity.cosine) == (math.inf, 0.0, 1.0)


def test_silence_has_no_decibels():
    silent = np.zeros(3, np.float32)
    for candidate in (silent, np.array([0, 1e-3, 0], np.float32)):
        parity = compare(silent, candidate)
        assert parity.snr_db is None
        assert not parity.reaches(0, negligible=1)
        assert str(parity).startswith("n/a")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("where", ["reference", "candidate", "both"])
def test_what_is_not_finite_passes_nothing(bad, where):
    """In either: a port that gives NaN where the model gives sound is what a comparison is for."""
    sound, broken = np.array([1.0, 2.0]), np.array([1.0, bad])
    parity = compare(sound if where == "candidate" else broken, sound if where == "reference" else broken)
    assert not parity.finite
    assert parity.snr_db is None
    assert not math.isfinite(parity.max_abs)
    assert not parity.reaches(-1000, negligible=math.inf)


def test_negligible_differences_pass_whatever_the_ratio():
    parity = compare(np.array([1e-9]), np.array([-1e-9]))
    assert not parity.reaches(0)
    assert parity.reaches(120, negligible=1e-8)


def test_half_precision_is_measured_in_double():
    reference = np.full(70_000, 100.0, np.float32)
    parity = compare(reference, reference.astype(np.float16) + np.float16(0.0625))
    assert parity.snr_db == pytest.approx(20 * math.log10(100 / 0.0625))


def test_shapes_must_agree():
    with pytest.raises(ValueError, match="one shape"):
        compare(np.zeros(3), np.zeros((1, 3)))


@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=20), st.floats(2**-20, 2**20))
def test_ratios_do_not_depend_on_loudness(values, gain):
    reference = np.array(values)
    candidate = reference + np.linspace(0.5, 1, reference.size)
    first, second = compare(reference, candidate), compare(reference * gain, candidate * gain)
    assert (first.snr_db is None) == (second.snr_db is None)
    if first.snr_db is not None:
        assert second.snr_db == pytest.approx(first.snr_db, abs=1e-6)
