"""What cannot be traced as it stands, patched by name while a model is captured; each patch with its reason."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FunctionType

import torch

from ..patching import replaced


@dataclass(frozen=True)
class WithoutAssertions:
    """Recompile one named function without its ``assert`` statements, as ``python -O`` would.

    The function's own source is used, so nothing of it is copied here. It is replaced in every module
    that imported it by name.
    """

    module: str
    function: str

    @contextmanager
    def __call__(self) -> Iterator[None]:
        if self.module not in sys.modules:  # the model being captured does not use it
            yield
            return
        home = importlib.import_module(self.module)
        original: FunctionType = getattr(home, self.function)
        # Compiled in the function's own namespace, then taken out of it again.
        namespace = dict(vars(home))
        code = compile(inspect.getsource(original), inspect.getsourcefile(original) or "", "exec", optimize=1)
        exec(code, namespace)
        with ExitStack() as stack:
            for holder in list(sys.modules.values()):
                if getattr(holder, "__dict__", {}).get(self.function) is original:
                    stack.enter_context(replaced(holder, self.function, namespace[self.function]))
            yield


@contextmanager
def without_unfold_backward_decomposition() -> Iterator[None]:
    """Let the C++ meta kernel give `unfold_backward`'s shape.

    PyTorch's Python decomposition of it runs one `index_add` per sample of the window when `istft`
    is traced: 9 of 10 s of a capture with one. Only the traced shape comes from it.
    """
    from torch._decomp import decomposition_table

    operator = torch.ops.aten.unfold_backward.default
    decomposition = decomposition_table.pop(operator, None)
    try:
        yield
    finally:
        if decomposition is not None:
            decomposition_table[operator] = decomposition


@contextmanager
def without_fused_attention() -> Iterator[None]:
    """Keep PyTorch's attention modules on the operators their source shows.

    In inference `nn.MultiheadAttention` and `nn.TransformerEncoderLayer` otherwise swap in fused kernels
    that differ in the last bit and that nothing but PyTorch has.
    """
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
