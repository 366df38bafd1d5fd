"""Prints the JSON Schema of a profile."""

from __future__ import annotations

import json

from .records import json_schema

print(json.dumps(json_schema(), indent=1))  # noqa: T201 (its whole purpose)
