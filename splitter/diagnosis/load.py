"""Rules: what does not load, or crashes, on any chip, as reported against Core ML by those whom it happened to.

None can be confirmed without a Mac. Each names the report; the near cases that the reports call sound stay silent.
"""

from __future__ import annotations

from collections.abc import Iterator

from ..mil.graph import Node, Value
from ..mil.ops.traits import Mask
from .rules import Note, Severity, rule
from .subject import Subject

_ISSUES = "https://github.com/apple/coremltools/issues"
_MAX_RANK = 5
_STATE_MULTIPLE = 32
_GPU_BATCH = 10  # from this extent on the fused attention of the GPU is wrong


@rule(
    "load-padding",
    Severity.ERROR,
    title="padding by reflection or replication beyond the last two axes",
    why="Core ML's compiler takes it on the last two axes alone: «Padding for more than two dimensions only supports "
    "`constant` mode». The package does not load.",
    fix="Transpose the axis to the end, pad, and transpose back; or join slices of the tensor to it.",
    source=f"{_ISSUES}/2576",
    off_engine=True,
)
def padding(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        rank, axes = padded_axes(node)
        if node.text("mode") in ("reflect", "replicate") and any(axis < rank - 2 for axis in axes):
            yield Note(f"{node.text('mode')} along axis {min(axes)} of {rank}", node)


@rule(
    "load-padding-amount",
    Severity.ERROR,
    title="padding by more than there is to reflect or replicate",
    why="A reflection has at most one element less than its axis, a replication as many as its axis; Core ML rejects "
    "more.",
    fix="Pad by less, or several times.",
    source="https://github.com/webmachinelearning/webnn/issues/739",
    off_engine=True,
)
def padding_amount(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        spare = {"reflect": 1, "replicate": 0}.get(node.text("mode"))
        amounts, x = node.integers("pad"), node.value("x")
        if node.type != "pad" or spare is None or x is None:
            continue
        for index, amount in enumerate(amounts):
            axis = len(x.shape) - len(amounts) // 2 + index // 2
            extent = x.shape[axis]
            if extent is not None and amount > extent - spare:
                yield Note(f"{amount} along axis {axis}, which has {extent}", node)
                break


@rule(
    "load-norm-rank",
    Severity.ERROR,
    title="batch or instance norm of five axes",
    why="On the GPU, and so with all compute units, the process aborts: Metal's kernels for them have four axes.",
    fix="Merge the last axes by a reshape before it, and part them after it.",
    source=f"{_ISSUES}/2667",
)
def norm_rank(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        most, axes = node.traits.gpu_max_rank, len(node.extents("x"))
        if most is not None and axes > most:
            yield Note(f"{node.type} of {axes} axes", node)


@rule(
    "load-integer-linear",
    Severity.ERROR,
    title="linear layer of integers",
    why="The execution plan cannot be built (error −14). Core ML Tools makes one of a product of integers with a "
    "constant.",
    fix="Cast to a floating-point type before the product.",
    source=f"{_ISSUES}/2575",
    off_engine=True,
)
def integer_linear(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        x = node.value("x")
        if node.type == "linear" and x is not None and x.type is not None and not x.type.dtype.is_float:
            yield Note(f"of {x.dtype}", node)


@rule(
    "load-dilated-groups",
    Severity.ERROR,
    title="one-dimensional convolution with dilation and groups",
    why="Running it ends in a segmentation fault. In two dimensions the same is sound.",
    fix="Write it with a height of 1, or one convolution for each group.",
    source=f"{_ISSUES}/2574",
)
def dilated_groups(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        groups, dilations = (node.integers("groups") or [1])[0], node.integers("dilations")
        if node.type == "conv" and len(node.extents("x")) == 3 and groups > 1 and max(dilations, default=1) > 1:
            yield Note(f"dilation {max(dilations)}, {groups} groups", node)


@rule(
    "load-runtime-weight",
    Severity.ERROR,
    title="convolution of a batch by a weight that is computed",
    why="The Neural Engine's compiler dies on it. With a batch of 1, or a constant weight, it is sound.",
    fix="Convolve one element of the batch at a time.",
    source="https://ane-guide.readthedocs.io/en/latest/part-5-practice/19-pitfalls-and-limits.html",
    off_engine=True,
)
def runtime_weight(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        weight, x = node.value("weight"), node.extents("x")
        if node.record.family == "convolution" and weight is not None and not weight.fixed and x and x[0] > 1:
            yield Note(f"a batch of {x[0]}, the weight {weight.name!r}", node)


@rule(
    "load-rank",
    Severity.ERROR,
    title="tensor of more than five axes",
    why="Core ML has at most five; the network is not declared.",
    fix="Merge axes, or drop those of extent 1.",
    source="https://github.com/microsoft/onnxruntime/issues/14212",
    off_engine=True,
)
def rank(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        worst = max((len(value.shape) for value in node.outputs), default=0)
        if worst > _MAX_RANK:
            yield Note(f"gives {worst} axes", node)


@rule(
    "load-attention",
    Severity.ERROR,
    title="attention with a bias that the GPU computes wrongly",
    why="The GPU fuses product, bias, softmax and product, and is wrong from a leading extent of 10 on. The CPU and "
    "the Neural Engine are right.",
    fix="Attend to at most 9 at a time, or exclude the GPU (CPU_AND_NE).",
    source=f"{_ISSUES}/2650",
)
def attention(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        if node.type != "softmax" or not node.outputs[0].shape or len(node.outputs[0].shape) < 3:
            continue
        readers = subject.graph.readers.get(node.outputs[0], ())
        scores = _producer(node.value("x"))
        batch = node.outputs[0].extents[0]
        if (
            batch >= _GPU_BATCH
            and scores is not None
            and Mask.APPLIES in scores.traits.mask
            and any(_is_product(_producer(value)) for value in scores.data)
            and any(value.elements > 1 for value in scores.arguments if not _is_product(value.producer))
            and any(map(_is_product, readers))
        ):
            yield Note(f"over a leading extent of {batch}", node)


@rule(
    "load-no-input",
    Severity.ERROR,
    title="function without an input",
    why="Core ML does not load it.",
    fix="Give it an input, e.g. one that is added to the result.",
    source="https://github.com/pytorch/executorch/issues/11719",
)
def no_input(subject: Subject) -> Iterator[Note]:
    if not subject.graph.inputs:
        yield Note("takes nothing")


@rule(
    "load-empty",
    Severity.ERROR,
    title="function that computes nothing",
    why="The compiler crashes on a program without an operation, whose outputs are its inputs.",
    fix="Leave the output out; or multiply by 1.",
    source="https://github.com/sbryngelson/ANEForge/pull/116",
)
def empty(subject: Subject) -> Iterator[Note]:
    if subject.graph.inputs and not subject.graph.nodes:
        yield Note("has no operation")


@rule(
    "load-zero-product",
    Severity.ERROR,
    title="sum or mean that is multiplied by zero",
    why="The Neural Engine's compiler crashes on it.",
    fix="Subtract the value from itself.",
    source="https://github.com/sbryngelson/ANEForge/pull/116",
)
def zero_product(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.nodes:
        reduced = any(value.producer is not None and value.producer.record.family == "reduction" for value in node.data)
        if node.type == "mul" and reduced and 0.0 in (*_scalar(node.value("x")), *_scalar(node.value("y"))):
            yield Note("by the constant 0", node)


@rule(
    "load-scaled-palette",
    Severity.ERROR,
    title="palette with a scale for each channel",
    why="On macOS 26 the Neural Engine's program fails its verification (`mps.dequantize`) and the process aborts.",
    fix="Compress again without enable_per_channel_scale.",
    source="https://github.com/apple/coremltools/pull/2688",
)
def scaled_palette(subject: Subject) -> Iterator[Note]:
    for node in subject.graph.weights:
        data = _producer(node.value("data"))
        if node.type == "constexpr_blockwise_shift_scale" and data is not None and "lut" in data.type:
            yield Note(f"scales the palette {data.name!r}", node)


@rule(
    "load-state",
    Severity.ERROR,
    title="state whose last axis is no multiple of 32",
    why="With the Neural Engine, and so with all compute units, the package fails; on the CPU and the GPU it runs.",
    fix="Pad the state to a multiple of 32, or exclude the Neural Engine (CPU_AND_GPU).",
    source=f"{_ISSUES}/2631",
)
def ragged_state(subject: Subject) -> Iterator[Note]:
    for name, kind in subject.facts.states.items():
        if kind.shape and kind.shape[-1] is not None and kind.shape[-1] % _STATE_MULTIPLE:
            yield Note(f"state {name!r} is {kind.shape[-1]} wide", output=name)


@rule(
    "load-links",
    Severity.ERROR,
    title="package whose files are links",
    why="Core ML's compiler does not follow them. The cache of Hugging Face lays packages out so.",
    fix="Copy it with its links followed: cp -RL PACKAGE COPY; or download it with `snapshot_download(local_dir=…)`.",
    source="https://huggingface.co/docs/huggingface_hub/guides/manage-cache",
)
def links(subject: Subject) -> Iterator[Note]:
    if subject.links:
        more = f" and {len(subject.links) - 1} more" if len(subject.links) > 1 else ""
        yield Note(f"{subject.links[0]}{more}")


def padded_axes(node: Node) -> tuple[int, set[int]]:
    """How many axes a padding's result has, and which are padded; none for other operations."""
    if node.type != "pad" or not node.outputs:
        return 0, set()
    amounts, rank = node.integers("pad"), len(node.outputs[0].shape)
    return rank, {rank - len(amounts) // 2 + index // 2 for index, amount in enumerate(amounts) if amount}


def _producer(value: Value | None) -> Node | None:
    return value.producer if value is not None else None


def _is_product(node: Node | None) -> bool:
    return node is not None and node.type == "matmul"


def _scalar(value: Value | None) -> list[float]:
    """The one number of a constant; nothing for anything else."""
    return [float(value.constant)] if value is not None and value.fixed and value.elements == 1 else []
