"""Calls of every operator: a table of cases, from which the tests make graphs of one node.

A tensor is written ``f(2, 3)`` (normally distributed), ``p`` (positive), ``u`` (within ±1), ``i`` (integers below a limit),
``b`` (truths), ``c`` (complex); each call draws its own, from a seed. Lines of a case are its arguments; keyword
arguments are a dictionary at the end.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

INF, NAN = math.inf, math.nan


@dataclass(frozen=True)
class Draw:
    """A tensor to be drawn."""

    kind: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    limit: int = 0

    def tensor(self, generator: torch.Generator) -> torch.Tensor:
        if self.kind == "integer":
            low = min(self.limit, 0)
            return torch.randint(low, abs(self.limit), self.shape, generator=generator).to(self.dtype)
        if self.kind == "truth":
            return torch.rand(self.shape, generator=generator) < 0.5
        if self.kind == "permutation":
            return torch.randperm(self.limit, generator=generator)[: self.shape[0]].to(self.dtype)
        wide = torch.complex64 if self.dtype.is_complex else torch.float32
        values = torch.randn(self.shape, dtype=wide, generator=generator)
        if self.kind == "positive":
            values = values.abs() + 0.1
        elif self.kind == "unit":
            values = torch.tanh(values) * 0.95
        return values.to(self.dtype)


def f(*shape, dtype=torch.float32):
    return Draw("normal", shape, dtype)


def h(*shape):
    return f(*shape, dtype=torch.float16)


def bf(*shape):
    return f(*shape, dtype=torch.bfloat16)


def d(*shape):
    return f(*shape, dtype=torch.float64)


def p(*shape):
    return Draw("positive", shape, torch.float32)


def u(*shape):
    return Draw("unit", shape, torch.float32)


def c(*shape):
    return f(*shape, dtype=torch.complex64)


def i(*shape, below=5, dtype=torch.int64):
    """From 0, or from −limit where the limit is negative."""
    return Draw("integer", shape, dtype, below)


def s(*shape):
    """Signed."""
    return i(*shape, below=-9)


def b(*shape):
    return Draw("truth", shape, torch.bool)


def perm(count, below):
    """Indices that differ."""
    return Draw("permutation", (count,), torch.int64, below)


def odd():
    """Numbers at which definitions part."""
    return torch.tensor([0.0, -0.0, 1.0, -1.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 1e-30, 7.25, -7.25])


def wild():
    """The same, with what is not finite."""
    return torch.tensor([NAN, INF, -INF, 0.0, 1.0, -1.0, 3.0])


def kw(**named):
    return named


_SPECTRUM = torch.stft(
    torch.sin(torch.arange(400.0) ** 1.5)[None], 64, 16, window=torch.hann_window(64), return_complex=True
)

CASES: dict[str, list[tuple]] = {
    # ------------------------------------------------------------------------------------ arithmetic
    **{f"{name}.default": [(f(3, 4),), (h(3, 4),), (bf(9),), (s(3, 4),)]
       for name in ("cos", "sin", "tanh", "erf", "square")},
    **{f"{name}.default": [(f(3, 4),), (h(3, 4),)] for name in ("exp", "exp2", "expm1", "sinh", "cosh", "tan", "atan")},
    **{f"{name}.default": [(p(3, 4),), (i(4),), (wild(),)] for name in ("sqrt", "log", "log10", "log2", "log1p")},
    **{f"{name}.default": [(p(3, 4),), (torch.tensor([1, 2, 5]),)] for name in ("rsqrt", "reciprocal")},
    **{f"{name}.default": [(u(3, 4),), (u(),)] for name in ("acos", "asin")},
    **{f"{name}.default": [(odd(),), (wild(),), (s(4),), (h(7),)] for name in ("ceil", "floor", "round", "trunc")},
    "frac.default": [(odd(),), (h(7),)],
    "neg.default": [(f(3),), (s(3),), (c(3),)],
    "abs.default": [(f(3),), (s(3),), (c(3),)],
    "sign.default": [(odd(),), (wild(),), (s(5),), (b(4),)],
    **{f"{name}.{overload}": cases for name in ("add", "sub", "rsub") for overload, cases in {
        "Tensor": [(f(2, 3), f(3)), (f(2, 3), f(2, 1), kw(alpha=2.5)), (s(3), s(3), kw(alpha=-3)), (h(5), f()), (s(3), f(3)),
                   (f(4), d()), (c(2), f(2)), (h(40), h(40), kw(alpha=0.1))],
        "Scalar": [(f(2, 3), 1.5), (s(3), 2, 3), (s(3), 1.5), (h(40), 0.1)],
    }.items()},
    **{f"{name}.{overload}": cases for name in ("mul", "div") for overload, cases in {
        "Tensor": [(f(2, 3), p(3)), (s(3), p(3)), (torch.tensor([4, 9]), torch.tensor([3, -2])), (c(3), c(3)), (h(5), p(5)),
                   (f(3), torch.tensor(2.0, dtype=torch.float64)), (f(3), 2.5), (bf(3), bf(3))],
        "Scalar": [(f(3), 0.3), (s(3), 2), (h(40), 0.1), (c(3), 2.0), (i(3, dtype=torch.uint8), -1)],
    }.items()},
    **{f"{name}.default": [(f(2, 3), f(3)), (h(3), h(3))] for name in ("atan2", "hypot")},
    **{f"{name}.default": [(f(2, 3), f(3)), (s(3), s(3)), (wild(), torch.ones(7)), (s(3), f(3))]
       for name in ("maximum", "minimum")},
    "pow.Tensor_Scalar": [(f(3), 2), (f(3), 3), (p(3), 0.5), (p(3), -1.7), (f(3), -2), (s(3), 3), (s(3), 2.0), (f(3), 7),
                          (h(5), 2), (f(3), 0)],
    "pow.Tensor_Tensor": [(p(2, 3), f(3)), (s(3), i(3))],
    "pow.Scalar": [(2.5, f(3)), (2, i(3)), (10000, f(3))],
    "clamp.default": [(f(9), -0.5, 0.5), (f(9), None, 0.1), (f(9), 0.5, -0.5), (s(9), -2, 3), (wild(), -2.0, 2.0), (s(9), 0.5)],
    "clamp.Tensor": [(f(3, 4), u(4), None), (f(3), torch.zeros(3), torch.ones(3))],
    "clamp_min.default": [(f(9), 0.1), (s(9), 1)],
    "clamp_max.default": [(f(9), 0.1), (s(9), 1)],
    "addcmul.default": [(f(2, 3), f(3), f(2, 1)), (f(3), f(3), f(3), kw(value=0.3))],
    "addcdiv.default": [(f(2, 3), f(3), p(2, 1)), (f(3), f(3), p(3), kw(value=0.3))],
    "div.Tensor_mode": [(f(40), p(40), {"rounding_mode": mode}) for mode in ("floor", "trunc", None)] + [
        (s(9), 3, {"rounding_mode": "floor"}), (s(9), -2, {"rounding_mode": "trunc"}), (h(9), 0.5, {"rounding_mode": "floor"})],
    "remainder.Scalar": [(f(40), 0.7), (s(9), 3), (s(9), -4), (f(9), -0.7)],
    "remainder.Tensor": [(f(40), p(40)), (f(3, 1), f(4))],
    "lerp.Scalar": [(f(3), f(3), 0.2), (f(3), f(3), 0.8)],
    "lerp.Tensor": [(f(3), f(3), f(3))],
    "nan_to_num.default": [(wild(),), (wild(), 2.0, 3.0, -4.0), (s(3),)],
    # ------------------------------------------------------------------------- comparison and logic
    **{f"{name}.{overload}": cases for name in ("eq", "ne", "lt", "le", "gt", "ge") for overload, cases in {
        "Tensor": [(odd(), odd().flip(0)), (s(3, 1), s(4)), (s(4), f(4)), (wild(), wild()),
                   (torch.tensor([2**24 + 1]), torch.tensor([2**24])), (b(4), b(4))],
        "Scalar": [(odd(), 1.5), (s(9), 2), (s(9), 1.5), (torch.tensor([2**40, 3]), 3), (b(4), 1)],
    }.items()},
    **{f"{name}.default": [(b(2, 4), b(4)), (s(4), f(4))] for name in ("logical_and", "logical_or", "logical_xor")},
    "logical_not.default": [(b(4),), (s(9),), (odd(),)],
    **{f"bitwise_{name}.Tensor": [(b(2, 4), b(4)), (s(4), s(4)), (i(4, dtype=torch.uint8), s(4))] for name in ("and", "or", "xor")},
    "bitwise_not.default": [(b(4),), (s(4),), (i(4, dtype=torch.uint8),)],
    **{f"{name}.default": [(wild(),), (s(3),), (c(2),)] for name in ("isnan", "isinf", "isfinite")},
    "where.self": [(b(2, 3), f(3), f(2, 1)), (b(3), s(3), f(3)), (b(3), f(3), torch.tensor(1.0, dtype=torch.float64))],
    "where.ScalarSelf": [(b(3), 1.5, f(3)), (b(3), 1, s(3))],
    "where.ScalarOther": [(b(3), f(3), 1.5), (b(3), s(3), 1.5)],
    "where.Scalar": [(b(3), 1.0, 0.0), (b(3), 1, 2)],
    "masked_fill.Scalar": [(f(2, 3), b(3), -INF), (s(3), b(3), 7), (h(3), b(3), 0.1)],
    "masked_fill.Tensor": [(f(2, 3), b(3), f())],
    # ----------------------------------------------------------------------------------- activations
    **{f"{name}.default": [(torch.linspace(-9, 9, 40),), (h(9),)] for name in (
        "relu6", "silu", "mish", "selu", "hardswish", "hardsigmoid", "sigmoid", "log_sigmoid", "softplus", "elu", "celu",
        "leaky_relu", "gelu", "hardtanh")},
    "relu.default": [(wild(),), (s(5),)],
    "gelu.default": [(torch.linspace(-9, 9, 40),), (h(9),), (torch.linspace(-9, 9, 40), kw(approximate="tanh"))],
    "elu.default": [(f(9),), (f(9), 0.7, 1.3, 0.9)],
    "celu.default": [(f(9),), (f(9), 0.7)],
    "leaky_relu.default": [(f(9),), (f(9), 0.3), (bf(9), 0.3)],
    "softplus.default": [(torch.linspace(-50, 50, 40),), (f(9), 2.0, 1.0)],
    "hardtanh.default": [(f(9),), (f(9), -0.3, 0.2)],
    "prelu.default": [(f(2, 4, 3), f(4)), (f(2, 4, 3), f(1)), (f(5), f(1)), (f(), f())],
    "glu.default": [(f(2, 6),), (f(2, 6, 3), 1)],
    "softmax.int": [(f(2, 6), -1), (f(2, 6), 0), (h(2, 6), -1, torch.float32), (f(), 0), (torch.tensor([[0.0, -INF, 1.0]]), 1)],
    "log_softmax.int": [(f(2, 6), -1), (h(2, 6), 1)],
    "_softmax.default": [(f(2, 6), 1, False)],
    "_log_softmax.default": [(f(2, 6), 1, False)],
    "dropout.default": [(f(3), 0.5, False)],
    # ---------------------------------------------------------------------------------------- linear
    "linear.default": [(f(2, 5, 4), f(3, 4), f(3)), (f(5, 4), f(3, 4)), (f(4), f(3, 4), f(3)), (h(5, 4), h(3, 4), h(3)),
                       (f(3, 2048), f(7, 2048))],
    "matmul.default": [(f(4, 3), f(3, 5)), (f(2, 1, 4, 3), f(6, 3, 5)), (f(3), f(3, 5)), (f(4, 3), f(3)), (f(3), f(3)),
                       (s(2, 3), s(3, 2)), (bf(4, 3), bf(3, 5)), (f(3, 2048), f(2048, 3)), (c(2, 3), c(3, 2))],
    "mm.default": [(f(4, 3), f(3, 5))],
    "bmm.default": [(f(2, 4, 3), f(2, 3, 5))],
    "mv.default": [(f(4, 3), f(3))],
    "dot.default": [(f(3), f(3))],
    "outer.default": [(f(3), f(4)), (s(2), f(3))],
    "addmm.default": [(f(5), f(4, 3), f(3, 5)), (f(4, 5), f(4, 3), f(3, 5), kw(beta=0.5, alpha=2.0)),
                      (torch.full((4, 5), NAN), f(4, 3), f(3, 5), kw(beta=0))],
    "baddbmm.default": [(f(2, 4, 5), f(2, 4, 3), f(2, 3, 5), kw(beta=0.5, alpha=2.0))],
    "einsum.default": [("ij,jk->ik", [f(4, 3), f(3, 5)]), ("bhid, bhjd -> bhij", [f(1, 2, 3, 4), f(1, 2, 5, 4)]),
                       ("...i,i->...", [f(2, 3, 4), f(4)]), ("ii->i", [f(3, 3)]), ("ij,kj", [f(2, 3), f(4, 3)]),
                       ("ab,bc,cd->ad", [f(2, 3), f(3, 4), f(4, 2)]), ("bhqk,bhkd->bqhd", [h(1, 2, 3, 4), h(1, 2, 4, 5)])],
    # ----------------------------------------------------------------------------------- convolution
    "conv1d.default": [(f(2, 4, 16), f(6, 4, 3), f(6), [2], [1], [2], 1), (f(4, 16), f(6, 2, 3), None, [1], [0], [1], 2),
                       (f(1, 4, 16), f(4, 1, 8), f(4), [4], [3], [1], 4), (h(1, 4, 16), h(6, 4, 3), h(6))],
    "conv1d.padding": [(f(2, 4, 16), f(6, 4, 4), f(6), [1], "same", [2], 1), (f(2, 4, 16), f(6, 4, 4), None, [2], "valid")],
    "conv2d.default": [(f(1, 4, 9, 8), f(6, 2, 3, 2), f(6), [2, 1], [1, 0], [1, 2], 2), (f(4, 9, 8), f(6, 4, 1, 3))],
    "conv2d.padding": [(f(1, 2, 9, 8), f(6, 2, 2, 3), f(6), [1, 1], "same", [1, 2], 1)],
    "conv3d.default": [(f(1, 2, 4, 5, 6), f(4, 2, 3, 2, 1), f(4), [1, 2, 1], [1, 0, 1])],
    "conv3d.padding": [(f(1, 2, 4, 5, 6), f(4, 2, 3, 2, 1), f(4), [1, 1, 1], "same")],
    "conv_transpose1d.default": [(f(2, 4, 7), f(4, 3, 5), f(6), [3], [2], [1], 2, [2]), (f(4, 7), f(4, 3, 8), None, [4], [2]),
                                 (f(1, 4, 7), f(4, 3, 2), None, [1], [2])],
    "conv_transpose2d.input": [(f(1, 4, 5, 6), f(4, 2, 3, 2), f(4), [2, 1], [1, 0], [1, 0], 2, [1, 2])],
    "conv_transpose3d.input": [(f(1, 2, 3, 4, 2), f(2, 3, 3, 2, 2), f(3), [2, 1, 2], [1, 0, 1], [1, 0, 0])],
    "convolution.default": [(f(1, 2, 8), f(4, 2, 3), f(4), [1], [1], [1], False, [0], 1),
                            (f(1, 2, 8), f(2, 4, 3), f(4), [2], [1], [1], True, [1], 1)],
    # --------------------------------------------------------------------------------- normalisation
    "batch_norm.default": [(f(2, 4, 8), f(4), f(4), f(4), p(4), False, 0.1, 1e-5, True), (f(2, 4), None, None, f(4), p(4), False, 0.1, 1e-3, True),
                           (f(3, 4, 8), f(4), f(4), None, None, True, 0.1, 1e-5, True)],
    "instance_norm.default": [(f(2, 4, 8), f(4), f(4), None, None, True, 0.1, 1e-5, True), (f(2, 4, 8), None, None, f(4), p(4), False, 0.1, 1e-5, True)],
    "group_norm.default": [(f(2, 4, 8), 2, f(4), f(4)), (f(2, 4, 3, 3), 1, None, None, 1e-3), (h(2, 4, 8), 2, h(4), h(4)), (f(1, 2, 100000), 1)],
    "layer_norm.default": [(f(2, 4, 8), [8], f(8), f(8)), (f(2, 4, 8), [4, 8], None, None, 1e-3), (h(2, 8), [8], h(8), h(8))],
    "rms_norm.default": [(f(2, 4, 8), [8], f(8)), (f(2, 4, 8), [4, 8], None, 1e-3)],
    "linalg_vector_norm.default": [(f(4, 8),), (f(4, 8), 2, [1], True), (f(4, 8), 1, [0]), (f(4, 8), INF, [1]), (f(4, 8), -INF, [1]),
                                   (odd(), 0), (f(4, 8), 3, [0, 1]), (h(4, 8), 2, [1], kw(dtype=torch.float32)), (c(4), 2)],
    # ---------------------------------------------------------------------- attention and recurrence
    "scaled_dot_product_attention.default": [
        (f(1, 2, 8, 4), f(1, 2, 6, 4), f(1, 2, 6, 3)), (f(1, 2, 8, 4), f(1, 2, 6, 4), f(1, 2, 6, 4), f(8, 6)),
        (f(1, 2, 6, 4), f(1, 2, 6, 4), f(1, 2, 6, 4), None, 0.0, True), (f(2, 5, 4), f(2, 6, 4), f(2, 6, 4), b(5, 6), kw(scale=0.3)),
        (f(1, 1, 2, 4), f(1, 1, 3, 4), f(1, 1, 3, 4), torch.tensor([[True, False, True], [False] * 3])),
        (f(1, 4, 8, 4), f(1, 2, 6, 4), f(1, 2, 6, 4), kw(enable_gqa=True)), (h(1, 2, 8, 4), h(1, 2, 6, 4), h(1, 2, 6, 4))],
    "lstm.input": [(f(3, 2, 4), [f(1, 2, 5), f(1, 2, 5)], [f(20, 4), f(20, 5), f(20), f(20)], True, 1, 0.0, False, False, False),
                   (f(2, 3, 4), [f(4, 2, 5), f(4, 2, 5)], 2 * [f(20, 4), f(20, 5)] + 2 * [f(20, 10), f(20, 5)], False, 2, 0.0, False, True, True)],
    "gru.input": [(f(3, 2, 4), f(1, 2, 5), [f(15, 4), f(15, 5), f(15), f(15)], True, 1, 0.0, False, False, False),
                  (f(2, 3, 4), f(2, 2, 5), 2 * [f(15, 4), f(15, 5)], False, 1, 0.0, False, True, True)],
    **{f"rnn_{name}.input": [(f(3, 2, 4), f(1, 2, 5), [f(5, 4), f(5, 5), f(5), f(5)], True, 1, 0.0, False, False, False),
                             (f(2, 3, 4), f(2, 2, 5), 2 * [f(5, 4), f(5, 5)], False, 1, 0.0, False, True, True)] for name in ("tanh", "relu")},
    # ------------------------------------------------------------------------------------- reduction
    **{f"{name}.default": [(f(3, 4),), (f(),)] for name in ("mean", "std", "var", "prod", "max", "min", "argmax", "argmin")},
    "sum.default": [(f(3, 4),), (s(3),), (b(7),), (h(9), kw(dtype=torch.float32)), (f(100000),)],
    "sum.dim_IntList": [(f(3, 4), [1]), (f(3, 4, 2), [0, -1], True), (f(3, 4), None), (b(3, 4), [0])],
    "mean.default": [(f(3, 4),), (f(100000),), (s(4), kw(dtype=torch.float32))],
    "mean.dim": [(f(3, 4), [1]), (f(3, 4, 2), [0, -1], True), (h(3, 400), [1])],
    **{f"{name}.default": [(f(3, 4),), (f(3, 4), False)] for name in ("std", "var")},
    **{f"{name}.dim": [(f(3, 4), [1]), (f(3, 4, 2), [0, 2], False, True)] for name in ("std", "var")},
    **{f"{name}.correction": [(f(3, 4), [1]), (f(3, 4), None, kw(correction=0)), (f(3, 4), [1], kw(correction=2, keepdim=True)), (c(5), None)]
       for name in ("std", "var")},
    **{f"{name}.correction": [(f(3, 4), [1]), (f(3, 4), [0], kw(correction=0, keepdim=True))] for name in ("std_mean", "var_mean")},
    "prod.default": [(f(3, 4),), (i(3),)],
    "prod.dim_int": [(f(3, 4), 1), (i(3, 4), 0, True)],
    **{f"{name}.default": [(f(3, 4),), (f(3, 4), [1]), (s(3, 4), [0, 1], True)] for name in ("amax", "amin")},
    **{f"{name}.dim": [(f(3, 4), 1), (s(3, 4), 0, True), (wild(), 0), (f(), 0)] for name in ("max", "min")},
    **{f"arg{name}.default": [(f(3, 4),), (s(3, 4), 1), (f(3, 4), 0, True), (wild(),), (f(3, 4), None, True)] for name in ("max", "min")},
    **{f"{name}.default": [(b(3, 4),), (odd(),), (i(4, below=2, dtype=torch.uint8),)] for name in ("any", "all")},
    **{f"{name}.dim": [(b(3, 4), 1), (i(3, 4, below=2), 0, True)] for name in ("any", "all")},
    "logsumexp.default": [(f(3, 4), [1]), (f(3, 4), [0, 1], True), (torch.full((2, 2), -INF), [1])],
    "cumsum.default": [(f(3, 4), 1), (s(3, 4), 0), (b(5), 0), (f(1, 5000), 1)],
    "topk.default": [(f(3, 8), 3), (f(3, 8), 2, 0, False), (perm(8, 8), 3)],
    "sort.default": [(f(3, 8),), (f(3, 8), 0, True), (wild(),), (wild(), 0, True), (f(), 0)],
    "argsort.default": [(f(3, 8),), (f(3, 8), 0, True)],
    # ----------------------------------------------------------------------------------------- shape
    "view.default": [(f(3, 4), [2, -1]), (f(), [1])],
    "reshape.default": [(f(3, 4), [2, 6])],
    "flatten.using_ints": [(f(2, 3, 4), 1), (f(2, 3, 4), 0, 1)],
    "unflatten.int": [(f(2, 6), 1, [2, -1])],
    "squeeze.default": [(f(2, 1, 3, 1),)],
    "squeeze.dim": [(f(2, 1, 3), 1), (f(2, 1, 3), 0)],
    "squeeze.dims": [(f(1, 2, 1), [0, 1, 2])],
    "unsqueeze.default": [(f(2, 3), -1), (f(2, 3), 0)],
    "permute.default": [(f(2, 3, 4), [2, 0, -2])],
    "transpose.int": [(f(2, 3, 4), 0, -1)],
    "t.default": [(f(2, 3),), (f(3),)],
    "movedim.int": [(f(2, 3, 4), 0, -1)],
    "movedim.intlist": [(f(2, 3, 4), [0, 1], [-1, 0])],
    "expand.default": [(f(2, 1), [3, -1, 4])],
    "expand_as.default": [(f(2, 1), f(3, 2, 4))],
    "broadcast_to.default": [(f(2, 1), [3, 2, 4])],
    "repeat.default": [(f(2, 3), [2, 1, 3])],
    "repeat_interleave.self_int": [(f(2, 3), 2), (f(2, 3), 2, 1)],
    "tile.default": [(f(2, 3), [2]), (f(3), [2, 2])],
    "select.int": [(f(2, 3), 1, -1)],
    "slice.Tensor": [(f(8, 3), 0, 1, 7, 2), (f(8), 0, -3), (f(8), 0, 2, 9223372036854775807), (f(8), 0, 5, 2)],
    "narrow.default": [(f(8, 3), 0, 2, 3), (f(8), 0, -3, 2)],
    "split.Tensor": [(f(7, 2), 3), (f(2, 6), 2, -1)],
    "split_with_sizes.default": [(f(7, 2), [1, 2, 4])],
    "chunk.default": [(f(7, 2), 3), (f(2, 6), 4, 1)],
    "unbind.int": [(f(2, 3), 1)],
    "unfold.default": [(f(2, 9), 1, 3, 2), (f(9, 2), 0, 4, 1)],
    "diagonal.default": [(f(4, 4),), (f(2, 3, 4), 1, 0, 2)],
    "flip.default": [(f(2, 3), [1]), (f(2, 3), [0, -1])],
    "roll.default": [(f(2, 3), [1], [1]), (f(2, 3), [1, -1], [0, 1]), (f(2, 3), [2])],
    "cat.default": [([f(2, 3), f(2, 1)], 1), ([f(0), f(2, 3)], 0), ([s(2), f(3)],)],
    "stack.default": [([f(2, 3), f(2, 3)], -1), ([s(2), f(2)],)],
    **{f"{name}.default": [(f(2, 3),), (s(2),), (c(2),)] for name in ("clone", "contiguous", "detach", "alias", "lift_fresh_copy")},
    "copy.default": [(f(2, 3), s(3)), (s(3), f(3))],
    "slice_scatter.default": [(f(4, 8), f(4, 3), 1, 0, 6, 2)],
    "select_scatter.default": [(f(4, 8), f(4), 1, -2)],
    "tril.default": [(f(4, 5),), (f(2, 4, 5), -1)],
    "triu.default": [(f(4, 5), 1)],
    "pad.default": [(f(2, 8), [3, 2]), (f(2, 8), [3, -2], "constant", 1.5), (f(2, 8), [3, 2], "reflect"), (f(1, 2, 8), [3, 2], "replicate"),
                    (f(1, 2, 8), [3, 2], "circular"), (f(1, 2, 8, 8), [1, 2, 3, 0], "reflect")],
    "constant_pad_nd.default": [(f(1, 2, 8), [3, 2], 0.5), (s(2, 8), [-1, 2, 1, 0], 7)],
    "pixel_shuffle.default": [(f(2, 8, 3, 2), 2)],
    "pixel_unshuffle.default": [(f(2, 2, 6, 4), 2)],
    "im2col.default": [(f(2, 3, 8, 7), [3, 2], [1, 2], [1, 0], [2, 1]), (f(3, 8, 7), [2, 2], [1, 1], [0, 0], [2, 2])],
    "col2im.default": [(f(1, 18, 16), [8, 8], [3, 3], [1, 1], [1, 1], [2, 2]), (f(8, 9), [5, 5], [2, 2], [2, 2], [0, 0], [1, 1])],
    "to.dtype": [(f(4), torch.float16), (odd(), torch.int64), (s(3), torch.bool), (b(3), torch.float32), (f(3), torch.float64),
                 (f(4), torch.bfloat16), (odd(), torch.uint8)],
    "to.dtype_layout": [(f(4), kw(dtype=torch.int32))],
    "_to_copy.default": [(f(4), kw(dtype=torch.int32)), (s(4), kw(dtype=torch.float32))],
    "type_as.default": [(f(4), s(1))],
    "meshgrid.indexing": [([f(3), f(4)], kw(indexing="ij")), ([f(3), f(4)], kw(indexing="xy"))],
    # ------------------------------------------------------------------------------------- constants
    "arange.default": [(5,), (5.5,), (3, kw(dtype=torch.float32))],
    "arange.start": [(2, 7), (-1.5, 3)],
    "arange.start_step": [(7, 1, -2), (0, 1, 0.1)],
    "linspace.default": [(-1.0, 2.0, 7), (0, 1, 1), (0, 10, 5, kw(dtype=torch.float64))],
    **{f"{name}.default": [([2, 3],), ([], kw(dtype=torch.int64))] for name in ("zeros", "ones")},
    **{f"{name}_like.default": [(f(2, 3),), (f(2), kw(dtype=torch.bool))] for name in ("zeros", "ones")},
    **{f"new_{name}.default": [(f(2, 3), [4]), (s(2), [2])] for name in ("zeros", "ones")},
    "full.default": [([2, 3], 1.5), ([2], 7), ([2], -INF), ([2], True)],
    "full_like.default": [(s(2, 3), 1.5), (f(2), 2)],
    "new_full.default": [(s(2, 3), [2], 3), (f(2), [1], 2.5)],
    "scalar_tensor.default": [(1.5,), (3, kw(dtype=torch.int64))],
    "eye.default": [(3,)],
    "eye.m": [(3, 4)],
    **{f"{name}_window.default": [(8,), (1,), (7,)] for name in ("hann", "hamming")},
    **{f"{name}_window.periodic": [(8, False), (9, True), (1, False)] for name in ("hann", "hamming")},
    # -------------------------------------------------------------------------------------- indexing
    "embedding.default": [(f(8, 4), i(2, 5, below=8)), (f(8, 4), i(3, below=8, dtype=torch.int32), 0)],
    "gather.default": [(f(4, 8), 1, i(4, 3, below=8)), (f(4, 8), 0, i(2, 5, below=4)), (f(4, 8), 0, i(0, 8))],
    "index.Tensor": [(f(4, 8), [i(3, below=4), i(3, below=8)]), (f(4, 8, 2), [None, s(3) , None]), (f(4, 8, 9), [i(3, 1, below=4), None, i(2, below=9)])],
    "index_select.default": [(f(4, 8), 1, i(3, below=8)), (f(4, 8), 0, i(5, below=4, dtype=torch.int32))],
    "index_put.default": [(f(4, 8), [perm(3, 4), perm(3, 8)], f(3), False), (f(4, 8), [i(9, below=4)], f(9, 8), True),
                          (f(9, 8), [None, perm(3, 8)], f(), False), (s(4), [torch.tensor([-1, 0])], s(2))],
    "index_add.default": [(f(4, 8), 1, i(9, below=8), f(4, 9)), (f(4, 8), 0, i(3, below=4), f(3, 8), kw(alpha=0.5))],
    "index_copy.default": [(f(4, 8), 1, perm(3, 8), f(4, 3))],
    "scatter.src": [(f(4, 8), 0, torch.tensor([[0, 1, 2], [3, 0, 1]]), f(2, 5))],
    "scatter.value": [(f(4, 8), 1, i(4, 3, below=8), 1.5), (f(4, 8), 1, i(4, 0), 1.5)],
    "scatter_add.default": [(f(4, 8), 1, i(4, 9, below=8), f(4, 9))],
    # ------------------------------------------------------------------------------ Fourier, complex
    "stft.default": [(f(2, 96), 32, 8, 32, p(32), False, True, True), (f(2, 96), 32, 16, 20, p(20), True, None, True), (f(96), 32, None, None, None, False, False, True),
                     (f(2, 96), 32, 8, 32, p(32), False, True, False)],
    "stft.center": [(f(2, 96), 32, 8, 32, p(32), True, "reflect", False, True, True), (f(2, 96), 32, 8, 32, p(32), True, "constant", True, None, True),
                    (f(2, 96), 32, 8, 32, p(32), False, "reflect", False, True, True)],
    "istft.default": [(_SPECTRUM, 64, 16, 64, torch.hann_window(64), True, False, True, 400), (_SPECTRUM, 64, 16, 64, torch.hann_window(64), True, True, None, 300),
                      (c(1, 33, 9), 64, 30, 64, torch.hamming_window(64), True, False, True, 240), (c(33, 9), 64, 16, 64, torch.ones(64), False, False, None, 192)],
    **{f"fft_{name}.default": [(c(3, 8),), (f(3, 8), 5, 0, "ortho"), (c(3, 8), 12, -1, "forward")] for name in ("fft", "ifft")},
    "fft_rfft.default": [(f(3, 8),), (f(3, 9), 12, 0, "ortho"), (s(3, 8),)],
    "fft_irfft.default": [(c(3, 5),), (c(3, 5), 9, -1, "ortho")],
    **{f"fft_{name}2.default": [(c(2, 4, 6),), (c(2, 4, 6), [3, 8], [0, 2], "ortho")] for name in ("fft", "ifft")},
    "fft_rfft2.default": [(f(2, 4, 6),), (f(4, 6), None, [1]), (f(2, 4, 6), [3, 8], [0, 2], "ortho")],
    "fft_irfft2.default": [(c(2, 4, 5),), (c(2, 4, 5), [-1, -1]), (c(2, 4, 5), [4, 9], [-2, -1], "ortho")],
    **{f"fft_{name}.default": [(f(3, 5),), (f(3, 5), [1])] for name in ("fftshift", "ifftshift")},
    "view_as_complex.default": [(f(3, 2),)],
    "view_as_real.default": [(c(3, 2),)],
    "complex.default": [(f(3), f(3)), (f(2, 1), f(3))],
    "polar.default": [(p(3), f(3))],
    "real.default": [(c(3),), (f(3),)],
    "imag.default": [(c(3),)],
    "angle.default": [(c(3),), (wild(),), (s(3),)],
    **{f"{name}.default": [(c(3),), (f(3),)] for name in ("conj", "_conj_physical", "conj_physical", "resolve_conj")},
    "_conj.default": [(c(3),)],
    # -------------------------------------------------------------------------- pooling, resampling
    "avg_pool1d.default": [(f(1, 2, 9), [3], [2], [1], True, False), (f(2, 9), [3])],
    "avg_pool2d.default": [(f(1, 2, 9, 8), [3, 2], [2, 2], [1, 0]), (f(1, 2, 9, 8), [3, 3], [2, 2], [1, 1], True, False),
                           (f(1, 2, 9, 8), [3, 3], [2, 2], [1, 1], True, True), (f(1, 2, 9, 8), [3, 3], [2, 2], [1, 1], False, True, 5)],
    "avg_pool3d.default": [(f(1, 2, 4, 5, 6), [2, 3, 2], [1, 2, 2], [1, 1, 0])],
    "max_pool1d.default": [(f(1, 2, 9), [3], [2], [1], [1], True), (f(2, 9), [3], [], [0], [2])],
    "max_pool2d.default": [(f(1, 2, 9, 8), [3, 2], [2, 2], [1, 0], [1, 2], True), (f(2, 9, 8), [2, 2])],
    "max_pool3d.default": [(f(1, 2, 4, 5, 6), [2, 3, 2], [1, 2, 2], [1, 1, 0])],
    "max_pool2d_with_indices.default": [(f(1, 2, 9, 8), [3, 2], [2, 2], [1, 0], [1, 2], True), (f(2, 9, 8), [2, 2])],
    "adaptive_avg_pool1d.default": [(f(1, 2, 8), [3]), (f(2, 8), [4])],
    "adaptive_avg_pool2d.default": [(f(1, 2, 8, 9), [3, 1])],
    "adaptive_avg_pool3d.default": [(f(1, 2, 4, 5, 6), [2, 3, 4])],
    "upsample_nearest1d.vec": [(f(1, 2, 8), None, [2.5]), (f(1, 2, 8), [5], None)],
    "upsample_nearest2d.vec": [(f(1, 2, 8, 5), None, [2.0, 1.3]), (f(1, 2, 8, 5), [5, 12], None)],
    "upsample_linear1d.vec": [(f(1, 2, 8), None, False, [2.5]), (f(1, 2, 8), [5], True, None)],
    "upsample_bilinear2d.vec": [(f(1, 2, 8, 5), None, False, [2.0, 1.3]), (f(1, 2, 8, 5), [5, 12], True, None), (f(1, 2, 8, 5), [1, 3], False, None)],
    "upsample_bicubic2d.vec": [(f(1, 2, 8, 5), None, False, [2.0, 1.3]), (f(1, 2, 8, 5), [5, 12], True, None)],
}  # fmt: skip
