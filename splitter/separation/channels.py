"""Where the channels of a sound file stand, and how more than two become two, by ITU-R BS.775.

Positions are named as the bits of WAVE_FORMAT_EXTENSIBLE are, in FFmpeg's short form: FL is front left, BC back centre.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np
from numpy.typing import NDArray

Channels: TypeAlias = Literal["downmix", "first2"]
Positions: TypeAlias = tuple[str, ...]

LFE = "LFE"
_MASK = (  # from the lowest bit
    *("FL", "FR", "FC", LFE, "BL", "BR", "FLC", "FRC", "BC", "SL", "SR"),
    *("TC", "TFL", "TFC", "TFR", "TBL", "TBC", "TBR"),
)
_STANDARD: dict[int, Positions] = {  # of WAV, FLAC and most others
    3: ("FL", "FR", "FC"),
    4: ("FL", "FR", "BL", "BR"),
    5: ("FL", "FR", "FC", "BL", "BR"),
    6: ("FL", "FR", "FC", LFE, "BL", "BR"),
    7: ("FL", "FR", "FC", LFE, "BC", "SL", "SR"),
    8: ("FL", "FR", "FC", LFE, "BL", "BR", "SL", "SR"),
}
_XIPH: dict[int, Positions] = {  # of Vorbis and Opus: Vorbis I specification, 4.3.9
    3: ("FL", "FC", "FR"),
    4: ("FL", "FR", "BL", "BR"),
    5: ("FL", "FC", "FR", "BL", "BR"),
    6: ("FL", "FC", "FR", "BL", "BR", LFE),
    7: ("FL", "FC", "FR", "SL", "SR", "BC", LFE),
    8: ("FL", "FC", "FR", "SL", "SR", "BL", "BR", LFE),
}
_HALF_POWER = math.sqrt(0.5)  # −3 dB
_GAINS = {  # into the left and the right; of BS.775 but for the positions above the listener, which go as those below
    **dict.fromkeys(("FL", "FLC"), (1.0, 0.0)),
    **dict.fromkeys(("FR", "FRC"), (0.0, 1.0)),
    "FC": (_HALF_POWER, _HALF_POWER),
    LFE: (0.0, 0.0),
    **dict.fromkeys(("BL", "SL", "TFL", "TBL"), (_HALF_POWER, 0.0)),
    **dict.fromkeys(("BR", "SR", "TFR", "TBR"), (0.0, _HALF_POWER)),
    **dict.fromkeys(("BC", "TC", "TFC", "TBC"), (0.5, 0.5)),  # −6 dB
}


def positions(channels: int, *, mask: int | None = None, xiph: bool = False) -> Positions | None:
    """Where the channels of a file stand; None where it does not say, and there is no usual order of so many.

    Args:
        channels: How many there are, three or more.
        mask: Bits of WAVE_FORMAT_EXTENSIBLE, from the lowest.
        xiph: The file is Vorbis or Opus, which have an order of their own.
    """
    if mask is not None:
        named = tuple(name for bit, name in enumerate(_MASK) if mask >> bit & 1)
        if len(named) == channels == mask.bit_count():
            return named
    return (_XIPH if xiph else _STANDARD).get(channels)


def are_known(places: Sequence[str]) -> bool:
    """Whether each is a place that a downmix has a gain for."""
    return all(place in _GAINS for place in places)


def stereo_gains(places: Sequence[str]) -> NDArray[np.float32]:
    """``(channels, 2)``: what each channel gives to the left and the right."""
    return np.array([_GAINS[place] for place in places], np.float32)


def description(places: Sequence[str]) -> str:
    """What a downmix was, as a phrase."""
    left_out = f", without {LFE}" if LFE in places else ""
    return f"{len(places)} channels ({' '.join(places)}) mixed down to 2 by ITU-R BS.775{left_out}"
