"""The database of a study, and how drivers share it: one at a time where it matters, and alive."""

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
from llmdreamer.sweep.studies.sqlite import SQLITE, path_of, url_of
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.redact import redact

log = logging.getLogger(__name__)
OWNER = "owner"  # the trial's attribute that names its driver
LOCK_SECONDS = 600  # MySQL wants a limit


class StoreLocked(Exception):
    """Another driver holds the study, or hangs; the same command goes on."""

    exit_code = 1


class Store:
    """An Optuna storage in a database that drivers on one machine, or many, use together."""

    def __init__(self, url: str | None, folder: Path, heartbeat: int) -> None:
        if heartbeat < 1:
            raise ConfigError(f"hydra.sweeper.heartbeat={heartbeat}: must be >= 1")
        self.url = url or url_of(folder / "study.db")
        if self.url.startswith(SQLITE):
            path = path_of(self.url).expanduser().resolve()
            path.parent.mkdir(parents=True, exist_ok=True)
            _, question, options = self.url.partition("?")
            self.url, self._lock_file = url_of(path) + question + options, f"{path}.lock"
        # Fresh databases break when several processes make their tables at once.
        with self._made_by_one():
            self.optuna = self._open(heartbeat)

    def _open(self, heartbeat: int) -> RDBStorage:
        options = {"connect_args": {"timeout": 60}} if self.url.startswith(SQLITE) else {}
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                return RDBStorage(
                    self.url,
                    engine_kwargs={"pool_pre_ping": True, **options},
                    heartbeat_interval=heartbeat,
                    grace_period=4 * heartbeat,
                )
        except ImportError as error:
            what = f"hydra.sweeper.storage={redact(self.url)}: no driver for this database"
            raise ConfigError(
                f"{what} (pip install 'llmdreamer[postgresql]' or [mysql])"
            ) from error
        except (sqlalchemy.exc.SQLAlchemyError, optuna.exceptions.StorageInternalError) as error:
            reason = redact(str(error).splitlines()[0])[:200]
            raise ConfigError(f"hydra.sweeper.storage={redact(self.url)}: {reason}") from error

    @contextmanager
    def _made_by_one(self) -> Iterator[None]:
        if self.url.startswith(SQLITE):
            with FileLock(self._lock_file):
                yield
            return
        try:
            engine = sqlalchemy.create_engine(self.url)
            with _advisory(engine, "llmdreamer"):
                yield
            engine.dispose()
        except (ImportError, sqlalchemy.exc.SQLAlchemyError) as error:
            reason = redact(str(error).splitlines()[0])[:200]
            raise ConfigError(f"hydra.sweeper.storage={redact(self.url)}: {reason}") from error

    @contextmanager
    def alone(self, study: str) -> Iterator[None]:
        """Hold the study's lock, which the kernel or the database takes back from the dead."""
        if self.url.startswith(SQLITE):
            with FileLock(self._lock_file):
                yield
        else:
            with _advisory(self.optuna.engine, study):
                yield


@contextmanager
def _advisory(engine: sqlalchemy.Engine, name: str) -> Iterator[None]:
    """A lock of the database server's, held by a connection of its own."""
    key = hashlib.sha256(name.encode()).digest()
    with engine.connect() as connection:
        if engine.dialect.name == "postgresql":
            number = {"key": int.from_bytes(key[:8], "big", signed=True)}
            take, give = "SELECT pg_advisory_lock(:key)", "SELECT pg_advisory_unlock(:key)"
        else:
            number = {"key": f"llmdreamer-{key.hex()[:32]}"}  # type: ignore[dict-item]
            take = f"SELECT GET_LOCK(:key, {LOCK_SECONDS})"
            give = "SELECT RELEASE_LOCK(:key)"
        taken = connection.execute(sqlalchemy.text(take), number).scalar()
        if engine.dialect.name != "postgresql" and taken != 1:
            raise StoreLocked(f"nobody has let go of the lock of {name} for {LOCK_SECONDS} seconds")
        try:
            yield
        finally:
            connection.execute(sqlalchemy.text(give), number)


class Life:
    """This driver's signs of life: a locked file on this machine, heartbeats in the database."""

    def __init__(self, folder: Path, store: Store) -> None:
        self._folder = folder / DRIVER_LOCKS_FOLDER
        self._storage = store.optuna
        self._interval = float(store.optuna.get_heartbeat_interval() or 1)
        token = uuid.uuid4().hex
        self._presence = DriverLock(folder, token)
        self._trials: set[int] = set()
        self._ended = threading.Event()
        self.name = f"{socket.gethostname()}/{os.getpid()}/{token}"
        threading.Thread(target=self._beat, daemon=True).start()

    def begin(self, trial_id: int) -> None:
        """Beat for a trial from now on."""
        self._storage.record_heartbeat(trial_id)
        self._trials.add(trial_id)

    def end(self, trial_id: int) -> None:
        self._trials.discard(trial_id)

    def close(self) -> None:
        self._ended.set()
        self._trials.clear()
        self._presence.close()

    def _beat(self) -> None:
        while not self._ended.wait(self._interval):
            for trial_id in tuple(self._trials):
                try:
                    self._storage.record_heartbeat(trial_id)
                except Exception as error:  # noqa: BLE001  (any store's: the next beat may get through)
                    log.warning("no heartbeat: %s", redact(str(error).splitlines()[0])[:200])

    def is_dead(self, owner: str | None) -> bool | None:
        """Whether that driver is gone; None if it is of another machine, where we cannot see."""
        if owner is None:
            return True  # it died before it signed
        host, _, token = owner.split("/")
        if owner == self.name:
            return True  # ours, and we do not run it any more
        if host != socket.gethostname():
            return None
        path = self._folder / token
        if not path.exists():
            return True
        try:
            with FileLock(path).acquire(timeout=0):
                pass
        except Timeout:
            return False
        path.unlink(missing_ok=True)
        return True
