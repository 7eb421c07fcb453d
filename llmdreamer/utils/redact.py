"""Redacts secrets in everything that leaves a run: log lines, files, records."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable

SECRET = re.compile(r"(^|[._])(password|passwd|secret|token|api_?key|credentials?)$", re.IGNORECASE)
"""Matches a key whose value is secret."""
_IN_URL = re.compile(r"([a-zA-Z][\w+.-]*://(?:[^/\s:@]*:)?)[^/\s]+@")
_QUOTED = r"'[^']*'|\"[^\"]*\""
# After `=` a value ends at a space or a comma; after `:`, in a mapping, at a closing bracket too.
_ASSIGNMENT = re.compile(
    r"(\b(?:[\w.]*[._])?(?:password|passwd|secret|token|api_?key|credentials?)['\"]?\s*)"
    rf"(?:(=\s*)(?:{_QUOTED}|[^\s,])+|(:\s*)(?:{_QUOTED}|[^\s,}}\])])+)",
    re.IGNORECASE,
)


def redact(text: str) -> str:
    """Replace passwords and tokens by `***`: in URLs (`scheme://user:***@host`), in `api_key=...`, and in
    `{api_key: ...}`."""
    return _ASSIGNMENT.sub(r"\1\2\3***", _IN_URL.sub(r"\1***@", text))


def as_typed(words: Iterable[str]) -> str:
    """Join the words of a command, quoted for a shell and without secrets, so that it can be repeated."""
    return shlex.join(redact(word) for word in words)
