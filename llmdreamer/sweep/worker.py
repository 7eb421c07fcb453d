"""Runs a task in a slot: starts or resumes its process, stops it, and interprets its exit."""

from __future__ import annotations

import json
import logging
import os
import signal
import time
from dataclasses import dataclass, field

from llmdreamer.sweep.folder_wait import FolderWait
from llmdreamer.sweep.launchers.base import Job, Launcher, ProcessSpec
from llmdreamer.sweep.run_folder import (
    CurveReader,
    Curves,
    last_output_line,
    newest_checkpoint,
    reached_end,
)
from llmdreamer.sweep.run_source import OutcomeKind, RunOutcome, RunTask
from llmdreamer.tracking.parent import PARENT_VARIABLE
from llmdreamer.tracking.record import RUN_RECORD_FILE
from llmdreamer.tracking.trial import TRIAL_VARIABLE
from llmdreamer.utils.command_line import override
from llmdreamer.utils.errors import ConfigError
from llmdreamer.utils.redact import redact_message

log = logging.getLogger(__name__)
# Overrides that a resumed run still takes; all other values come from its saved configuration.
_RESUME_KEYS = ("threads", "device", "trust", "tracking.")
# Exit codes of a run that wrote its checkpoint on a signal, from its driver or from a scheduler.
_STOPPED_BY_SIGNAL = {
    128 + number for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT, signal.SIGHUP)
}


@dataclass(frozen=True)
class Slot:
    """Room for one process, on a device or with a share of the CPU cores."""

    device: str | None  # as CUDA_VISIBLE_DEVICES names it
    threads: int

    def environment(self) -> dict[str, str]:
        variables = {"OMP_NUM_THREADS": str(self.threads)}
        if self.device is not None:
            variables["CUDA_VISIBLE_DEVICES"] = self.device
        return variables


@dataclass(frozen=True)
class WorkerOptions:
    """Options for starting the runs of a sweep, shared by all workers."""

    command: list[str]
    launcher: Launcher
    hydra_overrides: list[str]
    objective: str  # may differ from the one that a resumed run was started with
    set_threads: bool  # True: `threads` is set to the slot's share
    retries: int  # restarts without a new checkpoint in between, before a run counts as failed
    stop_within: float  # seconds from SIGTERM to SIGKILL


@dataclass
class Worker:
    """A run in a slot. After restarts it spans several processes."""

    task: RunTask
    slot: Slot
    options: WorkerOptions
    curve_reader: CurveReader = field(init=False)
    seconds: float = 0.0  # total running time of its processes
    _folder_wait: FolderWait | None = None  # while another process holds the run's folder
    _job: Job | None = None
    _exit_code: int | None = None
    _started_at: float = 0.0
    _deaths: int = 0  # in a row, without a new checkpoint
    _checkpoint: str | None = None  # the newest when the process started
    _stop_sent_at: float | None = None
    _is_killed: bool = False
    _stop_is_final: bool = False
    _damage: str = ""  # in one line, if a file of the run is damaged

    def __post_init__(self) -> None:
        self.curve_reader = CurveReader(self.task.folder)

    def start(self) -> None:
        """Start a process, or resume from the newest checkpoint, once no other process holds the folder."""
        self._job, self._exit_code, self._stop_sent_at = None, None, None
        self._is_killed = False
        self._folder_wait = FolderWait(self.task.folder, self.task.label, self.options.stop_within)
        self._start_if_free()

    def _start_if_free(self) -> None:
        if self._folder_wait is None or not self._folder_wait.is_over():
            return
        self._folder_wait = None
        folder = self.task.folder
        if self.is_finished() or self._damage:  # a process that held the folder has ended the run
            self._exit_code = 0
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._checkpoint = newest_checkpoint(folder)
        resumes = self._checkpoint is not None
        self.curve_reader = CurveReader(folder)
        arguments = [
            *self._overrides(resumes=resumes),
            *self.options.hydra_overrides,
            override("hydra.run.dir", folder),
        ]
        process = ProcessSpec([*self.options.command, *arguments], self._environment(), folder)
        log.info("%s %s", "resume" if resumes else "start", self.task.label)
        self._job = self.options.launcher.start(process)
        self._started_at = time.monotonic()
        # A signal that came during the start has found no process.
        if self._is_killed:
            self._job.kill()
        elif self._stop_sent_at is not None:
            self._job.terminate()

    def _overrides(self, *, resumes: bool) -> list[str]:
        overrides = [*self.task.overrides]
        if self.options.set_threads:
            overrides.append(f"threads={self.slot.threads}")
        if not resumes:
            return overrides
        return [
            *(o for o in overrides if o.lstrip("+~").startswith(_RESUME_KEYS)),
            override("resume", self.task.folder),
            override("objective", self.options.objective),
        ]

    def _environment(self) -> dict[str, str]:
        # Set explicitly: a scheduler's worker may have inherited the parent run of another sweep.
        parent = {key: os.environ[key] for key in (PARENT_VARIABLE,) if key in os.environ}
        trial = {TRIAL_VARIABLE: json.dumps(self.task.tags), "COLUMNS": "200"}
        return self.slot.environment() | parent | trial

    def has_exited(self) -> bool:
        self._start_if_free()
        if self._job is None:
            return self._exit_code is not None
        if self._exit_code is None and (code := self._job.poll()) is not None:
            self._exit_code = code
            self.seconds += time.monotonic() - self._started_at
        return self._exit_code is not None

    def outcome(self, *, interrupted: bool) -> RunOutcome | None:
        """Interpret the exit of the process.

        Args:
            interrupted: whether the driver itself is being stopped.

        Returns:
            None if the run is to be resumed, by this driver or, if `interrupted`, by the next one.
        """
        assert self._exit_code is not None
        code = self._exit_code
        if self.is_finished():
            return self.finished()
        if self._damage:
            return self._outcome("failed", self._damage, 1)
        if code == 0:  # code inside the run may call sys.exit(0) at any step
            cause = f"exit code 0, but {RUN_RECORD_FILE} does not say that the run is finished"
            return self._outcome("failed", cause, 1)
        by_signal = code < 0 or code in _STOPPED_BY_SIGNAL
        if by_signal and self._stop_is_final:
            return self._outcome("stopped")
        if by_signal and interrupted:
            return None
        if not by_signal:
            cause = last_output_line(self.task.folder) or f"exit code {code}"
            return self._outcome("failed", cause, code)
        return self._outcome_of_death(code)

    def _outcome_of_death(self, code: int) -> RunOutcome | None:
        """Return None to restart the run, until the retries are used up."""
        has_new_checkpoint = newest_checkpoint(self.task.folder) != self._checkpoint
        self._deaths = 1 if has_new_checkpoint else self._deaths + 1
        if self._deaths <= self.options.retries:
            return None
        number = -code if code < 0 else code - 128
        cause = f"ended by signal {number}, {self._deaths} times without a new checkpoint"
        if last_line := last_output_line(self.task.folder):
            cause += f"; its last output: {last_line}"
        return self._outcome("failed", cause, 1)

    def is_finished(self) -> bool:
        """Return True if the run has reached its end and its files are not damaged."""
        try:
            return reached_end(self.task.folder) and not self._damage
        except ConfigError as error:
            self._damage = str(error)
            return False

    def finished(self) -> RunOutcome:
        return self._outcome("finished")

    def read_curves(self) -> Curves | None:
        """Return the curves so far; None if they are damaged: the run is then stopped, and fails."""
        try:
            return self.curve_reader.read()
        except ConfigError as error:
            self._damage = str(error)
            self.stop(is_final=True)
            return None

    def _outcome(self, kind: OutcomeKind, cause: str = "", code: int = 0) -> RunOutcome:
        reader = CurveReader(self.task.folder)
        try:
            curves = reader.read()
        except ConfigError as error:
            curves = {}
            if kind == "finished":
                kind, cause, code = "failed", str(error), 1
        return RunOutcome(kind, curves, reader.env_step, redact_message(cause), code)

    def stop(self, *, is_final: bool) -> None:
        """Let the run write its checkpoint and exit. `is_final`: the run will not be resumed."""
        self._stop_is_final = self._stop_is_final or is_final
        self._stop_sent_at = time.monotonic()
        # Not `has_exited`: it may ask a scheduler, and this method is called by a signal handler.
        if self._job is not None and self._exit_code is None:
            self._job.terminate()
        self._cancel_wait()

    def _cancel_wait(self) -> None:
        if self._folder_wait is not None:
            self._folder_wait, self._exit_code = None, 128 + signal.SIGTERM

    def is_stopping(self) -> bool:
        return self._stop_sent_at is not None

    def kill_if_late(self) -> None:
        sent_at = self._stop_sent_at
        if sent_at is not None and time.monotonic() - sent_at > self.options.stop_within:
            self.kill()

    def kill(self) -> None:
        self._is_killed = True
        self._cancel_wait()
        if self._job is not None and self._exit_code is None:
            self._job.kill()
