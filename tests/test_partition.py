from fractions import Fraction

import pytest
import torch
from demucs.hdemucs import HDemucs
from splitter_weights import checkpoints
from torch import nn

from splitter import models
from splitter.errors import PartitionError
from splitter.graph.capture import capture
from splitter.graph.patches import without_fused_attention
from splitter.models.demucs import DemucsFamily
from splitter.partition import partition, run
from splitter.partition import within as partition_within
from splitter.plan import schema as plans
from splitter.plan.schema import Plan

from .toys import HYBRID_PLAN, Hybrid


def cut(model, mix, plan):
    whole = capture(model.eval(), {"mix": mix}, plan.outputs, DemucsFamily().patches())
    return whole, partition(whole, plan)


def specs(parts):
    return {spec.name: (spec.shape, spec.producer, spec.consumers) for spec in parts.tensors}


@pytest.fixture(scope="module")
def hybrid():
    return cut(Hybrid(), torch.randn(1, 2, 64), HYBRID_PLAN)


def test_segments_in_order_equal_the_model_bit_for_bit(hybrid):
    _, parts = hybrid
    mix = torch.randn(1, 2, 64)
    assert torch.equal(run(parts, {"mix": mix})["restored"], Hybrid().eval()(mix))


def test_boundaries_of_another_hybrid_follow_its_plan(hybrid):
    """A plan for another model is data: no code knows this one."""
    whole, parts = hybrid
    assert specs(parts) == {
        "mix": ((1, 2, 64), "input", ("analysis",)),
        "waveform_mean": ((1, 1, 1), "analysis", ("synthesis",)),
        "waveform_std": ((1, 1, 1), "analysis", ("synthesis",)),
        "waveform": ((1, 2, 64), "analysis", ("encoder",)),
        "down": ((1, 8, 16), "encoder", ("transformer", "decoder")),
        "mix_norm2": ((1, 16, 8), "transformer", ("decoder",)),
        "up": ((1, 2, 64), "decoder", ("synthesis",)),
        "restored": ((1, 2, 64), "synthesis", ("output",)),
    }
    assert all(parts.nodes[name] in {node.name for node in whole.graph.nodes} for name in parts.nodes)


def test_constants_go_with_their_reader_and_cross_no_boundary(hybrid):
    _, parts = hybrid
    by_name = {segment.name: segment for segment in parts.segments}
    assert any("linspace" in str(node.target) for node in by_name["transformer"].program.operators)
    assert {key for s in parts.segments for key in s.program.weights} == {key for key, _ in Hybrid().named_parameters()}


def test_every_operator_is_in_exactly_one_segment_or_constant(hybrid):
    whole, parts = hybrid
    placed = [node.name for segment in parts.segments for node in segment.program.operators]
    assert set(placed) == {node.name for node in whole.operators}
    assert len(placed) == len(set(placed))  # this model shares no constant between segments


def test_exact_stage_holds_its_module_and_nothing_else():
    class Neighbours(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, mix):
            return self.b(self.a(mix).neg().tanh()).neg()

    def plan(exact):
        stages = [
            {"name": "one", "target": "graph", "modules": ["a"]},
            {"name": "two", "target": "graph", "modules": ["b"], "exact": exact},
            {"name": "rest", "target": "graph"},
        ]
        return plans.Plan.model_validate({"family": "toy", "outputs": ["y"], "stages": stages})

    def operators(exact):
        _, parts = cut(Neighbours(), torch.ones(1, 4), plan(exact))
        return [[str(n.target).split(".")[1] for n in s.program.operators] for s in parts.segments]

    assert operators(exact=False) == [["linear"], ["neg", "tanh", "linear"], ["neg"]]
    assert operators(exact=True) == [["linear", "neg", "tanh"], ["linear"], ["neg"]]


def test_data_flowing_back_is_refused():
    stages = [stage.model_dump() for stage in HYBRID_PLAN.stages]
    stages[1]["modules"], stages[3]["modules"] = stages[3]["modules"], stages[1]["modules"]
    with pytest.raises(PartitionError, match="is read by .* of the earlier stage"):
        cut(Hybrid(), torch.randn(1, 2, 64), plans.changed(HYBRID_PLAN, stages=stages))


def test_stage_without_nodes_is_refused():
    stages = [stage.model_dump() for stage in HYBRID_PLAN.stages]
    stages[2]["modules"] = ["crosstransformer"]
    with pytest.raises(
        PartitionError,
        match=r"'transformer' names the module 'crosstransformer', and no node .* There are down, mix, up\.",
    ):
        cut(Hybrid(), torch.randn(1, 2, 64), plans.changed(HYBRID_PLAN, stages=stages))


def test_two_tensors_of_one_name_are_refused():
    rules = [{"name": "same", "producer": "analysis"}]
    with pytest.raises(PartitionError, match="several boundary tensors have the name 'same'"):
        cut(Hybrid(), torch.randn(1, 2, 64), plans.changed(HYBRID_PLAN, tensors=rules))


@pytest.mark.slow
def test_hdemucs_v3_needs_only_its_plan():
    """Hybrid Demucs: no transformer, recurrent layers, the branches merge."""
    torch.manual_seed(0)
    model = HDemucs(sources=["a", "b"], channels=4, nfft=1024, segment=2).eval()
    mix = torch.randn(1, 2, 22_050)
    _, parts = cut(model, mix, models.presets()["hdemucs"])
    with torch.no_grad():  # with gradients PyTorch runs its recurrent layers by another kernel
        assert torch.equal(run(parts, {"mix": mix})["stems"], model(mix))
    assert [segment.name for segment in parts.segments] == ["analysis", "encoder", "decoder", "synthesis"]
    skips = [f"skip_freq_{i}" for i in range(4)] + [f"skip_time_{i}" for i in range(3)]
    assert {spec.name for spec in parts.tensors} == {
        "mix",
        *("spectrogram", "spectrogram_mean", "spectrogram_std", "waveform", "waveform_mean", "waveform_std"),
        *(*skips, "skip_merged_0", "skip_merged_1"),
        *("stem_spectrograms", "stem_waveforms", "stems"),
    }


@pytest.mark.slow
def test_htdemucs_6s_has_the_published_boundaries():
    """Full-size model with seeded weights; the table is DESIGN's, measured on the released one."""
    model = checkpoints.load("htdemucs_6s", random_init=0).members[0].model
    assert model.segment == Fraction(39, 5)
    mix = torch.randn(1, 2, 343_980, generator=torch.Generator().manual_seed(0))
    _, parts = cut(model, mix, DemucsFamily().prepared(model, models.presets()["htdemucs"], None))
    assert specs(parts) == {
        "mix": ((1, 2, 343_980), "input", ("analysis",)),
        "spectrogram": ((1, 4, 2048, 336), "analysis", ("encoder",)),
        "waveform": ((1, 2, 343_980), "analysis", ("encoder",)),
        "spectrogram_mean": ((1, 1, 1, 1), "analysis", ("synthesis",)),
        "spectrogram_std": ((1, 1, 1, 1), "analysis", ("synthesis",)),
        "waveform_mean": ((1, 1, 1), "analysis", ("synthesis",)),
        "waveform_std": ((1, 1, 1), "analysis", ("synthesis",)),
        "freq_encoded": ((1, 384, 8, 336), "encoder", ("transformer", "decoder")),
        "time_encoded": ((1, 384, 1344), "encoder", ("transformer", "decoder")),
        "skip_freq_0": ((1, 48, 512, 336), "encoder", ("decoder",)),
        "skip_freq_1": ((1, 96, 128, 336), "encoder", ("decoder",)),
        "skip_freq_2": ((1, 192, 32, 336), "encoder", ("decoder",)),
        "skip_time_0": ((1, 48, 85_995), "encoder", ("decoder",)),
        "skip_time_1": ((1, 96, 21_499), "encoder", ("decoder",)),
        "skip_time_2": ((1, 192, 5375), "encoder", ("decoder",)),
        "freq_transformed": ((1, 384, 8, 336), "transformer", ("decoder",)),
        "time_transformed": ((1, 384, 1344), "transformer", ("decoder",)),
        "stem_spectrograms": ((1, 24, 2048, 336), "decoder", ("synthesis",)),
        "stem_waveforms": ((1, 12, 343_980), "decoder", ("synthesis",)),
        "stems": ((1, 6, 2, 343_980), "synthesis", ("output",)),
    }
    sizes = {spec.name: spec.bytes for spec in parts.tensors}
    assert sizes["skip_freq_0"] == 33_030_144
    assert sizes["stem_spectrograms"] == 66_060_288
    with torch.no_grad(), without_fused_attention():
        expected = model(mix)
    assert torch.equal(run(parts, {"mix": mix})["stems"], expected)


def test_patterns_name_modules_part_by_part():
    assert partition_within("blocks.0.attn.query", "blocks.*.attn")
    assert partition_within("blocks.0.attn", "blocks.[0-3].at*")
    assert not partition_within("blocks.0", "blocks.*.attn")
    assert not partition_within("blocks.0.mlp.attn", "blocks.*.attn")
    assert not partition_within("up", "u")


def test_a_pattern_places_nodes_and_a_name_beside_it_counts_more():
    model, x = nn.Sequential(*(nn.Linear(4, 4) for _ in range(4))), torch.randn(1, 4)
    stages = [
        {"name": "one", "target": "graph", "modules": ["[0-3]"]},
        {"name": "two", "target": "graph", "modules": ["3"]},
    ]
    plan = Plan.model_validate({"family": "toy", "outputs": ["y"], "stages": stages})
    whole = capture(model.eval(), {"input": x}, plan.outputs)
    parts = partition(whole, plan)
    assert [len(segment.program.operators) for segment in parts.segments] == [3, 1]
    with pytest.raises(PartitionError, match=r"names the module '4', and no node .* There are 0, 1, 2, 3\."):
        partition(whole, plans.changed(plan, stages=[stages[0], stages[1] | {"modules": ["4"]}]))


def test_a_misspelt_module_brings_the_nearest_names():
    stages = [stage.model_dump() for stage in HYBRID_PLAN.stages]
    stages[2]["modules"] = ["mix.norm3"]
    with pytest.raises(PartitionError, match=r"no node of the graph lies under it\. The nearest: mix\.norm[12]"):
        cut(Hybrid(), torch.randn(1, 2, 64), plans.changed(HYBRID_PLAN, stages=stages))


def test_a_cut_before_a_view_takes_tensors_as_anybody_hands_them_over():
    """In the whole graph the permuted tensor is viewed in place; cut before, it arrives with its elements in a row."""

    class Moved(nn.Module):
        def forward(self, x):
            return x.transpose(1, 2)

    class Joined(nn.Module):
        def forward(self, x):
            return x.transpose(1, 2).view(1, -1) * 2

    stages = [{"name": f"s{n}", "target": "graph", "modules": [str(n)]} for n in range(2)]
    two = Plan.model_validate({"family": "toy", "outputs": ["y"], "stages": stages})
    model, x = nn.Sequential(Moved(), Joined()), torch.randn(1, 3, 4)
    parts = partition(capture(model.eval(), {"input": x}, two.outputs), two)
    handed = parts.segments[0].program.run({"input": x})
    rows = {name: value.contiguous() for name, value in handed.items()}
    assert torch.equal(parts.segments[1].program.run(rows)["y"], model(x))
    assert list(handed) == ["s0_0"], "a module called 0 gives no name by itself"
