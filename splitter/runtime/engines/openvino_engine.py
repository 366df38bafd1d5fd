"""OpenVINO: a captured segment converted and compiled for this processor, in float32 or bfloat16.

Converting takes much longer than loading what was converted, so that is kept in the user's cache, by the hashes of
the segment's graph and weights as they are read.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import sys
import warnings
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from threading import Lock
from typing import Any, ClassVar

import numpy as np
import torch

from ... import cache
from ...boundary import Array
from ...bundle.directory import Bundle
from ...bundle.manifest import SegmentRecord
from ...errors import EngineError, SplitterError
from ...graph.capture import exported
from ...graph.program import Program, to_json
from ...lowering import capabilities
from . import OWN_WEIGHTS_TIME_RATIO, Engine

_GRAPH, _WEIGHTS = "segment.xml", "segment.bin"


class OpenVINOEngine(Engine):
    name: ClassVar[str] = "openvino"
    max_time_ratio: ClassVar[float | None] = OWN_WEIGHTS_TIME_RATIO
    distributions: ClassVar[tuple[str, ...]] = ("openvino",)

    @classmethod
    def unsupported_reason(cls, segment: SegmentRecord) -> str | None:
        if capabilities(segment.artifact.target).on_host:
            return "OpenVINO runs what lies between the host's stages"
        return None if find_spec("openvino") else "OpenVINO is not installed (the extra `openvino` brings it)"

    @classmethod
    def runs_programs(cls, segment: SegmentRecord) -> bool:
        return True

    def __init__(self, bundle: Bundle, segment: SegmentRecord, *, compute_units: str) -> None:
        def convert(home: Path) -> None:
            model = converted(bundle.program(segment.program))
            imported_silently().serialize(model, home / _GRAPH, home / _WEIGHTS)

        key = _key(bundle, segment)
        try:
            home = cache.entry("openvino", key, convert)
            self._model = compiled(home / _GRAPH, "f32" if self.precision == "fp32" else "bf16")
        except SplitterError:
            raise
        except Exception as error:  # OpenVINO raises every kind
            raise EngineError(
                f"OpenVINO cannot convert or compile segment {segment.name!r}", received=str(error).strip()
            ) from error
        self._request = self._model.create_infer_request()
        self._inputs, self._outputs = segment.inputs, segment.outputs  # in the order of the model's
        self._dtypes = {name: bundle.tensors[name].dtype for name in segment.outputs}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        openvino = imported_silently()
        given = [
            np.ascontiguousarray(inputs[name], port.element_type.to_dtype())
            for name, port in zip(self._inputs, self._model.inputs, strict=True)
        ]
        results = [np.empty(tuple(port.shape), port.element_type.to_dtype()) for port in self._model.outputs]
        for place, result in enumerate(results):  # arrays of their own: the request's are overwritten by the next run
            self._request.set_output_tensor(place, openvino.Tensor(result, shared_memory=True))
        self._request.infer(given, share_inputs=True, share_outputs=True)
        return {
            name: result.astype(self._dtypes[name], copy=False)
            for name, result in zip(self._outputs, results, strict=True)
        }


class OpenVINOBFloat16Engine(OpenVINOEngine):
    """In bfloat16, where the processor computes in it: OpenVINO would take float32 elsewhere and not say so."""

    name: ClassVar[str] = "openvino-bf16"
    max_time_ratio: ClassVar[float | None] = None
    precision: ClassVar[str | None] = "bf16"

    @classmethod
    def unsupported_reason(cls, segment: SegmentRecord) -> str | None:
        if reason := super().unsupported_reason(segment):
            return reason
        if "BF16" in _capabilities():
            return None
        return "this processor has no instructions for bfloat16 (AMX or AVX-512), so it would be no faster"


@functools.cache
def _capabilities() -> tuple[str, ...]:
    """What this processor computes in, in OpenVINO's words."""
    return tuple(imported_silently().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _key(bundle: Bundle, segment: SegmentRecord) -> str:
    """Of the converted segment: hashes of the bytes that it is made of, which are read for it."""
    facts = (
        bundle.files.digest(segment.program) if segment.program in bundle.manifest.files else _digest(bundle, segment),
        bundle.files.digest(bundle.manifest.weights),
        version("openvino"),
    )
    return hashlib.sha256(" ".join(facts).encode()).hexdigest()


def _digest(bundle: Bundle, segment: SegmentRecord) -> str:
    """Of a program that is in memory alone; names of weights say which part of them it has."""
    return hashlib.sha256(json.dumps(to_json(bundle.program(segment.program))).encode()).hexdigest()


_importing = Lock()


def imported_silently() -> Any:
    """The package `openvino`, with what it takes itself where its telemetry is not installed.

    To import it reports that to Intel otherwise, from a process forked off this one, which may have threads by then.
    """
    telemetry = "openvino_telemetry"
    with _importing:
        if "openvino" in sys.modules:
            return import_module("openvino")
        kept = sys.modules.get(telemetry)
        sys.modules[telemetry] = None  # type: ignore[assignment]
        try:
            return import_module("openvino")
        finally:
            del sys.modules[telemetry]
            if kept is not None:
                sys.modules[telemetry] = kept


def converted(program: Program) -> Any:
    """The program as OpenVINO's model, by its frontend itself: `openvino.convert_model` reports its use to Intel."""
    imported_silently()
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    level = logging.root.manager.disable
    logging.disable(logging.WARNING)  # about operators of its tables that this PyTorch does not have
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decoder = TorchFXPythonDecoder.from_exported_program(exported(program), dynamic_shapes=False)
            frontend = FrontEndManager().load_by_framework("pytorch")
            return frontend.convert(frontend.load(decoder))
    finally:
        logging.disable(level)


def compiled(graph: Path, precision: str) -> Any:
    """A converted model, ready to run in ``f32`` or ``bf16`` with as many threads as PyTorch has now."""
    return imported_silently().Core().compile_model(graph, "CPU", {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "ENABLE_CPU_PINNING": False,  # other threads of this process work beside it
    })  # fmt: skip
