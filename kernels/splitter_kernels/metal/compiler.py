"""From the text of a `.metal` file to a loaded library, with the system's C++ compiler."""

from __future__ import annotations

import atexit
import ctypes
import hashlib
import os
import shutil
import subprocess
import tempfile
from functools import cache
from pathlib import Path

from .errors import CompilerError
from .signatures import POSITIONS, Argument, Signature

HOST = Path(__file__).parent / "host"

# Multiply and add stay apart, so that a result does not depend on the machine; what is to be fused says fma. Metal's
# char is signed everywhere. A double, or a float become integer unasked, would be another program on a device.
_FLAGS = (
    "-std=c++14", "-fPIC", "-fsigned-char", "-ffp-contract=off", "-U_FORTIFY_SOURCE", "-Wall", "-Wextra",
    "-Wno-attributes", "-Wno-register", "-Werror=double-promotion", "-Werror=float-conversion",
)  # fmt: skip
_UNCHECKED = ("-O2",)
_CHECKED = ("-O1", "-fsanitize=thread")  # of which only the hooks are used; host/runtime.cpp defines them
_MATHS = {"safe": "-fno-fast-math", "relaxed": "-ffast-math"}
_TYPES = {"float32": "float", "float16": "half"}


def compiled(
    source: Path, signatures: tuple[Signature, ...], storage: str, maths: str, *, checked: bool
) -> ctypes.CDLL:
    """Compile one file, with the headers beside it, and load it. What was compiled before is loaded again.

    Raises:
        CompilerError: There is no compiler, or it refuses the text.
    """
    launchers = _launchers(source, signatures)
    texts = [path.read_text(encoding="utf-8") for path in (source, *sorted(source.parent.glob("*.h")))]
    key = hashlib.sha256("\0".join([launchers, storage, maths, str(checked), *texts]).encode()).hexdigest()[:24]
    library = _scratch() / f"{source.stem}-{key}.so"
    if not library.exists():
        translation, built = library.with_suffix(".cpp"), library.with_suffix(".o")
        translation.write_text(launchers, encoding="utf-8")
        mode = (*(_CHECKED if checked else _UNCHECKED), _MATHS[maths])
        include = (f"-I{HOST}", f"-I{source.parent}", f"-DSTORAGE={_TYPES[storage]}")
        _run(*_FLAGS, *mode, *include, "-c", str(translation), "-o", str(built), what=source.name)
        _run("-shared", str(built), str(_runtime()), "-o", str(library), what=source.name)
    return ctypes.CDLL(str(library))


def _launchers(source: Path, signatures: tuple[Signature, ...]) -> str:
    """C++ that includes the kernels' text as it is, and calls each with what is bound to it."""
    lines = ['#include "runtime.h"', f'#include "{source}"']
    for signature in signatures:
        passed = ", ".join(_passed(argument) for argument in signature.arguments)
        lines += [
            '__attribute__((no_sanitize("thread")))',  # the bindings are the host's, not the kernel's
            f"static void {signature.name}_thread(void* const* buffers, void* const* memories, const Position& at)",
            f"{{ (void)buffers; (void)memories; (void)at; {signature.name}({passed}); }}",
            f'extern "C" void launch_{signature.name}(Launch* launch) {{ run(*launch, {signature.name}_thread); }}',
        ]
    return "\n".join(lines) + "\n"


def _passed(argument: Argument) -> str:
    if argument.role == "position":
        field = f"at.{POSITIONS[argument.attribute]}"
        return {"uint": f"{field}.x", "uint2": f"uint2{{{field}.x, {field}.y}}", "uint3": field}[argument.type]
    table = "memories" if argument.role == "threadgroup" else "buffers"
    pointer = f"static_cast<{argument.type}*>({table}[{argument.index}])"
    return f"*{pointer}" if argument.role == "constant" else pointer


@cache
def _runtime() -> Path:
    built = _scratch() / "runtime.o"
    _run(*_FLAGS, "-O2", f"-I{HOST}", "-c", str(HOST / "runtime.cpp"), "-o", str(built), what="runtime.cpp")
    return built


@cache
def _scratch() -> Path:
    """Lasts as long as the process."""
    directory = tempfile.TemporaryDirectory(prefix="metal-kernels-")
    atexit.register(directory.cleanup)
    return Path(directory.name)


def _run(*arguments: str, what: str) -> None:
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or "g++"
    try:
        result = subprocess.run([compiler, *arguments], capture_output=True, text=True, check=False)  # noqa: S603
    except OSError as error:
        raise CompilerError(
            f"running Metal kernels off the Mac takes a C++ compiler; {compiler!r} cannot be run ({error}). "
            "Install g++, or name a compiler in $CXX"
        ) from error
    if result.returncode:
        raise CompilerError(f"{compiler} must compile {what}; it says:\n{result.stderr.strip()}")
