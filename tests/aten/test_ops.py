"""Every operator in JAX against PyTorch's kernel."""

import operator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import fx

from splitter.aten import ops
from splitter.aten.executor import CompiledProgram
from splitter.aten.ops.__main__ import missing, page
from splitter.graph import operators
from splitter.graph.program import Program
from splitter.graph.shapes import TensorType

from ..conftest import snr_db
from .cases import CASES, Draw

LEAST_DB = {"float16": 55, "bfloat16": 40}  # one unit in the last place, now and then
EXACT = frozenset("biu")


def drawn(value, generator):
    """The tensors of a case."""
    if isinstance(value, Draw):
        return value.tensor(generator)
    if isinstance(value, list):
        return [drawn(item, generator) for item in value]
    return value


def single(name, args, kwargs):
    """A program of one operator, and its inputs by name."""
    graph, inputs = fx.Graph(), {}

    def placed(value):
        if isinstance(value, list):
            return [placed(item) for item in value]
        if not isinstance(value, torch.Tensor):
            return value
        node = graph.placeholder(f"x{len(inputs)}")
        inputs[node.name] = value
        node.meta = {"type": TensorType.of(value), "module": ""}
        return node

    node = graph.call_function(
        operators.resolve(name), tuple(map(placed, args)), {key: placed(value) for key, value in kwargs.items()}
    )
    results = operators.resolve(name)(*args, **kwargs)
    node.meta = {"type": None, "module": ""}
    nodes = [node]
    if isinstance(results, torch.Tensor):
        results = [results]
        node.meta["type"] = TensorType.of(results[0])
    else:
        nodes = [graph.call_function(operator.getitem, (node, place)) for place in range(len(results))]
        for item, result in zip(nodes, results, strict=True):
            item.meta = {"type": TensorType.of(result), "module": ""}
    graph.output(tuple(nodes))
    names = tuple(f"y{place}" for place in range(len(nodes)))
    return Program("single", graph, {}, names), inputs, dict(zip(names, results, strict=True))


def as_arrays(tensors):
    return {
        name: (tensor.float() if tensor.dtype is torch.bfloat16 else tensor.resolve_conj()).numpy()
        for name, tensor in tensors.items()
    }


def nearness(reference, candidate):
    """Decibels over what is finite; what is not must be the same."""
    assert reference.shape == candidate.shape
    assert reference.dtype == candidate.dtype
    if reference.dtype.kind in EXACT:
        assert np.array_equal(reference, candidate), (reference, candidate)
        return np.inf
    finite = np.isfinite(reference)
    assert np.array_equal(reference[~finite], candidate[~finite], equal_nan=True), (reference, candidate)
    pairs = [(r[finite], c[finite]) for r, c in ((reference.real, candidate.real), (reference.imag, candidate.imag))]
    return min(snr_db(np.append(r, 1e-30), np.append(c, 1e-30)) for r, c in pairs)


@pytest.mark.parametrize(
    ("name", "place"),
    [(name, place) for name, cases in sorted(CASES.items()) for place in range(len(cases))],
)
def test_operator_computes_what_pytorch_does(name, place):
    *args, last = CASES[name][place]
    kwargs = last if isinstance(last, dict) else {}
    args = args if isinstance(last, dict) else [*args, last]
    generator = torch.Generator().manual_seed(place)
    program, inputs, expected = single(
        f"aten.{name}", drawn(list(args), generator), {k: drawn(v, generator) for k, v in kwargs.items()}
    )
    found = CompiledProgram(program).run(as_arrays(inputs))
    dtype = str(next(iter(expected.values())).dtype).removeprefix("torch.")
    for key, reference in as_arrays(expected).items():
        assert nearness(reference, found[key]) >= LEAST_DB.get(dtype, 115)


def test_every_operator_has_a_case():
    assert {f"aten.{name}" for name in CASES} == ops.registered().keys()


def test_every_operator_of_saved_programs_is_computed():
    assert missing() == []


PAGE = Path(__file__).parents[2] / "docs" / "aten-ops.md"


def test_the_published_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run `make aten-ops`"


def test_an_operator_that_is_lacking_is_noticed(monkeypatch):
    fewer = {name: record for name, record in ops.registered().items() if name != "aten.conv1d.default"}
    monkeypatch.setattr(ops.__main__, "registered", lambda: fewer)
    assert missing() == ["aten.conv1d.default"]
    assert "| `aten.conv1d.default` | **not computed** | |" in page()
