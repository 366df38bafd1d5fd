"""The cross-domain transformer of HT Demucs, written from its formulae.

Independent of PyTorch and of the compiler: `spec` names every tensor and shape, `reference` computes in
NumPy at any precision, `xla` computes in JAX. A port to another language reads these three files.
"""
