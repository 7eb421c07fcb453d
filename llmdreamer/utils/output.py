"""Standard output of a run. Nothing that is only shown may end training."""

from __future__ import annotations

import os

STDOUT = 1


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
