import numpy as np
import pytest
import torch
from torch import nn

from splitter.mil.overflows import OverflowWatch
from splitter.passes.norms_safe_in_half import NormsSafeInHalf

from ..conftest import snr_db
from .harness import applied, captured, predicted, targets, types_hold

PASS = "norms-safe-in-half"
LEVELS = [0.0, 1e-3, 0.1, 1.0, 30.0, 300.0, 6000.0]


def rows(channels=4, length=100, offset=0.0):
    """A batch of one row per level."""
    noise = torch.randn(len(LEVELS), channels, length, generator=torch.Generator().manual_seed(0))
    return noise.clamp(-4, 4) * torch.tensor(LEVELS)[:, None, None] + offset


def norm(groups, channels=4):
    module = nn.GroupNorm(groups, channels)
    torch.manual_seed(1)
    nn.init.uniform_(module.weight, 0.5, 2.0)
    nn.init.normal_(module.bias)
    return module


def exact(module, x):
    """The formula in float64."""
    x = x.double()
    grouped = x.reshape(x.shape[0], module.num_groups, -1)
    mean = grouped.mean(-1, keepdim=True)
    variance = ((grouped - mean) ** 2).mean(-1, keepdim=True)
    scaled = ((grouped - mean) / torch.sqrt(variance + module.eps)).reshape(x.shape)
    per_channel = (-1, *[1] * (x.ndim - 2))
    return (scaled * module.weight.double().reshape(per_channel) + module.bias.double().reshape(per_channel)).detach()


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("shape", [(7, 4, 100), (7, 4, 10, 10)])
def test_equals_group_norm(groups, shape):
    module = norm(groups)
    program, example = captured(lambda self, x: self.norm(x), rows().reshape(shape), norm=module)
    rewritten, changes = applied(PASS, program, example)
    assert changes == 1
    assert "group_norm.default" in targets(program)
    assert "group_norm.default" not in targets(rewritten)
    assert types_hold(rewritten, example)
    result = rewritten.run(example)["y"]
    torch.testing.assert_close(result.double(), exact(module, example["x"]), rtol=2e-6, atol=2e-6)


def test_scaling_is_exact():
    """Rows that differ by a power of two within the scaled range give the same bits, at eps 0."""
    module = nn.GroupNorm(1, 4, eps=0.0)
    row = torch.randn(1, 4, 100, generator=torch.Generator().manual_seed(0))
    row *= 12 / row.abs().max()
    program, example = captured(lambda self, x: self.norm(x), torch.cat([row, row * 64, row * 1024]), norm=module)
    rewritten, _ = applied(PASS, program, example)
    first, second, third = rewritten.run(example)["y"]
    assert torch.equal(first, second)
    assert torch.equal(first, third)


@pytest.mark.parametrize("accumulators", ["fp32", "half"])
def test_half_precision_holds_every_level(tmp_path, accumulators):
    module, x = norm(1), rows()
    program, example = captured(lambda self, x: self.norm(x), x, norm=module)
    rewritten, _ = applied(PASS, program, example)
    staged, _ = applied("means-in-stages", rewritten, example)
    watch = OverflowWatch()
    result = predicted(staged, x, tmp_path, accumulators=accumulators, listener=watch).numpy()
    assert not watch.found
    expected = exact(module, x.half()).numpy()
    for level, one, reference in zip(LEVELS, result, expected, strict=True):
        assert snr_db(reference, one) >= 50, level


def test_without_it_half_precision_does_not(tmp_path):
    """The check above can fail: this is what it guards against."""
    module, x = norm(1), rows()
    program, _ = captured(lambda self, x: self.norm(x), x, norm=module)
    watch = OverflowWatch()
    result = predicted(program, x, tmp_path, listener=watch).numpy()
    assert [operation.type for operation, *_ in watch.found] == ["square"]
    assert snr_db(exact(module, x)[-1].numpy(), result[-1]) < 10


def test_constant_row_beyond_the_scaled_range_stays_finite(tmp_path):
    """Its variance is 0 and its scaled eps below half's smallest number: only the outer maximum holds."""
    module, x = norm(1), torch.full((1, 4, 100), 60_000.0)
    program, _ = captured(lambda self, x: self.norm(x), x, norm=module)
    rewritten = NormsSafeInHalf().apply(program).program  # in float32 such a row is rounding, before and after
    result = predicted(rewritten, x, tmp_path).numpy()
    np.testing.assert_allclose(result, module.bias.detach().numpy()[None, :, None].repeat(100, 2), atol=2e-3)


def test_norms_of_other_types_are_left_alone():
    norm64 = nn.GroupNorm(1, 4).double()
    program, example = captured(lambda self, x: self.norm(x), rows().double(), norm=norm64)
    assert applied(PASS, program, example)[1] == 0
    program, example = captured(lambda self, x: self.norm(x), rows(), norm=nn.LayerNorm(100))
    assert applied(PASS, program, example)[1] == 0


def test_norm_without_weights():
    program, example = captured(lambda self, x: torch.nn.functional.group_norm(x, 2, eps=1e-3), rows())
    rewritten, changes = applied(PASS, program, example)
    assert changes == 1
    torch.testing.assert_close(rewritten.run(example)["y"], program.run(example)["y"], rtol=0, atol=1e-5)


def rms(elements, factor):
    """As RoFormers have it: one RMS norm in two steps, and a weight."""
    weight = torch.linspace(0.5, 2.0, elements)

    def forward(self, x):
        return torch.nn.functional.normalize(x, dim=-1) * factor * self.weight

    return forward, nn.Parameter(weight)


def normalised(x, factor, weight):
    x = x.double()
    return (x / x.norm(dim=-1, keepdim=True).clamp_min(1e-12) * factor * weight.double()).detach()


def spectra(length=100):
    return rows(1, length)[:, 0]


@pytest.mark.parametrize("factor", [10.0, 3.0])
def test_equals_normalize(factor):
    forward, weight = rms(100, factor)
    program, example = captured(forward, spectra(), weight=weight)
    rewritten, changes = applied(PASS, program, example)
    assert changes == 1
    assert "linalg_vector_norm.default" not in targets(rewritten)
    assert targets(rewritten).count("mul.Tensor") == (5 if factor == 10.0 else 6)  # √n cancels the root of the mean
    assert types_hold(rewritten, example)
    expected = normalised(example["x"], factor, weight)
    torch.testing.assert_close(rewritten.run(example)["y"].double(), expected, rtol=2e-6, atol=2e-6)


def test_normalize_without_a_factor_and_over_several_axes():
    program, example = captured(
        lambda self, x: torch.nn.functional.normalize(x, dim=(1, 2)) + torch.nn.functional.normalize(x, dim=1), rows()
    )
    rewritten, changes = applied(PASS, program, example)
    assert changes == 2
    x = example["x"].double()
    expected = x / x.norm(dim=(1, 2), keepdim=True).clamp_min(1e-12) + x / x.norm(dim=1, keepdim=True).clamp_min(1e-12)
    torch.testing.assert_close(rewritten.run(example)["y"].double(), expected, rtol=2e-6, atol=2e-6)


@pytest.mark.parametrize("accumulators", ["fp32", "half"])
def test_half_precision_holds_every_level_of_a_spectrum(tmp_path, accumulators):
    """A norm beyond 65,504, and in half accumulators a square beyond it, make zeros of a row without the pass."""
    forward, weight = rms(100, 10.0)
    x = spectra()
    program, example = captured(forward, x, weight=weight)
    plain = predicted(program, x, tmp_path / "plain", accumulators=accumulators).numpy()
    assert not np.any(plain[-3 if accumulators == "half" else -1 :])
    rewritten, _ = applied(PASS, program, example)
    staged, _ = applied("means-in-stages", rewritten, example)
    watch = OverflowWatch()
    result = predicted(staged, x, tmp_path / "safe", accumulators=accumulators, listener=watch).numpy()
    assert not watch.found
    expected = normalised(x.half(), 10.0, weight).numpy()
    assert not np.any(result[0])
    for level, one, reference in list(zip(LEVELS, result, expected, strict=True))[1:]:
        assert snr_db(reference, one) >= 50, level


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: x / x.norm(dim=-1, keepdim=True).clamp_min(1e-3),  # an epsilon that half precision has
        lambda self, x: x / (x + 1).norm(dim=-1, keepdim=True).clamp_min(1e-12),
        lambda self, x: x / x.norm(p=1, dim=-1, keepdim=True).clamp_min(1e-12),
        lambda self, x: x[:100] / x.norm(dim=-1)[:, None].clamp_min(1e-12),
        lambda self, x: x.norm(dim=-1, keepdim=True).clamp_min(1e-12) / x,
    ],
)
def test_other_quotients_stay(forward):
    program, example = captured(forward, spectra() + 1)
    assert applied(PASS, program, example)[1] == 0
