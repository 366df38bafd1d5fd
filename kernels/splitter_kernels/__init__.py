"""The cross-domain transformer of HT Demucs, written from its formulae.

Independent of PyTorch and of the compiler: `spec` names every tensor and shape, `reference` computes in
NumPy at any precision, `xla` computes in JAX, `taps` names every
value at which a port can be compared, `metal` holds compute kernels and executes them without a Mac. A port to another
language reads the first four.
"""
