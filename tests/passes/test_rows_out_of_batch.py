import pytest
import torch
from demucs.demucs import DConv
from torch import nn

from ..conftest import snr_db
from .harness import applied, captured, moved_db, predicted, targets, types_hold

PASS = "rows-out-of-batch"
X = torch.randn(2, 8, 5, 40, generator=torch.Generator().manual_seed(0))


def in_batch(inside):
    """A forward that moves rows into the batch, computes, and moves them back."""

    def forward(self, x):
        batch, channels, rows, length = x.shape
        y = x.permute(0, 2, 1, 3).reshape(-1, channels, length)
        y = inside(self, y)
        return y.view(batch, rows, channels, length).permute(0, 2, 1, 3)

    return forward


def dconv():
    torch.manual_seed(0)
    module = DConv(8, compress=2, init=0.5).eval()
    for name, value in module.named_parameters():
        if value.ndim == 1:
            nn.init.normal_(value, 1.0 if name.endswith("weight") else 0.0, 0.5)
    return module


def rewritten(forward, x=X, norms=True, **members):
    program, example = captured(forward, x, **members)
    if norms:
        program, _ = applied("norms-safe-in-half", program, example)
    after, changes = applied(PASS, program, example)
    assert types_hold(after, example)
    return program, after, changes, example


def test_a_residual_branch_stays_in_place():
    before, after, changes, example = rewritten(in_batch(lambda self, y: self.dconv(y)), dconv=dconv())
    assert changes == 4
    assert {"conv1d.default", "permute.default"} <= set(targets(before))
    assert not {"conv1d.default", "permute.default", "reshape.default"} & set(targets(after))
    assert targets(after).count("conv2d.default") == 4
    assert moved_db(before, after, example) > 120


def test_every_row_keeps_its_own_statistics():
    """Rows of very different loudness: one statistic over all of them would show."""
    loud = X * torch.tensor([1e-3, 0.1, 1.0, 30.0, 1000.0])[:, None]
    before, after, _, example = rewritten(in_batch(lambda self, y: self.dconv(y)), loud, dconv=dconv())
    expected, found = ((one.run(example)["y"] - loud).numpy() for one in (before, after))
    assert all(snr_db(expected[:, :, row], found[:, :, row]) > 90 for row in range(5))


def test_from_a_norm_that_is_not_written_out_on_rows_stay_in_the_batch():
    before, after, changes, example = rewritten(in_batch(lambda self, y: self.dconv(y)), norms=False, dconv=dconv())
    assert changes == 1
    assert targets(after).count("group_norm.default") == targets(before).count("group_norm.default")
    assert moved_db(before, after, example) > 120


@pytest.mark.parametrize(
    "inside",
    [
        lambda self, y: y + self.conv(y).mean((1, 2), keepdim=True),
        lambda self, y: y * self.conv(y).mean(-1, keepdim=True),
        lambda self, y: self.conv(y).mean(2, keepdim=True) + y - y.mean(1, keepdim=True),
        lambda self, y: y + self.conv(y).mean(-1)[:, :, None],  # extents not kept: through the batch
        lambda self, y: y + self.conv(y).mean((0, 2), keepdim=True),  # over rows too: through the batch
        lambda self, y: self.conv(y).softmax(-1),  # no form for it
        lambda self, y: y + nn.functional.glu(self.conv(y), 2).repeat(1, 1, 2),
        lambda self, y: self.conv(y) * self.by_row,  # an operand of each row
        lambda self, y: self.conv(y) * self.by_time + 2,
        lambda self, y: self.conv(y) * self.by_channel - self.number,
    ],
)  # fmt: skip
def test_what_is_inside(inside):
    members = {
        "conv": nn.Conv1d(8, 8, 3, padding=2, dilation=2),
        "by_row": torch.randn(10, 8, 40),
        "by_time": torch.randn(40),
        "by_channel": torch.randn(8, 1),
        "number": torch.tensor(0.5),
    }
    before, after, changes, example = rewritten(in_batch(inside), norms=False, **members)
    assert changes == 1
    assert moved_db(before, after, example) > 120


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: self.conv(x.permute(0, 2, 1, 3).reshape(-1, 16, 20)),  # other rows than those of the tensor
        lambda self, x: self.conv(x.reshape(-1, 8, 40)),
        lambda self, x: self.conv(x.permute(0, 3, 1, 2).reshape(-1, 8, 5)),
        lambda self, x: x.permute(0, 2, 1, 3).reshape(-1, 8, 40).softmax(-1),
    ],
)
def test_leaves_other_layouts_alone(forward):
    channels = 16 if "16" in str(forward.__code__.co_consts) else 8
    program, example = captured(forward, X, conv=nn.Conv1d(channels, 4, 3))
    assert applied(PASS, program, example)[1] == 0


def test_a_package_of_it(tmp_path):
    _, after, _, example = rewritten(in_batch(lambda self, y: self.dconv(y)), dconv=dconv())
    assert snr_db(after.run(example)["y"].numpy(), predicted(after, X, tmp_path, "fp32").numpy()) > 115
