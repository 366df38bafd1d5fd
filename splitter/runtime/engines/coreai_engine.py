"""Apple's own runtime on the saved ``.aimodel`` of a segment: on Linux by its CPU, a second judge beside the others.

It is slow there: for checks of small models, not for songs. On macOS 27 it is the system's (not run here).
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from typing import ClassVar

import torch

from ...boundary import Array
from ...bundle.directory import Bundle
from ...bundle.manifest import SegmentRecord
from ...lowering.coreai import EXTRA, KIND, MODULES
from ...lowering.coreai.runtime import Runtime
from . import Engine


class CoreAIEngine(Engine):
    name: ClassVar[str] = "coreai"
    artifacts: ClassVar[frozenset[str] | None] = frozenset({KIND})
    precision: ClassVar[str | None] = None
    distributions: ClassVar[tuple[str, ...]] = ("coreai-core",)

    @classmethod
    def unsupported_reason(cls, segment: SegmentRecord) -> str | None:
        if reason := super().unsupported_reason(segment):
            return reason
        return None if all(map(find_spec, MODULES)) else f"Core AI is not installed (the extra `{EXTRA}` brings it)"

    def __init__(self, bundle: Bundle, segment: SegmentRecord, *, compute_units: str) -> None:
        self._specs, self._outputs = bundle.tensors, segment.outputs
        self._runtime = Runtime(torch.get_num_threads())
        self._runtime.load(bundle.files.checked(segment.artifact.path), compute_units)

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        results = self._runtime.run({name: self._specs[name].packaged(array) for name, array in inputs.items()})
        return {name: self._specs[name].unpackaged(results[name]) for name in self._outputs}
