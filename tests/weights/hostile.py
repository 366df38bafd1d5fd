"""Checkpoint files as nobody should make them, from the demo's tensors."""

from __future__ import annotations

import copy
import json
import struct
import zipfile
from collections import OrderedDict
from functools import cache
from importlib import resources

import torch
from demucs.htdemucs import HTDemucs
from safetensors import safe_open
from safetensors.torch import load_file, save_file

DEMO = resources.files("splitter_weights.demo") / "demo.safetensors"


def demo():
    """Tensors and metadata of the demo."""
    with safe_open(str(DEMO), framework="pt") as file:
        metadata = file.metadata()
    return load_file(str(DEMO)), metadata


# ------------------------------------------------------------------------------------------- .safetensors


def safetensors(path, tensors=None, **metadata):
    known_tensors, known = demo()
    save_file(tensors or known_tensors, path, {k: v for k, v in {**known, **metadata}.items() if v is not None})


def with_kwargs(**kwargs):
    return json.dumps({**json.loads(demo()[1]["kwargs"]), **kwargs})


def raw_kwargs(name, text):
    """The demo's kwargs with one value as it stands, valid JSON or not."""
    return json.dumps({**json.loads(demo()[1]["kwargs"]), name: "@"}).replace('"@"', text)


def raw_safetensors(path, header, data=b""):
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)


def header_of_demo():
    raw = DEMO.read_bytes()
    size = struct.unpack("<Q", raw[:8])[0]
    return json.loads(raw[8 : 8 + size]), raw[8 + size :]


# ------------------------------------------------------------------------------------------- .th


@cache
def demo_member():
    from splitter_weights import checkpoints

    return checkpoints.load("demo").members[0]


def package(**changes):
    model = demo_member().model
    args, kwargs = model._init_args_kwargs
    made = {"klass": HTDemucs, "args": args, "kwargs": dict(kwargs), "state": model.state_dict(), "training_args": {}}
    return {**made, **changes}


def package_with_sources_first():
    made = package()
    return {**made, "args": (made["kwargs"].pop("sources"),)}


def wide_package():
    """A model of two thousand million parameters, described truly, of which each tensor is one repeated number."""
    kwargs = {**package()["kwargs"], "channels": 512, "bottom_channels": 0}
    with torch.device("meta"):
        described = HTDemucs(**kwargs).state_dict()
    state = OrderedDict((key, torch.zeros(1).expand(value.shape)) for key, value in described.items())
    return package(kwargs=kwargs, state=state)


def with_tensor(change):
    """The demo's package with one tensor changed: a convolution's weight."""
    made = package()
    key = "encoder.0.conv.weight"
    made["state"] = OrderedDict(made["state"])
    made["state"][key] = change(made["state"][key])
    return made


def on_one_storage():
    made = package()
    largest = max(value.numel() for value in made["state"].values())
    storage = torch.zeros(largest)
    made["state"] = OrderedDict((k, storage[: v.numel()].view(v.shape)) for k, v in made["state"].items())
    return made


def rewritten(path, change=lambda name, content: (name, content), compression=zipfile.ZIP_STORED, more=()):
    """The archive anew, each entry as ``change`` gives it."""
    with zipfile.ZipFile(path) as archive:
        entries = [(info.filename, archive.read(info)) for info in archive.infolist()]
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, content in entries:
            if (new := change(name, content)) is not None:
                archive.writestr(*new)
        for name, content in more:
            archive.writestr(name, content)


def with_pickle(path, content):
    torch.save({"a": 1}, path)
    rewritten(path, lambda name, old: (name, content if name.endswith("data.pkl") else old))


def with_bomb(path):
    """A tensor's entry that is 1.5 GB of zeros, compressed."""
    torch.save(package(), path)
    rewritten(path, lambda name, old: None if name.endswith("data/0") else (name, old))
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        root = archive.namelist()[0].split("/")[0]
        with archive.open(f"{root}/data/0", "w", force_zip64=True) as entry:
            for _ in range(96):
                entry.write(bytes(16 << 20))


def with_copies(path):
    """Hundreds of entries that are all one and the same place of the file."""
    torch.save(package(), path)
    with zipfile.ZipFile(path, "a") as archive:
        largest = max(archive.infolist(), key=lambda info: info.file_size)
        for number in range(500):
            again = copy.copy(largest)
            again.filename = f"{largest.filename.split('/')[0]}/data/{10_000 + number}"
            archive.filelist.append(again)
        archive._didModify = True


def nested_pickle(depth):
    return b"\x80\x02" + b")" + b"\x85" * depth + b"."


def hash_bomb():
    """A dictionary's key whose hash would take 2^60 steps: a tuple of one tuple twice, sixty deep."""
    body = b"\x80\x02K\x01\x85q\x00" + b"h\x00h\x00\x86q\x00" * 60
    return body + b"}h\x00K\x01s."
