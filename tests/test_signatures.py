"""Signatures as PyTorch has them: what forward takes and returns, in bundles that are built, run and verified."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

import splitter
from splitter.boundary import OUTPUT
from splitter.errors import BoundaryError, CaptureError, PartitionError
from splitter.plan.schema import Plan

from .conftest import snr_db

X = np.random.default_rng(0).standard_normal((1, 4)).astype(np.float32)


def built(forward, directory, inputs, outputs=("y",), target="graph", **members):
    """A bundle of one stage, which verifies."""

    class Model(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)
            for name, member in members.items():
                setattr(self, name, member)

    Model.forward = forward
    plan = Plan(family="own", outputs=outputs, stages=({"name": "all", "target": target},))
    model = Model()
    (bundle,) = splitter.build(model, directory / "b", inputs=inputs, plan=plan, reference=target != "graph").members
    (report,) = splitter.verify(bundle)
    assert report.passed, [check for check in report.checks if check.status == "fail"]
    assert report.partition_max_abs == 0
    return model, bundle


def returned(bundle):
    return {one.path: one.tensor or one.constant for one in bundle.manifest.model.returns}


def test_keyword_only_inputs(tmp_path):
    def forward(self, x, *, scale, shift=None):
        return self.a(x) * scale if shift is None else self.a(x) * scale + shift

    _, bundle = built(forward, tmp_path, {"scale": X + 1, "x": X})
    assert bundle.inputs == ("x", "scale")
    _, bundle = built(forward, tmp_path / "2", {"shift": X + 2, "scale": X + 1, "x": X})
    assert bundle.inputs == ("x", "scale", "shift")


def test_structures_with_none_and_constants(tmp_path):
    def forward(self, x):
        y = self.a(x)
        return {"logits": y, "hidden": [x + 1, (self.b(y), None)], "loss": None, "layers": 2, "kind": "toy"}

    _, bundle = built(forward, tmp_path, {"x": X}, ("logits", "shifted", "deep"))
    assert returned(bundle) == {
        "logits": "logits", "hidden.0": "shifted", "hidden.1.0": "deep", "hidden.1.1": None, "loss": None, "layers": 2,
        "kind": "toy",
    }  # fmt: skip


def test_names_come_from_the_structure_where_the_plan_has_none(tmp_path):
    def forward(self, x):
        return {"logits": self.a(x), "x": x * 2, "hidden": [x + 1, x + 2]}

    _, bundle = built(forward, tmp_path, {"x": X}, ())
    assert bundle.outputs == ("logits", "x_output", "hidden_0", "hidden_1")


def test_repeated_and_passed_through(tmp_path):
    def forward(self, x, mask):
        y = self.a(x)
        return y, x, self.b(y), y, mask.detach()

    _, bundle = built(forward, tmp_path, {"x": X, "mask": X > 0}, ("y", "z"))
    assert returned(bundle) == {"0": "y", "1": "x", "2": "z", "3": "y", "4": "mask"}
    assert {name: OUTPUT in bundle.tensors[name].consumers for name in ("x", "mask", "y", "z")} == dict.fromkeys(
        ("x", "mask", "y", "z"), True
    )
    results = splitter.Orchestrator(bundle).run({"x": X, "mask": X > 0})
    assert set(results) == {"x", "mask", "y", "z"}
    assert np.array_equal(results["x"], X)


def test_outputs_in_another_order_than_they_are_computed(tmp_path):
    def forward(self, x):
        first = self.a(x)
        second = self.b(first)
        return second, first

    model, bundle = built(forward, tmp_path, {"x": X}, ("second", "first"))
    results = splitter.Orchestrator(bundle).run({"x": X})
    with torch.no_grad():
        second, first = model(torch.from_numpy(X))
    assert np.array_equal(results["first"], first.numpy())
    assert np.array_equal(results["second"], second.numpy())


@pytest.mark.parametrize("target", ["graph", "coreml"])
def test_a_table_is_returned(tmp_path, target):
    def forward(self, x):
        return self.a(x + self.table), self.table, torch.arange(3) * 2.0

    _, bundle = built(forward, tmp_path, {"x": X}, ("y", "table", "ramp"), target, table=nn.Buffer(torch.ones(4) * 3))
    results = splitter.Orchestrator(bundle, {"all": "mil" if target == "coreml" else "torch"}).run({"x": X})
    assert results["table"].tolist() == [3.0] * 4
    assert results["ramp"].tolist() == [0.0, 2.0, 4.0]


def test_buffers_that_are_written_to_are_no_outputs(tmp_path):
    def forward(self, x):
        self.count += 1
        self.last = self.a(x)
        return self.last * self.count

    members = {"count": nn.Buffer(torch.zeros(1)), "last": nn.Buffer(torch.zeros(1, 4))}
    model, bundle = built(forward, tmp_path, {"x": X}, **members)
    assert bundle.outputs == ("y",)
    assert (model.count.item(), model.last.abs().sum().item()) == (0.0, 0.0)


def test_inputs_that_are_written_to_stay_as_they_were(tmp_path):
    def forward(self, x):
        x.mul_(2)
        return self.a(x)

    _, bundle = built(forward, tmp_path, {"x": X})
    assert np.array_equal(bundle.goldens()["x"], X)


def test_integers_and_truths_cross_boundaries_as_they_are(tmp_path):
    """int32 in packages, the model's own dtype everywhere else."""

    def forward(self, ids, steps, mask):
        y = self.table(ids) + steps[..., None]
        hidden = y.masked_fill(~mask[..., None], 0.0)
        return self.a(hidden), hidden.argmax(-1), (y > 0) & mask[..., None], steps + 1

    inputs = {
        "ids": np.array([[3, 1, 2]]),
        "steps": np.array([[0, 1, 2]], np.int32),
        "mask": np.array([[True, False, True]]),
    }
    _, bundle = built(forward, tmp_path, inputs, ("y", "best", "positive", "next"), "coreml", table=nn.Embedding(5, 4))
    kinds = {name: (spec.dtype, spec.packaged_dtype) for name, spec in bundle.tensors.items()}
    assert kinds == {
        "ids": ("int64", "int32"), "steps": ("int32", None), "mask": ("bool", "int32"), "y": ("float32", None),
        "best": ("int64", "int32"), "positive": ("bool", "int32"), "next": ("int32", None),
    }  # fmt: skip
    results = splitter.Orchestrator(bundle, {"all": "mil"}).run(inputs)
    for name, array in bundle.goldens().items():
        if name in bundle.outputs:
            assert results[name].dtype == array.dtype
            assert np.array_equal(results[name], array) or snr_db(array, results[name]) > 115
    with pytest.raises(BoundaryError, match=r"'ids' holds integers that packages cannot take.*found 1 to 4294967296"):
        splitter.Orchestrator(bundle, {"all": "mil"}).run(inputs | {"ids": np.array([[1, 2**32, 1]])})


def test_bytes_are_integers_too(tmp_path):
    def forward(self, image):
        return self.a(image.float() / 255)

    _, bundle = built(forward, tmp_path, {"image": np.arange(4, dtype=np.uint8)[None] * 60}, target="coreml")
    assert (bundle.tensors["image"].dtype, bundle.tensors["image"].packaged_dtype) == ("uint8", "int32")


@pytest.mark.parametrize("boundary_dtype", ["fp32", "fp16"])
def test_integers_cross_in_half_precision_and_in_its_reference(tmp_path, boundary_dtype):
    class Table(nn.Module):
        def __init__(self):
            super().__init__()
            self.table, self.head = nn.Embedding(16, 4), nn.Linear(4, 4)

        def forward(self, ids):
            return self.head(self.table(ids)), ids + 1

    built = {"precision": "fp16", "boundary_dtype": boundary_dtype}
    bag = splitter.build(Table(), tmp_path / "b", inputs={"ids": np.array([[1, 9]])}, **built)
    (report,) = splitter.verify(bag)
    assert report.passed
    assert {check.subject for check in report.checks if check.kind == "precision"} >= {"output_0", "output_1"}


def test_weights_that_are_tied(tmp_path):
    def forward(self, ids):
        return self.head(self.table(ids)), self.table.weight.sum()

    table, head = nn.Embedding(6, 4), nn.Linear(4, 6, bias=False)
    head.weight = table.weight
    _, bundle = built(
        forward, tmp_path, {"ids": np.array([[1, 5]])}, ("logits", "sum"), "coreml", table=table, head=head
    )
    assert bundle.segment("all").parameters == 24


def test_several_tensors_in_one_argument(tmp_path):
    def forward(self, features, state=None):
        return self.a(features[0]) + features[1] * state["h"]

    _, bundle = built(forward, tmp_path, {"features.0": X, "features.1": X + 1, "state.h": X + 2})
    assert bundle.inputs == ("features_0", "features_1", "state_h")


def test_an_input_that_nothing_reads(tmp_path):
    def forward(self, x, unused):
        return self.a(x)

    _, bundle = built(forward, tmp_path, {"x": X, "unused": X})
    assert bundle.tensors["unused"].consumers == ()
    assert set(splitter.Orchestrator(bundle).run({"x": X, "unused": X})) == {"y"}


def test_what_cannot_be_returned_is_said(tmp_path):
    with pytest.raises(CaptureError, match="forward returns no tensor that it computes"):
        built(lambda self, x: x, tmp_path, {"x": X})
    with pytest.raises(CaptureError, match=r"expected 2 names \(for a 1×4 float32, b 1×4 float32\), found 1: y"):
        built(lambda self, x: {"a": self.a(x), "b": self.b(x)}, tmp_path, {"x": X})


def test_tensors_without_an_axis(tmp_path):
    """Packages give each an axis; nobody else sees it."""

    def forward(self, x, gain):
        y = self.a(x) * gain
        return y.mean(), torch.stack([gain, gain]), gain[None, None] + x

    inputs = {"x": X, "gain": np.array(2.0, np.float32)}
    _, bundle = built(forward, tmp_path, inputs, ("mean", "twice", "sum"), "coreml")
    assert (bundle.tensors["gain"].shape, bundle.tensors["mean"].shape) == ((), ())
    results = splitter.Orchestrator(bundle, {"all": "mil"}).run(inputs)
    assert results["mean"].shape == ()
    assert results["twice"].tolist() == [2.0, 2.0]


def test_types_and_values_that_no_golden_has_are_said(tmp_path):
    with pytest.raises(
        PartitionError, match=r"linear crosses a boundary in a type that arrays do not have; got bfloat16"
    ):
        built(lambda self, x: functional.linear(x.bfloat16(), self.a.weight.bfloat16()), tmp_path, {"x": X})
    with pytest.raises(CaptureError, match=r"values in 'y' that are not finite, .*; got 4 of 4 NaN or infinite"):
        built(lambda self, x: self.a(x) / 0, tmp_path, {"x": X})
    with pytest.raises(CaptureError, match="a TorchScript module has no forward in Python"):
        splitter.build(torch.jit.script(nn.ReLU()), tmp_path / "b", inputs={"input": X})
