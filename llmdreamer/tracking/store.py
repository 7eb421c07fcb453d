"""The tracking store: its URI, its database, and an MLflow client with short timeouts.

Imports of mlflow are inside functions, because the import alone takes a second or two.
"""

from __future__ import annotations

import os
import re
import socket
import sqlite3
import unicodedata
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from llmdreamer.tracking.experiment import KIND_TAG, MODEL_TRAINING, experiment_tags
from llmdreamer.tracking.failures import deleted_experiment, tracking_errors
from llmdreamer.utils.command_line import argument
from llmdreamer.utils.errors import ConfigError, did_you_mean
from llmdreamer.utils.files import expand_user
from llmdreamer.utils.redact import as_typed, redact

if TYPE_CHECKING:
    from mlflow.entities import Run
    from mlflow.tracking import MlflowClient

SQLITE_PREFIX = "sqlite:///"
_SERVER_SCHEMES = ("http", "https")
_DATABASE_SUFFIXES = (".db", ".sqlite", ".sqlite3")
_DATABASE_PORTS = {"postgresql": 5432, "mysql": 3306}

SHORT_TIMEOUT_SECONDS, LONG_TIMEOUT_SECONDS = "8", "60"
"""Time limits for a server's answer, as values of an environment variable.

The short one applies where something waits for the answer. It is below the 10 seconds that a finishing
run waits. The long one applies to uploads, for which nothing waits. A busy server needs time for a
batch. A second request before the first is answered doubles its work, and may never succeed.
"""
SQLITE_TIMEOUT_SECONDS = 20
CONNECT_TIMEOUT_SECONDS = 5
_TIMEOUT_VARIABLE = "MLFLOW_HTTP_REQUEST_TIMEOUT"

# By default MLflow retries for four minutes, logs every migration, draws progress bars and reports
# usage to its makers. A variable that the user has set keeps its value.
_MLFLOW_ENVIRONMENT = {
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",  # the uploader has its own backoff
    _TIMEOUT_VARIABLE: SHORT_TIMEOUT_SECONDS,
    "MLFLOW_LOGGING_LEVEL": "CRITICAL",  # it logs the traceback of each failure, which we describe
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}


def resolve_uri(uri: str | None, folder: Path) -> str:
    """Make a tracking URI absolute; None or an empty string selects `mlflow.db` in `folder`.

    Raises:
        ConfigError: if MLflow would refuse the URI, or the store would not outlive the process.
    """
    uri = (uri or "").strip()  # a variable read from a file often ends in a newline
    if not uri:
        return sqlite_uri(folder.resolve() / "mlflow.db")
    if any(unicodedata.category(character) == "Cc" for character in uri):
        raise ConfigError(f"tracking.uri={redact(uri)!r}: must be one line")
    scheme, colon, _ = uri.partition(":")
    if not colon or scheme == "file" or uri.startswith((".", "/", "~")):
        database = _database(folder, uri)
        advice = argument("tracking.uri", f"{SQLITE_PREFIX}{database}")
        reason = "is a file, not a URI"
        if not uri.endswith(database.name):
            reason = "MLflow 3 cannot store runs in a folder"
        raise ConfigError(f"tracking.uri={redact(uri)}: {reason}; use {advice}")
    if scheme == "sqlite":
        name, question, options = uri.removeprefix(SQLITE_PREFIX).partition("?")
        if not uri.startswith(SQLITE_PREFIX) or name in ("", ":memory:"):
            raise ConfigError(f"tracking.uri={redact(uri)}: names no file; use sqlite:///mlflow.db")
        return sqlite_uri(folder.resolve() / name) + question + options
    schemes = [*_SERVER_SCHEMES, *_DATABASE_PORTS, "sqlite"]
    if scheme.partition("+")[0] not in schemes:
        suggestion = did_you_mean(scheme, schemes)
        raise ConfigError(
            f"tracking.uri={redact(uri)}: unknown scheme; choose from {schemes}{suggestion}"
        )
    try:
        parts = urlsplit(uri)
        host, _ = parts.hostname, parts.port  # reading the port checks it
    except ValueError as error:
        raise ConfigError(
            f"tracking.uri={redact(uri)}: not a URI ({redact(str(error))}); use SCHEME://HOST:PORT"
        ) from error
    if not host:
        raise ConfigError(f"tracking.uri={redact(uri)}: names no host")
    return uri


def _database(folder: Path, uri: str) -> Path:
    """Return the database that is meant by a URI that is a path: that file, or one in that folder."""
    path = expand_user(uri.removeprefix("file://").removeprefix("file:"))
    path = folder.resolve() / path
    return path if path.is_file() or path.suffix in _DATABASE_SUFFIXES else path / "mlflow.db"


def sqlite_uri(path: Path) -> str:
    """Return the URI of a SQLite file.

    Raises:
        ConfigError: if the URI would be read as another path.
    """
    # Quoting does not help: SQLAlchemy decodes it only since 2.1, and MLflow uses the quoted name.
    if "?" in str(path) or unquote(str(path)) != str(path):
        raise ConfigError(
            f"{path}: MLflow cannot store runs in a path with '?', or with '%' and two hex digits;"
            f" rename the folder, or set tracking.uri={SQLITE_PREFIX}/ANOTHER/mlflow.db"
        )
    return f"{SQLITE_PREFIX}{path}"


def sqlite_path(uri: str) -> Path:
    """Return the file that a `sqlite:///` URI names."""
    return Path(uri.removeprefix(SQLITE_PREFIX).partition("?")[0])


def ui_command(uri: str) -> str:
    """Return the command that shows the runs; for a server, its address."""
    if uri.startswith(_SERVER_SCHEMES):
        return redact(uri)
    return as_typed(["mlflow", "ui", "--backend-store-uri", uri])


def connect(uri: str) -> MlflowClient:
    """Return a client of the store.

    Raises:
        OSError: immediately, if there is nothing to connect to.
    """
    for name, value in _MLFLOW_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # Set even against the user's value: we store no pickles, so a pickle comes from someone else.
    os.environ["MLFLOW_ALLOW_PICKLE_DESERIALIZATION"] = "false"
    _check_reachable(uri)
    from mlflow.tracking import MlflowClient

    return MlflowClient(tracking_uri=_fresh_uri(uri))


_databases: dict[str, tuple[tuple[int, int], int]] = {}
"""By URI: device and inode of the SQLite file that was opened last, and how many came before it."""


def _fresh_uri(uri: str) -> str:
    """Return a URI of the same store for which MLflow opens the file that is there now.

    MLflow keeps its connections by URI. After a SQLite file was removed or emptied, they would still
    use the old file, or assume its tables. Another spelling of the path makes it another URI.
    """
    if not uri.startswith(SQLITE_PREFIX):
        return uri
    stat = sqlite_path(uri).stat()
    inode = stat.st_dev, stat.st_ino
    known, count = _databases.get(uri, (inode, 0))
    if uri in _databases and (known != inode or stat.st_size == 0):
        count += 1
    _databases[uri] = inode, count
    if count == 0:
        return uri
    path = sqlite_path(uri)
    return uri.replace(str(path), f"{path.parent}/{'./' * count}{path.name}", 1)


def use_long_timeout(enabled: bool) -> None:
    """Wait LONG_TIMEOUT_SECONDS for answers in this process from now on, or SHORT_TIMEOUT_SECONDS."""
    # Either value may come from a sweep's driver, which passes its environment to the runs. Only
    # another value is the user's choice.
    current = os.environ.get(_TIMEOUT_VARIABLE, SHORT_TIMEOUT_SECONDS)
    if current in (SHORT_TIMEOUT_SECONDS, LONG_TIMEOUT_SECONDS):
        os.environ[_TIMEOUT_VARIABLE] = LONG_TIMEOUT_SECONDS if enabled else SHORT_TIMEOUT_SECONDS


def ensure_experiment(uri: str, experiment: str, artifact_root: Path | None = None) -> str:
    """Create the database and the experiment if they are missing; return the experiment's id.

    Processes that open a new SQLite database at once break each other's migration, so a lock lets
    one process at a time do it. An experiment without a kind becomes one of model training, so that
    MLflow opens it on its runs, not on the traces of language models.

    Args:
        artifact_root: folder for the artifacts of a SQLite store. None: `mlartifacts` beside the
            database. MLflow's own default is relative to the working directory.

    Raises:
        TrackingError: if the store cannot be reached or written.
    """
    with tracking_errors(uri), _migration_lock(uri):
        client = connect(uri)
        existing = client.get_experiment_by_name(experiment)
        if existing is not None:
            if existing.lifecycle_stage == "deleted":
                raise deleted_experiment(uri, experiment, existing.experiment_id)
            if KIND_TAG not in existing.tags:
                client.set_experiment_tag(existing.experiment_id, KIND_TAG, MODEL_TRAINING)
            return str(existing.experiment_id)
        location = None
        if uri.startswith(SQLITE_PREFIX):
            root = artifact_root or sqlite_path(uri).parent / "mlartifacts"
            location = root.resolve().as_uri()
        return _create_experiment(client, experiment, location)


def _create_experiment(client: MlflowClient, experiment: str, location: str | None) -> str:
    from mlflow.exceptions import MlflowException

    try:
        return str(client.create_experiment(experiment, location, experiment_tags()))
    except MlflowException:
        # On a server, another machine may have created it since the check.
        existing = client.get_experiment_by_name(experiment)
        if existing is None:
            raise
        return str(existing.experiment_id)


def find_run(client: MlflowClient, run_id: str) -> Run | None:
    """Return a run, which may be deleted; None if the store does not know it."""
    from mlflow.exceptions import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None


def metric_key(name: str) -> str:
    """Return a name that MLflow accepts: characters other than `/ \\w . - : space` become `_`."""
    parts = [part for part in _INVALID.sub("_", name).split("/") if part not in ("", ".", "..")]
    return "/".join(parts)[:250] or "_"


def shorten(text: str, limit: int = 6000) -> str:
    """Cut a long text, with a note at its end; MLflow would cut it without one."""
    if len(text) <= limit:
        return text
    note = f" ... [cut: {len(text)} characters in all]"
    return text[: limit - len(note)] + note


_INVALID = re.compile(r"[^/\w.\- :]")


def _migration_lock(uri: str) -> AbstractContextManager[object]:
    if not uri.startswith(SQLITE_PREFIX):
        return nullcontext()
    from filelock import FileLock

    database = sqlite_path(uri)
    database.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{database}.lock")


def _check_reachable(uri: str) -> None:
    """Fail immediately where MLflow would retry a missing database for an hour."""
    if uri.startswith(SQLITE_PREFIX):
        path = sqlite_path(uri)
        try:
            database = sqlite3.connect(path, timeout=SQLITE_TIMEOUT_SECONDS)
            database.execute("PRAGMA schema_version")
            database.close()
        except sqlite3.Error as error:
            raise OSError(f"{path}: {error}") from error
        return
    parts = urlsplit(uri)
    port = _DATABASE_PORTS.get(parts.scheme.partition("+")[0])
    if port is not None:
        address = (parts.hostname, parts.port or port)
        socket.create_connection(address, timeout=CONNECT_TIMEOUT_SECONDS).close()
