"""Single operations through the whole way: Core ML Tools' builder, a saved package, our runtime."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from splitter.mil import load
from splitter.mil.coreml_tools import ct, quiet_and_quick
from splitter.mil.numerics import Numerics

mb = ct.converters.mil.Builder
types = ct.converters.mil.mil.types
TARGETS = {"iOS15": ct.target.iOS15, "iOS16": ct.target.iOS16, "iOS17": ct.target.iOS17, "iOS18": ct.target.iOS18}
_MIL = {np.dtype(k): v for k, v in {
    "float32": types.fp32, "float16": types.fp16, "int32": types.int32, "bool": types.bool,
    "int8": types.int8, "uint8": types.uint8, "int16": types.int16, "uint16": types.uint16,
}.items()}  # fmt: skip


def f16(*shape, value=1.0):
    return np.full(shape, value, np.float16)


def f32(*shape, value=1.0):
    return np.full(shape, value, np.float32)


def package(build, inputs, directory, target="iOS17"):
    """Save the program ``build(*inputs)`` as a package; ``inputs`` are example arrays by name."""
    specs = [mb.TensorSpec(shape=array.shape, dtype=_MIL[array.dtype]) for array in inputs.values()]
    # The builder takes names from the function's own parameters.
    names = ", ".join(inputs)
    scope = {"build": build}
    exec(f"def body({names}):\n    return build({names})", scope)
    program = mb.program(input_specs=specs, opset_version=TARGETS[target])(scope["body"])
    with quiet_and_quick():
        model = ct.convert(
            program,
            convert_to="mlprogram",
            minimum_deployment_target=TARGETS[target],
            compute_precision=ct.precision.FLOAT32,
            pass_pipeline=ct.PassPipeline.EMPTY,
            skip_model_load=True,
        )
    path = Path(directory) / "op.mlpackage"
    model.save(str(path))
    return path


def run(build, inputs, target="iOS17", numerics=Numerics(), **options):
    """Outputs of ``build(*inputs)``, in order, computed by our runtime from the saved package."""
    with tempfile.TemporaryDirectory() as directory:
        model = load(package(build, inputs, directory, target), numerics=numerics, **options)
        results = model.predict(inputs)
        return [results[name] for name in model.function.block.outputs]
