"""Recurrent layers, against plain loops in float64 and torch's modules."""

import re

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import nn

from splitter.errors import OperationError
from splitter.mil.ops import find

from .harness import mb, run

S, B, N, H = 5, 2, 3, 4
RANDOM = np.random.default_rng(0)
ACTIVATIONS = {
    "hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "sigmoid_hard": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "linear": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "scaled_tanh": np.tanh,
    "sigmoid": expit,
    "tanh": np.tanh,
    "TANH": np.tanh,
}


def noise(*shape):
    return RANDOM.normal(size=shape).astype(np.float32)


def weights(gates):
    return {"weight_ih": noise(gates * H, N), "weight_hh": noise(gates * H, H), "bias": noise(gates * H)}


X, STATE, CELL = noise(S, B, N), noise(B, H), noise(B, H)


def steps(x, direction):
    return x[::-1] if direction == "reverse" else x


def plain_rnn(x, h, weight_ih, weight_hh, bias=0.0, direction="forward", activation="tanh"):
    outputs = []
    for step in steps(x, direction).astype(np.float64):
        h = ACTIVATIONS[activation](step @ weight_ih.T + h @ weight_hh.T + bias)
        outputs.append(h)
    return np.array(outputs)


def plain_gru(
    x, h, weight_ih, weight_hh, bias=None, direction="forward", activation="tanh", recurrent_activation="sigmoid",
    reset_after=False, input_bias=None,
):  # fmt: skip
    w_r, w_o, w_z = weight_ih.astype(np.float64).reshape(3, H, -1)
    u_r, u_o, u_z = weight_hh.astype(np.float64).reshape(3, H, H)
    b_r, b_o, b_z = (np.zeros(3 * H) if bias is None else bias).reshape(3, H)
    i_r, i_o, i_z = (np.zeros(3 * H) if input_bias is None else input_bias).reshape(3, H)
    gate, act = ACTIVATIONS[recurrent_activation], ACTIVATIONS[activation]
    outputs = []
    for step in steps(x, direction):
        r = gate(step @ w_r.T + h @ u_r.T + b_r + i_r)
        z = gate(step @ w_z.T + h @ u_z.T + b_z + i_z)
        inner = r * (h @ u_o.T + b_o) if reset_after else (r * h) @ u_o.T + b_o
        h = (1 - z) * act(step @ w_o.T + i_o + inner) + z * h
        outputs.append(h)
    return np.array(outputs)


def plain_lstm(
    x, h, c, weight_ih, weight_hh, bias=None, peephole=None, direction="forward", recurrent_activation="sigmoid",
    cell_activation="tanh", activation="tanh", clip=np.inf,
):  # fmt: skip
    w_i, w_f, w_o, w_z = weight_ih.astype(np.float64).reshape(4, H, -1)
    u_i, u_f, u_o, u_z = weight_hh.astype(np.float64).reshape(4, H, H)
    b_i, b_f, b_o, b_z = (np.zeros(4 * H) if bias is None else bias).reshape(4, H)
    p_i, p_f, p_o = (np.zeros(3 * H) if peephole is None else peephole).reshape(3, H)
    gate, cell, act = (ACTIVATIONS[one] for one in (recurrent_activation, cell_activation, activation))
    outputs = []
    for step in steps(x, direction):
        i = gate(step @ w_i.T + h @ u_i.T + b_i + p_i * c)
        f = gate(step @ w_f.T + h @ u_f.T + b_f + p_f * c)
        c = np.clip(f * c + i * cell(step @ w_z.T + h @ u_z.T + b_z), -clip, clip)
        h = gate(step @ w_o.T + h @ u_o.T + b_o + p_o * c) * act(c)
        outputs.append(h)
    return np.array(outputs), c


def close(got, expected, **options):
    assert got.shape == expected.shape
    np.testing.assert_allclose(got, expected, **({"rtol": 2e-5, "atol": 2e-6} | options))


@pytest.mark.parametrize("target", ["iOS15", "iOS17"])
@pytest.mark.parametrize("direction", ["forward", "reverse"])
@pytest.mark.parametrize("sequence", [True, False])
def test_one_direction(direction, sequence, target):
    rnn, gru, lstm = weights(1), weights(3), weights(4)
    options = {"direction": direction, "output_sequence": sequence}

    def build(x, h, c):
        return (
            *mb.rnn(x=x, initial_h=h, **rnn, **options),
            *mb.gru(x=x, initial_h=h, **gru, **options),
            *mb.lstm(x=x, initial_h=h, initial_c=c, **lstm, **options),
        )

    r, r_h, g, g_h, s, s_h, s_c = run(build, {"x": X, "h": STATE, "c": CELL}, target)
    cells, cell = plain_lstm(X, STATE, CELL, **lstm, direction=direction)
    plain = (plain_rnn(X, STATE, **rnn, direction=direction), plain_gru(X, STATE, **gru, direction=direction), cells)
    for outputs, last, expected in zip((r, g, s), (r_h, g_h, s_h), plain, strict=True):
        close(outputs, expected if sequence else expected[-1:])
        close(last, expected[-1])
    close(s_c, cell)


@pytest.mark.parametrize("sequence", [True, False])
@pytest.mark.parametrize("peepholes", [True, False])
def test_lstm_in_both_directions(sequence, peepholes):
    on, back, h, c = weights(4), weights(4), noise(B, 2 * H), noise(B, 2 * H)
    if peepholes:
        on, back = on | {"peephole": noise(3 * H)}, back | {"peephole": noise(3 * H)}
    backwards = {f"{name}_back": value for name, value in back.items()}

    def build(x, h, c):
        return mb.lstm(
            x=x, initial_h=h, initial_c=c, **on, **backwards, direction="bidirectional", output_sequence=sequence
        )

    outputs, last, cell = run(build, {"x": X, "h": h, "c": c})
    one, one_c = plain_lstm(X, h[:, :H], c[:, :H], **on)
    other, other_c = plain_lstm(X, h[:, H:], c[:, H:], **back, direction="reverse")
    both = np.concatenate([one, other[::-1]], -1)
    final = np.concatenate([one[-1], other[-1]], -1)
    close(outputs, both if sequence else final[None])
    close(last, final)
    close(cell, np.concatenate([one_c, other_c], -1))


def test_torch_agrees():
    """Torch orders an LSTM's gates i, f, z, o and a GRU's r, z, o."""
    x, h, c = torch.from_numpy(X), torch.from_numpy(STATE), torch.from_numpy(CELL)
    lstm, gru, rnn = nn.LSTM(N, H), nn.GRU(N, H), nn.RNN(N, H)

    def reordered(tensor, order):
        parts = tensor.detach().chunk(len(order))
        return torch.cat([parts[index] for index in order])

    i_f_o_z, r_o_z = (0, 1, 3, 2), (0, 2, 1)
    with torch.no_grad():
        got = find("lstm", "CoreML7").function(
            x, h, c, reordered(lstm.weight_ih_l0, i_f_o_z), reordered(lstm.weight_hh_l0, i_f_o_z),
            reordered(lstm.bias_ih_l0 + lstm.bias_hh_l0, i_f_o_z), output_sequence=True,
        )  # fmt: skip
        expected, (last, cell) = lstm(x, (h[None], c[None]))
        for one, other in zip(got, (expected, last[0], cell[0]), strict=True):
            close(one, other)
        got = find("gru", "CoreML8").function(
            x, h, reordered(gru.weight_ih_l0, r_o_z), reordered(gru.weight_hh_l0, r_o_z),
            reordered(gru.bias_hh_l0, r_o_z), output_sequence=True, reset_after=True,
            input_bias=reordered(gru.bias_ih_l0, r_o_z),
        )  # fmt: skip
        close(got[0], gru(x, h[None])[0])
        got = find("rnn", "CoreML7").function(
            x, h, rnn.weight_ih_l0, rnn.weight_hh_l0, rnn.bias_ih_l0 + rnn.bias_hh_l0, output_sequence=True
        )
        close(got[0], rnn(x, h[None])[0])


@pytest.mark.parametrize("after", [True, False])
@pytest.mark.parametrize("biased", [True, False])
def test_a_gru_resets_before_or_after(after, biased):
    given = weights(3) | ({"input_bias": noise(3 * H)} if biased else {})

    def build(x, h):
        return mb.gru(x=x, initial_h=h, **given, reset_after=after, output_sequence=True)

    outputs, _ = run(build, {"x": X, "h": STATE}, "iOS18")
    close(outputs, plain_gru(X, STATE, **given, reset_after=after))


def test_defaults():
    rnn, gru, lstm = (weights(gates) for gates in (1, 3, 4))
    for one in (rnn, gru, lstm):
        del one["bias"]

    def build(x, h, c):
        return (
            mb.rnn(x=x, initial_h=h, **rnn)[0],
            mb.gru(x=x, initial_h=h, **gru)[0],
            mb.lstm(x=x, initial_h=h, initial_c=c, **lstm)[0],
        )

    plain = plain_rnn(X, STATE, **rnn), plain_gru(X, STATE, **gru), plain_lstm(X, STATE, CELL, **lstm)[0]
    for got, expected in zip(run(build, {"x": X, "h": STATE, "c": CELL}), plain, strict=True):
        close(got, expected[-1:])


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations(name):
    rnn, gru, lstm = (weights(gates) for gates in (1, 3, 4))
    x, h, c = (torch.from_numpy(one) for one in (X / 4, STATE / 4, CELL / 4))

    def call(operation, *arguments, **options):
        given = {key: torch.from_numpy(one) if isinstance(one, np.ndarray) else one for key, one in options.items()}
        return find(operation, "CoreML7").function(*arguments, **given, output_sequence=True)[0]

    close(call("rnn", x, h, **rnn, activation=name), plain_rnn(X / 4, STATE / 4, **rnn, activation=name), rtol=1e-4)
    for one in ("activation", "recurrent_activation"):
        close(
            call("gru", x, h, **gru, **{one: name}),
            plain_gru(X / 4, STATE / 4, **gru, **{one: name}),
            rtol=1e-3,
            atol=1e-4,
        )
    for one in ("activation", "recurrent_activation", "cell_activation"):
        expected, _ = plain_lstm(X / 4, STATE / 4, CELL / 4, **lstm, **{one: name})
        close(call("lstm", x, h, c, **lstm, **{one: name}), expected, rtol=1e-3, atol=1e-4)


def test_the_cell_is_clipped():
    given = weights(4)

    def build(x, h, c):
        return mb.lstm(x=x, initial_h=h, initial_c=c, **given, clip=np.float32(0.25), output_sequence=True)

    outputs, _, cell = run(build, {"x": X, "h": STATE, "c": CELL})
    expected, expected_cell = plain_lstm(X, STATE, CELL, **given, clip=0.25)
    assert np.abs(expected_cell).max() == 0.25
    close(outputs, expected)
    close(cell, expected_cell)


def test_half_precision_is_rounded_once():
    given = {name: value.astype(np.float16) for name, value in weights(3).items()}
    x, h = X.astype(np.float16), STATE.astype(np.float16)
    outputs, _ = run(lambda x, h: mb.gru(x=x, initial_h=h, **given, output_sequence=True), {"x": x, "h": h}, "iOS17")
    assert outputs.dtype == np.float16
    expected = plain_gru(*(one.astype(np.float64) for one in (x, h)), **given)
    np.testing.assert_allclose(outputs, expected, rtol=2**-10.9, atol=1e-6)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"direction": "backward"}, "unknown direction"),
        ({"direction": "bidirectional"}, "a bidirectional lstm has no weights for the way back"),
        (
            {"activation": "softplus"},
            "unknown activation: expected hard_sigmoid, linear, relu, scaled_tanh, sigmoid, sigmoid_hard, tanh",
        ),
        (
            {"weight_ih": torch.zeros(4 * H, N + 1)},
            "weights or initial state have the wrong shapes: expected [(16, 3), (16, 4), (2, 4)]",
        ),
        (
            {"weight_hh": torch.zeros(4 * H, H + 1)},
            "weights or initial state have the wrong shapes: expected [(20, 3), (20, 5), (2, 5)]",
        ),
        (
            {"weight_hh": torch.zeros(H)},
            "a sequence or weight has the wrong shape: expected [steps, batch, features], and a matrix",
        ),
        ({"bias": torch.zeros(1)}, "a bias has the wrong length: expected 16 elements"),
        (
            {"initial_h": torch.zeros(1, H)},
            "weights or initial state have the wrong shapes: expected [(16, 3), (16, 4), (2, 4)]",
        ),
        (
            {"initial_c": torch.zeros(B, H + 1)},
            "weights or initial state have the wrong shapes: expected [(16, 3), (16, 4), (2, 4)]",
        ),
        (
            {"x": torch.zeros(0, B, N)},
            "a sequence or weight has the wrong shape: expected [steps, batch, features], and a matrix",
        ),
        (
            {"x": torch.zeros(S, N)},
            "a sequence or weight has the wrong shape: expected [steps, batch, features], and a matrix",
        ),
        ({"clip": 0.0}, "a cell's clip is not positive"),
        ({"clip": float("nan")}, "a cell's clip is not positive"),
    ],
)
def test_what_does_not_fit(changed, said):
    given = {name: torch.from_numpy(one) for name, one in weights(4).items()}
    given |= {"x": torch.zeros(S, B, N), "initial_h": torch.zeros(B, H), "initial_c": torch.zeros(B, H)}
    with pytest.raises(OperationError, match=re.escape(said)):
        find("lstm", "CoreML7").function(**given | changed)
    if changed.keys().isdisjoint({"initial_c", "clip"}):
        three = {name: one for name, one in (given | changed).items() if name != "initial_c"}
        for name, gates in (("gru", 3), ("rnn", 1)):
            fitting = {
                key: one[: gates * H] if key in ("weight_ih", "weight_hh", "bias") and key not in changed else one
                for key, one in three.items()
            }
            with pytest.raises(
                OperationError,
                match="^(unknown direction|unknown activation|weights or initial|a sequence|a bias|a bidirectional)",
            ):
                find(name, "CoreML8").function(**fitting)
