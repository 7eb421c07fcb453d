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
from torch.utils.flop_counter import (
    FlopCounterMode,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

_ATEN = torch.ops.aten
# Attention's kernel on a CPU, which torch's own counter does not know; its arguments as shapes.
_UNCOUNTED = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
    ),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, query, key, value, *_, **__: sdpa_backward_flop_count(grad, query, key, value)
    ),
}

Result = TypeVar("Result")


class Clock:
    """Wall time by stage between two readings. On a GPU a stage's time is that of its launches."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._since = time.perf_counter()
        self._inner = 0.0  # seconds of stages inside the one that runs

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time what runs inside, less the stages inside of it: no second counts twice."""
        outer, self._inner = self._inner, 0.0
        begin = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - begin
            self._seconds[name] += elapsed - self._inner
            self._inner = outer + elapsed

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
    Attention counts whole, as if nothing in it were masked.
    """
    with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
        result = work()
    return result, float(counter.get_total_flops())


def peak_memory(device: torch.device) -> float:
    """Bytes: the most that the process has held, or on a GPU the most that torch has there."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
