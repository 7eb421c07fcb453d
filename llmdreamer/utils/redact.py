"""Redacts secrets in everything that leaves a run: log lines, files, records."""

from __future__ import annotations

import logging
import re
import shlex
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import unquote

from llmdreamer.utils.printable import printable

REDACTED = "***"
# A name may be glued to a word in front of it (`authtoken`), but not to one behind: `tokens` stays.
_NAME = (
    r"(?:[\w.-]*(?:password|passwd|passphrase|secret|token|credentials?|signature"
    r"|(?:api|access|account|private|secret|ssl)[_-]?key|access[_-]?key[_-]?id)"
    r"|(?:[\w.-]*[._-])?pwd)"
)
SECRET = re.compile(
    rf"(?:^|\.)(?:{_NAME}|(?:proxy-)?authorization|(?:set-)?cookie)$", re.IGNORECASE
)
"""Matches a key whose value is secret."""
# A password in a URL may hold `/` and `@`: it ends at the last `@` of the word. Only words with an `@` are
# searched, up to it: this keeps the time linear in the length of a word.
_UP_TO_LAST_AT = re.compile(r"(?<!\S)\S+@")
_IN_URL = re.compile(r"(?<![\w+.-])([\w+.-]++://)(?:([^/\s:@]*:)(\S+)|([^/\s]+))@")
_IN_QUERY = re.compile(
    # Short names are secrets only in a URL: Azure's `sig`, Google's `key`.
    rf"([?&;](?:{_NAME}|pass|sig|key|auth)=)([^&\s]*?)(?=['\"]*[;:,)]?(?:[&\s]|$))",
    re.IGNORECASE,
)
_QUOTED = r"'(?:\\.|[^'\\])*+'|\"(?:\\.|[^\"\\])*+\""
# A mapping, a list or a call, with others in it.
_BRACKETS = "|".join(
    rf"{start}(?:{_QUOTED}|\\.|[^{start}{end}]|{start}[^{start}{end}]*+{end})*+{end}"
    for start, end in ((r"\{", r"\}"), (r"\[", r"\]"), (r"\(", r"\)"))
)
_PART = rf"{_QUOTED}|{_BRACKETS}|\\[^\n]"
# After `=` a value ends at a space, or at a comma in front of a space or of another `key=`; after `:`, in a
# mapping, at any comma and at a closing bracket too.
_ASSIGNMENT = re.compile(
    rf"((?<![\w.?&;-]){_NAME}['\"]?\s*)"
    rf"(?:(=\s*)(?:{_PART}|[^\s,]|,(?!\s|$|['\"]?[\w.-]+['\"]?[=:]))+|(:\s*)(?:{_PART}|[^\s,}}\])])+)",
    re.IGNORECASE,
)
_FLAG = re.compile(
    rf"((?<![\w-])--{_NAME}\s+)(?:{_QUOTED}|[^\s'\"-])(?:{_QUOTED}|[^\s'\"])*", re.IGNORECASE
)
# After `Authorization:` any word is a secret. After a bare scheme, only one that is no plain word: with a
# digit in it, or padded. "Basic training" stays.
_SCHEME = r"(?:Bearer|Basic|Token|Digest|Negotiate|NTLM|Kerberos|OAuth|ApiKey|AWS4-HMAC-SHA256)"
_FIELD = r"[\w-]+=(?:\\?\"[^\"]*\"|[^\s,'\"]+)"
_AUTHORIZATION = re.compile(
    rf"(authorization['\"]?\s*[:=]\s*['\"]?(?:{_SCHEME}\s+)?+)"
    rf"(?:{_FIELD}(?:\s*,\s*{_FIELD})+|{_FIELD}(?=\s|$)|[\w.~+/=-]{{6,}})",
    re.IGNORECASE,
)
_COOKIE = re.compile(
    r"(cookie['\"]?\s*[:=]\s*['\"]?)[^\s=;,'\"]+=(?:\"[^\"]*\"|[^\s;'\"]*)(?:;\s*[^\s;'\"]+)*",
    re.IGNORECASE,
)
_HEADER = re.compile(r"\b(Bearer|Basic)\s+(?=[\w.~+/-]*[0-9=])[\w.~+/-]{6,}=*")
# A proxy may be given without a scheme: `https_proxy=user:password@host:3128`. A value without an `@` matches
# too, so that it is not read again from each `proxy` inside it.
_PROXY = re.compile(r"(proxy['\"]?\s*[=:]\s*['\"]?[^\s:@/]++)(?::[^\s@/]++(@)?)?", re.IGNORECASE)
_SHORTEST_VALUE = 6
"""Shorter secrets are not searched for in messages: ordinary words contain them."""
_values: set[str] = set()


def redact(text: str) -> str:
    """Replace passwords and tokens with `***`: in URLs (`scheme://user:***@host`, `?password=***`), in
    `api_key=...`, and in `{api_key: ...}`."""
    text = _IN_QUERY.sub(rf"\1{REDACTED}", text)
    text = _AUTHORIZATION.sub(rf"\1{REDACTED}", text)
    text = _COOKIE.sub(rf"\1{REDACTED}", text)
    text = _FLAG.sub(rf"\1{REDACTED}", text)
    text = _PROXY.sub(lambda match: f"{match[1]}:{REDACTED}@" if match[2] else match[0], text)
    text = _ASSIGNMENT.sub(rf"\1\2\3{REDACTED}", text)
    text = _HEADER.sub(rf"\1 {REDACTED}", text)
    return _UP_TO_LAST_AT.sub(lambda word: _IN_URL.sub(rf"\1\2{REDACTED}@", word[0]), text)


def redact_values(value: Any, key: str = "") -> Any:
    """Return nested mappings and lists with their secrets redacted; `key` is the key of `value`."""
    is_empty = value is None or isinstance(value, bool) or value in ("", (), [], {})
    if SECRET.search(key) and not is_empty:
        return REDACTED
    if isinstance(value, Mapping):
        return {name: redact_values(item, str(name)) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(item) for item in value]
    return redact(value) if isinstance(value, str) else value


def remember_secrets(value: Any, key: str = "") -> None:
    """Remember the secrets of a configuration, so that `redact_message` finds them in any sentence."""
    if isinstance(value, Mapping):
        for name, item in value.items():
            remember_secrets(item, key if SECRET.search(key) else str(name))
    elif isinstance(value, list | tuple):
        for item in value:
            remember_secrets(item, key)
    elif isinstance(value, str):
        secrets = [value] if SECRET.search(key) else []
        secrets += [secret for _, secret in _IN_QUERY.findall(value)]
        for word in _UP_TO_LAST_AT.findall(value):
            secrets += [secret or token for _, _, secret, token in _IN_URL.findall(word)]
        for secret in (*secrets, *map(unquote, secrets)):
            if len(secret) >= _SHORTEST_VALUE and secret != REDACTED:
                _values.add(secret)


def redact_message(text: str) -> str:
    """Make a text of any origin fit to be shown, such as the text of an exception.

    Control characters are removed, and secrets are redacted, also by their values.
    """
    text = printable(text)
    for secret in sorted(_values, key=len, reverse=True):
        text = text.replace(secret, REDACTED)
    return redact(text)


def redact_override(word: str) -> str:
    """Redact a typed word `key=value`: the whole value if the key is secret, whatever its notation."""
    key, equals, value = word.partition("=")
    if value and SECRET.search(key.lstrip("+~-").partition("@")[0]):
        return f"{key}{equals}{REDACTED}"
    return redact(word)


def as_typed(words: Iterable[str]) -> str:
    """Join the words of a command, quoted for a shell and without secrets, so that it can be repeated."""
    return _FLAG.sub(rf"\1{REDACTED}", shlex.join(redact_override(word) for word in words))


class RedactingFormatter(logging.Formatter):
    """Formats a record without secrets and control characters, its traceback included."""

    def format(self, record: logging.LogRecord) -> str:
        return redact_message(super().format(record))
