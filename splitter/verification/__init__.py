"""Is a bundle right, and is a port: checks of files, packages, kernels and dumps."""
