"""Metal kernels, executed as they stand, against PyTorch in float64 and against every rule they must keep."""

import math
import re
import shutil
import subprocess
import sys

import mpmath
import numpy as np
import pytest
import torch
from jaxtyping import install_import_hook
from scipy import special
from torch.nn import functional

with install_import_hook("splitter_kernels.metal", "beartype.beartype"):
    from splitter_kernels.metal import steps
    from splitter_kernels.metal.errors import CompilerError, HazardError, LaunchError, SubsetError
    from splitter_kernels.metal.library import SOURCES, Library
    from splitter_kernels.metal.transformer import transformer

from splitter_kernels import reference, spec
from splitter_kernels.spec import Config, SpecError
from splitter_kernels.taps import taps

from splitter.verification.port import verify_port
from splitter.verification.transformer import TappedTransformer

from ..conftest import ROOT, snr_db

ORDERS = ("forward", "reverse", "interleaved", "shuffled")
BARRIER = "threadgroup_barrier(mem_flags::mem_threadgroup);"


def elementwise(kernel, x, maths="safe"):
    y = np.full_like(x, np.nan)
    Library(maths=maths).launch(kernel, (math.ceil(x.size / 256), 1, 1), (256, 1, 1), x=x, y=y, count=x.size)
    return y


def ulps(exact, got):
    return np.max(np.abs(got.astype(np.float64) - exact) / np.spacing(np.abs(exact).astype(np.float32)))


def every_float(low, high, step):
    """Positive float32 from low to high, each ``step``-th there is."""
    ends = np.array([low, high], np.float32).view(np.uint32)
    return np.arange(*ends, step, np.uint32).view(np.float32)


# ---- elementary functions and formats


@pytest.mark.parametrize("maths", ["safe", "relaxed"])
def test_erf_is_within_its_bound_of_high_precision(maths):
    positive = every_float(1.2e-38, 5.0, 997)
    assert positive.size > 1_000_000
    x = np.concatenate([positive, -positive])
    exact = special.erf(x.astype(np.float64))
    some = slice(None, None, 8001)
    with mpmath.workdps(40):
        slow = np.array([float(mpmath.erf(mpmath.mpf(float(value)))) for value in x[some]])
    assert np.max(np.abs(slow / exact[some] - 1)) < 1e-15
    assert ulps(exact, elementwise("elementwise_erf", x, maths)) <= 1.2


@pytest.mark.parametrize("maths", ["safe", "relaxed"])
def test_exp_is_within_its_bound(maths):
    x = -np.concatenate([every_float(1e-10, 0.01, 9973), every_float(0.01, 87.33, 89)])
    exact = np.exp(x.astype(np.float64))
    assert ulps(exact, elementwise("elementwise_exp", x, maths)) <= 1
    with mpmath.workdps(40):
        slow = np.array([float(mpmath.exp(mpmath.mpf(float(value)))) for value in x[::20001]])
    assert np.max(np.abs(slow / exact[::20001] - 1)) < 1e-15


def test_elementary_functions_at_their_ends():
    x = np.array([0.0, -0.0, 4.0, -4.0, np.inf, -np.inf, 1e-40, np.nan], np.float32)
    erf = elementwise("elementwise_erf", x)
    np.testing.assert_array_equal(erf[:6], [0, 0, 1, -1, 1, -1])
    assert np.signbit(erf[1])
    assert ulps(np.float64(1.1283792e-40), erf[6]) <= 1
    assert np.isnan(erf[7])
    x = np.array([0.0, -87.4, -1e38, -np.inf], np.float32)
    np.testing.assert_array_equal(elementwise("elementwise_exp", x), [1, 0, 0, 0])


def test_gelu_is_the_exact_form():
    x = np.linspace(-12, 12, 100_001).astype(np.float32)
    exact = functional.gelu(torch.from_numpy(x).double()).numpy()
    error = np.abs(elementwise("elementwise_gelu", x) - exact)
    assert np.max(error / np.maximum(np.abs(x), 1)) <= 1.2e-7
    tanh = functional.gelu(torch.from_numpy(x).double(), approximate="tanh").numpy()
    assert np.max(np.abs(tanh - exact) / np.maximum(np.abs(x), 1)) > 1e-4  # the test can tell


def test_half_is_rounded_as_numpy_rounds_it():
    library = Library("float16")
    every = np.arange(65_536, dtype=np.uint16).view(np.float16)[None]
    kept = steps.scale(library, every, np.ones(65_536, np.float32))
    np.testing.assert_array_equal(kept, every)
    numbers = ~np.isnan(every)
    np.testing.assert_array_equal(kept.view(np.uint16)[numbers], every.view(np.uint16)[numbers])
    with np.errstate(over="ignore"):
        between = np.nextafter(every[numbers].astype(np.float32)[:, None], np.float32([np.inf, -np.inf]))
        ties = (every[numbers].astype(np.float32) + np.roll(every[numbers].astype(np.float32), 1)) / 2
        bits = np.random.default_rng(0).integers(0, 2**32, 200_000, np.uint32).view(np.float32)
        wide = np.concatenate([between.ravel(), ties, bits])
        wide = wide[~np.isnan(wide)][None]
        expected = wide.astype(np.float16)
    np.testing.assert_array_equal(steps.add_positions(library, np.zeros_like(expected), wide), expected)


@pytest.mark.parametrize("bits", [4, 6, 8])
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (40, 37)])
def test_palettes_are_decoded_exactly(bits, shape):
    rng = np.random.default_rng(bits)
    indices = rng.integers(0, 2**bits, shape)
    stream = np.packbits((indices.ravel()[:, None] >> np.arange(bits) & 1).astype(np.uint8).ravel(), bitorder="little")
    table = rng.standard_normal(2**bits).astype(np.float32)
    for library in (Library(), Library(checked=True, order="lockstep")):  # the last byte, and none beyond it
        np.testing.assert_array_equal(steps.decode_palette(library, stream, table, shape), table[indices])
    half = steps.decode_palette(Library("float16"), stream, table, shape)
    np.testing.assert_array_equal(half, table[indices].astype(np.float16))
    with pytest.raises(LaunchError, match="16, 64 or 256 entries"):
        steps.decode_palette(Library(), stream[:-1], table, shape)


def test_int8_is_decoded_exactly():
    rng = np.random.default_rng(0)
    q = rng.integers(-128, 128, (33, 21), np.int8)
    scales = rng.uniform(1e-4, 1, 33).astype(np.float32)
    for library in (Library(), Library(checked=True)):
        np.testing.assert_array_equal(steps.decode_int8(library, q, scales), q.astype(np.float32) * scales[:, None])


# ---- every sub-step: order, rules, error

RNG = np.random.default_rng(7)
CHANNELS, HEADS, EPS = 50, 2, 1e-5
X, OTHER = (RNG.standard_normal((37, CHANNELS)) * 3 + 1 for _ in range(2))
Q, K, V = (RNG.standard_normal((n, CHANNELS)) for n in (37, 45, 45))
W, B = RNG.standard_normal((70, CHANNELS)) / 7, RNG.standard_normal(70)
GAIN, SHIFT = RNG.uniform(0.3, 1.5, CHANNELS), RNG.standard_normal(CHANNELS)
PLANE = RNG.standard_normal((20, 3, 19))


def heads_of(x):
    return x.reshape(1, len(x), HEADS, -1).transpose(1, 2)


def one_head(kind, q, k, v=None):
    q, k = heads_of(q), heads_of(k)
    if kind == "logits":
        return (q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1]))[0, :, :16]
    return functional.scaled_dot_product_attention(q, k, heads_of(v)).transpose(1, 2).reshape(q.shape[2], -1)


# name → kernels, on the library's arrays; oracle, in torch; stored arrays; float32 arrays
STEPS = {
    "layer_norm": (
        lambda lib, x, w, b: steps.layer_norm(lib, x, w, b, EPS),
        lambda x, w, b: functional.layer_norm(x, (CHANNELS,), w, b, EPS), (X,), (GAIN, SHIFT),
    ),
    "group_norm": (
        lambda lib, x, w, b: steps.group_norm(lib, x, w, b, EPS),
        lambda x, w, b: functional.group_norm(x.T[None], 1, w, b, EPS)[0].T, (X,), (GAIN, SHIFT),
    ),
    "linear": (steps.linear, functional.linear, (X, W), (B,)),
    "linear_gelu": (
        lambda lib, x, w, b: steps.linear(lib, x, w, b, gelu=True),
        lambda x, w, b: functional.gelu(functional.linear(x, w, b)), (X, W), (B,),
    ),
    "attention": (
        lambda lib, q, k, v: steps.attention(lib, q, k, v, HEADS),
        lambda q, k, v: one_head("mixed", q, k, v), (Q, K, V), (),
    ),
    "attention_logits": (
        lambda lib, q, k: steps.attention_logits(lib, q, k, HEADS, 16),
        lambda q, k: one_head("logits", q, k), (Q, K), (),
    ),
    "scale": (steps.scale, lambda x, g: x * g, (X,), (GAIN,)),
    "scale_residual": (steps.scale_residual, lambda x, y, g: x + g * y, (X, OTHER), (GAIN,)),
    "add_positions": (steps.add_positions, lambda x, p: x + p, (X,), (OTHER,)),
    "to_tokens": (steps.to_tokens, lambda x: x.permute(2, 1, 0).reshape(57, 20), (PLANE,), ()),
    "from_tokens": (
        lambda lib, x: steps.from_tokens(lib, x, 3),
        lambda x: x.reshape(19, 3, 20).permute(2, 1, 0), (PLANE.reshape(57, 20),), (),
    ),
}  # fmt: skip
LIMITS = {"float32": 130.0, "float16": 70.0}  # of kernels/README.md


def arrays(name, storage):
    _, _, stored, wide = STEPS[name]
    return [array.astype(storage) for array in stored] + [array.astype(np.float32) for array in wide]


def executed(name, library):
    return STEPS[name][0](library, *arrays(name, library.storage))


@pytest.mark.parametrize("storage", ["float32", "float16"])
@pytest.mark.parametrize("name", STEPS)
def test_sub_step_in_every_order(name, storage):
    result = executed(name, Library(storage))
    exact = STEPS[name][1](*(torch.from_numpy(array.astype(np.float64)) for array in arrays(name, storage))).numpy()
    assert snr_db(exact, result) >= LIMITS[storage]
    for order in ORDERS:
        for seed in (1, 2) if order == "shuffled" else (0,):
            np.testing.assert_array_equal(executed(name, Library(storage, order=order, seed=seed)), result)
    # Watched: no race, nothing out of bounds, nothing read before it is written.
    np.testing.assert_array_equal(executed(name, Library(storage, order="lockstep", checked=True)), result)


def test_every_kernel_is_documented():
    text = (ROOT / "kernels" / "README.md").read_text()
    assert all(f"`{name}`" in text for name in Library().kernels)


def test_what_one_rounding_gives_is_what_comes_out():
    """Layouts keep bits; a sum and a product of two floats are rounded once."""
    for name in ("scale", "add_positions", "to_tokens", "from_tokens"):
        exact = STEPS[name][1](*(torch.from_numpy(array) for array in arrays(name, "float32"))).numpy()
        np.testing.assert_array_equal(executed(name, Library()), exact)


def test_group_norm_keeps_its_digits_over_a_million_elements():
    x = (np.random.default_rng(0).standard_normal((2688, 512)) * 30 + 100).astype(np.float32)
    wide = x.astype(np.float64)
    result = steps.group_norm(Library(), x, np.ones(512, np.float32), np.zeros(512, np.float32), 1e-5)
    assert snr_db((wide - wide.mean()) / np.sqrt(wide.var() + 1e-5), result) >= 130
    naive = (x.ravel() - np.cumsum(x.ravel())[-1] / np.float32(x.size)).reshape(x.shape)
    assert snr_db(wide - wide.mean(), naive) < 100  # one accumulator


def test_linear_keeps_its_digits_over_the_widest_sum():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((40, 2048)).astype(np.float32), rng.standard_normal((33, 2048)).astype(np.float32)
    assert (
        snr_db(x.astype(np.float64) @ w.T.astype(np.float64), steps.linear(Library(), x, w, np.zeros(33, "f"))) >= 130
    )


def test_attention_keeps_its_digits_over_all_tokens():
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((n, 128)).astype(np.float32) for n in (21, 2688, 2688))
    exact = one_head("mixed", *(torch.from_numpy(array.astype(np.float64)) for array in (q, k, v))).numpy()
    assert snr_db(exact, steps.attention(Library(), q, k, v, HEADS)) >= 125


@pytest.mark.parametrize("offset", [-300.0, 300.0])
def test_attention_survives_large_logits(offset):
    """Far beyond where exp overflows, rising and falling along the sources."""
    q, k, v = (array.astype(np.float32) for array in (Q, K, V))
    k = k + np.linspace(0, offset, len(k), dtype=np.float32)[:, None]
    exact = one_head("mixed", *(torch.from_numpy(array.astype(np.float64)) for array in (q, k, v))).numpy()
    assert snr_db(exact, steps.attention(Library(), q, k, v, HEADS)) >= 110  # the logits themselves have 24 bits


# ---- broken copies


def broken(tmp_path, name, change):
    """The sources, one of them changed."""
    for path in (*SOURCES.glob("*.metal"), *SOURCES.glob("*.h")):
        shutil.copy(path, tmp_path)
    text = (SOURCES / name).read_text()
    changed = change(text)
    assert changed != text
    (tmp_path / name).write_text(changed)
    return tmp_path


def without_barrier(number):
    def change(text):
        place = [match.start() for match in re.finditer(re.escape(BARRIER), text)][number]
        return text[:place] + text[place + len(BARRIER) :]

    return change


BARRIERS = [  # file, which of its barriers, a sub-step that needs it
    ("reduction.h", 0, "layer_norm"),
    ("reduction.h", 0, "group_norm"),
    ("reduction.h", 1, "layer_norm"),
    ("reduction.h", 1, "group_norm"),
    ("reduction.h", 2, "layer_norm"),
    ("reduction.h", 2, "group_norm"),
    ("linear.metal", 0, "linear"),
    ("linear.metal", 1, "linear"),
    ("attention.metal", 0, "attention"),
    ("attention.metal", 1, "attention"),
    ("attention.metal", 2, "attention"),
    ("attention.metal", 3, "attention"),
    ("attention.metal", 4, "attention_logits"),
    ("tokens.metal", 0, "to_tokens"),
    ("tokens.metal", 1, "from_tokens"),
]


def test_every_barrier_is_in_the_list():
    texts = {path.name: path.read_text() for path in (*SOURCES.glob("*.metal"), *SOURCES.glob("*.h"))}
    there = {(file, number) for file, text in texts.items() for number in range(text.count("threadgroup_barrier("))}
    assert {(file, number) for file, number, _ in BARRIERS} == there


@pytest.mark.parametrize(("file", "number", "name"), BARRIERS)
def test_missing_barrier_is_caught(tmp_path, file, number, name):
    """By what comes out, in one order or another, and by the rules whatever comes out."""
    sources = broken(tmp_path, file, without_barrier(number))
    whole = executed(name, Library())
    assert any(not np.array_equal(executed(name, Library(sources=sources, order=order)), whole) for order in ORDERS)
    with pytest.raises(HazardError, match="with no barrier between|nothing was written to") as caught:
        executed(name, Library(sources=sources, checked=True))
    assert caught.value.kind in ("race", "uninitialised")


FAULTS = {  # what no order need show
    "a barrier for another memory": (
        "reduction.h", f"{BARRIER} // the sum", "threadgroup_barrier(mem_flags::mem_device); // the sum", "layer_norm", "race",
    ),
    "two threads of a group write": ("group_norm.metal", "if (lane == 0)", "if (lane < 2)", "group_norm", "race"),
    "two groups write": ("residual.metal", "y[index] = storage(gamma", "y[index % 256] = storage(gamma", "scale", "race"),
    "another group's result is read": (
        "residual.metal", "float(x[index]) +", "float(x[index]) + 0.0f * float(y[(index + 256) % count]) +",
        "scale_residual", "race",
    ),
    "a thread beyond the end writes": ("tokens.metal", "index < count", "index <= count", "add_positions", "bounds"),
    "a row beyond the end is read": ("linear.metal", "first + row < rows &&", "first + row <= rows &&", "linear", "bounds"),
    "memory is read before it is written": (
        "attention.metal", "mixed[query * size + i] = 0.0f;", "", "attention", "uninitialised",
    ),
    "a barrier that some threads pass by": (
        "layer_norm.metal", "float squares = 0.0f;", f"float squares = 0.0f; if (lane == 0) {{ {BARRIER} }}",
        "layer_norm", "divergence",
    ),
    "threads that leave early": (
        "layer_norm.metal", "float sum = 0.0f;", "float sum = 0.0f; if (lane == 3) { return; }", "layer_norm", "divergence",
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_broken_rule_is_named(tmp_path, fault):
    file, old, new, name, kind = FAULTS[fault]
    sources = broken(tmp_path, file, lambda text: text.replace(old, new))
    with pytest.raises(HazardError, match=r"\w+: (thread \d+ (reads|writes) |all threads of a group)") as caught:
        executed(name, Library(sources=sources, checked=True))
    assert caught.value.kind == kind


def test_hazard_says_where(tmp_path):
    sources = broken(tmp_path, "tokens.metal", without_barrier(0))
    with pytest.raises(
        HazardError, match=r"to_tokens: thread \d+ reads byte \d+ of 'tile', which nothing was written to"
    ):
        executed("to_tokens", Library(sources=sources, checked=True))
    sources = broken(tmp_path, "linear.metal", without_barrier(1))
    with pytest.raises(HazardError, match=r"thread 1 reads byte 0 of 'x_tile' with no barrier between it and thread 0"):
        executed("linear", Library(sources=sources, checked=True))


# ---- the subset, and what a launch must fit

KERNEL = "#include <metal_stdlib>\nusing namespace metal;\n{before}kernel void k(device float* y [[buffer(0)]]{arguments}) {{ {body} }}\n"


def written(tmp_path, before="", arguments="", body="y[0] = 1.0f;"):
    (tmp_path / "k.metal").write_text(KERNEL.format(before=before, arguments=arguments, body=body))
    return tmp_path


def launch(sources, groups=1, threads=1, **options):
    y = np.zeros(8, np.float32)
    Library(sources=sources, **options).launch("k", (groups, 1, 1), (threads, 1, 1), y=y)
    return y[0]


LANE = ", uint lane [[thread_position_in_threadgroup]], uint group [[threadgroup_position_in_grid]]"
EXCHANGE = "y[lane] = 1.0f; threadgroup_barrier(mem_flags::{}); if (y[(lane + 1) % 7] > 2.0f) {{ y[7] = 3.0f; }}"


@pytest.mark.parametrize(("one", "groups", "threads"), [("lane", 1, 7), ("group", 7, 1)])
def test_orders_are_what_they_say(tmp_path, one, groups, threads):
    sources = written(tmp_path, arguments=LANE, body=f"y[0] = y[0] * 10.0f + float({one}); (void)lane; (void)group;")
    assert launch(sources, groups, threads) == 123456
    assert launch(sources, groups, threads, order="reverse") == 6543210
    assert launch(sources, groups, threads, order="interleaved") == 246135
    shuffled = {int(launch(sources, groups, threads, order="shuffled", seed=seed)) for seed in range(5)}
    assert len(shuffled) == 5
    assert all(sorted(f"{order:07d}") == list("0123456") for order in shuffled)


@pytest.mark.parametrize(
    ("body", "race"),
    [
        ("y[lane] = y[lane + 1];", True),
        ("y[lane] = y[7];", False),
        (EXCHANGE.format("mem_threadgroup"), True),
        (EXCHANGE.format("mem_device"), False),
        ("if (group == 1) { y[lane] = 1.0f; } else if (y[lane] > 2.0f) { y[7] = 3.0f; }", True),
    ],
)
def test_race_is_what_no_barrier_orders(tmp_path, body, race):
    sources = written(tmp_path, arguments=LANE, body=f"(void)group; {body}")
    if race:
        with pytest.raises(HazardError, match="with no barrier between"):
            launch(sources, 2 if "group ==" in body else 1, 7, checked=True)
    else:
        launch(sources, 1, 7, checked=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"body": "threadgroup float scratch[4];"}, "threadgroup memory must be an argument of the kernel"),
        ({"body": "float* p = y;"}, "must name its address space; got 'float. p'"),
        ({"before": "inline void f(const float* p) {}\n"}, "must name its address space"),
        ({"arguments": ", device float* z [[buffer(2)]]"}, r"indices must count from 0; got \[0, 2\]"),
        ({"arguments": ", constant float* z [[buffer(1)]]"}, "an argument must be"),
        ({"arguments": ", uint lane [[thread_index_in_simdgroup]]"}, "an argument must be .* got 'uint lane"),
        (
            {"arguments": ", uint a [[thread_position_in_grid]], uint2 b [[threadgroup_position_in_grid]]"},
            "positions must all be of one type",
        ),
    ],
)
def test_text_outside_of_the_subset_is_refused(tmp_path, change, message):
    with pytest.raises(SubsetError, match=message):
        Library(sources=written(tmp_path, **change))


def test_two_kernels_of_one_name_are_refused(tmp_path):
    shutil.copy(written(tmp_path) / "k.metal", tmp_path / "other.metal")
    with pytest.raises(SubsetError, match=r"other.metal has a second 'k'"):
        Library(sources=tmp_path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("y[0] = y[0] * 1.5;", "double-promotion"),
        ("int i = y[0]; y[0] = float(i);", "float-conversion"),
        ("half h = half(1.0f); y[0] = float(h * h);", "no match for .operator"),
        ("half h = 1.0f; y[0] = float(h);", "conversion"),
        ("y[0] = simd_sum(y[0]);", "simd_sum"),
        ("y[0] = exp(y[0]);", "double-promotion|float-conversion"),
    ],
)
def test_what_the_stand_in_lacks_does_not_compile(tmp_path, body, message):
    with pytest.raises(CompilerError, match=message):
        launch(written(tmp_path, body=body))


def test_missing_compiler_is_named(tmp_path, monkeypatch):
    sources = written(tmp_path, body="y[0] = 2.0f;")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(CompilerError, match=r"'no-such-compiler' cannot be run .* name a compiler in \$CXX"):
        launch(sources)
    monkeypatch.delenv("CXX")
    assert launch(sources) == 2


def test_launch_must_fit_the_kernel():
    library, x = Library(), np.zeros((4, 8), np.float32)
    ones = np.ones(8, np.float32)
    with pytest.raises(LaunchError, match="a kernel must be one of .*; got 'nothing'"):
        library.launch("nothing", (1, 1, 1), (1, 1, 1))
    with pytest.raises(LaunchError, match="scale takes x, gamma, y, count, channels; got x"):
        library.launch("scale", (1, 1, 1), (1, 1, 1), x=x)
    with pytest.raises(LaunchError, match="'x' of scale must be a contiguous array of float32; got one of float64"):
        steps.scale(library, x.astype(np.float64), ones)
    with pytest.raises(LaunchError, match="'x' of scale must be a contiguous array"):
        steps.scale(library, np.zeros((8, 4), np.float32).T, ones)
    fixed = x.copy()
    fixed.flags.writeable = False
    with pytest.raises(LaunchError, match="writes 'y'; got an array that is read-only"):
        library.launch("scale", (1, 1, 1), (32, 1, 1), x=x, gamma=ones, y=fixed, count=32, channels=8)
    with pytest.raises(LaunchError, match=r"at most 32768 bytes of memory .* attention asks for 40960"):
        steps.attention(library, *(np.zeros((4, 152), np.float32) for _ in range(3)), 1)
    with pytest.raises(LaunchError, match=r"multiples of 16 bytes; layer_norm asks for \[132\]"):
        library.launch(
            "layer_norm", (1, 1, 1), (33, 1, 1), {"scratch": 33}, x=x, weight=ones, bias=ones, y=x, channels=8, eps=EPS
        )
    with pytest.raises(LaunchError, match="1024 threads"):
        library.launch("scale", (1, 1, 1), (1025, 1, 1), x=x, gamma=ones, y=x.copy(), count=32, channels=8)
    with pytest.raises(LaunchError, match="the last in a checked library only; got 'lockstep'"):
        Library(order="lockstep")


# ---- the whole transformer


def seeded(config):
    """Trained models have neither unit gains nor vanishing layer scales."""
    rng = np.random.default_rng(config.width)
    made = {}
    for name, shape in spec.parameters(config).items():
        if re.search(r"norm.*weight|gamma", name):
            made[name] = rng.uniform(0.3, 1.5, shape)
        elif len(shape) == 2 and not name.startswith("positions"):
            made[name] = rng.standard_normal(shape) * shape[1] ** -0.5
        else:
            made[name] = rng.standard_normal(shape) * 0.5
    return {name: value.astype(np.float32) for name, value in made.items()}


def local(config, tap, seen, weights):
    """What a tap must be, computed from what it reads, in float64 and not with the code under test."""
    read = [torch.from_numpy(seen[name].astype(np.float64)) for name in tap.reads]
    w = [torch.from_numpy(weights[name].astype(np.float64)) for name in tap.weights]
    last = tap.name.rsplit(".", 1)[-1].removesuffix("_t")
    if tap.name.startswith("norm_in"):
        tokens = read[0].permute(0, 3, 2, 1).flatten(1, 2) if read[0].ndim == 4 else read[0].mT
        return functional.layer_norm(tokens, (config.width,), *w, config.eps)
    if re.fullmatch("norm[123]", last):
        return functional.layer_norm(read[0], (config.width,), *w, config.eps)
    if last == "norm_out" and w:
        return functional.group_norm(read[0].mT, 1, *w, config.eps).mT
    if last in "qkv":
        part = slice("qkv".index(last) * config.width, ("qkv".index(last) + 1) * config.width)
        return functional.linear(read[0], w[0][part], w[1][part]).unflatten(-1, (config.heads, -1)).transpose(1, 2)
    if last == "logits":
        return read[0][:, :, : tap.shape[2]] @ read[1].mT / math.sqrt(read[0].shape[-1])
    if last == "heads":
        return functional.scaled_dot_product_attention(*read)
    if last.endswith("_attn"):
        return functional.linear(read[0].transpose(1, 2).flatten(2), *w)
    if last in ("linear1", "linear2"):
        return functional.linear(read[0], *w)
    if last == "gelu":
        return functional.gelu(read[0])
    if last in ("gamma_1", "gamma_2"):
        return read[0] * w[0]
    if last == "embedded":
        return read[0] + w[0]
    if last == "output":
        folded = read[0].mT
        return folded if seen[tap.name].ndim == 3 else folded.unflatten(2, (-1, seen[tap.name].shape[2])).mT
    return sum(read)  # residuals; and the last norm_out, which is its own source


def check_taps(config, weights, seen, storage, floor):
    listed = taps(config)
    assert list(seen) == list(listed)
    for name, tap in listed.items():
        assert all(extent in (None, got) for extent, got in zip(tap.shape, seen[name].shape, strict=True)), name
        if not tap.reads:
            continue
        exact = local(config, tap, seen, weights).numpy()
        assert snr_db(exact, seen[name]) >= floor, name


CONFIGS = [
    Config(32, 4, 3, 64, 3 * 7, 13),
    Config(32, 4, 2, 64, 3 * 7, 13, cross_first=True),
    Config(80, 1, 3, 96, 2 * 19, 45, eps=1e-3),
]


def stored(weights, storage):
    """Weights as the kernels hold them."""
    return {
        name: value.astype(storage if value.ndim == 2 and not name.startswith("positions") else np.float32)
        for name, value in weights.items()
    }


def inputs(config, bins):
    rng = np.random.default_rng(1)
    freq = rng.standard_normal((1, config.width, bins, config.freq_tokens // bins)).astype(np.float32)
    return freq, rng.standard_normal((1, config.width, config.time_tokens)).astype(np.float32)


@pytest.mark.parametrize(("storage", "floor", "end"), [("float32", 125, 125), ("float16", 65, 60)])
@pytest.mark.parametrize("config", CONFIGS, ids=["self", "cross", "wide"])
def test_transformer_tap_by_tap(config, storage, floor, end):
    weights, (freq, time) = seeded(config), inputs(config, 2 if config.heads == 1 else 3)
    seen = {}
    result = transformer(config, weights, freq, time, observe=seen.__setitem__, library=Library(storage))
    check_taps(config, stored(weights, storage), seen, storage, floor)
    wide = {name: value.astype(np.float64) for name, value in stored(weights, storage).items()}
    exact = reference.transformer(config, wide, *(x.astype(storage).astype(np.float64) for x in (freq, time)))
    for one, other, name in zip(exact, result, ("output", "output_t"), strict=True):
        assert other.dtype == storage
        assert snr_db(one, other) >= end
        np.testing.assert_array_equal(other, seen[name])
    watched = Library(storage, order="reverse", checked=storage == "float32")
    for library in (Library(storage), Library(storage, order="shuffled", seed=3), watched):
        for one, other in zip(result, transformer(config, weights, freq, time, library=library), strict=True):
            np.testing.assert_array_equal(one, other)


def test_transformer_leans_on_no_strict_maths():
    config = CONFIGS[0]
    weights, (freq, time) = seeded(config), inputs(config, 3)
    strict, relaxed = (transformer(config, weights, freq, time, library=Library(maths=m)) for m in ("safe", "relaxed"))
    assert any(not np.array_equal(one, other) for one, other in zip(strict, relaxed, strict=True))  # it did something
    assert all(snr_db(one, other) >= 120 for one, other in zip(strict, relaxed, strict=True))


def test_transformer_refuses_what_does_not_fit():
    config = CONFIGS[0]
    weights, (freq, time) = seeded(config), inputs(config, 3)
    with pytest.raises(SpecError, match="time branch must hold 13 tokens, as many as its position table; got 12"):
        transformer(config, weights, freq, time[..., :12])
    with pytest.raises(SpecError, match="a batch of one; got 2 and 2"):
        transformer(config, weights, np.repeat(freq, 2, 0), np.repeat(time, 2, 0))
    with pytest.raises(SpecError, match="lack 1 tensors, the first 'norm_in.bias'"):
        transformer(config, {name: value for name, value in weights.items() if name != "norm_in.bias"}, freq, time)


@pytest.mark.slow
def test_half_storage_passes_as_a_port(demo_bundle):
    """The demo model's taps against the captured, untouched model, within the plan's limits for half precision."""
    model = TappedTransformer(demo_bundle)
    dump = {}
    transformer(
        model.config, model.tensors, *model.inputs.values(), observe=dump.__setitem__, library=Library("float16")
    )
    report = verify_port([dump], demo_bundle)
    assert report.passed, report.verdict
    assert len(report.taps) == len(model.taps)
    assert min(one.check.parity.snr_db for one in report.taps if one.check.scope == "local") >= 65


def test_metal_needs_neither_torch_nor_splitter(tmp_path):
    (tmp_path / "splitter_kernels").symlink_to(ROOT / "kernels" / "splitter_kernels")
    script = (
        "import sys; sys.modules['torch'] = sys.modules['splitter'] = None; import numpy as np; "
        "from splitter_kernels.metal import Library, steps; "
        "assert steps.scale(Library(), np.ones((2, 3), 'f'), np.ones(3, 'f')).sum() == 6"
    )
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
