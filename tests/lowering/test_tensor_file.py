"""A stage's weights as one file for a port, read by the manifest's offsets alone, and verified by what they compute."""

import json
import shutil

import numpy as np
import pytest
from safetensors.numpy import load_file
from splitter_weights import tensor_file

import splitter
from splitter.bundle.directory import Bundle
from splitter.errors import LoweringError, PlanError
from splitter.plan.schema import Plan
from splitter.verification.checks import Status

from ..sealing import edit, flip, reseal
from ..toys import PACKAGES_PLAN, separating

STAGES = ("encoder", "transformer", "decoder")
KIND = "safetensors-file"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "file.bundle"
    return splitter.build(separating(), path, plan=PACKAGES_PLAN, format=KIND).members[0]


@pytest.fixture
def copy(bundle, tmp_path):
    return shutil.copytree(bundle.path, tmp_path / "copy.bundle")


def failures(path):
    (report,) = splitter.verify(path)
    return [check for check in report.checks if check.status is Status.FAIL]


def test_a_port_reads_every_weight_by_its_offset(bundle):
    model = dict(separating().named_parameters())
    manifest = json.loads((bundle.path / "manifest.json").read_text())
    seen = set()
    for segment in manifest["segments"]:
        if segment["artifact"]["target"] != KIND:
            continue
        content = (bundle.path / segment["artifact"]["path"]).read_bytes()
        for name, tensor in segment["artifact"]["details"]["tensors"].items():
            assert tensor["offset"] % 64 == 0
            raw = content[tensor["offset"] : tensor["offset"] + tensor["bytes"]]
            values = np.frombuffer(raw, tensor["dtype"]).reshape(tensor["shape"])
            assert np.array_equal(values, model[name].detach().numpy())
            seen.add(name)
        by_library = load_file(bundle.path / segment["artifact"]["path"])
        assert set(by_library) - set(segment["artifact"]["details"]["padding"]) <= seen
    assert seen == model.keys()


def test_what_ships_is_what_is_verified(bundle):
    (report,) = splitter.verify(bundle.path)
    assert not [check for check in report.checks if check.status is Status.FAIL]
    by_jax = [check for check in report.checks if check.kind == KIND]
    assert {check.subject for check in by_jax} == {name for s in STAGES for name in bundle.segment(s).outputs}
    assert {check.engine for check in by_jax} == {"jax"}
    assert min(check.parity.snr_db for check in by_jax) >= 115
    assert {check.note for check in report.checks if check.kind == "artifact" and check.subject in STAGES} == {KIND}


def test_other_weights_are_noticed_though_every_hash_fits(copy):
    """Somebody who writes a file of other values and a manifest for it."""
    bundle = Bundle.load(copy)
    artifact = bundle.segment("decoder").artifact
    weights = tensor_file.load(copy / artifact.path, tensor_file.record_of(artifact.details))
    record = tensor_file.export(
        {name: array * np.float32(1.01) for name, array in weights.items()}, copy / artifact.path
    )

    def change(content):
        (segment,) = (segment for segment in content["segments"] if segment["name"] == "decoder")
        segment["artifact"]["details"] = record.model_dump(mode="json")

    edit(copy, change)
    reseal(copy)
    assert {(check.kind, check.subject) for check in failures(copy)} >= {
        (KIND, name) for name in bundle.segment("decoder").outputs
    }


def test_a_changed_tensor_is_named(copy):
    artifact = Bundle.load(copy).segment("decoder").artifact
    flip(copy / artifact.path, artifact.details["tensors"]["up.weight"]["offset"])
    reseal(copy)
    notes = [check.note for check in failures(copy) if check.kind == "artifact"]
    assert notes == [
        "tensor 'up.weight' of decoder.safetensors has another hash than in the manifest. Build the bundle again."
    ]


def test_a_stage_without_weights_has_nothing_to_write(tmp_path):
    stages = [stage.model_dump() for stage in PACKAGES_PLAN.stages]
    stages[-1]["target"] = KIND
    plan = Plan.model_validate(PACKAGES_PLAN.model_dump() | {"stages": stages})
    with pytest.raises(LoweringError, match="segment 'synthesis' has no weights to write"):
        splitter.build(separating(), tmp_path / "b", plan=plan)
    assert not (tmp_path / "b").exists()


def test_it_has_one_form(tmp_path):
    with pytest.raises(PlanError, match="`compression`"):
        splitter.build(separating(), tmp_path / "b", plan=PACKAGES_PLAN, format=KIND, compress="int8")
