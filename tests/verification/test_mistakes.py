"""Known mistakes by operator: each can be computed, gives something else than the model, and names one thing."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from splitter.graph.capture import capture
from splitter.verification import mistakes

GENERATOR = torch.Generator().manual_seed(0)
IMAGE = torch.randn(2, 4, 8, 8, generator=GENERATOR)
TOKENS = torch.randn(2, 6, 4, generator=GENERATOR)
HEADS = torch.randn(3, 2, 6, 6, generator=GENERATOR)
SOUND = torch.randn(2, 256, generator=GENERATOR)
SPECTRUM = torch.randn(2, 33, 12, 2, generator=GENERATOR)
WINDOW = torch.hann_window(64)
TABLE = torch.randn(4, generator=GENERATOR)
WEIGHT = torch.randn(4, 4, generator=GENERATOR)
KERNEL = torch.randn(4, 4, 3, 3, generator=GENERATOR)


class Of(nn.Module):
    """A function as a module; its tensors that no input is are constants of the graph."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def inverse(x, **changes):
    settings = {"hop_length": 16, "window": WINDOW, "length": 160} | changes
    return torch.istft(torch.view_as_complex(x), 64, **settings)


CASES = {  # the operator, what computes it, of what, and how many mistakes are known at least
    "hann_window": (lambda x: x + torch.hann_window(256), SOUND, 2),
    "stft": (lambda x: torch.stft(x, 64, 16, window=WINDOW, center=False, return_complex=True).abs(), SOUND, 10),
    "istft": (inverse, SPECTRUM, 12),
    "pad": (lambda x: functional.pad(x, (3, 5), mode="reflect"), SOUND, 6),
    "view_as_real": (lambda x: torch.view_as_real(torch.complex(x, 2 * x)), SOUND, 1),
    "view_as_complex": (lambda x: torch.view_as_complex(x).abs() + x[..., 0], SPECTRUM, 1),
    "gelu": (functional.gelu, TOKENS, 6),
    "silu": (functional.silu, TOKENS, 6),
    "relu": (functional.relu, TOKENS, 6),
    "hardswish": (functional.hardswish, TOKENS, 6),
    "softmax": (lambda x: x.softmax(-1), TOKENS, 3),
    "scaled_dot_product_attention": (lambda x: functional.scaled_dot_product_attention(*x), HEADS, 6),
    "layer_norm": (lambda x: functional.layer_norm(x, (4,), TABLE, TABLE), TOKENS, 14),
    "group_norm": (lambda x: functional.group_norm(x, 2, TABLE, TABLE), IMAGE, 12),
    "batch_norm": (lambda x: functional.batch_norm(x, TABLE, TABLE**2, TABLE, TABLE), IMAGE, 13),
    "linear": (lambda x: functional.linear(x, WEIGHT, TABLE), TOKENS, 3),
    "conv2d": (lambda x: functional.conv2d(x, KERNEL, TABLE, padding=1), IMAGE, 8),
    "add": (lambda x: x + x.flip(1), TOKENS, 3),
    "sub": (lambda x: x - x.flip(1), TOKENS, 3),
    "mul": (lambda x: x * x.flip(1), TOKENS, 2),
    "div": (lambda x: x / (x.flip(1).abs() + 1), TOKENS, 2),
    "std": (lambda x: x.std(-1), TOKENS, 2),
    "var": (lambda x: x.var(-1), TOKENS, 1),
    "slice": (lambda x: x[:, 2:200], SOUND, 5),
}
ALIKE = {"softmax along axis -1", "mean not removed (RMSNorm)"}  # what the model itself may have


def node_of(case):
    function, x, _ = CASES[case]
    program = capture(Of(function).eval(), {"x": x}, ())
    found = [node for node in program.operators if str(node.target).startswith(f"aten.{case}.")]
    return program, found[0], {"x": x}


@pytest.mark.parametrize("case", CASES)
def test_every_mistake_can_be_made_and_changes_the_value(case):
    """Nothing else would tell: `verify-port` passes over a mistake that PyTorch refuses to compute."""
    program, node, inputs = node_of(case)
    known = list(mistakes.of(node))
    assert len(known) >= CASES[case][2]
    part = program.part({"x": program.input_nodes[0]}, {"value": node})
    copied = next(other for other in part.operators if other.name == node.name)
    right = part.run(inputs)["value"]
    for mistake in known:
        wrong = mistakes.computed(part, inputs, {copied: mistake})
        assert wrong.shape == right.shape, mistake.cause
        assert wrong.dtype == right.dtype, mistake.cause
        if mistake.cause not in ALIKE:
            assert not torch.equal(wrong, right), mistake.cause


def test_an_operator_without_known_mistakes_has_none():
    program = capture(Of(torch.sin).eval(), {"x": TOKENS}, ())
    assert list(mistakes.of(program.operators[0])) == []
