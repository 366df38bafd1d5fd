"""Programs in mixed precision, and parts of programs."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from splitter import mil
from splitter.bundle.directory import file_records
from splitter.bundle.files import Files
from splitter.bundle.manifest import Artifact, SegmentRecord
from splitter.errors import LoweringError
from splitter.lowering.coreml import CoreMLTarget
from splitter.mil.interpreter import Interpreter
from splitter.mil.mixing import can_be_half, in_half, roundtrip_fp16
from splitter.mil.slicing import part
from splitter.plan import schema as plans

from ..toys import HYBRID_PLAN, Hybrid, cut


@pytest.fixture(scope="module")
def transformer(tmp_path_factory):
    """The middle of the toy as an fp32 package, its segment, and what goes in."""
    segments, values = cut(Hybrid(), HYBRID_PLAN)
    segment = segments["transformer"]
    directory = tmp_path_factory.mktemp("fp32")
    CoreMLTarget().lower(segment, HYBRID_PLAN, values, directory)
    return mil.load(directory / "transformer.mlpackage"), segment, {s.name: values[s.name] for s in segment.inputs}


def record(segment):
    inputs, outputs = ([spec.name for spec in one] for one in (segment.inputs, segment.outputs))
    artifact = Artifact(target="coreml", path=f"{segment.name}.mlpackage")
    return SegmentRecord(name=segment.name, stage=segment.name, program="graph/segment.json", inputs=inputs, outputs=outputs,
                         operators=0, parameters=0, passes={}, artifact=artifact)  # fmt: skip


def specs(segment):
    return {spec.name: spec for spec in segment.inputs + segment.outputs}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.7])
@pytest.mark.parametrize("seed", [0, 1])
def test_mixed_program_is_the_converters_own_bit_for_bit(transformer, tmp_path, share, seed):
    model, segment, given = transformer
    names = [one.name for one in can_be_half(model.function)]
    shuffled = np.random.default_rng(seed).permutation(names).tolist()
    kept = set(shuffled[: round(share * len(names))])
    plan = plans.changed(HYBRID_PLAN, precision="fp16", fp32_operations={"transformer": tuple(sorted(kept))})
    CoreMLTarget().lower(segment, plan, {}, tmp_path)
    built = mil.load(tmp_path / "transformer.mlpackage")
    simulated = model.variant(in_half(model.function, set(names) - kept)).predict(given)
    exact = model.predict(given)
    for name, array in built.predict(given).items():
        np.testing.assert_array_equal(simulated[name], array)
        assert not np.array_equal(exact[name], array)
    assert built.spec.user_defined["io.github.splitter.precision"] == ("mixed" if kept else "fp16")


class Guarded(Hybrid):
    """Divides by what is zero but for an epsilon that half precision cannot hold."""

    def __init__(self):
        super().__init__()
        self.mix = nn.Module()
        self.mix.forward = lambda x: x / (x.abs() + 1e-9)


def test_small_epsilon_does_not_vanish(tmp_path):
    segments, values = cut(Guarded(), HYBRID_PLAN)
    segment = segments["transformer"]
    given = {one.name: np.zeros_like(values[one.name]) for one in segment.inputs}
    results = []
    for precision in ("fp32", "fp16"):
        plan = plans.changed(HYBRID_PLAN, precision=precision)
        CoreMLTarget().lower(segment, plan, {}, tmp_path / precision)
        model = mil.load(tmp_path / precision / "transformer.mlpackage")
        if precision == "fp32":
            model = model.variant(in_half(model.function, {one.name for one in can_be_half(model.function)}))
        results.append(model.predict(given))
    simulated, built = results
    for name, array in built.items():
        assert np.isfinite(array).all()
        np.testing.assert_array_equal(simulated[name], array)


def test_kept_operation_may_give_an_output_in_half(transformer, tmp_path):
    model, segment, given = transformer
    (output,) = model.function.block.outputs
    halves = {
        side: tuple(spec.model_copy(update={"dtype": "float16"}) for spec in getattr(segment, side))
        for side in ("inputs", "outputs")
    }
    kept = {"transformer": (output,)}
    plan = plans.changed(HYBRID_PLAN, precision="fp16", boundary_dtype="fp16", fp32_operations=kept)
    CoreMLTarget().lower(replace(segment, **halves), plan, {}, tmp_path)
    built = mil.load(tmp_path / "transformer.mlpackage")
    names = {one.name for one in can_be_half(model.function)} - {output}
    half = {name: array.astype(np.float16) for name, array in given.items()}
    simulated = model.variant(in_half(model.function, names)).predict(half)
    np.testing.assert_array_equal(built.predict(half)[output], simulated[output].astype(np.float16))


def test_operation_that_is_not_there_cannot_be_kept(transformer, tmp_path):
    _, segment, _ = transformer
    plan = plans.changed(HYBRID_PLAN, precision="fp16", fp32_operations={"transformer": ("softmax_99",)})
    with pytest.raises(LoweringError, match="softmax_99 do not compute in fp32"):
        CoreMLTarget().lower(segment, plan, {}, tmp_path)


def test_operation_not_asked_for_is_found_in_fp32(transformer, tmp_path):
    model, segment, _ = transformer
    first, second, *_ = (one.name for one in can_be_half(model.function))
    plan = plans.changed(HYBRID_PLAN, precision="fp16", fp32_operations={"transformer": (first, second)})
    CoreMLTarget().lower(segment, plan, {}, tmp_path)
    asked = plans.changed(plan, fp32_operations={"transformer": (first,)})
    findings = CoreMLTarget().audit(record(segment), specs(segment), asked, Files(tmp_path, file_records(tmp_path)))
    assert len(findings) == 1
    assert second in findings[0]


def test_one_value_passes_through_half_for_all_its_readers(transformer):
    model, _, given = transformer
    name = next(one.name for one in model.operations if one.type == "layer_norm")
    seen: dict[str, torch.Tensor] = {}

    class Listen:
        def before(self, operation, inputs): ...

        def after(self, operation, outputs):
            seen.update({one: value.clone() for one, value in outputs.items()})

    model.variant(roundtrip_fp16(model.function, {name})).predict(given, listener=Listen())
    assert torch.equal(seen[name], seen[f"{name}_exact"].half().float())
    assert not torch.equal(seen[name], seen[f"{name}_exact"])


def test_input_and_constant_pass_through_half(transformer):
    model, _, given = transformer
    (name,) = given
    rounded = model.predict({name: given[name].astype(np.float16).astype(np.float32)})
    result = model.variant(roundtrip_fp16(model.function, {name})).predict(given)
    assert all(np.array_equal(rounded[key], result[key]) for key in rounded)
    constant = next(one.name for one in model.operations if one.type == "const" and one.name.endswith("weight"))
    exact = model.predict(given)
    disturbed = model.variant(roundtrip_fp16(model.function, {constant})).predict(given)
    assert all(not np.array_equal(exact[key], disturbed[key]) for key in exact)


def test_parts_one_behind_the_other_are_the_whole(transformer):
    model, _, given = transformer
    total = len(model.operations)
    first = next(index for index, one in enumerate(model.operations) if one.type != "const")
    expected = model.predict(given)
    for middle in range(first, total, 5):
        head = part(model.function, 0, middle)
        values = Interpreter(head, "head", mil.Numerics(), max_iterations=1).run(
            {key: torch.from_numpy(array) for key, array in given.items()}, {}, generator=torch.Generator()
        )
        tail = part(model.function, middle, total)
        assert [one.name for one in tail.inputs] == list(values)
        results = Interpreter(tail, "tail", mil.Numerics(), max_iterations=1).run(
            values, {}, generator=torch.Generator()
        )
        assert all(np.array_equal(results[key].numpy(), expected[key]) for key in expected)
