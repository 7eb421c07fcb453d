"""Blots out secrets wherever text leaves a run: lines, files, records."""

from __future__ import annotations

import re

SECRET = re.compile(r"(^|[._])(password|passwd|secret|token|api_?key|credentials?)$", re.IGNORECASE)
"""A key whose value is nobody's business."""
_IN_URL = re.compile(r"([a-zA-Z][\w+.-]*://(?:[^/\s:@]*:)?)[^/\s]+@")
_GIVEN = re.compile(
    r"(\b(?:[\w.]*[._])?(?:password|passwd|secret|token|api_?key|credentials?)['\"]?\s*[=:]\s*)"
    r"(?:'[^']*'|\"[^\"]*\"|[^\s,}\])]+)",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Blot out passwords and tokens in URLs (`scheme://user:***@host`), and in `api_key=...`,
    `{api_key: ...}` and their like."""
    return _GIVEN.sub(r"\1***", _IN_URL.sub(r"\1***@", text))
