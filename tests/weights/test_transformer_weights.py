"""The transformer's file, read the way a port reads it, and files that are not what they say."""

import json
from dataclasses import replace
from itertools import pairwise

import jsonschema
import numpy as np
import pytest
from coremltools._deps import kmeans1d
from safetensors.numpy import load_file
from splitter_kernels.spec import Config, SpecError, parameters
from splitter_weights import transformer as weights
from splitter_weights.quantisation import nearest, palette
from splitter_weights.transformer import exporting

from splitter.errors import CheckpointError, LoweringError
from splitter.plan.schema import WeightsForm

from ..conftest import ROOT
from ..kernels.test_compression import by_hand

CONFIG = Config(width=12, heads=3, layers=2, hidden=20, freq_tokens=7, time_tokens=5)  # no size is a round one
MIXED = {"layers.0": "int8", "layers.0.self_attn.in_proj_weight": "pal4", "layers_t": "none"}
LOSSLESS = [{}, {"qkv": "split"}, {"layout": "mlx"}]
LOSSY = [
    {"matrices": "fp16"},
    {"layout": "mlx", "matrices": "fp16"},
    {"compress": "int8"},
    {"compress": "pal8"},
    {"compress": "pal6"},
    {"compress": "pal4"},
    {"qkv": "split", "compress": "pal4"},
    {"layout": "mlx", "compress": "int8"},
    {"layout": "mlx", "compress": "pal6"},
    {"layout": "mlx", "compress": "pal6", "matrices": "fp16", "exceptions": MIXED},
]
forms = pytest.mark.parametrize("form", [WeightsForm(**f) for f in LOSSLESS + LOSSY], ids=repr)


def tree(config=CONFIG, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in parameters(config).items()}


def exported(path, form=WeightsForm(), tensors=None, config=CONFIG):
    tensors = tensors or tree(config)
    sources = {name: "graph" if name.startswith("positions") else f"crosstransformer.{name}" for name in tensors}
    record = weights.export(config, tensors, sources, path, form=form, inputs=("f", "t"), outputs=("g", "u"))
    return record, tensors


def read_as_a_port(path, manifest):
    """From the manifest's JSON and the mapped file alone: the kernels' tree."""
    mapped = np.memmap(path, np.uint8, mode="r")
    parts = {}
    for one in manifest["tensors"].values():
        data = mapped[one["offset"] : one["offset"] + one["bytes"]].view(one["dtype"]).reshape(one["shape"])
        parts.setdefault(one["parameter"], {})[one["role"]] = data
        parts[one["parameter"]]["record"] = one
    result = {}
    for name, part in parts.items():
        record = part.pop("record")
        shape = tuple(record["parameter_shape"])
        kind = f"pal{len(part['table']).bit_length() - 1}" if "table" in part else "int8"
        value = part["values"].astype(np.float32) if "values" in part else by_hand(kind, shape, part)
        target = record["source"].removeprefix("crosstransformer.") if record["source"] != "graph" else name
        result.setdefault(target, []).append((record["rows"] or [0, shape[0]], value))
    for name, pieces in result.items():
        pieces.sort(key=lambda piece: piece[0])
        assert all(first[0][1] == second[0][0] for first, second in pairwise(pieces))
        result[name] = np.concatenate([value for _, value in pieces])
    return result


@forms
def test_a_port_reads_every_form_from_manifest_and_file_alone(form, tmp_path):
    path = tmp_path / "t.safetensors"
    record, tensors = exported(path, form)
    manifest = json.loads(record.model_dump_json())
    by_library = load_file(path)
    assert by_library.keys() == record.tensors.keys() | set(record.padding)
    for name, one in record.tensors.items():
        assert one.offset % 64 == 0
        mapped = np.memmap(path, one.dtype, mode="r", offset=one.offset, shape=one.shape)
        np.testing.assert_array_equal(mapped, by_library[name])
        assert mapped.nbytes == one.bytes
    assert record.padding, "these sizes need it"
    assert all(len(by_library[name]) < 64 and not by_library[name].any() for name in record.padding)
    read = read_as_a_port(path, manifest)
    config, loaded = weights.load(path, weights.record_of(manifest))
    assert config == CONFIG
    assert loaded.keys() == read.keys() == tensors.keys()
    for name, array in loaded.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, read[name])
        if array.ndim == 1 or name.startswith("positions") or form.is_lossless:
            np.testing.assert_array_equal(array, tensors[name])
        elif array.size > 256:  # as many as the largest table holds
            assert not np.array_equal(array, tensors[name]), "near miss: a lossy form loses"
            assert 15 < 10 * np.log10((tensors[name] ** 2).sum() / ((tensors[name] - array) ** 2).sum()) < 80


def test_each_matrix_is_in_its_own_form(tmp_path):
    form = WeightsForm(compress="pal6", matrices="fp16", exceptions=MIXED)
    tensors = exported(tmp_path / "t", form)[0].tensors
    assert len(tensors["layers.0.self_attn.in_proj_weight.table"].shape) == 1
    assert tensors["layers.0.self_attn.in_proj_weight.table"].shape == (16,)
    assert tensors["layers.0.linear1.weight.int8"].dtype == "int8"
    assert tensors["layers.1.linear1.weight.table"].shape == (64,)
    assert tensors["layers_t.0.linear1.weight"].dtype == "float16"
    assert tensors["layers_t.0.linear1.bias"].dtype == tensors["layers.0.linear1.bias"].dtype == "float32"


def test_layouts_have_their_own_names(tmp_path):
    torch = set(exported(tmp_path / "a", WeightsForm())[0].tensors)
    split = set(exported(tmp_path / "b", WeightsForm(qkv="split"))[0].tensors)
    mlx = set(exported(tmp_path / "c", WeightsForm(layout="mlx"))[0].tensors)
    attention = "layers_t.1.cross_attn"
    assert torch == set(parameters(CONFIG))
    assert {f"{attention}.in_proj_weight", f"{attention}.in_proj_bias"} <= torch - split - mlx
    assert {f"{attention}.{one}_proj.{part}" for one in "qkv" for part in ("weight", "bias")} <= split - torch - mlx
    names = ("query_proj", "key_proj", "value_proj")  # as mlx.nn.MultiHeadAttention has them
    assert {f"{attention}.{one}.{part}" for one in names for part in ("weight", "bias")} <= mlx - torch - split
    assert f"{attention}.out_proj.weight" in torch & split & mlx


def test_records_say_where_a_tensor_comes_from(tmp_path):
    record, _ = exported(tmp_path / "t", WeightsForm(layout="mlx", compress="pal6"))
    key = record.tensors["layers.0.self_attn.key_proj.weight.indices"]
    assert (key.parameter, key.role) == ("layers.0.self_attn.key_proj.weight", "indices")
    assert (key.source, key.rows) == ("crosstransformer.layers.0.self_attn.in_proj_weight", (12, 24))
    assert (key.parameter_shape, key.shape, key.dtype) == ((12, 12), (108,), "uint8")
    assert record.tensors["layers.0.self_attn.key_proj.weight.table"].shape == (64,)
    norm = record.tensors["layers.0.norm1.weight"]
    assert (norm.rows, norm.transform, norm.dtype) == (None, "none", "float32")
    half = exported(tmp_path / "u", WeightsForm(matrices="fp16"))[0].tensors
    assert half["layers.0.linear1.weight"].transform == "rounded to float16"
    assert half["positions"].dtype == half["layers.0.gamma_1.scale"].dtype == "float32"


def test_record_obeys_the_published_schema(tmp_path):
    published = json.loads((ROOT / "docs" / "transformer.schema.json").read_text())
    assert published == weights.json_schema(), "run `make schema`"
    record, _ = exported(tmp_path / "t", WeightsForm(compress="int8"))
    jsonschema.validate(json.loads(record.model_dump_json()), published)


@forms
def test_bytes_are_deterministic(form, tmp_path):
    first, _ = exported(tmp_path / "a", form)
    second, _ = exported(tmp_path / "b", form)
    assert first == second
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_round_sizes_need_no_padding(tmp_path):
    config = Config(width=16, heads=2, layers=2, hidden=32, freq_tokens=3, time_tokens=5)
    assert exported(tmp_path / "t", WeightsForm(matrices="fp16"), config=config)[0].padding == ()


# ------------------------------------------------------------------------------------ compression


def matrix(kind, values, tmp_path):
    """One matrix through the file."""
    rows, columns = np.shape(values)
    config = replace(CONFIG, width=columns, hidden=rows, heads=1)
    tensors = tree(config) | {"layers.0.linear1.weight": np.asarray(values, np.float32)}
    path = tmp_path / kind
    record, _ = exported(path, WeightsForm(compress=kind), tensors, config)
    return weights.load(path, record)[1]["layers.0.linear1.weight"], load_file(path)


def test_integers_are_the_nearest_and_reach_the_ends(tmp_path):
    values = np.random.default_rng(1).standard_normal((30, 16)).astype(np.float32)
    values[3], values[4, 0] = 0, 1e-44  # a silent row, and one whose scale underflows
    values[4, 1:] = 0
    decoded, stored = matrix("int8", values, tmp_path)
    integers, scales = (stored[f"layers.0.linear1.weight.{role}"] for role in ("int8", "scales"))
    assert integers.min() >= -127
    assert (np.abs(integers).max(axis=1)[[0, 1, 2, 5]] == 127).all()
    assert scales[3] == scales[4] == 1
    assert (np.abs(decoded - values) <= scales[:, None] / 2 * (1 + 1e-6)).all()
    assert not decoded[3].any()


def least_squares(values, count):
    """The squared error of the best table, by dynamic programming over where the sorted values part."""
    x = np.sort(values.ravel().astype(np.float64))
    sums, squares = (np.concatenate([[0], np.cumsum(power)]) for power in (x, x**2))
    first, last = np.meshgrid(np.arange(len(x) + 1), np.arange(len(x) + 1), indexing="ij")
    held = np.maximum(last - first, 1)
    error = np.where(first < last, squares[last] - squares[first] - (sums[last] - sums[first]) ** 2 / held, np.inf)
    best = error[0]
    for _ in range(count - 1):
        best = (best[:, None] + error).min(axis=0)
    return best[-1]


HEAVY_TAILS = np.random.default_rng(2).standard_t(3, (20, 15)).astype(np.float32)


@pytest.mark.parametrize("kind", ["pal4", "pal6", "pal8"])
@pytest.mark.parametrize("values", [HEAVY_TAILS, np.round(HEAVY_TAILS, 1)], ids=["different", "repeated"])
def test_palettes_are_the_best_there_is(kind, values, tmp_path):
    decoded, stored = matrix(kind, values, tmp_path)
    table = stored["layers.0.linear1.weight.table"]
    assert (np.diff(table) >= 0).all()
    nearest = table[np.abs(values[..., None] - table).argmin(-1)]
    np.testing.assert_array_equal(np.abs(decoded - values), np.abs(nearest - values))
    if len(np.unique(values)) > len(table):
        error = ((decoded.astype(np.float64) - values) ** 2).sum()
        assert error == pytest.approx(least_squares(values, len(table)), rel=1e-5)
    else:
        np.testing.assert_array_equal(decoded, values)


@pytest.mark.parametrize("count", [4, 64])
def test_palettes_of_many_values_are_as_good_as_the_best(count):
    """Beyond some thousand values cells stand for them, though one weight lies far out."""
    values = np.append(np.random.default_rng(2).standard_t(5, 40_000), 300).astype(np.float32)
    best = kmeans1d.cluster(values.astype(np.float64), count)
    least = ((values - np.array(best.centroids)[best.clusters]) ** 2).sum()
    table = palette(values, count)
    assert ((values - table[nearest(table, values)]) ** 2).sum() <= least * 1.001


def test_few_different_values_are_kept(tmp_path):
    values = np.random.default_rng(3).choice(np.float32([-1.5, 0, 1e-30, 3.7]), (8, 16))
    assert (matrix("pal4", values, tmp_path)[0] == values).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_what_is_not_finite_is_not_compressed(bad, tmp_path):
    with pytest.raises(LoweringError, match="'layers.0.linear1.weight' cannot be compressed: it holds NaN or infinity"):
        matrix("pal4", np.full((8, 16), bad), tmp_path)


def test_what_half_precision_cannot_hold_is_refused(tmp_path):
    tensors = tree() | {"layers.0.linear1.weight": np.full((20, 12), 65_000, np.float32)}
    exported(tmp_path / "t", WeightsForm(matrices="fp16"), tensors)
    tensors["layers.0.linear1.weight"][3, 3] = 66_000
    with pytest.raises(LoweringError, match="weights of at most 65,504, found 66000.*--weights-dtype fp32"):
        exported(tmp_path / "t", WeightsForm(matrices="fp16"), tensors)
    exported(tmp_path / "t", WeightsForm(), tensors)


# --------------------------------------------------------------------------------------- distrust


def test_saved_file_that_is_not_what_was_asked_for_is_refused(tmp_path, monkeypatch):
    def write(path, tensors, file_format, real=exporting.write):
        other = {name: array + np.float32(1) if name == "norm_in.bias" else array for name, array in tensors.items()}
        return real(path, other, file_format)

    monkeypatch.setattr(exporting, "write", write)
    with pytest.raises(CheckpointError, match="'norm_in.bias' of t has another hash than in the manifest"):
        exported(tmp_path / "t")


def test_tree_of_another_configuration_is_refused(tmp_path):
    with pytest.raises(SpecError, match=r"'positions' must have shape \(7, 12\)"):
        exported(tmp_path / "t", tensors=tree(replace(CONFIG, freq_tokens=8)))


@pytest.fixture
def file(tmp_path):
    record, _ = exported(tmp_path / "t.safetensors", WeightsForm(compress="pal6"))
    return tmp_path / "t.safetensors", json.loads(record.model_dump_json())


def header_of(path):
    raw = path.read_bytes()
    length = int.from_bytes(raw[:8], "little")
    return json.loads(raw[8 : 8 + length]), raw[8 + length :]


def with_header(path, change):
    header, data = header_of(path)
    room = path.stat().st_size - len(data) - 8
    change(header)
    text = json.dumps(header, separators=(",", ":")).encode().ljust(room)
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


def span(name, start, stop):
    return lambda header: header[name].update(data_offsets=[start, stop])


TABLE, NORM = "layers.0.linear1.weight.table", "norm_in.weight"
DAMAGE = {
    "truncated": (lambda p: p.write_bytes(p.read_bytes()[:-1]), "cannot be read as a safetensors file"),
    "cut in the header": (lambda p: p.write_bytes(p.read_bytes()[:100]), "cannot be read as a safetensors file"),
    "empty": (lambda p: p.write_bytes(b""), "cannot be read as a safetensors file"),
    "more than whole": (lambda p: p.write_bytes(p.read_bytes() + b"\0" * 64), "cannot be read as a safetensors file"),
    "not there": (lambda p: p.unlink(), "cannot be read as a safetensors file"),
    "huge header": (lambda p: p.write_bytes(b"\xff" * 7 + b"\x7f" + p.read_bytes()[8:]), "cannot be read as a safetensors file"),
    "header that is no JSON": (lambda p: p.write_bytes(p.read_bytes().replace(b'{"', b"{[", 1)), "cannot be read as a safetensors file"),
    "overlap": (lambda p: with_header(p, span(NORM, 0, 48)), "cannot be read as a safetensors file"),
    "beyond the file": (lambda p: with_header(p, span(NORM, 10**9, 10**9 + 48)), "cannot be read as a safetensors file"),
    "unknown dtype": (lambda p: with_header(p, lambda h: h[NORM].update(dtype="Q7")), "cannot be read as a safetensors file"),
    "unused dtype": (lambda p: with_header(p, lambda h: h[NORM].update(dtype="I32")), f"'{NORM}' of .* type, shape"),
    "shape beyond its bytes": (lambda p: with_header(p, lambda h: h[NORM].update(shape=[2**40])), "cannot be read as a safetensors file"),
    "another shape": (lambda p: with_header(p, lambda h: h[NORM].update(shape=[3, 4])), f"'{NORM}' of .* type, shape"),
    "another version": (
        lambda p: with_header(p, lambda h: h["__metadata__"].update(format="splitter.transformer/9")),
        "'splitter.transformer/9'. Build the bundle again with this version",
    ),
    "no version": (lambda p: with_header(p, lambda h: h.pop("__metadata__")), "found None"),
    "tensor renamed": (lambda p: with_header(p, lambda h: h.update(other=h.pop(TABLE))), f"lacks 1 tensors.*'{TABLE}'"),
    "tensors moved": (lambda p: with_header(p, lambda h: h.update(extra={"dtype": "U8", "shape": [0], "data_offsets": [0, 0]})),
                      "1 tensors that nothing reads, the first 'extra'"),
    "one bit": (lambda p: flip(p, NORM), f"tensor '{NORM}' of t.safetensors has another hash"),
    "padding": (lambda p: flip(p, "norm_in.weight.padding"), "not a few zeros"),
}  # fmt: skip


def flip(path, name):
    header, data = header_of(path)
    raw = bytearray(path.read_bytes())
    raw[len(raw) - len(data) + header[name]["data_offsets"][0]] ^= 1
    path.write_bytes(raw)


@pytest.mark.parametrize(("damage", "message"), DAMAGE.values(), ids=DAMAGE)
def test_damaged_files_are_named(damage, message, file):
    path, manifest = file
    weights.load(path, weights.record_of(manifest))
    damage(path)
    with pytest.raises(CheckpointError, match=message) as caught:
        weights.load(path, weights.record_of(manifest))
    assert caught.value.fix


def altered(name, **changes):
    return lambda m: m["tensors"][name].update(changes)


WRONG = {
    "unknown version": (lambda m: m.update(format="splitter.transformer/1"), "transformer/1'. Build the bundle again"),
    "no version": (lambda m: m.pop("format"), "found None"),
    "unknown key": (lambda m: m.update(extra=1), "extra"),
    "unknown form": (lambda m: m["form"].update(compress="pal3"), "form.compress"),
    "another form": (lambda m: m["form"].update(compress="pal4"), "'layers.0.self_attn.in_proj_weight.indices' as"),
    "no record": (lambda m: m["tensors"].pop(TABLE), f"no record of 1 tensors, the first '{TABLE}'"),
    "unread record": (lambda m: m["tensors"].update(other=m["tensors"][TABLE]), "nothing reads, the first 'other'"),
    "another width": (lambda m: m["config"].update(width=24), "instead of"),
    "another depth": (lambda m: m["config"].update(layers=3), "no record of"),
    "heads that do not divide": (lambda m: m["config"].update(heads=5), "multiple of heads"),
    "no heads": (lambda m: m["config"].update(heads=0), "1…"),
    "endless layers": (lambda m: m["config"].update(layers=10**7), "more than 1024 layers"),
    "endless width": (lambda m: m["config"].update(width=10**12), "a count of the configuration lies outside"),
    "width that is no number": (lambda m: m["config"].update(width="12"), "a count of the configuration lies outside"),
    "configuration in part": (lambda m: m["config"].pop("hidden"), "the configuration has other fields than"),
    "offset out of line": (altered(NORM, offset=100), "multiple of 64"),
    "negative offset": (altered(NORM, offset=-64), "greater than or equal to 0"),
    "offset beyond the file": (altered(NORM, offset=64 * 10**9), f"'{NORM}' of .* place than in the manifest"),
    "another dtype": (altered(NORM, dtype="float16"), f"'{NORM}' as"),
    "unknown dtype": (altered(NORM, dtype="object"), "dtype"),
    "bytes that are not its size": (altered(NORM, bytes=47), "47 bytes, which is not its size"),
    "another hash": (altered(NORM, sha256="0" * 64), f"'{NORM}' of t.safetensors has another hash"),
    "padding of its own": (
        lambda m: m.update(padding=[]),
        "nothing reads, the first .*padding'",
    ),
}


@pytest.mark.parametrize(("change", "message"), WRONG.values(), ids=WRONG)
def test_wrong_manifests_are_named(change, message, file):
    path, manifest = file
    change(manifest)
    with pytest.raises(CheckpointError, match=message) as caught:
        weights.load(path, weights.record_of(manifest))
    assert caught.value.fix


def test_file_of_another_model_is_told_so(file, tmp_path):
    path, manifest = file
    exported(path, WeightsForm(compress="pal6"), config=replace(CONFIG, width=24, heads=4))
    with pytest.raises(CheckpointError, match="may be of another model"):
        weights.load(path, weights.record_of(manifest))
    exported(path, WeightsForm(compress="pal6"), tensors=tree(seed=1))
    with pytest.raises(CheckpointError, match="has another hash"):
        weights.load(path, weights.record_of(manifest))
