"""Packages: five sound ones, changes of their programs, and what reads them."""

import numpy as np

from splitter.mil import load
from splitter.mil.coreml_tools import ct, quiet_and_quick
from splitter.mil.ops import registered
from splitter.mil.types import DTYPES, TensorType

from ..mil.harness import TARGETS, mb, package, types
from .mutations import damaged

MODEL, WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"
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
        tensor.bytes.values = damaged(tensor.bytes.values, generator)
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


# ---------------------------------------------------------------------------------------- reading


def inputs_of(model):
    """Arrays of the declared types, as far as they can be had."""
    given = {}
    for one in model.function.inputs:
        if isinstance(one.type, TensorType):
            shape = [min(2 if extent is None else extent, 1 << 12) for extent in one.type.shape]
            values = np.random.default_rng(0).uniform(-3, 3, shape if np.prod(shape) < 1 << 20 else ())
            given[one.name] = values.astype(np.float32 if one.type.dtype.is_float else np.int32)
    return given


def mutated(path, generator):
    """Change the package at ``path``: in its structure, or in the bytes of one of its files."""
    if generator.random() < 0.6:
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
        file.write_bytes(damaged(file.read_bytes(), generator))


def read(path):
    """Load it and predict twice."""
    model = load(path, max_iterations=1000)
    state = model.make_state() if model.spec.states else None
    for _ in range(2):
        model.predict(inputs_of(model), state)
