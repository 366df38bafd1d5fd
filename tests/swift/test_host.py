"""The host for Apple devices, run on stand-ins, against the Python one. `make swift-test` builds it."""

import os
import subprocess

import pytest
import soundfile
from click.testing import CliRunner

from splitter.cli.shell import command
from splitter.separation.separator import Options, Separator

from ..conftest import ROOT, snr_db

pytestmark = [pytest.mark.swift, pytest.mark.timeout(900)]
HOST = ROOT / "swift" / ".build" / "release" / "splitter-host"
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


def verified(dump, bundle):
    return CliRunner().invoke(command, ["verify-port", str(dump), "-b", str(bundle)])


@pytest.mark.parametrize("order", ["forward", "shuffled"])
def test_its_transformer_passes_tap_by_tap(demo_path, tmp_path, order):
    dump = tmp_path / "taps.safetensors"
    ran = host("dump", demo_path, "-o", dump, METAL_STANDIN_ORDER=order)
    assert ran.returncode == 0, ran.stderr
    report = verified(dump, demo_path)
    assert report.exit_code == 0, report.output
    assert "no divergence in 174 taps" in report.output


def test_what_it_is_told_wrongly_is_said(demo_path, tmp_path):
    ran = host("verify", tmp_path)
    assert ran.returncode == 1
    assert "must hold manifest.json" in ran.stderr
    ran = host("verify", demo_path, "--min-db", "1000")
    assert ran.returncode == 1
    assert "every boundary must reach" in ran.stderr


def test_its_stems_are_those_of_python(demo_path, song_path, tmp_path):
    song, _ = soundfile.read(song_path, frames=100_000, dtype="float32")
    soundfile.write(tmp_path / "song.wav", song, 44_100, subtype="FLOAT")
    ran = host("separate", tmp_path / "song.wav", "-b", demo_path, "-o", tmp_path / "host", "--seed", "5")
    assert ran.returncode == 0, ran.stderr
    options = Options(seed=5)
    expected = Separator(demo_path, "default", options=options)(song.T, 44_100)
    for stem, sound in expected.items():
        found, rate = soundfile.read(tmp_path / "host" / f"{stem}.wav", dtype="float32")
        assert (found.shape, rate) == (song.shape, 44_100)
        assert snr_db(sound, found.T) > 100, stem
