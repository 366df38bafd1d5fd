"""Names resolved: producers, readers, constants, bodies."""

import numpy as np

from splitter import mil
from splitter.mil.graph import graph_of
from splitter.mil.program import load_spec, model_file

from .harness import f16, f32, mb, package


def graph(build, inputs, directory, target="iOS17"):
    return graph_of(mil.load(package(build, inputs, directory, target)).function)


def test_producers_readers_and_constants(tmp_path):
    found = graph(lambda x: mb.add(x=mb.relu(x=x), y=np.float32(2)), {"x": f32(1, 8)}, tmp_path)
    relu, add = found.nodes
    (x,) = found.inputs
    assert (x.shape, x.dtype, x.bytes, x.producer, x.fixed) == ((1, 8), "fp32", 32, None, False)
    assert found.readers[x] == [relu]
    assert found.readers[relu.outputs[0]] == [add]
    assert add.value("x").producer is relu
    assert add.value("y").fixed
    assert add.numbers("y") == [2.0]
    assert add.data == (relu.outputs[0],)
    assert found.outputs == add.outputs


def test_arguments_written_in_place_are_constants(tmp_path):
    """A package may hold a number where others name a constant."""
    path = package(lambda x: mb.add(x=x, y=np.float32([2, 3])), {"x": f32(1, 2)}, tmp_path)
    spec = load_spec(path)
    (block,) = spec.mlProgram.functions["main"].block_specializations.values()
    constant = next(one for one in block.operations if one.type == "const" and one.outputs[0].name.endswith("y_0"))
    add = next(one for one in block.operations if one.type == "add")
    add.inputs["y"].arguments[0].value.CopyFrom(constant.attributes["val"])
    model_file(path).write_bytes(spec.SerializeToString())
    (node,) = graph_of(mil.load(path).function).nodes
    value = node.value("y")
    assert (value.name, value.shape, value.dtype, value.fixed) == ("", (2,), "fp32", True)
    assert node.numbers("y") == [2.0, 3.0]
    assert node.data == (node.value("x"),)


def test_bodies_are_flattened_and_belong_to_their_operation(tmp_path):
    def build(x):
        chosen = mb.less(x=mb.reduce_max(x=x, keep_dims=False), y=np.float32(0))
        return mb.cond(pred=chosen, _true_fn=lambda: mb.relu(x=x), _false_fn=lambda: mb.exp(x=x))

    found = graph(build, {"x": f32(1, 8)}, tmp_path)
    cond = next(node for node in found.nodes if node.type == "cond")
    assert [value.producer.type for value in cond.inner] == ["relu", "exp"]
    assert found.nodes.index(cond.inner[0].producer) < found.nodes.index(cond)
    assert {value.producer.type for value in found.reaching() if value.producer} == {
        *("reduce_max", "less", "relu", "exp", "cond"),
    }


def test_decompressed_weights_are_no_operations(tmp_path):
    def build(x):
        weight = mb.constexpr_affine_dequantize(
            quantized_data=np.ones((4, 8), np.int8), zero_point=np.int8(0), scale=np.float16(1), axis=0
        )
        return mb.linear(x=x, weight=weight)

    found = graph(build, {"x": f16(1, 8)}, tmp_path)
    assert [node.type for node in found.nodes] == ["linear"]
    assert [node.type for node in found.weights] == ["constexpr_affine_dequantize"]
    assert found.nodes[0].value("weight").fixed
    assert found.nodes[0].value("weight").shape == (4, 8)


def test_open_axes_count_as_one(flexible_package):
    (x,) = graph_of(mil.load(flexible_package).function).inputs
    assert (x.shape, x.extents) == ((1, None), (1, 1))
