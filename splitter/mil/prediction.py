"""One package on inputs from a file, into a file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from .. import output
from ..arrays import SUFFIXES, read, write
from ..boundary import Array
from .model import load
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

    Returns:
        The outputs by name.

    Raises:
        PackageError: The package cannot be read.
        OperationError: It holds an operation that cannot be executed, or fails on the inputs.
        UsageError: A file cannot be read or written, or the inputs do not fit.
    """
    if out is not None:
        output.check(Path(out), *SUFFIXES)
    numerics = Numerics(RoundingMode(values), AccumulatorType(accumulators))
    model = load(Path(package), function_name=function, numerics=numerics, seed=seed)
    arrays = inputs if isinstance(inputs, Mapping) else read(Path(inputs), expected=model.input_shapes)
    results = model.predict(arrays, model.make_state() if model.spec.states else None)
    if out is not None:
        write(Path(out), results)
    return results
