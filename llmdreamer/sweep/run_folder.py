"""Reads a run's folder for its driver: whether the run is finished, and its curves so far.

Damage in one run's folder is an error of that run only.
"""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path

from llmdreamer.tracking.record import RunFiles, RunRecord, load
from llmdreamer.tracking.spool import read_metrics
from llmdreamer.utils.errors import ConfigError

OUTPUT_LOG = "output.log"  # what the run's process printed
SPEED_RECORDS = 64  # newest records that a run's speed is measured over
_CHECKPOINT = re.compile(r"step-\d{12}-[0-9a-f]{16}\.pt")

Curves = dict[str, list[tuple[int, float]]]
"""By metric, (env_step, value) in the order of the records."""


def reached_end(folder: Path) -> bool:
    """Return True if the run's own record says that it reached its end; exit codes are hints only.

    A finished run that is resumed counts as unfinished.

    Raises:
        ConfigError: if the record is damaged.
    """
    record = load(RunRecord, RunFiles(folder).run_record)
    return record is not None and record.status == "FINISHED"


def is_finished(folder: Path) -> bool:
    """Return True as `reached_end` does; False if the record is damaged."""
    try:
        return reached_end(folder)
    except ConfigError:
        return False


def newest_checkpoint(folder: Path) -> str | None:
    """Return the file name of the newest checkpoint; None if the run cannot be resumed."""
    if not (folder / "config.yaml").exists():
        return None
    paths = (folder / "checkpoints").glob("step-*.pt")
    return max((path.name for path in paths if _CHECKPOINT.fullmatch(path.name)), default=None)


def last_output_line(folder: Path) -> str:
    """Return the last line that the run's process printed, cut to 300 characters."""
    try:
        with open(folder / OUTPUT_LOG, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


class CurveReader:
    """Reads the curves of a run while it writes them. Each call reads only the new records."""

    def __init__(self, folder: Path) -> None:
        self._path = RunFiles(folder).metrics
        self._offset = 0
        self.curves: Curves = {}
        self.env_step = 0
        self._times: deque[tuple[int, float]] = deque(maxlen=SPEED_RECORDS)

    def read(self) -> Curves:
        """Read the new records and return all curves.

        Raises:
            ConfigError: if the file is damaged.
        """
        try:
            if self._path.stat().st_size < self._offset:
                # A resumed run has truncated the file to the records of its checkpoint.
                self._reset()
            try:
                self._read_new_records()
            except ValueError:  # truncated and longer again: the offset lies inside a record
                self._reset()
                self._read_new_records()
        except FileNotFoundError:
            return self.curves
        except OSError as error:
            raise ConfigError(f"{self._path} cannot be read: {error.strerror}") from error
        except ValueError as error:  # it names the file
            raise ConfigError(str(error)) from error
        return self.curves

    def _reset(self) -> None:
        self._offset, self.env_step, self.curves = 0, 0, {}
        self._times.clear()

    @property
    def last_time(self) -> float | None:
        """Time of the newest record, in epoch seconds."""
        return self._times[-1][1] if self._times else None

    def env_steps_per_second(self, since: float) -> float | None:
        """Return the speed over the newest records, or None if there are too few of them.

        Args:
            since: epoch seconds. Older records, perhaps of an earlier process, do not count.
        """
        records = [record for record in self._times if record[1] >= since]
        if len(records) < 2:
            return None
        steps, seconds = records[-1][0] - records[0][0], records[-1][1] - records[0][1]
        return steps / seconds if steps > 0 and seconds > 0 else None

    def _read_new_records(self) -> None:
        for record in read_metrics(self._path, self._offset):
            self._offset, self.env_step = record.end, record.env_step
            self._times.append((record.env_step, record.time))
            for metric, value in record.metrics.items():
                self.curves.setdefault(metric, []).append((record.env_step, value))
