"""What a driver learns of a run from the run's folder: whether it is done, and its curves so far."""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path

from llmdreamer.tracking.record import RunFiles, Wanted, load
from llmdreamer.tracking.spool import read

OUTPUT_LOG = "output.log"  # what the run's process printed
_CHECKPOINT = re.compile(r"step-\d{12}-[0-9a-f]{16}\.pt")
PACE_ROWS = 64  # rows that a run's pace is taken from
Curves = dict[str, list[tuple[int, float]]]


def is_finished(folder: Path) -> bool:
    """Whether the run came to its end; a run that goes on again is not finished."""
    wanted = load(Wanted, RunFiles(folder).wanted)
    return wanted is not None and wanted.status == "FINISHED"


def newest_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint's name; None if there is none to resume from."""
    if not (folder / "config.yaml").exists():
        return None
    found = (folder / "checkpoints").glob("step-*.pt")
    return max((path.name for path in found if _CHECKPOINT.fullmatch(path.name)), default=None)


def last_output_line(folder: Path) -> str:
    """The last thing the run's process said, in at most 300 characters."""
    try:
        with open(folder / OUTPUT_LOG, "rb") as file:
            file.seek(max(0, file.seek(0, 2) - 8192))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip()[:300] for line in reversed(lines) if line.strip()), "")


class CurveReader:
    """The curves of a run that is being written, read on from where the last reading ended."""

    def __init__(self, folder: Path) -> None:
        self._path = RunFiles(folder).metrics
        self._offset = 0
        self.curves: Curves = {}
        self.env_step = 0
        self._times: deque[tuple[int, float]] = deque(maxlen=PACE_ROWS)

    def read(self) -> Curves:
        """The curves by metric, each in the order of its rows."""
        if not self._path.exists():
            return self.curves
        if self._path.stat().st_size < self._offset:
            # A resumed run has cut its rows back to its checkpoint.
            self._forget()
        try:
            self._read_on()
        except ValueError:  # cut back, and longer again by now: the offset is inside a row
            self._forget()
            self._read_on()
        return self.curves

    def _forget(self) -> None:
        self._offset, self.env_step, self.curves = 0, 0, {}
        self._times.clear()

    @property
    def time(self) -> float | None:
        """When the newest row was written, in epoch seconds."""
        return self._times[-1][1] if self._times else None

    def pace(self, since: float) -> float | None:
        """Env steps a second over the last rows, none from before `since` (epoch seconds), which may
        be of an earlier process; None if they do not tell."""
        rows = [row for row in self._times if row[1] >= since]
        if len(rows) < 2:
            return None
        steps, seconds = rows[-1][0] - rows[0][0], rows[-1][1] - rows[0][1]
        return steps / seconds if steps > 0 and seconds > 0 else None

    def _read_on(self) -> None:
        for row in read(self._path, self._offset):
            self._offset, self.env_step = row.end, row.env_step
            self._times.append((row.env_step, row.time))
            for metric, value in row.metrics.items():
                self.curves.setdefault(metric, []).append((row.env_step, value))
