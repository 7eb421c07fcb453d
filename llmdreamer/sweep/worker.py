"""A run as a process: started or resumed in its folder, stopped, and what its end means."""

from __future__ import annotations

import json
import os
import signal
import time
from dataclasses import dataclass, field

from llmdreamer.sweep.launchers.base import Engine, Job, Order
from llmdreamer.sweep.run_folder import (
    CurveReader,
    is_finished,
    last_output_line,
    newest_checkpoint,
)
from llmdreamer.sweep.run_source import RunOutcome, RunTask
from llmdreamer.tracking.parent import PARENT_VARIABLE, TRIAL_VARIABLE

# What a resumed run takes from the command line; all else is in its saved configuration.
_KEPT = ("threads", "device", "trust", "tracking.")
# On these a run has written its checkpoint and left: it is asked to, and so may a scheduler.
_ASKED = (128 + signal.SIGTERM, 128 + signal.SIGUSR1, 128 + signal.SIGINT)


@dataclass(frozen=True)
class Slot:
    """A place for one process: on a device, or with a share of the cores."""

    device: str | None  # as CUDA_VISIBLE_DEVICES names it
    threads: int

    def environment(self) -> dict[str, str]:
        found = {"OMP_NUM_THREADS": str(self.threads)}
        if self.device is not None:
            found["CUDA_VISIBLE_DEVICES"] = self.device
        return found


@dataclass(frozen=True)
class WorkerOptions:
    """What is started, and how patiently."""

    command: list[str]
    engine: Engine  # where it lives
    hydra: list[str]  # Hydra's own overrides, of every run
    objective: str  # which may be another now than when a run began
    set_threads: bool  # whether `threads` is ours to give
    retries: int  # deaths without a new checkpoint in between, before a run has failed
    stop_within: float  # seconds from SIGTERM to SIGKILL


@dataclass
class Worker:
    """A run in a slot, over as many processes as it takes."""

    task: RunTask
    slot: Slot
    program: WorkerOptions
    tail: CurveReader = field(init=False)
    seconds: float = 0.0
    _job: Job | None = None
    _code: int | None = None  # of its exit
    _began: float = 0.0
    _deaths: int = 0
    _checkpoint: str | None = None
    _asked_at: float | None = None  # when this process was asked to leave
    _wanted: bool = False

    def __post_init__(self) -> None:
        self.tail = CurveReader(self.task.folder)

    def start(self) -> bool:
        """Start a process, which resumes if there is a checkpoint. Returns whether it does."""
        folder = self.task.folder
        folder.mkdir(parents=True, exist_ok=True)
        self._checkpoint = newest_checkpoint(folder)
        resumes = self._checkpoint is not None
        overrides = [*self.task.overrides]
        if self.program.set_threads:
            overrides.append(f"threads={self.slot.threads}")
        if resumes:
            overrides = [o for o in overrides if o.lstrip("+~").startswith(_KEPT)]
            overrides += [
                f"resume={_quoted(str(folder))}",
                f"objective={_quoted(self.program.objective)}",
            ]
        self.tail = CurveReader(folder)
        arguments = [*overrides, *self.program.hydra, f"hydra.run.dir={_quoted(str(folder))}"]
        order = Order([*self.program.command, *arguments], self._environment(), folder)
        self._asked_at = None
        self._job, self._code = self.program.engine.start(order), None
        self._began = time.monotonic()
        return resumes

    def _environment(self) -> dict[str, str]:
        return self.slot.environment() | {
            # A place may have inherited another sweep's.
            **{one: os.environ[one] for one in (PARENT_VARIABLE,) if one in os.environ},
            TRIAL_VARIABLE: json.dumps(self.task.tags),
            "COLUMNS": "200",
        }

    def has_exited(self) -> bool:
        assert self._job is not None
        if self._code is None and (code := self._job.poll()) is not None:
            self._code = code
            self.seconds += time.monotonic() - self._began
        return self._code is not None

    def outcome(self, *, interrupted: bool) -> RunOutcome | None:
        """What the exit means; None if the run is to be gone on with, now or by the next driver."""
        assert self._code is not None
        code = self._code
        if code == 0 or is_finished(self.task.folder):
            return self.finished()
        left = code < 0 or code in _ASKED
        if left and self._wanted:
            return self._outcome("stopped")
        if left and interrupted:
            return None
        if not left:
            return self._outcome(
                "failed", last_output_line(self.task.folder) or f"exit code {code}", code
            )
        advanced = newest_checkpoint(self.task.folder) != self._checkpoint
        self._deaths = 1 if advanced else self._deaths + 1
        if self._deaths <= self.program.retries:
            return None
        cause = f"ended by signal {-code if code < 0 else code - 128}, {self._deaths} times"
        said = last_output_line(self.task.folder)
        told = f"; the last it said: {said}" if said else ""
        return self._outcome("failed", f"{cause} without a new checkpoint{told}", 1)

    def finished(self) -> RunOutcome:
        return self._outcome("finished")

    def _outcome(self, kind: str, cause: str = "", code: int = 0) -> RunOutcome:
        tail = CurveReader(self.task.folder)
        return RunOutcome(kind, tail.read(), tail.env_step, cause, code)  # type: ignore[arg-type]

    def stop(self, *, wanted: bool) -> None:
        """Have the run write its checkpoint and leave. `wanted`: it is not to be gone on with."""
        self._wanted = self._wanted or wanted
        # Not `has_exited`: that may ask a scheduler, and a signal's handler stops us.
        if self._job is not None and self._code is None:
            self._asked_at = time.monotonic()
            self._job.terminate()

    def is_stopping(self) -> bool:
        return self._asked_at is not None

    def kill_if_late(self) -> None:
        if (
            self._asked_at is not None
            and time.monotonic() - self._asked_at > self.program.stop_within
        ):
            self.kill()

    def kill(self) -> None:
        if self._job is not None and self._code is None:
            self._job.kill()


def _quoted(text: str) -> str:
    """A text that Hydra's grammar takes as it is."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("${", "\\${")
    return f"'{escaped}'"
