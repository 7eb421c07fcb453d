"""Slots in which runs live as processes of their own, each filled again the moment it is free."""

from __future__ import annotations

import logging
import os
import signal
import time
from types import FrameType

from llmdreamer.sweep.progress import ProgressReporter
from llmdreamer.sweep.run_folder import is_finished
from llmdreamer.sweep.run_source import RunOutcome, RunSource, RunTask
from llmdreamer.sweep.worker import Slot, Worker, WorkerOptions

log = logging.getLogger(__name__)
TICK = 0.02  # seconds between two looks at the processes
LOOK_EVERY = 1.0  # seconds between two looks at a run's curves
ASK_EVERY = 1.0  # seconds before a source that had nothing is asked again


class Pool:
    """Runs what a source gives, `len(slots)` at a time."""

    def __init__(self, slots: list[Slot], program: WorkerOptions) -> None:
        self._free = list(slots)
        self._slots = len(slots)
        self._program = program
        self._workers: list[Worker] = []
        self._ask_at = 0.0
        self._signal: int | None = None
        self._is_urgent = False  # the signal came twice
        self._busy = 0.0  # slot-seconds in which a process lived
        self._spare = 0.0  # slot-seconds in which there was nothing to start
        self._spare_since: float | None = None

    def run(self, source: RunSource, reporter: ProgressReporter) -> None:
        """Run all. The first Ctrl-C or SIGTERM lets the runs write checkpoints, a second does not.

        Raises:
            KeyboardInterrupt, SystemExit: after it was stopped so.
        """
        self._source, self._reporter = source, reporter
        before = {sig: signal.signal(sig, self._note) for sig in (signal.SIGINT, signal.SIGTERM)}
        began = time.monotonic()
        try:
            self._loop()
        finally:
            self._drain()
            self._source.close()
            for number, handler in before.items():
                signal.signal(number, handler)
            self._log_utilization(time.monotonic() - began)
        if self._signal is not None:
            log.info("stopped; the same command goes on")
            if self._signal == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + self._signal)

    def _loop(self) -> None:
        looked = 0.0
        while True:
            self._reap()
            if self._signal is None:
                self._fill()
            else:
                self._count_unused(there_is_nothing=True)
            if not self._workers and (self._signal is not None or self._source.is_done()):
                return
            if time.monotonic() - looked > LOOK_EVERY:
                looked = time.monotonic()
                self._look()
            self._reporter.refresh()
            time.sleep(TICK)

    def _fill(self) -> None:
        while self._free and time.monotonic() >= self._ask_at:
            task = self._source.next_task()
            self._count_unused(there_is_nothing=task is None)
            if self._signal is not None:  # it came meanwhile; `close` lets go of the task
                return
            if task is None:
                self._ask_at = time.monotonic() + ASK_EVERY
                return
            if is_finished(task.folder):  # its driver died before it took note
                self._source.record_outcome(
                    task, Worker(task, self._free[0], self._program).finished()
                )
                continue
            worker = Worker(task, self._free.pop(0), self._program)
            log.info("%s %s", "resume" if worker.start() else "start", task.label)
            self._workers.append(worker)
            self._tell_stop()
            self._reporter.mark_changed()

    def _reap(self) -> None:
        for worker in list(self._workers):
            if not worker.has_exited():
                continue
            outcome = worker.outcome(interrupted=self._signal is not None)
            if outcome is None and self._signal is None:
                log.warning("%s was killed: trying again", worker.task.label)
                worker.start()
                self._tell_stop()
                continue
            self._count_unused(there_is_nothing=self._spare_since is not None)
            self._workers.remove(worker)
            self._free.append(worker.slot)
            self._busy += worker.seconds
            self._ask_at = 0.0
            if outcome is not None:
                self._ended(worker.task, outcome)

    def _ended(self, task: RunTask, outcome: RunOutcome) -> None:
        told = log.error if outcome.kind == "failed" else log.info
        told("%s %s%s", outcome.kind, task.label, f": {outcome.cause}" if outcome.cause else "")
        self._source.record_outcome(task, outcome)
        self._reporter.mark_changed()

    def _count_unused(self, *, there_is_nothing: bool) -> None:
        """Call it whenever the source has been asked, and before another slot is free."""
        now = time.monotonic()
        if self._spare_since is not None:
            self._spare += len(self._free) * (now - self._spare_since)
        self._spare_since = now if there_is_nothing else None

    def _look(self) -> None:
        for worker in self._workers:
            if worker.is_stopping():
                worker.kill_if_late()
            elif self._signal is None and self._source.should_stop(worker.task, worker.tail.read()):
                log.info("stop %s", worker.task.label)
                worker.stop(wanted=True)

    def _note(self, signum: int, frame: FrameType | None) -> None:
        self._is_urgent, self._signal = self._signal is not None, signum
        self._tell_stop()

    def _tell_stop(self) -> None:
        """Tell the runs of the signal, if there was one. Call it after a start, too: a signal in the midst
        of one finds no process yet."""
        if self._signal is None:
            return
        for worker in self._workers:
            if self._is_urgent:
                worker.kill()
            elif not worker.is_stopping():
                worker.stop(wanted=False)

    def _drain(self) -> None:
        """Where an error ends the sweep, its runs leave with a checkpoint as they would otherwise."""
        for worker in self._workers:
            worker.stop(wanted=False)
        while self._workers:
            for worker in list(self._workers):
                worker.kill_if_late()
                if worker.has_exited():
                    self._workers.remove(worker)
                    self._busy += worker.seconds
            time.sleep(TICK)

    def _log_utilization(self, seconds: float) -> None:
        """Print which share of the time slots were at work, when there was any."""
        self._count_unused(there_is_nothing=False)
        if self._busy == 0:
            return
        wanted = max(self._busy, seconds * self._slots - self._spare)
        slots = "1 slot" if self._slots == 1 else f"{self._slots} slots"
        told = f"{slots} for {seconds:.0f} s, {100 * self._busy / wanted:.1f}% at work"
        if (spare := self._spare / self._slots) >= 1:
            told += f", not counting {spare:.0f} s a slot with nothing to start"
        log.info(told)


def cores() -> int:
    """The CPU cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
