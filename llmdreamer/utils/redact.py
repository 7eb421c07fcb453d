"""Blots out secrets wherever text leaves a run: lines, files, records."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

SECRET = re.compile(r"(^|[._])(password|passwd|secret|token|api_?key|credentials?)$", re.IGNORECASE)
"""A key whose value is nobody's business."""
_IN_URL = re.compile(r"([a-zA-Z][\w+.-]*://(?:[^/\s:@]*:)?)[^/\s]+@")
_QUOTED = r"'[^']*'|\"[^\"]*\""
# What is typed ends at a space or a comma, whatever brackets are in it; in a mapping at its bracket, too.
_GIVEN = re.compile(
    r"(\b(?:[\w.]*[._])?(?:password|passwd|secret|token|api_?key|credentials?)['\"]?\s*)"
    rf"(?:(=\s*)(?:{_QUOTED}|[^\s,])+|(:\s*)(?:{_QUOTED}|[^\s,}}\])])+)",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Blot out passwords and tokens in URLs (`scheme://user:***@host`), and in `api_key=...`,
    `{api_key: ...}` and their like."""
    return _GIVEN.sub(r"\1\2\3***", _IN_URL.sub(r"\1***@", text))


def as_typed(words: Iterable[str]) -> str:
    """What was typed, to be typed again: quoted as a shell wants it, without its secrets."""
    return shlex.join(redact(word) for word in words)
