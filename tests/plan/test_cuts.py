"""Divisions of a stage, against exhaustive search."""

import functools
import itertools
import math

import pytest
import torch
from torch import nn

from benchmarks.cuts import equal_cuts
from splitter.errors import UsageError
from splitter.graph.capture import capture
from splitter.plan import cuts as planner
from splitter.plan.cuts import divide, division


class Braided(nn.Module):
    """Two chains of widths that go up and down, joined at the end; every operator can be seen in the tests."""

    def __init__(self):
        super().__init__()
        self.first = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise((6, 2, 9, 3)))
        self.second = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise((6, 8, 1, 3)))

    def forward(self, x):
        y, z = x, x
        for one, other in zip(self.first, self.second, strict=True):
            y, z = one(y), torch.relu(other(z))
        return y + z


class Forked(nn.Module):
    """An operator with several results, one of which skips far ahead."""

    def forward(self, x):
        first, second = x.split(3, dim=1)
        return torch.relu(torch.sigmoid(torch.tanh(first) * 2) + 1) * second


@pytest.fixture(scope="module")
def braided():
    return capture(Braided().eval(), {"x": torch.zeros(4, 6)}, ("y",))


@pytest.fixture(scope="module")
def forked():
    return capture(Forked().eval(), {"x": torch.zeros(4, 6)}, ("y",))


@functools.cache
def assignments(operators, pieces, cost):
    """Balance and traffic of every division there is."""
    nodes = list(operators)
    edges = [(node, user) for node in nodes for user in node.users if user in nodes]
    costs = [cost(node) for node in nodes]
    found = []
    for chosen in itertools.product(range(pieces), repeat=len(nodes)):
        of = dict(zip(nodes, chosen, strict=True))
        if any(of[node] > of[user] or (node.meta["type"] is None and of[node] != of[user]) for node, user in edges):
            continue
        if len(set(chosen)) < pieces:
            continue
        shares = [sum(one for one, piece in zip(costs, chosen, strict=True) if piece == each) for each in range(pieces)]
        crossing = {node for node, user in edges if of[node] != of[user]}
        traffic = sum(4 * math.prod(node.meta["type"].shape) for node in crossing)
        found.append((pieces * max(shares) / sum(costs), traffic))
    return found


def exhaustive(program, pieces, balance, cost=planner.operators):
    """Least traffic of all divisions within a balance."""
    return min(
        (traffic for got, traffic in assignments(program.operators, pieces, cost) if got <= balance + 1e-9),
        default=math.inf,
    )


@pytest.mark.parametrize("pieces", [1, 2, 3])
@pytest.mark.parametrize("balance", [1.0, 1.25, 1.7, 3.0])
@pytest.mark.parametrize("which", ["braided", "forked"])
def test_least_traffic(which, pieces, balance, request):
    program = request.getfixturevalue(which)
    best = exhaustive(program, pieces, balance)
    if best == math.inf:
        with pytest.raises(UsageError, match="best balance"):
            divide(program, pieces, balance=balance)
        return
    found = divide(program, pieces, balance=balance)
    assert found.traffic == best
    assert found.balance <= balance
    assert sum(found.costs) == sum(map(planner.operators, itertools.chain(*found.pieces)))


def test_weights_as_the_cost(braided):
    found = divide(braided, 2, balance=1.3, cost=planner.weight_bytes)
    assert found.traffic == exhaustive(braided, 2, 1.3, planner.weight_bytes)
    assert sum(found.costs) == 4 * sum(parameter.numel() for parameter in Braided().parameters())


def test_the_balance_that_can_be_had_is_told_and_had(braided):
    with pytest.raises(UsageError, match=r"The best balance is 1\.2\."):
        divide(braided, 4, balance=1.0)
    assert divide(braided, 4, balance=1.2).balance == 1.2


def test_more_pieces_than_operators(forked):
    with pytest.raises(UsageError, match="fewer pieces"):
        divide(forked, 100)
    with pytest.raises(UsageError, match="too few pieces for a stage: expected 1 or more, found 0"):
        divide(forked, 0)


def test_what_cannot_be_walked_through_is_no_worse_than_the_programs_order(braided, monkeypatch):
    exact = {pieces: divide(braided, pieces, balance=2.0).traffic for pieces in (2, 3)}
    monkeypatch.setattr(planner, "_MAX_CUTS", 9)
    for pieces in (2, 3):
        for cost in (planner.operators, planner.weight_bytes):
            usual = equal_cuts(braided, pieces, cost=cost)
            assert divide(braided, pieces, balance=usual.balance).traffic <= usual.traffic
        assert divide(braided, pieces, balance=2.0).traffic >= exact[pieces]


def test_a_division_that_is_none(braided):
    first, *rest = braided.operators
    with pytest.raises(UsageError, match="do not hold every operator once"):
        division(braided, [rest])
    with pytest.raises(UsageError, match="do not hold every operator once"):
        division(braided, [[first, *rest], [first]])
    with pytest.raises(UsageError, match="lies in an earlier piece than"):
        division(braided, [rest, [first]])


def test_stages_of_the_demo(demo_bundle):
    """Two pieces of the encoder are its two branches: nothing passes between them."""
    program = demo_bundle.program(demo_bundle.segment("encoder").program)
    halves = divide(program, 2)
    assert halves.traffic == 0
    assert halves.balance <= 1.2


def test_accesses_to_a_tuple_cost_nothing(forked):
    """split, tanh, product, sigmoid, sum, relu, product; and two accesses."""
    assert len(forked.operators) == 9
    assert divide(forked, 1).costs == (7,)
