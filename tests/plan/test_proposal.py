"""Plans from the modules of a model: one rule for all, targets that lower the stages, never a cycle."""

import pytest
import torch
from torch import nn

import splitter
from splitter.graph.capture import capture
from splitter.partition import partition, run
from splitter.plan import proposal
from splitter.plan import schema as plans

from .. import strangers
from ..toys import Hybrid


def proposed(model, inputs, **limits):
    program = capture(model.eval(), inputs)
    start = proposal.blank(type(model).__name__, "tests.Model")
    return program, proposal.propose(program, start, inputs).plan


def stages(plan):
    return {stage.name: (stage.target, stage.modules) for stage in plan.stages}


class Attend(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(width), nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x):
        y = self.norm(x)
        return x + self.attention(y, y, y, need_weights=False)[0]


class Spectral(nn.Module):
    """Fourier transforms in the model's own forward, a convolution between them."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, sound):
        window = torch.hann_window(64)
        z = torch.stft(sound, 64, 16, window=window, return_complex=True)
        y = self.conv(torch.view_as_real(z).permute(0, 3, 1, 2)).permute(0, 2, 3, 1).contiguous()
        return torch.istft(torch.view_as_complex(y), 64, 16, window=window, length=sound.shape[-1])


class Masking(nn.Module):
    """Linear maps between Fourier transforms, and one before them."""

    def __init__(self):
        super().__init__()
        self.before, self.embed, self.mask = nn.Linear(256, 256), nn.Linear(66, 16), nn.Linear(16, 66)
        self.spectrum = Spectrum()

    def forward(self, sound):
        parts = self.spectrum(self.before(sound))
        mask = self.mask(self.embed(parts.permute(0, 2, 1, 3).flatten(2))).unflatten(-1, (33, 2)).permute(0, 2, 1, 3)
        z = torch.view_as_complex(parts) * torch.view_as_complex(mask.contiguous())
        return torch.istft(z, 64, 16, window=torch.hann_window(64), length=sound.shape[-1])


class Spectrum(nn.Module):
    def forward(self, sound):
        return torch.view_as_real(torch.stft(sound, 64, 16, window=torch.hann_window(64), return_complex=True))


class Branches(nn.Module):
    """A convolution and an attention that read the same, and a head that reads both."""

    def __init__(self):
        super().__init__()
        self.conv, self.attend, self.head = nn.Conv1d(8, 8, 3, padding=1), Attend(), nn.Linear(16, 2)
        self.act = nn.ReLU()  # one for all

    def forward(self, x):
        left = self.act(self.conv(x).transpose(1, 2))
        right = self.act(self.attend(x.transpose(1, 2)))
        return self.act(self.head(torch.cat([left, right], -1)))


class Conformer(nn.Module):
    """Convolution and attention in every one of so many layers."""

    def __init__(self, layers):
        super().__init__()
        self.layers = nn.ModuleList(
            nn.ModuleDict({"attend": Attend(), "conv": nn.Conv1d(8, 8, 3, padding=1)}) for _ in range(layers)
        )

    def forward(self, x):
        for layer in self.layers:
            x = layer["conv"](layer["attend"](x).transpose(1, 2)).transpose(1, 2)
        return x


class Again(nn.Module):
    """A convolution that is called before and after the attention."""

    def __init__(self):
        super().__init__()
        self.conv, self.attend, self.last = nn.Conv1d(8, 8, 1), Attend(), nn.Conv1d(8, 2, 1)

    def forward(self, x):
        x = self.attend(self.conv(x).transpose(1, 2)).transpose(1, 2)
        return self.last(self.conv(x))


X = torch.randn(1, 8, 6, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("model", "inputs", "wanted"),
    [
        (strangers.Whisper(), {"mel": strangers.mel()}, ["cnn_1", "transformer_1"]),
        (Spectral(), {"sound": torch.randn(1, 256)}, ["host_1", "cnn_1", "host_2"]),
        (Masking(), {"sound": torch.randn(1, 256)}, ["layers_1", "host_1", "layers_2", "host_2"]),
        (Branches(), {"x": X}, ["cnn_1", "transformer_1"]),
        (Conformer(2), {"x": X.transpose(1, 2)}, ["transformer_1", "cnn_1", "transformer_2", "cnn_2"]),
        (Again(), {"x": X}, ["cnn_1"]),
        (nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 2)), {"input": X}, ["layers_1"]),
        (nn.Conv1d(8, 4, 3), {"input": X}, ["cnn_1"]),
        (Hybrid(), {"mix": torch.randn(1, 2, 64)}, ["cnn_1", "transformer_1", "cnn_2"]),
        (nn.LSTM(6, 3, batch_first=True), {"input": X}, ["recurrent_1"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_one_rule_for_all(model, inputs, wanted):
    program, plan = proposed(model, inputs)
    assert [stage.name for stage in plan.stages] == wanted
    assert all(stage.target == "coreml" for stage in plan.stages if not stage.name.startswith("host"))
    if isinstance(model, Spectral):
        assert {stage.target for stage in plan.stages} == {"coreml", "host"}
    parts = partition(program, plan)
    values = run(parts, inputs)
    assert all(torch.equal(values[name], whole) for name, whole in program.run(inputs).items())


def test_what_reads_both_branches_follows_the_later():
    _, plan = proposed(Branches(), {"x": X})
    assert stages(plan)["transformer_1"] == ("coreml", ("attend", "head"))


def test_too_many_stages_leave_mixed_modules_whole():
    _, plan = proposed(Conformer(proposal.MOST_STAGES), {"x": X.transpose(1, 2)})
    assert stages(plan) == {"transformer_1": ("coreml", tuple(f"layers.{n}" for n in range(proposal.MOST_STAGES)))}


def test_what_no_package_takes_stays_a_graph():
    class Sorting(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = nn.Conv1d(8, 4, 3)

        def forward(self, x):
            return torch.fft.rfft(self.conv(x)).abs()

    model = Sorting()
    program = capture(model.eval(), {"x": X})
    new = proposal.propose(program, proposal.blank("Sorting", "tests.Sorting"), {"x": X})
    assert [(trial.stage, trial.target, bool(trial.refusal)) for trial in new.trials] == [
        ("cnn_1", "coreml", False), ("host_1", "host", True), ("host_1", "graph", False),
    ]  # fmt: skip


def test_settings_stay_as_they_were_asked():
    start = plans.changed(proposal.blank("A.b-3", "x.Y"), precision="fp16")
    assert start.family == "a_b_3"
    assert proposal.blank("3d", "x.Y").family == "model_3d"
    model = nn.Conv1d(8, 4, 3).eval()
    new = proposal.propose(capture(model, {"input": X}), start, {"input": X})
    assert (new.plan.precision, new.plan.models, new.plan.outputs) == ("fp16", ("x.Y",), ("output",))


def test_the_new_plan_is_written_with_its_modules(tmp_path):
    new = splitter.new_plan(strangers.whisper(), inputs={"mel": strangers.mel()}, out=tmp_path / "plan.toml")
    assert plans.load(tmp_path / "plan.toml") == new.plan
    rows = {module.path: module for module in new.modules}
    assert list(rows) == ["", "conv1", "conv2", "blocks", "ln_post"]
    model = strangers.whisper()
    assert rows["conv1"].flops == 2 * 16 * 24 * 3 * 40
    assert rows["blocks"].parameters == sum(one.numel() for one in model.blocks.parameters())
    assert rows["blocks"].operators["scaled_dot_product_attention"] == 2
    assert (rows["blocks"].stage, rows[""].stage) == ("transformer_1", "")
    assert new.to_dict()["trials"][0] == {"stage": "cnn_1", "target": "coreml", "refusal": ""}
