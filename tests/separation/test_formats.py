"""Files in 24 forms and what becomes of them. `docs/formats.md` shows this list, row by row."""

from dataclasses import dataclass

import numpy as np
import pytest
import soundfile

from splitter.errors import AudioError
from splitter.separation import resampling
from splitter.separation.audio import Track, survey

from ..conftest import ROOT, snr_db
from .test_media import encoded, tone

pytest.importorskip("av")

LAYOUTS = {"mono": 1, "stereo": 2, "quad": 4, "5.1": 6, "7.1": 8, "12": 12}
SECONDS, MODEL_RATE = 0.5, 44_100
COPIED, AS_IT_IS, MIXED = "copied to both sides", "as they are", "mixed down"


@dataclass(frozen=True)
class Form:
    """A file, and what becomes of it.

    Attributes:
        name: Of the format, as the page has it.
        file: The file.
        codec: libsndfile's subtype, or FFmpeg's encoder.
        rate: In Hz.
        layout: Of its channels.
        channels: What becomes of them; what the error says for a file that is refused.
        more: Samples that may be read beyond those that went in; None for no exact length.
        decibels: At least, from what went in; None for a codec that delays.
    """

    name: str
    file: str
    codec: str
    rate: int
    layout: str
    channels: str
    more: int | None = 0
    decibels: float | None = 60

    @property
    def row(self) -> str:
        length = "as long" if self.more == 0 else f"up to {self.more:,} samples more" if self.more else "about as long"
        if self.channels not in (COPIED, AS_IT_IS, MIXED):
            length = "refused"
        return f"| {self.name} | {self.rate:,} | {self.layout} | {self.channels} | {length} |"


FORMS = [
    Form("WAV, 16 bits", "x.wav", "PCM_16", 8_000, "mono", COPIED),
    Form("WAV, 24 bits", "x.wav", "PCM_24", 44_100, "stereo", AS_IT_IS),
    Form("WAV, 16 bits", "x.wav", "PCM_16", 192_000, "stereo", AS_IT_IS),
    Form("WAV, 32-bit float", "x.wav", "FLOAT", 96_000, "5.1", MIXED),
    Form("WAV, 16 bits", "x.wav", "PCM_16", 44_100, "7.1", MIXED),
    Form("WAV, 16 bits", "x.wav", "PCM_16", 44_100, "quad", MIXED),
    Form("WAV, 16 bits", "x.wav", "PCM_16", 44_100, "12", "12 channels and does not say where they stand"),
    Form("RF64", "x.rf64", "PCM_24", 48_000, "stereo", AS_IT_IS),
    Form("W64", "x.w64", "PCM_16", 44_100, "stereo", AS_IT_IS),
    Form("AIFF", "x.aiff", "PCM_24", 88_200, "stereo", AS_IT_IS),
    Form("AU", "x.au", "PCM_16", 11_025, "mono", COPIED),
    Form("CAF, ALAC", "x.caf", "ALAC_16", 44_100, "stereo", AS_IT_IS),
    Form("FLAC", "x.flac", "PCM_24", 96_000, "stereo", AS_IT_IS),
    Form("FLAC", "x.flac", "PCM_16", 48_000, "5.1", MIXED),
    Form("MP3", "x.mp3", "MPEG_LAYER_III", 44_100, "stereo", AS_IT_IS, decibels=30),
    Form("MP3", "x.mp3", "MPEG_LAYER_III", 22_050, "mono", COPIED, decibels=30),
    Form("Ogg, Vorbis", "x.ogg", "VORBIS", 44_100, "stereo", AS_IT_IS, decibels=20),
    Form("Ogg, Opus", "x.opus", "OPUS", 48_000, "stereo", AS_IT_IS, decibels=20),
    Form("M4A, AAC", "x.m4a", "aac", 44_100, "stereo", AS_IT_IS, decibels=15),
    Form("M4A, AAC", "x.m4a", "aac", 48_000, "5.1", MIXED, decibels=15),
    Form("M4A, ALAC", "x.m4a", "alac", 48_000, "stereo", AS_IT_IS),
    Form("MP4, a video with AAC", "x.mp4", "aac", 44_100, "stereo", AS_IT_IS, decibels=15),
    Form("WebM, Opus", "x.webm", "libopus", 48_000, "stereo", AS_IT_IS, more=1_000, decibels=15),
    Form("Windows Media", "x.wma", "wmav2", 44_100, "stereo", AS_IT_IS, more=None, decibels=None),
]


@pytest.mark.parametrize("form", FORMS, ids=lambda form: f"{form.name} {form.rate} {form.layout}")
def test_files_are_read_as_the_page_says(tmp_path, form):
    count, path = LAYOUTS[form.layout], tmp_path / form.file
    sound = tone(SECONDS, count, form.rate)
    if form.codec.isupper():
        kind = {"rf64": "RF64", "opus": "OGG"}.get(path.suffix[1:])
        soundfile.write(path, sound.T, form.rate, subtype=form.codec, format=kind)
    else:
        encoded(path, sound, form.codec, rate=form.rate, layout=form.layout, video=path.suffix == ".mp4")
    track = Track(path, MODEL_RATE, 2)
    if form.channels not in (COPIED, AS_IT_IS, MIXED):
        with pytest.raises(AudioError, match=form.channels):
            survey(track)
        return
    found = survey(track)
    assert found.samplerate == form.rate
    assert (found.downmix is not None) == (form.channels == MIXED)
    samples = sound.shape[1]
    if form.more is None:
        assert found.frames == pytest.approx(samples, abs=4096)
    else:
        assert samples <= found.frames <= samples + form.more
    heard = np.concatenate([*track.blocks()], axis=1)
    assert heard.shape == (2, resampling.length(found.frames, form.rate, MODEL_RATE))
    first = resampling.resampled(sound[:1], form.rate, MODEL_RATE, resampling.length(samples, form.rate, MODEL_RATE))
    if form.channels == COPIED:
        assert np.array_equal(heard[0], heard[1])
    if form.decibels is not None and form.channels != MIXED:
        middle = slice(2_000, first.shape[1] - 2_000)
        assert snr_db(first[0, middle], heard[0, middle]) >= form.decibels
    assert np.abs(heard).max() > 0.2


def test_the_page_shows_these_files():
    lines = (ROOT / "docs" / "formats.md").read_text(encoding="utf-8").splitlines()
    rows = [line for line in lines if line.startswith("| ")][1:]
    assert rows == [form.row for form in FORMS]
    assert len(FORMS) == 24
