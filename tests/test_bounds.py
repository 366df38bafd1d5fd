"""Small files that ask for much memory, for a long time or for a deep stack: each is refused, by name, within bounds.

Everything is read in one process of its own, where each variant is a fork whose address space is limited.
"""

import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import soundfile

from splitter import arrays
from splitter.mil import load
from splitter.plan import schema
from splitter.profiling import records
from splitter.separation.audio import Track, statistics

from . import bounded
from .mil.harness import mb, package

SPACE = 1 << 30  # bytes beyond what the process maps already
MEMORY = "256MB"  # the limit that the readers know of
SECONDS = 20
pytestmark = pytest.mark.slow
HUGE = 1 << 40
VARIANTS = {}


def variant(name, said):
    """Register what makes a file in a directory and returns a function that reads it, with the refusal it ends in."""

    def register(make):
        VARIANTS[name] = make, said
        return make

    return register


# ------------------------------------------------------------------------------------------ arrays


def npy(shape, dtype="<f4", values=b""):
    header = f"{{'descr': {dtype!r}, 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header.encode() + values


def zipped(path, members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(path, "w", compression) as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name, content in members:
            archive.writestr(name, content)
    return path


EXPECTED = {"x": (1, 2, 8)}


@variant("npz, zeros deflated, nothing expected", "UsageError: .*needs too much memory: expected at most 256.0 MB")
def _(d):
    path = zipped(d / "a.npz", [(f"x{i}.npy", npy((1 << 26,), "|u1", bytes(1 << 26))) for i in range(5)])
    assert path.stat().st_size < 1 << 20
    return lambda: arrays.read(path)


@variant("npz, zeros deflated under an expected name", "UsageError: 'x' in .* needs too much memory")
def _(d):
    path = zipped(d / "a.npz", [("x.npy", npy((1 << 24,), "|u1", bytes(1 << 24)))])
    return lambda: arrays.read(path, expected=EXPECTED)


@variant("npz, zeros deflated under another name", "UsageError: .*an array that is not expected: expected x, found 'y'")
def _(d):
    path = zipped(d / "a.npz", [("y.npy", npy((1 << 26,), "|u1", bytes(1 << 26)))])
    return lambda: arrays.read(path, expected=EXPECTED)


@variant("npz, 4 TiB in its header", "UsageError: .*an array of shape .1099511627776,.*in 144 bytes")
def _(d):
    path = zipped(d / "a.npz", [("x.npy", npy((HUGE,), values=bytes(16)))])
    return lambda: arrays.read(path)


@variant("npz, 4 TiB in its directory", "UsageError: .*larger than it can be")
def _(d):
    path = zipped(d / "a.npz", [("x.npy", npy((HUGE,), values=bytes(16)))], zipfile.ZIP_STORED)
    raw = path.read_bytes()
    place = raw.index(b"PK\x01\x02") + 24
    path.write_bytes(raw[:place] + b"\xfe\xff\xff\xff" + raw[place + 4 :])
    return lambda: arrays.read(path)


@variant("npz, one name many times", "UsageError: .*there twice")
def _(d):
    path = zipped(d / "a.npz", [("x.npy", npy((1 << 24,), "|u1", bytes(1 << 24)))] * 12)
    return lambda: arrays.read(path)


@variant("npz, a dictionary of gigabytes for LZMA", "UsageError: .*neither stored nor deflated")
def _(d):
    path = zipped(d / "a.npz", [("x.npy", npy((2,), values=bytes(8)))], zipfile.ZIP_LZMA)
    return lambda: arrays.read(path)


@variant("npz, a header nested deep", "UsageError: .*cannot be read as arrays by name")
def _(d):
    path = zipped(d / "a.npz", [("x.npy", npy("(" * 4000 + ")" * 4000, values=bytes(8)))])
    return lambda: arrays.read(path)


@variant("npz, a header that does not end", "UsageError: .*its header cannot be read")
def _(d):
    path = zipped(d / "a.npz", [("x.npy", npy("(2,", values=bytes(8)).replace(b"}", b" "))])
    return lambda: arrays.read(path)


@variant("npy, 4 TiB in its header", "UsageError: .*an array of shape .1099511627776")
def _(d):
    (d / "x.npy").write_bytes(npy((HUGE,), values=bytes(16)))
    return lambda: arrays.read(d)


@variant(
    "npy, another shape than expected", r"UsageError: 'x' in .* has another shape: expected \(1, 2, 8\), found \(16,\)"
)
def _(d):
    (d / "x.npy").write_bytes(npy((16,), values=bytes(64)))
    return lambda: arrays.read(d, expected=EXPECTED)


@variant("npy, a pipe", "UsageError: .*it is a pipe, not a regular file")
def _(d):
    os.mkfifo(d / "x.npy")
    return lambda: arrays.read(d)


@variant("npz, a pipe", "UsageError: .*it is a pipe, not a regular file")
def _(d):
    os.mkfifo(d / "a.npz")
    return lambda: arrays.read(d / "a.npz")


@variant("safetensors, a pipe", "UsageError: .*it is a pipe, not a regular file")
def _(d):
    os.mkfifo(d / "a.safetensors")
    return lambda: arrays.read(d / "a.safetensors")


@variant("safetensors, a device", "UsageError: .*it is a device, not a regular file")
def _(d):
    (d / "a.safetensors").symlink_to("/dev/zero")
    return lambda: arrays.read(d / "a.safetensors")


def sparse(path, size):
    with path.open("wb") as file:
        file.truncate(size)


def index(d, entries):
    sparse(d / "x.bin", 1 << 26)
    (d / "a.json").write_text(json.dumps({name: {"file": "x.bin"} | entry for name, entry in entries.items()}))
    return d / "a.json"


@variant("raw index, a hundred overlapping arrays in one file", "UsageError: .*it overlaps with other arrays in x.bin")
def _(d):
    path = index(d, {f"x{i}": {"shape": [(1 << 24) - 1 - i]} for i in range(100)})
    return lambda: arrays.read(path)


@variant("raw index, a hundred names of one array", "result")
def _(d):
    path = index(d, {f"x{i}": {"shape": [1 << 24]} for i in range(100)})
    return lambda: arrays.read(path)


@variant("raw index, more than the limit in a sparse file", "UsageError: .*needs too much memory: expected at most 256")
def _(d):
    path = index(d, {"x": {"shape": [1 << 30], "dtype": "uint8"}})
    sparse(d / "x.bin", 1 << 30)
    return lambda: arrays.read(path)


@variant("raw index, an offset of 5,000 digits", "UsageError: .*is no index of raw arrays")
def _(d):
    (d / "a.json").write_text('{"x": {"file": "x.bin", "shape": [1], "offset": ' + "1" * 5000 + "}}")
    return lambda: arrays.read(d / "a.json")


@variant("raw index, nested deep", "UsageError: .*is no index of raw arrays")
def _(d):
    (d / "a.json").write_text('{"x": ' * 100_000)
    return lambda: arrays.read(d / "a.json")


@variant("raw index, an element of gigabytes", "UsageError: .*cannot be read")
def _(d):
    path = index(d, {"x": {"shape": [0], "dtype": "(1000000000,)f8"}})
    return lambda: arrays.read(path)


@variant("raw index, a pipe", "UsageError: .*it is a pipe, not a regular file")
def _(d):
    os.mkfifo(d / "a.json")
    return lambda: arrays.read(d / "a.json")


@variant("raw index, its file a pipe", "UsageError: .*it is a pipe, not a regular file")
def _(d):
    os.mkfifo(d / "y.bin")
    path = index(d, {"x": {"shape": [0], "file": "y.bin"}})
    return lambda: arrays.read(path)


# ------------------------------------------------------------------------------------------- sound


def wave(path, place, number, width=4):
    soundfile.write(path, np.zeros(1 << 16, np.float32), 44100, subtype="PCM_16")
    raw = path.read_bytes()
    path.write_bytes(raw[:place] + number.to_bytes(width, "little") + raw[place + width :])
    return lambda: statistics(Track(path, 44100, 2))


@variant("WAV at 1 Hz", "AudioError: .*impossible sample rate: expected 1,000 to 768,000 Hz, found 1 Hz")
def _(d):
    return wave(d / "a.wav", 24, 1)


@variant("WAV at 4 GHz", "AudioError: ")
def _(d):
    return wave(d / "a.wav", 24, (1 << 31) - 1)


@variant("WAV for a model at 1 GHz", "AudioError: the model has an impossible sample rate: .*found 1,000,000,000 Hz")
def _(d):
    wave(d / "a.wav", 24, 44100)
    return lambda: statistics(Track(d / "a.wav", 10**9, 2))


@variant("WAV with 1,000 channels", "AudioError: .*too many channels: expected at most 64, found 1000")
def _(d):
    soundfile.write(d / "a.wav", np.zeros((64, 1000), np.float32), 44100, subtype="PCM_16")
    return lambda: statistics(Track(d / "a.wav", 44100, 2))


@variant("FLAC with 2³⁶ samples in its header", "AudioError: .*cannot be as long as its header says")
def _(d):
    soundfile.write(d / "a.flac", np.zeros(1 << 12, np.float32), 44100, subtype="PCM_16")
    raw = bytearray((d / "a.flac").read_bytes())
    raw[21] |= 0x0F
    raw[22:26] = b"\xff" * 4
    (d / "a.flac").write_bytes(raw)
    return lambda: statistics(Track(d / "a.flac", 44100, 2))


@variant("a pipe for a song", "AudioError: .*it is a pipe, not a regular file")
def _(d):
    os.mkfifo(d / "a.wav")
    return lambda: statistics(Track(d / "a.wav", 44100, 2))


# ---------------------------------------------------------------------------------------- packages

X = np.zeros((1, 4), np.float32)


def predicted(d, build):
    path = package(build, {"x": X}, d)
    return lambda: load(path).predict({"x": X})


def grown(x, extent):
    return mb.add(x=mb.tile(x=x, reps=[extent // 4, 1]), y=x)


@variant("package, a result of a terabyte", "OperationError: tile .* of op.mlpackage: the result needs too much memory")
def _(d):
    return predicted(d, lambda x: mb.tile(x=x, reps=[1 << 30, 1]))


@variant("package, many results held to the end", "OperationError: .*needs? too much memory.*of other values")
def _(d):
    def build(x):
        parts = [grown(x, (1 << 22) + 4 * i) for i in range(20)]  # 16 MB each
        return mb.concat(values=[mb.reduce_sum(x=part, axes=[0]) for part in reversed(parts)], axis=0)

    return predicted(d, build)


@variant("package, many results, each freed", "result")
def _(d):
    def build(x):
        for extent in range(20):
            x = mb.reduce_max(x=grown(x, (1 << 22) + 4 * extent), axes=[0], keep_dims=True)
        return x

    return predicted(d, build)


@variant("package, one value under many output names", "OperationError: .*too much memory")
def _(d):
    def build(x):
        big = grown(x, 1 << 22)
        return tuple(mb.identity(x=big) for _ in range(24))

    return predicted(d, build)


@variant("package, an endless loop", "OperationError: .*more than 1000 iterations")
def _(d):
    def endless(x):
        return mb.while_loop(
            _cond=lambda x: mb.less(x=mb.reduce_sum(x=x, keep_dims=False), y=np.float32(1e9)),
            _body=lambda x: mb.mul(x=x, y=np.float32(0.5)),
            loop_vars=(x,),
        )

    path = package(endless, {"x": X}, d)
    return lambda: load(path, max_iterations=1000).predict({"x": X})


@variant("package, the inner products of a recurrent layer", "OperationError: .*too much memory")
def _(d):
    def build(x):
        seq = mb.fill(shape=[1 << 18, 1, 1], value=np.float32(0))
        width = 64
        first, *_ = mb.lstm(
            x=seq, initial_h=np.zeros((1, width), np.float32), initial_c=np.zeros((1, width), np.float32),
            weight_ih=np.zeros((4 * width, 1), np.float32), weight_hh=np.zeros((4 * width, width), np.float32),
            direction="forward", output_sequence=False,
        )  # fmt: skip
        return mb.add(x=mb.squeeze(x=first, axes=[0]), y=mb.reduce_sum(x=x))

    return predicted(d, build)


@variant("package, its manifest nested deep", "PackageError: the manifest of op.mlpackage")
def _(d):
    path = package(lambda x: mb.relu(x=x), {"x": X}, d)
    (path / "Manifest.json").write_text("[" * 100_000)
    return lambda: load(path)


@variant("package, a number of 5,000 digits in its manifest", "PackageError: the manifest of op.mlpackage")
def _(d):
    path = package(lambda x: mb.relu(x=x), {"x": X}, d)
    (path / "Manifest.json").write_text('{"a": ' + "1" * 5000 + "}")
    return lambda: load(path)


# ------------------------------------------------------------------------------------------- texts


def text(read, content):
    def make(d):
        path = d / "a.toml"
        os.mkfifo(path) if content is None else path.write_text(content)
        return lambda: read(path)

    return make


DIGITS = "1" * 5000
for name, content in {
    "nested deep": "a = " + "[" * 100_000,
    "deep by its keys": "a." * 300 + "a = 1",
    "a number of 5,000 digits": f"a = {DIGITS}",
    "a hexadecimal number of 5,000 digits": f"family = 0x{DIGITS}",
    "larger than plans are": "#" * (1 << 20),
    "a zero byte": "\0",
    "a pipe": None,
}.items():
    variant(f"plan, {name}", "PlanError: ")(text(schema.load, content))
for name, content in {
    "nested deep": '{"others": [' * 100_000,
    "a number of 5,000 digits": f'{{"samples": {DIGITS}}}',
    "a pipe": None,
}.items():
    variant(f"profile, {name}", "UsageError: .*is no profile")(text(records.read, content))


# ------------------------------------------------------------------------------------------- tests


@pytest.fixture(scope="module")
def outcomes():
    command = [sys.executable, "-m", "tests.test_bounds"]
    environment = os.environ | {"SPLITTER_MAX_MEMORY": MEMORY, "OMP_NUM_THREADS": "1"}
    child = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert child.returncode == 0, child.stderr[-3000:]
    return json.loads(child.stdout.splitlines()[-1])


@pytest.mark.skipif(not bounded.IS_LINUX, reason="address spaces are limited on Linux")
@pytest.mark.parametrize("name", VARIANTS)
def test_a_small_file_is_refused_by_name_or_read_within_bounds(outcomes, name):
    expected = VARIANTS[name][1]
    assert re.match(expected, outcomes[name], re.DOTALL), outcomes[name]


def main():
    found = {}
    for name, (make, _) in VARIANTS.items():
        with tempfile.TemporaryDirectory() as directory:
            read = make(Path(directory))
            found[name] = bounded.run(read, SPACE, SECONDS)
    print(json.dumps(found))  # noqa: T201 - to the test


if __name__ == "__main__":
    main()
