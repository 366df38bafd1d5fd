"""Prints the JSON Schema of a transformer's record: ``python -m splitter_weights.transformer``."""

import json

from . import json_schema

print(json.dumps(json_schema(), indent=1))  # noqa: T201 (its whole purpose)
