"""A package that splitter does not know adds targets and an engine, and gets everything that splitter's own get."""

import ast
import importlib
import shutil
import subprocess
import sys
from importlib.metadata import distributions

import numpy as np
import pytest
import soundfile

import splitter
from splitter import diagnosis, lowering, models, plugins, profiling, reporting
from splitter.bundle.directory import Bundle, file_records, load, write_manifest
from splitter.errors import EngineError, PlanError, UsageError
from splitter.plan import layouts
from splitter.plan import schema as plans
from splitter.reporting import page
from splitter.reporting.findings import NotRun
from splitter.runtime import engines
from splitter.separation.separator import Separator
from splitter.tuning import compression
from splitter.verification.checks import Status
from splitter.verification.packages import package_checks
from splitter.verification.verify import verify_bundle

from .conftest import ROOT, snr_db
from .toys import PACKAGES_PLAN, duo


def lowered_to(target, plan=PACKAGES_PLAN, **settings):
    """The plan with another target in the place of Core ML."""
    stages = [stage.model_dump() | ({"target": target} if stage.target == "coreml" else {}) for stage in plan.stages]
    stages[-1]["target"] = "graph"  # a host specification cannot stack the two stems
    return plans.changed(plan, stages=stages, outputs=["stems"], **settings)


@pytest.fixture(scope="module", autouse=True)
def installed(tmp_path_factory):
    """The package, installed beside splitter for this module's tests."""
    source, site = tmp_path_factory.mktemp("source") / "plugin", tmp_path_factory.mktemp("site")
    shutil.copytree(ROOT / "tests" / "plugin", source)  # setuptools builds in the source's directory
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
    subprocess.run([*command, "--target", site, source], check=True, capture_output=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(site)
        patch.setenv("PYTHONPATH", str(site), prepend=":")
        importlib.invalidate_caches()
        models.families.cache_clear()
        yield
    lowering.target.cache_clear()
    engines._engine.cache_clear()
    models.families.cache_clear()


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """In half precision, the encoder's weights in a palette."""
    plan = lowered_to("toy", precision="fp16", compression={"exceptions": {"mix": "pal6"}, "min_elements": 64})
    return splitter.build(duo(), tmp_path_factory.mktemp("half") / "half.bundle", plan=plan).members[0]


def resealed(bundle, directory, change):
    """A copy of a bundle whose files were changed, and whose manifest says what they are now."""
    path = directory / "changed"
    shutil.copytree(bundle.path, path)
    change(path)
    (path / "manifest.json").unlink()
    write_manifest(path, bundle.manifest.model_copy(update={"files": file_records(path)}))
    return Bundle.load(path)


def test_they_are_found_beside_the_installed():
    assert "splitter-toy-plugin" in {distribution.name for distribution in distributions()}
    assert {"toy", "toy-plain", "toy-mlpackage", "coreml"} <= set(plugins.names(lowering.GROUP))
    with pytest.raises(EngineError, match=r"^unknown engine 'mps'\. Installed: .*\btorch, torch-optimized, toy\.$"):
        engines.engine("mps")
    with pytest.raises(PlanError, match=r"^unknown target 'metal'\. Installed: .*\btoy, toy-mlpackage, toy-plain\.$"):
        lowering.target("metal")


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A model without an audio record, by its name."""
    return splitter.build("toy-classifier", tmp_path_factory.mktemp("classifier") / "classifier.bundle").members[0]


def test_family_without_sound_is_built_by_name_and_verified(classifier):
    model = classifier.manifest.model
    assert (model.family, model.audio, model.samples) == ("toy", None, None)
    assert classifier.manifest.versions["splitter-toy-plugin"] == "0.1.0"
    assert classifier.manifest.golden.audio == "noise, seed 0"
    report = verify_bundle(classifier)
    assert report.passed
    assert {check.kind for check in report.checks} >= {"partition", "golden", "conversion", "package"}


def test_family_without_sound_has_all_but_songs(classifier, quick_profile, tmp_path):
    profile = profiling.profile(classifier, [], runs=1, warmup=1)
    assert profile.samples is None
    findings = reporting.gather(classifier, runs=0)
    assert findings.listening == NotRun("the model does not separate sound")
    assert "toy-classifier" in page.render(findings)
    with pytest.raises(UsageError, match="the model 'toy-classifier' does not separate sound"):
        Separator(load(classifier.path))
    compared = layouts.compare("toy-classifier", plan=None, segments={"features": 2}, random_init=0)
    assert compared.plan.stages[0].segments == 2
    from click.testing import CliRunner

    from splitter.cli.shell import command

    shown = CliRunner().invoke(command, ["inspect", str(classifier.path)])
    assert (shown.exit_code, "stems" in shown.output, "pooled" in shown.output) == (0, False, True)


def test_it_is_built_with_passes_and_references(half):
    for name in ("encoder", "transformer", "decoder"):
        segment = half.segment(name)
        assert tuple(segment.passes) == half.manifest.plan.graph_passes
        assert segment.artifact.target == "toy"
        assert segment.reference == f"reference/{name}.toy"
    assert half.segment("transformer").uncompressed == "reference/uncompressed/transformer.toy"
    assert half.segment("encoder").uncompressed == ""
    assert half.segment("analysis").passes == {}


def test_it_is_verified_by_cause(half):
    report = verify_bundle(half)
    assert report.passed
    by_kind = {}
    for check in report.checks:
        if check.subject in ("transformer", *half.segment("transformer").outputs) and check.engine == "toy":
            by_kind.setdefault(check.kind, set()).add(check.status)
    assert by_kind == {key: {Status.PASS} for key in ("conversion", "precision", "compression", "finite", "package")}
    weights = [check.subject for check in report.checks if check.kind == "compression" and "weight" in check.subject]
    assert len(weights) == 1, "the one with the least to spare"
    assert {check.limit_db for check in report.checks if check.kind == "package"} == {
        half.manifest.plan.tolerances.package_compression_snr_db["pal6"]
    }


def doubled(file):
    """Every weight twice as large."""
    from safetensors.numpy import load_file, save_file

    def change(path):
        weights = load_file(path / file / "weights.safetensors")
        save_file(
            {name: 2 * array if array.dtype.kind == "f" else array for name, array in weights.items()},
            path / file / "weights.safetensors",
        )

    return change


@pytest.mark.parametrize(
    ("broken", "blamed"),
    [
        ("reference/encoder.toy", {"conversion", "precision"}),
        ("encoder.toy", {"precision"}),
        ("transformer.toy", {"compression"}),
        ("reference/uncompressed/transformer.toy", {"precision", "compression"}),
    ],
)
def test_each_artifact_is_blamed_for_itself(half, tmp_path, broken, blamed):
    bundle = resealed(half, tmp_path, doubled(broken))
    segment = bundle.segment(broken.rpartition("/")[2].removesuffix(".toy"))
    checks, _ = package_checks(bundle, segment, bundle.goldens())
    assert {check.kind for check in checks if check.status is Status.FAIL} == blamed


def test_a_target_that_declares_little_is_held_against_the_graph(tmp_path):
    bundle = splitter.build(duo(), tmp_path / "b", plan=lowered_to("toy-plain")).members[0]
    assert bundle.segment("encoder").passes == {}
    assert bundle.segment("encoder").reference == ""
    report = verify_bundle(bundle)
    assert report.passed
    checks = [check for check in report.checks if check.kind == "toy-plain"]
    assert {check.subject for check in checks} == {
        name for stage in ("encoder", "transformer", "decoder") for name in bundle.segment(stage).outputs
    }
    assert {check.engine for check in checks} == {"toy"}
    assert not [check for check in report.checks if check.kind in ("conversion", "package")]
    changed = resealed(bundle, tmp_path, doubled("decoder.toy"))
    failing = {(c.kind, c.subject) for c in verify_bundle(changed).checks if c.status is Status.FAIL}
    assert failing == {("toy-plain", name) for name in bundle.segment("decoder").outputs}


@pytest.mark.parametrize(
    ("target", "settings", "message"),
    [
        ("toy", {"boundary_dtype": "fp16"}, "target 'toy' of stage 'encoder' does not offer the boundary_dtype fp16"),
        ("toy", {"compression": {"form": "pal4"}}, "does not offer the compression pal4. It offers: int8, pal6, pal8"),
        ("tox", {}, "unknown target 'tox'"),
    ],
)
def test_what_a_target_does_not_offer_is_refused_before_the_build(tmp_path, target, settings, message):
    with pytest.raises(PlanError, match=message):
        splitter.build(duo(), tmp_path / "b", plan=lowered_to(target, **settings))
    assert not list(tmp_path.iterdir())


def test_a_stage_is_cut_where_the_target_allows_it():
    stages = [stage.model_dump() for stage in lowered_to("toy").stages]
    stages[1]["segments"] = 2
    lowering.check(plans.changed(lowered_to("toy"), stages=stages))
    stages[1]["target"] = "toy-plain"
    with pytest.raises(PlanError, match="cannot be cut: the target 'toy-plain' takes it whole"):
        lowering.check(plans.changed(lowered_to("toy"), stages=stages))


def test_one_package_is_made_by_the_stages_own_target():
    merged = plans.laid_out(lowered_to("toy"), "core")
    assert [(stage.name, stage.target) for stage in merged.stages[1:-1]] == [("core", "toy")]
    with pytest.raises(PlanError, match="no stage between the first and the last makes a package"):
        plans.laid_out(lowered_to("toy-plain"), "core")


@pytest.mark.slow
def test_plan_compares_its_packages():
    stages = [stage.model_dump() for stage in models.presets()["htdemucs"].stages]
    plan = plans.changed(
        models.presets()["htdemucs"],
        stages=[stage | ({"target": "toy"} if stage["target"] == "coreml" else {}) for stage in stages],
    )
    compared = layouts.compare("demo", plan=plan, segments={"encoder": 2})
    assert {layout.name: [package.name for package in layout.packages] for layout in compared.layouts} == {
        "one package": ["core"],
        "a package a stage": ["encoder", "decoder"],
        "as planned": ["encoder_1", "encoder_2", "decoder"],
    }
    assert {stage.target for stage in compared.plan.stages} == {"host", "kernels", "toy"}


def test_the_doctor_reads_packages_of_any_target(tmp_path):
    bundle = splitter.build(duo(), tmp_path / "b", plan=lowered_to("toy-mlpackage"), reference=False).members[0]
    report = diagnosis.examine(bundle.path)
    assert {one.package.rpartition("/")[2] for one in report.diagnoses} >= {"encoder.mlpackage", "decoder.mlpackage"}
    checks = verify_bundle(bundle).checks
    assert {check.engine for check in checks if check.kind == "package"} == {"mil"}
    assert {check.kind for check in checks if check.status is Status.NOT_RUN} == {"coreml"}


def test_it_is_profiled_and_reported(half, tmp_path, quick_profile):
    profile = profiling.profile(half, [("encoder", "toy"), ("encoder", "torch")], runs=1)
    assert [one.engine for one in profile.segments[1].engines] == ["toy", "torch"]
    findings = reporting.gather(half, runs=1)
    assert findings.engines == {"analysis": "numpy", "encoder": "toy", "transformer": "toy", "decoder": "toy", "synthesis": "torch"}  # fmt: skip
    assert findings.doctor == NotRun("the bundle has no Core ML package")
    shown = page.render(findings)
    assert "toy, by toy" in shown
    plain = splitter.build(duo(), tmp_path / "b", plan=lowered_to("toy-plain")).members[0]
    assert "the toy does what the graph does" in page.render(reporting.gather(plain, runs=0))


@pytest.fixture
def noise_path(tmp_path):
    path = tmp_path / "noise.wav"
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, (200, 2)), 8000, subtype="FLOAT")
    return path


def test_its_weights_are_tuned(tmp_path, noise_path):
    plan = lowered_to("toy", compression={"min_elements": 64})
    choice = compression.tune(duo(), max_sdr_drop_db=0.5, on=[noise_path], plan=plan)
    (bundle,) = splitter.build(duo(), tmp_path / "b", plan=choice.plan, reference=False).members
    assert choice.forms
    assert "pal4" not in choice.forms.values(), "which the target does not offer"
    assert bundle.manifest.plan.compression.exceptions == choice.forms
    assert choice.chosen.bytes == sum(record.bytes for name, record in bundle.manifest.files.items() if ".toy/" in name)
    assert 0 < choice.chosen.drop_db <= 0.5


def test_it_separates(half, tmp_path, noise_path):
    bag = load(half.path)
    names = dict.fromkeys(("encoder", "transformer", "decoder"), "toy")
    stems = {}
    for engine, asked in (("toy", names), ("torch", {})):
        (outcome,) = splitter.Separator(bag, asked or "default").separate([noise_path], tmp_path / engine)
        assert outcome.error is None
        stems[engine] = [soundfile.read(path)[0] for path in sorted((tmp_path / engine).rglob("*.wav"))]
    assert len(stems["toy"]) == 2
    assert all(10 < snr_db(torch, toy) < 90 for torch, toy in zip(stems["torch"], stems["toy"], strict=True))


def test_what_it_cannot_run_it_does_not(half):
    with pytest.raises(EngineError, match="engine 'toy' cannot run segment 'analysis': it runs toy package"):
        splitter.Orchestrator(half, {"analysis": "toy"})


# --------------------------------------------------------------------------- names in general rooms

_NO_NAMES = {  # what the string means there
    ("arrays.py", "numpy"): "a framework of safetensors",
    ("cli/building.py", "torch"): "whose names weights have",
    ("cli/shell.py", "jax"): "a logger",
    ("cli/shell.py", "torch"): "a logger",
    ("compiler.py", "graph"): "a directory",
    ("compiler.py", "numpy"): "a distribution",
    ("compiler.py", "torch"): "a distribution",
    ("models/openunmix/__init__.py", "torch"): "a name in another package's modules",
    ("plan/proposal.py", "host"): "a kind of stage",
    ("plan/schema.py", "torch"): "whose names weights have",
    ("separation/selection.py", "torch"): "a distribution",
}


def test_general_rooms_name_no_target_and_no_engine():
    names = {*plugins.names(lowering.GROUP), *engines.names()}
    assert {"coreml", "kernels", "torch", "mil"} <= names
    found = set()
    for path in (ROOT / "splitter").rglob("*.py"):
        place = path.relative_to(ROOT / "splitter").as_posix()
        if place.startswith(("lowering/", "runtime/engines/")):
            continue
        found |= {
            (place, node.value)
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Constant) and node.value in names
        }
    assert found <= _NO_NAMES.keys()
    assert _NO_NAMES.keys() <= found, "an exception that nothing needs"
