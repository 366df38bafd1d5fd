"""Files of Core AI: built, read back, verified and run by Apple's own runtime, in a process that may end."""

import hashlib
import random
import shutil
import warnings

import numpy as np
import pytest
import torch

import splitter
from splitter import plugins
from splitter.bundle import directory
from splitter.errors import BundleError, EngineError, LoweringError, PlanError
from splitter.graph.capture import capture
from splitter.lowering.coreai import runtime
from splitter.lowering.coreai.target import _packaged
from splitter.partition import partition
from splitter.plan import schema as plans
from splitter.plan.schema import Plan
from splitter.runtime.engines import loaded
from splitter.verification.checks import Status

from ..conftest import ROOT, snr_db
from ..sealing import flip, reseal
from ..toys import PACKAGES_PLAN, separating


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("coreai") / "coreai.bundle"
    return splitter.build(separating(), path, plan=PACKAGES_PLAN, format="coreai").members[0]


@pytest.fixture
def copy(bundle, tmp_path):
    """One that may be changed, and the program of its decoder."""
    path = shutil.copytree(bundle.path, tmp_path / "copy.bundle")
    return path, path / "decoder.aimodel" / "main.mlirb"


def failures(path):
    report = splitter.verify(path)[0]
    return [check for check in report.checks if check.status is Status.FAIL]


def test_it_is_verified_by_cause_by_apples_runtime(bundle):
    assert {segment.artifact.path for segment in bundle.segments[1:-1]} == {
        "encoder.aimodel",
        "transformer.aimodel",
        "decoder.aimodel",
    }
    report = splitter.verify(bundle.path)[0]
    assert not [check for check in report.checks if check.status is Status.FAIL]
    conversion = {check.subject: check.parity.snr_db for check in report.checks if check.kind == "conversion"}
    assert conversion.keys() == {name for segment in bundle.segments[1:-1] for name in segment.outputs}
    assert min(conversion.values()) >= 115
    assert {check.engine for check in report.checks if check.kind == "package"} == {"coreai"}


def test_half_precision_is_what_was_asked_for(tmp_path):
    path = tmp_path / "half.bundle"
    bundle = splitter.build(separating(), path, plan=PACKAGES_PLAN, format="coreai", precision="fp16").members[0]
    found = runtime.Runtime().summary(path / "decoder.aimodel")
    assert found.stored["Float16"] >= 50
    assert found.stored.get("Float32", 0) <= 16
    report = splitter.verify(path)[0]
    assert not [check for check in report.checks if check.status is Status.FAIL]
    precision = [check.parity.snr_db for check in report.checks if check.kind == "precision" and check.parity]
    assert 40 < min(precision) < 100, "rounded, and not much more"
    assert bundle.manifest.plan.precision == "fp16"


def whole(model, inputs, outputs):
    """A model as one segment."""
    plan = Plan.model_validate({"family": "one", "outputs": outputs, "stages": [{"name": "all", "target": "coreai"}]})
    return partition(capture(model, inputs, outputs), plan).segments[0]


class Mixed(torch.nn.Module):
    """What is made of nothing or of integers is rounded, too."""

    def forward(self, x, ids):
        ramp = torch.arange(4, dtype=torch.float32)
        return x * ramp + ids / 3 + torch.ones(4), ids + 1


def test_all_arithmetic_between_the_boundaries_is_in_half_precision():
    inputs = {"x": torch.rand(2, 4), "ids": torch.arange(4)}
    program = _packaged(whole(Mixed().eval(), inputs, ("y", "next")), half=True)
    kinds = []
    results = program.run(inputs, lambda node, value: kinds.append((str(node.target), value.dtype)))
    assert results["y"].dtype == torch.float32
    assert results["next"].dtype == torch.int64
    inner = {
        dtype for target, dtype in kinds if target in ("aten.mul.Tensor", "aten.add.Tensor") and dtype.is_floating_point
    }
    assert inner == {torch.float16}
    expected = Mixed()(**inputs)[0]
    assert 50 < snr_db(expected.numpy(), results["y"].numpy()) < 100


def test_weights_that_half_precision_cannot_hold_are_refused():
    large = torch.nn.Linear(2, 2)
    with torch.no_grad():
        large.weight[0, 0] = 1e5
    segment = whole(large.eval(), {"input": torch.zeros(1, 2)}, ("y",))
    with pytest.raises(LoweringError, match=r"weights beyond half precision: expected at most 65504, found weight"):
        _packaged(segment, half=True)


def test_the_file_says_nothing_of_the_machine_and_is_the_same_each_time(bundle, tmp_path):
    splitter.build(separating(), tmp_path / "again", plan=PACKAGES_PLAN, format="coreai")
    for name in ("encoder", "transformer", "decoder"):
        content = (bundle.path / f"{name}.aimodel" / "main.mlirb").read_bytes()
        assert content == (tmp_path / "again" / f"{name}.aimodel" / "main.mlirb").read_bytes()
        assert str(ROOT).encode() not in content
        assert b"site-packages" not in content


def test_a_flipped_byte_is_named(copy):
    path, file = copy
    flip(file, 1000)
    notes = {check.note for check in failures(path)}
    assert any(note.startswith(f"{file} was changed after the build") for note in notes), notes


@pytest.mark.parametrize("seed", range(3))
def test_a_damaged_file_that_ends_apples_runtime_ends_nothing_else(copy, seed):
    """Of hashes that fit: the runtime aborts its process where it cannot read a program."""
    path, file = copy
    content = bytearray(file.read_bytes())
    draw = random.Random(seed)
    for _ in range(200):
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
    file.write_bytes(content if seed else content[: len(content) // 2])
    (file.parent / "main.hash").write_bytes(hashlib.sha256(file.read_bytes()).digest())
    reseal(path)
    bundle = directory.single(path)
    with pytest.raises(BundleError, match=r"decoder\.aimodel is no valid Core AI file"):
        loaded("coreai", bundle, bundle.segment("decoder"), compute_units="ALL")
    notes = [check.note for check in failures(path) if check.kind == "artifact"]
    assert len(notes) == 1
    assert notes[0].startswith("decoder.aimodel ")


def test_another_program_in_its_place_is_told(copy):
    path, file = copy
    shutil.rmtree(file.parent)
    shutil.copytree(path / "encoder.aimodel", file.parent)
    reseal(path)
    (note,) = [check.note for check in failures(path) if check.kind == "artifact"]
    assert "input (" in note
    assert "metadata {" in note


class Chosen(torch.nn.Module):
    def forward(self, x):
        return torch.cond(x.sum() > 0, lambda x: x + 1, lambda x: x - 1, (x,))


def test_control_flow_never_reaches_the_runtime(tmp_path):
    """A file that no conversion of a graph writes: its loops could be endless."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from coreai_torch import TorchConverter, get_decomp_table

        program = torch.export.export(Chosen(), (torch.ones(2),)).run_decompositions(get_decomp_table())
        converter = TorchConverter(mode=TorchConverter.Mode.RELEASE)
        converter.add_exported_program(program, input_names=["x"], output_names=["y"])
    converter.to_coreai().save_asset(tmp_path / "chosen.aimodel")
    with pytest.raises(BundleError, match=r"chosen\.aimodel is no valid Core AI file; got operations if"):
        runtime.Runtime().load(tmp_path / "chosen.aimodel", "ALL")


def test_a_refused_run_is_an_error(bundle):
    process = runtime.Runtime()
    process.load(bundle.path / "decoder.aimodel", "ALL")
    with pytest.raises(EngineError, match=r"Core AI cannot run decoder\.aimodel; got "):
        process.run({"other": np.zeros(3, np.float32)})


def test_a_missing_extra_is_named(bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(plugins, "find_spec", lambda name: None)
    with pytest.raises(LoweringError, match=r"not installed; got no coreai, coreai_torch\. Install the extra"):
        splitter.build(separating(), tmp_path / "b", plan=PACKAGES_PLAN, format="coreai")
    assert not list(tmp_path.iterdir())
    notes = {check.note for check in failures(bundle.path) if check.kind == "artifact"}
    assert len(notes) == 1
    assert "pip install 'splitter[coreai]'" in notes.pop()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compress": "pal6"}, "does not offer the compression pal6"),
        ({"boundary_dtype": "fp16"}, "does not offer the boundary_dtype fp16"),
    ],
)
def test_what_cannot_be_built_is_refused_before_the_build(tmp_path, options, message):
    with pytest.raises(PlanError, match=message):
        splitter.build(separating(), tmp_path / "b", plan=PACKAGES_PLAN, format="coreai", **options)


class Scaled(torch.nn.Module):
    """Boundaries that are integers, truths and single numbers."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(16, 4)
        self.head = torch.nn.Linear(4, 4)

    def forward(self, ids, scale, small, flag):
        found = self.table(ids) * scale + small.float()
        return self.head(found), ids + 1, ids > 3, found.sum(), small + 1, ~flag


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_integers_truths_and_single_numbers_cross_as_int32_and_one_element(tmp_path, precision):
    stages = [{"name": "table", "target": "coreai", "modules": ["table"]}, {"name": "head", "target": "coreai"}]
    outputs = ["y", "next", "large", "total", "wrapped", "other"]
    plan = Plan.model_validate({"family": "scaled", "outputs": outputs, "precision": precision, "stages": stages})
    inputs = {
        "ids": np.array([[1, 9]]),
        "scale": np.array(2.0, np.float32),
        "small": np.array([1, 2, 3, 255], np.uint8),
        "flag": np.array([True, False]),
    }
    splitter.build(Scaled(), tmp_path / "b", inputs=inputs, plan=plan)
    assert not failures(tmp_path / "b")
    specs = directory.single(tmp_path / "b").tensors
    assert {(spec.dtype, spec.packaged_dtype) for spec in specs.values()} == {
        ("int64", "int32"), ("uint8", "int32"), ("bool", "int32"), ("float32", None)
    }  # fmt: skip
    assert {name for name, spec in specs.items() if not spec.shape} == {"scale", "total"}


def test_elements_that_no_file_has_are_refused(tmp_path):
    plan = Plan.model_validate({"family": "one", "outputs": ["y"], "stages": [{"name": "all", "target": "coreai"}]})
    with pytest.raises(LoweringError, match="'input' has elements that no file of the target 'coreai' takes or gives"):
        splitter.build(torch.nn.ReLU(), tmp_path / "b", inputs={"input": np.ones(3, np.float64)}, plan=plan)


def test_norms_are_written_out_because_the_runtime_loses_their_digits(bundle):
    assert {"norms-safe-in-half", "means-in-stages"} <= bundle.segment("transformer").passes.keys()


@pytest.mark.parametrize("precision", ["fp32", pytest.param("fp16", marks=pytest.mark.slow)])
def test_weights_are_integers_with_a_scale_per_channel(bundle, tmp_path, precision):
    """All that are asked for, transposed convolutions too; an exception stays as it was."""
    plan = plans.changed(
        PACKAGES_PLAN, compression={"form": "int8", "min_elements": 32, "exceptions": {"mix.linear1": "none"}}
    )
    (made,) = splitter.build(separating(), tmp_path / "b", plan=plan, format="coreai", precision=precision).members
    details = {segment.name: segment.artifact.details for segment in made.segments[1:-1]}
    assert details["decoder"]["compressed"].keys() == {"up.weight"}
    assert details["transformer"]["compressed"].keys() == {
        "mix.self_attn.in_proj_weight",
        "mix.self_attn.out_proj.weight",
        "mix.linear2.weight",
    }
    stored = runtime.Runtime().summary(made.path / "transformer.aimodel").stored
    assert stored["Int8"] >= 24 * 8 + 8 * 8 + 16 * 8  # and a zero for each channel
    assert not failures(made.path)
    shutil.rmtree(made.path / "transformer.aimodel")
    shutil.copytree(bundle.path / "transformer.aimodel", made.path / "transformer.aimodel")
    reseal(made.path)
    assert any("0 compressed weights, asked 3; 0 numbers in Int8" in check.note for check in failures(made.path))


@pytest.mark.filterwarnings("ignore")  # the library's own
def test_a_metal_kernel_of_ours_is_saved_in_a_file_and_not_run_on_linux(tmp_path):
    """What the handbook says of them: the library builds such a file and reads it back; its runtime here has no Metal."""
    from coreai.authoring import MetalParameter
    from coreai_torch import TorchConverter, TorchMetalKernel, get_decomp_table

    def gelu(x: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.gelu(x)

    header = (ROOT / "kernels/splitter_kernels/metal/elementary.h").read_text().partition("using namespace metal;")[2]
    index = MetalParameter("i", "uint", "thread_position_in_grid")
    kernel = TorchMetalKernel("gelu", ["x"], ["y"], "y[i] = gelu(x[i]);", gelu, helper_src=header, metal_params=[index])

    class Module(torch.nn.Module):
        def forward(self, x):
            return kernel(x, threads_per_grid=(64, 1, 1), threads_per_thread_group=(64, 1, 1), result_shapes=[[64]])

    program = torch.export.export(Module(), (torch.randn(64),)).run_decompositions(get_decomp_table())
    converter = TorchConverter(mode=TorchConverter.Mode.RELEASE).register_custom_kernels([kernel])
    converter.add_exported_program(program, input_names=["x"], output_names=["y"])
    model = converter.to_coreai()
    assert "inline float error_function(float x)" in str(model)
    model.save_asset(tmp_path / "gelu.aimodel")
    found = runtime.Runtime()
    assert found.summary(tmp_path / "gelu.aimodel").operations["metal4_kernel"] == 1
    with pytest.raises(BundleError, match="Unresolved symbol: coreai.metal4_kernel"):
        found.load(tmp_path / "gelu.aimodel", "ALL")
