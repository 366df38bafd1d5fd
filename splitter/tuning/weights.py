"""The weights of a bundle that may be stored smaller: what each form of each one takes and loses."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import torch
from splitter_weights import transformer
from splitter_weights.quantisation import integers, nearest, palette
from splitter_weights.transformer.encoding import decode, encode
from splitter_weights.transformer.form import parameters_of

from ..boundary import Array
from ..bundle.directory import Bundle
from ..bundle.manifest import SegmentRecord
from ..graph.program import Program
from ..lowering.compression import compressible
from ..plan.schema import COMPRESSIONS, Compression, Plan, Precision, WeightForm, WeightsForm
from ..runtime.engines import Engine, engine

FORMS: tuple[WeightForm, ...] = ("none", *COMPRESSIONS)
_BITS: Mapping[WeightForm, int] = {"int8": 8, "pal8": 8, "pal6": 6, "pal4": 4}


@dataclass(frozen=True, eq=False)
class Weight:
    """One weight of two axes or more.

    Attributes:
        segment: Whose it is.
        source: Its name in the model.
        name: By which the plan knows it: in the model for packages, in `kernels.spec.parameters` for a transformer.
        values: What it is, float32.
        channels: Axis of the outputs.
        width: Bytes of an element that is not compressed, of a scale, and of an entry of a table.
        own: It is a transformer's of its own, not a package's.
    """

    segment: str
    source: str
    name: str
    values: Array
    channels: int
    width: tuple[int, int]
    own: bool

    def bytes(self, form: WeightForm) -> int:
        """What it takes in a form: integers and their scales, or indices and their table."""
        plain, beside = self.width
        if form == "none":
            return self.values.size * plain
        if form == "int8":
            return self.values.size + self.values.shape[self.channels] * beside
        bits = _BITS[form]
        return math.ceil(self.values.size * bits / 8) + 2**bits * beside


def weights_of(bundle: Bundle) -> tuple[Weight, ...]:
    """Every weight that some form may change, in the order of execution."""
    found: list[Weight] = []
    for segment in bundle.segments:
        if segment.artifact.target == "coreml":
            found += _of_package(bundle, segment)
        elif segment.artifact.target == "kernels":
            found += _of_transformer(bundle, segment)
    return tuple(found)


def _of_package(bundle: Bundle, segment: SegmentRecord) -> Iterator[Weight]:
    program, plan = bundle.program(segment.program), bundle.manifest.plan
    asked = plan.compression.model_copy(update={"exceptions": {}})
    width = 2 if plan.precision is Precision.FP16 else 4
    turned = {
        str(argument.target)
        for node in program.operators
        if "conv_transpose" in str(node.target)
        for argument in node.all_input_nodes
        if argument.op == "get_attr"
    }
    for source in compressible(program, asked).values():
        values = program.weights[source].detach().numpy()
        yield Weight(segment.name, source, source, values, int(source in turned), (width, width), own=False)


def _of_transformer(bundle: Bundle, segment: SegmentRecord) -> Iterator[Weight]:
    record = transformer.record_of(segment.artifact.details)
    program = bundle.program(segment.program)
    width = np.dtype(record.form.matrices.dtype).itemsize
    for name in record.matrices:
        source = record.sources[name]
        values = program.weights[source].detach().numpy()
        yield Weight(segment.name, source, name, values, 0, (width, 4), own=True)


class Decoder:
    """What weights become."""

    def __init__(self, bundle: Bundle) -> None:
        self._records = {
            one.name: transformer.record_of(one.artifact.details)
            for one in bundle.segments
            if one.artifact.target == "kernels"
        }
        self.decode = cache(self._decode)
        self.error = cache(self._error)

    def _decode(self, weight: Weight, form: WeightForm) -> Array:
        """A weight as it comes back from a form."""
        if form == "none":
            return weight.values
        if weight.own:
            return self._matrix(weight, form)
        if form == "int8":
            channels = np.moveaxis(weight.values, weight.channels, 0)
            quotients, scales = integers(channels.reshape(len(channels), -1))
            rows = quotients.astype(np.float32) * scales[:, None]
            return np.ascontiguousarray(np.moveaxis(rows.reshape(channels.shape), 0, weight.channels))
        table = palette(weight.values, 2 ** _BITS[form])
        return table[nearest(table, weight.values)]

    def _matrix(self, weight: Weight, form: WeightForm) -> Array:
        """The same of a transformer's: split projections have a table each."""
        record = self._records[weight.segment]
        asked = WeightsForm(layout=record.form.layout, qkv=record.form.qkv, compress=form)
        result = np.empty_like(weight.values)
        for name, parameter in parameters_of(record.config, asked).items():
            if parameter.kernel == weight.name:
                stored = encode(name, parameter, weight.values[parameter.slice], asked)
                result[parameter.slice] = decode(parameter, stored, asked)
        return result

    def _error(self, weight: Weight, form: WeightForm) -> float:
        """``Σ (w − ŵ)²``."""
        return float(np.sum(np.square(weight.values - self.decode(weight, form), dtype=np.float64)))


class Exchange:
    """A bundle's captured segments, whose weights can come back from some forms for a while."""

    def __init__(self, bundle: Bundle, decoder: Decoder, weights: Iterable[Weight]) -> None:
        self._decoder = decoder
        programs: dict[str, Program] = {}
        self._held: dict[Weight, torch.Tensor] = {}
        for segment in bundle.segments:
            own = [one for one in weights if one.segment == segment.name]
            program = bundle.program(segment.program)
            copies = {one.source: _copy(program.weights[one.source]) for one in own}
            programs[segment.program] = replace(program.copy(), weights=program.weights | copies)
            self._held |= {one: copies[one.source] for one in own}
        exchanged = replace(bundle, _programs=programs)
        self.engines: dict[str, Engine] = {
            one.name: engine("torch")(exchanged, one, compute_units="ALL") for one in bundle.segments
        }

    @contextmanager
    def forms(self, forms: Mapping[Weight, WeightForm]) -> Iterator[None]:
        """Put weights into their forms, and back."""
        changed = {one: form for one, form in forms.items() if form != "none"}
        self._put({one: self._decoder.decode(one, form) for one, form in changed.items()})
        try:
            yield
        finally:
            self._put({one: one.values for one in changed})

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
    packages = {one.name: form for one, form in forms.items() if not one.own and form != "none"}
    own = {one.name: form for one, form in forms.items() if one.own and form != "none"}
    return plan.model_copy(
        update={
            "compression": Compression(exceptions=packages, min_elements=plan.compression.min_elements),
            "weights": plan.weights.model_copy(update={"compress": "none", "exceptions": own}),
        }
    )
