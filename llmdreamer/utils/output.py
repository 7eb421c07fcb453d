"""Lines on the terminal, without control characters. Nothing that is only shown may end training."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper

from llmdreamer.utils.errors import STOP_REQUESTS, describe_error
from llmdreamer.utils.printable import printable
from llmdreamer.utils.redact import redact_message

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
    """Print text to standard output at once. If that is closed or full, discard this and later text."""
    try:
        print(printable(text), flush=True)
    except OSError:
        discard_output()


def print_error(text: str) -> None:
    """Print text without secrets to standard error, if that is open."""
    if sys.stderr is None:
        return
    try:
        print(redact_message(text), file=sys.stderr, flush=True)
    except OSError:
        pass  # the reader of the pipe has exited, or the disk is full


def replace_unencodable() -> None:
    """Print `?` for a character that the terminal's encoding lacks, instead of raising an error."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def discard_output() -> None:
    """Redirect standard output to the null device, so that no later write or flush fails."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, STDOUT)
    os.close(null)
