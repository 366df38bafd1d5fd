"""The exported file in MLX, where it is installed (`pip install 'splitter[mlx]'`)."""

import json

import numpy as np
import pytest

from splitter.plan.schema import WeightsForm

from ..conftest import snr_db
from ..lowering.test_kernels_checks import reformed

mx = pytest.importorskip("mlx.core", reason="MLX is not installed")


def in_mlx(bundle, directory, **form):
    """SNR of both outputs against the golden run of the untouched model."""
    from .mlx_transformer import Transformer

    other = reformed(bundle, directory, WeightsForm(layout="mlx", **form))
    record = json.loads(json.dumps(other.segment("transformer").artifact.details))
    golden = bundle.goldens()
    results = Transformer(other.path / "transformer.safetensors", record)(*(golden[name] for name in record["inputs"]))
    return [snr_db(golden[name], np.array(one)) for name, one in zip(record["outputs"], results, strict=True)]


def test_mlx_rebuilds_the_transformer_from_manifest_and_file_alone(demo_bundle, tmp_path):
    assert min(in_mlx(demo_bundle, tmp_path)) >= 110


def test_norm_over_everything_is_what_the_file_needs(demo_bundle, tmp_path, monkeypatch):
    """Near miss: with each token's own statistics at the end of a layer it is another transformer."""
    from .mlx_transformer import Transformer

    whole = Transformer.norm
    monkeypatch.setattr(Transformer, "norm", lambda self, name, x, axes=(-1,): whole(self, name, x))
    assert max(in_mlx(demo_bundle, tmp_path)) < 40
