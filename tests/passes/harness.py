"""Small programs with one input, and packages of them."""

from __future__ import annotations

import torch
from torch import nn

from splitter import lowering, mil, passes
from splitter.boundary import TensorSpec
from splitter.graph.capture import capture
from splitter.graph.shapes import TensorType
from splitter.partition import Segment
from splitter.plan import schema as plans
from splitter.plan.schema import Plan, Stage

from ..conftest import snr_db

_STAGE = Stage(name="piece", target="coreml")
_PLAN = Plan(family="piece", outputs=("y",), stages=(_STAGE,))


def captured(forward, x, **members):
    """Program of a module with these buffers, parameters and submodules, and the example it was captured with."""

    class Module(nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in members.items():
                if isinstance(value, nn.Module):
                    self.add_module(name, value)
                else:
                    self.register_buffer(name, value)

    Module.forward = forward
    return capture(Module().eval(), {"x": x}, ("y",)), {"x": x}


def targets(program):
    return [str(node.target).removeprefix("aten.") for node in program.operators]


def moved_db(before, after, example):
    """How near a rewritten program's output is to what it was."""
    return snr_db(*(program.run(example)["y"].numpy() for program in (before, after)))


def types_hold(program, example):
    """Every operator's value is of the type its node declares."""
    seen = []
    program.run(example, lambda node, value: seen.append(node.meta["type"] == TensorType.of(value)))
    return bool(seen) and all(seen)


def predicted(program, x, directory, precision="fp16", accumulators="fp32", listener=None):
    """What the program's package gives for an input."""
    plan = plans.changed(_PLAN, precision=precision, deployment_target="iOS17")
    shape = program.output_nodes[0].meta["type"].shape
    segment = Segment(
        name="piece",
        stage=_STAGE,
        program=program,
        inputs=(TensorSpec(name="x", shape=tuple(x.shape), dtype="float32", producer="input", consumers=("piece",)),),
        outputs=(TensorSpec(name="y", shape=shape, dtype="float32", producer="piece", consumers=("output",)),),
    )
    lowering.target("coreml").lower(segment, plan, {}, directory)
    model = mil.load(
        directory / "piece.mlpackage", numerics=mil.Numerics(accumulators=mil.AccumulatorType(accumulators))
    )
    return torch.from_numpy(model.predict({"x": x.numpy()}, listener=listener)["y"])


def applied(text, program, example):
    """The rewritten program, checked against what it was, and the number of places changed."""
    rewriting = passes.apply(text, program, example)
    return rewriting.program, rewriting.changes
