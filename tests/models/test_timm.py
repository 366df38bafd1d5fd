"""Vision hybrids as timm has them: MobileViT, with seeded weights and statistics."""

import re
import sys
import time
from importlib.util import find_spec

import numpy as np
import pytest
import torch

import splitter
from splitter import models
from splitter.errors import CheckpointError, UsageError
from splitter.models.timm import TimmFamily
from splitter.plan import proposal
from splitter.verification.port import verify_port

from ..conftest import snr_db
from ..mil.small_models import randomized

pytestmark = pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed (the extra `timm`)")
BLOCK = "stages.2.1.transformer.0"
STAGES = ["cnn_1", "transformer_1", "cnn_2", "transformer_2", "cnn_3", "transformer_3", "cnn_4"]


@pytest.fixture(scope="module")
def module():
    """With statistics of its norms that are not 0 and 1, as trained ones are."""
    return randomized(models.load("mobilevit_xxs", random_init=0)[1].members[0].module)


@pytest.fixture(scope="module")
def inputs():
    return {"x": torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(1))}


@pytest.fixture(scope="module")
def bag(module, inputs, tmp_path_factory):
    home = tmp_path_factory.mktemp("timm")
    start = time.process_time()
    splitter.new_plan(module, inputs=inputs, out=home / "plan.toml")
    assert time.process_time() - start < 30
    return splitter.build(module, home / "m.bundle", inputs=inputs, plan=home / "plan.toml", reference=False)


@pytest.fixture(scope="module")
def bundle(bag):
    return bag.members[0]


def test_the_stages_alternate_and_the_proposed_plan_is_obeyed_as_it_is(bag, bundle, module, inputs):
    assert bundle.manifest.model.family == "timm"
    assert [stage.name for stage in bundle.manifest.plan.stages] == STAGES
    with torch.no_grad():
        assert np.array_equal(bundle.goldens()["output"], module(inputs["x"]).numpy())
    (report,) = splitter.verify(bag)
    assert report.passed
    assert report.partition_max_abs == 0.0


def test_packages_are_exact(bundle):
    results = splitter.Orchestrator(bundle, dict.fromkeys(STAGES, "mil")).run({"x": bundle.goldens()["x"]})
    assert snr_db(bundle.goldens()["output"], results["output"]) >= 115


def test_doctor_and_profile_go_through(bag, quick_profile):
    assert not splitter.doctor(bag.path, run=False).fails("error")
    assert [segment.name for segment in splitter.profile(bag, runs=1).segments] == STAGES


def test_a_port_is_judged_at_every_tap_of_every_stage(bundle):
    taps = splitter.record_taps(bundle).values
    assert len(taps) > 250
    report = verify_port([taps], bundle)
    assert report.passed
    assert report.missing == ()


@pytest.mark.parametrize(
    ("tap", "change", "cause"),
    [
        (f"{BLOCK}.mlp.act", lambda taps: np.maximum(taps[f"{BLOCK}.mlp.fc1"], 0), "ReLU where the model has SiLU"),
        (f"{BLOCK}.norm1", lambda taps: taps[f"{BLOCK}.norm1"] * 1.25, "a constant gain of 1.25"),
        ("stages.2.1.conv_proj.conv", lambda taps: taps["stages.2.1.conv_proj.conv"][:, ::-1], "channel order"),
        ("stages.0.0", lambda taps: taps["stages.0.0"].swapaxes(2, 3), "permuted: the values lie as"),
    ],
)  # fmt: skip
def test_mistakes_in_a_port_are_named(bundle, tap, change, cause):
    taps = splitter.record_taps(bundle).values
    wrong = np.ascontiguousarray(change(taps), np.float32)
    same = {name for name, value in taps.items() if value is taps[tap]}
    report = verify_port([{name: value for name, value in taps.items() if name not in same} | {tap: wrong}], bundle)
    assert report.first_divergence.subject == tap
    assert re.search(cause, report.first_divergence.note), report.first_divergence.note


def test_names_and_examples(module):
    assert models.of_module(module)[0].name == "timm"
    blank = proposal.blank("ByobNet", "timm.models.byobnet.ByobNet")
    example = TimmFamily().example(module, blank, None)
    image = example.inputs["x"]
    assert image.shape == (1, 3, 256, 256)
    assert abs(float(image.mean())) < 1e-5
    assert abs(float(image.std()) - 1) < 1e-5
    with pytest.raises(UsageError, match="a model of images has no sound"):
        TimmFamily().example(module, blank, "song.wav")


def test_weights_that_cannot_be_had_are_one_message(monkeypatch):
    import timm

    def refuses(*args, **kwargs):
        raise OSError("no route\nto the hub")

    monkeypatch.setattr(timm, "create_model", refuses)
    with pytest.raises(CheckpointError, match=r"weights of mobilevit_s .* cannot be fetched; got OSError: no route. "):
        models.load("mobilevit_s")


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UsageError, match=r"pip install 'splitter\[timm\]'"):
        models.load("mobilevit_s", random_init=0)
