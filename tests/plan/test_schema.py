import subprocess
import sys

import pytest

from splitter import lowering, models
from splitter.errors import PlanError
from splitter.plan import schema as plans
from splitter.plan.schema import DeploymentTarget, Precision

from ..toys import HYBRID_PLAN


def test_defaults_are_those_of_the_documentation():
    plan = models.presets()["htdemucs"]
    assert (plan.deployment_target, plan.precision, plan.boundary_dtype) == (
        DeploymentTarget.IOS17,
        Precision.FP32,
        Precision.FP32,
    )
    assert plan.tolerances.coreml_snr_db == {"CPU_ONLY": 90, "CPU_AND_GPU": 70, "CPU_AND_NE": 60, "ALL": 60}


def test_file_round_trip(tmp_path):
    text = (
        'family = "own"\noutputs = ["y"]\n[[stages]]\nname = "all"\ntarget = "graph"\n'
        "[tolerances]\ngolden_snr_db = 100.0\n"
    )
    (tmp_path / "own.toml").write_text(text)
    plan = plans.load(tmp_path / "own.toml")
    assert plan.tolerances.golden_snr_db == 100
    assert plan.stages[0].modules == ()
    assert plans.Plan.model_validate_json(plan.model_dump_json()) == plan


BROKEN = {
    "not TOML": ("family = ", "readable TOML file"),
    "unknown key": ('family = "x"\noutputs = ["y"]\nstagez = []', "stagez"),
    "no stages": ('family = "x"\noutputs = ["y"]\nstages = []', "stages"),
    "twice the same stage": (
        'family = "x"\noutputs = ["y"]\nstages = [{name = "a", target = "graph"}, {name = "a", target = "graph"}]',
        "two stages share a name",
    ),
    "empty stage in the middle": (
        'family = "x"\noutputs = ["y"]\nstages = [{name = "a", target = "graph"}, {name = "b", target = "graph"}, '
        '{name = "c", target = "graph"}]',
        "'b' has no modules",
    ),
    "rule of no stage": (
        'family = "x"\noutputs = ["y"]\nstages = [{name = "a", target = "graph"}]\n'
        'tensors = [{name = "t", producer = "b"}]',
        "'b', which is no stage",
    ),
    "text that hides": (
        'family = "x"\noutputs = ["y"]\nstages = [{name = "a", target = "graph", modules = ["m\\u001b[2J"]}]',
        r"'m\\x1b\[2J' holds control characters or others that hide text",
    ),
    "name that is none": ('family = "X y"\noutputs = ["y"]\nstages = [{name = "a", target = "graph"}]', "family"),
}


@pytest.mark.parametrize(("text", "message"), BROKEN.values(), ids=BROKEN)
def test_broken_plans_are_named(tmp_path, text, message):
    (tmp_path / "plan.toml").write_text(text)
    with pytest.raises(PlanError, match=message):
        plans.load(tmp_path / "plan.toml")


def test_a_module_belongs_to_one_stage():
    """Its nodes would go to whichever stage comes first; a path below another one's is what a plan may say."""
    stages = [stage.model_dump() for stage in HYBRID_PLAN.stages]
    stages[3]["modules"] = ["up", "down.inner"]
    assert plans.changed(HYBRID_PLAN, stages=stages).stages[3].modules == ("up", "down.inner")
    stages[3]["modules"] = ["up", "down"]
    with pytest.raises(PlanError, match=r"two stages have the same modules: \['down'\]"):
        plans.changed(HYBRID_PLAN, stages=stages)


def test_missing_plan_is_named(tmp_path):
    with pytest.raises(PlanError, match="none.toml"):
        plans.load(tmp_path / "none.toml")


def test_half_boundaries_need_ios16():
    assert plans.changed(HYBRID_PLAN, boundary_dtype="fp16", deployment_target="iOS16").boundary_dtype is Precision.FP16
    with pytest.raises(PlanError, match="iOS16 or later"):
        plans.changed(HYBRID_PLAN, boundary_dtype="fp16", deployment_target="iOS15")


def test_changed_keeps_what_is_not_given():
    assert plans.changed(HYBRID_PLAN, precision=None, boundary_dtype=None) == HYBRID_PLAN


def test_form_of_weights_changes_by_its_parts():
    plan = models.presets()["htdemucs"]
    assert plan.weights.is_lossless
    half = plans.changed(plan, weights={"matrices": "fp16"})
    mlx = plans.changed(half, weights={"layout": "mlx"})
    assert (mlx.weights.layout, mlx.weights.loss_of("a"), mlx.weights.is_split) == ("mlx", "fp16", True)
    assert not half.weights.is_split
    assert plans.changed(plan, weights={"qkv": "split"}).weights.is_split
    assert plans.changed(plan, weights={"compress": "pal6"}).weights.loss_of("a") == "pal6"
    assert not half.weights.is_lossless
    assert not plans.changed(plan, weights={"exceptions": {"layers.0": "pal6"}}).weights.is_lossless
    assert mlx.tolerances == plan.tolerances


@pytest.mark.parametrize(
    ("family", "weights", "message"),
    [
        ("htdemucs", {"layout": "mlx", "qkv": "fused"}, "MLX's attention has its projections split"),
        ("htdemucs", {"matrices": "fp16", "compress": "int8"}, "no element type of their own"),
        ("htdemucs", {"compress": "pal3"}, "weights.compress"),
        ("hdemucs", {"layout": "mlx"}, "no stage's target reads it"),
    ],
)
def test_forms_of_weights_that_contradict_are_named(family, weights, message):
    with pytest.raises(PlanError, match=message):
        lowering.check(plans.changed(models.presets()[family], weights=weights))
    assert plans.changed(models.presets()[family], weights={}) == models.presets()[family]


def test_forms_of_weights_are_by_the_longest_name_that_fits():
    for part in (
        plans.Compression(form="int8", exceptions={"a": "pal6", "a.b.c": "none"}),
        plans.WeightsForm(compress="int8", exceptions={"a": "pal6", "a.b.c": "none"}),
    ):
        found = [part.form_of(name) for name in ("x", "ab", "a", "a.b", "a.b.c", "a.b.c.d", "a.b.cd")]
        assert found == ["int8", "int8", "pal6", "pal6", "none", "none", "pal6"]


def test_half_matrices_may_stand_beside_compressed_ones():
    form = plans.WeightsForm(matrices="fp16", compress="pal6", exceptions={"layers.0": "none"})
    assert [form.loss_of(name) for name in ("layers.0.a", "layers.1.a")] == ["fp16", "pal6"]


def test_one_form_for_all_weights_of_a_bundle(tmp_path):
    plan = plans.changed(models.presets()["htdemucs"], compression={"exceptions": {"encoder": "pal4"}})
    whole = plans.compressed(plan, "int8")
    assert (whole.compression.form, whole.weights.compress) == ("int8", "int8")
    assert whole.compression.exceptions == {}
    without = plans.compressed(plans.laid_out(models.presets()["htdemucs"], "core"), "pal6")
    assert (without.compression.form, without.weights.compress) == ("pal6", "none")
    plans.save(plan, tmp_path / "plan.toml")
    assert plans.load(tmp_path / "plan.toml") == plan


@pytest.mark.parametrize(("layout", "axes"), [("b c f t", 4), ("b (t f) c", 3), ("b (s c) f t", 4), ("", 0)])
def test_rank_counts_axes(layout, axes):
    assert plans.rank(layout) == axes


def test_a_plan_is_read_without_its_targets():
    """So that `inspect` of a bundle in several segments waits for no torch."""
    script = (
        "import sys; from splitter.plan.schema import Plan\n"
        "stages = [{'name': 'a', 'target': 'kernels'}, {'name': 'b', 'target': 'coreml', 'segments': 2}]\n"
        "Plan.model_validate({'family': 'x', 'outputs': ['y'], 'stages': stages, 'weights': {'layout': 'mlx'}})\n"
        "print([name for name in ('torch', 'splitter.lowering.coreml', 'splitter.lowering.kernels') if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout == "[]\n"
