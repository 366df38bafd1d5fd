"""The saved package, executed operation by operation by `splitter.mil`: what is verified off the Mac."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from .. import mil
from ..boundary import Array
from ..bundle import Bundle
from ..manifest import SegmentRecord
from . import Engine


class MilEngine(Engine):
    name: ClassVar[str] = "mil"

    @classmethod
    def obstacle(cls, segment: SegmentRecord) -> str | None:
        target = segment.artifact.target
        return None if target == "coreml" else f"the ML Program runtime runs packages, not {target!r}"

    def __init__(self, bundle: Bundle, segment: SegmentRecord, *, compute_units: str) -> None:
        self._model = mil.load(bundle.path / segment.artifact.path)
        self._specs = bundle.tensors

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        results = self._model.predict({name: self._specs[name].packaged(array) for name, array in inputs.items()})
        return {name: self._specs[name].unpackaged(array) for name, array in results.items()}
