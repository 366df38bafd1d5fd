"""The doctor on whole packages, its own and other people's, sound and damaged."""

import json
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from splitter.diagnosis import Severity, examine
from splitter.errors import BundleError, PackageError, UsageError
from splitter.mil.coreml_tools import ct, quiet_and_quick
from splitter.mil.program import load_spec, model_file

from .harness import f16, f32, findings, mb, package


@pytest.fixture(scope="module")
def foreign(tmp_path_factory):
    """Straight from Core ML Tools: a small network, its norm kept in fp32 by a selector."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.LayerNorm(8 * 36), nn.Linear(8 * 36, 5)).eval()
    traced = torch.jit.trace(net, torch.zeros(1, 3, 8, 8))
    with quiet_and_quick():
        model = ct.convert(
            traced,
            inputs=[ct.TensorType("image", (1, 3, 8, 8))],
            outputs=[ct.TensorType("classes")],
            minimum_deployment_target=ct.target.iOS16,
            compute_precision=ct.transform.FP16ComputePrecision(op_selector=lambda op: op.op_type != "layer_norm"),
            skip_model_load=True,
        )
    model.short_description = "A net in mixed precision"
    path = tmp_path_factory.mktemp("foreign") / "net.mlpackage"
    model.save(str(path))
    return path


def test_a_package_we_did_not_make(foreign):
    image = np.ones((1, 3, 8, 8), np.float32)
    report = examine(foreign, inputs={"image": image})
    (diagnosis,) = report.diagnoses
    assert diagnosis.measured
    assert report.counts[Severity.ERROR] == 0
    assert diagnosis.placement.flop_share == 1.0
    assert {one.operation for one in diagnosis.findings if one.rule == "engine-dtype"} == {"cast", "layer_norm"}
    assert diagnosis.placement.changes >= 2
    assert diagnosis.placement_in_half.operation_share == 1.0


def test_its_label_is_believed_only_if_it_is_true(foreign, tmp_path):
    assert findings(foreign, "requested-precision") == []
    lying = package(lambda x: mb.relu(x=mb.exp(x=x)), {"x": f16(1, 8)}, tmp_path)
    spec = load_spec(lying)
    spec.description.metadata.shortDescription = "A net in mixed precision"
    model_file(lying).write_bytes(spec.SerializeToString())
    (found,) = findings(lying, "requested-precision")
    assert found.severity is Severity.ERROR
    assert "2 of 2 values in fp16" in found.what


def test_every_finding_says_all_it_must(foreign):
    document = examine(foreign, run=False).to_dict()
    json.dumps(document, allow_nan=False)
    (one,) = document["packages"]
    assert one["measured"] is False
    for finding in one["findings"]:
        assert finding.keys() == {"rule", "severity", "operation", "output", "what", "why", "fix", "source"}
        assert all(finding[key] for key in ("rule", "severity", "what", "why", "fix", "source"))
    assert document["summary"]["info"] == sum(one["severity"] == "info" for one in one["findings"])


def test_a_bundle_is_run_on_its_golden_inputs(demo_path, demo_bundle):
    report = examine(demo_path)
    assert [one.package.rpartition("/")[2] for one in report.diagnoses] == ["encoder.mlpackage", "decoder.mlpackage"]
    assert all(one.measured for one in report.diagnoses)
    assert report.counts[Severity.ERROR] == 0
    for one in report.diagnoses:
        assert one.placement.operations_on_engine == 0
        assert one.compile_time.seconds is None
        assert 0.5 < one.placement_in_half.flop_share < 1
    shares = [one.placement_in_half.flop_share for one in report.diagnoses]
    assert min(shares) < report.flop_share(in_half=True) < max(shares)
    assert report.flop_share(in_half=False) == 0
    loud = {name: array * np.float32(1000) for name, array in demo_bundle.goldens().items()}
    named = {one.rule for one in examine(demo_path, inputs=loud).diagnoses[0].findings}
    assert "range-needs-fp32" in named


def test_inputs_that_a_bundle_needs(demo_path):
    with pytest.raises(UsageError, match="lack boundary tensors that encoder reads: expected waveform"):
        examine(demo_path, inputs={"spectrogram": np.zeros(1, np.float32)})


def test_chip_that_is_none(foreign):
    with pytest.raises(UsageError, match="m1, m2"):
        examine(foreign, chip="z80")


@pytest.mark.parametrize(
    ("what", "said"),
    {
        "nothing": r"copy\.mlpackage is no Core ML package",
        "empty": r"the model file of copy\.mlpackage",
        "manifest": r"the manifest of copy\.mlpackage",
        "model": r"copy\.mlpackage cannot be read as a Core ML package",
        "weights": r"weight\.bin",
        "network": r"copy\.mlpackage holds no ML Program",
    }.items(),
)
def test_damage_has_a_name(what, said, foreign, tmp_path):
    path = tmp_path / "copy.mlpackage"
    if what != "nothing":
        shutil.copytree(foreign, path)
    if what == "empty":
        shutil.rmtree(path / "Data")
    if what == "manifest":
        (path / "Manifest.json").write_text("{")
    if what == "model":
        model_file(path).write_bytes(model_file(path).read_bytes()[:-100])
    if what == "weights":
        (weights,) = path.rglob("weight.bin")
        weights.write_bytes(weights.read_bytes()[:100])
    if what == "network":
        spec = load_spec(path)
        spec.neuralNetwork.SetInParent()
        model_file(path).write_bytes(spec.SerializeToString())
    with pytest.raises(PackageError, match=said):
        examine(path)


def test_neither_package_nor_bundle(tmp_path):
    with pytest.raises(PackageError, match="manifest"):
        examine(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(BundleError, match=r"manifest\.json is damaged"):
        examine(tmp_path)


def test_every_function_is_examined(tmp_path):
    first, second = tmp_path / "one", tmp_path / "two"
    first.mkdir()
    second.mkdir()
    description = ct.utils.MultiFunctionDescriptor()
    for name, directory, build in (("calm", first, mb.relu), ("wavy", second, mb.sin)):
        path = package(lambda x, build=build: build(x=x), {"x": f32(1, 8)}, directory, "iOS18")
        description.add_function(str(path), src_function_name="main", target_function_name=name)
    description.default_function_name = "calm"
    with quiet_and_quick():
        ct.utils.save_multifunction(description, str(tmp_path / "both.mlpackage"))
    report = examine(tmp_path / "both.mlpackage", inputs={"x": f32(1, 8)})
    assert {one.function: one.measured for one in report.diagnoses} == {"calm": True, "wavy": False}
    wavy = next(one for one in report.diagnoses if one.function == "wavy")
    assert "engine-operation" in {one.rule for one in wavy.findings}
