"""The other end of a sweep: what the process of a trial does because it is one.

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

DRIVER_VARIABLE = "LLMDREAMER_DRIVER"
LOCK = "trial.lock"  # in the run's folder, held by its process
LOOK_EVERY = 0.5  # seconds between two looks at whether the driver lives


@contextmanager
def membership(folder: Path) -> Iterator[None]:
    """Hold the run's folder alone, and stop when the driver is gone. Outside a sweep, do nothing.

    A process that a killed driver left behind may still be writing its last checkpoint here:
    whoever comes next waits for its end.
    """
    driver = os.environ.get(DRIVER_VARIABLE)
    if driver is None:
        yield
        return
    from filelock import FileLock

    threading.Thread(target=_follow, args=(int(driver),), daemon=True).start()
    with FileLock(folder / LOCK):
        yield


def _follow(driver: int) -> None:
    """End as a scheduler would end us, with a checkpoint, once our parent is another process."""
    while os.getppid() == driver:
        time.sleep(LOOK_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)
