"""What Core ML Tools drops is spelled out before it sees it; what it refuses one way is tried another way."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from splitter import mil
from splitter.errors import LoweringError
from splitter.graph.capture import capture
from splitter.lowering.coreml import CoreMLTarget, preparation
from splitter.lowering.coreml.preparation import prepared
from splitter.partition import partition
from splitter.plan.schema import Plan

from ..conftest import snr_db

PLAN = Plan(family="own", outputs=("y",), stages=({"name": "all", "target": "coreml"},))
X = torch.randn(1, 6, 8, generator=torch.Generator().manual_seed(0))


def captured(forward, *members):
    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.parts = nn.ModuleList(make() for make in members)

    Model.forward = forward
    return capture(Model().eval(), {"x": X}, ("y",))


def lowered(program, directory, plan=PLAN):
    """The package's operations, its parity with the graph, and the artifact."""
    (segment,) = partition(program, plan).segments
    artifact = CoreMLTarget().lower(segment, plan, {}, directory)
    package = mil.load(directory / artifact.path)
    snr = snr_db(program.run({"x": X})["y"].numpy(), package.predict({"x": X.numpy()})["y"])
    return package.function.block.operations, snr, artifact


def test_tanh_gelu_is_written_as_tanh(tmp_path):
    operations, snr, _ = lowered(captured(lambda self, x: functional.gelu(x, approximate="tanh") * 2), tmp_path)
    (gelu,) = [one for one in operations if one.type == "gelu"]
    modes = [one.attributes["val"] for one in operations if one.name == gelu.inputs["mode"][0].name]
    assert "TANH_APPROXIMATION" in str(modes)
    assert snr > 120


def test_exact_gelu_stays_exact():
    program = captured(lambda self, x: functional.gelu(x))
    assert [str(node.target) for node in prepared(program).operators] == ["aten.gelu.default"]


@pytest.mark.parametrize("operator", [torch.add, torch.sub])
def test_the_scale_of_a_sum_is_kept(tmp_path, operator):
    program = captured(lambda self, x: operator(x, x * x, alpha=3))
    _, snr, _ = lowered(program, tmp_path)
    assert snr > 120
    plain = captured(lambda self, x: operator(x, x * x))
    assert len(prepared(plain).operators) == len(plain.operators)


@pytest.mark.parametrize(
    ("forward", "members", "route"),
    [
        (lambda self, x: self.parts[0](x)[0], [lambda: nn.LSTM(8, 5, batch_first=True)], "trace"),
        (lambda self, x: self.parts[0](x)[0], [lambda: nn.GRU(8, 5, batch_first=True)], "trace"),
        (lambda self, x: torch.where(x > 0, x, 0.5), [], "decomposed"),
        (lambda self, x: x * x.new_ones(8) + x.new_zeros(8), [], None),
        (lambda self, x: self.parts[0](x), [lambda: nn.RMSNorm(8)], "decomposed"),
        (lambda self, x: torch.relu(x) + x, [], None),
    ],
    ids=["lstm", "gru", "where", "new_ones", "rms_norm", "plain"],
)
def test_the_route_is_recorded(tmp_path, forward, members, route):
    operations, snr, artifact = lowered(captured(forward, *members), tmp_path)
    assert artifact.details.get("route") == route
    assert snr > 115
    if route == "trace":  # decomposed, each of the steps would be a dozen operations
        assert len([one for one in operations if one.type in ("lstm", "while_loop")]) == 1


def test_what_every_route_refuses_is_refused_by_the_first(tmp_path):
    with pytest.raises(LoweringError, match=r"cannot convert segment 'all'; got .*Unsupported fx node fft_fft2"):
        lowered(captured(lambda self, x: torch.fft.fft2(x).real), tmp_path)


def test_aliases_are_dropped_at_capture():
    program = captured(lambda self, x: torch.ops.aten.alias(torch.relu(x)).detach() + 1)
    assert [str(node.target) for node in program.operators] == ["aten.relu.default", "aten.add.Tensor"]


def test_a_constant_keeps_its_own_dtype(tmp_path):
    """The export route gave zeros like truths the dtype of the truths, and a mask of attention lost its −∞."""
    forward = lambda self, x: torch.zeros_like(x > 0, dtype=torch.float32).masked_fill(x > 0, -3.5) + x  # noqa: E731
    _, snr, artifact = lowered(captured(forward), tmp_path)
    assert (snr > 120, artifact.details) == (True, {}), "by the first route"
    forward = lambda self, x: x + torch.full_like(x > 0, 2.5, dtype=torch.float32) * x.new_full((8,), 0.5)  # noqa: E731
    assert lowered(captured(forward), tmp_path)[1] > 120


def test_keywords_that_a_converter_drops_refuse_its_route(tmp_path, monkeypatch):
    """Whatever they are: with the rewriting of one taken away, the trace is taken, whose operators have no keywords."""
    monkeypatch.delitem(preparation._REWRITINGS, torch.ops.aten.gelu.default)
    _, snr, artifact = lowered(captured(lambda self, x: functional.gelu(x, approximate="tanh")), tmp_path)
    assert (artifact.details["route"], snr > 120) == ("trace", True)
    exact = lowered(captured(lambda self, x: functional.gelu(x, approximate="none")), tmp_path)[2]
    assert "route" not in exact.details
