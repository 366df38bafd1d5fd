import pytest
import torch
from torch import nn
from torch.nn import functional as f

from splitter import passes

from .harness import applied, captured, predicted, targets, types_hold

EXTENT = 64  # rows of 32
PASS = f"fold-long-axes(extent={EXTENT})"


def noise(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def seeded(make):
    torch.manual_seed(0)
    return make()


def folded(program, example):
    """The program after the pass, and its output as it is outside."""
    program, _ = applied("norms-safe-in-half", program, example)
    rewritten, changes = applied(PASS, program, example)
    x = example["x"]
    if "x" in rewritten.folds:
        fold = rewritten.folds["x"]
        x = f.pad(x, (0, fold.rows * fold.columns - x.shape[-1])).reshape(*x.shape[:-1], fold.rows, fold.columns)
    given = {"x": x}
    assert types_hold(rewritten, given)
    y = rewritten.run(given)["y"]
    if "y" in rewritten.folds:
        fold = rewritten.folds["y"]
        y = y.reshape(*y.shape[:-2], -1)
        assert not y[..., fold.length :].any(), "it is zero behind its end, so that the next package can take it"
        y = y[..., : fold.length]
    return rewritten, changes, y


def longest(program):
    return max(extent for node in program.graph.nodes if node.op != "output" for extent in node.meta["type"].shape)


class Encoder(nn.Module):
    """What HT Demucs's time branch is made of, at another size."""

    def __init__(self, dilation=2):
        super().__init__()
        self.conv = nn.Conv1d(2, 8, 8, 4, 2)
        self.inner = nn.Conv1d(8, 4, 3, dilation=dilation, padding=dilation)
        self.norm = nn.GroupNorm(1, 4)
        self.outer = nn.Conv1d(4, 16, 1)
        self.norm2 = nn.GroupNorm(2, 16)
        self.scale = nn.Parameter(torch.rand(8))

    def forward(self, x):
        x = f.gelu(self.conv(f.pad(x, (0, -x.shape[-1] % 4))))
        return x + self.scale[:, None] * f.glu(self.norm2(self.outer(f.gelu(self.norm(self.inner(x))))), dim=1)


class Decoder(nn.Module):
    def __init__(self):
        super().__init__()
        self.rewrite = nn.Conv1d(2, 4, 3, 1, 1)
        self.up = nn.ConvTranspose1d(2, 3, 8, 4)

    def forward(self, x):
        y = f.glu(self.rewrite(x), 1)
        return f.gelu(self.up(y)[..., 2 : 2 + 4 * y.shape[-1] - 3])


CASES = {
    "convolution": (lambda: nn.Conv1d(2, 3, 3, padding=1), (1, 2, 201)),
    "convolution, dilated": (lambda: nn.Conv1d(2, 3, 3, padding=2, dilation=2), (1, 2, 201)),
    "convolution, no padding": (lambda: nn.Conv1d(2, 3, 5), (1, 2, 201)),
    "convolution, grouped, no bias, a batch": (lambda: nn.Conv1d(4, 8, 3, padding=1, groups=2, bias=False), (3, 4, 99)),
    "convolution, strided, stays long": (lambda: nn.Conv1d(2, 3, 8, 4, 2), (1, 2, 1003)),
    "convolution, strided, becomes short": (lambda: nn.Conv1d(2, 3, 8, 4, 2), (1, 2, 203)),
    "a length that fills its rows": (lambda: nn.Conv1d(2, 3, 3, padding=1), (1, 2, 224)),
    "transposed, not trimmed": (lambda: nn.ConvTranspose1d(2, 3, 8, 4, 2), (1, 2, 75)),
    "transposed, from short": (Decoder, (1, 2, 50)),
    "transposed, from long": (Decoder, (1, 2, 203)),
    "norm, glu, scale, skip; stays long": (Encoder, (1, 2, 1003)),
    "norm, glu, scale, skip; far neighbours": (lambda: Encoder(8), (1, 2, 1001)),
    "up and down": (lambda: nn.Sequential(Encoder(), nn.Conv1d(8, 2, 1), Decoder()), (2, 2, 1001)),
}


@pytest.mark.parametrize(("make", "shape"), CASES.values(), ids=CASES)
def test_folded_equals_unfolded(make, shape):
    program, example = captured(lambda self, x: self.m(x), noise(*shape), m=seeded(make))
    rewritten, changes, y = folded(program, example)
    assert changes
    assert longest(program) > EXTENT >= longest(rewritten)
    torch.testing.assert_close(y, program.run(example)["y"], rtol=0, atol=3e-6)


def test_operators_before_and_after():
    program, example = captured(
        lambda self, x: self.m(x), noise(1, 2, 201), m=seeded(lambda: nn.Conv1d(2, 3, 3, padding=1))
    )
    rewritten, _ = applied(PASS, program, example)
    neighbour = ["slice.Tensor", "slice.Tensor", "constant_pad_nd.default"]
    assert targets(program) == ["conv1d.default"]
    assert targets(rewritten) == [*neighbour, *neighbour, "cat.default", "view.default", "conv2d.default", "mul.Tensor"]


def test_package_of_a_folded_program(tmp_path):
    program, example = captured(lambda self, x: self.m(x), noise(1, 2, 1003), m=seeded(Encoder))
    rewritten, _, y = folded(program, example)
    fold = rewritten.folds["x"]
    x = f.pad(example["x"], (0, fold.rows * fold.columns - 1003)).reshape(1, 2, fold.rows, fold.columns)
    result = predicted(rewritten, x, tmp_path, precision="fp32")
    torch.testing.assert_close(result.flatten(2)[..., : y.shape[-1]], y, rtol=0, atol=3e-6)


NEAR_MISSES = {
    "a stride that is no power of two": (lambda self, x: f.conv1d(x, self.w, stride=3), "conv1d.default"),
    "a beginning that moves": (lambda self, x: x[..., 2:] * 1, "slice.Tensor"),
    "a step": (lambda self, x: x[..., ::2] * 1, "slice.Tensor"),
    "an order of samples": (lambda self, x: x.flip(-1), "flip.default"),
    "a softmax over the axis": (lambda self, x: x.softmax(-1), "softmax.int"),
    "a norm that is not written out": (lambda self, x: f.group_norm(x, 1), "group_norm.default"),
    "a maximum that may be negative": (lambda self, x: x.amax((1, 2), True), "amax.default"),
    "a mean that drops its axes": (lambda self, x: x.mean((1, 2)), "mean.dim"),
    "a mean of the channels": (lambda self, x: x.mean(1, True), "mean.dim"),
    "glu of the axis itself": (lambda self, x: f.glu(x, 2), "glu.default"),
    "a quotient of two": (lambda self, x: x / (x * x + 1), "div.Tensor"),
    "padding in front": (lambda self, x: f.pad(x, (1, 0)), "pad.default"),
    "padding beyond the rows": (lambda self, x: f.pad(f.conv1d(x, self.w, stride=2), (0, 5)), "pad.default"),
    "padding with another number": (lambda self, x: f.pad(x, (0, 1), value=2.0), "pad.default"),
    "channels mixed with samples": (lambda self, x: x.reshape(1, 1, -1) * 1, "view.default"),
}  # fmt: skip


@pytest.mark.parametrize(("forward", "target"), NEAR_MISSES.values(), ids=NEAR_MISSES)
def test_near_misses_are_unfolded_first(forward, target):
    program, example = captured(forward, noise(1, 2, 222), w=noise(3, 2, 3))
    rewritten, _ = applied(PASS, program, example)  # holds the result against the unfolded one
    (node,) = (one for one in program.operators if str(one.target) == f"aten.{target}")
    (kept,) = (one for one in rewritten.operators if one.name == node.name or one.args[1:] == node.args[1:])
    assert kept.meta["type"] == node.meta["type"]
    assert kept.args[0].meta["type"] == node.args[0].meta["type"]


def test_short_axes_are_left_alone():
    program, example = captured(lambda self, x: f.gelu(x), noise(1, 2, EXTENT))
    assert applied(PASS, program, example) == (program, 0)


def test_doubles_are_left_alone():
    program, example = captured(lambda self, x: f.gelu(x), noise(1, 2, 222).double())
    assert applied(PASS, program, example) == (program, 0)


def test_garbage_behind_the_end_never_comes_back():
    """A bias fills the samples behind the end; a second convolution must find zeros there."""
    bias = torch.full((2,), 100.0)
    program, example = captured(
        lambda self, x: f.conv1d(f.conv1d(x, self.w, self.b, padding=1) + 1.0, self.w, padding=1),
        noise(1, 2, 201), w=noise(2, 2, 3), b=bias,
    )  # fmt: skip
    _, _, y = folded(program, example)
    torch.testing.assert_close(y, program.run(example)["y"], rtol=1e-6, atol=1e-4)


def test_places_without_a_folded_form_say_why():
    """A maximum along the long axis, which zeros behind the end could be; an operator that nobody has folded."""
    program, example = captured(lambda self, x: x.amax([2], True) + x.cumsum(2), noise(1, 4, 1000))
    skipped = {skip.reason for skip in passes.apply(PASS, program, example).skipped}
    assert "zeros behind the end could be its maximum" in skipped
    assert any("aten.cumsum" in reason for reason in skipped)
