"""ONNX files: built, read back, verified, and run where nothing of splitter is installed."""

import hashlib
import shutil
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import soundfile
import torch

import splitter
from splitter import lowering, plugins
from splitter.bundle import directory
from splitter.errors import BundleError, LoweringError, PlanError
from splitter.lowering import onnx as onnx_target
from splitter.lowering.onnx import reading
from splitter.plan import schema as plans
from splitter.plan.schema import Plan
from splitter.runtime.engines import loaded
from splitter.verification.checks import Status

from ..conftest import ROOT, snr_db
from ..sealing import flip, reseal
from ..toys import GRAPHS_PLAN, PACKAGES_PLAN, duo, separating


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "onnx.bundle"
    return splitter.build(separating(), path, plan=PACKAGES_PLAN, format="onnx").members[0]


@pytest.fixture
def copy(bundle, tmp_path):
    """One that may be changed, and the file of its decoder."""
    path = shutil.copytree(bundle.path, tmp_path / "copy.bundle")
    return path, path / "decoder.onnx"


def failures(path):
    report = splitter.verify(path)[0]
    return [check for check in report.checks if check.status is Status.FAIL]


def test_every_stage_but_the_hosts_becomes_an_onnx_file(bundle):
    paths = {segment.name: segment.artifact.path for segment in bundle.segments}
    assert paths == {
        "analysis": "analysis.json",
        "encoder": "encoder.onnx",
        "transformer": "transformer.onnx",
        "decoder": "decoder.onnx",
        "synthesis": "synthesis.json",
    }


def test_it_is_verified_by_cause_on_its_own_engine(bundle):
    report = splitter.verify(bundle.path)[0]
    assert not [check for check in report.checks if check.status is Status.FAIL]
    conversion = {check.subject: check.parity.snr_db for check in report.checks if check.kind == "conversion"}
    assert conversion.keys() == {name for segment in bundle.segments[1:-1] for name in segment.outputs}
    assert min(conversion.values()) >= 115
    assert {check.engine for check in report.checks if check.kind == "package"} == {"onnxruntime"}


def test_a_song_is_separated_by_it(bundle, tmp_path):
    soundfile.write(tmp_path / "song.wav", np.random.default_rng(0).uniform(-0.5, 0.5, (500, 2)), 8000)
    waveform, rate = soundfile.read(tmp_path / "song.wav", dtype="float32")
    engines = dict.fromkeys(("encoder", "transformer", "decoder"), "onnxruntime")
    by_onnx = splitter.Separator(bundle.path, engines=engines)(waveform.T, rate)
    by_torch = splitter.Separator(bundle.path, engines="default")(waveform.T, rate)
    assert min(snr_db(by_torch[stem], by_onnx[stem]) for stem in by_torch) >= 100


def test_plain_onnxruntime_runs_it_with_nothing_of_splitter(bundle, tmp_path):
    golden = bundle.goldens()
    segment = bundle.segment("decoder")
    np.savez(tmp_path / "in.npz", **{name: golden[name] for name in segment.inputs})
    script = (
        "import sys, numpy, onnxruntime\n"
        "session = onnxruntime.InferenceSession(sys.argv[1], providers=['CPUExecutionProvider'])\n"
        "names = [output.name for output in session.get_outputs()]\n"
        "numpy.savez(sys.argv[3], **dict(zip(names, session.run(None, dict(numpy.load(sys.argv[2]))))))\n"
        "assert not [name for name in sys.modules if name.startswith(('splitter', 'torch'))]\n"
    )
    command = [
        sys.executable,
        "-I",
        "-c",
        script,
        bundle.path / "decoder.onnx",
        tmp_path / "in.npz",
        tmp_path / "out.npz",
    ]
    subprocess.run(command, check=True, cwd=tmp_path)
    results = np.load(tmp_path / "out.npz")
    assert set(results.files) == set(segment.outputs)
    assert all(snr_db(golden[name], results[name]) >= 115 for name in segment.outputs)


def test_half_precision_is_what_was_asked_for(tmp_path):
    path = tmp_path / "half.bundle"
    splitter.build(separating(), path, plan=PACKAGES_PLAN, format="onnx", precision="fp16")
    model = onnx.load(path / "decoder.onnx")
    assert {weight.data_type for weight in model.graph.initializer} >= {onnx.TensorProto.FLOAT16}
    assert onnx.TensorProto.FLOAT not in {weight.data_type for weight in model.graph.initializer}
    assert not failures(path)


def test_the_file_says_nothing_of_the_machine_that_made_it(bundle):
    for file in bundle.path.glob("*.onnx"):
        content = file.read_bytes()
        assert str(ROOT).encode() not in content
        assert b"stack_trace" not in content
        assert onnx.load(file).producer_name == "splitter"


def test_the_same_build_gives_the_same_bytes(bundle, tmp_path):
    splitter.build(separating(), tmp_path / "again", plan=PACKAGES_PLAN, format="onnx")
    for name in ("encoder.onnx", "transformer.onnx", "decoder.onnx"):
        assert (tmp_path / "again" / name).read_bytes() == (bundle.path / name).read_bytes()


def test_a_flipped_byte_is_named(copy):
    path, file = copy
    flip(file, 100)
    assert [check.note for check in failures(path)] == [
        f"{file} was changed after the build: expected SHA-256 "
        f"{directory.single(path).manifest.files['decoder.onnx'].sha256}, found "
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}. Build the bundle again."
    ]


def _rename(model):
    model.graph.output[0].name = "other"
    model.graph.node[-1].output[0] = "other"


def _other_opset(model):
    model.opset_import[0].version = 21


def _old_opset(model):
    model.opset_import[0].version = 17


def _half_weight(model):
    weight = model.graph.initializer[0]
    weight.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weight).astype(np.float16), weight.name))


def _no_metadata(model):
    del model.metadata_props[:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_rename, "output ('other'"),
        (_other_opset, "opsets {'': 21}, asked 20"),
        (_old_opset, "decoder.onnx has an opset that is too old: expected 20 or later, found 17"),
        (_half_weight, "no valid ONNX file"),
        (_no_metadata, "metadata {}"),
    ],
)
def test_a_file_that_is_not_what_was_asked_for_is_told(copy, change, message):
    path, file = copy
    model = onnx.load(file)
    change(model)
    file.write_bytes(model.SerializeToString())
    reseal(path)
    notes = [check.note for check in failures(path) if check.kind == "artifact"]
    assert len(notes) == 1
    assert message in notes[0]


def _external(model):
    weight = model.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="../../etc/passwd")


def _attribute_external(model):
    tensor = onnx.TensorProto(dims=[4], data_type=1, data_location=onnx.TensorProto.EXTERNAL, name="c")
    tensor.external_data.add(key="location", value="elsewhere")
    model.graph.node.insert(0, onnx.helper.make_node("Constant", [], ["unused"], value=tensor))


def _custom(model):
    model.graph.node.add(op_type="Evil", domain="evil", output=["e"], input=[model.graph.input[0].name])
    model.opset_import.add(domain="evil", version=1)


def _function(model):
    model.functions.add(name="f", domain="", opset_import=[onnx.helper.make_opsetid("", 20)])


def _endless(model):
    body = onnx.helper.make_graph([
        onnx.helper.make_node("Identity", ["c"], ["d"])], "body",
        [onnx.helper.make_tensor_value_info("i", 7, []), onnx.helper.make_tensor_value_info("c", 9, [])],
        [onnx.helper.make_tensor_value_info("d", 9, [])])  # fmt: skip
    true = onnx.helper.make_node("Constant", [], ["true"], value=onnx.numpy_helper.from_array(np.array(True)))
    model.graph.node.extend([true, onnx.helper.make_node("Loop", ["", "true"], [], body=body)])


def _huge(model):
    shape = onnx.numpy_helper.from_array(np.array([1 << 20, 1 << 20]), "huge_shape")
    model.graph.initializer.append(shape)
    model.graph.node.add(op_type="ConstantOfShape", input=["huge_shape"], output=["huge"])


def _many(model):
    """Each of half a gigabyte; and all are held, because an addition reads them at the end."""
    shape = onnx.numpy_helper.from_array(np.array([1 << 14, 1 << 13]), "many_shape")
    model.graph.initializer.append(shape)
    names = [f"many_{place}" for place in range(100)]
    for name in names:
        model.graph.node.add(op_type="ConstantOfShape", input=["many_shape"], output=[name])
    model.graph.node.add(op_type="Sum", input=names, output=["many"])


def _unknown_shape(model):
    model.graph.node.add(op_type="NonZero", input=[model.graph.input[0].name], output=["where"])


def _cut(model):
    del model.graph.node[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_external, "weights in other files"),
        (_attribute_external, "weights in other files"),
        (_custom, "operators of other domains; got evil"),
        (_function, "has functions; got f"),
        (_endless, "bodies of control flow; got body"),
        (_huge, "needs too much memory"),
        (_many, "needs too much memory"),
        (_unknown_shape, "a value without a shape"),
        (_cut, "no valid ONNX file"),
    ],
)
def test_what_a_stranger_may_put_into_a_file_never_reaches_the_runtime(copy, monkeypatch, change, message):
    path, file = copy
    model = onnx.load(file)
    change(model)
    file.write_bytes(model.SerializeToString())
    reseal(path)
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *given, **options: pytest.fail("was loaded"))
    bundle = directory.single(path)
    with pytest.raises(BundleError, match=message):
        loaded("onnxruntime", bundle, bundle.segment("decoder"), compute_units="ALL")


def test_a_missing_extra_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "find_spec", lambda name: None)
    with pytest.raises(LoweringError, match=r"not installed; got no onnx, onnxruntime, onnxscript\. Install the extra"):
        splitter.build(separating(), tmp_path / "b", plan=PACKAGES_PLAN, format="onnx")
    assert not list(tmp_path.iterdir())


def test_a_missing_extra_is_named_by_verify(bundle, monkeypatch):
    monkeypatch.setattr(plugins, "find_spec", lambda name: None)
    notes = {check.note for check in failures(bundle.path) if check.kind == "artifact"}
    assert len(notes) == 1
    assert "pip install 'splitter[onnx]'" in notes.pop()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "onix"}, "unknown target 'onix'"),
        ({"format": "graph"}, "target 'graph' writes no files. Those that do: .*onnx"),
        ({"format": "onnx", "compress": "pal6"}, "does not offer the compression pal6"),
        ({"format": "onnx", "boundary_dtype": "fp16"}, "does not offer the boundary_dtype fp16"),
    ],
)
def test_what_cannot_be_built_is_refused_before_the_build(tmp_path, options, message):
    with pytest.raises(PlanError, match=message):
        splitter.build(separating(), tmp_path / "b", plan=PACKAGES_PLAN, **options)
    assert not list(tmp_path.iterdir())


def test_stages_that_stay_in_torch_stay_there(tmp_path):
    bag = splitter.build(duo(), tmp_path / "b", plan=GRAPHS_PLAN, format="onnx")
    assert {segment.artifact.target for segment in bag.members[0].segments} == {"graph"}


def test_values_are_counted_until_their_last_reader(copy):
    _, file = copy
    model = onnx.load(file)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.array([1 << 14, 1 << 13]), "large"))
    model.graph.node.add(op_type="ConstantOfShape", input=["large"], output=["link_0"])
    for place in range(100):  # half a gigabyte each, and two at once
        model.graph.node.add(op_type="Neg", input=[f"link_{place}"], output=[f"link_{place + 1}"])
    reading.admitted(model.SerializeToString(), "chain.onnx")


class Counted(torch.nn.Module):
    """Boundaries that are integers, truths and single numbers."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(16, 4)
        self.head = torch.nn.Linear(4, 4)

    def forward(self, ids, scale):
        found = self.table(ids) * scale
        return self.head(found), ids + 1, ids > 3


def test_integers_truths_and_single_numbers_cross_as_they_are(tmp_path):
    stages = [{"name": "table", "target": "onnx", "modules": ["table"]}, {"name": "head", "target": "onnx"}]
    plan = Plan.model_validate({"family": "counted", "outputs": ["y", "next", "large"], "stages": stages})
    inputs = {"ids": np.array([[1, 9]]), "scale": np.array(2.0, np.float32)}
    splitter.build(Counted(), tmp_path / "b", inputs=inputs, plan=plan)
    assert not failures(tmp_path / "b")
    assert {spec.dtype for spec in directory.single(tmp_path / "b").tensors.values()} == {"int64", "bool", "float32"}


def test_norms_are_written_out_unless_the_plan_names_its_passes(bundle, tmp_path):
    assert {"norms-safe-in-half", "means-in-stages"} <= bundle.segment("transformer").passes.keys()
    bag = splitter.build(separating(), tmp_path / "b", plan=PACKAGES_PLAN, format="onnx", passes=())
    assert bag.members[0].segment("transformer").passes == {}


INT8_PLAN = plans.changed(PACKAGES_PLAN, compression={"form": "int8", "min_elements": 32})


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_weights_are_integers_with_a_scale_per_channel(tmp_path, precision):
    """Whatever the exporter has done to a weight: those of linear maps lie transposed in the file."""
    bag = splitter.build(separating(), tmp_path / "b", plan=INT8_PLAN, format="onnx", precision=precision)
    (bundle,) = bag.members
    stored = bundle.segment("transformer").artifact.details["compressed"]
    sources = {weight["source"] for weight in stored.values()}
    assert {"mix.self_attn.in_proj_weight", "mix.linear1.weight", "mix.linear2.weight"} <= sources
    assert not failures(bundle.path)
    found = {weight.name: weight for weight in onnx.load(bundle.path / "transformer.onnx").graph.initializer}
    assert {found[name].data_type for name in stored} == {onnx.TensorProto.INT8}
    integers = np.concatenate([onnx.numpy_helper.to_array(found[name]).ravel() for name in stored])
    assert (integers.min(), integers.max()) == (-127, 127), "the same on both sides of zero"
    for weight in lowering.target("onnx").decoded_weights(bundle, bundle.segment("transformer")):
        assert 35 < snr_db(weight.original, weight.stored) < 60


def test_an_int8_file_with_a_plain_weight_is_told(tmp_path):
    path = tmp_path / "b"
    splitter.build(separating(), path, plan=INT8_PLAN, format="onnx")
    model = onnx.load(path / "decoder.onnx")
    index = [weight.data_type for weight in model.graph.initializer].index(onnx.TensorProto.INT8)
    integers = model.graph.initializer[index]
    integers.name, model.graph.node[0].input[0] = "other", "other"
    (path / "decoder.onnx").write_bytes(model.SerializeToString())
    reseal(path)
    (note,) = [check.note for check in failures(path) if check.kind == "artifact"]
    assert note == "weight up.weight is not stored as int8"


def test_weights_too_many_for_a_message_lie_beside_it(tmp_path, monkeypatch):
    """A folder: what holds the model, and what holds the weights; both are read back, and plain ONNX Runtime loads it."""
    monkeypatch.setattr(lowering.target("onnx"), "most_bytes", 500)
    monkeypatch.setattr(onnx_target, "_SMALL", 128)
    (bundle,) = splitter.build(separating(), tmp_path / "b", plan=INT8_PLAN, format="onnx").members
    artifact = bundle.segment("transformer").artifact.path
    assert sorted(path.name for path in (bundle.path / artifact).iterdir()) == [
        "transformer.onnx",
        "transformer.weights",
    ]
    assert not failures(bundle.path)
    onnxruntime.InferenceSession(bundle.path / artifact / "transformer.onnx", providers=["CPUExecutionProvider"])
    model = onnx.load(bundle.path / artifact / "transformer.onnx", load_external_data=False)
    (weight, *_) = [weight for weight in model.graph.initializer if weight.external_data]
    for key, value in (("location", "../decoder.onnx"), ("offset", "100000"), ("length", "1")):
        changed = onnx.ModelProto.FromString(model.SerializeToString())
        for other in changed.graph.initializer:
            for entry in other.external_data:
                if other.name == weight.name and entry.key == key:
                    entry.value = value
        (bundle.path / artifact / "transformer.onnx").write_bytes(changed.SerializeToString())
        reseal(bundle.path)
        with pytest.raises(BundleError, match=f"weights in other files; got {weight.name}"):
            loaded("onnxruntime", directory.single(bundle.path), bundle.segment("transformer"), compute_units="ALL")
    flip(bundle.path / artifact / "transformer.weights", 10)
    assert any("transformer.weights was changed after the build" in check.note for check in failures(bundle.path))


def test_the_shares_of_providers_are_told(bundle):
    """Here: all by the CPU; and what the Core ML provider's checker would give it on a Mac, called predicted."""
    nodes = loaded("onnxruntime", bundle, bundle.segment("transformer"), compute_units="ALL").nodes
    assert nodes.keys() == {"CPUExecutionProvider"}
    assert nodes.total() > 10
    share = bundle.segment("transformer").artifact.details["coreml_provider"]
    assert share["predicted"] is True
    assert 0 < share["taken"] < share["nodes"]
    assert share["not_taken"] == ["Gather"]
