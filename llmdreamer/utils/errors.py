"""The errors a user can cause, each told in one line before anything is trained."""

from collections.abc import Iterable
from difflib import SequenceMatcher


class ConfigError(ValueError):
    """A mistake in what the user asked for: what is wrong, the value, what to do."""

    exit_code = 2


class Diverged(RuntimeError):
    """Numbers are not finite and will not become so: the run ends, and what is on the disk stays."""

    exit_code = 3


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest choice, or an empty string if none is near.

    Of a dotted key the last part counts twice: `algo.lr` is near `algo.optimizer.lr`.
    """

    def likeness(choice: str) -> float:
        whole = SequenceMatcher(None, word, choice).ratio()
        last = SequenceMatcher(None, word.rpartition(".")[2], choice.rpartition(".")[2]).ratio()
        return (whole + 2 * last) / 3

    near = max(choices, key=likeness, default=None)
    return f"; did you mean '{near}'?" if near is not None and likeness(near) >= 0.6 else ""
