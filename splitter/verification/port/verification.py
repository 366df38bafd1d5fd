"""Judges a dump tap by tap, and explains what fails."""

from __future__ import annotations

import difflib
import math
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from splitter_kernels.taps import LOGIT_ROWS, Tap

from ... import models
from ...boundary import Array, is_finite
from ...bundle.directory import Bundle, Source, single
from ...errors import UsageError
from ...graph.program import Program
from ...parity import Parity, compare
from .. import mistakes
from ..checks import Check, Status, judged
from ..taps import TappedModel
from .arrangement import arrangement
from .dump import read_dump
from .report import PortReport, TapCheck
from .suspects import PortStep, drifted, suspects

_EXPLAINED_BY_DB = 20.0  # a suspect this much nearer than the model itself is the cause
_CONVINCING_DB = 80.0  # of half precision against half precision: only some values fell on the other side
_DRIFT_DB = 40.0  # below this a difference is not one of precision
_FREEDOM_DB = 8.0  # what a fit of two numbers may gain over a mistake that names them
_HALF_NOISE_DB = 30.0
_ROUNDING_DB = 3.0  # by which one rounding may be unluckier than another
_DRIFT = "the formula is right, its statistics drift: summed naively; take means in two levels"
_SUMS = "the formula is right, its mean or deviation is not: a sum over threads lacks a barrier, or leaves some out"
_FEWEST_FOR_GAIN = 8  # values: of one, every value is a multiple
_LOUD = 0.1  # of the effective value: quieter ones say less of a factor
_SAME_GAIN = 1e-3
_MOST_OF_THEM = 0.95
_MOST_WORDS = 8
_MOST_OPERATORS = 100  # of a part in which mistakes are looked for: each is tried by running it


def verify_port(dumps: Sequence[Mapping[str, Array] | Path], bundle: Source) -> PortReport:
    """Judge a port of any part of a model by what it dumped.

    A tap is recomputed by the captured graph from what the dump itself holds: *local* from the taps just before it,
    *nearest* from earlier ones where the dump lacks those. Where it holds none of these either, the tap is judged
    *accumulated*, from the bundle's golden input. A stage that the dump has nothing of was given its goldens.

    Args:
        dumps: Tensors by tap name, any subset, in the graph's dtype or in float16, made from the bundle's golden input,
            or from golden boundary tensors. Further dumps are repeated runs, which must agree bit for bit. Files of
            them are read by `read_dump`.
        bundle: What to hold it against. Expected values come from its captured graph, limits from its plan.

    Raises:
        UsageError: No name in the dump is a tap's, or a file cannot be read.
    """
    return _PortVerification(dumps, single(bundle)).report()


class _PortVerification:
    def __init__(self, dumps: Sequence[Mapping[str, Array] | Path], bundle: Bundle) -> None:
        self.model = TappedModel(bundle)
        self.bundle = bundle
        self.tolerances = bundle.manifest.plan.tolerances
        self.shapes = {name: kind.shape for name, kind in self.model.taps.items()}
        self.dump, *self.repeats = (read_dump(dump, self.shapes) if isinstance(dump, Path) else dump for dump in dumps)
        self.present = [name for name in self.model.taps if name in self.dump]
        if not self.present:
            raise UsageError(
                "no name in the dump is a tap's",
                received=", ".join(list(self.dump)[:5]),
                fix=f"Taps are {', '.join(list(self.model.taps)[:3])}, …; `splitter goldens` writes them all.",
            )
        self.sound = {name for name in self.present if not self._defect(name)}
        self.readings = {name: self.model.reading(name, self.sound) for name in self.present}
        self.expected: dict[str, Array] = {}  # of the model, where a failure has to be explained

    def report(self) -> PortReport:
        accumulated = self._accumulated()
        checks = {name: self._judged(name, accumulated.get(name)) for name in self.present}
        failing = [name for name, check in checks.items() if check.status is Status.FAIL and not check.note]
        coarse = [name for name, check in checks.items() if check.status is Status.PASS and self._is_coarse(check)]
        self._remember([*failing, *coarse])
        for name in failing:
            checks[name] = replace(checks[name], note=self._cause(name, checks[name]))
        for name in coarse:
            if cause := self._cause_beneath(name):
                checks[name] = replace(checks[name], status=Status.FAIL, note=cause)
        return PortReport(
            taps=tuple(TapCheck(checks[n], str(self.dump[n].dtype), accumulated.get(n)) for n in self.present),
            missing=tuple(self._missing()),
            misnamed={name: self._nearest(name) for name in self.dump if name not in self.model.taps},
        )

    def _missing(self) -> Iterator[str]:
        """Values that the dump has under no name, of the stages that were ported: of which it has something else."""
        seen = {name for present in self.present for name in self.model.same(present)}
        for name in self.model.taps:
            if name not in seen and self.model.stages[name] in self._ported_stages:
                seen.update(self.model.same(name))
                yield name

    # ---------------------------------------------------------------------------------- judging

    def _limits(self, limits: Mapping[Any, float], name: str) -> float:
        return limits.get(str(self.dump[name].dtype), limits["float32"])

    def _defect(self, name: str) -> str:
        """Why a tensor of the dump cannot even be compared; empty if it can."""
        array, dtype = self.dump[name], self.model.taps[name].dtype
        if str(array.dtype) not in (known := self._dtypes(dtype)):
            return f"wrong dtype: {array.dtype}; a dump holds {' or '.join(known)}"
        if not is_finite(array):
            bad = int(np.count_nonzero(~np.isfinite(array)))
            half = ", beyond what half precision holds" if array.dtype == np.float16 else ""
            return f"not finite: {bad:,} of {array.size:,} values{half}"
        if array.shape != self.shapes[name]:
            return "wrong shape"
        return ""

    def _dtypes(self, dtype: str) -> Sequence[str]:
        """In which types a tap may be dumped: a float in those that the plan has limits for, all else as it is."""
        return tuple(self.tolerances.port_snr_db) if "float" in dtype else (dtype,)

    def _accumulated(self) -> dict[str, Parity]:
        found: dict[str, Parity] = {}

        def seen(name: str, value: Array) -> None:
            if name in self.sound:
                found[name] = compare(value, self.dump[name])

        self.model.run(seen)
        return found

    def _judged(self, name: str, accumulated: Parity | None) -> Check:
        failed = Check("port", name, Status.FAIL, "dump", "accumulated")
        if disagreement := self._disagreement(name):
            return replace(failed, note=disagreement)
        if name not in self.sound:
            defect = self._defect(name)
            return failed if defect == "wrong shape" else replace(failed, note=defect)
        reading, parity = self.readings[name], accumulated
        limits = self.tolerances.port_snr_db if reading.scope == "local" else self.tolerances.port_accumulated_snr_db
        if reading.scope != "accumulated":
            parity = compare(self.model.step(name, reading, self.dump.__getitem__), self.dump[name])
        assert parity is not None  # the model shows every tap
        limit = self._limits(limits, name)
        check = Check("port", name, judged(parity, limit, negligible=0.0), "dump", reading.scope, parity, limit)
        if check.status is Status.FAIL and reading.scope == "local" and self._is_rounding(name):
            note = "float32 holds no more: as near to float64 as the model is"
            return replace(check, status=Status.PASS, note=note)
        return check

    def _is_rounding(self, name: str) -> bool:
        """A step whose values cancel, or whose softmax magnifies them, is as near to float64 as the model's own."""
        if self.dump[name].dtype.itemsize != np.dtype(self.model.taps[name].dtype).itemsize:
            return False
        exact = self.model.exact(name, self.readings[name], self.dump.__getitem__)
        if exact is None:
            return False
        expected = self.model.step(name, self.readings[name], self.dump.__getitem__)
        return _snr(exact, self.dump[name]) >= _snr(exact, expected) - _ROUNDING_DB

    def _disagreement(self, name: str) -> str:
        for repeat in self.repeats:
            if name in repeat and not np.array_equal(repeat[name], self.dump[name], equal_nan=True):
                if repeat[name].shape != self.dump[name].shape:
                    return "repeated runs disagree in shape"
                count = int(np.count_nonzero(repeat[name] != self.dump[name]))
                return f"repeated runs disagree in {count:,} of {self.dump[name].size:,} values: a race"
        return ""

    def _nearest(self, name: str) -> str:
        absent = [tap for tap in self.model.taps if tap not in self.dump]
        return next(iter(difflib.get_close_matches(name, absent, n=1, cutoff=0.7)), "")

    # ------------------------------------------------------------------------------- explaining

    def _tap(self, name: str) -> Tap | None:
        """The step of the hand-written transformer that a tap is, if it is one with a formula."""
        tap = None if self.model.transformer is None else self.model.transformer.taps.get(name)
        return tap if tap is not None and tap.reads else None

    @cached_property
    def _family(self) -> models.Family | None:
        """The model's, if it is installed here."""
        name = self.bundle.manifest.model.family
        return next((family for family in models.families() if family.name == name), None)

    def _remember(self, failing: Sequence[str]) -> None:
        """Keep the model's own values of what explaining the failures takes and the dump does not hold."""
        wanted = set(failing)
        for name in failing:
            layer = name.rpartition(".")[0]
            if tap := self._tap(name):
                wanted |= {other for other in self.model.taps if layer and other.startswith(f"{layer}.")}
                wanted |= {*tap.reads, *_neighbours(name)} & self.model.taps.keys()
        wanted = {name for name in wanted if name not in self.sound or name in failing}
        if wanted:
            self.expected |= self.model.values(wanted)

    def _ported(self, name: str) -> Array:
        """A tap's value as the port had it, or else as the model has it."""
        return self.dump[name] if name in self.sound else self.expected[name]

    def _modelled(self, name: str) -> Array:
        """The other way round."""
        return self.expected[name] if name in self.expected else self.dump[name]

    def _cause(self, name: str, check: Check) -> str:
        dumped, reading = self.dump[name], self.readings[name]
        local = check.scope == "local"
        known = name not in self.sound or check.scope == "accumulated"
        expected = self.expected[name] if known else self.model.step(name, reading, self.dump.__getitem__)
        if name not in self.sound:
            found = self._permutation(name, expected, dumped)
            layout = self.model.layout(name)
            the_tap = f"the tap is {layout!r} of" if layout else "the tap has"
            return found or f"wrong shape: {dumped.shape}; {the_tap} {self.shapes[name]}"
        snr = _snr(expected, dumped)
        if cause := self._named(name, local, expected, snr, self._limits(self.tolerances.port_snr_db, name)):
            return cause
        if cause := self._permutation(name, expected, dumped):
            return cause
        if self._is_given(name):
            return "made from another input than the bundle's golden one"
        if not local:
            since = f", after {', '.join(reading.taps)}" if reading.taps else ""
            return f"somewhere in the steps before it{since}"
        return _noise(dumped, snr) if snr >= _HALF_NOISE_DB else f"another formula than {self._formula(name)}"

    def _is_given(self, name: str) -> bool:
        """Whether a failing tap is what the port was fed: of the model's input, or of a stage that was not ported."""
        if self.model.boundaries.isdisjoint(self.model.same(name)):
            return False
        stage = self.model.stages[name]
        return not stage or (bool(self._ported_stages) and stage not in self._ported_stages)

    @cached_property
    def _ported_stages(self) -> set[str]:
        """Those of which the dump has something beside what they hand over."""
        inner = (tap for tap in self.present if self.model.boundaries.isdisjoint(self.model.same(tap)))
        return {self.model.stages[tap] for tap in inner}

    def _formula(self, name: str) -> str:
        if tap := self._tap(name):
            return tap.formula
        return " → ".join(_words(self.model.part(name, self.readings[name])))

    def _named(self, name: str, local: bool, expected: Array, snr: float, wanted: float) -> str:
        """The mistake that gives what was dumped: one of the transformer's steps, or of the graph's operators."""
        dumped = self.dump[name]
        if tap := self._tap(name):
            step = self._step(tap, self._ported if local else self._modelled)
            if cause := self._suspect(step, dumped, snr, wanted):
                return cause
        if name not in self.model.nodes or not (self.readings[name].taps or self.readings[name].goldens or local):
            return ""
        cause = self._mistake(name, snr, wanted)
        share, gain = _gain(expected, dumped)
        if cause:
            return f"{cause}: {gain}" if gain else cause
        return f"{gain}; look for a scale, or a window's square, that is forgotten" if share == 1 else ""

    def _is_coarse(self, check: Check) -> bool:
        """Half precision may hide a small mistake under its own rounding."""
        return check.scope == "local" and self.dump[check.subject].dtype == np.float16

    def _cause_beneath(self, name: str) -> str:
        """A mistake that gives a passing value much nearer, rounded as it is, than the model does."""
        dumped = self.dump[name]
        expected = self.model.step(name, self.readings[name], self.dump.__getitem__)
        snr = _snr(expected.astype(dumped.dtype), dumped)
        return self._named(name, True, expected, snr, math.inf) if snr < _CONVINCING_DB else ""

    def _mistake(self, name: str, snr: float, wanted: float) -> str:
        """A mistake in one operator of the part before a tap, or the same mistake in all of its kind."""
        dumped, reading = self.dump[name], self.readings[name]
        part = self.model.part(name, reading)
        if len(part.operators) > _MOST_OPERATORS:
            return ""
        inputs = self.model.arguments(reading, self.dump.__getitem__)
        best, cause = snr, ""
        for wrong in self._wrongs(part):
            value = np.empty(0)
            with suppress(Exception):  # PyTorch refuses in every way what cannot be done to these values
                value = mistakes.computed(part, inputs, wrong).numpy()
            if value.shape == dumped.shape and str(value.dtype) == self.model.taps[name].dtype:
                found = _snr(value.astype(dumped.dtype), dumped)
                if found > best:
                    best, cause = found, next(iter(wrong.values())).cause
        for key, tap in zip(part.inputs, (*reading.taps, *reading.goldens), strict=True):
            cause = cause.replace(f"'{key}'", f"'{tap}'")
        return cause if best >= min(wanted, snr + _EXPLAINED_BY_DB) else ""

    def _wrongs(self, part: Program) -> Iterator[dict[Any, mistakes.Mistake]]:
        alike: dict[tuple[object, str], dict[Any, mistakes.Mistake]] = defaultdict(dict)
        for node in part.operators:
            known = self._family.mistakes(node) if self._family is not None else ()
            for mistake in (*known, *mistakes.of(node)):
                alike[node.target, mistake.cause][node] = mistake
                yield {node: mistake}
        yield from (wrong for wrong in alike.values() if len(wrong) > 1)

    def _step(self, tap: Tap, value: Callable[[str], Array]) -> PortStep:
        def wide(name: str) -> Array:
            return value(name).astype(np.float32, copy=False)

        assert self.model.transformer is not None
        return PortStep(
            self.model.transformer.config, tap, self.model.transformer.tensors, wide, self.shapes["input"][-1]
        )

    def _suspect(self, step: PortStep, dumped: Array, snr: float, wanted: float) -> str:
        rows = (slice(None), slice(None), slice(LOGIT_ROWS)) if step.tap.name.endswith(".heads") else (...,)
        best, cause = snr, ""
        for suspected, value in suspects(step):
            if value.shape == dumped[rows].shape and (found := _snr(value.astype(dumped.dtype), dumped[rows])) > best:
                best, cause = found, suspected
        enough = min(wanted, snr + _EXPLAINED_BY_DB)
        if (snr >= _DRIFT_DB or best < enough) and (fitted := drifted(step, dumped)) is not None:
            found = _snr(fitted.astype(dumped.dtype), dumped) - _FREEDOM_DB
            if found > best:
                best, cause = found, _DRIFT if snr >= _DRIFT_DB else _SUMS
        return cause if best >= enough else ""

    def _permutation(self, name: str, expected: Array, dumped: Array) -> str:
        limit = self._limits(self.tolerances.port_accumulated_snr_db, name)
        return arrangement(expected, dumped, *self._axes(name, expected.shape), limit)

    def _axes(self, name: str, shape: tuple[int, ...]) -> tuple[list[str], list[int]]:
        """A tap's axes without the batch of one, and tokens of the transformer's frequency branch as t and f."""
        names = re.findall(r"\([^)]*\)|\S+", self.model.layout(name))
        if len(names) != len(shape):
            names = [str(axis) for axis in range(len(shape))]
        transformer, axes, extents = self.model.transformer, [], []
        for axis, extent in zip(names, shape, strict=True):
            if transformer is not None and axis in "nm" and extent == transformer.config.freq_tokens:
                _, _, bins, frames = self.shapes["input"]
                axes += ["t", "f"]
                extents += [frames, bins]
            elif axis != "b" or extent != 1:
                axes.append(axis)
                extents.append(extent)
        return axes, extents


def _neighbours(name: str) -> Iterator[str]:
    """Taps of the other branch that a mistake may have put in a step's place."""
    layer, _, last = name.rpartition(".")
    if last == "norm2":
        index = layer.rpartition(".")[2]
        for branch in ("layers", "layers_t"):
            yield f"{branch}.{index}.norm_out"
            yield f"{branch}.{int(index) - 1}.norm_out" if int(index) else "embedded" + branch.removeprefix("layers")


def _snr(reference: Array, candidate: Array) -> float:
    parity = compare(np.asarray(reference), candidate)
    return -math.inf if parity.snr_db is None else parity.snr_db


def _noise(dumped: Array, snr: float) -> str:
    if dumped.dtype == np.float32 and np.array_equal(dumped, dumped.astype(np.float16).astype(np.float32)):
        return f"rounded to half precision: {snr:.0f} dB, and every value is on its grid"
    return f"the formula is right, its precision is not: noise at {snr:.0f} dB, as of half-precision accumulation"


def _gain(expected: Array, dumped: Array) -> tuple[float, str]:
    """The number by which nearly everything is too large, if it is one; and what share of the values that is of."""
    loud = np.abs(expected) > _LOUD * np.sqrt(np.mean(np.square(np.abs(expected))))
    if np.count_nonzero(loud) < _FEWEST_FOR_GAIN or dumped.dtype.kind not in "fc":
        return 0.0, ""
    ratios = dumped[loud] / expected[loud].astype(np.complex128)
    gain = float(np.median(ratios.real))
    share = float(np.mean(np.abs(ratios - gain) <= _SAME_GAIN * abs(gain)))
    if share < _MOST_OF_THEM or abs(gain - 1) <= _SAME_GAIN or not gain:
        return 0.0, ""
    return share, f"a constant gain of {gain:.4g}" + (" but at the edges" if share < 1 else "")


def _words(part: Program) -> list[str]:
    """The operators of a part, by the names that PyTorch has for them."""
    words = [str(node.target).removeprefix("aten.").partition(".")[0] for node in part.operators]
    distinct = list(dict.fromkeys(words))
    return distinct if len(distinct) <= _MOST_WORDS else [*distinct[: _MOST_WORDS - 1], "…", distinct[-1]]
