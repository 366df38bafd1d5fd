"""ONNX Runtime: the saved ``.onnx`` of a segment, by the first of its providers that this machine has."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

import torch

from ...boundary import Array
from ...bundle.directory import Bundle
from ...bundle.manifest import SegmentRecord
from ...errors import EngineError
from ...lowering.onnx import KIND
from ...lowering.onnx.reading import located, opened
from . import Engine

_WARNING = 3  # in its own log: errors only


class OnnxRuntimeEngine(Engine):
    """On an NVIDIA GPU where the build has CUDA; on a Mac by its Core ML provider (not run here); else on the CPU.

    Attributes:
        nodes: How many of the file's nodes each provider has taken, by its name.
    """

    name: ClassVar[str] = "onnxruntime"
    artifacts: ClassVar[frozenset[str] | None] = frozenset({KIND})
    precision: ClassVar[str | None] = None
    distributions: ClassVar[tuple[str, ...]] = ("onnxruntime",)

    @classmethod
    def unsupported_reason(cls, segment: SegmentRecord) -> str | None:
        if reason := super().unsupported_reason(segment):
            return reason
        return None if find_spec("onnxruntime") else "ONNX Runtime is not installed (the extra `onnx` brings it)"

    def __init__(self, bundle: Bundle, segment: SegmentRecord, *, compute_units: str) -> None:
        import onnxruntime

        path = segment.artifact.path
        opened(path, bundle.files)
        model, weights = located(path, bundle.files)
        source = (
            str(bundle.files.checked(path) / Path(model).name) if weights else bundle.files.read(bundle.path / model)
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        options.log_severity_level = _WARNING
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=_providers(compute_units))
        except Exception as error:  # its errors share no base of their own
            raise EngineError(f"ONNX Runtime cannot load {path}", received=str(error).splitlines()[0]) from error
        self.nodes: Counter[str] = Counter()
        for part in self._session.get_provider_graph_assignment_info():
            self.nodes[part.ep_name] += len(part.get_nodes())
        self._specs, self._outputs = bundle.tensors, segment.outputs

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        folds = {name: spec.fold for name, spec in self._specs.items()}  # types and ranks are the graph's own
        taken = {name: fold.fold(array) if (fold := folds[name]) else array for name, array in inputs.items()}
        try:
            results = self._session.run(list(self._outputs), taken)
        except Exception as error:  # its errors share no base of their own
            raise EngineError("ONNX Runtime cannot run the segment", received=str(error).splitlines()[0]) from error
        return {
            name: fold.unfold(result) if (fold := folds[name]) else result
            for name, result in zip(self._outputs, results, strict=True)
        }


def _providers(compute_units: str) -> list[Any]:
    """Execution providers in order of preference. The last runs everything."""
    import onnxruntime

    asked: list[Any] = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    if sys.platform == "darwin" and compute_units != "CPU_ONLY":
        units = {"ALL": "ALL", "CPU_AND_GPU": "CPUAndGPU", "CPU_AND_NE": "CPUAndNeuralEngine"}[compute_units]
        asked.insert(0, ("CoreMLExecutionProvider", {"ModelFormat": "MLProgram", "MLComputeUnits": units}))
    available = set(onnxruntime.get_available_providers())
    return [provider for provider in asked if (provider if isinstance(provider, str) else provider[0]) in available]
