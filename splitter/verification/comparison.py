"""Any two of: packages, bundles, segments, PyTorch modules, files of arrays; operation by operation where both can be
walked."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from .. import arrays, mil
from ..boundary import Array
from ..bundle.directory import Bundle, load
from ..bundle.manifest import SegmentRecord
from ..errors import UsageError
from ..graph.capture import capture
from ..graph.signature import bind
from ..lowering import ML_PACKAGE, capabilities
from ..mil.differences import Differences, Pair, Sample, Samples, differences
from ..mil.model import Model
from ..models.module import from_factory, is_reference
from ..parity import Parity, compare

_SEED = 0


@dataclass(frozen=True)
class Compared:
    """Two packages, of one segment or given by themselves; or modules, in the place of one or both.

    Attributes:
        subject: Name of the segment, or of the first package.
        run_on: What both were run on; empty if they were not.
    """

    subject: str
    run_on: str
    found: Differences


@dataclass(frozen=True)
class Values:
    """An array of each file, or of a file and a package."""

    name: str
    parity: Parity | None
    ranges: tuple[tuple[float, float], tuple[float, float]]


@dataclass(frozen=True)
class Comparison:
    """What `compare_two` found.

    Attributes:
        packages: By operation.
        values: By name.
        notes: What could not be compared, and what one side alone has.
        min_snr_db: Below which values diverge.
    """

    first: str
    second: str
    packages: tuple[Compared, ...]
    values: tuple[Values, ...]
    notes: tuple[str, ...]
    min_snr_db: float

    @property
    def identical(self) -> bool:
        """Nothing differs, and nothing was left out."""
        return (
            not self.notes
            and all(package.found.identical for package in self.packages)
            and all(value.parity is not None and value.parity.max_abs == 0 for value in self.values)
        )

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "first": self.first,
            "second": self.second,
            "identical": self.identical,
            "packages": [_json_package(package, self.min_snr_db) for package in self.packages],
            "values": [asdict(value) for value in self.values],
            "notes": [*self.notes],
        }


def compare_two(
    first: Path | str | nn.Module,
    second: Path | str | nn.Module,
    *,
    inputs: Mapping[str, Array] | Path | None = None,
    run: bool = True,
    min_snr_db: float = 60.0,
    progress: Callable[[str], None] = lambda _: None,
) -> Comparison:
    """Compare.

    Args:
        first: A ``.mlpackage``, a bundle, ``BUNDLE:SEGMENT``, a ``.npz`` or ``.safetensors`` file of arrays by name, or
            a module in evaluation mode: itself, or as ``PACKAGE.MODULE:FACTORY``, whose code is imported and run.
        second: The same.
        inputs: What packages and modules are run on; the first bundle's golden inputs where None, or seeded noise of
            the packages' shapes. By the names of a package's inputs, or of a module's arguments; where the two have
            others, in their order.
        run: False compares what is written alone, of packages.
        min_snr_db: Below which values diverge.
        progress: Told of each step.

    Raises:
        UsageError: There is nothing of the kind, or the two have nothing that can be compared.
        BundleError, PackageError, OperationError: One of them cannot be read or executed.
        CaptureError, CheckpointError: A module cannot be made, or captured.
    """
    sides = _opened(first), _opened(second)
    if isinstance(inputs, Path):
        inputs = arrays.read(inputs)
    packages: list[Compared] = []
    values: list[Values] = []
    notes: list[str] = []
    one, other = sides
    labels = _label(first), _label(second)
    if one.module is not None or other.module is not None:
        progress("running both")
        runs, what = _runs(sides, inputs)
        given, computed = (run.outputs for run in runs)
        if not given.keys() & computed.keys() and len(given) == len(computed):  # called otherwise: in their order
            computed = dict(zip(given, computed.values(), strict=True))
        values = [_values(name, given[name], computed[name]) for name in given if name in computed]
        notes += _lonely("outputs", given, computed)
        if pairs_of := _steps(*runs):
            packages.append(Compared(labels[0], what, Differences(pairs_of, (), ())))
    elif one.arrays is not None or other.arrays is not None:
        given, computed = _named_values(one, inputs), _named_values(other, inputs)
        values = [_values(name, given[name], computed[name]) for name in given if name in computed]
        notes += _lonely("arrays", given, computed)
    else:
        pairs, lonely = _paired(one, other)
        notes += lonely
        for subject, a, b in pairs:
            progress(f"comparing {subject}")
            models = a.open(), b.open()
            data, what = _inputs(models, (a, b), inputs) if run else (None, "")
            packages.append(Compared(subject, what, differences(*models, data)))
    if not packages and not values:
        names = " and ".join(labels)
        raise UsageError(f"{names} have nothing in common that can be compared", received="; ".join(notes))
    return Comparison(*labels, tuple(packages), tuple(values), tuple(notes), min_snr_db)


# ------------------------------------------------------------------------------------ what there is


@dataclass(frozen=True)
class _Package:
    path: Path
    bundle: Bundle | None = None
    segment: SegmentRecord | None = None

    def open(self) -> Model:
        return mil.load(self.path, read=self.bundle.files.read) if self.bundle is not None else mil.load(self.path)


@dataclass(frozen=True)
class _Side:
    """What a path leads to: arrays, a module, or packages by segment (or by nothing), with what else a bundle has."""

    packages: Mapping[str, _Package]
    arrays: Mapping[str, Array] | None = None
    others: tuple[str, ...] = ()
    module: nn.Module | None = None


def _label(side: Path | str | nn.Module) -> str:
    return type(side).__name__ if isinstance(side, nn.Module) else str(side)


def _opened(side: Path | str | nn.Module) -> _Side:
    if isinstance(side, nn.Module):
        return _Side({}, module=side)
    name, path = str(side), Path(side)
    if is_reference(name) and not Path(name.rpartition(":")[0]).exists():
        return _Side({}, module=from_factory(name).module)
    if path.suffix in arrays.SUFFIXES and path.is_file():
        return _Side({}, arrays.read(path))
    if path.suffix == ".mlpackage":
        return _Side({"": _Package(path)})
    segment = ""
    if not path.exists() and ":" in name:
        place, _, segment = name.rpartition(":")
        path = Path(place)
    members = load(path).members
    packages: dict[str, _Package] = {}
    others: list[str] = []
    for number, bundle in enumerate(members):
        prefix = f"{number}/" if len(members) > 1 else ""
        for record in bundle.segments:
            if segment and record.name != segment:
                continue
            if capabilities(record.artifact.target).artifact == ML_PACKAGE:
                packages[prefix + record.name] = _Package(bundle.path / record.artifact.path, bundle, record)
            else:
                others.append(prefix + record.name)
    if segment and not packages:
        names = ", ".join(record.name for bundle in members for record in bundle.segments)
        raise UsageError(f"{path} has no package of segment {segment!r}", expected=names)
    return _Side(packages, others=tuple(others))


def _paired(one: _Side, other: _Side) -> tuple[list[tuple[str, _Package, _Package]], list[str]]:
    if len(one.packages) == len(other.packages) == 1:
        ((name, a),), ((second, b),) = one.packages.items(), other.packages.items()
        return [(name or second or a.path.name, a, b)], []
    pairs = [(name, a, other.packages[name]) for name, a in one.packages.items() if name in other.packages]
    return pairs, _lonely("segments", one.packages, other.packages)


def _lonely(what: str, one: Mapping[str, Any], other: Mapping[str, Any]) -> list[str]:
    alone = {"first": one.keys() - other.keys(), "second": other.keys() - one.keys()}
    return [f"{what} of the {which} alone: {', '.join(sorted(names))}" for which, names in alone.items() if names]


def _inputs(
    models: tuple[Model, Model], packages: tuple[_Package, _Package], given: Mapping[str, Array] | None
) -> tuple[dict[str, Any], str]:
    """What both packages are run on, and how to call it."""
    names = models[0].input_shapes
    if given is not None:
        return {name: given[name] for name in names if name in given}, "the given inputs"
    for package in packages:
        if package.bundle is not None and package.segment is not None:
            golden, specs = package.bundle.goldens(), package.bundle.tensors
            return {
                name: specs[name].packaged(golden[name].astype(specs[name].dtype)) for name in package.segment.inputs
            }, "golden inputs"
    random = np.random.default_rng(_SEED)
    return {
        name: random.standard_normal([extent or 1 for extent in shape]).astype(np.float32)
        for name, shape in names.items()
    }, "seeded noise (give --inputs for others)"


@dataclass(frozen=True)
class _Run:
    """What a side computed.

    Attributes:
        outputs: By name.
        steps: Type and a sample of what each operation gave, by name, in order; none of a file.
    """

    outputs: Mapping[str, Array]
    steps: Mapping[str, tuple[str, Sample]]


def _runs(sides: tuple[_Side, _Side], given: Mapping[str, Array] | None) -> tuple[tuple[_Run, _Run], str]:
    """Both sides on the same inputs, and how to call those."""
    packages = [package for side in sides for package in side.packages.values()]
    if packages:
        model = packages[0].open()
        data, what = _inputs((model, model), (packages[0], packages[0]), given) if given is None else (given, "")
    elif given is None:
        raise UsageError("a module needs inputs to run on", fix="Give them with --inputs FILE.npz, by argument.")
    else:
        data, what = given, ""
    first, second = (_run(side, data) for side in sides)
    return (first, second), what or "the given inputs"


def _run(side: _Side, data: Mapping[str, Any]) -> _Run:
    if side.arrays is not None:
        return _Run(side.arrays, {})
    steps: dict[str, tuple[str, Sample]] = {}
    if side.module is not None:

        def observe(node: fx.Node, value: torch.Tensor) -> None:
            if value.is_floating_point():
                steps[node.name] = (str(node.target).removeprefix("aten."), Sample.of(value))

        arguments = [name for name in inspect.signature(side.module.forward).parameters if name != "self"]
        known = set(data) & set(arguments)
        named = {name: data[name] for name in known} if known else dict(zip(arguments, data.values(), strict=False))
        program = capture(side.module, named)
        results = program.run(bind(side.module, named).tensors, observe)
        return _Run({name: value.numpy() for name, value in results.items()}, steps)
    if len(side.packages) != 1:
        raise UsageError("a module is compared with one package", fix=f"Name one: {', '.join(side.packages)}.")
    (package,) = side.packages.values()
    model, samples = package.open(), Samples()
    names = model.input_shapes
    named = (
        {name: data[name] for name in names}
        if set(names) <= set(data)
        else dict(zip(names, data.values(), strict=False))
    )
    outputs = model.predict(named, model.make_state() if model.spec.states else None, listener=samples)
    for operation in model.operations:
        if (sample := samples.seen.get(id(operation))) is not None:
            steps[operation.outputs[0].name] = (operation.type, sample)
    return _Run(outputs, steps)


def _steps(first: _Run, second: _Run) -> tuple[Pair, ...]:
    """Operations that both name alike, with results of one shape: converters keep the names of captured nodes."""
    pairs = []
    for name, (kind, one) in first.steps.items():
        _, other = second.steps.get(name, ("", None))
        if other is not None and other.shape == one.shape:
            ranges = ((one.low, one.high), (other.low, other.high))
            with np.errstate(all="ignore"):
                pairs.append(Pair(name, name, kind, "name", (), compare(one.values, other.values), ranges))
    return tuple(pairs)


def _named_values(side: _Side, inputs: Mapping[str, Array] | None) -> Mapping[str, Array]:
    """Arrays of a file; or the outputs of a package."""
    if side.arrays is not None:
        return side.arrays
    results: dict[str, Array] = {}
    for package in side.packages.values():
        model = package.open()
        data, _ = _inputs((model, model), (package, package), inputs)
        results |= model.predict(data, model.make_state() if model.spec.states else None)
    return results


def _values(name: str, a: Array, b: Array) -> Values:
    ranges = _range(a), _range(b)
    with np.errstate(all="ignore"):
        return Values(name, compare(a, b) if a.shape == b.shape else None, ranges)


def _range(array: Array) -> tuple[float, float]:
    return (float(np.nanmin(array)), float(np.nanmax(array))) if array.size else (0.0, 0.0)


def _json_package(package: Compared, min_snr_db: float) -> dict[str, Any]:
    found = package.found
    return {
        "subject": package.subject,
        "run_on": package.run_on,
        "identical": found.identical,
        "matched": len(found.pairs),
        "first_difference": _json_pair(found.first_difference),
        "first_below": _json_pair(found.first_below(min_snr_db)),
        "written": [_json_pair(pair) for pair in found.written],
        "only_first": [*found.only_first],
        "only_second": [*found.only_second],
    }


def _json_pair(pair: Pair | None) -> dict[str, Any] | None:
    return None if pair is None else asdict(pair)
