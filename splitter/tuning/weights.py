"""The weights of a bundle that may be stored smaller: what each form of each one takes and loses."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import numpy as np
import torch

from .. import lowering
from ..boundary import Array
from ..bundle.directory import Bundle
from ..graph.program import Program
from ..lowering.weights import Weight
from ..plan.schema import Compression, Plan, WeightForm
from .trial import captured_engines


def weights_of(bundle: Bundle) -> tuple[Weight, ...]:
    """Every weight that some form may change, in the order of execution."""
    return tuple(
        weight
        for segment in bundle.segments
        for weight in lowering.target(segment.artifact.target).weights(bundle, segment)
    )


class Decoder:
    """What weights become; each is decoded once."""

    def __init__(self) -> None:
        self.decode = cache(self._decode)
        self.error = cache(self._error)

    def _decode(self, weight: Weight, form: WeightForm) -> Array:
        """A weight as it comes back from a form."""
        return weight.values if form == "none" else weight.decoded(form)

    def _error(self, weight: Weight, form: WeightForm) -> float:
        """``Σ (w − ŵ)²``."""
        return float(np.sum(np.square(weight.values - self.decode(weight, form), dtype=np.float64)))


class WeightSwapper:
    """A bundle's captured segments, whose weights can come back from some forms for a while."""

    def __init__(self, bundle: Bundle, decoder: Decoder, weights: Iterable[Weight]) -> None:
        self._decoder = decoder
        programs: dict[str, Program] = {}
        self._held: dict[Weight, torch.Tensor] = {}
        for segment in bundle.segments:
            in_segment = [weight for weight in weights if weight.segment == segment.name]
            program = bundle.program(segment.program)
            copies = {weight.source: _copy(program.weights[weight.source]) for weight in in_segment}
            programs[segment.program] = replace(program.copy(), weights=program.weights | copies)
            self._held |= {weight: copies[weight.source] for weight in in_segment}
        self.engines = captured_engines(bundle.with_programs(programs))

    @contextmanager
    def forms(self, forms: Mapping[Weight, WeightForm]) -> Iterator[None]:
        """Put weights into their forms, and back."""
        changed = {weight: form for weight, form in forms.items() if form != "none"}
        self._put({weight: self._decoder.decode(weight, form) for weight, form in changed.items()})
        try:
            yield
        finally:
            self._put({weight: weight.values for weight in changed})

    @torch.no_grad()
    def _put(self, values: Mapping[Weight, Array]) -> None:
        for weight, array in values.items():
            self._held[weight].copy_(torch.from_numpy(array))


def _copy(weight: torch.Tensor) -> torch.Tensor:
    """A parameter where it was one that requires a gradient: PyTorch's choice of kernel depends on it."""
    copy = weight.detach().clone()
    return torch.nn.Parameter(copy, weight.requires_grad) if isinstance(weight, torch.nn.Parameter) else copy


def planned(plan: Plan, forms: Mapping[Weight, WeightForm]) -> Plan:
    """The plan that stores each of these weights in its form, and others as they are."""
    compressed = {weight: form for weight, form in forms.items() if form != "none"}
    packages = {weight.name: form for weight, form in compressed.items() if weight.section == "compression"}
    matrices = {weight.name: form for weight, form in compressed.items() if weight.section == "weights"}
    return plan.model_copy(
        update={
            "compression": Compression(exceptions=packages, min_elements=plan.compression.min_elements),
            "weights": plan.weights.model_copy(update={"compress": "none", "exceptions": matrices}),
        }
    )
