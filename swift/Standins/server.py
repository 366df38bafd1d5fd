"""What the stand-ins for Core ML and Metal run in: saved packages through `splitter.mil`, kernels through the harness.

Requests come one at a time on standard input, a line of JSON and then the bytes of the arrays that it announces;
answers go out the same way. The Swift side is `StandinServer/Server.swift`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

# Core ML Tools imports it where it is, for a converter that nobody calls here: a fifth of the time of a start.
sys.modules["sklearn"] = None  # type: ignore[assignment]

import numpy as np  # noqa: E402
from numpy.typing import NDArray  # noqa: E402
from splitter_kernels.metal import signatures  # noqa: E402
from splitter_kernels.metal.compiler import compiled  # noqa: E402

from splitter import mil  # noqa: E402

_DTYPES = {"fp32": "float32", "fp16": "float16"}


class Server:
    """The packages that were loaded, and the kernels that were compiled, by the number in the answer."""

    def __init__(self, scratch: Path) -> None:
        self._models: list[mil.Model] = []
        self._scratch = scratch

    def load(self, path: str) -> dict[str, Any]:
        """Open a package; say what it takes and gives."""
        model = mil.load(Path(path))
        self._models.append(model)
        described = {"inputs": model.spec.inputs, "outputs": model.spec.outputs}
        return {"model": len(self._models) - 1} | {
            side: [{"name": f.name, "shape": f.shape, "dtype": _DTYPES[f.dtype]} for f in features]
            for side, features in described.items()
        }

    def predict(self, model: int, arrays: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
        """Run a package."""
        results: dict[str, NDArray[Any]] = self._models[model].predict(arrays)
        return results

    def compile(self, text: str, storage: str, maths: str, *, checked: bool) -> dict[str, Any]:
        """Compile kernels; say where the library lies and what each kernel is bound to."""
        found = signatures.parse(text, "the library")
        source = Path(tempfile.mkdtemp(dir=self._scratch)) / "library.metal"
        source.write_text(text, encoding="utf-8")
        library = compiled(source, found, storage, maths, checked=checked)
        return {"library": library._name, "kernels": [dataclasses.asdict(kernel) for kernel in found]}


def _answer(server: Server, request: dict[str, Any]) -> tuple[dict[str, Any], dict[str, NDArray[Any]]]:
    match request.pop("do"):
        case "load":
            return server.load(**request), {}
        case "compile":
            return server.compile(**request), {}
        case _:
            arrays = {entry["name"]: _received(entry) for entry in request.pop("arrays")}
            return {}, server.predict(**request, arrays=arrays)


def _received(entry: dict[str, Any]) -> NDArray[Any]:
    dtype = np.dtype(entry["dtype"])
    content = sys.stdin.buffer.read(int(np.prod(entry["shape"])) * dtype.itemsize)
    return np.frombuffer(content, dtype).reshape(entry["shape"])


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="splitter-standins-") as scratch:
        server = Server(Path(scratch))
        while line := sys.stdin.buffer.readline():
            arrays: dict[str, NDArray[Any]] = {}
            try:
                answer, arrays = _answer(server, json.loads(line))
            except Exception as error:  # whatever it is, Core ML and Metal would say it in an NSError
                answer = {"error": f"{type(error).__name__}: {error}"}
            kept = {name: np.ascontiguousarray(array) for name, array in arrays.items()}
            answer["arrays"] = [
                {"name": name, "shape": array.shape, "dtype": str(array.dtype)} for name, array in kept.items()
            ]
            sys.stdout.buffer.write(json.dumps(answer).encode() + b"\n")
            for array in kept.values():
                sys.stdout.buffer.write(array.tobytes())
            sys.stdout.buffer.flush()


if __name__ == "__main__":
    main()
