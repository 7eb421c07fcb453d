"""Reads a store back: the runs of an experiment and the points of their metrics, changing nothing.

A database is read by plain SQL, not by MLflow's client: the client migrates an older SQLite
database as it opens it and refuses a newer one, and asks once per run and metric (20 000 questions
for 200 runs of 100 curves). The five tables read here are the same since MLflow 1.0.
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

from llmdreamer.tracking.store import TrackingError, connect, speaking
from llmdreamer.utils.redact import redact

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

PARENT_TAG = "mlflow.parentRunId"
_SQLITE = "sqlite:///"
_LARGEST = 1.797e308  # MLflow's SQL stores keep an infinity as the largest number there is


@dataclass(frozen=True)
class StoredRun:
    """A run as the store has it; times in epoch seconds."""

    run_id: str
    name: str
    status: str  # RUNNING, FINISHED, FAILED, KILLED, SCHEDULED
    started: float
    ended: float | None
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)
    artifacts: str = ""  # where its files are, a URI

    @property
    def parent(self) -> str | None:
        return self.tags.get(PARENT_TAG)


@dataclass(frozen=True)
class Points:
    """Logged values, one per index, in no order. `run` and `key` index `runs` and `keys`."""

    runs: list[str]  # ids
    keys: list[str]
    run: NDArray[np.int32]
    key: NDArray[np.int32]
    step: NDArray[np.int64]  # environment step
    at: NDArray[np.int64]  # epoch milliseconds
    value: NDArray[np.float64]

    @classmethod
    def of(cls, rows: Sequence[tuple[Any, ...]]) -> Points:
        """From rows of (run id, key, step, milliseconds, value, is NaN)."""
        columns = list(zip(*rows, strict=True)) or [()] * 6
        runs, run = _coded(columns[0])
        keys, key = _coded(columns[1])
        value = np.array(columns[4], np.float64)
        value[np.array(columns[5], bool)] = np.nan
        value[value >= _LARGEST] = np.inf
        value[value <= -_LARGEST] = -np.inf
        step, at = (np.array(columns[i], np.int64) for i in (2, 3))
        return cls(runs, keys, run, key, step, at, value)


@dataclass(frozen=True)
class Stored:
    """An experiment's runs, oldest first, and their points."""

    runs: list[StoredRun]
    points: Points


def read_experiment(uri: str, experiment: str, keys: Sequence[str] | None = None) -> Stored:
    """Read the runs of `experiment` that are not deleted, and their points of the metrics `keys`.

    Args:
        uri: as `resolve_uri` gives it.
        keys: metric names as they were logged; None reads all.

    Raises:
        TrackingError: in one sentence: no store there, no such experiment, not MLflow's tables.
    """
    with speaking(uri):
        if uri.startswith("http"):
            return _read_server(connect(uri), uri, experiment, keys)
        with _open(uri) as database, _without_collector():
            return _read_database(database, uri, experiment, keys)


def _read_database(
    database: _Database, uri: str, experiment: str, keys: Sequence[str] | None
) -> Stored:
    names = dict(
        database.rows(
            "SELECT name, experiment_id FROM experiments WHERE lifecycle_stage = 'active'"
        )
    )
    _require(experiment, list(names), uri)
    ours = "run_uuid IN (SELECT run_uuid FROM runs WHERE experiment_id = ? AND lifecycle_stage = ?)"
    scope: tuple[Any, ...] = (names[experiment], "active")
    params: dict[str, dict[str, str]] = {}
    tags: dict[str, dict[str, str]] = {}
    for table, found in (("params", params), ("tags", tags)):
        # The names of tables and columns are ours; only values come from outside.
        query = f"SELECT run_uuid, key, value FROM {table} WHERE {ours}"  # noqa: S608
        for run_id, key, value in database.rows(query, scope):
            found.setdefault(run_id, {})[key] = value
    rows = database.rows(
        "SELECT run_uuid, name, status, start_time, end_time, artifact_uri FROM runs"  # noqa: S608
        f" WHERE {ours}"
        " ORDER BY start_time, run_uuid",
        scope,
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
            artifacts or "",
        )
        for run_id, name, status, started, ended, artifacts in rows
    ]
    return Stored(runs, _database_points(database, ours, scope, keys))


def _database_points(
    database: _Database, ours: str, scope: tuple[Any, ...], keys: Sequence[str] | None
) -> Points:
    query = f"SELECT run_uuid, key, step, timestamp, value, is_nan FROM metrics WHERE {ours}"  # noqa: S608
    if keys is not None:
        query += f" AND key IN ({', '.join('?' * len(keys))})" if keys else " AND 1 = 0"
        scope = (*scope, *keys)
    return Points.of(database.rows(query, scope))


def _read_server(
    client: MlflowClient, uri: str, experiment: str, keys: Sequence[str] | None
) -> Stored:
    from mlflow.entities import ViewType

    names = {found.name: found.experiment_id for found in client.search_experiments()}
    _require(experiment, list(names), uri)
    found, page = [], None
    while True:
        answer = client.search_runs(
            [names[experiment]],
            run_view_type=ViewType.ACTIVE_ONLY,
            max_results=1000,
            order_by=["attributes.start_time ASC"],
            page_token=page,
        )
        found += list(answer)
        if not (page := answer.token):
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
        for run in found
    ]
    wanted = [
        (run.info.run_id, key)
        for run in found
        for key in run.data.metrics
        if keys is None or key in keys
    ]
    with ThreadPoolExecutor(8) as pool:
        histories = list(pool.map(lambda pair: client.get_metric_history(*pair), wanted))
    points = [
        (run_id, metric.key, metric.step, metric.timestamp, metric.value, False)
        for (run_id, _), history in zip(wanted, histories, strict=True)
        for metric in history
    ]
    return Stored(runs, Points.of(points))


def fetch_artifact(uri: str, artifacts: str, name: str, folder: Path) -> Path:
    """A file of a run: where it lies, or a copy below `folder` if that is not a folder here.

    Args:
        uri: of the store.
        artifacts: as `StoredRun.artifacts`.

    Raises:
        TrackingError: if it is not there.
    """
    parts = urlsplit(artifacts)
    if parts.scheme in ("", "file"):
        path = Path(unquote(parts.path)) / name
        if not path.is_file():
            raise TrackingError(f"no {name} in {path.parent}")
        return path
    with speaking(uri):
        from mlflow.artifacts import download_artifacts

        found = download_artifacts(f"{artifacts}/{name}", dst_path=str(folder), tracking_uri=uri)
        return Path(found)


def _coded(names: Sequence[str]) -> tuple[list[str], NDArray[np.int32]]:
    """Each name once, in order of appearance, and the index of each row's name among them."""
    distinct = list(dict.fromkeys(names))
    codes = {name: code for code, name in enumerate(distinct)}
    return distinct, np.fromiter(map(codes.__getitem__, names), np.int32, len(names))


def _require(experiment: str, names: list[str], uri: str) -> None:
    if experiment in names:
        return
    others = ", ".join(sorted(name for name in names if name != "Default")) or "none"
    raise TrackingError(f"{redact(uri)} has no experiment {experiment!r}; it has: {others}")


class _Database:
    """A connection by Python's database interface, whichever sign it has for a parameter."""

    def __init__(self, connection: Any, sign: str) -> None:
        self._connection = connection
        self._sign = sign

    def rows(self, query: str, values: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
        cursor = self._connection.cursor()
        cursor.execute(query.replace("?", self._sign), values)
        return [tuple(row) for row in cursor.fetchall()] if self._sign != "?" else cursor.fetchall()


@contextmanager
def _without_collector() -> Iterator[None]:
    """Millions of rows live until they are arrays, and the garbage collector would walk them again and
    again: a third of the time of reading."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


@contextmanager
def _open(uri: str) -> Iterator[_Database]:
    """Open for reading. SQLite's file is never made, and never written to."""
    if uri.startswith(_SQLITE):
        path = Path(uri.removeprefix(_SQLITE).partition("?")[0])
        if not path.exists():
            raise TrackingError(f"there is no store at {path}: train something first, or name it")
        try:
            with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as file:
                tables = {name for (name,) in file.execute("SELECT name FROM sqlite_master")}
                if lacking := {"experiments", "runs", "params", "tags", "metrics"} - tables:
                    raise TrackingError(
                        f"{path} is no MLflow store: it has no table {', '.join(sorted(lacking))}"
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
