"""Where runs are recorded: the tracking URI, a fresh database, and a client that gives up soon.

Everything that imports mlflow does so inside a function: the import alone costs a second or two.
"""

from __future__ import annotations

import os
import re
import socket
import sqlite3
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from llmdreamer.utils.errors import ConfigError, did_you_mean
from llmdreamer.utils.redact import redact

if TYPE_CHECKING:
    from mlflow.tracking import MlflowClient

_SERVERS = ("http", "https")
_DATABASES = {"postgresql": 5432, "mysql": 3306}  # scheme: the port it listens at
_SQLITE = "sqlite:///"

_NOT_LET_IN = {"UNAUTHENTICATED": 401, "CUSTOMER_UNAUTHORIZED": 401, "PERMISSION_DENIED": 403}

HURRIED, PATIENT = "8", "60"
"""Seconds that a server's answer is waited for: by whoever holds up others (below the 10 that a finishing
run waits), and by uploads, which hold up nobody. A busy server takes its time for a batch; asked again
before it has answered, it has the same work twice, and may never get through."""
_TIMEOUT = "MLFLOW_HTTP_REQUEST_TIMEOUT"

# MLflow's own defaults retry for four minutes, speak of every migration, draw progress bars and
# report usage to its makers. Whoever sets these variables keeps what they set.
_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the shipper has a backoff of its own
    _TIMEOUT: HURRIED,
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


class TrackingError(Exception):
    """The tracking store did not do what it was asked, told in one line."""


def resolve_uri(uri: str | None, folder: Path) -> str:
    """Make a tracking URI absolute: None, or an empty one of the environment, is `mlflow.db` in `folder`.

    Raises:
        ConfigError: if MLflow would refuse the URI, or keep it in a place that does not last.
    """
    if not uri:
        return sqlite_uri(folder.resolve() / "mlflow.db")
    scheme, colon, _ = uri.partition(":")
    if not colon or scheme == "file" or uri.startswith((".", "/", "~")):
        path = Path(uri.removeprefix("file://").removeprefix("file:")).expanduser()
        advice = _SQLITE + str(folder.resolve() / path / "mlflow.db")
        raise ConfigError(
            f"tracking.uri={redact(uri)}: MLflow 3 keeps no runs in folders; use {advice}"
        )
    if scheme == "sqlite":
        name, question, options = uri.removeprefix(_SQLITE).partition("?")
        if not uri.startswith(_SQLITE) or name in ("", ":memory:"):
            raise ConfigError(f"tracking.uri={redact(uri)}: names no file; use sqlite:///mlflow.db")
        return sqlite_uri(folder.resolve() / name) + question + options
    known = [*_SERVERS, *_DATABASES, "sqlite"]
    if scheme.partition("+")[0] not in known:
        near = did_you_mean(scheme, known)
        raise ConfigError(f"tracking.uri={redact(uri)}: choose from {known}{near}")
    if not urlsplit(uri).hostname:
        raise ConfigError(f"tracking.uri={redact(uri)}: names no host")
    return uri


def sqlite_uri(path: Path) -> str:
    """Raises ConfigError if a URI would say another path than this."""
    # Quoted, SQLAlchemy finds the file only since 2.1, and MLflow makes a folder of the quoted name.
    if "?" in str(path) or unquote(str(path)) != str(path):
        raise ConfigError(
            f"{path}: with '?', or '%' and two hex digits, in its name, MLflow keeps no runs there:"
            f" rename the folder, or set tracking.uri={_SQLITE}/ANOTHER/mlflow.db"
        )
    return f"{_SQLITE}{path}"


def ui_command(uri: str) -> str:
    """What to type to look at the runs; for a server, its address."""
    if uri.startswith(_SERVERS):
        return redact(uri)
    return f"mlflow ui --backend-store-uri '{redact(uri)}'"


def connect(uri: str) -> MlflowClient:
    """A client of the store. Raises OSError at once if nothing is there to connect to."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Not theirs to keep: nothing of ours is pickled, so whatever is comes from somebody else.
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    _probe(uri)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=uri)


def be_patient(patient: bool) -> None:
    """Let this process wait PATIENT seconds for an answer from now on, or HURRIED ones again."""
    # A sweep's driver hands its own environment on to the runs: HURRIED there is nobody's wish.
    if os.environ.get(_TIMEOUT, HURRIED) in (HURRIED, PATIENT):
        os.environ[_TIMEOUT] = PATIENT if patient else HURRIED


def prepare(uri: str, experiment: str, artifact_root: Path | None = None) -> str:
    """Make the database and the experiment unless they are there; return the experiment's id.

    Processes that open a fresh SQLite database together break each other's migration, so one at
    a time does it. Artifacts of a SQLite store go to `artifact_root`, beside the database as
    `mlartifacts` if None: MLflow's own choice would be relative to whatever the folder is then.

    Raises:
        TrackingError: if the store cannot be reached or written.
    """
    with speaking(uri), _alone(uri):
        client = connect(uri)
        found = client.get_experiment_by_name(experiment)
        if found is not None:
            return str(found.experiment_id)
        location = None
        if uri.startswith(_SQLITE):
            root = artifact_root or _database(uri).parent / "mlartifacts"
            location = root.resolve().as_uri()
        return _create_experiment(client, experiment, location)


def _create_experiment(client: MlflowClient, experiment: str, location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(experiment, artifact_location=location))
    except MlflowException:
        # On a server, another machine may have made it since we looked.
        found = client.get_experiment_by_name(experiment)
        if found is None:
            raise
        return str(found.experiment_id)


@contextmanager
def speaking(uri: str) -> Iterator[None]:
    """Turn whatever goes wrong between us and the store into a `TrackingError` of one line."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        # MlflowException, sqlalchemy's, requests', urllib3's, a database driver's, OSError: which
        # of them comes out depends on the store, and no failure of a store may end a run.
        if (code := getattr(error, "error_code", None)) in _NOT_LET_IN:
            raise TrackingError(
                f"tracking at {redact(uri)} does not let us in (HTTP {_NOT_LET_IN[code]}): "
                "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN"
            ) from error
        told = _what_happened(error)
        lines = str(told).splitlines() or [""]
        raise TrackingError(
            f"tracking at {redact(uri)} is unreachable "
            f"({type(told).__name__}: {redact(lines[0])[:160]})"
        ) from error


def _what_happened(error: BaseException) -> BaseException:
    """Three libraries wrap what a connection has met with, and their own words tell it last."""
    from urllib3.exceptions import HTTPError

    inner: BaseException | None = error
    while inner is not None:
        found, inner = inner, inner.__cause__ or inner.__context__
    return found if isinstance(found, OSError | HTTPError) else error


def metric_key(name: str) -> str:
    """The name as MLflow takes it: other characters than `/ \\w . - : space` become `_`."""
    parts = [part for part in _REFUSED.sub("_", name).split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:250] or "_"


def shorten(text: str, limit: int = 6000) -> str:
    """MLflow cuts long values without a word: cut them with one."""
    if len(text) <= limit:
        return text
    note = f" ... [cut: {len(text)} characters in all]"
    return text[: limit - len(note)] + note


_REFUSED = re.compile(r"[^/\w.\- :]")


def _database(uri: str) -> Path:
    return Path(uri.removeprefix(_SQLITE).partition("?")[0])


def _alone(uri: str) -> AbstractContextManager[object]:
    if not uri.startswith(_SQLITE):
        return nullcontext()
    from filelock import FileLock

    database = _database(uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{database}.lock")


def _probe(uri: str) -> None:
    """Fail now where MLflow would try a database that is not there again for an hour."""
    if uri.startswith(_SQLITE):
        try:
            database = sqlite3.connect(_database(uri), timeout=20)
            database.execute("PRAGMA schema_version")
            database.close()
        except sqlite3.Error as error:
            raise OSError(f"{_database(uri)}: {error}") from error
        return
    parts = urlsplit(uri)
    port = _DATABASES.get(parts.scheme.partition("+")[0])
    if port is not None:
        socket.create_connection((parts.hostname, parts.port or port), timeout=5).close()
