"""Bundles changed by somebody who makes the hashes fit again. Written for the tests, without the project's writer."""

import hashlib
import json


def seal(path, content):
    """Write a manifest with the digest that it must have."""
    content = {key: value for key, value in content.items() if key != "digest"}
    first, rest = json.dumps(content, indent=1).encode().split(b"\n", 1)
    digest = hashlib.sha256(first + b"\n" + rest + b"\n").hexdigest()
    (path / "manifest.json").write_bytes(b'%s\n "digest": "%s",\n%s\n' % (first, digest.encode(), rest))


def edit(path, change=lambda content: None):
    """Change a manifest's values in place."""
    content = json.loads((path / "manifest.json").read_text())
    change(content)
    seal(path, content)


def reseal(path):
    """Make the manifest agree with the files that are there."""

    def relist(content):
        files = sorted(file for file in path.rglob("*") if file.is_file() and file != path / "manifest.json")
        content["files"] = {
            file.relative_to(path).as_posix(): {
                "bytes": file.stat().st_size,
                "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
            }
            for file in files
        }

    edit(path, relist)


def flip(file, at=-1):
    """Change one bit."""
    raw = bytearray(file.read_bytes())
    raw[at] ^= 1
    file.write_bytes(raw)
