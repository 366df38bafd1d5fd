"""Apple's symbols: those that the host uses are in the handbook's table, and the stand-ins have no others."""

import re

from ..conftest import ROOT

SWIFT = ROOT / "swift"
PREFIXED = re.compile(
    r"\b(?:vDSP_\w+|kFFT\w+|FFT(?:Setup|Radix|Direction)|DSP(?:Split)?Complex|M(?:L|TL)[A-Z]\w+|AVAudio\w+)\b"
)
DECLARED = re.compile(r"^ *public [\w ]*?\b(?:func|var|let|class|struct|enum|protocol|typealias) (\w+)", re.MULTILINE)
BLOCK = re.compile(r"^public (?:protocol|enum) \w+[^{]*\{\n(.*?)^\}", re.MULTILINE | re.DOTALL)
REQUIRED = re.compile(r"^    (?:func|var|case) (\w+)", re.MULTILINE)


def table():
    rows = re.findall(
        r"^\| (`[^|]+) \| \[[^]]+\]\((\S+)\) \|", (ROOT / "docs" / "apple-host.md").read_text(), re.MULTILINE
    )
    assert len(rows) > 30
    for _, page in rows:
        assert re.fullmatch(
            r"https://developer\.apple\.com/documentation/(coreml|metal|accelerate|avfaudio)/[a-z0-9_()]+", page
        ), page
    return {name: page for names, page in rows for name in re.findall(r"`(\w+)`", names)}


def test_every_symbol_in_the_sources_is_in_the_table():
    listed = set(table())
    used = {symbol for path in (SWIFT / "Sources").rglob("*.swift") for symbol in PREFIXED.findall(path.read_text())}
    assert len(used) > 30
    assert used - listed == set()


def test_stand_ins_have_what_is_in_the_table_and_nothing_else():
    declared = set()
    for module in ("Accelerate", "CoreML", "Metal"):
        for path in (SWIFT / "Standins" / module).glob("*.swift"):
            text = path.read_text()
            declared |= set(DECLARED.findall(text))
            for body in BLOCK.findall(text):
                declared |= set(REQUIRED.findall(body))
    listed = {name for name, page in table().items() if "/avfaudio/" not in page}  # which has no stand-in
    assert declared == listed - {"init"}


def test_no_source_knows_that_it_runs_on_a_stand_in():
    for path in (SWIFT / "Sources").rglob("*.swift"):
        text = path.read_text().replace("canImport(AVFoundation)", "")
        assert not re.search(r"os\(Linux\)|canImport|STANDIN|[Ss]tandin", text), path


def test_the_kernels_are_those_of_the_house():
    for link in (SWIFT / "Sources" / "SplitterHost" / "Kernels").iterdir():
        assert link.resolve().parent == ROOT / "kernels" / "splitter_kernels" / "metal", link
