"""JAX on kernels and on captured graphs.

What it keeps of its compiling is decided once in a process, so each case of that has its own.
"""

import contextlib
import os
import subprocess
import sys

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner
from torch import nn

import splitter
from splitter import Orchestrator
from splitter.aten import ops
from splitter.aten.executor import CompiledProgram
from splitter.cli.shell import command
from splitter.errors import OperatorError
from splitter.graph.program import Program
from splitter.parity import compare
from splitter.runtime.engines.jax_engine import JaxEngine
from splitter.separation import selection

from ...conftest import snr_db

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


# ------------------------------------------------------------------------------- captured graphs


def near(bundle, name, results):
    """Every output of a segment against the golden one; a mean that is nearly zero by its difference."""
    golden, limit = bundle.goldens(), bundle.manifest.plan.tolerances.negligible_max_abs
    assert list(results) == list(bundle.segment(name).outputs)
    for tensor, array in results.items():
        assert array.dtype == golden[tensor].dtype
        assert compare(golden[tensor], array).reaches(115, limit), (tensor, compare(golden[tensor], array))


def given(bundle, name):
    golden = bundle.goldens()
    return {tensor: golden[tensor] for tensor in bundle.segment(name).inputs}


@pytest.mark.parametrize("name", ["analysis", "encoder", "decoder", "synthesis"])
def test_captured_segments_come_near_the_golden(demo_bundle, name):
    engine = JaxEngine(demo_bundle, demo_bundle.segment(name), compute_units="ALL")
    near(demo_bundle, name, engine.run(given(demo_bundle, name)))


def test_the_transformer_has_a_third_implementation(demo_bundle):
    """Its engine runs the kernels; its captured graph gives the same."""
    program = demo_bundle.program(demo_bundle.segment("transformer").program)
    near(demo_bundle, "transformer", CompiledProgram(program).run(given(demo_bundle, "transformer")))


def test_it_is_measured_where_it_was_written_by_hand(demo_bundle):
    measured = {segment.name for segment in demo_bundle.segments if JaxEngine.is_measured(segment)}
    assert measured == {"transformer"}
    assert [JaxEngine.unsupported_reason(segment) for segment in demo_bundle.segments] == [None] * 5
    assert "jax" not in selection._rivals([demo_bundle], demo_bundle.segment("encoder"))
    assert "jax" in selection._rivals([demo_bundle], demo_bundle.segment("transformer"))


def test_a_bundle_runs_without_pytorchs_kernels(packages_bundle, monkeypatch):
    orchestrator = Orchestrator(packages_bundle, dict.fromkeys((s.name for s in packages_bundle.segments), "jax"))
    monkeypatch.setattr(Program, "run", lambda *_: pytest.fail("torch ran"))
    golden = packages_bundle.goldens()
    results = orchestrator.run({name: golden[name] for name in packages_bundle.inputs})
    assert all(snr_db(golden[name], results[name]) >= 115 for name in packages_bundle.outputs)


def test_a_song_is_separated_by_it(toy_path, tmp_path):
    """On the command line, every stage of a bundle in which none was lowered."""
    soundfile.write(
        tmp_path / "song.wav", np.random.default_rng(0).uniform(-0.5, 0.5, (2000, 2)), 8000, subtype="FLOAT"
    )
    stages = [segment.name for segment in splitter.load(toy_path).members[0].segments]
    made = {}
    for engine in ("torch", "jax"):
        flags = [f"--engine={stage}={engine}" for stage in stages]
        command_line = ["separate", "song.wav", "-b", toy_path, "-o", engine, "--float32", *flags]
        with contextlib.chdir(tmp_path):
            result = CliRunner().invoke(command, list(map(str, command_line)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
        made[engine] = {path.name: soundfile.read(path)[0] for path in (tmp_path / engine).rglob("*.wav")}
    assert "encoder=jax" in result.output
    assert len(made["jax"]) == 2
    assert min(snr_db(made["torch"][name], made["jax"][name]) for name in made["torch"]) >= 115


def test_an_operator_without_a_function_stops_before_anything_runs(packages_bundle, monkeypatch):
    fewer = {name: record for name, record in ops.registered().items() if "conv" not in name}
    monkeypatch.setattr(ops, "registered", lambda: fewer)
    with pytest.raises(
        OperatorError, match=r"program 'encoder' uses operators that are not implemented in JAX.*aten\.conv"
    ):
        Orchestrator(packages_bundle, {"encoder": "jax"})


class Denoiser(nn.Module):
    """Host stages around a recurrent network: short transforms and complex products."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Conv1d(33, 16, 3, padding=1), nn.GELU())
        self.recurrent = nn.GRU(16, 12, batch_first=True, bidirectional=True)
        self.decoder = nn.Linear(24, 33)
        self.register_buffer("window", torch.hann_window(64))

    def forward(self, sound):
        spectrum = torch.stft(sound, 64, 16, window=self.window, return_complex=True)
        hidden = self.encoder((spectrum.abs() + 1e-3).log())
        mask = torch.sigmoid(self.decoder(self.recurrent(hidden.mT)[0])).mT
        return torch.istft(spectrum * mask, 64, 16, window=self.window, length=sound.shape[-1])


def test_a_recurrent_model_between_short_transforms(tmp_path):
    torch.manual_seed(0)
    model, sound = Denoiser(), np.random.default_rng(0).standard_normal((1, 800), np.float32)
    bundle = splitter.build(model, tmp_path / "b", inputs={"sound": sound}).members[0]
    names = [segment.name for segment in bundle.segments]
    assert len(names) > 2
    engines = Orchestrator(bundle, dict.fromkeys(names, "jax")).engines
    for name in names:
        near(bundle, name, engines[name].run(given(bundle, name)))
