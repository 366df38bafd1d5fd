"""What kind of work an ATen operator is, in the words that `splitter.mil.ops` has for packages."""

from __future__ import annotations

import operator

import torch
from torch import fx

_ATEN = {
    name: family
    for family, names in {
        "attention": ("scaled_dot_product_attention",),
        "convolution": ("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d"),
        "linear": ("linear", "matmul", "mm", "bmm", "addmm", "baddbmm", "einsum"),
        "normalization": ("batch_norm", "group_norm", "instance_norm", "layer_norm"),
        "activation": ("elu", "gelu", "glu", "leaky_relu", "relu", "sigmoid", "silu", "softmax", "softplus"),
        "recurrent": ("lstm", "gru", "rnn_tanh", "rnn_relu"),
        "fourier": ("stft", "istft"),  # packages have no such operation
        "shape": ("clone", "reshape", "slice_scatter"),
        "scatter_gather": ("embedding", "gather", "index", "index_select", "scatter"),
    }.items()
    for name in names
}


def of_node(node: fx.Node) -> str:
    """Family of a captured graph's operator: that of the package operation which computes the same.

    An access to a tuple is of the family of what made the tuple. What only moves values is ``shape``.

    Raises:
        TypeError: The node is no operator.
    """
    while node.target is operator.getitem:
        node = node.all_input_nodes[0]
    target = node.target
    if not isinstance(target, torch._ops.OpOverload):
        raise TypeError(f"only operators have a family; got {node.format_node()}")
    name = target._schema.name.removeprefix("aten::")
    if name in _ATEN:
        return _ATEN[name]
    if target.is_view:
        return "shape"
    if torch.Tag.reduction in target.tags:
        return "reduction"
    return "elementwise" if torch.Tag.pointwise in target.tags else "tensor"
