"""JAX: any segment, compiled by XLA for this machine. A second implementation beside PyTorch's.

A segment that was lowered to the kernels' weights runs the hand-written kernels on its shipped file; every other one
runs its captured graph, each operator by JAX instead of PyTorch (`splitter.aten`), with the weights of its shipped file
where that is what ships.

Compiling takes longer than a run, so JAX keeps what it has compiled in the user's cache, by program, versions and
processor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, ClassVar

import numpy as np
from splitter_weights import tensor_file
from splitter_weights import transformer as weights

from ... import cache
from ...boundary import Array
from ...bundle.directory import Bundle
from ...bundle.manifest import SegmentRecord
from ...lowering import capabilities
from . import OWN_WEIGHTS_TIME_RATIO, Engine

_CACHE_BYTES = 1 << 26  # a compiled transformer takes some 300 kB; a limit has JAX lock the cache as well


class JaxEngine(Engine):
    name: ClassVar[str] = "jax"
    max_time_ratio: ClassVar[float | None] = OWN_WEIGHTS_TIME_RATIO
    distributions: ClassVar[tuple[str, ...]] = ("jax", "jaxlib")

    @classmethod
    def is_measured(cls, segment: SegmentRecord) -> bool:
        """By hand it was written to be fast; the captured graph is for those who ask."""
        return _has_kernels(segment)

    @classmethod
    def runs_programs(cls, segment: SegmentRecord) -> bool:
        return _artifact(segment) not in (weights.ARTIFACT, tensor_file.ARTIFACT)  # else with the weights that ship

    def __init__(self, bundle: Bundle, segment: SegmentRecord, *, compute_units: str) -> None:
        _keep_compiled()
        self._run: _Kernels | _Graph = (_Kernels if _has_kernels(segment) else _Graph)(bundle, segment)
        self._dtypes = {name: bundle.tensors[name].dtype for name in segment.outputs}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        # A copy: JAX gives read-only views.
        return {name: np.array(result, self._dtypes[name]) for name, result in self._run(inputs).items()}

    def run_with_taps(self, inputs: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array] | None:
        return self._run.taps(inputs, wanted) if isinstance(self._run, _Kernels) else None


class _Kernels:
    """The hand-written transformer on the weights that ship."""

    def __init__(self, bundle: Bundle, segment: SegmentRecord) -> None:
        from splitter_kernels import xla

        self._record = weights.record_of(segment.artifact.details)
        config, tensors = weights.load(bundle.path / segment.artifact.path, self._record, bundle.files.read)
        self._config, self._weights = config, xla.prepared(tensors)
        self._transformer = xla.compiled(config)

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Any]:
        results = self._transformer(self._weights, *self._branches(inputs))
        return dict(zip(self._record.outputs, results, strict=True))

    def taps(self, inputs: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array]:
        from splitter_kernels import xla

        *_, values = xla.compiled(self._config, wanted)(self._weights, *self._branches(inputs))
        return {name: np.asarray(value) for name, value in values.items()}

    def _branches(self, inputs: Mapping[str, Array]) -> list[Any]:
        import jax

        return [jax.numpy.asarray(inputs[name], np.float32) for name in self._record.inputs]


class _Graph:
    """The captured graph. An operator that JAX has no function for here is refused when it is loaded."""

    def __init__(self, bundle: Bundle, segment: SegmentRecord) -> None:
        from splitter_kernels import xla

        from ...aten.executor import CompiledProgram

        program = bundle.program(segment.program)
        shipped = None
        if _artifact(segment) == tensor_file.ARTIFACT:
            record = tensor_file.record_of(segment.artifact.details)
            shipped = tensor_file.load(bundle.path / segment.artifact.path, record, bundle.files.read)
        self._program = CompiledProgram(program, weights=shipped, compiler_options=xla.compiler_options())

    def __call__(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        return self._program.run(inputs)


def _artifact(segment: SegmentRecord) -> str:
    return capabilities(segment.artifact.target).artifact


def _has_kernels(segment: SegmentRecord) -> bool:
    return _artifact(segment) == weights.ARTIFACT


def _keep_compiled() -> None:
    """Have JAX keep what it compiles in the user's cache, unless it was told of another place or there is no room."""
    import jax

    config: Any = jax.config  # has no types
    if config.jax_compilation_cache_dir is not None:
        return
    with suppress(OSError):
        kept = cache.directory("xla")  # compiled programs are code
        config.update("jax_compilation_cache_max_size", _CACHE_BYTES)
        config.update("jax_compilation_cache_dir", str(kept))
