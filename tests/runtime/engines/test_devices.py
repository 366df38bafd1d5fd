"""PyTorch's engines on a device. Here that is ``cpu:0``, which is handled as any other; no other is run by the tests."""

import numpy as np
import pytest
import torch

import splitter
from splitter import Orchestrator
from splitter.errors import BoundaryError, EngineError, UsageError
from splitter.runtime.engines import torch_engine
from splitter.runtime.orchestrator import Hook
from splitter.separation.separator import Separator

DEVICE = "cpu:0"
INPUTS = {"mix": np.random.default_rng(0).standard_normal((1, 2, 64)).astype(np.float32)}


@pytest.fixture
def brought(monkeypatch):
    """Shapes of the tensors that come back from the device."""
    shapes = []
    array = torch_engine._Held.array

    def counted(held):
        shapes.append(held.shape)
        return array(held)

    monkeypatch.setattr(torch_engine._Held, "array", counted)
    return shapes


def engines(bundle, **others):
    return {segment.name: others.get(segment.name, f"torch@{DEVICE}") for segment in bundle.segments}


def test_tensors_stay_on_the_device_between_its_segments(packages_bundle, brought):
    (expected,) = Orchestrator(packages_bundle).run(INPUTS).values()
    (result,) = Orchestrator(packages_bundle, engines(packages_bundle)).run(INPUTS).values()
    assert np.array_equal(result, expected)
    assert brought == [result.shape], "the output alone"
    brought.clear()
    mixed = engines(packages_bundle, transformer="torch")
    (result,) = Orchestrator(packages_bundle, mixed).run(INPUTS).values()
    assert np.array_equal(result, expected)
    read = packages_bundle.segment("transformer").inputs
    assert brought == [*(packages_bundle.tensors[name].shape for name in read), result.shape]


def test_who_looks_at_tensors_gets_arrays(packages_bundle):
    class Seen(Hook):
        def __init__(self):
            self.arrays = []

        def before_segment(self, segment, inputs):
            self.arrays += inputs.values()

        def after_segment(self, segment, outputs):
            self.arrays += outputs.values()

    hook = Seen()
    Orchestrator(packages_bundle, engines(packages_bundle), hooks=[hook]).run(INPUTS)
    assert hook.arrays
    assert all(isinstance(array, np.ndarray) for array in hook.arrays)


def test_what_stays_is_checked_all_the_same(packages_bundle, monkeypatch):
    results = torch_engine.TorchEngine._results
    monkeypatch.setattr(
        torch_engine.TorchEngine,
        "_results",
        lambda self, inputs: {name: value / 0 for name, value in results(self, inputs).items()},
    )
    with pytest.raises(BoundaryError, match=r"leaving analysis .* is not finite"):
        Orchestrator(packages_bundle, engines(packages_bundle)).run(INPUTS)


def test_constants_are_made_and_weights_lie_on_the_device(packages_bundle):
    program = packages_bundle.program(packages_bundle.segment("transformer").program)
    moved = torch_engine._moved(program, torch.device("meta"))
    assert {weight.device.type for weight in moved.weights.values()} == {"meta"}
    inputs = {str(node.target): torch.empty(node.meta["type"].shape, device="meta") for node in moved.input_nodes}
    assert {value.device.type for value in moved.run(inputs).values()} == {"meta"}
    assert all(weight.device.type == "cpu" for weight in program.weights.values()), "the bundle's stay"


@pytest.mark.parametrize(
    ("device", "message"),
    [
        ("cuda:99", "PyTorch finds no device 'cuda:99' here, but cpu"),
        ("tpu", "PyTorch knows no device 'tpu'"),
        ("meta", "PyTorch finds no device 'meta' here"),
    ],
)
def test_a_device_that_is_not_there_is_refused(toy_path, device, message):
    with pytest.raises(EngineError, match=rf"cannot run segment '\w+': {message}"):
        Separator(toy_path, device=device)


def test_engines_of_one_device_take_no_other(packages_bundle):
    with pytest.raises(EngineError, match="it has no choice of devices"):
        Orchestrator(packages_bundle, {"encoder": "mil@cuda"})


def test_a_device_is_for_what_no_engine_is_named_for(toy_path):
    sound = np.random.default_rng(1).standard_normal((2, 300)).astype(np.float32)
    expected = Separator(toy_path, "default")(sound, 8000)
    for device, named in [
        (DEVICE, {"analysis", "encoder", "transformer", "decoder", "synthesis"}),
        ({"encoder": DEVICE}, {"encoder"}),
    ]:
        separator = Separator(toy_path, {"transformer": "jax"} if isinstance(device, str) else "default", device=device)
        asked = {segment for segment, engine in separator.requested_engines.items() if engine == f"torch@{DEVICE}"}
        assert asked == named - ({"transformer"} if isinstance(device, str) else set())
    stems = separator(sound, 8000)
    assert all(np.array_equal(stems[name], expected[name]) for name in expected)
    with pytest.raises(UsageError, match="unknown segment 'mixer'"):
        splitter.Separator(toy_path, device={"mixer": "cpu"})
