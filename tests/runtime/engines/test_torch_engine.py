import pytest

from splitter import Orchestrator
from splitter.errors import EngineError
from splitter.runtime.engines.torch_engine import OptimizedTorchEngine, TorchEngine

from ...conftest import snr_db


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_optimized_segments_come_near_the_golden_without_the_convolutions(demo_bundle, name):
    golden, segment = demo_bundle.goldens(), demo_bundle.segment(name)
    given = {tensor: golden[tensor] for tensor in segment.inputs}
    captured, optimized = (
        kind(demo_bundle, segment, compute_units="ALL") for kind in (TorchEngine, OptimizedTorchEngine)
    )
    results = optimized.run(given)
    assert list(results) == list(segment.outputs)
    assert min(snr_db(golden[tensor], results[tensor]) for tensor in segment.outputs) >= 110
    families, left = [], []
    assert captured.run_in_steps(given, families.append)
    assert optimized.run_in_steps(given, left.append)
    assert left.count("convolution") < families.count("convolution")
    assert left.count("normalization") < families.count("normalization")
    again = captured.run(given)
    assert all((again[tensor] == golden[tensor]).all() for tensor in segment.outputs), (
        "the bundle's program is as it was"
    )


def test_what_the_passes_do_not_rewrite_is_refused(demo_bundle):
    for name in ("analysis", "transformer", "synthesis"):
        with pytest.raises(EngineError, match="takes no graph passes"):
            Orchestrator(demo_bundle, {name: "torch-optimized"})
