"""Compressed matrices and how they are decoded, bit for bit the same in NumPy and JAX.

A compressed matrix ``[out, in]`` is two companion tensors instead of one:

- ``int8``: integers ``int8 [out, in]`` and ``scales float32 [out]``. ``w = float32(q) · scale of the row``,
  one float32 multiplication per weight.
- ``pal8``, ``pal6``, ``pal4``: ``indices uint8 [⌈out · in · n / 8⌉]`` and ``table float32 [2ⁿ]`` with n = 8, 6, 4.
  The indices are one stream of n-bit numbers in row-major order, least significant bit first: number i
  takes the bits i · n … i · n + n − 1, and bit b of the stream is bit b mod 8 of byte ⌊b / 8⌋. The bits after
  the last number are zero. ``w = table[index]``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias, get_args

import numpy as np

from .spec import SpecError

Kind: TypeAlias = Literal["int8", "pal8", "pal6", "pal4"]
KINDS: tuple[Kind, ...] = get_args(Kind)
_BITS: Mapping[Kind, int] = {"pal8": 8, "pal6": 6, "pal4": 4}


def bits(kind: Kind) -> int:
    """Width of an index. Raises `SpecError` for a kind without indices."""
    if kind not in _BITS:
        raise SpecError(f"only palettes have indices: {', '.join(_BITS)}; got {kind!r}")
    return _BITS[kind]


def companions(kind: Kind, shape: tuple[int, int]) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and dtype of the tensors that stand for a matrix of this shape, by role."""
    rows, columns = shape
    if kind == "int8":
        return {"int8": ((rows, columns), "int8"), "scales": ((rows,), "float32")}
    length = math.ceil(rows * columns * bits(kind) / 8)
    return {"indices": ((length,), "uint8"), "table": ((2 ** bits(kind),), "float32")}


def decode(kind: Kind, shape: tuple[int, int], tensors: Mapping[str, Any], xp: Any = np) -> Any:
    """A compressed matrix as float32 ``[out, in]``.

    Args:
        kind: The form.
        shape: Of the matrix.
        tensors: Its companions by role.
        xp: `numpy`, or `jax.numpy`; under `jax.jit` kind and shape are static.

    Raises:
        SpecError: The companions do not have the shapes and dtypes of such a matrix.
    """
    expected = companions(kind, shape)
    got = {role: (tuple(tensor.shape), str(tensor.dtype)) for role, tensor in tensors.items()}
    if got != expected:
        raise SpecError(f"a {kind} matrix of shape {shape} is {expected}; got {got}")
    if kind == "int8":
        return tensors["int8"].astype(xp.float32) * tensors["scales"][:, None]
    n, count = bits(kind), math.prod(shape)
    stream = xp.unpackbits(tensors["indices"], count=count * n, bitorder="little").reshape(count, n)
    indices = (stream << xp.arange(n, dtype=xp.uint8)).sum(axis=1, dtype=xp.uint8)
    return tensors["table"][indices].reshape(shape)
