"""No test here asserts how fast anything is: clocks stand still unless a test moves them."""

import gc
import io
import itertools
import json
import mmap
import shutil
import sys
import time
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
import torch
from rich.console import Console

from splitter import boundary, cli, mil, profiling
from splitter.bundle.directory import Bundle
from splitter.cli import tables
from splitter.errors import EngineError, OperationError, UsageError
from splitter.graph import categories
from splitter.graph import program as programs
from splitter.mil import ops
from splitter.mil.coreml_tools import ct
from splitter.mil.graph import graph_of
from splitter.profiling import core_ml, limits, measurement, memory, timeline, work
from splitter.profiling.records import Latency, Limits, Memory
from splitter.runtime.engines import engine
from splitter.runtime.engines.jax_engine import JaxEngine
from splitter.runtime.engines.mil_engine import MilEngine
from splitter.runtime.engines.torch_engine import TorchEngine

from ..conftest import ROOT
from ..sealing import seal

MEMORY = Memory(loaded=1_000_000, running=2_000_000, process=9_000_000, how="kernel")
LIMITS = Limits(flops_per_second=1e9, bytes_per_second=1e8)
CHECK = 0.25  # seconds of the clock below
ENGINES = (("encoder", "torch"), ("encoder", "mil"), ("transformer", "jax"), ("transformer", "torch"))


@pytest.fixture
def quick(monkeypatch):
    """Without the processes that measure memory, and without measuring the machine."""
    monkeypatch.setattr(memory, "measured", lambda *asked: memory.Fresh(load_seconds=0.5, memory=MEMORY))
    monkeypatch.setattr(limits, "measured", lambda: LIMITS)


@pytest.fixture
def clock(monkeypatch):
    """One that only tests move."""
    now = SimpleNamespace(seconds=100.0)
    for module in (timeline, measurement):
        monkeypatch.setattr(module, "perf_counter", lambda: now.seconds)
    taking(monkeypatch, now, boundary, "check", [CHECK])
    return now


def taking(monkeypatch, clock, place, name, seconds):
    """Let a function take so many seconds of the clock, call by call, the last figure for all further calls."""
    inner, calls = getattr(place, name), []

    def slow(*args, **kwargs):
        calls.append(args)
        clock.seconds += seconds[min(len(calls), len(seconds)) - 1]
        return inner(*args, **kwargs)

    monkeypatch.setattr(place, name, slow)
    return calls


@pytest.fixture(scope="module")
def found(demo_path):
    """One profile, for all tests that only look at it."""
    from splitter.bundle.directory import Bundle

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(memory, "measured", lambda *asked: memory.Fresh(load_seconds=0.5, memory=MEMORY))
        patch.setattr(limits, "measured", lambda: LIMITS)
        return profiling.profile(Bundle.load(demo_path), ENGINES, runs=2)


# ------------------------------------------------------------------------------------ where time goes


def test_time_is_accounted_for_where_it_is_spent(demo_bundle, quick, clock, monkeypatch):
    """Engines, checks and what is neither, each with a figure of its own."""
    taking(monkeypatch, clock, TorchEngine, "run", [4.0])
    taking(monkeypatch, clock, MilEngine, "run", [2.0])
    taking(monkeypatch, clock, measurement._Inputs, "before_segment", [1.0])  # part of the run, of no segment
    result = profiling.profile(demo_bundle, [("decoder", "mil")], runs=1)
    tensors = len(demo_bundle.tensors)
    engines, checks = 4 * 4.0 + 2.0, CHECK * tensors
    assert [one.engines[0].latency.median for one in result.segments] == [4.0, 4.0, 4.0, 2.0, 4.0]
    assert [one.check.median for one in result.boundaries] == [CHECK] * tensors
    wall = engines + checks + 5 * 1.0
    assert result.run.wall.median == wall
    assert result.run.accounted == pytest.approx((engines + checks) / wall)
    assert result.run.checks == pytest.approx(checks / wall)


def test_warm_up_is_apart_and_counts_for_nothing(demo_bundle, quick, clock, monkeypatch):
    taking(monkeypatch, clock, TorchEngine, "run", [2.0])
    taking(monkeypatch, clock, JaxEngine, "run", [50.0, 10.0, 1.0, 2.0, 6.0])
    result = profiling.profile(demo_bundle, [("transformer", "jax")], runs=3, warmup=2)
    latency = result.segments[2].engines[0].latency
    assert latency == Latency(median=2.0, spread=2.5, runs=(1.0, 2.0, 6.0), warmup=(50.0, 10.0))
    others = 4 * 2.0 + CHECK * len(demo_bundle.tensors)
    assert result.run.wall.runs == (others + 1.0, others + 2.0, others + 6.0)
    assert Latency.of([3.0, 5.0], warmup=1) == Latency(median=5.0, spread=None, runs=(5.0,), warmup=(3.0,))


def test_shares_are_of_the_machines_limits(demo_bundle, quick, clock, monkeypatch):
    taking(monkeypatch, clock, TorchEngine, "run", [2.0])
    result = profiling.profile(demo_bundle, runs=1)
    encoder = result.segments[1]
    assert encoder.engines[0].compute_share == encoder.flops / 2.0 / 1e9
    assert encoder.engines[0].bandwidth_share == encoder.moved_bytes / 2.0 / 1e8
    skip = next(one for one in result.boundaries if one.name == "skip_freq_0")
    assert skip.bandwidth_share == skip.bytes / CHECK / 1e8


def test_limits_are_measured_before_and_after(demo_bundle, quick, clock, monkeypatch):
    """On a shared machine one of the two may be too low."""
    several = iter(
        [Limits(flops_per_second=5.0, bytes_per_second=7.0), Limits(flops_per_second=3.0, bytes_per_second=9.0)]
    )
    monkeypatch.setattr(limits, "measured", lambda: next(several))
    taking(monkeypatch, clock, TorchEngine, "run", [2.0])
    result = profiling.profile(demo_bundle, runs=1)
    assert result.limits == Limits(flops_per_second=5.0, bytes_per_second=9.0)
    assert result.segments[1].engines[0].compute_share == result.segments[1].flops / 2.0 / 5.0


def test_engines_side_by_side_take_turns_on_the_same_arrays(demo_bundle, quick, clock, monkeypatch):
    seen = []
    for kind in (TorchEngine, MilEngine, JaxEngine):

        def run(self, inputs, inner=kind.run, name=kind.name):
            seen.append((name, dict(inputs)))
            clock.seconds += 1.0
            return inner(self, inputs)

        monkeypatch.setattr(kind, "run", run)
    engines = [("encoder", "torch"), ("encoder", "mil"), ("transformer", "jax"), ("transformer", "torch")]
    result = profiling.profile(demo_bundle, engines, runs=2)
    turn = ["torch", "torch", "jax", "torch", "torch", "mil", "torch"]  # the orchestrator's five, then the others
    assert [name for name, _ in seen] == turn * 3
    for start in (0, 7, 14):
        for first, second in ((1, 5), (2, 6)):
            mine, other = seen[start + first][1], seen[start + second][1]
            assert mine.keys() == other.keys()
            assert all(np.array_equal(mine[name], other[name]) for name in mine)
    assert [[one.engine for one in segment.engines] for segment in result.segments] == [
        ["torch"], ["torch", "mil"], ["jax", "torch"], ["torch"], ["torch"],
    ]  # fmt: skip


def test_figures_of_engines_are_not_mixed_up(demo_bundle, quick, clock, monkeypatch):
    taking(monkeypatch, clock, TorchEngine, "run", [1.0])
    taking(monkeypatch, clock, MilEngine, "run", [3.0])
    result = profiling.profile(demo_bundle, ENGINES[:2], runs=1)
    assert [one.latency.median for one in result.segments[1].engines] == [1.0, 3.0]
    in_chain = 5 * 1.0 + CHECK * len(demo_bundle.tensors)
    assert result.run.wall.median == in_chain, "what runs beside the orchestrator is no part of its run"


@pytest.mark.parametrize("counts", [{"runs": 0}, {"warmup": 0}])
def test_nothing_to_count_is_refused(demo_bundle, counts):
    with pytest.raises(UsageError, match="too few runs: expected at least 1 to count and 1 to warm up"):
        profiling.profile(demo_bundle, **counts)


def test_engine_that_cannot_run_is_refused_wherever_it_stands(demo_bundle):
    with pytest.raises(EngineError, match="engine 'numpy' cannot run segment 'encoder'"):
        profiling.profile(demo_bundle, [("encoder", "torch"), ("encoder", "numpy")])


# ----------------------------------------------------------------------------------------- work


def test_operations_are_those_the_doctor_counts_in_the_packages(demo_bundle):
    for name in ("encoder", "decoder"):
        segment = demo_bundle.segment(name)
        package = mil.load(demo_bundle.path / segment.artifact.path)
        expected = sum(node.flops for node in graph_of(package.function).nodes)
        assert work.of(demo_bundle.program(segment.program)).flops == expected > 0


def test_operations_of_the_transformer(demo_bundle):
    program = demo_bundle.program(demo_bundle.segment("transformer").program)
    expected = 0
    for node in program.operators:
        shapes = [one.meta["type"].shape for one in node.all_input_nodes if one.meta["type"] is not None]
        if node.target is torch.ops.aten.linear.default:
            expected += 2 * np.prod(node.meta["type"].shape) * shapes[0][-1]
        elif node.target is torch.ops.aten.scaled_dot_product_attention.default:
            (batch, heads, queries, depth), (_, _, keys, _) = shapes[:2]
            expected += 4 * batch * heads * queries * keys * depth
    assert work.of(program).flops == expected


@pytest.mark.parametrize(("name", "transforms"), [("analysis", 2 * 134), ("synthesis", 8 * 134)])
def test_operations_of_fourier_transforms(demo_bundle, name, transforms):
    """Frames of 2048 samples, two channels in, four stems of two out; 130 frames, and two more at each end."""
    program = demo_bundle.program(demo_bundle.segment(name).program)
    assert work.of(program).flops == transforms * 2.5 * 2048 * 11


def test_bytes_are_counted_once_an_operand_and_never_for_views():
    def node(name, op, *args, shape):
        return {"name": name, "op": op, "args": list(args), "shape": shape, "dtype": "float32"}

    x, v, m = {"node": "x"}, {"node": "v"}, {"node": "m"}
    graph = {
        "format": programs.FORMAT,
        "name": "toy",
        "nodes": [
            {"name": "x", "op": "input", "target": "x", "shape": [8], "dtype": "float32"},
            node("v", "aten.view.default", x, [2, 4], shape=[2, 4]),
            node("m", "aten.mul.Tensor", v, v, shape=[2, 4]),  # reads 32, writes 32
            node("s", "aten.sum.dim_IntList", m, [1], shape=[2]),  # reads 32, writes 8
        ],
        "outputs": {"s": "s"},
    }
    toy = programs.from_json(graph, {})
    assert work.of(toy) == work.Work(flops=0, moved_bytes=64 + 40)


def test_boundaries_are_the_bundles(found, demo_bundle):
    assert [one.name for one in found.boundaries] == list(demo_bundle.tensors)
    for one in found.boundaries:
        spec = demo_bundle.tensors[one.name]
        assert (one.bytes, one.producer, one.consumers) == (spec.bytes, spec.producer, spec.consumers)
    moved = {one.name: one.moved_bytes / one.bytes for one in found.boundaries}
    assert (moved["skip_freq_0"], moved["stems"], moved["mix"]) == (3, 2, 3)
    encoder = demo_bundle.segment("encoder")
    crossing = sum(demo_bundle.tensors[name].bytes for name in (*encoder.inputs, *encoder.outputs))
    assert (found.segments[1].boundary_bytes, found.segments[1].parameters) == (crossing, encoder.parameters)


def test_limits_are_the_best_of_several_attempts(monkeypatch):
    def sequence():
        for seconds in [3.0, 1.0, 2.0, 2.0, 2.0, 8.0, 5.0, 4.0, 6.0, 6.0]:
            yield 0.0
            yield seconds

    ticks = sequence()
    monkeypatch.setattr(limits, "perf_counter", lambda: next(ticks))
    assert limits.measured(rows=8, copied=1000) == Limits(flops_per_second=2 * 8**3 / 1.0, bytes_per_second=2000 / 4.0)


# ------------------------------------------------------------------------------------- families


def test_families_of_operators(demo_bundle):
    expected = {
        "aten.conv1d.default": "convolution",
        "aten.conv_transpose2d.input": "convolution",
        "aten.linear.default": "linear",
        "aten.scaled_dot_product_attention.default": "attention",
        "aten.group_norm.default": "normalization",
        "aten.glu.default": "activation",
        "aten.add.Tensor": "elementwise",
        "aten.mean.dim": "reduction",
        "aten.permute.default": "shape",
        "aten.clone.default": "shape",
        "aten.pad.default": "tensor",
        "aten.stft.default": "fourier",
    }
    nodes = [node for one in demo_bundle.segments for node in demo_bundle.program(one.program).operators]
    of = {str(node.target): categories.of_node(node) for node in nodes}
    assert expected.items() <= of.items()
    tuples = [node for node in nodes if "getitem" in node.name]
    assert tuples
    assert {categories.of_node(node) for node in tuples} == {"shape"}  # of split
    with pytest.raises(TypeError, match="only operators have a family"):
        categories.of_node(demo_bundle.program(demo_bundle.segment("encoder").program).input_nodes[0])


def test_families_of_packages():
    kinds = ("conv", "gelu", "matmul", "scaled_dot_product_attention", "reduce_mean", "add", "reshape")
    assert [ops.record(kind, "CoreML8").family for kind in kinds] == [
        "convolution", "activation", "linear", "attention", "reduction", "elementwise", "shape",
    ]  # fmt: skip
    with pytest.raises(OperationError, match="no_such"):
        ops.record("no_such", "CoreML8")


@pytest.mark.parametrize("name", ["torch", "mil"])
def test_every_operation_is_seen_once(demo_bundle, name):
    segment = demo_bundle.segment("encoder")
    golden = demo_bundle.goldens()
    seen = []
    made = engine(name)(demo_bundle, segment, compute_units="ALL")
    assert made.run_in_steps({one: golden[one] for one in segment.inputs}, seen.append)
    if name == "torch":
        expected = [categories.of_node(node) for node in demo_bundle.program(segment.program).operators]
    else:
        package = mil.load(demo_bundle.path / segment.artifact.path)
        expected = [ops.record(one.type, "CoreML8").family for one in package.operations if one.type != "const"]
    assert seen == expected


def test_engine_that_cannot_look_inside_says_so(demo_bundle, found):
    segment = demo_bundle.segment("transformer")
    golden = demo_bundle.goldens()
    made = engine("jax")(demo_bundle, segment, compute_units="ALL")
    assert not made.run_in_steps({one: golden[one] for one in segment.inputs}, pytest.fail)
    jax, in_torch = found.segments[2].engines
    assert jax.families is None
    assert {"attention", "linear", "normalization"} <= in_torch.families.keys()
    assert "convolution" not in in_torch.families


def test_time_is_of_the_family_that_took_it(clock):
    class Stepping:
        def run_in_steps(self, inputs, done):
            for seconds, family in ((1, "linear"), (2, "shape"), (4, "linear")):
                clock.seconds += seconds
                done(family)
            return True

    assert measurement._families(Stepping(), {}) == {"linear": 5.0, "shape": 2.0}


# --------------------------------------------------------------------------------------- memory

LARGE = 64_000_000


@pytest.mark.parametrize("sample", [False, True])
def test_peak_is_seen_though_it_is_over_at_the_end(sample):
    gc.collect()
    before = memory._resident()
    with memory.PeakWatch(sample=sample) as watch:
        with mmap.mmap(-1, LARGE) as held:  # what is taken from the heap may stay in it
            for _ in range(64):
                held.write(bytes(LARGE // 64))
            time.sleep(0.05)
        time.sleep(0.05)
    assert LARGE * 0.9 < watch.bytes - before < LARGE * 1.5
    with memory.PeakWatch(sample=sample) as after:
        time.sleep(0.01)
    assert after.bytes - before < LARGE / 2, "what was before the block is none of its peak"


def test_watching_falls_back_where_the_system_forbids_it(monkeypatch, tmp_path):
    assert memory.PeakWatch().how == ("kernel" if sys.platform == "linux" else "sampled")
    monkeypatch.setattr(memory, "_RESET", tmp_path)  # a directory cannot be written to
    with memory.PeakWatch() as watch:
        pass
    assert watch.how == "sampled"
    assert watch.bytes > 0


def test_memory_of_a_segment_in_a_process_of_its_own(demo_bundle):
    fresh = memory.measured(demo_bundle, "encoder", "torch", "ALL")
    segment = demo_bundle.segment("encoder")
    assert fresh.memory.running > sum(demo_bundle.tensors[name].bytes for name in segment.outputs)
    assert fresh.memory.loaded > 4 * segment.parameters
    assert fresh.memory.process > fresh.memory.loaded + fresh.memory.running
    assert fresh.memory.running < 200e6, "neither libraries nor inputs are counted"


def test_process_that_fails_is_named(demo_bundle):
    with pytest.raises(
        EngineError, match=r"'mps' cannot run segment 'encoder' in a process of its own; got .*unknown engine 'mps'"
    ):
        memory.measured(demo_bundle, "encoder", "mps", "ALL")


# -------------------------------------------------------------------------------------- Core ML


class MLCPUComputeDevice: ...


class MLNeuralEngineComputeDevice: ...


def _operation(device, weight, blocks=()):
    return SimpleNamespace(device=device, weight=weight, blocks=[SimpleNamespace(operations=blocks)] if blocks else [])


@pytest.fixture
def core_ml_stand_in(monkeypatch):
    """What only a Mac can show is not shown here: only that its classes are asked, and their answers told."""
    asked = []

    class Plan:
        @staticmethod
        def load_from_path(path, units):
            asked.append(("plan", path, units))
            inner = _operation(MLCPUComputeDevice(), 0.25)
            body = [
                _operation(None, None),
                _operation(MLNeuralEngineComputeDevice(), 0.5, [inner]),
                _operation(MLNeuralEngineComputeDevice(), None),
            ]
            main = SimpleNamespace(block=SimpleNamespace(operations=body))
            return SimpleNamespace(
                model_structure=SimpleNamespace(program=SimpleNamespace(functions={"main": main})),
                get_compute_device_usage_for_mlprogram_operation=lambda one: (
                    one.device and SimpleNamespace(preferred_compute_device=one.device)
                ),
                get_estimated_cost_for_mlprogram_operation=lambda one: (
                    None if one.weight is None else SimpleNamespace(weight=one.weight)
                ),
            )

    ticks = itertools.cycle([10.0, 13.0, 13.5])
    monkeypatch.setattr(core_ml, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr(ct.models.utils, "compile_model", lambda *given: asked.append(("compile", *given)))
    monkeypatch.setattr(ct.models, "CompiledMLModel", lambda *given: asked.append(("load", *given)))
    monkeypatch.setattr(ct.models.compute_plan, "MLComputePlan", Plan)
    return asked


def test_core_ml_is_asked_through_its_own_classes(demo_path, core_ml_stand_in):
    found = core_ml.figures(demo_path / "encoder.mlpackage", "CPU_AND_NE")
    (_, package, compiled), *others = core_ml_stand_in
    assert package == str(demo_path / "encoder.mlpackage")
    assert compiled.endswith("encoder.mlmodelc")
    assert others == [(step, compiled, ct.ComputeUnit.CPU_AND_NE) for step in ("load", "plan")]
    assert found.model_dump() == {
        "compute_units": "CPU_AND_NE",
        "compile_seconds": 3.0,
        "load_seconds": 0.5,
        "devices": {"Neural Engine": {"operations": 2, "cost": 0.5}, "CPU": {"operations": 1, "cost": 0.25}},
    }


def test_core_ml_that_refuses_a_package_is_named(demo_path, monkeypatch):
    def refuse(*given):
        raise RuntimeError("no Mac")

    monkeypatch.setattr(ct.models.utils, "compile_model", refuse)
    with pytest.raises(EngineError, match=r"cannot compile or load encoder\.mlpackage; got no Mac"):
        core_ml.figures(demo_path / "encoder.mlpackage", "ALL")


def test_core_ml_figures_come_with_its_engine_alone(demo_bundle, quick, core_ml_stand_in, monkeypatch):
    from splitter.runtime.engines.coreml_engine import CoreMLEngine

    class Model:
        def __init__(self, path, compute_units, function_name):
            self._segment = demo_bundle.segment(path.rpartition("/")[2].removesuffix(".mlpackage"))

        def predict(self, data):
            return TorchEngine(demo_bundle, self._segment, compute_units="ALL").run(data)

    monkeypatch.setattr(CoreMLEngine, "unsupported_reason", classmethod(lambda cls, segment: None))
    monkeypatch.setattr(ct.models, "MLModel", Model)
    result = profiling.profile(demo_bundle, [("encoder", "torch"), ("encoder", "coreml")], runs=1)
    in_torch, in_core_ml = result.segments[1].engines
    assert in_torch.coreml is None
    assert in_core_ml.coreml.devices["Neural Engine"].operations == 2
    assert in_core_ml.families is None
    shown = rendered(result)
    assert "Neural Engine: 2 (50.0 %), CPU: 1 (25.0 %)" in shown
    assert "not run here" not in shown


# -------------------------------------------------------------------------- documents and tables


def rendered(profile):
    console = Console(width=160, highlight=False, record=True, file=io.StringIO())
    console.print(tables.profile_tables(profile))
    return console.export_text()


def test_document_obeys_the_published_schema_and_is_read_back(found, tmp_path):
    published = json.loads((ROOT / "docs" / "profile.schema.json").read_text())
    assert published == profiling.json_schema(), "run `make schema`"
    document = found.model_dump(mode="json")
    jsonschema.validate(document, published)
    (tmp_path / "p.json").write_text(json.dumps(document))
    assert profiling.read(tmp_path / "p.json") == found


@pytest.mark.parametrize(
    "change",
    [
        lambda document: document | {"format": "splitter.profile/2"},
        lambda document: {key: value for key, value in document.items() if key != "limits"},
        lambda document: document | {"limits": {"flops_per_second": 0.0, "bytes_per_second": 1.0}},
        lambda document: document | {"segments": [document["segments"][0] | {"name": "a\x1b[2J"}]},
        lambda document: [document],
    ],
)
def test_what_is_no_profile_is_refused(found, tmp_path, change):
    path = tmp_path / "p.json"
    path.write_text(json.dumps(change(found.model_dump(mode="json"))))
    with pytest.raises(UsageError, match=r"p\.json is no profile.*--json > FILE"):
        profiling.read(path)


def test_other_machines_are_shown_beside(found):
    mac = found.model_copy(update={"system": "macOS-15", "others": ()})
    second = found.model_copy(update={"system": "macOS-14", "others": (mac,)})
    both = profiling.merged(found, [second])
    assert [one.system for one in both.others] == ["macOS-14", "macOS-15"]
    assert all(not one.others for one in both.others)
    shown = rendered(both)
    for number, system in enumerate((found.system, "macOS-14", "macOS-15"), 1):
        assert f"[{number}] demo" in shown
        assert system in shown
        assert f"[{number}] mil" in shown
    assert "[1]" not in rendered(found)


@pytest.mark.parametrize("change", [{"checkpoint_sha256": "0" * 64}, {"samples": 1}])
def test_another_model_is_not_shown_beside(found, change):
    with pytest.raises(UsageError, match="one checkpoint and one length"):
        profiling.merged(found, [found.model_copy(update=change)])


def test_tables_show_every_segment_engine_and_boundary(found):
    shown = rendered(found)
    for one in (*found.segments, *found.boundaries):
        assert one.name in shown
    for expected in ("mil", "jax", "895.2 M", "524,960", "convolution", "attention", "2.0 MB", "not run here"):
        assert expected in shown


def test_command_prints_one_document(demo_path, found, quick, tmp_path, monkeypatch, capsys):
    (tmp_path / "mac.json").write_text(found.model_dump_json())
    arguments = ["profile", demo_path, "--runs", 1, "--engine", "encoder=torch", "--engine", "encoder=mil"]

    def run(*more):
        monkeypatch.setattr(sys, "argv", ["splitter", *map(str, [*arguments, *more])])
        with pytest.raises(SystemExit) as stopped:
            cli.main()
        assert not stopped.value.code
        return capsys.readouterr().out

    document = json.loads(run("--json", "--merge", tmp_path / "mac.json"))
    assert [one["engine"] for one in document["segments"][1]["engines"]] == ["torch", "mil"]
    assert len(document["segments"][0]["engines"][0]["latency"]["runs"]) == 1
    assert document["others"] == [found.model_dump(mode="json")]
    assert "boundary tensors and their checks" in run()


def test_bag_is_refused_by_name(tmp_path, demo_path, monkeypatch, capsys):
    shutil.copytree(demo_path, tmp_path / "a")
    digests = [Bundle.load(tmp_path / "a").manifest.digest] * 2
    weights = [[1.0] * 4] * 2
    content = {"format": "splitter.bag/2", "name": "two", "members": ["a", "a"], "digests": digests, "weights": weights}
    seal(tmp_path, content)
    monkeypatch.setattr(sys, "argv", ["splitter", "profile", str(tmp_path)])
    with pytest.raises(SystemExit):
        cli.main()
    assert "one of its members" in " ".join(capsys.readouterr().err.split())
