"""Labels against content."""

import numpy as np
import pytest

from splitter.diagnosis.requested import _precision

from .harness import f16, f32, findings, labelled, mb, package

PRECISION, TARGET, BOUNDARY, COMPRESSION = (
    f"requested-{what}" for what in ("precision", "target", "boundary", "compression")
)


def relu(x):
    return mb.relu(x=x)


def mixed(x):
    return mb.cast(x=mb.relu(x=mb.cast(x=mb.relu(x=x), dtype="fp16")), dtype="fp32")


def inside(x):
    return mb.relu(x=mb.cast(x=mb.cast(x=mb.relu(x=x), dtype="fp16"), dtype="fp32"))


def half(x):
    return mb.cast(x=mb.relu(x=mb.cast(x=x, dtype="fp16")), dtype="fp32")


def dequantised(x):
    weight = mb.constexpr_affine_dequantize(
        quantized_data=np.ones((4, 8), np.int8), zero_point=np.int8(0), scale=np.float16(1), axis=0
    )
    return mb.linear(x=x, weight=weight)


@pytest.mark.parametrize(
    ("text", "precision"),
    [
        ("fp32", "fp32"), ("Float16", "fp16"), ("FLOAT32", "fp32"), ("mixed", "mixed"), ("mixed_fp16_fp32", "mixed"),
        ("fp16 with fp32 islands", "mixed"), ("Mixed precision", "mixed"), ("half-precision weights", "fp16"),
        ("", ""), ("a mixed bag of songs", ""), ("music in 32 parts", ""), ("high", ""), ("mfp32x", ""),
    ],
)  # fmt: skip
def test_what_a_text_says(text, precision):
    assert _precision(text) == precision


@pytest.mark.parametrize(
    ("build", "label", "found"),
    [
        (half, "mixed_fp16_fp32", True),
        (half, "fp32", True),
        (half, "float16", False),
        (half, "high", False),
        (mixed, "mixed precision", False),
        (mixed, "fp16", True),
        (relu, "fp32", False),
        (relu, "mixed precision", True),
    ],
)
@pytest.mark.parametrize("place", ["key", "description"])
def test_precision(build, label, found, place, tmp_path):
    path = package(build, {"x": f32(1, 8)}, tmp_path)
    words = {"com__example__compute_precision": label} if place == "key" else {"description": f"Demucs, {label} inside"}
    notes = findings(labelled(path, **words), PRECISION)
    assert len(notes) == found
    if found:
        assert repr(label) in notes[0].what if place == "key" else label in notes[0].what


def test_the_converters_own_keys_say_nothing(tmp_path):
    path = labelled(package(half, {"x": f32(1, 8)}, tmp_path), com__github__apple__coremltools__precision="fp32")
    assert findings(path, PRECISION) == []


@pytest.mark.parametrize(("label", "found"), [("iOS16", 1), ("iOS17", 0), ("speakers", 0)])
def test_target(label, found, tmp_path):
    path = labelled(package(relu, {"x": f32(1, 8)}, tmp_path), com__example__deployment_target=label)
    assert len(findings(path, TARGET)) == found


@pytest.mark.parametrize(("build", "x", "found"), [
    (half, f32(1, 8), ["x", "cast_1"]), (relu, f16(1, 8), []),
])  # fmt: skip
def test_boundary(build, x, found, tmp_path):
    path = labelled(package(build, {"x": x}, tmp_path), com__example__boundary_dtype="fp16")
    assert [one.output for one in findings(path, BOUNDARY)] == found


@pytest.mark.parametrize(("build", "x", "label", "found"), [
    (relu, f16(1, 8), "int8", 1), (relu, f16(1, 8), "none", 0), (dequantised, f16(1, 8), "int8", 0),
])  # fmt: skip
def test_compression(build, x, label, found, tmp_path):
    path = labelled(package(build, {"x": x}, tmp_path), com__example__weight_compression=label)
    assert len(findings(path, COMPRESSION)) == found


@pytest.mark.parametrize(("build", "found"), [(half, ["cast", "cast"]), (inside, [])])
def test_casts_at_the_boundary(build, found, tmp_path):
    path = package(build, {"x": f32(1, 8)}, tmp_path)
    assert [one.operation for one in findings(path, "requested-casts")] == found
