"""The command as users run it: exit codes, one message, one JSON document."""

import ast
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import psutil
import pytest
import soundfile

import splitter as public
from splitter import arrays, cli
from splitter.cli import shell
from splitter.errors import EngineError
from splitter.runtime.engines import default_engine, openvino_engine
from splitter.separation import selection

from ..conftest import ROOT, snr_db

SPLITTER = Path(sys.executable).with_name("splitter")

TORCH = [f"--engine={segment}=torch" for segment in ("encoder", "transformer", "decoder")]  # nothing to measure

# Shells start background jobs with SIGINT ignored, and children inherit that: undone before the tool starts.
_INTERRUPTIBLE = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)
from splitter.cli import main
main()
"""


# Two command lines in one process, which imports everything once: the second has more options.
_TWICE = """
import sys
from splitter.cli import main
arguments, more = sys.argv[2:], sys.argv[1].split()
for sys.argv[1:] in (arguments, arguments + more):
    try:
        main()
    except SystemExit as stopped:
        if stopped.code:
            raise
"""


def run(capsys, monkeypatch, *arguments):
    """In this process, for speed; the real process is exercised below."""
    monkeypatch.setattr(sys, "argv", ["splitter", *map(str, arguments)])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    out, err = capsys.readouterr()
    return stopped.value.code or 0, out, err


@pytest.fixture
def splitter(capsys, monkeypatch):
    monkeypatch.setattr(selection, "_rivals", lambda members, segment: [default_engine(segment)])  # nothing to measure
    return lambda *arguments: run(capsys, monkeypatch, *arguments)


@pytest.mark.slow
def test_build_verify_and_separate_end_to_end(tmp_path, song_path):
    """As README's first command does it, in processes of their own."""

    def command(*arguments):
        return subprocess.run([SPLITTER, *arguments], cwd=tmp_path, check=True, capture_output=True, text=True)

    built = command("build", "demo", "-o", "b")
    assert "skip_freq_0" in built.stdout
    assert "1×8×256×130" in built.stdout
    verified = command("verify", "b")
    assert "passed" in verified.stdout
    separated = command("separate", song_path, "-b", "b", "--shifts", "0", "--json", *TORCH)
    (file,) = json.loads(separated.stdout)["files"]
    assert file["error"] is None
    assert all((tmp_path / path).is_file() for path in file["stems"].values())
    for result in (built, verified, separated):
        assert "Warning" not in result.stderr
        assert "Traceback" not in result.stderr


@pytest.mark.parametrize("verb", ["inspect", pytest.param("verify", marks=pytest.mark.slow)])
def test_json_is_exactly_one_document(splitter, demo_path, verb):
    code, out, _ = splitter(verb, demo_path, "--json")
    assert code == 0
    document = json.loads(out)
    if verb == "verify":
        assert document["partition"]["max_abs"] == 0
        assert document["passed"] is True
    else:
        tensors = {t["name"]: t for t in document["members"][0]["manifest"]["tensors"]}
        assert tensors["skip_freq_0"]["shape"] == [1, 8, 256, 130]
        assert tensors["skip_freq_0"]["bytes"] == 4 * 8 * 256 * 130


def test_inspect_shows_every_boundary(splitter, demo_path, demo_bundle):
    code, out, _ = splitter("inspect", demo_path)
    assert code == 0
    for spec in demo_bundle.manifest.tensors:
        assert spec.name in out
        assert "×".join(map(str, spec.shape)) in out


def test_failed_verification_exits_with_one(splitter, demo_path, tmp_path):
    shutil.copytree(demo_path, tmp_path / "b")
    with (tmp_path / "b" / "analysis.json").open("r+b") as file:
        file.write(b" ")
    code, out, _ = splitter("verify", tmp_path / "b")
    assert code == 1
    assert "FAILED" in out
    code, out, _ = splitter("verify", tmp_path / "b", "--json")
    assert code == 1
    assert json.loads(out)["passed"] is False


FAILURES = {
    "unknown model": (["build", "htdemuxx", "-o", "OUT"], "Names are demo"),
    "missing checkpoint": (["build", "none.safetensors", "-o", "OUT"], "none.safetensors"),
    "half boundaries below iOS16": (
        ["build", "demo", "-o", "OUT", "--boundary-dtype", "fp16", "--target", "iOS15"],
        "iOS16",
    ),
    "compressed weights below iOS16": (
        ["build", "demo", "-o", "OUT", "--compress", "pal6", "--target", "iOS15"],
        "iOS15 has no operation that decodes weights",
    ),
    "segment too long": (["build", "demo", "-o", "OUT", "--segment", "1.6"], "1.5 s"),
    "segment of nothing": (["build", "demo", "-o", "OUT", "--segment", "0"], "more than 0 s"),
    "missing plan": (["build", "demo", "-o", "OUT", "--plan", "none.toml"], "none.toml"),
    "golden audio that is missing": (["build", "demo", "-o", "OUT", "--golden-audio", "none.wav"], "none.wav"),
    "random weights for no configuration": (
        ["build", "demo", "-o", "OUT", "--random-init", "1"],
        "no configuration 'demo' for random weights",
    ),
    "no bundle": (["verify", "nowhere"], "splitter build"),
    "no bundle to run": (["separate", "SONG"], "-b DIR"),
    "bundle not found": (["separate", "SONG", "-b", "nowhere"], "splitter build"),
    "unknown name": (["separate", "SONG", "-n", "htdemuxx"], "Names are demo"),
    "no such stem": (
        ["separate", "SONG", "-b", "BUNDLE", "--stems", "bass, piano"],
        "no stem 'piano'. It has drums, bass,",
    ),
    "unknown stem": (["separate", "SONG", "-b", "BUNDLE", "--two-stems", "piano"], "drums, bass, other, vocals"),
    "overlap of one": (["separate", "SONG", "-b", "BUNDLE", "--overlap", "1"], "less than 1"),
    "more jobs than cores": (["separate", "SONG", "-b", "BUNDLE", "-j", "4096"], "(available cores), found 4096"),
    "no job": (["separate", "SONG", "-b", "BUNDLE", "-j", "0"], "jobs"),
    "two formats": (["separate", "SONG", "-b", "BUNDLE", "--mp3", "--flac"], "--mp3 and --flac exclude each other"),
    "no such device": (["separate", "SONG", "-b", "BUNDLE", "-d", "cuda:99"], "no device 'cuda:99' here, but cpu"),
    "two devices for all": (["separate", "SONG", "-b", "BUNDLE", "-d", "cpu", "-d", "mps"], "one device for all"),
    "two stems in a stem file": (
        ["separate", "SONG", "-b", "BUNDLE", "--stem-mp4", "--stems", "bass,drums"],
        "a stem file holds 4 stems; got drums, bass",
    ),
    "samples of a lossy format": (["separate", "SONG", "-b", "BUNDLE", "--m4a", "--int24"], "AAC has no sample format"),
    "two depths": (
        ["separate", "SONG", "-b", "BUNDLE", "--float32", "--int24"],
        "--float32 and --int24 exclude each other",
    ),
    "float FLAC": (["separate", "SONG", "-b", "BUNDLE", "--float32", "--flac"], "integers"),
    "missing file": (["separate", "none.wav", "-b", "BUNDLE"], "no such file"),
    "engine without a segment": (["separate", "SONG", "-b", "BUNDLE", "--engine", "jax"], "SEGMENT=ENGINE"),
    "engine that cannot": (
        ["separate", "SONG", "-b", "BUNDLE", "--engine", "encoder=numpy"],
        "engine 'numpy' cannot run segment 'encoder'",
    ),
    "unknown engine": (
        ["separate", "SONG", "-b", "BUNDLE", "--engine", "encoder=mps"],
        "Installed: aotinductor, coreai",
    ),
    "profile of an engine that cannot": (
        ["profile", "BUNDLE", "--engine", "encoder=numpy"],
        "engine 'numpy' cannot run segment 'encoder'",
    ),
    "profile of an unknown segment": (["profile", "BUNDLE", "--engine", "enkoder=mil"], "enkoder"),
    "profile of no runs": (["profile", "BUNDLE", "--runs", "0"], "--runs"),
    "profile beside nothing": (["profile", "BUNDLE", "--merge", "none.json"], "none.json is no profile"),
    "unknown option": (["verify", "BUNDLE", "--fast"], "--fast"),
}


def test_fast_is_refused_where_it_would_not_be(splitter, demo_path, song_path, tmp_path, monkeypatch):
    monkeypatch.setattr(openvino_engine, "find_spec", lambda name: object())
    monkeypatch.setattr(openvino_engine, "_capabilities", lambda: ("FP32", "INT8"))
    code, out, err = splitter("separate", song_path, "-b", demo_path, "-o", tmp_path / "out", "--fast")
    assert (code, out) == (1, "")
    assert "no instructions for bfloat16" in err
    assert not (tmp_path / "out").exists()


def test_what_runs_what_is_said(splitter, demo_path, song_path, tmp_path):
    _, _, err = splitter(
        "separate", song_path, "-b", demo_path, "-o", tmp_path, "--shifts", "0", "--engine", "transformer=numpy"
    )
    assert "engines: analysis=torch, encoder=torch, transformer=numpy, decoder=torch, synthesis=torch" in err


@pytest.mark.parametrize(("arguments", "message"), FAILURES.values(), ids=FAILURES)
def test_failures_are_one_clear_message(splitter, demo_path, song_path, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    places = {"OUT": tmp_path / "out", "SONG": song_path, "BUNDLE": demo_path}
    arguments = [places.get(argument, argument) for argument in arguments]
    code, out, err = splitter(*arguments)
    assert code != 0
    assert message in err
    assert "Traceback" not in err
    assert out == ""
    code, out, err = splitter(*arguments, "--json")
    assert code != 0
    document = json.loads(out)
    assert message in json.dumps(document, ensure_ascii=False)
    assert not [file for file in tmp_path.rglob("*") if file.is_file()], "nothing was left behind"


def test_existing_bundle_is_refused_and_kept(splitter, demo_path):
    before = (demo_path / "manifest.json").read_bytes()
    code, _, err = splitter("build", "demo", "-o", demo_path)
    assert code == 1
    assert "Use --force" in err
    assert (demo_path / "manifest.json").read_bytes() == before


def test_directory_that_is_no_bundle_survives_force(splitter, tmp_path):
    (tmp_path / "thesis.txt").write_text("ten years")
    code, _, err = splitter("build", "demo", "-o", tmp_path, "--force")
    assert code == 1
    assert "replaces only what it has built" in err
    assert (tmp_path / "thesis.txt").read_text() == "ten years"


def test_good_files_are_done_though_one_is_broken(splitter, demo_path, song_path, tmp_path):
    (tmp_path / "bad.wav").write_text("no sound")
    code, out, err = splitter(
        "separate", tmp_path / "bad.wav", song_path, "-b", demo_path, "-o", tmp_path / "out", "--shifts", "0"
    )
    assert code == 1
    assert err.count("error:") == 1
    assert "bad.wav" in err
    assert len(out.splitlines()) == 4
    assert all(Path(line).is_file() for line in out.splitlines())


def test_named_bundle_is_built_once_in_the_cache(splitter, demo_path, song_path, tmp_path, monkeypatch):
    from splitter.bundle.directory import load

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    built = []

    def build(name, out, **options):
        built.append(name)
        shutil.copytree(demo_path, out)
        return load(out)

    monkeypatch.setattr("splitter.compiler.build", build)
    for _ in range(2):
        code, out, _ = splitter(
            "separate", song_path, "-n", "demo", "-o", tmp_path / "out", "--shifts", "0", "--two-stems", "bass"
        )
        assert code == 0
        assert [Path(line).name for line in out.splitlines()] == ["bass.wav", "no_bass.wav"]
    assert built == ["demo"]
    assert list((tmp_path / "cache" / "splitter" / "bundles").iterdir())


@pytest.mark.parametrize(
    ("flags", "suffix"), [(["--mp3"], "mp3"), (["--flac", "--int24"], "flac"), (["--float32"], "wav")]
)
def test_formats(splitter, demo_path, song_path, tmp_path, flags, suffix):
    code, out, _ = splitter("separate", song_path, "-b", demo_path, "-o", tmp_path, "--shifts", "0", *flags,
                            "--filename", "{track} - {stem}.{ext}")  # fmt: skip
    assert code == 0
    assert Path(out.splitlines()[0]) == tmp_path / "demo" / f"song - drums.{suffix}"


def test_what_becomes_of_channels_and_balance_is_said(splitter, toy_path, tmp_path):
    six = 3 * np.sin(2 * np.pi * 700 / 96_000 * np.arange(9600)[:, None] + np.arange(6))
    soundfile.write(tmp_path / "six.wav", six, 96_000, subtype="FLOAT")
    song = [tmp_path / "six.wav", "-b", toy_path, "-o", tmp_path]
    _, _, err = splitter("separate", *song)
    assert "six.wav: 6 channels (FL FR FC LFE BL BR) mixed down to 2 by ITU-R BS.775, without LFE; --channels" in err
    assert re.search(r"six.wav: all stems by -\d+\.\d\d dB, their balance kept, so that none clips", err)
    _, out, _ = splitter("separate", *song, "--json")
    (file,) = json.loads(out)["files"]
    assert (file["samplerate"], file["samples"]) == (96_000, 9600)
    assert file["downmix"].startswith("6 channels")
    assert len({*file["gain_db"].values()}) == 1
    _, _, err = splitter("separate", *song, "--clip-mode", "rescale-each", "--channels", "first2")
    assert "6 channels" not in err
    assert re.search(r"six.wav: stems by kept -\d+\.\d\d dB, rest -\d+\.\d\d dB\n", err)
    code, out, err = splitter("separate", *song, "--mp3")
    assert code == 0
    assert "six.wav: MP3 has no 96,000 Hz; written at 48,000 Hz" in err
    assert soundfile.info(out.splitlines()[0]).samplerate == 48_000


def test_a_name_that_looks_like_an_option_is_explained(splitter, toy_path, song_path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("-x.wav", "-b.wav", "--json.wav"):
        shutil.copy(song_path, name)
        code, _, err = splitter("separate", name, "-b", toy_path)
        assert code == 2
        assert f"{name} looks like an option. For a file of this name: -- {name}" in err
    code, out, _ = splitter("separate", "-b", toy_path, "--shifts", "0", "--", "-x.wav")
    assert code == 0
    assert Path(out.splitlines()[0]) == Path("separated/duo/-x/kept.wav")


def test_a_stem_goes_through_a_pipe(splitter, toy_path, song_path, tmp_path, monkeypatch):
    """In and out: as `cat song | splitter separate - -o - --stems vocals | player`."""
    arguments = ["separate", "-", "-b", toy_path, "-o", "-", "--stems", "kept", "--shifts", "0"]
    with song_path.open("rb") as song:
        done = subprocess.run([SPLITTER, *arguments], stdin=song, capture_output=True, check=True, cwd=tmp_path)
    (tmp_path / "stem.wav").write_bytes(done.stdout)
    assert soundfile.info(tmp_path / "stem.wav").frames == soundfile.info(song_path).frames
    assert [*tmp_path.iterdir()] == [tmp_path / "stem.wav"]
    with Path(os.devnull).open() as nothing:
        monkeypatch.setattr(sys, "stdin", nothing)
        assert splitter(*arguments)[:2] == (1, "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["https://host/a.mp3"], "https://host/a.mp3 is a URL"),
        (["."], "is a folder without sound files"),
        (["x.wav", "y.wav", "-o", "-"], "standard output holds one stem of one file; got 2 files"),
        (["x.wav", "-o", "-", "--json"], "standard output holds one stem of one file; got --json"),
        (["x.wav", "-o", "-"], "a stream holds one stem"),
        (["x.wav", "--filename", "/{stem}.wav"], "makes no path below the output folder"),
        (["x.wav", "--filename", "../{stem}.wav"], "makes no path below the output folder"),
    ],
)
def test_what_cannot_be_separated_is_said(splitter, toy_path, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = splitter("separate", *arguments, "-b", toy_path)
    assert code == 1
    assert message in err
    assert not [*tmp_path.iterdir()]


def test_unexpected_error_is_one_line_and_a_way_to_see_more(splitter, demo_path, monkeypatch):
    monkeypatch.setattr("splitter.bundle.directory.load", lambda path: 1 / 0)
    code, _, err = splitter("inspect", demo_path)
    assert code == 70
    assert (
        err
        == "splitter: error: internal error, please report it: ZeroDivisionError: division by zero (SPLITTER_DEBUG=1 shows where)\n"
    )
    monkeypatch.setenv("SPLITTER_DEBUG", "1")
    monkeypatch.setattr(sys, "argv", ["splitter", "inspect", str(demo_path)])
    with pytest.raises(ZeroDivisionError, match="division by zero"):
        cli.main()


@pytest.mark.parametrize("suffix", [".npz", ".safetensors"])
def test_predict_runs_a_package(splitter, tmp_path, demo_bundle, suffix):
    golden = demo_bundle.goldens()
    inputs, out = tmp_path / f"in{suffix}", tmp_path / f"out{suffix}"
    arrays.write(inputs, {name: golden[name] for name in ("spectrogram", "waveform")})
    code, stdout, _ = splitter(
        "predict", demo_bundle.path / "encoder.mlpackage", "--inputs", inputs, "-o", out, "--json"
    )
    assert code == 0
    results = arrays.read(out)
    assert json.loads(stdout)["outputs"].keys() == results.keys()
    assert snr_db(golden["skip_freq_1"], results["skip_freq_1"]) > 110
    options = ["--values", "fp16", "--accumulators", "staged"]
    code, stdout, _ = splitter(
        "predict", demo_bundle.path / "encoder.mlpackage", "--inputs", inputs, "-o", out, *options
    )
    assert code == 0
    assert "skip_freq_1 [1, 16, 64, 130] float32" in stdout
    assert 40 < snr_db(golden["skip_freq_1"], arrays.read(out)["skip_freq_1"]) < 110


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"package": "nothing.mlpackage"}, "is no Core ML package"),
        ({"inputs": "nothing.npz"}, "cannot be read as arrays by name"),
        ({"inputs": "other.npz"}, "'spectrogram' of encoder.mlpackage is missing"),
        ({"out": "out.txt"}, r"\.npz or \.safetensors"),
        ({"out": "no/such/folder.npz"}, "cannot be written"),
        ({"function": "second"}, "second.*It has main"),
    ],
)
def test_predict_refuses_by_name_what_it_cannot_do(splitter, tmp_path, demo_bundle, monkeypatch, change, message):
    monkeypatch.chdir(tmp_path)
    golden = demo_bundle.goldens()
    arrays.write(Path("in.npz"), {name: golden[name] for name in ("spectrogram", "waveform")})
    arrays.write(Path("other.npz"), {"waveform": golden["waveform"]})
    chosen = {"package": demo_bundle.path / "encoder.mlpackage", "inputs": "in.npz", "out": "out.npz"} | change
    function = ["--function", chosen["function"]] if "function" in chosen else []
    code, _, err = splitter("predict", chosen["package"], "--inputs", chosen["inputs"], "-o", chosen["out"], *function)
    assert code != 0
    assert re.search(message, " ".join(err.split()))
    assert "Traceback" not in err
    assert not Path("out.npz").exists()


def test_a_dump_is_judged_and_the_first_line_says_where_it_diverges(splitter, tmp_path, demo_path):
    sound, wrong = tmp_path / "sound.safetensors", tmp_path / "wrong.npz"
    code, stdout, _ = splitter("goldens", demo_path, "-o", sound, "--taps", "layers_t.0.*", "--json")
    assert code == 0
    assert json.loads(stdout)["taps"]["layers_t.0.gelu"] == [1, 259, 160]
    code, stdout, _ = splitter("verify-port", sound, sound, "-b", demo_path)
    assert code == 0
    assert stdout.startswith("no divergence in 16 taps")
    values = arrays.read(sound)
    arrays.write(wrong, values | {"layers_t.0.gamma_2": values["layers_t.0.linear2"]})
    code, stdout, _ = splitter("verify-port", wrong, "-b", demo_path)
    assert code == 1
    assert stdout.splitlines()[0] == "first divergence: layers_t.0.gamma_2 (layer scale left out)"
    assert "layers_t.0.gelu" in stdout
    code, stdout, _ = splitter("verify-port", wrong, "-b", demo_path, "--failures")
    assert code == 1
    assert stdout.splitlines()[0] == "first divergence: layers_t.0.gamma_2 (layer scale left out)"
    assert "layers_t.0.gelu" not in stdout
    code, stdout, _ = splitter("verify-port", wrong, "-b", demo_path, "--json")
    assert code == 1
    report = json.loads(stdout)
    assert report["first_divergence"] == {"tap": "layers_t.0.gamma_2", "cause": "layer scale left out"}
    assert len(report["missing"]) == 154
    code, stdout, _ = splitter("goldens", demo_path, "-o", tmp_path / "tiny.npz", "--tiny")
    assert code == 0
    assert len(stdout.splitlines()) == 16 + 22
    code, _, err = splitter("goldens", demo_path, "-o", tmp_path / "x.npz", "--stage", "middle")
    assert code == 1
    assert "unknown segment 'middle'" in " ".join(err.split())


def test_a_dump_that_cannot_be_read_is_one_message(splitter, tmp_path, demo_path):
    code, _, err = splitter("verify-port", tmp_path / "nothing.npz", "-b", demo_path)
    assert code == 1
    assert "cannot be read as arrays by name" in " ".join(err.split())
    code, _, err = splitter("goldens", demo_path, "-o", tmp_path / "out.npz", "--taps", "layers.9.*")
    assert code == 1
    assert "no tap fits the name or pattern 'layers.9.*'" in " ".join(err.split())
    assert not (tmp_path / "out.npz").exists()


def tracks(directory, count, seconds=0.1):
    paths = [directory / f"{index}.wav" for index in range(count)]
    for seed, path in enumerate(paths):
        soundfile.write(path, np.random.default_rng(seed).uniform(-0.5, 0.5, (int(8000 * seconds), 2)), 8000)
    return paths


def test_a_batch_says_what_it_made_what_was_there_and_what_failed(splitter, tmp_path, toy_path):
    songs = tracks(tmp_path, 3)
    songs[1].write_text("no sound")
    code, out, err = splitter("separate", *songs, "-b", toy_path, "-o", tmp_path / "out")
    assert code == 1
    assert out.splitlines() == [str(tmp_path / "out" / "duo" / name / f"{stem}.wav")
                                for name in ("0", "2") for stem in ("kept", "rest")]  # fmt: skip
    assert err.splitlines()[-2:] == ["2 separated, 0 there already, 1 failed", f"  {songs[1]}"]
    code, again, err = splitter("separate", *songs, "-b", toy_path, "-o", tmp_path / "out")
    assert (code, again) == (1, out)
    assert f"{songs[0]}: its stems are there already (--force makes them again)" in err
    assert "0 separated, 2 there already, 1 failed" in err
    unchanged = ["--clip-mode", "none"]  # nothing to say of a gain
    code, out, err = splitter(
        "separate", songs[0], "-b", toy_path, "-o", tmp_path / "out", "--force", "--json", *unchanged
    )
    assert code == 0
    assert [line.split(":")[0] for line in err.splitlines()] == ["engines"]
    assert json.loads(out)["files"][0]["attempts"] == 1
    code, out, _ = splitter("separate", songs[0], "-b", toy_path, "-o", tmp_path / "out", "--json", *unchanged)
    assert json.loads(out)["files"][0]["attempts"] == 0


@pytest.mark.slow
def test_what_is_piped_stays_out_of_the_terminal(tmp_path, toy_path):
    """Bars in the terminal, paths in the pipe."""
    terminal, end = os.openpty()
    command = [SPLITTER, "separate", *tracks(tmp_path, 2), "-b", toy_path, "-o", tmp_path / "out"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=end, text=True) as process:
        os.close(end)
        shown = b""
        with suppress(OSError):  # Linux ends the reading of a terminal by EIO
            while read := os.read(terminal, 1 << 16):
                shown += read
        assert len(process.stdout.readlines()) == 4
    assert process.returncode == 0
    shown = shown.decode()
    assert "all files" in shown
    assert "2/2 files" in shown
    assert "kept.wav" not in shown
    os.close(terminal)


def test_interrupt_that_became_an_error_on_its_way_is_one(splitter, monkeypatch):
    """As extension modules make of it that import others."""

    def importing(standalone_mode):
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            raise EngineError("numpy must import", received="an interrupt") from None

    monkeypatch.setattr(cli, "command", importing)
    found = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        assert splitter("build") == (130, "", "splitter: error: interrupted; nothing half-written was left behind\n")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, found)


@pytest.mark.parametrize("verb", ["build", "separate", pytest.param("batch", marks=pytest.mark.slow)])
def test_interrupt_leaves_nothing_half_written(tmp_path, demo_path, verb):
    """A real SIGINT to a real process and those it started, as a terminal sends it, while they work."""
    if verb == "build":
        arguments = ["build", "demo", "-o", tmp_path / "out" / "b"]
    else:
        from splitter_weights.demo import songs

        long = np.tile(songs.mixture(songs.synthesise(5, 1)), 40).T
        files = [tmp_path / "a.wav", tmp_path / "b.wav"][: 2 if verb == "batch" else 1]
        for file in files:
            soundfile.write(file, long, 44_100)
        arguments = ["separate", *files, "-b", demo_path, "-o", tmp_path / "out", "-j", str(len(files)), *TORCH]
    process = subprocess.Popen(
        [sys.executable, "-c", _INTERRUPTIBLE, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    deadline = time.monotonic() + 120
    begun = "*.waiting" if verb == "batch" else "*"  # what a worker writes
    while not list((tmp_path / "out").rglob(begun)) and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(1.0)
    assert process.poll() is None, "it must still be working to be interrupted"
    started = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not [file for file in (tmp_path / "out").rglob("*") if file.is_file()]
    assert len(started) >= (2 if verb == "batch" else 0)
    assert not psutil.wait_procs(started, timeout=10)[1]


@pytest.mark.parametrize(
    "arguments", [["inspect", "DEMO"], ["inspect", "DEMO", "--json"], ["inspect", "none", "--json"]]
)
def test_a_full_disk_behind_standard_output_is_one_message(demo_path, arguments):
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    command = [str(demo_path) if one == "DEMO" else one for one in arguments]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run([SPLITTER, *command], stdout=full, stderr=subprocess.PIPE, text=True)  # noqa: PLW1510
    assert done.returncode == 1
    expected = "is no bundle" if "none" in arguments else "standard output cannot be written; got No space left"
    assert re.fullmatch(rf"splitter: error: .*{expected}.*\n", done.stderr)


def test_a_locale_of_ascii_alone_is_no_error(toy_path, song_path, tmp_path):
    shutil.copy(song_path, tmp_path / "café.wav")
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "SPLITTER_DEBUG": "1"}
    command = ["separate", "café.wav", "-b", toy_path, "--shifts", "0", *TORCH]
    twice = [sys.executable, "-c", _TWICE, "--force --json", *command]
    subprocess.run(twice, env=os.environ | plain, cwd=tmp_path, check=True, capture_output=True)
    done = subprocess.run([SPLITTER, "inspect", toy_path], env=os.environ | plain, check=True, capture_output=True)
    assert done.stdout.isascii()


def test_warnings_of_c_libraries_are_no_part_of_the_output(toy_path, tmp_path):
    """Nor is any of the command's own lost with them."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (44_100, 2))
    soundfile.write(tmp_path / "whole.mp3", noise, 44_100)
    comment = b"COMM\0\0\0\x0f\0\0" + b"\x09eng" + b"of no known encoding"  # libmpg123 says so
    head = b"ID3\x03\0\0\0\0\0\x40" + comment.ljust(64, b"\0")
    (tmp_path / "a.mp3").write_bytes(head + (tmp_path / "whole.mp3").read_bytes())
    command = [SPLITTER, "separate", "a.mp3", "-b", toy_path, "--shifts", "0", "--clip-mode", "none", *TORCH]
    done = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert "engines: analysis=torch" in done.stderr
    assert "encoding" not in done.stderr


def test_standard_output_may_be_closed(demo_path):
    done = subprocess.run(  # noqa: PLW1510
        ["sh", "-c", 'exec "$@" >&-', "sh", SPLITTER, "inspect", demo_path], stderr=subprocess.PIPE, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_brackets_in_names_are_names(splitter, demo_path, tmp_path):
    bundle = tmp_path / "a [live][b].bundle"
    bundle.symlink_to(demo_path)
    code, out, err = splitter("doctor", bundle, "--static", "--fail-on", "never")
    assert code == 0
    assert "a [live][b].bundle" in out
    assert "internal" not in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["separate", "x.wav", "-b", "DEMO", "--segment", "nan"], "nan is not a finite number"),
        (["build", "demo", "-o", "x", "--segment", "inf"], "inf is not a finite number"),
        (["tune", "precision", "demo", "-o", "x", "--on", "y", "--min-snr", "nan"], "nan is not a finite number"),
        (["plan", "demo", "--max-weight-mb", "nan"], "nan is not a finite number"),
        (["report", "DEMO", "--start", "inf"], "inf is not a finite number"),
        (["report", "DEMO", "--seconds", "nan"], "nan is not a finite number"),
        (["report", "DEMO", "-o", "."], "is a directory"),
        (["separate", "x.wav", "-b", "DEMO", "--mp3", "--mp3-bitrate", "100"], "MP3 has no bit rate of 100 kbit/s"),
        (["separate", "x.wav", "-b", "DEMO", "--samplerate", "44.1k"], "'44.1k' is not keep, model, or a number of Hz"),
        (["separate", "x.wav", "-b", "DEMO", "--samplerate", "12"], "impossible sample rate"),
        (["separate", "x.wav", "-b", "DEMO", "--samplerate", "96000", "--mp3"], "MP3 has no sample rate of 96,000 Hz"),
    ],
)
def test_numbers_and_names_that_are_none_are_refused(splitter, demo_path, arguments, message):
    code, _, err = splitter(*(demo_path if one == "DEMO" else one for one in arguments))
    assert code in (1, 2)
    assert message in err


@pytest.mark.parametrize("wrong", [["--two-stems", "piano"], ["--overlap", "2"], ["--shifts", "-1"]])
def test_options_are_refused_before_engines_are_measured(splitter, demo_path, song_path, monkeypatch, wrong):
    monkeypatch.setattr(selection, "fastest", lambda *given: pytest.fail("measured"))
    code, _, err = splitter("separate", song_path, "-b", demo_path, *wrong)
    assert (code, err.count("splitter: error: ")) == (1, 1)


def test_a_profile_of_another_model_is_refused_before_anything_is_measured(
    splitter, toy_path, tmp_path, monkeypatch, quick_profile
):
    profile = splitter("profile", toy_path, "--runs", 1, "--json")[1]
    assert '"samples": 64' in profile
    (tmp_path / "other.json").write_text(profile.replace('"samples": 64', '"samples": 65'))
    monkeypatch.setattr("splitter.profiling.measurement._Bench", lambda *given: pytest.fail("measured"))
    code, _, err = splitter("profile", toy_path, "--merge", tmp_path / "other.json")
    assert code == 1
    assert "one checkpoint and one length" in err


@pytest.mark.parametrize("arguments", [["--help"], ["inspect", "BUNDLE"], ["inspect", "BUNDLE", "--json"]])
def test_help_and_inspect_wait_for_no_torch(demo_path, arguments):
    script = (
        "import sys; from splitter import cli; from contextlib import suppress\n"
        "with suppress(SystemExit): cli.main()\n"
        "heavy = ('torch', 'jax', 'coremltools', 'demucs', 'scipy', 'matplotlib')\n"
        "if '--help' in sys.argv: heavy += ('numpy', 'pydantic', 'rich')\n"
        "print([name for name in heavy if name in sys.modules], file=sys.stderr)"
    )
    command = [str(demo_path) if argument == "BUNDLE" else argument for argument in arguments]
    result = subprocess.run([sys.executable, "-c", script, *command], check=True, capture_output=True, text=True)
    assert result.stdout
    assert result.stderr == "[]\n"


def test_help_groups_every_verb_and_has_a_line_for_it(splitter):
    _, out, _ = splitter("--help")
    titles = [
        line for line in out.splitlines() if line.endswith(":") and not line.startswith((" ", "Usage", "Options"))
    ]
    assert titles == ["Songs:", "Packages:", "Checks:", "Measurements:"]
    for verb in shell.command.list_commands(None):
        assert shell.command.get_command(None, verb).help, verb
        assert re.search(rf"^  {verb} +\S", out, re.MULTILINE), verb
    assert {*shell.command.commands} == {*shell.command.list_commands(None)}, "none is left out"


def test_every_option_says_what_it_does():
    def options(group, name):
        for verb in group.list_commands(None):
            kind = group.get_command(None, verb)
            yield from options(kind, verb) if hasattr(kind, "list_commands") else ((verb, one) for one in kind.params)

    bare = [
        (verb, option.name)
        for verb, option in options(shell.command, "")
        if option.param_type_name == "option" and not option.help
    ]
    assert not bare


def test_the_command_calls_the_public_interface_alone():
    """Reads the imports: what splitter says it offers, and the command's own modules. Tables name types besides."""
    for path in (ROOT / "splitter" / "cli").glob("*.py"):
        tree = ast.parse(path.read_text())
        for block in ast.walk(tree):
            if isinstance(block, ast.If) and ast.unparse(block.test) == "TYPE_CHECKING" and path.name == "tables.py":
                block.body.clear()
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                own = [name.name for name in node.names if name.name.split(".")[0].startswith("splitter")]
                assert own in ([], ["splitter"]), path.name
            elif isinstance(node, ast.ImportFrom) and node.level == 2:
                names = {name.name for name in node.names} if node.module is None else {node.module}
                assert names <= {*public.__all__, "names", "terminal"}, (path.name, names)  # how text is shown
            elif isinstance(node, ast.ImportFrom) and node.level == 0:
                assert not node.module.startswith("splitter"), path.name
            elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "splitter":
                assert node.attr in public.__all__, (path.name, node.attr)


@pytest.mark.slow
def test_what_passes_left_alone_is_explained(splitter, tmp_path):
    options = ("--passes", "norms-into-convs", "--no-reference", "--explain")
    code, out, _ = splitter("build", "demo", "-o", tmp_path / "a", *options, "--json")
    assert code == 0
    skipped = json.loads(out)["skipped"]
    kept = "what it normalises is no pointwise convolution to more channels that only it reads"
    assert kept in {place["reason"] for place in skipped}
    assert all(place.keys() == {"segment", "graph_pass", "node", "module", "reason"} for place in skipped)
    _, out, _ = splitter("build", "demo", "-o", tmp_path / "a", *options, "--force")
    assert skipped[0]["node"] in out
    assert skipped[0]["graph_pass"] in out


def test_help_is_there():
    result = subprocess.run([SPLITTER, "separate", "--help"], check=True, capture_output=True, text=True)
    for option in ("--two-stems", "--other-method", "--shifts", "--overlap", "--segment", "--mp3", "--flac", "--float32",
                   "--int24", "--clip-mode", "--filename", "--bundle", "--name", "--out", "--engine", "--fast",
                   "--jobs", "--force", "--json"):  # fmt: skip
        assert option in result.stdout


def test_doctor_says_what_it_found_and_exits_by_it(splitter, demo_path):
    package = demo_path / "encoder.mlpackage"
    code, out, _ = splitter("doctor", package, "--static")
    assert code == 0
    assert "engine-extent" in out
    assert "1×2×66150, the limit is 16384" in out
    assert splitter("doctor", package, "--static", "--fail-on", "warning")[0] == 1
    assert splitter("doctor", package, "--static", "--fail-on", "never")[0] == 0
    assert "the limit is 65536" in splitter("doctor", package, "--static", "--chip", "m4")[1]


def test_doctor_json_is_one_document(splitter, demo_path, demo_bundle, tmp_path):
    arrays.write(tmp_path / "in.npz", demo_bundle.goldens())
    code, out, _ = splitter("doctor", demo_path, "--inputs", tmp_path / "in.npz", "--json")
    assert code == 0
    document = json.loads(out)
    assert [one["measured"] for one in document["packages"]] == [True, True]
    assert document["summary"]["error"] == 0
    code, out, _ = splitter("doctor", tmp_path, "--json")
    assert code == 1
    assert json.loads(out)["error"]["kind"] == "PackageError"
    code, _, err = splitter("doctor", demo_path, "--static", "--inputs", tmp_path / "in.npz")
    assert code == 1
    assert "--inputs and --static" in err
