"""The host for Apple devices, run on stand-ins, against the Python one. `make swift-test` builds it."""

import json
import shutil

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from safetensors.numpy import load_file
from splitter_kernels import metal
from splitter_kernels.metal.library import Library
from splitter_weights.demo import songs

import splitter
from splitter.bundle.directory import load
from splitter.cli.shell import command
from splitter.runtime.orchestrator import Hook, Orchestrator
from splitter.separation.separator import Options, Separator
from splitter.verification.transformer import TappedTransformer

from ..conftest import snr_db
from ..sealing import seal
from .conftest import host

pytestmark = [pytest.mark.swift, pytest.mark.timeout(900)]


def verified(dump, bundle):
    return CliRunner().invoke(command, ["verify-port", str(dump), "-b", str(bundle)])


@pytest.mark.parametrize("order", ["forward", "shuffled"])
def test_its_steps_pass_tap_by_tap(demo_path, tmp_path, order):
    dump = tmp_path / "taps.safetensors"
    ran = host("dump", demo_path, "-o", dump, METAL_STANDIN_ORDER=order)
    assert ran.returncode == 0, ran.stderr
    report = verified(dump, demo_path)
    assert report.exit_code == 0, report.output
    assert "no divergence in 209 taps" in report.output


def test_what_it_is_told_wrongly_is_said(demo_path, tmp_path):
    ran = host("verify", tmp_path)
    assert ran.returncode == 1
    assert "must hold manifest.json" in ran.stderr
    ran = host("verify", demo_path, "--min-db", "1000")
    assert ran.returncode == 1
    assert "every boundary must reach" in ran.stderr


def separated(song_path, bundle, tmp_path, frames, *arguments, **options):
    """Stems of the beginning of a song: the host's, and Python's."""
    song, rate = soundfile.read(song_path, frames=frames, dtype="float32")
    soundfile.write(tmp_path / "song.wav", song, rate, subtype="FLOAT")
    ran = host("separate", tmp_path / "song.wav", "-b", bundle, "-o", tmp_path / "host", *arguments)
    assert ran.returncode == 0, ran.stderr
    for stem, expected in Separator(bundle, "default", options=Options(**options))(song.T, rate).items():
        found, found_rate = soundfile.read(tmp_path / "host" / f"{stem}.wav", dtype="float32")
        assert (found.shape, found_rate) == (song.shape, rate)
        yield stem, expected, found.T


def test_its_stems_are_those_of_python(demo_path, song_path, tmp_path):
    for stem, expected, found in separated(song_path, demo_path, tmp_path, 90_000, "--seed", "5", seed=5):
        assert snr_db(expected, found) > 100, stem


def test_six_stems_of_a_narrow_model_are_those_of_python(six_path, tmp_path):
    soundfile.write(tmp_path / "six.wav", songs.mixture(songs.synthesise(2.5, 3, 8000)).T, 8000, subtype="FLOAT")
    stems = list(separated(tmp_path / "six.wav", six_path, tmp_path, 20_000, "--shifts", "1", shifts=1))
    assert len(stems) == 6
    assert all(snr_db(expected, found) > 100 for _, expected, found in stems)
    assert host("verify", six_path).returncode == 0
    assert host("dump", six_path, "-o", tmp_path / "taps.safetensors").returncode == 0
    report = verified(tmp_path / "taps.safetensors", six_path)
    assert report.exit_code == 0, report.output
    assert "no divergence" in report.output


@pytest.mark.slow
def test_the_released_models_widths_pass(tmp_path):
    """With seeded weights, in runs of half a second: every step, and every boundary end to end."""
    splitter.build("htdemucs_6s", tmp_path / "wide", random_init=1, segment=0.5, reference=False)
    assert host("dump", tmp_path / "wide", "-o", tmp_path / "taps.safetensors").returncode == 0
    report = verified(tmp_path / "taps.safetensors", tmp_path / "wide")
    assert report.exit_code == 0, report.output
    assert host("verify", tmp_path / "wide").returncode == 0


def test_half_precision_on_the_gpu_is_that_of_the_kernels(six_path, tmp_path):
    ran = host("verify", six_path, "--storage", "half", "--min-db", "-1000", "-o", tmp_path / "half.safetensors")
    assert ran.returncode == 0, ran.stderr
    found, model = load_file(tmp_path / "half.safetensors"), TappedTransformer(load(six_path).members[0])
    inputs, outputs = ([found[name] for name in names] for names in (model.record.inputs, model.record.outputs))
    expected = metal.transformer(model.config, model.tensors, *inputs, library=Library("float16"))
    for given, computed in zip(outputs, expected, strict=True):
        assert computed.dtype == np.float16
        np.testing.assert_array_equal(given, computed)


def test_a_bench_lies_beside_a_profile(six_path, tmp_path):
    ran = host("bench", six_path, "--runs", "2")
    assert ran.returncode == 0, ran.stderr
    (tmp_path / "phone.json").write_text(ran.stdout)
    arguments = ["profile", str(six_path), "--runs", "1", "--json", "--merge", str(tmp_path / "phone.json")]
    report = CliRunner().invoke(command, arguments)
    assert report.exit_code == 0, report.output
    here = json.loads(report.stdout)
    (there,) = here["others"]
    assert [s["name"] for s in there["segments"]] == [s["name"] for s in here["segments"]]
    assert [s["flops"] for s in there["segments"]] == [s["flops"] for s in here["segments"]]
    assert [b["name"] for b in there["boundaries"]] == [b["name"] for b in here["boundaries"]]
    for segment in there["segments"]:
        (engine,) = segment["engines"]
        assert engine["engine"] == f"splitter-host, {segment['target']}"
        assert len(engine["latency"]["runs"]) == 2
        assert engine["memory"] is None
    assert 0.5 < there["run"]["accounted"] <= 1


def test_a_bag_is_averaged(demo_path, song_path, tmp_path):
    bag = tmp_path / "pair"
    for member in ("first", "second"):
        shutil.copytree(demo_path, bag / member)
    digest = json.loads((demo_path / "manifest.json").read_text())["digest"]
    content = {
        "format": "splitter.bag/2",
        "name": "pair",
        "members": ["first", "second"],
        "digests": [digest, digest],
        "weights": [[1, 0, 0.5, 3], [1, 1, 1, 1]],
    }
    seal(bag, content)
    arguments = ("--shifts", "1", "--overlap", "0.1")
    for stem, expected, found in separated(song_path, bag, tmp_path, 50_000, *arguments, shifts=1, overlap=0.1):
        assert snr_db(expected, found) > 100, stem
    seal(bag, content | {"digests": [digest, "0" * 64]})
    ran = host("separate", tmp_path / "song.wav", "-b", bag, "-o", tmp_path / "other")
    assert "members must have the digests that the bag lists" in ran.stderr


@pytest.mark.parametrize(
    ("options", "limit"),  # 60 in half precision: splitter's own two transforms, last bits apart, end at 64
    [
        pytest.param({"boundary_dtype": "fp16"}, 60, id="half boundaries"),
        pytest.param(
            {"optimise_for": "ane", "weights": {"layout": "mlx", "compress": "pal6"}}, 60, id="folded, palettes"
        ),
        pytest.param({"weights": {"qkv": "split", "compress": "int8"}}, 110, id="int8"),
        pytest.param({"weights": {"matrices": "fp16"}}, 110, id="halved matrices"),
    ],
)
def test_boundaries_of_other_forms_are_those_of_python(tmp_path, options, limit):
    bundle = splitter.build("demo", tmp_path / "demo.bundle", reference=False, **options).members[0]
    ran = host("verify", bundle.path, "--min-db", "-1000", "-o", tmp_path / "host.safetensors")
    assert ran.returncode == 0, ran.stderr
    found = load_file(tmp_path / "host.safetensors")
    engines = {"encoder": "mil", "decoder": "mil", "transformer": "numpy", "analysis": "numpy", "synthesis": "numpy"}
    seen = {}

    class Watch(Hook):
        def after_segment(self, segment, outputs):
            seen.update(outputs)

    orchestrator = Orchestrator(bundle, engines, hooks=[Watch()])
    orchestrator.run({name: bundle.goldens()[name] for name in bundle.inputs})
    assert found.keys() == seen.keys()
    measured = {name: snr_db(seen[name].astype(np.float32), found[name]) for name in seen if seen[name].size > 1}
    assert min(measured.values()) > limit, measured
