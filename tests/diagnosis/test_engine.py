"""Limits as the ane-guide publishes them, each met exactly and exceeded by one."""

import numpy as np
import pytest

from splitter.diagnosis import examine
from splitter.diagnosis.chips import CHIPS
from splitter.mil import ops
from splitter.mil.program import load_spec, model_file

from .harness import Case, f16, f32, findings, mb, package


def relu(x):
    return mb.relu(x=x)


def conv(*weight, **options):
    return lambda x: mb.conv(x=x, weight=f16(*weight), **options)


def transposed(*weight, **options):
    return lambda x: mb.conv_transpose(x=x, weight=f16(*weight), **options)


def matmul(x):
    return mb.matmul(x=x, y=x, transpose_y=True)


def pad(amounts, mode="constant"):
    return lambda x: mb.pad(x=x, pad=amounts, mode=mode)


def sliced(begin, **options):
    return lambda x: mb.slice_by_index(x=x, begin=begin, end=[4, 4], **options)


def blocks(*scales):
    """8-bit weights 4 × 4, a scale for each output and so many blocks of inputs."""

    def build(x):
        data = np.arange(16, dtype=np.int8).reshape(4, 4, 1, 1)
        scale = np.full((4, *scales), 0.5, np.float16)
        return mb.conv(x=x, weight=mb.constexpr_blockwise_shift_scale(data=data, scale=scale))

    return build


X = {"x": f16(1, 8)}
IMAGE = {"x": f16(1, 4, 32, 32)}
CASES = [
    Case("engine-dtype", relu, {"x": f32(1, 8)}, ["relu"]),
    Case("engine-dtype", lambda x: mb.cast(x=x, dtype="int32"), X, ["cast"]),
    Case("engine-dtype", relu, X),
    Case("engine-blocks", blocks(2, 1, 1), IMAGE, ["constexpr_blockwise_shift_scale"], target="iOS18"),
    Case("engine-blocks", blocks(1, 1, 1), IMAGE, target="iOS18"),
    Case("engine-dtype", lambda x: mb.select(cond=mb.greater(x=x, y=np.float16(0)), a=x, b=x), X),
    Case("engine-operation", lambda x: mb.sin(x=x), X, ["sin"]),
    Case("engine-operation", lambda x: mb.sin(x=x), X, ["sin"], chip="m2"),
    Case("engine-operation", lambda x: mb.sin(x=x), X, chip="m3"),
    Case("engine-operation", lambda x: mb.reduce_prod(x=x), X, ["reduce_prod"], chip="m5"),
    Case("engine-operation", lambda x: mb.reduce_sum(x=x), X),
    Case("engine-extent", relu, {"x": f16(1, 16385)}, ["relu"]),
    Case("engine-extent", relu, {"x": f16(1, 16384)}),
    Case("engine-extent", relu, {"x": f16(1, 16385)}, ["relu"], chip="m3"),
    Case("engine-extent", relu, {"x": f16(1, 65536)}, chip="m4"),
    Case("engine-extent", relu, {"x": f16(1, 65537)}, ["relu"], chip="m5"),
    Case("engine-extent", lambda x: mb.reduce_sum(x=x), {"x": f16(16385, 1)}, ["reduce_sum"]),
    Case("engine-extent", conv(8, 16385, 1, 1), {"x": f16(1, 16385, 1, 1)}),
    Case("engine-extent", conv(8, 4, 1, 1), {"x": f16(1, 4, 16385, 1)}, ["conv"]),
    Case("engine-rank", relu, {"x": f16(1, 1, 1, 2, 4)}),
    Case("engine-rank", matmul, {"x": f16(1, 1, 1, 2, 4)}, ["matmul"]),
    Case("engine-rank", matmul, {"x": f16(1, 1, 2, 4)}),
    Case("engine-kernel", conv(8, 4, 1, 14), IMAGE, ["conv"]),
    Case("engine-kernel", conv(8, 4, 29, 13), IMAGE),
    Case("engine-kernel", conv(8, 4, 30, 1), IMAGE, ["conv"]),
    Case("engine-kernel", conv(8, 4, 32, 16), IMAGE, chip="m2"),
    Case("engine-kernel", conv(8, 4, 1, 17), IMAGE, ["conv"], chip="m5"),
    Case("engine-kernel", conv(8, 4, 14), {"x": f16(1, 4, 32)}, ["conv"]),
    Case("engine-strided-kernel", transposed(4, 8, 1, 8, strides=[1, 4]), IMAGE, ["conv_transpose"]),
    Case("engine-strided-kernel", transposed(4, 8, 8, 1, strides=[4, 1]), IMAGE),
    Case("engine-strided-kernel", transposed(4, 8, 1, 7, strides=[1, 4]), IMAGE),
    Case("engine-strided-kernel", transposed(4, 8, 1, 8, strides=[1, 1]), IMAGE),
    Case("engine-strided-kernel", transposed(4, 8, 1, 8, strides=[1, 4]), IMAGE, chip="m2"),
    Case("engine-strided-kernel", conv(8, 4, 1, 8, strides=[1, 4]), IMAGE),
    Case("engine-volume", conv(8, 4, 1, 1, 1), {"x": f16(1, 4, 2, 2, 2)}, ["conv"], chip="m5"),
    Case("engine-volume", conv(8, 4, 1, 1), IMAGE),
    Case("engine-line", conv(8, 4, 3), {"x": f16(1, 4, 8)}, ["conv"]),
    Case("engine-line", conv(8, 4, 1, 3), {"x": f16(1, 4, 1, 8)}),
    Case("engine-padding", pad([1, 1], "reflect"), IMAGE, ["pad"]),
    Case("engine-padding", pad([1, 1], "reflect"), IMAGE, chip="m2"),
    Case("engine-padding", pad([1, 1, 0, 0]), IMAGE),
    Case("engine-padding", pad([1, 1, 0, 0, 0, 0], "replicate"), IMAGE, ["pad"], chip="m5"),
    Case("engine-padding", pad([0, 1, 0, 0, 0, 0]), IMAGE, ["pad"], chip="m5"),
    Case("engine-padding", pad([0, 0, 0, 0, 1, 0]), IMAGE),
    Case("engine-argument", lambda x: mb.reduce_argmax(x=x, axis=1), {"x": f16(1, 2049)}, ["reduce_argmax"]),
    Case("engine-argument", lambda x: mb.reduce_argmax(x=x, axis=1), {"x": f16(1, 2048)}),
    Case("engine-argument", lambda x: mb.reduce_argmin(x=x, axis=0), {"x": f16(1, 2049)}),
    Case("engine-slice", sliced([0, 1]), {"x": f16(4, 4)}, ["slice_by_index"]),
    Case("engine-slice", sliced([0, 1]), {"x": f16(4, 4)}, ["slice_by_index"], chip="m2"),
    Case("engine-slice", sliced([1, 0]), {"x": f16(4, 4)}),
    Case("engine-slice", sliced([0, 1], begin_mask=[False, True]), {"x": f16(4, 4)}),
    Case("engine-slice", sliced([0, 1]), {"x": f16(4, 4)}, chip="m3"),
    Case("engine-slice", sliced([0, 1]), {"x": f16(4, 4)}, run=True),
    Case("engine-working-set", relu, {"x": f16(1025, 1024)}, ["relu"]),
    Case("engine-working-set", relu, {"x": f16(1024, 1024)}),
    Case("engine-working-set", lambda x: mb.linear(x=x, weight=f16(1025, 1024)), {"x": f16(1, 1024)}, ["linear"]),
    Case("engine-working-set", lambda x: mb.linear(x=x, weight=f16(1024, 1024)), {"x": f16(1, 1024)}),
    Case("engine-channels", conv(6, 4, 1, 1), IMAGE, ["conv"]),
    Case("engine-channels", conv(10, 4, 1, 1), IMAGE, ["conv"]),
    Case("engine-channels", conv(16, 4, 1, 1), IMAGE),
    Case("engine-last-axis", relu, {"x": f16(1, 33000, 1)}, ["relu"]),
    Case("engine-last-axis", relu, {"x": f16(1, 32000, 1)}),
    Case("engine-last-axis", relu, {"x": f16(1, 33000, 17)}),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_rule(case, tmp_path):
    case.check(tmp_path)


def test_open_axes_are_noted(tmp_path, flexible_package):
    (found,) = findings(flexible_package, "engine-flexible")
    assert (found.operation, found.output) == ("", "x")
    assert "1×?" in found.what
    assert findings(package(relu, X, tmp_path), "engine-flexible") == []


def test_six_axes(tmp_path):
    """Core ML Tools refuses to write them; other writers may not."""
    path = package(relu, {"x": f16(1, 1, 1, 2, 4)}, tmp_path)
    spec = load_spec(path)
    function = spec.mlProgram.functions["main"]
    body = function.block_specializations[function.opset]
    for value in (function.inputs[0], body.operations[-1].outputs[0]):
        value.type.tensorType.dimensions.add().constant.size = 1
        value.type.tensorType.rank = 6
    model_file(path).write_bytes(spec.SerializeToString())
    (found,) = findings(path, "engine-rank")
    assert (found.operation, found.what) == ("relu", "6 axes (1×1×1×2×4×1), the limit is 5")


def test_every_operation_is_placed():
    """By Appendix A of the guide; what it calls rejected everywhere is spelt out here."""
    nowhere = """
    acos asin atanh cosh sinh tan mod logical_and logical_or logical_xor reduce_prod scatter scatter_along_axis
    scatter_nd one_hot non_zero band_part reverse_sequence shape sliding_windows gru lstm rnn random_bernoulli
    random_categorical random_normal range_1d list_gather list_length list_read list_scatter list_write make_list
    non_maximum_suppression cond while_loop classify
    """
    executed = {name for name in ops.registered() if not name.startswith("constexpr")}
    assert {name for name in executed if ops.record(name, ops.OPSETS[-1]).traits.engine is None} == set(nowhere.split())


def test_later_chips_take_no_less(tmp_path):
    path = package(lambda x: mb.sin(x=mb.pad(x=x, pad=[1, 1], mode="reflect")), IMAGE, tmp_path)
    shares = [examine(path, chip=chip, run=False).diagnoses[0].placement.operations_on_engine for chip in CHIPS]
    assert shares == [0, 1, 2, 2, 2]
