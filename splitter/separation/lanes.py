"""Runs of a model side by side, each with its share of the threads.

Two runs one behind the other use two cores better than one run spread over both: most operations are too small to be
worth splitting, and each would wait for the slower half.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Lanes:
    """How many runs at once, and PyTorch's threads for each."""

    count: int
    threads_each: int

    @classmethod
    def of(cls, threads: int) -> Lanes:
        """Two lanes, or one where there is one thread only.

        More than two would hold the boundary tensors of more runs, and wait for the longest segment, which is about
        half of a run.
        """
        return cls(2, threads // 2) if threads > 1 else cls(1, 1)

    @contextmanager
    def threads(self) -> Iterator[None]:
        """PyTorch with the threads of one lane, in this thread and in those that begin within the block."""
        before = torch.get_num_threads()
        torch.set_num_threads(self.threads_each)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    @contextmanager
    def open(self) -> Iterator[Executor]:
        """A thread for each lane; what has not begun by the end of the block never does."""
        with self.threads():
            pool = ThreadPoolExecutor(self.count, "lane", torch.set_num_threads, (self.threads_each,))
            try:
                yield pool
            finally:
                pool.shutdown(cancel_futures=True)
