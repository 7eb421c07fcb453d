"""One environment's rows, in order, in append-only files of fixed-size records.

A file's name is the number of its first row. Nothing maps a file into memory: through a mapping, a
full disk or a file cut by someone else is a SIGBUS instead of an OSError.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections.abc import Sequence, Set
from contextlib import suppress
from io import FileIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.files import fsync

SUFFIX = ".rows"


class Stream:
    """Rows `first` .. `written - 1` of one environment, on disk.

    A row is stored in two halves, `write` and `commit`, so that a step of many environments enters
    all streams or none.

    Args:
        folder: of this stream alone; made if it is not there. Rows already in it are taken over.
        row: the record.
        segment_rows: rows of a file, >= 1; files already there may have another number.
    """

    def __init__(self, folder: Path, row: np.dtype[Any], segment_rows: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._row = row
        self._segment_rows = segment_rows
        self._tail: FileIO | None = None
        self._unsynced: set[Path] = set()
        self._sync: Sync | None = None  # the newest
        self._starts: list[int] = []
        self.first = self.written = 0
        for start, path in self._files():
            if self._starts and start != self.written:
                break  # what lies beyond a gap belongs to no stream
            if not self._starts:
                self.first = start
            self._starts.append(start)
            self.written = start + path.stat().st_size // row.itemsize  # without a torn last row

    def write(self, row: NDArray[Any]) -> None:
        """Put a row where row number `written` belongs; it does not count before `commit`.

        Raises:
            OSError: if the disk is full; the same call may be made again later.
        """
        assert row.dtype == self._row and row.size == 1, row.dtype
        if self._tail is None or self.written - self._starts[-1] >= self._segment_rows:
            self._open_tail()
        assert self._tail is not None
        # At its place, not at the end of the file: half a row from a failed write is overwritten.
        self._tail.seek((self.written - self._starts[-1]) * self._row.itemsize)
        data = memoryview(row.tobytes())
        while data:
            data = data[self._tail.write(data) :]

    def commit(self) -> None:
        """Count the row that `write` has put there; it can be read at once."""
        self.written += 1

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fill `out`, contiguous records, with the rows from `start` on."""
        assert self.first <= start and start + len(out) <= self.written, (start, len(out))
        done = 0
        while done < len(out):
            row = start + done
            index = bisect_right(self._starts, row) - 1
            following = self._starts[index + 1 : index + 2]
            end = following[0] if following else self.written
            count = min(len(out) - done, end - row)
            self._read_segment(self._starts[index], row, out[done : done + count])
            done += count

    def cut(self, to: int) -> None:
        """Remove row number `to` and all after it, torn rows included.

        Raises:
            ConfigError: if the rows before `to` are not all there.
        """
        if not self.first <= to <= self.written:
            raise ConfigError(f"{self.folder} holds rows {self.first}..{self.written}, not 0..{to}")
        self._close_tail()
        for start, path in self._files():
            if start >= to or start not in self._starts:
                path.unlink()
                self._unsynced.discard(path)
            elif start + path.stat().st_size // self._row.itemsize >= to:
                os.truncate(path, (to - start) * self._row.itemsize)
                self._unsynced.add(path)
        self._starts = [start for start in self._starts if start < to]
        self.written = to
        self.first = self.first if self._starts else to

    def clear(self) -> None:
        """Remove every row; the next one is row 0 of a new stream."""
        self.cut(self.first)
        self.first = self.written = 0

    def drop_before(self, row: int) -> None:
        """Delete the files whose every row is older than `row`."""
        while len(self._starts) > 1 and self._starts[1] <= row:
            path = self._path(self._starts.pop(0))
            path.unlink()
            self._unsynced.discard(path)
            self.first = self._starts[0]

    def syncing(self) -> Sync:
        """What brings the rows so far to the disk itself, in any thread, while more are written."""
        tail = set() if self._tail is None else {Path(self._tail.name)}
        if self._sync is not None and self._sync.done:
            # Without the tail: a file that was cut may have been opened again since.
            self._unsynced -= self._sync.full - tail
        self._sync = Sync(self.folder, sorted(self._unsynced), self._unsynced - tail)
        return self._sync

    def close(self) -> None:
        """Give the open file back."""
        self._close_tail()

    def _open_tail(self) -> None:
        """Open the last file, or start the next one once it is full."""
        if self._tail is None:
            self.cut(self.written)  # whatever lies at the end from another life of this folder
        self._close_tail()
        if not self._starts or self.written - self._starts[-1] >= self._segment_rows:
            self._path(self.written).touch()
            self._starts.append(self.written)
        path = self._path(self._starts[-1])
        self._tail = path.open("r+b", buffering=0)
        self._unsynced.add(path)

    def _close_tail(self) -> None:
        if self._tail is not None:
            self._tail.close()
        self._tail = None

    def _read_segment(self, segment: int, row: int, out: NDArray[Any]) -> None:
        view = out.view(np.uint8).data
        # Opened for each read: a long run has more files than a process may hold open.
        with self._path(segment).open("rb", buffering=0) as file:
            file.seek((row - segment) * self._row.itemsize)
            while view:
                count = file.readinto(view)
                if not count:
                    raise OSError(f"{self._path(segment)} ends before row {row + len(out)}")
                view = view[count:]

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:012d}{SUFFIX}"

    def _files(self) -> list[tuple[int, Path]]:
        return sorted((int(path.stem), path) for path in self.folder.glob(f"*{SUFFIX}"))


class Sync:
    """Called, returns once the rows that a stream had when this was made are on the disk itself.

    Args:
        full: those of `paths` that get no more rows.

    Raises (when called):
        OSError: if they cannot be; the stream's next one tries them again.
    """

    def __init__(self, folder: Path, paths: Sequence[Path], full: Set[Path]) -> None:
        self.full = full
        self.done = False
        self._folder, self._paths = folder, paths

    def __call__(self) -> None:
        for path in self._paths:
            # Files of rows too old to be sampled are deleted in the meantime.
            with suppress(FileNotFoundError):
                fsync(path)
        fsync(self._folder)
        self.done = True
