"""Says what a difference of the shipped transformer comes from: the port, or the form of its weights.

The chain is: captured segment → the same with the weights as the file holds them (compression) → NumPy and JAX on
these weights (kernels). Each link is judged by itself, from the golden input of the segment.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import torch
from splitter_kernels.spec import POSITIONS
from splitter_weights import transformer as weights
from threadpoolctl import threadpool_limits

from ...boundary import Array
from ...bundle.directory import Bundle
from ...bundle.manifest import SegmentRecord
from ...errors import CheckpointError, SplitterError
from ...runtime.engines import engine
from ...verification.checks import Check, Status, compared, least_to_spare
from .. import capabilities


def kernel_checks(
    bundle: Bundle, segment: SegmentRecord, golden: Mapping[str, Array], captured: Mapping[str, Array]
) -> list[Check]:
    """Both links, in decibels against the plan's limits.

    Weights stored without loss are not put into the graph: there the port is held against the graph's own, so that
    a file of other weights is a difference of the port.

    Args:
        bundle: With the graph's own precision at its boundaries.
        segment: The transformer.
        golden: The recorded run.
        captured: What the captured segment gives, from its golden input.
    """
    try:
        form = weights.record_of(segment.artifact.details).form
        if form.is_lossless:
            why = "the weights are stored without loss"
            checks = [Check("compression", segment.name, Status.NOT_APPLICABLE, "torch", "local", note=why)]
            expected = {name: captured[name] for name in segment.outputs}
        else:
            decoded = with_stored_weights(bundle, segment)
            expected = _run(decoded, segment, "torch", golden)
            limits = _limits(bundle, segment)
            checks = [*_weight_checks(bundle, decoded, segment, limits)]
            limit = min(limits.values())
            checks += _compared(bundle, segment, "compression", "torch", limit, captured, expected)
    except SplitterError as error:
        return [Check(segment.artifact.target, segment.name, Status.FAIL, "torch", "local", note=str(error))]
    limit = bundle.manifest.plan.tolerances.kernels_snr_db
    # XLA compiles on one core: NumPy's products keep to another, where their threads would wait busily on both.
    engines = capabilities(segment.artifact.target).engines
    with threadpool_limits(1, "blas"), ThreadPoolExecutor() as pool:
        running = {name: pool.submit(_run, bundle, segment, name, golden) for name in engines}
    for name, run in running.items():
        try:
            results = run.result()
        except SplitterError as error:
            checks.append(Check(segment.artifact.target, segment.name, Status.FAIL, name, "local", note=str(error)))
        else:
            checks += _compared(bundle, segment, segment.artifact.target, name, limit, expected, results)
    return checks


def _run(bundle: Bundle, segment: SegmentRecord, name: str, golden: Mapping[str, Array]) -> dict[str, Array]:
    inputs = {tensor: golden[tensor] for tensor in segment.inputs}
    return engine(name)(bundle, segment, compute_units="ALL").run(inputs)


def _compared(
    bundle: Bundle,
    segment: SegmentRecord,
    kind: str,
    engine_name: str,
    limit: float,
    before: Mapping[str, Array],
    after: Mapping[str, Array],
) -> Iterator[Check]:
    limits = {"limit_db": limit, "negligible": bundle.manifest.plan.tolerances.negligible_max_abs}
    for name in segment.outputs:
        yield compared(kind, name, before[name], after[name], **limits, engine=engine_name, scope="local")


def with_stored_weights(bundle: Bundle, segment: SegmentRecord) -> Bundle:
    """The bundle whose captured segment has the weights that the transformer's file holds."""
    record = weights.record_of(segment.artifact.details)
    _, stored = weights.load(bundle.path / segment.artifact.path, record, bundle.files.read)
    program = bundle.program(segment.program)
    replaced = dict(program.weights)
    for name, source in record.sources.items():
        if name in POSITIONS.values():  # the graph computes its own, and the port's are never compressed
            continue
        if source not in replaced or tuple(replaced[source].shape) != stored[name].shape:
            raise CheckpointError(
                f"{name!r} comes from no weight of the captured segment",
                expected=f"{source!r} with the shape {stored[name].shape}",
                fix="Build the bundle again.",
            )
        replaced[source] = torch.nn.Parameter(torch.from_numpy(stored[name]), replaced[source].requires_grad)
    changed = replace(program.copy(), weights=replaced)
    return bundle.with_programs({segment.program: changed})


def _limits(bundle: Bundle, segment: SegmentRecord) -> dict[str, float]:
    """What each matrix that may have changed must reach, by its name in the model."""
    record = weights.record_of(segment.artifact.details)
    tolerances = bundle.manifest.plan.tolerances.compression_snr_db
    losses = {record.sources[name]: record.form.loss_of(name) for name in record.matrices}
    return {source: tolerances[loss] for source, loss in losses.items() if loss is not None}


def _weight_checks(
    bundle: Bundle, decoded: Bundle, segment: SegmentRecord, limits: Mapping[str, float]
) -> Iterator[Check]:
    """The stored weights against the graph's: the matrix with the least to spare in decibels, all else bit for bit.

    Where layer scales are small the outputs hardly show what a matrix has become.
    """
    own, stored = (
        {key: weight.detach().numpy() for key, weight in holder.program(segment.program).weights.items()}
        for holder in (bundle, decoded)
    )
    kept = [key for key in own if key not in limits]
    different = [key for key in kept if own[key].tobytes() != stored[key].tobytes()]
    note = f"{len(different)} of {len(kept)} differ, the first {different[0]!r}" if different else ""
    status = Status.FAIL if different else Status.PASS
    yield Check("compression", f"{segment.name}: norms, biases, scales", status, "torch", "local", note=note)
    negligible = bundle.manifest.plan.tolerances.negligible_max_abs
    yield min(
        (
            compared(
                "compression", key, own[key], stored[key],
                limit_db=limit, negligible=negligible, engine="torch", scope="local",
            )
            for key, limit in limits.items()
        ),
        key=least_to_spare,
    )  # fmt: skip
