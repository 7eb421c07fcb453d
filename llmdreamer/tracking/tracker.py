"""Records one run: writes metrics and artifact paths to its folder, and starts the upload process."""

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

from filelock import FileLock, Timeout

import llmdreamer
from llmdreamer.tracking.experiment import NOTE_TAG
from llmdreamer.tracking.record import (
    MlflowRunRef,
    RunFiles,
    RunInfo,
    RunRecord,
    Status,
    load,
    save,
)
from llmdreamer.tracking.spool import Spool
from llmdreamer.tracking.store import LONG_TIMEOUT_SECONDS, ui_command
from llmdreamer.tracking.upload_loop import sync_command
from llmdreamer.tracking.upload_process import EXIT_REPORTED
from llmdreamer.tracking.uploader import reset_record, rewind_record
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.redact import redact

log = logging.getLogger(__name__)


class Tracker:
    """Records the metrics and files of one run.

    After `start`, no method waits for the store (except `finish`, up to its timeout) or raises.
    """

    def __init__(self, files: RunFiles, record: RunRecord, uri: str) -> None:
        self.files = files
        self.uri = uri
        self._record = record
        self._spool = Spool(files.metrics)
        self._lost_records = 0
        self._ended = False
        self._process = self._start_uploads()

    @classmethod
    def start(
        cls,
        run_dir: Path,
        info: RunInfo,
        uri: str,
        experiment: str,
        cursor: int | None = None,
    ) -> Tracker:
        """Start the record in `run_dir`, or continue it and its MLflow run.

        Args:
            uri: as `resolve_uri` returns it. If it differs from the folder's last one, the whole run
                is uploaded to the new store.
            cursor: `offset()` in the checkpoint from which the run resumes. Later records are
                removed; the run repeats those steps. None starts over: the record of an earlier
                attempt is removed.

        Raises:
            ConfigError: if another process is still uploading this folder, or the spool lacks
                records that the checkpoint counts on.
        """
        files = RunFiles(run_dir.resolve())
        files.run_record.parent.mkdir(parents=True, exist_ok=True)
        _take_over(files, cursor)
        previous = load(RunRecord, files.run_record)
        tags = dict(info.tags)
        if info.parent_run_id is not None:
            tags["mlflow.parentRunId"] = info.parent_run_id
        record = RunRecord(
            uri=redact(uri),
            experiment=experiment,
            name=info.name,
            params=dict(info.params),
            tags=tags,
            started=time.time() if previous is None else previous.started,
        )
        save(record, files.run_record)
        tracker = cls(files, record, uri)
        if info.config_path is not None:
            tracker.log_artifact(info.config_path)
        return tracker

    def log(self, metrics: Mapping[str, float], env_step: int) -> None:
        """Append metrics to the spool. Takes some microseconds; does not use the network."""
        try:
            self._spool.append(metrics, env_step)
        except OSError as error:
            if self._lost_records == 0:
                log.warning("metrics cannot be written and are lost: %s", error)
            self._lost_records += 1

    def offset(self) -> int:
        """Return the cursor for a checkpoint. Call `flush` to bring the records before it to the disk."""
        return self._spool.offset()

    def flush(self) -> None:
        """Block until all records are on the disk. Any thread may call it."""
        try:
            self._spool.flush()
        except OSError as error:
            log.warning("metrics may not be on the disk yet: %s", error)

    def log_artifact(self, path: Path, folder: str | None = None) -> None:
        """Schedule the upload of a file, or of all files of a directory, to `folder` in the artifacts.

        The upload process reads it some seconds later, or at the next `sync`; do not move it.
        """
        path = path.resolve()
        if path.is_relative_to(self.files.folder):  # a relative path survives a move of the folder
            path = path.relative_to(self.files.folder)
        line = json.dumps({"path": str(path), "folder": folder}) + "\n"
        try:
            with open(self.files.artifacts, "ab", buffering=0) as file:
                file.write(line.encode())
        except OSError as error:
            log.warning("artifact %s will not be uploaded: %s", path, error)

    def describe(self, note: str) -> None:
        """Set the description, in Markdown, that MLflow shows of the run once it has ended."""
        self._record.tags[NOTE_TAG] = note

    def finish(self, status: Status, timeout: float = 10.0) -> None:
        """Upload the rest and record the end of the run; return within `timeout` seconds.

        A second call does nothing. What was not uploaded in time stays in the run folder. The upload
        process is not stopped: it still waits for the answer to its last request.
        """
        if self._ended:
            return
        self._ended = True
        deadline = time.monotonic() + timeout
        self.flush()
        self._record.status, self._record.ended = status, time.time()
        code = 1
        try:
            save(self._record, self.files.run_record)
            if self._process is not None:
                assert self._process.stdin is not None
                self._process.stdin.close()
                code = self._process.wait(max(0.0, deadline - time.monotonic()))
        except (OSError, subprocess.TimeoutExpired) as error:
            log.debug("uploads did not finish: %s", error)
        if self._lost_records:
            log.warning("%d records of metrics were lost", self._lost_records)
        if code != 0:
            log.warning(
                "not everything was uploaded to %s; upload the rest with: %s",
                redact(self.uri),
                sync_command(self.files.folder),
            )

    def _start_uploads(self) -> subprocess.Popen[bytes] | None:
        """Start the upload process, and log its lines; None if the system starts no process."""
        try:
            process = _start_upload_process(self.files.folder, self.uri)
        except OSError as error:
            log.warning("uploads cannot start (%s); %s", error, self._advice())
            return None
        threading.Thread(target=self._log_lines, args=(process,), daemon=True).start()
        return process

    def _log_lines(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            log.warning("%s", line.decode(errors="replace").rstrip())
        code = process.wait()
        if not self._ended and code != EXIT_REPORTED:
            log.warning("uploads have stopped (exit code %d); %s", code, self._advice())

    def _advice(self) -> str:
        return f"upload later with: {sync_command(self.files.folder)}"

    @property
    def run_id(self) -> str | None:
        """The id of the MLflow run; None until the upload process has created it."""
        mlflow_run = load(MlflowRunRef, self.files.mlflow_run)
        if mlflow_run is None or mlflow_run.target != self._record.target:
            return None
        return mlflow_run.run_id

    @property
    def ui_command(self) -> str:
        return ui_command(self.uri)


def _take_over(files: RunFiles, cursor: int | None) -> None:
    try:
        # The uploader of a killed run waits for its last answer. It must not read the spool while
        # that is truncated.
        with FileLock(files.lock).acquire(timeout=1.5 * float(LONG_TIMEOUT_SECONDS)):
            if cursor is None:
                reset_record(files)
            else:
                rewind_record(files, cursor)
    except Timeout:
        raise ConfigError(
            f"{files.folder}: another process is uploading this run; wait for it, or stop it"
        ) from None
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(
            f"resume={files.folder}: metrics.jsonl does not match the checkpoint ({error})"
        ) from error


def _start_upload_process(folder: Path, uri: str) -> subprocess.Popen[bytes]:
    # The URI may hold a password. Other users cannot read the environment of a process.
    root = str(Path(llmdreamer.__file__).parents[1])
    path = os.pathsep.join([root, *filter(None, [os.environ.get("PYTHONPATH")])])
    # -P: a folder named mlflow in the working directory must not hide the library. -W ignore: every
    # warning of a library would become a line in the run's log.
    python = [sys.executable, "-P", "-W", "ignore"]
    return subprocess.Popen(
        [*python, "-m", "llmdreamer.tracking.upload_process", str(folder), str(os.getpid())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=os.environ | {"PYTHONPATH": path, "MLFLOW_TRACKING_URI": uri},
        # Signals to the run's process group (Ctrl-C, a scheduler's) must leave time to upload.
        start_new_session=True,
    )
