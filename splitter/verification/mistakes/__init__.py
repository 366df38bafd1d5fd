"""What ports get wrong, operator by operator: a mistake is another way to compute a node of the captured graph.

A mistake that reproduces what a port dumped names its cause. These are of operators, and so of every model. A model
family adds its own, see `splitter.models.Family.mistakes`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from torch import fx

from . import arithmetic, fourier, layers
from .mistake import Call, Mistake, computed

__all__ = ["Call", "Mistake", "computed", "of"]

_KNOWN: dict[object, Callable[[Call], Iterator[Mistake]]] = {
    **fourier.MISTAKES,
    **layers.MISTAKES,
    **arithmetic.MISTAKES,
}


def of(node: fx.Node) -> Iterator[Mistake]:
    """Every known mistake in computing a node, the likelier ones first."""
    if node.target in _KNOWN:
        yield from _KNOWN[node.target](Call.of(node))
