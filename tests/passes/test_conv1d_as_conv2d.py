import pytest
import torch
from torch import nn

from ..conftest import snr_db
from .harness import applied, captured, moved_db, predicted, targets, types_hold

PASS = "conv1d-as-conv2d"
X = torch.randn(2, 6, 50, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    "convolution",
    [
        nn.Conv1d(6, 4, 1),
        nn.Conv1d(6, 4, 8, stride=4, padding=2),
        nn.Conv1d(6, 6, 3, padding=4, dilation=4, groups=3, bias=False),
        nn.ConvTranspose1d(6, 4, 8, stride=4),
        nn.ConvTranspose1d(6, 6, 5, stride=3, padding=2, output_padding=1, groups=2, dilation=2, bias=False),
    ],
)
def test_equals_the_convolution_of_one_axis(convolution, tmp_path):
    program, example = captured(lambda self, x: self.conv(x), X, conv=convolution)
    rewritten, changes = applied(PASS, program, example)
    assert changes == 1
    assert not {"conv1d.default", "conv_transpose1d.default"} & set(targets(rewritten))
    assert types_hold(rewritten, example)
    assert moved_db(program, rewritten, example) > 120
    assert snr_db(program.run(example)["y"].numpy(), predicted(rewritten, X, tmp_path, "fp32").numpy()) > 120


def test_leaves_images_alone():
    program, example = captured(lambda self, x: self.conv(x), X[:, :, None], conv=nn.Conv2d(6, 4, 1))
    assert applied(PASS, program, example)[1] == 0
