import demucs.hdemucs
import demucs.htdemucs
import pytest
import torch
from torch import nn
from torch._decomp import decomposition_table

from splitter.errors import CaptureError
from splitter.graph.capture import capture
from splitter.graph.patches import without_fused_attention
from splitter.models.demucs import DemucsFamily

from ..toys import Hybrid


def test_capture_equals_the_model_bit_for_bit():
    model, mix = Hybrid().eval(), torch.randn(1, 2, 64)
    program = capture(model, {"mix": mix}, ("restored",))
    other = torch.randn(1, 2, 64)  # not the example: nothing of it may be baked in
    assert torch.equal(program.run({"mix": other})["restored"], model(other))
    with torch.no_grad(), without_fused_attention():
        assert torch.equal(program.run({"mix": other})["restored"], model(other))
    assert torch.backends.mha.get_fastpath_enabled()


def test_demo_capture_equals_the_model_bit_for_bit(demo_bundle, demo_model):
    mix = torch.randn(1, 2, demo_bundle.audio.samples)
    whole = demo_bundle.program(demo_bundle.manifest.whole)
    assert torch.equal(whole.run({"mix": mix})["stems"], demo_model(mix))


def test_capture_is_functional_and_complete(demo_bundle):
    whole = demo_bundle.program(demo_bundle.manifest.whole)
    operators = {str(node.target) for node in whole.operators}
    assert {"aten.stft.default", "aten.istft.default", "aten.scaled_dot_product_attention.default"} <= operators
    assert not any(getattr(node.target, "_schema", None) and node.target._schema.is_mutable for node in whole.operators)
    assert not any("assert" in name for name in operators)
    assert any(node.meta["module"] == "crosstransformer.layers.4.linear2" for node in whole.operators)


def test_patches_are_gone_afterwards(demo_model):
    before = demucs.hdemucs.pad1d, demucs.htdemucs.pad1d
    assert before[0] is before[1]
    capture(Hybrid().eval(), {"mix": torch.randn(1, 2, 64)}, ("restored",), DemucsFamily().patches())
    assert (demucs.hdemucs.pad1d, demucs.htdemucs.pad1d) == before
    assert torch.ops.aten.unfold_backward.default in decomposition_table
    with pytest.raises(AssertionError):  # the assertions that capture has to drop still hold for everybody else
        demucs.hdemucs.pad1d(torch.full((1, 8), torch.nan), (1, 1))


def test_training_mode_is_refused():
    with pytest.raises(CaptureError, match="eval mode"):
        capture(Hybrid().train(), {"mix": torch.randn(1, 2, 64)}, ("restored",))


def test_data_dependent_branch_is_named():
    class Branching(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(CaptureError, match=r"torch\.export cannot capture"):
        capture(Branching().eval(), {"x": torch.ones(3)}, ("y",))


def test_wrong_number_of_output_names_is_refused():
    with pytest.raises(CaptureError, match="expected 1 names, found 2"):
        capture(Hybrid().eval(), {"mix": torch.randn(1, 2, 64)}, ("a", "b"))
