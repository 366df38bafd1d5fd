"""The audit of dependencies: quiet on this tree, and red on each thing that it is there to find."""

import importlib.util
import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
AUDIT = ROOT / ".ci" / "audit.py"
pytestmark = pytest.mark.skipif(not AUDIT.exists(), reason="only the repository has the audit")


@pytest.fixture
def findings(tmp_path):
    """The audit of a copy in which one text of one file is another."""
    spec = importlib.util.spec_from_file_location("audit", AUDIT)
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    shutil.copytree(ROOT / ".ci", tmp_path / ".ci")
    for path in (ROOT / "pyproject.toml", *ROOT.glob("constraints*.txt")):
        shutil.copy(path, tmp_path)

    def of_changed(file="pyproject.toml", old="", new=""):
        path = tmp_path / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
        return audit.findings(tmp_path)

    return of_changed


def test_this_tree_has_no_known_vulnerability(findings):
    assert findings() == []


@pytest.mark.parametrize(
    ("file", "old", "new", "found"),
    [
        ("pyproject.toml", '"filelock>=3.20.3"', '"filelock>=3.20.2"', "admits filelock from 3.20.2, below 3.20.3"),
        ("pyproject.toml", '"jinja2>=3.1.6"', '"jinja2"', "admits jinja2 from 0"),
        ("pyproject.toml", '"idna>=3.15",', "", "admits idna from 0"),
        ("pyproject.toml", '"ray[data]>=2.55", # the', '"ray[data]>=2.54", # the', "admits ray from 2.54"),
        (
            "constraints.txt",
            "\npillow==13.0.0",
            "\npillow==12.2.0",
            r"constraints.txt pins pillow 12.2.0, below 12.3.0",
        ),
        ("constraints-dev.txt", "\nurllib3==2.8.0", "\nurllib3==2.6.3", "pins urllib3 2.6.3, below 2.7.0: CVE"),
        (
            ".ci/advisories.toml",
            "[packages]",
            '[packages]\nzzz = { fixed = "1", ids = [] }',
            "zzz, which is not needed",
        ),
    ],
)
def test_finding_is_named(findings, file, old, new, found):
    (finding,) = findings(file, old, new)
    assert found in finding


def test_pin_without_a_hash_is_named(findings):
    (finding,) = findings("constraints.txt", "\neinops==0.8.2 \\\n", "\nzzz==1.0\neinops==0.8.2 \\\n")
    assert finding == "constraints.txt pins zzz without a hash"


def test_no_address_is_in_the_constraints():
    for path in ROOT.glob("constraints*.txt"):
        assert "://" not in path.read_text()
        assert "/" not in path.read_text()
