import pytest
import torch
from torch import nn

from ..conftest import snr_db
from .harness import applied, captured, moved_db, predicted, targets, types_hold

PASS = "sums-with-remainders"
X = torch.randn(1, 6, 16, generator=torch.Generator().manual_seed(0)) * 3


def layers(*widths):
    torch.manual_seed(0)
    return nn.ModuleList(nn.Linear(width, width) for width in widths)


def stream(self, x):
    for layer in self.maps:
        x = x + layer(torch.tanh(x))
    return x


def turned(self, x):
    """Turned around between two sums, and joined and cut as einops does it."""
    for rows, columns in zip(self.maps[::2], self.maps[1::2], strict=True):
        x = rows(torch.tanh(x)) + torch.cat([x])[:, :6]
        x = x.transpose(1, 2)
        x = (columns(torch.tanh(x)) + x).transpose(1, 2).clone()
    return x


@pytest.mark.parametrize(("forward", "widths"), [(stream, [16] * 8), (turned, [16, 6] * 4)])
def test_sums_lose_less(tmp_path, forward, widths):
    program, example = captured(forward, X, maps=layers(*widths))
    rewritten, changes = applied(PASS, program, example)
    assert changes == 8
    assert targets(rewritten).count("sub.Tensor") == 14
    assert types_hold(rewritten, example)
    assert moved_db(program, rewritten, example) > 125
    expected = program.run(example)["y"].numpy()
    plain, carried = (snr_db(expected, predicted(one, X, tmp_path / name, "fp16").numpy())
                      for name, one in (("plain", program), ("carried", rewritten)))  # fmt: skip
    assert carried > plain + 1.5


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: x + self.maps[0](x),  # one sum has nobody to take its remainder
        lambda self, x: self.maps[1](self.maps[0](x) + self.maps[1](x)) + x,  # two streams
        lambda self, x: torch.add(x + self.maps[0](x), self.maps[1](x), alpha=2),
        lambda self, x: (y := x + torch.tanh(x)) + torch.tanh(y),  # what is added is no linear map
    ],
)
def test_other_sums_stay(forward):
    program, example = captured(forward, X, maps=layers(16, 16))
    assert applied(PASS, program, example)[1] == 0


def test_short_chains_stay_where_longer_ones_are_asked_for():
    program, example = captured(stream, X, maps=layers(16, 16, 16))
    assert applied(f"{PASS}(sums=4)", program, example)[1] == 0
    assert applied(f"{PASS}(sums=3)", program, example)[1] == 3
