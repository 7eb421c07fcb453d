"""Where a run's time goes: seconds by stage, and the arithmetic and memory that they bought."""

from __future__ import annotations

import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch.utils.flop_counter import FlopCounterMode

Result = TypeVar("Result")


class Clock:
    """Wall time by stage between two readings. On a GPU a stage's time is that of its launches."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._since = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what runs inside; stages do not nest."""
        begin = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[name] += time.perf_counter() - begin

    def read(self) -> tuple[float, dict[str, float]]:
        """Seconds since the last reading, and each stage's share of them, in [0, 1]."""
        now = time.perf_counter()
        elapsed, self._since = max(1e-9, now - self._since), now
        shares = {name: seconds / elapsed for name, seconds in self._seconds.items()}
        self._seconds.clear()
        return elapsed, shares


def counted(work: Callable[[], Result]) -> tuple[Result, float]:
    """The result of `work`, and the floating-point operations of its matrix products.

    A multiplication and an addition count as two; elementwise operations are left out, as is usual.
    """
    with FlopCounterMode(display=False) as counter:
        result = work()
    return result, float(counter.get_total_flops())


def peak_memory(device: torch.device) -> float:
    """Bytes: the most that the process has held, or on a GPU the most that torch has there."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
