"""Taps of the captured transformer, and the files of them."""

import numpy as np
import pytest
import torch
from splitter_kernels import taps as names
from splitter_kernels.spec import Config, parameters
from splitter_weights import checkpoints

from splitter.bundle.directory import Bundle
from splitter.errors import BundleError, UsageError
from splitter.graph.patches import without_fused_attention
from splitter.verification import taps
from splitter.verification.transformer import TappedTransformer

from ..conftest import snr_db


@pytest.fixture(scope="module")
def model(demo_path):
    return TappedTransformer(Bundle.load(demo_path))


@pytest.fixture(scope="module")
def values(model):
    found = {}
    model.run(lambda name, value: found.update({name: value.copy()}))
    return found


def test_the_list_is_stable():
    found = list(names.taps(Config(8, 2, 2, 16, 6, 4)))
    assert found[:8] == [
        "input",
        "norm_in",
        "embedded",
        "input_t",
        "norm_in_t",
        "embedded_t",
        "layers.0.norm1",
        "layers.0.q",
    ]
    assert found[-4:] == ["norm_out", "output", "norm_out_t", "output_t"]
    assert len(found) == 6 + 2 * 16 + 2 * 17 + 4
    assert "layers_t.1.cross_attn" in found
    assert "layers_t.0.norm3" not in found


@pytest.mark.parametrize("cross_first", [False, True])
def test_every_parameter_is_read_by_some_tap_and_no_other(cross_first):
    config = Config(8, 2, 3, 16, 6, 4, cross_first=cross_first)
    found = names.taps(config)
    assert {weight for tap in found.values() for weight in tap.weights} == set(parameters(config))
    for index, tap in enumerate(found.values()):
        assert all(list(found).index(read) < index for read in tap.reads if not read.startswith("layers."))
        assert set(tap.reads) <= found.keys()


def test_taps_are_what_the_untouched_modules_return(model, values):
    """Forward hooks on the module itself see the same tensors."""
    seen = {}
    module = checkpoints.load("demo").members[0].model.crosstransformer
    for path, child in module.named_modules():
        child.register_forward_hook(lambda m, args, out, path=path: seen.update({path: out}))
    with torch.no_grad(), without_fused_attention():
        module(*(torch.from_numpy(one) for one in model.inputs.values()))
    compared = 0
    for name, value in values.items():
        result = seen.get(name)
        result = result[0] if isinstance(result, tuple) else result
        if result is not None:
            assert np.array_equal(result.numpy(), value), name
            compared += 1
    assert compared >= 86


def test_a_step_is_computed_from_what_it_reads(model, values):
    for name in (
        "norm_in",
        "embedded_t",
        "layers.1.norm2",
        "layers_t.2.q",
        "layers.3.logits",
        "layers.1.heads",
        "layers.4.norm_out",
        "output",
    ):
        again = model.step(name, values)
        assert snr_db(values[name], again) >= 140
        moved = dict(values)
        first = model.taps[name].reads[0]
        moved[first] = values[first] + np.linspace(0, 1, values[first].size, dtype=np.float32).reshape(
            values[first].shape
        )
        assert snr_db(values[name], model.step(name, moved)) < 60


def test_logits_are_before_the_softmax(values):
    q, k = values["layers.0.q"].astype(np.float64), values["layers.0.k"].astype(np.float64)
    expected = np.einsum("bhrd,bhmd->bhrm", q[:, :, :16], k) / np.sqrt(q.shape[-1])
    assert snr_db(expected, values["layers.0.logits"]) >= 120


def test_goldens_by_pattern(demo_bundle):
    recorded = taps.record(demo_bundle, ["layers_t.2.*", "input"])
    found, about = recorded.values, recorded.about
    assert list(found)[:2] == ["input", "layers_t.2.norm1"]
    assert len(found) == 1 + 16
    assert about["format"] == taps.FORMAT
    skeleton = taps.record(demo_bundle, tiny=True).values
    assert len(skeleton.keys() - demo_bundle.tensors.keys()) == 2 * (1 + 1 + 5 + 1)
    assert skeleton.keys() >= demo_bundle.tensors.keys()
    with pytest.raises(UsageError, match=r"no tap fits the name or pattern 'layers\.9\.q'"):
        taps.record(demo_bundle, ["layers.9.q"])


def test_a_bundle_without_kernels_has_no_taps(demo_bundle, monkeypatch):
    segments = [one for one in demo_bundle.segments if one.artifact.target != "kernels"]
    monkeypatch.setattr(type(demo_bundle), "segments", segments)
    with pytest.raises(BundleError, match="the target 'kernels'"):
        TappedTransformer(demo_bundle)
