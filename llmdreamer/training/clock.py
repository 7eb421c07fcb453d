"""Measures a run: wall time by stage, floating-point operations, peak memory."""

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
# The attention kernel on a CPU, which the counter of torch lacks. Arguments are shapes.
_ATTENTION_ON_CPU = {
    _ATEN._scaled_dot_product_flash_attention_for_cpu: (
        lambda query, key, value, *_, **__: sdpa_flop_count(query, key, value)
    ),
    _ATEN._scaled_dot_product_flash_attention_for_cpu_backward: (
        lambda grad, query, key, value, *_, **__: sdpa_backward_flop_count(grad, query, key, value)
    ),
}

Result = TypeVar("Result")


class Clock:
    """Wall time by stage between two readings. On a GPU it is the time of the kernel launches."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = defaultdict(float)
        self._since = time.perf_counter()
        self._inner = 0.0  # seconds of the stages nested in the running one

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time the context, without the stages nested in it."""
        outer, self._inner = self._inner, 0.0
        start = time.perf_counter()
        try:
            yield
        finally:
            elapsed = time.perf_counter() - start
            self._seconds[name] += elapsed - self._inner
            self._inner = outer + elapsed

    def read(self) -> tuple[float, dict[str, float]]:
        """Return the seconds since the last reading, and the share of each stage in [0, 1]."""
        now = time.perf_counter()
        elapsed, self._since = max(1e-9, now - self._since), now
        shares = {name: seconds / elapsed for name, seconds in self._seconds.items()}
        self._seconds.clear()
        return elapsed, shares


def count_flops(work: Callable[[], Result]) -> tuple[Result, float]:
    """Return the result of `work`, and the floating-point operations of its matrix products.

    A multiply-add counts as two. Elementwise operations are left out, as is usual. Attention counts in full,
    as if it had no mask.
    """
    with FlopCounterMode(display=False, custom_mapping=_ATTENTION_ON_CPU) as counter:
        result = work()
    return result, float(counter.get_total_flops())


def peak_memory(device: torch.device) -> float:
    """Return the peak memory of the process in bytes; on a GPU, the peak of torch's allocations."""
    if device.type == "cuda":
        return float(torch.cuda.max_memory_allocated(device))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return float(peak if sys.platform == "darwin" else peak * 1024)
