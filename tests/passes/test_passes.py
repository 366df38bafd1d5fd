from dataclasses import dataclass

import pytest
import torch
from torch import nn

from splitter import passes
from splitter.errors import PassError, PlanError
from splitter.graph.capture import capture

from .harness import applied

EXPAND = torch.ops.aten.expand.default
PASS = "keep-broadcasts-small"


def captured(forward, **buffers):
    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in buffers.items():
                self.register_buffer(name, value)

    Module.forward = forward
    x = torch.randn(1, 4, 8, 6)
    return capture(Module().eval(), {"x": x}, ("y",)), {"x": x}


def count(program, target=EXPAND):
    return sum(node.target is target for node in program.operators)


def test_expanded_constant_is_kept_small():
    """Before: expand → mul → add. After: mul → add, on the small tensor."""
    program, example = captured(lambda self, x: x + 0.2 * self.c[None, :, :, None].expand_as(x), c=torch.randn(4, 8))
    assert count(program) == 1
    rewritten, changes = applied(PASS, program, example)
    assert (changes, count(rewritten)) == (1, 0)
    mul = next(node for node in rewritten.operators if node.target is torch.ops.aten.mul.Tensor)
    assert mul.meta["type"].shape == (1, 4, 8, 1)
    other = torch.randn(1, 4, 8, 6)
    assert torch.equal(rewritten.run({"x": other})["y"], program.run({"x": other})["y"])
    assert count(program) == 1, "the argument stays as it is"


NEAR_MISSES = {
    "its shape reaches the output": lambda self, x: self.c.expand_as(x) * 2,
    "it feeds an operator that does not broadcast": lambda self, x: torch.cat([x, self.c.expand_as(x)], 1),
    "it is multiplied with itself": lambda self, x: x.sum() * 0 + (e := self.c.expand_as(x)) * e,
    "the other operand is small too": lambda self, x: self.c.expand_as(x) + x[:, :, :1, :1],
    "one of its two uses needs the shape": lambda self, x: x + (e := self.c.expand_as(x)) + e.flatten().sum(),
}


@pytest.mark.parametrize("forward", NEAR_MISSES.values(), ids=NEAR_MISSES)
def test_near_misses_are_left_alone(forward):
    program, example = captured(forward, c=torch.randn(1, 1, 1, 6))
    before = count(program)
    rewritten, _ = applied(PASS, program, example)
    assert count(rewritten) == before > 0


def test_demo_encoder_has_the_case(demo_bundle):
    encoder = demo_bundle.segment("encoder")
    assert encoder.passes == {PASS: 1}
    assert demo_bundle.segment("decoder").passes == {PASS: 0}


def test_unknown_pass_is_named():
    program, example = captured(lambda self, x: x + 1)
    with pytest.raises(PlanError, match="keep-broadcasts-small"):
        passes.apply("no-such-pass", program, example)


def test_pass_that_breaks_its_promise_is_caught():
    @dataclass(frozen=True)
    class Nudge(passes.Pass):
        name = "nudge"
        max_abs = 0.0

        def apply(self, program):
            rewritten = program.copy()
            add = next(node for node in rewritten.operators if node.target is torch.ops.aten.add.Tensor)
            add.args = (add.args[0], add.args[1] + 1e-6)
            return passes.Rewriting(rewritten, 1)

    program, example = captured(lambda self, x: x + 1)
    with pytest.raises(PassError, match=r"max \|Δ\| ≤ 0, found max \|Δ\| = 9\.5"):
        passes.apply(Nudge(), program, example)


def test_arguments_are_read():
    assert passes.parsed("fold-long-axes").extent == 16_384
    assert passes.parsed(" fold-long-axes( extent = 65536 ) ").extent == 65_536
    assert passes.parsed("means-in-stages(most=64)").most == 64


@pytest.mark.parametrize(
    "text",
    [
        "fold-long-axes(65536)",
        "fold-long-axes(extent=1.5)",
        "fold-long-axes(extent=True)",
        "fold-long-axes(extent='a')",
        "fold-long-axes(depth=2)",
        "fold-long-axes(extent=open('x'))",
        "fold-long-axes(**{'extent': 2})",
        "fold-long-axes(extent=2",
        "fold-long-axes(extent=2))",
        "fold-long-axes(extent=2) + 1",
        "keep-broadcasts-small(extent=2)",
    ],
)
def test_other_arguments_are_refused(text):
    with pytest.raises(PlanError, match=r"(expected (fold-long-axes|keep-broadcasts-small)\(|unknown pass)"):
        passes.parsed(text)


def test_what_a_pass_requires_comes_before_it():
    for names in passes.PRESETS.values():
        passes.check_order(names)
    with pytest.raises(
        PlanError, match="'fold-long-axes' stands without or before 'norms-safe-in-half', which it needs"
    ):
        passes.check_order(["fold-long-axes(extent=64)", "norms-safe-in-half"])


def test_places_left_alone_say_why():
    program, example = captured(NEAR_MISSES["it feeds an operator that does not broadcast"], c=torch.randn(1, 1, 1, 6))
    rewriting = passes.apply(PASS, program, example)
    assert [skip.reason for skip in rewriting.skipped] == ["not every operator that reads it broadcasts by itself"]
    assert rewriting.skipped[0].node in {node.name for node in program.operators}
