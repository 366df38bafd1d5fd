"""NumPy: host stages from their specification, the transformer from its weights. What a port does."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
from pydantic import ValidationError
from splitter_kernels import reference
from splitter_weights import transformer as weights

from ...boundary import Array
from ...bundle.directory import Bundle
from ...bundle.manifest import SegmentRecord
from ...errors import BundleError
from .. import host
from ..host import HostSpec
from . import Engine


class NumPyEngine(Engine):
    name: ClassVar[str] = "numpy"

    @classmethod
    def obstacle(cls, segment: SegmentRecord) -> str | None:
        target = segment.artifact.target
        return None if target in ("host", "kernels") else f"NumPy runs host stages and the transformer, not {target!r}"

    def __init__(self, bundle: Bundle, segment: SegmentRecord, *, compute_units: str) -> None:
        load = _HostStage if segment.artifact.target == "host" else _Transformer
        self._run = load(bundle, segment)
        self._dtypes = {name: bundle.tensors[name].dtype for name in segment.outputs}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        wide = {name: array.astype(np.float32, copy=False) for name, array in inputs.items()}
        return {name: array.astype(self._dtypes[name], copy=False) for name, array in self._run(wide).items()}


class _HostStage:
    def __init__(self, bundle: Bundle, segment: SegmentRecord) -> None:
        path = bundle.path / segment.artifact.path
        content = bundle.files.read(path)
        try:
            self._spec = HostSpec.model_validate_json(content)
        except ValidationError as error:
            raise BundleError(f"{path.name} must be a host specification", received=str(error)) from error

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return host.run(self._spec, inputs)


class _Transformer:
    def __init__(self, bundle: Bundle, segment: SegmentRecord) -> None:
        self._record = weights.record_of(segment.artifact.details)
        self._config, self._tensors = weights.load(bundle.path / segment.artifact.path, self._record, bundle.files.read)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        freq, time = (inputs[name] for name in self._record.inputs)
        results = reference.transformer(self._config, self._tensors, freq, time)
        return dict(zip(self._record.outputs, results, strict=True))
