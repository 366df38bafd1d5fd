"""Open-Unmix's own module: built, verified, and its separators by name."""

import sys
from types import ModuleType

import numpy as np
import pytest
import torch
from splitter_weights.demo import songs

import splitter
from splitter import models
from splitter.errors import CheckpointError, UsageError
from splitter.models import openunmix
from splitter.models.openunmix import OpenUnmixFamily
from splitter.opening import captured
from splitter.verification.verify import verify_bundle

from ..conftest import snr_db


def separator(**options):
    home = openunmix.package()
    torch.manual_seed(0)
    networks = {
        stem: home.OpenUnmix(nb_bins=129, nb_channels=2, hidden_size=16, nb_layers=2, max_bin=100)
        for stem in ("vocals", "drums")
    }
    for network in networks.values():
        torch.nn.init.constant_(network.output_mean, 0.3)  # so that ReLU leaves something
    return home.Separator(networks, n_fft=256, n_hop=64, **{"niter": 1, "wiener_win_len": 30} | options).eval()


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    module = separator()
    return module, splitter.build(module, tmp_path_factory.mktemp("umx") / "bundle", segment=3000 / 44_100)


def test_bundle_is_exact_and_its_files_do_what_the_model_does(built):
    """In 47 frames, so in two windows of the filter."""
    _, bag = built
    (bundle,) = bag.members
    assert (bundle.manifest.model.family, bundle.audio.stems) == ("openunmix", ("vocals", "drums"))
    assert [segment.artifact.target for segment in bundle.segments] == ["host", "coreml", "graph"]
    assert {"spectrogram", "magnitude_0", "stem_magnitude_1"} <= bundle.tensors.keys()
    report = verify_bundle(bundle)
    assert report.passed
    assert report.partition_max_abs == 0.0
    local = [check.parity.snr_db for check in report.checks if check.scope == "local" and check.parity]
    assert len(local) >= 5
    assert min(local) >= 115


def test_separate_gives_what_the_model_gives(built):
    """Of one run's length, in one chunk; the mixture is heard as it is."""
    module, bag = built
    mix = songs.mixture(songs.synthesise(0.5, 5, 44_100))[:, :3000]
    stems = splitter.Separator(bag, "default", options=splitter.Options(overlap=0.0))(mix, 44_100)
    with torch.no_grad():
        expected = module(torch.from_numpy(mix)[None])[0].numpy()
    for name, theirs in zip(stems, expected, strict=True):
        assert snr_db(theirs, stems[name]) >= 100


@pytest.mark.parametrize(
    "options",
    [
        {"niter": 0},
        {"niter": 0, "softmask": True},
        {"niter": 0, "residual": True},
        pytest.param({"niter": 1, "residual": True}, marks=pytest.mark.slow),
    ],
)
def test_other_filters_are_captured_as_they_are(options):
    module = separator(**options)
    family, _ = models.of_module(module)
    plan = family.prepared(module, family.plans()[0], None)
    assert plan.segment_samples == 29 * 64
    program, obeyed = captured(module)
    sound = torch.randn(1, 2, 29 * 64)
    with torch.no_grad():
        assert torch.equal(program.run({"audio": sound})[obeyed.outputs[0]], module(sound))
    assert family.audio(module, plan).stems == ("vocals", "drums", *(["residual"] if "residual" in options else []))


def test_length_is_at_least_a_window():
    family, module = OpenUnmixFamily(), separator()
    with pytest.raises(UsageError, match=r"expected at least 0.0058\d+ s, found 0.0009"):
        family.prepared(module, family.plans()[0], 0.001)


def test_package_is_as_it_was_after_a_capture(built):
    from openunmix import filtering, model

    assert model.torch is torch
    assert filtering.torch is torch


def test_released_separators_have_seeds_or_their_files(tmp_path, monkeypatch):
    monkeypatch.setattr(openunmix, "_RELEASED", {"umxhq": (8, {"vocals": "vocals-b62c91ce.pth"})})
    (member,) = OpenUnmixFamily().load("umxhq", random_init=3).members
    assert (member.random_init, member.sha256) == (3, None)
    assert member.module.target_models["vocals"].nb_bins == 1487
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    with pytest.raises(CheckpointError, match=r"vocals-b62c91ce.pth of umxhq is not where torch.hub keeps files"):
        OpenUnmixFamily().load("umxhq")
    (tmp_path / "checkpoints").mkdir()
    network = member.module.target_models["vocals"]
    state = network.state_dict() | {"stft.window": torch.ones(3)}  # released files hold more than the module
    torch.save(state, tmp_path / "checkpoints" / "vocals-b62c91ce.pth")
    (loaded,) = OpenUnmixFamily().load("umxhq").members
    assert len(loaded.sha256) == 64
    for key, tensor in network.state_dict().items():
        assert torch.equal(tensor, loaded.module.target_models["vocals"].state_dict()[key])
    assert models.load("umxhq")[0].name == "openunmix"


def test_bandwidth_is_the_packages_own():
    openunmix.package()
    if "torchaudio" in sys.modules:
        from openunmix.utils import bandwidth_to_max_bin
    else:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(sys.modules, "torchaudio", ModuleType("torchaudio"))
            from openunmix.utils import bandwidth_to_max_bin
    assert np.array_equal(bandwidth_to_max_bin(44_100, 4096, 16_000), 1487)


def test_missing_package_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openunmix.model", None)
    with pytest.raises(UsageError, match=r"Open-Unmix needs .* pip install 'splitter\[openunmix\]'"):
        OpenUnmixFamily().load("umxhq", random_init=0)
