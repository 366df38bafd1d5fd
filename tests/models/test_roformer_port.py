"""A port of a RoFormer's transformer: each mistake is found at its own tap, and named."""

import re
import time

import numpy as np
import pytest
from scipy.special import erf, expit

import splitter
from splitter.verification.port import verify_port

from .test_roformer import written

pytest.importorskip("msst", reason="the trainers' package is not installed (see the extra `roformer`)")

HEADS, WIDTH = 2, 8
MISTAKES = {  # the tap at which each one must be found, and what must be said about it
    "halves": ("layers.0.0.layers.0.0.attend", "halves of a head rotated where the model rotates pairs"),
    "no rotation": ("layers.0.0.layers.0.0.attend", "queries and keys not rotated"),
    "other way": ("layers.0.0.layers.0.0.attend", "rotated the other way"),
    "no scale in norms": ("band_split.to_features.0.0", "the multiplication of .* left out: a constant gain"),
    "no gates": ("layers.0.0.layers.0.0.to_out.0", "the multiplication of 'sigmoid.*' left out"),
    "tanh gelu": ("layers.0.0.layers.0.1.net.2", "GELU approximated by tanh"),
    "scale": ("layers.0.0.layers.0.0.attend", "scaled by 1/d where the model has 1/√d"),
    "no residual": ("layers.0.0", "the addition of .* left out"),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bs")
    (bundle,) = splitter.build(written(folder), folder / "bundle", random_init=3, reference=False).members
    return bundle


def test_a_proposed_plan_is_obeyed_as_it_is(tmp_path):
    path = written(tmp_path / "bs")
    start = time.process_time()
    splitter.new_plan(path, random_init=3, out=tmp_path / "plan.toml")
    assert time.process_time() - start < 30
    bag = splitter.build(path, tmp_path / "b", random_init=3, plan=tmp_path / "plan.toml", reference=False)
    assert [stage.name for stage in bag.members[0].manifest.plan.stages] == ["host_1", "transformer_1", "host_2"]
    (report,) = splitter.verify(bag)
    assert report.passed
    assert report.partition_max_abs == 0.0


class Port:
    """Band split and layers in NumPy, from the captured weights, with the mistakes that people make."""

    def __init__(self, bundle, fault=""):
        program = bundle.program(bundle.segment("transformer").program)
        self.weights = {name: value.detach().numpy().astype(np.float64) for name, value in program.weights.items()}
        self.fault, self.dump = fault, {}
        self.keep("bands", bundle.goldens()["bands"].astype(np.float64))

    def keep(self, name, value):
        self.dump[name] = np.ascontiguousarray(value, np.float32)
        return value

    def norm(self, x, name):
        y = x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)
        scale = 1 if self.fault == "no scale in norms" else x.shape[-1] ** 0.5
        return self.keep(name, y * scale * self.weights[f"{name}.gamma"])

    def linear(self, x, name):
        return self.keep(name, x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0))

    def band_split(self):
        bands, start, x = [], 0, self.dump["bands"].astype(np.float64)
        while f"band_split.to_features.{len(bands)}.1.weight" in self.weights:
            name = f"band_split.to_features.{len(bands)}"
            width = self.weights[f"{name}.1.weight"].shape[1]
            bands.append(self.linear(self.norm(x[..., start : start + width], f"{name}.0"), f"{name}.1"))
            start += width
        return self.keep("band_split", np.stack(bands, axis=-2))

    def rotated(self, x):
        """Pairs of neighbours by the angle of their position."""
        if self.fault == "no rotation":
            return x
        angles = np.arange(x.shape[-2])[:, None] * 10_000.0 ** (-np.arange(0, WIDTH, 2) / WIDTH)
        cos, sin = np.cos(angles), np.sin(angles) * (-1 if self.fault == "other way" else 1)
        halves = self.fault == "halves"
        a, b = np.split(x, 2, -1) if halves else (x[..., ::2], x[..., 1::2])
        turned = [a * cos - b * sin, b * cos + a * sin]
        return np.concatenate(turned, -1) if halves else np.stack(turned, -1).reshape(x.shape)

    def attention(self, x, name):
        y = self.norm(x, f"{name}.norm")
        qkv = self.linear(y, f"{name}.to_qkv").reshape(*y.shape[:2], 3, HEADS, WIDTH)
        q, k, v = qkv.transpose(2, 0, 3, 1, 4)
        logits = self.rotated(q) @ self.rotated(k).swapaxes(-1, -2) / WIDTH ** (1 if self.fault == "scale" else 0.5)
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        mixed = self.keep(f"{name}.attend", weights / weights.sum(-1, keepdims=True) @ v)
        gates = expit(self.linear(y, f"{name}.to_gates")).swapaxes(1, 2)[..., None]
        mixed = mixed * (1 if self.fault == "no gates" else gates)
        return self.linear(mixed.swapaxes(1, 2).reshape(*y.shape[:2], -1), f"{name}.to_out.0")

    def gelu(self, x):
        if self.fault == "tanh gelu":
            return 0.5 * x * (1 + np.tanh(0.7978845608028654 * (x + 0.044715 * x**3)))
        return 0.5 * x * (1 + erf(x / np.sqrt(2)))

    def block(self, x, name):
        x = x + self.attention(x, f"{name}.layers.0.0")
        y = self.linear(self.norm(x, f"{name}.layers.0.1.net.0"), f"{name}.layers.0.1.net.1")
        y = self.linear(self.keep(f"{name}.layers.0.1.net.2", self.gelu(y)), f"{name}.layers.0.1.net.4")
        return self.keep(name, y if self.fault == "no residual" else x + y)

    def run(self):
        x = self.band_split()
        batch, frames, bands, width = x.shape
        for layer in ("layers.0", "layers.1"):
            x = self.block(x.swapaxes(1, 2).reshape(batch * bands, frames, width), f"{layer}.0")
            x = x.reshape(batch, bands, frames, width).swapaxes(1, 2)
            x = self.block(x.reshape(batch * frames, bands, width), f"{layer}.1").reshape(batch, frames, bands, width)
        self.norm(x, "final_norm")
        return self.dump


def test_a_sound_port_passes(bundle):
    report = verify_port([Port(bundle).run()], bundle)
    assert report.passed, report.verdict
    assert len(report.taps) > 50


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found_where_they_are_made(bundle, mistake):
    tap, cause = MISTAKES[mistake]
    first = verify_port([Port(bundle, mistake).run()], bundle).first_divergence
    assert first.subject == tap
    assert re.search(cause, first.note), first.note
