"""Who is alive on this file system: a locked file, which the kernel unlocks when its process dies."""

from __future__ import annotations

import fcntl
import os
import socket
import uuid
from pathlib import Path

from filelock import FileLock

DRIVER_LOCKS_FOLDER = ".drivers"  # in the sweep's folder
_DRIVER = "driver_"


class DriverLock:
    """A locked file, for as long as this process lives or until `close`."""

    def __init__(self, folder: Path, name: str) -> None:
        self._lock = FileLock(folder / DRIVER_LOCKS_FOLDER / name)
        Path(self._lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
        self._lock.acquire()

    @classmethod
    def announce(cls, folder: Path) -> DriverLock:
        """Say that this process drives the sweep in `folder`."""
        return cls(folder, f"{_DRIVER}{socket.gethostname()}_{os.getpid()}_{uuid.uuid4().hex[:8]}")

    def close(self) -> None:
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)


def live_drivers(folder: Path) -> list[str]:
    """The drivers that live, as `HOST, process ID`."""
    found = []
    for path in sorted((folder / DRIVER_LOCKS_FOLDER).glob(f"{_DRIVER}*")):
        if is_locked(path):
            host, pid, _ = path.name.removeprefix(_DRIVER).rsplit("_", 2)
            found.append(f"{host}, process {pid}")
    return found


def is_locked(path: Path) -> bool:
    """Whether somebody holds that lock. Neither makes the file nor takes the lock from anybody.

    For an instant it is shared with us: who tries then and does not wait finds it taken.
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
