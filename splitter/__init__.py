"""Split-model graph compiler for hybrid CNN/transformer models.

import splitter

splitter.build("demo", "demo.bundle")
bundle = splitter.Bundle.load("demo.bundle")
stems = splitter.Orchestrator(bundle).run({"mix": mix})["stems"]
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .bundle.directory import Bag, Bundle
    from .compiler import build
    from .errors import SplitterError
    from .plan.schema import Plan
    from .runtime.orchestrator import Orchestrator
    from .separation import separate
    from .verification.verify import verify

# Imported when first used: `import splitter` alone costs nothing, and kernels need no torch.
_HOMES = {
    "Bag": "bundle.directory",
    "Bundle": "bundle.directory",
    "Orchestrator": "runtime.orchestrator",
    "Plan": "plan.schema",
    "SplitterError": "errors",
    "build": "compiler",
    "separate": "separation",
    "verify": "verification.verify",
}
__all__ = ["Bag", "Bundle", "Orchestrator", "Plan", "SplitterError", "build", "separate", "verify"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'splitter' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
