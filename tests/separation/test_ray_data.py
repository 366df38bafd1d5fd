"""The stage by itself, and on a real cluster of one machine where Ray is installed."""

import importlib.util
import json
import os
import subprocess
import sys

import pytest

from splitter.errors import EngineError
from splitter.separation import selection
from splitter.separation.ray_data import SeparateTracks

from ..conftest import ROOT
from .test_batch import content, noise


def test_rows_say_what_became_of_them(tmp_path, toy_path):
    stage = SeparateTracks(str(toy_path), str(tmp_path / "out"), engines="default")
    track, broken = noise(tmp_path / "a.wav"), tmp_path / "b.wav"
    broken.write_text("no sound")
    row = stage({"path": str(track), "year": 1999})
    stems = {name: str(tmp_path / "out" / "duo" / "a" / f"{name}.wav") for name in ("kept", "rest")}
    assert row == {"path": str(track), "stems": stems, "error": None, "attempts": 1}
    assert stage({"path": str(track)}) == row | {"attempts": 0}
    row = stage({"path": str(broken)})
    assert row["stems"] == {"kept": None, "rest": None}
    assert "b.wav cannot be read as audio" in row["error"]


def test_rows_may_bring_the_sound(tmp_path, toy_path):
    track = noise(tmp_path / "a.wav")
    of_path = SeparateTracks(str(toy_path), str(tmp_path / "paths"), engines="default")({"path": str(track)})
    stage = SeparateTracks(str(toy_path), str(tmp_path / "bytes"), engines="default")
    row = stage({"path": "bucket/a.wav", "bytes": track.read_bytes()})
    assert row["path"] == "bucket/a.wav"
    assert stage({"path": "bucket/a.wav", "bytes": track.read_bytes()})["attempts"] == 0
    made, expected = content(tmp_path / "bytes"), content(tmp_path / "paths")
    assert {name: stem for name, (_, stem) in made.items()} == {name: stem for name, (_, stem) in expected.items()}
    assert set(row["stems"]) == set(of_path["stems"])
    assert "c.wav" in stage({"path": "bucket/c.wav", "bytes": b"no sound"})["error"]


def test_engines_are_chosen_by_measurement_as_everywhere(tmp_path, toy_path, monkeypatch):
    chosen = selection.EngineChoice(engines={"encoder": "torch", "decoder": "torch"}, snr_db=None, trials=())
    asked = []
    monkeypatch.setattr(
        selection, "fastest", lambda members, requested, progress, runs: asked.append(requested) or chosen
    )
    SeparateTracks(str(toy_path), str(tmp_path))
    SeparateTracks(str(toy_path), str(tmp_path), engines={"encoder": "torch"})
    assert asked == [{}, {"encoder": "torch"}]


def test_what_no_row_can_mend_is_raised_at_once(tmp_path, toy_path):
    with pytest.raises(EngineError, match="'numpy'"):
        SeparateTracks(str(toy_path), str(tmp_path), engines={"encoder": "numpy"})


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed: pip install 'splitter[ray]'")
def test_a_local_cluster_separates_a_library(tmp_path, toy_path):
    """The example as it stands: a broken song stops nothing, and what was done before is left alone."""
    songs = [noise(tmp_path / f"{index}.wav", index) for index in range(3)]
    songs[1].write_text("no sound")
    SeparateTracks(str(toy_path), str(tmp_path / "out"), engines="default")({"path": str(songs[2])})
    command = [sys.executable, ROOT / "examples" / "library.py", toy_path, tmp_path / "out", *songs]
    env = {**os.environ, "HOME": str(tmp_path), "RAY_USAGE_STATS_ENABLED": "0"}  # Ray leaves files at home
    result = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=env, check=False)
    assert result.returncode == 0, result.stderr
    rows = {row["path"]: row for row in map(json.loads, result.stdout.splitlines())}
    done, failed, before = (rows.pop(str(song)) for song in songs)
    assert not rows
    assert "1.wav cannot be read as audio" in failed["error"]
    assert (done["error"], done["attempts"], before["error"], before["attempts"]) == (None, 1, None, 0)
    assert len(content(tmp_path / "out")) == 4
