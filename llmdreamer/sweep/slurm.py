"""Runs as jobs of Slurm, by submitit, or of its local stand-in for Slurm."""

from __future__ import annotations

import functools
import logging
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from llmdreamer.errors import ConfigError
from llmdreamer.sweep.engine import Job, Order
from llmdreamer.sweep.folder import LOG
from llmdreamer.sweep.remote import FOLDER, Placed, Posted, execute, last_of
from llmdreamer.sweep.settings import Submitit

QUEUE_EVERY = 10.0  # seconds between two looks at Slurm's queue for a job that has not begun


class SubmititEngine:
    """A job of Slurm's, or of submitit's local stand-in for it, for each process."""

    def __init__(self, settings: Submitit, sweep: Path, heartbeat: int) -> None:
        import submitit

        logging.getLogger("submitit").propagate = False  # it prints what it has to say itself
        try:
            logs = sweep / FOLDER / "submitit"
            self._executor = submitit.AutoExecutor(folder=logs, cluster=settings.cluster)
            self._executor.update_parameters(name=sweep.name, **_parameters(settings))
        except (RuntimeError, ValueError, TypeError, NameError) as error:
            raise ConfigError(f"hydra/launcher=submitit_{settings.cluster}: {error}") from error
        self._cluster = settings.cluster
        self._posted = Posted(sweep, heartbeat)

    def start(self, order: Order) -> Job:
        errand = self._posted.errand(order)
        # Slurm hands the environment on: a password in it comes into no file.
        job = self._executor.submit(execute, errand)
        cancel = functools.partial(job.cancel, check=False)
        why = functools.partial(_why, job)
        output = order.folder / LOG
        return Placed(errand.box, self._is_over(job), cancel, why, output, errand.heartbeat)

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

    def close(self) -> None:
        self._posted.close()


def _why(job: Any) -> str:
    """The last line of what submitit knows of a job that did not do its work."""
    return last_of(job.exception()) if job.done() else ""


def is_queued(job: str) -> bool:
    """Whether Slurm's queue holds the job, waiting or running; yes where it does not answer."""
    asked = subprocess.run(
        ["squeue", "--noheader", "--format=%T", f"--jobs={job}"],  # noqa: S607  (the site's own)
        capture_output=True,
        text=True,
        check=False,
    )
    return bool(asked.stdout.strip()) or (
        asked.returncode != 0 and "Invalid job id" not in asked.stderr
    )


_SHARED = (
    "timeout_min",
    "cpus_per_task",
    "gpus_per_node",
    "mem_gb",
)  # of all of submitit's executors


def _parameters(settings: Submitit) -> dict[str, Any]:
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
