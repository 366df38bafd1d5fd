"""Packages of one segment, each for another shape of its inputs, as functions of one package.

The alternative, one function with enumerated shapes, asks for a graph whose shapes are symbols. A captured graph has
none: its reshapes, paddings and tables are those of one shape. As functions each graph stays what was captured, passed
and verified; Core ML Tools stores once what several read.
"""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path

from ...errors import LoweringError
from ...mil.coreml_tools import ct, quiet_and_quick

_SPECIFICATION = "Data/com.apple.CoreML/model.mlmodel"


def merge(packages: Mapping[str, Path]) -> None:
    """Into the first one, see `splitter.lowering.Target.merge`."""
    first, *_ = packages.items()
    description = ct.utils.MultiFunctionDescriptor()
    for name, path in packages.items():
        description.add_function(str(path), src_function_name="main", target_function_name=name)
    description.default_function_name = first[0]
    with tempfile.TemporaryDirectory(dir=first[1].parent) as folder:
        together = Path(folder) / first[1].name
        try:
            with warnings.catch_warnings(), quiet_and_quick():
                warnings.simplefilter("ignore")  # Core ML Tools' own
                ct.utils.save_multifunction(description, str(together))
        except Exception as error:  # Core ML Tools raises every kind
            raise LoweringError(
                f"Core ML Tools cannot put the variants {', '.join(packages)} into {first[1].name}",
                received=f"{type(error).__name__}: {error}",
                fix="Leave `variants` out of the plan, and build a bundle for each shape.",
            ) from error
        specification = ct.utils.load_spec(str(together))
        said = ct.utils.load_spec(str(first[1])).description.metadata  # which merging drops
        specification.description.metadata.CopyFrom(said)
        (together / _SPECIFICATION).write_bytes(specification.SerializeToString())
        shutil.rmtree(first[1])
        together.rename(first[1])
