"""Reports a driver's sweep while it runs: writes results.csv and redraws a table on a terminal."""

from __future__ import annotations

import time

from llmdreamer.sweep.plan import Plan
from llmdreamer.sweep.results_table import write_results
from llmdreamer.sweep.run_source import RunSource
from llmdreamer.sweep.status import StatusReader, SweepStatus, write_header
from llmdreamer.sweep.status_table import LiveTable

WRITE_SECONDS = 1.0  # least time between two writes of results.csv


class ProgressReporter:
    """Reports the rows of a source. Use it as a context manager and call `refresh` often."""

    def __init__(self, plan: Plan, source: RunSource) -> None:
        self._plan, self._source = plan, source
        self._header = write_header(plan, source.total)
        self._reader = StatusReader(plan.folder)
        self._live_table = LiveTable(self._read_status)
        self._is_stale = True
        self._written_at = 0.0

    def mark_changed(self) -> None:
        """Note that a run has started or ended, so that the next `refresh` writes results.csv."""
        self._is_stale = True

    def refresh(self) -> None:
        if self._is_stale and time.monotonic() - self._written_at > WRITE_SECONDS:
            self._is_stale, self._written_at = False, time.monotonic()
            write_results(self._plan, self._source.rows)
        self._live_table.refresh()

    def _read_status(self) -> SweepStatus:
        return self._reader.read_runs(self._header, self._source.rows)

    def __enter__(self) -> ProgressReporter:
        self._live_table.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._live_table.close()
