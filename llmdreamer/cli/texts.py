"""Keeps a typed text as it was typed: Hydra reads `1e3` as 1000.0 and `true` as True."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from llmdreamer.config import ComposedConfig, leaves
from llmdreamer.sweep.settings import SweeperSettings

_TEXTS = frozenset(
    prefix + key
    for prefix, schema in (("", ComposedConfig), ("hydra.sweeper.", SweeperSettings))
    for key, kind in leaves(schema).items()
    if kind is str or kind == str | None
)


def quote_texts(words: Sequence[str]) -> list[str]:
    """Quote each value that is a number or a truth value to Hydra, but whose key holds a text.

    `run_name=1e3` becomes `run_name='1e3'`. Flags, lists of values and other keys stay as they are.
    """
    return [_quote(word) if word.partition("=")[0] in _TEXTS else word for word in words]


def _quote(word: str) -> str:
    try:
        override = OverridesParser.create().parse_override(word)
    except HydraException:
        return word  # Hydra reports it
    if override.is_sweep_override() or not isinstance(override.value(), bool | int | float):
        return word
    key, _, value = word.partition("=")
    return f"{key}='{value.strip()}'"
