"""Text of any origin, made fit for a terminal."""

from __future__ import annotations

import re
import unicodedata

# A terminal obeys these: it would move its cursor, change its title or its clipboard, or hide text.
_ESCAPE_SEQUENCE = re.compile(
    r"(?:\x1b[P\]X^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c\n]*(?:\x07|\x1b\\|\x9c)?"  # OSC, DCS, ...
    r"|(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]?"  # CSI: colors, cursor
    r"|\x1b[ -/]*[0-~]?"
)
_BIDI_CONTROLS = "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"
"""They reorder the text around them, so that a line reads as another."""


def printable(text: str) -> str:
    """Remove escape sequences and control characters. Newlines and tabs stay; other breaks are spaces."""
    text = _ESCAPE_SEQUENCE.sub("", text.replace("\r\n", "\n"))
    return "".join(map(_clean_character, text))


def _clean_character(character: str) -> str:
    if character in "\n\t" or character == " ":
        return character
    if character in "\r\v\f\x85\u2028\u2029":
        return " "
    category = unicodedata.category(character)
    if category == "Cs":  # a byte of a path that is not UTF-8; it cannot be printed
        return "\ufffd"
    return "" if category == "Cc" or character in _BIDI_CONTROLS else character
