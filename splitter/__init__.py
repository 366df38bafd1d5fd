"""Split-model graph compiler for hybrid CNN/transformer models. What the command does, each verb is a function of:

import splitter

bag = splitter.build("demo", "demo.bundle")
stems = splitter.Separator("demo.bundle")(waveform, samplerate=44_100)
report = splitter.verify("demo.bundle")

Each takes a path or what was opened already. Results that are more than arrays have ``to_dict()``. A ``progress`` is
called with one thing at a time, which prints as a phrase: ``progress=print`` shows all.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from . import errors, formatting, limits
    from .bundle.directory import Bag, Bundle, load
    from .bundle.signing import sign
    from .compiler import SkippedPlace, build
    from .diagnosis.examination import DoctorReport
    from .diagnosis.examination import examine as doctor
    from .errors import SplitterError
    from .mil.prediction import predict
    from .plan.layouts import Layouts
    from .plan.layouts import compare as layouts
    from .plan.outline import NewPlan, new_plan
    from .plan.schema import COMPRESSIONS, PACKAGINGS, DeploymentTarget, Plan, Precision
    from .profiling.measurement import profile
    from .profiling.records import Profile
    from .reporting.page import report
    from .runtime.heap import keep_freed
    from .runtime.orchestrator import Orchestrator
    from .separation.batch import Outcome
    from .separation.encoding import Encoding
    from .separation.named import named
    from .separation.selection import optimize
    from .separation.separator import Advance, Options, Separator
    from .tuning.compression import tune as tune_weights
    from .tuning.precision import tune as tune_precision
    from .verification.checks import Status, Verification
    from .verification.port.report import PortReport
    from .verification.port.verification import verify_port
    from .verification.taps import record as record_taps
    from .verification.verify import verify

# Where each name lives, and what it is called there: imported when first used. `import splitter` alone costs nothing.
_HOMES = {
    "Advance": "separation.separator",
    "Bag": "bundle.directory",
    "Bundle": "bundle.directory",
    "COMPRESSIONS": "plan.schema",
    "DeploymentTarget": "plan.schema",
    "DoctorReport": "diagnosis.examination",
    "Encoding": "separation.encoding",
    "Layouts": "plan.layouts",
    "NewPlan": "plan.outline",
    "Options": "separation.separator",
    "Orchestrator": "runtime.orchestrator",
    "Outcome": "separation.batch",
    "PACKAGINGS": "plan.schema",
    "Plan": "plan.schema",
    "PortReport": "verification.port.report",
    "Precision": "plan.schema",
    "Profile": "profiling.records",
    "Separator": "separation.separator",
    "SkippedPlace": "compiler",
    "SplitterError": "errors",
    "Status": "verification.checks",
    "Verification": "verification.checks",
    "build": "compiler",
    "compare": "verification.comparison:compare_two",
    "doctor": "diagnosis.examination:examine",
    "keep_freed": "runtime.heap",
    "layouts": "plan.layouts:compare",
    "load": "bundle.directory",
    "named": "separation.named",
    "new_plan": "plan.outline",
    "optimize": "separation.selection",
    "predict": "mil.prediction",
    "profile": "profiling.measurement",
    "record_taps": "verification.taps:record",
    "report": "reporting.page",
    "sign": "bundle.signing",
    "tune_precision": "tuning.precision:tune",
    "tune_weights": "tuning.compression:tune",
    "verify": "verification.verify",
    "verify_port": "verification.port.verification",
}
_MODULES = ("errors", "formatting", "limits")
__all__ = [
    "COMPRESSIONS",
    "PACKAGINGS",
    "Advance",
    "Bag",
    "Bundle",
    "DeploymentTarget",
    "DoctorReport",
    "Encoding",
    "Layouts",
    "NewPlan",
    "Options",
    "Orchestrator",
    "Outcome",
    "Plan",
    "PortReport",
    "Precision",
    "Profile",
    "Separator",
    "SkippedPlace",
    "SplitterError",
    "Status",
    "Verification",
    "build",
    "compare",
    "doctor",
    "errors",
    "formatting",
    "keep_freed",
    "layouts",
    "limits",
    "load",
    "named",
    "new_plan",
    "optimize",
    "predict",
    "profile",
    "record_taps",
    "report",
    "sign",
    "tune_precision",
    "tune_weights",
    "verify",
    "verify_port",
]


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return importlib.import_module(f".{name}", __name__)
    if name not in _HOMES:
        raise AttributeError(f"module 'splitter' has no attribute {name!r}")
    home, _, there = _HOMES[name].partition(":")
    return getattr(importlib.import_module(f".{home}", __name__), there or name)
