"""What packages add to splitter: each thing is found by its name among the entry points of a group."""

from __future__ import annotations

from importlib.metadata import entry_points
from importlib.util import find_spec
from typing import Any

from .errors import SplitterError


def names(group: str) -> list[str]:
    return sorted({entry.name for entry in entry_points(group=group)})


def load(group: str, kind: str, name: str, error: type[SplitterError]) -> Any:
    """What an entry point of a group refers to.

    Args:
        group: e.g. ``"splitter.targets"``.
        kind: What the group's members are called in a message.
        error: Raised where no package installs the name, or several do.
    """
    found = [entry for entry in entry_points(group=group) if entry.name == name]
    if not found:
        raise error(f"unknown {kind} {name!r}", fix=f"Installed: {', '.join(names(group))}.")
    if len(found) > 1:
        packages = ", ".join(entry.dist.name if entry.dist else entry.value for entry in found)
        raise error(
            f"{kind} {name!r} is installed more than once", received=packages, fix="Uninstall all but one package."
        )
    return found[0].load()


def require_extra(extra: str, modules: tuple[str, ...], what: str, error: type[SplitterError]) -> None:
    """Raise an error that names the extra, where a module that it brings is not installed.

    Args:
        extra: Of splitter, e.g. ``"onnx"``.
        modules: That are needed.
        what: Needs them, as the beginning of a sentence.
        error: Raised.
    """
    if missing := [name for name in modules if find_spec(name) is None]:
        raise error(
            f"{what} is not installed",
            received=f"no {', '.join(missing)}",
            fix=f"Install the extra: pip install 'splitter[{extra}]'.",
        )
