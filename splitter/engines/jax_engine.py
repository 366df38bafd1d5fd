"""JAX: the transformer, compiled by XLA for this machine."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import jax
import numpy as np

from ..boundary import Array
from ..bundle import Bundle
from ..kernels import xla
from ..manifest import SegmentRecord
from ..weights import transformer as weights
from . import Engine


class JaxEngine(Engine):
    name: ClassVar[str] = "jax"
    competes: ClassVar[bool] = True

    @classmethod
    def obstacle(cls, segment: SegmentRecord) -> str | None:
        target = segment.artifact.target
        return None if target == "kernels" else f"JAX runs the transformer, not {target!r}"

    def __init__(self, bundle: Bundle, segment: SegmentRecord, *, compute_units: str) -> None:
        self._record = weights.record_of(segment.artifact.details)
        config, tensors = weights.load(bundle.path / segment.artifact.path, self._record)
        self._weights = xla.prepared(tensors)
        self._transformer = xla.compiled(config)
        self._dtypes = [bundle.tensors[name].dtype for name in self._record.outputs]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        freq, time = (jax.numpy.asarray(inputs[name], np.float32) for name in self._record.inputs)
        results = self._transformer(self._weights, freq, time)
        return {
            name: np.array(result, dtype)  # a copy: JAX gives read-only views
            for name, result, dtype in zip(self._record.outputs, results, self._dtypes, strict=True)
        }
