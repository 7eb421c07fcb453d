"""Errors of a run that are no bug of ours: each is told in one line, with what to do."""

from __future__ import annotations

import errno
from pathlib import Path

import torch

from llmdreamer.envs import EnvError
from llmdreamer.envs.simulator import SimulatorError
from llmdreamer.training.guard import Diverged

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFull(RuntimeError):
    """Experience cannot be stored any more. What a checkpoint cannot is no error: training goes on."""

    exit_code = 1


class OutOfMemory(RuntimeError):
    """The machine or the device has no room for an update."""

    exit_code = 1


def explained(error: Exception, run_dir: Path, newest: Path | None) -> Exception | None:
    """What to raise in place of an error that ended training; None if it deserves its traceback.

    Args:
        newest: the newest checkpoint.
    """
    going_on = f"go on with: python run.py resume={run_dir}"
    if isinstance(error, Diverged):
        told = (
            "no checkpoint was written yet" if newest is None else f"the last good one is {newest}"
        )
        return Diverged(f"{error}; {told}")
    if isinstance(error, EnvError):
        cause = error.__cause__
        if isinstance(cause, SimulatorError) and cause.trace:
            where = f"{error.cause} (traceback: {run_dir / 'run.log'})"
            return EnvError(error.index, error.step, where)
    if isinstance(error, OSError) and error.errno in _FULL:
        return DiskFull(f"the disk is full ({error}): make room and {going_on}")
    if no_memory(error):
        asked = str(error).splitlines()[0]
        return OutOfMemory(
            f"out of memory ({asked}): a smaller algo.per_rank_batch_size,"
            " algo.per_rank_sequence_length or model takes less"
        )
    return None


def no_memory(error: Exception) -> bool:
    """Whether an error is that of an allocation, of torch's or NumPy's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # On a CPU torch has no type of its own for it.
    words = ("can't allocate memory", "size calculation overflowed")
    return isinstance(error, RuntimeError) and any(one in str(error) for one in words)
