"""The errors a user can cause, each told in one line before anything is trained."""

from difflib import get_close_matches
from collections.abc import Iterable


class ConfigError(ValueError):
    """A mistake in what the user asked for: what is wrong, the value, what to do."""


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest choice, or an empty string if none is near."""
    near = get_close_matches(word, list(choices), n=1, cutoff=0.6)
    return f"; did you mean '{near[0]}'?" if near else ""
