"""Some places of an output, and the same places of the whole output: bit for bit."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from splitter.passes import pruning
from splitter.passes.pruning import Part
from splitter.profiling import work

from .harness import captured, targets, types_hold


def narrowed(program, example, part):
    """A program for a part of its output, which gives what the whole one gives there."""
    need = pruning.needs(program, {"y": part})
    program_of_part = pruning.pruned(program, {"y": part}, dict.fromkeys(need))
    assert types_hold(program_of_part, example)
    expected = program.run(example)["y"].index_select(part.axis, torch.tensor(part.places))
    assert torch.equal(program_of_part.run(example)["y"], expected)
    return program_of_part, need


def tail(self, x):
    """Last layers as separators have them: of four stems with two channels, their spectrograms and waveforms."""
    y = functional.glu(self.rewrite(functional.gelu(x)), 1)
    z = self.up(y)[..., 2:-2, :].reshape(1, 4, 4, 9, 6) * 3 + 1
    z = z.reshape(1, 4, 2, 2, 9, 6).permute(0, 1, 2, 4, 5, 3).contiguous()
    z = functional.pad(torch.view_as_complex(z), (1, 1)).reshape(8, 9, 8)
    z = torch.istft(z, 16, 4, window=self.window, length=28).view(1, 4, 2, 28)
    return z + self.wave(y.mean(2)).view(1, 4, -1, 6).mean(3).reshape(1, 4, 2, -1)[..., :1]


@pytest.mark.parametrize("places", [(0,), (3,), (1, 2), (0, 3)])
def test_last_layers_and_inverse_transforms_of_other_stems_go(places):
    torch.manual_seed(0)
    program, example = captured(
        tail,
        torch.randn(1, 6, 9, 6),
        rewrite=nn.Conv2d(6, 8, 1),
        up=nn.ConvTranspose2d(4, 16, (5, 1)),
        wave=nn.Conv1d(4, 8, 1),
        window=torch.hann_window(16),
    )
    part, need = narrowed(program, example, Part(1, places))
    assert need == {"x": None}
    shapes = {str(node.target): node.meta["type"].shape for node in part.operators}
    assert shapes["aten.conv_transpose2d.input"] == (1, 4 * len(places), 13, 6)
    assert shapes["aten.istft.default"] == (2 * len(places), 28)
    assert part.parameters < program.parameters
    assert work.of(part).flops < work.of(program).flops


@pytest.mark.parametrize(
    ("forward", "part", "reads"),
    [
        (lambda self, x: torch.stack([x[:, 0].exp(), x[:, 1].sin(), x[:, 2].tanh()], 1), Part(1, (1,)), "sin"),
        (lambda self, x: torch.cat([x.exp(), x.sin()], 1), Part(1, (1, 2)), "exp"),
        (lambda self, x: torch.cat([x.exp(), x.sin()], 1), Part(1, (3, 4)), "sin"),
        (lambda self, x: functional.glu(torch.cat([x.exp(), x[:, :1].sin()], 1), 1), Part(1, (0,)), "exp"),
        (lambda self, x: torch.select_scatter(torch.select_scatter(x, x[:, 0].exp(), 1, 0), x[:, 1].sin(), 1, 1),
         Part(1, (1,)), "sin"),
    ],
    ids=["stack", "first", "second", "gate", "writing"],
)  # fmt: skip
def test_what_only_other_places_read_is_not_computed(forward, part, reads):
    program, example = captured(forward, torch.rand(2, 3, 4))
    left = targets(narrowed(program, example, part)[0])
    assert [name for name in left if name in ("exp.default", "sin.default", "tanh.default")] == [f"{reads}.default"]


@pytest.mark.parametrize(
    ("forward", "axis"),
    [
        (lambda self, x: x.softmax(1), 1),
        (lambda self, x: functional.conv1d(x, torch.ones(4, 2, 1), groups=2), 1),
        (lambda self, x: functional.group_norm(x, 1), 1),
        (lambda self, x: functional.pad(x, (0, 0, 1, 1)), 1),
        (lambda self, x: x.exp().reshape(2, 10), 1),
        (lambda self, x: x.cumsum(1), 1),
        (lambda self, x: (x @ x.transpose(1, 2)).flip(1), 1),
    ],
    ids=["softmax", "groups", "norm", "padding", "half a row", "sum", "order"],
)
def test_what_mixes_places_is_computed_whole(forward, axis):
    program, example = captured(forward, torch.rand(1, 4, 5))
    part, _ = narrowed(program, example, Part(axis, (1,)))
    whole, shapes = (
        {str(node.target): node.meta["type"].shape for node in graph.operators} for graph in (program, part)
    )
    (*_, last) = (node for node in program.operators if "view" not in str(node.target))
    assert shapes[str(last.target)] == whole[str(last.target)]


def test_an_input_can_come_as_the_part_that_is_needed():
    program, example = captured(lambda self, x: x.transpose(1, 2) * 2, torch.rand(1, 5, 3))
    wanted = {"y": Part(1, (0, 2))}
    need = pruning.needs(program, wanted)
    assert need == {"x": Part(2, (0, 2))}
    part = pruning.pruned(program, wanted, need)
    (result,) = part.run({"x": example["x"][..., [0, 2]]}).values()
    assert torch.equal(result, program.run(example)["y"][:, [0, 2]])


def test_parts_follow_numbers_into_another_shape():
    rng = np.random.default_rng(0)
    shapes = [(2, 3, 4), (6, 4), (2, 12), (24,), (1, 2, 1, 12), (4, 6), (2, 3, 2, 2), (8, 3), (3, 8)]
    followed = 0
    for before in shapes:
        for axis, extent in enumerate(before):
            places = tuple(np.flatnonzero(rng.random(extent) < 0.6).tolist()) or (0,)
            for after in shapes:
                part = pruning.through_reshape(Part(axis, places), before, after)
                if part is None:
                    continue
                followed += 1
                numbers = np.arange(math.prod(before))
                expected = numbers.reshape(before).take(places, axis).ravel()
                assert np.array_equal(numbers.reshape(after).take(part.places, part.axis).ravel(), expected)
    assert followed > 60
