"""Core ML Tools, imported once and quietly.

Off the Mac its import logs a dozen warnings about libraries that exist only there, and each conversion
draws progress bars of its own.
"""

from __future__ import annotations

import gc
import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partialmethod
from typing import Any

from tqdm import tqdm

from ..patching import replaced

logging.getLogger("coremltools").setLevel(logging.ERROR)
# It imports torchao where that is installed, for tables that nothing here asks for: seconds, and warnings of its own.
if is_hidden := "torchao" not in sys.modules:
    sys.modules["torchao"] = None  # type: ignore[assignment]

import coremltools as ct  # noqa: E402
from coremltools.converters.mil.frontend.torch.internal_graph import InternalTorchIRNode  # noqa: E402
from coremltools.converters.mil.mil import Program  # noqa: E402

if is_hidden:
    del sys.modules["torchao"]

__all__ = ["ct", "keywords_unread", "quiet_and_quick"]


@contextmanager
def quiet_and_quick() -> Iterator[None]:
    """Convert without progress bars and without a validation of the whole program after each of 80 passes.

    Core ML Tools has no switch for its bars, and tqdm's environment variable is read only at import. The
    validations took half of a conversion; one at the end, on the converted model, finds what they find.
    Each conversion collects the garbage of the whole process at its end: a second where many modules are loaded,
    and no lower peak of memory.
    """
    silent = partialmethod(tqdm.__init__, disable=True)
    with (
        replaced(tqdm, "__init__", silent),
        replaced(Program, "validate", lambda *arguments, **options: None),
        replaced(gc, "collect", lambda *arguments: 0),
    ):
        yield


class _Keywords(dict[str, Any]):
    """An operator's keywords, as its converter looks them up."""

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.read: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        self.read.add(key)
        return super().get(key, default)


@contextmanager
def keywords_unread() -> Iterator[Callable[[], list[tuple[Any, str]]]]:
    """Watch which keywords of an exported graph's operators the converters look at.

    The converters of the export route read the keywords that they know and pass over the others without a word:
    ``add`` its ``alpha``, ``gelu`` its ``approximate``, ``zeros_like`` its ``dtype``.

    Yields:
        What gives, after a conversion, each exported node and the keyword that nothing has read.
    """
    seen: list[tuple[Any, _Keywords]] = []
    original = InternalTorchIRNode.from_exir_node.__func__

    def recording(cls: type, node: Any) -> Any:
        made = original(cls, node)
        if made.kwinputs:
            made.kwinputs = _Keywords(made.kwinputs)
            seen.append((node, made.kwinputs))
        return made

    with replaced(InternalTorchIRNode, "from_exir_node", classmethod(recording)):
        yield lambda: [(node, key) for node, keywords in seen for key in keywords if key not in keywords.read]
