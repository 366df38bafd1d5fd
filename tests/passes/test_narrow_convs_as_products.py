import pytest
import torch
from torch import nn

from ..conftest import snr_db
from .harness import applied, captured, moved_db, predicted, targets, types_hold

PASS = "narrow-convs-as-products"
X = torch.randn(3, 24, 50, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv1d(24, 3, 3, padding=1),
        nn.Conv1d(24, 3, 3, padding=2, dilation=2, bias=False),
        nn.Conv1d(24, 2, 5, padding=20, dilation=10),
        nn.Conv1d(24, 3, 4, padding=3, dilation=2),
    ],
)
def test_equals_the_convolution(convolution, tmp_path):
    program, example = captured(lambda self, x: self.conv(x), X, conv=convolution)
    rewritten, changes = applied(PASS, program, example)
    assert changes == 1
    assert "conv1d.default" not in targets(rewritten)
    assert types_hold(rewritten, example)
    assert moved_db(program, rewritten, example) > 120
    assert snr_db(program.run(example)["y"].numpy(), predicted(rewritten, X, tmp_path, "fp32").numpy()) > 120


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv1d(24, 8, 3, padding=1),  # three products of 8 rows are as many as come in
        nn.Conv1d(24, 3, 1),
        nn.Conv1d(24, 3, 3),
        nn.Conv1d(24, 3, 3, padding=2),
        nn.Conv1d(24, 3, 3, padding=1, stride=2),
        nn.Conv1d(24, 3, 3, padding=1, groups=3),
        nn.Conv1d(24, 3, 3, padding=50, dilation=50),
    ],
)
def test_leaves_others_alone(convolution):
    program, example = captured(lambda self, x: self.conv(x), X, conv=convolution)
    assert applied(PASS, program, example) == (program, 0)


def test_leaves_sound_without_a_batch_alone():
    program, example = captured(lambda self, x: self.conv(x), X[0], conv=nn.Conv1d(24, 3, 3, padding=1))
    assert applied(PASS, program, example) == (program, 0)
