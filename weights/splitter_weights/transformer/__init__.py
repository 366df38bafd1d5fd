"""The transformer's weights as one safetensors file for a port, and the manifest that explains it.

`form` says which tensors a layout has, `encoding` how a tensor is stored, `exporting` writes the file and
`importing` reads any form of it back into what the kernels take.
"""

from .exporting import export
from .importing import load
from .record import ARTIFACT, FORMAT, TensorRecord, TransformerRecord, json_schema, record_of

__all__ = ["ARTIFACT", "FORMAT", "TensorRecord", "TransformerRecord", "export", "json_schema", "load", "record_of"]
