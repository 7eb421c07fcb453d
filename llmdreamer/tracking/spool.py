"""The local truth of a run's metrics: an append-only file of JSON lines, ahead of any server.

One line a row: `{"env_step": int, "time": epoch seconds, "metrics": {name: float}}`. JSON has no
NaN or infinity, so those three are spelled as the strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple


class Row(NamedTuple):
    """One row, and the byte at which the next one begins."""

    env_step: int
    time: float  # epoch seconds
    metrics: dict[str, float]
    end: int


class Spool:
    """The writer of one spool; a run has one at a time.

    A row is handed to the operating system in one write, so a killed process loses none; `flush`
    is what holds against a machine that goes down. A last line that was torn is cut on opening.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: readers in other processes, and a kill, must find whole rows.
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._end = _whole_bytes(path)
        os.ftruncate(self._file, self._end)

    def append(self, metrics: Mapping[str, float], env_step: int, at: float | None = None) -> None:
        """Add a row. `at` is its time in epoch seconds, now if None.

        Raises:
            OSError: if the row could not be written whole; what was written of it is cut.
        """
        row = {
            "env_step": int(env_step),
            "time": time.time() if at is None else at,
            "metrics": {name: _spell(float(value)) for name, value in metrics.items()},
        }
        line = json.dumps(row, separators=(",", ":")).encode() + b"\n"
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(f"{self.path}: a row was written in part")
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(line)

    def flush(self) -> None:
        """Wait until every row is on the disk."""
        os.fsync(self._file)

    def offset(self) -> int:
        """Bytes of all rows so far: the cursor that a checkpoint keeps."""
        return self._end

    def truncate(self, offset: int) -> None:
        """Forget every row from byte `offset` on.

        Raises:
            ValueError: if `offset` is beyond the end or inside a row.
        """
        if not 0 <= offset <= self._end:
            raise ValueError(f"{self.path}: no byte {offset}; it holds {self._end} bytes")
        if offset > 0:
            with open(self.path, "rb") as file:
                file.seek(offset - 1)
                if file.read(1) != b"\n":
                    raise ValueError(f"{self.path}: byte {offset} is inside a row")
        os.ftruncate(self._file, offset)
        self._end = offset
        self.flush()

    def close(self) -> None:
        os.close(self._file)


def read(path: Path, start: int = 0) -> Iterator[Row]:
    """Yield the whole rows from byte `start` on; a last line still being written is left out.

    Raises:
        ValueError: at a line that is no row.
    """
    end = start
    with open(path, "rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                row = json.loads(line)
                metrics = {name: float(value) for name, value in row["metrics"].items()}
                end += len(line)
                yield Row(int(row["env_step"]), float(row["time"]), metrics, end)
            except (KeyError, TypeError, AttributeError, ValueError) as error:
                raise ValueError(f"{path}: no row at byte {end}: {error}") from error


def _spell(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _whole_bytes(path: Path) -> int:
    """Bytes up to and with the last newline."""
    end = path.stat().st_size
    with open(path, "rb") as file:
        while end > 0:
            start = max(0, end - 65536)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
