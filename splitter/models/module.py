"""Modules of no family: any `nn.Module`, with example inputs that its user gives."""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar

from torch import nn

from .. import names
from ..errors import CheckpointError, UsageError
from ..graph.signature import nearest
from ..plan.schema import Plan
from . import Example, Family, Model

_REFERENCE = re.compile(r"(?P<module>[A-Za-z_]\w*(\.[A-Za-z_]\w*)*):(?P<factory>[A-Za-z_]\w*)")


class ModuleFamily(Family):
    """Whatever no installed family fits: it has no example, no preset, no patches and no audio record of its own."""

    name: ClassVar[str] = "module"

    def fits(self, module: nn.Module) -> bool:
        return True

    def example(self, module: nn.Module, plan: Plan, recording: Path | None) -> Example:
        raise CheckpointError(
            f"{type(module).__name__} is of no installed model family, so its example inputs must be given",
            fix="In Python inputs={'argument': array}, on the command line --inputs FILE.npz. Or write a family for "
            "it (handbook, «Extending»); a separator needs the attributes sources, samplerate, audio_channels and "
            "segment.",
        )


def is_reference(model: str | Path) -> bool:
    """Whether a model is asked for as ``PACKAGE.MODULE:FACTORY``."""
    return isinstance(model, str) and _REFERENCE.fullmatch(model) is not None


def from_factory(reference: str) -> Model:
    """Import a module of Python, call a function or class of it without arguments, and take what it returns.

    This runs the user's own code, with the current folder importable, as ``python -m`` has it.

    Args:
        reference: ``PACKAGE.MODULE:FACTORY``.

    Raises:
        UsageError: There is no such module, or no such name in it.
        CheckpointError: The code fails, or what it returns is no `nn.Module`.
    """
    match = _REFERENCE.fullmatch(reference)
    if match is None:
        raise UsageError("a factory is given as PACKAGE.MODULE:FACTORY", received=reference)
    with _current_folder():
        try:
            home = importlib.import_module(match["module"])
        except ModuleNotFoundError as error:
            if error.name is None or not match["module"].startswith(error.name):
                raise _failed(reference, "be imported", error) from error
            raise UsageError(
                f"there is no Python module {error.name!r} for {reference}",
                fix="Install its package, or run the command in the folder that holds it.",
            ) from error
        except Exception as error:  # the user's code raises every kind
            raise _failed(reference, "be imported", error) from error
        factory = getattr(home, match["factory"], None)
        if not callable(factory):
            public = [name for name, value in vars(home).items() if callable(value) and not name.startswith("_")]
            raise UsageError(
                f"{match['module']} has no function or class {match['factory']!r}",
                fix=nearest(match["factory"], public) or f"It has {', '.join(public) or 'none'}.",
            )
        try:
            module = factory()
        except Exception as error:  # likewise
            raise _failed(reference, "be called without arguments", error) from error
    if not isinstance(module, nn.Module):
        raise CheckpointError(
            f"{reference} returns no model", expected="a torch.nn.Module", received=type(module).__name__
        )
    name = match["factory"]
    return Model(name if names.fault(name, names.MOST_BYTES) is None else "model", module.eval())


def _failed(reference: str, what: str, error: Exception) -> CheckpointError:
    return CheckpointError(f"{reference} cannot {what}", received=f"{type(error).__name__}: {error}")


@contextmanager
def _current_folder() -> Iterator[None]:
    here = str(Path.cwd())
    if here in sys.path:
        yield
        return
    sys.path.insert(0, here)
    try:
        yield
    finally:
        sys.path.remove(here)
