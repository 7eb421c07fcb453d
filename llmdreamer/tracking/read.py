"""Reads the runs of an experiment and their metrics from a store, without changing the store.

A database is read by plain SQL, not through MLflow's client. The client migrates an older SQLite
database when it opens it, and refuses a newer one. It also needs a request per run and metric: 20 000
requests for 200 runs with 100 curves each. The five tables read here are the same since MLflow 1.0.
"""

from __future__ import annotations

import gc
import re
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

import numpy as np
from numpy.typing import NDArray

from llmdreamer.tracking.failures import TrackingError, tracking_errors
from llmdreamer.tracking.store import SQLITE_PREFIX, connect, sqlite_path
from llmdreamer.utils.redact import redact

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PARENT_TAG = "mlflow.parentRunId"
_STORED_INFINITY = 1.797e308  # MLflow's SQL stores replace infinity by the largest double
_SERVER_THREADS = 8


@dataclass(frozen=True)
class StoredRun:
    """A run as the store holds it; times in epoch seconds."""

    run_id: str
    name: str
    status: str  # RUNNING, FINISHED, FAILED, KILLED, SCHEDULED
    started: float
    ended: float | None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifact_uri: str = ""

    @property
    def parent(self) -> str | None:
        return self.tags.get(PARENT_TAG)


@dataclass(frozen=True)
class Points:
    """Logged values as columns, unordered. `run` and `key` hold indices into `runs` and `keys`."""

    runs: list[str]  # run ids
    keys: list[str]
    run: NDArray[np.int32]
    key: NDArray[np.int32]
    step: NDArray[np.int64]  # environment step
    time_ms: NDArray[np.int64]  # epoch milliseconds
    value: NDArray[np.float64]

    @classmethod
    def from_records(cls, records: Sequence[tuple[Any, ...]]) -> Points:
        """Build from tuples (run id, key, step, milliseconds, value, is NaN)."""
        columns = list(zip(*records, strict=True)) or [()] * 6
        runs, run = _encode(columns[0])
        keys, key = _encode(columns[1])
        value = np.array(columns[4], np.float64)
        value[np.array(columns[5], bool)] = np.nan
        value[value >= _STORED_INFINITY] = np.inf
        value[value <= -_STORED_INFINITY] = -np.inf
        step, time_ms = (np.array(columns[i], np.int64) for i in (2, 3))
        return cls(runs, keys, run, key, step, time_ms, value)


@dataclass(frozen=True)
class StoredExperiment:
    """An experiment's runs, oldest first, and their points."""

    runs: list[StoredRun]
    points: Points


def read_experiment(
    uri: str, experiment: str, keys: Sequence[str] | None = None
) -> StoredExperiment:
    """Read the runs of `experiment` that are not deleted, and their values of the metrics `keys`.

    Args:
        uri: as `resolve_uri` returns it.
        keys: metric names as logged; None reads all.

    Raises:
        TrackingError: if there is no store, no such experiment, or the tables are not MLflow's.
    """
    with tracking_errors(uri):
        if uri.startswith("http"):
            return _read_server(connect(uri), uri, experiment, keys)
        with _open(uri) as database, _garbage_collection_paused():
            return _read_database(database, uri, experiment, keys)


def _read_database(
    database: _Database, uri: str, experiment: str, keys: Sequence[str] | None
) -> StoredExperiment:
    experiment_ids = dict(
        database.rows(
            "SELECT name, experiment_id FROM experiments WHERE lifecycle_stage = 'active'"
        )
    )
    _require(experiment, list(experiment_ids), uri)
    where = (
        "run_uuid IN (SELECT run_uuid FROM runs WHERE experiment_id = ? AND lifecycle_stage = ?)"
    )
    values: tuple[Any, ...] = (experiment_ids[experiment], "active")
    params: dict[str, dict[str, str]] = {}
    tags: dict[str, dict[str, str]] = {}
    for table, by_run in (("params", params), ("tags", tags)):
        # Table and column names are constants; only values come from outside.
        query = f"SELECT run_uuid, key, value FROM {table} WHERE {where}"  # noqa: S608
        for run_id, key, value in database.rows(query, values):
            by_run.setdefault(run_id, {})[key] = value
    rows = database.rows(
        "SELECT run_uuid, name, status, start_time, end_time, artifact_uri FROM runs"  # noqa: S608
        f" WHERE {where}"
        " ORDER BY start_time, run_uuid",
        values,
    )
    runs = [
        StoredRun(
            run_id,
            tags.get(run_id, {}).get("mlflow.runName", name or run_id),
            status,
            (started or 0) / 1000,
            None if ended is None else ended / 1000,
            params.get(run_id, {}),
            tags.get(run_id, {}),
            artifact_uri or "",
        )
        for run_id, name, status, started, ended, artifact_uri in rows
    ]
    return StoredExperiment(runs, _database_points(database, where, values, keys))


def _database_points(
    database: _Database, where: str, values: tuple[Any, ...], keys: Sequence[str] | None
) -> Points:
    query = f"SELECT run_uuid, key, step, timestamp, value, is_nan FROM metrics WHERE {where}"  # noqa: S608
    if keys is not None:
        query += f" AND key IN ({', '.join('?' * len(keys))})" if keys else " AND 1 = 0"
        values = (*values, *keys)
    return Points.from_records(database.rows(query, values))


def _read_server(
    client: MlflowClient, uri: str, experiment: str, keys: Sequence[str] | None
) -> StoredExperiment:
    from mlflow.entities import ViewType

    experiment_ids = {each.name: each.experiment_id for each in client.search_experiments()}
    _require(experiment, list(experiment_ids), uri)
    server_runs, page_token = [], None
    while True:
        page = client.search_runs(
            [experiment_ids[experiment]],
            run_view_type=ViewType.ACTIVE_ONLY,
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=page_token,
        )
        server_runs += list(page)
        if not (page_token := page.token):
            break
    runs = [
        StoredRun(
            run.info.run_id,
            run.info.run_name,
            run.info.status,
            run.info.start_time / 1000,
            None if run.info.end_time is None else run.info.end_time / 1000,
            dict(run.data.params),
            dict(run.data.tags),
            run.info.artifact_uri,
        )
        for run in server_runs
    ]
    curves = [
        (run.info.run_id, key)
        for run in server_runs
        for key in run.data.metrics
        if keys is None or key in keys
    ]
    with ThreadPoolExecutor(_SERVER_THREADS) as pool:
        histories = list(pool.map(lambda curve: client.get_metric_history(*curve), curves))
    records = [
        (run_id, metric.key, metric.step, metric.timestamp, metric.value, False)
        for (run_id, _), history in zip(curves, histories, strict=True)
        for metric in history
    ]
    return StoredExperiment(runs, Points.from_records(records))


def fetch_artifact(uri: str, artifact_uri: str, name: str, folder: Path) -> Path:
    """Return the path of a run's artifact; one that is not on this machine is copied to `folder`.

    Args:
        uri: of the store.
        artifact_uri: of the run, `StoredRun.artifact_uri`.

    Raises:
        TrackingError: if the artifact does not exist.
    """
    parts = urlsplit(artifact_uri)
    if parts.scheme in ("", "file"):
        path = Path(unquote(parts.path)) / name
        if not path.is_file():
            raise TrackingError(f"{path.parent} has no {name}")
        return path
    with tracking_errors(uri):
        from mlflow.artifacts import download_artifacts

        source = f"{artifact_uri}/{name}"
        return Path(download_artifacts(source, dst_path=str(folder), tracking_uri=uri))


def _encode(names: Sequence[str]) -> tuple[list[str], NDArray[np.int32]]:
    """Return the distinct names, in order of appearance, and the index of each name among them."""
    distinct = list(dict.fromkeys(names))
    codes = {name: code for code, name in enumerate(distinct)}
    return distinct, np.fromiter(map(codes.__getitem__, names), np.int32, len(names))


def _require(experiment: str, names: list[str], uri: str) -> None:
    if experiment in names:
        return
    others = ", ".join(sorted(name for name in names if name != "Default")) or "none"
    raise TrackingError(f"{redact(uri)} has no experiment {experiment!r}; it has: {others}")


class _Database:
    """A connection of any DB-API driver; queries mark parameters with `?`."""

    def __init__(self, connection: Any, parameter_mark: str) -> None:
        self._connection = connection
        self._mark = parameter_mark

    def rows(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        cursor = self._connection.cursor()
        cursor.execute(query.replace("?", self._mark), values)
        return [tuple(row) for row in cursor.fetchall()] if self._mark != "?" else cursor.fetchall()


@contextmanager
def _garbage_collection_paused() -> Iterator[None]:
    """Disable the garbage collector. It would scan millions of tuples again and again before they
    become arrays, which takes a third of the reading time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@contextmanager
def _open(uri: str) -> Iterator[_Database]:
    """Open a database for reading. A SQLite file is neither created nor written."""
    if uri.startswith(SQLITE_PREFIX):
        path = sqlite_path(uri)
        if not path.exists():
            raise TrackingError(
                f"there is no store at {path}: train a run first, or give another path"
            )
        try:
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as file:
                tables = {name for (name,) in file.execute("SELECT name FROM sqlite_master")}
                if missing := {"experiments", "runs", "params", "tags", "metrics"} - tables:
                    raise TrackingError(
                        f"{path} is not an MLflow store: it has no table {', '.join(sorted(missing))}"
                    )
                yield _Database(file, "?")
        except sqlite3.Error as error:
            raise TrackingError(f"{path} cannot be read as an MLflow store ({error})") from error
        return
    import sqlalchemy

    engine = sqlalchemy.create_engine(uri)
    with closing(engine.raw_connection()) as connection:
        yield _Database(connection, "%s" if re.match("postgres|mysql", uri) else "?")
    engine.dispose()
