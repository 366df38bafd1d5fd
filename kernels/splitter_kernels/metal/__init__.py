"""The cross-domain transformer as Metal compute kernels, and a host that executes their text without a Mac.

The `.metal` files are what a port ships; ``kernels/README.md`` lists them, the subset of the language they keep to,
and what executing them here does and does not prove.
"""

from .errors import CompilerError, HazardError, LaunchError, MetalError, SubsetError
from .library import Library
from .transformer import transformer

__all__ = ["CompilerError", "HazardError", "LaunchError", "Library", "MetalError", "SubsetError", "transformer"]
