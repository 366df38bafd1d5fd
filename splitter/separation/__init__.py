"""Whole songs: files or arrays in, stems out.

`separator` streams one track through a bundle, `batch` many files, one after another or in `workers`; `receipts` tell
what has been done. `selection` chooses the engines by their speed, `named` finds bundles by the name of a model.
"""
