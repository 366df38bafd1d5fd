"""Names that come from files of others: what may become a part of a path, and how text is shown."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from typing import Annotated, Any

MOST_BYTES = 200  # of a name in a manifest: leaves room for prefixes and suffixes in the 255 of file systems
_COMPONENT_BYTES, _PATH_BYTES = 255, 1024
_FORBIDDEN = re.compile(r'[<>:"/\\|?*]')  # by one system or another
_RESERVED = re.compile(r"(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\..*)?", re.IGNORECASE | re.DOTALL)
_HIDDEN_CATEGORIES = frozenset({"Cc", "Cf", "Cs", "Zl", "Zp"})
_JOINERS = "\u200c\u200d"  # format characters that Persian, Indic scripts and emoji are written with


def is_hidden(character: str) -> bool:
    """Whether it moves the cursor, reorders or hides text instead of being seen: controls, bidi, surrogates."""
    return unicodedata.category(character) in _HIDDEN_CATEGORIES and character not in _JOINERS


def visible(text: str, keep: str = "") -> str:
    r"""The text with every hidden character escaped, e.g. ``\x1b``, but for those in ``keep``."""
    if text.isprintable():
        return text
    if "\n" in keep:  # line by line: most need no look at their characters
        return "\n".join(visible(line, keep.replace("\n", "")) for line in text.split("\n"))
    return "".join(
        character.encode("unicode_escape").decode() if is_hidden(character) and character not in keep else character
        for character in text
    )


def fault(name: str, most_bytes: int = _COMPONENT_BYTES) -> str | None:
    """Why a name cannot be that of a file or folder on every system; None if it can."""
    if not name:
        return "it is empty"
    if character := next(filter(is_hidden, name), None):
        return f"it holds the character U+{ord(character):04X}"
    if found := _FORBIDDEN.search(name):
        return f"it holds {found[0]!r}"
    if name[0] in ". " or name[-1] in ". ":
        return "it begins or ends with a dot or a space"
    if _RESERVED.fullmatch(name):
        return "Windows reserves it for a device"
    if (size := len(name.encode())) > most_bytes:
        return f"it has {size} bytes, more than {most_bytes}"
    return None


def path_fault(path: str) -> str | None:
    """Why a path is not one of safe names with ``/`` between them, below whatever folder; None if it is."""
    for name in path.split("/"):
        if reason := fault(name):
            return f"{name[:_COMPONENT_BYTES]!r} in it cannot be a name: {reason}"
    if (size := len(path.encode())) > _PATH_BYTES:
        return f"it has {size} bytes, more than {_PATH_BYTES}"
    return None


def readable(name: str) -> str:
    """A name from a file name, with ``_`` for what `fault` finds in it, but for its length."""
    mapped = "".join("_" if is_hidden(character) else character for character in name)
    mapped = _FORBIDDEN.sub("_", mapped)
    mapped = re.sub(r"^[. ]+|[. ]+$", lambda found: "_" * len(found[0]), mapped) or "_"
    return f"_{mapped}" if _RESERVED.fullmatch(mapped) else mapped


def hidden_in(content: object) -> Iterator[str]:
    """Strings in JSON content, keys included, that hold hidden characters."""
    left: list[Any] = [content]
    while left:
        value = left.pop()
        if isinstance(value, str) and any(map(is_hidden, value)):
            yield value
        elif isinstance(value, dict):
            left += [*value.keys(), *value.values()]
        elif isinstance(value, (list, tuple)):
            left += value


def check_visible(content: Any) -> Any:
    """JSON content as it is. Raises `ValueError` if a string in it holds hidden characters."""
    if found := next(hidden_in(content), None):
        raise ValueError(f"{found!r} holds control characters or others that hide text")
    return content


def check_distinct(names: Iterable[str]) -> None:
    """Raises `ValueError` for two names that some file systems take for one."""
    seen: dict[str, str] = {}
    for name in names:
        key = unicodedata.normalize("NFC", name).casefold()
        if key in seen:
            raise ValueError(f"{seen[key]!r} and {name!r} are one file on some systems")
        seen[key] = name


def _name(value: str) -> str:
    if reason := fault(value, MOST_BYTES):
        raise ValueError(f"{value[:MOST_BYTES]!r} cannot be the name of a file: {reason}")
    return value


def _relative_path(value: str) -> str:
    if reason := path_fault(value):
        raise ValueError(f"{value[:_PATH_BYTES]!r} cannot be a path in a bundle: {reason}")
    return value


class _Checked:
    """A check that pydantic runs, whose import nobody waits for who shows a name alone."""

    def __init__(self, check: Callable[[str], str]) -> None:
        self._check = check

    def __get_pydantic_core_schema__(self, source: Any, handler: Callable[[Any], Any]) -> Any:
        from pydantic_core import core_schema

        return core_schema.no_info_after_validator_function(self._check, handler(source))


Name = Annotated[str, _Checked(_name)]
"""One component of a path that is safe on every system."""

RelativePath = Annotated[str, _Checked(_relative_path)]
"""Names with ``/`` between them: never absolute, never upwards."""
