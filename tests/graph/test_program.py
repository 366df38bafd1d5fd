import json
import os

import pytest
import torch
from safetensors.torch import save_file

from splitter import Bundle
from splitter.errors import BundleError, CaptureError
from splitter.graph import program as programs
from splitter.graph.capture import capture
from splitter.graph.shapes import TensorType
from splitter.graph.weights import Weights

from ..toys import Hybrid


@pytest.fixture(scope="module")
def hybrid():
    return capture(Hybrid().eval(), {"mix": torch.randn(1, 2, 64)}, ("restored",))


def saved(program, directory):
    programs.save(program, directory / "p.json")
    save_file({k: v.detach().contiguous() for k, v in program.weights.items()}, directory / "w.safetensors")
    return directory / "p.json", Weights(directory / "w.safetensors")


def test_round_trip_is_bit_exact(hybrid, tmp_path):
    loaded = programs.load(*saved(hybrid, tmp_path))
    mix = torch.randn(1, 2, 64)
    assert torch.equal(loaded.run({"mix": mix})["restored"], hybrid.run({"mix": mix})["restored"])
    assert programs.to_json(loaded) == programs.to_json(hybrid)


def test_saving_is_deterministic(hybrid, tmp_path):
    first = saved(hybrid, tmp_path)[0].read_bytes()
    assert (
        saved(capture(Hybrid().eval(), {"mix": torch.zeros(1, 2, 64)}, ("restored",)), tmp_path)[0].read_bytes()
        == first
    )


def test_observer_sees_every_operator_value(hybrid):
    seen = {}
    mix = torch.randn(1, 2, 64)
    result = hybrid.run({"mix": mix}, lambda node, value: seen.update({node.name: value}))
    tensors = [node for node in hybrid.operators if node.meta["type"] is not None]
    assert list(seen) == [node.name for node in tensors]
    assert all(TensorType.of(seen[node.name]) == node.meta["type"] for node in tensors)
    assert torch.equal(result["restored"], hybrid.run({"mix": mix})["restored"])


def test_constant_is_computed_without_inputs(hybrid):
    ramp = next(node for node in hybrid.operators if node.target is torch.ops.aten.linspace.default)
    assert torch.equal(hybrid.constant(ramp), torch.linspace(0, 1, 16))
    with pytest.raises(ValueError, match="depends on the input mix"):
        hybrid.constant(hybrid.operators[-1])


def edited(hybrid, tmp_path, change):
    path, weights = saved(hybrid, tmp_path)
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return path, weights


HOSTILE = {
    "another format": lambda c: c.update(format="splitter.program/99"),
    "operator outside aten": lambda c: c["nodes"][-1].update(op="prims.add.default"),
    "attribute walk": lambda c: c["nodes"][-1].update(op="aten.__class__.mro"),
    "operator that reads files": lambda c: c["nodes"][-1].update(op="aten.from_file.default"),
    "operator that writes in place": lambda c: c["nodes"][-1].update(op="aten.add_.Tensor"),
    "name that is code": lambda c: c["nodes"][-1].update(name="x = __import__('os')"),
    "keyword that is code": lambda c: c["nodes"][-1].update(kwargs={"a=1) or __import__('os').abort(": 1}),
    "input that is code": lambda c: c["nodes"][0].update(target="mix: __import__('os')"),
    "weight that is code": lambda c: next(n for n in c["nodes"] if n["op"] == "weight").update(target="a b.c"),
    "reference forward": lambda c: c["nodes"][1].update(op="aten.neg.default", args=[{"node": "never"}]),
    "two nodes of one name": lambda c: c["nodes"][-1].update(name=c["nodes"][-2]["name"]),
    "unknown argument": lambda c: c["nodes"][-1].update(args=[{"pickle": "cos\nsystem"}]),
    "weight of another shape": lambda c: next(n for n in c["nodes"] if n["op"] == "weight").update(shape=[1]),
    "output that is not there": lambda c: c.update(outputs={"restored": "nothing"}),
    "nodes of another type": lambda c: c.update(nodes=3),
}


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_hostile_programs_are_refused(hybrid, tmp_path, change, monkeypatch):
    monkeypatch.setattr(os, "abort", lambda: pytest.fail("code of the file was run"))
    path, weights = edited(hybrid, tmp_path, change)
    with pytest.raises(BundleError, match=r"p\.json(:| is no saved program)"):
        programs.load(path, weights).run({"mix": torch.zeros(1, 2, 64)})


@pytest.mark.parametrize("mix", [torch.zeros(1, 2, 32), torch.zeros(2, 64), torch.zeros(1, 2, 64, dtype=torch.float64)])
def test_input_of_another_type_is_refused(hybrid, mix):
    """What was inferred for the graph's own inputs holds for no others."""
    with pytest.raises(BundleError, match=r"input 'mix' is of another type.*expected 1×2×64 float32, found "):
        hybrid.run({"mix": mix})


def test_missing_weight_is_refused(hybrid, tmp_path):
    path, _ = saved(hybrid, tmp_path)
    save_file({"up.weight": torch.zeros(1)}, tmp_path / "w.safetensors")
    with pytest.raises(BundleError, match=r"down\.weight"):
        programs.load(path, Weights(tmp_path / "w.safetensors"))


def test_truncated_weights_are_refused(tmp_path):
    (tmp_path / "w.safetensors").write_bytes(b"\x10\0\0\0\0\0\0\0{}")
    with pytest.raises(BundleError, match=r"w\.safetensors cannot be read as a safetensors file"):
        Weights(tmp_path / "w.safetensors").of(["down.weight"])


def test_weights_are_read_into_aligned_memory(hybrid, tmp_path):
    _, weights = saved(hybrid, tmp_path)
    read = weights.of(hybrid.weights)
    assert read.keys() == hybrid.weights.keys()
    assert all(tensor.data_ptr() % 64 == 0 for tensor in read.values())


def test_weights_are_kept_once_and_only_those_of_the_programs(demo_path, monkeypatch):
    bundle = Bundle.load(demo_path)
    read = []
    monkeypatch.setattr(bundle.weights, "_content", lambda path: read.append(path) or path.read_bytes())
    analysis, encoder = (bundle.program(bundle.segment(name).program) for name in ("analysis", "encoder"))
    assert bundle.weights._kept.keys() == {*analysis.weights, *encoder.weights}
    whole = bundle.program(bundle.manifest.whole)
    assert bundle.weights._kept.keys() == whole.weights.keys()
    assert all(whole.weights[name].data_ptr() == weight.data_ptr() for name, weight in encoder.weights.items())
    before = len(read)
    assert bundle.program(bundle.segment("decoder").program).weights
    assert len(read) == before, "all are there already"


def test_weights_are_read_once_for_programs_that_are_loaded_together(demo_path, monkeypatch):
    bundle = Bundle.load(demo_path)
    read = []
    monkeypatch.setattr(bundle.weights, "_content", lambda path: read.append(path) or path.read_bytes())
    with bundle.weights.held():
        for segment in bundle.segments:
            bundle.program(segment.program)
    assert len(read) == 1
    assert bundle.weights._held is None, "the file's content is not kept"


def test_argument_without_json_form_is_refused(hybrid):
    copy = hybrid.copy()
    node = copy.operators[-1]
    node.args = (*node.args, 1j)
    with pytest.raises(CaptureError, match="complex"):
        programs.to_json(copy)
