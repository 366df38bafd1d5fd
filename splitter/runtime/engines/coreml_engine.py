"""Core ML's own prediction of a saved package, on a Mac. (Not run by this project's tests: no Mac there.)"""

from __future__ import annotations

import platform
from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from ...boundary import Array
from ...bundle.directory import Bundle
from ...bundle.manifest import SegmentRecord
from ...errors import EngineError
from . import Engine


class CoreMLEngine(Engine):
    name: ClassVar[str] = "coreml"

    @classmethod
    def obstacle(cls, segment: SegmentRecord) -> str | None:
        if segment.artifact.target != "coreml":
            return f"Core ML runs packages, not {segment.artifact.target!r}"
        return None if platform.system() == "Darwin" else f"Core ML exists on macOS only, this is {platform.system()}"

    def __init__(self, bundle: Bundle, segment: SegmentRecord, *, compute_units: str) -> None:
        from ...mil.coreml_tools import ct

        path = bundle.files.checked(segment.artifact.path)
        try:
            self._model = ct.models.MLModel(str(path), compute_units=ct.ComputeUnit[compute_units])
        except Exception as error:  # Core ML raises every kind
            raise EngineError(f"Core ML must load {path.name}", received=str(error)) from error
        self._specs = bundle.tensors
        self._outputs = segment.outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        given = {name: np.ascontiguousarray(self._specs[name].packaged(array)) for name, array in inputs.items()}
        results = self._model.predict(given)
        specs = (self._specs[name] for name in self._outputs)
        return {spec.name: spec.unpackaged(np.asarray(results[spec.name], dtype=spec.dtype)) for spec in specs}
