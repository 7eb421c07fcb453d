"""The submitit launcher: each process is a job of Slurm, or of submitit's local executor."""

from __future__ import annotations

import contextlib
import functools
import io
import logging
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmdreamer.sweep.launchers.base import Job, LauncherLost, ProcessSpec
from llmdreamer.sweep.launchers.mailbox import (
    JOBS_FOLDER,
    JobMailbox,
    RemoteJob,
    execute,
    last_error_line,
)
from llmdreamer.sweep.run_folder import OUTPUT_LOG
from llmdreamer.sweep.settings import SubmititSettings
from llmdreamer.utils.errors import ConfigError

log = logging.getLogger(__name__)
QUEUE_POLL_SECONDS = 10.0  # between two squeue calls for a job that has not ended
QUEUE_TIMEOUT_SECONDS = 10.0  # of one squeue call
# After Slurm accepts no job, the delay until the next attempt doubles up to the maximum. Slurm's controller
# restarts or fails over within minutes.
FIRST_RETRY_SECONDS, MAX_RETRY_SECONDS, GIVE_UP_SECONDS = 5.0, 60.0, 600.0
# Messages while Slurm is partly or fully down; an empty one counts too. Others are about the job's options.
_TRANSIENT_ERRORS = re.compile(
    r"^$|timed out|unable to contact|connect|zero bytes|temporarily|standby", re.I
)


class SubmititLauncher:
    """Starts each process as a job of Slurm, or of submitit's local executor."""

    def __init__(
        self,
        settings: SubmititSettings,
        sweep_folder: Path,
        heartbeat_seconds: int,
        stop_within: float,
    ) -> None:
        import submitit

        logging.getLogger("submitit").propagate = False  # submitit prints its messages itself
        try:
            logs = sweep_folder / JOBS_FOLDER / "submitit"
            # submitit stores each job's command there, passwords included.
            logs.mkdir(0o700, parents=True, exist_ok=True)
            self._executor = submitit.AutoExecutor(folder=logs, cluster=settings.cluster)
            parameters = _executor_parameters(settings)
            self._executor.update_parameters(name=sweep_folder.name, **parameters)
        except (RuntimeError, ValueError, TypeError, NameError) as error:
            raise ConfigError(f"hydra/launcher=submitit_{settings.cluster}: {error}") from error
        self._cluster = settings.cluster
        self._mailbox = JobMailbox(sweep_folder, heartbeat_seconds, stop_within)
        self._has_accepted = False  # True once a job was accepted; all jobs have the same options
        self._retry_at, self._retry_seconds = 0.0, FIRST_RETRY_SECONDS
        self._rejecting_since: float | None = None

    def start(self, process: ProcessSpec) -> Job:
        return DeferredJob(functools.partial(self._submit, process))

    def close(self) -> None:
        self._mailbox.close()

    def _submit(self, process: ProcessSpec) -> RemoteJob | None:
        """Submit a job; None while Slurm accepts no job. The caller retries and does not wait here.

        Raises:
            ConfigError: if Slurm rejects the job's options.
            LauncherLost: if Slurm has accepted no job for `GIVE_UP_SECONDS`.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        if (now := time.monotonic()) < self._retry_at:
            return None
        job = self._mailbox.new_job(process)
        try:
            # submitit prints sbatch's output at each attempt.
            with contextlib.redirect_stderr(io.StringIO()):
                # Slurm passes the environment on, so that passwords in it are written to no file.
                submitted = self._executor.submit(execute, job)
        except (FailedJobError, FailedSubmissionError) as error:
            # sbatch may have submitted the job all the same; without its folder, the job runs nothing.
            shutil.rmtree(job.job_dir, ignore_errors=True)
            self._handle_rejection(last_error_line(error), now)
            return None
        self._has_accepted, self._rejecting_since = True, None
        self._retry_seconds = FIRST_RETRY_SECONDS
        return RemoteJob(
            job.job_dir,
            self._is_over(submitted),
            functools.partial(submitted.cancel, check=False),
            functools.partial(_failure_reason, submitted),
            process.folder / OUTPUT_LOG,
            job.heartbeat_seconds,
        )

    def _handle_rejection(self, error: str, now: float) -> None:
        prefix = f"hydra/launcher=submitit_{self._cluster}"
        if not self._has_accepted and not _TRANSIENT_ERRORS.search(error):
            raise ConfigError(f"{prefix}: {error}")
        cause = error or "sbatch printed no error"
        if self._rejecting_since is None:
            self._rejecting_since = now
            log.warning("Slurm accepted no job (%s): retrying", cause)
        if now - self._rejecting_since > GIVE_UP_SECONDS:
            raise LauncherLost(
                f"{prefix}: Slurm accepted no job for {GIVE_UP_SECONDS / 60:.0f} minutes ({cause});"
                " run the same command to resume"
            )
        self._retry_at = time.monotonic() + self._retry_seconds
        self._retry_seconds = min(2 * self._retry_seconds, MAX_RETRY_SECONDS)

    def _is_over(self, submitted: Any) -> Callable[[], bool]:
        """Return a check for a job's end; squeue too, because submitit's sacct needs Slurm's accounting."""
        queried_at = time.monotonic()

        def is_over() -> bool:
            nonlocal queried_at
            if submitted.done():
                return True
            if self._cluster != "slurm" or time.monotonic() - queried_at < QUEUE_POLL_SECONDS:
                return False
            queried_at = time.monotonic()
            return not is_queued(submitted.job_id)

        return is_over


class DeferredJob:
    """A job that Slurm may not have accepted yet. Each `poll` before that tries to submit it."""

    def __init__(self, submit: Callable[[], RemoteJob | None]) -> None:
        self._submit = submit
        self._job: RemoteJob | None = None
        # Set by `terminate` and `kill`. It is the job's exit code if the job was never submitted.
        self._requested_exit: int | None = None

    def poll(self) -> int | None:
        if self._job is None and self._requested_exit is None:
            self._job = self._submit()
            self._forward_request()  # a signal's handler may have called `terminate` meanwhile
        return self._requested_exit if self._job is None else self._job.poll()

    def terminate(self) -> None:
        self._requested_exit = 128 + signal.SIGTERM
        self._forward_request()

    def kill(self) -> None:
        self._requested_exit = -signal.SIGKILL
        self._forward_request()

    def _forward_request(self) -> None:
        if self._job is None or self._requested_exit is None:
            return
        if self._requested_exit == -signal.SIGKILL:
            self._job.kill()
        else:
            self._job.terminate()


def _failure_reason(submitted: Any) -> str:
    """Return the last line that submitit knows of a failed job."""
    return last_error_line(submitted.exception()) if submitted.done() else ""


def is_queued(job_id: str) -> bool:
    """Return True if the job is pending or running in Slurm's queue, or if Slurm does not answer."""
    try:
        answer = subprocess.run(
            ["squeue", "--noheader", "--format=%T", f"--jobs={job_id}"],  # noqa: S607  (the site's own)
            capture_output=True,
            text=True,
            check=False,
            timeout=QUEUE_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired:
        return True
    return bool(answer.stdout.strip()) or (
        answer.returncode != 0 and "Invalid job id" not in answer.stderr
    )


_COMMON_OPTIONS = ("timeout_min", "cpus_per_task", "gpus_per_node", "mem_gb")


def _executor_parameters(settings: SubmititSettings) -> dict[str, Any]:
    """Return the settings under AutoExecutor's names: `slurm_` precedes options that only Slurm has."""
    given = {
        key: value
        for key, value in asdict(settings).items()
        if key not in ("_target_", "cluster") and value not in (None, [], {})
    }
    # A job that Slurm requeues runs nothing (`execute`); our driver submits another one, which resumes.
    defaults = {} if "requeue" in settings.additional_parameters else {"no_requeue": True}
    given["additional_parameters"] = defaults | settings.additional_parameters
    return {key if key in _COMMON_OPTIONS else f"slurm_{key}": given[key] for key in given}
