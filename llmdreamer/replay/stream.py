"""The time steps of one environment, in order, in append-only files of fixed-size records.

A file is named after the index of its first step. Files are not memory-mapped: with a mapping, a full disk
or a file truncated by another process raises SIGBUS instead of OSError.
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

SUFFIX = ".steps"


class Stream:
    """Steps `first` .. `written - 1` of one environment, on disk.

    A step is stored in two phases, `write` and `commit`, so that a step of many environments enters all
    streams or none.

    Args:
        folder: used by this stream alone; created if missing. Steps already in it are kept.
        dtype: the record of one step.
        segment_steps: steps per file, >= 1; existing files may have another number.
    """

    def __init__(self, folder: Path, dtype: np.dtype[Any], segment_steps: int) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self._dtype = dtype
        self._segment_steps = segment_steps
        self._tail: FileIO | None = None
        self._unsynced: set[Path] = set()
        self._sync: StreamSync | None = None  # the newest
        self._starts: list[int] = []
        self.first = self.written = 0
        for start, path in self._files():
            if self._starts and start != self.written:
                break  # files behind a gap belong to no stream
            if not self._starts:
                self.first = start
            self._starts.append(start)
            self.written = start + path.stat().st_size // dtype.itemsize  # ignores a torn last step

    def write(self, step: NDArray[Any]) -> None:
        """Write a step at index `written`; it counts once it is committed.

        Raises:
            OSError: if the disk is full; the call may be repeated.
        """
        assert step.dtype == self._dtype and step.size == 1, step.dtype
        if self._tail is None or self.written - self._starts[-1] >= self._segment_steps:
            self._open_tail()
        assert self._tail is not None
        # Seek, do not append: a half-written step from a failed write is overwritten.
        self._tail.seek((self.written - self._starts[-1]) * self._dtype.itemsize)
        data = memoryview(step.tobytes())
        while data:
            data = data[self._tail.write(data) :]

    def commit(self) -> None:
        """Count the step that was written last; it can be read at once."""
        self.written += 1

    def read(self, start: int, out: NDArray[Any]) -> None:
        """Fill `out`, contiguous records, with the steps from index `start` on."""
        assert self.first <= start and start + len(out) <= self.written, (start, len(out))
        done = 0
        while done < len(out):
            position = start + done
            index = bisect_right(self._starts, position) - 1
            following = self._starts[index + 1 : index + 2]
            end = following[0] if following else self.written
            count = min(len(out) - done, end - position)
            self._read_segment(self._starts[index], position, out[done : done + count])
            done += count

    def cut(self, to: int) -> None:
        """Remove step `to` and all later ones, torn steps included.

        Raises:
            ConfigError: if steps before `to` are missing.
        """
        if not self.first <= to <= self.written:
            raise ConfigError(
                f"{self.folder} holds steps {self.first}..{self.written}, not 0..{to}"
            )
        self._close_tail()
        for start, path in self._files():
            if start >= to or start not in self._starts:
                path.unlink()
                self._unsynced.discard(path)
            elif start + path.stat().st_size // self._dtype.itemsize >= to:
                os.truncate(path, (to - start) * self._dtype.itemsize)
                self._unsynced.add(path)
        self._starts = [start for start in self._starts if start < to]
        self.written = to
        self.first = self.first if self._starts else to

    def clear(self) -> None:
        """Remove every step; the next one has index 0."""
        self.cut(self.first)
        self.first = self.written = 0

    def drop_before(self, index: int) -> None:
        """Delete the files that hold only steps before `index`."""
        while len(self._starts) > 1 and self._starts[1] <= index:
            path = self._path(self._starts.pop(0))
            path.unlink()
            self._unsynced.discard(path)
            self.first = self._starts[0]

    def make_sync(self) -> StreamSync:
        """Return a call that syncs the present steps to disk; other threads may go on writing."""
        tail = set() if self._tail is None else {Path(self._tail.name)}
        if self._sync is not None and self._sync.done:
            # Keep the tail: a truncated file may have been reopened since.
            self._unsynced -= self._sync.full - tail
        self._sync = StreamSync(self.folder, sorted(self._unsynced), self._unsynced - tail)
        return self._sync

    def close(self) -> None:
        """Close the open file."""
        self._close_tail()

    def _open_tail(self) -> None:
        """Open the last file, or start the next one once it is full."""
        if self._tail is None:
            self.cut(self.written)  # removes what an earlier process left at the end
        self._close_tail()
        if not self._starts or self.written - self._starts[-1] >= self._segment_steps:
            self._path(self.written).touch()
            self._starts.append(self.written)
        path = self._path(self._starts[-1])
        self._tail = path.open("r+b", buffering=0)
        self._unsynced.add(path)

    def _close_tail(self) -> None:
        if self._tail is not None:
            self._tail.close()
        self._tail = None

    def _read_segment(self, segment: int, position: int, out: NDArray[Any]) -> None:
        view = out.view(np.uint8).data
        # Reopened for each read: a long run has more files than a process may keep open.
        with self._path(segment).open("rb", buffering=0) as file:
            file.seek((position - segment) * self._dtype.itemsize)
            while view:
                count = file.readinto(view)
                if not count:
                    raise OSError(f"{self._path(segment)} ends before step {position + len(out)}")
                view = view[count:]

    def _path(self, start: int) -> Path:
        return self.folder / f"{start:012d}{SUFFIX}"

    def _files(self) -> list[tuple[int, Path]]:
        return sorted((int(path.stem), path) for path in self.folder.glob(f"*{SUFFIX}"))


class StreamSync:
    """A call that returns once the steps that a stream had at construction are on disk.

    Args:
        full: the files among `paths` that receive no more steps.

    Raises (when called):
        OSError: if a file cannot be synced; the stream's next sync tries it again.
    """

    def __init__(self, folder: Path, paths: Sequence[Path], full: Set[Path]) -> None:
        self.full = full
        self.done = False
        self._folder, self._paths = folder, paths

    def __call__(self) -> None:
        for path in self._paths:
            # Files too old to be sampled may have been deleted.
            with suppress(FileNotFoundError):
                fsync(path)
        fsync(self._folder)
        self.done = True
