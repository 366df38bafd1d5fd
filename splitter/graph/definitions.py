"""Operators that no saved program may use, as those that it may: by PyTorch's definition, or by one written here.

A definition computes the same and may round otherwise than the kernel. So a capture is held against the model with the
same definitions in the place of its kernels, bit for bit, and against the model as it is in decibels, see
`splitter.bundle.goldens`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

Definition: TypeAlias = Callable[..., Any]
_aten = torch.ops.aten
_COMPOSITE = "CompositeImplicitAutograd"  # what PyTorch itself takes apart, on every device: the same bits
_SHIFTS = 31
_LONGEST_PRODUCT = 256  # of running products, each an operator


def rounds_otherwise(target: torch._ops.OpOverload) -> bool:
    """Whether an operator has a kernel of its own, whose bits a definition need not give."""
    return not torch._C._dispatch_has_kernel_for_dispatch_key(target.name(), _COMPOSITE)


def known(targets: Iterable[torch._ops.OpOverload]) -> Mapping[torch._ops.OpOverload, Definition]:
    """The definitions of those operators that have one."""
    wanted = list(targets)
    if not wanted:
        return {}
    from torch._decomp import decomposition_table

    table: dict[Any, Any] = dict(torch.export.default_decompositions())
    table |= {target: decomposition_table[target] for target in _PYTORCHS} | _OURS
    return {target: table[target] for target in wanted if target in table}


def in_place_of_kernels(targets: Iterable[str]) -> AbstractContextManager[object]:
    """While it holds, PyTorch computes these operators by their definitions.

    Args:
        targets: By name, e.g. ``"aten.grid_sampler_2d.default"``.
    """
    return _ByDefinition(set(targets))


class _ByDefinition(TorchDispatchMode):
    def __init__(self, targets: set[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._targets = targets
        self._known: dict[Any, Definition] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if str(func) not in self._targets:
            return func(*args, **(kwargs or {}))
        if func not in self._known:
            self._known |= known([func])
        with self:  # what it is defined by may be defined as well
            return self._known[func](*args, **(kwargs or {}))


# ------------------------------------------------------------------------------------- definitions


def _distances(a: Tensor, b: Tensor, p: float, compute_mode: int | None = None) -> Tensor:
    """``(… n d), (… m d) → … n m``: the p-norm of every difference of rows."""
    difference = (a.unsqueeze(-2) - b.unsqueeze(-3)).abs()
    if p == 0:
        return (difference != 0).to(a.dtype).sum(-1)
    if p == 1:
        return difference.sum(-1)
    if p == 2:
        return difference.square().sum(-1).sqrt()
    if math.isinf(p):
        return difference.amax(-1)
    return difference.pow(p).sum(-1).pow(1 / p)


def _bags(
    weight: Tensor,
    indices: Tensor,
    offsets: Tensor,
    scale_grad_by_freq: bool = False,
    mode: int = 0,
    sparse: bool = False,
    per_sample_weights: Tensor | None = None,
    include_last_offset: bool = False,
    padding_idx: int = -1,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Sums, means or greatest of the rows of each bag, zeros for an empty one. The other results are of training.

    A row belongs to a bag by where it lies between offsets, which may be inputs: extents depend on none of them.
    """
    starts = offsets[:-1] if include_last_offset else offsets
    places = torch.arange(indices.shape[0], dtype=offsets.dtype)
    begun = (places >= starts.unsqueeze(1)).to(torch.int32)  # bags × rows
    ended = torch.cat([begun[1:], begun.new_zeros(1, begun.shape[1])])
    if include_last_offset:
        ended = torch.cat([ended[:-1], (places >= offsets[-1:].unsqueeze(1)).to(torch.int32)])
    member = (begun - ended) > 0
    if padding_idx >= 0:
        member = member & (indices != padding_idx)
    rows = torch.nn.functional.embedding(indices.to(torch.int64), weight)
    if per_sample_weights is not None:
        rows = rows * per_sample_weights.unsqueeze(1)
    share = member.to(weight.dtype)
    count = share.sum(1, keepdim=True)
    if mode == 2:
        lowest = torch.finfo(weight.dtype).min
        greatest = torch.where(member.unsqueeze(2), rows.unsqueeze(0), lowest).amax(1)
        bags = torch.where(count > 0, greatest, 0.0)
    else:
        bags = share @ rows
        bags = bags / count.clamp(min=1) if mode == 1 else bags
    unused = torch.zeros(0, dtype=offsets.dtype)
    return bags, unused, unused, unused


def _trilinear(
    a: Tensor, b: Tensor, c: Tensor, expand1: list[int], expand2: list[int], expand3: list[int],
    sumdim: list[int], unroll_dim: int = 1,
) -> Tensor:  # fmt: skip
    """The product of three tensors, with axes put in, summed over others."""
    for axes, place in ((expand1, 0), (expand2, 1), (expand3, 2)):
        for axis in sorted(axes):
            a, b, c = (t.unsqueeze(axis) if at == place else t for at, t in enumerate((a, b, c)))
    return (a * b * c).sum(sumdim)


def _one_hot(x: Tensor, num_classes: int = -1) -> Tensor:
    """Without the check of its values, which no graph can make; a value beyond the classes gives zeros."""
    if num_classes < 0:
        return NotImplemented
    return (x.unsqueeze(-1) == torch.arange(num_classes)).to(torch.int64)


def _scatter_reduce(
    x: Tensor, dim: int, index: Tensor, src: Tensor, reduce: str, *, include_self: bool = True
) -> Tensor:
    """Of all that an index sends to one place: the sum, mean, product, least or greatest."""
    if not x.dim() or any(index.shape[axis] != x.shape[axis] for axis in range(x.dim()) if axis != dim % x.dim()):
        return NotImplemented
    dim = dim % x.dim()
    src = src[tuple(slice(extent) for extent in index.shape)]
    # What is sent, along a last axis: … places, sent.
    sent, to = src.movedim(dim, -1).unsqueeze(-2), index.movedim(dim, -1).unsqueeze(-2)
    here = to == torch.arange(x.shape[dim]).unsqueeze(1)
    before = x.movedim(dim, -1)
    nobody = ~here.any(-1)
    count = here.to(src.dtype).sum(-1) + (1 if include_self else 0)
    if reduce in ("sum", "mean"):
        result = torch.where(here, sent, 0.0).sum(-1) + (before if include_self else 0)
        result = result / count.clamp(min=1) if reduce == "mean" else result
    elif reduce == "prod":
        result = torch.where(here, sent, 1.0).prod(-1) * (before if include_self else 1)
    elif reduce == "amax":
        result = torch.where(here, sent, -math.inf).amax(-1)
        result = torch.maximum(result, before) if include_self else result
    else:
        result = torch.where(here, sent, math.inf).amin(-1)
        result = torch.minimum(result, before) if include_self else result
    return torch.where(nobody, before, result).movedim(-1, dim)


def _median(x: Tensor, dim: int, keepdim: bool = False) -> tuple[Tensor, Tensor]:
    """The lower one of two in the middle."""
    values, places = x.sort(dim)
    middle = (x.shape[dim] - 1) // 2
    values, places = values.narrow(dim, middle, 1), places.narrow(dim, middle, 1)
    return (values, places) if keepdim else (values.squeeze(dim), places.squeeze(dim))


def _median_of_all(x: Tensor) -> Tensor:
    return x.reshape(-1).sort(0).values[(x.numel() - 1) // 2]


def _running_product(x: Tensor, dim: int, *, dtype: torch.dtype | None = None) -> Tensor:
    x = x if dtype is None else x.to(dtype)
    if not x.dim() or not 0 < x.shape[dim] <= _LONGEST_PRODUCT:
        return NotImplemented
    products = [x.select(dim, 0)]
    for place in range(1, x.shape[dim]):
        products.append(products[-1] * x.select(dim, place))
    return torch.stack(products, dim)


def _floor_divided(x: Tensor, other: Any) -> Tensor:
    return torch.div(x, other, rounding_mode="floor")


def _modulus(x: Tensor, other: Any) -> Tensor:
    """The remainder with the sign of x."""
    size = other.abs() if isinstance(other, Tensor) else abs(other)
    return torch.remainder(x.abs(), size) * x.sign()


def _trilinear_3d(x: Tensor, size: list[int] | None, align_corners: bool, factors: list[float] | None) -> Tensor:
    """By its kernel, which a model is seen to run; PyTorch's own definition passes it by."""
    extents = size or [int(extent * factor) for extent, factor in zip(x.shape[2:], factors or (), strict=True)]
    return _aten.upsample_trilinear3d.default(x, extents, align_corners, *(factors or ()))


def _trilinear_3d_to(x: Tensor, size: list[int], align_corners: bool, *factors: float | None) -> Tensor:
    from torch._decomp import decomposition_table

    definition: Any = decomposition_table[_aten.upsample_trilinear3d.vec]
    if factors and None not in factors:
        return definition(x, None, align_corners, list(factors))
    return definition(x, size, align_corners, None)


def _low_bits(x: Tensor, bits: int) -> Tensor:
    """Of a power of two less one: the remainder."""
    return torch.remainder(x, bits + 1) if bits > 0 and bits & (bits + 1) == 0 else NotImplemented


def _shifted_left(x: Tensor, bits: int) -> Tensor:
    return x * 2**bits if 0 <= bits < _SHIFTS else NotImplemented


def _shifted_right(x: Tensor, bits: int) -> Tensor:
    return torch.div(x, 2**bits, rounding_mode="floor") if 0 <= bits < _SHIFTS else NotImplemented


_OURS: dict[Any, Definition] = {
    _aten._cdist_forward.default: _distances,
    _aten._embedding_bag.default: _bags,
    _aten._embedding_bag_forward_only.default: _bags,
    _aten._trilinear.default: _trilinear,
    _aten.one_hot.default: _one_hot,
    _aten.scatter_reduce.two: _scatter_reduce,
    _aten.median.dim: _median,
    _aten.median.default: _median_of_all,
    _aten.cumprod.default: _running_product,
    _aten.floor_divide.default: _floor_divided,
    _aten.upsample_trilinear3d.vec: _trilinear_3d,
    _aten.upsample_trilinear3d.default: _trilinear_3d_to,
    _aten.bitwise_and.Scalar: _low_bits,
    _aten.__lshift__.Scalar: _shifted_left,
    _aten.__rshift__.Scalar: _shifted_right,
    _aten.bitwise_left_shift.Tensor_Scalar: _shifted_left,
    _aten.bitwise_right_shift.Tensor_Scalar: _shifted_right,
    _aten.fmod.Scalar: _modulus,
    _aten.fmod.Tensor: _modulus,
}
# Not in the table that `torch.export` takes by itself.
_PYTORCHS = frozenset({_aten.grid_sampler_2d.default})
