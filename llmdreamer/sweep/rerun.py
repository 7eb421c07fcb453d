"""A rerun of a grid, which several drivers share and which outlives them.

The sweep's folder holds the rerun's token until every cell is done. Each run's folder holds the token
of the rerun that the run belongs to.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from filelock import FileLock

from llmdreamer.sweep.driver_lock import is_locked
from llmdreamer.sweep.run_lock import RUN_LOCK_FILE
from llmdreamer.utils.files import write_atomically

RERUN_FILE = "rerun"


class Rerun:
    """The rerun of the grid whose sweep lies in `sweep_folder`."""

    def __init__(self, sweep_folder: Path) -> None:
        self._token_file = sweep_folder / RERUN_FILE
        self._token = _read_token(self._token_file)  # None: no rerun has started

    def start_or_join(self) -> None:
        """Join the sweep's rerun, or start one if there is none."""
        if self._token is not None:
            return
        self._token_file.parent.mkdir(parents=True, exist_ok=True)
        with self._lock():
            self._token = _read_token(self._token_file)
            if self._token is None:
                self._token = uuid.uuid4().hex
                write_atomically(self._token_file, self._token)

    def includes(self, run_folder: Path) -> bool:
        """Return True if the run in the folder belongs to this rerun."""
        return self._token is not None and _read_token(run_folder / RERUN_FILE) == self._token

    def claim(self, run_folder: Path) -> bool:
        """Mark a run's folder as part of this rerun and rename what an earlier run left there.

        Returns:
            False while a process still holds the folder, as one of a killed driver may for seconds.
        """
        assert self._token is not None
        if self.includes(run_folder):
            return True
        if is_locked(run_folder / RUN_LOCK_FILE):
            return False
        if run_folder.exists():
            _move_aside(run_folder)
        write_atomically(run_folder / RERUN_FILE, self._token)
        return True

    def finish(self) -> None:
        """End this rerun, when all its cells are done. The next `rerun=true` starts another."""
        with self._lock():
            if _read_token(self._token_file) == self._token:
                self._token_file.unlink()

    def _lock(self) -> FileLock:
        return FileLock(self._token_file.with_name(f"{RERUN_FILE}.lock"))


def _read_token(file: Path) -> str | None:
    try:
        return file.read_text()
    except FileNotFoundError:
        return None


def _move_aside(folder: Path) -> None:
    """Rename the folder to NAME.1, or to the first number that is free."""
    number = 1
    while (old := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    shutil.move(folder, old)
