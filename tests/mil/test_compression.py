"""Compressed weights, as Core ML Tools compresses and saves them, decoded by our runtime: bit for bit its own."""

from __future__ import annotations

import math
import re
from functools import cache
from itertools import product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from splitter.errors import OperationError
from splitter.mil import Numerics, RoundingMode, load
from splitter.mil.coreml_tools import ct, quiet_and_quick
from splitter.mil.ops import compression, find
from splitter.mil.program import Ref

from .harness import TARGETS, mb, package, run, types

tools = ct.optimize.coreml
CONFIGS = {
    "palettize": (tools.palettize_weights, tools.OpPalettizerConfig),
    "quantize": (tools.linear_quantize_weights, tools.OpLinearQuantizerConfig),
    "prune": (tools.prune_weights, tools.OpMagnitudePrunerConfig),
}


# ------------------------------------------------------------- Core ML Tools' compression, and back


@cache
def converted(target, half):
    """A model of two weights: a convolution's and a linear layer's."""
    rng = np.random.default_rng(0)
    conv, dense = (rng.standard_normal(shape).astype(np.float32) for shape in ((16, 8, 3, 3), (48, 32)))

    @mb.program(input_specs=[mb.TensorSpec(shape=(1, 8, 2, 2))], opset_version=TARGETS[target])
    def program(x):
        x = mb.reshape(x=mb.conv(x=x, weight=conv, strides=[2, 1], pad_type="same", name="conv"), shape=[1, 32])
        return mb.linear(x=x, weight=dense, name="dense")

    return ct.convert(
        program,
        convert_to="mlprogram",
        minimum_deployment_target=TARGETS[target],
        compute_precision=ct.precision.FLOAT16 if half else ct.precision.FLOAT32,
        skip_model_load=True,
    )


def compressed(model, *stages):
    """The model compressed one way after the other."""
    for place, (how, options) in enumerate(stages):
        compress, config = CONFIGS[how]
        wanted = tools.OptimizationConfig(global_config=config(weight_threshold=0, **options))
        model = compress(model, wanted, joint_compression=place > 0)
    return model


class Decoded:
    """Listens to decoders; remembers what they gave."""

    def __init__(self):
        self.values, self.kinds = {}, []

    def before(self, operation, inputs):
        pass

    def after(self, operation, outputs):
        if operation.type.startswith("constexpr_"):
            self.values |= outputs
            self.kinds.append(operation.type)


def weights(model, values):
    """Weights by the operation that uses them; ``values`` are by the name of what gave them."""
    uses = [(one.name, one.inputs["weight"][0]) for one in model.operations if "weight" in one.inputs]
    return {name: values[source.name] for name, source in uses if isinstance(source, Ref)}


def check(model, tmp_path, kinds=("lut_to_dense",)):
    """Decode with our runtime and with Core ML Tools; compare bits. The program's decoders are those of ``kinds``."""
    model.save(str(tmp_path / "small.mlpackage"))
    tools.decompress_weights(model).save(str(tmp_path / "large.mlpackage"))
    small, large = load(tmp_path / "small.mlpackage"), load(tmp_path / "large.mlpackage")
    x = {"x": np.ones((1, 8, 2, 2), np.float32)}
    decoded = Decoded()
    result = small.predict(x, listener=decoded)
    assert set(decoded.kinds) == {f"constexpr_{kind}" for kind in kinds}
    got = weights(small, decoded.values)
    wanted = weights(large, {one.name: one.attributes["val"] for one in large.operations if one.type == "const"})
    assert len(got) == 2
    for name, weight in wanted.items():
        assert got[name].dtype == weight.dtype
        assert torch.equal(got[name].view(torch.uint8), weight.view(torch.uint8)), name
        assert weight.unique().numel() > 1
    for name, array in large.predict(x).items():
        np.testing.assert_array_equal(result[name], array)


@pytest.fixture(autouse=True)
def _quiet():
    with quiet_and_quick():
        yield


HALVES = pytest.mark.parametrize("half", [False, True], ids=["fp32", "fp16"])


@HALVES
@pytest.mark.parametrize(
    ("target", "bits"),
    [*product(["iOS16"], [1, 2, 4, 6, 8]), ("iOS17", 6), *product(["iOS18"], [1, 2, 3, 4, 6, 8])],
)
def test_one_palette(target, half, bits, tmp_path):
    check(compressed(converted(target, half), ("palettize", {"nbits": bits, "mode": "uniform"})), tmp_path)


@HALVES
@pytest.mark.parametrize(("target", "bits"), [("iOS16", 2), ("iOS17", 4), ("iOS18", 3)])
def test_palette_of_means(target, half, bits, tmp_path):
    check(compressed(converted(target, half), ("palettize", {"nbits": bits})), tmp_path)


@HALVES
@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
def test_palette_of_the_caller(target, half, tmp_path):
    def palette(weight):
        return np.array([-1, -0.3, 0.3, 1], weight.dtype), np.digitize(weight, [-0.6, 0, 0.6]).astype(np.uint8).ravel()

    check(compressed(converted(target, half), ("palettize", {"mode": "custom", "lut_function": palette})), tmp_path)


GROUPS = {"granularity": "per_grouped_channel", "group_size": 4}


@HALVES
@pytest.mark.parametrize(
    ("bits", "options"),
    [
        (1, GROUPS | {"group_size": 2}),
        (2, GROUPS | {"channel_axis": 1}),
        (3, GROUPS | {"group_size": 8}),
        (4, GROUPS),
        (6, GROUPS | {"group_size": 8}),
        (8, GROUPS | {"group_size": 16}),
        (1, {"cluster_dim": 4}),
        (2, {"cluster_dim": 4}),
        (4, {"cluster_dim": 2}),
        (6, {"cluster_dim": 2}),
        (8, {"cluster_dim": 2}),
        (3, GROUPS | {"cluster_dim": 2}),
        (2, GROUPS | {"cluster_dim": 4, "channel_axis": 1}),
    ],
    ids=str,
)
def test_many_palettes_and_vectors(half, bits, options, tmp_path):
    check(compressed(converted("iOS18", half), ("palettize", {"nbits": bits} | options)), tmp_path)


TENSOR, CHANNEL, BLOCKS = ({"granularity": f"per_{what}"} for what in ("tensor", "channel", "block"))


@HALVES
@pytest.mark.parametrize("mode", ["linear", "linear_symmetric"])
@pytest.mark.parametrize(
    ("target", "dtype", "options"),
    [
        *product(["iOS16"], ["int8", "uint8"], [TENSOR, CHANNEL]),
        ("iOS17", "int8", CHANNEL),
        *product(["iOS18"], ["int4", "uint4", "int8", "uint8"], [TENSOR, CHANNEL, BLOCKS | {"block_size": 4}]),
    ],
    ids=str,
)
def test_quantized(target, half, dtype, mode, options, tmp_path):
    model = compressed(converted(target, half), ("quantize", {"dtype": dtype, "mode": mode} | options))
    check(model, tmp_path, ["blockwise_shift_scale" if target == "iOS18" else "affine_dequantize"])


@HALVES
@pytest.mark.parametrize("blocks", [(2, 4), (0, 4), (8, 0), (8, 8)])
def test_blocks_over_two_axes(half, blocks, tmp_path):
    options = {"dtype": "int4", "mode": "linear"} | BLOCKS
    each = {"conv": (*blocks, 3, 0), "linear": blocks}
    configs = {
        kind: tools.OpLinearQuantizerConfig(weight_threshold=0, block_size=size, **options)
        for kind, size in each.items()
    }
    model = tools.linear_quantize_weights(converted("iOS18", half), tools.OptimizationConfig(op_type_configs=configs))
    check(model, tmp_path, ["blockwise_shift_scale"])


@HALVES
@pytest.mark.parametrize(
    ("target", "options"),
    [
        *product(["iOS16", "iOS17", "iOS18"], [{"target_sparsity": 0.3}]),
        ("iOS18", {"target_sparsity": 0.9}),
        ("iOS16", {"target_sparsity": 0.5, "block_size": 2, "dim": 0}),
        ("iOS18", {"n_m_ratio": (3, 4), "dim": 1}),
    ],
    ids=str,
)
def test_pruned(target, half, options, tmp_path):
    check(compressed(converted(target, half), ("prune", options)), tmp_path, ["sparse_to_dense"])


PRUNE = ("prune", {"target_sparsity": 0.25})


def palettize(bits=4, **options):
    return "palettize", {"nbits": bits, "mode": "uniform"} | options


def quantize(dtype="int8", mode="linear", **options):
    return "quantize", {"dtype": dtype, "mode": mode} | options


SMALL_PALETTE = ["blockwise_shift_scale", "lut_to_dense"]
SPARSE_PALETTE, SPARSE_SCALES = (
    ["lut_to_sparse", "sparse_to_dense"],
    ["sparse_blockwise_shift_scale", "sparse_to_dense"],
)
VECTORS = palettize(mode="kmeans", cluster_dim=2)
JOINT = {
    "palette, scales": (SMALL_PALETTE, palettize(enable_per_channel_scale=True)),
    "sparse, palette": (SPARSE_PALETTE, PRUNE, palettize()),
    "sparse, palette of 1 bit": (SPARSE_PALETTE, PRUNE, palettize(1)),
    "sparse, palette of 8 bits": (SPARSE_PALETTE, PRUNE, palettize(8)),
    "sparse, palettes": (SPARSE_PALETTE, PRUNE, palettize(**GROUPS)),
    "palette, sparse": (SPARSE_PALETTE, palettize(), PRUNE),
    "sparse, int8": (SPARSE_SCALES, PRUNE, quantize()),
    "sparse, int8 symmetric": (SPARSE_SCALES, PRUNE, quantize(mode="linear_symmetric")),
    "sparse, uint8 of a tensor": (SPARSE_SCALES, PRUNE, quantize("uint8", **TENSOR)),
    "sparse, int4": (SPARSE_SCALES, PRUNE, quantize("int4")),
    "sparse, uint4 in blocks": (SPARSE_SCALES, PRUNE, quantize("uint4", **BLOCKS, block_size=8)),
    "int8, sparse": (SPARSE_SCALES, quantize(), PRUNE),
    "palette of int8": (SMALL_PALETTE, palettize(), quantize(**TENSOR)),
    "palette of int8 symmetric": (SMALL_PALETTE, palettize(6), quantize(mode="linear_symmetric", **TENSOR)),
    "palette of uint8": (SMALL_PALETTE, palettize(), quantize("uint8", **TENSOR)),
    "palette of int4": (SMALL_PALETTE, palettize(), quantize("int4", **TENSOR)),
    "palettes of int8": (SMALL_PALETTE, palettize(**GROUPS), quantize(**TENSOR)),
    "palettes of vectors of int8": (SMALL_PALETTE, VECTORS, quantize(**TENSOR)),
    "palette of int8, scales": (SMALL_PALETTE, palettize(enable_per_channel_scale=True), quantize(**TENSOR)),
    "int8, palette": (SMALL_PALETTE, quantize(), palettize()),
    "sparse, palette of int8": ([*SPARSE_PALETTE, "blockwise_shift_scale"], PRUNE, palettize(), quantize(**TENSOR)),
}


@HALVES
@pytest.mark.parametrize("kind", JOINT)
def test_joint(half, kind, tmp_path):
    decoders, *stages = JOINT[kind]
    check(compressed(converted("iOS18", half), *stages), tmp_path, decoders)


# --------------------------------------------------------------------- documented examples, by hand

X = {"x": np.zeros(1, np.float32)}


def decode(build, target="iOS18", **options):
    """What ``build()`` decodes, from a saved package, as float32."""
    (value,) = run(lambda x: mb.add(x=mb.cast(x=build(), dtype="fp32"), y=x), X, target, **options)
    return value


def sub_byte(values, kind):
    return mb.const(val=np.array(values).astype(types.nptype_from_builtin(types.string_to_builtin(kind))))


def test_grouped_palette_of_the_documentation():
    lut = np.float16([1, 5, 9, 13, 2, 10, 18, 26]).reshape(2, 1, 4, 1)
    indices = np.array([2, 3, 3, 0, 1, 0, 3, 0, 2, 1, 0, 3]).reshape(6, 2)
    got = decode(lambda: mb.constexpr_lut_to_dense(indices=sub_byte(indices, "uint2"), lut=lut))
    np.testing.assert_array_equal(got, [[9, 13], [13, 1], [5, 1], [26, 2], [18, 10], [2, 26]])


@pytest.mark.parametrize(
    ("axis", "wanted"),
    [
        (1, [[[1, 1], [2, 2], [3, 3], [4, 1], [5, 2], [6, 3]], [[4, 4], [5, 5], [6, 6], [1, 1], [2, 2], [3, 3]]]),
        (-1, [[[1, 2, 3, 1, 2, 3], [4, 5, 6, 1, 2, 3]], [[4, 5, 6, 4, 5, 6], [1, 2, 3, 1, 2, 3]]]),
    ],
)
def test_vector_palette_of_the_documentation(axis, wanted):
    indices = np.array([[[0, 0], [1, 0]], [[1, 1], [0, 0]]])
    lut = np.int8([1, 2, 3, 4, 5, 6]).reshape(1, 1, 1, 2, 3)
    got = decode(lambda: mb.constexpr_lut_to_dense(indices=sub_byte(indices, "uint1"), lut=lut, vector_axis=axis))
    np.testing.assert_array_equal(got, wanted)


MASK = np.array([[1, 1, 0, 0, 0, 0], [1, 1, 0, 0, 0, 1], [0, 1, 1, 0, 1, 0], [0, 0, 0, 1, 0, 0]])
SCALAR = np.array([[2, 3, 0, 0, 0, 0], [3, 2, 0, 0, 0, 3], [0, 3, 2, 0, 2, 0], [0, 0, 0, 3, 0, 0]])


@pytest.mark.parametrize("vector", [False, True])
def test_sparse_palette_of_the_documentation(vector):
    def build():
        lut = np.float16([[[[2, 2], [3, 3]]]]) if vector else np.float16([2, 3]).reshape(1, 1, 2, 1)
        mask, data = mb.constexpr_lut_to_sparse(
            indices_mask=sub_byte(MASK, "uint1"),
            indices_nonzero_data=sub_byte([0, 1, 1, 0, 1, 1, 0, 0, 1], "uint1"),
            lut=lut,
            vector_axis=0 if vector else None,
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=data, mask=mask)

    np.testing.assert_array_equal(decode(build), SCALAR.repeat(2, 0) if vector else SCALAR)


def test_sparse_scales_of_the_documentation():
    mask = [[1, 1, 0, 0], [1, 1, 1, 0], [0, 0, 1, 1], [1, 1, 0, 0]]

    def build():
        mask_out, data = mb.constexpr_sparse_blockwise_shift_scale(
            data_mask=sub_byte(mask, "uint1"),
            nonzero_data=np.int8([10, 11, 3, 4, 5, 6, 7, 8, 9]),
            scale=np.float32([[0.1, 0.2, 0.3, 0.4]]),
            offset=np.int8([[1, 2, 3, 4]]),
        )
        return mb.constexpr_sparse_to_dense(nonzero_data=data, mask=mask_out)

    wanted = [[0.9, 1.8, 0, 0], [0.2, 0.4, 0.6, 0], [0, 0, 0.9, 1.2], [0.7, 1.4, 0, 0]]
    np.testing.assert_allclose(decode(build), wanted, rtol=1e-6)


@pytest.mark.parametrize(("kind", "shift"), [("int4", 0), ("uint4", 8)])
def test_blockwise_small_constants(kind, shift):
    data = np.array([4, 0, -8, 7, -6, 0, -3, 0]).reshape(1, 2, 4) + shift
    offset = np.array([4, 0]).reshape(1, 1, 2) + shift
    scale = np.float32([4, 8]).reshape(1, 1, 2)
    got = decode(
        lambda: mb.constexpr_blockwise_shift_scale(
            data=sub_byte(data, kind), scale=scale, offset=sub_byte(offset, kind)
        )
    )
    np.testing.assert_array_equal(got, [[[0, -16, -64, 56], [-40, -16, -24, 0]]])


@pytest.mark.parametrize("target", ["iOS16", "iOS18"])
def test_cast(target):
    value = np.arange(12, dtype=np.float16) / 7
    np.testing.assert_array_equal(
        decode(lambda: mb.constexpr_cast(source_val=value, output_dtype="fp32"), target), value.astype(np.float32)
    )


def test_packed_bits_of_the_documentation():
    """Five two-bit indices 0, 3, 2, 1, 3 in two bytes; five mask bits in one."""
    packed = np.uint8([0b01_10_11_00, 0b11])
    got = decode(
        lambda: mb.constexpr_lut_to_dense(indices=packed, lut=np.float32([5, 6, 7, 8]), shape=np.uint32([5])), "iOS16"
    )
    np.testing.assert_array_equal(got, [5, 8, 7, 6, 8])
    mask, data = np.uint8([0b01100]), np.float16([-3, 4])
    got = decode(lambda: mb.constexpr_sparse_to_dense(nonzero_data=data, mask=mask, shape=np.uint32([5])), "iOS16")
    np.testing.assert_array_equal(got, [0, 0, -3, 4, 0])


@pytest.mark.parametrize("zero_point", [np.uint8(3), np.float32(2.5), np.uint8([1, 2, 3])])
def test_affine(zero_point):
    data, scale = np.arange(24, dtype=np.uint8).reshape(2, 3, 4) * 10, np.float32([0.5, 2, 0.25])
    shaped = zero_point.reshape(-1, 1) if zero_point.ndim else zero_point
    got = decode(
        lambda: mb.constexpr_affine_dequantize(quantized_data=data, zero_point=zero_point, scale=scale, axis=-2),
        "iOS16",
    )
    np.testing.assert_array_equal(got, (data - shaped.astype(np.float32)) * scale[:, None])


def test_values_follow_the_numerics():
    """Asked for float32 throughout, a half-precision scale's product is not rounded to half."""
    data, scale = np.arange(-8, 8, dtype=np.int8) * 15, np.full(1, 1 / 3, np.float16)
    build = lambda: mb.constexpr_blockwise_shift_scale(data=data, scale=scale)  # noqa: E731
    exact = data.astype(np.float32) * scale.astype(np.float32)
    np.testing.assert_array_equal(decode(build, numerics=Numerics(RoundingMode.FP32)), exact)
    np.testing.assert_array_equal(decode(build), exact.astype(np.float16))
    assert (exact != exact.astype(np.float16)).any()


# --------------------------------------------------------------------- quantised activations


@pytest.mark.parametrize("dtype", ["int8", "uint8"])
@pytest.mark.parametrize("half", [False, True])
@pytest.mark.parametrize("vector", [False, True])
@pytest.mark.parametrize("shifted", [False, True])
def test_quantize_and_dequantize(dtype, half, vector, shifted):
    rng = np.random.default_rng(1)
    kind, integer = (np.float16 if half else np.float32), np.dtype(dtype).type
    x = (rng.standard_normal((2, 3, 5)) * 60).astype(kind)
    scale = kind([0.5, 0.03, 1.7]) if vector else kind(0.25)
    point = (integer([3, 100, 7]) if vector else integer(5)) if shifted else None
    options = {"scale": scale, "zero_point": point, "axis": -2 if vector else None}
    if half:  # arguments of a program are float32 or integers
        x = x.astype(np.float32)
        quantize = lambda x: mb.quantize(input=mb.cast(x=x, dtype="fp16"), output_dtype=dtype, **options)  # noqa: E731
    else:
        quantize = lambda x: mb.quantize(input=x, output_dtype=dtype, **options)  # noqa: E731

    def build(x):
        q = quantize(x)
        return mb.cast(x=q, dtype="int32"), mb.cast(x=mb.dequantize(input=q, **options), dtype="fp32")

    q, back = run(build, {"x": x})
    wide = scale.astype(np.float64)[:, None] if vector else np.float64(scale)
    shift = 0 if point is None else (point.astype(np.float64)[:, None] if vector else np.float64(point))
    bounds = np.iinfo(integer)
    wanted = np.clip(np.round(x.astype(np.float64) / wide) + shift, bounds.min, bounds.max)
    np.testing.assert_array_equal(q, wanted)
    np.testing.assert_array_equal(back, (wide * (wanted - shift)).astype(kind).astype(np.float32))
    assert (wanted == bounds.max).any()


def test_quantize_halves_zeros_and_infinities():
    x = torch.tensor([0.5, 1.5, 2.5, -0.5, -1.5, math.inf, -math.inf, 1e30])
    got = compression.quantize(x, torch.tensor(1.0), "int8", torch.tensor(1, dtype=torch.int8))
    assert got.tolist() == [1, 3, 3, 1, -1, 127, -128, 127]
    scale = torch.tensor([0.0, 1.0])
    assert compression.quantize(torch.tensor([0.0, 2.0]), scale, "uint8", axis=0).tolist() == [0, 2]


# ------------------------------------------------------------------------------ properties, errors


@settings(deadline=None, max_examples=60)
@given(bits=st.sampled_from([1, 2, 4, 6, 8]), data=st.data())
def test_packed_palette_is_a_loop_over_bits(bits, data):
    shape = tuple(data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=4)))
    indices = data.draw(hnp.arrays(np.uint8, math.prod(shape), elements=st.integers(0, (1 << bits) - 1)))
    number = sum(int(index) << (bits * place) for place, index in enumerate(indices))
    packed = torch.tensor(list(number.to_bytes(-(-bits * len(indices) // 8), "little")), dtype=torch.uint8)
    lut = torch.arange(1 << bits, dtype=torch.float16) - 7
    got = compression.packed_lut_to_dense(packed, lut, list(shape))
    np.testing.assert_array_equal(got.numpy(), (indices.astype(np.float16) - 7).reshape(shape))


@settings(deadline=None, max_examples=60)
@given(data=st.data())
def test_blocks_and_palettes_are_loops(data):
    blocks = data.draw(st.lists(st.integers(1, 3), min_size=1, max_size=4))
    sizes = data.draw(st.lists(st.integers(1, 3), min_size=len(blocks), max_size=len(blocks)))
    shape = [n * size for n, size in zip(blocks, sizes, strict=True)]
    vector, axis = data.draw(st.integers(1, 3)), data.draw(st.integers(-len(shape), len(shape) - 1))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    codes, scale, offset = rng.integers(0, 8, shape), rng.random(blocks, np.float32), rng.integers(-9, 9, blocks)
    lut = rng.random((*blocks, 8, vector), np.float32)
    wanted, dense = np.empty(shape, np.float32), np.empty(shape, object)
    for place in np.ndindex(*shape):
        block = tuple(i // size for i, size in zip(place, sizes, strict=True))
        wanted[place] = scale[block] * np.float32(codes[place] - offset[block])
        dense[place] = lut[(*block, codes[place])]
    tensors = [torch.from_numpy(one) for one in (codes.astype(np.uint8), scale, offset.astype(np.int8))]
    np.testing.assert_array_equal(compression.constexpr_blockwise_shift_scale(*tensors).numpy(), wanted)
    got = compression.constexpr_lut_to_dense(tensors[0], torch.from_numpy(lut), axis).numpy()
    for place in np.ndindex(*shape):
        window = [slice(i, i + 1) for i in place]
        window[axis] = slice(place[axis] * vector, (place[axis] + 1) * vector)
        np.testing.assert_array_equal(got[tuple(window)].ravel(), dense[place])


BYTE, ONE = torch.zeros(4, dtype=torch.uint8), torch.ones(1)


@pytest.mark.parametrize(
    ("function", "arguments", "said"),
    [
        (compression.packed_lut_to_dense, (BYTE, torch.ones(5), [16]), "a palette has the wrong length: expected 2, 4, 8, 16, 64 or 256 entries"),
        (compression.packed_lut_to_dense, (BYTE, torch.ones(4), [17]), "2-bit values of shape (17,) do not fill their bytes"),
        (compression.packed_lut_to_dense, (BYTE, torch.ones(4), [-4, -4]), "2-bit values of shape (-4, -4) do not fill their bytes"),
        (compression.packed_sparse_to_dense, (ONE, BYTE, [1 << 30, 1 << 30]), "1-bit values of shape (1073741824, 1073741824) do not fill their bytes"),
        (compression.constexpr_sparse_to_dense, (ONE, BYTE), "the data do not fill the places of their mask: expected 0 values"),
        (compression.constexpr_sparse_to_dense, (torch.ones(5), BYTE + 1), "the data do not fill the places of their mask: expected 4 values"),
        (compression.constexpr_blockwise_shift_scale, (BYTE, torch.ones(3)), "scales do not divide the extents (4,) into blocks"),
        (compression.constexpr_blockwise_shift_scale, (BYTE, torch.ones(0)), "scales do not divide the extents (4,) into blocks"),
        (compression.constexpr_blockwise_shift_scale, (BYTE, torch.ones(2, 2)), "scales do not divide the extents (4,) into blocks"),
        (compression.constexpr_blockwise_shift_scale, (BYTE[0], torch.tensor(1.0)), "scales do not divide the extents () into blocks"),
        (compression.constexpr_blockwise_shift_scale, (BYTE, torch.ones(2), torch.ones(4)), "an offset has another shape than its scale: expected (2,)"),
        (compression.constexpr_lut_to_dense, (BYTE, torch.ones(3, 2, 1)), "palettes do not divide the extents (4,) into blocks"),
        (compression.constexpr_lut_to_dense, (BYTE + 2, torch.ones(1, 2, 1)), "an index is out of range: expected 0…1"),
        (compression.constexpr_lut_to_dense, (BYTE, torch.ones(1, 2, 2)), "a palette of vectors does not name the vectors' axis"),
        (compression.constexpr_lut_to_dense, (BYTE, torch.ones(1, 2, 2), 1), "an axis lies outside rank 1"),
        (compression.constexpr_affine_dequantize, (BYTE, BYTE[:2], ONE[0], 0), "a scale or zero point has the wrong length: expected 4 entries"),
        (compression.constexpr_affine_dequantize, (BYTE, BYTE[0], torch.ones(4), 1), "an axis lies outside rank 1"),
        (compression.constexpr_affine_dequantize, (BYTE, BYTE[0], torch.ones(2, 2), 0), "a scale or zero point has the wrong shape: expected a scalar, or a vector with its axis"),
        (compression.constexpr_cast, (ONE, "int8"), "constexpr_cast cannot give this type: expected a floating-point type"),
        (compression.quantize, (ONE, ONE[0], "int4"), "quantize cannot give this type: expected int8 or uint8"),
        (compression.quantize, (ONE, ONE[0] * 0, "int8"), "a scale of quantize is zero"),
        (compression.quantize, (ONE, ONE, "int8"), "a scale or zero point has the wrong shape: expected a scalar, or a vector with its axis"),
    ],
)  # fmt: skip
def test_refuses(function, arguments, said):
    with pytest.raises(OperationError, match=re.escape(said)):
        function(*arguments)


def test_forms_belong_to_their_opsets():
    assert find("constexpr_lut_to_dense", "CoreML5") is None
    assert find("constexpr_lut_to_dense", "CoreML7").function is compression.packed_lut_to_dense
    assert find("constexpr_lut_to_dense", "CoreML8").function is compression.constexpr_lut_to_dense
    assert find("constexpr_affine_dequantize", "CoreML8").function is compression.constexpr_affine_dequantize
    assert find("quantize", "CoreML6") is None


def test_bad_payload_of_a_package_is_a_named_error(tmp_path):
    """A mask that promises more values than there are, in an otherwise sound package."""
    path = package(
        lambda x: mb.add(
            x=x, y=mb.constexpr_sparse_to_dense(nonzero_data=np.float32([1]), mask=sub_byte([0, 1], "uint1"))
        ),
        {"x": np.zeros(2, np.float32)},
        tmp_path,
        "iOS18",
    )
    spec = ct.utils.load_spec(str(path))
    block = spec.mlProgram.functions["main"].block_specializations["CoreML8"]
    sparse = next(one for one in block.operations if one.type == "constexpr_sparse_to_dense")
    value = sparse.inputs["mask"].arguments[0].value.immediateValue.tensor
    assert value.WhichOneof("value") == "bytes"
    value.bytes.values = b"\x03"
    ct.models.utils.save_spec(
        spec, str(tmp_path / "bad.mlpackage"), weights_dir=str(path / "Data/com.apple.CoreML/weights")
    )
    with pytest.raises(
        OperationError, match="constexpr_sparse_to_dense .* do not fill the places of their mask: expected 2 values"
    ):
        load(tmp_path / "bad.mlpackage").predict({"x": np.zeros(2, np.float32)})
