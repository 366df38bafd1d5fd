"""demucs's command line on a local checkpoint, which its ``-n`` cannot name.

Everything but the lookup of the model is demucs's own: `demucs.separate.main`.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest import mock

import demucs.api
import demucs.separate
from demucs.hf import load_safetensors_model


def main() -> None:
    checkpoint, track, out = sys.argv[1:]
    if checkpoint == "demo":
        from importlib import resources

        checkpoint = str(resources.files("splitter.weights.demo") / "demo.safetensors")
    model = load_safetensors_model(Path(checkpoint)).eval()
    with mock.patch.object(demucs.api, "get_model", return_value=model):
        demucs.separate.main(["-n", "local", "-o", out, "-d", "cpu", "--shifts", "0", track])


if __name__ == "__main__":
    main()
