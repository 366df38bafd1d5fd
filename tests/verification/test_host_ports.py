"""Ports of the host's stages: each mistake is found at its own tap, and named."""

import json
import re

import numpy as np
import pytest

import splitter
from splitter.verification.checks import Status
from splitter.verification.port import verify_port

MISTAKES = {  # the operation at whose tap each mistake must be found, how many of that name lie before it, what is said
    "square forgotten": ("istft", 0, "the window's square forgotten: .*: a constant gain of 1.5"),
    "no scale": ("stft", 0, "the scale 1/√N left out: a constant gain of 45.25"),
    "no scale back": ("istft", 0, "the scale 1/√N left out"),
    "symmetric window": ("hann_window", 0, "a symmetric window where the model's is periodic"),
    "zero padding": ("pad_reflect", 1, "padded with zeros where the model pads with reflection"),
    "frame offset": ("slice", 1, "offset: elements 1 to 130 of axis 3 where the model takes 2 to 131"),
    "channel order": ("transpose", 0, "channel order|permuted"),
    "first bin dropped": ("slice", 0, "offset: elements 1 to 1024 of axis 2 where the model takes 0 to 1023"),
    "last bin": ("stft", 0, r"the last \(Nyquist\) bin dropped"),
    "imaginary sign": ("stft", 0, r"exp\(\+iωt\) in the place of exp\(−iωt\)"),
    "biased deviation": ("std", 1, "divided by n where the model divides by n − 1"),
    "frames late": ("istft", 0, "frame offset: the frames 1 frame late"),
    "mean kept": ("subtract", 0, "the subtraction of 'spectrogram_mean' left out"),
}
SYNTHESIS = ("square forgotten", "no scale back", "frames late")


class Host:
    """Analysis and synthesis in NumPy, as the handbook's formulas have them, and the mistakes that people make.

    Every step is kept under the name that ``analysis.json`` and ``synthesis.json`` have for it.
    """

    def __init__(self, bundle, fault=""):
        self.fault, self.golden, self.dump = fault, bundle.goldens(), {}
        self.names = {}
        for stage in ("analysis", "synthesis"):
            spec = json.loads((bundle.path / f"{stage}.json").read_text())
            given = {step: name for name, step in spec["outputs"].items()}
            for step in spec["steps"]:
                name = given.get(step["result"], f"{stage}.{step['result']}")
                self.names.setdefault((stage, step["op"]), []).append(name)

    def keep(self, stage, op, value, index=0):
        dtype = np.complex64 if np.iscomplexobj(value) else np.float32
        self.dump[self.names[stage, op][index]] = np.ascontiguousarray(value, dtype)
        return value

    def window(self, stage):
        length = 2048
        n = np.arange(length) / (length - (self.fault == "symmetric window"))
        return self.keep(stage, "hann_window", 0.5 - 0.5 * np.cos(2 * np.pi * n))

    def analysis(self):
        mix = self.dump["mix"] = self.golden["mix"]
        x = self.keep("analysis", "pad_reflect", np.pad(mix, [(0, 0), (0, 0), (768, 1178)], mode="reflect"))
        edge = "constant" if self.fault == "zero padding" else "reflect"
        x = self.keep("analysis", "pad_reflect", np.pad(x, [(0, 0), (0, 0), (1024, 1024)], mode=edge), 1)
        frames = np.lib.stride_tricks.sliding_window_view(x[0], 2048, -1)[:, ::512]
        z = np.fft.rfft(frames * self.window("analysis")).swapaxes(-1, -2)
        z = z / (1 if self.fault == "no scale" else np.sqrt(2048))
        z = z.conj() if self.fault == "imaginary sign" else z
        if self.fault == "last bin":
            z[:, -1] = 0
        z = self.keep("analysis", "stft", z)[None]
        first = self.fault == "first bin dropped"
        z = self.keep("analysis", "slice", z[:, :, 1:] if first else z[:, :, :-1])
        start = 1 if self.fault == "frame offset" else 2
        z = self.keep("analysis", "slice", z[..., start : start + 130], 1)
        x = self.keep("analysis", "split_complex", np.stack([z.real, z.imag], -1))
        order = (0, 4, 1, 2, 3) if self.fault == "channel order" else (0, 1, 4, 2, 3)
        x = self.keep("analysis", "transpose", x.transpose(order)).reshape(1, 4, 1024, 130)
        self.normalise(x, 0)
        self.normalise(mix, 1)
        return self.dump

    def normalise(self, x, branch):
        mean = self.keep("analysis", "mean", x.mean(keepdims=True, dtype=np.float64), branch)
        correction = int(self.fault != "biased deviation")
        std = self.keep("analysis", "std", x.std(keepdims=True, ddof=correction, dtype=np.float64), branch)
        centred = self.keep("analysis", "subtract", x - (0 if self.fault == "mean kept" else mean), branch)
        self.keep("analysis", "divide", centred / self.keep("analysis", "add", std + 1e-5, branch), branch)

    def synthesis(self):
        golden = {name: value.astype(np.float64) for name, value in self.golden.items()}
        x = golden["stem_spectrograms"].reshape(1, 4, 4, 1024, 130)
        x = self.keep("synthesis", "multiply", x * golden["spectrogram_std"][None])
        x = self.keep("synthesis", "add", x + golden["spectrogram_mean"][None]).reshape(1, 4, 2, 2, 1024, 130)
        x = self.keep("synthesis", "transpose", x.transpose(0, 1, 2, 4, 5, 3))
        z = self.keep("synthesis", "join_complex", x[..., 0] + 1j * x[..., 1])
        z = self.keep("synthesis", "pad_zero", np.pad(z, [(0, 0)] * 3 + [(0, 1), (0, 0)]))
        z = self.keep("synthesis", "pad_zero", np.pad(z, [(0, 0)] * 4 + [(2, 2)]), 1)
        if self.fault == "frames late":
            z = np.concatenate([0 * z[..., :1], z[..., :-1]], -1)
        window = self.window("synthesis")
        frames = np.fft.irfft(z.swapaxes(-1, -2)) * window
        frames = frames * (1 if self.fault == "no scale back" else np.sqrt(2048))
        sound, squares = np.zeros((1, 4, 2, 2048 + 512 * 133)), np.zeros(2048 + 512 * 133)
        for t in range(134):
            sound[..., 512 * t : 512 * t + 2048] += frames[..., t, :]
            squares[512 * t : 512 * t + 2048] += window**2
        kept = slice(1024, 1024 + 68096)
        sound = sound[..., kept] / (1 if self.fault == "square forgotten" else squares[kept])
        self.keep("synthesis", "istft", sound.reshape(8, -1))
        sound = self.keep("synthesis", "slice", sound[..., 768 : 768 + 66150])
        y = golden["stem_waveforms"].reshape(1, 4, 2, -1)
        y = self.keep("synthesis", "multiply", y * golden["waveform_std"][None], 1)
        y = self.keep("synthesis", "add", y + golden["waveform_mean"][None], 1)
        self.keep("synthesis", "add", y + sound, 2)
        return self.dump


def test_a_sound_port_of_both_stages_passes(demo_bundle):
    host = Host(demo_bundle)
    report = verify_port([host.analysis() | host.synthesis()], demo_bundle)
    assert report.passed, report.verdict
    assert {tap.check.scope for tap in report.taps} == {"local", "accumulated"}
    assert [tap.check.subject for tap in report.taps if tap.check.scope == "accumulated"] == ["mix"]
    assert report.missing == ()


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found_where_they_are_made_and_named(demo_bundle, mistake):
    op, index, cause = MISTAKES[mistake]
    host = Host(demo_bundle, mistake)
    stage = "synthesis" if mistake in SYNTHESIS else "analysis"
    dumped = getattr(host, stage)()
    first = verify_port([dumped], demo_bundle).first_divergence
    assert first.subject == host.names[stage, op][index]
    assert re.search(cause, first.note), first.note


@pytest.mark.parametrize(
    ("mistake", "tensor", "cause"),
    [
        ("square forgotten", "stems", "the window's square forgotten"),
        ("no scale", "spectrogram_std", "the scale 1/√N left out"),
        ("symmetric window", "spectrogram", "a symmetric window where the model's is periodic"),
        ("frame offset", "spectrogram", "frame offset|offset: elements 1 to 130 of axis 3"),
        ("channel order", "spectrogram", "channel order: along axis c lie the model's entries 0 2 1 3"),
    ],
)
def test_a_boundary_tensor_alone_is_enough_to_name_a_mistake(demo_bundle, mistake, tensor, cause):
    """From the golden input of the stage, of which the dump has nothing else."""
    host = Host(demo_bundle, mistake)
    dumped = host.synthesis() if mistake in SYNTHESIS else host.analysis()
    (tap,) = verify_port([{tensor: dumped[tensor]}], demo_bundle).taps
    assert (tap.check.status, tap.check.scope) == (Status.FAIL, "accumulated")
    assert re.search(cause, tap.check.note), tap.check.note


def test_entries_in_another_order_are_told_by_their_layout(demo_bundle):
    """Stems first where the model has them inside its channels."""
    golden = demo_bundle.goldens()["stem_waveforms"]
    order = [0, 2, 4, 6, 1, 3, 5, 7]
    first = verify_port([{"stem_waveforms": golden[:, order]}], demo_bundle).first_divergence
    assert first.note == "channel order: along axis (s c) lie the model's entries 0 2 4 6 1 3 5 7"


def test_sums_that_cancel_are_held_against_double_precision(demo_bundle):
    """The mean of a spectrogram is a millionth of its values: in float32 two sound sums of them differ."""
    dumped = Host(demo_bundle).analysis()
    report = verify_port([dumped], demo_bundle)
    mean = next(tap.check for tap in report.taps if tap.check.subject == "spectrogram_mean")
    assert mean.parity.snr_db < mean.limit_db
    assert (mean.status, mean.note) == (Status.PASS, "float32 holds no more: as near to float64 as the model is")
    worse = dumped | {"spectrogram_mean": dumped["spectrogram_mean"] * np.float32(1.001)}
    assert verify_port([worse], demo_bundle).first_divergence.subject == "spectrogram_mean"


def test_a_stage_that_was_not_ported_is_given_its_goldens(demo_bundle):
    """A port of the decoder alone: no tap of the stages before it is missing, and none is asked for."""
    taps = splitter.record_taps(demo_bundle, stages=["decoder"]).values
    inputs = demo_bundle.segment("decoder").inputs
    assert taps.keys() >= set(inputs)
    own = {name: value for name, value in taps.items() if name not in inputs}
    report = verify_port([own], demo_bundle)
    assert report.passed, report.verdict
    assert {tap.check.scope for tap in report.taps} == {"local"}
    assert report.missing == ()
    wrong = own | {"decoder.2.conv_tr": own["decoder.2.conv_tr"] * np.float32(1.01)}
    first = verify_port([wrong], demo_bundle).first_divergence
    assert first.subject == "decoder.2.conv_tr"
    assert first.note.startswith("a constant gain of 1.01")
