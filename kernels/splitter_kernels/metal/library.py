"""Kernels to be launched on NumPy arrays, as a device would launch them on buffers."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, SupportsFloat, TypeAlias, get_args

import numpy as np
from numpy.typing import NDArray

from . import signatures
from .compiler import compiled
from .errors import HazardError, LaunchError, SubsetError
from .signatures import Argument, Signature

Storage: TypeAlias = Literal["float32", "float16"]
Order: TypeAlias = Literal["forward", "reverse", "interleaved", "shuffled", "lockstep"]  # as in host/runtime.h
Maths: TypeAlias = Literal["safe", "relaxed"]
Triple: TypeAlias = tuple[int, int, int]

SOURCES = Path(__file__).parent
THREADGROUP_BYTES = 32_768  # what every Apple GPU offers one threadgroup
THREADGROUP_ALIGNMENT = 16
THREADGROUP_THREADS = 1_024
_FAULTS = ("", "race", "bounds", "uninitialised", "divergence")  # as in host/runtime.h
_MANY = 0xFFFFFFFF
_DTYPES: Mapping[str, np.dtype[Any]] = {
    "float": np.dtype(np.float32),
    "half": np.dtype(np.float16),
    "uint": np.dtype(np.uint32),
    "int": np.dtype(np.int32),
    "uchar": np.dtype(np.uint8),
    "char": np.dtype(np.int8),
}


class _Launch(ctypes.Structure):
    """`Launch` of host/runtime.h."""

    _fields_ = (
        ("buffers", ctypes.POINTER(ctypes.c_void_p)),
        ("buffer_bytes", ctypes.POINTER(ctypes.c_uint64)),
        ("memory_bytes", ctypes.POINTER(ctypes.c_uint64)),
        ("buffer_count", ctypes.c_uint32),
        ("memory_count", ctypes.c_uint32),
        ("groups", ctypes.c_uint32 * 3),
        ("threads", ctypes.c_uint32 * 3),
        ("order", ctypes.c_uint32),
        ("checked", ctypes.c_uint32),
        ("seed", ctypes.c_uint64),
        *((name, ctypes.c_uint32) for name in ("fault", "space", "index", "thread_a", "thread_b", "is_write")),
        ("offset", ctypes.c_uint64),
    )


class Library:
    """The kernels of a directory, compiled for one storage type as they are first launched.

    Args:
        storage: What ``storage`` stands for in the kernels' text: float32, or float16 for activations and matrices.
        checked: Hold every load and store against the memory model, which takes time.
        maths: Let the compiler break IEEE rules (``relaxed``), as Metal's does unless it is told otherwise. What one
            compiler makes of it says little of what another does: it shows what the kernels do not lean on.
        sources: Where the `.metal` files and their headers lie.
        order: In which order threadgroups, and between barriers the threads of one, run: ascending; descending;
            even ones before odd ones; drawn anew from ``seed`` each time; or, in a checked library, all threads of a
            group in step, one load or store each.

    Raises:
        SubsetError: A file leaves the declared subset of the language.
        LaunchError: An order that there is not.
    """

    def __init__(
        self,
        storage: Storage = "float32",
        *,
        checked: bool = False,
        maths: Maths = "safe",
        sources: Path = SOURCES,
        order: Order = "forward",
        seed: int = 0,
    ) -> None:
        if order not in get_args(Order) or (order == "lockstep" and not checked):
            raise LaunchError(
                f"order must be one of {', '.join(get_args(Order))}, the last in a checked library only; got {order!r}"
            )
        self.storage: np.dtype[Any] = np.dtype(storage)
        self.constants: dict[str, dict[str, int]] = {}
        self._checked, self._maths, self._order, self._seed = checked, maths, get_args(Order).index(order), seed
        self._signatures: dict[str, Signature] = {}
        self._files: dict[str, Path] = {}
        self._loaded: dict[Path, ctypes.CDLL] = {}
        for path in sorted(sources.glob("*.metal")):
            text = path.read_text(encoding="utf-8")
            self.constants[path.stem] = signatures.constants(text)
            for signature in signatures.parse(text, path.name):
                if signature.name in self._signatures:
                    raise SubsetError(f"a kernel has one name; {path.name} has a second {signature.name!r}")
                self._signatures[signature.name] = signature
                self._files[signature.name] = path

    @property
    def kernels(self) -> Mapping[str, Signature]:
        return self._signatures

    def launch(
        self,
        kernel: str,
        groups: Triple,
        threads: Triple,
        memory: Mapping[str, int] | None = None,
        /,
        **arguments: NDArray[Any] | SupportsFloat,
    ) -> None:
        """Run a grid of ``groups`` threadgroups of ``threads`` threads each, to its end.

        Args:
            memory: Elements of each threadgroup argument by name.
            arguments: Buffers and constants by name. Buffers the kernel writes are changed in place.

        Raises:
            LaunchError: Arguments that are not those of the kernel, or more than a device offers.
            CompilerError: See `compiler.compiled`.
            HazardError: The kernel breaks a rule of the memory model. Races, accesses out of bounds and reads of
                memory that nothing was written to are seen in a checked library only.
        """
        if kernel not in self._signatures:
            raise LaunchError(f"a kernel must be one of {', '.join(sorted(self._signatures))}; got {kernel!r}")
        signature, memory = self._signatures[kernel], memory or {}
        expected = {a.name for a in signature.bound("buffer", "constant")}
        if arguments.keys() != expected or memory.keys() != {a.name for a in signature.bound("threadgroup")}:
            raise LaunchError(
                f"{kernel} takes {', '.join(a.name for a in signature.arguments if a.role != 'position')}; "
                f"got {', '.join([*arguments, *memory])}"
            )
        buffers = [self._buffer(kernel, a, arguments[a.name]) for a in signature.bound("buffer", "constant")]
        sizes = [memory[a.name] * self._dtype(a).itemsize for a in signature.bound("threadgroup")]
        if sum(sizes) > THREADGROUP_BYTES or not 1 <= math.prod(threads) <= THREADGROUP_THREADS:
            raise LaunchError(
                f"a threadgroup has at most {THREADGROUP_BYTES} bytes of memory and {THREADGROUP_THREADS} threads; "
                f"{kernel} asks for {sum(sizes)} and {math.prod(threads)}"
            )
        if any(size % THREADGROUP_ALIGNMENT for size in sizes):
            raise LaunchError(
                f"threadgroup memory comes in multiples of {THREADGROUP_ALIGNMENT} bytes; {kernel} asks for {sizes}"
            )
        request = _Launch(
            buffers=(ctypes.c_void_p * len(buffers))(*(buffer.ctypes.data for buffer in buffers)),
            buffer_bytes=(ctypes.c_uint64 * len(buffers))(*(buffer.nbytes for buffer in buffers)),
            memory_bytes=(ctypes.c_uint64 * len(sizes))(*sizes),
            buffer_count=len(buffers),
            memory_count=len(sizes),
            groups=groups,
            threads=threads,
            order=self._order,
            checked=self._checked,
            seed=self._seed,
        )
        getattr(self._load(self._files[kernel]), f"launch_{kernel}")(ctypes.byref(request))
        if request.fault:
            raise _hazard(signature, request)

    def _load(self, path: Path) -> ctypes.CDLL:
        if path not in self._loaded:
            here = tuple(self._signatures[name] for name, file in self._files.items() if file == path)
            self._loaded[path] = compiled(path, here, self.storage.name, self._maths, checked=self._checked)
        return self._loaded[path]

    def _dtype(self, argument: Argument) -> np.dtype[Any]:
        return self.storage if argument.type == "storage" else _DTYPES[argument.type]

    def _buffer(self, kernel: str, argument: Argument, value: NDArray[Any] | SupportsFloat) -> NDArray[Any]:
        dtype = self._dtype(argument)
        if argument.role == "constant":
            return np.array(value, dtype)
        if not isinstance(value, np.ndarray) or value.dtype != dtype or not value.flags.c_contiguous:
            raise LaunchError(
                f"{argument.name!r} of {kernel} must be a contiguous array of {dtype}; got {_name(value)}"
            )
        if argument.writable and not value.flags.writeable:
            raise LaunchError(f"{kernel} writes {argument.name!r}; got an array that is read-only")
        return value


def _name(value: object) -> str:
    return f"one of {value.dtype}" if isinstance(value, np.ndarray) else type(value).__name__


def _hazard(signature: Signature, request: _Launch) -> HazardError:
    kind, name, thread = _FAULTS[request.fault], signature.name, request.thread_a
    other = "other threads" if request.thread_b == _MANY else f"thread {request.thread_b}"
    verb = "writes" if request.is_write else "reads"
    if kind == "divergence":
        return HazardError(kind, f"{name}: all threads of a group must reach the same barrier; 0 and {other} did not")
    if kind == "bounds":
        return HazardError(kind, f"{name}: thread {thread} {verb} outside of everything that is bound")
    bound = signature.bound("threadgroup") if request.space == 1 else signature.bound("buffer", "constant")
    place = f"byte {request.offset} of {bound[request.index].name!r}"
    if kind == "uninitialised":
        return HazardError(kind, f"{name}: thread {thread} reads {place}, which nothing was written to")
    return HazardError(kind, f"{name}: thread {thread} {verb} {place} with no barrier between it and {other}")
