import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from splitter_kernels import reference

import splitter
from splitter import verify
from splitter.bundle import goldens
from splitter.bundle.directory import Bundle, load
from splitter.plan import schema as plans
from splitter.runtime.engines.coreml_engine import CoreMLEngine
from splitter.verification.verify import Status, verify_bundle

from ..sealing import reseal, seal
from ..toys import PACKAGES_PLAN, separating


@pytest.fixture
def toy_copy(packages_bundle, tmp_path):
    shutil.copytree(packages_bundle.path, tmp_path / "copy")
    return tmp_path / "copy"


def resealed(path):
    """The manifest made to agree with the files again, as a builder gone wrong would leave it."""
    reseal(path)
    return Bundle.load(path)


def failing(report):
    return {(check.kind, check.subject, check.scope) for check in report.checks if check.status is Status.FAIL}


@pytest.fixture(scope="module")
def report(demo_path):
    return verify(load(demo_path))[0]


def test_demo_passes_exactly(report):
    assert report.passed
    assert report.same_machine
    assert report.partition_max_abs == 0.0
    by_kind = {}
    for check in report.checks:
        by_kind.setdefault(check.kind, set()).add(check.status)
    assert by_kind == {
        "files": {Status.PASS},
        "partition": {Status.PASS},
        "golden": {Status.PASS},
        "host": {Status.PASS},
        "kernels": {Status.PASS},
        "artifact": {Status.PASS},
        "conversion": {Status.PASS},
        "precision": {Status.NOT_APPLICABLE},
        "compression": {Status.NOT_APPLICABLE},
        "finite": {Status.PASS},
        "package": {Status.PASS},
        "coreml": {Status.NOT_RUN},
    }


def test_every_boundary_is_judged_locally_and_accumulated(report, demo_bundle):
    produced = {spec.name for spec in demo_bundle.manifest.tensors if spec.producer != "input"}
    for scope in ("local", "accumulated"):
        assert {c.subject for c in report.checks if c.kind == "golden" and c.scope == scope} == produced
    assert {c.subject for c in report.checks if c.kind == "partition"} == produced


def test_report_is_one_json_document(report):
    content = json.loads(json.dumps(report.to_dict(), allow_nan=False))
    assert content["partition"]["max_abs"] == 0
    stems = next(c for c in content["checks"] if c["kind"] == "golden" and c["subject"] == "stems")
    assert (stems["snr_db"], stems["exact"], stems["status"]) == (None, True, "pass")
    kernels = next(c for c in content["checks"] if c["kind"] == "kernels")
    assert kernels["snr_db"] > 110


def test_changed_file_ends_it(toy_copy):
    (toy_copy / "synthesis.json").write_bytes((toy_copy / "synthesis.json").read_bytes()[:-1] + b" ")
    report = verify_bundle(Bundle.load(toy_copy))
    assert not report.passed
    assert failing(report) == {("files", "all", "")}


def test_segment_that_is_not_the_model_fails_at_its_boundary(toy_copy):
    """One operator of the transformer's program changed: the stage's own output fails, nothing before it."""
    path = toy_copy / "graph" / "transformer.json"
    text = path.read_text()
    changed = text.replace('"aten.relu.default"', '"aten.gelu.default"', 1)
    assert changed != text
    path.write_text(changed)
    report = verify_bundle(resealed(toy_copy))
    assert not report.passed
    assert report.partition_max_abs > 0
    failed = failing(report)
    assert {("partition", "restored", "accumulated"), ("golden", "mix_norm2", "local")} <= failed
    assert "down" not in {subject for _, subject, _ in failed}
    assert ("golden", "restored", "local") not in failed, "synthesis itself is right, given the right input"
    assert ("golden", "restored", "accumulated") in failed


def test_weights_that_drifted_fail_against_goldens_though_segments_agree(toy_copy):
    path = toy_copy / "graph" / "weights.safetensors"
    weights = load_file(path)
    weights["up.weight"] = weights["up.weight"] * np.float32(1.001)
    save_file(weights, path)
    report = verify_bundle(resealed(toy_copy))
    assert report.partition_max_abs == 0
    failed = failing(report)
    assert ("golden", "up", "local") in failed
    assert ("golden", "mix_norm2", "local") not in failed


def test_port_that_drifted_fails_alone(demo_bundle, monkeypatch):
    monkeypatch.setattr(reference, "layer_norm", reference.group_norm)
    failed = failing(verify_bundle(demo_bundle))
    assert failed == {("kernels", "freq_transformed", "local"), ("kernels", "time_transformed", "local")}


def test_goldens_of_another_machine_are_held_to_decibels(toy_copy):
    content = json.loads((toy_copy / "manifest.json").read_text())
    content["golden"]["machine"]["processor"] = "another"
    golden = load_file(toy_copy / "goldens.safetensors")
    golden = {name: array * np.float32(1 + 2**-22) for name, array in golden.items()}
    save_file(golden, toy_copy / "goldens.safetensors")
    seal(toy_copy, content)
    report = verify_bundle(resealed(toy_copy))
    assert not report.same_machine
    golden_checks = [check for check in report.checks if check.kind == "golden" and check.subject == "down"]
    assert {check.limit_db for check in golden_checks} == {120}
    assert {check.status for check in golden_checks} == {Status.PASS}

    content["golden"]["machine"] = goldens.machine().model_dump()
    seal(toy_copy, content)
    assert ("golden", "down", "local") in failing(verify_bundle(resealed(toy_copy))), "here, equality is demanded"


def test_silent_golden_is_not_a_pass(toy_copy):
    """Against silence a mean of almost nothing proves nothing, and sound is wrong."""
    golden = load_file(toy_copy / "goldens.safetensors")
    golden["waveform_mean"][:] = golden["down"][:] = 0
    save_file(golden, toy_copy / "goldens.safetensors")
    report = verify_bundle(resealed(toy_copy))
    assert not report.passed
    for name, status in (("waveform_mean", Status.NOT_APPLICABLE), ("down", Status.FAIL)):
        checks = [check for check in report.checks if (check.kind, check.subject) == ("golden", name)]
        assert {check.scope for check in checks} == {"local", "accumulated"}
        assert {check.status for check in checks} == {status}
        assert {check.parity.snr_db for check in checks} == {None}


def test_half_precision_boundaries_are_verified_as_they_run_and_without_their_rounding(tmp_path):
    """What is written by hand is held against the graph in the graph's own precision; the run as it is, against less."""
    plan = plans.changed(PACKAGES_PLAN, boundary_dtype="fp16")
    (bundle,) = splitter.build(separating(), tmp_path / "half", plan=plan).members
    assert {name for name, spec in bundle.tensors.items() if spec.dtype == "float16"} >= {"waveform", "down", "up"}
    report = verify_bundle(bundle)
    assert report.passed
    assert report.partition_max_abs == 0.0
    host = {check.subject: check.parity.snr_db for check in report.checks if check.kind == "host"}
    assert host.keys() == {"waveform", "waveform_mean", "waveform_std", "restored"}
    assert min(host["waveform"], host["restored"]) > 110
    produced = {spec.name for spec in bundle.manifest.tensors if spec.producer != "input"}
    rounded = {check.subject: check for check in report.checks if check.kind == "boundary"}
    assert rounded.keys() == produced
    assert {check.limit_db for check in rounded.values()} == {plan.tolerances.boundary_fp16_snr_db}
    assert plan.tolerances.boundary_fp16_snr_db < rounded["restored"].parity.snr_db < 90
    limits = {check.limit_db for check in report.checks if check.kind == "package"}
    assert limits == {plan.tolerances.package_fp16_snr_db}


def test_package_that_is_not_what_the_manifest_says_fails(toy_copy):
    shutil.rmtree(toy_copy / "encoder.mlpackage")
    shutil.copytree(toy_copy / "decoder.mlpackage", toy_copy / "encoder.mlpackage")
    report = verify_bundle(resealed(toy_copy))
    assert {subject for _, subject, _ in failing(report)} == {"encoder", "all"}
    assert {("artifact", "encoder", ""), ("finite", "encoder", "local")} <= failing(report)


def test_coreml_is_judged_by_its_units_limit_where_it_runs(packages_bundle, monkeypatch):
    """With a stand-in for Core ML: at 80 dB it passes for the GPU and fails for the CPU."""
    golden = packages_bundle.goldens()

    class Model(CoreMLEngine):
        @classmethod
        def unsupported_reason(cls, segment):
            return None

        def __init__(self, bundle, segment, *, compute_units):
            self._names = segment.outputs

        def run(self, inputs):
            return {name: golden[name] * np.float32(1 + 1e-4) for name in self._names}

    monkeypatch.setattr(
        "splitter.verification.verify.engine",
        lambda name, real=splitter.runtime.engines.engine: Model if name == "coreml" else real(name),
    )
    for units, status in (("CPU_AND_GPU", Status.PASS), ("CPU_ONLY", Status.FAIL)):
        checks = [c for c in verify_bundle(packages_bundle, compute_units=units).checks if c.kind == "coreml"]
        assert {c.status for c in checks} == {status}
        assert {c.limit_db for c in checks} == {{"CPU_AND_GPU": 70, "CPU_ONLY": 90}[units]}


def test_unreadable_program_is_an_error_that_names_it(toy_copy):
    (toy_copy / "graph" / "encoder.json").write_text("{}")
    with pytest.raises(splitter.SplitterError, match=r"encoder\.json"):
        verify_bundle(resealed(toy_copy))
