"""Records a sweep as one MLflow run with its jobs' runs below it: our sweeper's, or by a Hydra callback.

Jobs find the parent's id in the environment variable `LLMDREAMER_PARENT_RUN`, which their processes
inherit. A store that fails costs the sweep a warning of one line, never a job.
"""

from __future__ import annotations

import csv
import io
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from filelock import FileLock
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from omegaconf import DictConfig, OmegaConf

from llmdreamer.sweep.results_table import OMITTED_COLUMNS, RESULTS_FILE
from llmdreamer.sweep.settings import SWEEPER
from llmdreamer.tracking import TrackingError, resolve_uri
from llmdreamer.tracking.origin import origin
from llmdreamer.tracking.parent import PARENT_VARIABLE, Child, Parent, start_parent
from llmdreamer.tracking.record import Status
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.files import write_atomically
from llmdreamer.utils.redact import as_typed

log = logging.getLogger(__name__)
NOTE_ROWS = 50  # the note is for reading; the table of all is results.csv


class ParentRunCallback(Callback):
    """Begins the parent run before any job, ends it with a table of results after the last."""

    def __init__(self) -> None:
        self._parent: Parent | None = None
        # Of jobs in this very process; those of other processes are known by their runs.
        self._failed: list[str] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        # Our sweeper begins the parent itself, once it knows that there is something to run.
        if not _is_ours(config):
            self.begin(config)

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        if not _is_ours(config):
            self.end(config)

    def begin(self, config: DictConfig) -> None:
        """Start the parent run, or go on with that of the sweep's folder; jobs will find it."""
        folder = Path(config.hydra.sweep.dir).resolve()
        # A parent inherited from a shell or from a sweep that starts sweeps is not ours.
        os.environ.pop(PARENT_VARIABLE, None)
        try:
            uri = resolve_uri(config.tracking.uri, Path.cwd())
            tags = {"command": _command(), "sweep": folder.name, "folder": str(folder), **origin()}
            note = _head()
            # Drivers of one sweep begin its parent run together, too.
            folder.mkdir(parents=True, exist_ok=True)
            with FileLock(folder / "mlflow.lock"):
                self._parent = start_parent(folder, uri, config.tracking.experiment, tags, note)
        except (TrackingError, ConfigError, OSError) as error:
            log.warning("this sweep has no parent run: %s", error)
            return
        os.environ[PARENT_VARIABLE] = self._parent.run_id

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        if job_return.status is JobStatus.FAILED:
            self._failed.append(as_typed(job_return.overrides or []))

    def end(self, config: DictConfig) -> None:
        """End the parent run with the table of results; call it in a `finally`."""
        os.environ.pop(PARENT_VARIABLE, None)
        if self._parent is None:
            return
        table = Path(config.hydra.sweep.dir).resolve() / RESULTS_FILE
        try:
            if _is_ours(config):
                # Our sweeper leaves its own table, of the trials that never became a run, too.
                text = table.read_text() if table.exists() else ""
                self._parent.end(_status([]), f"{_head()}\n{_markdown(text)}", table)
                return
            children = self._parent.children(config.objective)
            known = {child.overrides for child in children}
            # A job that failed before its run began has no run to show.
            lost = [Child("-", job, None, "FAILED") for job in self._failed if job not in known]
            jobs = [*children, *lost]
            write_atomically(table, _csv(jobs, config.objective))
            self._parent.end(_status(jobs), _note(jobs, config.objective), table)
        except (TrackingError, OSError) as error:
            log.warning("the sweep's parent run is not closed: %s", error)


def _is_ours(config: DictConfig) -> bool:
    return bool(OmegaConf.select(config, "hydra.runtime.choices.hydra/sweeper") == SWEEPER)


def _status(jobs: Sequence[Child]) -> Status:
    # We are called in a `finally`: an exception that ends the sweep is in flight just now.
    stopped_by = sys.exc_info()[0]
    if stopped_by is not None and not issubclass(stopped_by, Exception):
        return "KILLED"
    failed = stopped_by is not None or any(job.status in ("FAILED", "KILLED") for job in jobs)
    return "FAILED" if failed else "FINISHED"


def _command() -> str:
    return as_typed(sys.argv)


def _head() -> str:
    return f"Sweep by\n\n    python {_command()}\n"


def _markdown(table: str) -> str:
    """The first rows of a CSV text for the note, without what is told twice."""
    rows = list(csv.DictReader(io.StringIO(table)))
    if not rows:
        return ""
    columns = [name for name in rows[0] if name not in OMITTED_COLUMNS]
    lines = [f"| {' | '.join(columns)} |", f"|{'---|' * len(columns)}"]
    for row in rows[:NOTE_ROWS]:
        lines.append(f"| {' | '.join(row[name].replace('|', chr(92) + '|') for name in columns)} |")
    if len(rows) > NOTE_ROWS:
        lines.append(f"\n{len(rows) - NOTE_ROWS} more in results.csv.")
    return "\n".join(lines) + "\n"


def _csv(jobs: Sequence[Child], objective: str) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["name", "overrides", objective, "status"])
    for job in jobs:
        value = "" if job.objective is None else repr(job.objective)
        writer.writerow([job.name, job.overrides, value, job.status])
    return text.getvalue()


def _note(jobs: Sequence[Child], objective: str) -> str:
    lines = [
        _head(),
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
