"""verify-port: a sound port passes, and each mistake is found where it was made."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
from scipy.special import softmax
from splitter_kernels import metal, reference, xla

from splitter import arrays
from splitter.bundle.directory import Bundle
from splitter.errors import UsageError
from splitter.plan import schema as plans
from splitter.verification.checks import Status
from splitter.verification.port import read_dump, verify_port
from splitter.verification.transformer import TappedTransformer

from ..ports import MISTAKES, Port


@pytest.fixture(scope="module")
def model(demo_path):
    return TappedTransformer(Bundle.load(demo_path))


@pytest.fixture(scope="module")
def sound(model):
    return dump(model)


def dump(model, mistake="", dtype=np.float32):
    return Port(model.config, model.tensors, mistake, dtype).run(*model.inputs.values())


def early(dumped):
    """What is enough to see the first divergence in: inputs and the first layer of each kind."""
    return {name: value for name, value in dumped.items() if not name.split(".")[1:] or name.split(".")[1] in "01"}


def only(sound, *kept, **changed):
    return {name: sound[name] for name in kept} | changed


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_a_sound_port_passes(model, demo_bundle, dtype):
    report = verify_port([dump(model, dtype=dtype)], demo_bundle)
    assert report.passed
    assert report.verdict == "no divergence in 174 taps"
    worst = min(one.check.parity.snr_db for one in report.taps if one.check.scope == "local")
    assert worst >= (120 if dtype is np.float32 else 65)
    assert report.taps[-1].accumulated.snr_db >= (110 if dtype is np.float32 else 55)


def by_numpy(model, observe):
    reference.transformer(model.config, model.tensors, *model.inputs.values(), observe=observe)


def by_jax(model, observe):
    compiled = xla.compiled(model.config, list(model.taps))
    for name, value in compiled(xla.prepared(model.tensors), *model.inputs.values())[2].items():
        observe(name, value)


def by_metal(model, observe):
    metal.transformer(model.config, model.tensors, *model.inputs.values(), observe=observe)


@pytest.mark.parametrize("run", [by_numpy, pytest.param(by_jax, marks=pytest.mark.slow), by_metal])
def test_the_kernels_agree_with_the_captured_model_at_every_tap(model, demo_bundle, run):
    kept = {}
    run(model, lambda name, value: kept.update({name: np.array(value)}))
    report = verify_port([kept], demo_bundle)
    assert report.passed
    assert len(report.taps) == len(model.taps)
    scopes = [one.check.scope for one in report.taps]
    assert scopes.count("accumulated") == 2  # the inputs, which are equal
    assert min(one.check.parity.snr_db for one in report.taps) >= 120
    assert all(one.accumulated.snr_db >= 110 for one in report.taps if one.check.subject.startswith("output"))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found_where_they_are_made(model, demo_bundle, mistake):
    tap, cause = MISTAKES[mistake]
    report = verify_port([early(dump(model, mistake))], demo_bundle)
    assert not report.passed
    assert report.verdict.startswith(f"first divergence: {tap} (")
    assert cause in report.verdict


@pytest.mark.slow
@pytest.mark.parametrize("mistake", ["tanh gelu", "wrong eps", "half accumulation"])
def test_half_precision_hides_no_mistake(model, demo_bundle, mistake):
    tap, cause = MISTAKES[mistake]
    verdict = verify_port([early(dump(model, mistake, np.float16))], demo_bundle).verdict
    assert verdict.startswith(f"first divergence: {tap} (")
    assert cause in verdict


def test_a_few_taps_are_judged_from_the_nearest_that_the_dump_holds(model, sound, demo_bundle):
    names = ["layers.0.norm_out", "layers_t.0.norm_out", "layers.1.norm_out", "output"]
    report = verify_port([only(sound, *names)], demo_bundle)
    assert report.passed
    scopes = {one.check.subject: one.check.scope for one in report.taps}
    assert scopes == dict.fromkeys(names[:2], "accumulated") | dict.fromkeys(names[2:], "nearest")
    assert len(report.missing) == 174 - 4 - 4  # inputs are the encoder's, a stack's result is its last layer's
    wrong = dump(model, "new tokens")
    report = verify_port([only(wrong, "layers.1.norm_out", "layers_t.1.norm_out", "output_t")], demo_bundle)
    assert report.first_divergence.subject == "layers_t.1.norm_out"
    assert report.first_divergence.note == "somewhere in the steps before it"


@pytest.mark.parametrize(
    ("name", "change", "cause"),
    [
        ("layers.0.q", lambda x: x.transpose(0, 2, 1, 3), "permuted: the values lie as 't f h d'"),
        ("layers_t.0.k", lambda x: x.transpose(0, 1, 3, 2), "permuted: the values lie as 'h d m'"),
        ("layers_t.0.norm1", lambda x: x[0], "wrong shape: the values lie right"),
        ("layers_t.0.norm1", lambda x: x[:, :-1], r"wrong shape: \(1, 258, 80\)"),
        ("layers.0.gelu", lambda x: x.astype(np.float64), "wrong dtype: float64"),
        ("layers.0.gelu", lambda x: np.where(x > 1, np.inf, x), "not finite"),
        ("layers.0.gelu", lambda x: x.astype(np.float16).astype(np.float32), "rounded to half precision"),
        ("layers.0.gelu", lambda x: x * 2, "a constant gain of 2"),
        ("layers.0.gelu", lambda x: x + 0.1 * x**2, r"another formula than x \(1 \+ erf"),
        ("input", lambda x: x * 2 + 1, "another input"),
        ("input", lambda x: x.transpose(0, 1, 3, 2), "permuted: the values lie as 'c t f'"),
    ],
)  # fmt: skip
def test_other_defects_are_named(sound, demo_bundle, name, change, cause):
    reads = ("layers.0.linear1", "layers.0.norm1", "layers_t.0.norm1", "embedded_t")
    report = verify_port([only(sound, *reads, **{name: change(sound[name])})], demo_bundle)
    assert report.first_divergence.subject == name
    assert re.search(cause, report.first_divergence.note)


def test_repeated_runs_must_agree(sound, demo_bundle):
    first = only(sound, "embedded", "embedded_t")
    assert verify_port([first, dict(first)], demo_bundle).passed
    moved = first["embedded_t"].copy()
    moved[0, 3, 5] = np.nextafter(moved[0, 3, 5], 9)
    report = verify_port([first, first | {"embedded_t": moved}], demo_bundle)
    assert report.verdict.startswith(
        "first divergence: embedded_t (repeated runs disagree in 1 of 20,720 values: a race"
    )


def test_names_that_are_no_taps_are_not_passed_over(sound, demo_bundle):
    report = verify_port(
        [only(sound, "embedded") | {"layer.0.norm1": sound["layers.0.norm1"], "x": sound["input"]}], demo_bundle
    )
    assert not report.passed
    assert report.misnamed == {"layer.0.norm1": "layers.0.norm1", "x": ""}
    with pytest.raises(UsageError, match="no name in the dump is a tap's; got x"):
        verify_port([{"x": sound["input"]}], demo_bundle)


@pytest.fixture
def strict(demo_bundle):
    """The demo with a limit that its attention cannot reach where logits are large."""
    plan = plans.changed(demo_bundle.manifest.plan, tolerances={"port_snr_db": {"float32": 120.0, "float16": 62.0}})
    return replace(demo_bundle, manifest=demo_bundle.manifest.model_copy(update={"plan": plan}))


@pytest.mark.parametrize(("noise", "passes"), [(0.0, True), (3e-7, False)])
def test_large_logits_cost_no_port_more_than_the_model(sound, strict, noise, passes):
    """Logits of hundreds have an ulp of 3e-5, which the softmax makes a relative error of its results."""
    names = [f"layers_t.0.{one}" for one in "qkv"]
    q, k, v = (sound[name] for name in names)
    q = q * np.float32(2000 / np.abs(sound["layers_t.0.logits"]).max())
    logits = q.astype(np.float64) @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1])
    logits = (logits * (1 + noise * np.random.default_rng(0).standard_normal(logits.shape))).astype(np.float32)
    powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
    heads = (powers / powers.sum(axis=-1, keepdims=True)) @ v
    dumped = {"layers_t.0.q": q, "layers_t.0.k": k, "layers_t.0.v": v, "layers_t.0.heads": heads}
    report = verify_port([dumped], strict)
    (check,) = (one.check for one in report.taps if one.check.subject == "layers_t.0.heads")
    assert check.parity.snr_db < check.limit_db
    assert (check.status is Status.PASS) == passes


@pytest.mark.parametrize(("worse_db", "passes"), [(-1, True), (2.5, True), (3.5, False)])
def test_attention_may_be_three_decibels_unluckier_than_the_model(model, sound, strict, worse_db, passes):
    """Where the model itself is far from float64, as its logits are large."""
    given = {f"layers_t.0.{one}": sound[f"layers_t.0.{one}"] for one in "qkv"}
    given["layers_t.0.q"] = given["layers_t.0.q"] * np.float32(2000 / np.abs(sound["layers_t.0.logits"]).max())
    q, k, v = (value.astype(np.float64) for value in given.values())
    exact = softmax(q @ k.swapaxes(-1, -2) / np.sqrt(q.shape[-1]), axis=-1) @ v
    error = model.step("layers_t.0.heads", given) - exact
    heads = (exact - 10 ** (worse_db / 20) * error).astype(np.float32)
    report = verify_port([given | {"layers_t.0.heads": heads}], strict)
    (check,) = (one.check for one in report.taps if one.check.subject == "layers_t.0.heads")
    assert check.parity.snr_db < check.limit_db
    assert (check.status is Status.PASS) == passes
    assert check.note.startswith("float32 holds no more") == passes


def test_a_silent_tap_proves_nothing(sound, demo_bundle):
    """A dump of zeros fails against a model that is not silent."""
    report = verify_port([only(sound, "embedded") | {"embedded_t": np.zeros_like(sound["embedded_t"])}], demo_bundle)
    assert report.first_divergence.subject == "embedded_t"


def test_dumps_come_in_four_formats(sound, tmp_path):
    kept = only(sound, "embedded_t", "layers_t.0.q")
    arrays.write(tmp_path / "dump.npz", kept)
    arrays.write(tmp_path / "dump.safetensors", kept)
    folder = tmp_path / "folder"
    folder.mkdir()
    for name, value in kept.items():
        np.save(folder / f"{name}.npy", value)
    raw = b"".join(value.tobytes() for value in kept.values())
    (tmp_path / "dump.bin").write_bytes(b"head" + raw)
    q = kept["layers_t.0.q"]
    index = {
        "embedded_t": {"file": "dump.bin", "offset": 4, "shape": kept["embedded_t"].shape},
        "layers_t.0.q": {
            "file": "dump.bin",
            "offset": 4 + kept["embedded_t"].nbytes,
            "shape": q.shape,
            "dtype": "float32",
        },
    }
    (tmp_path / "dump.json").write_text(json.dumps(index))
    for form in ("dump.npz", "dump.safetensors", "folder", "dump.json"):
        found = read_dump(tmp_path / form, {name: value.shape for name, value in kept.items()})
        assert found.keys() == kept.keys()
        assert all(np.array_equal(found[name], kept[name]) for name in kept)


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("dump.json", '{"a": {"file": "../x", "shape": [1]}}', "outside the folder"),
        ("dump.json", '{"a": {"file": "x.bin", "shape": [1000000000000]}}', "ends before the array"),
        ("dump.json", '{"a": {"file": "x.bin", "shape": [-1]}}', "index of raw arrays"),
        ("dump.json", '{"a": {"file": "x.bin", "shape": [1], "dtype": "object"}}', "cannot be read raw"),
        ("dump.json", '{"a": {"file": "x.bin", "shape": [1], "dtype": "float99"}}', "arrays by name"),
        ("dump.json", "[]", "index of raw arrays"),
        ("dump.safetensors", "short", "arrays by name"),
        ("dump.npz", "short", "arrays by name"),
        ("dump.txt", "short", "dump\\.txt is no file of arrays by name"),
        ("empty", None, "holds no tensors"),
    ],
)
def test_bad_dumps_are_named(tmp_path, name, content, said):
    (tmp_path / "x.bin").write_bytes(bytes(8))
    path = tmp_path / name
    path.mkdir() if content is None else path.write_text(content)
    with pytest.raises(UsageError, match=said):
        read_dump(path, {"a": (1,)})


def test_another_format_version_is_refused(sound, tmp_path):
    path = tmp_path / "dump.safetensors"
    arrays.write(path, only(sound, "embedded"), {"format": "splitter.taps/2"})
    with pytest.raises(UsageError, match=r"another format: expected splitter\.taps/1, found splitter\.taps/2"):
        read_dump(path, {"a": (1,)})
