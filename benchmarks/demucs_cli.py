"""demucs's command line on a local checkpoint, which its ``-n`` cannot name.

Everything but the lookup of the model is demucs's own: `demucs.separate.main`. With ``--core RUNTIME BUNDLE FILE``
another runtime computes what lies between the Fourier transforms.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from unittest import mock

import demucs.api
import demucs.separate
import torch
from demucs.hf import load_safetensors_model

from splitter.bundle.directory import Bundle

from . import runtimes


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("checkpoint")
    parser.add_argument("track")
    parser.add_argument("out")
    parser.add_argument("--core", nargs=3, metavar=("RUNTIME", "BUNDLE", "FILE"))
    given, options = parser.parse_known_args()
    checkpoint = given.checkpoint
    if checkpoint == "demo":
        from importlib import resources

        checkpoint = str(resources.files("splitter_weights.demo") / "demo.safetensors")
    model = load_safetensors_model(Path(checkpoint)).eval()
    if given.core:
        runtime, bundle, file = given.core
        model.forward = _forward(Bundle.load(bundle), runtimes.RUNTIMES[runtime].load(Path(file)))
    with mock.patch.object(demucs.api, "get_model", return_value=model):
        demucs.separate.main(["-n", "local", "-o", given.out, "-d", "cpu", "--shifts", "0", *options, given.track])


def _forward(bundle: Bundle, core: runtimes.Core):  # noqa: ANN202 - a method of demucs's class
    """The model's forward: the captured Fourier transforms, and the runtime between them."""
    first, last = (bundle.program(one.program) for one in (bundle.segments[0], bundle.segments[-1]))
    entering, leaving = runtimes.interface(bundle)

    def forward(mix: torch.Tensor) -> torch.Tensor:
        values = first.run({first.inputs[0]: mix})
        results = core([values[name].numpy() for name in entering])
        values |= {name: torch.from_numpy(result) for name, result in zip(leaving, results, strict=True)}
        return last.run({name: values[name] for name in last.inputs})[last.outputs[0]]

    return forward


if __name__ == "__main__":
    main()
