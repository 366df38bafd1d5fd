"""The host vocabulary against PyTorch and SciPy, and specifications from saved files."""

import json

import numpy as np
import pytest
import scipy.signal
import torch

from splitter.errors import LoweringError
from splitter.runtime import host
from splitter.runtime.host import HostSpec, Step

from ..conftest import snr_db

X = np.random.default_rng(0).standard_normal((2, 3, 40)).astype(np.float32)
T = torch.from_numpy(X)


def run(op, *arguments, **parameters):
    return host._OPERATIONS[op](*arguments, **parameters)


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (run("reshape", X, shape=[6, 40]), T.reshape(6, 40)),
        (run("transpose", X, axes=[2, 0, 1]), T.permute(2, 0, 1)),
        (run("slice", X, axis=2, start=3, stop=38), T[:, :, 3:-2]),
        (run("pad_zero", X, before=[0, 1, 2], after=[0, 0, 3]), torch.nn.functional.pad(T, (2, 3, 1, 0))),
        (run("pad_reflect", X, before=[0, 0, 5], after=[0, 0, 7]), torch.nn.functional.pad(T, (5, 7), "reflect")),
        (run("hann_window", length=64), torch.hann_window(64)),
        (run("constant", values=[1, 2, 3, 4], shape=[2, 2], dtype="float32"), torch.tensor([[1.0, 2], [3, 4]])),
        (run("fill", value=0.5, shape=[2, 3], dtype="complex64"), torch.full((2, 3), 0.5, dtype=torch.complex64)),
        (run("expand", X[:, :1], shape=[4, 2, 3, 40]), T[:, :1].expand(4, 2, 3, 40)),
        (run("concatenate", X, X[:, :2], axis=1), torch.cat([T, T[:, :2]], 1)),
        (run("stack", X, X + 1, axis=2), torch.stack([T, T + 1], 2)),
        (run("select", X, axis=1, index=2), T[:, 2]),
        (run("put", X, X[:, 0] * 0, axis=1, index=2), T.select_scatter(T[:, 0] * 0, 1, 2)),
        (run("take", X, axes=2, indices=[5, 0, 5], shape=[3, 40]), T[torch.tensor([1, 0, 1]), torch.tensor([2, 0, 2])]),
        (
            run("add_at", X, X[:, :, :3], axis=2, indices=[7, 7, 0]),
            T.index_add(2, torch.tensor([7, 7, 0]), T[:, :, :3]),
        ),
        (run("magnitude", X + 2j * X), (T + 2j * T).abs()),
        (run("split_complex", X + 2j * X), torch.view_as_real(T + 2j * T)),
        (run("join_complex", X[..., :2]), torch.view_as_complex(T[..., :2].contiguous())),
        (run("mean", X, axes=[1, 2]), T.mean((1, 2), keepdim=True)),
        (run("std", X, axes=[1, 2], correction=1.0), T.std((1, 2), keepdim=True)),
        (run("add", X, 1e-5), T + 1e-5),
        (run("subtract", X, X[:, :1]), T - T[:, :1]),
        (run("multiply", 3.0, X), 3 * T),
        (run("divide", X, X + 9), T / (T + 9)),
    ],
)
def test_words_mean_what_pytorch_means(result, expected):
    assert result.shape == tuple(expected.shape)
    assert result.dtype == expected.numpy().dtype
    np.testing.assert_allclose(result, expected.numpy(), rtol=2e-6, atol=1e-7)


def test_stft_and_its_inverse_against_pytorch_and_scipy():
    signal = np.random.default_rng(1).standard_normal((2, 4096)).astype(np.float32)
    window = run("hann_window", length=512)
    spectrum = run("stft", signal, window, fft_length=512, hop_length=128, scale=512**-0.5)
    theirs = torch.stft(torch.from_numpy(signal), 512, 128, window=torch.hann_window(512), center=False,
                        normalized=True, return_complex=True)  # fmt: skip
    for part in (np.real, np.imag):
        assert snr_db(part(theirs.numpy()), part(spectrum)) >= 125
    scipys = scipy.signal.ShortTimeFFT(window.astype(float), 128, fs=1).stft(signal.astype(float), p0=2, p1=31)
    assert snr_db(np.abs(scipys * 512**-0.5), np.abs(spectrum)) >= 125

    padded = torch.stft(
        torch.from_numpy(signal), 512, 128, window=torch.hann_window(512), normalized=True, return_complex=True
    )
    back = run("istft", padded.numpy(), window, fft_length=512, hop_length=128, scale=512**-0.5, trim=256, length=4096)
    assert snr_db(signal, back) >= 125


def test_every_word_is_defined_once():
    assert all((function.__doc__ or "").strip() for function in host._OPERATIONS.values())
    with pytest.raises(ValueError, match="already defined"):
        host._Operation("mean")(lambda x: x)


def test_saved_specification_alone_gives_the_captured_segment(demo_bundle):
    """What a port would do: read the file, follow the steps."""
    golden = demo_bundle.goldens()
    for name in ("analysis", "synthesis"):
        segment = demo_bundle.segment(name)
        spec = HostSpec.model_validate_json((demo_bundle.path / segment.artifact.path).read_text())
        results = host.run(spec, {one: golden[one] for one in segment.inputs})
        assert set(results) == set(segment.outputs)
        for one in segment.outputs:
            if not one.endswith("_mean"):  # a sum that cancels has few exact digits
                assert snr_db(golden[one], results[one]) >= 120, one
            else:
                assert np.abs(golden[one] - results[one]).max() <= 1e-8


def test_specification_is_precise(demo_bundle):
    content = json.loads((demo_bundle.path / "analysis.json").read_text())
    stft = next(step for step in content["steps"] if step["op"] == "stft")
    assert stft["parameters"] == {"fft_length": 2048, "hop_length": 512, "scale": pytest.approx(2048**-0.5)}
    assert set(content["definitions"]) == {step["op"] for step in content["steps"]}
    assert "exp(-2 pi i f n / fft_length)" in content["definitions"]["stft"]


def spec(*steps, outputs):
    return HostSpec(stage="s", inputs=(), steps=steps, outputs=outputs, definitions={})


@pytest.mark.parametrize(
    ("step", "message"),
    [
        (
            Step(result="y", op="system", arguments=("x",), shape=(1,), dtype="float32"),
            "step 'y' of the host specification is unknown: 'system'",
        ),
        (
            Step(result="y", op="add", arguments=("z", 1.0), shape=(1,), dtype="float32"),
            "reads what no earlier step computes; got z",
        ),
        (
            Step(result="y", op="add", arguments=("x", 1.0), shape=(2,), dtype="float32"),
            r"than it says: expected \(2,\) float32, found \(1,\)",
        ),
    ],
)
def test_broken_specifications_are_named(step, message):
    with pytest.raises(LoweringError, match=message):
        host.run(spec(step, outputs={"y": "y"}), {"x": np.ones(1, np.float32)})


def step(op, *arguments, **parameters):
    return Step(result="y", op=op, arguments=arguments, parameters=parameters, shape=(1,), dtype="float32")


@pytest.mark.parametrize(
    "asking",
    [
        step("hann_window", length=1 << 40),
        step("pad_zero", "x", before=[1 << 40, 0], after=[0, 0]),
        step("pad_reflect", "x", before=[0, 0], after=[0, 1 << 40]),
        step("stft", "x", "w", fft_length=4096, hop_length=1, scale=1.0),
        step("stft", "x", "w", fft_length=4096, hop_length=-1, scale=1.0),
        step("istft", "s", "w", fft_length=1 << 30, hop_length=1, scale=1.0, trim=0, length=1),
        step("istft", "s", "w", fft_length=2, hop_length=1 << 40, scale=1.0, trim=0, length=1),
        step("add", "x", "column"),
    ],
)
def test_a_step_is_refused_before_it_takes_more_memory_than_there_may_be(monkeypatch, asking):
    monkeypatch.setenv("SPLITTER_MAX_MEMORY", "32MB")
    inputs = {
        "x": np.ones((1, 20_000), np.float32),
        "column": np.ones((20_000, 1), np.float32),
        "s": np.ones((1, 3, 9), np.complex64),
        "w": np.ones(4096, np.float32),
    }
    with pytest.raises(LoweringError, match="step 'y' of the host specification needs too much memory"):
        host.run(spec(asking, outputs={"y": "y"}), inputs)


@pytest.mark.parametrize(
    "asking",
    [
        step("hann_window", length="9"),
        step("hann_window"),
        step("reshape", "x", shape=[7]),
        step("slice", "x", axis=-1, start=None, stop=[]),
        step("stft", "x", "x", fft_length=4, hop_length=0, scale=1.0),
        step("add"),
    ],
)
def test_a_step_that_cannot_be_computed_is_named(asking):
    with pytest.raises(LoweringError, match="step 'y' of the host specification cannot be computed|gives"):
        host.run(spec(asking, outputs={"y": "y"}), {"x": np.ones((1, 8), np.float32)})


def test_an_output_that_no_step_gives_is_named():
    with pytest.raises(LoweringError, match="gives what no step computes; got nowhere"):
        host.run(spec(step("add", "x", 1.0), outputs={"y": "nowhere"}), {"x": np.ones(1, np.float32)})
