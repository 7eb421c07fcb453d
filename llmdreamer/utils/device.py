"""The device of a run, and process settings: threads, denormal numbers, memory allocation."""

from __future__ import annotations

import ctypes
import os

import torch

from llmdreamer.utils import distributed
from llmdreamer.utils.errors import ConfigError

# Parameter numbers of mallopt, from malloc.h.
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
RETAINED_BYTES = 2**30  # freed bytes that the process keeps in total
RETAINED_BLOCK_BYTES = 2**26  # largest block that is kept


def prepare(threads: int | None = None) -> None:
    """Set the number of torch threads (None leaves it) and settings that speed up a CPU."""
    if threads is not None:
        torch.set_num_threads(threads)
    # Squared gradients fall below 1e-38. CPUs compute with such denormal numbers many times slower.
    torch.set_flush_denormal(True)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Let the C library keep freed memory, up to a gigabyte; return False if it cannot.

    By default it returns large blocks to the system, which zeroes them page by page when the next tensor is
    allocated. That happens for nearly every tensor of every update.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):  # no glibc
        return False
    return bool(
        mallopt(_MMAP_THRESHOLD, RETAINED_BLOCK_BYTES) == 1
        and mallopt(_TRIM_THRESHOLD, RETAINED_BYTES) == 1
    )


def torch_device(name: str) -> torch.device:
    """Return the device called `name`; `auto` is CUDA if available, else the CPU.

    Raises:
        ConfigError: if this machine lacks it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    # Several processes on one machine use one device each, unless one is named.
    if name == "cuda" and distributed.size() > 1:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = torch.device(name)
    if device.type == "cuda":
        count = torch.cuda.device_count()
        if (device.index or 0) >= count:
            raise ConfigError(
                f"device={name}: this machine has {count} CUDA devices; device=cpu works"
            )
    return device


def has_bf16(device: torch.device) -> bool:
    """Return True if the device has bfloat16 units. Emulated bfloat16 is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported
