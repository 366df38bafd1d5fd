"""The one family of errors a user of splitter can meet.

Every message says what is wrong, what was expected, what was found, and what to do:
``song.wav is truncated: expected 441,000 samples, found 333,683. Export it again.``
"""

from __future__ import annotations


class SplitterError(Exception):
    """Base of all errors raised on purpose.

    Args:
        problem: What is wrong, as a sentence without its full stop.
        expected: What should have been there, where the problem does not say it.
        received: What was found.
        fix: What the user can do about it, as a sentence.
    """

    def __init__(self, problem: str, *, expected: object = None, received: object = None, fix: str = "") -> None:
        self.problem = problem
        self.expected = expected
        self.received = received
        self.fix = fix
        message = problem
        if expected is not None:
            message += f": expected {expected}" + ("" if received is None else f", found {received}")
        elif received is not None:
            message += f"; got {received}"
        # What is quoted may end in a full stop of its own.
        super().__init__(f"{message.removesuffix('.')}. {fix}" if fix else message)


class UsageError(SplitterError):
    """An option or argument that cannot be obeyed."""


class CheckpointError(SplitterError):
    """A model file that is missing, damaged, unknown, or asks for more than a model file may."""


class CaptureError(SplitterError):
    """A model whose graph cannot be captured as it is."""


class PlanError(SplitterError):
    """A plan that is malformed or does not fit the model."""


class PartitionError(SplitterError):
    """Segments that do not add up to the graph they were cut from."""


class PassError(SplitterError):
    """A graph pass whose result is further from its input than the pass promises."""


class LoweringError(SplitterError):
    """A segment that a target cannot express, or an artifact that is not what was asked for."""


class BundleError(SplitterError):
    """A bundle that is missing, damaged, or of another format."""


class CacheError(SplitterError):
    """A cache that others can write to."""


class BoundaryError(SplitterError):
    """A tensor at a boundary that breaks its contract."""


class EngineError(SplitterError):
    """An engine that is unknown, cannot run here, or failed."""


class PackageError(SplitterError):
    """A Core ML package that cannot be read, or is not what its own types say."""


class OperationError(SplitterError):
    """An operation of an ML Program that cannot be executed on what it was given."""


class OperatorError(SplitterError):
    """An operator of a captured graph that is not implemented, or not for what it was given."""


class AudioError(SplitterError):
    """An audio file that cannot be read or written."""


class WorkerError(SplitterError):
    """A worker process that ended before its work."""


class InternalError(SplitterError):
    """Something unforeseen that one file of a batch has brought up; the others go on."""
