"""Recurrent layers, step by step; several layers and both directions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
from jax import lax

from . import Function, operator
from .linear import product

_State: TypeAlias = tuple[jax.Array, ...]  # the hidden one first
# A state and the contributions of input and hidden state, (batch, gates × width) each, give the next state.
_Cell: TypeAlias = Callable[[_State, jax.Array, jax.Array], _State]


@operator("lstm.input")
def lstm(
    x: jax.Array,
    hx: list[jax.Array],
    params: list[jax.Array],
    has_biases: bool,
    num_layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[jax.Array, ...]:
    def cell(state: _State, of_input: jax.Array, of_hidden: jax.Array) -> _State:
        enter, forget, new, leave = jnp.split(of_input + of_hidden, 4, axis=-1)
        memory = jax.nn.sigmoid(forget) * state[1] + jax.nn.sigmoid(enter) * jnp.tanh(new)
        return jax.nn.sigmoid(leave) * jnp.tanh(memory), memory

    return _layers(cell, x, hx, params, has_biases, num_layers, bidirectional, batch_first)


def _with_one_state(cell: _Cell) -> Function:
    def recurrent(
        x: jax.Array,
        hx: jax.Array,
        params: list[jax.Array],
        has_biases: bool,
        num_layers: int,
        bidirectional: bool,
        batch_first: bool,
    ) -> tuple[jax.Array, ...]:
        return _layers(cell, x, [hx], params, has_biases, num_layers, bidirectional, batch_first)

    return recurrent


def _gru(state: _State, of_input: jax.Array, of_hidden: jax.Array) -> _State:
    (reset_x, update_x, new_x), (reset_h, update_h, new_h) = (
        jnp.split(part, 3, axis=-1) for part in (of_input, of_hidden)
    )
    update = jax.nn.sigmoid(update_x + update_h)
    new = jnp.tanh(new_x + jax.nn.sigmoid(reset_x + reset_h) * new_h)
    return ((1 - update) * new + update * state[0],)


def _rnn_tanh(state: _State, of_input: jax.Array, of_hidden: jax.Array) -> _State:
    return (jnp.tanh(of_input + of_hidden),)


def _rnn_relu(state: _State, of_input: jax.Array, of_hidden: jax.Array) -> _State:
    return (jnp.maximum(of_input + of_hidden, 0),)


operator("gru.input")(_with_one_state(_gru))
operator("rnn_tanh.input")(_with_one_state(_rnn_tanh))
operator("rnn_relu.input")(_with_one_state(_rnn_relu))


def _layers(
    cell: _Cell,
    x: jax.Array,
    first: list[jax.Array],
    params: list[jax.Array],
    has_biases: bool,
    layers: int,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[jax.Array, ...]:
    """Output (time, batch, directions × width), and the last states, (layers × directions, batch, width) each.

    Parameters are, for each layer and direction, the matrices of input and hidden state, and their biases.
    """
    sequence = x.swapaxes(0, 1) if batch_first else x
    step, directions = (4 if has_biases else 2), (2 if bidirectional else 1)
    lasts = []
    for layer in range(layers):
        outputs = []
        for direction in range(directions):
            place = layer * directions + direction
            state = tuple(part[place] for part in first)
            last, output = _direction(
                cell, sequence, state, params[step * place : step * (place + 1)], backwards=direction == 1
            )
            lasts.append(last)
            outputs.append(output)
        sequence = jnp.concatenate(outputs, axis=-1)
    final = [jnp.stack(parts) for parts in zip(*lasts, strict=True)]
    return (sequence.swapaxes(0, 1) if batch_first else sequence, *final)


def _direction(
    cell: _Cell, sequence: jax.Array, first: _State, params: list[jax.Array], *, backwards: bool
) -> tuple[_State, jax.Array]:
    of_input, of_hidden, *biases = params
    inputs = product(sequence, of_input.T)  # of all steps at once
    if biases:
        inputs = inputs + biases[0]

    def advanced(state: _State, contribution: jax.Array) -> tuple[_State, Any]:
        hidden = product(state[0], of_hidden.T)
        following = cell(state, contribution, hidden + biases[1] if biases else hidden)
        following = tuple(part.astype(sequence.dtype) for part in following)
        return following, following[0]

    return lax.scan(advanced, first, inputs, reverse=backwards)
