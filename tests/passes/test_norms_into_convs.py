import pytest
import torch
from torch import nn
from torch.nn import functional

from splitter import passes

from ..conftest import snr_db
from .harness import applied, captured, moved_db, predicted, targets, types_hold

PASS = "norms-into-convs"
X = torch.randn(3, 6, 50, generator=torch.Generator().manual_seed(0))


def normalised(convolution, norm, x=X, forward=lambda self, x: self.norm(self.conv(x))):
    generator = torch.Generator().manual_seed(1)
    for weights in norm.parameters():
        weights.data = torch.randn(weights.shape, generator=generator)
    return captured(forward, x, conv=convolution, norm=norm)


def exact(program, x):
    """The same in float64."""
    conv, norm = ([program.weights[f"{at}.{one}"].double() for one in ("weight", "bias")] for at in ("conv", "norm"))
    return functional.group_norm(functional.conv1d(x.double(), *conv), 1, *norm).detach().numpy()


@pytest.mark.parametrize("offset", [0.0, 30.0])
@pytest.mark.parametrize("batch", [1, 3])
def test_equals_the_norm_of_the_convolution(batch, offset, tmp_path):
    x = X[:batch] * torch.tensor([1.0, 1e-2, 20.0])[:batch, None, None] + offset
    program, example = normalised(nn.Conv1d(6, 20, 1), nn.GroupNorm(1, 20), x)
    rewritten, changes = applied(PASS, program, example)
    assert changes == 1
    assert not {"conv1d.default", "group_norm.default"} & set(targets(rewritten))
    assert types_hold(rewritten, example)
    # float32 leaves less of a small part that differs under a large one that does not
    least = 120 if offset == 0 else 80
    assert moved_db(program, rewritten, example) > least
    assert snr_db(exact(program, x), rewritten.run(example)["y"].numpy()) > least
    assert snr_db(exact(program, x), predicted(rewritten, x, tmp_path, "fp32").numpy()) > least


@pytest.mark.parametrize("seed", range(8))
def test_differences_of_like_channels_keep_their_variance(seed):
    """The inputs' large squares cancel in the outputs' variance: in float32 it came out below 0, or 20 times too large."""
    generator = torch.Generator().manual_seed(seed)
    loud = 1000 * torch.randn(1, 1, 500, generator=generator)
    x = torch.cat([loud * (1 + 1e-4) + 0.01 * torch.randn(1, 1, 500, generator=generator), loud], 1)
    convolution = nn.Conv1d(2, 3, 1)
    convolution.weight.data = torch.tensor([[0.3, -0.3], [0.7, -0.7], [-0.9, 0.9]])[..., None]
    convolution.bias.data.zero_()
    program, example = normalised(convolution, nn.GroupNorm(1, 3), x)
    rewriting = passes.parsed(PASS).apply(program)
    rewritten, changes = rewriting.program, rewriting.changes
    assert changes == 1
    theirs, ours = (one.run(example)["y"].numpy() for one in (program, rewritten))
    assert snr_db(exact(program, x), ours) > snr_db(exact(program, x), theirs) - 6


def test_silence_stays_finite():
    program, example = normalised(nn.Conv1d(6, 20, 1), nn.GroupNorm(1, 20), torch.zeros(1, 6, 50))
    rewritten, _ = applied(PASS, program, example)
    assert moved_db(program, rewritten, example) > 120


@pytest.mark.parametrize(
    ("convolution", "norm"),
    [
        (nn.Conv1d(6, 20, 1), nn.GroupNorm(4, 20)),
        (nn.Conv1d(6, 20, 1), nn.GroupNorm(1, 20, affine=False)),
        (nn.Conv1d(6, 20, 1, bias=False), nn.GroupNorm(1, 20)),
        (nn.Conv1d(6, 20, 3), nn.GroupNorm(1, 20)),
        (nn.Conv1d(6, 20, 1, stride=2), nn.GroupNorm(1, 20)),
        (nn.Conv1d(6, 20, 1, padding=1), nn.GroupNorm(1, 20)),
        (nn.Conv1d(6, 20, 1, groups=2), nn.GroupNorm(1, 20)),
        (nn.Conv1d(6, 6, 1), nn.GroupNorm(1, 6)),
    ],
)
def test_leaves_others_alone(convolution, norm):
    program, example = normalised(convolution, norm)
    assert applied(PASS, program, example) == (program, 0)


def test_leaves_sound_without_a_batch_alone():
    def forward(self, x):
        return self.norm(self.conv(x))  # of which the norm takes the channels for the batch

    program, example = normalised(nn.Conv1d(6, 20, 1), nn.GroupNorm(1, 50), X[0], forward)
    assert applied(PASS, program, example) == (program, 0)


def test_a_convolution_that_something_else_reads_stays():
    def forward(self, x):
        y = self.conv(x)
        return self.norm(y) + y

    program, example = normalised(nn.Conv1d(6, 20, 1), nn.GroupNorm(1, 20), forward=forward)
    assert applied(PASS, program, example) == (program, 0)
