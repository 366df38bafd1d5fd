"""The bundles that `make swift-test` builds, and the host that it builds."""

import os
import subprocess
from pathlib import Path

import pytest

from ..conftest import ROOT

BUILT = ROOT / "swift" / ".build"
HOST = BUILT / "release" / "splitter-host"
ENVIRONMENT = dict(os.environ)  # before the tests' own cache is put in: the toolchain is in the user's


def host(*arguments, **environment):
    """Run `splitter-host` where its libraries are."""
    assert HOST.exists(), "run `make swift-test`"
    return subprocess.run(
        [ROOT / "swift" / "toolchain.sh", HOST, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT | environment,
    )


@pytest.fixture(scope="session")
def demo_path() -> Path:
    return BUILT / "demo.bundle"


@pytest.fixture(scope="session")
def six_path() -> Path:
    return BUILT / "six.bundle"
