"""Locks a run's folder for its process, and ends the process when its sweep driver dies.

A driver passes two environment variables to each run: `LLMDREAMER_DRIVER`, the driver's process ID,
and `LLMDREAMER_TRIAL`, the tags of the run's MLflow run as JSON.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.output import print_line

DRIVER_VARIABLE = "LLMDREAMER_DRIVER"
RUN_LOCK_FILE = "run.lock"  # in the run's folder
DRIVER_POLL_SECONDS = 0.5


@contextmanager
def hold_run_lock(folder: Path) -> Iterator[None]:
    """Hold the exclusive lock of a run's folder. In a sweep, also stop when the driver is gone.

    A process that a killed driver left behind may still be writing its last checkpoint. In a sweep the
    next process therefore waits for the lock. The operating system releases the lock when its holder
    ends, however that happens.

    Raises:
        ConfigError: if the lock cannot be made, if another process holds it outside a sweep, or if
            `LLMDREAMER_DRIVER` is no process ID.
    """
    from filelock import FileLock, Timeout

    driver = driver_pid()
    if driver is not None:
        threading.Thread(target=_stop_without_driver, args=(driver,), daemon=True).start()
    try:
        lock = FileLock(folder / RUN_LOCK_FILE).acquire(timeout=0 if driver is None else -1)
    except Timeout:
        raise ConfigError(f"{folder} is in use: another process trains in it") from None
    except OSError as error:
        raise ConfigError(f"{folder / RUN_LOCK_FILE} cannot be locked: {error.strerror}") from error
    with lock:
        yield


def driver_pid() -> int | None:
    """Return the process ID of the driver that started this process; None without one.

    Raises:
        ConfigError: if the variable holds anything else.
    """
    text = os.environ.get(DRIVER_VARIABLE)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise ConfigError(
            f"{DRIVER_VARIABLE}={text[:40]!r}: the driver of a sweep sets this to its process ID;"
            f" type unset {DRIVER_VARIABLE}"
        )
    return int(text)


def _stop_without_driver(driver: int) -> None:
    """Send SIGTERM to this process once the driver is not its parent any more.

    The run then writes a checkpoint and exits, as on a scheduler's signal.
    """
    while os.getppid() == driver:
        time.sleep(DRIVER_POLL_SECONDS)
    print_line(f"stopping: process {driver}, the driver of this run's sweep, has ended")
    os.kill(os.getpid(), signal.SIGTERM)
