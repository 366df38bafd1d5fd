"""What can go wrong between a kernel's text and its result."""

from __future__ import annotations


class MetalError(RuntimeError):
    """Base of the errors of this package."""


class CompilerError(MetalError):
    """There is no C++ compiler, or it refused a kernel."""


class SubsetError(MetalError):
    """A kernel's text leaves the declared subset of the language."""


class LaunchError(MetalError):
    """A dispatch that does not fit the kernel's signature or a device's limits."""


class HazardError(MetalError):
    """A kernel that a device may execute otherwise than here.

    Attributes:
        kind: ``race``, ``bounds``, ``uninitialised`` (threadgroup memory read before it was written) or
            ``divergence`` (a barrier that some threads of a group do not reach).
    """

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
