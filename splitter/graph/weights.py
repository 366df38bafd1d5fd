"""The weights of saved programs: one safetensors file of a bundle, which they share."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..errors import BundleError
from ..reading import Read
from .shapes import DTYPES

# As safetensors names them.
_STORED = dict(zip(
    ("F64", "F32", "F16", "BF16", "C64", "C128", "I64", "I32", "I16", "I8", "U8", "BOOL"), DTYPES.values(), strict=True
))  # fmt: skip


class Weights:
    """Tensors of a safetensors file, each kept once, when a program that needs it is loaded."""

    def __init__(self, path: Path, read: Read = Path.read_bytes) -> None:
        """Nothing is read yet.

        Args:
            path: The file.
            read: Gives its content.
        """
        self._path, self._content = path, read
        self._kept: dict[str, Tensor] = {}
        self._held: bytes | None = None
        self._holding = False

    def of(self, names: Iterable[str]) -> dict[str, Tensor]:
        """Those of these names that there are, in memory of their own.

        The file is read whole, so that it can be hashed, even where few of its tensors are new. Each is copied out of
        it: PyTorch picks kernels by alignment, the file aligns to 8 bytes only, and bit-for-bit comparison needs the
        allocator's 64.

        Raises:
            BundleError: The file cannot be read.
        """
        wanted = dict.fromkeys(names)
        if new := wanted.keys() - self._kept.keys():
            try:
                content = self._content(self._path) if self._held is None else self._held
                self._held = content if self._holding else None
                self._kept |= _tensors(content, new)
            except (OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, RecursionError) as error:
                raise BundleError(
                    f"{self._path.name} cannot be read as a safetensors file",
                    received=repr(error),
                    fix="Build the bundle again.",
                ) from error
        return {name: self._kept[name] for name in wanted if name in self._kept}

    @contextmanager
    def held(self) -> Iterator[None]:
        """Keep the content between programs that are loaded in this block: it is read and hashed once for all."""
        self._holding = True
        try:
            yield
        finally:
            self._held, self._holding = None, False


def _tensors(content: bytes, names: AbstractSet[str]) -> dict[str, Tensor]:
    """Copies of some tensors of a safetensors file. Raises ValueError and its kin if it is none."""
    start = 8 + int.from_bytes(content[:8], "little")
    if start > len(content):
        raise ValueError(f"a header of {start - 8} bytes in {len(content)}")
    header = json.loads(content[8:start])
    found = {}
    for name in names & header.keys():
        entry = header[name]
        begin, end = (int(offset) for offset in entry["data_offsets"])
        shape, dtype = tuple(map(int, entry["shape"])), _STORED[entry["dtype"]]
        size = math.prod(shape) * dtype.itemsize
        if min(shape, default=0) < 0 or not 0 <= begin <= end <= len(content) - start or end - begin != size:
            raise ValueError(f"tensor {name!r} lies at {begin}…{end}")
        tensor = torch.empty(shape, dtype=dtype)
        tensor.view(-1).view(torch.uint8).numpy()[:] = np.frombuffer(content, np.uint8, size, start + begin)
        found[name] = tensor
    return found
