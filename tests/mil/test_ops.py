"""The registry of operations against Core ML Tools' own."""

from pathlib import Path

import pytest
from torch import Tensor

from splitter.mil import ops
from splitter.mil.ops.__main__ import known_to_core_ml_tools, missing, page

PAGE = Path(__file__).parents[2] / "docs" / "mil-ops.md"


def test_every_operation_of_core_ml_tools_is_executed_in_every_opset_that_has_it():
    assert len(known_to_core_ml_tools()) > 160
    assert missing() == []


def test_the_published_page_is_up_to_date():
    assert PAGE.read_text() == page(), "run `make mil-ops`"


def test_an_operation_that_is_lacking_is_noticed(monkeypatch):
    real = ops.find
    monkeypatch.setattr(ops.__main__, "find", lambda name, opset: None if name == "conv" else real(name, opset))
    assert missing() == [f"conv ({opset})" for opset in ops.OPSETS]


def test_an_operation_has_one_implementation_by_opset():
    def again(x: Tensor) -> Tensor:
        return x

    with pytest.raises(ValueError, match="'conv' is registered already"):
        ops.operation("conv")(again)
