"""What a driver tells of its sweep while it runs: its table on the disk, and live on a terminal."""

from __future__ import annotations

import time

from llmdreamer.sweep.plan import Plan
from llmdreamer.sweep.results_table import write_results
from llmdreamer.sweep.run_source import RunSource
from llmdreamer.sweep.status import StatusReader, SweepStatus, write_header
from llmdreamer.sweep.status_table import LiveTable

WRITE_EVERY = 1.0  # seconds between two tables on the disk


class ProgressReporter:
    """Use as a context manager, and call `tick` often."""

    def __init__(self, plan: Plan, source: RunSource) -> None:
        self._plan, self._source = plan, source
        self._header = write_header(plan, source.total)
        self._reader = StatusReader(plan.folder)
        self._screen = LiveTable(self._look)
        self._is_stale = True
        self._written_at = 0.0

    def mark_changed(self) -> None:
        """A run has begun or ended."""
        self._is_stale = True

    def refresh(self) -> None:
        if self._is_stale and time.monotonic() - self._written_at > WRITE_EVERY:
            self._is_stale, self._written_at = False, time.monotonic()
            write_results(self._plan, self._source.rows)
        self._screen.refresh()

    def _look(self) -> SweepStatus:
        return self._reader.sweep(self._header, self._source.rows)

    def __enter__(self) -> ProgressReporter:
        self._screen.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._screen.close()
