"""What Core ML itself says of a package. (Not run by this project's tests: no Mac there.)"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

from .. import output
from ..errors import EngineError
from .records import CoreMLFigures, Device

# Core ML Tools' classes of devices.
_NAMES = {"MLCPUComputeDevice": "CPU", "MLGPUComputeDevice": "GPU", "MLNeuralEngineComputeDevice": "Neural Engine"}


def figures(package: Path, compute_units: str) -> CoreMLFigures:
    """Compile a package, load it, and ask where its operations would run.

    Raises:
        EngineError: Core ML does not take it.
    """
    from ..mil.coreml_tools import ct

    units = ct.ComputeUnit[compute_units]
    with output.scratch("profiling") as scratch:
        compiled = str(scratch / f"{package.stem}.mlmodelc")
        try:
            started = perf_counter()
            ct.models.utils.compile_model(str(package), compiled)
            compiled_at = perf_counter()
            ct.models.CompiledMLModel(compiled, units)
            loaded_at = perf_counter()
            plan = ct.models.compute_plan.MLComputePlan.load_from_path(compiled, units)
        except Exception as error:  # Core ML raises every kind
            raise EngineError(f"Core ML cannot compile or load {package.name}", received=str(error)) from error
    return CoreMLFigures(
        compute_units=compute_units,
        compile_seconds=compiled_at - started,
        load_seconds=loaded_at - compiled_at,
        devices=_devices(plan),
    )


def _devices(plan: Any) -> dict[str, Device]:
    found: dict[str, Device] = {}
    for function in plan.model_structure.program.functions.values():
        for operation in _operations(function.block):
            usage = plan.get_compute_device_usage_for_mlprogram_operation(operation)
            if usage is None:
                continue
            kind = type(usage.preferred_compute_device).__name__
            name = _NAMES.get(kind, kind)
            cost = plan.get_estimated_cost_for_mlprogram_operation(operation)
            so_far = found.get(name, Device(operations=0, cost=0.0))
            found[name] = Device(
                operations=so_far.operations + 1, cost=so_far.cost + (0.0 if cost is None else cost.weight)
            )
    return found


def _operations(block: Any) -> Iterator[Any]:
    """Those of a block and of the bodies in it."""
    for operation in block.operations:
        yield operation
        for body in operation.blocks:
            yield from _operations(body)
