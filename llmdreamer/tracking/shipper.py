"""The uploads of one run: reads its folder, tells MLflow, remembers how far it got.

**It is a process, not a thread.** Importing mlflow and inserting a thousand metrics hold the
interpreter's lock: measured beside a training step of 8 ms, a thread made steps last 262 ms (p95)
while it started and up to 299 ms while it shipped. A process of its own costs the run nothing,
outlives a killed run just long enough to upload the rest and mark it KILLED, and leaves forked
environment workers no thread's locks to inherit.

**Each (key, step) is told once.** MLflow's SQL stores drop an exact repetition of (run, key, step,
timestamp, value), which makes sending a batch again harmless. A run resumed from a checkpoint does
rows again whose (key, step) MLflow may hold already, with a later timestamp and other timings. So
the resuming run keeps the rows that it cuts aside, and the shipper sends those in the place of
their repetitions: an exact repetition again. The other way, to ship only what a checkpoint has
committed, would show curves late by a checkpoint and still fail when the newest checkpoint is
corrupt and the one before it is taken.

**A run that begins anew in its folder is another one.** It may be of another configuration, and MLflow
refuses to change a parameter. It gets an MLflow run of its own; that of the life before is ended.
"""

from __future__ import annotations

import json
import os
import sys
import uuid
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from llmdreamer.tracking.record import Abandoned, Known, RunFiles, Shipped, Wanted, load, save
from llmdreamer.tracking.spool import Row, Spool, read
from llmdreamer.tracking.store import (
    TrackingError,
    connect,
    metric_key,
    prepare,
    shorten,
    speaking,
)
from llmdreamer.utils.files import write_atomically
from llmdreamer.utils.redact import redact

if TYPE_CHECKING:
    from mlflow.entities import Metric, Run
    from mlflow.tracking import MlflowClient

BATCH = 1000  # metrics in one call: MLflow's limit
KEY_TAG = "llmdreamer.key"
_UNDER_WAY = ("RUNNING", "active")


class Shipper:
    """Uploads what the run folder holds and MLflow does not; whoever calls it holds the lock."""

    def __init__(self, folder: Path) -> None:
        self.files = RunFiles(folder)
        wanted = load(Wanted, self.files.wanted)
        if wanted is None:
            raise TrackingError(f"{folder} is no tracked run: it has no {self.files.wanted.name}")
        self.wanted = wanted
        self.uri = with_password(wanted.uri)
        self.rows = 0  # shipped by this object
        self._client: MlflowClient | None = None
        self._run_id = ""
        self._shipped = Shipped(key="")
        self._told: dict[tuple[int, str], tuple[float, float]] = {}

    def ship(self) -> None:
        """Upload rows and artifacts that are not yet. After a failure, call it again.

        Raises:
            TrackingError: at the first thing that the store refuses.
        """
        with speaking(self.wanted.uri):
            client = self._client or self._open()
            self._client = None  # after a failure the run is looked up anew: it may be gone
            self._ship_rows(client)
            self._ship_artifacts(client)
            self._client = client

    def close(self, wanted: Wanted) -> None:
        """Mark the run's end, and tell tags that came after its start. Raises TrackingError."""
        from mlflow.entities import RunTag

        ended, status = wanted.ended, wanted.status or "KILLED"
        late = wanted.tags.items() - self.wanted.tags.items()
        with speaking(self.wanted.uri):
            client = self._client or self._open()
            end_time = None if ended is None else int(ended * 1000)
            if late:
                tags = [RunTag(key, shorten(value)) for key, value in sorted(late)]
                client.log_batch(self._run_id, tags=tags)
            client.set_terminated(self._run_id, status, end_time)

    def _open(self) -> MlflowClient:
        """Find the run or create it, and tell what is known of it from the start."""
        experiment_id = prepare(self.uri, self.wanted.experiment)
        client = connect(self.uri)
        known = load(Known, self.files.known)
        here = (self.wanted.uri, self.wanted.experiment)
        if known is None or (known.uri, known.experiment) != here:
            known = Known(*here, key=uuid.uuid4().hex)
            save(known, self.files.known)
        run = self._find(client, experiment_id, known)
        if run is None:
            # Also where the user has thrown the database away: told again, whole.
            known = Known(*here, key=uuid.uuid4().hex) if known.run_id else known
            save(known, self.files.known)
            run = self._create(client, experiment_id, known)
        if known.run_id is None:
            known.run_id = run.info.run_id
            save(known, self.files.known)
        self._run_id = run.info.run_id
        self._begin_at(known.key)
        self._describe(client, run)
        self._end_abandoned(client, experiment_id)
        return client

    def _find(self, client: MlflowClient, experiment_id: str, known: Known) -> Run | None:
        from mlflow.exceptions import MlflowException

        if known.run_id is None:
            found = client.search_runs([experiment_id], f"tags.`{KEY_TAG}` = '{known.key}'")
            return found[0] if found else None
        try:
            return client.get_run(known.run_id)
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return None

    def _create(self, client: MlflowClient, experiment_id: str, known: Known) -> Run:
        return client.create_run(
            experiment_id,
            start_time=int(self.wanted.started * 1000),
            tags={KEY_TAG: known.key},
            run_name=self.wanted.name,
        )

    def _describe(self, client: MlflowClient, run: Run) -> None:
        from mlflow.entities import Param, RunTag

        # MLflow refuses to change a parameter, so a resumed run adds only those that are new.
        params = [
            Param(metric_key(key), shorten(str(value)))
            for key, value in self.wanted.params.items()
            if metric_key(key) not in run.data.params
        ]
        tags = [RunTag(key, shorten(value)) for key, value in self.wanted.tags.items()]
        for start in range(0, len(params), 100):
            client.log_batch(self._run_id, params=params[start : start + 100])
        client.log_batch(self._run_id, tags=tags)
        client.update_run(self._run_id, status="RUNNING")

    def _end_abandoned(self, client: MlflowClient, experiment_id: str) -> None:
        """End the runs of lives before that nobody could: where a machine went down, both had died."""
        if not self.files.abandoned.exists():
            return
        for line in self.files.abandoned.read_text().splitlines():
            one = Abandoned(**json.loads(line))
            if (one.uri, one.experiment) != (self.wanted.uri, self.wanted.experiment):
                continue  # another store need not be there any more
            run = self._find(client, experiment_id, one)
            if run is not None and (run.info.status, run.info.lifecycle_stage) == _UNDER_WAY:
                client.set_terminated(run.info.run_id, one.status, int(one.ended * 1000))
        self.files.abandoned.unlink()

    def _begin_at(self, key: str) -> None:
        shipped = load(Shipped, self.files.shipped)
        if shipped is None or shipped.key != key:
            # Another MLflow run than the one those files speak of.
            shipped = Shipped(key)
            save(shipped, self.files.shipped)
            self.files.cut.unlink(missing_ok=True)
        self._shipped = shipped
        if self.files.cut.exists():
            for row in read(self.files.cut):
                for name, value in row.metrics.items():
                    self._told.setdefault((row.env_step, name), (row.time, value))

    def _ship_rows(self, client: MlflowClient) -> None:
        if not self.files.metrics.exists():
            return
        for rows in _batches(read(self.files.metrics, self._shipped.offset)):
            self._shipped.sending = rows[-1].end
            save(self._shipped, self.files.shipped)
            metrics = [metric for row in rows for metric in self._metrics(row)]
            for start in range(0, len(metrics), BATCH):
                client.log_batch(self._run_id, metrics=metrics[start : start + BATCH])
            self._shipped.offset = rows[-1].end
            save(self._shipped, self.files.shipped)
            self.rows += len(rows)

    def _metrics(self, row: Row) -> Iterator[Metric]:
        from mlflow.entities import Metric

        for name, now in row.metrics.items():
            at, value = self._told.get((row.env_step, name), (row.time, now))
            yield Metric(metric_key(name), value, int(at * 1000), row.env_step)

    def _ship_artifacts(self, client: MlflowClient) -> None:
        if not self.files.artifacts.exists():
            return
        with open(self.files.artifacts) as file:
            lines = [line for line in file if line.endswith("\n")]
        for line in lines[self._shipped.artifacts :]:
            self._ship_artifact(client, **json.loads(line))
            self._shipped.artifacts += 1
            save(self._shipped, self.files.shipped)

    def _ship_artifact(self, client: MlflowClient, path: str, folder: str | None) -> None:
        source = self.files.folder / path
        if not _is_within(source, self.files.folder):
            # A stranger's folder may list any file of ours, and name the server that would get it.
            say(f"tracking: {source} leads out of the run's folder, and was not uploaded")
        elif source.is_dir():
            client.log_artifacts(self._run_id, str(source), folder or source.name)
        elif source.exists():
            client.log_artifact(self._run_id, str(source), folder)
        else:
            say(f"tracking: {source} is gone, and was not uploaded")


def cut(files: RunFiles, cursor: int) -> None:
    """Cut the spool back to a checkpoint's cursor; keep aside the rows that MLflow may hold.

    Raises:
        ValueError: if the spool has no such byte.
    """
    spool = Spool(files.metrics)
    shipped = load(Shipped, files.shipped)
    # In this order, a kill between two of these steps leaves a state that the next cut completes.
    if shipped is not None and shipped.sending > cursor:
        aside = Spool(files.cut)
        for row in read(files.metrics, min(cursor, spool.offset())):
            if row.end <= shipped.sending:
                aside.append(row.metrics, row.env_step, row.time)
        aside.flush()
        aside.close()
        shipped.offset = min(shipped.offset, cursor)
        shipped.sending = cursor
        save(shipped, files.shipped)
    spool.truncate(cursor)
    spool.close()


def begin_anew(files: RunFiles) -> None:
    """Forget what an earlier life in this folder has recorded; the shipper ends its MLflow run."""
    known, wanted = load(Known, files.known), load(Wanted, files.wanted)
    if known is not None:
        one = Abandoned(**asdict(known))
        if files.metrics.exists():
            one.ended = files.metrics.stat().st_mtime
        if wanted is not None:
            one.status, one.ended = wanted.status or one.status, wanted.ended or one.ended
        before = files.abandoned.read_text() if files.abandoned.exists() else ""
        write_atomically(files.abandoned, before + json.dumps(asdict(one)) + "\n")
    # `wanted` first: without it, nobody tells the rest of that life after a kill between two of these.
    for path in (files.wanted, files.known, files.shipped, files.cut, files.artifacts):
        path.unlink(missing_ok=True)
    spool = Spool(files.metrics)
    spool.truncate(0)
    spool.close()


def say(line: str) -> None:
    try:
        print(line, file=sys.stderr, flush=True)
    except OSError:
        pass  # whoever listened is gone, and the uploads go on without


def with_password(uri: str) -> str:
    """Passwords are not written to run folders: they come with the environment."""
    full = os.environ.get("MLFLOW_TRACKING_URI", uri)
    return full if redact(full) == uri else uri


def _is_within(path: Path, folder: Path) -> bool:
    """Whether a file, or all that is below a folder, lies in `folder` once links are followed."""
    root = folder.resolve()
    return all(each.resolve().is_relative_to(root) for each in (path, *path.rglob("*")))


def _batches(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Group rows so that a group has BATCH metrics or is a single row."""
    group: list[Row] = []
    count = 0
    for row in rows:
        if group and count + len(row.metrics) > BATCH:
            yield group
            group, count = [], 0
        group.append(row)
        count += len(row.metrics)
    if group:
        yield group
