import json
import shutil
from contextlib import ExitStack
from pathlib import Path

import jsonschema
import pytest

import splitter
from splitter.bundle import directory as bundles
from splitter.bundle.directory import Bundle, load, single, staged
from splitter.bundle.manifest import BagManifest, json_schema
from splitter.errors import BundleError, UsageError

from ..conftest import ROOT
from ..hostile import NAMES, PATHS
from ..sealing import edit, flip, seal


@pytest.fixture
def copy(demo_path, tmp_path):
    shutil.copytree(demo_path, tmp_path / "copy")
    return tmp_path / "copy"


def test_bundle_holds_every_piece(demo_path):
    assert {file.name for file in demo_path.iterdir()} == {
        "manifest.json",
        "analysis.json",
        "encoder.mlpackage",
        "transformer.safetensors",
        "decoder.mlpackage",
        "synthesis.json",
        "goldens.safetensors",
        "graph",
        "reference",
    }
    assert {file.name for file in (demo_path / "reference").iterdir()} == {"encoder.mlpackage", "decoder.mlpackage"}
    assert {file.name for file in (demo_path / "graph").iterdir()} == {
        "weights.safetensors",
        *(f"{name}.json" for name in ("model", "analysis", "encoder", "transformer", "decoder", "synthesis")),
    }


def test_manifest_obeys_the_published_schema(demo_path):
    published = json.loads((ROOT / "docs" / "manifest.schema.json").read_text())
    assert published == json_schema(), "run `make schema`"
    jsonschema.validate(json.loads((demo_path / "manifest.json").read_text()), published)


def test_manifest_lists_every_other_file(demo_bundle):
    files = {f.relative_to(demo_bundle.path).as_posix() for f in demo_bundle.path.rglob("*") if f.is_file()}
    assert set(demo_bundle.manifest.files) == files - {"manifest.json"}


def test_what_is_needed_to_trust_it_is_there(demo_bundle):
    manifest = demo_bundle.manifest
    assert {"splitter", "torch", "coremltools", "demucs", "numpy"} <= set(manifest.versions)
    assert len(manifest.model.checkpoint_sha256) == 64
    assert manifest.model.random_init is None
    assert manifest.plan.family == "htdemucs"
    assert manifest.golden.machine.threads > 0


def test_nothing_that_is_unpickled_is_in_it(demo_path):
    for file in demo_path.rglob("*"):
        if file.is_file():
            head = file.read_bytes()[:2]
            assert head not in (b"PK", b"\x80\x02", b"\x80\x04"), file


@pytest.mark.slow
def test_same_build_gives_the_same_bytes(demo_bundle, tmp_path):
    """Apart from what Core ML Tools stamps into its packages."""
    splitter.build("demo", tmp_path / "again")
    first, again = demo_bundle.manifest.files, Bundle.load(tmp_path / "again").manifest.files
    assert first.keys() == again.keys()
    differing = {name for name in first if first[name] != again[name]}
    assert {name.rpartition("/")[2] for name in differing} <= {"Manifest.json", "model.mlmodel"}, differing


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(format="splitter.bundle/99"), "format"),
        (lambda c: c.update(surprise=1), "surprise"),
        (lambda c: c.pop("plan"), "plan"),
        (lambda c: c["tensors"][0].update(bytes=1), "bytes"),
        (lambda c: c["files"].pop("goldens.safetensors"), "does not list; got goldens.safetensors"),
        (lambda c: c.update(whole="graph/other.json"), "does not list"),
        (lambda c: c["files"].update({"x": {"bytes": 0, "sha256": ""}}), "x is missing"),
    ],
)
def test_manifest_that_does_not_fit_is_named(copy, change, message):
    edit(copy, change)
    with pytest.raises(BundleError, match=message):
        Bundle.load(copy)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "\0", "[" * 100_000])
def test_manifest_that_is_no_manifest_is_named(copy, content):
    (copy / "manifest.json").write_text(content)
    with pytest.raises(BundleError, match=r"manifest\.json"):
        Bundle.load(copy)


def test_what_is_written_is_as_public_as_other_files(copy, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    allowed = {one.is_dir(): one.stat().st_mode for one in (tmp_path / "file", tmp_path / "folder")}
    with staged(tmp_path / "out", force=False) as directory:
        shutil.copytree(copy, directory, dirs_exist_ok=True)
        (directory / "graph").chmod(0o700)
        (directory / "graph" / "weights.safetensors").chmod(0o600)
    found = [tmp_path / "out", *(tmp_path / "out").rglob("*")]
    assert {one.stat().st_mode for one in found if one.is_dir()} == {allowed[True]}
    assert {one.stat().st_mode for one in found if one.is_file()} == {allowed[False]}


def test_a_file_that_may_not_be_read_is_named(copy, monkeypatch):
    def forbidden(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "lstat", forbidden)
    with pytest.raises(BundleError, match="cannot be read; got Permission denied"):
        Bundle.load(copy)


def test_missing_and_changed_files_are_named(copy):
    weights = copy / "graph" / "weights.safetensors"
    flip(weights)
    Bundle.load(copy)  # sizes alone cannot tell
    with pytest.raises(BundleError, match=r"weights\.safetensors was changed after the build: expected SHA-256"):
        Bundle.load(copy, check_hashes=True)
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(BundleError, match=r"weights\.safetensors was changed after the build: expected \d+ bytes"):
        Bundle.load(copy)
    weights.unlink()
    with pytest.raises(BundleError, match=r"weights\.safetensors is missing"):
        Bundle.load(copy)


def test_no_bundle_is_named(tmp_path):
    with pytest.raises(BundleError, match="Build one with `splitter build`"):
        Bundle.load(tmp_path)
    with pytest.raises(BundleError, match="Build one"):
        Bundle.load(tmp_path / "nowhere")


def test_unknown_segment_is_named(demo_bundle):
    with pytest.raises(UsageError, match="analysis, encoder, transformer, decoder, synthesis"):
        demo_bundle.segment("enkoder")


# ------------------------------------------------------------------------------------------ bags


@pytest.fixture
def bag(demo_path, tmp_path):
    for member in ("a", "b"):
        shutil.copytree(demo_path, tmp_path / "bag" / member)
    digest = Bundle.load(demo_path).manifest.digest
    manifest = BagManifest(
        name="pair", members=("a", "b"), digests=(digest, digest), weights=((1, 0, 0, 0), (0, 1, 1, 1))
    )
    bundles.write_manifest(tmp_path / "bag", manifest)
    return tmp_path / "bag"


def test_bag_opens_as_its_members(bag):
    opened = load(bag)
    assert (opened.name, len(opened.members)) == ("pair", 2)
    with pytest.raises(BundleError, match="is a bag of several models: expected a single bundle"):
        Bundle.load(bag)


def test_single_bundle_opens_as_a_bag_of_one(demo_path):
    opened = load(demo_path)
    assert (opened.name, opened.weights) == ("demo", ((1.0,) * 4,))


def test_what_is_open_is_taken_as_it_is(demo_bundle, bag):
    assert load(demo_bundle).members[0] is demo_bundle
    pair = load(bag)
    assert load(pair) is pair
    for source in (demo_bundle, load(demo_bundle), demo_bundle.path, str(demo_bundle.path)):
        assert single(source).manifest == demo_bundle.manifest
    for source in (pair, bag):
        with pytest.raises(BundleError, match="is a bag of several models: expected a single bundle"):
            single(source)


def test_what_is_open_is_read_again_to_be_checked(bag):
    opened = load(bag)
    with (bag / "b" / "analysis.json").open("r+b") as file:
        file.write(b" ")
    assert load(opened) is opened
    for source in (opened, opened.members[1]):
        with pytest.raises(BundleError, match="analysis.json was changed"):
            load(source, check_hashes=True)
        with pytest.raises(UsageError, match="cannot be read as a key"):
            load(source, trusted_key=bag / "no.key")


def test_a_bag_is_a_document(bag):
    document = json.loads(json.dumps(load(bag).to_dict()))
    assert [member["path"] for member in document["members"]] == [str(bag / "a"), str(bag / "b")]
    assert document["members"][1]["manifest"]["model"]["name"] == "demo"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c.update(members=["a", "c"]), "Build one"),
        (lambda c: c.update(weights=[[1, 0, 0, 0]]), "2 × 4"),
        (lambda c: c.update(members=["a"], digests=c["digests"][:1]), "1 × 4"),
        (lambda c: c.update(members=["a"]), "other digests"),
        (lambda c: c.update(digests=["0" * 64] * 2), "other digests"),
        (lambda c: c.update(members=[]), "members"),
    ],
)
def test_broken_bags_are_named(bag, change, message):
    edit(bag, change)
    with pytest.raises(BundleError, match=message):
        load(bag)


# --------------------------------------------------------------------------------------- staging


def begin(path, error, *, force=False):
    """Stage a directory and fail half way."""
    with staged(path, force=force) as directory:
        (directory / "file").write_text("x")
        raise error


def test_staged_directory_appears_whole_or_not_at_all(tmp_path):
    out = tmp_path / "deep" / "bundle"
    with staged(out, force=False) as directory:
        (directory / "file").write_text("x")
        assert not out.exists()
    assert (out / "file").read_text() == "x"
    with pytest.raises(KeyboardInterrupt):
        begin(tmp_path / "other", KeyboardInterrupt)
    assert {file.name for file in tmp_path.iterdir()} == {"deep"}
    assert {file.name for file in (tmp_path / "deep").iterdir()} == {"bundle"}


@pytest.mark.parametrize("exchange", [True, False])
def test_force_replaces_a_bundle_and_nothing_else(copy, tmp_path, exchange, monkeypatch):
    if not exchange:
        monkeypatch.setattr(bundles, "_exchange", lambda first, second: False)
    with pytest.raises(BundleError, match="Use --force"), staged(copy, force=False):
        pytest.fail("entered")
    with staged(copy, force=True) as directory:
        (directory / "new").write_text("x")
        assert (copy / "manifest.json").exists()
    assert [file.name for file in copy.iterdir()] == ["new"]
    assert {file.name for file in tmp_path.iterdir()} == {"copy"}

    with pytest.raises(BundleError, match="replaces only what it has built"), staged(copy, force=True):
        pytest.fail("entered")
    (tmp_path / "link").symlink_to(copy)
    with pytest.raises(BundleError, match="exists and is no bundle"), staged(tmp_path / "link", force=True):
        pytest.fail("entered")
    (tmp_path / "plain").write_text("mine")
    with pytest.raises(BundleError, match="exists and is no bundle"), staged(tmp_path / "plain", force=True):
        pytest.fail("entered")
    assert (tmp_path / "plain").read_text() == "mine"


def test_failed_rebuild_keeps_the_old_bundle(copy):
    with pytest.raises(RuntimeError, match="half way"):
        begin(copy, RuntimeError("half way"), force=True)
    Bundle.load(copy, check_hashes=True)


def test_full_disk_is_one_message(tmp_path):
    def fill(directory):
        raise OSError(28, "No space left on device", str(directory / "weights"))

    with pytest.raises(BundleError, match="No space left on device"), staged(tmp_path / "b", force=False) as directory:
        fill(directory)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("force", [False, True])
def test_of_two_that_build_the_same_the_second_is_told_or_replaces(copy, tmp_path, force):
    out = tmp_path / "b"
    with ExitStack() as stack:
        if not force:
            stack.enter_context(pytest.raises(BundleError, match="was made by another process meanwhile"))
        slow = stack.enter_context(staged(out, force=force))
        (slow / "mine").touch()
        with staged(out, force=False) as quick:
            shutil.copytree(copy, quick, dirs_exist_ok=True)
    assert (out / "mine").exists() == force
    assert (out / "manifest.json").exists() != force
    assert {file.name for file in tmp_path.iterdir()} == {"copy", "b"}


def test_what_takes_the_place_of_a_bundle_meanwhile_stays(copy, tmp_path):
    out = tmp_path / "b"
    with pytest.raises(BundleError, match="was made by another process"), staged(out, force=True):
        out.symlink_to(copy)
    Bundle.load(copy)
    assert out.is_symlink()
    out.unlink()
    with pytest.raises(BundleError, match="was made by another process"), staged(out, force=True):
        (out / "mine").mkdir(parents=True)
    assert (out / "mine").exists()


def test_empty_directory_may_become_a_bundle(tmp_path):
    (tmp_path / "b").mkdir()
    with staged(tmp_path / "b", force=False) as directory:
        (directory / "x").write_text("x")
    assert (tmp_path / "b" / "x").exists()


# ---------------------------------------------------------------------------------------- hostile names

PLACES = {
    "model name": lambda content, name: content["model"].update(name=name),
    "stem": lambda content, name: content["model"]["audio"].update(
        stems=[name, *content["model"]["audio"]["stems"][1:]]
    ),
    "segment": lambda content, name: content["segments"][0].update(name=name),
    "tensor": lambda content, name: content["tensors"][0].update(name=name),
    "producer": lambda content, name: content["tensors"][0].update(producer=name),
    "boundary": lambda content, name: content["segments"][0].update(inputs=[name]),
    "target": lambda content, name: content["segments"][0]["artifact"].update(target=name),
}
PATH_PLACES = {
    "artifact": lambda content, path: content["segments"][0]["artifact"].update(path=path),
    "program": lambda content, path: content["segments"][0].update(program=path),
    "reference": lambda content, path: content["segments"][0].update(reference=path),
    "uncompressed": lambda content, path: content["segments"][0].update(uncompressed=path),
    "weights": lambda content, path: content.update(weights=path),
    "whole": lambda content, path: content.update(whole=path),
    "golden": lambda content, path: content["golden"].update(path=path),
    "file": lambda content, path: content["files"].update({path: {"bytes": 0, "sha256": ""}}),
}


@pytest.fixture
def manifest_only(toy_path, tmp_path):
    (tmp_path / "manifest.json").write_bytes((toy_path / "manifest.json").read_bytes())
    return tmp_path


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("place", PLACES)
def test_a_hostile_name_in_a_manifest_is_refused(manifest_only, place, kind):
    edit(manifest_only, lambda content: PLACES[place](content, NAMES[kind]))
    with pytest.raises(
        BundleError, match=r"cannot be the name of a file|holds control characters|lone leading surrogate"
    ):
        Bundle.load(manifest_only)


@pytest.mark.parametrize("kind", PATHS)
@pytest.mark.parametrize("place", PATH_PLACES)
def test_a_hostile_path_in_a_manifest_is_refused(manifest_only, place, kind):
    edit(manifest_only, lambda content: PATH_PLACES[place](content, PATHS[kind]))
    with pytest.raises(
        BundleError, match=r"cannot be a path in a bundle|holds control characters|lone leading surrogate"
    ):
        Bundle.load(manifest_only)


@pytest.mark.parametrize("kind", NAMES)
@pytest.mark.parametrize("place", ["name", "member"])
def test_a_hostile_name_in_a_bag_is_refused(tmp_path, place, kind):
    content = {"format": "splitter.bag/2", "name": "pair", "members": ["a"], "digests": [""], "weights": [[1.0]]}
    content |= {"name": NAMES[kind]} if place == "name" else {"members": [NAMES[kind]]}
    seal(tmp_path, content)
    with pytest.raises(
        BundleError, match=r"cannot be the name of a file|holds control characters|lone leading surrogate"
    ):
        load(tmp_path)


@pytest.mark.parametrize("stems", [["kept", "Kept"], ["kept", "kept"]])
def test_stems_are_files_of_their_own(manifest_only, stems):
    edit(manifest_only, lambda content: content["model"]["audio"].update(stems=stems))
    with pytest.raises(BundleError, match="are one file on some systems"):
        Bundle.load(manifest_only)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: c["golden"].update(audio="a\x1b[2J"),
        lambda c: c["model"]["arguments"].update({"a\u202e": 1}),
        lambda c: c["plan"]["stages"][0].update(modules=["a\nb"]),
        lambda c: c["versions"].update(torch="2\x07"),
    ],
)
def test_text_that_hides_in_a_manifest_is_refused(manifest_only, change):
    edit(manifest_only, change)
    with pytest.raises(BundleError, match="holds control characters or others that hide text"):
        Bundle.load(manifest_only)
