"""Times from another host beside a profile."""

import json

import pytest

from splitter.bundle.directory import Bundle
from splitter.errors import UsageError
from splitter.profiling import bench


def document(bundle, **changes):
    """One warm-up and two counted turns."""
    return {
        "format": "splitter.bench/1",
        "digest": bundle.manifest.digest,
        "system": "iOS 18.1",
        "machine": "iPhone17,1",
        "threads": 6,
        "compute_units": "ALL",
        "limits": {"flops_per_second": 1e12, "bytes_per_second": 1e11},
        "warmup": 1,
        "wall": [9.0, 2.0, 4.0],
        "segments": [
            {"name": segment.name, "engine": "phone", "load_seconds": 1.0, "seconds": [5.0, 0.4, 0.8]}
            for segment in bundle.segments
        ],
        "checks": {name: [0.1, 0.01, 0.02] for name in bundle.tensors},
    } | changes


@pytest.fixture
def toy(toy_path):
    return Bundle.load(toy_path)


def written(tmp_path, content):
    path = tmp_path / "phone.json"
    path.write_text(json.dumps(content))
    return path


def test_seconds_become_a_profile(toy, tmp_path):
    profile = bench.read(written(tmp_path, document(toy)), toy)
    assert (profile.system, profile.machine.processor, profile.machine.threads) == ("iOS 18.1", "iPhone17,1", 6)
    assert (profile.run.wall.median, profile.run.wall.warmup) == (3.0, (9.0,))
    parts, checks = 0.4 * len(toy.segments), 0.01 * len(toy.tensors)
    assert profile.run.accounted == pytest.approx((parts + checks) / 2)
    assert profile.run.checks == pytest.approx(checks / 2)
    for segment, record in zip(profile.segments, toy.segments, strict=True):
        (engine,) = segment.engines
        assert (segment.name, segment.parameters, engine.engine) == (record.name, record.parameters, "phone")
        assert engine.latency.runs == (0.4, 0.8)
        assert engine.compute_share == pytest.approx(segment.flops / 0.6 / 1e12)
        assert (engine.load_seconds, engine.memory) == (1.0, None)
    for tensor in profile.boundaries:
        assert tensor.check.median == 0.015
        assert tensor.bandwidth_share == pytest.approx(tensor.bytes / 0.015 / 1e11)


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"digest": "0" * 64}, "is of another bundle"),
        ({"checks": {}}, "is no whole bench"),
        ({"segments": []}, "is no whole bench"),
        ({"wall": [1.0]}, "is no whole bench"),
        ({"wall": [1.0, 2.0]}, "is no whole bench"),
        ({"wall": [1.0, 2.0, 0.0]}, "is no bench"),
        ({"warmup": 3}, "is no whole bench"),
        ({"warmup": 0}, "is no bench"),
        ({"format": "splitter.bench/9"}, "is no profile"),
    ],
)
def test_what_is_no_bench_of_the_bundle_is_refused(toy, tmp_path, changes, problem):
    with pytest.raises(UsageError, match=problem):
        bench.read(written(tmp_path, document(toy, **changes)), toy)
