"""NumPy: host stages from their specification, the transformer from its weights. What a port does."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import ClassVar

import numpy as np
from pydantic import ValidationError
from splitter_kernels import reference
from splitter_weights import transformer as weights

from ...boundary import Array
from ...bundle.directory import Bundle
from ...bundle.manifest import SegmentRecord
from ...errors import BundleError
from ...lowering import capabilities
from .. import host
from ..host import HostSpec
from . import Engine


class NumPyEngine(Engine):
    name: ClassVar[str] = "numpy"

    artifacts: ClassVar[frozenset[str] | None] = frozenset({host.ARTIFACT, weights.ARTIFACT})

    def __init__(self, bundle: Bundle, segment: SegmentRecord, *, compute_units: str) -> None:
        artifact = capabilities(segment.artifact.target).artifact
        self._run = _HostStage(bundle, segment) if artifact == host.ARTIFACT else _Transformer(bundle, segment)
        self._dtypes = {name: bundle.tensors[name].dtype for name in segment.outputs}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        half = np.dtype(np.float16)
        wide = {name: array.astype(np.float32) if array.dtype == half else array for name, array in inputs.items()}
        return {name: array.astype(self._dtypes[name], copy=False) for name, array in self._run(wide).items()}

    def run_with_taps(self, inputs: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array] | None:
        return self._run.taps(inputs, wanted) if isinstance(self._run, _Transformer) else None


class _HostStage:
    def __init__(self, bundle: Bundle, segment: SegmentRecord) -> None:
        path = bundle.path / segment.artifact.path
        content = bundle.files.read(path)
        try:
            self._spec = HostSpec.model_validate_json(content)
        except ValidationError as error:
            raise BundleError(f"{path.name} is no host specification", received=str(error)) from error

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

    def taps(self, inputs: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array]:
        values: dict[str, Array] = {}

        def observe(name: str, value: Array) -> None:
            if name in wanted:
                values[name] = np.array(value)

        freq, time = (inputs[name] for name in self._record.inputs)
        reference.transformer(self._config, self._tensors, freq, time, observe=observe)
        return values
