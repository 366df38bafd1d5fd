import numpy as np
import pytest

from splitter import Orchestrator
from splitter.profiling import work
from splitter.runtime import heap
from splitter.separation.separator import Separator

_HALF = {"decoder": "torch-optimized", "encoder": "torch-optimized"}


@pytest.mark.parametrize("engines", [{}, _HALF, {"decoder": "mil"}], ids=["torch", "optimized", "package"])
def test_some_stems_of_a_model_are_those_of_all(demo_bundle, engines):
    golden = demo_bundle.goldens()["mix"]
    every = Orchestrator(demo_bundle, engines).run({"mix": golden})["stems"]
    running = Orchestrator(demo_bundle, engines, stems=["drums", "vocals"])
    assert np.array_equal(running.run({"mix": golden})["stems"], every[:, [0, 3]])
    assert running.bundle.audio.stems == ("drums", "vocals")
    assert running.whole == (("decoder",) if "mil" in engines.values() else ()), "a package gives all that it has"
    handed_over = running.bundle.tensors["stem_spectrograms"].shape[1]
    assert handed_over == (16 if running.whole else 8), "of two channels, real and imaginary"


def test_operations_of_other_stems_are_saved(demo_bundle):
    """Count them: of the last layers, 8 → 16 channels of spectrograms and 8 → 8 of waveforms, and inverse transforms."""
    pruned = Orchestrator(demo_bundle, stems=["vocals"]).bundle
    every, one = (
        {segment.name: work.of(bundle.program(segment.program)).flops for segment in bundle.segments}
        for bundle in (demo_bundle, pruned)
    )
    last_layers = 2 * 8 * 8 * (12 * 257 * 130 * 1 + 6 * 16_538)  # kernels of 8 taps that a sample is seen by
    assert every["decoder"] - one["decoder"] == pytest.approx(last_layers, rel=0.01)
    assert one["synthesis"] == every["synthesis"] / 4
    assert all(one[name] == every[name] for name in ("analysis", "encoder", "transformer"))


@pytest.mark.parametrize("engines", [{}, {"synthesis": "numpy"}], ids=["torch", "artifact"])
def test_inverse_transforms_run_stem_by_stem(demo_bundle, engines):
    golden = demo_bundle.goldens()["mix"]
    for stems in (None, ["bass", "vocals"]):
        expected = Orchestrator(demo_bundle, engines, stems=stems).run({"mix": golden})["stems"]
        saving = Orchestrator(demo_bundle, engines, stems=stems, low_memory=True)
        assert len(saving._parts) == (0 if engines else 4 if stems is None else 2)
        assert np.array_equal(saving.run({"mix": golden})["stems"], expected)


def test_a_separator_of_low_memory_gives_the_same(toy_path, monkeypatch):
    asked = []
    monkeypatch.setattr(heap, "give_back", lambda: asked.append(True))
    sound = np.random.default_rng(0).standard_normal((2, 500)).astype(np.float32)
    expected = Separator(toy_path, "default")(sound, 8000)
    assert not asked
    stems = Separator(toy_path, "default", low_memory=True)(sound, 8000)
    assert asked == [True]
    assert all(np.array_equal(stems[name], expected[name]) for name in expected)
