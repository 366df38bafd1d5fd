"""Two of anything: what is written otherwise is named, and where values part."""

import json
import shutil

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from coremltools.converters.mil.mil.types.type_mapping import np_uint4_dtype
from torch import nn

import splitter
from splitter import arrays, mil
from splitter.cli.shell import command
from splitter.errors import UsageError

from ..mil.harness import f16, f32, mb, package
from ..sealing import reseal

RANDOM = np.random.default_rng(0)
WEIGHT = RANDOM.standard_normal((64, 64)).astype(np.float32)
X = {"x": RANDOM.standard_normal((4, 64)).astype(np.float32)}


def net(weight=WEIGHT, activation="relu", epsilon=1e-3, extra=False):
    def build(x):
        hidden = mb.linear(x=x, weight=mb.const(val=weight, name="weight"), name="hidden")
        activated = getattr(mb, activation)(x=hidden, name="activated")
        if extra:
            activated = mb.square(x=activated, name="squared")
        return mb.layer_norm(x=activated, axes=[1], epsilon=np.float32(epsilon), name="normed")

    return build


@pytest.fixture
def pair(tmp_path):
    """A package of the net, and what makes another of a changed one."""
    number = iter(range(100))

    def made(**changes):
        directory = tmp_path / str(next(number))
        directory.mkdir()
        return package(net(**changes), X, directory)

    return made(), made


def only(first, second, **options):
    (found,) = splitter.compare(first, second, **options).packages
    return found.found


def test_the_same_are_the_same(pair):
    first, made = pair
    comparison = splitter.compare(first, made())
    assert comparison.identical
    assert only(first, made()).first_difference is None


def test_a_single_changed_weight(pair):
    first, made = pair
    changed = WEIGHT.copy()
    changed[5, 7] += 0.25
    second = made(weight=changed)
    found = only(first, second, inputs=X)
    ((name, written),) = [(one.first, one.written) for one in found.written]
    assert (name, written) == ("hidden", ("weight: 1 of 4,096 values differ, by up to 0.25",))
    assert found.first_difference.first == "hidden"
    assert found.first_difference.matched == "name"
    assert not only(first, second, run=False).identical
    assert only(first, second, run=False).first_difference is None


def test_a_swapped_operation(pair):
    first, made = pair
    found = only(first, made(activation="gelu"), inputs=X)
    (written,) = found.written
    assert (written.first, written.written) == ("activated", ("relu in the first, gelu in the second",))
    assert found.first_difference.first == "activated"
    (low, _), (least, _) = found.first_difference.ranges
    assert low == 0 > least
    assert found.first_below(100).first == "activated"
    assert found.first_below(0) is None


def test_a_wrong_precision(tmp_path):
    (tmp_path / "half").mkdir()
    half = package(net_in_half, X, tmp_path / "half")
    found = only(package(net(), X, tmp_path), half, inputs=X)
    assert [(one.first, one.written) for one in found.written] == [
        ("hidden", ("computes fp32 in the first, fp16 in the second",)),
        ("activated", ("computes fp32 in the first, fp16 in the second",)),
    ]
    assert {one.matched for one in found.pairs} == {"name"}
    assert len(found.only_second) == 2
    assert found.first_difference.first == "hidden"
    assert found.first_below(40) is None
    assert found.first_below(100).first == "hidden"


def net_in_half(x):
    hidden = mb.linear(x=mb.cast(x=x, dtype="fp16"), weight=WEIGHT.astype(np.float16), name="hidden_cast_fp16")
    activated = mb.relu(x=hidden, name="activated_cast_fp16")
    return mb.layer_norm(x=mb.cast(x=activated, dtype="fp32"), axes=[1], epsilon=np.float32(1e-3), name="normed")


def test_a_parameter(pair):
    first, made = pair
    ((written,),) = [one.written for one in only(first, made(epsilon=0.5), inputs=X).written]
    assert written == "epsilon: 1 of 1 values differ, by up to 0.499"


def test_equal_silence_is_no_divergence(tmp_path):
    build = lambda x: mb.log(x=mb.exp(x=mb.mul(x=x, y=np.float32(0))))  # noqa: E731
    path = package(build, X, tmp_path)
    found = only(path, path, inputs=X)
    assert (found.first_difference, found.first_below(60)) == (None, None)


def test_an_operation_more(pair):
    first, made = pair
    found = only(first, made(extra=True), inputs=X)
    assert (found.only_first, found.only_second) == ((), ("square squared",))
    assert found.first_difference.first == "normed"


def test_other_names_are_matched_by_structure(tmp_path):
    def renamed(x):
        return mb.layer_norm(x=mb.relu(x=mb.linear(x=x, weight=WEIGHT, name="a"), name="b"), axes=[1],
                             epsilon=np.float32(1e-3), name="c")  # fmt: skip

    (tmp_path / "other").mkdir()
    found = only(package(net(), X, tmp_path), package(renamed, X, tmp_path / "other"), inputs=X)
    assert [(one.first, one.second, one.matched) for one in found.pairs] == [
        ("hidden", "a", "structure"), ("activated", "b", "structure"), ("normed", "c", "structure"),
    ]  # fmt: skip
    assert found.first_difference is None


def test_a_palette_that_was_never_applied(pair):
    """coremltools#2777: the weight is divided by its rows' peaks, and stays as it is."""
    first, made = pair
    divided = WEIGHT / np.abs(WEIGHT).max(1, keepdims=True)
    ((written,),) = [one.written for one in only(first, made(weight=divided), run=False).written]
    assert written.startswith("weight: 4,096 of 4,096 values differ")
    assert written.endswith("each row is divided by its peak")
    ((written,),) = [one.written for one in only(first, made(weight=WEIGHT * np.float32(1.5)), run=False).written]
    assert not written.endswith("each row is divided by its peak")


def test_forms_of_weights(tmp_path):
    def stored(x, *, palette):
        table = np.linspace(-1, 1, 16, dtype=np.float16).reshape(1, 1, 16, 1)
        indices = np.zeros((8, 4), np.uint8).astype(np_uint4_dtype)
        weight = mb.constexpr_lut_to_dense(indices=indices, lut=table, name="w") if palette else f16(8, 4, value=-1)
        return mb.linear(x=x, weight=weight, name="hidden")

    sides = []
    for palette in (True, False):
        (tmp_path / str(palette)).mkdir()
        build = lambda x, palette=palette: stored(x, palette=palette)  # noqa: E731
        sides.append(package(build, {"x": f16(2, 4)}, tmp_path / str(palette), "iOS18"))
    found = only(*sides)
    assert found.written[0].written == ("weight: constexpr_lut_to_dense in the first, constant in the second",)
    assert found.only_first == ("constexpr_lut_to_dense w",)
    assert found.first_difference is None


class Layers(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv1d(4, 8, 3), nn.Conv1d(8, 4, 1)

    def forward(self, x):
        return self.last(torch.relu(self.conv(x)))


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """A bundle, and a copy of it in which one weight of its package is another."""
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("bundles")
    first, second = directory / "a.bundle", directory / "b.bundle"
    splitter.build(Layers(), first, inputs={"x": RANDOM.standard_normal((1, 4, 64)).astype(np.float32)})
    shutil.copytree(first, second)
    (file,) = (second / next(path.name for path in second.glob("*.mlpackage"))).rglob("weight.bin")
    raw = bytearray(file.read_bytes())
    model = mil.load(next(second.glob("*.mlpackage")))
    weights = max((one.attributes["val"] for one in model.operations if one.type == "const"
                   and isinstance(one.attributes["val"], torch.Tensor)), key=torch.Tensor.numel).numpy()  # fmt: skip
    place = bytes(raw).index(weights.tobytes())
    raw[place : place + 4] = np.float32(9).tobytes()
    file.write_bytes(raw)
    reseal(second)
    return first, second


def test_bundles_by_segment_on_their_golden_inputs(bundles):
    first, second = bundles
    assert splitter.compare(first, first).identical
    comparison = splitter.compare(first, second)
    (found,) = comparison.packages
    assert found.run_on == "golden inputs"
    ((written,),) = [one.written for one in found.found.written]
    assert written.startswith("weight: 1 of 96 values differ")
    segment = splitter.load(first).members[0].segments[0].name
    (alone,) = splitter.compare(f"{first}:{found.subject}", second).packages
    assert alone.found == found.found
    with pytest.raises(UsageError, match="has no package of segment 'nothing'"):
        splitter.compare(f"{first}:nothing", second)
    assert segment


def test_files_of_outputs_and_taps(tmp_path, pair):
    first, made = pair
    inputs = tmp_path / "in.npz"
    arrays.write(inputs, X)
    files = []
    for number, path in enumerate((first, made(activation="gelu"))):
        files.append(tmp_path / f"{number}.npz")
        run = CliRunner().invoke(
            command, ["predict", str(path), "--inputs", str(inputs), "-o", str(files[-1]), "--taps", "act*"]
        )
        assert run.exit_code == 0
    comparison = splitter.compare(*files)
    assert [value.name for value in comparison.values] == ["activated", "normed"]
    assert not comparison.identical
    assert splitter.compare(files[0], files[0]).identical
    computed = splitter.compare(files[0], first, inputs=inputs)
    assert [(value.name, value.parity.max_abs) for value in computed.values] == [("normed", 0.0)]
    assert computed.notes == ("arrays of the first alone: activated",)


def test_a_tap_that_is_none(pair):
    with pytest.raises(UsageError, match=r"computes no value 'hiden'.*Near it: hidden"):
        splitter.predict(pair[0], X, taps=["hiden"])


def test_on_the_command_line(pair):
    first, made = pair
    second = made(activation="gelu")
    run = CliRunner().invoke(command, ["compare", str(first), str(second)])
    assert run.exit_code == 1
    assert "relu in the first, gelu in the second" in run.output
    assert "first difference: relu activated" in run.output
    run = CliRunner().invoke(command, ["compare", str(first), str(second), "--json"])
    document = json.loads(run.stdout)
    assert document["packages"][0]["first_difference"]["first"] == "activated"
    assert CliRunner().invoke(command, ["compare", str(first), str(first)]).exit_code == 0


def test_nothing_in_common(tmp_path):
    arrays.write(tmp_path / "a.npz", {"a": f32(2)})
    arrays.write(tmp_path / "b.npz", {"b": f32(2)})
    with pytest.raises(UsageError, match="nothing in common"):
        splitter.compare(tmp_path / "a.npz", tmp_path / "b.npz")


class Net(nn.Module):
    def __init__(self, slope=0.0):
        super().__init__()
        self.slope = slope
        torch.manual_seed(0)
        self.first, self.second = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x):
        hidden = self.first(x)
        return self.second(hidden.relu() if not self.slope else nn.functional.leaky_relu(hidden, self.slope))


@pytest.fixture(scope="module")
def of_net(tmp_path_factory):
    """A bundle of the net, one package between the host's parts."""
    path = tmp_path_factory.mktemp("net") / "net.bundle"
    splitter.build(Net().eval(), path, inputs={"x": np.ones((3, 8), np.float32)}, reference=False)
    return next(path.glob("*.mlpackage"))


def test_a_module_and_its_package_are_walked_by_the_names_of_the_graph(of_net):
    found = splitter.compare(Net().eval(), of_net)
    (walked,) = found.packages
    assert [pair.type for pair in walked.found.pairs] == ["linear.default", "relu.default"], (
        "the last has the output's name"
    )
    assert walked.found.first_below(60) is None
    (value,) = found.values
    assert value.parity.snr_db > 100
    other = splitter.compare(of_net, Net(slope=0.5).eval())
    assert other.values[0].parity.snr_db < 60
    assert [pair.first for pair in other.packages[0].found.pairs] == ["linear"], "another operation behind it"
    changed = Net().eval()
    with torch.no_grad():
        changed.first.bias[2] += 1
    assert splitter.compare(changed, of_net).packages[0].found.first_below(60).first == "linear"


def test_modules_are_compared_on_given_inputs(tmp_path):
    inputs = {"x": RANDOM.standard_normal((3, 8)).astype(np.float32)}
    first, second = Net().eval(), Net().eval()
    assert splitter.compare(first, second, inputs=inputs).identical
    with torch.no_grad():
        second.second.bias[2] += 0.1
    found = splitter.compare(first, second, inputs=inputs)
    assert not found.identical
    assert found.packages[0].found.first_difference.first == "linear_1"
    with pytest.raises(UsageError, match="needs inputs"):
        splitter.compare(first, second)
    np.savez(tmp_path / "outputs.npz", result=first(torch.from_numpy(inputs["x"])).detach().numpy())
    assert splitter.compare(first, tmp_path / "outputs.npz", inputs=inputs).identical
