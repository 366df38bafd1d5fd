"""Damaged and hostile packages: whatever is read is executed or refused by name, in bounded time and memory.

``python -m tests.mil.test_fuzz SEED COUNT [DIRECTORY]`` runs more of it, on the packages of a directory if one is named.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path

import numpy as np
import pytest

from splitter.errors import SplitterError
from splitter.mil import load, tiling
from splitter.mil.coreml_tools import ct, quiet_and_quick
from splitter.mil.ops import registered
from splitter.mil.types import DTYPES, TensorType

from .harness import TARGETS, mb, package, types

ROOT = Path(__file__).parents[2]
MODEL, WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"
SECONDS = 20  # a case that takes longer hangs
BYTES = 2 << 30  # a case that takes more has no bound
ODD_NUMBERS = (0, 1, -1, 2, 3, 7, 32, 255, 65_535, -(1 << 31), (1 << 31) - 1)
ODD_EXTENTS = (0, 1, 2, 3, 7, 33, 1 << 20, 1 << 33, (1 << 64) - 1, None)


# -------------------------------------------------------------------------------------- packages


def arrays(*shapes):
    generator = np.random.default_rng(0)
    return [generator.standard_normal(shape).astype(np.float32) for shape in shapes]


def convolutional(x):
    kernel, bias, scale, matrix = arrays((8, 4, 3, 3), (8,), (8,), (5, 8))
    x = mb.conv(x=x, weight=kernel, bias=bias, pad_type="same", strides=[1, 2], groups=1)
    x = mb.batch_norm(x=x, mean=bias, variance=np.abs(scale), gamma=scale, beta=bias)
    x = mb.max_pool(x=mb.relu(x=x), kernel_sizes=[2, 2], strides=[2, 2], pad_type="custom", pad=[1, 1, 0, 0])
    x = mb.pad(x=mb.cast(x=x, dtype="fp16"), pad=[0, 0, 1, 1], mode="reflect")
    x = mb.reduce_mean(x=mb.cast(x=x, dtype="fp32"), axes=[2, 3], keep_dims=False)
    return mb.softmax(x=mb.linear(x=x, weight=matrix), axis=-1)


def tiled(x):
    """Every kind of run that is taken some rows at a time, of sizes that `main` makes worth it."""
    square, point, tall, keys = arrays((4, 4, 3, 3), (8, 4, 1, 1), (8, 4, 4, 1), (1, 5, 6))
    x = mb.sigmoid(x=mb.conv(x=x, weight=square, pad_type="custom", pad=[1, 1, 1, 1], dilations=[1, 1]))
    value, gate = mb.split(x=mb.conv(x=x, weight=point, strides=[1, 1]), num_splits=2, axis=1)
    x = mb.mul(x=value, y=mb.sigmoid(x=gate))
    x = mb.conv_transpose(x=x, weight=tall.transpose(1, 0, 2, 3), strides=[2, 1], output_shape=[1, 8, 20, 6])
    x = mb.reshape(x=mb.gelu(x=x), shape=[8, 20, 6])
    x = mb.sub(x=x, y=mb.reduce_mean(x=mb.square(x=x), axes=[1, 2], keep_dims=True))
    weights = mb.softmax(x=mb.matmul(x=x, y=mb.relu(x=keys), transpose_y=True), axis=-1)
    x = mb.matmul(x=weights, y=mb.tile(x=mb.slice_by_index(x=x, begin=[0, 0, 0], end=[1, 5, 6]), reps=[1, 1, 1]))
    keys = mb.slice_by_index(x=x, begin=[0, 0, 0], end=[8, 7, 6])
    return mb.matmul(x=mb.softmax(x=mb.matmul(x=x, y=keys, transpose_y=True), axis=-1), y=keys)


def controlled(x, n):
    n = mb.squeeze(x=n, axes=[0])

    def more(i, total, ls):
        return mb.less(x=i, y=n)

    def body(i, total, ls):
        total = mb.cond(
            pred=mb.equal(x=mb.mod(x=i, y=2), y=0),
            _true_fn=lambda: mb.add(x=total, y=x),
            _false_fn=lambda: mb.sub(x=total, y=1.0),
        )
        return mb.add(x=i, y=1), total, mb.list_write(ls=ls, index=i, value=total)

    start = mb.make_list(init_length=4, elem_shape=[6], dtype="fp32", dynamic_length=True)
    _, total, ls = mb.while_loop(_cond=more, _body=body, loop_vars=(0, mb.identity(x=x), start))
    first, second = mb.split(x=mb.gather(x=total, indices=[5, 1, 0, 3]), axis=0, num_splits=2)
    read = mb.list_gather(ls=ls, indices=[0, 2])
    best, _ = mb.topk(x=read, k=2, axis=1)
    return mb.concat(values=[first, second, mb.reshape(x=best, shape=[-1])], axis=0)


def compressed(x):
    indices = np.arange(64, dtype=np.uint8).reshape(8, 8) % 4
    weight = mb.constexpr_lut_to_dense(indices=indices.astype(types.np_uint2_dtype), lut=arrays((1, 1, 4, 1))[0])
    scaled = mb.constexpr_blockwise_shift_scale(
        data=np.arange(-32, 32, dtype=np.int8).reshape(8, 8), scale=arrays((8, 2))[0], offset=np.ones((8, 2), np.int8)
    )
    x = mb.linear(x=x, weight=scaled, bias=arrays((8,))[0])
    x = mb.dequantize(input=mb.quantize(input=x, scale=0.1, zero_point=np.int8(3), output_dtype="int8"), scale=0.1)
    return mb.matmul(x=mb.layer_norm(x=x, axes=[1]), y=weight, transpose_y=True)


def stateful(directory):
    @mb.program(
        input_specs=[mb.TensorSpec((2, 4)), mb.StateTensorSpec((2, 4), dtype=types.fp16)],
        opset_version=TARGETS["iOS18"],
    )
    def program(x, cache):
        held = mb.cast(x=mb.read_state(input=cache), dtype="fp32")
        x = mb.slice_update(x=held, update=mb.slice_by_index(x=x, begin=[0, 1], end=[2, 3]), begin=[0, 0], end=[2, 2])
        x = mb.coreml_update_state(state=cache, value=mb.cast(x=x, dtype="fp16"))
        x = mb.transpose(x=mb.cast(x=x, dtype="fp32"), perm=[1, 0])
        x = mb.scatter(data=mb.tile(x=x, reps=[1, 2]), indices=[3, 0], updates=arrays((2, 4))[0], axis=0)
        return mb.cumsum(x=mb.expand_dims(x=x, axes=[0]), axis=1, reverse=True)

    with quiet_and_quick():
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=TARGETS["iOS18"],
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
    model.save(str(directory / "op.mlpackage"))


def build(directory):
    """Five sound packages, each in a directory of its own."""
    (image, single), (vector, rows) = arrays((2, 4, 9, 10), (1, 4, 9, 6)), arrays((6,), (3, 8))
    for name in ("convolutional", "tiled", "controlled", "compressed", "stateful"):
        (directory / name).mkdir()
    package(tiled, {"x": single}, directory / "tiled")
    package(convolutional, {"x": image}, directory / "convolutional")
    package(controlled, {"x": vector, "n": np.array([3], np.int32)}, directory / "controlled", "iOS16")
    package(compressed, {"x": rows}, directory / "compressed", "iOS18")
    stateful(directory / "stateful")


# -------------------------------------------------------------------------------------- mutations


def damaged(raw, other, generator):
    """Bytes flipped, cut off, repeated, taken from elsewhere."""
    raw = bytearray(raw)
    for _ in range(generator.choice([1, 1, 2, 5, 50])):
        at = generator.randrange(len(raw) + 1)
        size = generator.choice([1, 2, 4, 8, 64])
        match generator.randrange(6):
            case 0 if at < len(raw):
                raw[at] ^= 1 << generator.randrange(8)
            case 1:
                del raw[at:]
            case 2:
                raw[at : at + size] = generator.randbytes(size)
            case 3:
                raw[at : at + size] = generator.choice([b"\x00", b"\xff", b"\x7f", b"\x80"]) * size
            case 4:
                raw[at:at] = raw[at : at + size]
            case 5:
                start = generator.randrange(len(other) + 1)
                raw[at : at + size] = other[start : start + size]
    return bytes(raw)


def blocks_of(block):
    yield block
    for operation in block.operations:
        for inner in operation.blocks:
            yield from blocks_of(inner)


def structured(spec, generator):  # noqa: PLR0915 - one arm for each kind of change
    """One change that leaves a parseable model."""
    functions = list(spec.mlProgram.functions.values())
    blocks = [one for f in functions for body in f.block_specializations.values() for one in blocks_of(body)]
    operations = [one for block in blocks for one in block.operations]
    names = [output.name for one in operations for output in one.outputs] + ["nowhere"]
    parameters = [(one, key) for one in operations for key in one.inputs]
    values = [value for one in operations for key, value in one.attributes.items() if key != "name"]
    values += [
        b.value for one, key in parameters for b in one.inputs[key].arguments if b.WhichOneof("binding") == "value"
    ]
    kinds = [output.type for one in operations for output in one.outputs] + [value.type for value in values]
    kinds += [one.type for owner in (*functions, *blocks) for one in owner.inputs]
    operation, block, name = (generator.choice(one) for one in (operations, blocks, names))
    owner, key = generator.choice(parameters)
    donor, taken = generator.choice(parameters)

    match generator.randrange(16):
        case 0:
            owner.inputs[key].arguments[:] = [ct.proto.MIL_pb2.Argument.Binding(name=name)]
        case 1:
            owner.inputs[taken].CopyFrom(owner.inputs[key])
            del owner.inputs[key]
        case 2:
            del owner.inputs[key]
        case 3:
            owner.inputs[key].arguments.extend(list(owner.inputs[key].arguments))
        case 4:
            owner.inputs[generator.choice([key, taken])].CopyFrom(donor.inputs[taken])
        case 5 | 6:
            retyped(generator.choice(kinds), generator.choice(kinds), generator)
        case 7:
            del block.operations[generator.randrange(len(block.operations) + 1) :][: generator.choice([1, 99])]
        case 8:
            block.operations.insert(generator.randrange(len(block.operations) + 1), generator.choice(operations))
        case 9:
            shuffled = list(block.operations)
            generator.shuffle(shuffled)
            del block.operations[:]
            block.operations.extend(shuffled)
        case 10:
            operation.type = generator.choice([donor.type, generator.choice(list(registered())), "no_such_operation"])
        case 11 | 12:
            revalued(generator.choice(values), generator.choice(values), generator)
        case 13:
            outputs = generator.choice([block.outputs, operation.blocks, operation.outputs])
            if outputs is block.outputs:
                outputs[:] = generator.choice([[], [name], [*outputs, name], [*outputs, *outputs], [*outputs][::-1]])
            elif outputs:
                generator.choice([outputs.pop, lambda: outputs.append(outputs[0])])()
        case 14:
            function = generator.choice(functions)
            function.opset = generator.choice(["CoreML5", "CoreML8", "CoreML99", ""])
            function.block_specializations[function.opset].CopyFrom(block)
        case 15:
            feature = generator.choice([*spec.description.input, *spec.description.output])
            redescribed(feature, name, generator)


def retyped(kind, donor, generator):
    if kind.WhichOneof("type") != "tensorType" or generator.random() < 0.1:
        kind.CopyFrom(donor)
        return
    tensor = kind.tensorType
    match generator.randrange(4):
        case 0:
            tensor.dataType = generator.choice(list(DTYPES))
        case 1 if tensor.dimensions:
            size = generator.choice(ODD_EXTENTS)
            dimension = generator.choice(tensor.dimensions)
            if size is None:
                dimension.unknown.variadic = False
            else:
                dimension.constant.size = size
        case 2:
            tensor.dimensions.add().constant.size = generator.choice([1, 2])
            tensor.rank += generator.choice([0, 1, 1])
        case _ if tensor.dimensions:
            tensor.dimensions.pop()
            tensor.rank -= 1


def revalued(value, donor, generator):
    if value.WhichOneof("value") == "blobFileValue" and generator.random() < 0.8:
        file = value.blobFileValue
        if generator.random() < 0.7:
            file.offset = generator.choice(
                [0, 1, 63, 64, 128, file.offset + 64, file.offset + 1, 1 << 40, (1 << 64) - 1]
            )
        else:
            file.fileName = generator.choice(["", "@model_path/", "@model_path/../../Manifest.json", "/etc/passwd"])
        return
    tensor = value.immediateValue.tensor if value.immediateValue.WhichOneof("value") == "tensor" else None
    field = tensor.WhichOneof("value") if tensor is not None else None
    if field is None or generator.random() < 0.1:
        value.immediateValue.CopyFrom(donor.immediateValue)
    elif field == "bytes":
        tensor.bytes.values = damaged(tensor.bytes.values, b"\xff" * 8, generator)
    else:
        held = getattr(tensor, field).values
        number = generator.choice(ODD_NUMBERS)
        odd = {
            "strings": generator.choice(["", "fp16", "int4", "custom", "reflect", "x" * 999]),
            "bools": bool(number & 1),
        }
        odd |= {"floats": generator.choice([number, float("inf"), float("nan"), 1e-40])}
        if generator.random() < 0.1:
            held.append(odd.get(field, number))
        elif held:
            held[generator.randrange(len(held))] = odd.get(field, number)


def redescribed(feature, name, generator):
    array = feature.type.multiArrayType
    match generator.randrange(6):
        case 0:
            feature.name = name
        case 1:
            array.dataType = generator.choice([65552, 65568, 131104, 131080, 65600, 0, 7])
        case 2:
            array.shape[:] = generator.choice([[], [0], [-1], [1 << 40], [*array.shape, 1]])
        case 3:
            feature.type.isOptional = True
        case 4:
            feature.type.imageType.width, feature.type.imageType.height = generator.choice(
                [(2, 3), (0, 0), (-1, 1 << 40)]
            )
        case 5:
            feature.type.int64Type.SetInParent()


# ------------------------------------------------------------------------------------------ cases


def inputs_of(model, generator):
    """Arrays of the declared types, as far as they can be had."""
    given = {}
    for one in model.function.inputs:
        if isinstance(one.type, TensorType):
            shape = [min(2 if extent is None else extent, 1 << 12) for extent in one.type.shape]
            values = np.random.default_rng(generator.randrange(9)).uniform(
                -3, 3, shape if np.prod(shape) < 1 << 20 else ()
            )
            given[one.name] = values.astype(np.float32 if one.type.dtype.is_float else np.int32)
    return given


def outcome(path, generator):
    """Load and predict twice; only errors that `splitter` raises on purpose are caught."""
    try:
        model = load(path, max_iterations=1000)
        state = model.make_state() if model.spec.states else None
        for _ in range(2):
            model.predict(inputs_of(model, generator), state)
    except SplitterError as error:
        return type(error).__name__
    return "result"


def mutate(path, others, index, generator):
    """Change the package at ``path`` in the way of case ``index``: every other one in its bytes."""
    if index % 2:
        spec = ct.proto.Model_pb2.Model()
        spec.ParseFromString((path / MODEL).read_bytes())
        for _ in range(generator.choice([1, 1, 1, 2, 4])):
            try:
                structured(spec, generator)
            except (IndexError, ValueError, TypeError, AttributeError):  # what it wanted to change is not there
                continue
        (path / MODEL).write_bytes(spec.SerializeToString())
        return
    file = path / generator.choice([MODEL, MODEL, WEIGHTS, WEIGHTS, "Manifest.json"])
    if file.exists():
        other = generator.choice(others) / file.relative_to(path)
        file.write_bytes(damaged(file.read_bytes(), other.read_bytes() if other.exists() else b"", generator))


class Hang(BaseException):
    """No `Exception`, which some handler might take for an operation's own."""


def too_slow(*_):
    raise Hang(f"more than {SECONDS} s")


def main(seed, count, directory=None):
    """Run cases; say how they end, and stop with a traceback at the first that neither works nor is refused."""
    tiling._MIN_ROWS, tiling._MIN_BYTES, tiling._TILE_BYTES = 2, 1, 1 << 9
    with tempfile.TemporaryDirectory() as scratch:
        if directory is None:
            build(Path(scratch))
        sources = sorted(Path(directory or scratch).glob("*/op.mlpackage"))
        ends = {source.parent.name: outcome(source, random.Random(0)) for source in sources}
        assert directory or set(ends.values()) == {"result"}, ends
        limit = address_space() + BYTES
        if sys.platform == "linux":
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        signal.signal(signal.SIGALRM, too_slow)
        ends, failures = {}, 0
        for index in range(count):
            generator = random.Random(f"{seed} {index}")
            source = sources[(index // 2) % len(sources)]
            path = Path(scratch) / "case.mlpackage"
            shutil.rmtree(path, ignore_errors=True)
            shutil.copytree(source, path)
            mutate(path, sources, index, generator)
            print(f"case {seed} {index} of {source.parent.name}", end="\r", flush=True)  # noqa: T201 - what a crash would leave
            signal.alarm(SECONDS)
            try:
                end = outcome(path, generator)
            except BaseException:
                failures += 1
                print(f"\ncase {seed} {index} of {source.parent.name}")  # noqa: T201
                traceback.print_exc(file=sys.stdout)
                end = "failure"
            finally:
                signal.alarm(0)
            ends[end] = ends.get(end, 0) + 1
        print("\n" + " ".join(f"{end}={many}" for end, many in sorted(ends.items())))  # noqa: T201
        return int(failures > 0)


def address_space():
    if sys.platform != "linux":
        return 0
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.slow
def test_every_damaged_package_works_or_is_refused_by_name():
    """In a process of its own, whose memory is limited and which may crash."""
    command = [sys.executable, "-m", "tests.mil.test_fuzz", "0", "600"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    child = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=250, check=False)
    said = child.stdout.replace("\r", "\n").splitlines()
    assert child.returncode == 0, "\n".join([*said[-60:], child.stderr[-3000:]])
    ends = dict(one.split("=") for one in said[-1].split())
    assert sum(map(int, ends.values())) == 600
    assert {"result", "PackageError", "OperationError"} <= ends.keys()  # UsageError is too rare to ask for


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2]), *sys.argv[3:]))
