"""Consoles of Rich, whose import takes longer than the command's help."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import IO, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment

from ..names import visible


class VisibleConsole(Console):
    """A console whose content cannot contain escape sequences: only Rich's own styles and controls are obeyed.

    With ``NO_COLOR`` in the environment it has no styles at all; Rich would leave bold and dim text so.
    """

    def __init__(self, **options: Any) -> None:
        if os.environ.get("NO_COLOR"):
            options["color_system"] = None
        super().__init__(**options)

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            yield segment if segment.control else segment._replace(text=visible(segment.text, keep="\n"))

    @property
    def file(self) -> IO[str]:
        """The stream itself, past the proxy of a live display and `VisibleStream`."""
        stream = super().file
        return getattr(stream, "rich_proxied_file", stream)

    @file.setter
    def file(self, new_file: IO[str]) -> None:
        self._file = new_file


stderr = VisibleConsole(stderr=True, highlight=False, markup=False)  # names may hold brackets
