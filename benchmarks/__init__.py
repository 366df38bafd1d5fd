"""Measurements, each as a ratio against a named peer in one interleaved run."""
