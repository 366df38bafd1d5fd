"""The toy artifact: a directory with a program, its weights in their forms, and the precision of the arithmetic."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from safetensors.numpy import load, save
from splitter_weights.quantisation import integers, nearest, palette

from splitter.boundary import Array
from splitter.graph import program as programs
from splitter.graph.program import Program
from splitter.lowering.weights import BITS
from splitter.plan.schema import WeightForm

KIND = "toy package"


def write(path: Path, program: Program, forms: Mapping[str, WeightForm], precision: str) -> None:
    path.mkdir()
    tensors: dict[str, Array] = {}
    for name, weight in program.weights.items():
        tensors |= {f"{name}|{part}": array for part, array in _encode(weight.detach().numpy(), forms[name]).items()}
    programs.save(program, path / "program.json")
    (path / "weights.safetensors").write_bytes(save(tensors))
    (path / "precision").write_text(precision)


def weights_of(path: Path, read: Callable[[Path], bytes]) -> dict[str, Array]:
    """The weights by name, decoded."""
    parts: dict[str, dict[str, Array]] = {}
    for key, array in load(read(path / "weights.safetensors")).items():
        name, _, part = key.rpartition("|")
        parts.setdefault(name, {})[part] = array
    return {name: _decode(stored) for name, stored in parts.items()}


def _encode(values: Array, form: WeightForm) -> dict[str, Array]:
    if form == "none":
        return {"values": np.ascontiguousarray(values)}
    if form == "int8":
        quotients, scales = integers(values.reshape(len(values), -1))
        return {"quotients": quotients.reshape(values.shape), "scales": scales}
    table = palette(values, 2 ** BITS[form])
    return {"table": table, "indices": nearest(table, values).astype(np.uint8)}


def _decode(stored: Mapping[str, Array]) -> Array:
    if "values" in stored:
        return stored["values"]
    if "table" in stored:
        return stored["table"][stored["indices"]]
    scales = stored["scales"].reshape(-1, *[1] * (stored["quotients"].ndim - 1))
    return stored["quotients"].astype(np.float32) * scales
