"""One package on inputs from a file, into a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from .. import output
from ..arrays import SUFFIXES, read, write
from ..boundary import Array
from ..errors import UsageError
from .departures import LimitWatch
from .model import Model, load
from .numerics import AccumulatorType, Numerics, RoundingMode


def predict(
    package: Path | str,
    inputs: Path | str | Mapping[str, Array],
    *,
    out: Path | str | None = None,
    function: str | None = None,
    values: str = "stored",
    accumulators: str = "fp32",
    seed: int = 0,
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
        notice: With the values ``ane``, told of each operation that the Neural Engine computes otherwise than the
            program says, in order.

    Returns:
        The outputs by name.

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
    results = modelled(model, arrays, notice)
    if out is not None:
        write(Path(out), results)
    return results


def modelled(model: Model, inputs: Mapping[str, Array], notice: Callable[[str], None]) -> dict[str, Array]:
    """Predict with the model's own numerics, and tell of each operation that departs from what the program says.

    Raises:
        UsageError: The numerics are the Neural Engine's, and none of the operations computes in half precision.
    """
    watch = None
    if model.numerics.values is RoundingMode.ANE:
        _check_half(model)
        watch = LimitWatch(model.function.opset)
    results: dict[str, Array] = model.predict(inputs, model.make_state() if model.spec.states else None, listener=watch)
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
