"""Songs whose stems would be the same files: they are found before anything runs, all at once."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from ..errors import UsageError
from .separator import Separator

_TEMPLATES = (  # proposed, the first that tells the tracks apart
    "{track}.{trackext}/{stem}.{ext}",
    "{folder}/{track}/{stem}.{ext}",
    "{folder}/{track}.{trackext}/{stem}.{ext}",
)


def check(separator: Separator, paths: Sequence[Path], out: Path) -> None:
    """Refuse a batch in which a stem would be a track's file, or another track's stem.

    Raises:
        UsageError: It names all such tracks.
    """
    tracks = {os.path.realpath(path): path for path in paths}
    for path, target in _targets(separator, paths, out):
        if tracks.get(os.path.realpath(target), path) != path:
            raise UsageError(
                f"the stem {target} of {path} would overwrite a track",
                fix="Choose another -o or --filename.",
            )
    groups = _colliding(separator, paths, out)
    if not groups:
        return
    several = [path for group in groups for path in group]
    template = next((candidate for candidate in _TEMPLATES if not _colliding(separator, several, out, candidate)), None)
    raise UsageError(
        "stems of several tracks would be the same files",
        received="; ".join(f"{folder} for {' and '.join(map(str, group))}" for group, folder in groups.items()),
        fix=f"Use --filename '{template}'." if template else "Separate them one by one, each with an -o of its own.",
    )


def _colliding(
    separator: Separator, paths: Sequence[Path], out: Path, template: str | None = None
) -> dict[tuple[Path, ...], Path]:
    """Tracks that would write the same files: the folder of the first such file by all of its tracks."""
    sources: dict[str, dict[Path, None]] = {}
    folders: dict[str, Path] = {}
    for path, target in _targets(separator, paths, out, template):
        real = os.path.realpath(target)
        sources.setdefault(real, {})[path] = None
        folders.setdefault(real, target.parent)
    groups: dict[tuple[Path, ...], Path] = {}
    for real, together in sources.items():
        if len(together) > 1:
            groups.setdefault(tuple(together), folders[real])
    return groups


def _targets(
    separator: Separator, paths: Sequence[Path], out: Path, template: str | None = None
) -> Iterator[tuple[Path, Path]]:
    for path in paths:
        try:
            outputs = separator.outputs(path, out, template)
        except UsageError:  # its name: it fails when its turn comes, and the others do not
            continue
        for target in outputs.values():
            yield path, target
