"""Judges a dump tap by tap, and explains what fails."""

from __future__ import annotations

import difflib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from scipy.special import softmax
from splitter_kernels.taps import LOGIT_ROWS, Tap

from ...boundary import Array, is_finite
from ...bundle.directory import Bundle, Source, single
from ...errors import UsageError
from ...parity import Parity, compare
from ..checks import Check, Status, judged
from ..taps import TappedTransformer
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
_GOLDEN = ("input", "input_t")


def verify_port(dumps: Sequence[Mapping[str, Array] | Path], bundle: Source) -> PortReport:
    """Judge a port by what it dumped.

    A tap is judged *local*, from the values that the dump holds of what the step reads, if it holds them; else
    *accumulated*, from the golden input of the bundle's transformer.

    Args:
        dumps: Tensors by tap name, any subset, float32 or float16, made from the bundle's golden transformer input.
            Further dumps are repeated runs, which must agree bit for bit. Files of them are read by `read_dump`.
        bundle: What to hold it against. Expected values come from its captured graph, limits from its plan.

    Raises:
        BundleError: The bundle has no transformer that the kernels implement.
        UsageError: No name in the dump is a tap's, or a file cannot be read.
    """
    return _PortVerification(dumps, single(bundle)).report()


class _PortVerification:
    def __init__(self, dumps: Sequence[Mapping[str, Array] | Path], bundle: Bundle) -> None:
        self.model = TappedTransformer(bundle)
        self.tolerances = bundle.manifest.plan.tolerances
        self.shapes = {name: self.model.shape(name) for name in self.model.taps}
        self.dump, *self.repeats = (read_dump(dump, self.shapes) if isinstance(dump, Path) else dump for dump in dumps)
        self.present = [name for name in self.model.taps if name in self.dump]
        if not self.present:
            raise UsageError(
                "no name in the dump is a tap's",
                received=", ".join(list(self.dump)[:5]),
                fix=f"Taps are {', '.join(list(self.model.taps)[:3])}, …; `splitter goldens` writes them all.",
            )
        self.sound = {name for name in self.present if not self._defect(name)}
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
            missing=tuple(name for name in self.model.taps if name not in self.dump),
            misnamed={name: self._nearest(name) for name in self.dump if name not in self.model.taps},
        )

    # ---------------------------------------------------------------------------------- judging

    def _defect(self, name: str) -> str:
        """Why a tensor of the dump cannot even be compared; empty if it can."""
        array = self.dump[name]
        if str(array.dtype) not in self.tolerances.port_snr_db:
            return f"wrong dtype: {array.dtype}; a dump holds {' or '.join(self.tolerances.port_snr_db)}"
        if not is_finite(array):
            bad = int(np.count_nonzero(~np.isfinite(array)))
            half = ", beyond what half precision holds" if array.dtype == np.float16 else ""
            return f"not finite: {bad:,} of {array.size:,} values{half}"
        if array.shape != self.shapes[name]:
            return "wrong shape"
        return ""

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
        dtype: Any = str(self.dump[name].dtype)
        reads = self.model.taps[name].reads
        scope, parity, limit = "accumulated", accumulated, self.tolerances.port_accumulated_snr_db[dtype]
        if reads and all(read in self.sound or read in _GOLDEN for read in reads):
            expected = self.model.step(name, {read: self._given(read) for read in reads})
            scope, parity, limit = "local", compare(expected, self.dump[name]), self.tolerances.port_snr_db[dtype]
        assert parity is not None  # the model shows every tap
        check = Check("port", name, judged(parity, limit, negligible=0.0), "dump", scope, parity, limit)
        if check.status is Status.FAIL and scope == "local" and name.endswith(".heads") and self._is_rounding(name):
            note = "logits so large that float32 holds no more: as near to float64 as the model is"
            return replace(check, status=Status.PASS, note=note)
        return check

    def _is_rounding(self, name: str) -> bool:
        """In float32, an attention is as near to float64 as the model's own, whose softmax magnifies the rounding."""
        dumped = self.dump[name]
        if dumped.dtype != np.float32:
            return False
        given = {read: self._given(read) for read in self.model.taps[name].reads}
        expected = self.model.step(name, given)
        q, k, v = (array.astype(np.float64) for array in given.values())
        exact = np.empty(dumped.shape)
        for head in np.ndindex(q.shape[:2]):  # one at a time: logits of all would be tokens × sources × heads
            exact[head] = softmax(q[head] @ k[head].T / math.sqrt(q.shape[-1]), axis=-1) @ v[head]
        return _snr(exact, dumped) >= _snr(exact, expected) - _ROUNDING_DB

    def _given(self, read: str) -> Array:
        return self.dump[read] if read in self.sound else self.model.inputs[read]

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

    def _remember(self, failing: Sequence[str]) -> None:
        """Keep the model's own values of what explaining the failures takes and the dump does not hold."""
        wanted = set(failing)
        for name in failing:
            layer = name.rpartition(".")[0]
            wanted |= {tap for tap in self.model.taps if layer and tap.startswith(f"{layer}.")}
            wanted |= {*self.model.taps[name].reads, *_neighbours(name)}
        wanted = {name for name in wanted if name not in self.sound or name in failing}
        if wanted:
            self.model.run(lambda name, value: self.expected.update({name: value.copy()} if name in wanted else {}))

    def _ported(self, name: str) -> Array:
        """A tap's value as the port had it, or else as the model has it."""
        return self.dump[name] if name in self.sound else self.expected[name]

    def _modelled(self, name: str) -> Array:
        """The other way round."""
        return self.expected[name] if name in self.expected else self.dump[name]

    def _cause(self, name: str, check: Check) -> str:
        dumped = self.dump[name]
        local = check.scope == "local"
        step = self._step(name, self._ported if local else self._modelled)
        expected = (
            self.model.step(name, {r: step.value(r) for r in step.tap.reads}) if step.tap.reads else self.expected[name]
        )
        wanted = self.tolerances.port_snr_db[str(dumped.dtype)]  # type: ignore[index]
        if name not in self.sound:
            found = self._permutation(name, expected, dumped)
            return found or f"wrong shape: {dumped.shape}; the tap is {step.tap.axes!r} of {self.shapes[name]}"
        snr = compare(expected, dumped).snr_db
        snr = -math.inf if snr is None else snr
        if cause := self._suspect(step, dumped, snr, wanted):
            return cause
        if cause := self._permutation(name, expected, dumped):
            return cause
        if not step.tap.reads:
            return "made from another input than the bundle's golden one"
        if not local:
            return "somewhere in the steps before it"
        return _noise(dumped, snr) if snr >= _HALF_NOISE_DB else f"another formula than {step.tap.formula}"

    def _is_coarse(self, check: Check) -> bool:
        """Half precision may hide a small mistake under its own rounding."""
        return check.scope == "local" and self.dump[check.subject].dtype == np.float16

    def _cause_beneath(self, name: str) -> str:
        """A mistake that gives a passing value much nearer, rounded as it is, than the model does."""
        dumped, step = self.dump[name], self._step(name, self._ported)
        expected = self.model.step(name, {read: step.value(read) for read in step.tap.reads})
        snr = _snr(expected.astype(dumped.dtype), dumped)
        return self._suspect(step, dumped, snr, math.inf) if snr < _CONVINCING_DB else ""

    def _step(self, name: str, value: Callable[[str], Array]) -> PortStep:
        def wide(tap: str) -> Array:
            return value(tap).astype(np.float32, copy=False)

        return PortStep(self.model.config, self.model.taps[name], self.model.tensors, wide, self.shapes["input"][-1])

    def _suspect(self, step: PortStep, dumped: Array, snr: float, wanted: float) -> str:
        rows = (slice(None), slice(None), slice(LOGIT_ROWS)) if step.tap.name.endswith(".heads") else (...,)
        best, cause = snr, ""
        for suspected, value in suspects(step):
            if value.shape == dumped[rows].shape and (found := _snr(value.astype(dumped.dtype), dumped[rows])) > best:
                best, cause = found, suspected
        if snr >= _DRIFT_DB and (fitted := drifted(step, dumped)) is not None:
            found = _snr(fitted.astype(dumped.dtype), dumped) - _FREEDOM_DB
            if found > best:
                best, cause = found, _DRIFT
        return cause if best >= min(wanted, snr + _EXPLAINED_BY_DB) else ""

    def _permutation(self, name: str, expected: Array, dumped: Array) -> str:
        """The order of axes in which the dump's values are the expected ones."""
        if dumped.size != expected.size or not is_finite(dumped):
            return ""
        tap = self.model.taps[name]
        limit = self.tolerances.port_accumulated_snr_db[str(dumped.dtype)]  # type: ignore[index]
        energies = (np.linalg.norm(values.astype(np.float64).ravel()) for values in (expected, dumped))
        if not math.isclose(*energies, rel_tol=10 ** (-limit / 20)):  # which no order of axes changes
            return ""
        axes, shape = self._axes(tap, expected.shape)
        same = tuple(range(len(axes)))
        for order in itertools.permutations(same):
            if order == same and dumped.shape == expected.shape:
                continue
            candidate = expected.reshape(shape).transpose(order).reshape(dumped.shape)
            if _snr(candidate, dumped) >= limit:
                got = " ".join(axes[axis] for axis in order)
                if order == same:
                    return f"wrong shape: the values lie right, but as {dumped.shape} instead of {expected.shape}"
                return f"permuted: the values lie as {got!r}, the tap is {' '.join(axes)!r}"
        return ""

    def _axes(self, tap: Tap, shape: tuple[int, ...]) -> tuple[list[str], list[int]]:
        """The tap's axes with the frequency branch's tokens taken apart into t and f, and without the batch of one."""
        _, _, bins, frames = self.shapes["input"]
        axes, extents = [], []
        for axis, extent in zip(tap.axes.split(), shape, strict=True):
            if axis in "nm" and extent == bins * frames == self.model.config.freq_tokens:
                axes += ["t", "f"]
                extents += [frames, bins]
            elif axis != "b":
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
