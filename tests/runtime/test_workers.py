"""A worker's life and deaths."""

import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import CancelledError

import psutil
import pytest

from splitter.errors import UsageError, WorkerError
from splitter.runtime.workers import Worker


@pytest.fixture
def worker():
    one = Worker(threads=1)
    yield one
    one.stop()


def call(worker, function, *arguments, meanwhile=lambda: None):
    return worker.call(function, *arguments, meanwhile=meanwhile)


def refuse(what):
    raise UsageError("this is refused", received=what, fix="Leave it.")


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def threads():
    import torch

    return torch.get_num_threads(), os.environ["OPENBLAS_NUM_THREADS"], signal.getsignal(signal.SIGINT)


def test_it_is_another_process_that_stays(worker):
    first = call(worker, os.getpid)
    assert first != os.getpid()
    assert call(worker, os.getpid) == first
    assert call(worker, max, 3, 5) == 5


def test_errors_arrive_as_they_are(worker):
    with pytest.raises(UsageError, match="this is refused; got that") as caught:
        call(worker, refuse, "that")
    assert (str(caught.value), caught.value.fix) == ("this is refused; got that. Leave it.", "Leave it.")


def test_who_dies_is_replaced(worker):
    first = call(worker, os.getpid)
    with pytest.raises(WorkerError, match="a worker was killed"):
        call(worker, die)
    assert call(worker, os.getpid) not in (first, os.getpid())


def test_death_between_two_calls_is_noticed(worker):
    psutil.Process(call(worker, os.getpid)).kill()
    with pytest.raises(WorkerError, match="a worker was killed"):
        call(worker, max, 3, 5)
    assert call(worker, max, 3, 5) == 5


def test_who_waits_may_look(worker):
    looks = []
    call(worker, time.sleep, 0.8, meanwhile=lambda: looks.append(None))
    assert len(looks) >= 2


def test_libraries_take_the_threads_they_are_given():
    worker = Worker(threads=2)  # tests have one
    try:
        assert call(worker, threads) == (2, "2", signal.SIG_IGN)
    finally:
        worker.stop()


def test_stopping_kills(worker):
    pid = call(worker, os.getpid)
    threading.Timer(0.3, worker.stop).start()
    with pytest.raises(CancelledError):
        call(worker, time.sleep, 60)
    assert not psutil.pid_exists(pid)
    with pytest.raises(CancelledError):
        call(worker, os.getpid)


_ORPHANING = """
import os, time
from splitter.runtime.workers import Worker
worker = Worker(threads=1)
print(worker.call(os.getpid, meanwhile=lambda: None), flush=True)
worker.call(time.sleep, 60, meanwhile=lambda: None)
"""


def test_orphans_do_not_live_on():
    parent = subprocess.Popen([sys.executable, "-c", _ORPHANING], stdout=subprocess.PIPE, text=True)
    worker = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.communicate()
    worker.wait(timeout=10)
