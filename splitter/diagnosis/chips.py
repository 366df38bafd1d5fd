"""What the Neural Engine of each family takes, as published.

Every number is from S. Bryngelson's ane-guide, Appendix A (numeric limits; M1, M2 and M5 measured, the others
predicted by its author from the compiler's tables). Apple publishes none of them.
"""

from __future__ import annotations

from dataclasses import dataclass

GUIDE = "https://ane-guide.readthedocs.io/en/latest"
DESIGN_RULES = f"{GUIDE}/part-5-practice/17-model-design-rules.html"
CAPABILITIES = f"{GUIDE}/part-1-machine/04-capability-surface.html"
PITFALLS = f"{GUIDE}/part-5-practice/19-pitfalls-and-limits.html"
OPERATIONS = "https://github.com/sbryngelson/ane-guide/blob/master/appendices/a-op-device-matrix.md"

MAX_RANK = 5
MAX_CHANNELS = 65536
MAX_ARGUMENT_AXIS = 2048
WORKING_SET = 2 * 2**20
# Of {1, 2, 3, 4, 8}, which the compiler chooses from by a table that is not published.
CHANNEL_INTERLEAVE = 8
# Offset slices of some families pass through fixed point with four fractional bits.
SLICE_LIMIT = 65504 / 16


@dataclass(frozen=True)
class Chip:
    """One family.

    Attributes:
        name: As ``--chip`` takes it.
        generation: Counted from the M1; the M4 and M5 share their limits.
        extent: Longest axis of a tensor; the channels of a convolution reach `MAX_CHANNELS` on all of them.
        kernel: Largest height and width of a half-precision convolution kernel.
        strided_kernel: The same along strided axes of transposed convolutions.
        texture_engine: Whether it has the unit that reflect padding and resampling need.
        saturating_slices: Whether slices at an offset of the last axis end at `SLICE_LIMIT`.
    """

    name: str
    generation: int
    extent: int
    kernel: tuple[int, int]
    strided_kernel: tuple[int, int]
    texture_engine: bool
    saturating_slices: bool


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("m1", 1, 16384, (29, 13), (15, 7), texture_engine=False, saturating_slices=True),
        Chip("m2", 2, 16384, (32, 16), (16, 8), texture_engine=True, saturating_slices=True),
        Chip("m3", 3, 16384, (32, 16), (16, 8), texture_engine=True, saturating_slices=False),
        Chip("m4", 4, 65536, (32, 16), (16, 8), texture_engine=True, saturating_slices=False),
        Chip("m5", 4, 65536, (32, 16), (16, 8), texture_engine=True, saturating_slices=False),
    )
}

# Operations by the first generation that runs them; what is in none of these sets has no path on any.
_FIRST = frozenset(
    """
    abs add atan avg_pool batch_norm batch_to_space cast ceil clamped_relu clip concat conv conv_quantized
    conv_transpose crop cumsum depth_to_space dequantize einsum elu equal erf exp exp2 expand_dims fill fill_like
    flatten2d floor floor_div gather gather_along_axis gather_nd gelu greater greater_equal identity instance_norm
    inverse l2_norm l2_pool layer_norm leaky_relu less less_equal linear linear_activation local_response_norm log
    logical_not matmul max_pool maximum minimum mul not_equal pad pixel_shuffle pixel_unshuffle pow prelu quantize
    read_state real_div reduce_argmax reduce_argmin reduce_l1_norm reduce_l2_norm reduce_log_sum reduce_log_sum_exp
    reduce_max reduce_mean reduce_min reduce_sum reduce_sum_square relu relu6 reshape reshape_like resize
    resize_bilinear resize_nearest_neighbor reverse round rsqrt scaled_dot_product_attention scaled_tanh select
    sigmoid sigmoid_hard sign silu slice_by_index slice_by_size slice_update softmax softplus softplus_parametric
    softsign space_to_batch space_to_depth split sqrt square squeeze stack sub tanh threshold thresholded_relu tile
    transpose upsample_bilinear upsample_nearest_neighbor write_state
    """.split()  # noqa: SIM905 (a table in words)
)
_SECOND = frozenset(("affine", "argsort", "crop_resize", "resample", "topk"))
_THIRD = frozenset(("cos", "random_uniform", "sin"))


def first_generation(operation: str) -> int | None:
    """The first generation that runs an operation type; None if none does."""
    for generation, known in enumerate((_FIRST, _SECOND, _THIRD), start=1):
        if operation in known:
            return generation
    return None
