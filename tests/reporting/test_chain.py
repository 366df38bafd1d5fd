from dataclasses import replace

import numpy as np
import pytest

from splitter.plan.schema import WeightsForm
from splitter.reporting import chain
from splitter.runtime.engines import Engine, engine
from splitter.runtime.engines.mil_engine import MilEngine
from splitter.runtime.engines.numpy_engine import NumPyEngine
from splitter.runtime.orchestrator import Orchestrator
from splitter.verification import transformer
from splitter.verification.transformer import TappedTransformer

from ..conftest import snr_db

TAPS = ["embedded", "embedded_t"]
TAPS += [f"layers{branch}.{layer}.norm_out" for layer in range(5) for branch in ("", "_t")]
QUICK = [("transformer", "torch")]  # nothing to compile


def run(bundle, engines):
    seen = chain.Seen()
    orchestrator = Orchestrator(bundle, chain.chosen_engines(bundle, engines), hooks=[seen])
    return chain.run(orchestrator, seen, bundle.goldens())


def points(found):
    return {(one.segment, one.name): one for one in found.points}


def test_what_ships_is_what_runs(demo_bundle):
    assert chain.chosen_engines(demo_bundle, []) == {
        "analysis": "numpy",
        "encoder": "mil",
        "transformer": "jax",
        "decoder": "mil",
        "synthesis": "numpy",
    }
    asked = [("encoder", "torch"), ("encoder", "mil")]
    assert chain.chosen_engines(demo_bundle, asked)["encoder"] == "torch", "the first one counts"


def test_the_captured_graph_itself_is_exact_at_every_point(demo_bundle):
    found = run(demo_bundle, [(segment.name, "torch") for segment in demo_bundle.segments])
    assert len(found.points) == len(demo_bundle.tensors) - 1 + len(TAPS) + 4
    assert {one.accumulated.max_abs for one in found.points} == {0.0}
    assert {one.local.max_abs for one in found.points if one.kind == "boundary"} == {0.0}
    assert not found.error
    assert not found.taps


def test_points_are_what_the_split_handed_over(demo_bundle):
    golden = demo_bundle.goldens()
    engines = chain.chosen_engines(demo_bundle, QUICK)
    found = run(demo_bundle, QUICK)
    assert found.engines == engines
    seen = chain.Seen()
    outputs = Orchestrator(demo_bundle, engines, hooks=[seen]).run({"mix": golden["mix"]})
    for (_, name), point in points(found).items():
        if point.kind == "boundary":
            assert point.accumulated.snr_db == pytest.approx(snr_db(golden[name], seen.arrays[name]), abs=0.1)
    stems = {}
    for index, stem in enumerate(demo_bundle.audio.stems):
        stems[stem] = snr_db(golden["stems"][0, index], outputs["stems"][0, index])
        assert points(found)["synthesis", stem].accumulated.snr_db == pytest.approx(stems[stem], abs=0.1)
    assert found.worst_stem.name == min(stems, key=stems.get)
    assert 100 < min(stems.values()) < 200


@pytest.mark.parametrize("engine", ["numpy", "torch"])
def test_taps_are_seen_in_a_run_of_the_split(demo_bundle, engine):
    found = run(demo_bundle, [("transformer", engine), ("decoder", "torch")])
    taps = [one for one in found.points if one.kind == "tap"]
    assert [one.name for one in taps] == TAPS
    assert all(100 < one.accumulated.snr_db < 200 for one in taps), "what the encoder's package changed is in them"
    assert {one.segment for one in taps} == {"transformer"}


def test_taps_are_seen_where_jax_ran(demo_bundle):
    segment, golden = demo_bundle.segment("transformer"), demo_bundle.goldens()
    inputs = {name: golden[name] for name in segment.inputs}
    wanted = ["embedded_t", "layers.0.norm_out"]
    by_jax, by_numpy = (
        engine(name)(demo_bundle, segment, compute_units="ALL").run_with_taps(inputs, wanted)
        for name in ("jax", "numpy")
    )
    assert list(by_numpy) == wanted
    assert by_jax.keys() == by_numpy.keys()
    assert all(snr_db(by_numpy[name], by_jax[name]) > 110 for name in wanted)


def test_an_error_is_local_where_it_is_made_and_accumulated_behind(demo_bundle, monkeypatch):
    inner = MilEngine.run

    def noisy(self, inputs):
        results = inner(self, inputs)
        if "freq_encoded" in results:
            noise = np.random.default_rng(0).standard_normal(results["freq_encoded"].shape)
            results["freq_encoded"] += np.float32(1e-3 * results["freq_encoded"].std() * noise)
        return results

    monkeypatch.setattr(MilEngine, "run", noisy)
    found = points(run(demo_bundle, QUICK))
    made = found["encoder", "freq_encoded"]
    assert made.local.snr_db == pytest.approx(60, abs=1)
    assert made.accumulated.snr_db == pytest.approx(made.local.snr_db, abs=0.1)
    assert found["encoder", "time_encoded"].accumulated.snr_db > 100
    behind = found["transformer", "freq_transformed"]
    assert behind.local.snr_db > 110
    assert behind.accumulated.snr_db < 100
    assert found["transformer", "layers.0.norm_out"].accumulated.snr_db < 100


def test_a_run_that_breaks_is_told_up_to_where_it_broke(demo_bundle, monkeypatch):
    inner = MilEngine.run

    def broken(self, inputs):
        results = inner(self, inputs)
        if "freq_encoded" in results:
            results["freq_encoded"] = np.full_like(results["freq_encoded"], np.nan)
        return results

    monkeypatch.setattr(MilEngine, "run", broken)
    found = run(demo_bundle, QUICK)
    assert "freq_encoded" in found.error
    assert found.stems is None
    assert found.worst_stem is None
    assert found.taps == "the run did not get there"
    by_name = points(found)
    assert by_name["analysis", "spectrogram"].accumulated is not None
    broken_at = by_name["encoder", "freq_encoded"]
    assert broken_at.accumulated is None
    assert not broken_at.local.finite
    behind = by_name["decoder", "stem_waveforms"]
    assert behind.accumulated is None
    assert behind.local.snr_db > 100
    assert not any(one.kind in ("tap", "stem") for one in found.points)


def test_compressed_weights_are_no_part_of_the_reference(demo_bundle, monkeypatch):
    """A port is not blamed for them; a report of the whole split must count them."""
    replaced = []
    monkeypatch.setattr(WeightsForm, "is_lossless", property(lambda form: False))
    monkeypatch.setattr(transformer, "with_stored_weights", lambda bundle, segment: replaced.append(segment) or bundle)
    run(demo_bundle, [("transformer", "torch")])
    assert not replaced
    TappedTransformer(demo_bundle)
    assert len(replaced) == 1


def test_engines_that_cannot_be_looked_into_say_so(demo_bundle, monkeypatch):
    monkeypatch.setattr(NumPyEngine, "name", "opaque")
    monkeypatch.setattr(NumPyEngine, "run_with_taps", Engine.run_with_taps)
    found = run(demo_bundle, [("transformer", "numpy")])
    assert found.taps == "the engine 'opaque' cannot be looked into"
    assert not any(one.kind == "tap" for one in found.points)


def test_a_model_of_one_stem_may_have_no_axis_of_stems(packages_bundle):
    """Of a module that names what it separates, and returns (1, channels, samples)."""
    assert packages_bundle.audio.stems == ("restored",)
    found = run(packages_bundle, [])
    assert found.stems.shape == (1, packages_bundle.audio.channels, packages_bundle.audio.samples)
    assert {point.kind for point in found.points} == {"boundary", "stem"}


def test_an_output_that_holds_no_stems_is_told_of_as_a_tensor(packages_bundle):
    audio = packages_bundle.manifest.model.audio.model_copy(update={"stems": ("one", "two")})
    model = packages_bundle.manifest.model.model_copy(update={"audio": audio})
    manifest = packages_bundle.manifest.model_copy(update={"model": model})
    found = run(replace(packages_bundle, manifest=manifest), [])
    assert found.stems is None
    assert {point.kind for point in found.points} == {"boundary"}
