"""Runs a bundle with one engine per segment and checks every hand-over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from threading import Lock

import numpy as np

from .. import boundary
from ..boundary import OUTPUT, Array, TensorSpec
from ..bundle.directory import Bundle, Source, single
from ..bundle.manifest import SegmentRecord
from ..errors import BoundaryError
from ..parity import compare
from .engines import Engine, Held, default_engine, loaded
from .pruning import pruned, stem_by_stem


class Hook:
    """What can watch a run. Does nothing by itself."""

    def before_segment(self, segment: SegmentRecord, inputs: Mapping[str, Array]) -> None:
        """Its engine runs next."""

    def computed(self, segment: SegmentRecord) -> None:
        """Its engine has run; nothing of what it gave has been checked."""

    def before_check(self, spec: TensorSpec) -> None:
        """A tensor is held against its spec next: an input of the model, or what a segment gave."""

    def after_check(self, spec: TensorSpec) -> None:
        """It fits."""

    def after_segment(self, segment: SegmentRecord, outputs: Mapping[str, Array]) -> None:
        """All that it gave fits."""


class Orchestrator:
    """A bundle, ready to run segment by segment.

    Each boundary tensor is held against its `TensorSpec` when it is produced (name, shape, dtype, finite)
    and freed after its last consumer. Several threads may run it at once: each segment then serves one at a time,
    since not every engine can serve two.

    Attributes:
        bundle: What is run; of some stems, the bundle pruned to them.
        engines: By segment.
        whole: Segments that compute more than the stems that are asked for need: their engines run artifacts.
    """

    def __init__(
        self,
        bundle: Source,
        engines: Mapping[str, str] | None = None,
        *,
        compute_units: str = "ALL",
        hooks: Sequence[Hook] = (),
        golden_snr_db: float | None = None,
        stems: Sequence[str] | None = None,
        low_memory: bool = False,
    ) -> None:
        """Load every segment.

        Args:
            bundle: What to run: a directory, or what `splitter.build` or `splitter.load` gave, of one model.
            engines: Engine name by segment name; `default_engine` for the segments left out.
            compute_units: For Core ML: ``ALL``, ``CPU_ONLY``, ``CPU_AND_GPU`` or ``CPU_AND_NE``.
            hooks: Called before and after each segment, in this order.
            golden_snr_db: If given, every boundary tensor must also reach this SNR against the bundle's
                goldens; for runs of all stems on the golden input only.
            stems: Of a separator, only these, in its order; all where None. What only the others need is not run,
                as far as the engines run captured graphs, see `splitter.runtime.pruning`.
            low_memory: The last segment of a separator, which has the inverse transforms, runs for one stem after
                another, where its engine runs captured graphs. It gives the same.

        Raises:
            UsageError: ``engines`` names a segment the bundle does not have.
            EngineError: An engine cannot run its segment here. Nothing else is tried in its place.
        """
        bundle = single(bundle)
        self._opened = partial(
            Orchestrator,
            engines=engines,
            compute_units=compute_units,
            hooks=hooks,
            golden_snr_db=golden_snr_db,
            stems=stems,
            low_memory=low_memory,
        )
        self._variants: dict[str, Orchestrator] = {}  # others, from the first run in them
        self._opening = Lock()
        self.hooks = tuple(hooks)
        self._golden_snr_db = golden_snr_db
        self._goldens = bundle.goldens() if golden_snr_db is not None else {}
        chosen = {bundle.segment(name).name: given for name, given in (engines or {}).items()}
        names = {segment.name: chosen.get(segment.name) or default_engine(segment) for segment in bundle.segments}
        self.whole: tuple[str, ...] = ()
        self.engines: dict[str, Engine] = {}
        with bundle.weights.held():
            if stems is not None and (*stems,) != bundle.audio.stems:
                bundle, self.whole = pruned(bundle, stems, names)
            for segment in bundle.segments:
                name = names[segment.name]
                self.engines[segment.name] = loaded(name, bundle, segment, compute_units=compute_units)
            self._parts = [
                (part, loaded(names[record.name], other, record, compute_units=compute_units))
                for part, other, record in (stem_by_stem(bundle, names[bundle.segments[-1].name]) if low_memory else ())
            ]
        self.bundle = bundle
        self._serving = {segment.name: Lock() for segment in bundle.segments}
        self._last_consumer = {name: index for index, segment in enumerate(bundle.segments) for name in segment.inputs}

    def run(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Run all segments and return the model's outputs by name.

        Args:
            inputs: The model's inputs by name, exactly as the bundle's specs describe them. Where a bundle has several
                variants, their shapes decide which one runs.

        Raises:
            BoundaryError: A tensor breaks its contract; the message names it and the segment.
        """
        if (other := self._other_variant(inputs)) is not None:
            return other.run(inputs)
        specs = self.bundle.tensors
        values: dict[str, Array | Held] = {}
        for name in self.bundle.inputs:
            values[name] = self._checked(specs[name], inputs, "entering the model")
        for index, segment in enumerate(self.bundle.segments):
            results: Mapping[str, Array | Held]
            engine = self.engines[segment.name]
            if engine.place and not self.hooks and self._golden_snr_db is None:
                with self._serving[segment.name]:
                    results = engine.run_in_place({name: values[name] for name in segment.inputs})
            else:  # who looks at tensors gets arrays
                given = {name: _array(values[name]) for name in segment.inputs}
                for hook in self.hooks:
                    hook.before_segment(segment, given)
                with self._serving[segment.name]:
                    results = (
                        self._by_stem(given)
                        if self._parts and segment.outputs == self.bundle.outputs
                        else engine.run(given)
                    )
                del given
            for hook in self.hooks:
                hook.computed(segment)
            for name in segment.inputs:
                if self._last_consumer[name] == index and OUTPUT not in specs[name].consumers:
                    del values[name]
            for name in segment.outputs:
                values[name] = self._checked(
                    specs[name], results, f"leaving {segment.name} ({self.engines[segment.name].name})"
                )
            for hook in self.hooks:
                hook.after_segment(segment, {name: _array(values[name]) for name in segment.outputs})
            del results
        return {name: _array(values[name]) for name in self.bundle.outputs}

    def _by_stem(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """What the last segment gives, one stem after another."""
        (output,) = self.bundle.outputs
        spec = self.bundle.tensors[output]
        result = np.empty(spec.shape, spec.dtype)
        for part, engine in self._parts:
            places = slice(part.places[0], part.places[-1] + 1)
            result[(*[slice(None)] * part.axis, places)] = engine.run(inputs)[output]
        return {output: result}

    def _other_variant(self, inputs: Mapping[str, Array]) -> Orchestrator | None:
        """Where the inputs have the shapes of another variant, what runs that."""
        variants = self.bundle.variants
        fitting = [name for name, variant in variants.items() if _fits(variant, inputs)] if len(variants) > 1 else [""]
        if not fitting:
            listed = (
                f"{name} ({_shapes(variant.tensors[name].shape for name in variant.inputs)})"
                for name, variant in variants.items()
            )
            raise BoundaryError(
                "the inputs have the shapes of no variant of the bundle",
                expected=", ".join(listed),
                received=_shapes(array.shape for array in inputs.values()),
                fix="Add the shapes to `variants` in the plan, and build again.",
            )
        name, first = fitting[0], next(iter(variants))
        if name in ("", first):
            return None
        with self._opening:
            if name not in self._variants:
                self._variants[name] = self._opened(variants[name])
        return self._variants[name]

    def _checked(self, spec: TensorSpec, arrays: Mapping[str, Array | Held], at: str) -> Array | Held:
        for hook in self.hooks:
            hook.before_check(spec)
        if spec.name not in arrays:
            raise BoundaryError(
                f"tensor {spec.name!r} {at} is missing", received=f"only {', '.join(arrays) or 'nothing'}"
            )
        value = arrays[spec.name]
        if isinstance(value, Held) and value.shape == spec.shape and value.dtype == spec.dtype and value.is_finite():
            return value
        array = _array(value)
        boundary.check(spec, array, at=at)
        if self._golden_snr_db is not None:
            parity = compare(self._goldens[spec.name], array)
            if parity.snr_db is not None and not parity.reaches(
                self._golden_snr_db, self.bundle.manifest.plan.tolerances.negligible_max_abs
            ):
                raise BoundaryError(
                    f"tensor {spec.name!r} {at} is too far from its golden",
                    expected=f"at least {self._golden_snr_db:g} dB",
                    received=parity,
                )
        for hook in self.hooks:
            hook.after_check(spec)
        return array


def _array(value: Array | Held) -> Array:
    return value.array() if isinstance(value, Held) else value


def _fits(variant: Bundle, inputs: Mapping[str, Array]) -> bool:
    return all(name in inputs and inputs[name].shape == variant.tensors[name].shape for name in variant.inputs)


def _shapes(shapes: Iterable[tuple[int, ...]]) -> str:
    return "; ".join("×".join(map(str, shape)) or "a scalar" for shape in shapes)
