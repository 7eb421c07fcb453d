"""A run's hold on its folder; and the other end of a sweep: what a trial's process does as one.

A driver gives it its identity in two environment variables: `LLMDREAMER_DRIVER`, the driver's
process id, and `LLMDREAMER_TRIAL`, the tags of its MLflow run as JSON.
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

DRIVER_VARIABLE = "LLMDREAMER_DRIVER"
RUN_LOCK_FILE = "run.lock"  # in the run's folder, held by its process
LOOK_EVERY = 0.5  # seconds between two looks at whether the driver lives


@contextmanager
def hold_run_lock(folder: Path) -> Iterator[None]:
    """Hold the run's folder alone. In a sweep, also stop when the driver is gone.

    A process that a killed driver left behind may still be writing its last checkpoint here: in a
    sweep, whoever comes next waits for its end. The lock is the operating system's and ends with the
    process, however that ends.

    Raises:
        ConfigError: outside a sweep, if another process holds the folder.
    """
    from filelock import FileLock, Timeout

    driver = os.environ.get(DRIVER_VARIABLE)
    if driver is not None:
        threading.Thread(target=_follow, args=(int(driver),), daemon=True).start()
    try:
        held = FileLock(folder / RUN_LOCK_FILE).acquire(timeout=0 if driver is None else -1)
    except Timeout:
        raise ConfigError(f"{folder} is in use: another process trains in it") from None
    except OSError as error:
        raise ConfigError(f"{folder / RUN_LOCK_FILE} cannot be locked: {error.strerror}") from error
    with held:
        yield


def _follow(driver: int) -> None:
    """End as a scheduler would end us, with a checkpoint, once our parent is another process."""
    while os.getppid() == driver:
        time.sleep(LOOK_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
