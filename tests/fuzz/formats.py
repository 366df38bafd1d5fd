"""Every format that comes from strangers: how a sound file is changed with its structure in mind, and what reads it."""

import io
import json
import os
import pickletools
import re
import tomllib
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import tomli_w
import torch
from pydantic import ValidationError
from rich.console import Console
from splitter_weights import checkpoints

from splitter import arrays
from splitter.boundary import TensorSpec
from splitter.bundle import directory
from splitter.cli import tables
from splitter.errors import BundleError
from splitter.graph import program as programs
from splitter.graph.weights import Weights
from splitter.plan import schema
from splitter.runtime import host
from splitter.runtime.engines.onnxruntime_engine import OnnxRuntimeEngine
from splitter.separation.audio import Track, statistics

from . import packages
from .mutations import NUMBERS, changed, damaged, written

FORMATS = {}


@dataclass(frozen=True)
class Format:
    """One format.

    Attributes:
        mutated: Changes the file or directory at a path.
        read: Reads it as the commands do.
        share: Of all inputs that are read: the slower, the fewer.
    """

    mutated: Callable
    read: Callable
    share: float = 0.11


def by_bytes(path, generator):
    path.write_bytes(damaged(path.read_bytes(), generator))


def mutation(change, share=0.75):
    """Of so many cases the structure is changed, of the others the bytes."""

    def mutated(path, generator):
        (change if generator.random() < share else by_bytes)(path, generator)

    return mutated


def json_changed(path, generator):
    path.write_text(written(changed(json.loads(path.read_text()), generator), generator))


# ------------------------------------------------------------------------------------------ bundles


def manifest_mutated(path, generator):
    """With its digest right again, most of the time: what is behind it is to be reached."""
    manifest = path / "manifest.json"
    (json_changed if generator.random() < 0.8 else by_bytes)(manifest, generator)
    lines = manifest.read_bytes().split(b"\n", 2)
    if generator.random() < 0.9 and len(lines) < 3:  # on one line
        lines = json.dumps(json.loads(lines[0]), indent=1).encode().split(b"\n", 2) if _is_json(lines[0]) else lines
    if len(lines) == 3:
        lines[1] = directory._digest_line(b"\n".join((lines[0], lines[2])))
    manifest.write_bytes(b"\n".join(lines))


def _is_json(text):
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def manifest_read(path):
    for member in directory.load(path).members:
        with Path(os.devnull).open("w") as nowhere:
            Console(file=nowhere).print(tables.bundle_tables(member))
        member.goldens()
        for segment in member.segments:
            member.program(segment.program)


def graph_mutated(path, generator):
    file = generator.choice(sorted((path / "graph").glob("*.json")))
    (json_changed if generator.random() < 0.85 else by_bytes)(file, generator)


def graph_read(path):
    weights = Weights(path / "graph" / "weights.safetensors")
    for file in sorted((path / "graph").glob("*.json")):
        program = programs.load(file, weights)
        inputs = {}
        for node in program.input_nodes:
            shape = node.meta["type"].shape
            inputs[str(node.target)] = torch.zeros([min(extent, 64) for extent in shape])
        program.run(inputs)


FORMATS["manifest"] = Format(manifest_mutated, manifest_read, 0.1)
FORMATS["graph"] = Format(graph_mutated, graph_read, 0.1)


def plan_mutated(path, generator):
    try:
        text = tomli_w.dumps(changed(tomllib.loads(path.read_text()), generator))
    except (TypeError, ValueError, AttributeError, RecursionError):  # TOML has no such value
        by_bytes(path, generator)
        return
    match generator.randrange(10):
        case 0:
            text = re.sub(r"\b\d+\b", "1" * 5000, text, count=1)
        case 1:
            text = text.replace("[", "[" * 3000, 1)
        case 2:
            text += "a" + ".a" * 3000 + " = 1\n"
    path.write_text(text, errors="surrogatepass")


def host_read(path):
    """As the engine `numpy` does."""
    try:
        spec = host.HostSpec.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise BundleError("no host specification") from error
    inputs = {one.name: np.zeros([min(extent, 4096) for extent in one.shape], one.dtype) for one in spec.inputs}
    host.run(spec, inputs)


FORMATS["host"] = Format(mutation(json_changed), host_read, 0.08)
FORMATS["plan"] = Format(mutation(plan_mutated), schema.load)

# ------------------------------------------------------------------------------------------- arrays


def safetensors_mutated(path, generator):
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    header = written(changed(json.loads(raw[8 : 8 + length]), generator), generator).encode(errors="surrogatepass")
    length = len(header) if generator.random() < 0.9 else generator.choice(NUMBERS)
    path.write_bytes(length.to_bytes(8, "little") + header + raw[8 + int.from_bytes(raw[:8], "little") :])


def arrays_read(path):
    arrays.metadata(path)
    arrays.read(path)
    arrays.read(path, expected={"x": (2, None), "y": (3,), "z": ()})


def rezipped(path, generator, change):
    """The archive at a path with members changed, left out or doubled, and its checksums right."""
    with zipfile.ZipFile(path) as archive:
        members = [(member.filename, archive.read(member)) for member in archive.infolist()]
    at = generator.randrange(len(members))
    name, content = members[at]
    match generator.randrange(8):
        case 0:
            del members[at]
        case 1:
            members.append((name, content))
        case 2:
            members[at] = generator.choice(["../x.npy", "/x", "x" * 300, "\1", name + "/"]), content
        case 3:
            members[at] = name, content + bytes(1 << 22)
        case _:
            members[at] = name, change(name, content, generator)
    method = generator.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2])
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of double names
        for name, content in members:
            archive.writestr(name, content)
    raw = buffer.getvalue()
    if generator.random() < 0.2:  # numbers of its directory
        start = raw.rfind(b"PK\x01\x02")
        raw = raw[:start] + damaged(raw[start:], generator)
    path.write_bytes(raw)


ODD_HEADERS = (
    (rb"'shape': \(.*?\)", b"'shape': (1099511627776,)"),
    (rb"'shape': \(.*?\)", b"'shape': (-1, 2)"),
    (rb"'shape': \(.*?\)", b"'shape': (True, 2.0)"),
    (rb"'shape': \(.*?\)", b"'shape': (" + b"1," * 70 + b")"),
    (rb"'shape': \(.*?\)", b"'shape': (0, 4611686018427387904)"),
    (rb"'shape': .*?\)", b"'shape': " + b"(" * 900 + b")" * 900),
    (rb"'descr': '.*?'", b"'descr': '|O'"),
    (rb"'descr': '.*?'", b"'descr': '<U1000000000'"),
    (rb"'descr': '.*?'", b"'descr': '<M8[ns]'"),
    (rb"'descr': '.*?'", b"'descr': [('a', '<f4', (1000000,)), ('b', '|O')]"),
    (rb"'descr': '.*?'", b"'descr': '(99999999,)f8'"),
    (rb"False", b"True"),
    (rb"\}", b", 'x': 1}"),
)


def npy_changed(name, content, generator):
    if generator.random() < 0.3 or not content.startswith(b"\x93NUMPY"):
        return damaged(content, generator)
    wide = content[6] > 1
    start = 12 if wide else 10
    stop = start + int.from_bytes(content[8:start], "little")
    pattern, odd = generator.choice(ODD_HEADERS)
    header = re.sub(pattern, lambda _: odd, content[start:stop], count=1)
    version = generator.choice([1, 1, 2, 3, 9])
    width = 2 if version == 1 else 4
    return b"\x93NUMPY" + bytes([version, 0]) + len(header).to_bytes(width, "little") + header + content[stop:]


def npz_mutated(path, generator):
    rezipped(path, generator, npy_changed)


def index_mutated(path, generator):
    json_changed(path / "index.json", generator)


def index_read(path):
    arrays_read(path / "index.json")


FORMATS["safetensors"] = Format(mutation(safetensors_mutated), arrays_read)
FORMATS["npz"] = Format(mutation(npz_mutated), arrays_read)
FORMATS["raw"] = Format(index_mutated, index_read)

# -------------------------------------------------------------------------------------- checkpoints


def pickle_changed(name, content, generator):
    """Numbers and names of a pickle replaced, by ones of the same width; or bytes."""
    if not name.endswith("data.pkl") or generator.random() < 0.4:
        return damaged(content, generator)
    raw = bytearray(content)
    operations = list(pickletools.genops(content))
    widths = {"BININT1": 1, "BININT2": 2, "BININT": 4, "BINGET": 1, "BINPUT": 1}
    numbers = [(at + 1, widths[one.name]) for one, _, at in operations if one.name in widths]
    texts = [(at + 5, len(value.encode())) for one, value, at in operations if one.name == "BINUNICODE" and value]
    for _ in range(generator.choice([1, 1, 3])):
        at, width = generator.choice(numbers if generator.random() < 0.7 or not texts else texts)
        if (at, width) in texts:
            raw[at : at + width] = (generator.choice([b"os.system", b"../../x", b"posix", b"9"]) * width)[:width]
        else:
            raw[at : at + width] = (generator.choice(NUMBERS) % (1 << 8 * width)).to_bytes(width, "little")
    return bytes(raw)


def th_mutated(path, generator):
    rezipped(path, generator, pickle_changed)


FORMATS["th"] = Format(mutation(th_mutated, 0.85), checkpoints.load, 0.04)
FORMATS["checkpoint"] = Format(mutation(safetensors_mutated), checkpoints.load, 0.06)

# -------------------------------------------------------------------------------------------- sound


def sound_read(path):
    statistics(Track(path, 44_100, 2))


FORMATS["audio"] = Format(by_bytes, sound_read)
FORMATS["mlpackage"] = Format(packages.mutated, packages.read, 0.1)


# --------------------------------------------------------------------------------------------- ONNX


def onnx_mutated(path, generator):
    """Fields of the model that a runtime would follow."""
    model = onnx.load_model_from_string(path.read_bytes())
    graph = model.graph
    names = [name for node in graph.node for name in (*node.input, *node.output)]
    for _ in range(generator.choice([1, 1, 2, 4])):
        if not graph.node:  # the last one went
            break
        node, weight = generator.choice(graph.node), generator.choice(graph.initializer)
        match generator.randrange(9):
            case 0:
                node.op_type = generator.choice(OPERATORS)
            case 1 if node.input:
                node.input[generator.randrange(len(node.input))] = generator.choice([*names, "", "nowhere"])
            case 2:
                node.output[0] = generator.choice([*names, ""])
            case 3 if weight.dims:
                weight.dims[generator.randrange(len(weight.dims))] = generator.choice(NUMBERS) % (1 << 63)
            case 4:
                weight.data_type = generator.randrange(24)
            case 5 if node.attribute:
                attribute = generator.choice(node.attribute)
                attribute.i, attribute.f = generator.choice(NUMBERS) % (1 << 63), generator.choice([0.0, -1.0, 1e38])
                attribute.ints[:] = [generator.choice([-1, 0, 1, 7, 1 << 40]) for _ in attribute.ints]
            case 6:
                graph.node.remove(node)
            case 7:
                values = np.array([generator.choice([-1, 0, 1, 3, 1 << 20, 1 << 40]) for _ in weight.dims or [1]])
                weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
            case _:
                feature = generator.choice([*graph.input, *graph.output]).type.tensor_type
                feature.elem_type = generator.randrange(24)
                for axis in feature.shape.dim:
                    axis.dim_value = generator.choice([axis.dim_value, 1, 0, 1 << 40])
    path.write_bytes(model.SerializeToString())


def onnx_read(path):
    """As the engine does, on the inputs of the file that was changed."""
    files = SimpleNamespace(home=path.parent, records={path.name: None}, read=Path.read_bytes)
    bundle = SimpleNamespace(path=path.parent, files=files, tensors=ONNX_TENSORS)
    segment = SimpleNamespace(artifact=SimpleNamespace(path=path.name), outputs=(ONNX_OUTPUTS[path.stem],))
    engine = OnnxRuntimeEngine(bundle, segment, compute_units="ALL")
    engine.run({name: np.zeros(ONNX_TENSORS[name].shape, np.float32) for name in ONNX_INPUTS[path.stem]})


OPERATORS = ("Add", "Conv", "ConvTranspose", "MatMul", "Reshape", "Transpose", "Slice", "Gather", "Split", "Expand", "Pad",
             "Tile", "ConstantOfShape", "Resize", "Loop", "Range", "TopK", "ScatterND", "GridSample", "LSTM")  # fmt: skip
ONNX_INPUTS = {"encoder": ("waveform",), "transformer": ("down",)}
ONNX_OUTPUTS = {"encoder": "down", "transformer": "mix_norm2"}
ONNX_TENSORS = {
    name: TensorSpec(name=name, shape=shape, dtype="float32", producer="input", consumers=())
    for name, shape in {"waveform": (1, 2, 64), "down": (1, 8, 16), "mix_norm2": (1, 16, 8)}.items()
}
FORMATS["onnx"] = Format(mutation(onnx_mutated), onnx_read)
