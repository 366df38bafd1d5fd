"""One parameter → the tensors that are stored for it."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from splitter_kernels import compression
from splitter_kernels.compression import Kind

from splitter.errors import LoweringError
from splitter.plan.schema import WeightsForm

from ..quantisation import integers, nearest, palette
from .form import Role, StoredParameter

Array: TypeAlias = NDArray[Any]


def encode(name: str, parameter: StoredParameter, values: Array, form: WeightsForm) -> dict[Role, Array]:
    """The tensors that stand for a parameter, by role; `decode` undoes it.

    Raises:
        LoweringError: The values do not fit the element type, or cannot be compressed.
    """
    if not parameter.is_matrix:
        return {"values": np.ascontiguousarray(values, np.float32)}
    kind = form.form_of(parameter.kernel)
    if kind == "none":
        return {"values": _rounded(name, values, form)}
    if not np.isfinite(values).all():
        raise LoweringError(f"{name!r} cannot be compressed: it holds NaN or infinity", fix="Leave --compress out.")
    if kind == "int8":
        return dict(zip(("int8", "scales"), integers(values), strict=True))
    return dict(zip(("indices", "table"), _palette(values, kind), strict=True))


def decode(parameter: StoredParameter, tensors: dict[Role, Array], form: WeightsForm) -> Array:
    """A parameter in float32, as the kernels take it."""
    if "values" in tensors:
        return tensors["values"].astype(np.float32)
    rows, columns = parameter.shape
    kind = form.form_of(parameter.kernel)
    assert kind != "none"  # those are stored as values
    decoded: Array = compression.decode(kind, (rows, columns), tensors)  # type: ignore[arg-type]
    return decoded


def _rounded(name: str, values: Array, form: WeightsForm) -> Array:
    with np.errstate(over="ignore"):
        rounded = np.ascontiguousarray(values, form.matrices.dtype)
    if np.isfinite(values).all() and not np.isfinite(rounded).all():
        raise LoweringError(
            f"{name!r} does not fit half precision",
            expected="weights of at most 65,504",
            received=f"{np.abs(values).max():g}",
            fix="Build with --weights-dtype fp32.",
        )
    return rounded


def _palette(values: Array, kind: Kind) -> tuple[Array, Array]:
    """A table, and the packed index of each weight's nearest entry."""
    n = compression.bits(kind)
    table = palette(values, 2**n)
    stream = np.unpackbits(nearest(table, values).ravel()[:, None], axis=1, count=n, bitorder="little")
    return np.packbits(stream.ravel(), bitorder="little"), table
