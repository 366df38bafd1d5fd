"""Tensors by name for a module that is built already: checkpoints without a class, inspected before they are used."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from splitter.errors import CheckpointError

from . import inspection, safetensors_files, torch_files

_MOST_BYTES = 2**32
# Where trainers put the tensors in what they save.
_WRAPPERS = ("state", "state_dict", "model_state_dict")


def fill(module: nn.Module, path: Path, *, more: bool = False) -> str:
    """Give a module the tensors of a file: a ``.safetensors``, or what `torch.save` wrote of a state.

    Args:
        module: Its counts of training steps, which are no floating-point numbers, stay as they are.
        path: The file.
        more: The file may hold tensors that the module does not have; they are not read.

    Returns:
        The file's SHA-256.

    Raises:
        CheckpointError: The file is missing, damaged, holds something else than floating-point tensors, or others than
            the module's.
    """
    data = inspection.content(path, _MOST_BYTES)
    state = module.state_dict()
    counts = {key: tensor for key, tensor in state.items() if not tensor.is_floating_point()}
    expected = {key: tuple(tensor.shape) for key, tensor in state.items() if key not in counts}
    if path.suffix == ".safetensors":
        tensors = _of_safetensors(data, path.name)
    else:
        tensors = _of_torch(data, path.name, lambda key: key in expected if more else key not in counts)
    tensors = tensors | _tied(module, tensors)
    shapes = {key: tuple(tensor.shape) for key, tensor in tensors.items()}
    if different := sorted(key for key in expected.keys() | shapes.keys() if expected.get(key) != shapes.get(key)):
        first = different[0]
        raise CheckpointError(
            f"the tensors of {path.name} do not fit {type(module).__name__}: {len(different)} that differ",
            expected=f"{expected.get(first, 'none')} for {first!r}"[:200],
            received=str(shapes.get(first, "none"))[:120],
            fix="Is the configuration that of this checkpoint?",
        )
    module.load_state_dict(tensors | counts)
    return hashlib.sha256(data).hexdigest()


def digest(digests: Sequence[str]) -> str:
    """One SHA-256 for the files that a model is made of, in order."""
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def _tied(module: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What a file leaves out because the module has it under several names, as safetensors' files must."""
    state = module.state_dict(keep_vars=True)
    names = {id(state[key]): key for key in tensors.keys() & state.keys()}
    return {key: tensors[names[id(own)]] for key, own in state.items() if key not in tensors and id(own) in names}


def _of_safetensors(data: bytes, name: str) -> dict[str, Tensor]:
    safetensors_files.header(data, name)
    return safetensors_files.tensors(data, name)


def _of_torch(data: bytes, name: str, needed: Callable[[str], bool]) -> dict[str, Tensor]:
    file = torch_files.TorchFile(data, name)
    state = file.package()
    for wrapper in _WRAPPERS:
        if isinstance(state, dict) and wrapper in state:
            state = state[wrapper]
    if not isinstance(state, dict) or not all(isinstance(key, str) for key in state):
        raise CheckpointError(f"{name} has no tensors by name", received=f"a {type(state).__name__}")
    return file.tensors(file.declared({key: value for key, value in state.items() if needed(key)}))
