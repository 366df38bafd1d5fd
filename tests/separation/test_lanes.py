import threading

import numpy as np
import pytest
import torch

from splitter import Orchestrator
from splitter.separation.lanes import Lanes


@pytest.mark.parametrize(("threads", "lanes"), [(1, (1, 1)), (2, (2, 1)), (3, (2, 1)), (8, (2, 4))])
def test_lanes_share_the_threads(threads, lanes):
    assert Lanes.of(threads) == Lanes(*lanes)


def test_threads_are_those_of_a_lane_within_the_block_only():
    before = torch.get_num_threads()
    with Lanes(2, before + 1).open() as pool:
        assert [pool.submit(torch.get_num_threads).result() for _ in range(3)] == [before + 1] * 3
    assert torch.get_num_threads() == before


def test_what_has_not_begun_never_does():
    begun, gate = [], threading.Event()

    def run(number):
        begun.append(number)
        gate.wait(10)

    with pytest.raises(KeyboardInterrupt), Lanes(1, 1).open() as pool:
        for number in range(4):
            pool.submit(run, number)
        while not begun:
            pass
        threading.Timer(0.05, gate.set).start()
        raise KeyboardInterrupt
    assert begun == [0]


def test_segments_serve_one_run_at_a_time(demo_bundle):
    """Two runs at once come out as alone, and never meet in a segment."""
    golden = demo_bundle.goldens()
    orchestrator = Orchestrator(demo_bundle)
    meetings, most = {}, {}

    class Counted:
        def __init__(self, engine, segment):
            self.engine, self.segment, self.name = engine, segment, engine.name

        def run(self, inputs):
            meetings[self.segment] = meetings.get(self.segment, 0) + 1
            most[self.segment] = max(most.get(self.segment, 0), meetings[self.segment])
            try:
                return self.engine.run(inputs)
            finally:
                meetings[self.segment] -= 1

    for name, engine in orchestrator.engines.items():
        orchestrator.engines[name] = Counted(engine, name)
    alone = orchestrator.run({"mix": golden["mix"]})["stems"]
    with Lanes(3, torch.get_num_threads()).open() as pool:
        runs = [pool.submit(orchestrator.run, {"mix": golden["mix"]}) for _ in range(6)]
        assert all(np.array_equal(run.result()["stems"], alone) for run in runs)
    assert set(most.values()) == {1}
