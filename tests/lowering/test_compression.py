"""Packages whose weights are compressed: what is asked, what the file holds, what it computes."""

import dataclasses
import shutil
from pathlib import Path

import pytest
import torch
from torch import nn

from splitter import mil, passes
from splitter.bundle.directory import file_records
from splitter.bundle.files import Files
from splitter.bundle.manifest import SegmentRecord
from splitter.errors import LoweringError, PlanError
from splitter.graph.capture import capture
from splitter.lowering import weights
from splitter.lowering.coreml import CoreMLTarget, compression
from splitter.mil.coreml_tools import ct
from splitter.mil.stored import StoredWeight, decoded, stored_weights
from splitter.partition import partition
from splitter.plan import schema as plans
from splitter.plan.schema import Compression, Plan

from ..conftest import snr_db

WEIGHTS = ("down.weight", "inner.mix.weight", "inner.up.weight")
PLAN = Plan.model_validate(
    {
        "family": "toy",
        "outputs": ["y"],
        "stages": [
            {"name": "analysis", "target": "graph"},
            {"name": "core", "target": "coreml", "modules": ["places", "down", "inner"]},
            {"name": "synthesis", "target": "graph"},
        ],
    }
)


class Toy(nn.Module):
    """A convolution, a linear map, a transposed convolution; a table that a converter folds."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Conv1d(2, 24, 4, 4)
        self.places = nn.Embedding(24, 16)
        self.inner = nn.Module()
        self.inner.mix = nn.Linear(16, 16, bias=False)
        self.inner.up = nn.ConvTranspose1d(24, 3, 4, 4)

    def forward(self, x):
        y = self.down(x.abs() * 2) + self.places(torch.arange(24))
        return self.inner.up(self.inner.mix(y)) * 0.5


@pytest.fixture(scope="module")
def toy():
    model, x = Toy().eval(), torch.randn(1, 2, 64)
    with torch.no_grad():
        parts = partition(capture(model, {"x": x}, ("y",)), PLAN)
    (core,) = (one for one in parts.segments if one.name == "core")
    return model, core, x.abs() * 2


def asked(plan=PLAN, **settings):
    return plans.changed(plan, compression={"min_elements": 100, **settings})


def lowered(toy, directory, plan):
    directory.mkdir(parents=True, exist_ok=True)
    artifact = CoreMLTarget().lower(toy[1], plan, {}, directory)
    return artifact, mil.load(directory / artifact.path)


def forms(model):
    return {name: one.form for name, one in stored_weights(model.function).items() if len(one.shape) > 1}


def in_integers(weight, axis):
    """The format's formula, written again: a scale for each index along an axis."""
    channels = weight.movedim(axis, 0)
    rows = channels.flatten(1)
    scales = rows.abs().amax(1)[:, None] / 127
    return (torch.round(rows / scales) * scales).reshape(channels.shape).movedim(0, axis)


@pytest.mark.parametrize(("target", "precision"), [("iOS16", "fp32"), ("iOS17", "fp16"), ("iOS18", "fp32"), ("iOS18", "fp16")])  # fmt: skip
def test_every_form_is_obtained_on_every_target(toy, tmp_path, target, precision):
    plan = plans.changed(PLAN, deployment_target=target, precision=precision)
    for form in plan.forms:
        artifact, model = lowered(toy, tmp_path / form, asked(plan, form=form))
        held = sorted(forms(model).values())
        plain = form.partition("-")[0]  # where a block or group is the whole of what it divides
        assert held in ([*sorted([form] * count + [plain] * (3 - count) + ["none"])] for count in range(4)), form
        assert sorted(one["source"] for one in artifact.details["compressed"].values()) == sorted(WEIGHTS)
        assert model.spec.user_defined["io.github.splitter.compression"] == f"3 {form}"
        assert {dtype for _, dtype in model.spec.float_values} == {precision}


@pytest.mark.parametrize("target", ["iOS17", "iOS18"])
def test_integers_have_a_scale_per_output_channel(toy, tmp_path, target):
    """Also where outputs lie on the second axis, as those of a transposed convolution do."""
    model, core, x = toy
    _, package = lowered(toy, tmp_path, asked(plans.changed(PLAN, deployment_target=target), form="int8"))
    by_hand = Toy().eval()
    with torch.no_grad():
        for weight, axis in ((by_hand.down.weight, 0), (by_hand.inner.mix.weight, 0), (by_hand.inner.up.weight, 1)):
            weight.copy_(in_integers(weight, axis))
        expected, exact = (one.inner.up(one.inner.mix(one.down(x) + one.places.weight)) for one in (by_hand, model))
    (result,) = package.predict({core.inputs[0].name: x.numpy()}).values()
    assert snr_db(expected.numpy(), result) > 100
    assert snr_db(exact.numpy(), result) < 60


class Wide(nn.Module):
    """Weights that blocks and groups divide evenly, unevenly and not at all; a convolution that has one axis."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Conv1d(40, 36, 3)
        self.mix = nn.Linear(36, 64)
        self.up = nn.ConvTranspose1d(64, 20, 3)
        self.odd = nn.Conv1d(20, 17, 3)

    def forward(self, x):
        return self.odd(self.up(self.mix(self.down(x * 2).mT).mT)) * 0.5


@pytest.fixture(scope="module")
def wide():
    plan = plans.changed(PLAN, stages=[one.model_dump() | ({"modules": ["down", "mix", "up", "odd"]} if one.modules else {}) for one in PLAN.stages])  # fmt: skip
    model, x = Wide().eval(), torch.randn(1, 40, 30)
    with torch.no_grad():
        parts = partition(capture(model, {"x": x}, ("y",)), plan)
    (core,) = (one for one in parts.segments if one.name == "core")
    return model, core, x * 2


@pytest.mark.parametrize("form", sorted(set(plans.COMPRESSIONS) - {"int8", "pal8", "pal6", "pal4"}))
def test_newer_forms_are_decoded_as_core_ml_tools_does(wide, tmp_path, form):
    """Bit for bit; and `tune weights`, which decodes by its own formula, sees what a package of float32 holds."""
    artifact, model = lowered(wide, tmp_path, asked(plans.changed(PLAN, deployment_target="iOS18"), form=form))
    names = artifact.details["compressed"]
    assert {one["source"] for one in names.values()} == {f"{name}.weight" for name in ("down", "mix", "up", "odd")}
    ours = decoded(model.function, names)
    theirs = ct.optimize.coreml.decompress_weights(
        ct.models.MLModel(str(tmp_path / artifact.path), skip_model_load=True)
    )
    theirs.save(str(tmp_path / "plain.mlpackage"))
    plain = mil.load(tmp_path / "plain.mlpackage").function
    constants = decoded(plain, [name for name, one in stored_weights(plain).items() if one.kind == "plain"])
    stored = stored_weights(model.function)
    for name, about in names.items():
        assert any(value.shape == ours[name].shape and (value == ours[name]).all() for value in constants.values())
        values = wide[0].state_dict()[about["source"]].numpy()
        weight = weights.Weight("core", "", "", values, int(about["source"] == "up.weight"), (4, 4), "compression")
        assert snr_db(weight.decoded(form), ours[name]) > 120
        assert weight.bytes(form) == stored[name].bytes
        assert snr_db(values, ours[name]) > {"int8": 40, "int4": 15, "pal6": 25, "pal4": 7}[form.partition("-")[0]]
    assert model.predict({wide[1].inputs[0].name: wide[2].numpy()})


def test_weights_that_a_pass_gave_another_shape_are_compressed_too(wide, tmp_path):
    model, core, x = wide
    program = passes.apply("conv1d-as-conv2d", core.program, {core.inputs[0].name: x}).program
    again = dataclasses.replace(core, program=program)
    artifact, _ = lowered((model, again, x), tmp_path, asked(form="int8"))
    assert len(artifact.details["compressed"]) == 4


def test_newer_forms_need_newer_packages():
    with pytest.raises(PlanError, match="int4-blocks need iOS18"):
        asked(plans.changed(PLAN, deployment_target="iOS17"), form="int4-blocks")


def test_palettes_hold_as_many_values_as_they_may(toy, tmp_path):
    _, package = lowered(toy, tmp_path, asked(form="pal4"))
    seen = {}

    class Look:
        def before(self, operation, inputs):
            if operation.type in ("conv", "conv_transpose"):
                seen[operation.type] = inputs["weight"]

        def after(self, operation, outputs): ...

    package.predict({toy[1].inputs[0].name: toy[2].numpy()}, listener=Look())
    for kind, own in (("conv", toy[0].down.weight), ("conv_transpose", toy[0].inner.up.weight)):
        weight = seen[kind].reshape(own.shape)
        assert len(torch.unique(weight)) == 16
        table = torch.unique(weight)
        nearest = table[(own.detach()[..., None] - table).abs().argmin(-1)]
        torch.testing.assert_close(weight, nearest, rtol=0, atol=0)
        assert 16 < snr_db(own.detach().numpy(), weight.numpy()) < 30


def test_exceptions_are_by_weight_or_module_and_the_longest_counts(toy, tmp_path):
    exceptions = {"inner": "pal6", "inner.up.weight": "none"}
    artifact, model = lowered(toy, tmp_path, asked(form="int8", exceptions=exceptions))
    found = {one["source"]: one["form"] for one in artifact.details["compressed"].values()}
    assert found == {"down.weight": "int8", "inner.mix.weight": "pal6"}
    assert sorted(forms(model).values()) == ["int8", "none", "none", "pal6"]
    assert model.spec.user_defined["io.github.splitter.compression"] == "1 int8, 1 pal6"


def test_small_weights_stay(toy, tmp_path):
    _, model = lowered(toy, tmp_path, plans.changed(PLAN, compression={"form": "int8", "min_elements": 257}))
    assert sorted(forms(model).values()) == ["int8", "none", "none", "none"], "24 · 3 · 4 elements are enough"


def test_exceptions_about_no_weight_are_refused(toy):
    program = toy[1].program
    weights.check_names([program], Compression(exceptions={"inner": "int8", "down.weight": "int8"}, min_elements=9))
    weights.check_names([program], Compression(exceptions={"inner.up": "int8"}, min_elements=9))
    for name in ("down.bias", "places.weight", "innen", "inner.up.weigh"):
        with pytest.raises(PlanError, match=name):
            weights.check_names([program], Compression(exceptions={name: "int8"}, min_elements=9))
    with pytest.raises(PlanError, match="down.weight"):  # too small for this plan
        weights.check_names([program], Compression(exceptions={"down.weight": "int8"}))


def test_the_oldest_target_cannot_hold_compressed_weights():
    with pytest.raises(PlanError, match="need iOS16 or later"):
        plans.changed(PLAN, deployment_target="iOS15", compression={"form": "pal4"})
    with pytest.raises(PlanError, match="need iOS16 or later"):
        plans.changed(PLAN, deployment_target="iOS15", compression={"exceptions": {"down": "pal4"}})
    plans.changed(PLAN, deployment_target="iOS15", compression={"form": "none"})


def test_the_same_weights_give_the_same_bytes(toy, tmp_path):
    for form in ("int8", "pal6"):
        files = []
        for run in "ab":
            lowered(toy, tmp_path / run / form, asked(form=form))
            files += [one.read_bytes() for one in (tmp_path / run / form).rglob("weight.bin")]
        assert len(files) == 2
        assert files[0] == files[1]


# ------------------------------------------------------------------------- requested = obtained


@pytest.mark.parametrize("form", ["int8", "pal6"])
def test_a_package_that_was_not_compressed_fails_the_build(toy, tmp_path, monkeypatch, form):
    for name in ("linear_quantize_weights", "palettize_weights"):
        monkeypatch.setattr(ct.optimize.coreml, name, lambda model, config: model)
    with pytest.raises(LoweringError, match=rf"is absent, asked {form}"):
        lowered(toy, tmp_path, asked(form=form))


def test_a_palette_of_other_size_fails_the_build(toy, tmp_path, monkeypatch):
    monkeypatch.setitem(weights.BITS, "pal6", 4)
    with pytest.raises(LoweringError, match="is pal4, asked pal6"):
        lowered(toy, tmp_path, asked(form="pal6"))


def test_one_scale_for_all_channels_fails_the_build(toy, tmp_path, monkeypatch):
    made = ct.optimize.coreml.OpLinearQuantizerConfig
    monkeypatch.setattr(
        ct.optimize.coreml, "OpLinearQuantizerConfig", lambda **given: made(granularity="per_tensor", **given)
    )
    with pytest.raises(LoweringError, match="is int8 in groups"):
        lowered(toy, tmp_path, asked(form="int8"))


def test_a_weight_that_the_converter_renamed_is_not_passed_over(toy, tmp_path, monkeypatch):
    monkeypatch.setattr(compression, "_constants", lambda model: set())
    with pytest.raises(LoweringError, match=r"down\.weight"):
        lowered(toy, tmp_path, asked(form="int8"))


def record_of(segment, artifact):
    names = ([one.name for one in tensors] for tensors in (segment.inputs, segment.outputs))
    given = dict(zip(("inputs", "outputs"), map(tuple, names), strict=True))
    return SegmentRecord(
        name="core",
        stage="core",
        program="graph/core.json",
        operators=1,
        parameters=1,
        passes={},
        artifact=artifact,
        **given,
    )


def test_the_audit_sees_what_the_package_holds(toy, tmp_path):
    _, core, _ = toy
    tensors = {one.name: one for one in (*core.inputs, *core.outputs)}
    plan = asked(form="pal6")
    artifact, _ = lowered(toy, tmp_path / "pal6", plan)
    record = record_of(core, artifact)

    def audit(plan, directory):
        return CoreMLTarget().audit(record, tensors, plan, Files(directory, file_records(directory)))

    assert audit(plan, tmp_path / "pal6") == []
    assert any("the plan asks for int8" in one for one in audit(asked(form="int8"), tmp_path / "pal6"))
    for other in ("pal4", "none"):
        lowered(toy, tmp_path / other, asked(form=other))
        found = " ".join(audit(plan, tmp_path / other))
        assert f"is {'absent' if other == 'none' else other}, asked pal6" in found
    extra = asked(plans.changed(PLAN), form="pal6", exceptions={"down": "none"})
    artifact, _ = lowered(toy, tmp_path / "fewer", extra)
    record = record_of(core, artifact)
    assert any("3 compressed weights, asked 2" in one for one in audit(extra, tmp_path / "pal6"))


# ------------------------------------------------------------------------------- reading a file


def stored(**changes):
    plain = StoredWeight("w", (8, 4), "fp32", "linear", 8, (8, 1))
    return dataclasses.replace(plain, **changes).form


def test_forms_are_told_from_near_misses():
    assert stored() == "int8"
    assert stored(groups=(1, 4)) == "int8"
    assert stored(bits=4) == "int4"
    assert stored(groups=(1, 1)) == "int8 in groups (1, 1)"
    assert stored(groups=(2, 1)) == "int8 in groups (2, 1)"
    assert stored(groups=(8, 4)) == "int8 in groups (8, 4)"
    assert stored(groups=(8, 2)) == "int8-blocks"
    assert stored(groups=(2, 2)) == "int8 in groups (2, 2)"
    assert stored(kind="palette", groups=(2, 2)) == "pal8 in groups (2, 2)"
    assert stored(symmetric=False) == "int8, asymmetric"
    assert stored(kind="palette", bits=6, groups=(1, 1)) == "pal6"
    assert stored(kind="palette", bits=6, groups=(8, 1)) == "pal6-groups"
    assert stored(kind="plain") == "none"
    assert stored(kind="other") == "other"


@pytest.mark.parametrize(("target", "precision"), [("iOS16", "fp32"), ("iOS18", "fp16")])
def test_the_bytes_of_stored_weights_are_those_of_the_file(toy, tmp_path, target, precision):
    plan = plans.changed(PLAN, deployment_target=target, precision=precision)
    width = {"fp32": 4, "fp16": 2}[precision]
    expected = {
        "none": lambda n, channels: n * width,
        "int8": lambda n, channels: n + channels * width + (channels if target == "iOS16" else 0),  # and zero points
        "pal6": lambda n, channels: n * 6 // 8 + 64 * width,
    }
    for form, size in expected.items():
        _, model = lowered(toy, tmp_path / form, asked(plan, form=form))
        held = {one.shape: one.bytes for one in stored_weights(model.function).values() if len(one.shape) > 1}
        assert held[24, 2, 4] == size(192, 24)
        assert held[24, 3, 4] == size(288, 3)
        assert held[16, 16] == size(256, 16)


def test_other_compressions_than_ours_are_read_too(toy, tmp_path):
    """Made by Core ML Tools alone: 4 bits in blocks, asymmetric, palettes in groups, sparse."""
    lowered(toy, tmp_path, plans.changed(PLAN, deployment_target="iOS18"))
    optimize = ct.optimize.coreml

    def made(function, config):
        model = ct.models.MLModel(str(tmp_path / "core.mlpackage"), skip_model_load=True)
        path = Path(tmp_path / "other.mlpackage")
        shutil.rmtree(path, ignore_errors=True)
        function(model, optimize.OptimizationConfig(global_config=config)).save(str(path))
        return {form for form in forms(mil.load(path)).values() if form != "none"}

    linear, palettes = optimize.linear_quantize_weights, optimize.palettize_weights
    config = optimize.OpLinearQuantizerConfig(dtype="int4", granularity="per_block", block_size=2, weight_threshold=100)
    assert "int4-blocks" in made(linear, config)
    assert "int8, asymmetric" in made(linear, optimize.OpLinearQuantizerConfig(mode="linear", weight_threshold=100))
    grouped = optimize.OpPalettizerConfig(
        nbits=2, granularity="per_grouped_channel", group_size=8, weight_threshold=100
    )
    assert "pal2-groups" in made(palettes, grouped)
    sparse = optimize.OpMagnitudePrunerConfig(target_sparsity=0.5, weight_threshold=100)
    assert made(optimize.prune_weights, sparse) == {"other"}
