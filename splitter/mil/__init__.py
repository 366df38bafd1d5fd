"""Saved ML Programs, read on any machine."""
