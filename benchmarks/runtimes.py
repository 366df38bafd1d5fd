"""The model between its Fourier transforms, converted for other runtimes and run by them, in float32."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeAlias

import torch

from splitter.boundary import Array
from splitter.bundle.directory import Bundle
from splitter.graph.program import Program

Core: TypeAlias = Callable[[Sequence[Array]], Sequence[Array]]  # tensors in the order of `interface`


@dataclass(frozen=True)
class Runtime:
    """One peer.

    Attributes:
        needs: Modules without which it does not run here.
        suffix: Of its file.
        convert: Writes a program to a file.
        load: What the file holds, ready to run with PyTorch's number of threads.
    """

    needs: tuple[str, ...]
    suffix: str
    convert: Callable[[Program, Path], None]
    load: Callable[[Path], Core]

    @property
    def obstacle(self) -> str:
        return ", ".join(f"{name} is not installed" for name in self.needs if find_spec(name) is None)


def interface(bundle: Bundle) -> tuple[list[str], list[str]]:
    """Names of the tensors that enter and leave what lies between a bundle's first and last segment."""
    between = {segment.name for segment in bundle.segments[1:-1]}
    specs, first, last = bundle.tensors.values(), bundle.segments[0].name, bundle.segments[-1].name
    entering = [spec.name for spec in specs if spec.producer == first and between & set(spec.consumers)]
    leaving = [spec.name for spec in specs if spec.producer in between and last in spec.consumers]
    return entering, leaving


def core(bundle: Bundle) -> Program:
    """What lies between, as one program."""
    whole = bundle.program(bundle.manifest.whole)
    nodes = {node.name: node for node in whole.graph.nodes}
    entering, leaving = interface(bundle)
    sources, targets = ({name: nodes[bundle.manifest.nodes[name]] for name in names} for names in (entering, leaving))
    return whole.part(sources, targets)


def _to_onnx(program: Program, file: Path) -> None:
    from splitter.lowering.onnx import export

    file.write_bytes(export(program).SerializeToString())


def _onnxruntime(file: Path) -> Core:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
    names = [feature.name for feature in session.get_inputs()]
    return lambda arrays: session.run(None, dict(zip(names, arrays, strict=True)))


def _to_openvino(program: Program, file: Path) -> None:
    from splitter.runtime.engines.openvino_engine import converted, imported_silently

    imported_silently().serialize(converted(program), file)


def _openvino(file: Path) -> Core:
    from splitter.runtime.engines.openvino_engine import compiled

    request = compiled(file, "f32").create_infer_request()
    return lambda arrays: [*request.infer([*arrays]).to_tuple()]


RUNTIMES = {
    "onnxruntime": Runtime(("onnxruntime", "onnxscript"), ".onnx", _to_onnx, _onnxruntime),
    "openvino": Runtime(("openvino",), ".xml", _to_openvino, _openvino),
}
