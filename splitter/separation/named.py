"""Bundles by the name of their model: built once, in the user's cache."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version

from .. import cache
from ..bundle.directory import Bag, load
from ..errors import BundleError, UsageError


def named(name: str, progress: Callable[[str], None] = lambda phrase: None) -> Bag:
    """The bundle of a model's name, built by its preset where the cache does not hold it whole.

    Raises:
        UsageError: There is no model of this name.
    """
    from .. import models

    names = models.names()
    if name not in names:
        fix = f"Names are {', '.join(names)}. A bundle is given by its directory."
        raise UsageError(f"unknown model {name!r}", fix=fix)
    home = cache.directory("bundles") / f"{name}-{version('splitter')}"
    if (home / "manifest.json").exists():
        try:
            return load(home, check_hashes=True)
        except BundleError as error:
            progress(f"building the cached bundle again: {error}")
    from ..compiler import build

    return build(name, home, force=True, progress=progress)
