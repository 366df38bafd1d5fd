"""The operators that a saved program may use: exact ATen overloads, each looked at one by one.

A program may come from a stranger, and PyTorch has some 2,000 overloads that were never meant for arguments from
one. Listed is what compute-only models are made of and what is *functional* (no argument is written to, nothing is
printed, read or drawn at random), *initialised* (no ``empty``, whose values are whatever the heap held), *static*
(the result's shape follows from the arguments' types; so no ``nonzero``, no ``item``) and *checked* (the kernel
holds indices and extents against its tensors, or a rule in `splitter.graph.admission` does; so no sparse, quantised
or mkldnn layout, no ``as_strided``, no internal ``_native``/``_fft`` kernels, which trust their callers).

`tests/graph/test_operators.py` runs every one of them on hostile arguments.
"""

from __future__ import annotations

from functools import cache

import torch

_CATEGORIES: dict[str, str] = {
    # Pointwise; operands broadcast. Integers are divided by constants only (a rule): 0 and INT_MIN / -1 trap.
    "arithmetic": """
        add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Tensor rsub.Scalar mul.Tensor mul.Scalar
        div.Tensor div.Scalar div.Tensor_mode remainder.Scalar remainder.Tensor neg.default abs.default
        reciprocal.default square.default sqrt.default rsqrt.default
        pow.Tensor_Scalar pow.Tensor_Tensor pow.Scalar exp.default exp2.default expm1.default
        log.default log2.default log10.default log1p.default sin.default cos.default tan.default
        asin.default acos.default atan.default atan2.default sinh.default cosh.default tanh.default
        erf.default sign.default floor.default ceil.default round.default trunc.default frac.default
        clamp.default clamp.Tensor clamp_min.default clamp_max.default maximum.default minimum.default
        addcmul.default addcdiv.default lerp.Scalar lerp.Tensor hypot.default nan_to_num.default
    """,
    "comparison and selection": """
        eq.Tensor eq.Scalar ne.Tensor ne.Scalar lt.Tensor lt.Scalar le.Tensor le.Scalar
        gt.Tensor gt.Scalar ge.Tensor ge.Scalar logical_and.default logical_or.default logical_not.default
        logical_xor.default bitwise_and.Tensor bitwise_or.Tensor bitwise_xor.Tensor bitwise_not.default
        isnan.default isinf.default isfinite.default
        where.self where.ScalarSelf where.ScalarOther where.Scalar masked_fill.Scalar masked_fill.Tensor
    """,
    # `dropout` only as what evaluation leaves of it: the identity.
    "activation": """
        relu.default relu6.default gelu.default silu.default mish.default elu.default selu.default celu.default
        leaky_relu.default prelu.default hardtanh.default hardswish.default hardsigmoid.default sigmoid.default
        softplus.default log_sigmoid.default glu.default softmax.int _softmax.default log_softmax.int
        _log_softmax.default dropout.default
    """,
    "linear": """
        linear.default matmul.default mm.default bmm.default mv.default dot.default outer.default
        addmm.default baddbmm.default einsum.default
    """,
    "convolution": """
        conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default conv3d.padding
        conv_transpose1d.default conv_transpose2d.input conv_transpose3d.input convolution.default
    """,
    # The public entry points, which check their parameters; the `native_` kernels beneath do not.
    "normalization": """
        batch_norm.default group_norm.default instance_norm.default layer_norm.default rms_norm.default
        linalg_vector_norm.default
    """,
    "attention": "scaled_dot_product_attention.default",
    # A rule checks every weight's shape: PyTorch's own kernels for processors do not.
    "recurrent": "lstm.input gru.input rnn_tanh.input rnn_relu.input",
    "reduction": """
        sum.default sum.dim_IntList mean.default mean.dim std.default std.dim std.correction
        var.default var.dim var.correction var_mean.correction std_mean.correction
        amax.default amin.default max.default max.dim min.default min.dim argmax.default argmin.default
        prod.default prod.dim_int any.default any.dim all.default all.dim logsumexp.default cumsum.default
        topk.default sort.default argsort.default
    """,
    # Views and copies. `as_strided` and the views of bytes as another dtype are left out.
    "shape": """
        view.default reshape.default flatten.using_ints unflatten.int squeeze.default squeeze.dim squeeze.dims
        unsqueeze.default permute.default transpose.int t.default movedim.int movedim.intlist
        expand.default expand_as.default broadcast_to.default repeat.default repeat_interleave.self_int tile.default
        select.int slice.Tensor narrow.default split.Tensor split_with_sizes.default chunk.default
        unbind.int unfold.default diagonal.default flip.default roll.default cat.default stack.default
        clone.default contiguous.default detach.default alias.default lift_fresh_copy.default copy.default
        slice_scatter.default select_scatter.default tril.default triu.default
        pad.default constant_pad_nd.default pixel_shuffle.default pixel_unshuffle.default im2col.default col2im.default
        to.dtype to.dtype_layout _to_copy.default type_as.default meshgrid.indexing
    """,
    "constants": """
        arange.default arange.start arange.start_step linspace.default zeros.default ones.default full.default
        zeros_like.default ones_like.default full_like.default new_zeros.default new_ones.default new_full.default
        scalar_tensor.default eye.default eye.m hann_window.default hann_window.periodic
        hamming_window.default hamming_window.periodic
    """,
    # Their kernels hold every index against the extent before they follow it.
    "indexing": """
        embedding.default gather.default index.Tensor index_select.default index_put.default index_add.default
        index_copy.default scatter.src scatter.value scatter_add.default
    """,
    "fourier and complex": """
        stft.default stft.center istft.default fft_fft.default fft_ifft.default fft_rfft.default fft_irfft.default
        fft_fft2.default fft_ifft2.default fft_rfft2.default fft_irfft2.default fft_fftshift.default
        fft_ifftshift.default view_as_complex.default view_as_real.default complex.default polar.default
        real.default imag.default angle.default conj.default _conj.default conj_physical.default
        _conj_physical.default resolve_conj.default
    """,
    # Of resampling the overloads that compute the extents from the factors, or have no factors.
    "pooling and resampling": """
        avg_pool1d.default avg_pool2d.default avg_pool3d.default max_pool1d.default max_pool2d.default
        max_pool3d.default max_pool2d_with_indices.default adaptive_avg_pool1d.default adaptive_avg_pool2d.default
        adaptive_avg_pool3d.default
        upsample_nearest1d.vec upsample_nearest2d.vec upsample_linear1d.vec upsample_bilinear2d.vec
        upsample_bicubic2d.vec
    """,
}

ALLOWED = frozenset(f"aten.{overload}" for names in _CATEGORIES.values() for overload in names.split())


@cache
def resolve(name: str) -> torch._ops.OpOverload:
    """The operator of this name, e.g. ``"aten.conv1d.default"``.

    Raises:
        KeyError: It is not on the list.
    """
    if name not in ALLOWED:
        raise KeyError(name)
    _, packet, overload = name.split(".")
    resolved: torch._ops.OpOverload = getattr(getattr(torch.ops.aten, packet), overload)
    return resolved
