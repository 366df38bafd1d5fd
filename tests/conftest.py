"""Shared fixtures. Shapes in the kernels' signatures are checked at run time here, and only here."""

from __future__ import annotations

import functools
import os
from pathlib import Path

if "PYTEST_XDIST_WORKER" in os.environ:  # one thread each, in the processes they start as well; before torch counts
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import soundfile
from filelock import FileLock
from jaxtyping import install_import_hook

with install_import_hook("splitter_kernels", "beartype.beartype"):
    pass

from splitter_weights import checkpoints
from splitter_weights.demo import songs

import splitter
from splitter import limits
from splitter.bundle.directory import Bundle
from splitter.profiling import limits as machine
from splitter.profiling import memory
from splitter.profiling.records import Limits, Memory
from splitter.runtime import heap

from .toys import GRAPHS_PLAN, PACKAGES_PLAN, duo, separating

ROOT = Path(__file__).parent.parent
DATA = Path(os.environ.get("SPLITTER_DATA", ROOT.parent / "shared" / "data"))
FRESH = memory.Fresh(
    load_seconds=0.5, memory=Memory(loaded=1_000_000, running=2_000_000, process=9_000_000, how="kernel")
)
LIMITS = Limits(flops_per_second=1e9, bytes_per_second=1e8)


def pytest_collection_modifyitems(items):
    skip = pytest.mark.skip(reason=f"the released model is not in {DATA} ($SPLITTER_DATA says where)")
    for item in items:
        if item.get_closest_marker("real"):
            item.add_marker(pytest.mark.timeout(1800))
            if not (DATA / "models").is_dir():
                item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory):
    """The user's cache neither helps the tests nor is filled by them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def heap_as_it_is():
    """What the command line does to the heap of its process would stay with the tests', and some measure memory."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heap, "keep_freed", functools.wraps(heap.keep_freed)(lambda: None))
        yield


@pytest.fixture(autouse=True)
def memory_limit_as_it_is():
    """What one test allows, or a command line does, is nothing to the next."""
    before = os.environ.get(limits.VARIABLE)
    yield
    os.environ.pop(limits.VARIABLE, None)
    if before is not None:
        os.environ[limits.VARIABLE] = before


@pytest.fixture(scope="session")
def shared(tmp_path_factory) -> Path:
    """A directory that all workers have in common."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


@pytest.fixture(scope="session")
def demo_path(shared) -> Path:
    """To be read only: all workers have it in common."""
    path = shared / "demo.bundle"
    with FileLock(shared / "demo.lock"):
        if not path.exists():
            splitter.build("demo", path)
    return path


@pytest.fixture
def demo_bundle(demo_path) -> Bundle:
    return Bundle.load(demo_path)


@pytest.fixture(scope="session")
def demo_model():
    return checkpoints.load("demo").members[0].model


@pytest.fixture(scope="session")
def song_path(tmp_path_factory) -> Path:
    """Five seconds that the demo model was not trained on."""
    path = tmp_path_factory.mktemp("songs") / "song.wav"
    soundfile.write(path, songs.mixture(songs.synthesise(5.0, 1_000_001)).T, 44_100, subtype="FLOAT")
    return path


@pytest.fixture(scope="session")
def toy_path(tmp_path_factory) -> Path:
    """A bundle that gives two stems and takes next to no time."""
    path = tmp_path_factory.mktemp("toy") / "toy.bundle"
    splitter.build(duo(), path, plan=GRAPHS_PLAN)
    return path


@pytest.fixture(scope="session")
def packages_bundle(tmp_path_factory) -> Bundle:
    """To be read only: stages like the demo's, its transformer a package too, in a hundredth of the operations."""
    path = tmp_path_factory.mktemp("packages") / "packages.bundle"
    return splitter.build(separating(), path, plan=PACKAGES_PLAN).members[0]


@pytest.fixture
def quick_profile(monkeypatch):
    """Without the processes that measure memory, one an engine, and without measuring the machine."""
    monkeypatch.setattr(memory, "measured", lambda *asked: FRESH)
    monkeypatch.setattr(machine, "measured", lambda: LIMITS)


def snr_db(reference: np.ndarray, candidate: np.ndarray) -> float:
    """Written again here, so that the tests do not lean on the code they test."""
    reference, candidate = reference.astype(np.float64), candidate.astype(np.float64)
    noise = np.sum((reference - candidate) ** 2)
    return float("inf") if noise == 0 else float(10 * np.log10(np.sum(reference**2) / noise))
