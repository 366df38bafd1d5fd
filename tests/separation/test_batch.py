"""Batches of files: all stems or none, each file once, resumed after whatever ended them."""

import dataclasses
import errno
import os
import random
import threading
from concurrent.futures import CancelledError
from pathlib import Path

import numpy as np
import pytest
import soundfile

from benchmarks.processes import workers
from splitter.bundle.directory import Bag, load
from splitter.errors import AudioError, EngineError, InternalError, UsageError, WorkerError
from splitter.runtime.workers import cores
from splitter.separation import batch, receipts
from splitter.separation.batch import ATTEMPTS, deliver, separate_file
from splitter.separation.encoding import Encoding, StemWriter
from splitter.separation.separator import Options, Separator

from ..conftest import snr_db

two_cores = pytest.mark.skipif(cores() < 2, reason="two jobs take two cores")


@pytest.fixture
def bag(demo_bundle):
    return Bag.of(demo_bundle)


@pytest.fixture
def toy(toy_path):
    return load(toy_path)


def separate(files, bag, out, *, engines="default", options=Options(), **more):
    return Separator(bag, engines, options=options).separate(files, out, **more)


def noise(path, seed=0, seconds=0.1):
    sound = np.random.default_rng(seed).uniform(-0.5, 0.5, (int(8000 * seconds), 2))
    soundfile.write(path, sound, 8000)
    return path


def content(directory):
    """Every stem, and which file it is: one that is made again is another."""
    return {path.relative_to(directory).as_posix(): (path.stat().st_ino, path.read_bytes())
            for path in sorted(directory.rglob("*.wav"))}  # fmt: skip


def test_files_appear_where_demucs_puts_them(tmp_path, bag, song_path):
    (outcome,) = separate([song_path], bag, tmp_path / "out", options=Options(shifts=0))
    assert outcome.error is None
    files = sorted(file.relative_to(tmp_path).as_posix() for file in tmp_path.rglob("*.wav"))
    assert files == [f"out/demo/song/{stem}.wav" for stem in ("bass", "drums", "other", "vocals")]
    assert list(outcome.stems) == ["drums", "bass", "other", "vocals"]
    info = soundfile.info(outcome.stems["drums"])
    assert (info.samplerate, info.channels, info.subtype, info.frames) == (44_100, 2, "PCM_16", 220_500)
    assert {file.name for file in (tmp_path / "out" / "demo").iterdir()} == {"song", ".separated"}


def read(path):
    return soundfile.read(path, dtype="float32", always_2d=True)[0].T


@pytest.mark.parametrize("method", ["add", "minus", "none"])
def test_two_stems(tmp_path, bag, song_path, method):
    encoding = Encoding(subtype="FLOAT", clip="none")
    every = separate([song_path], bag, tmp_path / "all", options=Options(shifts=0, encoding=encoding))[0].stems
    options = Options(shifts=0, encoding=encoding, two_stems="vocals", other_method=method)
    two = separate([song_path], bag, tmp_path / "two", options=options)[0].stems
    assert list(two) == ["vocals", *{"add": ["no_vocals"], "minus": ["minus_vocals"], "none": []}[method]]
    assert np.array_equal(read(two["vocals"]), read(every["vocals"]))
    rest = sum(read(every[name]) for name in ("drums", "bass", "other"))
    if method == "add":
        assert snr_db(rest, read(two["no_vocals"])) >= 120
    elif method == "minus":
        mix = soundfile.read(song_path, dtype="float32")[0].T
        assert snr_db(mix - read(every["vocals"]), read(two["minus_vocals"])) >= 120


def test_only_the_stems_that_are_asked_for(tmp_path, bag, song_path):
    encoding = Encoding(subtype="FLOAT", clip="none")
    every = separate([song_path], bag, tmp_path / "all", options=Options(shifts=0, encoding=encoding))[0].stems
    options = Options(shifts=0, encoding=encoding, stems=("vocals", "drums"))
    some = separate([song_path], bag, tmp_path / "some", options=options)[0]
    assert list(some.stems) == ["drums", "vocals"]
    assert all(np.array_equal(read(path), read(every[name])) for name, path in some.stems.items())
    (again,) = separate([song_path], bag, tmp_path / "some", options=options)
    assert again.attempts == 0, "a receipt knows the stems that were asked for"
    (fewer,) = separate([song_path], bag, tmp_path / "some", options=dataclasses.replace(options, stems=("vocals",)))
    assert fewer.attempts == 1


def test_one_bad_file_does_not_stop_the_others(tmp_path, bag, song_path):
    (tmp_path / "bad.wav").write_text("no sound")
    told = []
    outcomes = separate(
        [tmp_path / "bad.wav", song_path], bag, tmp_path / "out", options=Options(shifts=0), done=told.append
    )
    assert told == outcomes
    assert [outcome.error is None for outcome in outcomes] == [False, True]
    assert isinstance(outcomes[0].error, AudioError)
    assert {file.name for file in (tmp_path / "out" / "demo").iterdir()} == {"song", ".separated"}


def test_interrupt_leaves_nothing_half_written(tmp_path, bag, song_path):
    def impatient(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        separate([song_path], bag, tmp_path / "out", options=Options(shifts=0), force=True, progress=impatient)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=two_cores)])
def test_names_that_are_none_stop_nobody(tmp_path, toy, jobs):
    odd = noise(tmp_path / "odd.wav").rename(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.wav"))
    (tmp_path / "loop.wav").symlink_to("loop.wav")
    files = [tmp_path / "loop.wav", odd, noise(tmp_path / "good.wav", 1)]
    outcomes = separate(files, toy, tmp_path / "out", options=Options(shifts=0), jobs=jobs)
    assert [type(outcome.error) for outcome in outcomes] == [AudioError, type(None), type(None)]
    again = separate(files, toy, tmp_path / "out", options=Options(shifts=0), jobs=jobs)
    assert [outcome.attempts for outcome in again] == [1, 0, 0]


def test_what_is_unforeseen_before_a_song_is_that_songs(tmp_path, toy, monkeypatch):
    def fail(separator, path, *rest):
        raise ZeroDivisionError(path.name)

    monkeypatch.setattr("splitter.separation.receipts.complete", fail)
    (outcome,) = separate([noise(tmp_path / "a.wav")], toy, tmp_path / "out")
    assert isinstance(outcome.error, InternalError)
    assert "ZeroDivisionError: a.wav" in str(outcome.error)


def test_a_folder_in_the_way_of_a_stem_is_refused_before_anything_runs(tmp_path, toy, monkeypatch):
    track = noise(tmp_path / "a.wav")
    stems = [*separate([track], toy, tmp_path / "out", options=Options(shifts=0))[0].stems.values()]
    stems[-1].unlink()
    stems[-1].mkdir()
    before = {one: one.read_bytes() for one in stems[:-1]}
    monkeypatch.setattr(Separator, "write", lambda *given: pytest.fail("it has run"))
    (outcome,) = separate([track], toy, tmp_path / "out", options=Options(shifts=0), force=True)
    assert "something else than a file is in its place" in str(outcome.error)
    assert {one: one.read_bytes() for one in stems[:-1]} == before


@pytest.mark.parametrize("there", [True, False])
def test_stems_that_cannot_all_be_moved_stay_as_they_were(tmp_path, toy, monkeypatch, there):
    track, replace = noise(tmp_path / "a.wav"), os.replace
    stems = [*separate([track], toy, tmp_path / "out", options=Options(shifts=0))[0].stems.values()]
    for stem in stems:
        stem.write_text("mine") if there else stem.unlink()

    def refuse(made, target, **folders):
        if target == stems[-1].name and not made.name.endswith(".before"):
            raise PermissionError(13, "no")
        return replace(made, target, **folders)

    monkeypatch.setattr(os, "replace", refuse)
    (outcome,) = separate([track], toy, tmp_path / "out", options=Options(shifts=0), force=True)
    assert "got no. None was left behind" in str(outcome.error)
    assert [stem.exists() and stem.read_text() for stem in stems] == ["mine" if there else False] * len(stems)


def test_stems_of_one_track_do_not_overwrite_another(tmp_path, toy):
    track = noise(tmp_path / "a.wav")
    stem = separate([track], toy, tmp_path / "out")[0].stems.popitem()[1]
    (tmp_path / "link.wav").symlink_to(stem)
    before = stem.read_bytes()
    with pytest.raises(UsageError, match="the stem .* of .*a.wav would overwrite a track"):
        separate([track, tmp_path / "link.wav"], toy, tmp_path / "out", force=True)
    assert stem.read_bytes() == before


def test_stems_stay_on_one_file_system(tmp_path, toy, monkeypatch):
    elsewhere = Path("/dev/shm")
    if not elsewhere.is_dir() or elsewhere.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("there is but one file system")
    monkeypatch.setattr(Separator, "write", lambda *given: pytest.fail("it has run"))
    (tmp_path / "out" / "duo" / "a").mkdir(parents=True)
    lstat = Path.lstat  # a file system mounted there
    monkeypatch.setattr(Path, "lstat", lambda path: lstat(elsewhere if path.name == "a" else path))
    (outcome,) = separate([noise(tmp_path / "a.wav")], toy, tmp_path / "out")
    assert "is not on the file system of" in str(outcome.error)


def test_earlier_stems_survive_a_failure(tmp_path, bag, song_path):
    stems = separate([song_path], bag, tmp_path / "out", options=Options(shifts=0))[0].stems
    before = stems["drums"].read_bytes()

    def impatient(step):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        separate([song_path], bag, tmp_path / "out", options=Options(shifts=0), force=True, progress=impatient)
    assert stems["drums"].read_bytes() == before


def test_full_disk_is_one_message(tmp_path, bag, song_path, monkeypatch):
    import resource
    import signal

    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        (outcome,) = separate([song_path], bag, tmp_path / "out", options=Options(shifts=0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert isinstance(outcome.error, AudioError)
    assert "cannot be written to" in str(outcome.error)
    assert "File too large" in str(outcome.error), "and not what libsndfile makes of it"
    assert not [file for file in tmp_path.rglob("*") if file.is_file()]


def test_a_full_disk_is_called_one(tmp_path, toy, monkeypatch):
    """Stems are written by libsndfile, which has "System error" for it."""

    def fail(self, block):
        raise soundfile.LibsndfileError(2)

    def refuse(path, mode="r", *rest, opened=Path.open):
        if mode == "ab":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return opened(path, mode, *rest)

    monkeypatch.setattr(StemWriter, "write", fail)
    (outcome,) = separate([noise(tmp_path / "a.wav")], toy, tmp_path / "out")
    assert "System error" in str(outcome.error), "there is room"
    monkeypatch.setattr(Path, "open", refuse)
    (outcome,) = separate([noise(tmp_path / "a.wav")], toy, tmp_path / "out")
    assert f"got the disk is full: {os.strerror(errno.ENOSPC)}. None was left behind." in str(outcome.error)


def test_output_that_cannot_be_a_directory_is_named(tmp_path, bag, song_path):
    (tmp_path / "out").write_text("a file")
    (outcome,) = separate([song_path], bag, tmp_path / "out", options=Options(shifts=0))
    assert "cannot be written to" in str(outcome.error)


def test_files_that_would_write_the_same_stems_are_refused(tmp_path, bag, song_path):
    twin = tmp_path / song_path.name
    twin.write_bytes(song_path.read_bytes())
    with pytest.raises(UsageError, match="stems of several tracks would be the same files"):
        separate([song_path, twin], bag, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_track_itself_is_never_overwritten(tmp_path, bag, song_path):
    track = tmp_path / "demo" / "drums.wav"
    track.parent.mkdir()
    track.write_bytes(song_path.read_bytes())
    (outcome,) = separate([track], bag, tmp_path, options=Options(shifts=0, filename="{stem}.{ext}"))
    assert isinstance(outcome.error, UsageError)
    assert track.read_bytes() == song_path.read_bytes()


# ---------------------------------------------------------- channels, rates and balance of the stems


@pytest.mark.parametrize("index", [2, 4, 5])
def test_sound_beyond_the_first_two_channels_is_in_the_stems(tmp_path, toy, index):
    sound = np.zeros((800, 6))
    sound[:, index] = np.random.default_rng(0).uniform(-0.5, 0.5, 800)
    soundfile.write(tmp_path / "six.wav", sound, 8000)
    (outcome,) = separate([tmp_path / "six.wav"], toy, tmp_path / "out")
    assert np.std(sum(read(stem) for stem in outcome.stems.values())) > 0.05
    assert outcome.to_dict()["downmix"] == (
        "6 channels (FL FR FC LFE BL BR) mixed down to 2 by ITU-R BS.775, without LFE"
    )
    (again,) = separate([tmp_path / "six.wav"], toy, tmp_path / "out")
    assert (again.attempts, again.written) == (0, outcome.written)
    (first2,) = separate([tmp_path / "six.wav"], toy, tmp_path / "out", options=Options(channels="first2"))
    assert first2.written.downmix is None
    assert not any(read(stem).any() for stem in first2.stems.values())


@pytest.mark.parametrize("rate", [8000, 11_025, 16_000, 22_050, 44_100, 48_000, 88_200, 96_000, 192_000])
@pytest.mark.parametrize("samples", [1, 2, 12_345])
def test_stems_are_as_long_as_the_song_to_the_sample_at_its_rate(tmp_path, toy, rate, samples):
    """The toy works at 8 kHz. Its stems add up to what it hears, but for its mean."""
    time = np.arange(samples) / rate
    tone = np.sin(2 * np.pi * 440 * time) / 2
    soundfile.write(tmp_path / "a.wav", np.stack([tone, tone], 1), rate, subtype="FLOAT")
    options = Options(shifts=0, encoding=Encoding(subtype="FLOAT", clip="none"))
    (outcome,) = separate([tmp_path / "a.wav"], toy, tmp_path / "out", options=options)
    assert outcome.error is None
    infos = [soundfile.info(stem) for stem in outcome.stems.values()]
    assert {(info.samplerate, info.frames) for info in infos} == {(rate, samples)}
    assert (outcome.written.samplerate, outcome.written.samples) == (rate, samples)
    if samples > 2:
        inner = slice(samples // 4, -samples // 4)  # resampling has no sound to go by beyond the ends
        total = sum(read(stem) for stem in outcome.stems.values())[0][inner]
        expected = tone[inner]
        assert snr_db(expected - expected.mean(), total - total.mean()) > 40


@pytest.mark.parametrize(("samplerate", "rate", "samples"), [("model", 8000, 4000), (16_000, 16_000, 8000)])
def test_stems_have_the_rate_that_is_asked_for(tmp_path, toy, samplerate, rate, samples):
    soundfile.write(tmp_path / "a.wav", np.full((22_050, 2), 0.1), 44_100)
    (outcome,) = separate([tmp_path / "a.wav"], toy, tmp_path / "out", options=Options(samplerate=samplerate))
    infos = [soundfile.info(stem) for stem in outcome.stems.values()]
    assert {(info.samplerate, info.frames) for info in infos} == {(rate, samples)}


def loud(path):
    time = np.arange(8000) / 8000
    soundfile.write(path, np.stack([np.sin(700 * time), np.cos(9000 * time)], 1) * 3, 8000, subtype="FLOAT")
    return path


def test_the_balance_of_the_stems_is_kept_and_their_gain_is_told(tmp_path, toy):
    track = loud(tmp_path / "a.wav")
    encoding = Encoding(subtype="FLOAT", clip="none")
    plain = separate([track], toy, tmp_path / "plain", options=Options(encoding=encoding))[0]
    assert plain.written.gain_db == {}
    kept = separate([track], toy, tmp_path / "kept", options=Options(encoding=Encoding(subtype="FLOAT")))[0]
    (gain,) = {*kept.written.gain_db.values()}
    assert gain < -1
    for name, stem in kept.stems.items():
        np.testing.assert_allclose(read(stem), read(plain.stems[name]) * 10 ** (gain / 20), atol=1e-6)
    each = Options(encoding=Encoding(subtype="FLOAT", clip="rescale-each"))
    gains = separate([track], toy, tmp_path / "each", options=each)[0].to_dict()["gain_db"]
    assert len({*gains.values()}) == 2
    assert min(gains.values()) == pytest.approx(gain)


# ---------------------------------------------------------------------------------------- resuming


def test_what_is_there_is_left_alone(tmp_path, toy):
    tracks = [noise(tmp_path / f"{index}.wav", index) for index in range(3)]
    separate(tracks[:2], toy, tmp_path / "out")
    before = content(tmp_path / "out")
    outcomes = separate(tracks, toy, tmp_path / "out")
    assert [outcome.attempts for outcome in outcomes] == [0, 0, 1]
    assert [list(outcome.stems) for outcome in outcomes] == [["kept", "rest"]] * 3
    after = content(tmp_path / "out")
    assert len(after) == 6
    assert before.items() <= after.items()


def test_force_makes_it_again(tmp_path, toy):
    track = noise(tmp_path / "a.wav")
    separate([track], toy, tmp_path / "out")
    before = content(tmp_path / "out")
    (outcome,) = separate([track], toy, tmp_path / "out", force=True)
    assert outcome.attempts == 1
    assert all(before[name][0] != inode for name, (inode, _) in content(tmp_path / "out").items())


@pytest.mark.parametrize("first", [{}, {"two_stems": "kept"}, {"channels": "first2"}])
def test_stems_of_another_song_of_the_same_name_are_replaced_by_force_alone(tmp_path, toy, first):
    """Whatever options they were made with."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    one, two = noise(tmp_path / "one" / "a.wav", 1), noise(tmp_path / "two" / "a.wav", 2)
    separate([one], toy, tmp_path / "out", options=Options(**first))
    before = content(tmp_path / "out")
    (outcome,) = separate([two], toy, tmp_path / "out")
    assert isinstance(outcome.error, UsageError)
    assert f"kept.wav was made of another song than {two}. --force replaces it" in str(outcome.error)
    assert content(tmp_path / "out") == before
    (outcome,) = separate([two], toy, tmp_path / "out", options=Options(filename="{folder}-{track}-{stem}.{ext}"))
    assert outcome.error is None
    assert before.items() <= content(tmp_path / "out").items()
    (outcome,) = separate([two], toy, tmp_path / "out", force=True)
    assert (outcome.error, outcome.attempts) == (None, 1)
    assert before["duo/a/kept.wav"] != content(tmp_path / "out")["duo/a/kept.wav"]


@pytest.mark.parametrize("change", ["other options", "stem cut short", "copied song"])
def test_stems_of_the_same_song_are_made_again_without_force(tmp_path, toy, change):
    track, options = noise(tmp_path / "a.wav"), Options()
    stems = separate([track], toy, tmp_path / "out")[0].stems
    if change == "other options":
        options = Options(overlap=0.5)
    elif change == "stem cut short":
        stems["rest"].write_bytes(b"")
    else:
        (tmp_path / "copy").mkdir()
        track = track.rename(tmp_path / "copy" / "a.wav")
        options = Options(two_stems="kept")
    (outcome,) = separate([track], toy, tmp_path / "out", options=options)
    assert (outcome.error, outcome.attempts) == (None, 1)


def test_a_forced_batch_that_was_interrupted_resumes_without_force(tmp_path, toy):
    tracks = [noise(tmp_path / f"{index}.wav", index) for index in range(2)]
    separate(tracks, toy, tmp_path / "out")

    def interrupt(outcome):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        separate(tracks, toy, tmp_path / "out", force=True, done=interrupt)
    assert [outcome.attempts for outcome in separate(tracks, toy, tmp_path / "out")] == [0, 1]


def test_a_file_given_twice_is_done_once(tmp_path, toy):
    track = noise(tmp_path / "a.wav")
    (outcome,) = separate([track, track], toy, tmp_path / "out")
    assert outcome.attempts == 1


def test_force_on_what_is_no_directory_is_one_message(tmp_path, toy):
    (tmp_path / "out").write_text("a file")
    with pytest.raises(AudioError, match="cannot be written to"):
        separate([noise(tmp_path / "a.wav")], toy, tmp_path / "out", force=True)


# ----------------------------------------------------------------------------------------- killed


@pytest.mark.parametrize(("deaths", "error"), [(ATTEMPTS - 1, None), (ATTEMPTS, WorkerError)])
def test_a_file_is_tried_again_so_many_times(tmp_path, toy, deaths, error):
    separator, track, out = Separator(toy, "default"), noise(tmp_path / "a.wav"), tmp_path / "out"
    begun = []

    def work(path, out, staging, progress):
        (staging / "0.kept.wav").write_text("half a stem")
        begun.append(staging)
        if len(begun) <= deaths:
            raise WorkerError("it lives")
        return deliver(separator, path, out, staging, progress)

    outcome = separate_file(separator, track, out, work=work)
    assert outcome.attempts == ATTEMPTS
    assert len(set(begun)) == ATTEMPTS
    if error:
        assert isinstance(outcome.error, error)
        assert f"a.wav was not separated: its worker was killed {ATTEMPTS} times" in str(outcome.error)
        assert not content(out)
    else:
        assert outcome.error is None
        assert len(content(out)) == 2
    assert not list(out.rglob(".separating-*"))


def test_a_worker_killed_after_its_last_step_has_done_its_work(tmp_path, toy):
    separator, out = Separator(toy, "default"), tmp_path / "out"

    def work(path, out, staging, progress):
        deliver(separator, path, out, staging, progress)
        raise WorkerError("it lives")

    outcome = separate_file(separator, noise(tmp_path / "a.wav"), out, work=work)
    assert (outcome.error, outcome.attempts) == (None, 1)
    assert list(outcome.stems) == ["kept", "rest"]


def test_a_worker_killed_between_two_stems_has_not(tmp_path, toy, monkeypatch):
    separator, out, track = Separator(toy, "default"), tmp_path / "out", noise(tmp_path / "a.wav")
    (first,) = separate([noise(tmp_path / "b.wav", 1)], toy, tmp_path / "old")
    target = separator.outputs(track, out)["rest"]
    target.parent.mkdir(parents=True)
    target.write_bytes(first.stems["rest"].read_bytes())  # of another song, and as long
    moves = []

    class Killed(BaseException):
        pass

    def work(path, out, staging, progress):
        def replace(source, target, move=os.replace, **folders):
            moves.append(target)
            if len(moves) == 3:  # receipt, one stem, and then
                raise Killed
            move(source, target, **folders)

        try:
            with monkeypatch.context() as patch:
                patch.setattr(os, "replace", replace)
                return deliver(separator, path, out, staging, progress)
        except Killed:
            raise WorkerError("it lives") from None

    outcome = separate_file(separator, track, out, work=work)
    assert outcome.attempts == 2
    assert target.read_bytes() != first.stems["rest"].read_bytes()


def test_what_killed_batches_left_goes(tmp_path, toy):
    home = tmp_path / "out" / "duo"
    left = home / f".separating-{'0' * 16}" / "0.wav"
    left.parent.mkdir(parents=True)
    left.write_text("half a stem")
    separate([noise(tmp_path / "a.wav")], toy, tmp_path / "out")
    assert {path.name for path in home.iterdir()} == {"a", ".separated"}


def test_who_is_at_work_is_left_alone(tmp_path, toy):
    """Two batches in one directory: neither removes what the other is making."""
    separator, out = Separator(toy, "default"), tmp_path / "out"

    def work(path, out, staging, progress):
        (staging / "mine").touch()
        separate([noise(tmp_path / "b.wav")], toy, out)
        assert (staging / "mine").exists()
        return deliver(separator, path, out, staging, progress)

    assert separate_file(separator, noise(tmp_path / "a.wav"), out, work=work).error is None


def test_what_nobody_foresaw_stops_one_file(tmp_path, toy, monkeypatch):
    def careless(self, track, files, progress):
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr(Separator, "write", careless)
    (outcome,) = separate([noise(tmp_path / "a.wav")], toy, tmp_path / "out")
    assert isinstance(outcome.error, InternalError)
    assert "ZeroDivisionError: by zero" in str(outcome.error)
    monkeypatch.setenv("SPLITTER_DEBUG", "1")
    with pytest.raises(ZeroDivisionError, match="by zero"):
        separate([noise(tmp_path / "a.wav")], toy, tmp_path / "out")


# ---------------------------------------------------------------------------------------- workers


@pytest.mark.parametrize("jobs", [0, cores() + 1])
def test_more_jobs_than_cores_are_refused(tmp_path, toy, jobs):
    with pytest.raises(UsageError, match=rf"expected between 1 and {cores()} \(available cores\), found {jobs}"):
        separate([noise(tmp_path / "a.wav")], toy, tmp_path / "out", jobs=jobs)


@pytest.mark.slow
@two_cores
def test_24_files_with_broken_ones_and_workers_killed_at_random(tmp_path, toy):
    tracks = [noise(tmp_path / f"{index:02}.wav", index % 3, seconds=0.5) for index in range(24)]
    tracks[5].write_text("no sound")
    tracks[11].write_bytes(tracks[11].read_bytes()[:-100])
    tracks[17].unlink()
    broken = {tracks[5], tracks[11], tracks[17]}
    (tmp_path / "whole").mkdir()
    expected = [separate([noise(tmp_path / "whole" / f"{seed}.wav", seed, seconds=0.5)], toy, tmp_path / "expected")[0]
                for seed in range(3)]  # fmt: skip
    told, heard, killed, seen, over = [], [], [], {}, threading.Event()

    def watch():
        """Kill one that is at work now and then; note every stem as it first appears."""
        dice = random.Random(1)
        while not over.wait(0.02):
            for path in (tmp_path / "out").glob("*/[!.]*/*.wav"):
                seen.setdefault(path, path.stat().st_ino)
            if len(killed) < 2 and len(told) >= (3, 10)[len(killed)] and (at_work := workers()):
                killed.append(dice.choice(at_work))
                killed[-1].kill()

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        outcomes = separate(tracks, toy, tmp_path / "out", jobs=2, progress=heard.append, done=told.append)
    finally:
        over.set()
        watcher.join()
    assert len(killed) == 2
    assert sorted(outcome.path for outcome in told) == tracks == [outcome.path for outcome in outcomes]
    assert {outcome.path for outcome in outcomes if outcome.error} == broken
    assert all(isinstance(outcome.error, AudioError) for outcome in outcomes if outcome.error)
    assert 1 <= sum(outcome.attempts - 1 for outcome in outcomes) <= 2
    for index, outcome in enumerate(outcomes):
        for name, path in outcome.stems.items():
            assert path.read_bytes() == expected[index % 3].stems[name].read_bytes()
            assert seen.setdefault(path, path.stat().st_ino) == path.stat().st_ino, "made once"
    assert len(content(tmp_path / "out")) == 2 * 21
    assert not list((tmp_path / "out").rglob(".separating-*"))
    assert not workers(), "none is left running"
    assert {step.path for step in heard if step.done == pytest.approx(step.total)} == set(tracks) - broken
    before = content(tmp_path / "out")
    again = separate(tracks, toy, tmp_path / "out")
    assert [outcome.attempts for outcome in again] == [int(path in broken) for path in tracks]
    assert content(tmp_path / "out") == before


@two_cores
def test_an_engine_that_cannot_ends_the_batch(tmp_path, toy):
    with pytest.raises(EngineError, match="'numpy'"):
        separate([noise(tmp_path / "a.wav")], toy, tmp_path / "out", jobs=2, engines={"encoder": "numpy"})
    assert not content(tmp_path / "out")


@two_cores
def test_who_is_told_may_end_the_batch(tmp_path, toy, monkeypatch):
    """At once, and the workers with it, while other files are still worked at."""
    stopped = []

    class Stand:
        """In for a worker: it does one file, and would be at all others for ever."""

        def __init__(self, threads):
            assert threads == cores() // 2
            self.over = threading.Event()

        def call(self, function, model, path, *rest, meanwhile):
            if path.stem == "0":
                return function(model, path, *rest)
            self.over.wait()
            raise CancelledError

        def stop(self):
            self.over.set()
            stopped.append(self)

    def refuse(outcome):
        raise KeyboardInterrupt

    monkeypatch.setattr("splitter.separation.batch.Worker", Stand)
    tracks = [noise(tmp_path / f"{index}.wav") for index in range(4)]
    with pytest.raises(KeyboardInterrupt) as caught:
        separate(tracks, toy, tmp_path / "out", jobs=2, done=refuse)
    assert len(stopped) == 2, caught  # while the traceback is held, and all frames in it
    assert {name.split("/")[1] for name in content(tmp_path / "out")} == {"0"}
    assert not list((tmp_path / "out").rglob(".separating-*"))


# ------------------------------------------------------------------------- names and links of others


def elsewhere(path):
    """All that lies outside the output folder."""
    return {file.relative_to(path) for file in path.rglob("*") if file.relative_to(path).parts[0] != "out"}


TEMPLATES = {
    "absolute": "/{stem}.{ext}",
    "upwards": "../{stem}.{ext}",
    "upwards twice": "../../x/{track}/{stem}.{ext}",
    "roundabout": "a/../../{stem}.{ext}",
    "upwards at last": "{stem}/..",
    "itself": "./{stem}.{ext}",
    "windows": "..\\{stem}.{ext}",
    "drive": "c:{stem}.{ext}",
    "NUL": "\0{stem}",
    "newline": "{track}\n{stem}",
    "escape": "\x1b[2J{stem}",
    "bidi": "\u202e{stem}",
    "device": "CON/{stem}",
    "trailing dot": "{stem}.",
    "hidden": ".{stem}",
    "very long": "x" * 300 + "{stem}",
    "very deep": "x/" * 600 + "{stem}",
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_a_template_stays_below_the_output_folder(tmp_path, toy, kind):
    track, before = noise(tmp_path / "a.wav"), elsewhere(tmp_path)
    with pytest.raises(UsageError, match="makes no path below the output folder"):
        separate([track], toy, tmp_path / "out", options=Options(filename=TEMPLATES[kind]))
    assert elsewhere(tmp_path) == before
    assert not (tmp_path / "out").exists()


TRACKS = {
    "...wav": "__",
    "..": None,
    ".wav": "_wav",
    "con.wav": "_con",
    "a\x1b[2J.wav": "a_[2J",
    "a\nb.wav": "a_b",
    "a\u202eb.wav": "a_b",
    "a\\..\\b.wav": "a_.._b",
    "c:b.wav": "c_b",
    "what?.wav": "what_",
    "a. .wav": "a__",
    ".separated.wav": "_separated",
    f".separating-{'0' * 16}.wav": f"_separating-{'0' * 16}",
    "歌" * 80 + ".wav": "歌" * 80,
}


@pytest.mark.parametrize("name", TRACKS)
def test_a_track_of_any_name_stays_below_the_output_folder(tmp_path, toy, name):
    track = tmp_path / name
    if TRACKS[name] is not None:
        noise(tmp_path / "sound.wav").rename(track)
    before = elsewhere(tmp_path)
    if TRACKS[name] is None:
        with pytest.raises(UsageError, match="is a folder without sound files"):
            separate([track], toy, tmp_path / "out")
    else:
        (outcome,) = separate([track], toy, tmp_path / "out")
        assert {stem.parent for stem in outcome.stems.values()} == {tmp_path / "out" / "duo" / TRACKS[name]}
        assert all(stem.is_file() for stem in outcome.stems.values())
    assert elsewhere(tmp_path) == before


@pytest.mark.parametrize("length", [238, 251])
@pytest.mark.parametrize("template", ["{track}/{stem}.{ext}", "{stem}/{track}.{ext}", "{stem}.{track}"])
def test_a_track_of_a_long_name_has_its_stems(tmp_path, toy, length, template):
    length = min(length, 250) if template == "{stem}.{track}" else length
    track = noise(tmp_path / ("x" * length + ".wav"))
    (outcome,) = separate([track], toy, tmp_path / "out", options=Options(filename=template))
    assert outcome.error is None
    assert all(stem.is_file() for stem in outcome.stems.values())


def test_a_track_whose_name_is_too_long_for_its_stems_fails_alone_and_at_once(tmp_path, toy, monkeypatch):
    options = Options(filename="{track} - {stem}.{ext}")
    long, good = noise(tmp_path / ("x" * 248 + ".wav")), noise(tmp_path / "a.wav")
    outcomes = separate([long, good], toy, tmp_path / "out", options=options)
    assert "gives its stem 'kept' no possible file name" in str(outcomes[0].error)
    assert "it has 259 bytes, more than 255" in str(outcomes[0].error)
    assert outcomes[1].error is None


def test_a_path_that_the_system_does_not_take_fails_before_anything_runs(tmp_path, toy, monkeypatch):
    monkeypatch.setattr(Separator, "write", lambda *given: pytest.fail("it has run"))
    deep = tmp_path
    while len(os.fsencode(deep)) < 4096 - 900:
        deep /= "x" * 200
    options = Options(filename="x" * 250 + "/" + "y" * 250 + "/" + "z" * 250 + "/" + "{track}/{stem}" + "w" * 200)
    (outcome,) = separate([noise(tmp_path / "a.wav")], toy, deep, options=options)
    assert "File name too long" in str(outcome.error)


PLANTED = {"model": "out/duo", "track": "out/duo/a", "receipts": "out/duo/.separated"}


@pytest.mark.parametrize("where", PLANTED)
@pytest.mark.parametrize("force", [False, True])
def test_a_planted_link_to_a_folder_is_not_followed(tmp_path, toy, where, force):
    (tmp_path / "mine").mkdir()
    link = tmp_path / PLANTED[where]
    link.parent.mkdir(parents=True)
    link.symlink_to(tmp_path / "mine")
    track = noise(tmp_path / "a.wav")
    try:
        (outcome,) = separate([track], toy, tmp_path / "out", force=force)
        error = outcome.error
    except AudioError as refused:
        error = refused
    assert isinstance(error, AudioError)
    assert force or f"{link} is a link, which leads out of the output folder" in str(error)
    assert not [*(tmp_path / "mine").iterdir()]
    assert not [*(tmp_path / "out").rglob("*.wav")]


def test_a_link_that_is_planted_while_a_song_runs_is_not_followed(tmp_path, toy, monkeypatch):
    (tmp_path / "mine").mkdir()

    def write(self, track, files, progress, write=Separator.write):
        written = write(self, track, files, progress)
        (tmp_path / "out" / "duo" / "a").symlink_to(tmp_path / "mine")
        return written

    monkeypatch.setattr(Separator, "write", write)
    (outcome,) = separate([noise(tmp_path / "a.wav")], toy, tmp_path / "out")
    assert "None was left behind" in str(outcome.error)
    assert not [*(tmp_path / "mine").iterdir()]


@pytest.mark.parametrize("exists", [True, False])
def test_a_link_in_the_place_of_a_stem_is_replaced(tmp_path, toy, exists):
    (tmp_path / "out" / "duo" / "a").mkdir(parents=True)
    link = tmp_path / "out" / "duo" / "a" / "kept.wav"
    link.symlink_to(tmp_path / "mine")
    if exists:
        (tmp_path / "mine").write_text("mine")
    (outcome,) = separate([noise(tmp_path / "a.wav")], toy, tmp_path / "out")
    assert outcome.error is None
    assert not link.is_symlink()
    assert soundfile.info(link).frames == 800
    assert (tmp_path / "mine").exists() == exists
    assert not exists or (tmp_path / "mine").read_text() == "mine"


def test_two_batches_that_move_the_same_stems_wait_for_each_other(tmp_path, toy, monkeypatch):
    """One would put its receipt beside the stems of the other, unless they take turns."""
    track, out = noise(tmp_path / "a.wav"), tmp_path / "out"
    first, second = (
        Separator(toy, "default", options=Options(encoding=Encoding(subtype=subtype)))
        for subtype in ("PCM_16", "PCM_24")
    )
    placed, over, errors, replace = threading.Event(), threading.Event(), [], os.replace

    def interrupted(source, target, **folders):
        replace(source, target, **folders)
        if threading.current_thread().name == "first" and not placed.is_set():  # its receipt
            placed.set()
            over.wait(2)

    def run(separator):
        with batch._staging(out, separator.home(out)) as staging:
            errors.append(deliver(separator, track, out, staging, lambda step: None))

    def run_second():
        placed.wait(60)
        run(second)
        over.set()

    monkeypatch.setattr(os, "replace", interrupted)
    both = [threading.Thread(target=run, args=(first,), name="first"), threading.Thread(target=run_second)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join()
    assert errors == [None, None]
    assert receipts.complete(second, track, second.home(out), second.outputs(track, out))
