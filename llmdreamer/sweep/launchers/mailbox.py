"""Runs as jobs of submitit (slurm.py) or Ray (rayengine.py), which call `execute` where they find a place.

Driver and place speak by files in a folder both see (the sweep's), so that all schedulers are alike:

| file | writer | says |
|---|---|---|
| `pulse` | the driver | a number that changes: it lives |
| `JOB/began` | the place | this order is carried out, once; then, by a number that changes: we live |
| `JOB/stop`, `JOB/kill` | the driver | send the process SIGTERM, SIGKILL |
| `JOB/ended` | the place | the process has ended, with this exit code |

No law of locks or clocks is asked of the file system. Who is silent for four heartbeats has died. Of a dead
driver, the processes write checkpoints and leave, as those of a driver on this machine do; so they do once
their `JOB` is gone, of which the driver has then washed its hands. A dead place is known before its scheduler
says so, or without it: Slurm may keep no record of ended jobs.
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

from llmdreamer.sweep.launchers.base import Order, spawn
from llmdreamer.utils.files import write_atomically

log = logging.getLogger(__name__)
FOLDER = ".jobs"  # in the sweep's folder
LOOK_EVERY = 0.2  # seconds between two looks at the files
# Seconds that a job's last word may take on its way through a network file system.
LATE = 5.0
# What schedulers send before they take the place away; submitit's own answer would requeue the job,
# while our driver is there to start it again.
_WARNINGS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)


@dataclass(frozen=True)
class Errand:
    """An order, and where its place and its driver speak."""

    order: Order
    cwd: Path
    box: Path
    pulse: Path
    heartbeat: float  # seconds between two signs of life; after four that are missing, who gives them is dead


def execute(errand: Errand, inherited: Mapping[str, str] | None = None) -> None:
    """At the place: run the process to its end, as the driver wishes.

    Once: a scheduler may begin a job again, or after its driver has died, and the order, which may be that of
    a first start, would be carried out over the checkpoints of whoever went on.
    """
    os.chdir(errand.cwd)
    box = errand.box
    if (why := _take(box)) is not None:
        print(f"nothing is run: {why}", flush=True)
        return
    code = 128 + signal.SIGTERM
    if not _is_driven(errand):
        print("nothing is run: the driver has died", flush=True)
    elif not (box / "stop").exists():
        process = spawn(errand.order, inherited)
        with _handed_on(process):
            code = _attend(process, errand)
    _say(box / "ended", str(code))


def _take(box: Path) -> str | None:
    """Take the order; None, or why it is not to be had."""
    try:
        (box / "began").touch(exist_ok=False)
    except FileExistsError:
        return "this order was begun before"
    except FileNotFoundError:
        return "the driver wants this no more"
    return None


def _is_driven(errand: Errand) -> bool:
    """Whether the driver lives: it has just given a sign of life, or where clocks differ, gives another."""
    try:
        age = abs(time.time() - float(errand.pulse.read_text()))
    except (OSError, ValueError):
        age = math.inf
    driver = Pulse(errand.pulse, errand.heartbeat)
    while age > driver.silence and not driver.has_beaten():
        if driver.is_silent():
            return False
        time.sleep(LOOK_EVERY)
    return True


def _say(file: Path, text: str) -> None:
    if file.parent.exists():  # else nobody listens any more
        write_atomically(file, text)


def _attend(process: subprocess.Popen[bytes], errand: Errand) -> int:
    told = False
    driver = Pulse(errand.pulse, errand.heartbeat)
    shown = 0.0
    while (code := process.poll()) is None:
        time.sleep(LOOK_EVERY)
        if time.monotonic() - shown > errand.heartbeat:
            shown = time.monotonic()
            _say(errand.box / "began", str(shown))
        if not told and (driver.is_silent() or _is_unwanted(errand.box)):
            told = True
            process.terminate()
        if (errand.box / "kill").exists():
            process.kill()
    return code


def _is_unwanted(box: Path) -> bool:
    return (box / "stop").exists() or not box.exists()


class Pulse:
    """The other side's signs of life, timed by our clock alone."""

    def __init__(self, path: Path, heartbeat: float) -> None:
        self._path, self.silence = path, 4.0 * heartbeat
        self._last, self._heard = self._read(), time.monotonic()

    def has_beaten(self) -> bool:
        """Whether there was a sign of life since the last look."""
        if (now := self._read()) == self._last:
            return False
        self._last, self._heard = now, time.monotonic()
        return True

    def is_silent(self) -> bool:
        return not self.has_beaten() and time.monotonic() - self._heard > self.silence

    def _read(self) -> str:
        try:
            return self._path.read_text()
        except OSError:
            return ""


@contextmanager
def _handed_on(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Hand a scheduler's warnings on; a Ctrl-C is the driver's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {one: signal.signal(one, lambda *_: process.terminate()) for one in _WARNINGS}
    before[signal.SIGINT] = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@dataclass
class Placed:
    """A job of a scheduler's, seen from the driver."""

    box: Path
    is_over: Callable[[], bool]  # whether the scheduler has done with it, well or not
    cancel: Callable[[], None]
    why: Callable[[], str]  # what the scheduler knows of a place that has ended without a word
    output: Path  # the run's, to which that is added
    heartbeat: float
    _pulse: Pulse | None = None  # once it has begun
    _code: int | None = None
    _looked_at: float = 0.0
    _over_at: float | None = None
    _killed_at: float | None = None
    _is_cancelled: bool = False

    def poll(self) -> int | None:
        if self._code is None and time.monotonic() - self._looked_at > LOOK_EVERY:
            self._looked_at = time.monotonic()
            self._code = self._look()
            if self._code is not None:
                shutil.rmtree(self.box, ignore_errors=True)
        return self._code

    def _look(self) -> int | None:
        try:
            return int((self.box / "ended").read_text())
        except FileNotFoundError:
            pass
        if self._killed_at is not None and time.monotonic() - self._killed_at > LATE:
            self._cancel()  # nobody there reads our files
        if self._over_at is None:
            if self._is_gone():
                self._over_at = time.monotonic()
        elif time.monotonic() - self._over_at > LATE:
            self._tell_why()
            return -signal.SIGKILL  # the place is gone, and the process with it
        return None

    def _tell_why(self) -> None:
        if said := self.why():
            self.output.parent.mkdir(parents=True, exist_ok=True)
            with open(self.output, "a") as file:
                file.write(f"{said}\n")

    def _is_gone(self) -> bool:
        if not self._has_begun():
            return self._is_cancelled or self.is_over()
        if self._pulse is None:
            self._pulse = Pulse(self.box / "began", self.heartbeat)
        if self._pulse.is_silent():
            self._cancel()  # should it be there after all, it would be there twice
            return True
        return self.is_over()

    def _has_begun(self) -> bool:
        return (self.box / "began").exists()

    def terminate(self) -> None:
        if self._code is not None:
            return
        (self.box / "stop").touch()
        if not self._has_begun():  # it would wait for a place only to leave it
            self._cancel()

    def kill(self) -> None:
        if self._code is not None:
            return
        # By `execute`, if it is there: a place taken away leaves a hanging process behind.
        (self.box / "kill").touch()
        if self._killed_at is None:
            self._killed_at = time.monotonic()
        if not self._has_begun():
            self._cancel()

    def _cancel(self) -> None:
        if not self._is_cancelled:
            self._is_cancelled = True
            self.cancel()


class Posted:
    """What both engines share: the folder of the files, and the driver's pulse."""

    def __init__(self, sweep: Path, heartbeat: int) -> None:
        self.folder = sweep / FOLDER / uuid.uuid4().hex
        self.folder.mkdir(parents=True)
        self.heartbeat = heartbeat
        self._ended = threading.Event()
        self._beat()
        self._thread = threading.Thread(target=self._beat_on, args=(heartbeat,), daemon=True)
        self._thread.start()

    def errand(self, order: Order) -> Errand:
        box = self.folder / uuid.uuid4().hex
        box.mkdir()
        return Errand(order, Path.cwd(), box, self.folder / "pulse", self.heartbeat)

    def _beat(self) -> None:
        write_atomically(self.folder / "pulse", str(time.time()))

    def _beat_on(self, every: float) -> None:
        while not self._ended.wait(every):
            try:
                self._beat()
            except OSError as error:  # the next one may get through
                log.warning("no pulse: %s", error)

    def close(self) -> None:
        self._ended.set()
        self._thread.join()
        shutil.rmtree(self.folder, ignore_errors=True)


def last_of(error: BaseException | None) -> str:
    """The last line of an error: schedulers put the place's traceback, or what it printed, into theirs."""
    lines = [line.strip() for line in str(error or "").splitlines()]
    return next((line[:300] for line in reversed(lines) if line.strip("- ")), "")
