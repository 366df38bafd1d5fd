"""No false alarm: packages of published image models, converted as their users do, by Core ML Tools alone."""

from importlib.util import find_spec

import numpy as np
import pytest
import torch

from splitter.diagnosis.examination import examine
from splitter.diagnosis.rules import Severity
from splitter.mil.coreml_tools import ct, quiet_and_quick
from splitter.models.timm import _timm

from ..mil.small_models import randomized

# Small members of families that Core ML's own gallery and Apple's phones run: ResNet, EfficientNet, ConvNeXt, RepVGG.
NAMES = ("test_resnet", "test_efficientnet", "test_convnext", "test_byobnet")


@pytest.mark.parametrize("name", NAMES)
def test_packages_made_by_others_are_sound(name, tmp_path):
    if find_spec("timm") is None:
        pytest.skip("timm is not installed")
    model = randomized(_timm().create_model(name, pretrained=False)).eval()
    image = torch.rand(1, 3, 96, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), quiet_and_quick():
        package = ct.convert(
            torch.jit.trace(model, image, check_trace=False),
            inputs=[ct.TensorType("image", tuple(image.shape))],
            outputs=[ct.TensorType("classes")],
            minimum_deployment_target=ct.target.iOS16,
            skip_model_load=True,
        )
    path = tmp_path / f"{name}.mlpackage"
    package.save(str(path))
    report = examine(path, inputs={"image": image.numpy()})
    found = [(cause.rule.id, cause.places) for cause in report.causes]
    assert report.counts[Severity.ERROR] == 0, found
    assert report.counts[Severity.WARNING] == 0, found
    assert report.flop_share(in_half=True) == 1
    loud = {"image": np.full((1, 3, 96, 96), 60_000, np.float32)}
    assert examine(path, inputs=loud).counts[Severity.ERROR], "else this shows nothing"
