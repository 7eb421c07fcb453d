"""Uploads one run: reads its folder, sends metrics and files to MLflow, and stores its progress.

**Uploads run in a process, not in a thread.** Importing mlflow and inserting a thousand metrics hold
the interpreter's lock. Measured beside a training step of 8 ms, a thread made steps last 262 ms (p95)
while it started and up to 299 ms while it uploaded. A process does not slow the run. It outlives a
killed run long enough to upload the rest and mark it KILLED. Forked environment workers inherit no
locks of a thread.

**Each (key, step) has one value in MLflow.** MLflow's SQL stores drop an exact repetition of (run,
key, step, timestamp, value), so sending a batch twice is harmless. A run that resumes from a
checkpoint repeats some steps, with later timestamps and other timings, and MLflow may already hold
their values. So the resuming run saves the records that it truncates, and the uploader sends those
instead of the repeated ones: an exact repetition again. The alternative is to upload only what a
checkpoint has committed. Curves would then lag by a checkpoint, and duplicates would still occur when
the newest checkpoint is corrupt and the one before it is used.

**A run that starts over in its folder is a new MLflow run.** Its configuration may differ, and MLflow
refuses to change a parameter. The MLflow run of the earlier attempt is ended.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from llmdreamer.tracking.failures import TrackingError, tracking_errors
from llmdreamer.tracking.record import (
    MlflowRunRef,
    OrphanedRun,
    RunFiles,
    RunRecord,
    UploadCursor,
    load,
    save,
)
from llmdreamer.tracking.spool import MetricsRecord, Spool, read_metrics
from llmdreamer.tracking.store import connect, ensure_experiment, find_run, metric_key, shorten
from llmdreamer.utils.files import write_atomically
from llmdreamer.utils.output import print_error
from llmdreamer.utils.redact import redact

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

MAX_METRICS_PER_CALL = 1000  # MLflow's limit
MAX_PARAMS_PER_CALL = 100  # MLflow's limit
MAX_NAME_CHARACTERS = 250  # MLflow's limit
KEY_TAG = "llmdreamer.key"
_ACTIVE = ("RUNNING", "active")  # status and lifecycle stage of a run that can be ended


class Uploader:
    """Uploads what the run folder has and MLflow lacks. The caller must hold `RunFiles.lock`."""

    def __init__(self, folder: Path, say: Callable[[str], None] = print_error) -> None:
        self._say = say  # receives a line about a file that is not uploaded
        self.files = RunFiles(folder)
        record = load(RunRecord, self.files.run_record)
        if record is None:
            raise TrackingError(
                f"{folder} is not the folder of a tracked run: {self.files.run_record.name} is missing"
            )
        self.record = record
        self.uri = with_password(record.uri)
        self.uploaded_records = 0  # by this object
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._cursor = UploadCursor(key="")
        # (time, value) by (env_step, name): what MLflow may have of records that were truncated.
        self._sent: dict[tuple[int, str], tuple[float, float]] = {}

    def upload(self) -> None:
        """Upload the metrics and artifacts that MLflow lacks. May be called again after a failure.

        Raises:
            TrackingError: at the first failure of the store.
        """
        with tracking_errors(self.record.uri):
            client = self._client or self._open()
            self._client = None  # after a failure, look the run up again: it may have been deleted
            self._upload_metrics(client)
            self._upload_artifacts(client)
            self._client = client

    def close(self, record: RunRecord) -> None:
        """Set the end of the run, and the tags that were added since its start.

        Raises:
            TrackingError: if the store fails.
        """
        from mlflow.entities import RunTag

        ended, status = record.ended, record.status or "KILLED"
        added = record.tags.items() - self.record.tags.items()
        with tracking_errors(self.record.uri):
            client = self._client or self._open()
            end_time = None if ended is None else int(ended * 1000)
            if added:
                tags = [RunTag(key, shorten(value)) for key, value in sorted(added)]
                client.log_batch(self._run_id, tags=tags)
            client.set_terminated(self._run_id, status, end_time)

    def _open(self) -> MlflowClient:
        """Find or create the MLflow run, and upload its parameters and tags."""
        experiment_id = ensure_experiment(self.uri, self.record.experiment)
        client = connect(self.uri)
        mlflow_run = load(MlflowRunRef, self.files.mlflow_run)
        target = self.record.target
        if mlflow_run is None or mlflow_run.target != target:
            mlflow_run = MlflowRunRef(*target, key=uuid.uuid4().hex)
            save(mlflow_run, self.files.mlflow_run)
        run = self._find(client, experiment_id, mlflow_run)
        if run is None:
            # The run is new, or the user has deleted the database: then everything is sent again.
            if mlflow_run.run_id:
                mlflow_run = MlflowRunRef(*target, key=uuid.uuid4().hex)
            save(mlflow_run, self.files.mlflow_run)
            run = self._create(client, experiment_id, mlflow_run)
        if mlflow_run.run_id is None:
            mlflow_run.run_id = run.info.run_id
            save(mlflow_run, self.files.mlflow_run)
        self._run_id = run.info.run_id
        self._load_cursor(mlflow_run.key)
        self._describe(client, run)
        self._end_orphaned_runs(client, experiment_id)
        return client

    def _find(
        self, client: MlflowClient, experiment_id: str, mlflow_run: MlflowRunRef
    ) -> Run | None:
        if mlflow_run.run_id is None:
            runs = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{mlflow_run.key}'")
            return runs[0] if runs else None
        return find_run(client, mlflow_run.run_id)

    def _create(self, client: MlflowClient, experiment_id: str, mlflow_run: MlflowRunRef) -> Run:
        return client.create_run(
            experiment_id,
            start_time=int(self.record.started * 1000),
            tags={KEY_TAG: mlflow_run.key},
            run_name=shorten(self.record.name, MAX_NAME_CHARACTERS),
        )

    def _describe(self, client: MlflowClient, run: Run) -> None:
        from mlflow.entities import Param, RunTag

        # MLflow refuses to change a parameter, so a resumed run adds only new ones.
        params = [
            Param(metric_key(key), shorten(str(value)))
            for key, value in self.record.params.items()
            if metric_key(key) not in run.data.params
        ]
        tags = [RunTag(key, shorten(value)) for key, value in self.record.tags.items()]
        for start in range(0, len(params), MAX_PARAMS_PER_CALL):
            client.log_batch(self._run_id, params=params[start : start + MAX_PARAMS_PER_CALL])
        client.log_batch(self._run_id, tags=tags)
        client.update_run(self._run_id, status="RUNNING")

    def _end_orphaned_runs(self, client: MlflowClient, experiment_id: str) -> None:
        """End MLflow runs of earlier attempts that are still RUNNING.

        This happens after a crash of the machine, which stops both the run and its uploader.
        """
        if not self.files.orphaned_runs.exists():
            return
        for line in self.files.orphaned_runs.read_text().splitlines():
            orphan = OrphanedRun(**json.loads(line))
            if orphan.target != self.record.target:
                continue  # its store may no longer exist
            run = self._find(client, experiment_id, orphan)
            if run is not None and (run.info.status, run.info.lifecycle_stage) == _ACTIVE:
                client.set_terminated(run.info.run_id, orphan.status, int(orphan.ended * 1000))
        self.files.orphaned_runs.unlink()

    def _load_cursor(self, key: str) -> None:
        cursor = load(UploadCursor, self.files.upload_cursor)
        if cursor is None or cursor.key != key:
            # These files belong to another MLflow run.
            cursor = UploadCursor(key)
            save(cursor, self.files.upload_cursor)
            self.files.truncated.unlink(missing_ok=True)
        self._cursor = cursor
        if self.files.truncated.exists():
            for record in _read_spool(self.files.truncated):
                for name, value in record.metrics.items():
                    self._sent.setdefault((record.env_step, name), (record.time, value))

    def _upload_metrics(self, client: MlflowClient) -> None:
        if not self.files.metrics.exists():
            return
        for records in _batches(_read_spool(self.files.metrics, self._cursor.uploaded_bytes)):
            self._cursor.attempted_bytes = records[-1].end
            save(self._cursor, self.files.upload_cursor)
            metrics = [metric for record in records for metric in self._metrics(record)]
            for start in range(0, len(metrics), MAX_METRICS_PER_CALL):
                batch = metrics[start : start + MAX_METRICS_PER_CALL]
                client.log_batch(self._run_id, metrics=batch)
            self._cursor.uploaded_bytes = records[-1].end
            save(self._cursor, self.files.upload_cursor)
            self.uploaded_records += len(records)

    def _metrics(self, record: MetricsRecord) -> Iterator[Metric]:
        from mlflow.entities import Metric

        for name, logged in record.metrics.items():
            at, value = self._sent.get((record.env_step, name), (record.time, logged))
            yield Metric(metric_key(name), value, int(at * 1000), record.env_step)

    def _upload_artifacts(self, client: MlflowClient) -> None:
        if not self.files.artifacts.exists():
            return
        with open(self.files.artifacts) as file:
            lines = [line for line in file if line.endswith("\n")]
        for line in lines[self._cursor.artifact_lines :]:
            self._upload_artifact(client, **json.loads(line))
            self._cursor.artifact_lines += 1
            save(self._cursor, self.files.upload_cursor)

    def _upload_artifact(self, client: MlflowClient, path: str, folder: str | None) -> None:
        source = self.files.folder / path
        if not _is_within(source, self.files.folder):
            # A run folder from someone else could list private files and name the server to send to.
            self._say(f"tracking: {source} is outside the run's folder and was not uploaded")
        elif source.is_dir():
            client.log_artifacts(self._run_id, str(source), folder or source.name)
        elif source.exists():
            client.log_artifact(self._run_id, str(source), folder)
        else:
            self._say(f"tracking: {source} no longer exists and was not uploaded")


def rewind_record(files: RunFiles, offset: int) -> None:
    """Truncate the spool to a checkpoint's offset; save the removed records that MLflow may have.

    Raises:
        ValueError: if the spool has no record that ends at `offset`.
    """
    spool = Spool(files.metrics)
    cursor = load(UploadCursor, files.upload_cursor)
    # This order matters: after a kill between two of these steps, the next call completes them.
    if cursor is not None and cursor.attempted_bytes > offset:
        truncated = Spool(files.truncated)
        for record in read_metrics(files.metrics, min(offset, spool.offset())):
            if record.end <= cursor.attempted_bytes:
                truncated.append(record.metrics, record.env_step, record.time)
        truncated.flush()
        truncated.close()
        cursor.uploaded_bytes = min(cursor.uploaded_bytes, offset)
        cursor.attempted_bytes = offset
        save(cursor, files.upload_cursor)
    spool.truncate(offset)
    spool.close()


def reset_record(files: RunFiles) -> None:
    """Delete what an earlier attempt in this folder recorded; the uploader ends its MLflow run."""
    mlflow_run = load(MlflowRunRef, files.mlflow_run)
    record = load(RunRecord, files.run_record)
    if mlflow_run is not None:
        orphan = OrphanedRun(**asdict(mlflow_run))
        if files.metrics.exists():
            orphan.ended = files.metrics.stat().st_mtime
        if record is not None:
            orphan.status = record.status or orphan.status
            orphan.ended = record.ended or orphan.ended
        earlier = files.orphaned_runs.read_text() if files.orphaned_runs.exists() else ""
        write_atomically(files.orphaned_runs, earlier + json.dumps(asdict(orphan)) + "\n")
    # The run record first: without it, no process uploads that attempt after a kill in this loop.
    for path in (
        files.run_record,
        files.mlflow_run,
        files.upload_cursor,
        files.truncated,
        files.artifacts,
    ):
        path.unlink(missing_ok=True)
    spool = Spool(files.metrics)
    spool.truncate(0)
    spool.close()


def with_password(uri: str) -> str:
    """Return `uri` with its password, taken from MLFLOW_TRACKING_URI if that is the same store.

    Run folders hold no passwords.
    """
    full = os.environ.get("MLFLOW_TRACKING_URI", uri).strip()
    return full if redact(full) == uri else uri


def _is_within(path: Path, folder: Path) -> bool:
    """Return True if `path`, and all that is below it, lies in `folder` after resolving links."""
    root = folder.resolve()
    return all(each.resolve().is_relative_to(root) for each in (path, *path.rglob("*")))


def _read_spool(path: Path, start: int = 0) -> Iterator[MetricsRecord]:
    """Yield the records from byte `start` on, as `read_metrics`; TrackingError at a damaged one."""
    try:
        yield from read_metrics(path, start)
    except ValueError as error:
        raise TrackingError(f"{error}: nothing after it is uploaded", "damaged file") from error


def _batches(records: Iterator[MetricsRecord]) -> Iterator[list[MetricsRecord]]:
    """Group records so that a group has at most MAX_METRICS_PER_CALL metrics or is a single record."""
    batch: list[MetricsRecord] = []
    count = 0
    for record in records:
        if batch and count + len(record.metrics) > MAX_METRICS_PER_CALL:
            yield batch
            batch, count = [], 0
        batch.append(record)
        count += len(record.metrics)
    if batch:
        yield batch
