"""Sets how the threads of OpenMP wait; libgomp reads it once, when torch is imported."""

from __future__ import annotations

import os

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Any of them says that the user has decided how threads wait."""


def wait_passively() -> None:
    """Let a thread sleep while it waits for the others, unless the user has decided. Call before torch loads.

    By default it spins. While another program has one of the cores, the thread that shares it comes late at
    every operation, and the others spin until it does: an update at XS took three times as long.
    """
    if not any(name in os.environ for name in VARIABLES):
        os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
