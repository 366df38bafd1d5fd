"""Taps of any model: what each of its modules gives, and every boundary tensor, in the whole captured graph."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import fx

from ..boundary import Array
from ..bundle.directory import Bundle


class TappedModules:
    """The captured model of a bundle, observable at the last operator of every module.

    Attributes:
        taps: The node that each tap is, by name: a boundary tensor's, or the path of a module. In the graph's order.
        boundaries: Names of those that are boundary tensors.
    """

    def __init__(self, bundle: Bundle) -> None:
        self._bundle = bundle
        self._program = bundle.program(bundle.manifest.whole)
        nodes = {node.name: node for node in self._program.graph.nodes}
        found: dict[str, fx.Node] = {}
        for node in self._program.operators:
            path = node.meta["module"]
            while path:
                found[path] = node  # what a module computes last is what it gives
                path = path.rpartition(".")[0]
        found |= {name: nodes[node] for name, node in bundle.manifest.nodes.items()}
        order = {node: place for place, node in enumerate(nodes.values())}
        tensors = {name: node for name, node in found.items() if node.meta["type"] is not None}
        self.boundaries = frozenset(bundle.manifest.nodes)
        self.taps = dict(sorted(tensors.items(), key=lambda tap: order[tap[1]]))

    def run(self, observe: Callable[[str, Array], object]) -> None:
        """Run on the golden input, and show every tap's value as soon as it is known."""
        names: dict[fx.Node, list[str]] = {}
        for name, node in self.taps.items():
            names.setdefault(node, []).append(name)

        def seen(node: fx.Node, value: torch.Tensor) -> None:
            for name in names.get(node, ()):
                observe(name, value.resolve_conj().numpy())

        goldens = self._bundle.goldens()
        inputs = {name: torch.from_numpy(goldens[name]).clone() for name in self._program.inputs}
        for node in self._program.input_nodes:
            seen(node, inputs[str(node.target)])
        self._program.run(inputs, observe=seen)
