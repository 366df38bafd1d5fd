"""How small each weight is stored, by measured damage to the stems per byte saved.

The damage d(w, f) of a weight w in a form f is the energy of the noise it alone makes at a stem, over the energy of
the model's own error there, for the worst stem. Noise of different weights is taken as additive, so that all together
take ``10 log10(1 + Σ d)`` dB of SDR. The choice that is best at a price λ minimises ``Σ bytes(w, f) + λ Σ d(w, f)``,
for each weight by itself. Raising λ from zero traces the choices from the smallest to the uncompressed, which differ
in one weight from the next. The additive model only ranks them: which of them is taken is decided by runs with all
weights of a choice in their forms together, and at last by the packages that were built.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from .. import compiler, lowering, output
from ..boundary import Array
from ..bundle.directory import Bundle
from ..bundle.manifest import SegmentRecord
from ..errors import PlanError, UsageError
from ..lowering.weights import Weight
from ..plan import schema as plans
from ..plan.schema import COMPRESSIONS, Plan, WeightForm
from ..runtime.engines import loaded, shipped_engine
from .plot import check_results, draw_sizes
from .stems import StemScore, StemScorer, to_dicts, true_stems
from .trial import Trial, captured_engines, excerpts
from .weights import Decoder, WeightSwapper, planned, weights_of

Forms: TypeAlias = Mapping[Weight, WeightForm]

_PROBE: WeightForm = "pal6"  # measured for every weight; other forms' damage is first scaled from it by squared error
_SMALL = 0.01  # of all elements: the smallest weights that hold so many together stay as they are
_POINTS = 6  # of the frontier that are measured beside the chosen one
_ROUNDS = 3  # of measuring what was chosen by an estimate
_LITTLE = 0.5  # of a choice's damage: so much may be estimated
_ATTEMPTS = 3  # to make up for what packages add
_CAUTION = 0.9  # of the drop that would make up for it exactly


@dataclass(frozen=True)
class WeightPoint:
    """One choice, measured.

    Attributes:
        name: How it was chosen.
        bytes: Of all weights as they are stored, biases and norms included, position tables not.
        share: Of what they take in fp16 throughout.
        stems: Each stem of each excerpt.
    """

    name: str
    bytes: int
    share: float
    stems: tuple[StemScore, ...]

    @property
    def drop_db(self) -> float:
        """Of the worst stem."""
        return max(stem.drop_db for stem in self.stems)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, "bytes": self.bytes, "share": self.share, "stems": to_dicts(self.stems)}


@dataclass(frozen=True)
class WeightChoice:
    """What the search found.

    Attributes:
        max_sdr_drop_db: What was asked.
        chosen: The choice, measured on the files that were built.
        frontier: From the smallest to the least compressed.
        uniform: One form for all weights, for comparison.
        forms: Of each weight that is compressed, by its name in the model.
        plan: What ``splitter build --plan`` obeys.
    """

    max_sdr_drop_db: float
    chosen: WeightPoint
    frontier: tuple[WeightPoint, ...]
    uniform: tuple[WeightPoint, ...]
    forms: Mapping[str, WeightForm]
    plan: Plan

    def to_dict(self) -> dict[str, Any]:
        return {
            "max_sdr_drop_db": self.max_sdr_drop_db,
            "chosen": self.chosen.to_dict(),
            "frontier": [point.to_dict() for point in self.frontier],
            "uniform": [point.to_dict() for point in self.uniform],
            "forms": dict(self.forms),
        }


def tune(
    model: str | Path,
    *,
    max_sdr_drop_db: float,
    on: Sequence[Path],
    stems: Path | None = None,
    plan: Plan | Path | None = None,
    out: Path | None = None,
    plot: Path | None = None,
    progress: Callable[[str], None] = lambda step: None,
    **options: Any,
) -> WeightChoice:
    """Plan weights as small as a drop of SDR allows, measured on packages that are built.

    Args:
        model: As for `compiler.build`, but no bag of several.
        max_sdr_drop_db: No stem of any excerpt may lose more, with the files as they are saved.
        on: Songs to measure on. Damage is ranked on the beginning of the first; the drop is held on all.
        stems: Directory with the true stems of the first, see `stems.true_stems`. Where they are not known, the drop is
            that of a model of `stems.ASSUMED_SDR_DB`.
        plan: The plan to start from, whose forms of weights are ignored; the model's preset by default.
        out: File to write the plan to.
        plot: Picture of sizes to draw, see `plot.draw_sizes`.
        progress: Called with a phrase as each step begins.
        options: Others of `compiler.build`.

    Returns:
        The plan, and what was measured.

    Raises:
        UsageError: The model is a bag, has no weights to compress, ``max_sdr_drop_db`` is not positive, or a file
            cannot be written.
        PlanError: No form of any weight holds the drop; the message says what was reached.
    """
    if not max_sdr_drop_db > 0:
        raise UsageError(
            "the SDR drop to allow is not positive", expected="more than 0 dB", received=f"{max_sdr_drop_db:g} dB"
        )
    check_results(out, plot)
    options |= {"reference": False, "progress": progress}
    with output.scratch("tuning") as work:
        base = compiler.build(model, work / "base", plan=plan, compress="none", **options)
        if len(base.members) != 1:
            raise UsageError(
                f"{base.name} is a bag of several models",
                expected="a single model",
                received=len(base.members),
                fix="Tune each of its members by itself.",
            )
        bundle = base.members[0]
        trial = Trial(bundle, excerpts(on, bundle, each=1))
        search = WeightSearch(trial, _scorer(trial, stems), progress)
        limit = max_sdr_drop_db
        for _ in range(_ATTEMPTS):
            forms = search.smallest(limit)
            progress(f"building with {search.share(forms):.1%} of the weights' size in fp16")
            obeyed = planned(bundle.manifest.plan, forms)
            (built,) = compiler.build(
                model, work / "small", plan=obeyed, force=True, **_beside_the_plan(options)
            ).members
            progress("running what was built")
            chosen = search.built(built)
            if chosen.drop_db <= max_sdr_drop_db:
                break
            limit = _CAUTION * search.point("", forms).drop_db * max_sdr_drop_db / chosen.drop_db
        else:
            raise _unreachable(max_sdr_drop_db, f"{chosen.drop_db:.3f} dB at {chosen.share:.1%} of the size in fp16")
        frontier, uniform = search.frontier(), search.uniform()
    named = {weight.source: form for weight, form in forms.items() if form != "none"}
    choice = WeightChoice(max_sdr_drop_db, chosen, frontier, uniform, named, built.manifest.plan)
    if out is not None:
        plans.save(choice.plan, out)
    if plot is not None:
        draw_sizes(choice, plot)
    return choice


def _beside_the_plan(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options that the plan does not hold."""
    beside = ("segment", "random_init", "golden_audio", "reference", "progress")
    return {name: value for name, value in options.items() if name in beside}


def _unreachable(limit: float, reached: str) -> PlanError:
    return PlanError(
        f"the smallest SDR drop found is {reached}",
        expected=f"{limit:g} dB at most",
        fix="Allow more, or build without compression.",
    )


def _scorer(trial: Trial, stems: Path | None) -> StemScorer:
    sound = trial.bundle.audio
    truth = true_stems(stems, sound.stems) if stems else None
    return StemScorer(trial.excerpts, [_stems(trial, values) for values in trial.reference], sound, truth)


def _stems(trial: Trial, values: Mapping[str, Array]) -> Array:
    (output,) = trial.outputs
    return trial.bundle.audio.separated(values[output])


class WeightSearch:
    """Best choices of forms, and measurements of them."""

    def __init__(self, trial: Trial, scorer: StemScorer, progress: Callable[[str], None]) -> None:
        """Measure the damage of every weight in one form."""
        self.trial, self.scorer = trial, scorer
        self._progress = progress
        self._decoder = Decoder()
        self._all = weights_of(trial.bundle)
        self._swapper = WeightSwapper(trial.bundle, self._decoder, self._all)
        self.weights = _large(self._all)
        if not self.weights:
            raise UsageError(
                "the bundle has no weights to compress", expected="some of two axes or more and enough elements"
            )
        self._beside = _elements(trial.bundle) - sum(weight.values.size for weight in self._all)
        self._found: dict[tuple[Weight, WeightForm], float] = {}
        self._points: dict[tuple[WeightForm, ...], WeightPoint] = {}
        for index, weight in enumerate(self.weights):
            progress(f"measuring weight {index + 1} of {len(self.weights)}, {weight.source}")
            self._measure(weight, _PROBE)

    # ------------------------------------------------------------------------------------- damage

    def damage(self, weight: Weight, form: WeightForm) -> float:
        """Measured, or for its squared error what the measured one has."""
        if form == "none":
            return 0.0
        if (weight, form) in self._found:
            return self._found[weight, form]
        probed = self._decoder.error(weight, _PROBE)
        return self._found[weight, _PROBE] * self._decoder.error(weight, form) / probed if probed else 0.0

    def _measure(self, weight: Weight, form: WeightForm) -> None:
        (result,) = self._results({weight: form}, 1)
        self._found[weight, form] = self.scorer.damage(0, result)

    def _results(self, forms: Forms, count: int | None = None) -> list[Array]:
        """Stems of the first excerpts with some weights in their forms, from the first segment that has one."""
        trial = self.trial
        changed = {weight.segment for weight, form in forms.items() if form != "none"}
        names = [segment.name for segment in trial.bundle.segments]
        first = min(map(names.index, changed), default=len(names))
        references = trial.reference[: count or len(trial.reference)]
        with self._swapper.forms(forms):
            runs = [trial.run(values, self._swapper.engines, trial.bundle.segments[first:]) for values in references]
        return [_stems(trial, result) for result in runs]

    # ------------------------------------------------------------------------------------- choice

    def choices(self) -> tuple[Forms, ...]:
        """Best choices for rising prices of damage, from the smallest to the uncompressed; each differs from the last
        in one weight."""
        steps = [(price, weight, form) for weight in self.weights for price, form in self._steps(weight)]
        steps.sort(key=lambda step: step[0])
        found: list[Forms] = [{weight: self._smallest_form(weight) for weight in self.weights}]
        for _, weight, form in steps:
            found.append({**found[-1], weight: form})
        return tuple(found)

    def _forms(self, weight: Weight) -> list[WeightForm]:
        """Those that its target offers."""
        target = self.trial.bundle.segment(weight.segment).artifact.target
        offered = lowering.capabilities(target).compressions
        return ["none", *(form for form in self.trial.bundle.manifest.plan.forms if form in offered)]

    def _smallest_form(self, weight: Weight) -> WeightForm:
        return min(self._forms(weight), key=lambda form: (weight.bytes(form), self.damage(weight, form)))

    def _steps(self, weight: Weight) -> Iterator[tuple[float, WeightForm]]:
        """Its forms on the lower hull of bytes over damage, and the price from which each is the best."""
        form = self._smallest_form(weight)
        while better := {
            other: (weight.bytes(other) - weight.bytes(form)) / saved
            for other in self._forms(weight)
            if (saved := self.damage(weight, form) - self.damage(weight, other)) > 0
        }:
            form = min(better, key=lambda other: better[other])
            yield better[form], form

    def smallest(self, limit_db: float) -> Forms:
        """The smallest choice that holds a drop; the damage of what does most in it is measured and not estimated.

        Raises:
            PlanError: None that compresses anything holds it.
        """
        forms = self._first_to_hold(limit_db)
        for _ in range(_ROUNDS):
            doubtful = self._doubtful(forms)
            if not doubtful:
                break
            for index, weight in enumerate(doubtful):
                self._progress(f"measuring choice {index + 1} of {len(doubtful)}, {weight.source} {forms[weight]}")
                self._measure(weight, forms[weight])
            forms = self._first_to_hold(limit_db)
        return forms

    def _doubtful(self, forms: Forms) -> list[Weight]:
        """Weights whose damage is estimated, the worst first, until the others together do little."""
        estimated = [weight for weight, form in forms.items() if form != "none" and (weight, form) not in self._found]
        estimated.sort(key=lambda weight: self.damage(weight, forms[weight]), reverse=True)
        left = sum(self.damage(weight, forms[weight]) for weight in estimated)
        little = _LITTLE * self.predicted(forms)
        found = []
        for weight in estimated:
            if left <= little:
                break
            left -= self.damage(weight, forms[weight])
            found.append(weight)
        return found

    def _first_to_hold(self, limit_db: float) -> Forms:
        """By bisection: on the first excerpt, and from what that one admits on all."""
        choices = self.choices()
        last = len(choices) - 1
        low = _bisected(0, last, lambda place: self._drop_db(choices[place]) <= limit_db)
        if self.point("", choices[low]).drop_db > limit_db:
            low = _bisected(low + 1, last, lambda place: self.point("", choices[place]).drop_db <= limit_db)
        if set(choices[low].values()) == {"none"}:
            least = min(choices[:-1], key=self.predicted, default=choices[low])
            best = self.point("", least)
            raise _unreachable(limit_db, f"{best.drop_db:.4f} dB at {best.share:.1%} of the size in fp16")
        return choices[low]

    def _drop_db(self, forms: Forms) -> float:
        """Of the first excerpt."""
        self._progress(f"trying {self.share(forms):.1%} of the size in fp16")
        return max(stem.drop_db for stem in self.scorer.scores(self._results(forms, 1)))

    def predicted(self, forms: Forms) -> float:
        """Damage of a choice, taken as additive."""
        return sum(self.damage(weight, form) for weight, form in forms.items())

    # -------------------------------------------------------------------------------- measurement

    def point(self, name: str, forms: Forms) -> WeightPoint:
        """Measure a choice on the captured graph, unless it was already."""
        key = tuple(forms.get(weight, "none") for weight in self._all)
        if key not in self._points:
            self._progress(f"measuring a choice of {self.share(forms):.1%} of the size in fp16")
            stems = self.scorer.scores(self._results(forms))
            self._points[key] = WeightPoint(name, self.bytes(forms), self.share(forms), stems)
        return replace(self._points[key], name=name)

    def bytes(self, forms: Forms) -> int:
        return sum(weight.bytes(forms.get(weight, "none")) for weight in self._all) + self._beside * 4

    def share(self, forms: Forms) -> float:
        return self.bytes(forms) / (2 * _elements(self.trial.bundle))

    def frontier(self) -> tuple[WeightPoint, ...]:
        """Some of the best choices, evenly from the smallest to the uncompressed."""
        choices = self.choices()
        places = sorted({round(place) for place in np.linspace(0, len(choices) - 1, _POINTS)})
        return tuple(self.point(f"frontier {number + 1}", choices[place]) for number, place in enumerate(places))

    def uniform(self) -> tuple[WeightPoint, ...]:
        """One form for all weights, of those that all can have."""
        common = [form for form in COMPRESSIONS if all(form in self._forms(weight) for weight in self.weights)]
        return tuple(self.point(form, dict.fromkeys(self._all, form)) for form in common)

    def built(self, bundle: Bundle) -> WeightPoint:
        """A built bundle, the saved files of what stores weights run."""
        engines = captured_engines(bundle) | {
            segment.name: loaded(shipped_engine(segment), bundle, segment, compute_units="ALL")
            for segment in _with_weights(bundle)
        }
        trial = self.trial
        (given,) = bundle.inputs
        runs = [trial.run({given: values[given]}, engines, bundle.segments) for values in trial.reference]
        size, stems = stored_bytes(bundle), self.scorer.scores([_stems(trial, result) for result in runs])
        return WeightPoint("chosen", size, size / (2 * _elements(bundle)), stems)


def _bisected(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """The first place that holds, where those behind it do and the last is known to."""
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if holds(middle) else (middle + 1, high)
    return low


def _large(weights: Sequence[Weight]) -> tuple[Weight, ...]:
    """Those that are worth a measurement, in the order given."""
    total, left = sum(weight.values.size for weight in weights), 0
    small = set()
    for weight in sorted(weights, key=lambda weight: weight.values.size):
        left += weight.values.size
        if left > _SMALL * total:
            break
        small.add(weight)
    return tuple(weight for weight in weights if weight not in small)


def _elements(bundle: Bundle) -> int:
    """Numbers in the weights of all segments that store some."""
    return sum(segment.parameters for segment in _with_weights(bundle))


def _with_weights(bundle: Bundle) -> list[SegmentRecord]:
    """The segments whose targets store weights."""
    return [segment for segment in bundle.segments if lowering.capabilities(segment.artifact.target).weights]


def stored_bytes(bundle: Bundle) -> int:
    """What the saved weights of a bundle take, read off its files; position tables left out."""
    return sum(
        lowering.target(segment.artifact.target).stored_bytes(bundle, segment) for segment in _with_weights(bundle)
    )
