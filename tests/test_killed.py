"""Killed at any moment, and two at once: nothing half-made is ever taken for whole, and the next run cleans up."""

import multiprocessing
import os
import random
import re
import signal
import tempfile
import time
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile

from splitter import cache, compiler, reporting
from splitter.bundle.directory import Bundle, load
from splitter.errors import SplitterError
from splitter.plan import schema as plans
from splitter.separation import batch, selection
from splitter.separation.separator import Separator
from splitter.tuning import precision

from .toys import GRAPHS_PLAN, PACKAGES_PLAN, duo, separating

MOMENTS = 20
TOLD = 3  # exit code: a message of ours
_STAGING = re.compile(r"\.[a-z]+-[0-9a-f]{16}")


class Build:
    def run(self, home, toy, song):
        compiler.build(duo(), home / "work" / "b", plan=GRAPHS_PLAN, force=not (home / "unforced").exists())

    def check(self, home, *, done):
        if done or (home / "work" / "b").exists():
            load(home / "work" / "b", check_hashes=True)
        assert not done or names(home / "work") == {"b"}


class Fill:
    """The engines' cache: converted segments, and which engine is the fastest."""

    def run(self, home, toy, song):
        selection.fastest(load(toy).members)

    def check(self, home, *, done):
        kept = home / "cache" / "splitter"
        for entry in kept.glob("openvino/[!.]*"):
            assert cache._is_whole(entry)
        choices = [*kept.glob("engines/*.json")]
        for choice in choices:
            selection.EngineChoice.model_validate_json(choice.read_bytes())
        assert not done or len(choices) == 1


class Tune:
    def run(self, home, toy, song):
        precision.tune(
            separating(), min_snr_db=60, on=[song], plan=PACKAGES_PLAN,
            out=home / "work" / "plan.toml", plot=home / "work" / "plot.svg",
        )  # fmt: skip

    def check(self, home, *, done):
        if done or (home / "work" / "plan.toml").exists():
            assert plans.load(home / "work" / "plan.toml").precision == "fp16"
        if done or (home / "work" / "plot.svg").exists():
            assert (home / "work" / "plot.svg").read_text().rstrip().endswith("</svg>")
        assert not done or names(home / "work") == {"plan.toml", "plot.svg"}


class Report:
    def run(self, home, toy, song):
        findings = reporting.gather(Bundle.load(toy), runs=0)
        reporting.write(findings, home / "work" / "r.html", force=not (home / "unforced").exists())

    def check(self, home, *, done):
        if done or (home / "work" / "r.html").exists():
            assert (home / "work" / "r.html").read_text().rstrip().endswith("</html>")
        assert not done or names(home / "work") == {"r.html"}


class Separate:
    def run(self, home, toy, song):
        (outcome,) = batch.separate(Separator(load(toy), "default"), [song], home / "work")
        if outcome.error:
            raise outcome.error

    def check(self, home, *, done):
        stems = {path.name: path.read_bytes() for path in (home / "work" / "duo" / "song").glob("*")}
        assert stems.keys() <= {"kept.wav", "rest.wav"}
        for name, content in stems.items():
            whole = home.parent / name
            if not whole.exists():  # of the first run, which nobody killed
                whole.write_bytes(content)
            assert content == whole.read_bytes()
        if done:
            assert len(stems) == 2
            assert names(home / "work" / "duo") == {"song", ".separated"}


VERBS = {"build": Build(), "fill": Fill(), "tune": Tune(), "report": Report(), "separate": Separate()}


def names(folder):
    return {path.name for path in folder.iterdir()}


def enter(verb, home, toy, song):
    """In a process forked from one that has imported everything."""
    os.setsid()
    os.environ["XDG_CACHE_HOME"] = str(home / "cache")
    tempfile.tempdir = str(home / "tmp")
    try:
        VERBS[verb].run(home, toy, song)
    except SplitterError as error:
        (home / f"told-{os.getpid()}").write_text(str(error))
        os._exit(TOLD)


@pytest.fixture(scope="module")
def warm():
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.warm", "tests.test_killed"])
    return context


@pytest.fixture
def given(tmp_path, toy_path, warm):
    song = tmp_path / "song.wav"
    soundfile.write(song, np.random.default_rng(0).uniform(-0.5, 0.5, (2000, 2)), 8000, subtype="FLOAT")
    home = tmp_path / "home"
    for name in ("work", "tmp", "cache"):
        (home / name).mkdir(parents=True)

    def start(verb):
        process = warm.Process(target=enter, args=(verb, home, toy_path, song))
        process.start()
        return process

    return SimpleNamespace(home=home, start=start)


def finish(process):
    process.join(120)
    assert process.exitcode in (0, TOLD)
    return process.exitcode


def check_clean(verb, home):
    VERBS[verb].check(home, done=True)
    assert not [path for path in home.rglob(".*-*") if _STAGING.fullmatch(path.name)]


def kill_at_moments(verb, given, moments):
    """At so many random ones, spread over a whole run; a whole one follows every tenth."""
    assert finish(given.start(verb)) == 0
    check_clean(verb, given.home)
    empty(given.home)
    started = time.monotonic()
    assert finish(given.start(verb)) == 0
    seconds = time.monotonic() - started
    dice, left = random.Random(17), 0
    for moment in range(moments):
        if moment % 2 or verb in ("fill", "separate"):  # the others replace what is there
            empty(given.home, staging=False)
        process = given.start(verb)
        time.sleep(seconds * (moment + dice.random()) / moments)
        kill(process)
        VERBS[verb].check(given.home, done=False)
        left += any(_STAGING.fullmatch(path.name) for path in given.home.rglob(".*"))
        if moment % 10 == 9 or moment == moments - 1:
            assert finish(given.start(verb)) == 0
            check_clean(verb, given.home)
    assert left, "none was killed at its work"


def kill(process):
    """Kill it and what it started, if it is still there."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:  # it has ended, or not begun
        process.kill()
    process.join()


def empty(home, staging=True):
    """As before the first run; but for what killed runs left, unless that goes too."""
    for path in sorted(home.rglob("*"), reverse=True):
        kept = {part for part in path.relative_to(home).parts if _STAGING.fullmatch(part)}
        if staging or not kept:
            if path.is_file() or path.is_symlink():
                path.unlink()
            elif path.parent != home and not any(path.iterdir()):
                path.rmdir()


@pytest.mark.parametrize("verb", ["build", "separate"])
def test_what_is_killed_leaves_nothing_half_made(verb, given):
    kill_at_moments(verb, given, 3)


@pytest.mark.slow
@pytest.mark.parametrize("verb", VERBS)
def test_what_is_killed_at_any_moment_leaves_nothing_half_made(verb, given):
    kill_at_moments(verb, given, MOMENTS)


@pytest.mark.parametrize("forced", [True, False])
@pytest.mark.parametrize("verb", ["build", "separate", pytest.param("fill", marks=pytest.mark.slow),
                                  pytest.param("tune", marks=pytest.mark.slow),
                                  pytest.param("report", marks=pytest.mark.slow)])  # fmt: skip
def test_two_at_once_are_both_right_or_one_is_told(verb, forced, given):
    if not forced:
        (given.home / "unforced").touch()
    codes = sorted(finish(process) for process in [given.start(verb), given.start(verb)])
    assert codes[0] == 0
    told = [path.read_text() for path in given.home.glob("told-*")]
    assert len(told) == sum(code == TOLD for code in codes)
    if forced or verb in ("fill", "tune", "separate"):
        assert not told
    assert all(re.search(r"was made by another process meanwhile|is a bundle already", message) for message in told)
    check_clean(verb, given.home)
