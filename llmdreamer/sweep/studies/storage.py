"""The database of a study: how several drivers share it, and how each shows that it is alive."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import threading
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from sqlite3 import OperationalError
from typing import Any, TypeVar

import optuna
import sqlalchemy
from filelock import FileLock, Timeout
from optuna.storages import RDBStorage

from llmdreamer.sweep.driver_lock import DRIVER_LOCKS_FOLDER, DriverLock
from llmdreamer.sweep.studies.retries import Retries, RetryingStorage, fault_reason
from llmdreamer.sweep.studies.sqlite import SQLITE_PREFIX, sqlite_path, sqlite_url
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.files import expand_user
from llmdreamer.utils.redact import redact

log = logging.getLogger(__name__)
T = TypeVar("T")
OWNER_ATTRIBUTE = "owner"  # the trial's user attribute that names its driver
LOCK_TIMEOUT_SECONDS = 600
SQLITE_WAIT_SECONDS = 10  # SQLite's own wait for a locked file, during which no signal is handled


class StudyLocked(Exception):
    """The study's lock was not released in time; its driver may hang. The same command resumes."""

    exit_code = 1

    def __init__(self, study: str) -> None:
        super().__init__(
            f"the lock of study {study} was not released within {LOCK_TIMEOUT_SECONDS} seconds;"
            " end a driver that hangs, then run the same command to resume"
        )


class StudyStorage:
    """An Optuna storage in a database that drivers on one or several machines share.

    Raises:
        ConfigError: if the database cannot be opened.
    """

    def __init__(self, url: str | None, folder: Path, heartbeat_seconds: int) -> None:
        if heartbeat_seconds < 1:
            raise ConfigError(f"hydra.sweeper.heartbeat={heartbeat_seconds}: must be >= 1")
        self.url = (url or "").strip() or sqlite_url(folder / "study.db")
        self._file: Path | None = None
        if self.url.startswith(SQLITE_PREFIX):
            path = expand_user(sqlite_path(self.url)).resolve()
            path.parent.mkdir(parents=True, exist_ok=True)
            _, question_mark, options = self.url.partition("?")
            self.url, self._file = sqlite_url(path) + question_mark + options, path
        self.retries = Retries(self.url)
        backend = self.retries.call(lambda: self._open(heartbeat_seconds))
        self._engine = backend.engine
        self.retries.disconnect = self._engine.dispose
        self.optuna = RetryingStorage(backend, self.retries)
        if self._file is not None:
            self._refuse_removed_file()

    def _open(self, heartbeat_seconds: int) -> RDBStorage:
        options: dict[str, Any] = {"pool_pre_ping": True}
        if self._file is not None:
            options["connect_args"] = {"timeout": SQLITE_WAIT_SECONDS}
        try:
            # A new database is corrupted if several processes create its tables at once.
            with self._creation_lock(), warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return RDBStorage(
                    self.url,
                    engine_kwargs=options,
                    heartbeat_interval=heartbeat_seconds,
                    grace_period=4 * heartbeat_seconds,
                )
        except ImportError as error:
            raise ConfigError(
                f"hydra.sweeper.storage={redact(self.url)}: no driver for this database"
                " (pip install 'llmdreamer[postgresql]' or [mysql])"
            ) from error
        except RuntimeError as error:  # another version of Optuna has made the tables
            reason = " ".join(fault_reason(error).split())
            raise ConfigError(f"hydra.sweeper.storage={redact(self.url)}: {reason}") from error

    def _refuse_removed_file(self) -> None:
        """Let no connection create the file again: it would be an empty database."""
        path = self._file
        assert path is not None

        @sqlalchemy.event.listens_for(self._engine, "do_connect")
        def check(*_: object) -> None:
            if not path.exists():
                raise OperationalError(f"{path} was removed")

    @contextmanager
    def _creation_lock(self) -> Iterator[None]:
        if self._file is not None:
            with _file_lock(self._file, "llmdreamer"):
                yield
            return
        engine = sqlalchemy.create_engine(self.url)
        try:
            with _server_lock(engine, "llmdreamer"):
                yield
        finally:
            engine.dispose()

    def section(self, study: str, function: Callable[[], T]) -> T:
        """Call a function under the study's lock. It is called again if the database fails meanwhile.

        The kernel or the database releases the lock of a dead process.

        Raises:
            StudyLocked: if another process holds the lock for too long.
            StorageLost, ConfigError: if the database fails for too long.
        """

        def run() -> T:
            with self._study_lock(study):
                return function()

        return self.retries.section(run)

    def _study_lock(self, study: str) -> AbstractContextManager[None]:
        if self._file is not None:
            return _file_lock(self._file, study)
        return _server_lock(self._engine, study)


@contextmanager
def _file_lock(database: Path, study: str) -> Iterator[None]:
    """Hold the lock beside a SQLite database; all its studies share it."""
    try:
        lock = FileLock(f"{database}.lock").acquire(timeout=LOCK_TIMEOUT_SECONDS)
    except Timeout as error:
        raise StudyLocked(study) from error
    with lock:
        yield


@contextmanager
def _server_lock(engine: sqlalchemy.Engine, name: str) -> Iterator[None]:
    """Hold an advisory lock of the database server, on a separate connection.

    Raises:
        StudyLocked: if the server does not grant the lock in time.
    """
    key = hashlib.sha256(name.encode()).digest()
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            parameters: dict[str, object] = {"key": int.from_bytes(key[:8], "big", signed=True)}
            acquire, release = "SELECT pg_advisory_lock(:key)", "SELECT pg_advisory_unlock(:key)"
            connection.execute(sqlalchemy.text(f"SET lock_timeout = '{LOCK_TIMEOUT_SECONDS}s'"))
        else:
            parameters = {"key": f"llmdreamer-{key.hex()[:32]}"}
            acquire = f"SELECT GET_LOCK(:key, {LOCK_TIMEOUT_SECONDS})"
            release = "SELECT RELEASE_LOCK(:key)"
        try:
            is_acquired = connection.execute(sqlalchemy.text(acquire), parameters).scalar()
        except sqlalchemy.exc.OperationalError as error:
            if "lock timeout" not in str(error.orig):
                raise
            is_acquired = 0
        if is_acquired == 0 or is_acquired is None:  # PostgreSQL returns an empty text
            raise StudyLocked(name)
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
        self._is_failing = False
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
                self._beat(trial_id)

    def _beat(self, trial_id: int) -> None:
        try:
            self._storage.record_heartbeat(trial_id)
        except Exception as error:  # noqa: BLE001  (any database's; the next one may succeed)
            if not self._is_failing:
                reason = fault_reason(error)
                log.warning("no heartbeat was stored for trial %d: %s", trial_id, reason)
            self._is_failing = True
        else:
            self._is_failing = False

    def is_dead(self, driver: str | None) -> bool | None:
        """Return True if the driver is dead; None if it ran on another machine, which we cannot check.

        This driver counts as dead, because a trial that it runs is never asked about. The lock file of a dead
        driver is removed.

        Args:
            driver: the owner that a trial names; None if its driver died before it wrote its name.
        """
        if driver is None:
            return True
        if driver == self.driver:
            return True
        parts = str(driver).split("/")
        # No driver wrote another form. The token becomes part of a path.
        if len(parts) != 3 or not parts[2].isalnum():
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
