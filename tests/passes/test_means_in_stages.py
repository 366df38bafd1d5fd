import math

import pytest
import torch

from .harness import applied, captured, predicted, targets, types_hold

PASS = "means-in-stages"
X = torch.rand(2, 3, 5, 4099, generator=torch.Generator().manual_seed(0)) + 1


@pytest.mark.parametrize("keepdim", [True, False])
@pytest.mark.parametrize("axes", [[3], [-1], [2, 3], [1, 2, 3], [0, 3], []], ids=str)
def test_equals_the_mean(axes, keepdim):
    program, example = captured(lambda self, x: x.mean(axes, keepdim=keepdim), X)
    rewritten, changes = applied(PASS, program, example)
    assert changes == 1
    assert types_hold(rewritten, example)
    expected = X.double().mean(axes or [0, 1, 2, 3], keepdim=keepdim)
    torch.testing.assert_close(rewritten.run(example)["y"].double(), expected, rtol=3e-7, atol=0)


def test_no_stage_takes_more_than_128():
    program, example = captured(lambda self, x: x.mean((1, 3)), X)
    rewritten, _ = applied(PASS, program, example)
    means = [node for node in rewritten.operators if node.target is torch.ops.aten.mean.dim]
    counts = [math.prod(n.args[0].meta["type"].shape[axis] for axis in n.args[1]) for n in means]
    assert counts == [125, 33, 3]


def test_five_axes_stay_five():
    """Core ML takes no more: chunks go into the axis before."""
    x = torch.rand(1, 1, 150, 4, 300, generator=torch.Generator().manual_seed(0))
    program, example = captured(lambda self, x: x.mean((2, 3, 4), keepdim=True), x)
    rewritten, changes = applied(PASS, program, example)
    assert changes == 1
    assert max(len(node.meta["type"].shape) for node in rewritten.operators) == 5
    torch.testing.assert_close(rewritten.run(example)["y"].double().squeeze(), x.double().mean(), rtol=3e-7, atol=0)


def test_a_half_accumulator_holds_them(tmp_path):
    program, example = captured(lambda self, x: x.mean(3), X)
    rewritten, _ = applied(PASS, program, example)
    expected = X.double().mean(3)
    result = predicted(rewritten, X, tmp_path, accumulators="half").double()
    assert ((result - expected) / expected).abs().max() < 4e-3
    plain = predicted(program, X, tmp_path, accumulators="half").double()
    assert ((plain - expected) / expected).abs().min() > 0.02, "4,099 terms in one stage stop growing"


NEAR_MISSES = {
    "few enough values": lambda self, x: x[..., :128].mean(-1),
    "another type": lambda self, x: x.double().mean(-1),
    "a type of its own": lambda self, x: x.mean(-1, dtype=torch.float64),
    "five axes and none to give room": lambda self, x: x[None].mean(-1),
    "a sum": lambda self, x: x.sum(-1),
}


@pytest.mark.parametrize("forward", NEAR_MISSES.values(), ids=NEAR_MISSES)
def test_near_misses_are_left_alone(forward):
    program, example = captured(forward, X)
    rewritten, changes = applied(PASS, program, example)
    assert changes == 0
    assert targets(rewritten) == targets(program)
