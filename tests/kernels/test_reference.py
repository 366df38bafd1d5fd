"""The transformer of `kernels/` against the untouched PyTorch module."""

import subprocess
import sys
from functools import partial

import jax
import numpy as np
import pytest
import torch
from demucs.transformer import CrossTransformerEncoder
from splitter_kernels import reference, spec, taps, xla
from splitter_kernels.spec import Config, SpecError

from ..conftest import ROOT, snr_db


def module(width, heads, cross_first=False, layers=2):
    torch.manual_seed(width)
    made = CrossTransformerEncoder(
        width,
        num_heads=heads,
        num_layers=layers,
        norm_first=True,
        norm_out=True,
        layer_scale=True,
        cross_first=cross_first,
    ).eval()
    with torch.no_grad():  # trained models have neither unit gains nor vanishing layer scales
        for name, parameter in made.named_parameters():
            if "norm" in name or "gamma" in name:
                parameter.uniform_(0.3, 1.5)
    return made


def arguments(made, bins, frames, samples, dtype):
    """Weights by kernel name, and a configuration."""
    width = made.norm_in.weight.shape[0]
    captured = {}
    for branch, layer in (("", made.norm_in), ("_t", made.norm_in_t)):
        layer.register_forward_hook(lambda m, args, out, branch=branch: captured.update({f"normed{branch}": out}))
        first = (made.layers if branch == "" else made.layers_t)[0]
        first.register_forward_pre_hook(lambda m, args, branch=branch: captured.update({f"in{branch}": args[0]}))
    made(
        torch.zeros(1, width, bins, frames, dtype=made.norm_in.weight.dtype),
        torch.zeros(1, width, samples, dtype=made.norm_in.weight.dtype),
    )
    weights = {key: value.detach().numpy().astype(dtype) for key, value in made.state_dict().items()}
    for branch in spec.BRANCHES:
        table = captured[f"in{branch}"] - captured[f"normed{branch}"]
        weights[spec.POSITIONS[branch]] = table[0].detach().numpy().astype(dtype)
    heads = (made.layers[0].cross_attn if made.classic_parity else made.layers[0].self_attn).num_heads
    config = Config(width, heads, len(made.layers), made.layers[0].linear1.out_features, bins * frames, samples,
                    cross_first=bool(made.classic_parity))  # fmt: skip
    return config, weights


@pytest.mark.parametrize(("width", "heads", "cross_first"), [(32, 4, False), (96, 8, True), (80, 1, False)])
def test_numpy_and_jax_agree_with_the_module(width, heads, cross_first):
    made = module(width, heads, cross_first)
    config, weights = arguments(made, 3, 50, 70, np.float32)
    freq, time = torch.randn(2, width, 3, 50), torch.randn(2, width, 70)
    expected = [tensor.detach().numpy() for tensor in made(freq, time)]
    for results in (
        reference.transformer(config, weights, freq.numpy(), time.numpy()),
        xla.compiled(config)(xla.prepared(weights), freq.numpy(), time.numpy()),
    ):
        for one, result in zip(expected, results, strict=True):
            assert np.asarray(result).dtype == np.float32
            assert snr_db(one, np.asarray(result)) >= 120


def test_float64_is_an_oracle():
    made = module(64, 8, layers=3).double()
    config, weights = arguments(made, 4, 30, 40, np.float64)
    freq, time = torch.randn(1, 64, 4, 30).double(), torch.randn(1, 64, 40).double()
    results = reference.transformer(config, weights, freq.numpy(), time.numpy())
    for one, result in zip(made(freq, time), results, strict=True):
        assert result.dtype == np.float64
        assert snr_db(one.detach().numpy(), result) >= 200


def observed(config, weights, freq, time):
    """The taps of both implementations, as lists of name and value."""
    found = []
    reference.transformer(config, weights, freq, time, observe=lambda *pair: found.append(pair))
    yield found
    names = list(taps.taps(config))
    *_, values = xla.compiled(config, names)(xla.prepared(weights), freq, time)
    yield [(name, np.array(values[name])) for name in names]
    assert values.keys() == set(names)


@pytest.mark.parametrize("cross_first", [False, True])
def test_taps_are_those_of_the_list(cross_first):
    """Names, order, shapes; what a module computes is what its hook sees, and attention lies between q, k and v."""
    made = module(32, 4, cross_first)
    config, weights = arguments(made, 3, 50, 70, np.float32)
    listed = taps.taps(config)
    seen = {}
    for name, part in made.named_modules():
        part.register_forward_hook(lambda m, args, out, name=name: seen.update({name: out}))
    freq, time = torch.randn(1, 32, 3, 50), torch.randn(1, 32, 70)
    made(freq, time)
    for found in observed(config, weights, freq.numpy(), time.numpy()):
        assert [name for name, _ in found] == list(listed)
        for name, value in found:
            for extent, expected in zip(value.shape, listed[name].shape, strict=True):
                assert extent == expected or expected is None
        values = {name: torch.from_numpy(value) for name, value in found}
        compared = values.keys() & seen.keys()
        assert len(compared) == 2 + 2 * sum(9 if config.kind(layer) == "cross" else 8 for layer in range(2))
        for name in compared:
            hooked = seen[name][0] if isinstance(seen[name], tuple) else seen[name]
            assert snr_db(hooked.detach().numpy(), values[name].numpy()) >= 115, name
        for path in [f"layers{branch}.{layer}" for branch in spec.BRANCHES for layer in range(2)]:
            q, k, v, logits, heads = (values[f"{path}.{name}"] for name in ("q", "k", "v", "logits", "heads"))
            expected = torch.nn.functional.scaled_dot_product_attention(q, k, v)
            assert snr_db(expected.numpy(), heads.numpy()) >= 120
            kept = torch.softmax(logits, -1) @ v
            assert snr_db(heads[:, :, : taps.LOGIT_ROWS].numpy(), kept.numpy()) >= 120
            summed = values[f"{path}.residual_1"] + values[f"{path}.gamma_2"]
            assert snr_db(summed.numpy(), values[f"{path}.residual_2"].numpy()) >= 120


def test_taps_on_request_leave_the_result_alone():
    made = module(32, 4, layers=1)
    config, weights = arguments(made, 3, 5, 7, np.float32)
    rng = np.random.default_rng(0)
    freq, time = (rng.standard_normal(shape, np.float32) for shape in ((1, 32, 3, 5), (1, 32, 7)))
    plain = reference.transformer(config, weights, freq, time)
    *tapped, values = xla.compiled(config, ["layers_t.0.k", "norm_in"])(xla.prepared(weights), freq, time)
    assert values.keys() == {"norm_in", "layers_t.0.k"}
    assert values["layers_t.0.k"].shape == (1, 4, 7, 8)
    for one, other in zip(plain, tapped, strict=True):
        assert snr_db(one, np.asarray(other)) >= 120
    with pytest.raises(SpecError, match=r"got \['layers_t.0.w'\]"):
        xla.compiled(config, ["norm_in", "layers_t.0.w"])


def test_attention_in_blocks_is_attention(monkeypatch):
    made = module(32, 4)
    config, weights = arguments(made, 4, 30, 40, np.float64)
    rng = np.random.default_rng(0)
    freq, time = rng.standard_normal((1, 32, 4, 30)), rng.standard_normal((1, 32, 40))
    whole = reference.transformer(config, weights, freq, time)
    monkeypatch.setattr(reference, "_ATTENTION_ROWS", 7)
    for one, other in zip(whole, reference.transformer(config, weights, freq, time), strict=True):
        assert snr_db(one, other) >= 250


def test_cross_layers_see_the_old_tokens():
    """With new tokens in the time branch's cross layer the result is another: the test can tell."""
    made = module(32, 4)
    config, weights = arguments(made, 4, 30, 40, np.float64)
    rng = np.random.default_rng(0)
    freq, time = rng.standard_normal((1, 32, 4, 30)), rng.standard_normal((1, 32, 40))
    expected = reference.transformer(config, weights, freq, time)[1]
    original = reference.transformer_layer
    latest = {}

    def with_new_tokens(config, weights, prefix, x, source, observe):
        if source is not None and prefix.startswith("layers_t"):
            source = latest["freq"]
        result = original(config, weights, prefix, x, source, observe)
        if prefix.startswith("layers."):
            latest["freq"] = result
        return result

    reference.transformer_layer = with_new_tokens
    try:
        assert snr_db(expected, reference.transformer(config, weights, freq, time)[1]) < 60
    finally:
        reference.transformer_layer = original


def test_softmax_makes_no_subnormal_numbers():
    """Which some processors multiply many times more slowly."""
    shares = reference.softmax(np.array([[0, -60, -95, -400]], np.float32))
    assert shares.min() >= np.finfo(np.float32).tiny
    np.testing.assert_allclose(shares[0], [1, np.exp(-60), 0, 0], rtol=1e-5, atol=1e-30)


def test_gelu_is_exact():
    x = np.linspace(-6, 6, 1001)
    assert np.abs(reference.gelu(x) - torch.nn.functional.gelu(torch.from_numpy(x)).numpy()).max() < 1e-15


def test_group_norm_keeps_its_digits_over_a_million_elements():
    """Means in two levels: one float32 accumulator over all of it would lose half of them."""
    rng = np.random.default_rng(0)
    x = (rng.standard_normal((1, 2688, 512)) * 30 + 100).astype(np.float32)
    one, zero = np.ones(512, np.float32), np.zeros(512, np.float32)
    wide = x.astype(np.float64)
    expected = (wide - wide.mean()) / np.sqrt(wide.var() + 1e-5)
    assert snr_db(expected, reference.group_norm(x, one, zero, 1e-5)) >= 125


def test_spec_names_what_is_wrong():
    config = Config(32, 4, 3, 64, 12, 8)
    shapes = dict(spec.parameters(config))
    assert config.kind(0) == "self"
    assert config.kind(1) == "cross"
    spec.check_parameters(config, shapes)
    with pytest.raises(SpecError, match=r"lack 1 tensors, the first 'norm_in\.bias'"):
        spec.check_parameters(config, {k: v for k, v in shapes.items() if k != "norm_in.bias"})
    with pytest.raises(SpecError, match="nothing reads, the first 'extra'"):
        spec.check_parameters(config, {**shapes, "extra": (1,)})
    with pytest.raises(SpecError, match=r"must have shape \(32,\); got \(33,\)"):
        spec.check_parameters(config, {**shapes, "norm_in.bias": (33,)})
    with pytest.raises(SpecError, match="multiple of heads"):
        Config(30, 4, 3, 64, 12, 8)


@pytest.mark.parametrize("port", ["numpy", "jax"])
@pytest.mark.parametrize(
    ("freq", "time", "message"),
    [
        (np.zeros((1, 32, 3, 6), np.float32), np.zeros((1, 32, 7), np.float32), "frequency branch must hold 15 tokens"),
        (np.zeros((1, 32, 3, 5), np.float32), np.zeros((1, 32, 8), np.float32), "time branch must hold 7 tokens"),
        (np.zeros((1, 48, 3, 5), np.float32), np.zeros((1, 48, 7), np.float32), "must have 32 channels, .* got 48"),
        (np.zeros((1, 32, 3, 5), np.float32), np.zeros((1, 32, 7), np.float64), "got float32 and float64"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(port, freq, time, message):
    config = Config(32, 4, 1, 64, 15, 7)
    weights = {name: np.zeros(shape, np.float32) for name, shape in spec.parameters(config).items()}
    run = xla.compiled(config) if port == "jax" else partial(reference.transformer, config)
    with pytest.raises(SpecError, match=message):
        run(weights, freq, time)


def test_other_dtypes_are_refused():
    config = Config(32, 4, 1, 64, 15, 7)
    weights = {name: np.zeros(shape, np.float32) for name, shape in spec.parameters(config).items()}
    ones = np.ones((1, 32, 3, 5)), np.ones((1, 32, 7))
    with pytest.raises(SpecError, match="one dtype of float32, bfloat16, float16; got float64"):
        xla.compiled(config)(weights, *ones)
    with pytest.raises(SpecError, match="one dtype of float32, float64; got float16"):
        reference.transformer(config, weights, *(x.astype(np.float16) for x in ones))
    with pytest.raises(SpecError, match=r"float64; got float32 for \d+ tensors, the first 'layers\.0\.gamma"):
        reference.transformer(config, weights, *ones)


@pytest.mark.parametrize(("dtype", "limit"), [("float16", 50), ("bfloat16", 30)])
def test_half_precision_has_wide_statistics(dtype, limit):
    """Inputs whose squares and sums leave half precision far behind."""
    made = module(32, 4, layers=1)
    config, weights = arguments(made, 3, 50, 70, np.float32)
    rng = np.random.default_rng(0)
    freq, time = (
        jax.numpy.asarray(rng.standard_normal(shape) * 3000, dtype) for shape in ((1, 32, 3, 50), (1, 32, 70))
    )
    expected = reference.transformer(config, weights, *(np.asarray(x, np.float32) for x in (freq, time)))
    for one, result in zip(expected, xla.compiled(config)(xla.prepared(weights), freq, time), strict=True):
        assert result.dtype == dtype
        assert limit <= snr_db(one, np.asarray(result, np.float32)) < limit + 25


@pytest.mark.parametrize("form", [xla._heads_in_turn, xla._heads_at_once])
def test_both_forms_of_attention_are_attention(form):
    """Also where the rows are no multiple of a block, and where logits are too large for an exponential."""
    q, k, v = (torch.randn(2, 3, n, 16, generator=torch.Generator().manual_seed(n)) for n in (700, 90, 91))
    k, v = 30 * k, v[:, :, :90]
    expected = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double(), scale=1.0)
    assert snr_db(expected.numpy(), np.asarray(jax.jit(form)(*(x.numpy() for x in (q, k, v))))) >= 105


def test_sums_of_many_terms_keep_their_digits():
    """The library XLA prefers for products has 122 dB here."""
    rng = np.random.default_rng(0)
    x, weight = rng.standard_normal((1, 128, 2048), np.float32), rng.standard_normal((256, 2048), np.float32)
    products = jax.jit(xla._products, compiler_options=xla.compiler_options())(x, weight)
    assert snr_db(x.astype(np.float64) @ weight.T.astype(np.float64), np.asarray(products)) >= 127


def test_kernels_need_neither_torch_nor_splitter(tmp_path):
    (tmp_path / "splitter_kernels").symlink_to(ROOT / "kernels" / "splitter_kernels")
    script = "import sys; sys.modules['torch'] = sys.modules['splitter'] = None; import splitter_kernels.spec, splitter_kernels.reference, splitter_kernels.xla"
    subprocess.run([sys.executable, "-c", script], cwd=tmp_path, check=True)
