"""Checkpoints, bags and what lies where they should be, from strangers: refused by name within bounds, or a right model."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import OrderedDict

import huggingface_hub
import pytest
import torch
import yaml
from demucs.hdemucs import HDemucs
from demucs.htdemucs import HTDemucs
from splitter_weights import checkpoints

from splitter.errors import CheckpointError

from . import hostile

MOST_MESSAGE = 1000


def refused(path, match):
    with pytest.raises(CheckpointError, match=match) as caught:
        checkpoints.load(path)
    assert path.name in str(caught.value)
    assert len(str(caught.value)) < MOST_MESSAGE


# ------------------------------------------------------------------------------------------- check, then use


def other_package(change):
    state = hostile.package()["state"]
    return {
        "klass": lambda: hostile.package(klass=os.system),
        "args": lambda: hostile.package(args=(["a", "b", "c", "d"],)),
        "kwargs": lambda: hostile.package(kwargs={**hostile.package()["kwargs"], "t_heads": 4}),
        "sources": lambda: hostile.package(kwargs={**hostile.package()["kwargs"], "sources": ["d", "c", "b", "a"]}),
        "tensors": lambda: hostile.package(state=OrderedDict((k, v.flip(0)) for k, v in state.items())),
    }[change]()


def other_metadata(change):
    sources = json.dumps(["d", "c", "b", "a"])
    return {
        "klass": {"klass": "os.system", "args": '["true"]', "kwargs": "{}"},
        "args": {"args": f"[{sources}]"},
        "kwargs": {"kwargs": hostile.with_kwargs(t_heads=4)},
        "sources": {"kwargs": hostile.with_kwargs(sources=["d", "c", "b", "a"])},
        "tensors": {"tensors": {k: v.flip(0).contiguous() for k, v in hostile.demo()[0].items()}},
    }[change]


def write(path, change=None):
    if path.suffix == ".th":
        torch.save(hostile.package() if change is None else other_package(change), path)
    else:
        hostile.safetensors(path, **({} if change is None else other_metadata(change)))


SWAPS = {
    **{change: (change, lambda path, other: other.replace(path)) for change in ("klass", "args", "kwargs")},
    **{change: (change, lambda path, other: other.replace(path)) for change in ("sources", "tensors")},
    "tensors in place": ("tensors", lambda path, other: path.write_bytes(other.read_bytes())),
    "class in place": ("klass", lambda path, other: path.write_bytes(other.read_bytes())),
    "link switched": ("tensors", lambda path, other: (path.unlink(), path.symlink_to(other))),
    "truncated": ("tensors", lambda path, other: os.truncate(path, 1000)),
    "emptied": ("tensors", lambda path, other: os.truncate(path, 0)),
    "deleted": ("tensors", lambda path, other: path.unlink()),
}


@pytest.mark.parametrize("suffix", [".th", ".safetensors"])
@pytest.mark.parametrize(("change", "swap"), SWAPS.values(), ids=SWAPS)
def test_what_is_inspected_is_what_is_built(tmp_path, monkeypatch, suffix, change, swap):
    """The file becomes another at the moment when the inspected class is first built."""
    path, other = tmp_path / f"model{suffix}", tmp_path / f"other{suffix}"
    write(path)
    write(other, change)
    expected = hostile.demo_member()
    first = hashlib.sha256(path.read_bytes()).hexdigest()
    if swap is SWAPS["link switched"][1]:
        path.rename(tmp_path / f"first{suffix}")
        path.symlink_to(tmp_path / f"first{suffix}")
    construct, swapped = HTDemucs.__init__, []

    def swapping(self, *args, **kwargs):
        if not swapped:
            swapped.append(swap(path, other))
        construct(self, *args, **kwargs)

    monkeypatch.setattr(HTDemucs, "__init__", swapping)
    member = checkpoints.load(path).members[0]
    assert swapped
    assert member.sha256 == first
    assert member.arguments == expected.arguments
    state = expected.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in member.model.state_dict().items())


# ------------------------------------------------------------------------------------------- .th


def _pickled(content):
    return lambda path: hostile.with_pickle(path, content)


def _saved(make):
    return lambda path: torch.save(make(), path)


def _rewritten(**options):
    def build(path):
        torch.save(hostile.package(), path)
        hostile.rewritten(path, **options)

    return build


TH = {
    "each tensor a repeated number": (_saved(hostile.wide_package), "repeats or skips elements"),
    "one tensor a repeated number": (
        _saved(lambda: hostile.with_tensor(lambda old: torch.zeros(1).expand(old.shape))),
        "encoder.0.conv.weight.* repeats",
    ),
    "a stride of zero on one axis": (
        _saved(lambda: hostile.with_tensor(lambda old: old[:, :, :1].expand(old.shape))),
        "(repeats|does not fit)",
    ),
    "elements that overlap": (
        _saved(lambda: hostile.with_tensor(lambda old: torch.zeros(old.numel()).as_strided(old.shape, (1, 1, 1, 1)))),
        "repeats or skips elements",
    ),
    "tensors that overlap": (_saved(hostile.on_one_storage), "two tensors in one place"),
    "compressed": (_rewritten(compression=8), "compressed or encrypted"),
    "1.5 GB of zeros, compressed": (hostile.with_bomb, "compressed or encrypted"),
    "entries in one place": (hostile.with_copies, "(over one another|does not write)"),
    "storage smaller than it declares": (
        _rewritten(change=lambda name, old: (name, old[:-4] if name.endswith("data/0") else old)),
        "does not fit its storage",
    ),
    "storage larger than it declares": (
        _rewritten(change=lambda name, old: (name, old + bytes(4) if name.endswith("data/0") else old)),
        "does not fit its storage",
    ),
    "no storage": (
        _rewritten(change=lambda name, old: None if name.endswith("data/0") else (name, old)),
        "does not fit its storage",
    ),
    "integers": (_saved(lambda: hostile.with_tensor(lambda old: old.long())), "a tensor that no such model has"),
    "complex numbers": (
        _saved(lambda: hostile.with_tensor(lambda old: old.to(torch.complex64))),
        "a tensor that no such model has",
    ),
    "sparse": (_saved(lambda: hostile.with_tensor(lambda old: old.to_sparse())), "something else than a plain tensor"),
    "10,000 entries": (_rewritten(more=[(f"model/data/{n}", b"") for n in range(10_000, 20_000)]), "too many entries"),
    "entry that leaves": (_rewritten(more=[("../../x", b"")]), "does not write"),
    "entry of code": (_rewritten(more=[("model/code/x.py", b"")]), "does not write"),
    "two archives": (_rewritten(more=[("other/data.pkl", b"")]), "of several archives"),
    "big-endian": (
        _rewritten(change=lambda name, old: (name, b"big" if name.endswith("byteorder") else old)),
        "big-endian",
    ),
    "pickle of 3 MB": (_pickled(b"\x80\x02" + b"N0" * 1_500_000 + b"N."), "too many bytes"),
    "pickle without end": (_pickled(b"\x80\x02}"), "(no end|cannot be followed)"),
    "pickle that pops nothing": (_pickled(b"\x80\x02\x86."), "cannot be followed"),
    "pickle with a far memo": (_pickled(b"\x80\x02}r\xff\xff\xff\xff."), "no checkpoint of demucs"),
    "pickle with a huge string": (_pickled(b"\x80\x02\x8d" + b"\xff" * 7 + b"\x0f."), "cannot be followed"),
    "pickle of protocol 4": (_pickled(b"\x80\x04\x95" + bytes(8) + b"}."), "operation of pickle"),
    "pickle nested 100,000 deep": (_pickled(hostile.nested_pickle(100_000)), "no checkpoint of demucs"),
    "pickle whose key hashes for ever": (_pickled(hostile.hash_bomb()), "key that is a tuple"),
    "arguments nested 100,000 deep": (
        _pickled(
            b"\x80\x02}(X\x05\x00\x00\x00klasscdemucs.htdemucs\nHTDemucs\nX\x04\x00\x00\x00argsX\x05\x00\x00\x00state}"
            b")" + b"\x85" * 100_000 + b"X\x06\x00\x00\x00kwargs}u."
        ),
        "(cannot be followed|Error)",
    ),
}
RIGHT_TH = {
    "half precision": lambda: hostile.package(
        state=OrderedDict((k, v.half()) for k, v in hostile.package()["state"].items())
    ),
    "channels last": lambda: hostile.with_tensor(lambda old: old.to(memory_format=torch.channels_last)),
    "parameters": lambda: hostile.package(
        state=OrderedDict((k, torch.nn.Parameter(v)) for k, v in hostile.package()["state"].items())
    ),
    "part of a larger storage": lambda: hostile.with_tensor(
        lambda old: torch.cat([torch.ones(7), old.flatten(), torch.ones(5)])[7:-5].view(old.shape)
    ),
    "float64": lambda: hostile.with_tensor(lambda old: old.double()),
    "sources without their name": hostile.package_with_sources_first,
    "segment as text": lambda: hostile.package(kwargs={**hostile.package()["kwargs"], "segment": 1.5}),
}
CHILD = """
import resource, sys
from splitter_weights import checkpoints
from splitter.errors import CheckpointError
checkpoints.load("demo")
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
for path in sys.argv[1:]:
    try:
        checkpoints.load(path)
    except CheckpointError as error:
        print("refused", str(error).replace("\\n", " "))
    except BaseException as error:
        print("fell", type(error).__name__)
    else:
        print("loaded")
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the address space can be limited on Linux alone")
def test_families_stay_within_memory(tmp_path):
    """Every hostile file, one after the other, in a process that may take 1 GiB besides what PyTorch takes."""
    paths = []
    for number, (build, _) in enumerate([*TH.values(), *SAFETENSORS.values()]):
        suffix = ".th" if number < len(TH) else ".safetensors"
        paths.append(tmp_path / f"model{number}{suffix}")
        build(paths[-1])
    result = subprocess.run(
        [sys.executable, "-c", CHILD, *map(str, paths)], capture_output=True, text=True, check=False
    )
    lines = result.stdout.splitlines()
    assert result.returncode == 0, result.stderr[-2000:]
    wrong = {path.name: line for path, line in zip(paths, lines, strict=True) if not line.startswith("refused")}
    assert not wrong
    assert all(path.name in line for path, line in zip(paths, lines, strict=True))


@pytest.mark.parametrize(
    ("build", "match"),
    [pytest.param(*case, id=name, marks=[pytest.mark.slow] if "1.5 GB" in name else []) for name, case in TH.items()],
)
def test_hostile_th_is_refused_by_name(tmp_path, build, match):
    path = tmp_path / "model.th"
    build(path)
    refused(path, match)


@pytest.mark.parametrize("make", RIGHT_TH.values(), ids=RIGHT_TH)
def test_th_of_another_form_is_the_same_model(tmp_path, make, demo_model):
    torch.save(make(), tmp_path / "model.th")
    (member,) = checkpoints.load(tmp_path / "model.th").members
    state = member.model.state_dict()
    tolerance = {"rtol": 1e-3, "atol": 1e-4}  # of half precision
    for key, value in demo_model.state_dict().items():
        torch.testing.assert_close(state[key], value, **tolerance)
        assert state[key].dtype == torch.float32
    assert member.arguments["segment"] == "3/2"
    assert member.model.sources == demo_model.sources


def test_older_kind_of_model_is_read(tmp_path):
    torch.manual_seed(0)
    kwargs = {"sources": ["a", "b"], "channels": 4, "depth": 5, "segment": 2}
    model = HDemucs(**kwargs)
    torch.save({"klass": HDemucs, "args": (), "kwargs": kwargs, "state": model.state_dict()}, tmp_path / "model.th")
    loaded = checkpoints.load(tmp_path / "model.th").members[0].model
    assert type(loaded) is HDemucs
    assert all(torch.equal(value, model.state_dict()[key]) for key, value in loaded.state_dict().items())


# ------------------------------------------------------------------------------------------- .safetensors


def _kwargs(name, text):
    return lambda path: hostile.safetensors(path, kwargs=hostile.raw_kwargs(name, text))


def _header(change):
    def build(path):
        header, data = hostile.header_of_demo()
        hostile.raw_safetensors(path, *change(header, data))

    return build


def _first(header, **changes):
    key = "encoder.0.conv.weight"
    return {**header, key: {**header[key], **changes}}


def _all_in_one_place(header, data):
    size = max(entry["data_offsets"][1] - entry["data_offsets"][0] for k, entry in header.items() if k[0] != "_")
    places = {
        k: v if k[0] == "_" else {**v, "data_offsets": [0, v["data_offsets"][1] - v["data_offsets"][0]]}
        for k, v in header.items()
    }
    return places, data[:size]


SAFETENSORS = {
    "header of 2^60 bytes": (lambda path: path.write_bytes(b"\xff" * 7 + b"\x0f" + b"{}"), "truncated"),
    "header of 2 MB": (_header(lambda h, d: (json.dumps(h).encode() + b" " * 2**21, d)), "too long a header"),
    "header nested 5,000 deep": (_header(lambda h, d: (b'{"a":' + b"[" * 5000 + b"]" * 5000 + b"}", d)), "as JSON"),
    "header with 5,000 digits": (_header(lambda h, d: (_first(h, shape="@"), d)), "does not describe tensors"),
    "shape of 5,000 digits": (
        _header(lambda h, d: (json.dumps(_first(h, shape="@")).replace('"@"', f"[{'9' * 5000}]").encode(), d)),
        "as JSON",
    ),
    "shape of 2^39 elements": (_header(lambda h, d: (_first(h, shape=[2**39]), d)), "1 that differ"),
    "negative shape": (_header(lambda h, d: (_first(h, shape=[-1]), d)), "does not describe tensors"),
    "integers": (_header(lambda h, d: (_first(h, dtype="I64"), d)), "does not describe tensors"),
    "types that need other sizes": (_header(lambda h, d: (_first(h, dtype="F64"), d)), "is damaged"),
    "tensors in one place": (_header(_all_in_one_place), "is damaged"),
    "bytes that no tensor has": (_header(lambda h, d: (h, d + bytes(100))), "is damaged"),
    "truncated": (_header(lambda h, d: (h, d[:-100])), "is damaged"),
    "metadata that is no text": (_header(lambda h, d: ({**h, "__metadata__": {"klass": 1}}, d)), "does not describe"),
    "header that is a list": (_header(lambda h, d: ([1], d)), "does not describe tensors"),
    "arguments nested 5,000 deep": (_kwargs("channels", "[" * 5000 + "]" * 5000), "as JSON"),
    "argument of 5,000 digits": (_kwargs("channels", "9" * 5000), "as JSON"),
    "argument of 4,000 digits": (_kwargs("channels", "9" * 4000), "channels"),
    "segment of 4,000 digits": (_kwargs("segment", "9" * 4000), "segment"),
    "number beyond floats": (_kwargs("growth", "1e999"), "(growth|as JSON)"),
    "infinity": (_kwargs("segment", "Infinity"), "as JSON"),
    "fraction by zero": (_kwargs("segment", '{"_type": "fraction", "numerator": 1, "denominator": 0}'), "segment"),
    "segment of 46 million samples": (
        lambda path: hostile.safetensors(path, kwargs=hostile.with_kwargs(segment=60, samplerate=768_000)),
        "samples",
    ),
    "100,000 unknown arguments": (
        lambda path: hostile.safetensors(path, kwargs=json.dumps({f"a{n}": n for n in range(50_000)})),
        "does not have",
    ),
    "class of another": (lambda path: hostile.safetensors(path, klass="os.system"), "does not know"),
}


@pytest.mark.parametrize(("build", "match"), SAFETENSORS.values(), ids=SAFETENSORS)
def test_hostile_safetensors_is_refused_by_name(tmp_path, build, match):
    path = tmp_path / "model.safetensors"
    build(path)
    refused(path, match)


def test_model_beyond_the_memory_limit_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("SPLITTER_MAX_MEMORY", "1MB")
    hostile.safetensors(tmp_path / "model.safetensors")
    refused(tmp_path / "model.safetensors", "needs too much memory")


# ------------------------------------------------------------------------------------------- places


@pytest.mark.parametrize("suffix", [".th", ".safetensors", ".yaml"])
@pytest.mark.parametrize("kind", ["pipe", "device", "directory", "dangling link", "a terabyte"])
def test_what_is_no_regular_file_is_refused_at_once(tmp_path, suffix, kind):
    path = tmp_path / f"model{suffix}"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "directory":
        path.mkdir()
    elif kind == "dangling link":
        path.symlink_to(tmp_path / "nothing")
    else:
        path.touch()
        os.truncate(path, 2**40)
    refused(path, "cannot be read")


# ------------------------------------------------------------------------------------------- bags

BAGS = {
    "lists nested 5,000 deep": ("models: " + "[" * 5000 + "]" * 5000, "nested too deep"),
    "maps nested 5,000 deep": ("models: " + "{a: " * 5000 + "}" * 5000, "nested too deep"),
    "blocks nested 1,000 deep": ("".join(" " * n + "- \n" for n in range(100)) + " " * 100 + "- a", "nested too deep"),
    "weight of 5,000 digits": (f"models: [a]\nweights: [[{'9' * 5000}]]", "5,000 characters"),
    "segment of 5,000 digits": (f"models: [a]\nsegment: {'9' * 5000}", "5,000 characters"),
    "segment that is infinite": ("models: [a]\nsegment: .inf", "segment"),
    "weight that is no number": ("models: [a]\nweights: [[nan, 1, 1, 1]]", "weights"),
    "weight beyond floats": ("models: [a]\nweights: [[1e999, 1, 1, 1]]", "weights"),
    "date that is none": ("models: [2001-99-99]", "models"),
    "truth that is none": ("models: !!bool perhaps", "models"),
    "object of Python": ("models: !!python/object/apply:os.system [mkdir pwned]", "models"),
    "key that is a list": ("{[a]: b}", "no YAML"),
    "repeated parts": ("a: &a [x, x]\nb: &b [*a, *a]\nmodels: [*b]", "repeats a part"),
    "70 KB": ("models: [a]\n" + "#" * 70_000, "cannot be read"),
    "17 members": (f"models: {list(map(str, range(17)))}", "models"),
    "path": ("models: ['../../etc/passwd']", "models"),
    "bytes that are no text": (b"models: [\xff]", "no YAML"),
    "text alone": ("models", "does not list"),
    "nothing": ("", "does not list"),
}


@pytest.mark.parametrize(("text", "match"), BAGS.values(), ids=BAGS)
def test_hostile_bag_is_refused_by_name(tmp_path, text, match):
    path = tmp_path / "bag.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(path, match)


# ------------------------------------------------------------------------------------------- the hub


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A folder that stands for the hub, and what it was asked for."""
    asked = []

    def download(repository, file, revision):
        asked.append((repository, file, revision))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    return tmp_path, asked


def test_released_file_that_differs_is_refused_by_name(hub):
    folder, asked = hub
    (folder / "htdemucs.yaml").write_text("models: ['955717e8']")
    hostile.safetensors(folder / "955717e8.safetensors")
    with pytest.raises(CheckpointError, match=r"955717e8\.safetensors is not the released file.*b9678d62"):
        checkpoints.load("htdemucs")
    assert asked[-1] == ("adefossez/HTDemucs", "955717e8.safetensors", "main")


def test_released_bag_that_names_other_members_is_refused(hub):
    folder, asked = hub
    hostile.safetensors(folder / "00000000.safetensors")
    for name in ("htdemucs", "htdemucs_6s", "htdemucs_ft"):
        (folder / f"{name}.yaml").write_text("models: ['00000000']")
        with pytest.raises(CheckpointError, match=rf"{name}\.yaml is not the released one"):
            checkpoints.load(name)
    assert not any(file.endswith("safetensors") for _, file, _ in asked)


def test_released_file_is_loaded(hub, monkeypatch):
    folder, _ = hub
    shutil.copy(hostile.DEMO, folder / "955717e8.safetensors")
    (folder / "htdemucs.yaml").write_text(yaml.safe_dump({"models": ["955717e8"]}))
    digest = hashlib.sha256(hostile.DEMO.read_bytes()).hexdigest()
    monkeypatch.setitem(checkpoints.RELEASED, "htdemucs", {"955717e8": digest})
    assert checkpoints.load("htdemucs").members[0].sha256 == digest
