"""Standard output of a run. Nothing that is only shown may end training."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from llmdreamer.utils.errors import STOP_REQUESTS, describe_error

STDOUT = 1

log = logging.getLogger(__name__)


@contextmanager
def only_shown(name: str) -> Iterator[None]:
    """Log a failure to make something that is only shown in one line, and continue.

    Args:
        name: what is then missing, such as `video`.
    """
    try:
        yield
    except STOP_REQUESTS:
        raise
    except Exception as error:  # noqa: BLE001 (whatever it is, training must not end)
        known = hasattr(error, "exit_code")  # its text is one line that explains itself
        log.warning("no %s: %s", name, error if known else describe_error(error))


def print_line(text: str) -> None:
    """Print a line at once. If standard output is closed or full, discard this and later lines."""
    try:
        print(text, flush=True)
    except OSError:
        discard_output()


def discard_output() -> None:
    """Redirect standard output to the null device, so that no later write or flush fails."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, STDOUT)
    os.close(null)
