"""Writes the corpus: small sound files of every format. ``python -m tests.fuzz.seeds``, after a format has changed."""

import json
import shutil
import sys
import tempfile
from fractions import Fraction
from pathlib import Path

import numpy as np
import soundfile
import torch
from demucs.htdemucs import HTDemucs
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

import splitter
from splitter import models
from splitter.boundary import TensorSpec
from splitter.plan import schema
from splitter.runtime import host

from ..toys import GRAPHS_PLAN, HYBRID_PLAN, PACKAGES_PLAN, duo, separating
from . import packages

CORPUS = Path(__file__).with_name("corpus")


def bundles(home):
    with tempfile.TemporaryDirectory() as scratch:
        splitter.build(duo(), Path(scratch) / "toy", plan=GRAPHS_PLAN)
        shutil.copytree(Path(scratch) / "toy", home / "manifest" / "toy")
    shutil.copytree(home / "manifest" / "toy" / "graph", home / "graph" / "toy" / "graph")


def hosts(home):
    """There and back, in steps of every kind."""
    stft = {"fft_length": 32, "hop_length": 8, "scale": 0.25}
    steps = [
        ("window", "hann_window", [], {"length": 32}, [32], "float32"),
        ("centre", "mean", ["mix"], {"axes": [1, 2]}, [1, 1, 1], "float32"),
        ("spread", "std", ["mix"], {"axes": [1, 2], "correction": 1.0}, [1, 1, 1], "float32"),
        ("moved", "subtract", ["mix", "centre"], {}, [1, 2, 64], "float32"),
        ("scaled", "divide", ["moved", "spread"], {}, [1, 2, 64], "float32"),
        ("rows", "reshape", ["scaled"], {"shape": [2, 64]}, [2, 64], "float32"),
        ("mirrored", "pad_reflect", ["rows"], {"before": [0, 16], "after": [0, 16]}, [2, 96], "float32"),
        ("bins", "stft", ["mirrored", "window"], stft, [2, 17, 9], "complex64"),
        ("parts", "split_complex", ["bins"], {}, [2, 17, 9, 2], "float32"),
        ("turned", "transpose", ["parts"], {"axes": [0, 3, 1, 2]}, [2, 2, 17, 9], "float32"),
        ("cut", "slice", ["turned"], {"axis": 2, "start": 0, "stop": 16}, [2, 2, 16, 9], "float32"),
        ("filled", "pad_zero", ["cut"], {"before": [0] * 4, "after": [0, 0, 1, 0]}, [2, 2, 17, 9], "float32"),
        ("back", "transpose", ["filled"], {"axes": [0, 2, 3, 1]}, [2, 17, 9, 2], "float32"),
        ("joined", "join_complex", ["back"], {}, [2, 17, 9], "complex64"),
        ("sound", "istft", ["joined", "window"], stft | {"trim": 16, "length": 64}, [2, 64], "float32"),
        ("louder", "multiply", ["sound", 2.0], {}, [2, 64], "float32"),
        ("shifted", "add", ["louder", 0.5], {}, [2, 64], "float32"),
        ("gain", "constant", [], {"values": [0.5, 2.0], "shape": [2, 1], "dtype": "float32"}, [2, 1], "float32"),
        ("gains", "expand", ["gain"], {"shape": [2, 64]}, [2, 64], "float32"),
        ("both", "stack", ["shifted", "gains"], {"axis": 1}, [2, 2, 64], "float32"),
        ("first", "select", ["both"], {"axis": 1, "index": 0}, [2, 64], "float32"),
        ("nothing", "fill", [], {"value": 0.0, "shape": [2], "dtype": "float32"}, [2], "float32"),
        ("without", "put", ["first", "nothing"], {"axis": 1, "index": 0}, [2, 64], "float32"),
        ("longer", "concatenate", ["without", "gains"], {"axis": 1}, [2, 128], "float32"),
        ("taken", "take", ["longer"], {"axes": 1, "indices": [1, 0], "shape": [2, 128]}, [2, 128], "float32"),
        ("size", "magnitude", ["taken"], {}, [2, 128], "float32"),
        ("stems", "add_at", ["size", "longer"], {"axis": 0, "indices": [1, 1]}, [2, 128], "float32"),
    ]
    mix = TensorSpec(name="mix", shape=(1, 2, 64), dtype="float32", producer="input", consumers=("analysis",))
    spec = host.HostSpec(
        stage="analysis",
        inputs=(mix,),
        steps=[dict(zip(host.Step.model_fields, values, strict=True)) for values in steps],
        outputs={"stems": "stems"},
        definitions={},
    )
    (home / "host" / "all.json").write_text(spec.model_dump_json(indent=1))


def plans(home):
    schema.save(HYBRID_PLAN, home / "plan" / "hybrid.toml")
    schema.save(next(iter(models.presets().values())), home / "plan" / "preset.toml")


def arrays(home):
    values = {
        "x": np.arange(8, dtype=np.float32).reshape(2, 4),
        "y": np.array([1, -2, 3], np.int64),
        "z": np.array(0.5, np.float16),
    }
    save_file(values, home / "safetensors" / "some.safetensors", {"format": "splitter.taps/1"})
    np.savez(home / "npz" / "stored.npz", **values)
    np.savez_compressed(home / "npz" / "deflated.npz", **values)
    index, raw = {}, b""
    for name, value in values.items():
        index[name] = {"file": "values.bin", "offset": len(raw), "shape": value.shape, "dtype": value.dtype.name}
        raw += value.tobytes()
    (home / "raw" / "some").mkdir()
    (home / "raw" / "some" / "values.bin").write_bytes(raw)
    (home / "raw" / "some" / "index.json").write_text(json.dumps(index))


def checkpoints(home):
    torch.manual_seed(0)
    model = HTDemucs(
        sources=["kept", "rest"], channels=8, depth=2, t_layers=1, t_heads=2, bottom_channels=8, nfft=512,
        segment=Fraction(1, 2), dconv_depth=1,
    )  # fmt: skip
    args, kwargs = model._init_args_kwargs
    tensors = {name: value.detach().clone().half() for name, value in model.state_dict().items()}
    package = {"klass": HTDemucs, "args": args, "kwargs": dict(kwargs), "state": tensors, "training_args": {}}
    torch.save(package, home / "th" / "tiny.th")
    metadata = {
        "klass": "demucs.htdemucs.HTDemucs",
        "args": json.dumps(args),
        "kwargs": json.dumps(kwargs | {"segment": {"_type": "fraction", "numerator": 1, "denominator": 2}}),
    }
    save_torch(tensors, home / "checkpoint" / "tiny.safetensors", metadata)


def sounds(home):
    sound = np.sin(np.arange(1200) / 9).astype(np.float32)[:, None] * [0.5, 0.25]
    for name in ("pcm.wav", "pcm.aiff", "small.flac", "small.ogg", "small.mp3", "pcm.caf", "pcm.w64", "pcm.au"):
        soundfile.write(home / "audio" / name, sound, 44_100 if name != "pcm.au" else 8_000)
    soundfile.write(home / "audio" / "float.wav", sound[:, 0], 48_000, subtype="FLOAT")


def onnx_files(home):
    with tempfile.TemporaryDirectory() as scratch:
        splitter.build(separating(), Path(scratch, "b"), plan=PACKAGES_PLAN, format="onnx", reference=False)
        for name in ("encoder", "transformer"):
            shutil.copy(Path(scratch, "b", f"{name}.onnx"), home / "onnx")


def main():
    shutil.rmtree(CORPUS, ignore_errors=True)
    for name in (
        "manifest",
        "graph",
        "host",
        "plan",
        "safetensors",
        "npz",
        "raw",
        "th",
        "checkpoint",
        "audio",
        "mlpackage",
        "onnx",
    ):
        (CORPUS / name).mkdir(parents=True)
    for make in (bundles, hosts, plans, arrays, checkpoints, sounds, onnx_files):
        make(CORPUS)
    with tempfile.TemporaryDirectory() as scratch:
        packages.build(Path(scratch))
        for path in sorted(Path(scratch).glob("*/op.mlpackage")):
            shutil.copytree(path, CORPUS / "mlpackage" / f"{path.parent.name}.mlpackage")


if __name__ == "__main__":
    sys.exit(main())
