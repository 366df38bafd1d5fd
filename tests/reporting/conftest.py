"""One report of the demo bundle, for all tests that only look at it."""

import pytest

from splitter import reporting
from splitter.bundle.directory import Bundle
from splitter.lowering.kernels import checks as kernel_causes
from splitter.profiling import limits, memory
from splitter.runtime.engines import engine

from ..conftest import FRESH, LIMITS


@pytest.fixture(scope="session")
def findings(demo_path):
    """What ships runs, but for JAX, which takes seconds to compile; memory and the machine are not measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel_causes, "engine", lambda name: engine("numpy" if name == "jax" else name))
        patch.setattr(memory, "measured", lambda *asked: FRESH)
        patch.setattr(limits, "measured", lambda: LIMITS)
        return reporting.gather(Bundle.load(demo_path), [("transformer", "numpy")], runs=1)


@pytest.fixture(scope="session")
def page(findings) -> str:
    return reporting.render(findings)
