"""``python -m tests.fuzz --inputs 20000 --seed N``: changed files of every format, each read or refused by name.

Hypothesis draws the changes and makes those that fail small. A process reads some hundreds of inputs within limits of
memory and time. What fails stays in a folder, and its seed is printed: ``--format F=M --seed N`` repeats it.
"""

import argparse
import collections
import faulthandler
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import hypothesis
from hypothesis import strategies

from splitter import limits

from .. import bounded
from .formats import FORMATS
from .seeds import CORPUS

SPACE = 1536 << 20  # bytes that a process may map beyond what its imports do
MEMORY = "256MB"  # the limit that the readers know of
SECONDS = 20  # an input that takes longer hangs
BATCH = 800
FAILURES = Path("fuzz-failures")


def read_changed(name, count, seed, case):
    """Ends of so many changed files of a format, by count; raises what neither worked nor was refused by name."""
    form = FORMATS[name]
    sources = sorted((CORPUS / name).iterdir())
    ends = collections.Counter()

    @hypothesis.seed(seed)
    @hypothesis.settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[hypothesis.Phase.generate, hypothesis.Phase.shrink],
        suppress_health_check=list(hypothesis.HealthCheck),
        report_multiple_bugs=False,
    )
    @hypothesis.given(strategies.sampled_from(sources), strategies.randoms(use_true_random=False))
    def changed(source, generator):
        shutil.rmtree(case, ignore_errors=True)
        case.mkdir()
        path = case / source.name
        (shutil.copytree if source.is_dir() else shutil.copy)(source, path)
        form.mutated(path, generator)
        signal.alarm(SECONDS)
        faulthandler.dump_traceback_later(2 * SECONDS, exit=True)  # in code that is not Python's
        try:
            end = bounded.outcome(lambda: form.read(path)).split(":")[0]
        except bounded.Hang as error:
            raise AssertionError(str(error)) from error
        finally:
            signal.alarm(0)
            faulthandler.cancel_dump_traceback_later()
        ends[end] += 1

    changed()
    return ends


def child(counts, seed, case):
    """Read the sound files, then changed ones, and print the ends; of a failure, the traceback."""
    bounded.limit(SPACE)
    signal.signal(signal.SIGALRM, bounded.too_slow)
    found = {}
    for name, count in counts.items():
        try:
            for source in sorted((CORPUS / name).iterdir()):
                if (end := bounded.outcome(lambda source=source, name=name: FORMATS[name].read(source))) != "result":
                    raise AssertionError(f"{source} is refused; `make fuzz-corpus` writes the corpus anew: {end}")
            found[name] = read_changed(name, count, seed, case)
        except Exception:
            found[name] = {"failure": traceback.format_exc()}
    print("\n" + json.dumps(found))  # noqa: T201 - to the parent


def started(counts, seed):
    """Ends by format of a process of its own; a failure has its traceback, and its input is kept."""
    with tempfile.TemporaryDirectory() as scratch:
        case = Path(scratch) / "case"
        command = [sys.executable, "-m", "tests.fuzz", "--child", str(case), "--seed", str(seed)]
        command += [part for name, count in counts.items() for part in ("--format", f"{name}={count}")]
        environment = os.environ | {"OMP_NUM_THREADS": "1", limits.VARIABLE: MEMORY}
        with subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        ) as process:
            out, err = process.communicate()
        try:
            found = json.loads(out.splitlines()[-1])
        except (IndexError, ValueError):
            failure = f"the process ended with {process.returncode}\n{out[-500:]}{err[-3000:]}"
            found = {", ".join(counts): {"failure": failure}}
        for name, ends in found.items():
            if "failure" in ends and case.exists():
                FAILURES.mkdir(exist_ok=True)
                kept = FAILURES / f"{name.replace(', ', '-')}-{seed}"
                shutil.rmtree(kept, ignore_errors=True)
                shutil.copytree(case, kept)
                ends["failure"] += (
                    f"\nthe input is in {kept}; --format {name}={counts.get(name)} --seed {seed} repeats it"
                )
        return found


def counts_of(inputs):
    """So many inputs of all formats together, each with its share."""
    return {name: math.ceil(inputs * form.share) for name, form in FORMATS.items()}


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="of all formats together")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--format", action="append", metavar="FORMAT=INPUTS", dest="formats", help="only this; repeat")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    asked = dict(pair.split("=") for pair in options.formats or [])
    counts = {name: int(count) for name, count in asked.items()} or counts_of(options.inputs)
    if options.child:
        child(counts, options.seed, options.child)
        return 0
    failures = total = 0
    for name, count in counts.items():
        seed, ends, begun = options.seed, collections.Counter(), time.monotonic()
        for batch in [BATCH] * (count // BATCH) + [count % BATCH] * (count % BATCH > 0):
            found = started({name: batch}, seed)[name]
            if "failure" in found:
                print(f"{name}: {found['failure']}", flush=True)  # noqa: T201
                failures += 1
            else:
                ends.update(found)
            seed += 1
        total += sum(ends.values())
        said = ", ".join(f"{end} {count}" for end, count in ends.most_common())
        print(f"{name}: {sum(ends.values())} inputs in {time.monotonic() - begun:.0f} s: {said}", flush=True)  # noqa: T201
    print(f"{total} inputs, {failures} failures")  # noqa: T201
    return int(failures > 0)


if __name__ == "__main__":
    sys.exit(main())
