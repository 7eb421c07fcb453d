"""The environment variables that torchrun sets in each of its processes, checked without importing torch."""

from __future__ import annotations

import os

from llmdreamer.utils.errors import ConfigError

LAUNCH_VARIABLE = "TORCHELASTIC_RUN_ID"
"""Set if and only if torchrun has started the process."""
_NUMBERS = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT")


def check_variables() -> None:
    """Refuse variables of torchrun that a shell has kept, or set only in part.

    Raises:
        ConfigError: with the first variable that is missing or wrong.
    """
    if LAUNCH_VARIABLE not in os.environ:
        return
    for name in (*_NUMBERS, "MASTER_ADDR"):
        value = os.environ.get(name)
        is_number = value is not None and value.isascii() and value.isdigit() and len(value) < 10
        if value is None or (name in _NUMBERS and not is_number):
            state = "is not set" if value is None else f"is {value[:40]!r}"
            raise ConfigError(
                f"{LAUNCH_VARIABLE} is set, but {name} {state}: start several processes with torchrun;"
                f" for one process type unset {LAUNCH_VARIABLE}"
            )
