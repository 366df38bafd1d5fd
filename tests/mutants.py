"""Seeded mutations: small changes to the code of a room, each of which the room's tests must notice.

``python -m tests.mutants splitter/passes --seed 1 --count 20`` changes a copy of the tree in one place at a time
and runs the tests that mirror the changed file, then the rest of their room. Operators are Cosmic Ray's; places are
drawn first, then an operator for each, so that no kind of place outweighs the others. Annotations and docstrings
are no places: with them changed the program does the same.

A survivor is a test that is missing, or a change that alters nothing. The latter belongs into
``tests/equivalent_mutants.txt``, a line each: the file, the line before, the line after, between tabs.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from time import monotonic

from cosmic_ray.ast import ast_nodes, get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.provider import OperatorProvider

MOST_SURVIVORS = 0.05
_EQUIVALENT = "tests/equivalent_mutants.txt"
_NEED_ARGUMENTS = ("VariableReplacer", "VariableInserter")
_PATIENCE = 3  # times as long as the unchanged code takes, and as long as a start takes on a busy machine
_START = 60.0


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        path: Of the file in the tree.
        line: Counted from 1.
        operator: Cosmic Ray's name for the kind of change.
        before: The file's text.
        after: What becomes of it.
    """

    path: Path
    line: int
    operator: str
    before: str
    after: str

    @property
    def diff(self) -> str:
        lines = difflib.unified_diff(self.before.splitlines(), self.after.splitlines(), lineterm="", n=1)
        return "\n".join(line for line in lines if not line.startswith(("---", "+++", "@@")))

    @property
    def key(self) -> str:
        """The file, what was there and what is there, as the list of equivalent mutants has them."""
        sides = [[line[1:].strip() for line in self.diff.splitlines() if line.startswith(sign)] for sign in "-+"]
        return "\t".join([self.path.as_posix(), *(" ".join(side) for side in sides)])


def draw(root: Path, room: Path, seed: int, number: int) -> Iterator[Mutant]:
    """Mutants of a file or of the files below a folder: the same for the same code, room, seed and number."""
    known = root / _EQUIVALENT
    equivalent = set(known.read_text(encoding="utf-8").splitlines()) if known.exists() else set()
    files = sorted((root / room).rglob("*.py")) if (root / room).is_dir() else [root / room]
    places = [(file.relative_to(root), *place) for file in files for place in _places(file.read_text(encoding="utf-8"))]
    chance = random.Random(seed)
    chance.shuffle(places)
    found = 0
    for path, line, changes in places:
        if found == number:
            return
        name, occurrence = chance.choice(changes)
        before = (root / path).read_text(encoding="utf-8")
        after = mutate_code(before, OperatorProvider()[name](), occurrence)
        mutant = Mutant(path, line, name, before, after or before)
        if _differs(before, mutant.after) and mutant.key not in equivalent:
            found += 1
            yield mutant


def _places(source: str) -> Iterator[tuple[int, list[tuple[str, int]]]]:
    """Line, and which occurrence of which operators, of each place in a text that can be changed."""
    nodes = list(ast_nodes(get_ast(source)))
    changes: dict[tuple[int, int], list[tuple[str, int]]] = defaultdict(list)
    for name in OperatorProvider():
        if name not in _NEED_ARGUMENTS:
            operator, occurrence = OperatorProvider()[name](), count()
            for node in nodes:
                for start, _ in operator.mutation_positions(node):
                    changes[start].append((name, next(occurrence)))
    for start, here in sorted(changes.items()):
        yield start[0], here


def _differs(before: str, after: str) -> bool:
    """Whether both are programs that may do different things."""
    try:
        return _behaviour(before) != _behaviour(after)
    except (SyntaxError, ValueError):
        return False


def _behaviour(source: str) -> str:
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = None
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = []
    return ast.dump(tree)


def tests_of(root: Path, path: Path) -> list[str]:
    """The tests that mirror a file, its own first; of a folder without tests those of the folder above."""
    _, *folders, name = path.with_suffix("").parts
    package = path.parts[0]
    if package in ("kernels", "weights"):  # packages that lie a folder deeper
        folders[0] = package
    room = root / "tests" / Path(*folders)
    while not room.is_dir():
        room = room.parent
    mirrors = [f"test_{stem}.py" for stem in (name, *reversed(folders))]
    if room == root / "tests":
        own = [room / mirror for mirror in mirrors if (room / mirror).exists()]
        if not own:
            raise SystemExit(f"{path} has no tests of its own: tests/{mirrors[0]} is missing")
        return [own[0].relative_to(root).as_posix()]
    rank = {mirror: index for index, mirror in enumerate(mirrors)}
    files = sorted(room.rglob("test_*.py"), key=lambda file: (rank.get(file.name, len(rank)), file))
    return [file.relative_to(root).as_posix() for file in files]


def copied(root: Path, to: Path) -> None:
    """The tree as it is, without what git ignores."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=root,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (root / name).is_file():
            (to / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(root / name, to / name)


def fails(root: Path, tests: Iterable[str], limit: float | None = None) -> bool:
    """Run tests in a tree till the first fails; what takes longer than the limit has failed."""
    paths = [str(root), str(root / "kernels"), str(root / "weights")]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "-m", "not real and not slow"]
    process = subprocess.Popen(
        [*command, *tests],
        cwd=root,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        return process.wait(limit) != 0
    except subprocess.TimeoutExpired:
        return True
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def run(root: Path, room: Path, seed: int, number: int) -> list[Mutant]:
    """Try mutants in a copy of a tree, say of each what became of it, and return the survivors."""
    survivors, tried, limits = [], 0, {}
    with tempfile.TemporaryDirectory() as scratch:
        tree = Path(scratch).resolve()
        copied(root, tree)
        for mutant in draw(tree, room, seed, number):
            tests = tests_of(tree, mutant.path)
            together = tuple(sorted(tests))
            if together not in limits:
                started = monotonic()
                if fails(tree, tests):
                    raise SystemExit(f"{', '.join(tests)} fail before anything is changed")
                limits[together] = _START + _PATIENCE * (monotonic() - started)
            tried += 1
            (tree / mutant.path).write_text(mutant.after, encoding="utf-8")
            started = monotonic()
            killed = fails(tree, tests, limits[together])
            (tree / mutant.path).write_text(mutant.before, encoding="utf-8")
            verdict = "killed" if killed else "SURVIVED"
            print(
                f"{verdict} in {monotonic() - started:.0f} s: {mutant.path}:{mutant.line} {mutant.operator}", flush=True
            )
            if not killed:
                survivors.append(mutant)
                print(mutant.diff, flush=True)
    share = f" ({100 * (tried - len(survivors)) / tried:.0f} %)" if tried else ""
    print(f"{room}, seed {seed}: {tried - len(survivors)} of {tried} killed{share}")
    return survivors if len(survivors) > MOST_SURVIVORS * tried else []


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("room", type=Path, help="a folder or file of the tree, e.g. splitter/passes")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--root", type=Path, default=Path(__file__).parent.parent)
    options = parser.parse_args(arguments)
    return bool(run(options.root, options.room, options.seed, options.count))


if __name__ == "__main__":
    sys.exit(main())
