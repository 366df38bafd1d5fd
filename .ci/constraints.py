"""Write constraints*.txt: every version that is installed, with the hashes of its files for every platform.

`uv` must be on the path. Versions stay as they are in the files; one that is deleted there is resolved anew. Only
versions and hashes are written, no address: where a package comes from is the installing machine's business.
"""

import re
import subprocess
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FILES = {
    "constraints.txt": ("What splitter itself needs.", ()),
    "constraints-dev.txt": ("What its tests and checks need besides, see constraints.txt.", ("dev",)),
    "constraints-docs.txt": ("What the handbook's site needs besides.", ("dev", "docs")),
    "constraints-extras.txt": ("What the extra `mlx` needs besides.", ("dev", "mlx")),
}
CUDA = ("constraints-cuda.txt", "What PyTorch's build for NVIDIA's GPUs needs besides; its build for CPUs needs none.")
CUDA_NAMES = re.compile(r"^(cuda-|nvidia-|triton==)")
# PyTorch's own build for CPUs, which its project publishes beside the package index: CPython 3.11 on x86-64 Linux.
MORE_HASHES = {"torch==2.13.0": ["6746dbcbeb526eb61330b76b41ff1b4eb848951103a892eeb080dfa2b264667b"]}
# demucs takes no PyTorch on an Intel Mac that splitter could use; not all packages have files for Python 3.15 yet.
ENVIRONMENTS = [
    "python_full_version < '3.15' and platform_python_implementation == 'CPython'"
    f" and sys_platform == '{system}' and platform_machine == '{machine}'"
    for system, machine in (("linux", "x86_64"), ("linux", "aarch64"), ("darwin", "arm64"))
]


def main() -> None:
    pins = "".join(
        re.sub(r"\s*\\$", "", line) + "\n"
        for path in sorted(ROOT.glob("constraints*.txt"))
        for line in path.read_text().splitlines()
        if re.match(r"[A-Za-z0-9]", line)
    )
    listed: set[str] = set()
    cuda: set[str] = set()
    for name, (about, extras) in FILES.items():
        blocks = resolved(extras, pins)
        cuda |= {block for block in blocks if CUDA_NAMES.match(block)}
        write(name, about, blocks - listed - cuda)
        listed |= blocks
    write(*CUDA, cuda)


def resolved(extras: tuple[str, ...], pins: str) -> set[str]:
    """One block of text per package: its version, where it is needed, its hashes."""
    with tempfile.TemporaryDirectory() as folder:
        project = (ROOT / "pyproject.toml").read_text() + f"\n[tool.uv]\nenvironments = {ENVIRONMENTS}\n"
        Path(folder, "pyproject.toml").write_text(project)
        Path(folder, "pins.txt").write_text(pins)
        command = ["uv", "pip", "compile", "pyproject.toml", "--universal", "--python-version", "3.11", "--quiet"]
        command += ["--generate-hashes", "--no-header", "--no-annotate", "--constraint", "pins.txt"]
        command += [part for extra in extras for part in ("--extra", extra)]
        printed = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    blocks = re.split(r"\n(?=[A-Za-z0-9])", printed.strip())
    everywhere = re.search(r"^torch==\S+( ;.*?)? \\$", printed, re.MULTILINE)
    return {with_more_hashes(block.replace(everywhere[1] or "", "")) for block in blocks}


def with_more_hashes(block: str) -> str:
    head, *hashes = block.split(" \\\n")
    requirement = head.partition(" ; ")[0]
    more = [f"    --hash=sha256:{digest}" for digest in MORE_HASHES.get(requirement, [])]
    return " \\\n".join([head, *sorted([*hashes, *more])])


def write(name: str, about: str, blocks: set[str]) -> None:
    header = f"# {about}\n# Written by `make constraints`; installed with `pip install --require-hashes --no-deps`.\n"
    (ROOT / name).write_text(header + "\n".join(sorted(blocks)) + "\n")


if __name__ == "__main__":
    main()
