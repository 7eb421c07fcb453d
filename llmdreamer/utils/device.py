"""The machine: its device, and what a process is told once of threads, numbers near zero and freed memory."""

from __future__ import annotations

import ctypes
import os

import torch

from llmdreamer.utils import distributed
from llmdreamer.utils.errors import ConfigError

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


def torch_device(name: str) -> torch.device:
    """The device of `device=name`; `auto` is CUDA where there is one.

    Raises:
        ConfigError: if it is not there.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    # Of several processes on a machine each has a device of its own, unless one is named.
    if name == "cuda" and distributed.size() > 1:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    device = torch.device(name)
    if device.type == "cuda":
        there = torch.cuda.device_count()
        if (device.index or 0) >= there:
            raise ConfigError(
                f"device={name}: this machine has {there} CUDA devices; device=cpu works"
            )
    return device


def has_bf16(device: torch.device) -> bool:
    """Whether bfloat16 is faster there than float32: elsewhere it is emulated."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    supported: bool = torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return supported
