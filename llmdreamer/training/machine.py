"""What a process is told once about the machine: threads, numbers near zero, and memory that was freed."""

from __future__ import annotations

import ctypes

import torch

# Of malloc.h: the settings' numbers, and bytes of ours.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
KEPT_IN_ALL = 2**30
KEPT_EACH = 2**26


def prepare(threads: int | None = None) -> None:
    """Set torch's threads, None: as they are, and what makes its work on a CPU faster."""
    if threads is not None:
        torch.set_num_threads(threads)
    # Squared gradients fall below 1e-38, where a CPU computes many times slower than on zeros.
    torch.set_flush_denormal(True)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Have the C library keep what tensors free, up to a gigabyte; False if it is none that can.

    Else it gives large blocks back to the system, which zeroes them page by page for the next tensor:
    at every update for nearly every one.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    return bool(
        mallopt(_MMAP_THRESHOLD, KEPT_EACH) == 1 and mallopt(_TRIM_THRESHOLD, KEPT_IN_ALL) == 1
    )


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster there than float32: elsewhere it is emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported
