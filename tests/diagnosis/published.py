"""Published failures of Core ML and the Neural Engine, each with its source and a control that must stay silent.

``make doctor-cases`` writes the table of what the doctor says of each, and of what
``--values ane`` computes, as docs/doctor-cases.md.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from coremltools.converters.mil.mil.types.type_mapping import np_uint4_dtype

from splitter.diagnosis import examine
from splitter.mil import load
from splitter.mil.numerics import Numerics, RoundingMode

from ..mil.harness import f16, mb, package

CT = "apple/coremltools"
GUIDE = "https://ane-guide.readthedocs.io/en/latest/part-1-machine/03-numerics.html"
PITFALLS = "https://ane-guide.readthedocs.io/en/latest/part-5-practice/19-pitfalls-and-limits.html"


def issue(number, repository=CT):
    return f"https://github.com/{repository}/issues/{number}"


@dataclass(frozen=True)
class Side:
    """A program and what it is run on."""

    build: Callable[..., Any]
    inputs: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Published:
    """One report.

    Attributes:
        name: What was reported, in a few words.
        rule: That finds it.
        case: What fails.
        control: What the report, or the remedy that it led to, has as sound.
        says: What the control is.
        computes: What ``--values ane`` gives, flat; None where the package does not load or does not compile.
    """

    name: str
    source: str
    rule: str
    case: Side
    control: Side
    says: str
    computes: list[float] | None = None
    chip: str = "m1"
    target: str = "iOS17"


INF = float("inf")


def row(*terms):
    return {"x": np.array([terms], np.float16)}


def ones(*shape):
    return np.ones(shape, np.float16)


def pad(amounts, mode):
    return lambda x: mb.pad(x=x, pad=amounts, mode=mode)


def conv(*weight, **options):
    return lambda x: mb.conv(x=x, weight=f16(*weight), **options)


def batch_norm(x):
    channels = ones(x.shape[1])
    return mb.batch_norm(x=x, mean=channels, variance=channels, epsilon=np.float16(1e-3))


def integer_product(x):
    return mb.linear(x=x, weight=np.ones((8, 8), np.int32))


def half_product(x):
    return mb.linear(x=x, weight=ones(8, 8))


def attention(q, k, v):
    biased = mb.add(x=mb.matmul(x=q, y=k, transpose_y=True), y=f16(1, 2, 7, 7, value=0.02))
    return mb.matmul(x=mb.softmax(x=biased, axis=-1), y=v)


def tokens(batch):
    return {name: f16(batch, 2, 7, 4) for name in "qkv"}


def lut():
    table = np.arange(16, dtype=np.float16).reshape(1, 1, 1, 1, 16, 1)
    return mb.constexpr_lut_to_dense(indices=np.zeros((8, 4, 1, 1), np.uint8).astype(np_uint4_dtype), lut=table)


def palette(x):
    return mb.conv(x=x, weight=lut())


def scaled_palette(x):
    return mb.conv(x=x, weight=mb.constexpr_blockwise_shift_scale(data=lut(), scale=f16(8, 1, 1, 1)))


def blocks(*scales):
    """8 × 4 weights of 8 bits, a scale for each output and for so many blocks of inputs."""

    def build(x):
        scale = np.full((8, *scales), 0.5, np.float16)
        data = np.arange(32, dtype=np.int8).reshape(8, 4, 1, 1)
        return mb.conv(x=x, weight=mb.constexpr_blockwise_shift_scale(data=data, scale=scale))

    return build


def summed_times(factor):
    return lambda x: mb.mul(x=mb.reduce_sum(x=x, axes=[1], keep_dims=True), y=np.float16(factor))


def convolved(x, w):
    return mb.conv(x=x, weight=w)


def images(batch):
    return {"x": f16(batch, 4, 8, 8), "w": f16(8, 4, 1, 1)}


def by_ones(x):
    return mb.matmul(x=x, y=ones(x.shape[1], 1))


def linear(x):
    return mb.linear(x=x, weight=ones(1, x.shape[1]))


def channels(x):
    return mb.conv(x=x, weight=ones(1, x.shape[1], 1, 1))


def softplus(x):
    return mb.softplus(x=x)


def stable_softplus(x):
    tail = mb.exp(x=mb.mul(x=mb.abs(x=x), y=np.float16(-1)))
    return mb.add(x=mb.maximum(x=x, y=np.float16(0)), y=mb.log(x=mb.add(x=tail, y=np.float16(1))))


def mish(softplus):
    return lambda x: mb.mul(x=x, y=mb.tanh(x=softplus(x)))


def log_sum_exp(x):
    return mb.reduce_log_sum_exp(x=x, axes=[1])


def stable_log_sum_exp(x):
    most = mb.reduce_max(x=x, axes=[1], keep_dims=True)
    total = mb.reduce_sum(x=mb.exp(x=mb.sub(x=x, y=most)), axes=[1], keep_dims=True)
    return mb.add(x=mb.log(x=total), y=most)


def log_softmax(x):
    return mb.log(x=mb.softmax(x=x, axis=-1))


def stable_log_softmax(x):
    return mb.sub(x=x, y=mb.add(x=stable_log_sum_exp(x), y=np.float16(0)))


def plus(number):
    return lambda x: mb.add(x=x, y=np.array([[number]], np.float16))


def squares_apart(x):
    return mb.sub(x=mb.square(x=x), y=mb.square(x=x))


def sliced(x):
    return mb.slice_by_index(x=x, begin=[0, 1], end=[1, 3])


def cut_at_start(x):
    return mb.slice_by_index(x=x, begin=[0, 0], end=[1, 2])


def masked(number):
    return lambda x: mb.softmax(x=mb.add(x=x, y=f16(1, 4, value=number)), axis=-1)


def divided(x, y):
    return mb.real_div(x=x, y=y)


def strided(stride):
    return lambda x: mb.conv(x=x, weight=f16(8, 4, 1, 1), strides=[1, stride])


def long_strided(x):
    return mb.conv(x=x, weight=f16(16, 22, 12), strides=[6], pad_type="custom", pad=[3, 3])


def operation(name, **arguments):
    return lambda x: getattr(mb, name)(x=x, **arguments)


VOLUME, IMAGE, LINE = {"x": f16(1, 6, 6, 6, 6)}, {"x": f16(1, 4, 8, 8)}, {"x": f16(2, 16, 11)}
NUMBERS = {"x": np.ones((2, 8), np.int32)}
CASES = [
    Published("ReflectionPad3d", issue(2576), "load-padding", Side(pad([2] * 6, "reflect"), VOLUME),
              Side(pad([2] * 4, "reflect"), VOLUME), "ReflectionPad2d", chip="m5"),
    Published("ReplicationPad3d", issue(2571), "load-padding", Side(pad([2] * 6, "replicate"), VOLUME),
              Side(pad([2] * 6, "constant"), VOLUME), "constant padding"),
    Published("replicate on axes 1 and 2 of 4", "https://github.com/apple/coremltools/pull/2701", "load-padding",
              Side(pad([2, 1, 1, 2, 0, 0], "replicate"), IMAGE), Side(pad([0, 0, 1, 2, 2, 1], "replicate"), IMAGE),
              "axes 2 and 3"),
    Published("reflection by the whole extent", issue(739, "webmachinelearning/webnn"), "load-padding-amount",
              Side(pad([8, 0], "reflect"), IMAGE), Side(pad([7, 0], "reflect"), IMAGE), "by one less"),
    Published("BatchNorm3d", issue(2572), "load-norm-rank", Side(batch_norm, VOLUME), Side(batch_norm, IMAGE),
              "BatchNorm2d"),
    Published("integer product with a constant", issue(2575), "load-integer-linear", Side(integer_product, NUMBERS),
              Side(half_product, {"x": f16(2, 8)}), "in half precision"),
    Published("Conv1d(16, 4, 6, stride=8, dilation=2, groups=2)", issue(2574), "load-dilated-groups",
              Side(conv(4, 8, 6, strides=[8], dilations=[2], groups=2), LINE),
              Side(conv(4, 16, 6, strides=[8], dilations=[2]), LINE), "one group"),
    Published("Conv1d(16, 2, 3, dilation=2, groups=2)", issue(2574), "load-dilated-groups",
              Side(conv(2, 8, 3, dilations=[2], groups=2), LINE), Side(conv(2, 8, 3, groups=2), LINE), "no dilation"),
    Published("attention with a bias, batch of 10, on the GPU", issue(2650), "load-attention",
              Side(attention, tokens(10)), Side(attention, tokens(9)), "a batch of 9"),
    Published("palette with a scale for each channel", "https://github.com/apple/coremltools/pull/2688",
              "load-scaled-palette", Side(scaled_palette, IMAGE), Side(palette, IMAGE), "no scales", target="iOS18"),
    Published("8-bit weights in blocks of two inputs", issue(279, "apple/coreai-models"), "engine-blocks",
              Side(blocks(2, 1, 1), IMAGE), Side(blocks(1, 1, 1), IMAGE), "a scale for each output", target="iOS18"),
    Published("sum times 0", "https://github.com/sbryngelson/ANEForge/pull/116", "load-zero-product",
              Side(summed_times(0), row(1, 2)), Side(summed_times(2), row(1, 2)), "times 2"),
    Published("computed weights on a batch of 2", PITFALLS, "load-runtime-weight", Side(convolved, images(2)),
              Side(convolved, images(1)), "a batch of 1"),
    Published("stride 5", issue(2473), "compile-stride", Side(strided(5), {"x": f16(1, 4, 8, 35)}),
              Side(strided(6), {"x": f16(1, 4, 8, 35)}), "stride 6"),
    Published("stride 6, kernel 12, over 22 × 18,001", issue(2660), "compile-long-stride",
              Side(long_strided, {"x": f16(1, 22, 18001)}), Side(long_strided, {"x": f16(1, 22, 9000)}),
              "a shorter axis"),
    Published("33 × 1000 in a product", issue(115, "sbryngelson/ANEForge"), "limit-sum",
              Side(by_ones, row(*[1000] * 33)), Side(by_ones, row(*[1000] * 32)), "32 × 1000", [INF]),
    Published("4 × 8320 in a product", issue(115, "sbryngelson/ANEForge"), "limit-sum", Side(by_ones, row(*[8320] * 4)),
              Side(by_ones, row(*[8100] * 4)), "4 × 8100", [INF]),
    Published("64 × 550 in a product", issue(115, "sbryngelson/ANEForge"), "limit-sum", Side(by_ones, row(*[550] * 64)),
              Side(by_ones, row(*[506] * 64)), "64 × 506", [INF]),
    Published("linear layer giving 32,768", GUIDE, "limit-sum", Side(linear, row(32768)), Side(linear, row(32752)),
              "32,752", [INF]),
    Published("convolution of two channels giving 40,000", GUIDE, "limit-sum",
              Side(channels, {"x": f16(1, 2, 1, 1, value=20000)}), Side(channels, {"x": f16(1, 1, 1, 1, value=60000)}),
              "one channel giving 60,000", [INF]),
    Published("33 × 1000 − 33 × 1000 in a product", GUIDE, "limit-partial-sum",
              Side(by_ones, row(*[1000] * 33, *[-1000] * 33)), Side(by_ones, row(*[1000] * 32, *[-1000] * 32)),
              "32 × 1000 − 32 × 1000", [INF]),
    Published("subnormal numbers summed in a product", GUIDE, "range-underflow",
              Side(by_ones, row(2.0**-24, 2.0**-24)), Side(by_ones, row(2.0**-14, 2.0**-14)), "normal numbers", [0]),
    Published("softplus of 10.5", issue(2687), "limit-input", Side(softplus, row(10.5)), Side(softplus, row(10.39)),
              "of 10.39", [0]),
    Published("softplus of 50", issue(2687), "limit-input", Side(softplus, row(50)), Side(stable_softplus, row(50)),
              "max(x, 0) + log(1 + exp(−abs(x)))", [0]),
    Published("Mish of 12", "https://github.com/apple/coremltools/pull/2725", "limit-input",
              Side(mish(softplus), row(12)), Side(mish(stable_softplus), row(12)), "by the stable softplus", [0]),
    Published("log-sum-exp of 32 × 7.64", issue(2690), "limit-input", Side(log_sum_exp, row(*[7.64] * 32)),
              Side(log_sum_exp, row(*[7.6] * 32)), "of 32 × 7.6", [0]),
    Published("log-sum-exp of 8 × 20", "https://github.com/apple/coremltools/pull/2726", "limit-input",
              Side(log_sum_exp, row(*[20] * 8)), Side(stable_log_sum_exp, row(*[20] * 8)), "less the maximum", [0]),
    Published("log-softmax with a dominant class", issue(2728), "half-log-softmax",
              Side(log_softmax, row(0, 50)), Side(stable_log_softmax, row(0, 50)), "less the log-sum-exp", [-45440, 0]),
    Published("exp of 11.094", GUIDE, "limit-input", Side(operation("exp"), row(11.094)),
              Side(operation("exp"), row(11.08)), "of 11.08", [INF]),
    Published("square of 256", GUIDE, "range-overflow", Side(operation("square"), row(256)),
              Side(operation("square"), row(100)), "of 100", [INF]),
    Published("logarithm of 0", GUIDE, "limit-input", Side(operation("log"), row(0)), Side(operation("log"), row(1)),
              "of 1", [-45440]),
    Published("logarithm of −1", GUIDE, "limit-nan", Side(operation("log"), row(-1)), Side(operation("log"), row(1)),
              "of 1", [0]),
    Published("root of −1", GUIDE, "limit-nan", Side(operation("sqrt"), row(-1)), Side(operation("sqrt"), row(1)),
              "of 1", [0]),
    Published("inverse root of −1", GUIDE, "limit-nan", Side(operation("rsqrt"), row(-1)),
              Side(operation("rsqrt"), row(1)), "of 1", [0]),
    Published("∞ − ∞, of squares", GUIDE, "range-overflow", Side(squares_apart, row(300)), Side(squares_apart, row(100)),
              "finite squares", [0]),
    Published("NaN plus 0", GUIDE, "limit-nan", Side(plus(np.nan), row(0)), Side(plus(1), row(0)), "1 plus 0", [INF]),
    Published("division by a subnormal number", "https://en.wikipedia.org/wiki/Half-precision_floating-point_format",
              "limit-input", Side(divided, {"x": f16(1), "y": f16(1, value=1e-5)}),
              Side(divided, {"x": f16(1), "y": f16(1, value=1e-3)}), "by 0.001", [INF]),
    Published("offset slice of 4096", GUIDE, "range-slice", Side(sliced, row(0, 4096, 1)), Side(sliced, row(0, 4094, 1)),
              "of 4094", [INF, 1]),
    Published("offset slice of 16,000", PITFALLS, "range-slice", Side(sliced, row(0, 16000, 1)),
              Side(cut_at_start, row(16000, 1, 1)), "from the start", [INF, 1]),
    Published("round of 1024", "https://github.com/sbryngelson/ANEForge/pull/116", "limit-input",
              Side(operation("round"), row(1024)), Side(operation("round"), row(1023)), "of 1023", [1025]),
    Published("round of −2047", "https://github.com/sbryngelson/ANEForge/pull/116", "limit-input",
              Side(operation("round"), row(-2047)), Side(operation("round"), row(-1000)), "of −1000", [-2048]),
    Published("mask of −∞ for a whole row", "https://github.com/apple/coremltools/pull/2669", "half-mask",
              Side(masked(-np.inf), row(1, 2, 3, 4)), Side(masked(-1e4), row(1, 2, 3, 4)), "of −10,000",
              [0, 0, 0, 0]),
]  # fmt: skip


def saved(side: Side, case: Published, directory: Path) -> Path:
    return package(side.build, dict(side.inputs), directory, case.target)


def said(path: Path, side: Side, case: Published) -> dict[str, str]:
    """What the doctor finds, by rule, with its severity; run where the package runs."""
    report = examine(path, chip=case.chip, inputs=dict(side.inputs), run=case.computes is not None)
    findings = [finding for diagnosis in report.diagnoses for finding in diagnosis.findings]
    return {finding.rule: str(finding.severity) for finding in findings}


def computed(path: Path, side: Side, values: str) -> list[float]:
    """The first output, flat."""
    model = load(path, numerics=Numerics(RoundingMode(values)))
    with np.errstate(all="ignore"):
        results = model.predict(dict(side.inputs))
    return [float(number) for number in results[model.function.block.outputs[0]].reshape(-1)]


def page() -> str:
    lines = [
        "# Published failures, and what the doctor says",
        "",
        f"{len(CASES)} failures of Core ML and the Neural Engine that people published. Each is built as a package by the tests,",
        "with a control that the report calls sound, of which the doctor finds nothing of the kind. Generated by",
        "`make doctor-cases`; a test fails when it is out of date.",
        "",
        "What the program says is computed with each result rounded to half. `--values ane` is the model built from these",
        "measurements; it is no device.",
        "",
        "| failure | doctor | program says | `--values ane` | control |",
        "|---|---|---|---|---|",
    ]
    for case in CASES:
        with tempfile.TemporaryDirectory() as directory:
            path = saved(case.case, case, Path(directory))
            severity = said(path, case.case, case)[case.rule]
            figures = ("", "does not run")
            if case.computes is not None:
                figures = (_figures(computed(path, case.case, "stored")), _figures(computed(path, case.case, "ane")))
        lines.append(
            f"| [{case.name}]({case.source}) | {severity} `{case.rule}` | {figures[0]} | {figures[1]} | {case.says} |"
        )
    return "\n".join(lines) + "\n"


def _figures(numbers: list[float]) -> str:
    return ", ".join(f"{number:.6g}".replace("inf", "∞").replace("-", "−") for number in numbers)


if __name__ == "__main__":
    print(page(), end="")  # noqa: T201 (its whole purpose)
