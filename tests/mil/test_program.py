"""The reader against packages that lie: one near miss for each hazard, and its named error."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from splitter.errors import OperationError, PackageError, SplitterError, UsageError
from splitter.mil import load
from splitter.mil import program as reader
from splitter.mil.coreml_tools import ct

from .harness import mb, package

MODEL, WEIGHTS = "Data/com.apple.CoreML/model.mlmodel", "Data/com.apple.CoreML/weights/weight.bin"
X = np.arange(12, dtype=np.float32).reshape(3, 4)


def net(x):
    y = mb.linear(x=x, weight=np.ones((5, 4), np.float32), name="product")
    z = mb.concat(values=[y, mb.relu(x=y, name="positive")], axis=1, name="joined")
    return mb.cond(
        pred=mb.greater(x=mb.reduce_max(x=z, name="most"), y=0.0),
        _true_fn=lambda: mb.transpose(x=z, perm=[1, 0], name="turned"),
        _false_fn=lambda: mb.transpose(x=mb.square(x=z), perm=[1, 0]),
        name="chosen",
    )


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    return package(net, {"x": X}, tmp_path_factory.mktemp("sound"))


@pytest.fixture
def path(sound, tmp_path):
    shutil.copytree(sound, tmp_path / "op.mlpackage")
    return tmp_path / "op.mlpackage"


class Edited:
    """A package's protobuf, saved on the way out."""

    def __init__(self, path):
        self.path = path

    def __enter__(self):
        self.spec = ct.proto.Model_pb2.Model()
        self.spec.ParseFromString((self.path / MODEL).read_bytes())
        self.function = self.spec.mlProgram.functions["main"]
        self.block = self.function.block_specializations[self.function.opset]
        return self

    def __exit__(self, *_):
        (self.path / MODEL).write_bytes(self.spec.SerializeToString())

    def op(self, name):
        """The operation that gives a value, or the first of a type."""
        found = [one for one in self.block.operations if name in (one.type, *(output.name for output in one.outputs))]
        return found[0]

    def constant(self, operation, parameter):
        return self.op(self.op(operation).inputs[parameter].arguments[0].name)


def refused(path, *words, error=PackageError):
    with pytest.raises(error) as caught:
        load(path).predict({"x": X})
    assert type(caught.value) is error
    for word in words:
        assert word in str(caught.value), str(caught.value)
    return caught.value


def test_sound(path):
    y = X.sum(1, keepdims=True).repeat(5, 1)
    np.testing.assert_allclose(load(path).predict({"x": X})["chosen"], np.concatenate([y, y], 1).T)
    with Edited(path):
        pass
    assert load(path).predict({"x": X})["chosen"].shape == (10, 3)


# --------------------------------------------------------------------------------- package and files


def test_no_directory(tmp_path):
    refused(tmp_path / "none.mlpackage", "none.mlpackage", "no directory")


@pytest.mark.parametrize(
    ("file", "what"), [("Manifest.json", "manifest"), (MODEL, "model file"), (WEIGHTS, "weight file")]
)
def test_missing_file(path, file, what):
    (path / file).unlink()
    refused(path, what, "op.mlpackage", "no file", "save it again")


@pytest.mark.parametrize("file", ["Manifest.json", MODEL, WEIGHTS])
@pytest.mark.parametrize("kind", ["directory", "fifo", "loop", "outside"])
def test_file_of_another_kind(path, file, kind, tmp_path):
    """A named pipe would block for ever; a link may lead anywhere."""
    (path / file).rename(tmp_path / "elsewhere")
    match kind:
        case "directory":
            (path / file).mkdir()
        case "fifo":
            os.mkfifo(path / file)
        case "loop":
            (path / file).symlink_to(path / file)
        case "outside":
            (path / file).symlink_to(tmp_path / "elsewhere")
    refused(path, "op.mlpackage")


def test_links_inside_the_package_and_to_it_are_followed(path, tmp_path):
    (path / WEIGHTS).rename(path / "Data" / "moved")
    (path / WEIGHTS).symlink_to(path / "Data" / "moved")
    (tmp_path / "link.mlpackage").symlink_to(path)
    assert "chosen" in load(tmp_path / "link.mlpackage").predict({"x": X})


def test_directory_outside(path, tmp_path):
    (path / "Data").rename(tmp_path / "elsewhere")
    (path / "Data").symlink_to(tmp_path / "elsewhere")
    refused(path, "model file", "lies outside the package")


@pytest.mark.parametrize(
    "name",
    [
        "../../elsewhere",
        "../elsewhere.bin",
        "/etc/passwd",
        "com.apple.CoreML/../../../op.mlmodel",
        "",
        "x\0y",
        "n" * 5000,
    ],
)
def test_manifest_with_a_path_that_is_none(path, name, tmp_path):
    for outside in ("elsewhere.bin", "op.mlmodel"):
        shutil.copy(path / MODEL, tmp_path / outside)
    manifest = json.loads((path / "Manifest.json").read_text())
    manifest["itemInfoEntries"][manifest["rootModelIdentifier"]]["path"] = name
    (path / "Manifest.json").write_text(json.dumps(manifest))
    refused(path, "model file of op.mlpackage")


@pytest.mark.parametrize(
    "text",
    [
        "", "{", "[]", "null", '"x"', "{}", '{"rootModelIdentifier": 1, "itemInfoEntries": {}}', "\udcff",
        '{"rootModelIdentifier": [], "itemInfoEntries": {}}', '{"rootModelIdentifier": "a", "itemInfoEntries": {"a": {"path": 3}}}',
        '{"rootModelIdentifier": "a", "itemInfoEntries": {"a": "b"}}', "[" * 200_000, "9" * 10_000, " " * (2 << 20),
    ],
    ids=range(14),
)  # fmt: skip
def test_damaged_manifest(path, text):
    (path / "Manifest.json").write_bytes(text.encode("utf-8", "surrogateescape"))
    refused(path, "manifest of op.mlpackage does not name its model")


@pytest.mark.parametrize("cut", [1, 2, 100, -300, -1])
def test_truncated_model(path, cut):
    raw = (path / MODEL).read_bytes()
    (path / MODEL).write_bytes(raw[:cut])
    refused(path, "op.mlpackage")


@pytest.mark.parametrize(
    "raw", [b"\xff" * 999, b"\x0a\xff\xff\xff\xff\x7f", b"PK\x03\x04" * 50], ids=["ones", "length", "zip"]
)
def test_no_protobuf(path, raw):
    (path / MODEL).write_bytes(raw)
    refused(path, "op.mlpackage cannot be read as a Core ML package")


def test_protobuf_nested_deeper_than_it_may_be(path):
    """A type that is a list of a list of a list of …"""
    with Edited(path) as edited:
        inner = edited.function.inputs[0].type
        for _ in range(40):
            inner = inner.listType.type
        inner.tensorType.dataType = 11
    refused(path, "type of 'x'", "listType")
    chain = b""
    for _ in range(5000):  # beyond protobuf's own limit
        chain = b"\x12" + varint(len(chain)) + chain
    (path / MODEL).write_bytes(b"\xb2\x1f" + varint(len(chain)) + chain)
    refused(path, "op.mlpackage")


def varint(number):
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def test_huge_model(path):
    os.truncate(path / MODEL, 1 << 40)  # of holes, which take no space
    refused(path, "more than 2 GiB")


def test_another_kind_of_model(path):
    with Edited(path) as edited:
        edited.spec.neuralNetwork.SetInParent()
    refused(path, "op.mlpackage holds no ML Program", "neuralNetwork", "mlprogram")


# ---------------------------------------------------------------------------------- names and blocks


def test_undefined_name(path):
    with Edited(path) as edited:
        edited.op("product").inputs["x"].arguments[0].name = "nowhere"
    refused(path, "'nowhere'", "'product'", "no earlier operation")


def test_cycle(path):
    with Edited(path) as edited:
        edited.op("product").inputs["x"].arguments[0].name = "positive"
    refused(path, "'positive'", "'product'", "no earlier operation")


def test_operation_that_takes_its_own_result(path):
    with Edited(path) as edited:
        edited.op("positive").inputs["x"].arguments[0].name = "positive"
    refused(path, "argument 'positive'")


def test_name_of_an_inner_block_ends_with_it(path):
    with Edited(path) as edited:
        edited.op("chosen").blocks[1].outputs[0] = "turned"
    refused(path, "output 'turned'", "nothing computes it")


@pytest.mark.parametrize("again", ["x", "product"])
def test_name_twice(path, again):
    with Edited(path) as edited:
        edited.op("joined").outputs[0].name = again
    refused(path, f"value {again!r}", "computed twice")


def test_name_twice_in_one_operation(path):
    with Edited(path) as edited:
        edited.op("joined").outputs.append(edited.op("joined").outputs[0])
    refused(path, "value 'joined'", "computed twice")


@pytest.mark.parametrize("shadow", ["x", "most"])
def test_input_of_a_block_that_hides_a_value(path, shadow):
    with Edited(path) as edited:
        edited.op("chosen").blocks[0].inputs.add().CopyFrom(edited.function.inputs[0])
        edited.op("chosen").blocks[0].inputs[0].name = shadow
    refused(path, f"value {shadow!r}", "computed twice")


def test_input_twice(path):
    with Edited(path) as edited:
        edited.function.inputs.append(edited.function.inputs[0])
    refused(path, "value 'x'", "computed twice")


def test_value_without_a_name(path):
    with Edited(path) as edited:
        edited.op("joined").outputs[0].name = ""
    refused(path, "a value in op.mlpackage", "no name")


def test_output_nothing_computes(path):
    with Edited(path) as edited:
        edited.block.outputs.append("nowhere")
    refused(path, "output 'nowhere'", "nothing computes it")


def test_output_twice(path):
    with Edited(path) as edited:
        edited.block.outputs.append("chosen")
    refused(path, "outputs of function 'main'", "twice")


def test_body_with_inputs_of_its_own(path):
    with Edited(path) as edited:
        edited.block.inputs.add().CopyFrom(edited.function.inputs[0])
        edited.block.inputs[0].name = "another"
    refused(path, "body of function 'main'", "inputs")


@pytest.mark.parametrize("count", [0, 1, 3])
def test_blocks_of_control_flow(path, count):
    with Edited(path) as edited:
        blocks = edited.op("chosen").blocks
        kept = [blocks[0], blocks[1], blocks[1]][:count]
        del blocks[:]
        blocks.extend(kept)
    refused(path, "cond 'chosen'", f"{count} blocks")


def test_deep_nesting(path):
    """Protobuf itself stops at a hundred messages in each other, five for each block here."""
    with Edited(path) as edited:
        inner = edited.op("chosen")
        for level in range(20):
            outer = type(inner)(type="cond", blocks=[ct.proto.MIL_pb2.Block(operations=[inner])])
            outer.outputs.add(name=f"level{level}")
            inner = outer
        edited.block.operations.append(inner)
    refused(path, "op.mlpackage")


def test_nesting_is_limited(path, monkeypatch):
    monkeypatch.setattr(reader, "_MAX_DEPTH", 0)
    refused(path, "nesting of blocks", "more than 0 levels")


@pytest.mark.parametrize("opset", ["", "CoreML4", "7", "iOS17"])
def test_unknown_opset(path, opset):
    with Edited(path) as edited:
        edited.function.opset = opset
    refused(path, "opset of function 'main'", repr(opset))


def test_no_body_for_the_opset(path):
    with Edited(path) as edited:
        edited.function.opset = "CoreML6"
    refused(path, "function 'main'", "CoreML6")


def test_no_function(path):
    with Edited(path) as edited:
        edited.spec.mlProgram.functions.clear()
    refused(path, "holds no function")


def test_default_function_that_is_not_there(path):
    with Edited(path) as edited:
        edited.spec.description.defaultFunctionName = "other"
    refused(path, "other", "It has main", error=UsageError)


# -------------------------------------------------------------------------------- operations, arguments


def test_unknown_operation(path):
    with Edited(path) as edited:
        edited.op("positive").type = "no_such_thing"
    refused(path, "no_such_thing 'positive' of op.mlpackage", error=OperationError)


def test_unknown_parameter(path):
    with Edited(path) as edited:
        edited.op("positive").inputs["slope"].CopyFrom(edited.op("positive").inputs["x"])
    refused(path, "relu 'positive'", "slope", error=OperationError)


def test_missing_parameter(path):
    with Edited(path) as edited:
        del edited.op("product").inputs["weight"]
    refused(path, "linear 'product'", "weight", error=OperationError)


@pytest.mark.parametrize("count", [0, 2])
def test_parameter_with_not_one_argument(path, count):
    with Edited(path) as edited:
        arguments = edited.op("positive").inputs["x"].arguments
        kept = [arguments[0]] * count
        del arguments[:]
        arguments.extend(kept)
    refused(path, "relu 'positive'", "parameter 'x' has one argument", str(count), error=OperationError)


def test_parameter_given_twice(path):
    with Edited(path) as edited:
        product = edited.op("product")
        product.attributes["weight"].CopyFrom(edited.constant("product", "weight").attributes["val"])
    refused(path, "linear 'product'", "'weight' twice")


@pytest.mark.parametrize(
    ("operation", "parameter", "donor"),
    [("joined", "axis", "weight"), ("joined", "interleave", "axis"), ("joined", "values", "text"), ("product", "weight", "text"), ("joined", "axis", "text")],
)  # fmt: skip
def test_argument_of_another_type(path, operation, parameter, donor):
    with Edited(path) as edited:
        text = ct.proto.MIL_pb2.Argument()
        value = text.arguments.add().value
        value.type.tensorType.dataType = 2
        value.immediateValue.tensor.strings.values.append("text")
        where = edited.op(operation).inputs[parameter]
        if donor == "text":
            where.CopyFrom(text)
        else:
            where.arguments[0].name = (
                edited.constant("product" if donor == "weight" else "joined", donor).outputs[0].name
            )
    refused(path, f"{operation!r} of op.mlpackage", error=OperationError)


def test_declared_shape_that_is_not_computed(path):
    with Edited(path) as edited:
        edited.op("product").outputs[0].type.tensorType.dimensions[1].constant.size = 6
    refused(path, "linear 'product'", "fp32[3, 6]", "(3, 5)", error=OperationError)


def test_tensor_declared_a_list(path):
    with Edited(path) as edited:
        kind = edited.op("product").outputs[0].type
        element = type(kind)()
        element.CopyFrom(kind)
        kind.listType.type.CopyFrom(element)
    refused(path, "linear 'product'", "Tensor", error=OperationError)


# --------------------------------------------------------------------------------------- types, values


@pytest.mark.parametrize("size", [-1, 1 << 62, 1 << 40])
@pytest.mark.parametrize("other", [0, 4])
def test_absurd_extents(path, size, other):
    with Edited(path) as edited:
        dimensions = edited.op("product").outputs[0].type.tensorType.dimensions
        dimensions[0].constant.size = size % (1 << 64)  # where -1 is the greatest number
        dimensions[1].constant.size = other
    refused(path, "type of 'product'", "extents")


def test_product_of_extents_that_each_are_moderate(path):
    with Edited(path) as edited:
        for one in edited.op("product").outputs[0].type.tensorType.dimensions:
            one.constant.size = 1 << 20
    refused(path, "type of 'product'", "extents")


def test_ranks(path):
    with Edited(path) as edited:
        edited.op("product").outputs[0].type.tensorType.rank = 3
    refused(path, "type of 'product'", "rank 3 with 2 extents")
    with Edited(path) as edited:
        tensor = edited.op("product").outputs[0].type.tensorType
        tensor.rank = 100_000
        del tensor.dimensions[:]
        for _ in range(tensor.rank):
            tensor.dimensions.add().constant.size = 1
    refused(path, "type of 'product'", "extents")


@pytest.mark.parametrize("number", [0, 3, 99])
def test_unknown_element_type(path, number):
    with Edited(path) as edited:
        edited.op("product").outputs[0].type.tensorType.dataType = number
    refused(path, "type of 'product'", f"element type {number}")


def test_value_without_a_type(path):
    with Edited(path) as edited:
        edited.op("product").outputs[0].type.Clear()
    refused(path, "type of 'product'")


def test_argument_without_a_value(path):
    with Edited(path) as edited:
        edited.op("positive").inputs["x"].arguments[0].Clear()
    refused(path, "'positive'")


def test_constant_of_another_type_than_declared(path):
    with Edited(path) as edited:
        constant = edited.constant("product", "weight")
        constant.outputs[0].type.tensorType.dimensions[0].constant.size = 4
        name = constant.outputs[0].name
    refused(path, f"constant {name!r}", "fp32[5, 4]", "fp32[4, 4]")


def test_constant_without_a_value_or_a_name(path):
    with Edited(path) as edited:
        constant = edited.constant("product", "weight")
        del constant.attributes["val"]
        name = constant.outputs[0].name
    refused(path, f"constant {name!r}", "not one name and one value")
    with Edited(path) as edited:
        block = edited.block
        block.operations.add(type="const")
        del block.operations[:-1]
    refused(path, "constant 'const'")


def test_wrong_number_of_values(path):
    with Edited(path) as edited:
        constant = edited.constant("joined", "axis")
        constant.attributes["val"].immediateValue.tensor.ints.values.append(1)
    refused(path, constant.outputs[0].name, "2 values for int32[]")


@pytest.mark.parametrize("field", ["floats", "bools", "strings", "doubles", "bytes", "tuple", "list", None])
def test_value_of_another_kind(path, field):
    with Edited(path) as edited:
        constant = edited.constant("joined", "axis")
        immediate = constant.attributes["val"].immediateValue
        immediate.Clear()
        match field:
            case "strings":
                immediate.tensor.strings.values.append("1")
            case "bytes":
                immediate.tensor.bytes.values = b"123"
            case "tuple" | "list":
                getattr(immediate, field).values.add()
            case str():
                getattr(immediate.tensor, field).values.append(1)
    refused(path, f"value {constant.outputs[0].name!r}", "int32[]")


@pytest.mark.parametrize(
    "name",
    ["", "weight.bin", "/etc/passwd", "@model_path/../../../../etc/passwd", "@model_path//etc/passwd", "@model_path/", "@model_path/weights", "@model_path/a\0b", "@model_path/" + "n/" * 5000],
)  # fmt: skip
def test_name_of_the_weight_file(path, name):
    with Edited(path) as edited:
        edited.constant("product", "weight").attributes["val"].blobFileValue.fileName = name
    refused(path, "weight file of")


@pytest.mark.parametrize("offset", [0, 1, 63, 65, 1 << 40, (1 << 64) - 1])
def test_offset(path, offset):
    with Edited(path) as edited:
        constant = edited.constant("product", "weight")
        constant.attributes["val"].blobFileValue.offset = offset
    refused(path, "weight.bin", repr(constant.outputs[0].name), f"byte {offset}")


def test_list_in_a_weight_file(path):
    with Edited(path) as edited:
        value = edited.constant("product", "weight").attributes["val"]
        value.type.listType.type.tensorType.dataType = 11
    refused(path, "a list in a weight file")


def test_unknown_extent_of_a_constant(path):
    with Edited(path) as edited:
        value = edited.constant("product", "weight").attributes["val"]
        value.type.tensorType.dimensions[0].unknown.variadic = False
    refused(path, "a constant of type fp32[?, 4]")


def test_state_and_allocation_are_bounded(tmp_path):
    """A state of 32 GiB is refused before it is allocated."""
    path = package(lambda x: mb.relu(x=x), {"x": X}, tmp_path, "iOS18")
    with Edited(path) as edited:
        state = edited.function.inputs.add(name="s").type.stateType.wrappedType.tensorType
        state.dataType, state.rank = 11, 1
        state.dimensions.add().constant.size = 1 << 33
    with pytest.raises(SplitterError, match="too much memory"):
        load(path).make_state()
