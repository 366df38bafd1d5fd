"""Captured graphs without PyTorch's kernels: every ATen operator once more, by JAX.

`ops` has one small function for each operator, `executor` compiles a whole program out of them. The room knows
programs (`splitter.graph`), no bundle, no segment and no model.
"""
