"""Writes the commands that are printed, quoted for a shell and for Hydra, so that they can be pasted."""

from __future__ import annotations

import re
from collections.abc import Iterable

from llmdreamer.utils.program import to_type
from llmdreamer.utils.redact import as_typed

# Texts that Hydra reads as themselves without quotes: paths, and names that are no literals.
_PLAIN = re.compile(r"[A-Za-z0-9_./-][A-Za-z0-9_./:-]*/[A-Za-z0-9_./-]*|[A-Za-z_][A-Za-z0-9_-]*")
_LITERALS = ("null", "true", "false", "nan", "inf")


def override(key: str, value: object) -> str:
    """Write `key=value` so that Hydra reads the text of the value literally."""
    return f"{key}={quote_for_hydra(str(value))}"


def quote_for_hydra(text: str) -> str:
    """Quote a text in Hydra's override grammar, unless it is read literally without quotes."""
    if _PLAIN.fullmatch(text) and text.lower() not in _LITERALS:
        return text
    # OmegaConf reads `${` as a reference to another key, and Hydra ends the text at a quote. Both are
    # escaped by a backslash. Backslashes count as escapes only in front of these two, and at the end.
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)
    text = re.sub(r'(\\*)"', r'\1\1\\"', text)
    text = re.sub(r"(\\+)$", r"\1\1", text)
    return f'"{text}"'


def argument(key: str, value: object) -> str:
    """Return the argument `key=value` as it is typed in a shell, without secrets."""
    return as_typed([override(key, value)])


def resume_command(folder: object, trust: Iterable[str] = ()) -> str:
    """Return the command that resumes the run in a folder."""
    packages = ",".join(trust)
    words = [override("resume", folder), *([f"trust=[{packages}]"] if packages else [])]
    return f"{to_type()} {as_typed(words)}"
