"""Files of `torch.save`, held against what they declare before a tensor of them is made."""

from __future__ import annotations

import io
import math
import re
import zipfile
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch

from splitter.errors import CheckpointError

from . import pickles

_MOST_ENTRIES = 8192  # the released model has 539
_ENTRY = re.compile(
    r"(?P<root>[^/\x00-\x1f\x7f]{1,255})/"
    r"(data\.pkl|data/\d{1,9}|version|byteorder|\.format_version|\.storage_alignment|\.data/serialization_id)"
)
_TYPES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
}


@dataclass(frozen=True)
class DeclaredTensor:
    """Where a tensor lies: elements of `dtype` in the archive's entry ``data/{storage}``, from `offset` on."""

    storage: str
    dtype: torch.dtype
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


class TorchFile:
    """A `torch.save` archive whose entries are stored as they are and whose pickle is read as data.

    Args:
        data: The whole file.
        name: Of the file, for messages.

    Raises:
        CheckpointError: It is no such archive, damaged, or holds entries that `torch.save` does not write.
    """

    def __init__(self, data: bytes, name: str) -> None:
        self._name = name
        # Each entry of the archive's directory begins so: their number is known before any is read.
        if data.count(b"PK\x01\x02") > _MOST_ENTRIES:
            raise CheckpointError(f"{name} holds too many entries", expected=f"at most {_MOST_ENTRIES:,}")
        try:
            self._archive = zipfile.ZipFile(io.BytesIO(data))
        except (zipfile.BadZipFile, NotImplementedError, ValueError, OverflowError) as error:
            raise CheckpointError(
                f"{name} is no archive of torch.save",
                received=str(error)[:200] if data else "an empty file",
                fix="Nothing of the file was run. A file older than PyTorch 1.6 must be saved anew with a newer one.",
            ) from error
        self._sizes = self._checked_entries(len(data))
        if self._read("byteorder", b"little") != b"little":
            raise CheckpointError(f"{name} was saved on a big-endian machine", fix="Save it on another.")

    def package(self) -> Any:
        """What was saved, with `pickles.Call` and `pickles.Outside` where tensors are."""
        return pickles.parsed(self._read("data.pkl"), self._name)

    def declared(self, state: Mapping[str, Any]) -> dict[str, DeclaredTensor]:
        """The tensors of a state, each held against the storage that the file really has for it.

        Raises:
            CheckpointError: A tensor is of another type than a float, lies outside its storage, repeats elements
                or shares some with another (it may share all, under another name), or a storage has another size than
                it declares.
        """
        tensors = {key: self._declared(key, value) for key, value in state.items()}
        self._check_storages(tensors)
        return tensors

    def tensors(self, declared: Mapping[str, DeclaredTensor]) -> dict[str, torch.Tensor]:
        """The declared tensors, in memory of their own."""
        storages = {
            tensor.storage: torch.frombuffer(bytearray(self._read(f"data/{tensor.storage}")), dtype=tensor.dtype)
            for tensor in declared.values()
        }
        return {
            key: torch.as_strided(storages[tensor.storage], tensor.shape, tensor.strides, tensor.offset)
            for key, tensor in declared.items()
        }

    def _checked_entries(self, size: int) -> dict[str, int]:
        entries = self._archive.infolist()
        names = [_ENTRY.fullmatch(entry.filename) for entry in entries]
        if strange := [entry for entry, name in zip(entries, names, strict=True) if not name]:
            self._refuse("an entry that torch.save does not write", repr(strange[0].filename)[:80])
        if len({name["root"] for name in names if name}) != 1 or len({e.filename for e in entries}) != len(entries):
            self._refuse("entries of one name, or of several archives", f"{len(entries)} entries")
        if packed := [entry for entry in entries if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1]:
            self._refuse("an entry that is compressed or encrypted", repr(packed[0].filename)[:80])
        if odd := [entry for entry in entries if entry.compress_size != entry.file_size]:
            self._refuse("an entry of two sizes", repr(odd[0].filename)[:80])
        if (total := sum(entry.file_size for entry in entries)) > size:
            self._refuse("entries that lie over one another", f"{total:,} bytes in a file of {size:,}")
        self._root = next(name["root"] for name in names if name)
        return {name[2]: entry.file_size for entry, name in zip(entries, names, strict=True) if name}

    def _refuse(self, problem: str, received: str) -> None:
        raise CheckpointError(
            f"{self._name} holds {problem}", received=received, fix="Save it anew with torch.save's defaults."
        )

    def _read(self, entry: str, default: bytes | None = None) -> bytes:
        if entry not in self._sizes:
            if default is None:
                raise CheckpointError(f"{self._name} holds no {entry}", fix="Save it anew with torch.save.")
            return default
        try:
            return self._archive.read(f"{self._root}/{entry}")
        except (zipfile.BadZipFile, EOFError, OSError, ValueError, NotImplementedError) as error:
            raise CheckpointError(f"{self._name} is damaged", received=str(error)[:200] or repr(error)) from error

    def _declared(self, key: str, value: object) -> DeclaredTensor:
        if isinstance(value, pickles.Call) and value.function == "torch._utils._rebuild_parameter":
            value = value.arguments[0] if value.arguments else None
        if not isinstance(value, pickles.Call) or value.function != "torch._utils._rebuild_tensor_v2":
            raise CheckpointError(
                f"{self._name} holds something else than a plain tensor",
                received=f"{type(value).__name__} for {key!r}"[:120],
                fix="Use the model without quantisation.",
            )
        match value.arguments:
            case (
                pickles.Outside(("storage", pickles.Global(kind), str(storage), str(), int(count))),
                int(offset),
                tuple(shape),
                tuple(strides),
                *_,
            ) if (
                kind in _TYPES
                and storage.isdecimal()
                and len(shape) == len(strides) <= 8
                and all(type(number) is int and number >= 0 for number in (count, offset, *shape, *strides))
            ):
                tensor = DeclaredTensor(storage, _TYPES[kind], offset, shape, strides)
            case _:
                raise CheckpointError(
                    f"{self._name} declares a tensor that no such model has",
                    expected=f"one of {', '.join(_TYPES)} with a place, a shape and strides",
                    received=f"{key!r}"[:80],
                )
        if not _dense(shape, strides):
            raise CheckpointError(
                f"tensor {key!r} of {self._name} repeats or skips elements",
                received=f"shape {shape} with strides {strides}",
                fix="Save contiguous tensors.",
            )
        real = self._sizes.get(f"data/{storage}")
        if real != count * tensor.dtype.itemsize or offset + tensor.elements > count:
            raise CheckpointError(
                f"tensor {key!r} of {self._name} does not fit its storage",
                expected=f"{count:,} elements in {count * tensor.dtype.itemsize:,} bytes, "
                f"of which it takes {tensor.elements:,} from {offset:,} on",
                received="none" if real is None else f"{real:,} bytes",
            )
        return tensor

    def _check_storages(self, tensors: Mapping[str, DeclaredTensor]) -> None:
        users: dict[str, list[tuple[int, int, str]]] = defaultdict(list)
        distinct = {tensor: key for key, tensor in tensors.items()}  # tied ones count once
        for tensor, key in distinct.items():
            users[tensor.storage].append((tensor.offset, tensor.offset + tensor.elements, key))
        for storage, places in users.items():
            if len({tensors[key].dtype for _, _, key in places}) > 1:
                self._refuse("a storage of two types", f"data/{storage}")
            for (_, end, first), (begin, _, second) in pairwise(sorted(places)):
                if begin < end:
                    self._refuse("two tensors in one place", f"{first!r} and {second!r}")


def _dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    """Whether a tensor, in some order of its axes, is its elements one after the other."""
    size = 1
    for stride, extent in sorted((stride, extent) for stride, extent in zip(strides, shape, strict=True) if extent > 1):
        if stride != size:
            return False
        size *= extent
    return True
