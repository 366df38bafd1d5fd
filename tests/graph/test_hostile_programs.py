"""Programs by somebody who means harm: each is refused before anything of it is computed, by the node at fault."""

import json
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from splitter import limits
from splitter.bundle.directory import Bundle
from splitter.errors import BundleError, CaptureError
from splitter.graph import admission
from splitter.graph import program as programs
from splitter.graph.capture import capture
from splitter.graph.weights import Weights

from ..sealing import reseal

WEIGHTS = {"w": torch.rand(4, 4), "i": torch.tensor([0, 1, 9]), "table": torch.rand(3, 2)}


def node(name, op, *args, shape=(4, 4), dtype="float32", **more):
    """An operator's entry; strings that begin with ``%`` are values of other nodes."""

    def encoded(value):
        if isinstance(value, list):
            return [encoded(item) for item in value]
        return {"node": value[1:]} if isinstance(value, str) and value.startswith("%") else value

    entry = {"name": name, "op": op, "args": [encoded(arg) for arg in args], **more}
    return entry | ({"shape": list(shape), "dtype": dtype} if shape is not None else {})


def weight(name, shape, dtype="float32", **more):
    return {"name": name, "op": "weight", "target": name, "shape": list(shape), "dtype": dtype, **more}


X = {"name": "x", "op": "input", "target": "x", "shape": [4, 4], "dtype": "float32"}
W, INDEX, TABLE = weight("w", (4, 4)), weight("i", (3,), "int64"), weight("table", (3, 2))


def program(*nodes, outputs=None):
    outputs = {"y": (X, *nodes)[-1]["name"]} if outputs is None else outputs
    return {"format": programs.FORMAT, "name": "p", "nodes": [X, W, *nodes], "outputs": outputs}


@dataclass(frozen=True)
class Hostile:
    name: str
    content: dict
    message: str


def _operators(kind, names):
    for name in names:
        yield Hostile(
            f"{kind} {name}",
            program(node("y", name, "%x")),
            r"node 'y' uses the operator .*, which a saved program may not",
        )


FORBIDDEN = [*_operators("forbidden", (
    "aten._sparse_coo_tensor_unsafe.default", "aten._to_dense.default", "aten.segment_reduce.default",
    "aten._print.default", "aten.from_file.default", "aten.to_mkldnn.default", "aten.empty.memory_format",
    "aten.as_strided.default", "aten.rand.default", "aten.bernoulli.default", "aten.nonzero.default",
    "aten._unsafe_view.default", "aten._unsafe_index.Tensor", "aten.quantize_per_tensor.default",
    "aten.native_batch_norm.default", "aten.item.default", "aten.add_.Tensor", "aten.add.out", "aten.view.dtype",
    "aten.set_.source_Storage", "aten.resize.default", "aten.embedding_bag.default", "aten._fft_c2r.default",
    "aten.lstm.data", "aten.relu_.default", "aten.max_unpool2d.default", "aten._local_scalar_dense.default",
))]  # fmt: skip

TORCHSCRIPT = [*_operators("TorchScript", (
    "aten.append.t", "aten.len.t", "aten.format.default", "aten.percentFormat.default", "aten.warn.default",
    "aten.__getitem__.t", "aten.ord.default", "aten.str.default", "aten.dict.default", "aten.sorted.str",
    "aten.list.t", "aten.save.default", "aten.get.str", "prim.Print.default", "prims.add.default",
    "quantized.add.default", "aten.__class__.mro", "aten.add", "add.Tensor", "aten.add.Tensor.x", "", "getattr",
    "__import__('os').system", "aten.add.__class__",
))]  # fmt: skip

_ARGUMENTS = {
    "a number for a tensor": node("y", "aten.matmul.default", "%x", 1),
    "a text for a tensor": node("y", "aten.add.Tensor", "%x", "1"),
    "a list for a tensor": node("y", "aten.add.Tensor", "%x", ["%x"]),
    "a tensor for a number": node("y", "aten.add.Scalar", "%x", "%x"),
    "a tensor for an axis": node("y", "aten.select.int", "%x", "%x", 0, shape=(4,)),
    "a float for an axis": node("y", "aten.select.int", "%x", 0.0, 0, shape=(4,)),
    "a truth for an axis": node("y", "aten.select.int", "%x", True, 0, shape=(4,)),
    "a number for a truth": node("y", "aten.cumsum.default", "%x", 0, kwargs={"dtype": 6}),
    "a number for a list": node("y", "aten.permute.default", "%x", 1),
    "nothing for a tensor": node("y", "aten.add.Tensor", "%x", None),
    "too few": node("y", "aten.add.Tensor", "%x"),
    "too many": node("y", "aten.relu.default", "%x", "%x"),
    "an unknown name": node("y", "aten.relu.default", "%x", kwargs={"out": {"node": "x"}}),
    "one twice": node("y", "aten.relu.default", "%x", kwargs={"self": {"node": "x"}}),
    "an integer beyond 64 bits": node("y", "aten.select.int", "%x", 0, 2**64, shape=(4,)),
    "an integer no axis has": node("y", "aten.unfold.default", "%x", 0, 2**40, 1),
    "an empty picture": node("y", "aten.pixel_unshuffle.default", "%e", 2, shape=(20, 1, 0)),
    "an integer no model has": node("y", "aten.roll.default", "%x", [2**40], [0]),
    "a step that is not counted": node("y", "aten.arange.start_step", 3, -1, -(2**62), shape=(1,), dtype="int64"),
    "an end beyond 64 bits": node("y", "aten.slice.Tensor", "%x", 0, 0, -(2**70)),
    "a list of too few": node("y", "aten.max_pool2d.default", "%x", [2]),
    "nested lists": node("y", "aten.permute.default", "%x", [[1, 0]]),
    "deeply nested lists": node("y", "aten.permute.default", "%x", json.loads("[" * 50 + "]" * 50)),
    "a text with an escape": node("y", "aten.einsum.default", "\x1b[2J", ["%x"]),
    "another device": node("y", "aten.ones.default", [4, 4], kwargs={"device": {"cuda": 0}}),
    "pinned memory": node("y", "aten.ones.default", [4, 4], kwargs={"pin_memory": True}),
    "values dropped at random": node("y", "aten.dropout.default", "%x", 0.5, True),
    "an unknown wrapper": node("y", "aten.relu.default", "%x", kwargs={"x": {"pickle": "cos\nsystem"}}),
}
ARGUMENTS = [
    Hostile(
        f"argument: {name}",
        program(node("e", "aten.zeros.default", [5, 2, 0], shape=(5, 2, 0)), entry),
        r"node 'y' (\(|has |lacks |is malformed)",
    )
    for name, entry in _ARGUMENTS.items()
]

_LIES = {
    "a larger sum": node("y", "aten.add.Tensor", "%x", "%x", shape=(4, 5)),
    "a smaller constant": node("y", "aten.ones.default", [1 << 20], shape=(1,)),
    "another dtype": node("y", "aten.relu.default", "%x", dtype="float64"),
    "an integer dtype": node("y", "aten.relu.default", "%x", dtype="int64"),
    "an unknown dtype": node("y", "aten.relu.default", "%x", dtype="float8_e4m3fn"),
    "no type": node("y", "aten.relu.default", "%x", shape=None),
    "a negative extent": node("y", "aten.relu.default", "%x", shape=(4, -4)),
    "a fractional extent": node("y", "aten.relu.default", "%x", shape=(4, 4.0)),
    "a true extent": node("y", "aten.sum.dim_IntList", "%x", [1], True, shape=(4, True)),
    "an expanded scalar": node("y", "aten.expand.default", "%x", [4, 4], shape=(1 << 20,)),
    "a product": node("y", "aten.matmul.default", "%x", "%w", shape=(4, 3)),
    "a transposed shape": node("y", "aten.slice.Tensor", "%x", 0, 0, 2, shape=(4, 2)),
    "a tuple as a tensor": node("y", "aten.split.Tensor", "%x", 2, shape=(2, 4)),
    "a reshape to more": node("y", "aten.view.default", "%x", [5, 4], shape=(5, 4)),
    "too many axes": node("y", "aten.view.default", "%x", [1] * 20 + [16], shape=[1] * 20 + [16]),
    "a complex view": node("y", "aten.view_as_complex.default", "%x", shape=(4, 2), dtype="complex64"),
}
LIES = [
    Hostile(f"type: {name}", program(entry), r"node 'y' (does not|has |needs |is malformed)")
    for name, entry in _LIES.items()
]
LIES += [
    Hostile(
        "type: a weight of another shape", program(weight("table", (4, 5))), "node 'table' is a weight of another type"
    ),
    Hostile(
        "type: a weight of another dtype", program(weight("i", (3,), "int32")), "node 'i' is a weight of another type"
    ),
    Hostile(
        "type: a weight that is not there", program(weight("v", (3,))), "node 'v' is a weight that the bundle lacks"
    ),
    Hostile("type: integers with gradients", program(INDEX | {"requires_grad": True}), "node 'i' is malformed"),
    Hostile(
        "type: an input without one", program({"name": "z", "op": "input", "target": "z"}), "node 'z' has no shape"
    ),
]

_INDICES = {
    "an axis": node("y", "aten.select.int", "%x", 2, 0, shape=(4,)),
    "a negative axis": node("y", "aten.select.int", "%x", -3, 0, shape=(4,)),
    "a row": node("y", "aten.select.int", "%x", 0, 4, shape=(4,)),
    "a negative row": node("y", "aten.select.int", "%x", 0, -5, shape=(4,)),
    "rows": node("y", "aten.narrow.default", "%x", 0, 3, 2, shape=(2, 4)),
    "a window": node("y", "aten.unfold.default", "%x", 0, 5, 1, shape=(1, 4, 5)),
    "a window's step": node("y", "aten.unfold.default", "%x", 0, 2, 0),
    "a permutation": node("y", "aten.permute.default", "%x", [0, 2]),
    "an axis twice": node("y", "aten.permute.default", "%x", [0, 0]),
    "extents": node("y", "aten.split_with_sizes.default", "%x", [2, 3], shape=None),
    "a step back": node("y", "aten.slice.Tensor", "%x", 0, 0, 4, -1),
    "a part written": node("y", "aten.slice_scatter.default", "%x", "%w", 0, 2, 4),
    "the best of too many": node("y", "aten.topk.default", "%x", 5, shape=None),
    "mirrored beyond": node("y", "aten.pad.default", "%x", [4, 4], "reflect", shape=(4, 12)),
    "an item of a tensor": node("y", "getitem", "%x", 0, shape=(4,)),
}
INDICES = [
    Hostile(f"index: {name}", program(entry), r"node 'y' (has arguments|takes|does not)")
    for name, entry in _INDICES.items()
] + [
    Hostile(f"index: item {index!r} of two",
            program(node("s", "aten.split.Tensor", "%x", 2, shape=None), node("y", "getitem", "%s", index, shape=(2, 4))),
            "node 'y' takes")
    for index in (2, -1, 10**30, True, "0")
]  # fmt: skip


def _chain(count):
    return [node(f"n{at}", "aten.relu.default", f"%n{at - 1}" if at else "%x") for at in range(count)]


_G = 1 << 30
_SIZES = {
    "ones(2^30)": [node("y", "aten.ones.default", [_G], shape=(_G,))],
    "ones(2^40)": [node("y", "aten.ones.default", [1 << 40], shape=(1 << 40,))],
    "ones(2^62)": [node("y", "aten.ones.default", [1 << 62], shape=(1 << 62,))],
    "arange": [node("y", "aten.arange.default", 1e12, shape=(10**12,))],
    "linspace": [node("y", "aten.linspace.default", 0, 1, 2**31, shape=(2**31,))],
    "eye": [node("y", "aten.eye.default", 2**17, shape=(2**17, 2**17))],
    "repeat": [node("y", "aten.repeat.default", "%x", [2**15, 2**15], shape=(2**17, 2**17))],
    "pad": [node("y", "aten.pad.default", "%x", [0, 2**30], shape=(4, 2**30 + 4))],
    "window": [node("y", "aten.hann_window.default", 2**30, shape=(2**30,))],
    "upsampling": [node("v", "aten.view.default", "%x", [1, 4, 4], shape=(1, 4, 4)),
                   node("y", "aten.upsample_nearest1d.vec", "%v", [2**30], None, shape=(1, 4, 2**30))],
    "many at once": [*(node(f"a{at}", "aten.ones.default", [1 << 25], shape=(1 << 25,)) for at in range(9)),
                     node("y", "aten.cat.default", [f"%a{at}" for at in range(9)], shape=(9 << 25,))],
    "a table of attention": [node("q", "aten.ones.default", [1, 1, 2**16, 1], shape=(1, 1, 2**16, 1)),
                             node("y", "aten.scaled_dot_product_attention.default", "%q", "%q", "%q",
                                  shape=(1, 1, 2**16, 1))],
    "columns of a convolution": [node("v", "aten.ones.default", [1, 1, 2**16], shape=(1, 1, 2**16)),
                                 node("k", "aten.ones.default", [1, 1, 2**15], shape=(1, 1, 2**15)),
                                 node("y", "aten.conv1d.default", "%v", "%k", None, [1], [0], shape=(1, 1, 2**15 + 1))],
}  # fmt: skip
SIZES = [
    Hostile(f"size: {name}", program(*nodes), r"node '\w+' (needs too much memory|has |does not)")
    for name, nodes in _SIZES.items()
]

_NAMES = (
    "",
    "x = __import__('os')",
    "a b",
    "1x",
    "a.b",
    "lambda",
    "None",
    "a-b",
    "x\n",
    "\x1b[31mred",
    "a" * 2000,
    5,
    None,
    ["x"],
)
NAMES = [
    *(Hostile(f"name: operator {name!r:.40}", program(node(name, "aten.relu.default", "%x")), "is not a name") for name in _NAMES),
    *(Hostile(f"name: keyword {name!r:.40}", program(node("y", "aten.relu.default", "%x", kwargs={str(name): 1})),
              "node 'y' (is malformed|has an argument)") for name in _NAMES),
    *(Hostile(f"name: input {name!r:.40}",
              {**program(), "nodes": [X | {"target": name}], "outputs": {"y": "x"}}, "node 'x' is malformed")
      for name in (*_NAMES, "self", "torch", "device", "nan")),
    *(Hostile(f"name: weight {name!r:.40}",
              {**program(), "nodes": [X, W | {"target": name}], "outputs": {"y": "x"}}, "node 'w' is (malformed|a weight)")
      for name in _NAMES),
    *(Hostile(f"name: output {name!r:.40}", program(node("y", "aten.relu.default", "%x"), outputs={str(name): "y"}),
              "is not a name") for name in _NAMES[:10]),
    Hostile("name: two of one", program(node("x", "aten.relu.default", "%x")), "node 'x' is there twice"),
    Hostile("name: two inputs of one", program(X | {"name": "z"}), "node 'z' is malformed"),
    Hostile("name: module", program(node("y", "aten.relu.default", "%x", module="\x1b]0;x\x07")), "node 'y' is malformed"),
]  # fmt: skip

OUTPUTS = [
    Hostile(f"output: {name!r:.40}", program(node("y", "aten.relu.default", "%x"), outputs={"y": name}),
            r"node .* is an output and not there|no saved program")
    for name in ("nothing", "", "X", "relu", "y ", "y.0", "y\n", "output", 0, None, ["y"], {"node": "y"})
] + [
    Hostile("output: a tuple", program(node("s", "aten.split.Tensor", "%x", 2, shape=None)), "node 's' is an output and no"),
    Hostile("output: a list of them", program() | {"outputs": ["x"]}, "no saved program"),
]  # fmt: skip


def _referring(*pairs):
    return program(*(node(name, "aten.neg.default", f"%{source}") for name, source in pairs))


FORWARD = [
    Hostile("forward: itself", _referring(("y", "y")), "node 'y' is malformed.*not computed before"),
    Hostile("forward: nothing", _referring(("y", "never")), "node 'y' is malformed.*not computed before"),
    Hostile("forward: an empty name", _referring(("y", "")), "node 'y' is malformed.*not computed before"),
    *(Hostile(f"forward: a cycle of {count}",
              _referring(*((f"n{at}", f"n{(at + 1) % count}") for at in range(count))),
              "node 'n0' is malformed.*not computed before") for count in range(2, 8)),
    Hostile("forward: in a list", program(node("y", "aten.cat.default", ["%x", "%z"]), node("z", "aten.neg.default", "%x")),
            "node 'y' is malformed"),
    Hostile("forward: in a keyword", program(node("y", "aten.add.Tensor", "%x", kwargs={"other": {"node": "z"}})),
            "node 'y' is malformed"),
    Hostile("forward: a list as a name", program(node("y", "aten.neg.default") | {"args": [{"node": ["x"]}]}),
            "node 'y' is malformed"),
]  # fmt: skip

FAMILIES = {"forbidden": FORBIDDEN, "TorchScript": TORCHSCRIPT, "arguments": ARGUMENTS, "types": LIES, "indices": INDICES,
            "sizes": SIZES, "names": NAMES, "outputs": OUTPUTS, "forward": FORWARD}  # fmt: skip
EVERY = [hostile for family in FAMILIES.values() for hostile in family]


def saved(content, directory: Path):
    save_file(WEIGHTS, directory / "w.safetensors")
    (directory / "p.json").write_text(json.dumps(content))
    return directory / "p.json", Weights(directory / "w.safetensors")


def test_every_family_has_variants():
    assert all(len(family) >= 10 for family in FAMILIES.values()), {
        name: len(family) for name, family in FAMILIES.items()
    }
    assert len({hostile.name for hostile in EVERY}) == len(EVERY)


def test_what_the_variants_are_made_of_is_admitted(tmp_path):
    """So that each is refused for what is wrong with it."""
    content = program(INDEX, TABLE, node("r", "aten.relu.default", "%x"), node("y", "aten.matmul.default", "%r", "%w"))
    loaded = programs.load(*saved(content, tmp_path))
    x = torch.rand(4, 4)
    assert torch.equal(loaded.run({"x": x})["y"], x @ WEIGHTS["w"])


@pytest.mark.parametrize("hostile", EVERY, ids=lambda hostile: hostile.name)
def test_hostile_program_is_refused(hostile, tmp_path, monkeypatch):
    monkeypatch.setenv(limits.VARIABLE, str(1 << 30))
    with pytest.raises(BundleError, match=rf"(?s)^p\.json.*{hostile.message}") as refused:
        programs.load(*saved(hostile.content, tmp_path))
    assert len(str(refused.value)) < 1200
    assert str(refused.value).isprintable()


def _lstm(**shapes):
    """A layer whose weights and states fit, but for those that are given; ``layers`` and ``biases`` go to the operator."""
    layers, biases = shapes.pop("layers", 1), shapes.pop("biases", True)
    shapes = {"h": (1, 4, 3), "c": (1, 4, 3), "wi": (12, 4), "wh": (12, 3), "bi": (12,), "bh": (12,)} | shapes
    made = [node(name, "aten.ones.default", list(shape), shape=shape) for name, shape in shapes.items()]
    source = node("v", "aten.view.default", "%x", [1, 4, 4], shape=(1, 4, 4))
    weights = [f"%{name}" for name in shapes if name not in ("h", "c")]
    layer = node(
        "l", "aten.lstm.input", "%v", ["%h", "%c"], weights, biases, layers, 0.0, False, False, False, shape=None
    )
    return program(source, *made, layer, node("y", "getitem", "%l", 0, shape=(1, 4, 3)))


def test_recurrent_layer_is_admitted(tmp_path):
    loaded = programs.load(*saved(_lstm(), tmp_path))
    assert loaded.run({"x": torch.rand(4, 4)})["y"].shape == (1, 4, 3)


@pytest.mark.parametrize(
    "shapes",
    [
        {"h": (1, 5, 3)}, {"h": (2, 4, 3)}, {"h": (4, 3)}, {"c": (1, 4, 4)}, {"c": (1, 1, 3)}, {"wi": (12, 5)},
        {"wi": (11, 4)}, {"wh": (12, 4)}, {"wh": (3, 3)}, {"bi": (3,)}, {"bh": (12, 1)}, {"bh": (0,)}, {"layers": 2},
        {"layers": 0}, {"layers": -1}, {"biases": False},
    ],
)  # fmt: skip
def test_recurrent_layer_that_does_not_fit_is_refused(shapes, tmp_path):
    """PyTorch's kernels for processors follow the sizes they are told, past the end of a smaller weight."""
    with pytest.raises(BundleError, match=r"node 'l' \(aten\.lstm\.input\) (needs|has)"):
        programs.load(*saved(_lstm(**shapes), tmp_path))


@pytest.mark.parametrize(
    ("kept", "computed", "message"),
    [
        (("%n", "%n"), True, "must read its running statistics, or"),  # the kernel would write to them
        ((None, None), False, "must read its running statistics, or"),
        (("%n", None), False, "must read its running statistics, or"),
        (("%x", "%n"), False, "has a running_mean of another size"),
        (("%n", "%m"), False, "has a running_var of another size"),
    ],
)
def test_normalization_never_writes_its_statistics(kept, computed, message, tmp_path):
    made = [node("n", "aten.ones.default", [4], shape=(4,)), node("m", "aten.ones.default", [2], shape=(2,))]
    norm = node("y", "aten.batch_norm.default", "%x", None, None, *kept, computed, 0.1, 1e-5, False)
    with pytest.raises(BundleError, match=rf"node 'y' \(aten\.batch_norm\.default\) {message}"):
        programs.load(*saved(program(*made, norm), tmp_path))


def test_list_of_fewer_items_than_the_kernel_reads_is_refused(tmp_path):
    """Where PyTorch itself takes it for several."""
    view = node("v", "aten.view.default", "%x", [1, 4, 4], shape=(1, 4, 4))
    pool = node("y", "aten.max_pool2d.default", "%v", [2], shape=(1, 2, 2))
    with pytest.raises(
        BundleError, match=r"node 'y' has a wrong argument 'kernel_size'.*expected List\[int\] of 2, found"
    ):
        programs.load(*saved(program(view, pool), tmp_path))


@pytest.mark.parametrize("count", [admission.MAX_NODES - 1, 200_000])  # and an input and a weight
def test_too_many_operators_are_refused(count, tmp_path):
    with pytest.raises(BundleError, match=rf"p\.json is no saved program.*{count + 2} nodes, more than 50000"):
        programs.load(*saved(program(*_chain(count)), tmp_path))


def test_text_nested_without_end_is_refused(tmp_path):
    path, weights = saved(program(), tmp_path)
    path.write_text('{"nodes": ' + "[" * 200_000)
    with pytest.raises(BundleError, match=r"p\.json is no saved program"):
        programs.load(path, weights)


def test_nothing_is_allocated_by_what_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(torch, "ones", lambda *_: pytest.fail("it was computed"))
    content = program(node("y", "aten.ones.default", [1 << 44], shape=(1 << 44,)))
    with pytest.raises(BundleError, match=r"node 'y' needs too much memory.*--max-memory"):
        programs.load(*saved(content, tmp_path))


def test_what_is_freed_does_not_count(tmp_path, monkeypatch):
    """A long chain of large values holds two at a time."""
    monkeypatch.setenv(limits.VARIABLE, str(100 << 20))
    large = [node("n0", "aten.ones.default", [8 << 20], shape=(8 << 20,))]
    large += [node(f"n{at}", "aten.relu.default", f"%n{at - 1}", shape=(8 << 20,)) for at in range(1, 50)]
    programs.load(*saved(program(*large), tmp_path))
    held = [*large, node("y", "aten.add.Tensor", "%n0", "%n49", shape=(8 << 20,))]
    programs.load(*saved(program(*held), tmp_path))
    monkeypatch.setenv(limits.VARIABLE, str(95 << 20))
    with pytest.raises(BundleError, match="node 'n2' needs too much memory"):
        programs.load(*saved(program(*held), tmp_path))


@pytest.mark.parametrize("index", [["%i"], ["%i", "%i"]])
def test_index_that_the_table_lacks_is_named_when_it_is_read(index, tmp_path):
    shape = (3, 2) if len(index) == 1 else (3,)
    content = program(INDEX, TABLE, node("y", "aten.index.Tensor", "%table", index, shape=shape))
    with pytest.raises(BundleError, match=r"'p': node 'y' \(aten\.index\.Tensor\) cannot be computed; got index"):
        programs.load(*saved(content, tmp_path)).run({"x": torch.rand(4, 4)})


def test_operator_off_the_list_is_refused_at_build(tmp_path):
    class Inverse(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Identity()
            self.inner.forward = lambda x: x + torch.erfinv(x)

        def forward(self, x):
            return self.inner(x)

    program = capture(Inverse().eval(), {"x": torch.rand(4, 4)}, ("y",))
    with pytest.raises(
        CaptureError, match=r"in the module inner: node 'erfinv' uses the operator aten\.erfinv\.default"
    ):
        programs.save(program, tmp_path / "p.json")
    assert not (tmp_path / "p.json").exists()


PROOFS = {
    "_sparse_coo_tensor_unsafe": [
        node("i", "aten.arange.default", 1, shape=(1,), dtype="int64"),
        node("s", "aten._sparse_coo_tensor_unsafe.default", "%i", "%x", [4], shape=(4,)),
        node("y", "aten._to_dense.default", "%s", shape=(4,)),
    ],
    "segment_reduce": [node("y", "aten.segment_reduce.default", "%x", "sum",
                            kwargs={"lengths": {"node": "x"}, "unsafe": True}, shape=(4,))],
    "_print": [node("p", "aten._print.default", "\x1b[2Jhello", shape=None)],
    "ones": [node("y", "aten.ones.default", [1 << 30], shape=(1 << 30,))],
    "operators": _chain(admission.MAX_NODES),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("verb", ["verify", "separate"])
@pytest.mark.parametrize("proof", PROOFS)
def test_proof_of_concept_ends_in_one_message(proof, verb, toy_path, song_path, tmp_path):
    """The command on a bundle whose manifest was made to agree with the program: no crash, nothing printed by it."""
    copy = tmp_path / "toy.bundle"
    shutil.copytree(toy_path, copy)
    file = copy / Bundle.load(copy).manifest.whole
    files = [file, *(copy / segment.program for segment in Bundle.load(copy).segments)]
    for file in files:
        content = json.loads(file.read_text())
        first = next(entry for entry in content["nodes"] if entry["op"] == "input")
        text = json.dumps(PROOFS[proof]).replace('{"node": "x"}', json.dumps({"node": first["name"]}))
        content["nodes"] += json.loads(text)
        file.write_text(json.dumps(content))
    reseal(copy)
    arguments = ["verify", copy] if verb == "verify" else ["separate", song_path, "-b", copy, "-o", tmp_path / "out"]
    code = "from splitter.cli import main; main()"
    ended = subprocess.run([sys.executable, "-c", code, *map(str, arguments), "--max-memory", "1GB"],
                           capture_output=True, text=True, check=False, cwd=tmp_path)  # fmt: skip
    assert ended.returncode == 1, ended.stderr
    assert ended.stderr.count("splitter: error: ") == 1, ended.stderr
    assert ended.stderr.splitlines()[-1].startswith("splitter: error: "), ended.stderr
    assert re.search(r"node '(i|s|y|p|n0)' ", ended.stderr) or "more than" in ended.stderr, ended.stderr
    assert "hello" not in ended.stdout
