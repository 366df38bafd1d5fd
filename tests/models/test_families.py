import subprocess
import sys
from fractions import Fraction
from importlib import resources

import numpy as np
import pytest
import soundfile
import torch
from torch import nn

from splitter import models
from splitter.errors import AudioError, UsageError
from splitter.models.demucs import DemucsFamily
from splitter.models.separator import SeparatorFamily
from splitter.plan.schema import Plan

from ..conftest import ROOT
from ..toys import PACKAGES_PLAN, separating

OWN_ROOMS = {"models", "separation", "cli"}  # help names models to ask for


def test_names_and_files_find_their_family():
    family, ensemble = models.load("demo")
    assert (family.name, ensemble.name, ensemble.weights) == ("demucs", "demo", ((1.0,) * 4,))
    assert ensemble.members[0].class_path == "demucs.htdemucs.HTDemucs"
    assert {"demo", "htdemucs", "htdemucs_ft", "htdemucs_6s"} <= set(models.names())
    path = resources.files("splitter_weights.demo") / "demo.safetensors"
    assert models.load(path)[1].members[0].sha256 == ensemble.members[0].sha256


def test_unknown_model_lists_names_and_suffixes():
    with pytest.raises(UsageError, match=r"unknown model 'demoo'. Names are demo, .*files end in .*\.safetensors"):
        models.load("demoo")


def test_module_finds_the_family_it_fits(demo_model):
    assert models.of_module(demo_model)[0].name == "demucs"
    family, ensemble = models.of_module(separating())
    assert (family.name, ensemble.weights) == ("separator", ((1.0,),))
    assert models.of_module(nn.Linear(2, 2))[0].name == "module"


def test_presets_fit_their_classes(demo_model):
    assert models.preset_for(models.Model("demo", demo_model)).family == "htdemucs"
    assert models.preset_for(models.Model("x", nn.Linear(2, 2))) is None
    assert {"htdemucs", "hdemucs"} <= models.presets().keys()


def test_module_is_set_to_the_length_of_a_run():
    module = separating()
    plan = SeparatorFamily().prepared(module, PACKAGES_PLAN, 0.004)
    assert (plan.segment_samples, module.segment) == (32, Fraction(32, 8000))
    with pytest.raises(UsageError, match=r"at most 0.004 s, found 1 s"):
        SeparatorFamily().prepared(module, PACKAGES_PLAN, 1.0)


def test_example_is_what_separate_feeds(tmp_path):
    """Zero mean and unit deviation of the mono mixdown, of the recording's beginning."""
    module = separating()
    plan = SeparatorFamily().prepared(module, PACKAGES_PLAN, None)
    path = tmp_path / "loud.wav"
    sound = 0.3 + 0.1 * np.random.default_rng(0).standard_normal((400, 2))
    soundfile.write(path, sound, 8000, subtype="FLOAT")
    example = SeparatorFamily().example(module, plan, path)
    ((name, mix),) = example.inputs.items()
    assert (name, example.description, tuple(mix.shape)) == ("mix", "loud.wav", (1, 2, 64))
    mono = mix[0].double().mean(0)
    assert abs(float(mono.mean())) < 1e-6
    assert abs(float(mono.std()) - 1) < 1e-6
    again = SeparatorFamily().example(module, plan, None)
    assert again.description == "synthesised song, seed 20260101"
    assert not torch.equal(again.inputs["mix"], mix)


def test_silent_recording_is_refused(tmp_path):
    soundfile.write(tmp_path / "silent.wav", np.zeros((400, 2)), 8000)
    module = separating()
    plan = SeparatorFamily().prepared(module, PACKAGES_PLAN, None)
    with pytest.raises(AudioError, match=r"the golden input is silent: silent.wav. Choose a file"):
        SeparatorFamily().example(module, plan, tmp_path / "silent.wav")


def test_family_without_audio_keeps_the_plan_and_has_no_length():
    class Plain(models.Family):
        name = "plain"

        def fits(self, module):
            return False

        def example(self, module, plan, recording):
            pytest.fail("no golden input is asked for")

    plan = Plan(family="own", outputs=("y",), stages=({"name": "all", "target": "graph"},))
    assert Plain().prepared(nn.Linear(1, 1), plan, None) is plan
    with pytest.raises(UsageError, match="models of the family 'plain' have no length to choose; got 1 s"):
        Plain().prepared(nn.Linear(1, 1), plan, 1.0)
    assert Plain().audio(nn.Linear(1, 1), plan) is None
    with pytest.raises(UsageError, match="are given as modules"):
        Plain().load("x")


def test_a_preset_names_what_one_configuration_has(demo_model):
    (preset,) = [plan for plan in DemucsFamily().plans() if plan.family == "htdemucs"]
    plan = DemucsFamily().prepared(demo_model, preset, None)
    paths = [path for stage in plan.stages for path in stage.modules]
    assert {"encoder", "crosstransformer", "decoder"} <= set(paths)
    assert all(hasattr(demo_model, path) for path in paths)


def test_named_function_is_patched_while_captured_only():
    import demucs.hdemucs

    before = demucs.hdemucs.pad1d
    (patch,) = DemucsFamily().patches()
    with patch():
        assert demucs.hdemucs.pad1d is not before
    assert demucs.hdemucs.pad1d is before


def test_general_rooms_name_no_model_family():
    """Of what the families bring, only their own room, and that of whole songs, may speak."""
    rooms = [path for path in (ROOT / "splitter").rglob("*.py") if path.parts[len(ROOT.parts) + 1] not in OWN_ROOMS]
    families = ("demucs", "roformer", "openunmix", "open-unmix", "msst")
    named = [
        str(path.relative_to(ROOT)) for path in rooms if any(name in path.read_text().lower() for name in families)
    ]
    assert len(rooms) > 100
    assert named == []
    script = "import sys, splitter.compiler; print([name for name in sys.modules if name.startswith('demucs')])"
    result = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert result.stdout.strip() == "[]"
