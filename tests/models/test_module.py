"""Modules of no family: factories by name, and what is said of those that are none."""

import pytest
from torch import nn

from splitter import models
from splitter.errors import CheckpointError, UsageError
from splitter.models.module import ModuleFamily, from_factory, is_reference

CODE = """
from torch import nn
import os

class Net(nn.Linear):
    def __init__(self):
        super().__init__(2, 3)

def net():
    return Net()

def broken():
    raise RuntimeError("no weights here")

def nothing():
    return {"a": 1}

number = 3
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    (tmp_path / "my_code_of_a_test.py").write_text(CODE)
    (tmp_path / "broken_code_of_a_test.py").write_text("import not_installed_anywhere\n")
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("factory", ["net", "Net"])
def test_a_factory_of_the_current_folder_is_called(home, factory):
    model = from_factory(f"my_code_of_a_test:{factory}")
    assert (model.name, model.class_path, model.module.training) == (factory, "my_code_of_a_test.Net", False)
    family, ensemble = models.of_model(model)
    assert (family.name, ensemble.name, ensemble.weights) == ("module", factory, ((),))


@pytest.mark.parametrize(
    ("reference", "kind", "message"),
    [
        ("my_code_of_a_test:nett", UsageError, r"has no function or class 'nett'\. The nearest: .*net"),
        ("my_code_of_a_test:number", UsageError, r"has no function or class 'number'"),
        ("no_code_of_a_test:net", UsageError, r"no Python module 'no_code_of_a_test' .* run the command in the folder"),
        (
            "broken_code_of_a_test:net",
            CheckpointError,
            r"cannot be imported; got ModuleNotFoundError.*not_installed_any",
        ),
        ("my_code_of_a_test:broken", CheckpointError, r"called without arguments; got RuntimeError: no weights here"),
        ("my_code_of_a_test:nothing", CheckpointError, r"returns no model: expected a torch.nn.Module, found dict"),
    ],
)
def test_what_is_no_factory_is_said(home, reference, kind, message):
    with pytest.raises(kind, match=message):
        from_factory(reference)


def test_what_looks_like_a_reference():
    assert is_reference("a.b:c")
    assert not any(map(is_reference, ("htdemucs", "C:/a/b.th", "a:b:c", "a/b:c", "demo.safetensors")))
    with pytest.raises(UsageError, match="only build and plan run"):
        models.load("a.b:c")


def test_a_module_of_no_family_needs_inputs():
    with pytest.raises(CheckpointError, match=r"Linear is of no installed model family.*--inputs FILE.npz"):
        ModuleFamily().example(nn.Linear(1, 1), None, None)
