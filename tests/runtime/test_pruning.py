import numpy as np
import pytest

from splitter import Orchestrator
from splitter.profiling import work

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
