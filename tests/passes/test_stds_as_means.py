import pytest
import torch

from splitter import passes

from ..conftest import snr_db
from .harness import applied, captured, moved_db, predicted, targets, types_hold

PASS = "stds-as-means"
X = torch.randn(2, 3, 40, 50, generator=torch.Generator().manual_seed(0)) + 2


@pytest.mark.parametrize(
    "forward",
    [
        lambda self, x: x.std([1, 2, 3], keepdim=True),
        lambda self, x: x.std([-1]),
        lambda self, x: x.var([0, 3], unbiased=False),
        lambda self, x: x.std([2, 3], correction=0, keepdim=True),
        lambda self, x: torch.var(x, dim=(3,), correction=2),
        lambda self, x: x.std(),
    ],
)
def test_equals_the_deviation(forward, tmp_path):
    program, example = captured(forward, X)
    rewritten, changes = applied(PASS, program, example)
    assert changes == 1
    assert not [name for name in targets(rewritten) if name.startswith(("std", "var"))]
    assert types_hold(rewritten, example)
    assert moved_db(program, rewritten, example) > 125


@pytest.mark.parametrize(("staged", "least"), [(True, 50), (False, 0)])
def test_its_means_are_taken_in_stages(tmp_path, staged, least):
    """Half-precision accumulators: 6,000 squares do not add up one after the other."""
    program, example = captured(lambda self, x: x.std([1, 2, 3], keepdim=True), X)
    rewritten, _ = applied(PASS, program, example)
    rewritten = applied("means-in-stages", rewritten, example)[0] if staged else rewritten
    db = snr_db(program.run(example)["y"].numpy(), predicted(rewritten, X, tmp_path, "fp16", "half").numpy())
    assert least < db < least + 40


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda self, x: x[..., :1].std([3], correction=0) * 0 + x.double().std([3]).float()[..., :1], "float32"),
        (lambda self, x: torch.var(x[..., :2], dim=(3,), correction=2), "2 values with a correction of 2.0"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*degrees of freedom")
def test_what_has_no_such_form_is_left(forward, reason):
    program, _ = captured(forward, X)
    skipped = passes.parsed(PASS).apply(program).skipped
    assert [reason in skip.reason for skip in skipped] == [True]
