"""The saved package, executed operation by operation by `splitter.mil`: what is verified off the Mac."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...boundary import Array
from ...bundle.directory import Bundle
from ...bundle.manifest import SegmentRecord
from . import Engine

if TYPE_CHECKING:
    from ...mil.program import Operation


class MilEngine(Engine):
    name: ClassVar[str] = "mil"

    @classmethod
    def obstacle(cls, segment: SegmentRecord) -> str | None:
        target = segment.artifact.target
        return None if target == "coreml" else f"the ML Program runtime runs packages, not {target!r}"

    def __init__(self, bundle: Bundle, segment: SegmentRecord, *, compute_units: str) -> None:
        from ... import mil

        self._model = mil.load(bundle.path / segment.artifact.path, read=bundle.files.read)
        self._specs = bundle.tensors

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        results = self._model.predict(self._taken(inputs))
        return {name: self._specs[name].unpackaged(array) for name, array in results.items()}

    def run_in_steps(self, inputs: Mapping[str, Array], done: Callable[[str], None]) -> bool:
        self._model.predict(self._taken(inputs), listener=_Steps(self._model.function.opset, done))
        return True

    def _taken(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """The inputs as the package takes them."""
        return {name: self._specs[name].packaged(array) for name, array in inputs.items()}


@dataclass(frozen=True)
class _Steps:
    """Says the family of every operation that is done."""

    opset: str
    done: Callable[[str], None]

    def before(self, operation: Operation, inputs: Mapping[str, Any]) -> None: ...

    def after(self, operation: Operation, outputs: Mapping[str, Any]) -> None:
        from ...mil import ops

        self.done(ops.record(operation.type, self.opset).family)
