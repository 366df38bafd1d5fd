"""Separators of every family on the host for Apple devices, against the Python host."""

import pytest
import soundfile
from click.testing import CliRunner
from safetensors.numpy import load_file
from splitter_weights.demo import songs

import splitter
from splitter.bundle.directory import load
from splitter.cli.shell import command
from splitter.runtime.orchestrator import Hook, Orchestrator
from splitter.separation.separator import Options, Separator

from ..conftest import snr_db
from ..models import test_demucs, test_openunmix, test_roformer
from .conftest import host

pytestmark = [pytest.mark.swift, pytest.mark.timeout(900)]
ENGINES = {"host": "numpy", "coreml": "mil"}


def mel(folder):
    return splitter.build(test_roformer.written(folder, "mel"), folder / "bundle", random_init=3, reference=False)


def bs(folder):
    return splitter.build(test_roformer.written(folder, "bs"), folder / "bundle", random_init=3, reference=False)


def demucs(folder):
    return splitter.build(test_demucs.separator("demucs"), folder / "bundle", reference=False)


def hdemucs(folder):
    return splitter.build(test_demucs.separator("hdemucs"), folder / "bundle", reference=False)


@pytest.mark.parametrize(
    ("build", "near"),  # decibels; norms of RoFormers with random weights make more of the last bits
    [
        (mel, 90),
        pytest.param(bs, 90, marks=pytest.mark.slow),
        pytest.param(demucs, 100, marks=pytest.mark.slow),
        pytest.param(hdemucs, 100, marks=pytest.mark.slow),
    ],
)
def test_a_separator_is_run_as_python_runs_it(tmp_path, build, near):
    (bundle,) = build(tmp_path).members
    boundaries_are_as_near_as_pythons(bundle, tmp_path / "host.safetensors")
    rate, samples = bundle.audio.samplerate, 3 * bundle.audio.samples + 1001
    song = songs.mixture(songs.synthesise(samples / rate + 0.1, 5, rate))[:, :samples]
    soundfile.write(tmp_path / "song.wav", song.T, rate, subtype="FLOAT")
    ran = host("separate", tmp_path / "song.wav", "-b", bundle.path, "-o", tmp_path / "stems")
    assert ran.returncode == 0, ran.stderr
    engines = {segment.name: ENGINES[segment.artifact.target] for segment in bundle.segments}
    for stem, expected in Separator(bundle, engines, options=Options())(song, rate).items():
        found, _ = soundfile.read(tmp_path / "stems" / f"{stem}.wav", dtype="float32")
        assert snr_db(expected, found.T) > near, stem


def boundaries_are_as_near_as_pythons(bundle, path):
    """To the goldens, but for 6 dB; and steps of the host's stages by themselves."""
    ran = host("verify", bundle.path, "--min-db", "-1000", "-o", path)
    assert ran.returncode == 0, ran.stderr
    found, goldens, seen = load_file(path), bundle.goldens(), {}

    class Watch(Hook):
        def after_segment(self, segment, outputs):
            seen.update(outputs)

    engines = {segment.name: ENGINES[segment.artifact.target] for segment in bundle.segments}
    Orchestrator(bundle, engines, hooks=[Watch()]).run({name: goldens[name] for name in bundle.inputs})
    assert found.keys() == seen.keys()
    for name in (name for name in seen if seen[name].size > 1):
        assert snr_db(goldens[name], found[name]) > min(120, snr_db(goldens[name], seen[name])) - 6, name
    if any(segment.artifact.target == "host" for segment in bundle.segments):
        assert host("dump", bundle.path, "-o", path).returncode == 0
        report = CliRunner().invoke(command, ["verify-port", str(path), "-b", str(bundle.path)])
        assert report.exit_code == 0, report.output


@pytest.mark.slow
def test_what_no_stage_of_the_host_can_be_is_refused(tmp_path):
    """The filter of Open-Unmix stays a graph, which takes PyTorch."""
    splitter.build(test_openunmix.separator(), tmp_path / "bundle", segment=3000 / 44_100, reference=False)
    assert load(tmp_path / "bundle").members[0].segment("synthesis").artifact.target == "graph"
    ran = host("verify", tmp_path / "bundle")
    assert ran.returncode == 1
    assert "segment synthesis must be for host, coreml or kernels; received graph" in ran.stderr
