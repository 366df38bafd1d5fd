"""Signatures of bundles, in the format of minisign: who built this, where the manifest's digest says what was built.

A signature is of ``manifest.json``, which holds the hashes of all other files, and lies beside it. The keys are those
of ``minisign -G``, which also makes and checks such signatures by itself.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from .. import output, reading
from ..errors import BundleError, UsageError
from .manifest import FILENAME

SIGNATURE = f"{FILENAME}.minisig"


def sign(directory: Path, key: Path, password: Callable[[], str]) -> Path:
    """Sign the manifest of a bundle or a bag.

    Args:
        directory: The bundle, which was checked before.
        key: File of the secret key.
        password: Asked for where the key has one.

    Returns:
        The file of the signature.

    Raises:
        UsageError: The key cannot be used.
    """
    minisign = _library()
    try:
        secret = minisign.SecretKey.from_bytes(reading.content(key))
        if secret.is_encrypted():
            secret.decrypt(password())
        signature = secret.sign(reading.content(directory / FILENAME), trusted_comment=f"file:{FILENAME}")
    except (OSError, minisign.Error) as error:
        raise UsageError(f"{key} cannot sign", expected="a secret key of `minisign -G`", received=str(error)) from error
    with output.whole(directory / SIGNATURE) as waiting:
        waiting.write_bytes(bytes(signature))
    return directory / SIGNATURE


def check(directory: Path, manifest: bytes, key: Path) -> None:
    """Hold a manifest against the signature beside it.

    Args:
        directory: Where it lies.
        manifest: Its bytes as they are used.
        key: File of the public key that is trusted.

    Raises:
        BundleError: There is no signature, it is by another key, or of another manifest.
        UsageError: The key cannot be read.
    """
    minisign = _library()
    try:
        public = minisign.PublicKey.from_bytes(reading.content(key))
    except (OSError, minisign.Error) as error:
        raise UsageError(
            f"{key} cannot be read as a key", expected="a public key of `minisign -G`", received=str(error)
        ) from error
    try:
        public.verify(manifest, minisign.Signature.from_bytes(reading.content(directory / SIGNATURE)))
    except (OSError, minisign.Error) as error:
        raise BundleError(
            f"{directory} is not signed by the trusted key",
            expected=f"a signature of {FILENAME} in {SIGNATURE} by {key}",
            received=str(error),
            fix="Ask who built it, or leave out --trusted-key if you trust the source of the files.",
        ) from error


def _library() -> ModuleType:
    try:
        import minisign
    except ModuleNotFoundError as error:
        raise UsageError(
            "signatures need the package py-minisign", fix="Install it with: pip install 'splitter[sign]'"
        ) from error
    return minisign
