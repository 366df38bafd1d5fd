"""Apple's runtime, in a process of its own: it ends its process when it cannot read a file.

The functions here that begin with an underscore run in that process.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import BundleError, EngineError, SplitterError, WorkerError
from ...runtime.workers import Worker
from ...terminal import without_messages
from . import FUNCTION

P = ParamSpec("P")
R = TypeVar("R")
_REFUSED = frozenset({"delegate", "if", "isolated_group", "while"})  # no conversion of a graph has these


class Summary(NamedTuple):
    """What a file says of itself.

    Attributes:
        functions: Their names.
        inputs: Names and types of the function's, types as the library describes them.
        outputs: The same.
        states: The same.
        stored: How many numbers it holds of each element type.
        operations: How many of each type.
        metadata: Custom entries.
    """

    functions: list[str]
    inputs: list[tuple[str, str]]
    outputs: list[tuple[str, str]]
    states: list[tuple[str, str]]
    stored: dict[str, int]
    operations: dict[str, int]
    metadata: dict[str, str]


class Runtime:
    """A process that reads files of Core AI, and runs one of them."""

    def __init__(self, threads: int = 1) -> None:
        self._worker = Worker(threads)
        weakref.finalize(self, self._worker.stop)

    def summary(self, path: Path) -> Summary:
        """What a file says of itself.

        Raises:
            BundleError: It cannot be read.
        """
        return self._called(_invalid, path, _summary, path)

    def load(self, path: Path, compute_units: str) -> None:
        """Make a file ready to run.

        Raises:
            BundleError: It cannot be read, or holds control flow or code for a device.
        """
        found = self.summary(path)
        if refused := sorted(found.operations.keys() & _REFUSED):
            raise _invalid(path, f"operations {', '.join(refused)}")
        if found.functions != [FUNCTION]:
            raise _invalid(path, f"functions {found.functions}")
        self._called(_invalid, path, _load, path, compute_units)
        self._path = path

    def run(self, inputs: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Results of the loaded file by name.

        Raises:
            EngineError: The runtime refuses the inputs, or ends its process.
        """
        return self._called(_unable, self._path, _run, dict(inputs))

    def _called(
        self,
        failed: Callable[[Path, str], SplitterError],
        path: Path,
        function: Callable[P, R],
        *arguments: P.args,
        **options: P.kwargs,
    ) -> R:
        try:
            return self._worker.call(_told, function, *arguments, meanwhile=_nothing)
        except WorkerError as error:
            raise failed(path, "Core AI's runtime ended its process") from error
        except _RefusedError as error:
            raise failed(path, str(error)) from error


def _nothing() -> None:
    """While this process waits."""


def _invalid(path: Path, received: str) -> BundleError:
    return BundleError(f"{path.name} is no valid Core AI file", received=received, fix="Build the bundle again.")


def _unable(path: Path, received: str) -> EngineError:
    return EngineError(f"Core AI cannot run {path.name}", received=received)


# ------------------------------------------------------------------------------- in the process


class _RefusedError(Exception):
    """The library's own error, as text: its classes are not for other processes."""


_loaded: dict[str, Any] = {}


def _told(function: Callable[P, R], *arguments: P.args, **options: P.kwargs) -> R:
    try:
        with without_messages():
            return function(*arguments, **options)
    except Exception as error:  # Apple's library raises every kind
        raise _RefusedError((str(error).strip().splitlines() or [type(error).__name__])[0]) from None


def _summary(path: Path) -> Summary:
    from coreai.authoring import AIModelAsset

    asset: Any = AIModelAsset.load(path)
    found = asset.summary()
    if found is None:
        raise ValueError("it holds no program")
    has_main = FUNCTION in found.function_names
    return Summary(
        list(found.function_names),
        found.function_inputs(FUNCTION) if has_main else [],
        found.function_outputs(FUNCTION) if has_main else [],
        found.function_states(FUNCTION) if has_main else [],
        dict(found.storage_types),
        dict(found.operation_distribution),
        dict(asset.metadata.creator_defined_metadata),
    )


def _load(path: Path, compute_units: str) -> None:
    from coreai.authoring import AIModelAsset
    from coreai.runtime import SpecializationOptions

    async def load() -> Any:
        is_cpu = SpecializationOptions.is_supported() and compute_units == "CPU_ONLY"  # on Linux there is no choice
        options = SpecializationOptions.cpu_only() if is_cpu else None
        async with AIModelAsset.load(path).executable(options) as model:
            return model.load_function(FUNCTION)

    _loaded[FUNCTION] = asyncio.run(load())


def _run(inputs: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    from coreai.runtime import NDArray as Tensor

    async def run() -> dict[str, Any]:
        given = {name: Tensor(np.ascontiguousarray(array)) for name, array in inputs.items()}
        results: dict[str, Any] = await _loaded[FUNCTION](given)
        return results

    return {name: result.numpy().copy() for name, result in asyncio.run(run()).items()}
