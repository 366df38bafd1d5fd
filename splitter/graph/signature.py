"""How a forward is called and what it returns: a name for every tensor, whatever structure holds it.

Example inputs go by the name of the forward's argument, or by a path where an argument is a structure of tensors:
``{"features.0": …, "features.1": …}`` is a list, ``{"state.h": …}`` a dictionary. What is no tensor (None, a number, a
text) is a constant of the graph.
"""

from __future__ import annotations

import difflib
import inspect
import keyword
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._pytree import GetAttrKey, MappingKey, SequenceKey, TreeSpec, tree_flatten_with_path, tree_unflatten

from ..errors import UsageError
from .shapes import DTYPES, TensorType

NUMPY_LACKS = "bfloat16"
_CONSTANTS = (bool, int, float, str)
_MANAGED = frozenset({"_parameters", "_buffers", "_modules"})  # by PyTorch
# What the code that torch.fx generates calls something else.
TAKEN = frozenset({"self", *torch.fx.graph._custom_builtins})


@dataclass(frozen=True)
class Call:
    """One call of a module's forward.

    Attributes:
        args: Positional arguments.
        kwargs: The others, in the order of the signature.
        tensors: Every tensor among them by name, in the order in which a captured graph takes them.
    """

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    tensors: dict[str, Tensor]

    @torch.no_grad()
    def run(self, module: nn.Module, *, kept: bool = True) -> Any:
        """What forward returns. The tensors are what they were afterwards, and the module too where it is ``kept``."""
        leaves, spec = tree_flatten_with_path((self.args, self.kwargs))
        fresh = [leaf.clone() if isinstance(leaf, Tensor) else leaf for _, leaf in leaves]
        args, kwargs = tree_unflatten(fresh, spec)
        with _state_kept(module) if kept else nullcontext():
            return module(*args, **kwargs)

    def __str__(self) -> str:
        return ", ".join(f"{name} {TensorType.of(tensor)}" for name, tensor in self.tensors.items()) or "no tensor"


def bind(module: nn.Module, inputs: Mapping[str, Any]) -> Call:
    """The call of a module's forward on example inputs by name.

    Args:
        module: Its forward says which arguments are taken by position, which by name.
        inputs: Arrays, tensors, constants, or lists and dictionaries of them, by the name of the argument; or by paths
            with dots between their parts.

    Raises:
        UsageError: An argument is unknown, missing, or of a kind that no graph takes.
    """
    values = {name: _value(name, value) for name, value in _nested(inputs).items()}
    try:
        parameters = inspect.signature(module.forward).parameters
    except ValueError as error:  # written in C
        raise UsageError(f"the arguments of {type(module).__name__}.forward cannot be read") from error
    args: list[Any] = []
    kwargs: dict[str, Any] = {}
    in_place, names, left = True, [], dict(values)
    for name, parameter in parameters.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            kwargs |= left
            left = {}
        elif name not in left:
            if parameter.default is parameter.empty and parameter.kind is not parameter.VAR_POSITIONAL:
                raise UsageError(
                    f"{type(module).__name__}.forward needs the argument {name!r}",
                    received=", ".join(values) or "no inputs",
                    fix=f"Its arguments are {', '.join(parameters)}.",
                )
            in_place = False  # what follows can only be given by name
        elif parameter.kind is parameter.VAR_POSITIONAL and in_place:
            several = left.pop(name)
            args += several if isinstance(several, list | tuple) else [several]
        elif parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD) and in_place:
            args.append(left.pop(name))
            names.append(name)
        else:
            kwargs[name] = left.pop(name)
    if left:
        unknown = next(iter(left))
        raise UsageError(
            f"{type(module).__name__}.forward has no argument {unknown!r}",
            fix=nearest(unknown, parameters) or f"Its arguments are {', '.join(parameters) or 'none'}.",
        )
    return Call(tuple(args), kwargs, _named_tensors(names, args, kwargs, parameters))


def of_shapes(inputs: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Any]:
    """Example inputs with other extents: each is cut off, or begins again where it ends.

    Args:
        inputs: As for `bind`.
        shapes: Of some of them, by the same names.

    Raises:
        UsageError: There is no such input, or it has another number of axes.
    """
    changed = dict(inputs)
    for name, shape in shapes.items():
        array = inputs.get(name)
        if not isinstance(array, Tensor | np.ndarray) or array.ndim != len(shape):
            raise UsageError(
                f"a variant of the plan gives the input {name!r} {len(shape)} axes",
                expected=f"one of {', '.join(inputs)}, with as many axes as the example has",
                received=f"{array.ndim} axes" if isinstance(array, Tensor | np.ndarray) else "no array of this name",
            )
        for axis, extent in enumerate(shape):
            places = np.arange(extent) % array.shape[axis]
            array = array[(slice(None),) * axis + (places,)]
        changed[name] = array
    return changed


def nearest(name: str, known: Collection[str]) -> str:
    """A sentence with the names that a mistyped one may have meant; empty where none is near."""
    found = difflib.get_close_matches(name, known, n=4, cutoff=0.5)
    return f"The nearest: {', '.join(found)}." if found else ""


def paths(spec: TreeSpec) -> list[str]:
    """Where each leaf of a structure lies: ``"hidden.0"``; empty for a structure that is a leaf."""
    leaves, _ = tree_flatten_with_path(tree_unflatten(list(range(spec.num_leaves)), spec))
    return [".".join(map(_part, path)) for path, _ in leaves]


def identifier(text: str, taken: Collection[str], otherwise: str) -> str:
    """A name from any text, which code and files may use, and which is not taken."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_")
    if not name or name[0].isdigit():
        name = f"{otherwise}_{name}".strip("_")
    if keyword.iskeyword(name) or name in TAKEN:
        name = f"{otherwise}_{name}"
    candidates = (name if count == 0 else f"{name}_{count + 1}" for count in range(len(taken) + 1))
    return next(candidate for candidate in candidates if candidate not in taken)


def _named_tensors(
    names: Sequence[str], args: Sequence[Any], kwargs: Mapping[str, Any], parameters: Mapping[str, Any]
) -> dict[str, Tensor]:
    several = next(
        (name for name, parameter in parameters.items() if parameter.kind is parameter.VAR_POSITIONAL), "input"
    )
    tensors: dict[str, Tensor] = {}
    for (which, *path), leaf in tree_flatten_with_path((tuple(args), dict(kwargs)))[0]:
        if not isinstance(leaf, Tensor):
            continue
        first, rest = _part(path[0]), path[1:]
        if which == SequenceKey(0):  # by position
            place = int(first)
            first = names[place] if place < len(names) else f"{several}_{place - len(names)}"
        name = identifier("_".join([first, *map(_part, rest)]), tensors, "input")
        tensors[name] = leaf
    return tensors


def _part(key: Any) -> str:
    match key:
        case SequenceKey(index):
            return str(index)
        case MappingKey(name) | GetAttrKey(name):
            return str(name)
    return str(key)


def _nested(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """Paths with dots as dictionaries, or as lists where their parts count from 0."""
    tree: dict[str, Any] = {}
    for path, value in inputs.items():
        *above, last = path.split(".")
        place = tree
        for part in above:
            place = place.setdefault(part, {})
            if not isinstance(place, dict):
                raise UsageError(f"the input {path!r} lies within another one that is no structure")
        place[last] = value
    return {name: _listed(value) for name, value in tree.items()}


def _listed(value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    content = {key: _listed(item) for key, item in value.items()}
    places = [str(place) for place in range(len(content))]
    return [content[place] for place in places] if content and set(content) == set(places) else content


def _value(name: str, value: Any) -> Any:
    """Arrays as tensors of their own memory, structures of them likewise."""
    if isinstance(value, list | tuple):
        items = [_value(name, item) for item in value]
        return items if isinstance(value, list) else tuple(items)
    if isinstance(value, Mapping):
        return {key: _value(name, item) for key, item in value.items()}
    if isinstance(value, Tensor):
        tensor = value.detach().cpu().clone()
    elif isinstance(value, np.ndarray | np.generic):
        try:
            tensor = torch.from_numpy(np.array(value, order="C"))
        except TypeError as error:
            raise UsageError(f"the input {name!r} is no array of numbers", received=np.asarray(value).dtype) from error
    elif value is None or isinstance(value, _CONSTANTS):
        return value
    else:
        raise UsageError(
            f"the input {name!r} is nothing that a graph takes",
            expected="an array, a tensor, a constant, or a list or dictionary of these",
            received=type(value).__name__,
        )
    if (dtype := str(tensor.dtype).removeprefix("torch.")) not in DTYPES or dtype == NUMPY_LACKS:
        raise UsageError(
            f"the input {name!r} has elements of a type that no bundle takes",
            received=dtype,
            fix="Cast it, and for floating-point types the module too: module.float().",
        )
    return tensor


@contextmanager
def _state_kept(module: nn.Module) -> Iterator[None]:
    restore = remembered(module)
    try:
        yield
    finally:
        restore()


def remembered(module: nn.Module) -> Callable[[], None]:
    """What puts the module's state back: every buffer, written to or replaced, and every attribute of another kind.

    Both, because one tells of the other: how many rows of a table are filled.
    """
    buffers = [
        (owner, name, buffer, buffer.clone())
        for owner in module.modules()
        for name, buffer in owner._buffers.items()
        if buffer is not None
    ]
    attributes = [(vars(owner), _plain(owner)) for owner in module.modules()]

    def restore() -> None:
        for owner, name, buffer, values in buffers:
            if owner._buffers.get(name) is not buffer or not _same(buffer, values):
                buffer.copy_(values)
                owner._buffers[name] = buffer
        for namespace, plain in attributes:
            for name in namespace.keys() - plain.keys() - _MANAGED:
                del namespace[name]
            namespace.update(plain)

    return restore


def _plain(owner: nn.Module) -> dict[str, Any]:
    return {name: value for name, value in vars(owner).items() if name not in _MANAGED}


def _same(buffer: Tensor, values: Tensor) -> bool:
    return buffer.shape == values.shape and torch.equal(buffer, values)
