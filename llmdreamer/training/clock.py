"""Measures a run: seconds by stage, floating-point operations, and peak memory."""

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
# torch's counter does not know the CPU's attention kernel. Arguments are shapes.
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
    """Wall time by stage between two readings. On a GPU it is the time of the launches."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._since = time.perf_counter()
        self._inner = 0.0  # seconds of the stages inside the current one

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage, without the stages inside it, so that no second counts twice."""
        outer, self._inner = self._inner, 0.0
        begin = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - begin
            self._seconds[name] += elapsed - self._inner
            self._inner = outer + elapsed

    def read(self) -> tuple[float, dict[str, float]]:
        """Return the seconds since the last reading, and each stage's share of them, in [0, 1]."""
        now = time.perf_counter()
        elapsed, self._since = max(1e-9, now - self._since), now
        shares = {name: seconds / elapsed for name, seconds in self._seconds.items()}
        self._seconds.clear()
        return elapsed, shares


def counted(work: Callable[[], Result]) -> tuple[Result, float]:
    """Return the result of `work`, and the floating-point operations of its matrix products.

    A multiplication and an addition count as two; elementwise operations are left out, as is usual.
    Attention counts as if nothing were masked.
    """
    with FlopCounterMode(display=False, custom_mapping=_UNCOUNTED) as counter:
        result = work()
    return result, float(counter.get_total_flops())


def peak_memory(device: torch.device) -> float:
    """Return the peak memory in bytes: of the process, or on a GPU of torch's allocations."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
