"""One flipped byte in any file of a bundle is refused, by name, by whatever reads the file."""

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np
import pytest
import soundfile
import torch

import splitter
from splitter import cli
from splitter.bundle import files
from splitter.bundle.directory import Bundle, load
from splitter.bundle.files import Files
from splitter.errors import BundleError, CacheError, SplitterError
from splitter.plan.schema import Plan
from splitter.profiling import limits, memory
from splitter.profiling.records import Limits
from splitter.runtime.engines import jax_engine
from splitter.runtime.orchestrator import Orchestrator
from splitter.separation import selection

from ..sealing import edit, flip, reseal
from ..toys import HYBRID_PLAN, duo

TARGETS = {"analysis": "host", "encoder": "coreml", "transformer": "coreml", "decoder": "coreml", "synthesis": "graph"}
PLAN = Plan.model_validate(
    HYBRID_PLAN.model_dump()
    | {"outputs": ["stems"], "stages": [s.model_dump() | {"target": TARGETS[s.name]} for s in HYBRID_PLAN.stages]}
)


@pytest.fixture(scope="module")
def toy(tmp_path_factory) -> Path:
    """Host stages, packages with their references, a graph: all kinds of files but a transformer's."""
    path = tmp_path_factory.mktemp("integrity") / "toy.bundle"
    splitter.build(duo(), path, plan=PLAN, precision="fp16")
    return path


@pytest.fixture(scope="module")
def song(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("integrity-song") / "song.wav"
    soundfile.write(path, np.random.default_rng(0).normal(0, 0.1, (200, 2)), 8000, subtype="FLOAT")
    return path


# ------------------------------------------------------------------------------------- the flipped-byte table

_opened: list[str] | None = None


def _note(event, arguments):
    if event == "open" and _opened is not None and isinstance(arguments[0], str | bytes | os.PathLike):
        _opened.append(os.fsdecode(arguments[0]))


sys.addaudithook(_note)


@contextmanager
def watching(bundle: Path) -> Iterator[set[str]]:
    """Names of the bundle's files that this process opens in the block, by whatever library."""
    global _opened
    _opened, names = [], set()
    try:
        yield names
    finally:
        opened, _opened = _opened, None
        below = (Path(path) for path in opened if Path(path).is_relative_to(bundle) and Path(path).is_file())
        names |= {path.relative_to(bundle).as_posix() for path in below}


VERBS = {
    "inspect": "inspect {bundle}",
    "verify": "verify {bundle} --json",
    "separate": "separate {song} -b {bundle} -o {out} --shifts 0 --force --engine analysis=numpy",
    "separate with packages": "separate {song} -b {bundle} -o {out} --shifts 0 --force --engine analysis=numpy "
    "--engine encoder=mil --engine transformer=mil --engine decoder=mil --engine synthesis=torch",
    "doctor": "doctor {bundle} --fail-on never",
    "profile": "profile {bundle} --runs 1 --engine encoder=torch --engine encoder=mil",
    "report": "report {bundle} -o {out}/report.html --force --runs 0",
}
TRANSFORMER_VERBS = {
    "goldens": "goldens {bundle} -o {out}/taps.safetensors --tiny",
    "verify-port": "verify-port {out}/dump.safetensors -b {bundle}",
    "separate on other engines": "separate {song} -b {bundle} -o {out} --shifts 0 --force --engine analysis=numpy "
    "--engine transformer=jax --engine encoder=openvino",
}


@pytest.fixture
def run(monkeypatch, capsys, song, tmp_path):
    """The command line in this process, where a profile measures in no other: exit code and all that was printed."""
    (tmp_path / "out").mkdir()
    monkeypatch.setattr(limits, "measured", lambda: Limits(flops_per_second=1e9, bytes_per_second=1e9))
    monkeypatch.setattr(memory, "measured", lambda bundle, *rest: memory._measure(str(bundle.path), *rest))
    monkeypatch.setattr(memory, "_resident", lambda: 0)  # a second each time, in a process of many modules

    def call(line: str, bundle: Path) -> tuple[int, str]:
        words = line.format(bundle=bundle, song=song, out=tmp_path / "out").split()
        monkeypatch.setattr(sys, "argv", ["splitter", *words])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        printed = capsys.readouterr()
        return exit_.value.code or 0, " ".join((printed.out + printed.err).split())

    return call


def copied(bundle: Path, directory: Path) -> Path:
    shutil.copytree(bundle, directory / "copy.bundle")
    return directory / "copy.bundle"


def flips_are_refused(line: str, bundle: Path, run) -> set[str]:
    """Run once to see what is read, then once for each of these files with a bit flipped; return what is read."""
    run(line, bundle)  # fills the caches
    with watching(bundle) as read:
        code, printed = run(line, bundle)
    assert code == 0, printed
    for name in sorted(read):
        file = bundle / name
        flip(file, file.stat().st_size // 2)
        code, printed = run(line, bundle)
        assert code != 0, f"{name} may be changed"
        assert "internal error" not in printed
        assert name in printed.replace(" ", ""), printed
        assert "changed after the build" in printed or name == "manifest.json", printed
        flip(file, file.stat().st_size // 2)
    assert run(line, bundle)[0] == 0, "and the flips did all of that"
    return read


@pytest.mark.parametrize("verb", VERBS)
def test_a_flipped_bit_is_refused_by_every_verb_that_reads_the_file(toy, tmp_path, run, verb):
    bundle = copied(toy, tmp_path)
    read = flips_are_refused(VERBS[verb], bundle, run)
    listed = {"manifest.json", *Bundle.load(bundle).manifest.files}
    assert read <= listed, "nothing else is there"
    expected = {
        "inspect": {"manifest.json"},
        "verify": listed,
        "separate": {"analysis.json", "graph/encoder.json", "graph/weights.safetensors"},
        "separate with packages": {name for name in listed if name.startswith("encoder.mlpackage/Data")},
        "doctor": {"goldens.safetensors", *(name for name in listed if name.startswith("decoder.mlpackage/Data"))},
        "profile": {"graph/encoder.json", "encoder.mlpackage/Manifest.json"},
        "report": listed,
    }
    assert expected[verb] <= read, "or the table would be empty"


def with_a_dump(bundle: Path, out: Path) -> None:
    from splitter.verification import taps

    taps.record(bundle, ("layers.0.*",), out=out / "dump.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS | TRANSFORMER_VERBS)
def test_the_table_of_the_demo(demo_path, tmp_path, run, verb, monkeypatch, song_path):
    bundle = copied(demo_path, tmp_path)
    if verb == "verify-port":
        with_a_dump(bundle, tmp_path / "out")
    line = (VERBS | TRANSFORMER_VERBS)[verb].replace("transformer=mil", "transformer=numpy")
    read = flips_are_refused(line.replace("{song}", str(song_path)), bundle, run)
    if verb in ("goldens", "verify-port"):
        assert {"graph/transformer.json", "graph/weights.safetensors", "goldens.safetensors"} <= read
    if verb in ("verify", "report", "separate on other engines"):
        assert "transformer.safetensors" in read


@pytest.mark.parametrize("at", range(0, 2000, 97))
def test_every_byte_of_the_manifest_counts(toy, tmp_path, at):
    """White space and the spelling of numbers too."""
    bundle = copied(toy, tmp_path)
    flip(bundle / "manifest.json", at)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.load(bundle)


@pytest.mark.parametrize("change", [(b"  ", b" \t"), (b"\n", b"\r\n"), (b"\n}", b"\n }")])
def test_the_layout_of_the_manifest_counts(toy, tmp_path, change):
    bundle = copied(toy, tmp_path)
    raw = (bundle / "manifest.json").read_bytes()
    (bundle / "manifest.json").write_bytes(raw.replace(*change))
    with pytest.raises(BundleError, match=r"manifest\.json was changed after the build"):
        Bundle.load(bundle)


def test_the_digest_is_what_any_tool_computes(toy):
    import hashlib

    first, second, *rest = (toy / "manifest.json").read_bytes().splitlines(keepends=True)
    digest = hashlib.sha256(b"".join([first, *rest])).hexdigest()  # sed 2d manifest.json | sha256sum
    assert second == f' "digest": "{digest}",\n'.encode()
    assert Bundle.load(toy).manifest.digest == digest


# ------------------------------------------------------------------------------------------- what is read


def test_nothing_but_files_opens_a_bundle(toy, tmp_path, run, monkeypatch):
    """Whatever a verb reads goes through `Files`, which hashes it."""
    names = set()
    hold = Files._hold
    monkeypatch.setattr(Files, "_hold", lambda self, name, *rest: names.add(name) or hold(self, name, *rest))
    for verb in ("separate", "doctor", "profile"):
        names.clear()
        with watching(toy) as read:
            code, printed = run(VERBS[verb], toy)
        assert code == 0, printed
        assert read == names | {"manifest.json"}


def test_what_is_used_is_what_was_hashed(toy, tmp_path):
    """A file that is exchanged after it was read, or while it is read again, changes nothing or is refused."""
    bundle = Bundle.load(copied(toy, tmp_path))
    expected = load(toy).members[0].program("graph/model.json").weights
    with bundle.weights.held():
        bundle.program("graph/encoder.json")
        weights = bundle.path / "graph" / "weights.safetensors"
        flip(weights)
        got = bundle.program("graph/model.json").weights
    assert all(torch.equal(got[name], one) for name, one in expected.items())
    with pytest.raises(BundleError, match=r"weights\.safetensors was changed"):
        Bundle.load(bundle.path).program("graph/model.json")


def test_shuffled_weights_separate_nothing(toy, tmp_path, run):
    """Wrong stems and exit code 0, once."""
    bundle = copied(toy, tmp_path)
    weights = bundle / "graph" / "weights.safetensors"
    raw = weights.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    values = np.random.default_rng(0).permutation(np.frombuffer(raw[start:], np.uint32))
    weights.write_bytes(raw[:start] + values.tobytes())
    code, printed = run(VERBS["separate"], bundle)
    assert code == 1
    assert "weights.safetensors was changed after the build" in printed
    assert not list((tmp_path / "out").rglob("*.wav"))


def test_a_changed_file_is_no_trial_of_an_engine(toy, tmp_path, monkeypatch):
    """The choice of engines is kept by the digest of the manifest: what a changed file did must not be."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    bundle = copied(toy, tmp_path)
    flip(bundle / "graph" / "weights.safetensors")
    with pytest.raises(BundleError, match="was changed"):
        selection.fastest(load(bundle).members)
    assert not list((tmp_path / "cache").rglob("*.json"))


@pytest.mark.parametrize("field", ["path", "reference", "uncompressed", "program"])
@pytest.mark.parametrize("target", ["/etc", "/etc/passwd", "../elsewhere", "spare"])
def test_every_referenced_path_is_listed(toy, tmp_path, field, target):
    bundle = copied(toy, tmp_path)
    (bundle / "spare").mkdir()
    (bundle / "spare" / "file").write_text("not listed")

    def change(content):
        segment = content["segments"][1]
        (segment["artifact"] if field == "path" else segment)[field] = target

    edit(bundle, change)
    refusal = "does not list" if target == "spare" else "cannot be a path in a bundle"
    with pytest.raises(BundleError, match=refusal):
        Bundle.load(bundle)


def test_a_file_that_a_package_should_not_have_is_refused(toy, tmp_path):
    bundle = copied(toy, tmp_path)
    (bundle / "notes.txt").write_text("a file beside them is nobody's")
    Bundle.load(bundle)
    (bundle / "encoder.mlpackage" / "Data" / "planted").write_text("x")
    with pytest.raises(BundleError, match=r"does not list; got encoder\.mlpackage/Data/planted"):
        Bundle.load(bundle)


@pytest.mark.parametrize("name", ["graph/weights.safetensors", "graph", "encoder.mlpackage/Data", "analysis.json"])
def test_links_are_refused(toy, tmp_path, name):
    bundle = copied(toy, tmp_path)
    (bundle / name).rename(tmp_path / "real")
    (bundle / name).symlink_to(tmp_path / "real")
    with pytest.raises(BundleError, match=rf"{name} is not a .*; got a link"):
        Bundle.load(bundle, check_hashes=True)


def test_a_bundle_may_be_reached_by_a_link(toy, tmp_path, run):
    (tmp_path / "link").symlink_to(toy)
    assert run(VERBS["separate with packages"], tmp_path / "link")[0] == 0


def test_a_pipe_in_place_of_a_file_does_not_hang(toy, tmp_path):
    bundle = copied(toy, tmp_path)
    opened = Bundle.load(bundle)
    (bundle / "goldens.safetensors").unlink()
    os.mkfifo(bundle / "goldens.safetensors")
    with pytest.raises(BundleError, match=r"goldens\.safetensors cannot be read; got it is a pipe"):
        opened.goldens()
    with pytest.raises(BundleError, match=r"goldens\.safetensors is not a regular file"):
        Bundle.load(bundle)


def test_a_library_that_opens_a_path_is_given_a_checked_one(toy, tmp_path):
    bundle = Bundle.load(copied(toy, tmp_path))
    assert bundle.files.checked("encoder.mlpackage") == bundle.path / "encoder.mlpackage"
    flip(next(bundle.path.glob("encoder.mlpackage/**/weight.bin")))
    with pytest.raises(BundleError, match=r"weight\.bin was changed"):
        bundle.files.checked("encoder.mlpackage")
    with pytest.raises(BundleError, match="does not list; got none"):
        bundle.files.checked("none")


def test_the_digest_of_a_file_is_of_bytes_that_were_read(toy, tmp_path):
    bundle = Bundle.load(copied(toy, tmp_path))
    flip(bundle.path / "graph" / "encoder.json")
    with pytest.raises(BundleError, match=r"graph/encoder\.json was changed"):
        bundle.files.digest("graph/encoder.json")


# -------------------------------------------------------------------------------------------- other versions


def test_a_bundle_of_an_earlier_version_says_how_to_build_it_again(toy, tmp_path):
    bundle = copied(toy, tmp_path)
    edit(bundle, lambda content: content.update(format="splitter.bundle/1"))
    with pytest.raises(BundleError, match=rf"splitter build duo -o {bundle} --force"):
        Bundle.load(bundle)
    splitter.build(duo(), bundle, plan=PLAN, reference=False, force=True)
    Bundle.load(bundle)


# ----------------------------------------------------------------------------------------------------- caches


def test_a_poisoned_bundle_fills_no_cache(demo_path, tmp_path, monkeypatch):
    """Once, its converted segments were kept by the digests that its manifest claimed, and the honest bundle used them."""
    pytest.importorskip("openvino", reason="OpenVINO is not installed (the extra `openvino`)")
    from splitter.runtime.engines.openvino_engine import OpenVINOEngine

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    poisoned = copied(demo_path, tmp_path)
    weights = poisoned / "graph" / "weights.safetensors"
    raw = weights.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    weights.write_bytes(raw[:start] + (2 * np.frombuffer(raw[start:], np.float32)).tobytes())
    honest = Bundle.load(demo_path)
    segment = honest.segment("encoder")
    given = {name: honest.goldens()[name] for name in segment.inputs}
    for claimed in (Bundle.load(poisoned), Bundle(poisoned, honest.manifest)):
        with pytest.raises(SplitterError, match=r"weights\.safetensors was changed"):
            OpenVINOEngine(claimed, segment, compute_units="ALL")
    reseal(poisoned)
    OpenVINOEngine(Bundle.load(poisoned), segment, compute_units="ALL")  # it says now what it is
    results = OpenVINOEngine(honest, segment, compute_units="ALL").run(given)
    golden = honest.goldens()
    assert all(np.allclose(results[name], golden[name], atol=1e-3) for name in segment.outputs)


def test_a_cache_of_others_is_not_used(toy, tmp_path, run, monkeypatch):
    """A planted bundle, once, and compiled programs that were run as they lay there."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    home = tmp_path / "cache" / "splitter"
    shutil.copytree(toy, home / "bundles" / "demo-0.1.0")
    home.chmod(0o777)
    code, printed = run("separate {song} -n demo -o {out}", toy)
    assert code == 1
    assert "can be written by others" in printed
    with pytest.raises(CacheError, match="Nothing in it was used"):
        selection.fastest(load(toy).members)
    kept = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    try:
        with pytest.raises(CacheError, match="can be written by others"):
            jax_engine._keep_compiled()
    finally:
        jax.config.update("jax_compilation_cache_dir", kept)


def test_bags_of_one_fingerprint_have_the_same_manifests(toy, tmp_path):
    bundle = copied(toy, tmp_path)
    assert load(bundle).fingerprint == load(toy).fingerprint
    flip(bundle / "goldens.safetensors")
    reseal(bundle)
    assert load(bundle).fingerprint != load(toy).fingerprint


def test_orchestrator_and_load_refuse_what_they_read(toy, tmp_path):
    bundle = copied(toy, tmp_path)
    for name in sorted(Bundle.load(bundle).manifest.files):
        flip(bundle / name)
        with pytest.raises(BundleError, match=f"{name} was changed"):
            Bundle.load(bundle, check_hashes=True)
        flip(bundle / name)
    for name, engines in (("encoder.mlpackage/Manifest.json", {"encoder": "mil"}), ("graph/decoder.json", {})):
        flip(bundle / name)
        with pytest.raises(BundleError, match=f"{name} was changed"):
            Orchestrator(Bundle.load(bundle), engines)
        flip(bundle / name)


def test_files_are_read_once_a_load(toy, monkeypatch):
    """Hashing costs what reading costs; twice is twice."""
    counted: list[str] = []
    real = files.reading.opened
    monkeypatch.setattr(files.reading, "opened", lambda path: counted.append(str(path)) or real(path))
    bundle = Bundle.load(toy)
    Orchestrator(bundle, dict.fromkeys(("encoder", "transformer", "decoder"), "mil"))
    once = [name for name in counted if not name.endswith("Manifest.json")]
    assert len(once) == len(set(once))
