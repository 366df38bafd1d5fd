"""Whisper's encoder as openai-whisper has it: by name, from a checkpoint, in packages, and in a port of somebody's."""

import re
import time

import numpy as np
import pytest
import soundfile
import torch
from scipy.special import erf

import splitter
from splitter import models
from splitter.errors import CheckpointError, UsageError
from splitter.models.whisper import WhisperFamily
from splitter.plan import proposal
from splitter.verification.port import verify_port

from ..conftest import snr_db

whisper = pytest.importorskip("whisper", reason="openai-whisper is not installed (the extra `whisper`)")

DIMENSIONS = {"n_mels": 80, "n_audio_ctx": 50, "n_audio_state": 48, "n_audio_head": 4, "n_audio_layer": 2}
TEXT = {"n_vocab": 60, "n_text_ctx": 8, "n_text_state": 48, "n_text_head": 4, "n_text_layer": 1}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A whole model as OpenAI saves it: in half precision, with its text decoder."""
    torch.manual_seed(5)
    dims = whisper.model.ModelDimensions(**DIMENSIONS, **TEXT)
    model = whisper.model.Whisper(dims)
    state = {key: value.half() for key, value in model.state_dict().items()}
    path = tmp_path_factory.mktemp("checkpoint") / "small-one.pt"
    torch.save({"dims": vars(dims), "model_state_dict": state}, path)
    return path


@pytest.fixture(scope="module")
def bag(checkpoint, tmp_path_factory):
    return splitter.build(str(checkpoint), tmp_path_factory.mktemp("bundle") / "w.bundle", reference=False)


@pytest.fixture(scope="module")
def bundle(bag):
    return bag.members[0]


def test_a_checkpoint_is_the_encoder_that_whisper_loads(checkpoint, bundle):
    loaded = whisper.load_model(str(checkpoint), device="cpu").encoder.eval()
    x = torch.from_numpy(bundle.goldens()["x"])
    with torch.no_grad():
        assert np.array_equal(loaded(x).numpy(), bundle.goldens()["output"])
    assert bundle.manifest.model.family == "whisper"
    assert bundle.manifest.model.arguments["n_ctx"] == 50
    assert len(bundle.manifest.model.checkpoint_sha256) == 64


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: {"dims": p["dims"]}, "is no checkpoint of Whisper: expected dims and model_state_dict, found dims"),
        (lambda p: [1], "is no checkpoint of Whisper"),
        (lambda p: p | {"dims": p["dims"] | {"n_audio_layer": 10**9}}, "describes no encoder of Whisper"),
        (lambda p: p | {"dims": p["dims"] | {"n_audio_head": 5}}, "a width that its heads divide"),
        (lambda p: p | {"dims": p["dims"] | {"n_audio_layer": 3}}, "do not fit the encoder it describes: 15 that differ"),
        (lambda p: p | {"model_state_dict": [1]}, "has no tensors by name"),
        (lambda p: p | {"dims": pytest}, "small.pt"),
    ],
)  # fmt: skip
def test_another_file_is_refused(checkpoint, tmp_path, change, message):
    package = torch.load(checkpoint, weights_only=True)
    try:
        torch.save(change(package), tmp_path / "small.pt")
    except Exception:
        (tmp_path / "small.pt").write_bytes(b"no zip")
    with pytest.raises(CheckpointError, match=message):
        models.load(str(tmp_path / "small.pt"))


def test_names_have_random_weights_alone():
    family, ensemble = models.load("whisper-tiny", random_init=3)
    (member,) = ensemble.members
    assert (family.name, member.name, member.random_init) == ("whisper", "whisper-tiny", 3)
    assert member.arguments == {"n_mels": 80, "n_ctx": 1500, "n_state": 384, "n_head": 6, "n_layer": 4}
    again = models.load("whisper-tiny", random_init=3)[1].members[0].module
    assert torch.equal(member.module.conv1.weight, again.conv1.weight)
    with pytest.raises(CheckpointError, match=r"whisper-tiny is not fetched by splitter. .*\.cache/whisper/tiny\.pt"):
        models.load("whisper-tiny")


def test_the_example_is_whispers_own_spectrogram(tmp_path):
    module = whisper.model.AudioEncoder(80, 50, 48, 4, 1)
    sound = 0.1 * np.random.default_rng(0).standard_normal(16_000)
    soundfile.write(tmp_path / "speech.wav", sound, 16_000, subtype="FLOAT")
    blank = proposal.blank("AudioEncoder", "whisper.model.AudioEncoder")
    example = WhisperFamily().example(module, blank, tmp_path / "speech.wav")
    expected = whisper.log_mel_spectrogram(sound.astype(np.float32))[None, :, :100]
    assert torch.equal(example.inputs["x"], expected)
    assert example.description == "speech.wav"
    with pytest.raises(CheckpointError, match="no filters for so many mel bands: expected 80 or 128, found 16"):
        WhisperFamily().example(whisper.model.AudioEncoder(16, 50, 48, 4, 1), blank, None)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "whisper.model", None)
    with pytest.raises(UsageError, match=r"pip install 'splitter\[whisper\]'"):
        models.load("whisper-tiny", random_init=0)


def test_packages_are_verified_and_exact(bag, bundle):
    (report,) = splitter.verify(bag)
    assert report.passed
    assert report.partition_max_abs == 0.0
    engines = {name: "mil" for name, segment in ((s.name, s) for s in bundle.segments)}
    results = splitter.Orchestrator(bundle, engines).run({"x": bundle.goldens()["x"]})
    assert snr_db(bundle.goldens()["output"], results["output"]) >= 115
    assert [stage.name for stage in bundle.manifest.plan.stages] == ["cnn_1", "transformer_1"]


def test_a_proposed_plan_is_obeyed_as_it_is(checkpoint, tmp_path):
    start = time.process_time()
    splitter.new_plan(str(checkpoint), out=tmp_path / "plan.toml")
    assert time.process_time() - start < 30
    bag = splitter.build(str(checkpoint), tmp_path / "p.bundle", plan=tmp_path / "plan.toml", reference=False)
    assert all(report.passed for report in splitter.verify(bag))


def test_doctor_and_profile_go_through(bag, quick_profile):
    assert not splitter.doctor(bag.path).fails("error")
    assert [segment.name for segment in splitter.profile(bag, runs=1).segments] == ["cnn_1", "transformer_1"]


# ------------------------------------------------------------------------------------------- a port

MISTAKES = {  # the tap at which each one must be found, and what must be said about it
    "tanh gelu": ("blocks.0.mlp.1", "GELU approximated by tanh where the model has GELU with the exact erf"),
    "no positions": ("transformer_1.add", "the table of positions left out"),
    "cosines first": ("transformer_1.add", "cosines before sines in the table of positions"),
    "scale": ("blocks.0.attn.out", "scaled by 1/d where the model has 1/√d"),
    "no residual": ("blocks.1", "the addition of .* left out"),
    "eps": ("blocks.0.attn_ln", "eps 0.001 where the model has 1e-05"),
    "padding": ("conv1", "padded with repetition of the edge where the model pads with zeros"),
    "key bias": ("blocks.0.attn.key", "another formula than linear"),
    "causal": ("blocks.0.attn.out", "a causal mask, which the model does not have"),
}


class Port:
    """The encoder in NumPy, from the checkpoint's tensors, with the mistakes that people make."""

    def __init__(self, state, heads, fault=""):
        self.state, self.heads, self.fault, self.dump = state, heads, fault, {}

    def keep(self, name, value):
        self.dump[name] = np.ascontiguousarray(value, np.float32)
        return value

    def linear(self, x, name):
        y = x @ self.state[f"{name}.weight"].T + self.state.get(f"{name}.bias", 0)
        if self.fault == "key bias" and name == "blocks.0.attn.key":
            y = y + self.state["blocks.0.attn.query.bias"]
        return self.keep(name, y)

    def norm(self, x, name):
        eps = 1e-3 if self.fault == "eps" and name == "blocks.0.attn_ln" else 1e-5
        y = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + eps)
        return self.keep(name, y * self.state[f"{name}.weight"] + self.state[f"{name}.bias"])

    def conv(self, x, name, stride):
        mode = "edge" if self.fault == "padding" else "constant"
        x = np.pad(x, [(0, 0), (0, 0), (1, 1)], mode=mode)
        columns = np.lib.stride_tricks.sliding_window_view(x, 3, -1)[:, :, ::stride]
        y = np.einsum("bctk,ock->bot", columns, self.state[f"{name}.weight"])
        return self.keep(name, y + self.state[f"{name}.bias"][:, None])

    def gelu(self, x):
        if self.fault == "tanh gelu":
            return 0.5 * x * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + erf(x / np.sqrt(2)))

    def attention(self, x, name):
        q, k, v = (self.linear(x, f"{name}.{kind}") for kind in ("query", "key", "value"))
        q, k, v = (y.reshape(*y.shape[:2], self.heads, -1).swapaxes(1, 2) for y in (q, k, v))
        power = 1.0 if self.fault == "scale" else 0.5
        logits = q @ k.swapaxes(-1, -2) / q.shape[-1] ** power
        if self.fault == "causal":
            logits = np.where(np.tri(logits.shape[-1], dtype=bool), logits, -np.inf)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        mixed = (weights / weights.sum(-1, keepdims=True) @ v).swapaxes(1, 2).reshape(x.shape)
        return self.linear(mixed, f"{name}.out")

    def run(self, x):
        exact = self.fault
        self.keep("x", x)
        x = self.conv(x.astype(np.float64), "conv1", 1)
        self.fault = "" if exact == "tanh gelu" else exact  # its convolutions' activations are right
        x = self.conv(self.keep("cnn_1.gelu", self.gelu(x)), "conv2", 2)
        x = self.keep("transformer_1.gelu_1", self.gelu(x)).swapaxes(1, 2)
        self.fault = exact
        table = self.state["positional_embedding"]
        table = np.roll(table, table.shape[1] // 2, 1) if self.fault == "cosines first" else table
        x = self.keep("transformer_1.add", x + (0 if self.fault == "no positions" else table))
        for index in range(DIMENSIONS["n_audio_layer"]):
            name = f"blocks.{index}"
            x = x + self.attention(self.norm(x, f"{name}.attn_ln"), f"{name}.attn")
            y = self.linear(self.norm(x, f"{name}.mlp_ln"), f"{name}.mlp.0")
            y = self.linear(self.keep(f"{name}.mlp.1", self.gelu(y)), f"{name}.mlp.2")
            x = self.keep(name, y if self.fault == "no residual" and index == 1 else x + y)
        self.norm(x, "ln_post")
        return self.dump


def ported(checkpoint, bundle, fault=""):
    state = torch.load(checkpoint, weights_only=True)["model_state_dict"]
    encoder = {key.removeprefix("encoder."): value.double().numpy() for key, value in state.items()}
    return Port(encoder, DIMENSIONS["n_audio_head"], fault).run(bundle.goldens()["x"])


def test_a_sound_port_passes(checkpoint, bundle):
    report = verify_port([ported(checkpoint, bundle)], bundle)
    assert report.passed, report.verdict
    assert min(tap.check.parity.snr_db for tap in report.taps) >= 115


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found_where_they_are_made(checkpoint, bundle, mistake):
    tap, cause = MISTAKES[mistake]
    report = verify_port([ported(checkpoint, bundle, mistake)], bundle)
    assert report.first_divergence.subject == tap
    assert re.search(cause, report.first_divergence.note), report.first_divergence.note


@pytest.mark.parametrize(("mistake", "tap"), [("scale", "blocks.0"), ("no residual", "blocks.1"), ("padding", "conv1")])
def test_results_of_the_blocks_alone_tell_which_block_is_wrong(checkpoint, bundle, mistake, tap):
    """Each is recomputed from the block before it: none is blamed for what an earlier one did."""
    kept = ("conv1", "transformer_1.add", "blocks.0", "blocks.1", "ln_post")
    dumped = {name: value for name, value in ported(checkpoint, bundle, mistake).items() if name in kept}
    report = verify_port([dumped], bundle)
    failing = [check.check.subject for check in report.taps if check.check.status == "fail"]
    assert failing[0] == tap
    assert re.search(MISTAKES[mistake][1], report.first_divergence.note), report.first_divergence.note
