import shutil
import sys

import minisign
import pytest

from splitter import cli
from splitter.bundle import signing
from splitter.bundle.directory import Bundle, load, write_manifest
from splitter.bundle.manifest import BagManifest
from splitter.errors import BundleError, UsageError

from ..sealing import edit, flip


def pair(directory, name, password=None):
    """Files of a key pair: secret, public."""
    keys = minisign.KeyPair.generate()
    public = directory / f"{name}.pub"
    public.write_bytes(bytes(keys.public_key))
    if password is not None:
        keys.secret_key.encrypt(password, opslimit=32768, memlimit=1 << 24)  # the least, for speed
    secret = directory / f"{name}.key"
    secret.write_bytes(bytes(keys.secret_key))
    return secret, public


@pytest.fixture
def bundle(toy_path, tmp_path):
    shutil.copytree(toy_path, tmp_path / "toy.bundle")
    return tmp_path / "toy.bundle"


@pytest.fixture
def run(monkeypatch, capsys):
    def call(*words):
        monkeypatch.setattr(sys, "argv", ["splitter", *map(str, words)])
        with pytest.raises(SystemExit) as exit_:
            cli.main()
        return exit_.value.code or 0, " ".join(capsys.readouterr().err.split())

    return call


def test_a_signed_bundle_is_opened_by_its_key_alone(bundle, tmp_path, run):
    secret, public = pair(tmp_path, "mine")
    _, other = pair(tmp_path, "other")
    assert run("verify", bundle, "--trusted-key", public)[0] == 1, "not signed yet"
    assert run("sign", bundle, "--key", secret) == (0, "")
    assert load(bundle, trusted_key=public).name == "duo"
    code, said = run("separate", "song.wav", "-b", bundle, "--trusted-key", other)
    assert code == 1
    assert "is not signed by the trusted key" in said
    assert "incompatible key identifiers" in said


def test_a_manifest_that_was_sealed_again_is_not_the_signed_one(bundle, tmp_path):
    secret, public = pair(tmp_path, "mine")
    signing.sign(bundle, secret, pytest.fail)
    edit(bundle, lambda content: content["model"].update(name="other"))
    assert load(bundle).name == "other", "without a key it says what it is"
    with pytest.raises(BundleError, match="not signed by the trusted key: .* found signature verification failed"):
        load(bundle, trusted_key=public)


@pytest.mark.parametrize("at", [0, 60, 150, 250, 300])
def test_a_signature_that_was_changed(bundle, tmp_path, at):
    secret, public = pair(tmp_path, "mine")
    written = signing.sign(bundle, secret, pytest.fail)
    flip(written, min(at, written.stat().st_size - 3))
    if at:  # the first line is nobody's
        with pytest.raises(BundleError, match="not signed by the trusted key"):
            load(bundle, trusted_key=public)


def test_the_signature_of_a_bag_is_of_its_members_too(bundle, tmp_path):
    bag = tmp_path / "bag"
    for name in ("a", "b"):
        shutil.copytree(bundle, bag / name)
    digests = (Bundle.load(bundle).manifest.digest,) * 2
    write_manifest(bag, BagManifest(name="two", members=("a", "b"), digests=digests, weights=((1, 0), (0, 1))))
    secret, public = pair(tmp_path, "mine")
    signing.sign(bag, secret, pytest.fail)
    assert len(load(bag, trusted_key=public).members) == 2
    edit(bag / "b", lambda content: content["model"].update(name="other"))
    with pytest.raises(BundleError, match="other digests"):
        load(bag, trusted_key=public)


def test_keys_with_a_password(bundle, tmp_path):
    secret, public = pair(tmp_path, "mine", password="correct horse")
    with pytest.raises(UsageError, match="cannot sign: .* found wrong password"):
        signing.sign(bundle, secret, lambda: "wrong")
    signing.sign(bundle, secret, lambda: "correct horse")
    assert load(bundle, trusted_key=public).name == "duo"


def test_what_is_no_key(bundle, tmp_path):
    (tmp_path / "none").write_text("nothing")
    with pytest.raises(UsageError, match="cannot sign: expected a secret key"):
        signing.sign(bundle, tmp_path / "none", pytest.fail)
    with pytest.raises(UsageError, match="cannot be read as a key"):
        load(bundle, trusted_key=tmp_path / "missing")


def test_a_damaged_bundle_is_not_signed(bundle, tmp_path, run):
    secret, _ = pair(tmp_path, "mine")
    flip(bundle / "goldens.safetensors")
    code, said = run("sign", bundle, "--key", secret)
    assert code == 1
    assert "goldens.safetensors was changed" in said
    assert not (bundle / signing.SIGNATURE).exists()


def test_without_the_library(bundle, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "minisign", None)
    with pytest.raises(UsageError, match=r"pip install 'splitter\[sign\]'"):
        load(bundle, trusted_key=tmp_path / "any")
