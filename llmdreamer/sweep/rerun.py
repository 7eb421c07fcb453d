"""A rerun of a grid, which several drivers share and which outlives them.

The sweep's folder holds its token until every cell is done, and each run's folder that of the rerun it is of.
"""

from __future__ import annotations

import shutil
import uuid
from pathlib import Path

from filelock import FileLock

from llmdreamer.sweep.driver_lock import is_locked
from llmdreamer.sweep.run_lock import RUN_LOCK_FILE
from llmdreamer.utils.files import write_atomically

FILE = "rerun"


class Rerun:
    def __init__(self, sweep: Path) -> None:
        self._file = sweep / FILE
        self._token = _read(self._file)  # None: it is yet to begin

    def begin(self) -> None:
        """Go on with the sweep's rerun, or where there is none, begin one."""
        if self._token is not None:
            return
        self._file.parent.mkdir(parents=True, exist_ok=True)
        with self._alone():
            self._token = _read(self._file)
            if self._token is None:
                self._token = uuid.uuid4().hex
                write_atomically(self._file, self._token)

    def has(self, folder: Path) -> bool:
        """Whether the run in the folder is one of this rerun."""
        return self._token is not None and _read(folder / FILE) == self._token

    def take(self, folder: Path) -> bool:
        """Make the folder this rerun's; what was in it, finished or not, is kept under another name.

        Returns False while a process lives in it, as a killed driver leaves behind for some seconds.
        """
        assert self._token is not None
        if self.has(folder):
            return True
        if is_locked(folder / RUN_LOCK_FILE):
            return False
        if folder.exists():
            _put_aside(folder)
        write_atomically(folder / FILE, self._token)
        return True

    def end(self) -> None:
        """All cells are done; who asks for a rerun now wants another."""
        with self._alone():
            if _read(self._file) == self._token:
                self._file.unlink()

    def _alone(self) -> FileLock:
        return FileLock(self._file.with_name(f"{FILE}.lock"))


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except FileNotFoundError:
        return None


def _put_aside(folder: Path) -> None:
    number = 1
    while (old := folder.with_name(f"{folder.name}.{number}")).exists():
        number += 1
    shutil.move(folder, old)
