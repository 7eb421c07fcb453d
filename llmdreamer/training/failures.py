"""Failures of a run that are not bugs of the program, each with a one-line message that says what to do."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

from llmdreamer.envs import EnvError
from llmdreamer.envs.simulator import SimulatorError
from llmdreamer.utils.command_line import resume_command
from llmdreamer.utils.errors import Diverged, Stopped, first_line

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


class DiskFull(RuntimeError):
    """No space left for experience. A checkpoint that cannot be written is no error: training continues."""

    exit_code = 1


class FolderUnusable(RuntimeError):
    """A file in the run's folder cannot be read or written: removed, replaced, or no permission."""

    exit_code = 1


class OutOfMemory(RuntimeError):
    """The machine or the device lacks the memory for an update."""

    exit_code = 1


class ExitedEarly(RuntimeError):
    """Code inside the run called `sys.exit`. The exit code would say that the run is finished."""

    exit_code = 1


@contextmanager
def explain_failures(
    run_dir: Path, newest: Callable[[], Path | None], trust: Sequence[str] = ()
) -> Iterator[None]:
    """Replace errors that a user can fix by one-line errors; raise bugs unchanged.

    Args:
        newest: returns the newest checkpoint.
        trust: the run's `trust`, for the command that resumes it.
    """
    try:
        yield
    except Stopped:
        raise
    except SystemExit as error:
        raise ExitedEarly(
            f"sys.exit({error.code!r}) was called before the run was finished"
        ) from error
    except Exception as error:
        resume = f"resume with: {resume_command(run_dir, trust)}"
        explained = explain_failure(error, run_dir, newest(), resume)
        if explained is None:
            raise
        raise explained from error


def explain_failure(
    error: Exception, run_dir: Path, newest: Path | None, resume: str
) -> Exception | None:
    """Return the one-line error to raise instead; None if the error needs its traceback.

    Args:
        newest: the newest checkpoint.
        resume: advice that ends in the command that resumes the run.
    """
    if isinstance(error, Diverged):
        last = "none was written yet" if newest is None else str(newest)
        return Diverged(f"{error}; last good checkpoint: {last}")
    if isinstance(error, EnvError):
        cause = error.__cause__
        if isinstance(cause, SimulatorError) and cause.trace:
            where = f"{error.cause} (traceback: {run_dir / 'run.log'})"
            return EnvError(error.index, error.step, where)
    if isinstance(error, OSError) and error.errno in _FULL:
        return DiskFull(f"the disk is full ({error}): free some space and {resume}")
    if isinstance(error, OSError) and _lies_in(error.filename, run_dir):
        name = error.filename2 or error.filename  # the target of a failed rename
        return FolderUnusable(
            f"{name}: {error.strerror}; the folder of the run was changed: restore it and {resume}"
        )
    if is_out_of_memory(error):
        message = first_line(error)
        return OutOfMemory(
            f"out of memory ({message}): lower algo.per_rank_batch_size or"
            " algo.per_rank_sequence_length, or choose a smaller model"
        )
    return None


def _lies_in(name: object, folder: Path) -> bool:
    return isinstance(name, str | Path) and Path(name).absolute().is_relative_to(folder.absolute())


def is_out_of_memory(error: Exception) -> bool:
    """Return True for a failed allocation of torch or NumPy."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    # On a CPU torch raises a plain RuntimeError.
    phrases = ("can't allocate memory", "size calculation overflowed")
    return isinstance(error, RuntimeError) and any(phrase in str(error) for phrase in phrases)
