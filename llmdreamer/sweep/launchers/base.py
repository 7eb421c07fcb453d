"""Launchers: start a run's process as a child of the driver, or as a job of Slurm (submitit) or Ray.

A launcher starts a command and reports its exit code; the job that it returns can be terminated or
killed. The process is the same under every launcher, so checkpoints, pruning and retries work with
all of them.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from llmdreamer.sweep.run_folder import OUTPUT_LOG
from llmdreamer.sweep.run_lock import DRIVER_VARIABLE
from llmdreamer.sweep.settings import RaySettings, SubmititSettings

if TYPE_CHECKING:
    from llmdreamer.sweep.plan import Plan


@dataclass(frozen=True)
class ProcessSpec:
    """A process to start. Its output is appended to `OUTPUT_LOG` in its folder."""

    command: list[str]
    environment: dict[str, str]  # added to the environment of the machine that runs the process
    folder: Path


class LauncherLost(Exception):
    """The launcher failed during a sweep. Runs write checkpoints; the same command resumes them."""

    exit_code = 1


class Job(Protocol):
    """A process that a launcher was asked to start; it may still be queued."""

    def poll(self) -> int | None:
        """Return the exit code, -N if signal N ended the process, or None while it has not ended.

        Raises:
            ConfigError: if the launcher rejects the job.
            LauncherLost: if the launcher has failed.
        """

    def terminate(self) -> None:
        """Send SIGTERM, on which the process writes a checkpoint and exits; no-op after its end."""

    def kill(self) -> None:
        """Send SIGKILL; no-op after the end of the process."""


class Launcher(Protocol):
    def start(self, process: ProcessSpec) -> Job: ...

    def close(self) -> None:
        """Release the launcher; every job must have ended."""


class LocalLauncher:
    """Starts processes as children of the driver."""

    def start(self, process: ProcessSpec) -> Job:
        return start_process(process)

    def close(self) -> None:
        pass


def start_process(
    process: ProcessSpec, inherited: Mapping[str, str] | None = None
) -> subprocess.Popen[bytes]:
    """Start the process as a child of this one; it exits when this process is gone (run_lock.py).

    Args:
        inherited: the driver's environment; used for variables that are not set on this machine.
    """
    own_variables = {DRIVER_VARIABLE: str(os.getpid())}
    process.folder.mkdir(parents=True, exist_ok=True)
    with open(process.folder / OUTPUT_LOG, "ab") as output:
        return subprocess.Popen(
            process.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**(inherited or {}), **os.environ, **process.environment, **own_variables},
            start_new_session=True,  # Ctrl-C reaches the driver only, which then stops its runs
        )


def make_launcher(plan: Plan) -> Launcher:
    """Return the launcher that `hydra/launcher` selects.

    Raises:
        ConfigError: if it cannot be reached, or an option is unknown.
    """
    heartbeat, stop_within = plan.settings.heartbeat, plan.settings.stop_within
    if isinstance(plan.launcher, SubmititSettings):
        from llmdreamer.sweep.launchers.slurm import SubmititLauncher

        return SubmititLauncher(plan.launcher, plan.folder, heartbeat, stop_within)
    if isinstance(plan.launcher, RaySettings):
        from llmdreamer.sweep.launchers.ray import RayLauncher

        return RayLauncher(plan.launcher, plan.folder, heartbeat, stop_within)
    return LocalLauncher()
