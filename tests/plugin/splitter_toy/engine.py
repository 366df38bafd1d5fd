"""Runs toy artifacts in torch, and rounds what they give where they are in half precision."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import ClassVar

import torch

from splitter.boundary import Array
from splitter.bundle.directory import Bundle
from splitter.bundle.manifest import SegmentRecord
from splitter.graph import program as programs
from splitter.runtime.engines import Engine

from . import artifact


class ToyEngine(Engine):
    name: ClassVar[str] = "toy"
    artifacts: ClassVar[frozenset[str] | None] = frozenset({artifact.KIND})
    precision: ClassVar[str | None] = None

    def __init__(self, bundle: Bundle, segment: SegmentRecord, *, compute_units: str) -> None:
        path, read = bundle.path / segment.artifact.path, bundle.files.read
        weights = {name: torch.from_numpy(array) for name, array in artifact.weights_of(path, read).items()}
        self._program = programs.from_json(json.loads(read(path / "program.json")), weights)
        self._half = read(path / "precision") == b"fp16"
        self._specs = bundle.tensors

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        packaged = {name: torch.from_numpy(self._specs[name].packaged(array)) for name, array in inputs.items()}
        results = self._program.run(packaged)
        if self._half:
            results = {name: result.half().float() for name, result in results.items()}
        return {name: self._specs[name].unpackaged(result.numpy()) for name, result in results.items()}
