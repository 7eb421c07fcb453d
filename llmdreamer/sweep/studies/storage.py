"""The database of a study: how several drivers share it, and how each shows that it is alive."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import threading
import uuid
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.storages import RDBStorage

from llmdreamer.sweep.driver_lock import DRIVER_LOCKS_FOLDER, DriverLock
from llmdreamer.sweep.studies.sqlite import SQLITE_PREFIX, sqlite_path, sqlite_url
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.redact import redact

log = logging.getLogger(__name__)
OWNER_ATTRIBUTE = "owner"  # the trial's user attribute that names its driver
LOCK_TIMEOUT_SECONDS = 600  # MySQL requires a limit


class StudyLocked(Exception):
    """The study's lock was not released in time; its driver may hang. The same command resumes."""

    exit_code = 1


class StudyStorage:
    """An Optuna storage in a database that drivers on one or several machines share."""

    def __init__(self, url: str | None, folder: Path, heartbeat_seconds: int) -> None:
        if heartbeat_seconds < 1:
            raise ConfigError(f"hydra.sweeper.heartbeat={heartbeat_seconds}: must be >= 1")
        self.url = url or sqlite_url(folder / "study.db")
        if self.url.startswith(SQLITE_PREFIX):
            path = sqlite_path(self.url).expanduser().resolve()
            path.parent.mkdir(parents=True, exist_ok=True)
            _, question_mark, options = self.url.partition("?")
            self.url, self._lock_file = sqlite_url(path) + question_mark + options, f"{path}.lock"
        # A new database is corrupted if several processes create its tables at once.
        with self._creation_lock():
            self.optuna = self._open(heartbeat_seconds)

    def _open(self, heartbeat_seconds: int) -> RDBStorage:
        options = {"connect_args": {"timeout": 60}} if self.url.startswith(SQLITE_PREFIX) else {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return RDBStorage(
                    self.url,
                    engine_kwargs={"pool_pre_ping": True, **options},
                    heartbeat_interval=heartbeat_seconds,
                    grace_period=4 * heartbeat_seconds,
                )
        except ImportError as error:
            raise ConfigError(
                f"hydra.sweeper.storage={redact(self.url)}: no driver for this database"
                " (pip install 'llmdreamer[postgresql]' or [mysql])"
            ) from error
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            raise self._config_error(error) from error

    def _config_error(self, error: Exception) -> ConfigError:
        reason = redact(str(error).splitlines()[0])[:200]
        return ConfigError(f"hydra.sweeper.storage={redact(self.url)}: {reason}")

    @contextmanager
    def _creation_lock(self) -> Iterator[None]:
        if self.url.startswith(SQLITE_PREFIX):
            with FileLock(self._lock_file):
                yield
            return
        try:
            engine = sqlalchemy.create_engine(self.url)
            with _server_lock(engine, "llmdreamer"):
                yield
            engine.dispose()
        except (ImportError, sqlalchemy.exc.SQLAlchemyError) as error:
            raise self._config_error(error) from error

    @contextmanager
    def study_lock(self, study: str) -> Iterator[None]:
        """Hold the study's lock. The kernel or the database releases the lock of a dead process."""
        if self.url.startswith(SQLITE_PREFIX):
            with FileLock(self._lock_file):
                yield
        else:
            with _server_lock(self.optuna.engine, study):
                yield


@contextmanager
def _server_lock(engine: sqlalchemy.Engine, name: str) -> Iterator[None]:
    """Hold an advisory lock of the database server, on a separate connection.

    Raises:
        StudyLocked: if MySQL does not grant the lock in time.
    """
    key = hashlib.sha256(name.encode()).digest()
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            parameters = {"key": int.from_bytes(key[:8], "big", signed=True)}
            acquire, release = "SELECT pg_advisory_lock(:key)", "SELECT pg_advisory_unlock(:key)"
        else:
            parameters = {"key": f"llmdreamer-{key.hex()[:32]}"}  # type: ignore[dict-item]
            acquire = f"SELECT GET_LOCK(:key, {LOCK_TIMEOUT_SECONDS})"
            release = "SELECT RELEASE_LOCK(:key)"
        is_acquired = connection.execute(sqlalchemy.text(acquire), parameters).scalar()
        if engine.dialect.name != "postgresql" and is_acquired != 1:
            raise StudyLocked(
                f"the lock of study {name} was not released within {LOCK_TIMEOUT_SECONDS} seconds;"
                " end a driver that hangs, then run the same command to resume"
            )
        try:
            yield
        finally:
            connection.execute(sqlalchemy.text(release), parameters)


class DriverHeartbeat:
    """Shows that this driver is alive: a locked file on this machine, heartbeats in the database."""

    def __init__(self, folder: Path, storage: StudyStorage) -> None:
        self._locks_folder = folder / DRIVER_LOCKS_FOLDER
        self._storage = storage.optuna
        self._interval_seconds = float(storage.optuna.get_heartbeat_interval() or 1)
        token = uuid.uuid4().hex
        self._driver_lock = DriverLock(folder, token)
        self._trial_ids: set[int] = set()
        self._is_closed = threading.Event()
        self.driver = f"{socket.gethostname()}/{os.getpid()}/{token}"
        threading.Thread(target=self._beat_until_closed, daemon=True).start()

    def add_trial(self, trial_id: int) -> None:
        """Send heartbeats for this trial from now on."""
        self._storage.record_heartbeat(trial_id)
        self._trial_ids.add(trial_id)

    def remove_trial(self, trial_id: int) -> None:
        self._trial_ids.discard(trial_id)

    def close(self) -> None:
        self._is_closed.set()
        self._trial_ids.clear()
        self._driver_lock.close()

    def _beat_until_closed(self) -> None:
        while not self._is_closed.wait(self._interval_seconds):
            for trial_id in tuple(self._trial_ids):
                try:
                    self._storage.record_heartbeat(trial_id)
                except Exception as error:  # noqa: BLE001  (any database's; the next one may succeed)
                    reason = redact(str(error).splitlines()[0])[:200]
                    log.warning("no heartbeat was stored for trial %d: %s", trial_id, reason)

    def is_dead(self, driver: str | None) -> bool | None:
        """Return True if the driver is dead; None if it ran on another machine, which we cannot check.

        Args:
            driver: the owner that a trial names; None if its driver died before it wrote its name.
        """
        if driver is None:
            return True
        if driver == self.driver:
            return True  # the trial is ours, but we do not run it any more
        parts = str(driver).split("/")
        if (
            len(parts) != 3 or not parts[2].isalnum()
        ):  # no driver wrote it; it must not become a path
            return True
        host, _, token = parts
        if host != socket.gethostname():
            return None
        path = self._locks_folder / token
        if not path.exists():
            return True
        try:
            with FileLock(path).acquire(timeout=0):
                pass
        except Timeout:
            return False
        path.unlink(missing_ok=True)
        return True
