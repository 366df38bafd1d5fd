"""What only a Mac can show, for the first one that runs these tests. **Not run here**: nobody has run them yet."""

import platform
import subprocess

import pytest

from splitter.runtime.engines.coreml_engine import CoreMLEngine
from splitter.runtime.orchestrator import Orchestrator

from .conftest import ROOT

pytestmark = [
    pytest.mark.mac,
    pytest.mark.skipif(platform.system() != "Darwin", reason="needs a Mac"),
]
METAL = ROOT / "kernels" / "splitter_kernels" / "metal"


@pytest.mark.parametrize("units", ["CPU_ONLY", "CPU_AND_GPU", "CPU_AND_NE", "ALL"])
def test_core_ml_reaches_the_plans_snr(demo_bundle, units):
    limit = demo_bundle.manifest.plan.tolerances.coreml_snr_db[units]
    engines = {"encoder": "coreml", "decoder": "coreml"}
    orchestrator = Orchestrator(demo_bundle, engines, compute_units=units, golden_snr_db=limit)
    goldens = demo_bundle.goldens()
    orchestrator.run({name: goldens[name] for name in demo_bundle.inputs})


def test_placement_is_read_back(demo_bundle):
    engine = CoreMLEngine(demo_bundle, demo_bundle.segment("encoder"), compute_units="ALL")
    assert engine.device_figures().devices


@pytest.mark.parametrize("storage", ["float", "half"])
@pytest.mark.parametrize("source", sorted(METAL.glob("*.metal")), ids=lambda path: path.stem)
def test_apples_compiler_takes_the_kernels(tmp_path, source, storage):
    command = ["xcrun", "-sdk", "macosx", "metal", "-fno-fast-math", "-Werror", f"-DSTORAGE={storage}", "-c", source]
    result = subprocess.run([*command, "-o", tmp_path / "kernels.air"], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
