"""What a user installs: one package, nothing generic beside it."""

import os
import subprocess
import sys
import zipfile

import pytest

from .conftest import ROOT


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "build", "--wheel", "--outdir", out, ROOT], check=True, capture_output=True)
    (path,) = out.glob("*.whl")
    return path


def test_wheel_squats_no_generic_names(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.split("/")[0] for name in names} == {
        "splitter",
        "splitter_kernels",
        "splitter_weights",
        "splitter-0.1.0.dist-info",
    }
    for needed in (
        "splitter_kernels/reference.py",
        "splitter_kernels/metal/linear.metal",
        "splitter_kernels/metal/storage.h",
        "splitter_kernels/metal/host/metal_stdlib",
        "splitter_kernels/metal/host/runtime.cpp",
        "splitter_weights/demo/demo.safetensors",
        "splitter/models/demucs/htdemucs.toml",
        *(f"splitter/reporting/templates/{path.name}" for path in (ROOT / "splitter/reporting/templates").iterdir()),
    ):
        assert needed in names
    assert not any("__pycache__" in name or "tests" in name for name in names)


def test_installed_wheel_works_away_from_the_source(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path / "site")
    script = (
        "import splitter, splitter_kernels.spec, splitter_weights.checkpoints as c; print(splitter.__file__); "
        "print(c.load('demo').members[0].model.sources)"
    )
    env = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=env, check=True, capture_output=True, text=True
    )
    assert str(tmp_path / "site") in result.stdout
    assert "vocals" in result.stdout


def test_bare_import_is_light():
    script = "import sys, splitter; print([m for m in ('torch', 'jax', 'coremltools', 'numpy') if m in sys.modules])"
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_every_public_name_is_there():
    import splitter

    for name in splitter.__all__:
        assert getattr(splitter, name).__doc__
    with pytest.raises(AttributeError, match="nothing"):
        _ = splitter.nothing


def test_separating_imports_neither_the_compiler_nor_its_tools(demo_path, song_path, tmp_path):
    script = (
        "import sys; import splitter; "
        f"separator = splitter.Separator({str(demo_path)!r}, 'default', options=splitter.Options(shifts=0)); "
        f"separator.separate([{str(song_path)!r}], {str(tmp_path)!r}); "
        "print([m for m in ('coremltools', 'jax', 'demucs', 'torch._dynamo', 'sympy') if m in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"


def test_no_host_and_no_path_of_one_machine_in_the_tree():
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    for name in tracked:
        path = ROOT / name
        if path.suffix in (".py", ".md", ".toml", ".txt", ".yaml", ".json", "") and path.is_file():
            text = path.read_text(errors="ignore")
            for needle in ("/" + "work/", "/" + "root/", "/" + "farm", "pypi-" + "more"):
                assert needle not in text, f"{name} holds {needle}"
