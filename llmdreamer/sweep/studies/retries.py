"""Retries of a study's database: every call of Optuna's storage, and every section under the study's lock.

A fault of the database does not end a sweep at once: the call is repeated until it works or a limit is
reached. Meanwhile the runs train on, because they do not need the database.
"""

from __future__ import annotations

import functools
import logging
import re
import time
from collections.abc import Callable
from typing import Any, TypeVar

import sqlalchemy
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.storages._cached_storage import _CachedStorage

from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.redact import redact

log = logging.getLogger(__name__)
T = TypeVar("T")

RETRY_SECONDS = 1.0  # between two attempts
OPENING_SECONDS = 60.0  # limit while a command starts and the database is locked
# Limit in mid-sweep while the database is locked, or its server does not answer.
OUTAGE_SECONDS = 300.0
FAULT_SECONDS = 30.0  # limit in mid-sweep for any other fault: a removed file may be put back
INTERRUPTED_SECONDS = 5.0  # limit after Ctrl-C or SIGTERM
_LOCKED = re.compile(r"lock", re.I)
# SQLite, PostgreSQL and MySQL, also while a server stops or starts.
_OUTAGE = re.compile(
    r"lock|connect|timed? ?out|start|shut|recover|terminat|closed|gone away|lost", re.I
)
_DATABASE_FAULTS = (sqlalchemy.exc.SQLAlchemyError, StorageInternalError, OSError)
# Optuna raises LookupError for a record that is gone or in no known state; ValueError and TypeError for
# damaged JSON.
_FAULTS = (*_DATABASE_FAULTS, LookupError, ValueError, TypeError)


class StorageLost(Exception):
    """The study's database failed for too long. The runs write checkpoints; the same command resumes."""

    exit_code = 1


class _SectionFault(Exception):
    """A call of the storage failed inside a locked section, which is then repeated as a whole."""


class Retries:
    """Repeats what needs the database.

    Until `sweep_has_started` is set, only a locked database is tried again, and the error is a
    ConfigError. Later every fault is tried again, and the error is StorageLost.
    """

    def __init__(self, url: str) -> None:
        self._url = redact(url)
        # Called after a fault, so that the next attempt connects again.
        self.disconnect: Callable[[], None] = lambda: None
        self.sweep_has_started = False
        self.is_interrupted = False  # the driver is being stopped; set by its signal handler
        self._in_section = False
        self._lost: StorageLost | None = None

    def call(self, function: Callable[[], T]) -> T:
        """Call a function of the storage.

        Raises:
            StorageLost, ConfigError: if the database fails up to the limit, or has done so before.
        """
        if not self._in_section:
            return self._repeat(function, _FAULTS)
        try:
            return function()
        except _FAULTS as error:
            raise _SectionFault from error

    def section(self, function: Callable[[], T]) -> T:
        """Call a function that takes the study's lock. A fault of the database repeats all of it.

        Raises:
            StorageLost, ConfigError: as `call`.
        """

        def run() -> T:
            self._in_section = True
            try:
                return function()
            finally:
                self._in_section = False

        return self._repeat(run, (_SectionFault, *_DATABASE_FAULTS))

    def _repeat(self, function: Callable[[], T], faults: tuple[type[Exception], ...]) -> T:
        failing_since: float | None = None
        while True:
            if self._lost is not None:
                raise self._lost
            try:
                result = function()
            except ConfigError:
                raise
            except faults as error:
                reason = fault_reason(error)
                if failing_since is None:
                    failing_since = time.monotonic()
                    self._log_fault(reason)
                if time.monotonic() - failing_since >= self._limit_seconds(reason):
                    raise self._failure(reason) from error
            else:
                if failing_since is not None:
                    log.info("the study's database works again")
                return result
            self.disconnect()
            time.sleep(RETRY_SECONDS)

    def _limit_seconds(self, reason: str) -> float:
        if not self.sweep_has_started:
            return OPENING_SECONDS if _LOCKED.search(reason) else 0.0
        if self.is_interrupted:
            return INTERRUPTED_SECONDS
        return OUTAGE_SECONDS if _OUTAGE.search(reason) else FAULT_SECONDS

    def _log_fault(self, reason: str) -> None:
        if limit := self._limit_seconds(reason):
            log.warning("the study's database failed (%s); retrying for %.0f s", reason, limit)

    def _failure(self, reason: str) -> Exception:
        if not self.sweep_has_started:
            return ConfigError(f"hydra.sweeper.storage={self._url}: {reason}")
        self._lost = StorageLost(
            f"the study's database {self._url} failed for too long ({reason}): repair it, then run the"
            " same command to resume"
        )
        return self._lost


def fault_reason(error: BaseException) -> str:
    """Return what failed, in one line without secrets: the database driver's own message, if there is one."""
    link: BaseException | None = error
    while isinstance(link, _SectionFault | StorageInternalError) and link.__cause__ is not None:
        link = link.__cause__
    cause = getattr(link, "orig", None) or link  # of sqlalchemy's errors: without the SQL
    lines = str(cause).strip().splitlines() or [type(cause).__name__]
    return redact(lines[0])[:200]


class RetryingStorage(_CachedStorage):
    """Optuna's storage, whose calls are repeated while the database fails."""

    def __init__(self, backend: RDBStorage, retries: Retries) -> None:
        super().__init__(backend)
        self.retries = retries


def _retried(name: str) -> Callable[..., Any]:
    method = getattr(_CachedStorage, name)

    @functools.wraps(method)
    def call(self: RetryingStorage, *args: Any, **kwargs: Any) -> Any:
        return self.retries.call(lambda: method(self, *args, **kwargs))

    return call


# All methods that use the database. Heartbeats are left out: their thread tries again by itself.
# `get_best_trial` is left out because it calls the others, and a ValueError is one of its results.
_LEFT_OUT = ("record_heartbeat", "get_best_trial", "check_trial_is_updatable", "remove_session")
for _name, _method in vars(_CachedStorage).items():
    if callable(_method) and not _name.startswith("_") and _name not in _LEFT_OUT:
        setattr(RetryingStorage, _name, _retried(_name))
RetryingStorage._get_stale_trial_ids = _retried("_get_stale_trial_ids")  # type: ignore[method-assign]
