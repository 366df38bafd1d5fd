"""Core ML's own prediction of a saved package, on a Mac. (Not run by this project's tests: no Mac there.)"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from ...boundary import Array
from ...bundle.directory import Bundle
from ...bundle.manifest import SegmentRecord
from ...errors import EngineError
from ...lowering import ML_PACKAGE
from . import Engine

if TYPE_CHECKING:
    from ...profiling.records import CoreMLFigures


class CoreMLEngine(Engine):
    name: ClassVar[str] = "coreml"

    artifacts: ClassVar[frozenset[str] | None] = frozenset({ML_PACKAGE})
    precision: ClassVar[str | None] = None

    @classmethod
    def unsupported_reason(cls, segment: SegmentRecord) -> str | None:
        if reason := super().unsupported_reason(segment):
            return reason
        return None if platform.system() == "Darwin" else f"Core ML exists on macOS only, this is {platform.system()}"

    def __init__(self, bundle: Bundle, segment: SegmentRecord, *, compute_units: str) -> None:
        from ...mil.coreml_tools import ct

        self._path, self._compute_units = bundle.files.checked(segment.artifact.path), compute_units
        try:
            units, function = ct.ComputeUnit[compute_units], segment.artifact.function or None
            self._model = ct.models.MLModel(str(self._path), compute_units=units, function_name=function)
        except Exception as error:  # Core ML raises every kind
            raise EngineError(f"Core ML cannot load {self._path.name}", received=str(error)) from error
        self._specs = bundle.tensors
        self._outputs = segment.outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        given = {name: np.ascontiguousarray(self._specs[name].packaged(array)) for name, array in inputs.items()}
        results = self._model.predict(given)
        specs = (self._specs[name] for name in self._outputs)
        return {spec.name: spec.unpackaged(np.asarray(results[spec.name], dtype=spec.dtype)) for spec in specs}

    def device_figures(self) -> CoreMLFigures:
        from ...profiling import core_ml

        return core_ml.figures(self._path, self._compute_units)
