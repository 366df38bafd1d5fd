from types import SimpleNamespace

import numpy as np
import pytest
import torch

from splitter import limits
from splitter.errors import OperationError, PackageError
from splitter.mil import load
from splitter.mil.memory import PER_ELEMENT, Ledger, allocated, check_free, counted
from splitter.mil.ops import find

from .harness import mb, package

X = np.zeros((1, 256), np.float32)  # 1,024 bytes


@pytest.fixture
def limited(monkeypatch):
    def set_limit(count):
        monkeypatch.setenv(limits.VARIABLE, str(count))
        return Ledger()

    return set_limit


def test_values_that_share_memory_are_counted_once(limited):
    ledger = limited(4096)
    whole = torch.zeros(256)
    for value in (whole, whole[::2], whole.reshape(16, 16), whole.expand(9, 256)):
        ledger.hold(value)
    assert ledger.total == 1024


def test_a_part_holds_the_whole_it_is_of(limited):
    ledger = limited(4096)
    ledger.hold(torch.zeros(256)[:1])
    assert ledger.total == 1024


def test_lists_are_counted_with_their_elements(limited):
    ledger = limited(4096)
    one = torch.zeros(64)
    ledger.hold([one, one, None, "name"])
    assert ledger.total == 256 + 4 * PER_ELEMENT
    assert allocated([one, one]) == 256 + 2 * PER_ELEMENT


def test_what_was_allocated_and_is_held_no_more_is_not_counted_at_the_limit(limited):
    constants = limited(4096)
    weight = torch.zeros(256)
    constants.hold(weight)
    live = [torch.zeros(256), weight, None]
    ledger = Ledger(constants, lambda: live)
    ledger.charge(3000)
    assert ledger.total == 4024
    ledger.check(2048)  # counts: the weight and one value
    assert ledger.total == 2048
    with pytest.raises(OperationError, match="found 2.0 kB beside 2.0 kB of other values"):
        ledger.check(2049)
    live.append(torch.zeros(1))
    ledger.charge(4)
    with pytest.raises(OperationError, match="too much memory"):
        ledger.check(2048)


def test_the_limit_is_what_is_held_and_what_is_asked_for_together(limited):
    ledger = limited(4096)
    ledger.hold(torch.zeros(512))
    ledger.check(2048)
    with pytest.raises(OperationError, match=r"expected at most 4\.1 kB, found 2\.0 kB beside 2\.0 kB.*--max-memory"):
        ledger.check(2049)
    with counted(ledger), pytest.raises(OperationError, match="beside 2.0 kB"):
        check_free(2049)
    check_free(4096)  # of nobody's execution


def test_a_tensor_is_not_made_a_list_of_numbers_that_memory_does_not_hold(limited):
    convert = find("fill", "CoreML7").parameters["shape"].convert
    limited(9 * PER_ELEMENT)
    assert convert(torch.ones(9, dtype=torch.int32)) == [1] * 9
    with pytest.raises(OperationError, match="too much memory"):
        convert(torch.ones(10, dtype=torch.int32))


@pytest.mark.parametrize("operation", [mb.abs, mb.exp])  # which do not look at memory themselves
def test_an_execution_holds_what_is_still_needed_and_no_more(tmp_path, limited, operation):
    def build(x):
        parts = [x]
        for _ in range(20):
            parts.append(operation(x=parts[-1]))
        return tuple(parts[1:])

    model = load(package(build, {"x": X}, tmp_path))
    limited(21 * 1024)
    assert len(model.predict({"x": X})) == 20
    limited(21 * 1024 - 1)
    with pytest.raises(OperationError, match=r"^(abs|exp) '.*_19' of op.mlpackage: the result needs too much memory"):
        model.predict({"x": X})


def test_what_is_freed_counts_no_more(tmp_path, limited):
    def build(x):
        for _ in range(50):
            x = mb.exp(x=mb.mul(x=x, y=0.5))
        return x

    model = load(package(build, {"x": X}, tmp_path))
    limited(8 * 1024)  # x, an operand, a result, and scalars
    model.predict({"x": X})


@pytest.mark.parametrize("spare", [2048, -1])
def test_weights_count(tmp_path, limited, spare):
    weight = np.random.default_rng(0).standard_normal((256, 256)).astype(np.float32)
    path = package(lambda x: mb.linear(x=x, weight=weight), {"x": X}, tmp_path)
    limited(weight.nbytes + 8 * 1024 + spare) if spare > 0 else limited(weight.nbytes - 1)
    if spare > 0:
        load(path).predict({"x": X})
    else:
        with pytest.raises(PackageError, match="weight.bin holds more than there is memory for"):
            load(path)


def test_a_state_keeps_no_more_than_itself(limited):
    limited(1 << 20)
    states = {"s": torch.zeros(4)}
    part = torch.arange(256.0)[8:12]
    find("write_state", "CoreML8").function(input="s", data=part, context=SimpleNamespace(states=states))
    assert torch.equal(states["s"], part)
    assert states["s"].untyped_storage().nbytes() == 16
