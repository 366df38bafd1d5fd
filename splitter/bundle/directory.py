"""The directory a build writes and everything else reads."""

from __future__ import annotations

import ctypes
import hashlib
import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from pydantic import ValidationError
from pydantic_core import from_json
from safetensors import SafetensorError
from safetensors.numpy import load as tensors_in

from .. import output, reading
from ..boundary import INPUT, OUTPUT, Array, TensorSpec
from ..errors import BundleError, SplitterError, UsageError
from ..plan.schema import MAIN, readable
from . import signing
from .files import BUILD_AGAIN, Files
from .manifest import (
    BAG_FORMAT,
    BUNDLE_FORMAT,
    FILENAME,
    AudioRecord,
    BagManifest,
    FileRecord,
    Manifest,
    SegmentRecord,
    VariantRecord,
)

if TYPE_CHECKING:  # to look at a bundle takes no torch
    from ..graph.program import Program
    from ..graph.weights import Weights

_FORMATS = (BUNDLE_FORMAT, BAG_FORMAT)
_OLDER = ("splitter.bundle/1", "splitter.bag/1")


@dataclass(frozen=True)
class Bundle:
    """One built model on disk. Open it with `Bundle.load`."""

    path: Path
    manifest: Manifest
    variant: str = ""  # for which shapes of the inputs, where it has several
    _programs: dict[str, Program] = field(default_factory=dict, repr=False)

    @classmethod
    def load(cls, path: Path | str, *, check_hashes: bool = False) -> Bundle:
        """Open a bundle.

        Args:
            path: Its directory.
            check_hashes: Read every file and compare it with the manifest.

        Raises:
            BundleError: There is none, its manifest does not fit the schema, or a file differs.
        """
        content, _ = _read_manifest(Path(path))
        if content.get("format") == BAG_FORMAT:
            raise _several(Path(path))
        return cls._of(Path(path), content, check_hashes=check_hashes)

    @classmethod
    def _of(cls, path: Path, content: Mapping[str, object], *, check_hashes: bool) -> Bundle:
        """The bundle of a manifest that was read."""
        try:
            bundle = cls(path, Manifest.model_validate(content))
        except ValidationError as error:
            raise _damaged(path / FILENAME, readable(error)) from error
        bundle.files.check_listing(bundle._referenced())
        if check_hashes:
            for name in bundle.manifest.files:
                bundle.files.checked(name)
        return bundle

    @property
    def segments(self) -> tuple[SegmentRecord, ...]:
        return self.manifest.segments

    @cached_property
    def variants(self) -> Mapping[str, Bundle]:
        """The bundle for each shape of its inputs, by the variant's name; the first is itself, with the example's."""
        further = {variant.name: self._with(variant) for variant in self.manifest.variants}
        return {self.variant or MAIN: self, **further}

    def _with(self, variant: VariantRecord) -> Bundle:
        return replace(self, manifest=self.manifest.of_variant(variant), variant=variant.name)

    @property
    def label(self) -> str:
        """Its path, and the variant where that is not the example's."""
        return f"{self.path}, {self.variant}" if self.variant else str(self.path)

    @cached_property
    def tensors(self) -> Mapping[str, TensorSpec]:
        """Every boundary tensor by name."""
        return {spec.name: spec for spec in self.manifest.tensors}

    @property
    def audio(self) -> AudioRecord:
        """What the model separates. Raises `UsageError` if it is no separator."""
        model = self.manifest.model
        if model.audio is None:
            raise UsageError(
                f"the model {model.name!r} does not separate sound",
                expected="a bundle with an audio record",
                received=f"one of the family {model.family!r} without",
            )
        return model.audio

    @cached_property
    def files(self) -> Files:
        """Its files. Nothing opens them but this."""
        return Files(self.path, self.manifest.files)

    @cached_property
    def inputs(self) -> tuple[str, ...]:
        """Names of the tensors that the model is given."""
        return tuple(spec.name for spec in self.manifest.tensors if spec.producer == INPUT)

    @cached_property
    def outputs(self) -> tuple[str, ...]:
        """Names of the tensors that the model gives."""
        return tuple(spec.name for spec in self.manifest.tensors if OUTPUT in spec.consumers)

    @cached_property
    def weights(self) -> Weights:
        """Weights of the captured programs."""
        from ..graph.weights import Weights

        return Weights(self.path / self.manifest.weights, self.files.read)

    def segment(self, name: str) -> SegmentRecord:
        for segment in self.segments:
            if segment.name == name:
                return segment
        raise UsageError(
            f"unknown segment {name!r}",
            fix=f"It has {', '.join(segment.name for segment in self.segments)}.",
        )

    def program(self, path: str) -> Program:
        """A captured program: ``manifest.whole`` or a segment's ``program``."""
        from ..graph import program as programs

        if path not in self._programs:
            self._programs[path] = programs.load(self.path / path, self.weights, self.files.read)
        return self._programs[path]

    def with_programs(self, programs: Mapping[str, Program], manifest: Manifest | None = None) -> Bundle:
        """The bundle with other programs in the place of some of its own, by path, and a manifest that says so."""
        other = replace(self, manifest=manifest or self.manifest, _programs=dict(programs))
        vars(other).update(files=self.files, weights=self.weights)  # each is read once for both
        return other

    def goldens(self) -> dict[str, Array]:
        """The recorded run of the untouched model, by tensor name."""
        path = self.path / self.manifest.golden.path
        content = self.files.read(path)
        try:
            tensors = tensors_in(content)
        except SafetensorError as error:
            raise _damaged(path, str(error)) from error
        if tensors.keys() != self.tensors.keys():
            raise _damaged(path, f"holds {sorted(tensors.keys() ^ self.tensors.keys())} or lacks them")
        return tensors

    def _referenced(self) -> set[str]:
        """Files and directories that the manifest names."""
        named: set[str] = set()
        parts: tuple[Manifest | VariantRecord, ...] = (self.manifest, *self.manifest.variants)
        for part in parts:
            named |= {part.weights, part.whole, part.golden.path}
            for segment in part.segments:
                named |= {segment.program, segment.artifact.path, segment.reference, segment.uncompressed}
        return named - {""}


@dataclass(frozen=True)
class Bag:
    """What `load` opens and `build` returns: one bundle, or several whose stems are averaged.

    Attributes:
        path: Its directory.
        name: Of the model.
        members: The bundles.
        weights: ``weights[member][stem]``, of the mean.
    """

    path: Path
    name: str
    members: tuple[Bundle, ...]
    weights: tuple[tuple[float, ...], ...]

    @classmethod
    def of(cls, bundle: Bundle) -> Bag:
        """A single bundle seen as a bag of one."""
        model = bundle.manifest.model
        stems = model.audio.stems if model.audio else ()
        return cls(bundle.path, model.name, (bundle,), ((1.0,) * len(stems),))

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 of the members' manifests, which hold the hashes of all their files, and of the weights.

        A file is read only if it has its hash in the manifest. So two bags of one fingerprint compute the same, or one
        of them is refused.
        """
        content = [self.name, *(member.manifest.model_dump(mode="json") for member in self.members), self.weights]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def to_dict(self) -> dict[str, Any]:
        """As JSON values: path and manifest of each member."""
        return {
            "members": [
                {"path": str(member.path), "manifest": member.manifest.model_dump(mode="json")}
                for member in self.members
            ]
        }


Source: TypeAlias = Path | str | Bundle | Bag  # what every function takes: a directory, or what was opened already


def load(source: Source, *, check_hashes: bool = False, trusted_key: Path | None = None) -> Bag:
    """Open a bundle, or a bag of several.

    Args:
        source: Its directory. What was opened already is opened again only for one of the checks below.
        check_hashes: As for `Bundle.load`.
        trusted_key: Public key that must have signed the manifest, see `splitter.bundle.signing`.

    Raises:
        BundleError: As `Bundle.load`, or the members do not belong together, or it is not signed by the key.
    """
    if isinstance(source, Bundle | Bag):
        if not check_hashes and trusted_key is None:
            return Bag.of(source) if isinstance(source, Bundle) else source
        source = source.path
    directory = Path(source)
    content, raw = _read_manifest(directory)
    if trusted_key is not None:
        signing.check(directory, raw, trusted_key)
    if content.get("format") != BAG_FORMAT:
        return Bag.of(Bundle._of(directory, content, check_hashes=check_hashes))
    try:
        manifest = BagManifest.model_validate(content)
    except ValidationError as error:
        raise _damaged(directory / FILENAME, readable(error)) from error
    for name in manifest.members:
        if not _inside(directory, name):
            raise _damaged(directory / FILENAME, f"member {name!r} lies outside the bag")
        if (directory / name).is_symlink():
            raise BundleError(
                f"member {name!r} of {directory} is a link", fix="Copy the bag with its files in place of links."
            )
    members = tuple(Bundle.load(directory / name, check_hashes=check_hashes) for name in manifest.members)
    if tuple(member.manifest.digest for member in members) != manifest.digests:
        raise _damaged(directory / FILENAME, "its members have other digests than it lists")
    first = members[0].audio
    for member in members[1:]:
        if member.audio.model_copy(update={"samples": first.samples}) != first:
            raise _damaged(directory / FILENAME, "its members differ in stems, sample rate or channels")
    if len(manifest.weights) != len(members) or any(len(row) != len(first.stems) for row in manifest.weights):
        raise _damaged(directory / FILENAME, f"its weights are not {len(members)} × {len(first.stems)}")
    return Bag(directory, manifest.name, members, manifest.weights)


def single(source: Source) -> Bundle:
    """The one bundle of a source.

    Raises:
        BundleError: As `load`, or it is a bag of several.
    """
    if isinstance(source, Bundle):
        return source
    if isinstance(source, Path | str):
        return Bundle.load(source)
    if len(source.members) > 1:
        raise _several(source.path)
    return source.members[0]


# ---------------------------------------------------------------------------------------- writing


@contextmanager
def staged(out: Path, *, force: bool) -> Iterator[Path]:
    """A directory to build in, which becomes ``out`` if the block ends well and vanishes if it does not.

    It lies beside ``out``, on the same file system, so that the last step is one rename; with ``force``
    an older bundle is exchanged for the new one in one step where the system can do that.

    Raises:
        BundleError: ``out`` exists and ``force`` is not given, or is not a bundle.
    """
    if out.is_symlink() or (out.exists() and not _replaceable(out)):
        raise BundleError(
            f"{out} exists and is no bundle",
            fix="Choose another directory; splitter replaces only what it has built.",
        )
    if out.exists() and not force and any(out.iterdir()):
        raise BundleError(f"{out} is a bundle already", fix="Use --force to replace it.")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        with output.staging(out.parent, "building") as folder:
            directory = folder / out.name
            directory.mkdir()
            yield directory
            output.as_created(directory)
            _move(directory, out, force=force)
    except OSError as error:
        raise BundleError(f"{out} cannot be written", received=str(error), fix="Nothing was left behind.") from error


def write_manifest(directory: Path, manifest: Manifest | BagManifest) -> None:
    """Write a manifest with its digest, which stands in a line of its own, the second, and is of all other bytes."""
    lines = manifest.model_copy(update={"digest": ""}).model_dump_json(indent=1).encode().split(b"\n", 2)
    rest = b"\n".join((lines[0], lines[2], b""))
    (directory / FILENAME).write_bytes(b"\n".join((lines[0], _digest_line(rest), lines[2], b"")))


def file_records(directory: Path) -> dict[str, FileRecord]:
    """Size and hash of every file under a directory, by its path in it."""
    files = sorted(file for file in directory.rglob("*") if file.is_file())
    return {file.relative_to(directory).as_posix(): file_record(file) for file in files}


def file_record(path: Path) -> FileRecord:
    """Size and hash of a file. Raises `OSError` if it cannot be read."""
    return FileRecord(bytes=path.stat().st_size, sha256=_sha256(path))


def _replaceable(out: Path) -> bool:
    if not out.is_dir():
        return False
    if not any(out.iterdir()):
        return True
    with suppress(SplitterError):
        content, _ = _parsed_manifest(out)
        return content.get("format") in (*_FORMATS, *_OLDER)
    return False


def _move(directory: Path, out: Path, *, force: bool) -> None:
    """Put a directory in another's place; what was there ends up where the first one was."""
    try:
        directory.rename(out)
        return
    except OSError:
        if not os.path.lexists(out):
            raise
    if not force or out.is_symlink() or not _replaceable(out):
        raise BundleError(
            f"{out} was made by another process meanwhile",
            fix="Choose another directory, or use --force to replace it.",
        )
    if not _exchange(directory, out):
        # No exchange on this system: between the two renames there is no bundle, but never half a one.
        old = directory.with_name(f"{out.name}.old")
        out.rename(old)
        try:
            directory.rename(out)
        except OSError:
            old.rename(out)
            raise


def _exchange(first: Path, second: Path) -> bool:
    """Swap two directories in one system call. False where the system or file system has none."""
    libc = ctypes.CDLL(None, use_errno=True)
    a, b = os.fsencode(first), os.fsencode(second)
    with suppress(AttributeError):
        if sys.platform == "darwin":
            return libc.renamex_np(a, b, 2) == 0  # RENAME_SWAP
        at_fdcwd, rename_exchange = -100, 2
        return libc.renameat2(at_fdcwd, a, at_fdcwd, b, rename_exchange) == 0
    return False


# ---------------------------------------------------------------------------------------- reading


def _read_manifest(directory: Path) -> tuple[dict[str, object], bytes]:
    """A manifest of this version that has its digest, and its bytes."""
    path = directory / FILENAME
    content, raw = _parsed_manifest(directory)
    if content.get("format") in _OLDER:
        model = content.get("model")
        name = str(model.get("name") if isinstance(model, dict) else content.get("name"))
        raise BundleError(
            f"{directory} is in a format of an earlier version",
            expected=" or ".join(_FORMATS),
            received=content["format"],
            fix=f"Build it again: splitter build {shlex.quote(name)} -o {shlex.quote(str(directory))} --force",
        )
    if content.get("format") not in _FORMATS:
        raise _damaged(path, f"format {content.get('format')!r}")
    lines = raw.split(b"\n", 2)
    expected = _digest_line(b"\n".join((lines[0], lines[-1])))
    if lines[1:2] != [expected]:
        raise BundleError(
            f"{path} was changed after the build",
            expected=f"the line {expected.decode().strip()}",
            received=repr(b"".join(lines[1:2])[:100].decode(errors="replace").strip()),
            fix=BUILD_AGAIN,
        )
    return content, raw


def _digest_line(rest: bytes) -> bytes:
    return b' "digest": "%s",' % hashlib.sha256(rest).hexdigest().encode()


def _parsed_manifest(directory: Path) -> tuple[dict[str, object], bytes]:
    """What a manifest says, and its bytes."""
    path = directory / FILENAME
    try:
        raw = reading.content(path)
        content = from_json(raw)
        reading.check_depth(content)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise BundleError(
            f"{directory} is no bundle: it holds no {FILENAME}", fix="Build one with `splitter build`."
        ) from error
    except (OSError, ValueError) as error:
        raise _damaged(path, str(error)) from error
    if not isinstance(content, dict):
        raise _damaged(path, f"a JSON {type(content).__name__} instead of an object")
    return content, raw


def _several(path: Path) -> BundleError:
    return BundleError(
        f"{path} is a bag of several models",
        expected="a single bundle",
        fix="Give the directory of one of its members.",
    )


def _damaged(path: Path, what: str) -> BundleError:
    return BundleError(f"{path} is damaged", received=what, fix=BUILD_AGAIN)


def _inside(directory: Path, name: str) -> bool:
    return (directory / name).resolve().is_relative_to(directory.resolve())


def _sha256(path: Path) -> str:
    with reading.opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
