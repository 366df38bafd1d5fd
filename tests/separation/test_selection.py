"""Which engine is chosen: by time where it is near enough, and never in silence."""

import copy
import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import splitter
from splitter import cache
from splitter.errors import BundleError, CacheError, EngineError, UsageError
from splitter.runtime import engines
from splitter.runtime.engines.torch_engine import TorchEngine
from splitter.separation import selection


class Rival(TorchEngine):
    """torch, with a time and an error of its own."""

    max_time_ratio = 0.75
    seconds, error, fails = 0.0, 0.0, False
    loads = 0

    @classmethod
    def unsupported_reason(cls, segment):
        return None if segment.name == "encoder" else "the encoder only"

    def __init__(self, bundle, segment, *, compute_units):
        super().__init__(bundle, segment, compute_units=compute_units)
        type(self).loads += 1
        time.sleep(0.05)

    def run(self, inputs):
        if self.fails:
            raise RuntimeError("no such instruction")
        time.sleep(self.seconds)
        return {name: array * np.float32(1 + self.error) for name, array in super().run(inputs).items()}


class Slow(TorchEngine):
    def run(self, inputs):
        time.sleep(0.1)
        return super().run(inputs)


@pytest.fixture
def rivals(monkeypatch, tmp_path):
    """torch slowed down, and one rival for the encoder; nothing else, and a cache of its own."""
    kinds = {"torch": Slow, "rival": type("Rival", (Rival,), {"name": "rival"})}
    monkeypatch.setattr(engines, "engine", lambda name, real=engines.engine: kinds.get(name) or real(name))
    monkeypatch.setattr(engines, "names", lambda: list(kinds))
    monkeypatch.setattr(cache, "user_cache_path", lambda name: tmp_path / name)
    return kinds["rival"]


def chosen(bundle, *others, **options):
    said = []
    return selection.fastest([bundle, *others], progress=said.append, **options), said


def test_the_faster_engine_is_chosen_and_only_where_it_can(packages_bundle, rivals):
    choice, said = chosen(packages_bundle)
    assert choice.engines == {
        "analysis": "torch", "encoder": "rival", "transformer": "torch", "decoder": "torch", "synthesis": "torch"
    }  # fmt: skip
    assert said == [
        "measuring the engines once for this bundle on this machine",
        "measuring encoder by torch, rival",
    ]
    assert {one.engine for one in choice.trials} == {"torch", "rival"}


@pytest.mark.parametrize("error", [BundleError, CacheError])
def test_a_changed_file_is_no_failure_of_the_engine_that_reads_it(
    packages_bundle, rivals, tmp_path, error, monkeypatch
):
    """Answers are kept by the digest of the manifest: the unchanged bundle would never see that engine."""

    def refuse(self, *args, **options):
        raise error("weights were changed after the build")

    monkeypatch.setattr(rivals, "__init__", refuse)
    with pytest.raises(error, match="changed after the build"):
        chosen(packages_bundle)
    assert not list(tmp_path.rglob("*.json"))


def test_slower_engine_is_not(packages_bundle, rivals):
    rivals.seconds = 0.3
    assert chosen(packages_bundle)[0].engines["encoder"] == "torch"


@pytest.mark.parametrize(("seconds", "engine"), [(0.8, "torch"), (0.7, "rival")])
def test_in_turns_the_fastest_run_counts_and_little_gain_is_none(packages_bundle, rivals, monkeypatch, seconds, engine):
    """A machine that slows down meanwhile slows all of them."""
    turns, ran = {"torch": [3.0, 1.0, 2.0], "rival": [3 * seconds, 2 * seconds, seconds]}, []

    def cost(run):
        ran.append("rival" if isinstance(run.func.__self__, Rival) else "torch")
        return turns[ran[-1]].pop(0)

    monkeypatch.setattr(selection, "_cost", cost)
    choice, _ = chosen(packages_bundle)
    assert choice.engines["encoder"] == engine
    assert {one.engine: one.seconds for one in choice.trials} == {"torch": 1.0, "rival": seconds}
    assert ran == ["torch", "rival"] * 3


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ({"torch": 1.0, "light": 0.93, "heavy": 0.72}, "light"),  # heavy would be worth it against torch alone
        ({"torch": 1.0, "large": 0.74, "heavy": 0.6}, "heavy"),
        ({"torch": 1.0, "light": 0.93, "heavy": 0.69}, "heavy"),
        ({"torch": 1.0, "light": 0.96, "heavy": 0.76}, "torch"),
        ({"torch": 1.0, "light": 0.96, "heavy": 0.74}, "heavy"),
        ({"light": 1.0, "heavy": 0.9}, "heavy"),  # the default has failed: nothing is to be saved by it
        ({}, "torch"),
    ],
)
def test_an_engine_is_taken_where_it_is_worth_what_it_takes(monkeypatch, seconds, best):
    ratios = {"torch": 1.0, "light": 0.95, "heavy": 0.75, "large": 0.75}
    monkeypatch.setattr(engines, "engine", lambda name: type(name, (TorchEngine,), {"max_time_ratio": ratios[name]}))
    assert selection._best(seconds, "torch") == best


@pytest.mark.parametrize(("wall", "processor", "cost"), [(3.0, 5.0, 3.0), (1.0, 5.0, 2.5)])
def test_threads_beyond_its_own_are_counted(monkeypatch, wall, processor, cost):
    """An engine that takes every core is quick alone, and slows the run beside it."""
    now = {"wall": 10.0, "processor": 20.0}
    monkeypatch.setattr(selection.time, "perf_counter", lambda: now["wall"])
    monkeypatch.setattr(selection.time, "process_time", lambda: now["processor"])
    monkeypatch.setattr(selection.torch, "get_num_threads", lambda: 2)
    ran = lambda: now.update(wall=now["wall"] + wall, processor=now["processor"] + processor)  # noqa: E731
    assert selection._cost(ran) == cost


@pytest.mark.parametrize(("error", "engine"), [(1e-4, "torch"), (3e-6, "rival")])  # 80 dB, 110 dB
def test_fast_but_far_is_refused_and_said(packages_bundle, rivals, error, engine):
    rivals.error = error
    choice, said = chosen(packages_bundle)
    assert choice.engines["encoder"] == engine
    reasons = [line for line in said if "out of the question" in line]
    assert len(reasons) == (engine == "torch")
    assert all("rival" in line and "less than 100 dB" in line for line in reasons)


def test_every_member_of_a_bag_is_held_to_the_limit(packages_bundle, rivals):
    second = copy.copy(packages_bundle)
    golden = packages_bundle.goldens()
    (given,) = (spec.name for spec in packages_bundle.manifest.tensors if spec.producer == "input")
    noisy = {name: golden[name] * np.float32(1 + (0 if name == given else 1e-4)) for name in golden}  # 80 dB
    object.__setattr__(second, "goldens", lambda: noisy)
    alone, _ = chosen(packages_bundle)
    assert alone.engines["encoder"] == "rival"
    choice, said = chosen(packages_bundle, second)
    assert said, "what is known of one bundle is not known of two"
    assert choice.engines["encoder"] == "torch"
    assert choice.snr_db == pytest.approx(80, abs=0.1)


def test_engine_that_fails_is_named_with_its_reason(packages_bundle, rivals):
    rivals.fails = True
    choice, said = chosen(packages_bundle)
    assert choice.engines["encoder"] == "torch"
    assert said[2] == "rival is out of the question for encoder: RuntimeError: no such instruction"


def test_measured_once_for_a_bundle_and_its_circumstances(packages_bundle, rivals, monkeypatch):
    first, _ = chosen(packages_bundle)
    loads = rivals.loads
    again, said = chosen(packages_bundle)
    assert (again, said, rivals.loads) == (first, [], loads)
    monkeypatch.setattr(selection, "_version", lambda name: "another")
    assert chosen(packages_bundle)[1]


def test_who_comes_meanwhile_waits_for_the_answer(packages_bundle, rivals, monkeypatch):
    measured, begun = [], threading.Event()
    real = selection._measured

    def slowly(members, names, *rest):
        measured.append(names)
        begun.set()
        time.sleep(0.3)
        return real(members, names, *rest)

    monkeypatch.setattr(selection, "_measured", slowly)
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(chosen, packages_bundle)
        assert begun.wait(60)
        second = pool.submit(chosen, packages_bundle)
        assert first.result()[0] == second.result()[0]
    assert len(measured) == 1
    assert second.result()[1] == []


def test_a_short_job_is_not_measured_for(packages_bundle, rivals):
    choice, said = chosen(packages_bundle, runs=19)
    assert (choice.engines["encoder"], said, rivals.loads) == ("torch", [], 0)
    choice, said = chosen(packages_bundle, runs=20)
    assert said
    assert next(trial for trial in choice.trials if trial.engine == "rival").load_seconds >= 0.05
    assert chosen(packages_bundle, runs=19)[0].engines["encoder"] == "rival", "it takes what is known"


def test_an_engine_makes_up_for_the_time_it_loads():
    trials = [
        selection.EngineTrial(segment="encoder", engine="torch", seconds=1.0, load_seconds=0.5),
        selection.EngineTrial(segment="encoder", engine="rival", seconds=0.6, load_seconds=2.6),
        selection.EngineTrial(segment="decoder", engine="torch", seconds=None, failure="no"),
        selection.EngineTrial(segment="decoder", engine="rival", seconds=9.0, load_seconds=9.0),
    ]
    choice = selection.EngineChoice(
        engines={"encoder": "rival", "decoder": "rival", "synthesis": "torch"}, snr_db=None, trials=trials
    )
    others = {"decoder": "rival", "synthesis": "torch"}
    assert choice.for_runs(5).engines == {"encoder": "torch"} | others
    assert choice.for_runs(6).engines == choice.for_runs(None).engines == {"encoder": "rival"} | others


def test_a_job_pays_for_a_twentieth_of_its_time_and_the_next_goes_on(packages_bundle, rivals, monkeypatch):
    """But for a segment that has been begun."""
    monkeypatch.setattr(rivals, "unsupported_reason", classmethod(lambda kind, segment: None))
    segments = len(packages_bundle.segments)
    choice, said = chosen(packages_bundle, runs=20)
    first = [line for line in said if " by torch, rival" in line]
    assert 1 <= len(first) < segments
    assert not choice.complete
    left = segments - len(first)
    choice, said = chosen(packages_bundle)
    assert len([line for line in said if " by torch, rival" in line]) == left
    assert choice.complete
    assert len(choice.trials) == 2 * segments
    assert chosen(packages_bundle, runs=10_000)[1] == []


def test_damaged_cache_is_measured_again(packages_bundle, rivals, tmp_path):
    chosen(packages_bundle)
    (kept,) = (tmp_path / "splitter" / "engines").glob("*.json")
    kept.write_text('{"engines": {"encoder": 3}}')
    choice, said = chosen(packages_bundle)
    assert said
    assert choice.engines["encoder"] == "rival"


def test_what_is_asked_for_is_not_in_question(packages_bundle, rivals):
    choice, said = chosen(packages_bundle, requested={"encoder": "torch"})
    assert (choice.engines["encoder"], said, choice.trials) == ("torch", [], ())
    with pytest.raises(EngineError, match="the encoder only"):
        chosen(packages_bundle, requested={"decoder": "rival"})
    with pytest.raises(UsageError, match="enkoder"):
        chosen(packages_bundle, requested={"enkoder": "torch"})


def test_fast_is_measured_and_never_half(packages_bundle, monkeypatch):
    class Half(TorchEngine):
        name, precision = "half", "bf16"
        unable = None

        @classmethod
        def unsupported_reason(cls, segment):
            return cls.unable

        def run(self, inputs):
            return {name: array * np.float32(1 + 1e-3) for name, array in super().run(inputs).items()}

    kinds = {"torch": TorchEngine, "half": Half}
    monkeypatch.setattr(engines, "engine", lambda name, real=engines.engine: kinds.get(name) or real(name))
    monkeypatch.setattr(engines, "names", lambda: list(kinds))
    chosen = selection.low_precision([packages_bundle], {"transformer": "torch"})
    assert chosen == {
        "analysis": "torch", "encoder": "half", "transformer": "torch", "decoder": "half",
        "synthesis": "torch",
    }  # fmt: skip
    assert 40 < selection.end_to_end([packages_bundle], chosen) < 65
    told = []
    separator = splitter.Separator(packages_bundle, {"transformer": "torch"}, fast=True, progress=told.append)
    assert separator.engines().by_segment == separator.requested_engines == chosen
    assert re.fullmatch(r"fast: \d\d\.\d dB from float32 on the bundle's golden input", told[-1])
    Half.unable = "no bfloat16"
    with pytest.raises(EngineError, match="no bfloat16"):
        selection.low_precision([packages_bundle])
    del kinds["half"]
    with pytest.raises(EngineError, match="no engine that computes in bf16 is installed"):
        selection.low_precision([packages_bundle])
