"""Imported once by a server that forks the processes of a test: they start with everything loaded and captured once."""

import torch

from splitter import compiler, reporting  # noqa: F401 - to have been imported
from splitter.graph.capture import capture
from splitter.runtime.engines import openvino_engine  # noqa: F401
from splitter.separation import batch, selection  # noqa: F401
from splitter.tuning import precision  # noqa: F401

from .toys import GRAPHS_PLAN, duo

torch.set_num_threads(1)  # teams of threads do not survive a fork
capture(duo().eval(), {"mix": torch.randn(1, 2, 64)}, GRAPHS_PLAN.outputs)
