"""Small models of many kinds: converted by Core ML Tools, saved, run here, compared with PyTorch."""

import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

import splitter
from splitter.errors import UsageError
from splitter.mil import load
from splitter.mil.coreml_tools import ct, quiet_and_quick

from ..conftest import snr_db
from .harness import TARGETS
from .small_models import AnyLength, Cached, Recurrent, ResNet, Scaled, UNet, ViT, Whisper, mlp, randomized


def converted(model, data, target="iOS17", frontend="trace", **options):
    """Core ML Tools' package of a module, not saved yet."""
    model.eval()
    examples = tuple(torch.from_numpy(one) for one in data.values())
    options.setdefault("inputs", [ct.TensorType(name, one.shape, one.dtype) for name, one in data.items()])
    with torch.no_grad(), quiet_and_quick(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # both frontends are deprecated in some version of torch
        if frontend == "trace":
            source = torch.jit.trace(model, examples, check_trace=False)
        else:
            source = torch.export.export(model, examples).run_decompositions({})
        return ct.convert(
            source,
            convert_to="mlprogram",
            skip_model_load=True,
            compute_precision=ct.precision.FLOAT32,
            minimum_deployment_target=TARGETS[target],
            **options,
        )


def saved(package, path, **options):
    package.save(str(path / "model.mlpackage"))
    return load(path / "model.mlpackage", **options)


def computed(model, inputs):
    with torch.no_grad():
        results = model.eval()(*(torch.from_numpy(one) for one in inputs.values()))
    return [one.numpy() for one in (results if isinstance(results, tuple) else (results,))]


def assert_agree(got, expected):
    got = list(got.values())
    assert len(got) == len(expected)
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert one.dtype == np.float32
        assert snr_db(other, one) >= 100


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


MODELS = [
    (ResNet, {"x": noise(2, 3, 32, 32)}, ("iOS15", "iOS17")),
    (lambda: Recurrent(nn.LSTM), {"x": noise(3, 7, 6)}, ("iOS16", "iOS17")),
    (lambda: Recurrent(nn.GRU), {"x": noise(3, 7, 6)}, ("iOS15", "iOS18")),
    (ViT, {"x": noise(1, 3, 16, 16)}, ("iOS17", "iOS18")),
    (UNet, {"x": noise(1, 1, 16, 24)}, ("iOS16", "iOS18")),
    (Whisper, {"spectrogram": noise(1, 20, 50)}, ("iOS15", "iOS16")),
]


@pytest.mark.parametrize(
    ("make", "inputs", "target"), [(make, inputs, target) for make, inputs, targets in MODELS for target in targets]
)
def test_models(make, inputs, target, tmp_path):
    model = randomized(make())
    frontend = "export" if target == "iOS18" and not isinstance(model, Recurrent) else "trace"
    runtime = saved(converted(model, inputs, target, frontend), tmp_path)
    assert runtime.spec.opset == f"CoreML{int(target[3:]) - 10}"
    assert_agree(runtime.predict(inputs), computed(model, inputs))


# ------------------------------------------------------------------------------------------- states


def test_a_cache_is_kept_from_step_to_step(tmp_path):
    model = randomized(Cached())
    with torch.no_grad():
        for one in (model.embedding.weight, model.qkv.weight, model.qkv.bias):
            one.copy_((one * 6).round().clamp(-4, 4) / 4)
    tokens = [3, 1, 4, 1, 5, 9]

    def inputs(step, token):
        here = np.zeros((1, 1, 6, 1), np.float32)
        here[:, :, step] = 1
        return {"token": np.array([[token]], np.int32), "here": here, "mask": noise(1, 1, 1, step + 1)}

    states = [
        ct.StateType(wrapped_type=ct.TensorType(shape=one.shape, dtype=np.float16), name=name)
        for name, one in model.named_buffers()
    ]
    kinds = [
        ct.TensorType("token", (1, 1), np.int32),
        ct.TensorType("here", (1, 1, 6, 1)),
        ct.TensorType("mask", (1, 1, 1, ct.RangeDim(1, 6, default=2))),
    ]
    runtime = saved(converted(model, inputs(1, 3), "iOS18", states=states, inputs=kinds), tmp_path)
    for buffer in model.buffers():
        buffer.zero_()
    state, other = runtime.make_state(), runtime.make_state()
    first = runtime.predict(inputs(0, 7), state=other)
    for step, token in enumerate(tokens):
        given = inputs(step, token)
        assert_agree(runtime.predict(given, state=state), computed(model, given))
        for name, buffer in model.named_buffers():
            assert state[name].dtype == np.float16
            np.testing.assert_array_equal(state[name], buffer)
    other = runtime.make_state()
    np.testing.assert_array_equal(
        next(iter(runtime.predict(inputs(0, 7), state=other).values())), next(iter(first.values()))
    )
    with pytest.raises(UsageError, match="has states"):
        runtime.predict(inputs(0, 7))


# --------------------------------------------------------------------------------------- compression


def linear(**options):
    config = ct.optimize.coreml.OpLinearQuantizerConfig(weight_threshold=0, **options)
    return lambda one: ct.optimize.coreml.linear_quantize_weights(one, ct.optimize.coreml.OptimizationConfig(config))


def palettes(**options):
    config = ct.optimize.coreml.OpPalettizerConfig(weight_threshold=0, **options)
    return lambda one: ct.optimize.coreml.palettize_weights(one, ct.optimize.coreml.OptimizationConfig(config))


def pruned(**options):
    config = ct.optimize.coreml.OpMagnitudePrunerConfig(weight_threshold=0, **options)
    return lambda one: ct.optimize.coreml.prune_weights(one, ct.optimize.coreml.OptimizationConfig(config))


COMPRESSIONS = [
    ("iOS16", linear(mode="linear_symmetric"), "constexpr_affine_dequantize"),
    ("iOS17", linear(mode="linear", dtype="uint8"), "constexpr_affine_dequantize"),
    ("iOS18", linear(mode="linear"), "constexpr_blockwise_shift_scale"),
    ("iOS18", linear(dtype="int4", granularity="per_block", block_size=16), "constexpr_blockwise_shift_scale"),
    ("iOS16", palettes(mode="uniform", nbits=4), "constexpr_lut_to_dense"),
    (
        "iOS18",
        palettes(mode="uniform", nbits=3, granularity="per_grouped_channel", group_size=4),
        "constexpr_lut_to_dense",
    ),
    ("iOS16", pruned(target_sparsity=0.7), "constexpr_sparse_to_dense"),
    ("iOS18", pruned(target_sparsity=0.7), "constexpr_sparse_to_dense"),
]


@pytest.mark.parametrize(("target", "compress", "operation"), COMPRESSIONS)
def test_compressed_weights(target, compress, operation, tmp_path):
    model, inputs = mlp(), {"x": noise(4, 32)}
    package = converted(model, inputs, target)
    with quiet_and_quick():
        small = compress(package)
        dense = ct.optimize.coreml.decompress_weights(small)
        weights = ct.optimize.coreml.get_weights_metadata(dense, weight_threshold=32 * 8)
    runtime = saved(small, tmp_path)
    assert runtime.spec.operations[operation] >= 3
    uncompressed = computed(model, inputs)
    matrices = [one for one in model if isinstance(one, nn.Linear)]
    assert len(weights) == len(matrices)
    for one, known in zip(matrices, weights.values(), strict=True):
        one.weight.data.copy_(torch.from_numpy(known.val))
    got = runtime.predict(inputs)
    assert_agree(got, computed(model, inputs))
    assert snr_db(uncompressed[0], next(iter(got.values()))) < 60  # it was compressed at all


def test_symmetric_eight_bits_by_hand(tmp_path):
    model, inputs = mlp(), {"x": noise(4, 32)}
    with quiet_and_quick():
        small = linear(mode="linear_symmetric")(converted(model, inputs, "iOS17"))
    for one in model:
        if isinstance(one, nn.Linear):
            scale = one.weight.data.abs().amax(1, keepdim=True) / 127
            one.weight.data.copy_((one.weight.data / scale).round() * scale)
    assert_agree(saved(small, tmp_path).predict(inputs), computed(model, inputs))


# ----------------------------------------------------------------------------------------- shapes


def sized(shape):
    return {"x": noise(*shape)}


RANGE = ct.Shape((ct.RangeDim(1, 3, default=2), 4, ct.RangeDim(5, 40, default=9)))


@pytest.mark.parametrize(
    ("flexible", "shapes", "wrong"),
    [
        (RANGE, [(1, 4, 5), (2, 4, 9), (3, 4, 40)], [(2, 4, 41), (4, 4, 9), (2, 4, 4), (2, 5, 9), (4, 9)]),
        (
            ct.EnumeratedShapes(shapes=[(1, 4, 6), (1, 4, 16), (1, 4, 31)], default=(1, 4, 16)),
            [(1, 4, 6), (1, 4, 16), (1, 4, 31)],
            [(1, 4, 7), (2, 4, 16), (1, 3, 16)],
        ),
    ],
    ids=["range", "enumerated"],
)
@pytest.mark.parametrize("target", ["iOS15", "iOS18"])
def test_dynamic_shapes(flexible, shapes, wrong, target, tmp_path):
    model = randomized(AnyLength())
    kinds = [ct.TensorType(name="x", shape=flexible, dtype=np.float32)]
    runtime = saved(converted(model, sized(shapes[1]), target, inputs=kinds), tmp_path)
    for shape in shapes:
        assert_agree(runtime.predict(sized(shape)), computed(model, sized(shape)))
    for shape in wrong:
        with pytest.raises(UsageError, match="input 'x'"):
            runtime.predict(sized(shape))


def test_an_optional_input_has_a_default(tmp_path):
    class Sum(nn.Module):
        def forward(self, x, y):
            return x + y

    inputs = {"x": noise(2, 3), "y": noise(2, 3, seed=1)}
    kinds = [ct.TensorType("x", (2, 3)), ct.TensorType("y", (2, 3), default_value=np.full((2, 3), 2.5, np.float32))]
    runtime = saved(converted(Sum(), inputs, inputs=kinds), tmp_path)
    assert_agree(runtime.predict(inputs), [inputs["x"] + inputs["y"]])
    assert_agree(runtime.predict({"x": inputs["x"]}), [inputs["x"] + np.float32(2.5)])
    with pytest.raises(UsageError, match="input 'x'"):
        runtime.predict({"y": inputs["y"]})


# -------------------------------------------------------------------------------------- functions


def test_functions_are_chosen_by_name(tmp_path):
    inputs = {"x": noise(4, 32)}
    models = {"small": mlp(), "other": randomized(nn.Sequential(nn.Linear(32, 5), nn.Tanh()))}
    described = ct.utils.MultiFunctionDescriptor()
    for name, model in models.items():
        converted(model, inputs, "iOS18").save(str(tmp_path / f"{name}.mlpackage"))
        described.add_function(str(tmp_path / f"{name}.mlpackage"), "main", name)
    described.default_function_name = "other"
    with quiet_and_quick():
        ct.utils.save_multifunction(described, str(tmp_path / "both.mlpackage"))
    for name, model in models.items():
        runtime = load(tmp_path / "both.mlpackage", function_name=name)
        assert set(runtime.spec.functions) == set(models)
        assert_agree(runtime.predict(inputs), computed(model, inputs))
    default = load(tmp_path / "both.mlpackage")
    assert default.spec.function_name == "other"
    assert_agree(default.predict(inputs), computed(models["other"], inputs))
    with pytest.raises(UsageError, match="both.mlpackage has no function"):
        load(tmp_path / "both.mlpackage", function_name="main")


# ---------------------------------------------------------------------------------------- images


def pixels(height=12, width=10):
    return np.random.default_rng(5).integers(0, 256, (height, width, 3), np.uint8)


@pytest.mark.parametrize("layout", ["RGB", "BGR"])
def test_images(layout, tmp_path):
    model = randomized(nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.Hardtanh(-0.1, 1.1))).double()
    with torch.no_grad():
        model[0].bias.add_(0.3)
    scaled = nn.Sequential(model.float(), Scaled(255))
    kind = ct.ImageType("image", (1, 3, 12, 10), 1 / 127.5, [-1, -0.9, -1.1], color_layout=layout)
    out = ct.ImageType("result", color_layout=layout)
    example = {"image": noise(1, 3, 12, 10)}
    runtime = saved(converted(scaled, example, "iOS16", inputs=[kind], outputs=[out]), tmp_path)
    result = runtime.predict({"image": Image.fromarray(pixels())})["result"]
    assert (result.mode, result.size) == ("RGB", (10, 12))

    planes = pixels().transpose(2, 0, 1)[:: 1 if layout == "RGB" else -1].astype(np.float64)
    given = planes / 127.5 + np.array([-1, -0.9, -1.1]).reshape(3, 1, 1)
    with torch.no_grad():
        expected = scaled.double()(torch.from_numpy(given)[None])[0].numpy()
    assert expected.min() < 0
    assert expected.max() > 255  # clamped
    got = np.asarray(result).transpose(2, 0, 1)[:: 1 if layout == "RGB" else -1]
    expected = expected.clip(0, 255)
    clear = np.abs(expected % 1 - 0.5) > 1e-3
    np.testing.assert_array_equal(got[clear], expected.round()[clear])
    assert clear.mean() > 0.9


@pytest.mark.parametrize(("layout", "mode"), [("GRAYSCALE", "L"), ("GRAYSCALE_FLOAT16", "F")])
def test_gray_images(layout, mode, tmp_path):
    kind = ct.ImageType("image", (1, 1, 5, 7), color_layout=getattr(ct.colorlayout, layout))
    out = ct.ImageType("result", color_layout=getattr(ct.colorlayout, layout))
    model = converted(Scaled(0.5), {"image": noise(1, 1, 5, 7)}, inputs=[kind], outputs=[out])
    runtime = saved(model, tmp_path)
    gray = pixels(5, 7)[..., 0]
    result = runtime.predict({"image": Image.fromarray(gray).convert(mode)})["result"]
    assert (result.mode, result.size) == (mode, (7, 5))
    half = gray.astype(np.float32) / 2
    np.testing.assert_array_equal(np.asarray(result), half if mode == "F" else half.round())


@pytest.mark.parametrize(
    "shape",
    [
        ct.Shape((1, 3, ct.RangeDim(4, 8, default=6), ct.RangeDim(5, 9, default=6))),
        ct.EnumeratedShapes(shapes=[(1, 3, 6, 6), (1, 3, 8, 9), (1, 3, 4, 5)], default=(1, 3, 6, 6)),
    ],
    ids=["range", "enumerated"],
)
def test_images_of_several_sizes(shape, tmp_path):
    kind = ct.ImageType("image", shape)
    runtime = saved(converted(Scaled(2.0), {"image": noise(1, 3, 6, 6)}, inputs=[kind]), tmp_path)
    for height, width in [(6, 6), (8, 9), (4, 5)]:
        given = pixels(height, width)
        (got,) = runtime.predict({"image": Image.fromarray(given)}).values()
        np.testing.assert_array_equal(got, given.transpose(2, 0, 1)[None] * np.float32(2))
    with pytest.raises(UsageError, match="is an image of"):
        runtime.predict({"image": Image.fromarray(pixels(9, 5))})


def test_an_image_of_another_size(tmp_path):
    kind = ct.ImageType("image", (1, 3, 12, 10))
    model = converted(Scaled(2.0), {"image": noise(1, 3, 12, 10)}, inputs=[kind])
    runtime = saved(model, tmp_path)
    with pytest.raises(UsageError, match="10×12"):
        runtime.predict({"image": Image.fromarray(pixels(10, 12))})
    with pytest.raises(UsageError, match="PIL image"):
        runtime.predict({"image": "photo.png"})
    with pytest.raises(UsageError, match=r"no RGB image.*uint8"):
        runtime.predict({"image": pixels() / 255})


def test_images_as_files_and_arrays(tmp_path):
    kind, out = ct.ImageType("image", (1, 3, 12, 10)), ct.ImageType("result")
    saved(converted(Scaled(0.5), {"image": noise(1, 3, 12, 10)}, "iOS16", inputs=[kind], outputs=[out]), tmp_path)
    (package,) = tmp_path.glob("*.mlpackage")
    expected = np.round(pixels() / 2).astype(np.uint8)
    Image.fromarray(pixels()).save(tmp_path / "photo.png")
    np.savez(tmp_path / "photo.npz", image=pixels())
    for given in (tmp_path / "photo.png", tmp_path / "photo.npz", {"image": pixels()}):
        for name in ("result.png", "result.npz"):
            returned = splitter.predict(package, given, out=tmp_path / name)["result"]
            np.testing.assert_array_equal(returned, expected)
        np.testing.assert_array_equal(np.asarray(Image.open(tmp_path / "result.png")), expected)
        np.testing.assert_array_equal(np.load(tmp_path / "result.npz")["result"], expected)
    (tmp_path / "torn.png").write_bytes((tmp_path / "photo.png").read_bytes()[:60])
    with pytest.raises(UsageError, match="cannot be read as an image"):
        splitter.predict(package, tmp_path / "torn.png")
    plain = converted(Scaled(0.5), {"x": noise(1, 3, 12, 10)})
    plain.save(str(tmp_path / "plain.mlpackage"))
    with pytest.raises(UsageError, match="whose inputs are not one image"):
        splitter.predict(tmp_path / "plain.mlpackage", tmp_path / "photo.png")
    with pytest.raises(UsageError, match="are not one image"):
        splitter.predict(
            tmp_path / "plain.mlpackage", {"x": np.ones((1, 3, 12, 10), np.float32)}, out=tmp_path / "x.png"
        )
