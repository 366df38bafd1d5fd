import shutil

import numpy as np
import pytest

from splitter import profiling, reporting
from splitter.bundle.directory import Bundle
from splitter.errors import AudioError, BundleError, UsageError
from splitter.reporting import findings as gathering
from splitter.reporting.chain import run as run_chain
from splitter.reporting.findings import NotRun, Recorded
from splitter.runtime.engines.mil_engine import MilEngine

from ..conftest import snr_db


@pytest.fixture
def quick(findings, monkeypatch):
    """What others judge is judged already; returns what they were asked."""
    asked = {}
    monkeypatch.setattr(gathering, "verify_bundle", lambda bundle, **given: findings.verification)
    monkeypatch.setattr(
        gathering.doctor, "examine", lambda path, **given: asked.update(doctor=given) or findings.doctor
    )

    def profile(bundle, engines, **given):
        asked["profile"] = (engines, given)
        return findings.profile

    monkeypatch.setattr(profiling, "profile", profile)
    monkeypatch.setattr(gathering.chain, "run", lambda *given: findings.chain)
    monkeypatch.setattr(gathering.listening, "panel", lambda bundle, excerpt: excerpt)
    return asked


def test_report_holds_what_verify_doctor_and_profile_give(findings, demo_bundle):
    assert findings.verification.passed
    assert {one.kind for one in findings.verification.checks} >= {"partition", "conversion", "kernels", "package"}
    assert [one.package.rpartition("/")[2] for one in findings.doctor.diagnoses] == [
        "encoder.mlpackage",
        "decoder.mlpackage",
    ]
    assert all(one.measured for one in findings.doctor.diagnoses)
    assert [one.name for one in findings.listening.stems] == list(demo_bundle.audio.stems)
    for index, stem in enumerate(findings.listening.stems):
        expected = snr_db(demo_bundle.goldens()["stems"][0, index], findings.chain.stems[index])
        assert stem.parity.snr_db == pytest.approx(expected)
    engines = [[one.engine for one in segment.engines] for segment in findings.profile.segments]
    assert engines == [["numpy", "torch"], ["mil", "torch"], ["numpy", "torch"], ["mil", "torch"], ["numpy", "torch"]]


def test_engines_asked_for_are_profiled_and_the_first_runs_the_split(demo_bundle, quick):
    engines = [("encoder", "torch"), ("encoder", "mil"), ("transformer", "numpy")]
    found = reporting.gather(demo_bundle, engines, runs=2, warmup=3, chip="m4")
    assert found.engines["encoder"] == "torch"
    asked, options = quick["profile"]
    of = {segment: [name for one, name in asked if one == segment] for segment in found.engines}
    assert of["encoder"] == ["torch", "mil"]
    assert of["transformer"] == ["numpy", "torch"]
    assert of["decoder"] == ["mil", "torch"]
    assert (options["runs"], options["warmup"]) == (2, 3)
    assert quick["doctor"]["chip"] == "m4"


def test_no_runs_leave_the_profile_out(demo_bundle, quick):
    found = reporting.gather(demo_bundle, runs=0)
    assert found.profile == NotRun("left out with --runs 0")
    assert "profile" not in quick


def test_profiles_come_from_files_with_their_names(demo_bundle, findings, quick, tmp_path):
    second = findings.profile.model_copy(update={"system": "macOS-26"})
    mac = profiling.merged(findings.profile.model_copy(update={"system": "macOS-27"}), [second])
    (tmp_path / "mac.json").write_text(mac.model_dump_json())
    found = reporting.gather(demo_bundle, runs=0, profiles=[tmp_path / "mac.json"])
    assert [(one.file, one.profile.system) for one in found.recorded] == [
        ("mac.json", "macOS-27"),
        ("mac.json", "macOS-26"),
    ]
    assert isinstance(found.recorded[0], Recorded)
    assert not found.recorded[0].profile.others


def test_profile_of_another_model_is_refused(demo_bundle, findings, quick, tmp_path):
    other = findings.profile.model_copy(update={"checkpoint_sha256": "0" * 64})
    (tmp_path / "other.json").write_text(other.model_dump_json())
    with pytest.raises(UsageError, match="one checkpoint and one length"):
        reporting.gather(demo_bundle, profiles=[tmp_path / "other.json"])


def test_file_to_listen_to(demo_bundle, quick, song_path):
    found = reporting.gather(demo_bundle, [("transformer", "torch")], audio=song_path, start=1.0, seconds=1.2, runs=0)
    assert found.listening.title == "song.wav"
    assert found.listening.mixture.shape == (2, 52_920)


def test_file_that_cannot_be_heard_is_an_error_of_the_user(demo_bundle, quick, tmp_path):
    steps = []
    with pytest.raises(AudioError, match="no such file"):
        reporting.gather(demo_bundle, audio=tmp_path / "none.wav", progress=steps.append)
    assert not steps, "it is said before anything runs"


def test_split_that_breaks_is_reported(demo_bundle, quick, song_path, monkeypatch):
    monkeypatch.setattr(gathering.chain, "run", run_chain)
    inner = MilEngine.run

    def broken(self, inputs):
        return {name: np.full_like(array, np.inf) for name, array in inner(self, inputs).items()}

    monkeypatch.setattr(MilEngine, "run", broken)
    for audio in (None, song_path):
        found = reporting.gather(demo_bundle, [("transformer", "torch")], audio=audio, seconds=1.0, runs=0)
        assert isinstance(found.listening, NotRun)
        assert "is not finite" in found.listening.why
        assert found.chain.error
    assert "stopped" in reporting.render(found)


def test_damaged_bundle_is_refused(demo_path, tmp_path):
    shutil.copytree(demo_path, tmp_path / "b")
    with (tmp_path / "b" / "goldens.safetensors").open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    with pytest.raises(BundleError, match="goldens.safetensors was changed after the build: expected SHA-256"):
        reporting.gather(Bundle.load(tmp_path / "b"), runs=0)
