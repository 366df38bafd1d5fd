"""The recurrent models of demucs's package: built, verified, and separating as demucs's own inference does."""

import numpy as np
import pytest
import torch
from demucs.apply import apply_model
from demucs.demucs import Demucs
from demucs.hdemucs import HDemucs
from splitter_weights.demo import songs

import splitter
from splitter import models
from splitter.errors import CheckpointError, UsageError
from splitter.models.demucs import DemucsFamily
from splitter.verification.verify import verify_bundle

from ..conftest import snr_db

KINDS = {
    "demucs": lambda: Demucs(["drums", "bass"], channels=8, depth=3, segment=1, samplerate=8000, lstm_layers=2),
    "hdemucs": lambda: HDemucs(sources=["drums", "bass"], channels=4, nfft=1024, segment=0.5),
}


def separator(kind):
    torch.manual_seed(0)
    return KINDS[kind]().eval()


@pytest.fixture(scope="module", params=KINDS)
def built(request, tmp_path_factory):
    module = separator(request.param)
    return module, splitter.build(module, tmp_path_factory.mktemp(request.param) / "bundle")


def test_bundle_is_exact_and_its_files_do_what_the_model_does(built):
    _, bag = built
    (bundle,) = bag.members
    targets = {segment.name: segment.artifact.target for segment in bundle.segments}
    assert (targets["encoder"], targets["decoder"]) == ("coreml", "coreml")
    assert {"skip_0", "skip_freq_0"} & bundle.tensors.keys()
    report = verify_bundle(bundle)
    assert report.passed
    assert report.partition_max_abs == 0.0
    silent = {name for name in bundle.tensors if name.endswith("_mean")}  # sums that cancel have few exact digits
    local = [c.parity.snr_db for c in report.checks if c.scope == "local" and c.parity and c.subject not in silent]
    assert len(local) >= 5
    assert min(local) >= 115


def test_separate_equals_demucs(built):
    module, bag = built
    rate = int(module.samplerate)
    mix = songs.mixture(songs.synthesise(2.2, 5, rate))
    mono = torch.from_numpy(mix).mean(0)
    mean, std = mono.mean(), mono.std() + 1e-8
    with torch.no_grad():
        run = apply_model(module, ((torch.from_numpy(mix) - mean) / std)[None], shifts=0, overlap=0.25)
    expected = (run[0] * std + mean).numpy()
    stems = splitter.Separator(bag, "default", options=splitter.Options(shifts=0))(mix, rate)
    whole = mix.shape[1] // bag.members[0].audio.samples * bag.members[0].audio.samples * 3 // 4
    for name, theirs in zip(stems, expected, strict=True):
        assert snr_db(theirs[:, :whole], stems[name][:, :whole]) >= 100


@pytest.mark.slow
def test_doctor_profile_and_report_go_through(built, quick_profile, tmp_path):
    _, bag = built
    (bundle,) = bag.members
    assert not splitter.doctor(bag, run=False).fails("error")
    names = [segment.name for segment in bundle.segments]
    assert [segment.name for segment in splitter.profile(bag, runs=1).segments] == names
    page = splitter.report(bag, tmp_path / "r.html", runs=1)
    assert page.verified
    assert all(name in page.path.read_text() for name in names)


def test_runs_are_as_long_as_the_model_takes_without_padding():
    module, family = separator("demucs"), DemucsFamily()
    plan = models.preset_for(models.Model("x", module))
    samples = family.prepared(module, plan, None).segment_samples
    assert 7000 < samples <= 8000
    assert module.valid_length(samples) == samples
    assert module.valid_length(samples + 1) > 8000
    assert module.segment * 8000 == samples
    with pytest.raises(UsageError, match=r"at least \d+ samples, found 8 samples"):
        family.prepared(module, plan, 0.001)
    assert np.isclose(float(module.segment) * 8000, 8)


def test_checkpoint_is_read_as_data(tmp_path):
    module = separator("demucs")
    args, kwargs = module._init_args_kwargs
    package = {"klass": Demucs, "args": args, "kwargs": kwargs, "state": module.state_dict()}
    torch.save(package, tmp_path / "model.th")
    (member,) = models.load(tmp_path / "model.th")[1].members
    assert member.class_path == "demucs.demucs.Demucs"
    for key, tensor in module.state_dict().items():
        assert torch.equal(tensor, member.module.state_dict()[key])
    torch.save(package | {"kwargs": kwargs | {"nfft": 64}}, tmp_path / "model.th")
    with pytest.raises(CheckpointError, match="describes a model that cannot be built; got TypeError.*nfft"):
        models.load(tmp_path / "model.th")
