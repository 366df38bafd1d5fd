"""One recorded run of the untouched model: its input, every boundary tensor, its output.

The boundary tensors are the model's own. While its unmodified forward runs, a dispatch mode watches every
tensor PyTorch computes; a golden is kept only if the model was seen to compute it, bit for bit. Operators that the
capture has by a definition (`splitter.graph.definitions`) are computed by it in that run, and `departure` says how far
the model as it is lies from it.
"""

from __future__ import annotations

import hashlib
import math
import platform
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..boundary import INPUT, Array
from ..errors import CaptureError
from ..graph.definitions import in_place_of_kernels
from ..graph.patches import without_fused_attention
from ..graph.program import Program, largest_difference
from ..graph.signature import bind
from ..parity import Parity, compare
from ..partition import Partition
from .manifest import Machine

LEAST_DB = 100  # between the model and one with operators by their definitions
_NEGLIGIBLE = 1e-12


@torch.no_grad()
def record(model: nn.Module, program: Program, parts: Partition, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """Run the untouched model and keep the tensors at its boundaries.

    Args:
        model: The module that was captured, in eval mode.
        program: Its capture, which says what to look for.
        parts: Where it is cut.
        inputs: As the capture took them.

    Returns:
        Every tensor of ``parts.tensors`` by name.

    Raises:
        CaptureError: The capture gives another output than the model, or a boundary tensor that the model
            never computes.
    """
    names = {node: name for name, node in parts.nodes.items()}
    call = bind(model, inputs)
    expected: dict[str, Tensor] = dict(call.tensors)
    program.run(
        call.tensors,
        observe=lambda node, value: expected.update({names[node.name]: value}) if node.name in names else None,
    )
    # What forward returns is held against the returned itself: it may be a table that is never computed.
    wanted = {s.name: expected[s.name] for s in parts.tensors if s.producer != INPUT and s.name not in program.outputs}
    with without_fused_attention(), in_place_of_kernels(program.defined) if program.defined else nullcontext():
        with _Watcher(wanted) as watcher:
            call.run(model)
        returned = tree_leaves(call.run(model))
    for place, output in zip(program.returns, returned, strict=True):
        if place.tensor and output.is_floating_point() and not output.isfinite().all():
            raise CaptureError(
                f"the model gives values in {place.tensor!r} that are not finite, on the example inputs",
                received=f"{int((~output.isfinite()).sum())} of {output.numel()} NaN or infinite",
                fix="Nothing can be compared with such a golden. Give other inputs.",
            )
        if place.tensor and not torch.equal(output, expected[place.tensor]):
            raise CaptureError(
                f"the capture gives another {place.tensor!r} than the model",
                expected="max |Δ| = 0",
                received=f"max |Δ| = {largest_difference(output, expected[place.tensor]):g}",
                fix="The model's forward depends on something beside its input: a state, a clock, the number of calls.",
            )
    if watcher.missing:
        raise CaptureError(
            f"the untouched model never computes the boundary tensors {', '.join(sorted(watcher.missing))}",
            fix="Cut where the model has the tensor, not inside what the capture made of it.",
        )
    return expected


@torch.no_grad()
def departure(model: nn.Module, program: Program, golden: Mapping[str, Tensor], inputs: Mapping[str, Any]) -> Parity:
    """How far the model as it is lies from a capture with operators by their definitions, on its worst output.

    Raises:
        CaptureError: Below `LEAST_DB`, or integers or truths that differ.
    """
    with without_fused_attention():
        returned = tree_leaves(bind(model, inputs).run(model))
    worst = Parity(math.inf, 0.0, 1.0, finite=True)
    for place, output in zip(program.returns, returned, strict=True):
        if not place.tensor:
            continue
        parity = compare(_real(output), _real(golden[place.tensor]))
        exact = not (output.is_floating_point() or output.is_complex())
        if parity.max_abs and (exact or not parity.reaches(LEAST_DB, _NEGLIGIBLE)):
            raise CaptureError(
                f"the model's {', '.join(program.defined)} and its definition give another {place.tensor!r}",
                expected="the same" if exact else f"{LEAST_DB} dB",
                received=str(parity),
                fix="Where a value lies on an edge, as a coordinate between two pixels, both are right: give other "
                "example inputs. Else use another function in the model.",
            )
        if parity.max_abs and (parity.snr_db or 0) < (worst.snr_db or 0):
            worst = parity
    return worst


def _real(tensor: Tensor) -> Array:
    return np.asarray(torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor)


class _Watcher(TorchDispatchMode):
    """Crosses off each wanted tensor when the model computes one that is equal to it."""

    def __init__(self, wanted: Mapping[str, Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.missing = dict(wanted)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves(result):
            if isinstance(value, Tensor):
                for name, tensor in list(self.missing.items()):
                    if value.shape == tensor.shape and value.dtype == tensor.dtype and torch.equal(value, tensor):
                        del self.missing[name]
        return result


def machine() -> Machine:
    """This machine, as far as it decides the last bits of a result."""
    return Machine(
        architecture=platform.machine(),
        processor=_processor(),
        capability=torch.backends.cpu.get_cpu_capability(),
        threads=torch.get_num_threads(),
        torch=torch.__version__,
    )


def _processor() -> str:
    """The processor's name and a digest of what else it says of itself (virtual machines share names)."""
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    fields = dict(
        line.split(":", 1) for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if ":" in line
    )
    facts = {key.strip(): value.strip() for key, value in fields.items()}
    telling = [facts.get(key, "") for key in ("cpu family", "model", "stepping", "flags", "Features")]
    digest = hashlib.sha256("\n".join(telling).encode()).hexdigest()[:12]
    return f"{facts.get('model name', platform.machine())} {digest}"
