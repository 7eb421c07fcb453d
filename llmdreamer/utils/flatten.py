"""Flattens nested mappings to dotted keys, the form that records and MLflow use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmdreamer.utils.redact import REDACTED, SECRET, redact, redact_values

Scalar = str | int | float | bool | None


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Convert nested mappings to dotted keys and lists to JSON, with secrets redacted.

    `{"a": {"b": [1, 2]}}` becomes `{"a.b": "[1, 2]"}`. An empty mapping becomes `"{}"`.
    """
    flat: dict[str, Scalar] = {}
    for name, value in mapping.items():
        key = f"{prefix}{name}"
        if SECRET.search(key) and value is not None:
            flat[key] = REDACTED
        elif isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{key}."))
        elif value is None or isinstance(value, bool | int | float):
            flat[key] = value
        else:
            safe = redact_values(value)
            flat[key] = safe if isinstance(safe, str) else redact(json.dumps(safe, default=str))
    return flat
