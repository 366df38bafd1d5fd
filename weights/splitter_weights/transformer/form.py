"""Which tensors a form of the transformer's weights has, and what each one is made of."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from splitter_kernels import compression
from splitter_kernels.spec import POSITIONS, Config, parameters

from splitter.plan.schema import WeightsForm

Role = Literal["values", "int8", "scales", "indices", "table"]

# What PyTorch users (and mlx.nn.MultiHeadAttention) call the three parts of a stacked input projection.
_PROJECTIONS: Mapping[str, tuple[str, str, str]] = {
    "torch": ("q_proj", "k_proj", "v_proj"),
    "mlx": ("query_proj", "key_proj", "value_proj"),
}
_STACKED = re.compile(r"in_proj_(weight|bias)$")
_HALF = "float16"


@dataclass(frozen=True)
class StoredParameter:
    """One parameter as a port names it.

    Attributes:
        kernel: The parameter of `kernels.spec.parameters` that holds it.
        rows: The part of it along axis 0, from and to; None for all of it.
        shape: Of this part.
    """

    kernel: str
    rows: tuple[int, int] | None
    shape: tuple[int, ...]

    @property
    def slice(self) -> slice:
        """The rows, to index the kernels' parameter with."""
        return slice(None) if self.rows is None else slice(*self.rows)

    @property
    def is_matrix(self) -> bool:
        """It is the weight of a linear map: all else stays float32 and uncompressed."""
        return len(self.shape) == 2 and self.kernel not in POSITIONS.values()


def parameters_of(config: Config, form: WeightsForm) -> dict[str, StoredParameter]:
    """Every parameter of a form by its name there, in the order of the tree.

    Split, ``in_proj_weight`` and ``in_proj_bias`` become ``weight`` and ``bias`` of three projections: rows
    ``0…C`` are the query's, ``C…2C`` the key's, ``2C…3C`` the value's.
    """
    named: dict[str, StoredParameter] = {}
    for kernel, shape in parameters(config).items():
        stacked = _STACKED.search(kernel)
        if stacked is None or not form.is_split:
            named[kernel] = StoredParameter(kernel, None, shape)
            continue
        width = shape[0] // 3
        for index, projection in enumerate(_PROJECTIONS[form.layout]):
            rows = (index * width, (index + 1) * width)
            name = kernel[: stacked.start()] + f"{projection}.{stacked[1]}"
            named[name] = StoredParameter(kernel, rows, (width, *shape[1:]))
    return named


def stored(parameter: StoredParameter, form: WeightsForm) -> dict[Role, tuple[tuple[int, ...], str]]:
    """Shape and dtype of the tensors that hold a parameter, by role."""
    if not parameter.is_matrix:
        return {"values": (parameter.shape, "float32")}
    kind = form.form_of(parameter.kernel)
    if kind == "none":
        return {"values": (parameter.shape, form.matrices.dtype)}
    rows, columns = parameter.shape
    return compression.companions(kind, (rows, columns))  # type: ignore[return-value]


def tensor_name(parameter: str, role: Role) -> str:
    """``layers.0.linear1.weight`` where it is stored as it is, ``layers.0.linear1.weight.scales`` for a companion."""
    return parameter if role == "values" else f"{parameter}.{role}"


def transform(role: Role, dtype: str, form: WeightsForm) -> str:
    """What was done to the source to get a tensor, in words."""
    if role == "values":
        return "rounded to float16" if dtype == _HALF else "none"
    return {
        "int8": "divided by the scale of the row, rounded to the nearest integer",
        "scales": "largest magnitude of each row, divided by 127",
        "indices": "place of the nearest entry of the table, packed row by row, least significant bit first",
        "table": "k-means centroids, ascending",
    }[role]
