"""Runs as jobs of Slurm, by submitit, or of its local stand-in for Slurm."""

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

from llmdreamer.sweep.launchers.base import EngineLost, Job, Order
from llmdreamer.sweep.launchers.mailbox import FOLDER, Placed, Posted, execute, last_of
from llmdreamer.sweep.run_folder import OUTPUT_LOG
from llmdreamer.sweep.settings import SubmititSettings
from llmdreamer.utils.errors import ConfigError

log = logging.getLogger(__name__)
QUEUE_EVERY = 10.0  # seconds between two looks at Slurm's queue for a job that has not begun
QUEUE_WITHIN = 10.0  # seconds that such a look may take
# Seconds until Slurm is asked again that has taken no job, doubled each time up to the longest; and for how
# long. Its controller restarts, or hands over to another, within minutes.
AGAIN, LONGEST, PATIENCE = 5.0, 60.0, 600.0
# What Slurm says when it is not all there, or nothing; the rest is about what was asked for.
_PASSING = re.compile(
    r"^$|timed out|unable to contact|connect|zero bytes|temporarily|standby", re.I
)


class SubmititEngine:
    """A job of Slurm's, or of submitit's local stand-in for it, for each process."""

    def __init__(self, settings: SubmititSettings, sweep: Path, heartbeat: int) -> None:
        import submitit

        logging.getLogger("submitit").propagate = False  # it prints what it has to say itself
        try:
            logs = sweep / FOLDER / "submitit"
            # An order, as submitit keeps it there, has what was typed, passwords included.
            logs.mkdir(0o700, parents=True, exist_ok=True)
            self._executor = submitit.AutoExecutor(folder=logs, cluster=settings.cluster)
            self._executor.update_parameters(name=sweep.name, **_parameters(settings))
        except (RuntimeError, ValueError, TypeError, NameError) as error:
            raise ConfigError(f"hydra/launcher=submitit_{settings.cluster}: {error}") from error
        self._cluster = settings.cluster
        self._posted = Posted(sweep, heartbeat)
        self._has_taken = False  # whether a job was ever taken, with the options that all have
        self._ask_at, self._again = 0.0, AGAIN
        self._refused_since: float | None = None

    def start(self, order: Order) -> Job:
        return Submission(functools.partial(self._submit, order))

    def close(self) -> None:
        self._posted.close()

    def _submit(self, order: Order) -> Placed | None:
        """None while Slurm takes no job; then one asks again, and nobody else is kept waiting.

        Raises:
            ConfigError: if it will not take such a job.
            EngineLost: if it has taken none for too long.
        """
        from submitit.core.utils import FailedJobError, FailedSubmissionError

        if (now := time.monotonic()) < self._ask_at:
            return None
        errand = self._posted.errand(order)
        try:
            # submitit prints what sbatch said, each time.
            with contextlib.redirect_stderr(io.StringIO()):
                # Slurm hands the environment on: a password in it comes into no file.
                job = self._executor.submit(execute, errand)
        except (FailedJobError, FailedSubmissionError) as error:
            # sbatch may have got through without knowing it: without its box, that job runs nothing.
            shutil.rmtree(errand.box, ignore_errors=True)
            self._bear(last_of(error), now)
            return None
        self._has_taken, self._refused_since, self._again = True, None, AGAIN
        cancel = functools.partial(job.cancel, check=False)
        why = functools.partial(_why, job)
        output = order.folder / OUTPUT_LOG
        return Placed(errand.box, self._is_over(job), cancel, why, output, errand.heartbeat)

    def _bear(self, said: str, now: float) -> None:
        place = f"hydra/launcher=submitit_{self._cluster}"
        if not self._has_taken and not _PASSING.search(said):
            raise ConfigError(f"{place}: {said}")
        told = said or "sbatch said nothing"
        if self._refused_since is None:
            self._refused_since = now
            log.warning("Slurm took no job (%s): trying again", told)
        if now - self._refused_since > PATIENCE:
            raise EngineLost(
                f"{place}: no job was taken for {PATIENCE / 60:.0f} minutes ({told});"
                " the same command goes on"
            )
        self._ask_at = time.monotonic() + self._again
        self._again = min(2 * self._again, LONGEST)

    def _is_over(self, job: Any) -> Callable[[], bool]:
        """submitit asks sacct, which knows nothing where Slurm keeps no accounts: ask the queue too."""
        asked = time.monotonic()

        def is_over() -> bool:
            nonlocal asked
            if job.done():
                return True
            if self._cluster != "slurm" or time.monotonic() - asked < QUEUE_EVERY:
                return False
            asked = time.monotonic()
            return not is_queued(job.job_id)

        return is_over


class Submission:
    """A job that Slurm may have yet to take."""

    def __init__(self, submit: Callable[[], Placed | None]) -> None:
        self._submit = submit
        self._placed: Placed | None = None
        self._code: int | None = None  # as it was told to leave; its own, if it was never taken

    def poll(self) -> int | None:
        if self._placed is None and self._code is None:
            self._placed = self._submit()
            self._tell()  # it may have been told meanwhile
        return self._code if self._placed is None else self._placed.poll()

    def terminate(self) -> None:
        self._code = 128 + signal.SIGTERM
        self._tell()

    def kill(self) -> None:
        self._code = -signal.SIGKILL
        self._tell()

    def _tell(self) -> None:
        if self._placed is None or self._code is None:
            return
        if self._code == -signal.SIGKILL:
            self._placed.kill()
        else:
            self._placed.terminate()


def _why(job: Any) -> str:
    """The last line of what submitit knows of a job that did not do its work."""
    return last_of(job.exception()) if job.done() else ""


def is_queued(job: str) -> bool:
    """Whether Slurm's queue holds the job, waiting or running; yes where it does not answer."""
    try:
        asked = subprocess.run(
            ["squeue", "--noheader", "--format=%T", f"--jobs={job}"],  # noqa: S607  (the site's own)
            capture_output=True,
            text=True,
            check=False,
            timeout=QUEUE_WITHIN,
        )
    except subprocess.TimeoutExpired:
        return True
    return bool(asked.stdout.strip()) or (
        asked.returncode != 0 and "Invalid job id" not in asked.stderr
    )


_SHARED = (
    "timeout_min",
    "cpus_per_task",
    "gpus_per_node",
    "mem_gb",
)  # of all of submitit's executors


def _parameters(settings: SubmititSettings) -> dict[str, Any]:
    """As AutoExecutor names them: what only Slurm knows begins with slurm_."""
    given = {
        key: value
        for key, value in asdict(settings).items()
        if key not in ("_target_", "cluster") and value not in (None, [], {})
    }
    # A job that Slurm begins again runs nothing; our driver orders another, which goes on.
    ours = {} if "requeue" in settings.additional_parameters else {"no_requeue": True}
    given["additional_parameters"] = ours | settings.additional_parameters
    return {key if key in _SHARED else f"slurm_{key}": value for key, value in given.items()}
