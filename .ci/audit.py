"""Hold what splitter installs, and what it would let others install, against the known vulnerabilities.

Says each finding and ends with 1 if there is any. Needs no network; what it knows is in `advisories.toml`.
"""

import re
import sys
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parent.parent


def findings(root: Path = ROOT) -> list[str]:
    """Every pinned version that has a known vulnerability, every floor that admits one, every pin without a hash."""
    advisories = tomllib.loads((root / ".ci" / "advisories.toml").read_text())["packages"]
    project = tomllib.loads((root / "pyproject.toml").read_text())["project"]
    found = []
    needed: dict[str, set[str]] = {}
    for path in sorted(root.glob("constraints*.txt")):
        for block in re.split(r"\n(?=[A-Za-z0-9])", path.read_text()):
            if not (pin := re.match(r"([A-Za-z0-9._-]+)==(\S+)", block)):
                continue
            name, version = canonicalize_name(pin[1]), Version(pin[2])
            needed.setdefault(name, set()).add(path.name)
            if "--hash=sha256:" not in block:
                found.append(f"{path.name} pins {name} without a hash")
            if name in advisories and version < Version(advisories[name]["fixed"]):
                found.append(f"{path.name} pins {name} {version}, {_about(advisories[name])}")
    always = floors(project["dependencies"])
    besides = floors([line for lines in project["optional-dependencies"].values() for line in lines])
    for name, advisory in advisories.items():
        if name not in needed:
            found.append(f"advisories.toml names {name}, which is not needed any more")
            continue
        set_here = [always] if "constraints.txt" in needed[name] else [always, besides]
        lowest = min((group[name] for group in set_here if name in group), default=Version("0"))
        lowest = min(lowest, besides.get(name, lowest))
        if lowest < Version(advisory["fixed"]):
            found.append(f"pyproject.toml admits {name} from {lowest}, {_about(advisory)}")
    return found


def floors(lines: list[str]) -> dict[str, Version]:
    """The lowest version of each package that the lines admit; 0 where they set none."""
    lowest: dict[str, Version] = {}
    for requirement in map(Requirement, lines):
        name = canonicalize_name(requirement.name)
        floor = max(
            (Version(part.version) for part in requirement.specifier if part.operator == ">="), default=Version("0")
        )
        lowest[name] = min(floor, lowest.get(name, floor))
    return lowest


def _about(advisory: dict) -> str:
    return f"below {advisory['fixed']}: {', '.join(advisory['ids'])}"


if __name__ == "__main__":
    problems = findings()
    print("\n".join(problems) or "no known vulnerability, see .ci/advisories.toml for what is known")
    sys.exit(bool(problems))
