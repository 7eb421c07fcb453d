"""Where the process of a run lives: a child of the driver, or wherever submitit or Ray place it.

A driver needs little of an engine: start this command, has it ended, ask it to leave, end it. The
processes are the same everywhere, so whatever a sweep does (checkpoints, pruning, retries) it does
on any engine.
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
class Order:
    """A process that is wanted. What it prints is added to `OUTPUT_LOG` in its folder."""

    command: list[str]
    environment: dict[str, str]  # on top of what there is where it runs
    folder: Path


class EngineLost(Exception):
    """The engine died on the way; runs write checkpoints, and the same command goes on."""

    exit_code = 1


class Job(Protocol):
    """A process that was ordered; it may still wait for its place."""

    def poll(self) -> int | None:
        """None until it has ended; then its exit code, or -N where signal N ended it.

        Raises:
            ConfigError: if the engine will not have it.
            EngineLost: if the engine is gone.
        """

    def terminate(self) -> None:
        """Send it SIGTERM, on which it writes a checkpoint and leaves; nothing if it has ended."""

    def kill(self) -> None:
        """Send it SIGKILL; nothing if it has ended."""


class Engine(Protocol):
    def start(self, order: Order) -> Job: ...

    def close(self) -> None:
        """Call it when every job has ended."""


class Local:
    """The driver's own children."""

    def start(self, order: Order) -> Job:
        return spawn(order)

    def close(self) -> None:
        pass


def spawn(order: Order, inherited: Mapping[str, str] | None = None) -> subprocess.Popen[bytes]:
    """Start the process as a child of this one: it leaves when we are gone (run_lock.py).

    Args:
        inherited: variables of the driver's, for what is not set here.
    """
    ours = {DRIVER_VARIABLE: str(os.getpid())}
    order.folder.mkdir(parents=True, exist_ok=True)
    with open(order.folder / OUTPUT_LOG, "ab") as output:
        return subprocess.Popen(
            order.command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**(inherited or {}), **os.environ, **order.environment, **ours},
            start_new_session=True,  # a Ctrl-C is the driver's, which tells its runs in order
        )


def make_engine(plan: Plan) -> Engine:
    """The engine of `hydra/launcher`.

    Raises:
        ConfigError: if it cannot be reached, or does not know an option.
    """
    if isinstance(plan.launcher, SubmititSettings):
        from llmdreamer.sweep.launchers.slurm import SubmititEngine

        return SubmititEngine(plan.launcher, plan.folder, plan.settings.heartbeat)
    if isinstance(plan.launcher, RaySettings):
        from llmdreamer.sweep.launchers.ray import RayEngine

        return RayEngine(plan.launcher, plan.folder, plan.settings.heartbeat)
    return Local()
