"""Small modules of other shapes than HT Demucs, and plans for them."""

from __future__ import annotations

from fractions import Fraction

import torch
from torch import nn

from splitter.graph.capture import capture
from splitter.partition import partition
from splitter.plan.schema import Plan


class Hybrid(nn.Module):
    """Standardise, convolve down, attend, convolve up with a skip, undo the standardisation."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.down = nn.Conv1d(2, 8, 4, 4)
        self.mix = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.up = nn.ConvTranspose1d(8, 2, 4, 4)

    def forward(self, mix):
        mean, std = mix.mean((1, 2), keepdim=True), mix.std((1, 2), keepdim=True)
        y = self.down((mix - mean) / (std + 1e-5))
        ramp = torch.linspace(0, 1, y.shape[-1])
        z = self.mix((y + ramp).transpose(1, 2)).transpose(1, 2)
        return self.up(z + y) * std + mean


HYBRID_PLAN = Plan.model_validate(
    {
        "family": "toy",
        "outputs": ["restored"],
        "stages": [
            {"name": "analysis", "target": "host"},
            {"name": "encoder", "target": "coreml", "modules": ["down"]},
            {"name": "transformer", "target": "graph", "modules": ["mix"]},
            {"name": "decoder", "target": "coreml", "modules": ["up"]},
            {"name": "synthesis", "target": "host"},
        ],
        "tensors": [
            {"name": "waveform", "producer": "analysis", "into": "down", "layout": "b c t"},
            {"name": "{feeds}_mean", "producer": "analysis", "op": "aten.mean.dim", "feeds": ["waveform"]},
            {"name": "{feeds}_std", "producer": "analysis", "op": "aten.std.dim", "feeds": ["waveform"]},
        ],
    }
)

PACKAGES_PLAN = Plan.model_validate(  # the same with the attention in a package too
    HYBRID_PLAN.model_dump()
    | {"stages": [s.model_dump() | ({"target": "coreml"} if s.target == "graph" else {}) for s in HYBRID_PLAN.stages]}
)


def separating(model: nn.Module | None = None) -> nn.Module:
    """With what `splitter.build` asks of a module."""
    model = model or Hybrid()
    model.sources, model.samplerate, model.audio_channels, model.segment = ["restored"], 8000, 2, Fraction(64, 8000)
    return model


class Duo(Hybrid):
    """The same as one of two stems; the other is what is left of the mixture."""

    def forward(self, mix):
        restored = super().forward(mix)
        return torch.stack([restored, mix - restored], 1)


GRAPHS_PLAN = Plan.model_validate(  # nothing lowered: a bundle of it is built in no time
    HYBRID_PLAN.model_dump()
    | {"outputs": ["stems"], "stages": [stage.model_dump() | {"target": "graph"} for stage in HYBRID_PLAN.stages]}
)


def duo() -> Duo:
    """With what `splitter.build` asks of a module."""
    model = Duo()
    model.sources, model.samplerate, model.audio_channels, model.segment = ["kept", "rest"], 8000, 2, Fraction(64, 8000)
    return model


def cut(model, plan):
    """A captured toy's segments by name, and every tensor between them for one random input."""
    mix = torch.randn(1, 2, 64)
    whole = capture(model.eval(), {"mix": mix}, plan.outputs)
    parts = partition(whole, plan)
    values = {}
    names = {node: name for name, node in parts.nodes.items()}
    whole.run({"mix": mix}, lambda n, v: values.update({names[n.name]: v.numpy()}) if n.name in names else None)
    return {segment.name: segment for segment in parts.segments}, {"mix": mix.numpy(), **values}
