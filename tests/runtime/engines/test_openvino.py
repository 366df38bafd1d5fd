import subprocess
import sys

import numpy as np
import pytest

from splitter import Orchestrator, cache
from splitter.errors import EngineError
from splitter.runtime.engines import openvino_engine
from splitter.runtime.engines.openvino_engine import OpenVINOBFloat16Engine, OpenVINOEngine

from ...conftest import snr_db
from ...sealing import flip


def test_it_runs_what_lies_between_the_host_stages(demo_bundle, monkeypatch):
    assert "host's stages" in OpenVINOEngine.unsupported_reason(demo_bundle.segment("analysis"))
    monkeypatch.setattr(openvino_engine, "find_spec", lambda name: None)
    assert "not installed" in OpenVINOEngine.unsupported_reason(demo_bundle.segment("encoder"))
    with pytest.raises(EngineError, match="the extra `openvino`"):
        Orchestrator(demo_bundle, {"encoder": "openvino"})


@pytest.mark.parametrize(("capabilities", "able"), [(("FP32", "INT8"), False), (("FP32", "BF16"), True)])
def test_bfloat16_runs_where_the_processor_computes_in_it(demo_bundle, monkeypatch, capabilities, able):
    monkeypatch.setattr(openvino_engine, "find_spec", lambda name: object())
    monkeypatch.setattr(openvino_engine, "_capabilities", lambda: capabilities)
    assert (OpenVINOBFloat16Engine.unsupported_reason(demo_bundle.segment("encoder")) is None) == able
    assert "host's stages" in OpenVINOBFloat16Engine.unsupported_reason(demo_bundle.segment("analysis"))
    assert OpenVINOBFloat16Engine.max_time_ratio is None, "never chosen for its speed alone"


@pytest.fixture
def home(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "user_cache_path", lambda name: tmp_path / name)
    return tmp_path / "splitter" / "openvino"


def test_segments_come_near_the_golden_and_are_converted_once(demo_bundle, home, monkeypatch):
    pytest.importorskip("openvino", reason="OpenVINO is not installed (the extra `openvino`)")
    golden = demo_bundle.goldens()
    for name in ("encoder", "transformer"):
        segment = demo_bundle.segment(name)
        given = {tensor: golden[tensor] for tensor in segment.inputs}
        engine = OpenVINOEngine(demo_bundle, segment, compute_units="ALL")
        first = engine.run(given)
        assert list(first) == list(segment.outputs)
        assert all(first[tensor].dtype == np.float32 for tensor in segment.outputs)
        assert min(snr_db(golden[tensor], first[tensor]) for tensor in segment.outputs) >= 110
        engine.run({tensor: np.zeros_like(array) for tensor, array in given.items()})
        assert min(snr_db(golden[tensor], first[tensor]) for tensor in segment.outputs) >= 110, "a result is its own"
    assert len(list(home.iterdir())) == 2, "and nothing of the staging is left"
    monkeypatch.setattr(openvino_engine, "converted", lambda program: pytest.fail("converted again"))
    again = OpenVINOEngine(demo_bundle, segment, compute_units="ALL").run(given)
    assert all(np.array_equal(again[tensor], first[tensor]) for tensor in segment.outputs)


def test_a_flipped_byte_in_the_cache_is_converted_again(demo_bundle, home):
    pytest.importorskip("openvino", reason="OpenVINO is not installed (the extra `openvino`)")
    segment, golden = demo_bundle.segment("encoder"), demo_bundle.goldens()
    OpenVINOEngine(demo_bundle, segment, compute_units="ALL")
    (kept,) = home.rglob("*.bin")
    before = kept.read_bytes()
    flip(kept, len(before) // 2)
    results = OpenVINOEngine(demo_bundle, segment, compute_units="ALL").run(
        {name: golden[name] for name in segment.inputs}
    )
    assert kept.read_bytes() == before
    assert min(snr_db(golden[name], results[name]) for name in segment.outputs) >= 110


def test_what_cannot_be_converted_is_one_error(demo_bundle, home, monkeypatch):
    pytest.importorskip("openvino", reason="OpenVINO is not installed (the extra `openvino`)")

    def refuse(program):
        raise RuntimeError("no rule for aten.stft")

    monkeypatch.setattr(openvino_engine, "converted", refuse)
    with pytest.raises(EngineError, match=r"cannot convert or compile segment 'encoder'; got no rule for aten\.stft"):
        OpenVINOEngine(demo_bundle, demo_bundle.segment("encoder"), compute_units="ALL")
    assert not list(home.iterdir())


@pytest.mark.parametrize("there", [False, True])
def test_importing_it_reports_to_nobody(there):
    pytest.importorskip("openvino_telemetry", reason="OpenVINO is not installed (the extra `openvino`)")
    before = "import openvino_telemetry as telemetry" if there else "telemetry = None"
    script = f"""
import sys
{before}
from splitter.runtime.engines.openvino_engine import imported_silently
assert imported_silently().Core().available_devices
from openvino.tools.ovc import telemetry_utils
assert telemetry_utils.tm.__name__ == "openvino.tools.ovc.telemetry_stub"
assert sys.modules.get("openvino_telemetry") is telemetry
"""
    subprocess.run([sys.executable, "-c", script], check=True)
