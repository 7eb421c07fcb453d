"""Jobs of a scheduler (submitit in slurm.py, Ray in ray.py): each job runs one process through `execute`.

Driver and jobs exchange messages through files in the sweep's folder, which both can see. The files are the
same for all schedulers:

| file | writer | meaning |
|---|---|---|
| `driver_heartbeat` | driver | changes while the driver is alive |
| `JOB/heartbeat` | job | created once, when a job starts; then changes while the job is alive |
| `JOB/stop`, `JOB/kill` | driver | send SIGTERM, SIGKILL to the process |
| `JOB/exit_code` | job | the process has ended with this exit code |

The files need neither locks nor synchronized clocks. A side that is silent for four heartbeats is considered
dead. When the driver is dead, or has removed `JOB`, the process gets SIGTERM, on which it writes a checkpoint
and exits; `stop_within` seconds later it gets SIGKILL. The driver also detects a dead job that the scheduler
does not report: Slurm may keep no record of ended jobs.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
import signal
import subprocess
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from llmdreamer.sweep.launchers.base import ProcessSpec, start_process
from llmdreamer.utils.files import write_atomically
from llmdreamer.utils.output import print_line

log = logging.getLogger(__name__)
JOBS_FOLDER = ".jobs"  # in the sweep's folder
POLL_SECONDS = 0.2  # between two checks of the files
FILE_DELAY_SECONDS = 5.0  # a network file system may show a job's last file this late
# Schedulers send these before they end a job. submitit's own handler would requeue the job, but our driver
# starts a new one.
_FORWARDED_SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class JobSpec:
    """A process to run in a job, and the files through which the job and its driver communicate."""

    process: ProcessSpec
    working_dir: Path
    job_dir: Path
    driver_heartbeat: Path
    heartbeat_seconds: float  # between two heartbeats; a side that misses four is considered dead
    stop_within: float  # seconds from SIGTERM to SIGKILL, once the driver is dead


def execute(job: JobSpec, inherited: Mapping[str, str] | None = None) -> None:
    """Run the job's process to its end, and follow the driver's messages. Called inside the job.

    Each job runs at most once. A scheduler may start a job again, or start it after its driver has died.
    The command of such a job may start a new run; it would overwrite the checkpoints of a later job.

    Args:
        inherited: the driver's environment, as in `start_process`.
    """
    os.chdir(job.working_dir)
    if (reason := _claim(job.job_dir)) is not None:
        print_line(f"job not run: {reason}")
        return
    exit_code = 128 + signal.SIGTERM
    if not _is_driver_alive(job):
        print_line("job not run: the driver is dead")
    elif not (job.job_dir / "stop").exists():
        process = start_process(job.process, inherited)
        with _forwarded_signals(process):
            exit_code = _supervise(process, job)
    _write_message(job.job_dir / "exit_code", str(exit_code))


def _claim(job_dir: Path) -> str | None:
    """Claim the job for this process; return None, or the reason why it cannot be claimed."""
    try:
        (job_dir / "heartbeat").touch(exist_ok=False)
    except FileExistsError:
        return "it has been started before"
    except FileNotFoundError:
        return "the driver has discarded it"
    return None


def _is_driver_alive(job: JobSpec) -> bool:
    """Return True if the driver's heartbeat is recent, or, where clocks differ, if the next one arrives."""
    try:
        age_seconds = abs(time.time() - float(job.driver_heartbeat.read_text()))
    except (OSError, ValueError):
        age_seconds = math.inf
    driver = Heartbeat(job.driver_heartbeat, job.heartbeat_seconds)
    while age_seconds > driver.timeout_seconds and not driver.has_changed():
        if driver.is_silent():
            return False
        time.sleep(POLL_SECONDS)
    return True


def _write_message(file: Path, text: str) -> None:
    if file.parent.exists():  # else the driver has discarded the job
        write_atomically(file, text)


def _supervise(process: subprocess.Popen[bytes], job: JobSpec) -> int:
    """Wait for the process and return its exit code; send heartbeats, forward the driver's messages."""
    terminated_at: float | None = None
    driver = Heartbeat(job.driver_heartbeat, job.heartbeat_seconds)
    last_beat = 0.0
    while (exit_code := process.poll()) is None:
        time.sleep(POLL_SECONDS)
        if time.monotonic() - last_beat > job.heartbeat_seconds:
            last_beat = time.monotonic()
            _write_message(job.job_dir / "heartbeat", str(last_beat))
        is_driver_dead = driver.is_silent() or not job.job_dir.exists()
        if terminated_at is None and (is_driver_dead or (job.job_dir / "stop").exists()):
            terminated_at = time.monotonic()
            process.terminate()
        is_late = terminated_at is not None and time.monotonic() - terminated_at > job.stop_within
        # A living driver decides itself when to kill.
        if (job.job_dir / "kill").exists() or (is_driver_dead and is_late):
            process.kill()
    return exit_code


class Heartbeat:
    """Watches the heartbeat file of the other side. Only the clock of this side is used."""

    def __init__(self, path: Path, interval_seconds: float) -> None:
        self._path, self.timeout_seconds = path, 4.0 * interval_seconds
        self._last_text, self._changed_at = self._read(), time.monotonic()

    def has_changed(self) -> bool:
        """Return True if the other side has sent a heartbeat since the last check."""
        if (text := self._read()) == self._last_text:
            return False
        self._last_text, self._changed_at = text, time.monotonic()
        return True

    def is_silent(self) -> bool:
        return not self.has_changed() and time.monotonic() - self._changed_at > self.timeout_seconds

    def _read(self) -> str:
        try:
            return self._path.read_text()
        except OSError:
            return ""


@contextmanager
def _forwarded_signals(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Forward the scheduler's signals to the process as SIGTERM. Ignore Ctrl-C, which the driver handles."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    handlers = {
        number: signal.signal(number, lambda *_: process.terminate())
        for number in _FORWARDED_SIGNALS
    }
    handlers[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


@dataclass
class RemoteJob:
    """The driver's handle of a job in a scheduler."""

    job_dir: Path
    is_over: Callable[[], bool]  # True once the scheduler has finished the job, whatever its result
    cancel: Callable[[], None]
    failure_reason: Callable[[], str]  # the scheduler's, for a job that ended without an exit code
    output: Path  # the run's log, to which the failure reason is appended
    heartbeat_seconds: float
    _heartbeat: Heartbeat | None = None  # set once the job has started
    _exit_code: int | None = None
    _polled_at: float = 0.0
    _lost_at: float | None = None
    _killed_at: float | None = None
    _is_cancelled: bool = False

    def poll(self) -> int | None:
        if self._exit_code is None and time.monotonic() - self._polled_at > POLL_SECONDS:
            self._polled_at = time.monotonic()
            self._exit_code = self._check()
            if self._exit_code is not None:
                shutil.rmtree(self.job_dir, ignore_errors=True)
        return self._exit_code

    def _check(self) -> int | None:
        try:
            return int((self.job_dir / "exit_code").read_text())
        except FileNotFoundError:
            pass
        if self._killed_at is not None and time.monotonic() - self._killed_at > FILE_DELAY_SECONDS:
            self._cancel()  # the job does not read our files
        if self._lost_at is None:
            if self._is_lost():
                self._lost_at = time.monotonic()
        elif time.monotonic() - self._lost_at > FILE_DELAY_SECONDS:
            self._log_failure()
            return -signal.SIGKILL  # the job is lost, and its process with it
        return None

    def _log_failure(self) -> None:
        if reason := self.failure_reason():
            self.output.parent.mkdir(parents=True, exist_ok=True)
            with open(self.output, "a") as file:
                file.write(f"{reason}\n")

    def _is_lost(self) -> bool:
        if not self._has_started():
            return self._is_cancelled or self.is_over()
        if self._heartbeat is None:
            self._heartbeat = Heartbeat(self.job_dir / "heartbeat", self.heartbeat_seconds)
        if self._heartbeat.is_silent():
            self._cancel()  # if it is still alive, the run would have two processes
            return True
        return self.is_over()

    def _has_started(self) -> bool:
        return (self.job_dir / "heartbeat").exists()

    def terminate(self) -> None:
        if self._exit_code is not None:
            return
        (self.job_dir / "stop").touch()
        if not self._has_started():  # it would wait in the queue only to exit
            self._cancel()

    def kill(self) -> None:
        if self._exit_code is not None:
            return
        # `execute` kills the process, if it runs: canceling the job would leave a hanging process behind.
        (self.job_dir / "kill").touch()
        if self._killed_at is None:
            self._killed_at = time.monotonic()
        if not self._has_started():
            self._cancel()

    def _cancel(self) -> None:
        if not self._is_cancelled:
            self._is_cancelled = True
            self.cancel()


class JobMailbox:
    """The folder of a driver's jobs, with the driver's heartbeat. Submitit and Ray share it."""

    def __init__(self, sweep_folder: Path, heartbeat_seconds: int, stop_within: float) -> None:
        self.folder = sweep_folder / JOBS_FOLDER / uuid.uuid4().hex
        self.folder.mkdir(parents=True)
        self.heartbeat_seconds, self._stop_within = heartbeat_seconds, stop_within
        self._is_closed = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._beat_until_closed, daemon=True)
        self._thread.start()

    def new_job(self, process: ProcessSpec) -> JobSpec:
        job_dir = self.folder / uuid.uuid4().hex
        job_dir.mkdir()
        heartbeat = self.folder / "driver_heartbeat"
        return JobSpec(
            process, Path.cwd(), job_dir, heartbeat, self.heartbeat_seconds, self._stop_within
        )

    def _beat(self) -> None:
        write_atomically(self.folder / "driver_heartbeat", str(time.time()))

    def _beat_until_closed(self) -> None:
        while not self._is_closed.wait(self.heartbeat_seconds):
            try:
                self._beat()
            except OSError as error:  # the next heartbeat may succeed
                log.warning("the driver's heartbeat cannot be written: %s", error)

    def close(self) -> None:
        self._is_closed.set()
        self._thread.join()
        shutil.rmtree(self.folder, ignore_errors=True)


def last_error_line(error: BaseException | None) -> str:
    """Return the last line of an error: a scheduler's error ends with the job's traceback or output."""
    lines = [line.strip() for line in str(error or "").splitlines()]
    return next((line[:300] for line in reversed(lines) if line.strip("- ")), "")
