"""What README and handbook tell a reader to type is what there is, and runs on the demo model."""

import re
import shlex
import shutil
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

import splitter
from splitter.cli.shell import command
from splitter.models.roformer import RoformerFamily

from .conftest import ROOT
from .models.test_roformer import written

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
FENCE = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
MINUTES = ("tune", "plan")  # of every command line alone; what they do has tests of its own


def blocks(page, language):
    return [text for kind, text in FENCE.findall(page.read_text()) if kind == language]


def typed(page):
    """The arguments of every `splitter …` in a page."""
    lines = [line for text in blocks(page, "sh") for line in text.splitlines()]
    return [shlex.split(line.split(" > ")[0], comments=True)[1:] for line in lines if line.startswith("splitter ")]


def parsed(group, arguments):
    """Parse a command line without running it; click refuses what is not there."""
    context = group.make_context("splitter", list(arguments))
    name, chosen, rest = group.resolve_command(context, [*context._protected_args, *context.args])
    if hasattr(chosen, "commands"):
        parsed(chosen, rest)
    else:
        chosen.make_context(name, rest, parent=context)


def test_pages_have_commands():
    assert sum(len(typed(page)) for page in PAGES) > 25
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_line_is_one_that_there_is(page):
    for arguments in typed(page):
        parsed(command, arguments)
    for text in blocks(page, "python"):
        compile(text, page.name, "exec")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    targets = re.findall(r"\]\((?!https?:|#)([^)#]+)", page.read_text())
    made = {"sample-report.html"}  # by `make docs`
    assert [target for target in targets if target not in made and not (page.parent / target).exists()] == []


@pytest.fixture(scope="module")
def desk(tmp_path_factory, demo_path, song_path):
    """A folder with what the pages' commands read."""
    home = tmp_path_factory.mktemp("desk")
    for name in ("htdemucs.bundle", "demo.bundle"):
        shutil.copytree(demo_path, home / name)
    shutil.copytree(demo_path / "encoder.mlpackage", home / "encoder.mlpackage")
    for name in ("song.mp3", "song.wav", "song.flac"):
        shutil.copy(song_path, home / name)
    (home / "my_model.py").write_text(blocks(ROOT / "docs" / "any-model.md", "python")[0])
    np.savez(home / "example.npz", image=np.random.default_rng(0).standard_normal((1, 3, 32, 32)).astype(np.float32))
    goldens = splitter.load(demo_path).members[0].goldens()
    vocals = written(home).rename(home / "vocals.yaml")
    (member,) = RoformerFamily().load(vocals, random_init=0).members
    torch.save(member.module.state_dict(), home / "vocals.ckpt")
    np.savez(home / "in.npz", spectrogram=goldens["spectrogram"], waveform=goldens["waveform"])
    return home


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_run_on_the_demo(page, desk, monkeypatch):
    monkeypatch.chdir(desk)
    for arguments in typed(page):
        if (
            (arguments[0] in MINUTES and "--new" not in arguments)
            or "mixed.toml" in arguments
            or "small.toml" in arguments
            or "plan.toml" in arguments
            or "umxhq" in arguments  # whose weights come from a hub
        ):
            continue
        if arguments[0] == "verify-port":  # a port's dump is the model's own taps
            run(["goldens", "htdemucs.bundle", "-o", "dump.safetensors"])
        result = run([re.sub(r"^htdemucs$", "demo", argument) for argument in globbed(arguments)])
        if "--json" in arguments:
            (desk / "here.json").write_text(result.stdout)
    for text in blocks(page, "python"):
        sound = soundfile.read("song.wav", dtype="float32")[0].T
        golden = splitter.load("demo.bundle").members[0].goldens()
        names = {"waveform": sound if "Separator" in text else golden["waveform"], "spectrogram": golden["spectrogram"]}
        exec(text.replace('"htdemucs"', '"demo"'), names)


def globbed(arguments):
    """As a shell hands them over; outputs that are there already are replaced."""
    arguments = [
        str(found)
        for argument in arguments
        for found in (sorted(Path().glob(argument)) if argument.startswith("*") else [argument])
    ]
    return [*arguments, "--force"] if arguments[0] in ("build", "report") and "--force" not in arguments else arguments


def run(arguments):
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code == 0, (arguments, result.output, result.exception)
    return result
