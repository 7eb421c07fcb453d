"""Records a sweep as one MLflow run, the parent of its jobs' runs.

Hydra calls the callback with Hydra's own sweepers; this package's sweeper calls `begin` and `end`
itself. Jobs inherit the parent's ID in the environment variable `LLMDREAMER_PARENT_RUN`. If the store
fails, the sweep logs one warning and continues.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from filelock import FileLock
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from llmdreamer.sweep.results_table import RESULTS_FILE
from llmdreamer.sweep.settings import SWEEPER
from llmdreamer.sweep.summary import SweepSummary
from llmdreamer.tracking import TrackingError, resolve_uri
from llmdreamer.tracking.origin import origin
from llmdreamer.tracking.parent import PARENT_VARIABLE, ChildRun, ParentRun, start_parent
from llmdreamer.tracking.record import Status
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.files import write_atomically
from llmdreamer.utils.output import only_shown
from llmdreamer.utils.program import typed_words
from llmdreamer.utils.redact import as_typed

log = logging.getLogger(__name__)
MAX_LINE_CHARACTERS = 90
NOTE_ROWS = 50  # rows in the parent run's note; results.csv has all


class ParentRunCallback(Callback):
    """Starts the parent run before the first job and ends it with a table after the last."""

    def __init__(self) -> None:
        self._parent: ParentRun | None = None
        # Overrides of failed jobs of this process. Jobs of other processes are known from their runs.
        self._failed_jobs: list[str] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        # This package's sweeper starts the parent run itself, after its checks.
        if not _is_own_sweeper(config):
            self.begin(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if not _is_own_sweeper(config):
            self.end(config)

    def begin(self, config: DictConfig) -> None:
        """Start the parent run, or reopen the one of the sweep's folder, and pass its ID to the jobs."""
        folder = Path(config.hydra.sweep.dir).resolve()
        # An inherited ID belongs to another sweep, such as one that starts this one.
        os.environ.pop(PARENT_VARIABLE, None)
        try:
            uri = resolve_uri(config.tracking.uri, Path.cwd())
            tags = {"command": _command(), "sweep": folder.name, "folder": str(folder), **origin()}
            note = _note_head()
            # Several drivers of one sweep may get here at once.
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "mlflow.lock"):
                self._parent = start_parent(folder, uri, config.tracking.experiment, tags, note)
        except (TrackingError, ConfigError, OSError) as error:
            log.warning("this sweep has no parent run in MLflow: %s", error)
            return
        os.environ[PARENT_VARIABLE] = self._parent.run_id

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if job_return.status is JobStatus.FAILED:
            self._failed_jobs.append(as_typed(job_return.overrides or []))

    def end(
        self,
        config: DictConfig,
        summarize_results: Callable[[], SweepSummary] | None = None,
        draw: Callable[[Path], object] | None = None,
    ) -> None:
        """End the parent run with the results. Call it in a `finally` block.

        Args:
            summarize_results: summarizes what this package's sweeper has run, and written to results.csv.
                None: Hydra's sweeper ran the jobs, which are known from their runs.
            draw: writes figures into a folder.
        """
        os.environ.pop(PARENT_VARIABLE, None)
        if self._parent is None:
            return
        table = Path(config.hydra.sweep.dir).resolve() / RESULTS_FILE
        try:
            if summarize_results is not None:
                self._end_with_summary(self._parent, table, summarize_results, draw)
                return
            children = self._parent.children(config.objective)
            with_run = {child.overrides for child in children}
            # A job that failed early has no MLflow run.
            without_run = [
                ChildRun("-", job, None, "FAILED")
                for job in self._failed_jobs
                if job not in with_run
            ]
            jobs = [*children, *without_run]
            write_atomically(table, _csv_text(jobs, config.objective))
            self._parent.end(_sweep_status(jobs), _note(jobs, config.objective), table)
        except (TrackingError, OSError) as error:
            log.warning("the sweep's parent run in MLflow is not closed: %s", error)

    def _end_with_summary(
        self,
        parent: ParentRun,
        table: Path,
        summarize_results: Callable[[], SweepSummary],
        draw: Callable[[Path], object] | None,
    ) -> None:
        status, note, summary = _sweep_status([]), _note_head(), None
        with only_shown("summary of the sweep in MLflow"):
            summary = summarize_results()
        if summary is not None:
            note = f"{summary.note}\n\n{note}"
            parent.log(summary.metrics, summary.tags)
        with TemporaryDirectory() as folder:
            if draw is not None and status != "KILLED":  # after Ctrl-C, the user waits for the exit
                with only_shown("figures of the sweep in MLflow"):
                    draw(Path(folder))
            parent.end(status, note, table, Path(folder))


def _is_own_sweeper(config: DictConfig) -> bool:
    return bool(OmegaConf.select(config, "hydra.runtime.choices.hydra/sweeper") == SWEEPER)


def _sweep_status(jobs: Sequence[ChildRun]) -> Status:
    # The caller is in a `finally` block: an exception that ends the sweep is still being raised.
    exception = sys.exc_info()[0]
    if exception is not None and not issubclass(exception, Exception):
        return "KILLED"
    failed = exception is not None or any(job.status in ("FAILED", "KILLED") for job in jobs)
    return "FAILED" if failed else "FINISHED"


def _command() -> str:
    return as_typed(typed_words())


def _note_head() -> str:
    """Return the command in lines of moderate length: a long line would widen MLflow's page."""
    words, lines = [as_typed([word]) for word in typed_words()], [""]
    for word in words:
        if lines[-1] and len(lines[-1]) + len(word) >= MAX_LINE_CHARACTERS:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".lstrip()
    command = " \\\n      ".join(lines)
    return f"Sweep by\n\n    {command}\n"


def _csv_text(jobs: Sequence[ChildRun], objective: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "overrides", objective, "status"])
    for job in jobs:
        value = "" if job.objective is None else repr(job.objective)
        writer.writerow([job.name, job.overrides, value, job.status])
    return text.getvalue()


def _note(jobs: Sequence[ChildRun], objective: str) -> str:
    lines = [
        _note_head(),
        f"| name | overrides | {objective} | status |",
        "|---|---|---|---|",
    ]
    for job in jobs[:NOTE_ROWS]:
        value = "" if job.objective is None else f"{job.objective:.6g}"
        overrides = job.overrides.replace("|", "\\|")
        lines.append(f"| {job.name} | {overrides} | {value} | {job.status} |")
    if len(jobs) > NOTE_ROWS:
        lines.append(f"\n{len(jobs) - NOTE_ROWS} more in results.csv.")
    return "\n".join(lines) + "\n"
