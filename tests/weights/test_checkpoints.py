import hashlib
import json
import os
import pickle
import zipfile
from fractions import Fraction
from importlib import resources

import huggingface_hub
import pytest
import torch
from demucs.htdemucs import HTDemucs
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from splitter_weights import checkpoints

from splitter.errors import CheckpointError, UsageError

DEMO = resources.files("splitter_weights.demo") / "demo.safetensors"


@pytest.fixture(scope="module")
def parts():
    """Tensors and metadata of the demo checkpoint, to make broken ones from."""
    with safe_open(str(DEMO), framework="pt") as file:
        metadata = file.metadata()
    return load_file(str(DEMO)), metadata


def written(tmp_path, parts, **metadata):
    tensors, known = parts
    path = tmp_path / "model.safetensors"
    save_file(tensors, path, {k: v for k, v in {**known, **metadata}.items() if v is not None})
    return path


def with_kwargs(parts, **kwargs):
    return json.dumps({**json.loads(parts[1]["kwargs"]), **kwargs})


@pytest.fixture
def package(demo_model):
    """What demucs puts into a ``.th``."""
    args, kwargs = demo_model._init_args_kwargs
    return {
        "klass": HTDemucs,
        "args": args,
        "kwargs": dict(kwargs),
        "state": demo_model.state_dict(),
        "training_args": {},
    }


@pytest.mark.parametrize(
    ("file", "known", "name"),
    [
        ("955717e8.safetensors", None, "htdemucs"),
        ("955717e8.safetensors", "0" * 64, "955717e8"),  # another file than the released one
        ("955717e8-{start}.safetensors", None, "htdemucs"),
        ("955717e8-00000000.safetensors", None, "955717e8-00000000"),
        ("f7e0c4bc.safetensors", None, "f7e0c4bc"),  # one of the four of a bag
        ("mine.safetensors", None, "mine"),
    ],
)
def test_a_released_checkpoint_is_known_by_its_file_name(tmp_path, parts, monkeypatch, file, known, name):
    path = written(tmp_path, parts)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    released = checkpoints.RELEASED | {"htdemucs": {"955717e8": known or digest}}
    monkeypatch.setattr(checkpoints, "RELEASED", released)
    bag = checkpoints.load(path.rename(tmp_path / file.format(start=digest[:8])))
    assert (bag.name, bag.members[0].name) == (name, name)


def test_demo_is_an_unmodified_htdemucs_with_all_parts():
    bag = checkpoints.load("demo")
    model = bag.members[0].model
    assert type(model) is HTDemucs
    assert len(model.crosstransformer.layers) == 5
    assert hasattr(model, "channel_upsampler")
    assert 1 <= float(model.segment) <= 2
    assert DEMO.stat().st_size <= 2_000_000
    assert bag.members[0].arguments["segment"] == "3/2"


def test_th_gives_the_same_model(tmp_path, package, demo_model):
    torch.save(package, tmp_path / "demo.th")
    (member,) = checkpoints.load(tmp_path / "demo.th").members
    assert member.name == "demo"
    assert all(torch.equal(value, member.model.state_dict()[key]) for key, value in demo_model.state_dict().items())
    assert member.model.segment == Fraction(3, 2)
    assert not member.model.training


def test_named_bag_comes_through_the_hub_and_is_inspected(tmp_path, parts, monkeypatch):
    """The hub itself cannot be reached in a test; everything after it is the real code."""
    asked = []
    for signature in ("f7e0c4bc", "d12395a8", "92cfc3b6", "04573f0d"):
        save_file(parts[0], tmp_path / f"{signature}.safetensors", parts[1])
    (tmp_path / "htdemucs_ft.yaml").write_text(
        "models: ['f7e0c4bc', 'd12395a8', '92cfc3b6', '04573f0d']\n"
        "weights: [[1., 0., 0., 0.], [0., 1., 0., 0.], [0., 0., 1., 0.], [0., 0., 0., 1.]]"
    )

    def download(repository, file, revision):
        asked.append((repository, file))
        return str(tmp_path / file)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    bag = checkpoints.load("htdemucs_ft")
    assert asked[0] == ("adefossez/HTDemucs-ft", "htdemucs_ft.yaml")
    assert [member.name for member in bag.members] == ["f7e0c4bc", "d12395a8", "92cfc3b6", "04573f0d"]
    assert bag.weights == ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1))

    path = written(tmp_path, parts, klass="os.system")
    path.rename(tmp_path / "d12395a8.safetensors")
    with pytest.raises(CheckpointError, match=r"os\.system"):
        checkpoints.load("htdemucs_ft")


def test_bag_of_one_takes_the_bags_name(tmp_path, parts):
    save_file(parts[0], tmp_path / "955717e8.safetensors", parts[1])
    (tmp_path / "htdemucs.yaml").write_text("models: ['955717e8']")
    assert [member.name for member in checkpoints.load(tmp_path / "htdemucs.yaml").members] == ["htdemucs"]


def test_unreachable_hub_is_one_message(monkeypatch):
    def download(repository, file, revision):
        raise OSError("no route\nand a long story")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    with pytest.raises(CheckpointError, match=r"OSError: no route\. Connect to the network"):
        checkpoints.load("htdemucs_6s")


def test_random_weights_are_seeded():
    first, again, other = (checkpoints.load("htdemucs_6s", random_init=seed).members[0] for seed in (3, 3, 4))
    key = "encoder.0.conv.weight"
    assert torch.equal(first.model.state_dict()[key], again.model.state_dict()[key])
    assert not torch.equal(first.model.state_dict()[key], other.model.state_dict()[key])
    assert (first.random_init, first.sha256) == (3, None)
    assert first.model.sources == ["drums", "bass", "other", "vocals", "guitar", "piano"]
    assert sum(p.numel() for p in first.model.parameters()) == 27_414_996


def test_random_weights_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    checkpoints.load("htdemucs_6s", random_init=0)
    assert torch.equal(torch.rand(1), expected)


@pytest.fixture
def tripwire(tmp_path, monkeypatch):
    """A directory that exists if code of the file's choosing was run."""
    monkeypatch.chdir(tmp_path)
    yield
    assert not (tmp_path / "pwned").exists()


METADATA = {
    "class that is a command": ({"klass": "os.mkdir", "args": '["pwned"]', "kwargs": "{}"}, r"os\.mkdir"),
    "class of another module": ({"klass": "demucs.transformer.CrossTransformerEncoder"}, "does not know"),
    "no class": ({"klass": None}, "no metadata of demucs; got no klass"),
    "packed state with a class": ({"structure": '{"_class": "os.system"}'}, "is quantised"),
    "arguments that are no JSON": ({"kwargs": "{"}, "kwargs in model.safetensors cannot be read as JSON"),
    "positional arguments": ({"args": "[1, 2]"}, "arguments without their names"),
}


@pytest.mark.parametrize(("metadata", "message"), METADATA.values(), ids=METADATA)
def test_hostile_metadata_is_refused(tmp_path, parts, metadata, message, tripwire):
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(written(tmp_path, parts, **metadata))


ARGUMENTS = {
    "unknown argument": ({"hook": "os.system"}, "hook"),
    "number that is text": ({"channels": "8"}, "channels"),
    "absurd size": ({"channels": 10**9}, "channels"),
    "size the file does not hold": ({"channels": 2048}, "that differ"),
    "fraction that would fill the memory": (
        {"segment": {"_type": "fraction", "numerator": 1, "denominator": 10**30}},
        "segment",
    ),
    "negative segment": ({"segment": -1.0}, "segment"),
    "not a number": ({"freq_emb": float("nan")}, "kwargs in model.safetensors cannot be read"),
    "attention that needs other packages": ({"t_sparse_self_attn": True}, "t_sparse_self_attn"),
    "shift that is random": ({"t_sin_random_shift": 3}, "t_sin_random_shift"),
    "source that is a path": ({"sources": ["../../x", "b", "c", "d"]}, "sources"),
}


@pytest.mark.parametrize(("kwargs", "message"), ARGUMENTS.values(), ids=ARGUMENTS)
def test_arguments_beyond_the_schema_are_named(tmp_path, parts, kwargs, message):
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(written(tmp_path, parts, kwargs=with_kwargs(parts, **kwargs)))


class _Command:
    def __reduce__(self):
        return os.mkdir, ("pwned",)


class _Construct:
    """A pickle that calls the allowed class itself."""

    def __reduce__(self):
        return HTDemucs, (["a"],)


class _HugeFraction:
    def __reduce__(self):
        return Fraction, ("1e999999999",)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"state": _Command()}, "no tensors by name; got a Call"),
        ({"klass": os.mkdir}, r"posix\.mkdir"),
        ({"klass": _Construct()}, "does more than name its class"),
        ({"kwargs": {"segment": _HugeFraction()}}, "segment"),
        ({"klass": dict}, "dict"),
        ({"state": {"quantized": True}}, "something else than a plain tensor"),
    ],
)
def test_hostile_th_is_refused(tmp_path, package, change, message, tripwire):
    with zipfile.ZipFile(tmp_path / "x.th", "w"):
        pass
    torch.save({**package, **change}, tmp_path / "x.th", pickle_module=pickle)
    with pytest.raises(CheckpointError, match=message):
        checkpoints.load(tmp_path / "x.th")


def test_old_style_pickle_is_refused(tmp_path, tripwire):
    (tmp_path / "x.th").write_bytes(pickle.dumps(_Command()))
    with pytest.raises(CheckpointError, match="no archive of torch.save"):
        checkpoints.load(tmp_path / "x.th")


@pytest.mark.parametrize("suffix", [".th", ".safetensors", ".yaml"])
@pytest.mark.parametrize("content", [b"", b"garbage", b"\xff" * 64])
def test_damaged_files_are_named(tmp_path, suffix, content):
    path = tmp_path / f"x{suffix}"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=path.name):
        checkpoints.load(path)


def test_truncated_checkpoint_is_named(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(DEMO.read_bytes()[:100_000])
    with pytest.raises(CheckpointError, match="is damaged"):
        checkpoints.load(path)


def test_missing_and_unknown_models_are_told_apart(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.safetensors"):
        checkpoints.load(tmp_path / "none.safetensors")
    with pytest.raises(UsageError, match="Names are demo, htdemucs, htdemucs_ft, htdemucs_6s"):
        checkpoints.load("htdemuxx")
    with pytest.raises(UsageError, match="there is no configuration .* for random weights"):
        checkpoints.load("demo", random_init=1)


def test_bag_with_wrong_weights_is_named(tmp_path, parts):
    save_file(parts[0], tmp_path / "a.safetensors", parts[1])
    (tmp_path / "bag.yaml").write_text("models: [a]\nweights: [[1., 0.]]")
    with pytest.raises(CheckpointError, match="does not give each member a weight per stem"):
        checkpoints.load(tmp_path / "bag.yaml")
    (tmp_path / "bag.yaml").write_text("models: ['../../etc/passwd']")
    with pytest.raises(CheckpointError, match="does not list the members"):
        checkpoints.load(tmp_path / "bag.yaml")


@pytest.mark.parametrize(
    ("stem", "name"), [("my model?", "my model_"), ("..", "__"), ("a\x1b[2J", "a_[2J"), ("NUL", "_NUL")]
)
def test_a_model_is_named_readably_after_its_file(tmp_path, stem, name):
    path = tmp_path / f"{stem}.safetensors"
    path.write_bytes(DEMO.read_bytes())
    bag = checkpoints.load(path)
    assert (bag.name, bag.members[0].name) == (name, name)


def test_a_file_whose_name_is_too_long_for_a_model_is_refused(tmp_path):
    path = tmp_path / f"{'x' * 201}.safetensors"
    path.write_bytes(DEMO.read_bytes())
    with pytest.raises(CheckpointError, match="cannot be the name of a model: it has 201 bytes, more than 200"):
        checkpoints.load(path)
