import random
import subprocess
import sys

import pytest
import torch
from demucs.hdemucs import HDemucs
from demucs.htdemucs import HTDemucs

from splitter.graph import inference, operators, shape_rules
from splitter.graph.capture import capture
from splitter.graph.shapes import DTYPES, Constant, TensorType
from splitter.models.demucs import DemucsFamily

from ..toys import Duo, Hybrid

STEMS = ["drums", "bass", "other", "vocals", "guitar", "piano"]
SMALL = {"channels": 8, "nfft": 2048, "segment": 1, "samplerate": 8000}


def small(count, **options):
    return HTDemucs(sources=STEMS[:count], t_layers=2, t_heads=2, depth=4, **SMALL, **options)


FAMILIES = {
    "four stems": lambda: (small(4, bottom_channels=8), 8000),
    "six stems": lambda: (small(6), 8000),
    "version 3, recurrent": lambda: (HDemucs(sources=["a", "b"], channels=4, nfft=1024, segment=2), 22_050),
    "hybrid": lambda: (Hybrid(), 64),
    "duo": lambda: (Duo(), 64),
}


@pytest.fixture(scope="module", params=FAMILIES)
def captured(request):
    torch.manual_seed(0)
    model, samples = FAMILIES[request.param]()
    return capture(model.eval(), {"mix": torch.randn(1, 2, samples)}, ("stems",), DemucsFamily().patches())


def test_everything_that_is_captured_is_listed(captured):
    used = {str(node.target) for node in captured.operators if isinstance(node.target, torch._ops.OpOverload)}
    assert used
    assert used <= operators.ALLOWED, sorted(used - operators.ALLOWED)


@pytest.mark.parametrize("name", sorted(operators.ALLOWED))
def test_listed_operator_is_functional(name):
    """It exists, writes to no argument, draws nothing at random unless told to train, and is no unchecked kernel."""
    operator = operators.resolve(name)
    schema = operator._schema
    assert str(operator) == name
    assert not schema.is_mutable
    assert not any(argument.is_out for argument in schema.arguments)
    assert not any(word in name for word in ("unsafe", "native", "sparse", "quantize", "mkldnn", "as_strided", "empty"))
    assert all(str(returned.type) in ("Tensor", "List[Tensor]") for returned in schema.returns)
    if torch.Tag.nondeterministic_seeded in operator.tags:
        assert {"train", "dropout_p"} & {argument.name for argument in schema.arguments}
    assert torch.Tag.data_dependent_output not in operator.tags
    assert torch.Tag.dynamic_output_shape not in operator.tags or name == "aten.index.Tensor"  # not with integers


def test_other_operators_are_not_resolved():
    with pytest.raises(KeyError, match=r"aten\.as_strided\.default"):
        operators.resolve("aten.as_strided.default")


def varied(argument, rng):
    """An argument like another: one number of it is changed."""
    if isinstance(argument, TensorType):
        shape = list(argument.shape)
        if shape and rng.random() < 0.8:
            shape[rng.randrange(len(shape))] = rng.choice((0, 1, 2, 3, 4, 8, *shape))
        elif rng.random() < 0.5:
            shape.insert(rng.randrange(len(shape) + 1), rng.choice((1, 2)))
        elif shape:
            del shape[rng.randrange(len(shape))]
        dtype = argument.dtype if rng.random() < 0.8 else rng.choice(list(DTYPES))
        return TensorType(tuple(shape), dtype)
    if isinstance(argument, tuple) and argument:
        at = rng.randrange(len(argument))
        if rng.random() < 0.2:
            return argument[:at] + argument[at + 1 :]
        return (*argument[:at], varied(argument[at], rng), *argument[at + 1 :])
    if isinstance(argument, Constant):
        if argument.kind is int:
            return Constant(int, min(argument.value + rng.choice((-2, -1, 1, 2, -argument.value)), 2**63 - 1))
        if argument.kind is bool:
            return Constant(bool, not argument.value)
        if argument.kind is float:
            return Constant(float, rng.choice((0.0, 1.0, 2.5)))
    return argument


def outcome(infer, *arguments):
    try:
        return infer(*arguments)
    except Exception:
        return None


def test_rules_say_what_pytorch_says(captured):
    """On the calls of every family and on calls a little off: the rules are fast, PyTorch's inference decides."""
    calls = {}
    from splitter.graph import admission

    for node in captured.operators:
        known = {operand: operand.meta["type"] for operand in node.all_input_nodes}
        if isinstance(node.target, torch._ops.OpOverload):
            calls[node.target, tuple(admission._bound(node, known).items())] = None
    rng = random.Random(0)
    ruled, differing = 0, []
    for target, arguments in calls:
        rule = shape_rules.RULES.get(str(target))
        if rule is None or str(target) == "aten.istft.default":  # PyTorch infers none
            continue
        for attempt in range(8):
            values = dict(arguments)
            for _ in range(min(attempt, 2)):
                name = rng.choice([name for name in values if name != "pin_memory"])  # refused before
                values[name] = varied(values[name], rng)
            if (kind := outcome(rule, values)) is not None:
                ruled += 1
                if outcome(inference.by_torch, target, values) != kind:
                    differing.append((str(target), values, kind))
    assert ruled > 50
    assert not differing, f"{len(differing)}: {differing[:3]}"


@pytest.mark.parametrize("hop", [16, 25, 64])
@pytest.mark.parametrize("samples", [1, 200, 400])
def test_inverse_transform_has_the_length_it_is_given(hop, samples):
    frames = 1 + 400 // hop
    values = {
        "self": TensorType((2, 33, frames), "complex64"),
        "n_fft": Constant(int, 64),
        "hop_length": Constant(int, hop),
        "win_length": Constant(int, 64),
        "window": TensorType((64,), "float32"),
        "center": Constant(bool, True),
        "length": Constant(int, samples),
    }
    spectrum = torch.randn(2, 33, frames, dtype=torch.complex64)
    signal = torch.istft(spectrum, 64, hop, 64, torch.ones(64), length=samples)
    assert shape_rules._signal(values) == TensorType.of(signal)


INDEXING = ("embedding", "gather", "index", "index_select", "index_put", "index_add", "index_copy", "scatter", "scatter_add")  # fmt: skip
_WITH_INDICES = """
import sys, torch
from splitter.graph import operators
table, source, shape = torch.rand(ROWS, 64), torch.rand(ROWS, 64), (ROWS, 64)
for wrong in (ROWS, ROWS + 1, 2**40, -ROWS - 1, -(2**40), 2**62, -(2**63)):
    for place in (0, ROWS - 1):
        one = torch.zeros(ROWS, dtype=torch.int64); one[place] = wrong
        many = one[:, None].expand(shape).contiguous()
        calls = {
            "embedding.default": (table, one), "gather.default": (table, 0, many), "index.Tensor": (table, [one]),
            "index_select.default": (table, 0, one), "index_put.default": (table, [one], source),
            "index_add.default": (table, 0, one, source), "index_copy.default": (table, 0, one, source),
            "scatter.src": (table, 0, many, source), "scatter.value": (table, 0, many, 1.0),
            "scatter_add.default": (table, 0, many, source),
        }
        for name, arguments in calls.items():
            try:
                operators.resolve("aten." + name)(*arguments)
            except (IndexError, RuntimeError):
                continue
            sys.exit(f"{name} took the index {wrong} at {place} of {ROWS} rows")
print(len(calls))
"""


@pytest.mark.parametrize("rows", [3, 5000])  # by one thread, by several
def test_indices_out_of_range_raise(rows):
    """In a child: where a kernel followed one, that may be the end of the process."""
    code = _WITH_INDICES.replace("ROWS", str(rows))
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr[-500:] or ended.returncode
    listed = [name for name in operators.ALLOWED if name.split(".")[1] in INDEXING]
    assert ended.stdout.split()[-1] == str(len(listed))


@pytest.mark.slow
def test_calls_at_random_end():
    """What admission lets through computes what was inferred or raises; see `hostile_calls`."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.graph.hostile_calls", "0", "12"], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr[-500:]
    assert not ended.stdout, ended.stdout
