"""Schedules uploads: repeatedly while a run trains, or once for a run that has ended."""

from __future__ import annotations

import os
import select
import sys
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock, Timeout

from llmdreamer.tracking.failures import TrackingError
from llmdreamer.tracking.record import RunRecord, load, save
from llmdreamer.tracking.store import resolve_uri, use_long_timeout
from llmdreamer.tracking.uploader import Uploader
from llmdreamer.utils.output import print_error
from llmdreamer.utils.redact import as_typed, redact

UPLOAD_INTERVAL_SECONDS = 5.0
MAX_RETRY_SECONDS = 30.0  # longest pause between attempts while the store does not answer
LOCK_TIMEOUT_SECONDS = 120


def sync_command(folder: Path) -> str:
    """Return the command that uploads what MLflow lacks of a run."""
    return as_typed(["python", "-m", "llmdreamer", "sync", str(folder)])


def upload_until_exit(folder: Path, owner: int, say: Callable[[str], None] = print_error) -> int:
    """Upload a run until process `owner` closes our standard input or dies, then upload the rest.

    Args:
        say: receives a line whenever uploads begin to fail, fail for another reason, or work again.

    Returns:
        0 if everything is uploaded and the end of the run is recorded; 1 otherwise.
    """
    uploader = Uploader(folder, say)
    advice = f"spooling to {uploader.files.metrics}; upload later with: {sync_command(folder)}"
    try:
        # The uploader of the run's previous process may still hold the lock.
        lock = FileLock(uploader.files.lock).acquire(timeout=LOCK_TIMEOUT_SECONDS)
    except Timeout:
        say(f"tracking: another process is uploading {folder}; {advice}")
        return 1
    with lock:
        wait, failure = 0.0, None
        while True:
            # Checked before the upload: the last upload must come after the last record.
            ended = _has_ended(owner, wait)
            use_long_timeout(not ended)
            try:
                uploader.upload()
                if ended:
                    _close(uploader)
                    return 0
            except TrackingError as error:
                if error.kind != failure:
                    say(f"{error}: {advice}")
                if ended:
                    return 1
                wait = min(max(2 * wait, UPLOAD_INTERVAL_SECONDS), MAX_RETRY_SECONDS)
                failure = error.kind
            else:
                if failure is not None:
                    say(f"tracking at {uploader.record.uri} works again: uploads continue")
                wait, failure = UPLOAD_INTERVAL_SECONDS, None


def sync(folder: Path, uri: str | None = None) -> int:
    """Upload what MLflow lacks of a run that has ended; with `uri`, to another store.

    A run that recorded no end is marked KILLED.

    Returns:
        The number of records uploaded by this call.

    Raises:
        TrackingError: if the store fails, or the run is still being uploaded.
    """
    uploader = Uploader(folder)
    use_long_timeout(True)
    try:
        with FileLock(uploader.files.lock).acquire(timeout=0):
            if uri is not None:
                uploader.uri = resolve_uri(uri, Path.cwd())
                uploader.record.uri = redact(uploader.uri)
                save(uploader.record, uploader.files.run_record)
            uploader.upload()
            _close(uploader)
    except Timeout:
        raise TrackingError("another process is uploading this run; try again later") from None
    return uploader.uploaded_records


def _close(uploader: Uploader) -> None:
    record = load(RunRecord, uploader.files.run_record) or uploader.record
    uploader.close(record)


def _has_ended(owner: int, wait: float) -> bool:
    # Forked environment workers may keep the pipe open after the owner's death, so check both.
    readable, _, _ = select.select([sys.stdin], [], [], wait)
    return bool(readable) or os.getppid() != owner
