"""The stems that are asked for, and what they need of the models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np

from ..errors import UsageError
from .audio import Block
from .overlap_add import Stems

OtherMethod: TypeAlias = Literal["add", "minus", "none"]


@dataclass(frozen=True)
class Wanted:
    """What is written of a track, out of what is separated.

    Attributes:
        separated: Stems that the models must give, in their order.
        indices: Of these, among the stems of a model.
        two_stems: The stem beside which the rest is written; None where stems are written as they are.
        other_method: What the rest is.
    """

    separated: tuple[str, ...]
    indices: tuple[int, ...]
    two_stems: str | None
    other_method: OtherMethod

    @classmethod
    def of(
        cls, model: Sequence[str], stems: Sequence[str] | None, two_stems: str | None, other_method: OtherMethod
    ) -> Wanted:
        """Hold what is asked for against what there is.

        Args:
            model: The model's stems.
            stems: Only these; all where None.
            two_stems: Only this stem and the rest.
            other_method: Of ``two_stems``; ``add`` needs all stems, the others one.

        Raises:
            UsageError: A stem is not the model's, or is asked for twice; or both forms are given.
        """
        asked = [] if stems is None else [*stems]
        if two_stems is not None:
            if stems is not None:
                raise UsageError("--stems and --two-stems exclude each other", fix="Leave one of them out.")
            asked = [two_stems]
        elif stems is not None and not asked:
            raise UsageError("no stem is asked for", expected=f"one or more of {', '.join(model)}")
        for stem in asked:
            if stem not in model:
                raise UsageError(f"the model has no stem {stem!r}", fix=f"It has {', '.join(model)}.")
            if asked.count(stem) > 1:
                raise UsageError(f"the stem {stem!r} is asked for twice", fix="Name it once.")
        needs_all = not asked or (two_stems is not None and other_method == "add")
        separated = tuple(stem for stem in model if needs_all or stem in asked)
        return cls(separated, tuple(model.index(stem) for stem in separated), two_stems, other_method)

    @property
    def written(self) -> tuple[str, ...]:
        """Names of what is written, in order."""
        if (two := self.two_stems) is None:
            return self.separated
        rest = {"add": [f"no_{two}"], "minus": [f"minus_{two}"], "none": []}[self.other_method]
        return (two, *rest)

    def shares(self, weights: Sequence[Sequence[float]]) -> dict[int, tuple[str, ...]]:
        """Which models of a bag have a share in what is separated, and in which stems.

        Args:
            weights: ``weights[member][stem]``.
        """
        shares = {
            member: tuple(
                stem for stem, index in zip(self.separated, self.indices, strict=True) if weights[member][index]
            )
            for member in range(len(weights))
        }
        return {member: stems for member, stems in shares.items() if stems}

    def blocks(self, separated: Stems, mixture: Callable[[], Block]) -> dict[str, Block]:
        """What is written, by name.

        Args:
            separated: ``(stems, channels, n)``, as `separated` names them.
            mixture: Gives the same ``n`` samples of it, ``(channels, n)``.
        """
        stems: dict[str, Block] = dict(zip(self.separated, separated, strict=True))
        if (two := self.two_stems) is None:
            return stems
        given = {two: stems.pop(two)}
        if self.other_method == "add":
            given[f"no_{two}"] = np.sum([*stems.values()], axis=0, dtype=np.float32)
        elif self.other_method == "minus":
            given[f"minus_{two}"] = mixture() - given[two]
        return given
