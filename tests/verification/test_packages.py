import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch

import splitter
from splitter import mil, models
from splitter.bundle.directory import Bundle, file_records
from splitter.graph import program as programs
from splitter.mil.overflows import OverflowWatch
from splitter.plan import schema as plans
from splitter.verification.checks import Status
from splitter.verification.packages import package_checks
from splitter.verification.verify import verify_bundle

from ..mil.harness import mb, package
from ..sealing import reseal
from ..toys import PACKAGES_PLAN, separating


@pytest.fixture(scope="module")
def half(tmp_path_factory) -> Bundle:
    """The demo in half precision, inside its packages and between them; without the passes that make its norms safe."""
    path = tmp_path_factory.mktemp("half") / "half.bundle"
    settings = {"precision": "fp16", "boundary_dtype": "fp16", "deployment_target": "iOS16"}
    settings["passes"] = ["keep-broadcasts-small"]
    return splitter.build("demo", path, **settings).members[0]


@pytest.fixture(scope="module")
def small(tmp_path_factory) -> Bundle:
    """The same with its weights in eight bits, the decoder's largest in four."""
    path = tmp_path_factory.mktemp("small") / "small.bundle"
    plan = plans.changed(models.presets()["htdemucs"], compression={"exceptions": {"decoder.0.rewrite": "pal4"}})
    plan = plans.changed(plan, compression={"form": "int8"}, precision="fp16", passes=["keep-broadcasts-small"])
    return splitter.build("demo", path, plan=plan).members[0]


def segment_of(bundle, name):
    return next(segment for segment in bundle.segments if segment.name == name)


def golden_of(bundle, segment, scale=1.0):
    """What the captured segment makes of its golden input, scaled."""
    given = {name: bundle.goldens()[name] * np.float32(scale) for name in segment.inputs}
    results = bundle.program(segment.program).run({name: torch.from_numpy(array) for name, array in given.items()})
    return given | {name: result.numpy() for name, result in results.items()}


def statuses(checks):
    found = {}
    for check in checks:
        found.setdefault(check.kind, set()).add(check.status)
    return found


def tampered(bundle, directory, name):
    """A copy of a bundle in which the largest weights of one package are a fifth off."""
    path = directory / "tampered"
    shutil.copytree(bundle.path, path)
    constants = (one.attributes["val"] for one in mil.load(path / name).operations if one.type == "const")
    weights = max((one for one in constants if isinstance(one, torch.Tensor)), key=torch.Tensor.numel).numpy()
    (file,) = (path / name).rglob("weight.bin")
    raw = file.read_bytes()
    assert raw.count(weights.tobytes()) == 1
    file.write_bytes(raw.replace(weights.tobytes(), (weights * weights.dtype.type(1.2)).tobytes()))
    reseal(path)
    return Bundle.load(path)


@pytest.mark.slow
def test_half_packages_are_judged_link_by_link(half):
    assert half.tensors["skip_freq_0"].dtype == "float16"
    assert half.tensors["spectrogram_mean"].dtype == "float32"
    assert half.tensors["skip_freq_0"].bytes == 2 * np.prod(half.tensors["skip_freq_0"].shape)
    report = verify_bundle(half)
    assert report.passed
    found = statuses(report.checks)
    assert found["conversion"] == found["precision"] == found["package"] == found["boundary"] == {Status.PASS}
    conversion = min(check.parity.snr_db for check in report.checks if check.kind == "conversion")
    precision = max(check.parity.snr_db for check in report.checks if check.kind == "precision")
    assert conversion > 110 > precision
    produced = {spec.name for spec in half.manifest.tensors if spec.producer != "input"}
    for kind in ("boundary", "package"):
        assert {check.subject for check in report.checks if check.kind == kind} == produced
    rounded = next(c.parity.snr_db for c in report.checks if (c.kind, c.subject) == ("boundary", "stems"))
    assert 55 <= rounded < 90
    assert all(programs.load(half.path / s.program, half.weights) for s in half.segments)


@pytest.mark.slow
def test_broken_converter_fails_as_conversion(half, tmp_path):
    """Both packages come from the converter: what it got wrong is no matter of precision."""
    bundle = tampered(half, tmp_path, "reference/encoder.mlpackage")
    checks, _ = package_checks(bundle, segment_of(bundle, "encoder"), half.goldens())
    assert Status.FAIL in statuses(checks)["conversion"]


@pytest.mark.slow
def test_broken_shipped_package_fails_as_precision(half, tmp_path):
    bundle = tampered(half, tmp_path, "encoder.mlpackage")
    checks, overflows = package_checks(bundle, segment_of(bundle, "encoder"), half.goldens())
    found = statuses(checks)
    assert found["conversion"] == {Status.PASS}
    assert Status.FAIL in found["precision"]
    assert not overflows


def test_shipped_package_that_is_no_longer_the_reference_fails(demo_bundle, tmp_path):
    """In a fp32 bundle both are the same file; a shipped one that drifted is compared, not taken for it."""
    bundle = tampered(demo_bundle, tmp_path, "decoder.mlpackage")
    checks, _ = package_checks(bundle, segment_of(bundle, "decoder"), demo_bundle.goldens())
    found = statuses(checks)
    assert found["conversion"] == {Status.PASS}
    assert Status.FAIL in found["precision"]


@pytest.mark.slow
def test_compression_is_a_link_of_its_own(small):
    """The precision is judged before the weights are touched, and what they lose is not laid to it."""
    for name, limit in (("encoder", 20.0), ("decoder", 0.0)):
        segment = segment_of(small, name)
        assert segment.uncompressed == f"reference/uncompressed/{name}.mlpackage"
        checks, _ = package_checks(small, segment, small.goldens())
        by_kind = {}
        for check in checks:
            assert check.status is Status.PASS
            if check.parity and check.subject in segment.outputs:
                by_kind.setdefault(check.kind, []).append(check.parity.snr_db)
        conversion, precision, lost = (min(by_kind[kind]) for kind in ("conversion", "precision", "compression"))
        assert conversion > 110 > precision > 45
        assert precision > lost > limit
        assert {c.limit_db for c in checks if c.kind == "compression" and c.subject in segment.outputs} == {limit}
        (worst,) = (c for c in checks if c.kind == "compression" and c.subject not in segment.outputs)
        assert worst.limit_db == 28.0 or worst.subject == "decoder.0.rewrite.weight"
    assert small.manifest.files.keys() >= {"reference/uncompressed/encoder.mlpackage/Manifest.json"}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("package", "blamed"),
    [
        ("reference/decoder.mlpackage", {"conversion", "precision"}),
        ("reference/uncompressed/decoder.mlpackage", {"precision"}),
    ],
)
def test_a_broken_reference_is_blamed_where_it_stands(small, tmp_path, package, blamed):
    """Weights a fifth off still give what a palette of 16 may lose."""
    bundle = tampered(small, tmp_path, package)
    checks, _ = package_checks(bundle, segment_of(bundle, "decoder"), small.goldens())
    found = statuses(checks)
    assert {kind for kind in found if Status.FAIL in found[kind]} == blamed


def test_each_compressed_weight_is_found_and_judged_by_its_own_limit(tmp_path):
    """On the toy, whose packages take no minutes: what the shipped package decodes, against the one before."""
    plan = plans.changed(PACKAGES_PLAN, compression={"form": "int8", "min_elements": 16})
    (bundle,) = splitter.build(separating(), tmp_path / "b", plan=plan).members
    for name in ("encoder", "transformer", "decoder"):
        segment = segment_of(bundle, name)
        assert segment.artifact.details["compressed"]
        checks, _ = package_checks(bundle, segment, bundle.goldens())
        (weight,) = (c for c in checks if c.kind == "compression" and c.subject not in segment.outputs)
        assert weight.subject in bundle.program(segment.program).weights
        assert weight.status is Status.PASS
        assert 28 == weight.limit_db < weight.parity.snr_db < 60


@pytest.mark.slow
def test_wrongly_decoded_weights_fail_as_compression(small, tmp_path):
    """The decoder's palette upside down: what a table read backwards gives."""
    path = tmp_path / "tampered"
    shutil.copytree(small.path, path)
    (file,) = (path / "decoder.mlpackage").rglob("weight.bin")
    (table,) = (
        one.attributes["lut"].numpy()
        for one in mil.load(path / "decoder.mlpackage").operations
        if one.type == "constexpr_lut_to_dense"
    )
    raw = file.read_bytes()
    assert raw.count(table.tobytes()) == 1
    file.write_bytes(raw.replace(table.tobytes(), table[::-1].tobytes()))
    (path / "manifest.json").unlink()
    manifest = small.manifest.model_copy(update={"files": file_records(path)})  # whose builder wrote them so
    checks, _ = package_checks(
        replace(small, path=path, manifest=manifest), segment_of(small, "decoder"), small.goldens()
    )
    found = statuses(checks)
    assert found["conversion"] == found["precision"] == {Status.PASS}
    assert Status.FAIL in found["compression"]


@pytest.mark.slow
def test_compression_without_references_is_not_applicable(small):
    for gone in ({"reference": "", "uncompressed": ""}, {"uncompressed": ""}):
        segment = segment_of(small, "encoder").model_copy(update=gone)
        checks, _ = package_checks(small, segment, small.goldens())
        assert {check.kind for check in checks if check.status is Status.NOT_APPLICABLE} >= {"precision", "compression"}
        assert not [check for check in checks if check.parity]


@pytest.mark.slow
def test_a_run_of_compressed_packages_has_their_limit(small):
    report = verify_bundle(small)
    assert report.passed
    assert {check.limit_db for check in report.checks if check.kind == "package"} == {0.0}
    assert {check.limit_db for check in report.checks if check.kind == "coreml" and check.limit_db} <= {0.0, 20.0}


def test_without_references_the_causes_are_not_applicable(demo_bundle):
    segment = segment_of(demo_bundle, "encoder").model_copy(update={"reference": ""})
    checks, _ = package_checks(demo_bundle, segment, demo_bundle.goldens())
    assert {check.kind for check in checks if check.status is Status.NOT_APPLICABLE} == {
        "conversion",
        "precision",
        "compression",
    }


@pytest.mark.slow
def test_unreadable_package_fails(half, tmp_path):
    shutil.copytree(half.path, tmp_path / "copy")
    bundle = replace(half, path=tmp_path / "copy")
    for file in (bundle.path / "encoder.mlpackage").rglob("weight.bin"):
        file.write_bytes(file.read_bytes()[:1000])
    checks, _ = package_checks(bundle, segment_of(bundle, "encoder"), half.goldens())
    assert [(check.kind, check.status) for check in checks] == [("finite", Status.FAIL)]
    assert "encoder.mlpackage" in checks[0].note or "weight.bin" in checks[0].note


@pytest.mark.slow
def test_first_overflow_and_its_boundary_are_named(half):
    """A golden a thousand times as loud: fp32 shrugs, half squares it past 65,504 in a normalisation."""
    segment = segment_of(half, "encoder")
    assert not package_checks(half, segment, golden_of(half, segment))[1]
    checks, overflows = package_checks(half, segment, golden_of(half, segment, scale=1000))
    assert statuses(checks)["conversion"] == {Status.PASS}
    first = overflows[0]
    assert (first.segment, first.operation) == ("encoder", "square")
    assert 0 < first.values[0] <= first.values[1]
    failing = [check.subject for check in checks if check.kind == "precision" and check.status is Status.FAIL]
    assert first.boundary == next(name for name in segment.outputs if name in failing)
    (finite,) = (check for check in checks if check.kind == "finite")
    assert finite.status is Status.FAIL
    assert first.name in finite.note


def watched(build, inputs, directory):
    model, watch = mil.load(package(build, inputs, directory)), OverflowWatch()
    (result,) = model.predict(inputs, listener=watch).values()
    return result, [(operation.type, broken, total) for operation, broken, total in watch.found]


X = {"x": np.array([[1.0, 300.0, -400.0]], np.float16)}


def test_overflow_that_the_output_hides_is_found(tmp_path):
    result, found = watched(lambda x: mb.real_div(x=np.float16(1), y=mb.square(x=x)), X, tmp_path)
    assert np.isfinite(result).all()
    assert found == [("square", 2, 3)]


def test_only_the_operation_that_began_it_is_noted(tmp_path):
    _, found = watched(lambda x: mb.sub(x=mb.square(x=x), y=mb.exp(x=x)), X, tmp_path)
    assert found == [("square", 2, 3), ("exp", 1, 3)]


def test_infinities_that_are_meant_are_not_noted(tmp_path):
    mask = np.array([[0, -np.inf, 0]], np.float16)
    assert watched(lambda x: mb.add(x=x, y=mask), X, tmp_path)[1] == []
    inputs = X | {"mask": mask}
    assert watched(lambda x, mask: mb.softmax(x=mb.add(x=x, y=mask), axis=-1), inputs, tmp_path)[1] == []


def test_finite_terms_whose_sum_overflows_are_finite(tmp_path):
    loud = {"x": np.full((1, 4096), 3e38, np.float32)}
    assert watched(lambda x: mb.relu(x=x), loud, tmp_path)[1] == []
