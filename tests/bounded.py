"""Runs a function in a process of its own, whose memory and time are limited and which may crash."""

import os
import resource
import select
import signal
import sys
import traceback
from pathlib import Path

from splitter.errors import SplitterError

IS_LINUX = sys.platform == "linux"  # where an address space can be limited


class Hang(BaseException):
    """No `Exception`, which some handler might take for its own."""


def too_slow(*_):
    raise Hang("it takes too long")


def address_space():
    return int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE") if IS_LINUX else 0


def limit(space):
    """From here on this process may map so many bytes more."""
    if IS_LINUX:
        most = address_space() + space
        resource.setrlimit(resource.RLIMIT_AS, (most, most))


def outcome(function):
    """``result``, or the name and message of the error that was raised on purpose; others are raised.

    An error that only says that memory ran out is no refusal: something asked for it first.
    """
    try:
        function()
    except SplitterError as error:
        link = error
        while link is not None:
            if isinstance(link, MemoryError) or "allocate memory" in str(link) or "Unable to allocate" in str(link):
                raise AssertionError("memory was asked for before the refusal") from error
            link = link.__cause__ or link.__context__
        return f"{type(error).__name__}: {error}"
    return "result"


def run(function, space, seconds):
    """The outcome in a forked process: as `outcome`, or how it failed."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        signal.signal(signal.SIGALRM, too_slow)
        signal.alarm(seconds)
        limit(space)
        try:
            said = outcome(function)
        except BaseException:
            said = f"failure: {traceback.format_exc()}"
        os.write(writing, said.encode()[: 1 << 16])
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        if not select.select([pipe], [], [], 2 * seconds)[0]:  # code that is not Python's cannot be interrupted
            os.kill(child, signal.SIGKILL)
        said = pipe.read().decode()
    _, status = os.waitpid(child, 0)
    return said or f"failure: the process ended with status {status}"
