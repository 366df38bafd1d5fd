"""Six axes, of which one has extent 1: five are left, and the values are the same."""

import pytest
import torch

from splitter.errors import LoweringError
from splitter.lowering.coreml.preparation import prepared

from ..conftest import snr_db
from ..passes.harness import captured, predicted, targets

X = torch.randn(1, 24, 4, 5, generator=torch.Generator().manual_seed(0))


def parts(x):
    return x.view(1, 3, 4, 2, 4, 5)


FORMS = {
    "permuted": lambda self, x: parts(x).permute(0, 1, 2, 4, -1, 3).reshape(12, 4, 10) * 2,
    "copied and padded": lambda self, x: torch.nn.functional.pad(
        parts(x).permute(0, 1, 2, 4, 5, 3).clone().contiguous(), (0, 0, 1, 2, 0, 1)
    ).reshape(3, 4, 5, -1) * 2,
    "unit axis in the middle": lambda self, x: x.view(3, 4, 2, 1, 4, 5).permute(3, 5, 4, 2, 1, 0).reshape(5, 4, 24) * 2,
    "viewed twice": lambda self, x: parts(x).view(2, 1, 6, 2, 4, 5).permute(2, 1, 0, 3, 5, 4).reshape(12, 40) * 2,
    "two readers": lambda self, x: parts(x).reshape(12, -1) * 2 + parts(x).permute(0, 2, 1, 3, 4, 5).reshape(12, -1),
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_five_axes_are_left(form, tmp_path):
    program, example = captured(FORMS[form], X)
    assert max(len(node.meta["type"].shape) for node in program.operators) == 6
    ready = prepared(program)
    assert max(len(node.meta["type"].shape) for node in ready.operators) <= 5
    assert torch.equal(ready.run(example)["y"], program.run(example)["y"])
    assert snr_db(program.run(example)["y"].numpy(), predicted(program, X, tmp_path, "fp32").numpy()) > 130


NEAR_MISSES = {
    "an operator without a rule": lambda self, x: parts(x).exp().reshape(12, 40),
    "padding of the unit axis": lambda self, x: torch.nn.functional.pad(x.view(1, 3, 4, 2, 20, 1), (1, 0)).reshape(
        24, 40
    ),
}


@pytest.mark.parametrize("form", NEAR_MISSES)
def test_what_has_no_such_form_stays_and_is_named(form, tmp_path):
    program, example = captured(NEAR_MISSES[form], X)
    ready = prepared(program)
    assert targets(ready) == targets(program)
    assert torch.equal(ready.run(example)["y"], program.run(example)["y"])
    with pytest.raises(LoweringError, match="rank"):
        predicted(program, X, tmp_path, "fp32")


def test_six_axes_longer_than_1_stay():
    program, _ = captured(lambda self, x: x.view(2, 3, 2, 2, 4, 5).permute(1, 0, 2, 3, 5, 4).reshape(6, 80), X)
    assert targets(prepared(program)) == targets(program)
