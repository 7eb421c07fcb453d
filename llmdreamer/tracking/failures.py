"""Failures of the tracking store, each described in one line that says what to do.

Imports of mlflow and urllib3 are inside functions: the import of mlflow alone takes a second or two.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.redact import as_typed, redact, redact_message

_ACCESS_DENIED = {"UNAUTHENTICATED": 401, "CUSTOMER_UNAUTHORIZED": 401, "PERMISSION_DENIED": 403}
"""MLflow's error codes for missing credentials, with their HTTP status."""
_DELETED_RUN = re.compile(r"run (\w+) must be in the 'active' state")
_DELETED_EXPERIMENT = re.compile(r"experiment (\w+) must be in the 'active' state")
_SCHEMA = re.compile(r"found version (\w+), but expected|locate revision identified by '(\w+)'")
_HTTP_STATUS = re.compile(r"failed with error code (\d+) != \d+\. Response body: '(.*)", re.DOTALL)
_RETRIED_STATUS = re.compile(r"too many (\d+) error responses")  # urllib3's words
_NOT_JSON = "not in a valid JSON format"
# SQLAlchemy writes `(sqlite3.OperationalError) database is locked`, sometimes below other lines.
_DATABASE = re.compile(r"^\((?:\w+\.)+\w+\) (.+)$", re.MULTILINE)
MAX_CAUSE_CHARACTERS = 160


class TrackingError(Exception):
    """An operation on the tracking store failed; the message is one line.

    `kind` is equal for failures with the same remedy, though their messages may differ.
    """

    def __init__(self, message: str, kind: str = "other") -> None:
        super().__init__(message)
        self.kind = kind


@contextmanager
def tracking_errors(uri: str) -> Iterator[None]:
    """Turn every failure of the store at `uri` into a `TrackingError` of one line."""
    try:
        yield
    except TrackingError:
        raise
    except Exception as error:
        # The class depends on the store: MLflow, SQLAlchemy, requests, urllib3, a database driver
        # or OSError. No failure of a store may end a run, so all are caught.
        raise _describe(error, uri) from error


def deleted_experiment(uri: str, name: str, experiment_id: str) -> TrackingError:
    """Return the error for an experiment that a user has deleted in MLflow."""
    restore = _mlflow_command(uri, "experiments", "restore", "--experiment-id", experiment_id)
    return TrackingError(
        f"tracking at {redact(uri)}: experiment {name} is deleted there: choose another"
        f" tracking.experiment, or restore it with: {restore}",
        "deleted experiment",
    )


def _describe(error: Exception, uri: str) -> TrackingError:
    for describe in (
        _describe_file,
        _describe_denial,
        _describe_deletion,
        _describe_schema,
        _describe_answer,
        _describe_database,
        _describe_connection,
    ):
        if (described := describe(error, uri)) is not None:
            return described
    reason = f"{type(error).__name__}: {_first_line(str(error))}"
    return TrackingError(f"tracking at {redact(uri)} fails ({reason})")


def _describe_file(error: Exception, _: str) -> TrackingError | None:
    """Describe a file of the run, or a lock beside the database, that is damaged or cannot be used."""
    if isinstance(error, ConfigError):
        return TrackingError(" ".join(str(error).split()), "damaged file")
    if isinstance(error, OSError) and error.filename is not None:
        return TrackingError(f"{error.filename} cannot be used ({error.strerror})", "file")
    return None


def _describe_denial(error: Exception, uri: str) -> TrackingError | None:
    status = _ACCESS_DENIED.get(getattr(error, "error_code", ""))
    if status is None:
        return None
    return TrackingError(
        f"tracking at {redact(uri)} denies access (HTTP {status}): "
        "set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or MLFLOW_TRACKING_TOKEN",
        "access",
    )


def _describe_deletion(error: Exception, uri: str) -> TrackingError | None:
    if experiment := _DELETED_EXPERIMENT.search(str(error)):
        return deleted_experiment(uri, experiment[1], experiment[1])
    run = _DELETED_RUN.search(str(error))
    if run is None:
        return None
    restore = _mlflow_command(uri, "runs", "restore", "--run-id", run[1])
    return TrackingError(
        f"tracking at {redact(uri)}: run {run[1]} is deleted there: delete mlflow.json in its folder to"
        f" upload it as a new run, or restore it with: {restore}",
        "deleted run",
    )


def _describe_schema(error: Exception, uri: str) -> TrackingError | None:
    """Describe a database of another version of MLflow."""
    found = _SCHEMA.search(str(error))
    if found is None:
        return None
    import mlflow

    schema = found[1] or found[2]
    # For each schema that this version knows, it has a script that upgrades to it.
    scripts = Path(mlflow.__file__).parent / "store" / "db_migrations" / "versions"
    if any(scripts.glob(f"{schema}_*.py")):
        upgrade = as_typed(["mlflow", "db", "upgrade", uri])
        advice = f"an older MLflow: back it up, then upgrade it with: {upgrade}"
    else:
        advice = (
            f"a newer MLflow than {mlflow.__version__}: install that version here,"
            " or choose another tracking.uri"
        )
    return TrackingError(f"tracking at {redact(uri)} has the schema {schema} of {advice}", "schema")


def _describe_answer(error: Exception, uri: str) -> TrackingError | None:
    """Describe an answer that is not MLflow's, such as the page of a proxy."""
    store = f"tracking at {redact(uri)}"
    if status := _HTTP_STATUS.search(str(error)):
        body = _first_line(re.sub(r"<[^>]*>|\s+", " ", status[2]).strip(" '"))
        return TrackingError(f"{store} answers with HTTP {status[1]} ({body})", "answer")
    if status := _RETRIED_STATUS.search(str(error)):
        return TrackingError(f"{store} answers with HTTP {status[1]}", "answer")
    if _NOT_JSON in str(error):
        return TrackingError(f"{store} answers with a page: it is not an MLflow server", "answer")
    return None


def _describe_database(error: Exception, uri: str) -> TrackingError | None:
    found = _DATABASE.search(str(error))
    if found is None:
        return None
    return TrackingError(
        f"tracking at {redact(uri)} cannot be used ({_first_line(found[1])})", "database"
    )


def _describe_connection(error: Exception, uri: str) -> TrackingError | None:
    """Describe the innermost cause: up to three libraries wrap it, and its message says most."""
    from urllib3.exceptions import HTTPError

    cause: BaseException = error
    while (inner := cause.__cause__ or cause.__context__) is not None:
        cause = inner
    if not isinstance(cause, OSError | HTTPError):
        return None
    reason = f"{type(cause).__name__}: {_first_line(str(cause))}"
    return TrackingError(f"tracking at {redact(uri)} is unreachable ({reason})", "connection")


def _mlflow_command(uri: str, *words: str) -> str:
    return as_typed(["env", f"MLFLOW_TRACKING_URI={uri}", "mlflow", *words])


def _first_line(text: str) -> str:
    lines = redact_message(text).splitlines() or [""]
    return lines[0][:MAX_CAUSE_CHARACTERS]
