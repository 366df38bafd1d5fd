"""The saved package, executed operation by operation by `splitter.mil`: what is verified off the Mac."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from ...boundary import Array
from ...bundle.directory import Bundle
from ...bundle.manifest import SegmentRecord
from ...lowering import ML_PACKAGE
from . import Engine, NonFinite

if TYPE_CHECKING:
    from ...mil.program import Operation


class MilEngine(Engine):
    name: ClassVar[str] = "mil"

    artifacts: ClassVar[frozenset[str] | None] = frozenset({ML_PACKAGE})
    precision: ClassVar[str | None] = None

    def __init__(self, bundle: Bundle, segment: SegmentRecord, *, compute_units: str) -> None:
        from ... import mil

        path, function = bundle.path / segment.artifact.path, segment.artifact.function or None
        self._model = mil.load(path, function_name=function, read=bundle.files.read)
        self._specs = bundle.tensors

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self._unpackaged(self._model.predict(self._taken(inputs)))

    def run_watched(self, inputs: Mapping[str, Array]) -> tuple[dict[str, Array], list[NonFinite]]:
        from ...mil.overflows import OverflowWatch, depending

        watch = OverflowWatch()
        results = self._unpackaged(self._model.predict(self._taken(inputs), listener=watch))
        block = self._model.function.block
        return results, [
            NonFinite(
                operation.type,
                operation.name,
                (broken, total),
                frozenset(results) & depending(block, {output.name for output in operation.outputs}),
            )
            for operation, broken, total in watch.found
        ]

    def run_modelled(self, inputs: Mapping[str, Array], values: str) -> tuple[dict[str, Array], list[str]]:
        from ...mil.numerics import Numerics, RoundingMode
        from ...mil.prediction import modelled

        departures: list[str] = []
        model = self._model.with_numerics(Numerics(RoundingMode(values)))
        results = modelled(model, self._taken(inputs), departures.append)
        return self._unpackaged(results), departures

    def run_in_steps(self, inputs: Mapping[str, Array], done: Callable[[str], None]) -> bool:
        self._model.predict(self._taken(inputs), listener=_Steps(self._model.function.opset, done))
        return True

    def _unpackaged(self, results: Mapping[str, Array]) -> dict[str, Array]:
        return {name: self._specs[name].unpackaged(array) for name, array in results.items()}

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
