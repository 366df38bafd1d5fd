"""YAML of strangers: bounded before it is built, and made of plain values alone."""

from __future__ import annotations

from typing import Any

import yaml

from splitter.errors import CheckpointError

_MOST_DEPTH = 8
_MOST_CHARACTERS = 100  # of one value


class _Loader(yaml.SafeLoader):
    """`yaml.SafeLoader` with the one tag of Python's that configurations of models use, of tuples."""


def _tuple(loader: _Loader, node: yaml.SequenceNode) -> tuple[Any, ...]:
    return tuple(loader.construct_sequence(node, deep=True))


_Loader.add_constructor("tag:yaml.org,2002:python/tuple", _tuple)


def parsed(data: bytes, name: str) -> Any:
    """The value that a file describes: mappings, lists, tuples, numbers, truths and texts.

    Raises:
        CheckpointError: It is no YAML, names anything of Python's but tuples, or is longer or nested deeper than a
            configuration.
    """
    try:
        text = data.decode()
        check_bounds(text, name)
        return yaml.load(text, Loader=_Loader)  # noqa: S506 (a safe loader)
    except yaml.constructor.ConstructorError as error:
        raise CheckpointError(
            f"{name} asks for more than values",
            received=(error.problem or str(error)).replace("\n", " ")[:300],
            fix="Nothing of the file was run. Write the value out.",
        ) from error
    except (UnicodeDecodeError, yaml.YAMLError, ValueError, OverflowError) as error:
        raise CheckpointError(f"{name} is no YAML", received=str(error).replace("\n", " ")[:300]) from error


def check_bounds(text: str, name: str) -> None:
    """Refuse a document whose values take more to build than to read.

    Raises:
        CheckpointError: A part refers to another, a value is long, or the nesting is deep.
    """
    depth = 0
    for event in yaml.parse(text, Loader=yaml.BaseLoader):  # does not recurse, as building the value does
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            depth += 1
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            depth -= 1
        if isinstance(event, yaml.AliasEvent):
            raise CheckpointError(f"{name} repeats a part of itself", received=f"*{event.anchor}"[:80])
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > _MOST_CHARACTERS:
            raise CheckpointError(f"{name} holds a value of {len(event.value):,} characters")
        if depth > _MOST_DEPTH:
            raise CheckpointError(f"{name} is nested too deep", expected=f"at most {_MOST_DEPTH} levels")
