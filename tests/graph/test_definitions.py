"""Operators that no saved program may use: taken by their definitions, computed of weights, or refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import splitter
from splitter.bundle import goldens
from splitter.errors import CaptureError
from splitter.graph.capture import capture
from splitter.graph.operators import ALLOWED

from ..conftest import snr_db


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Calls(nn.Module):
    """A module whose forward is a function of two inputs."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x, y):
        return self.function(x, y)


def warped(**options):
    return lambda x, y: functional.grid_sample(x, y, **options)


def in_bags(mode, **options):
    return lambda x, y: functional.embedding_bag(y, x, torch.tensor([0, 3, 3]), mode=mode, **options)


def sent(reduce, **options):
    return lambda x, y: x.scatter_reduce(0, y, x[-3:] * 0.5, reduce, **options)


IMAGE, FLOW = drawn(1, 2, 6, 7), drawn(1, 4, 5, 2, seed=1) * 0.7
TABLE, WORDS = drawn(9, 4), torch.tensor([0, 8, 2, 2, 7])
PLACES = torch.tensor([[0, 1, 2, 0], [2, 2, 2, 0], [1, 0, 4, 4]])
CASES = {
    "grid_sample": (warped(align_corners=False), IMAGE, FLOW),
    "grid_sample, mirrored": (warped(padding_mode="reflection", align_corners=True), IMAGE, FLOW),
    "grid_sample, nearest": (warped(mode="nearest", padding_mode="border", align_corners=True), IMAGE, FLOW),
    **{f"cdist, {p}": (lambda x, y, p=p: torch.cdist(x, y, p), TABLE, TABLE[:3] + 0.5) for p in (0, 1, 2, 3, torch.inf)},
    **{f"embedding_bag, {mode}": (in_bags(mode), TABLE, WORDS) for mode in ("sum", "mean", "max")},
    "embedding_bag, a word that is no word": (in_bags("mean", padding_idx=2), TABLE, WORDS),
    "embedding_bag, the last offset": (in_bags("sum", include_last_offset=True), TABLE, WORDS),
    **{f"scatter_reduce, {name}": (sent(name), TABLE, PLACES) for name in ("sum", "mean", "prod", "amax", "amin")},
    "scatter_reduce, without what was there": (sent("mean", include_self=False), TABLE, PLACES),
    "bilinear": (lambda x, y: functional.bilinear(x, y, x.reshape(-1)[:32].reshape(2, 4, 4)), TABLE, TABLE + 1),
    "median": (lambda x, y: (x.median(1).values, x.median(0, keepdim=True).indices, y.median()), TABLE, TABLE[:2]),
    "cumprod": (lambda x, y: x.cumprod(-1) + y, TABLE, TABLE),
    "one_hot": (lambda x, y: functional.one_hot(y, 9) + x[:5, :1], TABLE, WORDS),
    "floor": (lambda x, y: (x // 0.3, y // 3, y % 4, torch.fmod(-x, 0.7), y << 2, y >> 1, y & 3), TABLE, WORDS),
    "three axes": (lambda x, y: functional.interpolate(x, scale_factor=2, mode="trilinear") * y, drawn(1, 2, 3, 3, 3), TABLE[0, 0]),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_definition_computes_what_the_kernel_does(name):
    function, x, y = CASES[name]
    model, inputs = Calls(function).eval(), {"x": x, "y": y}
    program = capture(model, inputs)
    assert {str(node.target) for node in program.operators if isinstance(node.target, torch._ops.OpOverload)} <= ALLOWED
    golden = program.run(inputs)
    parity = goldens.departure(model, program, golden, inputs)
    assert parity.snr_db is None or parity.snr_db > 115


def test_how_far_the_model_lies_from_a_definition_is_recorded(tmp_path):
    class Warp(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.after = nn.Conv2d(2, 2, 3)

        def forward(self, image, flow):
            return self.after(functional.grid_sample(image, flow, align_corners=False))

    model = Warp()
    bag = splitter.build(model, tmp_path / "b", inputs={"image": IMAGE, "flow": FLOW})
    (report,) = splitter.verify(bag)
    assert report.passed
    assert report.partition_max_abs == 0
    (bundle,) = bag.members
    record = bundle.manifest.golden.definitions
    assert record.operators == ("aten.grid_sampler_2d.default",)
    with torch.no_grad():
        own = model.eval()(IMAGE, FLOW).numpy()
    assert 0 < record.max_abs < 1e-5
    assert snr_db(own, bundle.goldens()["output"]) == pytest.approx(record.snr_db)
    assert [(stage.name, stage.target) for stage in bundle.manifest.plan.stages] == [("cnn_1", "coreml")]


def test_a_definition_that_gives_something_else_is_refused(monkeypatch):
    monkeypatch.setattr(goldens, "LEAST_DB", 400)
    model, inputs = Calls(CASES["grid_sample"][0]).eval(), {"x": IMAGE, "y": FLOW}
    program = capture(model, inputs)
    with pytest.raises(CaptureError, match="grid_sampler_2d.default and its definition give another 'output'"):
        goldens.departure(model, program, program.run(inputs), inputs)


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated")
@pytest.mark.parametrize("norm", [nn.utils.weight_norm, nn.utils.parametrizations.weight_norm])
def test_weights_that_are_made_of_weights(tmp_path, norm):
    """By PyTorch's kernel, once: the bundle is the model to the last bit."""
    torch.manual_seed(0)
    model = nn.Sequential(norm(nn.Conv1d(2, 8, 3)), nn.ReLU(), norm(nn.Conv1d(8, 1, 3)))
    (bundle,) = splitter.build(model, tmp_path / "b", inputs={"input": drawn(1, 2, 20)}, reference=False).members
    assert bundle.manifest.golden.definitions is None
    with torch.no_grad():
        assert np.array_equal(bundle.goldens()["output"], model.eval()(drawn(1, 2, 20)).numpy())
    (segment,) = bundle.segments
    assert segment.parameters == 2 * 8 * 3 + 8 + 8 * 3 + 1
    assert set(bundle.program(segment.program).weights) == {"0.weight", "0.bias", "2.weight", "2.bias"}


def test_weights_of_complex_numbers(tmp_path):
    class Filter(nn.Module):
        def __init__(self):
            super().__init__()
            self.gains = nn.Parameter(torch.view_as_complex(drawn(5, 2)))

        def forward(self, x):
            return torch.fft.irfft(torch.fft.rfft(x) * self.gains, n=8)

    bag = splitter.build(Filter(), tmp_path / "b", inputs={"x": drawn(1, 8)})
    assert splitter.verify(bag)[0].passed


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda x, y: torch.linalg.inv(x[:4]), r"uses the operator aten\.linalg_inv_ex\.default, which"),
        (lambda x, y: y // y, "divides integers by a tensor, which may hold 0"),
        (lambda x, y: torch.from_numpy(x.numpy()) + 1, "leaves PyTorch for NumPy"),
        (lambda x, y: torch.zeros(2, int(y[1])) + x[0, 0], "decides by the values of a tensor"),
        (lambda x, y: x[x[:, 0] > 0] * 2, "extents of a tensor depend on the values of another one"),
    ],
)
def test_what_no_graph_can_hold_is_named(tmp_path, function, message):
    with pytest.raises(CaptureError, match=message):
        splitter.build(Calls(function), tmp_path / "b", inputs={"x": TABLE, "y": WORDS + 1})


@pytest.mark.filterwarnings("ignore")  # PyTorch's own quantisation is being replaced
def test_a_quantised_module_is_named(tmp_path):
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(4, 4)))
    with pytest.raises(CaptureError, match="quantised already"):
        splitter.build(model, tmp_path / "b", inputs={"input": TABLE})
