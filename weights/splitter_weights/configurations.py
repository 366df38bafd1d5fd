"""What is known of the released models: constructor arguments, for building one without its weights, and files."""

from __future__ import annotations

from collections.abc import Mapping
from fractions import Fraction
from typing import Any

# As stored in the released checkpoint 955717e8; a bag's members share it.
_FOUR_STEMS: dict[str, Any] = {
    "sources": ["drums", "bass", "other", "vocals"],
    "audio_channels": 2,
    "samplerate": 44_100,
    "segment": Fraction(39, 5),
    "channels": 48,
    "growth": 2,
    "nfft": 4096,
    "cac": True,
    "depth": 4,
    "rewrite": True,
    "freq_emb": 0.2,
    "emb_scale": 10,
    "emb_smooth": True,
    "kernel_size": 8,
    "time_stride": 2,
    "stride": 4,
    "context": 1,
    "context_enc": 0,
    "norm_starts": 4,
    "norm_groups": 4,
    "dconv_mode": 3,
    "dconv_depth": 2,
    "dconv_comp": 8,
    "dconv_init": 1e-3,
    "bottom_channels": 512,
    "t_layers": 5,
    "t_heads": 8,
    "t_hidden_scale": 4.0,
    "t_dropout": 0.02,
    "t_emb": "sin",
}

CONFIGURATIONS: Mapping[str, Mapping[str, Any]] = {
    "htdemucs": _FOUR_STEMS,
    "htdemucs_ft": _FOUR_STEMS,
    "htdemucs_6s": {
        **_FOUR_STEMS,
        "sources": ["drums", "bass", "other", "vocals", "guitar", "piano"],
        "bottom_channels": 0,
    },
}

# Members by signature, as in demucs 4.1's own lists, and the SHA-256 of their ``.safetensors`` on the hub. None: no
# copy was at hand to hash, and a made-up digest would be worse; the file is inspected like any stranger's.
RELEASED: Mapping[str, Mapping[str, str | None]] = {
    "htdemucs": {"955717e8": "b9678d62ddce18f5fcdd0ea055ec1a09ed9fa84352c8acb5fd09bbb082df79af"},
    "htdemucs_ft": dict.fromkeys(("f7e0c4bc", "d12395a8", "92cfc3b6", "04573f0d")),
    "htdemucs_6s": {"5c90dfd2": None},
}
