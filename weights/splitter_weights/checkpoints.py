"""Models by name or file: the demo, the released ones from the hub, checkpoints and bags on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from demucs.hf import DEFAULT_NAMESPACE, hf_repo_name
from demucs.htdemucs import HTDemucs
from torch import nn

from splitter import names
from splitter.errors import CheckpointError, UsageError

from . import bags, inspection
from .configurations import CONFIGURATIONS, RELEASED

DEMO = "demo"
NAMES = (DEMO, *CONFIGURATIONS)
SUFFIXES = (*inspection.SUFFIXES, ".yaml", ".yml")


@dataclass(frozen=True)
class Checkpoint:
    """A model and where it comes from.

    Attributes:
        name: e.g. ``"htdemucs"``, or the file's stem made safe by `splitter.names.readable`.
        model: demucs's own module, in eval mode.
        arguments: The constructor's keyword arguments as JSON values, fractions as ``"39/5"``.
        sha256: Of the file; None with random weights.
        random_init: Seed of random weights, or None.
    """

    name: str
    model: nn.Module
    arguments: Mapping[str, Any]
    sha256: str | None
    random_init: int | None = None


@dataclass(frozen=True)
class CheckpointBag:
    """One or more checkpoints of which a model is the weighted mean: ``weights[member][stem]``."""

    name: str
    members: tuple[Checkpoint, ...]
    weights: tuple[tuple[float, ...], ...]


def load(model: str | Path, *, random_init: int | None = None) -> CheckpointBag:
    """Load a model by name or file.

    Args:
        model: ``"demo"``, a released name (fetched from the hub, or found in its cache), or the path of a
            ``.safetensors`` or ``.th`` in demucs's format, or of a bag's ``.yaml`` beside its members.
        random_init: Seed to initialise a named configuration with instead of fetching weights.

    Raises:
        CheckpointError: The file is missing, damaged, or asks for more than a model file may.
        UsageError: There is no model of that name.
    """
    path = Path(model)
    if random_init is not None:
        return _randomly_initialised(str(model), random_init)
    if path.suffix in SUFFIXES or path.exists():
        return _from_file(path)
    if str(model) == DEMO:
        with resources.as_file(resources.files(__package__).joinpath("demo/demo.safetensors")) as demo:
            return _single(DEMO, demo)
    if str(model) in CONFIGURATIONS:
        return _from_hub(str(model))
    raise UsageError(
        f"unknown model {str(model)!r}",
        fix=f"Names are {', '.join(NAMES)}; files end in .safetensors, .th or .yaml.",
    )


def _from_file(path: Path) -> CheckpointBag:
    if path.suffix in (".yaml", ".yml"):
        return _bag(_named_after(path), path, lambda signature: path.with_name(f"{signature}.safetensors"))
    if path.suffix not in inspection.SUFFIXES:
        raise CheckpointError(
            f"{path} is no checkpoint",
            expected=f"a file whose name ends in {' or '.join(inspection.SUFFIXES)}",
            fix="Give the model file, not its directory.",
        )
    bag = _single(_named_after(path), path)
    (member,) = bag.members
    name = _released(path, str(member.sha256)) or bag.name
    return replace(bag, name=name, members=(replace(member, name=name),))


def _released(path: Path, sha256: str) -> str | None:
    """The name of the released model that a file is: demucs names files ``<signature>[-<start of the SHA-256>]``.

    Where the hash of the released file is not known, the signature is believed.
    """
    signature, _, start = path.stem.partition("-")
    for name, members in RELEASED.items():
        if [*members] == [signature]:
            known = members[signature] if path.suffix == ".safetensors" else None
            return name if sha256.startswith(start) and known in (None, sha256) else None
    return None


def _named_after(path: Path) -> str:
    """The model's name: the file's, with ``_`` for what cannot be in the name of a folder on every system."""
    name = names.readable(path.stem)
    if reason := names.fault(name, names.MOST_BYTES):
        raise CheckpointError(f"the name of {path} cannot be the name of a model: {reason}", fix="Rename the file.")
    return name


def _from_hub(name: str) -> CheckpointBag:
    """Fetch a released model through demucs's naming of its repositories, inspecting every file.

    The hub is asked for the newest revision: which commits hold the released files is not known here. What is known
    of the files themselves is held instead: the members by signature, and their SHA-256, see `RELEASED`.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # they steer the terminal, which only splitter's own progress may

    repository = f"{DEFAULT_NAMESPACE}/{hf_repo_name(name)}"

    def fetch(file: str) -> Path:
        try:
            return Path(hf_hub_download(repository, file, revision="main"))
        except Exception as error:  # the hub's client raises its own and every network library's
            raise CheckpointError(
                f"{file} of model {name!r} is not in the hub's cache and cannot be fetched",
                received=f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}",
                fix="Connect to the network, or give the path of a checkpoint file.",
            ) from error

    return _bag(name, fetch(f"{name}.yaml"), lambda signature: fetch(f"{signature}.safetensors"), RELEASED[name])


def _single(name: str, path: Path, sha256: str | None = None) -> CheckpointBag:
    model, digest = inspection.load(path, sha256=sha256)
    member = Checkpoint(name, model, _json_arguments(model), digest)
    return CheckpointBag(name, (member,), ((1.0,) * len(model.sources),))  # type: ignore[arg-type]


def _randomly_initialised(name: str, seed: int) -> CheckpointBag:
    if name not in CONFIGURATIONS:
        raise UsageError(
            f"there is no configuration {name!r} for random weights", fix=f"There are {', '.join(CONFIGURATIONS)}."
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = HTDemucs(**CONFIGURATIONS[name]).eval()
    member = Checkpoint(name, model, _json_arguments(model), None, seed)
    return CheckpointBag(name, (member,), ((1.0,) * len(model.sources),))


def _json_arguments(model: nn.Module) -> dict[str, Any]:
    args, kwargs = model._init_args_kwargs  # type: ignore[misc]
    given = dict(zip(("sources",), args, strict=False)) | dict(kwargs)
    return {key: str(value) if isinstance(value, Fraction) else value for key, value in sorted(given.items())}


def _bag(
    name: str, path: Path, member_path: Callable[[str], Path], released: Mapping[str, str | None] | None = None
) -> CheckpointBag:
    bag = bags.parsed(inspection.content(path, bags.MOST_BYTES), path.name)
    if released is not None and bag.models != list(released):
        raise CheckpointError(
            f"{path.name} is not the released one",
            expected=f"the members {', '.join(released)}",
            received=", ".join(bag.models),
            fix="Delete it and fetch it again.",
        )
    members = tuple(
        _single(signature, member_path(signature), (released or {}).get(signature)).members[0]
        for signature in bag.models
    )
    stems = len(members[0].model.sources)  # type: ignore[arg-type]
    weights = tuple(map(tuple, bag.weights or [[1.0] * stems] * len(members)))
    if len(weights) != len(members) or any(len(row) != stems for row in weights):
        raise CheckpointError(
            f"{path.name} does not give each member a weight per stem",
            expected=f"{len(members)} × {stems} weights",
            received=bag.weights,
        )
    if len({tuple(member.model.sources) for member in members}) != 1:  # type: ignore[arg-type]
        raise CheckpointError(f"the members of {path.name} give different stems")
    if bag.segment is not None:
        for member in members:
            member.model.segment = min(member.model.segment, Fraction(str(bag.segment)))  # type: ignore[type-var, assignment]
    if len(members) == 1:  # a bag of one is that model under the bag's name
        only = members[0]
        members = (Checkpoint(name, only.model, only.arguments, only.sha256),)
    return CheckpointBag(name, members, weights)
