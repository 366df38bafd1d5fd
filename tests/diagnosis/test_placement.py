"""Device changes on graphs small enough to count by hand."""

import itertools

import pytest

from splitter import mil
from splitter.diagnosis.placement import _changes, placed
from splitter.mil.graph import graph_of

from .harness import f32, mb, package


def chain(x):
    return mb.relu(x=mb.sin(x=mb.sin(x=mb.relu(x=x))))


def twins(x):
    """Two chains, entwined in the file: an order by device changes once, the file's order five times."""
    first, second = mb.relu(x=x), mb.sin(x=x)
    for _ in range(2):
        first, second = mb.relu(x=first), mb.sin(x=second)
    return first, second


def diamond(x):
    first = mb.relu(x=x)
    return mb.add(x=mb.sin(x=first), y=mb.exp(x=mb.sin(x=mb.exp(x=first))))


def turns(x):
    return mb.relu(x=mb.sin(x=mb.relu(x=mb.sin(x=mb.relu(x=x)))))


def late(x):
    """Whoever starts off the engine changes twice."""
    return mb.sin(x=mb.relu(x=x)), mb.sin(x=x)


def split(build, directory):
    graph = graph_of(mil.load(package(build, {"x": f32(1, 8)}, directory)).function)
    return graph, {node for node in graph.nodes if node.type == "sin"}


def least_changes(graph, off):
    """Over every order in which the operations can run."""

    def legal(order):
        known = set(graph.inputs)
        for node in order:
            if any(value not in known and not value.fixed for value in node.arguments):
                return False
            known.update(node.outputs)
        return True

    def changes(order):
        return sum((a in off) != (b in off) for a, b in itertools.pairwise(order))

    return min(changes(order) for order in itertools.permutations(graph.nodes) if legal(order))


@pytest.mark.parametrize(
    ("build", "changes", "crossing"), [(chain, 2, 2), (twins, 1, 0), (diamond, 2, 4), (turns, 4, 4), (late, 1, 1)]
)
def test_changes_are_the_fewest(build, changes, crossing, tmp_path):
    graph, off = split(build, tmp_path)
    found = placed(graph, off)
    assert found.changes == least_changes(graph, off)
    assert (found.changes, len(found.crossing)) == (changes, crossing)
    assert found.crossing_bytes == crossing * 8 * 4


def test_shares(tmp_path):
    def build(x):
        y = mb.linear(x=x, weight=f32(8, 8), name="first")
        return mb.linear(x=mb.sin(x=y), weight=f32(24, 8), name="second")

    graph = graph_of(mil.load(package(build, {"x": f32(1, 8)}, tmp_path)).function)
    found = placed(graph, {node for node in graph.nodes if node.name == "second"})
    assert (found.operation_share, found.flop_share) == (2 / 3, 1 / 4)
    assert found.crossing == ("sin_0",)


def test_one_device_changes_nothing(tmp_path):
    graph, _ = split(chain, tmp_path)
    for off in (set(), set(graph.nodes)):
        found = placed(graph, off)
        assert (found.changes, found.crossing) == (0, ())
    assert placed(graph, set()).flop_share is None
    assert _changes(graph, set(graph.nodes), device=False) == 0
