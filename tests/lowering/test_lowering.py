import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from torch import nn

from splitter import lowering, mil, plugins
from splitter.bundle.directory import Bundle, file_records
from splitter.bundle.files import Files
from splitter.errors import LoweringError, PlanError
from splitter.graph.capture import capture
from splitter.lowering.coreml import CoreMLTarget
from splitter.lowering.host import HostTarget
from splitter.lowering.kernels import KernelsTarget
from splitter.mil.coreml_tools import ct
from splitter.partition import Segment, partition
from splitter.plan import schema as plans

from ..toys import HYBRID_PLAN, Hybrid, cut


@pytest.fixture(scope="module")
def hybrid():
    return cut(Hybrid(), HYBRID_PLAN)


def lowered(hybrid, segment, directory, plan=HYBRID_PLAN):
    segments, values = hybrid
    target = lowering.target(segments[segment].stage.target)
    return target.lower(segments[segment], plan, values, directory)


def shipped(bundle, name):
    """A segment of a bundle as before its lowering, and the plan it was built by."""
    segment, plan = bundle.segment(name), bundle.manifest.plan
    stage = next(stage for stage in plan.stages if stage.name == name)
    inputs, outputs = (tuple(bundle.tensors[n] for n in names) for names in (segment.inputs, segment.outputs))
    return Segment(name, stage, bundle.program(segment.program), inputs, outputs), plan


# ---------------------------------------------------------------------------------------- coreml


@pytest.mark.parametrize(("target", "version", "opset"), [("iOS15", 6, "CoreML5"), ("iOS16", 7, "CoreML6"),
                                                          ("iOS17", 8, "CoreML7"), ("iOS18", 9, "CoreML8")])  # fmt: skip
def test_package_is_for_the_target_asked(hybrid, tmp_path, target, version, opset):
    lowered(hybrid, "encoder", tmp_path, plans.changed(HYBRID_PLAN, deployment_target=target))
    facts = mil.load(tmp_path / "encoder.mlpackage").spec
    assert (facts.specification_version, facts.opset) == (version, opset)


def test_package_has_semantic_names_and_complete_metadata(demo_bundle):
    facts = mil.load(demo_bundle.path / "encoder.mlpackage").spec
    assert [feature.name for feature in facts.inputs] == ["spectrogram", "waveform"]
    assert {"skip_freq_0", "skip_time_3", "freq_encoded", "time_encoded"} <= {feature.name for feature in facts.outputs}
    assert all(feature.description for feature in facts.inputs + facts.outputs)
    assert facts.inputs[0].shape == (1, 4, 1024, 130)
    assert all((facts.author, facts.license, facts.version, facts.short_description))
    assert facts.user_defined["io.github.splitter.segment"] == "encoder"
    assert set(dict.fromkeys(dtype for _, dtype in facts.float_values)) == {"fp32"}


def test_harmful_pass_is_out_and_broadcasts_stay_small(demo_bundle):
    facts = mil.load(demo_bundle.path / "encoder.mlpackage").spec
    assert "batch_norm" not in facts.operations
    parameters = demo_bundle.segment("encoder").parameters
    stored = sum(f.stat().st_size for f in (demo_bundle.path / "encoder.mlpackage").rglob("weight.bin"))
    assert stored <= 4 * parameters * 1.15, "some constant was folded at its broadcast size"


def test_without_the_pass_the_constant_is_folded(demo_bundle, tmp_path):
    """The check above can fail: this is what it guards against."""
    segment = demo_bundle.segment("encoder")
    CoreMLTarget().lower(*shipped(demo_bundle, "encoder"), {}, tmp_path)
    stored = sum(f.stat().st_size for f in (tmp_path / "encoder.mlpackage").rglob("weight.bin"))
    assert stored > 4 * segment.parameters * 1.15


def test_half_precision_is_obtained_inside_and_at_the_boundaries(hybrid, tmp_path):
    segments, values = hybrid
    plan = plans.changed(HYBRID_PLAN, precision="fp16", deployment_target="iOS16")
    lowered(hybrid, "encoder", tmp_path, plan)
    facts = mil.load(tmp_path / "encoder.mlpackage").spec
    assert {dtype for _, dtype in facts.float_values} == {"fp16"}
    assert {feature.dtype for feature in facts.inputs + facts.outputs} == {"fp32"}

    import dataclasses

    half = plans.changed(plan, boundary_dtype="fp16")
    segment = segments["encoder"]
    segment = dataclasses.replace(
        segment,
        inputs=tuple(spec.with_dtype("float16") for spec in segment.inputs),
        outputs=tuple(spec.with_dtype("float16") for spec in segment.outputs),
    )
    CoreMLTarget().lower(segment, half, values, tmp_path)
    facts = mil.load(tmp_path / "encoder.mlpackage").spec
    assert {feature.dtype for feature in facts.inputs + facts.outputs} == {"fp16"}


def audit(bundle, name, plan=None, tensors=None):
    segment = bundle.segment(name)
    files = Files(bundle.path, file_records(bundle.path))  # as a builder gone wrong would list them
    return lowering.target(segment.artifact.target).audit(
        segment, tensors or bundle.tensors, plan or bundle.manifest.plan, files
    )


def test_audit_of_what_was_built_finds_nothing(demo_bundle):
    assert [audit(demo_bundle, segment.name) for segment in demo_bundle.segments] == [[]] * 5


@pytest.mark.parametrize(
    ("settings", "finding"),
    [
        ({"deployment_target": "iOS18"}, "specification version 8, iOS18 is 9"),
        ({"precision": "fp16"}, "compute in fp32, asked fp16"),
    ],
)
def test_audit_finds_what_was_asked_but_not_obtained(demo_bundle, settings, finding):
    findings = audit(demo_bundle, "encoder", plans.changed(demo_bundle.manifest.plan, **settings))
    assert any(finding in one for one in findings), findings


def edit_package(bundle, directory, change):
    copy = directory / "encoder.mlpackage"
    shutil.copytree(bundle.path / "encoder.mlpackage", copy)
    spec_path = next(copy.rglob("model.mlmodel"))
    spec = ct.proto.Model_pb2.Model()
    spec.ParseFromString(spec_path.read_bytes())
    change(spec)
    spec_path.write_bytes(spec.SerializeToString())
    return Bundle(directory, bundle.manifest)


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (lambda spec: setattr(spec.description.input[0], "name", "add_66"), "inputs"),
        (lambda spec: setattr(spec.description.output[0], "shortDescription", ""), "no description"),
        (lambda spec: setattr(spec.description.metadata, "author", ""), "no author"),
        (lambda spec: spec.description.metadata.userDefined.pop("io.github.splitter.precision"), "precision is None"),
        (lambda spec: spec.description.output[0].type.multiArrayType.shape.__setitem__(0, 9), "asked"),
    ],
)
def test_audit_finds_edits(demo_bundle, tmp_path, change, finding):
    findings = audit(edit_package(demo_bundle, tmp_path, change), "encoder")
    assert any(finding in one for one in findings), findings


def test_unreadable_package_is_a_finding(demo_bundle, tmp_path):
    bundle = Bundle(tmp_path, demo_bundle.manifest)
    assert "there is no directory of this name" in audit(bundle, "encoder")[0]
    shutil.copytree(demo_bundle.path / "encoder.mlpackage", tmp_path / "encoder.mlpackage")
    next((tmp_path / "encoder.mlpackage").rglob("model.mlmodel")).write_bytes(b"\xff\xff\xff")
    assert "cannot be read as a Core ML package" in audit(bundle, "encoder")[0]


def test_operator_without_conversion_is_named(tmp_path):
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Linear(2, 3)

        def forward(self, mix):
            return self.down(torch.hypot(mix, mix))

    plan = plans.Plan.model_validate(
        {"family": "odd", "outputs": ["y"], "stages": [{"name": "encoder", "target": "coreml", "modules": ["down"]}]}
    )
    mix = torch.randn(4, 1, 2)
    (segment,) = partition(capture(Odd().eval(), {"mix": mix}, ("y",)), plan).segments
    with pytest.raises(LoweringError, match=r"convert segment 'encoder'.*hypot"):
        CoreMLTarget().lower(segment, plan, {}, tmp_path)
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------ host


def test_host_stage_of_another_model(hybrid, tmp_path):
    lowered(hybrid, "analysis", tmp_path)
    steps = json.loads((tmp_path / "analysis.json").read_text())["steps"]
    assert [step["op"] for step in steps] == ["mean", "std", "subtract", "add", "divide"]


def test_host_operation_without_a_word_is_named(tmp_path):
    class Loud(nn.Module):
        def __init__(self):
            super().__init__()
            self.down = nn.Conv1d(2, 2, 1)

        def forward(self, mix):
            return self.down(torch.tanh(mix))

    plan = plans.Plan.model_validate(
        {
            "family": "loud",
            "outputs": ["y"],
            "stages": [
                {"name": "analysis", "target": "host"},
                {"name": "encoder", "target": "graph", "modules": ["down"]},
            ],
        }
    )
    mix = torch.randn(1, 2, 8)
    segment = partition(capture(Loud().eval(), {"mix": mix}, ("y",)), plan).segments[0]
    with pytest.raises(LoweringError, match=r"aten\.tanh"):
        HostTarget().lower(segment, plan, {}, tmp_path)


def test_host_specification_that_is_not_the_graph_is_refused(hybrid, tmp_path, monkeypatch):
    from splitter.runtime import host

    monkeypatch.setitem(host._OPERATIONS, "std", lambda x, axes, correction: x.std(axis=tuple(axes), keepdims=True))
    with pytest.raises(LoweringError, match="does not mean what the graph's does"):
        lowered(hybrid, "analysis", tmp_path)


# --------------------------------------------------------------------------------------- kernels


def test_exported_transformer_is_described_byte_by_byte(demo_bundle):
    record = demo_bundle.segment("transformer").artifact.details
    raw = (demo_bundle.path / "transformer.safetensors").read_bytes()
    tensors = load_file(demo_bundle.path / "transformer.safetensors")
    assert set(record["tensors"]) == set(tensors)
    assert record["config"] == {"width": 80, "heads": 8, "layers": 5, "hidden": 160, "freq_tokens": 520,
                                "time_tokens": 259, "cross_first": False, "eps": 1e-5}  # fmt: skip
    assert record["inputs"] == ["freq_encoded", "time_encoded"]
    for name, one in record["tensors"].items():
        array = np.frombuffer(raw, one["dtype"], offset=one["offset"], count=one["bytes"] // 4).reshape(one["shape"])
        np.testing.assert_array_equal(array, tensors[name])
    assert record["tensors"]["layers.0.linear1.weight"]["source"] == "crosstransformer.layers.0.linear1.weight"
    assert record["tensors"]["positions"]["source"] == "graph"


def test_transformer_file_with_an_edit_is_a_finding(demo_bundle, tmp_path):
    bundle = Bundle(tmp_path, demo_bundle.manifest)
    path = tmp_path / "transformer.safetensors"
    shutil.copy(demo_bundle.path / path.name, path)
    assert audit(bundle, "transformer") == []
    raw = bytearray(path.read_bytes())
    raw[bundle.segment("transformer").artifact.details["tensors"]["norm_in.bias"]["offset"]] ^= 1
    path.write_bytes(raw)
    assert "'norm_in.bias'" in audit(bundle, "transformer")[0]
    save_file({"norm_in.bias": np.zeros(80, np.float32)}, path)
    assert "format" in audit(bundle, "transformer")[0]


def test_transformer_in_another_form_than_the_plan_asks_is_a_finding(demo_bundle):
    plan = plans.changed(demo_bundle.manifest.plan, weights={"layout": "mlx"})
    assert "the plan asks for" in audit(demo_bundle, "transformer", plan)[0]


def test_transformer_that_is_another_is_refused(tmp_path):
    mix = torch.randn(1, 2, 64)
    stages = [stage.model_dump() for stage in HYBRID_PLAN.stages]
    stages[2]["target"] = "kernels"
    plan = plans.changed(HYBRID_PLAN, stages=stages)
    segment = partition(capture(Hybrid().eval(), {"mix": mix}, ("restored",)), plan).segments[2]
    with pytest.raises(
        LoweringError, match="other tensors than a cross-domain transformer: expected one 'b c f t' and one 'b c t'"
    ):
        KernelsTarget().lower(segment, plan, {}, tmp_path)


def test_kernels_that_disagree_with_the_graph_are_refused(demo_bundle, tmp_path, monkeypatch):
    from splitter_kernels import reference

    segment = shipped(demo_bundle, "transformer")
    KernelsTarget().lower(*segment, demo_bundle.goldens(), tmp_path)
    monkeypatch.setattr(reference, "gelu", lambda x: x / (1 + np.exp(-1.702 * x)))
    with pytest.raises(LoweringError, match="the NumPy kernels give"):
        KernelsTarget().lower(*segment, demo_bundle.goldens(), tmp_path)


# ----------------------------------------------------------------------------------- registration


def test_targets_are_found_by_entry_point(monkeypatch):
    from importlib.metadata import EntryPoint

    class Own:
        pass

    monkeypatch.setattr(plugins, "entry_points", lambda group: [EntryPoint("own", f"{__name__}:OWN", group)])
    monkeypatch.setitem(globals(), "OWN", Own)
    lowering.target.cache_clear()
    try:
        assert isinstance(lowering.target("own"), Own)
        with pytest.raises(PlanError, match=r"^unknown target 'coreml'\. Installed: own\.$"):
            lowering.target("coreml")
        both = [EntryPoint("own", f"{__name__}:OWN", "g"), EntryPoint("own", "elsewhere:Own", "g")]
        monkeypatch.setattr(plugins, "entry_points", lambda group: both)
        lowering.target.cache_clear()
        with pytest.raises(PlanError, match="target 'own' is installed more than once; got .*elsewhere:Own"):
            lowering.target("own")
    finally:
        lowering.target.cache_clear()


def test_graph_target_keeps_the_captured_segment(hybrid, tmp_path):
    artifact = lowered(hybrid, "transformer", tmp_path)
    assert (artifact.target, artifact.path) == ("graph", "")
    assert not list(tmp_path.iterdir())
