"""JAX: the transformer, compiled by XLA for this machine.

Compiling takes longer than a run, so JAX keeps what it has compiled in the user's cache, by program, versions and
processor.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any, ClassVar

import numpy as np
from splitter_weights import transformer as weights

from ... import cache
from ...boundary import Array
from ...bundle.directory import Bundle
from ...bundle.manifest import SegmentRecord
from . import OWN_WEIGHTS_TIME_RATIO, Engine

_CACHE_BYTES = 1 << 26  # a compiled transformer takes some 300 kB; a limit has JAX lock the cache as well


class JaxEngine(Engine):
    name: ClassVar[str] = "jax"
    artifacts: ClassVar[frozenset[str] | None] = frozenset({weights.ARTIFACT})
    max_time_ratio: ClassVar[float | None] = OWN_WEIGHTS_TIME_RATIO
    distributions: ClassVar[tuple[str, ...]] = ("jax", "jaxlib")

    def __init__(self, bundle: Bundle, segment: SegmentRecord, *, compute_units: str) -> None:
        from splitter_kernels import xla

        _keep_compiled()
        self._record = weights.record_of(segment.artifact.details)
        config, tensors = weights.load(bundle.path / segment.artifact.path, self._record, bundle.files.read)
        self._config, self._weights = config, xla.prepared(tensors)
        self._transformer = xla.compiled(config)
        self._dtypes = [bundle.tensors[name].dtype for name in self._record.outputs]

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        results = self._transformer(self._weights, *self._branches(inputs))
        return {
            name: np.array(result, dtype)  # a copy: JAX gives read-only views
            for name, result, dtype in zip(self._record.outputs, results, self._dtypes, strict=True)
        }

    def run_with_taps(self, inputs: Mapping[str, Array], wanted: Collection[str]) -> dict[str, Array]:
        from splitter_kernels import xla

        *_, values = xla.compiled(self._config, wanted)(self._weights, *self._branches(inputs))
        return {name: np.asarray(value) for name, value in values.items()}

    def _branches(self, inputs: Mapping[str, Array]) -> list[Any]:
        import jax

        return [jax.numpy.asarray(inputs[name], np.float32) for name in self._record.inputs]


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
