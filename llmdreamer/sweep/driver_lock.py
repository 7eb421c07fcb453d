"""Locked files that show which drivers (processes that run a sweep) are alive.

The kernel unlocks a file when its process dies.
"""

from __future__ import annotations

import fcntl
import os
import socket
import uuid
from pathlib import Path

from filelock import FileLock

DRIVER_LOCKS_FOLDER = ".drivers"  # in the sweep's folder
_DRIVER_PREFIX = "driver_"


class DriverLock:
    """A locked file, held until `close` or until this process dies."""

    def __init__(self, sweep_folder: Path, name: str) -> None:
        self._lock = FileLock(sweep_folder / DRIVER_LOCKS_FOLDER / name)
        Path(self._lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()

    @classmethod
    def announce(cls, sweep_folder: Path) -> DriverLock:
        """Hold a lock that lists this process among the sweep's drivers."""
        token = uuid.uuid4().hex[:8]
        return cls(sweep_folder, f"{_DRIVER_PREFIX}{socket.gethostname()}_{os.getpid()}_{token}")

    def close(self) -> None:
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)


def live_drivers(sweep_folder: Path) -> list[str]:
    """Return the sweep's live drivers, each as `HOST, process PID`."""
    drivers = []
    for path in sorted((sweep_folder / DRIVER_LOCKS_FOLDER).glob(f"{_DRIVER_PREFIX}*")):
        host, *rest = path.name.removeprefix(_DRIVER_PREFIX).rsplit("_", 2)
        if len(rest) == 2 and is_locked(path):
            pid, _ = rest
            drivers.append(f"{host}, process {pid}")
    return drivers


def is_locked(path: Path) -> bool:
    """Return True if a process holds the lock on this file. A missing file is not created.

    The check itself holds a shared lock for an instant. A non-blocking attempt of another process fails
    just then.
    """
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without such locks
        return False
    finally:
        os.close(file)
    return False
