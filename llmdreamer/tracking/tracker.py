"""What the training loop calls: rows and files go to the run folder; a process uploads them."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import IO

from filelock import FileLock, Timeout

import llmdreamer
from llmdreamer.tracking.record import Known, RunFiles, RunInfo, Status, Wanted, load, save
from llmdreamer.tracking.shipper import begin_anew, cut
from llmdreamer.tracking.spool import Spool
from llmdreamer.tracking.store import PATIENT, ui_command
from llmdreamer.tracking.uploads import sync_command
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.redact import redact

log = logging.getLogger(__name__)


class Tracker:
    """The record of one run. Once started it neither waits for the store nor raises."""

    def __init__(self, files: RunFiles, wanted: Wanted, uri: str) -> None:
        self.files = files
        self.uri = uri
        self._wanted = wanted
        self._spool = Spool(files.metrics)
        self._lost_rows = 0
        self._ended = False
        self._process = _spawn_shipper(files.folder, uri)

    @classmethod
    def start(
        cls,
        run_dir: Path,
        info: RunInfo,
        uri: str,
        experiment: str,
        cursor: int | None = None,
    ) -> Tracker:
        """Begin or go on with the record in `run_dir`; a run that resumes continues its MLflow run.

        Args:
            uri: as `resolve_uri` gives it. Where it differs from the folder's last one, the run is
                told again, whole, to the new store.
            cursor: `offset()` of the checkpoint the run resumes from; rows after it are cut, and
                done again by the run. None begins anew: what an earlier life has left is put away.

        Raises:
            ConfigError: if another process still uploads this folder, or the spool lacks rows that
                the checkpoint counts on.
        """
        files = RunFiles(run_dir.resolve())
        files.wanted.parent.mkdir(parents=True, exist_ok=True)
        _take_over(files, cursor)
        before = load(Wanted, files.wanted)
        tags = dict(info.tags)
        if info.parent_run_id is not None:
            tags["mlflow.parentRunId"] = info.parent_run_id
        wanted = Wanted(
            uri=redact(uri),
            experiment=experiment,
            name=info.name,
            params=dict(info.params),
            tags=tags,
            started=time.time() if before is None else before.started,
        )
        save(wanted, files.wanted)
        tracker = cls(files, wanted, uri)
        if info.config_path is not None:
            tracker.artifact(info.config_path)
        return tracker

    def log(self, metrics: Mapping[str, float], env_step: int) -> None:
        """Record a row: some microseconds, no network, no waiting."""
        try:
            self._spool.append(metrics, env_step)
        except OSError as error:
            if self._lost_rows == 0:
                log.warning("metrics are being lost: %s", error)
            self._lost_rows += 1

    def offset(self) -> int:
        """The cursor for a checkpoint; `flush` brings the rows before it to the disk."""
        return self._spool.offset()

    def flush(self) -> None:
        """Return once all rows so far are on the disk itself. Any thread may call it."""
        try:
            self._spool.flush()
        except OSError as error:
            log.warning("metrics may not be on the disk: %s", error)

    def artifact(self, path: Path, folder: str | None = None) -> None:
        """Have a file of the run's folder, or all files of a directory in it, stored below `folder`.

        It is read some seconds later, or at the next `sync`: leave it where it is.
        """
        path = path.resolve()
        if path.is_relative_to(self.files.folder):  # so that a run folder can be moved
            path = path.relative_to(self.files.folder)
        line = json.dumps({"path": str(path), "folder": folder}) + "\n"
        try:
            with open(self.files.artifacts, "ab", buffering=0) as file:
                file.write(line.encode())
        except OSError as error:
            log.warning("artifact %s is not recorded: %s", path, error)

    def finish(self, status: Status, timeout: float = 10.0) -> None:
        """Upload what is left, mark the run's end, and be back within `timeout` seconds.

        A second call does nothing. What could not be uploaded in time stays in the run folder; the
        uploading process is left to try on for as long as one answer of the store takes.
        """
        if self._ended:
            return
        self._ended = True
        deadline = time.monotonic() + timeout
        self.flush()
        self._wanted.status, self._wanted.ended = status, time.time()
        try:
            save(self._wanted, self.files.wanted)
            if self._process.stdin is not None:
                self._process.stdin.close()
            code = self._process.wait(max(0.0, deadline - time.monotonic()))
        except (OSError, subprocess.TimeoutExpired) as error:
            code = 1
            log.debug("waiting for the uploads: %s", error)
        if self._lost_rows:
            log.warning("%d rows of metrics were lost", self._lost_rows)
        if code != 0:
            log.warning(
                "tracking at %s has not taken everything; replay with '%s'",
                redact(self.uri),
                sync_command(self.files.folder),
            )

    @property
    def run_id(self) -> str | None:
        """The MLflow run; None until the store has answered."""
        known = load(Known, self.files.known)
        here = (self._wanted.uri, self._wanted.experiment)
        return known.run_id if known and (known.uri, known.experiment) == here else None

    @property
    def ui_command(self) -> str:
        return ui_command(self.uri)


def _take_over(files: RunFiles, cursor: int | None) -> None:
    try:
        # A killed run's shipper waits for its last answer, and must not read what is being cut.
        with FileLock(files.lock).acquire(timeout=1.5 * float(PATIENT)):
            if cursor is None:
                begin_anew(files)
            else:
                cut(files, cursor)
    except Timeout:
        raise ConfigError(
            f"{files.folder}: another process is uploading this run; wait for it, or end it"
        ) from None
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"resume={files.folder}: metrics.jsonl is not the one of the checkpoint ({error})"
        ) from error


def _spawn_shipper(folder: Path, uri: str) -> subprocess.Popen[bytes]:
    # The password, if any, goes by the environment, which other users cannot read.
    root = str(Path(llmdreamer.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    # -P: a folder named mlflow where the command is typed is not the library. The warnings of
    # libraries would each become a line of the run's log.
    python = [sys.executable, "-P", "-W", "ignore"]
    process = subprocess.Popen(
        [*python, "-m", "llmdreamer.tracking.upload_process", str(folder), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path, "MLFLOW_TRACKING_URI": uri},
        # Signals to the run's process group (Ctrl-C, a scheduler's) must leave time to upload.
        start_new_session=True,
    )
    assert process.stderr is not None
    threading.Thread(target=_relay, args=(process.stderr,), daemon=True).start()
    return process


def _relay(lines: IO[bytes]) -> None:
    for line in lines:
        log.warning("%s", line.decode(errors="replace").rstrip())
