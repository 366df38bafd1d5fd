"""One small package for each thing a rule finds, and for each that it must leave alone."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from splitter.diagnosis import examine
from splitter.mil.program import load_spec, model_file

from ..mil.harness import f16, f32, mb, package

__all__ = ["Case", "f16", "f32", "findings", "labelled", "mb", "package"]


@dataclass(frozen=True)
class Case:
    """A package and the operations a rule finds in it; none in a near miss."""

    rule: str
    build: Any
    inputs: dict[str, np.ndarray]
    finds: list[str] = field(default_factory=list)
    chip: str = "m1"
    run: bool = False
    target: str = "iOS17"

    def check(self, directory):
        path = package(self.build, self.inputs, directory, self.target)
        found = findings(path, self.rule, chip=self.chip, inputs=self.inputs, run=self.run)
        assert [one.operation for one in found] == self.finds


def findings(path, rule, **options):
    """What one rule finds in a package."""
    options = {"run": False} | options
    (diagnosis,) = examine(path, **options).diagnoses
    return [one for one in diagnosis.findings if one.rule == rule]


def labelled(path, description="", **metadata):
    """The package with other words in its metadata; two underscores stand for a full stop."""
    spec = load_spec(path)
    spec.description.metadata.shortDescription = description
    for key, value in metadata.items():
        spec.description.metadata.userDefined[key.replace("__", ".")] = value
    model_file(path).write_bytes(spec.SerializeToString())
    return path
