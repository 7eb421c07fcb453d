"""Errors of a run that are no bug of ours: each is told in one line, with what to do."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from llmdreamer.envs import EnvError
from llmdreamer.envs.simulator import SimulatorError
from llmdreamer.utils.errors import Diverged

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFull(RuntimeError):
    """Experience cannot be stored any more. What a checkpoint cannot is no error: training goes on."""

    exit_code = 1


class FolderUnusable(RuntimeError):
    """What the run keeps in its folder cannot be read or written: removed, replaced, no permission."""

    exit_code = 1


class OutOfMemory(RuntimeError):
    """The machine or the device has no room for an update."""

    exit_code = 1


@contextmanager
def in_one_line(run_dir: Path, newest: Callable[[], Path | None]) -> Iterator[None]:
    """Raise what a user can mend in words of ours, `explained`; a bug as it is.

    Args:
        newest: finds the newest checkpoint.
    """
    try:
        yield
    except Exception as error:
        told = explained(error, run_dir, newest())
        if told is None:
            raise
        raise told from error


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
    if isinstance(error, OSError) and _lies_in(error.filename, run_dir):
        name = error.filename2 or error.filename  # of a draft that cannot be moved: where to
        return FolderUnusable(
            f"{name}: {error.strerror}; the run needs its folder as it left it: mend that and"
            f" {going_on}"
        )
    if no_memory(error):
        asked = str(error).splitlines()[0]
        return OutOfMemory(
            f"out of memory ({asked}): a smaller algo.per_rank_batch_size,"
            " algo.per_rank_sequence_length or model takes less"
        )
    return None


def _lies_in(name: object, folder: Path) -> bool:
    return isinstance(name, str | Path) and Path(name).absolute().is_relative_to(folder.absolute())


def no_memory(error: Exception) -> bool:
    """Whether an error is that of an allocation, of torch's or NumPy's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # On a CPU torch has no type of its own for it.
    words = ("can't allocate memory", "size calculation overflowed")
    return isinstance(error, RuntimeError) and any(one in str(error) for one in words)
