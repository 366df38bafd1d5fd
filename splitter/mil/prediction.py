"""One package on inputs from a file, into a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from .. import output
from ..arrays import SUFFIXES, read, write
from ..boundary import Array
from ..errors import UsageError
from .departures import LimitWatch
from .features import pillow, pixel_shape
from .interpreter import Listener
from .model import Model, load
from .numerics import AccumulatorType, Numerics, RoundingMode
from .program import Operation

_IMAGES = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".tif": "TIFF", ".tiff": "TIFF", ".bmp": "BMP"}


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
        inputs: Arrays by name, or a ``.npz`` or ``.safetensors`` file of them; images as arrays of pixels, height ×
            width × 3 or height × width. For a package with one input, an image: its file, e.g. ``photo.png``.
        out: File of the same kinds to write the outputs to; an image for a package with one output, an image.
        function: Which one, for packages with several.
        values: Types that values are rounded to, see `RoundingMode`.
        accumulators: What sums of half-precision terms are held in, see `AccumulatorType`.
        seed: Of random operations.
        taps: Names or patterns (``conv_*``) of intermediate values that are given beside the outputs.
        notice: With the values ``ane``, told of each operation that the Neural Engine computes otherwise than the
            program says, in order.

    Returns:
        The outputs, and the taps, by name; images as arrays of pixels.

    Raises:
        PackageError: The package cannot be read.
        OperationError: It holds an operation that cannot be executed, or fails on the inputs.
        UsageError: A file cannot be read or written, the inputs do not fit, or with the values ``ane`` nothing is
            computed in half precision.
    """
    if out is not None:
        output.check(Path(out), *SUFFIXES, *_IMAGES)
    numerics = Numerics(RoundingMode(values), AccumulatorType(accumulators))
    model = load(Path(package), function_name=function, numerics=numerics, seed=seed)
    arrays = inputs if isinstance(inputs, Mapping) else _read(Path(inputs), model)
    tapped = _Taps(taps)
    results = modelled(model, arrays, notice, tapped)
    tapped.check(model)
    pixels = {name: np.asarray(value) if hasattr(value, "getbands") else value for name, value in results.items()}
    if out is not None and Path(out).suffix in _IMAGES:
        _write_image(Path(out), model, results)
    elif out is not None:
        write(Path(out), tapped.seen | pixels)
    return tapped.seen | pixels


def _read(path: Path, model: Model) -> Mapping[str, Any]:
    """Inputs of a package from a file of arrays, or from an image."""
    images = {feature.name: feature for feature in model.spec.inputs if feature.image}
    if path.suffix.lower() not in _IMAGES:
        shapes = {
            name: pixel_shape(images[name]) if name in images else kind for name, kind in model.input_shapes.items()
        }
        return read(path, expected=shapes)
    if len(model.spec.inputs) != 1 or not images:
        raise UsageError(
            f"an image is given to {model.path.name}, whose inputs are not one image",
            expected=", ".join(feature.name for feature in model.spec.inputs),
            fix="Give them by name in a .npz file.",
        )
    library = pillow(str(path))
    try:
        with library.open(path) as image:
            image.load()
            return {next(iter(images)): image}
    except (OSError, ValueError, SyntaxError, library.DecompressionBombError) as error:
        raise UsageError(f"{path} cannot be read as an image", received=str(error)) from error


def _write_image(path: Path, model: Model, results: Mapping[str, Any]) -> None:
    images = [value for value in results.values() if hasattr(value, "getbands")]
    if len(results) != 1 or not images:
        raise UsageError(
            f"the outputs of {model.path.name} are not one image and cannot be written to {path.name}",
            received=", ".join(results),
            fix="Write them to a .npz file.",
        )
    with output.whole(path) as waiting:
        images[0].save(waiting, format=_IMAGES[path.suffix])


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
