"""Sets how the threads of OpenMP wait; libgomp reads it once, when torch is imported."""

from __future__ import annotations

import os

VARIABLES = ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")
"""Any of them says that the user has decided how threads wait."""


SPINS = 500
"""Enough for the next operation of a small model to find the threads awake, and microseconds in time."""


def wait_briefly() -> None:
    """Let a thread that waits for the others sleep soon, unless the user has decided.

    Call it before torch is loaded. By default a thread spins for long. While another program has one of the
    cores, the thread that shares it comes late at every operation, and the others spin until it does:
    docs/performance.md, "Beside other programs".
    """
    if not any(name in os.environ for name in VARIABLES):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
