"""When uploads happen: beside a live run until it ends, or once, after a run that is over."""

from __future__ import annotations

import os
import select
import shlex
import sys
from pathlib import Path

from filelock import FileLock, Timeout

from llmdreamer.tracking.record import Wanted, load, save
from llmdreamer.tracking.shipper import Shipper, say
from llmdreamer.tracking.store import TrackingError, be_patient, resolve_uri
from llmdreamer.utils.redact import redact

INTERVAL = 5.0  # seconds between uploads
LONGEST_WAIT = 30.0  # seconds between attempts at a store that does not answer


def sync_command(folder: Path) -> str:
    return f"python -m llmdreamer sync {shlex.quote(str(folder))}"


def follow(folder: Path, owner: int) -> int:
    """Upload a live run until process `owner` closes our standard input or dies, then the rest.

    Returns:
        0 if everything is uploaded and the run's end is marked.
    """
    shipper = Shipper(folder)
    advice = f"spooling to {shipper.files.metrics}; replay with '{sync_command(folder)}'"
    try:
        # The shipper of this run's last life may still be at it.
        lock = FileLock(shipper.files.lock).acquire(timeout=120)
    except Timeout:
        say(f"tracking: another process uploads {folder}; {advice}")
        return 1
    with lock:
        wait, warned, ended = 0.0, False, False
        while True:
            # Asked first, so that the last upload comes after the last row.
            ended = _has_ended(owner, wait)
            be_patient(not ended)
            try:
                shipper.ship()
                if ended:
                    _close(shipper)
                    return 0
                wait, warned = INTERVAL, False
            except TrackingError as error:
                if not warned:
                    say(f"{error}: {advice}")
                if ended:
                    return 1
                wait, warned = min(max(2 * wait, INTERVAL), LONGEST_WAIT), True


def sync(folder: Path, uri: str | None = None) -> int:
    """Replay the spool of a run that is over, to another store if `uri` is given.

    A run that never told its end is marked KILLED.

    Returns:
        Rows that were shipped now.

    Raises:
        TrackingError: if the store fails, or the run is alive.
    """
    shipper = Shipper(folder)
    be_patient(True)
    try:
        with FileLock(shipper.files.lock).acquire(timeout=0):
            if uri is not None:
                shipper.uri = resolve_uri(uri, Path.cwd())
                shipper.wanted.uri = redact(shipper.uri)
                save(shipper.wanted, shipper.files.wanted)
            shipper.ship()
            _close(shipper)
    except Timeout:
        raise TrackingError("it is being uploaded by another process") from None
    return shipper.rows


def _close(shipper: Shipper) -> None:
    wanted = load(Wanted, shipper.files.wanted) or shipper.wanted
    shipper.close(wanted)


def _has_ended(owner: int, wait: float) -> bool:
    # Forked environment workers may hold the pipe open after the owner's death: look for it too.
    told, _, _ = select.select([sys.stdin], [], [], wait)
    return bool(told) or os.getppid() != owner
