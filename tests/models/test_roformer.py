"""RoFormers of their trainers' package: loaded, built, verified, and separating as the trainers' own inference does."""

import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
import yaml
from safetensors.torch import save_file
from splitter_weights.demo import songs

import splitter
from splitter import models
from splitter.errors import CheckpointError, UsageError
from splitter.models.roformer import RoformerFamily, configuration
from splitter.verification.verify import verify_bundle

from ..conftest import DATA, snr_db

CHUNK, HOP = 4096, 64
CONFIGURATION = """
audio:
  chunk_size: 4096
  num_channels: 2
  sample_rate: 44100
  min_mean_abs: 0.000
model:
  dim: 16
  depth: 2
  stereo: true
  num_stems: 2
  time_transformer_depth: 1
  freq_transformer_depth: 1
  linear_transformer_depth: 0
  {bands}
  dim_head: 8
  heads: 2
  attn_dropout: 0.1
  flash_attn: true
  dim_freqs_in: 129
  stft_n_fft: 256
  stft_hop_length: 64
  stft_win_length: 256
  mask_estimator_depth: 2
  multi_stft_resolutions_window_sizes: !!python/tuple
  - 4096
  - 2048
  use_torch_checkpoint: true
training:
  instruments: [vocals, other]
  target_instrument: null
  lr: 1.0e-05
augmentations:
  mixup_probs: !!python/tuple [0.2, 0.02]
inference:
  batch_size: 1
  num_overlap: 4
"""
KINDS = {
    "bs": "freqs_per_bands: !!python/tuple [2, 2, 4, 8, 16, 32, 65]",
    "mel": "num_bands: 8\n  sample_rate: 44100",
}


def written(folder, kind="bs", **changes):
    """A configuration's file; changes replace ``section__key: value``."""
    text = CONFIGURATION.replace("{bands}", KINDS[kind])
    for old, new in changes.items():
        text = text.replace(f"  {old}: ", f"  {old}: {new} #")
    path = folder / f"{kind}.yaml"
    folder.mkdir(exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture(scope="module", params=["bs", "mel"])
def built(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    path = written(folder, request.param)
    return path, splitter.build(path, folder / "bundle", random_init=3)


def test_bundle_is_exact_and_its_files_do_what_the_model_does(built):
    _, bag = built
    (bundle,) = bag.members
    assert bundle.manifest.model.family == "roformer"
    assert [segment.artifact.target for segment in bundle.segments] == ["host", "coreml", "host"]
    assert {"bands", "spectrogram", "mask_0", "mask_1"} <= bundle.tensors.keys()
    report = verify_bundle(bundle)
    assert report.passed
    assert report.partition_max_abs == 0.0
    local = [check.parity.snr_db for check in report.checks if check.scope == "local" and check.parity]
    assert len(local) >= 5
    assert min(local) >= 115


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


@pytest.mark.parametrize("kind", ["bs", pytest.param("mel", marks=pytest.mark.slow)])
def test_half_precision_for_the_engine(tmp_path, kind):
    """End to end, by the model of rounding: the norms of all layers are safe in half."""
    path = written(tmp_path, kind, depth="1", dim="32", dim_head="16")
    bag = splitter.build(path, tmp_path / "bundle", random_init=1, optimise_for="ane")
    (bundle,) = bag.members
    assert bundle.segment("transformer").passes["norms-safe-in-half"] >= 12
    report = verify_bundle(bundle)
    assert report.passed
    assert not report.overflows
    (stems,) = [c for c in report.checks if (c.kind, c.subject) == ("package", "stems")]
    assert bundle.segment("transformer").passes["sums-with-remainders"] == 4
    assert stems.parity.snr_db >= 60  # of depth 2, modelled: 61.4 and 60.4; without the remainders 60.1 and 59.7


def reference(path, seed, monkeypatch):
    """The trainers' own inference, on the trainers' own reading of the configuration: a function of sound."""
    record = types.ModuleType("ml_collections")
    record.ConfigDict = dict  # which it only names in annotations
    monkeypatch.setitem(sys.modules, "ml_collections", record)
    from msst.utils.model_utils import demix

    said = yaml.load(path.read_text(), Loader=yaml.FullLoader)
    ensemble = RoformerFamily().load(path, random_init=seed)

    class Section(dict):
        __getattr__ = dict.__getitem__

    config = Section({name: Section(section) for name, section in said.items()})
    config.training["use_amp"] = False

    def run(mix):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch, of its own context for attention
            stems = demix(config, ensemble.members[0].module, mix, torch.device("cpu"), "roformer")
        return np.stack([stems[name] for name in config.training.instruments])

    return run


@pytest.mark.parametrize("samples", [900, CHUNK, 5000, 2 * CHUNK, 40_000])
def test_separate_equals_the_trainers_own_inference(built, tmp_path, monkeypatch, samples):
    """Songs shorter than a chunk, as long as one, and mirrored at their ends."""
    path, bag = built
    mix = songs.mixture(songs.synthesise(1.0, 5, 44_100))[:, :samples]
    expected = reference(path, 3, monkeypatch)(mix)
    stems = splitter.Separator(bag, "default")(mix, 44_100)
    assert list(stems) == ["vocals", "other"]
    for name, theirs in zip(stems, expected, strict=True):
        assert snr_db(theirs, stems[name]) >= 100


@pytest.mark.real
@pytest.mark.parametrize("engines", ["default", {"transformer": "mil"}])
def test_recorded_music_is_separated_as_the_trainers_do(built, monkeypatch, engines):
    path, bag = built
    mix = soundfile.read(DATA / "audio" / "falcon69_mix.flac", frames=60_000, start=100_000, dtype="float32")[0].T
    expected = reference(path, 3, monkeypatch)(mix)
    stems = splitter.Separator(bag, engines)(mix, 44_100)
    for name, theirs in zip(stems, expected, strict=True):
        assert snr_db(theirs, stems[name]) >= 100


def test_checkpoint_beside_its_configuration_is_that_model(tmp_path):
    path = written(tmp_path)
    module = RoformerFamily().load(path, random_init=7).members[0].module
    kept = {key: tensor for key, tensor in module.state_dict().items() if "layers.1.0.layers.0.0.rotary" not in key}
    torch.save({"state_dict": module.state_dict()}, tmp_path / "bs.ckpt")  # with one table of all layers in one place
    save_file(
        {key: tensor.clone() for key, tensor in kept.items()}, written(tmp_path / "st").with_suffix(".safetensors")
    )
    for asked in (path, tmp_path / "bs.ckpt", tmp_path / "st" / "bs.yaml"):
        family, ensemble = models.load(asked)
        (member,) = ensemble.members
        assert (family.name, member.random_init, len(member.sha256)) == ("roformer", None, 64)
        for key, tensor in module.state_dict().items():
            assert torch.equal(tensor, member.module.state_dict()[key])


def test_checkpoint_of_another_configuration_is_refused(tmp_path):
    module = RoformerFamily().load(written(tmp_path), random_init=7).members[0].module
    torch.save(module.state_dict(), tmp_path / "bs.ckpt")
    written(tmp_path, dim=24)
    with pytest.raises(
        CheckpointError, match=r"bs.ckpt do not fit BSRoformer: \d+ that differ: .*that of this checkpoint"
    ):
        models.load(tmp_path / "bs.ckpt")
    torch.save([module.state_dict()], tmp_path / "bs.ckpt")
    with pytest.raises(CheckpointError, match="bs.ckpt has no tensors by name; got a list"):
        models.load(tmp_path / "bs.ckpt")


def test_nothing_of_a_checkpoint_runs(tmp_path):
    class Harm:
        def __reduce__(self):
            return (Path.write_text, (tmp_path / "harmed", "x"))

    path = written(tmp_path)
    torch.save({"state_dict": Harm()}, tmp_path / "bs.ckpt")
    with pytest.raises(CheckpointError):
        models.load(path)
    assert not (tmp_path / "harmed").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dim": "!!python/object/apply:os.getcwd []"}, "asks for more than values"),
        ({"dim": "70000"}, r"is no configuration of a RoFormer|needs too much memory"),
        ({"dim": "-1"}, "dim is a number from 1 on"),
        ({"depth": "4096", "dim": "512"}, "needs too much memory"),
        ({"num_stems": "3"}, "num_stems is 3, the stems are vocals, other"),
        ({"num_overlap": "0"}, "is no configuration of a RoFormer"),
        ({"dim_head": "8\n  surprise: 1"}, "asks for arguments that BSRoformer does not have; got surprise"),
        ({"freqs_per_bands": "[2, 2]"}, "describes a model that cannot be built"),
        ({"target_instrument": "*again"}, "is no YAML|refers|repeats"),
    ],
)
def test_configuration_is_bounded_and_checked(tmp_path, monkeypatch, changes, message):
    monkeypatch.setenv("SPLITTER_MAX_MEMORY", "1GB")
    path = written(tmp_path, **changes)
    with pytest.raises(CheckpointError, match=message):
        RoformerFamily().load(path, random_init=0)


def test_configuration_without_its_checkpoint_says_so(tmp_path):
    with pytest.raises(
        CheckpointError, match="bs.yaml needs the other one: expected one file bs with .ckpt or .*seeded"
    ):
        models.load(written(tmp_path))
    (tmp_path / "alone.ckpt").write_bytes(b"")
    with pytest.raises(
        CheckpointError, match="alone.ckpt needs the other one: expected one file alone with .yaml or .yml"
    ):
        models.load(tmp_path / "alone.ckpt")


def test_a_bag_is_no_configuration_and_the_other_way_round(tmp_path):
    bag = tmp_path / "bag.yaml"
    bag.write_text("models: [abc]")
    assert not configuration.holds(bag)
    assert configuration.holds(written(tmp_path))
    with pytest.raises(CheckpointError, match="abc.safetensors cannot be read"):
        models.load(bag)


def test_one_target_is_the_only_stem(tmp_path):
    found = configuration.load(written(tmp_path, num_stems="1", target_instrument="vocals"))
    assert found.record(4096).stems == ("vocals",)


def test_model_runs_at_other_lengths_of_whole_frames(tmp_path):
    family = RoformerFamily()
    module = family.load(written(tmp_path), random_init=0).members[0].module
    (plan,) = family.plans()
    assert family.prepared(module, plan, None).segment_samples == CHUNK
    longer = family.prepared(module, plan, 0.2)
    assert (longer.segment_samples, longer.segment_samples % HOP) == (8768, 0)
    record = family.audio(module, longer)
    assert (record.chunking.stride, record.chunking.fade) == (8768 // 4, 8768 // 10)
    with pytest.raises(UsageError, match="the model does not run at this length: expected a multiple of 64 samples"):
        family.prepared(module, plan, 0.001)


def test_missing_package_names_the_extra(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "msst.models", None)
    with pytest.raises(UsageError, match=r"RoFormers need .* pip install 'splitter\[roformer\]'"):
        RoformerFamily().load(written(tmp_path), random_init=0)
