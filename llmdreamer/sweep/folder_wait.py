"""Waits until no process holds a run's folder, and kills one that a dead driver has left there.

A process whose driver has died stops by itself (run_lock.py), unless it does not answer SIGTERM.
"""

from __future__ import annotations

import logging
import math
import os
import time
from contextlib import suppress
from pathlib import Path

import psutil

from llmdreamer.sweep.driver_lock import is_locked
from llmdreamer.sweep.run_lock import DRIVER_VARIABLE, RUN_LOCK_FILE

log = logging.getLogger(__name__)
POLL_SECONDS = 0.5


class FolderWait:
    """Waits for the lock of a run's folder, which the caller has a claim on.

    Args:
        stop_within: seconds from now in which an orphan may write its last checkpoint.
    """

    def __init__(self, folder: Path, label: str, stop_within: float) -> None:
        self._lock_file = folder / RUN_LOCK_FILE
        self._label, self._stop_within = label, stop_within
        self._started_at = time.monotonic()
        self._polled_at = -math.inf
        self._polls = 0
        self._killed: set[int] = set()

    def is_over(self) -> bool:
        """Return True once no process holds the folder. Call it often; it looks every half second."""
        now = time.monotonic()
        if now - self._polled_at < POLL_SECONDS:
            return False
        self._polled_at = now
        if not is_locked(self._lock_file):
            return True
        self._polls += 1
        # Not at once: a process that was just killed holds the lock for a moment.
        if self._polls == 2:
            self._log_wait()
        if now - self._started_at > self._stop_within:
            self._kill_orphans()
        return False

    def _log_wait(self) -> None:
        holders = lock_holders(self._lock_file)
        if orphans := [process.pid for process in holders if is_orphan(process)]:
            log.warning(
                "%s waits for process %d, whose driver has died; it is killed unless it ends within %g s",
                *(self._label, orphans[0], self._stop_within),
            )
        else:
            name = f"process {holders[0].pid}" if holders else "a process on another machine"
            log.warning("%s waits for %s, which trains in its folder", self._label, name)

    def _kill_orphans(self) -> None:
        for process in lock_holders(self._lock_file):
            if process.pid in self._killed or not is_orphan(process):
                continue
            self._killed.add(process.pid)
            with suppress(psutil.Error):  # it has ended meanwhile
                process.kill()
                log.warning(
                    "%s: killed process %d, which did not end within %g s after its driver died",
                    *(self._label, process.pid, self._stop_within),
                )


def lock_holders(lock_file: Path) -> list[psutil.Process]:
    """Return the processes of this machine that have the file open, as its holder and its children do."""
    path, holders = str(lock_file.resolve()), []
    for process in psutil.process_iter():
        with suppress(psutil.Error, OSError):  # it has ended, or belongs to another user
            if process.pid != os.getpid() and path in (file.path for file in process.open_files()):
                holders.append(process)
    return holders


def is_orphan(process: psutil.Process) -> bool:
    """Return True if a driver started the process, or one of its ancestors, and has died since."""
    try:
        driver = process.environ().get(DRIVER_VARIABLE)
        return driver is not None and driver not in {str(each.pid) for each in process.parents()}
    except (psutil.Error, OSError):
        return False
