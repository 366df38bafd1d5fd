"""One package on inputs from a file, into a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import output
from ..arrays import SUFFIXES, read, write
from ..boundary import Array
from ..errors import UsageError
from .departures import LimitWatch
from .interpreter import Listener
from .model import Model, load
from .numerics import AccumulatorType, Numerics, RoundingMode
from .program import Operation


def predict(
    package: Path | str,
    inputs: Path | str | Mapping[str, Array],
    *,
    out: Path | str | None = None,
    function: str | None = None,
    values: str = "stored",
    accumulators: str = "fp32",
    seed: int = 0,
    taps: Sequence[str] = (),
    notice: Callable[[str], None] = lambda _: None,
) -> dict[str, Array]:
    """Run any ``.mlpackage``. This models rounding, not Apple's kernels.

    Args:
        package: Its directory.
        inputs: Arrays by name, or a ``.npz`` or ``.safetensors`` file of them.
        out: File of the same kinds to write the outputs to.
        function: Which one, for packages with several.
        values: Types that values are rounded to, see `RoundingMode`.
        accumulators: What sums of half-precision terms are held in, see `AccumulatorType`.
        seed: Of random operations.
        taps: Names or patterns (``conv_*``) of intermediate values that are given beside the outputs.
        notice: With the values ``ane``, told of each operation that the Neural Engine computes otherwise than the
            program says, in order.

    Returns:
        The outputs, and the taps, by name.

    Raises:
        PackageError: The package cannot be read.
        OperationError: It holds an operation that cannot be executed, or fails on the inputs.
        UsageError: A file cannot be read or written, the inputs do not fit, or with the values ``ane`` nothing is
            computed in half precision.
    """
    if out is not None:
        output.check(Path(out), *SUFFIXES)
    numerics = Numerics(RoundingMode(values), AccumulatorType(accumulators))
    model = load(Path(package), function_name=function, numerics=numerics, seed=seed)
    arrays = inputs if isinstance(inputs, Mapping) else read(Path(inputs), expected=model.input_shapes)
    tapped = _Taps(taps)
    results = modelled(model, arrays, notice, tapped)
    tapped.check(model)
    results = tapped.seen | results
    if out is not None:
        write(Path(out), results)
    return results


@dataclass
class _Taps:
    """A listener that keeps the values whose names it was given, or those that its patterns fit."""

    patterns: Sequence[str]
    seen: dict[str, Array] = field(default_factory=dict)

    def before(self, operation: Operation, inputs: Mapping[str, Any]) -> None: ...

    def after(self, operation: Operation, outputs: Mapping[str, Any]) -> None:
        for name, value in outputs.items():
            if isinstance(value, Tensor) and any(fnmatchcase(name, pattern) for pattern in self.patterns):
                self.seen[name] = value.numpy().copy()

    def check(self, model: Model) -> None:
        """Refuse a pattern that no value fits."""
        for pattern in self.patterns:
            if not any(fnmatchcase(name, pattern) for name in self.seen):
                names = [output.name for operation in model.operations for output in operation.outputs]
                near = ", ".join(get_close_matches(pattern, names, 3))
                raise UsageError(
                    f"{model.path.name} computes no value {pattern!r}", fix=f"Near it: {near}." if near else ""
                )


@dataclass
class _Several:
    """Listeners, one after the other."""

    listeners: Sequence[Listener]

    def before(self, operation: Operation, inputs: Mapping[str, Any]) -> None:
        for listener in self.listeners:
            listener.before(operation, inputs)

    def after(self, operation: Operation, outputs: Mapping[str, Any]) -> None:
        for listener in self.listeners:
            listener.after(operation, outputs)


def modelled(
    model: Model,
    inputs: Mapping[str, Array],
    notice: Callable[[str], None],
    taps: _Taps | None = None,
) -> dict[str, Array]:
    """Predict with the model's own numerics, and tell of each operation that departs from what the program says.

    Raises:
        UsageError: The numerics are the Neural Engine's, and none of the operations computes in half precision.
    """
    watch = None
    listeners: list[Listener] = [taps] if taps is not None and taps.patterns else []
    if model.numerics.values is RoundingMode.ANE:
        _check_half(model)
        watch = LimitWatch(model.function.opset)
        listeners.append(watch)
    state = model.make_state() if model.spec.states else None
    listener = _Several(listeners) if listeners else None
    results: dict[str, Array] = model.predict(inputs, state, listener=listener)
    for departure in watch.found if watch is not None else ():
        notice(str(departure))
    return results


def _check_half(model: Model) -> None:
    if not any(dtype == "fp16" for _, dtype in model.spec.float_values):
        raise UsageError(
            f"the Neural Engine runs nothing of {model.path.name}",
            expected="operations in half precision",
            received=", ".join(sorted({dtype for _, dtype in model.spec.float_values})) or "none of floating type",
            fix="Build it with --precision fp16.",
        )
