"""Segments compiled ahead of time: only where they were asked for, and only what was compiled for this machine."""

import pytest

import splitter
from splitter.errors import EngineError
from splitter.parity import compare
from splitter.runtime import engines
from splitter.runtime.engines.aotinductor_engine import AOTInductorEngine
from splitter.separation import selection


@pytest.fixture
def own(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "splitter" / "aotinductor"


def test_a_segment_that_is_not_compiled_says_what_to_do(packages_bundle, own):
    segment = packages_bundle.segment("encoder")
    assert not AOTInductorEngine.is_prepared(packages_bundle, segment)
    assert "aotinductor" not in selection._rivals([packages_bundle], segment)
    with pytest.raises(EngineError, match=r"'encoder' is not compiled for this machine.* Run splitter optimize"):
        engines.loaded("aotinductor", packages_bundle, segment, compute_units="ALL")
    assert not [*own.iterdir()]


def test_without_a_compiler_nothing_is_left_and_the_message_names_one(packages_bundle, own, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(EngineError, match=r"takes a C\+\+ compiler.*apt-get install g\+\+"):
        AOTInductorEngine.prepare(packages_bundle, packages_bundle.segment("encoder"))
    assert not [entry for entry in own.iterdir() if not entry.name.startswith(".")]


@pytest.mark.slow
def test_optimize_compiles_and_measures_and_runs_nothing_that_was_changed(packages_bundle, own, monkeypatch):
    # One segment for all: each takes a C++ compiler many seconds.
    refused = lambda segment: None if segment.name == "encoder" else "the encoder only"  # noqa: E731
    monkeypatch.setattr(AOTInductorEngine, "unsupported_reason", refused)
    encoder, golden, said = packages_bundle.segment("encoder"), packages_bundle.goldens(), []

    choice = splitter.optimize(packages_bundle, progress=said.append)
    assert "preparing aotinductor for encoder, once" in said
    [trial] = [trial for trial in choice.trials if trial.engine == "aotinductor"]
    assert trial.seconds
    assert not trial.failure
    engine = engines.loaded("aotinductor", packages_bundle, encoder, compute_units="ALL")
    for name, result in engine.run({name: golden[name] for name in encoder.inputs}).items():
        assert result.dtype == golden[name].dtype
        assert compare(golden[name], result).reaches(110, 1e-6)

    said.clear()
    assert splitter.optimize(packages_bundle, progress=said.append) == choice
    assert not said  # nothing is compiled or measured again

    compiled = next(own.glob("*/segment.pt2"))
    content = bytearray(compiled.read_bytes())
    content[len(content) // 2] ^= 1
    compiled.write_bytes(content)
    with pytest.raises(EngineError, match="is not compiled for this machine"):
        engines.loaded("aotinductor", packages_bundle, encoder, compute_units="ALL")
    splitter.optimize(packages_bundle)
    engines.loaded("aotinductor", packages_bundle, encoder, compute_units="ALL")
