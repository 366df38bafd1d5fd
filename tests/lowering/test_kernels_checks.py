"""Whether the port or the form of the weights is blamed, on the demo's transformer in every lossy form."""

import json

import numpy as np
import pytest
from splitter_kernels import reference
from splitter_weights import transformer as weights

from splitter.bundle.directory import Bundle, file_record
from splitter.lowering.kernels import checks as kernel_causes
from splitter.lowering.kernels.checks import kernel_checks
from splitter.plan import schema as plans
from splitter.plan.schema import WeightsForm
from splitter.verification.checks import Status

MIXED = {"layers.0": "pal4", "layers_t.1": "none"}
LOSSY = [{"matrices": "fp16"}, {"compress": "int8"}, {"compress": "pal4"}, {"compress": "int8", "exceptions": MIXED}]


def reformed(bundle, directory, form, change=lambda tensors: tensors):
    """The bundle with its transformer exported anew, perhaps from other weights."""
    segment = bundle.segment("transformer")
    old = weights.record_of(segment.artifact.details)
    config, tensors = weights.load(bundle.path / segment.artifact.path, old)
    names = {"inputs": old.inputs, "outputs": old.outputs}
    path = directory / segment.artifact.path
    record = weights.export(config, change(tensors), old.sources, path, form=form, **names)
    for link in ("graph", "goldens.safetensors"):
        (directory / link).symlink_to(bundle.path / link)
    artifact = segment.artifact.model_copy(update={"details": record.model_dump(mode="json")})
    segments = tuple(
        one.model_copy(update={"artifact": artifact}) if one.name == segment.name else one for one in bundle.segments
    )
    plan = plans.changed(bundle.manifest.plan, weights=form.model_dump())
    files = {**bundle.manifest.files, segment.artifact.path: file_record(path)}
    return Bundle(directory, bundle.manifest.model_copy(update={"segments": segments, "plan": plan, "files": files}))


@pytest.fixture(autouse=True)
def numpy_for_jax(request, monkeypatch):
    """Compiling takes most of the time: one test does it, the others run NumPy twice."""
    if request.function is not test_every_engine_runs_a_compressed_file:
        real = kernel_causes.engine
        monkeypatch.setattr(kernel_causes, "engine", lambda name: real("numpy" if name == "jax" else name))


def judged(bundle):
    """Statuses by kind, and the least SNR by kind."""
    checks = kernel_checks(bundle, bundle.segment("transformer"), *2 * [bundle.goldens()])
    statuses, least = {}, {}
    for check in checks:
        statuses.setdefault(check.kind, set()).add(check.status)
        if check.parity is not None:
            least[check.kind] = min(least.get(check.kind, np.inf), check.parity.snr_db)
    return statuses, least, [check.note for check in checks if check.status is Status.FAIL]


PASS, FAIL = {Status.PASS}, {Status.FAIL}


@pytest.mark.parametrize("form", LOSSY, ids=str)
def test_honest_forms_pass_and_the_loss_is_no_fault_of_the_port(form, demo_bundle, tmp_path):
    statuses, least, _ = judged(reformed(demo_bundle, tmp_path, WeightsForm(**form)))
    assert statuses == {"compression": PASS, "kernels": PASS}
    assert least["kernels"] >= 110
    if "compress" in form:
        assert least["compression"] < 100


def test_every_engine_runs_a_compressed_file(demo_bundle, tmp_path):
    bundle = reformed(demo_bundle, tmp_path, WeightsForm(layout="mlx", compress="pal6"))
    checks = kernel_checks(bundle, bundle.segment("transformer"), *2 * [bundle.goldens()])
    assert {check.engine for check in checks if check.kind == "kernels"} == {"numpy", "jax"}
    assert {check.status for check in checks} == PASS
    lost = {check.subject: check.parity.snr_db for check in checks if check.kind == "compression" and check.parity}
    assert max(lost[name] for name in bundle.segment("transformer").outputs) < 100, "six bits do not do for nothing"


def test_lossless_forms_have_no_compression_to_judge(demo_bundle, tmp_path):
    statuses, least, _ = judged(reformed(demo_bundle, tmp_path, WeightsForm(layout="mlx")))
    assert statuses == {"compression": {Status.NOT_APPLICABLE}, "kernels": PASS}
    assert least["kernels"] >= 110


def test_broken_port_is_the_ports_fault(demo_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr(reference, "layer_norm", reference.group_norm)
    statuses, _, _ = judged(reformed(demo_bundle, tmp_path, WeightsForm(compress="pal6")))
    assert statuses == {"compression": PASS, "kernels": FAIL}


def scrambled(tensors):
    """Every matrix upside down, as a wrong decoder would leave it."""
    return {name: array[::-1].copy() if name.endswith("linear2.weight") else array for name, array in tensors.items()}


@pytest.mark.parametrize("form", LOSSY, ids=str)
def test_wrong_matrices_are_the_compressions_fault(form, demo_bundle, tmp_path):
    """The demo's layer scales are so small that its outputs do not show it; the matrices do."""
    bundle = reformed(demo_bundle, tmp_path, WeightsForm(**form), scrambled)
    statuses, _, _ = judged(bundle)
    assert Status.FAIL in statuses["compression"]
    assert statuses["kernels"] == PASS


def test_wrong_matrices_without_loss_are_a_difference_of_the_port(demo_bundle, tmp_path):
    statuses, _, _ = judged(reformed(demo_bundle, tmp_path, WeightsForm(), scrambled))
    assert Status.FAIL in statuses["kernels"]


def test_what_is_never_compressed_must_be_as_it_was(demo_bundle, tmp_path):
    """One ulp in one bias: no decibel shows it, the comparison of bits does."""

    def nudged(tensors):
        bias = tensors["layers.1.linear1.bias"].copy()
        bias[3] = np.nextafter(bias[3], np.float32(np.inf))
        return tensors | {"layers.1.linear1.bias": bias}

    statuses, _, notes = judged(reformed(demo_bundle, tmp_path, WeightsForm(compress="int8"), nudged))
    assert statuses["kernels"] == PASS
    assert notes == [notes[0]]
    assert "1 of" in notes[0]
    assert "layers.1.linear1.bias" in notes[0]


def test_unreadable_file_fails(demo_bundle, tmp_path):
    bundle = reformed(demo_bundle, tmp_path, WeightsForm(compress="int8"))
    path = bundle.path / "transformer.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    statuses, _, notes = judged(bundle)
    assert statuses["kernels"] == FAIL
    assert "transformer.safetensors was changed after the build" in notes[0]


def test_source_that_is_no_weight_of_the_graph_fails(demo_bundle, tmp_path):
    bundle = reformed(demo_bundle, tmp_path, WeightsForm(compress="int8"))
    segment = bundle.segment("transformer")
    text = json.dumps(segment.artifact.details).replace("crosstransformer.layers.0.linear1", "elsewhere")
    artifact = segment.artifact.model_copy(update={"details": json.loads(text)})
    checks = kernel_checks(bundle, segment.model_copy(update={"artifact": artifact}), *2 * [bundle.goldens()])
    assert [check.status for check in checks] == [Status.FAIL]
    assert "'elsewhere" in checks[0].note


def test_command_line_builds_the_form_it_is_asked_for(tmp_path, monkeypatch):
    """Options to plan to file; the build itself is that of every other test."""
    from click.testing import CliRunner

    from splitter import cli, compiler

    asked = {}

    def build(model, out, **settings):
        asked.update(settings)
        raise SystemExit(7)

    monkeypatch.setattr(compiler, "build", build)
    arguments = ["build", "demo", "-o", str(tmp_path / "x"), "--weights-layout", "mlx", "--compress", "pal6"]
    assert CliRunner().invoke(cli.command, arguments).exit_code == 7
    assert (asked["weights"], asked["compress"]) == ({"layout": "mlx"}, "pal6")
    CliRunner().invoke(cli.command, ["build", "demo", "-o", "x", "--weights-dtype", "fp16", "--qkv", "split"])
    assert asked["weights"] == {"matrices": "fp16", "qkv": "split"}


def test_each_matrix_is_held_to_the_limit_of_its_own_form(demo_bundle, tmp_path):
    """Noise that a palette of 16 may make fails an int8 matrix, though the other one allows the outputs more."""

    def noisy(tensors):
        name = "layers.1.cross_attn.out_proj.weight"
        noise = np.random.default_rng(0).standard_normal(tensors[name].shape)
        return tensors | {name: (tensors[name] * (1 + 0.1 * noise)).astype(np.float32)}  # 20 dB

    for form, expected in (("int8", FAIL), ("pal4", PASS)):
        (tmp_path / form).mkdir()
        exceptions = {"layers.0": "pal4", "layers.1": form}
        bundle = reformed(demo_bundle, tmp_path / form, WeightsForm(compress="int8", exceptions=exceptions), noisy)
        checks = kernel_checks(bundle, bundle.segment("transformer"), *2 * [bundle.goldens()])
        (worst,) = (check for check in checks if check.kind == "compression" and "crosstransformer" in check.subject)
        assert {worst.status} == expected
        assert worst.limit_db == 28.0 or form == "pal4"
        outputs = {
            check.limit_db for check in checks if check.subject == "freq_transformed" and check.kind == "compression"
        }
        assert outputs == {0.0}
