import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from splitter import Orchestrator
from splitter.bundle.directory import Bag, load
from splitter.errors import BoundaryError, BundleError, EngineError, UsageError
from splitter.mil.coreml_tools import ct
from splitter.runtime.engines import Engine, default_engine, engine, names
from splitter.runtime.engines.coreml_engine import CoreMLEngine
from splitter.runtime.engines.torch_engine import TorchEngine
from splitter.runtime.orchestrator import Hook

from ..conftest import snr_db


@pytest.fixture
def golden(demo_bundle):
    return demo_bundle.goldens()


def test_torch_run_equals_the_golden_bit_for_bit(demo_bundle, golden):
    assert np.array_equal(Orchestrator(demo_bundle).run({"mix": golden["mix"]})["stems"], golden["stems"])


def test_a_directory_or_what_build_gives_will_do(demo_bundle, toy_path):
    for source in (toy_path, str(toy_path), load(toy_path)):
        assert Orchestrator(source).bundle.path == toy_path
    with pytest.raises(BundleError, match="several models"):
        Orchestrator(Bag(toy_path, "pair", (demo_bundle, demo_bundle), ()))


@pytest.mark.parametrize(
    "engines",
    [
        {"transformer": "jax"},
        {"transformer": "numpy"},
        {"analysis": "numpy", "transformer": "numpy", "synthesis": "numpy"},
    ],
)
def test_other_engines_come_near(demo_bundle, golden, engines):
    results = Orchestrator(demo_bundle, engines).run({"mix": golden["mix"]})
    assert 110 <= snr_db(golden["stems"], results["stems"]) < np.inf


def test_engines_are_found_by_name():
    assert names() == [
        "aotinductor", "coreai", "coreml", "jax", "mil", "numpy", "onnxruntime", "openvino", "openvino-bf16", "torch",
        "torch-optimized",
    ]  # fmt: skip
    assert engine("torch") is TorchEngine
    with pytest.raises(
        EngineError,
        match=r"^unknown engine 'mps'\. Installed: aotinductor, coreai, coreml, jax, mil, numpy, onnxruntime, openvino, "
        r"openvino-bf16, torch, torch-optimized\.$",
    ):
        engine("mps")


@pytest.mark.parametrize(
    ("engines", "message"),
    [
        (
            {"encoder": "numpy"},
            "engine 'numpy' cannot run segment 'encoder': it runs cross-domain transformer or host specification, the "
            "segment is mlpackage.*--engine SEGMENT=NAME",
        ),
        ({"analysis": "coreml"}, "it runs mlpackage, the segment is host specification"),
        ({"encoder": "coreml"}, "Core ML exists on macOS only"),
        ({"analysis": "mil"}, "it runs mlpackage, the segment is host specification"),
    ],
)
def test_engine_that_cannot_run_a_segment_is_refused_not_replaced(demo_bundle, engines, message, monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Linux")
    with pytest.raises(EngineError, match=message):
        Orchestrator(demo_bundle, engines)


def test_packages_run_as_the_graph_does(demo_bundle):
    golden = demo_bundle.goldens()
    inputs = {spec.name: golden[spec.name] for spec in demo_bundle.manifest.tensors if spec.producer == "input"}
    results = Orchestrator(demo_bundle, {"encoder": "mil", "decoder": "mil"}).run(inputs)
    assert snr_db(golden["stems"], results["stems"]) > 110


def test_unknown_segment_is_refused(demo_bundle):
    with pytest.raises(UsageError, match="enkoder"):
        Orchestrator(demo_bundle, {"enkoder": "torch"})


def test_default_engines(demo_bundle, monkeypatch):
    monkeypatch.setattr("platform.system", lambda: "Linux")
    assert {default_engine(segment) for segment in demo_bundle.segments} == {"torch"}
    monkeypatch.setattr("platform.system", lambda: "Darwin")
    assert [default_engine(s) for s in demo_bundle.segments] == ["torch", "coreml", "torch", "coreml", "torch"]


class Broken(Engine):
    """Runs in torch, then spoils one result."""

    name = "broken"

    @classmethod
    def unsupported_reason(cls, segment):
        return None

    def __init__(self, bundle, segment, *, compute_units):
        self._inner = TorchEngine(bundle, segment, compute_units=compute_units)

    def run(self, inputs):
        results = self._inner.run(inputs)
        return self.spoil(results)


SPOILS = {
    "missing": (
        lambda r: {k: v for k, v in r.items() if k != "skip_freq_1"},
        "'skip_freq_1' leaving encoder .* is missing",
    ),
    "misshapen": (
        lambda r: {**r, "skip_freq_1": r["skip_freq_1"][0]},
        "'skip_freq_1' leaving encoder .* has another shape",
    ),
    "wide": (
        lambda r: {**r, "skip_freq_1": r["skip_freq_1"].astype("f8")},
        "another dtype: expected float32, found float64",
    ),
    "not finite": (
        lambda r: {**r, "skip_freq_1": r["skip_freq_1"] * np.float32(np.nan)},
        "'skip_freq_1' leaving encoder .* is not finite",
    ),
}


@pytest.mark.parametrize(("spoil", "message"), SPOILS.values(), ids=SPOILS)
def test_broken_hand_over_is_stopped_where_it_happens(demo_bundle, golden, spoil, message):
    orchestrator = Orchestrator(demo_bundle)
    broken = Broken(demo_bundle, demo_bundle.segment("encoder"), compute_units="ALL")
    broken.spoil = spoil
    orchestrator.engines["encoder"] = broken
    with pytest.raises(BoundaryError, match=message):
        orchestrator.run({"mix": golden["mix"]})


@pytest.mark.parametrize("mix", [np.zeros((1, 2, 100), np.float32), np.full((1, 2, 66150), np.nan, np.float32)])
def test_bad_input_is_stopped_before_the_first_segment(demo_bundle, mix):
    with pytest.raises(BoundaryError, match="'mix' entering the model"):
        Orchestrator(demo_bundle).run({"mix": mix})


def test_parity_with_goldens_can_be_demanded(demo_bundle, golden):
    checked = Orchestrator(demo_bundle, golden_snr_db=120)
    checked.run({"mix": golden["mix"]})
    broken = Broken(demo_bundle, demo_bundle.segment("encoder"), compute_units="ALL")
    broken.spoil = lambda results: {**results, "skip_time_2": results["skip_time_2"] * np.float32(1 + 1e-5)}
    checked.engines["encoder"] = broken
    with pytest.raises(
        BoundaryError,
        match=r"'skip_time_2' leaving encoder \(broken\) is too far from its golden: expected at least 120 dB, found 100",
    ):
        checked.run({"mix": golden["mix"]})


def test_hooks_see_every_segment_in_order(demo_bundle, golden):
    events = []

    class Recorder(Hook):
        def before_segment(self, segment, inputs):
            events.append(("before", segment.name, tuple(inputs)))

        def computed(self, segment):
            events.append(("computed", segment.name))

        def before_check(self, spec):
            events.append(("checking", spec.name))

        def after_check(self, spec):
            events.append(("checked", spec.name))

        def after_segment(self, segment, outputs):
            events.append(("after", segment.name, tuple(outputs)))

    Orchestrator(demo_bundle, hooks=[Recorder()]).run({"mix": golden["mix"]})
    expected = [("checking", "mix"), ("checked", "mix")]
    for segment in demo_bundle.segments:
        expected += [("before", segment.name, segment.inputs), ("computed", segment.name)]
        for name in segment.outputs:
            expected += [("checking", name), ("checked", name)]
        expected.append(("after", segment.name, segment.outputs))
    assert events == expected


def test_tensors_are_freed_after_their_last_consumer(demo_bundle, golden):
    alive: dict[str, weakref.ref] = {}
    seen = {}

    class Watch(Hook):
        def before_segment(self, segment, inputs):
            gc.collect()
            seen[segment.name] = {name for name, ref in alive.items() if ref() is not None}

        def after_segment(self, segment, outputs):
            alive.update({name: weakref.ref(array) for name, array in outputs.items()})

    Orchestrator(demo_bundle, hooks=[Watch()]).run({"mix": golden["mix"]})
    statistics = {"spectrogram_mean", "spectrogram_std", "waveform_mean", "waveform_std"}
    assert seen["transformer"].isdisjoint({"spectrogram", "waveform"})
    assert {"skip_freq_0", "freq_encoded"} <= seen["transformer"]
    assert "freq_encoded" not in seen["decoder"]
    assert seen["synthesis"] == statistics | {"stem_spectrograms", "stem_waveforms"}


def test_misaligned_input_is_computed_like_any_other(demo_bundle, golden):
    raw = np.empty(golden["mix"].nbytes + 4, np.uint8)
    mix = raw[4:].view(np.float32).reshape(golden["mix"].shape)
    mix[:] = golden["mix"]
    assert np.array_equal(Orchestrator(demo_bundle).run({"mix": mix})["stems"], golden["stems"])


def test_coreml_engine_hands_names_and_units_over(demo_bundle, golden, monkeypatch):
    """With a stand-in for Core ML's own model class: what only a Mac can show is not shown here."""
    asked = {}

    class Model:
        def __init__(self, path, compute_units, function_name):
            asked.update(path=path, units=compute_units, function=function_name)

        def predict(self, data):
            asked["inputs"] = sorted(data)
            inner = TorchEngine(demo_bundle, demo_bundle.segment("encoder"), compute_units="ALL")
            return {name: np.asarray(value, np.float64) for name, value in inner.run(data).items()}

    monkeypatch.setattr(ct.models, "MLModel", Model)
    segment = demo_bundle.segment("encoder")
    CoreMLEngine(
        demo_bundle,
        segment.model_copy(update={"artifact": segment.artifact.model_copy(update={"function": "short"})}),
        compute_units="ALL",
    )
    assert asked["function"] == "short"
    made = CoreMLEngine(demo_bundle, segment, compute_units="CPU_AND_NE")
    assert asked["function"] is None
    results = made.run({"spectrogram": golden["spectrogram"], "waveform": golden["waveform"]})
    assert asked["path"].endswith("encoder.mlpackage")
    assert asked["units"] is ct.ComputeUnit.CPU_AND_NE
    assert asked["inputs"] == ["spectrogram", "waveform"]
    assert results["freq_encoded"].dtype == np.float32
    assert np.array_equal(results["freq_encoded"], golden["freq_encoded"])


def test_coreml_that_refuses_a_package_is_named(demo_bundle, monkeypatch):
    def refuse(path, compute_units, function_name):
        raise RuntimeError("Error compiling model")

    monkeypatch.setattr(ct.models, "MLModel", refuse)
    with pytest.raises(EngineError, match=r"Core ML cannot load encoder\.mlpackage; got Error compiling model"):
        CoreMLEngine(demo_bundle, demo_bundle.segment("encoder"), compute_units="ALL")


def test_segments_serve_one_run_at_a_time(demo_bundle):
    """Two runs at once come out as alone, and never meet in a segment."""
    golden = demo_bundle.goldens()
    orchestrator = Orchestrator(demo_bundle)
    meetings, most = {}, {}

    class Counted:
        place = ""

        def __init__(self, engine, segment):
            self.engine, self.segment, self.name = engine, segment, engine.name

        def run(self, inputs):
            meetings[self.segment] = meetings.get(self.segment, 0) + 1
            most[self.segment] = max(most.get(self.segment, 0), meetings[self.segment])
            try:
                return self.engine.run(inputs)
            finally:
                meetings[self.segment] -= 1

    for name, one in orchestrator.engines.items():
        orchestrator.engines[name] = Counted(one, name)
    alone = orchestrator.run({"mix": golden["mix"]})["stems"]
    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(orchestrator.run, {"mix": golden["mix"]}) for _ in range(6)]
        assert all(np.array_equal(run.result()["stems"], alone) for run in runs)
    assert set(most.values()) == {1}
