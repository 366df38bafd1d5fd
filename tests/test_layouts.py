"""One model in every layout and format: the package from waveform to waveform has no host stage beside it."""

import numpy as np
import pytest
import torch
from torch import nn

import splitter
from splitter.errors import PassError, PlanError
from splitter.plan import schema as plans
from splitter.plan.schema import Plan
from splitter.verification.checks import Status

PLAN = Plan.model_validate(
    {
        "family": "masked",
        "outputs": ["sound"],
        "stages": [
            {"name": "analysis", "target": "host"},
            {"name": "first", "target": "coreml", "modules": ["first"]},
            {"name": "second", "target": "coreml", "modules": ["second"]},
            {"name": "synthesis", "target": "host"},
        ],
    }
)
INPUTS = {"mix": np.random.default_rng(0).standard_normal((1, 2, 3000), np.float32)}


class Masked(nn.Module):
    """A separator's shape: a spectrogram as channels, normalised, two layers, and back."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, padding=1)

    def forward(self, mix):
        window = torch.hann_window(256)
        z = torch.stft(mix.flatten(0, 1), 256, 64, window=window, return_complex=True, normalized=True)
        x = torch.view_as_real(z).permute(0, 3, 1, 2).reshape(1, 4, *z.shape[-2:])
        mean, std = x.mean((1, 2, 3), keepdim=True), x.std((1, 2, 3), keepdim=True)
        y = self.second(torch.relu(self.first((x - mean) / (1e-5 + std)))) * std + mean
        y = y.view(1, 1, 2, 2, *z.shape[-2:]).permute(0, 1, 2, 4, 5, 3).contiguous()
        y = torch.view_as_complex(y).view(2, *z.shape[-2:])
        return torch.istft(y, 256, 64, window=window, normalized=True, length=mix.shape[-1]).view_as(mix)


@pytest.mark.parametrize("target", ["coreai", "coreml", "onnx"])
@pytest.mark.parametrize("layout", splitter.PACKAGINGS)
def test_every_layout_verifies_in_every_format(tmp_path, layout, target):
    bag = splitter.build(Masked().eval(), tmp_path / "b", inputs=INPUTS, plan=PLAN, layout=layout, format=target)
    (bundle,) = bag.members
    inner = {"split": ["first", "second"], "core": ["core"], "whole": ["whole"]}[layout]
    expected = inner if layout == "whole" else ["analysis", *inner, "synthesis"]
    assert [segment.name for segment in bundle.segments] == expected
    assert {bundle.segment(name).artifact.target for name in inner} == {target}
    (report,) = splitter.verify(bag)
    assert [check for check in report.checks if check.status is Status.FAIL] == []
    sound = [check.parity.snr_db for check in report.checks if (check.kind, check.subject) == ("package", "sound")]
    if layout == "whole":
        assert sound
        assert min(sound) >= 110
        assert set(bundle.segments[0].inputs) | set(bundle.segments[0].outputs) == {"mix", "sound"}


def test_half_precision_holds_from_waveform_to_waveform(tmp_path):
    bag = splitter.build(
        Masked().eval(), tmp_path / "b", inputs=INPUTS, plan=PLAN, layout="whole", precision="fp16", reference=False
    )
    (report,) = splitter.verify(bag)
    (sound,) = [check.parity.snr_db for check in report.checks if (check.kind, check.subject) == ("package", "sound")]
    assert sound >= 55


def test_whole_puts_its_passes_around_the_plans_own():
    plan = plans.laid_out(plans.changed(PLAN, passes=["keep-broadcasts-small", "conv1d-as-conv2d"]), "whole")
    assert plan.passes == (
        "fourier-as-products",
        "stds-as-means",
        "keep-broadcasts-small",
        "conv1d-as-conv2d",
        "means-in-stages",
    )
    assert [(stage.name, stage.target, stage.modules) for stage in plan.stages] == [("whole", "coreml", ())]
    assert plans.laid_out(plan, "whole") == plan
    for fold, extent in (("fold-long-axes", 16384), ("fold-long-axes(extent=65536)", 65536)):
        folded = plans.laid_out(plans.changed(PLAN, passes=["norms-safe-in-half", fold]), "whole")
        assert folded.graph_passes[0] == f"fourier-as-products(extent={extent})"
    assert plans.laid_out(PLAN, "split") == PLAN


def test_a_plan_without_packages_has_no_whole():
    stages = [stage.model_dump() | {"target": "graph"} for stage in PLAN.stages]
    with pytest.raises(PlanError, match="no stage of the plan makes a package"):
        plans.laid_out(plans.changed(PLAN, stages=stages), "whole")


def test_a_transform_that_no_package_can_compute_fails_the_build(tmp_path):
    class Odd(Masked):
        def forward(self, mix):
            return (
                super().forward(mix)
                + torch.stft(mix[0], 64, 60, window=torch.ones(64), return_complex=True).abs().mean()
            )

    with pytest.raises(
        PassError, match=r"leaves 'stft_?1?' of segment 'whole'.*its hop of 60 does not divide"
    ) as refused:
        splitter.build(Odd().eval(), tmp_path / "b", inputs=INPUTS, plan=PLAN, layout="whole")
    assert "stage whose target runs on the host" in refused.value.fix
    assert not list(tmp_path.iterdir())
