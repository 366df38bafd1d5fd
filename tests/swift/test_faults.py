"""Faults put into a copy of the Swift sources, one at a time: `splitter verify-port` must name each from the host's dump."""

import shutil
import subprocess

import pytest
from click.testing import CliRunner

from splitter.cli.shell import command

from ..conftest import ROOT
from .conftest import ENVIRONMENT

pytestmark = [pytest.mark.swift, pytest.mark.slow, pytest.mark.timeout(1800)]
SOURCES = "Sources/SplitterHost"
FAULTS = {
    "window scaling": (
        f"{SOURCES}/HostTransform.swift",
        "        var factor = scale\n",
        "        var factor: Float = 1\n",
        "analysis.stft (the scale 1/√N left out",
    ),
    "missing factor 2": (
        f"{SOURCES}/RealTransform.swift",
        "var scale: Float = 0.5",
        "var scale: Float = 1",
        "analysis.stft (a constant gain of 2;",
    ),
    "wrong head split": (
        f"{SOURCES}/TransformerPass.swift",
        'let (count, size) = (constants("attention"), width / config.heads)',
        'let (count, size) = (constants("attention"), config.heads)',
        "layers.0.heads (10 heads of 8 channels where the model has 8 of 10",
    ),
    "missing barrier": (
        f"{SOURCES}/Kernels/reduction.h",
        "        threadgroup_barrier(mem_flags::mem_threadgroup); // what is added below has been written\n",
        "",
        "norm_in (repeated runs disagree in 41,600 of 41,600 values: a race",
    ),
}


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The package, its kernels in place of links to them."""
    path = tmp_path_factory.mktemp("faults") / "swift"
    shutil.copytree(ROOT / "swift", path, ignore=shutil.ignore_patterns(".build"))
    return path


def run(*arguments, **environment):
    result = subprocess.run(
        [ROOT / "swift" / "toolchain.sh", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env=ENVIRONMENT | environment,
    )
    assert result.returncode == 0, result.stdout[-2000:] + result.stderr


@pytest.mark.parametrize("fault", FAULTS)
def test_verify_port_names_it(copy, demo_path, tmp_path, fault):
    """From dumps in two orders of threads, which must agree."""
    file, old, new, named = FAULTS[fault]
    source = copy / file
    text = source.read_text()
    assert text.count(old) == 1
    source.write_text(text.replace(old, new))
    try:
        run("swift", "build", "--package-path", copy, "-c", "release", "--product", "splitter-host")
        dumps = [tmp_path / f"{order}.safetensors" for order in ("forward", "reverse")]
        for path in dumps:
            program = copy / ".build" / "release" / "splitter-host"
            run(program, "dump", demo_path, "-o", path, METAL_STANDIN_ORDER=path.stem)
    finally:
        source.write_text(text)
    report = CliRunner().invoke(command, ["verify-port", *map(str, dumps), "-b", str(demo_path)])
    assert report.exit_code == 1
    assert f"first divergence: {named}" in report.output
