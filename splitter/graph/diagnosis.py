"""Why a model cannot be captured: what is true of the failure, and what can be done about it."""

from __future__ import annotations

import traceback
from pathlib import Path

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import GuardOnDataDependentSymNode

from ..errors import CaptureError
from .signature import Call

_TORCH = Path(torch.__file__).parent
# `torch.export` words the same refusal in several ways.
_DATA_DEPENDENT = (
    "data-dependent",
    "data dependent",
    "_local_scalar_dense",
    "Cannot cast FakeTensor",
    "aten.nonzero",
    "but got FakeTensor",  # an extent
)
# Words of a refusal: what is true of the module, and what to do.
_KNOWN = {
    "PackedParams": (
        "{name} is quantised already, and its weights are no tensors",
        "Give the module as it was before; packages quantise weights by `compress` (handbook, «Compression»).",
    ),
    "register a pytree": (
        "{name}.forward returns an object that PyTorch cannot look into",
        "Return a tuple or a dictionary, or register its class: torch.export.register_dataclass.",
    ),
    ".numpy() is not supported": (
        "{name}.forward leaves PyTorch for NumPy{place}, where no graph follows",
        "Use PyTorch's functions there, or do that part before or after the model.",
    ),
}


def of(error: Exception, model: nn.Module, call: Call) -> CaptureError:
    """The error for a module that `torch.export` refused: its forward's own, or what a graph cannot hold.

    Args:
        error: What came out of `torch.export`.
        model: As it is; its forward is run once more, by itself.
        call: The example.
    """
    name = type(model).__name__
    try:
        check(model, call)
    except CaptureError as own:
        return own
    for words, (problem, fix) in _KNOWN.items():
        if words in str(error):
            return CaptureError(problem.format(name=name, place=_place(error)), received=_first_line(error), fix=fix)
    if _depends_on_data(error):
        return CaptureError(
            f"{name}.forward decides by the values of a tensor{_place(error)}, and a graph has one way through",
            received=_first_line(error),
            fix="Choose between values with torch.where, decide by shapes or by a constant input, or patch the named "
            "function for the capture in a model family of your own (handbook, «Extending»).",
        )
    return CaptureError(
        f"{name}.forward runs, and torch.export cannot capture it{_place(error)}",
        received=_first_line(error),
        fix="The place named uses something that no graph holds. Patch the named function for the capture in a model "
        "family of your own (handbook, «Extending»).",
    )


def check(model: nn.Module, call: Call) -> None:
    """Run the forward by itself. Raises `CaptureError` if it fails on the example."""
    try:
        call.run(model)
    except Exception as error:  # the user's code raises every kind
        raise CaptureError(
            f"{type(model).__name__}.forward fails on the example inputs, without any capture{_place(error)}",
            received=_first_line(error),
            fix=f"Correct the inputs or the module. The inputs were {call}.",
        ) from error


def _depends_on_data(error: Exception) -> bool:
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, GuardOnDataDependentSymNode) or any(word in str(seen) for word in _DATA_DEPENDENT):
            return True
        seen = seen.__cause__ or seen.__context__
    return False


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


def _place(error: BaseException) -> str:
    """Where the user's own code was when it failed: the last frame outside PyTorch and outside splitter."""
    frames: list[traceback.FrameSummary] = []
    seen: BaseException | None = error
    while seen is not None and not frames:
        frames = [frame for frame in traceback.extract_tb(seen.__traceback__) if _is_own(frame.filename)]
        seen = seen.__cause__ or seen.__context__
    if not frames:
        return ""
    return f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno}, in {frames[-1].name})"


def _is_own(filename: str) -> bool:
    path = Path(filename)
    return (
        path.suffix == ".py"
        and not path.is_relative_to(_TORCH)
        and not path.is_relative_to(Path(__file__).parent.parent)
    )
