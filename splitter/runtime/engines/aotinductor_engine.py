"""AOTInductor: a captured segment compiled ahead of time for this processor, by PyTorch.

Compiling takes a C++ compiler and up to a minute a segment, so it is never done in passing: ``splitter optimize`` does
it. What it makes holds the weights too. It is kept in the user's cache, by the hashes of the segment's graph and
weights, the processor, and the version of PyTorch. Running it takes no compiler.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, ClassVar

import torch
import torch._inductor
from torch import Tensor
from torch._inductor import config as inductor_config
from torch._inductor.exc import InvalidCxxCompiler

from ... import cache, passes, reading, terminal
from ...boundary import Array
from ...bundle.directory import Bundle
from ...bundle.goldens import machine
from ...bundle.manifest import SegmentRecord
from ...errors import BundleError, EngineError
from ...graph.capture import exported
from ...graph.shapes import TensorType
from ...lowering import capabilities
from .. import workers
from . import Engine
from .torch_engine import CPU_PASSES, aligned

_KIND = "aotinductor"
_COMPILED, _DTYPES = "segment.pt2", "inputs.json"  # the second: of the graph's inputs, in their order
_CONFIGURATION: dict[str, Any] = {
    "freezing": True,  # weights are constants, which may be packed for the products
    "cpp.weight_prepack": True,
    "cpp.dynamic_threads": True,  # as many as PyTorch has when it runs
}


class AOTInductorEngine(Engine):
    name: ClassVar[str] = "aotinductor"
    max_time_ratio: ClassVar[float | None] = 0.95  # as `torch-optimized`
    distributions: ClassVar[tuple[str, ...]] = ("torch",)

    @classmethod
    def unsupported_reason(cls, segment: SegmentRecord) -> str | None:
        return "it runs what lies between the host's stages" if capabilities(segment.artifact.target).on_host else None

    @classmethod
    def is_prepared(cls, bundle: Bundle, segment: SegmentRecord) -> bool:
        files = bundle.manifest.files
        key = _key(files[segment.program].sha256, files[bundle.manifest.weights].sha256)
        with suppress(OSError):
            return (cache.directory(_KIND) / key / _COMPILED).is_file()
        return False

    @classmethod
    def prepare(cls, bundle: Bundle, segment: SegmentRecord) -> None:
        """Compile a segment, in a process of its own.

        Raises:
            EngineError: There is no C++ compiler, or PyTorch cannot compile this segment.
        """
        key = _key_of_files(bundle, segment)

        def compile_into(home: Path) -> None:
            worker = workers.Worker(torch.get_num_threads())
            try:
                worker.call(_compile, bundle.path.resolve(), segment.name, key, home, meanwhile=lambda: None)
            finally:
                worker.stop()

        cache.entry(_KIND, key, compile_into)

    def __init__(self, bundle: Bundle, segment: SegmentRecord, *, compute_units: str) -> None:
        def refuse(home: Path) -> None:
            raise EngineError(
                f"segment {segment.name!r} is not compiled for this machine",
                fix=f"Run splitter optimize {bundle.path}: it takes a minute or two, once.",
            )

        home = cache.entry(_KIND, _key_of_files(bundle, segment), refuse)
        self._inputs: dict[str, str] = json.loads(reading.content(home / _DTYPES))
        self._outputs = {name: bundle.tensors[name].dtype for name in segment.outputs}
        with terminal.without_messages():
            self._compiled = torch._inductor.aoti_load_package(str(home / _COMPILED))

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        given = [aligned(inputs[name]).to(getattr(torch, dtype)) for name, dtype in self._inputs.items()]
        results = self._compiled(*given)
        return {
            name: result.to(getattr(torch, dtype)).numpy()
            for (name, dtype), result in zip(self._outputs.items(), results, strict=True)
        }


def _key_of_files(bundle: Bundle, segment: SegmentRecord) -> str:
    """Of the compiled segment, by hashes of the bytes that it is made of, which are read for it."""
    return _key(bundle.files.digest(segment.program), bundle.files.digest(bundle.manifest.weights))


def _key(program: str, weights: str) -> str:
    facts = [program, weights, CPU_PASSES, _CONFIGURATION, machine().model_dump(exclude={"threads"})]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def _compile(bundle_path: Path, name: str, key: str, home: Path) -> None:
    """In a worker: compile a segment into an empty directory."""
    bundle = Bundle.load(bundle_path)
    segment = bundle.segment(name)
    if _key_of_files(bundle, segment) != key:
        raise BundleError(f"{bundle_path} was changed while it was compiled", fix="Run the command again.")
    program = bundle.program(segment.program)
    for each in CPU_PASSES:
        program = passes.parsed(each).apply(program).program
    dtypes = {str(node.target): node.meta["type"].dtype for node in program.input_nodes}
    (home / _DTYPES).write_text(json.dumps(dtypes), encoding="utf-8")
    graph = exported(program)
    graph.example_inputs = (tuple(_example(node.meta["type"]) for node in program.input_nodes), {})
    # Else a directory in /tmp whose name everybody knows, and what lies there is run.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = work = tempfile.mkdtemp(dir=home)
    inductor_config.compile_threads = 1  # no processes of its own, which nobody would stop
    try:
        with terminal.without_messages(), torch.no_grad():
            torch._inductor.aoti_compile_and_package(
                graph, package_path=str(home / _COMPILED), inductor_configs={**_CONFIGURATION}
            )
    except Exception as error:  # Inductor raises every kind
        raise _refusal(name, getattr(error, "inner_exception", error)) from error
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _example(kind: TensorType) -> Tensor:
    return torch.empty(kind.shape, dtype=getattr(torch, kind.dtype))


def _refusal(name: str, reason: Exception) -> EngineError:
    if isinstance(reason, InvalidCxxCompiler):
        return EngineError(
            f"compiling segment {name!r} takes a C++ compiler, and none was found",
            fix="Install one (Debian: apt-get install g++; macOS: xcode-select --install), or set CXX to its path.",
        )
    said = f"{type(reason).__name__}: {reason}".splitlines()[0].removesuffix(": ")
    return EngineError(
        f"AOTInductor cannot compile segment {name!r}", received=said, fix="Nothing was changed: other engines run it."
    )
