"""The MLflow run of a sweep; the runs of its jobs name it as their parent."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from llmdreamer.tracking.experiment import NOTE_TAG
from llmdreamer.tracking.failures import tracking_errors
from llmdreamer.tracking.record import MlflowRunRef, RunFiles, RunRecord, Status, load, save
from llmdreamer.tracking.store import (
    connect,
    ensure_experiment,
    find_run,
    metric_key,
    shorten,
)
from llmdreamer.utils.redact import redact

PARENT_VARIABLE = "LLMDREAMER_PARENT_RUN"
"""Environment variable that gives a sweep's jobs the id of their parent run."""
MAX_CHILDREN = 5000


@dataclass(frozen=True)
class ChildRun:
    """The MLflow run of a job."""

    name: str
    overrides: str  # its tag `overrides`; empty if it has none
    objective: float | None  # last value; None if it was never logged
    status: str  # RUNNING, FINISHED, FAILED or KILLED


@dataclass(frozen=True)
class ParentRun:
    """A parent run that has started."""

    uri: str
    run_id: str

    def children(self, objective: str) -> list[ChildRun]:
        """Return the runs of the jobs, oldest first.

        Only the oldest MAX_CHILDREN runs are read.

        Raises:
            TrackingError: if the store fails.
        """
        with tracking_errors(self.uri):
            client = connect(self.uri)
            experiment = client.get_run(self.run_id).info.experiment_id
            runs = client.search_runs(
                [experiment],
                f"tags.`mlflow.parentRunId` = '{self.run_id}'",
                max_results=MAX_CHILDREN,
                order_by=["attributes.start_time ASC"],
            )
            return [
                ChildRun(
                    name=run.info.run_name,
                    overrides=run.data.tags.get("overrides", ""),
                    objective=run.data.metrics.get(metric_key(objective)),
                    status=run.info.status,
                )
                for run in runs
            ]

    def log(self, metrics: Mapping[str, float], tags: Mapping[str, str]) -> None:
        """Store metrics and tags of the sweep.

        Raises:
            TrackingError: if the store fails.
        """
        with tracking_errors(self.uri):
            from mlflow.entities import Metric, RunTag

            now = int(time.time() * 1000)
            points = [Metric(metric_key(key), value, now, 0) for key, value in metrics.items()]
            run_tags = [RunTag(key, shorten(value)) for key, value in tags.items()]
            connect(self.uri).log_batch(self.run_id, metrics=points, tags=run_tags)

    def end(self, status: Status, note: str, table: Path, figures: Path | None = None) -> None:
        """Store the results and the status.

        Args:
            note: Markdown that MLflow shows as the description of the run.
            table: file to upload; skipped if it does not exist.
            figures: folder of files to upload; skipped if it is empty.

        Raises:
            TrackingError: if the store fails.
        """
        with tracking_errors(self.uri):
            client = connect(self.uri)
            if table.exists():
                client.log_artifact(self.run_id, str(table))
            if figures is not None and any(figures.iterdir()):
                client.log_artifacts(self.run_id, str(figures), "figures")
            client.set_tag(self.run_id, NOTE_TAG, shorten(note))
            client.set_terminated(self.run_id, status)


def start_parent(
    folder: Path, uri: str, experiment: str, tags: Mapping[str, str], note: str
) -> ParentRun:
    """Start the MLflow run of the sweep in `folder`, or reopen it if `folder/mlflow.json` names one.

    Raises:
        TrackingError: if the store cannot be reached.
    """
    with tracking_errors(uri):
        experiment_id = ensure_experiment(uri, experiment)
        client = connect(uri)
        file = folder / "mlflow.json"
        mlflow_run = load(MlflowRunRef, file)
        all_tags = {**tags, NOTE_TAG: shorten(note)}
        target = (redact(uri), experiment)
        run_id = None if mlflow_run is None or mlflow_run.target != target else mlflow_run.run_id
        # A database that was removed since then does not know the run.
        if run_id and find_run(client, run_id) is not None:
            client.update_run(run_id, status="RUNNING")
            for key, value in all_tags.items():
                client.set_tag(run_id, key, value)
            return ParentRun(uri, run_id)
        run = client.create_run(
            experiment_id,
            start_time=int(time.time() * 1000),
            tags={key: shorten(value) for key, value in all_tags.items()},
            run_name=_name(folder),
        )
        save(MlflowRunRef(*target, key="", run_id=run.info.run_id), file)
        return ParentRun(uri, run.info.run_id)


def tag_run(run_dir: Path, uri: str, key: str, value: str) -> None:
    """Set a tag of a run that has ended, in its record and in MLflow.

    If the run is not in MLflow yet, the process that uploads the rest sets the tag there too.

    Raises:
        TrackingError: if the store fails.
    """
    files = RunFiles(run_dir)
    record, mlflow_run = load(RunRecord, files.run_record), load(MlflowRunRef, files.mlflow_run)
    if record is None:
        return
    record.tags[key] = value
    save(record, files.run_record)
    if mlflow_run is None or mlflow_run.run_id is None or mlflow_run.uri != redact(uri):
        return
    with tracking_errors(uri):
        connect(uri).set_tag(mlflow_run.run_id, key, shorten(value))


def _name(folder: Path) -> str:
    """Return the folder's name, with its parent's name before it if it has no letter.

    Hydra names a sweep's folder by the time and the folder above by the date.
    """
    name = folder.name
    return name if any(letter.isalpha() for letter in name) else f"{folder.parent.name}/{name}"
