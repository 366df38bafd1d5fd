import pytest
import torch
from torch import nn

from ..conftest import snr_db
from .harness import applied, captured, moved_db, predicted, targets, types_hold

PASS = "transposed-convs-as-convs"
X = torch.randn(2, 6, 50, generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 6, 9, 11, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    ("convolution", "x"),
    [
        (nn.ConvTranspose1d(6, 4, 8, stride=4), X),
        (nn.ConvTranspose1d(6, 4, 9, stride=3, padding=2, bias=False), X),
        (nn.ConvTranspose1d(6, 4, 2, stride=2), X),
        (nn.ConvTranspose2d(6, 4, (8, 1), stride=(4, 1)), IMAGE),
        (nn.ConvTranspose2d(6, 4, (1, 8), stride=(1, 4), padding=(0, 3), bias=False), IMAGE),
    ],
)
def test_equals_the_transposed_convolution(convolution, x, tmp_path):
    program, example = captured(lambda self, x: self.conv(x), x, conv=convolution)
    rewritten, changes = applied(PASS, program, example)
    assert changes == 1
    assert not any("transpose" in target and "conv" in target for target in targets(rewritten))
    assert types_hold(rewritten, example)
    assert moved_db(program, rewritten, example) > 120
    assert snr_db(program.run(example)["y"].numpy(), predicted(rewritten, x, tmp_path, "fp32").numpy()) > 120


@pytest.mark.parametrize(
    ("convolution", "x"),
    [
        (nn.ConvTranspose1d(6, 4, 7, stride=4), X),
        (nn.ConvTranspose1d(6, 4, 3), X),
        (nn.ConvTranspose1d(6, 4, 8, stride=4, output_padding=1), X),
        (nn.ConvTranspose1d(6, 4, 8, stride=4, groups=2), X),
        (nn.ConvTranspose1d(6, 4, 8, stride=4, dilation=2), X),
        (nn.ConvTranspose2d(6, 4, (8, 3), stride=(4, 1)), IMAGE),
        (nn.ConvTranspose2d(6, 4, (8, 2), stride=(4, 2)), IMAGE),
        (nn.ConvTranspose2d(6, 4, (8, 1), stride=(4, 1), padding=(0, 0), output_padding=(1, 0)), IMAGE),
        (nn.ConvTranspose1d(6, 4, 8, stride=4), X[0]),
        (nn.Conv1d(6, 4, 8, stride=4), X),
    ],
)
def test_leaves_alone_what_has_no_such_form(convolution, x):
    program, example = captured(lambda self, x: self.conv(x), x, conv=convolution)
    assert applied(PASS, program, example) == (program, 0)
