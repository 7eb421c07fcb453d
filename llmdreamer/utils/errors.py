"""Errors that end a run with one line instead of a traceback."""

from collections.abc import Iterable
from difflib import SequenceMatcher


class ConfigError(ValueError):
    """A mistake in the request; the message says what is wrong, the value, and what to do."""

    exit_code = 2


class Diverged(RuntimeError):
    """Training produced numbers that are not finite, and has ended; files on disk are kept."""

    exit_code = 3


class Stopped(SystemExit):
    """Training stopped on a signal after a checkpoint: exit code 128 + the signal's number."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signum


STOP_REQUESTS = (KeyboardInterrupt, Stopped)
"""Raised by signals. They may arrive inside foreign code, and are no failures of it."""


def describe_error(error: BaseException) -> str:
    """Return an exception as one line: its class and its text, if it has any.

    The error may be of another package, whose `__str__` may fail.
    """
    try:
        text = " ".join(str(error).split())
    except Exception:  # noqa: BLE001
        text = ""
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def first_line(error: BaseException) -> str:
    """Return the first line of an error's text, or its class if it has none, as a `MemoryError()`."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def did_you_mean(word: str, choices: Iterable[str]) -> str:
    """Return `"; did you mean 'x'?"` for the nearest choice, or an empty string if none is near.

    The last part of a dotted key counts twice: `algo.lr` is near `algo.optimizer.lr`.
    """

    def likeness(choice: str) -> float:
        whole = SequenceMatcher(None, word, choice).ratio()
        last = SequenceMatcher(None, word.rpartition(".")[2], choice.rpartition(".")[2]).ratio()
        return (whole + 2 * last) / 3

    near = max(choices, key=likeness, default=None)
    return f"; did you mean '{near}'?" if near is not None and likeness(near) >= 0.6 else ""
