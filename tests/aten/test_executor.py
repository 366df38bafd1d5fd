"""Whole programs in JAX, against the same in PyTorch; and what is refused before anything runs."""

import numpy as np
import pytest
import torch
from torch import nn

from splitter.aten import ops
from splitter.aten.executor import CompiledProgram, computed
from splitter.errors import OperatorError
from splitter.graph.capture import capture
from splitter.graph.shapes import TensorType

from ..conftest import snr_db


class Positions(nn.Module):
    """Integers beyond 32 bits, and floating-point numbers beside them."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(7, 4)
        self.linear = nn.Linear(4, 3)

    def forward(self, x):
        places = torch.arange(5) * 3_000_000_000
        rows = self.table((x.argsort(-1) + places).clamp(max=6))
        return self.linear(rows), places + x.argmax()


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(64, 64)

    def forward(self, x):
        return torch.tanh(self.linear(x))


def captured(model, x, outputs):
    torch.manual_seed(0)
    return capture(model.eval(), {"x": x}, outputs)


def test_integers_have_64_bits_where_the_graph_has():
    x = torch.randn(2, 5)
    program = captured(Positions(), x, ("rows", "places"))
    expected, found = program.run({"x": x}), CompiledProgram(program).run({"x": x.numpy()})
    assert found["places"].dtype == np.int64
    assert np.array_equal(found["places"], expected["places"])
    assert found["places"].max() > 2**32
    assert found["rows"].dtype == np.float32
    assert snr_db(expected["rows"].numpy(), found["rows"]) > 115


def test_weights_are_arguments_and_64_bits_stay_off():
    import jax

    x = torch.randn(2, 64)
    program = captured(Scaled(), x, ("y",))
    weights = {name: weight.detach().numpy() for name, weight in program.weights.items()}
    jaxpr = jax.make_jaxpr(lambda w, given: computed(program, w, given))(weights, {"x": x.numpy()})
    assert max((np.size(constant) for constant in jaxpr.consts), default=0) < 64
    assert {str(variable.aval.dtype) for variable in jaxpr.jaxpr.invars} == {"float32"}
    assert "float64" not in str(jaxpr)
    assert not CompiledProgram(program)._wide


def test_unknown_operators_are_all_named_before_anything_runs(monkeypatch):
    x = torch.randn(2, 64)
    program = captured(Scaled(), x, ("y",))
    known = {name: record for name, record in ops.registered().items() if name.split(".")[1] not in ("linear", "tanh")}
    monkeypatch.setattr(ops, "registered", lambda: known)
    with pytest.raises(
        OperatorError,
        match=r"program 'model' uses operators that are not implemented in JAX; got aten\.linear\.default \(node 'linear', in "
        r"module linear\), aten\.tanh\.default \(node 'tanh'\)\. Register a function .*docs/extending\.md",
    ):
        CompiledProgram(program)


def test_another_type_than_the_graph_declares_is_refused():
    x = torch.randn(2, 64)
    program = captured(Scaled(), x, ("y",))
    (node,) = (node for node in program.operators if "tanh" in str(node.target))
    node.meta["type"] = TensorType((64, 2), "float32")
    with pytest.raises(
        OperatorError, match=r"'tanh' \(aten.tanh.default\) cannot be .* expected 64×2 float32, found 2×64"
    ):
        CompiledProgram(program)


def test_what_a_function_does_not_know_is_refused():
    class Aligned(nn.Module):
        def forward(self, x):
            return torch.nn.functional.pad(x, (-1, 2), "replicate")

    program = captured(Aligned(), torch.randn(1, 2, 8), ("y",))
    with pytest.raises(OperatorError, match="padding by replicate takes no elements away"):
        CompiledProgram(program)


@pytest.mark.parametrize("wrong", [7, -1])
def test_an_index_beyond_its_table_is_not_finite(wrong):
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.rows = nn.Embedding(7, 4)

        def forward(self, x):
            return self.rows(x)

    program = captured(Table(), torch.tensor([0, 3]), ("y",))
    found = CompiledProgram(program).run({"x": np.array([2, wrong])})["y"]
    assert np.isfinite(found[0]).all()
    assert np.isnan(found[1]).all()


def test_a_write_beyond_its_table_is_not_finite():
    class Written(nn.Module):
        def forward(self, x):
            return torch.zeros(3).index_put([x], torch.ones(2), accumulate=True)

    program = CompiledProgram(captured(Written(), torch.tensor([0, 1]), ("y",)))
    assert np.array_equal(program.run({"x": np.array([2, -2])})["y"], [0, 1, 1])
    assert np.isnan(program.run({"x": np.array([2, 3])})["y"]).all()


def test_an_operator_has_one_function_with_the_arguments_of_its_schema():
    with pytest.raises(ValueError, match=r"'aten\.relu\.default' is registered already"):
        ops.operator("relu.default")(lambda x: x)
    with pytest.raises(KeyError, match=r"aten\.nonzero\.default"):
        ops.operator("nonzero.default")(lambda x: x)


@pytest.mark.parametrize("function", [lambda x: x, lambda x, dim, keep: x, lambda x, dim, keepdim, dtype, extra: x])
def test_a_function_takes_what_its_schema_has(monkeypatch, function):
    monkeypatch.setattr(ops, "REGISTRY", {})
    with pytest.raises(ValueError, match=r"and the schema of 'aten\.mean\.dim' differ in"):
        ops.operator("mean.dim")(function)
