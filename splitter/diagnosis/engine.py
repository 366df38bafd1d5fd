"""Rules: what the Neural Engine takes, by published limits.

Those marked ``off_engine`` decide which operations `splitter.diagnosis.placement` counts as running there.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..mil.graph import Node, Value
from ..mil.ops.traits import Engine
from .chips import (
    CAPABILITIES,
    CHANNEL_INTERLEAVE,
    DESIGN_RULES,
    MAX_CHANNELS,
    OPERATIONS,
    PITFALLS,
    WORKING_SET,
)
from .load import padded_axes
from .rules import Note, Severity, rule
from .subject import Subject

DTYPE_RULE = "engine-dtype"
ON_ENGINE = "--for ane"
_LAST_AXIS_BYTES = 64  # what the last axis of a buffer is padded to


def _shape(value: Value) -> str:
    return "×".join("?" if extent is None else str(extent) for extent in value.shape) or "scalar"


def _operands(node: Node) -> tuple[Value, ...]:
    return (*node.data, *node.outputs)


@rule(
    DTYPE_RULE,
    Severity.INFO,
    title="arithmetic in another type than half precision",
    why="The engine computes in half precision only; operations in other types run on the GPU or the CPU.",
    fix="Build with --precision fp16 once the half-precision findings are clear.",
    source=CAPABILITIES,
    off_engine=True,
    option=ON_ENGINE,
)
def wide_types(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        read = {value.dtype for value in node.data if value.type and value.type.dtype.is_float}
        given = {value.dtype for value in node.outputs if value.type}
        wide = sorted((read | given) - {"fp16", "bool", "int8", "uint8"})
        if wide:
            yield Note(f"computes in {', '.join(wide)}", node)


@rule(
    "engine-operation",
    Severity.WARNING,
    title="operation without a path on the engine",
    why="The operation is rejected for this family, or nobody has seen it run there.",
    fix="Express it by other operations, compute it on the host, or choose a later family.",
    source=OPERATIONS,
    off_engine=True,
)
def unsupported_operation(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        engine = node.traits.engine
        if engine is None:
            yield Note(f"{node.type} has no path on any family", node)
        elif engine.generation > subject.chip.generation:
            yield Note(f"{node.type} needs the M{engine.generation} or later", node)


@rule(
    "engine-extent",
    Severity.WARNING,
    title="axis longer than the engine takes",
    why="One element beyond the longest extent and the compiler rejects the operation.",
    fix="Fold the long axis into two.",
    source=CAPABILITIES,
    off_engine=True,
    option=ON_ENGINE,
)
def long_axis(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        for value in _operands(node):
            limits = [subject.chip.extent] * len(value.shape)
            if node.record.family == "convolution" and len(limits) > 1:
                limits[1] = MAX_CHANNELS
            if any(extent > limit for extent, limit in zip(value.extents, limits, strict=True)):
                role = "gives" if value in node.outputs else "reads"
                yield Note(f"{role} {_shape(value)}, the limit is {subject.chip.extent}", node)
                break


@rule(
    "engine-rank",
    Severity.WARNING,
    title="more axes than the engine takes",
    why="Tensors have at most five axes; matrix products and linear layers at most four.",
    fix="Reshape it: merge axes, or drop those of extent 1.",
    source=CAPABILITIES,
    off_engine=True,
)
def high_rank(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        limit = (node.traits.engine or Engine(0)).max_rank
        worst = max(_operands(node), key=lambda value: len(value.shape), default=None)
        if worst is not None and len(worst.shape) > limit:
            yield Note(f"{len(worst.shape)} axes ({_shape(worst)}), the limit is {limit}", node)


@rule(
    "engine-kernel",
    Severity.WARNING,
    title="convolution kernel larger than the engine takes",
    why="The compiler rejects half-precision kernels beyond this width or height.",
    fix="Split the kernel, lay its long side along the height, or write it as a sum of shifted products.",
    source=DESIGN_RULES,
    off_engine=True,
)
def large_kernel(subject: Subject) -> Iterator[Note]:
    for node, kernel in _kernels(subject):
        if any(extent > limit for extent, limit in zip(kernel, subject.chip.kernel, strict=True)):
            height, width = subject.chip.kernel
            yield Note(f"kernel {kernel[0]}×{kernel[1]}, the limit is {height}×{width}", node)


@rule(
    "engine-strided-kernel",
    Severity.INFO,
    title="transposed convolution with a kernel beyond the small-kernel limit",
    why="Strided axes of transposed convolutions fall under a smaller limit in the compiler's tables. Nobody has "
    "published a rejection for it: it may be split up instead.",
    fix="Measure it on the device; or compute each phase by a plain convolution.",
    source=OPERATIONS,
)
def strided_kernel(subject: Subject) -> Iterator[Note]:
    for node, kernel in _kernels(subject):
        if node.type != "conv_transpose":
            continue
        strides = _two([int(number) for number in node.numbers("strides")])
        for extent, stride, limit in zip(kernel, strides, subject.chip.strided_kernel, strict=True):
            if stride > 1 and extent > limit:
                yield Note(f"kernel {kernel[0]}×{kernel[1]} with a stride, the limit is {limit}", node)


@rule(
    "engine-volume",
    Severity.WARNING,
    title="three-dimensional convolution",
    why="It is recognised by the compiler's front end and fails in its back end on every family.",
    fix="Fold an axis into the batch or the channels.",
    source=CAPABILITIES,
    off_engine=True,
)
def volume(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        if node.record.family == "convolution" and node.outputs[0].type and len(node.outputs[0].shape) == 5:
            yield Note(f"gives {_shape(node.outputs[0])}", node)


@rule(
    "engine-line",
    Severity.INFO,
    title="one-dimensional convolution",
    why="Convolutions of the engine have four axes. Core ML has to add one, where it can.",
    fix="Write it with a height of 1.",
    source=CAPABILITIES,
    option=ON_ENGINE,
)
def line(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        if node.record.family == "convolution" and node.outputs[0].type and len(node.outputs[0].shape) == 3:
            yield Note(f"gives {_shape(node.outputs[0])}", node)


@rule(
    "engine-padding",
    Severity.WARNING,
    title="padding the engine does not do",
    why="Height and width alone are padded, and by reflection only where there is a texture engine.",
    fix="Pad on the host, or join slices of the tensor to it.",
    source=DESIGN_RULES,
    off_engine=True,
)
def padding(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        rank, axes = padded_axes(node)
        if any(axis < rank - 2 for axis in axes):
            yield Note(f"pads axis {min(axes)} of {rank}", node)
        elif axes and node.text("mode") == "reflect" and not subject.chip.texture_engine:
            yield Note(f"reflects, which needs the M2 or later (this is the {subject.chip.name.upper()})", node)


@rule(
    "engine-argument",
    Severity.WARNING,
    title="position of an extreme along a long axis",
    why="Arg-min and arg-max count positions in half precision, and are rejected where it cannot count so far.",
    fix="Find the extreme in blocks, then among the blocks.",
    source=DESIGN_RULES,
    off_engine=True,
)
def long_argument(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        extents, limit = node.extents("x"), node.traits.engine and node.traits.engine.max_axis
        if limit and extents:
            extent = extents[(node.integers("axis") or [-1])[0]]
            if extent > limit:
                yield Note(f"along {extent} values, the limit is {limit}", node)


@rule(
    "engine-flexible",
    Severity.WARNING,
    title="axis known only when it runs",
    why="The engine's compiler makes one program for one shape. Packages with open axes mostly run elsewhere.",
    fix="Give each input one shape, or list the shapes.",
    source=PITFALLS,
)
def flexible(subject: Subject) -> Iterator[Note]:
    for value in subject.graph.inputs:
        if None in value.shape:
            yield Note(f"input {value.name!r} is {_shape(value)}", output=value.name)


@rule(
    "engine-slice",
    Severity.WARNING,
    title="slice at an offset of the last axis",
    why="On the M1 and M2 such a copy passes through fixed point: magnitudes above 4094 become infinite, silently.",
    fix="Start the slice at 0, slice another axis, or keep the values small.",
    source=PITFALLS,
)
def sliced_width(subject: Subject) -> Iterator[Note]:
    if subject.chip.saturating_slices and not subject.measured:
        for node, offset in offset_slices(subject):
            yield Note(f"starts at {offset}", node)


@rule(
    "engine-working-set",
    Severity.INFO,
    title="operand or constant larger than the memory on the chip",
    why="Beyond 2 MB it is cut into tiles that stream from memory: right, but slower.",
    fix="Nothing, where speed is enough; otherwise smaller segments.",
    source=DESIGN_RULES,
)
def working_set(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        operands = [value for value in (*node.arguments, *node.outputs) if value.type and value.type.dtype.is_float]
        size = max((2 * value.elements for value in operands), default=0)
        if size > WORKING_SET:
            yield Note(f"{size / 1e6:.1f} MB in half precision, {WORKING_SET / 1e6:.1f} MB fit", node)


@rule(
    "engine-channels",
    Severity.INFO,
    title="channels that fill no interleave",
    why="Channels are stored interleaved, by a factor of at most 8; a number that is no multiple of it is padded.",
    fix="Choose a multiple of 8, where the model is yours to choose.",
    source=DESIGN_RULES,
)
def ragged_channels(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        if node.record.family == "convolution" and len(node.outputs[0].shape) > 2:
            channels = node.outputs[0].extents[1]
            if channels % CHANNEL_INTERLEAVE:
                yield Note(f"{channels} channels", node)


@rule(
    "engine-last-axis",
    Severity.INFO,
    title="last axis that is mostly padding",
    why="The last axis of a buffer is padded to 64 bytes: with one half-precision value in it, it takes 32 times as "
    "much memory.",
    fix="Transpose, so that a long axis comes last.",
    source="https://machinelearning.apple.com/research/neural-engine-transformers",
)
def narrow_last_axis(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        for value in node.outputs:
            used = 2 * value.extents[-1] if value.shape else _LAST_AXIS_BYTES
            padded = value.elements // value.extents[-1] * _LAST_AXIS_BYTES if value.shape else 0
            if 2 * used <= _LAST_AXIS_BYTES and padded > WORKING_SET:
                yield Note(f"{_shape(value)} takes {padded / 1e6:.1f} MB", node)


@rule(
    "engine-blocks",
    Severity.WARNING,
    title="integer weights with a scale for each block of inputs",
    why="On the Neural Engine of an iPhone 16 Pro such 8-bit weights gave wrong results, silently (cosine 0.37 to the "
    "reference); on its GPU the same file was right, and so were palettes in groups on the engine.",
    fix="Use a palette in groups of channels, or one scale for each channel; or exclude the Neural Engine.",
    source="https://github.com/apple/coreai-models/issues/279",
)
def blocks_of_inputs(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.weights:
        scale, data = node.value("scale"), node.value("data")
        blocks = () if scale is None else tuple(scale.shape)
        is_plain = node.type.endswith("blockwise_shift_scale") and data is not None and data.producer is None
        if is_plain and sum((extent or 1) > 1 for extent in blocks) > 1:
            yield Note(f"{' × '.join(map(str, blocks))} scales for {_shape(node.outputs[-1])}", node)


def offset_slices(subject: Subject) -> Iterator[tuple[Node, int]]:
    """Slices whose last axis starts elsewhere than at 0, and where."""
    for node in subject.graph.nodes:
        x = node.value("x")
        begin = node.integers("begin")
        if not node.traits.slices or x is None or len(begin) != len(x.shape):
            continue
        open_start = any(node.numbers("begin_mask")[-1:])
        if begin[-1] and not open_start:
            yield node, begin[-1]


def _kernels(subject: Subject) -> Iterator[tuple[Node, tuple[int, int]]]:
    """Convolutions of one or two dimensions, with the height and width of their kernels."""
    for node in subject.graph.nodes:
        weight = node.value("weight")
        if node.record.family == "convolution" and weight is not None and len(weight.shape) in (3, 4):
            yield node, _two(list(weight.extents[2:]))


def _two(extents: list[int]) -> tuple[int, int]:
    """Height and width of what may have only a width, or be left out."""
    height, width = ([1, 1, *extents])[-2:]
    return height, width
