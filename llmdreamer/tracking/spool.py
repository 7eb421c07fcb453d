"""The metrics of a run on local disk: an append-only file of JSON lines, written before any upload.

Each line is one record: `{"env_step": int, "time": epoch seconds, "metrics": {name: float}}`. JSON
has no NaN or infinity, so those values are the strings "NaN", "Infinity" and "-Infinity".
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

BLOCK_BYTES = 65536
"""Bytes read at a time when searching for the last newline."""


class MetricsRecord(NamedTuple):
    """Metrics that were logged together. `end` is the byte offset at which the next record starts."""

    env_step: int
    time: float  # epoch seconds
    metrics: dict[str, float]
    end: int


class Spool:
    """Appends metrics to a spool file. A run has one writer at a time.

    A record reaches the operating system in one write, so a killed process loses none; `flush`
    protects against a crash of the machine. Opening a spool removes an incomplete last line.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        # Unbuffered: other processes, and the process after a kill, must find complete records.
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        self._end = _complete_bytes(path)
        os.ftruncate(self._file, self._end)

    def append(self, metrics: Mapping[str, float], env_step: int, at: float | None = None) -> None:
        """Append a record. `at` is its time in epoch seconds; None takes the current time.

        Raises:
            OSError: if the record could not be written completely; the written part is removed.
        """
        record = {
            "env_step": int(env_step),
            "time": time.time() if at is None else at,
            "metrics": {name: _to_json(float(value)) for name, value in metrics.items()},
        }
        line = json.dumps(record, separators=(",", ":")).encode() + b"\n"
        try:
            if os.write(self._file, line) != len(line):
                raise OSError(f"{self.path}: only a part of a record could be written")
        except OSError:
            os.ftruncate(self._file, self._end)
            raise
        self._end += len(line)

    def flush(self) -> None:
        """Block until every record is on the disk."""
        os.fsync(self._file)

    def offset(self) -> int:
        """Return the size of all records in bytes: the cursor that a checkpoint stores."""
        return self._end

    def truncate(self, offset: int) -> None:
        """Remove every record from byte `offset` on.

        Raises:
            ValueError: if `offset` is beyond the end or inside a record.
        """
        if not 0 <= offset <= self._end:
            raise ValueError(f"{self.path}: no byte {offset}; the file has {self._end} bytes")
        if offset > 0:
            with open(self.path, "rb") as file:
                file.seek(offset - 1)
                if file.read(1) != b"\n":
                    raise ValueError(f"{self.path}: byte {offset} is inside a record")
        os.ftruncate(self._file, offset)
        self._end = offset
        self.flush()

    def close(self) -> None:
        os.close(self._file)


def read_metrics(path: Path, start: int = 0) -> Iterator[MetricsRecord]:
    """Yield the complete records from byte `start` on; skip a last line that is still being written.

    Raises:
        ValueError: at a line that is not a record.
    """
    end = start
    with open(path, "rb") as file:
        file.seek(start)
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                record = json.loads(line)
                metrics = {name: float(value) for name, value in record["metrics"].items()}
                end += len(line)
                yield MetricsRecord(int(record["env_step"]), float(record["time"]), metrics, end)
            except (KeyError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
                raise ValueError(f"{path}: invalid record at byte {end}: {error}") from error
            except RecursionError as error:
                raise ValueError(
                    f"{path}: invalid record at byte {end}: nested too deep"
                ) from error


def _to_json(value: float) -> float | str:
    if math.isfinite(value):
        return value
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"


def _complete_bytes(path: Path) -> int:
    """Return the number of bytes up to and including the last newline."""
    end = path.stat().st_size
    with open(path, "rb") as file:
        while end > 0:
            start = max(0, end - BLOCK_BYTES)
            file.seek(start)
            newline = file.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0
