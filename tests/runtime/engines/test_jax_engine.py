"""What JAX keeps of its compiling is decided once in a process, so each case has its own."""

import os
import subprocess
import sys

import pytest

RUN = """
import hashlib, sys
import jax
from splitter.bundle import directory
from splitter.runtime.engines.jax_engine import JaxEngine

hits = []
jax.monitoring.register_event_listener(lambda event, **_: hits.append(event) if event.endswith("cache_hits") else None)
bundle = directory.single(sys.argv[1])
segment, golden = bundle.segment("transformer"), bundle.goldens()
results = JaxEngine(bundle, segment, compute_units="ALL").run({name: golden[name] for name in segment.inputs})
print(bool(hits), hashlib.sha256(b"".join(results[name].tobytes() for name in segment.outputs)).hexdigest())
"""


@pytest.fixture
def run(demo_path):
    def run(**environment):
        given = os.environ | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | environment
        command = [sys.executable, "-c", RUN, str(demo_path)]
        done = subprocess.run(command, env=given, capture_output=True, text=True, check=True)
        assert done.stderr == ""
        return done.stdout.split()

    return run


@pytest.mark.slow
def test_what_was_compiled_is_kept_in_the_users_cache(run, tmp_path):
    hit, results = run(XDG_CACHE_HOME=str(tmp_path))
    assert hit == "False"
    assert any("transformer" in kept.name for kept in (tmp_path / "splitter" / "xla").iterdir())
    assert run(XDG_CACHE_HOME=str(tmp_path)) == ["True", results]


@pytest.mark.slow
def test_the_user_may_name_another_place(run, tmp_path):
    run(XDG_CACHE_HOME=str(tmp_path / "cache"), JAX_COMPILATION_CACHE_DIR=str(tmp_path / "own"))
    assert any("transformer" in kept.name for kept in (tmp_path / "own").iterdir())
    assert not (tmp_path / "cache").exists()


@pytest.mark.slow
def test_it_runs_where_nothing_can_be_kept(run, tmp_path):
    (tmp_path / "cache").write_text("not a directory")
    assert run(XDG_CACHE_HOME=str(tmp_path / "cache"))[0] == "False"
