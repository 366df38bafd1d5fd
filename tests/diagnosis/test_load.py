"""What was reported not to load or to crash, and beside each report the cases that it calls sound."""

import os
import shutil

import numpy as np
import pytest
from coremltools.converters.mil.mil.types.type_mapping import np_uint4_dtype

from splitter.diagnosis import Severity, rules
from splitter.errors import PackageError
from splitter.mil.coreml_tools import ct, quiet_and_quick
from splitter.mil.program import load_spec, model_file

from ..mil.harness import TARGETS, types
from .harness import Case, f16, f32, findings, mb, package


def pad(amounts, mode):
    return lambda x: mb.pad(x=x, pad=amounts, mode=mode)


def conv(*weight, **options):
    return lambda x: mb.conv(x=x, weight=f16(*weight), **options)


def convolved(x, w):
    return mb.conv(x=x, weight=w)


def norm(name):
    def build(x):
        per_channel = f16(x.shape[1])
        if name == "batch_norm":
            return mb.batch_norm(x=x, mean=per_channel, variance=per_channel, epsilon=np.float16(1e-3))
        return mb.instance_norm(x=x, epsilon=np.float16(1e-3))

    return build


def integer_linear(x):
    return mb.linear(x=x, weight=np.ones((4, 8), np.int32))


def attention(bias):
    def build(q, k, v):
        scores = mb.matmul(x=q, y=k, transpose_y=True)
        biased = mb.add(x=scores, y=bias)
        return mb.matmul(x=mb.softmax(x=biased, axis=-1), y=v)

    return build


def plain_attention(q, k, v):
    return mb.matmul(x=mb.softmax(x=mb.matmul(x=q, y=k, transpose_y=True), axis=-1), y=v)


def tokens(batch):
    return {name: f16(batch, 2, 7, 4) for name in "qkv"}


def zero_of_sum(x):
    return mb.mul(x=mb.reduce_sum(x=x, axes=[1]), y=np.float16(0))


def scaled_palette(x):
    table = np.arange(16, dtype=np.float16).reshape(1, 1, 1, 1, 16, 1)
    indices = np.zeros((8, 4, 1, 1), np.uint8).astype(np_uint4_dtype)
    palette = mb.constexpr_lut_to_dense(indices=indices, lut=table)
    return mb.conv(x=x, weight=mb.constexpr_blockwise_shift_scale(data=palette, scale=f16(8, 1, 1, 1)))


def palette(x):
    table = np.arange(16, dtype=np.float16).reshape(1, 1, 1, 1, 16, 1)
    indices = np.zeros((8, 4, 1, 1), np.uint8).astype(np_uint4_dtype)
    return mb.conv(x=x, weight=mb.constexpr_lut_to_dense(indices=indices, lut=table))


VOLUME, IMAGE, LINE = {"x": f16(1, 4, 4, 4, 4)}, {"x": f16(1, 4, 8, 8)}, {"x": f16(1, 16, 64)}
CASES = [
    Case("load-padding", pad([1, 1, 1, 1, 1, 1], "reflect"), VOLUME, ["pad"]),
    Case("load-padding", pad([1, 1, 1, 1, 1, 1], "replicate"), VOLUME, ["pad"], chip="m5"),
    Case("load-padding", pad([1, 1, 0, 0], "reflect"), {"x": f16(1, 4, 8)}),
    Case("load-padding", pad([1, 1, 0, 0, 0, 0], "replicate"), IMAGE, ["pad"]),
    Case("load-padding", pad([1, 1, 0, 0, 0, 0], "replicate"), {"x": f32(1, 4, 8, 8)}, ["pad"]),
    Case("load-padding", pad([1, 1, 1, 1], "reflect"), VOLUME),
    Case("load-padding", pad([0, 0, 1, 1, 1, 1], "replicate"), VOLUME),
    Case("load-padding", pad([1, 1, 1, 1, 1, 1], "constant"), VOLUME),
    Case("load-padding-amount", pad([8, 0], "reflect"), IMAGE, ["pad"]),
    Case("load-padding-amount", pad([7, 0], "reflect"), IMAGE),
    Case("load-padding-amount", pad([8, 0], "replicate"), IMAGE),
    Case("load-padding-amount", pad([0, 9], "replicate"), IMAGE, ["pad"]),
    Case("load-padding-amount", pad([9, 0], "constant"), IMAGE),
    Case("load-norm-rank", norm("batch_norm"), VOLUME, ["batch_norm"]),
    Case("load-norm-rank", norm("batch_norm"), IMAGE),
    Case("load-norm-rank", norm("instance_norm"), IMAGE),
    Case("load-integer-linear", integer_linear, {"x": np.ones((2, 8), np.int32)}, ["linear"]),
    Case("load-integer-linear", lambda x: mb.linear(x=x, weight=f16(4, 8)), {"x": f16(2, 8)}),
    Case("load-dilated-groups", conv(2, 8, 3, dilations=[2], groups=2), LINE, ["conv"]),
    Case("load-dilated-groups", conv(2, 8, 3, groups=2), LINE),
    Case("load-dilated-groups", conv(2, 16, 3, dilations=[2]), LINE),
    Case("load-dilated-groups", conv(4, 1, 3, 3, dilations=[2, 2], groups=4), IMAGE),
    Case("load-runtime-weight", convolved, {"x": f16(2, 4, 8, 8), "w": f16(8, 4, 1, 1)}, ["conv"]),
    Case("load-runtime-weight", convolved, {"x": f16(1, 4, 8, 8), "w": f16(8, 4, 1, 1)}),
    Case("load-runtime-weight", conv(8, 4, 1, 1), {"x": f16(64, 4, 8, 8)}),
    Case("load-attention", attention(f16(1, 2, 7, 7)), tokens(10), ["softmax"]),
    Case("load-attention", attention(f16(1, 2, 7, 7)), tokens(9)),
    Case("load-attention", attention(np.float16(0.5)), tokens(10)),
    Case("load-attention", plain_attention, tokens(10)),
    Case("load-zero-product", zero_of_sum, {"x": f16(2, 8)}, ["mul"]),
    Case("load-zero-product", lambda x: mb.mul(x=mb.reduce_sum(x=x, axes=[1]), y=np.float16(2)), {"x": f16(2, 8)}),
    Case("load-zero-product", lambda x: mb.mul(x=x, y=np.float16(0)), {"x": f16(2, 8)}),
    Case("load-scaled-palette", scaled_palette, IMAGE, ["constexpr_blockwise_shift_scale"], target="iOS18"),
    Case("load-scaled-palette", palette, IMAGE, target="iOS18"),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_rule(case, tmp_path):
    case.check(tmp_path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_nothing_but_errors(case):
    assert rules()[case.rule].severity is Severity.ERROR


def edited(path, change):
    """The package after a change of its function, which the builder would not write so."""
    spec = load_spec(path)
    function = spec.mlProgram.functions["main"]
    change(function, function.block_specializations[function.opset], spec.description)
    model_file(path).write_bytes(spec.SerializeToString())
    return path


def with_five_axes(function, body, description):
    """An instance norm's input and result get an axis of one element at their end."""
    for value in (function.inputs[0], body.operations[-1].outputs[0]):
        value.type.tensorType.dimensions.add().constant.size = 1
        value.type.tensorType.rank += 1


def test_an_instance_norm_of_five_axes(tmp_path):
    path = package(norm("instance_norm"), IMAGE, tmp_path)
    assert findings(path, "load-norm-rank") == []
    (found,) = findings(edited(path, with_five_axes), "load-norm-rank")
    assert (found.operation, found.what) == ("instance_norm", "instance_norm of 5 axes")


def test_six_axes(tmp_path):
    path = package(lambda x: mb.relu(x=x), VOLUME, tmp_path)
    assert findings(path, "load-rank") == []
    (found,) = findings(edited(path, with_five_axes), "load-rank")
    assert (found.operation, found.what) == ("relu", "gives 6 axes")


def test_a_function_that_takes_nothing(tmp_path):
    def constant(x):
        return mb.relu(x=mb.const(val=f16(2, 8), name="half"))

    path = package(constant, {"x": f16(2, 8)}, tmp_path)
    assert findings(path, "load-no-input") == []

    def drop(function, body, description):
        unread = [op for op in body.operations if op.type == "identity"]  # which keeps an input that nothing reads
        for operation in unread:
            body.operations.remove(operation)
        del function.inputs[:], description.input[:]

    (found,) = findings(edited(path, drop), "load-no-input")
    assert (found.operation, found.what) == ("", "takes nothing")


def test_a_function_that_computes_nothing(tmp_path):
    path = package(lambda x: mb.relu(x=x), {"x": f16(2, 8)}, tmp_path)
    assert findings(path, "load-empty") == []

    def drop(function, body, description):
        del body.operations[:]
        body.outputs[0] = description.output[0].name = "x"

    (found,) = findings(edited(path, drop), "load-empty")
    assert found.what == "has no operation"


def stateful(width):
    """A package with a state, by the builder alone."""
    state = mb.StateTensorSpec((1, 4, 8, width), dtype=types.fp16)

    @mb.program(input_specs=[mb.TensorSpec((1, 4, 8, width), dtype=types.fp16), state], opset_version=TARGETS["iOS18"])
    def program(x, held):
        return mb.coreml_update_state(state=held, value=mb.add(x=x, y=mb.read_state(input=held)))

    return program


@pytest.mark.parametrize(("width", "finds"), [(270, 1), (256, 0)])
def test_states(width, finds, tmp_path):
    """coremltools#2631: 270 fails, 256 works."""
    with quiet_and_quick():
        model = ct.convert(stateful(width), minimum_deployment_target=TARGETS["iOS18"], skip_model_load=True,
                           pass_pipeline=ct.PassPipeline.EMPTY)  # fmt: skip
    model.save(str(tmp_path / "state.mlpackage"))
    assert len(findings(tmp_path / "state.mlpackage", "load-state")) == finds


def cached(package, cache):
    """A package as the cache of Hugging Face lays it out: each file a link to a blob."""
    snapshot = cache / "models--a--b" / "snapshots" / "0123" / package.name
    blobs = cache / "models--a--b" / "blobs"
    blobs.mkdir(parents=True)
    for number, file in enumerate(sorted(path for path in package.rglob("*") if path.is_file())):
        place = snapshot / file.relative_to(package)
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.move(file, blobs / f"{number:064x}")
        place.symlink_to(os.path.relpath(blobs / f"{number:064x}", place.parent))
    return snapshot


def test_a_package_of_links_is_read_and_told_of(tmp_path):
    (tmp_path / "made").mkdir()
    path = package(lambda x: mb.linear(x=x, weight=f16(64, 64)), {"x": f16(2, 64)}, tmp_path / "made")
    assert findings(path, "load-links") == []
    snapshot = cached(path, tmp_path / "hub")
    (found,) = findings(snapshot, "load-links", run=True, inputs={"x": f16(2, 64)})
    assert found.what.startswith("Data/com.apple.CoreML/")
    assert "cp -RL" in found.fix


def test_links_to_anywhere_else_are_refused(tmp_path):
    (tmp_path / "made").mkdir()
    path = package(lambda x: mb.relu(x=x), {"x": f16(2, 64)}, tmp_path / "made")
    snapshot = cached(path, tmp_path / "hub")
    (model,) = snapshot.rglob("*.mlmodel")
    outside = tmp_path / "hub" / "elsewhere"
    shutil.copy(model, outside)
    model.unlink()
    model.symlink_to(outside)
    with pytest.raises(PackageError, match="lies outside the package"):
        findings(snapshot, "load-links")
