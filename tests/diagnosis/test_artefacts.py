"""What converters leave behind, and constants and values that only look like it."""

import numpy as np
import pytest

from splitter.mil import load
from splitter.mil.coreml_tools import ct, quiet_and_quick

from ..mil.harness import types
from .harness import Case, f32, findings, mb, package


def batch_norm(mean=0.0, variance=1.0, epsilon=1e-5):
    return lambda x: mb.batch_norm(
        x=x,
        mean=f32(4, value=mean),
        variance=f32(4, value=variance),
        gamma=f32(4, value=3),
        epsilon=np.float32(epsilon),
    )


ROW = np.arange(1024, dtype=np.float32)
REPEATED = np.tile(ROW, (64, 1))
DISTINCT = REPEATED + np.eye(64, 1024, dtype=np.float32)


def added(constant):
    return lambda x: mb.add(x=x, y=constant)


def forgotten(x):
    mb.square(x=x)
    return mb.relu(x=x)


def unread(x):
    mb.const(val=np.float32(3), name="left_over")
    return mb.relu(x=x)


def settled(x):
    return mb.relu(x=x), mb.exp(x=np.ones(4, np.float32))


def drawn(x):
    return mb.relu(x=x), mb.random_normal(shape=[4], seed=1)


IMAGE, MATRIX, X = {"x": f32(1, 4, 8, 8)}, {"x": f32(64, 1024)}, {"x": f32(1, 8)}


def weighted(weight):
    return lambda x: mb.linear(x=x, weight=mb.const(val=weight))


# What Core ML Tools left of a layer's weights (PR#2777): each row divided by its peak.
PEAKED = np.random.default_rng(0).normal(size=(120, 1024)).astype(np.float32)
PEAKED /= np.abs(PEAKED).max(1, keepdims=True)
CASES = [
    Case("artefact-batch-norm", batch_norm(), IMAGE, ["batch_norm"]),
    Case("artefact-batch-norm", batch_norm(epsilon=0), IMAGE),
    Case("artefact-batch-norm", batch_norm(variance=1.01), IMAGE),
    Case("artefact-batch-norm", batch_norm(mean=0.01), IMAGE),
    Case("artefact-broadcast", added(REPEATED), MATRIX, [""]),
    Case("artefact-broadcast", added(DISTINCT), MATRIX),
    Case("artefact-broadcast", added(ROW[None]), MATRIX),
    Case("artefact-broadcast", added(np.tile(ROW, (8, 1))), {"x": f32(8, 1024)}),
    Case("artefact-broadcast", lambda x: mb.linear(x=x, weight=REPEATED), MATRIX),
    Case("artefact-divided-weight", weighted(PEAKED), MATRIX, [""]),
    Case("artefact-divided-weight", weighted(PEAKED.T.copy()), {"x": f32(8, 120)}, [""]),
    Case("artefact-divided-weight", weighted(1.5 * PEAKED), MATRIX),
    Case("artefact-divided-weight", weighted(np.eye(1024, dtype=np.float32)), MATRIX),
    Case("artefact-divided-weight", added(PEAKED[:8]), {"x": f32(8, 1024)}),
    Case("artefact-dead", forgotten, X, ["square"]),
    Case("artefact-dead", unread, X, [""]),
    Case("artefact-dead", lambda x: mb.relu(x=mb.square(x=x)), X),
    Case("artefact-constant-output", settled, X, [""]),
    Case("artefact-constant-output", drawn, X),
    Case("artefact-constant-output", lambda x: (mb.relu(x=x), mb.exp(x=x)), X),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.rule)
def test_rule(case, tmp_path):
    case.check(tmp_path)


def test_gain_that_is_told_is_the_gain_there_is(tmp_path):
    path = package(batch_norm(), IMAGE, tmp_path)
    (result,) = load(path).predict(IMAGE).values()
    (found,) = findings(path, "artefact-batch-norm")
    assert f"gain {result[0, 0, 0, 0] / 3:.7f}" in found.what


def test_what_a_repeated_constant_costs(tmp_path):
    (found,) = findings(package(added(REPEATED), MATRIX, tmp_path), "artefact-broadcast")
    assert found.what == "64×1024 repeats 1×1024: 262.1 kB for 4.1 kB"


def test_what_goes_into_a_state_is_not_dead(tmp_path):
    specs = [mb.TensorSpec((2,)), mb.StateTensorSpec((2,), dtype=types.fp16)]

    @mb.program(input_specs=specs, opset_version=ct.target.iOS18)
    def program(x, kept):
        mb.coreml_update_state(state=kept, value=mb.cast(x=mb.square(x=x), dtype="fp16"))
        return mb.relu(x=x)

    with quiet_and_quick():
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=ct.target.iOS18,
            compute_precision=ct.precision.FLOAT32,
            skip_model_load=True,
        )
    model.save(str(tmp_path / "state.mlpackage"))
    assert "write_state" in load(tmp_path / "state.mlpackage").spec.operations
    assert {one.operation for one in findings(tmp_path / "state.mlpackage", "artefact-dead")} <= {"read_state"}
