import numpy as np
import pytest
from splitter_weights import checkpoints
from splitter_weights.demo import songs, train

from ..conftest import snr_db


def test_songs_are_seeded():
    first, again, other = (songs.synthesise(1.0, seed) for seed in (5, 5, 6))
    assert all(np.array_equal(first[name], again[name]) for name in songs.STEMS)
    assert not np.array_equal(first["drums"], other["drums"])


@pytest.mark.parametrize("rate", [22_050, 44_100])
def test_stems_have_the_length_asked_and_fit_full_scale(rate):
    stems = songs.synthesise(2.5, 1, rate)
    assert {stem.shape for stem in stems.values()} == {(2, round(2.5 * rate))}
    assert {stem.dtype for stem in stems.values()} == {np.dtype(np.float32)}
    assert np.abs(songs.mixture(stems)).max() <= 0.99
    assert all(np.sqrt(np.mean(stem**2)) > 0.005 for stem in stems.values())


def test_no_length_is_refused():
    with pytest.raises(ValueError, match="positive length"):
        songs.synthesise(0, 1)


def test_demo_model_beats_the_mixture_on_songs_it_never_heard():
    """Mean SDR at least 5 dB above taking the mixture as every stem."""
    model = checkpoints.load("demo").members[0].model
    assert train.held_out_margin(model) >= 5


def test_trained_checkpoint_is_the_committed_configuration(tmp_path):
    model = checkpoints.load("demo").members[0].model
    train.save(model, tmp_path / "again.safetensors")
    again = checkpoints.load(tmp_path / "again.safetensors").members[0]
    assert again.arguments == checkpoints.load("demo").members[0].arguments
    x = np.float32(1)
    assert snr_db(np.array([x]), np.array([x])) == float("inf")
