"""What the Neural Engine of each family takes, as published; what it takes of an operation is among its traits.

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

MAX_CHANNELS = 65536
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
