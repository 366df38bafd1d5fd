"""Recurrent layers.

``x`` has shape [steps, batch, features]. A layer returns its outputs and the state after the last step; outputs
are all steps, or only the last. In direction ``reverse`` steps run from the end, and outputs come in the order
they are computed; the backward half of ``bidirectional`` is turned round, so that both halves of a step agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.functional import linear

from ...errors import OperationError
from . import check_result_size, operation
from .traits import Traits

Activation: TypeAlias = Callable[[Tensor], Tensor]


def _hard_sigmoid(x: Tensor) -> Tensor:
    return (0.2 * x + 0.5).clamp(0, 1)


_ACTIVATIONS: Mapping[str, Activation] = {
    "hard_sigmoid": _hard_sigmoid,
    "linear": lambda x: x,
    "relu": torch.relu,
    "scaled_tanh": torch.tanh,  # both scales are 1
    "sigmoid": torch.sigmoid,
    "sigmoid_hard": _hard_sigmoid,  # rnn's name for it
    "tanh": torch.tanh,
}


def _activation(name: str) -> Activation:
    if name.lower() not in _ACTIVATIONS:
        raise OperationError("unknown activation", expected=", ".join(_ACTIVATIONS), received=name)
    return _ACTIVATIONS[name.lower()]


def _ordered(x: Tensor, direction: str) -> Tensor:
    if direction not in ("forward", "reverse"):
        raise OperationError("unknown direction", received=direction)
    return x.flip(0) if direction == "reverse" else x


def _checked(
    x: Tensor, state: Tensor, weight_ih: Tensor, weight_hh: Tensor, *biases: Tensor | None, gates: int
) -> None:
    """Refuse what would broadcast into something else."""
    if x.ndim != 3 or weight_hh.ndim != 2 or not len(x):
        raise OperationError(
            "a sequence or weight has the wrong shape",
            expected="[steps, batch, features], and a matrix",
            received=tuple(x.shape),
        )
    hidden = weight_hh.shape[1]
    wanted = [(gates * hidden, x.shape[2]), (gates * hidden, hidden), (x.shape[1], hidden)]
    got = [tuple(tensor.shape) for tensor in (weight_ih, weight_hh, state)]
    if got != wanted:
        raise OperationError("weights or initial state have the wrong shapes", expected=wanted, received=got)
    check_result_size((len(x), x.shape[1], gates * hidden), x.dtype)
    for bias in biases:
        if bias is not None and bias.shape != (gates * hidden,):
            raise OperationError(
                "a bias has the wrong length", expected=f"{gates * hidden} elements", received=tuple(bias.shape)
            )


@operation("rnn", Traits(accumulate_fp32=True))
def rnn(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    activation: str = "tanh",
) -> tuple[Tensor, Tensor]:
    """h ← activation(W_ih·x + W_hh·h + bias)."""
    _checked(x, initial_h, weight_ih, weight_hh, bias, gates=1)
    act = _activation(activation)
    h, outputs = initial_h, []
    for projected in linear(_ordered(x, direction), weight_ih, bias):
        h = act(projected + linear(h, weight_hh))
        outputs.append(h)
    return torch.stack(outputs if output_sequence else outputs[-1:]), h


@operation("gru", Traits(accumulate_fp32=True))
def gru(
    x: Tensor,
    initial_h: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    activation: str = "tanh",
    reset_after: bool = False,
    input_bias: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """h ← (1 − z)·o + z·h, with gates r (reset), o (new), z (update); weights hold them in this order.

    r and z are recurrent_activation(W_ih·x + W_hh·h + biases). o is activation(W_ih·x + W_hh·(r·h) + biases), or,
    where the reset comes after, activation(W_ih·x + input_bias + r·(W_hh·h + bias)), which is torch's.
    iOS18 added ``reset_after`` and ``input_bias``.
    """
    _checked(x, initial_h, weight_ih, weight_hh, bias, input_bias, gates=3)
    gate, act = _activation(recurrent_activation), _activation(activation)
    hidden = weight_hh.shape[1]
    weight_ho = weight_hh[hidden : 2 * hidden]
    bias = weight_hh.new_zeros(3 * hidden) if bias is None else bias
    h, outputs = initial_h, []
    for projected in linear(_ordered(x, direction), weight_ih, input_bias):
        from_x = projected.chunk(3, -1)
        from_h = linear(h, weight_hh, bias).chunk(3, -1)
        r, z = gate(from_x[0] + from_h[0]), gate(from_x[2] + from_h[2])
        reset = r * from_h[1] if reset_after else linear(r * h, weight_ho, bias[hidden : 2 * hidden])
        h = (1 - z) * act(from_x[1] + reset) + z * h
        outputs.append(h)
    return torch.stack(outputs if output_sequence else outputs[-1:]), h


@operation("lstm", Traits(accumulate_fp32=True))
def lstm(
    x: Tensor,
    initial_h: Tensor,
    initial_c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None = None,
    peephole: Tensor | None = None,
    weight_ih_back: Tensor | None = None,
    weight_hh_back: Tensor | None = None,
    bias_back: Tensor | None = None,
    peephole_back: Tensor | None = None,
    direction: str = "forward",
    output_sequence: bool = False,
    recurrent_activation: str = "sigmoid",
    cell_activation: str = "tanh",
    activation: str = "tanh",
    clip: float | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """c ← f·c + i·z, clipped; h ← o·activation(c).

    Weights hold the gates in the order i, f, o, z; states of two directions lie side by side.
    i, f and o are recurrent_activation(W_ih·x + W_hh·h + bias + peephole·c), z is cell_activation of the same without a
    peephole; o sees the new cell, i and f the old one.
    """
    if clip is not None and not clip > 0:
        raise OperationError("a cell's clip is not positive", received=clip)
    acts = _activation(recurrent_activation), _activation(cell_activation), _activation(activation)
    if direction != "bidirectional":
        outputs, h, c = _lstm(
            _ordered(x, direction), initial_h, initial_c, weight_ih, weight_hh, bias, peephole, acts, clip
        )
        return (outputs if output_sequence else outputs[-1:]), h, c
    if weight_ih_back is None or weight_hh_back is None:
        raise OperationError("a bidirectional lstm has no weights for the way back")
    (h_on, h_back), (c_on, c_back) = (_halves(initial) for initial in (initial_h, initial_c))
    on = _lstm(x, h_on, c_on, weight_ih, weight_hh, bias, peephole, acts, clip)
    back = _lstm(x.flip(0), h_back, c_back, weight_ih_back, weight_hh_back, bias_back, peephole_back, acts, clip)
    sequence = torch.cat([on[0], back[0].flip(0)], -1)
    final = torch.cat([on[1], back[1]], -1)
    return (sequence if output_sequence else final[None]), final, torch.cat([on[2], back[2]], -1)


def _halves(state: Tensor) -> tuple[Tensor, Tensor]:
    half = state.shape[-1] // 2
    return state[:, :half], state[:, half:]


def _lstm(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias: Tensor | None,
    peephole: Tensor | None,
    activations: tuple[Activation, Activation, Activation],
    clip: float | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Every step's output, and the states after the last; in the order of ``x``."""
    for state in (h, c):
        _checked(x, state, weight_ih, weight_hh, bias, gates=4)
    gate, cell, act = activations
    zero = weight_hh.new_zeros(3, weight_hh.shape[1])
    p_i, p_f, p_o = zero if peephole is None else peephole.reshape(zero.shape)
    outputs = []
    for projected in linear(x, weight_ih, bias):
        i, f, o, z = (projected + linear(h, weight_hh)).chunk(4, -1)
        c_new = gate(f + p_f * c) * c + gate(i + p_i * c) * cell(z)
        c = c_new if clip is None else c_new.clamp(-clip, clip)
        h = gate(o + p_o * c) * act(c)
        outputs.append(h)
    return torch.stack(outputs), h, c
