"""Flattens nested mappings to dotted keys, the form that records and MLflow use."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from llmdreamer.utils.redact import SECRET, redact

Scalar = str | int | float | bool | None


def flatten(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Scalar]:
    """Convert nested mappings to dotted keys and lists to JSON, with secrets redacted.

    `{"a": {"b": [1, 2]}}` becomes `{"a.b": "[1, 2]"}`. An empty mapping becomes `"{}"`.
    """
    flat: dict[str, Scalar] = {}
    for name, value in mapping.items():
        key = f"{prefix}{name}"
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{key}."))
        elif SECRET.search(key) and value is not None:
            flat[key] = "***"
        elif value is None or isinstance(value, bool | int | float):
            flat[key] = value
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            flat[key] = redact(text)
    return flat
