"""The run of mutations, on a tree of one room whose tests leave one thing out."""

import subprocess

import pytest

from . import mutants

ROOM = mutants.Path("toy/room")
CODE = """
from __future__ import annotations


def larger(a: int | float, b: int) -> bool | None:
    return a > b


def untested(a: int) -> int:
    return a * 7
"""
TESTS = """
from toy.room.sizes import larger, untested


def test_larger():
    assert (larger(1, 2), larger(2, 1), larger(3, 3)) == (False, True, False)


def test_nothing_of_it():
    untested(0)
"""


@pytest.fixture
def tree(tmp_path):
    for name, text in (("toy/room/sizes.py", CODE), ("tests/room/test_sizes.py", TESTS)):
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_text(text)
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    return tmp_path


def drawn(tree, seed=1, number=100):
    return [(mutant.line, mutant.operator, mutant.after) for mutant in mutants.draw(tree, ROOM, seed, number)]


def test_the_same_seed_draws_the_same_mutants(tree):
    assert drawn(tree) == drawn(tree)
    assert len({tuple(drawn(tree, seed, 1)) for seed in range(8)}) > 1
    assert len(drawn(tree, number=2)) == 2


def test_annotations_are_not_changed(tree):
    for seed in range(5):
        assert {line for line, _, _ in drawn(tree, seed)} <= {6, 10}


def test_survivors_are_told_with_their_change_and_the_tree_stays_as_it_is(tree, capsys):
    assert mutants.main(["toy/room", "--count", "100", "--root", str(tree)]) == 1
    told = capsys.readouterr().out
    assert "SURVIVED" in told
    assert "-    return a * 7\n+    return a" in told
    assert "killed" in told
    assert "sizes.py:6 " in told
    assert (tree / "toy/room/sizes.py").read_text() == CODE


def test_equivalent_mutants_are_left_out(tree):
    listed = tree / "tests" / "equivalent_mutants.txt"
    keys = {mutant.key for mutant in mutants.draw(tree, ROOM, 1, 100) if mutant.line == 10}
    assert all(key.startswith("toy/room/sizes.py\treturn a * 7\treturn a") for key in keys)
    listed.write_text("\n".join(keys))
    assert {line for line, _, _ in drawn(tree)} == {6}


def test_a_room_whose_tests_fail_is_refused(tree):
    (tree / "tests/room/test_sizes.py").write_text("def test_it():\n    assert False\n")
    with pytest.raises(SystemExit, match="fail before anything is changed"):
        mutants.main(["toy/room", "--root", str(tree)])


def test_what_never_ends_is_killed(tree):
    (tree / "tests/room/test_sizes.py").write_text("def test_it():\n    while True:\n        pass\n")
    assert mutants.fails(tree, ["tests/room/test_sizes.py"], limit=3)


@pytest.mark.parametrize(
    ("path", "first", "others"),
    [
        ("splitter/partition.py", "tests/test_partition.py", False),
        ("splitter/passes/folding.py", "tests/passes/test_passes.py", True),
        ("splitter/passes/norms_into_convs.py", "tests/passes/test_norms_into_convs.py", True),
        ("splitter/mil/ops/pooling.py", "tests/mil/test_pooling.py", True),
        ("splitter/verification/port/suspects.py", "tests/verification/test_port.py", True),
        ("kernels/splitter_kernels/metal/steps.py", "tests/kernels/test_metal.py", True),
        ("weights/splitter_weights/checkpoints.py", "tests/weights/test_checkpoints.py", True),
    ],
)
def test_tests_mirror_the_source(path, first, others):
    found = mutants.tests_of(mutants.Path(mutants.__file__).parent.parent, mutants.Path(path))
    assert found[0] == first
    assert (len(found) > 1) == others
