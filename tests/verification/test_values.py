"""Verification with the Neural Engine's arithmetic: what fails on the device shows off it, and the operation is named."""

import json

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import nn

import splitter
from splitter import arrays
from splitter.cli.shell import command
from splitter.verification.checks import Status


class Activated(nn.Module):
    """A softplus between two layers, as the activation of many a network."""

    def __init__(self, scale):
        super().__init__()
        self.first, self.last = nn.Linear(8, 8, bias=False), nn.Linear(8, 4, bias=False)
        with torch.no_grad():
            self.first.weight.copy_(scale * torch.eye(8))

    def forward(self, x):
        return self.last(nn.functional.softplus(self.first(x)))


@pytest.fixture(scope="module", params=[20, 2], ids=["beyond", "within"])
def bundle(request, tmp_path_factory):
    torch.manual_seed(0)
    inputs = {"x": np.ones((2, 8), np.float32)}
    path = tmp_path_factory.mktemp("values") / f"scale-{request.param}.bundle"
    return splitter.build(Activated(request.param), path, inputs=inputs, precision="fp16", optimise_for=None)


def found(report, kind):
    return [check for check in report.checks if check.kind == kind]


def test_the_failure_shows_and_has_a_name(bundle):
    beyond = "20" in str(bundle.members[0].path)
    (plain,) = splitter.verify(bundle)
    assert found(plain, "ane") == []
    (report,) = splitter.verify(bundle, values="ane")
    (check,) = found(report, "ane")
    assert check.status is (Status.FAIL if beyond else Status.PASS)
    assert check.note.startswith("softplus '") == beyond
    assert ("16 of 16 inputs are beyond 10.3972, as far as 20: 0" in check.note) == beyond
    assert report.passed == (not beyond)
    assert all(check.status is not Status.FAIL for check in plain.checks)


def test_on_the_command_line(bundle):
    path = str(bundle.members[0].path)
    beyond = "20" in path
    result = CliRunner().invoke(command, ["verify", path, "--values", "ane"])
    assert result.exit_code == (1 if beyond else 0)
    assert ("softplus '" in result.output) == beyond
    document = CliRunner().invoke(command, ["verify", path, "--values", "ane", "--json"]).stdout
    assert json.loads(document)
    assert document.count('"kind": "ane"') == 1


def test_a_bundle_in_fp32_is_not_judged(tmp_path):
    path = tmp_path / "wide.bundle"
    splitter.build(Activated(2), path, inputs={"x": np.ones((2, 8), np.float32)}, precision="fp32")
    (report,) = splitter.verify(path, values="ane")
    (check,) = found(report, "ane")
    assert check.status is Status.NOT_RUN
    assert "the Neural Engine runs nothing of" in check.note


def test_a_prediction_on_the_command_line(bundle, tmp_path):
    (package,) = bundle.members[0].path.glob("*.mlpackage")
    beyond = "20" in str(package)
    arrays.write(tmp_path / "in.npz", {"x": np.ones((2, 8), np.float32)})
    given = ["predict", str(package), "--inputs", str(tmp_path / "in.npz"), "-o", str(tmp_path / "out.npz"), "--json"]
    document = json.loads(CliRunner().invoke(command, [*given, "--values", "ane"]).stdout)
    assert [text.partition(" ")[0] for text in document["departures"]] == (["softplus"] if beyond else [])
    assert "departures" not in json.loads(CliRunner().invoke(command, given).stdout)
    refused = CliRunner().invoke(command, [*given, "--values", "ane", "--accumulators", "half"])
    assert "an accumulator of its own" in str(refused.exception)


def test_an_engine_without_such_a_model(tmp_path):
    path = tmp_path / "onnx.bundle"
    splitter.build(Activated(20), path, inputs={"x": np.ones((2, 8), np.float32)}, format="onnx")
    (report,) = splitter.verify(path, values="ane")
    assert {check.note for check in found(report, "ane")} == {"onnxruntime has no model of these values"}
    assert report.passed
